//! What is on the node because of containers, and what the agent holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, iter,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, loaded_links};
use portcullis_bpf::{guard::Guard, pins::Pins};
use portcullis_integration_tests::{
    containerd::NAMESPACE,
    eventually::{eventually, within},
    node::{Node, Traces},
};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Signal, kill_process},
};
use sha2::{Digest, Sha256};

use crate::SETTLE;

const SOCKETS: &str = "/run/containerd/s";
const RUNC: &str = "/run/containerd/runc";
const CGROUPS: &str = "/sys/fs/cgroup";
/// What is there of containers whether they are under guard or not.
const RUNTIMES: [&str; 7] = ["shims", "bundles", "runc's containers", "cgroups", "processes", "mounts", "sockets"];

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
        Ok(Self(BTreeMap::from([
            ("directories of links", links.into_iter().collect()),
            ("guarded containers", strings(map_entries)),
            ("containers counted", strings(counted)),
            ("BPF links", bpf_links(&pins)?),
            ("records", records.into_iter().collect()),
            ("shims", shims.iter().map(|pid| format!("{pid} {}", command_line(*pid))).collect()),
            ("bundles", names(&bundles(node), "")),
            ("runc's containers", names(&Path::new(RUNC).join(NAMESPACE), &prefix())),
            ("cgroups", cgroups()),
            ("processes", processes()),
            ("mounts", mounts(node.containerd().directory())?),
        ])))
    }

    /// All that is here and not there.
    fn beyond(&self, other: &Self) -> Vec<Left> {
        let none = BTreeSet::new();
        let new = |(&kind, names): (&&'static str, &BTreeSet<String>)| -> Vec<Left> {
            let new = names.difference(other.0.get(kind).unwrap_or(&none));
            new.map(|name| Left { kind, name: name.clone() }).collect()
        };
        self.0.iter().flat_map(new).collect()
    }

    /// What is there that was not when this was taken.
    pub fn left(&self, node: &Node, ids: &HashSet<String>) -> Result<Vec<Left>> {
        let mut left = Self::take(node)?.beyond(self);
        left.extend(sockets(node, ids));
        Ok(left)
    }

    /// Waits until that is nothing.
    pub fn settle(&self, node: &Node, ids: &HashSet<String>) -> Result<()> {
        within(SETTLE, || {
            let left = self.left(node, ids)?;
            ensure!(left.is_empty(), "left behind: {left:#?}");
            Ok(())
        })
    }
}

/// Something that was left behind.
#[derive(Debug, Clone)]
pub struct Left {
    pub kind: &'static str,
    pub name: String,
}

impl Left {
    pub fn is_a_bundle(&self) -> bool {
        self.kind == "bundles"
    }

    /// Whether it is a shim, or where one listens.
    pub fn is_of_shims(&self) -> bool {
        ["shims", "sockets"].contains(&self.kind)
    }

    /// Whether it is of this container, and nothing of Portcullis's in the kernel or its records.
    pub fn is_the_runtimes(&self, id: &str) -> bool {
        let mut words = self.name.split(|c: char| !(c.is_ascii_digit() || c == 'c' || c == '-'));
        RUNTIMES.contains(&self.kind) && words.any(|word| word == id)
    }
}

/// Takes away what runtimes have left of a container.
pub fn bury(node: &Node, id: &str) -> Result<()> {
    eventually(|| {
        for shim in node.containerd().shims_for(id) {
            kill_process(shim, Signal::KILL)?;
        }
        ensure!(node.containerd().shims_for(id).is_empty(), "shims of {id} live");
        Ok(())
    })?;
    // containerd takes away what it knows of; the rest is nobody's.
    for (_, path) in socket_paths(node, id) {
        let _ = fs::remove_file(path);
    }
    // Nobody has them any more, or there would be a shim.
    // A bundle that is being deleted has a dot before its name: containerd would go on at its next start.
    let bundles = bundles(node);
    for directory in [bundles.join(id), bundles.join(format!(".{id}")), Path::new(RUNC).join(NAMESPACE).join(id)] {
        let _ = unmount(directory.join("rootfs"), UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(directory);
    }
    for cgroup in cgroups().iter().map(Path::new).filter(|path| path.ends_with(id)) {
        let _ = fs::remove_dir(cgroup);
    }
    Ok(())
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

/// Where our shim of a container and the stock one listen.
fn socket_paths(node: &Node, id: &str) -> [(&'static str, PathBuf); 2] {
    let address = node.containerd().address();
    let address = address.display();
    let stock = Sha256::digest(format!("{address}/{NAMESPACE}/{id}"));
    let ours = Sha256::digest(format!("portcullis\0{address}\0{NAMESPACE}\0{id}\0"));
    [("stock", stock), ("ours", ours)].map(|(whose, hash)| (whose, Path::new(SOCKETS).join(format!("{hash:x}"))))
}

/// A socket is left by its path, whether somebody listens or not.
fn sockets(node: &Node, ids: &HashSet<String>) -> Vec<Left> {
    let all = ids.iter().flat_map(|id| socket_paths(node, id).map(|(whose, path)| (id, whose, path)));
    all.filter(|(_, _, path)| path.exists())
        .map(|(id, whose, _)| Left { kind: "sockets", name: format!("{id}, {whose}") })
        .collect()
}

/// That the paths which are looked for are those in use.
pub fn assert_sockets_are_known(node: &Node, id: &str) -> Result<()> {
    let found = sockets(node, &iter::once(id.to_owned()).collect());
    ensure!(found.len() == 2, "sockets of {id}: {found:?} of {:?}", node.containerd().sockets());
    Ok(())
}

fn bundles(node: &Node) -> PathBuf {
    node.containerd().directory().join("state/io.containerd.runtime.v2.task").join(NAMESPACE)
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
