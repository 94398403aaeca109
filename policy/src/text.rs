//! Texts that exceptions look for: in arguments and in the paths of executables.
//!
//! ```
//! use portcullis_policy::text::Pattern;
//!
//! let pattern: Pattern = "http://localhost:8080/*".parse()?;
//! assert!(pattern.fits(b"http://localhost:8080/health"));
//! assert!(!pattern.fits(b"http://localhost:80808/"));
//! # Ok::<(), portcullis_policy::text::PatternError>(())
//! ```

use std::{fmt, str::FromStr};

/// The longest text of a pattern, in bytes: `PATTERN_LEN` of the kernel's ABI less two.
pub const PATTERN_MAX: usize = 126;

/// A whole text, or how texts begin. Compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: String,
    whole: bool,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} must have at most {PATTERN_MAX} bytes, no NUL among them, before a `*` at its end")]
pub struct PatternError {
    /// The text.
    pub text: String,
}

impl FromStr for Pattern {
    type Err = PatternError;

    /// A `*` at the end stands for any rest, `\*` there for itself; elsewhere both are characters like others.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (name, whole) = match (text.strip_suffix("\\*"), text.strip_suffix('*')) {
            (Some(before), _) => (format!("{before}*"), true),
            (None, Some(before)) => (before.to_owned(), false),
            (None, None) => (text.to_owned(), true),
        };
        if name.len() > PATTERN_MAX || name.contains('\0') {
            return Err(PatternError { text: text.to_owned() });
        }
        Ok(Self { text: name, whole })
    }
}

impl Pattern {
    /// The text, or its beginning.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is the whole text.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether a text is this one, or begins like it.
    pub fn fits(&self, text: &[u8]) -> bool {
        if self.whole { text == self.text.as_bytes() } else { text.starts_with(self.text.as_bytes()) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.whole, self.text.strip_suffix('*')) {
            (true, Some(before)) => write!(f, "{before}\\*"),
            (true, None) => f.write_str(&self.text),
            (false, _) => write!(f, "{}*", self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_star_at_the_end_is_special() {
        let fits = |pattern: &str, text: &str| pattern.parse::<Pattern>().unwrap().fits(text.as_bytes());
        assert!(fits("-s", "-s") && !fits("-s", "-sS") && !fits("-s", "-"));
        assert!(fits("a*", "a") && fits("a*", "ab") && !fits("a*", "ba"));
        assert!(fits("*", "") && fits("*", "x") && fits("", "") && !fits("", "x"));
        assert!(fits("a*b", "a*b") && !fits("a*b", "axb"));
        assert!(fits("\\*", "*") && !fits("\\*", "x") && fits("a\\*", "a*") && !fits("a\\*", "a\\*"));
        for text in ["a", "a*", "a\\*", "*", "", "a*b", "\\*"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        assert!("n".repeat(PATTERN_MAX).parse::<Pattern>().is_ok());
        assert!("n".repeat(PATTERN_MAX + 1).parse::<Pattern>().is_err() && "a\0".parse::<Pattern>().is_err());
    }
}
