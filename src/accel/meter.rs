//! Where a vCPU's time goes: what `-d stats` says beside the translator's own figures.
//!
//! Idle and running time are taken at each halt, which costs next to nothing; the time in devices at each access, and so only
//! if somebody wants to know.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A sum of times, added to from one thread and read from another.
#[derive(Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Adds the time since `start`.
    pub fn add_since(&self, start: Instant) {
        // Enough for centuries.
        self.0.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// The sum.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Does something on the time of a meter, if there is one.
pub fn timed<R>(meter: Option<&Meter>, work: impl FnOnce() -> R) -> R {
    let Some(meter) = meter else { return work() };
    let start = Instant::now();
    let result = work();
    meter.add_since(start);
    result
}
