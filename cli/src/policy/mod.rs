//! `policy`: one file a verb, and what they share.

mod apply;
mod delete;
mod explain;
mod explanation;
mod files;
mod get;
mod habits;
mod history;
mod list;
mod report;
mod schema;
mod suggest;
mod validate;

use std::process::ExitCode;

use clap::Subcommand;

use crate::{args::Global, runtime};

/// What is done about network utilities, and where
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    List(list::Args),
    Get(get::Args),
    Apply(apply::Args),
    Delete(delete::Args),
    Explain(explain::Args),
    Report(report::Args),
    Suggest(suggest::Args),
    Validate(validate::Args),
    Schema(schema::Args),
}

impl Args {
    /// Runs the verb.
    pub fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        match &self.verb {
            Verb::List(verb) => runtime()?.block_on(verb.run(global))?,
            Verb::Get(verb) => runtime()?.block_on(verb.run(global))?,
            Verb::Apply(verb) => return runtime()?.block_on(verb.run(global)),
            Verb::Delete(verb) => return runtime()?.block_on(verb.run(global)),
            Verb::Explain(verb) => runtime()?.block_on(verb.run(global))?,
            Verb::Report(verb) => runtime()?.block_on(verb.run(global))?,
            Verb::Suggest(verb) => runtime()?.block_on(verb.run(global))?,
            Verb::Validate(verb) => return verb.run(global),
            Verb::Schema(verb) => verb.run(global)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
