//! Folding of flags and of what depends on them.
//!
//! Constant flags have one form: [`FlagOp::Unpack`] of a constant. Beside those, some operations leave some flags in a
//! known state whatever their operands are (a logical operation clears C and V), which decides conditions. Front ends
//! patch packed flags bit by bit; a condition looks through that for the bits that it needs. It looks through operations, too,
//! that take these bits over from older flags, and so do operations that want no more of their old flags than such bits: a row of
//! increments is no chain.

use super::forward::Forward;
use crate::interp::int;
use crate::ir::{BinOp, Cond, ExitId, FlagOp, Inst, UnOp, Value, Width, flags};

impl Forward {
    /// The packed bits of flags that are constant.
    fn const_flags(&self, f: Value) -> Option<u32> {
        match self.def(f) {
            Inst::Flags { op: FlagOp::Unpack, a, .. } => self.as_const(a).map(|c| c as u32 & flags::ALL),
            _ => None,
        }
    }

    /// Flags in the form of constants.
    fn constant_flags(&mut self, packed: u32) -> Value {
        let a = self.constant((packed & flags::ALL) as u64);
        self.emit(Inst::Flags { op: FlagOp::Unpack, w: Width::W64, a, b: a, old: None })
    }

    /// The older flags that `bits` of these are those of, or these.
    pub(super) fn flags_source(&self, mut f: Value, bits: u32) -> Value {
        while let Inst::Flags { op, w, b, old: Some(old), .. } = self.def(f)
            && bits & !op.passes(w, self.as_const(b)) == 0
        {
            f = old;
        }
        f
    }

    /// What an operation may take for its old flags, which are `old`, if it is the same to it: flags that were made earlier, or
    /// constants.
    pub(super) fn simplest_old(&mut self, op: FlagOp, w: Width, b: Value, old: Value) -> Value {
        let bits = op.old_bits(w, self.as_const(b), flags::ALL);
        let source = self.flags_source(old, bits);
        let (known, state) = self.known_flags(source);
        if bits & !known == 0 { self.constant_flags(state & bits) } else { source }
    }

    pub(super) fn flags(&mut self, op: FlagOp, w: Width, a: Value, b: Value, old: Option<Value>) -> Value {
        use FlagOp::*;
        if op == Unpack {
            return self.unpack(a);
        }
        let mut a = self.low(a, w);
        let is_shift = matches!(op, Shl | Shr | Sar | Rol | Ror);
        let mut b = match op {
            _ if is_shift => self.low(b, Width::W8),
            _ if op.reads_b() => self.low(b, w),
            _ => a,
        };
        if let Some(old) = old
            && is_shift
            && let Some(c) = self.as_const(b)
        {
            if int::shift_count(w, c) == 0 {
                return old;
            }
            if matches!(op, Shl | Shr | Sar)
                && let Some(x) = self.as_const(a)
            {
                return self.constant_flags(flags::compute(op, w, x, c, 0));
            }
        }
        if matches!(op, Add | And | UMul | SMul) && self.as_const(a).is_some() && self.as_const(b).is_none() {
            std::mem::swap(&mut a, &mut b);
        }
        // Decided by the operands alone.
        match op {
            Sub if a == b => return self.constant_flags(flags::compute(op, w, 0, 0, 0)),
            And if self.as_const(b).is_some_and(|c| c & w.mask() == 0) => {
                return self.constant_flags(flags::compute(op, w, 0, 0, 0));
            }
            // Adding or subtracting nothing is testing.
            Sub | Add if self.as_const(b).is_some_and(|c| c & w.mask() == 0) => {
                return self.flags(And, w, a, a, None);
            }
            And if a != b && self.as_const(b).is_some_and(|c| c & w.mask() == w.mask()) => {
                return self.flags(And, w, a, a, None);
            }
            _ => {}
        }
        if let (Some(x), Some(y)) = (self.as_const(a), self.as_const(b)) {
            let known_old = match old {
                Some(old) => self.const_flags(old),
                None => Some(0),
            };
            if let Some(old) = known_old {
                return self.constant_flags(flags::compute(op, w, x, y, old));
            }
        }
        // With a constant count, which is not zero here, a shift leaves nothing of the old flags: they may die.
        let old = old.map(|old| self.simplest_old(op, w, b, old));
        match (op, old.and_then(|old| self.known_carry(old))) {
            (Adc, Some(false)) => return self.flags(Add, w, a, b, None),
            (Sbb, Some(false)) => return self.flags(Sub, w, a, b, None),
            _ => {}
        }
        self.emit(Inst::Flags { op, w, a, b, old })
    }

    fn unpack(&mut self, a: Value) -> Value {
        let a = self.low(a, Width::W16);
        match self.def(a) {
            Inst::Pack(f) => f,
            // The mask that readers of packed flags apply.
            Inst::Bin { op: BinOp::And, w, a: x, b }
                if w >= Width::W16
                    && self.as_const(b).is_some_and(|c| c as u32 & flags::ALL == flags::ALL) =>
            {
                self.unpack(x)
            }
            Inst::Const(c) => self.constant_flags(c as u32),
            _ => self.emit(Inst::Flags { op: FlagOp::Unpack, w: Width::W64, a, b: a, old: None }),
        }
    }

    pub(super) fn pack(&mut self, f: Value) -> Value {
        match self.const_flags(f) {
            Some(packed) => self.constant(packed as u64),
            None => self.emit(Inst::Pack(f)),
        }
    }

    /// Flags that are the same whatever the operands: a mask of those known, and their state.
    fn known_flags(&self, f: Value) -> (u32, u32) {
        use flags::{A, ALL, C, V, Z};
        let Inst::Flags { op, a, b, .. } = self.def(f) else { return (0, 0) };
        match op {
            FlagOp::And => (C | V | A, 0),
            FlagOp::UMul | FlagOp::SMul => (Z | A, 0),
            FlagOp::Shl | FlagOp::Shr if self.as_const(b).is_some() => (A, 0),
            FlagOp::Sar if self.as_const(b).is_some() => (A | V, 0),
            FlagOp::Unpack => self.as_const(a).map_or((0, 0), |c| (ALL, c as u32 & ALL)),
            _ => (0, 0),
        }
    }

    /// C, where known.
    pub(super) fn known_carry(&self, f: Value) -> Option<bool> {
        let (known, state) = self.known_flags(f);
        (known & flags::C != 0).then_some(state & flags::C != 0)
    }

    /// Whether a condition holds, where known.
    fn decide(&self, cond: Cond, f: Value) -> Option<bool> {
        let (known, state) = self.known_flags(f);
        let needed = needed_flags(cond);
        (known & needed == needed).then(|| flags::holds(cond, state))
    }

    /// If the flags are unpacked from a word that was made of others by changing bits: the condition on the others, or on the
    /// new bit if that is all it needs.
    fn look_through_packed(&mut self, cond: Cond, f: Value) -> Option<(Cond, Value)> {
        let Inst::Flags { op: FlagOp::Unpack, a: mut packed, .. } = self.def(f) else { return None };
        let needed = needed_flags(cond);
        loop {
            match self.def(packed) {
                Inst::Pack(f) => return Some((cond, f)),
                Inst::Insert { a, b, pos, len } => {
                    let field = (u64::MAX >> (64 - len)) << pos;
                    if field & needed as u64 == 0 {
                        packed = a;
                    } else if field == needed as u64 {
                        let one = self.constant(1);
                        let f = self.flags(FlagOp::And, Width::W8, b, one, None);
                        return Some((if cond as u8 & 1 == 0 { Cond::NE } else { Cond::E }, f));
                    } else {
                        return None;
                    }
                }
                Inst::Bin { op: BinOp::And, w, a, b } if w >= Width::W16 => {
                    if self.as_const(b)? as u32 & needed != needed {
                        return None;
                    }
                    packed = a;
                }
                _ => return None,
            }
        }
    }

    /// The condition in simpler terms: `x != 0` where `x` is itself 1 or 0 by a condition is that condition.
    fn simplify_cond(&mut self, mut cond: Cond, mut f: Value) -> (Cond, Value) {
        loop {
            f = self.flags_source(f, needed_flags(cond));
            if let Some(simpler) = self.look_through_packed(cond, f) {
                (cond, f) = simpler;
                continue;
            }
            let Inst::Flags { op: FlagOp::And, a, b, .. } = self.def(f) else { return (cond, f) };
            if a != b && self.as_const(b) != Some(1) || !matches!(cond, Cond::E | Cond::NE) {
                return (cond, f);
            }
            let Inst::SetCond { cond: inner, f: inner_f } = self.def(a) else { return (cond, f) };
            cond = if cond == Cond::NE { inner } else { inner.negate() };
            f = inner_f;
        }
    }

    pub(super) fn set_cond(&mut self, cond: Cond, f: Value) -> Value {
        let (cond, f) = self.simplify_cond(cond, f);
        match self.decide(cond, f) {
            Some(holds) => self.constant(holds as u64),
            None => self.emit(Inst::SetCond { cond, f }),
        }
    }

    pub(super) fn select(&mut self, w: Width, cond: Cond, f: Value, a: Value, b: Value) -> Value {
        let (cond, f) = self.simplify_cond(cond, f);
        let (a, b) = (self.low(a, w), self.low(b, w));
        if a == b {
            return self.zero_extend(w, a);
        }
        let constant = |v: Value| self.as_const(v).map(|c| c & w.mask());
        match (self.decide(cond, f), constant(a), constant(b)) {
            (Some(true), _, _) => self.zero_extend(w, a),
            (Some(false), _, _) => self.zero_extend(w, b),
            (_, Some(1), Some(0)) => self.emit(Inst::SetCond { cond, f }),
            (_, Some(0), Some(1)) => self.emit(Inst::SetCond { cond: cond.negate(), f }),
            (_, Some(ones), Some(0)) if ones == w.mask() => {
                let one = self.emit(Inst::SetCond { cond, f });
                self.un(UnOp::Neg, w, one)
            }
            _ => self.emit(Inst::Select { w, cond, f, a, b }),
        }
    }

    pub(super) fn exit_if(&mut self, cond: Cond, f: Value, exit: ExitId) -> Value {
        let (cond, f) = self.simplify_cond(cond, f);
        match self.decide(cond, f) {
            Some(true) => self.end(Inst::Goto(exit)),
            // Nothing: a value that no one can name.
            Some(false) => Value(u32::MAX),
            None => self.emit(Inst::ExitIf { cond, f, exit }),
        }
    }

    pub(super) fn branch(&mut self, cond: Cond, f: Value, taken: ExitId, fall: ExitId) -> Value {
        let (cond, f) = self.simplify_cond(cond, f);
        match self.decide(cond, f) {
            Some(holds) => self.end(Inst::Goto(if holds { taken } else { fall })),
            None if taken == fall => self.end(Inst::Goto(taken)),
            None => self.end(Inst::Branch { cond, f, taken, fall }),
        }
    }
}

/// The flags that a condition reads.
fn needed_flags(cond: Cond) -> u32 {
    use flags::{C, N, P, V, Z};
    match cond as u8 >> 1 {
        0 => V,
        1 => C,
        2 => Z,
        3 => C | Z,
        4 => N,
        5 => P,
        6 => N | V,
        _ => Z | N | V,
    }
}
