//! Numbers in memory as the x87 unit reads them: widened to 80 bits, with the exceptions of reading them.

use super::x87_codes::Source;
use super::x87_host as host;
use super::x87_state::{F80, ZERO, f80, status};

/// Widens an IEEE 754 number of `fraction` fraction bits: the number and its exceptions (SNaN, denormal).
fn widen(bits: u64, fraction: u32, exponent_bits: u32) -> (F80, u16) {
    let sign = ((bits >> (fraction + exponent_bits)) as u16 & 1) << 15;
    let max = (1u32 << exponent_bits) - 1;
    let exponent = (bits >> fraction) as u32 & max;
    let mantissa = (bits & ((1 << fraction) - 1)) << (63 - fraction);
    let bias = 0x3fff - (max >> 1);
    match exponent {
        0 if mantissa == 0 => (f80(sign, 0), 0),
        0 => {
            // The value is mantissa * 2^-63 * 2^(1 - bias), to be normalised.
            let shift = mantissa.leading_zeros();
            (f80(sign | (bias + 1 - shift) as u16, mantissa << shift), status::DE)
        }
        e if e == max && mantissa == 0 => (f80(sign | 0x7fff, 1 << 63), 0),
        e if e == max => {
            let quiet = 1 << 62;
            let invalid = if mantissa & quiet == 0 { status::IE } else { 0 };
            (f80(sign | 0x7fff, mantissa | quiet | 1 << 63), invalid)
        }
        e => (f80(sign | (e + bias) as u16, mantissa | 1 << 63), 0),
    }
}

pub(super) fn from_integer(v: i64) -> F80 {
    if v == 0 {
        return ZERO;
    }
    let sign = if v < 0 { 0x8000 } else { 0 };
    let magnitude = v.unsigned_abs();
    let shift = magnitude.leading_zeros();
    f80(sign | (0x3fff + 63 - shift) as u16, magnitude << shift)
}

/// A number from memory and the exceptions of reading it.
pub(super) fn number(source: Source, low: u64, high: u64) -> (F80, u16) {
    match source {
        Source::F32 => widen(low & 0xffff_ffff, 23, 8),
        Source::F64 => widen(low, 52, 11),
        Source::I16 => (from_integer(low as i16 as i64), 0),
        Source::I32 => (from_integer(low as i32 as i64), 0),
        Source::I64 => (from_integer(low as i64), 0),
        Source::F80 | Source::Register => (f80(high as u16, low), 0),
        Source::Bcd => (host::from_bcd(&f80(high as u16, low)), 0),
    }
}

/// A memory operand of an operation. Unlike a load, the operation sees the signalling NaN itself, so it is kept
/// signalling; a denormal counts as a denormal operand, which the widened number no longer is.
pub(super) fn memory_operand(source: Source, value: u64) -> (F80, u16) {
    let (mut v, e) = number(source, value, 0);
    if e & status::IE != 0 {
        v[7] &= !0x40;
    }
    (v, e & status::DE)
}
