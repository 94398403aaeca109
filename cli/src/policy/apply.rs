//! `policy apply`.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use portcullis_policy::yaml;
use portcullis_proto::v1::ApplyPolicyRequest;
use serde::Serialize;
use tonic::Code;

use super::files;
use crate::{
    args::Global,
    client::{self, Agent, ClientError},
    escape, exit,
    output::{Format, Sequence},
    view::{Policy, PolicyChange},
};

/// Store policies on the node, and put them in force
///
/// Each becomes a file of the agent's policy directory, named after the policy. It is checked together with all others
/// before anything changes; a container sees the old policy or the new one. Code 1 if any is refused; those before and behind it
/// are in force all the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The files, a policy in each; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Check everything and say what would come of it, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace a policy of the same name that is in a file of another name, in that file
    #[arg(long)]
    overwrite: bool,
}

/// What `-o json` shows of a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    file: String,
    /// With `--dry-run`: what would become of it.
    change: Option<PolicyChange>,
    policy: Option<Policy>,
    errors: Vec<String>,
}

impl Args {
    /// Applies one after the other.
    pub async fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        let agent = global.agent().await?;
        let mut out = BufWriter::new(io::stdout().lock());
        let structured = matches!(global.output, Format::Json | Format::Yaml);
        let mut sequence = Sequence::new(global.output == Format::Yaml);
        let mut refused = 0;
        for path in &self.files {
            let file = files::name(path);
            let outcome = match self.apply(&agent, path, &file).await? {
                Ok((change, policy)) => Outcome { file, change: Some(change), policy, errors: Vec::new() },
                Err(errors) => Outcome { file, change: None, policy: None, errors },
            };
            refused += usize::from(outcome.change.is_none());
            if structured {
                sequence.push(&mut out, &outcome)?;
            } else {
                self.tell(&mut out, &outcome)?;
            }
            // One after the other, for whoever is waiting.
            out.flush()?;
        }
        if structured {
            sequence.finish(&mut out)?;
            out.flush()?;
        }
        if refused == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        exit::note(&format!("{refused} of {} policies were refused", self.files.len()));
        Ok(ExitCode::from(exit::FAILED))
    }

    /// What has come of one file, or what is wrong with it.
    async fn apply(
        &self,
        agent: &Agent,
        path: &Path,
        file: &str,
    ) -> Result<Result<(PolicyChange, Option<Policy>), Vec<String>>, ClientError> {
        let bytes = match files::read(path) {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(vec![format!("{file}: {error}")])),
        };
        let yaml = match yaml::decode(file, &bytes) {
            Ok(text) => text.to_owned(),
            Err(error) => return Ok(Err(vec![error.to_string()])),
        };
        let (dry_run, overwrite, file_name) = (self.dry_run, self.overwrite, file.to_owned());
        let request = client::request(ApplyPolicyRequest { yaml, dry_run, overwrite, file_name });
        match agent.policies().apply_policy(request).await {
            Ok(response) => {
                let response = response.into_inner();
                Ok(Ok((response.change().into(), response.policy.map(Into::into))))
            }
            // An error a line.
            Err(status) if status.code() == Code::InvalidArgument => {
                Ok(Err(status.message().lines().map(str::to_owned).collect()))
            }
            Err(status) => match agent.error(&status) {
                error @ ClientError::Unreachable { .. } => Err(error),
                _ => Ok(Err(vec![format!("{file}: {}", status.message())])),
            },
        }
    }

    fn tell(&self, out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
        for error in &outcome.errors {
            writeln!(out, "{}", escape::text(error))?;
        }
        let (Some(change), Some(policy)) = (outcome.change, &outcome.policy) else { return Ok(()) };
        let Policy { name, mode, containers, .. } = policy;
        let (name, would) = (escape::text(name), if self.dry_run { " (dry run)" } else { "" });
        writeln!(out, "policy {name}: {change}{would}, mode {mode}, for {containers} running containers")
    }
}
