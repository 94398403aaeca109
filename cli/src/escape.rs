//! Making hostile text safe to show.
//!
//! Names, paths and argv come from inside containers. On a terminal a control sequence could rewrite what the
//! operator reads, a bidirectional override could turn a path around, an invisible character could make two different
//! names look alike. Everything from the agent passes through here on its way to a person.

use std::fmt::Write;

/// Whether a character must not reach a terminal as it is: control characters, white space other than a plain
/// space, line separators, bidirectional controls, and whatever Unicode says is ignored in display.
pub fn is_deceptive(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The escapes that tables, shells, YAML and TOML have in common.
fn short(c: char) -> Option<&'static str> {
    match c {
        '\\' => Some("\\\\"),
        '\n' => Some("\\n"),
        '\r' => Some("\\r"),
        '\t' => Some("\\t"),
        _ => None,
    }
}

/// For a table cell or a message: deceptive characters become `\n`, `\x1b`, `\u{202e}`; a backslash becomes `\\`,
/// so that what is shown stands for one text only.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if let Some(escape) = short(c) {
            out.push_str(escape);
            continue;
        }
        match c {
            c if !is_deceptive(c) => out.push(c),
            c if c.is_ascii() => push(&mut out, format_args!("\\x{:02x}", u32::from(c))),
            c => push(&mut out, format_args!("\\u{{{:x}}}", u32::from(c))),
        }
    }
    out
}

/// One word as a shell would read it back: bare where that is safe, else in `'…'`, else in bash's `$'…'`.
pub fn shell_word(word: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    // As the first word, `a=b` would be an assignment.
    let assigns = word.contains('=') && !word.starts_with('-');
    if !word.is_empty() && !assigns && word.chars().all(bare) {
        return word.to_owned();
    }
    if !word.chars().any(is_deceptive) {
        return format!("'{}'", word.replace('\'', "'\\''"));
    }
    let mut out = String::from("$'");
    for c in word.chars() {
        if let Some(escape) = short(c) {
            out.push_str(escape);
            continue;
        }
        match c {
            '\'' => out.push_str("\\'"),
            c if !is_deceptive(c) => out.push(c),
            c if c.is_ascii() => push(&mut out, format_args!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) <= 0xffff => push(&mut out, format_args!("\\u{:04x}", u32::from(c))),
            c => push(&mut out, format_args!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('\'');
    out
}

/// A command line, each word quoted.
pub fn shell_command<S: AsRef<str>>(argv: impl IntoIterator<Item = S>) -> String {
    let words: Vec<_> = argv.into_iter().map(|word| shell_word(word.as_ref())).collect();
    words.join(" ")
}

/// JSON text in which no deceptive character is left. Outside strings JSON has none but line ends, and inside it
/// every character may be written as an escape: the value stays the same.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !is_deceptive(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                push(&mut out, format_args!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// A TOML string: YAML's escapes are TOML's as well.
pub fn toml_string(text: &str) -> String {
    yaml_string(text)
}

/// A YAML string in double quotes, the only style that has escapes.
pub fn yaml_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        if let Some(escape) = short(c) {
            out.push_str(escape);
            continue;
        }
        match c {
            '"' => out.push_str("\\\""),
            c if !is_deceptive(c) => out.push(c),
            c => push(&mut out, format_args!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\x1b[2J\n\u{9b}31m\u{202e}gpj\u{200b}\u{2028}\u{e0041}\x7f";

    #[test]
    fn nothing_deceptive_passes() {
        for shown in [text(HOSTILE), shell_word(HOSTILE), json(&serde_json::to_string(HOSTILE).unwrap())] {
            assert!(!shown.chars().any(is_deceptive), "{shown:?}");
        }
        assert_eq!(text("a\x1b[31m\n\u{202e}b"), r"a\x1b[31m\n\u{202e}b");
        assert_eq!(text(r"a\n"), r"a\\n", "a backslash of the text is told from one of ours");
        assert_eq!(text("größe 日本"), "größe 日本");
    }

    #[test]
    fn shell_words_read_back() {
        assert_eq!(shell_word("--opt=a/b"), "--opt=a/b");
        assert_eq!(shell_word("LD_PRELOAD=x"), "'LD_PRELOAD=x'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(shell_word("a\nb'\x1b\u{202e}"), r"$'a\nb\'\x1b\u202e'");
        assert_eq!(shell_command(["nc", "-e", "/bin/sh; rm"]), "nc -e '/bin/sh; rm'");
        let echo = std::process::Command::new("bash")
            .env("LC_ALL", "C.UTF-8")
            .args(["-c", &format!("printf %s {}", shell_word(HOSTILE))])
            .output();
        // Where there is no bash there is nothing to compare with.
        if let Ok(echo) = echo {
            assert_eq!(String::from_utf8(echo.stdout).unwrap(), HOSTILE);
        }
    }

    #[test]
    fn json_keeps_its_value() {
        let safe = json(&serde_json::to_string_pretty(&[HOSTILE]).unwrap());
        assert_eq!(serde_json::from_str::<[String; 1]>(&safe).unwrap(), [HOSTILE]);
    }
}
