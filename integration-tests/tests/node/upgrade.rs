//! The agent is exchanged for one whose programs are of another ABI version, under running containers.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use portcullis_bpf::{abi::ABI_VERSION, pins::Pins};
use portcullis_integration_tests::{
    eventually::{eventually, within},
    node::{Node, Traces},
};
use portcullis_policy::{
    policyset::{self, OnAttachFailure},
    record::{ContainerRecord, DIR_NAME},
};

use super::assert_stopped;

/// Built with the feature `next-abi`.
const NEXT: &str = "portcullisd-next";

const CONTAINERS: usize = 20;

/// Two sweeps of the agent, and time to spare.
const REMOVAL: Duration = Duration::from_secs(240);

/// What the container's first process has counted so far: how often nc was stopped, and what came of it when it was not.
fn tries(record: &ContainerRecord) -> Result<(usize, String)> {
    let tmp = PathBuf::from(format!("/proc/{}/root/tmp", record.pid));
    let read = |name| fs::read_to_string(tmp.join(name));
    let stopped = read("stopped").with_context(|| format!("container {} has tried nothing", record.container_id))?;
    Ok((stopped.lines().count(), read("ran").unwrap_or_default()))
}

fn records(node: &Node) -> Result<Vec<ContainerRecord>> {
    let directory = node.paths().run_dir.join(DIR_NAME);
    let mut records = Vec::new();
    for entry in fs::read_dir(directory)? {
        records.push(serde_json::from_slice(&fs::read(entry?.path())?)?);
    }
    Ok(records)
}

/// Waits until each has tried again twice: the second time it began to try after this was called.
fn tried_again(records: &[ContainerRecord]) -> Result<usize> {
    let mut all = 0;
    for record in records {
        let (before, _) = tries(record)?;
        eventually(|| {
            let (stopped, ran) = tries(record)?;
            ensure!(ran.is_empty(), "in container {} nc ran: {ran:?}", record.container_id);
            ensure!(stopped > before + 1, "container {} has not tried again", record.container_id);
            all += stopped;
            Ok(())
        })?;
    }
    Ok(all)
}

pub fn an_upgrade_to_other_programs_never_lets_go(node: &Node) -> Result<()> {
    let pause = if node.setup().emulated { "5" } else { "0.2" };
    let script = format!(
        "while :; do /usr/bin/nc -h >/dev/null 2>&1; s=$?; \
         case $s in 126|137) echo >>/tmp/stopped;; *) echo $s >>/tmp/ran;; esac; sleep {pause}; done"
    );
    let containers = (0..CONTAINERS)
        .map(|_| node.container().mode("enforce").start_with(&["sh", "-c", &script]))
        .collect::<Result<Vec<_>>>()?;
    let first = containers.first().context("no container")?;
    let is_ours = |record: &ContainerRecord| containers.iter().any(|container| container.id() == record.container_id);
    let mut records = records(node)?;
    records.retain(is_ours);
    ensure!(records.len() == CONTAINERS, "{} records", records.len());
    for record in &records {
        eventually(|| tries(record))?;
    }
    let before = node.traces()?;

    let next = node.exchange_agent(NEXT)?;
    let left_behind = |wanted: usize| {
        eventually(|| {
            let listed = node.containers()?;
            let count = listed.iter().filter(|told| told.policy_reason.contains("another version")).count();
            ensure!(count == wanted, "{count} containers are told to be left behind, of {}", listed.len());
            Ok(())
        })
    };
    left_behind(CONTAINERS)?;
    tried_again(&records)?;
    let check = node.portcullis(&["check", "--run-dir", &node.paths().run_dir.display().to_string()])?;
    ensure!(check.stdout.contains(&format!("{CONTAINERS} containers are guarded by another version")), "{check}");

    // As when a pod whose shim is of the former version starts another container.
    let after = node.container().mode("enforce").start()?;
    for outcome in after.shell(&["nc -h"])? {
        assert_stopped(node, "nc", &outcome)?;
    }
    node.signals_until(after.id(), "nc")?;
    left_behind(CONTAINERS + 1)?;
    let told = node.counters(after.id())?;
    ensure!(told.matched > 0, "{told:?}");
    // What the former version's programs see is told.
    first.exec(&["sh", "-c", "/usr/bin/dig -v"])?;
    eventually(|| {
        let signals = node.signals()?;
        let found = signals.iter().any(|signal| signal.container_id() == first.id() && signal.tool() == "dig");
        ensure!(found, "nothing is told of dig in {}", first.id());
        Ok(())
    })?;

    node.kill_agent()?;
    tried_again(&records)?;
    drop(next);
    left_behind(0)?;
    let next = node.exchange_agent(NEXT)?;
    let stopped = tried_again(&records)?;
    println!("nc was stopped {stopped} times in {CONTAINERS} containers and never ran");

    after.delete()?;
    // But for records, which stay until the last event has been read.
    let traces = Traces { records: before.records.clone(), ..node.traces()? };
    ensure!(traces == before, "before {before:?}, now {traces:?}");
    let former = Pins::current(&node.paths().bpffs_root);
    for container in containers {
        container.delete()?;
    }
    within(REMOVAL, || {
        let left = [former.directory().to_owned(), node.paths().run_dir.join(policyset::file_name(ABI_VERSION))];
        let left: Vec<_> = left.iter().filter(|path| path.exists()).collect();
        ensure!(left.is_empty(), "no container needs {left:?} any more");
        Ok(())
    })?;
    drop(next);
    Ok(())
}

/// As when a package has brought the shim and not yet started its agent.
pub fn a_shim_of_another_version_fails_as_the_policy_says(node: &Node) -> Result<()> {
    let set = node.policy_set()?;
    let _hidden = node.hide_policy_set()?;
    // The newest of all: there may be some of the test before.
    let other = node.paths().run_dir.join(policyset::file_name(ABI_VERSION + 2));
    let publish = |on_attach_failure: OnAttachFailure| -> Result<()> {
        let mut set = set.clone();
        set.default_policy.on_attach_failure = on_attach_failure;
        Ok(fs::write(&other, set.to_bytes()?)?)
    };
    let outcome = (|| {
        publish(OnAttachFailure::Deny)?;
        let refused = node.container().run(&["true"])?;
        ensure!(refused.status != 0 && refused.text().contains("restart portcullisd"), "{refused}");
        publish(OnAttachFailure::Allow)?;
        let container = node.container().start()?;
        eventually(|| {
            let signals = node.signals()?;
            let mut told = signals.iter().filter(|signal| signal.container_id() == container.id());
            ensure!(told.any(|signal| signal.rule == "container_unguarded"), "it is not told to be unguarded");
            Ok(())
        })
    })();
    fs::remove_file(other)?;
    outcome
}
