//! One call of containerd's own API, by hand: its whole API crate would be a thousand times as much.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue, errors::InvalidMetadataValue},
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

const TIMEOUT: Duration = Duration::from_secs(2);
const GET: &str = "/containerd.services.containers.v1.Containers/Get";

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainerRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainerResponse {
    #[prost(message, optional, tag = "1")]
    container: Option<ContainerInfo>,
}

/// `containerd.services.containers.v1.Container`; all but the image is passed over.
#[derive(Clone, PartialEq, prost::Message)]
struct ContainerInfo {
    #[prost(string, tag = "3")]
    image: String,
}

/// Why containerd did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// No connection.
    #[error("connecting to containerd")]
    Connect(#[source] tonic::transport::Error),
    /// A namespace that is no header value.
    #[error("the namespace can't be sent")]
    Namespace(#[from] InvalidMetadataValue),
    /// It answered with an error.
    #[error("asking containerd for the container")]
    Call(#[source] Box<Status>),
}

/// The image of a container, `None` when containerd knows no such container or no image of it.
pub async fn image(address: &str, namespace: &str, id: &str) -> Result<Option<String>, ContainerdError> {
    let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The name is only shown to containerd; the connector knows where to go.
    let channel = Endpoint::from_static("http://containerd.invalid")
        .connect_timeout(TIMEOUT)
        .timeout(TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(ContainerdError::Connect)?;
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(ContainerdError::Connect)?;
    let mut request = Request::new(GetContainerRequest { id: id.to_owned() });
    request.metadata_mut().insert("containerd-namespace", MetadataValue::<Ascii>::try_from(namespace)?);
    let codec = ProstCodec::<GetContainerRequest, GetContainerResponse>::default();
    match grpc.unary(request, PathAndQuery::from_static(GET), codec).await {
        Ok(response) => {
            let image = response.into_inner().container.map(|container| container.image);
            Ok(image.filter(|image| !image.is_empty()))
        }
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(ContainerdError::Call(Box::new(status))),
    }
}
