//! How many connections a user may have: each takes a descriptor and may have calls under way.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::transport::server::{Connected, UdsConnectInfo};

use crate::counters::Counters;

/// Connections of one user at a time.
pub const MAX_CONNECTIONS: usize = 64;

type Users = Arc<Mutex<HashMap<u32, usize>>>;

/// What connects, but for users who have enough: theirs are closed, and counted.
pub fn accept(listener: UnixListener, counters: Arc<Counters>) -> impl Stream<Item = io::Result<Connection>> {
    let users = Users::default();
    UnixListenerStream::new(listener).filter_map(move |stream| match stream {
        Ok(stream) => {
            let place = stream.peer_cred().ok().and_then(|peer| Place::take(&users, peer.uid()));
            if place.is_none() {
                counters.connections_refused.increment();
            }
            place.map(|place| Ok(Connection { stream, _place: place }))
        }
        Err(error) => Some(Err(error)),
    })
}

/// One of a user's connections.
#[derive(Debug)]
struct Place {
    users: Users,
    uid: u32,
}

impl Place {
    fn take(users: &Users, uid: u32) -> Option<Self> {
        let mut connections = users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(uid).or_default();
        if *count >= MAX_CONNECTIONS {
            return None;
        }
        *count += 1;
        Some(Self { users: Arc::clone(users), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.uid);
            }
        }
    }
}

/// A connection that has its place until it is closed.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
