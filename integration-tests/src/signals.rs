//! What `portcullis signals list -o json` shows, as far as tests look at it. docs/cli.md documents the shape.

use serde::Deserialize;

/// One finding.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // The API's definition documents them; so do all below.
pub struct Signal {
    pub id: u64,
    pub rule: String,
    pub severity: String,
    pub verdict: String,
    pub tool: Option<Tool>,
    pub identified_by: Vec<String>,
    pub container: Option<Container>,
    pub process: Option<Process>,
    pub lineage: Vec<Ancestor>,
    pub origin: String,
    pub policy: String,
    pub policy_rule: u32,
    pub backend: String,
    pub message: String,
    pub remote: Option<Endpoint>,
    pub related: Vec<u64>,
    pub operation: Option<Operation>,
    pub count: u64,
    pub occurrences: Vec<Occurrence>,
    pub suppressed: Vec<SuppressedCount>,
    pub novelty: Option<Novelty>,
    pub network: Option<NetworkActivity>,
}

/// What is new of a signal.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Novelty {
    pub first_time: bool,
    pub days_seen: u32,
    pub times_seen: u64,
    pub habitual: bool,
    pub summary: String,
}

/// What its process did on the network.
#[derive(Debug, Clone, Default, Deserialize)]
#[allow(missing_docs)]
pub struct NetworkActivity {
    pub operations: Vec<NetworkOperation>,
    pub omitted: u64,
}

/// One operation, however often.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct NetworkOperation {
    pub kind: String,
    pub transport: String,
    pub endpoint: Option<Endpoint>,
    pub dns_name: String,
    pub dns_type: String,
    pub pid: u32,
    pub count: u64,
}

/// An event that was folded into a signal.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Occurrence {
    pub pid: u32,
    pub argv: Vec<String>,
}

/// What was told by number only.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct SuppressedCount {
    pub tool: String,
    pub verdict: String,
    pub count: u64,
}

/// What an operator asked for.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Operation {
    pub measures: Vec<String>,
    pub caller: Option<Caller>,
    pub error: String,
}

/// Who asked: a process, or a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Caller {
    pub uid: u32,
    pub pid: u32,
    pub certificate: String,
    pub serial: String,
}

/// The other end of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub address: String,
    pub port: u32,
}

impl Signal {
    /// The tool's id.
    pub fn tool(&self) -> &str {
        self.tool.as_ref().map_or("", |tool| &tool.id)
    }

    /// The container's id.
    pub fn container_id(&self) -> &str {
        self.container.as_ref().map_or("", |container| &container.id)
    }
}

/// A tool of the catalogue.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Tool {
    pub id: String,
    pub category: String,
    pub techniques: Vec<String>,
}

/// The process that executed it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Process {
    pub pid: u32,
    pub container_pid: u32,
    pub uid: u32,
    pub invoked_name: String,
    pub filename: String,
    pub exe: String,
    pub argv: Vec<String>,
    pub argc: u32,
    pub cwd: String,
    pub places: Vec<String>,
}

/// An image that led to the process.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Ancestor {
    pub pid: u32,
    pub exe: String,
    pub argv: Vec<String>,
}

/// A container.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Container {
    pub id: String,
    pub containerd_namespace: String,
    pub image: String,
    pub cgroup_id: u64,
    pub pod: Option<Pod>,
    pub mode: String,
    pub mode_reason: String,
    pub policy: String,
    pub policy_reason: String,
    pub guarded: bool,
    pub unguarded_reason: String,
    pub contents_unknown: String,
    /// Only in the list of containers.
    #[serde(default)]
    pub counters: Option<Counters>,
    /// The same.
    #[serde(default)]
    pub containment: Option<Containment>,
}

/// What operators have put in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Containment {
    pub frozen: Option<bool>,
    pub network_isolated: bool,
    pub locked: bool,
}

/// What the kernel counted for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub matched: u64,
    pub blocked: u64,
    pub killed: u64,
    pub lost: u64,
    pub excepted: u64,
    pub activities_lost: u64,
}

/// A container's pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub sandbox_id: String,
    pub container_name: String,
}
