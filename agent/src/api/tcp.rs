//! Connections over TCP: each has to show a certificate, by TLS 1.3, before anything else is read of it. Whoever reaches the port may
//! try, so that all is bounded before it is known who it is.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::io::Errno;
use rustls::{CertificateError as Invalid, Error as TlsFailure};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    access::Roles,
    connections::{Connection, Place, Users},
    peer::{Peer, User},
    tls::{Tls, TlsError},
};
use crate::{certificate::Certificate, clock, config::Tcp, counters::Counters};

/// Connections at a time of which it is not known yet whose they are; of one address as many as a user may have.
const HANDSHAKES: usize = 256;
/// How long they may take to say so.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After a connection that could not be accepted, as when there are too many open files.
const PAUSE: Duration = Duration::from_millis(200);
/// Of connections that came to nothing one is told of in so long; all are counted.
const TELL: Duration = Duration::from_secs(10);

/// Why nothing is served over TCP.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The certificates are not in order.
    #[error("[tcp] in the configuration")]
    Tls(#[from] TlsError),
    /// The address can't be had.
    #[error("listening on {listen} ([tcp] listen in the configuration){}", hint(source))]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What the agent's own unit forbids looks like a kernel without IP.
fn hint(source: &io::Error) -> &'static str {
    if source.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) {
        "; under systemd the agent has no network without the drop-in portcullisd-network.conf"
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        "; the agent has no right to ports below 1024"
    } else {
        ""
    }
}

/// The listener, while the agent may still make one.
pub struct Listener {
    socket: TcpListener,
    roles: Roles,
    tls: Arc<Tls>,
}

impl Listener {
    /// Reads the certificates and listens.
    pub async fn bind(tcp: &Tcp, counters: &Arc<Counters>) -> Result<Self, TcpError> {
        let tls = Tls::new(tcp.clone(), Arc::clone(counters))?;
        let listen = |source| TcpError::Listen { listen: tcp.listen, source };
        let socket = TcpListener::bind(tcp.listen).await.map_err(listen)?;
        tracing::info!(listen = %tcp.listen, "serving by mutual TLS");
        Ok(Self { socket, roles: Roles::new(tcp), tls: Arc::new(tls) })
    }

    /// Its certificates.
    pub fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    /// Those that have shown a valid certificate.
    pub fn accept(self, users: Users, counters: Arc<Counters>) -> ReceiverStream<io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(1);
        let Self { socket, roles, tls } = self;
        let door = Arc::new(Door { roles, tls, users, counters, told: Mutex::default() });
        tokio::spawn(door.open(socket, sender));
        ReceiverStream::new(receiver)
    }
}

/// What has just connected becomes a user's connection here.
struct Door {
    roles: Roles,
    tls: Arc<Tls>,
    users: Users,
    counters: Arc<Counters>,
    /// When a failure was last told of.
    told: Mutex<Option<Instant>>,
}

/// Why a connection came to nothing.
enum Failure {
    /// It said nothing, or not enough.
    Slow,
    /// It went away, as whoever only looks whether the port is open.
    Gone,
    /// TLS failed.
    Tls(io::Error),
    /// The certificate can't be read, though it is valid.
    Certificate(String),
    /// Its user has as many already.
    Full,
}

impl Door {
    async fn open(self: Arc<Self>, listener: TcpListener, sender: mpsc::Sender<io::Result<Connection>>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let Ok((stream, address)) = accepted else {
                sleep(PAUSE).await;
                continue;
            };
            let address = address.ip().to_canonical();
            let permit = Arc::clone(&handshakes).try_acquire_owned();
            let (Ok(permit), Some(place)) = (permit, Place::take(&self.users, User::Address(address))) else {
                self.counters.connections_refused.increment();
                continue;
            };
            let (door, sender) = (Arc::clone(&self), sender.clone());
            tokio::spawn(async move {
                match door.identify(stream).await {
                    Ok(connection) => {
                        drop((permit, place));
                        // The server is ending.
                        let _ = sender.send(Ok(connection)).await;
                    }
                    Err(failure) => door.tell(address, &failure),
                }
            });
        }
    }

    async fn identify(&self, stream: TcpStream) -> Result<Connection, Failure> {
        stream.set_nodelay(true).map_err(|_| Failure::Gone)?;
        let handshake = TlsAcceptor::from(self.tls.config()).accept(stream);
        let stream = match timeout(HANDSHAKE, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if is_gone(&error) => return Err(Failure::Gone),
            Ok(Err(error)) => return Err(Failure::Tls(error)),
            Err(_) => return Err(Failure::Slow),
        };
        let certificate = certificate(&stream).map_err(Failure::Certificate)?;
        let peer = Peer::Client(Arc::new(self.roles.client(&certificate)));
        let place = Place::take(&self.users, peer.user()).ok_or(Failure::Full)?;
        // A connection is good for as long as its certificate.
        let left = u64::try_from(certificate.not_after).unwrap_or(0).saturating_sub(clock::now_ns() / 1_000_000_000);
        Ok(Connection::new(stream, peer, place, Some(Duration::from_secs(left))))
    }

    fn tell(&self, address: IpAddr, failure: &Failure) {
        let reason = match failure {
            Failure::Gone => return,
            Failure::Full => {
                self.counters.connections_refused.increment();
                return;
            }
            Failure::Slow => format!("it took longer than {} s", HANDSHAKE.as_secs()),
            Failure::Tls(error) => reason(error),
            Failure::Certificate(error) => error.clone(),
        };
        self.counters.handshakes_refused.increment();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            *told = Some(Instant::now());
            let refused = self.counters.handshakes_refused.get();
            tracing::warn!(%address, reason, refused, "a connection over TCP was refused; those of the next 10 s are only counted");
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted)
}

fn certificate(stream: &TlsStream<TcpStream>) -> Result<Certificate, String> {
    let (_, session) = stream.get_ref();
    let shown = session.peer_certificates().and_then(<[_]>::first).ok_or("it showed no certificate")?;
    Certificate::read(shown).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

/// What was wrong with the client.
fn reason(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsFailure>()) {
        Some(TlsFailure::NoCertificatesPresented) => "it showed no certificate".to_owned(),
        Some(TlsFailure::InvalidCertificate(Invalid::UnknownIssuer | Invalid::BadSignature)) => {
            "its certificate is not signed by [tcp] client_ca".to_owned()
        }
        Some(TlsFailure::InvalidCertificate(invalid)) => format!("its certificate is not valid: {invalid}"),
        Some(TlsFailure::PeerIncompatible(_)) => "it does not speak TLS 1.3".to_owned(),
        Some(TlsFailure::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(TlsFailure::AlertReceived(alert)) => format!("it does not take the agent's certificate ({alert:?})"),
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
pub mod tests;
