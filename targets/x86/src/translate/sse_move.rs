//! SSE moves, shuffles and blends.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{Inst, Vec3Op, VecLen, VecOp, VecSize, VecTestOp, Width};

use super::sse::{both_rows, imm8, simple, vec_rows};
use super::{Row, Translator};

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vec_rows! {
    simple:
        Andps Vandps And, Andpd Vandpd And, Andnps Vandnps AndNot, Andnpd Vandnpd AndNot, Orps Vorps Or,
        Orpd Vorpd Or, Xorps Vxorps Xor, Xorpd Vxorpd Xor, Unpcklps Vunpcklps UnpackLoI32,
        Unpckhps Vunpckhps UnpackHiI32, Unpcklpd Vunpcklpd UnpackLoI64, Unpckhpd Vunpckhpd UnpackHiI64,
        Shufps Vshufps ShuffleF32, Shufpd Vshufpd ShuffleF64, Blendps Vblendps BlendF32,
        Blendpd Vblendpd BlendF64, Movddup Vmovddup DupEvenI64, Movsldup Vmovsldup DupEvenI32,
        Movshdup Vmovshdup DupOddI32, Movlhps Vmovlhps UnpackLoI64, Movhlps Vmovhlps MoveHighLow;
};

/// Rows of this family that are more, in both encodings.
pub(super) const ROWS: &[Row] = both_rows! {
    Movaps Vmovaps => |t, i| move_whole(t, i, true),
    Movapd Vmovapd => |t, i| move_whole(t, i, true),
    Movdqa Vmovdqa => |t, i| move_whole(t, i, true),
    Movntps Vmovntps => |t, i| move_whole(t, i, true),
    Movntpd Vmovntpd => |t, i| move_whole(t, i, true),
    Movntdq Vmovntdq => |t, i| move_whole(t, i, true),
    Movntdqa Vmovntdqa => |t, i| move_whole(t, i, true),
    Movups Vmovups => |t, i| move_whole(t, i, false),
    Movupd Vmovupd => |t, i| move_whole(t, i, false),
    Movdqu Vmovdqu => |t, i| move_whole(t, i, false),
    Lddqu Vlddqu => |t, i| move_whole(t, i, false),
    Movss Vmovss => |t, i| move_scalar(t, i, VecSize::B4, VecOp::MoveI32),
    Movlps Vmovlps => move_low,
    Movlpd Vmovlpd => move_low,
    Movhps Vmovhps => move_high,
    Movhpd Vmovhpd => move_high,
    Movmskps Vmovmskps => |t, i| mask(t, i, VecTestOp::MaskF32),
    Movmskpd Vmovmskpd => |t, i| mask(t, i, VecTestOp::MaskF64),
    Insertps Vinsertps => insertps,
    Extractps Vextractps => extractps,
    Blendvps Vblendvps => |t, i| blend_variable(t, i, Vec3Op::SelectI32),
    Blendvpd Vblendvpd => |t, i| blend_variable(t, i, Vec3Op::SelectI64),
    Pblendvb Vpblendvb => |t, i| blend_variable(t, i, Vec3Op::SelectI8),
};

/// Rows of encodings whose mnemonics others share: string instructions, MMX, general registers.
pub(super) const CODE_ROWS: &[Row] = &[
    Row::One(Code::Movsd_xmm_xmmm64, move_double),
    Row::One(Code::Movsd_xmmm64_xmm, move_double),
    Row::All(Mnemonic::Vmovsd, move_double),
    Row::One(Code::Movd_xmm_rm32, |t, i| from_general(t, i, Width::W32)),
    Row::One(Code::Movq_xmm_rm64, |t, i| from_general(t, i, Width::W64)),
    Row::One(Code::VEX_Vmovd_xmm_rm32, |t, i| from_general(t, i, Width::W32)),
    Row::One(Code::VEX_Vmovq_xmm_rm64, |t, i| from_general(t, i, Width::W64)),
    Row::One(Code::Movd_rm32_xmm, |t, i| to_general(t, i, Width::W32)),
    Row::One(Code::Movq_rm64_xmm, |t, i| to_general(t, i, Width::W64)),
    Row::One(Code::VEX_Vmovd_rm32_xmm, |t, i| to_general(t, i, Width::W32)),
    Row::One(Code::VEX_Vmovq_rm64_xmm, |t, i| to_general(t, i, Width::W64)),
    Row::One(Code::Movq_xmm_xmmm64, move_quad),
    Row::One(Code::Movq_xmmm64_xmm, move_quad),
    Row::One(Code::VEX_Vmovq_xmm_xmmm64, move_quad),
    Row::One(Code::VEX_Vmovq_xmmm64_xmm, move_quad),
];

/// Moves of a whole register; an aligned one wants that of its memory operand in both encodings.
fn move_whole(t: &mut Translator<'_>, i: &Instruction, aligned: bool) {
    let Some(form) = t.vector_form(i) else { return };
    if i.op0_kind() == OpKind::Memory {
        let v = t.vector(i.op1_register(), form);
        return t.store_vec(i, form.size(), v, aligned);
    }
    let v = match i.op1_kind() {
        OpKind::Memory => t.load_vec(i, form.size(), aligned),
        _ => {
            let v = t.vector(i.op1_register(), form);
            // A VEX move of 128 bits zeroes the rest.
            if form.vex && form.len == VecLen::V128 { t.vec1(VecOp::LowI128, v, 0) } else { v }
        }
    };
    t.set_result(i, form, v);
}

/// MOVSS and MOVSD: a load clears the rest of the register, a move between registers takes it from the first source.
fn move_scalar(t: &mut Translator<'_>, i: &Instruction, size: VecSize, merge: VecOp) {
    let Some(form) = t.vector_form(i) else { return };
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Memory, _) => {
            let v = t.vector(i.op1_register(), form);
            t.store_vec(i, size, v, false);
        }
        (_, OpKind::Memory) => {
            let v = t.load_vec(i, size, false);
            t.set_result(i, form, v);
        }
        _ => {
            let (a, b) = (t.first(i, form), t.second(i, form));
            let r = t.vec(merge, a, b, 0);
            t.set_result(i, form, r);
        }
    }
}

fn move_double(t: &mut Translator<'_>, i: &Instruction) {
    move_scalar(t, i, VecSize::B8, VecOp::MoveI64);
}

/// MOVLPS and MOVLPD: the low 64 bits and memory.
fn move_low(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    if i.op0_kind() == OpKind::Memory {
        let v = t.vector(i.op1_register(), form);
        t.store_vec(i, VecSize::B8, v, false);
    } else {
        let b = t.load_vec(i, VecSize::B8, false);
        let a = t.first(i, form);
        let r = t.vec(VecOp::MoveI64, a, b, 0);
        t.set_result(i, form, r);
    }
}

/// MOVHPS and MOVHPD: the high 64 bits and memory.
fn move_high(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    if i.op0_kind() == OpKind::Memory {
        let v = t.vector(i.op1_register(), form);
        let high = t.vec(VecOp::UnpackHiI64, v, v, 0);
        t.store_vec(i, VecSize::B8, high, false);
    } else {
        let b = t.load_vec(i, VecSize::B8, false);
        let a = t.first(i, form);
        let r = t.vec(VecOp::UnpackLoI64, a, b, 0);
        t.set_result(i, form, r);
    }
}

fn from_general(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let Some(form) = t.vector_form(i) else { return };
    let v = if i.op1_kind() == OpKind::Memory {
        t.load_vec(i, if w == Width::W64 { VecSize::B8 } else { VecSize::B4 }, false)
    } else {
        let a = t.read(i, 1);
        t.b.push(Inst::VecFromInt { w, a })
    };
    t.set_result(i, form, v);
}

fn to_general(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let Some(form) = t.vector_form(i) else { return };
    let v = t.vector(i.op1_register(), form);
    if i.op0_kind() == OpKind::Memory {
        t.store_vec(i, if w == Width::W64 { VecSize::B8 } else { VecSize::B4 }, v, false);
    } else {
        let r = t.b.push(Inst::VecToInt { w, a: v });
        t.set_reg(i.op0_register(), r);
    }
}

/// MOVQ between vector registers and memory: 64 bits, zero above.
fn move_quad(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    if i.op0_kind() == OpKind::Memory {
        let v = t.vector(i.op1_register(), form);
        return t.store_vec(i, VecSize::B8, v, false);
    }
    let v = if i.op1_kind() == OpKind::Memory {
        t.load_vec(i, VecSize::B8, false)
    } else {
        let v = t.vector(i.op1_register(), form);
        t.vec1(VecOp::LowI64, v, 0)
    };
    t.set_result(i, form, v);
}

pub(super) fn mask(t: &mut Translator<'_>, i: &Instruction, op: VecTestOp) {
    let Some(form) = t.vector_form(i) else { return };
    let v = t.vector(i.op1_register(), form);
    let r = t.vec_test(form.len, op, v, v, 0);
    t.set_reg(i.op0_register(), r);
}

/// A memory source is lane 0 whatever the immediate's source field says.
fn insertps(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    let b = t.second(i, form);
    let a = t.first(i, form);
    let memory = i.op_kind(1 + form.vex as u32) == OpKind::Memory;
    let imm = if memory { imm8(i) & 0x3f } else { imm8(i) };
    let r = t.vec(VecOp::InsertF32, a, b, imm);
    t.set_result(i, form, r);
}

fn extractps(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    let v = t.vector(i.op1_register(), form);
    let r = t.vec_test(VecLen::V128, VecTestOp::ExtractI32, v, v, imm8(i));
    t.write(i, 0, r);
}

/// The mask is XMM0, or the fourth operand in the VEX form.
fn blend_variable(t: &mut Translator<'_>, i: &Instruction, op: Vec3Op) {
    let Some(form) = t.vector_form(i) else { return };
    let b = t.second(i, form);
    let a = t.first(i, form);
    let c = if form.vex { t.ymm(i.op3_register()) } else { t.xmm(Register::XMM0) };
    let r = t.b.push(Inst::Vec3 { op, len: form.len, a, b, c });
    t.set_result(i, form, r);
}
