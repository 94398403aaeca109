//! Executables named by their comm: the last component of the path that was executed, cut to 15 bytes.
//!
//! ```
//! use portcullis_policy::comm::Pattern;
//!
//! let pattern: Pattern = "nc*".parse()?;
//! assert!(pattern.covers(&"ncdu".parse()?));
//! # Ok::<(), portcullis_policy::comm::PatternError>(())
//! ```

use std::{fmt, str::FromStr};

use crate::catalog::{Severity, kernel_id};

/// The longest comm, in bytes: the kernel cuts the rest off.
pub const COMM_MAX: usize = 15;

/// The severity of what only a pattern knows, unless its rule says otherwise.
pub const PATTERN_SEVERITY: Severity = Severity::Medium;

/// A whole comm, or how one begins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    name: String,
    whole: bool,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} can't be a comm: it must have 1 to {COMM_MAX} bytes and no slash; a `*` may stand after them, for any rest"
)]
pub struct PatternError {
    /// The text.
    pub text: String,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let name = text.strip_suffix('*').unwrap_or(text);
        if name.is_empty() || name.len() > COMM_MAX || name.contains(['/', '\0', '*']) {
            return Err(PatternError { text: text.to_owned() });
        }
        Ok(Self { name: name.to_owned(), whole: name.len() == text.len() })
    }
}

impl Pattern {
    /// The name, or its beginning.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the whole name.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether every comm that matches the other pattern matches this one too.
    pub fn covers(&self, other: &Self) -> bool {
        if self.whole { self == other } else { other.name.starts_with(&self.name) }
    }

    /// What the kernel's tables and events call it: the same whatever else a policy says, as a tool's is.
    pub fn kernel_id(&self) -> u32 {
        kernel_id(&format!("comm {self}"))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        f.write_str(if self.whole { "" } else { "*" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_is_a_name_or_a_beginning() {
        for text in ["nc", "nc*", "lwp-download", "fifteen-bytes-1", "fifteen-bytes-1*"] {
            assert_eq!(pattern(text).to_string(), text);
        }
        assert!(pattern("nc").is_whole() && !pattern("nc*").is_whole());
        assert_ne!(pattern("nc").kernel_id(), pattern("nc*").kernel_id());
        for bad in ["", "*", "*nc", "n*c", "nc**", "bin/nc", "n\0", "sixteen-bytes-16", "sixteen-bytes-16*"] {
            assert!(bad.parse::<Pattern>().unwrap_err().to_string().contains("1 to 15 bytes"), "{bad}");
        }
    }

    #[test]
    fn beginnings_cover_what_begins_so() {
        for (wide, narrow) in [("nc*", "nc"), ("nc*", "ncdu"), ("nc*", "ncat*"), ("nc*", "nc*"), ("nc", "nc")] {
            assert!(pattern(wide).covers(&pattern(narrow)), "{wide} {narrow}");
        }
        for (wide, narrow) in [("nc*", "n*"), ("nc*", "netcat"), ("nc", "nc*"), ("nc", "ncdu")] {
            assert!(!pattern(wide).covers(&pattern(narrow)), "{wide} {narrow}");
        }
    }
}
