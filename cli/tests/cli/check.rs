use portcullis_proto::v1::{self, GetStatusResponse};

use crate::support::*;

fn check(node: &Node, format: &str) -> std::process::Output {
    let directory = node.directory.path().to_str().unwrap();
    let config = format!("{directory}/config.toml");
    node.run(&[
        "check",
        "-o",
        format,
        "--run-dir",
        directory,
        "--containerd-state",
        directory,
        "--containerd-config",
        &config,
        "--containerd-socket",
        &config,
    ])
}

/// What the kernel offers differs from machine to machine: the code is compared with what is reported.
fn read(node: &Node) -> serde_json::Value {
    let output = check(node, "json");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed = report["checks"].as_array().unwrap().iter().any(|check| check["state"] == "failed");
    assert_eq!(report["ok"], !failed);
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    report
}

fn state<'a>(report: &'a serde_json::Value, name: &str) -> &'a str {
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
    check.unwrap_or_else(|| panic!("no check {name} in {report}"))["state"].as_str().unwrap()
}

#[test]
fn works_without_the_agent_and_fails() {
    let node = Node::new();
    let report = read(&node);
    assert_eq!(report["ok"], false);
    assert_eq!(report["agent"], serde_json::Value::Null);
    assert_eq!(state(&report, "agent"), "failed");
    assert_eq!(state(&report, "policyset"), "failed");
    assert_eq!(state(&report, "bundles"), "warning");
    let table = check(&node, "table");
    assert_eq!(table.status.code(), Some(1));
    let text = stdout(&table);
    assert!(text.contains("cannot reach portcullisd"), "{text}");
    assert!(text.contains("→ start it (systemctl start portcullisd)"), "{text}");
}

#[test]
fn shows_what_the_agent_says() {
    let node = Node::new();
    let status = GetStatusResponse {
        version: "1.2.3".into(),
        abi_version: portcullis_bpf::abi::ABI_VERSION,
        backend: v1::Backend::Tracepoint.into(),
        backend_reason: format!("bpf is not among the LSMs {HOSTILE}"),
        checks: vec![v1::Check {
            name: "store".into(),
            state: v1::check::State::Warning.into(),
            detail: "nearly full".into(),
            remedy: "raise max_bytes".into(),
        }],
        policies: vec![v1::Policy {
            id: 1,
            name: "default".into(),
            mode: v1::Mode::Detect.into(),
            source: "/etc/portcullis/policies/default.yaml".into(),
            ..Default::default()
        }],
        containers_unguarded: 1,
        losses: [("ring_full".into(), 5)].into(),
        ..Default::default()
    };
    let _agent = Agent::start(&node, Data { status, ..Data::default() });
    let report = read(&node);
    assert_eq!(report["backend"], "tracepoint");
    assert_eq!(report["agent"]["losses"]["ring_full"], 5);
    for (name, expected) in [("agent", "ok"), ("store", "warning"), ("losses", "warning"), ("containers", "warning")] {
        assert_eq!(state(&report, name), expected, "{name}");
    }
    let text = stdout(&check(&node, "table"));
    assert_harmless(&text);
    assert!(text.starts_with("backend  tracepoint: bpf is not among the LSMs"), "{text}");
    assert!(text.contains("policy   default (detect) from /etc/portcullis/policies/default.yaml"), "{text}");
    assert!(text.contains("→ raise max_bytes"), "{text}");
}

#[test]
fn help_tells_the_exit_codes() {
    let node = Node::new();
    assert!(stdout(&node.run(&["--help"])).contains("3  the agent (portcullisd) could not be reached"));
    assert!(stdout(&node.run(&["check", "--help"])).contains("1 when something failed"));
}
