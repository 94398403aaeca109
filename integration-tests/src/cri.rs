//! Pods, made and ended by CRI as kubelet does it: the client is generated from the API's published definition.

use std::{collections::HashMap, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    net::UnixStream,
    runtime::{Builder, Runtime},
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use self::v1::runtime_service_client::RuntimeServiceClient;
use crate::{
    command::Output,
    containerd::{IMAGE, has_systemd},
    eventually::eventually,
};

/// The API.
pub mod v1 {
    #![allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic)]
    tonic::include_proto!("runtime.v1");
}

/// containerd's namespace for everything that CRI makes.
pub const NAMESPACE: &str = "k8s.io";

/// The runtime handler in `config/containerd`.
const HANDLER: &str = "portcullis";

/// The same shim by a handler that lists no annotations (`cri-v2.toml`, `cri-v3.toml`).
pub const HANDLER_WITHOUT_ANNOTATIONS: &str = "portcullis-bare";

/// The stock shim's.
pub const STOCK_HANDLER: &str = "runc";

/// Kubernetes's namespace of all pods here that name no other.
pub const POD_NAMESPACE: &str = "shop";

const LIMIT: Duration = Duration::from_secs(120);

type Client = RuntimeServiceClient<Channel>;

/// A connection to containerd's CRI. It finds a containerd again that was restarted.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: Client,
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
        let cri = Self { runtime, client: Client::new(channel) };
        // It listens before it is ready.
        eventually(|| cri.containers())?;
        Ok(cri)
    }

    fn call<A>(&self, call: impl AsyncFnOnce(Client) -> Result<Response<A>, Status>) -> Result<A, Status> {
        self.runtime.block_on(call(self.client.clone())).map(Response::into_inner)
    }

    /// A pod to be started, with a network of its own by CNI.
    pub fn new_pod(&self, name: &str) -> PodBuilder<'_> {
        let options = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: POD_NAMESPACE.to_owned(),
                attempt: 0,
            }),
            ..Default::default()
        };
        PodBuilder { cri: self, config, options, handler: HANDLER }
    }

    /// Starts a pod.
    pub fn pod(&self, name: &str, annotations: &[(&str, &str)]) -> Result<Pod<'_>> {
        annotations.iter().fold(self.new_pod(name), |pod, (key, value)| pod.annotation(key, value)).start()
    }

    /// All pods.
    pub fn pods(&self) -> Result<Vec<v1::PodSandbox>> {
        Ok(self.call(async |mut client| client.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await)?.items)
    }

    /// All containers of all pods; the pods' own ones are not among them.
    pub fn containers(&self) -> Result<Vec<v1::Container>> {
        Ok(self.call(async |mut client| client.list_containers(v1::ListContainersRequest::default()).await)?.containers)
    }

    /// Starts a container that was created.
    pub fn start(&self, container: &str) -> Result<()> {
        let request = v1::StartContainerRequest { container_id: container.to_owned() };
        self.call(async |mut client| client.start_container(request).await)
            .with_context(|| format!("starting container {container}"))?;
        Ok(())
    }

    /// A container's status, and what containerd tells besides.
    fn status(&self, container: &str) -> Result<v1::ContainerStatusResponse> {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        self.call(async |mut client| client.container_status(request).await)
            .with_context(|| format!("asking for the status of {container}"))
    }

    /// The pid of a running container's first process.
    pub fn pid(&self, container: &str) -> Result<i32> {
        let info = self.status(container)?.info;
        let Info { pid } = serde_json::from_str(info.get("info").context("containerd tells no more")?)?;
        Ok(pid)
    }

    /// Waits for a container's end; gives its exit code.
    pub fn exit_code(&self, container: &str) -> Result<i32> {
        eventually(|| {
            let status = self.status(container)?.status.context("no status")?;
            ensure!(status.state() == v1::ContainerState::ContainerExited, "{container} is {:?}", status.state());
            Ok(status.exit_code)
        })
    }

    /// Removes a container that has ended.
    pub fn remove_container(&self, container: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest { container_id: container.to_owned() };
        self.call(async |mut client| client.remove_container(request).await)
            .with_context(|| format!("removing container {container}"))?;
        Ok(())
    }

    /// Runs a program in a container, as kubelet runs an exec probe; one that can't be started is an error.
    pub fn exec(&self, container: &str, arguments: &[&str]) -> Result<Output> {
        let request = v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: words(arguments),
            timeout: LIMIT.as_secs().try_into()?,
        };
        let answer = self
            .call(async |mut client| client.exec_sync(request).await)
            .with_context(|| format!("running {arguments:?} in {container}"))?;
        Ok(Output {
            status: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }
}

/// What containerd tells of a container beyond CRI, as far as it is looked at.
#[derive(Deserialize)]
struct Info {
    pid: i32,
}

fn words(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

impl v1::Container {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.state() == v1::ContainerState::ContainerRunning
    }
}

impl v1::PodSandbox {
    /// Whether it runs.
    pub fn is_ready(&self) -> bool {
        self.state() == v1::PodSandboxState::SandboxReady
    }
}

/// A pod to be started.
#[derive(Debug)]
pub struct PodBuilder<'a> {
    cri: &'a Cri,
    config: v1::PodSandboxConfig,
    options: v1::NamespaceOption,
    handler: &'a str,
}

impl<'a> PodBuilder<'a> {
    /// In another of Kubernetes's namespaces.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.config.metadata.get_or_insert_default().namespace);
        self
    }

    /// With an annotation of the pod's.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// By another runtime handler than the recommended one.
    #[must_use]
    pub fn handler(mut self, handler: &'a str) -> Self {
        self.handler = handler;
        self
    }

    /// In the node's own network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.options.network = v1::NamespaceMode::Node.into();
        self
    }

    /// As kubelet names it.
    fn slice(&self) -> String {
        let uid = self.config.metadata.as_ref().map_or("", |metadata| &metadata.uid);
        format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_"))
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Pod<'a>> {
        let security_context =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(self.options.clone()), ..Default::default() };
        let cgroup_parent = if has_systemd() { self.slice() } else { String::new() };
        let linux =
            v1::LinuxPodSandboxConfig { security_context: Some(security_context), cgroup_parent, ..Default::default() };
        self.config.linux = Some(linux);
        let request =
            v1::RunPodSandboxRequest { config: Some(self.config.clone()), runtime_handler: self.handler.to_owned() };
        let id = self
            .cri
            .call(async |mut client| client.run_pod_sandbox(request).await)
            .with_context(|| format!("starting the pod {:?}", self.config.metadata))?
            .pod_sandbox_id;
        Ok(Pod { cri: self.cri, id, config: self.config, options: self.options, removed: false })
    }
}

/// A running pod. Dropping it removes it.
#[derive(Debug)]
pub struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    config: v1::PodSandboxConfig,
    options: v1::NamespaceOption,
    removed: bool,
}

impl Pod<'_> {
    /// Its id, which is that of the container that holds it together.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its cgroup, where systemd owns them.
    pub fn slice(&self) -> &str {
        self.config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent)
    }

    /// The pid of the container that holds it together.
    pub fn pid(&self) -> Result<i32> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: true };
        let info = self.cri.call(async |mut client| client.pod_sandbox_status(request).await)?.info;
        let Info { pid } = serde_json::from_str(info.get("info").context("containerd tells no more")?)?;
        Ok(pid)
    }

    /// Its address in the network that CNI made.
    pub fn address(&self) -> Result<IpAddr> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer = self.cri.call(async |mut client| client.pod_sandbox_status(request).await)?;
        let network = answer.status.and_then(|status| status.network).context("the pod has no network")?;
        network.ip.parse().with_context(|| format!("the pod's address is {:?}", network.ip))
    }

    /// A container to be created in it, whose first process does nothing for long.
    pub fn container(&self, name: &str) -> ContainerBuilder<'_> {
        let security_context =
            v1::LinuxContainerSecurityContext { namespace_options: Some(self.options.clone()), ..Default::default() };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            command: words(&["sleep", "100000"]),
            annotations: HashMap::new(),
            linux: Some(v1::LinuxContainerConfig { security_context: Some(security_context), ..Default::default() }),
            ..Default::default()
        };
        ContainerBuilder { pod: self, config }
    }

    /// Starts a container in it; gives its id.
    pub fn start(&self, name: &str, annotations: &[(&str, &str)]) -> Result<String> {
        annotations.iter().fold(self.container(name), |new, (key, value)| new.annotation(key, value)).start()
    }

    /// Ends it and all containers in it, and removes them.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        // Like kubelet, again where containerd has not noticed yet that a container is gone.
        eventually(|| self.stop_and_remove())
    }

    fn stop_and_remove(&self) -> Result<()> {
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.cri.call(async |mut client| client.stop_pod_sandbox(stop).await).context("stopping a pod")?;
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.cri.call(async |mut client| client.remove_pod_sandbox(remove).await).context("removing a pod")?;
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

/// A container to be created.
#[derive(Debug)]
pub struct ContainerBuilder<'a> {
    pod: &'a Pod<'a>,
    config: v1::ContainerConfig,
}

impl ContainerBuilder<'_> {
    /// Of another image.
    #[must_use]
    pub fn image(mut self, image: &str) -> Self {
        image.clone_into(&mut self.config.image.get_or_insert_default().image);
        self
    }

    /// With this as its first process.
    #[must_use]
    pub fn command(mut self, arguments: &[&str]) -> Self {
        self.config.command = words(arguments);
        self
    }

    /// With an annotation of its own.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// As kubelet starts it again: how often it was started before.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    /// Creates it; gives its id.
    pub fn create(self) -> Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            sandbox_config: Some(self.pod.config.clone()),
            config: Some(self.config.clone()),
        };
        let answer = self.pod.cri.call(async |mut client| client.create_container(request).await);
        Ok(answer.with_context(|| format!("creating the container {:?}", self.config.metadata))?.container_id)
    }

    /// Creates and starts it; gives its id.
    pub fn start(self) -> Result<String> {
        let cri = self.pod.cri;
        let id = self.create()?;
        cri.start(&id)?;
        Ok(id)
    }
}
