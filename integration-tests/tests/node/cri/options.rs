//! What the handler's configuration says to the runtime: that it arrives, however containerd hands it on.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    command::run,
    cri::{self, Cri},
    eventually::eventually,
    node::Node,
};

use super::{ENFORCE, assert_nc_is_stopped, assert_told, nothing_is_left};
use crate::{assert_stopped, selection::told, stopped};

const CGROUPS: &str = "/sys/fs/cgroup";

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
    let sends_body = !node.version("containerd")?.starts_with("1.6.");
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

/// The cgroup of a container's first process is its scope or, by crun, `container` in it; there it is guarded.
fn assert_guarded_in_scope(node: &Node, pod: &cri::Pod<'_>, id: &str, pid: i32, below: &str) -> Result<()> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let cgroup = text.trim_end().strip_prefix("0::/").context("no cgroup of version 2")?;
    let scope = format!("{}/cri-containerd-{id}.scope{below}", pod.slice());
    ensure!(cgroup.ends_with(&scope), "{cgroup} does not end in {scope}");
    let known = told(node, id)?;
    let inode = fs::metadata(Path::new(CGROUPS).join(cgroup))?.ino();
    ensure!(known.guarded && known.cgroup_id == inode, "{cgroup} is {inode}, not that of {known:#?}");
    Ok(())
}

/// Of containers that are gone.
fn assert_no_scopes() -> Result<()> {
    eventually(|| {
        let list = ["list-units", "--all", "--plain", "--no-legend", "cri-containerd-*.scope", "ctr-*.scope"];
        let scopes = run(Command::new("systemctl").args(list))?.success()?.stdout;
        ensure!(scopes.is_empty(), "left: {scopes}");
        Ok(())
    })
}

/// Only where systemd runs, and with crun as well.
pub fn systemd_may_own_the_cgroups(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    for (handler, below) in [("portcullis", ""), ("portcullis-crun", "/container")] {
        with_container(node, &cri, handler, |pod, container| {
            assert_guarded_in_scope(node, pod, pod.id(), pod.pid()?, below)?;
            assert_guarded_in_scope(node, pod, container, cri.pid(container)?, below)?;
            // An exec session is where the first process is, whose cgroup is all that it sees.
            let session = cri.exec(container, &["cat", "/proc/self/cgroup"])?.success()?;
            ensure!(session.stdout == "0::/\n", "{handler}: {session}");
            assert_nc_is_stopped(node, &cri, container)?;
            assert_told(node, container, &[(stopped(node), 1); 2])
        })?;
        assert_no_scopes()?;
    }
    Ok(())
}

/// `ctr run --runtime-config-path` sends what CRI sends for a `ConfigPath`.
pub fn ctr_may_name_the_options_file(node: &Node) -> Result<()> {
    let file = format!("--runtime-config-path={}", node.containerd().directory().join("crun.toml").display());
    let container = node.container().mode("enforce");
    let id = container.id().to_owned();
    // As systemd's driver wants it: slice, prefix, name.
    let cgroup = format!("--cgroup=system.slice:ctr:{id}");
    let container = container.option(&file).option(&cgroup).start()?;
    let scope = Path::new(CGROUPS).join(format!("system.slice/ctr-{id}.scope/container"));
    let known = told(node, &id)?;
    ensure!(known.guarded && known.cgroup_id == fs::metadata(&scope)?.ino(), "not in {}: {known:#?}", scope.display());
    for outcome in container.shell(&["/usr/bin/nc -h"])? {
        assert_stopped(node, "nc", &outcome)?;
    }
    container.delete()?;
    assert_no_scopes()
}
