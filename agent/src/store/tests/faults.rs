//! Broken files, full disks, other versions: on real files, and on a file system of their own where it must be full. That
//! takes root.

use std::{fs::File, io::Write};

use portcullis_proto::v1::check::State;
use prost::Message;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

use super::*;
use crate::store::health::Trouble;

/// A small file system, unmounted when dropped.
struct Disk(TempDir);

impl Disk {
    fn new(megabytes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={megabytes}m")).unwrap();
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
            .expect("mounting a tmpfs takes root's rights");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is left.
    fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.path().join("filler")).unwrap();
        for size in [1 << 20, 4096, 1] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}

impl Bed {
    /// Sends some of 4 kB, and waits until they are dealt with.
    async fn put_many(&self, numbers: std::ops::Range<u64>) {
        let mut last_id = self.store.last_id();
        let dealt_with = || *self.store.last_id().borrow() + self.counters.store_dropped.get();
        let before = dealt_with();
        for number in numbers.clone() {
            self.put(number, Signal { message: "x".repeat(4000), ..signal("nc", 1) }).await;
        }
        while dealt_with() < before + (numbers.end - numbers.start) {
            let _ = tokio::time::timeout(Duration::from_millis(10), last_id.changed()).await;
        }
    }

    fn state(&self) -> State {
        self.store.health().check().state()
    }

    /// Waits for the writer to have dealt with everything.
    async fn settle(&self, state: State) {
        for _ in 0..500 {
            if self.state() == state {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it stays {:?}", self.store.health().check());
    }
}

#[tokio::test]
async fn on_a_full_disk_the_newest_take_the_place_of_the_oldest() {
    let disk = Disk::new(64);
    let mut bed = Bed::open(disk.path(), LIMITS);
    bed.put_many(0..500).await;
    assert_eq!(bed.state(), State::Ok);
    disk.fill();
    bed.put_many(500..6000).await;
    assert_eq!(bed.counters.store_dropped.get(), 0);
    assert_eq!(*bed.store.last_id().borrow(), 6000);
    assert_eq!(bed.store.health().trouble(), Some(Trouble::Full));
    assert!(bed.counters.expired_by_size.get() > 0);
    let ids = bed.ids(SignalFilter::default()).await;
    assert_eq!(ids.first(), Some(&6000), "reading goes on");
    assert!(bed.store.stored() > 300, "only {} are left", bed.store.stored());
    disk.empty();
    bed.send(Command::Expire).await;
    bed.settle(State::Ok).await;
    let before = bed.counters.expired_by_size.get();
    bed.put_many(6000..6010).await;
    assert_eq!(bed.counters.expired_by_size.get(), before);
    assert!(disk.path().join("signals.db.reserve").exists());
    bed.close().await;
}

#[tokio::test]
async fn what_a_full_disk_does_not_take_is_counted_until_it_does() {
    let disk = Disk::new(64);
    let mut bed = Bed::open(disk.path(), LIMITS);
    bed.put_many(0..10).await;
    bed.close().await;
    let mut bed = Bed::open(disk.path(), LIMITS);
    // Someone takes this as well.
    fs::remove_file(disk.path().join("signals.db.reserve")).unwrap();
    disk.fill();
    bed.put_many(10..300).await;
    assert_eq!((bed.counters.store_dropped.get(), *bed.store.last_id().borrow()), (290, 10));
    let dropped: Vec<_> = bed.store.dropped().take().into_each().collect();
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0].1.seen.all, 290, "they are told to be lost");
    let check = bed.store.health().check();
    assert_eq!(check.state(), State::Failed);
    assert!(check.detail.contains("290 were dropped") && check.remedy.contains("state_dir"), "{check:?}");
    assert_eq!(bed.ids(SignalFilter::default()).await.len(), 10, "reading goes on");
    bed.send(Command::Expire).await;
    disk.empty();
    bed.put_many(300..310).await;
    assert_eq!((bed.counters.store_dropped.get(), *bed.store.last_id().borrow()), (290, 20));
    bed.settle(State::Ok).await;
    bed.close().await;
    assert_eq!(bed.counters.store_replaced.get(), 0);
}

#[tokio::test]
async fn a_look_now_and_then_finds_the_disk_well_again() {
    let disk = Disk::new(64);
    let mut bed = Bed::open(disk.path(), LIMITS);
    fs::remove_file(disk.path().join("signals.db.reserve")).unwrap();
    disk.fill();
    bed.put_many(0..300).await;
    bed.send(Command::Expire).await;
    bed.settle(State::Failed).await;
    disk.empty();
    bed.send(Command::Expire).await;
    bed.settle(State::Ok).await;
    bed.close().await;
}

#[tokio::test]
async fn an_agent_starts_on_a_full_disk_while_it_has_its_reserve() {
    let disk = Disk::new(64);
    let mut bed = Bed::open(disk.path(), LIMITS);
    bed.put_many(0..10).await;
    bed.close().await;
    disk.fill();
    let mut bed = Bed::open(disk.path(), LIMITS);
    assert_eq!(bed.ids(SignalFilter::default()).await.len(), 10);
    bed.close().await;
    disk.fill();
    let error = open(disk.path(), LIMITS, Arc::default()).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }) && error.to_string().contains("free some space"), "{error}");
    disk.empty();
    let mut bed = Bed::open(disk.path(), LIMITS);
    bed.close().await;
    assert_eq!((bed.ids(SignalFilter::default()).await.len(), bed.counters.store_replaced.get()), (10, 0));
}

#[tokio::test]
async fn a_read_only_disk_is_an_error_and_loses_nothing() {
    let disk = Disk::new(64);
    let mut bed = Bed::open(disk.path(), LIMITS);
    bed.put_many(0..10).await;
    bed.close().await;
    mount_remount(disk.path(), MountFlags::RDONLY, "").unwrap();
    let error = anyhow::Error::from(open(disk.path(), LIMITS, Arc::default()).unwrap_err());
    assert!(format!("{error:#}").contains("signals.db"), "{error:#}");
    mount_remount(disk.path(), MountFlags::empty(), "").unwrap();
    let mut bed = Bed::open(disk.path(), LIMITS);
    bed.close().await;
    assert_eq!(bed.ids(SignalFilter::default()).await.len(), 10);
}

/// Overwrites a part of a file.
fn scratch(path: &Path, from: u64, bytes: usize) {
    File::options().write(true).open(path).unwrap().write_all_at(&vec![0xa5; bytes], from).unwrap();
}

/// What damages a database, and whether it is lost then.
type Damage = (&'static str, fn(&Path), bool);

const DAMAGES: [Damage; 5] = [
    (
        "garbage in the middle",
        |path| {
            let length = fs::metadata(path).unwrap().len();
            scratch(path, length / 2 / 4096 * 4096 + 5, 30_000);
        },
        true,
    ),
    (
        "cut off",
        |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        },
        true,
    ),
    ("empty", |path| fs::write(path, "").unwrap(), false),
    (
        "a directory in its place",
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
        true,
    ),
    ("garbage as its log", |path| fs::write(path.with_extension("db-wal"), vec![0xa5; 50_000]).unwrap(), false),
];

#[tokio::test]
async fn damage_ends_in_a_database_that_works() {
    for (what, damage, lost) in DAMAGES {
        let state = tempfile::tempdir().unwrap();
        let mut bed = Bed::open(state.path(), LIMITS);
        bed.put_many(0..200).await;
        bed.close().await;
        damage(&state.path().join(FILE_NAME));
        let mut bed = Bed::open(state.path(), LIMITS);
        bed.put(1000, signal("dig", 1)).await;
        // Whoever reads finds what opening and writing did not.
        let all = Filter::new(None).unwrap();
        let _ = bed.store.readers().page(all.clone(), Range::Before(u64::MAX), 1000).await;
        bed.put(1001, signal("dig", 1)).await;
        bed.close().await;
        assert_eq!(bed.counters.store_replaced.get(), u64::from(lost), "{what}");
        let mut bed = Bed::open(state.path(), LIMITS);
        bed.put(1002, signal("curl", 1)).await;
        bed.close().await;
        assert_eq!(bed.counters.store_replaced.get(), 0, "{what}");
        assert_eq!(state.path().join("signals.db.corrupt").exists(), lost, "{what}");
        let page = bed.store.readers().page(all, Range::Before(u64::MAX), 1000).await.unwrap();
        let newest = page.signals.first().unwrap();
        assert_eq!(newest.tool.as_ref().unwrap().id, "curl", "{what}");
        assert!(!lost || newest.id > 1_000_000, "{what}: ids go on above all that were given");
    }
}

#[tokio::test]
async fn it_opens_whichever_page_is_damaged() {
    const PAGE: usize = 4096;
    let state = tempfile::tempdir().unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    // Of an index, which is counted at the start, more than one page.
    for number in 0..400 {
        bed.put(number, signal(&format!("a tool with a long name, number {number}"), 1)).await;
    }
    bed.close().await;
    let whole = fs::read(state.path().join(FILE_NAME)).unwrap();
    for page in 0..whole.len() / PAGE {
        let state = tempfile::tempdir().unwrap();
        let mut damaged = whole.clone();
        damaged[page * PAGE..][..PAGE].fill(0xa5);
        fs::write(state.path().join(FILE_NAME), damaged).unwrap();
        let mut bed = Bed::open(state.path(), LIMITS);
        bed.put(1000, signal("dig", 1)).await;
        bed.close().await;
    }
}

#[tokio::test]
async fn what_a_newer_agent_wrote_is_kept() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE_NAME);
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put_many(0..10).await;
    bed.close().await;
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let mut bed = Bed::open(state.path(), LIMITS);
    bed.put(1000, signal("dig", 1)).await;
    bed.close().await;
    assert_eq!((bed.ids(SignalFilter::default()).await.len(), bed.counters.store_replaced.get()), (1, 1));
    let names = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept: Vec<String> = names.filter(|name| name.starts_with("signals.db.v99-")).collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    let kept = Connection::open(state.path().join(kept)).unwrap();
    let signals: i64 = kept.query_row("SELECT count(*) FROM signals", [], |row| row.get(0)).unwrap();
    assert_eq!(signals, 10);
}

#[tokio::test]
async fn databases_of_earlier_versions_are_taken_over() {
    let versions = [include_str!("version-1.sql"), include_str!("version-2.sql")];
    for version in 1..=versions.len() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE_NAME);
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").unwrap();
        versions[..version].iter().for_each(|sql| connection.execute_batch(sql).unwrap());
        let entry = Entry::new(origin(1), &signal("nc", 5), Vec::new());
        connection
            .execute(
                "INSERT INTO signals (id, origin, time_ns, rule, verdict, severity, tool, category, container_id, image,
                 pod_namespace, pod_name, body) VALUES (7, ?1, ?2, '', 1, 1, 'nc', '', '', '', '', '', ?3)",
                rusqlite::params![entry.origin.to_bytes(), entry.time_ns, entry.body],
            )
            .unwrap();
        connection
            .execute("INSERT INTO containers VALUES ('default', 'c1', 5, 'alpine', ?1)", [entry.time_ns])
            .unwrap();
        if version == 2 {
            let told = Signal { count: 5, ..Signal::default() }.encode_to_vec();
            connection
                .execute("INSERT INTO repeats VALUES (7, 3, 5, ?1, ?2)", rusqlite::params![entry.time_ns, told])
                .unwrap();
        }
        drop(connection);
        let mut bed = Bed::open(state.path(), LIMITS);
        let counts = if version == 2 { 5 } else { 1 };
        assert_eq!(bed.store.readers().signal(7).await.unwrap().unwrap().count, counts);
        bed.put(2, signal("nc", 1)).await;
        bed.send(update(1, 1, counts + 1, 1)).await;
        bed.close().await;
        assert_eq!(bed.ids(SignalFilter::default()).await, [8, 7]);
        assert_eq!(bed.store.readers().signal(7).await.unwrap().unwrap().count, counts + 1);
        let since = Some(timestamp(now_ns() - 60_000_000_000));
        assert_eq!(bed.ids(SignalFilter { since, ..SignalFilter::default() }).await, [8, 7]);
        let key = ContainerKey { namespace: "default".into(), id: "c1".into(), created_ns: 5 };
        assert_eq!(bed.store.readers().image(key).await.unwrap().as_deref(), Some("alpine"));
        assert_eq!(bed.counters.store_replaced.get(), 0);
        let connection = Connection::open(&path).unwrap();
        let now: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(usize::try_from(now), Ok(schema::STEPS.len()));
    }
}
