//! What it takes to start a container, against the stock shim: `ctr run --rm … true`.

use std::{process::Stdio, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    Bed,
    figure::{Figure, MS, Notebook, Plot, RATIO, Samples, by_turns, ratios},
    trace::{Span, Tracing},
};

const WARM_UP: usize = 2;

pub fn start(bed: &Bed, book: &Notebook) -> Result<()> {
    alone(bed, book)?;
    // A node has others.
    let other = bed.node.container().start()?;
    beside_another(bed, book)?;
    where_time_goes(bed, book)?;
    other.delete()
}

/// Where no other container is under guard: the kernel has to attach to its hooks as well.
fn alone(bed: &Bed, book: &Notebook) -> Result<()> {
    let [ours, stock] = by_turns::<2>(bed.rounds(40, 5, 5, 2), |which| run_one(bed, which))?;
    let ours_all: Samples = ours.iter().copied().collect();
    book.add(Figure::median(
        "the only guarded container of the node, to the stock shim's",
        RATIO,
        &ratios(&ours, &stock),
    ));
    book.add(Figure::median("the only guarded container of the node", MS, &ours_all));
    Ok(())
}

fn beside_another(bed: &Bed, book: &Notebook) -> Result<()> {
    let pairs = bed.rounds(200, 20, 20, 4);
    for _ in 0..WARM_UP {
        run_one(bed, 0)?;
        run_one(bed, 1)?;
    }
    let [ours, stock] = by_turns::<2>(pairs, |which| run_one(bed, which))?;
    let paired = ratios(&ours, &stock);
    let (ours, stock): (Samples, Samples) = (ours.into_iter().collect(), stock.into_iter().collect());
    book.add(Figure::median("start to end, paired", RATIO, &paired));
    book.add(Figure::tails("p50 to the stock shim's", 0.5, &ours, &stock).at_most_if(!bed.emulated(), 1.03));
    book.add(Figure::tails("p95 to the stock shim's", 0.95, &ours, &stock).at_most_if(!bed.emulated(), 1.05));
    for (name, samples) in [("portcullis", &ours), ("stock", &stock)] {
        for (quantile, q) in [("p50", 0.5), ("p95", 0.95)] {
            book.add(Figure::tail(&format!("{name}, {quantile}"), MS, q, samples));
        }
    }
    let lines = [("portcullis", &ours), ("stock", &stock)];
    book.draw(Plot {
        name: "time".to_owned(),
        title: "ctr run --rm … true, from start to end".to_owned(),
        x: "ms".to_owned(),
        y: "% of the starts".to_owned(),
        lines: lines.into_iter().map(|(name, samples)| (name.to_owned(), samples.distribution())).collect(),
        ..Plot::default()
    });
    Ok(())
}

/// Milliseconds of one.
pub fn run_one(bed: &Bed, which: usize) -> Result<f64> {
    let builder = if which == 0 { bed.node.container() } else { bed.stock() };
    let mut command = builder.command(&["--rm"], &["true"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begun = Instant::now();
    let status = command.status()?;
    let took = begun.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took.as_secs_f64() * 1000.0)
}

/// What a start runs: each execution, the median of when it began and of when it ended.
fn where_time_goes(bed: &Bed, book: &Notebook) -> Result<()> {
    let tracing = match Tracing::start() {
        Ok(tracing) => tracing,
        Err(error) => {
            book.note(format!("no trace of starts: {error:#}"));
            return Ok(());
        }
    };
    for (which, label) in [(0, "portcullis"), (1, "stock")] {
        let mut all: Vec<Vec<Span>> = Vec::new();
        for _ in 0..bed.rounds(30, 5, 5, 2) {
            tracing.clear()?;
            run_one(bed, which)?;
            all.push(tracing.spans()?);
        }
        let mut bars = Vec::new();
        for span in all.first().into_iter().flatten() {
            let same = || all.iter().flatten().filter(|other| other.name == span.name);
            let median = |values: Samples| values.median() * 1000.0;
            let begin = median(same().map(|other| other.begin).collect());
            let end = median(same().filter_map(|other| other.end).collect());
            bars.push((span.name.clone(), begin, end));
        }
        let whole = bars.first().map_or(0.0, |(_, _, end)| *end);
        let told = bars.iter().map(|(name, begin, end)| {
            let end = if end.is_finite() { format!("{end:.1}") } else { "the end".to_owned() };
            format!("`{name}` {begin:.1} to {end}")
        });
        book.note(format!("what one start by {label} runs, in ms: {}", told.collect::<Vec<_>>().join(", ")));
        book.draw(Plot {
            name: format!("trace-{label}"),
            title: format!("what ctr run --rm … true runs with {label}, medians"),
            x: "ms".to_owned(),
            // The resident shims end soon after ctr.
            bars: bars
                .into_iter()
                .map(|(name, begin, end)| (name, begin, if end.is_finite() { end } else { whole }))
                .collect(),
            ..Plot::default()
        });
    }
    Ok(())
}
