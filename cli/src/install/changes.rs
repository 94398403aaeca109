//! Changes of files: planned first, shown or made afterwards.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use similar::TextDiff;

use crate::{
    escape, files,
    output::{Screen, Tone},
};

/// What a file is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// These bytes, with this mode.
    Content {
        /// All of them.
        bytes: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// No file.
    Nothing,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub path: PathBuf,
    wanted: Wanted,
    /// What is there, with its permission bits.
    found: Option<(Vec<u8>, u32)>,
}

impl Change {
    /// Looks at what is there.
    pub fn plan(path: &Path, wanted: Wanted) -> anyhow::Result<Self> {
        let found = match fs::read(path) {
            Ok(bytes) => {
                let mode = fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode();
                Some((bytes, mode & 0o7777))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), wanted, found })
    }

    /// Whether there is anything to do.
    pub fn is_needed(&self) -> bool {
        match (&self.wanted, &self.found) {
            (Wanted::Nothing, found) => found.is_some(),
            (Wanted::Content { bytes, mode }, Some((found, found_mode))) => bytes != found || mode != found_mode,
            (Wanted::Content { .. }, None) => true,
        }
    }

    /// For people, one word.
    pub fn word(&self) -> &'static str {
        match (&self.wanted, &self.found) {
            _ if !self.is_needed() => "unchanged",
            (Wanted::Nothing, _) => "removed",
            (Wanted::Content { .. }, None) => "created",
            (Wanted::Content { .. }, Some(_)) => "replaced",
        }
    }

    /// What changes, line by line; of what is no text, its size.
    pub fn diff(&self, screen: Screen) -> String {
        let before = self.found.as_ref().map_or(&b""[..], |(bytes, _)| bytes);
        let after = match &self.wanted {
            Wanted::Content { bytes, .. } => &bytes[..],
            Wanted::Nothing => b"",
        };
        let (Ok(before_text), Ok(after_text)) = (str::from_utf8(before), str::from_utf8(after)) else {
            return format!("  {} bytes before, {} after\n", before.len(), after.len());
        };
        let diff = TextDiff::from_lines(before_text, after_text);
        let path = self.path.display().to_string();
        let shown = diff.unified_diff().context_radius(3).header(&path, &path).to_string();
        let mut text = String::new();
        for line in shown.lines() {
            let tone = match line.as_bytes().first() {
                Some(b'+') => Tone::Good,
                Some(b'-') => Tone::Bad,
                _ => Tone::Plain,
            };
            text.push_str("  ");
            text.push_str(&screen.paint(tone, &escape::text(line)));
            text.push('\n');
        }
        text
    }

    /// Makes it, in one step: whoever reads the file meanwhile reads the old one or the new one, and a program that runs
    /// keeps the file that it has.
    pub fn apply(&self) -> anyhow::Result<()> {
        if !self.is_needed() {
            return Ok(());
        }
        let shown = self.path.display();
        match &self.wanted {
            Wanted::Nothing => fs::remove_file(&self.path).with_context(|| format!("removing {shown}")),
            Wanted::Content { bytes, mode } => {
                let directory = self.path.parent().unwrap_or(Path::new("/"));
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(directory)
                    .with_context(|| format!("creating {}", directory.display()))?;
                files::replace(&self.path, *mode, bytes).with_context(|| format!("writing {shown}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Screen = Screen { width: None, color: false };

    fn content(text: &str, mode: u32) -> Wanted {
        Wanted::Content { bytes: text.as_bytes().to_vec(), mode }
    }

    #[test]
    fn a_file_is_made_once_and_then_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/file");
        let plan = |wanted| Change::plan(&path, wanted).unwrap();
        assert_eq!(plan(content("one\n", 0o755)).word(), "created");
        plan(content("one\n", 0o755)).apply().unwrap();
        assert_eq!(plan(content("one\n", 0o755)).word(), "unchanged");
        let other = plan(content("one\ntwo\n", 0o755));
        assert_eq!(other.word(), "replaced");
        assert!(other.diff(PLAIN).contains("+two"), "{}", other.diff(PLAIN));
        assert_eq!(plan(content("one\n", 0o644)).word(), "replaced", "its mode");
        plan(content("one\n", 0o644)).apply().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        plan(Wanted::Nothing).apply().unwrap();
        assert_eq!(plan(Wanted::Nothing).word(), "unchanged");
        assert_eq!(fs::read_dir(directory.path().join("a/b")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_text_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = vec![0xff, 0xfe, 0x1b];
        let change = Change::plan(&directory.path().join("x"), Wanted::Content { bytes, mode: 0o755 }).unwrap();
        assert_eq!(change.diff(PLAIN), "  0 bytes before, 3 after\n");
    }
}
