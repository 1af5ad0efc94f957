//! Page walks for people and debuggers.
//!
//! Problem: a debugger wants to know where a linear address leads, and the guest must not notice that it asked. Strategy:
//! a walk of its own, slow and simple, over a [`CpuState`] (so that it serves every engine) and a function that reads
//! memory. It sets no accessed or dirty bits, caches nothing, ignores who would access, and keeps what it has seen.
//!
//! Source: SDM volume 3, chapter 4.

use crate::cpu_state::CpuState;
use crate::state::{Cr0, Cr4, Efer};

const P: u64 = 1 << 0;
const PS: u64 = 1 << 7;
/// Bits 51:12 of a 64-bit entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A paging-structure entry that a walk has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// What the manual calls the entry: `PML4E`, `PTE` …
    pub name: &'static str,
    /// Where it is in guest-physical memory; `None` for a register.
    pub at: Option<u64>,
    /// The entry.
    pub entry: u64,
}

/// What a walk has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walk {
    /// The entries, from the top.
    pub steps: Vec<Step>,
    /// The guest-physical address and the page's size in bytes, or why there is none.
    pub result: Result<(u64, u64), &'static str>,
}

/// How a state translates addresses.
#[derive(Clone, Copy)]
struct Tables {
    root: u64,
    levels: u32,
}

/// Translates linear address `va` under `state`. `read` reads 4 or 8 bytes of guest-physical memory; `None` where there
/// is no memory.
pub fn walk(state: &CpuState, read: &mut dyn FnMut(u64, u32) -> Option<u64>, va: u64) -> Walk {
    let long = state.efer & Efer::LMA.bits() != 0;
    let cr4 = Cr4::from_bits_retain(state.cr4);
    if state.cr0 & Cr0::PG.bits() == 0 {
        return Walk { steps: Vec::new(), result: Ok((va & 0xffff_ffff, 1 << 12)) };
    }
    if long {
        let levels = if cr4.contains(Cr4::LA57) { 5 } else { 4 };
        let unused = 64 - (12 + 9 * levels);
        if ((va << unused) as i64 >> unused) as u64 != va {
            return Walk { steps: Vec::new(), result: Err("the address is not canonical") };
        }
        return walk64(Tables { root: state.cr3 & ADDRESS, levels }, read, va, Vec::new());
    }
    let va = va & 0xffff_ffff;
    if !cr4.contains(Cr4::PAE) {
        return walk32(state, read, va);
    }
    let entry = state.pdpte[(va >> 30) as usize];
    let steps = vec![Step { name: "PDPTE", at: None, entry }];
    if entry & P == 0 {
        return Walk { steps, result: Err("the page-directory-pointer entry is not present") };
    }
    walk64(Tables { root: entry & ADDRESS, levels: 2 }, read, va, steps)
}

fn walk64(
    tables: Tables,
    read: &mut dyn FnMut(u64, u32) -> Option<u64>,
    va: u64,
    mut steps: Vec<Step>,
) -> Walk {
    const NAMES: [&str; 5] = ["PTE", "PDE", "PDPTE", "PML4E", "PML5E"];
    let mut table = tables.root;
    for level in (0..tables.levels).rev() {
        let shift = 12 + 9 * level;
        let at = table + 8 * (va >> shift & 0x1ff);
        let Some(entry) = read(at, 8) else {
            return Walk { steps, result: Err("a paging structure is not in memory") };
        };
        steps.push(Step { name: NAMES[level as usize], at: Some(at), entry });
        if entry & P == 0 {
            return Walk { steps, result: Err("an entry is not present") };
        }
        if level == 0 || level <= 2 && entry & PS != 0 {
            let size = 1u64 << shift;
            return Walk { steps, result: Ok((entry & ADDRESS & !(size - 1) | va & (size - 1), size)) };
        }
        table = entry & ADDRESS;
    }
    Walk { steps, result: Err("the tables have no end") }
}

fn walk32(state: &CpuState, read: &mut dyn FnMut(u64, u32) -> Option<u64>, va: u64) -> Walk {
    let mut steps = Vec::new();
    let at = (state.cr3 & 0xffff_f000) + 4 * (va >> 22);
    let Some(entry) = read(at, 4) else {
        return Walk { steps, result: Err("a paging structure is not in memory") };
    };
    steps.push(Step { name: "PDE", at: Some(at), entry });
    if entry & P == 0 {
        return Walk { steps, result: Err("an entry is not present") };
    }
    if entry & PS != 0 && state.cr4 & Cr4::PSE.bits() != 0 {
        // Bits 39:32 of the address are in 20:13.
        let base = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
        return Walk { steps, result: Ok((base | va & 0x3f_ffff, 1 << 22)) };
    }
    let at = (entry & 0xffff_f000) + 4 * (va >> 12 & 0x3ff);
    let Some(entry) = read(at, 4) else {
        return Walk { steps, result: Err("a paging structure is not in memory") };
    };
    steps.push(Step { name: "PTE", at: Some(at), entry });
    if entry & P == 0 {
        return Walk { steps, result: Err("an entry is not present") };
    }
    Walk { steps, result: Ok((entry & 0xffff_f000 | va & 0xfff, 1 << 12)) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::cpuid::CpuidTable;
    use crate::state::X86Env;
    use crate::testing::NoPlatform;

    fn state() -> CpuState {
        X86Env::new(Box::new(NoPlatform::default()), CpuidTable::default()).cpu_state()
    }

    fn run(state: &CpuState, memory: &[(u64, u64)], va: u64) -> Walk {
        let memory: HashMap<u64, u64> = memory.iter().copied().collect();
        walk(state, &mut |at, _| memory.get(&at).copied(), va)
    }

    #[test]
    fn without_paging_addresses_are_cut_to_32_bits() {
        assert_eq!(run(&state(), &[], 0x1_0000_1234).result, Ok((0x1234, 4096)));
    }

    #[test]
    fn four_levels_and_large_pages() {
        let mut s = state();
        (s.cr0, s.cr4, s.efer) = (Cr0::PG.bits() | Cr0::PE.bits(), Cr4::PAE.bits(), Efer::LMA.bits());
        s.cr3 = 0x1000 | 0x18;
        let va = 0xffff_8000_4020_3abc;
        let tables = [
            (0x1000 + 8 * 256, 0x2003),
            (0x2000 + 8, 0x3003),
            (0x3000 + 8, 0x4003),
            (0x4000 + 8 * 3, 0x8000_0000_0009_9003),
        ];
        let found = run(&s, &tables, va);
        assert_eq!(found.result, Ok((0x99abc, 4096)));
        assert_eq!(found.steps.iter().map(|s| s.name).collect::<Vec<_>>(), ["PML4E", "PDPTE", "PDE", "PTE"]);
        assert_eq!(found.steps[3].at, Some(0x4018));
        let mut large = tables;
        large[2].1 = 0x20_0083;
        assert_eq!(run(&s, &large, va).result, Ok((0x20_3abc, 2 << 20)));
        large[1].1 = 0x4000_0083;
        assert_eq!(run(&s, &large, va).result, Ok((0x4020_3abc, 1 << 30)));
        large[0].1 = 0x2002;
        assert!(run(&s, &large, va).result.is_err());
        assert!(run(&s, &tables, 0x8000_0000_0000_0000).steps.is_empty());
        assert!(run(&s, &tables[..3], va).result.is_err(), "a table outside of memory");
    }

    #[test]
    fn two_levels_and_pae() {
        let mut s = state();
        (s.cr0, s.cr3) = (Cr0::PG.bits() | Cr0::PE.bits(), 0x1000);
        let va = 0x0040_1234;
        assert_eq!(run(&s, &[(0x1004, 0x2003), (0x2004, 0x7003)], va).result, Ok((0x7234, 4096)));
        s.cr4 = Cr4::PSE.bits();
        assert_eq!(run(&s, &[(0x1004, 0x0080_2083)], va).result, Ok((0x1_0080_1234, 4 << 20)));
        s.cr4 = Cr4::PAE.bits();
        s.pdpte[0] = 0x3001;
        assert_eq!(run(&s, &[(0x3010, 0x4003), (0x4008, 0x8003)], va).result, Ok((0x8234, 4096)));
        s.pdpte[0] = 0;
        assert!(run(&s, &[], va).result.is_err());
    }
}
