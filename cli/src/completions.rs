//! `completions`.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell
    shell: Shell,
}

impl Args {
    /// Prints it.
    pub fn run(&self) -> anyhow::Result<()> {
        // Into memory first: the generator panics when its output can't be written.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::args::Args::command(), "portcullis", &mut script);
        Ok(io::stdout().write_all(&script)?)
    }
}
