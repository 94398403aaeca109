//! The system calls that are left, for all threads.

use seccompiler::apply_filter_all_threads;

use self::compiled::{ABSENT, ALLOWED, LOGGED};
use crate::refusals;

#[allow(clippy::unreadable_literal, reason = "not written to be read")]
mod compiled {
    use seccompiler::sock_filter;
    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

/// What comes of a system call that is not in the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It fails with `EPERM` and is counted.
    Refused,
    /// It is done, and the kernel's log tells of it.
    Logged,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The calls that are refused could not be counted.
    #[error("catching SIGSYS")]
    Handler(#[source] std::io::Error),
    /// The kernel did not take it.
    #[error("the kernel takes no seccomp filter")]
    Kernel(#[from] seccompiler::Error),
}

/// Leaves all threads, those to come too, what the profile names, for good.
pub fn apply(rest: Rest) -> Result<(), FilterError> {
    refusals::catch().map_err(FilterError::Handler)?;
    let profile = match rest {
        Rest::Refused => ALLOWED,
        Rest::Logged => LOGGED,
    };
    // The second would refuse the call that sets the first.
    apply_filter_all_threads(ABSENT)?;
    Ok(apply_filter_all_threads(profile)?)
}
