//! What Portcullis looks for and what it does about it: pure logic, no I/O.
//!
//! | module | idea |
//! |---|---|
//! | [`catalog`] | the tools: names, category, ATT&CK techniques, severity (`catalog.toml`) |
//! | [`source`] | the operator's policy files: YAML in, typed policy out, errors with line and column |
//! | [`yaml`] | reading YAML within limits |
//! | `schema` | the policy files' JSON Schema (feature `schema`) |
//! | [`comm`] | executables named by a pattern of their comm |
//! | [`users`] | users by their numbers |
//! | [`text`] | texts that exceptions look for |
//! | [`exceptions`] | what passes although a rule names it |
//! | [`omissions`] | what a rule does not report although it matches |
//! | [`validate`] | everything that is wrong with a policy file |
//! | [`repeat`] | when an execution is told as the repeat of an earlier one |
//! | [`compile`] | catalogue and policy → kernel tables |
//! | [`decide`] | what comes of one execution: as the kernel programs decide it |
//! | [`dns`] | what a DNS tool asks for, from its arguments or a datagram |
//! | [`identity`] | the id that a compiled policy has in the kernel's tables |
//! | [`strictness`] | whether one policy may be taken in another's place without loosening anything |
//! | [`arrange`] | several policies → the order in which they are tried, for the policy set |
//! | [`together`] | what several policies may be together |
//! | [`explain`] | what would come of an execution, and why |
//! | [`glob`] | `*` and `?` |
//! | [`select`] | which containers a policy is for |
//! | [`policyset`] | what the agent publishes and the shim reads: which container gets which policy |
//! | [`record`] | what the shim writes and the agent reads: which container a cgroup id belongs to |
//!
//! The last four are all that the shim needs; the others are behind the feature `source`.
#![forbid(unsafe_code)]

#[cfg(feature = "source")]
pub mod arrange;
#[cfg(feature = "source")]
pub mod catalog;
#[cfg(feature = "source")]
pub mod comm;
#[cfg(feature = "source")]
pub mod compile;
#[cfg(feature = "source")]
pub mod decide;
pub mod dns;
#[cfg(feature = "source")]
pub mod exceptions;
#[cfg(feature = "source")]
pub mod explain;
pub mod glob;
#[cfg(feature = "source")]
pub mod identity;
#[cfg(feature = "source")]
pub mod omissions;
pub mod policyset;
pub mod record;
#[cfg(feature = "source")]
pub mod repeat;
#[cfg(feature = "schema")]
pub mod schema;
pub mod select;
#[cfg(feature = "source")]
pub mod source;
#[cfg(feature = "source")]
pub mod strictness;
#[cfg(feature = "source")]
pub mod text;
#[cfg(feature = "source")]
pub mod together;
#[cfg(feature = "source")]
pub mod users;
#[cfg(feature = "source")]
pub mod validate;
#[cfg(feature = "source")]
pub mod yaml;
