//! `mode`: detect or enforce, at run time.

use std::io::{self, BufWriter, Write};

use clap::ValueEnum;
use portcullis_proto::v1::{
    self, ContainerReference, ListContainersRequest, ListPoliciesRequest, SetModeRequest, set_mode_request::Target,
};
use serde::Serialize;

use crate::{
    args::Global,
    client::{self, Agent, ClientError},
    containers::{pod_name, retain_meant, short_id},
    escape::text,
    output::{self, Format},
    view::{Container, Mode},
};

/// So many candidates are named.
const NAMED_MAX: usize = 10;

/// Set the mode of a policy or a container at run time
///
/// It holds from the next execution on, whatever the policy's file says, until `default` ends that. A policy's mode outlives
/// the agent, a container's ends with it. A container's annotation is overruled by a container's mode only.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A policy's name, or the beginning of the id of a running container
    #[arg(value_name = "POLICY|CONTAINER")]
    target: String,
    /// The mode
    #[arg(value_name = "MODE")]
    mode: Wanted,
    /// The target is a policy
    #[arg(long, conflicts_with = "container")]
    policy: bool,
    /// The target is a container
    #[arg(long)]
    container: bool,
    /// containerd's namespace of the container, where several have the id
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "policy")]
    namespace: Option<String>,
}

/// What is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// Report
    Detect,
    /// Report, and stop what a rule says `block` to
    Enforce,
    /// What the policy's file, or for a container its policy and annotation, say
    Default,
}

/// What a word stands for.
#[derive(Debug)]
enum Found {
    Policy(String),
    Container(Box<Container>),
}

/// A target that can't be used.
#[derive(Debug, thiserror::Error)]
enum TargetError {
    /// Asking the agent failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is nothing of that name.
    #[error("there is no {what} {target}; see portcullis policy list and portcullis containers list")]
    None {
        /// Of what.
        what: &'static str,
        /// The word.
        target: String,
    },
    /// It may be a policy or a container.
    #[error("{target} is a policy, and begins the id of {containers}: say which with --policy or --container")]
    Both {
        /// The word.
        target: String,
        /// The containers.
        containers: String,
    },
    /// Several containers begin like this.
    #[error("{target} begins the ids of several containers: {containers}; give more of it, or --namespace")]
    Several {
        /// The word.
        target: String,
        /// The containers.
        containers: String,
    },
}

/// What `-o json` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    /// The policy's name, if it was one.
    policy: Option<String>,
    /// The container's id, if it was one.
    container: Option<String>,
    mode: Mode,
    mode_reason: String,
    containers_changed: u64,
}

impl Args {
    /// Finds the target and sets its mode.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let found = self.find(&agent).await?;
        let mode = match self.mode {
            Wanted::Detect => v1::Mode::Detect,
            Wanted::Enforce => v1::Mode::Enforce,
            Wanted::Default => v1::Mode::Unspecified,
        };
        let target = match &found {
            Found::Policy(name) => Target::Policy(name.clone()),
            Found::Container(container) => Target::Container(ContainerReference {
                id: container.id.clone(),
                containerd_namespace: container.containerd_namespace.clone(),
            }),
        };
        let request = client::request(SetModeRequest { target: Some(target), mode: mode.into() });
        let response = agent.policies().set_mode(request).await.map_err(|status| agent.error(&status))?.into_inner();
        let (policy, container) = match found {
            Found::Policy(name) => (Some(name), None),
            Found::Container(container) => (None, Some(container.id)),
        };
        let outcome = Outcome {
            policy,
            container,
            mode: response.mode().into(),
            mode_reason: response.mode_reason,
            containers_changed: response.containers,
        };
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json => output::json(&mut out, &outcome)?,
            Format::Yaml => output::yaml(&mut out, &outcome)?,
            Format::Table | Format::Wide => tell(&mut out, &outcome)?,
        }
        Ok(out.flush()?)
    }

    async fn find(&self, agent: &Agent) -> Result<Found, TargetError> {
        let policies = if self.container { Vec::new() } else { policies(agent).await? };
        let mut containers = if self.policy { Vec::new() } else { containers(agent).await? };
        retain_meant(&mut containers, &self.target, self.namespace.as_deref());
        let target = text(&self.target);
        let is_policy = self.namespace.is_none() && policies.contains(&self.target);
        if is_policy && !containers.is_empty() {
            return Err(TargetError::Both { target, containers: named(&containers) });
        }
        if is_policy {
            return Ok(Found::Policy(self.target.clone()));
        }
        if containers.len() > 1 {
            return Err(TargetError::Several { target, containers: named(&containers) });
        }
        let what = match (self.policy, self.container || self.namespace.is_some()) {
            (true, _) => "policy",
            (_, true) => "running container",
            _ => "policy and no running container",
        };
        containers
            .pop()
            .map(|container| Found::Container(Box::new(container)))
            .ok_or(TargetError::None { what, target })
    }
}

async fn policies(agent: &Agent) -> Result<Vec<String>, ClientError> {
    let response = agent.policies().list_policies(client::request(ListPoliciesRequest {})).await;
    let response = response.map_err(|status| agent.error(&status))?.into_inner();
    Ok(response.policies.into_iter().map(|policy| policy.name).collect())
}

async fn containers(agent: &Agent) -> Result<Vec<Container>, ClientError> {
    let request = client::request(ListContainersRequest { include_ended: false });
    let response = agent.containers().list_containers(request).await.map_err(|status| agent.error(&status))?;
    Ok(response.into_inner().containers.into_iter().map(Into::into).collect())
}

/// The candidates, with what tells them apart.
fn named(containers: &[Container]) -> String {
    let name = |container: &Container| {
        let place = container.pod.as_ref().map_or_else(|| container.containerd_namespace.clone(), pod_name);
        // Short ids of hashes suffice until two begin alike.
        let short = short_id(&container.id);
        let alike = containers.iter().filter(|other| short_id(&other.id) == short).count();
        format!("{} ({})", text(if alike > 1 { &container.id } else { short }), text(&place))
    };
    let mut names: Vec<String> = containers.iter().take(NAMED_MAX).map(name).collect();
    if containers.len() > NAMED_MAX {
        names.push(format!("and {} more", containers.len() - NAMED_MAX));
    }
    names.join(", ")
}

fn tell(out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    let Outcome { policy, container, mode, mode_reason, containers_changed } = outcome;
    let mode =
        if mode_reason.is_empty() { mode.word().to_owned() } else { format!("{mode} (by {})", text(mode_reason)) };
    match (policy, container) {
        (Some(name), _) => writeln!(out, "policy {}: mode {mode}, {containers_changed} containers changed", text(name)),
        (None, Some(id)) => {
            let changed = if *containers_changed > 0 { "changed" } else { "as before" };
            writeln!(out, "container {}: mode {mode}, {changed}", text(short_id(id)))
        }
        (None, None) => Ok(()),
    }
}
