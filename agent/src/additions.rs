//! The catalogue: the shipped one, and the operator's files that add to it.

use std::path::Path;

use portcullis_policy::catalog::{Catalog, CatalogError};

use crate::files::{self, ReadError};

/// Why there is no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum AdditionError {
    /// Directory or file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file makes no sense; says where.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The shipped catalogue and what the files of a directory add, in the order of their names.
pub fn load(directory: &Path) -> Result<Catalog, AdditionError> {
    let mut catalog = Catalog::shipped()?;
    for name in files::names(directory, &["toml"])? {
        let path = directory.join(name);
        catalog = catalog.with(&path.display().to_string(), &files::read(&path)?)?;
    }
    Ok(catalog)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn without_files_it_is_the_shipped_one() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), Path::new("/nonexistent")] {
            assert_eq!(load(path).unwrap().version(), Catalog::shipped().unwrap().version());
        }
    }

    #[test]
    fn files_add_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("20-tools.toml", "[category.acme.tools]\nprobe = {}\n");
        write("10-acme.toml", "[category.acme]\ntitle = 'ACME'\nseverity = 'low'\ntechniques = []\n");
        write("30-contents.toml", "[[fingerprint]]\ntool = 'probe'\nvalue = '0123456789abcdef'\n");
        write(".10-acme.toml.swp", "x");
        write(".hidden.toml", "x");
        write("README", "x");
        let catalog = load(directory.path()).unwrap();
        assert!(catalog.tools().iter().any(|tool| tool.id == "probe" && tool.category == "acme"));
        assert!(catalog.meaning_of_fingerprint(0x0123_4567_89ab_cdef).is_some());
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.toml");
        fs::write(&file, "[category.dns.tools]\nprobe = { names = ['nc'] }\n").unwrap();
        let error = load(directory.path()).unwrap_err().to_string();
        let expected = format!("{}:2:20: tool \"nc\" and tool \"probe\" share the name \"nc\"", file.display());
        assert_eq!(error, expected);
        fs::write(&file, b"\xff").unwrap();
        assert!(load(directory.path()).unwrap_err().to_string().contains("a.toml"));
    }
}
