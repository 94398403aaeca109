//! `ContainerService`.

use portcullis_proto::v1::{
    Container, Counters, ListContainersRequest, ListContainersResponse, container_service_server::ContainerService,
};
use tonic::{Request, Response, Status};

use super::Sources;
use crate::signal;

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
        let containments = self.0.containment.in_effect(&known).await;
        let mut containers: Vec<Container> = known
            .iter()
            .zip(containments)
            .map(|(container, containment)| {
                let stats = match container.record.cgroup_id {
                    0 => None,
                    cgroup_id => self.0.kernel.container(cgroup_id),
                };
                let counters = stats.map(|stats| Counters {
                    matched: stats.matched,
                    blocked: stats.blocked,
                    killed: stats.killed,
                    lost: stats.lost,
                    excepted: stats.excepted,
                });
                Container { counters, containment: Some(containment), ..signal::container_message(container) }
            })
            .collect();
        containers.sort_by(|a, b| (&a.containerd_namespace, &a.id).cmp(&(&b.containerd_namespace, &b.id)));
        Ok(Response::new(ListContainersResponse { containers }))
    }
}
