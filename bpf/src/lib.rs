//! Portcullis's kernel programs (`src/bpf/*.c`) and everything that touches them from user space.
//!
//! | module | idea |
//! |---|---|
//! | [`abi`] | the Rust mirror of `abi.h`, and decoding of events |
//! | [`cgroup`] | finding a process's cgroup v2 directory and its id |
//! | [`contents`] | what shims have learnt of containers' contents |
//! | [`fingerprint`] | what a file is by its content |
//! | [`pins`] | where each object is pinned in bpffs |
//! | [`guard`] | putting one container under guard, and releasing it: all that the shim needs |
//! | [`heap`] | what of the memory goes back to the system |
//! | `isolation` | cutting one container off from the network |
//! | `loader` | loading and pinning: the agent's side |
//! | `tables` | filling the tables of names and rules |
//! | `probe` | what this node's kernel can do, and the choice of backend |
//! | `ring` | reading events |
//!
//! The last five come with the feature `object`.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod abi;
pub mod cgroup;
pub mod contents;
pub mod fingerprint;
pub mod guard;
#[allow(unsafe_code)]
pub mod heap;
#[cfg(feature = "object")]
pub mod isolation;
#[cfg(feature = "object")]
pub mod loader;
pub mod pins;
#[cfg(feature = "object")]
pub mod probe;
#[cfg(feature = "object")]
pub mod ring;
#[cfg(feature = "object")]
pub mod tables;

/// How the kernel side works on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Backend {
    /// LSM programs on each container's own cgroup: EPERM before the exec. Kernel 6.0 (arm64: 6.4).
    Lsm = 1,
    /// One node-wide program on `sched_process_exec`: SIGKILL before the first user instruction. Kernel 5.17.
    Tracepoint = 2,
}
