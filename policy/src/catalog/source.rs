//! A catalogue file as it is written, and errors with the place in it.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use toml::Spanned;

use super::{Kind, Severity};

/// A catalogue file that can't be used. The message names file, line, column and the rule broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {reason}")]
pub struct CatalogError {
    /// The file, as the caller named it.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub reason: String,
}

/// A file being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

impl File<'_> {
    pub fn parse(&self) -> Result<Source, CatalogError> {
        toml::from_str(self.text).map_err(|error| {
            let reason = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            self.error(error.span().unwrap_or_default(), reason)
        })
    }

    /// An error at a place of the text.
    pub fn error(&self, span: Range<usize>, reason: impl Into<String>) -> CatalogError {
        let before = self.text.get(..span.start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        CatalogError {
            file: self.name.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            reason: reason.into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    #[serde(default)]
    pub category: BTreeMap<String, Spanned<Category>>,
    #[serde(default)]
    pub multicall: BTreeMap<String, Spanned<Multicall>>,
    #[serde(default)]
    pub loader: Loader,
    #[serde(default)]
    pub shell: Names,
    #[serde(default)]
    pub interpreter: Names,
    #[serde(default)]
    pub fingerprint: Vec<Spanned<Fingerprint>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Category {
    pub title: Option<String>,
    pub severity: Option<Severity>,
    pub techniques: Option<Vec<String>>,
    #[serde(default)]
    pub tools: BTreeMap<String, Spanned<Tool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tool {
    pub names: Option<Vec<Spanned<String>>>,
    pub severity: Option<Severity>,
    pub techniques: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Multicall {
    pub names: Option<Vec<Spanned<String>>>,
    pub prefix: Spanned<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Loader {
    #[serde(default)]
    pub names: Vec<Spanned<String>>,
    #[serde(default)]
    pub value_options: Vec<Spanned<String>>,
    #[serde(default)]
    pub argv0_options: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Names {
    #[serde(default)]
    pub names: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fingerprint {
    pub tool: Option<Spanned<String>>,
    pub runs: Option<Runs>,
    pub value: Spanned<String>,
    /// For people.
    #[serde(default)]
    #[allow(dead_code)]
    note: String,
}

/// What a program that is no tool does with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Runs {
    Multicall,
    Loader,
    Shell,
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
