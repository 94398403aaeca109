//! Several policies: which container is under which, and what happens when they are edited while containers run.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use portcullis_integration_tests::{
    containerd::{Container, Outcome},
    eventually::eventually,
    node::Node,
    signals,
};
use serde::Deserialize;

use crate::{LAST, assert_stopped, stopped, verdicts};

/// A policy about netcat alone.
pub fn policy(name: &str, mode: &str, select: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:\n  name: {name}\nspec:\n  mode: {mode}\n  select: \
         {select}\n  rules:\n    - categories: [netcat, dns]\n      action: block\n"
    )
}

/// Files of the test's in the policy directory, gone with it.
pub struct Files<'a> {
    node: &'a Node,
    names: Vec<&'static str>,
}

impl<'a> Files<'a> {
    pub fn new(node: &'a Node) -> Self {
        Self { node, names: Vec::new() }
    }

    /// As an editor does it: under another name, and then renamed.
    pub fn write(&mut self, name: &'static str, text: &str) -> Result<()> {
        let directory = self.node.paths().policy_dir();
        self.names.push(name);
        fs::write(directory.join(format!(".{name}.new")), text)?;
        Ok(fs::rename(directory.join(format!(".{name}.new")), directory.join(name))?)
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.names.retain(|known| *known != name);
        Ok(fs::remove_file(self.node.paths().policy_dir().join(name))?)
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        self.names.sort_unstable();
        self.names.dedup();
        let removed = std::mem::take(&mut self.names).iter().try_for_each(|name| self.remove(name));
        let restored = removed.and_then(|()| in_force(self.node, &["default"]));
        if let Err(error) = restored {
            eprintln!("taking the test's policies away: {error:#}");
        }
    }
}

#[derive(Deserialize)]
struct Check {
    agent: Option<Agent>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Agent {
    policies: Vec<Policy>,
    policy_error: String,
    losses: std::collections::BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Policy {
    name: String,
    source: String,
}

/// What GetStatus says.
fn status(node: &Node) -> Result<Agent> {
    let run_dir = node.paths().run_dir.display().to_string();
    let output = node.portcullis(&["check", "--run-dir", &run_dir, "-o", "json"])?;
    let check: Check =
        serde_json::from_str(&output.stdout).with_context(|| format!("portcullis check gave {output}"))?;
    check.agent.context("the agent was not reached")
}

/// Waits until exactly these are in force, without a signal to the agent: it watches the directory.
pub fn in_force(node: &Node, names: &[&str]) -> Result<()> {
    eventually(|| {
        let status = status(node)?;
        let found: Vec<&str> = status.policies.iter().map(|policy| policy.name.as_str()).collect();
        ensure!(found == names && status.policy_error.is_empty(), "{found:?} in force: {}", status.policy_error);
        Ok(())
    })
}

pub fn told(node: &Node, id: &str) -> Result<signals::Container> {
    let containers = node.containers()?;
    containers.into_iter().find(|container| container.id == id).with_context(|| format!("{id} is not listed"))
}

fn nc(container: &Container<'_>) -> Result<Outcome> {
    container.shell(&["nc -h"])?.pop().context("no outcome")
}

pub fn policies_select_by_namespace_and_name(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    // The names of containers here: c and a number.
    files.write("here.yaml", &policy("here", "detect", "{namespaces: [def*]}"))?;
    files.write("elsewhere.yaml", &policy("elsewhere", "enforce", "{namespaces: [k8s.io], containers: ['*']}"))?;
    in_force(node, &["elsewhere", "here", "default"])?;
    let first = node.container().start()?;
    let strict = node.container();
    let select = format!("{{namespaces: [default], containers: [{}]}}", strict.id());
    files.write("one.yaml", &policy("one", "enforce", &select))?;
    in_force(node, &["one", "elsewhere", "here", "default"])?;
    let strict = strict.start()?;

    ensure!(nc(&first)?.status == 0, "it is in detect");
    assert_stopped(node, "nc", &nc(&strict)?)?;
    let container = told(node, first.id())?;
    ensure!(container.policy == "here" && container.policy_reason.contains("def*"), "{container:#?}");
    let container = told(node, strict.id())?;
    ensure!(container.policy == "one" && container.mode == "enforce", "{container:#?}");
    ensure!(container.policy_reason.contains("containers"), "{container:#?}");
    let signals = node.signals_until(strict.id(), "nc")?;
    ensure!(signals.iter().all(|signal| signal.policy == "one"), "{signals:#?}");
    let wide = node.portcullis(&["containers", "list", "-o", "wide"])?.success()?;
    ensure!(wide.stdout.contains("it selects namespaces"), "{wide}");
    Ok(())
}

pub fn an_image_selects_once_it_is_known(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    files.write("image.yaml", &policy("image", "enforce", "{images: ['*/portcullis-demo:*']}"))?;
    in_force(node, &["image", "default"])?;
    let container = node.container().start()?;
    eventually(|| {
        let container = told(node, container.id())?;
        ensure!(container.policy == "image" && container.mode == "enforce", "{container:#?}");
        Ok(())
    })?;
    assert_stopped(node, "nc", &nc(&container)?)?;
    node.kill_agent()?;
    node.restart_agent()?;
    let told = told(node, container.id())?;
    ensure!(told.policy == "image" && told.mode == "enforce", "{told:#?}");
    assert_stopped(node, "nc", &nc(&container)?)
}

/// Executes nc until it is stopped, or runs again, and tells how long after the moment given that was.
fn until(container: &Container<'_>, since: Instant, stopped: bool) -> Result<Duration> {
    // One exec session, so that what it costs to make one is not measured.
    let wanted = if stopped { "-ne" } else { "-eq" };
    let script = format!(
        "i=0; while [ $i -lt 3000 ]; do nc -h >/dev/null 2>&1; [ $? {wanted} 0 ] && exit 0; i=$((i+1)); sleep 0.01; done; exit 9"
    );
    let output = container.exec(&["sh", "-c", &script])?;
    let after = since.elapsed();
    if output.status != 0 {
        bail!("nothing has changed after {after:?}: {output}");
    }
    Ok(after)
}

pub fn an_edited_policy_switches_what_runs(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    let container = node.container();
    let select = format!("{{containers: [{}]}}", container.id());
    files.write("one.yaml", &policy("one", "detect", &select))?;
    in_force(node, &["one", "default"])?;
    let container = container.start()?;
    let other = node.container().start()?;
    ensure!(nc(&container)?.status == 0, "it is in detect");

    let written = Instant::now();
    files.write("one.yaml", &policy("one", "enforce", &select))?;
    let after = until(&container, written, true)?;
    println!("from writing the policy to the first nc that was stopped: {after:?}");
    assert_stopped(node, "nc", &nc(&container)?)?;
    ensure!(nc(&other)?.status == 0, "the other container is in detect");
    let now = told(node, container.id())?;
    ensure!(now.mode == "enforce" && now.mode_reason == "policy", "{now:#?}");

    let removed = Instant::now();
    files.remove("one.yaml")?;
    let after = until(&container, removed, false)?;
    println!("from removing the policy to the first nc that ran: {after:?}");
    let now = told(node, container.id())?;
    ensure!(now.policy == "default" && now.mode == "detect", "{now:#?}");
    container.shell(&[LAST.0])?;
    let signals = node.signals_until(container.id(), LAST.1)?;
    let seen = verdicts(&signals);
    ensure!(seen.first() == Some(&"would_block") && seen.last() == Some(&"would_block"), "{seen:?}");
    ensure!(seen.contains(&stopped(node)), "{seen:?}");
    let status = status(node)?;
    for loss in ["moves_failed", "policies_outlived", "directories_unwatched"] {
        ensure!(status.losses.get(loss) == Some(&0), "{loss}: {:?}", status.losses);
    }
    Ok(())
}

pub fn a_broken_file_keeps_all_that_is_in_force(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    let container = node.container();
    let select = format!("{{containers: [{}]}}", container.id());
    files.write("one.yaml", &policy("one", "enforce", &select))?;
    in_force(node, &["one", "default"])?;
    let container = container.start()?;
    files.write("broken.yaml", "kind: [\n")?;
    files.write("worse.yaml", &policy("one", "detect", "{namespaces: []}"))?;
    files.write("one.yaml", &policy("one", "detect", &select))?;
    eventually(|| {
        let status = status(node)?;
        for file in ["broken.yaml:1:", "worse.yaml:7:"] {
            ensure!(status.policy_error.contains(file), "{file} is not told: {}", status.policy_error);
        }
        ensure!(status.policies.iter().any(|policy| policy.source.ends_with("one.yaml")), "it is not in force");
        Ok(())
    })?;
    assert_stopped(node, "nc", &nc(&container)?)?;
    files.remove("broken.yaml")?;
    files.remove("worse.yaml")?;
    in_force(node, &["one", "default"])?;
    ensure!(nc(&container)?.status == 0, "the newest files are in force");
    Ok(())
}

pub fn annotations_ask_for_more_but_not_for_less(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    files.write("all.yaml", &policy("all", "enforce", "{}"))?;
    files.write("less.yaml", &policy("less", "detect", "{annotations: {portcullis.dev/policy: less}}"))?;
    let more = policy("more", "enforce", "{annotations: {portcullis.dev/policy: more}}");
    files.write("more.yaml", &format!("{more}    - categories: [http]\n      action: block\n"))?;
    in_force(node, &["less", "more", "all"])?;
    let ask = |policy: &str| node.container().annotation("portcullis.dev/policy", policy).start();
    let (less, more) = (ask("less")?, ask("more")?);
    assert_stopped(node, "nc", &nc(&less)?)?;
    let told_less = told(node, less.id())?;
    ensure!(told_less.policy == "all" && told_less.policy_reason.contains("less refused"), "{told_less:#?}");
    ensure!(less.shell(&["curl --version"])?.iter().all(|outcome| outcome.status == 0), "curl is no netcat");
    for outcome in more.shell(&["curl --version"])? {
        assert_stopped(node, "curl", &outcome)?;
    }
    Ok(())
}

pub fn a_required_backend_is_required(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    let other = if node.backend().to_string() == "lsm" { "tracepoint" } else { "lsm" };
    let require = |failure: &str| {
        let text = policy("needs", "enforce", "{containers: [c*]}");
        text.replace("spec:\n", &format!("spec:\n  requireBackend: {other}\n  onAttachFailure: {failure}\n"))
    };
    files.write("needs.yaml", &require("deny"))?;
    in_force(node, &["needs", "default"])?;
    let refused = node.container().run(&["true"])?;
    ensure!(refused.status != 0 && refused.text().contains(&format!("requires the backend {other}")), "{refused}");
    let before = node.policy_set()?;
    files.write("needs.yaml", &require("allow"))?;
    eventually(|| {
        ensure!(node.policy_set()? != before, "the policy is not in force");
        Ok(())
    })?;
    let container = node.container().start()?;
    let now = told(node, container.id())?;
    ensure!(!now.guarded && now.unguarded_reason.contains("requires the backend"), "{now:#?}");
    Ok(())
}

pub fn modes_and_policies_change_from_the_command_line(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let other = node.container().start()?;
    let mode = |target: &str, mode: &str| node.portcullis(&["mode", target, mode])?.success();
    ensure!(nc(&container)?.status == 0, "it is in detect");

    let called = Instant::now();
    let told = mode(container.id(), "enforce")?;
    let after = called.elapsed();
    assert_stopped(node, "nc", &nc(&container)?)?;
    println!("portcullis mode took {after:?}; the next nc was stopped");
    ensure!(told.stdout.contains("mode enforce (by operator), changed"), "{told}");
    ensure!(nc(&other)?.status == 0, "the other container is in detect");
    mode(container.id(), "default")?;
    ensure!(nc(&container)?.status == 0, "it is in detect again");

    mode("default", "enforce")?;
    for container in [&container, &other] {
        assert_stopped(node, "nc", &nc(container)?)?;
    }
    mode("default", "default")?;
    ensure!(nc(&other)?.status == 0, "the policy is in detect again");

    // What is explained is what happens.
    let mut files = Files::new(node);
    files.names.push("applied.yaml");
    let scratch = node.scratch()?;
    let file = scratch.path().join("any.yaml");
    fs::write(&file, policy("applied", "enforce", &format!("{{containers: [{}]}}", container.id())))?;
    let file = file.display().to_string();
    let dry = node.portcullis(&["policy", "apply", "--dry-run", &file])?.success()?;
    ensure!(dry.stdout.contains("created (dry run), mode enforce, for 1 running containers"), "{dry}");
    ensure!(nc(&container)?.status == 0, "a dry run changes nothing");
    node.portcullis(&["policy", "apply", &file])?.success()?;
    assert_stopped(node, "nc", &nc(&container)?)?;
    let explain = ["policy", "explain", "--namespace", "default", "--container", container.id(), "--", "nc", "-h"];
    let explained = node.portcullis(&explain)?.success()?;
    ensure!(explained.stdout.contains("Policy applied: ") && explained.stdout.contains(stopped(node)), "{explained}");
    node.portcullis(&["policy", "delete", "applied"])?.success()?;
    files.names.clear();
    ensure!(nc(&container)?.status == 0, "the policy is gone");
    Ok(())
}

/// Those that enforce, as they are shipped.
pub fn shipped_policies_stop_what_they_say(node: &Node) -> Result<()> {
    let mut files = Files::new(node);
    files.write("lockdown.yaml", include_str!("../../../config/policies/lockdown.yaml"))?;
    files.write("offensive.yaml", include_str!("../../../config/policies/enforce-offensive.yaml"))?;
    in_force(node, &["lockdown", "enforce-offensive"])?;
    let lines = [
        "nc -h",
        "/opt/evade socket /usr/bin/dash -c true",
        "curl --version",
        "dig -v",
        "cp /opt/evade /tmp/dropped && /tmp/dropped end now",
        "true",
        LAST.0,
    ];
    let locked_down = node.container().annotation("portcullis.dev/policy", "lockdown").start()?;
    for (container, stopped_lines) in [(node.container().start()?, 2), (locked_down, 5)] {
        let outcomes = container.shell(&lines)?;
        for (number, (line, outcome)) in lines.iter().zip(&outcomes).take(6).enumerate() {
            if number < stopped_lines {
                assert_stopped(node, line, outcome)?;
            } else {
                ensure!(outcome.status == 0, "{line}: {outcome:?}");
            }
        }
        let signals = node.signals_until(container.id(), LAST.1)?;
        let policy = told(node, container.id())?.policy;
        ensure!(signals.iter().all(|signal| signal.policy == policy), "{policy}: {signals:#?}");
        ensure!(verdicts(&signals).contains(&stopped(node)), "{signals:#?}");
    }
    Ok(())
}
