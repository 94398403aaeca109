//! Which kernel, containerd and runc this node has, and how shims and containerd talk: `scripts/test` makes a table of what
//! each machine prints.

use std::fs;

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::node::Node;
use portcullis_policy::record::{ContainerRecord, DIR_NAME};
use serde::Deserialize;

/// What the shim keeps of its own start.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shims {
    answer: Vec<u8>,
    task_version: u32,
}

pub fn the_bootstrap_is_the_one_that_containerd_expects(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let directory = node.paths().run_dir.join(DIR_NAME);
    let records = fs::read_dir(directory)?.map(|entry| Ok(fs::read(entry?.path())?)).collect::<Result<Vec<_>>>()?;
    let records: Vec<ContainerRecord> = records.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
    let record = records.iter().find(|record| record.container_id == container.id()).context("no record")?;
    let shims: Shims = serde_json::from_slice(&fs::read(record.bundle.join("inner/shims.json"))?)?;
    let bootstrap = match shims.answer.first() {
        Some(b'{') => "JSON",
        Some(b'u') => "bare address",
        _ => "protobuf",
    };
    let shim = node.containerd().own_shims().into_iter().next().context("no shim")?;
    let is_static = !fs::read_to_string(format!("/proc/{}/maps", shim.as_raw_nonzero()))?.contains("/libc.so");
    let (containerd, runc) = (node.version("containerd")?, node.version("runc")?);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    println!(
        "node\tkernel {kernel}\t{}\tcontainerd {containerd}\trunc {runc}\t{bootstrap}, task API {}{}",
        node.backend(),
        shims.task_version,
        if is_static { ", static shim" } else { "" }
    );
    let expected = if containerd.starts_with("1.") { "bare address" } else { "JSON" };
    ensure!(
        bootstrap == expected,
        "containerd {containerd} was answered with {:?}",
        String::from_utf8_lossy(&shims.answer)
    );
    ensure!(is_static == node.setup().expect_static_shim, "a static shim: {is_static}");
    if let Some(wanted) = &node.setup().expected_containerd {
        ensure!(containerd.starts_with(wanted), "containerd {wanted} was to be tested, not {containerd}");
    }
    Ok(())
}
