//! What vector instructions have in common, legacy SSE and VEX: availability, operands, alignment, floating-point
//! exceptions; and the control and status register.
//!
//! Most instructions exist in both encodings, which differ in three things: VEX names the first source instead of
//! overwriting it, works in 128 or 256 bits and zeroes what lies above its result, and does not ask for alignment. All
//! that is in [`Form`]: a translate function asks [`Translator::vector_form`] for it, names operands by role
//! ([`Translator::first`], [`Translator::second`], [`Translator::set_result`]) and serves both encodings; the macros
//! [`vec_rows`] and [`both_rows`] make a row for each from one line. What only VEX has is in `avx`.
//!
//! An XMM register is a global of 128 bits; setting it keeps the upper half of the YMM register, as legacy SSE does.
//! VEX instructions read and write the YMM globals only, whatever their length (operations of 128 bits read the low
//! half and zero the high half of their result), so that within VEX code every register is forwarded.
//!
//! Legacy SSE wants its 16-byte memory operands aligned (SDM volume 1, section 10.4.1.1) unless the instruction is one of
//! the unaligned moves; VEX does not, but for the aligned moves. The check is part of the access
//! ([`MemFlags::align`]), which raises #GP(0) before anything else.
//!
//! Floating point runs on the host's vector unit under the guest's MXCSR with all exceptions masked, so sticky flags
//! gather there. While the guest has an exception unmasked ([`mode::SSE_UNMASKED`], which is rare), each operation is put
//! between two helpers that look at the flags it alone has raised.
//!
//! Files: `sse_move` (moves, shuffles, blends), `sse_int` (packed integers, strings), `sse_float` (arithmetic, comparisons,
//! conversions), `crypto` (AES, SHA and what else hosts may lack), `mmx` (the 64-bit forms on x87 registers).

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{Ext, Inst, MemFlags, Value, VecInsOp, VecLen, VecOp, VecSize, VecTestOp, Width};

use super::operand::width_of;
use super::{Row, Translator};
use crate::helpers;
use crate::state::{global, mode};
use crate::system::exception::vector;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Ldmxcsr, ldmxcsr),
    Row::All(Mnemonic::Vldmxcsr, ldmxcsr),
    Row::All(Mnemonic::Stmxcsr, stmxcsr),
    Row::All(Mnemonic::Vstmxcsr, stmxcsr),
    Row::All(Mnemonic::Maskmovdqu, maskmovdqu),
    Row::All(Mnemonic::Vmaskmovdqu, maskmovdqu),
    Row::All(Mnemonic::Sfence, fence),
    Row::All(Mnemonic::Lfence, fence),
    Row::All(Mnemonic::Mfence, fence),
];

/// Makes rows whose functions differ in the vector operation alone, for the legacy and the VEX encoding each:
/// `function: Mnemonic VexMnemonic Operation, …; …`.
macro_rules! vec_rows {
    ($($f:ident: $($mnemonic:ident $vex:ident $op:ident),*;)*) => {
        &[$($(
            $crate::translate::Row::All(iced_x86::Mnemonic::$mnemonic, |t, i| $f(t, i, VecOp::$op)),
            $crate::translate::Row::All(iced_x86::Mnemonic::$vex, |t, i| $f(t, i, VecOp::$op)),
        )*)*]
    };
}
pub(super) use vec_rows;

/// Makes rows of what only VEX has, as [`vec_rows`]: `function: VexMnemonic Operation, …; …`.
macro_rules! vex_rows {
    ($($f:ident: $($vex:ident $op:ident),*;)*) => {
        &[$($(
            $crate::translate::Row::All(iced_x86::Mnemonic::$vex, |t, i| $f(t, i, VecOp::$op)),
        )*)*]
    };
}
pub(super) use vex_rows;

/// Makes rows for the legacy and the VEX encoding each: `Mnemonic VexMnemonic => function, …`.
macro_rules! both_rows {
    ($($mnemonic:ident $vex:ident => $f:expr,)*) => {
        &[$(
            $crate::translate::Row::All(iced_x86::Mnemonic::$mnemonic, $f),
            $crate::translate::Row::All(iced_x86::Mnemonic::$vex, $f),
        )*]
    };
}
pub(super) use both_rows;

/// What the meaning of an instruction's operands depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Form {
    /// VEX rather than legacy encoding.
    pub vex: bool,
    /// Length of the operation: 256 bits if any operand has.
    pub len: VecLen,
}

impl Form {
    fn of(i: &Instruction) -> Form {
        if i.encoding() == EncodingKind::Legacy {
            return Form { vex: false, len: VecLen::V128 };
        }
        let wide = i.op0_register().is_ymm() || i.op1_register().is_ymm() || i.memory_size().size() == 32;
        Form { vex: true, len: if wide { VecLen::V256 } else { VecLen::V128 } }
    }

    /// Bytes of a vector.
    pub fn size(self) -> VecSize {
        match self.len {
            VecLen::V128 => VecSize::B16,
            VecLen::V256 => VecSize::B32,
        }
    }
}

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

    /// Whether VEX-encoded vector instructions are available; if not, the exception is raised and the block ended (SDM
    /// volume 2, section 2.4; CR0.EM does not matter).
    pub(super) fn avx_available(&mut self) -> bool {
        if !self.is(mode::AVX) || !self.protected() {
            self.undefined();
            return false;
        }
        if self.is(mode::FPU_TS) {
            self.raise(vector::NM, None);
            return false;
        }
        true
    }

    /// The instruction's form, if it is available; if not, the exception is raised and the block ended.
    pub(super) fn vector_form(&mut self, i: &Instruction) -> Option<Form> {
        let form = Form::of(i);
        let available = if form.vex { self.avx_available() } else { self.sse_available() };
        available.then_some(form)
    }

    /// The first source, a register: the destination in the legacy form.
    pub(super) fn first(&mut self, i: &Instruction, form: Form) -> Value {
        self.vector(i.op_register(form.vex as u32), form)
    }

    /// The second source, a register or memory.
    pub(super) fn second(&mut self, i: &Instruction, form: Form) -> Value {
        self.source(i, 1 + form.vex as u32, form)
    }

    /// Operand `n`: a register, or memory of the operand's size, aligned if that is 16 bytes in the legacy form.
    pub(super) fn source(&mut self, i: &Instruction, n: u32, form: Form) -> Value {
        match i.op_kind(n) {
            OpKind::Register => self.vector(i.op_register(n), form),
            _ => self.load_operand(i, !form.vex),
        }
    }

    /// Value of a vector register. What a VEX instruction reads of the upper half depends on its operation's length.
    pub(super) fn vector(&mut self, r: Register, form: Form) -> Value {
        if form.vex { self.ymm(r) } else { self.xmm(r) }
    }

    /// Writes the destination, operand 0. In the VEX form, `v` is zero above the operation's length.
    pub(super) fn set_result(&mut self, i: &Instruction, form: Form, v: Value) {
        self.set_vector(i.op0_register(), form, v);
    }

    /// Writes a vector register, as [`Translator::set_result`].
    pub(super) fn set_vector(&mut self, r: Register, form: Form, v: Value) {
        if form.vex { self.set_ymm(r, v) } else { self.set_xmm(r, v) }
    }

    /// `op a, b, imm` in the form's length, or the longest that the operation has; not floating point.
    pub(super) fn vec_in(&mut self, form: Form, op: VecOp, a: Value, b: Value, imm: u8) -> Value {
        let len = if op.max_len() == VecLen::V128 { VecLen::V128 } else { form.len };
        self.b.push(Inst::Vec { op, len, a, b, imm })
    }

    /// All 256 bits of a vector register.
    pub(super) fn ymm(&mut self, r: Register) -> Value {
        self.b.get(global::ymm(vec_number(r)))
    }

    /// Writes all 256 bits of a vector register.
    pub(super) fn set_ymm(&mut self, r: Register, v: Value) {
        self.b.set(global::ymm(vec_number(r)), v);
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

    pub(super) fn vec_ins(&mut self, op: VecInsOp, a: Value, b: Value, imm: u8) -> Value {
        self.b.push(Inst::VecIns { op, a, b, imm })
    }

    pub(super) fn vec_test(&mut self, len: VecLen, op: VecTestOp, a: Value, b: Value, imm: u8) -> Value {
        self.b.push(Inst::VecTest { op, len, a, b, imm })
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

    /// Linear address of the memory operand of `size`, without an alignment check.
    pub(super) fn vec_address(&mut self, i: &Instruction, size: VecSize, write: bool) -> Value {
        self.address(i, size.bytes(), write)
    }

    /// Loads the memory operand.
    pub(super) fn load_vec(&mut self, i: &Instruction, size: VecSize, align: bool) -> Value {
        let addr = self.vec_address(i, size, false);
        let mem = MemFlags { align, ..self.mem() };
        self.b.load_vec(size, addr, mem)
    }

    /// Stores to the memory operand.
    pub(super) fn store_vec(&mut self, i: &Instruction, size: VecSize, v: Value, align: bool) {
        let addr = self.vec_address(i, size, true);
        let mem = MemFlags { align, ..self.mem() };
        self.b.store_vec(size, addr, v, mem);
    }

    /// Loads a memory operand of 1 to 32 bytes, zero-extended.
    pub(super) fn load_operand(&mut self, i: &Instruction, aligned: bool) -> Value {
        match i.memory_size().size() {
            bytes @ (1 | 2) => {
                let addr = self.address(i, bytes as u32, false);
                let mem = self.mem();
                let v = self.b.load(width_of(bytes), Ext::Zero, addr, mem);
                self.b.push(Inst::VecFromInt { w: Width::W32, a: v })
            }
            4 => self.load_vec(i, VecSize::B4, false),
            8 => self.load_vec(i, VecSize::B8, false),
            32 => self.load_vec(i, VecSize::B32, aligned),
            _ => self.load_vec(i, VecSize::B16, aligned),
        }
    }
}

/// The sources of an operation with one or two operands, the last of them possibly in memory.
pub(super) fn sources(t: &mut Translator<'_>, i: &Instruction, form: Form, op: VecOp) -> (Value, Value) {
    if op.operands() == 2 {
        let b = t.second(i, form);
        (t.first(i, form), b)
    } else {
        let a = t.source(i, 1, form);
        (a, a)
    }
}

/// An instruction that is one vector operation on its operands: register destination, the operation's sources,
/// immediate.
pub(super) fn simple(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    let Some(form) = t.vector_form(i) else { return };
    let (a, b) = sources(t, i, form, op);
    let r = t.vec_in(form, op, a, b, imm8(i));
    t.set_result(i, form, r);
}

/// As [`simple`], for floating-point operations that raise exceptions.
pub(super) fn simple_float(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    let Some(form) = t.vector_form(i) else { return };
    let (a, b) = sources(t, i, form, op);
    let r = t.floating(|t| t.vec_in(form, op, a, b, imm8(i)));
    t.set_result(i, form, r);
}

fn ldmxcsr(t: &mut Translator<'_>, i: &Instruction) {
    if t.vector_form(i).is_none() {
        return;
    }
    let v = t.read(i, 0);
    t.call(helpers::sse::LDMXCSR, &[v]);
    // Unmasking exceptions changes the block mode.
    t.set_pc(t.next);
    t.leave_for_mode_change();
}

fn stmxcsr(t: &mut Translator<'_>, i: &Instruction) {
    if t.vector_form(i).is_none() {
        return;
    }
    let v = t.call(helpers::sse::STMXCSR, &[]);
    t.write(i, 0, v);
}

fn maskmovdqu(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    let data = t.vector(i.op1_register(), form);
    let mask = t.vector(i.op2_register(), form);
    let low = t.b.push(Inst::VecToInt { w: Width::W64, a: data });
    let high = t.vec_test(VecLen::V128, VecTestOp::ExtractI64, data, data, 1);
    let mask = t.vec_test(VecLen::V128, VecTestOp::MaskI8, mask, mask, 0);
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
