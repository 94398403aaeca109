//! A scrape over HTTP, and that dashboard and alerts ask for nothing that is not there.

use std::{collections::BTreeSet, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::*;
use crate::{api::tcp::tests::served, store};

const WAIT: Duration = Duration::from_secs(20);

async fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head} HTTP/1.1\r\nHost: n\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(WAIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

/// The answer to a scrape when two signals of one kind and one of another were stored.
async fn scrape() -> (SocketAddr, String) {
    // All metrics that there may be.
    let served = served().await;
    let bed = &served.bed;
    let (progress, exporter) = watch::channel(Progress { id: 1, delivered: 1 });
    let database = bed.directory.path().join("state").join(store::FILE_NAME);
    // Whichever port is free: two tests may choose at the same time, but not the same one.
    let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    start(listen, bed.sources.clone(), vec![("otlp", exporter)], database).await.unwrap();
    for (number, tool) in [(1, "nc"), (2, "nc"), (3, "di\"g\n")] {
        bed.put(number, tool).await;
    }
    let counted = async {
        loop {
            let text = ask(listen, "GET /metrics").await;
            if text.contains("portcullis_signal_delivery_seconds_count 3") {
                return text;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let text = timeout(WAIT, counted).await.unwrap();
    drop(progress);
    (listen, text)
}

#[tokio::test]
async fn prometheus_gets_what_it_asks_for() {
    let (address, text) = scrape().await;
    assert!(text.starts_with(
        "HTTP/1.1 200 OK\r\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
    ));
    for line in [
        "portcullis_signals_total{rule=\"\",tool=\"nc\",category=\"\",verdict=\"unspecified\",severity=\"unspecified\"} 2",
        "portcullis_signals_total{rule=\"\",tool=\"di\\\"g\\n\",category=\"\",verdict=\"unspecified\",severity=\"unspecified\"} 1",
        "# TYPE portcullis_losses counter",
        "portcullis_losses_total{kind=\"events_lost\"} 5",
        "portcullis_losses_total{kind=\"export_gap\"} 0",
        "portcullis_suppressed_events_total{kind=\"repeats_folded\"} 0",
        "portcullis_containers{state=\"guarded\"} 0",
        "# UNIT portcullis_store_size_bytes bytes",
        "portcullis_signals_stored 3",
        "portcullis_export_lag_signals{exporter=\"otlp\"} 2",
        "portcullis_export_findings_total{exporter=\"otlp\"} 1",
        "portcullis_policies_current 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|given| given == line), "{line}\n{text}");
    }
    assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404 "));
    assert!(ask(address, "POST /metrics").await.starts_with("HTTP/1.1 405 "));
    assert!(ask(address, "nonsense").await.starts_with("HTTP/1.1 400 "));
}

/// Names of our metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("portcullis_"))
        .collect()
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_what_is_there() {
    let (_, text) = scrape().await;
    let given = names(&text);
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../config/grafana/portcullis.json")).unwrap();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            for name in names(target["expr"].as_str().unwrap()) {
                assert!(given.contains(name), "{name} of the panel {}", panel["title"]);
                asked += 1;
            }
        }
    }
    let alerts = include_str!("../../../config/prometheus/portcullis.rules.yaml");
    for line in alerts.lines().filter(|line| line.trim_start().starts_with("expr:")) {
        for name in names(line) {
            assert!(given.contains(name), "{name} of an alert");
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
}

#[test]
fn a_unit_that_forbids_the_network_is_suspected() {
    let told = |source: Errno| ListenError { listen: ([127, 0, 0, 1], 9465).into(), source: source.into() }.to_string();
    assert!(told(Errno::AFNOSUPPORT).ends_with("without the drop-in portcullisd-network.conf"));
    assert!(told(Errno::ADDRINUSE).ends_with("[metrics] listen in the configuration)"));
}
