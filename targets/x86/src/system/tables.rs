//! Descriptor-table registers and the instructions that look at descriptors: LGDT, LLDT, LTR, LAR, LSL, VERR, VERW (SDM
//! volume 2). Privilege is the front ends' business.

use tessera_tcg::softmmu;

use super::exception::{gp, np};
use super::segment::{self, code_of, fetch, fetch_upper, is_null, lookup, set_access, system_type};
use super::{Result, data_mmu, long_mode};
use crate::guest::X86;
use crate::mmu::canonical_base;
use crate::state::{Segment, TableRegister, X86Env, seg};

/// Reads a pseudo-descriptor at linear address `va`: a limit, then a base of 3, 4 or 8 bytes (operand size 2, 4, 8).
fn load_pseudo(env: &mut X86Env, va: u64, size: u32) -> Result<TableRegister> {
    let mmu = data_mmu(env, env.cpl);
    let mut bytes = [0u8; 10];
    let len = if size == 8 { 10 } else { 6 };
    softmmu::load_bytes::<X86>(env, va, &mut bytes[..len], mmu)?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = u64::from_le_bytes(std::array::from_fn(|n| bytes[2 + n]));
    if size == 2 {
        base &= 0xff_ffff;
    }
    if size == 8 && !canonical_base(env, base) {
        return Err(gp(0));
    }
    Ok(TableRegister { base, limit })
}

/// LGDT.
pub fn lgdt(env: &mut X86Env, va: u64, size: u32) -> Result<()> {
    env.gdtr = load_pseudo(env, va, size)?;
    Ok(())
}

/// LIDT.
pub fn lidt(env: &mut X86Env, va: u64, size: u32) -> Result<()> {
    env.idtr = load_pseudo(env, va, size)?;
    Ok(())
}

/// SGDT (`idt` false) or SIDT: 6 bytes, or 10 with an operand size of 8.
pub fn store_table(env: &mut X86Env, idt: bool, va: u64, size: u32) -> Result<()> {
    let table = if idt { env.idtr } else { env.gdtr };
    let mmu = data_mmu(env, env.cpl);
    let mut bytes = [0u8; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if size == 8 { 10 } else { 6 };
    softmmu::store_bytes::<X86>(env, va, &bytes[..len], mmu)
}

/// A system segment with the upper half of its base, in long mode.
fn system_segment(env: &mut X86Env, selector: u16, kinds: &[u8]) -> Result<(segment::Entry, Segment)> {
    let code = code_of(selector);
    if selector & 4 != 0 {
        return Err(gp(code));
    }
    let entry = fetch(env, selector, gp(code))?;
    let d = entry.desc;
    if d.is_segment() || !kinds.contains(&d.kind()) {
        return Err(gp(code));
    }
    let mut loaded = d.segment(selector);
    if long_mode(env) {
        let upper = fetch_upper(env, selector, &entry, gp(code))?;
        loaded.base |= upper << 32;
        if !canonical_base(env, loaded.base) {
            return Err(gp(code));
        }
    }
    if !d.present() {
        return Err(np(code));
    }
    Ok((entry, loaded))
}

/// LLDT.
pub fn lldt(env: &mut X86Env, selector: u16) -> Result<()> {
    env.seg[seg::LDTR] = if is_null(selector) {
        segment::null_segment(selector)
    } else {
        system_segment(env, selector, &[system_type::LDT])?.1
    };
    Ok(())
}

/// LTR: marks the TSS busy.
pub fn ltr(env: &mut X86Env, selector: u16) -> Result<()> {
    if is_null(selector) {
        return Err(gp(0));
    }
    let kinds: &[u8] =
        if long_mode(env) { &[system_type::TSS] } else { &[system_type::TSS16, system_type::TSS] };
    let (entry, loaded) = system_segment(env, selector, kinds)?;
    set_access(env, &entry, 2, 0)?;
    env.seg[seg::TR] = Segment { access: loaded.access | 2, ..loaded };
    Ok(())
}

/// The descriptor that LAR, LSL, VERR or VERW look at, if the selector is valid and visible.
fn visible(env: &mut X86Env, selector: u16) -> Result<Option<segment::Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(entry) = lookup(env, selector)? else { return Ok(None) };
    let d = entry.desc;
    let rpl = (selector & 3) as u8;
    let seen = d.is_conforming() || d.dpl() >= env.cpl && d.dpl() >= rpl;
    Ok(seen.then_some(d))
}

/// LAR: the access rights in place (bits 23:8), if the selector is valid.
pub fn lar(env: &mut X86Env, selector: u16) -> Result<Option<u64>> {
    let long = long_mode(env);
    let Some(d) = visible(env, selector)? else { return Ok(None) };
    use system_type::*;
    let valid = d.is_segment()
        || match d.kind() {
            LDT | TSS | TSS_BUSY | CALL_GATE => true,
            TSS16 | TSS16_BUSY | CALL_GATE16 | TASK_GATE => !long,
            _ => false,
        };
    Ok(valid.then_some(d.0 >> 32 & 0x00ff_ff00))
}

/// LSL: the limit in bytes, if the selector is valid.
pub fn lsl(env: &mut X86Env, selector: u16) -> Result<Option<u64>> {
    let long = long_mode(env);
    let Some(d) = visible(env, selector)? else { return Ok(None) };
    use system_type::*;
    let valid = d.is_segment()
        || match d.kind() {
            LDT | TSS | TSS_BUSY => true,
            TSS16 | TSS16_BUSY => !long,
            _ => false,
        };
    Ok(valid.then_some(d.limit() as u64))
}

/// VERR (or VERW): whether the segment can be read (written).
pub fn verify(env: &mut X86Env, selector: u16, write: bool) -> Result<bool> {
    let Some(d) = visible(env, selector)? else { return Ok(false) };
    Ok(if write { d.is_writable() } else { d.is_readable() })
}
