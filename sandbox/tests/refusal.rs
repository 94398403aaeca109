//! A process that confines itself, as there is no way back: this program starts itself for it.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::{TcpListener, UdpSocket},
    process::{Command, ExitCode},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use portcullis_sandbox::{
    capabilities::{Capabilities, keep},
    filter::{Rest, apply},
    refusals::refused,
};

const CONFINED: &str = "PORTCULLIS_TEST_CONFINED";

/// What an intruder would want first. Each would fail with another error if it were not refused: the arguments are no good.
const FORBIDDEN: [(&str, libc::c_long); 22] = [
    ("add_key", libc::SYS_add_key),
    ("chroot", libc::SYS_chroot),
    ("delete_module", libc::SYS_delete_module),
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("finit_module", libc::SYS_finit_module),
    ("init_module", libc::SYS_init_module),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("kill", libc::SYS_kill),
    ("listen", libc::SYS_listen),
    ("memfd_create", libc::SYS_memfd_create),
    ("mount", libc::SYS_mount),
    ("move_mount", libc::SYS_move_mount),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("pivot_root", libc::SYS_pivot_root),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("ptrace", libc::SYS_ptrace),
    ("reboot", libc::SYS_reboot),
    ("setns", libc::SYS_setns),
    ("unshare", libc::SYS_unshare),
];

/// Arguments that the profile leaves out of calls that it allows.
const FORBIDDEN_ARGUMENTS: [(&str, libc::c_long, [u64; 3]); 9] = [
    ("bpf: BPF_MAP_CREATE", libc::SYS_bpf, [0, 0, 0]),
    ("bpf: BPF_PROG_LOAD", libc::SYS_bpf, [5, 0, 0]),
    ("bpf: BPF_BTF_LOAD", libc::SYS_bpf, [18, 0, 0]),
    ("clone: a process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]),
    ("ioctl: TIOCSTI", libc::SYS_ioctl, [0, libc::TIOCSTI, 0]),
    ("mmap: writable and executable", libc::SYS_mmap, [0, 0, 6]),
    ("mprotect: executable", libc::SYS_mprotect, [0, 0, 5]),
    ("prctl: PR_SET_DUMPABLE", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0]),
    ("socket: a raw one", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_RAW as u64, 1]),
];

/// Without arguments that any of them could do something with.
fn call(number: libc::c_long, [first, second, third]: [u64; 3]) -> io::Result<libc::c_long> {
    // SAFETY: each of the calls above fails, without having touched memory: with EPERM if it is refused, and otherwise because
    // there is nothing at address 0, no such descriptor, or no such thing.
    let result = unsafe { libc::syscall(number, first, second, third, 0, 0, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn ensure_refused(name: &str, result: io::Result<libc::c_long>) -> Result<()> {
    let error = result.err().with_context(|| format!("{name} was not refused"))?;
    ensure!(error.raw_os_error() == Some(libc::EPERM), "{name}: {error}");
    Ok(())
}

fn counts() -> BTreeMap<&'static str, u64> {
    refused().into_iter().collect()
}

fn refuses_what_is_not_in_the_profile() -> Result<()> {
    apply(Rest::Refused)?;
    ensure!(counts().is_empty(), "{:?}", counts());
    for (name, number) in FORBIDDEN {
        ensure_refused(name, call(number, [0; 3]))?;
        ensure!(counts().get(name) == Some(&1), "{name}: {:?}", counts());
    }
    ensure!(counts().len() == FORBIDDEN.len(), "{:?}", counts());
    for (name, number, arguments) in FORBIDDEN_ARGUMENTS {
        ensure_refused(name, call(number, arguments))?;
    }
    ensure!(counts().get("bpf") == Some(&3), "{:?}", counts());
    // A server of the intruder's own.
    ensure!(TcpListener::bind("127.0.0.1:0").is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)));
    ensure!(UdpSocket::bind("127.0.0.1:0").is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)));
    Ok(())
}

fn refuses_it_to_threads_before_and_after() -> Result<()> {
    let (go, wait) = mpsc::channel();
    let before = thread::spawn(move || wait.recv().map(|()| call(libc::SYS_unshare, [0; 3])));
    apply(Rest::Refused)?;
    go.send(())?;
    let before = before.join().map_err(|_| anyhow::anyhow!("the thread has ended"))??;
    ensure_refused("before", before)?;
    let after = thread::Builder::new().spawn(|| call(libc::SYS_unshare, [0; 3]))?;
    ensure_refused("after", after.join().map_err(|_| anyhow::anyhow!("the thread has ended"))?)?;
    ensure!(counts().get("unshare") == Some(&2), "{:?}", counts());
    Ok(())
}

fn a_signal_by_hand_changes_nothing() -> Result<()> {
    // kill(2) is refused later: so a shell sends it, which waits until then.
    let script =
        format!("until grep -q '^Seccomp:.2' /proc/{0}/status; do sleep 0.1; done; kill -SYS {0}", std::process::id());
    let shell = Command::new("/bin/sh").arg("-c").arg(script).spawn()?;
    apply(Rest::Refused)?;
    let ended = || fs::read_to_string(format!("/proc/{}/stat", shell.id())).map(|stat| stat.contains(") Z "));
    while !ended()? {
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(counts().is_empty(), "{:?}", counts());
    Ok(())
}

fn logs_only_if_told_to() -> Result<()> {
    apply(Rest::Logged)?;
    ensure!(Command::new("/bin/true").status()?.success());
    // unshare(0) does nothing, and is let do it.
    ensure!(call(libc::SYS_unshare, [0; 3])? == 0);
    ensure!(counts().is_empty(), "{:?}", counts());
    Ok(())
}

/// A line of this thread's status, and of one that it makes.
fn status(name: &str) -> Result<[String; 2]> {
    let read = || fs::read_to_string("/proc/thread-self/status");
    let made = thread::spawn(read).join().map_err(|_| anyhow::anyhow!("the thread has ended"))??;
    let find = |text: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned()).with_context(|| format!("no {name}"))
    };
    Ok([find(&read()?)?, find(&made)?])
}

fn keeps_capabilities_and_no_more() -> Result<()> {
    let [held, _] = status("CapPrm")?;
    let [bounding, _] = status("CapBnd")?;
    let held = u64::from_str_radix(&held, 16)?;
    let left = keep(Capabilities::KILL)?;
    ensure!(left.bits() == held & Capabilities::KILL.bits());
    for name in ["CapEff", "CapPrm"] {
        for value in status(name)? {
            ensure!(u64::from_str_radix(&value, 16)? == left.bits(), "{name} {value}");
        }
    }
    for name in ["CapInh", "CapAmb"] {
        for value in status(name)? {
            ensure!(u64::from_str_radix(&value, 16)? == 0, "{name} {value}");
        }
    }
    let may_bound = held & Capabilities::SETPCAP.bits() != 0;
    let expected = u64::from_str_radix(&bounding, 16)? & if may_bound { Capabilities::KILL.bits() } else { u64::MAX };
    for value in status("CapBnd")? {
        ensure!(u64::from_str_radix(&value, 16)? == expected, "CapBnd {value}");
    }
    ensure!(status("NoNewPrivs")? == ["1", "1"]);
    Ok(())
}

type Case = fn() -> Result<()>;

const CASES: [(&str, Case); 5] = [
    ("refuses_what_is_not_in_the_profile", refuses_what_is_not_in_the_profile),
    ("refuses_it_to_threads_before_and_after", refuses_it_to_threads_before_and_after),
    ("a_signal_by_hand_changes_nothing", a_signal_by_hand_changes_nothing),
    ("logs_only_if_told_to", logs_only_if_told_to),
    ("keeps_capabilities_and_no_more", keeps_capabilities_and_no_more),
];

fn in_a_process_of_its_own(name: &str) -> Result<(), Failed> {
    let output = Command::new(env::current_exe()?).env(CONFINED, name).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

fn main() -> ExitCode {
    let confined = env::var(CONFINED).ok();
    if let Some((_, case)) = CASES.iter().find(|(name, _)| confined.as_deref() == Some(name)) {
        return match case() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let trials = CASES.map(|(name, _)| Trial::test(name, move || in_a_process_of_its_own(name)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}
