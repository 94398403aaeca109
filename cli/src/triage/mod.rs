//! `triage`: the story around a signal or a container, and what people make of signals.
//!
//! | module | idea |
//! |---|---|
//! | [`story`] | the agent's answer in the shape that `-o json` shows |
//! | [`report`] | the story for a terminal |
//! | [`html`] | the story as a page |
//! | [`set`] | `triage set` |

mod html;
mod report;
mod set;
mod story;

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Subcommand;
use portcullis_proto::v1::{ContainerReference, GetStoryRequest, get_story_request::Subject};

use self::story::Story;
use crate::{
    args::Global,
    client::{self, Agent},
    contain,
    exit::note,
    files,
    output::{self, Format},
    time,
};

/// Tell the story around a signal or a container
///
/// What is it about, is it usual, what came before and after, what did it do on the network, what else on this node has
/// something in common with it, and what may be done now. A number is a signal's ID, anything else the beginning of a
/// container's.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// A signal's ID, or the beginning of a container's
    #[arg(required = true, value_name = "SIGNAL|CONTAINER")]
    subject: Option<String>,
    /// It is a container, though it looks like a signal
    #[arg(long)]
    container: bool,
    /// containerd's namespace, if several have such a container
    #[arg(long, value_name = "NAME", default_value = "")]
    namespace: String,
    /// How long before and after the story goes on (15m, 1h, 7d)
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = time::parse_duration)]
    window: std::time::Duration,
    /// Write one self-contained page to this file, to attach to an incident; - is standard output
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Set(set::Args),
}

impl Args {
    /// Runs the verb, or tells the story.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        if let Some(Verb::Set(verb)) = &self.verb {
            return verb.run(global).await;
        }
        let agent = global.agent().await?;
        let request = GetStoryRequest {
            subject: Some(self.subject(&agent).await?),
            window: prost_types::Duration::try_from(self.window).ok(),
        };
        let response = agent.triage().get_story(client::request(request)).await;
        let story = Story::from(response.map_err(|status| agent.error(&status))?.into_inner());
        if let Some(path) = &self.html {
            return write_page(path, &html::page(&story));
        }
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json => output::json(&mut out, &story)?,
            Format::Yaml => output::yaml(&mut out, &story)?,
            Format::Table | Format::Wide => report::write(&mut out, &story, global.screen())?,
        }
        Ok(out.flush()?)
    }

    async fn subject(&self, agent: &Agent) -> anyhow::Result<Subject> {
        let Some(subject) = &self.subject else { bail!("a signal or a container must be named") };
        if !self.container
            && let Ok(id) = subject.parse()
        {
            return Ok(Subject::SignalId(id));
        }
        let (id, containerd_namespace) = contain::find(agent, subject, &self.namespace).await?;
        Ok(Subject::Container(ContainerReference { id, containerd_namespace }))
    }
}

/// In one step and for its owner alone: it has what an attacker typed.
fn write_page(path: &Path, page: &str) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return Ok(io::stdout().write_all(page.as_bytes())?);
    }
    files::replace(path, 0o600, page.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    note(&format!("wrote {}", path.display()));
    Ok(())
}
