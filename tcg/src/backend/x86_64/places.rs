//! Places of values as side tables know them: where a fault, a slow access or a helper finds the guest's state.

use super::emitter::{Emitter, MemLoc, NONE};
use crate::backend::{FlagRecipe, Loc, SlowAccess, StatePoint};
use crate::ir::{GlobalSet, Inst, Ty, Value};

impl Emitter<'_> {
    /// Where a value is, for side tables.
    pub fn loc(&mut self, v: usize) -> Loc {
        if let Some(c) = self.constant(v) {
            return Loc::Const(c);
        }
        match self.ty(v) {
            Ty::Flags if self.b.mem[v] == MemLoc::None => return self.flags_loc(v),
            Ty::Vec if self.b.reg[v] != NONE => return Loc::Vec(self.b.reg[v]),
            Ty::Int if self.b.reg[v] != NONE => return Loc::Int(self.b.reg[v]),
            _ => {}
        }
        match self.b.mem[v] {
            MemLoc::Env(g) if self.guest.globals[g as usize].bytes == 16 => {
                Loc::EnvLow(self.global_offset(g as usize))
            }
            MemLoc::Env(g) => Loc::Env(self.global_offset(g as usize)),
            MemLoc::Spill(slot) => Loc::Spill(slot),
            // The only vector that is nowhere is zero, and its location is a constant.
            MemLoc::None if self.rematerialisable(v) => Loc::Const(0),
            MemLoc::None => unreachable!("v{v} is live but nowhere"),
        }
    }

    /// A recipe for a flags value that is not in memory.
    fn flags_loc(&mut self, v: usize) -> Loc {
        let Inst::Flags { op, w, a, b, old } = self.block.insts[v] else {
            unreachable!("a flags value is computed or in the environment")
        };
        let from_result = self.b.live.uses_result(self.block, v);
        let a = if from_result { self.b.live.values[v].companion as usize } else { self.b.live.resolve(a) };
        let a = self.loc(a);
        let b = if op.reads_b() { self.resolved_loc(b) } else { a };
        let demand = self.b.live.values[v].flag_demand;
        let needed = op.old_bits(w, self.block.constant(self.flag_b(v)), demand);
        let old = match old {
            Some(old) if needed != 0 => {
                let old = self.b.live.flags_source(self.block, self.b.live.resolve(old), needed);
                Some(self.loc(old))
            }
            _ => None,
        };
        self.out.recipes.push(FlagRecipe { op, w, a, b, old, from_result });
        Loc::Flags(self.out.recipes.len() as u32 - 1)
    }

    /// The second operand of flags value `v`.
    pub fn flag_b(&self, v: usize) -> Value {
        match self.block.insts[v] {
            Inst::Flags { b, .. } => Value(self.b.live.resolve(b) as u32),
            _ => unreachable!("only flags instructions have flag operands"),
        }
    }

    /// Where an operand is, for side tables.
    pub fn resolved_loc(&mut self, v: Value) -> Loc {
        let v = self.b.live.resolve(v);
        self.loc(v)
    }

    /// Records the guest's state here; returns the point's number.
    pub fn point(&mut self, access: Option<SlowAccess>) -> u32 {
        let moved_start = self.out.moved.len() as u32;
        for g in GlobalSet(self.away()).iter() {
            let v = self.current[g.0 as usize];
            let loc = self.loc(v as usize);
            self.out.moved.push((g, loc));
        }
        let moved_len = (self.out.moved.len() as u32 - moved_start) as u16;
        self.out.points.push(StatePoint { pc: self.pc, access, moved_start, moved_len });
        self.out.points.len() as u32 - 1
    }
}
