//! Port 92H, system control port A: bit 1 is A20, a rising bit 0 resets the CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tessera_hw_core::event::{Events, MachineEvent};
use tessera_hw_core::ports::PortDevice;

use super::a20::A20;

/// The port.
pub struct Port92 {
    a20: Arc<A20>,
    events: Events,
    /// Bits that only remember what was written.
    other: AtomicU8,
}

impl Port92 {
    /// A port that switches `a20`.
    pub fn new(a20: Arc<A20>, events: Events) -> Self {
        Self { a20, events, other: AtomicU8::new(0) }
    }
}

impl PortDevice for Port92 {
    fn read(&self, _offset: u16, _size: u8) -> u32 {
        (self.other.load(Ordering::Relaxed) | u8::from(self.a20.enabled()) << 1).into()
    }
    fn write(&self, _offset: u16, _size: u8, value: u32) {
        self.a20.set(value & 2 != 0);
        // Bit 0 reads as 0: every write of 1 is a rising edge, since a reset clears it.
        self.other.store(value as u8 & 0xfc, Ordering::Relaxed);
        if value & 1 != 0 {
            self.events.post(MachineEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_a20_and_resets() {
        let (a20, events) = (A20::new(), Events::new());
        let port = Port92::new(a20.clone(), events.clone());
        assert_eq!(port.read(0, 1), 2);
        port.write(0, 1, 0x0c);
        assert!(!a20.enabled());
        assert_eq!(port.read(0, 1), 0x0c);
        port.write(0, 1, 2);
        assert!(a20.enabled() && !events.pending());
        port.write(0, 1, 3);
        assert_eq!(events.take(), Some(MachineEvent::Reset));
    }
}
