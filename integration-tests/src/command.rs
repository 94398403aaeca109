//! Running programs with a time limit: a test that hangs says nothing.

use std::{
    fmt,
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

const LIMIT: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(5);

/// What a program did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; 128 and the signal's number where a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Itself, or an error if the program failed.
    pub fn success(self) -> Result<Self> {
        ensure!(self.status == 0, "failed: {self}");
        Ok(self)
    }

    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}, output {:?}, errors {:?}", self.status, self.stdout, self.stderr)
    }
}

/// A shell's way of putting how a process ended into one number.
pub fn status(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Runs a program without input to its end.
pub fn run(command: &mut Command) -> Result<Output> {
    let shown = format!("{command:?}");
    finish(command).with_context(|| format!("running {shown}"))
}

fn finish(command: &mut Command) -> Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let ended = wait(&mut child, LIMIT)?;
    if ended.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let (stdout, stderr) = (text(stdout)?, text(stderr)?);
    let Some(ended) = ended else {
        bail!("no end after {} s; output {stdout:?}, errors {stderr:?}", LIMIT.as_secs());
    };
    Ok(Output { status: status(ended), stdout, stderr })
}

/// Waits for a child's end; `None` if it takes longer.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            return Ok(None);
        }
        sleep(PAUSE);
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read before an error is worth showing all the same.
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn text(collector: JoinHandle<Vec<u8>>) -> Result<String> {
    let Ok(bytes) = collector.join() else { bail!("reading the output panicked") };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
