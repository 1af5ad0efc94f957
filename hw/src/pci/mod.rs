//! PCI configuration space: how a guest finds the host bridge and the functions behind it.
//!
//! [`PciBus`] holds the functions of bus 0. Two ways lead to it: ports 0xCF8 and 0xCFC ([`ConfigPorts`], "mechanism #1") and
//! the memory-mapped window of PCI Express ([`ConfigWindow`], "ECAM"). [`bridges`] has the functions that a board itself has.
//!
//! Sources: PCI Local Bus Specification 3.0, section 3.2.2.3.2; PCI Express Base Specification 4.0, section 7.2.2.

pub mod bridges;
mod config;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

pub use config::ConfigSpace;
use tessera_hw_core::mem::MmioDevice;
use tessera_hw_core::ports::PortDevice;

/// One function's configuration space. `register` is a byte offset; `register + size` is at most 256 and within an aligned
/// 4-byte word.
pub trait PciFunction: Send + Sync {
    /// Reads 1, 2 or 4 bytes.
    fn config_read(&self, register: u8, size: u8) -> u32;
    /// Writes 1, 2 or 4 bytes.
    fn config_write(&self, register: u8, size: u8, value: u32);
}

/// Slot (0 to 31) and function (0 to 7), as `slot << 3 | function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devfn(pub u8);

impl Devfn {
    /// Combines slot and function.
    pub const fn new(slot: u8, function: u8) -> Self {
        Self(slot << 3 | function & 7)
    }
}

/// Bus 0.
pub struct PciBus {
    functions: RwLock<Vec<Option<Arc<dyn PciFunction>>>>,
}

impl PciBus {
    /// A bus without functions.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { functions: RwLock::new(vec![None; 256]) })
    }

    /// Plugs a function in; returns what was there.
    pub fn plug(&self, at: Devfn, function: Arc<dyn PciFunction>) -> Option<Arc<dyn PciFunction>> {
        let mut functions = self.functions.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        functions[usize::from(at.0)].replace(function)
    }

    fn function(&self, bus: u8, devfn: u8) -> Option<Arc<dyn PciFunction>> {
        let functions = self.functions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if bus == 0 { functions[usize::from(devfn)].clone() } else { None }
    }

    /// A configuration read; all ones where there is no function.
    fn read(&self, bus: u8, devfn: u8, register: u16, size: u8) -> u32 {
        let (Ok(r), Some(f)) = (u8::try_from(register), self.function(bus, devfn)) else { return u32::MAX };
        f.config_read(r, size)
    }

    fn write(&self, bus: u8, devfn: u8, register: u16, size: u8, value: u32) {
        if let (Ok(r), Some(f)) = (u8::try_from(register), self.function(bus, devfn)) {
            f.config_write(r, size, value);
        }
    }
}

/// Ports 0xCF8 (address) and 0xCFC (data): 8 ports, up to 32 bits wide.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: AtomicU32,
}

/// Address register: accesses to the data register are configuration accesses.
const ENABLE: u32 = 1 << 31;

impl ConfigPorts {
    /// The ports of `bus`.
    pub fn new(bus: Arc<PciBus>) -> Arc<Self> {
        Arc::new(Self { bus, address: AtomicU32::new(0) })
    }

    /// The state after power-on.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    /// Bus, devfn and register that an access at `offset` of the data register is for. It may not leave the aligned word.
    fn target(&self, offset: u16, size: u8) -> Option<(u8, u8, u16)> {
        let a = self.address.load(Ordering::Relaxed);
        let in_word = (offset & 3) + u16::from(size) <= 4;
        (a & ENABLE != 0 && in_word).then_some((
            (a >> 16) as u8,
            (a >> 8) as u8,
            a as u16 & 0xfc | offset & 3,
        ))
    }
}

impl PortDevice for ConfigPorts {
    fn read(&self, offset: u16, size: u8) -> u32 {
        match (offset, size) {
            (0, 4) => self.address.load(Ordering::Relaxed),
            // Only 32-bit accesses reach the address register.
            (0..4, _) => u32::MAX,
            _ => self.target(offset, size).map_or(u32::MAX, |(b, d, r)| self.bus.read(b, d, r, size)),
        }
    }
    fn write(&self, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (0, 4) => self.address.store(value & 0x80ff_fffc, Ordering::Relaxed),
            (0..4, _) => {}
            _ => {
                if let Some((b, d, r)) = self.target(offset, size) {
                    self.bus.write(b, d, r, size, value);
                }
            }
        }
    }
}

/// The memory-mapped window: 4 KiB for each function.
pub struct ConfigWindow(pub Arc<PciBus>);

impl ConfigWindow {
    fn target(offset: u64, size: u8) -> Option<(u8, u8, u16)> {
        let in_word = (offset & 3) + u64::from(size) <= 4;
        in_word.then_some(((offset >> 20) as u8, (offset >> 12) as u8, offset as u16 & 0xfff))
    }
}

impl MmioDevice for ConfigWindow {
    fn read(&self, offset: u64, size: u8) -> u64 {
        Self::target(offset, size).map_or(u64::MAX, |(b, d, r)| self.0.read(b, d, r, size).into())
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some((b, d, r)) = Self::target(offset, size) {
            self.0.write(b, d, r, size, value as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Arc<PciBus> {
        let bus = PciBus::new();
        for (at, f) in bridges::q35() {
            assert!(bus.plug(at, Arc::new(f)).is_none());
        }
        bus
    }

    #[test]
    fn ports_find_functions() {
        let p = ConfigPorts::new(bus());
        p.write(0, 4, 0x8000_0000);
        assert_eq!(p.read(0, 4), 0x8000_0000);
        assert_eq!(p.read(4, 4), 0x29c0_8086);
        assert_eq!(p.read(6, 2), 0x29c0);
        assert_eq!(p.read(7, 1), 0x29);
        assert_eq!(p.read(7, 2), u32::MAX, "across words");
        p.write(0, 4, 0x8000_f808);
        assert_eq!(p.read(7, 1), 6, "a bridge");
        p.write(0, 4, 0x8000_1000);
        assert_eq!(p.read(4, 4), u32::MAX, "an empty slot");
        p.write(0, 4, 0x8001_0000);
        assert_eq!(p.read(4, 4), u32::MAX, "another bus");
        p.write(0, 4, 0);
        assert_eq!(p.read(4, 4), u32::MAX, "not enabled");
        p.write(0, 1, 0x80);
        assert_eq!(p.read(0, 4), 0);
    }

    #[test]
    fn the_window_shows_the_same() {
        let w = ConfigWindow(bus());
        assert_eq!(w.read(0, 4), 0x29c0_8086);
        assert_eq!(w.read(0x1f << 15, 4), 0x2918_8086);
        assert_eq!(w.read(0x100, 4), 0xffff_ffff, "no extended registers");
        assert_eq!(w.read(1 << 20, 4), 0xffff_ffff);
        w.write(0x1f << 15 | 0x60, 1, 0x0b);
        assert_eq!(w.read(0x1f << 15 | 0x60, 4) & 0xff, 0x0b);
        assert_eq!(w.read(0, 8), u64::MAX);
    }
}
