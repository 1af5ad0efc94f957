//! The host side of a character device, as the device sees it.
//!
//! Output: the device calls [`CharBackend::write`], which takes what it can into a bounded queue and returns at once. What
//! it does not take stays in the device, whose guest sees a transmitter that is busy; [`CharFrontend::writable`] tells the
//! device to try again. Input: the backend calls [`CharFrontend::receive`], which takes what the device has room for; what
//! it does not take stays with the backend until [`CharBackend::frontend_ready`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use crate::lock;

/// Something outside that happened on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharEvent {
    /// The peer sent a break.
    Break,
}

/// The host's end: a terminal, a socket, a file.
pub trait CharBackend: Send + Sync {
    /// Takes the first bytes of `data` that fit in the backend's queue and returns how many. Never blocks and never calls
    /// the frontend: the device's lock is held.
    fn write(&self, data: &[u8]) -> usize;
    /// Tells the backend its device. Called once, before the machine runs. Input that came earlier is delivered now.
    fn attach(&self, frontend: Weak<dyn CharFrontend>);
    /// The device has room for input again, after `receive` did not take everything. Never calls the frontend from within.
    fn frontend_ready(&self) {}
    /// The guest holds the line in the break state, or lets it go.
    fn set_break(&self, _on: bool) {}
}

/// The device's end.
pub trait CharFrontend: Send + Sync {
    /// Delivers input; returns how many bytes of `data` were taken.
    fn receive(&self, data: &[u8]) -> usize;
    /// How many bytes `receive` would take now.
    fn can_receive(&self) -> usize;
    /// The backend has room again, after `write` did not take everything.
    fn writable(&self) {}
    /// Something happened on the line.
    fn event(&self, _event: CharEvent) {}
}

/// Takes everything and gives nothing: `-serial null`.
#[derive(Debug, Default)]
pub struct NullBackend;

impl CharBackend for NullBackend {
    fn write(&self, data: &[u8]) -> usize {
        data.len()
    }
    fn attach(&self, _frontend: Weak<dyn CharFrontend>) {}
}

/// A backend in memory, for tests and for programs that talk to the guest themselves.
pub struct MemoryBackend {
    state: Mutex<MemoryState>,
    limit: usize,
}

#[derive(Default)]
struct MemoryState {
    output: VecDeque<u8>,
    frontend: Option<Weak<dyn CharFrontend>>,
}

impl MemoryBackend {
    /// Holds at most `limit` bytes of output that nobody has taken.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limit })
    }

    fn frontend(&self) -> Option<Arc<dyn CharFrontend>> {
        lock(&self.state).frontend.as_ref().and_then(Weak::upgrade)
    }

    /// Takes the output so far.
    pub fn take(&self) -> Vec<u8> {
        let out = lock(&self.state).output.drain(..).collect();
        if let Some(f) = self.frontend() {
            f.writable();
        }
        out
    }

    /// Sends input to the guest; returns how many bytes it took.
    pub fn send(&self, data: &[u8]) -> usize {
        self.frontend().map_or(0, |f| f.receive(data))
    }
}

impl CharBackend for MemoryBackend {
    fn write(&self, data: &[u8]) -> usize {
        let mut s = lock(&self.state);
        let n = data.len().min(self.limit - s.output.len());
        s.output.extend(&data[..n]);
        n
    }
    fn attach(&self, frontend: Weak<dyn CharFrontend>) {
        lock(&self.state).frontend = Some(frontend);
    }
}
