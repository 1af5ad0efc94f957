//! The pair of 8259A interrupt controllers of a PC, the second cascaded into input 2 of the first.
//!
//! Ports 0x20, 0x21 (master), 0xA0, 0xA1 (slave) and 0x4D0, 0x4D1 (ELCR, edge or level for each input). Inputs are
//! numbered 0 to 15; 2 belongs to the cascade.
//!
//! Sources: Intel 8259A data sheet; for ELCR, Intel 82371AB (PIIX4) data sheet.

mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock};

pub use state::PicPair;
use tessera_hw_core::device::Wired;
use tessera_hw_core::irq::{IrqLine, IrqSink};
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;

/// A [`PicPair`] with its INTR output.
pub struct I8259 {
    pair: Mutex<PicPair>,
    intr: IrqLine,
    instead: OnceLock<Arc<dyn IrqSink>>,
    output: OnceLock<OutputListener>,
}

/// Told of the level of INTR; called under the controllers' lock.
pub type OutputListener = Box<dyn Fn(bool) + Send + Sync>;

impl I8259 {
    /// Controllers that drive `intr`.
    pub fn new(intr: IrqLine) -> Arc<Self> {
        Arc::new(Self {
            pair: Mutex::new(PicPair::default()),
            intr,
            instead: OnceLock::new(),
            output: OnceLock::new(),
        })
    }

    /// Registers who is told of the level of INTR, beside the local APIC that it is wired to.
    pub fn on_output(&self, listener: OutputListener) {
        let _first_call_wins = self.output.set(listener);
    }

    /// From now on `other` gets the inputs: controllers elsewhere that are there instead of these.
    pub fn replace(&self, other: Arc<dyn IrqSink>) {
        let _first_call_wins = self.instead.set(other);
    }

    /// The vCPU's interrupt acknowledge cycle: the vector.
    pub fn acknowledge(&self) -> u8 {
        let mut pair = lock(&self.pair);
        let vector = pair.acknowledge();
        self.drive(&mut pair);
        vector
    }
}

impl Wired for I8259 {
    type State = PicPair;
    fn name(&self) -> &str {
        "i8259"
    }
    fn state(&self) -> &Mutex<PicPair> {
        &self.pair
    }
    fn drive(&self, pair: &mut PicPair) {
        self.intr.set(pair.output());
        if let Some(listener) = self.output.get() {
            listener(pair.output());
        }
    }
}

impl IrqSink for I8259 {
    fn set_irq(&self, pin: u32, level: bool) {
        if let Some(other) = self.instead.get() {
            return other.set_irq(pin, level);
        }
        let mut pair = lock(&self.pair);
        pair.set_input(pin as u8, level);
        self.drive(&mut pair);
    }
}

/// Which of the pair's ports a claim covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicPorts {
    /// 0x20 and 0x21.
    Master,
    /// 0xA0 and 0xA1.
    Slave,
    /// 0x4D0 and 0x4D1.
    Elcr,
}

/// One group of ports of an [`I8259`].
pub struct PicPort(pub Arc<I8259>, pub PicPorts);

impl PortDevice for PicPort {
    fn read(&self, offset: u16, _size: u8) -> u32 {
        let mut pair = lock(&self.0.pair);
        let value = match self.1 {
            PicPorts::Master => pair.read(0, offset & 1 != 0),
            PicPorts::Slave => pair.read(1, offset & 1 != 0),
            PicPorts::Elcr => pair.elcr(usize::from(offset & 1)),
        };
        // A poll command acknowledges.
        self.0.drive(&mut pair);
        value.into()
    }
    fn write(&self, offset: u16, _size: u8, value: u32) {
        let mut pair = lock(&self.0.pair);
        match self.1 {
            PicPorts::Master => pair.write(0, offset & 1 != 0, value as u8),
            PicPorts::Slave => pair.write(1, offset & 1 != 0, value as u8),
            PicPorts::Elcr => pair.set_elcr(usize::from(offset & 1), value as u8),
        }
        self.0.drive(&mut pair);
    }
}
