//! Which policy a pod's containers are under.

use anyhow::{Result, ensure};
use portcullis_integration_tests::{cri::HANDLER_WITHOUT_ANNOTATIONS, eventually::eventually, node::Node};

use super::{ENFORCE, assert_nc_is_stopped, assert_nc_runs};
use crate::selection::{Files, in_force, policy, told};

/// The image of the pods' own containers; others may have it too.
const PAUSE: &str = "docker.io/library/portcullis-pause:latest";

/// And a pod whose runtime handler hands on none of its annotations is under the default, whatever they say.
pub fn a_pod_is_under_the_policy_that_selects_it(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    files.write("bank.yaml", &policy("bank", "enforce", "{namespaces: [bank]}"))?;
    files.write("ledger.yaml", &policy("ledger", "detect", "{namespaces: [bank], pods: ['ledger-?']}"))?;
    files.write("pause.yaml", &policy("pause", "enforce", "{images: ['*/portcullis-pause:*']}"))?;
    in_force(node, &["ledger", "bank", "pause", "default"])?;
    let cri = node.cri()?;
    let bank = cri.new_pod("counter-1").namespace("bank").start()?;
    let counter = bank.start("app", &[])?;
    let ledger = cri.new_pod("ledger-1").namespace("bank").start()?;
    let book = ledger.start("app", &[])?;
    let shop = cri.new_pod("till-1").host_network().handler(HANDLER_WITHOUT_ANNOTATIONS);
    let shop = shop.annotation(ENFORCE[0].0, ENFORCE[0].1).start()?;
    let till = shop.start("app", &ENFORCE)?;
    let idle = shop.container("idle").image(PAUSE).start()?;
    for (container, expected, mode) in [
        (bank.id(), "bank", "enforce"),
        (&counter, "bank", "enforce"),
        (ledger.id(), "ledger", "detect"),
        (&book, "ledger", "detect"),
        // Its image too, once containerd has told it.
        (shop.id(), "pause", "enforce"),
        (&idle, "pause", "enforce"),
        (&till, "default", "detect"),
    ] {
        eventually(|| {
            let told = told(node, container)?;
            ensure!(told.guarded && told.policy == expected && told.mode == mode, "{told:#?}");
            ensure!(told.mode_reason == "policy", "{told:#?}");
            Ok(())
        })?;
    }
    assert_nc_is_stopped(node, &cri, &counter)?;
    assert_nc_is_stopped(node, &cri, &idle)?;
    assert_nc_runs(&cri, &book)?;
    assert_nc_runs(&cri, &till)?;
    for pod in [bank, ledger, shop] {
        pod.remove()?;
    }
    Ok(())
}
