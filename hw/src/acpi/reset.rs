//! The reset control register at port 0xCF9 (Intel ICH9 data sheet, "RST_CNT"): bit 1 chooses a hard reset, a rising bit 2
//! resets. It is what ACPI's reset register points to.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::{StateMachine, Wired};
use tessera_hw_core::event::{Events, MachineEvent};
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;

/// The register.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Register(u8);

const RESET: u8 = 1 << 2;

impl StateMachine for Register {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// The register on the port bus.
pub struct ResetControl {
    register: Mutex<Register>,
    events: Events,
}

impl ResetControl {
    /// A register that resets by `events`.
    pub fn new(events: Events) -> Self {
        Self { register: Mutex::default(), events }
    }
}

impl Wired for ResetControl {
    type State = Register;
    fn name(&self) -> &str {
        "reset-control"
    }
    fn state(&self) -> &Mutex<Register> {
        &self.register
    }
    fn drive(&self, _register: &mut Register) {}
}

impl PortDevice for ResetControl {
    fn read(&self, _offset: u16, _size: u8) -> u32 {
        lock(&self.register).0.into()
    }
    fn write(&self, _offset: u16, _size: u8, value: u32) {
        let mut register = lock(&self.register);
        let rising = value as u8 & !register.0 & RESET != 0;
        register.0 = value as u8 & 0x0e;
        drop(register);
        if rising {
            self.events.post(MachineEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_on_a_rising_bit() {
        let events = Events::new();
        let r = ResetControl::new(events.clone());
        r.write(0, 1, 0x02);
        assert!(!events.pending());
        r.write(0, 1, 0x06);
        assert_eq!(events.take(), Some(MachineEvent::Reset));
        assert_eq!(r.read(0, 1), 6);
        r.write(0, 1, 0x06);
        assert!(!events.pending(), "still up");
        tessera_hw_core::device::Device::reset(&r);
        r.write(0, 1, 0x0f);
        assert_eq!(events.take(), Some(MachineEvent::Reset));
    }
}
