//! Whether signals stand for all that was executed: each by itself, with a count, or as told to be lost.

use anyhow::{Result, ensure};
use portcullis_integration_tests::{eventually::eventually, node::Node, signals::Signal};

use crate::program::Counts;

/// What was told of a container.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account {
    /// Executions of nc that signals stand for.
    pub told: u64,
    /// Those of them of which only the number is told, because they were lost.
    pub lost: u64,
}

/// As far as it is told by now.
pub fn of(node: &Node, id: &str) -> Result<Account> {
    let signals: Vec<Signal> = node.json(&["signals", "list", "--all", "--container", id])?;
    let sum = |is_meant: fn(&Signal) -> bool| -> u64 {
        signals.iter().filter(|signal| is_meant(signal)).map(|signal| signal.count).sum()
    };
    let lost = sum(|signal| signal.rule == "events_lost");
    let told = sum(|signal| signal.tool() == "nc" || signal.rule == "signals_suppressed");
    Ok(Account { told: told + lost, lost })
}

/// Of a container that is there and executes nothing any more: no execution is missing, and none is told twice, neither by the
/// kernel nor by the agent.
pub fn is_exact(node: &Node, id: &str, counts: Counts) -> Result<Account> {
    ensure!(counts.odd == 0 && counts.stopped == counts.begun, "{id}: {counts:?}");
    eventually(|| {
        let kernel = node.counters(id)?;
        let account = of(node, id)?;
        ensure!(kernel.matched == counts.begun, "{id}: the kernel has {kernel:?} of {counts:?}");
        ensure!(kernel.blocked + kernel.killed == kernel.matched, "{id}: {kernel:?}");
        ensure!(account.told == kernel.matched, "{id}: {account:?} of {kernel:?}");
        Ok(account)
    })
}

/// Of a container that was killed: its last execution may have been under way, and `besides` were executed by others than its
/// first process.
pub fn is_complete(node: &Node, id: &str, counts: Counts, besides: u64) -> Result<Account> {
    eventually(|| {
        let account = of(node, id)?;
        let possible = counts.stopped..=counts.begun + besides;
        ensure!(counts.odd == 0 && possible.contains(&account.told), "{id}: {account:?} of {counts:?}");
        Ok(account)
    })
}
