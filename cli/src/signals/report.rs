//! One signal as a report for people, in the order in which it is triaged: what happened, where, who did it, how it
//! came about, how the tool was recognised, what was done; then what to look at next.

use std::io::{self, Write};

use super::row::{severity_tone, verdict_tone, words};
use crate::{
    escape::{shell_command, shell_word, text},
    output::{Screen, Tone},
    time::Time,
    view::{
        Ancestor, Caller, Endpoint, Identification, Mode, NetworkOperation, Node, Occurrence, Operation, Origin,
        Process, Signal, SuppressedCount, Transport, Triage, Verdict,
    },
};

/// Signals from so many minutes before and after may belong to the same attack.
const AROUND_MINUTES: i64 = 15;

/// The rule of signals that tell what is in no other by its number.
const EVENTS_LOST: &str = "events_lost";

/// Writes the report.
pub fn write(out: &mut impl Write, signal: &Signal, screen: Screen) -> io::Result<()> {
    let mut report = Report { out, screen };
    report.what(signal)?;
    report.novelty(signal)?;
    report.place(signal)?;
    if let Some(process) = &signal.process {
        report.who(process, signal.origin)?;
        report.command(process)?;
        report.lineage(signal, process)?;
    }
    if let Some(operation) = &signal.operation {
        report.operation(operation)?;
    } else {
        report.identification(signal)?;
        report.verdict(signal)?;
    }
    report.network(signal)?;
    if let Some(triage) = &signal.triage {
        report.triage(triage)?;
    }
    report.next(signal)
}

struct Report<'a, W> {
    out: &'a mut W,
    screen: Screen,
}

impl<W: Write> Report<'_, W> {
    fn section(&mut self, title: &str) -> io::Result<()> {
        let title = self.screen.paint(Tone::Title, title);
        writeln!(self.out, "\n{title}")
    }

    /// One line; the value must be safe to show. Nothing is written for what is not known.
    fn safe(&mut self, name: &str, value: &str) -> io::Result<()> {
        if value.is_empty() { Ok(()) } else { writeln!(self.out, "  {name:<14}{value}") }
    }

    /// One line of hostile text.
    fn field(&mut self, name: &str, value: &str) -> io::Result<()> {
        self.safe(name, &text(value))
    }

    fn what(&mut self, signal: &Signal) -> io::Result<()> {
        let title = self.screen.paint(Tone::Title, &format!("Signal {}", signal.id));
        let severity = self.screen.paint(severity_tone(signal.severity), signal.severity.word());
        let verdict = self.screen.paint(verdict_tone(signal.verdict), signal.verdict.word());
        writeln!(self.out, "{title}  {severity}  {verdict}")?;
        if !signal.message.is_empty() {
            writeln!(self.out, "{}", text(&signal.message))?;
        }
        self.section("What")?;
        self.field("rule", &signal.rule)?;
        if let Some(tool) = &signal.tool {
            self.field("tool", &tool.id)?;
            self.field("category", &tool.category)?;
            self.field("ATT&CK", &tool.techniques.join(" "))?;
        }
        self.safe("time", &signal.time.map(Time::full).unwrap_or_default())?;
        self.repeats(signal)
    }

    /// What has been folded into it. Nothing for what happened once.
    fn repeats(&mut self, signal: &Signal) -> io::Result<()> {
        if signal.count > 1 {
            self.safe("count", &signal.count.to_string())?;
            self.safe("last", &signal.last_time.map(Time::full).unwrap_or_default())?;
        }
        for (number, SuppressedCount { tool, verdict, count }) in signal.suppressed.iter().enumerate() {
            let of_these = match (tool.as_str(), signal.rule.as_str()) {
                ("", EVENTS_LOST) if *verdict == Verdict::Unknown => format!("{count} not stopped"),
                ("", EVENTS_LOST) => format!("{count} {verdict}"),
                ("", _) => format!("{count} other tools {verdict}"),
                _ => format!("{count} {tool} {verdict}"),
            };
            self.field(if number == 0 { "of these" } else { "" }, &of_these)?;
        }
        for (number, Occurrence { pid, time, argv: words, argv_truncated }) in signal.occurrences.iter().enumerate() {
            let time = time.map(Time::full).unwrap_or_default();
            let words = if words.is_empty() { String::new() } else { format!("  {}", argv(words, *argv_truncated)) };
            self.safe(if number == 0 { "the newest" } else { "" }, &format!("{time}  pid {pid}{words}"))?;
        }
        Ok(())
    }

    /// What people have said, the newest first.
    fn triage(&mut self, newest: &Triage) -> io::Result<()> {
        self.section("Triage")?;
        for Triage { state, note, author, time, .. } in [newest].into_iter().chain(newest.earlier.iter().rev()) {
            let note = if note.is_empty() { String::new() } else { format!(": {}", text(note)) };
            let time = time.map(Time::short).unwrap_or_default();
            self.safe(state.word(), &format!("{time}  {}{note}", text(author)))?;
        }
        Ok(())
    }

    /// Whether the workload does such a thing habitually.
    fn novelty(&mut self, signal: &Signal) -> io::Result<()> {
        let Some(novelty) = &signal.novelty else { return Ok(()) };
        self.section("Novelty")?;
        let habitual = if novelty.habitual { "; habitual" } else { "" };
        self.field("this", &format!("{}{habitual}", novelty.summary))?;
        if !novelty.first_time {
            let days = if novelty.days_seen == 1 { "day" } else { "days" };
            let seen = format!("{} times before, on {} {days} of the last 32", novelty.times_seen, novelty.days_seen);
            self.safe("seen", &seen)?;
            self.safe("first", &novelty.first_seen.map(Time::full).unwrap_or_default())?;
            self.safe("last", &novelty.last_seen.map(Time::full).unwrap_or_default())?;
        }
        self.safe("known since", &novelty.workload_known_since.map(Time::full).unwrap_or_default())
    }

    fn place(&mut self, signal: &Signal) -> io::Result<()> {
        let Some(container) = &signal.container else { return Ok(()) };
        self.section("Where")?;
        self.field("container", &container.id)?;
        self.field("containerd ns", &container.containerd_namespace)?;
        self.field("image", &container.image)?;
        if let Some(pod) = &container.pod {
            self.field("pod", &format!("{}/{}", pod.namespace, pod.name))?;
            self.field("in the pod", &pod.container_name)?;
        }
        self.safe("created", &container.created.map(Time::full).unwrap_or_default())?;
        self.safe("ended", &container.ended.map(Time::full).unwrap_or_default())?;
        self.field("node", &signal.node.as_ref().map(Node::title).unwrap_or_default())
    }

    fn who(&mut self, process: &Process, origin: Origin) -> io::Result<()> {
        self.section("Who")?;
        self.safe("uid, gid", &format!("{}, {}", process.uid, process.gid))?;
        let inside = if process.container_pid == 0 {
            String::new()
        } else {
            format!(" ({} in the container)", process.container_pid)
        };
        let thread = if process.tid == process.pid || process.tid == 0 {
            String::new()
        } else {
            format!(", thread {}", process.tid)
        };
        self.safe("pid", &format!("{}{thread}{inside}", process.pid))?;
        self.safe(
            "came from",
            match origin {
                Origin::Container => "the container's own first process",
                Origin::ExecSession => "an exec session: put there from outside (kubectl exec, ctr task exec, a probe)",
                Origin::Probe => "a probe: put there from outside again and again, at a steady pace",
                Origin::Unknown => "",
            },
        )?;
        self.field("terminal", if process.tty.is_empty() { "none" } else { &process.tty })?;
        self.path("directory", &process.cwd, process.cwd_truncated)?;
        self.safe("started", &process.start_time.map(Time::full).unwrap_or_default())
    }

    /// A path whose beginning may be missing.
    fn path(&mut self, name: &str, path: &str, truncated: bool) -> io::Result<()> {
        self.safe(name, &cut_path(path, truncated))
    }

    fn command(&mut self, process: &Process) -> io::Result<()> {
        self.section("Command")?;
        self.safe("argv", &argv(&process.argv, process.argv_truncated))?;
        if process.argv_truncated {
            self.safe("", &format!("({} of {} arguments were recorded)", process.argv.len(), process.argc))?;
        }
        if process.argv_unconfirmed {
            self.safe("", "(read where the process could have changed it)")?;
        }
        let cut = if process.filename_truncated { "…" } else { "" };
        self.safe("path given", &format!("{}{cut}", cut_path(&process.filename, false)))?;
        self.path("file", &process.exe, process.exe_truncated)?;
        if process.places.is_empty() { Ok(()) } else { self.safe("where", &words(&process.places, ", ")) }
    }

    /// Oldest first, each below what started it.
    fn lineage(&mut self, signal: &Signal, process: &Process) -> io::Result<()> {
        self.section("Lineage")?;
        let mut depth = 0;
        if signal.lineage_truncated {
            writeln!(self.out, "  (older ancestors were not recorded)")?;
            depth = 1;
        }
        let mut before: Option<u32> = None;
        for ancestor in signal.lineage.iter().rev() {
            let Ancestor { pid, uid, exe, exe_truncated, argv: words, argv_truncated, .. } = ancestor;
            let command = if words.is_empty() { cut_path(exe, *exe_truncated) } else { argv(words, *argv_truncated) };
            let same = if before == Some(*pid) { ", same process" } else { "" };
            self.branch(depth, &format!("{command}  [pid {pid}, uid {uid}{same}]"))?;
            if !words.is_empty() {
                let indent = 2 + 3 * depth;
                writeln!(self.out, "{:indent$}({})", "", cut_path(exe, *exe_truncated))?;
            }
            before = Some(*pid);
            depth += 1;
        }
        let same = if before == Some(process.pid) { ", same process" } else { "" };
        let command = match process.argv.as_slice() {
            [] => cut_path(&process.filename, false),
            words => argv(words, process.argv_truncated),
        };
        let line = format!("{command}  [pid {}, uid {}{same}]", process.pid, process.uid);
        let line = self.screen.paint(verdict_tone(signal.verdict), &line);
        self.branch(depth, &line)
    }

    fn branch(&mut self, depth: usize, line: &str) -> io::Result<()> {
        let (indent, mark) = if depth == 0 { (2, "") } else { (3 * depth - 1, "└─ ") };
        writeln!(self.out, "{:indent$}{mark}{line}", "")
    }

    fn identification(&mut self, signal: &Signal) -> io::Result<()> {
        if signal.identified_by.is_empty() {
            return Ok(());
        }
        self.section("Recognised by")?;
        self.safe("how", &words(&signal.identified_by, ", "))?;
        if let Some(remote) = &signal.remote {
            self.field("connected to", &format!("{} port {}", remote.address, remote.port))?;
        }
        match &signal.process {
            Some(process) => self.field("invoked name", &process.invoked_name),
            None => Ok(()),
        }
    }

    fn operation(&mut self, operation: &Operation) -> io::Result<()> {
        self.section("Operation")?;
        let all = operation.measures.is_empty();
        self.safe("measures", &if all { "all in effect".to_owned() } else { words(&operation.measures, ", ") })?;
        if operation.pid != 0 {
            self.safe("process", &operation.pid.to_string())?;
        }
        match &operation.caller {
            Some(Caller { uid, gid, pid, certificate, .. }) if certificate.is_empty() => {
                self.safe("asked for by", &format!("uid {uid}, gid {gid}, pid {pid}"))?;
            }
            Some(Caller { certificate, serial, .. }) => {
                self.field("asked for by", &format!("certificate {certificate}, serial {serial}"))?;
            }
            None => {}
        }
        self.field("outcome", if operation.error.is_empty() { "done" } else { &operation.error })
    }

    fn verdict(&mut self, signal: &Signal) -> io::Result<()> {
        self.section("Verdict")?;
        let socket = signal.identified_by.contains(&Identification::Socket);
        let meaning = match (signal.verdict, socket) {
            (Verdict::Detected, _) => "seen; the policy asks for no more",
            (Verdict::WouldBlock, false) => "it ran: in enforce mode it would have been stopped",
            (Verdict::WouldBlock, true) => "it went through: in enforce mode it would have been stopped",
            (Verdict::Blocked, false) => "the exec failed with EPERM; the program never ran",
            (Verdict::Blocked, true) => "the system call failed with EPERM",
            (Verdict::Killed, false) => "ended by SIGKILL before its first user instruction",
            (Verdict::Killed, true) => "ended by SIGKILL before it could send anything",
            (Verdict::Unknown, _) => "",
        };
        let word = self.screen.paint(verdict_tone(signal.verdict), signal.verdict.word());
        let separator = if meaning.is_empty() { "" } else { ": " };
        writeln!(self.out, "  {word}{separator}{meaning}")?;
        match signal.policy_rule {
            0 => self.field("policy", &signal.policy)?,
            rule => self.field("policy", &format!("{} (rule {rule})", signal.policy))?,
        }
        if let Some(container) = &signal.container {
            if container.mode != Mode::Unknown {
                let reason = if container.mode_reason.is_empty() { "unknown" } else { &container.mode_reason };
                self.field("mode", &format!("{} (by {reason})", container.mode))?;
            }
            if !container.guarded && !container.unguarded_reason.is_empty() {
                self.field("unguarded", &container.unguarded_reason)?;
            }
            self.field("names only", &container.contents_unknown)?;
        }
        self.safe("backend", signal.backend.word())
    }

    /// What came of it on the network, in the order in which it was first seen.
    fn network(&mut self, signal: &Signal) -> io::Result<()> {
        let Some(activity) = &signal.network else { return Ok(()) };
        self.section("Network")?;
        for operation in &activity.operations {
            let time = operation.first_time.map(Time::full).unwrap_or_default();
            writeln!(self.out, "  {time}  {}  [pid {}]", network_operation(operation), operation.pid)?;
        }
        if activity.omitted > 0 {
            writeln!(self.out, "  (and {} that were only counted)", activity.omitted)?;
        }
        Ok(())
    }

    /// The commands for the next steps. They are meant for pasting: every hostile word in them is quoted.
    fn next(&mut self, signal: &Signal) -> io::Result<()> {
        self.section("Next")?;
        if let (Some(tool), Some(container)) = (&signal.tool, &signal.container)
            && !container.image.is_empty()
        {
            let (tool, image) = (shell_word(&tool.id), shell_word(&container.image));
            self.step(
                "is this usual for the workload?",
                &format!("portcullis signals list --tool {tool} --image {image}"),
            )?;
        }
        let related: Vec<String> = signal.related.iter().map(u64::to_string).collect();
        if let Some(newest) = related.last() {
            let all = related.join(", ");
            let question = format!("what did this process and its ancestors do before? (signals {all})");
            self.step(&question, &format!("portcullis signals get {newest}"))?;
        }
        if let Some(time) = signal.time {
            let (since, until) = (time.plus_minutes(-AROUND_MINUTES), time.plus_minutes(AROUND_MINUTES));
            let window = format!("--since {} --until {} --oldest-first", since.short(), until.short());
            self.step("what else happened around then?", &format!("portcullis signals list {window}"))?;
        }
        match &signal.container {
            Some(container) if container.ended.is_none() && signal.operation.is_none() => {
                let (id, namespace) = (shell_word(&container.id), shell_word(&container.containerd_namespace));
                self.step(
                    "contain it, if it is not",
                    &format!("portcullis contain {id} --namespace {namespace} --freeze"),
                )
            }
            _ => Ok(()),
        }
    }

    fn step(&mut self, question: &str, command: &str) -> io::Result<()> {
        writeln!(self.out, "  {question}\n    {command}")
    }
}

/// One operation in some words: "connect tcp 10.0.0.1 port 4444, 3 times".
pub fn network_operation(operation: &NetworkOperation) -> String {
    let NetworkOperation { kind, transport, endpoint, dns_name, dns_type, count, .. } = operation;
    let mut words = vec![kind.word().replace('_', " ")];
    if !matches!(transport, Transport::Unknown | Transport::Other) {
        words.push(transport.word().to_owned());
    }
    if !dns_name.is_empty() {
        words.push(text(dns_name));
        words.extend((!dns_type.is_empty()).then(|| format!("type {}", text(dns_type))));
    }
    if let Some(Endpoint { address, port }) = endpoint {
        let at = if dns_name.is_empty() { "" } else { "at " };
        words.push(format!("{at}{} port {port}", text(address)));
    }
    let times = if *count > 1 { format!(", {count} times") } else { String::new() };
    format!("{}{times}", words.join(" "))
}

/// Quoted like argv: a path must not pass for a path with arguments.
fn cut_path(path: &str, truncated: bool) -> String {
    match (path, truncated) {
        ("", false) => String::new(),
        ("", true) => "…".to_owned(),
        (path, false) => shell_word(path),
        (path, true) => format!("…{}", shell_word(path)),
    }
}

fn argv(words: &[String], truncated: bool) -> String {
    let cut = if truncated { " …" } else { "" };
    format!("{}{cut}", shell_command(words))
}
