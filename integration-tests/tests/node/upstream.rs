//! The published rule's edge cases under config/policies/upstream-exact.yaml, and what its keys do in another policy.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{node::Node, signals::Signal};
use portcullis_policy::source::SHIPPED_UPSTREAM;
use serde::Deserialize;

use crate::{LAST, assert_stopped, stopped};

/// Shell commands in an empty directory, and what comes of them.
struct Case {
    script: &'static str,
    /// The tools that are reported.
    reports: &'static [&'static str],
    /// How many executions are left out for their arguments, and how many as repeats.
    excepted: Excepted,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Excepted {
    arguments: u64,
    repeats: u64,
}

const fn case(reports: &'static [&'static str], script: &'static str) -> Case {
    Case { script, reports, excepted: Excepted { arguments: 0, repeats: 0 } }
}

const fn excepted(arguments: u64, script: &'static str) -> Case {
    Case { excepted: Excepted { arguments, repeats: 0 }, ..case(&[], script) }
}

const fn repeats(repeats: u64, reports: &'static [&'static str], script: &'static str) -> Case {
    Case { excepted: Excepted { arguments: 0, repeats }, ..case(reports, script) }
}

/// Where repeats are not the point, no two have the same arguments.
const CASES: [Case; 33] = [
    case(&["curl"], "curl -V 1"),
    case(&["nslookup"], "ln -s /usr/bin/busybox nslookup; ./nslookup --help 2"),
    case(&["wget"], "wget --help 3"),
    // nc* is a prefix.
    case(&["nc*"], "ncdu 4"),
    case(&["nc*"], "cp /usr/bin/dash ncal; ./ncal -c 'true 5'"),
    case(&["nc"], "/usr/bin/nc.openbsd -h 6"),
    // The name that it is invoked by counts, and no other.
    case(&["nc*"], "ln -s /usr/bin/nslookup nc-x; ./nc-x -version 7"),
    case(&["nc"], "/opt/evade as bash /usr/bin/nc.openbsd -h 8"),
    case(&[], "/opt/links/report -h; ln -s /usr/bin/nc.openbsd x; ./x -h"),
    case(&[], "cp /usr/bin/nc.openbsd x; ./x -h"),
    case(&[], "busybox nc --help; /opt/evade as nc /usr/bin/busybox --help"),
    case(&[], "/lib64/ld-linux-x86-64.so.2 /usr/bin/nc.openbsd -h"),
    case(&[], "hostname; cp /usr/bin/curl curl2; ./curl2 -V; cp /usr/bin/dash netca; ./netca -c true"),
    // A script is what it is called itself.
    case(&["curl"], r"printf '#!/bin/sh\n' >curl; chmod +x curl; ./curl 9"),
    case(&[], r"printf '#!/usr/bin/nc.openbsd -h\n' >x; chmod +x x; ./x"),
    case(&["nc"], r"printf '#!/bin/sh\nnc -h 10\n' >x; chmod +x x; ./x"),
    // Cut to 15 bytes.
    case(&["lwp-download"], "cp /usr/bin/dash lwp-download; ./lwp-download -c 'true 11'"),
    case(&[], "cp /usr/bin/dash lwp-download2; ./lwp-download2 -c true"),
    case(&["nc*"], "cp /usr/bin/dash nc-and-many-more-bytes; ./nc-and-many-more-bytes -c 'true 12'"),
    // Anywhere in an argument, but not in argv[0].
    excepted(3, "curl -V http://localhost:1/; nc -h x127.0.0.1y; dig -v motd.ubuntu.com"),
    excepted(1, "curl -V --data=localhost 13"),
    case(&["curl", "curl"], "curl -V LOCALHOST; curl -V local host"),
    case(&["nc"], "/opt/evade as localhost /usr/bin/nc.openbsd -h 14"),
    case(&["nc"], "mkdir localhost; cp /usr/bin/dash localhost/nc; localhost/nc -c 'true 15'"),
    // What the kernel hands to a script's interpreter are the script's arguments.
    excepted(1, r"mkdir localhost; printf '#!/bin/sh\n' >localhost/nc; chmod +x localhost/nc; localhost/nc"),
    repeats(2, &["curl"], "curl -V 16; curl -V 16; curl -V 16"),
    // Whatever the program.
    repeats(1, &["nc"], "nc -h 17; curl -h 17"),
    // As one line.
    repeats(1, &["curl"], "curl -V 'a b'; curl -V a b"),
    case(&["nc", "nc"], "nc; nc"),
    case(&["curl", "curl"], "cp /opt/evade fresh; curl -V 18; ./fresh as curl /usr/bin/curl -V 18"),
    // Two sets: this pair was never seen.
    repeats(1, &["curl", "curl"], "curl -V 19; env curl -V 20; env curl -V 19"),
    // What is not known whole is no repeat.
    case(&["curl", "curl"], "l=$(printf %05000d 0); curl -V $l; curl -V $l"),
    case(&["nc*", "nc*"], r"printf '#!/bin/sh\n' >nc-0; chmod +x nc-0; ln nc-0 nc-1; ./nc-0; ./nc-1"),
];

fn directory(number: usize) -> String {
    format!("/tmp/case{number}")
}

#[derive(Deserialize)]
struct Check {
    agent: Option<Agent>,
}

#[derive(Deserialize)]
struct Agent {
    suppressed: BTreeMap<String, u64>,
}

/// What the agent has left out so far.
fn counted(node: &Node) -> Result<Excepted> {
    let run_dir = node.paths().run_dir.display().to_string();
    let output = node.portcullis(&["check", "--run-dir", &run_dir, "-o", "json"])?;
    let check: Check =
        serde_json::from_str(&output.stdout).with_context(|| format!("portcullis check gave {output}"))?;
    let suppressed = check.agent.context("the agent was not reached")?.suppressed;
    let count = |name: &str| suppressed.get(name).copied().with_context(|| format!("no {name} in {suppressed:?}"));
    Ok(Excepted { arguments: count("excepted_arguments")?, repeats: count("excepted_repeats")? })
}

/// Each case in a directory of its own, which tells whose a signal is.
pub fn the_published_rule_is_told_exactly(node: &Node) -> Result<()> {
    let _policy = node.policy(SHIPPED_UPSTREAM)?;
    let container = node.container().start()?;
    let before = counted(node)?;
    // The container runtime is a parent like any other.
    for _ in 0..2 {
        container.exec(&["curl", "-V", "from-outside"])?.success()?;
    }
    let lines: Vec<String> = CASES
        .iter()
        .enumerate()
        .map(|(number, case)| format!("(mkdir {0} && cd {0} || exit; {1}\n)", directory(number), case.script))
        .chain([COMM_OF_A_FILE_ALONE, "/opt/evade fexecve /usr/bin/nc.openbsd -h 21", LAST.0].map(str::to_owned))
        .collect();
    let outcomes = container.shell(&lines.iter().map(String::as_str).collect::<Vec<_>>())?;
    let signals = node.signals_until(container.id(), LAST.1)?;
    let of = |cwd: &str| -> Vec<&Signal> {
        let in_it = |signal: &&Signal| signal.process.as_ref().is_some_and(|process| process.cwd == cwd);
        signals.iter().filter(in_it).collect()
    };
    for (number, case) in CASES.iter().enumerate() {
        let reported: Vec<&str> = of(&directory(number)).into_iter().map(Signal::tool).collect();
        let outcome = outcomes.get(number);
        ensure!(reported == case.reports, "{}: {reported:?} instead of {:?}; {outcome:?}", case.script, case.reports);
    }
    for signal in &signals {
        let tool = signal.tool.as_ref().context("no tool")?;
        ensure!(signal.identified_by == ["pattern"] && signal.verdict == "detected", "{signal:#?}");
        ensure!(signal.rule == "net_util_in_container", "{signal:#?}");
        let (category, severity, technique) = match tool.id.as_str() {
            "nc*" => ("pattern", "medium", "T1105"),
            "nc" => ("netcat", "high", "T1095"),
            _ => continue,
        };
        ensure!(tool.category == category && signal.severity == severity, "{signal:#?}");
        ensure!(tool.techniques.iter().any(|told| told == technique), "{signal:#?}");
    }
    // Since Linux 6.14, comm of what has no path is the file's name. The kernel itself says which it is.
    let comm = outcomes.get(CASES.len()).context("no outcome")?.output.trim().to_owned();
    let outside = of("/").into_iter().map(Signal::tool).collect::<Vec<_>>();
    let expected: &[_] = if comm == "busybox" { &["curl", "nc*", "dig"] } else { &["curl", "dig"] };
    ensure!(outside == expected, "comm is {comm:?}, reported {outside:?}");

    let of_cases = |count: fn(&Excepted) -> u64| CASES.iter().map(|case| count(&case.excepted)).sum::<u64>();
    let expected = Excepted {
        arguments: before.arguments + of_cases(|excepted| excepted.arguments),
        repeats: before.repeats + of_cases(|excepted| excepted.repeats) + 1,
    };
    let after = counted(node)?;
    ensure!(after == expected, "{after:?} were counted instead of {expected:?}");
    Ok(())
}

const COMM_OF_A_FILE_ALONE: &str = "/opt/evade fexecve /usr/bin/busybox cat /proc/self/comm";

/// A pattern without exceptions blocks; a repeat is one for the time that the rule says.
pub fn patterns_block_and_repeats_end(node: &Node) -> Result<()> {
    let text = SHIPPED_UPSTREAM
        .replace("name: upstream-exact", "name: changed")
        .replace("exceptRepeats: 1h", "exceptRepeats: 1s")
        .replace("  rules:\n", "  rules:\n    - comm: [fifteen-bytes-1, stop*]\n      action: block\n");
    let _policy = node.policy(&text)?;
    let container = node.container().mode("enforce").start()?;
    let outcomes = container.shell(&[
        "cd /tmp; for x in fifteen-bytes-1 fifteen-bytes-12 stop stop-it; do cp /usr/bin/dash $x; done",
        "/tmp/fifteen-bytes-1 -c true",
        "/tmp/fifteen-bytes-12 -c true",
        "/tmp/stop -c true",
        "/tmp/stop-it -c true",
        "cp /tmp/stop /tmp/fifteen-bytes-; /tmp/fifteen-bytes- -c true",
        "curl -V 1; sleep 2; curl -V 1",
        LAST.0,
    ])?;
    let (blocked, runs) = outcomes.get(1..).and_then(|outcomes| outcomes.split_at_checked(4)).context("too few")?;
    for outcome in blocked {
        assert_stopped(node, "a pattern", outcome)?;
    }
    ensure!(runs.iter().all(|outcome| outcome.status == 0), "{runs:?}");
    let signals = node.signals_until(container.id(), LAST.1)?;
    let told: Vec<_> = signals.iter().map(|signal| (signal.tool(), signal.verdict.as_str())).collect();
    let stop = |tool| (tool, stopped(node));
    let fifteen = stop("fifteen-bytes-1");
    let expected = [
        fifteen,
        fifteen,
        stop("stop*"),
        stop("stop*"),
        ("curl", "detected"),
        ("curl", "detected"),
        (LAST.1, "detected"),
    ];
    ensure!(told == expected, "{told:?}");
    Ok(())
}
