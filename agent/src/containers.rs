//! The containers that the agent knows of: their records and, as it becomes known, their image.
//!
//! The events' thread writes; the API, the image resolver and the stage that completes signals read.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portcullis_policy::{policyset::Mode, record::ContainerRecord, select::IMAGE_NAME};
use portcullis_proto::v1;
use tokio::sync::Notify;

use crate::{
    records::RecordName,
    signal,
    store::{ContainerKey, habits::Workload},
};

/// Containers at most; about 2 kB each. A node runs some hundreds.
const MAX: usize = 16_384;

/// What is known about a container's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// Nobody has asked yet.
    Wanted,
    /// Someone is asking.
    Asked,
    /// This is it.
    Known(String),
    /// containerd knows of none.
    None,
    /// containerd did not answer; it is asked again later.
    Unanswered,
}

impl Image {
    /// Its name, if it is known.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Known(name) => Some(name),
            _ => None,
        }
    }
}

/// The policy that a container is under, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The policy's name.
    pub policy: String,
    /// See [`portcullis_policy::policyset::Choice::policy_reason`].
    pub policy_reason: String,
    /// The mode in force.
    pub mode: Mode,
    /// See [`portcullis_policy::policyset::Choice::mode_reason`].
    pub mode_reason: String,
    /// Whether it is guarded by the programs of another version of Portcullis, under the policies of the agent of that version:
    /// later changes do not reach it.
    pub left_behind: Option<LeftBehind>,
}

/// What this agent learns of a container that another version's programs guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftBehind {
    /// Everything, as of others.
    Reported,
    /// Nothing: their events are of a form that it does not know.
    Unreported,
}

/// How many there are of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftBehindCount {
    /// See [`LeftBehind::Reported`].
    pub reported: u64,
    /// See [`LeftBehind::Unreported`].
    pub unreported: u64,
}

impl LeftBehindCount {
    /// Counts one.
    pub fn add(&mut self, container: Option<LeftBehind>) {
        match container {
            Some(LeftBehind::Reported) => self.reported += 1,
            Some(LeftBehind::Unreported) => self.unreported += 1,
            None => {}
        }
    }

    /// What a user is told, if there are any.
    pub fn check(self) -> Option<v1::Check> {
        let Self { reported, unreported } = self;
        let (state, effect) = match (reported, unreported) {
            (0, 0) => return None,
            (_, 0) => (v1::check::State::Warning, String::new()),
            _ => (v1::check::State::Failed, format!(", and what happens in {unreported} of them is not reported")),
        };
        Some(v1::Check {
            name: "upgrade".to_owned(),
            state: state.into(),
            detail: format!(
                "{} containers are guarded by another version's programs, as they were before the upgrade: later changes of policies do not reach them{effect}",
                reported + unreported
            ),
            remedy: "start them anew; portcullis containers list -o wide names them".to_owned(),
        })
    }
}

impl Standing {
    /// What the shim chose.
    pub fn of(record: &ContainerRecord) -> Self {
        Self {
            policy: record.policy.clone(),
            policy_reason: record.policy_reason.clone(),
            mode: record.mode,
            mode_reason: record.mode_reason.clone(),
            left_behind: None,
        }
    }
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// What the shim wrote.
    pub record: Arc<ContainerRecord>,
    /// The policy that it is under by now: the record has the one that it began with.
    pub standing: Standing,
    /// Its image.
    pub image: Image,
    /// Seen ended: by its record, or because its cgroup is gone.
    pub ended_ns: Option<u64>,
}

impl Container {
    /// Its workload, once its image is known.
    pub fn workload(&self) -> Option<Workload> {
        self.image.name().and_then(|_| Workload::of(&signal::container_message(self)))
    }
}

/// The table. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Containers {
    table: Arc<Mutex<HashMap<RecordName, Container>>>,
    images: Arc<Notify>,
    wanted: Arc<Notify>,
}

/// What a record was to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// A container not seen before.
    New,
    /// Known already, now perhaps ended.
    Known,
    /// The table is full.
    Full,
}

/// The key of a record's container.
pub fn key(record: &ContainerRecord) -> ContainerKey {
    ContainerKey {
        namespace: record.containerd_namespace.clone(),
        id: record.container_id.clone(),
        created_ns: record.created_ns,
    }
}

impl Containers {
    fn table(&self) -> MutexGuard<'_, HashMap<RecordName, Container>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record in.
    pub fn insert(&self, name: RecordName, record: ContainerRecord) -> Inserted {
        let mut table = self.table();
        let ended_ns = record.ended_ns;
        let full = table.len() >= MAX;
        match table.get_mut(&name) {
            Some(known) if known.record.created_ns == record.created_ns => {
                known.ended_ns = known.ended_ns.or(ended_ns);
                known.record = Arc::new(record);
                return Inserted::Known;
            }
            None if full => return Inserted::Full,
            // New, or another container in the place of one that has ended.
            _ => {}
        }
        // By CRI's annotation the image's name is known at once.
        let image = match record.annotations.get(IMAGE_NAME) {
            Some(image) if !image.is_empty() => Image::Known(image.clone()),
            _ => Image::Wanted,
        };
        let wanted = image == Image::Wanted;
        let standing = Standing::of(&record);
        table.insert(name, Container { record: Arc::new(record), standing, image, ended_ns });
        drop(table);
        if wanted {
            self.wanted.notify_one();
        }
        Inserted::New
    }

    /// One container.
    pub fn get(&self, name: &RecordName) -> Option<Container> {
        self.table().get(name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<RecordName, Container> {
        self.table().iter().map(|(name, container)| (name.clone(), container.clone())).collect()
    }

    /// Notes that a container is gone although its record does not say so.
    pub fn mark_ended(&self, name: &RecordName, ended_ns: u64) {
        if let Some(container) = self.table().get_mut(name) {
            container.ended_ns.get_or_insert(ended_ns);
        }
    }

    /// Forgets a container.
    pub fn remove(&self, name: &RecordName) {
        self.table().remove(name);
    }

    /// Takes a container whose image is wanted.
    pub fn ask_image(&self) -> Option<(RecordName, Arc<ContainerRecord>)> {
        let mut table = self.table();
        let (name, container) = table.iter_mut().find(|(_, container)| container.image == Image::Wanted)?;
        container.image = Image::Asked;
        Some((name.clone(), Arc::clone(&container.record)))
    }

    /// The answer to [`Self::ask_image`].
    pub fn set_image(&self, name: &RecordName, created_ns: u64, image: Image) {
        if let Some(container) = self.table().get_mut(name)
            && container.record.created_ns == created_ns
        {
            container.image = image;
        }
        self.images.notify_one();
    }

    /// The container is under another policy or mode by now.
    pub fn set_standing(&self, name: &RecordName, created_ns: u64, standing: Standing) {
        if let Some(container) = self.table().get_mut(name)
            && container.record.created_ns == created_ns
        {
            container.standing = standing;
        }
    }

    /// Asks again for the images of running containers about which containerd did not answer.
    pub fn want_unanswered_images(&self) {
        let mut again = false;
        for container in self.table().values_mut() {
            if container.image == Image::Unanswered && container.ended_ns.is_none() {
                container.image = Image::Wanted;
                again = true;
            }
        }
        if again {
            self.wanted.notify_one();
        }
    }

    /// Waits until an image may be wanted. For one waiter.
    pub async fn image_wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until there is an answer about an image. For one waiter.
    pub async fn image_answered(&self) {
        self.images.notified().await;
    }
}
