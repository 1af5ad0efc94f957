//! Messages between I/O APIC, MSI senders and local APICs.
//!
//! A message has a destination, a delivery mode and a vector; the bus finds the local APICs it is for and hands it to each,
//! or, for the lowest-priority mode, to the least busy. The bus holds no lock of its own: a sender may hold the I/O APIC's,
//! and each local APIC takes its own.

use std::sync::{Arc, OnceLock, Weak};

use tessera_hw_core::cpu::current;
use tessera_hw_core::mem::MmioDevice;

use super::ioapic::IoApic;
use super::lapic::{Delivery, Ipi, LocalApic};

/// To whom a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Every APIC.
    All,
    /// Every APIC but the one with this number.
    AllBut(u32),
    /// The APIC with this number, whatever its ID register says.
    OnlyApic(u32),
    /// The APIC with this ID.
    Physical(u32),
    /// Those whose logical ID matches.
    Logical(u32),
}

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// To whom.
    pub destination: Destination,
    /// How.
    pub delivery: Delivery,
    /// Vector, or start page.
    pub vector: u8,
    /// The sender waits for the end of this interrupt.
    pub level_triggered: bool,
}

impl Message {
    /// Builds one from an 8-bit destination as I/O APIC entries and MSI addresses have it.
    pub fn with_8bit_destination(
        destination: u8,
        logical: bool,
        delivery: Delivery,
        vector: u8,
        level: bool,
    ) -> Self {
        let destination = match (destination, logical) {
            (0xff, _) => Destination::All,
            (d, false) => Destination::Physical(d.into()),
            (d, true) => Destination::Logical(d.into()),
        };
        Self { destination, delivery, vector, level_triggered: level }
    }

    /// The message in the form of a message-signalled interrupt, see [`Message::from_msi`].
    pub fn to_msi(&self) -> (u64, u32) {
        let (destination, logical) = match self.destination {
            Destination::All | Destination::AllBut(_) => (0xff, false),
            Destination::Physical(id) | Destination::OnlyApic(id) => (id & 0xff, false),
            Destination::Logical(id) => (id & 0xff, true),
        };
        let mode = if logical { 1 << 3 | 1 << 2 } else { 0 };
        let trigger = if self.level_triggered { 1 << 15 | 1 << 14 } else { 0 };
        (
            0xfee0_0000 | u64::from(destination) << 12 | mode,
            u32::from(self.vector) | self.delivery.bits() << 8 | trigger,
        )
    }

    /// Decodes a message-signalled interrupt (SDM volume 3, "Message Signalled Interrupts"): address bits 19:12 are the
    /// destination, 3 the redirection hint, 2 the destination mode; data bits 7:0 the vector, 10:8 the delivery mode, 15 the
    /// trigger mode. `None` when the address is not in the interrupt window.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let logical = address & 1 << 2 != 0 && address & 1 << 3 != 0;
        let delivery = Delivery::from_bits(data >> 8);
        Some(Self::with_8bit_destination(
            (address >> 12) as u8,
            logical,
            delivery,
            data as u8,
            data & 1 << 15 != 0,
        ))
    }
}

/// Takes messages in the form of message-signalled interrupts: address and data.
pub type MsiSink = Box<dyn Fn(u64, u32) + Send + Sync>;

/// Where messages go.
#[derive(Default)]
pub struct ApicBus {
    cpus: OnceLock<Vec<Arc<LocalApic>>>,
    ioapic: OnceLock<Weak<IoApic>>,
    instead: OnceLock<MsiSink>,
}

impl ApicBus {
    /// A bus without anybody on it.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts the local APICs on the bus, in the order of their numbers.
    pub fn connect(&self, cpus: Vec<Arc<LocalApic>>, ioapic: &Arc<IoApic>) {
        let _first_call_wins = self.cpus.set(cpus);
        let _first_call_wins = self.ioapic.set(Arc::downgrade(ioapic));
    }

    /// From now on `other` gets all messages: local APICs elsewhere that are there instead of these.
    pub fn replace(&self, other: MsiSink) {
        let _first_call_wins = self.instead.set(other);
    }

    /// The local APICs.
    pub fn cpus(&self) -> &[Arc<LocalApic>] {
        self.cpus.get().map_or(&[], Vec::as_slice)
    }

    /// Delivers a message; one for nobody is lost.
    pub fn deliver(&self, message: &Message) {
        if let Some(other) = self.instead.get() {
            let (address, data) = message.to_msi();
            return other(address, data);
        }
        let cpus = self.cpus();
        // The usual case: an ID that is the APIC's number.
        if let Destination::Physical(id) = message.destination
            && let Some(cpu) = cpus.get(id as usize)
            && cpu.matches(message.destination)
        {
            cpu.accept(message);
            return;
        }
        let matching = cpus.iter().filter(|c| c.matches(message.destination));
        if message.delivery == Delivery::LowestPriority {
            if let Some(cpu) = matching.min_by_key(|c| c.processor_priority()) {
                cpu.accept(message);
            }
        } else {
            matching.for_each(|c| c.accept(message));
        }
    }

    /// Delivers a message-signalled interrupt: a device's 32-bit write of `data` to `address`. False when the address is not
    /// in the interrupt window.
    pub fn deliver_msi(&self, address: u64, data: u32) -> bool {
        Message::from_msi(address, data).map(|m| self.deliver(&m)).is_some()
    }

    /// Delivers an interprocessor interrupt.
    pub fn send_ipi(&self, ipi: &Ipi) {
        let Ipi { delivery, vector, destination, .. } = *ipi;
        self.deliver(&Message { destination, delivery, vector, level_triggered: false });
    }

    /// A local APIC ended a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        if let Some(io) = self.ioapic.get().and_then(Weak::upgrade) {
            io.end_of_interrupt(vector);
        }
    }
}

/// The local APIC's register page: an access reaches the APIC of the vCPU that makes it.
pub struct ApicWindow(pub Arc<ApicBus>);

impl MmioDevice for ApicWindow {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.cpus().get(current() as usize).map_or(u64::MAX, |c| c.mmio_read(offset, size))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(c) = self.0.cpus().get(current() as usize) {
            c.mmio_write(offset, size, value);
        }
    }
}
