//! A process named so that a recycled pid is never mistaken for it.

use std::{ffi::OsStr, fs, os::fd::AsFd, path::Path, process::Child};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

/// How long a killed process may take to be gone; it may have much memory to give back.
const DEATH: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// A pid and its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// The pid.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_time: u64,
}

/// The start time in the text of `/proc/<pid>/stat`. The second field is the command, which may hold anything,
/// parentheses and spaces included: the last `)` ends it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The unix sockets of the network namespace, which shims share.
const SOCKETS: &str = "/proc/net/unix";

/// The number of the socket that listens at a path. A line's words are an address, a count of references, protocol, flags, type, state,
/// number and path; connections that it has accepted have the same path.
fn listening_socket(table: &str, path: &Path) -> Option<u64> {
    const ACCEPTS: u32 = 0x0001_0000;
    table.lines().find_map(|line| {
        let mut words = [""; 7];
        let mut bound = line;
        for word in &mut words {
            (*word, bound) = bound.trim_start().split_once(' ')?;
        }
        let flags = u32::from_str_radix(words[3], 16).ok()?;
        let is_it = flags & ACCEPTS != 0 && Path::new(bound) == path;
        is_it.then(|| words[6].parse().ok()).flatten()
    })
}

impl Process {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let start_time = start_time(&stat).with_context(|| format!("{path} has no start time"))?;
        Ok(Self { pid, start_time })
    }

    /// The process that listens on a unix socket, whether it answers or not.
    pub fn listening_on(socket: &Path) -> Result<Option<Self>> {
        let table = fs::read(SOCKETS).with_context(|| format!("reading {SOCKETS}"))?;
        let Some(number) = listening_socket(&String::from_utf8_lossy(&table), socket) else { return Ok(None) };
        let descriptor = format!("socket:[{number}]");
        for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // It may be gone by now.
            let Ok(mut descriptors) = fs::read_dir(entry.path().join("fd")).map(Iterator::flatten) else { continue };
            if descriptors
                .any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == OsStr::new(&descriptor)))
            {
                return Self::of(pid).map(Some);
            }
        }
        Ok(None)
    }

    /// Ends the process by SIGKILL and waits until it is gone. One that is gone already is no error.
    pub fn kill(self) -> Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            bail!("{} is not a pid", self.pid);
        };
        // First the handle, then the look at who it is: the other way round, the pid could change hands between.
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            other => other.with_context(|| format!("opening process {}", self.pid))?,
        };
        if Self::of(self.pid).ok() != Some(self) {
            return Ok(());
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Err(Errno::SRCH) => return Ok(()),
            other => other.with_context(|| format!("killing process {}", self.pid))?,
        }
        if !has_ended(&handle, DEATH).with_context(|| format!("waiting for the end of process {}", self.pid))? {
            bail!("process {} outlived SIGKILL by {} s", self.pid, DEATH.tv_sec);
        }
        Ok(())
    }
}

/// Whether a child that was not waited for ends within this time.
pub fn ends_within(child: &Child, limit: Timespec) -> Result<bool> {
    let pid = Pid::from_child(child);
    pidfd_open(pid, PidfdFlags::empty())
        .and_then(|handle| has_ended(&handle, limit))
        .with_context(|| format!("waiting for the end of process {pid}"))
}

fn has_ended(handle: impl AsFd, limit: Timespec) -> rustix::io::Result<bool> {
    Ok(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit))? > 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, id};

    use super::*;

    #[test]
    fn start_time_survives_hostile_command_names() {
        let fields: Vec<String> = (3..30).map(|n| n.to_string()).collect();
        assert_eq!(start_time(&format!("7 (a) 1 (b c)) {}\n", fields.join(" "))), Some(22));
        assert_eq!(start_time("7 (a"), None);
        assert_eq!(start_time("7 (a) S 1"), None);
    }

    #[test]
    fn only_the_socket_that_listens_counts() {
        let table = "\
Num       RefCount Protocol Flags    Type St Inode Path
000000007c2332cd: 00000002 00000000 00000000 0001 02     0 /run/s/a b
000000006162670a: 00000003 00000000 00000000 0001 03 10591 /run/s/a b
00000000aaaaaaaa: 00000002 00000000 00010000 0001 01  9931 /run/s/a
00000000bbbbbbbb: 00000002 00000000 00010000 0001 01 10590 /run/s/a b
00000000cccccccc: 00000002 00000000 00000000 0002 01  8123
";
        assert_eq!(listening_socket(table, Path::new("/run/s/a b")), Some(10590));
        assert_eq!(listening_socket(table, Path::new("/run/s/b")), None);
    }

    #[test]
    fn who_listens_is_found_without_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(Process::listening_on(&path).unwrap(), None);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let _unanswered = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(Process::listening_on(&path).unwrap(), Some(Process::of(id()).unwrap()));
    }

    #[test]
    fn another_process_with_the_same_pid_is_left_alone() {
        let myself = Process::of(id()).unwrap();
        Process { start_time: myself.start_time + 1, ..myself }.kill().unwrap();
    }

    #[test]
    fn kills_and_waits() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        Process::of(child.id()).unwrap().kill().unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
