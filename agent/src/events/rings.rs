//! The ring buffers: this version's, and those of other versions whose programs guard containers that were there before the
//! agent was exchanged.

use std::os::fd::AsFd;

use portcullis_bpf::{
    guard::GuardError,
    pins::Pins,
    ring::{Activities, Events},
};
use rustix::event::{PollFd, PollFlags};

/// What one version's programs write.
pub struct Ring {
    pins: Pins,
    pub events: Events,
    pub activities: Activities,
    /// What is of an earlier time has been read, but for what was on its way into it. `CLOCK_BOOTTIME`.
    pub read_to_ns: u64,
}

impl Ring {
    fn open(pins: &Pins) -> Result<Self, GuardError> {
        Ok(Self { pins: pins.clone(), events: Events::open(pins)?, activities: Activities::open(pins)?, read_to_ns: 0 })
    }
}

/// All of them.
#[derive(Default)]
pub struct Rings(Vec<Ring>);

impl Rings {
    /// Opens this version's, and those of others that can be read.
    pub fn open(own: &Pins, others: &[Pins]) -> Result<Self, GuardError> {
        let mut rings = vec![Ring::open(own)?];
        for pins in others {
            let ring = pins.are_readable().then(|| Ring::open(pins)).transpose();
            match ring {
                Ok(Some(ring)) => rings.push(ring),
                Ok(None) => tracing::warn!(
                    pins = %pins.directory().display(),
                    "the events of another version's programs can't be read: containers that they guard are enforced and not reported; start them anew"
                ),
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(pins = %pins.directory().display(), error = format!("{error:#}"), "the events of another version's programs can't be read");
                }
            }
        }
        Ok(Self(rings))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Ring> {
        self.0.iter_mut()
    }

    /// The least of all [`Ring::read_to_ns`].
    pub fn read_to_ns(&self) -> u64 {
        self.0.iter().map(|ring| ring.read_to_ns).min().unwrap_or_default()
    }

    /// What becomes readable when there is something to read.
    pub fn poll(&self) -> impl Iterator<Item = PollFd<'_>> {
        let fds = self.0.iter().flat_map(|ring| [ring.events.as_fd(), ring.activities.as_fd()]);
        fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
    }

    /// No more of these are read: nothing writes to them.
    pub fn close(&mut self, pins: &Pins) {
        self.0.retain(|ring| ring.pins != *pins);
    }
}
