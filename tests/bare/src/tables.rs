//! Descriptors as the manual's figures draw them (Intel SDM volume 3A, sections 3.4.5, 5.8.3 and 6.11), and the descriptor
//! table that all programs start with.

use crate::layout::*;

/// Access byte of a present segment of ring 0, and what to add to it.
pub const CODE: u32 = 0x9B;
pub const WRITABLE: u32 = 0x93;
/// Type bits of data: expand-down; of code: conforming.
pub const DOWN: u32 = 4;
pub const RING1: u32 = 0x20;
pub const RING3: u32 = 0x60;
/// Flags of the second doubleword: granularity, 32-bit, 64-bit.
pub const G: u32 = 8;
pub const B: u32 = 4;
pub const L: u32 = 2;

/// Types of gates and system segments, present, of ring 0.
pub const TSS16: u32 = 0x81;
pub const LDT_TYPE: u32 = 0x82;
pub const CALL16: u32 = 0x84;
pub const TASK: u32 = 0x85;
pub const INT16: u32 = 0x86;
pub const TRAP16: u32 = 0x87;
pub const TSS32: u32 = 0x89;
pub const CALL32: u32 = 0x8C;
pub const INT32: u32 = 0x8E;
pub const TRAP32: u32 = 0x8F;

/// Offsets of fields of a 32-bit task state segment (figure 7-2) that checks look at.
pub mod tss {
    #![allow(missing_docs)]
    pub const LINK: u32 = 0;
    pub const CR3: u32 = 0x1C;
    pub const EIP: u32 = 0x20;
    pub const EFLAGS: u32 = 0x24;
    pub const EAX: u32 = 0x28;
    pub const ESP: u32 = 0x38;
    pub const ES: u32 = 0x48;
    pub const CS: u32 = 0x4C;
    pub const SS: u32 = 0x50;
    pub const DS: u32 = 0x54;
    pub const FS: u32 = 0x58;
    pub const GS: u32 = 0x5C;
    pub const LDTR: u32 = 0x60;
    pub const TRAP: u32 = 0x64;
}

/// A segment descriptor.
pub const fn segment(base: u32, limit: u32, access: u32, flags: u32) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | (access as u64) << 40
        | (limit >> 16 & 0xF) << 48
        | (flags as u64) << 52
        | base >> 24 << 56
}

/// A gate descriptor; `count` is the number of parameters, or the interrupt stack table's index.
pub const fn gate(selector: u32, offset: u32, access: u32, count: u32) -> u64 {
    (offset & 0xFFFF) as u64
        | (selector as u64) << 16
        | (count as u64) << 32
        | (access as u64) << 40
        | (offset as u64 >> 16) << 48
}

/// The table every check starts with.
pub fn gdt(bits: u32) -> Vec<u8> {
    let flat = 0xF_FFFF;
    let mut entries = [0u64; GDT_SIZE as usize / 8];
    let mut set = |selector: u32, value| entries[selector as usize >> 3] = value;
    set(CODE32, segment(0, flat, CODE, G | B));
    set(DATA, segment(0, flat, WRITABLE, G | B));
    set(CODE64, segment(0, flat, CODE, G | L));
    set(DATA64, segment(0, flat, WRITABLE, G | B));
    set(USER32, segment(0, flat, CODE | RING3, G | B));
    set(USER_DATA, segment(0, flat, WRITABLE | RING3, G | B));
    set(USER64, segment(0, flat, CODE | RING3, G | L));
    set(CODE16, segment(IMAGE, 0xFFFF, CODE, 0));
    set(DATA16, segment(0, 0xFFFF, WRITABLE, 0));
    set(TSS_SEL, segment(TSS, TSS_LIMIT, TSS32, 0));
    set(LDT_SEL, segment(LDT, LDT_SIZE - 1, LDT_TYPE, 0));
    if bits == 32 {
        set(TSS_B_SEL, segment(TSS_B, 0x67, TSS32, 0));
        set(TSS16_A_SEL, segment(TSS16_A, 0x2B, TSS16, 0));
        set(TSS16_B_SEL, segment(TSS16_B, 0x2B, TSS16, 0));
        set(RING1_CODE, segment(0, flat, CODE | RING1, G | B));
        set(RING1_DATA, segment(0, flat, WRITABLE | RING1, G | B));
    }
    set(CONFORMING, segment(0, flat, CODE | 4, if bits == 64 { G | L } else { G | B }));
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}
