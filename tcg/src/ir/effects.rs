//! Which instructions depend on their operands alone.

use super::{Inst, Vec3Op, VecInsOp, VecOp, VecTestOp};

/// Whether a vector operation reads or changes the guest's floating-point control and status word: those on lanes of
/// binary32 and binary64 that do more than move them. In the text form such lanes are `f32`, `sf32`, `f64`, `sf64`.
const fn is_arithmetic_on_floats(text: &str) -> bool {
    let text = text.as_bytes();
    if starts_with(text, b"shuffle.")
        || starts_with(text, b"blend.")
        || starts_with(text, b"insert.")
        || starts_with(text, b"mask.")
    {
        return false;
    }
    let mut i = 0;
    while i + 3 <= text.len() {
        let bits = (text[i + 1], text[i + 2]);
        if text[i] == b'f' && (matches!(bits, (b'3', b'2')) || matches!(bits, (b'6', b'4'))) {
            return true;
        }
        i += 1;
    }
    false
}

const fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    let mut i = 0;
    while i < prefix.len() {
        if i >= text.len() || text[i] != prefix[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// A table by operation, made by the compiler.
macro_rules! float_table {
    ($name:ident, $op:ident) => {
        static $name: [bool; $op::ALL.len()] = {
            let mut table = [false; $op::ALL.len()];
            let mut i = 0;
            while i < table.len() {
                table[$op::ALL[i] as usize] = is_arithmetic_on_floats($op::ALL[i].text());
                i += 1;
            }
            table
        };
    };
}

float_table!(FLOAT_VEC, VecOp);
float_table!(FLOAT_VEC3, Vec3Op);
float_table!(FLOAT_VEC_INS, VecInsOp);
float_table!(FLOAT_VEC_TEST, VecTestOp);

impl Inst {
    /// Whether the result is a function of the operands and there is no effect beside it, so that it may be removed
    /// when nobody uses it and merged with an equal instruction. Floating-point operations accumulate sticky flags
    /// and round as the guest's control word says, so they are not pure. Calls are for the caller to judge, by the
    /// helper's [`Effects`](crate::guest::Effects); reads of globals and the environment are removable, but not
    /// pure.
    #[inline(always)]
    pub fn is_pure(&self) -> bool {
        use Inst::*;
        match self {
            Const(_)
            | VecZero
            | Bin { .. }
            | Un { .. }
            | Carry { .. }
            | Lea { .. }
            | Extend { .. }
            | Extract { .. }
            | Insert { .. }
            | ShiftPair { .. }
            | Flags { .. }
            | Pack(_)
            | SetCond { .. }
            | Select { .. }
            | VecFromInt { .. }
            | VecToInt { .. } => true,
            Vec { op, .. } => !FLOAT_VEC[*op as usize],
            Vec3 { op, .. } => !FLOAT_VEC3[*op as usize],
            VecIns { op, .. } => !FLOAT_VEC_INS[*op as usize],
            VecTest { op, .. } => !FLOAT_VEC_TEST[*op as usize],
            Nop
            | InsnStart { .. }
            | Get(_)
            | Set(..)
            | ZeroUpper(_)
            | EnvLoad { .. }
            | EnvStore { .. }
            | Load { .. }
            | Store { .. }
            | LoadVec { .. }
            | StoreVec { .. }
            | LoadMasked { .. }
            | StoreMasked { .. }
            | AtomicRmw { .. }
            | AtomicCas { .. }
            | Call { .. }
            | ExitIf { .. }
            | Goto(_)
            | Branch { .. }
            | GotoIndirect
            | Leave { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_on_floats_is_not_pure() {
        for (op, float) in [
            (VecOp::AddI32, false),
            (VecOp::AddF32, true),
            (VecOp::AddScalarF64, true),
            (VecOp::CvtI32F64, true),
            (VecOp::ShuffleF32, false),
            (VecOp::BlendF64, false),
            (VecOp::AesEnc, false),
            (VecOp::CvtF16F32, true),
        ] {
            assert_eq!(FLOAT_VEC[op as usize], float, "{}", op.text());
        }
        assert!(FLOAT_VEC3[Vec3Op::MulAddScalarCF64 as usize] && !FLOAT_VEC3[Vec3Op::SelectI8 as usize]);
        assert!(FLOAT_VEC_TEST[VecTestOp::CompareQuietF32 as usize]);
        assert!(!FLOAT_VEC_TEST[VecTestOp::MaskF64 as usize]);
        assert!(FLOAT_VEC_INS[VecInsOp::CvtI64F32 as usize] && !FLOAT_VEC_INS[VecInsOp::InsertI8 as usize]);
    }
}
