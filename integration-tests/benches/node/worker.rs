//! The program that executes others when told to (`container/spawn.c`), in containers.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::containerd::{Builder, Container};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, FileType, Mode, mknodat},
};
use tempfile::TempDir;

use crate::interrupt;

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/spawn"));

/// Where containers have it.
const PLACE: &str = "/bench";

/// Programs that do nothing. No tool, and one.
pub const NOOP: &str = "./noop";
pub const NC: &str = "./nc";

/// The longest that one command may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// The directory that containers mount.
pub struct Program(TempDir);

impl Program {
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("portcullis-bench-").tempdir()?;
        for name in ["spawn", NOOP, NC] {
            let file = directory.path().join(name);
            fs::write(&file, PROGRAM)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self(directory))
    }

    /// Starts a container that waits for commands.
    pub fn start<'a>(&self, container: Builder<'a>) -> Result<Worker<'a>> {
        let id = container.id().to_owned();
        let [input, output] = ["in", "out"].map(|end| fifo(&self.0.path().join(format!("{id}.{end}"))));
        let mount = format!("--mount=type=bind,src={},dst={PLACE},options=rbind:rw", self.0.path().display());
        let container = container.option(&mount).start_with(&[&format!("{PLACE}/spawn"), &id])?;
        Ok(Worker { container, input: input?, output: BufReader::new(output?) })
    }
}

/// Open for both, so that opening waits for nobody.
fn fifo(path: &Path) -> Result<File> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).with_context(|| path.display().to_string())?;
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

/// A container that does as it is told.
pub struct Worker<'a> {
    container: Container<'a>,
    input: File,
    output: BufReader<File>,
}

/// How long executions took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Each, in nanoseconds.
    pub each: f64,
    /// Each, in nanoseconds of a CPU for the processes themselves.
    pub each_on_cpu: f64,
}

impl Worker<'_> {
    pub fn pid(&self) -> Result<u32> {
        self.container.pid()
    }

    /// Executes a program so often, one after the other.
    pub fn time(&mut self, file: &str, times: u32) -> Result<Took> {
        self.tell(&format!("time {file} {times}"))?;
        let answer = self.answer()?;
        let (all, on_cpu) = answer.split_once(' ').context("no two numbers")?;
        let each = |text: &str| Ok::<_, anyhow::Error>(text.parse::<f64>()? / f64::from(times));
        Ok(Took { each: each(all)?, each_on_cpu: each(on_cpu)? })
    }

    /// Begins to execute a program so often at this pace, each time with another argument.
    pub fn begin(&mut self, file: &str, a_second: u32, times: u32) -> Result<()> {
        self.tell(&format!("pace {file} {a_second} {times}"))
    }

    /// Waits for the end of that. How long it took.
    pub fn finish(&mut self) -> Result<Duration> {
        Ok(Duration::from_nanos(self.answer()?.parse()?))
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        interrupt::check()?;
        Ok(writeln!(self.input, "{command}")?)
    }

    fn answer(&mut self) -> Result<String> {
        let limit = Timespec::try_from(LIMIT)?;
        let mut ready = [PollFd::new(self.output.get_ref(), PollFlags::IN)];
        // A command has one line for an answer: nothing is in the reader's buffer.
        ensure!(poll(&mut ready, Some(&limit))? == 1, "{} does not answer", self.container.id());
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    pub fn delete(self) -> Result<()> {
        self.container.delete()
    }
}
