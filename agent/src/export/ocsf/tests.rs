//! Every object is held against the published schema: names, types, what is required, enums, captions' siblings.

use portcullis_proto::v1::network_operation::{Kind, Transport};

use super::*;
use crate::clock::timestamp;

const TIME_NS: u64 = 1_700_000_000_123_456_789;

fn schema() -> Value {
    serde_json::from_str(include_str!("schema.json")).unwrap()
}

/// Everything that is wrong with an object.
fn complaints(schema: &Value, kind: &Value, object: &Value, place: &str, out: &mut Vec<String>) {
    let (attributes, object) = (kind["attributes"].as_object().unwrap(), object.as_object().unwrap());
    for name in attributes.keys().filter(|name| attributes[*name]["required"] == true) {
        if !object.contains_key(name) {
            out.push(format!("{place}.{name} is required"));
        }
    }
    if let Some(one_of) = kind["at_least_one"].as_array()
        && !one_of.iter().any(|name| object.contains_key(name.as_str().unwrap()))
    {
        out.push(format!("{place} has none of {one_of:?}"));
    }
    for (name, value) in object {
        let place = format!("{place}.{name}");
        let Some(attribute) = attributes.get(name) else {
            out.push(format!("{place} is no attribute"));
            continue;
        };
        let values: Vec<&Value> = match value {
            Value::Array(values) if attribute["array"] == true => values.iter().collect(),
            _ if attribute["array"] == true => {
                out.push(format!("{place} is an array"));
                continue;
            }
            value => vec![value],
        };
        for value in values {
            judge(schema, attribute, value, &place, out);
        }
    }
}

fn judge(schema: &Value, attribute: &Value, value: &Value, place: &str, out: &mut Vec<String>) {
    let kind = attribute["type"].as_str().unwrap();
    let fits = match kind {
        "integer_t" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) || value.is_u64(),
        "long_t" | "timestamp_t" => value.as_i64().is_some(),
        "port_t" => value.as_u64().is_some_and(|port| port <= 65535),
        "boolean_t" => value.is_boolean(),
        "ip_t" => value.as_str().is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_ok()),
        "json_t" => true,
        "object" => value.is_object(),
        name if name.ends_with("_t") => value.is_string(),
        name => {
            complaints(schema, &schema["objects"][name], value, place, out);
            true
        }
    };
    if !fits {
        out.push(format!("{place} is no {kind}: {value}"));
    }
    let allowed = attribute["enum"].as_array();
    if allowed.is_some_and(|allowed| !allowed.iter().any(|one| one.as_str() == Some(&value.to_string()))) {
        out.push(format!("{place} can't be {value}"));
    }
}

fn check(signal: &v1::Signal, activity: Activity) -> Value {
    let node = Node { name: "node-1".into(), kernel: "6.12".into(), backend: "lsm".into(), cluster: "shop".into() };
    let finding: Value = serde_json::from_str(&to_json(signal, activity, &node).unwrap()).unwrap();
    let (schema, mut out) = (schema(), Vec::new());
    assert_eq!(schema["version"], VERSION);
    complaints(&schema, &schema["detection_finding"], &finding, "finding", &mut out);
    let profiles = finding["metadata"]["profiles"].as_array().unwrap();
    assert!(profiles.iter().all(|profile| schema["profiles"].as_array().unwrap().contains(profile)));
    assert!(out.is_empty(), "{out:#?}");
    finding
}

/// Everything that a signal can have.
fn full() -> v1::Signal {
    let at = || Some(timestamp(TIME_NS));
    let operation = |kind: Kind, transport: Transport, address: &str| v1::NetworkOperation {
        kind: kind.into(),
        transport: transport.into(),
        endpoint: Some(v1::Endpoint { address: address.into(), port: 4444 }),
        pid: 101,
        first_time: at(),
        ..v1::NetworkOperation::default()
    };
    let query = v1::NetworkOperation {
        dns_name: "long.example".into(),
        dns_type: "TXT".into(),
        ..operation(Kind::DnsQuery, Transport::Udp, "10.0.0.53")
    };
    v1::Signal {
        id: 7,
        rule: "net_util_in_container".into(),
        severity: v1::Severity::High.into(),
        verdict: v1::Verdict::Blocked.into(),
        time: at(),
        last_time: Some(timestamp(TIME_NS + 5_000_000_000)),
        count: 3,
        message: "nc blocked".into(),
        tool: Some(v1::Tool {
            id: "nc".into(),
            category: "netcat".into(),
            techniques: vec!["T1095".into(), "T1059.004".into()],
        }),
        identified_by: vec![v1::Identification::InvokedName.into()],
        container: Some(v1::Container {
            id: "c1".into(),
            containerd_namespace: "k8s.io".into(),
            image: "alpine:3".into(),
            pod: Some(v1::Pod {
                name: "web-1".into(),
                namespace: "shop".into(),
                container_name: "web".into(),
                uid: "2f1c".into(),
                ..v1::Pod::default()
            }),
            ..v1::Container::default()
        }),
        process: Some(v1::Process {
            pid: 100,
            container_pid: 7,
            uid: 1000,
            invoked_name: "nc".into(),
            exe: "/usr/bin/nc.openbsd".into(),
            argv: vec!["nc".into(), "-e".into(), "\u{fffd}\x1b[2J\n\"".into()],
            cwd: "/tmp".into(),
            start_time: at(),
            places: vec![v1::Place::Deleted.into()],
            ..v1::Process::default()
        }),
        lineage: vec![
            v1::Ancestor {
                pid: 99,
                exe: "/bin/sh".into(),
                argv: vec!["sh".into()],
                start_time: at(),
                ..Default::default()
            },
            v1::Ancestor { pid: 1, exe: "/sbin/init".into(), ..Default::default() },
        ],
        origin: v1::Origin::ExecSession.into(),
        policy: "default".into(),
        policy_rule: 2,
        remote: Some(v1::Endpoint { address: "10.0.0.1".into(), port: 4444 }),
        related: vec![5],
        suppressed: vec![v1::SuppressedCount { tool: "nc".into(), verdict: v1::Verdict::Killed.into(), count: 9 }],
        operation: Some(v1::Operation {
            measures: vec![v1::Measure::Freeze.into()],
            caller: Some(v1::Caller { pid: 5, ..v1::Caller::default() }),
            ..v1::Operation::default()
        }),
        novelty: Some(v1::Novelty { first_time: true, summary: "first".into(), ..v1::Novelty::default() }),
        network: Some(v1::NetworkActivity {
            operations: vec![
                operation(Kind::Connect, Transport::Tcp, "10.0.0.1"),
                operation(Kind::Listen, Transport::Tcp, "::"),
                query,
            ],
            omitted: 1,
        }),
        triage: Some(v1::Triage {
            state: v1::TriageState::Investigating.into(),
            note: "looking".into(),
            author: "ann".into(),
            time: Some(timestamp(TIME_NS + 9_000_000_000)),
            ..v1::Triage::default()
        }),
        ..v1::Signal::default()
    }
}

#[test]
fn a_full_signal_is_a_valid_finding() {
    let finding = check(&full(), Activity::Create);
    for (pointer, value) in [
        ("/class_uid", json!(2004)),
        ("/type_uid", json!(200_401)),
        ("/severity_id", json!(4)),
        ("/status_id", json!(2)),
        ("/action_id", json!(2)),
        ("/disposition_id", json!(2)),
        ("/time", json!(1_700_000_000_123_u64)),
        ("/count", json!(3)),
        ("/metadata/uid", json!("node-1/7/1700000000123456789")),
        ("/finding_info/attacks/1/technique/uid", json!("T1059")),
        ("/finding_info/attacks/1/sub_technique/uid", json!("T1059.004")),
        ("/evidences/0/process/cmd_line", json!("nc -e \u{fffd}\x1b[2J\n\"")),
        ("/evidences/0/process/parent_process/path", json!("/bin/sh")),
        ("/evidences/0/process/ancestry/1/pid", json!(1)),
        ("/evidences/0/dst_endpoint/port", json!(4444)),
        ("/evidences/1/api/operation", json!("net_util_in_container")),
        ("/evidences/3/src_endpoint/ip", json!("::")),
        ("/evidences/4/query/hostname", json!("long.example")),
        ("/resources/1/name", json!("web-1")),
        ("/unmapped/argv/2", json!("\u{fffd}\x1b[2J\n\"")),
        ("/unmapped/origin", json!("exec_session")),
    ] {
        assert_eq!(finding.pointer(pointer), Some(&value), "{pointer}");
    }
    // Each address once.
    assert_eq!(finding["observables"].as_array().unwrap().len(), 6);
}

#[test]
fn an_empty_signal_is_a_valid_finding() {
    for verdict in [v1::Verdict::Unspecified, v1::Verdict::WouldBlock, v1::Verdict::Killed] {
        let mut signal = v1::Signal { verdict: verdict.into(), ..v1::Signal::default() };
        check(&signal, Activity::Create);
        signal.container = Some(v1::Container { cgroup_id: 42, ..v1::Container::default() });
        signal.process = Some(v1::Process::default());
        check(&signal, Activity::Create);
    }
}

#[test]
fn an_update_is_about_the_same_finding() {
    let mut signal = full();
    let (first, update) = (check(&signal, Activity::Create), check(&signal, Activity::Update(77)));
    assert_eq!(first["finding_info"]["uid"], update["finding_info"]["uid"]);
    let mut renamed = signal.clone();
    renamed.node = Some(v1::Node { name: "node-0".into(), cluster: "store".into() });
    let renamed = check(&renamed, Activity::Create);
    assert_eq!(renamed["metadata"]["uid"], "node-0/7/1700000000123456789");
    assert_eq!(renamed["metadata"]["labels"], json!(["k8s.cluster.name:store"]));
    assert_eq!((&renamed["device"]["name"], &renamed["device"]["os"]), (&json!("node-0"), &first["device"]["os"]));
    assert_eq!(update["metadata"]["uid"], "node-1/7/1700000000123456789@77");
    assert_eq!((&update["type_uid"], &update["time"]), (&json!(200_402), &json!(1_700_000_009_123_u64)));
    for (state, status, activity) in [
        (v1::TriageState::Contained, 2, 2),
        (v1::TriageState::Expected, 3, 3),
        (v1::TriageState::Resolved, 4, 3),
        (v1::TriageState::Open, 1, 2),
    ] {
        signal.triage = Some(v1::Triage { state: state.into(), ..v1::Triage::default() });
        let update = check(&signal, Activity::Update(78));
        assert_eq!((&update["status_id"], &update["activity_id"]), (&json!(status), &json!(activity)));
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let (schema, mut out) = (schema(), Vec::new());
    let wrong = json!({"activity_id": 9, "clas_uid": 1, "time": "now", "metadata": {"version": 1}, "evidences": [{}]});
    complaints(&schema, &schema["detection_finding"], &wrong, "f", &mut out);
    for complaint in [
        "f.class_uid is required",
        "f.activity_id can't be 9",
        "f.clas_uid is no attribute",
        "f.time is no timestamp_t: \"now\"",
        "f.metadata.product is required",
        "f.metadata.version is no string_t: 1",
    ] {
        assert!(out.iter().any(|one| one == complaint), "{complaint}: {out:#?}");
    }
    assert!(out.iter().any(|one| one.starts_with("f.evidences has none of")), "{out:#?}");
}
