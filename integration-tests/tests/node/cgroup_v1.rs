//! A node without cgroup v2, which nothing here can guard: everything must say so, and what to do.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Failed, Trial};
use portcullis_bpf::abi::ABI_VERSION;
use portcullis_integration_tests::{
    agent::refuse,
    command::{Output, run},
    node::Setup,
};
use portcullis_policy::policyset::{self, Backend, Mode, OnAttachFailure, PolicyEntry, PolicySet};
use tempfile::TempDir;

/// Whether the node is such a one.
pub fn is_all_there_is() -> bool {
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| !mounts.contains(" - cgroup2 "))
}

type Test = (&'static str, fn(&Setup) -> Result<()>);

/// The tests for it.
pub fn trials(setup: &Setup) -> Vec<Trial> {
    let tests: [Test; 3] = [
        ("the_agent_refuses_to_start", the_agent_refuses_to_start),
        ("check_names_the_remedy", check_names_the_remedy),
        ("on_attach_failure_decides", on_attach_failure_decides),
    ];
    tests
        .into_iter()
        .map(|(name, test)| {
            let setup = setup.clone();
            let test = move || test(&setup).map_err(|error| Failed::from(format!("{error:#}")));
            Trial::test(format!("cgroup_v1::{name}"), test)
        })
        .collect()
}

fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("portcullis-").tempdir()?)
}

fn assert_explained(output: &Output) -> Result<()> {
    ensure!(output.status != 0, "it succeeded: {output}");
    for part in ["cgroup v1 only", "systemd.unified_cgroup_hierarchy=1"] {
        ensure!(output.text().contains(part), "{part:?} is missing in {output}");
    }
    Ok(())
}

fn the_agent_refuses_to_start(setup: &Setup) -> Result<()> {
    let directory = directory()?;
    let paths = setup.agent_paths(directory.path(), directory.path());
    paths.prepare()?;
    assert_explained(&refuse(&paths.program, &paths.config())?)?;
    ensure!(!paths.run_dir.join(policyset::file_name(ABI_VERSION)).exists(), "a policy set was published all the same");
    Ok(())
}

fn check_names_the_remedy(setup: &Setup) -> Result<()> {
    assert_explained(&run(Command::new(setup.bin_dir.join("portcullis")).arg("check"))?)
}

/// A policy set that an agent published before the node's cgroups changed.
fn stale_policy_set(on_attach_failure: OnAttachFailure) -> PolicySet {
    PolicySet {
        format: policyset::FORMAT,
        backend: Backend::Tracepoint,
        pins: "/sys/fs/bpf/portcullis/v3".into(),
        inner_shim: "containerd-shim-runc-v2".into(),
        catalog: 1,
        default_policy: PolicyEntry::new(1, "default", Mode::Detect, on_attach_failure),
        policies: Vec::new(),
    }
}

fn on_attach_failure_decides(setup: &Setup) -> Result<()> {
    let directory = directory()?;
    let containerd = setup.start_containerd(directory.path(), directory.path())?;
    let publish = |choice| -> Result<()> {
        Ok(fs::write(directory.path().join(policyset::file_name(ABI_VERSION)), stale_policy_set(choice).to_bytes()?)?)
    };
    publish(OnAttachFailure::Deny)?;
    assert_explained(&containerd.container().run(&["true"])?)?;
    publish(OnAttachFailure::Allow)?;
    containerd.container().run(&["true"])?.success().context("the container may run unguarded")?;
    Ok(())
}
