//! The program that executes nc while faults happen (`container/fault.c`), and the counts that it keeps outside its container.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fault"));

/// Where containers have it.
pub const PLACE: &str = "/fault";

/// What it has counted so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Executions of nc about to be.
    pub begun: u64,
    /// Those of them known to have been stopped.
    pub stopped: u64,
    /// Executions of a harmless program.
    pub harmless: u64,
    /// Executions that ended in a way that they should not.
    pub odd: u64,
    /// Whether it has come to its end.
    pub finished: bool,
}

/// The directory that all containers mount.
pub struct Program {
    directory: TempDir,
}

impl Program {
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("portcullis-fault-").tempdir()?;
        for name in ["fault", "nc", "noop"] {
            let file = directory.path().join(name);
            fs::write(&file, PROGRAM)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The option of ctr that brings it into a container.
    pub fn mount(&self) -> String {
        format!("--mount=type=bind,src={},dst={PLACE},options=rbind:rw", self.directory().display())
    }

    /// What a container's first process has counted; nothing as long as it has not run.
    pub fn counts(&self, id: &str) -> Counts {
        let Ok(bytes) = fs::read(self.directory().join(id)) else { return Counts::default() };
        let mut words = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_ne_bytes);
        let mut next = || words.next().unwrap_or_default();
        Counts { begun: next(), stopped: next(), harmless: next(), odd: next(), finished: next() == 1 }
    }

    /// Once it has come to its end.
    pub fn finished(&self, id: &str) -> Result<Counts> {
        let counts = self.counts(id);
        ensure!(counts.finished, "{id} goes on: {counts:?}");
        Ok(counts)
    }

    /// No nc has run in any container.
    pub fn nc_never_ran(&self) -> Result<()> {
        let ran = self.directory().join("ran");
        ensure!(!ran.try_exists().context("looking for what nc leaves")?, "nc ran in an enforcing container");
        Ok(())
    }
}

/// The command line of a container's first process, or of an exec session.
pub fn command(id: &str, what: &str, arguments: &[String]) -> Vec<String> {
    let first = [format!("{PLACE}/fault"), what.to_owned(), format!("{PLACE}/{id}")];
    first.into_iter().chain(arguments.iter().cloned()).collect()
}
