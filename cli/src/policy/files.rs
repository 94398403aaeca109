//! Files that people write: policies, and what is added to the catalogue.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::Context;
use portcullis_policy::{catalog::Catalog, yaml};

use crate::escape;

/// What stands for standard input among files.
const STDIN: &str = "-";

/// Where to find the catalogue.
#[derive(Debug, clap::Args)]
pub struct CatalogArgs {
    /// Files (*.toml) that add to the shipped catalogue of tools; none when there is no such directory
    #[arg(long, value_name = "DIR", default_value = "/etc/portcullis/catalog.d")]
    catalog_dir: PathBuf,
}

impl CatalogArgs {
    /// The catalogue, as the agent would read it.
    pub fn load(&self) -> anyhow::Result<Catalog> {
        let mut catalog = Catalog::shipped()?;
        for path in files(&self.catalog_dir, &["toml"])? {
            let text = fs::read_to_string(&path).with_context(|| shown(&path))?;
            catalog = catalog.with(&path.display().to_string(), &text)?;
        }
        Ok(catalog)
    }
}

/// The files of a directory with one of these extensions, as the agent finds them: sorted by name, hidden ones left out.
pub fn files(directory: &Path, extensions: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| shown(directory))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| shown(directory))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && extensions.iter().any(|wanted| path.extension().is_some_and(|own| own == *wanted)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A path in a message.
pub fn shown(path: &Path) -> String {
    escape::text(&name(path))
}

/// What errors call a policy file.
pub fn name(path: &Path) -> String {
    if path.as_os_str() == STDIN { "stdin".to_owned() } else { path.display().to_string() }
}

/// A policy file's bytes, or standard input's: no more than show that it is too large.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let limit = yaml::SIZE_MAX as u64 + 1;
    let mut bytes = Vec::new();
    if path.as_os_str() == STDIN {
        io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    } else {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::other("this is a directory: name the files in it"));
        }
        file.take(limit).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
