//! What an exec costs: fork, execve of a static program, exit.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context, Result};
use portcullis_bpf::pins::Pins;

use crate::{
    Bed,
    figure::{Figure, Notebook, RATIO, Samples, by_turns, is_lsm, ratios},
    guarding::Switch,
    kernel::{Statistics, run_times},
    worker::{NC, NOOP, Took, Worker},
};

/// So many executions are one measurement: some milliseconds on a real machine, so that what disturbs one disturbs few.
const BATCH: u32 = 20;

/// What a change of the guard leaves behind is over after so many.
const AFTER_CHANGE: u32 = 5;

/// Executions that are over before anything counts.
const WARM_UP: u32 = 200;

/// Of the processes themselves, without what an agent does meanwhile, and others on the machine.
const OWN_TIME: &str = "processes' own CPU time";

/// What batches took, each execution, in nanoseconds.
#[derive(Default)]
pub struct Batches {
    pub each: Vec<f64>,
    pub each_on_cpu: Vec<f64>,
}

/// What follows a start or an end of guard and agent is over.
const SETTLE: Duration = Duration::from_secs(2);

pub fn exec(bed: &Bed, book: &Notebook) -> Result<()> {
    let mut stock = bed.program.start(bed.stock())?;
    stock.time(NOOP, WARM_UP)?;
    without_match(bed, book, &mut stock)?;
    in_containers(bed, book, &mut stock)?;
    run_time(bed, book, &mut stock)?;
    outside(bed, book, &mut stock)?;
    stock.delete()
}

/// Batches by turns, in the same container with a guard and without.
pub fn with_and_without(switch: &mut Switch, worker: &mut Worker<'_>, rounds: usize) -> Result<[Batches; 2]> {
    let mut batches = [Batches::default(), Batches::default()];
    by_turns::<2>(rounds, |which| {
        switch.set(which == 0)?;
        worker.time(NOOP, AFTER_CHANGE)?;
        let took = worker.time(NOOP, BATCH)?;
        if let Some(batches) = batches.get_mut(which) {
            batches.each.push(took.each);
            batches.each_on_cpu.push(took.each_on_cpu);
        }
        Ok(took.each)
    })?;
    switch.set(false)?;
    Ok(batches)
}

/// What nothing has to do with: the figure that has a goal, and two containers without guard to show what differences mean nothing.
fn without_match<'a>(bed: &'a Bed, book: &Notebook, stock: &mut Worker<'a>) -> Result<()> {
    // As on a node where others are guarded: what the kernel does for the first is not an exec's.
    let other = bed.node.container().start()?;
    let mut switch = Switch::new(bed, stock.pid()?)?;
    sleep(SETTLE);
    let rounds = bed.rounds(1500, 250, 80, 30);
    let [guarded, without] = with_and_without(&mut switch, stock, rounds)?;
    let goal = if is_lsm(bed.node.backend()) { 1.02 } else { 1.01 };
    let elapsed = ratios(&guarded.each, &without.each);
    let on_cpu = ratios(&guarded.each_on_cpu, &without.each_on_cpu);
    book.add(Figure::median("guarded, no match, to the same container unguarded", RATIO, &elapsed).at_most(goal));
    book.add(Figure::median(&format!("the same, {OWN_TIME}"), RATIO, &on_cpu).at_most(goal));
    let mut second = bed.program.start(bed.stock())?;
    second.time(NOOP, WARM_UP)?;
    let [one, two] = by_turns::<2>(rounds / 2, |which| {
        let worker = if which == 0 { &mut *stock } else { &mut second };
        Ok(worker.time(NOOP, BATCH)?.each)
    })?;
    book.add(Figure::median("two unguarded containers, one to the other", RATIO, &ratios(&one, &two)));
    second.delete()?;
    drop(switch);
    other.delete()
}

fn in_containers(bed: &Bed, book: &Notebook, stock: &mut Worker<'_>) -> Result<()> {
    let mut detect = bed.program.start(bed.node.container())?;
    let mut enforce = bed.program.start(bed.node.container().mode("enforce"))?;
    for worker in [&mut detect, &mut enforce] {
        worker.time(NOOP, WARM_UP)?;
    }
    sleep(SETTLE);
    let (mut elapsed, mut on_cpu) = (Vec::new(), Vec::new());
    by_turns::<5>(bed.rounds(800, 100, 40, 15), |which| {
        let took = match which {
            0 => stock.time(NOOP, BATCH),
            1 => detect.time(NOOP, BATCH),
            2 => stock.time(NC, BATCH),
            3 => detect.time(NC, BATCH),
            _ => enforce.time(NC, BATCH),
        }?;
        elapsed.push((which, took.each));
        on_cpu.push((which, took.each_on_cpu));
        Ok(0.0)
    })?;
    let of = |all: &[(usize, f64)], wanted: usize| -> Vec<f64> {
        all.iter().filter(|(which, _)| *which == wanted).map(|(_, value)| *value).collect()
    };
    for (label, all) in [(String::new(), &elapsed), (format!(", {OWN_TIME}"), &on_cpu)] {
        let [plain, detected, plain_nc, matched, denied] = [0, 1, 2, 3, 4].map(|which| of(all, which));
        let ratio =
            |name: &str, of: &[f64], to: &[f64]| Figure::median(&format!("{name}{label}"), RATIO, &ratios(of, to));
        book.add(ratio("guarded in detect, no match, to another container unguarded", &detected, &plain));
        book.add(ratio("guarded in detect, match, to unguarded", &matched, &plain_nc));
        book.add(ratio("guarded in enforce, stopped, to unguarded", &denied, &plain_nc));
    }
    let unit = if bed.emulated() { "1000 instructions" } else { "µs" };
    for (which, name) in [
        (0, "unguarded, each"),
        (1, "guarded, no match, each"),
        (3, "guarded in detect, match, each"),
        (4, "guarded in enforce, stopped, each"),
    ] {
        let samples: Samples = of(&elapsed, which).into_iter().collect();
        book.add(Figure::median(name, unit, &samples.over(1000.0)));
    }
    detect.delete()?;
    enforce.delete()
}

/// By the kernel's own statistics.
fn run_time<'a>(bed: &'a Bed, book: &Notebook, stock: &mut Worker<'a>) -> Result<()> {
    let mut detect = bed.program.start(bed.node.container())?;
    detect.time(NOOP, WARM_UP)?;
    let times = if bed.emulated() { 1000 } else { 2000 };
    let pins = Pins::at(&bed.node.policy_set()?.pins);
    let unit = if bed.emulated() { "instructions" } else { "ns" };
    let _statistics = Statistics::enable()?;
    for (place, worker) in [("in a guarded container", &mut detect), ("outside", stock)] {
        let before = run_times(&pins)?;
        worker.time(NOOP, times)?;
        let mut all = 0.0;
        for (name, after) in run_times(&pins)? {
            let before = before.get(&name).copied().unwrap_or_default();
            let (runs, took) = (after.runs - before.runs, after.nanoseconds - before.nanoseconds);
            // Others execute something as well, once in a while.
            if runs >= f64::from(times) / 2.0 {
                let each = took / f64::from(times);
                all += each;
                let runs = runs / f64::from(times);
                book.add(Figure::single(&format!("{name}, {place}, per exec ({runs:.1} runs)"), unit, each));
            }
        }
        book.add(Figure::single(&format!("all programs, {place}, per exec"), unit, all));
    }
    detect.delete()
}

/// What processes pay that are in no guarded container, here in the stock shim's: with the programs of the node alone, and with a
/// guarded container beside them. Each is compared with what was measured before and after it with nothing attached.
fn outside(bed: &Bed, book: &Notebook, stock: &mut Worker<'_>) -> Result<()> {
    let batches = bed.rounds(100, 40, 20, 10);
    let mut measure = |all: &mut Batches| -> Result<()> {
        sleep(SETTLE);
        stock.time(NOOP, WARM_UP)?;
        let took = (0..batches).map(|_| stock.time(NOOP, BATCH)).collect::<Result<Vec<_>>>()?;
        let median = |value: fn(&Took) -> f64| took.iter().map(value).collect::<Samples>().median();
        all.each.push(median(|took| took.each));
        all.each_on_cpu.push(median(|took| took.each_on_cpu));
        Ok(())
    };
    let (mut nothing, mut agent, mut guarded) = (Batches::default(), Batches::default(), Batches::default());
    for _ in 0..bed.rounds(10, 3, 2, 1) {
        detach_all(bed)?;
        measure(&mut nothing)?;
        bed.node.restart_agent()?;
        measure(&mut agent)?;
        let container = bed.node.container().start()?;
        measure(&mut guarded)?;
        container.delete()?;
    }
    detach_all(bed)?;
    measure(&mut nothing)?;
    bed.node.restart_agent()?;
    let around =
        |nothing: &[f64]| -> Vec<f64> { nothing.windows(2).map(|pair| pair.iter().sum::<f64>() / 2.0).collect() };
    let (elapsed, on_cpu) = (around(&nothing.each), around(&nothing.each_on_cpu));
    for (name, of, goal) in [
        ("outside, a guarded container on the node, to nothing attached", &guarded, true),
        ("outside, agent without containers, to nothing attached", &agent, false),
    ] {
        book.add(Figure::median(name, RATIO, &ratios(&of.each, &elapsed)).at_most_if(goal, 1.005));
        let own = format!("{name}, {OWN_TIME}");
        book.add(Figure::median(&own, RATIO, &ratios(&of.each_on_cpu, &on_cpu)).at_most_if(goal, 1.005));
    }
    Ok(())
}

/// Ends the agent and takes its pins away, and so all programs.
fn detach_all(bed: &Bed) -> Result<()> {
    drop(bed.node.agent().take().context("no agent")?);
    fs::remove_dir_all(&bed.node.paths().bpffs_root).context("removing the pins")
}
