//! Condition flags as values.
//!
//! Problem: most instructions of many guests set condition flags that nobody reads. Strategy: a flags
//! value is a *pure function* of the operands of the instruction that sets it, so that it can be dropped,
//! computed later, or computed by the host instruction that computes the result. It is turned into
//! bits ("packed") only where somebody looks at the bits or where it leaves the block.
//!
//! Packed layout (an integer): V in bit 0; C, P, A, Z, N in bits 8, 10, 12, 14, 15. All other bits are
//! zero, except bit 9, which is *unspecified* (readers mask it). The layout is what an x86 host makes by
//! `seto al; lahf`, and costs other hosts no more than any other layout would.

use super::types::{Cond, Width};

/// Signed overflow.
pub const V: u32 = 1 << 0;
/// Carry, or borrow after a subtraction.
pub const C: u32 = 1 << 8;
/// Even parity of the low eight bits of the result.
pub const P: u32 = 1 << 10;
/// Carry out of bit 3 (auxiliary carry).
pub const A: u32 = 1 << 12;
/// Result is zero.
pub const Z: u32 = 1 << 14;
/// Result's top bit.
pub const N: u32 = 1 << 15;
/// All defined bits.
pub const ALL: u32 = V | C | P | A | Z | N;

/// How a flags value follows from its operands `a`, `b` (low bits of the given width) and `old` flags.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlagOp {
    /// Of `a + b`.
    Add,
    /// Of `a - b`.
    Sub,
    /// Of `a + b + old.C`.
    Adc,
    /// Of `a - b - old.C`.
    Sbb,
    /// Of the logical result `a & b` (use `a, a` for a result already at hand): C, V, A clear.
    And,
    /// Of `a + 1`, C from `old`; `b` is ignored (pass `a`).
    Inc,
    /// Of `a - 1`, C from `old`; `b` is ignored (pass `a`).
    Dec,
    /// Of `a << (b mod 32, or mod 64 in 64 bits)`. Count 0: `old`. C: last bit shifted out (for counts above the
    /// width in 8 and 16 bits: 0); V: xor of `a`'s two top bits (the manual's rule for a count of one, which silicon
    /// follows for all counts); A: clear.
    Shl,
    /// Of the logical `a >> b`. V: top bit of `a`; A: clear.
    Shr,
    /// Of the arithmetic `a >> b`. V: clear; A: clear.
    Sar,
    /// Of the left rotation: C: low bit of the result; V: xor of `a`'s two top bits; others from `old`.
    /// Count (mod 32 or 64) zero: `old`.
    Rol,
    /// Of the right rotation: C: top bit of the result; V: xor of `a`'s top and low bits; others from `old`.
    Ror,
    /// Of the unsigned product `a * b`: C and V when the high half is not zero; N, P of the low half;
    /// Z clear (what silicon does with the flags that its manual leaves undefined); A clear.
    UMul,
    /// Of the signed product: C and V when the low half sign-extended is not the product; others as `UMul`.
    SMul,
    /// C: bit `b` mod the width of `a`; others from `old`. Width 8 is undefined.
    Bit,
    /// The packed integer `a`, as flags; `b` and the width are ignored.
    Unpack,
}

impl FlagOp {
    /// All of them, in order.
    pub const ALL: [FlagOp; 16] = [
        FlagOp::Add,
        FlagOp::Sub,
        FlagOp::Adc,
        FlagOp::Sbb,
        FlagOp::And,
        FlagOp::Inc,
        FlagOp::Dec,
        FlagOp::Shl,
        FlagOp::Shr,
        FlagOp::Sar,
        FlagOp::Rol,
        FlagOp::Ror,
        FlagOp::UMul,
        FlagOp::SMul,
        FlagOp::Bit,
        FlagOp::Unpack,
    ];

    /// Whether the `old` operand is read.
    pub fn reads_old(self) -> bool {
        use FlagOp::*;
        matches!(self, Adc | Sbb | Inc | Dec | Shl | Shr | Sar | Rol | Ror | Bit)
    }

    /// The bits that are those of `old`, whatever `a` is, if `b` is the constant given or unknown. None of an operation that
    /// changes nothing at all, such as a shift by zero.
    pub fn passes(self, w: Width, b: Option<u64>) -> u32 {
        match self {
            FlagOp::Inc | FlagOp::Dec => C,
            FlagOp::Bit => ALL & !C,
            FlagOp::Rol | FlagOp::Ror if b.is_some_and(|b| count(w, b) != 0) => ALL & !(C | V),
            _ => 0,
        }
    }

    /// The bits of `old` that are read if those of `demand` are wanted, and `b` is the constant given or unknown.
    pub fn old_bits(self, w: Width, b: Option<u64>, demand: u32) -> u32 {
        match self {
            FlagOp::Adc | FlagOp::Sbb => C,
            FlagOp::Shl | FlagOp::Shr | FlagOp::Sar if b.is_some_and(|b| count(w, b) != 0) => 0,
            FlagOp::Rol | FlagOp::Ror if b.is_none_or(|b| count(w, b) == 0) => demand,
            // By zero, which an unknown count may be, they are what they were.
            FlagOp::Shl | FlagOp::Shr | FlagOp::Sar => demand,
            _ => demand & self.passes(w, b),
        }
    }

    /// Whether the `b` operand is read.
    pub fn reads_b(self) -> bool {
        !matches!(self, FlagOp::Inc | FlagOp::Dec | FlagOp::Unpack)
    }
}

/// The count that `b` is to a shift or a rotation.
fn count(w: Width, b: u64) -> u32 {
    (b & if w == Width::W64 { 63 } else { 31 }) as u32
}

/// Evaluates a condition over packed flags.
pub fn holds(cond: Cond, packed: u32) -> bool {
    let bit = |m: u32| packed & m != 0;
    let base = match cond as u8 >> 1 {
        0 => bit(V),
        1 => bit(C),
        2 => bit(Z),
        3 => bit(C) || bit(Z),
        4 => bit(N),
        5 => bit(P),
        6 => bit(N) != bit(V),
        _ => bit(Z) || bit(N) != bit(V),
    };
    base != (cond as u8 & 1 != 0)
}

/// Computes packed flags: the specification of [`FlagOp`], used by the interpreter, by the constant
/// folder, and to restore precise flags when a guest instruction faults.
pub fn compute(op: FlagOp, w: Width, a: u64, b: u64, old: u32) -> u32 {
    let mask = w.mask();
    let top = w.bits() - 1;
    let packed = a as u32;
    let (a, b) = (a & mask, b & mask);
    let old = old & ALL;
    let szp = |r: u64| {
        let mut f = 0;
        if r & mask == 0 {
            f |= Z;
        }
        if r >> top & 1 != 0 {
            f |= N;
        }
        if (r as u8).count_ones() & 1 == 0 {
            f |= P;
        }
        f
    };
    let sum = |a: u64, b: u64, carry: u64| {
        let wide = a as u128 + b as u128 + carry as u128;
        let r = wide as u64 & mask;
        let mut f = szp(r);
        if wide > mask as u128 {
            f |= C;
        }
        if (a ^ r) & (b ^ r) & 1 << top != 0 {
            f |= V;
        }
        if (a ^ b ^ r) & 0x10 != 0 {
            f |= A;
        }
        f
    };
    let difference = |a: u64, b: u64, borrow: u64| {
        let r = a.wrapping_sub(b).wrapping_sub(borrow) & mask;
        let mut f = szp(r);
        if (a as u128) < b as u128 + borrow as u128 {
            f |= C;
        }
        if (a ^ b) & (a ^ r) & 1 << top != 0 {
            f |= V;
        }
        if (a ^ b ^ r) & 0x10 != 0 {
            f |= A;
        }
        f
    };
    let old_c = (old & C != 0) as u64;
    let count = count(w, b);
    match op {
        FlagOp::Add => sum(a, b, 0),
        FlagOp::Adc => sum(a, b, old_c),
        FlagOp::Sub => difference(a, b, 0),
        FlagOp::Sbb => difference(a, b, old_c),
        FlagOp::And => szp(a & b),
        FlagOp::Inc => sum(a, 1, 0) & !C | old & C,
        FlagOp::Dec => difference(a, 1, 0) & !C | old & C,
        FlagOp::Shl | FlagOp::Shr | FlagOp::Sar if count == 0 => old,
        FlagOp::Shl => {
            let wide = (a as u128) << count;
            let r = wide as u64 & mask;
            let carry = wide >> (top + 1) & 1 != 0;
            let mut f = szp(r);
            if carry {
                f |= C;
            }
            if (a ^ a << 1) >> top & 1 != 0 {
                f |= V;
            }
            f
        }
        FlagOp::Shr => {
            let r = a.checked_shr(count).unwrap_or(0);
            let mut f = szp(r);
            if a >> (count - 1) & 1 != 0 {
                f |= C;
            }
            if a >> top & 1 != 0 {
                f |= V;
            }
            f
        }
        FlagOp::Sar => {
            let wide = w.sign_extend(a) as i64;
            let mut f = szp((wide >> count) as u64 & mask);
            if wide >> (count - 1) & 1 != 0 {
                f |= C;
            }
            f
        }
        FlagOp::Rol | FlagOp::Ror if count == 0 => old,
        FlagOp::Rol => {
            let r = rotate_left(w, a, count);
            let mut f = old & !(C | V);
            if r & 1 != 0 {
                f |= C;
            }
            if (a ^ a << 1) >> top & 1 != 0 {
                f |= V;
            }
            f
        }
        FlagOp::Ror => {
            let r = rotate_left(w, a, w.bits() - count % w.bits());
            let mut f = old & !(C | V);
            if r >> top & 1 != 0 {
                f |= C;
            }
            if (a ^ a >> top) & 1 != 0 {
                f |= V;
            }
            f
        }
        FlagOp::UMul => {
            let wide = a as u128 * b as u128;
            let f = szp(wide as u64 & mask) & !Z;
            if wide > mask as u128 { f | C | V } else { f }
        }
        FlagOp::SMul => {
            let wide = w.sign_extend(a) as i64 as i128 * w.sign_extend(b) as i64 as i128;
            let low = w.sign_extend(wide as u64) as i64 as i128;
            let f = szp(wide as u64 & mask) & !Z;
            if wide != low { f | C | V } else { f }
        }
        FlagOp::Bit => {
            let carry = if a >> (b & top as u64) & 1 != 0 { C } else { 0 };
            old & !C | carry
        }
        FlagOp::Unpack => packed & ALL,
    }
}

/// Rotates the low bits of `a` left by `count` modulo the width; the result is zero-extended.
pub fn rotate_left(w: Width, a: u64, count: u32) -> u64 {
    let count = count % w.bits();
    let a = a & w.mask();
    if count == 0 { a } else { (a << count | a >> (w.bits() - count)) & w.mask() }
}
