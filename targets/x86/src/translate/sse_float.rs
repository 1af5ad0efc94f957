//! SSE floating point: arithmetic, comparisons, rounding, conversions.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{Inst, Value, VecInsOp, VecOp, VecSize, VecTestOp, Width};

use super::mmx::mmx_operand;
use super::sse::{imm8, simple, simple_float, vec_rows};
use super::{Row, Translator};

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vec_rows! {
    simple_float:
        Addps AddF32, Addpd AddF64, Addss AddScalarF32, Addsd AddScalarF64,
        Subps SubF32, Subpd SubF64, Subss SubScalarF32, Subsd SubScalarF64,
        Mulps MulF32, Mulpd MulF64, Mulss MulScalarF32, Mulsd MulScalarF64,
        Divps DivF32, Divpd DivF64, Divss DivScalarF32, Divsd DivScalarF64,
        Minps MinF32, Minpd MinF64, Minss MinScalarF32, Minsd MinScalarF64,
        Maxps MaxF32, Maxpd MaxF64, Maxss MaxScalarF32, Maxsd MaxScalarF64,
        Sqrtps SqrtF32, Sqrtpd SqrtF64, Sqrtss SqrtScalarF32, Sqrtsd SqrtScalarF64,
        Roundps RoundF32, Roundpd RoundF64, Roundss RoundScalarF32, Roundsd RoundScalarF64,
        Dpps DotF32, Dppd DotF64,
        Haddps HAddF32, Haddpd HAddF64, Hsubps HSubF32, Hsubpd HSubF64,
        Addsubps AddSubF32, Addsubpd AddSubF64,
        Cvtdq2ps CvtI32F32, Cvtps2dq CvtF32I32, Cvttps2dq CvtTruncF32I32,
        Cvtdq2pd CvtI32F64, Cvtpd2dq CvtF64I32, Cvttpd2dq CvtTruncF64I32,
        Cvtps2pd CvtF32F64, Cvtpd2ps CvtF64F32,
        Cvtss2sd CvtScalarF32F64, Cvtsd2ss CvtScalarF64F32;
    simple:
        Rcpps RcpF32, Rcpss RcpScalarF32, Rsqrtps RsqrtF32, Rsqrtss RsqrtScalarF32;
    compare: Cmpps CmpF32, Cmppd CmpF64, Cmpss CmpScalarF32;
};

/// Rows of this family that are more.
pub(super) const ROWS: &[Row] = &[
    // The mnemonic is also a string instruction's.
    Row::One(Code::Cmpsd_xmm_xmmm64_imm8, |t, i| compare(t, i, VecOp::CmpScalarF64)),
    Row::All(Mnemonic::Comiss, |t, i| compare_flags(t, i, VecTestOp::CompareF32)),
    Row::All(Mnemonic::Comisd, |t, i| compare_flags(t, i, VecTestOp::CompareF64)),
    Row::All(Mnemonic::Ucomiss, |t, i| compare_flags(t, i, VecTestOp::CompareQuietF32)),
    Row::All(Mnemonic::Ucomisd, |t, i| compare_flags(t, i, VecTestOp::CompareQuietF64)),
    Row::All(Mnemonic::Cvtsi2ss, |t, i| from_int(t, i, VecInsOp::CvtI32F32, VecInsOp::CvtI64F32)),
    Row::All(Mnemonic::Cvtsi2sd, |t, i| from_int(t, i, VecInsOp::CvtI32F64, VecInsOp::CvtI64F64)),
    Row::All(Mnemonic::Cvtss2si, |t, i| to_int(t, i, VecTestOp::CvtF32I32, VecTestOp::CvtF32I64)),
    Row::All(Mnemonic::Cvtsd2si, |t, i| to_int(t, i, VecTestOp::CvtF64I32, VecTestOp::CvtF64I64)),
    Row::All(Mnemonic::Cvttss2si, |t, i| to_int(t, i, VecTestOp::CvtTruncF32I32, VecTestOp::CvtTruncF32I64)),
    Row::All(Mnemonic::Cvttsd2si, |t, i| to_int(t, i, VecTestOp::CvtTruncF64I32, VecTestOp::CvtTruncF64I64)),
    Row::All(Mnemonic::Cvtpi2ps, cvtpi2ps),
    Row::All(Mnemonic::Cvtpi2pd, cvtpi2pd),
    Row::All(Mnemonic::Cvtps2pi, |t, i| to_mmx(t, i, VecOp::CvtF32I32)),
    Row::All(Mnemonic::Cvttps2pi, |t, i| to_mmx(t, i, VecOp::CvtTruncF32I32)),
    Row::All(Mnemonic::Cvtpd2pi, |t, i| to_mmx(t, i, VecOp::CvtF64I32)),
    Row::All(Mnemonic::Cvttpd2pi, |t, i| to_mmx(t, i, VecOp::CvtTruncF64I32)),
];

/// Legacy comparisons have eight predicates; higher immediate bits are ignored.
fn compare(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if !t.sse_available() {
        return;
    }
    let b = t.read_vec(i, 1);
    let a = t.xmm(i.op0_register());
    let r = t.floating(|t| t.vec(op, a, b, imm8(i) & 7));
    t.set_xmm(i.op0_register(), r);
}

fn compare_flags(t: &mut Translator<'_>, i: &Instruction, op: VecTestOp) {
    if !t.sse_available() {
        return;
    }
    let b = t.read_vec(i, 1);
    let a = t.xmm(i.op0_register());
    let packed = t.floating(|t| t.vec_test(op, a, b, 0));
    t.set_packed_flags(packed);
}

fn from_int(t: &mut Translator<'_>, i: &Instruction, narrow: VecInsOp, wide: VecInsOp) {
    if !t.sse_available() {
        return;
    }
    let op = if t.width(i, 1) == Width::W64 { wide } else { narrow };
    let b = t.read(i, 1);
    let a = t.xmm(i.op0_register());
    let r = t.floating(|t| t.vec_ins(op, a, b, 0));
    t.set_xmm(i.op0_register(), r);
}

fn to_int(t: &mut Translator<'_>, i: &Instruction, narrow: VecTestOp, wide: VecTestOp) {
    if !t.sse_available() {
        return;
    }
    let op = if t.width(i, 0) == Width::W64 { wide } else { narrow };
    let a = t.read_vec(i, 1);
    let r = t.floating(|t| t.vec_test(op, a, a, 0));
    t.set_reg(i.op0_register(), r);
}

/// Two integers of an MMX register or memory to the low two binary32 lanes.
fn cvtpi2ps(t: &mut Translator<'_>, i: &Instruction) {
    from_mmx(t, i, |t, src| {
        let dst = t.xmm(i.op0_register());
        let r = t.floating(|t| t.vec1(VecOp::CvtI32F32, src, 0));
        t.vec(VecOp::MoveI64, dst, r, 0)
    });
}

/// Two integers of an MMX register or memory to two binary64 lanes.
fn cvtpi2pd(t: &mut Translator<'_>, i: &Instruction) {
    from_mmx(t, i, |t, src| t.floating(|t| t.vec1(VecOp::CvtI32F64, src, 0)));
}

/// With a memory operand, the x87 unit is not touched.
fn from_mmx(t: &mut Translator<'_>, i: &Instruction, f: impl FnOnce(&mut Translator<'_>, Value) -> Value) {
    let memory = i.op1_kind() == OpKind::Memory;
    if !t.sse_available() || !memory && !t.mmx_available() {
        return;
    }
    let src = if memory { t.load_vec(i, VecSize::B8, false) } else { mmx_operand(t, i, 1) };
    let r = f(t, src);
    if !memory {
        t.mmx_mode();
    }
    t.set_xmm(i.op0_register(), r);
}

fn to_mmx(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if !t.sse_available() || !t.mmx_available() {
        return;
    }
    let mut src = t.read_vec(i, 1);
    if matches!(op, VecOp::CvtF32I32 | VecOp::CvtTruncF32I32) {
        // The upper lanes must not raise anything.
        src = t.vec1(VecOp::LowI64, src, 0);
    }
    let r = t.floating(|t| t.vec1(op, src, 0));
    let r = t.b.push(Inst::VecToInt { w: Width::W64, a: r });
    t.mmx_mode();
    t.set_mmx(i.op0_register(), r);
}
