//! Folding of integer operations.
//!
//! One function an instruction: it is given new operands and returns the value that the instruction comes to, appending
//! what is needed. Two ideas carry most of it: an operand of which only low bits are read can be replaced by anything
//! that agrees in these bits ([`Forward::low`]), and a zero-extension of a value known to be narrow is the value
//! ([`Forward::zero_extend`]).
//!
//! Operations that set flags are kept in the form in which the front end made them (`sub` of a constant stays `sub`),
//! so that a backend finds them equal to the flags beside them and computes both by one host instruction.

use super::forward::Forward;
use crate::interp::int;
use crate::ir::{BinOp, Ext, FlagOp, Inst, UnOp, Value, Width};

/// The width whose mask `len` low bits are.
fn width_of_len(len: u8) -> Option<Width> {
    Width::ALL.into_iter().find(|w| w.bits() == len as u32)
}

fn is_commutative(op: BinOp) -> bool {
    use BinOp::*;
    matches!(op, Add | And | Or | Xor | Mul | MulHiU | MulHiS)
}

impl Forward {
    /// A value that agrees with `v` in the low bits of `w`, the least derived one at hand.
    pub(super) fn low(&self, mut v: Value, w: Width) -> Value {
        loop {
            v = match self.def(v) {
                Inst::Extend { from, a, .. } if from >= w => a,
                Inst::Insert { b, pos: 0, len, .. } if len as u32 >= w.bits() => b,
                Inst::Insert { a, pos, .. } if pos as u32 >= w.bits() => a,
                Inst::Bin { op: BinOp::And, w: of, a, b }
                    if of >= w && self.as_const(b).is_some_and(|c| c & w.mask() == w.mask()) =>
                {
                    a
                }
                _ => return v,
            }
        }
    }

    /// The low `w` bits of `v`, zero-extended.
    pub(super) fn zero_extend(&mut self, w: Width, v: Value) -> Value {
        if self.bits(v) <= w.bits() {
            return v;
        }
        let low = self.low(v, w);
        if let Some(c) = self.as_const(low) {
            return self.constant(c & w.mask());
        }
        if self.bits(low) <= w.bits() {
            return low;
        }
        match self.narrow(w, low) {
            Some(v) => v,
            None => self.emit(Inst::Extend { from: w, ext: Ext::Zero, a: low }),
        }
    }

    /// `v`, zero-extended from `w`, by the operation that makes it in a smaller width; unless a global holds `v`, which is
    /// then there to be extended.
    fn narrow(&mut self, w: Width, v: Value) -> Option<Value> {
        use BinOp::*;
        if w != Width::W32 || self.is_homed(v) {
            return None;
        }
        Some(match self.def(v) {
            Inst::Bin { op: op @ (Add | Sub | And | Or | Xor), w: Width::W64, a, b } => self.bin(op, w, a, b),
            Inst::Lea { w: Width::W64, base, index, scale, disp } => self.lea(w, base, index, scale, disp),
            Inst::Select { w: Width::W64, cond, f, a, b } => self.select(w, cond, f, a, b),
            _ => return None,
        })
    }

    pub(super) fn bin(&mut self, op: BinOp, w: Width, a: Value, b: Value) -> Value {
        use BinOp::*;
        let mut a = self.low(a, w);
        let mut b = match op {
            Shl | Shr | Sar | Rol | Ror => self.low(b, Width::W8),
            _ => self.low(b, w),
        };
        match (self.as_const(a), self.as_const(b)) {
            (Some(x), Some(y)) => return self.constant(int::bin(op, w, x, y)),
            (Some(_), None) if is_commutative(op) => std::mem::swap(&mut a, &mut b),
            _ => {}
        }
        if a == b {
            match op {
                Sub | Xor | AndNot => return self.constant(0),
                And | Or => return self.zero_extend(w, a),
                _ => {}
            }
        }
        if let Some(c) = self.as_const(b)
            && let Some(v) = self.bin_const(op, w, a, c)
        {
            return v;
        }
        if self.as_const(a).is_some_and(|c| c & w.mask() == 0) {
            match op {
                Shl | Shr | Sar | Rol | Ror | AndNot => return self.constant(0),
                Sub => return self.un(UnOp::Neg, w, b),
                _ => {}
            }
        }
        self.emit(Inst::Bin { op, w, a, b })
    }

    /// `a op c`; `None` if there is nothing better.
    fn bin_const(&mut self, op: BinOp, w: Width, a: Value, c: u64) -> Option<Value> {
        use BinOp::*;
        let mask = w.mask();
        let count = int::shift_count(w, c);
        let c = c & mask;
        Some(match op {
            Add | Sub | Or | Xor | AndNot if c == 0 => self.zero_extend(w, a),
            And | Mul | MulHiU | MulHiS if c == 0 => self.constant(0),
            And if c == mask => self.zero_extend(w, a),
            AndNot if c == mask => self.constant(0),
            Or if c == mask => self.constant(mask),
            Xor if c == mask => self.un(UnOp::Not, w, a),
            And => return self.and_const(w, a, c),
            AndNot => {
                let not = self.constant(!c & mask);
                self.bin(And, w, a, not)
            }
            Mul if c == 1 => self.zero_extend(w, a),
            Mul if c.is_power_of_two() => {
                let count = self.constant(c.trailing_zeros() as u64);
                self.bin(Shl, w, a, count)
            }
            MulHiU if c == 1 => self.constant(0),
            Shl | Shr | Sar if count == 0 => self.zero_extend(w, a),
            Shl | Shr if count >= w.bits() => self.constant(0),
            Shr if self.bits(a) <= count => self.constant(0),
            Rol | Ror if (c as u32).is_multiple_of(w.bits()) => self.zero_extend(w, a),
            Add | Sub => return self.add_chain(op, w, a, c),
            Xor => match self.def(a) {
                Inst::Bin { op: Xor, w: of, a: x, b: y } if of >= w && !self.is_homed(a) => {
                    let c = self.constant(c ^ self.as_const(y)?);
                    self.bin(Xor, w, x, c)
                }
                _ => return None,
            },
            _ => return None,
        })
    }

    /// `a & c`, `c` neither zero nor all ones.
    fn and_const(&mut self, w: Width, a: Value, c: u64) -> Option<Value> {
        let possible = int::low_mask(self.bits(a).max(1) as u8) & w.mask();
        if possible & !c == 0 {
            return Some(self.zero_extend(w, a));
        }
        if let Some(narrow) = Width::ALL.into_iter().find(|n| n.mask() == c) {
            return Some(self.zero_extend(narrow, a));
        }
        match self.def(a) {
            Inst::Bin { op: BinOp::And, w: of, a: x, b: y } if of >= w => {
                let c = self.constant(c & self.as_const(y)?);
                Some(self.bin(BinOp::And, w, x, c))
            }
            _ => None,
        }
    }

    /// `(x ± d) ± c` as `x ± e`, unless the inner sum is what a global holds.
    fn add_chain(&mut self, op: BinOp, w: Width, a: Value, c: u64) -> Option<Value> {
        let c = if op == BinOp::Sub { c.wrapping_neg() } else { c };
        let (x, d) = self.as_sum(a, w)?;
        let sum = c.wrapping_add(d) & w.mask();
        let sum = self.constant(sum);
        Some(self.bin(BinOp::Add, w, x, sum))
    }

    /// `v`, in the low bits of `w`, as a value plus a constant, if it is one and no global holds it.
    fn as_sum(&self, v: Value, w: Width) -> Option<(Value, u64)> {
        if self.is_homed(v) {
            return None;
        }
        match self.def(v) {
            Inst::Bin { op: BinOp::Add, w: of, a, b } if of >= w => Some((a, self.as_const(b)?)),
            Inst::Bin { op: BinOp::Sub, w: of, a, b } if of >= w => {
                Some((a, self.as_const(b)?.wrapping_neg()))
            }
            _ => None,
        }
    }

    /// Upper bound of the bits set in `a op b`.
    pub(super) fn bin_bits(&self, op: BinOp, w: Width, a: Value, b: Value) -> u32 {
        use BinOp::*;
        let (x, y) = (self.bits(a).min(w.bits()), self.bits(b).min(w.bits()));
        let count = || self.as_const(b).map(|c| int::shift_count(w, c));
        let bits = match op {
            And => x.min(y),
            AndNot => x,
            Or | Xor => x.max(y),
            Add => x.max(y) + 1,
            Mul => x + y,
            Shr => x.saturating_sub(count().unwrap_or(0)),
            Shl => count().map_or(64, |c| x + c),
            MulHiU => (x + y).saturating_sub(w.bits()),
            Sub | MulHiS | Sar | Rol | Ror => 64,
        };
        bits.min(w.bits())
    }

    pub(super) fn un(&mut self, op: UnOp, w: Width, a: Value) -> Value {
        let a = self.low(a, w);
        match self.def(a) {
            Inst::Const(c) => self.constant(int::un(op, w, c)),
            Inst::Un { op: inner @ (UnOp::Neg | UnOp::Not), w: of, a: x } if inner == op && of >= w => {
                self.zero_extend(w, x)
            }
            Inst::Un { op: UnOp::Bswap, w: of, a: x } if op == UnOp::Bswap && of == w => {
                self.zero_extend(w, x)
            }
            _ => self.emit(Inst::Un { op, w, a }),
        }
    }

    pub(super) fn carry(&mut self, sub: bool, w: Width, a: Value, b: Value, f: Value) -> Value {
        let (a, b) = (self.low(a, w), self.low(b, w));
        let f = self.simplest_old(FlagOp::Adc, w, b, f);
        match self.known_carry(f) {
            Some(false) => self.bin(if sub { BinOp::Sub } else { BinOp::Add }, w, a, b),
            Some(true) => match (self.as_const(a), self.as_const(b)) {
                (Some(x), Some(y)) => self.constant(int::carry(sub, w, x, y, true)),
                (_, Some(y)) => {
                    let y = self.constant(y.wrapping_add(1) & w.mask());
                    self.bin(if sub { BinOp::Sub } else { BinOp::Add }, w, a, y)
                }
                _ => self.emit(Inst::Carry { sub, w, a, b, f }),
            },
            None => self.emit(Inst::Carry { sub, w, a, b, f }),
        }
    }

    pub(super) fn lea(&mut self, w: Width, base: Value, index: Value, scale: u8, disp: i32) -> Value {
        let (base, index) = (self.low(base, w), self.low(index, w));
        let (base_const, index_const) = (self.as_const(base), self.as_const(index));
        match (base_const, index_const) {
            (Some(b), Some(i)) => return self.constant(int::lea(w, b, i, scale, disp)),
            (None, Some(i)) => {
                let c = self.constant(int::lea(w, 0, i, scale, disp));
                return self.bin(BinOp::Add, w, base, c);
            }
            (Some(b), None) if scale == 0 => {
                let c = self.constant(int::lea(w, b, 0, 0, disp));
                return self.bin(BinOp::Add, w, index, c);
            }
            _ => {}
        }
        // Constants added to base or index join the displacement, where it has room.
        let extended = |d: u64| if w == Width::W32 { d as u32 as i32 as i64 } else { d as i64 };
        let join = |disp: i32, d: u64| {
            let sum = (disp as i64).wrapping_add(extended(d));
            if w == Width::W32 { Some(sum as i32) } else { i32::try_from(sum).ok() }
        };
        let small = |d: u64| i32::try_from(extended(d)).is_ok();
        if let Some((x, d)) = self.as_sum(base, w)
            && small(d)
            && let Some(disp) = join(disp, d)
        {
            return self.lea(w, x, index, scale, disp);
        }
        if let Some((x, d)) = self.as_sum(index, w)
            && small(d)
            && let Some(disp) = join(disp, d << scale)
        {
            return self.lea(w, base, x, scale, disp);
        }
        self.emit(Inst::Lea { w, base, index, scale, disp })
    }

    pub(super) fn extend(&mut self, from: Width, ext: Ext, a: Value) -> Value {
        let low = self.low(a, from);
        if let Some(c) = self.as_const(low) {
            return self.constant(int::extend(from, ext, c));
        }
        // The sign bit is known to be clear, or there is nothing to extend.
        let from_32 = from >= Width::W32 && ext == Ext::Sign32;
        if ext == Ext::Zero || self.bits(low) < from.bits() {
            let to = if from_32 { Width::W32 } else { from };
            return self.zero_extend(to, a);
        }
        if from_32 {
            return self.zero_extend(Width::W32, a);
        }
        if from == Width::W64 {
            return a;
        }
        self.emit(Inst::Extend { from, ext, a: low })
    }

    /// Upper bound of the bits set in an extension.
    pub(super) fn extend_bits(&self, from: Width, ext: Ext, a: Value) -> u32 {
        match ext {
            Ext::Zero => self.bits(a).min(from.bits()),
            Ext::Sign32 => 32,
            Ext::Sign64 => 64,
        }
    }

    pub(super) fn extract(&mut self, a: Value, pos: u8, len: u8) -> Value {
        if let Some(c) = self.as_const(a) {
            return self.constant(int::extract(c, pos, len));
        }
        if self.bits(a) <= pos as u32 {
            return self.constant(0);
        }
        if pos == 0 {
            if self.bits(a) <= len as u32 {
                return a;
            }
            if let Some(w) = width_of_len(len) {
                return self.zero_extend(w, a);
            }
        }
        let end = pos as u32 + len as u32;
        match self.def(a) {
            Inst::Insert { b, pos: at, len: field, .. } if at <= pos && end <= at as u32 + field as u32 => {
                self.extract(b, pos - at, len)
            }
            Inst::Insert { a, pos: at, len: field, .. }
                if end <= at as u32 || at as u32 + field as u32 <= pos as u32 =>
            {
                self.extract(a, pos, len)
            }
            Inst::Extract { a, pos: at, len: field } if end <= field as u32 => self.extract(a, at + pos, len),
            Inst::Extend { from, a, .. } if end <= from.bits() => self.extract(a, pos, len),
            _ => self.emit(Inst::Extract { a, pos, len }),
        }
    }

    pub(super) fn insert(&mut self, a: Value, b: Value, pos: u8, len: u8) -> Value {
        if len == 64 {
            return b;
        }
        let b = match width_of_len(len) {
            Some(w) => self.low(b, w),
            None => b,
        };
        if let (Some(x), Some(y)) = (self.as_const(a), self.as_const(b)) {
            return self.constant(int::insert(x, y, pos, len));
        }
        if pos == 0
            && self.bits(a) <= len as u32
            && let Some(w) = width_of_len(len)
        {
            return self.zero_extend(w, b);
        }
        match self.def(b) {
            // Back to where it came from.
            Inst::Extract { a: source, pos: at, len: field } if source == a && at == pos && field >= len => {
                return a;
            }
            _ if a == b && pos == 0 => return a,
            _ => {}
        }
        match self.def(a) {
            // The earlier field is covered.
            Inst::Insert { a: x, pos: at, len: field, .. }
                if pos <= at && at as u32 + field as u32 <= pos as u32 + len as u32 =>
            {
                self.insert(x, b, pos, len)
            }
            _ => self.emit(Inst::Insert { a, b, pos, len }),
        }
    }

    pub(super) fn shift_pair(&mut self, w: Width, hi: Value, lo: Value, count: Value) -> Value {
        let (hi, lo) = (self.low(hi, w), self.low(lo, w));
        let count = self.low(count, Width::W8);
        if let Some(c) = self.as_const(count) {
            if int::shift_count(w, c) == 0 {
                return self.zero_extend(w, lo);
            }
            if hi == lo && w != Width::W16 {
                return self.bin(BinOp::Ror, w, lo, count);
            }
            if let (Some(h), Some(l)) = (self.as_const(hi), self.as_const(lo)) {
                return self.constant(int::shift_pair(w, h, l, c));
            }
        }
        self.emit(Inst::ShiftPair { w, hi, lo, count })
    }
}
