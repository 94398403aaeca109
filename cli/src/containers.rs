//! `containers list`.

use std::io::{self, BufWriter, Write};

use clap::Subcommand;
use portcullis_proto::v1::ListContainersRequest;

use crate::{
    args::Global,
    client,
    exit::note,
    output::{Format, Sequence, Tone},
    table::{Cell, Table, text, whole},
    view::{Container, Containment, Mode, Pod},
};

/// What is guarded here, and what should be but is not
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the containers
    List {
        /// Also those that have ended and whose events may still be under way
        #[arg(long)]
        ended: bool,
    },
}

impl Args {
    /// Lists them.
    pub async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let Verb::List { ended } = self.verb;
        let agent = global.agent().await?;
        let request = client::request(ListContainersRequest { include_ended: ended });
        let response = agent.containers().list_containers(request).await.map_err(|status| agent.error(&status))?;
        let containers: Vec<Container> = response.into_inner().containers.into_iter().map(Into::into).collect();
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Json | Format::Yaml => {
                let mut sequence = Sequence::new(global.output == Format::Yaml);
                containers.iter().try_for_each(|container| sequence.push(&mut out, container))?;
                sequence.finish(&mut out)?;
            }
            Format::Table | Format::Wide if containers.is_empty() => note("no containers"),
            format => {
                let wide = format == Format::Wide;
                let mut columns = vec![text("CONTAINER"), text("IMAGE"), text("POD"), whole("GUARD"), whole("MODE")];
                columns.extend([text("POLICY"), whole("MATCHED"), whole("STOPPED"), whole("LOST"), text("CONTAINED")]);
                if wide {
                    columns.extend([whole("BACKEND"), text("NAMESPACE"), whole("CGROUP"), whole("CREATED")]);
                    columns.extend([whole("ENDED"), text("WHY THIS POLICY"), text("WHY")]);
                }
                let rows: Vec<_> = containers.iter().map(|container| row(container, wide)).collect();
                Table::new(columns, global.screen()).write(&mut out, &rows)?;
            }
        }
        Ok(out.flush()?)
    }
}

fn row(container: &Container, wide: bool) -> Vec<Cell> {
    let counter = |value: fn(&crate::view::Counters) -> u64| {
        container.counters.as_ref().map(|counters| value(counters).to_string()).unwrap_or_default()
    };
    let guard = match (container.guarded, container.contents_unknown.is_empty()) {
        (true, true) => Cell::text("guarded").tone(Tone::Good),
        (true, false) => Cell::text("names only").tone(Tone::Warning),
        (false, _) => Cell::text("UNGUARDED").tone(Tone::Bad),
    };
    let lost = Cell::text(counter(|counters| counters.lost));
    let any_lost = container.counters.is_some_and(|counters| counters.lost > 0);
    let mut row = vec![
        Cell::text(short_id(&container.id)),
        Cell::text(&container.image),
        Cell::text(container.pod.as_ref().map(pod_name).unwrap_or_default()),
        guard,
        Cell::text(if container.mode == Mode::Unknown { "" } else { container.mode.word() }),
        Cell::text(&container.policy),
        Cell::text(counter(|counters| counters.matched)),
        Cell::text(counter(|counters| counters.blocked.saturating_add(counters.killed))),
        if any_lost { lost.tone(Tone::Warning) } else { lost },
        Cell::text(container.containment.map(Containment::words).unwrap_or_default()).tone(Tone::Warning),
    ];
    if wide {
        let time = |time: Option<crate::time::Time>| Cell::text(time.map(crate::time::Time::short).unwrap_or_default());
        row.extend([
            Cell::text(container.backend.word()),
            Cell::text(&container.containerd_namespace),
            Cell::text(container.cgroup_id.to_string()),
            time(container.created),
            time(container.ended),
            Cell::text(&container.policy_reason),
            Cell::text(why(container)),
        ]);
    }
    row
}

/// Why the guard is what it is where something is missing from it, otherwise why the mode is what it is.
fn why(container: &Container) -> &str {
    if !container.guarded {
        &container.unguarded_reason
    } else if !container.contents_unknown.is_empty() {
        &container.contents_unknown
    } else {
        &container.mode_reason
    }
}

/// Leaves those whose ids begin so and that are in this namespace of containerd's, if one is given.
pub fn retain_meant(containers: &mut Vec<Container>, beginning: &str, namespace: Option<&str>) {
    containers.retain(|container| {
        container.id.starts_with(beginning)
            && namespace.is_none_or(|namespace| container.containerd_namespace == namespace)
    });
    // A whole id is no beginning of another one.
    if containers.iter().any(|container| container.id == beginning) {
        containers.retain(|container| container.id == beginning);
    }
}

/// The first 12 digits of an id that is a hash, as other tools show it; any other id whole.
pub fn short_id(id: &str) -> &str {
    match id.get(..12) {
        Some(short) if id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => short,
        _ => id,
    }
}

/// `namespace/pod/container`.
pub fn pod_name(pod: &Pod) -> String {
    let parts = [pod.namespace.as_str(), &pod.name, &pod.container_name];
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/")
}
