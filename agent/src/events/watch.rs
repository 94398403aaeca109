//! inotify on the directory of records.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use crate::records::RecordName;

/// The watch.
pub struct Watch {
    fd: OwnedFd,
}

/// What has happened since the last look.
#[derive(Debug, Default)]
pub struct Changes {
    /// Records written or replaced.
    pub names: Vec<RecordName>,
    /// The kernel's queue was full: more has happened.
    pub overflowed: bool,
}

impl Watch {
    /// Watches a directory.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, directory, WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
        Ok(Self { fd })
    }

    /// Takes what has happened. The kernel's queue bounds it (`fs.inotify.max_queued_events`).
    pub fn changes(&self) -> io::Result<Changes> {
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = Reader::new(&self.fd, &mut buffer);
        let mut changes = Changes::default();
        loop {
            match reader.next() {
                Ok(event) => {
                    changes.overflowed |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    let name = event.file_name().and_then(|name| RecordName::parse(name.to_bytes()));
                    changes.names.extend(name);
                }
                Err(Errno::AGAIN) => return Ok(changes),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
