//! SIGKILL at any time of a container's life.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    command::{Output, run},
    containerd::{IMAGE, RUNTIME},
    eventually::{eventually, within},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Bed, Row, SETTLE,
    account::{self, Account},
    census::{Census, Left, assert_sockets_are_known, bury},
    program,
};

const ROUNDS: u64 = 500;

/// With the stock shim alone, for comparison.
const STOCK_ROUNDS: u64 = 150;

/// A shim that containerd does not know by then it will never know.
const UNKNOWN: Duration = Duration::from_secs(11);

/// What is not gone by then is left.
const GONE: Duration = Duration::from_secs(20);

/// After so many everything is counted.
const BATCH: u64 = 250;

/// How long a shim is waited for: there may be none at that time of the life, and none any more.
const SHIM: Duration = Duration::from_secs(2);

/// What containerd runs of a shim's program besides the shim. When a `start` is killed it has nothing undone that was done by then,
/// whoever's shim it is: it has had no answer.
const HELPERS: [&str; 2] = ["start", "delete"];

/// Its shim is the inner one.
const STOCK_VICTIMS: [Victim; 2] = [Victim::InnerShim, Victim::Containerd];

const VICTIMS: [Victim; 4] = [Victim::Agent, Victim::Shim, Victim::InnerShim, Victim::Containerd];

const STOCK_RUNTIME: &str = "io.containerd.runc.v2";

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Shim,
    InnerShim,
    Containerd,
}

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "SIGKILL of the agent",
            Self::Shim => "SIGKILL of the shim",
            Self::InnerShim => "SIGKILL of the inner shim",
            Self::Containerd => "SIGKILL of containerd",
        }
    }

    fn is_restarted(self) -> bool {
        matches!(self, Self::Agent | Self::Containerd)
    }

    /// The file name of a shim's program.
    fn program(self) -> &'static str {
        if self == Self::InnerShim { "containerd-shim-runc-v2" } else { "containerd-shim-portcullis-v1" }
    }
}

/// What is done in a life.
const STEPS: [&str; 7] = ["create", "start", "run", "exec", "kill", "delete", "over"];

const STEPS_IN_A_LIFE: u32 = 6;

/// How far a life has come: an index of the steps.
#[derive(Debug, Default)]
struct Step(AtomicUsize);

impl Step {
    fn next(&self) {
        self.0.fetch_add(1, SeqCst);
    }

    fn index(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// What containerd and runc may lose sight of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Excuse {
    None,
    /// A shim was killed: the bundle, of which containerd removes what it can.
    Bundle,
    /// Somebody was killed while the container was started: what runc had begun.
    Container,
    /// containerd was killed: the shims as well. Without us always: nothing of it is ours.
    All,
}

impl Excuse {
    fn covers(self, left: &Left) -> bool {
        match self {
            Self::None => false,
            Self::Bundle => left.is_a_bundle(),
            Self::Container => !left.is_of_shims(),
            Self::All => true,
        }
    }
}

/// A life that is over.
struct Lived {
    id: String,
    victim: Option<Victim>,
    /// The step in which the victim died, if it did.
    step: Option<usize>,
    excuse: Excuse,
    took: Duration,
    tries: u64,
    account: Account,
}

/// What lives at the same time share: there is one agent, and one containerd.
struct Lives<'a> {
    bed: &'a Bed,
    /// Without us, for comparison: what they execute is harmless then.
    stock: bool,
    restart: Mutex<()>,
    /// Counted up before and after each.
    kills: AtomicU64,
    /// The same of containerd's: an odd number while it is not there.
    containerd_kills: AtomicU64,
}

impl Lives<'_> {
    fn ctr(&self, arguments: &[&str]) -> Result<Output> {
        run(self.bed.node.containerd().ctr().args(arguments))
    }

    fn create(&self, id: &str) -> Command {
        let mut create = self.bed.node.containerd().ctr();
        create.args(["containers", "create", "--runtime", if self.stock { STOCK_RUNTIME } else { RUNTIME }]);
        create.arg(self.bed.program.mount()).arg(IMAGE).arg(id);
        if self.stock {
            create.args(["sleep", "100000"]);
        } else {
            create.args(program::command(id, "life", &[]));
        }
        create
    }

    /// Creates to deletes; what fails is an error only if nobody was killed.
    /// `kills` were made before.
    fn live(&self, id: &str, step: &Step, random: &mut fastrand::Rng, kills: u64, bad: &AtomicBool) -> Result<()> {
        // Nothing is awaited of what was killed.
        let undisturbed = |attempt: &dyn Fn() -> Result<()>| {
            eventually(|| if self.kills.load(SeqCst) == kills { attempt() } else { Ok(()) })
        };
        run(&mut self.create(id))?.success()?;
        step.next();
        let started = self.ctr(&["tasks", "start", "--detach", "--null-io", id]);
        bad.store(self.kills.load(SeqCst) != kills, SeqCst);
        started?.success()?;
        step.next();
        undisturbed(&|| {
            ensure!(self.stock || self.bed.program.counts(id).stopped > 0, "it has tried nothing");
            Ok(())
        })?;
        thread::sleep(Duration::from_millis(random.u64(..200)));
        step.next();
        let program = if self.stock { "/fault/noop" } else { "/fault/nc" };
        let executed = self.ctr(&["tasks", "exec", "--exec-id", "nc", id, program])?;
        ensure!((executed.status == 0) == self.stock, "{id}: {executed}");
        step.next();
        self.ctr(&["tasks", "kill", "--signal", "KILL", id])?.success()?;
        step.next();
        // Not yet dead, perhaps.
        undisturbed(&|| self.ctr(&["tasks", "delete", id])?.success().map(drop))?;
        self.ctr(&["containers", "delete", id])?.success()?;
        step.next();
        Ok(())
    }

    /// Whatever is left of it by a life that failed.
    fn remove(&self, id: &str) -> Result<()> {
        eventually(|| {
            self.ctr(&["tasks", "delete", "--force", id])?;
            self.ctr(&["containers", "delete", id])?;
            for list in [["containers", "list", "-q"], ["tasks", "list", "-q"]] {
                let listed = self.ctr(&list)?.success()?;
                ensure!(
                    !listed.stdout.lines().any(|line| line.starts_with(id)),
                    "{id} is still listed: {}",
                    listed.stdout
                );
            }
            Ok(())
        })
    }

    /// The step in which the victim died, if there was one.
    fn kill(&self, id: &str, victim: Victim, step: &Step) -> Result<Option<usize>> {
        self.kills.fetch_add(1, SeqCst);
        let killed = match victim {
            Victim::Agent => {
                let at = step.index();
                self.bed.node.kill_agent()?;
                self.bed.node.restart_agent()?;
                Some(at)
            }
            Victim::Containerd => {
                let at = step.index();
                self.containerd_kills.fetch_add(1, SeqCst);
                self.bed.node.containerd().kill_and_restart()?;
                self.containerd_kills.fetch_add(1, SeqCst);
                Some(at)
            }
            Victim::Shim | Victim::InnerShim => self.kill_shim(id, victim).then(|| step.index()),
        };
        self.kills.fetch_add(1, SeqCst);
        Ok(killed)
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.restart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill_shim(&self, id: &str, victim: Victim) -> bool {
        let is_victim = |pid: &Pid| {
            let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
            let is_helper = fs::read(process.join("cmdline")).is_ok_and(|line| {
                line.split(|&byte| byte == 0).any(|word| HELPERS.iter().any(|helper| word == helper.as_bytes()))
            });
            !is_helper && fs::read_link(process.join("exe")).is_ok_and(|exe| exe.ends_with(victim.program()))
        };
        let begun = Instant::now();
        while begun.elapsed() < SHIM {
            let shims: Vec<_> = self.bed.node.containerd().shims_for(id).into_iter().filter(is_victim).collect();
            if shims.into_iter().any(|shim| kill_process(shim, Signal::KILL).is_ok()) {
                return true;
            }
        }
        false
    }

    /// One life, and perhaps one kill in one of its steps, or later if there is nobody to kill in that; `span` is how long a life takes.
    fn round(&self, number: u64, victim: Option<Victim>, span: Duration) -> Result<Lived> {
        let mut random = self.bed.random(number);
        let id = self.bed.container().id().to_owned();
        // The lives of others go on meanwhile, but nobody else restarts anything.
        let _alone = victim.filter(|victim| victim.is_restarted()).map(|_| self.alone());
        let (target, delay) = (random.usize(..STEPS.len() - 1), (span / STEPS_IN_A_LIFE).mul_f64(random.f64()));
        let (step, begun, began_badly) = (Step::default(), Instant::now(), AtomicBool::new(false));
        let over = AtomicBool::new(false);
        let kills = self.kills.load(SeqCst);
        let containerd_kills = self.containerd_kills.load(SeqCst);
        let (lived, killed) = thread::scope(|scope| {
            let killer = scope.spawn(|| {
                while step.index() < target && !over.load(SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
                thread::sleep(delay);
                victim.map_or(Ok(None), |victim| self.kill(&id, victim, &step))
            });
            let lived = self.live(&id, &step, &mut random, kills, &began_badly);
            over.store(true, SeqCst);
            (lived, killer.join())
        });
        let step = killed.ok().context("the killer panicked")?.with_context(|| format!("{id}: killing {victim:?}"))?;
        let took = begun.elapsed();
        let containerd_lived =
            containerd_kills.is_multiple_of(2) && self.containerd_kills.load(SeqCst) == containerd_kills;
        if containerd_lived && self.kills.load(SeqCst) == kills {
            lived.with_context(|| format!("{id}: nobody was killed"))?;
        } else {
            self.remove(&id)?;
        }
        let excuse = if self.stock || !containerd_lived {
            Excuse::All
        } else if began_badly.into_inner() {
            Excuse::Container
        } else if matches!(victim, Some(Victim::Shim | Victim::InnerShim)) {
            Excuse::Bundle
        } else {
            Excuse::None
        };
        Ok(Lived { id, victim, step, excuse, took, tries: 0, account: Account::default() })
    }

    /// What was executed, and what was told of it.
    fn account(&self, lived: &mut Lived) -> Result<()> {
        let counts = self.bed.program.counts(&lived.id);
        lived.tries = counts.begun;
        lived.account = account::is_complete(&self.bed.node, &lived.id, counts, 1)?;
        Ok(())
    }

    fn rounds(&self, numbers: std::ops::Range<u64>, span: Duration) -> Result<Vec<Lived>> {
        let next = AtomicU64::new(numbers.start);
        let lane = || -> Result<Vec<Lived>> {
            let mut lived = Vec::new();
            loop {
                let number = next.fetch_add(1, SeqCst);
                if number >= numbers.end {
                    return Ok(lived);
                }
                let victims: &[Victim] = if self.stock { &STOCK_VICTIMS } else { &VICTIMS };
                let victim = self.bed.random(!number).choice(victims).copied();
                lived.push(self.round(number, victim, span)?);
            }
        };
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..self.bed.lanes()).map(|_| scope.spawn(lane)).collect();
            let mut all = Vec::new();
            for lane in lanes {
                all.extend(lane.join().ok().context("a lane panicked")??);
            }
            Ok(all)
        })
    }
}

/// How long a life takes that nobody disturbs.
fn span(lives: &Lives<'_>) -> Result<Duration> {
    let container = lives.bed.start("life", &[])?;
    assert_sockets_are_known(&lives.bed.node, container.id())?;
    container.delete()?;
    let mut lived = lives.round(u64::MAX, None, Duration::ZERO)?;
    lives.account(&mut lived)?;
    ensure!(lived.account.told > 0, "nothing is told of {} tries", lived.tries);
    Ok(lived.took)
}

fn row(victim: Victim, all: &[Lived]) -> Row {
    let its: Vec<_> = all.iter().filter(|lived| lived.victim == Some(victim)).collect();
    let hit: Vec<_> = its.iter().filter_map(|lived| lived.step).collect();
    let mut steps = String::new();
    for (index, step) in STEPS.iter().enumerate() {
        let count = hit.iter().filter(|&&at| at == index).count();
        if count > 0 {
            let _ = write!(steps, ", {count} in {step}");
        }
    }
    let sum = |what: fn(&Lived) -> u64| its.iter().map(|lived| what(lived)).sum::<u64>();
    let (tries, told, lost) =
        (sum(|lived| lived.tries), sum(|lived| lived.account.told), sum(|lived| lived.account.lost));
    let figures =
        format!("{} killed{steps}; nc tried {tries} times, {told} told, {lost} of them by number only", hit.len());
    Row {
        fault: victim.name(),
        rounds: its.len() as u64,
        held: "containers ran under guard or not at all; all is told, once",
        figures,
    }
}

/// What is left of lives once nothing goes away any more: by life, the kinds of it. Only of one that is excused may something be
/// left, and nothing of Portcullis's own.
fn left(bed: &Bed, before: &Census, lives: &[Lived]) -> Result<BTreeMap<String, BTreeSet<&'static str>>> {
    let ids = lives.iter().map(|lived| lived.id.clone()).collect();
    let begun = Instant::now();
    let left = within(SETTLE, || {
        let left = before.left(&bed.node, &ids)?;
        let is_excused =
            |left: &Left| lives.iter().any(|lived| lived.excuse.covers(left) && left.is_the_runtimes(&lived.id));
        let ours: Vec<_> = left.iter().filter(|left| !is_excused(left)).collect();
        ensure!(ours.is_empty(), "left behind: {ours:#?}");
        ensure!(left.is_empty() || begun.elapsed() > GONE, "left behind, so far: {left:#?}");
        Ok(left)
    })
    .with_context(|| {
        let tell = |lived: &Lived| format!("{}: {:?} in {:?}", lived.id, lived.victim, lived.step);
        format!("after {:#?}", lives.iter().map(tell).collect::<Vec<_>>())
    })?;
    let mut by_life: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for lived in lives {
        for left in left.iter().filter(|left| left.is_the_runtimes(&lived.id)) {
            by_life.entry(lived.id.clone()).or_default().insert(left.kind);
        }
    }
    by_life.keys().try_for_each(|id| bury(&bed.node, id))?;
    before.settle(&bed.node, &ids)?;
    Ok(by_life)
}

/// By kind, of how many lives.
fn tell_left(left: &[BTreeSet<&'static str>]) -> String {
    let kinds: BTreeSet<_> = left.iter().flatten().collect();
    let count = |kind: &&'static str| left.iter().filter(|left| left.contains(kind)).count();
    let told: Vec<_> = kinds.into_iter().map(|kind| format!("{kind} of {}", count(kind))).collect();
    if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }
}

/// All rounds, and what they have left.
fn all_rounds(lives: &Lives<'_>, rounds: u64, span: Duration) -> Result<(Vec<Lived>, Vec<BTreeSet<&'static str>>)> {
    let before = Census::take(&lives.bed.node)?;
    let (mut all, mut all_left) = (Vec::new(), Vec::new());
    for start in (0..rounds).step_by(usize::try_from(BATCH)?) {
        let begun = Instant::now();
        let mut batch = lives.rounds(start..rounds.min(start + BATCH), span)?;
        let (took, settling) = (begun.elapsed(), Instant::now());
        if !lives.stock {
            // Whoever starts a container then ends the shims that containerd never knew.
            thread::sleep(UNKNOWN);
            batch.push(lives.round(u64::MAX, None, Duration::ZERO)?);
        }
        let left = left(lives.bed, &before, &batch)?;
        println!("{} rounds in {took:.0?}, settled in {:.0?}, left: {left:?}", batch.len(), settling.elapsed());
        all.append(&mut batch);
        all_left.extend(left.into_values());
    }
    Ok((all, all_left))
}

pub fn killed_at_any_time(bed: &Bed) -> Result<Vec<Row>> {
    let lives = |stock| Lives {
        bed,
        stock,
        restart: Mutex::default(),
        kills: AtomicU64::new(0),
        containerd_kills: AtomicU64::new(0),
    };
    let ours = lives(false);
    let span = span(&ours)?;
    println!("an undisturbed life takes {span:?}");
    let (mut all, left) = all_rounds(&ours, bed.scaled(ROUNDS), span)?;
    all.iter_mut().try_for_each(|lived| ours.account(lived))?;
    let (stock, stock_left) = all_rounds(&lives(true), bed.scaled(STOCK_ROUNDS), span)?;
    let told = [(&all, &left), (&stock, &stock_left)].map(|(lives, left)| {
        format!(
            "{} of {} ({})",
            left.len(),
            lives.iter().filter(|lived| lived.excuse > Excuse::Bundle).count(),
            tell_left(left)
        )
    });
    let mut rows: Vec<_> = VICTIMS.into_iter().map(|victim| row(victim, &all)).collect();
    rows.push(Row {
        fault: "of these: containerd, or while a container is started",
        rounds: all.iter().filter(|lived| lived.excuse > Excuse::Bundle).count() as u64,
        held: "guard and records are gone; of the rest, containerd and runc may leave something, with the stock shim alone as well",
        figures: format!("something is left of {}; with the stock shim alone of {}", told[0], told[1]),
    });
    Ok(rows)
}
