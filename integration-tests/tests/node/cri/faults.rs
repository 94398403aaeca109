//! What is left when one of those dies that pods depend on.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use portcullis_integration_tests::{
    cri::{Cri, Pod},
    eventually::eventually,
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

/// Their processes are gone, or dead and not waited for.
fn have_ended(pids: &[i32]) -> Result<()> {
    eventually(|| {
        for pid in pids {
            let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
            ensure!(line.is_empty(), "process {pid} lives: {}", String::from_utf8_lossy(&line));
        }
        Ok(())
    })
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
    have_ended(&pids)?;
    nothing_is_left(node, &sockets)
}

/// Our shim of one pod, then the stock one of the other: each time the pod is over, and the other is not touched.
pub fn a_pod_whose_shim_dies_takes_nothing_along(node: &Node) -> Result<()> {
    nothing_is_left(node, &[])?;
    let cri = node.cri()?;
    let mut survivor = Lived::start(&cri, "gamma")?;
    let mut sockets = Vec::new();
    let kills: [fn((Pid, Pid)) -> Pid; 2] = [|(ours, _)| ours, |(_, stock)| stock];
    for (kill, name) in kills.into_iter().zip(["delta", "epsilon"]) {
        let other = Lived::start(&cri, name)?;
        let (killed, lives) = (survivor, other);
        live(node, &cri, &[&killed, &lives])?;
        sockets.extend(node.containerd().sockets());
        let pids = killed.pids(&cri)?;
        kill_process(kill(node.containerd().shims_of(killed.pod.id())?), Signal::KILL)?;
        killed.pod.remove()?;
        have_ended(&pids)?;
        live(node, &cri, &[&lives])?;
        survivor = lives;
    }
    survivor.pod.remove()?;
    nothing_is_left(node, &sockets)
}
