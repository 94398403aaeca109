//! The database has no room or is damaged, and the clock is moved.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    eventually::{eventually, within},
    node::Node,
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};
use serde_json::Value;

use crate::{Bed, Row, account, account::Account};

const FLOOD: u64 = 3000;
const OVERWRITTEN: u64 = 20;
const JUMPS: u64 = 20;
const JUMPS_AT_LEAST: u64 = 5;

const PAGE: usize = 4096;

/// Twice what the agent keeps in reserve, and some.
const DISK: &str = "size=64m";

const HOUR: i64 = 3600;

const FINISH: Duration = Duration::from_secs(600);

fn state(node: &Node) -> PathBuf {
    node.paths().directory.join("state")
}

/// What a whole container's life executes, and what was told of it.
fn flood(bed: &Bed, executions: u64) -> Result<Account> {
    let container = bed.start("flood", &[executions.to_string()])?;
    let counts = within(FINISH, || bed.program.finished(container.id()))?;
    let account = account::is_exact(&bed.node, container.id(), counts)?;
    container.delete()?;
    Ok(account)
}

/// What the agent says it has lost.
fn loss(node: &Node, what: &str) -> Result<u64> {
    let run_dir = node.paths().run_dir.display().to_string();
    // Its exit code is about the whole node.
    let status: Value =
        serde_json::from_str(&node.portcullis(&["check", "--run-dir", &run_dir, "-o", "json"])?.stdout)?;
    status.pointer(&format!("/agent/losses/{what}")).and_then(Value::as_u64).with_context(|| format!("no {what}"))
}

/// A small file system in the state directory's place, until this is dropped.
struct SmallDisk<'a>(&'a Node);

impl<'a> SmallDisk<'a> {
    fn mount(node: &'a Node) -> Result<Self> {
        // Ends it.
        node.agent().take();
        mount("tmpfs", state(node), "tmpfs", MountFlags::empty(), Some(&*std::ffi::CString::new(DISK)?))?;
        let disk = Self(node);
        node.restart_agent()?;
        Ok(disk)
    }

    /// Takes all the room that there is.
    fn fill(&self) -> Result<PathBuf> {
        let file = state(self.0).join("filler");
        let mut filler = File::create(&file)?;
        let page = [0; PAGE];
        while filler.write_all(&page).is_ok() {}
        Ok(file)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        self.0.agent().take();
        let restored = unmount(state(self.0), UnmountFlags::empty());
        if let Err(error) = restored.map_err(Into::into).and_then(|()| self.0.restart_agent()) {
            eprintln!("giving the agent its disk again: {error:#}");
        }
    }
}

/// The agent says so and goes on; with room again all is told.
pub fn the_disk_is_full(bed: &Bed) -> Result<Vec<Row>> {
    let disk = SmallDisk::mount(&bed.node)?;
    let filler = disk.fill()?;
    let container = bed.start("flood", &[FLOOD.to_string()])?;
    let counts = within(FINISH, || bed.program.finished(container.id()))?;
    ensure!(counts.stopped == FLOOD, "{counts:?}");
    fs::remove_file(filler)?;
    // What gave way to others has been told.
    let (account, expired) = eventually(|| {
        let (account, expired) = (account::of(&bed.node, container.id())?, loss(&bed.node, "expired_by_size")?);
        let possible = FLOOD.saturating_sub(expired)..=FLOOD;
        ensure!(possible.contains(&account.told), "{account:?}, {expired} gave way");
        Ok((account, expired))
    })?;
    container.delete()?;
    flood(bed, FLOOD)?;
    let figures = format!(
        "{FLOOD} executions of nc without room: {} told, {} of them by number only, {expired} signals gave way; then {FLOOD} with \
         room, all told",
        account.told, account.lost
    );
    Ok(vec![Row {
        fault: "the disk is full",
        rounds: 1,
        held: "the agent goes on; old signals give way to new ones, and what was not stored is told by number",
        figures,
    }])
}

/// A page of the database; the first one more often than others, for that is its head. Every other time what waits to be brought into it
/// goes as well, as it would repair the page.
fn overwrite(database: &Path, random: &mut fastrand::Rng) -> Result<()> {
    let mut noise = [0; PAGE];
    random.fill(&mut noise);
    let file = OpenOptions::new().write(true).open(database)?;
    let page = if random.bool() { 0 } else { random.u64(..(file.metadata()?.len() / PAGE as u64).max(1)) };
    file.write_all_at(&noise, page * PAGE as u64)?;
    let log = database.with_extension("db-wal");
    if random.bool() && log.exists() {
        OpenOptions::new().write(true).open(log)?.write_all_at(&noise, 0)?;
    }
    Ok(())
}

/// As [`flood`], but a database whose damage is met only now takes along what it had of it: the next one is told then.
fn flood_after_damage(bed: &Bed) -> Result<()> {
    eventually(|| {
        let replaced = || loss(&bed.node, "store_replaced");
        let before = replaced()?;
        let container = bed.start("flood", &["100".to_owned()])?;
        let counts = within(FINISH, || bed.program.finished(container.id()))?;
        let told = eventually(|| {
            if replaced()? != before {
                return Ok(false);
            }
            let account = account::of(&bed.node, container.id())?;
            ensure!(account.told == counts.begun, "{}: {account:?} of {counts:?}", container.id());
            Ok(true)
        })?;
        container.delete()?;
        ensure!(told, "the database was replaced meanwhile");
        Ok(())
    })
}

/// Every other time between two agents, otherwise under one that is then killed. The next one goes on with a sound database.
pub fn the_database_is_overwritten(bed: &Bed) -> Result<Vec<Row>> {
    let rounds = bed.scaled(OVERWRITTEN);
    let database = state(&bed.node).join("signals.db");
    let mut random = bed.random(0);
    let mut replaced = 0;
    for round in 0..rounds {
        if round % 2 == 0 {
            bed.node.kill_agent()?;
            overwrite(&database, &mut random)?;
        } else {
            overwrite(&database, &mut random)?;
            let container = bed.start("flood", &["100".to_owned()])?;
            within(FINISH, || bed.program.finished(container.id()))?;
            container.delete()?;
            bed.node.kill_agent()?;
        }
        bed.node.restart_agent()?;
        flood_after_damage(bed).with_context(|| format!("round {round}"))?;
        // Since this agent started.
        replaced += loss(&bed.node, "store_replaced")?;
    }
    let figures = format!("{replaced} times the database was replaced; 100 executions of nc after each, all told");
    Ok(vec![Row {
        fault: "the database is overwritten",
        rounds,
        held: "the agent goes on, with a sound database",
        figures,
    }])
}

/// This machine's clock is nobody's: only in one of the tests' own.
pub fn the_clock_jumps(bed: &Bed) -> Result<Vec<Row>> {
    ensure!(bed.node.setup().emulated, "not on a machine that somebody uses");
    let rounds = bed.scaled(JUMPS).max(JUMPS_AT_LEAST);
    let mut random = bed.random(0);
    let mut moved = 0;
    let outcome = (0..rounds).try_for_each(|_| {
        let by = random.i64(-72..=72) * HOUR;
        jump(by)?;
        moved += by;
        flood(bed, 100).map(drop)
    });
    jump(-moved)?;
    outcome?;
    let figures = "up to three days there and back; 100 executions of nc after each, all told".to_owned();
    Ok(vec![Row { fault: "the clock jumps", rounds, held: "all is told, once", figures }])
}

fn jump(seconds: i64) -> Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + seconds, ..now })?)
}
