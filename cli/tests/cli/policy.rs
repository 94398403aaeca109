use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use serde_json::json;

use crate::support::*;

const HEAD: &str = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {name: t}\n";
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/policies");

fn file(node: &Node, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = node.directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn shipped_policies_are_valid() {
    let node = Node::new();
    let mut files: Vec<String> =
        std::fs::read_dir(SHIPPED).unwrap().map(|entry| entry.unwrap().path().to_str().unwrap().to_owned()).collect();
    files.sort_unstable();
    let arguments: Vec<&str> = ["policy", "validate"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let output = node.run(&arguments);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{}", stdout(&output));
    assert!(stdout(&output).contains("/default.yaml: valid: policy default, mode detect\n"), "{}", stdout(&output));
    assert_eq!(stdout(&output).lines().count(), files.len());
}

/// Every error of every file, and what is right beside them.
#[test]
fn all_errors_of_all_files_are_told() {
    let node = Node::new();
    let rules = file(
        &node,
        "rules.yaml",
        format!(
            "{HEAD}spec:\n  mode: detect\n  rules:\n  - {{tools: [netcat], action: block}}\n  - {{categories: [dsn], action: block}}\n"
        ),
    );
    let broken = file(&node, "broken.yaml", format!("{HEAD}spec: [\n"));
    let latin = file(&node, "latin.yaml", b"# \xe9\n");
    let good = file(&node, "good.yaml", format!("{HEAD}spec: {{mode: enforce, rules: []}}\n"));
    let missing = node.directory.path().join("missing.yaml").display().to_string();
    let output = node.run(&["policy", "validate", &rules, &broken, &latin, &missing, &good]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "portcullis: 4 of 5 files are not valid\n");
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    let starts = [
        format!("{rules}:7:14: unknown tool \"netcat\"; this is a name of the tool \"nc\""),
        format!("{rules}:8:19: unknown category \"dsn\"; there are "),
        format!("{broken}:"),
        format!("{latin}:1:3: this is not UTF-8"),
        format!("{missing}: No such file or directory"),
        format!("{good}: valid: policy t, mode enforce"),
    ];
    assert_eq!(lines.len(), starts.len(), "{text}");
    for (line, start) in lines.iter().zip(&starts) {
        assert!(line.starts_with(start), "{line}");
    }

    let output = node.run(&["policy", "validate", &rules, &good, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json[0]["errors"][1]["line"], 8);
    assert_eq!((&json[0]["valid"], &json[0]["name"]), (&json!(false), &json!(null)));
    assert_eq!(json[1], json!({"file": good, "valid": true, "name": "t", "mode": "enforce", "errors": []}));
    assert_eq!(node.run(&["policy", "validate"]).status.code(), Some(2));
}

#[test]
fn a_dash_is_standard_input() {
    let node = Node::new();
    let run = |text: &[u8]| {
        let mut command = portcullis(&node.socket());
        command.args(["policy", "validate", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may have read enough before all is written.
        let _ = child.stdin.take().unwrap().write_all(text);
        child.wait_with_output().unwrap()
    };
    let good = run(format!("{HEAD}spec: {{mode: detect, rules: []}}\n").as_bytes());
    assert_eq!(stdout(&good), "stdin: valid: policy t, mode detect\n");
    let bad = run(b"x\n");
    assert!(stdout(&bad).starts_with("stdin:1:1: ") && bad.status.code() == Some(1), "{}", stdout(&bad));
    let large = run(&vec![b' '; 10 << 20]);
    assert!(stdout(&large).contains("more than the 1048576 bytes"), "{}", stdout(&large));
}

#[test]
fn tools_of_catalogue_files_are_known() {
    let node = Node::new();
    let policy =
        file(&node, "p.yaml", format!("{HEAD}spec: {{mode: detect, rules: [{{tools: [acme], action: block}}]}}\n"));
    let unknown = node.run(&["policy", "validate", &policy, "--catalog-dir", "/nonexistent"]);
    assert!(stdout(&unknown).contains("unknown tool \"acme\""), "{}", stdout(&unknown));
    file(&node, "acme.toml", "[category.http.tools]\nacme = {}\n");
    let directory = node.directory.path().to_str().unwrap();
    let known = node.run(&["policy", "validate", &policy, "--catalog-dir", directory]);
    assert!(known.status.success(), "{}", stdout(&known));
    file(&node, "bad.toml", "[category.http.tools]\nbad = 1\n");
    let broken = node.run(&["policy", "validate", &policy, "--catalog-dir", directory]);
    assert!(stderr(&broken).contains("bad.toml:2:7: "), "{}", stderr(&broken));
}

/// Runs the program with at most this much address space (KiB) and processor time (seconds).
fn confined(node: &Node, file: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_portcullis");
    let limits = "ulimit -v 262144 && ulimit -t 20 && exec \"$0\" policy validate \"$1\"";
    Command::new("sh").args(["-c", limits, program, file]).env("PORTCULLIS_SOCKET", node.socket()).output().unwrap()
}

#[test]
fn hostile_files_cost_little() {
    let node = Node::new();
    let mut bomb = vec!["a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned()];
    for level in 1..12 {
        bomb.push(format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", ")));
    }
    let list = |item: &str| {
        let items = item.repeat(1_040_000 / item.len());
        format!("{HEAD}spec: {{mode: detect, rules: [{{action: block, comm: [{items}]}}]}}\n")
    };
    let cases = [
        ("expected mapping", format!("spec: {}", "[".repeat(1_000_000))),
        ("unknown field", bomb.concat()),
        ("there may be 50000 values", list("a,")),
        // Each of its rules is wrong.
        (
            "unknown tool",
            format!("{HEAD}spec: {{mode: detect, rules: [{}]}}\n", "{tools: [a], action: block},".repeat(7000)),
        ),
        ("more than the 1048576 bytes", "#".repeat(10 << 20)),
        ("can't be a comm", list(&format!("\"{}\", ", r"a\u202e\e[2J\n".repeat(100)))),
    ];
    for (reason, text) in cases {
        let path = file(&node, "hostile.yaml", text);
        let output = confined(&node, &path);
        assert_eq!(output.status.code(), Some(1), "{reason}: {}", stderr(&output));
        assert_harmless(&stdout(&output));
        let first = stdout(&output).lines().next().unwrap().to_owned();
        assert!(first.contains(reason) && first.len() < 4096, "{first}");
    }
    // Longer than any disk.
    let endless = confined(&node, "/dev/zero");
    assert!(stdout(&endless).contains("more than the 1048576 bytes"), "{}", stdout(&endless));
}

#[test]
fn the_schema_is_json() {
    let node = Node::new();
    let schema: serde_json::Value = serde_json::from_slice(&node.run(&["policy", "schema"]).stdout).unwrap();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    assert_eq!(schema["definitions"]["Spec"]["additionalProperties"], false);
    let yaml = stdout(&node.run(&["policy", "schema", "-o", "yaml"]));
    assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), schema);
}
