//! Who is at the other end of the socket.

use portcullis_proto::v1::Caller;
use tonic::{Extensions, Request, transport::server::UdsConnectInfo};

/// By the socket's credentials: those of the moment when it was connected.
pub fn caller<T>(request: &Request<T>) -> Option<Caller> {
    by_connection(request.extensions())
}

/// The same, of a request that is none of gRPC's yet.
pub fn by_connection(extensions: &Extensions) -> Option<Caller> {
    let credentials = extensions.get::<UdsConnectInfo>()?.peer_cred?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
    Some(Caller { uid: credentials.uid(), gid: credentials.gid(), pid: pid.unwrap_or_default() })
}
