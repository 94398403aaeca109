//! What the running agent may ask of the kernel. That it asks for nothing else, whatever the other tests have it do, is looked at
//! whenever an agent ends.

use std::fs;

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::node::Node;
use rustix::thread::CapabilitySet;
use serde_json::Value;

/// A value of a thread's status.
fn value<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.map(str::trim).with_context(|| format!("no {name} in {status}"))
}

pub fn every_thread_of_the_agent_is_confined(node: &Node) -> Result<()> {
    let pid = node.agent().as_ref().context("no agent")?.pid();
    let kept = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::KILL;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One of the pool may end meanwhile.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        threads += 1;
        // A filter, and no way to more rights by executing a program.
        ensure!(value(&status, "Seccomp")? == "2" && value(&status, "NoNewPrivs")? == "1", "{status}");
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let bits = u64::from_str_radix(value(&status, set)?, 16)?;
            ensure!(CapabilitySet::from_bits_retain(bits) == kept, "{set}: {status}");
        }
        ensure!(value(&status, "CapInh")?.trim_matches('0').is_empty(), "{status}");
        ensure!(value(&status, "CapAmb")?.trim_matches('0').is_empty(), "{status}");
    }
    // The runtime's, the events', the changes', the store's.
    ensure!(threads >= 5, "{threads} threads");
    let run_dir = node.paths().run_dir.display().to_string();
    // Its exit code is about the whole node.
    let output = node.portcullis(&["check", "--run-dir", &run_dir, "-o", "json"])?;
    let status: Value = serde_json::from_str(&output.stdout)?;
    let checks = status.get("checks").and_then(Value::as_array).context("no checks")?;
    let check =
        checks.iter().find(|check| check.get("name").is_some_and(|name| name == "sandbox")).context("no check")?;
    ensure!(check.get("state").is_some_and(|state| state == "ok"), "{check}");
    Ok(())
}
