//! Control and debug registers, descriptor tables.

use std::mem::offset_of;

use iced_x86::{Instruction, OpKind, Register};
use tessera_tcg::ir::{BinOp, Cond, FlagOp, HelperId, Inst, Value, Width, flags};

use super::super::Translator;
use super::{
    env_load, env_store, mode_changed, poll_next, privileged, segment_offset, unless_umip, with_selectors,
};
use crate::helpers::system as h;
use crate::state::{Segment, X86Env, global, mode};

pub(super) fn control_number(r: Register) -> usize {
    (r as usize).wrapping_sub(Register::CR0 as usize)
}

pub(super) fn mov_from_control(t: &mut Translator<'_>, i: &Instruction) {
    let offset = match control_number(i.op1_register()) {
        0 => Some(offset_of!(X86Env, cr0)),
        2 => Some(offset_of!(X86Env, cr2)),
        3 => Some(offset_of!(X86Env, cr3)),
        4 => Some(offset_of!(X86Env, cr4)),
        8 => None,
        _ => return t.undefined(),
    };
    if !privileged(t) {
        return;
    }
    let v = match offset {
        Some(offset) => env_load(t, Width::W64, offset),
        None => t.call(h::READ_CR8, &[]),
    };
    t.set_reg(i.op0_register(), v);
}

pub(super) fn mov_to_control(t: &mut Translator<'_>, i: &Instruction) {
    let n = control_number(i.op0_register());
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return t.undefined();
    }
    if !privileged(t) {
        return;
    }
    let v = t.reg_zx(i.op1_register());
    match n {
        2 => env_store(t, Width::W64, offset_of!(X86Env, cr2), v),
        3 => {
            t.call(h::WRITE_CR3, &[v]);
            poll_next(t);
        }
        8 => {
            t.call(h::WRITE_CR8, &[v]);
            poll_next(t);
        }
        _ => {
            let n = t.b.iconst(n as u64);
            t.call(h::WRITE_CR, &[n, v]);
            mode_changed(t);
        }
    }
}

pub(super) fn debug_number(t: &mut Translator<'_>, r: Register) -> Option<Value> {
    let n = (r as usize).wrapping_sub(Register::DR0 as usize);
    if n > 7 {
        t.undefined();
        return None;
    }
    Some(t.b.iconst(n as u64))
}

pub(super) fn mov_from_debug(t: &mut Translator<'_>, i: &Instruction) {
    if let Some(n) = debug_number(t, i.op1_register()) {
        let v = t.call(h::READ_DR, &[n]);
        t.set_reg(i.op0_register(), v);
    }
}

pub(super) fn mov_to_debug(t: &mut Translator<'_>, i: &Instruction) {
    if let Some(n) = debug_number(t, i.op0_register()) {
        let v = t.reg_zx(i.op1_register());
        t.call(h::WRITE_DR, &[n, v]);
        mode_changed(t);
    }
}

/// SMSW, SLDT, STR: the low word to memory; registers get as many bits as they have.
pub(super) fn store_word(t: &mut Translator<'_>, i: &Instruction, offset: usize) {
    if !unless_umip(t) {
        return;
    }
    if i.op0_kind() == OpKind::Register {
        let v = env_load(t, Width::W32, offset);
        t.set_reg(i.op0_register(), v);
    } else {
        let addr = t.address(i, 2, true);
        let v = env_load(t, Width::W16, offset);
        t.store(Width::W16, addr, v);
    }
}

pub(super) fn store_selector(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    if !with_selectors(t) || !unless_umip(t) {
        return;
    }
    let offset = segment_offset(n, offset_of!(Segment, selector));
    let v = env_load(t, Width::W16, offset);
    if i.op0_kind() == OpKind::Register {
        t.set_reg(i.op0_register(), v);
    } else {
        let addr = t.address(i, 2, true);
        t.store(Width::W16, addr, v);
    }
}

/// A word operand: the low half of a register, or two bytes of memory.
pub(super) fn word_operand(t: &mut Translator<'_>, i: &Instruction, n: u32) -> Value {
    if i.op_kind(n) == OpKind::Register {
        let v = t.reg(i.op_register(n));
        return t.b.extend(Width::W16, tessera_tcg::ir::Ext::Zero, v);
    }
    let addr = t.address(i, 2, false);
    t.load(Width::W16, addr)
}

pub(super) fn lmsw(t: &mut Translator<'_>, i: &Instruction) {
    if privileged(t) {
        let v = word_operand(t, i, 0);
        t.call(h::LMSW, &[v]);
        mode_changed(t);
    }
}

pub(super) fn clts(t: &mut Translator<'_>) {
    if privileged(t) {
        t.call(h::CLTS, &[]);
        mode_changed(t);
    }
}

pub(super) fn invlpg(t: &mut Translator<'_>, i: &Instruction) {
    if privileged(t) {
        let addr = t.address(i, 0, false);
        t.call(h::INVLPG, &[addr]);
        poll_next(t);
    }
}

pub(super) fn invpcid(t: &mut Translator<'_>, i: &Instruction) {
    if t.is(mode::V86) {
        return t.protection();
    }
    if privileged(t) {
        let kind = t.reg_zx(i.op0_register());
        let addr = t.address(i, 16, false);
        t.call(h::INVPCID, &[kind, addr]);
        poll_next(t);
    }
}

pub(super) fn load_table(t: &mut Translator<'_>, i: &Instruction, helper: HelperId, size: u64) {
    if privileged(t) {
        let addr = t.address(i, if size == 8 { 10 } else { 6 }, false);
        let size = t.b.iconst(size);
        t.call(helper, &[addr, size]);
    }
}

pub(super) fn store_table(t: &mut Translator<'_>, i: &Instruction, idt: u64) {
    if !unless_umip(t) {
        return;
    }
    let size = if t.code64() { 8 } else { 4 };
    let addr = t.address(i, if size == 8 { 10 } else { 6 }, true);
    let (idt, size) = (t.b.iconst(idt), t.b.iconst(size));
    t.call(h::STORE_TABLE, &[idt, addr, size]);
}

pub(super) fn load_system(t: &mut Translator<'_>, i: &Instruction, helper: HelperId) {
    if with_selectors(t) && privileged(t) {
        let v = word_operand(t, i, 0);
        t.call(helper, &[v]);
    }
}

/// Sets ZF to a value that is 1 or 0, and leaves the other flags.
pub(super) fn set_zero_flag(t: &mut Translator<'_>, zero: Value) {
    let packed = t.packed_flags();
    let bit = flags::Z.trailing_zeros() as u8;
    let v = t.b.push(Inst::Insert { a: packed, b: zero, pos: bit, len: 1 });
    t.set_packed_flags(v);
}

/// LAR and LSL.
pub(super) fn inspect(t: &mut Translator<'_>, i: &Instruction, helper: HelperId) {
    if !with_selectors(t) {
        return;
    }
    let selector = word_operand(t, i, 1);
    let found = t.call(helper, &[selector]);
    let none = t.b.iconst(u64::MAX);
    let f = t.b.flags(FlagOp::Sub, Width::W64, found, none);
    let valid = t.b.set_cond(Cond::NE, f);
    let old = t.reg(i.op0_register());
    // An invalid selector leaves all of the register; a valid one writes it as its size says.
    if t.width(i, 0) == Width::W16 {
        let v = t.b.select(Cond::NE, f, found, old);
        t.set_reg(i.op0_register(), v);
    } else {
        let n = i.op0_register().full_register() as usize - Register::RAX as usize;
        let full = t.gpr(n);
        let v = t.b.select(Cond::NE, f, found, full);
        t.b.set(global::gpr(n), v);
    }
    set_zero_flag(t, valid);
}

pub(super) fn verify(t: &mut Translator<'_>, i: &Instruction, write: u64) {
    if with_selectors(t) {
        let selector = word_operand(t, i, 0);
        let write = t.b.iconst(write);
        let valid = t.call(h::VERIFY, &[selector, write]);
        set_zero_flag(t, valid);
    }
}

pub(super) fn arpl(t: &mut Translator<'_>, i: &Instruction) {
    if !with_selectors(t) {
        return;
    }
    // Read as such first: a fault says so.
    let old = t.read(i, 0);
    let place = t.place(i, 0);
    let source = t.reg(i.op1_register());
    let have = t.b.bin_imm(BinOp::And, Width::W32, old, 3);
    let want = t.b.bin_imm(BinOp::And, Width::W32, source, 3);
    let f = t.b.flags(FlagOp::Sub, Width::W32, have, want);
    let raised = t.b.push(Inst::Insert { a: old, b: want, pos: 0, len: 2 });
    let new = t.b.select(Cond::B, f, raised, old);
    let lower = t.b.set_cond(Cond::B, f);
    t.store_place(place, Width::W16, new);
    set_zero_flag(t, lower);
}
