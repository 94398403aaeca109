use portcullis_proto::v1::{Container, Measure};

use crate::support::*;

#[test]
fn takes_one_measure_of_one_container() {
    let (node, data) = (Node::new(), Data { containers: vec![container()], ..Data::default() });
    let _agent = Agent::start(&node, data.clone());
    for (options, measure, pid) in [
        (&["--freeze"][..], Measure::Freeze, 0),
        (&["--kill"], Measure::Kill, 0),
        (&["--kill-process", "77"], Measure::KillProcess, 77),
        (&["--isolate-network"], Measure::IsolateNetwork, 0),
        (&["--lock"], Measure::Lock, 0),
    ] {
        let output = node.run(&[&["contain", "0123"], options].concat());
        let said = format!("{CONTAINER_ID}: perhaps frozen (containerd does not answer), locked\n");
        assert_eq!((stdout(&output), stderr(&output)), (said, String::new()));
        let asked = data.contained.lock().unwrap().pop().unwrap();
        assert_eq!((asked.measure(), asked.pid), (measure, pid));
        assert_eq!((asked.container_id.as_str(), asked.containerd_namespace.as_str()), (CONTAINER_ID, "k8s.io"));
    }
    let json = node.json(&["contain", CONTAINER_ID, "--lock"]);
    let containment = &json["containment"];
    assert_eq!((&containment["locked"], &containment["frozen"]), (&true.into(), &serde_json::Value::Null));
    for senseless in [&[][..], &["--lock", "--freeze"], &["--kill-process", "0"], &["--kill-process", "x"]] {
        let output = node.run(&[&["contain", "0123"], senseless].concat());
        assert_eq!(output.status.code(), Some(2), "{senseless:?}: {}", stderr(&output));
    }
}

#[test]
fn takes_measures_back() {
    let (node, data) = (Node::new(), Data { containers: vec![container()], ..Data::default() });
    let _agent = Agent::start(&node, data.clone());
    for (options, measures) in [
        (&[][..], vec![]),
        (&["--all"], vec![]),
        (&["--lock", "--freeze"], vec![Measure::Freeze, Measure::Lock]),
        (&["--isolate-network"], vec![Measure::IsolateNetwork]),
    ] {
        let output = node.run(&[&["release", "0123"], options].concat());
        assert_eq!(stdout(&output), format!("{CONTAINER_ID}: nothing in effect\n"), "{}", stderr(&output));
        let asked = data.released.lock().unwrap().pop().unwrap();
        assert_eq!(asked.measures().collect::<Vec<_>>(), measures, "{options:?}");
    }
    assert_eq!(node.run(&["release", "0123", "--all", "--lock"]).status.code(), Some(2));
}

#[test]
fn it_must_be_clear_which_container_is_meant() {
    let other = Container { containerd_namespace: "default".into(), ..container() };
    let ended = Container { id: "0129".into(), ended: container().created, ..container() };
    let node = Node::new();
    let data = Data { containers: vec![container(), other, ended], ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    let ambiguous = node.run(&["contain", "012", "--lock"]);
    assert_eq!(ambiguous.status.code(), Some(1));
    let said = format!("2 containers are meant: give more of the id, or --namespace: k8s.io/{CONTAINER_ID}, ");
    assert!(stderr(&ambiguous).contains(&said), "{}", stderr(&ambiguous));
    assert!(node.run(&["contain", "012", "--lock", "--namespace", "default"]).status.success());
    assert_eq!(data.contained.lock().unwrap().pop().unwrap().containerd_namespace, "default");
    let gone = node.run(&["contain", "nobody", "--freeze"]);
    assert_eq!((gone.status.code(), stderr(&gone).as_str()), (Some(1), "portcullis: no container nobody\n"));
    // What has ended is refused by the agent, which knows why.
    node.run(&["contain", "0129", "--lock"]);
    assert_eq!(data.contained.lock().unwrap().pop().unwrap().container_id, "0129");
}
