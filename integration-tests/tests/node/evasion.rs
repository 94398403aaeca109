//! Ways to execute a tool without looking like it. Each is tried in detect and in enforce mode, and what came of it is a cell
//! of docs/evasion-matrix.md, which scripts/test makes of the lines that are printed here.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    containerd::Container,
    node::{Node, find_program},
    signals::Signal,
};
use portcullis_policy::policyset::Backend;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::LAST;

/// How a way ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The exec, or the mapping, fails with EPERM.
    Eperm,
    /// SIGKILL before the first instruction.
    Sigkill,
    /// It is not noticed.
    Missed,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Eperm => "EPERM",
            Self::Sigkill => "SIGKILL",
            Self::Missed => "missed",
        }
    }
}

/// One way.
struct Way {
    /// As the matrix calls it.
    name: &'static str,
    /// Shell commands in an empty directory.
    script: &'static str,
    /// The tool that it is.
    tool: &'static str,
    /// One of the ways of identification that must be told.
    by: &'static str,
    /// What it prints once it runs.
    ran: &'static str,
    /// How it ends with the backend lsm.
    lsm: End,
    /// And with the tracepoint.
    tracepoint: End,
}

const NC: &str = "usage: nc ";
const BUSYBOX_NC: &str = "BusyBox v";

const fn nc(name: &'static str, by: &'static str, script: &'static str) -> Way {
    Way { name, script, tool: "nc", by, ran: NC, lsm: End::Eperm, tracepoint: End::Sigkill }
}

const fn applet(name: &'static str, by: &'static str, script: &'static str) -> Way {
    Way { ran: BUSYBOX_NC, ..nc(name, by, script) }
}

const WAYS: [Way; 37] = [
    nc("the tool itself", "resolved_name", "/usr/bin/nc -h"),
    nc("symbolic link", "resolved_name", "/opt/links/report -h"),
    nc("hard link", "fingerprint", "ln /usr/bin/nc.openbsd x; ./x -h"),
    nc("copy", "fingerprint", "cp /usr/bin/nc.openbsd x; ./x -h"),
    nc("copy with bytes appended", "fingerprint", "cp /usr/bin/nc.openbsd x; echo more >>x; ./x -h"),
    Way {
        ran: "curl 7",
        tool: "curl",
        ..nc("renamed copy of another tool", "fingerprint", "cp /usr/bin/curl a; mv a b; ./b --version")
    },
    nc("a false argv[0]", "resolved_name", "/opt/evade as bash /usr/bin/nc.openbsd -h"),
    applet("busybox nc", "applet", "busybox nc"),
    applet("busybox busybox nc", "applet", "busybox busybox busybox nc"),
    applet("busybox /some/path/nc", "applet", "busybox /a/b//////c/nc"),
    applet("busybox by a long path", "applet", r#"busybox "$(printf '/%04000d/nc' 0)""#),
    applet("busybox with argv[0] nc", "applet", "/opt/evade as nc /usr/bin/busybox"),
    applet("busybox with argv[0] -nc", "applet", "/opt/evade as -nc /usr/bin/busybox"),
    applet("busybox with argv[0] busyboxes", "applet", "/opt/evade as busyboxes /usr/bin/busybox nc"),
    applet("copy of busybox", "applet", "cp /usr/bin/busybox x; /opt/evade as busybox ./x nc"),
    applet("copy of busybox called by its applet", "invoked_name", "mkdir d; cp /usr/bin/busybox d/nc; d/nc"),
    applet("busybox's shell running its own applet", "applet", "busybox sh -c nc"),
    applet("busybox in memory", "applet", "/opt/evade memfd /usr/bin/busybox nc"),
    nc("/proc/self/fd", "resolved_name", "/opt/evade fd /usr/bin/nc.openbsd -h"),
    nc("fexecve", "resolved_name", "/opt/evade fexecve /usr/bin/nc.openbsd -h"),
    nc("memfd", "fingerprint", "/opt/evade memfd /usr/bin/nc.openbsd -h"),
    nc("deleted file", "fingerprint", "/opt/evade deleted /usr/bin/nc.openbsd -h"),
    nc("dynamic loader", "loader", "/lib64/ld-linux-x86-64.so.2 /usr/bin/nc.openbsd -h"),
    nc(
        "dynamic loader with options",
        "loader",
        "/lib64/ld-linux-x86-64.so.2 --inhibit-cache --library-path /usr/lib:/lib --argv0 x /usr/bin/nc.openbsd -h",
    ),
    nc(
        "dynamic loader with an option as argv[0]",
        "loader",
        "/opt/evade as --library-path /lib64/ld-linux-x86-64.so.2 /usr/bin/nc.openbsd -h",
    ),
    nc(
        "dynamic loader called busybox",
        "loader",
        "ln -s /lib64/ld-linux-x86-64.so.2 busybox; /opt/evade as x ./busybox /usr/bin/nc.openbsd -h",
    ),
    applet("busybox called ld.so", "applet", "ln -s /usr/bin/busybox ld.so; /opt/evade as nc ./ld.so"),
    nc("copy of the dynamic loader", "loader", "cp /lib64/ld-linux-x86-64.so.2 x; ./x /usr/bin/nc.openbsd -h"),
    Way {
        tracepoint: End::Missed,
        ..nc("dynamic loader and a link's name", "mapping", "/lib64/ld-linux-x86-64.so.2 /opt/links/report -h")
    },
    Way {
        lsm: End::Missed,
        tracepoint: End::Missed,
        ..nc("dynamic loader and a copy", "", "cp /usr/bin/nc.openbsd x; /lib64/ld-linux-x86-64.so.2 ./x -h")
    },
    nc(
        "#! script with the tool as interpreter",
        "resolved_name",
        r"printf '#!/usr/bin/nc.openbsd -h\n' >x; chmod +x x; ./x",
    ),
    nc("innocent script that calls it", "resolved_name", r"printf '#!/bin/sh\nnc -h\n' >x; chmod +x x; ./x"),
    // The registers lead to the script's argv; the interpreter's is seen once the exec is final.
    Way {
        ran: "nc: bad address './x'",
        lsm: End::Sigkill,
        ..nc("#! script for busybox", "applet", r"printf '#!/bin/busybox nc\n' >x; chmod +x x; ./x")
    },
    applet("env in front", "applet", "env nc -h"),
    applet("xargs in front", "applet", "echo -h | xargs nc"),
    applet("timeout in front", "applet", "timeout 5 nc -h"),
    Way {
        tool: "reverse_shell",
        by: "stdio",
        ran: "hello",
        ..nc("shell with a socket as standard input", "stdio", "/opt/evade socket /usr/bin/dash -c 'echo hello'")
    },
];

const REFUSED: &str = "Connection refused";

const fn shell(name: &'static str, script: &'static str) -> Way {
    Way { tool: "shell_socket", ran: REFUSED, ..nc(name, "socket", script) }
}

/// No tool at all. They need a network, of which nothing but a closed port of the loopback is used.
const SOCKET_WAYS: [Way; 8] = [
    shell("bash and /dev/tcp", "bash -c ': </dev/tcp/127.0.0.1/1'"),
    shell("bash and /dev/tcp by IPv6", "bash -c ': </dev/tcp/::1/1'"),
    shell("copy of bash and /dev/tcp", "cp /usr/bin/bash x; ./x -c ': </dev/tcp/127.0.0.1/1'"),
    shell(
        "bash's child whose parent has ended",
        "bash -c '(sleep 1; : </dev/tcp/127.0.0.1/1) 2>said &'; sleep 2; cat said",
    ),
    // There is no tracepoint at which a UDP socket is connected.
    Way {
        ran: "sent",
        tracepoint: End::Missed,
        ..shell("bash and /dev/udp", "bash -c 'echo x >/dev/udp/127.0.0.1/1 && echo sent'")
    },
    Way {
        tool: "interpreter_socket",
        ..shell(
            "perl one-liner",
            r#"perl -e 'socket(S, 2, 1, 0); connect(S, pack("Sna4x8", 2, 1, "\x7f\0\0\1")) or print "$!\n"'"#,
        )
    },
    // Nor one at which any socket is made.
    Way { tool: "raw_socket", ran: "opened", tracepoint: End::Missed, ..shell("raw socket", "/opt/evade open raw") },
    Way {
        tool: "raw_socket",
        ran: "opened",
        tracepoint: End::Missed,
        ..shell("packet socket", "/opt/evade open packet")
    },
];

/// Those that need more rights than a container has by default.
const PRIVILEGED_WAYS: [Way; 3] = [
    nc("mount namespace of its own", "resolved_name", "busybox unshare -m /usr/bin/nc -h"),
    nc("pid namespace of its own", "resolved_name", "busybox unshare -mpf /usr/bin/nc -h"),
    nc(
        "child cgroup",
        "resolved_name",
        "mkdir c; busybox mount -t cgroup2 none c || exit
         d=c$(sed -n s/^0:://p /proc/self/cgroup)/child; mkdir $d || exit
         sh -c \"echo 0 >$d/cgroup.procs; /usr/bin/nc -h\"; rmdir $d; busybox umount c",
    ),
];

/// What stays silent, although it looks alike.
const INNOCENT: [&str; 14] = [
    "busybox --list >/dev/null",
    "busybox ls nc nslookup",
    "busybox echo nc",
    "busybox sh -c 'echo nc'",
    "/opt/evade as nc-like /usr/bin/busybox true",
    "/lib64/ld-linux-x86-64.so.2 /usr/bin/dash -c 'echo nc'",
    "/lib64/ld-linux-x86-64.so.2 --argv0 nc /usr/bin/dash -c true",
    "cp /usr/bin/dash nc-copy; ./nc-copy -c true",
    "cp /usr/bin/ncdu x; ./x",
    "mkdir nc; cat nc/curl; chmod 700 nc; ls nc",
    "touch nc; sh -c 'cat nc'",
    "cp /usr/bin/nc.openbsd y; cat y | head -c 1 >/dev/null; chmod +x y",
    "sh -c 'true nc -h'",
    "echo nc | xargs echo",
];

fn directory(number: usize) -> String {
    format!("/tmp/way{number}")
}

/// Tries all in one session. The directory that each runs in tells whose a signal is.
fn run<'a>(container: &Container<'_>, scripts: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let lines: Vec<String> = scripts
        .enumerate()
        .map(|(number, script)| {
            let directory = directory(number);
            format!("(mkdir {directory} && cd {directory} || exit; {script}\n)")
        })
        .chain([LAST.0.to_owned()])
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut outcomes = container.shell(&lines)?;
    outcomes.pop();
    Ok(outcomes.into_iter().map(|outcome| format!("status {}: {}", outcome.status, outcome.output)).collect())
}

fn signals_in(signals: &[Signal], number: usize) -> Vec<&Signal> {
    let directory = directory(number);
    signals.iter().filter(|signal| signal.process.as_ref().is_some_and(|process| process.cwd == directory)).collect()
}

impl Way {
    fn expected(&self, backend: Backend) -> End {
        match backend {
            Backend::Lsm => self.lsm,
            Backend::Tracepoint => self.tracepoint,
        }
    }

    fn ends(&self, detect: (&[&Signal], &str), enforce: (&[&Signal], &str)) -> Result<End> {
        ensure!(detect.1.contains(self.ran), "it does not work at all: {}", detect.1);
        let ours = |signals: &[&Signal]| signals.iter().any(|signal| signal.tool() == self.tool);
        if !ours(detect.0) && !ours(enforce.0) {
            return Ok(End::Missed);
        }
        let told = |signal: &&&Signal| {
            signal.tool() == self.tool
                && signal.verdict == "would_block"
                && signal.identified_by.iter().any(|by| by == self.by)
        };
        ensure!(detect.0.iter().any(|signal| told(&signal)), "in detect mode: {:#?}", detect.0);
        ensure!(!enforce.1.contains(self.ran), "it ran in enforce mode: {} {:#?}", enforce.1, enforce.0);
        let stopped =
            enforce.0.iter().find(|signal| signal.tool() == self.tool).context("no signal in enforce mode")?;
        match stopped.verdict.as_str() {
            "blocked" => Ok(End::Eperm),
            "killed" => Ok(End::Sigkill),
            other => anyhow::bail!("in enforce mode the verdict is {other}: {stopped:#?}"),
        }
    }
}

/// Tries ways in both modes.
fn end_as_expected(node: &Node, ways: &[Way], options: &[&'static str]) -> Result<()> {
    let scripts = || ways.iter().map(|way| way.script);
    let builder = || options.iter().fold(node.container(), |builder, option| builder.option(option));
    let detect = builder().start()?;
    let ran = run(&detect, scripts())?;
    let enforce = builder().mode("enforce").start()?;
    let stopped = run(&enforce, scripts())?;
    let seen = node.signals_until(detect.id(), LAST.1)?;
    let prevented = node.signals_until(enforce.id(), LAST.1)?;
    let mut worse = Vec::new();
    // The line was begun by the test's name.
    println!();
    for (number, way) in ways.iter().enumerate() {
        let (seen, prevented) = (signals_in(&seen, number), signals_in(&prevented, number));
        let outputs = ran.get(number).zip(stopped.get(number)).context("an outcome is missing")?;
        match way.ends((&seen, outputs.0), (&prevented, outputs.1)) {
            Ok(end) => {
                println!("matrix\t{}\t{}", way.name, end.word());
                let expected = way.expected(node.backend());
                if end != expected {
                    worse.push(format!("{}: {} instead of {}", way.name, end.word(), expected.word()));
                }
            }
            Err(error) => worse.push(format!("{}: {error:#}", way.name)),
        }
    }
    ensure!(worse.is_empty(), "{}", worse.join("\n"));
    Ok(())
}

/// Every way that an ordinary container offers.
pub fn every_way_ends_as_the_matrix_says(node: &Node) -> Result<()> {
    end_as_expected(node, &WAYS, &[])
}

/// Those of a privileged one.
pub fn every_privileged_way_ends_as_the_matrix_says(node: &Node) -> Result<()> {
    end_as_expected(node, &PRIVILEGED_WAYS, &["--privileged"])
}

/// Sockets of what is no tool, under a policy that cares about all of them.
pub fn every_socket_ends_as_the_matrix_says(node: &Node) -> Result<()> {
    let _policy = node.policy(
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:\n  name: sockets\nspec:\n  mode: detect\n  rules:\n\
         \x20 - tools: [shell_socket, interpreter_socket, raw_socket]\n    action: block\n  - categories: [dns]\n    action: alert\n",
    )?;
    end_as_expected(node, &SOCKET_WAYS, &["--net-host"])?;
    // A program that a shell has started is no shell.
    let container = node.container().mode("enforce").option("--net-host").start()?;
    let outcomes = container.shell(&["/opt/evade connected /usr/bin/true", "perl -e 'print 1'", LAST.0])?;
    ensure!(outcomes.iter().take(2).all(|outcome| outcome.status == 0), "{outcomes:?}");
    ensure!(node.signals_until(container.id(), LAST.1)?.len() == 1, "a signal on an innocent socket");
    Ok(())
}

/// Ten tools of the catalogue, and nothing but their names was needed.
pub fn ten_tools_give_ten_signals(node: &Node) -> Result<()> {
    const TOOLS: [(&str, &str, &str); 10] = [
        ("nc -h", "nc", "netcat"),
        ("nslookup -version", "nslookup", "dns"),
        ("dig -v", "dig", "dns"),
        ("host -V", "host", "dns"),
        ("curl --version", "curl", "http"),
        ("wget --help", "wget", "http"),
        ("tftp --help", "tftp", "file-transfer"),
        ("telnet --help", "telnet", "remote-shell"),
        ("traceroute --help", "traceroute", "diagnostics"),
        ("ping --help", "ping", "diagnostics"),
    ];
    let container = node.container().start()?;
    container.shell(&TOOLS.map(|(line, ..)| line))?;
    let signals = node.signals_until(container.id(), "ping")?;
    let found = signals.iter().filter_map(|signal| Some((signal.tool(), signal.tool.as_ref()?.category.as_str())));
    ensure!(found.eq(TOOLS.map(|(_, tool, category)| (tool, category))), "{signals:#?}");
    Ok(())
}

/// A policy may ask for a signal on every program from outside the image.
pub fn what_was_dropped_is_found_where_asked_for(node: &Node) -> Result<()> {
    let _policy = node.policy(
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:\n  name: dropped\nspec:\n  mode: detect\n  rules:\n\
         \x20 - tools: [dropped_executable]\n    action: block\n  - categories: [dns]\n    action: alert\n",
    )?;
    let container = node.container().mode("enforce").start()?;
    let lines = [
        "cp /usr/bin/true /tmp/t && /tmp/t",
        "cp /opt/evade /tmp/e; /opt/evade memfd /tmp/e x",
        "/usr/bin/true",
        LAST.0,
    ];
    let outcomes = container.shell(&lines)?;
    let signals = node.signals_until(container.id(), LAST.1)?;
    let found: Vec<_> = signals.iter().map(|signal| (signal.rule.as_str(), signal.severity.as_str())).collect();
    let dropped = ("dropped_executable", "low");
    ensure!(found == [dropped, dropped, ("net_util_in_container", "medium")], "{signals:#?} {outcomes:?}");
    ensure!(outcomes.iter().map(|outcome| outcome.status == 0).eq([false, false, true, true]), "{outcomes:?}");
    Ok(())
}

/// What must not be taken for a tool.
pub fn what_looks_alike_stays_silent(node: &Node) -> Result<()> {
    let container = node.container().mode("enforce").start()?;
    let outcomes = run(&container, INNOCENT.into_iter())?;
    let signals = node.signals_until(container.id(), LAST.1)?;
    for (number, script) in INNOCENT.iter().enumerate() {
        let found = signals_in(&signals, number);
        ensure!(found.is_empty(), "{script}: {found:#?} {:?}", outcomes.get(number));
    }
    ensure!(signals.len() == 1, "{signals:#?}");
    Ok(())
}

/// An image whose innocent programs are called like tools, and that holds whatever could make a look at it fail or wait, harms
/// nobody but itself.
pub fn a_hostile_image_harms_only_itself(node: &Node) -> Result<()> {
    let scratch = node.scratch()?;
    let root = scratch.path().join("rootfs");
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    for directory in ["proc", "dev", "sys", "run", "tmp", "usr/bin"] {
        fs::create_dir_all(root.join(directory))?;
    }
    // busybox, but it says that it is nc.
    fs::copy(find_program("busybox").context("busybox is missing")?, bin.join("nc"))?;
    symlink("nc", bin.join("sleep"))?;
    symlink("nc", bin.join("true"))?;
    symlink("../../../../../../../../bin/busybox", bin.join("busybox"))?;
    symlink("/proc/1/root/bin/sh", bin.join("sh"))?;
    symlink("curl", bin.join("curl"))?;
    mknodat(CWD, bin.join("dig"), FileType::Fifo, Mode::RWXU, 0)?;
    mknodat(CWD, bin.join("host"), FileType::CharacterDevice, Mode::RWXU, makedev(1, 3))?;
    fs::create_dir(bin.join("wget"))?;
    for number in 0..1000 {
        symlink("nc", root.join(format!("usr/bin/l{number}")))?;
    }
    let hostile = node.container().rootfs(&root).option("--env").option("PATH=/bin").start()?;
    let copy = node.container().mode("enforce").start()?;
    let outcomes = copy.shell(&["busybox true", "cp /usr/bin/busybox /tmp/b; /opt/evade as true /tmp/b", LAST.0])?;
    ensure!(outcomes.iter().take(2).all(|outcome| outcome.status == 0), "{outcomes:?}");
    ensure!(node.signals_until(copy.id(), LAST.1)?.len() == 1, "a signal in another image's container");
    hostile.exec(&["true"])?;
    let signals = node.signals_until(hostile.id(), "nc")?;
    ensure!(!signals.is_empty(), "its own programs are not what they are called");
    Ok(())
}

/// A number of those that a race prints.
pub fn count(output: &str, word: &str) -> Result<u32> {
    let mut words = output.split_whitespace();
    words
        .find(|found| *found == word)
        .and_then(|_| words.next())
        .context("a count is missing")?
        .parse()
        .context("a count")
}

/// Another process rewrites the argument while the kernel reads it: the forbidden applet must never run.
pub fn an_argument_that_changes_deceives_nobody(node: &Node) -> Result<()> {
    const TRIES: u32 = 2000;
    let container = node.container().mode("enforce").start()?;
    // Nothing that is half the one and half the other may be an applet: of `true` and `nc` it could be `tr`.
    let output =
        container.exec(&["/opt/evade", "race", &TRIES.to_string(), "/usr/bin/busybox", "echo", "nc"])?.success()?;
    let count = |word| count(&output.stdout, word);
    println!("race: {}", output.stdout.trim());
    ensure!(count("bad")? == 0, "{output}");
    // The others are those for which it had written half a name.
    ensure!(count("good")? + count("refused")? + count("killed")? + count("other")? == TRIES, "{output}");
    // Otherwise nothing was tried.
    ensure!(count("good")? > 0 && count("refused")? + count("killed")? > 0, "{output}");
    Ok(())
}

/// The other end of a reverse shell's connection.
pub fn a_reverse_shell_tells_its_other_end(node: &Node) -> Result<()> {
    let container = node.container().option("--net-host").start()?;
    // `nc -e` in effect: it is called like a tool, and it ends as a shell.
    container.exec(&["sh", "-c", "cp /opt/evade /tmp/nc; /tmp/nc connected /usr/bin/dash -c true"])?;
    let signals = node.signals_until(container.id(), "reverse_shell")?;
    let [tool, signal] = &signals[..] else { anyhow::bail!("{signals:#?}") };
    ensure!(tool.tool() == "nc" && tool.related.is_empty(), "{tool:#?}");
    ensure!(signal.related == [tool.id], "{signal:#?}");
    ensure!(signal.rule == "reverse_shell" && signal.severity == "high", "{signal:#?}");
    let remote = signal.remote.as_ref().context("no other end")?;
    ensure!(remote.address == "127.0.0.1" && remote.port != 0, "{signal:#?}");
    Ok(())
}

/// Where the file is.
pub fn a_signal_says_where_the_file_is(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    for (number, (script, places)) in [
        ("/usr/bin/nc -h", &[][..]),
        ("cp /usr/bin/nc.openbsd x; ./x -h", &["temporary_directory", "upper_layer"][..]),
        ("cp /usr/bin/nc.openbsd /tmp/x; /tmp/x -h", &["writable_directory", "temporary_directory", "upper_layer"][..]),
        ("/opt/evade memfd /usr/bin/nc.openbsd -h", &["memfd"][..]),
        ("/opt/evade deleted /usr/bin/nc.openbsd -h", &["temporary_directory", "upper_layer", "deleted"][..]),
    ]
    .into_iter()
    .enumerate()
    {
        container.exec(&["sh", "-c", &format!("mkdir {0}; cd {0}; {script}", directory(number))])?;
        // In the same place it would be a repeat of the one before.
        container.exec(&["sh", "-c", &format!("cd {}; {}", directory(number), LAST.0)])?;
        let signals = node.signals_until(container.id(), LAST.1)?;
        let found = signals_in(&signals, number);
        let process = found.first().and_then(|signal| signal.process.as_ref()).context("no signal")?;
        ensure!(process.places == places, "{script}: {process:#?}");
    }
    Ok(())
}
