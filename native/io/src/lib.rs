//! The io queue (io_uring) and the payload arena of one reactor: mechanism only, no JavaScript, no policy.
//!
//! One [`Engine`] belongs to one thread. The caller writes fixed-size descriptors into shared memory ([`layout`]), calls
//! [`Engine::turn`] once per turn, and reads completions from the same memory. Invariants:
//! - every arena range, handle, buffer id and checksum index is checked here again, whatever the caller checked;
//! - memory the kernel may still touch is never unmapped: dropping an engine drains its operations first, or leaks the mapping;
//! - an operation completes exactly once, and a handle's completions are delivered in the order in which they were reaped.

#[cfg(not(target_os = "linux"))]
compile_error!("XSAN's io queue needs Linux (io_uring)");

pub mod arena;
mod engine;
mod fault;
mod files;
mod handles;
pub mod layout;
mod net;
mod patience;
mod ring;
mod timers;
mod wake;

pub use engine::{Engine, EngineOptions};
pub use fault::Fault;
pub use files::{OpenOptions, Opened};
pub use wake::wake;

/// The boot-time clock (CLOCK_BOOTTIME: runs while the host sleeps) in nanoseconds.
pub fn boot_time_ns() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid timespec for the call to fill; CLOCK_BOOTTIME exists on every kernel this engine runs on.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4).
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}
