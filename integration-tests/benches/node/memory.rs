//! What stays in memory, as proportional set sizes: what is shared with others counts in part.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};
use portcullis_integration_tests::{containerd::Container, node::Node};

use crate::{
    Bed,
    figure::{Figure, MB, Notebook, Samples},
    interrupt,
    kernel::pss,
};

/// What a start has allocated is given back.
const SETTLE: Duration = Duration::from_secs(3);

const COUNTS: [usize; 3] = [1, 10, 100];

pub fn memory(bed: &Bed, book: &Notebook) -> Result<()> {
    let most = bed.rounds(100, 100, 10, 1);
    // Where that takes a minute, it is new anyway.
    if !bed.emulated() {
        bed.new_agent()?;
    }
    sleep(SETTLE);
    book.add(agent(&bed.node, "agent, idle")?.at_most(15.0));
    let mut containers = Vec::new();
    for count in COUNTS.into_iter().filter(|count| *count <= most) {
        while containers.len() < count {
            interrupt::check()?;
            containers.push(bed.node.container().start()?);
        }
        sleep(SETTLE);
        shims(book, &containers)?;
        let figure = agent(&bed.node, &format!("agent, {}", of_containers(count)))?;
        book.add(figure.at_most_if(count == 100, 20.0));
    }
    containers.into_iter().try_for_each(Container::delete)?;
    stock(bed, book, 10.min(most))
}

fn of_containers(count: usize) -> String {
    if count == 1 { "1 container".to_owned() } else { format!("{count} containers") }
}

pub fn agent(node: &Node, name: &str) -> Result<Figure> {
    let pid = node.agent().as_ref().context("no agent")?.pid();
    Ok(Figure::single(name, MB, pss(i32::try_from(pid)?)?))
}

fn shims(book: &Notebook, containers: &[Container<'_>]) -> Result<()> {
    let node = containers.first().context("no container")?.containerd();
    let (mut ours, mut inner) = (Vec::new(), Vec::new());
    for container in containers {
        let (our, stock) = node.shims_of(container.id())?;
        ours.push(pss(our.as_raw_nonzero().get())?);
        inner.push(pss(stock.as_raw_nonzero().get())?);
    }
    let with = of_containers(containers.len());
    let (ours, inner): (Samples, Samples) = (ours.into_iter().collect(), inner.into_iter().collect());
    book.add(Figure::median(&format!("shim, each of {with}"), MB, &ours).at_most(1.0));
    book.add(Figure::median(&format!("inner shim, each of {with}"), MB, &inner));
    Ok(())
}

/// The stock shim by itself, to compare with.
fn stock(bed: &Bed, book: &Notebook, count: usize) -> Result<()> {
    let containers = (0..count).map(|_| bed.stock().start()).collect::<Result<Vec<_>>>()?;
    sleep(SETTLE);
    let mut all = Vec::new();
    for pid in bed.node.containerd().shims() {
        all.push(pss(pid.as_raw_nonzero().get())?);
    }
    let all: Samples = all.into_iter().collect();
    book.add(Figure::median(&format!("stock shim without ours, each of {}", of_containers(count)), MB, &all));
    containers.into_iter().try_for_each(Container::delete)
}
