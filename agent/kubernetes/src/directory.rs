//! The directory of policies that the agent reads: which files are ours, and how they change.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use portcullis_policy::{catalog::Catalog, yaml};

use crate::document::MARK;

/// A directory or a file that does not do as it should.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It could not be read or changed.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The catalogue's files make no sense.
    #[error(transparent)]
    Catalog(#[from] portcullis_policy::catalog::CatalogError),
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { what, path, source }
}

/// What is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Files of ours: texts by the objects' names.
    pub ours: BTreeMap<String, String>,
    /// Policy files of others, by path; the text if it can be read.
    pub others: BTreeMap<PathBuf, Option<String>>,
}

/// Where the agent reads policies and what is added to the catalogue.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Ours are here.
    pub policies: PathBuf,
    /// Others may be here.
    pub more: Vec<PathBuf>,
    /// Additions to the catalogue.
    pub catalog: PathBuf,
}

impl Directory {
    /// The file of an object's policy.
    pub fn file(&self, name: &str) -> PathBuf {
        self.policies.join(format!("crd-{name}.yaml"))
    }

    /// Reads what is there.
    pub fn read(&self) -> Result<Found, DirectoryError> {
        let mut found = Found::default();
        for path in files(&self.policies, &["yaml", "yml"])? {
            let text = text(&path);
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.and_then(|name| name.strip_prefix("crd-")?.strip_suffix(".yaml"));
            match (name, text) {
                (Some(name), Some(text)) if text.starts_with(MARK) => {
                    found.ours.insert(name.to_owned(), text);
                }
                (_, text) => {
                    found.others.insert(path, text);
                }
            }
        }
        for directory in &self.more {
            for path in files(directory, &["yaml", "yml"])? {
                let text = text(&path);
                found.others.insert(path, text);
            }
        }
        Ok(found)
    }

    /// The catalogue as the agent would read it.
    pub fn catalog(&self) -> Result<Catalog, DirectoryError> {
        let mut catalog = Catalog::shipped()?;
        for path in files(&self.catalog, &["toml"])? {
            let text = fs::read_to_string(&path).map_err(fail("reading", &path))?;
            catalog = catalog.with(&path.display().to_string(), &text)?;
        }
        Ok(catalog)
    }

    /// Replaces or removes a file of ours, in one step: the agent reads the old one or the new one.
    pub fn change(&self, name: &str, text: Option<&str>) -> Result<(), DirectoryError> {
        let path = self.file(name);
        let Some(text) = text else {
            return fs::remove_file(&path).map_err(fail("removing", &path));
        };
        // The agent passes over hidden files. One of a crash is overwritten some day.
        let temporary = self.policies.join(format!(".crd-{name}.new"));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(fail("writing", &path))
    }
}

/// The files that the agent would read, by name; none where there is no such directory.
fn files(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, DirectoryError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail("reading", directory))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail("reading", directory))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && extensions.iter().any(|wanted| path.extension().is_some_and(|own| own == *wanted)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A file's text; `None` where the agent could not read it either.
fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(yaml::SIZE_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    yaml::decode("", &bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bed() -> (tempfile::TempDir, Directory) {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("policies")).unwrap();
        let directory = Directory { policies: at("policies"), more: vec![at("more")], catalog: at("catalog.d") };
        (root, directory)
    }

    #[test]
    fn ours_are_those_with_our_name_and_our_mark() {
        let (_root, directory) = bed();
        let write = |name: &str, text: &[u8]| fs::write(directory.policies.join(name), text).unwrap();
        directory.change("a", Some(&format!("{MARK}x"))).unwrap();
        // As `portcullis policy apply` names the file of a policy crd-b.
        write("crd-b.yaml", b"mine");
        write("c.yaml", MARK.as_bytes());
        write("d.yml", b"\xff");
        write(".e.yaml", b"x");
        write("README", b"x");
        fs::create_dir(&directory.more[0]).unwrap();
        fs::write(directory.more[0].join("crd-f.yaml"), MARK).unwrap();
        let found = directory.read().unwrap();
        assert_eq!(found.ours, [("a".to_owned(), format!("{MARK}x"))].into());
        let others: Vec<_> = found.others.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(others, ["crd-f.yaml", "c.yaml", "crd-b.yaml", "d.yml"]);
        assert_eq!(found.others[&directory.policies.join("d.yml")], None);
    }

    #[test]
    fn a_file_is_replaced_and_removed() {
        let (_root, directory) = bed();
        fs::write(directory.policies.join(".crd-a.new"), "of a crash").unwrap();
        for text in ["one", "two"] {
            directory.change("a", Some(text)).unwrap();
            assert_eq!(fs::read_to_string(directory.file("a")).unwrap(), text);
        }
        assert_eq!(fs::metadata(directory.file("a")).unwrap().permissions().mode() & 0o777, 0o644);
        directory.change("a", None).unwrap();
        assert_eq!(fs::read_dir(&directory.policies).unwrap().count(), 0);
        let error = directory.change("a", None).unwrap_err().to_string();
        assert!(error.starts_with("removing ") && error.ends_with("crd-a.yaml"), "{error}");
    }

    #[test]
    fn the_catalogue_has_the_additions() {
        let (_root, directory) = bed();
        fs::create_dir(&directory.catalog).unwrap();
        fs::write(directory.catalog.join("a.toml"), "[[fingerprint]]\ntool = 'nc'\nvalue = '0123456789abcdef'\n")
            .unwrap();
        assert!(directory.catalog().unwrap().meaning_of_fingerprint(0x0123_4567_89ab_cdef).is_some());
        fs::write(directory.catalog.join("b.toml"), "x").unwrap();
        assert!(directory.catalog().is_err());
    }
}
