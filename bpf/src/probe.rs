//! What this node's kernel can do, and the choice of backend.

use crate::Backend;

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

/// Looks at the node. Loads small programs to see whether the kernel takes them; attaches nothing.
pub fn node() -> Report {
    Report { kernel: String::new(), backend: None, reason: "not written yet".to_owned(), checks: Vec::new() }
}
