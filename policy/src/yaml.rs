//! Reading YAML that anybody may have written: strictly, and within limits of time and memory.

use serde::de::DeserializeOwned;
use serde_saphyr::{
    Error, Options,
    budget::BudgetBreach,
    options::{DuplicateKeyPolicy, MergeKeyPolicy},
};

use crate::source::SourceError;

/// The largest file, in bytes.
pub const SIZE_MAX: usize = 1 << 20;
/// How many mappings, sequences and scalars it may have.
const NODES_MAX: usize = 50_000;
/// How deep they may be nested; a policy needs 6.
const DEPTH_MAX: usize = 16;
/// How many aliases it may have, and how many anchors.
const ALIASES_MAX: usize = 256;
/// How many nodes aliases may repeat.
const REPEATED_MAX: usize = 10_000;

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            // Ends count as well.
            max_events: 2 * NODES_MAX,
            max_depth: DEPTH_MAX,
            // The scanner, which only counts, is up to 1024 characters ahead: a lower limit would hide the one above.
            flow_nesting_limit: 2048,
            max_documents: 1,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_recorded_anchor_events: REPEATED_MAX,
            max_recorded_anchor_bytes: SIZE_MAX,
            max_total_scalar_bytes: SIZE_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: REPEATED_MAX,
            max_replay_stack_depth: DEPTH_MAX,
            max_alias_expansions_per_anchor: ALIASES_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        // What an editor's schema does not know: merge keys, and that `no` might be a boolean.
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        with_snippet: false,
    }
}

/// A file's text, if it is short enough and UTF-8. `file` is its name in errors. Of a file that may be of any length,
/// [`SIZE_MAX`] bytes and one more are enough.
pub fn decode<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, SourceError> {
    check_size(file, bytes.len())?;
    str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        SourceError::new(file, line as u64, column as u64, "this is not UTF-8: save the file in that encoding")
    })
}

fn check_size(file: &str, size: usize) -> Result<(), SourceError> {
    if size <= SIZE_MAX {
        return Ok(());
    }
    let reason =
        format!("the file has more than the {SIZE_MAX} bytes that a policy may have: make it several policies");
    Err(SourceError::new(file, 1, 1, reason))
}

/// Reads a value. `file` is its name in errors.
pub(crate) fn read<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, SourceError> {
    check_size(file, text.len())?;
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        SourceError::new(file, line, column, reason(&error, line, column))
    })
}

/// What is wrong, in terms of the file.
fn reason(error: &Error, line: u64, column: u64) -> String {
    let original = match error {
        Error::AliasError { error, .. } => error,
        error => error,
    };
    match original {
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Depth { .. } => format!("this is nested deeper than {DEPTH_MAX} levels"),
            BudgetBreach::Documents { .. } => "a second document begins here: make it a file of its own".to_owned(),
            BudgetBreach::Aliases { .. } | BudgetBreach::Anchors { .. } | BudgetBreach::AliasAnchorRatio { .. } => {
                format!("there may be {ALIASES_MAX} anchors and aliases, and 10 aliases for each anchor")
            }
            BudgetBreach::RecordedAnchorEvents { .. } | BudgetBreach::RecordedAnchorBytes { .. } => {
                format!(
                    "aliases may stand for {REPEATED_MAX} values and {SIZE_MAX} bytes: write out what they stand for"
                )
            }
            _ => format!("there may be {NODES_MAX} values: make it several policies"),
        },
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            format!("aliases may stand for {REPEATED_MAX} values: write out what they stand for")
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key:?} is there already"),
        Error::DuplicateMappingKey { key: None, .. } => "this key is there already".to_owned(),
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => "one word is expected here".to_owned(),
        Error::NullIntoString { .. } => "a text is expected here, and nothing is there".to_owned(),
        Error::MergeKeyNotAllowed { .. } => "merge keys (`<<`) are not supported: write the keys out".to_owned(),
        _ => {
            let text = error.to_string();
            // It may say the place once more.
            let place = format!(" at line {line}, column {column}");
            text.strip_suffix(&place).map(str::to_owned).unwrap_or(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use super::*;

    fn fails(text: &str, reason: &str) {
        let begin = Instant::now();
        let error = read::<Value>("f", text).expect_err(reason);
        assert!(error.reason.contains(reason), "{error}");
        assert!(error.line > 0 && error.column > 0 && !error.reason.contains(" at line "), "{error}");
        // In a test's build, on a busy machine, and for the worst of them; most take some microseconds.
        assert!(begin.elapsed() < Duration::from_secs(20), "{reason}: {:?}", begin.elapsed());
    }

    #[test]
    fn hostile_shapes_are_refused_at_once() {
        let steps = (0..1000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect::<Vec<_>>().concat();
        for deep in ["[".repeat(500_000), "{a: ".repeat(200_000), "- ".repeat(500_000), "? ".repeat(500_000), steps] {
            fails(&deep, "nested deeper than 16 levels");
        }
        for many in
            ["- a\n".repeat(250_000), format!("[{}]", "a,".repeat(500_000)), format!("a: [{}", "[],".repeat(300_000))]
        {
            fails(&many, "there may be 50000 values");
        }
        let keys = (0..80_000).map(|number| format!("a{number}: b\n")).collect::<Vec<_>>().concat();
        fails(&keys, "there may be 50000 values");
        fails(&"---\na\n".repeat(100_000), "a second document");
        fails("a: 1\na: 2\n", "the key \"a\" is there already");
        fails("a: &a {b: 1}\nc:\n  <<: *a\n", "merge keys");
        fails("!!python/object/apply:os.system [id]", "tag");
    }

    #[test]
    fn aliases_multiply_within_limits() {
        let mut bomb = vec!["a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned()];
        for level in 1..12 {
            bomb.push(format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", ")));
        }
        fails(&bomb.concat(), "aliases may stand for 10000 values");
        let long = format!("a: &a [{}]\nb: [{}]\n", vec!["x"; 5000].join(", "), vec!["*a"; 99].join(", "));
        fails(&long, "aliases may stand for 10000 values");
        fails(&"- &a a\n".repeat(100_000), "256 anchors and aliases");
        fails(&format!("- &a a\n{}", "- *a\n".repeat(100_000)), "256 anchors and aliases");
        fails("- *a\n", "anchor");
        let value: Value = read("f", "a: &a [x]\nb: [*a, *a]\n").unwrap();
        assert_eq!(value, serde_json::json!({"a": ["x"], "b": [["x"], ["x"]]}));
    }

    /// What is large, but harmless.
    #[test]
    fn long_texts_and_comments_are_read() {
        for text in [
            "a".repeat(SIZE_MAX),
            format!("a:\n{}  b\n", "  # x\n".repeat(150_000)),
            format!("|\n{}", "  a\n".repeat(200_000)),
            "\n".repeat(SIZE_MAX),
        ] {
            let begin = Instant::now();
            read::<Value>("f", &text).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(20));
        }
    }

    #[test]
    fn large_files_are_refused_unread() {
        let reason = "more than the 1048576 bytes";
        fails(&"[".repeat(10 << 20), reason);
        let bytes = vec![b'\xff'; SIZE_MAX + 1];
        assert!(decode("f", &bytes).unwrap_err().to_string().contains(reason));
    }

    #[test]
    fn other_encodings_are_told_with_their_place() {
        assert_eq!(decode("f", "é: ä\n".as_bytes()), Ok("é: ä\n"));
        let error = decode("f", b"a: b\n\xc3\xa9\xe9\n").unwrap_err();
        assert_eq!((error.line, error.column), (2, 2));
        assert!(error.reason.contains("UTF-8"));
    }

    #[test]
    fn what_is_quoted_is_cut() {
        let error = read::<Value>("f", &format!("{0}: 1\n{0}: 2\n", "ä".repeat(1000))).unwrap_err();
        assert!(error.reason.chars().count() < 520 && error.reason.ends_with("ä\" is there already"), "{error}");
        // No key that is looked ahead for is longer than 1024 characters; this one needs no look.
        let error = read::<Value>("f", &format!("{{? {0} : 1, ? {0} : 2}}", "a".repeat(100_000))).unwrap_err();
        assert!(error.reason.chars().count() < 520, "{error}");
    }

    #[test]
    fn what_is_missing_is_told_in_terms_of_the_file() {
        let reason = |text: &str| crate::source::parse("f", text).unwrap_err().to_string();
        assert_eq!(reason("kind: [\n"), "f:1:7: one word is expected here");
        assert!(
            reason("metadata: {name: }\n").contains("a text is expected here"),
            "{}",
            reason("metadata: {name: }\n")
        );
    }

    #[test]
    fn booleans_are_those_of_the_core_schema() {
        for other in ["yes", "no", "on", "off", "y"] {
            assert!(read::<bool>("f", other).is_err(), "{other}");
        }
        assert_eq!(read("f", "true"), Ok(true));
    }
}
