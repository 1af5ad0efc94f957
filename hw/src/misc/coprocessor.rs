//! The error logic of the x87 unit on a PC, as it has been since the AT: the CPU's FERR# makes IRQ 13; a write to port F0H
//! takes the request back and asserts IGNNE# until FERR# falls, so that the handler may use the unit.
//!
//! Source: Intel 82371AB (PIIX4) datasheet, coprocessor error register; SDM volume 1, appendix D.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::{StateMachine, Wired};
use tessera_hw_core::irq::IrqLine;
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;

/// State of the logic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ErrorLogic {
    /// FERR#, as the CPU drives it.
    error: bool,
    /// IGNNE#.
    ignore: bool,
}

impl ErrorLogic {
    /// The CPU drives FERR#.
    pub fn set_error(&mut self, asserted: bool) {
        self.error = asserted;
        self.ignore &= asserted;
    }

    /// A write to port F0H.
    pub fn clear(&mut self) {
        self.ignore = self.error;
    }

    /// IGNNE#.
    pub fn ignores(&self) -> bool {
        self.ignore
    }

    /// IRQ 13.
    pub fn interrupt(&self) -> bool {
        self.error && !self.ignore
    }
}

impl StateMachine for ErrorLogic {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = ErrorLogic::default();
    }
}

/// The logic on the board.
pub struct Coprocessor {
    state: Mutex<ErrorLogic>,
    irq: IrqLine,
}

impl Coprocessor {
    /// The logic, whose interrupt is `irq`.
    pub fn new(irq: IrqLine) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), irq })
    }

    /// The CPU drives FERR#.
    pub fn set_error(&self, asserted: bool) {
        let mut state = lock(&self.state);
        state.set_error(asserted);
        self.drive(&mut state);
    }

    /// Whether IGNNE# is asserted.
    pub fn ignores(&self) -> bool {
        lock(&self.state).ignores()
    }
}

impl Wired for Coprocessor {
    type State = ErrorLogic;
    fn name(&self) -> &str {
        "coprocessor"
    }
    fn state(&self) -> &Mutex<ErrorLogic> {
        &self.state
    }
    fn drive(&self, state: &mut ErrorLogic) {
        self.irq.set(state.interrupt());
    }
}

/// Ports F0H (clear busy latch) and F1H (reset of a coprocessor that is a chip of its own, which does nothing).
impl PortDevice for Coprocessor {
    fn read(&self, _offset: u16, _size: u8) -> u32 {
        u32::MAX
    }
    fn write(&self, offset: u16, _size: u8, _value: u32) {
        if offset == 0 {
            let mut state = lock(&self.state);
            state.clear();
            self.drive(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handler_may_use_the_unit_until_the_error_is_gone() {
        let mut logic = ErrorLogic::default();
        logic.clear();
        assert!(!logic.ignores(), "there is nothing to ignore");
        logic.set_error(true);
        assert!(logic.interrupt() && !logic.ignores());
        logic.clear();
        assert!(!logic.interrupt() && logic.ignores());
        logic.set_error(false);
        assert!(!logic.interrupt() && !logic.ignores());
        logic.set_error(true);
        assert!(logic.interrupt(), "the next error interrupts again");
    }
}
