//! What reported processes do on the network, and who pays for it: nobody else.

use anyhow::{Result, ensure};
use portcullis_integration_tests::{
    containerd::Container,
    eventually::eventually,
    node::Node,
    signals::{NetworkActivity, NetworkOperation, Signal},
};
use portcullis_policy::policyset::Backend;

/// A container's signals, once what they tell of the network is as wanted.
fn signals_once(node: &Node, container: &Container<'_>, wanted: impl Fn(&[Signal]) -> bool) -> Result<Vec<Signal>> {
    eventually(|| {
        let mut signals = node.signals()?;
        signals.retain(|signal| signal.container_id() == container.id());
        ensure!(wanted(&signals), "not all is told: {signals:#?}");
        Ok(signals)
    })
}

fn operations(signal: &Signal) -> &[NetworkOperation] {
    signal.network.as_ref().map_or(&[], |activity| &activity.operations)
}

/// Of a kind, to or at this port of loopback.
fn has(signal: &Signal, kind: &str, port: u32) -> bool {
    operations(signal).iter().any(|operation| {
        let endpoint = operation.endpoint.as_ref();
        operation.kind == kind && endpoint.is_some_and(|endpoint| endpoint.port == port)
    })
}

pub fn network_activity_is_joined(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let everything = node.backend() == Backend::Lsm;
    // Nothing of what comes before a tool, or beside it, is told.
    container.exec(&["/opt/evade", "connected", "/bin/true"])?.success()?;
    let script = "nc -l 127.0.0.1 4000 >/dev/null & sleep 0.5; nc -N 127.0.0.1 4000 </dev/null; wait; \
                  nslookup -type=TXT -timeout=1 -retry=0 label.example.com 127.0.0.1 >/dev/null; \
                  /opt/evade connected /bin/true";
    container.exec(&["sh", "-c", script])?;
    let asked = |signal: &Signal, transport: &str| {
        let mut operations = operations(signal).iter();
        operations.any(|operation| {
            operation.kind == "dns_query"
                && (operation.dns_name.as_str(), operation.dns_type.as_str()) == ("label.example.com", "TXT")
                && operation.transport == transport
        })
    };
    let signals = signals_once(node, &container, |signals| {
        let any = |seen: &dyn Fn(&Signal) -> bool| signals.iter().any(seen);
        any(&|signal| signal.tool() == "nc" && has(signal, "listen", 4000))
            && any(&|signal| signal.tool() == "nc" && has(signal, "connect", 4000))
            && any(&|signal| signal.tool() == "nslookup" && asked(signal, "unknown"))
            && (!everything || any(&|signal| asked(signal, "udp") && has(signal, "connect", 53)))
            && (!everything || any(&|signal| signal.tool() == "nc" && has(signal, "bind", 4000)))
    })?;
    // Each does its own.
    for signal in &signals {
        ensure!(!has(signal, "listen", 4000) || !has(signal, "connect", 4000), "{signal:#?}");
        let pid = signal.process.as_ref().map(|process| process.pid);
        ensure!(operations(signal).iter().all(|operation| Some(operation.pid) == pid), "{signal:#?}");
    }
    Ok(())
}

/// busybox's nc becomes a shell, and what that starts connects: it is the doing of what was reported last.
pub fn descendants_are_watched(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let script = "nc -l 127.0.0.1 4000 >/dev/null & sleep 0.5; \
                  busybox nc 127.0.0.1 4000 -e /bin/sh -c '/opt/evade connected /bin/true; true'; wait";
    container.exec(&["sh", "-c", script])?;
    let of_child = |signal: &Signal| {
        let pid = signal.process.as_ref().map(|process| process.pid);
        let mut operations = operations(signal).iter();
        operations.any(|operation| operation.kind == "connect" && Some(operation.pid) != pid)
    };
    signals_once(node, &container, |signals| signals.iter().any(of_child))?;
    Ok(())
}

/// More ports than a signal keeps, and than the kernel tells of one process: which are counted, for the container as well.
pub fn a_scan_is_bounded(node: &Node) -> Result<()> {
    /// `BUDGET` of `activity.bpf.h`.
    const TOLD: u64 = 4096;
    const PORTS: u64 = TOLD + 104;
    let container = node.container().start()?;
    container.exec(&["nc", "-z", "127.0.0.1", &format!("20001-{}", 20000 + PORTS)])?;
    let connects = |activity: &NetworkActivity| {
        activity.omitted + activity.operations.iter().map(|operation| operation.count).sum::<u64>()
    };
    let signals = signals_once(node, &container, |signals| {
        signals.iter().any(|signal| signal.network.as_ref().is_some_and(|activity| connects(activity) >= TOLD))
    })?;
    let [signal] = &signals[..] else { anyhow::bail!("not one signal: {signals:#?}") };
    ensure!(operations(signal).len() == 64, "{signal:#?}");
    let told = signal.network.as_ref().map(connects).unwrap_or_default();
    let lost = node.counters(container.id())?.activities_lost;
    ensure!(told == TOLD && lost == PORTS - TOLD, "{told} told, {lost} lost, of {PORTS}");
    let story = node.portcullis(&["triage", container.id()])?.success()?;
    ensure!(story.stdout.contains(&format!("{lost} operations were not recorded")), "{}", story.stdout);
    Ok(())
}

/// A raw socket of a reported process; the backend tracepoint does not see it.
pub fn raw_sockets_are_told(node: &Node) -> Result<()> {
    if node.backend() != Backend::Lsm {
        return Ok(());
    }
    let container = node.container().start()?;
    container.exec(&["/opt/evade", "open", "raw"])?.success()?;
    let raw = |signal: &Signal| operations(signal).iter().any(|operation| operation.kind == "raw_socket");
    let signals = signals_once(node, &container, |signals| signals.iter().any(raw))?;
    ensure!(signals.iter().all(|signal| signal.rule == "raw_socket"), "{signals:#?}");
    Ok(())
}
