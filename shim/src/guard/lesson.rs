//! Learning what a container's own tools contain, in a process of its own.
//!
//! What is read there was chosen by whoever made the image: it is no business of the resident part, which serves a whole
//! pod. The memory that it takes goes with the process, and a file system that does not answer holds up one container's
//! start for a bounded time.

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};
use portcullis_bpf::{
    contents::{Contents, names},
    pins::Pins,
};
use rustix::event::Timespec;
use serde::{Deserialize, Serialize};

use super::contents;
use crate::process;

/// The command by which this program runs itself.
pub const ACTION: &str = "learn";

/// How long it may take, which is milliseconds where nothing has to come from a disk.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How long a killed process may take to be gone. One that hangs in its file system stays until that answers.
const DEATH: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What is to be learnt.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lesson {
    /// A process of the container.
    pub pid: u32,
    /// The containers for which it holds.
    pub scope: u64,
    /// The catalogue's version.
    pub catalog: u32,
    /// The directory of the pins.
    pub pins: PathBuf,
}

impl Lesson {
    fn is_known(&self) -> Result<bool> {
        Ok(Contents::open(&Pins::at(&self.pins))?.knows(self.scope, self.catalog)?)
    }

    /// Makes the kernel know it, unless it does from an earlier container of the same contents.
    pub fn teach(&self) -> Result<()> {
        if self.is_known()? {
            return Ok(());
        }
        let lesson = serde_json::to_string(self).context("encoding what is to be learnt")?;
        // Not by its path: the program there may be another version by now.
        let child = Command::new("/proc/self/exe")
            .args([ACTION, &lesson])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the process that learns")?;
        await_end(child, PATIENCE)
    }

    /// What that process does.
    pub fn learn(text: &str) -> Result<()> {
        let lesson: Self = serde_json::from_str(text).context("reading what is to be learnt")?;
        let pins = Pins::at(&lesson.pins);
        // Of the containers of an image that start at the same time, one is enough.
        if lesson.is_known()? {
            return Ok(());
        }
        let contents = contents::of_container(lesson.pid, &names(&pins)?)?;
        Contents::open(&pins)?.learn(lesson.scope, lesson.catalog, &contents)?;
        Ok(())
    }
}

/// Waits for a child's success, or gives what it said as the error.
fn await_end(mut child: Child, patience: Timespec) -> Result<()> {
    let ended = process::ends_within(&child, patience);
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
        if let Ok(true) = process::ends_within(&child, DEATH) {
            let _ = child.wait();
        }
        ended?;
        bail!("the container's root file system did not answer within {} s", patience.tv_sec);
    }
    let Output { status, stderr, .. } = child.wait_with_output().context("waiting for the process that learns")?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&stderr);
    match said.trim().strip_prefix(crate::PREFIX) {
        Some(reason) => bail!("{reason}"),
        None => bail!("the process that learns ended with {status}: {}", said.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(script: &str, patience: Timespec) -> Result<(), String> {
        let mut command = Command::new("sh");
        let child = command.args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
        await_end(child, patience).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_the_child_says_is_the_reason() {
        assert_eq!(end_of("exit 0", PATIENCE), Ok(()));
        assert_eq!(end_of("echo portcullis: cause: effect >&2; exit 1", PATIENCE), Err("cause: effect".to_owned()));
        let error = end_of("echo crash >&2; kill -ABRT $$", PATIENCE).unwrap_err();
        assert!(error.contains("ended with signal: 6") && error.ends_with(": crash"), "{error}");
    }

    #[test]
    fn nobody_waits_for_ever() {
        let error = end_of("exec sleep 60", Timespec { tv_sec: 0, tv_nsec: 1_000_000 }).unwrap_err();
        assert!(error.contains("did not answer within"), "{error}");
    }

    #[test]
    fn a_lesson_that_makes_no_sense_is_named() {
        let error = format!("{:#}", Lesson::learn("{").unwrap_err());
        assert!(error.starts_with("reading what is to be learnt"), "{error}");
        let nowhere = Lesson { pid: 1, scope: 2, catalog: 3, pins: "/no/such/pins".into() };
        let error = format!("{:#}", Lesson::learn(&serde_json::to_string(&nowhere).unwrap()).unwrap_err());
        assert!(error.contains("/no/such/pins") && error.contains("start portcullisd"), "{error}");
    }
}
