//! One datagram to the service manager (sd_notify(3)): Node has no UNIX datagram sockets.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use napi::bindgen_prelude::{Error, Result};
use napi_derive::napi;

/// `socket`: as in NOTIFY_SOCKET, a path, or `@name` for an abstract one.
#[napi]
pub fn notify_service(socket: String, message: String) -> Result<()> {
    send(&socket, message.as_bytes()).map_err(|error| Error::from_reason(format!("{socket}: {error}")))
}

fn send(socket: &str, message: &[u8]) -> std::io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // the manager that does not read must not hold up the daemon
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message, &address).map(drop)
}
