//! MMX: 64-bit vectors in the mantissas of the x87 registers.
//!
//! MMX register n is physical x87 register n. Every MMX instruction makes all x87 registers valid and the top of stack 0,
//! and a written register's exponent and sign all ones (SDM volume 3, section 13.2). The registers are no globals: they
//! are read from and written to the environment. Arithmetic is that of the 128-bit operations on zero-extended
//! operands; where those work on the whole register (packing, unpacking, shuffles) operands are arranged first.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Inst, Value, VecInsOp, VecLen, VecOp, VecSize, VecTestOp, Width};

use super::sse::{imm8, vec_number};
use super::{Row, Translator};
use crate::helpers;
use crate::state::{Fpu, X86Env, mode, seg};
use crate::system::exception::vector;

/// Rows of this family: those whose mnemonics SSE does not share.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Emms, emms),
    Row::All(Mnemonic::Pshufw, |t, i| packed(t, i, VecOp::ShuffleLoI16)),
    Row::One(Code::Movd_mm_rm32, |t, i| from_general(t, i, Width::W32)),
    Row::One(Code::Movq_mm_rm64, |t, i| from_general(t, i, Width::W64)),
    Row::One(Code::Movd_rm32_mm, to_general),
    Row::One(Code::Movq_rm64_mm, to_general),
    Row::One(Code::Movq_mm_mmm64, movq_load),
    Row::One(Code::Movq_mmm64_mm, movq_store),
    Row::All(Mnemonic::Movntq, movq_store),
    Row::All(Mnemonic::Movq2dq, movq2dq),
    Row::All(Mnemonic::Movdq2q, movdq2q),
    Row::All(Mnemonic::Maskmovq, maskmovq),
];

const FPU: u32 = std::mem::offset_of!(X86Env, fpu) as u32;
const STATUS: u32 = FPU + std::mem::offset_of!(Fpu, status) as u32;
const VALID: u32 = FPU + std::mem::offset_of!(Fpu, valid) as u32;

fn mantissa(r: Register) -> u32 {
    FPU + std::mem::offset_of!(Fpu, regs) as u32 + 16 * (vec_number(r) as u32 & 7)
}

impl Translator<'_> {
    /// Whether MMX instructions are available; if not, the exception is raised and the block ended. Raises pending x87
    /// exceptions.
    pub(super) fn mmx_available(&mut self) -> bool {
        if self.is(mode::FPU_EM) {
            self.undefined();
            return false;
        }
        if self.is(mode::FPU_TS) {
            self.raise(vector::NM, None);
            return false;
        }
        if self.is(mode::X87_UNMASKED) {
            self.call(helpers::x87::WAIT, &[]);
        }
        self.x87_home();
        true
    }

    /// An MMX register as an integer.
    fn mmx_int(&mut self, r: Register) -> Value {
        self.b.push(Inst::EnvLoad { width: Width::W64, offset: mantissa(r) })
    }

    /// An MMX register as a vector, zero above.
    fn mmx(&mut self, r: Register) -> Value {
        let a = self.mmx_int(r);
        self.b.push(Inst::VecFromInt { w: Width::W64, a })
    }

    /// Writes an MMX register from an integer. Whatever can fault is before.
    pub(super) fn set_mmx(&mut self, r: Register, v: Value) {
        let ones = self.b.iconst(0xffff);
        self.b.push(Inst::EnvStore { width: Width::W64, offset: mantissa(r), v });
        self.b.push(Inst::EnvStore { width: Width::W16, offset: mantissa(r) + 8, v: ones });
    }

    /// Makes all x87 registers valid and the top of stack 0. Whatever can fault is before.
    pub(super) fn mmx_mode(&mut self) {
        self.set_tags(0xff);
    }

    fn set_tags(&mut self, valid: u64) {
        let status = self.b.push(Inst::EnvLoad { width: Width::W16, offset: STATUS });
        let status = self.b.bin_imm(BinOp::And, Width::W32, status, !0x3800 & 0xffff);
        self.b.push(Inst::EnvStore { width: Width::W16, offset: STATUS, v: status });
        let valid = self.b.iconst(valid);
        self.b.push(Inst::EnvStore { width: Width::W8, offset: VALID, v: valid });
    }
}

/// Operand `n`, an MMX register or memory of 4 or 8 bytes, as a vector.
pub(super) fn mmx_operand(t: &mut Translator<'_>, i: &Instruction, n: u32) -> Value {
    match i.op_kind(n) {
        OpKind::Register => t.mmx(i.op_register(n)),
        _ => {
            let size = if i.memory_size().size() == 4 { VecSize::B4 } else { VecSize::B8 };
            t.load_vec(i, size, false)
        }
    }
}

fn low(t: &mut Translator<'_>, v: Value) -> Value {
    t.b.push(Inst::VecToInt { w: Width::W64, a: v })
}

/// An instruction on a destination register and a source, register or memory or immediate.
pub(super) fn packed(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if !t.mmx_available() {
        return;
    }
    let dst = i.op0_register();
    let a = t.mmx(dst);
    let r = match i.op1_kind() {
        OpKind::Immediate8 => t.vec1(op, a, imm8(i)),
        _ => {
            let b = mmx_operand(t, i, 1);
            if op.operands() == 1 { t.vec1(op, b, imm8(i)) } else { operation(t, op, a, b, imm8(i)) }
        }
    };
    let r = low(t, r);
    t.mmx_mode();
    t.set_mmx(dst, r);
}

/// `op a, b, imm` on 64-bit vectors; the low 64 bits of the result count.
fn operation(t: &mut Translator<'_>, op: VecOp, a: Value, b: Value, imm: u8) -> Value {
    use VecOp::*;
    match op {
        PackS16 | PackS32 | PackU16 | HAddI16 | HAddI32 | HAddSatS16 | HSubI16 | HSubI32 | HSubSatS16 => {
            let both = t.vec(UnpackLoI64, a, b, 0);
            t.vec(op, both, both, 0)
        }
        UnpackHiI8 | UnpackHiI16 | UnpackHiI32 => {
            let low = match op {
                UnpackHiI8 => UnpackLoI8,
                UnpackHiI16 => UnpackLoI16,
                _ => UnpackLoI32,
            };
            let all = t.vec(low, a, b, 0);
            t.vec1(ShrBytes, all, 8)
        }
        ShuffleI8 => {
            // Bit 3 of the selectors does not exist.
            let bits = t.b.iconst(0x8787_8787_8787_8787);
            let bits = t.b.push(Inst::VecFromInt { w: Width::W64, a: bits });
            let b = t.vec(And, b, bits, 0);
            t.vec(ShuffleI8, a, b, 0)
        }
        AlignBytes => {
            let both = t.vec(UnpackLoI64, b, a, 0);
            t.vec1(ShrBytes, both, imm)
        }
        _ => t.vec(op, a, b, imm),
    }
}

fn emms(t: &mut Translator<'_>, _: &Instruction) {
    if t.mmx_available() {
        t.set_tags(0);
    }
}

fn from_general(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if !t.mmx_available() {
        return;
    }
    let v = t.read_zx(i, 1, w);
    t.mmx_mode();
    t.set_mmx(i.op0_register(), v);
}

fn to_general(t: &mut Translator<'_>, i: &Instruction) {
    if !t.mmx_available() {
        return;
    }
    let v = t.mmx_int(i.op1_register());
    // A store faults before anything changes, a register is written by the last `Set`.
    if i.op0_kind() == OpKind::Memory {
        t.write(i, 0, v);
        t.mmx_mode();
    } else {
        t.mmx_mode();
        t.write(i, 0, v);
    }
}

fn movq_load(t: &mut Translator<'_>, i: &Instruction) {
    if !t.mmx_available() {
        return;
    }
    let v = match i.op1_kind() {
        OpKind::Register => t.mmx_int(i.op1_register()),
        _ => t.read(i, 1),
    };
    t.mmx_mode();
    t.set_mmx(i.op0_register(), v);
}

fn movq_store(t: &mut Translator<'_>, i: &Instruction) {
    if !t.mmx_available() {
        return;
    }
    let v = t.mmx_int(i.op1_register());
    if i.op0_kind() == OpKind::Register {
        t.mmx_mode();
        t.set_mmx(i.op0_register(), v);
    } else {
        t.write(i, 0, v);
        t.mmx_mode();
    }
}

fn movq2dq(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() || !t.mmx_available() {
        return;
    }
    let v = t.mmx(i.op1_register());
    t.mmx_mode();
    t.set_xmm(i.op0_register(), v);
}

fn movdq2q(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() || !t.mmx_available() {
        return;
    }
    let v = t.xmm(i.op1_register());
    let v = low(t, v);
    t.mmx_mode();
    t.set_mmx(i.op0_register(), v);
}

pub(super) fn pmovmskb(t: &mut Translator<'_>, i: &Instruction) {
    if !t.mmx_available() {
        return;
    }
    let v = t.mmx(i.op1_register());
    let r = t.vec_test(VecLen::V128, VecTestOp::MaskI8, v, v, 0);
    t.mmx_mode();
    t.set_reg(i.op0_register(), r);
}

pub(super) fn pinsrw(t: &mut Translator<'_>, i: &Instruction) {
    if !t.mmx_available() {
        return;
    }
    let b = t.read(i, 1);
    let a = t.mmx(i.op0_register());
    let r = t.vec_ins(VecInsOp::InsertI16, a, b, imm8(i) & 3);
    let r = low(t, r);
    t.mmx_mode();
    t.set_mmx(i.op0_register(), r);
}

pub(super) fn pextrw(t: &mut Translator<'_>, i: &Instruction) {
    if !t.mmx_available() {
        return;
    }
    let v = t.mmx(i.op1_register());
    let r = t.vec_test(VecLen::V128, VecTestOp::ExtractI16, v, v, imm8(i) & 3);
    t.mmx_mode();
    t.set_reg(i.op0_register(), r);
}

fn maskmovq(t: &mut Translator<'_>, i: &Instruction) {
    if !t.mmx_available() {
        return;
    }
    let data = t.mmx_int(i.op1_register());
    let mask = t.mmx(i.op2_register());
    let mask = t.vec_test(VecLen::V128, VecTestOp::MaskI8, mask, mask, 0);
    let zero = t.b.iconst(0);
    mask_store(t, i, data, zero, mask);
    t.mmx_mode();
}

/// Stores those bytes of `high:low` to [DS:rDI] whose bit in `mask` is set.
pub(super) fn mask_store(t: &mut Translator<'_>, i: &Instruction, low: Value, high: Value, mask: Value) {
    let pointer = match i.op0_kind() {
        OpKind::MemorySegDI => Register::DI,
        OpKind::MemorySegEDI => Register::EDI,
        _ => Register::RDI,
    };
    let offset = t.reg_zx(pointer);
    let segment = super::operand::segment_number(i.memory_segment());
    debug_assert!(segment <= seg::GS);
    let addr = t.linear(segment, offset, 0, true);
    let wide = (!i.op1_register().is_mm()) as u64;
    let mmu = t.b.iconst(t.mmu as u64 | wide << 8);
    t.call(helpers::sse::MASK_STORE, &[addr, low, high, mask, mmu]);
}
