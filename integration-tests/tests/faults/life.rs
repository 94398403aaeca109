//! SIGKILL at any time of a container's life.

use std::{
    fmt::Write,
    fs,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    command::{Output, run},
    containerd::{IMAGE, RUNTIME},
    eventually::eventually,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Bed, Row,
    account::{self, Account},
    census::{Census, assert_sockets_are_known},
};

const ROUNDS: u64 = 500;

/// After so many everything is counted.
const BATCH: u64 = 125;

/// How long a shim is waited for: there may be none at that time of the life, and none any more.
const SHIM: Duration = Duration::from_secs(2);

const VICTIMS: [Victim; 4] = [Victim::Agent, Victim::Shim, Victim::InnerShim, Victim::Containerd];

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

    /// The file name of a shim's program.
    fn program(self) -> &'static str {
        if self == Self::InnerShim { "containerd-shim-runc-v2" } else { "containerd-shim-portcullis-v1" }
    }
}

/// What is done in a life.
const STEPS: [&str; 7] = ["create", "start", "run", "exec", "kill", "delete", "over"];

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

/// A life that is over.
struct Lived {
    id: String,
    victim: Option<Victim>,
    /// The step in which the victim died, if it did.
    step: Option<usize>,
    took: Duration,
    tries: u64,
    account: Account,
}

/// What lives at the same time share: there is one agent, and one containerd.
struct Lives<'a> {
    bed: &'a Bed,
    restart: Mutex<()>,
    /// Counted up before and after each.
    kills: AtomicU64,
}

impl Lives<'_> {
    fn ctr(&self, arguments: &[&str]) -> Result<Output> {
        run(self.bed.node.containerd().ctr().args(arguments))
    }

    fn create(&self, id: &str) -> Command {
        let mut create = self.bed.node.containerd().ctr();
        create.args(["containers", "create", "--runtime", RUNTIME]).arg(self.bed.program.mount());
        create.arg(IMAGE).arg(id).args(self.bed.program.command(id, "life", &[]));
        create
    }

    /// Creates to deletes; what fails is an error only if nobody was killed.
    /// `kills` were made before.
    fn live(&self, id: &str, step: &Step, random: &mut fastrand::Rng, kills: u64) -> Result<()> {
        // Nothing is awaited of what was killed.
        let undisturbed = |attempt: &dyn Fn() -> Result<()>| {
            eventually(|| if self.kills.load(SeqCst) == kills { attempt() } else { Ok(()) })
        };
        run(&mut self.create(id))?.success()?;
        step.next();
        self.ctr(&["tasks", "start", "--detach", "--null-io", id])?.success()?;
        step.next();
        undisturbed(&|| {
            ensure!(self.bed.program.counts(id)?.stopped > 0, "it has tried nothing");
            Ok(())
        })?;
        thread::sleep(Duration::from_millis(random.u64(..200)));
        step.next();
        let refused = self.ctr(&["tasks", "exec", "--exec-id", "nc", id, "/fault/nc"])?;
        ensure!(refused.status != 0, "{id}: {refused}");
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
                let _alone = self.alone();
                let at = step.index();
                self.bed.node.kill_agent()?;
                self.bed.node.restart_agent()?;
                Some(at)
            }
            Victim::Containerd => {
                let _alone = self.alone();
                let at = step.index();
                self.bed.node.containerd().kill_and_restart()?;
                Some(at)
            }
            Victim::Shim | Victim::InnerShim => self.kill_shim(id, victim).then(|| step.index()),
        };
        self.kills.fetch_add(1, SeqCst);
        Ok(killed)
    }

    /// While this is held, nobody else restarts anything.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.restart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill_shim(&self, id: &str, victim: Victim) -> bool {
        let is_victim = |pid: &Pid| {
            fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()))
                .is_ok_and(|exe| exe.ends_with(victim.program()))
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

    /// One life, and perhaps one kill, `span` being how long a life takes.
    fn round(&self, number: u64, victim: Option<Victim>, span: Duration) -> Result<Lived> {
        let mut random = self.bed.random(number);
        let id = self.bed.container().id().to_owned();
        let delay = span.mul_f64(random.f64());
        let (step, begun) = (Step::default(), Instant::now());
        let kills = self.kills.load(SeqCst);
        let (lived, killed) = thread::scope(|scope| {
            let killer = scope.spawn(|| {
                thread::sleep(delay);
                victim.map_or(Ok(None), |victim| self.kill(&id, victim, &step))
            });
            let lived = self.live(&id, &step, &mut random, kills);
            (lived, killer.join())
        });
        let step = killed.ok().context("the killer panicked")?.with_context(|| format!("{id}: killing {victim:?}"))?;
        let took = begun.elapsed();
        if self.kills.load(SeqCst) == kills {
            lived.with_context(|| format!("{id}: nobody was killed"))?;
        } else {
            self.remove(&id)?;
        }
        Ok(Lived { id, victim, step, took, tries: 0, account: Account::default() })
    }

    /// What was executed, and what was told of it.
    fn account(&self, lived: &mut Lived) -> Result<()> {
        let counts = self.bed.program.counts(&lived.id)?;
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
                let victim = self.bed.random(!number).choice(VICTIMS);
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

pub fn killed_at_any_time(bed: &Bed) -> Result<Vec<Row>> {
    let lives = Lives { bed, restart: Mutex::default(), kills: AtomicU64::new(0) };
    let span = span(&lives)?;
    println!("an undisturbed life takes {span:?}");
    let rounds = bed.scaled(ROUNDS);
    let before = Census::take(&bed.node)?;
    let mut all = Vec::new();
    for start in (0..rounds).step_by(usize::try_from(BATCH)?) {
        let mut batch = lives.rounds(start..rounds.min(start + BATCH), span)?;
        let settling = Instant::now();
        bed.settle(&before).with_context(|| {
            let killed: Vec<_> =
                batch.iter().map(|lived| format!("{} {:?} {:?}", lived.id, lived.victim, lived.step)).collect();
            format!("after rounds {killed:#?}")
        })?;
        batch.iter_mut().try_for_each(|lived| lives.account(lived))?;
        all.append(&mut batch);
        println!("{} rounds, settled in {:.0?}", all.len(), settling.elapsed());
    }
    Ok(VICTIMS.into_iter().map(|victim| row(victim, &all)).collect())
}
