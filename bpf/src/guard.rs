//! Putting one container under guard, and releasing it. Everything here works on pinned objects: no agent needed.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::{HashMap, Map, MapData, MapError},
    pin::PinError,
    programs::{LsmCgroup, ProgramError, links::FdLink},
};

use crate::{
    Backend,
    abi::{Container, ContainerStats, Mode, container_flags},
    cgroup::Cgroup,
    pins::{LSM_PROGRAMS, Pins},
};

/// Why a container could not be guarded or released.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The agent has never loaded the programs since boot, or someone removed the pins.
    #[error("{} is missing: start portcullisd, which loads and pins Portcullis's programs", path.display())]
    NotPinned {
        /// Which pin.
        path: PathBuf,
    },
    /// A pinned map could not be opened or is of another shape.
    #[error("map {name}")]
    Map {
        /// Which map.
        name: &'static str,
        /// What the kernel or aya said.
        source: MapError,
    },
    /// The cgroup is guarded already, for another container.
    #[error("the cgroup {} is already under guard: two containers may not share a cgroupsPath", path.display())]
    AlreadyGuarded {
        /// Which cgroup.
        path: PathBuf,
    },
    /// A program could not be opened or attached.
    #[error("program {name} on the cgroup {}", cgroup.display())]
    Attach {
        /// Which program.
        name: &'static str,
        /// Which cgroup.
        cgroup: PathBuf,
        /// What the kernel or aya said.
        source: ProgramError,
    },
    /// The link could not be pinned.
    #[error("pinning the link of program {name}")]
    Pin {
        /// Which program.
        name: &'static str,
        /// What the kernel said.
        source: PinError,
    },
    /// A directory of bpffs could not be created or removed.
    #[error("bpffs: {}", path.display())]
    Bpffs {
        /// Which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A map opened from its pin.
pub(crate) fn open_map(pins: &Pins, name: &'static str) -> Result<Map, GuardError> {
    let path = pins.map(name);
    require(&path)?;
    MapData::from_pin(path).and_then(Map::from_map_data).map_err(|source| GuardError::Map { name, source })
}

/// A hash map opened from its pin.
pub(crate) fn open_hash<K: aya::Pod, V: aya::Pod>(
    pins: &Pins,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, GuardError> {
    open_map(pins, name)?.try_into().map_err(|source| GuardError::Map { name, source })
}

fn require(path: &Path) -> Result<(), GuardError> {
    if path.exists() { Ok(()) } else { Err(GuardError::NotPinned { path: path.to_owned() }) }
}

/// `BPF_EXIST` of `bpf(2)`: an update that does not create.
const BPF_EXIST: u64 = 2;

/// What a container is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Policy id.
    pub policy: u32,
    /// The mode in force.
    pub mode: Mode,
    /// Which of the policy's exceptions are for the container's image: a bit each.
    pub exceptions: u32,
}

/// What became of a container's entry that was to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// It is as wanted now.
    Moved,
    /// It was already.
    InPlace,
    /// It is not under guard.
    Gone,
}

/// The tables through which containers are guarded.
#[derive(Debug)]
pub struct Guard {
    pins: Pins,
    containers: HashMap<MapData, u64, Container>,
    stats: HashMap<MapData, u64, ContainerStats>,
    /// `None` of a version that did not count it.
    activity_losses: Option<HashMap<MapData, u64, u64>>,
}

impl Guard {
    /// Opens the pinned tables.
    pub fn open(pins: Pins) -> Result<Self, GuardError> {
        let containers = open_hash(&pins, "containers")?;
        let stats = open_hash(&pins, "container_stats")?;
        let activity_losses = open_hash(&pins, "activity_losses").ok();
        Ok(Self { pins, containers, stats, activity_losses })
    }

    /// What is opened.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Puts a container under guard. On failure nothing is left behind.
    pub fn attach(&mut self, cgroup: &Cgroup, backend: Backend, container: Container) -> Result<(), GuardError> {
        if self.containers.get(&cgroup.id, 0).is_ok() {
            return Err(GuardError::AlreadyGuarded { path: cgroup.path.clone() });
        }
        for pin in self.pins.needed(backend) {
            require(&pin)?;
        }
        let done = self.insert(cgroup.id, container).and_then(|()| match backend {
            Backend::Lsm => self.attach_lsm(cgroup),
            Backend::Tracepoint => Ok(()),
        });
        if done.is_err() {
            // The first error is the one to report.
            let _ = self.release(cgroup.id);
        }
        done
    }

    fn insert(&mut self, cgroup_id: u64, container: Container) -> Result<(), GuardError> {
        self.stats
            .insert(cgroup_id, ContainerStats::default(), 0)
            .map_err(|source| GuardError::Map { name: "container_stats", source })?;
        self.containers.insert(cgroup_id, container, 0).map_err(|source| GuardError::Map { name: "containers", source })
    }

    /// Puts a container under another policy or mode, in one step: a program sees the old entry or the new one. A container
    /// that is not in the table stays out of it, even if it is released at this moment.
    pub fn move_container(&mut self, cgroup_id: u64, to: Placement) -> Result<Move, GuardError> {
        let Placement { policy, mode, exceptions } = to;
        self.change(cgroup_id, |old| Container { policy, mode: mode as u32, exceptions, ..old })
    }

    /// Locks a container, so that every exec in it is refused, or unlocks it. Whoever moves it meanwhile must do so by the same
    /// value of this type.
    pub fn set_locked(&mut self, cgroup_id: u64, locked: bool) -> Result<Move, GuardError> {
        let lock = if locked { container_flags::LOCKED } else { 0 };
        self.change(cgroup_id, |old| Container { flags: old.flags & !container_flags::LOCKED | lock, ..old })
    }

    fn change(&mut self, cgroup_id: u64, change: impl FnOnce(Container) -> Container) -> Result<Move, GuardError> {
        let error = |source| GuardError::Map { name: "containers", source };
        let old = match self.containers.get(&cgroup_id, 0) {
            Ok(old) => old,
            Err(source) if is_missing(&source) => return Ok(Move::Gone),
            Err(source) => return Err(error(source)),
        };
        let new = change(old);
        if new == old {
            return Ok(Move::InPlace);
        }
        match self.containers.insert(cgroup_id, new, BPF_EXIST) {
            Ok(()) => Ok(Move::Moved),
            Err(source) if is_missing(&source) => Ok(Move::Gone),
            Err(source) => Err(error(source)),
        }
    }

    /// A container's entry, if it is in the table.
    pub fn container(&self, cgroup_id: u64) -> Result<Option<Container>, GuardError> {
        match self.containers.get(&cgroup_id, 0) {
            Ok(container) => Ok(Some(container)),
            Err(source) if is_missing(&source) => Ok(None),
            Err(source) => Err(GuardError::Map { name: "containers", source }),
        }
    }

    /// The policies under which some container is, whoever has put it there.
    pub fn policies_held(&self) -> Result<HashSet<u32>, GuardError> {
        let containers = self.containers.iter().map(|entry| entry.map(|(_, container)| container.policy));
        containers.collect::<Result<_, _>>().map_err(|source| GuardError::Map { name: "containers", source })
    }

    fn attach_lsm(&self, cgroup: &Cgroup) -> Result<(), GuardError> {
        let directory = self.pins.container_links(cgroup.id);
        fs::create_dir(&directory).map_err(|source| GuardError::Bpffs { path: directory.clone(), source })?;
        for (name, _) in LSM_PROGRAMS {
            let link = attach_program(&self.pins, name, cgroup)?;
            link.pin(directory.join(name)).map_err(|source| GuardError::Pin { name, source })?;
        }
        Ok(())
    }

    /// What the kernel counted for a container, if it is in the table.
    pub fn stats(&self, cgroup_id: u64) -> Option<ContainerStats> {
        self.stats.get(&cgroup_id, 0).ok()
    }

    /// Operations on the network by a container's reported processes that no record tells.
    pub fn activities_lost(&self, cgroup_id: u64) -> u64 {
        self.activity_losses.as_ref().and_then(|losses| losses.get(&cgroup_id, 0).ok()).unwrap_or(0)
    }

    /// What the kernel counted for all containers.
    pub fn all_stats(&self) -> Vec<(u64, ContainerStats)> {
        self.stats.iter().filter_map(Result::ok).collect()
    }

    /// The ids of all containers in the table.
    pub fn containers(&self) -> Vec<u64> {
        self.containers.keys().filter_map(Result::ok).collect()
    }

    /// Takes a container's guard away: links, then the table entry. What is not there is no error. Returns what the kernel has
    /// counted, if anything was there: it stays until [`Self::forget`], for whoever asks again because the first was killed.
    pub fn detach(&mut self, cgroup_id: u64) -> Result<Option<ContainerStats>, GuardError> {
        let directory = self.pins.container_links(cgroup_id);
        match fs::read_dir(&directory) {
            Ok(entries) => {
                let bpffs = |source| GuardError::Bpffs { path: directory.clone(), source };
                // The agent may be ending the container's isolation at this moment.
                let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
                for entry in entries {
                    fs::remove_file(entry.map_err(bpffs)?.path()).or_else(gone).map_err(bpffs)?;
                }
                fs::remove_dir(&directory).or_else(gone).map_err(bpffs)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(GuardError::Bpffs { path: directory, source }),
        }
        remove(&mut self.containers, "containers", &cgroup_id)?;
        // Nothing is counted any more.
        Ok(self.stats(cgroup_id))
    }

    /// Both, for a container of which nothing is to be told.
    pub fn release(&mut self, cgroup_id: u64) -> Result<(), GuardError> {
        self.detach(cgroup_id)?;
        self.forget(cgroup_id)
    }

    /// Gives up what the kernel has counted for a container that is detached. To be done once it is written down elsewhere.
    pub fn forget(&mut self, cgroup_id: u64) -> Result<(), GuardError> {
        if let Some(losses) = &mut self.activity_losses {
            remove(losses, "activity_losses", &cgroup_id)?;
        }
        remove(&mut self.stats, "container_stats", &cgroup_id)
    }
}

fn attach_program(pins: &Pins, name: &'static str, cgroup: &Cgroup) -> Result<FdLink, GuardError> {
    let attach = |source| GuardError::Attach { name, cgroup: cgroup.path.clone(), source };
    let mut program = LsmCgroup::from_pin(pins.program(name)).map_err(attach)?;
    let id = program.attach(&cgroup.directory).map_err(attach)?;
    Ok(program.take_link(id).map_err(attach)?.into())
}

/// The kernel's own attachment to the hooks of backend `lsm`. It comes with the first cgroup of the node that has programs there and goes
/// with the last, and for each hook the kernel waits for all CPUs: a second in all, in which a container does not start.
/// As long as this lives, no container is the first or the last.
#[derive(Debug)]
pub struct Hooks {
    _links: Vec<FdLink>,
}

impl Hooks {
    /// Holds them by a cgroup that is no container's: for what is executed there the programs do nothing.
    pub fn hold(pins: &Pins, cgroup: &Cgroup) -> Result<Self, GuardError> {
        let links = LSM_PROGRAMS.iter().map(|(name, _)| attach_program(pins, name, cgroup));
        Ok(Self { _links: links.collect::<Result<_, _>>()? })
    }
}

/// Whether an error only says that the key is not in the map.
pub(crate) fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// Removes a key; one that is not there is no error.
pub(crate) fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
) -> Result<(), GuardError> {
    match map.remove(key) {
        Err(source) if !is_missing(&source) => Err(GuardError::Map { name, source }),
        _ => Ok(()),
    }
}
