//! Bytes as elements of GF(2^8) modulo x^8 + x^4 + x^3 + x + 1, and as vectors of bits (SDM volume 2, GF2P8MULB and its
//! neighbours).

pub use super::aes::multiply;

/// `a`'s inverse; zero for zero.
pub fn inverse(a: u8) -> u8 {
    // a^254: the exponents 2, 4, ... 128.
    let mut power = a;
    (0..7).fold(1, |r, _| {
        power = multiply(power, power);
        multiply(r, power)
    })
}

/// The matrix times the byte, plus `constant`.
pub fn affine(byte: u8, matrix: u64, constant: u8) -> u8 {
    let row = |n: u32| (matrix >> (8 * (7 - n))) as u8;
    (0..8).fold(constant, |r, n| r ^ ((row(n) & byte).count_ones() as u8 & 1) << n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverses_multiply_to_one() {
        assert_eq!(inverse(0), 0);
        for a in 1..=255 {
            assert_eq!(multiply(a, inverse(a)), 1, "{a}");
        }
    }

    #[test]
    fn the_identity_matrix_is_its_own_inverse() {
        // Row n selects bit n: the manual's order puts row 7 lowest.
        let identity = 0x0102_0408_1020_4080;
        for byte in [0, 1, 0x80, 0xa5, 0xff] {
            assert_eq!(affine(byte, identity, 0), byte);
            assert_eq!(affine(byte, identity, 0xff), !byte);
        }
    }
}
