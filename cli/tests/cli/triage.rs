use portcullis_proto::v1::{
    SignalOrder, SignalSummary, SignalUpdate, SummarizeSignalsResponse, SummaryKey, Triage, TriageState, Verdict,
    WatchGap, WatchThrottled,
};
use serde_json::json;

use crate::support::*;

fn triage(state: TriageState, note: &str) -> Triage {
    Triage { state: state.into(), note: note.into(), author: "ann\u{1b}[2J".into(), ..Triage::default() }
}

#[test]
fn a_state_is_set_with_who_and_why() {
    let node = Node::new();
    let data = Data { signals: vec![signal(1), signal(2), signal(3)], ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    let verb = ["triage", "set", "1", "3", "--state", "expected", "--note", "a cron job", "--author", "ann"];
    let output = node.run(&verb);
    assert_eq!(stdout(&output), "signal 1: expected\nsignal 3: expected\n", "{}", stderr(&output));
    let asked = data.triaged.lock().unwrap().pop().unwrap();
    assert_eq!((asked.signal_ids, asked.note, asked.author), (vec![1, 3], "a cron job".into(), "ann".into()));
    let told = node.json(&verb);
    assert_eq!(told[0]["triage"]["state"], "expected");
    assert_eq!(node.run(&["triage", "set", "1", "--state", "fine"]).status.code(), Some(2));
    assert_eq!(node.run(&["triage", "set", "--state", "open"]).status.code(), Some(2));
}

#[test]
fn states_are_shown_and_filtered_by() {
    let node = Node::new();
    let mut told = signal(1);
    let earlier = vec![triage(TriageState::Investigating, "mine\n")];
    told.triage = Some(Triage { earlier, ..triage(TriageState::Resolved, "done") });
    let data = Data { signals: vec![told, signal(2)], ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    let report = stdout(&node.run(&["signals", "get", "1"]));
    assert_harmless(&report);
    let at = |text: &str| report.find(text).unwrap_or_else(|| panic!("{text}: {report}"));
    assert!(at("resolved") < at("investigating") && at(": done") < at(": mine\\n"), "{report}");
    let wide = stdout(&node.run(&["signals", "list", "-o", "wide"]));
    assert!(wide.contains("resolved") && wide.contains("open"), "{wide}");
    node.run(&["signals", "list", "--state", "open,contained", "--where", "signal.id > 1u", "--order", "severity"]);
    let asked = data.lists.lock().unwrap().pop().unwrap();
    let filter = asked.filter.as_ref().unwrap();
    assert_eq!(filter.triage_states, [TriageState::Open as i32, TriageState::Contained as i32]);
    assert_eq!((filter.expression.as_str(), asked.order()), ("signal.id > 1u", SignalOrder::Severity));
}

#[test]
fn a_watch_tells_what_it_does_not_show() {
    let node = Node::new();
    let data = Data {
        signals: vec![signal(8)],
        updates: vec![SignalUpdate {
            id: 8,
            count: 1,
            revision: 70,
            triage: Some(triage(TriageState::Contained, "")),
            ..SignalUpdate::default()
        }],
        gap: Some(WatchGap { first_id: 1, last_id: 7, reason: "retention".into() }),
        throttled: Some(WatchThrottled { signals: 3, first_id: 9, last_id: 12 }),
        ..Data::default()
    };
    let watches = data.watches.clone();
    let _agent = Agent::start(&node, data);
    let mut watch = crate::watch::Watch::start(&node, &["--after", "0", "--max-per-second", "5"]);
    assert_eq!(watch.line(), "gap: 1 to 7 not shown (retention)\n");
    watch.line();
    assert!(watch.line().starts_with('8'));
    assert_eq!(watch.line(), "8  contained, says ann\\x1b[2J\n");
    assert_eq!(watch.line(), "throttled: 3 signals of 9 to 12 not shown (--max-per-second)\n");
    watch.end(rustix::process::Signal::INT);
    assert_eq!(watches.lock().unwrap()[0].max_per_second, 5);
    let mut watch = crate::watch::Watch::start(&node, &["--after", "0", "-o", "json"]);
    let line: serde_json::Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!(line, json!({"gap": {"firstId": 1, "lastId": 7, "signals": null, "reason": "retention"}}));
    watch.end(rustix::process::Signal::INT);
}

#[test]
fn summaries_have_the_columns_that_were_asked_for() {
    let node = Node::new();
    let group = SignalSummary {
        tool: "nc".into(),
        verdict: Verdict::Blocked.into(),
        signals: 2,
        count: 2000,
        first_time: Some(time(1)),
        last_time: Some(time(9)),
        ..SignalSummary::default()
    };
    let summary =
        SummarizeSignalsResponse { groups: vec![group], omitted_groups: 4, omitted_signals: 5, omitted_count: 6 };
    let data = Data { summary, ..Data::default() };
    let _agent = Agent::start(&node, data.clone());
    let output = node.run(&["signals", "summarize", "--by", "tool,verdict", "--limit", "1", "--tool", "nc"]);
    let text = stdout(&output);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["TOOL", "VERDICT", "SIGNALS", "COUNT", "SEVERITY", "FIRST", "LAST"]);
    assert_eq!(lines[1][..4], ["nc", "blocked", "2", "2000"]);
    assert!(stderr(&output).contains("4 more groups with 5 signals (6 events) are left out"), "{}", stderr(&output));
    let asked = data.summarized.lock().unwrap().pop().unwrap();
    assert_eq!(asked.group_by, [SummaryKey::Tool as i32, SummaryKey::Verdict as i32]);
    assert_eq!((asked.limit, asked.bucket.unwrap().seconds, asked.filter.unwrap().tool), (1, 3600, "nc".to_owned()));
    let told = node.json(&["signals", "summarize"]);
    assert_eq!(told[0]["count"], 2000);
    assert_eq!(node.run(&["signals", "summarize", "--by", "colour"]).status.code(), Some(2));
}

/// The agent tells of a page's gaps before its signals: what comes back after one must not pass over these.
#[test]
fn a_gap_does_not_move_the_place_to_resume_from() {
    let node = Node::new();
    let data = Data {
        gap: Some(WatchGap { first_id: 4, last_id: 7, reason: "retention".into() }),
        watch_ends: true,
        ..Data::default()
    };
    let watches = data.watches.clone();
    let _agent = Agent::start(&node, data);
    let mut watch = crate::watch::Watch::start(&node, &["--after", "2"]);
    for _ in 0..2 {
        assert_eq!(watch.line(), "gap: 4 to 7 not shown (retention)\n");
    }
    watch.end(rustix::process::Signal::INT);
    let resumed: Vec<_> = watches.lock().unwrap().iter().map(|request| request.after_id).collect();
    assert!(resumed.len() >= 2 && resumed.iter().all(|after| *after == Some(2)), "{resumed:?}");
}
