//! The story around a signal or a container: what triage asks, answered in one piece.
//!
//! | module | idea |
//! |---|---|
//! | [`processes`] | the tree of the images that the container's signals know |
//! | [`timeline`] | everything that happened, by time |
//! | [`related`] | signals of other containers that have something in common with it |
//! | [`next_steps`] | what a person may do now |
//!
//! All but this module is pure: signals in, messages out. What is told is bounded, so that the answer stays below what clients
//! take (4 MB).

mod next_steps;
mod processes;
mod related;
mod timeline;

use std::time::Duration;

use portcullis_proto::v1::{Container, Endpoint, GetStoryResponse, Signal};

use self::{processes::Processes, related::Common};
use crate::{
    clock::{at, ns},
    store::{Store, StoreError, habits::Workload, story::Around},
};

/// Signals of the container that are told.
const SIGNALS: usize = 200;

/// What a story is about.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A signal.
    Signal(Box<Signal>),
    /// All that a container has done; its id.
    Container(String),
}

/// Tells a story; `None` if nothing is known of its subject. `container`: as it is now, if the node still knows it.
pub async fn story(
    store: &Store,
    subject: Subject,
    container: Option<Container>,
    window: Duration,
) -> Result<Option<GetStoryResponse>, StoreError> {
    let window = i64::try_from(window.as_nanos()).unwrap_or(i64::MAX);
    let readers = store.readers();
    let (signal, id, first, last, moment) = match subject {
        Subject::Signal(signal) => {
            let id = signal.container.as_ref().map(|container| container.id.clone()).unwrap_or_default();
            let (first, last) = (ns(signal.time.as_ref()), ns(signal.last_time.as_ref()));
            (Some(*signal), id, first, last.max(first), first)
        }
        Subject::Container(id) => match readers.first_and_newest_of(id.clone()).await? {
            Some((first, newest)) => {
                let end = ns(newest.last_time.as_ref()).max(ns(newest.time.as_ref()));
                (None, id, ns(first.time.as_ref()), end, ns(newest.time.as_ref()))
            }
            None if container.is_none() => return Ok(None),
            None => {
                let created = container.as_ref().map_or(0, |container| ns(container.created.as_ref()));
                (None, id, created, created, created)
            }
        },
    };
    let around = Around {
        container_id: id,
        since_ns: first.saturating_sub(window),
        moment_ns: moment,
        until_ns: last.saturating_add(window),
    };
    let near = readers.near(around.clone(), SIGNALS).await?;
    let (signals, omitted) = nearest(near.before, near.after, near.total, signal.as_ref());
    let common = Common::of(&signals, signal.as_ref());
    let related = readers.elsewhere(around.clone(), common, Common::consider).await?.into_list();
    let container = container.or_else(|| signals.last().and_then(|signal| signal.container.clone()));
    let habits = match container.as_ref().and_then(Workload::of) {
        Some(workload) => readers.habits(workload).await?,
        None => Vec::new(),
    };
    let processes = Processes::new(&signals);
    let timeline = timeline::timeline(&signals, &processes, container.as_ref());
    let next_steps = next_steps::next_steps(&signals, signal.as_ref(), container.as_ref(), &related);
    Ok(Some(GetStoryResponse {
        signal,
        container,
        since: Some(at(around.since_ns)),
        until: Some(at(around.until_ns)),
        signals,
        signals_omitted: omitted,
        processes: processes.into_list(),
        timeline,
        related,
        habits,
        next_steps,
    }))
}

/// Of those before and after, both nearest first, so many that [`SIGNALS`] are told; oldest first. The subject is among them.
fn nearest(before: Vec<Signal>, after: Vec<Signal>, total: u64, subject: Option<&Signal>) -> (Vec<Signal>, u64) {
    let half = SIGNALS / 2;
    let of_before = before.len().min(SIGNALS.saturating_sub(after.len().min(half)));
    let of_after = after.len().min(SIGNALS.saturating_sub(of_before));
    let mut signals: Vec<_> = before.into_iter().take(of_before).chain(after.into_iter().take(of_after)).collect();
    if let Some(subject) = subject {
        signals.retain(|signal| signal.id != subject.id);
        signals.push(subject.clone());
    }
    signals.sort_by_key(|signal| (ns(signal.time.as_ref()), signal.id));
    let told = signals.len() as u64;
    (signals, total.saturating_sub(told))
}

/// Address and port, for people.
fn endpoint(endpoint: &Endpoint) -> String {
    let (open, close) = if endpoint.address.contains(':') { ("[", "]") } else { ("", "") };
    format!("{open}{}{close}:{}", endpoint.address, endpoint.port)
}

#[cfg(any(test, fuzzing))]
pub mod testing;

#[cfg(test)]
mod tests {
    use super::{testing::signal, *};

    #[test]
    fn the_nearest_are_told_and_the_subject_always() {
        let of = |ids: std::ops::RangeInclusive<u64>| -> Vec<Signal> {
            ids.map(|id| signal(id, 9, "nc", &["nc"])).collect()
        };
        let ids = |signals: &[Signal]| (signals.len(), signals.first().unwrap().id, signals.last().unwrap().id);
        let before: Vec<_> = of(1..=300).into_iter().rev().collect();
        let (signals, omitted) = nearest(before.clone(), of(301..=600), 600, None);
        assert_eq!((ids(&signals), omitted), ((200, 201, 400), 400));
        let (signals, omitted) = nearest(before, of(301..=305), 305, Some(&signal(300, 9, "nc", &["nc"])));
        assert_eq!((ids(&signals), omitted), ((200, 106, 305), 105));
        let (signals, omitted) = nearest(Vec::new(), Vec::new(), 0, Some(&signal(7, 9, "nc", &["nc"])));
        assert_eq!((ids(&signals), omitted), ((1, 7, 7), 0));
    }
}
