use portcullis_proto::v1::{Container, Mode, Policy, set_mode_request::Target};
use serde_json::json;

use crate::support::*;

fn of(id: &str, namespace: &str) -> Container {
    Container { id: id.into(), containerd_namespace: namespace.into(), pod: None, ..container() }
}

fn agent(containers: Vec<Container>) -> (Node, Agent, Data) {
    let policy = |name: &str| Policy { name: name.into(), ..Policy::default() };
    let policies = vec![policy("web"), policy("default")];
    let data = Data { containers, policies, ..Data::default() };
    let node = Node::new();
    let agent = Agent::start(&node, data.clone());
    (node, agent, data)
}

/// The container that was last asked for.
fn asked(data: &Data) -> (String, String) {
    match data.modes.lock().unwrap().pop().unwrap().target {
        Some(Target::Container(container)) => (container.id, container.containerd_namespace),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policys_mode_is_set_and_ended() {
    let (node, _agent, data) = agent(vec![container()]);
    let output = node.run(&["mode", "default", "enforce"]);
    assert_eq!(stdout(&output), "policy default: mode enforce (by operator), 1 containers changed\n");
    let json = node.json(&["mode", "default", "default"]);
    let expected = json!({"policy": "default", "container": null, "mode": "detect", "modeReason": "policy", "containersChanged": 1});
    assert_eq!(json, expected);
    let modes: Vec<i32> = data.modes.lock().unwrap().iter().map(|request| request.mode).collect();
    assert_eq!(modes, [Mode::Enforce as i32, Mode::Unspecified as i32]);
    assert_eq!(node.run(&["mode", "default", "block"]).status.code(), Some(2));
    assert_eq!(node.run(&["mode", "default"]).status.code(), Some(2));
    assert_eq!(node.run(&["mode", "x", "enforce", "--policy", "--container"]).status.code(), Some(2));
}

#[test]
fn a_container_is_found_by_the_beginning_of_its_id() {
    let ids = ["abc1", "abc2", "abc", "xyz"];
    let mut containers: Vec<Container> = ids.iter().map(|id| of(id, "default")).collect();
    containers.push(of("xyz", "other"));
    let (node, _agent, data) = agent(containers);
    for (target, id) in [("abc1", "abc1"), ("abc", "abc")] {
        let output = node.run(&["mode", target, "detect"]);
        assert_eq!(
            stdout(&output),
            format!("container {id}: mode detect (by operator), changed\n"),
            "{}",
            stderr(&output)
        );
        assert_eq!(asked(&data), (id.to_owned(), "default".to_owned()));
    }
    let error = |arguments: &[&str]| {
        let output = node.run(&[&["mode"], arguments, &["enforce"]].concat());
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()), "{arguments:?}");
        stderr(&output)
    };
    let several = error(&["ab"]);
    assert!(several.contains("several containers: abc1 (default), abc2 (default), abc (default)"), "{several}");
    let twins = error(&["xyz"]);
    assert!(twins.contains("xyz (default), xyz (other)") && twins.contains("--namespace"), "{twins}");
    assert!(node.run(&["mode", "xyz", "enforce", "--namespace", "other"]).status.success());
    assert_eq!(asked(&data), ("xyz".to_owned(), "other".to_owned()));
    for (arguments, what) in [
        (&["nothing"][..], "no policy and no running container nothing"),
        (&["nothing", "--policy"], "no policy nothing"),
        (&["nothing", "--container"], "no running container nothing"),
        (&["abc1", "--policy"], "no policy abc1"),
        (&["abc1", "--namespace", "other"], "no running container abc1"),
    ] {
        assert!(error(arguments).contains(what), "{}", error(arguments));
    }
    assert!(data.modes.lock().unwrap().is_empty(), "nothing was set");
}

#[test]
fn a_policy_and_a_container_of_one_name_are_told_apart() {
    let (node, _agent, data) = agent(vec![of("web-1", "default")]);
    let output = node.run(&["mode", "web", "enforce"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--policy or --container") && stderr(&output).contains("web-1 (default)"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&node.run(&["mode", "web", "enforce", "--policy"])).starts_with("policy web: "));
    assert!(stdout(&node.run(&["mode", "web", "enforce", "--container"])).starts_with("container web-1: "));
    assert_eq!(data.modes.lock().unwrap().len(), 2);
}

#[test]
fn many_candidates_are_counted_and_hostile_ones_harmless() {
    let mut containers: Vec<Container> = (0..30).map(|number| of(&format!("c{number}"), HOSTILE)).collect();
    containers[0].id = format!("c{HOSTILE}");
    let (node, _agent, _) = agent(containers);
    let output = node.run(&["mode", "c", "enforce"]);
    assert!(stderr(&output).contains("and 20 more"), "{}", stderr(&output));
    assert_harmless(&stderr(&output));
    let refused = Data {
        refuse: Some(tonic::Status::failed_precondition(HOSTILE)),
        containers: vec![of("c", "x")],
        ..Data::default()
    };
    let node = Node::new();
    let _agent = Agent::start(&node, refused);
    let output = node.run(&["mode", "c", "enforce"]);
    assert_eq!(output.status.code(), Some(1));
    assert_harmless(&stderr(&output));
}
