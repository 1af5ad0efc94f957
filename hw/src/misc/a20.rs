//! The A20 line. While it is off, bit 20 of every physical address that a vCPU puts out is 0.
//!
//! The keyboard controller and port 92H both switch it; the last one that writes wins.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// State of the line. Shared by the devices that switch it and the vCPUs.
pub struct A20 {
    on: AtomicBool,
    changed: OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
}

impl A20 {
    /// On, as firmware leaves it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { on: AtomicBool::new(true), changed: OnceLock::new() })
    }

    /// Whether bit 20 is let through.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Switches it.
    pub fn set(&self, on: bool) {
        if self.on.swap(on, Ordering::AcqRel) != on
            && let Some(f) = self.changed.get()
        {
            f(on);
        }
    }

    /// Registers who is told of changes (cached translations of addresses are stale then). Called under a device's lock: it may
    /// set flags, no more. The first registration counts.
    pub fn on_change(&self, f: Box<dyn Fn(bool) + Send + Sync>) {
        let _first_call_wins = self.changed.set(f);
    }
}
