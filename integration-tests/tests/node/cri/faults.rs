//! What is left when one of those dies that pods depend on.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    cri::{Cri, Pod, STOCK_HANDLER},
    eventually::{eventually, within},
    node::Node,
};
use rustix::process::{Pid, Signal, kill_process};

use super::{ENFORCE, all_agree, assert_nc_is_stopped, nothing_is_left};

/// A pod and its two containers.
struct Lived<'a> {
    pod: Pod<'a>,
    containers: [String; 2],
}

impl<'a> Lived<'a> {
    fn start(cri: &'a Cri, name: &str) -> Result<Self> {
        let pod = cri.pod(name, &ENFORCE)?;
        let containers = [pod.start("one", &[])?, pod.start("two", &[])?];
        Ok(Self { pod, containers })
    }

    /// Its containers' first processes.
    fn pids(&self, cri: &Cri) -> Result<Vec<i32>> {
        self.containers.iter().map(|container| cri.pid(container)).collect()
    }
}

/// Just these live, and what they execute is judged.
fn live(node: &Node, cri: &Cri, pods: &[&Lived<'_>]) -> Result<()> {
    let containers: Vec<_> = pods.iter().flat_map(|lived| &lived.containers).collect();
    let pods: Vec<_> = pods.iter().map(|lived| &lived.pod).collect();
    all_agree(node, cri, &pods, &containers)?;
    containers.iter().try_for_each(|container| assert_nc_is_stopped(node, cri, container))
}

/// Whether a process runs; one that is dead and not waited for has no arguments.
fn lives(pid: i32) -> bool {
    fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).is_ok_and(|line| !line.is_empty())
}

fn have_ended(pids: &[i32]) -> Result<()> {
    ensure!(!pids.iter().any(|&pid| lives(pid)), "of {pids:?} some live");
    Ok(())
}

/// Removes a pod whose shim is dead, and tells how many of its containers' processes go on for all that.
fn remove_and_count(pod: Pod<'_>, pids: &[i32]) -> Result<usize> {
    pod.remove()?;
    // Enough for those that are being killed.
    let _ = within(Duration::from_secs(5), || have_ended(pids));
    Ok(pids.iter().filter(|&&pid| lives(pid)).count())
}

/// What goes on when a pod's shim was killed and the pod is removed, with the stock shim alone. containerd 1 ends all
/// containers, containerd 2 the pod's own one.
fn left_by_the_stock_shim(node: &Node, cri: &Cri) -> Result<usize> {
    let pod = cri.new_pod("stock").host_network().handler(STOCK_HANDLER).start()?;
    let pids = [cri.pid(&pod.start("one", &[])?)?, cri.pid(&pod.start("two", &[])?)?];
    for shim in node.containerd().shims_for(pod.id()) {
        kill_process(shim, Signal::KILL)?;
    }
    let left = remove_and_count(pod, &pids)?;
    end(&pids)?;
    Ok(left)
}

fn end(pids: &[i32]) -> Result<()> {
    for &pid in pids.iter().filter(|&&pid| lives(pid)) {
        kill_process(Pid::from_raw(pid).context("no pid")?, Signal::KILL)?;
    }
    eventually(|| have_ended(pids))
}

pub fn a_pod_survives_containerd_and_agent(node: &Node) -> Result<()> {
    nothing_is_left(node, &[])?;
    let cri = node.cri()?;
    let pods = [Lived::start(&cri, "alpha")?, Lived::start(&cri, "beta")?];
    let both = [&pods[0], &pods[1]];
    live(node, &cri, &both)?;
    let pids = [pods[0].pids(&cri)?, pods[1].pids(&cri)?].concat();
    let sockets = node.containerd().sockets();

    node.containerd().kill_and_restart()?;
    live(node, &cri, &both)?;
    node.kill_agent()?;
    let enforced = both.iter().try_for_each(|lived| assert_nc_is_stopped(node, &cri, &lived.containers[0]));
    node.restart_agent()?;
    enforced?;
    live(node, &cri, &both)?;
    ensure!(pids == [pods[0].pids(&cri)?, pods[1].pids(&cri)?].concat(), "other processes than before");

    for lived in pods {
        lived.pod.remove()?;
    }
    eventually(|| have_ended(&pids))?;
    nothing_is_left(node, &sockets)
}

/// Our shim of one pod, then the stock one of the next: the pod is over, as far as it would be with the stock shim alone, and
/// the other pod is not touched. Whatever goes on is under guard, and known, until it ends.
pub fn a_pod_whose_shim_dies_takes_nothing_along(node: &Node) -> Result<()> {
    nothing_is_left(node, &[])?;
    let cri = node.cri()?;
    let stock = left_by_the_stock_shim(node, &cri)?;
    let mut sockets = Vec::new();
    let mut killed = Lived::start(&cri, "gamma")?;
    let kills: [fn((Pid, Pid)) -> Pid; 2] = [|(ours, _)| ours, |(_, stock)| stock];
    for (kill, name) in kills.into_iter().zip(["delta", "epsilon"]) {
        let other = Lived::start(&cri, name)?;
        live(node, &cri, &[&killed, &other])?;
        sockets.extend(node.containerd().sockets());
        let pids = killed.pids(&cri)?;
        kill_process(kill(node.containerd().shims_of(killed.pod.id())?), Signal::KILL)?;
        let left = remove_and_count(killed.pod, &pids)?;
        ensure!(left == stock, "{left} processes go on, {stock} with the stock shim alone");
        let known = node.containers()?;
        for (pid, container) in pids.iter().zip(&killed.containers) {
            let guarded = known.iter().any(|known| known.id == *container && known.guarded);
            ensure!(guarded || !lives(*pid), "{container} goes on unguarded: {known:#?}");
        }
        end(&pids)?;
        live(node, &cri, &[&other])?;
        killed = other;
    }
    killed.pod.remove()?;
    nothing_is_left(node, &sockets)
}
