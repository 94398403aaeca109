//! Cutting a container off from the network, and letting it back.
//!
//! Two programs on the container's cgroup drop every packet of its sockets that does not pass a loopback device. Their links
//! are pinned beside those of the container's guard and are removed with these ([`crate::guard::Guard::release`]), so they need
//! no process that lives.

use std::{fs, io, path::PathBuf, sync::Arc};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    pin::PinError,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError,
        links::{FdLink, LinkError},
    },
};

use crate::{cgroup::Cgroup, pins::Pins};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/isolate.bpf.o"));

/// The programs, which are also the names of their links' pins.
const PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [("pc_isolate_egress", CgroupSkbAttachType::Egress), ("pc_isolate_ingress", CgroupSkbAttachType::Ingress)];

/// Why a container could not be cut off, or let back.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// The object could not be read.
    #[error("reading the programs that cut a container off from the network")]
    Object(#[from] EbpfError),
    /// The kernel did not take a program.
    #[error("loading program {name}: CAP_NET_ADMIN and a kernel with CONFIG_CGROUP_BPF are needed")]
    Load {
        /// Which program.
        name: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// The object lacks a program.
    #[error("the BPF object has no {name}: the build is broken")]
    Missing {
        /// Which.
        name: &'static str,
    },
    /// The kernel did not attach a program.
    #[error("program {name} on the cgroup {}: CAP_NET_ADMIN is needed, and no program above that forbids it", cgroup.display())]
    Attach {
        /// Which program.
        name: &'static str,
        /// Which cgroup.
        cgroup: PathBuf,
        /// What the kernel or aya said.
        source: ProgramError,
    },
    /// It was attached without a link.
    #[error("program {name} can't be attached by a link: kernel 5.7 or newer is needed")]
    Link {
        /// Which program.
        name: &'static str,
        /// What aya said.
        source: LinkError,
    },
    /// The programs could not be loaded when this process started.
    #[error("containers can't be cut off since portcullisd started")]
    Unavailable(#[source] Arc<Self>),
    /// The link could not be pinned.
    #[error("pinning the link of program {name}")]
    Pin {
        /// Which program.
        name: &'static str,
        /// What the kernel said.
        source: PinError,
    },
    /// A path of bpffs.
    #[error("bpffs: {}", path.display())]
    Bpffs {
        /// Which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn links(pins: &Pins, cgroup_id: u64) -> impl Iterator<Item = PathBuf> {
    let directory = pins.container_links(cgroup_id);
    PROGRAMS.iter().map(move |(name, _)| directory.join(name))
}

/// Whether a container is cut off, in both directions.
pub fn is_isolated(pins: &Pins, cgroup_id: u64) -> bool {
    links(pins, cgroup_id).all(|link| link.exists())
}

/// The programs, loaded: whoever cuts containers off later need not be let load any then.
#[derive(Debug)]
pub struct Isolation {
    object: Ebpf,
}

impl Isolation {
    /// Loads them; they are attached nowhere.
    pub fn load() -> Result<Self, IsolationError> {
        let mut object = EbpfLoader::new().load(OBJECT)?;
        for (name, _) in PROGRAMS {
            program(&mut object, name)?.load().map_err(|source| IsolationError::Load { name, source })?;
        }
        Ok(Self { object })
    }

    /// Cuts a container off. Nothing happens to one that is; on failure it stays as it was.
    pub fn isolate(&mut self, pins: &Pins, cgroup: &Cgroup) -> Result<(), IsolationError> {
        if is_isolated(pins, cgroup.id) {
            return Ok(());
        }
        // Whoever was interrupted may have left one of them.
        release(pins, cgroup.id)?;
        let attached = self.attach(pins, cgroup);
        if attached.is_err() {
            // The first error is the one to report.
            let _ = release(pins, cgroup.id);
        }
        attached
    }

    fn attach(&mut self, pins: &Pins, cgroup: &Cgroup) -> Result<(), IsolationError> {
        let directory = pins.container_links(cgroup.id);
        fs::create_dir_all(&directory).map_err(|source| IsolationError::Bpffs { path: directory.clone(), source })?;
        for (name, direction) in PROGRAMS {
            let refused = |source| IsolationError::Attach { name, cgroup: cgroup.path.clone(), source };
            let program = program(&mut self.object, name)?;
            // A link stands beside those of others, systemd's for example, whatever the mode; the kernel takes it without one only.
            let id = program.attach(&cgroup.directory, direction, CgroupAttachMode::Single).map_err(refused)?;
            let link = program.take_link(id).map_err(refused)?;
            let link = FdLink::try_from(link).map_err(|source| IsolationError::Link { name, source })?;
            link.pin(directory.join(name)).map_err(|source| IsolationError::Pin { name, source })?;
        }
        Ok(())
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, IsolationError> {
    let program = object.program_mut(name).ok_or(IsolationError::Missing { name })?;
    program.try_into().map_err(|source| IsolationError::Load { name, source })
}

/// Lets a container back to the network. Nothing happens to one that is not cut off.
pub fn release(pins: &Pins, cgroup_id: u64) -> Result<(), IsolationError> {
    for path in links(pins, cgroup_id) {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(IsolationError::Bpffs { path, source });
            }
            _ => {}
        }
    }
    let directory = pins.container_links(cgroup_id);
    match fs::remove_dir(&directory) {
        // Those of its guard are there.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(IsolationError::Bpffs { path: directory, source })
        }
        _ => Ok(()),
    }
}
