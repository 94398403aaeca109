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

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use crate::{
    catalog::Severity,
    policyset::{Mode, OnAttachFailure},
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

impl SourceError {
    pub(crate) fn at(file: &str, location: Location, reason: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: location.line(), column: location.column(), reason: reason.into() }
    }
}

/// The only version there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ApiVersion {
    /// Version 1.
    #[serde(rename = "portcullis.dev/v1")]
    V1,
}

/// The only kind there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Kind {
    /// What is done about network utilities in containers.
    NetworkUtilityPolicy,
}

/// One policy file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Its name in signals, lists and messages.
    pub name: String,
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The mode without annotations.
    pub mode: Mode,
    /// What happens when a container's guard can't be put in place. Default: `allow` in detect mode, `deny` in enforce
    /// mode: who asks for blocking does not want it to be missing.
    pub on_attach_failure: Option<OnAttachFailure>,
    /// Whether a workload's annotation may turn enforce into detect. Default: no.
    #[serde(default)]
    pub allow_loosening: bool,
    /// The first rule that names a tool decides, and of those that name a comm the first that it matches; what no rule
    /// names is ignored. Where the one and the other kind name an execution, the stricter action holds.
    pub rules: Vec<Rule>,
}

/// What to do about a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Nothing.
    Ignore,
    /// A signal, in both modes.
    Alert,
    /// A signal; in enforce mode the execution is stopped.
    Block,
}

/// One rule. It names tools of the catalogue or executables by their comm, not both.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Categories of the catalogue.
    #[serde(default)]
    pub categories: Vec<Spanned<String>>,
    /// Tools of the catalogue, by id.
    #[serde(default)]
    pub tools: Vec<Spanned<String>>,
    /// Executables by their comm; see [`crate::comm`].
    #[serde(default)]
    pub comm: Vec<Spanned<String>>,
    /// Not those one of whose arguments, but the first, contains one of these.
    #[serde(default)]
    pub except_arguments: Vec<Spanned<String>>,
    /// Not those whose arguments and parent were reported within this time.
    pub except_repeats: Option<Spanned<String>>,
    /// What to do.
    pub action: Action,
    /// Instead of the catalogue's severity.
    pub severity: Option<Severity>,
}

/// Reads one policy file. `file` is its name in errors.
pub fn parse(file: &str, text: &str) -> Result<Policy, SourceError> {
    let mut policy: Policy = serde_saphyr::from_str(text).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        let reason = error.without_snippet().to_string();
        // It may say the place once more.
        let place = format!(" at line {line}, column {column}");
        let reason = reason.strip_suffix(&place).map(str::to_owned).unwrap_or(reason);
        SourceError { file: file.to_owned(), line, column, reason }
    })?;
    file.clone_into(&mut policy.file);
    Ok(policy)
}
