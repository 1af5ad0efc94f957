//! The 8042 keyboard controller with an AT keyboard, ports 0x60 and 0x64, IRQ 1.
//!
//! The keyboard answers every command of the AT set and sends scan codes that are given to it; there is no auxiliary port:
//! the controller answers tests for one as a controller without it does. The controller also switches A20 and resets the
//! machine.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".

mod keyboard;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

pub use state::{Controller, Request};
use tessera_hw_core::device::Wired;
use tessera_hw_core::event::{Events, MachineEvent};
use tessera_hw_core::irq::IrqLine;
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;

use crate::misc::a20::A20;

/// A [`Controller`] with what it switches.
pub struct I8042 {
    state: Mutex<Controller>,
    irq: IrqLine,
    a20: Arc<A20>,
    events: Events,
}

impl I8042 {
    /// A controller that interrupts by `irq`.
    pub fn new(irq: IrqLine, a20: Arc<A20>, events: Events) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), irq, a20, events })
    }

    /// Sends scan codes (set 2) as the keyboard does for keys; false when its buffer has no room for all of them.
    pub fn send_keys(&self, codes: &[u8]) -> bool {
        let mut state = lock(&self.state);
        let taken = state.send_keys(codes);
        self.drive(&mut state);
        taken
    }
}

impl Wired for I8042 {
    type State = Controller;
    fn name(&self) -> &str {
        "i8042"
    }
    fn state(&self) -> &Mutex<Controller> {
        &self.state
    }
    fn drive(&self, state: &mut Controller) {
        self.irq.set(state.interrupt());
    }
}

/// Which port a claim covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I8042Port {
    /// 0x60.
    Data,
    /// 0x64.
    Command,
}

/// One port of an [`I8042`].
pub struct I8042Ports(pub Arc<I8042>, pub I8042Port);

impl PortDevice for I8042Ports {
    fn read(&self, _offset: u16, _size: u8) -> u32 {
        let mut state = lock(&self.0.state);
        match self.1 {
            I8042Port::Command => state.status().into(),
            I8042Port::Data => {
                let v = state.read_data();
                // The next byte is a new edge.
                self.0.irq.set(false);
                self.0.drive(&mut state);
                v.into()
            }
        }
    }
    fn write(&self, _offset: u16, _size: u8, value: u32) {
        let mut state = lock(&self.0.state);
        let request = match self.1 {
            I8042Port::Command => state.write_command(value as u8, self.0.a20.enabled()),
            I8042Port::Data => state.write_data(value as u8),
        };
        self.0.drive(&mut state);
        drop(state);
        match request {
            Request::None => {}
            Request::A20(on) => self.0.a20.set(on),
            Request::Reset => self.0.events.post(MachineEvent::Reset),
        }
    }
}
