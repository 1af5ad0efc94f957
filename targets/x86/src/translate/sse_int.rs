//! SSE packed integers, from SSE2 to SSE4.2, AES and PCLMULQDQ; with their MMX forms where the mnemonic is shared.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Inst, Value, VecInsOp, VecOp, VecTestOp, Width};

use super::mmx;
use super::sse::{imm8, simple, vec_rows};
use super::{Row, Translator};
use crate::helpers;
use crate::state::reg;

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vec_rows! {
    packed:
        Pand And, Pandn AndNot, Por Or, Pxor Xor,
        Paddb AddI8, Paddw AddI16, Paddd AddI32, Paddq AddI64,
        Psubb SubI8, Psubw SubI16, Psubd SubI32, Psubq SubI64,
        Paddsb AddSatS8, Paddsw AddSatS16, Paddusb AddSatU8, Paddusw AddSatU16,
        Psubsb SubSatS8, Psubsw SubSatS16, Psubusb SubSatU8, Psubusw SubSatU16,
        Pmullw MulLoI16, Pmulhw MulHiS16, Pmulhuw MulHiU16, Pmulhrsw MulHiRoundS16,
        Pmuludq MulWideU32, Pmaddwd MulAddS16, Pmaddubsw MulAddU8S8,
        Pcmpeqb CmpEqI8, Pcmpeqw CmpEqI16, Pcmpeqd CmpEqI32,
        Pcmpgtb CmpGtS8, Pcmpgtw CmpGtS16, Pcmpgtd CmpGtS32,
        Pminub MinU8, Pminsw MinS16, Pmaxub MaxU8, Pmaxsw MaxS16,
        Pavgb AvgU8, Pavgw AvgU16, Psadbw SadU8,
        Packsswb PackS16, Packssdw PackS32, Packuswb PackU16,
        Punpcklbw UnpackLoI8, Punpcklwd UnpackLoI16, Punpckldq UnpackLoI32,
        Punpckhbw UnpackHiI8, Punpckhwd UnpackHiI16, Punpckhdq UnpackHiI32,
        Pshufb ShuffleI8, Palignr AlignBytes,
        Pabsb AbsS8, Pabsw AbsS16, Pabsd AbsS32, Psignb SignS8, Psignw SignS16, Psignd SignS32,
        Phaddw HAddI16, Phaddd HAddI32, Phaddsw HAddSatS16, Phsubw HSubI16, Phsubd HSubI32, Phsubsw HSubSatS16;
    simple:
        Pmulld MulLoI32, Pmuldq MulWideS32, Pcmpeqq CmpEqI64, Pcmpgtq CmpGtS64,
        Pminsb MinS8, Pminsd MinS32, Pminuw MinU16, Pminud MinU32,
        Pmaxsb MaxS8, Pmaxsd MaxS32, Pmaxuw MaxU16, Pmaxud MaxU32,
        Mpsadbw MpSadU8, Phminposuw MinPosU16, Packusdw PackU32,
        Punpcklqdq UnpackLoI64, Punpckhqdq UnpackHiI64,
        Pshufd ShuffleI32, Pshuflw ShuffleLoI16, Pshufhw ShuffleHiI16, Pblendw BlendI16,
        Pmovsxbw ExtendS8To16, Pmovsxbd ExtendS8To32, Pmovsxbq ExtendS8To64,
        Pmovsxwd ExtendS16To32, Pmovsxwq ExtendS16To64, Pmovsxdq ExtendS32To64,
        Pmovzxbw ExtendU8To16, Pmovzxbd ExtendU8To32, Pmovzxbq ExtendU8To64,
        Pmovzxwd ExtendU16To32, Pmovzxwq ExtendU16To64, Pmovzxdq ExtendU32To64,
        Aesenc AesEnc, Aesenclast AesEncLast, Aesdec AesDec, Aesdeclast AesDecLast,
        Aesimc AesInvMix, Aeskeygenassist AesKeygen, Pclmulqdq ClmulI64;
};

/// Rows of this family that are more.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Psllw, |t, i| shift(t, i, VecOp::ShlI16, VecOp::ShlImmI16)),
    Row::All(Mnemonic::Pslld, |t, i| shift(t, i, VecOp::ShlI32, VecOp::ShlImmI32)),
    Row::All(Mnemonic::Psllq, |t, i| shift(t, i, VecOp::ShlI64, VecOp::ShlImmI64)),
    Row::All(Mnemonic::Psrlw, |t, i| shift(t, i, VecOp::ShrI16, VecOp::ShrImmI16)),
    Row::All(Mnemonic::Psrld, |t, i| shift(t, i, VecOp::ShrI32, VecOp::ShrImmI32)),
    Row::All(Mnemonic::Psrlq, |t, i| shift(t, i, VecOp::ShrI64, VecOp::ShrImmI64)),
    Row::All(Mnemonic::Psraw, |t, i| shift(t, i, VecOp::SarI16, VecOp::SarImmI16)),
    Row::All(Mnemonic::Psrad, |t, i| shift(t, i, VecOp::SarI32, VecOp::SarImmI32)),
    Row::All(Mnemonic::Pslldq, |t, i| shift_bytes(t, i, VecOp::ShlBytes)),
    Row::All(Mnemonic::Psrldq, |t, i| shift_bytes(t, i, VecOp::ShrBytes)),
    Row::All(Mnemonic::Pmovmskb, pmovmskb),
    Row::All(Mnemonic::Ptest, ptest),
    Row::All(Mnemonic::Pinsrb, |t, i| insert(t, i, VecInsOp::InsertI8)),
    Row::All(Mnemonic::Pinsrw, |t, i| insert(t, i, VecInsOp::InsertI16)),
    Row::All(Mnemonic::Pinsrd, |t, i| insert(t, i, VecInsOp::InsertI32)),
    Row::All(Mnemonic::Pinsrq, |t, i| insert(t, i, VecInsOp::InsertI64)),
    Row::All(Mnemonic::Pextrb, |t, i| extract(t, i, VecTestOp::ExtractI8)),
    Row::All(Mnemonic::Pextrw, |t, i| extract(t, i, VecTestOp::ExtractI16)),
    Row::All(Mnemonic::Pextrd, |t, i| extract(t, i, VecTestOp::ExtractI32)),
    Row::All(Mnemonic::Pextrq, |t, i| extract(t, i, VecTestOp::ExtractI64)),
    Row::All(Mnemonic::Pcmpistri, |t, i| compare_strings(t, i, false)),
    Row::All(Mnemonic::Pcmpistrm, |t, i| compare_strings(t, i, true)),
    Row::All(Mnemonic::Pcmpestri, |t, i| compare_strings(t, i, false)),
    Row::All(Mnemonic::Pcmpestrm, |t, i| compare_strings(t, i, true)),
    Row::All(Mnemonic::Pcmpestri64, |t, i| compare_strings(t, i, false)),
    Row::All(Mnemonic::Pcmpestrm64, |t, i| compare_strings(t, i, true)),
];

fn packed(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if i.op0_register().is_mm() { mmx::packed(t, i, op) } else { simple(t, i, op) }
}

/// Shifts by an immediate, or by the low 64 bits of a register or memory.
fn shift(t: &mut Translator<'_>, i: &Instruction, by_vec: VecOp, by_imm: VecOp) {
    let immediate = i.op1_kind() == OpKind::Immediate8;
    if i.op0_register().is_mm() {
        return mmx::packed(t, i, if immediate { by_imm } else { by_vec });
    }
    if !immediate {
        return simple(t, i, by_vec);
    }
    shift_bytes(t, i, by_imm);
}

fn shift_bytes(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if !t.sse_available() {
        return;
    }
    let a = t.xmm(i.op0_register());
    let r = t.vec1(op, a, imm8(i));
    t.set_xmm(i.op0_register(), r);
}

fn pmovmskb(t: &mut Translator<'_>, i: &Instruction) {
    if i.op1_register().is_mm() {
        return mmx::pmovmskb(t, i);
    }
    if !t.sse_available() {
        return;
    }
    let v = t.xmm(i.op1_register());
    let r = t.vec_test(VecTestOp::MaskI8, v, v, 0);
    t.set_reg(i.op0_register(), r);
}

fn ptest(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let b = t.read_vec(i, 1);
    let a = t.xmm(i.op0_register());
    // Z: a & b is zero; C: !a & b is zero.
    let packed = t.vec_test(VecTestOp::TestBits, a, b, 0);
    t.set_packed_flags(packed);
}

fn insert(t: &mut Translator<'_>, i: &Instruction, op: VecInsOp) {
    if i.op0_register().is_mm() {
        return mmx::pinsrw(t, i);
    }
    if !t.sse_available() {
        return;
    }
    let b = t.read(i, 1);
    let a = t.xmm(i.op0_register());
    let r = t.vec_ins(op, a, b, imm8(i));
    t.set_xmm(i.op0_register(), r);
}

fn extract(t: &mut Translator<'_>, i: &Instruction, op: VecTestOp) {
    if i.op1_register().is_mm() {
        return mmx::pextrw(t, i);
    }
    if !t.sse_available() {
        return;
    }
    let v = t.xmm(i.op1_register());
    let r = t.vec_test(op, v, v, imm8(i));
    t.write(i, 0, r);
}

/// Both 64-bit halves.
fn halves(t: &mut Translator<'_>, v: Value) -> (Value, Value) {
    let low = t.b.push(Inst::VecToInt { w: Width::W64, a: v });
    let high = t.vec_test(VecTestOp::ExtractI64, v, v, 1);
    (low, high)
}

/// PCMPISTRI and its kin: helpers compare, and expand the result to a mask.
fn compare_strings(t: &mut Translator<'_>, i: &Instruction, mask: bool) {
    if !t.sse_available() {
        return;
    }
    let imm = imm8(i);
    let explicit = !matches!(i.mnemonic(), Mnemonic::Pcmpistri | Mnemonic::Pcmpistrm);
    let b = t.read_vec_aligned(i, 1, false);
    let a = t.xmm(i.op0_register());
    let mut control = t.b.iconst(imm as u64 | (explicit as u64) << 32);
    if explicit {
        let w = if is_wide(i) { Width::W64 } else { Width::W32 };
        for (n, at) in [(reg::RAX, 8), (reg::RDX, 16)] {
            let v = t.gpr(n);
            let v = t.sx(w, v);
            let words = t.b.iconst((imm & 1) as u64);
            let length = t.call(helpers::sse::STRING_LENGTH, &[v, words]);
            let length = t.b.bin_imm(BinOp::Shl, Width::W64, length, at);
            control = t.b.bin(BinOp::Or, Width::W64, control, length);
        }
    }
    let (a_low, a_high) = halves(t, a);
    let (b_low, b_high) = halves(t, b);
    let r = t.call(helpers::sse::COMPARE_STRINGS, &[a_low, a_high, b_low, b_high, control]);
    let packed = t.b.bin_imm(BinOp::Shr, Width::W64, r, 32);
    if mask {
        let width = t.b.iconst((imm & 0x41) as u64);
        let zero = t.b.iconst(0);
        let one = t.b.iconst(1);
        let low = t.call(helpers::sse::STRING_MASK, &[r, width, zero]);
        let high = t.call(helpers::sse::STRING_MASK, &[r, width, one]);
        let v = t.b.push(Inst::VecFromInt { w: Width::W64, a: low });
        let v = t.vec_ins(VecInsOp::InsertI64, v, high, 1);
        t.set_xmm(Register::XMM0, v);
    } else {
        let index = t.b.push(Inst::Extract { a: r, pos: 16, len: 8 });
        t.set_gpr(reg::RCX, Width::W32, index);
    }
    t.set_packed_flags(packed);
}

/// Whether the lengths are in RAX and RDX rather than EAX and EDX.
fn is_wide(i: &Instruction) -> bool {
    matches!(i.code(), Code::Pcmpestri64_xmm_xmmm128_imm8 | Code::Pcmpestrm64_xmm_xmmm128_imm8)
}
