//! The 8254 interval timer and the system control port that belongs to it.
//!
//! Counter 0 interrupts (IRQ 0), counter 1 once refreshed memory, counter 2 drives the speaker and is gated and read through
//! port 0x61. Ports 0x40 to 0x43 and 0x61.
//!
//! Nothing counts: a counter remembers when it was loaded and works out its value and output from the time. A host timer
//! runs only for rising edges of counter 0.
//!
//! Source: Intel 82C54 data sheet.

mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

pub use state::{PIT_HZ, Pit};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::device::Wired;
use tessera_hw_core::irq::IrqLine;
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;
use tessera_hw_core::timers::{DeviceTimer, Timers};

/// A [`Pit`] on the port bus.
pub struct I8254 {
    pit: Mutex<Pit>,
    irq: IrqLine,
    clock: Arc<Clock>,
    timer: DeviceTimer,
}

impl I8254 {
    /// A timer whose counter 0 drives `irq`.
    pub fn new(irq: IrqLine, timers: &Arc<Timers>) -> Arc<Self> {
        let pit = Arc::new(Self {
            pit: Mutex::default(),
            irq,
            clock: Arc::clone(timers.clock()),
            timer: DeviceTimer::default(),
        });
        pit.timer.connect(timers, &pit, |p, _| p.drive(&mut lock(&p.pit)));
        pit
    }
}

impl Wired for I8254 {
    type State = Pit;
    fn name(&self) -> &str {
        "i8254"
    }
    fn state(&self) -> &Mutex<Pit> {
        &self.pit
    }
    fn drive(&self, pit: &mut Pit) {
        let now = self.clock.now_ns();
        if pit.take_rising_edge(now) {
            self.irq.set(false);
        }
        self.irq.set(pit.irq_level(now));
        self.timer.set(pit.deadline());
    }
}

/// Ports 0x40 to 0x43.
pub struct PitPorts(pub Arc<I8254>);

impl PortDevice for PitPorts {
    fn read(&self, offset: u16, _size: u8) -> u32 {
        lock(&self.0.pit).read(offset as u8, self.0.clock.now_ns()).into()
    }
    fn write(&self, offset: u16, _size: u8, value: u32) {
        let mut pit = lock(&self.0.pit);
        pit.write(offset as u8, value as u8, self.0.clock.now_ns());
        self.0.drive(&mut pit);
    }
}

/// Port 0x61.
pub struct SystemControlPort(pub Arc<I8254>);

impl PortDevice for SystemControlPort {
    fn read(&self, _offset: u16, _size: u8) -> u32 {
        lock(&self.0.pit).read_control_port(self.0.clock.now_ns()).into()
    }
    fn write(&self, _offset: u16, _size: u8, value: u32) {
        lock(&self.0.pit).write_control_port(value as u8, self.0.clock.now_ns());
    }
}
