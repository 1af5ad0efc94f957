//! SSE moves, shuffles and blends.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{Inst, Vec3Op, VecOp, VecSize, VecTestOp, Width};

use super::sse::{imm8, simple, vec_rows};
use super::{Row, Translator};

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vec_rows! {
    simple:
        Andps And, Andpd And, Andnps AndNot, Andnpd AndNot, Orps Or, Orpd Or, Xorps Xor, Xorpd Xor,
        Unpcklps UnpackLoI32, Unpckhps UnpackHiI32, Unpcklpd UnpackLoI64, Unpckhpd UnpackHiI64,
        Shufps ShuffleF32, Shufpd ShuffleF64, Blendps BlendF32, Blendpd BlendF64,
        Movddup DupEvenI64, Movsldup DupEvenI32, Movshdup DupOddI32,
        Movlhps UnpackLoI64, Movhlps MoveHighLow;
};

/// Rows of this family that are more.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Movaps, move_aligned),
    Row::All(Mnemonic::Movapd, move_aligned),
    Row::All(Mnemonic::Movdqa, move_aligned),
    Row::All(Mnemonic::Movntps, move_aligned),
    Row::All(Mnemonic::Movntpd, move_aligned),
    Row::All(Mnemonic::Movntdq, move_aligned),
    Row::All(Mnemonic::Movntdqa, move_aligned),
    Row::All(Mnemonic::Movups, move_unaligned),
    Row::All(Mnemonic::Movupd, move_unaligned),
    Row::All(Mnemonic::Movdqu, move_unaligned),
    Row::All(Mnemonic::Lddqu, move_unaligned),
    Row::All(Mnemonic::Movss, |t, i| move_scalar(t, i, VecSize::B4, VecOp::MoveI32)),
    // The mnemonic is also a string instruction's.
    Row::One(Code::Movsd_xmm_xmmm64, |t, i| move_scalar(t, i, VecSize::B8, VecOp::MoveI64)),
    Row::One(Code::Movsd_xmmm64_xmm, |t, i| move_scalar(t, i, VecSize::B8, VecOp::MoveI64)),
    Row::All(Mnemonic::Movlps, move_low),
    Row::All(Mnemonic::Movlpd, move_low),
    Row::All(Mnemonic::Movhps, move_high),
    Row::All(Mnemonic::Movhpd, move_high),
    Row::One(Code::Movd_xmm_rm32, |t, i| from_general(t, i, Width::W32)),
    Row::One(Code::Movq_xmm_rm64, |t, i| from_general(t, i, Width::W64)),
    Row::One(Code::Movd_rm32_xmm, |t, i| to_general(t, i, Width::W32)),
    Row::One(Code::Movq_rm64_xmm, |t, i| to_general(t, i, Width::W64)),
    Row::One(Code::Movq_xmm_xmmm64, movq_load),
    Row::One(Code::Movq_xmmm64_xmm, movq_store),
    Row::All(Mnemonic::Movmskps, |t, i| mask(t, i, VecTestOp::MaskF32)),
    Row::All(Mnemonic::Movmskpd, |t, i| mask(t, i, VecTestOp::MaskF64)),
    Row::All(Mnemonic::Insertps, insertps),
    Row::All(Mnemonic::Extractps, extractps),
    Row::All(Mnemonic::Blendvps, |t, i| blend_variable(t, i, Vec3Op::SelectI32)),
    Row::All(Mnemonic::Blendvpd, |t, i| blend_variable(t, i, Vec3Op::SelectI64)),
    Row::All(Mnemonic::Pblendvb, |t, i| blend_variable(t, i, Vec3Op::SelectI8)),
];

fn move_16(t: &mut Translator<'_>, i: &Instruction, aligned: bool) {
    if !t.sse_available() {
        return;
    }
    if i.op0_kind() == OpKind::Memory {
        let v = t.xmm(i.op1_register());
        t.store_vec(i, VecSize::B16, v, aligned);
    } else {
        let v = t.read_vec_aligned(i, 1, aligned);
        t.set_xmm(i.op0_register(), v);
    }
}

fn move_aligned(t: &mut Translator<'_>, i: &Instruction) {
    move_16(t, i, true);
}

fn move_unaligned(t: &mut Translator<'_>, i: &Instruction) {
    move_16(t, i, false);
}

/// MOVSS and MOVSD: a load clears the rest of the register, a move between registers keeps it.
fn move_scalar(t: &mut Translator<'_>, i: &Instruction, size: VecSize, merge: VecOp) {
    if !t.sse_available() {
        return;
    }
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Memory, _) => {
            let v = t.xmm(i.op1_register());
            t.store_vec(i, size, v, false);
        }
        (_, OpKind::Memory) => {
            let v = t.load_vec(i, size, false);
            t.set_xmm(i.op0_register(), v);
        }
        _ => {
            let (a, b) = (t.xmm(i.op0_register()), t.xmm(i.op1_register()));
            let r = t.vec(merge, a, b, 0);
            t.set_xmm(i.op0_register(), r);
        }
    }
}

/// MOVLPS and MOVLPD: the low 64 bits and memory.
fn move_low(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    if i.op0_kind() == OpKind::Memory {
        let v = t.xmm(i.op1_register());
        t.store_vec(i, VecSize::B8, v, false);
    } else {
        let b = t.load_vec(i, VecSize::B8, false);
        let a = t.xmm(i.op0_register());
        let r = t.vec(VecOp::MoveI64, a, b, 0);
        t.set_xmm(i.op0_register(), r);
    }
}

/// MOVHPS and MOVHPD: the high 64 bits and memory.
fn move_high(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    if i.op0_kind() == OpKind::Memory {
        let v = t.xmm(i.op1_register());
        let high = t.vec(VecOp::UnpackHiI64, v, v, 0);
        t.store_vec(i, VecSize::B8, high, false);
    } else {
        let b = t.load_vec(i, VecSize::B8, false);
        let a = t.xmm(i.op0_register());
        let r = t.vec(VecOp::UnpackLoI64, a, b, 0);
        t.set_xmm(i.op0_register(), r);
    }
}

fn from_general(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if !t.sse_available() {
        return;
    }
    let v = if i.op1_kind() == OpKind::Memory {
        t.load_vec(i, if w == Width::W64 { VecSize::B8 } else { VecSize::B4 }, false)
    } else {
        let a = t.read(i, 1);
        t.b.push(Inst::VecFromInt { w, a })
    };
    t.set_xmm(i.op0_register(), v);
}

fn to_general(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if !t.sse_available() {
        return;
    }
    let v = t.xmm(i.op1_register());
    if i.op0_kind() == OpKind::Memory {
        t.store_vec(i, if w == Width::W64 { VecSize::B8 } else { VecSize::B4 }, v, false);
    } else {
        let r = t.b.push(Inst::VecToInt { w, a: v });
        t.set_reg(i.op0_register(), r);
    }
}

fn movq_load(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let v = if i.op1_kind() == OpKind::Memory {
        t.load_vec(i, VecSize::B8, false)
    } else {
        let v = t.xmm(i.op1_register());
        t.vec1(VecOp::LowI64, v, 0)
    };
    t.set_xmm(i.op0_register(), v);
}

fn movq_store(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let v = t.xmm(i.op1_register());
    if i.op0_kind() == OpKind::Memory {
        t.store_vec(i, VecSize::B8, v, false);
    } else {
        let r = t.vec1(VecOp::LowI64, v, 0);
        t.set_xmm(i.op0_register(), r);
    }
}

fn mask(t: &mut Translator<'_>, i: &Instruction, op: VecTestOp) {
    if !t.sse_available() {
        return;
    }
    let v = t.xmm(i.op1_register());
    let r = t.vec_test(op, v, v, 0);
    t.set_reg(i.op0_register(), r);
}

/// A memory source is lane 0 whatever the immediate's source field says.
fn insertps(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let b = t.read_vec(i, 1);
    let a = t.xmm(i.op0_register());
    let imm = if i.op1_kind() == OpKind::Memory { imm8(i) & 0x3f } else { imm8(i) };
    let r = t.vec(VecOp::InsertF32, a, b, imm);
    t.set_xmm(i.op0_register(), r);
}

fn extractps(t: &mut Translator<'_>, i: &Instruction) {
    if !t.sse_available() {
        return;
    }
    let v = t.xmm(i.op1_register());
    let r = t.vec_test(VecTestOp::ExtractI32, v, v, imm8(i));
    t.write(i, 0, r);
}

/// The mask is XMM0.
fn blend_variable(t: &mut Translator<'_>, i: &Instruction, op: Vec3Op) {
    if !t.sse_available() {
        return;
    }
    let b = t.read_vec(i, 1);
    let a = t.xmm(i.op0_register());
    let c = t.xmm(Register::XMM0);
    let r = t.vec3(op, a, b, c);
    t.set_xmm(i.op0_register(), r);
}
