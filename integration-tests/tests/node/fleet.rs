//! Three nodes, one collector, one store.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    collector::{Collector, LOG, Record, Store},
    eventually::eventually,
    node::{Node, Setup},
};
use serde_json::Value;

use crate::test::{OURSELVES, Test};

const NODES: [&str; 3] = ["edge-1", "edge-2", "edge-3"];
const CLUSTER: &str = "shop";

/// The test, where there is a collector: beside the Python of the other client.
pub fn test(setup: &Setup) -> Option<Test> {
    setup.grpc_python.as_ref().map(|_| Test::new(OURSELVES, "three_nodes_tell_one_store", three_nodes_tell_one_store))
}

/// A node's records by tool: how many, and the last.
fn told<'a>(records: &'a [Record], node: &str) -> BTreeMap<&'a str, (usize, &'a Record)> {
    let mut told = BTreeMap::new();
    let is_its = |record: &&Record| record.resource.get("k8s.node.name").is_some_and(|name| name == node);
    for record in records.iter().filter(is_its) {
        let tool = record.attributes.get("portcullis.tool").map_or("", String::as_str);
        let entry = told.entry(tool).or_insert((0, record));
        *entry = (entry.0 + 1, record);
    }
    told
}

fn three_nodes_tell_one_store(node: &Node) -> Result<()> {
    let python = node.setup().grpc_python.as_ref().context("no Python")?;
    let scratch = node.scratch()?;
    let store = Store::start()?;
    let collector = Collector::program(python)?;
    let mut collector = Collector::start(&collector, scratch.path(), &store)?;
    let nodes = NODES
        .iter()
        .map(|name| {
            let configuration = format!(
                "node_name = \"{name}\"\ncluster_name = \"{CLUSTER}\"\n[export.otlp]\nendpoint = \"{}\"\n",
                collector.endpoint()
            );
            Node::start(&Setup { configuration, containerd_root: None, pods: false, ..node.setup().clone() })
        })
        .collect::<Result<Vec<_>>>()?;
    let containers = nodes.iter().map(|node| node.container().start()).collect::<Result<Vec<_>>>()?;
    let execute = |line: &str| containers.iter().try_for_each(|container| container.shell(&[line]).map(drop));
    let arrived = |tools: &[&str]| {
        eventually(|| {
            let records = store.records();
            for name in NODES {
                let found: Vec<&str> = told(&records, name).into_keys().collect();
                let log = || fs::read_to_string(scratch.path().join(LOG)).unwrap_or_default();
                ensure!(
                    found == tools,
                    "of {name} the store has {found:?}, not {tools:?}; the collector says: {}",
                    log()
                );
            }
            Ok(records)
        })
    };
    execute("/usr/bin/nc -h")?;
    arrived(&["nc"])?;
    // Nobody listens, and what happens now is told afterwards.
    collector.kill()?;
    execute("/usr/bin/nslookup -version")?;
    for (node, container) in nodes.iter().zip(&containers) {
        node.signals_until(container.id(), "nslookup")?;
    }
    collector.resume()?;
    let records = arrived(&["nc", "nslookup"])?;
    for ((name, node), container) in NODES.into_iter().zip(&nodes).zip(&containers) {
        let signals = node.signals()?;
        for (tool, (count, record)) in told(&records, name) {
            ensure!(count == 1, "{tool} of {name} came {count} times");
            let signal = signals.iter().find(|signal| signal.tool() == tool).context("no such signal")?;
            let body: Value = serde_json::from_str(&record.body)?;
            let attribute = |key: &str| record.attributes.get(key).map(String::as_str);
            ensure!(record.resource.get("k8s.cluster.name").is_some_and(|cluster| cluster == CLUSTER), "{record:#?}");
            ensure!(record.resource.get("host.name").is_some_and(|host| host == name), "{record:#?}");
            ensure!(attribute("container.id") == Some(container.id()), "{record:#?}");
            ensure!(attribute("portcullis.signal.id") == Some(&signal.id.to_string()), "{record:#?}");
            ensure!(
                attribute("portcullis.verdict") == Some("would_block") && record.severity == signal.severity,
                "{record:#?}"
            );
            ensure!(body.pointer("/device/hostname").and_then(Value::as_str) == Some(name), "{body:#}");
            let uid = body.pointer("/finding_info/uid").and_then(Value::as_str).unwrap_or_default();
            ensure!(uid.starts_with(&format!("{name}/{}/", signal.id)), "{body:#}");
        }
    }
    println!("{} records of {} nodes", records.len(), nodes.len());
    Ok(())
}
