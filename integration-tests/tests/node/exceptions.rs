//! What a policy lets pass although a rule names it: it runs in enforce mode, and nothing that differs from it does.

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::node::Node;
use portcullis_policy::policyset::Backend;

use crate::{LAST, evasion};

const POLICY: &str = "
apiVersion: portcullis.dev/v1
kind: NetworkUtilityPolicy
metadata: {name: exceptions}
spec:
  mode: enforce
  rules:
    - {tools: [wget], places: [upper_layer], action: block}
    - {tools: [wget], users: [0], action: ignore}
    - {categories: [http, netcat, dns], action: block}
    - {comm: [odd], action: block}
  exceptions:
    - {tools: [curl], arguments: ['-V', 'ok*', '5']}
    - {tools: [nc], arguments: ['-h', '...'], parents: [/opt/evade]}
    - {tools: [nc], arguments: ['--help']}
    - {tools: [nslookup], users: [33]}
    - {tools: [host], ancestors: ['/tmp/kin/*']}
    - {arguments: ['-c', 'exit 0']}
";

/// Shell commands, and whether they are let pass.
const CASES: [(&str, bool); 28] = [
    // Arguments: all of them, and nothing else.
    ("curl -V ok 5", true),
    ("curl -V ok-and-more 5", true),
    ("curl -V o 5", false),
    ("curl -V ok 55", false),
    ("curl -V ok", false),
    ("curl -V ok 5 6", false),
    ("curl ok -V 5", false),
    ("curl -V 'ok 5'", false),
    ("curl -V \"ok$(printf %0200d 0)\" 5", true),
    ("curl -V \"$(printf %0200d 0)ok\" 5", false),
    ("/opt/evade as anything /usr/bin/curl -V ok 5", true),
    ("cp /usr/bin/curl /tmp/x; /tmp/x -V ok 5", true),
    // The true ones: a loader's and a multi-call program's own are not the tool's.
    ("/lib64/ld-linux-x86-64.so.2 /usr/bin/curl -V ok 5", true),
    ("/lib64/ld-linux-x86-64.so.2 /usr/bin/curl -V ok 6", false),
    ("busybox nc --help", true),
    ("busybox nc --help x", false),
    // Whoever traces it could change them before it begins.
    ("/opt/evade traced /usr/bin/curl -V ok 5", false),
    // The process's own former image, or else its parent's.
    ("/opt/evade as nc /usr/bin/nc.openbsd -h 1 2 3", true),
    ("/usr/bin/nc.openbsd -h 1 2 3", false),
    ("/opt/evade as nc /usr/bin/nc.openbsd 1 -h", false),
    // Users.
    ("perl -e '($<, $>) = (33, 33); exec @ARGV; die $!' nslookup -version", true),
    ("perl -e '($<, $>) = (34, 34); exec @ARGV; die $!' nslookup -version", false),
    // Any ancestor.
    ("mkdir /tmp/kin; cp /usr/bin/dash /tmp/kin/sh; /tmp/kin/sh -c 'sh -c \"host -V; exit \\$?\"; exit $?'", true),
    ("sh -c 'host -V; exit $?'", false),
    // Rules with conditions.
    ("/usr/bin/wget --help", true),
    ("cp /usr/bin/wget /tmp/wget; /tmp/wget --help", false),
    ("perl -e '($<, $>) = (33, 33); exec @ARGV; die $!' /usr/bin/wget --help", false),
    // An exception for one tool says nothing of what else a file is.
    ("mkdir /tmp/d; cp /usr/bin/nc.openbsd /tmp/d/curl; /tmp/d/curl -V ok 5", false),
];

pub fn exceptions_hold_and_nothing_more(node: &Node) -> Result<()> {
    let _policy = node.policy(POLICY)?;
    let container = node.container().mode("enforce").start()?;
    let lines: Vec<&str> = CASES.iter().map(|(line, _)| *line).chain([LAST.0]).collect();
    let outcomes = container.shell(&lines)?;
    let mut wrong = Vec::new();
    for ((line, passes), outcome) in CASES.iter().zip(&outcomes) {
        // A loader that may not map what it was told to run ends with 127.
        let passed = outcome.status != 137 && !outcome.output.contains("ot permitted");
        if *passes != passed {
            wrong.push(format!("{line}: {outcome:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let signals = node.signals_until(container.id(), LAST.1)?;
    ensure!(signals.iter().all(|signal| signal.policy == "exceptions" && signal.policy_rule > 0), "{signals:#?}");
    let excepted = node.counters(container.id())?.excepted;
    // wget's are ignored by a rule. The last case's name is excepted and its content is not: where it can be refused, it is
    // not executed and so not counted.
    let passing = CASES.iter().filter(|(line, passes)| *passes && !line.contains("wget")).count();
    let expected = passing + usize::from(node.backend() == Backend::Tracepoint);
    ensure!(excepted == u64::try_from(expected)?, "{excepted} were counted instead of {expected}");
    Ok(())
}

/// Another process rewrites the argument while the kernel reads it: nothing but what is excepted may run.
pub fn an_excepted_argument_that_changes_deceives_nobody(node: &Node) -> Result<()> {
    let tries = node.setup().rounds(2000);
    let _policy = node.policy(POLICY)?;
    let container = node.container().mode("enforce").start()?;
    let script = format!("cp /usr/bin/dash /tmp/odd; /opt/evade race {tries} /tmp/odd 'exit 0' 'exit 1' -c");
    let output = container.exec(&["sh", "-c", &script])?.success()?;
    let count = |word| evasion::count(&output.stdout, word);
    println!("race: {}", output.stdout.trim());
    ensure!(count("bad")? == 0, "{output}");
    ensure!(count("good")? > 0 && count("refused")? + count("killed")? > 0, "nothing was tried: {output}");
    container.exec(&["sh", "-c", LAST.0])?;
    node.signals_until(container.id(), LAST.1).context("the end")?;
    Ok(())
}
