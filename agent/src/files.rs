//! The operator's files in a directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

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
    fs::read_to_string(path).map_err(|source| ReadError { path: path.to_owned(), source })
}
