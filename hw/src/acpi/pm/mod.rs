//! ACPI fixed hardware: PM1a event and control registers, power button, PM timer, and the system control interrupt.
//!
//! The registers are in the machine's fixed block (see [`crate::boards::pc::layout`]). The machine is in ACPI mode from the
//! start (SCI_EN reads 1 after reset) and there is no SMI command port. The only sleep state is S5, power-off, with SLP_TYP 0.
//!
//! Source: ACPI specification 6.5, section 4.8.

mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

pub use state::{PM_TIMER_HZ, PowerManagement};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::device::Wired;
use tessera_hw_core::event::{Events, MachineEvent};
use tessera_hw_core::irq::IrqLine;
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;
use tessera_hw_core::timers::{DeviceTimer, Timers};

/// Number of ports of the block.
pub const BLOCK_LEN: u16 = 12;

/// A [`PowerManagement`] on the port bus ([`BLOCK_LEN`] ports, up to 32 bits wide).
pub struct AcpiPm {
    state: Mutex<PowerManagement>,
    sci: IrqLine,
    events: Events,
    clock: Arc<Clock>,
    timer: DeviceTimer,
}

impl AcpiPm {
    /// A block that interrupts by `sci` (level) and powers off by `events`.
    pub fn new(sci: IrqLine, events: Events, timers: &Arc<Timers>) -> Arc<Self> {
        let pm = Arc::new(Self {
            state: Mutex::default(),
            sci,
            events,
            clock: Arc::clone(timers.clock()),
            timer: DeviceTimer::default(),
        });
        pm.timer.connect(timers, &pm, |p, _| p.drive(&mut lock(&p.state)));
        pm
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        let mut state = lock(&self.state);
        state.press_power_button();
        self.drive(&mut state);
    }
}

impl Wired for AcpiPm {
    type State = PowerManagement;
    fn name(&self) -> &str {
        "acpi-pm"
    }
    fn state(&self) -> &Mutex<PowerManagement> {
        &self.state
    }
    fn drive(&self, state: &mut PowerManagement) {
        state.catch_up(self.clock.now_ns());
        self.sci.set(state.interrupt());
        self.timer.set(state.deadline());
    }
}

impl PortDevice for AcpiPm {
    fn read(&self, offset: u16, size: u8) -> u32 {
        let now = self.clock.now_ns();
        if offset >= state::TIMER {
            // The guest's clock, perhaps: no lock.
            return state::timer_value(now) >> (8 * (offset - state::TIMER));
        }
        let mut state = lock(&self.state);
        state.catch_up(now);
        state.read(offset, size)
    }
    fn write(&self, offset: u16, size: u8, value: u32) {
        let mut state = lock(&self.state);
        state.catch_up(self.clock.now_ns());
        let off = state.write(offset, size, value);
        self.drive(&mut state);
        drop(state);
        if off {
            self.events.post(MachineEvent::Shutdown);
        }
    }
}
