//! `ContainmentService`.

use portcullis_proto::v1::{
    Caller, ContainRequest, ContainResponse, Measure, ReleaseRequest, ReleaseResponse,
    containment_service_server::ContainmentService,
};
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};

use crate::{containment::Containment, signal::Place};

/// The service.
pub struct ContainmentApi(pub Containment);

/// Who is at the other end of the socket.
fn caller<T>(request: &Request<T>) -> Option<Caller> {
    let credentials = request.extensions().get::<UdsConnectInfo>()?.peer_cred?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
    Some(Caller { uid: credentials.uid(), gid: credentials.gid(), pid: pid.unwrap_or_default() })
}

#[tonic::async_trait]
impl ContainmentService for ContainmentApi {
    async fn contain(&self, request: Request<ContainRequest>) -> Result<Response<ContainResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let place = Place { id: &request.container_id, namespace: &request.containerd_namespace };
        let container = self.0.contain(place, request.measure(), request.pid, caller).await?;
        Ok(Response::new(ContainResponse { container: Some(container) }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let place = Place { id: &request.container_id, namespace: &request.containerd_namespace };
        // Not by the accessor of the field, which leaves out what is of a newer version.
        let measures = request.measures.iter().map(|measure| Measure::try_from(*measure).unwrap_or_default()).collect();
        let container = self.0.release(place, measures, caller).await?;
        Ok(Response::new(ReleaseResponse { container: Some(container) }))
    }
}
