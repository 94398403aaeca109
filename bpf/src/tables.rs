//! Filling the tables of names, contents and rules.

use std::{collections::HashSet, hash::Hash, thread, time::Duration};

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, lpm_trie::Key};
use rustix::thread::{MembarrierCommand, membarrier};

use crate::{
    abi::{
        COUNTERS, Comm, CommKey, Exception, ExceptionKey, FingerprintKey, Identity, LoaderOption, NameKey, NamePrefix,
        PREFIXES_MAX, Pattern, PatternKey, RuleKey, Ruling,
    },
    guard::{GuardError, open_hash, open_map},
    pins::Pins,
};

/// How many rules the table has room for, as maps.bpf.h says.
pub const RULES_MAX: usize = 65_536;
/// How many patterns of comm the table has room for, as maps.bpf.h says.
pub const COMM_PATTERNS_MAX: usize = 4096;
/// How many exceptions the table has room for, as maps.bpf.h says.
pub const EXCEPTIONS_MAX: usize = 16_384;
/// How many of the exceptions' texts the table has room for, as maps.bpf.h says.
pub const PATTERNS_MAX: usize = 65_536;

/// What the tables are to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Name to what it stands for.
    pub names: Vec<(NameKey, Identity)>,
    /// Content to what it stands for, on the whole node.
    pub fingerprints: Vec<(u64, Identity)>,
    /// Options of dynamic loaders that something follows.
    pub loader_options: Vec<(NameKey, LoaderOption)>,
    /// How multi-call programs' own names begin. Those beyond [`PREFIXES_MAX`] have no effect.
    pub multicall_prefixes: Vec<NamePrefix>,
    /// Pattern of comm to the pattern's id.
    pub comm_patterns: Vec<(CommKey, u32)>,
    /// Policy and tool, or pattern of comm, to what is done.
    pub rules: Vec<(RuleKey, Ruling)>,
    /// What policies except.
    pub exceptions: Vec<(ExceptionKey, Exception)>,
    /// The exceptions' texts.
    pub patterns: Vec<(PatternKey, Pattern)>,
}

/// The pinned tables that the agent fills.
pub struct Tables {
    names: HashMap<MapData, NameKey, Identity>,
    fingerprints: HashMap<MapData, FingerprintKey, Identity>,
    loader_options: HashMap<MapData, NameKey, u32>,
    multicall_prefixes: Array<MapData, NamePrefix>,
    comm_patterns: LpmTrie<MapData, Comm, u32>,
    rules: HashMap<MapData, RuleKey, Ruling>,
    exceptions: HashMap<MapData, ExceptionKey, Exception>,
    patterns: HashMap<MapData, PatternKey, Pattern>,
    counters: PerCpuArray<MapData, [u64; COUNTERS.len()]>,
}

impl Tables {
    /// Opens the pinned tables.
    pub fn open(pins: &Pins) -> Result<Self, GuardError> {
        Ok(Self {
            names: open_hash(pins, "names")?,
            fingerprints: open_hash(pins, "fingerprints")?,
            loader_options: open_hash(pins, "loader_options")?,
            multicall_prefixes: open_map(pins, "multicall_prefixes")?
                .try_into()
                .map_err(|source| GuardError::Map { name: "multicall_prefixes", source })?,
            comm_patterns: open_map(pins, "comm_patterns")?
                .try_into()
                .map_err(|source| GuardError::Map { name: "comm_patterns", source })?,
            rules: open_hash(pins, "rules")?,
            exceptions: open_hash(pins, "exceptions")?,
            patterns: open_hash(pins, "patterns")?,
            counters: open_map(pins, "counters")?
                .try_into()
                .map_err(|source| GuardError::Map { name: "counters", source })?,
        })
    }

    /// Puts this into the tables, beside what is there. Of a key that is there already the new value holds.
    pub fn add(&mut self, content: &Content) -> Result<(), GuardError> {
        let fingerprints = fingerprints(content);
        let options = loader_options(content);
        for place in 0..PREFIXES_MAX {
            let prefix = content.multicall_prefixes.get(place).unwrap_or(&NamePrefix::NONE);
            let index = u32::try_from(place).unwrap_or(u32::MAX);
            self.multicall_prefixes
                .set(index, prefix, 0)
                .map_err(|source| GuardError::Map { name: "multicall_prefixes", source })?;
        }
        insert(&mut self.names, "names", &content.names)?;
        insert(&mut self.fingerprints, "fingerprints", &fingerprints)?;
        insert(&mut self.loader_options, "loader_options", &options)?;
        insert(&mut self.patterns, "patterns", &content.patterns)?;
        insert(&mut self.exceptions, "exceptions", &content.exceptions)?;
        insert(&mut self.rules, "rules", &content.rules)?;
        // After the rules: what is found in it is looked up there.
        content
            .comm_patterns
            .iter()
            .try_for_each(|(key, pattern)| self.comm_patterns.insert(&Key::new(key.bits, key.comm), pattern, 0))
            .map_err(|source| GuardError::Map { name: "comm_patterns", source })
    }

    /// Removes what is not in this, but for the rules of the policies that are `held` by containers, and for what shims have
    /// learnt of images. Of two contents, [`Self::add`] the new one before removing what only the old one had: a running
    /// container is at no moment without what is in both.
    ///
    /// Waits until every program has ended that began before, some milliseconds: it may have read a container's former entry,
    /// and still want that policy's rules.
    pub fn retain(&mut self, content: &Content, held: &HashSet<u32>) -> Result<(), GuardError> {
        await_programs();
        remove_others(&mut self.names, "names", &content.names, |_| true)?;
        remove_others(&mut self.fingerprints, "fingerprints", &fingerprints(content), |key| key.scope == 0)?;
        remove_others(&mut self.loader_options, "loader_options", &loader_options(content), |_| true)?;
        // Before the rules: what is found in it is looked up there.
        self.retain_comm_patterns(&content.comm_patterns, held)
            .map_err(|source| GuardError::Map { name: "comm_patterns", source })?;
        remove_others(&mut self.rules, "rules", &content.rules, |key| !held.contains(&key.policy))?;
        remove_others(&mut self.exceptions, "exceptions", &content.exceptions, |key| !held.contains(&key.policy))?;
        remove_others(&mut self.patterns, "patterns", &content.patterns, |key| !held.contains(&key.policy))
    }

    fn retain_comm_patterns(&mut self, wanted: &[(CommKey, u32)], held: &HashSet<u32>) -> Result<(), MapError> {
        let wanted: HashSet<CommKey> = wanted.iter().map(|(key, _)| *key).collect();
        let known: Vec<Key<Comm>> = self.comm_patterns.keys().collect::<Result<_, _>>()?;
        known
            .iter()
            .filter(|key| !held.contains(&{ key.data().policy }))
            .filter(|key| !wanted.contains(&CommKey { bits: key.prefix_len(), comm: key.data() }))
            .try_for_each(|key| self.comm_patterns.remove(key))
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

/// Programs that do not sleep run in RCU read-side critical sections, and this command is a grace period of RCU
/// (kernel/sched/membarrier.c, since Linux 4.3). The kernel refuses it on nodes with CPUs that tick no clock (nohz_full);
/// there as long as a program ever takes must be enough.
fn await_programs() {
    if membarrier(MembarrierCommand::Global).is_err() {
        thread::sleep(Duration::from_millis(100));
    }
}

fn fingerprints(content: &Content) -> Vec<(FingerprintKey, Identity)> {
    let key = |fingerprint| FingerprintKey { fingerprint, scope: 0 };
    content.fingerprints.iter().map(|(hash, identity)| (key(*hash), *identity)).collect()
}

fn loader_options(content: &Content) -> Vec<(NameKey, u32)> {
    content.loader_options.iter().map(|(name, option)| (*name, *option as u32)).collect()
}

fn insert<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    wanted: &[(K, V)],
) -> Result<(), GuardError> {
    wanted
        .iter()
        .try_for_each(|(key, value)| map.insert(key, value, 0))
        .map_err(|source| GuardError::Map { name, source })
}

/// Removes what is not wanted of those keys that are `ours`.
fn remove_others<K: aya::Pod + Eq + Hash, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    wanted: &[(K, V)],
    ours: impl Fn(&K) -> bool,
) -> Result<(), GuardError> {
    let wanted: HashSet<&K> = wanted.iter().map(|(key, _)| key).collect();
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>().map_err(|source| GuardError::Map { name, source })?;
    for key in keys.iter().filter(|key| ours(key) && !wanted.contains(key)) {
        map.remove(key).map_err(|source| GuardError::Map { name, source })?;
    }
    Ok(())
}
