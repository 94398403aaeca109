//! What is on the node because of containers, and what the agent holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, iter,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, loaded_links};
use portcullis_bpf::{guard::Guard, pins::Pins};
use portcullis_integration_tests::{
    containerd::NAMESPACE,
    eventually::within,
    node::{Node, Traces},
};
use sha2::{Digest, Sha256};

use crate::SETTLE;

const SOCKETS: &str = "/run/containerd/s";
const RUNC: &str = "/run/containerd/runc";
const CGROUPS: &str = "/sys/fs/cgroup";
/// How the test's containers are called, as [`Node::container`] does.
fn prefix() -> String {
    format!("c{}-", std::process::id())
}

/// By kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census(BTreeMap<&'static str, BTreeSet<String>>);

/// What the agent holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub fds: usize,
    pub rss_kib: u64,
}

impl Census {
    pub fn take(node: &Node) -> Result<Self> {
        let Traces { links, map_entries, records, shims } = node.traces()?;
        let pins = Pins::at(&node.policy_set()?.pins);
        let counted = Guard::open(pins.clone())?.all_stats().into_iter().map(|(cgroup, _)| cgroup).collect();
        let strings = |ids: Vec<u64>| ids.iter().map(u64::to_string).collect::<BTreeSet<_>>();
        let state = node.containerd().directory().join("state/io.containerd.runtime.v2.task").join(NAMESPACE);
        Ok(Self(BTreeMap::from([
            ("directories of links", links.into_iter().collect()),
            ("guarded containers", strings(map_entries)),
            ("containers counted", strings(counted)),
            ("BPF links", bpf_links(&pins)?),
            ("records", records.into_iter().collect()),
            ("shims", shims.iter().map(|pid| format!("{pid} {}", command_line(*pid))).collect()),
            ("bundles", names(&state, "")),
            ("runc's containers", names(&Path::new(RUNC).join(NAMESPACE), &prefix())),
            ("cgroups", cgroups()),
            ("processes", processes()),
            ("mounts", mounts(node.containerd().directory())?),
        ])))
    }

    /// All that is here and not there.
    fn beyond(&self, other: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let new = |(kind, names): (&&'static str, &BTreeSet<String>)| -> Vec<String> {
            names.difference(other.0.get(kind).unwrap_or(&none)).map(|name| format!("{kind}: {name}")).collect()
        };
        self.0.iter().flat_map(new).collect()
    }

    /// Waits until nothing is left that was not there when this was taken.
    pub fn settle(&self, node: &Node, ids: &HashSet<String>) -> Result<()> {
        within(SETTLE, || {
            let mut left = Self::take(node)?.beyond(self);
            left.extend(sockets(node, ids));
            ensure!(left.is_empty(), "left behind: {left:#?}");
            Ok(())
        })
    }
}

impl Held {
    pub fn by_agent(node: &Node) -> Result<Self> {
        let pid = node.agent().as_ref().context("no agent")?.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        Ok(Self { fds: fs::read_dir(format!("/proc/{pid}/fd"))?.count(), rss_kib: rss.context("no VmRSS")? })
    }
}

/// All links to the pinned programs, pinned themselves or held by a process.
fn bpf_links(pins: &Pins) -> Result<BTreeSet<String>> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(pins.programs())?.flatten() {
        let info = ProgramInfo::from_pin(entry.path())?;
        programs.insert(info.id(), entry.file_name().to_string_lossy().into_owned());
    }
    // Others' links may go while they are looked at.
    let links = loaded_links().flatten();
    Ok(links.filter_map(|link| Some(format!("{} of {}", link.id(), programs.get(&link.program_id())?))).collect())
}

/// A socket is left by its path, whether somebody listens or not. Ours and the stock shim's of each container.
fn sockets(node: &Node, ids: &HashSet<String>) -> Vec<String> {
    let address = node.containerd().address();
    let address = address.display().to_string();
    let all = ids.iter().flat_map(|id| {
        let stock = Sha256::digest(format!("{address}/{NAMESPACE}/{id}"));
        let ours = Sha256::digest(format!("portcullis\0{address}\0{NAMESPACE}\0{id}\0"));
        [("stock", stock), ("ours", ours)]
            .map(|(whose, hash)| (whose, id, Path::new(SOCKETS).join(format!("{hash:x}"))))
    });
    all.filter(|(_, _, path)| path.exists()).map(|(whose, id, _)| format!("sockets: {id}, {whose}")).collect()
}

/// That the paths which are looked for are those in use.
pub fn assert_sockets_are_known(node: &Node, id: &str) -> Result<()> {
    let found = sockets(node, &iter::once(id.to_owned()).collect());
    ensure!(found.len() == 2, "sockets of {id}: {found:?} of {:?}", node.containerd().sockets());
    Ok(())
}

fn names(directory: &Path, prefix: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// In whatever hierarchies there are.
fn cgroups() -> BTreeSet<String> {
    let hierarchies = names(Path::new(CGROUPS), "").into_iter().map(|name| Path::new(CGROUPS).join(name));
    iter::once(CGROUPS.into())
        .chain(hierarchies)
        .flat_map(|root| {
            let directory = root.join(NAMESPACE);
            names(&directory, &prefix()).into_iter().map(move |name| directory.join(name).display().to_string())
        })
        .collect()
}

fn command_line(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Whatever names one of the containers: shims, runc, ctr, and what runs in them.
fn processes() -> BTreeSet<String> {
    let own = prefix();
    names(Path::new("/proc"), "")
        .into_iter()
        .filter_map(|name| name.parse().ok())
        .map(|pid: i32| (pid, command_line(pid)))
        .filter(|(_, line)| line.split([' ', '/']).any(|word| word.starts_with(&own)))
        .map(|(pid, line)| format!("{pid} {line}"))
        .collect()
}

fn mounts(directory: &Path) -> Result<BTreeSet<String>> {
    let directory = directory.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|at| at.starts_with(&directory))
        .map(str::to_owned)
        .collect())
}
