//! High Precision Event Timer: a 64-bit counter of 100 MHz and three comparators.
//!
//! Each comparator is one-shot or periodic, 32 or 64 bits wide, edge or level, routed to an I/O APIC input; with legacy
//! replacement, timers 0 and 1 take the places of the 8254 (IRQ 0) and the RTC (IRQ 8). Interrupts as messages (FSB) are not
//! offered.
//!
//! Source: IA-PC HPET Specification 1.0a.

mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub use state::Hpet;
use tessera_hw_core::clock::Clock;
use tessera_hw_core::device::Wired;
use tessera_hw_core::irq::IrqLine;
use tessera_hw_core::lock;
use tessera_hw_core::mem::MmioDevice;
use tessera_hw_core::timers::{DeviceTimer, Timers};

use super::LegacyGate;
use state::Route;

/// Where the HPET's interrupts go.
pub struct HpetLines {
    /// A driver of each I/O APIC input, 24 of them.
    pub inputs: Vec<IrqLine>,
    /// A driver of ISA IRQ 0 and of ISA IRQ 8, for legacy replacement.
    pub legacy: [IrqLine; 2],
    /// Who is cut off meanwhile: the 8254 and the RTC.
    pub gates: [Arc<LegacyGate>; 2],
}

/// An [`Hpet`] in memory, with its interrupt lines.
pub struct HpetDevice {
    state: Mutex<Hpet>,
    lines: HpetLines,
    gates_closed: AtomicBool,
    clock: Arc<Clock>,
    timer: DeviceTimer,
}

impl HpetDevice {
    /// An HPET that drives `lines`.
    pub fn new(lines: HpetLines, timers: &Arc<Timers>) -> Arc<Self> {
        let hpet = Arc::new(Self {
            state: Mutex::default(),
            lines,
            gates_closed: AtomicBool::new(false),
            clock: Arc::clone(timers.clock()),
            timer: DeviceTimer::default(),
        });
        hpet.timer.connect(timers, &hpet, |h, _| h.drive(&mut lock(&h.state)));
        hpet
    }

    fn line(&self, route: Route) -> Option<&IrqLine> {
        match route {
            Route::Input(n) => self.lines.inputs.get(usize::from(n)),
            Route::Legacy(n) => self.lines.legacy.get(usize::from(n)),
        }
    }
}

impl Wired for HpetDevice {
    type State = Hpet;
    fn name(&self) -> &str {
        "hpet"
    }
    fn state(&self) -> &Mutex<Hpet> {
        &self.state
    }
    fn drive(&self, state: &mut Hpet) {
        let pulses = state.expire(self.clock.now_ns());
        let legacy = state.legacy_replacement();
        if self.gates_closed.swap(legacy, Ordering::AcqRel) != legacy {
            self.lines.gates.iter().for_each(|g| g.close(legacy));
        }
        // A line that no timer drives any more falls.
        let inputs = self.lines.inputs.iter().enumerate().map(|(i, l)| (Route::Input(i as u8), l));
        let legacy = self.lines.legacy.iter().enumerate().map(|(i, l)| (Route::Legacy(i as u8), l));
        for (route, line) in inputs.chain(legacy) {
            if line.level() && !state.drives(route) {
                line.set(false);
            }
        }
        for timer in 0..state::TIMERS {
            let Some(line) = self.line(state.route(timer)) else { continue };
            if state.is_level(timer) {
                if state.drives(state.route(timer)) {
                    line.set(true);
                }
            } else if pulses >> timer & 1 != 0 {
                line.pulse();
            }
        }
        self.timer.set(state.deadline());
    }
}

impl MmioDevice for HpetDevice {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut state = lock(&self.state);
        if offset & !7 != state::MAIN_COUNTER {
            // Status and periodic comparators move by themselves.
            self.drive(&mut state);
        }
        state.read(offset, size, self.clock.now_ns())
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut state = lock(&self.state);
        // What came due before must not be lost by the change.
        self.drive(&mut state);
        state.write(offset, size, value, self.clock.now_ns());
        self.drive(&mut state);
    }
}
