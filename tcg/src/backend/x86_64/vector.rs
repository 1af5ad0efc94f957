//! Emission of vector instructions: nearly every operation is one VEX instruction, from the table in [`super::vec`].

use super::emitter::{Emitter, NONE};
use super::encode::r;
use super::vec::three::{emit_vec3, overwritten};
use super::vec::{emit_vec, emit_vec_from_int, emit_vec_ins, emit_vec_test, emit_vec_to_int};
use crate::ir::{Value, Vec3Op, VecInsOp, VecLen, VecOp, VecTestOp, Width};

impl Emitter<'_> {
    /// [`Inst::Vec`](crate::ir::Inst::Vec).
    pub fn vec(&mut self, op: VecOp, len: VecLen, a: Value, b: Value, imm: u8) {
        let ra = self.use_vec(a);
        let rb = if op.operands() > 1 { self.use_vec(b) } else { ra };
        let dst = self.define_vec(ra, 0);
        self.upper |= len == VecLen::V256;
        emit_vec(&mut self.asm().buf, op, len, dst, ra, rb, imm);
    }

    /// [`Inst::Vec3`](crate::ir::Inst::Vec3).
    pub fn vec3(&mut self, op: Vec3Op, len: VecLen, a: Value, b: Value, c: Value) {
        let (ra, rb, rc) = (self.use_vec(a), self.use_vec(b), self.use_vec(c));
        let (prefer, avoid) = overwritten(op, ra, rb, rc);
        let dst = self.define_vec(prefer, avoid);
        self.upper |= len == VecLen::V256;
        let live = if self.upper { VecLen::V256 } else { VecLen::V128 };
        emit_vec3(&mut self.asm().buf, op, (len, live), dst, ra, rb, rc);
    }

    /// [`Inst::VecIns`](crate::ir::Inst::VecIns).
    pub fn vec_ins(&mut self, op: VecInsOp, a: Value, b: Value, imm: u8) {
        let ra = self.use_vec(a);
        let rb = self.use_int(b);
        let dst = self.define_vec(ra, 0);
        emit_vec_ins(&mut self.asm().buf, op, dst, ra, rb, imm);
    }

    /// [`Inst::VecTest`](crate::ir::Inst::VecTest).
    pub fn vec_test(&mut self, op: VecTestOp, len: VecLen, a: Value, b: Value, imm: u8) {
        let ra = self.use_vec(a);
        let rb = if op.operands() > 1 { self.use_vec(b) } else { ra };
        emit_vec_test(&mut self.asm().buf, op, len, r::RAX, ra, rb, imm);
        self.clobber_flags();
        let dst = self.define(NONE, 0);
        self.asm().mov_rr(dst, r::RAX);
    }

    /// [`Inst::VecFromInt`](crate::ir::Inst::VecFromInt).
    pub fn vec_from_int(&mut self, w: Width, a: Value) {
        let ra = self.use_int(a);
        let dst = self.define_vec(NONE, 0);
        emit_vec_from_int(&mut self.asm().buf, w == Width::W64, dst, ra);
    }

    /// [`Inst::VecToInt`](crate::ir::Inst::VecToInt).
    pub fn vec_to_int(&mut self, w: Width, a: Value) {
        let ra = self.use_vec(a);
        let dst = self.define(NONE, 0);
        emit_vec_to_int(&mut self.asm().buf, w == Width::W64, dst, ra);
    }
}
