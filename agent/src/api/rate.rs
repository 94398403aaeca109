//! How many calls a user may make: a token bucket each, so that nobody keeps the agent from serving others. Who makes one call
//! after the other only has to wait; refused is who does not wait for the answers.
//!
//! As for containers' signals, of a bucket only the moment is kept at which it is full again; a full one is as good as none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::{
    Status,
    codegen::{BoxFuture, http},
};
use tower::{BoxError, filter::AsyncPredicate};

use super::peer::{self, User};
use crate::counters::Counters;

/// Calls at once.
pub const BURST: u32 = 500;
/// Time after which there is one more; in the long run 50 a second.
const REFILL: Duration = Duration::from_millis(20);
/// Calls that wait for their turn.
pub const WAITING: u32 = 100;

/// The buckets. Cheap to clone.
#[derive(Clone)]
pub struct Rate {
    full_at: Arc<Mutex<HashMap<User, Instant>>>,
    counters: Arc<Counters>,
}

impl Rate {
    /// Refused calls are counted.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { full_at: Arc::default(), counters }
    }

    /// How long a call has to wait; none that may not be made.
    fn turn(&self, user: User, now: Instant) -> Option<Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        full_at.retain(|_, full_at| *full_at > now);
        let then = full_at.get(&user).copied().unwrap_or(now) + REFILL;
        let wait = (then - now).saturating_sub(REFILL * BURST);
        let allowed = wait <= REFILL * WAITING;
        if allowed {
            full_at.insert(user, then);
        }
        allowed.then_some(wait)
    }
}

/// Of tower's filters.
impl<B: Send + 'static> AsyncPredicate<http::Request<B>> for Rate {
    type Future = BoxFuture<Self::Request, BoxError>;
    type Request = http::Request<B>;

    fn check(&mut self, request: http::Request<B>) -> Self::Future {
        let Some(wait) = self.turn(peer::user(request.extensions()), Instant::now()) else {
            self.counters.requests_refused.increment();
            let refusal =
                Status::resource_exhausted("this user makes too many calls: 50 a second, or 500 at once, are served");
            return Box::pin(async { Err(refusal.into()) });
        };
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            Ok(request)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_burst_and_then_a_rate() {
        let rate = Rate::new(Arc::default());
        let start = Instant::now();
        // At once, after a wait, and not at all.
        let calls = |uid, now| {
            let turns: Vec<_> = (0..2 * BURST).map(|_| rate.turn(User::Uid(uid), now)).collect();
            [
                turns.iter().filter(|turn| turn.is_some_and(|wait| wait.is_zero())).count(),
                turns.iter().flatten().count(),
            ]
        };
        assert_eq!(calls(1000, start), [500, 600]);
        assert_eq!(calls(1000, start), [0, 0]);
        assert_eq!(calls(0, start), [500, 600]);
        assert_eq!(calls(1000, start + Duration::from_secs(1)), [0, 50]);
        assert_eq!(calls(1000, start + Duration::from_secs(60)), [500, 600]);
        assert_eq!(rate.turn(User::Unlisted, start + Duration::from_secs(120)), Some(Duration::ZERO));
        assert_eq!(rate.full_at.lock().unwrap().len(), 1, "full buckets are forgotten");
    }

    #[test]
    fn who_waits_for_the_answers_is_never_refused() {
        let rate = Rate::new(Arc::default());
        let start = Instant::now();
        let mut now = start;
        for _ in 0..5 * BURST {
            now += rate.turn(User::Uid(1000), now).unwrap();
        }
        assert_eq!(now - start, REFILL * 4 * BURST);
    }
}
