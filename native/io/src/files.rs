//! Opening files and block devices: the lock, O_DIRECT where it is real, and what kind of storage lies beneath.

use crate::fault::{Fault, last_errno};
use crate::layout::PAGE_BYTES;
use crate::net::Fd;
use std::ffi::CString;
use std::mem::zeroed;

const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
/// Used when the kernel accepts O_DIRECT but does not tell the alignment.
const DIRECT_ALIGN_UNKNOWN: u32 = 4096;

#[derive(Debug, Default, Clone)]
pub struct OpenOptions {
    pub path: String,
    /// Create it, and make it at least this long.
    pub create_bytes: Option<u64>,
    pub lock: bool,
    pub read_only: bool,
}

/// What was opened, apart from its descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    pub size_bytes: u64,
    pub is_block_device: bool,
    pub direct: bool,
    pub alignment_bytes: u32,
    pub volatile: bool,
}

pub fn open(options: &OpenOptions) -> Result<(Fd, Opened), Fault> {
    let path = &options.path;
    let what = format!("cannot open {path}");
    let c_path = CString::new(path.as_bytes()).map_err(|_| Fault::misuse("a path with a zero byte"))?;
    let is_device = stat_of(&c_path).is_some_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFBLK);
    let mut flags = libc::O_CLOEXEC | if options.read_only { libc::O_RDONLY } else { libc::O_RDWR };
    if options.create_bytes.is_some() && !is_device {
        flags |= libc::O_CREAT;
    }
    // On a device O_EXCL means: fail while the kernel or another opener with O_EXCL holds it.
    if options.lock && is_device {
        flags |= libc::O_EXCL;
    }
    let fd = open_fd(&c_path, flags).map_err(|errno| match errno {
        libc::EBUSY if is_device => {
            Fault::new("EWOULDBLOCK", format!("{what}: the device is in use (mounted, or held by another process)"))
        }
        _ => Fault::os(errno, &what),
    })?;
    // SAFETY: stat is plain data, `fd` is open.
    let mut stat: libc::stat = unsafe { zeroed() };
    // SAFETY: as above.
    if unsafe { libc::fstat(fd.0, &mut stat) } != 0 {
        return Err(Fault::last_os(&what));
    }
    let format = stat.st_mode & libc::S_IFMT;
    let is_block_device = format == libc::S_IFBLK;
    if format != libc::S_IFREG && !is_block_device {
        let code = if format == libc::S_IFDIR { "EISDIR" } else { "EINVAL" };
        return Err(Fault::new(code, format!("{what}: it is neither a regular file nor a block device")));
    }
    if options.lock {
        // SAFETY: `fd` is open.
        if unsafe { libc::flock(fd.0, libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let errno = last_errno();
            return Err(if errno == libc::EWOULDBLOCK {
                Fault::new("EWOULDBLOCK", format!("{what}: another process holds its lock"))
            } else {
                Fault::os(errno, format!("cannot lock {path}"))
            });
        }
    }
    let mut size_bytes = if is_block_device { device_bytes(&fd, &what)? } else { stat.st_size as u64 };
    if let Some(wanted) = options.create_bytes.filter(|&wanted| wanted > size_bytes) {
        if is_block_device {
            return Err(Fault::new("ENOSPC", format!("{what}: the device has {size_bytes} bytes, {wanted} are needed")));
        }
        // SAFETY: `fd` is open for writing; a failure is reported.
        if unsafe { libc::ftruncate(fd.0, wanted as libc::off_t) } != 0 {
            return Err(Fault::last_os(format!("cannot make {path} {wanted} bytes long")));
        }
        size_bytes = wanted;
    }
    let volatile = !is_block_device && on_memory_file_system(&fd);
    // whoever writes here does so in pages: a device with larger sectors is used through the page cache
    let alignment = if volatile { None } else { direct_alignment(&fd).filter(|&align| align as usize <= PAGE_BYTES && set_direct(&fd)) };
    let opened = Opened { size_bytes, is_block_device, direct: alignment.is_some(), alignment_bytes: alignment.unwrap_or(1), volatile };
    Ok((fd, opened))
}

fn open_fd(path: &CString, flags: i32) -> Result<Fd, i32> {
    // SAFETY: `path` is a C string; the mode is read only with O_CREAT.
    let fd = unsafe { libc::open(path.as_ptr(), flags, 0o600) };
    if fd < 0 { Err(last_errno()) } else { Ok(Fd(fd)) }
}

fn stat_of(path: &CString) -> Option<libc::stat> {
    // SAFETY: stat is plain data; `path` is a C string.
    unsafe {
        let mut stat: libc::stat = zeroed();
        (libc::stat(path.as_ptr(), &mut stat) == 0).then_some(stat)
    }
}

fn device_bytes(fd: &Fd, what: &str) -> Result<u64, Fault> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 stores one u64 through the pointer.
    if unsafe { libc::ioctl(fd.0, BLKGETSIZE64, &mut bytes) } != 0 {
        return Err(Fault::last_os(what));
    }
    Ok(bytes)
}

/// tmpfs accepts O_DIRECT but has nothing to be direct to, and io_uring hands its I/O to worker threads.
fn on_memory_file_system(fd: &Fd) -> bool {
    // SAFETY: statfs is plain data, `fd` is open.
    unsafe {
        let mut fs: libc::statfs = zeroed();
        libc::fstatfs(fd.0, &mut fs) == 0 && matches!(fs.f_type as i64 & 0xffff_ffff, TMPFS_MAGIC | RAMFS_MAGIC)
    }
}

/// The alignment O_DIRECT needs, None when the file system says that it has none (statx STATX_DIOALIGN).
fn direct_alignment(fd: &Fd) -> Option<u32> {
    // SAFETY: statx is plain data; the empty path with AT_EMPTY_PATH means `fd` itself.
    let statx = unsafe {
        let mut statx: libc::statx = zeroed();
        if libc::statx(fd.0, c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut statx) != 0 {
            return Some(DIRECT_ALIGN_UNKNOWN);
        }
        statx
    };
    if statx.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Some(DIRECT_ALIGN_UNKNOWN);
    }
    match statx.stx_dio_mem_align.max(statx.stx_dio_offset_align) {
        0 => None,
        align => Some(align.max(512)),
    }
}

fn set_direct(fd: &Fd) -> bool {
    // SAFETY: `fd` is open; a file system without O_DIRECT refuses the flag.
    unsafe {
        let flags = libc::fcntl(fd.0, libc::F_GETFL);
        flags >= 0 && libc::fcntl(fd.0, libc::F_SETFL, flags | libc::O_DIRECT) == 0
    }
}
