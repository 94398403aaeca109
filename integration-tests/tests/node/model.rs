//! The kernel programs decide as `portcullis_policy::decide` does: random policies, and executions of which all facts are
//! known.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use portcullis_integration_tests::node::Node;
use portcullis_policy::{
    catalog::{Catalog, Kind, Meaning},
    compile::{Compiled, compile},
    decide::{Decided, Execution, decide},
    source::{Action, Place, parse},
};

/// Each with its policy and its container.
const ROUNDS: usize = 6;
/// Of a round.
const EXECUTIONS: usize = 40;

/// Every policy finds it, by its first rule, and no exception is for that user.
const LAST: (&str, &str) =
    ("perl -e '($<, $>) = (200, 200); exec @ARGV; die $!' busybox traceroute --help", "traceroute");

const RULES: [&str; 10] = [
    "tools: [curl]",
    "tools: [nc, wget]",
    "tools: [dropped_executable]",
    "categories: [http]",
    "categories: [netcat, dns]",
    "categories: [scanner]",
    "comm: [odd]",
    "comm: ['o*', nc]",
    "comm: ['cu*', odd-one]",
    "comm: ['odd-*']",
];
const PLACES: [&str; 4] = ["upper_layer", "memfd", "writable_directory", "upper_layer, deleted"];
const USERS: [&str; 4] = ["0", "33", "1-32, 34-100", "0, 33"];
const SCOPES: [&str; 6] = [
    "",
    "tools: [curl], ",
    "tools: [nc], ",
    "categories: [http], ",
    "categories: [netcat, dns], ",
    "categories: [scanner], ",
];
const PATTERNS: [&str; 7] = ["a", "ab", "'a*'", "'*'", "b", "''", "'b b'"];
const ARGUMENTS: [&str; 6] = ["a", "ab", "b", "", "b b", "abc"];
const EXES: [&str; 5] = ["/opt/evade", "/usr/bin/dash", "'/usr/bin/*'", "/usr/bin/perl", "/nowhere"];

fn pick<'a>(random: &mut Rng, from: &[&'a str]) -> &'a str {
    from.get(random.usize(..from.len())).copied().unwrap_or_default()
}

fn policy(random: &mut Rng, name: &str) -> String {
    let mut text = format!(
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: {name}}}\nspec:\n  mode: enforce\n  \
         rules:\n  - {{tools: [traceroute], action: alert}}\n"
    );
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    for _ in 0..random.usize(1..7) {
        let mut rule = pick(random, &RULES).to_owned();
        for (key, values) in [("places", PLACES), ("users", USERS)] {
            if random.u8(..3) == 0 {
                let _ = write!(rule, ", {key}: [{}]", pick(random, &values));
            }
        }
        line(format!("  - {{{rule}, action: {}}}", pick(random, &["block", "block", "alert", "ignore"])));
    }
    let exceptions = random.usize(..5);
    if exceptions > 0 {
        line("  exceptions:".to_owned());
    }
    for _ in 0..exceptions {
        let mut conditions = Vec::new();
        // The first argument is what makes them harmless.
        if random.bool() {
            let mut patterns = vec!["'*'"];
            patterns.extend((0..random.usize(..3)).map(|_| pick(random, &PATTERNS)));
            if random.bool() {
                patterns.push("'...'");
            }
            conditions.push(format!("arguments: [{}]", patterns.join(", ")));
        }
        for key in ["parents", "ancestors"] {
            if random.u8(..4) == 0 {
                conditions.push(format!("{key}: [{}, {}]", pick(random, &EXES), pick(random, &EXES)));
            }
        }
        let scope = pick(random, &SCOPES);
        if conditions.is_empty() || scope.is_empty() || random.u8(..4) == 0 {
            conditions.push(format!("users: [{}]", pick(random, &USERS)));
        }
        line(format!("  - {{{scope}{}}}", conditions.join(", ")));
    }
    text
}

/// A program that is executed, and what is known of it.
struct Program {
    /// Shell commands that make it.
    prepare: &'static str,
    /// What is executed, with its first argument, which makes it harmless.
    command: &'static [&'static str],
    invoked: &'static str,
    resolved: &'static str,
    content: Option<(Kind, &'static str)>,
    places: &'static [Place],
}

const UPPER: &[Place] = &[Place::UpperLayer];
const TEMPORARY: &[Place] = &[Place::UpperLayer, Place::WritableDirectory];
const NC: Option<(Kind, &str)> = Some((Kind::Tool, "nc"));
const CURL: Option<(Kind, &str)> = Some((Kind::Tool, "curl"));
const BUSYBOX: Option<(Kind, &str)> = Some((Kind::Multicall, "busybox"));

const PROGRAMS: [Program; 11] = [
    Program {
        prepare: "",
        command: &["/usr/bin/nc.openbsd", "-h"],
        invoked: "nc.openbsd",
        resolved: "nc.openbsd",
        content: NC,
        places: &[],
    },
    Program { prepare: "", command: &["curl", "-V"], invoked: "curl", resolved: "curl", content: CURL, places: &[] },
    Program {
        prepare: "cp /usr/bin/curl ./x",
        command: &["./x", "-V"],
        invoked: "x",
        resolved: "x",
        content: CURL,
        places: UPPER,
    },
    // One tool's content under another's name, where everybody may write.
    Program {
        prepare: "cp /usr/bin/curl /tmp/nc",
        command: &["/tmp/nc", "-V"],
        invoked: "nc",
        resolved: "nc",
        content: CURL,
        places: TEMPORARY,
    },
    // A name and nothing else.
    Program {
        prepare: "cp /opt/evade ./nmap",
        command: &["./nmap", "end"],
        invoked: "nmap",
        resolved: "nmap",
        content: None,
        places: UPPER,
    },
    Program {
        prepare: "cp /opt/evade ./odd-one; ln -sf odd-one odd",
        command: &["./odd", "end"],
        invoked: "odd",
        resolved: "odd-one",
        content: None,
        places: UPPER,
    },
    Program {
        prepare: "cp /opt/evade ./odd-one",
        command: &["./odd-one", "end"],
        invoked: "odd-one",
        resolved: "odd-one",
        content: None,
        places: UPPER,
    },
    Program {
        prepare: "",
        command: &["busybox", "nc", "--help"],
        invoked: "busybox",
        resolved: "busybox",
        content: BUSYBOX,
        places: &[],
    },
    Program {
        prepare: "",
        command: &["busybox", "busybox", "wget", "--help"],
        invoked: "busybox",
        resolved: "busybox",
        content: BUSYBOX,
        places: &[],
    },
    Program {
        prepare: "",
        command: &["/usr/bin/wget", "--help"],
        invoked: "wget",
        resolved: "busybox",
        content: BUSYBOX,
        places: &[],
    },
    Program {
        prepare: "",
        command: &["true", "nc"],
        invoked: "true",
        resolved: "busybox",
        content: BUSYBOX,
        places: &[],
    },
];

/// What executes it.
struct Launcher {
    prefix: &'static str,
    uid: u32,
    /// Nearest first.
    images: &'static [&'static [u8]],
    /// It is given another argv[0].
    renames: bool,
}

const LAUNCHERS: [Launcher; 3] = [
    Launcher { prefix: "", uid: 0, images: &[b"/usr/bin/dash"], renames: false },
    // The shell looks names up, this does not.
    Launcher {
        prefix: "perl -e '($<, $>) = (33, 33); exec @ARGV; die $!'",
        uid: 33,
        images: &[b"/usr/bin/perl", b"/usr/bin/dash"],
        renames: false,
    },
    Launcher { prefix: "/opt/evade as same", uid: 0, images: &[b"/opt/evade", b"/usr/bin/dash"], renames: true },
];

fn directory(number: usize) -> String {
    format!("/tmp/model{number}")
}

fn quoted(text: &str) -> String {
    format!("'{text}'")
}

/// One execution: a line for the shell, and what the model makes of it.
fn execution(random: &mut Rng, catalog: &Catalog, policy: &Compiled, number: usize) -> Option<(String, Decided)> {
    let program = PROGRAMS.get(random.usize(..PROGRAMS.len()))?;
    // Multi-call programs need their own argv[0], and it needs paths.
    let plain = program.content == BUSYBOX || !program.command.first()?.contains('/');
    let launcher = LAUNCHERS.get(random.usize(..if plain { 2 } else { 3 }))?;
    let more: Vec<&str> = (0..random.usize(..4)).map(|_| pick(random, &ARGUMENTS)).collect();
    let words: Vec<String> = program.command.iter().chain(&more).map(|word| quoted(word)).collect();
    let line = format!(
        "(mkdir {0} && cd {0} || exit; {1}\n{2} {3})",
        directory(number),
        program.prepare,
        launcher.prefix,
        words.join(" ")
    );
    let mut argv: Vec<&[u8]> = program.command.iter().chain(&more).map(|word| word.as_bytes()).collect();
    if launcher.renames {
        *argv.first_mut()? = b"same";
    }
    let facts = Execution {
        invoked: program.invoked.as_bytes(),
        resolved: program.resolved.as_bytes(),
        contents: program.content.map(|(kind, id)| Meaning { kind, id: id.to_owned() }).into_iter().collect(),
        argv,
        places: program.places.to_vec(),
        uid: launcher.uid,
        images: launcher.images.to_vec(),
        ..Execution::default()
    };
    Some((line, decide(catalog, policy, &facts)))
}

/// Tool, rule and verdict.
type Told = Option<(String, u32, String)>;

fn told(node: &Node, decided: &Decided) -> Result<Told> {
    let Some(found) = &decided.found else { return Ok(None) };
    let verdict = if found.action == Action::Block { crate::stopped(node) } else { "detected" };
    Ok(Some((found.id.clone(), u32::try_from(found.rule)? + 1, verdict.to_owned())))
}

fn round(node: &Node, random: &mut Rng, number: usize) -> Result<()> {
    let catalog = Catalog::shipped()?;
    let text = policy(random, &format!("model{number}"));
    let compiled = compile(&catalog, &parse("model.yaml", &text)?, 1)?;
    let _policy = node.policy(&text)?;
    let container = node.container().mode("enforce").start()?;
    let (mut lines, decisions): (Vec<String>, Vec<Decided>) =
        (0..EXECUTIONS).filter_map(|number| execution(random, &catalog, &compiled, number)).unzip();
    lines.push(LAST.0.to_owned());
    let outcomes = container.shell(&lines.iter().map(String::as_str).collect::<Vec<_>>())?;
    let signals = node.signals_until(container.id(), LAST.1)?;
    for (number, decided) in decisions.iter().enumerate() {
        let cwd = directory(number);
        let ours = signals.iter().filter(|signal| signal.process.as_ref().is_some_and(|process| process.cwd == cwd));
        let mut found: Vec<Told> =
            ours.map(|one| Some((one.tool().to_owned(), one.policy_rule, one.verdict.clone()))).collect();
        // After EPERM a shell and perl try the next directory of PATH, where the same file is met again.
        found.dedup();
        let expected = told(node, decided)?;
        let what = || format!("{text}\n{}\n{:?}", lines.get(number).map_or("", String::as_str), outcomes.get(number));
        ensure!(found.len() <= 1, "several signals: {found:?}; {}", what());
        let found = found.pop().flatten();
        ensure!(found == expected, "the kernel: {found:?}, the model: {decided:?}; {}", what());
        let stopped = decided.found.as_ref().is_some_and(|found| found.action == Action::Block);
        let outcome = outcomes.get(number).context("an outcome is missing")?;
        let ran = outcome.status != 137 && !outcome.output.contains("ot permitted");
        ensure!(ran != stopped, "the model: {decided:?}; {}", what());
    }
    let excepted = node.counters(container.id())?.excepted;
    let passed = |decided: &&Decided| !decided.excepted.is_empty() && decided.found.is_none();
    let least = decisions.iter().filter(passed).count();
    let most = decisions.iter().filter(|decided| !decided.excepted.is_empty()).count();
    // What is refused for another tool's sake is not executed, and so its exception is not counted.
    ensure!(
        (u64::try_from(least)?..=u64::try_from(most)?).contains(&excepted),
        "{excepted} of {least} to {most}: {text}"
    );
    Ok(())
}

/// The seed is printed; `PORTCULLIS_SEED` repeats a run.
pub fn the_kernel_decides_as_the_model_does(node: &Node) -> Result<()> {
    let seed = match std::env::var("PORTCULLIS_SEED") {
        Ok(seed) => seed.parse().context("PORTCULLIS_SEED is a number")?,
        Err(_) => fastrand::u64(..),
    };
    println!("seed: {seed}");
    let mut random = Rng::with_seed(seed);
    (0..ROUNDS).try_for_each(|number| {
        round(node, &mut random, number).with_context(|| format!("round {number} of PORTCULLIS_SEED={seed}"))
    })
}
