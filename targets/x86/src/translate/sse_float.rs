//! SSE floating point: arithmetic, comparisons, rounding, conversions.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{Inst, Value, VecInsOp, VecLen, VecOp, VecSize, VecTestOp, Width};

use super::mmx::mmx_operand;
use super::sse::{both_rows, imm8, simple, simple_float, vec_rows};
use super::{Row, Translator};

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vec_rows! {
    simple_float:
        Addps Vaddps AddF32, Addpd Vaddpd AddF64, Addss Vaddss AddScalarF32, Addsd Vaddsd AddScalarF64,
        Subps Vsubps SubF32, Subpd Vsubpd SubF64, Subss Vsubss SubScalarF32, Subsd Vsubsd SubScalarF64,
        Mulps Vmulps MulF32, Mulpd Vmulpd MulF64, Mulss Vmulss MulScalarF32, Mulsd Vmulsd MulScalarF64,
        Divps Vdivps DivF32, Divpd Vdivpd DivF64, Divss Vdivss DivScalarF32, Divsd Vdivsd DivScalarF64,
        Minps Vminps MinF32, Minpd Vminpd MinF64, Minss Vminss MinScalarF32, Minsd Vminsd MinScalarF64,
        Maxps Vmaxps MaxF32, Maxpd Vmaxpd MaxF64, Maxss Vmaxss MaxScalarF32, Maxsd Vmaxsd MaxScalarF64,
        Sqrtps Vsqrtps SqrtF32, Sqrtpd Vsqrtpd SqrtF64, Sqrtss Vsqrtss SqrtScalarF32,
        Sqrtsd Vsqrtsd SqrtScalarF64, Roundps Vroundps RoundF32, Roundpd Vroundpd RoundF64,
        Roundss Vroundss RoundScalarF32, Roundsd Vroundsd RoundScalarF64, Dpps Vdpps DotF32,
        Dppd Vdppd DotF64, Haddps Vhaddps HAddF32, Haddpd Vhaddpd HAddF64, Hsubps Vhsubps HSubF32,
        Hsubpd Vhsubpd HSubF64, Addsubps Vaddsubps AddSubF32, Addsubpd Vaddsubpd AddSubF64,
        Cvtdq2ps Vcvtdq2ps CvtI32F32, Cvtps2dq Vcvtps2dq CvtF32I32, Cvttps2dq Vcvttps2dq CvtTruncF32I32,
        Cvtdq2pd Vcvtdq2pd CvtI32F64, Cvtpd2dq Vcvtpd2dq CvtF64I32, Cvttpd2dq Vcvttpd2dq CvtTruncF64I32,
        Cvtps2pd Vcvtps2pd CvtF32F64, Cvtpd2ps Vcvtpd2ps CvtF64F32, Cvtss2sd Vcvtss2sd CvtScalarF32F64,
        Cvtsd2ss Vcvtsd2ss CvtScalarF64F32;
    simple:
        Rcpps Vrcpps RcpF32, Rcpss Vrcpss RcpScalarF32, Rsqrtps Vrsqrtps RsqrtF32,
        Rsqrtss Vrsqrtss RsqrtScalarF32;
    compare:
        Cmpps Vcmpps CmpF32, Cmppd Vcmppd CmpF64, Cmpss Vcmpss CmpScalarF32;
};

/// Rows of this family that are more, in both encodings.
pub(super) const ROWS: &[Row] = both_rows! {
    Comiss Vcomiss => |t, i| compare_flags(t, i, VecTestOp::CompareF32),
    Comisd Vcomisd => |t, i| compare_flags(t, i, VecTestOp::CompareF64),
    Ucomiss Vucomiss => |t, i| compare_flags(t, i, VecTestOp::CompareQuietF32),
    Ucomisd Vucomisd => |t, i| compare_flags(t, i, VecTestOp::CompareQuietF64),
    Cvtsi2ss Vcvtsi2ss => |t, i| from_int(t, i, VecInsOp::CvtI32F32, VecInsOp::CvtI64F32),
    Cvtsi2sd Vcvtsi2sd => |t, i| from_int(t, i, VecInsOp::CvtI32F64, VecInsOp::CvtI64F64),
    Cvtss2si Vcvtss2si => |t, i| to_int(t, i, VecTestOp::CvtF32I32, VecTestOp::CvtF32I64),
    Cvtsd2si Vcvtsd2si => |t, i| to_int(t, i, VecTestOp::CvtF64I32, VecTestOp::CvtF64I64),
    Cvttss2si Vcvttss2si => |t, i| to_int(t, i, VecTestOp::CvtTruncF32I32, VecTestOp::CvtTruncF32I64),
    Cvttsd2si Vcvttsd2si => |t, i| to_int(t, i, VecTestOp::CvtTruncF64I32, VecTestOp::CvtTruncF64I64),
};

/// Rows without a VEX form of the same shape: a mnemonic that a string instruction shares, and MMX operands.
pub(super) const CODE_ROWS: &[Row] = &[
    Row::One(Code::Cmpsd_xmm_xmmm64_imm8, |t, i| compare(t, i, VecOp::CmpScalarF64)),
    Row::All(Mnemonic::Vcmpsd, |t, i| compare(t, i, VecOp::CmpScalarF64)),
    Row::All(Mnemonic::Cvtpi2ps, cvtpi2ps),
    Row::All(Mnemonic::Cvtpi2pd, cvtpi2pd),
    Row::All(Mnemonic::Cvtps2pi, |t, i| to_mmx(t, i, VecOp::CvtF32I32)),
    Row::All(Mnemonic::Cvttps2pi, |t, i| to_mmx(t, i, VecOp::CvtTruncF32I32)),
    Row::All(Mnemonic::Cvtpd2pi, |t, i| to_mmx(t, i, VecOp::CvtF64I32)),
    Row::All(Mnemonic::Cvttpd2pi, |t, i| to_mmx(t, i, VecOp::CvtTruncF64I32)),
];

/// Legacy comparisons have eight predicates, VEX ones thirty-two; higher immediate bits are ignored.
fn compare(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    let Some(form) = t.vector_form(i) else { return };
    let b = t.second(i, form);
    let a = t.first(i, form);
    let predicate = imm8(i) & if form.vex { 31 } else { 7 };
    let r = t.floating(|t| t.vec_in(form, op, a, b, predicate));
    t.set_result(i, form, r);
}

/// Operands are the same in both encodings.
fn compare_flags(t: &mut Translator<'_>, i: &Instruction, op: VecTestOp) {
    let Some(form) = t.vector_form(i) else { return };
    let b = t.source(i, 1, form);
    let a = t.source(i, 0, form);
    let packed = t.floating(|t| t.vec_test(VecLen::V128, op, a, b, 0));
    t.set_packed_flags(packed);
}

fn from_int(t: &mut Translator<'_>, i: &Instruction, narrow: VecInsOp, wide: VecInsOp) {
    let Some(form) = t.vector_form(i) else { return };
    let source = 1 + form.vex as u32;
    let op = if t.width(i, source) == Width::W64 { wide } else { narrow };
    let b = t.read(i, source);
    let a = t.first(i, form);
    let r = t.floating(|t| t.vec_ins(op, a, b, 0));
    t.set_result(i, form, r);
}

fn to_int(t: &mut Translator<'_>, i: &Instruction, narrow: VecTestOp, wide: VecTestOp) {
    let Some(form) = t.vector_form(i) else { return };
    let op = if t.width(i, 0) == Width::W64 { wide } else { narrow };
    let a = t.source(i, 1, form);
    let r = t.floating(|t| t.vec_test(VecLen::V128, op, a, a, 0));
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
    // Legacy only, with 8 bytes of binary32 or 16 of binary64 in memory.
    let mut src = match i.op1_kind() {
        OpKind::Memory => t.load_operand(i, true),
        _ => t.xmm(i.op1_register()),
    };
    if matches!(op, VecOp::CvtF32I32 | VecOp::CvtTruncF32I32) {
        // The upper lanes must not raise anything.
        src = t.vec1(VecOp::LowI64, src, 0);
    }
    let r = t.floating(|t| t.vec1(op, src, 0));
    let r = t.b.push(Inst::VecToInt { w: Width::W64, a: r });
    t.mmx_mode();
    t.set_mmx(i.op0_register(), r);
}
