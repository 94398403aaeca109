//! `triage`: what people make of signals.

mod set;

use clap::Subcommand;

use crate::args::Global;

/// What became of signals, and who says so
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Set(set::Args),
}

impl Args {
    /// Runs the verb.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        match &self.verb {
            Verb::Set(verb) => verb.run(global).await,
        }
    }
}
