//! What the handler's configuration says to the runtime: that it arrives, however containerd hands it on.

use std::fs;

use anyhow::{Result, ensure};
use portcullis_integration_tests::{
    cri::{self, Cri},
    node::Node,
};

use super::{ENFORCE, assert_nc_is_stopped, assert_told, nothing_is_left};
use crate::{stopped, versions::version};

/// A pod by this handler with one container, in which nc is stopped.
fn with_container(
    node: &Node,
    cri: &Cri,
    handler: &str,
    look: impl FnOnce(&cri::Pod<'_>, &str) -> Result<()>,
) -> Result<()> {
    let pod = cri.new_pod("options").handler(handler).annotation(ENFORCE[0].0, ENFORCE[0].1).start()?;
    let container = pod.start("main", &[])?;
    look(&pod, &container)?;
    pod.remove()?;
    nothing_is_left(node, &[])
}

/// `Root` says where runc keeps its state.
pub fn options_reach_the_runtime(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    // containerd 1.6 sends the path of a file only.
    let sends_body = !version(node, "containerd")?.starts_with("1.6.");
    for (handler, root, expected) in
        [("portcullis-path", "runc-by-path", true), ("portcullis-body", "runc-by-body", sends_body)]
    {
        with_container(node, &cri, handler, |pod, container| {
            for id in [pod.id(), container] {
                let state = node.containerd().directory().join(root).join(cri::NAMESPACE).join(id);
                ensure!(state.exists() == expected, "{handler}: {} exists: {}", state.display(), !expected);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Only where systemd runs, and with crun as well.
pub fn systemd_may_own_the_cgroups(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    for handler in ["portcullis", "portcullis-crun"] {
        with_container(node, &cri, handler, |pod, container| {
            for id in [pod.id(), container] {
                let pid = if id == container { cri.pid(id)? } else { pod.pid()? };
                let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
                let scope = format!("{}/cri-containerd-{id}.scope", pod.slice());
                // crun makes one of its own below.
                let found = cgroup.trim_end().trim_end_matches("/container");
                ensure!(found.ends_with(&scope), "{handler}: {found} does not end in {scope}");
            }
            assert_nc_is_stopped(node, &cri, container)?;
            assert_told(node, container, &[(stopped(node), 1); 2])
        })?;
    }
    Ok(())
}
