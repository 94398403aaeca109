//! Pods, made through CRI as kubelet makes them, each with a network of its own.

mod faults;
mod lives;
mod options;
mod selection;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    cni::Networks,
    containerd::has_systemd,
    cri::{self, Cri, POD_NAMESPACE},
    eventually::{eventually, within},
    node::{Node, Traces},
    signals::Pod,
};
use portcullis_policy::policyset::Backend;

use crate::{
    stopped,
    test::{CONTAINERD, Test},
};

/// All of them.
pub const TESTS: [Test; 11] = [
    Test::new(CONTAINERD, "a_pod_has_one_shim_and_leaves_nothing", a_pod_has_one_shim_and_leaves_nothing),
    Test::new(CONTAINERD, "each_container_of_a_pod_has_its_own_mode", each_container_of_a_pod_has_its_own_mode),
    Test::new(
        CONTAINERD,
        "a_pod_s_annotation_holds_for_all_its_containers",
        a_pod_s_annotation_holds_for_all_its_containers,
    ),
    Test::new(CONTAINERD, "a_signal_names_pod_and_container", a_signal_names_pod_and_container),
    Test::new(CONTAINERD, "a_pod_s_life_is_told", lives::a_pod_s_life_is_told),
    Test::new(CONTAINERD, "a_pod_s_restarted_container_is_guarded_anew", lives::a_restarted_container_is_guarded_anew),
    Test::new(CONTAINERD, "a_pod_s_containers_are_contained_alone", lives::containers_are_contained_alone),
    Test::new(
        CONTAINERD,
        "a_pod_is_under_the_policy_that_selects_it",
        selection::a_pod_is_under_the_policy_that_selects_it,
    ),
    Test::new(CONTAINERD, "a_pod_s_options_reach_the_runtime", options::options_reach_the_runtime),
    Test::new(CONTAINERD, "a_pod_survives_containerd_and_agent", faults::a_pod_survives_containerd_and_agent),
    Test::new(
        CONTAINERD,
        "a_pod_whose_shim_dies_takes_nothing_along",
        faults::a_pod_whose_shim_dies_takes_nothing_along,
    ),
];

/// Where systemd runs.
pub fn systemd() -> Vec<Test> {
    let tests: [Test; 2] = [
        Test::new(CONTAINERD, "a_pod_s_cgroups_may_be_systemd_s", options::systemd_may_own_the_cgroups),
        Test::new(CONTAINERD, "a_pod_s_config_path_is_ctr_s_too", options::ctr_may_name_the_options_file),
    ];
    if has_systemd() { tests.to_vec() } else { Vec::new() }
}

/// The agent looks every half minute for what nobody cleaned up, and believes what it has seen twice.
const SWEPT: Duration = Duration::from_secs(120);

const ENFORCE: [(&str, &str); 1] = [("portcullis.dev/mode", "enforce")];

fn nothing_is_left(node: &Node, sockets: &[PathBuf]) -> Result<()> {
    let nothing = Traces { links: Vec::new(), map_entries: Vec::new(), records: Vec::new(), shims: Vec::new() };
    within(SWEPT, || {
        let traces = node.traces()?;
        ensure!(traces == nothing, "left: {traces:?}");
        let networks = Networks::of(node.containerd().directory())?;
        ensure!(networks == Networks::default(), "left: {networks:?}");
        let left: Vec<_> = sockets.iter().filter(|socket| socket.exists()).collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
}

/// Waits until containerd, the agent and the kernel tell the same: that just these pods and containers run.
fn all_agree(node: &Node, cri: &Cri, pods: &[&cri::Pod<'_>], containers: &[&String]) -> Result<()> {
    let pods: BTreeSet<String> = pods.iter().map(|pod| pod.id().to_owned()).collect();
    let containers: BTreeSet<String> = containers.iter().map(|&id| id.clone()).collect();
    within(SWEPT, || {
        let ready = cri.pods()?.into_iter().filter(cri::v1::PodSandbox::is_ready).map(|pod| pod.id).collect();
        let running = cri.containers()?.into_iter().filter(cri::v1::Container::is_running).map(|one| one.id).collect();
        ensure!(pods == ready && containers == running, "CRI tells of the pods {ready:?} with {running:?}");
        let told = node.containers()?;
        let known: BTreeSet<String> = told.iter().map(|one| one.id.clone()).collect();
        ensure!(known == &pods | &containers && told.iter().all(|one| one.guarded), "the agent tells of {told:#?}");
        let cgroups: BTreeSet<u64> = told.iter().map(|one| one.cgroup_id).collect();
        let traces = node.traces()?;
        let numbers = |names: &[String]| names.iter().filter_map(|name| name.parse().ok()).collect::<BTreeSet<u64>>();
        ensure!(
            cgroups == traces.map_entries.iter().copied().collect() && cgroups == numbers(&traces.records),
            "the agent tells of {cgroups:?}, and there are {traces:?}"
        );
        let links = if node.backend() == Backend::Lsm { cgroups } else { BTreeSet::new() };
        ensure!(links == numbers(&traces.links), "{traces:?} instead of {links:?}");
        let sockets = node.containerd().sockets();
        let exist = sockets.iter().filter(|socket| socket.exists()).count();
        ensure!(traces.shims.len() == 2 * pods.len() && exist >= 2 * pods.len(), "{traces:?}, {sockets:?}");
        let networks = Networks::of(node.containerd().directory())?;
        let counts = [&networks.leases, &networks.devices, &networks.namespaces].map(Vec::len);
        ensure!(counts == [pods.len(); 3], "{networks:?}");
        Ok(())
    })
}

/// By a shell, and as the session's first process.
fn assert_nc_is_stopped(node: &Node, cri: &Cri, container: &str) -> Result<()> {
    let by_shell = cri.exec(container, &["sh", "-c", "/usr/bin/nc -h"])?;
    let direct = cri.exec(container, &["/usr/bin/nc", "-h"]);
    match node.backend() {
        Backend::Lsm => {
            ensure!(by_shell.status == 126 && by_shell.stderr.contains("Operation not permitted"), "{by_shell}");
            // Some versions of runc fail to start it, others start and lose it; crun says it with a capital.
            let told = match direct {
                Err(error) => format!("{error:#}"),
                Ok(output) => output.stderr,
            };
            ensure!(told.to_lowercase().contains("operation not permitted"), "{told}");
        }
        Backend::Tracepoint => {
            ensure!(by_shell.status == 137, "{by_shell}");
            let direct = direct?;
            ensure!(direct.status == 137, "{direct}");
        }
    }
    Ok(())
}

fn assert_nc_runs(cri: &Cri, container: &str) -> Result<()> {
    cri.exec(container, &["/usr/bin/nc", "-h"])?.success()?;
    Ok(())
}

/// A container's signals: verdict, and how often, which is told within a second.
fn assert_told(node: &Node, container: &str, expected: &[(&str, u64)]) -> Result<()> {
    eventually(|| {
        let signals = node.signals_until(container, "nc")?;
        let told: Vec<_> = signals.iter().map(|signal| (signal.verdict.as_str(), signal.count)).collect();
        ensure!(told == expected, "{told:?} instead of {expected:?}: {signals:#?}");
        Ok(())
    })
}

fn a_pod_has_one_shim_and_leaves_nothing(node: &Node) -> Result<()> {
    nothing_is_left(node, &[])?;
    let cri = node.cri()?;
    let pod = cri.pod("web", &[])?;
    let containers = [pod.start("one", &[])?, pod.start("two", &ENFORCE)?];
    let traces = node.traces()?;
    let told = node.containers()?;
    ensure!(told.iter().all(|container| container.guarded), "{told:#?}");
    // Ours and the stock one behind it; the third guarded container is the pod's own.
    ensure!(traces.shims.len() == 2 && node.containerd().own_shims().len() == 1, "{traces:?}");
    ensure!(traces.map_entries.len() == 3 && traces.records.len() == 3, "{traces:?}");
    ensure!(traces.links.len() == if node.backend() == Backend::Lsm { 3 } else { 0 }, "{traces:?}");
    let listed = cri.containers()?;
    for id in &containers {
        ensure!(listed.iter().any(|found| found.id == *id && found.is_running()), "{id} does not run: {listed:?}");
    }
    let sockets = node.containerd().sockets();
    ensure!(sockets.len() >= 2, "only {sockets:?}");
    pod.remove()?;
    nothing_is_left(node, &sockets)?;
    ensure!(cri.containers()?.is_empty(), "{:?}", cri.containers()?);
    Ok(())
}

fn each_container_of_a_pod_has_its_own_mode(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    let pod = cri.pod("modes", &[])?;
    let detect = pod.start("detect", &[])?;
    let enforce = pod.start("enforce", &ENFORCE)?;
    for _ in 0..2 {
        assert_nc_runs(&cri, &detect)?;
        assert_nc_is_stopped(node, &cri, &enforce)?;
    }
    assert_told(node, &detect, &[("would_block", 2)])?;
    // By a shell, and by the runtime.
    assert_told(node, &enforce, &[(stopped(node), 2); 2])?;
    pod.remove()
}

fn a_pod_s_annotation_holds_for_all_its_containers(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    let pod = cri.pod("strict", &ENFORCE)?;
    let container = pod.start("main", &[])?;
    assert_nc_is_stopped(node, &cri, &container)?;
    let containers = node.containers()?;
    for id in [pod.id(), &container] {
        let told = containers.iter().find(|told| told.id == id).with_context(|| format!("{id} is not listed"))?;
        ensure!(told.mode == "enforce" && told.mode_reason == "annotation" && told.guarded, "{told:#?}");
    }
    pod.remove()
}

fn a_signal_names_pod_and_container(node: &Node) -> Result<()> {
    let cri = node.cri()?;
    let pod = cri.pod("web-0", &[])?;
    let container = pod.start("main", &[])?;
    assert_nc_runs(&cri, &container)?;
    let signals = node.signals_until(&container, "nc")?;
    let told = signals.first().and_then(|signal| signal.container.as_ref()).context("no container")?;
    let mut expected = Pod {
        name: "web-0".into(),
        namespace: POD_NAMESPACE.into(),
        uid: "uid-of-web-0".into(),
        sandbox_id: pod.id().into(),
        container_name: "main".into(),
    };
    ensure!(told.pod.as_ref() == Some(&expected), "{told:#?}");
    ensure!(told.image.ends_with("portcullis-demo:latest") && told.containerd_namespace == "k8s.io", "{told:#?}");
    // The one that holds the pod together is guarded like others, and does nothing worth a signal.
    expected.container_name = String::new();
    eventually(|| {
        let containers = node.containers()?;
        let own =
            containers.iter().find(|told| told.id == pod.id()).context("the pod's own container is not listed")?;
        ensure!(own.guarded && own.pod.as_ref() == Some(&expected), "{own:#?}");
        ensure!(own.image.ends_with("portcullis-pause:latest"), "{own:#?}");
        Ok(())
    })?;
    let signals = node.signals()?;
    ensure!(signals.iter().all(|signal| signal.container_id() != pod.id()), "{signals:#?}");
    pod.remove()
}
