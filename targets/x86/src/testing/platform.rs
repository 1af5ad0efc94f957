//! A machine without anything in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::platform::Platform;

/// No APIC, no ports, a stopped clock.
#[derive(Default)]
pub struct NoPlatform {
    /// Set from outside, it makes the CPU stop at its next poll.
    pub stop: Arc<AtomicBool>,
}

impl Platform for NoPlatform {
    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
}
