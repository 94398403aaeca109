//! When an execution is told as the repeat of an earlier one: counted in its signal instead of given one of its own. The kernel
//! knows nothing of it: the agent folds. What is not told at all is [`crate::omissions`].

use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::{
    omissions::{REPEATS_MAX, parse_time},
    source::SourceError,
};

/// What two executions can have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// The tool. It is always compared.
    Tool,
    /// What was done about it. It is always compared.
    Verdict,
    /// argv, and for a socket its other end.
    Arguments,
    /// The executable that the process itself ran before, or else its parent's.
    Parent,
    /// The real user id.
    User,
    /// The file that was executed, what is remarkable about its place, and how it was recognised.
    Exe,
    /// The directory in which it was executed.
    Cwd,
}

impl Key {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Several keys; those that are always compared are always among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys(u8);

impl Keys {
    const ALWAYS: u8 = Key::Tool.bit() | Key::Verdict.bit();
    /// Every key: only what looks the same in all of them is a repeat.
    pub const ALL: Self = Self(
        Self::ALWAYS | Key::Arguments.bit() | Key::Parent.bit() | Key::User.bit() | Key::Exe.bit() | Key::Cwd.bit(),
    );

    /// Whether this one is among them.
    pub fn contains(self, key: Key) -> bool {
        self.0 & key.bit() != 0
    }
}

impl FromIterator<Key> for Keys {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Self {
        Self(keys.into_iter().fold(Self::ALWAYS, |bits, key| bits | key.bit()))
    }
}

/// When an execution is a repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// For how long after the first. Zero: nothing is.
    pub window: Duration,
    /// What must be the same, besides container, policy, rule, tool and verdict.
    pub keys: Keys,
}

impl Default for Repeat {
    fn default() -> Self {
        Self { window: Duration::from_secs(3600), keys: Keys::ALL }
    }
}

/// `spec.repeat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "Repeat"))]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `10m`; `0s` for never. Default: 1h.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub window: Option<Spanned<String>>,
    /// Default: all.
    pub keys: Option<Vec<Key>>,
}

impl Repeat {
    /// Checks what a policy file says.
    pub fn compile(file: &str, source: &Source) -> Result<Self, SourceError> {
        let default = Self::default();
        let window = source.window.as_ref().map_or(Ok(default.window), |given| window(file, given))?;
        let keys = source.keys.as_ref().map_or(default.keys, |keys| keys.iter().copied().collect());
        Ok(Self { window, keys })
    }

    /// Whether the other folds whatever this one does.
    pub fn folds_no_more_than(self, other: Self) -> bool {
        self.window.is_zero() || (self.window <= other.window && other.keys.0 & !self.keys.0 == 0)
    }
}

fn window(file: &str, given: &Spanned<String>) -> Result<Duration, SourceError> {
    parse_time(&given.value).ok_or_else(|| {
        let days = REPEATS_MAX.as_secs() / 86_400;
        let reason = format!(
            "{:?} is no time: a number and s, m, h or d, such as 10m; at most {days}d, and 0s for a signal each time",
            given.value
        );
        SourceError::at(file, given.referenced, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;

    fn repeat(given: &str) -> Result<Repeat, SourceError> {
        let text = format!(
            "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: t}}\nspec:\n  mode: detect\n  rules: []\n{given}"
        );
        let policy = parse("t.yaml", &text)?;
        Repeat::compile(&policy.file, &policy.spec.repeat)
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let hour = Duration::from_secs(3600);
        assert_eq!(repeat("").unwrap(), Repeat { window: hour, keys: Keys::ALL });
        let given = repeat("  repeat: {keys: [tool, arguments, user]}\n").unwrap();
        assert_eq!(given.window, hour);
        let has = |key| given.keys.contains(key);
        assert!(has(Key::Tool) && has(Key::Verdict) && has(Key::Arguments) && has(Key::User));
        assert!(!has(Key::Parent) && !has(Key::Exe) && !has(Key::Cwd));
        let given = repeat("  repeat: {window: 10m}\n").unwrap();
        assert_eq!(given, Repeat { window: Duration::from_secs(600), keys: Keys::ALL });
        assert!(repeat("  repeat: {window: 0s}\n").unwrap().window.is_zero());
        assert!(!repeat("  repeat: {keys: []}\n").unwrap().keys.contains(Key::Arguments));
        let every = repeat("  repeat: {keys: [arguments, parent, user, exe, cwd]}\n").unwrap();
        assert_eq!(every, Repeat::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_place() {
        for (given, place, reason) in [
            ("  repeat: {window: soon}\n", "t.yaml:7:20: ", "\"soon\" is no time"),
            ("  repeat: {window: 8d}\n", "t.yaml:7:20: ", "at most 7d"),
            ("  repeat: {keys: [argv]}\n", "t.yaml:7:", "argv"),
            ("  repeat: {windows: 1h}\n", "t.yaml:7:", "windows"),
            ("  repeat: off\n", "t.yaml:7:", ""),
        ] {
            let error = repeat(given).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains(reason), "{given}{error}");
        }
    }
}
