//! Which programs a start runs, when and for how long: by the kernel's tracepoints of executions and ends, in a tracing instance
//! of its own. Costs nothing that could be measured.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// What is told of; others run on the machine as well.
const PROGRAMS: [&str; 6] = ["ctr", "containerd-shim-portcullis-v1", "containerd-shim-runc-v2", "runc", "exe", "true"];

/// The tracing instance. Dropping it removes it.
pub struct Tracing {
    instance: PathBuf,
    mounted: TempDir,
}

/// One execution of a program.
#[derive(Debug, Clone)]
pub struct Span {
    /// The program's name, and which of its executions it is.
    pub name: String,
    /// Seconds since the first.
    pub begin: f64,
    /// None that has not ended.
    pub end: Option<f64>,
}

impl Tracing {
    pub fn start() -> Result<Self> {
        let mounted = tempfile::Builder::new().prefix("portcullis-tracefs-").tempdir()?;
        mount("tracefs", mounted.path(), "tracefs", MountFlags::empty(), None).context("mounting tracefs")?;
        let instance = mounted.path().join(format!("instances/portcullis-{}", std::process::id()));
        let tracing = Self { instance, mounted };
        fs::create_dir(&tracing.instance).context("a tracing instance")?;
        tracing.write("trace_clock", "mono")?;
        tracing.write("buffer_size_kb", "1024")?;
        for event in ["sched_process_exec", "sched_process_exit"] {
            tracing.write(&format!("events/sched/{event}/enable"), "1")?;
        }
        Ok(tracing)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.instance.join(file), text).with_context(|| format!("writing {file} of tracefs"))
    }

    /// Forgets what was seen.
    pub fn clear(&self) -> Result<()> {
        self.write("trace", "")
    }

    /// What was executed since, from the last `ctr` on that names nothing else before it.
    pub fn spans(&self) -> Result<Vec<Span>> {
        Ok(parse(&fs::read_to_string(self.instance.join("trace"))?))
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.instance).map_err(anyhow::Error::from);
        let unmounted = unmount(self.mounted.path(), UnmountFlags::DETACH).map_err(anyhow::Error::from);
        if let Err(error) = removed.and(unmounted) {
            eprintln!("taking the tracing instance away: {error:#}");
        }
    }
}

/// `  comm-123  [000] ..... 12.345678: sched_process_exec: filename=/usr/bin/ctr pid=123 old_pid=123`
fn parse(text: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut running: HashMap<&str, usize> = HashMap::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut first = None;
    for line in text.lines() {
        let Some((head, event)) = line.split_once(": sched_process_") else { continue };
        let Some(time) = head.rsplit(' ').next().and_then(|time| time.parse::<f64>().ok()) else { continue };
        let field = |name: &str| event.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let Some(pid) = field("pid") else { continue };
        // An exec ends what the process was before.
        if let Some(span) = running.remove(pid).and_then(|index| spans.get_mut(index)) {
            span.end = first.map(|first| time - first);
        }
        let name = field("filename").and_then(|file| Path::new(file).file_name()?.to_str());
        let Some(name) = name.filter(|name| event.starts_with("exec") && PROGRAMS.contains(name)) else { continue };
        let first = *first.get_or_insert(time);
        let count = counts.entry(name).or_default();
        *count += 1;
        running.insert(pid, spans.len());
        spans.push(Span { name: format!("{name} {count}"), begin: time - first, end: None });
    }
    spans
}
