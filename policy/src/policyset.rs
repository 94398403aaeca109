//! The policy set: compiled selection, published by the agent as one file and read by every shim.
//!
//! The file is JSON so that the shim needs no YAML. The agent replaces it by an atomic rename: a shim sees the
//! old set or the new one, never half of each.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// File name below the run directory.
pub const FILE_NAME: &str = "policyset";

/// Version of the file's format; a shim refuses any other.
pub const FORMAT: u32 = 2;

/// The annotation by which a workload asks for a mode.
pub const MODE_ANNOTATION: &str = "portcullis.dev/mode";

/// What is done about a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Report it.
    Detect,
    /// Report it, and stop it where the rule says `block`.
    Enforce,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detect => "detect",
            Self::Enforce => "enforce",
        })
    }
}

/// What happens to a container whose guard can't be put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAttachFailure {
    /// It starts unguarded and is reported.
    Allow,
    /// It does not start; containerd shows the reason.
    Deny,
}

/// How the kernel side works on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// BPF LSM programs attached to each container's cgroup.
    Lsm,
    /// One node-wide program on `sched_process_exec`, attached by the agent.
    Tracepoint,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lsm => "lsm",
            Self::Tracepoint => "tracepoint",
        })
    }
}

/// One policy as the shim needs it; its rules are in the kernel tables under `id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyEntry {
    /// Key into the kernel's rule table. Never 0.
    pub id: u32,
    /// `metadata.name` of the policy.
    pub name: String,
    /// The mode without annotations.
    pub mode: Mode,
    /// See [`OnAttachFailure`].
    pub on_attach_failure: OnAttachFailure,
    /// Whether the annotation may turn enforce into detect.
    pub allow_loosening: bool,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicySet {
    /// [`FORMAT`].
    pub format: u32,
    /// The backend that the agent found usable.
    pub backend: Backend,
    /// The directory in bpffs that holds this version's pins.
    pub pins: PathBuf,
    /// The stock shim that does the work: a name looked up in `PATH`, or an absolute path.
    pub inner_shim: PathBuf,
    /// Changes with the catalogue: what was learnt by another one has to be learnt anew.
    pub catalog: u32,
    /// The policy of a container that no selector names.
    pub default_policy: PolicyEntry,
}

/// A policy set that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicySetError {
    /// Not JSON of the expected shape.
    #[error("the policy set is not valid")]
    Syntax(#[from] serde_json::Error),
    /// Written by an agent of another version.
    #[error(
        "the policy set has format {found}, this shim reads format {FORMAT}: install agent and shim of one version"
    )]
    Format {
        /// The format found.
        found: u32,
    },
}

/// An annotation that makes no sense. The container is refused: to start it in another mode than its author
/// wrote would be worse.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {MODE_ANNOTATION} has the value {value:?}; allowed are \"detect\" and \"enforce\"")]
pub struct ModeAnnotationError {
    /// The value found.
    pub value: String,
}

/// The outcome of selection for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The policy chosen.
    pub policy: &'a PolicyEntry,
    /// The mode in force.
    pub mode: Mode,
    /// Why this mode: `policy`, `annotation`, or a sentence when the annotation was refused.
    pub reason: String,
}

impl PolicySet {
    /// Reads a policy set from the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicySetError> {
        #[derive(Deserialize)]
        struct Probe {
            format: u32,
        }
        let Probe { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(PolicySetError::Format { found: format });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PolicySetError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Chooses policy and mode for a container with these OCI annotations. An annotation may always tighten the
    /// mode; it loosens it only where the policy allows that.
    pub fn choose(&self, annotations: &BTreeMap<String, String>) -> Result<Choice<'_>, ModeAnnotationError> {
        let policy = &self.default_policy;
        let (mode, reason) = match annotations.get(MODE_ANNOTATION).map(String::as_str) {
            None => (policy.mode, "policy".to_owned()),
            Some("enforce") => (Mode::Enforce, "annotation".to_owned()),
            Some("detect") if policy.mode == Mode::Detect || policy.allow_loosening => {
                (Mode::Detect, "annotation".to_owned())
            }
            Some("detect") => (
                policy.mode,
                format!("policy; annotation {MODE_ANNOTATION}=detect refused: the policy does not allow loosening"),
            ),
            Some(other) => return Err(ModeAnnotationError { value: other.to_owned() }),
        };
        Ok(Choice { policy, mode, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(mode: Mode, allow_loosening: bool) -> PolicySet {
        PolicySet {
            format: FORMAT,
            backend: Backend::Lsm,
            pins: "/sys/fs/bpf/portcullis/v3".into(),
            inner_shim: "containerd-shim-runc-v2".into(),
            catalog: 1,
            default_policy: PolicyEntry {
                id: 1,
                name: "default".into(),
                mode,
                on_attach_failure: OnAttachFailure::Allow,
                allow_loosening,
            },
        }
    }

    fn choose(
        mode: Mode,
        allow_loosening: bool,
        annotation: Option<&str>,
    ) -> Result<(Mode, String), ModeAnnotationError> {
        let annotations = annotation.map(|v| (MODE_ANNOTATION.to_owned(), v.to_owned())).into_iter().collect();
        set(mode, allow_loosening).choose(&annotations).map(|c| (c.mode, c.reason))
    }

    #[test]
    fn annotation_tightens_but_does_not_loosen() {
        assert_eq!(choose(Mode::Detect, false, None).unwrap().0, Mode::Detect);
        assert_eq!(choose(Mode::Detect, false, Some("enforce")).unwrap().0, Mode::Enforce);
        let (mode, reason) = choose(Mode::Enforce, false, Some("detect")).unwrap();
        assert_eq!(mode, Mode::Enforce);
        assert!(reason.contains("refused"), "{reason}");
        assert_eq!(choose(Mode::Enforce, true, Some("detect")).unwrap().0, Mode::Detect);
    }

    #[test]
    fn senseless_annotation_is_an_error() {
        let error = choose(Mode::Detect, false, Some("Enforce")).unwrap_err();
        assert!(error.to_string().contains("\"Enforce\""), "{error}");
    }

    #[test]
    fn file_round_trips_and_other_formats_are_refused() {
        let set = set(Mode::Enforce, true);
        assert_eq!(PolicySet::parse(&set.to_bytes().unwrap()).unwrap(), set);
        let other = PolicySet { format: FORMAT + 1, ..set };
        assert!(matches!(
            PolicySet::parse(&other.to_bytes().unwrap()),
            Err(PolicySetError::Format { found }) if found == FORMAT + 1
        ));
        assert!(matches!(PolicySet::parse(b"{"), Err(PolicySetError::Syntax(_))));
    }
}
