//! Globs: `*` stands for any run of characters, the empty one included, `?` for exactly one; nothing else is special.
//!
//! ```
//! use portcullis_policy::glob::Glob;
//!
//! let glob: Glob = "docker.io/*/nginx:?.*".parse()?;
//! assert!(glob.matches("docker.io/library/nginx:1.27"));
//! assert!(!glob.matches("docker.io/library/nginx:latest"));
//! # Ok::<(), portcullis_policy::glob::GlobError>(())
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest glob, in bytes: as long as the longest name of Kubernetes.
pub const GLOB_MAX: usize = 253;

/// A glob.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("minLength" = 1, "maxLength" = GLOB_MAX)))]
#[serde(try_from = "String", into = "String")]
pub struct Glob(String);

/// A text that is no glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a glob must have 1 to {GLOB_MAX} bytes, this one has {length}")]
pub struct GlobError {
    /// How many bytes it has.
    pub length: usize,
}

impl TryFrom<String> for Glob {
    type Error = GlobError;

    fn try_from(text: String) -> Result<Self, GlobError> {
        if text.is_empty() || text.len() > GLOB_MAX {
            return Err(GlobError { length: text.len() });
        }
        Ok(Self(text))
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        text.to_owned().try_into()
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.0
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Glob {
    /// Whether it stands for one text only.
    pub fn is_literal(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// Whether it stands for this text, all of it. Compared exactly: upper and lower case differ.
    ///
    /// When something does not fit, only the last `*` takes in one character more: those before it have taken in as little as
    /// they can, and more could not help. So the time is at most the product of both lengths.
    pub fn matches(&self, text: &str) -> bool {
        let (mut glob, mut rest) = (self.0.chars(), text.chars());
        // Behind the last `*`, and what was left of the text there.
        let mut retry = None;
        loop {
            let here = rest.clone();
            match (glob.next(), rest.next()) {
                (Some('*'), _) => {
                    rest = here;
                    retry = Some((glob.clone(), rest.clone()));
                }
                (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {}
                (None, None) => return true,
                _ => {
                    let Some((behind, mut taken)) = retry.take() else { return false };
                    if taken.next().is_none() {
                        return false;
                    }
                    (glob, rest) = (behind.clone(), taken.clone());
                    retry = Some((behind, taken));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn matches(glob: &str, text: &str) -> bool {
        glob.parse::<Glob>().unwrap().matches(text)
    }

    #[test]
    fn a_star_is_any_run_and_a_question_mark_one_character() {
        for (glob, text) in [
            ("nginx", "nginx"),
            ("*", ""),
            ("*", "anything"),
            ("**", "x"),
            ("shop-*", "shop-"),
            ("shop-*", "shop-eu"),
            ("*-eu", "shop-eu"),
            ("*/nginx:*", "docker.io/library/nginx:1"),
            ("a*b*c", "a-b-b-c"),
            ("?", "x"),
            ("web-?", "web-1"),
            ("*?", "x"),
            ("?", "\u{e9}"),
            ("a*", "a\nb"),
            ("[ab]", "[ab]"),
            ("\\*", "\\x"),
        ] {
            assert!(matches(glob, text), "{glob:?} {text:?}");
        }
        for (glob, text) in [
            ("nginx", "nginx2"),
            ("nginx", "xnginx"),
            ("nginx", "Nginx"),
            ("nginx", ""),
            ("shop-*", "shop"),
            ("web-?", "web-"),
            ("web-?", "web-10"),
            ("*?", ""),
            ("a*b*c", "a-c-b"),
            ("[ab]", "a"),
            ("{a,b}", "a"),
        ] {
            assert!(!matches(glob, text), "{glob:?} {text:?}");
        }
    }

    #[test]
    fn a_glob_is_literal_without_wildcards() {
        assert!("web[0]".parse::<Glob>().unwrap().is_literal());
        assert!(!"web-?".parse::<Glob>().unwrap().is_literal() && !"web-*".parse::<Glob>().unwrap().is_literal());
    }

    #[test]
    fn its_length_is_bounded() {
        assert!("x".repeat(GLOB_MAX).parse::<Glob>().is_ok());
        assert_eq!("x".repeat(GLOB_MAX + 1).parse::<Glob>(), Err(GlobError { length: GLOB_MAX + 1 }));
        assert_eq!("".parse::<Glob>(), Err(GlobError { length: 0 }));
    }

    #[test]
    fn nothing_takes_long() {
        let glob = format!("{}b", "*a".repeat(120));
        let started = Instant::now();
        assert!(!matches(&glob, &"a".repeat(32 * 1024)));
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
