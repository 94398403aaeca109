//! Millions of signals as real ones are, for the database of an agent that does not run; and what operators ask for.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use portcullis_proto::v1::{
    Ancestor, Backend, Container, Identification, Mode, Novelty, Origin, Pod, Process, Severity, Signal, SignalFilter,
    Tool, Verdict,
};
use prost::Message;
use prost_types::Timestamp;
use rusqlite::{Connection, params};

use crate::interrupt;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The stored signals are spread over so long.
const SPAN: Duration = Duration::from_secs(30 * 24 * 3600);
/// With severity; the first are common, the last rare.
const TOOLS: [(&str, &str, Severity); 8] = [
    ("curl", "transfer", Severity::Low),
    ("wget", "transfer", Severity::Low),
    ("nc", "netcat", Severity::Medium),
    ("dig", "dns", Severity::Low),
    ("ssh", "remote-shell", Severity::Medium),
    ("nmap", "scanner", Severity::High),
    ("tcpdump", "capture", Severity::High),
    ("reverse_shell", "behaviour", Severity::Critical),
];
const CONTAINERS: u64 = 300;
/// It may be interrupted after so many.
const CHECKED: u64 = 10_000;

/// SplitMix64: the same signals each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// Small numbers are common, the greatest rare.
    fn skewed(&mut self, limit: u64) -> u64 {
        let most = self.below(limit) + 1;
        let more = self.below(most) + 1;
        self.below(more)
    }
}

fn container_id(number: u64) -> String {
    format!("{number:064x}")
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// A tool that a script of a web application's starts.
fn signal(random: &mut Random, time: Timestamp) -> Result<Signal> {
    let tool = usize::try_from(random.skewed(TOOLS.len() as u64))?;
    let (tool, category, severity) = TOOLS.get(tool).context("a tool")?;
    let number = random.skewed(CONTAINERS);
    let pid = u32::try_from(1000 + random.below(1_000_000))?;
    let ancestor = |up: u32, exe: &str, argv: &[&str]| Ancestor {
        pid: pid - up,
        container_pid: 100 - up,
        uid: 33,
        exe: exe.to_owned(),
        argv: strings(argv),
        start_time: Some(time),
        ..Ancestor::default()
    };
    let url = format!("https://artifacts.example.com/releases/{}/application-{}.tar.gz", pid, random.below(1 << 40));
    let argv =
        [*tool, "--silent", "--show-error", "--fail", "--retry", "3", "--output", "/tmp/application.tar.gz", &url];
    Ok(Signal {
        rule: "net_util_in_container".into(),
        severity: (*severity).into(),
        verdict: if random.below(10) == 0 { Verdict::Blocked } else { Verdict::WouldBlock }.into(),
        time: Some(time),
        last_time: None,
        tool: Some(Tool { id: (*tool).into(), category: (*category).into(), techniques: strings(&["T1105"]) }),
        identified_by: vec![
            Identification::InvokedName.into(),
            Identification::ResolvedName.into(),
            Identification::Fingerprint.into(),
        ],
        container: Some(Container {
            id: container_id(number),
            containerd_namespace: "k8s.io".into(),
            image: format!("registry.example.com/shop/service-{}@sha256:{:064x}", number % 50, number % 50),
            cgroup_id: 10_000 + number,
            pod: Some(Pod {
                name: format!("service-{}-6d4cf56db6-{number:05x}", number % 50),
                namespace: "shop".into(),
                sandbox_id: format!("{:064x}", number << 32),
                container_name: "service".into(),
                uid: format!("3d1c7b8e-4f4a-4c38-9b52-{number:012x}"),
            }),
            mode: Mode::Detect.into(),
            policy: "default".into(),
            guarded: true,
            created: Some(time),
            mode_reason: "policy".into(),
            backend: Backend::Lsm.into(),
            policy_reason: "no other policy selects this container".into(),
            ..Container::default()
        }),
        process: Some(Process {
            pid,
            tid: pid,
            container_pid: 100,
            uid: 33,
            gid: 33,
            invoked_name: (*tool).into(),
            filename: format!("/usr/bin/{tool}"),
            exe: format!("/usr/bin/{tool}"),
            argv: strings(&argv),
            argc: u32::try_from(argv.len())?,
            cwd: "/var/www/html/application/current".into(),
            start_time: Some(time),
            ..Process::default()
        }),
        lineage: vec![
            ancestor(0, "/usr/bin/dash", &["sh", "-c", &format!("cd /tmp && {}", argv.join(" "))]),
            ancestor(
                1,
                "/usr/local/bin/php",
                &["php", "/var/www/html/application/current/bin/console", "assets:fetch"],
            ),
            ancestor(
                2,
                "/usr/bin/bash",
                &["bash", "-euo", "pipefail", "/usr/local/bin/docker-entrypoint.sh", "worker"],
            ),
            ancestor(
                3,
                "/usr/bin/tini",
                &["/usr/bin/tini", "-g", "--", "/usr/local/bin/docker-entrypoint.sh", "worker"],
            ),
        ],
        origin: Origin::Container.into(),
        policy: "default".into(),
        backend: Backend::Lsm.into(),
        message: format!(
            "{tool} ({category}) executed (enforce mode would block it) in container {}: {}",
            container_id(number),
            argv.join(" ")
        ),
        policy_rule: 3,
        novelty: Some(Novelty { summary: "seen daily since 2026-11-02".into(), habitual: true, ..Novelty::default() }),
        ..Signal::default()
    })
}

/// Adds so many signals to a database of which the agent has made the tables.
pub fn fill(database: &Path, signals: u64) -> Result<()> {
    let mut connection = Connection::open(database).context("opening the database")?;
    // Without a log, which would be as large as the database.
    connection.pragma_update_and_check(None, "journal_mode", "OFF", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", -500_000)?;
    let mut random = Random(1);
    let begin = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.saturating_sub(SPAN);
    let transaction = connection.transaction()?;
    for number in 0..signals {
        if number % CHECKED == 0 {
            interrupt::check()?;
        }
        let later = SPAN.as_nanos() * u128::from(number) / u128::from(signals);
        let since = begin + Duration::from_nanos(u64::try_from(later)?);
        let time = Timestamp { seconds: i64::try_from(since.as_secs())?, nanos: i32::try_from(since.subsec_nanos())? };
        let signal = signal(&mut random, time)?;
        let tool = signal.tool.clone().unwrap_or_default();
        let container = signal.container.clone().unwrap_or_default();
        let pod = container.pod.unwrap_or_default();
        let body = signal.encode_to_vec();
        // As long as the agent's, and as scattered.
        let mut origin = vec![b'e'];
        origin.extend(container.cgroup_id.to_be_bytes());
        origin.extend(u32::try_from(random.below(1 << 22))?.to_be_bytes());
        origin.extend(number.to_be_bytes());
        origin.extend(number.to_be_bytes());
        transaction
            .prepare_cached(
                "INSERT INTO signals (origin, time_ns, rule, verdict, severity, tool, category, container_id, image,
                 pod_namespace, pod_name, body, first_time)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?
            .execute(params![
                origin,
                i64::try_from(since.as_nanos())?,
                signal.rule,
                signal.verdict,
                signal.severity,
                tool.id,
                tool.category,
                container.id,
                container.image,
                pod.namespace,
                pod.name,
                body,
                random.below(1000) == 0,
            ])?;
        if random.below(20) == 0 {
            let id = transaction.last_insert_rowid();
            let told = Signal { count: 7, last_time: Some(time), ..Signal::default() }.encode_to_vec();
            transaction
                .prepare_cached("INSERT INTO repeats (id, revision, count, last_ns, body) VALUES (?1, ?1, 7, ?2, ?3)")?
                .execute(params![id, i64::try_from(since.as_nanos())?, told])?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn ago(time: Duration) -> Result<Option<Timestamp>> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.saturating_sub(time);
    Ok(Some(Timestamp { seconds: i64::try_from(since.as_secs())?, nanos: 0 }))
}

/// What operators ask for.
pub fn filters() -> Result<Vec<(&'static str, SignalFilter)>> {
    let all = SignalFilter::default;
    Ok(vec![
        ("none", all()),
        ("tool, common", SignalFilter { tool: "curl".into(), ..all() }),
        ("tool, rare", SignalFilter { tool: "reverse_shell".into(), ..all() }),
        ("container, common", SignalFilter { container_id: container_id(0), ..all() }),
        ("container, rare", SignalFilter { container_id: container_id(CONTAINERS - 5), ..all() }),
        ("severity high", SignalFilter { min_severity: Severity::High.into(), ..all() }),
        ("severity critical", SignalFilter { min_severity: Severity::Critical.into(), ..all() }),
        ("severity high, last day", SignalFilter { min_severity: Severity::High.into(), since: ago(DAY)?, ..all() }),
        (
            "severity critical, last hour",
            SignalFilter { min_severity: Severity::Critical.into(), since: ago(DAY / 24)?, ..all() },
        ),
        ("last minute", SignalFilter { since: ago(DAY / 1440)?, ..all() }),
        ("a day, 20 days ago", SignalFilter { since: ago(DAY * 20)?, until: ago(DAY * 19)?, ..all() }),
        (
            "tool, container, last week",
            SignalFilter { tool: "nmap".into(), container_id: container_id(7), since: ago(DAY * 7)?, ..all() },
        ),
        ("tool, blocked", SignalFilter { tool: "nmap".into(), verdict: Verdict::Blocked.into(), ..all() }),
        (
            "image, severity critical",
            SignalFilter {
                image: format!("registry.example.com/shop/service-{}@sha256:{:064x}", 7, 7),
                min_severity: Severity::Critical.into(),
                ..all()
            },
        ),
        ("first time", SignalFilter { first_time_only: true, ..all() }),
        ("nothing found", SignalFilter { tool: "none".into(), ..all() }),
    ])
}
