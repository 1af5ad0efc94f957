//! Descriptor tables, made here as bytes and copied to RAM by the code that uses them.

use super::layout::*;
use tessera_asm::{Code, R, Symbols};

/// Exceptions that push an error code (Intel SDM volume 3, table 6-1).
pub const WITH_ERROR_CODE: [u32; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

const fn segment(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | (access as u64) << 40
        | (limit >> 16 & 0xF) << 48
        | (flags as u64) << 52
        | (base >> 24) << 56
}

/// A call gate to 32-bit code with `parameters` doublewords, open to ring 3.
fn call_gate(target: u32, parameters: u8) -> u64 {
    u64::from(target & 0xFFFF)
        | u64::from(CODE32) << 16
        | u64::from(parameters) << 32
        | 0xEC << 40
        | u64::from(target >> 16) << 48
}

fn gdt(s: &Symbols) -> Vec<u8> {
    let flat = 0xF_FFFF;
    let mut entries = [0u64; GDT_SIZE as usize / 8];
    let mut set = |selector: u16, value| entries[usize::from(selector >> 3)] = value;
    set(CODE32, segment(0, flat, 0x9B, 0xC));
    set(DATA, segment(0, flat, 0x93, 0xC));
    set(CODE64, segment(0, flat, 0x9B, 0xA));
    set(CODE64 + 8, segment(0, flat, 0x93, 0xC)); // SYSCALL takes it for SS
    set(USER_CODE32, segment(0, flat, 0xFB, 0xC));
    set(USER_DATA, segment(0, flat, 0xF3, 0xC));
    set(USER_CODE64, segment(0, flat, 0xFB, 0xA));
    set(CODE16, segment(ROM_BASE as u32, 0xFFFF, 0x9B, 0));
    set(SMALL, segment(SCRATCH, 0xFF, 0x93, 0x4));
    set(DOWN, segment(SCRATCH, 0xFF, 0x97, 0x4));
    set(ABSENT, segment(0, flat, 0x13, 0xC));
    set(READ_ONLY, segment(0, flat, 0x91, 0xC));
    set(EXECUTE_ONLY, segment(0, flat, 0x99, 0xC));
    set(TSS32_SELECTOR, segment(TSS32, TSS32_LIMIT, 0x89, 0));
    set(GATE, call_gate(s.imm("32.gate"), 1));
    set(TSS64_SELECTOR, segment(TSS64, 0x67, 0x89, 0)); // its second half stays 0
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// Limit of the 32-bit TSS: 104 bytes, a permission bitmap for ports 0–0x3FF, and the byte of ones behind it.
pub const TSS32_LIMIT: u32 = 0x68 + 0x80;

/// Number of entries of the IDT used in 32-bit mode; interrupts above are beyond its limit.
pub const IDT32_ENTRIES: u32 = VEC_ABSENT as u32 + 1;

fn idt32(s: &Symbols) -> Vec<u8> {
    let mut entries = vec![0u64; IDT32_ENTRIES as usize];
    let gate = |name: &str, access: u64| {
        let target = s.at(name);
        target & 0xFFFF | u64::from(CODE32) << 16 | access << 40 | (target >> 16 & 0xFFFF) << 48
    };
    for (vector, entry) in entries.iter_mut().take(32).enumerate() {
        // INT3 and INTO are open to ring 3, as operating systems have it.
        let access = if matches!(vector, 3 | 4) { 0xEE } else { 0x8E };
        *entry = gate(&format!("32.vector{vector}"), access);
    }
    entries[usize::from(VEC_SYSCALL)] = gate("32.vector128", 0xEE);
    entries[usize::from(VEC_ABSENT)] = gate("32.vector0", 0x0E);
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

fn idt64(s: &Symbols) -> Vec<u8> {
    let mut entries = vec![0u128; 256];
    let gate = |name: &str, access: u128, ist: u128| {
        let target = u128::from(s.at(name));
        target & 0xFFFF
            | u128::from(CODE64) << 16
            | ist << 32
            | access << 40
            | (target >> 16 & 0xFFFF) << 48
            | (target >> 32) << 64
    };
    for (vector, entry) in entries.iter_mut().take(32).enumerate() {
        let access = if vector == 3 { 0xEE } else { 0x8E };
        // #GP has a stack of its own.
        *entry = gate(&format!("64.vector{vector}"), access, u128::from(vector == 13));
    }
    entries[usize::from(VEC_SYSCALL)] = gate("64.vector128", 0xEE, 0);
    for line in 0..16u8 {
        entries[usize::from(VEC_PIC + line)] = gate("64.pic_spurious", 0x8E, 0);
    }
    entries[usize::from(VEC_PIC)] = gate("64.irq0", 0x8E, 0);
    entries[usize::from(VEC_LAPIC)] = gate("64.lapic_timer", 0x8E, 0);
    entries[usize::from(VEC_IOAPIC)] = gate("64.ioapic", 0x8E, 0);
    entries[usize::from(VEC_SPURIOUS)] = gate("64.lapic_spurious", 0x8E, 0);
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    c.data("gdt", &gdt(s))?;
    c.data("idt32", &idt32(s))?;
    c.data("idt64", &idt64(s))
}
