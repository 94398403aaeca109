use super::*;

fn blocked(all: u64) -> Count {
    Count { all, blocked: all, killed: 0 }
}

fn one() -> Signal {
    Signal { verdict: Verdict::Blocked.into(), ..signal("nc", 1) }
}

async fn put(bed: &Bed, origin: Origin, signal: Signal) {
    bed.send(Command::Signal(Box::new(Entry::new(origin, &signal, Vec::new())))).await;
}

#[tokio::test]
async fn what_is_stored_is_accounted_for() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    assert_eq!(bed.store.take_accounts(), None, "nobody has kept any");
    put(&bed, origin(1), one()).await;
    // The same once more counts for nothing.
    put(&bed, origin(1), one()).await;
    bed.send(Command::Update(Update::new(origin(1), blocked(4), &Signal { count: 5, ..one() }))).await;
    // Of a signal that is not there.
    bed.send(Command::Update(Update::new(origin(9), blocked(7), &Signal { count: 8, ..one() }))).await;
    bed.send(Command::Account(42, Account { seen: Count::many(2, Verdict::Detected), lost: Count::default() })).await;
    let suppressed = SuppressedCount { tool: "nc".into(), verdict: Verdict::Blocked.into(), count: 30 };
    let many = Signal { count: 30, suppressed: vec![suppressed.clone()], ..one() };
    put(&bed, Origin::Suppressed { cgroup_id: 42, time_ns: 5 }, many.clone()).await;
    put(&bed, Origin::Lost { cgroup_id: 42, time_ns: 6 }, many).await;
    put(&bed, Origin::Operation { time_ns: 6, number: 7 }, signal("nc", 1)).await;
    // An id with the topmost bit.
    let far = Origin::Event { cgroup_id: u64::MAX, process: Process { pid: 1, start_time_ns: 1 }, time_ns: 8 };
    put(&bed, far, signal("nc", 1)).await;
    bed.close().await;
    let dropped: Vec<_> = bed.store.dropped().take().into_each().collect();
    assert_eq!(dropped, [(42, Account { seen: blocked(7), lost: Count::default() })]);

    let mut bed = Bed::open(state.path(), LIMITS);
    let accounts = bed.store.take_accounts().unwrap();
    assert_eq!(accounts.len(), 2);
    assert_eq!(accounts[&42], Account { seen: Count { all: 37, blocked: 35, killed: 0 }, lost: blocked(30) });
    assert_eq!(accounts[&u64::MAX].seen, Count::many(1, Verdict::Detected));
    bed.send(Command::Close(42)).await;
    bed.close().await;
    let bed = Bed::open(state.path(), LIMITS);
    assert_eq!(bed.store.take_accounts().unwrap().into_keys().collect::<Vec<_>>(), [u64::MAX]);
}

#[tokio::test]
async fn another_boot_s_accounts_are_none() {
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    put(&bed, origin(1), one()).await;
    bed.close().await;
    let connection = Connection::open(state.path().join(FILE_NAME)).unwrap();
    connection.execute("UPDATE boot SET id = 'another'", []).unwrap();
    drop(connection);
    for known in [false, true] {
        let mut bed = Bed::open(state.path(), LIMITS);
        assert_eq!(bed.store.take_accounts(), known.then(HashMap::new));
        bed.close().await;
    }
}
