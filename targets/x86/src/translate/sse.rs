//! What SSE instructions have in common: availability, vector operands, alignment, floating-point exceptions; and
//! the control and status register.
//!
//! An XMM register is a global of 128 bits; setting it keeps the upper half of the YMM register, as legacy SSE does.
//! Legacy SSE wants its 16-byte memory operands aligned (SDM volume 1, section 10.4.1.1) unless the instruction is one of
//! the unaligned moves. The check costs no branch: [`Translator::aligned`] replaces a misaligned address by a
//! non-canonical one, at which the access raises the same #GP(0).
//!
//! Floating point runs on the host's vector unit under the guest's MXCSR with all exceptions masked, so sticky flags
//! gather there. While the guest has an exception unmasked ([`mode::SSE_UNMASKED`], which is rare), each operation is put
//! between two helpers that look at the flags it alone has raised.
//!
//! Files: `sse_move` (moves, shuffles, blends), `sse_int` (packed integers, strings, AES), `sse_float`
//! (arithmetic, comparisons, conversions), `mmx` (the 64-bit forms on x87 registers).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{Ext, FlagOp, Inst, Value, Vec3Op, VecInsOp, VecLen, VecOp, VecSize, VecTestOp, Width};

use super::{Row, Translator, vector};
use crate::helpers;
use crate::state::{global, mode};

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Ldmxcsr, ldmxcsr),
    Row::All(Mnemonic::Stmxcsr, stmxcsr),
    Row::All(Mnemonic::Maskmovdqu, maskmovdqu),
    Row::All(Mnemonic::Sfence, fence),
    Row::All(Mnemonic::Lfence, fence),
    Row::All(Mnemonic::Mfence, fence),
];

/// A non-canonical address in all paging modes that know canonical addresses.
const MISALIGNED: u64 = 1 << 63;

/// Makes rows whose functions differ in the vector operation alone:
/// `function: Mnemonic Operation, …; …`.
macro_rules! vec_rows {
    ($($f:ident: $($mnemonic:ident $op:ident),*;)*) => {
        &[$($(
            $crate::translate::Row::All(iced_x86::Mnemonic::$mnemonic, |t, i| $f(t, i, VecOp::$op)),
        )*)*]
    };
}
pub(super) use vec_rows;

/// Number of an XMM or MMX register.
pub(super) fn vec_number(r: Register) -> usize {
    r.number() & 15
}

/// The immediate byte of an instruction whose last operand it is; else 0.
pub(super) fn imm8(i: &Instruction) -> u8 {
    match i.op_count() {
        0 => 0,
        n if i.op_kind(n - 1) == OpKind::Immediate8 => i.immediate8(),
        _ => 0,
    }
}

impl Translator<'_> {
    /// Whether SSE instructions are available; if not, the exception is raised and the block ended (SDM volume 3,
    /// section 14.1.4).
    pub(super) fn sse_available(&mut self) -> bool {
        if self.is(mode::FPU_EM) || !self.is(mode::OSFXSR) {
            self.undefined();
            return false;
        }
        if self.is(mode::FPU_TS) {
            self.raise(vector::NM, None);
            return false;
        }
        true
    }

    /// Value of an XMM register; the upper 128 bits of the vector are zero.
    pub(super) fn xmm(&mut self, r: Register) -> Value {
        self.b.get(global::xmm(vec_number(r)))
    }

    /// Writes an XMM register.
    pub(super) fn set_xmm(&mut self, r: Register, v: Value) {
        self.b.set(global::xmm(vec_number(r)), v);
    }

    /// `op a, b, imm` in 128 bits; not floating point.
    pub(super) fn vec(&mut self, op: VecOp, a: Value, b: Value, imm: u8) -> Value {
        self.b.push(Inst::Vec { op, len: VecLen::V128, a, b, imm })
    }

    /// `op a, imm` in 128 bits; not floating point.
    pub(super) fn vec1(&mut self, op: VecOp, a: Value, imm: u8) -> Value {
        self.vec(op, a, a, imm)
    }

    pub(super) fn vec3(&mut self, op: Vec3Op, a: Value, b: Value, c: Value) -> Value {
        self.b.push(Inst::Vec3 { op, len: VecLen::V128, a, b, c })
    }

    pub(super) fn vec_ins(&mut self, op: VecInsOp, a: Value, b: Value, imm: u8) -> Value {
        self.b.push(Inst::VecIns { op, a, b, imm })
    }

    pub(super) fn vec_test(&mut self, op: VecTestOp, a: Value, b: Value, imm: u8) -> Value {
        self.b.push(Inst::VecTest { op, len: VecLen::V128, a, b, imm })
    }

    /// Runs a floating-point operation; raises #XM if it has raised an unmasked exception. Its operands have been
    /// loaded before, nothing has been set.
    pub(super) fn floating<T>(&mut self, op: impl FnOnce(&mut Self) -> T) -> T {
        if !self.is(mode::SSE_UNMASKED) {
            return op(self);
        }
        self.call(helpers::sse::FLOAT_BEGIN, &[]);
        let r = op(self);
        self.call(helpers::sse::FLOAT_END, &[]);
        r
    }

    /// The address, if it is a multiple of `bytes`; else one at which the access raises #GP(0).
    pub(super) fn aligned(&mut self, addr: Value, bytes: u32) -> Value {
        if !self.is(mode::LONG) {
            let size = self.b.iconst(bytes as u64);
            self.call(helpers::sse::CHECK_ALIGNED, &[addr, size]);
            return addr;
        }
        let low = self.b.iconst(bytes as u64 - 1);
        let f = self.b.flags(FlagOp::And, Width::W8, addr, low);
        let bad = self.b.iconst(MISALIGNED);
        self.b.select(tessera_tcg::ir::Cond::E, f, addr, bad)
    }

    /// Linear address of the memory operand of `size`, without an alignment check.
    pub(super) fn vec_address(&mut self, i: &Instruction, size: VecSize, write: bool) -> Value {
        self.address(i, size.bytes(), write)
    }

    /// Loads the memory operand.
    pub(super) fn load_vec(&mut self, i: &Instruction, size: VecSize, aligned: bool) -> Value {
        let mut addr = self.vec_address(i, size, false);
        if aligned {
            addr = self.aligned(addr, size.bytes());
        }
        let mem = self.mem();
        self.b.load_vec(size, addr, mem)
    }

    /// Stores to the memory operand.
    pub(super) fn store_vec(&mut self, i: &Instruction, size: VecSize, v: Value, aligned: bool) {
        let mut addr = self.vec_address(i, size, true);
        if aligned {
            addr = self.aligned(addr, size.bytes());
        }
        let mem = self.mem();
        self.b.store_vec(size, addr, v, mem);
    }

    /// Operand `n`: an XMM register, or memory of the operand's size, aligned if that is 16 bytes.
    pub(super) fn read_vec(&mut self, i: &Instruction, n: u32) -> Value {
        self.read_vec_aligned(i, n, true)
    }

    /// As [`Translator::read_vec`]; memory need not be aligned unless `aligned`.
    pub(super) fn read_vec_aligned(&mut self, i: &Instruction, n: u32, aligned: bool) -> Value {
        if i.op_kind(n) == OpKind::Register {
            return self.xmm(i.op_register(n));
        }
        match i.memory_size().size() {
            2 => {
                let addr = self.address(i, 2, false);
                let mem = self.mem();
                let v = self.b.load(Width::W16, Ext::Zero, addr, mem);
                self.b.push(Inst::VecFromInt { w: Width::W32, a: v })
            }
            4 => self.load_vec(i, VecSize::B4, false),
            8 => self.load_vec(i, VecSize::B8, false),
            _ => self.load_vec(i, VecSize::B16, aligned),
        }
    }
}

/// An instruction that is one vector operation on its operands: register `dst`, register or memory `src`, immediate.
pub(super) fn simple(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if !t.sse_available() {
        return;
    }
    let src = t.read_vec(i, 1);
    let dst = if op.operands() == 2 { t.xmm(i.op0_register()) } else { src };
    let r = t.vec(op, dst, src, imm8(i));
    t.set_xmm(i.op0_register(), r);
}

/// As [`simple`], for floating-point operations that raise exceptions.
pub(super) fn simple_float(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if !t.sse_available() {
        return;
    }
    let src = t.read_vec(i, 1);
    let dst = if op.operands() == 2 { t.xmm(i.op0_register()) } else { src };
    let r = t.floating(|t| t.vec(op, dst, src, imm8(i)));
    t.set_xmm(i.op0_register(), r);
}

fn ldmxcsr(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let v = t.read(i, 0);
    t.call(helpers::sse::LDMXCSR, &[v]);
    // Unmasking exceptions changes the block mode.
    t.set_pc(t.next);
    t.leave_for_mode_change();
}

fn stmxcsr(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let v = t.call(helpers::sse::STMXCSR, &[]);
    t.write(i, 0, v);
}

fn maskmovdqu(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let data = t.xmm(i.op1_register());
    let mask = t.xmm(i.op2_register());
    let low = t.b.push(Inst::VecToInt { w: Width::W64, a: data });
    let high = t.vec_test(VecTestOp::ExtractI64, data, data, 1);
    let mask = t.vec_test(VecTestOp::MaskI8, mask, mask, 0);
    super::mmx::mask_store(t, i, low, high, mask);
}

/// Guest memory accesses are made in program order and stores are visible at once, as far as an x86 host does that for
/// its own program: what a fence adds matters between CPUs and is done by the host's fence.
fn fence(t: &mut Translator<'_>, i: &Instruction) {
    if i.mnemonic() == Mnemonic::Mfence {
        t.call(helpers::sse::FENCE, &[]);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "vector_oracle.rs"]
mod vector_oracle;
