//! Exec sessions at a steady pace, and what a signal says is new.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use portcullis_integration_tests::{containerd::Container, eventually::eventually, node::Node, signals::Signal};

const PACE: Duration = Duration::from_millis(1200);
/// Four are enough, unless the machine is too busy to keep the pace.
const SESSIONS: u64 = 30;
const COMMAND: [&str; 2] = ["nc", "-h"];

/// A container's signals, once they stand for so many events.
fn told(node: &Node, container: &Container<'_>, events: u64) -> Result<Vec<Signal>> {
    eventually(|| {
        let mut signals = node.signals()?;
        signals.retain(|signal| signal.container_id() == container.id());
        let sum: u64 = signals.iter().map(|signal| signal.count).sum();
        ensure!(sum == events, "{sum} are told of {events}: {signals:#?}");
        Ok(signals)
    })
}

pub fn sessions_at_a_steady_pace_are_a_probe(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let mut next = Instant::now();
    let mut signals = Vec::new();
    for sessions in 1..=SESSIONS {
        container.exec(&COMMAND)?;
        next += PACE;
        if sessions > 3 {
            signals = told(node, &container, sessions)?;
            if signals.len() > 1 {
                break;
            }
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let [session, probe] = &signals[..] else { bail!("no probe in {SESSIONS} sessions: {signals:#?}") };
    ensure!((session.origin.as_str(), probe.origin.as_str()) == ("exec_session", "probe"), "{signals:#?}");
    ensure!(session.count >= 3 && probe.count == 1, "{signals:#?}");
    ensure!((&session.severity, &session.verdict) == (&probe.severity, &probe.verdict), "{signals:#?}");
    let novelty = probe.novelty.as_ref().context("no novelty")?;
    ensure!(!novelty.habitual, "{novelty:?}");
    Ok(())
}

/// Over a restart of the agent, by the image: the next container of it is the same workload.
pub fn what_a_workload_did_before_is_not_new(node: &Node) -> Result<()> {
    let once = |container: &Container<'_>| {
        container.exec(&["sh", "-c", "sh -c 'exec telnet --help' >/dev/null 2>&1"])?;
        let signals = node.signals_until(container.id(), "telnet")?;
        signals.first().and_then(|signal| signal.novelty.clone()).context("no novelty")
    };
    let first = once(&node.container().start()?)?;
    node.kill_agent()?;
    node.restart_agent()?;
    let second = once(&node.container().start()?)?;
    ensure!(!second.first_time && second.times_seen > first.times_seen, "{first:?}, then {second:?}");
    ensure!(second.days_seen >= 1 && !second.summary.is_empty(), "{second:?}");
    let new = node.json::<Vec<Signal>>(&["signals", "list", "--first-time", "--tool", "telnet"])?;
    ensure!(new.iter().all(|signal| signal.novelty.as_ref().is_some_and(|novelty| novelty.first_time)), "{new:#?}");
    ensure!(!new.is_empty(), "nothing was new");
    Ok(())
}
