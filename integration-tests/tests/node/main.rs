//! Real containers on a real node. `scripts/test host` and `scripts/test vm` run this binary; without their environment it
//! has nothing to run on and says so.

mod access;
mod catalog;
mod cgroup_v1;
mod contain;
mod cri;
mod evasion;
mod exceptions;
mod fleet;
mod independent_client;
mod learning;
mod model;
mod network;
mod probes;
mod repeats;
mod sandbox;
mod selection;
mod store;
mod story;
mod tampering;
mod test;
mod upgrade;
mod upstream;
mod versions;

use std::{
    fs,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use portcullis_integration_tests::{
    agent::refuse,
    containerd::{Container, Outcome},
    eventually::eventually,
    node::{Node, Setup, Traces},
    signals::Signal,
};
use portcullis_policy::{
    policyset::{Backend, OnAttachFailure},
    source::SHIPPED_DEFAULT,
};
use rustix::process::Signal as UnixSignal;

use crate::test::{ALL, CONTAINERD, KERNEL, KERNEL_AND_CONTAINERD, OURSELVES, Test, deciders};

/// By absolute path, by PATH, and through links under innocent names.
const TOOLS: [(&str, &str); 8] = [
    ("/usr/bin/nc -h", "nc"),
    ("nc -h", "nc"),
    ("/opt/links/report -h", "nc"),
    ("/usr/bin/nslookup -version", "nslookup"),
    ("/opt/links/lookup -version", "nslookup"),
    ("/usr/bin/curl --version", "curl"),
    ("curl --version", "curl"),
    ("/opt/links/update --version", "curl"),
];

const INNOCENT: [&str; 6] =
    ["echo nc", "ls /usr/bin/nc", "ncdu", "which nc", "cat /usr/bin/nc >/dev/null", "true curl"];

/// A tool that ends a series of innocent programs, so that a test knows that it has seen all of their signals.
const LAST: (&str, &str) = ("/usr/bin/dig -v", "dig");

fn lines() -> Vec<&'static str> {
    TOOLS.iter().map(|(line, _)| *line).chain(INNOCENT).chain([LAST.0]).collect()
}

fn tools() -> Vec<&'static str> {
    TOOLS.iter().map(|(_, tool)| *tool).chain([LAST.1]).collect()
}

fn assert_stopped(node: &Node, line: &str, outcome: &Outcome) -> Result<()> {
    match node.backend() {
        Backend::Lsm => ensure!(
            outcome.status == 126 && outcome.output.contains("Operation not permitted"),
            "{line}: EPERM was expected, not {outcome:?}"
        ),
        Backend::Tracepoint => ensure!(outcome.status == 137, "{line}: SIGKILL was expected, not {outcome:?}"),
    }
    Ok(())
}

fn stopped(node: &Node) -> &'static str {
    match node.backend() {
        Backend::Lsm => "blocked",
        Backend::Tracepoint => "killed",
    }
}

fn verdicts(signals: &[Signal]) -> Vec<&str> {
    signals.iter().map(|signal| signal.verdict.as_str()).collect()
}

fn run_all(container: &Container<'_>) -> Result<Vec<Outcome>> {
    container.shell(&lines())
}

fn enforce_stops_tools_and_nothing_else(node: &Node) -> Result<()> {
    let container = node.container().mode("enforce").start()?;
    let outcomes = run_all(&container)?;
    for (line, outcome) in lines().iter().zip(&outcomes) {
        if INNOCENT.contains(line) {
            ensure!(outcome.status == 0, "{line}: {outcome:?}");
        } else {
            assert_stopped(node, line, outcome)?;
        }
    }
    let mut signals = node.signals_until(container.id(), LAST.1)?;
    ensure!(verdicts(&signals).iter().all(|verdict| *verdict == stopped(node)), "{signals:#?}");
    // After EPERM a shell tries the next directory of PATH, where the same file is met again.
    signals.dedup_by_key(|signal| signal.process.as_ref().map(|process| process.argv.clone()));
    ensure!(signals.iter().map(Signal::tool).eq(tools()), "{signals:#?}");
    Ok(())
}

fn detect_reports_and_lets_run(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let outcomes = run_all(&container)?;
    for (line, outcome) in lines().iter().zip(&outcomes) {
        ensure!(outcome.status == 0, "{line}: {outcome:?}");
    }
    let signals = node.signals_until(container.id(), LAST.1)?;
    ensure!(signals.iter().map(Signal::tool).eq(tools()), "{signals:#?}");
    ensure!(verdicts(&signals).iter().all(|verdict| *verdict == "would_block"), "{signals:#?}");
    Ok(())
}

fn a_signal_tells_the_whole_story(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    container.exec(&["sh", "-c", "cd /tmp; /opt/links/report -h 'two words'; true"])?;
    let signals = node.signals_until(container.id(), "nc")?;
    let signal = signals.first().context("no signal")?;
    let process = signal.process.as_ref().context("no process")?;
    let tool = signal.tool.as_ref().context("no tool")?;
    let told = signal.container.as_ref().context("no container")?;
    ensure!(signal.rule == "net_util_in_container" && signal.severity == "high", "{signal:#?}");
    ensure!(tool.category == "netcat" && tool.techniques.contains(&"T1095".to_owned()), "{signal:#?}");
    ensure!(signal.identified_by == ["resolved_name", "fingerprint"] && signal.origin == "exec_session", "{signal:#?}");
    ensure!(process.invoked_name == "report" && process.filename == "/opt/links/report", "{signal:#?}");
    ensure!(process.exe == "/usr/bin/nc.openbsd" && process.cwd == "/tmp", "{signal:#?}");
    ensure!(process.argv == ["/opt/links/report", "-h", "two words"] && process.argc == 3, "{signal:#?}");
    ensure!(process.uid == 0 && process.container_pid > 1 && process.pid > process.container_pid, "{signal:#?}");
    ensure!(told.image.ends_with("portcullis-demo:latest") && told.containerd_namespace == "default", "{signal:#?}");
    let shell = signal.lineage.first().context("no lineage")?;
    ensure!(shell.exe == "/usr/bin/dash" && shell.argv.first().is_some_and(|name| name == "sh"), "{signal:#?}");
    Ok(())
}

fn an_empty_argument_hides_nothing(node: &Node) -> Result<()> {
    for mode in ["detect", "enforce"] {
        let container = node.container().mode(mode).start()?;
        container.shell(&["/usr/bin/nc -h '' '' after"])?;
        let signals = node.signals_until(container.id(), "nc")?;
        let process = signals.first().and_then(|signal| signal.process.as_ref()).context("no process")?;
        ensure!(process.argv == ["/usr/bin/nc", "-h", "", "", "after"] && process.argc == 5, "{mode}: {process:#?}");
    }
    Ok(())
}

fn the_first_process_is_covered(node: &Node) -> Result<()> {
    let container = node.container().mode("enforce");
    let id = container.id().to_owned();
    let output = container.run(&["nc", "-h"])?;
    ensure!(output.status != 0 && !output.text().contains("usage:"), "nc ran: {output}");
    match node.backend() {
        Backend::Lsm => ensure!(output.text().contains("operation not permitted"), "{output}"),
        Backend::Tracepoint => ensure!(output.status == 137, "{output}"),
    }
    let signals = node.signals_until(&id, "nc")?;
    ensure!(verdicts(&signals) == [stopped(node)], "{signals:#?}");
    ensure!(signals.iter().all(|signal| signal.origin == "container"), "{signals:#?}");
    Ok(())
}

/// Whatever is asked for later is asked too late for these.
fn a_container_of_a_moment_has_it_all(node: &Node) -> Result<()> {
    for _ in 0..3 {
        let container = node.container();
        let id = container.id().to_owned();
        container.run(&["nc", "-h"])?;
        let signals = node.signals_until(&id, "nc")?;
        let [signal] = &signals[..] else { bail!("{signals:#?}") };
        let process = signal.process.as_ref().context("no process")?;
        let told = signal.container.as_ref().context("no container")?;
        ensure!(signal.origin == "container" && process.container_pid == 1 && process.pid > 1, "{signal:#?}");
        ensure!(
            process.argv == ["nc", "-h"] && process.exe == "/usr/bin/nc.openbsd" && process.cwd == "/",
            "{signal:#?}"
        );
        ensure!(
            told.image.ends_with("portcullis-demo:latest") && told.containerd_namespace == "default",
            "{signal:#?}"
        );
        ensure!(told.policy == signal.policy && told.cgroup_id != 0 && signal.novelty.is_some(), "{signal:#?}");
    }
    Ok(())
}

fn two_modes_at_once(node: &Node) -> Result<()> {
    let detect = node.container().start()?;
    let enforce = node.container().mode("enforce").start()?;
    for _ in 0..2 {
        let free = detect.shell(&["nc -h"])?;
        ensure!(free.iter().all(|outcome| outcome.status == 0), "{free:?}");
        for outcome in enforce.shell(&["nc -h"])? {
            assert_stopped(node, "nc", &outcome)?;
        }
    }
    Ok(())
}

fn outside_guarded_containers_nothing_happens(node: &Node) -> Result<()> {
    let before = node.signals()?.len();
    let stock = node.container().runtime("io.containerd.runc.v2").start()?;
    for outcome in run_all(&stock)? {
        ensure!(outcome.status == 0, "{outcome:?}");
    }
    // A signal from elsewhere afterwards: what came before it would be there.
    let container = node.container().start()?;
    container.shell(&[LAST.0])?;
    node.signals_until(container.id(), LAST.1)?;
    ensure!(node.signals()?.len() == before + 1, "a signal from an unguarded container");
    Ok(())
}

fn an_annotation_tightens_but_never_loosens(node: &Node) -> Result<()> {
    let enforce = SHIPPED_DEFAULT.replace("mode: detect", "mode: enforce").replace("name: default", "name: enforce");
    let _policy = node.policy(&enforce)?;
    let container = node.container().mode("detect").start()?;
    for outcome in container.shell(&["nc -h"])? {
        assert_stopped(node, "nc", &outcome)?;
    }
    let containers = node.containers()?;
    let told = containers.iter().find(|told| told.id == container.id()).context("not listed")?;
    ensure!(told.mode == "enforce" && told.mode_reason.contains("refused"), "{told:#?}");
    let senseless = node.container().mode("Enforce").run(&["true"])?;
    ensure!(senseless.status != 0 && senseless.text().contains("\"Enforce\""), "{senseless}");
    Ok(())
}

fn without_an_agent_enforcement_goes_on(node: &Node) -> Result<()> {
    let before = node.container().mode("enforce").start()?;
    node.kill_agent()?;
    let result = (|| {
        let during = node.container().mode("enforce").start()?;
        for container in [&before, &during] {
            for outcome in container.shell(&["nc -h"])? {
                assert_stopped(node, "nc", &outcome)?;
            }
        }
        let id = during.id().to_owned();
        // Gone before the agent is back.
        during.delete()?;
        Ok::<_, anyhow::Error>(id)
    })();
    node.restart_agent()?;
    let gone = result?;
    node.signals_until(before.id(), "nc")?;
    node.signals_until(&gone, "nc")?;
    for outcome in before.shell(&["nc -h"])? {
        assert_stopped(node, "nc", &outcome)?;
    }
    Ok(())
}

fn containers_leave_nothing_behind(node: &Node) -> Result<()> {
    let settled = |traces: &Traces| traces.links.is_empty() && traces.map_entries.is_empty() && traces.shims.is_empty();
    eventually(|| {
        let traces = node.traces()?;
        ensure!(settled(&traces) && traces.records.is_empty(), "left by earlier tests: {traces:?}");
        Ok(())
    })?;
    let mut sockets = Vec::new();
    let batches = node.setup().rounds(10);
    for _ in 0..batches {
        let batch: Vec<_> = (0..5).map(|_| node.container().mode("enforce").start()).collect::<Result<_>>()?;
        ensure!(node.traces()?.map_entries.len() == 5, "{:?}", node.traces()?);
        sockets.extend(node.containerd().sockets());
        for container in batch {
            container.delete()?;
        }
    }
    // Ours and the stock shim's for each.
    ensure!(sockets.len() >= usize::try_from(batches)? * 10, "only {} sockets were seen", sockets.len());
    eventually(|| {
        let traces = node.traces()?;
        ensure!(settled(&traces) && traces.records.is_empty(), "left: {traces:?}");
        let left: Vec<_> = sockets.iter().filter(|socket| socket.exists()).collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
}

fn on_attach_failure_decides(node: &Node) -> Result<()> {
    let broken = |choice: OnAttachFailure| {
        node.change_policy_set(move |set| {
            set.pins = "/nonexistent/pins".into();
            set.default_policy.on_attach_failure = choice;
        })
    };
    {
        let _set = broken(OnAttachFailure::Deny)?;
        let refused = node.container().run(&["true"])?;
        ensure!(refused.status != 0, "it ran: {refused}");
        ensure!(
            refused.text().contains("/nonexistent/pins") && refused.text().contains("start portcullisd"),
            "{refused}"
        );
    }
    let _set = broken(OnAttachFailure::Allow)?;
    let container = node.container().start()?;
    ensure!(container.exec(&["true"])?.status == 0, "the container does not run");
    eventually(|| {
        let signals = node.signals()?;
        let found = signals
            .iter()
            .any(|signal| signal.rule == "container_unguarded" && signal.container_id() == container.id());
        ensure!(found, "no signal says that {} is unguarded", container.id());
        Ok(())
    })
}

fn what_is_missing_is_named(node: &Node) -> Result<()> {
    {
        let _set = node.hide_policy_set()?;
        let refused = node.container().run(&["true"])?;
        ensure!(refused.status != 0 && refused.text().contains("portcullisd"), "{refused}");
    }
    let _set = node.change_policy_set(|set| set.inner_shim = "no-such-shim".into())?;
    let refused = node.container().run(&["true"])?;
    ensure!(refused.status != 0 && refused.text().contains("no-such-shim"), "{refused}");
    Ok(())
}

fn bad_input_changes_nothing(node: &Node) -> Result<()> {
    let policy = node.paths().policy_dir().join("default.yaml");
    fs::write(
        &policy,
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:\n  name: x\nspec:\n  mood: detect\n",
    )?;
    let checked = (|| {
        node.agent().as_ref().context("no agent")?.signal(UnixSignal::HUP)?;
        let container = node.container().mode("enforce").start()?;
        for outcome in container.shell(&["nc -h"])? {
            assert_stopped(node, "nc", &outcome)?;
        }
        eventually(|| {
            let log = node.agent().as_ref().context("no agent")?.log();
            ensure!(log.contains("default.yaml:6:3"), "the agent's log does not name the place: {log}");
            Ok(())
        })
    })();
    fs::remove_file(policy)?;
    checked?;
    let scratch = node.scratch()?;
    let config = scratch.path().join("portcullis.toml");
    let configuration = node.paths().configuration();
    fs::write(&config, format!("{configuration}bakend = \"lsm\"\n"))?;
    let refused = refuse(&node.paths().program, &config)?;
    let place = format!("portcullis.toml:{}:1: ", configuration.lines().count() + 1);
    ensure!(refused.status == 1 && refused.text().contains("bakend") && refused.text().contains(&place), "{refused}");
    Ok(())
}

const TESTS: &[Test] = &[
    Test::new(
        ALL,
        "the_bootstrap_is_the_one_that_containerd_expects",
        versions::the_bootstrap_is_the_one_that_containerd_expects,
    ),
    Test::new(KERNEL_AND_CONTAINERD, "containers_leave_nothing_behind", containers_leave_nothing_behind),
    Test::new(KERNEL, "enforce_stops_tools_and_nothing_else", enforce_stops_tools_and_nothing_else),
    Test::new(KERNEL, "detect_reports_and_lets_run", detect_reports_and_lets_run),
    Test::new(KERNEL, "a_signal_tells_the_whole_story", a_signal_tells_the_whole_story),
    Test::new(KERNEL, "an_empty_argument_hides_nothing", an_empty_argument_hides_nothing),
    Test::new(KERNEL_AND_CONTAINERD, "the_first_process_is_covered", the_first_process_is_covered),
    Test::new(KERNEL_AND_CONTAINERD, "a_container_of_a_moment_has_it_all", a_container_of_a_moment_has_it_all),
    Test::new(KERNEL_AND_CONTAINERD, "two_modes_at_once", two_modes_at_once),
    Test::new(KERNEL, "outside_guarded_containers_nothing_happens", outside_guarded_containers_nothing_happens),
    Test::new(OURSELVES, "an_annotation_tightens_but_never_loosens", an_annotation_tightens_but_never_loosens),
    Test::new(KERNEL_AND_CONTAINERD, "without_an_agent_enforcement_goes_on", without_an_agent_enforcement_goes_on),
    Test::new(KERNEL_AND_CONTAINERD, "on_attach_failure_decides", on_attach_failure_decides),
    Test::new(OURSELVES, "what_is_missing_is_named", what_is_missing_is_named),
    Test::new(OURSELVES, "bad_input_changes_nothing", bad_input_changes_nothing),
    Test::new(KERNEL, "containment_locks_out_every_exec", contain::containment_locks_out_every_exec),
    Test::new(KERNEL_AND_CONTAINERD, "containment_freezes_and_kills", contain::containment_freezes_and_kills),
    Test::new(
        KERNEL,
        "containment_kills_one_process_and_no_other",
        contain::containment_kills_one_process_and_no_other,
    ),
    Test::new(KERNEL, "containment_leaves_loopback_only", contain::containment_leaves_loopback_only),
    Test::new(OURSELVES, "triage_tells_one_story", story::triage_tells_one_story),
    Test::new(OURSELVES, "policies_select_by_namespace_and_name", selection::policies_select_by_namespace_and_name),
    Test::new(OURSELVES, "an_image_selects_once_it_is_known", selection::an_image_selects_once_it_is_known),
    Test::new(OURSELVES, "an_edited_policy_switches_what_runs", selection::an_edited_policy_switches_what_runs),
    Test::new(
        OURSELVES,
        "a_broken_file_keeps_all_that_is_in_force",
        selection::a_broken_file_keeps_all_that_is_in_force,
    ),
    Test::new(
        OURSELVES,
        "annotations_ask_for_more_but_not_for_less",
        selection::annotations_ask_for_more_but_not_for_less,
    ),
    Test::new(OURSELVES, "a_required_backend_is_required", selection::a_required_backend_is_required),
    Test::new(
        OURSELVES,
        "modes_and_policies_change_from_the_command_line",
        selection::modes_and_policies_change_from_the_command_line,
    ),
    Test::new(OURSELVES, "shipped_policies_stop_what_they_say", selection::shipped_policies_stop_what_they_say),
    Test::new(OURSELVES, "an_operators_tools_are_known", catalog::an_operators_tools_are_known),
    Test::new(OURSELVES, "what_could_not_be_learnt_is_said", learning::what_could_not_be_learnt_is_said),
    Test::new(OURSELVES, "every_thread_of_the_agent_is_confined", sandbox::every_thread_of_the_agent_is_confined),
    Test::new(OURSELVES, "a_certificate_may_do_what_its_role_says", access::a_certificate_may_do_what_its_role_says),
    Test::new(
        OURSELVES,
        "certificates_are_replaced_while_the_agent_runs",
        access::certificates_are_replaced_while_the_agent_runs,
    ),
    Test::new(KERNEL, "check_finds_the_node_in_order", check_finds_the_node_in_order),
    Test::new(KERNEL, "every_way_ends_as_the_matrix_says", evasion::every_way_ends_as_the_matrix_says),
    Test::new(
        KERNEL,
        "every_privileged_way_ends_as_the_matrix_says",
        evasion::every_privileged_way_ends_as_the_matrix_says,
    ),
    Test::new(KERNEL, "every_socket_ends_as_the_matrix_says", evasion::every_socket_ends_as_the_matrix_says),
    Test::new(KERNEL, "ten_tools_give_ten_signals", evasion::ten_tools_give_ten_signals),
    Test::new(KERNEL, "what_was_dropped_is_found_where_asked_for", evasion::what_was_dropped_is_found_where_asked_for),
    Test::new(KERNEL, "what_looks_alike_stays_silent", evasion::what_looks_alike_stays_silent),
    Test::new(KERNEL, "a_hostile_image_harms_only_itself", evasion::a_hostile_image_harms_only_itself),
    Test::new(KERNEL, "an_argument_that_changes_deceives_nobody", evasion::an_argument_that_changes_deceives_nobody),
    Test::new(KERNEL, "a_reverse_shell_tells_its_other_end", evasion::a_reverse_shell_tells_its_other_end),
    Test::new(KERNEL, "a_signal_says_where_the_file_is", evasion::a_signal_says_where_the_file_is),
    Test::new(KERNEL, "exceptions_hold_and_nothing_more", exceptions::exceptions_hold_and_nothing_more),
    Test::new(
        KERNEL,
        "an_excepted_argument_that_changes_deceives_nobody",
        exceptions::an_excepted_argument_that_changes_deceives_nobody,
    ),
    Test::new(KERNEL, "the_kernel_decides_as_the_model_does", model::the_kernel_decides_as_the_model_does),
    Test::new(KERNEL, "the_published_rule_is_told_exactly", upstream::the_published_rule_is_told_exactly),
    Test::new(KERNEL, "patterns_block_and_repeats_end", upstream::patterns_block_and_repeats_end),
    Test::new(KERNEL, "network_activity_is_joined", network::network_activity_is_joined),
    Test::new(KERNEL, "network_activity_of_descendants_is_joined", network::descendants_are_watched),
    Test::new(KERNEL, "network_activity_of_a_scan_is_bounded", network::a_scan_is_bounded),
    Test::new(KERNEL, "network_activity_has_raw_sockets", network::raw_sockets_are_told),
    Test::new(KERNEL, "a_loop_is_one_signal", repeats::a_loop_is_one_signal),
    Test::new(OURSELVES, "a_flood_is_counted", repeats::a_flood_is_counted),
    Test::new(OURSELVES, "a_restarted_agent_goes_on_counting", repeats::a_restarted_agent_goes_on_counting),
    Test::new(OURSELVES, "sessions_at_a_steady_pace_are_a_probe", probes::sessions_at_a_steady_pace_are_a_probe),
    Test::new(OURSELVES, "what_a_workload_did_before_is_not_new", probes::what_a_workload_did_before_is_not_new),
    Test::new(OURSELVES, "a_killed_agent_keeps_what_it_told", store::a_killed_agent_keeps_what_it_told),
    Test::new(OURSELVES, "what_does_not_fit_is_told", store::what_does_not_fit_is_told),
    Test::new(
        OURSELVES,
        "an_upgrade_to_other_programs_never_lets_go",
        upgrade::an_upgrade_to_other_programs_never_lets_go,
    ),
    Test::new(
        CONTAINERD,
        "a_shim_of_another_version_fails_as_the_policy_says",
        upgrade::a_shim_of_another_version_fails_as_the_policy_says,
    ),
];

fn check_finds_the_node_in_order(node: &Node) -> Result<()> {
    let run_dir = node.paths().run_dir.display().to_string();
    let output = node.portcullis(&["check", "--run-dir", &run_dir])?;
    ensure!(output.stdout.contains(&node.backend().to_string()), "{output}");
    // The name alone is in the list of checks whatever the backend is.
    ensure!(output.stdout.contains(&format!("{} is in force", node.backend())), "{output}");
    let pins = output.stdout.lines().find(|line| line.contains(" pins ")).context("no check of the pins")?;
    ensure!(pins.starts_with("ok "), "{output}");
    Ok(())
}

/// So that whoever adds a test sees what it costs everybody.
fn tell_slowest(durations: &mut [(Duration, &str)]) {
    const SHOWN: usize = 25;
    durations.sort_unstable_by(|a, b| b.cmp(a));
    let all: Duration = durations.iter().map(|(duration, _)| *duration).sum();
    println!("slowest of {:.0} s:", all.as_secs_f64());
    for (duration, name) in durations.iter().take(SHOWN) {
        println!("{:7.1} s  {name}", duration.as_secs_f64());
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One node for all: tests kill its agent and change its policy set.
    arguments.test_threads = Some(1);
    let Some(setup) = Setup::from_env() else {
        println!("not run: scripts/test host and scripts/test vm set up what these tests need");
        return ExitCode::SUCCESS;
    };
    let deciders = match deciders(setup.decided_by.as_deref()) {
        Ok(deciders) => deciders,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if cgroup_v1::is_all_there_is() {
        return libtest_mimic::run(&arguments, cgroup_v1::trials(&setup)).exit_code();
    }
    let node = match Node::start(&setup) {
        Ok(node) => Arc::new(node),
        Err(error) => {
            eprintln!("error: the node did not start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let durations = Arc::new(Mutex::new(Vec::new()));
    let trials = TESTS
        .iter()
        .copied()
        .chain(cri::TESTS.into_iter().chain(cri::systemd()).filter(|_| setup.pods))
        .chain(tampering::tests(&node))
        .chain(independent_client::test(&setup))
        .chain(fleet::test(&setup))
        .filter(|test| test.is_decided_by(&deciders))
        .map(|Test { name, run, .. }| {
            let (node, durations) = (Arc::clone(&node), Arc::clone(&durations));
            let full_name = format!("{}::{name}", node.backend());
            Trial::test(full_name, move || {
                let started = Instant::now();
                let result = run(&node);
                durations.lock().unwrap_or_else(PoisonError::into_inner).push((started.elapsed(), name));
                result.map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    tell_slowest(&mut durations.lock().unwrap_or_else(PoisonError::into_inner));
    // exit() would run no destructors; the node's last owner is this function.
    drop(node);
    conclusion.exit_code()
}
