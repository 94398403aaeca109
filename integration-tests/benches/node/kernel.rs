//! What the kernel itself tells of Portcullis's programs and maps.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use anyhow::{Context, Result};
use aya::{maps::MapInfo, programs::loaded_programs};
use portcullis_bpf::{
    Backend,
    pins::{LSM_PROGRAMS, Pins, node_programs},
};

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// What a program has done while statistics were kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunTime {
    pub runs: f64,
    pub nanoseconds: f64,
}

/// Has the kernel keep statistics, until it is dropped.
pub struct Statistics(String);

impl Statistics {
    pub fn enable() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS)?;
        fs::write(STATISTICS, "1").context("having the kernel keep statistics of BPF programs")?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATISTICS, self.0.trim()) {
            eprintln!("putting {STATISTICS} back: {error}");
        }
    }
}

/// The numbers that the kernel shows of a descriptor.
fn told_of(fd: BorrowedFd<'_>) -> Result<BTreeMap<String, f64>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let number = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(number).collect())
}

fn told(all: &BTreeMap<String, f64>, name: &str) -> f64 {
    all.get(name).copied().unwrap_or_default()
}

/// The kernel keeps 15 bytes of a name.
fn full_name(short: &str) -> &str {
    let of_node = [Backend::Lsm, Backend::Tracepoint].into_iter().flat_map(node_programs).map(|(name, _)| *name);
    let mut all = LSM_PROGRAMS.iter().map(|(name, _)| *name).chain(of_node);
    all.find(|name| name.get(..15).unwrap_or(name) == short).unwrap_or(short)
}

/// By the pinned maps that they use, as another agent's may have the same names.
fn programs(pins: &Pins) -> Result<BTreeMap<String, BTreeMap<String, f64>>> {
    let mut maps = HashSet::new();
    for entry in fs::read_dir(pins.maps())? {
        maps.insert(MapInfo::from_pin(entry?.path())?.id());
    }
    let mut found = BTreeMap::new();
    // Others' may go while they are looked at.
    for program in loaded_programs().flatten() {
        let used = program.map_ids().ok().flatten().unwrap_or_default();
        if used.iter().any(|id| maps.contains(id)) {
            let name = full_name(program.name_as_str().context("no name")?).to_owned();
            found.insert(name, told_of(program.fd()?.as_fd())?);
        }
    }
    Ok(found)
}

pub fn run_times(pins: &Pins) -> Result<BTreeMap<String, RunTime>> {
    let time = |told_of: &BTreeMap<_, _>| RunTime {
        runs: told(told_of, "run_cnt"),
        nanoseconds: told(told_of, "run_time_ns"),
    };
    Ok(programs(pins)?.iter().map(|(name, program)| (name.clone(), time(program))).collect())
}

/// Kernel memory in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Locked {
    pub programs: f64,
    pub maps: f64,
}

pub fn locked(pins: &Pins) -> Result<Locked> {
    let programs = programs(pins)?.values().map(|program| told(program, "memlock")).sum();
    let mut maps = 0.0;
    for entry in fs::read_dir(pins.maps())? {
        maps += told(&told_of(MapInfo::from_pin(entry?.path())?.fd()?.as_fd())?, "memlock");
    }
    Ok(Locked { programs, maps })
}

/// Kernel memory that is not the page cache's, of everybody, in kB: what programs, links and cgroups are made of.
pub fn memory_in_use() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let read = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    Ok(["SUnreclaim", "Percpu", "VmallocUsed", "PageTables"].map(read).iter().sum())
}

/// Proportional set size in MB.
pub fn pss(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kb: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
        .context("no Pss")?;
    Ok(kb / 1024.0)
}
