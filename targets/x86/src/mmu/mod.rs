//! Guest paging (SDM volume 3, chapter 4).
//!
//! [`walk`] translates one linear address; the software MMU of the translator caches what it returns. This file has what
//! goes with it: names of address spaces, the page-directory-pointer registers of PAE paging, and the fields of page-fault
//! error codes.
//!
//! Address spaces: with CR4.PCIDE the *PCID alone* names the contents of the TLB, as in the architecture: a MOV to CR3
//! that keeps translations may go to other tables under the same PCID, and INVPCID knows nothing but PCIDs. Without it,
//! the table's address does, because a MOV to CR3 then flushes what it arrives at. The paging mode is part of the name
//! (a change of mode flushes everything anyway).

pub mod inspect;
mod walk;

use std::sync::Arc;

use tessera_tcg::guest::Exception;
use tessera_tcg::memory::PhysMemory;

pub use walk::walk;

use crate::cpuid::Feature;
use crate::guest::X86;
use crate::state::{Cr0, Cr4, Efer, X86Env};

/// Bits of a page fault's error code (SDM volume 3, section 4.7).
pub mod error {
    /// The entry was present: a protection violation.
    pub const PRESENT: u32 = 1 << 0;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// A user-mode access.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch.
    pub const FETCH: u32 = 1 << 4;
    /// Protection keys forbid it.
    pub const KEY: u32 = 1 << 5;
}

/// How linear addresses are translated now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Paging {
    /// CR0.PG clear: identity.
    Off,
    /// Two levels of 32-bit entries.
    Legacy,
    /// PDPTE registers and two levels of 64-bit entries.
    Pae,
    /// Four levels.
    Long4,
    /// Five levels.
    Long5,
}

impl Paging {
    /// The mode that the control registers select.
    #[inline]
    pub fn of(env: &X86Env) -> Paging {
        if !env.cr0.contains(Cr0::PG) {
            Paging::Off
        } else if env.efer.contains(Efer::LMA) {
            if env.cr4.contains(Cr4::LA57) { Paging::Long5 } else { Paging::Long4 }
        } else if env.cr4.contains(Cr4::PAE) {
            Paging::Pae
        } else {
            Paging::Legacy
        }
    }
}

/// Bits of a canonical linear address.
#[inline]
pub fn address_bits(env: &X86Env) -> u32 {
    if env.cr4.contains(Cr4::LA57) { 57 } else { 48 }
}

/// Whether a linear address is canonical for 64-bit mode as it is set up.
#[inline]
pub fn canonical(env: &X86Env, va: u64) -> bool {
    canonical_in(address_bits(env), va)
}

/// Whether an address is canonical as far as the processor knows addresses: what bases and system registers can hold, which
/// does not depend on CR4.LA57 (SDM volume 3, section 4.1 of "5-Level Paging").
#[inline]
pub fn canonical_base(env: &X86Env, va: u64) -> bool {
    canonical_in(if env.cpuid.has(Feature::LA57) { 57 } else { 48 }, va)
}

#[inline]
fn canonical_in(bits: u32, va: u64) -> bool {
    let unused = 64 - bits;
    ((va << unused) as i64 >> unused) as u64 == va
}

/// Takes one of the paging entries that walks have changed; see
/// [`Guest::changed_entry`](tessera_tcg::guest::Guest::changed_entry).
#[inline]
pub fn changed_entry(env: &X86Env) -> Option<u64> {
    let (entries, count) = env.changed_entries.get();
    let last = count.checked_sub(1)?;
    env.changed_entries.set((entries, last));
    entries.get(last as usize).copied()
}

/// Name of the current address space; see the module documentation.
#[inline]
pub fn address_space(env: &X86Env) -> u64 {
    let paging = Paging::of(env);
    let mode = (paging as u64) << 56;
    match paging {
        Paging::Off => mode,
        _ if env.cr4.contains(Cr4::PCIDE) => mode | 1 << 55 | env.cr3 & 0xfff,
        Paging::Pae => mode | env.cr3 & 0xffff_ffe0,
        _ => mode | env.cr3 & 0x000f_ffff_ffff_f000,
    }
}

/// Name of the address space of a PCID. Without CR4.PCIDE there is but the current one.
pub fn address_space_of_pcid(env: &X86Env, pcid: u16) -> u64 {
    if env.cr4.contains(Cr4::PCIDE) {
        address_space(env) & !0xfff | pcid as u64 & 0xfff
    } else {
        address_space(env)
    }
}

/// Guest-physical memory of this CPU.
pub fn memory(env: &X86Env) -> &Arc<dyn PhysMemory> {
    // SAFETY: `runtime` is set when the environment is bound to its vCPU, before guest code can run, and lives as
    // long; the field is never replaced.
    unsafe { &(*env.header.runtime).mmu.memory }
}

/// Reads the four PDPTEs that CR3 value `cr3` points to; a present one with reserved bits set raises #GP(0) (SDM volume 3,
/// section 4.4.1).
pub fn load_pdptes(env: &X86Env, cr3: u64) -> Result<[u64; 4], Exception> {
    let memory = memory(env);
    let mut table = [0; 4];
    for (n, entry) in table.iter_mut().enumerate() {
        *entry = walk::read_entry(memory, (cr3 & 0xffff_ffe0) + 8 * n as u64, env.a20_mask);
    }
    // P, PWT and PCD may be set; 2:1, 8:5 and those from MAXPHYADDR on may not.
    let reserved = 0x1e6 | u64::MAX << env.cpuid.phys_bits();
    match table.iter().any(|e| e & 1 != 0 && e & reserved != 0) {
        true => Err(crate::system::exception::gp(0)),
        false => Ok(table),
    }
}

/// Drops every cached translation.
pub fn flush_all(env: &mut X86Env) {
    tessera_tcg::softmmu::flush_all::<X86>(env);
}

/// After a change of what [`address_space`] or the walk depends on: flushes everything and takes up the new space.
pub fn flush_and_switch(env: &mut X86Env) {
    tessera_tcg::softmmu::flush_all::<X86>(env);
    tessera_tcg::softmmu::switch_space::<X86>(env);
}
