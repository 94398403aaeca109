//! From an exec to whoever wants to know of it.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::eventually::eventually;
use rustix::process::Signal;

use crate::{
    Bed,
    client::{Client, join, watch},
    figure::{Figure, MS, Notebook, Plot, Samples},
    memory::agent,
    store::store,
    worker::{NC, Worker},
};

/// A container may make so many signals for ever, and so many at once.
const PACE: u32 = 100;
const AT_ONCE: u32 = 500;

/// What fits into the kernel's ring buffer, from as many containers as make it at once.
const INGESTED: u32 = 2500;

const DELIVERED_A_SECOND: u32 = 1000;

const WARM_UP_SECONDS: u32 = 3;

/// Executions a second that are tried.
const RATES: [u32; 7] = [500, 1000, 1500, 2000, 3000, 4000, 6000];

/// Of what was wanted: less, and the machine has no more.
const ACHIEVED: f64 = 0.97;

const SETTLE: Duration = Duration::from_secs(3);

const A_SECOND: &str = "1/s";

pub fn signals(bed: &Bed, book: &Notebook) -> Result<()> {
    delivery(bed, book)?;
    ingest(bed, book)?;
    sustained(bed, book)?;
    store(bed, book)
}

fn start(bed: &Bed, count: u32) -> Result<Vec<Worker<'_>>> {
    (0..count).map(|_| bed.program.start(bed.node.container())).collect()
}

/// What all of them execute together. A second, and how many there were.
fn execute(workers: &mut [Worker<'_>], a_second: u32, times: u32) -> Result<(f64, u32)> {
    for worker in &mut *workers {
        worker.begin(NC, a_second, times)?;
    }
    let mut longest = Duration::ZERO;
    for worker in &mut *workers {
        longest = longest.max(worker.finish()?);
    }
    let all = times * u32::try_from(workers.len())?;
    Ok((f64::from(all) / longest.as_secs_f64(), all))
}

fn end(workers: Vec<Worker<'_>>) -> Result<()> {
    workers.into_iter().try_for_each(Worker::delete)
}

fn delivery(bed: &Bed, book: &Notebook) -> Result<()> {
    let seconds = u32::try_from(bed.rounds(60, 10, 10, 5))?;
    let mut workers = start(bed, DELIVERED_A_SECOND / PACE)?;
    // A container's first signals wait for its image's name.
    execute(&mut workers, PACE, PACE * WARM_UP_SECONDS)?;
    sleep(SETTLE);
    let watcher = watch(&bed.node.paths().socket(), (DELIVERED_A_SECOND * seconds) as usize);
    let (rate, all) = execute(&mut workers, PACE, PACE * seconds)?;
    let seen = join(watcher)?;
    end(workers)?;
    let took: Samples = seen.iter().map(|seen| seen.after.as_secs_f64() * 1000.0).collect();
    book.add(Figure::single("executions a second while delivery was measured", A_SECOND, rate));
    book.add(Figure::single("signals delivered, of each exec", "ratio", took_of(took.len(), all)));
    book.add(Figure::median("exec to watch, median", MS, &took));
    book.add(Figure::tail("exec to watch, p99", MS, 0.99, &took).at_most_if(!bed.emulated(), 10.0));
    book.add(Figure::tail("exec to watch, p99.9", MS, 0.999, &took));
    book.add(Figure::tail("exec to watch, longest", MS, 1.0, &took));
    book.draw(Plot {
        name: "delivery".to_owned(),
        title: format!("from exec to watcher at {rate:.0} signals a second"),
        x: "ms".to_owned(),
        y: "% of the signals".to_owned(),
        lines: BTreeMap::from([("signals".to_owned(), took.distribution())]),
        ..Plot::default()
    });
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // of some millions
fn took_of(part: usize, all: u32) -> f64 {
    part as f64 / f64::from(all)
}

/// A full ring buffer, read as fast as the agent can.
fn ingest(bed: &Bed, book: &Notebook) -> Result<()> {
    let mut rates = Vec::new();
    for _ in 0..bed.rounds(5, 2, 2, 1) {
        // New ones, of which none has made anything.
        let mut workers = start(bed, INGESTED / AT_ONCE)?;
        let watcher = watch(&bed.node.paths().socket(), INGESTED as usize);
        let signal = |signal| bed.node.agent().as_ref().context("no agent")?.signal(signal);
        signal(Signal::STOP)?;
        let executed = execute(&mut workers, 1_000_000, AT_ONCE);
        let begun = Instant::now();
        signal(Signal::CONT)?;
        executed?;
        let seen = join(watcher)?;
        end(workers)?;
        let last = seen.last().context("no signal came")?.at.duration_since(begun);
        ensure!(seen.len() == INGESTED as usize, "{} of {INGESTED} signals came", seen.len());
        rates.push(f64::from(INGESTED) / last.as_secs_f64());
    }
    book.add(Figure::median(
        "ingested from a full ring buffer, stored and watched",
        A_SECOND,
        &rates.into_iter().collect(),
    ));
    Ok(())
}

/// The highest rate at which nothing is lost, as far as the machine can execute so much; and what the agent takes after very many.
fn sustained(bed: &Bed, book: &Notebook) -> Result<()> {
    let client = Client::connect(&bed.node.paths().socket())?;
    let before = client.losses()?;
    let lost = || -> Result<BTreeMap<String, u64>> {
        let mut losses = client.losses()?;
        // These are none: what is seen again is a signal of its own.
        losses.retain(|name, count| name != "folds_forgotten" && before.get(name) != Some(count));
        Ok(losses)
    };
    let seconds = u32::try_from(bed.rounds(20, 5, 5, 3))?;
    let mut workers = Vec::new();
    let mut best = None;
    let first = client.status()?.last_signal_id;
    let mut told = first;
    for rate in RATES {
        while workers.len() < (rate / PACE) as usize {
            workers.push(bed.program.start(bed.node.container())?);
        }
        let (achieved, all) = execute(&mut workers, PACE, PACE * seconds)?;
        told = drained(&client, told, all)?;
        let losses = lost()?;
        if !losses.is_empty() {
            book.note(format!("at {achieved:.0} signals a second something was lost: {losses:?}"));
            break;
        }
        best = Some(achieved);
        if achieved < f64::from(rate) * ACHIEVED {
            book.note(format!(
                "the machine executes no more than {achieved:.0} of {rate} tools a second; nothing was lost"
            ));
            break;
        }
    }
    if let Some(best) = best {
        book.add(Figure::single("sustained without loss", A_SECOND, best));
    }
    let wanted = if bed.quick { 50_000 } else { 1_000_000 };
    while told < first + wanted {
        let (_, all) = execute(&mut workers, PACE, PACE * seconds)?;
        told = drained(&client, told, all)?;
    }
    end(workers)?;
    sleep(SETTLE);
    let goal = !bed.quick;
    let told = told - first;
    book.add_to("memory", agent(&bed.node, &format!("agent, after {} k signals", told / 1000))?.at_most_if(goal, 40.0));
    book.note(format!("of {told} signals in a row these were lost: {:?}", lost()?));
    Ok(())
}

/// Waits until so many more are stored. How many that are, with those that were stored and have had to go.
fn drained(client: &Client, before: u64, more: u32) -> Result<u64> {
    let mut last = (0, Instant::now());
    eventually(|| {
        let stored = client.status()?.last_signal_id;
        if stored > last.0 {
            last = (stored, Instant::now());
        }
        ensure!(
            stored >= before + u64::from(more) || last.1.elapsed() > SETTLE,
            "{stored} of {}",
            before + u64::from(more)
        );
        Ok(stored)
    })
}
