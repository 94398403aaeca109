//! `man`.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::CommandFactory;

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to; created when it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Args {
    /// Writes one page a verb.
    pub fn run(&self) -> anyhow::Result<()> {
        let directory = self.directory.display();
        fs::create_dir_all(&self.directory).with_context(|| format!("creating {directory}"))?;
        clap_mangen::generate_to(crate::args::Args::command(), &self.directory)
            .with_context(|| format!("writing manual pages into {directory}"))
    }
}
