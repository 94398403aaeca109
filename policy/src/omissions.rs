//! What a rule does not report although it matches: repeats, and certain words in arguments. The kernel can't judge it: it
//! is the agent that leaves these executions out, after they have begun. What the kernel lets pass is [`crate::exceptions`].

use std::time::Duration;

/// The longest word that is looked for in arguments, in bytes.
pub const WORD_MAX: usize = 256;
/// How many such words a rule may have.
pub const WORDS_MAX: usize = 64;
/// The longest time in which an execution is a repeat.
pub const REPEATS_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What one rule omits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Omissions {
    /// Tells the rule from others; the same when the policy is read again and the rule names what it named.
    pub rule: u32,
    /// An execution is left out if one of its arguments contains one of these.
    pub arguments: Vec<String>,
    /// An execution is left out if its arguments and its parent were seen before, within this time.
    pub repeats: Option<Duration>,
}

impl Omissions {
    /// Whether one of the arguments contains one of the words. Byte by byte: `LOCALHOST` is no `localhost`.
    pub fn exclude<'a>(&self, arguments: impl IntoIterator<Item = &'a [u8]>) -> bool {
        arguments.into_iter().any(|argument| self.arguments.iter().any(|word| contains(argument, word.as_bytes())))
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    // No word is empty.
    text.windows(word.len().max(1)).any(|part| part == word)
}

/// A time as policies have it: a number and `s`, `m`, `h` or `d`. `None` unless it is at most [`REPEATS_MAX`].
pub fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    // parse() would take a sign as well.
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let time = Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(unit)?);
    (time <= REPEATS_MAX).then_some(time)
}

/// The same for times in which something is a repeat: `None` for no time at all, too.
pub fn parse_repeats(text: &str) -> Option<Duration> {
    parse_time(text).filter(|time| !time.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_anywhere_in_one_argument_excludes() {
        let omissions = Omissions { rule: 1, arguments: vec!["localhost".into(), "127.0.0.1".into()], repeats: None };
        let exclude = |arguments: &[&str]| omissions.exclude(arguments.iter().map(|argument| argument.as_bytes()));
        assert!(exclude(&["-v", "http://localhost:8080/x"]));
        assert!(exclude(&["127.0.0.1"]) && exclude(&["127.0.0.1.evil.example"]) && exclude(&["--data=localhost"]));
        assert!(
            !exclude(&["LOCALHOST"]) && !exclude(&["local", "host"]) && !exclude(&["127.0.0.2", ""]) && !exclude(&[])
        );
        let none = Omissions { arguments: Vec::new(), ..omissions };
        assert!(!none.exclude([&b"localhost"[..]]));
    }

    #[test]
    fn times_have_a_unit_and_a_limit() {
        let seconds = |text| parse_repeats(text).map(|time| time.as_secs());
        assert_eq!(
            [seconds("3600s"), seconds("60m"), seconds("1h"), seconds("7d")].map(Option::unwrap),
            [3600, 3600, 3600, 604_800]
        );
        for bad in ["", "1", "h", "+1h", "-1h", "1.5h", "1 h", "0s", "8d", "1ß", "99999999999999999999d"] {
            assert_eq!(parse_repeats(bad), None, "{bad}");
        }
        assert_eq!(parse_time("0s"), Some(Duration::ZERO));
    }
}
