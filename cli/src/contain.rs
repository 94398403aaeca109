//! `contain` and `release`.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, bail};
use portcullis_proto::v1::{self, ContainRequest, ListContainersRequest, Measure, ReleaseRequest};

use crate::{
    args::Global,
    client::{self, Agent},
    containers::retain_meant,
    escape,
    output::{self, Format},
    view::Container,
};

/// Stop a container, or a part of it, by hand; each call is kept as a signal
#[derive(Debug, clap::Args)]
pub struct Contain {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    measure: MeasureArgs,
}

/// Take back what `contain` has put in effect; without an option: all of it
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools)] // As many options.
pub struct Release {
    #[command(flatten)]
    target: Target,
    /// Let its processes go on
    #[arg(long)]
    freeze: bool,
    /// Let it back to the network
    #[arg(long)]
    isolate_network: bool,
    /// Let it execute programs again
    #[arg(long)]
    lock: bool,
    /// All that is in effect
    #[arg(long, conflicts_with_all = ["freeze", "isolate_network", "lock"])]
    all: bool,
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The container's id; its beginning will do
    container: String,
    /// containerd's namespace, where several have such a container
    #[arg(long, value_name = "NAME", default_value = "")]
    namespace: String,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
#[allow(clippy::struct_excessive_bools)] // One of them is set.
struct MeasureArgs {
    /// Stop all its processes where they are
    #[arg(long)]
    freeze: bool,
    /// End all its processes by SIGKILL
    #[arg(long)]
    kill: bool,
    /// End this one of its processes by SIGKILL; its id as the node sees it
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    kill_process: Option<u32>,
    /// Drop its IP packets, but for those on a loopback device
    #[arg(long)]
    isolate_network: bool,
    /// Refuse every exec in it
    #[arg(long)]
    lock: bool,
}

impl MeasureArgs {
    /// The one that is set, and the process that it is about.
    fn chosen(&self) -> (Measure, u32) {
        match self {
            Self { kill_process: Some(pid), .. } => (Measure::KillProcess, *pid),
            Self { freeze: true, .. } => (Measure::Freeze, 0),
            Self { kill: true, .. } => (Measure::Kill, 0),
            Self { isolate_network: true, .. } => (Measure::IsolateNetwork, 0),
            // clap demands one of them.
            _ => (Measure::Lock, 0),
        }
    }
}

impl Contain {
    /// Takes the measure and shows the container as it is then.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let (container_id, containerd_namespace) = self.target.find(&agent).await?;
        let (measure, pid) = self.measure.chosen();
        let request = ContainRequest { container_id, containerd_namespace, measure: measure.into(), pid };
        let response = agent.containment().contain(client::request(request)).await;
        show(response.map_err(|status| agent.error(&status))?.into_inner().container, global)
    }
}

impl Release {
    /// Takes the measures back and shows the container as it is then.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let (container_id, containerd_namespace) = self.target.find(&agent).await?;
        let chosen = [
            (self.freeze, Measure::Freeze),
            (self.isolate_network, Measure::IsolateNetwork),
            (self.lock, Measure::Lock),
        ];
        let measures = chosen.into_iter().filter(|(is_set, _)| *is_set).map(|(_, measure)| measure.into()).collect();
        let request = ReleaseRequest { container_id, containerd_namespace, measures };
        let response = agent.containment().release(client::request(request)).await;
        show(response.map_err(|status| agent.error(&status))?.into_inner().container, global)
    }
}

impl Target {
    async fn find(&self, agent: &Agent) -> anyhow::Result<(String, String)> {
        find(agent, &self.container, &self.namespace).await
    }
}

/// Id and namespace of the one container that is meant. One that is not known here is the agent's to refuse.
pub async fn find(agent: &Agent, start: &str, namespace: &str) -> anyhow::Result<(String, String)> {
    let request = client::request(ListContainersRequest { include_ended: true });
    let response = agent.containers().list_containers(request).await.map_err(|status| agent.error(&status))?;
    let mut found: Vec<Container> = response.into_inner().containers.into_iter().map(Into::into).collect();
    retain_meant(&mut found, start, Some(namespace).filter(|namespace| !namespace.is_empty()));
    // What runs is meant, not what has ended.
    if found.iter().any(|container| container.ended.is_none()) {
        found.retain(|container| container.ended.is_none());
    }
    match found.as_slice() {
        [] => Ok((start.to_owned(), namespace.to_owned())),
        [container] => Ok((container.id.clone(), container.containerd_namespace.clone())),
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|container| escape::text(&format!("{}/{}", container.containerd_namespace, container.id)))
                .collect();
            bail!("{} containers are meant: give more of the id, or --namespace: {}", names.len(), names.join(", "))
        }
    }
}

fn show(container: Option<v1::Container>, global: &Global) -> anyhow::Result<()> {
    let container: Container = container.context("portcullisd sent an empty answer")?.into();
    let mut out = BufWriter::new(io::stdout().lock());
    match global.output {
        Format::Json => output::json(&mut out, &container)?,
        Format::Yaml => output::yaml(&mut out, &container)?,
        Format::Table | Format::Wide => {
            let state = match (&container.ended, &container.containment) {
                (Some(_), _) => "has ended".to_owned(),
                (None, Some(containment)) => containment.words(),
                (None, None) => "unknown".to_owned(),
            };
            let state = if state.is_empty() { "nothing in effect" } else { &state };
            writeln!(out, "{}: {state}", escape::text(&container.id))?;
        }
    }
    Ok(out.flush()?)
}
