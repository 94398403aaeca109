//! Reading events, and what reported processes do. A ring buffer is pinned and so is its read position (the kernel keeps both in the same pages): a
//! reader that restarts goes on where the one before it stopped.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};

use crate::{
    abi::{Activity, DecodeError, Event},
    guard::{GuardError, open_map},
    pins::Pins,
};

const EVENTS: &str = "events";
const ACTIVITIES: &str = "activities";

fn open(pins: &Pins, name: &'static str) -> Result<RingBuf<MapData>, GuardError> {
    open_map(pins, name)?.try_into().map_err(|source| GuardError::Map { name, source })
}

/// The events of all containers. There must be one reader only.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Opens the pinned ring buffer.
    pub fn open(pins: &Pins) -> Result<Self, GuardError> {
        Ok(Self { ring: open(pins, EVENTS)? })
    }

    /// The next event, `None` when there is none for now. A record that can't be decoded is consumed all the same.
    pub fn next_event(&mut self) -> Option<Result<Event, DecodeError>> {
        self.ring.next().map(|record| Event::decode(&record))
    }
}

/// Readable when there are events.
impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// What reported processes do on the network. There must be one reader only.
pub struct Activities {
    ring: RingBuf<MapData>,
}

impl Activities {
    /// Opens the pinned ring buffer.
    pub fn open(pins: &Pins) -> Result<Self, GuardError> {
        Ok(Self { ring: open(pins, ACTIVITIES)? })
    }

    /// The next one, `None` when there is none for now. A record that can't be decoded is consumed all the same.
    pub fn next_activity(&mut self) -> Option<Result<Activity, DecodeError>> {
        self.ring.next().map(|record| Activity::decode(&record))
    }
}

/// Readable when there are any.
impl AsFd for Activities {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
