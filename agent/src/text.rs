//! Text from inside containers, made fit for people to read.

/// Characters of a message's command line at most.
const COMMAND_CHARS: usize = 256;

/// Bytes as a string; what is not UTF-8 becomes U+FFFD.
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// No more characters of a text than so many.
pub fn beginning(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// An enum's value as our API's clients show it: "blocked" for `VERDICT_BLOCKED`.
pub fn enum_name(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// Whether a terminal may do something else with a character than show it: control characters, and those that are
/// invisible or reorder the text around them.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Appends text with deceptive characters escaped.
fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        if is_deceptive(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

/// Text with deceptive characters escaped.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_escaped(&mut out, text);
    out
}

/// Arguments as one line, those quoted that a shell would split, cut after [`COMMAND_CHARS`].
pub fn command_line<'a>(argv: impl IntoIterator<Item = &'a str>, truncated: bool) -> String {
    let mut out = String::new();
    for argument in argv {
        if !out.is_empty() {
            out.push(' ');
        }
        if argument.is_empty() || argument.contains(|c: char| c.is_whitespace() || c == '\'' || c == '"') {
            out.push('\'');
            push_escaped(&mut out, &argument.replace('\'', "'\\''"));
            out.push('\'');
        } else {
            push_escaped(&mut out, argument);
        }
        if out.len() > 4 * COMMAND_CHARS {
            break;
        }
    }
    if let Some((cut, _)) = out.char_indices().nth(COMMAND_CHARS) {
        out.truncate(cut);
        out.push('…');
    } else if truncated {
        out.push_str(" …");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        assert_eq!(escaped("a\x1b[2Jb\nc\u{202e}d\u{9b}é"), "a\\u{1b}[2Jb\\nc\\u{202e}d\\u{9b}é");
    }

    #[test]
    fn command_lines_are_quoted_and_cut() {
        assert_eq!(command_line(["nc", "-e", "/bin/sh -i", "", "it's"], false), r"nc -e '/bin/sh -i' '' 'it'\''s'");
        assert_eq!(command_line(["nc"], true), "nc …");
        let long = "é".repeat(5000);
        let line = command_line(["nc", long.as_str(), "tail"], false);
        assert_eq!(line.chars().count(), COMMAND_CHARS + 1);
        assert!(line.ends_with('…'));
    }
}
