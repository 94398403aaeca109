//! The pinned objects as the agent uses them: tables filled, counters read.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portcullis_bpf::{
    Backend,
    abi::{Container, ContainerStats, container_flags},
    cgroup::Cgroup,
    guard::{Guard, GuardError, Hooks, Move, Placement},
    isolation::{self, Isolation, IsolationError},
    loader::{self, LoadError},
    pins::Pins,
    probe,
    tables::{Content, Tables},
};
use portcullis_policy::policyset;

use crate::{api::KernelCounters, config::BackendChoice, containment::Means, enforcement::PolicyTables};

/// The tables.
pub struct Kernel {
    pins: Pins,
    tables: Mutex<Tables>,
    guard: Mutex<Guard>,
    _hooks: Option<Hooks>,
    isolation: Mutex<Result<Isolation, Arc<IsolationError>>>,
}

impl Kernel {
    /// Loads and pins what is not pinned yet, and loads what operators may want later: then nothing can be loaded any more.
    pub fn load(pins: &Pins, backend: Backend) -> Result<Self, LoadError> {
        let tables = Mutex::new(loader::load(pins, backend)?);
        let isolation = Isolation::load().map_err(Arc::new);
        if let Err(error) = &isolation {
            let error = anyhow::Error::from(Arc::clone(error));
            tracing::warn!(error = format!("{error:#}"), "containers can't be cut off from the network");
        }
        let guard = Mutex::new(Guard::open(pins.clone())?);
        Ok(Self {
            pins: pins.clone(),
            tables,
            guard,
            _hooks: hold_hooks(pins, backend),
            isolation: Mutex::new(isolation),
        })
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What another version's tables have of a container, if they can be read. Opened for each question: there are few such
    /// containers, fewer with each that ends, and nothing open keeps the tables from going with the last of them.
    fn elsewhere<T>(&self, find: impl Fn(&Guard) -> Option<T>) -> Option<T> {
        let others = self.pins.others().ok()?;
        others.into_iter().find_map(|pins| find(&Guard::open(pins).ok()?))
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By the agent's own cgroup, which a service has for itself. Without it a node's only container starts later, and nothing else is different.
fn hold_hooks(pins: &Pins, backend: Backend) -> Option<Hooks> {
    if backend != Backend::Lsm {
        return None;
    }
    let held = Cgroup::own()
        .map_err(anyhow::Error::from)
        .and_then(|own| own.map(|own| Hooks::hold(pins, &own)).transpose().map_err(Into::into));
    held.unwrap_or_else(|error| {
        tracing::info!(error = format!("{error:#}"), "the node's first container will start a second later");
        None
    })
}

impl PolicyTables for Kernel {
    fn add(&self, content: &Content) -> Result<(), GuardError> {
        self.tables().add(content)
    }

    fn retain(&self, content: &Content, held: &HashSet<u32>) -> Result<(), GuardError> {
        self.tables().retain(content, held)
    }

    fn policies_held(&self) -> Result<HashSet<u32>, GuardError> {
        self.guard().policies_held()
    }

    fn container(&self, cgroup_id: u64) -> Result<Option<Container>, GuardError> {
        let own = self.guard().container(cgroup_id)?;
        Ok(own.or_else(|| self.elsewhere(|guard| guard.container(cgroup_id).ok()?)))
    }

    fn move_container(&self, cgroup_id: u64, to: Placement) -> Result<Move, GuardError> {
        self.guard().move_container(cgroup_id, to)
    }
}

/// One at a time, and none while a container is moved.
impl Means for Kernel {
    fn set_locked(&self, cgroup_id: u64, locked: bool) -> Result<Move, GuardError> {
        self.guard().set_locked(cgroup_id, locked)
    }

    fn is_locked(&self, cgroup_id: u64) -> Result<bool, GuardError> {
        let container = self.guard().container(cgroup_id)?;
        Ok(container.is_some_and(|container| container.flags & container_flags::LOCKED != 0))
    }

    fn isolate(&self, cgroup: &Cgroup) -> Result<(), IsolationError> {
        let _guard = self.guard();
        match &mut *self.isolation.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(isolation) => isolation.isolate(&self.pins, cgroup),
            Err(error) => Err(IsolationError::Unavailable(Arc::clone(error))),
        }
    }

    fn end_isolation(&self, cgroup_id: u64) -> Result<(), IsolationError> {
        let _guard = self.guard();
        isolation::release(&self.pins, cgroup_id)
    }

    fn is_isolated(&self, cgroup_id: u64) -> bool {
        isolation::is_isolated(&self.pins, cgroup_id)
    }
}

impl KernelCounters for Kernel {
    fn container(&self, cgroup_id: u64) -> Option<ContainerStats> {
        let own = self.guard().stats(cgroup_id);
        own.or_else(|| self.elsewhere(|guard| guard.stats(cgroup_id)))
    }

    fn activities_lost(&self, cgroup_id: u64) -> u64 {
        // By the version that guards it; others need not be opened.
        let counted = |guard: &Guard| guard.stats(cgroup_id).map(|_| guard.activities_lost(cgroup_id));
        let own = counted(&self.guard());
        own.or_else(|| self.elsewhere(counted)).unwrap_or(0)
    }

    fn node(&self) -> Vec<(&'static str, u64)> {
        let counters = self.tables().counters();
        counters.unwrap_or_else(|error| {
            let error = anyhow::Error::from(error);
            tracing::warn!(error = format!("{error:#}"), "the kernel's counters can't be read");
            Vec::new()
        })
    }
}

/// A node that can't do what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Neither backend works.
    #[error("this node's kernel can't run Portcullis: {reason}{}", remedies(failed))]
    None {
        /// The probe's summary.
        reason: String,
        /// What failed.
        failed: Vec<probe::Check>,
    },
    /// The one that was asked for does not.
    #[error("backend = \"lsm\" is configured, but this node offers only the tracepoint: {reason}{}", remedies(failed))]
    NoLsm {
        /// The probe's summary.
        reason: String,
        /// What failed.
        failed: Vec<probe::Check>,
    },
}

fn remedies(checks: &[probe::Check]) -> String {
    checks
        .iter()
        .fold(String::new(), |text, check| text + &format!("; {}: {}: {}", check.name, check.detail, check.remedy))
}

/// The backend to use and why.
pub fn choose(choice: BackendChoice, report: &probe::Report) -> Result<(Backend, String), BackendError> {
    let reason = report.reason.clone();
    let failed = || report.checks.iter().filter(|check| check.state != probe::State::Ok).cloned().collect();
    match (choice, report.backend) {
        (_, None) => Err(BackendError::None { reason, failed: failed() }),
        (BackendChoice::Lsm, Some(Backend::Tracepoint)) => Err(BackendError::NoLsm { reason, failed: failed() }),
        (BackendChoice::Tracepoint, Some(Backend::Lsm)) => {
            Ok((Backend::Tracepoint, format!("configured; without that it would be lsm: {reason}")))
        }
        (_, Some(backend)) => Ok((backend, reason)),
    }
}

/// A backend as the policy set has it.
pub fn published(backend: Backend) -> policyset::Backend {
    match backend {
        Backend::Lsm => policyset::Backend::Lsm,
        Backend::Tracepoint => policyset::Backend::Tracepoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(backend: Option<Backend>) -> probe::Report {
        let check = probe::Check {
            name: "bpf-lsm",
            state: probe::State::Failed,
            detail: "bpf is not among the active LSMs".into(),
            remedy: "boot with lsm=…,bpf".into(),
        };
        probe::Report { kernel: "6.1".into(), backend, reason: "because".into(), checks: vec![check] }
    }

    #[test]
    fn a_node_gets_what_is_asked_for_or_nothing() {
        let chosen = |choice, offered| choose(choice, &report(offered)).map(|(backend, _)| backend).ok();
        let (lsm, tracepoint) = (Some(Backend::Lsm), Some(Backend::Tracepoint));
        assert_eq!(chosen(BackendChoice::Auto, lsm), lsm);
        assert_eq!(chosen(BackendChoice::Auto, tracepoint), tracepoint);
        assert_eq!(chosen(BackendChoice::Lsm, lsm), lsm);
        assert_eq!(chosen(BackendChoice::Tracepoint, lsm), tracepoint);
        assert_eq!(chosen(BackendChoice::Lsm, tracepoint), None);
        assert_eq!(chosen(BackendChoice::Auto, None), None);
        let error = choose(BackendChoice::Lsm, &report(tracepoint)).unwrap_err().to_string();
        assert!(error.contains("because") && error.contains("boot with"), "{error}");
    }
}
