//! Waking a queue from another thread. A waker is named by a number that is never reused, so that a late wake of a queue that
//! is gone does nothing (a file descriptor number might by then be someone else's file).

use crate::fault::Fault;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

static WAKERS: LazyLock<RwLock<HashMap<u32, Arc<Waker>>>> = LazyLock::new(RwLock::default);
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// `pending`: someone asked. `sleeping`: the queue may be inside its wait, so that the eventfd must be written too.
/// Sleeper: set `sleeping`, then look at `pending`. Waker: set `pending`, then look at `sleeping`. Both sequentially
/// consistent, so at least one sees the other.
pub struct Waker {
    pub id: u32,
    pub fd: i32,
    pending: AtomicBool,
    sleeping: AtomicBool,
}

impl Waker {
    pub fn register() -> Result<Arc<Self>, Fault> {
        // SAFETY: plain system call; the descriptor is owned by the new Waker.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(Fault::last_os("cannot create an eventfd"));
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let waker = Arc::new(Waker { id, fd, pending: AtomicBool::new(false), sleeping: AtomicBool::new(false) });
        WAKERS.write().unwrap_or_else(PoisonError::into_inner).insert(id, waker.clone());
        Ok(waker)
    }

    pub fn unregister(&self) {
        WAKERS.write().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }

    /// True when it may sleep; `wake_up` must follow.
    pub fn fall_asleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        !self.pending.load(Ordering::SeqCst)
    }

    pub fn wake_up(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// True when someone called `wake` since the last take.
    pub fn take_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::SeqCst)
    }

    fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) && self.sleeping.load(Ordering::SeqCst) {
            let one = 1u64;
            // SAFETY: `fd` is an eventfd owned by this Waker, `one` is the 8 bytes it takes. The counter cannot overflow:
            // one write per `pending` cycle.
            unsafe { libc::write(self.fd, (&raw const one).cast(), 8) };
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        // SAFETY: the descriptor is owned by this Waker.
        unsafe { libc::close(self.fd) };
    }
}

/// Wakes the queue with this waker id, from any thread. False when it is gone.
pub fn wake(id: u32) -> bool {
    let waker = WAKERS.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    match waker {
        Some(waker) => {
            waker.wake();
            true
        }
        None => false,
    }
}
