//! Changes of the operator's directories, as inotify tells them.
//!
//! What is watched is each directory and those above it: so one that is made later, that is replaced, or that is a link to
//! somewhere else is noticed. Editors write a file under another name and rename it; Kubernetes has a directory of links and
//! renames the one that they all lead through (`..data`): both are changes of the directory itself.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::counters::Counters;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

/// After a change, for how long nothing may happen before it is told: files are often written one after the other.
const QUIET: Duration = Duration::from_millis(300);
/// After the first change it is told at the latest then.
const PATIENCE: Duration = Duration::from_secs(3);

/// In a directory above: where a directory, or a link to it, comes or goes.
const ABOVE: WatchFlags = WatchFlags::MOVE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// In a directory of files. ATTRIB: who may read one.
const FILES: WatchFlags = ABOVE.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::ATTRIB);

/// What matters in a watched directory.
#[derive(Debug, Default)]
struct Matter {
    /// Everything: the files are here.
    all: bool,
    /// The next directories on the ways to the files.
    names: HashSet<OsString>,
}

/// The watch.
pub struct Changes {
    inotify: OwnedFd,
    directories: Vec<PathBuf>,
    watched: HashMap<i32, Matter>,
    counters: Arc<Counters>,
    failed: bool,
}

impl Changes {
    /// Watches these directories, which need not exist. Where one can't be watched that is counted.
    pub fn watch(directories: &[&Path], counters: Arc<Counters>) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let directories = directories.iter().map(|directory| (*directory).to_owned()).collect();
        let mut this = Self { inotify, directories, watched: HashMap::new(), counters, failed: false };
        this.arm();
        Ok(this)
    }

    /// Watches what is there now. What is watched already stays so, without a gap.
    fn arm(&mut self) {
        let mut watched: HashMap<i32, Matter> = HashMap::new();
        let mut failure = None;
        for directory in &self.directories {
            // From the root: a directory that is made meanwhile is either found, or told of by the one above it.
            let mut ways: Vec<&Path> = directory.ancestors().collect();
            ways.reverse();
            for (place, path) in ways.iter().enumerate() {
                let next = ways.get(place + 1).and_then(|next| next.file_name());
                let flags = if next.is_some() { ABOVE } else { FILES };
                // The same directory may be on another's way.
                match inotify::add_watch(&self.inotify, *path, flags | WatchFlags::MASK_ADD) {
                    Ok(id) => {
                        let matter = watched.entry(id).or_default();
                        matter.all |= next.is_none();
                        matter.names.extend(next.map(OsString::from));
                    }
                    // Not there, or no directory: it may be some day.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => break,
                    Err(error) => failure = Some((*path, error)),
                }
            }
        }
        for id in self.watched.keys().filter(|id| !watched.contains_key(id)) {
            // It is gone already if the directory is.
            let _ = inotify::remove_watch(&self.inotify, *id);
        }
        self.watched = watched;
        let Some((path, error)) = failure else { return };
        self.counters.directories_unwatched.increment();
        // Once: what is wrong will be so again at the next change.
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!(
                path = %path.display(), %error,
                "changes of policies and catalogue can go unnoticed: send SIGHUP after them; see fs.inotify.max_user_watches"
            );
        }
    }

    /// Waits until something has changed, and then until nothing more does.
    pub fn wait(&mut self) -> io::Result<()> {
        while !self.changed_within(PATIENCE)? {}
        Ok(())
    }

    /// Whether something changes within this time.
    fn changed_within(&mut self, time: Duration) -> io::Result<bool> {
        if !self.event_within(time)? {
            return Ok(false);
        }
        let first = Instant::now();
        while first.elapsed() < PATIENCE && self.event_within(QUIET)? {}
        Ok(true)
    }

    /// Whether something that matters happens within this time.
    fn event_within(&mut self, time: Duration) -> io::Result<bool> {
        let started = Instant::now();
        loop {
            let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
            let left = Timespec::try_from(time.saturating_sub(started.elapsed())).map_err(io::Error::other)?;
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) if drain(&self.inotify, &self.watched)? => {
                    self.arm();
                    return Ok(true);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Reads all events that there are. Whether one of them matters: the directories above are full of other things.
fn drain(inotify: &OwnedFd, watched: &HashMap<i32, Matter>) -> io::Result<bool> {
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut matters = false;
    loop {
        match reader.next() {
            Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => matters = true,
            Ok(event) => {
                let Some(matter) = watched.get(&event.wd()) else { continue };
                // Without a name it is about the directory itself.
                let named = |name: &CStr| matter.names.contains(OsStr::from_bytes(name.to_bytes()));
                matters |= matter.all || event.file_name().is_none_or(named);
            }
            Err(Errno::AGAIN) => return Ok(matters),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, sync::mpsc, thread};

    use super::*;

    fn is_told(changes: &mut Changes) -> bool {
        changes.changed_within(Duration::from_secs(5)).unwrap()
    }

    fn is_silent(changes: &mut Changes) -> bool {
        !changes.changed_within(Duration::from_millis(400)).unwrap()
    }

    fn watch(directory: &Path) -> Changes {
        Changes::watch(&[directory], Arc::default()).unwrap()
    }

    #[test]
    fn files_written_renamed_and_removed_are_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p.yaml");
        let mut changes = watch(directory.path());
        assert!(is_silent(&mut changes));
        fs::write(&file, "one").unwrap();
        fs::write(&file, "two").unwrap();
        assert!(is_told(&mut changes) && is_silent(&mut changes));
        // As editors do.
        fs::write(directory.path().join("p.yaml~"), "three").unwrap();
        fs::rename(directory.path().join("p.yaml~"), &file).unwrap();
        assert!(is_told(&mut changes) && is_silent(&mut changes));
        fs::read(&file).unwrap();
        assert!(is_silent(&mut changes), "reading is no change");
        fs::remove_file(&file).unwrap();
        assert!(is_told(&mut changes));
    }

    #[test]
    fn a_directory_that_comes_later_is_watched() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("etc/portcullis/policies");
        let mut changes = watch(&directory);
        fs::write(root.path().join("other"), "x").unwrap();
        assert!(is_silent(&mut changes), "other names do not matter");
        fs::create_dir_all(&directory).unwrap();
        assert!(is_told(&mut changes));
        fs::write(directory.join("p.yaml"), "one").unwrap();
        assert!(is_told(&mut changes));
        fs::rename(root.path().join("etc/portcullis"), root.path().join("etc/old")).unwrap();
        assert!(is_told(&mut changes));
        fs::write(root.path().join("etc/old/policies/p.yaml"), "two").unwrap();
        assert!(is_silent(&mut changes), "it is another directory now");
        fs::create_dir_all(&directory).unwrap();
        assert!(is_told(&mut changes));
        fs::remove_dir_all(root.path().join("etc")).unwrap();
        assert!(is_told(&mut changes));
    }

    #[test]
    fn a_config_map_is_swapped() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("policies");
        fs::create_dir_all(directory.join("..1")).unwrap();
        fs::write(directory.join("..1/p.yaml"), "one").unwrap();
        symlink("..1", directory.join("..data")).unwrap();
        symlink("..data/p.yaml", directory.join("p.yaml")).unwrap();
        let mut changes = watch(&directory);
        fs::create_dir(directory.join("..2")).unwrap();
        fs::write(directory.join("..2/p.yaml"), "two").unwrap();
        symlink("..2", directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        fs::remove_dir_all(directory.join("..1")).unwrap();
        assert!(is_told(&mut changes));
        assert_eq!(fs::read_to_string(directory.join("p.yaml")).unwrap(), "two");
    }

    #[test]
    fn a_linked_directory_is_followed() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let link = root.path().join("policies");
        symlink("a", &link).unwrap();
        let mut changes = watch(&link);
        fs::write(root.path().join("a/p.yaml"), "one").unwrap();
        assert!(is_told(&mut changes));
        symlink("b", root.path().join("new")).unwrap();
        fs::rename(root.path().join("new"), &link).unwrap();
        assert!(is_told(&mut changes));
        fs::write(root.path().join("b/p.yaml"), "two").unwrap();
        assert!(is_told(&mut changes));
    }

    #[test]
    fn what_never_rests_is_told_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let mut changes = watch(directory.path());
        let path = directory.path().join("p.yaml");
        let (stop, stopped) = mpsc::channel::<()>();
        let writer = thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(50)) == Err(mpsc::RecvTimeoutError::Timeout) {
                fs::write(&path, "x").unwrap();
            }
        });
        let started = Instant::now();
        assert!(is_told(&mut changes) && started.elapsed() < PATIENCE * 2);
        drop(stop);
        writer.join().unwrap();
    }
}
