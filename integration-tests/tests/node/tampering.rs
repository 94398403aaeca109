//! An intruder with CAP_SYS_ADMIN, CAP_BPF, the node's bpffs and its cgroups attacks the guard of the container that it is in
//! (`container/tamper.c`).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use portcullis_bpf::{
    cgroup,
    pins::{CGROUP_ATTACH, Pins},
};
use portcullis_integration_tests::{containerd::Container, eventually::eventually, node::Node};
use portcullis_policy::policyset::Backend;

use crate::{
    assert_stopped, stopped,
    test::{KERNEL, Test},
};

const LEAVING: &str = "leaving the cgroup";

/// Refusing needs the hooks of the backend lsm; telling who leaves, a kernel that has programs at functions' entries. Those in
/// virtual machines have both.
pub fn tests(node: &Node) -> Vec<Test> {
    let can_tell = Pins::current(&node.paths().bpffs_root).node_link(CGROUP_ATTACH.0).exists();
    let refused =
        Test::new(KERNEL, "a_container_can_not_take_its_own_guard_away", a_container_can_not_take_its_own_guard_away);
    let told = Test::new(
        KERNEL,
        "a_container_does_not_leave_its_cgroup_unnoticed",
        a_container_does_not_leave_its_cgroup_unnoticed,
    );
    let tests = [(node.backend() == Backend::Lsm, refused), (can_tell || node.setup().emulated, told)];
    tests.into_iter().filter(|(possible, _)| *possible).map(|(_, test)| test).collect()
}

fn cgroups() -> Result<String> {
    Ok(format!("--mount=type=bind,src={},dst=/cgroup,options=rbind:rw", cgroup::hierarchy()?.display()))
}

fn privileged<'a>(node: &'a Node, mode: &str) -> Result<Container<'a>> {
    let bpffs = format!("type=bind,src={},dst=/bpf,options=rbind:rw", node.paths().bpffs_root.display());
    let mut container = node.container().mode(mode);
    for option in ["--cap-add=CAP_SYS_ADMIN", "--cap-add=CAP_BPF", &cgroups()?, &format!("--mount={bpffs}")] {
        container = container.option(option);
    }
    container.start()
}

/// Attacks; what came of each attempt.
fn attack(node: &Node, container: &Container<'_>) -> Result<BTreeMap<String, String>> {
    let pins = node.policy_set()?.pins;
    let version = pins.file_name().and_then(|name| name.to_str()).context("no version")?;
    let output = container.exec(&["/opt/tamper", &format!("/bpf/{version}"), "/cgroup"])?;
    let told = output.stdout.lines().filter_map(|line| line.split_once('\t'));
    Ok(told.map(|(what, outcome)| (what.to_owned(), outcome.to_owned())).collect())
}

/// Whether it is told once of each rule, with this verdict.
fn assert_told(node: &Node, container: &Container<'_>, expected: &[(&str, &str)]) -> Result<()> {
    eventually(|| {
        let mut signals = node.signals()?;
        signals.retain(|signal| signal.container_id() == container.id() && signal.severity == "critical");
        for (rule, verdict) in expected {
            let found = signals.iter().find(|signal| signal.rule == *rule).with_context(|| format!("no {rule}"))?;
            let process = found.process.as_ref().context("no process")?;
            ensure!(found.verdict == *verdict && process.exe == "/opt/tamper", "{found:#?}");
        }
        Ok(())
    })
}

fn a_container_can_not_take_its_own_guard_away(node: &Node) -> Result<()> {
    let traces = |node: &Node| node.traces().map(|traces| (traces.links, traces.map_entries));
    for mode in ["detect", "enforce"] {
        let container = privileged(node, mode)?;
        let before = traces(node)?;
        let mut told = attack(node, &container)?;
        // Who leaves in enforce mode does not live to tell it.
        let left = told.remove(LEAVING);
        ensure!(left.as_deref() == (mode == "detect").then_some("done"), "{mode}: {LEAVING}: {left:?}");
        ensure!(told.len() == 11, "{told:#?}");
        for (what, outcome) in &told {
            let expected = if what.contains("own") || what == "a link by its pin" { "done" } else { "EPERM" };
            ensure!(outcome == expected, "{mode}: {what}: {outcome}");
        }
        ensure!(traces(node)? == before, "{mode}: before {before:?}, now {:?}", traces(node)?);
        let verdict = if mode == "detect" { "would_block" } else { "killed" };
        assert_told(node, &container, &[("guard_tampering", "blocked"), ("cgroup_escape", verdict)])?;
        let outcomes = container.shell(&["nc -h"])?;
        let outcome = outcomes.first().context("no outcome")?;
        if mode == "enforce" {
            assert_stopped(node, "nc", outcome)?;
        }
        let told = node.signals_until(container.id(), "nc")?;
        let verdict = if mode == "detect" { "would_block" } else { stopped(node) };
        ensure!(told.last().is_some_and(|signal| signal.verdict == verdict), "{told:#?}");
    }
    Ok(())
}

fn a_container_does_not_leave_its_cgroup_unnoticed(node: &Node) -> Result<()> {
    let script = "echo $$ >/cgroup/cgroup.procs; echo left";
    for (mode, verdict) in [("detect", "would_block"), ("enforce", "killed")] {
        let container = node.container().mode(mode).option(&cgroups()?).start()?;
        let output = container.exec(&["sh", "-c", script])?;
        ensure!((output.stdout == "left\n") == (mode == "detect"), "{mode}: {output}");
        eventually(|| {
            let signals = node.signals()?;
            let found = signals
                .iter()
                .find(|signal| signal.container_id() == container.id() && signal.rule == "cgroup_escape")
                .context("no cgroup_escape")?;
            ensure!(found.verdict == verdict, "{found:#?}");
            ensure!(found.backend == node.backend().to_string(), "{found:#?}");
            Ok(())
        })?;
    }
    Ok(())
}
