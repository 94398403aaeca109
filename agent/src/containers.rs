//! The containers that the agent knows of: their records and, as it becomes known, their image.
//!
//! The events' thread writes; the API, the image resolver and the stage that completes signals read.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use portcullis_policy::{policyset::Mode, record::ContainerRecord, select::IMAGE_NAME};
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
}

impl Standing {
    /// What the shim chose.
    pub fn of(record: &ContainerRecord) -> Self {
        Self {
            policy: record.policy.clone(),
            policy_reason: record.policy_reason.clone(),
            mode: record.mode,
            mode_reason: record.mode_reason.clone(),
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
