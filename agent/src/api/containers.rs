//! `ContainerService`.

use std::collections::BTreeSet;

use portcullis_proto::v1::{
    Container, Containment, Counters, ListContainersRequest, ListContainersResponse,
    container_service_server::ContainerService,
};
use tonic::{Request, Response, Status};

use super::Sources;
use crate::{containers::Container as Known, signal};

impl Sources {
    /// Containers as they are now.
    async fn messages(&self, known: &[Known]) -> Vec<Container> {
        let containments = self.containment.in_effect(known).await;
        let message = |(container, containment): (&Known, Containment)| {
            let stats = match container.record.cgroup_id {
                0 => None,
                cgroup_id => self.kernel.container(cgroup_id),
            };
            let counters = stats.map(|stats| Counters {
                matched: stats.matched,
                blocked: stats.blocked,
                killed: stats.killed,
                lost: stats.lost,
                excepted: stats.excepted,
                activities_lost: self.kernel.activities_lost(container.record.cgroup_id),
            });
            Container { counters, containment: Some(containment), ..signal::container_message(container) }
        };
        known.iter().zip(containments).map(message).collect()
    }

    /// A container as it is now, if the node knows it. An empty namespace: whichever has the id.
    pub async fn container(&self, id: &str, namespace: &str) -> Result<Option<Container>, Status> {
        let is_it = |container: &Known| {
            container.record.container_id == id
                && (namespace.is_empty() || container.record.containerd_namespace == namespace)
        };
        let mut found: Vec<Known> = self.containers.all().into_values().filter(is_it).collect();
        // Of an id that is used again the newest is meant.
        found.sort_by_key(|container| container.record.created_ns);
        let namespaces: BTreeSet<&str> =
            found.iter().map(|container| container.record.containerd_namespace.as_str()).collect();
        if namespaces.len() > 1 {
            return Err(Status::failed_precondition(format!("several namespaces of containerd have a container {id}")));
        }
        let newest: Vec<Known> = found.pop().into_iter().collect();
        Ok(self.messages(&newest).await.pop())
    }
}

/// The service.
pub struct ContainerApi(pub Sources);

#[tonic::async_trait]
impl ContainerService for ContainerApi {
    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let include_ended = request.into_inner().include_ended;
        let known: Vec<_> = self
            .0
            .containers
            .all()
            .into_values()
            .filter(|container| include_ended || container.ended_ns.is_none())
            .collect();
        let mut containers = self.0.messages(&known).await;
        containers.sort_by(|a, b| (&a.containerd_namespace, &a.id).cmp(&(&b.containerd_namespace, &b.id)));
        Ok(Response::new(ListContainersResponse { containers }))
    }
}
