//! The options that choose signals.

use portcullis_proto::v1::{self, ListContainersRequest, SignalFilter};

use crate::{
    client::{self, Agent, ClientError},
    time::Time,
    view::{Severity, TriageState, Verdict},
};

/// All of them must hold.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters")]
pub struct Filter {
    /// Of this container; the beginning of the id will do while the container is known to the node
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// About this tool of the catalogue, for example nc
    #[arg(long, value_name = "ID")]
    tool: Option<String>,
    /// About tools of this category, for example netcat
    #[arg(long)]
    category: Option<String>,
    /// With this verdict
    #[arg(long)]
    verdict: Option<Verdict>,
    /// At least this severe
    #[arg(long)]
    severity: Option<Severity>,
    /// Not before: how long ago (15m, 1h, 7d) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = Time::parse)]
    since: Option<Time>,
    /// Not after: how long ago (15m, 1h, 7d) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = Time::parse)]
    until: Option<Time>,
    /// From containers of this image
    #[arg(long)]
    image: Option<String>,
    /// From pods of this Kubernetes namespace
    #[arg(long, value_name = "NAMESPACE")]
    pod_namespace: Option<String>,
    /// From pods of this name
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// Of this rule, for example net_util_in_container
    #[arg(long)]
    rule: Option<String>,
    /// In this state (open: nobody has said anything); several separated by commas
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<TriageState>,
    /// For which this CEL expression is true, for example 'signal.process.uid == 0u && "-e" in signal.process.argv'
    #[arg(long = "where", value_name = "EXPRESSION")]
    expression: Option<String>,
    /// Only what its workload has done for the first time
    #[arg(long)]
    first_time: bool,
}

impl Filter {
    /// For the API, which takes whole container ids: tables show their beginning.
    pub async fn to_proto(&self, agent: &Agent) -> Result<SignalFilter, FilterError> {
        let container_id = match &self.container {
            Some(start) => whole_id(agent, start).await?,
            None => String::new(),
        };
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        Ok(SignalFilter {
            container_id,
            tool: text(&self.tool),
            category: text(&self.category),
            verdict: self.verdict.map_or(v1::Verdict::Unspecified, Into::into).into(),
            min_severity: self.severity.map_or(v1::Severity::Unspecified, Into::into).into(),
            since: self.since.map(Time::to_proto),
            until: self.until.map(Time::to_proto),
            rule: text(&self.rule),
            image: text(&self.image),
            pod_namespace: text(&self.pod_namespace),
            pod_name: text(&self.pod),
            expression: text(&self.expression),
            triage_states: self.state.iter().map(|state| v1::TriageState::from(*state).into()).collect(),
            first_time_only: self.first_time,
        })
    }
}

/// A filter that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Asking the agent failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Several containers have such an id.
    #[error("--container {start}: {count} containers have an id that begins like this")]
    Ambiguous {
        /// What was given.
        start: String,
        /// How many there are.
        count: usize,
    },
}

/// The id of the one container whose id begins like this. An id that no container of the node has is taken as it is:
/// there may be signals of containers that are long gone.
async fn whole_id(agent: &Agent, start: &str) -> Result<String, FilterError> {
    let request = client::request(ListContainersRequest { include_ended: true });
    let response = agent.containers().list_containers(request).await.map_err(|status| agent.error(&status))?;
    let mut ids: Vec<_> = response.into_inner().containers.into_iter().map(|container| container.id).collect();
    ids.retain(|id| id.starts_with(start));
    ids.sort_unstable();
    ids.dedup();
    match ids.as_slice() {
        [id] => Ok(id.clone()),
        [] => Ok(start.to_owned()),
        ids if ids.iter().any(|id| id == start) => Ok(start.to_owned()),
        ids => Err(FilterError::Ambiguous { start: start.to_owned(), count: ids.len() }),
    }
}
