//! I/O APIC with 24 inputs (82093AA, with the EOI register of later versions).
//!
//! The state machine ([`Redirection`]) turns levels of its inputs into messages according to the redirection table; a
//! level-triggered input sends once and then waits ("remote IRR") until a local APIC reports the end of that vector.
//!
//! Source: Intel 82093AA data sheet; Intel ICH9 data sheet for version 20H and the EOI register.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::{StateMachine, Wired};
use tessera_hw_core::irq::IrqSink;
use tessera_hw_core::lock;
use tessera_hw_core::log::GUEST_ERRORS;
use tessera_hw_core::mem::MmioDevice;

use super::apic_bus::{ApicBus, Message};
use super::lapic::Delivery;

/// Inputs of the I/O APIC.
pub const PINS: usize = 24;

/// Bits of a redirection entry.
mod entry {
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// What the guest can set: not delivery status (12), remote IRR (14) or the reserved bits.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

/// The redirection table and what is behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Redirection {
    id: u8,
    select: u8,
    table: [u64; PINS],
    /// Input levels.
    lines: u32,
}

impl Default for Redirection {
    fn default() -> Self {
        Self { id: 0, select: 0, table: [entry::MASKED; PINS], lines: 0 }
    }
}

impl Redirection {
    /// Version 20H (with EOI register), 24 entries.
    const VERSION_VALUE: u32 = 0x0017_0020;

    fn message(&mut self, pin: usize) -> Message {
        let e = self.table[pin];
        let level = e & entry::LEVEL != 0;
        if level {
            self.table[pin] |= entry::REMOTE_IRR;
        }
        let delivery = Delivery::from_bits((e >> 8) as u32);
        Message::with_8bit_destination((e >> 56) as u8, e & entry::LOGICAL != 0, delivery, e as u8, level)
    }

    /// The messages of level-triggered inputs that are not masked: those whose end matters.
    fn level_messages(&self) -> Vec<Message> {
        let wanted = |e: u64| e & (entry::LEVEL | entry::MASKED) == entry::LEVEL;
        let mut copy = self.clone();
        (0..PINS).filter(|&pin| wanted(self.table[pin])).map(|pin| copy.message(pin)).collect()
    }

    /// The message of a level-triggered input that is up and was not answered yet.
    fn level_message(&mut self, pin: usize) -> Option<Message> {
        let e = self.table[pin];
        let asks = e & (entry::LEVEL | entry::MASKED | entry::REMOTE_IRR) == entry::LEVEL;
        (asks && self.lines >> pin & 1 != 0).then(|| self.message(pin))
    }

    /// Drives input `pin`. Polarity is the wire's own affair: a driver that asserts is high here. An edge on a masked input is
    /// lost, as on the chip.
    pub fn set_input(&mut self, pin: usize, level: bool) -> Option<Message> {
        if pin >= PINS {
            return None;
        }
        let bit = 1 << pin;
        let rising = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        let e = self.table[pin];
        if e & entry::LEVEL != 0 {
            self.level_message(pin)
        } else {
            (rising && e & entry::MASKED == 0).then(|| self.message(pin))
        }
    }

    /// A local APIC ended the interrupt with `vector`: inputs that are still up send again.
    pub fn end_of_interrupt(&mut self, vector: u8, mut send: impl FnMut(Message)) {
        for pin in 0..PINS {
            let e = self.table[pin];
            if e & entry::REMOTE_IRR != 0 && e as u8 == vector {
                self.table[pin] &= !entry::REMOTE_IRR;
                if let Some(m) = self.level_message(pin) {
                    send(m);
                }
            }
        }
    }

    fn read_window(&self) -> u32 {
        match self.select {
            // ID, and the arbitration ID that follows it.
            0 | 2 => u32::from(self.id) << 24,
            1 => Self::VERSION_VALUE,
            s => match self.table.get(usize::from(s.wrapping_sub(0x10) / 2)) {
                Some(e) if s >= 0x10 => (e >> (32 * (s & 1))) as u32,
                _ => {
                    tracing::debug!(target: GUEST_ERRORS, "I/O APIC: read of register {s:#x}");
                    0
                }
            },
        }
    }

    fn write_window(&mut self, value: u32) -> Option<Message> {
        let s = self.select;
        if s == 0 {
            self.id = (value >> 24) as u8 & 0xf;
            return None;
        }
        let pin = usize::from(s.wrapping_sub(0x10) / 2);
        if s < 0x10 || pin >= PINS {
            tracing::debug!(target: GUEST_ERRORS, "I/O APIC: write of register {s:#x}");
            return None;
        }
        let old = self.table[pin];
        let shift = 32 * (s & 1);
        let mut new = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
        new = new & entry::WRITABLE | old & entry::REMOTE_IRR;
        if new & entry::LEVEL == 0 {
            // Kernels end an interrupt by turning the entry to edge and back.
            new &= !entry::REMOTE_IRR;
        }
        self.table[pin] = new;
        self.level_message(pin)
    }

    /// Reads a register at byte `offset` of the page.
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => self.select.into(),
            0x10 => self.read_window(),
            _ => 0,
        }
    }

    /// Writes a register at byte `offset` of the page.
    pub fn write(&mut self, offset: u64, value: u32, mut send: impl FnMut(Message)) {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => {
                if let Some(m) = self.write_window(value) {
                    send(m);
                }
            }
            0x40 => self.end_of_interrupt(value as u8, send),
            _ => tracing::debug!(target: GUEST_ERRORS, "I/O APIC: write at offset {offset:#x}"),
        }
    }
}

impl StateMachine for Redirection {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::default() };
    }
}

/// A [`Redirection`] on the APIC bus and in memory.
pub struct IoApic {
    state: Mutex<Redirection>,
    bus: Arc<ApicBus>,
    instead: OnceLock<Arc<dyn IrqSink>>,
    listener: OnceLock<LevelListener>,
}

/// Told of the messages of level-triggered inputs whenever the guest changes an entry; called under the I/O APIC's lock.
pub type LevelListener = Box<dyn Fn(&[Message]) + Send + Sync>;

impl IoApic {
    /// An I/O APIC that sends to `bus`.
    pub fn new(bus: Arc<ApicBus>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), bus, instead: OnceLock::new(), listener: OnceLock::new() })
    }

    /// Registers who is told of the messages that level-triggered inputs send, for local APICs that report the end of
    /// these only.
    pub fn on_level_messages(&self, listener: LevelListener) {
        let _first_call_wins = self.listener.set(listener);
    }

    /// From now on `other` gets the inputs: a controller elsewhere that is there instead of this one.
    pub fn replace(&self, other: Arc<dyn IrqSink>) {
        let _first_call_wins = self.instead.set(other);
    }

    /// A local APIC ended the interrupt with `vector`.
    pub fn end_of_interrupt(&self, vector: u8) {
        lock(&self.state).end_of_interrupt(vector, |m| self.bus.deliver(&m));
    }
}

impl Wired for IoApic {
    type State = Redirection;
    fn name(&self) -> &str {
        "ioapic"
    }
    fn state(&self) -> &Mutex<Redirection> {
        &self.state
    }
    fn drive(&self, _state: &mut Redirection) {}
}

impl IrqSink for IoApic {
    fn set_irq(&self, pin: u32, level: bool) {
        if let Some(other) = self.instead.get() {
            return other.set_irq(pin, level);
        }
        let mut state = lock(&self.state);
        if let Some(m) = state.set_input(pin as usize, level) {
            self.bus.deliver(&m);
        }
    }
}

impl MmioDevice for IoApic {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        // Registers are 32 bits at multiples of 16; a narrower read takes its part of one.
        let value = lock(&self.state).read(offset & 0xf0);
        if offset & 0xf < 4 { u64::from(value) >> (8 * (offset & 3)) } else { 0 }
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        // The select register and EOI are a byte wide, so any size reaches them; the window takes 32 bits.
        if offset & 0xf != 0 || (size < 4 && offset & 0xf0 == 0x10) {
            tracing::debug!(target: GUEST_ERRORS, "I/O APIC: write of {size} bytes at {offset:#x}");
            return;
        }
        let mut state = lock(&self.state);
        // Before a message that the new entry sends.
        let mut sent = Vec::new();
        state.write(offset, value as u32, |m| sent.push(m));
        if let Some(listener) = self.listener.get() {
            listener(&state.level_messages());
        }
        sent.iter().for_each(|m| self.bus.deliver(m));
    }
}
