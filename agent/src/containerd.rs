//! Some calls of containerd's own API, by hand: its whole API crate would be a thousand times as much.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue, errors::InvalidMetadataValue},
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// For what runc has to do first: it waits until the last process is frozen.
const ACT_TIMEOUT: Duration = Duration::from_secs(20);

const GET_CONTAINER: &str = "/containerd.services.containers.v1.Containers/Get";
const LIST_TASKS: &str = "/containerd.services.tasks.v1.Tasks/List";
const PAUSE_TASK: &str = "/containerd.services.tasks.v1.Tasks/Pause";
const RESUME_TASK: &str = "/containerd.services.tasks.v1.Tasks/Resume";
const KILL_TASK: &str = "/containerd.services.tasks.v1.Tasks/Kill";

const SIGKILL: u32 = 9;

#[derive(Clone, PartialEq, Message)]
struct GetContainerRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct GetContainerResponse {
    #[prost(message, optional, tag = "1")]
    container: Option<ContainerInfo>,
}

/// `containerd.services.containers.v1.Container`; all but the image is passed over.
#[derive(Clone, PartialEq, Message)]
struct ContainerInfo {
    #[prost(string, tag = "3")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListTasksRequest {
    #[prost(string, tag = "1")]
    filter: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListTasksResponse {
    #[prost(message, repeated, tag = "1")]
    tasks: Vec<Task>,
}

/// `containerd.v1.types.Process`.
#[derive(Clone, PartialEq, Message)]
struct Task {
    /// The container's: `container_id` is empty here.
    #[prost(string, tag = "2")]
    id: String,
    #[prost(enumeration = "TaskStatus", tag = "4")]
    status: i32,
}

/// `containerd.v1.types.Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum TaskStatus {
    Unknown = 0,
    Paused = 4,
    Pausing = 5,
}

/// `PauseTaskRequest` and `ResumeTaskRequest`.
#[derive(Clone, PartialEq, Message)]
struct TaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct KillRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(uint32, tag = "3")]
    signal: u32,
    #[prost(bool, tag = "4")]
    all: bool,
}

/// Why containerd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// No connection.
    #[error("connecting to containerd")]
    Connect(#[source] tonic::transport::Error),
    /// A namespace that is no header value.
    #[error("the namespace can't be sent")]
    Namespace(#[from] InvalidMetadataValue),
    /// It answered with an error.
    #[error("containerd answered: {}", .0.message())]
    Call(#[source] Box<Status>),
}

/// One containerd's view of one of its namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Containerd<'a> {
    /// Path of its gRPC socket.
    pub address: &'a str,
    /// The namespace.
    pub namespace: &'a str,
}

impl Containerd<'_> {
    /// The image of a container, `None` when containerd knows no such container or no image of it.
    pub async fn image(self, id: &str) -> Result<Option<String>, ContainerdError> {
        let request = GetContainerRequest { id: id.to_owned() };
        match self.call::<_, GetContainerResponse>(GET_CONTAINER, ANSWER_TIMEOUT, request).await {
            Ok(response) => {
                let image = response.container.map(|container| container.image);
                Ok(image.filter(|image| !image.is_empty()))
            }
            Err(ContainerdError::Call(status)) if status.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ids of the containers that are paused, or about to be.
    pub async fn paused(self) -> Result<HashSet<String>, ContainerdError> {
        let request = ListTasksRequest { filter: String::new() };
        let response: ListTasksResponse = self.call(LIST_TASKS, ANSWER_TIMEOUT, request).await?;
        let paused = |task: &Task| matches!(task.status(), TaskStatus::Paused | TaskStatus::Pausing);
        Ok(response.tasks.into_iter().filter(paused).map(|task| task.id).collect())
    }

    /// Stops all processes of a container where they are.
    pub async fn pause(self, id: &str) -> Result<(), ContainerdError> {
        self.call::<_, ()>(PAUSE_TASK, ACT_TIMEOUT, TaskRequest { container_id: id.to_owned() }).await
    }

    /// Lets them go on.
    pub async fn resume(self, id: &str) -> Result<(), ContainerdError> {
        self.call::<_, ()>(RESUME_TASK, ACT_TIMEOUT, TaskRequest { container_id: id.to_owned() }).await
    }

    /// Sends SIGKILL to all processes of a container.
    pub async fn kill(self, id: &str) -> Result<(), ContainerdError> {
        let request = KillRequest { container_id: id.to_owned(), signal: SIGKILL, all: true };
        self.call::<_, ()>(KILL_TASK, ACT_TIMEOUT, request).await
    }

    async fn call<Q, A>(self, method: &'static str, timeout: Duration, question: Q) -> Result<A, ContainerdError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathBuf::from(self.address.strip_prefix("unix://").unwrap_or(self.address));
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is only shown to containerd; the connector knows where to go.
        let channel = Endpoint::from_static("http://containerd.invalid")
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .connect_with_connector(connector)
            .await
            .map_err(ContainerdError::Connect)?;
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.map_err(ContainerdError::Connect)?;
        let mut request = Request::new(question);
        request.metadata_mut().insert("containerd-namespace", MetadataValue::<Ascii>::try_from(self.namespace)?);
        let codec = ProstCodec::<Q, A>::default();
        match grpc.unary(request, PathAndQuery::from_static(method), codec).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(ContainerdError::Call(Box::new(status))),
        }
    }
}
