//! An agent that reads nothing for a while: the ring buffer keeps what fits into it, and what does not is counted.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_bpf::{cgroup::Cgroup, guard::Guard, pins::Pins};
use portcullis_integration_tests::{eventually::within, node::Node};
use rustix::process::Signal;

use crate::{Bed, Row, account};

/// The buffer has 4 MB, and an event of these some 700 bytes: several times as many as fit.
const EXECUTIONS: u64 = 60_000;

const PAUSE_SECONDS: u64 = 60;

/// An emulated machine takes long for them.
const FLOOD: Duration = Duration::from_secs(1800);

/// An agent that is stopped, until this is dropped.
struct Stopped<'a>(&'a Node);

impl<'a> Stopped<'a> {
    fn stop(node: &'a Node) -> Result<Self> {
        signal(node, Signal::STOP)?;
        Ok(Self(node))
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Err(error) = signal(self.0, Signal::CONT) {
            eprintln!("letting the agent go on: {error:#}");
        }
    }
}

fn signal(node: &Node, signal: Signal) -> Result<()> {
    node.agent().as_ref().context("no agent")?.signal(signal)
}

pub fn the_ring_buffer_overflows(bed: &Bed) -> Result<Vec<Row>> {
    // With fewer it would not overflow.
    let executions = if bed.node.setup().emulated { EXECUTIONS / 3 } else { EXECUTIONS };
    let container = {
        let _stopped = Stopped::stop(&bed.node)?;
        let container = bed.start("flood", &[executions.to_string()])?;
        within(FLOOD, || bed.program.finished(container.id()))?;
        // As far as a shim comes that is killed before it writes down what was counted.
        let cgroup = Cgroup::of_container(container.pid()?)?;
        let detached = Guard::open(Pins::at(&bed.node.policy_set()?.pins))?.detach(cgroup.id)?;
        ensure!(detached.is_some_and(|stats| stats.matched == executions), "{detached:?} of {executions}");
        container
    };
    // In the midst of reading.
    bed.node.kill_agent()?;
    let id = container.id().to_owned();
    container.delete()?;
    bed.node.restart_agent()?;
    let counts = bed.program.counts(&id);
    let account = account::is_complete(&bed.node, &id, counts, 0)?;
    let all = counts.begun == executions && counts.stopped == executions;
    ensure!(all && account.lost > 0, "{counts:?}: {account:?}");
    let figures =
        format!("{executions} executions of nc, {} told, {} of them by number only", account.told, account.lost);
    Ok(vec![Row {
        fault: "the ring buffer overflows; then agent and shim are killed",
        rounds: 1,
        held: "what found no room is told by number, exactly",
        figures,
    }])
}

/// Containers live, begin and end meanwhile.
pub fn the_agent_is_paused_under_load(bed: &Bed) -> Result<Vec<Row>> {
    let seconds = bed.scaled(PAUSE_SECONDS);
    let before = (0..bed.lanes()).map(|_| bed.start("life", &[])).collect::<Result<Vec<_>>>()?;
    let mut during = Vec::new();
    {
        let _stopped = Stopped::stop(&bed.node)?;
        let begun = Instant::now();
        while during.is_empty() || begun.elapsed() < Duration::from_secs(seconds) {
            let container = bed.start("life", &[])?;
            thread::sleep(Duration::from_millis(500));
            during.push(container.id().to_owned());
            container.delete()?;
        }
    }
    let mut ids = during;
    let short = ids.len();
    for container in before {
        ids.push(container.id().to_owned());
        container.delete()?;
    }
    let (mut begun, mut told, mut lost) = (0, 0, 0);
    for id in &ids {
        let counts = bed.program.counts(id);
        let account = account::is_complete(&bed.node, id, counts, 0)?;
        (begun, told, lost) = (begun + counts.begun, told + account.told, lost + account.lost);
    }
    let figures = format!(
        "{seconds} s; {} containers, {short} of them began and ended meanwhile; nc tried {begun} times, {told} told, {lost} of them by number only",
        ids.len()
    );
    Ok(vec![Row {
        fault: "the agent is paused under load",
        rounds: 1,
        held: "containers start under guard without it; all is told afterwards",
        figures,
    }])
}
