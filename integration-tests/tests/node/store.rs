//! What was told is not lost.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{eventually::eventually, node::Node, signals::Signal};
use serde_json::Value;

use crate::{repeats::complete, stopped};

/// The rule of what is told by number only.
const EVENTS_LOST: &str = "events_lost";
/// Less than a container may make at once.
const SIGNALS: u64 = 200;
/// Executions with more arguments than an event holds: at more than 5 kB each, the first container's do not fit into 4 MB.
const LARGE: [u64; 2] = [1800, 100];

/// A process of the test's, ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn argument(signal: &Signal) -> Option<String> {
    signal.process.as_ref()?.argv.last().cloned()
}

/// SIGKILL in the middle of a flood, while somebody watches: the database is sound, ids grow, and all that the watcher was
/// told is still there, and is what it was. What was read and not stored is told by number.
pub fn a_killed_agent_keeps_what_it_told(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let scratch = node.scratch()?;
    let file = scratch.path().join("watched");
    let mut watch = Command::new(node.setup().bin_dir.join("portcullis"));
    watch.arg("--socket").arg(node.paths().socket()).args(["signals", "watch", "-o", "json", "--container"]);
    watch.arg(container.id()).args(["--after", "0"]).stdout(File::create(&file)?).stderr(Stdio::null());
    let _watcher = Running(watch.spawn().context("starting portcullis signals watch")?);
    let watched = || -> Result<Vec<Signal>> {
        let text = fs::read_to_string(&file)?;
        // The last line may be half written, and updates are no signals.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let values = lines.map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let signals = values.into_iter().filter(|value| value.get("id").is_some());
        let mut signals = signals.map(serde_json::from_value).collect::<Result<Vec<Signal>, _>>()?;
        signals.retain(|signal| signal.rule != EVENTS_LOST);
        Ok(signals)
    };
    let script = format!("i=0; while [ $i -lt {SIGNALS} ]; do i=$((i+1)); nc -h $i >/dev/null 2>&1; done; true");
    thread::scope(|scope| {
        let flood = scope.spawn(|| container.exec(&["sh", "-c", &script]));
        eventually(|| {
            ensure!(watched()?.len() > 20, "few signals yet");
            Ok(())
        })?;
        node.kill_agent()?;
        node.restart_agent()?;
        flood.join().ok().context("the container's thread")??.success()
    })?;
    let told = eventually(|| {
        let told = watched()?;
        let last = told.last().and_then(argument);
        ensure!(last == Some(SIGNALS.to_string()), "{} signals are told, the last about {last:?}", told.len());
        Ok(told)
    })?;
    ensure!(told.is_sorted_by(|before, after| before.id < after.id), "ids do not grow");
    let (mut stored, _) = complete(node, &container)?;
    stored.retain(|signal| signal.rule != EVENTS_LOST);
    let stored: BTreeMap<u64, Option<String>> = stored.iter().map(|signal| (signal.id, argument(signal))).collect();
    for signal in &told {
        ensure!(stored.get(&signal.id) == Some(&argument(signal)), "another or none is stored: {signal:#?}");
    }
    println!("{} of {SIGNALS} were watched, {} are stored", told.len(), stored.len());
    ensure!(stored.len() == told.len(), "{} stored, {} watched", stored.len(), told.len());
    let run_dir = node.paths().run_dir.display().to_string();
    // Its exit code is about the whole node.
    let status: Value =
        serde_json::from_str(&node.portcullis(&["check", "--run-dir", &run_dir, "-o", "json"])?.stdout)?;
    let replaced = status.pointer("/agent/losses/store_replaced").and_then(Value::as_u64);
    ensure!(replaced == Some(0), "the database was not sound: {status:#}");
    Ok(())
}

/// More than the ring buffer holds, while there is no agent: of a container that goes on, and of one that has ended when there is an
/// agent again, signals and the number that is told to be lost make up what happened.
pub fn what_does_not_fit_is_told(node: &Node) -> Result<()> {
    let (stays, ends) = (node.container().mode("enforce").start()?, node.container().start()?);
    node.kill_agent()?;
    for (container, rounds) in [&stays, &ends].into_iter().zip(LARGE) {
        let script = format!(
            "a=$(printf %04000d 0); i=0; while [ $i -lt {rounds} ]; do i=$((i+1)); nc $i $a $a >/dev/null 2>&1; done; true"
        );
        container.exec(&["sh", "-c", &script])?.success()?;
    }
    let id = ends.id().to_owned();
    ends.delete()?;
    node.restart_agent()?;

    let (signals, matched) = complete(node, &stays)?;
    let counters = node.counters(stays.id())?;
    let told: Vec<&Signal> = signals.iter().filter(|signal| signal.rule == EVENTS_LOST).collect();
    let [told] = &told[..] else { anyhow::bail!("{told:#?}") };
    println!("{matched} happened, {} were lost", counters.lost);
    ensure!(0 < counters.lost && counters.lost < matched && told.count == counters.lost, "{counters:?}: {told:#?}");
    let stopped: u64 = told.suppressed.iter().filter(|of| of.verdict == stopped(node)).map(|of| of.count).sum();
    ensure!(stopped == told.count, "all of them were stopped: {told:#?}");

    eventually(|| {
        let signals: Vec<Signal> = node.json(&["signals", "list", "--all", "--container", &id])?;
        let told: u64 = signals.iter().map(|signal| signal.count).sum();
        let [_, rounds] = LARGE;
        ensure!(told == rounds, "{told} are told of {rounds} in the container that has ended: {signals:#?}");
        Ok(())
    })
}
