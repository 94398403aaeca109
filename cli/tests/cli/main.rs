//! The built program against an agent in this process that serves canned data over a real socket.
// For clippy.toml: helpers of tests may unwrap as tests do.
#![cfg(test)]

mod address;
mod check;
mod contain;
mod containers;
mod explain;
mod fingerprint;
mod generated;
mod habits;
mod install;
mod list;
mod mode;
mod policies;
mod policy;
mod report;
mod story;
mod support;
mod triage;
mod watch;
