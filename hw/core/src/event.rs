//! How a guest asks for power-off or reset.
//!
//! Devices post, the machine's main loop takes. Only the first request counts until it is taken, so a guest that asks a
//! million times costs nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::Duration;

use crate::lock;

/// What the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// Power off (ACPI S5).
    Shutdown,
    /// Reset the machine.
    Reset,
    /// A write to `isa-debug-exit`: end the emulator with this status, already `(value << 1) | 1`.
    DebugExit(u32),
}

#[derive(Default)]
struct Slot {
    event: Mutex<Option<MachineEvent>>,
    pending: AtomicBool,
    posted: Condvar,
    notify: RwLock<Vec<Arc<dyn Fn() + Send + Sync>>>,
}

/// The mailbox for one request. Clones are the same mailbox.
#[derive(Clone, Default)]
pub struct Events(Arc<Slot>);

impl Events {
    /// An empty mailbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a function to be called after a request was posted, from whatever thread posted it and under a device's
    /// lock: it may set flags and wake threads, no more.
    pub fn on_post(&self, f: Arc<dyn Fn() + Send + Sync>) {
        self.0.notify.write().unwrap_or_else(std::sync::PoisonError::into_inner).push(f);
    }

    /// Posts a request unless one is waiting.
    pub fn post(&self, event: MachineEvent) {
        {
            let mut slot = lock(&self.0.event);
            if slot.is_some() {
                return;
            }
            *slot = Some(event);
            self.0.pending.store(true, Ordering::Release);
        }
        self.0.posted.notify_all();
        for f in self.0.notify.read().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
            f();
        }
    }

    /// Whether a request is waiting; cheap. A vCPU stops executing while this is so.
    #[inline]
    pub fn pending(&self) -> bool {
        self.0.pending.load(Ordering::Acquire)
    }

    /// Takes the request.
    pub fn take(&self) -> Option<MachineEvent> {
        let mut slot = lock(&self.0.event);
        self.0.pending.store(false, Ordering::Release);
        slot.take()
    }

    /// Waits up to `timeout` for a request and takes it.
    pub fn wait(&self, timeout: Duration) -> Option<MachineEvent> {
        let slot = lock(&self.0.event);
        let waited = self.0.posted.wait_timeout_while(slot, timeout, |e| e.is_none());
        let (mut slot, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        self.0.pending.store(false, Ordering::Release);
        slot.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn keeps_the_first_request_until_taken() {
        let events = Events::new();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        events.on_post(Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(!events.pending());
        events.post(MachineEvent::DebugExit(7));
        events.post(MachineEvent::Reset);
        assert!(events.pending());
        assert_eq!(events.wait(Duration::from_secs(1)), Some(MachineEvent::DebugExit(7)));
        assert!(!events.pending());
        assert_eq!(events.take(), None);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
