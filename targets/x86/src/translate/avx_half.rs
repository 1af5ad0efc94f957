//! F16C: conversions between half and single precision.

use iced_x86::{Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{Inst, VecLen, VecOp, VecSize};

use super::sse::{imm8, simple_float};
use super::{Row, Translator};

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Vcvtph2ps, |t, i| simple_float(t, i, VecOp::CvtF16F32)),
    Row::All(Mnemonic::Vcvtps2ph, to_half),
];

/// VCVTPS2PH: half as many bytes as the source has, to a register or memory. The immediate rounds, and MXCSR.FZ does not
/// flush.
fn to_half(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    let a = t.ymm(i.op1_register());
    let imm = imm8(i) & 7;
    let convert = |t: &mut Translator<'_>| {
        t.floating(|t| t.b.push(Inst::Vec { op: VecOp::CvtF32F16, len: form.len, a, b: a, imm }))
    };
    if i.op0_kind() == OpKind::Register {
        let r = convert(t);
        return t.set_result(i, form, r);
    }
    let size = if form.len == VecLen::V256 { VecSize::B16 } else { VecSize::B8 };
    // Silicon converts before it looks at the address: sticky flags are left also if that raises an exception.
    let r = convert(t);
    let addr = t.vec_address(i, size, true);
    let mem = t.mem();
    t.b.store_vec(size, addr, r, mem);
}
