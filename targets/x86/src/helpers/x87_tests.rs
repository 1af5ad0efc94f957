//! Bookkeeping around the arithmetic: stack faults, masked and unmasked responses, widening, comparisons.

use super::super::x87_codes::{BINARIES, FORMATS, SOURCES};
use super::super::x87_number::from_integer;
use super::super::x87_state::f80;
use super::*;

const ONE: F80 = f80(0x3fff, 1 << 63);
const TWO: F80 = f80(0x4000, 1 << 63);

fn stack(values: &[F80]) -> Fpu {
    let mut fpu = Fpu::INITIAL;
    for v in values {
        fpu.push(*v);
    }
    fpu
}

#[test]
fn widening_agrees_with_the_host() {
    let host_f64 = |bits: u64| {
        // An addition of zero leaves every number but a signalling NaN and a negative zero as it is.
        let (v, e) = number(Source::F64, bits, 0);
        (host::convert(Format::F64, 0x37f, &v).0, e)
    };
    for bits in
        [0u64, 1 << 63, 1, 0x000f_ffff_ffff_ffff, 0x3ff8_0000_0000_0000, 0x7fef_ffff_ffff_ffff, 0x7ff0 << 48]
    {
        let (back, _) = host_f64(bits);
        assert_eq!(u64::from_le_bytes(back[..8].try_into().unwrap()), bits);
    }
    for bits in [1u32, 0x007f_ffff, 0x0080_0000, 0xbf80_0000, 0x7f7f_ffff, 0xff80_0000] {
        let (v, e) = number(Source::F32, bits as u64, 0);
        let (back, _) = host::convert(Format::F32, 0x37f, &v);
        assert_eq!(u32::from_le_bytes(back[..4].try_into().unwrap()), bits);
        assert_eq!(e == status::DE, bits & 0x7f80_0000 == 0, "{bits:#x}");
    }
    let (v, e) = number(Source::F32, 0x7fa0_0000, 0);
    assert_eq!((v, e), (f80(0x7fff, 0xe000_0000_0000_0000), status::IE));
}

#[test]
fn integers_are_exact() {
    for n in [0, 1, -1, 7, i64::MIN, i64::MAX, -0x1234_5678_9abc] {
        let (back, sw) = host::convert(Format::I64, 0x37f, &from_integer(n));
        assert_eq!((i64::from_le_bytes(back[..8].try_into().unwrap()), sw & 0x3f), (n, 0));
    }
}

#[test]
fn a_push_on_a_full_stack_overflows() {
    let mut fpu = stack(&[ONE; 8]);
    push(&mut fpu, TWO, 0);
    assert_eq!(*fpu.st(0), INDEFINITE);
    assert_eq!(fpu.status & (status::IE | status::SF | status::C1), status::IE | status::SF | status::C1);
    let mut fpu = stack(&[ONE; 8]);
    fpu.control = 0x37e;
    push(&mut fpu, TWO, 0);
    assert_eq!((*fpu.st(0), fpu.top()), (ONE, 0));
    assert_ne!(fpu.status & status::ES, 0);
}

#[test]
fn an_empty_operand_underflows() {
    let mut fpu = stack(&[]);
    misc(&mut fpu, Misc::Sqrt);
    assert_eq!(*fpu.st(0), INDEFINITE);
    assert_eq!(fpu.status & (status::IE | status::SF | status::C1), status::IE | status::SF);
}

#[test]
fn pushing_operations_order_their_results() {
    let mut fpu = stack(&[f80(0x4001, 3 << 62)]);
    misc(&mut fpu, Misc::Extract);
    // 6 is 1.5 * 2^2.
    assert_eq!((*fpu.st(0), *fpu.st(1)), (f80(0x3fff, 3 << 62), TWO));
    let mut fpu = stack(&[ZERO]);
    misc(&mut fpu, Misc::Tangent);
    assert_eq!((*fpu.st(0), *fpu.st(1), fpu.status & status::C2), (ONE, ZERO, 0));
}

#[test]
fn logarithm_pops() {
    let mut fpu = stack(&[TWO, f80(0x4002, 1 << 63)]);
    misc(&mut fpu, Misc::YLog2X);
    // 2 * log2(8) = 6.
    assert_eq!((*fpu.st(0), fpu.top()), (f80(0x4001, 3 << 62), 7));
    assert_eq!(fpu.valid, 0x80);
}

#[test]
fn examine_classifies() {
    let class = |v: F80| {
        let mut fpu = stack(&[v]);
        examine(&mut fpu);
        fpu.status & status::CONDITION
    };
    assert_eq!(class(ONE), status::C2);
    assert_eq!(class(f80(0x8000, 0)), status::C3 | status::C1);
    assert_eq!(class(INDEFINITE), status::C0 | status::C1);
    let mut empty = stack(&[]);
    examine(&mut empty);
    assert_eq!(empty.status & status::CONDITION, status::C3 | status::C0);
}

#[test]
fn unmasked_exceptions_suppress_or_keep() {
    let mut fpu = stack(&[ZERO, ONE]);
    fpu.control = 0x37b;
    let (r, sw) = host::binary(Binary::Div, fpu.control, fpu.st(0), fpu.st(1));
    assert!(!commit(&mut fpu, sw));
    assert_eq!(r, ONE);
    // An unmasked inexact result is delivered.
    let mut fpu = stack(&[f80(0x4000, 3 << 62), ONE]);
    fpu.control = 0x35f;
    let (_, sw) = host::binary(Binary::Div, fpu.control, fpu.st(0), fpu.st(1));
    assert!(commit(&mut fpu, sw));
    assert_ne!(fpu.status & status::ES, 0);
}

#[test]
fn codes_match_their_tables() {
    for (n, f) in FORMATS.into_iter().enumerate() {
        assert_eq!(store_code(Some(f), false) as usize, n);
    }
    for (n, m) in MISC_ALL.into_iter().enumerate() {
        assert_eq!(m as usize, n);
    }
    for (n, s) in SOURCES.into_iter().enumerate() {
        assert_eq!(s as usize, n);
    }
    for (n, b) in BINARIES.into_iter().enumerate() {
        assert_eq!(b as usize, n);
    }
}
