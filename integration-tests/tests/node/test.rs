//! What a test is, and who decides how it ends: machines that differ in one of these run what that one decides.

use anyhow::{Context, Result};
use portcullis_integration_tests::node::Node;

/// Who decides how a test ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Decider {
    /// The kernel and the backend: what is matched, stopped and told.
    Kernel,
    /// containerd and runc: how containers and pods are started, and what is left of them.
    Containerd,
    /// Our own programs, wherever they run.
    Ourselves,
}

pub const KERNEL: &[Decider] = &[Decider::Kernel];
pub const CONTAINERD: &[Decider] = &[Decider::Containerd];
pub const KERNEL_AND_CONTAINERD: &[Decider] = &[Decider::Kernel, Decider::Containerd];
pub const OURSELVES: &[Decider] = &[Decider::Ourselves];
pub const ALL: &[Decider] = &[Decider::Kernel, Decider::Containerd, Decider::Ourselves];

#[derive(Clone, Copy)]
pub struct Test {
    decided_by: &'static [Decider],
    pub name: &'static str,
    pub run: fn(&Node) -> Result<()>,
}

impl Test {
    pub const fn new(decided_by: &'static [Decider], name: &'static str, run: fn(&Node) -> Result<()>) -> Self {
        Self { decided_by, name, run }
    }

    pub fn is_decided_by(&self, deciders: &[Decider]) -> bool {
        self.decided_by.iter().any(|decider| deciders.contains(decider))
    }
}

/// The deciders of `PORTCULLIS_DECIDED_BY`, words such as `kernel containerd`; all of them where nothing is said.
pub fn deciders(words: Option<&str>) -> Result<Vec<Decider>> {
    let Some(words) = words else { return Ok(ALL.to_vec()) };
    let decider = |word| match word {
        "kernel" => Some(Decider::Kernel),
        "containerd" => Some(Decider::Containerd),
        "ourselves" => Some(Decider::Ourselves),
        _ => None,
    };
    words
        .split_whitespace()
        .map(|word| {
            decider(word)
                .with_context(|| format!("PORTCULLIS_DECIDED_BY: {word} is not kernel, containerd or ourselves"))
        })
        .collect()
}
