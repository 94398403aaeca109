//! What runs came to: a table, plots, and docs/performance.md. Runs are files DIRECTORY/PLACE.json; where there are also
//! PLACE-1.json and so on, these are of several boots, and PLACE.json is made of them.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    figure::{Figure, Goal, Run, Samples},
    plot::draw,
};

/// In this order.
const PLACES: [(&str, &str); 2] = [("host", "On a machine"), ("vm", "In a virtual machine")];

const HEAD: &str = "# What it costs

Made by `PORTCULLIS_REGENERATE=1 scripts/bench` of what was measured with real containers; `scripts/bench --report` makes it of the last run.
Nothing here is asserted anywhere: other machines have other figures. What is compared was measured by turns in one run.

A figure is the median; beside it is between what half of the measurements are. Of a tail (p95, p99) it is between what half
come to when the measurements are drawn again, and of several boots the least and the most that one came to. *goal* is what is to be
reached, and whether it is.
";

const GOALS: &str = "
## The goals

| where | what | | | half between | goal |
|---|---|---:|---|---|---|
";

/// What a program can't know: written by hand.
const NOTES: &str = include_str!("notes.md");

pub fn report(directory: &Path, document: Option<&Path>) -> Result<()> {
    let (mut goals, mut text) = (GOALS.to_owned(), String::new());
    let mut found = false;
    for (place, title) in PLACES {
        let Some(run) = run_at(directory, place)? else { continue };
        found = true;
        for figure in run.figures.iter().filter(|figure| figure.goal.is_some()) {
            writeln!(goals, "| {place}, {} {}", figure.section, row(figure))?;
        }
        fs::write(directory.join(format!("{place}.json")), serde_json::to_vec_pretty(&run)?)?;
        print(place, &run);
        for plot in &run.plots {
            let file = directory.join(format!("{place}-{}-{}.svg", plot.section, plot.name.replace(' ', "-")));
            draw(plot, &file).with_context(|| file.display().to_string())?;
        }
        write_place(&mut text, title, &run)?;
    }
    ensure!(found, "{}: no run", directory.display());
    let text = format!("{HEAD}{goals}\n{NOTES}{text}");
    document.map_or(Ok(()), |document| fs::write(document, text).with_context(|| document.display().to_string()))
}

fn read(file: &Path) -> Result<Option<Run>> {
    if !file.exists() {
        return Ok(None);
    }
    let bytes = fs::read(file)?;
    Ok(Some(serde_json::from_slice(&bytes).with_context(|| file.display().to_string())?))
}

fn run_at(directory: &Path, place: &str) -> Result<Option<Run>> {
    let mut boots = Vec::new();
    while let Some(run) = read(&directory.join(format!("{place}-{}.json", boots.len() + 1)))? {
        boots.push(run);
    }
    let run = if boots.is_empty() { read(&directory.join(format!("{place}.json")))? } else { Some(of_boots(boots)) };
    Ok(run.map(by_section))
}

/// A section may have measured for another one.
fn by_section(mut run: Run) -> Run {
    let mut sections: Vec<String> = Vec::new();
    for figure in &run.figures {
        if !sections.contains(&figure.section) {
            sections.push(figure.section.clone());
        }
    }
    run.figures.sort_by_key(|figure| sections.iter().position(|section| *section == figure.section));
    run
}

/// The median of several boots, between the least and the most.
fn of_boots(mut boots: Vec<Run>) -> Run {
    let mut values: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for figure in boots.iter().flat_map(|run| &run.figures) {
        values.entry((figure.section.clone(), figure.name.clone())).or_default().push(figure.value);
    }
    let count = boots.len();
    let mut run = boots.remove(0);
    run.machine.boots = count;
    if count > 1 {
        for figure in &mut run.figures {
            let values = values.remove(&(figure.section.clone(), figure.name.clone())).unwrap_or_default();
            let samples: Samples = values.into_iter().collect();
            (figure.low, figure.value, figure.high) = (samples.quantile(0.0), samples.median(), samples.quantile(1.0));
        }
    }
    run
}

fn number(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 1000.0 => 0,
        value if value >= 100.0 => 1,
        value if value >= 10.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn spread(figure: &Figure) -> String {
    if figure.samples == 1 && figure.low >= figure.high {
        String::new()
    } else {
        format!("{} – {}", number(figure.low), number(figure.high))
    }
}

fn goal(figure: &Figure) -> String {
    let Some(goal) = figure.goal else { return String::new() };
    let most = match goal {
        Goal::AtMost(most) => number(most),
        Goal::AtMostWithinNoise(most) => format!("{} within noise", number(most)),
    };
    format!("{most}, {}", if figure.reached() == Some(true) { "reached" } else { "**missed**" })
}

fn machine(run: &Run) -> String {
    let machine = &run.machine;
    let boots = if machine.boots > 1 { format!("; {} boots", machine.boots) } else { String::new() };
    let quick = if machine.quick { "; a quick run" } else { "" };
    format!(
        "{}: {} CPUs, {} GB; Linux {}, backend {}, containerd {}, runc {}; load {} at the beginning; {}, commit {}{boots}{quick}",
        machine.name,
        machine.cpus,
        machine.memory_gb,
        machine.kernel,
        machine.backend,
        machine.containerd,
        machine.runc,
        machine.load,
        machine.date,
        machine.commit
    )
}

fn print(place: &str, run: &Run) {
    println!("\n{place}: {}\n", machine(run));
    let mut section = "";
    for figure in &run.figures {
        if figure.section != section {
            section = &figure.section;
            println!("{section}");
        }
        let (value, spread) = (number(figure.value), spread(figure));
        println!("  {:<66} {value:>9} {:<18} {spread:<22} {}", figure.name, figure.unit, goal(figure));
    }
    for (section, note) in &run.notes {
        println!("{section}: {note}");
    }
}

fn write_place(text: &mut String, title: &str, run: &Run) -> Result<()> {
    writeln!(text, "\n## {title}\n{}.", machine(run))?;
    if run.machine.counts_instructions {
        writeln!(
            text,
            "Its clock counts instructions, one a nanosecond: times are numbers of instructions, and only ratios can be compared with others."
        )?;
    }
    let mut section = "";
    for figure in &run.figures {
        if figure.section != section {
            if !section.is_empty() {
                write_notes(text, section, run)?;
            }
            section = &figure.section;
            writeln!(text, "\n### {section}\n\n| | | | half between | goal |\n|---|---:|---|---|---|")?;
        }
        writeln!(text, "{}", row(figure))?;
    }
    write_notes(text, section, run)
}

fn row(figure: &Figure) -> String {
    let Figure { name, unit, value, .. } = figure;
    format!("| {name} | {} | {unit} | {} | {} |", number(*value), spread(figure), goal(figure))
}

fn write_notes(text: &mut String, section: &str, run: &Run) -> Result<()> {
    for (_, note) in run.notes.iter().filter(|(of, _)| of == section) {
        writeln!(text, "\n{note}")?;
    }
    Ok(())
}
