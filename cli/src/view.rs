//! What `-o json` shows, and the one place where the API's messages are turned into it. docs/cli.md documents it.
//!
//! The shape is stable: names in lowerCamelCase, enums as short words, times in RFC 3339 with nanoseconds. Every field
//! is always there; what the agent does not know is `null`, an empty string, or the word `unknown`.

use std::{collections::BTreeMap, fmt};

use clap::{ValueEnum, builder::PossibleValue};
use portcullis_policy::policyset;
use portcullis_proto::v1;
use serde::{Serialize, Serializer};

use crate::time::Time;

/// An enum of the API with the word for each value. `Unknown` stands for unset and for values newer than this program.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($values:tt)+ }) => {
        words! { $(#[$doc])* $name: v1::$name { $($values)+ } }
    };
    // Where the API has it within a message.
    ($(#[$doc:meta])* $name:ident: $proto:ty { $($value:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { Unknown, $($value),+ }

        impl $name {
            /// Its word.
            pub fn word(self) -> &'static str {
                match self { Self::Unknown => "unknown", $(Self::$value => $word),+ }
            }
        }

        impl From<$proto> for $name {
            fn from(value: $proto) -> Self {
                match value { <$proto>::Unspecified => Self::Unknown, $(<$proto>::$value => Self::$value),+ }
            }
        }

        impl From<$name> for $proto {
            fn from(value: $name) -> Self {
                match value { $name::Unknown => Self::Unspecified, $($name::$value => Self::$value),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }

        impl ValueEnum for $name {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$value),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(PossibleValue::new(self.word()))
            }
        }
    };
}

words! {
    /// What was done.
    Verdict { Detected = "detected", WouldBlock = "would_block", Blocked = "blocked", Killed = "killed" }
}
words! {
    /// How bad it is.
    Severity { Low = "low", Medium = "medium", High = "high", Critical = "critical" }
}
words! {
    /// Whether a policy stops anything.
    Mode { Detect = "detect", Enforce = "enforce" }
}
words! {
    /// How the kernel side works.
    Backend { Lsm = "lsm", Tracepoint = "tracepoint" }
}
words! {
    /// How a tool was recognised.
    Identification {
        InvokedName = "invoked_name",
        ResolvedName = "resolved_name",
        Fingerprint = "fingerprint",
        Applet = "applet",
        Loader = "loader",
        Mapping = "mapping",
        Stdio = "stdio",
        Place = "place",
        Socket = "socket",
        Pattern = "pattern"
    }
}
words! {
    /// A remarkable place of an executed file.
    Place {
        WritableDirectory = "writable_directory",
        TemporaryDirectory = "temporary_directory",
        UpperLayer = "upper_layer",
        Memfd = "memfd",
        Deleted = "deleted"
    }
}
words! {
    /// What people make of a signal.
    TriageState {
        Open = "open",
        Expected = "expected",
        Investigating = "investigating",
        Contained = "contained",
        Resolved = "resolved"
    }
}
words! {
    /// How a process came to be in its container.
    Origin { Container = "container", ExecSession = "exec_session", Probe = "probe" }
}

words! {
    /// What a rule says is done about a match.
    Action { Ignore = "ignore", Alert = "alert", Block = "block" }
}
words! {
    /// Where a policy's mode comes from.
    ModeOrigin { File = "file", Operator = "operator" }
}
words! {
    /// What becomes of a policy's file.
    PolicyChange { Created = "created", Replaced = "replaced", None = "unchanged" }
}

impl From<policyset::Mode> for Mode {
    fn from(mode: policyset::Mode) -> Self {
        match mode {
            policyset::Mode::Detect => Self::Detect,
            policyset::Mode::Enforce => Self::Enforce,
        }
    }
}

words! {
    /// What an operator does to a container.
    Measure {
        Freeze = "freeze",
        Kill = "kill",
        KillProcess = "kill-process",
        IsolateNetwork = "isolate-network",
        Lock = "lock"
    }
}

words! {
    /// By which protocol.
    Transport: v1::network_operation::Transport { Tcp = "tcp", Udp = "udp", Other = "other" }
}
words! {
    /// What a process does on the network.
    Kind: v1::network_operation::Kind {
        Connect = "connect",
        Send = "send",
        Bind = "bind",
        Listen = "listen",
        RawSocket = "raw_socket",
        DnsQuery = "dns_query"
    }
}

fn time(time: Option<prost_types::Timestamp>) -> Option<Time> {
    time.as_ref().and_then(Time::from_proto)
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // The API's definition documents them; so do all below.
pub struct Signal {
    pub id: u64,
    pub rule: String,
    pub severity: Severity,
    pub verdict: Verdict,
    pub time: Option<Time>,
    pub tool: Option<Tool>,
    pub identified_by: Vec<Identification>,
    pub container: Option<Container>,
    pub process: Option<Process>,
    pub lineage: Vec<Ancestor>,
    pub lineage_truncated: bool,
    pub origin: Origin,
    pub policy: String,
    pub policy_rule: u32,
    pub backend: Backend,
    pub message: String,
    pub remote: Option<Endpoint>,
    pub related: Vec<u64>,
    pub operation: Option<Operation>,
    pub triage: Option<Triage>,
    pub count: u64,
    pub last_time: Option<Time>,
    pub occurrences: Vec<Occurrence>,
    pub suppressed: Vec<SuppressedCount>,
    pub novelty: Option<Novelty>,
    pub network: Option<NetworkActivity>,
    pub node: Option<Node>,
}

/// What its signals call a node.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Node {
    pub name: String,
    pub cluster: String,
}

impl Node {
    /// For people.
    pub fn title(&self) -> String {
        let Self { name, cluster } = self;
        if cluster.is_empty() { name.clone() } else { format!("{name} of cluster {cluster}") }
    }
}

impl From<v1::Node> for Node {
    fn from(v1::Node { name, cluster }: v1::Node) -> Self {
        Self { name, cluster }
    }
}

/// Whether its workload does such a thing habitually.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Novelty {
    pub first_time: bool,
    pub first_seen: Option<Time>,
    pub last_seen: Option<Time>,
    pub days_seen: u32,
    pub times_seen: u64,
    pub workload_known_since: Option<Time>,
    pub habitual: bool,
    pub summary: String,
}

/// What a signal's process, and what it started, did on the network.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkActivity {
    pub operations: Vec<NetworkOperation>,
    pub omitted: u64,
}

/// One operation, however often.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkOperation {
    pub kind: Kind,
    pub transport: Transport,
    pub endpoint: Option<Endpoint>,
    pub dns_name: String,
    pub dns_type: String,
    pub pid: u32,
    pub first_time: Option<Time>,
    pub last_time: Option<Time>,
    pub count: u64,
}

/// An event that was folded into a signal.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Occurrence {
    pub pid: u32,
    pub time: Option<Time>,
    pub argv: Vec<String>,
    pub argv_truncated: bool,
}

/// What was told by number only.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SuppressedCount {
    pub tool: String,
    pub verdict: Verdict,
    pub count: u64,
}

/// What has become of a signal since it was stored.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SignalUpdate {
    pub id: u64,
    pub count: u64,
    pub last_time: Option<Time>,
    pub triage: Option<Triage>,
    pub network: Option<NetworkActivity>,
}

/// What people make of a signal.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Triage {
    pub state: TriageState,
    pub note: String,
    pub author: String,
    pub caller: Option<Caller>,
    pub time: Option<Time>,
    pub earlier: Vec<Triage>,
}

/// Signals that a watch has not shown.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    pub first_id: u64,
    pub last_id: u64,
    /// Unknown for a gap.
    pub signals: Option<u64>,
    pub reason: String,
}

/// What an operator asked for.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub measures: Vec<Measure>,
    pub pid: u32,
    pub caller: Option<Caller>,
    pub error: String,
}

/// Who asked: a process, or a certificate.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub certificate: String,
    pub serial: String,
}

/// The other end of a socket.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub address: String,
    pub port: u32,
}

/// A tool of the catalogue.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tool {
    pub id: String,
    pub category: String,
    pub techniques: Vec<String>,
}

/// The process that executed it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_excessive_bools)] // As the API has them.
pub struct Process {
    pub pid: u32,
    pub tid: u32,
    pub container_pid: u32,
    pub uid: u32,
    pub gid: u32,
    pub invoked_name: String,
    pub filename: String,
    pub filename_truncated: bool,
    pub exe: String,
    pub exe_truncated: bool,
    pub argv: Vec<String>,
    pub argc: u32,
    pub argv_truncated: bool,
    pub argv_unconfirmed: bool,
    pub cwd: String,
    pub cwd_truncated: bool,
    pub tty: String,
    pub start_time: Option<Time>,
    pub places: Vec<Place>,
}

/// An image that led to the process.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ancestor {
    pub pid: u32,
    pub container_pid: u32,
    pub uid: u32,
    pub exe: String,
    pub exe_truncated: bool,
    pub argv: Vec<String>,
    pub argv_truncated: bool,
    pub start_time: Option<Time>,
}

/// A container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub id: String,
    pub containerd_namespace: String,
    pub image: String,
    pub cgroup_id: u64,
    pub pod: Option<Pod>,
    pub mode: Mode,
    pub mode_reason: String,
    pub policy: String,
    pub policy_reason: String,
    pub backend: Backend,
    pub guarded: bool,
    pub unguarded_reason: String,
    pub contents_unknown: String,
    pub created: Option<Time>,
    pub ended: Option<Time>,
    pub counters: Option<Counters>,
    pub containment: Option<Containment>,
}

/// What operators have put in effect.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Containment {
    /// Not known when containerd did not say.
    pub frozen: Option<bool>,
    pub network_isolated: bool,
    pub locked: bool,
}

impl Containment {
    /// For people; empty when nothing is in effect.
    pub fn words(self) -> String {
        let frozen = match self.frozen {
            Some(true) => Some("frozen"),
            Some(false) => None,
            None => Some("perhaps frozen (containerd does not answer)"),
        };
        let isolated = self.network_isolated.then_some("network isolated");
        let words: Vec<_> = [frozen, isolated, self.locked.then_some("locked")].into_iter().flatten().collect();
        words.join(", ")
    }
}

/// Its Kubernetes pod.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub sandbox_id: String,
    pub container_name: String,
}

/// A policy in force.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub name: String,
    pub id: u32,
    pub mode: Mode,
    pub mode_origin: ModeOrigin,
    pub priority: i32,
    pub select: Option<Select>,
    pub require_backend: Option<Backend>,
    pub containers: u64,
    pub source: String,
}

/// Which containers a policy is for: globs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Select {
    pub namespaces: Vec<String>,
    pub pods: Vec<String>,
    pub containers: Vec<String>,
    pub images: Vec<String>,
    pub annotations: BTreeMap<String, String>,
}

/// What the kernel counted for a container.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub matched: u64,
    pub blocked: u64,
    pub killed: u64,
    pub lost: u64,
    pub excepted: u64,
    pub activities_lost: u64,
}

impl From<v1::Signal> for Signal {
    fn from(signal: v1::Signal) -> Self {
        Self {
            id: signal.id,
            severity: signal.severity().into(),
            verdict: signal.verdict().into(),
            identified_by: signal.identified_by().map(Into::into).collect(),
            origin: signal.origin().into(),
            backend: signal.backend().into(),
            rule: signal.rule,
            time: time(signal.time),
            tool: signal.tool.map(Into::into),
            container: signal.container.map(Into::into),
            process: signal.process.map(Into::into),
            lineage: signal.lineage.into_iter().map(Into::into).collect(),
            lineage_truncated: signal.lineage_truncated,
            policy: signal.policy,
            policy_rule: signal.policy_rule,
            message: signal.message,
            remote: signal.remote.map(Into::into),
            related: signal.related,
            operation: signal.operation.map(Into::into),
            triage: signal.triage.map(Into::into),
            count: signal.count,
            last_time: time(signal.last_time),
            occurrences: signal.occurrences.into_iter().map(Into::into).collect(),
            suppressed: signal.suppressed.into_iter().map(Into::into).collect(),
            novelty: signal.novelty.map(Into::into),
            network: signal.network.map(Into::into),
            node: signal.node.map(Into::into),
        }
    }
}

impl From<v1::Novelty> for Novelty {
    fn from(novelty: v1::Novelty) -> Self {
        Self {
            first_time: novelty.first_time,
            first_seen: time(novelty.first_seen),
            last_seen: time(novelty.last_seen),
            days_seen: novelty.days_seen,
            times_seen: novelty.times_seen,
            workload_known_since: time(novelty.workload_known_since),
            habitual: novelty.habitual,
            summary: novelty.summary,
        }
    }
}

impl From<v1::Operation> for Operation {
    fn from(operation: v1::Operation) -> Self {
        Self {
            measures: operation.measures().map(Into::into).collect(),
            pid: operation.pid,
            caller: operation.caller.map(Into::into),
            error: operation.error,
        }
    }
}

impl From<v1::Occurrence> for Occurrence {
    fn from(occurrence: v1::Occurrence) -> Self {
        Self {
            pid: occurrence.pid,
            time: time(occurrence.time),
            argv: occurrence.argv,
            argv_truncated: occurrence.argv_truncated,
        }
    }
}

impl From<v1::SuppressedCount> for SuppressedCount {
    fn from(suppressed: v1::SuppressedCount) -> Self {
        Self { verdict: suppressed.verdict().into(), tool: suppressed.tool, count: suppressed.count }
    }
}

impl From<v1::Endpoint> for Endpoint {
    fn from(endpoint: v1::Endpoint) -> Self {
        Self { address: endpoint.address, port: endpoint.port }
    }
}

impl From<v1::NetworkActivity> for NetworkActivity {
    fn from(activity: v1::NetworkActivity) -> Self {
        Self { operations: activity.operations.into_iter().map(Into::into).collect(), omitted: activity.omitted }
    }
}

impl From<v1::NetworkOperation> for NetworkOperation {
    fn from(operation: v1::NetworkOperation) -> Self {
        Self {
            kind: operation.kind().into(),
            transport: operation.transport().into(),
            endpoint: operation.endpoint.map(Into::into),
            dns_name: operation.dns_name,
            dns_type: operation.dns_type,
            pid: operation.pid,
            first_time: time(operation.first_time),
            last_time: time(operation.last_time),
            count: operation.count,
        }
    }
}

impl From<v1::SignalUpdate> for SignalUpdate {
    fn from(update: v1::SignalUpdate) -> Self {
        Self {
            id: update.id,
            count: update.count,
            last_time: time(update.last_time),
            triage: update.triage.map(Into::into),
            network: update.network.map(Into::into),
        }
    }
}

impl From<v1::Triage> for Triage {
    fn from(triage: v1::Triage) -> Self {
        Self {
            state: triage.state().into(),
            note: triage.note,
            author: triage.author,
            caller: triage.caller.map(Into::into),
            time: time(triage.time),
            earlier: triage.earlier.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::Caller> for Caller {
    fn from(v1::Caller { uid, gid, pid, certificate, serial }: v1::Caller) -> Self {
        Self { uid, gid, pid, certificate, serial }
    }
}

impl From<v1::WatchGap> for LeftOut {
    fn from(gap: v1::WatchGap) -> Self {
        Self { first_id: gap.first_id, last_id: gap.last_id, signals: None, reason: gap.reason }
    }
}

impl From<v1::WatchThrottled> for LeftOut {
    fn from(throttled: v1::WatchThrottled) -> Self {
        let v1::WatchThrottled { signals, first_id, last_id } = throttled;
        Self { first_id, last_id, signals: Some(signals), reason: "--max-per-second".to_owned() }
    }
}

impl From<v1::Tool> for Tool {
    fn from(tool: v1::Tool) -> Self {
        Self { id: tool.id, category: tool.category, techniques: tool.techniques }
    }
}

impl From<v1::Process> for Process {
    fn from(process: v1::Process) -> Self {
        Self {
            places: process.places().map(Into::into).collect(),
            pid: process.pid,
            tid: process.tid,
            container_pid: process.container_pid,
            uid: process.uid,
            gid: process.gid,
            invoked_name: process.invoked_name,
            filename: process.filename,
            filename_truncated: process.filename_truncated,
            exe: process.exe,
            exe_truncated: process.exe_truncated,
            argv: process.argv,
            argc: process.argc,
            argv_truncated: process.argv_truncated,
            argv_unconfirmed: process.argv_unconfirmed,
            cwd: process.cwd,
            cwd_truncated: process.cwd_truncated,
            tty: process.tty,
            start_time: time(process.start_time),
        }
    }
}

impl From<v1::Ancestor> for Ancestor {
    fn from(ancestor: v1::Ancestor) -> Self {
        Self {
            pid: ancestor.pid,
            container_pid: ancestor.container_pid,
            uid: ancestor.uid,
            exe: ancestor.exe,
            exe_truncated: ancestor.exe_truncated,
            argv: ancestor.argv,
            argv_truncated: ancestor.argv_truncated,
            start_time: time(ancestor.start_time),
        }
    }
}

impl From<v1::Container> for Container {
    fn from(container: v1::Container) -> Self {
        Self {
            mode: container.mode().into(),
            backend: container.backend().into(),
            id: container.id,
            containerd_namespace: container.containerd_namespace,
            image: container.image,
            cgroup_id: container.cgroup_id,
            pod: container.pod.map(Into::into),
            mode_reason: container.mode_reason,
            policy: container.policy,
            policy_reason: container.policy_reason,
            guarded: container.guarded,
            unguarded_reason: container.unguarded_reason,
            contents_unknown: container.contents_unknown,
            created: time(container.created),
            ended: time(container.ended),
            counters: container.counters.map(Into::into),
            containment: container.containment.map(Into::into),
        }
    }
}

impl From<v1::Containment> for Containment {
    fn from(containment: v1::Containment) -> Self {
        let v1::Containment { frozen, network_isolated, locked } = containment;
        Self { frozen, network_isolated, locked }
    }
}

impl From<v1::Pod> for Pod {
    fn from(pod: v1::Pod) -> Self {
        Self {
            name: pod.name,
            namespace: pod.namespace,
            uid: pod.uid,
            sandbox_id: pod.sandbox_id,
            container_name: pod.container_name,
        }
    }
}

impl From<v1::Policy> for Policy {
    fn from(policy: v1::Policy) -> Self {
        let backend = Some(policy.require_backend().into()).filter(|backend| *backend != Backend::Unknown);
        Self {
            mode: policy.mode().into(),
            mode_origin: policy.mode_origin().into(),
            require_backend: backend,
            name: policy.name,
            id: policy.id,
            priority: policy.priority,
            select: policy.select.map(Into::into),
            containers: policy.containers,
            source: policy.source,
        }
    }
}

impl From<v1::Select> for Select {
    fn from(select: v1::Select) -> Self {
        Self {
            namespaces: select.namespaces,
            pods: select.pods,
            containers: select.containers,
            images: select.images,
            annotations: select.annotations.into_iter().collect(),
        }
    }
}

impl From<v1::Counters> for Counters {
    fn from(counters: v1::Counters) -> Self {
        let v1::Counters { matched, blocked, killed, lost, excepted, activities_lost } = counters;
        Self { matched, blocked, killed, lost, excepted, activities_lost }
    }
}
