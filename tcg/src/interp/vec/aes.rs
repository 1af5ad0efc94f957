//! AES rounds on a 128-bit state (FIPS 197; SDM volume 2, AESENC and its neighbours).
//!
//! The state's byte `4 * column + row` is FIPS 197's `s[row, column]`. Sixteen bytes are little-endian in a `u128`.

/// Multiplication by x in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn double(a: u8) -> u8 {
    a << 1 ^ (a >> 7) * 0x1b
}

/// Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
pub const fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut r) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    r
}

/// The S-box: the affine transformation of the multiplicative inverse (FIPS 197, section 5.1.1).
const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        // n^254 is the inverse, and 0 for 0.
        let (mut inverse, mut power, mut k) = (1, n as u8, 0);
        while k < 8 {
            if 254 >> k & 1 != 0 {
                inverse = multiply(inverse, power);
            }
            power = multiply(power, power);
            k += 1;
        }
        let i = inverse;
        table[n] = i ^ i.rotate_left(1) ^ i.rotate_left(2) ^ i.rotate_left(3) ^ i.rotate_left(4) ^ 0x63;
        n += 1;
    }
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        table[SBOX[n] as usize] = n as u8;
        n += 1;
    }
    table
};

/// Rows shifted left by `step * row`, bytes substituted.
fn shift_and_substitute(state: u128, step: usize, table: &[u8; 256]) -> [u8; 16] {
    let s = state.to_le_bytes();
    std::array::from_fn(|n| {
        let (column, row) = (n / 4, n % 4);
        table[s[4 * ((column + step * row) % 4) + row] as usize]
    })
}

/// Each column multiplied by the circulant matrix of `first`, the first row.
fn mix(s: [u8; 16], first: [u8; 4]) -> u128 {
    u128::from_le_bytes(std::array::from_fn(|n| {
        let (column, row) = (n / 4, n % 4);
        (0..4).fold(0, |r, k| r ^ multiply(s[4 * column + k], first[(k + 4 - row) % 4]))
    }))
}

pub fn encrypt(state: u128, key: u128) -> u128 {
    mix(shift_and_substitute(state, 1, &SBOX), [2, 3, 1, 1]) ^ key
}

pub fn encrypt_last(state: u128, key: u128) -> u128 {
    u128::from_le_bytes(shift_and_substitute(state, 1, &SBOX)) ^ key
}

pub fn decrypt(state: u128, key: u128) -> u128 {
    mix(shift_and_substitute(state, 3, &INVERSE_SBOX), [14, 11, 13, 9]) ^ key
}

pub fn decrypt_last(state: u128, key: u128) -> u128 {
    u128::from_le_bytes(shift_and_substitute(state, 3, &INVERSE_SBOX)) ^ key
}

pub fn inverse_mix(state: u128) -> u128 {
    mix(state.to_le_bytes(), [14, 11, 13, 9])
}

pub fn keygen(a: u128, round_constant: u8) -> u128 {
    let substitute = |n: u32| {
        let word = (a >> (32 * n)) as u32;
        u32::from_le_bytes(word.to_le_bytes().map(|b| SBOX[b as usize]))
    };
    let rotate = |w: u32| w.rotate_right(8) ^ round_constant as u32;
    let (x1, x3) = (substitute(1), substitute(3));
    x1 as u128 | (rotate(x1) as u128) << 32 | (x3 as u128) << 64 | (rotate(x3) as u128) << 96
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fips_197_appendix_b_first_round() {
        let bytes = |s: &str| {
            u128::from_le_bytes(std::array::from_fn(|n| {
                u8::from_str_radix(&s[2 * n..2 * n + 2], 16).unwrap()
            }))
        };
        let start = bytes("193de3bea0f4e22b9ac68d2ae9f84808");
        let key = bytes("a0fafe1788542cb123a339392a6c7605");
        assert_eq!(encrypt(start, key), bytes("a49c7ff2689f352b6b5bea43026a5049"));
    }

    #[test]
    fn decryption_inverts_encryption() {
        let state = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
        assert_eq!(decrypt_last(encrypt_last(state, 0), 0), state);
        assert_eq!(inverse_mix(mix(state.to_le_bytes(), [2, 3, 1, 1])), state);
    }
}
