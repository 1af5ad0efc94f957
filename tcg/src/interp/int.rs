//! Integer operations: the meaning of [`Inst::Bin`](crate::ir::Inst::Bin) and its like on constants.
//!
//! Every function reads the low bits of its operands and zero-extends its result, and is total: what the IR calls
//! undefined gives *some* result here, never a panic.

use crate::ir::flags::rotate_left;
use crate::ir::{BinOp, Ext, UnOp, Width};

/// `a op b`.
pub fn bin(op: BinOp, w: Width, a: u64, b: u64) -> u64 {
    let (bits, mask) = (w.bits(), w.mask());
    let count = shift_count(w, b);
    let signed = |v: u64| w.sign_extend(v) as i64;
    let (a, b) = (a & mask, b & mask);
    let r = match op {
        BinOp::Add => a.wrapping_add(b),
        BinOp::Sub => a.wrapping_sub(b),
        BinOp::And => a & b,
        BinOp::AndNot => a & !b,
        BinOp::Or => a | b,
        BinOp::Xor => a ^ b,
        BinOp::Mul => a.wrapping_mul(b),
        BinOp::MulHiU => (a as u128 * b as u128 >> bits) as u64,
        BinOp::MulHiS => (signed(a) as i128 * signed(b) as i128 >> bits) as u64,
        BinOp::Shl => a << count,
        BinOp::Shr => a >> count,
        BinOp::Sar => (signed(a) >> count) as u64,
        BinOp::Rol => rotate_left(w, a, b as u32 % bits),
        BinOp::Ror => rotate_left(w, a, bits - b as u32 % bits),
    };
    r & mask
}

/// What a shift makes of its count operand: mod 64 in 64 bits, else mod 32.
pub fn shift_count(w: Width, count: u64) -> u32 {
    (count & if w == Width::W64 { 63 } else { 31 }) as u32
}

/// `op a`.
pub fn un(op: UnOp, w: Width, a: u64) -> u64 {
    let (bits, mask) = (w.bits(), w.mask());
    let a = a & mask;
    let r = match op {
        UnOp::Neg => a.wrapping_neg(),
        UnOp::Not => !a,
        UnOp::Bswap => a.swap_bytes() >> (64 - bits),
        UnOp::Clz => (a.leading_zeros() - (64 - bits)) as u64,
        UnOp::Ctz => a.trailing_zeros().min(bits) as u64,
        UnOp::Popcnt => a.count_ones() as u64,
    };
    r & mask
}

/// `a + b + carry`, or `a - b - carry`.
pub fn carry(sub: bool, w: Width, a: u64, b: u64, carry: bool) -> u64 {
    let carry = carry as u64;
    let r = if sub { a.wrapping_sub(b).wrapping_sub(carry) } else { a.wrapping_add(b).wrapping_add(carry) };
    r & w.mask()
}

/// `base + (index << scale) + disp`.
pub fn lea(w: Width, base: u64, index: u64, scale: u8, disp: i32) -> u64 {
    base.wrapping_add(index << (scale & 3)).wrapping_add(disp as i64 as u64) & w.mask()
}

/// The low bits of `a`, extended.
pub fn extend(from: Width, ext: Ext, a: u64) -> u64 {
    match ext {
        Ext::Zero => a & from.mask(),
        Ext::Sign32 => from.sign_extend(a) & Width::W32.mask(),
        Ext::Sign64 => from.sign_extend(a),
    }
}

/// A mask of `len` (1 to 64) low bits.
pub fn low_mask(len: u8) -> u64 {
    u64::MAX >> (64 - len.clamp(1, 64))
}

/// `len` bits of `a` from `pos`.
pub fn extract(a: u64, pos: u8, len: u8) -> u64 {
    a >> (pos & 63) & low_mask(len)
}

/// `a` with the low `len` bits of `b` at `pos`.
pub fn insert(a: u64, b: u64, pos: u8, len: u8) -> u64 {
    let (pos, mask) = (pos & 63, low_mask(len));
    a & !(mask << pos) | (b & mask) << pos
}

/// Bits `count` to `count + w - 1` of the pair `hi:lo`.
pub fn shift_pair(w: Width, hi: u64, lo: u64, count: u64) -> u64 {
    let mask = w.mask();
    let pair = ((hi & mask) as u128) << w.bits() | (lo & mask) as u128;
    (pair >> shift_count(w, count)) as u64 & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_operations_ignore_high_bits_and_zero_them() {
        let a = 0xffff_ffff_ffff_ff80;
        assert_eq!(bin(BinOp::Add, Width::W8, a, 0x80), 0);
        assert_eq!(bin(BinOp::Sar, Width::W8, a, 1), 0xc0);
        assert_eq!(bin(BinOp::Shr, Width::W16, a, 4), 0xff8);
        assert_eq!(un(UnOp::Neg, Width::W32, 1), 0xffff_ffff);
        assert_eq!(un(UnOp::Clz, Width::W16, 0xffff_0001), 15);
        assert_eq!(un(UnOp::Ctz, Width::W32, 0xffff_ffff_0000_0000), 32);
        assert_eq!(un(UnOp::Bswap, Width::W32, 0x99_1122_3344), 0x4433_2211);
        assert_eq!(un(UnOp::Bswap, Width::W16, 0x1122), 0x2211);
    }

    #[test]
    fn shift_counts_wrap_at_32_or_64_not_at_the_width() {
        assert_eq!(bin(BinOp::Shl, Width::W8, 0xff, 9), 0);
        assert_eq!(bin(BinOp::Shl, Width::W8, 0xff, 33), 0xfe);
        assert_eq!(bin(BinOp::Sar, Width::W16, 0x8000, 31), 0xffff);
        assert_eq!(bin(BinOp::Shr, Width::W64, 1 << 63, 63), 1);
        assert_eq!(bin(BinOp::Shr, Width::W64, 5, 64), 5);
        assert_eq!(bin(BinOp::Rol, Width::W8, 0x81, 9), 3);
        assert_eq!(bin(BinOp::Ror, Width::W64, 1, 65), 1 << 63);
        assert_eq!(bin(BinOp::Ror, Width::W32, 1, 0), 1);
    }

    #[test]
    fn high_products() {
        assert_eq!(bin(BinOp::MulHiU, Width::W64, u64::MAX, u64::MAX), u64::MAX - 1);
        assert_eq!(bin(BinOp::MulHiS, Width::W64, u64::MAX, u64::MAX), 0);
        assert_eq!(bin(BinOp::MulHiS, Width::W8, 0x80, 0x80), 0x40);
        assert_eq!(bin(BinOp::MulHiU, Width::W32, 0x8000_0000, 6), 3);
    }

    #[test]
    fn bit_fields() {
        assert_eq!(extract(0x1234_5678, 8, 8), 0x56);
        assert_eq!(extract(u64::MAX, 0, 64), u64::MAX);
        assert_eq!(insert(u64::MAX, 0, 8, 8), 0xffff_ffff_ffff_00ff);
        assert_eq!(insert(1, 2, 0, 64), 2);
        assert_eq!(shift_pair(Width::W32, 0x1234_5678, 0x9abc_def0, 8), 0x789a_bcde);
        assert_eq!(shift_pair(Width::W64, 1, 0, 64), 0);
        assert_eq!(shift_pair(Width::W16, 0x1234, 0x5678, 16), 0x1234);
        assert_eq!(extend(Width::W8, Ext::Sign32, 0x80), 0xffff_ff80);
        assert_eq!(lea(Width::W32, u64::MAX, 1, 3, -1), 6);
    }
}
