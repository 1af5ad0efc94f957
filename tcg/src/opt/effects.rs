//! Which instructions depend on their operands alone.

use crate::ir::{Inst, VecInsOp, VecOp, VecTestOp};

/// Whether operations on vectors read or change the guest's floating-point control and status word: those on lanes of
/// binary32 and binary64 that are not mere moves. They accumulate sticky flags, so they are neither removed nor merged.
pub(super) struct FloatOps {
    vec: Vec<bool>,
    ins: Vec<bool>,
    test: Vec<bool>,
}

/// In the text form, lanes of binary32 and binary64 are `f32`, `sf32`, `f64`, `sf64`.
fn names_float_lanes(text: &str) -> bool {
    text.split('.').any(|part| part.ends_with("f32") || part.ends_with("f64"))
}

impl FloatOps {
    pub(super) fn new() -> FloatOps {
        FloatOps {
            vec: VecOp::ALL.iter().map(|op| names_float_lanes(op.text())).collect(),
            ins: VecInsOp::ALL.iter().map(|op| names_float_lanes(op.text())).collect(),
            test: VecTestOp::ALL.iter().map(|op| names_float_lanes(op.text())).collect(),
        }
    }

    /// Whether the instruction's result is a function of its operands and it has no effect. Calls are for the caller
    /// to judge, by the helper's effects.
    #[inline(always)]
    pub(super) fn is_pure(&self, inst: &Inst) -> bool {
        use Inst::*;
        match inst {
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
            | Vec3 { .. }
            | VecFromInt { .. }
            | VecToInt { .. } => true,
            Vec { op, .. } => !self.vec[*op as usize],
            VecIns { op, .. } => !self.ins[*op as usize],
            VecTest { op, .. } => !self.test[*op as usize],
            Nop
            | InsnStart { .. }
            | Get(_)
            | Set(..)
            | EnvLoad { .. }
            | EnvStore { .. }
            | Load { .. }
            | Store { .. }
            | LoadVec { .. }
            | StoreVec { .. }
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
