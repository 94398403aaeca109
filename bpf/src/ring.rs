//! Reading events. The ring buffer is pinned and so is its read position (the kernel keeps both in the same pages): a
//! reader that restarts goes on where the one before it stopped.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};

use crate::{
    abi::{DecodeError, Event},
    guard::{GuardError, open_map},
    pins::Pins,
};

const MAP: &str = "events";

/// The events of all containers. There must be one reader only.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Opens the pinned ring buffer.
    pub fn open(pins: &Pins) -> Result<Self, GuardError> {
        let ring = open_map(pins, MAP)?.try_into().map_err(|source| GuardError::Map { name: MAP, source })?;
        Ok(Self { ring })
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
