//! Division by the host's own instructions, where these do not fault.
//!
//! Problem: guests divide a double-width number, and get an exception if the divisor is zero or the quotient does not fit. The
//! helper that does so costs several times the division. Strategy: [`Shortcut::Divide`](crate::guest::Shortcut::Divide) names such
//! helpers; what they do is done inline behind checks after which the host's DIV or IDIV cannot fault. All else, exceptions too,
//! is the helper's, out of line.
//!
//! An unsigned quotient fits exactly if the dividend's high half is less than the divisor, which is then not zero. A signed
//! division is done inline if the dividend is a sign-extended number of the divisor's width, as compilers have it, and the divisor
//! is neither 0 nor -1: no quotient is then larger than its dividend.

use super::emitter::{Emitter, NONE, Part, Target};
use super::encode::{Alu, Shift, r};
use super::liveness::NO_VALUE;
use crate::env::Header;
use crate::ir::{BinOp, CallArgs, Cond, Inst, Value, Width};

/// The operands of a division, as numbers of values.
#[derive(Clone, Copy)]
struct Operands {
    high: usize,
    low: usize,
    divisor: usize,
}

impl Emitter<'_> {
    /// Emits a division of `args`: high and low half of the dividend, and the divisor, in the low bits of `w` (32 or 64). The
    /// quotient is the result of the current instruction.
    pub fn divide(&mut self, signed: bool, w: Width, func: fn() -> *const (), args: CallArgs) {
        let [high, low, divisor] = std::array::from_fn(|n| self.b.live.resolve(args[n]));
        let operands = Operands { high, low, divisor };
        for v in [high, low, divisor] {
            if self.constant(v).is_none() {
                self.use_int(Value(v as u32));
            }
        }
        self.vacate_rdx();
        let misfits = if signed { self.check_signed(w, operands) } else { self.check_unsigned(w, operands) };
        self.read_value(r::RAX, low);
        if signed {
            self.asm().sign_to_rdx(w);
        } else {
            self.read_value(r::RDX, high);
        }
        let rd = self.value_in(divisor, r::RCX);
        self.asm().group3(if signed { 7 } else { 6 }, w, rd);
        self.clobber_flags();
        if misfits != [None; 2] {
            let back = self.here();
            let was = std::mem::replace(&mut self.part, Part::Cold);
            let slow = self.here();
            self.call_divide(func, operands, back);
            self.part = was;
            misfits.into_iter().flatten().for_each(|jump| self.fix(jump, slow));
        }
        if self.b.live.values[self.at].last_use > self.at as u32 {
            let dst = self.define(NONE, 0);
            self.asm().mov_rr(dst, r::RAX);
        }
    }

    /// Empties RDX, whose value, if anybody wants it, moves.
    fn vacate_rdx(&mut self) {
        let v = self.owner[r::RDX as usize];
        self.locked |= 1 << r::RDX;
        if v == NO_VALUE {
            return;
        }
        self.owner[r::RDX as usize] = NO_VALUE;
        self.b.reg[v as usize] = NONE;
        if self.b.live.values[v as usize].last_use >= self.at as u32 {
            let to = self.temp();
            self.asm().mov_rr(to, r::RDX);
            self.owner[to as usize] = v;
            self.b.reg[v as usize] = to;
        }
    }

    /// Jumps that are taken if the unsigned quotient does not fit.
    fn check_unsigned(&mut self, w: Width, o: Operands) -> [Option<usize>; 2] {
        let small = self.constant(o.high).is_some_and(|c| c & w.mask() == 0);
        if small && self.constant(o.divisor).is_some_and(|c| c & w.mask() != 0) {
            return [None; 2];
        }
        let rd = self.value_in(o.divisor, r::RCX);
        if small {
            self.asm().test_rr(w, rd, rd);
            return [Some(self.asm().jcc(Cond::E)), None];
        }
        let high = self.value_in(o.high, r::RAX);
        self.asm().alu_rr(Alu::Cmp, w, high, rd);
        [Some(self.asm().jcc(Cond::AE)), None]
    }

    /// Jumps that are taken unless the dividend is a sign-extended number and the divisor neither 0 nor -1.
    fn check_signed(&mut self, w: Width, o: Operands) -> [Option<usize>; 2] {
        let harmless = self.constant(o.divisor).is_some_and(|c| !matches!(w.sign_extend(c) as i64, 0 | -1));
        let divisor = (!harmless).then(|| {
            let rd = self.value_in(o.divisor, r::RCX);
            self.asm().lea(w, r::RAX, rd, None, 1);
            self.asm().alu_ri(Alu::Cmp, w, r::RAX, 1);
            self.asm().jcc(Cond::BE)
        });
        if self.is_sign(w, o) {
            return [divisor, None];
        }
        self.read_value(r::RAX, o.low);
        self.asm().shift_ri(Shift::Sar, w, r::RAX, w.bits() as u8 - 1);
        let high = self.value_in(o.high, r::RCX);
        self.asm().alu_rr(Alu::Cmp, w, r::RAX, high);
        [divisor, Some(self.asm().jcc(Cond::NE))]
    }

    /// Whether the high half was made of the low half's sign.
    fn is_sign(&self, w: Width, o: Operands) -> bool {
        match self.block.insts.get(o.high) {
            Some(&Inst::Bin { op: BinOp::Sar, w: of, a, b }) => {
                of == w
                    && self.b.live.resolve(a) == o.low
                    && self.block.constant(b) == Some(u64::from(w.bits()) - 1)
            }
            _ => false,
        }
    }

    /// Calls the helper, and goes on at `back`. All registers survive, but for RAX, which has the quotient then, RCX and RDX.
    fn call_divide(&mut self, func: fn() -> *const (), o: Operands, back: Target) {
        self.count_helper();
        // Twice, for the stack's alignment.
        self.asm().buf.extend_from_slice(&[0x56, 0x56]); // push rsi
        // RSI may be an operand's register, so it is written last; RCX and RDX are nobody's.
        self.read_value(r::RCX, o.divisor);
        self.read_value(r::RDX, o.low);
        self.read_value(r::RSI, o.high);
        self.asm().mov_ri(r::RAX, func() as u64);
        let thunk = self.thunks.call_saved;
        self.call_thunk(thunk);
        if !self.upper {
            // The registers were loaded in full.
            self.asm().vzeroupper();
        }
        self.asm().buf.extend_from_slice(&[0x5e, 0x5e]); // pop rsi
        let point = self.point(None);
        self.test_env_zero(std::mem::offset_of!(Header, helper_fault) as u32);
        let fine = self.asm().jcc(Cond::E);
        self.fix(fine, back);
        self.leave_faulted(point);
    }
}
