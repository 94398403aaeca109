//! Pods: the few calls of `runtime.v1`, the API by which kubelet talks to containerd, that make and end them.
//!
//! The messages have only those fields of the API's that are used here.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    net::UnixStream,
    runtime::{Builder, Runtime},
};
use tonic::{
    Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{command::Output, containerd::IMAGE, eventually::eventually};

/// containerd's namespace for everything that CRI makes.
pub const NAMESPACE: &str = "k8s.io";

/// The name of the runtime handler in `config/containerd`.
const HANDLER: &str = "portcullis";

/// Kubernetes's namespace of all pods here.
pub const POD_NAMESPACE: &str = "shop";

const LIMIT: Duration = Duration::from_secs(120);

/// `NamespaceMode.NODE`
const HOST: i32 = 2;

/// `ContainerState.CONTAINER_RUNNING`
const RUNNING: i32 = 1;

type Map = HashMap<String, String>;

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
    #[prost(string, tag = "2")]
    runtime_handler: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(map = "string, string", tag = "7")]
    annotations: Map,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
}

/// The answer to `RunPodSandbox`, and what `StopPodSandbox` and `RemovePodSandbox` ask.
#[derive(Clone, PartialEq, Message)]
struct PodSandboxId {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(map = "string, string", tag = "10")]
    annotations: Map,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainerConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainerConfig {
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxContainerSecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainerSecurityContext {
    #[prost(message, optional, tag = "3")]
    namespace_options: Option<NamespaceOption>,
}

/// The answer to `CreateContainer`, and what `StartContainer` asks.
#[derive(Clone, PartialEq, Message)]
struct ContainerId {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct ListContainersResponse {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<ListedContainer>,
}

/// A container as CRI lists it; the pods' own ones are not among them.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct ListedContainer {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    #[prost(int32, tag = "6")]
    state: i32,
}

impl ListedContainer {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.state == RUNNING
    }
}

/// A connection to containerd's CRI.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to the containerd that listens at a socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The name is only shown to containerd; the connector knows where to go.
        let endpoint = Endpoint::from_static("http://containerd.invalid").timeout(LIMIT);
        let channel = runtime.block_on(endpoint.connect_with_connector(connector))?;
        let cri = Self { runtime, channel };
        // It listens before it is ready.
        eventually(|| cri.containers())?;
        Ok(cri)
    }

    fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel.clone());
        let path = PathAndQuery::from_static(method);
        self.runtime.block_on(async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
        })
    }

    /// Starts a pod in the node's own network, which needs no CNI.
    pub fn pod(&self, name: &str, annotations: &[(&str, &str)]) -> Result<Pod<'_>> {
        let security_context = LinuxSandboxSecurityContext { namespace_options: Some(host_network()) };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: POD_NAMESPACE.to_owned(),
            }),
            annotations: map(annotations),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(security_context) }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: HANDLER.to_owned() };
        let answer: PodSandboxId = self
            .call("/runtime.v1.RuntimeService/RunPodSandbox", request)
            .with_context(|| format!("starting pod {name}"))?;
        Ok(Pod { cri: self, id: answer.pod_sandbox_id, config, removed: false })
    }

    /// All containers of all pods.
    pub fn containers(&self) -> Result<Vec<ListedContainer>> {
        let answer: ListContainersResponse = self.call("/runtime.v1.RuntimeService/ListContainers", Empty {})?;
        Ok(answer.containers)
    }

    /// Runs a program in a container; one that can't be started is an error.
    pub fn exec(&self, container: &str, arguments: &[&str]) -> Result<Output> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        };
        let answer: ExecSyncResponse = self
            .call("/runtime.v1.RuntimeService/ExecSync", request)
            .with_context(|| format!("running {arguments:?} in {container}"))?;
        Ok(Output {
            status: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }
}

fn host_network() -> NamespaceOption {
    NamespaceOption { network: HOST }
}

fn map(annotations: &[(&str, &str)]) -> Map {
    annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A running pod. Dropping it removes it.
#[derive(Debug)]
pub struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    config: PodSandboxConfig,
    removed: bool,
}

impl Pod<'_> {
    /// Its id, which is that of the container that holds it together.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts a container in it, with a first process that does nothing for long; gives its id.
    pub fn start(&self, name: &str, annotations: &[(&str, &str)]) -> Result<String> {
        let security_context = LinuxContainerSecurityContext { namespace_options: Some(host_network()) };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned() }),
            image: Some(ImageSpec { image: IMAGE.to_owned() }),
            command: ["sleep", "100000"].map(str::to_owned).into(),
            annotations: map(annotations),
            linux: Some(LinuxContainerConfig { security_context: Some(security_context) }),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let answer: ContainerId = self
            .cri
            .call("/runtime.v1.RuntimeService/CreateContainer", request)
            .with_context(|| format!("creating container {name}"))?;
        let request = ContainerId { container_id: answer.container_id.clone() };
        let _: Empty = self
            .cri
            .call("/runtime.v1.RuntimeService/StartContainer", request)
            .with_context(|| format!("starting container {name}"))?;
        Ok(answer.container_id)
    }

    /// Ends it and all containers in it, and removes them.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        // Like kubelet, again where containerd has not noticed yet that a container is gone.
        eventually(|| self.stop_and_remove())
    }

    fn stop_and_remove(&self) -> Result<()> {
        let id = PodSandboxId { pod_sandbox_id: self.id.clone() };
        let _: Empty =
            self.cri.call("/runtime.v1.RuntimeService/StopPodSandbox", id.clone()).context("stopping a pod")?;
        let _: Empty = self.cri.call("/runtime.v1.RuntimeService/RemovePodSandbox", id).context("removing a pod")?;
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = self.stop_and_remove()
        {
            eprintln!("{error:#}");
        }
    }
}
