//! JavaScript skin of xsan-io: one class per queue, its memory as ArrayBuffers. All words are laid out in `xsan_io::layout`.
//!
//! What is called per turn or oftener is in per_turn.rs.

use napi::bindgen_prelude::{ArrayBuffer, Env};
use napi_derive::napi;
use std::cell::RefCell;
use std::sync::Arc;
use xsan_io::arena::Mapping;
use xsan_io::{Engine, EngineOptions, Fault, OpenOptions, layout};

/// The error's `code` is the fault's code.
type Result<T> = std::result::Result<T, napi::Error<String>>;

fn fault(fault: Fault) -> napi::Error<String> {
    napi::Error::new(fault.code, fault.message)
}

fn code_of(error: napi::Error) -> napi::Error<String> {
    napi::Error::new(error.status.to_string(), error.reason.clone())
}

#[napi(object)]
pub struct QueueOptions {
    pub arena_pages: u32,
    pub provided_count: u32,
    pub provided_pages: u32,
    pub handles_max: u32,
    pub ops_max: u32,
    pub crcs_max: u32,
    pub huge_pages: bool,
}

/// Byte offsets inside `control()`.
#[napi(object)]
pub struct ControlOffsets {
    pub clock: u32,
    pub descriptors: u32,
    pub segments: u32,
    pub completions: u32,
    pub live: u32,
    pub meta: u32,
    pub send_busy: u32,
    pub taken: u32,
    pub crcs: u32,
}

#[napi(object)]
pub struct Listening {
    pub handle: i32,
    pub port: u32,
}

#[napi(object)]
pub struct OpenedFile {
    pub handle: i32,
    pub size_bytes: f64,
    pub is_block_device: bool,
    pub direct: bool,
    pub alignment_bytes: u32,
    pub volatile: bool,
}

#[napi(object)]
pub struct InUse {
    pub handles: u32,
    pub operations: u32,
}

thread_local! {
    /// The queues of this thread; an id is an index and never reused.
    static ENGINES: RefCell<Vec<Option<Box<Engine>>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` on a queue of this thread.
pub(crate) fn on_engine<T>(id: u32, body: impl FnOnce(&mut Engine) -> std::result::Result<T, Fault>) -> std::result::Result<T, Fault> {
    ENGINES.with_borrow_mut(|engines| match engines.get_mut(id as usize) {
        Some(Some(engine)) => body(engine),
        _ => Err(Fault::misuse("the io queue is destroyed, or belongs to another thread")),
    })
}

fn with_engine<T>(id: u32, body: impl FnOnce(&mut Engine) -> std::result::Result<T, Fault>) -> Result<T> {
    on_engine(id, body).map_err(fault)
}

/// Belongs to the thread that made it. The ArrayBuffers keep their memory alive on their own.
#[napi]
pub struct NativeQueue {
    id: u32,
}

impl Drop for NativeQueue {
    fn drop(&mut self) {
        // At the end of a thread the table may be gone, and the engines with it.
        let engine = ENGINES.try_with(|engines| engines.borrow_mut().get_mut(self.id as usize).and_then(Option::take));
        drop(engine);
    }
}

#[napi]
impl NativeQueue {
    #[napi(constructor)]
    pub fn new(options: QueueOptions) -> Result<Self> {
        let engine = Engine::new(EngineOptions {
            arena_pages: options.arena_pages as usize,
            provided_count: options.provided_count as usize,
            provided_pages: options.provided_pages as usize,
            handles_max: options.handles_max as usize,
            ops_max: options.ops_max as usize,
            crcs_max: options.crcs_max as usize,
            huge: options.huge_pages,
        })
        .map_err(fault)?;
        let id = ENGINES.with_borrow_mut(|engines| {
            engines.push(Some(Box::new(engine)));
            engines.len() as u32 - 1
        });
        Ok(NativeQueue { id })
    }

    /// What the functions of this module take.
    #[napi]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The payload memory. Call once: a memory range can be given to one ArrayBuffer only.
    #[napi]
    pub fn arena<'env>(&mut self, env: &'env Env) -> Result<ArrayBuffer<'env>> {
        let mapping = with_engine(self.id, |engine| Ok(engine.arena().clone()))?;
        buffer_over(env, mapping)
    }

    /// The shared words. Call once.
    #[napi]
    pub fn control<'env>(&mut self, env: &'env Env) -> Result<ArrayBuffer<'env>> {
        let mapping = with_engine(self.id, |engine| Ok(engine.control().clone()))?;
        buffer_over(env, mapping)
    }

    #[napi]
    pub fn offsets(&mut self) -> Result<ControlOffsets> {
        let l = with_engine(self.id, |engine| Ok(*engine.layout()))?;
        Ok(ControlOffsets {
            clock: l.clock as u32,
            descriptors: l.descriptors as u32,
            segments: l.segments as u32,
            completions: l.completions as u32,
            live: l.live as u32,
            meta: l.meta as u32,
            send_busy: l.send_busy as u32,
            taken: l.taken as u32,
            crcs: l.crcs as u32,
        })
    }

    #[napi]
    pub fn wake_id(&mut self) -> Result<u32> {
        with_engine(self.id, |engine| Ok(engine.waker_id()))
    }

    #[napi]
    pub fn listen_tcp(&mut self, host: String, port: u16, backlog: i32) -> Result<Listening> {
        let (handle, port) = with_engine(self.id, |engine| engine.listen_tcp(&host, port, backlog))?;
        Ok(Listening { handle, port: u32::from(port) })
    }

    #[napi]
    pub fn listen_unix(&mut self, path: String, mode: u32, backlog: i32) -> Result<i32> {
        with_engine(self.id, |engine| engine.listen_unix(&path, mode, backlog))
    }

    #[napi]
    pub fn socket_tcp(&mut self, host: String, port: u16) -> Result<i32> {
        with_engine(self.id, |engine| engine.socket_tcp(&host, port))
    }

    #[napi]
    pub fn socket_unix(&mut self, path: String) -> Result<i32> {
        with_engine(self.id, |engine| engine.socket_unix(&path))
    }

    /// `create_bytes` < 0: the file must exist.
    #[napi]
    pub fn open_file(&mut self, path: String, create_bytes: f64, lock: bool, read_only: bool) -> Result<OpenedFile> {
        let create_bytes = (create_bytes >= 0.0).then_some(create_bytes as u64);
        let options = OpenOptions { path, create_bytes, lock, read_only };
        let (handle, opened) = with_engine(self.id, |engine| engine.open_file(&options))?;
        Ok(OpenedFile {
            handle,
            size_bytes: opened.size_bytes as f64,
            is_block_device: opened.is_block_device,
            direct: opened.direct,
            alignment_bytes: opened.alignment_bytes,
            volatile: opened.volatile,
        })
    }

    #[napi]
    pub fn in_use(&mut self) -> Result<InUse> {
        let (handles, operations) = with_engine(self.id, |engine| Ok(engine.in_use()))?;
        Ok(InUse { handles: handles as u32, operations: operations as u32 })
    }

    #[napi]
    pub fn uses_huge_pages(&mut self) -> Result<bool> {
        with_engine(self.id, |engine| Ok(engine.arena_is_huge()))
    }

    /// Cancels every operation, waits for the kernel to let go of the memory, closes every handle.
    #[napi]
    pub fn destroy(&mut self) {
        // Dropped outside of the table: draining takes time, and nothing in it needs the table.
        let engine = ENGINES.with_borrow_mut(|engines| engines[self.id as usize].take());
        drop(engine);
    }
}

/// For how long nothing has come from the other host of a socket, ms.
#[napi]
pub fn queue_silent_ms(id: u32, handle: i32) -> Result<u32> {
    with_engine(id, |engine| engine.silent_ms(handle))
}

fn buffer_over<'env>(env: &'env Env, mapping: Arc<Mapping>) -> Result<ArrayBuffer<'env>> {
    let (start, bytes) = (mapping.start(), mapping.bytes());
    // SAFETY: the mapping holds `bytes` bytes at `start` and lives until the finalizer drops this reference to it.
    unsafe { ArrayBuffer::from_external(env, start, bytes, mapping, |_, mapping| drop(mapping)) }.map_err(code_of)
}

/// Compared by the loader: a stale build is told apart.
#[napi]
pub fn io_abi() -> u32 {
    layout::ABI
}

/// The boot-time clock in ms (CLOCK_BOOTTIME).
#[napi]
pub fn boot_time_ms() -> f64 {
    xsan_io::boot_time_ns() as f64 / 1e6
}

/// Wakes the queue with this wake id, from any thread; false when that queue is gone.
#[napi]
pub fn wake_queue(wake_id: u32) -> bool {
    xsan_io::wake(wake_id)
}

/// CRC-32C of JavaScript memory.
#[napi(js_name = "crc32c")]
pub fn crc32c(bytes: &[u8]) -> u32 {
    xsan_io::crc32c(bytes)
}
