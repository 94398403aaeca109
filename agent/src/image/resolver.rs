//! Asks for the images that the table of containers wants.

use std::{sync::Arc, time::Duration};

use portcullis_policy::record::ContainerRecord;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use crate::{
    containerd::Containerd,
    containers::{self, Container, Containers, Image},
    counters::Counters,
    enforcement::Enforcement,
    store::{Command, Sender, Store},
};

/// Questions at a time.
const PARALLEL: usize = 8;
/// containerd may be restarting.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// Works until it is dropped.
pub async fn resolve_images(
    containers: Containers,
    enforcement: Enforcement,
    sender: Sender,
    store: Store,
    counters: Arc<Counters>,
) {
    let permits = Arc::new(Semaphore::new(PARALLEL));
    let mut questions = JoinSet::new();
    loop {
        containers.image_wanted().await;
        while let Some((name, record)) = containers.ask_image() {
            while questions.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let (containers, enforcement, sender) = (containers.clone(), enforcement.clone(), sender.clone());
            let (store, counters) = (store.clone(), Arc::clone(&counters));
            questions.spawn(async move {
                let _permit = permit;
                let image = resolve(&record, &sender, &store, &counters).await;
                containers.set_image(&name, record.created_ns, image);
                if let Some(workload) = containers.get(&name).as_ref().and_then(Container::workload) {
                    // Fails only when the store is closing.
                    let _ = sender.send(Command::Workload(workload, record.created_ns)).await;
                }
                // Another policy may select it now.
                enforcement.apply(&name);
            });
        }
    }
}

async fn resolve(record: &ContainerRecord, sender: &Sender, store: &Store, counters: &Counters) -> Image {
    let key = containers::key(record);
    match store.readers().image(key.clone()).await {
        Ok(Some(image)) => return Image::Known(image),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "the stored image of a container can't be read"),
    }
    if record.containerd_address.is_empty() {
        return Image::None;
    }
    for attempt in 1..=ATTEMPTS {
        let containerd = Containerd { address: &record.containerd_address, namespace: &record.containerd_namespace };
        match containerd.image(&record.container_id).await {
            Ok(Some(image)) => {
                // Fails only when the store is closing.
                let _ = sender.send(Command::Image(key, image.clone())).await;
                return Image::Known(image);
            }
            Ok(None) => return Image::None,
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::debug!(
                    error = format!("{error:#}"),
                    container = ?record.container_id,
                    attempt,
                    "containerd did not say which image a container has"
                );
            }
        }
        if attempt < ATTEMPTS {
            sleep(PAUSE).await;
        }
    }
    counters.images_unanswered.increment();
    Image::Unanswered
}
