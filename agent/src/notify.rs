//! systemd's readiness protocol: containerd, ordered after the agent, starts when everything is pinned.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Tells the service manager a state; does nothing when there is none.
pub fn state(state: &str) {
    let Some(address) = env::var_os("NOTIFY_SOCKET") else { return };
    let sent = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    }
    .and_then(|address| send(&address, state));
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager could not be told the state");
    }
}

fn send(address: &SocketAddr, state: &str) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), address).map(|_| ())
}
