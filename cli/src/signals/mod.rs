//! `signals`: one file a verb, and what they share.

mod filter;
mod get;
mod list;
mod report;
pub mod row;
mod summarize;
mod watch;

use clap::Subcommand;

use crate::args::Global;

/// What was found
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::Args),
    Get(get::Args),
    Watch(watch::Args),
    Summarize(summarize::Args),
}

impl Args {
    /// Runs the verb.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        match &self.verb {
            Verb::List(verb) => verb.run(global).await,
            Verb::Get(verb) => verb.run(global).await,
            Verb::Watch(verb) => verb.run(global).await,
            Verb::Summarize(verb) => verb.run(global).await,
        }
    }
}
