//! The operator's files in a directory.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Bytes of a file that people write.
const MAX_BYTES: u64 = 1 << 20;

/// Directory or file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {}", path.display())]
pub struct ReadError {
    path: PathBuf,
    source: io::Error,
}

/// The names of the files with one of these extensions, sorted; none when there is no directory. Names with a leading dot
/// are editors' and Kubernetes's own.
pub fn names(directory: &Path, extensions: &[&str]) -> Result<Vec<String>, ReadError> {
    let fail = |source| ReadError { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
        let extension = Path::new(&name).extension();
        if !name.starts_with('.') && extensions.iter().any(|wanted| extension.is_some_and(|own| own == *wanted)) {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

/// A file's text.
pub fn read(path: &Path) -> Result<String, ReadError> {
    let read = || {
        let mut text = String::new();
        let size = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if u64::try_from(size).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes")));
        }
        Ok(text)
    };
    read().map_err(|source| ReadError { path: path.to_owned(), source })
}

/// Replaces a file as a whole: a reader sees the old content or the new one, and after a crash as well.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let temporary = path.with_file_name(name);
    // One of a crash may be there, with another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    // Whatever the umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        fs::write(directory.path().join(".state.json"), "half").unwrap();
        for text in ["one", "two"] {
            replace(&path, 0o640, text.as_bytes()).unwrap();
            assert_eq!(read(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large.yaml");
        fs::write(&path, " ".repeat(1 << 20)).unwrap();
        assert!(read(&path).is_ok());
        fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
        let error = anyhow::Error::from(read(&path).unwrap_err());
        assert!(format!("{error:#}").ends_with("large.yaml: it has more than 1048576 bytes"), "{error:#}");
    }
}
