//! Loads of segment registers, and bases of FS and GS.

use std::mem::offset_of;

use iced_x86::{Instruction, OpKind};
use tessera_tcg::ir::{Value, Width};

use super::super::Translator;
use super::super::operand::segment_number;
use super::{env_load, env_store, mode_changed, privileged, segment_offset, shadow_next};
use crate::helpers::system as h;
use crate::state::{Msrs, Segment, X86Env, global, mode, seg};

/// Loads segment register `n`. Returns with the block open where the mode cannot have changed.
pub(super) fn load_segment(t: &mut Translator<'_>, n: usize, selector: Value) {
    if n == seg::SS {
        t.call(h::LOAD_SS, &[selector]);
    } else {
        let n = t.b.iconst(n as u64);
        t.call(h::LOAD_SEGMENT, &[n, selector]);
    }
}

/// Ends an instruction that has loaded segment register `n`.
pub(super) fn segment_loaded(t: &mut Translator<'_>, n: usize) {
    if n == seg::SS {
        shadow_next(t, true);
    } else if !t.code64() {
        mode_changed(t);
    }
}

pub(super) fn mov_segment(t: &mut Translator<'_>, i: &Instruction) {
    let n = segment_number(i.op0_register());
    if n == seg::CS {
        return t.undefined();
    }
    let v = match i.op1_kind() {
        OpKind::Register => t.reg(i.op1_register()),
        _ => {
            let addr = t.address(i, 2, false);
            t.load(Width::W16, addr)
        }
    };
    load_segment(t, n, v);
    segment_loaded(t, n);
}

pub(super) fn pop_segment(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let n = segment_number(i.op0_register());
    let v = t.peek(w, 0);
    load_segment(t, n, v);
    t.drop_stack(w.bytes() as i64);
    segment_loaded(t, n);
}

pub(super) fn load_far_pointer(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    let w = t.width(i, 0);
    let (offset, selector) = far_pointer(t, i, w);
    // Unlike MOV and POP, LSS opens no shadow.
    let number = t.b.iconst(n as u64);
    t.call(h::LOAD_SEGMENT, &[number, selector]);
    t.set_reg(i.op0_register(), offset);
    if !t.code64() || n == seg::SS {
        mode_changed(t);
    }
}

/// Offset and selector of a far pointer in memory.
pub(super) fn far_pointer(t: &mut Translator<'_>, i: &Instruction, w: Width) -> (Value, Value) {
    let addr = t.address(i, w.bytes() + 2, false);
    let offset = t.load(w, addr);
    let at = t.b.add_imm(Width::W64, addr, w.bytes() as i64);
    let at = if t.code64() { at } else { t.zx(Width::W32, at) };
    (offset, t.load(Width::W16, at))
}

pub(super) fn with_fsgsbase(t: &mut Translator<'_>) -> bool {
    let ok = t.is(mode::FSGSBASE);
    if !ok {
        t.undefined();
    }
    ok
}

pub(super) fn read_base(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    if with_fsgsbase(t) {
        let v = t.b.get(global::seg_base(n));
        t.set_reg(i.op0_register(), v);
    }
}

pub(super) fn write_base(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    if with_fsgsbase(t) {
        let v = t.reg_zx(i.op0_register());
        let n = t.b.iconst(n as u64);
        t.call(h::WRITE_BASE, &[n, v]);
    }
}

pub(super) fn swapgs(t: &mut Translator<'_>) {
    if !privileged(t) {
        return;
    }
    let kernel = offset_of!(X86Env, msr) + offset_of!(Msrs, kernel_gs_base);
    let base = t.b.get(global::seg_base(seg::GS));
    let other = env_load(t, Width::W64, kernel);
    env_store(t, Width::W64, kernel, base);
    env_store(t, Width::W64, segment_offset(seg::GS, offset_of!(Segment, base)), other);
    t.b.set(global::seg_base(seg::GS), other);
}
