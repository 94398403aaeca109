//! Exceptions for what is habitual, for a person to review.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    mem,
};

use portcullis_policy::exceptions::USERS_MAX;
use serde::Serialize;

use super::{
    Counts, DISTINCT_MAX, Habit, Habits, Tally, Way, base_name,
    danger::{Danger, runs_scripts},
    workload::{Workload, image_globs},
};
use crate::time::Time;

/// From when on something is a habit.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "What is habitual")]
pub struct Threshold {
    /// Seen at least so often, in the same way
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub min_times: u64,
    /// In at least so many containers, or on so many days
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=DISTINCT_MAX as i64))]
    pub min_spread: u16,
}

impl Threshold {
    fn is_met(&self, counts: &Counts) -> bool {
        let spread = usize::from(self.min_spread);
        counts.times() >= self.min_times && (counts.containers().0 >= spread || counts.days().0 >= spread)
    }
}

/// An exception as policies have it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // docs/policies.md documents them.
pub struct Exception {
    pub tools: Vec<String>,
    pub arguments: Option<Vec<String>>,
    pub parents: Vec<String>,
    pub ancestors: Vec<String>,
    pub users: BTreeSet<u32>,
    pub images: BTreeSet<String>,
}

/// A proposal.
#[derive(Debug, Clone)]
pub struct Suggestion {
    /// The policy that would have it.
    pub policy: String,
    /// What it would be.
    pub exception: Exception,
    /// What would have been excepted.
    pub counts: Counts,
    /// Where.
    pub workloads: BTreeSet<Workload>,
    /// One command of those.
    pub sample: Vec<String>,
    /// Why it had better not be; most often there is none.
    pub dangers: BTreeSet<Danger>,
    unconfirmed: u64,
    exec_sessions: u64,
    by_script: bool,
}

impl Habits {
    /// What can be proposed: by policy; the harmless first, the frequent first. Habits that differ in nothing but the
    /// workload make one exception, and those that then differ in nothing but the user: so none fits what was not seen of
    /// that user in that image.
    pub fn suggestions(&self, threshold: &Threshold) -> Vec<Suggestion> {
        let found = self.tallies().flat_map(|(workload, tool, tally)| {
            habits(tally, threshold).filter_map(move |(way, habit)| self.suggestion(workload, tool, way, habit))
        });
        let suggestions = merge(found, |exception| &mut exception.images);
        let suggestions = merge(suggestions, |exception| &mut exception.users);
        let mut suggestions: Vec<Suggestion> = suggestions.collect();
        for suggestion in &mut suggestions {
            let users = &mut suggestion.exception.users;
            if users.len() > USERS_MAX {
                users.clear();
            }
        }
        let rank = |one: &Suggestion| (!one.dangers.is_empty(), Reverse(one.counts.times()));
        suggestions.sort_by(|a, b| a.policy.cmp(&b.policy).then_with(|| rank(a).cmp(&rank(b))));
        suggestions
    }

    fn suggestion(&self, workload: &Workload, tool: &str, way: &Way, habit: &Habit) -> Option<Suggestion> {
        Some(Suggestion {
            policy: way.policy.clone(),
            exception: exception(tool, way, habit)?,
            counts: habit.counts.clone(),
            workloads: BTreeSet::from([workload.clone()]),
            sample: habit.sample.clone(),
            dangers: habit.dangers.clone(),
            unconfirmed: habit.unconfirmed,
            exec_sessions: habit.exec_sessions,
            by_script: way.parent.as_ref().is_some_and(|parent| runs_scripts(&self.catalog, base_name(parent))),
        })
    }
}

/// Makes one of those whose exceptions differ in this list alone.
fn merge<T: Ord>(
    suggestions: impl Iterator<Item = Suggestion>,
    list: fn(&mut Exception) -> &mut BTreeSet<T>,
) -> impl Iterator<Item = Suggestion> {
    let mut merged: BTreeMap<(String, Exception), (Suggestion, BTreeSet<T>)> = BTreeMap::new();
    for mut suggestion in suggestions {
        let mut own = mem::take(list(&mut suggestion.exception));
        match merged.entry((suggestion.policy.clone(), suggestion.exception.clone())) {
            Entry::Vacant(place) => {
                place.insert((suggestion, own));
            }
            Entry::Occupied(mut place) => {
                let (first, all) = place.get_mut();
                all.append(&mut own);
                first.counts.merge(&suggestion.counts);
                first.workloads.append(&mut suggestion.workloads);
                first.dangers.append(&mut suggestion.dangers);
                first.unconfirmed += suggestion.unconfirmed;
                first.exec_sessions += suggestion.exec_sessions;
            }
        }
    }
    merged.into_values().map(move |(mut suggestion, all)| {
        *list(&mut suggestion.exception) = all;
        suggestion
    })
}

impl Tally {
    /// How many of its executions the harmless suggestions would except.
    pub fn habitual(&self, threshold: &Threshold) -> u64 {
        let harmless = habits(self, threshold).filter(|(_, habit)| habit.dangers.is_empty());
        // The tool's name does not matter to whether there is an exception.
        harmless.filter(|(way, habit)| exception("", way, habit).is_some()).map(|(_, habit)| habit.counts.times()).sum()
    }
}

fn habits<'a>(tally: &'a Tally, threshold: &'a Threshold) -> impl Iterator<Item = (&'a Way, &'a Habit)> {
    tally.ways.iter().filter(|(_, habit)| threshold.is_met(&habit.counts))
}

fn is_open_path(pattern: &str) -> bool {
    let value = pattern.split_once('=').map_or(pattern, |(_, value)| value);
    pattern.ends_with('*') && (pattern.starts_with('/') || value.starts_with('/'))
}

/// `None` if an exception can't say it.
fn exception(tool: &str, way: &Way, habit: &Habit) -> Option<Exception> {
    let arguments = match &way.arguments {
        None => None,
        Some(places) => {
            Some(places.iter().zip(&habit.arguments).map(|(place, seen)| seen.pattern(place)).collect::<Option<_>>()?)
        }
    };
    Some(Exception {
        tools: if way.by_pattern { Vec::new() } else { vec![tool.to_owned()] },
        arguments,
        parents: way.parent.iter().cloned().collect(),
        ancestors: way.ancestor.iter().cloned().collect(),
        users: BTreeSet::from([way.user]),
        images: image_globs(&habit.images)?,
    })
}

impl Suggestion {
    /// Why there is this exception, for the policy's readers.
    pub fn reason(&self) -> String {
        let day = |time: Option<Time>| time.map(|time| time.short().chars().take(10).collect::<String>());
        let since = day(self.counts.first).unwrap_or_default();
        let until = day(self.counts.last).unwrap_or_default();
        format!("habitual: {} times from {since} to {until}", self.counts.times())
    }

    /// What else a reviewer should know.
    pub fn notes(&self) -> Vec<String> {
        let times = self.counts.times();
        let Self { unconfirmed, exec_sessions, exception, .. } = self;
        let notes = [
            (
                exception.tools.is_empty(),
                "a pattern of comm has found it: it is excepted for whatever a rule names".to_owned(),
            ),
            (exception.arguments.is_none(), "its arguments can't be told: it is excepted whatever they are".to_owned()),
            (exception.parents.is_empty(), "its caller is not known: it is excepted whoever calls it".to_owned()),
            (self.by_script, "its caller runs scripts: the same in any other script is excepted too".to_owned()),
            (exception.users.is_empty(), format!("more than {USERS_MAX} users do it: it is excepted for all")),
            (
                exception
                    .arguments
                    .as_ref()
                    .is_some_and(|patterns| patterns.iter().any(|pattern| is_open_path(pattern))),
                "a path's * stands for ../ as well".to_owned(),
            ),
            (
                *unconfirmed > 0,
                format!("{unconfirmed} of {times} times the arguments were read where the process could change them"),
            ),
            (
                *exec_sessions > 0,
                format!("{exec_sessions} of {times} times it came from outside (a probe, kubectl exec)"),
            ),
        ];
        notes.into_iter().filter_map(|(holds, note)| holds.then_some(note)).collect()
    }
}
