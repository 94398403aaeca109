//! Which image a container was made from.
//!
//! CRI says so in the spec's annotations. For other containers containerd is asked as soon as the record appears, so that
//! the answer is there even when the container lives for milliseconds. A signal whose image is being asked for waits
//! a moment, here and not in the ring buffer's thread.

mod resolver;
mod stage;

pub use self::{
    resolver::resolve_images,
    stage::{Item, Pending, complete_signals},
};
