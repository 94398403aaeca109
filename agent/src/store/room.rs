//! Room on disk for when there is none: a file that only takes space, beside the database, and is removed when the disk is
//! full. What that frees is enough to bring the write-ahead log into the database and to remove old signals, which needs
//! space as well; from then on new signals take the place of the oldest, until there is plenty again.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;
use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};

/// The reserve, unless the database may not be much larger. The write-ahead log grows to 8 MB, on a slow disk to 16, and bringing it
/// into the database may take as much again.
const RESERVE_BYTES: u64 = 16 << 20;
/// An I/O error where less is left than this is one of space.
const LITTLE: u64 = 1 << 20;

/// The reserve.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// That of a database which may have so many bytes.
    pub fn new(database: &Path, max_bytes: u64) -> Self {
        let mut path = OsString::from(database);
        path.push(".reserve");
        Self { path: path.into(), bytes: RESERVE_BYTES.min(max_bytes / 4) }
    }

    /// Bytes that the database keeps free inside, if it is large enough, while the disk is full.
    pub fn kept_free(&self) -> u64 {
        self.bytes / 4
    }

    /// Takes it, if twice as much is free. Whether it is held, or can't be because the file system has no such thing.
    pub fn take(&self) -> io::Result<bool> {
        if fs::metadata(&self.path).is_ok_and(|file| file.len() >= self.bytes) {
            return Ok(true);
        }
        if free_bytes(&self.path)? < self.bytes.saturating_mul(2) {
            return Ok(false);
        }
        match fallocate(File::create(&self.path)?, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.release();
                if error == Errno::OPNOTSUPP { Ok(true) } else { Err(error.into()) }
            }
        }
    }

    /// Gives it up. Whether it was there.
    pub fn release(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

/// Whether it is for want of space that SQLite could not write.
pub fn is_full(error: &rusqlite::Error, database: &Path) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => true,
        // So it calls that for the index of the write-ahead log.
        Some(ErrorCode::SystemIoFailure) => free_bytes(database).is_ok_and(|free| free < LITTLE),
        _ => false,
    }
}

fn free_bytes(file: &Path) -> io::Result<u64> {
    let file_system = statvfs(file.parent().unwrap_or(file))?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_takes_its_room_and_gives_it_back() {
        let state = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(&state.path().join("signals.db"), 8 << 20);
        assert!(reserve.take().unwrap() && reserve.take().unwrap());
        let file = state.path().join("signals.db.reserve");
        assert_eq!(fs::metadata(&file).unwrap().len(), 2 << 20);
        assert!(reserve.release() && !reserve.release());
        assert!(!file.exists());
        let vast = Reserve { bytes: u64::MAX, ..reserve };
        assert!(!vast.take().unwrap(), "there is not enough");
        assert!(!file.exists());
    }
}
