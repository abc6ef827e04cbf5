//! The words shared with the caller. One descriptor is 16 int32, one completion 4, one segment 3:
//!
//! ```text
//! descriptor   0 op       1 handle   2 tag      3 row       4 page      5 delta    6 length   7 offset low
//!              8 offset high         9 flags   10 crc index 11 first segment      12 segment count   13-15 unused
//! completion   0 tag      1 row      2 result   3 extra
//! segment      0 page     1 delta    2 length
//! ```
//! An address is page * 4096 + delta. A handle is generation << 16 | slot; a generation is 1 .. 32767, so that a handle is a
//! positive int32 and never 0.

/// Changed whenever a word moves or a call changes: the caller compares it when it loads the addon.
pub const ABI: u32 = 5;

pub const PAGE_BYTES: usize = 4096;
pub const DESCRIPTOR_WORDS: usize = 16;
pub const COMPLETION_WORDS: usize = 4;
pub const SEGMENT_WORDS: usize = 3;

/// Descriptors and segments that fit between two calls; the caller flushes early when they are used up.
pub const DESCRIPTORS_MAX: usize = 1024;
pub const SEGMENTS_POOL: usize = 8192;
pub const SEGMENTS_MAX: usize = 512;
pub const COMPLETIONS_PER_TURN: usize = 256;
pub const COMPLETIONS_PER_HANDLE: u32 = 32;

pub const OP: usize = 0;
pub const HANDLE: usize = 1;
pub const TAG: usize = 2;
pub const ROW: usize = 3;
pub const PAGE: usize = 4;
pub const DELTA: usize = 5;
pub const LENGTH: usize = 6;
pub const OFFSET_LOW: usize = 7;
pub const OFFSET_HIGH: usize = 8;
pub const FLAGS: usize = 9;
pub const CRC_INDEX: usize = 10;
pub const SEGMENT: usize = 11;
pub const SEGMENT_COUNT: usize = 12;

/// FLAGS of RECV: complete only when full, closed or failed.
pub const FLAG_WAIT_ALL: i32 = 1;
/// WRITE_SEGMENTS: on stable storage when it completes (RWF_DSYNC).
pub const FLAG_SYNC: i32 = 2;
/// SEND, SEND_SEGMENTS: a success at once is told together with whatever completes next, and ends no wait.
pub const FLAG_LAZY: i32 = 4;

pub mod op {
    pub const RECV: i32 = 1;
    pub const RECV_MULTISHOT: i32 = 2;
    pub const SEND: i32 = 3;
    pub const SEND_SEGMENTS: i32 = 4;
    pub const ACCEPT: i32 = 5;
    pub const CONNECT: i32 = 6;
    pub const READ: i32 = 7;
    pub const WRITE: i32 = 8;
    pub const WRITE_SEGMENTS: i32 = 9;
    pub const FDATASYNC: i32 = 10;
    /// The delay is the offset, in microseconds.
    pub const TIMEOUT: i32 = 11;
    pub const CANCEL_TIMEOUT: i32 = 12;
    pub const CANCEL: i32 = 13;
    pub const CLOSE: i32 = 14;
    /// The buffer id is in ROW.
    pub const RELEASE_PROVIDED: i32 = 15;
    /// LENGTH bytes from the offset on: fallocate that keeps the size.
    pub const ALLOCATE: i32 = 16;
    /// Completes when the peer will send no more, whatever has not been received yet.
    pub const HANGUP: i32 = 17;
}

/// Tag of the completion that says "another thread called wake"; it belongs to no operation, so its extra has MORE set.
pub const WAKE_TAG: i32 = 0;
/// Low bit of `extra`: more completions of this operation follow.
pub const MORE: i32 = 1;

/// Kind of a handle, low byte of its meta word; the rest of the word is the alignment in bytes << 8 (0 = any).
pub mod kind {
    pub const FREE: u8 = 0;
    pub const LISTENER: u8 = 1;
    pub const SOCKET: u8 = 2;
    pub const FILE: u8 = 3;
}

/// Byte offsets of the parts of the control mapping.
#[derive(Debug, Clone, Copy)]
pub struct ControlLayout {
    /// f64: boot-time clock in ms, when the last wait returned.
    pub clock: usize,
    pub descriptors: usize,
    pub segments: usize,
    pub completions: usize,
    /// i32 per slot: the handle that lives there, 0 = none or closing.
    pub live: usize,
    /// i32 per slot: see [`kind`].
    pub meta: usize,
    /// u8 per slot: a send is in flight.
    pub send_busy: usize,
    /// u8 per provided buffer: the caller has it.
    pub taken: usize,
    /// u32 each: CRCs of reads.
    pub crcs: usize,
    /// Private to the engine: where the eventfd is read into.
    pub wake_word: usize,
    pub total: usize,
}

impl ControlLayout {
    pub fn new(handles_max: usize, provided_count: usize, crcs_max: usize) -> Self {
        let mut at = 0;
        let mut take = |bytes: usize| {
            let start = at;
            at = (at + bytes).next_multiple_of(64);
            start
        };
        let clock = take(64);
        let wake_word = take(64);
        let descriptors = take(DESCRIPTORS_MAX * DESCRIPTOR_WORDS * 4);
        let segments = take(SEGMENTS_POOL * SEGMENT_WORDS * 4);
        let completions = take(COMPLETIONS_PER_TURN * COMPLETION_WORDS * 4);
        let live = take(handles_max * 4);
        let meta = take(handles_max * 4);
        let send_busy = take(handles_max);
        let taken = take(provided_count);
        let crcs = take(crcs_max * 4);
        let total = take(0).next_multiple_of(PAGE_BYTES);
        ControlLayout { clock, descriptors, segments, completions, live, meta, send_busy, taken, crcs, wake_word, total }
    }
}
