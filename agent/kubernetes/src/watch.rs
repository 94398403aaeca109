//! Following the API server: what it says, when the files are changed, and when the status is set.

use std::{collections::BTreeMap, fs, path::PathBuf, pin::pin, time::Duration};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use jiff::Timestamp;
use kube::{
    Api,
    core::DynamicObject,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    directory::Directory,
    object::Object,
    plan::{Plan, Verdict, plan},
    status::{self, Said},
};

/// After the last of several changes, for how long nothing may happen before the files are changed.
const QUIET: Duration = Duration::from_millis(200);
/// Files are looked at again at least so often: somebody may have changed them, or the catalogue.
const AGAIN: Duration = Duration::from_secs(60);
/// Nodes wait for a part of this before they set a status, so that most find it set by another.
const TURN: Duration = Duration::from_secs(3);
/// After a failure to set a status.
const RETRY: Duration = Duration::from_secs(30);
/// Objects that are kept in memory, of 1 MiB each at most. 256 can be in force.
const OBJECTS_MAX: usize = 1024;

/// What was told so far.
#[derive(Debug, Default)]
struct Seen {
    objects: BTreeMap<String, Object>,
    /// A list that has not come to its end.
    arriving: BTreeMap<String, Object>,
    /// There was a whole list.
    complete: bool,
}

impl Seen {
    /// Whether the objects may be others than before.
    fn take(&mut self, event: Event<DynamicObject>) -> bool {
        match event {
            Event::Init => self.arriving.clear(),
            Event::InitApply(object) => insert(&mut self.arriving, object),
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.arriving);
                self.complete = true;
                return true;
            }
            Event::Apply(object) => insert(&mut self.objects, object),
            Event::Delete(object) => {
                self.objects.remove(&object.metadata.name.unwrap_or_default());
            }
        }
        // While a list arrives the one before holds.
        self.complete && self.arriving.is_empty()
    }
}

fn insert(objects: &mut BTreeMap<String, Object>, object: DynamicObject) {
    let object = Object::from(object);
    // One beyond the limit shows that it is passed.
    if objects.len() <= OBJECTS_MAX || objects.contains_key(&object.name) {
        objects.insert(object.name.clone(), object);
    }
}

/// Keeps a directory and the objects' status in step with the objects.
pub struct Follower {
    api: Api<DynamicObject>,
    directory: Directory,
    /// There while everything is in step.
    ready_file: Option<PathBuf>,
    seen: Seen,
    verdicts: BTreeMap<String, Verdict>,
    said: Said,
    /// Why the API server can't be followed.
    silent: Option<String>,
    /// Why the files could not be changed.
    stuck: Option<String>,
    /// Files of others that were complained about.
    broken: Vec<String>,
    ready: Option<bool>,
}

impl Follower {
    /// Nothing is done yet.
    pub fn new(api: Api<DynamicObject>, directory: Directory, ready_file: Option<PathBuf>) -> Self {
        Self {
            api,
            directory,
            ready_file,
            seen: Seen::default(),
            verdicts: BTreeMap::new(),
            said: Said::default(),
            silent: None,
            stuck: None,
            broken: Vec::new(),
            ready: None,
        }
    }

    /// Changes the files to what the API server says now, and leaves it at that.
    pub async fn once(&mut self) -> anyhow::Result<()> {
        let mut events = pin!(watcher(self.api.clone(), watcher::Config::default()).default_backoff());
        while !self.seen.complete {
            self.take(events.next().await.context("the watch has ended")?);
        }
        self.change_files();
        match &self.stuck {
            None => Ok(()),
            Some(reason) => bail!("{reason}"),
        }
    }

    /// Goes on until `end`.
    pub async fn follow(&mut self, end: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut events = pin!(watcher(self.api.clone(), watcher::Config::default()).default_backoff());
        let mut end = pin!(end);
        // Nothing is done before the first whole list.
        let mut files_at: Option<Instant> = None;
        let mut status_at: Option<Instant> = None;
        self.tell_ready();
        loop {
            tokio::select! {
                () = &mut end => break,
                event = events.next() => {
                    if self.take(event.context("the watch has ended")?) {
                        files_at = Some(Instant::now() + QUIET);
                    }
                }
                () = at(files_at), if files_at.is_some() => {
                    self.change_files();
                    files_at = Some(Instant::now() + AGAIN);
                    if status_at.is_none() && self.has_something_to_say() {
                        status_at = Some(Instant::now() + TURN.mul_f32(fastrand::f32()));
                    }
                }
                () = at(status_at), if status_at.is_some() => {
                    let said = self.say().await;
                    status_at = (!said).then(|| Instant::now() + RETRY);
                }
            }
            self.tell_ready();
        }
        self.seen.complete = false;
        self.tell_ready();
        Ok(())
    }

    fn take(&mut self, event: Result<Event<DynamicObject>, watcher::Error>) -> bool {
        match event {
            Ok(event) => {
                if self.silent.take().is_some() {
                    tracing::info!("the API server answers again");
                }
                self.seen.take(event)
            }
            Err(error) => {
                let reason = format!("{:#}", anyhow::Error::from(error));
                if self.silent.as_ref() != Some(&reason) {
                    tracing::error!(
                        reason,
                        remedy = remedy(&reason),
                        "the API server can't be followed; policies stay as they are"
                    );
                }
                self.silent = Some(reason);
                false
            }
        }
    }

    /// Makes the files what they should be; what could not be done is tried again.
    fn change_files(&mut self) {
        let former = self.stuck.take();
        if let Err(error) = self.try_change_files() {
            let reason = format!("{error:#}");
            if former.as_ref() != Some(&reason) {
                tracing::error!(reason, "policies could not be changed; it is tried again every minute");
            }
            self.stuck = Some(reason);
        } else if former.is_some() {
            tracing::info!("policies can be changed again");
        }
    }

    fn try_change_files(&mut self) -> anyhow::Result<()> {
        if self.seen.objects.len() > OBJECTS_MAX {
            bail!("there are more than {OBJECTS_MAX} PortcullisPolicies: delete some");
        }
        let Directory { policies, .. } = &self.directory;
        fs::create_dir_all(policies).with_context(|| format!("creating {}", policies.display()))?;
        let (catalog, found) = (self.directory.catalog()?, self.directory.read()?);
        let Plan { changes, verdicts, broken } = plan(&catalog, &self.directory, &found, self.seen.objects.values())?;
        for reason in broken.iter().filter(|reason| !self.broken.contains(reason)) {
            tracing::warn!(reason, "the agent takes no policies as long as this file is not right");
        }
        self.broken = broken;
        for (name, verdict) in &verdicts {
            if !verdict.accepted && self.verdicts.get(name) != Some(verdict) {
                let Verdict { reason, message, note, .. } = verdict;
                tracing::warn!(policy = name, reason, message, "not taken: {note}");
            }
        }
        self.verdicts = verdicts;
        // Removed first: a name may be free then.
        let (gone, written): (Vec<_>, Vec<_>) = changes.iter().partition(|(_, text)| text.is_none());
        for (name, text) in gone.into_iter().chain(written) {
            self.directory.change(name, text.as_deref())?;
            tracing::info!(policy = name, "{}", if text.is_some() { "written" } else { "removed" });
        }
        Ok(())
    }

    fn has_something_to_say(&mut self) -> bool {
        let objects = &self.seen.objects;
        self.said.retain(|uid| objects.values().any(|object| object.uid == uid));
        let now = Timestamp::now();
        let mut pairs = self.verdicts.iter().filter_map(|(name, verdict)| Some((objects.get(name)?, verdict)));
        pairs.any(|(object, verdict)| self.said.next(object, verdict, now).is_some())
    }

    /// Sets the status of those objects where it still says something else. Whether all could be set.
    async fn say(&mut self) -> bool {
        let mut all = true;
        for (name, verdict) in &self.verdicts {
            let Some(object) = self.seen.objects.get(name) else { continue };
            let Some(condition) = self.said.next(object, verdict, Timestamp::now()) else { continue };
            match status::say(&self.api, object, &condition).await {
                Ok(_) => self.said.note(object, condition),
                Err(error) => {
                    let reason = format!("{:#}", anyhow::Error::from(error));
                    tracing::warn!(
                        policy = name,
                        reason,
                        remedy = remedy(&reason),
                        "its status could not be set; it is tried again"
                    );
                    all = false;
                }
            }
        }
        all
    }

    /// Whether the files are what the API server says, as far as that makes sense.
    fn tell_ready(&mut self) {
        let ready = self.seen.complete && self.silent.is_none() && self.stuck.is_none();
        let Some(path) = self.ready_file.as_ref().filter(|_| self.ready != Some(ready)) else { return };
        let told = if ready { fs::write(path, "") } else { fs::remove_file(path) };
        match told {
            Err(error) if ready => {
                tracing::warn!(%error, path = %path.display(), "the file for readiness can't be written");
            }
            _ => self.ready = Some(ready),
        }
    }
}

/// Never, if there is nothing to wait for.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What to do about what the API server has said.
fn remedy(reason: &str) -> &'static str {
    if reason.contains("404") || reason.contains("NotFound") {
        "install the custom resource definition portcullispolicies.portcullis.dev"
    } else if reason.contains("forbidden") || reason.contains("Forbidden") {
        "let this service account get, list and watch portcullispolicies, and patch portcullispolicies/status"
    } else {
        "see that the API server can be reached from this node"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::resource;

    fn object(name: &str) -> DynamicObject {
        DynamicObject::new(name, &resource()).data(json!({ "spec": {} }))
    }

    fn names(seen: &Seen) -> Vec<&str> {
        seen.objects.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_list_counts_when_it_is_whole() {
        let mut seen = Seen::default();
        assert!(!seen.take(Event::Init) && !seen.take(Event::InitApply(object("a"))) && !seen.complete);
        assert!(seen.take(Event::InitDone) && seen.complete);
        assert!(seen.take(Event::Apply(object("b"))));
        assert_eq!(names(&seen), ["a", "b"]);
        // The watch begins anew: what is not in the new list is gone, but not before its end.
        seen.take(Event::Init);
        assert!(!seen.take(Event::InitApply(object("b"))));
        assert_eq!(names(&seen), ["a", "b"]);
        assert!(seen.take(Event::InitDone));
        assert_eq!(names(&seen), ["b"]);
        assert!(seen.take(Event::Delete(object("b"))));
        assert!(names(&seen).is_empty());
    }

    #[test]
    fn no_more_objects_are_kept_than_show_that_there_are_too_many() {
        let mut seen = Seen::default();
        seen.take(Event::Init);
        for number in 0..OBJECTS_MAX + 10 {
            seen.take(Event::InitApply(object(&format!("p{number}"))));
        }
        seen.take(Event::InitDone);
        assert_eq!(seen.objects.len(), OBJECTS_MAX + 1);
    }
}
