//! What a shim learns of a container's contents, and what it says when it can't.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{containerd::Builder, eventually::eventually, node::Node};

use crate::catalog::innocent_rootfs;

/// More than a shim looks through of one directory.
const TOO_MANY: usize = 16_400;

/// What is found to be wrong with such a directory.
const REASON: &str = "looking through /usr/bin: more than 16384 entries";

/// The container runs and names are recognised; that contents are not is told wherever somebody may look.
pub fn what_could_not_be_learnt_is_said(node: &Node) -> Result<()> {
    let scratch = node.scratch()?;
    let root = scratch.path().join("rootfs");
    innocent_rootfs(&root, &["sleep", "true", "nc"])?;
    let crowded = root.join("usr/bin");
    fs::create_dir_all(&crowded)?;
    for number in 0..TOO_MANY {
        File::create(crowded.join(number.to_string()))?;
    }
    let container = || -> Builder<'_> { node.container().rootfs(&root).option("--env").option("PATH=/bin") };

    let unlearnt = container().start()?;
    unlearnt.exec(&["true"])?.success()?;
    unlearnt.exec(&["nc"])?;
    let signals = node.signals_until(unlearnt.id(), "nc")?;
    let [signal] = &signals[..] else { anyhow::bail!("known by content: {signals:#?}") };
    ensure!(signal.identified_by == ["invoked_name"], "{signal:#?}");
    let told = signal.container.as_ref().context("no container")?;
    ensure!(told.guarded && told.contents_unknown.contains(REASON), "{signal:#?}");

    let containers = node.containers()?;
    let told = containers.iter().find(|told| told.id == unlearnt.id()).context("not listed")?;
    ensure!(told.guarded && told.contents_unknown.contains(REASON), "{told:#?}");
    let table = node.portcullis(&["containers", "list", "-o", "wide"])?.success()?.stdout;
    ensure!(table.contains("names only") && table.contains(REASON), "{table}");
    let run_dir = node.paths().run_dir.display().to_string();
    let check = node.portcullis(&["check", "--run-dir", &run_dir])?;
    ensure!(check.stdout.contains("contents_unknown "), "{check}");
    let agent = node.agent().as_ref().context("no agent")?.log();
    ensure!(agent.contains(REASON), "the agent's log does not say it: {agent}");
    // By way of containerd, which reads the shim's log.
    eventually(|| {
        let log = node.containerd().log();
        ensure!(log.contains("recognised by their names only") && log.contains(REASON), "the shim's log: {log}");
        Ok(())
    })?;
    unlearnt.delete()?;

    // The same without the crowd: what `sleep` contains is called nc as well.
    fs::remove_dir_all(&crowded)?;
    let learnt = container().start()?;
    let signals = node.signals_until(learnt.id(), "nc")?;
    let signal = signals.first().context("no signal")?;
    ensure!(signal.identified_by == ["fingerprint"], "{signal:#?}");
    ensure!(signal.container.as_ref().is_some_and(|told| told.contents_unknown.is_empty()), "{signal:#?}");
    Ok(())
}
