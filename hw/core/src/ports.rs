//! The I/O port space: 65,536 byte-wide addresses.
//!
//! # Problem
//! Every `in` and `out` comes through here, devices move (PCI I/O BARs), and guests access ports at other widths than
//! the device has.
//!
//! # Strategy
//! One table entry per port names a slot in a fixed table of claims, so an access is two array reads and a call, with no
//! lock. An access that is wider than the device, or that runs past its ports, is split into halves and each half looked
//! up again, as the ISA bus does; so a 16-bit access to two neighbouring byte devices reaches both.
//!
//! # Invariants
//! Claims are never freed before the bus, only unmapped, so a slot number read from the table is always good; offsets are
//! checked against the claim's length after the lookup, since a claim may move in between.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::lock;
use crate::log::GUEST_ERRORS;

/// How many claims a bus takes.
const MAX_CLAIMS: usize = 512;
/// Marks a claim that is mapped nowhere.
const NOWHERE: u32 = u32::MAX;

/// A device with I/O ports. `offset` counts from the first port of the claim; `size` is 1, 2 or 4, at most the width
/// that was declared with the claim, and `offset + size` is within the claim. Accesses may be misaligned.
pub trait PortDevice: Send + Sync {
    /// Reads `size` bytes; bits above are ignored.
    fn read(&self, offset: u16, size: u8) -> u32;
    /// Writes the low `size` bytes of `value`; bits above are zero.
    fn write(&self, offset: u16, size: u8, value: u32);
}

struct Claim {
    device: Arc<dyn PortDevice>,
    len: u16,
    width: u8,
    base: AtomicU32,
}

/// Names a claim, to map and unmap it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimId(u16);

/// More than 512 claims.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_CLAIMS} I/O port claims")]
pub struct TooManyClaims;

/// The port space of one machine. Shared by all vCPUs.
pub struct PortBus {
    /// Slot number plus one for each port, 0 where nobody answers.
    table: Box<[AtomicU16]>,
    claims: Box<[OnceLock<Claim>]>,
    /// Held while the table changes.
    changing: Mutex<()>,
}

impl Default for PortBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PortBus {
    /// An empty bus.
    pub fn new() -> Self {
        Self {
            table: (0..0x1_0000).map(|_| AtomicU16::new(0)).collect(),
            claims: (0..MAX_CLAIMS).map(|_| OnceLock::new()).collect(),
            changing: Mutex::new(()),
        }
    }

    /// Gives a device `len` ports without mapping them. `width` is the widest access it takes: 1, 2 or 4 bytes.
    pub fn claim(&self, device: Arc<dyn PortDevice>, len: u16, width: u8) -> Result<ClaimId, TooManyClaims> {
        let mut claim = Claim { device, len, width, base: AtomicU32::new(NOWHERE) };
        for (i, slot) in self.claims.iter().enumerate() {
            match slot.set(claim) {
                Ok(()) => return Ok(ClaimId(i as u16)),
                Err(back) => claim = back,
            }
        }
        Err(TooManyClaims)
    }

    /// Claims and maps in one go.
    pub fn add(
        &self,
        base: u16,
        len: u16,
        width: u8,
        device: Arc<dyn PortDevice>,
    ) -> Result<ClaimId, TooManyClaims> {
        let id = self.claim(device, len, width)?;
        self.map(id, base);
        Ok(id)
    }

    /// Maps the claim at `base`, away from where it was; where claims overlap the last one mapped answers. Ports past
    /// 0xFFFF are cut off.
    pub fn map(&self, id: ClaimId, base: u16) {
        let _changing = lock(&self.changing);
        let Some(claim) = self.claims.get(usize::from(id.0)).and_then(OnceLock::get) else { return };
        self.clear(id, claim);
        claim.base.store(base.into(), Ordering::Release);
        for port in (u32::from(base)..u32::from(base) + u32::from(claim.len)).take_while(|&p| p <= 0xffff) {
            self.table[port as usize].store(id.0 + 1, Ordering::Release);
        }
    }

    /// Takes the claim off the bus.
    pub fn unmap(&self, id: ClaimId) {
        let _changing = lock(&self.changing);
        if let Some(claim) = self.claims.get(usize::from(id.0)).and_then(OnceLock::get) {
            self.clear(id, claim);
            claim.base.store(NOWHERE, Ordering::Release);
        }
    }

    fn clear(&self, id: ClaimId, claim: &Claim) {
        let base = claim.base.load(Ordering::Acquire);
        if base == NOWHERE {
            return;
        }
        for port in (base..base + u32::from(claim.len)).take_while(|&p| p <= 0xffff) {
            // Another claim may have been mapped over part of this one.
            let entry = &self.table[port as usize];
            if entry.load(Ordering::Acquire) == id.0 + 1 {
                entry.store(0, Ordering::Release);
            }
        }
    }

    /// Who answers at `port`, and at which offset.
    #[inline]
    fn find(&self, port: u16) -> Option<(&Claim, u16)> {
        let slot = self.table[usize::from(port)].load(Ordering::Acquire).checked_sub(1)?;
        let claim = self.claims.get(usize::from(slot))?.get()?;
        let offset = u32::from(port).wrapping_sub(claim.base.load(Ordering::Acquire));
        (offset < u32::from(claim.len)).then_some((claim, offset as u16))
    }

    /// `in`: reads `size` (1, 2 or 4) bytes; all ones where nobody answers.
    pub fn read(&self, port: u16, size: u8) -> u32 {
        let ones = crate::mem::mask(size) as u32;
        match self.find(port) {
            Some((c, offset)) if fits(c, offset, size) => c.device.read(offset, size) & ones,
            None if size == 1 => {
                tracing::debug!(target: GUEST_ERRORS, "read of unclaimed port {port:#x}");
                ones
            }
            _ => {
                let half = size / 2;
                let low = self.read(port, half);
                let high = port.checked_add(half.into()).map_or(u32::MAX, |p| self.read(p, half));
                low | (high & (ones >> (8 * half))) << (8 * half)
            }
        }
    }

    /// `out`: writes the low `size` (1, 2 or 4) bytes of `value`.
    pub fn write(&self, port: u16, size: u8, value: u32) {
        let value = value & crate::mem::mask(size) as u32;
        match self.find(port) {
            Some((c, offset)) if fits(c, offset, size) => c.device.write(offset, size, value),
            None if size == 1 => {
                tracing::debug!(target: GUEST_ERRORS, "write of {value:#x} to unclaimed port {port:#x}");
            }
            _ => {
                let half = size / 2;
                self.write(port, half, value);
                if let Some(next) = port.checked_add(half.into()) {
                    self.write(next, half, value >> (8 * half));
                }
            }
        }
    }
}

/// Whether the device takes the access whole. Byte accesses always do: `find` checked the offset.
fn fits(claim: &Claim, offset: u16, size: u8) -> bool {
    size == 1 || (size <= claim.width && u32::from(offset) + u32::from(size) <= u32::from(claim.len))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its own tag and the offset; remembers writes.
    struct Probe(u32, Mutex<Vec<(u16, u8, u32)>>);
    impl PortDevice for Probe {
        fn read(&self, offset: u16, size: u8) -> u32 {
            if size == 1 {
                self.0 << 4 | u32::from(offset)
            } else {
                0x1000_0000 * u32::from(size) + u32::from(offset)
            }
        }
        fn write(&self, offset: u16, size: u8, value: u32) {
            lock(&self.1).push((offset, size, value));
        }
    }
    fn probe(tag: u32) -> Arc<Probe> {
        Arc::new(Probe(tag, Mutex::default()))
    }

    #[test]
    fn splits_wide_accesses() {
        let bus = PortBus::new();
        let (a, b, wide) = (probe(1), probe(2), probe(3));
        bus.add(0x60, 2, 1, a.clone()).unwrap();
        bus.add(0x62, 1, 1, b.clone()).unwrap();
        bus.add(0xcf8, 8, 4, wide.clone()).unwrap();
        assert_eq!(bus.read(0x60, 1), 0x10);
        assert_eq!(bus.read(0x60, 4), 0xff20_1110);
        assert_eq!(bus.read(0x64, 4), 0xffff_ffff);
        assert_eq!(bus.read(0xcf8, 4), 0x4000_0000);
        assert_eq!(bus.read(0xcfe, 4), 0xffff_0006, "past the end: halves");
        bus.write(0x61, 2, 0xabcd);
        assert_eq!(*lock(&a.1), [(1, 1, 0xcd)]);
        assert_eq!(*lock(&b.1), [(0, 1, 0xab)]);
        bus.write(0xcfc, 2, 0xffff_1234);
        assert_eq!(*lock(&wide.1), [(4, 2, 0x1234)]);
    }

    #[test]
    fn the_end_of_the_space_does_not_wrap() {
        let bus = PortBus::new();
        bus.add(0, 1, 4, probe(1)).unwrap();
        let last = probe(2);
        bus.add(0xfffe, 8, 1, last.clone()).unwrap();
        assert_eq!(bus.read(0xfffe, 4), 0xffff_2120);
        bus.write(0xffff, 4, 0x0403_0201);
        assert_eq!(*lock(&last.1), [(1, 1, 1)]);
    }

    #[test]
    fn overlays_and_moves() {
        let bus = PortBus::new();
        let (wide, byte) = (probe(1), probe(2));
        bus.add(0xcf8, 4, 4, wide).unwrap();
        let id = bus.add(0xcf9, 1, 1, byte).unwrap();
        assert_eq!(bus.read(0xcf9, 1), 0x20);
        assert_eq!(bus.read(0xcf8, 4), 0x4000_0000, "the wide device takes the access whole");
        bus.map(id, 0x100);
        assert_eq!(bus.read(0xcf9, 1), 0xff);
        assert_eq!(bus.read(0x100, 1), 0x20);
        bus.unmap(id);
        assert_eq!(bus.read(0x100, 1), 0xff);
    }
}
