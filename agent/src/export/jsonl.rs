//! A file with a finding a line. A line that could not be written as a whole is taken back, so that what comes later stays
//! readable; whoever renames or removes the file (logrotate) gets a new one with the next batch.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::fs::OFlags;

use super::{Finding, Sink, SinkError};

/// More than the longest line.
const TAIL: u64 = 1 << 20;

/// The file.
#[derive(Debug)]
pub struct JsonLines(Option<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Bytes after which a new file is begun.
    max_bytes: u64,
    /// How many former files are kept.
    keep: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Bytes of whole lines.
    length: u64,
}

impl JsonLines {
    /// Nothing is opened before there is something to write.
    pub fn new(path: &Path, max_bytes: u64, keep: u32) -> Self {
        Self(Some(Inner { path: path.to_owned(), max_bytes, keep, open: None }))
    }
}

impl Sink for JsonLines {
    const NAME: &'static str = "jsonl";

    async fn deliver(&mut self, batch: &[Finding]) -> Result<(), SinkError> {
        let mut lines = Vec::with_capacity(batch.iter().map(|finding| finding.json.len() + 1).sum());
        for finding in batch {
            lines.extend_from_slice(finding.json.as_bytes());
            lines.push(b'\n');
        }
        let mut inner = self.0.take().context("an earlier write has ended the exporter's thread")?;
        // A disk may take its time.
        let (inner, result) = tokio::task::spawn_blocking(move || {
            let result = inner.append(&lines);
            (inner, result)
        })
        .await
        .context("writing findings")?;
        let path = inner.path.display().to_string();
        self.0 = Some(inner);
        Ok(result.with_context(|| format!("writing {path}"))?)
    }
}

impl Inner {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let result = self.try_append(lines);
        if result.is_err() {
            // Whatever is wrong with it: opening it anew mends its end.
            self.open = None;
        }
        result
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| !is_at(&open.file, &self.path)) {
            self.open = None;
        }
        let added = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        let mut open = match self.open.take() {
            Some(open) => open,
            None => open_file(&self.path)?,
        };
        if open.length > 0 && open.length.saturating_add(added) > self.max_bytes {
            drop(open);
            self.rotate()?;
            open = open_file(&self.path)?;
        }
        // On disk before the cursor says so.
        if let Err(error) = open.file.write_all(lines).and_then(|()| open.file.sync_data()) {
            // What is left of it is no line. If this fails too, opening does it.
            let _ = open.file.set_len(open.length);
            return Err(error);
        }
        open.length += added;
        self.open = Some(open);
        Ok(())
    }

    /// `file` becomes `file.1`, that one `file.2` and so on; the last one goes.
    fn rotate(&self) -> io::Result<()> {
        let name = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            PathBuf::from(name)
        };
        if self.keep == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (0..self.keep).rev() {
            match fs::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether the path still leads to the file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Opens or makes the file. A last line without its end, from a crash, is removed: it is written again.
fn open_file(path: &Path) -> io::Result<Open> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let size = file.metadata()?.len();
    let begin = size.saturating_sub(TAIL);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(begin))?;
    (&mut file).take(TAIL).read_to_end(&mut tail)?;
    let length = match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => begin + u64::try_from(end).unwrap_or_default() + 1,
        None if begin == 0 => 0,
        None => return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no lines: it is not one of ours")),
    };
    if length < size {
        file.set_len(length)?;
    }
    Ok(Open { file, length })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn lines(path: &Path, max_bytes: u64, keep: u32) -> Inner {
        Inner { path: path.to_owned(), max_bytes, keep, open: None }
    }

    #[test]
    fn a_half_line_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("findings.jsonl");
        fs::write(&path, "{\"one\":1}\n{\"half").unwrap();
        let mut file = lines(&path, 1 << 20, 1);
        file.append(b"{\"two\":2}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"one\":1}\n{\"two\":2}\n");
        // As when the disk is full in the middle of a line.
        file.open.as_mut().unwrap().file = File::open("/dev/null").unwrap();
        assert!(file.try_append(b"{}\n").is_ok(), "another file at the path is opened anew");
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
        fs::write(&path, "no lines at all").unwrap();
        lines(&path, 1 << 20, 1).append(b"{}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("findings.jsonl");
        let mut file = lines(&path, 1 << 30, 1);
        file.append(b"{\"one\":1}\n").unwrap();
        // A file opened for reading takes nothing, as a full disk.
        file.open.as_mut().unwrap().file = File::open(&path).unwrap();
        assert!(file.append(b"{\"two\":2}\n").is_err());
        file.append(b"{\"two\":2}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"one\":1}\n{\"two\":2}\n");
    }

    #[test]
    fn files_are_rotated_by_size_and_found_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let mut file = lines(&path, 8, 2);
        for line in [b"{\"1\":1}\n", b"{\"2\":2}\n", b"{\"3\":3}\n", b"{\"4\":4}\n"] {
            file.append(line).unwrap();
        }
        let content = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(["f", "f.1", "f.2"].map(content), ["{\"4\":4}\n", "{\"3\":3}\n", "{\"2\":2}\n"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::rename(&path, directory.path().join("elsewhere")).unwrap();
        file.append(b"{}\n").unwrap();
        assert_eq!(content("f"), "{}\n");
        let mut none = lines(&path, 2, 0);
        none.append(b"{\"5\":5}\n").unwrap();
        assert_eq!(content("f"), "{\"5\":5}\n");
    }

    #[test]
    fn what_is_no_file_of_lines_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        fs::write(&target, "x".repeat(2 << 20)).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(lines(&link, 1 << 30, 1).append(b"{}\n").is_err());
        assert!(lines(&target, 1 << 30, 1).append(b"{}\n").unwrap_err().to_string().contains("no lines"));
        assert_eq!(fs::metadata(&target).unwrap().len(), 2 << 20);
    }
}
