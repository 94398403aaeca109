//! Retrying until a deadline: for what another process does in its own time.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context;

/// Generous: an emulated machine beside a busy one is slow, and a test that passes does not wait for it.
pub const DEADLINE: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(100);

/// Calls until the answer is `Ok`; at the deadline, the last error is the error.
pub fn eventually<T>(attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    within(DEADLINE, attempt)
}

/// The same with a deadline of its own.
pub fn within<T>(deadline: Duration, mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if start.elapsed() >= deadline => {
                return Err(error).with_context(|| format!("still so after {} s", deadline.as_secs()));
            }
            Err(_) => sleep(PAUSE),
            done => return done,
        }
    }
}
