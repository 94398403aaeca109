//! `signals get`.

use std::io::{self, BufWriter, Write};

use anyhow::Context;
use portcullis_proto::v1::GetSignalRequest;

use super::report;
use crate::{
    args::Global,
    client::{self, ClientError},
    output::{self, Format},
    view::Signal,
};

/// Show all that is known about one signal
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its id, as `signals list` shows it
    id: u64,
}

impl Args {
    /// Shows it.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let request = client::request(GetSignalRequest { id: self.id });
        let response = agent.signals().get_signal(request).await.map_err(|status| match agent.error(&status) {
            ClientError::NotFound(_) => ClientError::NotFound(format!(
                "there is no signal {}: it never existed, or retention has removed it",
                self.id
            )),
            other => other,
        })?;
        let signal: Signal = response.into_inner().signal.context("portcullisd sent an empty answer")?.into();
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json => output::json(&mut out, &signal)?,
            Format::Yaml => output::yaml(&mut out, &signal)?,
            Format::Table | Format::Wide => report::write(&mut out, &signal, global.screen())?,
        }
        Ok(out.flush()?)
    }
}
