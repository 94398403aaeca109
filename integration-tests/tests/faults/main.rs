//! What fails on a node, and what holds all the same. `scripts/test faults` runs this binary at full length, `scripts/test host`
//! a little of it; each prints lines for docs/reliability.md.
//!
//! Before and after each fault everything is counted that is on the node because of containers, and no fault may let nc run in an
//! enforcing container.

mod account;
mod census;
mod life;
mod load;
mod program;
mod ring;
mod store;

use std::{
    collections::HashSet,
    env,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use portcullis_integration_tests::{
    containerd::{Builder, Container},
    node::{Node, Setup},
};
use portcullis_policy::source::SHIPPED_DEFAULT;

use self::{
    census::{Census, Held},
    program::Program,
};

/// What `PORTCULLIS_FAULT_ROUNDS` is in a whole run.
const ALL_ROUNDS: u64 = 500;

/// Some sweeps of the agent, which takes away in two what shims that died have left.
const SETTLE: Duration = Duration::from_secs(240);

/// What an agent may hold more after a fault than before.
const FDS_MORE: usize = 16;
const RSS_KIB_MORE: u64 = 64 * 1024;

/// What all faults have in common.
struct Bed {
    node: Arc<Node>,
    program: Program,
    seed: u64,
    rounds: u64,
    /// Of all containers that there ever were.
    ids: Mutex<HashSet<String>>,
}

/// What came of a fault: a line of docs/reliability.md. No fault of it has left anything behind or let nc run.
struct Row {
    fault: &'static str,
    rounds: u64,
    /// What held besides.
    held: &'static str,
    figures: String,
}

impl Bed {
    /// As many as are right for a run of this length, of those of a whole run.
    fn scaled(&self, full: u64) -> u64 {
        (full * self.rounds / ALL_ROUNDS).max(1)
    }

    /// How much is done at once.
    fn lanes(&self) -> u64 {
        if self.node.setup().emulated { 1 } else { 6 }
    }

    /// A generator for one of many things that go on at once: the same whatever the others do.
    fn random(&self, number: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_add(number))
    }

    /// A container to be started that has the program.
    fn container(&self) -> Builder<'_> {
        let container = self.node.container().option(&self.program.mount());
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(container.id().to_owned());
        container
    }

    /// Starts a container whose first process is the program.
    fn start(&self, what: &str, arguments: &[String]) -> Result<Container<'_>> {
        let container = self.container();
        let command = program::command(container.id(), what, arguments);
        container.start_with(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn settle(&self, before: &Census) -> Result<()> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        before.settle(&self.node, &ids)
    }
}

type Fault = (&'static str, fn(&Bed) -> Result<Vec<Row>>);

const FAULTS: &[Fault] = &[
    ("killed_at_any_time", life::killed_at_any_time),
    ("the_ring_buffer_overflows", ring::the_ring_buffer_overflows),
    ("the_agent_is_paused_under_load", ring::the_agent_is_paused_under_load),
    ("the_disk_is_full", store::the_disk_is_full),
    ("the_database_is_overwritten", store::the_database_is_overwritten),
    ("the_clock_jumps", store::the_clock_jumps),
    ("fork_bombs_of_nc", load::fork_bombs_of_nc),
    ("many_containers_start_and_stop", load::many_containers_start_and_stop),
    ("many_containers_at_once", load::many_containers_at_once),
    ("many_executions", load::many_executions),
];

/// The fault, and what must hold after each.
fn endure(bed: &Bed, name: &str, fault: fn(&Bed) -> Result<Vec<Row>>) -> Result<()> {
    let (before, held_before) = (Census::take(&bed.node)?, Held::by_agent(&bed.node)?);
    let begun = Instant::now();
    let rows = fault(bed)?;
    let took = begun.elapsed();
    bed.program.nc_never_ran()?;
    bed.settle(&before)?;
    let held = Held::by_agent(&bed.node)?;
    println!("{name}: {took:.0?}, the agent held {held_before:?} before, {held:?} after");
    ensure!(held.fds <= held_before.fds + FDS_MORE, "{held_before:?} before, {held:?} after");
    ensure!(held.rss_kib <= held_before.rss_kib + RSS_KIB_MORE, "{held_before:?} before, {held:?} after");
    for Row { fault, rounds, held, figures } in rows {
        println!("fault\t{fault}\t{rounds}\t{held}\t{figures}");
    }
    Ok(())
}

fn number(name: &str, usual: u64) -> Result<u64> {
    env::var(name).map_or(Ok(usual), |text| text.parse().with_context(|| format!("{name}={text} is no number")))
}

fn bed(setup: &Setup) -> Result<Bed> {
    let seed = number("PORTCULLIS_FAULT_SEED", fastrand::u64(..1 << 32))?;
    let rounds = number("PORTCULLIS_FAULT_ROUNDS", ALL_ROUNDS)?;
    println!("PORTCULLIS_FAULT_SEED={seed} PORTCULLIS_FAULT_ROUNDS={rounds}");
    let node = Arc::new(Node::start(setup)?);
    println!(
        "faults\tkernel {}, backend {}, containerd {}, runc {}, seed {seed}, {rounds} rounds",
        rustix::system::uname().release().to_string_lossy(),
        node.backend(),
        node.version("containerd")?,
        node.version("runc")?
    );
    Ok(Bed { node, program: Program::new()?, seed, rounds, ids: Mutex::default() })
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One node for all.
    arguments.test_threads = Some(1);
    let Some(setup) = Setup::from_env() else {
        println!("not run: scripts/test faults sets up what these tests need");
        return ExitCode::SUCCESS;
    };
    let bed = match bed(&setup) {
        Ok(bed) => Arc::new(bed),
        Err(error) => {
            eprintln!("error: the node did not start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let enforce = SHIPPED_DEFAULT
        .replace("name: default", "name: faults")
        .replace("mode: detect", "mode: enforce")
        .replace("onAttachFailure: allow", "onAttachFailure: deny");
    let node = Arc::clone(&bed.node);
    let policy = match node.policy(&enforce) {
        Ok(policy) => policy,
        Err(error) => {
            eprintln!("error: the policy is not in force: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = FAULTS
        .iter()
        .filter(|(name, _)| setup.emulated || *name != "the_clock_jumps")
        .map(|&(name, fault)| {
            let bed = Arc::clone(&bed);
            Trial::test(format!("{}::{name}", bed.node.backend()), move || {
                endure(&bed, name, fault).map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // exit() would run no destructors.
    drop(policy);
    drop(bed);
    drop(node);
    conclusion.exit_code()
}
