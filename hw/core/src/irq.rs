//! Interrupt wires.
//!
//! A wire ends in a pin of an interrupt controller ([`IrqSink`]). Several devices may drive one wire; it is high while
//! any of them drives it high. Each driver has its own [`IrqLine`], which remembers what it drives, so setting a level
//! that is already set costs one atomic read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock;

/// Where wires end: an interrupt controller, or a router in front of several.
pub trait IrqSink: Send + Sync {
    /// The wire at input `pin` now has `level`. Called for changes only, in order.
    fn set_irq(&self, pin: u32, level: bool);
}

struct Wire {
    sink: Arc<dyn IrqSink>,
    pin: u32,
    /// How many drivers hold the wire high. The lock also keeps the sink's calls in order.
    high: Mutex<u32>,
}

struct Driver {
    wire: Option<Arc<Wire>>,
    level: AtomicBool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.level.swap(false, Ordering::AcqRel)
            && let Some(w) = &self.wire
        {
            w.change(false);
        }
    }
}

impl Wire {
    fn change(&self, up: bool) {
        let mut high = lock(&self.high);
        if up {
            *high += 1;
            if *high == 1 {
                self.sink.set_irq(self.pin, true);
            }
        } else {
            *high = high.saturating_sub(1);
            if *high == 0 {
                self.sink.set_irq(self.pin, false);
            }
        }
    }
}

/// One driver of an interrupt wire. Clones are the same driver; [`Self::share`] adds another.
#[derive(Clone)]
pub struct IrqLine(Arc<Driver>);

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IrqLine")
            .field("pin", &self.0.wire.as_ref().map(|w| w.pin))
            .field("level", &self.level())
            .finish()
    }
}

impl IrqLine {
    /// A new wire to `pin` of `sink`, low, with one driver.
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self::driver(Some(Arc::new(Wire { sink, pin, high: Mutex::new(0) })))
    }

    /// A line that ends nowhere.
    pub fn unconnected() -> Self {
        Self::driver(None)
    }

    fn driver(wire: Option<Arc<Wire>>) -> Self {
        Self(Arc::new(Driver { wire, level: AtomicBool::new(false) }))
    }

    /// Another driver of the same wire, low.
    pub fn share(&self) -> Self {
        Self::driver(self.0.wire.clone())
    }

    /// What this driver drives.
    pub fn level(&self) -> bool {
        self.0.level.load(Ordering::Acquire)
    }

    /// Drives the wire high or low.
    #[inline]
    pub fn set(&self, level: bool) {
        if self.level() != level
            && self.0.level.swap(level, Ordering::AcqRel) != level
            && let Some(w) = &self.0.wire
        {
            w.change(level);
        }
    }

    /// Makes a rising edge and leaves the driver low.
    pub fn pulse(&self) {
        self.set(false);
        self.set(true);
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Trace(Mutex<Vec<(u32, bool)>>);
    impl IrqSink for Trace {
        fn set_irq(&self, pin: u32, level: bool) {
            lock(&self.0).push((pin, level));
        }
    }

    #[test]
    fn a_shared_wire_is_high_while_any_driver_is() {
        let t = Arc::new(Trace::default());
        let a = IrqLine::new(t.clone(), 5);
        let b = a.share();
        a.set(true);
        a.clone().set(true);
        b.set(true);
        a.set(false);
        assert_eq!(*lock(&t.0), [(5, true)]);
        drop(b);
        assert_eq!(*lock(&t.0), [(5, true), (5, false)], "a dropped driver lets go");
        a.pulse();
        assert_eq!(lock(&t.0)[2..], [(5, true), (5, false)]);
        assert!(!a.level());
        IrqLine::unconnected().pulse();
    }
}
