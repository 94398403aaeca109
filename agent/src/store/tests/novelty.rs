//! What is new of a signal, over restarts, repeats and bounds.

use portcullis_proto::v1::{Novelty, Origin as From, Process as Who};

use super::*;
use crate::store::habits::Workload;

const DAY: u64 = 24 * 3600;

/// Of a container of an image, so long ago.
fn of(image: &str, tool: &str, seconds: u64) -> Signal {
    let created = timestamp(now_ns() - (seconds + 60) * 1_000_000_000);
    let container = Container { id: "c1".into(), image: image.into(), created: Some(created), ..Container::default() };
    Signal {
        container: Some(container),
        process: Some(Who::default()),
        origin: From::Container.into(),
        ..signal(tool, seconds)
    }
}

impl Bed {
    async fn novelty(&self, id: u64) -> Novelty {
        self.store.readers().signal(id).await.unwrap().unwrap().novelty.unwrap()
    }

    async fn habits(&self, signal: &Signal) -> Vec<(String, u64)> {
        let workload = Workload::of(signal.container.as_ref().unwrap()).unwrap();
        let habits = self.store.readers().habits(workload).await.unwrap();
        habits.into_iter().map(|habit| (habit.tool, habit.times_seen)).collect()
    }
}

const YEAR: Limits = Limits { max_age: Duration::from_secs(365 * DAY), ..LIMITS };

#[tokio::test]
async fn what_is_new_is_said() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), YEAR);
    bed.put(1, of("a", "nc", 3 * DAY)).await;
    bed.put(2, of("a", "nc", 2 * DAY)).await;
    bed.put(3, of("b", "nc", 1)).await;
    bed.put(4, of("a", "dig", 1)).await;
    bed.close().await;
    // An agent that has started again goes on.
    let mut bed = Bed::open(state.path(), YEAR);
    bed.put(5, of("a", "nc", DAY)).await;
    bed.put(6, Signal { origin: From::Probe.into(), ..of("a", "nc", 1) }).await;
    bed.put(7, Signal { rule: "raw_socket".into(), ..of("a", "nc", 1) }).await;
    bed.put(8, of("a", "nc", 0)).await;
    bed.put(8, of("a", "nc", 0)).await;
    bed.close().await;
    for id in [1, 3, 4, 6, 7] {
        assert!(bed.novelty(id).await.first_time, "{id}");
    }
    assert_eq!(bed.novelty(3).await.summary, "first time; the workload is known since 1 minute only");
    assert_eq!(bed.novelty(4).await.summary, "first time for this workload");
    let second = bed.novelty(2).await;
    assert_eq!((second.days_seen, second.times_seen, second.habitual), (1, 1, false));
    let last = bed.novelty(8).await;
    assert_eq!((last.days_seen, last.times_seen, last.habitual), (3, 3, true));
    assert!(last.summary.starts_with("seen daily since "), "{}", last.summary);
    let first = bed.store.readers().signal(1).await.unwrap().unwrap();
    assert_eq!((last.first_seen, last.workload_known_since), (first.time, first.container.unwrap().created));
    let new = SignalFilter { first_time_only: true, ..SignalFilter::default() };
    assert_eq!(bed.ids(new.clone()).await, [7, 6, 4, 3, 1]);
    assert_eq!(bed.ids(SignalFilter { tool: "dig".into(), ..new }).await, [4]);
    let habits = bed.habits(&of("a", "", 1)).await;
    assert_eq!(habits.len(), 4);
    assert!(habits.contains(&("nc".into(), 4)), "what was there already does not count again: {habits:?}");
    assert!(bed.habits(&of("c", "", 1)).await.is_empty());
}

#[tokio::test]
async fn what_is_folded_counts() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), YEAR);
    bed.put(1, of("a", "nc", 5 * DAY)).await;
    for (count, seconds) in [(10, 4 * DAY), (15, DAY)] {
        bed.send(update(1, if count == 10 { 9 } else { 5 }, count, seconds)).await;
    }
    bed.put(2, of("a", "nc", 0)).await;
    bed.close().await;
    let novelty = bed.novelty(2).await;
    assert_eq!((novelty.times_seen, novelty.days_seen, novelty.first_time), (15, 3, false));
}

#[tokio::test]
async fn habits_outlive_signals_but_not_for_ever() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, of("old", "nc", 91 * DAY)).await;
    bed.put(2, of("a", "nc", 80 * DAY)).await;
    bed.close().await;
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.send(Command::Expire).await;
    bed.close().await;
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(3, of("old", "nc", 1)).await;
    bed.put(4, of("a", "nc", 1)).await;
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await, [4, 3]);
    assert!(bed.novelty(3).await.first_time);
    assert!(bed.novelty(4).await.summary.starts_with("not seen in the last 32 days, last "));
    assert_eq!(bed.counters.habits_forgotten.get(), 0, "that is no loss");
}

#[tokio::test]
async fn a_workload_is_known_since_its_first_container() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    let workload = Workload::of(of("a", "nc", 1).container.as_ref().unwrap()).unwrap();
    let created_ns = now_ns() - 3 * DAY * 1_000_000_000;
    bed.send(Command::Workload(workload, created_ns)).await;
    bed.put(1, of("a", "nc", 1)).await;
    bed.close().await;
    let novelty = bed.novelty(1).await;
    assert_eq!(novelty.summary, "first time for this workload");
    assert_eq!(novelty.workload_known_since, Some(timestamp(created_ns)));
}

#[tokio::test]
async fn what_is_about_no_process_or_no_workload_is_not_judged() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1, Signal { process: None, ..of("a", "nc", 1) }).await;
    bed.put(2, Signal { container: Some(Container::default()), ..of("a", "nc", 1) }).await;
    bed.close().await;
    for id in [1, 2] {
        assert_eq!(bed.store.readers().signal(id).await.unwrap().unwrap().novelty, None);
    }
}

#[tokio::test]
async fn made_up_images_push_out_what_was_seen_least_recently() {
    // 4096 bytes of each MB.
    const MAX: u64 = 256;
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), Limits { max_bytes: MAX * 16 * 256, ..LIMITS });
    bed.put(0, of("steady", "nc", 50)).await;
    for number in 1..=MAX * 2 {
        bed.put(number, of(&format!("made-up-{number}"), "nc", 10)).await;
        if number % 50 == 0 {
            bed.put(number << 32, of("steady", "nc", 5)).await;
        }
    }
    bed.close().await;
    let rows = |table| -> i64 {
        let connection = Connection::open(state.path().join(FILE_NAME)).unwrap();
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!([rows("workloads"), rows("habits")], [256, 256]);
    assert!(bed.counters.habits_forgotten.get() >= 2 * MAX, "a habit and a workload for each");
    assert_eq!(bed.habits(&of("steady", "", 1)).await, [("nc".to_owned(), 11)]);
    assert!(bed.habits(&of("made-up-1", "", 1)).await.is_empty());
}
