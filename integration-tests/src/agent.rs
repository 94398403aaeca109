//! portcullisd: start, kill, restart.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    command::{Output, run, wait},
    eventually::within,
};

/// What it logs of system calls beyond its profile.
const REFUSED: &str = "a system call was refused";

/// The kernel verifies programs meanwhile, which takes minutes in an emulated machine beside a busy one.
const START: Duration = Duration::from_secs(600);

const END: Duration = Duration::from_secs(20);

/// Where an agent finds and puts everything.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The program.
    pub program: PathBuf,
    /// The directory of all below.
    pub directory: PathBuf,
    /// What the agent shares with shims and clients.
    pub run_dir: PathBuf,
    /// A bpffs.
    pub bpffs_root: PathBuf,
    /// The backend to insist on.
    pub backend: Option<String>,
    /// What its configuration has besides.
    pub more: String,
}

impl Paths {
    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("portcullis.sock")
    }

    /// Directory of the policies.
    pub fn policy_dir(&self) -> PathBuf {
        self.directory.join("policies")
    }

    /// Directory of what is added to the catalogue.
    pub fn catalog_dir(&self) -> PathBuf {
        self.directory.join("catalog.d")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("portcullis.toml")
    }

    /// What the agent logs.
    pub fn log(&self) -> PathBuf {
        self.directory.join("portcullisd.log")
    }

    /// The configuration that the tests use.
    pub fn configuration(&self) -> String {
        format!(
            "backend = \"{}\"\nrun_dir = \"{}\"\nbpffs_root = \"{}\"\nstate_dir = \"{}\"\npolicy_dir = \"{}\"\ncatalog_dir = \"{}\"\n{}",
            self.backend.as_deref().unwrap_or("auto"),
            self.run_dir.display(),
            self.bpffs_root.display(),
            self.directory.join("state").display(),
            self.policy_dir().display(),
            self.catalog_dir().display(),
            self.more
        )
    }

    /// Writes the configuration, and creates the directories that an administrator would.
    pub fn prepare(&self) -> Result<()> {
        for directory in
            [&self.run_dir, &self.bpffs_root, &self.policy_dir(), &self.catalog_dir(), &self.directory.join("state")]
        {
            fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        fs::write(self.config(), self.configuration())?;
        Ok(())
    }
}

/// A running agent. Dropping it ends it.
#[derive(Debug)]
pub struct Agent {
    paths: Paths,
    child: Child,
}

impl Agent {
    /// Starts it and waits until it answers.
    pub fn start(paths: &Paths) -> Result<Self> {
        // A socket of one that was killed would answer for this one.
        let log = OpenOptions::new().create(true).append(true).open(paths.log())?;
        let child = spawn(&paths.program, &paths.config(), &log)?;
        let mut agent = Self { paths: paths.clone(), child };
        within(START, || {
            let ended = agent.child.try_wait()?;
            ensure!(ended.is_none(), "portcullisd ended: {}", agent.log());
            UnixStream::connect(agent.paths.socket())
                .with_context(|| format!("portcullisd does not answer: {}", agent.log()))
        })?;
        Ok(agent)
    }

    /// What it and its predecessors logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.paths.log()).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// SIGKILL: no chance to put anything in order.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        if self.is_running()? {
            self.signal(Signal::TERM)?;
        }
        if wait(&mut self.child, END)?.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("stopping portcullisd: {error:#}");
        }
        let log = self.log();
        let refused = log.lines().find(|line| line.contains(REFUSED));
        assert!(
            refused.is_none() || thread::panicking(),
            "whatever tests have the agent do, its profile must have: {refused:?}"
        );
    }
}

fn spawn(program: &Path, config: &Path, log: &File) -> Result<Child> {
    Command::new(program)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

/// Runs an agent that is expected to refuse its configuration.
pub fn refuse(program: &Path, config: &Path) -> Result<Output> {
    run(Command::new(program).arg("--config").arg(config))
}
