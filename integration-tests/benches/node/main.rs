//! What Portcullis costs on a real node: `scripts/bench` runs this binary, on this machine and in a virtual one. Nothing is asserted.
//!
//!   bench measure [--quick] [SECTION]…      measures, and prints one line of JSON (`report::Run`) after a mark
//!   bench report DIRECTORY [DOCUMENT]       prints what the runs in there came to, draws their plots beside them, and writes the document

mod client;
mod exec;
mod figure;
mod filling;
mod guarding;
mod interrupt;
mod kernel;
mod learn;
mod memory;
mod plot;
mod report;
mod scale;
mod signals;
mod start;
mod store;
mod trace;
mod worker;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread::available_parallelism,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use portcullis_bpf::cgroup::hierarchy;
use portcullis_integration_tests::{
    containerd::Builder,
    node::{Node, Setup},
};

use self::{
    figure::{Machine, Notebook, Run},
    worker::Program,
};

/// What the line with the JSON begins with.
const MARK: &str = "bench-run\t";

const STOCK: &str = "io.containerd.runc.v2";

/// What all sections have in common.
struct Bed {
    node: Node,
    program: Program,
    quick: bool,
}

impl Bed {
    fn emulated(&self) -> bool {
        self.node.setup().emulated
    }

    /// How often something is done: on a real machine in a whole run and in a quick one, and the same where each instruction takes
    /// some fifty times as long.
    fn rounds(&self, full: usize, quick: usize, emulated: usize, emulated_quick: usize) -> usize {
        match (self.emulated(), self.quick) {
            (false, false) => full,
            (false, true) => quick,
            (true, false) => emulated,
            (true, true) => emulated_quick,
        }
    }

    /// A container to be started by the stock shim, without guard.
    fn stock(&self) -> Builder<'_> {
        self.node.container().runtime(STOCK)
    }

    fn database(&self) -> PathBuf {
        self.node.paths().directory.join("state/signals.db")
    }

    /// Puts an agent that has seen nothing in the agent's place.
    fn new_agent(&self) -> Result<()> {
        drop(self.node.agent().take());
        for suffix in ["", "-wal", "-shm"] {
            let mut file = self.database().into_os_string();
            file.push(suffix);
            if Path::new(&file).exists() {
                fs::remove_file(&file)?;
            }
        }
        self.node.restart_agent()
    }
}

type Section = (&'static str, fn(&Bed, &Notebook) -> Result<()>);

const SECTIONS: &[Section] = &[
    ("exec", exec::exec),
    ("start", start::start),
    ("learn", learn::learn),
    ("memory", memory::memory),
    ("signals", signals::signals),
    ("scale", scale::scale),
];

/// Where instructions count, and memory is little.
const EMULATED: [&str; 5] = ["exec", "start", "learn", "memory", "scale"];

fn machine(node: &Node, quick: bool) -> Result<Machine> {
    let first_word =
        |file: &str| fs::read_to_string(file).unwrap_or_default().split(' ').next().unwrap_or_default().to_owned();
    let info = fs::read_to_string("/proc/meminfo")?;
    let kb =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let told = |name| env::var(name).unwrap_or_default();
    Ok(Machine {
        name: told("PORTCULLIS_BENCH_MACHINE"),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        backend: node.backend().to_string(),
        containerd: node.version("containerd")?,
        runc: node.version("runc")?,
        cpus: available_parallelism()?.get(),
        memory_gb: kb.unwrap_or_default().div_ceil(1 << 20),
        load: first_word("/proc/loadavg"),
        date: told("PORTCULLIS_BENCH_DATE"),
        commit: told("PORTCULLIS_BENCH_COMMIT"),
        quick,
        counts_instructions: node.setup().emulated,
        boots: 1,
    })
}

/// An agent that is a service has a cgroup for itself; in the machine everything would be in the root.
fn leave_root_cgroup() -> Result<()> {
    let own = hierarchy()?.join("portcullis-bench-node");
    fs::create_dir_all(&own)?;
    fs::write(own.join("cgroup.procs"), "0").with_context(|| own.display().to_string())
}

fn measure(setup: &Setup, quick: bool, wanted: &[String]) -> Result<Run> {
    for name in wanted {
        ensure!(SECTIONS.iter().any(|(known, _)| known == name), "no section {name}");
    }
    if setup.emulated {
        leave_root_cgroup()?;
    }
    let bed = Bed { node: Node::start(setup)?, program: Program::new()?, quick };
    let mut book = Notebook::new(machine(&bed.node, quick)?);
    for (name, section) in SECTIONS {
        interrupt::check()?;
        let usual = !bed.emulated() || EMULATED.contains(name);
        if wanted.iter().any(|wanted| wanted == name) || (wanted.is_empty() && usual) {
            eprintln!(">> {name}");
            book.open(name);
            let begun = Instant::now();
            // The others are worth something by themselves.
            if let Err(error) = section(&bed, &book) {
                eprintln!("error: {name}: {error:#}");
                book.note(format!("not complete: {error:#}"));
            }
            eprintln!("   {name}: {:.0?}", begun.elapsed());
        }
    }
    interrupt::check()?;
    Ok(book.into_run())
}

fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--bench").collect();
    match words.as_slice() {
        ["measure", sections @ ..] => {
            let setup = Setup::from_env().context("scripts/bench sets up what is measured")?;
            interrupt::listen()?;
            let quick = sections.contains(&"--quick");
            let sections: Vec<String> =
                sections.iter().filter(|word| **word != "--quick").map(ToString::to_string).collect();
            let run = measure(&setup, quick, &sections)?;
            println!("{MARK}{}", serde_json::to_string(&run)?);
            Ok(())
        }
        ["report", directory] => report::report(Path::new(directory), None),
        ["report", directory, document] => report::report(Path::new(directory), Some(Path::new(document))),
        _ => bail!("usage: bench measure [--quick] [SECTION]… | bench report DIRECTORY [DOCUMENT]"),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
