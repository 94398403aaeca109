//! Who is at the other end of a connection.

use std::{net::IpAddr, sync::Arc};

use portcullis_proto::v1;
use tokio::net::unix::UCred;
use tonic::{Extensions, Request};

use super::access::Role;

/// `uid_t` of nobody: (uid_t)-1.
const NO_USER: u32 = u32::MAX;

/// The other end.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Of the socket: its credentials of the moment when it was connected.
    Process {
        /// Its effective user.
        uid: u32,
        /// Its effective group.
        gid: u32,
        /// In the agent's pid namespace; 0 when unknown.
        pid: u32,
    },
    /// Of TCP.
    Client(Arc<Client>),
}

/// Whom a valid certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The name by which it is listed; of one that is not, the first that it has.
    pub name: String,
    /// The certificate's.
    pub serial: String,
    /// `None` is not listed.
    pub role: Option<Role>,
}

/// Whoever shares limits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum User {
    /// Of the node.
    Uid(u32),
    /// By its listed name.
    Certificate(String),
    /// All certificates that are not listed.
    Unlisted,
    /// Until it has shown its certificate.
    Address(IpAddr),
    /// Without credentials.
    Unknown,
}

impl From<UCred> for Peer {
    fn from(credentials: UCred) -> Self {
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        Self::Process { uid: credentials.uid(), gid: credentials.gid(), pid: pid.unwrap_or_default() }
    }
}

impl Peer {
    /// Whose limits hold.
    pub fn user(&self) -> User {
        match self {
            Self::Process { uid, .. } => User::Uid(*uid),
            Self::Client(client) if client.role.is_some() => User::Certificate(client.name.clone()),
            Self::Client(_) => User::Unlisted,
        }
    }
}

impl From<&Peer> for v1::Caller {
    fn from(peer: &Peer) -> Self {
        match peer {
            Peer::Process { uid, gid, pid } => {
                Self { uid: *uid, gid: *gid, pid: *pid, certificate: String::new(), serial: String::new() }
            }
            Peer::Client(client) => Self {
                uid: NO_USER,
                gid: NO_USER,
                pid: 0,
                certificate: client.name.clone(),
                serial: client.serial.clone(),
            },
        }
    }
}

/// Of a request that is none of gRPC's yet.
pub fn user(extensions: &Extensions) -> User {
    extensions.get::<Peer>().map_or(User::Unknown, Peer::user)
}

/// Who calls, as signals keep it.
pub fn caller<T>(request: &Request<T>) -> Option<v1::Caller> {
    request.extensions().get::<Peer>().map(Into::into)
}

/// Who calls, as the log has it: those fields that there are.
#[derive(Debug, Default)]
pub struct Audit {
    /// A process's.
    pub uid: Option<u32>,
    /// Its own.
    pub pid: Option<u32>,
    /// A client's name.
    pub certificate: Option<String>,
    /// Its certificate's.
    pub serial: Option<String>,
}

impl Audit {
    /// Of whoever made the request.
    pub fn of(extensions: &Extensions) -> Self {
        match extensions.get() {
            Some(Peer::Process { uid, pid, .. }) => {
                Self { uid: Some(*uid), pid: Some(*pid).filter(|pid| *pid != 0), ..Self::default() }
            }
            Some(Peer::Client(client)) => {
                Self { certificate: Some(client.name.clone()), serial: Some(client.serial.clone()), ..Self::default() }
            }
            None => Self::default(),
        }
    }
}
