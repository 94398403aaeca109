//! What grows with containers, policies and the catalogue, and what must not: the cost of an exec.

use std::{collections::BTreeMap, fmt::Write, fs, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use portcullis_bpf::pins::Pins;
use portcullis_integration_tests::{containerd::Container, eventually::eventually};
use portcullis_policy::source::SHIPPED_DEFAULT;

use crate::{
    Bed,
    exec::with_and_without,
    figure::{Figure, Goal, MB, MS, Notebook, Plot, RATIO, Samples, by_turns, ratios},
    guarding::{Cgroups, Switch},
    interrupt,
    kernel::{locked, memory_in_use},
    start::run_one,
    worker::Worker,
};

const SETTLE: Duration = Duration::from_secs(2);

/// What is guarded at once.
const CONTAINERS: [usize; 4] = [1, 10, 100, 500];
const POLICIES: [usize; 4] = [1, 10, 50, 200];
/// Beside the shipped ones.
const NAMES: [usize; 3] = [100, 1000, 5000];

/// In a quick run only the least and the most.
fn steps<const N: usize>(bed: &Bed, all: [usize; N]) -> impl Iterator<Item = usize> {
    let quick = bed.quick;
    all.into_iter()
        .enumerate()
        .filter(move |(place, _)| !quick || *place == 0 || *place + 1 == N)
        .map(|(_, count)| count)
}

/// Nothing grows.
const SAME: Goal = Goal::AtMostWithinNoise(1.0);

pub fn scale(bed: &Bed, book: &Notebook) -> Result<()> {
    containers(bed, book)?;
    policies(bed, book)?;
    names(bed, book)?;
    if bed.emulated() { Ok(()) } else { starts(bed, book) }
}

/// What an exec costs in a container under guard, compared with the same container without.
fn cost(bed: &Bed, worker: &mut Worker<'_>) -> Result<Samples> {
    // A new one each time: policies change.
    let mut switch = Switch::new(bed, worker.pid()?)?;
    sleep(SETTLE);
    let [guarded, without] = with_and_without(&mut switch, worker, bed.rounds(500, 60, 30, 10))?;
    Ok(ratios(&guarded.each, &without.each))
}

/// Costs by how many there are.
struct Growth {
    what: &'static str,
    all: Vec<(usize, Samples)>,
}

impl Growth {
    fn new(what: &'static str) -> Self {
        Self { what, all: Vec::new() }
    }

    fn add(&mut self, book: &Notebook, count: usize, costs: Samples) {
        let name = format!("exec to unguarded, {}: {count}", self.what);
        book.add(Figure::median(&name, RATIO, &costs));
        self.all.push((count, costs));
    }

    #[allow(clippy::cast_precision_loss)] // of some thousands
    fn finish(self, book: &Notebook, goal: Option<Goal>) {
        let (Some((least, first)), Some((most, last))) = (self.all.first(), self.all.last()) else { return };
        let name = format!("growth of the exec, {} {least} to {most}", self.what);
        let figure = Figure::median(&name, RATIO, &last.over(first.median()));
        book.add(goal.into_iter().fold(figure, Figure::goal));
        let points = |q: f64| self.all.iter().map(|(count, costs)| (*count as f64, costs.quantile(q))).collect();
        book.draw(Plot {
            name: self.what.to_owned(),
            title: format!("exec in a guarded container to one without guard, by the number of {}", self.what),
            x: self.what.to_owned(),
            y: "ratio".to_owned(),
            logarithmic: true,
            lines: BTreeMap::from([
                ("a quarter".to_owned(), points(0.25)),
                ("median".to_owned(), points(0.5)),
                ("three quarters".to_owned(), points(0.75)),
            ]),
            ..Plot::default()
        });
    }
}

/// Guards on cgroups alone, so that there can be as many as on a large node whatever memory there is.
#[allow(clippy::cast_precision_loss)] // of some hundreds
fn containers(bed: &Bed, book: &Notebook) -> Result<()> {
    let mut worker = bed.program.start(bed.stock())?;
    let other = bed.node.container().start()?;
    let mut cgroups = Cgroups::new(bed)?;
    let pins = Pins::at(&bed.node.policy_set()?.pins);
    let mut growth = Growth::new("containers");
    let mut attaching = Vec::new();
    for count in steps(bed, CONTAINERS) {
        let (before, used) = (attaching.len(), memory_in_use()?);
        // Two are containers.
        while attaching.len() + 2 < count {
            attaching.push(cgroups.attach()?);
        }
        let new = attaching.get(before..).unwrap_or_default();
        if !new.is_empty() {
            let took: Samples = new.iter().copied().collect();
            book.add(Figure::median(&format!("attach, up to {count} containers"), MS, &took).at_most(1.0));
            // Of few it is lost among what others do.
            if new.len() >= 100 {
                sleep(SETTLE);
                let each = (memory_in_use()? - used) / new.len() as f64;
                book.add(Figure::single(
                    &format!("kernel memory of a cgroup and its guard, up to {count}"),
                    "kB",
                    each,
                ));
            }
        }
        let locked = locked(&pins)?;
        book.add(Figure::single(&format!("kernel memory of all maps, {count} containers"), MB, locked.maps / 1e6));
        if count == 1 {
            book.add(Figure::single("kernel memory of all programs", MB, locked.programs / 1e6));
        }
        growth.add(book, count, cost(bed, &mut worker)?);
    }
    growth.finish(book, Some(SAME));
    drop(cgroups);
    worker.delete()?;
    other.delete()
}

/// The shipped policy under other names, each for a namespace that there is not.
fn policies(bed: &Bed, book: &Notebook) -> Result<()> {
    let mut worker = bed.program.start(bed.stock())?;
    let other = bed.node.container().start()?;
    let mut growth = Growth::new("policies");
    let directory = bed.node.paths().policy_dir();
    let file = |number: usize| directory.join(format!("bench-{number}.yaml"));
    let mut there = 1;
    for count in steps(bed, POLICIES) {
        while there < count {
            let policy = SHIPPED_DEFAULT
                .replace("name: default", &format!("name: bench-{there}"))
                .replace("\nspec:\n", &format!("\nspec:\n  select:\n    namespaces: [bench-{there}]\n"));
            fs::write(file(there), policy)?;
            there += 1;
        }
        bed.node.reload()?;
        eventually(|| {
            // The default is none of them.
            let known = bed.node.policy_set()?.policies.len() + 1;
            ensure!(known == count, "{known} policies are in force");
            Ok(())
        })?;
        growth.add(book, count, cost(bed, &mut worker)?);
    }
    growth.finish(book, Some(SAME));
    (1..there).try_for_each(|number| fs::remove_file(file(number)))?;
    bed.node.reload()?;
    worker.delete()?;
    other.delete()
}

/// Names in the catalogue, beside the shipped ones.
fn names(bed: &Bed, book: &Notebook) -> Result<()> {
    let mut worker = bed.program.start(bed.stock())?;
    let other = bed.node.container().start()?;
    let mut growth = Growth::new("names added to the catalogue");
    for count in steps(bed, NAMES) {
        let mut text = "[category.bench]\ntitle = \"what the benchmark adds\"\nseverity = \"low\"\ntechniques = [\"T1095\"]\n\n[category.bench.tools]\n".to_owned();
        for number in 0..count {
            writeln!(text, "bench-tool-{number} = {{}}")?;
        }
        let catalog = bed.node.catalog(&text)?;
        growth.add(book, count, cost(bed, &mut worker)?);
        drop(catalog);
    }
    growth.finish(book, Some(SAME));
    worker.delete()?;
    other.delete()
}

/// How long a start takes where many containers are.
fn starts(bed: &Bed, book: &Notebook) -> Result<()> {
    let most = bed.rounds(500, 100, 10, 10);
    let mut containers: Vec<Container<'_>> = Vec::new();
    let mut growth = Vec::new();
    for count in CONTAINERS.into_iter().filter(|count| *count <= most) {
        while containers.len() < count {
            interrupt::check()?;
            containers.push(bed.node.container().start()?);
        }
        let [ours, stock] = by_turns::<2>(bed.rounds(20, 5, 5, 5), |which| run_one(bed, which))?;
        let paired = ratios(&ours, &stock);
        let ours: Samples = ours.into_iter().collect();
        book.add(Figure::median(&format!("start, {count} containers on the node"), MS, &ours));
        book.add(Figure::median(&format!("start to the stock shim's, {count} containers on the node"), RATIO, &paired));
        #[allow(clippy::cast_precision_loss)] // of some hundreds
        growth.push((count as f64, ours.median()));
    }
    book.draw(Plot {
        name: "start".to_owned(),
        title: "ctr run --rm … true, by the number of containers on the node".to_owned(),
        x: "containers".to_owned(),
        y: "ms".to_owned(),
        logarithmic: true,
        lines: BTreeMap::from([("portcullis, median".to_owned(), growth)]),
        ..Plot::default()
    });
    containers.into_iter().try_for_each(Container::delete)
}
