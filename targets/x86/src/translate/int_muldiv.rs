//! Multiplication and division, sign extension of the accumulator.

use iced_x86::{Instruction, Mnemonic};
use tessera_tcg::ir::{BinOp, FlagOp, Inst, Value, Width};

use super::{Row, Translator};
use crate::helpers;
use crate::state::reg;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Mul, |t, i| wide_multiply(t, i, false)),
    Row::All(Mnemonic::Imul, imul),
    Row::All(Mnemonic::Mulx, mulx),
    Row::All(Mnemonic::Div, |t, i| divide(t, i, false)),
    Row::All(Mnemonic::Idiv, |t, i| divide(t, i, true)),
    Row::All(Mnemonic::Cbw, |t, _| widen(t, Width::W8, Width::W16)),
    Row::All(Mnemonic::Cwde, |t, _| widen(t, Width::W16, Width::W32)),
    Row::All(Mnemonic::Cdqe, |t, _| widen(t, Width::W32, Width::W64)),
    Row::All(Mnemonic::Cwd, |t, _| sign(t, Width::W16)),
    Row::All(Mnemonic::Cdq, |t, _| sign(t, Width::W32)),
    Row::All(Mnemonic::Cqo, |t, _| sign(t, Width::W64)),
];

/// Both halves of a product, raw in the operands' width.
fn product(t: &mut Translator<'_>, w: Width, signed: bool, a: Value, b: Value) -> (Value, Value) {
    if w == Width::W64 {
        let high = if signed { BinOp::MulHiS } else { BinOp::MulHiU };
        return (t.b.bin(BinOp::Mul, w, a, b), t.b.bin(high, w, a, b));
    }
    let (a, b) = if signed { (t.sx(w, a), t.sx(w, b)) } else { (t.zx(w, a), t.zx(w, b)) };
    let wide = t.b.bin(BinOp::Mul, Width::W64, a, b);
    let high = t.b.push(Inst::Extract { a: wide, pos: w.bits() as u8, len: w.bits() as u8 });
    (wide, high)
}

/// MUL and IMUL with one operand.
fn wide_multiply(t: &mut Translator<'_>, i: &Instruction, signed: bool) {
    let w = t.width(i, 0);
    let b = t.read(i, 0);
    let a = t.gpr(reg::RAX);
    let (low, high) = product(t, w, signed, a, b);
    if w == Width::W8 {
        t.set_gpr(reg::RAX, Width::W16, low);
    } else {
        t.set_gpr(reg::RAX, w, low);
        t.set_gpr(reg::RDX, w, high);
    }
    let f = t.b.flags(if signed { FlagOp::SMul } else { FlagOp::UMul }, w, a, b);
    t.set_flags(f);
}

fn imul(t: &mut Translator<'_>, i: &Instruction) {
    let (a, b) = match i.op_count() {
        1 => return wide_multiply(t, i, true),
        2 => (t.reg(i.op0_register()), t.read(i, 1)),
        _ => (t.read(i, 1), t.read(i, 2)),
    };
    let w = t.width(i, 0);
    let r = t.b.bin(BinOp::Mul, w, a, b);
    t.set_reg(i.op0_register(), r);
    let f = t.b.flags(FlagOp::SMul, w, a, b);
    t.set_flags(f);
}

fn mulx(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let b = t.read(i, 2);
    let a = t.gpr(reg::RDX);
    let (low, high) = product(t, w, false, a, b);
    // With one register for both halves, the high one stays.
    t.set_reg(i.op1_register(), low);
    t.set_reg(i.op0_register(), high);
}

/// DIV, IDIV. The helper gives the quotient or raises #DE; the remainder follows from it.
fn divide(t: &mut Translator<'_>, i: &Instruction, signed: bool) {
    use helpers::int::*;
    let w = t.width(i, 0);
    let d = t.read(i, 0);
    let a = t.gpr(reg::RAX);
    if w == Width::W8 {
        let ax = t.call(if signed { IDIV8 } else { DIV8 }, &[a, d]);
        return t.set_gpr(reg::RAX, Width::W16, ax);
    }
    let high = t.gpr(reg::RDX);
    let q = if w == Width::W16 {
        let dividend = t.b.push(Inst::Insert { a, b: high, pos: 16, len: 16 });
        t.call(if signed { IDIV16 } else { DIV16 }, &[dividend, d])
    } else {
        let helper = match (w, signed) {
            (Width::W32, false) => DIV32,
            (Width::W32, true) => IDIV32,
            (_, false) => DIV64,
            (_, true) => IDIV64,
        };
        t.call(helper, &[high, a, d])
    };
    let back = t.b.bin(BinOp::Mul, w, q, d);
    let remainder = t.b.bin(BinOp::Sub, w, a, back);
    t.set_gpr(reg::RAX, w, q);
    t.set_gpr(reg::RDX, w, remainder);
}

/// CBW, CWDE, CDQE.
fn widen(t: &mut Translator<'_>, from: Width, to: Width) {
    let a = t.gpr(reg::RAX);
    let v = t.sx(from, a);
    t.set_gpr(reg::RAX, to, v);
}

/// CWD, CDQ, CQO.
fn sign(t: &mut Translator<'_>, w: Width) {
    let a = t.gpr(reg::RAX);
    let v = t.b.bin_imm(BinOp::Sar, w, a, w.bits() as u64 - 1);
    t.set_gpr(reg::RDX, w, v);
}
