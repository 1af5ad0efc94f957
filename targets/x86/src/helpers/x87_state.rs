//! The x87 register stack, its tags, its status word: bookkeeping without arithmetic.
//!
//! Registers are held by physical number; `ST(i)` is physical register `(TOP + i) mod 8`. Exceptions are recorded in the
//! status word and reported by the next waiting instruction (SDM volume 1, section 8.7).

use crate::state::Fpu;

/// An 80-bit extended-precision number (SDM volume 1, section 4.2.2) in ten bytes, little-endian, six more unused.
pub type F80 = [u8; 16];

/// Bits of the status word (SDM volume 1, section 8.1.3).
pub mod status {
    #![allow(missing_docs)]
    pub const IE: u16 = 1 << 0;
    pub const DE: u16 = 1 << 1;
    pub const ZE: u16 = 1 << 2;
    pub const OE: u16 = 1 << 3;
    pub const UE: u16 = 1 << 4;
    pub const PE: u16 = 1 << 5;
    /// All six exceptions.
    pub const EXCEPTIONS: u16 = 0x3f;
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// Exception summary.
    pub const ES: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    /// Top of stack, bits 13:11.
    pub const TOP: u16 = 7 << 11;
    pub const C3: u16 = 1 << 14;
    pub const BUSY: u16 = 1 << 15;
    /// All condition codes.
    pub const CONDITION: u16 = C0 | C1 | C2 | C3;
}

/// The default NaN: what masked invalid operations give.
pub const INDEFINITE: F80 = f80(0xffff, 0xc000_0000_0000_0000);
/// Plus zero.
pub const ZERO: F80 = f80(0, 0);

/// A number from its sign and exponent, and its mantissa.
pub const fn f80(sign_exponent: u16, mantissa: u64) -> F80 {
    (mantissa as u128 | (sign_exponent as u128) << 64).to_le_bytes()
}

/// Sign and exponent, and mantissa.
pub fn parts(v: &F80) -> (u16, u64) {
    let v = u128::from_le_bytes(*v);
    ((v >> 64) as u16, v as u64)
}

/// What is in a register, as FXAM tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Class {
    Unsupported,
    Nan,
    Normal,
    Infinity,
    Zero,
    Denormal,
}

/// Classifies a number. Pseudo-NaNs, pseudo-infinities and unnormals are unsupported, pseudo-denormals are denormals.
pub fn classify(v: &F80) -> Class {
    let (se, m) = parts(v);
    let integer = m >> 63 != 0;
    match se & 0x7fff {
        0 if m == 0 => Class::Zero,
        0 => Class::Denormal,
        _ if !integer => Class::Unsupported,
        0x7fff if m << 1 == 0 => Class::Infinity,
        0x7fff => Class::Nan,
        _ => Class::Normal,
    }
}

impl Fpu {
    /// The state after FNINIT, with all registers zero.
    pub const INITIAL: Fpu = Fpu {
        regs: [[0; 16]; 8],
        control: 0x37f,
        status: 0,
        valid: 0,
        opcode: 0,
        ip: 0,
        cs: 0,
        dp: 0,
        ds: 0,
    };

    /// Sets the control word: bit 6 is always set, bits that do not exist read as zero.
    #[inline]
    pub fn set_control(&mut self, word: u16) {
        self.control = word & 0x1f3f | 0x40;
    }

    /// TOP.
    #[inline]
    pub fn top(&self) -> usize {
        (self.status >> 11 & 7) as usize
    }

    /// Sets TOP modulo 8.
    #[inline]
    pub fn set_top(&mut self, top: usize) {
        self.status = self.status & !status::TOP | (top as u16 & 7) << 11;
    }

    /// Physical number of ST(i).
    #[inline]
    pub fn physical(&self, i: usize) -> usize {
        (self.top() + i) & 7
    }

    /// Whether ST(i) is empty.
    #[inline]
    pub fn is_empty(&self, i: usize) -> bool {
        self.valid >> self.physical(i) & 1 == 0
    }

    /// ST(i), whether empty or not.
    #[inline]
    pub fn st(&self, i: usize) -> &F80 {
        &self.regs[self.physical(i)]
    }

    /// Writes ST(i) and makes it valid.
    #[inline]
    pub fn set_st(&mut self, i: usize, v: F80) {
        let p = self.physical(i);
        self.regs[p] = v;
        // The six bytes beyond the number stay zero, so that equal states are equal bytes.
        self.regs[p][10..].fill(0);
        self.valid |= 1 << p;
    }

    /// Makes ST(i) empty.
    #[inline]
    pub fn free(&mut self, i: usize) {
        self.valid &= !(1 << self.physical(i));
    }

    /// Pops.
    #[inline]
    pub fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top() + 1);
    }

    /// Pushes without looking whether the register is empty.
    #[inline]
    pub fn push(&mut self, v: F80) {
        self.set_top(self.top() + 7);
        self.set_st(0, v);
    }

    /// Whether an exception is unmasked and flagged among these.
    #[inline]
    pub fn unmasked(&self, exceptions: u16) -> bool {
        exceptions & !self.control & status::EXCEPTIONS != 0
    }

    /// Adds exception flags (and SF), and brings the summary up to date.
    pub fn flag(&mut self, exceptions: u16) {
        self.status |= exceptions & (status::EXCEPTIONS | status::SF);
        self.summarise();
    }

    /// Recomputes ES and B from the flags and the masks.
    pub fn summarise(&mut self) {
        if self.unmasked(self.status) {
            self.status |= status::ES | status::BUSY;
        } else {
            self.status &= !(status::ES | status::BUSY);
        }
    }

    /// Replaces those condition codes that are in `mask`.
    #[inline]
    pub fn set_condition(&mut self, mask: u16, codes: u16) {
        self.status = self.status & !mask | codes & mask;
    }

    /// Flags a stack fault: an empty register read (`overflow` clear) or a valid one pushed over (set). Whether the
    /// masked response is to be made.
    pub fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_condition(status::C1, if overflow { status::C1 } else { 0 });
        self.flag(status::IE | status::SF);
        !self.unmasked(status::IE)
    }

    /// The full tag word (SDM volume 1, section 8.1.7): two bits for each physical register.
    pub fn tag_word(&self) -> u16 {
        (0..8).fold(0, |word, n| {
            let tag = if self.valid >> n & 1 == 0 {
                3
            } else {
                match classify(&self.regs[n]) {
                    Class::Normal => 0,
                    Class::Zero => 1,
                    _ => 2,
                }
            };
            word | tag << (2 * n)
        })
    }

    /// Sets the tags from a full tag word: only "empty" matters.
    pub fn set_tag_word(&mut self, word: u16) {
        self.valid = (0..8).fold(0, |valid, n| valid | ((word >> (2 * n) & 3 != 3) as u8) << n);
    }

    /// FNINIT: everything but the registers' contents.
    pub fn initialise(&mut self) {
        *self = Fpu { regs: self.regs, ..Fpu::INITIAL };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_wraps_around() {
        let mut fpu = Fpu::INITIAL;
        fpu.push(f80(0x3fff, 1 << 63));
        assert_eq!((fpu.top(), fpu.valid), (7, 0x80));
        assert_eq!(fpu.tag_word(), 0x3fff);
        fpu.push(ZERO);
        assert_eq!(fpu.tag_word(), 0x1fff);
        fpu.pop();
        fpu.pop();
        assert_eq!((fpu.top(), fpu.valid), (0, 0));
        assert!(fpu.is_empty(0));
    }

    #[test]
    fn the_summary_follows_the_masks() {
        let mut fpu = Fpu::INITIAL;
        fpu.flag(status::ZE);
        assert_eq!(fpu.status, status::ZE);
        fpu.control = 0x37b;
        fpu.summarise();
        assert_eq!(fpu.status, status::ZE | status::ES | status::BUSY);
    }

    #[test]
    fn encodings_without_meaning_are_unsupported() {
        assert_eq!(classify(&f80(0x4000, 1)), Class::Unsupported);
        assert_eq!(classify(&f80(0x7fff, 0)), Class::Unsupported);
        assert_eq!(classify(&f80(0, 1 << 63)), Class::Denormal);
        assert_eq!(classify(&INDEFINITE), Class::Nan);
    }
}
