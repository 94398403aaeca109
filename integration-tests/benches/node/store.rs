//! Pages of a hundred out of millions of signals, by what operators ask for.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use portcullis_proto::v1::ListSignalsRequest;
use rustix::fs::statvfs;

use crate::{
    Bed,
    client::Client,
    figure::{Figure, MS, Notebook, Samples},
    filling::{fill, filters},
    memory::agent,
};

const PAGE: u32 = 100;

/// The agent lets a user make 50 calls a second for ever. Who makes more has to wait, which is not to be measured.
const PAUSE: Duration = Duration::from_millis(20);

const SETTLE: Duration = Duration::from_secs(3);

/// With its indexes, and some more.
const BYTES_EACH: u64 = 2700;

/// Their age and size are no reason to remove them.
const KEEP: &str = "[signals]\nmax_size_mb = 65536\nmax_age_days = 60\n";

pub fn store(bed: &Bed, book: &Notebook) -> Result<()> {
    let counts: &[u64] = if bed.quick { &[200_000] } else { &[1_000_000, 10_000_000] };
    for count in counts {
        let room = free(&bed.node.paths().directory)?;
        if room < count * BYTES_EACH * 5 / 4 {
            book.note(format!(
                "no pages of {count} signals: they need {} GB, {} are free",
                count * BYTES_EACH / 1_000_000_000,
                room / 1_000_000_000
            ));
            continue;
        }
        of(bed, book, *count)?;
        bed.new_agent()?;
    }
    Ok(())
}

fn free(directory: &Path) -> Result<u64> {
    let stat = statvfs(directory)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

#[allow(clippy::cast_precision_loss)] // of some millions
fn of(bed: &Bed, book: &Notebook, count: u64) -> Result<()> {
    // Without the signals of other sections, whose ids would not be in the order of time.
    bed.new_agent()?;
    // By itself: the agent has made the tables, and reads what it finds when it starts again.
    drop(bed.node.agent().take());
    let begun = Instant::now();
    fill(&bed.database(), count)?;
    let label = if count < 1_000_000 { format!("{} k", count / 1000) } else { format!("{} M", count / 1_000_000) };
    book.note(format!(
        "{label} signals are {:.1} GB on disk, put there in {:.0} s",
        fs::metadata(bed.database())?.len() as f64 / 1e9,
        begun.elapsed().as_secs_f64()
    ));
    let _agent = bed.node.configured_agent(KEEP)?;
    sleep(SETTLE);
    book.add(agent(&bed.node, &format!("agent with {label} signals stored"))?);
    let client = Client::connect(&bed.node.paths().socket())?;
    let (mut all, mut slowest) = (Vec::new(), None::<Figure>);
    for (name, filter) in filters()? {
        let mut took = Vec::new();
        for _ in 0..bed.rounds(100, 20, 20, 5) {
            let request =
                ListSignalsRequest { filter: Some(filter.clone()), page_size: PAGE, ..ListSignalsRequest::default() };
            sleep(PAUSE);
            took.push(client.list(request)?.1.as_secs_f64() * 1000.0);
        }
        let samples: Samples = took.iter().copied().collect();
        all.extend(took);
        let figure = Figure::median(&format!("page of {PAGE} of {label} signals, by {name}"), MS, &samples);
        book.add(figure.clone());
        slowest = slowest.into_iter().chain([figure]).max_by(|one, other| one.value.total_cmp(&other.value));
    }
    let name = format!("page of {PAGE} of {label} signals, all filters");
    let goal = count >= 1_000_000;
    book.add(Figure::median(&name, MS, &all.into_iter().collect()).at_most_if(goal, 5.0));
    if let Some(slowest) = slowest {
        let name = format!("page of {PAGE} of {label} signals, the slowest filter");
        book.add(Figure { name, ..slowest }.at_most_if(goal, 5.0));
    }
    book.add(agent(&bed.node, &format!("agent with {label} signals stored, after these pages"))?);
    Ok(())
}
