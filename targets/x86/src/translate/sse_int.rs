//! SSE packed integers, from SSE2 to SSE4.2; with their MMX forms where the mnemonic is shared.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Inst, Value, VecInsOp, VecLen, VecOp, VecTestOp, Width};

use super::mmx;
use super::sse::{both_rows, imm8, simple, vec_rows};
use super::sse_move::mask;
use super::{Row, Translator};
use crate::helpers;
use crate::state::reg;

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vec_rows! {
    packed:
        Pand Vpand And, Pandn Vpandn AndNot, Por Vpor Or, Pxor Vpxor Xor, Paddb Vpaddb AddI8,
        Paddw Vpaddw AddI16, Paddd Vpaddd AddI32, Paddq Vpaddq AddI64, Psubb Vpsubb SubI8,
        Psubw Vpsubw SubI16, Psubd Vpsubd SubI32, Psubq Vpsubq SubI64, Paddsb Vpaddsb AddSatS8,
        Paddsw Vpaddsw AddSatS16, Paddusb Vpaddusb AddSatU8, Paddusw Vpaddusw AddSatU16,
        Psubsb Vpsubsb SubSatS8, Psubsw Vpsubsw SubSatS16, Psubusb Vpsubusb SubSatU8,
        Psubusw Vpsubusw SubSatU16, Pmullw Vpmullw MulLoI16, Pmulhw Vpmulhw MulHiS16,
        Pmulhuw Vpmulhuw MulHiU16, Pmulhrsw Vpmulhrsw MulHiRoundS16, Pmuludq Vpmuludq MulWideU32,
        Pmaddwd Vpmaddwd MulAddS16, Pmaddubsw Vpmaddubsw MulAddU8S8, Pcmpeqb Vpcmpeqb CmpEqI8,
        Pcmpeqw Vpcmpeqw CmpEqI16, Pcmpeqd Vpcmpeqd CmpEqI32, Pcmpgtb Vpcmpgtb CmpGtS8,
        Pcmpgtw Vpcmpgtw CmpGtS16, Pcmpgtd Vpcmpgtd CmpGtS32, Pminub Vpminub MinU8, Pminsw Vpminsw MinS16,
        Pmaxub Vpmaxub MaxU8, Pmaxsw Vpmaxsw MaxS16, Pavgb Vpavgb AvgU8, Pavgw Vpavgw AvgU16,
        Psadbw Vpsadbw SadU8, Packsswb Vpacksswb PackS16, Packssdw Vpackssdw PackS32,
        Packuswb Vpackuswb PackU16, Punpcklbw Vpunpcklbw UnpackLoI8, Punpcklwd Vpunpcklwd UnpackLoI16,
        Punpckldq Vpunpckldq UnpackLoI32, Punpckhbw Vpunpckhbw UnpackHiI8,
        Punpckhwd Vpunpckhwd UnpackHiI16, Punpckhdq Vpunpckhdq UnpackHiI32, Pshufb Vpshufb ShuffleI8,
        Palignr Vpalignr AlignBytes, Pabsb Vpabsb AbsS8, Pabsw Vpabsw AbsS16, Pabsd Vpabsd AbsS32,
        Psignb Vpsignb SignS8, Psignw Vpsignw SignS16, Psignd Vpsignd SignS32, Phaddw Vphaddw HAddI16,
        Phaddd Vphaddd HAddI32, Phaddsw Vphaddsw HAddSatS16, Phsubw Vphsubw HSubI16,
        Phsubd Vphsubd HSubI32, Phsubsw Vphsubsw HSubSatS16;
    simple:
        Pmulld Vpmulld MulLoI32, Pmuldq Vpmuldq MulWideS32, Pcmpeqq Vpcmpeqq CmpEqI64,
        Pcmpgtq Vpcmpgtq CmpGtS64, Pminsb Vpminsb MinS8, Pminsd Vpminsd MinS32, Pminuw Vpminuw MinU16,
        Pminud Vpminud MinU32, Pmaxsb Vpmaxsb MaxS8, Pmaxsd Vpmaxsd MaxS32, Pmaxuw Vpmaxuw MaxU16,
        Pmaxud Vpmaxud MaxU32, Mpsadbw Vmpsadbw MpSadU8, Phminposuw Vphminposuw MinPosU16,
        Packusdw Vpackusdw PackU32, Punpcklqdq Vpunpcklqdq UnpackLoI64, Punpckhqdq Vpunpckhqdq UnpackHiI64,
        Pshufd Vpshufd ShuffleI32, Pshuflw Vpshuflw ShuffleLoI16, Pshufhw Vpshufhw ShuffleHiI16,
        Pblendw Vpblendw BlendI16, Pmovsxbw Vpmovsxbw ExtendS8To16, Pmovsxbd Vpmovsxbd ExtendS8To32,
        Pmovsxbq Vpmovsxbq ExtendS8To64, Pmovsxwd Vpmovsxwd ExtendS16To32,
        Pmovsxwq Vpmovsxwq ExtendS16To64, Pmovsxdq Vpmovsxdq ExtendS32To64,
        Pmovzxbw Vpmovzxbw ExtendU8To16, Pmovzxbd Vpmovzxbd ExtendU8To32, Pmovzxbq Vpmovzxbq ExtendU8To64,
        Pmovzxwd Vpmovzxwd ExtendU16To32, Pmovzxwq Vpmovzxwq ExtendU16To64,
        Pmovzxdq Vpmovzxdq ExtendU32To64;
};

/// Rows of this family that are more, in both encodings.
pub(super) const ROWS: &[Row] = both_rows! {
    Psllw Vpsllw => |t, i| shift(t, i, VecOp::ShlI16, VecOp::ShlImmI16),
    Pslld Vpslld => |t, i| shift(t, i, VecOp::ShlI32, VecOp::ShlImmI32),
    Psllq Vpsllq => |t, i| shift(t, i, VecOp::ShlI64, VecOp::ShlImmI64),
    Psrlw Vpsrlw => |t, i| shift(t, i, VecOp::ShrI16, VecOp::ShrImmI16),
    Psrld Vpsrld => |t, i| shift(t, i, VecOp::ShrI32, VecOp::ShrImmI32),
    Psrlq Vpsrlq => |t, i| shift(t, i, VecOp::ShrI64, VecOp::ShrImmI64),
    Psraw Vpsraw => |t, i| shift(t, i, VecOp::SarI16, VecOp::SarImmI16),
    Psrad Vpsrad => |t, i| shift(t, i, VecOp::SarI32, VecOp::SarImmI32),
    Pslldq Vpslldq => |t, i| shift_immediate(t, i, VecOp::ShlBytes),
    Psrldq Vpsrldq => |t, i| shift_immediate(t, i, VecOp::ShrBytes),
    Pmovmskb Vpmovmskb => pmovmskb,
    Ptest Vptest => |t, i| test(t, i, VecTestOp::TestBits),
    Pinsrb Vpinsrb => |t, i| insert(t, i, VecInsOp::InsertI8),
    Pinsrw Vpinsrw => |t, i| insert(t, i, VecInsOp::InsertI16),
    Pinsrd Vpinsrd => |t, i| insert(t, i, VecInsOp::InsertI32),
    Pinsrq Vpinsrq => |t, i| insert(t, i, VecInsOp::InsertI64),
    Pextrb Vpextrb => |t, i| extract(t, i, VecTestOp::ExtractI8),
    Pextrw Vpextrw => |t, i| extract(t, i, VecTestOp::ExtractI16),
    Pextrd Vpextrd => |t, i| extract(t, i, VecTestOp::ExtractI32),
    Pextrq Vpextrq => |t, i| extract(t, i, VecTestOp::ExtractI64),
    Pcmpistri Vpcmpistri => |t, i| compare_strings(t, i, false),
    Pcmpistrm Vpcmpistrm => |t, i| compare_strings(t, i, true),
    Pcmpestri Vpcmpestri => |t, i| compare_strings(t, i, false),
    Pcmpestrm Vpcmpestrm => |t, i| compare_strings(t, i, true),
    Pcmpestri64 Vpcmpestri64 => |t, i| compare_strings(t, i, false),
    Pcmpestrm64 Vpcmpestrm64 => |t, i| compare_strings(t, i, true),
};

fn packed(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    if i.op0_register().is_mm() { mmx::packed(t, i, op) } else { simple(t, i, op) }
}

/// Shifts by an immediate, or by the low 64 bits of a register or memory.
fn shift(t: &mut Translator<'_>, i: &Instruction, by_vec: VecOp, by_imm: VecOp) {
    let immediate = i.op_kind(i.op_count() - 1) == OpKind::Immediate8;
    if i.op0_register().is_mm() {
        return mmx::packed(t, i, if immediate { by_imm } else { by_vec });
    }
    if immediate { shift_immediate(t, i, by_imm) } else { simple(t, i, by_vec) }
}

/// The source is the operand before the immediate: the destination in the legacy form.
fn shift_immediate(t: &mut Translator<'_>, i: &Instruction, op: VecOp) {
    let Some(form) = t.vector_form(i) else { return };
    let a = t.first(i, form);
    let r = t.vec_in(form, op, a, a, imm8(i));
    t.set_result(i, form, r);
}

fn pmovmskb(t: &mut Translator<'_>, i: &Instruction) {
    if i.op1_register().is_mm() { mmx::pmovmskb(t, i) } else { mask(t, i, VecTestOp::MaskI8) }
}

/// Flags of two operands' bits; both encodings have the same operands.
pub(super) fn test(t: &mut Translator<'_>, i: &Instruction, op: VecTestOp) {
    let Some(form) = t.vector_form(i) else { return };
    let b = t.source(i, 1, form);
    let a = t.source(i, 0, form);
    let packed = t.vec_test(form.len, op, a, b, 0);
    t.set_packed_flags(packed);
}

fn insert(t: &mut Translator<'_>, i: &Instruction, op: VecInsOp) {
    if i.op0_register().is_mm() {
        return mmx::pinsrw(t, i);
    }
    let Some(form) = t.vector_form(i) else { return };
    let b = t.read(i, 1 + form.vex as u32);
    let a = t.first(i, form);
    let r = t.vec_ins(op, a, b, imm8(i));
    t.set_result(i, form, r);
}

fn extract(t: &mut Translator<'_>, i: &Instruction, op: VecTestOp) {
    if i.op1_register().is_mm() {
        return mmx::pextrw(t, i);
    }
    let Some(form) = t.vector_form(i) else { return };
    let v = t.vector(i.op1_register(), form);
    let r = t.vec_test(VecLen::V128, op, v, v, imm8(i));
    t.write(i, 0, r);
}

/// Both 64-bit halves.
fn halves(t: &mut Translator<'_>, v: Value) -> (Value, Value) {
    let low = t.b.push(Inst::VecToInt { w: Width::W64, a: v });
    let high = t.vec_test(VecLen::V128, VecTestOp::ExtractI64, v, v, 1);
    (low, high)
}

/// PCMPISTRI and its kin: helpers compare, and expand the result to a mask.
fn compare_strings(t: &mut Translator<'_>, i: &Instruction, mask: bool) {
    let Some(form) = t.vector_form(i) else { return };
    let imm = imm8(i);
    let explicit = !matches!(
        i.mnemonic(),
        Mnemonic::Pcmpistri | Mnemonic::Pcmpistrm | Mnemonic::Vpcmpistri | Mnemonic::Vpcmpistrm
    );
    // Operands are the same in both encodings; neither asks for alignment.
    let b = match i.op1_kind() {
        OpKind::Memory => t.load_operand(i, false),
        _ => t.vector(i.op1_register(), form),
    };
    let a = t.vector(i.op0_register(), form);
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
        t.set_vector(Register::XMM0, form, v);
    } else {
        let index = t.b.push(Inst::Extract { a: r, pos: 16, len: 8 });
        t.set_gpr(reg::RCX, Width::W32, index);
    }
    t.set_packed_flags(packed);
}

/// Whether the lengths are in RAX and RDX rather than EAX and EDX.
fn is_wide(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Pcmpestri64 | Mnemonic::Pcmpestrm64 | Mnemonic::Vpcmpestri64 | Mnemonic::Vpcmpestrm64
    )
}
