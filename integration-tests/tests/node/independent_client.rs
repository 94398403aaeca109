//! A gRPC client that shares nothing with us, neither code nor files, must see what `portcullis signals list -o json` shows.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    command::run,
    containerd::IMAGE,
    node::{Node, Setup},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    LAST, stopped,
    test::{OURSELVES, Test},
};

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/client/signals.py");

/// Few enough for several pages, and enough that all calls are within what a user may do.
const PAGE_SIZE: usize = 25;

/// The test, where there is a Python for it: virtual machines have none. `scripts/test host` insists on one.
pub fn test(setup: &Setup) -> Option<Test> {
    setup.grpc_python.as_ref().map(|_| Test::new(OURSELVES, "an_independent_client_sees_the_same", sees_the_same))
}

/// What the client prints.
#[derive(Deserialize)]
struct Told {
    health: BTreeMap<String, String>,
    signals: Vec<Value>,
}

fn ask(node: &Node) -> Result<Told> {
    let python = node.setup().grpc_python.as_ref().context("no Python")?;
    let mut client = Command::new(python);
    client.arg(CLIENT).arg(node.paths().socket()).arg(PAGE_SIZE.to_string());
    let output = run(&mut client)?.success()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("the client gave {output}"))
}

fn sees_the_same(node: &Node) -> Result<()> {
    let detect = node.container().start()?;
    let enforce = node.container().mode("enforce").start()?;
    for container in [&detect, &enforce] {
        container.shell(&[r#"/opt/links/report -h 'two words' "$(printf 'ü \033 \377')""#, LAST.0])?;
        node.signals_until(container.id(), LAST.1)?;
    }
    let shown: Vec<Value> = node.json(&["signals", "list", "--all", "--oldest-first"])?;
    let Told { health, signals } = ask(node)?;
    let services = [
        "portcullis.v1.ContainerService",
        "portcullis.v1.ContainmentService",
        "portcullis.v1.NodeService",
        "portcullis.v1.PolicyService",
        "portcullis.v1.SignalService",
        "portcullis.v1.TriageService",
    ];
    ensure!(health == services.map(|name| (name.into(), "SERVING".into())).into(), "{health:?}");
    assert_told(&signals, detect.id(), "would_block")?;
    assert_told(&signals, enforce.id(), stopped(node))?;
    ensure!(signals.len() > PAGE_SIZE, "all {} signals are on one page", signals.len());
    ensure!(signals.len() == shown.len(), "{} signals, but {} are shown", signals.len(), shown.len());
    for (told, shown) in signals.iter().zip(&shown) {
        ensure!(normal("", told) == normal("", shown), "told is {told:#}, but shown {shown:#}");
    }
    Ok(())
}

/// What two clients agree on could still be wrong or nothing.
fn assert_told(signals: &[Value], container: &str, verdict: &str) -> Result<()> {
    let of_container = |signal: &&Value| signal.pointer("/container/id") == Some(&json!(container));
    let signal = signals.iter().find(of_container).context("no signal")?;
    for (place, expected) in [
        ("/container/image", json!(IMAGE)),
        ("/process/filename", json!("/opt/links/report")),
        ("/process/invokedName", json!("report")),
        ("/process/exe", json!("/usr/bin/nc.openbsd")),
        ("/process/argv", json!(["/opt/links/report", "-h", "two words", "ü \u{1b} \u{fffd}"])),
        ("/verdict", json!(format!("VERDICT_{}", verdict.to_uppercase()))),
        ("/lineage/0/exe", json!("/usr/bin/dash")),
        ("/lineage/0/argv/0", json!("sh")),
    ] {
        ensure!(signal.pointer(place) == Some(&expected), "{place} is not {expected} in {signal:#}");
    }
    Ok(())
}

/// What both JSON forms become equal in. protobuf's has 64-bit numbers as strings, the type's name before an enum's word,
/// no more digits in a time than it takes, and nothing for what we show as `null`.
fn normal(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), normal(key, value)))
            .collect(),
        Value::Array(elements) => elements.iter().map(|element| normal(key, element)).collect(),
        Value::Number(number) => number.to_string().into(),
        Value::String(text) => normal_text(key, text).into(),
        Value::Null | Value::Bool(_) => value.clone(),
    }
}

fn normal_text(key: &str, text: &str) -> String {
    let enumeration = match key {
        "time" | "lastTime" | "startTime" | "created" | "ended" | "firstSeen" | "lastSeen" | "workloadKnownSince"
        | "firstTime" => {
            let (seconds, fraction) = text.trim_end_matches('Z').split_once('.').unwrap_or((text, ""));
            return format!("{}.{fraction:0<9}Z", seconds.trim_end_matches('Z'));
        }
        "severity" => "SEVERITY_",
        "verdict" => "VERDICT_",
        "identifiedBy" => "IDENTIFICATION_",
        "places" => "PLACE_",
        "mode" => "MODE_",
        "origin" => "ORIGIN_",
        "backend" => "BACKEND_",
        "measures" => "MEASURE_",
        "state" => "TRIAGE_STATE_",
        "kind" => "KIND_",
        "transport" => "TRANSPORT_",
        _ => return text.to_owned(),
    };
    match text.strip_prefix(enumeration) {
        Some("UNSPECIFIED") => "unknown".to_owned(),
        // As on the command line.
        Some(word) if key == "measures" => word.to_lowercase().replace('_', "-"),
        Some(word) => word.to_lowercase(),
        None => text.to_owned(),
    }
}
