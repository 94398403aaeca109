//! `ContainmentService`.

use portcullis_proto::v1::{
    ContainRequest, ContainResponse, Measure, ReleaseRequest, ReleaseResponse,
    containment_service_server::ContainmentService,
};
use tonic::{Request, Response, Status};

use super::peer::caller;
use crate::{
    containment::{Containment, ContainmentError},
    signal::Place,
};

/// The service.
pub struct ContainmentApi(pub Containment);

/// A client that leaves must not leave an operation half done, or done and unrecorded.
async fn to_its_end<T: Send + 'static>(
    operation: impl Future<Output = Result<T, ContainmentError>> + Send + 'static,
) -> Result<T, Status> {
    // It fails only when the runtime is ending.
    Ok(tokio::spawn(operation).await.unwrap_or(Err(ContainmentError::Stopping))?)
}

#[tonic::async_trait]
impl ContainmentService for ContainmentApi {
    async fn contain(&self, request: Request<ContainRequest>) -> Result<Response<ContainResponse>, Status> {
        let (containment, caller) = (self.0.clone(), caller(&request));
        let request = request.into_inner();
        let container = to_its_end(async move {
            let place = Place { id: &request.container_id, namespace: &request.containerd_namespace };
            containment.contain(place, request.measure(), request.pid, caller).await
        });
        Ok(Response::new(ContainResponse { container: Some(container.await?) }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let (containment, caller) = (self.0.clone(), caller(&request));
        let request = request.into_inner();
        // Not by the accessor of the field, which leaves out what is of a newer version.
        let measures = request.measures.iter().map(|measure| Measure::try_from(*measure).unwrap_or_default()).collect();
        let container = to_its_end(async move {
            let place = Place { id: &request.container_id, namespace: &request.containerd_namespace };
            containment.release(place, measures, caller).await
        });
        Ok(Response::new(ReleaseResponse { container: Some(container.await?) }))
    }
}
