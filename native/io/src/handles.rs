//! The handle table: sockets, listeners and files by slot and generation.
//! Slots are reused first-in first-out, so that a stale handle is told apart for as long as the table allows.

use crate::fault::Fault;
use crate::layout::kind;
use crate::net::{Address, UnixPath};
use std::collections::VecDeque;

const GENERATIONS: u32 = 0x7fff;
/// Slot of completions that belong to no handle.
pub const NO_SLOT: u32 = u32::MAX;

pub struct Handle {
    pub generation: u32,
    pub kind: u8,
    pub fd: i32,
    /// Operations the kernel holds.
    pub ops: u32,
    pub send_in_flight: bool,
    /// (tag, row) of the close that waits for `ops` to reach 0.
    pub closing: Option<(i32, i32)>,
    /// Reads and writes are made at once by the calling thread (memory file systems).
    pub inline: bool,
    pub read_only: bool,
    /// O_DIRECT alignment, 1 = any.
    pub align: u32,
    pub is_tcp: bool,
    /// Where CONNECT goes.
    pub address: Option<Box<Address>>,
    /// Socket file to remove at close.
    pub unix_path: Option<UnixPath>,
    /// Completions delivered in turn `turn`.
    pub turn: u32,
    pub turn_count: u32,
}

impl Handle {
    pub fn new(kind: u8, fd: i32) -> Self {
        Handle {
            generation: 0,
            kind,
            fd,
            ops: 0,
            send_in_flight: false,
            closing: None,
            inline: false,
            read_only: false,
            align: 1,
            is_tcp: false,
            address: None,
            unix_path: None,
            turn: 0,
            turn_count: 0,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.fd >= 0 {
            // SAFETY: the descriptor is owned by this Handle.
            unsafe { libc::close(self.fd) };
        }
        if let Some(path) = self.unix_path.take() {
            path.remove();
        }
    }
}

/// `live` and `meta` are mirrored into the control mapping so that the caller can refuse a bad handle without a call.
pub struct Handles {
    slots: Vec<Handle>,
    free: VecDeque<u32>,
    live: *mut i32,
    meta: *mut i32,
}

impl Handles {
    /// # Safety
    /// `live` and `meta` point to `max` int32 each that outlive the table.
    pub unsafe fn new(max: usize, live: *mut i32, meta: *mut i32) -> Self {
        assert!(max <= 0x1_0000);
        Handles { slots: Vec::new(), free: VecDeque::with_capacity(max), live, meta }.filled(max)
    }

    fn filled(mut self, max: usize) -> Self {
        self.slots.reserve_exact(max);
        for slot in 0..max {
            let mut handle = Handle::new(kind::FREE, -1);
            handle.generation = 1;
            self.slots.push(handle);
            self.free.push_back(slot as u32);
        }
        self
    }

    /// Takes ownership of `handle.fd`; on failure it is closed.
    pub fn insert(&mut self, mut handle: Handle) -> Result<i32, Fault> {
        let Some(slot) = self.free.pop_front() else {
            return Err(Fault::new("EMFILE", format!("all {} handles of the io queue are in use", self.slots.len())));
        };
        handle.generation = self.slots[slot as usize].generation;
        let id = (handle.generation << 16 | slot) as i32;
        let meta = (handle.align << 8) as i32 | i32::from(handle.kind);
        self.slots[slot as usize] = handle;
        // SAFETY: slot < max, and the arrays hold `max` words (contract of `new`).
        unsafe {
            self.live.add(slot as usize).write(id);
            self.meta.add(slot as usize).write(meta);
        }
        Ok(id)
    }

    /// Slot of a handle that is open and not closing.
    #[inline]
    pub fn slot(&self, id: i32) -> Option<u32> {
        let slot = id as u32 & 0xffff;
        let handle = self.slots.get(slot as usize)?;
        let open = id > 0 && handle.generation == id as u32 >> 16 && handle.kind != kind::FREE && handle.closing.is_none();
        open.then_some(slot)
    }

    #[inline]
    pub fn at(&mut self, slot: u32) -> &mut Handle {
        &mut self.slots[slot as usize]
    }

    pub fn set_closing(&mut self, slot: u32, tag: i32, row: i32) {
        self.slots[slot as usize].closing = Some((tag, row));
        // SAFETY: slot < max, see `insert`.
        unsafe { self.live.add(slot as usize).write(0) };
    }

    /// Closes the descriptor. The slot has the next generation, and waits for [`Handles::free`].
    pub fn close(&mut self, slot: u32) {
        let generation = self.slots[slot as usize].generation % GENERATIONS + 1;
        let mut empty = Handle::new(kind::FREE, -1);
        empty.generation = generation;
        self.slots[slot as usize] = empty;
        // SAFETY: slot < max, see `insert`.
        unsafe {
            self.live.add(slot as usize).write(0);
            self.meta.add(slot as usize).write(0);
        }
    }

    /// Lets a closed slot be used again: nothing of its last owner is on its way any more.
    pub fn free(&mut self, slot: u32) {
        self.free.push_back(slot);
    }

    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_up_handle_is_refused_and_slots_come_back_last() {
        let mut live = [0; 3];
        let mut meta = [0; 3];
        // SAFETY: both arrays hold 3 words and outlive the table.
        let mut handles = unsafe { Handles::new(3, live.as_mut_ptr(), meta.as_mut_ptr()) };
        let a = handles.insert(Handle::new(kind::SOCKET, -1)).unwrap();
        let slot = handles.slot(a).unwrap();
        handles.close(slot);
        handles.free(slot);
        assert_eq!(handles.slot(a), None);
        let b = handles.insert(Handle::new(kind::SOCKET, -1)).unwrap();
        assert_ne!(a & 0xffff, b & 0xffff);
        assert_eq!(handles.in_use(), 1);
        for bad in [0, -1, i32::MIN, i32::MAX, b ^ 0x1_0000, b | 0x7] {
            assert_eq!(handles.slot(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_full_table_is_an_error_and_generations_wrap_to_1() {
        let mut live = [0; 1];
        let mut meta = [0; 1];
        // SAFETY: both arrays hold 1 word and outlive the table.
        let mut handles = unsafe { Handles::new(1, live.as_mut_ptr(), meta.as_mut_ptr()) };
        for _ in 0..2 * GENERATIONS {
            let id = handles.insert(Handle::new(kind::FILE, -1)).unwrap();
            assert!(id > 0);
            assert_eq!(handles.insert(Handle::new(kind::FILE, -1)).unwrap_err().code, "EMFILE");
            assert_eq!(handles.slot(id), Some(0));
            handles.close(0);
            assert!(handles.insert(Handle::new(kind::FILE, -1)).is_err(), "closed but not yet free");
            handles.free(0);
        }
    }
}
