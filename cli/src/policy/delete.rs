//! `policy delete`.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use portcullis_proto::v1::DeletePolicyRequest;
use serde::Serialize;

use crate::{
    args::Global,
    client::{self, ClientError},
    escape, exit,
    output::{Format, Sequence},
    view::Policy,
};

/// Remove policies from the node
///
/// Their files go, and their containers come under the next policy that selects them. Code 1 if any is not there or can't
/// go.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The policies' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Check everything and say what would go, but change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What `-o json` shows of a policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    name: String,
    deleted: bool,
    /// As it was in force.
    policy: Option<Policy>,
    error: Option<String>,
}

impl Args {
    /// Removes one after the other.
    pub async fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        let agent = global.agent().await?;
        let mut out = BufWriter::new(io::stdout().lock());
        let structured = matches!(global.output, Format::Json | Format::Yaml);
        let mut sequence = Sequence::new(global.output == Format::Yaml);
        let mut failed = false;
        for name in &self.names {
            let request = client::request(DeletePolicyRequest { name: name.clone(), dry_run: self.dry_run });
            let (policy, error) = match agent.policies().delete_policy(request).await {
                Ok(response) => (response.into_inner().policy.map(Policy::from), None),
                Err(status) => match agent.error(&status) {
                    error @ ClientError::Unreachable { .. } => return Err(error.into()),
                    _ => (None, Some(status.message().to_owned())),
                },
            };
            failed |= error.is_some();
            let outcome = Outcome { name: name.clone(), deleted: error.is_none() && !self.dry_run, policy, error };
            if structured {
                sequence.push(&mut out, &outcome)?;
            } else {
                self.tell(&mut out, &outcome)?;
            }
            out.flush()?;
        }
        if structured {
            sequence.finish(&mut out)?;
            out.flush()?;
        }
        Ok(if failed { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS })
    }

    fn tell(&self, out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
        let Outcome { name, policy, error, .. } = outcome;
        if let Some(error) = error {
            exit::note(&escape::text(error));
            return Ok(());
        }
        let would = if self.dry_run { " (dry run)" } else { "" };
        let containers = policy.as_ref().map_or(0, |policy| policy.containers);
        writeln!(out, "policy {}: deleted{would}, it was for {containers} running containers", escape::text(name))
    }
}
