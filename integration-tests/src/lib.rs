//! A private Portcullis node for tests: its own containerd, its own agent, its own pins, and the shim between them.
//! Nothing of the machine's own is used or changed.
//!
//! | module | idea |
//! |---|---|
//! | [`command`] | running programs with a time limit |
//! | [`containerd`] | the private containerd, and containers in it |
//! | [`cri`] | pods |
//! | [`cni`] | pods' networks, and what is left of them |
//! | [`collector`] | an OpenTelemetry collector and a store behind it |
//! | [`agent`] | portcullisd: start, kill, restart |
//! | [`node`] | all of it together, and what is left of a container anywhere |
//! | [`signals`] | what `portcullis signals list -o json` shows |
//! | [`mod@eventually`] | retrying until a deadline |
//!
//! The tests are in `tests/node`, and those of faults in `tests/faults`. `scripts/test host` and `scripts/test vm` build everything and run them; both run the
//! same binaries.
#![forbid(unsafe_code)]

pub mod agent;
pub mod cni;
pub mod collector;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod eventually;
pub mod node;
pub mod signals;
