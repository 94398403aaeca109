//! Talking to the agent.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use portcullis_proto::v1::{
    container_service_client::ContainerServiceClient, containment_service_client::ContainmentServiceClient,
    node_service_client::NodeServiceClient, policy_service_client::PolicyServiceClient,
    signal_service_client::SignalServiceClient, triage_service_client::TriageServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    escape,
    tls::{self, Identity, IdentityError, Remote},
};

/// How long the agent may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A page of signals with long lineages is larger than the usual limit of 4 MiB.
const MESSAGE_LIMIT: usize = 64 << 20;

/// What can go wrong. The texts carry their cause: that of an unreachable agent stands in the middle of a sentence,
/// and what the agent said is hostile text that has been escaped here.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No agent there, or not for us.
    #[error("cannot reach portcullisd at {place}: {cause}: {remedy}")]
    Unreachable {
        /// Its socket or address.
        place: String,
        /// What happened.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// We have nothing to show it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The agent does not have it.
    #[error("{0}")]
    NotFound(String),
    /// The agent answered with any other error.
    #[error("portcullisd refused ({code:?}): {message}")]
    Refused {
        /// Its gRPC code.
        code: Code,
        /// What it said.
        message: String,
    },
}

impl ClientError {
    /// Whether the same request may succeed later: the agent is restarting, or lost the connection. Not so when it
    /// understood the request and will not have it.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::NotFound(_) | Self::Identity(_) => false,
            Self::Refused { code, .. } => !matches!(
                code,
                Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
            ),
        }
    }
}

/// Where the agent is.
#[derive(Debug, Clone)]
pub enum Place {
    /// On this node.
    Socket(PathBuf),
    /// Anywhere.
    Remote(Remote, Identity),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Remote(remote, _) => remote.fmt(f),
        }
    }
}

/// A connection.
#[derive(Debug, Clone)]
pub struct Agent {
    place: Place,
    channel: Channel,
}

/// Connects to whoever listens at a socket. The endpoint's authority is shown to it and never resolved.
pub async fn connect_unix(socket: &Path, endpoint: Endpoint) -> Result<Channel, tonic::transport::Error> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

impl Agent {
    /// Connects to the agent.
    pub async fn connect(place: Place) -> Result<Self, ClientError> {
        let endpoint = Endpoint::from_static("http://portcullisd").connect_timeout(Duration::from_secs(5));
        let channel = match &place {
            Place::Socket(socket) => connect_unix(socket, endpoint).await,
            Place::Remote(remote, identity) => tls::connect(remote, identity, endpoint).await?,
        };
        match channel {
            Ok(channel) => Ok(Self { place, channel }),
            Err(error) => Err(unreachable(&place, &error)),
        }
    }

    /// The service of signals.
    pub fn signals(&self) -> SignalServiceClient<Channel> {
        SignalServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The service of containers.
    pub fn containers(&self) -> ContainerServiceClient<Channel> {
        ContainerServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The service of policies.
    pub fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The service of containment.
    pub fn containment(&self) -> ContainmentServiceClient<Channel> {
        ContainmentServiceClient::new(self.channel.clone())
    }

    /// The service of triage.
    pub fn triage(&self) -> TriageServiceClient<Channel> {
        TriageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The service of the node.
    pub fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    /// What a failed call means. With `map_err`.
    pub fn error(&self, status: &Status) -> ClientError {
        // tonic gives a broken connection a status of its own making, with the cause as its source.
        let broken = status.source().is_some();
        match status.code() {
            Code::NotFound => ClientError::NotFound(escape::text(status.message())),
            Code::Unavailable | Code::DeadlineExceeded => unreachable(&self.place, status),
            Code::Unknown | Code::Internal | Code::Cancelled if broken => unreachable(&self.place, status),
            code => ClientError::Refused { code, message: escape::text(status.message()) },
        }
    }
}

/// A request with a deadline.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn unreachable(place: &Place, error: &(dyn Error + 'static)) -> ClientError {
    if let Some((cause, remedy)) = tls::explain(error) {
        return ClientError::Unreachable { place: place.to_string(), cause: escape::text(&cause), remedy };
    }
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let cause = match error.downcast_ref::<Status>() {
        Some(status) if innermost.is::<Status>() => status.message().to_owned(),
        _ => innermost.to_string(),
    };
    let kind = innermost.downcast_ref::<io::Error>().map(io::Error::kind);
    let remedy = match (place, kind) {
        (Place::Remote(..), _) => "is [tcp] configured there, and is this its address?",
        (_, Some(io::ErrorKind::PermissionDenied)) => "the socket is root's: use sudo, or join the group that owns it",
        _ => "start it (systemctl start portcullisd) or give --socket",
    };
    ClientError::Unreachable { place: place.to_string(), cause: escape::text(&cause), remedy }
}
