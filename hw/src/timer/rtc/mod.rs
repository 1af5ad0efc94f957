//! MC146818 real-time clock and its CMOS RAM, ports 0x70 and 0x71, IRQ 8.
//!
//! The clock is a difference to the machine's wall clock, so nothing ticks. A host timer runs only while the guest has
//! enabled one of the three interrupts; flags of disabled ones are worked out when read.
//!
//! Sources: Motorola MC146818A data sheet; the meaning of the CMOS bytes is the IBM AT's convention.

mod date;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

pub use state::Rtc;
use tessera_hw_core::clock::Clock;
use tessera_hw_core::device::Wired;
use tessera_hw_core::irq::IrqLine;
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;
use tessera_hw_core::timers::{DeviceTimer, Timers};

use state::Now;

/// An [`Rtc`] on the port bus (2 ports), with its interrupt line.
pub struct Mc146818 {
    state: Mutex<Rtc>,
    irq: IrqLine,
    clock: Arc<Clock>,
    timer: DeviceTimer,
}

impl Mc146818 {
    /// A clock whose CMOS RAM describes `low` bytes of RAM below 4 GiB and `high` above, and `cpus` processors.
    pub fn new(low: u64, high: u64, cpus: u32, irq: IrqLine, timers: &Arc<Timers>) -> Arc<Self> {
        let rtc = Arc::new(Self {
            state: Mutex::new(Rtc::new(low, high, cpus)),
            irq,
            clock: Arc::clone(timers.clock()),
            timer: DeviceTimer::default(),
        });
        rtc.timer.connect(timers, &rtc, |r, _| r.drive(&mut lock(&r.state)));
        rtc
    }

    fn now(&self) -> Now {
        Now { ns: self.clock.now_ns(), wall_ns: self.clock.wall_ns() }
    }
}

impl Wired for Mc146818 {
    type State = Rtc;
    fn name(&self) -> &str {
        "rtc"
    }
    fn state(&self) -> &Mutex<Rtc> {
        &self.state
    }
    fn drive(&self, rtc: &mut Rtc) {
        let now = self.now();
        rtc.catch_up(now);
        self.irq.set(rtc.interrupt());
        self.timer.set(rtc.deadline(now));
    }
}

impl PortDevice for Mc146818 {
    fn read(&self, offset: u16, _size: u8) -> u32 {
        let mut rtc = lock(&self.state);
        let value = if offset & 1 == 0 { rtc.index() } else { rtc.read(self.now()) };
        self.drive(&mut rtc);
        value.into()
    }
    fn write(&self, offset: u16, _size: u8, value: u32) {
        let mut rtc = lock(&self.state);
        if offset & 1 == 0 {
            rtc.set_index(value as u8);
        } else {
            rtc.write(value as u8, self.now());
            self.drive(&mut rtc);
        }
    }
}
