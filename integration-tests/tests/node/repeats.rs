//! Loops and floods: every execution is in a count, and nobody else suffers.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{containerd::Container, eventually::eventually, node::Node, signals::Signal};

use crate::stopped;

const ROUNDS: u64 = 2000;
/// What docs/policies.md says a container may make.
const BURST: u64 = 1000;
const PER_SECOND: u64 = 100;

fn of(node: &Node, container: &Container<'_>) -> Result<Vec<Signal>> {
    let mut signals = node.signals()?;
    signals.retain(|signal| signal.container_id() == container.id());
    Ok(signals)
}

/// A container's signals, once they stand for all that the kernel has counted.
pub fn complete(node: &Node, container: &Container<'_>) -> Result<(Vec<Signal>, u64)> {
    let matched = node.counters(container.id())?.matched;
    eventually(|| {
        let signals = of(node, container)?;
        let told: u64 = signals.iter().map(|signal| signal.count).sum();
        ensure!(told == matched, "{told} are told of {matched}: {signals:#?}");
        Ok((signals, matched))
    })
}

fn repeat(container: &Container<'_>, command: &str, rounds: u64) -> Result<()> {
    let script = format!("i=0; while [ $i -lt {rounds} ]; do i=$((i+1)); {command} >/dev/null 2>&1; done; true");
    container.exec(&["sh", "-c", &script])?.success()?;
    Ok(())
}

/// A tool of another container, while the first one does what it does, and how long its signal took.
fn meanwhile(node: &Node, noisy: impl FnOnce() -> Result<()> + Send) -> Result<Duration> {
    let quiet = node.container().start()?;
    thread::scope(|scope| {
        let noise = scope.spawn(noisy);
        // It has begun by then.
        thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        quiet.exec(&["nc", "-h"])?;
        node.signals_until(quiet.id(), "nc")?;
        let took = begun.elapsed();
        noise.join().ok().context("the other container's thread")??;
        Ok(took)
    })
}

pub fn a_loop_is_one_signal(node: &Node) -> Result<()> {
    let rounds = node.setup().rounds(ROUNDS);
    for (mode, verdict) in [("detect", "would_block"), ("enforce", stopped(node))] {
        let container = node.container().mode(mode).start()?;
        let took = meanwhile(node, || repeat(&container, "/usr/bin/nc -h", rounds))?;
        println!("{mode}: another container's nc was told after {took:?}");
        let (signals, matched) = complete(node, &container)?;
        let [signal] = &signals[..] else { anyhow::bail!("not one signal: {signals:#?}") };
        ensure!((signal.count, matched) == (rounds, rounds), "{matched} matched: {signal:#?}");
        ensure!(signal.tool() == "nc" && signal.verdict == verdict, "{signal:#?}");
        ensure!(signal.occurrences.len() == 4, "{signal:#?}");
        ensure!(signal.occurrences.iter().all(|one| one.pid != 0 && one.argv.is_empty()), "{signal:#?}");
    }
    Ok(())
}

fn number(signals: &[&Signal]) -> u64 {
    signals.iter().map(|signal| signal.count).sum()
}

pub fn a_flood_is_counted(node: &Node) -> Result<()> {
    let container = node.container().mode("enforce").start()?;
    let begun = Instant::now();
    let took = meanwhile(node, || repeat(&container, "/usr/bin/nc -h $i", ROUNDS))?;
    let lasted = begun.elapsed();
    println!("another container's nc was told after {took:?}");
    let (signals, matched) = complete(node, &container)?;
    // What an agent that is too slow did not read in time is told by number as well.
    let by_number = |rule: &str| signals.iter().filter(|signal| signal.rule == rule).collect::<Vec<_>>();
    let (suppressed, lost) = (by_number("signals_suppressed"), by_number("events_lost"));
    let told: Vec<_> = signals.iter().filter(|signal| signal.tool() == "nc").collect();
    println!(
        "{matched} in {lasted:?}: {} signals, {} suppressed, {} lost",
        told.len(),
        number(&suppressed),
        number(&lost)
    );
    ensure!(matched == ROUNDS && told.iter().all(|signal| signal.count == 1), "{matched} matched: {signals:#?}");
    ensure!(told.len() + suppressed.len() + lost.len() == signals.len(), "{signals:#?}");
    let most = BURST + PER_SECOND * (lasted.as_secs() + 1);
    ensure!(u64::try_from(told.len())? <= most, "{} signals in {lasted:?}", told.len());
    // A slow machine makes no flood.
    let expected = usize::from(matched > u64::try_from(told.len())? + number(&lost));
    ensure!(suppressed.len() == expected, "{suppressed:#?}");
    for signal in suppressed {
        let [count] = &signal.suppressed[..] else { anyhow::bail!("{signal:#?}") };
        ensure!(count.tool == "nc" && count.verdict == stopped(node) && count.count == signal.count, "{signal:#?}");
    }
    Ok(())
}

/// An agent that is stopped has told everything that it read; the next one goes on with what is in the ring buffer.
pub fn a_restarted_agent_goes_on_counting(node: &Node) -> Result<()> {
    let rounds = node.setup().rounds(ROUNDS);
    let container = node.container().start()?;
    thread::scope(|scope| {
        let noise = scope.spawn(|| repeat(&container, "/usr/bin/nc -h", rounds));
        thread::sleep(Duration::from_millis(300));
        drop(node.agent().take());
        node.restart_agent()?;
        noise.join().ok().context("the container's thread")?
    })?;
    let (signals, matched) = complete(node, &container)?;
    println!("{:?}", signals.iter().map(|signal| signal.count).collect::<Vec<_>>());
    ensure!(matched == rounds && signals.len() <= 2, "{matched} matched: {signals:#?}");
    Ok(())
}
