//! `NodeService`.

use portcullis_bpf::abi::ABI_VERSION;
use portcullis_policy::record::Guard;
use portcullis_proto::v1::{GetStatusRequest, GetStatusResponse, node_service_server::NodeService};
use portcullis_sandbox::refusals;
use tonic::{Request, Response, Status};

use super::{Sources, policies};
use crate::{clock::timestamp, containers::LeftBehindCount, sandbox};

/// The service.
pub struct NodeApi(pub Sources);

#[tonic::async_trait]
impl NodeService for NodeApi {
    async fn get_status(&self, _request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let Sources { store, containers, kernel, counters, facts, enforcement, tls, containment: _, sender: _ } =
            &self.0;
        let (mut guarded, mut unguarded) = (0, 0);
        let mut left_behind = LeftBehindCount::default();
        for container in containers.all().into_values().filter(|container| container.ended_ns.is_none()) {
            left_behind.add(container.standing.left_behind);
            match container.record.guard {
                Guard::Guarded => guarded += 1,
                Guard::Unguarded { .. } => unguarded += 1,
            }
        }
        let own = [store.health().check(), sandbox::check(facts.seccomp, &refusals::refused())];
        let tcp = tls.as_ref().map(|tls| tls.check());
        let losses = kernel.node().into_iter().chain(counters.losses());
        let (in_force, policy_error) = enforcement.status();
        let last_signal_id = *store.last_id().borrow();
        Ok(Response::new(GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: ABI_VERSION,
            backend: facts.backend.into(),
            node: Some(facts.node.clone()),
            backend_reason: facts.backend_reason.clone(),
            kernel: facts.kernel.clone(),
            started: Some(timestamp(facts.started_ns)),
            checks: facts.checks.iter().cloned().chain(own).chain(tcp).chain(left_behind.check()).collect(),
            policies: in_force.into_iter().map(policies::message).collect(),
            containers_guarded: guarded,
            containers_unguarded: unguarded,
            signals_stored: store.stored(),
            last_signal_id,
            losses: losses.map(|(name, count)| (name.to_owned(), count)).collect(),
            suppressed: counters.suppressed().into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            policy_error,
        }))
    }
}
