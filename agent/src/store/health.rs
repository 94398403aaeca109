//! Whether the database takes what comes: the writer says so, the API shows it.

use std::sync::{Arc, Mutex, PoisonError};

use portcullis_proto::v1::{Check, check::State};

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The disk is full: new signals take the place of the oldest.
    Full,
    /// The database takes nothing.
    Failing {
        /// What SQLite said.
        reason: String,
        /// Signals that were dropped for it.
        dropped: u64,
    },
}

/// The state. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Option<Trouble>>>);

impl Health {
    /// What is wrong now.
    pub fn trouble(&self) -> Option<Trouble> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, trouble: Option<Trouble>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// For the status.
    pub fn check(&self) -> Check {
        let (state, detail, remedy) = match self.trouble() {
            None => (State::Ok, "the database takes every signal".to_owned(), String::new()),
            Some(Trouble::Full) => (
                State::Warning,
                "the disk of the database is full: new signals take the place of the oldest".to_owned(),
                "free space on the file system of state_dir; the agent goes on by itself".to_owned(),
            ),
            Some(Trouble::Failing { reason, dropped }) => (
                State::Failed,
                format!("the database takes no signals, {dropped} were dropped: {reason}"),
                "free space on the file system of state_dir, or make it writable; the agent goes on by itself"
                    .to_owned(),
            ),
        };
        Check { name: "store".to_owned(), state: state.into(), detail, remedy }
    }
}
