//! What an operator stops by hand, and what goes on when it is taken back. All of it outlives the agent.

use std::{fs, process::Command, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    command::run,
    containerd::Container,
    eventually::eventually,
    node::Node,
    signals::{Containment, Signal},
};
use portcullis_policy::{policyset::Backend, source::SHIPPED_DEFAULT};

use crate::stopped;

/// The agent is SIGKILLed, something is looked at without it, and it starts again.
fn without_agent<T>(node: &Node, look: impl FnOnce() -> Result<T>) -> Result<T> {
    node.kill_agent()?;
    let seen = look();
    node.restart_agent()?;
    seen
}

fn in_effect(node: &Node, container: &Container<'_>) -> Result<Containment> {
    let containers = node.containers()?;
    let known =
        containers.into_iter().find(|known| known.id == container.id()).context("the container is not known")?;
    known.containment.context("it is not said what is in effect")
}

/// The signals of these rules about a container, once there are so many.
fn signals_of(node: &Node, container: &Container<'_>, rules: &[&str], count: usize) -> Result<Vec<Signal>> {
    eventually(|| {
        let mut signals = node.signals()?;
        signals.retain(|signal| signal.container_id() == container.id() && rules.contains(&signal.rule.as_str()));
        ensure!(signals.len() >= count, "{} of {count} signals are there: {signals:#?}", signals.len());
        Ok(signals)
    })
}

/// Leaves a script running in a container.
pub fn leave_running(container: &Container<'_>, shell: &str, script: &str) -> Result<()> {
    container.exec(&["sh", "-c", &format!("{shell} \"$0\" </dev/null >/dev/null 2>&1 &"), script])?.success()?;
    Ok(())
}

pub fn containment_locks_out_every_exec(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    leave_running(&container, "sh -c", "s=0; while [ $s = 0 ]; do sleep 0.1; s=$?; done; echo $s >/tmp/result")?;
    let said = node.portcullis(&["contain", container.id(), "--lock"])?.success()?;
    ensure!(said.stdout == format!("{}: locked\n", container.id()), "{said}");
    let refused = || -> Result<()> {
        let output = container.exec(&["true"])?;
        match node.backend() {
            Backend::Lsm => {
                ensure!(output.status != 0 && output.text().contains("operation not permitted"), "{output}");
            }
            Backend::Tracepoint => ensure!(output.status == 137, "{output}"),
        }
        Ok(())
    };
    refused()?;
    without_agent(node, refused)?;
    {
        // It stays when the container moves to another policy.
        let _policy = node.policy(&SHIPPED_DEFAULT.replace("name: default", "name: other"))?;
        eventually(|| {
            let moved = node.containers()?.iter().any(|known| known.id == container.id() && known.policy == "other");
            ensure!(moved, "it is not under the other policy");
            Ok(())
        })?;
        refused()?;
    }
    eventually(|| {
        ensure!(in_effect(node, &container)?.locked, "the new agent does not know that it is locked");
        Ok(())
    })?;
    node.portcullis(&["release", container.id(), "--lock"])?.success()?;
    ensure!(!in_effect(node, &container)?.locked, "it is locked still");
    let result = container.exec(&["cat", "/tmp/result"])?.success()?;
    let expected = if node.backend() == Backend::Lsm { "126" } else { "137" };
    ensure!(result.stdout.trim() == expected, "the container's own loop: {result}");

    // The loop's, and one for each session.
    let signals = signals_of(node, &container, &["locked"], 4)?;
    for signal in &signals {
        ensure!(
            signal.verdict == stopped(node) && signal.policy_rule == 0 && signal.operation.is_none(),
            "{signal:#?}"
        );
    }
    let sessions = signals.iter().filter(|signal| signal.message.ends_with(": true")).count();
    ensure!(sessions == 3, "{signals:#?}");
    let operations = signals_of(node, &container, &["containment", "release"], 2)?;
    let rules: Vec<_> = operations.iter().map(|signal| signal.rule.as_str()).collect();
    ensure!(rules == ["containment", "release"], "{rules:?}");
    for signal in &operations {
        let operation = signal.operation.as_ref().context("no operation")?;
        ensure!(operation.measures == ["lock"] && operation.error.is_empty(), "{signal:#?}");
        let caller = operation.caller.as_ref().context("no caller")?;
        ensure!(caller.uid == 0 && caller.pid > 0 && caller.certificate.is_empty(), "{signal:#?}");
    }
    Ok(())
}

pub fn containment_freezes_and_kills(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let is = |wanted: &str| -> Result<()> {
        let (_, status) = container.task()?;
        ensure!(status == wanted, "containerd says {status}, not {wanted}");
        Ok(())
    };
    let count = "i=0; while :; do i=$((i+1)); echo $i >/tmp/n; sleep 0.1; done";
    leave_running(&container, "sh -c", count)?;
    let said = node.portcullis(&["contain", container.id(), "--freeze"])?.success()?;
    ensure!(said.stdout == format!("{}: frozen\n", container.id()), "{said}");
    is("PAUSED")?;
    without_agent(node, || is("PAUSED"))?;
    eventually(|| {
        ensure!(in_effect(node, &container)?.frozen == Some(true), "the new agent does not know that it is frozen");
        Ok(())
    })?;
    // In containerd's own words.
    let again = node.portcullis(&["contain", container.id(), "--freeze"])?;
    ensure!(again.status == 1 && again.stderr.contains("containerd answered: "), "{again}");
    node.portcullis(&["release", container.id()])?.success()?;
    is("RUNNING")?;
    let number = || -> Result<u64> { Ok(container.exec(&["cat", "/tmp/n"])?.success()?.stdout.trim().parse()?) };
    // The file is empty for a moment each time.
    let before = eventually(number)?;
    eventually(|| {
        ensure!(number()? > before, "it does not go on");
        Ok(())
    })?;
    node.portcullis(&["contain", container.id(), "--freeze"])?.success()?;
    node.portcullis(&["contain", container.id(), "--kill"])?.success()?;
    eventually(|| is("STOPPED"))?;
    let operations = signals_of(node, &container, &["containment", "release"], 5)?;
    let failed = operations.iter().filter(|signal| signal.operation.as_ref().is_some_and(|one| !one.error.is_empty()));
    ensure!(failed.count() == 1, "{operations:#?}");
    Ok(())
}

pub fn containment_kills_one_process_and_no_other(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let other = node.container().start()?;
    container.exec(&["sh", "-c", "sleep 54321 </dev/null >/dev/null 2>&1 &"])?.success()?;
    let init = container.pid()?;
    let others = other.pid()?;
    let processes = run(node.containerd().ctr().args(["tasks", "ps", container.id()]))?.success()?;
    let mut pids = processes.stdout.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let sleeper: u32 = pids.find(|pid| *pid != init).context("the second process is not listed")?;
    for (pid, said) in [
        (others, format!("process {others} is not in container {:?}", container.id())),
        (std::process::id(), format!("process {} is not in container", std::process::id())),
        (1, "process 1 is not in container".to_owned()),
        (0x7fff_fff0, "there is no process 2147483632".to_owned()),
    ] {
        let refused = node.portcullis(&["contain", container.id(), "--kill-process", &pid.to_string()])?;
        ensure!(refused.status == 1 && refused.stderr.contains(&said), "{refused}");
    }
    node.portcullis(&["contain", container.id(), "--kill-process", &sleeper.to_string()])?.success()?;
    eventually(|| {
        // The container's first process never waits for it, and what is dead has no arguments.
        let arguments = fs::read(format!("/proc/{sleeper}/cmdline")).unwrap_or_default();
        ensure!(arguments.is_empty(), "it lives: {arguments:?}");
        Ok(())
    })?;
    ensure!(other.exec(&["true"])?.status == 0, "another container's process was killed");
    Ok(())
}

/// Sends back whatever comes.
const ECHO: &str = "socket(S, 2, 1, 0) or die; setsockopt(S, 1, 2, 1); bind(S, pack('S n x12', 2, 7777)) or die; \
                    listen(S, 5); while (accept(C, S)) { next if fork; while (sysread(C, $b, 1)) { syswrite(C, $b) } exit }";

/// Counts what comes back from each of two, over connections that stay.
const COUNT: &str = "\
for $h ([10, 99, 0, 2], [127, 0, 0, 1]) {
    socket($s, 2, 1, 0) or die; connect($s, pack('S n C4 x8', 2, 7777, @$h)) or die $!; push @s, $s; undef $s
}
while (1) {
    for $i (0, 1) {
        if (!$w[$i]) { syswrite($s[$i], 'x'); $w[$i] = 1 }
        $v = ''; vec($v, fileno($s[$i]), 1) = 1;
        if (select($v, undef, undef, 0.05) > 0 && sysread($s[$i], $b, 1)) { $n[$i]++; $w[$i] = 0 }
    }
    open(F, '>/tmp/n.new'); print F \"$n[0] $n[1]\\n\"; close F; rename('/tmp/n.new', '/tmp/n')
}";

/// Joins the network namespaces of two containers, which have nothing but a loopback device.
pub fn join(a: &Container<'_>, b: &Container<'_>) -> Result<()> {
    let inside = |pid: u32, words: &[&str]| -> Result<()> {
        run(Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "ip"]).args(words))?.success()?;
        Ok(())
    };
    let (a, b) = (a.pid()?, b.pid()?);
    // The kernel names the other end.
    inside(a, &["link", "add", "pc0", "type", "veth"])?;
    inside(a, &["link", "set", "veth0", "netns", &b.to_string()])?;
    inside(a, &["addr", "add", "10.99.0.1/24", "dev", "pc0"])?;
    inside(b, &["addr", "add", "10.99.0.2/24", "dev", "veth0"])?;
    inside(a, &["link", "set", "pc0", "up"])?;
    inside(b, &["link", "set", "veth0", "up"])
}

pub fn containment_leaves_loopback_only(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let peer = node.container().start()?;
    join(&container, &peer)?;
    for end in [&container, &peer] {
        leave_running(end, "perl -e", ECHO)?;
    }
    // Both must listen first.
    leave_running(&container, "sh -c 'until perl -e \"$0\"; do sleep 0.2; done'", COUNT)?;
    let counts = || -> Result<(u64, u64)> {
        let output = container.exec(&["cat", "/tmp/n"])?.success()?;
        let mut words = output.stdout.split_whitespace();
        let mut next = || -> Result<u64> { Ok(words.next().context("no number")?.parse()?) };
        Ok((next()?, next()?))
    };
    let both_pass = || {
        let (network, loopback) = eventually(counts)?;
        eventually(|| {
            let now = counts()?;
            ensure!(now.0 > network && now.1 > loopback, "from {network} {loopback} to {now:?} only");
            Ok(())
        })
    };
    let only_loopback = || {
        // What was under way has come by then.
        sleep(Duration::from_millis(500));
        let (network, loopback) = counts()?;
        eventually(|| {
            let now = counts()?;
            ensure!(now.0 == network, "{} bytes have come over the network", now.0 - network);
            ensure!(now.1 > loopback + 20, "loopback: from {loopback} to {} only", now.1);
            Ok(())
        })
    };
    both_pass().context("before")?;
    let said = node.portcullis(&["contain", container.id(), "--isolate-network"])?.success()?;
    ensure!(said.stdout == format!("{}: network isolated\n", container.id()), "{said}");
    only_loopback().context("isolated")?;
    without_agent(node, only_loopback).context("isolated, without an agent")?;
    eventually(|| {
        ensure!(in_effect(node, &container)?.network_isolated, "the new agent does not know that it is isolated");
        Ok(())
    })?;
    // It is so already.
    node.portcullis(&["contain", container.id(), "--isolate-network"])?.success()?;
    node.portcullis(&["release", container.id(), "--isolate-network"])?.success()?;
    both_pass().context("released")?;

    node.portcullis(&["contain", container.id(), "--isolate-network"])?.success()?;
    ensure!(!node.traces()?.links.is_empty(), "no link is pinned");
    container.delete()?;
    peer.delete()?;
    eventually(|| {
        let links = node.traces()?.links;
        ensure!(links.is_empty(), "links are left: {links:?}");
        Ok(())
    })
}
