//! Filling the tables of names and rules.

use std::{collections::HashSet, hash::Hash};

use aya::maps::{HashMap, MapData, PerCpuArray};

use crate::{
    abi::{Action, COUNTERS, NameKey, RuleKey},
    guard::{GuardError, open_hash, open_map},
    pins::Pins,
};

/// The pinned tables that the agent fills.
pub struct Tables {
    names: HashMap<MapData, NameKey, u32>,
    rules: HashMap<MapData, RuleKey, u32>,
    counters: PerCpuArray<MapData, [u64; COUNTERS.len()]>,
}

impl Tables {
    /// Opens the pinned tables.
    pub fn open(pins: &Pins) -> Result<Self, GuardError> {
        Ok(Self {
            names: open_hash(pins, "names")?,
            rules: open_hash(pins, "rules")?,
            counters: open_map(pins, "counters")?
                .try_into()
                .map_err(|source| GuardError::Map { name: "counters", source })?,
        })
    }

    /// Makes the tables hold exactly this. New entries go in before old ones go out, so that a running container is
    /// at no moment without the rules that are in both.
    pub fn replace(&mut self, names: &[(NameKey, u32)], rules: &[(RuleKey, Action)]) -> Result<(), GuardError> {
        for (key, tool) in names {
            self.names.insert(key, tool, 0).map_err(|source| GuardError::Map { name: "names", source })?;
        }
        for (key, action) in rules {
            self.rules.insert(key, *action as u32, 0).map_err(|source| GuardError::Map { name: "rules", source })?;
        }
        remove_others(&mut self.names, "names", names)?;
        remove_others(&mut self.rules, "rules", rules)
    }

    /// What went wrong inside the programs since they were loaded: name and count.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, GuardError> {
        let per_cpu = self.counters.get(&0, 0).map_err(|source| GuardError::Map { name: "counters", source })?;
        let mut totals: Vec<(&'static str, u64)> = COUNTERS.map(|name| (name, 0)).into();
        for counters in per_cpu.iter() {
            for ((_, total), count) in totals.iter_mut().zip(counters) {
                *total += count;
            }
        }
        Ok(totals)
    }
}

fn remove_others<K: aya::Pod + Eq + Hash, V>(
    map: &mut HashMap<MapData, K, u32>,
    name: &'static str,
    wanted: &[(K, V)],
) -> Result<(), GuardError> {
    let wanted: HashSet<&K> = wanted.iter().map(|(key, _)| key).collect();
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>().map_err(|source| GuardError::Map { name, source })?;
    for key in keys.iter().filter(|key| !wanted.contains(key)) {
        map.remove(key).map_err(|source| GuardError::Map { name, source })?;
    }
    Ok(())
}
