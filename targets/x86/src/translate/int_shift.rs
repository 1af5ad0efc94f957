//! Shifts and rotates, by one, by an immediate and by CL; double shifts; the flagless ones of BMI2.

use iced_x86::{Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{BinOp, Cond, FlagOp, Inst, Value, Width, flags};

use super::operand::Place;
use super::{Row, Translator};
use crate::helpers::{self, int::RIGHT};
use crate::state::reg;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Shl, |t, i| shift(t, i, BinOp::Shl, FlagOp::Shl)),
    Row::All(Mnemonic::Sal, |t, i| shift(t, i, BinOp::Shl, FlagOp::Shl)),
    Row::All(Mnemonic::Shr, |t, i| shift(t, i, BinOp::Shr, FlagOp::Shr)),
    Row::All(Mnemonic::Sar, |t, i| shift(t, i, BinOp::Sar, FlagOp::Sar)),
    Row::All(Mnemonic::Rol, |t, i| shift(t, i, BinOp::Rol, FlagOp::Rol)),
    Row::All(Mnemonic::Ror, |t, i| shift(t, i, BinOp::Ror, FlagOp::Ror)),
    Row::All(Mnemonic::Rcl, |t, i| rotate_carry(t, i, 0)),
    Row::All(Mnemonic::Rcr, |t, i| rotate_carry(t, i, RIGHT)),
    Row::All(Mnemonic::Shld, |t, i| double_shift(t, i, 0)),
    Row::All(Mnemonic::Shrd, |t, i| double_shift(t, i, RIGHT)),
    Row::All(Mnemonic::Shlx, |t, i| flagless(t, i, BinOp::Shl)),
    Row::All(Mnemonic::Shrx, |t, i| flagless(t, i, BinOp::Shr)),
    Row::All(Mnemonic::Sarx, |t, i| flagless(t, i, BinOp::Sar)),
    Row::All(Mnemonic::Rorx, |t, i| flagless(t, i, BinOp::Ror)),
];

fn count_mask(w: Width) -> u64 {
    if w == Width::W64 { 63 } else { 31 }
}

/// The count operand: a masked constant, or CL unmasked.
enum Count {
    Const(u64),
    Variable(Value),
}

fn count(t: &mut Translator<'_>, i: &Instruction, n: u32, w: Width) -> Count {
    if i.op_kind(n) == OpKind::Register {
        Count::Variable(t.gpr(reg::RCX))
    } else {
        Count::Const(i.immediate(n) & count_mask(w))
    }
}

/// SHL, SHR, SAR, ROL, ROR.
fn shift(t: &mut Translator<'_>, i: &Instruction, op: BinOp, flag_op: FlagOp) {
    let w = t.width(i, 0);
    let count = count(t, i, 1, w);
    let place = t.place(i, 0);
    let a = t.load_place(place, w);
    // Not all whose count is known: CL may be, too.
    let (immediate, count) = match count {
        // The operand is written nevertheless: a 32-bit register loses its upper half.
        Count::Const(0) => return t.store_place(place, w, a),
        Count::Const(n) => (n != 1, t.b.iconst(n)),
        Count::Variable(v) => (false, v),
    };
    let old = t.flags();
    let r = t.b.bin(op, w, a, count);
    t.store_place(place, w, r);
    if matches!((op, place), (BinOp::Rol | BinOp::Ror, Place::Reg(_))) && immediate {
        // The manual leaves V undefined. Silicon keeps it in this form, and does as `FlagOp::Rol` says in the others.
        let pos = if op == BinOp::Rol { 0 } else { w.bits() as u8 - 1 };
        let carry = t.b.push(Inst::Extract { a: r, pos, len: 1 });
        let packed = t.b.push(Inst::Pack(old));
        let packed = t.b.push(Inst::Insert { a: packed, b: carry, pos: 8, len: 1 });
        return t.set_packed_flags(packed);
    }
    let f = t.b.flags_old(flag_op, w, a, count, old);
    t.set_flags(f);
}

/// RCL (`right` = 0), RCR (`right` = [`RIGHT`]).
fn rotate_carry(t: &mut Translator<'_>, i: &Instruction, right: u64) {
    let w = t.width(i, 0);
    let count = count(t, i, 1, w);
    let place = t.place(i, 0);
    let a = t.load_place(place, w);
    let (r, packed) = match count {
        Count::Const(0) => return t.store_place(place, w, a),
        Count::Const(1) if right != 0 => rotate_carry_right_once(t, w, a),
        Count::Const(1) => rotate_carry_left_once(t, w, a),
        count => {
            let count = match count {
                Count::Const(n) => t.b.iconst(n),
                Count::Variable(v) => t.b.bin_imm(BinOp::And, Width::W32, v, count_mask(w)),
            };
            let packed = t.packed_flags();
            let width = t.b.iconst(w.bits() as u64 | right);
            let args = [a, count, packed, width];
            (t.call(helpers::int::RC_RESULT, &args), t.call(helpers::int::RC_FLAGS, &args))
        }
    };
    t.store_place(place, w, r);
    t.set_packed_flags(packed);
}

fn rotate_carry_left_once(t: &mut Translator<'_>, w: Width, a: Value) -> (Value, Value) {
    // `a + a + C`, whose C and V are those of the rotation.
    let old = t.flags();
    let r = t.b.push(Inst::Carry { sub: false, w, a, b: a, f: old });
    let sum = t.b.flags_old(FlagOp::Adc, w, a, a, old);
    let kept = t.b.push(Inst::Pack(old));
    let changed = t.b.push(Inst::Pack(sum));
    let mask = (flags::C | flags::V) as u64;
    let kept = t.b.bin_imm(BinOp::And, Width::W32, kept, !mask & 0xffff_ffff);
    let changed = t.b.bin_imm(BinOp::And, Width::W32, changed, mask);
    let packed = t.b.bin(BinOp::Or, Width::W32, kept, changed);
    (r, packed)
}

fn rotate_carry_right_once(t: &mut Translator<'_>, w: Width, a: Value) -> (Value, Value) {
    let top = w.bits() as u8 - 1;
    let old = t.flags();
    let carry = t.b.set_cond(Cond::B, old);
    let r = t.b.bin_imm(BinOp::Shr, w, a, 1);
    let r = t.b.push(Inst::Insert { a: r, b: carry, pos: top, len: 1 });
    let packed = t.b.push(Inst::Pack(old));
    let packed = t.b.push(Inst::Insert { a: packed, b: a, pos: 8, len: 1 });
    let doubled = t.b.bin_imm(BinOp::Shl, Width::W64, r, 1);
    let differ = t.b.bin(BinOp::Xor, Width::W64, r, doubled);
    let overflow = t.b.push(Inst::Extract { a: differ, pos: top, len: 1 });
    let packed = t.b.push(Inst::Insert { a: packed, b: overflow, pos: 0, len: 1 });
    (r, packed)
}

/// SHLD (`right` = 0), SHRD (`right` = [`RIGHT`]).
fn double_shift(t: &mut Translator<'_>, i: &Instruction, right: u64) {
    let w = t.width(i, 0);
    let count = count(t, i, 2, w);
    let src = t.reg(i.op1_register());
    let place = t.place(i, 0);
    let dst = t.load_place(place, w);
    let width = t.b.iconst(w.bits() as u64 | right);
    let (r, packed) = match count {
        Count::Const(0) => return t.store_place(place, w, dst),
        Count::Const(n) if n < w.bits() as u64 => {
            // SHLD: the upper half of `dst:src << n`, that is `dst:src >> width - n`.
            let (hi, lo, by) = if right != 0 { (src, dst, n) } else { (dst, src, w.bits() as u64 - n) };
            let by = t.b.iconst(by);
            let r = t.b.push(Inst::ShiftPair { w, hi, lo, count: by });
            let n = t.b.iconst(n);
            let no_old = t.b.iconst(0);
            (r, t.call(helpers::int::SHD_FLAGS, &[dst, src, n, no_old, width]))
        }
        count => {
            let count = match count {
                Count::Const(n) => t.b.iconst(n),
                Count::Variable(v) => v,
            };
            let old = t.packed_flags();
            let args = [dst, src, count, old, width];
            (t.call(helpers::int::SHD_RESULT, &args), t.call(helpers::int::SHD_FLAGS, &args))
        }
    };
    t.store_place(place, w, r);
    t.set_packed_flags(packed);
}

/// SHLX, SHRX, SARX, RORX.
fn flagless(t: &mut Translator<'_>, i: &Instruction, op: BinOp) {
    let w = t.width(i, 0);
    let a = t.read(i, 1);
    let count = if i.op2_kind() == OpKind::Register {
        t.reg(i.op2_register())
    } else {
        t.b.iconst(i.immediate(2) & count_mask(w))
    };
    let r = t.b.bin(op, w, a, count);
    t.set_reg(i.op0_register(), r);
}
