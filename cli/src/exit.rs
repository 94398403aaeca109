//! Exit codes, and how an error is shown: once, here.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::client::ClientError;

/// Shown by `--help`.
pub const HELP: &str = "Exit codes:
  0  all well; `check`: nothing failed (warnings allowed)
  1  `check`: something failed; `policy validate`: a file is not valid; `policy apply` and `delete`:
     one was refused; not found, or ambiguous; any other error
  2  usage: an option or its value makes no sense
  3  the agent (portcullisd) could not be reached";

/// A check failed, something was not found, or any other error.
pub const FAILED: u8 = 1;
/// The agent could not be reached.
pub const UNREACHABLE: u8 = 3;

/// Shows the error and chooses the code.
pub fn of(error: &anyhow::Error) -> ExitCode {
    // Whoever read our output has seen enough (`| head`). Errors of the agent's connection carry no io::Error here:
    // `ClientError` keeps their text only.
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(closed) {
        return ExitCode::SUCCESS;
    }
    note(&format!("{error:#}"));
    let unreachable = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(ClientError::Unreachable { .. }))
    };
    ExitCode::from(if error.chain().any(unreachable) { UNREACHABLE } else { FAILED })
}

/// A line for the operator, beside the output. Nobody listening is no error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "portcullis: {text}");
}
