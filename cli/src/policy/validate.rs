//! `policy validate`.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use portcullis_policy::{catalog::Catalog, source::SourceError, validate::validate, yaml};
use serde::Serialize;

use super::files::{self, CatalogArgs};
use crate::{
    args::Global,
    escape::text,
    exit,
    output::{Format, Sequence, Tone},
    view::Mode,
};

/// Check policy files, and show everything that is wrong with them
///
/// One line an error, `file:line:column: reason`; code 1 if there is any. A file that can't be read as a policy at all has
/// one error; of any other, each rule that makes no sense has one. Works without the agent.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The files; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    catalog: CatalogArgs,
}

/// What `-o json` shows of a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    file: String,
    valid: bool,
    /// The policy's, when the file is valid.
    name: Option<String>,
    mode: Option<Mode>,
    errors: Vec<Problem>,
}

/// What is wrong, and where; line and column are 0 when it is no place in the file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Problem {
    line: u64,
    column: u64,
    reason: String,
}

impl Args {
    /// Checks them.
    pub fn run(&self, global: &Global) -> anyhow::Result<ExitCode> {
        let catalog = self.catalog.load()?;
        let mut out = BufWriter::new(io::stdout().lock());
        let mut sequence = Sequence::new(global.output == Format::Yaml);
        let mut bad = 0;
        for path in &self.files {
            let report = check(&catalog, path);
            bad += usize::from(!report.valid);
            match global.output {
                Format::Json | Format::Yaml => sequence.push(&mut out, &report)?,
                Format::Table | Format::Wide => lines(&mut out, &report, global)?,
            }
        }
        if matches!(global.output, Format::Json | Format::Yaml) {
            sequence.finish(&mut out)?;
        }
        out.flush()?;
        if bad == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        exit::note(&format!("{bad} of {} files are not valid", self.files.len()));
        Ok(ExitCode::from(exit::FAILED))
    }
}

fn check(catalog: &Catalog, path: &Path) -> Report {
    let file = files::name(path);
    let outcome = match files::read(path) {
        Ok(bytes) => {
            yaml::decode(&file, &bytes).map_err(|error| vec![error]).and_then(|text| validate(catalog, &file, text))
        }
        Err(error) => Err(vec![SourceError { file: file.clone(), line: 0, column: 0, reason: error.to_string() }]),
    };
    match outcome {
        Ok(policy) => Report {
            file,
            valid: true,
            name: Some(policy.metadata.name),
            mode: Some(policy.spec.mode.into()),
            errors: Vec::new(),
        },
        Err(errors) => {
            let problem = |error: SourceError| Problem { line: error.line, column: error.column, reason: error.reason };
            Report { file, valid: false, name: None, mode: None, errors: errors.into_iter().map(problem).collect() }
        }
    }
}

fn lines(out: &mut impl Write, report: &Report, global: &Global) -> io::Result<()> {
    let file = text(&report.file);
    if let (Some(name), Some(mode)) = (&report.name, report.mode) {
        let valid = global.screen().paint(Tone::Good, "valid");
        return writeln!(out, "{file}: {valid}: policy {name}, mode {mode}");
    }
    for Problem { line, column, reason } in &report.errors {
        let reason = global.screen().paint(Tone::Bad, &text(reason));
        match line {
            0 => writeln!(out, "{file}: {reason}")?,
            _ => writeln!(out, "{file}:{line}:{column}: {reason}")?,
        }
    }
    Ok(())
}
