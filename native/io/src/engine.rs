//! The io queue itself: descriptors in, system calls, completions out.
//!
//! ```text
//! caller writes descriptors ─> consume ─> io_uring SQEs ──> kernel ──> CQEs ─> complete ─┐
//!                                 ├─ memory files, at once ──────────────────────────────┤
//!                                 └─ timers (heap) ── expire ────────────────────────────┤
//!                                                                                     ready (FIFO)
//! caller reads completions <───────────────────────────────────────────── deliver <──────┘
//! ```

use crate::arena::{Backing, Mapping};
use crate::boot_time_ns;
use crate::fault::{Fault, last_errno};
use crate::files::{self, OpenOptions, Opened};
use crate::handles::{Handle, Handles, NO_SLOT};
use crate::layout::*;
use crate::net::{self, Address};
use crate::patience::{GAP_NS, LOOK_NS, Patience};
use crate::ring;
use crate::timers::Timers;
use crate::wake::Waker;
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Completions taken from the kernel ahead of delivery; the rest stays in its ring.
const READY_MAX: usize = 1024;
const BUFFER_GROUP: u16 = 0;
/// Wait for data before the first try. Not for waitAll: the first part of a bulk payload is there already (20 % more throughput).
const RECV_POLL_FIRST: u16 = 1;
const RECV_MULTISHOT: u16 = 2;
const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
const SEND_AT_ONCE_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// Turns in a row that deliver what completed at once without looking into the ring: request, write and answer of a client
/// cost one `io_uring_enter` instead of three, and sockets are looked at all the same.
const TURNS_WITHOUT_ENTER_MAX: u32 = 3;
/// How long dropping an engine waits for its operations before it leaks their memory.
const DRAIN_MAX_NS: u64 = 3_000_000_000;

// user_data = kind << 56 | generation (24 bits) << 32 | index
const DATA_OP: u64 = 1;
const DATA_CANCEL: u64 = 2;
const DATA_WAKE: u64 = 3;

#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    pub arena_pages: usize,
    /// Buffers of `recvMultishot` (a power of two, 0 = none), taken from the first pages of the arena.
    pub provided_count: usize,
    pub provided_pages: usize,
    pub handles_max: usize,
    pub ops_max: usize,
    pub crcs_max: usize,
    /// Try huge pages for the arena.
    pub huge: bool,
}

#[derive(Clone, Copy, Default)]
struct Op {
    generation: u32,
    op: i32,
    slot: u32,
    tag: i32,
    row: i32,
    start: usize,
    length: u32,
    /// Bytes sent before the rest was given to the kernel.
    moved: u32,
    crc_index: i32,
}

#[derive(Clone, Copy)]
struct Ready {
    tag: i32,
    row: i32,
    result: i32,
    extra: i32,
    slot: u32,
    effect: Effect,
}

/// What the delivery of a completion changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Nothing,
    /// The socket may send again.
    SendDone,
    /// The slot of the handle may be used again.
    SlotFree,
}

/// One io queue. Not Send: it is used and dropped by the thread that made it (IORING_SETUP_SINGLE_ISSUER).
pub struct Engine {
    ring: ManuallyDrop<IoUring>,
    arena: Arc<Mapping>,
    control: Arc<Mapping>,
    layout: ControlLayout,
    options: EngineOptions,
    buffer_ring: ManuallyDrop<Option<Mapping>>,
    buffer_tail: u16,
    /// Per provided buffer: the caller has it.
    buffer_taken: Vec<bool>,
    handles: Handles,
    ops: Vec<Op>,
    free_ops: Vec<u32>,
    timers: Timers,
    ready: VecDeque<Ready>,
    held: Vec<Ready>,
    /// Sends that succeeded at once and whose callers are in no hurry ([`FLAG_LAZY`]): they become ready when a turn delivers.
    lazy: Vec<Ready>,
    /// Gather lists of descriptors not yet seen by the kernel; emptied only when the submission ring is empty.
    iovecs: Vec<libc::iovec>,
    messages: Vec<libc::msghdr>,
    waker: Arc<Waker>,
    wake_armed: bool,
    /// Requests whose completion has not been seen, internal ones included.
    kernel_ops: u64,
    turn: u32,
    turns_without_enter: u32,
    patience: Patience,
}

impl Engine {
    pub fn new(options: EngineOptions) -> Result<Self, Fault> {
        let provided_pages_total = options.provided_count * options.provided_pages;
        if provided_pages_total > options.arena_pages || options.arena_pages > i32::MAX as usize {
            return Err(Fault::misuse("the arena must hold the provided buffers and have less than 2^31 pages"));
        }
        if options.provided_count != 0
            && (!options.provided_count.is_power_of_two() || options.provided_count > 32768 || options.provided_pages == 0)
        {
            return Err(Fault::misuse("the number of provided buffers must be a power of two up to 32768"));
        }
        if options.handles_max == 0 || options.handles_max > 0x1_0000 || options.ops_max == 0 || options.ops_max > 1 << 20 {
            return Err(Fault::misuse("1 to 65536 handles and 1 to 2^20 operations"));
        }
        let waker = Waker::register()?;
        let ring = ring::create()?;
        let arena = Arc::new(Mapping::new(options.arena_pages * PAGE_BYTES, options.huge)?);
        let layout = ControlLayout::new(options.handles_max, options.provided_count, options.crcs_max);
        let control = Arc::new(Mapping::new(layout.total, false)?);
        // SAFETY: the layout gives `live` and `meta` `handles_max` words each inside the control mapping, which the engine
        // keeps alive longer than the table.
        let handles =
            unsafe { Handles::new(options.handles_max, control.start().add(layout.live).cast(), control.start().add(layout.meta).cast()) };
        let buffer_ring = if options.provided_count == 0 { None } else { Some(Mapping::new(options.provided_count * 16, false)?) };
        let mut engine = Engine {
            ring: ManuallyDrop::new(ring),
            arena,
            control,
            layout,
            options,
            buffer_ring: ManuallyDrop::new(buffer_ring),
            buffer_tail: 0,
            buffer_taken: vec![false; options.provided_count],
            handles,
            ops: vec![Op::default(); options.ops_max],
            free_ops: (0..options.ops_max as u32).rev().collect(),
            timers: Timers::new(),
            ready: VecDeque::with_capacity(2 * READY_MAX + DESCRIPTORS_MAX),
            held: Vec::with_capacity(READY_MAX),
            lazy: Vec::with_capacity(DESCRIPTORS_MAX),
            iovecs: Vec::with_capacity(SEGMENTS_POOL),
            messages: Vec::with_capacity(DESCRIPTORS_MAX),
            waker,
            wake_armed: false,
            kernel_ops: 0,
            turn: 0,
            turns_without_enter: 0,
            patience: Patience::new(),
        };
        engine.register_buffers()?;
        engine.sample_clock();
        Ok(engine)
    }

    pub fn arena(&self) -> &Arc<Mapping> {
        &self.arena
    }

    pub fn control(&self) -> &Arc<Mapping> {
        &self.control
    }

    pub fn layout(&self) -> &ControlLayout {
        &self.layout
    }

    pub fn waker_id(&self) -> u32 {
        self.waker.id
    }

    pub fn arena_is_huge(&self) -> bool {
        self.arena.backing == Backing::HugeTlb
    }

    /// Handles open, and operations and timers the engine holds: for leak checks.
    pub fn in_use(&self) -> (usize, usize) {
        (self.handles.in_use(), self.ops.len() - self.free_ops.len() + self.timers.len())
    }

    /// Stores the boot-time clock where the caller reads it.
    pub fn sample_clock(&mut self) -> f64 {
        let now_ms = boot_time_ns() as f64 / 1e6;
        // SAFETY: the layout reserves this f64 inside the control mapping.
        unsafe { self.control.start().add(self.layout.clock).cast::<f64>().write(now_ms) };
        now_ms
    }

    // ---- synchronous calls ---------------------------------------------------------------------------------------------

    pub fn listen_tcp(&mut self, host: &str, port: u16, backlog: i32) -> Result<(i32, u16), Fault> {
        let (fd, port) = net::listen_tcp(host, port, backlog)?;
        let mut handle = Handle::new(kind::LISTENER, fd.release());
        handle.is_tcp = true;
        Ok((self.handles.insert(handle)?, port))
    }

    pub fn listen_unix(&mut self, path: &str, mode: u32, backlog: i32) -> Result<i32, Fault> {
        let (fd, unix_path) = net::listen_unix(path, mode, backlog)?;
        let mut handle = Handle::new(kind::LISTENER, fd.release());
        handle.unix_path = Some(unix_path);
        self.handles.insert(handle)
    }

    /// A socket that knows where the CONNECT descriptor will take it.
    pub fn socket_tcp(&mut self, host: &str, port: u16) -> Result<i32, Fault> {
        let address = Address::tcp(host, port)?;
        let fd = net::socket(address.family())?;
        net::set_tcp_options(fd.0);
        let mut handle = Handle::new(kind::SOCKET, fd.release());
        handle.is_tcp = true;
        handle.address = Some(Box::new(address));
        self.handles.insert(handle)
    }

    pub fn socket_unix(&mut self, path: &str) -> Result<i32, Fault> {
        let address = Address::unix(path)?;
        let fd = net::socket(libc::AF_UNIX)?;
        let mut handle = Handle::new(kind::SOCKET, fd.release());
        handle.address = Some(Box::new(address));
        self.handles.insert(handle)
    }

    /// See [`net::silent_ms`]; 0 for a UNIX socket, whose other end cannot be cut off.
    pub fn silent_ms(&mut self, handle: i32) -> Result<u32, Fault> {
        let slot = self.handles.slot(handle).ok_or_else(|| Fault::misuse(format!("handle {handle:#x} is not open")))?;
        let handle = self.handles.at(slot);
        if handle.kind != kind::SOCKET {
            return Err(Fault::misuse("only sockets are silent"));
        }
        if handle.is_tcp { net::silent_ms(handle.fd) } else { Ok(0) }
    }

    pub fn open_file(&mut self, options: &OpenOptions) -> Result<(i32, Opened), Fault> {
        let (fd, opened) = files::open(options)?;
        let mut handle = Handle::new(kind::FILE, fd.release());
        handle.inline = opened.volatile;
        handle.align = opened.alignment_bytes;
        handle.read_only = options.read_only;
        Ok((self.handles.insert(handle)?, opened))
    }

    // ---- the turn ------------------------------------------------------------------------------------------------------

    /// Takes descriptors without waiting: the caller's array is full in the middle of a turn.
    pub fn flush(&mut self, descriptors: usize) -> Result<(), Fault> {
        self.consume(descriptors)?;
        self.submit_all()
    }

    /// Takes descriptors, waits up to `timeout_ms` for something to complete, writes completions; returns how many.
    pub fn turn(&mut self, descriptors: usize, timeout_ms: i32) -> Result<usize, Fault> {
        self.consume(descriptors)?;
        self.arm_wake()?;
        if self.ready.is_empty() || self.turns_without_enter == TURNS_WITHOUT_ENTER_MAX {
            self.turns_without_enter = 0;
            self.look(timeout_ms)?;
        } else {
            self.turns_without_enter += 1;
        }
        while let Some(ready) = self.lazy.pop() {
            self.ready.push_front(ready);
        }
        self.reap(READY_MAX);
        // After the reaping: everything that this turn delivers had happened by then.
        let now_ms = self.sample_clock();
        self.expire(now_ms);
        if self.waker.take_pending() {
            self.ready.push_front(Ready { tag: WAKE_TAG, row: 0, result: 0, extra: MORE, slot: NO_SLOT, effect: Effect::Nothing });
        }
        Ok(self.deliver())
    }

    /// Submits, and waits for a completion unless there is one already.
    fn look(&mut self, timeout_ms: i32) -> Result<(), Fault> {
        let mut wait_ns = timeout_ms.max(0) as u64 * 1_000_000;
        if !self.ready.is_empty() || !self.ring.completion().is_empty() {
            wait_ns = 0;
        } else if let Some(deadline_ns) = self.timers.next_deadline_ns() {
            wait_ns = wait_ns.min(deadline_ns.saturating_sub(boot_time_ns()));
        }
        if wait_ns > 0 && self.patience.looks() {
            self.enter(0, 0)?;
            let limit_ns = wait_ns.min(LOOK_NS);
            let found = !self.ring.completion().is_empty() || self.stay_awake(limit_ns);
            wait_ns = if found { 0 } else { wait_ns - limit_ns };
        }
        if wait_ns > 0 && self.waker.fall_asleep() {
            let from_ns = boot_time_ns();
            self.enter(1, wait_ns)?;
            self.patience.slept(boot_time_ns().saturating_sub(from_ns));
        } else {
            self.enter(0, 0)?;
        }
        self.waker.wake_up();
        Ok(())
    }

    /// Looks for work to come for so long; whether it came. Costs no system call: the kernel says in shared memory that it has work for this thread.
    fn stay_awake(&mut self, limit_ns: u64) -> bool {
        let from_ns = boot_time_ns();
        let mut last_ns = from_ns;
        let mut alone = true;
        loop {
            let found = !self.ring.completion().is_empty() || self.ring.submission().taskrun() || self.waker.is_pending();
            let now_ns = boot_time_ns();
            alone &= now_ns.saturating_sub(last_ns) < GAP_NS;
            last_ns = now_ns;
            if found || now_ns.saturating_sub(from_ns) >= limit_ns {
                if found || limit_ns == LOOK_NS {
                    self.patience.looked(found, alone);
                }
                return found;
            }
            std::hint::spin_loop();
        }
    }

    fn expire(&mut self, now_ms: f64) {
        if self.timers.len() == 0 {
            return;
        }
        let now_ns = (now_ms * 1e6) as u64;
        while self.ready.len() < READY_MAX {
            let Some((tag, row)) = self.timers.pop_due(now_ns) else { break };
            self.ready.push_back(Ready { tag, row, result: 0, extra: 0, slot: NO_SLOT, effect: Effect::Nothing });
        }
    }

    /// One system call at most: submit what is in the ring, run deferred work, wait for `want` completions.
    fn enter(&mut self, want: usize, wait_ns: u64) -> Result<(), Fault> {
        let timespec = Timespec::new().sec(wait_ns / 1_000_000_000).nsec((wait_ns % 1_000_000_000) as u32);
        let result = if want > 0 {
            self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timespec))
        } else {
            let submission = self.ring.submission();
            if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
                return Ok(());
            }
            drop(submission);
            self.ring.submit()
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Timed out; a signal; the completion ring or memory is full: the caller reaps and comes back.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                errno => Err(Fault::os(errno.unwrap_or(libc::EIO), "io_uring_enter failed")),
            },
        }
    }

    /// Hands every prepared request to the kernel.
    fn submit_all(&mut self) -> Result<(), Fault> {
        while !self.ring.submission().is_empty() {
            self.enter(0, 0)?;
            // All of it: a full completion ring may be what keeps the kernel from taking more.
            self.reap(usize::MAX);
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, data: u64) -> Result<(), Fault> {
        let entry = entry.user_data(data);
        loop {
            // SAFETY: whatever the entry points to (arena, control mapping, gather lists, addresses in the handle table)
            // lives until its completion: the kernel copies lists and addresses at submission (IORING_FEAT_SUBMIT_STABLE,
            // required at start), and the mappings are kept until every operation has completed.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.kernel_ops += 1;
                return Ok(());
            }
            self.submit_all()?;
        }
    }

    fn arm_wake(&mut self) -> Result<(), Fault> {
        if self.wake_armed {
            return Ok(());
        }
        self.wake_armed = true;
        // SAFETY: the layout reserves this word inside the control mapping.
        let word = unsafe { self.control.start().add(self.layout.wake_word) };
        self.push(opcode::Read::new(Fd(self.waker.fd), word, 8).build(), DATA_WAKE << 56)
    }

    // ---- descriptors ---------------------------------------------------------------------------------------------------

    fn consume(&mut self, descriptors: usize) -> Result<(), Fault> {
        if descriptors > DESCRIPTORS_MAX {
            return Err(Fault::misuse(format!("{descriptors} descriptors, {DESCRIPTORS_MAX} at most")));
        }
        let mut first_fault = None;
        for i in 0..descriptors {
            let mut words = [0i32; DESCRIPTOR_WORDS];
            // SAFETY: i < DESCRIPTORS_MAX, so the 16 words lie inside the control mapping; only this thread writes them.
            unsafe {
                let from = self.control.start().add(self.layout.descriptors).cast::<i32>().add(i * DESCRIPTOR_WORDS);
                std::ptr::copy_nonoverlapping(from, words.as_mut_ptr(), DESCRIPTOR_WORDS);
            }
            if let Err(fault) = self.prepare(&words) {
                first_fault.get_or_insert(fault);
            }
        }
        first_fault.map_or(Ok(()), Err)
    }

    fn prepare(&mut self, d: &[i32; DESCRIPTOR_WORDS]) -> Result<(), Fault> {
        match d[OP] {
            op::RECV => {
                let (slot, fd) = self.handle_of(d, kind::SOCKET)?;
                let start = self.range_of(d)?;
                let (flags, first) = if d[FLAGS] & FLAG_WAIT_ALL != 0 { (libc::MSG_WAITALL, 0) } else { (0, RECV_POLL_FIRST) };
                let entry = opcode::Recv::new(Fd(fd), self.pointer(start), d[LENGTH] as u32).ioprio(first).flags(flags).build();
                self.start(d, slot, start, d[LENGTH] as u32, entry)
            }
            op::RECV_MULTISHOT => {
                let (slot, fd) = self.handle_of(d, kind::SOCKET)?;
                if self.buffer_taken.is_empty() {
                    return Err(Fault::misuse("this queue has no provided buffers"));
                }
                let entry = opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0)
                    .ioprio(RECV_POLL_FIRST | RECV_MULTISHOT)
                    .buf_group(BUFFER_GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT);
                self.start(d, slot, 0, 0, entry)
            }
            op::SEND => {
                let slot = self.sender_of(d)?;
                let start = self.range_of(d)?;
                let fd = self.handles.at(slot).fd;
                let length = d[LENGTH] as u32;
                let pointer = self.pointer(start);
                // SAFETY: `range_of` approved the range; the caller owns it until the completion is dispatched.
                let sent = retry(|| unsafe { libc::send(fd, pointer.cast(), length as usize, SEND_AT_ONCE_FLAGS) });
                let Some(moved) = self.sent_at_once(d, slot, sent, length) else { return Ok(()) };
                let rest = start + moved as usize;
                let entry = opcode::Send::new(Fd(fd), self.pointer(rest), length - moved).flags(SEND_FLAGS).build();
                self.start_from(d, slot, rest, length - moved, moved, entry)?;
                self.handles.at(slot).send_in_flight = true;
                Ok(())
            }
            op::SEND_SEGMENTS => {
                let slot = self.sender_of(d)?;
                let (first, count, length) = self.gather(d, 1)?;
                let fd = self.handles.at(slot).fd;
                // SAFETY: msghdr is plain data, all zeroes is a message without anything.
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                // SAFETY: `first` is an index into the list just gathered.
                message.msg_iov = unsafe { self.iovecs.as_mut_ptr().add(first) };
                message.msg_iovlen = count as _;
                // SAFETY: every range of the list was approved; the caller owns them until the completion is dispatched.
                let sent = retry(|| unsafe { libc::sendmsg(fd, &raw const message, SEND_AT_ONCE_FLAGS) });
                let Some(moved) = self.sent_at_once(d, slot, sent, length) else {
                    self.iovecs.truncate(first);
                    return Ok(());
                };
                let next = self.skip_sent(first, moved as usize);
                // SAFETY: less than the whole list was sent, so `next` is an index into it.
                message.msg_iov = unsafe { self.iovecs.as_mut_ptr().add(next) };
                message.msg_iovlen = (first + count - next) as _;
                self.messages.push(message);
                let pointer = &raw const self.messages[self.messages.len() - 1];
                let entry = opcode::SendMsg::new(Fd(fd), pointer).flags(SEND_FLAGS as u32).build();
                self.start_from(d, slot, 0, length - moved, moved, entry)?;
                self.handles.at(slot).send_in_flight = true;
                Ok(())
            }
            op::ACCEPT => {
                let (slot, fd) = self.handle_of(d, kind::LISTENER)?;
                let entry = opcode::Accept::new(Fd(fd), std::ptr::null_mut(), std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build();
                self.start(d, slot, 0, 0, entry)
            }
            op::CONNECT => {
                let (slot, fd) = self.handle_of(d, kind::SOCKET)?;
                let Some(address) = &self.handles.at(slot).address else {
                    return Err(Fault::misuse("CONNECT of a socket without an address"));
                };
                let entry = opcode::Connect::new(Fd(fd), address.pointer(), address.length()).build();
                self.start(d, slot, 0, 0, entry)
            }
            op::HANGUP => {
                let (slot, fd) = self.handle_of(d, kind::SOCKET)?;
                let events = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
                let entry = opcode::PollAdd::new(Fd(fd), events as u32).build();
                self.start(d, slot, 0, 0, entry)
            }
            op::READ => {
                let (slot, fd) = self.handle_of(d, kind::FILE)?;
                let start = self.range_of(d)?;
                let offset = self.offset_of(d, slot, start, d[LENGTH] as u32)?;
                let pages = (d[LENGTH] as usize).div_ceil(PAGE_BYTES);
                if d[CRC_INDEX] >= 0 && d[CRC_INDEX] as usize + pages > self.options.crcs_max {
                    return Err(Fault::misuse(format!("checksum index {} + {pages} is outside the table", d[CRC_INDEX])));
                }
                if self.handles.at(slot).inline {
                    let pointer = self.pointer(start);
                    // SAFETY: `range_of` approved the range; the caller owns it until the completion is dispatched.
                    let result = retry(|| unsafe { libc::pread(fd, pointer.cast(), d[LENGTH] as usize, offset as libc::off_t) });
                    self.checksum(start, d[LENGTH] as u32, d[CRC_INDEX], result);
                    self.ready_now(d, slot, result);
                    return Ok(());
                }
                let entry = opcode::Read::new(Fd(fd), self.pointer(start), d[LENGTH] as u32).offset(offset).build();
                self.start(d, slot, start, d[LENGTH] as u32, entry)
            }
            op::WRITE => {
                let (slot, fd) = self.handle_of(d, kind::FILE)?;
                let start = self.range_of(d)?;
                let offset = self.offset_of(d, slot, start, d[LENGTH] as u32)?;
                if self.handles.at(slot).inline {
                    let pointer = self.pointer(start);
                    // SAFETY: as for reads.
                    let result = retry(|| unsafe { libc::pwrite(fd, pointer.cast(), d[LENGTH] as usize, offset as libc::off_t) });
                    self.ready_now(d, slot, result);
                    return Ok(());
                }
                let entry = opcode::Write::new(Fd(fd), self.pointer(start), d[LENGTH] as u32).offset(offset).build();
                self.start(d, slot, start, d[LENGTH] as u32, entry)
            }
            op::WRITE_SEGMENTS => {
                let (slot, fd) = self.handle_of(d, kind::FILE)?;
                let align = self.handles.at(slot).align;
                let (first, count, length) = self.gather(d, align)?;
                let offset = self.offset_of(d, slot, 0, length)?;
                // SAFETY: `first` is an index into the list just gathered.
                let list = unsafe { self.iovecs.as_ptr().add(first) };
                if self.handles.at(slot).inline {
                    // SAFETY: every range of the list was approved; the caller owns them until the completion is dispatched.
                    let result = retry(|| unsafe { libc::pwritev(fd, list, count as i32, offset as libc::off_t) });
                    self.iovecs.truncate(first);
                    self.ready_now(d, slot, result);
                    return Ok(());
                }
                let rw_flags = if d[FLAGS] & FLAG_SYNC != 0 { libc::RWF_DSYNC } else { 0 };
                let entry = opcode::Writev::new(Fd(fd), list, count as u32).offset(offset).rw_flags(rw_flags).build();
                self.start(d, slot, 0, length, entry)
            }
            op::FDATASYNC => {
                let (slot, fd) = self.handle_of(d, kind::FILE)?;
                if self.handles.at(slot).inline {
                    self.ready_now(d, slot, 0);
                    return Ok(());
                }
                let entry = opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC).build();
                self.start(d, slot, 0, 0, entry)
            }
            op::ALLOCATE => {
                let (slot, fd) = self.handle_of(d, kind::FILE)?;
                let offset = offset_word(d);
                let length = u64::from(d[LENGTH].max(0) as u32);
                if length == 0 || offset > i64::MAX as u64 - length {
                    return Err(Fault::misuse(format!("an allocation of {} bytes at {offset}", d[LENGTH])));
                }
                // Never inline: even in memory it takes long enough to leave it to a worker of the kernel.
                let entry = opcode::Fallocate::new(Fd(fd), length).offset(offset).mode(libc::FALLOC_FL_KEEP_SIZE).build();
                self.start(d, slot, 0, 0, entry)
            }
            op::TIMEOUT => {
                if self.timers.len() >= self.options.ops_max {
                    return Err(Fault::misuse("too many timeouts under way"));
                }
                let delay_us = offset_word(d);
                self.timers.add(boot_time_ns().saturating_add(delay_us.saturating_mul(1000)), d[TAG], d[ROW]);
                Ok(())
            }
            op::CANCEL_TIMEOUT => {
                while self.timers.cancel_one(d[TAG], d[ROW]) {
                    self.ready.push_back(Ready {
                        tag: d[TAG],
                        row: d[ROW],
                        result: -libc::ECANCELED,
                        extra: 0,
                        slot: NO_SLOT,
                        effect: Effect::Nothing,
                    });
                }
                Ok(())
            }
            op::CANCEL => {
                let slot = self.slot_of(d)?;
                self.cancel(slot)
            }
            op::CLOSE => {
                let slot = self.slot_of(d)?;
                self.handles.set_closing(slot, d[TAG], d[ROW]);
                if self.handles.at(slot).ops == 0 {
                    self.finish_close(slot);
                    return Ok(());
                }
                self.cancel(slot)
            }
            op::RELEASE_PROVIDED => {
                let id = d[ROW];
                if !usize::try_from(id).is_ok_and(|id| self.buffer_taken.get(id) == Some(&true)) {
                    return Err(Fault::misuse(format!("provided buffer {id} is not the caller's to release")));
                }
                self.provide(id as u16);
                Ok(())
            }
            other => Err(Fault::misuse(format!("unknown operation {other}"))),
        }
    }

    fn slot_of(&mut self, d: &[i32; DESCRIPTOR_WORDS]) -> Result<u32, Fault> {
        self.handles
            .slot(d[HANDLE])
            .ok_or_else(|| Fault::misuse(format!("operation {} on handle {:#x}, which is not open", d[OP], d[HANDLE])))
    }

    fn handle_of(&mut self, d: &[i32; DESCRIPTOR_WORDS], kind: u8) -> Result<(u32, i32), Fault> {
        let slot = self.slot_of(d)?;
        let handle = self.handles.at(slot);
        if handle.kind != kind {
            return Err(Fault::misuse(format!("operation {} on handle {:#x}, which is of another kind", d[OP], d[HANDLE])));
        }
        Ok((slot, handle.fd))
    }

    fn sender_of(&mut self, d: &[i32; DESCRIPTOR_WORDS]) -> Result<u32, Fault> {
        let (slot, _) = self.handle_of(d, kind::SOCKET)?;
        if self.handles.at(slot).send_in_flight {
            return Err(Fault::misuse(format!("a second send on handle {:#x} while one is in flight", d[HANDLE])));
        }
        Ok(slot)
    }

    fn range_of(&self, d: &[i32; DESCRIPTOR_WORDS]) -> Result<usize, Fault> {
        match self.arena.range(d[PAGE], d[DELTA], d[LENGTH]) {
            Some(start) if d[LENGTH] > 0 => Ok(start),
            _ => Err(Fault::misuse(format!("page {} + {} + {} bytes is outside the arena", d[PAGE], d[DELTA], d[LENGTH]))),
        }
    }

    fn offset_of(&mut self, d: &[i32; DESCRIPTOR_WORDS], slot: u32, start: usize, length: u32) -> Result<u64, Fault> {
        let offset = offset_word(d);
        let align = u64::from(self.handles.at(slot).align);
        if offset > i64::MAX as u64 - u64::from(length) {
            return Err(Fault::misuse("a file offset beyond 2^63"));
        }
        if (offset | start as u64 | u64::from(length)) % align != 0 {
            return Err(Fault::misuse(format!("offset {offset}, memory or length {length} is not a multiple of {align}")));
        }
        Ok(offset)
    }

    fn pointer(&self, start: usize) -> *mut u8 {
        // SAFETY: `start` was approved by Mapping::range.
        unsafe { self.arena.start().add(start) }
    }

    /// Copies the descriptor's segments into the gather list: (first index, count, bytes in all).
    fn gather(&mut self, d: &[i32; DESCRIPTOR_WORDS], align: u32) -> Result<(usize, usize, u32), Fault> {
        let (Ok(first), Ok(count)) = (usize::try_from(d[SEGMENT]), usize::try_from(d[SEGMENT_COUNT])) else {
            return Err(Fault::misuse("a negative segment index"));
        };
        if count == 0 || count > SEGMENTS_MAX || first + count > SEGMENTS_POOL {
            return Err(Fault::misuse(format!("{count} segments from {first}")));
        }
        if self.iovecs.len() + count > SEGMENTS_POOL || self.messages.len() == DESCRIPTORS_MAX {
            self.submit_all()?;
        }
        if self.ring.submission().is_empty() {
            self.iovecs.clear();
            self.messages.clear();
        }
        let list = self.iovecs.len();
        let mut length = 0u64;
        for i in first..first + count {
            // SAFETY: i < SEGMENTS_POOL, so the three words lie inside the control mapping.
            let (page, delta, bytes) = unsafe {
                let segment = self.control.start().add(self.layout.segments).cast::<i32>().add(i * SEGMENT_WORDS);
                (segment.read(), segment.add(1).read(), segment.add(2).read())
            };
            let start = match self.arena.range(page, delta, bytes) {
                Some(start) if bytes > 0 && (start as u32 | bytes as u32) % align == 0 => start,
                _ => {
                    self.iovecs.truncate(list);
                    return Err(Fault::misuse(format!(
                        "segment page {page} + {delta} + {bytes} bytes is outside the arena or not a multiple of {align}"
                    )));
                }
            };
            length += bytes as u64;
            self.iovecs.push(libc::iovec { iov_base: self.pointer(start).cast(), iov_len: bytes as usize });
        }
        if length > i32::MAX as u64 {
            self.iovecs.truncate(list);
            return Err(Fault::misuse("more than 2 GiB in one gathered operation"));
        }
        Ok((list, count, length as u32))
    }

    /// What a send that did not wait came to: None when it has ended, else how much is gone and the rest is the kernel's to send.
    fn sent_at_once(&mut self, d: &[i32; DESCRIPTOR_WORDS], slot: u32, sent: i32, length: u32) -> Option<u32> {
        if sent == -libc::EAGAIN {
            return Some(0);
        }
        if sent >= 0 && (sent as u32) < length {
            return Some(sent as u32);
        }
        let ready = Ready { tag: d[TAG], row: d[ROW], result: sent, extra: 0, slot, effect: Effect::SendDone };
        if sent >= 0 && d[FLAGS] & FLAG_LAZY != 0 {
            self.lazy.push(ready);
        } else {
            self.ready.push_back(ready);
        }
        None
    }

    /// Cuts `bytes` off the beginning of the gather list from `first` on; the index of what is left.
    fn skip_sent(&mut self, first: usize, bytes: usize) -> usize {
        let mut next = first;
        let mut left = bytes;
        while left >= self.iovecs[next].iov_len {
            left -= self.iovecs[next].iov_len;
            next += 1;
        }
        let range = &mut self.iovecs[next];
        range.iov_base = range.iov_base.wrapping_byte_add(left);
        range.iov_len -= left;
        next
    }

    fn start(&mut self, d: &[i32; DESCRIPTOR_WORDS], slot: u32, start: usize, length: u32, entry: squeue::Entry) -> Result<(), Fault> {
        self.start_from(d, slot, start, length, 0, entry)
    }

    fn start_from(
        &mut self,
        d: &[i32; DESCRIPTOR_WORDS],
        slot: u32,
        start: usize,
        length: u32,
        moved: u32,
        entry: squeue::Entry,
    ) -> Result<(), Fault> {
        let Some(index) = self.free_ops.pop() else {
            return Err(Fault::misuse(format!("more than {} operations under way", self.options.ops_max)));
        };
        let slot_op = &mut self.ops[index as usize];
        let generation = slot_op.generation;
        *slot_op = Op { generation, op: d[OP], slot, tag: d[TAG], row: d[ROW], start, length, moved, crc_index: d[CRC_INDEX] };
        self.handles.at(slot).ops += 1;
        self.push(entry, DATA_OP << 56 | u64::from(generation) << 32 | u64::from(index))
    }

    fn ready_now(&mut self, d: &[i32; DESCRIPTOR_WORDS], slot: u32, result: i32) {
        self.ready.push_back(Ready { tag: d[TAG], row: d[ROW], result, extra: 0, slot, effect: Effect::Nothing });
    }

    fn cancel(&mut self, slot: u32) -> Result<(), Fault> {
        if self.handles.at(slot).ops == 0 {
            return Ok(());
        }
        let fd = self.handles.at(slot).fd;
        self.push(opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(fd)).all()).build(), DATA_CANCEL << 56 | u64::from(slot))
    }

    fn finish_close(&mut self, slot: u32) {
        if let Some((tag, row)) = self.handles.at(slot).closing {
            self.handles.close(slot);
            self.ready.push_back(Ready { tag, row, result: 0, extra: 0, slot, effect: Effect::SlotFree });
        }
    }

    // ---- completions ---------------------------------------------------------------------------------------------------

    fn reap(&mut self, ready_max: usize) {
        while self.ready.len() < ready_max {
            let Some(entry) = self.ring.completion().next() else { break };
            self.complete(entry.user_data(), entry.result(), entry.flags());
        }
    }

    fn complete(&mut self, data: u64, result: i32, flags: u32) {
        let more = cqueue::more(flags);
        if !more {
            self.kernel_ops -= 1;
        }
        match data >> 56 {
            DATA_OP => self.complete_op(data as u32, result, flags, more),
            DATA_WAKE => self.wake_armed = false,
            DATA_CANCEL => {
                // What could not be cancelled on a socket ends when the socket does.
                let handle = self.handles.at(data as u32);
                if handle.closing.is_some() && handle.ops > 0 && handle.kind != kind::FILE {
                    // SAFETY: the descriptor is open until the close finishes.
                    unsafe { libc::shutdown(handle.fd, libc::SHUT_RDWR) };
                }
            }
            _ => unreachable!("completion of nothing"),
        }
    }

    fn complete_op(&mut self, index: u32, kernel_result: i32, flags: u32, more: bool) {
        let op = self.ops[index as usize];
        let mut result = outcome(op.op, kernel_result);
        let mut extra = 0;
        let mut effect = Effect::Nothing;
        match op.op {
            op::RECV_MULTISHOT => {
                if let Some(id) = cqueue::buffer_select(flags) {
                    if result > 0 {
                        self.buffer_taken[id as usize] = true;
                        // SAFETY: the kernel names only buffers it was given, and the layout has a byte for each.
                        unsafe { self.control.start().add(self.layout.taken + usize::from(id)).write(1) };
                        extra = i32::from(id) << 1;
                    } else {
                        self.provide(id);
                    }
                }
                extra |= i32::from(more) * MORE;
            }
            op::SEND | op::SEND_SEGMENTS => {
                effect = Effect::SendDone;
                self.handles.at(op.slot).send_in_flight = false;
                if result >= 0 {
                    result = if (result as u32) < op.length { -libc::EPIPE } else { result + op.moved as i32 };
                }
            }
            op::ACCEPT if result >= 0 => result = self.adopt(op.slot, result),
            // which of the events it was makes no difference
            op::HANGUP => result = result.min(0),
            op::READ => self.checksum(op.start, op.length, op.crc_index, result),
            _ => {}
        }
        self.ready.push_back(Ready { tag: op.tag, row: op.row, result, extra, slot: op.slot, effect });
        if !more {
            let done = &mut self.ops[index as usize];
            done.generation = (done.generation + 1) & 0xff_ffff;
            self.free_ops.push(index);
            let handle = self.handles.at(op.slot);
            handle.ops -= 1;
            if handle.ops == 0 && handle.closing.is_some() {
                self.finish_close(op.slot);
            }
        }
    }

    /// The handle of an accepted connection, or -errno.
    fn adopt(&mut self, listener: u32, fd: i32) -> i32 {
        let mut handle = Handle::new(kind::SOCKET, fd);
        handle.is_tcp = self.handles.at(listener).is_tcp;
        if handle.is_tcp {
            net::set_tcp_options(fd);
        }
        self.handles.insert(handle).unwrap_or(-libc::ENFILE)
    }

    /// CRC-32C of each 4 KiB page of a read that completed in full.
    fn checksum(&mut self, start: usize, length: u32, crc_index: i32, result: i32) {
        if crc_index < 0 || result != length as i32 {
            return;
        }
        let length = length as usize;
        for (i, at) in (0..length).step_by(PAGE_BYTES).enumerate() {
            let crc = self.arena.crc32c(start + at, PAGE_BYTES.min(length - at));
            // SAFETY: `prepare` checked that every index of this read lies inside the table.
            unsafe { self.control.start().add(self.layout.crcs).cast::<u32>().add(crc_index as usize + i).write(crc) };
        }
    }

    /// Writes completions in order, at most 32 of one handle; what is over keeps its place for the next turn.
    fn deliver(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(1);
        let mut count = 0;
        while count < COMPLETIONS_PER_TURN {
            let Some(ready) = self.ready.pop_front() else { break };
            if ready.slot != NO_SLOT {
                let turn = self.turn;
                let handle = self.handles.at(ready.slot);
                if handle.turn != turn {
                    handle.turn = turn;
                    handle.turn_count = 0;
                }
                if handle.turn_count == COMPLETIONS_PER_HANDLE {
                    self.held.push(ready);
                    continue;
                }
                handle.turn_count += 1;
            }
            // SAFETY: count < COMPLETIONS_PER_TURN: the words lie inside the control mapping.
            unsafe {
                let to = self.control.start().add(self.layout.completions).cast::<i32>().add(count * COMPLETION_WORDS);
                to.cast::<[i32; 4]>().write([ready.tag, ready.row, ready.result, ready.extra]);
            }
            match ready.effect {
                Effect::Nothing => {}
                // SAFETY: slot < handles_max, and the layout has a byte for each.
                Effect::SendDone => unsafe { self.control.start().add(self.layout.send_busy + ready.slot as usize).write(0) },
                Effect::SlotFree => self.handles.free(ready.slot),
            }
            count += 1;
        }
        while let Some(ready) = self.held.pop() {
            self.ready.push_front(ready);
        }
        count
    }

    // ---- provided buffers ----------------------------------------------------------------------------------------------

    fn register_buffers(&mut self) -> Result<(), Fault> {
        let Some(mapping) = self.buffer_ring.as_ref() else { return Ok(()) };
        // SAFETY: the mapping holds `provided_count` entries of 16 bytes and lives until the ring is gone.
        unsafe {
            self.ring.submitter().register_buf_ring_with_flags(mapping.start() as u64, self.options.provided_count as u16, BUFFER_GROUP, 0)
        }
        .map_err(|error| ring::missing(error.raw_os_error().unwrap_or(libc::EIO), "rings of provided buffers"))?;
        for id in 0..self.options.provided_count {
            self.provide(id as u16);
        }
        Ok(())
    }

    /// Gives a buffer to the kernel.
    fn provide(&mut self, id: u16) {
        let Some(mapping) = self.buffer_ring.as_ref() else { return };
        let bytes = self.options.provided_pages * PAGE_BYTES;
        let pointer = self.pointer(usize::from(id) * bytes) as u64;
        let entries = mapping.start().cast::<BufRingEntry>();
        let index = usize::from(self.buffer_tail) & (self.options.provided_count - 1);
        // SAFETY: index < provided_count entries; the kernel reads an entry only after the tail has passed it, and the tail
        // lies in the (otherwise unused) last bytes of entry 0 as the kernel defines it.
        unsafe {
            let entry = &mut *entries.add(index);
            entry.set_addr(pointer);
            entry.set_len(bytes as u32);
            entry.set_bid(id);
            self.buffer_tail = self.buffer_tail.wrapping_add(1);
            (*BufRingEntry::tail(entries).cast::<AtomicU16>()).store(self.buffer_tail, Ordering::Release);
        }
        self.buffer_taken[usize::from(id)] = false;
    }

    // ---- the end -------------------------------------------------------------------------------------------------------

    /// Cancels everything and waits for the kernel to let go; false when something is still held after a while.
    fn drain(&mut self) -> bool {
        let deadline_ns = boot_time_ns() + DRAIN_MAX_NS;
        let mut next_cancel_ns = 0;
        while self.kernel_ops > 0 && boot_time_ns() < deadline_ns {
            if boot_time_ns() >= next_cancel_ns {
                next_cancel_ns = boot_time_ns() + 100_000_000;
                // SAFETY: the entry points to nothing.
                let pushed = unsafe {
                    self.ring.submission().push(&opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(DATA_CANCEL << 56))
                };
                self.kernel_ops += u64::from(pushed.is_ok());
            }
            if self.enter(1, 20_000_000).is_err() {
                return false;
            }
            while let Some(entry) = self.ring.completion().next() {
                if entry.user_data() >> 56 == DATA_OP && entry.result() >= 0 && self.ops[entry.user_data() as u32 as usize].op == op::ACCEPT
                {
                    // SAFETY: a connection accepted while stopping: nobody else knows its descriptor.
                    unsafe { libc::close(entry.result()) };
                }
                if !cqueue::more(entry.flags()) {
                    self.kernel_ops -= 1;
                }
            }
        }
        self.kernel_ops == 0
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.waker.unregister();
        let drained = self.drain();
        if !drained {
            // The kernel may still write into this memory: better lost than given to someone else.
            std::mem::forget(self.arena.clone());
            std::mem::forget(self.control.clone());
        }
        // SAFETY: neither field is used again.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            if drained {
                ManuallyDrop::drop(&mut self.buffer_ring);
            }
        }
    }
}

/// What the caller is told. A socket operation is interrupted by nothing but its cancellation; one on a file, for which nobody asked
/// (fallocate in memory stops at any signal of its worker thread), may be tried again.
fn outcome(op: i32, kernel_result: i32) -> i32 {
    let is_file = matches!(op, op::READ | op::WRITE | op::WRITE_SEGMENTS | op::FDATASYNC | op::ALLOCATE);
    if kernel_result == -libc::EINTR && !is_file { -libc::ECANCELED } else { kernel_result }
}

fn offset_word(d: &[i32; DESCRIPTOR_WORDS]) -> u64 {
    u64::from(d[OFFSET_HIGH] as u32) << 32 | u64::from(d[OFFSET_LOW] as u32)
}

/// Bytes or -errno of a plain system call.
fn retry(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let n = call();
        if n >= 0 {
            return n as i32;
        }
        match last_errno() {
            libc::EINTR => {}
            errno => return -errno,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine() -> Engine {
        Engine::new(EngineOptions {
            arena_pages: 1024,
            provided_count: 16,
            provided_pages: 4,
            handles_max: 64,
            ops_max: 256,
            crcs_max: 64,
            huge: false,
        })
        .unwrap()
    }

    fn descriptor(engine: &Engine, index: usize, words: &[(usize, i32)]) {
        // SAFETY: the tests write a few descriptors only.
        let d = unsafe { engine.control.start().add(engine.layout.descriptors).cast::<i32>().add(index * DESCRIPTOR_WORDS) };
        for w in 0..DESCRIPTOR_WORDS {
            // SAFETY: as above.
            unsafe { d.add(w).write(words.iter().find(|x| x.0 == w).map_or(0, |x| x.1)) };
        }
    }

    fn completions(engine: &Engine, count: usize) -> Vec<[i32; 4]> {
        // SAFETY: at most COMPLETIONS_PER_TURN were written.
        (0..count).map(|i| unsafe { engine.control.start().add(engine.layout.completions).cast::<[i32; 4]>().add(i).read() }).collect()
    }

    fn until(engine: &mut Engine, descriptors: usize, wanted: usize) -> Vec<[i32; 4]> {
        let mut seen = Vec::new();
        let mut descriptors = descriptors;
        for _ in 0..100 {
            let count = engine.turn(descriptors, 20).unwrap();
            descriptors = 0;
            seen.extend(completions(engine, count));
            if seen.len() >= wanted {
                break;
            }
        }
        assert_eq!(seen.len(), wanted, "{seen:?}");
        seen
    }

    #[test]
    fn bytes_cross_a_socket_and_a_drop_with_operations_in_flight_returns_at_once() {
        let mut engine = engine();
        let (listener, port) = engine.listen_tcp("127.0.0.1", 0, 4).unwrap();
        let client = engine.socket_tcp("127.0.0.1", port).unwrap();
        descriptor(&engine, 0, &[(OP, op::ACCEPT), (HANDLE, listener), (TAG, 1), (ROW, 1)]);
        descriptor(&engine, 1, &[(OP, op::CONNECT), (HANDLE, client), (TAG, 1), (ROW, 2)]);
        let seen = until(&mut engine, 2, 2);
        let server = seen.iter().find(|c| c[1] == 1).unwrap()[2];
        descriptor(&engine, 0, &[(OP, op::SEND), (HANDLE, client), (TAG, 1), (ROW, 3), (PAGE, 100), (LENGTH, 5000)]);
        descriptor(
            &engine,
            1,
            &[(OP, op::RECV), (HANDLE, server), (TAG, 1), (ROW, 4), (PAGE, 200), (LENGTH, 5000), (FLAGS, FLAG_WAIT_ALL)],
        );
        // SAFETY: page 100 lies inside the arena of 1024 pages.
        unsafe { engine.arena.start().add(100 * PAGE_BYTES).write_bytes(7, 5000) };
        assert!(until(&mut engine, 2, 2).iter().all(|c| c[2] == 5000));
        // SAFETY: as above.
        assert_eq!(unsafe { engine.arena.start().add(200 * PAGE_BYTES + 4999).read() }, 7);
        descriptor(&engine, 0, &[(OP, op::RECV), (HANDLE, server), (TAG, 1), (ROW, 5), (PAGE, 200), (LENGTH, 5000)]);
        descriptor(&engine, 1, &[(OP, op::RECV_MULTISHOT), (HANDLE, client), (TAG, 1), (ROW, 6)]);
        descriptor(&engine, 2, &[(OP, op::ACCEPT), (HANDLE, listener), (TAG, 1), (ROW, 7)]);
        assert_eq!(engine.turn(3, 0).unwrap(), 0);
        assert_eq!(engine.in_use(), (3, 3));
        let arena = engine.arena.clone();
        let began_ns = boot_time_ns();
        drop(engine);
        assert!(boot_time_ns() - began_ns < 1_000_000_000);
        assert_eq!(Arc::strong_count(&arena), 1, "drained, so nothing had to be leaked");
    }

    #[test]
    fn both_ends_of_a_tcp_connection_notice_that_the_other_host_is_gone() {
        let mut engine = engine();
        let (listener, port) = engine.listen_tcp("127.0.0.1", 0, 4).unwrap();
        let client = engine.socket_tcp("127.0.0.1", port).unwrap();
        descriptor(&engine, 0, &[(OP, op::ACCEPT), (HANDLE, listener), (TAG, 1), (ROW, 1)]);
        descriptor(&engine, 1, &[(OP, op::CONNECT), (HANDLE, client), (TAG, 1), (ROW, 2)]);
        let server = until(&mut engine, 2, 2).iter().find(|c| c[1] == 1).unwrap()[2];
        assert!(engine.silent_ms(listener).is_err() && engine.silent_ms(0).is_err());
        for id in [client, server] {
            let slot = engine.handles.slot(id).unwrap();
            let fd = engine.handles.at(slot).fd;
            let option = |level, name| {
                let (mut value, mut length) = (0i32, 4);
                // SAFETY: `value` has room for the int of these options.
                assert_eq!(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length) }, 0);
                value
            };
            assert_eq!(option(libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
            assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
            let [idle, interval, probes] =
                [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT].map(|name| option(libc::IPPROTO_TCP, name));
            assert!(idle <= 1 && interval <= 1 && idle + interval * probes <= 150);
            assert!(engine.silent_ms(id).unwrap() < 2000);
        }
    }

    #[test]
    fn what_is_interrupted_on_a_file_is_no_cancellation() {
        assert_eq!(outcome(op::RECV, -libc::EINTR), -libc::ECANCELED);
        assert_eq!(outcome(op::ALLOCATE, -libc::EINTR), -libc::EINTR);
        assert_eq!(outcome(op::WRITE_SEGMENTS, -libc::EINTR), -libc::EINTR);
        assert_eq!(outcome(op::RECV, -libc::EAGAIN), -libc::EAGAIN);
    }

    #[test]
    fn a_wake_before_or_during_the_wait_ends_it() {
        let mut engine = engine();
        let id = engine.waker_id();
        crate::wake(id);
        let began_ns = boot_time_ns();
        assert_eq!(engine.turn(0, 5000).unwrap(), 1);
        let waker = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            crate::wake(id)
        });
        let mut woken = 0;
        while woken == 0 {
            woken = engine.turn(0, 5000).unwrap();
        }
        assert_eq!(completions(&engine, 1), [[WAKE_TAG, 0, 0, MORE]]);
        assert!(waker.join().unwrap());
        assert!(boot_time_ns() - began_ns < 2_000_000_000);
        drop(engine);
        assert!(!crate::wake(id));
    }
}
