//! Much of everything.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    command::run,
    containerd::Container,
    eventually::{eventually, within},
};

use crate::{Bed, Row, account, census::Held, program};

const BOMBS: u64 = 5;
const BOMB_SECONDS: u64 = 5;
const BOMB_PROCESSES: u64 = 200;

const CYCLES: u64 = 2000;

const AT_ONCE: u64 = 500;
/// Of the machine's memory.
const MEMORY_PERCENT: u64 = 80;

const EXECUTIONS: u64 = 1_000_000;
/// One of so many is nc.
const EVERY: u64 = 100;
const CONTAINERS: u64 = 4;
const WORKERS: u64 = 2;

const FINISH: Duration = Duration::from_secs(3600);

/// The file that limits a container's number of processes, by the container's first process.
fn pids_max(pid: u32) -> Result<PathBuf> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let lines = || cgroups.lines().filter_map(|line| line.split_once(':').and_then(|(_, rest)| rest.split_once(':')));
    let v1 = lines().find(|(controllers, _)| *controllers == "pids").map(|(_, path)| ("/sys/fs/cgroup/pids", path));
    let v2 = lines().find(|(controllers, _)| controllers.is_empty()).map(|(_, path)| ("/sys/fs/cgroup", path));
    let (root, path) = v1.or(v2).context("no cgroup")?;
    Ok(Path::new(root).join(path.trim_start_matches('/')).join("pids.max"))
}

pub fn fork_bombs_of_nc(bed: &Bed) -> Result<Vec<Row>> {
    let rounds = bed.scaled(BOMBS);
    let (mut begun, mut told, mut lost) = (0, 0, 0);
    for _ in 0..rounds {
        let container = bed.start("flood", &["0".to_owned()])?;
        let limit = pids_max(container.pid()?)?;
        fs::write(&limit, BOMB_PROCESSES.to_string()).with_context(|| format!("writing {}", limit.display()))?;
        let name = format!("{}-bomb", container.id());
        let command = program::command(&name, "bomb", &[BOMB_SECONDS.to_string()]);
        let mut exec = bed.node.containerd().ctr();
        exec.args(["tasks", "exec", "--detach", "--exec-id", "bomb", container.id()]).args(command);
        run(&mut exec)?.success()?;
        let counts = within(FINISH, || bed.program.finished(&name))?;
        ensure!(counts.begun > BOMB_PROCESSES, "no bomb: {counts:?}");
        let account = account::is_exact(&bed.node, container.id(), counts)?;
        (begun, told, lost) = (begun + counts.begun, told + account.told, lost + account.lost);
        container.delete()?;
    }
    let figures = format!(
        "{BOMB_SECONDS} s and {BOMB_PROCESSES} processes each; nc executed {begun} times, {told} told, {lost} of them by number only"
    );
    Ok(vec![Row { fault: "fork bombs of nc", rounds, held: "all is told, once", figures }])
}

/// Does something so often, in several threads.
fn in_lanes<T: Send>(bed: &Bed, times: u64, what: impl Fn() -> Result<Option<T>> + Sync) -> Result<Vec<T>> {
    let left = AtomicU64::new(times);
    let lane = || -> Result<Vec<T>> {
        let mut done = Vec::new();
        while left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            match what()? {
                Some(one) => done.push(one),
                None => left.store(0, SeqCst),
            }
        }
        Ok(done)
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..bed.lanes()).map(|_| scope.spawn(lane)).collect();
        let mut all = Vec::new();
        for lane in lanes {
            all.extend(lane.join().ok().context("a lane panicked")??);
        }
        Ok(all)
    })
}

pub fn many_containers_start_and_stop(bed: &Bed) -> Result<Vec<Row>> {
    let cycles = bed.scaled(CYCLES);
    let begun = Instant::now();
    let ids = in_lanes(bed, cycles, || {
        let container = bed.start("life", &[])?;
        let id = container.id().to_owned();
        container.delete()?;
        Ok(Some(id))
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let (mut tried, mut told) = (0, 0);
    for id in &ids {
        let counts = bed.program.counts(id);
        tried += counts.begun;
        told += account::is_complete(&bed.node, id, counts, 0)?.told;
    }
    #[allow(clippy::cast_precision_loss)] // of some thousands
    let rate = ids.len() as f64 / seconds;
    let figures = format!("{rate:.1} a second; nc tried {tried} times, {told} told");
    Ok(vec![Row { fault: "containers start and stop", rounds: cycles, held: "all is told, once", figures }])
}

/// In percent.
fn memory_used() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let read = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let (total, available) = read("MemTotal:").zip(read("MemAvailable:")).context("no memory is told")?;
    Ok(100 - 100 * available / total)
}

pub fn many_containers_at_once(bed: &Bed) -> Result<Vec<Row>> {
    let wanted = bed.scaled(AT_ONCE);
    let containers = in_lanes(bed, wanted, || {
        let room = memory_used()? < MEMORY_PERCENT;
        room.then(|| bed.start("flood", &["1".to_owned()])).transpose()
    })?;
    let count = containers.len() as u64;
    ensure!(count == wanted || count > 20, "memory allows {count}");
    let traces = bed.node.traces()?;
    ensure!(traces.map_entries.len() == containers.len(), "{} of {count} are guarded", traces.map_entries.len());
    for container in &containers {
        let counts = eventually(|| bed.program.finished(container.id()))?;
        ensure!((counts.begun, counts.stopped) == (1, 1), "{}: {counts:?}", container.id());
        account::is_complete(&bed.node, container.id(), counts, 0)?;
    }
    let known = bed.node.containers()?;
    for container in &containers {
        let told = known.iter().find(|told| told.id == container.id()).and_then(|told| told.counters);
        ensure!(told.is_some_and(|told| told.matched == 1), "{}: the kernel has {told:?}", container.id());
    }
    let held = Held::by_agent(&bed.node)?;
    let memory = memory_used()?;
    let containers = std::sync::Mutex::new(containers);
    let next = || containers.lock().ok().and_then(|mut containers| containers.pop());
    in_lanes(bed, count, || next().map(Container::delete).transpose())?;
    let figures = format!(
        "{wanted} were wanted; {memory} % of the machine's memory in use, the agent held {} MiB; nc stopped and told in each",
        held.rss_kib / 1024
    );
    Ok(vec![Row {
        fault: "containers at once",
        rounds: count,
        held: "each is under guard; all is told, once",
        figures,
    }])
}

pub fn many_executions(bed: &Bed) -> Result<Vec<Row>> {
    let each = bed.scaled(EXECUTIONS) / CONTAINERS;
    let begun = Instant::now();
    let arguments = [each, EVERY, WORKERS].map(|number| number.to_string());
    let containers = (0..CONTAINERS).map(|_| bed.start("execs", &arguments)).collect::<Result<Vec<_>>>()?;
    let (mut harmless, mut forbidden, mut told, mut lost) = (0, 0, 0, 0);
    let mut all = Vec::new();
    for container in &containers {
        all.push(within(FINISH, || bed.program.finished(container.id()))?);
    }
    let took = begun.elapsed().as_secs_f64();
    for (container, counts) in containers.iter().zip(all) {
        ensure!(counts.harmless + counts.begun == each, "{counts:?} of {each}");
        ensure!(counts.begun == each.div_ceil(EVERY), "{counts:?}");
        let account = account::is_exact(&bed.node, container.id(), counts)?;
        (harmless, forbidden) = (harmless + counts.harmless, forbidden + counts.begun);
        (told, lost) = (told + account.told, lost + account.lost);
    }
    for container in containers {
        container.delete()?;
    }
    #[allow(clippy::cast_precision_loss)] // of some millions
    let rate = (harmless + forbidden) as f64 / took;
    let figures = format!(
        "{harmless} of a harmless program, all ran; {forbidden} of nc, none ran: {told} told, {lost} of them by number only; {rate:.0} a second"
    );
    Ok(vec![Row {
        fault: "executions",
        rounds: harmless + forbidden,
        held: "all that is allowed ran; all else is told, once",
        figures,
    }])
}
