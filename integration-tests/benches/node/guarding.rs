//! Guards by the shim's own code on cgroups that it knows nothing of: one that can be put under guard and released again, and many that
//! stand for containers.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, Result};
use portcullis_bpf::{
    Backend,
    abi::{self, Mode},
    cgroup::{Cgroup, hierarchy},
    guard::Guard,
    pins::Pins,
};
use portcullis_policy::policyset;

use crate::Bed;

/// Puts cgroups under guard as the shim would, in detect.
struct Shim {
    guard: Guard,
    backend: Backend,
    like: abi::Container,
}

impl Shim {
    fn new(bed: &Bed, init_pid: u32) -> Result<Self> {
        let set = bed.node.policy_set()?;
        let backend = match set.backend {
            policyset::Backend::Lsm => Backend::Lsm,
            policyset::Backend::Tracepoint => Backend::Tracepoint,
        };
        let like = abi::Container {
            cgroup_id: 0,
            policy: set.default_policy.id,
            mode: Mode::Detect as u32,
            init_pid,
            backend: backend as u32,
            scope: 0,
            node_mount_ns: u32::try_from(fs::metadata("/proc/self/ns/mnt")?.ino())?,
            exceptions: 0,
            flags: 0,
            level: 0,
        };
        Ok(Self { guard: Guard::open(Pins::at(&set.pins))?, backend, like })
    }

    fn attach(&mut self, cgroup: &Cgroup) -> Result<()> {
        let container = abi::Container { cgroup_id: cgroup.id, ..self.like };
        Ok(self.guard.attach(cgroup, self.backend, container)?)
    }

    fn release(&mut self, cgroup_id: u64) -> Result<()> {
        Ok(self.guard.release(cgroup_id)?)
    }
}

/// A container that was started without guard, so that what is measured with and without is the same container.
pub struct Switch {
    shim: Shim,
    cgroup: Cgroup,
    is_on: bool,
}

impl Switch {
    pub fn new(bed: &Bed, first_process: u32) -> Result<Self> {
        let cgroup = Cgroup::of_container(first_process)?;
        Ok(Self { shim: Shim::new(bed, first_process)?, cgroup, is_on: false })
    }

    pub fn set(&mut self, on: bool) -> Result<()> {
        match (self.is_on, on) {
            (false, true) => self.shim.attach(&self.cgroup)?,
            (true, false) => self.shim.release(self.cgroup.id)?,
            _ => {}
        }
        self.is_on = on;
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = self.set(false) {
            eprintln!("releasing {}: {error:#}", self.cgroup.path.display());
        }
    }
}

/// Cgroups that stand for containers. Dropping them releases and removes them.
pub struct Cgroups {
    root: PathBuf,
    shim: Shim,
    all: Vec<Cgroup>,
}

impl Cgroups {
    pub fn new(bed: &Bed) -> Result<Self> {
        let root = hierarchy()?.join(format!("portcullis-bench-{}", std::process::id()));
        fs::create_dir(&root).with_context(|| root.display().to_string())?;
        Ok(Self { root, shim: Shim::new(bed, 1)?, all: Vec::new() })
    }

    /// Puts one more under guard. How long that took, in milliseconds.
    pub fn attach(&mut self) -> Result<f64> {
        let path = self.root.join(self.all.len().to_string());
        fs::create_dir(&path)?;
        let directory = File::open(&path)?;
        let cgroup = Cgroup { id: directory.metadata()?.ino(), path, directory };
        let begun = Instant::now();
        self.shim.attach(&cgroup)?;
        let took = begun.elapsed();
        self.all.push(cgroup);
        Ok(took.as_secs_f64() * 1000.0)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for Cgroup { id, path, .. } in &self.all {
            if let Err(error) = self.shim.release(*id).and(fs::remove_dir(path).map_err(Into::into)) {
                eprintln!("removing {}: {error:#}", path.display());
            }
        }
        if let Err(error) = fs::remove_dir(&self.root) {
            eprintln!("removing {}: {error}", self.root.display());
        }
    }
}
