//! Instructions that not every host has, although guests may: AES, carry-less multiplication, SHA, GFNI and the dot products of
//! AVX-VNNI.
//!
//! Where the host has the instruction, the IR operation becomes that; elsewhere pure helpers compute what the IR's interpreter
//! does, 64 bits of the result a call. Each 128 bits are independent in all of them.

use iced_x86::{Instruction, Mnemonic, Register};
use tessera_tcg::backend::HostVec;
use tessera_tcg::ir::{Inst, Value, Vec3Op, VecInsOp, VecLen, VecOp, VecTestOp, Width};

use super::sse::{imm8, sources, vec_rows};
use super::{Row, Translator};
use crate::helpers::vec_op;

/// Rows of this family that exist in both encodings.
pub(super) const ROWS: &[Row] = vec_rows! {
    optional:
        Aesenc Vaesenc AesEnc, Aesenclast Vaesenclast AesEncLast, Aesdec Vaesdec AesDec,
        Aesdeclast Vaesdeclast AesDecLast, Aesimc Vaesimc AesInvMix,
        Aeskeygenassist Vaeskeygenassist AesKeygen, Pclmulqdq Vpclmulqdq ClmulI64,
        Gf2p8mulb Vgf2p8mulb GfMulI8, Gf2p8affineqb Vgf2p8affineqb GfAffineI8,
        Gf2p8affineinvqb Vgf2p8affineinvqb GfAffineInvI8;
};

/// Rows of this family that exist in one encoding.
pub(super) const OTHER_ROWS: &[Row] = &[
    Row::All(Mnemonic::Sha1nexte, |t, i| optional(t, i, VecOp::Sha1NextE)),
    Row::All(Mnemonic::Sha1msg1, |t, i| optional(t, i, VecOp::Sha1Msg1)),
    Row::All(Mnemonic::Sha1msg2, |t, i| optional(t, i, VecOp::Sha1Msg2)),
    Row::All(Mnemonic::Sha1rnds4, |t, i| optional(t, i, VecOp::Sha1Rounds4)),
    Row::All(Mnemonic::Sha256msg1, |t, i| optional(t, i, VecOp::Sha256Msg1)),
    Row::All(Mnemonic::Sha256msg2, |t, i| optional(t, i, VecOp::Sha256Msg2)),
    Row::All(Mnemonic::Sha256rnds2, sha256_rounds2),
    Row::All(Mnemonic::Vpdpbusd, |t, i| dot_add(t, i, Vec3Op::DotAddU8S8)),
    Row::All(Mnemonic::Vpdpbusds, |t, i| dot_add(t, i, Vec3Op::DotAddSatU8S8)),
    Row::All(Mnemonic::Vpdpwssd, |t, i| dot_add(t, i, Vec3Op::DotAddS16)),
    Row::All(Mnemonic::Vpdpwssds, |t, i| dot_add(t, i, Vec3Op::DotAddSatS16)),
];

#[cfg(test)]
thread_local! {
    /// Translations on this thread use nothing optional.
    pub(super) static PLAIN_HOST: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn host() -> HostVec {
    #[cfg(test)]
    if PLAIN_HOST.get() {
        return HostVec::NONE;
    }
    HostVec::detect()
}

/// An instruction that is one vector operation on its operands, which the host may lack.
fn optional(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    let Some(form) = t.vector_form(i) else { return };
    let (a, b) = sources(t, i, form, op);
    let imm = imm8(i);
    let len = if op.max_len() == VecLen::V128 { VecLen::V128 } else { form.len };
    let r = if host().has(op, len) {
        t.b.push(Inst::Vec { op, len, a, b, imm })
    } else {
        t.in_halves(len, [a, b, b], |t, [a, b, _]| {
            if host().has(op, VecLen::V128) {
                return t.vec(op, a, b, imm);
            }
            let ((a_low, a_high), (b_low, b_high)) = (t.words(a), t.words(b));
            let half = |t: &mut Translator<'_>, n: u64| {
                let what = t.b.iconst(vec_op::describe(op, imm, n));
                t.call(vec_op::VEC_WORD, &[a_low, a_high, b_low, b_high, what])
            };
            let (low, high) = (half(t, 0), half(t, 1));
            t.join_words(low, high)
        })
    };
    t.set_result(i, form, r);
}

/// Two rounds; the third operand is XMM0.
fn sha256_rounds2(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    let b = t.second(i, form);
    let a = t.first(i, form);
    let c = t.xmm(Register::XMM0);
    let op = Vec3Op::Sha256Rounds2;
    let r = if host().has3(op) {
        t.b.push(Inst::Vec3 { op, len: VecLen::V128, a, b, c })
    } else {
        let ((a_low, a_high), (b_low, b_high), (words, _)) = (t.words(a), t.words(b), t.words(c));
        let args = [a_low, a_high, b_low, b_high, words];
        let low = t.call(vec_op::SHA256_ROUNDS_LOW, &args);
        let high = t.call(vec_op::SHA256_ROUNDS_HIGH, &args);
        t.join_words(low, high)
    };
    t.set_result(i, form, r);
}

/// VPDPBUSD and its kin: the destination is the addend.
fn dot_add(t: &mut Translator<'_>, i: &Instruction, op: Vec3Op) {
    let Some(form) = t.vector_form(i) else { return };
    let b = t.source(i, 2, form);
    let a = t.ymm(i.op1_register());
    let c = t.ymm(i.op0_register());
    let r = if host().has3(op) {
        t.b.push(Inst::Vec3 { op, len: form.len, a, b, c })
    } else {
        let op = t.b.iconst(vec_op::describe3(op));
        t.in_halves(form.len, [a, b, c], |t, [a, b, c]| {
            let ((a_low, a_high), (b_low, b_high), (c_low, c_high)) = (t.words(a), t.words(b), t.words(c));
            let low = t.call(vec_op::DOT_ADD_WORD, &[a_low, b_low, c_low, op]);
            let high = t.call(vec_op::DOT_ADD_WORD, &[a_high, b_high, c_high, op]);
            t.join_words(low, high)
        })
    };
    t.set_result(i, form, r);
}

impl Translator<'_> {
    /// The two 64-bit words of the low 128 bits.
    fn words(&mut self, v: Value) -> (Value, Value) {
        let low = self.b.push(Inst::VecToInt { w: Width::W64, a: v });
        (low, self.vec_test(VecLen::V128, VecTestOp::ExtractI64, v, v, 1))
    }

    /// 128 bits of two words.
    fn join_words(&mut self, low: Value, high: Value) -> Value {
        let v = self.b.push(Inst::VecFromInt { w: Width::W64, a: low });
        self.vec_ins(VecInsOp::InsertI64, v, high, 1)
    }

    /// Applies a function of 128 bits to each 128 bits of its operands.
    fn in_halves(
        &mut self,
        len: VecLen,
        operands: [Value; 3],
        mut f: impl FnMut(&mut Self, [Value; 3]) -> Value,
    ) -> Value {
        let low = f(self, operands);
        if len == VecLen::V128 {
            return low;
        }
        let upper =
            operands.map(|v| self.b.push(Inst::Vec { op: VecOp::ExtractI128, len, a: v, b: v, imm: 1 }));
        let high = f(self, upper);
        self.b.push(Inst::Vec { op: VecOp::InsertI128, len, a: low, b: high, imm: 1 })
    }
}
