//! `fingerprint`: what a catalogue file needs to know programs by their content.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use portcullis_bpf::fingerprint;
use portcullis_policy::catalog::{Catalog, Kind, Meaning};
use rustix::fs::OFlags;
use serde::Serialize;

use crate::{
    args::Global,
    escape, exit,
    output::{Format, Sequence},
};

/// Print what makes the catalogue know files by their content
///
/// The lines go into a file of the agent's catalogue directory, /etc/portcullis/catalog.d/NAME.toml; SIGHUP makes
/// portcullisd read it. From then on these programs are recognised in every container under any name.
///
/// What a file is, is guessed by its own name or, where that says nothing, by the name of the link that was given. All
/// files are looked at before anything is printed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The programs
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The tool that they are, for example nc
    #[arg(long, value_name = "ID")]
    tool: Option<String>,
    /// They are no tool but run others: which kind of program they are
    #[arg(long, value_name = "KIND", value_enum, conflicts_with = "tool")]
    runs: Option<Runs>,
    /// Put in front of the file's name in the note
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// `--runs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runs {
    /// One program that is many, as busybox is
    Multicall,
    /// A dynamic loader
    Loader,
    /// A shell
    Shell,
    /// Another language's interpreter
    Interpreter,
}

impl From<Runs> for Kind {
    fn from(runs: Runs) -> Self {
        match runs {
            Runs::Multicall => Self::Multicall,
            Runs::Loader => Self::Loader,
            Runs::Shell => Self::Shell,
            Runs::Interpreter => Self::Interpreter,
        }
    }
}

/// What `-o json` shows.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    file: String,
    value: String,
    tool: Option<String>,
    runs: Option<String>,
    note: String,
}

impl Args {
    /// Looks and prints.
    pub fn run(&self, global: &Global) -> anyhow::Result<()> {
        let catalog = Catalog::shipped()?;
        if let Some(tool) = self.tool.as_ref().filter(|tool| !catalog.tools().iter().any(|known| known.id == **tool)) {
            exit::note(&format!(
                "note: the shipped catalogue has no tool {}; a catalogue file must add it",
                escape::text(tool)
            ));
        }
        let entries = self.entries(&catalog)?;
        let mut out = BufWriter::new(io::stdout().lock());
        match global.output {
            Format::Table | Format::Wide => entries.iter().try_for_each(|entry| toml(&mut out, entry))?,
            Format::Json | Format::Yaml => {
                let mut sequence = Sequence::new(global.output == Format::Yaml);
                entries.iter().try_for_each(|entry| sequence.push(&mut out, entry))?;
                sequence.finish(&mut out)?;
            }
        }
        Ok(out.flush()?)
    }

    fn entries(&self, catalog: &Catalog) -> anyhow::Result<Vec<Entry>> {
        let mut known: BTreeMap<u64, (Meaning, &Path)> = BTreeMap::new();
        let mut entries = Vec::with_capacity(self.files.len());
        for path in &self.files {
            let shown = escape::text(&path.display().to_string());
            let (value, size) = of(path).with_context(|| shown.clone())?;
            let meaning = self.meaning(catalog, path)?;
            let conflict = |other: &Meaning, owner: &str| {
                anyhow!(
                    "{shown} would be the {meaning}, but {owner} has the same content and is the {other}; one program \
                     that is many is a multi-call one: --runs multicall"
                )
            };
            if let Some(other) = catalog.meaning_of_fingerprint(value).filter(|other| **other != meaning) {
                return Err(conflict(other, "a program of the shipped catalogue"));
            }
            if let Some((other, owner)) = known.get(&value).filter(|(other, _)| *other != meaning) {
                return Err(conflict(other, &escape::text(&owner.display().to_string())));
            }
            if known.insert(value, (meaning.clone(), path)).is_some() {
                continue;
            }
            let from = format!("from {}, {size} bytes", path.display());
            let note = self.note.as_ref().map_or_else(|| from.clone(), |note| format!("{note}, {from}"));
            let is_tool = meaning.kind == Kind::Tool;
            entries.push(Entry {
                file: path.display().to_string(),
                value: format!("{value:016x}"),
                runs: (!is_tool).then(|| meaning.kind.to_string()),
                tool: is_tool.then_some(meaning.id),
                note,
            });
        }
        Ok(entries)
    }

    fn meaning(&self, catalog: &Catalog, path: &Path) -> anyhow::Result<Meaning> {
        let runs = |kind: Kind| Meaning { kind, id: kind.to_string() };
        if let Some(id) = &self.tool {
            return Ok(Meaning { kind: Kind::Tool, id: id.clone() });
        }
        if let Some(kind) = self.runs {
            return Ok(runs(kind.into()));
        }
        let own = fs::canonicalize(path).unwrap_or_default();
        let names = [own.file_name(), path.file_name()].map(|name| name.and_then(OsStr::to_str));
        let guess = names.into_iter().flatten().find_map(|name| catalog.meaning_of_name(name));
        match guess {
            Some(meaning) if meaning.kind == Kind::Tool => Ok(meaning.clone()),
            Some(meaning) => Ok(runs(meaning.kind)),
            None => bail!(
                "{}: the shipped catalogue does not know this name: say what it is with --tool ID or --runs KIND",
                escape::text(&path.display().to_string())
            ),
        }
    }
}

/// Fingerprint and size. Nothing but a regular file is read; opening a FIFO must not wait.
fn of(path: &Path) -> anyhow::Result<(u64, u64)> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let mut file: File = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("not a regular file");
    }
    Ok((fingerprint::of_file(&mut file, metadata.len())?, metadata.len()))
}

/// One entry as the catalogue reads it.
fn toml(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    writeln!(out, "[[fingerprint]]")?;
    for (key, value) in [("tool", &entry.tool), ("runs", &entry.runs)] {
        if let Some(value) = value {
            writeln!(out, "{key} = {}", escape::toml_string(value))?;
        }
    }
    writeln!(out, "value = {}", escape::toml_string(&entry.value))?;
    writeln!(out, "note = {}\n", escape::toml_string(&entry.note))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn args(files: &[PathBuf]) -> Args {
        Args { files: files.to_vec(), tool: None, runs: None, note: None }
    }

    fn file(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn the_catalogue_reads_what_is_printed() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::shipped().unwrap();
        let files = [
            file(directory.path(), "nc.openbsd", "nc"),
            file(directory.path(), "dash", "sh"),
            file(directory.path(), "busybox", "box"),
        ];
        let hostile = Args { note: Some("a \"note\" \\ \u{202e}\u{1b}[2J\u{e0041}\n".into()), ..args(&files) };
        let mut text = Vec::new();
        for entry in hostile.entries(&catalog).unwrap() {
            toml(&mut text, &entry).unwrap();
        }
        let text = String::from_utf8(text).unwrap();
        assert!(!text.chars().any(|c| c != '\n' && escape::is_deceptive(c)), "{text}");
        let read: toml::Table = toml::from_str(&text).unwrap();
        assert!(read["fingerprint"][0]["note"].as_str().unwrap().starts_with(hostile.note.as_ref().unwrap()));
        let catalog = catalog.with("c.toml", &text).unwrap();
        let meaning = |path: &Path| catalog.meaning_of_fingerprint(of(path).unwrap().0).unwrap().clone();
        assert_eq!(meaning(&files[0]), Meaning { kind: Kind::Tool, id: "nc".into() });
        assert_eq!(meaning(&files[1]).kind, Kind::Shell);
        assert_eq!(meaning(&files[2]).kind, Kind::Multicall);
    }

    #[test]
    fn a_files_own_name_says_more_than_a_links() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::shipped().unwrap();
        let link = |name: &str, to: &Path| {
            let link = directory.path().join(name);
            symlink(to, &link).unwrap();
            link
        };
        let to_box = link("nslookup", &file(directory.path(), "busybox", "box"));
        let to_other = link("curl", &file(directory.path(), "curl-8.1-x86_64", "curl"));
        let entries = args(&[to_box, to_other]).entries(&catalog).unwrap();
        assert_eq!((entries[0].tool.as_deref(), entries[0].runs.as_deref()), (None, Some("multicall")));
        assert_eq!((entries[1].tool.as_deref(), entries[1].runs.as_deref()), (Some("curl"), None));
    }

    #[test]
    fn every_error_tells_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::shipped().unwrap();
        let error = |args: &Args| format!("{:#}", args.entries(&catalog).unwrap_err());
        let unknown = args(&[file(directory.path(), "agent", "x")]);
        assert!(error(&unknown).contains("--tool ID or --runs KIND"));
        let named = Args { tool: Some("acme".into()), ..unknown };
        assert_eq!(named.entries(&catalog).unwrap()[0].tool.as_deref(), Some("acme"));
        assert!(error(&args(&[directory.path().to_owned()])).contains("not a regular file"));
        assert!(error(&args(&["/nonexistent".into()])).contains("No such file"));
        let twins = args(&[file(directory.path(), "nc", "box"), file(directory.path(), "wget", "box")]);
        assert!(error(&twins).contains("--runs multicall"), "{}", error(&twins));
        let fifo = directory.path().join("nc.traditional");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        assert!(error(&args(&[fifo])).contains("not a regular file"));
    }
}
