//! What was stopped, or in enforce mode would have been: by workload, tool, and the way in which it was called. Pure: signals
//! go in, one by one, in any order; memory is bounded whatever containers do.
//!
//! | module | idea |
//! |---|---|
//! | [`workload`] | which containers run the same |
//! | [`shape`] | what stays the same in arguments |
//! | [`danger`] | what speaks against an exception |
//! | [`suggest`] | from what is habitual to exceptions |
//! | [`distinct`] | how many different ones there are |

pub mod danger;
mod distinct;
mod shape;
pub mod suggest;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet};

use portcullis_policy::{catalog::Catalog, text::PATTERN_MAX};

use self::{
    danger::Danger,
    distinct::{Count, Distinct},
    shape::{Place, Seen},
    workload::Workload,
};
use crate::{
    time::Time,
    view::{Ancestor, Identification, Origin, Process, Signal, Tool, Verdict},
};

pub use self::distinct::MAX as DISTINCT_MAX;

/// Tools of workloads, and ways of calling them, at most; some kB each at worst.
const ENTRIES_MAX: usize = 8192;
/// Ways of calling one tool in one workload: a container that calls it in ever other ways takes no room from others.
const WAYS_MAX: usize = 256;
/// Images of one way that are told apart, and policies of one tool.
const IMAGES_MAX: usize = 64;
const POLICIES_MAX: usize = 4;
/// Bytes of a sample command.
const SAMPLE_MAX: usize = 1024;

/// How often, since when and how widely something was seen.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Ran, but in enforce mode would not have.
    pub would_block: u64,
    /// Blocked or killed.
    pub stopped: u64,
    /// The oldest and the newest.
    pub first: Option<Time>,
    pub last: Option<Time>,
    containers: Distinct,
    days: Distinct,
}

impl Counts {
    fn add(&mut self, signal: &Signal) {
        match signal.verdict {
            Verdict::WouldBlock => self.would_block += 1,
            Verdict::Blocked | Verdict::Killed => self.stopped += 1,
            Verdict::Detected | Verdict::Unknown => {}
        }
        if let Some(time) = signal.time {
            self.first = Some(self.first.map_or(time, |first| first.min(time)));
            self.last = self.last.max(Some(time));
            self.days.add(&time.day());
        }
        if let Some(container) = &signal.container {
            self.containers.add(&(&container.containerd_namespace, &container.id, container.created.map(Time::full)));
        }
    }

    fn merge(&mut self, other: &Self) {
        self.would_block += other.would_block;
        self.stopped += other.stopped;
        self.first = [self.first, other.first].into_iter().flatten().min();
        self.last = self.last.max(other.last);
        self.containers.merge(&other.containers);
        self.days.merge(&other.days);
    }

    /// How often.
    pub fn times(&self) -> u64 {
        self.would_block.saturating_add(self.stopped)
    }

    /// In how many containers.
    pub fn containers(&self) -> Count {
        self.containers.count()
    }

    /// On how many days, of UTC.
    pub fn days(&self) -> Count {
        self.days.count()
    }
}

/// One tool in one workload.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Of the tool.
    pub category: String,
    /// All of its executions.
    pub counts: Counts,
    /// The arguments of one of them.
    pub sample: Vec<String>,
    /// The policies that were in force.
    pub policies: BTreeSet<String>,
    ways: BTreeMap<Way, Habit>,
}

/// A way of calling a tool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    policy: String,
    user: u32,
    /// The executable that called it, if that is known.
    parent: Option<String>,
    /// Where that runs scripts: the nearest executable before it that is no shell.
    ancestor: Option<String>,
    /// `None`: they can't be told, as the program runs already and may write over them.
    arguments: Option<Vec<Place>>,
    /// Only a pattern of comm has found it.
    by_pattern: bool,
}

/// What was seen of a way.
#[derive(Debug, Clone, Default)]
struct Habit {
    counts: Counts,
    arguments: Vec<Seen>,
    images: BTreeSet<String>,
    dangers: BTreeSet<Danger>,
    sample: Vec<String>,
    /// Executions whose arguments the process could have changed after they were judged.
    unconfirmed: u64,
    /// Those from outside, by a probe or a person.
    exec_sessions: u64,
}

/// All of it.
#[derive(Debug)]
pub struct Habits {
    catalog: Catalog,
    tallies: BTreeMap<(Workload, String), Tally>,
    entries: usize,
    /// Signals for which there was no room.
    left_out: u64,
    /// All others.
    pub counts: Counts,
}

impl Habits {
    /// Nothing was seen yet. The catalogue knows the shells, and where a multi-call program's arguments begin.
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog, tallies: BTreeMap::new(), entries: 0, left_out: 0, counts: Counts::default() }
    }

    /// Takes a signal in; one that is not about an executed tool that was stopped, or would have been, says nothing here.
    pub fn add(&mut self, signal: &Signal) {
        let (Some(tool), Some(process)) = (&signal.tool, &signal.process) else { return };
        if matches!(signal.verdict, Verdict::Detected | Verdict::Unknown) {
            return;
        }
        let key = (Workload::of(signal), tool.id.clone());
        if !self.tallies.contains_key(&key) {
            if self.entries >= ENTRIES_MAX {
                self.left_out += 1;
                return;
            }
            self.entries += 1;
        }
        self.counts.add(signal);
        let tally = self.tallies.entry(key).or_default();
        if tally.sample.is_empty() {
            tally.category.clone_from(&tool.category);
            tally.sample = sample(&process.argv);
        }
        tally.counts.add(signal);
        if tally.policies.len() < POLICIES_MAX {
            tally.policies.insert(signal.policy.clone());
        }
        let Some((way, arguments)) = way(&self.catalog, signal, tool, process) else { return };
        if !tally.ways.contains_key(&way) {
            if tally.ways.len() >= WAYS_MAX {
                tally.ways.retain(|_, habit| habit.counts.times() > 1);
                self.entries -= WAYS_MAX - tally.ways.len();
            }
            if tally.ways.len() >= WAYS_MAX || self.entries >= ENTRIES_MAX {
                return;
            }
            self.entries += 1;
        }
        let parent = way.parent.clone();
        let habit = tally.ways.entry(way).or_default();
        if habit.counts.times() == 0 {
            habit.arguments = arguments.iter().map(|argument| Seen::new(argument)).collect();
            habit.sample = sample(&process.argv);
        } else {
            habit.arguments.iter_mut().zip(arguments).for_each(|(seen, argument)| seen.add(argument));
        }
        habit.counts.add(signal);
        let argv = process.argv.get(process.argv.len().saturating_sub(arguments.len() + 1)..).unwrap_or_default();
        habit.dangers.extend(danger::dangers(&self.catalog, tool, argv, process, parent.as_deref()));
        habit.unconfirmed += u64::from(process.argv_unconfirmed);
        habit.exec_sessions += u64::from(signal.origin == Origin::ExecSession);
        let image = signal.container.as_ref().map(|container| container.image.as_str()).unwrap_or_default();
        if habit.images.len() < IMAGES_MAX {
            habit.images.insert(image.to_owned());
        }
    }

    /// By workload and tool.
    pub fn tallies(&self) -> impl Iterator<Item = (&Workload, &str, &Tally)> {
        self.tallies.iter().map(|((workload, tool), tally)| (workload, tool.as_str(), tally))
    }

    /// How many signals are not in here because there are too many workloads and tools.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

/// The way in which a tool was called, and its arguments; `None` where an exception can't say it.
fn way<'a>(catalog: &Catalog, signal: &Signal, tool: &Tool, process: &'a Process) -> Option<(Way, &'a [String])> {
    let by_pattern = signal.identified_by == [Identification::Pattern];
    if process.argv_truncated || !by_pattern && !catalog.tools().iter().any(|known| known.id == tool.id) {
        return None;
    }
    let arguments = arguments(catalog, signal, tool, process)?;
    let known = |ancestor: &&Ancestor| !ancestor.exe_truncated && is_exe(&ancestor.exe);
    let parent = signal.lineage.first().filter(known).map(|parent| parent.exe.clone());
    let ancestor = match &parent {
        Some(parent) if danger::runs_scripts(catalog, base_name(parent)) => {
            let mut before = signal.lineage.iter().skip(1);
            let told = before.find(|ancestor| !danger::is_shell(catalog, base_name(&ancestor.exe)));
            told.filter(known).map(|ancestor| ancestor.exe.clone())
        }
        _ => None,
    };
    let runs = signal.identified_by.contains(&Identification::Socket);
    let places = if runs { None } else { Some(shape::places(arguments)?) };
    Some((
        Way { policy: signal.policy.clone(), user: process.uid, parent, ancestor, arguments: places, by_pattern },
        arguments,
    ))
}

/// Behind the last slash.
fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// What an exception can name as an executable.
fn is_exe(path: &str) -> bool {
    path.starts_with('/') && !path.ends_with('*') && path.len() <= PATTERN_MAX && !path.contains('\u{fffd}')
}

/// The tool's own: those behind its name, where something else was executed that runs it.
fn arguments<'a>(catalog: &Catalog, signal: &Signal, tool: &Tool, process: &'a Process) -> Option<&'a [String]> {
    let hosted = [Identification::Applet, Identification::Loader].iter().any(|way| signal.identified_by.contains(way));
    let name = if hosted {
        process.argv.iter().enumerate().position(|(index, argument)| {
            let text = if index == 0 { argument.strip_prefix('-').unwrap_or(argument) } else { argument };
            catalog.meaning_of_name(base_name(text)).is_some_and(|meaning| meaning.id == tool.id)
        })?
    } else {
        0
    };
    process.argv.get(name + 1..)
}

/// As much of a command as is worth showing.
fn sample(argv: &[String]) -> Vec<String> {
    let mut left = SAMPLE_MAX;
    let mut sample = Vec::new();
    for argument in argv {
        if argument.len() >= left {
            sample.push("…".to_owned());
            break;
        }
        left -= argument.len();
        sample.push(argument.clone());
    }
    sample
}

#[cfg(test)]
mod tests;
