//! `policy list`.

use std::{
    io::{self, BufWriter, Write},
    time::Duration,
};

use portcullis_proto::v1::{self, ListPoliciesRequest};

use crate::{
    args::Global,
    client, escape,
    exit::note,
    output::{Format, Sequence, Tone},
    table::{Cell, Table, text, whole},
    view::{Backend, Mode, ModeOrigin, Policy, Select},
};

/// List the policies in force, in the order in which they are tried
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    /// Lists them.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let agent = global.agent().await?;
        let response = agent.policies().list_policies(client::request(ListPoliciesRequest {})).await;
        let response = response.map_err(|status| agent.error(&status))?.into_inner();
        let policies: Vec<Policy> = response.policies.into_iter().map(Into::into).collect();
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json | Format::Yaml => {
                let mut sequence = Sequence::new(global.output == Format::Yaml);
                policies.iter().try_for_each(|policy| sequence.push(&mut out, policy))?;
                sequence.finish(&mut out)?;
            }
            Format::Table | Format::Wide => {
                let wide = global.output == Format::Wide;
                let rows: Vec<_> = policies.iter().map(|policy| row(policy, wide)).collect();
                table(wide, global).write(&mut out, &rows)?;
            }
        }
        out.flush()?;
        if let (Format::Wide, Some(moves)) = (global.output, response.moves) {
            let took = moves.last_pass.and_then(|took| Duration::try_from(took).ok()).unwrap_or_default();
            let v1::ContainerMoves { passes, moved, failed, .. } = moves;
            note(&format!(
                "{passes} changes moved {moved} containers, {failed} attempts failed; the last took {took:.1?}"
            ));
        }
        if !response.error.is_empty() {
            let error = escape::text(&response.error);
            note(&format!("newer files can't be used, and those before them are in force: {error}"));
        }
        Ok(())
    }
}

fn table(wide: bool, global: &Global) -> Table {
    let mut columns = vec![whole("NAME"), whole("MODE"), whole("BY"), whole("CONTAINERS"), text("SELECTS")];
    if wide {
        columns.extend([whole("PRIORITY"), whole("BACKEND"), whole("ID")]);
    }
    columns.push(text("SOURCE"));
    Table::new(columns, global.screen())
}

fn row(policy: &Policy, wide: bool) -> Vec<Cell> {
    let mode = Cell::text(policy.mode.word());
    let origin = Cell::text(policy.mode_origin.word());
    let mut row = vec![
        Cell::text(&policy.name),
        if policy.mode == Mode::Enforce { mode.tone(Tone::Good) } else { mode },
        if policy.mode_origin == ModeOrigin::Operator { origin.tone(Tone::Warning) } else { origin },
        Cell::text(policy.containers.to_string()),
        Cell::text(policy.select.as_ref().map_or_else(|| "all others".to_owned(), selects)),
    ];
    if wide {
        row.extend([
            Cell::text(policy.priority.to_string()),
            Cell::text(policy.require_backend.map(Backend::word).unwrap_or_default()),
            Cell::text(format!("{:08x}", policy.id)),
        ]);
    }
    row.push(Cell::text(&policy.source));
    row
}

/// `namespaces=a,b images=c`.
fn selects(select: &Select) -> String {
    let Select { namespaces, pods, containers, images, annotations } = select;
    let lists = [("namespaces", namespaces), ("pods", pods), ("containers", containers), ("images", images)];
    let lists = lists.into_iter().filter(|(_, globs)| !globs.is_empty());
    let lists = lists.map(|(name, globs)| format!("{name}={}", globs.join(",")));
    let annotations = annotations.iter().map(|(key, glob)| format!("{key}={glob}"));
    lists.chain(annotations).collect::<Vec<_>>().join(" ")
}
