//! What shims have learnt of containers' contents: the scoped part of the map `fingerprints`.
//!
//! Each scope has a mark, the entry of fingerprint 0, which no file has: by which catalogue the scope was learnt, and when
//! it was used last. It is what makes the second container of an image cost one look, and what tells the agent what may go.

use std::collections::{self, HashSet};

use aya::maps::{HashMap, MapData, MapError};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    abi::{Container, FingerprintKey, Identity, NameKey},
    guard::{GuardError, is_missing, open_hash, remove},
    pins::Pins,
};

const MAP: &str = "fingerprints";
/// `BPF_EXIST`: only change what is there.
const EXIST: u64 = 2;

/// Seconds that an unused scope is kept: the next container of the image may come soon.
pub const KEPT_SECONDS: u32 = 3600;

/// The scoped contents.
#[derive(Debug)]
pub struct Contents {
    fingerprints: HashMap<MapData, FingerprintKey, Identity>,
}

fn mark(scope: u64) -> FingerprintKey {
    FingerprintKey { fingerprint: 0, scope }
}

/// Seconds since boot: they go on while the machine sleeps.
fn now() -> u32 {
    u32::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(u32::MAX)
}

fn fail(source: MapError) -> GuardError {
    GuardError::Map { name: MAP, source }
}

/// Every name that stands for something, with what it stands for.
pub fn names(pins: &Pins) -> Result<collections::HashMap<NameKey, Identity>, GuardError> {
    let names: HashMap<_, NameKey, Identity> = open_hash(pins, "names")?;
    names.iter().collect::<Result<_, _>>().map_err(|source| GuardError::Map { name: "names", source })
}

impl Contents {
    /// Opens the pinned map.
    pub fn open(pins: &Pins) -> Result<Self, GuardError> {
        Ok(Self { fingerprints: open_hash(pins, MAP)? })
    }

    /// Whether a scope was learnt by this catalogue; if so it counts as used now.
    pub fn knows(&mut self, scope: u64, catalog: u32) -> Result<bool, GuardError> {
        match self.fingerprints.get(&mark(scope), 0) {
            Ok(Identity { id, .. }) if id == catalog => {}
            Ok(_) => return Ok(false),
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) => return Err(fail(error)),
        }
        match self.fingerprints.insert(mark(scope), Identity { id: catalog, kind: now() }, EXIST) {
            Ok(()) => Ok(true),
            // The agent has just removed it.
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(fail(error)),
        }
    }

    /// Makes contents, and no others, stand for something in all containers of a scope.
    pub fn learn(&mut self, scope: u64, catalog: u32, contents: &[(u64, Identity)]) -> Result<(), GuardError> {
        for (fingerprint, identity) in contents {
            let key = FingerprintKey { fingerprint: *fingerprint, scope };
            self.fingerprints.insert(key, identity, 0).map_err(fail)?;
        }
        // Learnt before, by another catalogue. A look through the whole table, but a rare one.
        if self.fingerprints.get(&mark(scope), 0).is_ok() {
            let wanted: HashSet<u64> = contents.iter().map(|(fingerprint, _)| *fingerprint).collect();
            let keys: Vec<FingerprintKey> = self.fingerprints.keys().collect::<Result<_, _>>().map_err(fail)?;
            for key in keys.iter().filter(|key| key.scope == scope && !wanted.contains(&key.fingerprint)) {
                remove(&mut self.fingerprints, MAP, key)?;
            }
        }
        // Last: a scope with a mark is complete.
        self.fingerprints.insert(mark(scope), Identity { id: catalog, kind: now() }, 0).map_err(fail)
    }

    /// Removes the scopes that no container has and that were not used for [`KEPT_SECONDS`]; returns how many.
    ///
    /// A shim may take such a scope into use at this moment. It looks for the mark again once its container is in the table;
    /// here the mark goes first and the table is looked at afterwards: one of the two sees the other.
    pub fn forget_unused(&mut self, pins: &Pins) -> Result<usize, GuardError> {
        let keys: Vec<FingerprintKey> = self.fingerprints.keys().collect::<Result<_, _>>().map_err(fail)?;
        let used = scopes_in_use(pins)?;
        let mut stale: HashSet<u64> = keys.iter().map(|key| key.scope).collect();
        stale.retain(|scope| *scope != 0 && !used.contains(scope));
        for scope in stale.clone() {
            // Without a mark it was never completed.
            let Ok(last) = self.fingerprints.get(&mark(scope), 0) else { continue };
            if now().saturating_sub(last.kind) > KEPT_SECONDS {
                remove(&mut self.fingerprints, MAP, &mark(scope))?;
            } else {
                stale.remove(&scope);
            }
        }
        if stale.is_empty() {
            return Ok(0);
        }
        let used = scopes_in_use(pins)?;
        stale.retain(|scope| !used.contains(scope));
        for key in keys.iter().filter(|key| stale.contains(&key.scope)) {
            remove(&mut self.fingerprints, MAP, key)?;
        }
        Ok(stale.len())
    }
}

fn scopes_in_use(pins: &Pins) -> Result<HashSet<u64>, GuardError> {
    let containers: HashMap<_, u64, Container> = open_hash(pins, "containers")?;
    Ok(containers.iter().filter_map(Result::ok).map(|(_, container)| container.scope).collect())
}
