//! The page walk.
//!
//! Problem: it runs at every miss of the software TLB, so it must be short; it must set accessed and dirty bits like
//! silicon, which other CPUs may watch; and its faults must be exact. Strategy: entries are read and updated in place
//! through host pointers, by compare-and-exchange; if an entry has changed meanwhile, the walk starts again. Rights are
//! accumulated by `and` and looked at once, at the leaf. Nothing is allocated.
//!
//! Choices where the manual leaves them: the accessed bits of upper levels are set as the walk passes, those of the
//! leaf only when the access is allowed. An entry outside of RAM reads as all ones (and so as one with reserved bits
//! set); one in ROM cannot be marked and counts as marked.
//!
//! A non-canonical address raises #GP(0) with the address in [`Exception::address`]. For a stack access it should be #SS(0),
//! but an MMU mode does not tell which segment it serves: delivery sees to that, by looking at the instruction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tessera_tcg::guest::{Access, Exception, Mapping};
use tessera_tcg::memory::PhysMemory;

use super::{Paging, canonical, error};
use crate::cpuid::Feature;
use crate::state::{Cr0, Cr4, Efer, X86Env, mmu_mode};
use crate::system::exception::{gp, vector};

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const XD: u64 = 1 << 63;
/// Bits 51:12 of a 64-bit entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A paging-structure entry where it lies.
trait Entry: Sized {
    type Cell;
    const ONES: u64;
    fn cell(page: *mut u8, offset: usize) -> *const Self::Cell;
    fn load(cell: &Self::Cell) -> u64;
    fn exchange(cell: &Self::Cell, old: u64, new: u64) -> bool;
}

struct Entry32;
struct Entry64;

impl Entry for Entry32 {
    type Cell = AtomicU32;
    const ONES: u64 = u32::MAX as u64;
    fn cell(page: *mut u8, offset: usize) -> *const AtomicU32 {
        page.wrapping_add(offset & 0xffc).cast()
    }
    fn load(cell: &AtomicU32) -> u64 {
        cell.load(Ordering::Acquire) as u64
    }
    fn exchange(cell: &AtomicU32, old: u64, new: u64) -> bool {
        cell.compare_exchange(old as u32, new as u32, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

impl Entry for Entry64 {
    type Cell = AtomicU64;
    const ONES: u64 = u64::MAX;
    fn cell(page: *mut u8, offset: usize) -> *const AtomicU64 {
        page.wrapping_add(offset & 0xff8).cast()
    }
    fn load(cell: &AtomicU64) -> u64 {
        cell.load(Ordering::Acquire)
    }
    fn exchange(cell: &AtomicU64, old: u64, new: u64) -> bool {
        cell.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// An entry as read, and its cell if it is in RAM.
struct Slot<'m, E: Entry> {
    value: u64,
    phys: u64,
    cell: Option<&'m E::Cell>,
}

impl<'m, E: Entry> Slot<'m, E> {
    #[inline]
    fn read(memory: &'m Arc<dyn PhysMemory>, phys: u64) -> Self {
        let Some(page) = memory.ram_page(phys) else { return Slot { value: E::ONES, phys, cell: None } };
        // SAFETY: `ram_page` returns a page of 4096 bytes that is valid as long as `memory` lives, which 'm borrows;
        // `cell` stays in it and is aligned, as pages are. Other CPUs and generated code write it, hence the atomic.
        let cell = unsafe { &*E::cell(page.host, phys as usize) };
        Slot { value: E::load(cell), phys, cell: page.writable.then_some(cell) }
    }

    /// Sets bits; false if the entry has changed since it was read.
    #[inline]
    fn mark(&self, env: &X86Env, bits: u64) -> bool {
        if self.value & bits == bits {
            return true;
        }
        let Some(cell) = self.cell else { return true };
        // Code may have been translated from the entry.
        let (mut changed, count) = env.changed_entries.get();
        if let Some(slot) = changed.get_mut(count as usize) {
            *slot = self.phys;
            env.changed_entries.set((changed, count + 1));
        }
        E::exchange(cell, self.value, self.value | bits)
    }
}

/// A 64-bit entry, for the PDPTE registers.
pub(super) fn read_entry(memory: &Arc<dyn PhysMemory>, phys: u64, a20: u64) -> u64 {
    Slot::<Entry64>::read(memory, phys & a20).value
}

/// What the walk looks for.
struct Request<'e> {
    env: &'e X86Env,
    va: u64,
    access: Access,
    mmu: u8,
    a20: u64,
}

/// What a leaf grants.
struct Leaf {
    phys: u64,
    page_bits: u8,
    /// Accumulated W and U; XD set if any level set it.
    rights: u64,
    entry: u64,
}

/// Translates `va` for an access in MMU mode `mmu`; see [`Guest::walk`](tessera_tcg::guest::Guest::walk).
pub fn walk(
    env: &X86Env,
    memory: &Arc<dyn PhysMemory>,
    va: u64,
    access: Access,
    mmu: u8,
) -> Result<Mapping, Exception> {
    let request = Request { env, va, access, mmu, a20: env.a20_mask };
    let paging = Paging::of(env);
    match paging {
        Paging::Off => Ok(Mapping {
            phys: va & 0xffff_f000 & request.a20,
            page_bits: 12,
            alike_bits: 12,
            read: true,
            write: true,
            execute: true,
            global: false,
        }),
        Paging::Long4 | Paging::Long5 => {
            if !canonical(env, va) {
                return Err(Exception { address: va, ..gp(0) });
            }
            let top = if paging == Paging::Long5 { 4 } else { 3 };
            // Bits 62:52 are ignored in long mode.
            let reserved = ADDRESS & u64::MAX << env.cpuid.phys_bits();
            request.walk64(memory, env.cr3 & ADDRESS, top, reserved)
        }
        Paging::Pae => {
            let pdpte = env.pdpte[(va >> 30 & 3) as usize];
            if pdpte & P == 0 {
                return Err(request.fault(0));
            }
            let reserved = !XD & u64::MAX << env.cpuid.phys_bits();
            request.walk64(memory, pdpte & ADDRESS, 1, reserved)
        }
        Paging::Legacy => request.walk32(memory),
    }
}

impl Request<'_> {
    /// A page fault with `bits` of the error code beside those that the access determines.
    #[cold]
    fn fault(&self, bits: u32) -> Exception {
        let env = self.env;
        let mut code = bits;
        if self.mmu == mmu_mode::USER {
            code |= error::USER;
        }
        match self.access {
            Access::Read => {}
            Access::Write => code |= error::WRITE,
            Access::Execute => {
                let nx = env.cr4.contains(Cr4::PAE) && env.efer.contains(Efer::NXE);
                if nx || env.cr4.contains(Cr4::SMEP) {
                    code |= error::FETCH;
                }
            }
        }
        Exception { vector: vector::PF, error: Some(code), address: self.va }
    }

    /// 64-bit entries from `level` (3: PML4, 2: PDPT, 1: PD, 0: PT) down.
    fn walk64(
        &self,
        memory: &Arc<dyn PhysMemory>,
        root: u64,
        top: u32,
        reserved: u64,
    ) -> Result<Mapping, Exception> {
        let env = self.env;
        let xd_reserved = if env.efer.contains(Efer::NXE) { 0 } else { XD };
        let reserved = reserved | xd_reserved;
        'again: loop {
            let (mut table, mut level) = (root, top);
            let mut rights = W | U;
            loop {
                let index = self.va >> (12 + 9 * level) & 0x1ff;
                let slot = Slot::<Entry64>::read(memory, (table + 8 * index) & self.a20);
                let entry = slot.value;
                if entry & P == 0 {
                    return Err(self.fault(0));
                }
                rights = (rights & entry & (W | U)) | ((rights | entry) & XD);
                if level == 0 || entry & PS != 0 && level <= 2 {
                    // Bits between the page's size and 12 are reserved, but for PAT in bit 12.
                    let offset = (1u64 << (12 + 9 * level)) - 1;
                    let large = offset & ADDRESS & !(level.min(1) as u64) << 12;
                    let no_gigabyte = level == 2 && !env.cpuid.has(Feature::PDPE1GB);
                    if entry & (reserved | large) != 0 || no_gigabyte {
                        return Err(self.fault(error::PRESENT | error::RESERVED));
                    }
                    let leaf = Leaf {
                        phys: (entry & ADDRESS & !offset) | self.va & offset,
                        page_bits: 12 + 9 * level as u8,
                        rights,
                        entry,
                    };
                    let mapping = self.grant(&leaf)?;
                    let dirty = if self.access == Access::Write { D } else { 0 };
                    if !slot.mark(env, A | dirty) {
                        continue 'again;
                    }
                    let rom = slot.cell.is_none();
                    return Ok(Mapping {
                        write: mapping.write && (rom || (entry | dirty) & D != 0),
                        ..mapping
                    });
                }
                // PS is reserved above the levels that have large pages.
                if entry & (reserved | if level > 2 { PS } else { 0 }) != 0 {
                    return Err(self.fault(error::PRESENT | error::RESERVED));
                }
                if !slot.mark(env, A) {
                    continue 'again;
                }
                table = entry & ADDRESS;
                level -= 1;
            }
        }
    }

    fn walk32(&self, memory: &Arc<dyn PhysMemory>) -> Result<Mapping, Exception> {
        let env = self.env;
        loop {
            let va = self.va & 0xffff_ffff;
            let directory =
                Slot::<Entry32>::read(memory, ((env.cr3 & 0xffff_f000) + (va >> 22) * 4) & self.a20);
            let pde = directory.value;
            if pde & P == 0 {
                return Err(self.fault(0));
            }
            let (slot, leaf) = if pde & PS != 0 && env.cr4.contains(Cr4::PSE) {
                // PSE-36: bits 20:13 are address bits 39:32 as far as those exist; 21 is reserved.
                let extra = env.cpuid.phys_bits().clamp(32, 40) - 32;
                let extra = if env.cpuid.has(Feature::PSE36) { extra } else { 0 };
                let reserved = 0x3f_e000 & u64::MAX << (13 + extra);
                if pde & reserved != 0 {
                    return Err(self.fault(error::PRESENT | error::RESERVED));
                }
                let high = (pde >> 13 & 0xff) << 32;
                let phys = high | pde & 0xffc0_0000 | va & 0x3f_f000;
                (directory, Leaf { phys, page_bits: 22, rights: pde & (W | U), entry: pde })
            } else {
                if !directory.mark(env, A) {
                    continue;
                }
                let table = (pde & 0xffff_f000) + (va >> 12 & 0x3ff) * 4;
                let slot = Slot::<Entry32>::read(memory, table & self.a20);
                let pte = slot.value;
                if pte & P == 0 {
                    return Err(self.fault(0));
                }
                let rights = pde & pte & (W | U);
                (slot, Leaf { phys: pte & 0xffff_f000, page_bits: 12, rights, entry: pte })
            };
            let mapping = self.grant(&leaf)?;
            let dirty = if self.access == Access::Write { D } else { 0 };
            if !slot.mark(env, A | dirty) {
                continue;
            }
            let rom = slot.cell.is_none();
            return Ok(Mapping { write: mapping.write && (rom || (leaf.entry | dirty) & D != 0), ..mapping });
        }
    }

    /// Rights of an access through `leaf` (SDM volume 3, section 4.6), or the fault. `write` is without regard to D.
    #[inline]
    fn grant(&self, leaf: &Leaf) -> Result<Mapping, Exception> {
        let env = self.env;
        let (page_user, page_write) = (leaf.rights & U != 0, leaf.rights & W != 0);
        let (mut read, mut write, mut execute);
        if self.mmu == mmu_mode::USER {
            read = page_user;
            write = page_user && page_write;
            execute = page_user;
        } else {
            let smap = page_user && self.mmu == mmu_mode::KERNEL_SMAP;
            read = !smap;
            write = !smap && (page_write || !env.cr0.contains(Cr0::WP));
            execute = !(page_user && env.cr4.contains(Cr4::SMEP));
        }
        execute &= leaf.rights & XD == 0;
        let mut key_fault = 0;
        if page_user && env.cr4.contains(Cr4::PKE) && env.efer.contains(Efer::LMA) {
            let key = leaf.entry >> 59 & 0xf;
            let (no_access, no_write) = (env.pkru >> (2 * key) & 1 != 0, env.pkru >> (2 * key + 1) & 1 != 0);
            let write_applies = self.mmu == mmu_mode::USER || env.cr0.contains(Cr0::WP);
            let no_write = no_access || no_write && write_applies;
            read &= !no_access;
            write &= !no_write;
            let violated = match self.access {
                Access::Read => no_access,
                Access::Write => no_write,
                Access::Execute => false,
            };
            if violated {
                key_fault = error::KEY;
            }
        }
        let allowed = match self.access {
            Access::Read => read,
            Access::Write => write,
            Access::Execute => execute,
        };
        if !allowed {
            return Err(self.fault(error::PRESENT | key_fault));
        }
        Ok(Mapping {
            phys: leaf.phys & !0xfff & self.a20,
            page_bits: leaf.page_bits,
            // A masked address line folds a large page.
            alike_bits: if self.a20 == u64::MAX { leaf.page_bits } else { 12 },
            read,
            write,
            execute,
            global: leaf.entry & G != 0 && env.cr4.contains(Cr4::PGE),
        })
    }
}
