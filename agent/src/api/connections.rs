//! How many connections a user may have: each takes a descriptor and may have calls under way.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixListener,
    time::{Sleep, sleep},
};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::transport::server::Connected;

use super::peer::{Peer, User};
use crate::counters::Counters;

/// Connections of one user at a time.
pub const MAX_CONNECTIONS: usize = 64;

/// Who has how many.
pub type Users = Arc<Mutex<HashMap<User, usize>>>;

/// What connects, but for users who have enough: theirs are closed, and counted.
pub fn accept(
    listener: UnixListener,
    users: Users,
    counters: Arc<Counters>,
) -> impl Stream<Item = io::Result<Connection>> {
    UnixListenerStream::new(listener).filter_map(move |stream| match stream {
        Ok(stream) => {
            let peer = stream.peer_cred().ok().map(Peer::from);
            let placed = peer.and_then(|peer| Some((Place::take(&users, peer.user())?, peer)));
            if placed.is_none() {
                counters.connections_refused.increment();
            }
            placed.map(|(place, peer)| Ok(Connection::new(stream, peer, place, None)))
        }
        Err(error) => Some(Err(error)),
    })
}

/// One of a user's connections.
#[derive(Debug)]
pub struct Place {
    users: Users,
    user: User,
}

impl Place {
    /// Unless the user has enough.
    pub fn take(users: &Users, user: User) -> Option<Self> {
        let mut connections = users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(user.clone()).or_default();
        if *count >= MAX_CONNECTIONS {
            return None;
        }
        *count += 1;
        Some(Self { users: Arc::clone(users), user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.user);
            }
        }
    }
}

/// Bytes both ways.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A connection that has its place until it is closed.
pub struct Connection {
    stream: Box<dyn Duplex>,
    peer: Peer,
    /// When it is closed at the latest.
    end: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    /// Of whoever is at the other end, for no longer than `lasts`.
    pub fn new(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
        place: Place,
        lasts: Option<Duration>,
    ) -> Self {
        Self { stream: Box::new(stream), peer, end: lasts.map(|lasts| Box::pin(sleep(lasts))), _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the certificate has expired")));
        }
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
