//! `policy`: one file a verb, and what they share.

mod files;
mod schema;
mod validate;

use std::process::ExitCode;

use clap::Subcommand;

use crate::args::Global;

/// What is done about network utilities, and where
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Validate(validate::Args),
    Schema(schema::Args),
}

impl Args {
    /// Runs the verb.
    pub fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        match &self.verb {
            Verb::Validate(verb) => return verb.run(global),
            Verb::Schema(verb) => verb.run(global)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
