use portcullis_proto::v1::{self, ModeOrigin, Policy, Select};
use serde_json::{Value, json};
use tonic::Status;

use crate::support::*;

fn policies() -> Vec<Policy> {
    let select = Select {
        namespaces: vec!["shop".into(), "bank-*".into()],
        annotations: [("tier".to_owned(), "web".to_owned())].into(),
        ..Select::default()
    };
    vec![
        Policy {
            id: 0xbeef,
            name: "strict".into(),
            mode: v1::Mode::Enforce.into(),
            source: "/etc/portcullis/policies/strict.yaml".into(),
            mode_origin: ModeOrigin::Operator.into(),
            priority: 7,
            select: Some(select),
            containers: 3,
            require_backend: v1::Backend::Lsm.into(),
        },
        Policy {
            id: 1,
            name: "default".into(),
            mode: v1::Mode::Detect.into(),
            source: "shipped default".into(),
            mode_origin: ModeOrigin::File.into(),
            ..Policy::default()
        },
    ]
}

fn agent(data: Data) -> (Node, Agent, Data) {
    let data = Data { policies: policies(), ..data };
    let node = Node::new();
    let agent = Agent::start(&node, data.clone());
    (node, agent, data)
}

fn file(node: &Node, name: &str, text: &str) -> String {
    let path = node.directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_list_shows_what_is_in_force_and_why_it_is_not_newer() {
    let (node, _agent, _) = agent(Data { policy_error: format!("x.yaml:1:1: {HOSTILE}"), ..Data::default() });
    let output = node.run(&["policy", "list"]);
    assert_eq!(
        stdout(&output),
        "NAME     MODE     BY        CONTAINERS  SELECTS                          SOURCE\n\
         strict   enforce  operator  3           namespaces=shop,bank-* tier=web  /etc/portcullis/policies/strict.yaml\n\
         default  detect   file      0           all others                       shipped default\n"
    );
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("newer files can't be used") && stderr(&output).contains("x.yaml:1:1: "));
    assert_harmless(&stderr(&output));
    let output = node.run(&["policy", "list", "-o", "wide"]);
    assert!(stderr(&output).contains("2 changes moved 5 containers, 0 attempts failed; the last took 1.2ms"));
    let wide = stdout(&output);
    assert!(wide.contains("PRIORITY  BACKEND  ID") && wide.contains("7         lsm      0000beef"), "{wide}");

    let json = node.json(&["policy", "list"]);
    assert_eq!(
        json[0],
        json!({
            "name": "strict", "id": 0xbeef, "mode": "enforce", "modeOrigin": "operator", "priority": 7,
            "select": {"namespaces": ["shop", "bank-*"], "pods": [], "containers": [], "images": [], "annotations": {"tier": "web"}},
            "requireBackend": "lsm", "containers": 3, "source": "/etc/portcullis/policies/strict.yaml",
        })
    );
    assert_eq!((&json[1]["select"], &json[1]["requireBackend"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_policy_is_printed_byte_by_byte() {
    let (node, _agent, _) = agent(Data::default());
    assert_eq!(stdout(&node.run(&["policy", "get", "strict"])), "# \u{202e}\nkind: x\n", "a pipe gets every byte");
    let json = node.json(&["policy", "get", "strict"]);
    assert_eq!((&json["text"], &json["name"]), (&json!("# \u{202e}\nkind: x\n"), &json!("strict")));
    let missing = node.run(&["policy", "get", "no\u{202e}"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("portcullis policy list"), "{}", stderr(&missing));
    assert_harmless(&stderr(&missing));
}

#[test]
fn policies_are_applied_one_after_the_other() {
    let refuse = Status::invalid_argument("a.yaml:3:1: one\na.yaml:4:1: two \u{1b}[2J");
    let (node, _agent, data) = agent(Data { refuse: Some(refuse), ..Data::default() });
    let (bad, fine) = (file(&node, "bad.yaml", "kind: bad\n"), file(&node, "fine.yaml", "kind: fine\n"));
    let large = file(&node, "large.yaml", &"#".repeat((1 << 20) + 1));
    let output = node.run(&["policy", "apply", "--dry-run", &bad, &fine, &large, "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert_harmless(&stdout(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    let [first, second, third, fourth, fifth] = lines.as_slice() else { panic!("{text}") };
    assert_eq!([*first, *second], ["a.yaml:3:1: one", r"a.yaml:4:1: two \x1b[2J"]);
    assert_eq!(*third, "policy strict: created (dry run), mode enforce, for 3 running containers");
    assert!(fourth.starts_with(&format!("{large}:1:1: the file has more than")), "{fourth}");
    assert!(fifth.starts_with("/nonexistent: No such file"), "{fifth}");
    assert!(stderr(&output).contains("3 of 4 policies were refused"), "{}", stderr(&output));
    let applied = data.applied.lock().unwrap();
    assert_eq!(applied.len(), 2, "what is too large is not sent");
    assert_eq!((applied[1].yaml.as_str(), applied[1].file_name.as_str()), ("kind: fine\n", fine.as_str()));
    assert!(applied.iter().all(|request| request.dry_run && !request.overwrite));
    drop(applied);

    let json: Value =
        serde_json::from_slice(&node.run(&["policy", "apply", "-o", "json", &bad, &fine]).stdout).unwrap();
    assert_eq!(json[0]["errors"], json!(["a.yaml:3:1: one", "a.yaml:4:1: two \u{1b}[2J"]));
    assert_eq!((&json[1]["change"], &json[1]["policy"]["name"]), (&json!("created"), &json!("strict")));
    let overwrite = node.run(&["policy", "apply", "--overwrite", &fine]);
    assert_eq!((overwrite.status.code(), data.applied.lock().unwrap().last().unwrap().overwrite), (Some(0), true));
}

#[test]
fn policies_are_deleted_by_name() {
    let (node, _agent, data) = agent(Data::default());
    let output = node.run(&["policy", "delete", "strict", "gone"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "policy strict: deleted, it was for 3 running containers\n");
    assert!(stderr(&output).contains("there is no policy \"gone\""), "{}", stderr(&output));
    let dry = node.run(&["policy", "delete", "--dry-run", "strict", "-o", "json"]);
    let json: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert_eq!((&json[0]["deleted"], &json[0]["error"]), (&json!(false), &Value::Null));
    assert!(data.deleted.lock().unwrap()[2].dry_run);
}

#[test]
fn without_the_agent_they_say_so() {
    let node = Node::new();
    let policy = file(&node, "p.yaml", "kind: x\n");
    for arguments in [
        &["policy", "list"][..],
        &["policy", "get", "x"],
        &["policy", "apply", &policy],
        &["policy", "delete", "x"],
        &["policy", "report"],
        &["policy", "explain", "--", "nc"],
        &["policy", "suggest"],
        &["mode", "x", "enforce"],
    ] {
        let output = node.run(arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", stderr(&output));
    }
}
