use crate::support::*;

/// Needs no agent.
#[test]
fn prints_what_a_catalogue_file_needs() {
    let node = Node::new();
    let file = node.directory.path().join("nc");
    std::fs::write(&file, "#!/bin/sh\n").unwrap();
    let file = file.to_str().unwrap();
    let output = node.run(&["fingerprint", "--note", "ours", file]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
    let [header, tool, value, note, end] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!([header, tool, end], ["[[fingerprint]]", "tool = \"nc\"", ""]);
    assert!(value.starts_with("value = \"") && value.len() == "value = \"\"".len() + 16, "{value}");
    assert_eq!(*note, format!("note = \"ours, from {file}, 10 bytes\""));

    let json = node.json(&["fingerprint", "--runs", "shell", file]);
    assert_eq!((&json[0]["runs"], &json[0]["tool"]), (&"shell".into(), &serde_json::Value::Null));
    let own = node.run(&["fingerprint", "--tool", "acme", file]);
    assert!(own.status.success() && stderr(&own).contains("no tool acme"), "{}", stderr(&own));
    let unknown = node.run(&["fingerprint", "/etc/passwd"]);
    assert_eq!((unknown.status.code(), stdout(&unknown)), (Some(1), String::new()));
    assert!(stderr(&unknown).contains("--tool ID or --runs KIND"), "{}", stderr(&unknown));
    assert_eq!(node.run(&["fingerprint", "--tool", "nc", "--runs", "shell", file]).status.code(), Some(2));
    assert_eq!(node.run(&["fingerprint"]).status.code(), Some(2));
}
