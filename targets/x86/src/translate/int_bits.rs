//! Single bits, bit scans and counts, BMI1 and BMI2, CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{BinOp, Cond, FlagOp, Inst, RmwOp, UnOp, Value, Width, flags};

use super::operand::{Place, segment_number};
use super::{Row, Translator};
use crate::helpers;
use crate::state::global;

/// What BMI1 and BMI2 leave of a result in the flags, beside C. P, which the manual leaves undefined, is clear.
const SIGN_ZERO: u32 = flags::N | flags::Z;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Bt, |t, i| bit(t, i, None)),
    Row::All(Mnemonic::Bts, |t, i| bit(t, i, Some(RmwOp::Or))),
    Row::All(Mnemonic::Btr, |t, i| bit(t, i, Some(RmwOp::And))),
    Row::All(Mnemonic::Btc, |t, i| bit(t, i, Some(RmwOp::Xor))),
    Row::All(Mnemonic::Bsf, |t, i| scan(t, i, false)),
    Row::All(Mnemonic::Bsr, |t, i| scan(t, i, true)),
    Row::All(Mnemonic::Tzcnt, |t, i| count(t, i, UnOp::Ctz)),
    Row::All(Mnemonic::Lzcnt, |t, i| count(t, i, UnOp::Clz)),
    Row::All(Mnemonic::Popcnt, popcnt),
    Row::All(Mnemonic::Andn, andn),
    Row::All(Mnemonic::Blsi, blsi),
    Row::All(Mnemonic::Blsr, |t, i| lowest(t, i, BinOp::And)),
    Row::All(Mnemonic::Blsmsk, |t, i| lowest(t, i, BinOp::Xor)),
    Row::All(Mnemonic::Bextr, bextr),
    Row::All(Mnemonic::Bzhi, bzhi),
    Row::All(Mnemonic::Pdep, |t, i| deposit(t, i, helpers::int::PDEP)),
    Row::All(Mnemonic::Pext, |t, i| deposit(t, i, helpers::int::PEXT)),
    Row::All(Mnemonic::Crc32, crc32),
];

/// BT (no `op`), BTS, BTR, BTC.
fn bit(t: &mut Translator<'_>, i: &Instruction, op: Option<RmwOp>) {
    let w = t.width(i, 0);
    let mask = w.bits() as u64 - 1;
    // The bit's number in the operand: a constant or a value below the width.
    let (constant, index) = if i.op1_kind() == OpKind::Register {
        let v = t.reg(i.op1_register());
        (None, v)
    } else {
        let n = i.immediate8() as u64 & mask;
        (Some(n), t.b.iconst(n))
    };
    let place = if i.op0_kind() == OpKind::Memory {
        let mut offset = t.offset(i);
        if constant.is_none() {
            // A register's bit offset is signed and reaches beyond the operand.
            let address_width = t.address_width(i);
            let index = t.sx(w, index);
            let words = t.b.bin_imm(BinOp::Sar, Width::W64, index, w.bits().trailing_zeros() as u64);
            let bytes = t.b.bin_imm(BinOp::Shl, Width::W64, words, w.bytes().trailing_zeros() as u64);
            offset = t.b.bin(BinOp::Add, address_width, offset, bytes);
        }
        Place::Mem(t.linear(segment_number(i.memory_segment()), offset, w.bytes(), op.is_some()))
    } else {
        Place::Reg(i.op0_register())
    };
    // Counts of 32 and 64 bits wrap by themselves.
    let index = if constant.is_none() && w == Width::W16 {
        t.b.bin_imm(BinOp::And, Width::W32, index, mask)
    } else {
        index
    };
    let selector = |t: &mut Translator<'_>| match constant {
        Some(n) => t.b.iconst(1 << n),
        None => {
            let one = t.b.iconst(1);
            t.b.bin(BinOp::Shl, w, one, index)
        }
    };
    let old = match (place, op) {
        (Place::Mem(addr), Some(op)) if i.has_lock_prefix() => {
            let v = selector(t);
            let v = if op == RmwOp::And { t.b.un(UnOp::Not, w, v) } else { v };
            let mem = t.mem_for_write();
            t.b.push(Inst::AtomicRmw { op, width: w, addr, v, mem })
        }
        (Place::Mem(addr), None) => t.load(w, addr),
        _ => {
            let old = t.load_place(place, w);
            if let Some(op) = op {
                let v = selector(t);
                let op = match op {
                    RmwOp::Or => BinOp::Or,
                    RmwOp::And => BinOp::AndNot,
                    _ => BinOp::Xor,
                };
                let r = t.b.bin(op, w, old, v);
                t.store_place(place, w, r);
            }
            old
        }
    };
    let flags = t.flags();
    let f = t.b.flags_old(FlagOp::Bit, w, old, index, flags);
    t.set_flags(f);
}

/// BSF, BSR. With a source of zero the destination keeps all its bits. Z says whether it is zero; P, which the manual leaves
/// undefined, is the parity of the number found, or of zero.
fn scan(t: &mut Translator<'_>, i: &Instruction, reverse: bool) {
    let w = t.width(i, 0);
    let src = t.read(i, 1);
    let n = if reverse {
        let zeros = t.b.un(UnOp::Clz, w, src);
        t.b.bin_imm(BinOp::Xor, w, zeros, w.bits() as u64 - 1)
    } else {
        t.b.un(UnOp::Ctz, w, src)
    };
    let f = t.b.flags(FlagOp::And, w, src, src);
    // Select between whole registers, as the destination may have to stay as it is.
    let full = super::operand::register_number(i.op0_register());
    let old = t.gpr(full);
    let found = match w {
        Width::W16 => t.b.push(Inst::Insert { a: old, b: n, pos: 0, len: 16 }),
        _ => n,
    };
    let v = t.b.select(Cond::E, f, old, found);
    t.b.set(global::gpr(full), v);
    let nothing = t.b.iconst(0);
    let number = t.b.select(Cond::E, f, nothing, n);
    let parity = t.b.flags(FlagOp::And, Width::W8, number, number);
    let packed = t.b.push(Inst::Pack(parity));
    let packed = t.b.bin_imm(BinOp::And, Width::W32, packed, flags::P as u64);
    let zero = t.b.set_cond(Cond::E, f);
    let packed = t.b.push(Inst::Insert { a: packed, b: zero, pos: 14, len: 1 });
    t.set_packed_flags(packed);
}

/// TZCNT, LZCNT; BSF and BSR on a CPU that ignores their prefix.
fn count(t: &mut Translator<'_>, i: &Instruction, op: UnOp) {
    if !t.env.cpuid.allows(i.code()) {
        return scan(t, i, op == UnOp::Clz);
    }
    let w = t.width(i, 0);
    let src = t.read(i, 1);
    let r = t.b.un(op, w, src);
    let none = t.test_zero(w, src);
    let carry = t.b.set_cond(Cond::E, none);
    t.set_reg(i.op0_register(), r);
    t.set_some_flags(w, r, flags::Z, Some(carry));
}

fn popcnt(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let src = t.read(i, 1);
    let r = t.b.un(UnOp::Popcnt, w, src);
    t.set_reg(i.op0_register(), r);
    // All flags but Z are cleared.
    let f = t.test_zero(w, src);
    let zero = t.b.set_cond(Cond::E, f);
    let packed = t.b.bin_imm(BinOp::Shl, Width::W32, zero, 14);
    t.set_packed_flags(packed);
}

fn andn(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let b = t.read(i, 2);
    let a = t.reg(i.op1_register());
    let r = t.b.bin(BinOp::AndNot, w, b, a);
    t.set_reg(i.op0_register(), r);
    t.set_some_flags(w, r, SIGN_ZERO, None);
}

fn is_zero(t: &mut Translator<'_>, w: Width, v: Value, cond: Cond) -> Value {
    let f = t.test_zero(w, v);
    t.b.set_cond(cond, f)
}

fn blsi(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let a = t.read(i, 1);
    let minus = t.b.un(UnOp::Neg, w, a);
    let r = t.b.bin(BinOp::And, w, a, minus);
    let carry = is_zero(t, w, a, Cond::NE);
    t.set_reg(i.op0_register(), r);
    t.set_some_flags(w, r, SIGN_ZERO, Some(carry));
}

/// BLSR, BLSMSK: `a op a - 1`.
fn lowest(t: &mut Translator<'_>, i: &Instruction, op: BinOp) {
    let w = t.width(i, 0);
    let a = t.read(i, 1);
    let less = t.b.add_imm(w, a, -1);
    let r = t.b.bin(op, w, a, less);
    let carry = is_zero(t, w, a, Cond::E);
    t.set_reg(i.op0_register(), r);
    t.set_some_flags(w, r, SIGN_ZERO, Some(carry));
}

fn bextr(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let src = t.read_zx(i, 1, w);
    let control = t.reg(i.op2_register());
    let r = t.call(helpers::int::BEXTR, &[src, control]);
    t.set_reg(i.op0_register(), r);
    t.set_some_flags(w, r, flags::Z, None);
}

fn bzhi(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let src = t.read(i, 1);
    let index = t.reg(i.op2_register());
    let ones = t.b.iconst(u64::MAX);
    let high = t.b.bin(BinOp::Shl, w, ones, index);
    let cut = t.b.bin(BinOp::AndNot, w, src, high);
    let bits = t.b.iconst(w.bits() as u64);
    let f = t.b.flags(FlagOp::Sub, Width::W8, index, bits);
    let src = t.zx(w, src);
    let r = t.b.select(Cond::B, f, cut, src);
    let carry = t.b.set_cond(Cond::AE, f);
    t.set_reg(i.op0_register(), r);
    t.set_some_flags(w, r, SIGN_ZERO, Some(carry));
}

/// PDEP, PEXT.
fn deposit(t: &mut Translator<'_>, i: &Instruction, helper: tessera_tcg::ir::HelperId) {
    let w = t.width(i, 0);
    let mask = t.read_zx(i, 2, w);
    let a = t.reg_zx(i.op1_register());
    let r = t.call(helper, &[a, mask]);
    t.set_reg(i.op0_register(), r);
}

fn crc32(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 1);
    let data = t.read(i, 1);
    let crc = t.reg(i.op0_register());
    let bytes = t.b.iconst(w.bytes() as u64);
    let r = t.call(helpers::int::CRC32, &[crc, data, bytes]);
    // The upper half is zero whatever the destination's size.
    let r = t.zx(Width::W32, r);
    t.set_reg(i.op0_register(), r);
}
