//! Timers and clocks of the board. All count the machine's one [`tessera_hw_core::clock::Clock`], so they agree exactly.

pub mod hpet;
pub mod i8254;
pub mod rtc;

use std::sync::{Arc, Mutex};

use tessera_hw_core::irq::{IrqLine, IrqSink};
use tessera_hw_core::lock;

/// A switch in an interrupt line: while the HPET's legacy replacement routing is on, the 8254 and the RTC are cut off and
/// the HPET drives their inputs.
pub struct LegacyGate {
    line: IrqLine,
    state: Mutex<Gate>,
}

#[derive(Default)]
struct Gate {
    input: bool,
    closed: bool,
}

impl LegacyGate {
    /// A gate that lets through to `line`.
    pub fn new(line: IrqLine) -> Arc<Self> {
        Arc::new(Self { line, state: Mutex::default() })
    }

    /// Cuts the input off, or lets it through.
    pub fn close(&self, closed: bool) {
        let mut gate = lock(&self.state);
        gate.closed = closed;
        self.line.set(gate.input && !closed);
    }
}

impl IrqSink for LegacyGate {
    fn set_irq(&self, _pin: u32, level: bool) {
        let mut gate = lock(&self.state);
        gate.input = level;
        self.line.set(level && !gate.closed);
    }
}

/// `ns` nanoseconds in cycles of `hz`, rounded down.
pub(crate) fn to_cycles(ns: u64, hz: u64) -> u64 {
    (u128::from(ns) * u128::from(hz) / 1_000_000_000) as u64
}

/// The first nanosecond at which `cycles` cycles of `hz` have passed.
pub(crate) fn to_ns(cycles: u64, hz: u64) -> u64 {
    u64::try_from((u128::from(cycles) * 1_000_000_000).div_ceil(u128::from(hz))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_and_nanoseconds_agree() {
        for c in [0, 1, 2, 11_932, 1 << 40] {
            assert_eq!(to_cycles(to_ns(c, 1_193_182), 1_193_182), c);
            assert!(c == 0 || to_cycles(to_ns(c, 1_193_182) - 1, 1_193_182) < c);
        }
    }

    #[test]
    fn a_closed_gate_holds_the_line_low() {
        let line = IrqLine::unconnected();
        let gate = LegacyGate::new(line.clone());
        gate.set_irq(0, true);
        assert!(line.level());
        gate.close(true);
        assert!(!line.level());
        gate.close(false);
        assert!(line.level());
    }
}
