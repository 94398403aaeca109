//! A whole node: containerd, agent, pins and shim together, and what is left of a container anywhere.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, ensure};
use portcullis_bpf::{abi::ABI_VERSION, guard::Guard, pins::Pins};
use portcullis_policy::{
    policyset::{self, Backend, PolicySet},
    record,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::{
    agent::{Agent, Paths},
    command::{Output, run},
    containerd::{Builder, Containerd},
    cri::Cri,
    eventually::eventually,
    signals::{Container, Counters, Signal},
};

/// What the environment says about this run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `PORTCULLIS_BIN_DIR`: where the programs under test are.
    pub bin_dir: PathBuf,
    /// `PORTCULLIS_IMAGE`: the image's archive.
    pub image: PathBuf,
    /// `PORTCULLIS_CONTAINERD_ROOT`: a containerd root that may have the image already.
    pub containerd_root: Option<PathBuf>,
    /// `PORTCULLIS_BACKEND`: the backend to insist on; otherwise the agent chooses.
    pub backend: Option<String>,
    /// `PORTCULLIS_EXPECT_BACKEND`: the backend that the agent must choose.
    pub expected_backend: Option<String>,
    /// `PORTCULLIS_EXPECT_CONTAINERD`: what containerd's version must begin with.
    pub expected_containerd: Option<String>,
    /// `PORTCULLIS_EXPECT_STATIC_SHIM`: whether the shim must be the one that needs no C library.
    pub expect_static_shim: bool,
    /// `PORTCULLIS_GRPC_PYTHON`: a Python that has what `client/requirements.txt` names.
    pub grpc_python: Option<PathBuf>,
    /// What the agent is configured with besides its paths.
    pub configuration: String,
    /// `PORTCULLIS_PODS`: whether pods are tested too. Like all of CRI they are meant for a machine of their own.
    pub pods: bool,
    /// `PORTCULLIS_DECIDED_BY`: who decides the tests that are to run, of `kernel`, `containerd` and `ourselves`; else all.
    pub decided_by: Option<String>,
    /// `PORTCULLIS_EMULATED`: whether each instruction takes some fifty times as long as on this machine.
    pub emulated: bool,
}

impl Setup {
    /// How often something is repeated that is repeated so often where that takes no time.
    pub fn rounds(&self, full: u64) -> u64 {
        if self.emulated { full / 5 } else { full }
    }

    /// Reads it; `None` when the tests were not started by `scripts/test`.
    pub fn from_env() -> Option<Self> {
        let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Some(Self {
            bin_dir: path("PORTCULLIS_BIN_DIR")?,
            image: path("PORTCULLIS_IMAGE")?,
            containerd_root: path("PORTCULLIS_CONTAINERD_ROOT"),
            backend: env::var("PORTCULLIS_BACKEND").ok(),
            expected_backend: env::var("PORTCULLIS_EXPECT_BACKEND").ok(),
            expected_containerd: env::var("PORTCULLIS_EXPECT_CONTAINERD").ok(),
            expect_static_shim: env::var_os("PORTCULLIS_EXPECT_STATIC_SHIM").is_some(),
            grpc_python: path("PORTCULLIS_GRPC_PYTHON"),
            configuration: String::new(),
            pods: env::var_os("PORTCULLIS_PODS").is_some(),
            decided_by: env::var("PORTCULLIS_DECIDED_BY").ok(),
            emulated: env::var_os("PORTCULLIS_EMULATED").is_some(),
        })
    }

    /// Everything of an agent below one directory.
    pub fn agent_paths(&self, directory: &Path, bpffs: &Path) -> Paths {
        Paths {
            program: self.bin_dir.join("portcullisd"),
            directory: directory.to_owned(),
            run_dir: directory.join("run"),
            bpffs_root: bpffs.join("portcullis"),
            backend: self.backend.clone(),
            more: self.configuration.clone(),
        }
    }

    /// A containerd below `directory` that has the image and starts our shim with the files of `run_dir`.
    pub fn start_containerd(&self, directory: &Path, run_dir: &Path) -> Result<Containerd> {
        let root = self.containerd_root.clone().unwrap_or_else(|| directory.join("root"));
        let containerd = Containerd::start(&directory.join("containerd"), &root, &self.path()?, run_dir, self.pods)?;
        containerd.import(&self.image)?;
        Ok(containerd)
    }

    /// `PATH` with our shim and the system's programs.
    pub fn path(&self) -> Result<OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let parts = [self.bin_dir.clone()].into_iter().chain(env::split_paths(&inherited));
        Ok(env::join_paths(parts)?)
    }
}

/// The node. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Node {
    // Dropped in this order: containers go while their shims still find the agent's files.
    containerd: Containerd,
    agent: Mutex<Option<Agent>>,
    paths: Paths,
    _bpffs: Bpffs,
    directory: TempDir,
    setup: Setup,
    backend: Backend,
}

/// A mount of our own: unmounting it removes every pin, whatever a failed test left.
#[derive(Debug)]
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        mount("bpf", at, "bpf", MountFlags::empty(), None).context("mounting a bpffs (this needs root's rights)")?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

impl Node {
    /// Starts it: the agent first, so that its files are there when the first shim looks for them.
    pub fn start(setup: &Setup) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("portcullis-").tempdir()?;
        let bpffs = Bpffs::mount(&directory.path().join("bpf"))?;
        let paths = setup.agent_paths(directory.path(), &bpffs.0);
        paths.prepare()?;
        let agent = Agent::start(&paths)?;
        let set = eventually(|| read_policy_set(&paths))?;
        let containerd = setup.start_containerd(directory.path(), &paths.run_dir)?;
        if let Some(expected) = &setup.expected_backend {
            ensure!(set.backend.to_string() == *expected, "the agent chose backend {}: {}", set.backend, agent.log());
        }
        let agent = Mutex::new(Some(agent));
        Ok(Self { containerd, agent, paths, _bpffs: bpffs, directory, setup: setup.clone(), backend: set.backend })
    }

    /// Puts another policy in force, until what is returned is dropped.
    pub fn policy(&self, text: &str) -> Result<OtherPolicy<'_>> {
        let other = OtherPolicy { node: self, file: self.paths.policy_dir().join("other.yaml") };
        // First: the agent watches the directory.
        let before = self.policy_set()?.default_policy.name;
        fs::write(&other.file, text)?;
        self.reload()?;
        eventually(|| {
            ensure!(self.policy_set()?.default_policy.name != before, "the policy is not in force");
            Ok(())
        })?;
        Ok(other)
    }

    /// Adds to the catalogue, until what is returned is dropped. The text must add a name.
    pub fn catalog(&self, text: &str) -> Result<MoreCatalog<'_>> {
        let before = self.policy_set()?.catalog;
        let more = MoreCatalog { node: self, file: self.paths.catalog_dir().join("test.toml"), before };
        fs::write(&more.file, text)?;
        self.reload()?;
        eventually(|| {
            ensure!(self.policy_set()?.catalog != before, "the catalogue is not in force");
            Ok(())
        })?;
        Ok(more)
    }

    /// Makes the agent read policy and catalogue again.
    pub fn reload(&self) -> Result<()> {
        self.agent().as_ref().context("no agent")?.signal(rustix::process::Signal::HUP)
    }

    /// What the environment says about this run.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The backend in use.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// A container to be started.
    pub fn container(&self) -> Builder<'_> {
        self.containerd.container()
    }

    /// Its containerd's CRI.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.containerd.address())
    }

    /// Its containerd.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Where the agent finds and puts everything.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// A directory for a test's own files.
    pub fn scratch(&self) -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("scratch-").tempdir_in(self.directory.path())?)
    }

    /// The agent; `None` while it is killed.
    pub fn agent(&self) -> MutexGuard<'_, Option<Agent>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILLs the agent.
    pub fn kill_agent(&self) -> Result<()> {
        self.agent().take().context("the agent does not run")?.kill()
    }

    /// Starts the agent again, if it does not run.
    pub fn restart_agent(&self) -> Result<()> {
        let mut agent = self.agent();
        if agent.is_none() {
            *agent = Some(Agent::start(&self.paths)?);
        }
        Ok(())
    }

    /// Puts another agent in the agent's place, a program of `PORTCULLIS_BIN_DIR`, until the answer is dropped.
    pub fn exchange_agent(&self, program: &str) -> Result<OtherAgent<'_>> {
        let paths = Paths { program: self.setup.bin_dir.join(program), ..self.paths.clone() };
        let mut agent = self.agent();
        // Ends it.
        agent.take();
        *agent = Some(Agent::start(&paths)?);
        Ok(OtherAgent { node: self })
    }

    /// Puts an agent in the agent's place whose configuration has more, until the answer is dropped.
    pub fn configured_agent(&self, more: &str) -> Result<OtherAgent<'_>> {
        let paths = Paths { more: format!("{}\n{more}", self.paths.more), ..self.paths.clone() };
        let mut agent = self.agent();
        // Ends it.
        agent.take();
        paths.prepare()?;
        let other = OtherAgent { node: self };
        *agent = Some(Agent::start(&paths)?);
        Ok(other)
    }

    /// The version of one of the node's programs: the word of its `--version` that begins with a digit.
    pub fn version(&self, program: &str) -> Result<String> {
        let mut command = Command::new(program);
        let text = run(command.arg("--version").env("PATH", self.setup.path()?))?.success()?.stdout;
        let found = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        // Debian's own suffixes say nothing here.
        found.and_then(|word| word.split(['~', '+']).next()).map(str::to_owned).context("no version")
    }

    /// Runs the command line tool.
    pub fn portcullis(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.setup.bin_dir.join("portcullis"));
        run(command.arg("--socket").arg(self.paths.socket()).args(arguments))
    }

    /// Runs the command line tool for its JSON.
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let output = self.portcullis(&[arguments, &["-o", "json"]].concat())?.success()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("portcullis {arguments:?} gave {output}"))
    }

    /// All signals, oldest first.
    pub fn signals(&self) -> Result<Vec<Signal>> {
        self.json(&["signals", "list", "--all", "--oldest-first"])
    }

    /// All signals of one container, oldest first, once the last of them is about `last`: the kernel's events come in
    /// order, so that everything before it is there as well.
    pub fn signals_until(&self, container: &str, last: &str) -> Result<Vec<Signal>> {
        eventually(|| {
            let mut signals = self.signals()?;
            signals.retain(|signal| signal.container_id() == container);
            let found: Vec<_> = signals.iter().map(Signal::tool).collect();
            ensure!(found.last() == Some(&last), "signals of {container} are about {found:?}, awaited is {last}");
            Ok(signals)
        })
    }

    /// What the kernel counted for a container.
    pub fn counters(&self, container: &str) -> Result<Counters> {
        let containers = self.containers()?;
        let found = containers.iter().find(|known| known.id == container).context("the container is not known")?;
        found.counters.context("the kernel counts nothing for it")
    }

    /// The containers that the agent knows.
    pub fn containers(&self) -> Result<Vec<Container>> {
        self.json(&["containers", "list"])
    }

    /// The policy set in force.
    pub fn policy_set(&self) -> Result<PolicySet> {
        read_policy_set(&self.paths)
    }

    /// Changes the policy set that shims read, behind the agent's back, until the answer is dropped.
    pub fn change_policy_set(&self, change: impl FnOnce(&mut PolicySet)) -> Result<Restore> {
        let path = self.paths.run_dir.join(policyset::file_name(ABI_VERSION));
        let restore = Restore { content: fs::read(&path)?, path };
        let mut set = PolicySet::parse(&restore.content)?;
        change(&mut set);
        replace(&restore.path, &set.to_bytes()?)?;
        Ok(restore)
    }

    /// Takes the policy set away, as if the agent had never run, until the answer is dropped.
    pub fn hide_policy_set(&self) -> Result<Restore> {
        let path = self.paths.run_dir.join(policyset::file_name(ABI_VERSION));
        let restore = Restore { content: fs::read(&path)?, path };
        fs::remove_file(&restore.path)?;
        Ok(restore)
    }

    /// What exists on the node because of containers.
    pub fn traces(&self) -> Result<Traces> {
        let pins = Pins::at(&self.policy_set()?.pins);
        let mut map_entries = Guard::open(pins.clone())?.containers();
        map_entries.sort_unstable();
        Ok(Traces {
            links: names(&pins.links())?,
            map_entries,
            records: names(&self.paths.run_dir.join(record::DIR_NAME))?,
            shims: self.containerd.shims().into_iter().map(|pid| pid.as_raw_nonzero().get()).collect(),
        })
    }
}

fn read_policy_set(paths: &Paths) -> Result<PolicySet> {
    let path = paths.run_dir.join(policyset::file_name(ABI_VERSION));
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(PolicySet::parse(&bytes)?)
}

fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("test");
    fs::write(&new, content)?;
    Ok(fs::rename(new, path)?)
}

/// The file names in a directory; none if it is not there.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut names: Vec<_> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort_unstable();
    Ok(names)
}

/// A policy other than the shipped one. When it is dropped, that is in force again.
pub struct OtherPolicy<'a> {
    node: &'a Node,
    file: PathBuf,
}

impl Drop for OtherPolicy<'_> {
    fn drop(&mut self) {
        let shipped = || self.node.policy_set().map(|set| set.default_policy.name == "default");
        let restored =
            fs::remove_file(&self.file).map_err(Into::into).and_then(|()| self.node.reload()).and_then(|()| {
                eventually(|| {
                    ensure!(shipped()?, "the shipped policy is not in force again");
                    Ok(())
                })
            });
        if let Err(error) = restored {
            eprintln!("taking {} away: {error:#}", self.file.display());
        }
    }
}

/// Another agent. When this is dropped, the usual one is back.
pub struct OtherAgent<'a> {
    node: &'a Node,
}

impl Drop for OtherAgent<'_> {
    fn drop(&mut self) {
        self.node.agent().take();
        if let Err(error) = self.node.paths.prepare().and_then(|()| self.node.restart_agent()) {
            eprintln!("starting the agent again: {error:#}");
        }
    }
}

/// A catalogue file. When it is dropped, the shipped catalogue is in force again.
pub struct MoreCatalog<'a> {
    node: &'a Node,
    file: PathBuf,
    before: u32,
}

impl MoreCatalog<'_> {
    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for MoreCatalog<'_> {
    fn drop(&mut self) {
        let restored =
            fs::remove_file(&self.file).map_err(Into::into).and_then(|()| self.node.reload()).and_then(|()| {
                eventually(|| {
                    ensure!(
                        self.node.policy_set()?.catalog == self.before,
                        "the catalogue is not the former one again"
                    );
                    Ok(())
                })
            });
        if let Err(error) = restored {
            eprintln!("taking {} away: {error:#}", self.file.display());
        }
    }
}

/// Puts a file back when dropped.
#[derive(Debug)]
pub struct Restore {
    path: PathBuf,
    content: Vec<u8>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Err(error) = replace(&self.path, &self.content) {
            eprintln!("putting {} back: {error:#}", self.path.display());
        }
    }
}

/// What exists on a node because of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Directories of pinned links.
    pub links: Vec<String>,
    /// Cgroup ids in the kernel's table of containers.
    pub map_entries: Vec<u64>,
    /// Containers' records.
    pub records: Vec<String>,
    /// Pids of shims.
    pub shims: Vec<i32>,
}

/// The program's path, if it is in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(OsStr::new(name))).find(|file| file.is_file())
}
