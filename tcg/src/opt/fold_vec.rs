//! Folding of vector operations: the idioms by which programs zero registers, and moves between files.

use super::forward::Forward;
use crate::ir::{Inst, Value, VecLen, VecOp, Width};

impl Forward {
    pub(super) fn vec(&mut self, op: VecOp, len: VecLen, a: Value, b: Value, imm: u8) -> Value {
        let bits = if len == VecLen::V128 { 128 } else { 256 };
        let zero = |v: Value, s: &Forward| matches!(s.def(v), Inst::VecZero);
        match op {
            VecOp::Xor | VecOp::SubI8 | VecOp::SubI16 | VecOp::SubI32 | VecOp::SubI64 | VecOp::AndNot
                if a == b =>
            {
                return self.emit(Inst::VecZero);
            }
            VecOp::And | VecOp::Or if a == b && self.bits(a) <= bits => return a,
            VecOp::And if zero(a, self) || zero(b, self) => return self.emit(Inst::VecZero),
            VecOp::Or | VecOp::Xor if zero(a, self) && self.bits(b) <= bits => return b,
            VecOp::Or | VecOp::Xor if zero(b, self) && self.bits(a) <= bits => return a,
            VecOp::LowI64 if self.bits(a) <= 64 => return a,
            VecOp::LowI128 if self.bits(a) <= 128 => return a,
            _ => {}
        }
        self.emit(Inst::Vec { op, len, a, b, imm })
    }

    pub(super) fn vec_from_int(&mut self, w: Width, a: Value) -> Value {
        let a = self.low(a, w);
        match self.def(a) {
            Inst::Const(c) if c & w.mask() == 0 => self.emit(Inst::VecZero),
            // There and back; the vector must be what the integer was taken from, entirely.
            Inst::VecToInt { w: from, a: v } if from <= w && self.bits(v) <= from.bits() => v,
            _ => self.emit(Inst::VecFromInt { w, a }),
        }
    }

    pub(super) fn vec_to_int(&mut self, w: Width, a: Value) -> Value {
        match self.def(a) {
            Inst::VecZero => self.constant(0),
            Inst::VecFromInt { w: from, a: v } => self.zero_extend(w.min(from), v),
            _ => self.emit(Inst::VecToInt { w, a }),
        }
    }
}
