//! `triage set`.

use std::io::{self, Write};

use portcullis_proto::v1::{self, SetTriageStateRequest};

use crate::{
    args::Global,
    client,
    output::{Format, Sequence},
    view::{Signal, TriageState},
};

/// Say what became of signals
///
/// The state, the note and who said it stay with the signals, as do earlier ones. All of them are changed, or none if one is
/// not there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The signals
    #[arg(required = true, value_name = "SIGNAL", num_args = 1..=1000)]
    signals: Vec<u64>,
    /// What became of them
    #[arg(long, value_name = "STATE")]
    state: TriageState,
    /// Why, for whoever comes next
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    /// Who says so; by default your user name
    #[arg(long, value_name = "NAME", env = "USER", default_value = "", hide_env_values = true)]
    author: String,
}

impl Args {
    /// Asks the agent.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let request = SetTriageStateRequest {
            signal_ids: self.signals.clone(),
            state: v1::TriageState::from(self.state).into(),
            note: self.note.clone(),
            author: self.author.clone(),
        };
        let response = agent.triage().set_triage_state(client::request(request)).await;
        let response = response.map_err(|status| agent.error(&status))?.into_inner();
        let mut out = io::stdout().lock();
        let signals = response.signals.into_iter().map(Signal::from);
        match global.output {
            Format::Json | Format::Yaml => {
                let mut sequence = Sequence::new(global.output == Format::Yaml);
                for signal in signals {
                    sequence.push(&mut out, &signal)?;
                }
                sequence.finish(&mut out)?;
            }
            Format::Table | Format::Wide => {
                for signal in signals {
                    writeln!(out, "signal {}: {}", signal.id, self.state.word())?;
                }
            }
        }
        Ok(())
    }
}
