//! The private containerd, and containers in it.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fmt::Write,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cni,
    command::{Output, run, wait},
    cri,
    eventually::eventually,
};

/// The image that `scripts/lib/oci-image.sh` makes.
pub const IMAGE: &str = "docker.io/library/portcullis-demo:latest";

/// Our shim's name for containerd.
pub const RUNTIME: &str = "io.containerd.portcullis.v1";

/// containerd's namespace for all containers here but pods'.
pub const NAMESPACE: &str = "default";

/// The configuration of scripts and demo, without CRI.
const BASE: &str = include_str!("../../scripts/lib/containerd.toml");

const CRI_DISABLED: &str = "  \"io.containerd.grpc.v1.cri\",\n";

/// `__SO_ACCEPTCON` in the flags of /proc/net/unix.
const LISTENING: &str = "00010000";

const END: Duration = Duration::from_secs(20);

/// A containerd of our own. Dropping it ends everything that it started.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    path: OsString,
    run_dir: PathBuf,
    child: Mutex<Child>,
    namespaces: &'static [&'static str],
}

impl Containerd {
    /// Starts one with state and socket below `directory`, images and snapshots in `root`. Shims inherit `path` and the
    /// agent's `run_dir`. With `pods` it has CRI, and pods a network.
    pub fn start(directory: &Path, root: &Path, path: &OsStr, run_dir: &Path, pods: bool) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let text = if pods { with_cri(is_version_2(path)?) } else { BASE.to_owned() };
        let text = text.replace("@ROOT@", &root.display().to_string());
        fs::write(config(directory), text.replace("@DIR@", &directory.display().to_string()))?;
        if pods {
            cni::configure(directory)?;
            write_options(directory)?;
        }
        let child = Mutex::new(spawn(directory, path, run_dir)?);
        let namespaces: &[_] = if pods { &[NAMESPACE, cri::NAMESPACE] } else { &[NAMESPACE] };
        let containerd = Self {
            directory: directory.to_owned(),
            path: path.to_owned(),
            run_dir: run_dir.to_owned(),
            child,
            namespaces,
        };
        containerd.answers()?;
        Ok(containerd)
    }

    /// SIGKILLs it and starts it again.
    pub fn kill_and_restart(&self) -> Result<()> {
        {
            let mut child = self.child();
            child.kill()?;
            child.wait()?;
            *child = spawn(&self.directory, &self.path, &self.run_dir)?;
        }
        self.answers()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> Result<()> {
        eventually(|| {
            let ended = self.child().try_wait()?;
            ensure!(ended.is_none(), "containerd ended: {}", self.log());
            run(self.ctr().arg("version"))?.success()
        })?;
        Ok(())
    }

    /// Where state, socket and pods' networks are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its gRPC socket.
    pub fn address(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("containerd.log")).unwrap_or_default()
    }

    /// `ctr` for it.
    pub fn ctr(&self) -> Command {
        self.ctr_in(NAMESPACE)
    }

    fn ctr_in(&self, namespace: &str) -> Command {
        let mut command = Command::new("ctr");
        // ctr fails where this names a directory that is not there.
        command.env_remove("XDG_RUNTIME_DIR").arg("--address").arg(self.address()).args(["--namespace", namespace]);
        command
    }

    /// Imports the image, unless containerd's root has it already.
    pub fn import(&self, archive: &Path) -> Result<()> {
        for namespace in self.namespaces {
            let images = run(self.ctr_in(namespace).args(["images", "list", "-q"]))?.success()?;
            if !images.stdout.lines().any(|name| name == IMAGE) {
                run(self.ctr_in(namespace).args(["images", "import"]).arg(archive))?.success()?;
            }
        }
        Ok(())
    }

    /// A container to be started.
    pub fn container(&self) -> Builder<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // runc keeps the containers of every containerd of the machine in one directory: the number alone may be taken.
        let id = format!("c{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Builder { containerd: self, id, runtime: RUNTIME, annotations: Vec::new(), options: Vec::new(), rootfs: None }
    }

    /// Pids of all shims that were started for it, ours and the stock ones behind them.
    pub fn shims(&self) -> Vec<Pid> {
        let address = self.address();
        let is_shim = |pid: i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|&byte| byte == 0).any(|word| word == address.as_os_str().as_encoded_bytes())
            })
        };
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid| is_shim(pid))
            .filter_map(Pid::from_raw)
            .collect()
    }

    /// Those of them that are ours.
    pub fn own_shims(&self) -> Vec<Pid> {
        self.shims().into_iter().filter(|pid| is_ours(*pid)).collect()
    }

    /// Pids of the shims that were started for a container or pod.
    pub fn shims_for(&self, id: &str) -> Vec<Pid> {
        let is_its = |pid: &Pid| {
            fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))
                .is_ok_and(|line| line.split(|&byte| byte == 0).any(|word| word == id.as_bytes()))
        };
        self.shims().into_iter().filter(is_its).collect()
    }

    /// Our shim and the stock one of a container or pod.
    pub fn shims_of(&self, id: &str) -> Result<(Pid, Pid)> {
        let (ours, stock): (Vec<_>, Vec<_>) = self.shims_for(id).into_iter().partition(|pid| is_ours(*pid));
        match (&ours[..], &stock[..]) {
            ([ours], [stock]) => Ok((*ours, *stock)),
            found => bail!("shims of {id}: {found:?}"),
        }
    }

    /// The paths of all sockets at which these shims listen, as the kernel tells them.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let inode = |file: PathBuf| -> Option<String> {
            let target = fs::read_link(file).ok()?;
            Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        };
        let inodes: HashSet<_> = self
            .shims()
            .into_iter()
            .filter_map(|pid| fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok())
            .flatten()
            .flatten()
            .filter_map(|entry| inode(entry.path()))
            .collect();
        fs::read_to_string("/proc/net/unix")
            .unwrap_or_default()
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace().skip(3);
                let (flags, inode, path) = (words.next()?, words.nth(2)?, words.next()?);
                (flags == LISTENING && inodes.contains(inode)).then(|| PathBuf::from(path))
            })
            .collect()
    }

    fn remove_containers(&self) -> Result<()> {
        for namespace in self.namespaces {
            let ctr = |arguments: &[&str]| run(self.ctr_in(namespace).args(arguments));
            for id in ctr(&["tasks", "list", "-q"])?.stdout.lines() {
                ctr(&["tasks", "delete", "--force", id])?;
            }
            for id in ctr(&["containers", "list", "-q"])?.stdout.lines() {
                ctr(&["containers", "delete", id])?;
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let removed = self.remove_containers();
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        if wait(child, END)?.is_none() {
            child.kill()?;
            child.wait()?;
        }
        for shim in self.shims() {
            // It may have ended by itself.
            let _ = kill_process(shim, Signal::KILL);
        }
        cni::remove()?;
        removed
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("stopping the private containerd: {error:#}");
        }
    }
}

fn is_ours(shim: Pid) -> bool {
    fs::read_link(format!("/proc/{}/exe", shim.as_raw_nonzero()))
        .is_ok_and(|program| program.ends_with("containerd-shim-portcullis-v1"))
}

fn config(directory: &Path) -> PathBuf {
    directory.join("containerd.toml")
}

fn spawn(directory: &Path, path: &OsStr, run_dir: &Path) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(directory.join("containerd.log"))?;
    Command::new("containerd")
        .arg("--config")
        .arg(config(directory))
        .env("PATH", path)
        .env("PORTCULLIS_RUN_DIR", run_dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting containerd")
}

fn is_version_2(path: &OsStr) -> Result<bool> {
    let version = run(Command::new("containerd").arg("--version").env("PATH", path))?.success()?;
    Ok(version.stdout.contains("containerd/v2 "))
}

/// The configuration with CRI, and in it the runtime handler that we recommend.
fn with_cri(version_2: bool) -> String {
    let base = BASE.replace(CRI_DISABLED, "");
    let (base, cri, handler) = if version_2 {
        let base = base.replace("version = 2\n", "version = 3\n");
        (base, include_str!("cri-v3.toml"), include_str!("../../config/containerd/runtime-v3.toml"))
    } else {
        (base, include_str!("cri-v2.toml"), include_str!("../../config/containerd/runtime-v2.toml"))
    };
    let systemd = if has_systemd() { include_str!("cri-systemd-v2.toml") } else { "" };
    [&base, cri, handler, systemd].concat()
}

/// Whether systemd owns the node's cgroups, as `sd_booted(3)` finds it out.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The files that handlers' `ConfigPath` names.
fn write_options(directory: &Path) -> Result<()> {
    let root = directory.join("runc-by-path");
    let cgroups = if has_systemd() { "SystemdCgroup = true\n" } else { "" };
    for (file, options) in [
        ("path.toml", format!("Root = \"{}\"\n{cgroups}", root.display())),
        ("systemd.toml", cgroups.to_owned()),
        ("crun.toml", format!("BinaryName = \"crun\"\n{cgroups}")),
    ] {
        fs::write(directory.join(file), options)?;
    }
    Ok(())
}

/// A container to be started.
#[derive(Debug)]
pub struct Builder<'a> {
    containerd: &'a Containerd,
    id: String,
    runtime: &'a str,
    annotations: Vec<String>,
    options: Vec<String>,
    rootfs: Option<PathBuf>,
}

impl<'a> Builder<'a> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks for a mode by annotation.
    #[must_use]
    pub fn mode(self, mode: &str) -> Self {
        self.annotation("portcullis.dev/mode", mode)
    }

    /// Sets an annotation of the OCI spec.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push(format!("{key}={value}"));
        self
    }

    /// Another runtime than ours.
    #[must_use]
    pub fn runtime(mut self, runtime: &'a str) -> Self {
        self.runtime = runtime;
        self
    }

    /// A directory as root file system instead of the image.
    #[must_use]
    pub fn rootfs(mut self, directory: &Path) -> Self {
        self.rootfs = Some(directory.to_owned());
        self
    }

    /// Another option of `ctr run`.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// The command that starts it.
    pub fn command(&self, options: &[&str], arguments: &[&str]) -> Command {
        let mut command = self.containerd.ctr();
        command.arg("run").args(options).args(&self.options).args(["--runtime", self.runtime]);
        for annotation in &self.annotations {
            command.args(["--annotation", annotation]);
        }
        match &self.rootfs {
            Some(directory) => command.arg("--rootfs").arg(directory),
            None => command.arg(IMAGE),
        };
        command.arg(&self.id).args(arguments);
        command
    }

    /// Runs a command as its first process and waits for its end.
    pub fn run(self, arguments: &[&str]) -> Result<Output> {
        let output = run(&mut self.command(&[], arguments));
        // Whatever there is of it.
        run(self.containerd.ctr().args(["tasks", "delete", "--force", &self.id]))?;
        run(self.containerd.ctr().args(["containers", "delete", &self.id]))?;
        output
    }

    /// Starts it with a first process that does nothing for long.
    pub fn start(self) -> Result<Container<'a>> {
        self.start_with(&["sleep", "100000"])
    }

    /// Starts it with this as its first process.
    pub fn start_with(self, arguments: &[&str]) -> Result<Container<'a>> {
        let started = run(&mut self.command(&["--detach", "--null-io"], arguments))
            .and_then(Output::success)
            .with_context(|| format!("starting container {}", self.id));
        // Also cleans up after a failed start.
        let container = Container { containerd: self.containerd, id: self.id, deleted: false };
        started.map(|_| container)
    }
}

/// A running container. Dropping it deletes it.
#[derive(Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd,
    id: String,
    deleted: bool,
}

/// How one line of a script in a container went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status as the shell saw it.
    pub status: i32,
    /// Its output and errors.
    pub output: String,
}

const MARK: &str = "@@portcullis-test ";

impl<'a> Container<'a> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it runs.
    pub fn containerd(&self) -> &'a Containerd {
        self.containerd
    }

    /// Its first process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.task()?.0)
    }

    /// Its first process, and what containerd says of its status.
    pub fn task(&self) -> Result<(u32, String)> {
        let tasks = run(self.containerd.ctr().args(["tasks", "list"]))?.success()?.stdout;
        let of_line = |line: &str| {
            let mut words = line.split_whitespace();
            (words.next()? == self.id).then(|| Some((words.next()?.parse().ok()?, words.next()?.to_owned())))?
        };
        tasks.lines().find_map(of_line).context("no task")
    }

    /// Runs a program in it.
    pub fn exec(&self, arguments: &[&str]) -> Result<Output> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let exec_id = format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed));
        run(self.containerd.ctr().args(["tasks", "exec", "--exec-id", &exec_id, &self.id]).args(arguments))
    }

    /// Runs each line by a shell in it and tells how each went. One exec session for all: each costs a second in an
    /// emulated machine.
    pub fn shell(&self, lines: &[&str]) -> Result<Vec<Outcome>> {
        let mut script = String::new();
        for line in lines {
            writeln!(script, "{{ {line}\n}} </dev/null 2>&1\ns=$?; echo; echo '{MARK}'$s")?;
        }
        let output = self.exec(&["sh", "-c", &script])?;
        let outcomes = parse_outcomes(&output.stdout);
        ensure!(outcomes.len() == lines.len(), "the script of {} lines gave: {output}", lines.len());
        Ok(outcomes)
    }

    /// Ends and deletes it.
    pub fn delete(mut self) -> Result<()> {
        self.deleted = true;
        run(self.containerd.ctr().args(["tasks", "delete", "--force", &self.id]))?.success()?;
        run(self.containerd.ctr().args(["containers", "delete", &self.id]))?.success()?;
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.deleted {
            let _ = run(self.containerd.ctr().args(["tasks", "delete", "--force", &self.id]));
            let _ = run(self.containerd.ctr().args(["containers", "delete", &self.id]));
        }
    }
}

fn parse_outcomes(text: &str) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut output = String::new();
    for line in text.lines() {
        if let Some(status) = line.strip_prefix(MARK) {
            outcomes.push(Outcome { status: status.parse().unwrap_or(-1), output: std::mem::take(&mut output) });
        } else {
            output.push_str(line);
            output.push('\n');
        }
    }
    outcomes
}
