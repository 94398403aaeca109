//! A signal as a Detection Finding of the Open Cybersecurity Schema Framework, version 1.8.0. Pure: what the node is called
//! comes with the call. `schema.json` is the part of the published schema that the tests hold every object against; it is made
//! by `scripts/lib/ocsf-schema.sh`.

mod objects;

use std::path::Path;

use portcullis_proto::v1;
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use self::objects::{
    Analytic, Api, Attack, Connection, Container, DetectionFinding, Device, Endpoint, Evidence, File, FindingInfo,
    Image, Metadata, Observable, Os, Policy, Process, ProcessEntity, Product, Query, RelatedEvent, Resource, Technique,
    User,
};
use crate::{clock, signal, text::enum_name};

/// Of the schema.
pub const VERSION: &str = "1.8.0";
const CLASS: u32 = 2004;
const CLASS_NAME: &str = "Detection Finding";

/// A value of an enum and what the schema calls it.
type Captioned = (u32, &'static str);

/// What the objects say of the node.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its name, unique in the fleet.
    pub name: String,
    /// Kernel release.
    pub kernel: String,
    /// Which backend sees and stops executions.
    pub backend: String,
    /// The cluster's name; empty when there is none.
    pub cluster: String,
}

/// What has happened to a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It is told for the first time.
    Create,
    /// Told before, it has changed: the change's revision.
    Update(u64),
}

/// A signal as a line of JSON, without the newline. `None` when it can't be encoded, which no signal is known to bring about.
pub fn to_json(signal: &v1::Signal, activity: Activity, node: &Node) -> Option<String> {
    // As it was called then: a finding keeps its identity when its node is given another name.
    let named = signal.node.clone().map(|v1::Node { name, cluster }| Node { name, cluster, ..node.clone() });
    serde_json::to_string(&finding(signal, activity, named.as_ref().unwrap_or(node))).ok()
}

/// Unique in the fleet, and the same for every event about a signal: the time tells a database from one that replaced it.
fn finding_uid(signal: &v1::Signal, node: &Node) -> String {
    let time = clock::ns(signal.time.as_ref());
    format!("{}/{}/{time}", node.name, signal.id)
}

fn finding(signal: &v1::Signal, activity: Activity, node: &Node) -> DetectionFinding {
    let (activity_id, activity_name) = activity_of(signal, activity);
    let (severity_id, severity) = severity(signal.severity());
    let (status_id, status) = status(signal);
    let (action, disposition) = outcome(signal.verdict()).unzip();
    let triage = signal.triage.as_ref();
    DetectionFinding {
        action: action.map(|(_, caption)| caption),
        action_id: action.map(|(id, _)| id),
        activity_id: Some(activity_id),
        activity_name: Some(activity_name),
        category_name: Some("Findings"),
        category_uid: Some(2),
        class_name: Some(CLASS_NAME),
        class_uid: Some(CLASS),
        comment: triage.and_then(|triage| text(&triage.note)),
        count: Some(signal.count.max(1)),
        device: Some(device(node)),
        disposition: disposition.map(|(_, caption)| caption),
        disposition_id: disposition.map(|(id, _)| id),
        end_time: milliseconds(signal.last_time.as_ref()),
        evidences: evidences(signal),
        finding_info: Some(finding_info(signal, node)),
        is_alert: Some(true),
        message: text(&signal.message),
        metadata: Some(Metadata {
            labels: text(&node.cluster).map(|cluster| format!("k8s.cluster.name:{cluster}")).into_iter().collect(),
            log_name: Some("portcullis.signals"),
            product: Some(Product {
                name: Some("Portcullis"),
                vendor_name: Some("Portcullis"),
                version: Some(env!("CARGO_PKG_VERSION")),
            }),
            profiles: vec!["container", "host", "security_control"],
            uid: Some(match activity {
                Activity::Create => finding_uid(signal, node),
                Activity::Update(revision) => format!("{}@{revision}", finding_uid(signal, node)),
            }),
            version: Some(VERSION),
        }),
        observables: observables(signal),
        policy: text(&signal.policy).map(|name| Policy { name: Some(name) }),
        resources: resources(signal),
        severity: Some(severity),
        severity_id: Some(severity_id),
        start_time: milliseconds(signal.time.as_ref()),
        status: Some(status),
        status_detail: triage.map(|triage| enum_name(triage.state().as_str_name(), "TRIAGE_STATE_")),
        status_id: Some(status_id),
        time: Some(event_time(signal, activity)),
        type_name: Some(format!("{CLASS_NAME}: {activity_name}")),
        type_uid: Some(u64::from(CLASS) * 100 + u64::from(activity_id)),
        unmapped: Some(unmapped(signal, node)),
    }
}

/// Of the event, not of the finding: an update has the time of what was last seen or said.
fn event_time(signal: &v1::Signal, activity: Activity) -> i64 {
    let first = milliseconds(signal.time.as_ref());
    let changed = [signal.last_time.as_ref(), signal.triage.as_ref().and_then(|triage| triage.time.as_ref())];
    let last = changed.into_iter().filter_map(milliseconds).max();
    match activity {
        Activity::Create => first,
        Activity::Update(_) => last.max(first),
    }
    .unwrap_or_default()
}

fn activity_of(signal: &v1::Signal, activity: Activity) -> Captioned {
    let state = signal.triage.as_ref().map(v1::Triage::state);
    match (activity, state) {
        (Activity::Create, _) => (1, "Create"),
        (Activity::Update(_), Some(v1::TriageState::Expected | v1::TriageState::Resolved)) => (3, "Close"),
        (Activity::Update(_), _) => (2, "Update"),
    }
}

fn severity(severity: v1::Severity) -> Captioned {
    match severity {
        v1::Severity::Unspecified => (0, "Unknown"),
        v1::Severity::Low => (2, "Low"),
        v1::Severity::Medium => (3, "Medium"),
        v1::Severity::High => (4, "High"),
        v1::Severity::Critical => (5, "Critical"),
    }
}

fn status(signal: &v1::Signal) -> Captioned {
    match signal.triage.as_ref().map_or(v1::TriageState::Open, v1::Triage::state) {
        v1::TriageState::Unspecified | v1::TriageState::Open => (1, "New"),
        v1::TriageState::Investigating | v1::TriageState::Contained => (2, "In Progress"),
        v1::TriageState::Expected => (3, "Suppressed"),
        v1::TriageState::Resolved => (4, "Resolved"),
    }
}

/// Action and disposition, each with its caption. `None`: nothing was judged.
fn outcome(verdict: v1::Verdict) -> Option<(Captioned, Captioned)> {
    match verdict {
        v1::Verdict::Unspecified => None,
        v1::Verdict::Detected | v1::Verdict::WouldBlock => Some(((3, "Observed"), (15, "Detected"))),
        v1::Verdict::Blocked | v1::Verdict::Killed => Some(((2, "Denied"), (2, "Blocked"))),
    }
}

fn finding_info(signal: &v1::Signal, node: &Node) -> FindingInfo {
    let tool = signal.tool.as_ref();
    let first = milliseconds(signal.time.as_ref());
    let title = match tool {
        Some(tool) if signal.rule == signal::RULE_NET_UTIL => format!("{}: {}", signal.rule, tool.id),
        _ => signal.rule.clone(),
    };
    let related = |id: &u64| RelatedEvent { r#type: Some("signal"), uid: Some(format!("{}/{id}", node.name)) };
    FindingInfo {
        analytic: Some(Analytic {
            name: Some(signal.rule.clone()),
            r#type: Some("Rule"),
            type_id: Some(1),
            uid: Some(signal.rule.clone()),
        }),
        attacks: tool.map(|tool| tool.techniques.iter().map(|id| attack(id)).collect()).unwrap_or_default(),
        created_time: first,
        first_seen_time: first,
        last_seen_time: milliseconds(signal.last_time.as_ref()).or(first),
        related_events: signal.related.iter().map(related).collect(),
        title: Some(title),
        types: tool.and_then(|tool| text(&tool.category)).into_iter().collect(),
        uid: Some(finding_uid(signal, node)),
    }
}

/// "T1059.004" is a sub-technique of "T1059".
fn attack(id: &str) -> Attack {
    let technique = |id: &str| Some(Technique { uid: Some(id.to_owned()) });
    match id.split_once('.') {
        Some((parent, _)) => Attack { technique: technique(parent), sub_technique: technique(id) },
        None => Attack { technique: technique(id), sub_technique: None },
    }
}

fn evidences(signal: &v1::Signal) -> Vec<Evidence> {
    let container = || signal.container.as_ref().and_then(container);
    let mut evidences = Vec::new();
    if let Some(seen) = &signal.process {
        let remote = signal.remote.as_ref();
        evidences.push(Evidence {
            connection_info: remote.map(|_| connection(true, v1::network_operation::Transport::Unspecified)),
            container: container(),
            dst_endpoint: remote.and_then(endpoint),
            name: Some("process"),
            process: Some(process(signal, seen)),
            ..Evidence::default()
        });
    }
    if signal.operation.is_some() {
        let api = Api { operation: Some(signal.rule.clone()) };
        evidences.push(Evidence {
            api: Some(api),
            container: container(),
            name: Some("operation"),
            ..Evidence::default()
        });
    }
    let operations = signal.network.iter().flat_map(|network| &network.operations);
    evidences.extend(operations.map(|operation| network(operation, container())));
    evidences
}

fn network(operation: &v1::NetworkOperation, container: Option<Container>) -> Evidence {
    use v1::network_operation::Kind;
    let kind = operation.kind();
    let own = matches!(kind, Kind::Bind | Kind::Listen);
    let (src_endpoint, dst_endpoint) = match operation.endpoint.as_ref().and_then(endpoint) {
        Some(endpoint) if own => (Some(endpoint), None),
        other => (None, other),
    };
    Evidence {
        connection_info: Some(connection(!own, operation.transport())),
        container,
        dst_endpoint,
        name: Some(match kind {
            Kind::Unspecified => "network",
            Kind::Connect => "connect",
            Kind::Send => "send",
            Kind::Bind => "bind",
            Kind::Listen => "listen",
            Kind::RawSocket => "raw_socket",
            Kind::DnsQuery => "dns_query",
        }),
        process: Some(Process { pid: Some(operation.pid), ..Process::default() }),
        query: text(&operation.dns_name)
            .map(|hostname| Query { hostname: Some(hostname), r#type: text(&operation.dns_type) }),
        src_endpoint,
        ..Evidence::default()
    }
}

fn connection(outbound: bool, transport: v1::network_operation::Transport) -> Connection {
    use v1::network_operation::Transport;
    let (direction_id, direction) = if outbound { (2, "Outbound") } else { (1, "Inbound") };
    // Numbers as IANA assigns them.
    let (protocol_num, protocol_name) = match transport {
        Transport::Tcp => (Some(6), Some("tcp")),
        Transport::Udp => (Some(17), Some("udp")),
        Transport::Unspecified | Transport::Other => (None, None),
    };
    Connection { direction: Some(direction), direction_id: Some(direction_id), protocol_name, protocol_num }
}

fn endpoint(endpoint: &v1::Endpoint) -> Option<Endpoint> {
    let ip = text(&endpoint.address)?;
    Some(Endpoint { ip: Some(ip), port: Some(endpoint.port) })
}

fn process(signal: &v1::Signal, process: &v1::Process) -> Process {
    let path = text(&process.exe).or_else(|| text(&process.filename));
    let name = text(&process.invoked_name).or_else(|| path.as_deref().and_then(file_name));
    let deleted = process.places().any(|place| place == v1::Place::Deleted);
    Process {
        ancestry: signal.lineage.iter().map(ancestor).collect(),
        cmd_line: text(&process.argv.join(" ")),
        container: signal.container.as_ref().and_then(container),
        created_time: milliseconds(process.start_time.as_ref()),
        file: path.as_deref().and_then(file_name).map(|name| File {
            is_deleted: deleted.then_some(true),
            name: Some(name),
            path: path.clone(),
            r#type: Some("Regular File"),
            type_id: Some(1),
        }),
        name,
        namespace_pid: Some(process.container_pid),
        parent_process: signal.lineage.first().map(|parent| Box::new(parent_process(parent))),
        path,
        pid: Some(process.pid),
        user: Some(User { uid: Some(process.uid.to_string()) }),
        working_directory: text(&process.cwd),
    }
}

fn parent_process(parent: &v1::Ancestor) -> Process {
    let ProcessEntity { cmd_line, created_time, name, path, pid } = ancestor(parent);
    Process {
        cmd_line,
        created_time,
        name,
        namespace_pid: Some(parent.container_pid),
        path,
        pid,
        user: Some(User { uid: Some(parent.uid.to_string()) }),
        ..Process::default()
    }
}

fn ancestor(ancestor: &v1::Ancestor) -> ProcessEntity {
    ProcessEntity {
        cmd_line: text(&ancestor.argv.join(" ")),
        created_time: milliseconds(ancestor.start_time.as_ref()),
        name: file_name(&ancestor.exe),
        path: text(&ancestor.exe),
        pid: Some(ancestor.pid),
    }
}

/// `None` for one of which only the cgroup is known.
fn container(container: &v1::Container) -> Option<Container> {
    let pod = container.pod.as_ref();
    Some(Container {
        image: text(&container.image).map(|image| Image { name: Some(image.clone()), uid: Some(image) }),
        name: pod.and_then(|pod| text(&pod.container_name)),
        orchestrator: pod.map(|_| "kubernetes"),
        pod_uuid: pod.and_then(|pod| text(&pod.uid)),
        runtime: Some("io.containerd.portcullis.v1"),
        uid: Some(text(&container.id)?),
    })
}

fn resources(signal: &v1::Signal) -> Vec<Resource> {
    let Some(container) = &signal.container else { return Vec::new() };
    let pod = container.pod.as_ref();
    let of_container = text(&container.id).map(|id| Resource {
        name: pod.and_then(|pod| text(&pod.container_name)),
        namespace: text(&container.containerd_namespace),
        r#type: Some("container"),
        uid: Some(id),
    });
    let of_pod = pod.and_then(|pod| {
        Some(Resource {
            name: Some(text(&pod.name)?),
            namespace: text(&pod.namespace),
            r#type: Some("pod"),
            uid: text(&pod.uid),
        })
    });
    of_container.into_iter().chain(of_pod).collect()
}

fn device(node: &Node) -> Device {
    Device {
        hostname: Some(node.name.clone()),
        name: Some(node.name.clone()),
        os: Some(Os {
            kernel_release: text(&node.kernel),
            name: Some("Linux"),
            r#type: Some("Linux"),
            type_id: Some(200),
        }),
        r#type: Some("Server"),
        type_id: Some(1),
    }
}

/// `name` is where in the finding the value stands.
fn observables(signal: &v1::Signal) -> Vec<Observable> {
    let mut observables = Vec::new();
    let mut add = |name, r#type, type_id, value: Option<String>| {
        let Some(value) = value else { return };
        let observable =
            Observable { name: Some(name), r#type: Some(r#type), type_id: Some(type_id), value: Some(value) };
        if !observables
            .iter()
            .any(|other: &Observable| (other.type_id, &other.value) == (Some(type_id), &observable.value))
        {
            observables.push(observable);
        }
    };
    if let Some(process) = &signal.process {
        add("evidences.process.name", "Process Name", 9, text(&process.invoked_name));
    }
    if let Some(container) = &signal.container {
        add("resources.uid", "Resource UID", 10, text(&container.id));
    }
    let operations = signal.network.iter().flat_map(|network| &network.operations);
    let (endpoints, names): (Vec<_>, Vec<_>) =
        operations.map(|operation| (operation.endpoint.as_ref(), text(&operation.dns_name))).unzip();
    for endpoint in signal.remote.as_ref().into_iter().chain(endpoints.into_iter().flatten()) {
        add("evidences.dst_endpoint.ip", "IP Address", 2, text(&endpoint.address));
    }
    for name in names {
        add("evidences.query.hostname", "Hostname", 1, name);
    }
    observables
}

/// What the schema has no place for, by the names of our own API.
fn unmapped(signal: &v1::Signal, node: &Node) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("signal_id".to_owned(), json!(signal.id));
    out.insert("rule".to_owned(), json!(signal.rule));
    out.insert("verdict".to_owned(), json!(enum_name(signal.verdict().as_str_name(), "VERDICT_")));
    out.insert("backend".to_owned(), json!(node.backend));
    out.insert("origin".to_owned(), json!(enum_name(signal.origin().as_str_name(), "ORIGIN_")));
    if let Some(tool) = &signal.tool {
        out.insert("tool".to_owned(), json!(tool.id));
        let identified: Vec<_> =
            signal.identified_by().map(|how| enum_name(how.as_str_name(), "IDENTIFICATION_")).collect();
        out.insert("identified_by".to_owned(), json!(identified));
    }
    if signal.policy_rule != 0 {
        out.insert("policy_rule".to_owned(), json!(signal.policy_rule));
    }
    if let Some(process) = &signal.process {
        out.insert("argv".to_owned(), json!(process.argv));
        out.insert("argv_truncated".to_owned(), json!(process.argv_truncated));
        out.insert("argv_unconfirmed".to_owned(), json!(process.argv_unconfirmed));
        let places: Vec<_> = process.places().map(|place| enum_name(place.as_str_name(), "PLACE_")).collect();
        out.insert("places".to_owned(), json!(places));
        out.insert("lineage_truncated".to_owned(), json!(signal.lineage_truncated));
    }
    if let Some(novelty) = &signal.novelty {
        out.insert(
            "novelty".to_owned(),
            json!({
                "first_time": novelty.first_time,
                "habitual": novelty.habitual,
                "days_seen": novelty.days_seen,
                "times_seen": novelty.times_seen,
                "summary": novelty.summary,
            }),
        );
    }
    if let Some(network) = signal.network.as_ref().filter(|network| network.omitted > 0) {
        out.insert("network_omitted".to_owned(), json!(network.omitted));
    }
    if let Some(triage) = &signal.triage {
        out.insert("triage_author".to_owned(), json!(triage.author));
    }
    if let Some(operation) = &signal.operation {
        let measures: Vec<_> =
            operation.measures().map(|measure| enum_name(measure.as_str_name(), "MEASURE_")).collect();
        let caller = operation.caller.as_ref().map(|caller| match caller.certificate.as_str() {
            "" => json!({"uid": caller.uid, "gid": caller.gid, "pid": caller.pid}),
            certificate => json!({"certificate": certificate, "serial": caller.serial}),
        });
        let told = json!({"measures": measures, "pid": operation.pid, "caller": caller, "error": operation.error});
        out.insert("operation".to_owned(), told);
    }
    if !signal.suppressed.is_empty() {
        let suppressed: Vec<_> = signal
            .suppressed
            .iter()
            .map(|counted| {
                let verdict = enum_name(counted.verdict().as_str_name(), "VERDICT_");
                json!({"tool": counted.tool, "verdict": verdict, "count": counted.count})
            })
            .collect();
        out.insert("suppressed".to_owned(), json!(suppressed));
    }
    out
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn file_name(path: &str) -> Option<String> {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned())
}

fn milliseconds(time: Option<&Timestamp>) -> Option<i64> {
    time.and_then(clock::from_timestamp).map(|ns| ns / 1_000_000)
}

#[cfg(test)]
mod tests;
