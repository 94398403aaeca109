//! A container's record: one file a container below [`DIR_NAME`] in the run directory, written by the shim.
//!
//! An event from the kernel carries a cgroup id; the record named by it says which container that is, even
//! when the container is already gone. The shim marks a record as ended; the agent removes it once every
//! event from before the end has been read.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::policyset::{Backend, MODE_ANNOTATION, Mode};

/// Directory below the run directory.
pub const DIR_NAME: &str = "containers";

/// Version of the record's format.
pub const FORMAT: u32 = 1;

/// Whether the guard is in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Guard {
    /// Attached before the container's first instruction.
    Guarded,
    /// Not attached, and the policy let the container start all the same.
    Unguarded {
        /// Cause and remedy.
        reason: String,
    },
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// Inode number of the container's cgroup in the cgroup v2 hierarchy; 0 when it could not be found out.
    pub cgroup_id: u64,
    /// That cgroup's absolute path, empty when it could not be found out.
    pub cgroup_path: PathBuf,
    /// containerd's id of the container.
    pub container_id: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// containerd's own gRPC address, by which the agent asks for what the spec does not say.
    pub containerd_address: String,
    /// Pid of the container's first process, as the node sees it.
    pub pid: u32,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// Kernel id of the policy in force; 0 when none could be chosen.
    pub policy_id: u32,
    /// Its name.
    pub policy: String,
    /// The mode in force.
    pub mode: Mode,
    /// See [`crate::policyset::Choice::mode_reason`].
    pub mode_reason: String,
    /// See [`crate::policyset::Choice::policy_reason`]; empty in records of shims that did not tell.
    #[serde(default)]
    pub policy_reason: String,
    /// The backend that guards it.
    pub backend: Option<Backend>,
    /// The directory of the pins by which it is guarded; empty when it is not, or its shim did not tell.
    #[serde(default)]
    pub pins: PathBuf,
    /// Whether the guard is in place.
    pub guard: Guard,
    /// Why tools are recognised by their names only here; `None` when their contents are known as well.
    #[serde(default)]
    pub contents_unknown: Option<String>,
    /// The annotations of the OCI spec, as far as [`keep`] keeps them: policy and mode are chosen by these.
    pub annotations: BTreeMap<String, String>,
    /// Wall clock, nanoseconds since 1970.
    pub created_ns: u64,
    /// Set when the container has ended and its guard is removed.
    pub ended_ns: Option<u64>,
    /// Set with [`Self::ended_ns`]: what the kernel has counted; `None` when it was not guarded, or its shim did not tell.
    #[serde(default)]
    pub counts: Option<Counts>,
}

/// What the kernel has counted for a container in its whole life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Events, whether or not they fitted into the ring buffer.
    pub matched: u64,
    /// Of these: refused.
    pub blocked: u64,
    /// Of these: ended by SIGKILL.
    pub killed: u64,
}

/// Bytes of annotations that a record holds at most, keys and values together.
pub const ANNOTATIONS_MAX: usize = 32 * 1024;

/// What a record keeps of a spec's annotations, and how many it leaves out: their number and size are up to whoever wrote the
/// container. CRI's own and the one for the mode come first, then others that are for Portcullis, then the rest.
pub fn keep(annotations: BTreeMap<String, String>) -> (BTreeMap<String, String>, usize) {
    let order = |key: &str| match key {
        MODE_ANNOTATION => 0,
        _ if key.starts_with("io.kubernetes.cri.") => 0,
        _ if key.starts_with("portcullis.dev/") => 1,
        _ => 2,
    };
    let mut annotations: Vec<_> = annotations.into_iter().collect();
    // Stable, and they come sorted.
    annotations.sort_by_key(|(key, _)| order(key));
    let (mut kept, mut size) = (BTreeMap::new(), 0);
    let all = annotations.len();
    for (key, value) in annotations {
        let own = key.len() + value.len();
        if own <= ANNOTATIONS_MAX - size {
            size += own;
            kept.insert(key, value);
        }
    }
    let left_out = all - kept.len();
    (kept, left_out)
}

/// The file name of a container's record: the cgroup id in decimal, or, where that is not known, `x-` and
/// containerd's namespace and id. Both of these are restricted by containerd to `[A-Za-z0-9_.-]`; anything else
/// becomes `_`, so that the name can't leave the directory.
pub fn file_name(cgroup_id: u64, containerd_namespace: &str, container_id: &str) -> String {
    if cgroup_id != 0 {
        return cgroup_id.to_string();
    }
    let clean = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' }).collect()
    };
    format!("x-{}-{}", clean(containerd_namespace), clean(container_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_bounded_and_the_important_ones_come_first() {
        let pairs = |pairs: &[(&str, usize)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, length)| ((*key).to_owned(), "x".repeat(*length))).collect()
        };
        let few = pairs(&[("a.example/first", 200), ("io.kubernetes.cri.sandbox-name", 3), (MODE_ANNOTATION, 7)]);
        assert_eq!(keep(few.clone()), (few.clone(), 0));
        let mut many = few;
        many.append(&mut pairs(&[("portcullis.dev/long", ANNOTATIONS_MAX - 250), ("longer", ANNOTATIONS_MAX)]));
        let (kept, left_out) = keep(many);
        let keys: Vec<&str> = kept.keys().map(String::as_str).collect();
        assert_eq!(keys, ["io.kubernetes.cri.sandbox-name", "portcullis.dev/long", MODE_ANNOTATION]);
        assert_eq!(left_out, 2);
    }

    #[test]
    fn file_names_stay_in_their_directory() {
        assert_eq!(file_name(42, "default", "a"), "42");
        assert_eq!(file_name(0, "default", "../../etc/x"), "x-default-.._.._etc_x");
    }
}
