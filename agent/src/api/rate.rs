//! How many calls a user may make: a token bucket each, so that nobody keeps the agent from serving others.
//!
//! As for containers' signals, of a bucket only the moment is kept at which it is full again; a full one is as good as none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::{Request, Status};

use super::peer;
use crate::counters::Counters;

/// Calls at once.
pub const BURST: u32 = 500;
/// Time after which there is one more; in the long run 50 a second.
const REFILL: Duration = Duration::from_millis(20);

/// The buckets. Cheap to clone.
#[derive(Clone)]
pub struct Rate {
    /// By user; `None` has no credentials.
    full_at: Arc<Mutex<HashMap<Option<u32>, Instant>>>,
    counters: Arc<Counters>,
}

impl Rate {
    /// Refused calls are counted.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { full_at: Arc::default(), counters }
    }

    /// Lets a call through, or not.
    pub fn admit(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let uid = peer::caller(&request).map(|caller| caller.uid);
        if self.allow(uid, Instant::now()) {
            return Ok(request);
        }
        self.counters.requests_refused.increment();
        Err(Status::resource_exhausted("this user makes too many calls: 50 a second, or 500 at once, are served"))
    }

    fn allow(&self, uid: Option<u32>, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        full_at.retain(|_, full_at| *full_at > now);
        let then = full_at.get(&uid).copied().unwrap_or(now) + REFILL;
        let allowed = then - now <= REFILL * BURST;
        if allowed {
            full_at.insert(uid, then);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_burst_and_then_a_rate() {
        let rate = Rate::new(Arc::default());
        let start = Instant::now();
        let allowed = |uid, now| (0..2 * BURST).filter(|_| rate.allow(Some(uid), now)).count();
        assert_eq!(allowed(1000, start), 500);
        assert_eq!(allowed(1000, start), 0);
        assert_eq!(allowed(0, start), 500);
        assert_eq!(allowed(1000, start + Duration::from_secs(1)), 50);
        assert_eq!(allowed(1000, start + Duration::from_secs(60)), 500);
        assert!(rate.allow(None, start + Duration::from_secs(120)));
        assert_eq!(rate.full_at.lock().unwrap().len(), 1, "full buckets are forgotten");
    }
}
