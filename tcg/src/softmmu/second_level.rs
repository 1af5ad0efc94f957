//! The second-level TLB: results of page table walks, of all address spaces and MMU modes together.
//!
//! Direct-mapped and inclusive: every walk for data goes here and from here to the first level. Unlike there, an entry
//! says everything that the walk said, so it also serves MMIO and pages that are only sometimes writable directly.
//! Entries are tagged by ASID (see [`Spaces`](super::Spaces)), so that flushing a space costs nothing.

use super::{MMU_MODES, page_of};
use crate::memory::PAGE_SIZE;

/// Reads are allowed.
pub(crate) const READ: u64 = 1 << 0;
/// Writes are allowed, and the dirty bit is set.
pub(crate) const WRITE: u64 = 1 << 1;
/// Belongs to every address space.
pub(crate) const GLOBAL: u64 = 1 << 2;
/// The page is RAM, not ROM.
pub(crate) const HOST_WRITABLE: u64 = 1 << 3;

/// All that a large entry of the first level would be for is mapped like the page, to contiguous RAM or ROM.
pub(crate) const LARGE: u64 = 1 << 4;

/// Entries; a power of two.
const ENTRIES: usize = 8192;

/// A result of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Guest-virtual page address and MMU mode.
    tag: u64,
    asid: u64,
    /// Guest-physical page address and flags.
    phys: u64,
    /// Host address of the page; null if it is neither RAM nor ROM.
    pub host: *mut u8,
}

impl Entry {
    const EMPTY: Entry = Entry { tag: u64::MAX, asid: 0, phys: 0, host: std::ptr::null_mut() };

    /// The entry of a page.
    pub fn new(page: u64, mmu: u8, asid: u64, phys: u64, flags: u64, host: *mut u8) -> Entry {
        Entry { tag: tag(page, mmu), asid, phys: page_of(phys) | flags, host }
    }

    /// Guest-physical page address.
    #[inline]
    pub fn phys(&self) -> u64 {
        page_of(self.phys)
    }

    /// Whether all of the given flags are set.
    #[inline]
    pub fn has(&self, flags: u64) -> bool {
        self.phys & flags == flags
    }
}

pub(crate) struct SecondLevel {
    entries: Box<[Entry]>,
}

fn tag(page: u64, mmu: u8) -> u64 {
    page | u64::from(mmu)
}

fn index(page: u64, mmu: u8, asid: u64) -> usize {
    let spread = asid.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51;
    ((page >> 12) ^ u64::from(mmu) << 10 ^ spread) as usize % ENTRIES
}

impl SecondLevel {
    pub fn new() -> SecondLevel {
        SecondLevel { entries: vec![Entry::EMPTY; ENTRIES].into_boxed_slice() }
    }

    /// The entry of a page in the space `asid`, or else the global one.
    #[inline]
    pub fn get(&self, page: u64, mmu: u8, asid: u64, global_asid: u64) -> Option<Entry> {
        let tag = tag(page, mmu);
        for asid in [asid, global_asid] {
            let e = self.entries[index(page, mmu, asid)];
            if e.tag == tag && e.asid == asid {
                return Some(e);
            }
        }
        None
    }

    /// Remembers a walk.
    pub fn insert(&mut self, e: Entry) {
        let (page, mmu) = (page_of(e.tag), (e.tag & 0xf) as u8);
        self.entries[index(page, mmu, e.asid)] = e;
    }

    /// Drops one page in all modes, from a space and from the global one (or twice the same).
    pub fn drop_page(&mut self, page: u64, asid: u64, global_asid: u64) {
        for mmu in 0..MMU_MODES as u8 {
            for asid in [asid, global_asid].iter().take(1 + usize::from(global_asid != asid)) {
                let e = &mut self.entries[index(page, mmu, *asid)];
                if e.tag == tag(page, mmu) && e.asid == *asid {
                    *e = Entry::EMPTY;
                }
            }
        }
    }

    /// Drops all 4 KiB pages of the large page of `1 << bits` bytes that contains `va`.
    pub fn drop_large(&mut self, va: u64, bits: u32, asid: u64, global_asid: u64) {
        if bits <= 22 {
            let start = va >> bits << bits;
            for n in 0..1u64 << (bits - 12) {
                self.drop_page(start + n * PAGE_SIZE, asid, global_asid);
            }
        } else {
            for e in &mut self.entries {
                if e.tag >> bits == va >> bits && (e.asid == asid || e.asid == global_asid) {
                    *e = Entry::EMPTY;
                }
            }
        }
    }
}
