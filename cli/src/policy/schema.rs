//! `policy schema`.

use std::io;

use portcullis_policy::schema;

use crate::{
    args::Global,
    output::{self, Format},
};

/// Print the JSON Schema of policy files, for editors and pipelines
///
/// An editor with the YAML language server uses it after a first line such as
/// `# yaml-language-server: $schema=policy.schema.json`. What a schema can't say (which tools there are, what can be judged
/// where) is told by `portcullis policy validate`. Works without the agent.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Prints it.
    #[allow(clippy::unused_self)] // As every verb.
    pub fn run(&self, global: &Global) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match global.output {
            Format::Yaml => output::yaml(&mut out, &schema::schema())?,
            Format::Table | Format::Wide | Format::Json => output::json(&mut out, &schema::schema())?,
        }
        Ok(())
    }
}
