//! `isa-debug-exit`: a write ends the emulator. The exit status is `(value << 1) | 1`, so that it is never 0.

use tessera_hw_core::event::{Events, MachineEvent};
use tessera_hw_core::ports::PortDevice;

/// The device.
pub struct IsaDebugExit(pub Events);

impl PortDevice for IsaDebugExit {
    fn read(&self, _offset: u16, _size: u8) -> u32 {
        0
    }
    fn write(&self, _offset: u16, _size: u8, value: u32) {
        self.0.post(MachineEvent::DebugExit(value << 1 | 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_with_an_odd_status() {
        let events = Events::new();
        let d = IsaDebugExit(events.clone());
        d.write(0, 1, 0x10);
        assert_eq!(events.take(), Some(MachineEvent::DebugExit(0x21)));
        d.write(0, 4, 0xffff_ffff);
        assert_eq!(events.take(), Some(MachineEvent::DebugExit(0xffff_ffff)));
    }
}
