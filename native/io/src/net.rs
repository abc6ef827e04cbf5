//! Sockets: addresses, listeners. All descriptors stay in blocking mode: io_uring waits for them itself, and O_NONBLOCK would
//! turn every wait into EAGAIN.

use crate::fault::Fault;
use std::ffi::CString;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;

/// A kernel socket address, kept at one place while an operation may read it.
#[derive(Clone)]
pub struct Address {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Address {
    pub fn tcp(host: &str, port: u16) -> Result<Self, Fault> {
        let ip: IpAddr = match host {
            "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            _ => host.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| {
                Fault::new("EINVAL", format!("\"{host}\" is not an IP address (resolve names before, this thread must not wait for them)"))
            })?,
        };
        // SAFETY: sockaddr_storage is plain data, all zeroes is a valid value.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        let length = match SocketAddr::new(ip, port) {
            SocketAddr::V4(a) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is at least as large and as aligned as every socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(sin) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(a) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                    sin6_scope_id: 0,
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(sin6) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Ok(Address { storage, length: length as libc::socklen_t })
    }

    pub fn unix(path: &str) -> Result<Self, Fault> {
        // SAFETY: sockaddr_un is plain data, all zeroes is a valid value.
        let mut sun: libc::sockaddr_un = unsafe { zeroed() };
        if path.is_empty() || path.len() >= sun.sun_path.len() || path.as_bytes().contains(&0) {
            return Err(Fault::new("ENAMETOOLONG", format!("the socket path \"{path}\" must have 1 to {} bytes", sun.sun_path.len() - 1)));
        }
        sun.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in sun.sun_path.iter_mut().zip(path.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: as in `tcp`.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        // SAFETY: sockaddr_storage is at least as large and as aligned as sockaddr_un.
        unsafe { (&raw mut storage).cast::<libc::sockaddr_un>().write(sun) };
        Ok(Address { storage, length: size_of::<libc::sockaddr_un>() as libc::socklen_t })
    }

    pub fn pointer(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub fn length(&self) -> libc::socklen_t {
        self.length
    }

    pub fn family(&self) -> i32 {
        i32::from(self.storage.ss_family)
    }
}

/// A descriptor that is closed unless it is handed on.
pub struct Fd(pub i32);

impl Fd {
    pub fn release(mut self) -> i32 {
        std::mem::replace(&mut self.0, -1)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        if self.0 >= 0 {
            // SAFETY: the descriptor is owned by this value.
            unsafe { libc::close(self.0) };
        }
    }
}

pub fn socket(family: i32) -> Result<Fd, Fault> {
    // SAFETY: plain system call.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 { Err(Fault::last_os("cannot create a socket")) } else { Ok(Fd(fd)) }
}

pub fn set_option(fd: i32, level: i32, name: i32, value: i32) -> bool {
    // SAFETY: `value` is the int the option takes.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<i32>() as libc::socklen_t) == 0 }
}

/// Idle for so long, a connection asks whether its other host is still there, and goes on asking: [`silent_ms`] needs that. It
/// ends when nothing has answered for two minutes: a guest may be paused for a while, but whoever lost power while idle would keep
/// its place for ever.
const KEEPALIVE_IDLE_S: i32 = 1;
const KEEPALIVE_INTERVAL_S: i32 = 1;
const KEEPALIVE_PROBES: i32 = 120;

/// What every TCP connection gets: no delay of small messages, and an end when the other host is gone.
pub fn set_tcp_options(fd: i32) {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES);
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
}

/// For how long the other host of a TCP connection has neither sent nor acknowledged anything.
pub fn silent_ms(fd: i32) -> Result<u32, Fault> {
    // SAFETY: tcp_info is plain data.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` has room for `length` bytes.
    if unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &mut length) } != 0 {
        return Err(Fault::last_os("cannot look at a connection"));
    }
    // data that acknowledges nothing new does not count as an acknowledgement
    Ok(info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv))
}

/// Bound and listening; the port it got.
pub fn listen_tcp(host: &str, port: u16, backlog: i32) -> Result<(Fd, u16), Fault> {
    let address = Address::tcp(host, port)?;
    let what = format!("cannot listen on {}:{port}", if host.is_empty() { "0.0.0.0" } else { host });
    let fd = socket(address.family())?;
    set_option(fd.0, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    bind_and_listen(&fd, &address, backlog).map_err(|errno| Fault::os(errno, &what))?;
    // SAFETY: sockaddr_storage is plain data.
    let mut bound: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: `bound` has room for `length` bytes.
    if unsafe { libc::getsockname(fd.0, (&raw mut bound).cast(), &mut length) } != 0 {
        return Err(Fault::last_os(what));
    }
    // SAFETY: sin_port and sin6_port lie at the same place, right after the family, in both kinds of address.
    let port = u16::from_be(unsafe { (*(&raw const bound).cast::<libc::sockaddr_in>()).sin_port });
    Ok((fd, port))
}

/// The file of a listening UNIX socket; removed at close if it is still the same one.
pub struct UnixPath {
    path: CString,
    device: libc::dev_t,
    inode: libc::ino_t,
}

impl UnixPath {
    pub fn remove(self) {
        if lstat(&self.path).is_some_and(|s| s.st_dev == self.device && s.st_ino == self.inode) {
            // SAFETY: `path` is a C string.
            unsafe { libc::unlink(self.path.as_ptr()) };
        }
    }
}

/// A stale socket file is replaced; a live one, or a file that is no socket, is EADDRINUSE.
pub fn listen_unix(path: &str, mode: u32, backlog: i32) -> Result<(Fd, UnixPath), Fault> {
    let address = Address::unix(path)?;
    let c_path = CString::new(std::ffi::OsStr::new(path).as_bytes()).map_err(|_| Fault::misuse("a path with a zero byte"))?;
    let what = format!("cannot listen on the socket {path}");
    let fd = socket(libc::AF_UNIX)?;
    // SAFETY: `fd` is open. The mode of the socket becomes the mode of the file that bind makes, so that it is never wider.
    unsafe { libc::fchmod(fd.0, mode) };
    match bind_and_listen(&fd, &address, backlog) {
        Err(libc::EADDRINUSE) => {
            let is_socket = lstat(&c_path).is_some_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFSOCK);
            if !is_socket {
                return Err(Fault::new("EADDRINUSE", format!("{what}: a file of that name exists and is not a socket")));
            }
            // A datagram socket cannot connect to a stream socket: EPROTOTYPE when one is bound there, ECONNREFUSED when none
            // is, and whoever listens notices nothing.
            // SAFETY: plain system call.
            let probe = Fd(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) });
            // SAFETY: `address` is a valid socket address of the given length.
            let live = unsafe { libc::connect(probe.0, address.pointer(), address.length()) } == 0
                || crate::fault::last_errno() != libc::ECONNREFUSED;
            if live {
                return Err(Fault::new("EADDRINUSE", format!("{what}: another process listens there")));
            }
            // SAFETY: `c_path` is a C string.
            unsafe { libc::unlink(c_path.as_ptr()) };
            bind_and_listen(&fd, &address, backlog).map_err(|errno| Fault::os(errno, &what))?;
        }
        other => other.map_err(|errno| Fault::os(errno, &what))?,
    }
    // SAFETY: `c_path` is a C string.
    unsafe { libc::chmod(c_path.as_ptr(), mode) };
    let stat = lstat(&c_path).ok_or_else(|| Fault::last_os(&what))?;
    Ok((fd, UnixPath { path: c_path, device: stat.st_dev, inode: stat.st_ino }))
}

fn bind_and_listen(fd: &Fd, address: &Address, backlog: i32) -> Result<(), i32> {
    // SAFETY: `address` is a valid socket address of the given length, `fd` an open socket.
    let ok = unsafe { libc::bind(fd.0, address.pointer(), address.length()) == 0 && libc::listen(fd.0, backlog) == 0 };
    if ok { Ok(()) } else { Err(crate::fault::last_errno()) }
}

fn lstat(path: &CString) -> Option<libc::stat> {
    // SAFETY: stat is plain data; `path` is a C string.
    unsafe {
        let mut stat: libc::stat = zeroed();
        (libc::lstat(path.as_ptr(), &mut stat) == 0).then_some(stat)
    }
}
