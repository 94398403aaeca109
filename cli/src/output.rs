//! Formats, and what is known about the screen.

use std::io::{self, IsTerminal, Write};

use clap::{ColorChoice, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use crate::escape;

/// `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For people with wide screens
    Wide,
    /// For programs; the shape is documented in docs/cli.md
    Json,
    /// The same shape as YAML
    Yaml,
}

/// How something is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it stands.
    Plain,
    /// A heading.
    Title,
    /// All is well.
    Good,
    /// Worth a look.
    Warning,
    /// Bad.
    Bad,
}

/// What standard output is.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Columns of the terminal; `None` when it is none, and nothing is cut.
    pub width: Option<usize>,
    /// Whether to use colour.
    pub color: bool,
}

impl Screen {
    /// Standard output.
    pub fn stdout(choice: ColorChoice) -> Self {
        let stdout = io::stdout();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = stdout.is_terminal();
        let color = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !set("NO_COLOR") && !dumb,
        };
        let columns = || rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
        Self { width: terminal.then(columns).flatten().filter(|&columns| columns > 0), color }
    }

    /// The text in a tone's colour. The text must have been escaped.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.color => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Title => 1,
            Tone::Good => 32,
            Tone::Warning => 33,
            Tone::Bad => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One value as JSON on several lines.
pub fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", escape::json(&serde_json::to_string_pretty(value)?))
}

/// One value as JSON on one line.
pub fn json_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", escape::json(&serde_json::to_string(value)?))
}

/// One value as YAML.
pub fn yaml(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    out.write_all(yaml_text(&serde_json::to_value(value)?).as_bytes())
}

/// A JSON or YAML array that is written as its elements come.
#[derive(Debug)]
pub struct Sequence {
    yaml: bool,
    empty: bool,
}

impl Sequence {
    /// Nothing is written yet.
    pub fn new(yaml: bool) -> Self {
        Self { yaml, empty: true }
    }

    /// One element; as JSON it takes one line.
    pub fn push(&mut self, out: &mut impl Write, element: &impl Serialize) -> io::Result<()> {
        let first = std::mem::take(&mut self.empty);
        if self.yaml {
            return yaml(out, &[element]);
        }
        let separator = if first { "[\n" } else { ",\n" };
        write!(out, "{separator}{}", escape::json(&serde_json::to_string(element)?))
    }

    /// The end.
    pub fn finish(self, out: &mut impl Write) -> io::Result<()> {
        match (self.yaml, self.empty) {
            (_, true) => writeln!(out, "[]"),
            (true, false) => Ok(()),
            (false, false) => writeln!(out, "\n]"),
        }
    }
}

/// YAML in block style with every string in double quotes: serialisers write bidirectional overrides as they are and
/// leave strings unquoted where they can, which is no ground to stand on with hostile text.
fn yaml_text(value: &Value) -> String {
    let mut out = String::new();
    yaml_node(&mut out, value, 0);
    out
}

fn yaml_node(out: &mut String, value: &Value, indent: usize) {
    let pad = " ".repeat(indent);
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                // "- " and the item's first line; its other lines are two deeper.
                let mut text = String::new();
                yaml_node(&mut text, item, indent + 2);
                out.push_str(&pad);
                out.push_str("- ");
                out.push_str(text.trim_start_matches(' '));
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                out.push_str(&pad);
                out.push_str(&yaml_key(key));
                if is_block(value) {
                    out.push_str(":\n");
                    yaml_node(out, value, indent + 2);
                } else {
                    out.push_str(": ");
                    yaml_node(out, value, 0);
                }
            }
        }
        Value::String(text) => {
            out.push_str(&escape::yaml_string(text));
            out.push('\n');
        }
        // Numbers, true, false, null, [] and {} are the same in both.
        other => {
            out.push_str(&other.to_string());
            out.push('\n');
        }
    }
}

fn is_block(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty())
        || value.as_object().is_some_and(|fields| !fields.is_empty())
}

fn yaml_key(key: &str) -> String {
    let bare = key.starts_with(|c: char| c.is_ascii_lowercase())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        // Not strings to every reader.
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&key);
    if bare { key.to_owned() } else { escape::yaml_string(key) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_reads_back_as_the_same_value() {
        let value = json!({
            "id": 7, "none": null, "yes": true, "empty": [], "emptyMap": {}, "7": "0x10", "n": "no", "a: b": "- x",
            "hostile": "\u{1b}[2J\n# \u{202e}\u{e0041}\u{85}\\ \"'",
            "nested": [{"argv": ["nc", "", " -e ", "null"], "pod": {"name": "web", "more": [[1, 2], [3]]}}, [], "x"],
        });
        let text = yaml_text(&value);
        assert!(!text.chars().any(|c| c != '\n' && escape::is_deceptive(c)), "{text}");
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
    }

    #[test]
    fn sequences_are_arrays() {
        for yaml in [false, true] {
            for count in 0..3 {
                let (mut out, mut sequence) = (Vec::new(), Sequence::new(yaml));
                (0..count).for_each(|id| sequence.push(&mut out, &json!({"id": id, "x": [id]})).unwrap());
                sequence.finish(&mut out).unwrap();
                let text = String::from_utf8(out).unwrap();
                let read: Value =
                    if yaml { serde_saphyr::from_str(&text).unwrap() } else { serde_json::from_str(&text).unwrap() };
                assert_eq!(read.as_array().unwrap().len(), count, "{text}");
            }
        }
    }
}
