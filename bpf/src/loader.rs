//! Loading and pinning: the agent's side.
//!
//! Maps are pinned by name and reused whenever they exist: they hold the running containers, and the ring buffer what
//! has not been read yet. Programs are loaded again only when their code changed. Containers that run keep the programs
//! they were attached to; new ones get the new.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    thread,
};

use aya::{
    Btf, BtfError, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    maps::{Array, HashMap, Map, MapData, MapError},
    pin::PinError,
    programs::{BtfTracePoint, FEntry, Lsm, LsmCgroup, ProgramError, links::FdLink},
};

use crate::{
    Backend,
    abi::PinPlace,
    guard::GuardError,
    pins::{Attach, LSM_PROGRAMS, Pins, node_programs},
    tables::Tables,
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis.bpf.o"));

/// The compiled programs: an ELF file with BTF.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// `SLOTS_PER_CPU` of `event.bpf.h`.
const SLOTS_PER_CPU: u32 = 4;

/// The maps that outlive the agent.
const MAPS: [&str; 22] = [
    "activities",
    "activity_losses",
    "build_id",
    "comm_patterns",
    "container_stats",
    "containers",
    "counters",
    "events",
    "exceptions",
    "fingerprints",
    "loader_options",
    "marks",
    "multicall_prefixes",
    "names",
    "own_maps",
    "patterns",
    "pin_place",
    "processes",
    "rules",
    "scratches",
    "slots",
    "talkers",
];

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel has no BTF.
    #[error(
        "the kernel's type information (/sys/kernel/btf/vmlinux) can't be read: a kernel with CONFIG_DEBUG_INFO_BTF is needed"
    )]
    Btf(#[source] BtfError),
    /// The object's maps could not be created.
    #[error("loading the maps")]
    Object(#[source] EbpfError),
    /// The kernel refused a program.
    #[error("the kernel refused the program {name}")]
    Program {
        /// Which program.
        name: &'static str,
        /// The verifier's answer.
        source: ProgramError,
    },
    /// The object lacks a program or map that it must have.
    #[error("the BPF object has no {name}: the build is broken")]
    Missing {
        /// What is missing.
        name: &'static str,
    },
    /// Something could not be pinned.
    #[error("pinning {name}")]
    Pin {
        /// What.
        name: &'static str,
        /// What the kernel said.
        source: PinError,
    },
    /// The record of which programs are loaded.
    #[error("map build_id")]
    BuildId(#[source] MapError),
    /// A path of bpffs.
    #[error("bpffs: {}", path.display())]
    Bpffs {
        /// Which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory of the pins is on no bpffs.
    #[error("{} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf", path.display())]
    NotBpffs {
        /// Which path.
        path: PathBuf,
    },
    /// A pinned object could not be opened.
    #[error(transparent)]
    Pinned(#[from] GuardError),
}

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// Whether a path, or the nearest directory above it that exists, is on a bpffs.
pub(crate) fn on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|directory| rustix::fs::statfs(directory).ok())
        // The magic is a 32-bit constant in a word of the platform's size.
        .is_some_and(|stat| stat.f_type.to_le_bytes().get(..4) == Some(&BPF_FS_MAGIC.to_le_bytes()))
}

/// Identifies this build's programs.
fn build_id() -> u64 {
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    hasher.finish()
}

fn slots() -> u32 {
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Affinity may hide CPUs from this process that containers run on.
    let online = fs::read_to_string("/sys/devices/system/cpu/possible")
        .ok()
        .and_then(|list| list.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok()))
        .map_or(cpus, |last| last + 1);
    u32::try_from(online.max(cpus)).unwrap_or(1024).saturating_mul(SLOTS_PER_CPU)
}

/// The kernel's type information: megabytes, so whoever needs it twice keeps it.
pub(crate) fn kernel_btf() -> Result<Btf, LoadError> {
    Btf::from_sys_fs().map_err(LoadError::Btf)
}

/// Creates the maps (or opens those pinned at `pins`); no program is loaded yet.
fn open_object(pins: Option<&Pins>, btf: &Btf) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    // aya knows no task storage map; only the programs use it.
    loader.allow_unsupported_maps().btf(Some(btf)).verifier_log_level(VerifierLogLevel::VERBOSE);
    loader.map_max_entries("slots", slots());
    if let Some(pins) = pins {
        for name in MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(OBJECT).map_err(LoadError::Object)
}

fn load_lsm<'a>(
    object: &'a mut Ebpf,
    btf: &Btf,
    name: &'static str,
    hook: &str,
) -> Result<&'a mut LsmCgroup, LoadError> {
    let refused = |source| LoadError::Program { name, source };
    let program = object.program_mut(name).ok_or(LoadError::Missing { name })?;
    let program: &mut LsmCgroup = program.try_into().map_err(refused)?;
    program.load(hook, btf).map_err(refused)?;
    Ok(program)
}

/// Loads a program that is attached once for the whole node.
fn load_for_node(object: &mut Ebpf, btf: &Btf, name: &'static str, attach: Attach) -> Result<(), LoadError> {
    let refused = |source| LoadError::Program { name, source };
    let program = object.program_mut(name).ok_or(LoadError::Missing { name })?;
    match attach {
        Attach::Tracepoint(tracepoint) => {
            <&mut BtfTracePoint>::try_from(program).and_then(|program| program.load(tracepoint, btf))
        }
        Attach::Lsm(hook) => <&mut Lsm>::try_from(program).and_then(|program| program.load(hook, btf)),
        Attach::Entry(function) => <&mut FEntry>::try_from(program).and_then(|program| program.load(function, btf)),
    }
    .map_err(refused)
}

/// Attaches it, once loaded.
fn attach_for_node(object: &mut Ebpf, name: &'static str, attach: Attach) -> Result<FdLink, LoadError> {
    let refused = |source| LoadError::Program { name, source };
    let program = object.program_mut(name).ok_or(LoadError::Missing { name })?;
    match attach {
        Attach::Tracepoint(_) => <&mut BtfTracePoint>::try_from(program)
            .and_then(|program| program.attach().and_then(|id| program.take_link(id)))
            .map(FdLink::from),
        Attach::Lsm(_) => <&mut Lsm>::try_from(program)
            .and_then(|program| program.attach().and_then(|id| program.take_link(id)))
            .map(FdLink::from),
        Attach::Entry(_) => <&mut FEntry>::try_from(program)
            .and_then(|program| program.attach().and_then(|id| program.take_link(id)))
            .map(FdLink::from),
    }
    .map_err(refused)
}

/// Asks the kernel whether it takes the programs of a backend; nothing is pinned or attached. What is told of those that it
/// need not take ([`Attach::Entry`]).
pub(crate) fn try_load(btf: &Btf, backend: Backend) -> Result<Result<(), LoadError>, LoadError> {
    let mut object = open_object(None, btf)?;
    if backend == Backend::Lsm {
        for (name, hook) in LSM_PROGRAMS {
            load_lsm(&mut object, btf, name, hook)?;
        }
    }
    let mut optional = Ok(());
    for &(name, attach) in node_programs(backend) {
        let loaded = load_for_node(&mut object, btf, name, attach);
        if matches!(attach, Attach::Entry(_)) { optional = loaded } else { loaded? }
    }
    Ok(optional)
}

/// Puts a new pin in an old one's place in one step, so that a shim always finds one or the other.
fn replace_pin(path: &Path, pin: impl FnOnce(&Path) -> Result<(), LoadError>) -> Result<(), LoadError> {
    // Names on bpffs may hold no dot.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("_new");
    let fresh = PathBuf::from(fresh);
    if let Err(source) = fs::remove_file(&fresh)
        && source.kind() != io::ErrorKind::NotFound
    {
        return Err(LoadError::Bpffs { path: fresh, source });
    }
    pin(&fresh)?;
    fs::rename(&fresh, path).map_err(|source| LoadError::Bpffs { path: path.to_owned(), source })
}

/// Tells the programs what is to be protected: their maps, and where the pins are.
fn protect(object: &mut Ebpf, pins: &Pins) -> Result<(), LoadError> {
    let refused = |name| move |source| LoadError::Pinned(GuardError::Map { name, source });
    let name = "pin_place";
    // Not taken: the programs will need them.
    let map = object.map_mut(name).ok_or(LoadError::Missing { name })?;
    let mut place: Array<&mut MapData, PinPlace> = map.try_into().map_err(refused(name))?;
    let root = pins.directory().parent().unwrap_or(pins.directory());
    let stat =
        rustix::fs::stat(root).map_err(|source| LoadError::Bpffs { path: root.to_owned(), source: source.into() })?;
    let device = u64::from(rustix::fs::major(stat.st_dev)) << 20 | u64::from(rustix::fs::minor(stat.st_dev));
    place.set(0, PinPlace { device, directory: stat.st_ino }, 0).map_err(refused(name))?;
    let name = "own_maps";
    let map = object.map_mut(name).ok_or(LoadError::Missing { name })?;
    let mut own: HashMap<&mut MapData, u32, u32> = map.try_into().map_err(refused(name))?;
    for name in MAPS {
        let id = MapData::from_pin(pins.map(name)).and_then(|map| map.info()).map(|info| info.id());
        own.insert(id.map_err(refused(name))?, 1, 0).map_err(refused(name))?;
    }
    Ok(())
}

/// Loads the programs of this ABI version for a backend and pins them and their maps, unless the same programs are
/// pinned already: then running containers and the ring buffer stay as they are. Returns the tables to fill.
pub fn load(pins: &Pins, backend: Backend) -> Result<Tables, LoadError> {
    if !on_bpffs(pins.directory()) {
        return Err(LoadError::NotBpffs { path: pins.directory().to_owned() });
    }
    for directory in [pins.maps(), pins.programs(), pins.node_links(), pins.links()] {
        fs::create_dir_all(&directory).map_err(|source| LoadError::Bpffs { path: directory, source })?;
    }
    let btf = kernel_btf()?;
    let mut object = open_object(Some(pins), &btf)?;
    let mut loaded: Array<MapData, u64> = {
        let map = object.take_map("build_id").ok_or(LoadError::Missing { name: "build_id" })?;
        Map::try_into(map).map_err(LoadError::BuildId)?
    };
    protect(&mut object, pins)?;
    let index = backend as u32;
    if pins.needed(backend).iter().all(|pin| pin.exists())
        && loaded.get(&index, 0).map_err(LoadError::BuildId)? == build_id()
    {
        return Ok(Tables::open(pins)?);
    }
    if backend == Backend::Lsm {
        for (name, hook) in LSM_PROGRAMS {
            let program = load_lsm(&mut object, &btf, name, hook)?;
            replace_pin(&pins.program(name), |path| {
                program.pin(path).map_err(|source| LoadError::Pin { name, source })
            })?;
        }
    }
    for &(name, attach) in node_programs(backend) {
        match load_for_node(&mut object, &btf, name, attach) {
            // The probe tells of it.
            Err(LoadError::Program { .. }) if matches!(attach, Attach::Entry(_)) => continue,
            loaded => loaded?,
        }
        let link = attach_for_node(&mut object, name, attach)?;
        // The old link goes when the new one takes its pin: for a moment both are attached, never none.
        replace_pin(&pins.node_link(name), |path| {
            link.pin(path).map(drop).map_err(|source| LoadError::Pin { name, source })
        })?;
    }
    loaded.set(index, build_id(), 0).map_err(LoadError::BuildId)?;
    Ok(Tables::open(pins)?)
}
