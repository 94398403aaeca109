//! The shim's log: a FIFO in the bundle that containerd reads, and that the inner shim writes as well.
//!
//! Nothing may ever wait for its reader: it is opened for each of the rare lines, and a line that does not go through
//! at once is dropped.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use rustix::fs::OFlags;

/// How grave a line is, in containerd's words.
#[derive(Debug, Clone, Copy)]
pub enum Level {
    /// Something is not as it should be, and the container runs.
    Warning,
    /// Something failed.
    Error,
}

/// A line in the format of containerd's own log. Quoted as Rust does: control characters from annotations and error
/// texts can't forge further lines.
fn line(level: Level, container: &str, message: &str) -> String {
    let level = match level {
        Level::Warning => "warning",
        Level::Error => "error",
    };
    format!("level={level} msg={message:?} container={container:?} runtime=portcullis\n")
}

/// Writes a line, or drops it.
pub fn write(bundle: &Path, level: Level, container: &str, message: &str) {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    if let Ok(mut fifo) = OpenOptions::new().write(true).custom_flags(flags).open(bundle.join("log")) {
        let _ = fifo.write_all(line(level, container, message).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_is_one_line() {
        let line = line(Level::Warning, "c1", "a\nlevel=error \"b\"");
        assert_eq!(line, "level=warning msg=\"a\\nlevel=error \\\"b\\\"\" container=\"c1\" runtime=portcullis\n");
    }

    #[test]
    fn without_a_reader_nothing_happens() {
        let bundle = tempfile::tempdir().unwrap();
        write(bundle.path(), Level::Error, "c1", "lost");
        assert!(!bundle.path().join("log").exists());
    }
}
