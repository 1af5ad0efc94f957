//! The guest-physical address space.
//!
//! # Problem
//! A guest-physical address is RAM, ROM, a device register or nothing, and devices move (PCI BARs, the APIC base)
//! while vCPUs run. Lookups happen at every softmmu TLB fill and every MMIO access, so they must be short.
//!
//! # Strategy
//! Mappings carry a priority and may overlap; every change computes a flat, sorted, disjoint list of ranges which
//! lookups search under a read lock. MMIO devices live in a fixed table of slots that only fills up, so a device
//! is called without any lock of ours held: it may itself change the map. Ordinary RAM, which is nearly every
//! lookup, is recognised before the lock as long as nothing overlays it.
//!
//! # Invariants
//! - Memory blocks, once mapped, are kept until the space is dropped, so a host pointer from [`Region::Ram`]
//!   is valid as long as the space is. Whoever caches one drops it on [`MemoryObserver::on_map_change`].
//! - `flat` is sorted, without overlaps and never empty ranges; everything between is unmapped.

mod ram;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

pub use ram::GuestRam;

use crate::log::GUEST_ERRORS;

/// How many MMIO devices an address space takes.
const MAX_MMIO: usize = 256;

/// A device with registers in guest-physical memory.
///
/// `offset` counts from the start of the device's mapping and `offset + size` is within it; `size` is 1, 2, 4 or 8
/// and the access may be misaligned.
pub trait MmioDevice: Send + Sync {
    /// Reads `size` bytes; bits above are ignored.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`.
    fn write(&self, offset: u64, size: u8, value: u64);
}

/// Told about changes that a cache of guest memory or of its layout must follow.
pub trait MemoryObserver: Send + Sync {
    /// A device is about to have written `len` bytes of RAM at `phys`: translations of these bytes are stale.
    fn on_dma_write(&self, phys: u64, len: u64);
    /// The map changed: cached regions and host pointers are stale.
    fn on_map_change(&self) {}
}

/// Names an MMIO device in its address space; may be cached, never changes meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmioId(u16);

/// What is at a guest-physical address.
#[derive(Clone, Copy, Debug)]
pub enum Region {
    /// RAM, or ROM when not `writable`.
    Ram {
        /// Host address of the byte looked up.
        host: *mut u8,
        /// Its offset in the memory block.
        offset: u64,
        /// Bytes from there to the end of the region.
        len: u64,
        /// False for ROM: writes are dropped.
        writable: bool,
    },
    /// Device registers.
    Mmio {
        /// The device, for [`AddressSpace::mmio`].
        id: MmioId,
        /// Offset of the address in the device.
        offset: u64,
        /// Bytes from there to the end of the region.
        len: u64,
    },
    /// Nothing: reads give all ones, writes are lost.
    Unmapped {
        /// Bytes to the next region, or to the end of the address space.
        len: u64,
    },
}

/// Identifies a mapping, to move or remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingId(u64);

#[derive(Clone)]
enum Target {
    Memory { block: Arc<GuestRam>, offset: u64, writable: bool },
    Mmio(MmioId),
}

struct Mapping {
    id: u64,
    base: u64,
    len: u64,
    priority: i32,
    target: Target,
}

/// A flattened piece: `start..=last` shows `target` from `offset` on.
struct Flat {
    start: u64,
    last: u64,
    offset: u64,
    target: Target,
}

#[derive(Default)]
struct Map {
    mappings: Vec<Mapping>,
    flat: Vec<Flat>,
    /// Keeps every block ever mapped alive.
    blocks: Vec<Arc<GuestRam>>,
    next_id: u64,
}

impl Map {
    fn find(&self, phys: u64) -> Result<&Flat, u64> {
        let i = self.flat.partition_point(|f| f.last < phys);
        match self.flat.get(i) {
            Some(f) if f.start <= phys => Ok(f),
            Some(f) => Err(f.start - phys),
            None => Err((u64::MAX - phys).saturating_add(1)),
        }
    }

    fn flatten(&mut self) {
        // Cut the axis at every start and end; each piece shows the mapping of the highest priority, the latest of
        // equals. Maps have tens of entries, so the square costs nothing.
        let mut cuts = BTreeSet::new();
        for m in &self.mappings {
            cuts.insert(m.base);
            if let Some(end) = m.base.checked_add(m.len) {
                cuts.insert(end);
            }
        }
        let cuts: Vec<u64> = cuts.into_iter().collect();
        let mut flat: Vec<Flat> = Vec::new();
        let mut shown = u64::MAX;
        for (i, &start) in cuts.iter().enumerate() {
            let last = cuts.get(i + 1).map_or(u64::MAX, |e| e - 1);
            let top = self
                .mappings
                .iter()
                .filter(|m| m.base <= start && start - m.base < m.len)
                .max_by_key(|m| (m.priority, m.id));
            match top {
                Some(m) if m.id == shown && flat.last().is_some_and(|f| f.last.wrapping_add(1) == start) => {
                    if let Some(f) = flat.last_mut() {
                        f.last = last;
                    }
                }
                Some(m) => {
                    shown = m.id;
                    flat.push(Flat { start, last, offset: start - m.base, target: m.target.clone() });
                }
                None => shown = u64::MAX,
            }
        }
        self.flat = flat;
    }
}

/// RAM that is looked up without a lock.
struct FastRam {
    start: u64,
    len: u64,
    block: Arc<GuestRam>,
    offset: u64,
}

/// The guest-physical address space of one machine. Shared by all vCPUs and devices.
#[derive(Default)]
pub struct AddressSpace {
    map: RwLock<Map>,
    mmio: Box<[OnceLock<Arc<dyn MmioDevice>>]>,
    fast: OnceLock<Vec<FastRam>>,
    fast_off: AtomicBool,
    observer: RwLock<Option<Arc<dyn MemoryObserver>>>,
}

/// Why a mapping was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// The range is empty, wraps, or is larger than the memory block.
    #[error("bad range {base:#x}+{len:#x}")]
    BadRange {
        /// First guest-physical address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Too many MMIO devices.
    #[error("more than {MAX_MMIO} MMIO devices")]
    Full,
}

impl AddressSpace {
    /// An empty space.
    pub fn new() -> Self {
        Self { mmio: (0..MAX_MMIO).map(|_| OnceLock::new()).collect(), ..Self::default() }
    }

    fn read_map(&self) -> std::sync::RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change<R>(&self, f: impl FnOnce(&mut Map) -> R) -> R {
        let r = {
            let mut map = self.map.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            let r = f(&mut map);
            map.flatten();
            let overlaid = self.fast.get().into_iter().flatten().any(|fast| {
                !map.find(fast.start)
                    .is_ok_and(|f| f.start <= fast.start && f.last - fast.start >= fast.len - 1)
            });
            self.fast_off.store(overlaid, Ordering::Release);
            r
        };
        let observer = self.observer.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(o) = observer {
            o.on_map_change();
        }
        r
    }

    /// Sets who is told about DMA writes and map changes (one observer; a later one replaces it).
    pub fn set_observer(&self, observer: Arc<dyn MemoryObserver>) {
        *self.observer.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(observer);
    }

    /// Maps `len` bytes of `block` from `offset` at `base`: RAM, or ROM when not `writable`. Where mappings overlap
    /// the higher `priority` shows, of equals the later.
    pub fn map_memory(
        &self,
        base: u64,
        len: u64,
        block: &Arc<GuestRam>,
        offset: u64,
        writable: bool,
        priority: i32,
    ) -> Result<MappingId, MapError> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= block.len());
        if !fits {
            return Err(MapError::BadRange { base, len });
        }
        let target = Target::Memory { block: Arc::clone(block), offset, writable };
        self.add(base, len, target, priority)
    }

    /// Declares that `base..base+len` is mapped RAM that is looked up often and overlaid hardly ever. Call once per
    /// space, with all such ranges, after mapping them; a later overlay is honoured at the price of the shortcut.
    pub fn set_fast_ram(&self, ranges: &[(u64, u64)]) {
        let map = self.read_map();
        let fast = ranges.iter().filter_map(|&(start, len)| match map.find(start) {
            Ok(Flat {
                start: s,
                last,
                offset: o,
                target: Target::Memory { block, offset, writable: true },
            }) if len > 0 && last - start >= len - 1 => {
                Some(FastRam { start, len, block: Arc::clone(block), offset: offset + o + (start - s) })
            }
            _ => None,
        });
        let _first_call_wins = self.fast.set(fast.collect());
    }

    /// Gives `device` a slot without mapping it.
    pub fn add_mmio(&self, device: Arc<dyn MmioDevice>) -> Result<MmioId, MapError> {
        let mut device = device;
        for (i, slot) in self.mmio.iter().enumerate() {
            match slot.set(device) {
                Ok(()) => return Ok(MmioId(i as u16)),
                Err(back) => device = back,
            }
        }
        Err(MapError::Full)
    }

    /// Maps a device that has a slot.
    pub fn map_mmio(&self, base: u64, len: u64, id: MmioId, priority: i32) -> Result<MappingId, MapError> {
        self.add(base, len, Target::Mmio(id), priority)
    }

    fn add(&self, base: u64, len: u64, target: Target, priority: i32) -> Result<MappingId, MapError> {
        if len == 0 || base.checked_add(len - 1).is_none() {
            return Err(MapError::BadRange { base, len });
        }
        Ok(self.change(|map| {
            let id = map.next_id;
            map.next_id += 1;
            if let Target::Memory { block, .. } = &target
                && !map.blocks.iter().any(|b| Arc::ptr_eq(b, block))
            {
                map.blocks.push(Arc::clone(block));
            }
            map.mappings.push(Mapping { id, base, len, priority, target });
            MappingId(id)
        }))
    }

    /// Moves a mapping to `base`. False when it does not exist or would wrap.
    pub fn move_mapping(&self, id: MappingId, base: u64) -> bool {
        self.change(|map| match map.mappings.iter_mut().find(|m| m.id == id.0) {
            Some(m) if base.checked_add(m.len - 1).is_some() => {
                m.base = base;
                true
            }
            _ => false,
        })
    }

    /// Removes a mapping. False when it does not exist.
    pub fn unmap(&self, id: MappingId) -> bool {
        self.change(|map| {
            let before = map.mappings.len();
            map.mappings.retain(|m| m.id != id.0);
            map.mappings.len() != before
        })
    }

    /// What is at `phys`.
    #[inline]
    pub fn lookup(&self, phys: u64) -> Region {
        if !self.fast_off.load(Ordering::Acquire) {
            for f in self.fast.get().into_iter().flatten() {
                let d = phys.wrapping_sub(f.start);
                if d < f.len {
                    return Region::Ram {
                        host: f.block.host_base().wrapping_add((f.offset + d) as usize),
                        offset: f.offset + d,
                        len: f.len - d,
                        writable: true,
                    };
                }
            }
        }
        self.lookup_slow(phys)
    }

    fn lookup_slow(&self, phys: u64) -> Region {
        match self.read_map().find(phys) {
            Ok(f) => {
                let offset = f.offset + (phys - f.start);
                let len = (f.last - phys).saturating_add(1);
                match &f.target {
                    Target::Memory { block, offset: block_offset, writable } => Region::Ram {
                        host: block.host_base().wrapping_add((block_offset + offset) as usize),
                        offset: block_offset + offset,
                        len,
                        writable: *writable,
                    },
                    Target::Mmio(id) => Region::Mmio { id: *id, offset, len },
                }
            }
            Err(len) => Region::Unmapped { len },
        }
    }

    /// The device named by `id`.
    pub fn mmio(&self, id: MmioId) -> Option<&dyn MmioDevice> {
        self.mmio.get(usize::from(id.0)).and_then(OnceLock::get).map(|d| &**d)
    }

    /// Reads `size` (1, 2, 4 or 8) bytes as a vCPU does; all ones where nothing is mapped.
    pub fn read(&self, phys: u64, size: u8) -> u64 {
        let n = u64::from(size);
        match self.lookup(phys) {
            Region::Ram { host, len, .. } if len >= n => {
                // SAFETY: the region has `len` >= size bytes at `host`, in a block that this space keeps alive.
                unsafe { ram::load(host, size) }
            }
            Region::Mmio { id, offset, len } if len >= n => {
                self.mmio(id).map_or(u64::MAX, |d| d.read(offset, size)) & mask(size)
            }
            Region::Unmapped { len } if len >= n => {
                tracing::debug!(target: GUEST_ERRORS, "read of {size} bytes at unmapped {phys:#x}");
                mask(size)
            }
            // It crosses from one region to another.
            _ => (0..n).fold(0, |v, i| v | self.read(phys.wrapping_add(i), 1) << (8 * i)),
        }
    }

    /// Writes the low `size` (1, 2, 4 or 8) bytes of `value` as a vCPU does. The observer is not told: the vCPU
    /// that stores knows.
    pub fn write(&self, phys: u64, size: u8, value: u64) {
        let n = u64::from(size);
        match self.lookup(phys) {
            Region::Ram { host, len, writable: true, .. } if len >= n => {
                // SAFETY: as in `read`.
                unsafe { ram::store(host, size, value) }
            }
            Region::Ram { len, .. } if len >= n => {
                tracing::debug!(target: GUEST_ERRORS, "write of {size} bytes to ROM at {phys:#x}");
            }
            Region::Mmio { id, offset, len } if len >= n => {
                if let Some(d) = self.mmio(id) {
                    d.write(offset, size, value & mask(size));
                }
            }
            Region::Unmapped { len } if len >= n => {
                tracing::debug!(target: GUEST_ERRORS, "write of {size} bytes at unmapped {phys:#x}: {value:#x}");
            }
            _ => (0..n).for_each(|i| self.write(phys.wrapping_add(i), 1, value >> (8 * i) & 0xff)),
        }
    }

    /// Copies guest memory out, as a device does by DMA. Registers are read in pieces of up to 4 bytes.
    pub fn read_bytes(&self, phys: u64, buf: &mut [u8]) {
        let mut phys = phys;
        let mut buf = buf;
        while !buf.is_empty() {
            let n = match self.lookup(phys) {
                Region::Ram { host, len, .. } => {
                    let n = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
                    // SAFETY: `host` has `len` >= n bytes behind it in a block that this space keeps alive; `buf` is a
                    // Rust object and cannot overlap guest memory.
                    unsafe { std::ptr::copy_nonoverlapping(host, buf.as_mut_ptr(), n) };
                    n
                }
                Region::Mmio { len, .. } => {
                    let n = dma_piece(phys, len, buf.len());
                    buf[..n].copy_from_slice(&self.read(phys, n as u8).to_le_bytes()[..n]);
                    n
                }
                Region::Unmapped { len } => {
                    let n = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
                    buf[..n].fill(0xff);
                    n
                }
            };
            phys = phys.wrapping_add(n as u64);
            buf = &mut buf[n..];
        }
    }

    /// Copies into guest memory, as a device does by DMA, and tells the observer. ROM and holes swallow the bytes.
    pub fn write_bytes(&self, phys: u64, buf: &[u8]) {
        let mut phys = phys;
        let mut buf = buf;
        while !buf.is_empty() {
            let n = match self.lookup(phys) {
                Region::Ram { host, len, writable, .. } => {
                    let n = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
                    if writable {
                        // SAFETY: as in `read_bytes`.
                        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), host, n) };
                        self.dma_written(phys, n as u64);
                    }
                    n
                }
                Region::Mmio { len, .. } => {
                    let n = dma_piece(phys, len, buf.len());
                    let mut bytes = [0; 8];
                    bytes[..n].copy_from_slice(&buf[..n]);
                    self.write(phys, n as u8, u64::from_le_bytes(bytes));
                    n
                }
                Region::Unmapped { len } => usize::try_from(len).unwrap_or(usize::MAX).min(buf.len()),
            };
            phys = phys.wrapping_add(n as u64);
            buf = &buf[n..];
        }
    }

    /// Tells the observer that RAM was written other than by a vCPU: for devices that write through host pointers.
    pub fn dma_written(&self, phys: u64, len: u64) {
        let observer = self.observer.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(o) = observer {
            o.on_dma_write(phys, len);
        }
    }
}

/// The largest of 4, 2, 1 bytes that is aligned at `phys` and fits.
fn dma_piece(phys: u64, region: u64, wanted: usize) -> usize {
    [4, 2].into_iter().find(|&n| phys.is_multiple_of(n) && n <= region && n <= wanted as u64).unwrap_or(1)
        as usize
}

/// Ones in the low `size` bytes.
pub const fn mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}

#[cfg(test)]
mod tests;
