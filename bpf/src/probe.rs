//! What this node's kernel can do, and the choice of backend.

use std::{error::Error, fs, path::Path};

use aya::Btf;

use crate::{
    Backend, cgroup,
    loader::{self, LoadError},
};

/// The outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, with something lost.
    Warning,
    /// Does not work.
    Failed,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Short name: "kernel", "bpf-lsm", "cgroup-v2".
    pub name: &'static str,
    /// The outcome.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do; empty when all is well.
    pub remedy: String,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn failed(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Failed, detail: detail.into(), remedy: remedy.into() }
    }

    fn is_ok(&self) -> bool {
        self.state == State::Ok
    }
}

/// What the node can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Kernel release, as uname has it.
    pub kernel: String,
    /// The backend to use, `None` when neither works.
    pub backend: Option<Backend>,
    /// Why that one.
    pub reason: String,
    /// Everything looked at.
    pub checks: Vec<Check>,
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// An error and its causes, the verifier's log cut to its last line: that is where the reason stands.
fn explain(error: &LoadError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        let message = error.to_string();
        let mut lines = message.lines();
        text.push_str(lines.next().unwrap_or_default());
        if let Some(last) = lines.rfind(|line| !line.trim().is_empty() && !line.starts_with("processed ")) {
            text.push_str(" … ");
            text.push_str(last.trim());
        }
        cause = error.source();
    }
    text
}

fn btf() -> Check {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Check::ok("btf", "/sys/kernel/btf/vmlinux")
    } else {
        Check::failed("btf", "/sys/kernel/btf/vmlinux is missing", "run a kernel built with CONFIG_DEBUG_INFO_BTF=y")
    }
}

fn cgroup_v2() -> Check {
    match cgroup::hierarchy() {
        Ok(path) if cgroup::is_unified() => Check::ok("cgroup-v2", format!("unified, at {}", path.display())),
        Ok(path) => Check::ok("cgroup-v2", format!("beside cgroup v1, at {}", path.display())),
        Err(error) => Check::failed("cgroup-v2", error.to_string(), "boot with systemd.unified_cgroup_hierarchy=1"),
    }
}

/// Programs load and attach even where the LSM `bpf` is not active; they are then never called. So the list decides.
fn active_lsms() -> Check {
    const NAME: &str = "bpf-lsm";
    const LIST: &str = "/sys/kernel/security/lsm";
    match fs::read_to_string(LIST) {
        Ok(list) if list.trim().split(',').any(|lsm| lsm == "bpf") => {
            Check::ok(NAME, format!("active LSMs: {}", list.trim()))
        }
        Ok(list) => Check::failed(
            NAME,
            format!("bpf is not among the active LSMs: {}", list.trim()),
            format!("boot with lsm={},bpf", list.trim()),
        ),
        Err(error) => Check::failed(
            NAME,
            format!("{LIST}: {error}"),
            "mount -t securityfs securityfs /sys/kernel/security; if the file is still missing, the kernel has no LSM framework",
        ),
    }
}

/// Whether the kernel takes a backend's programs, and what tells of processes that leave their container's cgroup.
fn loads(name: &'static str, btf: &Result<Btf, LoadError>, backend: Backend) -> (Check, Check) {
    let refused = match btf.as_ref().map(|btf| loader::try_load(btf, backend)) {
        Ok(Ok(told)) => {
            return (Check::ok(name, "the kernel takes the programs"), cgroup_moves(told.map_err(|e| explain(&e))));
        }
        Ok(Err(error)) => explain(&error),
        Err(error) => explain(error),
    };
    let remedy = match backend {
        Backend::Lsm => {
            "kernel 6.0 or newer (arm64: 6.4) with CONFIG_BPF_LSM, and root (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN)"
        }
        Backend::Tracepoint => "kernel 5.17 or newer with BTF, and root (CAP_BPF, CAP_PERFMON)",
    };
    (Check::failed(name, refused.clone(), remedy), cgroup_moves(Err(refused)))
}

/// Not what guards, but what tells that somebody gets away from it.
fn cgroup_moves(told: Result<(), String>) -> Check {
    const NAME: &str = "cgroup-moves";
    let Err(refused) = told else {
        return Check::ok(NAME, "processes that leave their container's cgroup are told");
    };
    Check {
        name: NAME,
        state: State::Warning,
        detail: format!("processes that leave their container's cgroup are not told: {refused}"),
        remedy: "a kernel with CONFIG_FUNCTION_TRACER (arm64: 6.4 or newer); until then let no container write to the node's cgroups"
            .to_owned(),
    }
}

/// Looks at the node. Loads the programs to see whether the kernel takes them; pins and attaches nothing.
pub fn node() -> Report {
    let kernel = kernel_release();
    let btf = btf();
    let cgroup = cgroup_v2();
    let lsms = active_lsms();
    let types = loader::kernel_btf();
    let (lsm, _) = loads("lsm-programs", &types, Backend::Lsm);
    let (tracepoint, cgroup_moves) = loads("tracepoint-program", &types, Backend::Tracepoint);
    let common = btf.is_ok() && cgroup.is_ok();
    let (backend, reason) = if common && lsms.is_ok() && lsm.is_ok() {
        (Some(Backend::Lsm), "the kernel has an active BPF LSM and takes the programs".to_owned())
    } else if common && tracepoint.is_ok() {
        let why = if lsms.is_ok() { &lsm.detail } else { &lsms.detail };
        (Some(Backend::Tracepoint), format!("no usable BPF LSM ({why}); enforcement is SIGKILL instead of EPERM"))
    } else {
        let why = [&btf, &cgroup, &tracepoint].into_iter().find(|check| !check.is_ok());
        (None, why.map_or_else(String::new, |check| check.detail.clone()))
    };
    let mut checks = vec![Check::ok("kernel", kernel.clone()), btf, cgroup, lsms, lsm, tracepoint, cgroup_moves];
    if backend == Some(Backend::Tracepoint) {
        // The node does its work all the same: what only the better backend needs is no failure.
        for check in checks.iter_mut().filter(|check| !check.is_ok()) {
            check.state = State::Warning;
        }
    }
    Report { kernel, backend, reason, checks }
}
