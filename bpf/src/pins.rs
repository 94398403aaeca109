//! Where the objects are pinned: `<root>/vN/{maps,programs,links}`, N being the ABI version, so that an upgrade can
//! stand beside containers that the former version still guards.

use std::path::{Path, PathBuf};

use crate::{Backend, abi::ABI_VERSION};

/// The directory that holds the versions, below the bpffs mount.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/portcullis";

/// The programs that are attached to each container's cgroup (backend `lsm`), and the LSM hook of each.
pub const LSM_PROGRAMS: [(&str, &str); 3] = [
    ("pc_bprm_check", "bprm_check_security"),
    ("pc_bprm_committed", "bprm_committed_creds"),
    ("pc_mmap_file", "mmap_file"),
];

/// The node-wide program of the backend `tracepoint`, and its tracepoint.
pub const TRACEPOINT_PROGRAM: (&str, &str) = ("pc_sched_exec", "sched_process_exec");

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

    /// The pins in this directory, as the policy set names it.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The version's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
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

    /// What must be pinned for a backend to guard containers, besides the maps. Of the tracepoint's program the link is
    /// enough: it is attached already, and no shim opens it.
    pub fn needed(&self, backend: Backend) -> Vec<PathBuf> {
        match backend {
            Backend::Lsm => LSM_PROGRAMS.iter().map(|(name, _)| self.program(name)).collect(),
            Backend::Tracepoint => vec![self.tracepoint_link()],
        }
    }

    /// The node-wide link of the backend `tracepoint`.
    pub fn tracepoint_link(&self) -> PathBuf {
        self.directory.join("tracepoint")
    }
}
