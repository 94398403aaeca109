use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use portcullis_proto::v1::{
    Endpoint, GetStatusResponse, NetworkActivity, NetworkOperation, SignalUpdate,
    network_operation::{Kind, Transport},
};

use crate::support::*;

pub struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    pub fn start(node: &Node, arguments: &[&str]) -> Self {
        let mut command = portcullis(&node.socket());
        command.args(["signals", "watch"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// The next signal's id; each is one line of JSON.
    fn id(&mut self) -> u64 {
        let line = self.line();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"].as_u64().unwrap()
    }

    /// Ends it with this signal; gives the exit code and what it said.
    pub fn end(self, signal: rustix::process::Signal) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), stderr(&output))
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn goes_on_after_the_last_signal_when_the_agent_restarts() {
    let node = Node::new();
    let agent = Agent::start(&node, Data { signals: vec![signal(1), signal(2)], ..Data::default() });
    let mut watch = Watch::start(&node, &["--after", "0", "-o", "json"]);
    assert_eq!((watch.id(), watch.id()), (1, 2));
    drop(agent);
    std::thread::sleep(Duration::from_millis(600));
    let data = Data { signals: (1..=4).map(signal).collect(), ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    assert_eq!((watch.id(), watch.id()), (3, 4));
    assert_eq!(data.watches.lock().unwrap()[0].after_id, Some(2));
    let (code, said) = watch.end(rustix::process::Signal::INT);
    assert_eq!(code, Some(0));
    assert!(said.contains("reconnecting") && said.contains("going on after signal 2"), "{said}");
    assert_eq!(said.lines().count(), 2, "one line a loss, one a return: {said}");
}

#[test]
fn a_stream_that_ends_is_taken_up_again() {
    let node = Node::new();
    let data = Data { signals: vec![signal(1)], watch_ends: true, ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    let mut watch = Watch::start(&node, &["--after", "0", "-o", "json"]);
    assert_eq!(watch.id(), 1);
    eventually("a second watch", || data.watches.lock().unwrap().len() > 1);
    assert_eq!(data.watches.lock().unwrap()[1].after_id, Some(1));
    assert_eq!(watch.end(rustix::process::Signal::TERM).0, Some(0));
}

/// Otherwise what comes while the agent restarts, before the first signal was seen, would be missed.
#[test]
fn without_after_it_begins_at_the_newest() {
    let node = Node::new();
    let status = GetStatusResponse { last_signal_id: 2, ..Default::default() };
    let data = Data { signals: (1..=3).map(signal).collect(), status, ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    let mut watch = Watch::start(&node, &["--tool", "nc"]);
    assert!(watch.line().starts_with("ID"));
    assert!(watch.line().starts_with('3'));
    let request = data.watches.lock().unwrap()[0].clone();
    assert_eq!(request.after_id, Some(2));
    assert_eq!(request.filter.unwrap().tool, "nc");
    assert_eq!(watch.end(rustix::process::Signal::INT), (Some(0), String::new()));
}

#[test]
fn a_reader_that_leaves_ends_it() {
    let node = Node::new();
    let agent = Agent::start(&node, Data { signals: vec![signal(1)], ..Data::default() });
    let mut watch = Watch::start(&node, &["--after", "0", "-o", "json"]);
    assert_eq!(watch.id(), 1);
    let Watch { child, lines } = watch;
    drop((lines, agent));
    let _agent = Agent::start(&node, Data { signals: vec![signal(1), signal(2)], ..Data::default() });
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn what_a_process_does_on_the_network_is_one_short_line() {
    let node = Node::new();
    let operation = |kind: Kind, second| NetworkOperation {
        kind: kind.into(),
        transport: Transport::Tcp.into(),
        endpoint: Some(Endpoint { address: "203.0.113.7\u{1b}".into(), port: 4444 }),
        last_time: Some(time(second)),
        count: 2,
        ..NetworkOperation::default()
    };
    let operations = vec![operation(Kind::Connect, 9), operation(Kind::Bind, 8)];
    let network = Some(NetworkActivity { operations, omitted: 3 });
    let update = SignalUpdate { id: 1, count: 1, revision: 70, network, ..SignalUpdate::default() };
    let _agent = Agent::start(&node, Data { signals: vec![signal(1)], updates: vec![update], ..Data::default() });
    let mut watch = Watch::start(&node, &["--after", "0"]);
    assert!(watch.line().starts_with("ID") && watch.line().starts_with('1'));
    assert_eq!(watch.line(), "1  network: connect tcp 203.0.113.7\\x1b port 4444, 2 times (7 in all)\n");
    watch.end(rustix::process::Signal::INT);
}

#[test]
fn a_count_that_rises_is_one_short_line() {
    let node = Node::new();
    let update =
        |revision, count| SignalUpdate { id: 1, count, last_time: Some(time(9)), revision, ..SignalUpdate::default() };
    let data = Data { signals: vec![signal(1)], updates: vec![update(70, 152)], ..Data::default() };
    let agent = Agent::start(&node, data);
    let mut watch = Watch::start(&node, &["--after", "0"]);
    assert!(watch.line().starts_with("ID") && watch.line().starts_with('1'));
    assert_eq!(watch.line(), "1  152 times by now, last 2023-11-14T22:13:29Z\n");
    watch.end(rustix::process::Signal::INT);
    let mut watch = Watch::start(&node, &["--after", "0", "-o", "json"]);
    assert_eq!(watch.id(), 1);
    let told = serde_json::json!({"update": {"id": 1, "count": 152, "lastTime": "2023-11-14T22:13:29.123456789Z", "triage": null, "network": null}});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&watch.line()).unwrap(), told);
    drop(agent);
    let data = Data { signals: vec![signal(2)], updates: vec![update(70, 152), update(71, 160)], ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    assert_eq!(watch.id(), 2);
    assert!(watch.line().contains("160"), "it goes on after the last revision");
    assert_eq!(data.watches.lock().unwrap()[0].after_revision, Some(70));
    watch.end(rustix::process::Signal::INT);
}
