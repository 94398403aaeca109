//! The gRPC API, on the unix socket and, where that is configured, over TCP.
//!
//! | module | idea |
//! |---|---|
//! | [`signals`], [`containers`], [`containment`], [`node`], [`policies`], [`triage`] | one service each |
//! | [`explain`] | what would come of an execution: question and answer |
//! | [`watch`] | the stream of signals |
//! | [`page`] | page tokens |
//! | [`peer`] | who calls |
//! | [`access`] | who may make which call |
//! | [`connections`], [`rate`], [`deadline`] | how much of it a user may do, and for how long |
//! | [`status`] | every error's gRPC code |
//! | [`socket`] | the socket's place, mode and group |
//! | [`tcp`], [`tls`] | connections over TCP, and the certificates for them |

mod access;
mod connections;
mod containers;
mod containment;
mod deadline;
mod explain;
mod node;
mod page;
pub mod peer;
mod policies;
mod rate;
mod signals;
pub mod socket;
mod status;
pub mod tcp;
pub mod tls;
mod triage;
mod watch;

use std::{sync::Arc, time::Duration};

use portcullis_bpf::abi::ContainerStats;
use portcullis_policy::yaml;
use portcullis_proto::v1::{
    self, container_service_server::ContainerServiceServer, containment_service_server::ContainmentServiceServer,
    node_service_server::NodeServiceServer, policy_service_server::PolicyServiceServer,
    signal_service_server::SignalServiceServer, triage_service_server::TriageServiceServer,
};
use tokio::{net::UnixListener, sync};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{service::Routes, transport::Server};
use tower::filter::{AsyncFilterLayer, FilterLayer};

use self::{
    access::{Calls, Gate},
    connections::Users,
    containers::ContainerApi,
    containment::ContainmentApi,
    deadline::Deadline,
    node::NodeApi,
    policies::PolicyApi,
    rate::Rate,
    signals::SignalApi,
    tcp::Listener,
    tls::Tls,
    triage::TriageApi,
};
use crate::{
    config::Seccomp,
    containers::Containers,
    containment::Containment,
    counters::Counters,
    enforcement::Enforcement,
    store::{Sender, Store},
};

/// Bytes of a request; the largest is a filter.
const MAX_REQUEST: usize = 64 * 1024;
/// Bytes of a request that may hold a policy.
const MAX_POLICY_REQUEST: usize = yaml::SIZE_MAX + MAX_REQUEST;
/// Calls at a time on one connection.
const MAX_STREAMS: u32 = 64;
/// How often a client is asked whether it is still there …
const PING: Duration = Duration::from_secs(30);
/// … and how long it may take to answer. One that reads nothing does not.
const PONG: Duration = Duration::from_secs(20);

/// What the kernel counts.
pub trait KernelCounters: Send + Sync + 'static {
    /// For one container.
    fn container(&self, cgroup_id: u64) -> Option<ContainerStats>;
    /// Operations on the network by one container's reported processes that no record tells.
    fn activities_lost(&self, cgroup_id: u64) -> u64;
    /// For the node.
    fn node(&self) -> Vec<(&'static str, u64)>;
}

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// What its signals call it.
    pub node: v1::Node,
    /// In use.
    pub backend: v1::Backend,
    /// Why.
    pub backend_reason: String,
    /// Release.
    pub kernel: String,
    /// When the agent started, nanoseconds since 1970.
    pub started_ns: u64,
    /// What was looked at.
    pub checks: Vec<v1::Check>,
    /// What comes of the agent's own system calls.
    pub seccomp: Seccomp,
}

/// What the services answer from.
#[derive(Clone)]
pub struct Sources {
    /// Signals.
    pub store: Store,
    /// What is to be changed of them.
    pub sender: Sender,
    /// Containers.
    pub containers: Containers,
    /// Kernel counters.
    pub kernel: Arc<dyn KernelCounters>,
    /// The agent's own counters.
    pub counters: Arc<Counters>,
    /// The node.
    pub facts: Arc<NodeFacts>,
    /// The policies.
    pub enforcement: Enforcement,
    /// What operators stop by hand.
    pub containment: Containment,
    /// The certificates for TCP, where that is served.
    pub tls: Option<Arc<Tls>>,
}

/// Why the API could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The descriptors are not valid.
    #[error("building the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The same.
    #[error("reading the API's definition")]
    Definition(#[from] prost::DecodeError),
    /// The server failed.
    #[error("serving the API")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until `shutdown` becomes true, and then until the calls under way are answered.
pub async fn serve(
    listener: UnixListener,
    tcp: Option<Listener>,
    sources: Sources,
    shutdown: sync::watch::Receiver<bool>,
) -> Result<(), ApiError> {
    let mut stopped = shutdown.clone();
    let (users, counters) = (Users::default(), Arc::clone(&sources.counters));
    let remote = match tcp {
        Some(tcp) => tcp.accept(Arc::clone(&users), Arc::clone(&counters)),
        // Ends at once.
        None => ReceiverStream::new(sync::mpsc::channel(1).1),
    };
    let local = connections::accept(listener, users, Arc::clone(&counters));
    let calls = Arc::new(Calls::new()?);
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PONG))
        .layer(AsyncFilterLayer::new(Rate::new(Arc::clone(&counters))))
        .layer(FilterLayer::new(Gate::new(Arc::clone(&calls), Arc::clone(&counters))))
        .layer(Deadline::new(calls, counters))
        .add_routes(routes(sources, shutdown).await?)
        .serve_with_incoming_shutdown(local.merge(remote), async move {
            // An error means that the other end is gone, which is the end as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        })
        .await?;
    Ok(())
}

/// Every service, whoever calls and however often.
pub async fn routes(sources: Sources, shutdown: sync::watch::Receiver<bool>) -> Result<Routes, ApiError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<SignalServiceServer<SignalApi>>().await;
    reporter.set_serving::<ContainerServiceServer<ContainerApi>>().await;
    reporter.set_serving::<ContainmentServiceServer<ContainmentApi>>().await;
    reporter.set_serving::<NodeServiceServer<NodeApi>>().await;
    reporter.set_serving::<PolicyServiceServer<PolicyApi>>().await;
    reporter.set_serving::<TriageServiceServer<TriageApi>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(portcullis_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let policies = PolicyApi::new(sources.enforcement.clone(), sources.containers.clone(), sources.facts.backend);
    let signals = SignalApi::new(sources.store.clone(), shutdown);
    let triage = TriageApi(sources.clone());
    let containment = ContainmentApi(sources.containment.clone());
    Ok(Routes::new(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(SignalServiceServer::new(signals).max_decoding_message_size(MAX_REQUEST))
        .add_service(ContainerServiceServer::new(ContainerApi(sources.clone())).max_decoding_message_size(MAX_REQUEST))
        .add_service(TriageServiceServer::new(triage).max_decoding_message_size(MAX_REQUEST))
        .add_service(PolicyServiceServer::new(policies).max_decoding_message_size(MAX_POLICY_REQUEST))
        .add_service(ContainmentServiceServer::new(containment).max_decoding_message_size(MAX_REQUEST))
        .add_service(NodeServiceServer::new(NodeApi(sources)).max_decoding_message_size(MAX_REQUEST)))
}

#[cfg(test)]
pub mod tests;
