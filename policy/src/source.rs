//! The operator's policy files.
//!
//! ```
//! let text = "
//! apiVersion: portcullis.dev/v1
//! kind: NetworkUtilityPolicy
//! metadata:
//!   name: default
//! spec:
//!   mode: enforce
//!   rules:
//!     - categories: [netcat, scanner]
//!       action: block
//! ";
//! let policy = portcullis_policy::source::parse("default.yaml", text)?;
//! assert_eq!(policy.metadata.name, "default");
//! # Ok::<(), portcullis_policy::source::SourceError>(())
//! ```

use serde::{Deserialize, Deserializer, de::Error};
use serde_saphyr::{Location, Spanned};

use crate::{
    catalog::Severity,
    policyset::{Backend, Mode, OnAttachFailure},
    repeat,
    select::Select,
    yaml,
};

/// The published rule that Portcullis's own goes beyond, as a policy.
pub const SHIPPED_UPSTREAM: &str = include_str!("../../config/policies/upstream-exact.yaml");

/// The default policy that comes with Portcullis.
pub const SHIPPED_DEFAULT: &str = include_str!("../../config/policies/default.yaml");

/// A policy file that can't be used. The message names file, line, column and the rule broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {reason}")]
pub struct SourceError {
    /// The file, as the caller named it.
    pub file: String,
    /// Counted from 1; 0 when the place is not known.
    pub line: u64,
    /// Counted from 1; 0 when the place is not known.
    pub column: u64,
    /// What is wrong.
    pub reason: String,
}

/// How long the beginning and the end of a reason may be, in characters: it quotes what the file says.
const REASON_PARTS_MAX: usize = 256;

impl SourceError {
    pub(crate) fn new(file: &str, line: u64, column: u64, reason: impl Into<String>) -> Self {
        let mut reason: String = reason.into();
        let mut places = reason.char_indices().map(|(place, _)| place);
        if let (Some(begin), Some(end)) = (places.nth(REASON_PARTS_MAX), places.nth_back(REASON_PARTS_MAX)) {
            reason.replace_range(begin..end, "…");
        }
        Self { file: file.to_owned(), line, column, reason }
    }

    pub(crate) fn at(file: &str, location: Location, reason: impl Into<String>) -> Self {
        Self::new(file, location.line(), location.column(), reason)
    }
}

/// The only version there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ApiVersion {
    /// Version 1.
    #[serde(rename = "portcullis.dev/v1")]
    V1,
}

/// The only kind there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Kind {
    /// What is done about network utilities in containers.
    NetworkUtilityPolicy,
}

/// One policy file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Format version.
    pub api_version: ApiVersion,
    /// Kind of object.
    pub kind: Kind,
    /// Who it is.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
    /// The file it was read from, for later errors.
    #[serde(skip)]
    pub file: String,
}

/// Who a policy is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Its name in signals, lists and messages: 1 to 63 lowercase letters, digits, `-` and `.`, with a letter or a digit at
    /// both ends.
    #[serde(deserialize_with = "name")]
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")))]
    pub name: String,
}

/// The longest name of a policy, in bytes.
pub const NAME_MAX: usize = 63;

/// A name that can be a file's and stands in tables as it is.
fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.bytes().next(), name.bytes().last()];
    if name.len() <= NAME_MAX
        && name.bytes().all(|byte| is_plain(byte) || b"-.".contains(&byte))
        && ends.into_iter().all(|end| end.is_some_and(is_plain))
    {
        return Ok(name);
    }
    Err(D::Error::custom(format!(
        "{name:?} can't be a policy's name: it must have 1 to {NAME_MAX} lowercase letters, digits, `-` and `.`, with a \
         letter or a digit at both ends"
    )))
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Which containers it is for. Default: all.
    #[serde(default)]
    pub select: Select,
    /// Of policies that are equally specific, the one with the higher number is taken. Default: 0.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(range(min = i32::MIN, max = i32::MAX)))]
    pub priority: i32,
    /// The mode without annotations.
    pub mode: Mode,
    /// The backend that is needed: on a node with another one a container's guard can't be put in place.
    pub require_backend: Option<Backend>,
    /// What happens when a container's guard can't be put in place. Default: `allow` in detect mode, `deny` in enforce
    /// mode: who asks for blocking does not want it to be missing.
    pub on_attach_failure: Option<OnAttachFailure>,
    /// Whether a workload's annotation may turn enforce into detect, and select a policy that is less strict. Default: no.
    #[serde(default)]
    pub allow_loosening: bool,
    /// The first rule that names a tool decides, and of those that name a comm the first that it matches; what no rule
    /// names is ignored. Where the one and the other kind name an execution, the stricter action holds.
    pub rules: Vec<Rule>,
    /// What passes although a rule names it.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<Exception>"))]
    pub exceptions: Vec<Spanned<Exception>>,
    /// When an execution is counted in an earlier one's signal. Default: within 1h, if it looks the same in everything.
    #[serde(default)]
    pub repeat: repeat::Source,
}

/// What to do about a match. The later is the stricter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Nothing.
    Ignore,
    /// A signal, in both modes.
    Alert,
    /// A signal; in enforce mode the execution is stopped.
    Block,
}

/// Where an executed file is; as signals have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In a directory that everybody may write to.
    WritableDirectory,
    /// Not part of the image: in overlayfs's upper layer.
    UpperLayer,
    /// In no directory at all, but in memory.
    Memfd,
    /// No longer in its directory.
    Deleted,
}

/// What passes although a rule names it. It needs at least one condition; all that are given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exception {
    /// Categories of the catalogue. With neither categories nor tools it is for whatever the rules name.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub categories: Vec<Spanned<String>>,
    /// Tools of the catalogue, by id.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub tools: Vec<Spanned<String>>,
    /// Arguments after the first, which is the name: each a text or, with a `*` at the end, how one begins. A last `...`
    /// stands for any further ones.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<String>>"))]
    pub arguments: Option<Vec<Spanned<String>>>,
    /// Executables, one of which must be what the process itself ran before, or else its parent's: absolute paths as seen in
    /// the container, or, with a `*` at the end, how one begins.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub parents: Vec<Spanned<String>>,
    /// The same for any ancestor in the container.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub ancestors: Vec<Spanned<String>>,
    /// Globs, one of which must match the container's image.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub images: Vec<Spanned<String>>,
    /// Users by their numbers as the node sees them, or ranges of them: `0`, `1000-1999`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<crate::schema::User>"))]
    pub users: Vec<Spanned<String>>,
    /// For people: why.
    pub reason: Option<String>,
}

/// One rule. It names tools of the catalogue or executables by their comm, not both.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Categories of the catalogue.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub categories: Vec<Spanned<String>>,
    /// Tools of the catalogue, by id.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub tools: Vec<Spanned<String>>,
    /// Executables by their comm: the last component of the path that was executed, cut to 15 bytes. A `*` at the end
    /// stands for any rest.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub comm: Vec<Spanned<String>>,
    /// Only if the executed file is in one of these places.
    #[serde(default)]
    pub places: Vec<Place>,
    /// Only of these users, by their numbers as the node sees them, or ranges of them: `0`, `1000-1999`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<crate::schema::User>"))]
    pub users: Vec<Spanned<String>>,
    /// Not those one of whose arguments, but the first, contains one of these.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub except_arguments: Vec<Spanned<String>>,
    /// Not those whose arguments and parent were reported within this time: `90s`, `15m`, `1h`, at most `7d`.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub except_repeats: Option<Spanned<String>>,
    /// What to do.
    pub action: Action,
    /// Instead of the catalogue's severity.
    pub severity: Option<Severity>,
}

/// Reads one policy file. `file` is its name in errors.
pub fn parse(file: &str, text: &str) -> Result<Policy, SourceError> {
    let mut policy: Policy = yaml::read(file, text)?;
    file.clone_into(&mut policy.file);
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(spec: &str) -> String {
        let head = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:\n  name: t\nspec:\n  mode: detect\n  rules: []\n";
        parse("t.yaml", &format!("{head}{spec}")).unwrap_err().to_string()
    }

    #[test]
    fn a_selection_that_makes_no_sense_is_refused_with_the_place() {
        for (spec, place, reason) in [
            ("  select:\n    labels: {}\n", "9:", "unknown field `labels`"),
            ("  select:\n    pods: []\n", "9:", "nothing is named here"),
            ("  select:\n    pods: [a, '']\n", "9:", "1 to 253 bytes"),
            ("  select:\n    annotations: {'': x}\n", "9:", "annotation's key"),
            ("  select:\n    annotations: {a: x, a: y}\n", "9:", "is there already"),
            ("  priority: high\n", "8:", "i32"),
            ("  requireBackend: ebpf\n", "8:", "lsm"),
        ] {
            let error = error(spec);
            assert!(error.starts_with(&format!("t.yaml:{place}")) && error.contains(reason), "{spec}{error}");
        }
        let many = vec!["x"; 65].join(", ");
        assert!(error(&format!("  select:\n    pods: [{many}]\n")).contains("65 are named here, there may be 64"));
    }

    #[test]
    fn names_are_plain() {
        let parse = |name: &str| {
            let text = format!(
                "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:\n  name: {name}\nspec: {{mode: detect, rules: []}}\n"
            );
            parse("t.yaml", &text).map_err(|error| error.to_string())
        };
        for name in ["a", "web-1", "a.b", &"x".repeat(NAME_MAX)] {
            assert_eq!(parse(name).unwrap().metadata.name, *name);
        }
        for name in ["''", "Web", "-a", "a-", "a/b", "../a", "'a b'", &"x".repeat(NAME_MAX + 1)] {
            let error = parse(name).unwrap_err();
            assert!(error.starts_with("t.yaml:4:9: ") && error.contains("can't be a policy's name"), "{error}");
        }
    }
}
