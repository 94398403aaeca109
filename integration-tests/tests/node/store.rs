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

/// Less than a container may make at once.
const SIGNALS: u64 = 200;

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
/// told is still there, and is what it was.
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
        Ok(signals.map(serde_json::from_value).collect::<Result<_, _>>()?)
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
    let stored: Vec<Signal> = node.json(&["signals", "list", "--all", "--container", container.id()])?;
    let stored: BTreeMap<u64, Option<String>> = stored.iter().map(|signal| (signal.id, argument(signal))).collect();
    for signal in &told {
        ensure!(stored.get(&signal.id) == Some(&argument(signal)), "another or none is stored: {signal:#?}");
    }
    println!("{} of {SIGNALS} were watched, {} are stored", told.len(), stored.len());
    // What was read and not committed is lost with the agent; nothing else is.
    ensure!(stored.len() == told.len(), "{} stored, {} watched", stored.len(), told.len());
    let run_dir = node.paths().run_dir.display().to_string();
    // Its exit code is about the whole node.
    let status: Value =
        serde_json::from_str(&node.portcullis(&["check", "--run-dir", &run_dir, "-o", "json"])?.stdout)?;
    let replaced = status.pointer("/agent/losses/store_replaced").and_then(Value::as_u64);
    ensure!(replaced == Some(0), "the database was not sound: {status:#}");
    Ok(())
}
