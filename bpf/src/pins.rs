//! Where the objects are pinned: `<root>/vN/{maps,programs,node,links}`, N being the ABI version, so that an upgrade can
//! stand beside containers that the former version still guards.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    Backend,
    abi::{ABI_VERSION, RECORDS_SINCE},
};

/// The directory that holds the versions, below the bpffs mount.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/portcullis";

/// The programs that are attached to each container's cgroup (backend `lsm`), and the LSM hook of each.
pub const LSM_PROGRAMS: [(&str, &str); 8] = [
    ("pc_bprm_check", "bprm_check_security"),
    ("pc_bprm_committed", "bprm_committed_creds"),
    ("pc_mmap_file", "mmap_file"),
    ("pc_socket_connect", "socket_connect"),
    ("pc_socket_create", "socket_create"),
    ("pc_socket_bind", "socket_bind"),
    ("pc_socket_listen", "socket_listen"),
    ("pc_socket_sendmsg", "socket_sendmsg"),
];

/// How a program is attached for the whole node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// To this tracepoint.
    Tracepoint(&'static str),
    /// To this LSM hook.
    Lsm(&'static str),
    /// To the entry of this function of the kernel. There are kernels where that can't be done (arm64 before 6.4): what such
    /// a program tells is missing there, and all else works.
    Entry(&'static str),
}

const FORK: (&str, Attach) = ("pc_sched_fork", Attach::Tracepoint("sched_process_fork"));

/// The program that tells of processes which leave their container's cgroup, and where it is attached.
pub const CGROUP_ATTACH: (&str, Attach) = ("pc_cgroup_attach", Attach::Entry("cgroup_attach_task"));

/// The programs that are attached once for the whole node.
pub fn node_programs(backend: Backend) -> &'static [(&'static str, Attach)] {
    match backend {
        Backend::Lsm => &[
            FORK,
            CGROUP_ATTACH,
            ("pc_bpf", Attach::Lsm("bpf")),
            ("pc_bpf_map", Attach::Lsm("bpf_map")),
            ("pc_unlink", Attach::Lsm("inode_unlink")),
            ("pc_rmdir", Attach::Lsm("inode_rmdir")),
            ("pc_rename", Attach::Lsm("inode_rename")),
        ],
        Backend::Tracepoint => &[
            FORK,
            CGROUP_ATTACH,
            ("pc_sched_exec", Attach::Tracepoint("sched_process_exec")),
            ("pc_tcp_connect", Attach::Tracepoint("inet_sock_set_state")),
        ],
    }
}

/// One version's pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The pins of this ABI version below `root`.
    pub fn current(root: &Path) -> Self {
        Self::at(root.join(format!("v{ABI_VERSION}")))
    }

    /// The pins of other ABI versions beside these: of containers that were there before this version came.
    pub fn others(&self) -> io::Result<Vec<Self>> {
        let mut others = Vec::new();
        let Some(root) = self.directory.parent() else { return Ok(others) };
        for entry in fs::read_dir(root)? {
            let pins = Self::at(entry?.path());
            if pins.version().is_some() && pins != *self {
                others.push(pins);
            }
        }
        others.sort_unstable_by_key(Self::version);
        Ok(others)
    }

    /// Takes all of them away, and with them what nothing else holds. To be called when no container is guarded by them.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)
    }

    /// The pins in this directory, as the policy set names it.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The version's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The ABI version of which these are, by the directory's name.
    pub fn version(&self) -> Option<u32> {
        self.directory.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
    }

    /// Directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    /// One map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Directory of the programs.
    pub fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }

    /// One program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Directory of all links.
    pub fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Directory of one container's links.
    pub fn container_links(&self, cgroup_id: u64) -> PathBuf {
        self.links().join(cgroup_id.to_string())
    }

    /// Whether the records of their ring buffers can be read here.
    pub fn are_readable(&self) -> bool {
        self.version().is_some_and(|version| (RECORDS_SINCE..=ABI_VERSION).contains(&version))
    }

    /// What must be pinned for a backend to guard containers, besides the maps. Of a program that is attached for the
    /// whole node the link is enough: no shim opens it.
    pub fn needed(&self, backend: Backend) -> Vec<PathBuf> {
        let required = node_programs(backend).iter().filter(|(_, attach)| !matches!(attach, Attach::Entry(_)));
        let mut pins: Vec<PathBuf> = required.map(|(name, _)| self.node_link(name)).collect();
        if backend == Backend::Lsm {
            pins.extend(LSM_PROGRAMS.iter().map(|(name, _)| self.program(name)));
        }
        pins
    }

    /// Directory of the links of programs that are attached once for the whole node.
    pub fn node_links(&self) -> PathBuf {
        self.directory.join("node")
    }

    /// The link of one such program.
    pub fn node_link(&self, name: &str) -> PathBuf {
        self.node_links().join(name)
    }
}
