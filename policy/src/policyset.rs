//! The policy set: compiled selection, published by the agent as one file and read by every shim.
//!
//! The file is JSON so that the shim needs no YAML. The agent replaces it by an atomic rename: a shim sees the
//! old set or the new one, never half of each.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    glob::Glob,
    select::{Facts, Rank, Select, Selection},
};

/// Version of the file's format; a shim refuses any other. A change of it raises the kernel programs' ABI version as well.
pub const FORMAT: u32 = 3;

/// File name below the run directory, for shims of an ABI version of the kernel programs. A shim serves its pod for as long as
/// that runs; when the agent has become another version's, the pod's new containers are guarded as those that run: by the
/// programs and policies that the agent before has left.
pub fn file_name(abi_version: u32) -> String {
    format!("{FILE_NAME}{abi_version}")
}

/// The ABI version for whose shims a file of the run directory is, if it is a policy set.
pub fn abi_version(file_name: &str) -> Option<u32> {
    file_name.strip_prefix(FILE_NAME)?.parse().ok()
}

const FILE_NAME: &str = "policyset.v";

/// The annotation by which a workload asks for a mode.
pub const MODE_ANNOTATION: &str = "portcullis.dev/mode";

/// What is done about a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnAttachFailure {
    /// It starts unguarded and is reported.
    Allow,
    /// It does not start; containerd shows the reason.
    Deny,
}

/// How the kernel side works on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// Which containers it is for.
    #[serde(default, skip_serializing_if = "Select::is_everything")]
    pub select: Select,
    /// Decides between policies that are equally specific; the higher is taken.
    #[serde(default)]
    pub priority: i32,
    /// The mode without annotations.
    pub mode: Mode,
    /// The mode is not the file's but what an operator has set since.
    #[serde(default)]
    pub mode_by_operator: bool,
    /// See [`OnAttachFailure`].
    pub on_attach_failure: OnAttachFailure,
    /// Whether the annotation may turn enforce into detect, and annotations may select a policy that is less strict.
    pub allow_loosening: bool,
    /// The backend without which a container counts as one whose guard can't be put in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_backend: Option<Backend>,
    /// Of a policy that annotations select: ids of those in whose place it may be taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_replace: Vec<u32>,
    /// Those of its exceptions that are for certain images only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_exceptions: Vec<ImageException>,
}

/// An exception that is for certain images only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageException {
    /// Its number in its policy, less than 32.
    pub number: u32,
    /// One of these must match.
    pub images: Vec<Glob>,
}

impl PolicyEntry {
    /// A policy for every container, with nothing else said.
    pub fn new(id: u32, name: &str, mode: Mode, on_attach_failure: OnAttachFailure) -> Self {
        Self {
            id,
            name: name.to_owned(),
            select: Select::default(),
            priority: 0,
            mode,
            mode_by_operator: false,
            on_attach_failure,
            allow_loosening: false,
            require_backend: None,
            may_replace: Vec::new(),
            image_exceptions: Vec::new(),
        }
    }

    /// Which of its exceptions are for a container of this image: a bit each. An image that is not known is none.
    pub fn exceptions_for(&self, image: Option<&str>) -> u32 {
        let is_for = |exception: &&ImageException| {
            image.is_some_and(|image| exception.images.iter().any(|glob| glob.matches(image)))
        };
        let others = self.image_exceptions.iter().filter(|exception| !is_for(exception));
        others.fold(u32::MAX, |bits, exception| bits & !1_u32.checked_shl(exception.number).unwrap_or_default())
    }

    /// Where it stands among others.
    pub fn rank(&self) -> Rank<'_> {
        self.select.rank(self.priority, &self.name)
    }

    /// Why a container can't be guarded as the policy wants; `None` if it can. Cause and remedy.
    pub fn obstacle(&self, backend: Backend) -> Option<String> {
        let required = self.require_backend.filter(|required| *required != backend)?;
        let (name, remedy) = (&self.name, "portcullis check says why and what to do");
        Some(format!("policy {name} requires the backend {required}, this node has {backend}: {remedy}"))
    }
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
    /// The policy of a container that no other selects.
    pub default_policy: PolicyEntry,
    /// The others, in the order in which they are tried.
    pub policies: Vec<PolicyEntry>,
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
    /// Why this policy: a short sentence.
    pub policy_reason: String,
    /// The mode in force.
    pub mode: Mode,
    /// Why this mode: `policy`, `operator`, `annotation`, or a sentence when the annotation was refused.
    pub mode_reason: String,
    /// Another policy might be chosen if the container's image were known.
    pub hinges_on_image: bool,
    /// Which of the policy's exceptions are for the container's image: a bit each.
    pub exceptions: u32,
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

    /// Chooses policy and mode for a container.
    ///
    /// The first policy that selects it is taken. What a workload says of itself may tighten, never loosen: a policy that is
    /// selected by annotations is passed over unless it may replace the one that would be taken without any of these; and the
    /// annotation for the mode loosens it only where the policy allows that.
    pub fn choose(&self, facts: &Facts<'_>) -> Result<Choice<'_>, ModeAnnotationError> {
        let mut hinges_on_image = false;
        let mut asked_for = Vec::new();
        let mut found = None;
        for policy in &self.policies {
            match policy.select.selection(facts) {
                Selection::Other => {}
                Selection::ImageUnknown => hinges_on_image = true,
                Selection::Selected(matched) if policy.select.by_annotations() => asked_for.push((policy, matched)),
                Selection::Selected(matched) => {
                    found = Some((policy, matched));
                    break;
                }
            }
        }
        let (mut policy, matched) = found.unwrap_or((&self.default_policy, String::new()));
        let mut policy_reason = if matched.is_empty() {
            "no other policy selects this container".to_owned()
        } else {
            format!("it selects {matched}")
        };
        let replaced = policy.id;
        let mut refused = Vec::new();
        for (candidate, matched) in asked_for {
            if candidate.may_replace.contains(&replaced) {
                (policy, policy_reason) = (candidate, format!("it selects {matched}"));
                break;
            }
            refused.push(candidate.name.as_str());
        }
        if !refused.is_empty() {
            let refused = refused.join(", ");
            policy_reason = format!("{policy_reason}; {refused} refused: asked for by annotations and less strict");
        }
        let (mode, mode_reason) = policy.mode_for(facts)?;
        let exceptions = policy.exceptions_for(facts.image);
        Ok(Choice { policy, policy_reason, mode, mode_reason, hinges_on_image, exceptions })
    }
}

impl PolicyEntry {
    fn mode_for(&self, facts: &Facts<'_>) -> Result<(Mode, String), ModeAnnotationError> {
        let own = if self.mode_by_operator { "operator" } else { "policy" };
        match facts.annotations.get(MODE_ANNOTATION).map(String::as_str) {
            None => Ok((self.mode, own.to_owned())),
            Some("enforce") => Ok((Mode::Enforce, "annotation".to_owned())),
            Some("detect") if self.mode == Mode::Detect || self.allow_loosening => {
                Ok((Mode::Detect, "annotation".to_owned()))
            }
            Some("detect") => Ok((
                self.mode,
                format!("{own}; annotation {MODE_ANNOTATION}=detect refused: the policy does not allow loosening"),
            )),
            Some(other) => Err(ModeAnnotationError { value: other.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn set(mode: Mode, allow_loosening: bool) -> PolicySet {
        PolicySet {
            format: FORMAT,
            backend: Backend::Lsm,
            pins: "/sys/fs/bpf/portcullis/v3".into(),
            inner_shim: "containerd-shim-runc-v2".into(),
            catalog: 1,
            default_policy: PolicyEntry {
                allow_loosening,
                ..PolicyEntry::new(1, "default", mode, OnAttachFailure::Allow)
            },
            policies: Vec::new(),
        }
    }

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn facts(annotations: &BTreeMap<String, String>) -> Facts<'_> {
        Facts { namespace: Some("shop"), pod: None, container: Some("c1"), image: None, annotations }
    }

    fn choose(
        mode: Mode,
        allow_loosening: bool,
        annotation: Option<&str>,
    ) -> Result<(Mode, String), ModeAnnotationError> {
        let annotations = annotation.map(|value| annotations(&[(MODE_ANNOTATION, value)])).unwrap_or_default();
        set(mode, allow_loosening).choose(&facts(&annotations)).map(|choice| (choice.mode, choice.mode_reason))
    }

    fn entry(id: u32, name: &str, select: &str) -> PolicyEntry {
        let select = serde_json::from_str(select).unwrap();
        PolicyEntry { select, ..PolicyEntry::new(id, name, Mode::Enforce, OnAttachFailure::Deny) }
    }

    #[test]
    fn the_first_that_selects_is_taken_and_says_why() {
        let policies = vec![entry(2, "a", r#"{"namespaces": ["bank"]}"#), entry(3, "b", r#"{"namespaces": ["sh*"]}"#)];
        let set = PolicySet { policies, ..set(Mode::Detect, false) };
        let none = BTreeMap::new();
        let choice = set.choose(&facts(&none)).unwrap();
        assert_eq!((choice.policy.id, choice.mode), (3, Mode::Enforce));
        assert_eq!(choice.policy_reason, "it selects namespaces \"sh*\"");
        let choice = set.choose(&Facts { namespace: Some("x"), ..facts(&none) }).unwrap();
        assert_eq!((choice.policy.id, choice.policy_reason.as_str()), (1, "no other policy selects this container"));
        assert!(!choice.hinges_on_image);
    }

    #[test]
    fn annotations_select_only_what_may_replace() {
        let asked_for = entry(2, "a", r#"{"annotations": {"tier": "*"}}"#);
        let wanted = annotations(&[("tier", "web")]);
        let set = |may_replace| PolicySet {
            policies: vec![PolicyEntry { may_replace, ..asked_for.clone() }],
            ..set(Mode::Detect, false)
        };
        let allowed = set(vec![1]);
        let choice = allowed.choose(&facts(&wanted)).unwrap();
        assert_eq!((choice.policy.id, choice.policy_reason.as_str()), (2, "it selects annotation tier \"*\""));
        let refused = set(vec![7]);
        let choice = refused.choose(&facts(&wanted)).unwrap();
        assert_eq!(choice.policy.id, 1);
        assert_eq!(
            choice.policy_reason,
            "no other policy selects this container; a refused: asked for by annotations and less strict"
        );
    }

    #[test]
    fn an_unknown_image_leaves_the_choice_open() {
        let policies = vec![entry(2, "a", r#"{"images": ["nginx*"]}"#)];
        let set = PolicySet { policies, ..set(Mode::Detect, false) };
        let none = BTreeMap::new();
        let choice = set.choose(&facts(&none)).unwrap();
        assert!(choice.policy.id == 1 && choice.hinges_on_image);
        let choice = set.choose(&Facts { image: Some("nginx:1"), ..facts(&none) }).unwrap();
        assert!(choice.policy.id == 2 && !choice.hinges_on_image);
    }

    #[test]
    fn an_operators_mode_says_so() {
        let mut set = set(Mode::Enforce, false);
        set.default_policy.mode_by_operator = true;
        let none = BTreeMap::new();
        assert_eq!(set.choose(&facts(&none)).unwrap().mode_reason, "operator");
        let detect = annotations(&[(MODE_ANNOTATION, "detect")]);
        assert!(set.choose(&facts(&detect)).unwrap().mode_reason.starts_with("operator; annotation"));
    }

    #[test]
    fn another_backend_is_an_obstacle() {
        let policy = PolicyEntry { require_backend: Some(Backend::Lsm), ..entry(2, "a", "{}") };
        assert_eq!(policy.obstacle(Backend::Lsm), None);
        let obstacle = policy.obstacle(Backend::Tracepoint).unwrap();
        assert!(obstacle.contains("policy a requires the backend lsm, this node has tracepoint"), "{obstacle}");
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
