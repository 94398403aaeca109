//! `policy get`.

use std::io::{self, BufWriter, Write};

use anyhow::Context;
use portcullis_proto::v1::GetPolicyRequest;
use serde::Serialize;

use crate::{
    args::Global,
    client::{self, ClientError},
    escape,
    output::{self, Format},
    view::Policy,
};

/// Print a policy as it is in force
///
/// Its text, comments included: `portcullis policy get NAME > NAME.yaml`, edit it, `portcullis policy apply NAME.yaml`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The policy's name
    name: String,
}

/// What `-o json` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(flatten)]
    policy: Policy,
    text: String,
}

impl Args {
    /// Prints it.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let request = client::request(GetPolicyRequest { name: self.name.clone() });
        let response = agent.policies().get_policy(request).await.map_err(|status| match agent.error(&status) {
            ClientError::NotFound(_) => ClientError::NotFound(format!(
                "there is no policy {} in force; portcullis policy list shows those there are",
                escape::text(&self.name)
            )),
            other => other,
        })?;
        let response = response.into_inner();
        let policy = response.policy.context("portcullisd sent an empty answer")?.into();
        let shown = Shown { policy, text: response.yaml };
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json => output::json(&mut out, &shown)?,
            Format::Yaml => output::yaml(&mut out, &shown)?,
            // A file must get every byte as it is; a terminal had better not.
            Format::Table | Format::Wide if global.screen().width.is_none() => out.write_all(shown.text.as_bytes())?,
            Format::Table | Format::Wide => shown.text.lines().try_for_each(|line| {
                let safe = line.chars().map(|c| if escape::is_deceptive(c) { '\u{fffd}' } else { c });
                writeln!(out, "{}", safe.collect::<String>())
            })?,
        }
        Ok(out.flush()?)
    }
}
