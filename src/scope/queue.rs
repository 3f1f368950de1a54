//! The device, and the order in which it works.

use crate::device::{Machine, Stream};

/// The devices as a call uses them: what is enqueued now comes after what `stream` holds already.
pub struct Queue {
    pub device: Machine,
    /// Of the call that is going on, or of the latest one that named a stream.
    pub stream: Stream,
}

impl Queue {
    pub fn new(device: Machine) -> Self {
        Self { device, stream: Stream::NULL }
    }
}
