//! What the agent may ask of the kernel, once it has started: `config/seccomp/portcullisd.json`, compiled when this is built.
//!
//! | module | idea |
//! |---|---|
//! | [`capabilities`] | what root's rights are left, before there are threads |
//! | [`filter`] | the system calls that are left, for all threads |
//! | [`refusals`] | what comes of the others: `EPERM`, and a count |

pub mod capabilities;
pub mod filter;
pub mod refusals;
