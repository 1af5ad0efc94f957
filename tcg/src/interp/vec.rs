//! Vector operations: the meaning of each row of the vector tables, one lane at a time.
//!
//! A value is four words, lane 0 in the low bits of word 0. Lanes beyond the operation's length are not computed
//! (floating point would leave flags) and are zero in the result. Integer lanes are here, floating point is in
//! [`float`], operations on three vectors in [`three`], cryptography in [`aes`], [`sha`] and [`gf`].

mod aes;
pub mod float;
mod gf;
mod sha;
mod three;

pub use three::compute3;

use self::float::{Format, Rounding};
use super::Word4;
use crate::ir::{VecInsOp, VecLen, VecOp, VecTestOp, flags};

/// The floating-point control word where the guest has none: all exceptions masked, round to nearest.
pub const DEFAULT_CONTROL: u32 = 0x1f80;

const F32: Format = Format::Binary32;
const F64: Format = Format::Binary64;

/// `op a, b, imm`. `control` is the guest's floating-point control and status word (laid out as MXCSR): operations
/// round and flush by it and accumulate its sticky flags.
pub fn compute(op: VecOp, len: VecLen, a: Word4, b: Word4, imm: u8, control: &mut u32) -> Word4 {
    use VecOp::*;
    let l = Lanes { len, a, b };
    let i = imm as u32;
    match op {
        And => l.zip(64, |a, b| a & b),
        AndNot => l.zip(64, |a, b| !a & b),
        Or => l.zip(64, |a, b| a | b),
        Xor => l.zip(64, |a, b| a ^ b),
        AddI8 => l.zip(8, u64::wrapping_add),
        AddI16 => l.zip(16, u64::wrapping_add),
        AddI32 => l.zip(32, u64::wrapping_add),
        AddI64 => l.zip(64, u64::wrapping_add),
        SubI8 => l.zip(8, u64::wrapping_sub),
        SubI16 => l.zip(16, u64::wrapping_sub),
        SubI32 => l.zip(32, u64::wrapping_sub),
        SubI64 => l.zip(64, u64::wrapping_sub),
        AddSatS8 => l.zip_signed(8, |a, b| saturate_signed(8, a + b)),
        AddSatS16 => l.zip_signed(16, |a, b| saturate_signed(16, a + b)),
        AddSatU8 => l.zip_signed_of_unsigned(8, |a, b| saturate_unsigned(8, a + b)),
        AddSatU16 => l.zip_signed_of_unsigned(16, |a, b| saturate_unsigned(16, a + b)),
        SubSatS8 => l.zip_signed(8, |a, b| saturate_signed(8, a - b)),
        SubSatS16 => l.zip_signed(16, |a, b| saturate_signed(16, a - b)),
        SubSatU8 => l.zip_signed_of_unsigned(8, |a, b| saturate_unsigned(8, a - b)),
        SubSatU16 => l.zip_signed_of_unsigned(16, |a, b| saturate_unsigned(16, a - b)),
        MulLoI16 => l.zip(16, u64::wrapping_mul),
        MulLoI32 => l.zip(32, u64::wrapping_mul),
        MulHiS16 => l.zip_signed(16, |a, b| a * b >> 16),
        MulHiU16 => l.zip(16, |a, b| a * b >> 16),
        MulHiRoundS16 => l.zip_signed(16, |a, b| (a * b >> 14) + 1 >> 1),
        MulWideU32 => l.zip(64, |a, b| (a as u32 as u64) * (b as u32 as u64)),
        MulWideS32 => l.zip(64, |a, b| (a as i32 as i64 * b as i32 as i64) as u64),
        MulAddS16 => l.build(32, |n| {
            let product = |k| signed(&a, 16, k) * signed(&b, 16, k);
            (product(2 * n) + product(2 * n + 1)) as u64
        }),
        MulAddU8S8 => l.build(16, |n| {
            let product = |k| get(&a, 8, k) as i64 * signed(&b, 8, k);
            saturate_signed(16, product(2 * n) + product(2 * n + 1)) as u64
        }),
        CmpEqI8 => l.zip(8, |a, b| mask(a == b)),
        CmpEqI16 => l.zip(16, |a, b| mask(a == b)),
        CmpEqI32 => l.zip(32, |a, b| mask(a == b)),
        CmpEqI64 => l.zip(64, |a, b| mask(a == b)),
        CmpGtS8 => l.zip_signed(8, |a, b| -((a > b) as i64)),
        CmpGtS16 => l.zip_signed(16, |a, b| -((a > b) as i64)),
        CmpGtS32 => l.zip_signed(32, |a, b| -((a > b) as i64)),
        CmpGtS64 => l.zip_signed(64, |a, b| -((a > b) as i64)),
        MinS8 => l.zip_signed(8, i64::min),
        MinS16 => l.zip_signed(16, i64::min),
        MinS32 => l.zip_signed(32, i64::min),
        MinU8 => l.zip(8, u64::min),
        MinU16 => l.zip(16, u64::min),
        MinU32 => l.zip(32, u64::min),
        MaxS8 => l.zip_signed(8, i64::max),
        MaxS16 => l.zip_signed(16, i64::max),
        MaxS32 => l.zip_signed(32, i64::max),
        MaxU8 => l.zip(8, u64::max),
        MaxU16 => l.zip(16, u64::max),
        MaxU32 => l.zip(32, u64::max),
        AvgU8 => l.zip(8, |a, b| (a + b + 1) >> 1),
        AvgU16 => l.zip(16, |a, b| (a + b + 1) >> 1),
        SadU8 => l.build(64, |n| (8 * n..8 * n + 8).map(|k| get(&a, 8, k).abs_diff(get(&b, 8, k))).sum()),
        MpSadU8 => l.build(16, |n| {
            let (half, k) = (n / 8, n % 8);
            let select = i >> (3 * half);
            let from_a = (16 * half + k) as u32 + 4 * (select >> 2 & 1);
            let from_b = 16 * half as u32 + 4 * (select & 3);
            (0..4)
                .map(|j| get(&a, 8, (from_a + j) as usize).abs_diff(get(&b, 8, (from_b + j) as usize)))
                .sum()
        }),
        MinPosU16 => {
            let (at, v) =
                (0..8).map(|k| (k, get(&a, 16, k))).min_by_key(|&(k, v)| (v, k)).expect("eight lanes");
            [v | (at as u64) << 16, 0, 0, 0]
        }
        PackS16 => l.pack(16, |v| saturate_signed(8, v)),
        PackS32 => l.pack(32, |v| saturate_signed(16, v)),
        PackU16 => l.pack(16, |v| saturate_unsigned(8, v)),
        PackU32 => l.pack(32, |v| saturate_unsigned(16, v)),
        UnpackLoI8 => l.unpack(8, false),
        UnpackLoI16 => l.unpack(16, false),
        UnpackLoI32 => l.unpack(32, false),
        UnpackLoI64 => l.unpack(64, false),
        UnpackHiI8 => l.unpack(8, true),
        UnpackHiI16 => l.unpack(16, true),
        UnpackHiI32 => l.unpack(32, true),
        UnpackHiI64 => l.unpack(64, true),
        ShlI16 => l.shift(16, Shift::Left, b[0]),
        ShlI32 => l.shift(32, Shift::Left, b[0]),
        ShlI64 => l.shift(64, Shift::Left, b[0]),
        ShrI16 => l.shift(16, Shift::Logical, b[0]),
        ShrI32 => l.shift(32, Shift::Logical, b[0]),
        ShrI64 => l.shift(64, Shift::Logical, b[0]),
        SarI16 => l.shift(16, Shift::Arithmetic, b[0]),
        SarI32 => l.shift(32, Shift::Arithmetic, b[0]),
        ShlVarI32 => l.shift_each(32, Shift::Left),
        ShlVarI64 => l.shift_each(64, Shift::Left),
        ShrVarI32 => l.shift_each(32, Shift::Logical),
        ShrVarI64 => l.shift_each(64, Shift::Logical),
        SarVarI32 => l.shift_each(32, Shift::Arithmetic),
        ShlImmI16 => l.shift(16, Shift::Left, imm as u64),
        ShlImmI32 => l.shift(32, Shift::Left, imm as u64),
        ShlImmI64 => l.shift(64, Shift::Left, imm as u64),
        ShrImmI16 => l.shift(16, Shift::Logical, imm as u64),
        ShrImmI32 => l.shift(32, Shift::Logical, imm as u64),
        ShrImmI64 => l.shift(64, Shift::Logical, imm as u64),
        SarImmI16 => l.shift(16, Shift::Arithmetic, imm as u64),
        SarImmI32 => l.shift(32, Shift::Arithmetic, imm as u64),
        ShlBytes => l.halves(|a, _| if i < 16 { a << (8 * i) } else { 0 }),
        ShrBytes => l.halves(|a, _| if i < 16 { a >> (8 * i) } else { 0 }),
        AlignBytes => l.halves(|a, b| match i {
            0 => b,
            1..16 => b >> (8 * i) | a << (128 - 8 * i),
            16..32 => a >> (8 * (i - 16)),
            _ => 0,
        }),
        ShuffleI32 => l.build(32, |n| get(&a, 32, (n & !3) + (i as usize >> (2 * (n & 3)) & 3))),
        ShuffleLoI16 => l.build(16, |n| match n & 7 {
            k @ 0..4 => get(&a, 16, (n & !7) + (i as usize >> (2 * k) & 3)),
            _ => get(&a, 16, n),
        }),
        ShuffleHiI16 => l.build(16, |n| match n & 7 {
            0..4 => get(&a, 16, n),
            k => get(&a, 16, (n & !7) + 4 + (i as usize >> (2 * (k - 4)) & 3)),
        }),
        ShuffleI8 => l.build(8, |n| match get(&b, 8, n) as usize {
            at if at & 0x80 != 0 => 0,
            at => get(&a, 8, (n & !15) + (at & 15)),
        }),
        ShuffleF32 => l.build(32, |n| {
            let from = if n & 3 < 2 { &a } else { &b };
            get(from, 32, (n & !3) + (i as usize >> (2 * (n & 3)) & 3))
        }),
        ShuffleF64 => l.build(64, |n| {
            let from = if n & 1 == 0 { &a } else { &b };
            get(from, 64, (n & !1) + (i as usize >> n & 1))
        }),
        BlendI16 => l.build(16, |n| get(if i >> (n & 7) & 1 != 0 { &b } else { &a }, 16, n)),
        BlendF32 => l.build(32, |n| get(if i >> n & 1 != 0 { &b } else { &a }, 32, n)),
        BlendF64 => l.build(64, |n| get(if i >> n & 1 != 0 { &b } else { &a }, 64, n)),
        InsertF32 => l.build(32, |n| match n {
            _ if i >> n & 1 != 0 => 0,
            n if n == (i >> 4 & 3) as usize => get(&b, 32, (i >> 6) as usize),
            n => get(&a, 32, n),
        }),
        AbsS8 => l.zip_signed(8, |a, _| a.abs()),
        AbsS16 => l.zip_signed(16, |a, _| a.abs()),
        AbsS32 => l.zip_signed(32, |a, _| a.abs()),
        SignS8 => l.zip_signed(8, |a, b| a * b.signum()),
        SignS16 => l.zip_signed(16, |a, b| a * b.signum()),
        SignS32 => l.zip_signed(32, |a, b| a * b.signum()),
        HAddI16 => l.pairs(16, |x, y| x + y),
        HAddI32 => l.pairs(32, |x, y| x + y),
        HAddSatS16 => l.pairs(16, |x, y| saturate_signed(16, x + y)),
        HSubI16 => l.pairs(16, |x, y| x - y),
        HSubI32 => l.pairs(32, |x, y| x - y),
        HSubSatS16 => l.pairs(16, |x, y| saturate_signed(16, x - y)),
        ExtendS8To16 => l.build(16, |n| signed(&a, 8, n) as u64),
        ExtendS8To32 => l.build(32, |n| signed(&a, 8, n) as u64),
        ExtendS8To64 => l.build(64, |n| signed(&a, 8, n) as u64),
        ExtendS16To32 => l.build(32, |n| signed(&a, 16, n) as u64),
        ExtendS16To64 => l.build(64, |n| signed(&a, 16, n) as u64),
        ExtendS32To64 => l.build(64, |n| signed(&a, 32, n) as u64),
        ExtendU8To16 => l.build(16, |n| get(&a, 8, n)),
        ExtendU8To32 => l.build(32, |n| get(&a, 8, n)),
        ExtendU8To64 => l.build(64, |n| get(&a, 8, n)),
        ExtendU16To32 => l.build(32, |n| get(&a, 16, n)),
        ExtendU16To64 => l.build(64, |n| get(&a, 16, n)),
        ExtendU32To64 => l.build(64, |n| get(&a, 32, n)),
        LowI64 => [a[0], 0, 0, 0],
        ExtractI128 if i & 1 == 0 => [a[0], a[1], 0, 0],
        ExtractI128 => [a[2], a[3], 0, 0],
        InsertI128 if i & 1 == 0 => [b[0], b[1], a[2], a[3]],
        InsertI128 => [a[0], a[1], b[0], b[1]],
        LowI128 => [a[0], a[1], 0, 0],
        MoveI32 => l.lane0(32, get(&b, 32, 0)),
        MoveI64 => l.lane0(64, b[0]),
        MoveHighLow => [b[1], a[1], 0, 0],
        BroadcastI8 => l.build(8, |_| get(&a, 8, 0)),
        BroadcastI16 => l.build(16, |_| get(&a, 16, 0)),
        BroadcastI32 => l.build(32, |_| get(&a, 32, 0)),
        BroadcastI64 => l.build(64, |_| a[0]),
        PermuteI128 => l.build(64, |n| {
            let control = i >> (4 * (n / 2));
            let from = if control & 2 != 0 { &b } else { &a };
            if control & 8 != 0 { 0 } else { from[2 * (control & 1) as usize + n % 2] }
        }),
        PermuteI32 => l.build(32, |n| get(&b, 32, get(&a, 32, n) as usize & 7)),
        PermuteI64 => l.build(64, |n| a[i as usize >> (2 * n) & 3]),
        ShuffleVarI32 => l.build(32, |n| get(&a, 32, (n & !3) + (get(&b, 32, n) as usize & 3))),
        ShuffleVarI64 => l.build(64, |n| a[(n & !1) + (b[n] as usize >> 1 & 1)]),
        DupEvenI64 => l.build(64, |n| a[n & !1]),
        DupEvenI32 => l.build(32, |n| get(&a, 32, n & !1)),
        DupOddI32 => l.build(32, |n| get(&a, 32, n | 1)),
        AddF32 | AddF64 | SubF32 | SubF64 | MulF32 | MulF64 | DivF32 | DivF64 | MinF32 | MinF64 | MaxF32
        | MaxF64 | AddScalarF32 | AddScalarF64 | SubScalarF32 | SubScalarF64 | MulScalarF32
        | MulScalarF64 | DivScalarF32 | DivScalarF64 | MinScalarF32 | MinScalarF64 | MaxScalarF32
        | MaxScalarF64 => {
            let (f, scalar, arith) = arithmetic(op);
            if scalar {
                l.lane0(f.bits(), float::arith(arith, f, a[0], b[0], control))
            } else {
                l.build(f.bits(), |n| {
                    float::arith(arith, f, get(&a, f.bits(), n), get(&b, f.bits(), n), control)
                })
            }
        }
        SqrtF32 => l.build(32, |n| float::sqrt(F32, get(&a, 32, n), control)),
        SqrtF64 => l.build(64, |n| float::sqrt(F64, a[n], control)),
        SqrtScalarF32 => l.lane0(32, float::sqrt(F32, b[0], control)),
        SqrtScalarF64 => l.lane0(64, float::sqrt(F64, b[0], control)),
        RcpF32 => l.build(32, |n| float::reciprocal(get(&a, 32, n))),
        RcpScalarF32 => l.lane0(32, float::reciprocal(b[0])),
        RsqrtF32 => l.build(32, |n| float::reciprocal_sqrt(get(&a, 32, n))),
        RsqrtScalarF32 => l.lane0(32, float::reciprocal_sqrt(b[0])),
        CmpF32 => l.build(32, |n| mask(float::predicate(F32, get(&a, 32, n), get(&b, 32, n), imm, control))),
        CmpF64 => l.build(64, |n| mask(float::predicate(F64, a[n], b[n], imm, control))),
        CmpScalarF32 => l.lane0(32, mask(float::predicate(F32, a[0], b[0], imm, control))),
        CmpScalarF64 => l.lane0(64, mask(float::predicate(F64, a[0], b[0], imm, control))),
        RoundF32 => l.build(32, |n| float::round(F32, get(&a, 32, n), imm, control)),
        RoundF64 => l.build(64, |n| float::round(F64, a[n], imm, control)),
        RoundScalarF32 => l.lane0(32, float::round(F32, b[0], imm, control)),
        RoundScalarF64 => l.lane0(64, float::round(F64, b[0], imm, control)),
        DotF32 => l.dot(F32, i, control),
        DotF64 => l.dot(F64, i, control),
        HAddF32 => l.float_pairs(F32, float::Arith::Add, control),
        HAddF64 => l.float_pairs(F64, float::Arith::Add, control),
        HSubF32 => l.float_pairs(F32, float::Arith::Sub, control),
        HSubF64 => l.float_pairs(F64, float::Arith::Sub, control),
        AddSubF32 => l.add_sub(F32, control),
        AddSubF64 => l.add_sub(F64, control),
        CvtI32F32 => l.build(32, |n| float::from_int(F32, signed(&a, 32, n), control)),
        CvtI32F64 => l.build(64, |n| float::from_int(F64, signed(&a, 32, n), control)),
        CvtF32I32 => l.build(32, |n| float::to_int(F32, 32, get(&a, 32, n), Rounding::Control, control)),
        CvtTruncF32I32 => {
            l.build(32, |n| float::to_int(F32, 32, get(&a, 32, n), Rounding::Truncate, control))
        }
        CvtF64I32 => l.narrow(64, |n| float::to_int(F64, 32, a[n], Rounding::Control, control)),
        CvtTruncF64I32 => l.narrow(64, |n| float::to_int(F64, 32, a[n], Rounding::Truncate, control)),
        CvtF32F64 => l.build(64, |n| float::widen(get(&a, 32, n), control)),
        CvtF64F32 => l.narrow(64, |n| float::narrow(a[n], control)),
        CvtF16F32 => l.build(32, |n| float::from_half(get(&a, 16, n), control)),
        CvtF32F16 => l.narrow(32, |n| float::to_half(get(&a, 32, n), imm, control)),
        CvtScalarF32F64 => l.lane0(64, float::widen(b[0], control)),
        CvtScalarF64F32 => l.lane0(32, float::narrow(b[0], control)),
        AesEnc => l.halves(aes::encrypt),
        AesEncLast => l.halves(aes::encrypt_last),
        AesDec => l.halves(aes::decrypt),
        AesDecLast => l.halves(aes::decrypt_last),
        AesInvMix => l.halves(|a, _| aes::inverse_mix(a)),
        AesKeygen => l.halves(|a, _| aes::keygen(a, imm)),
        ClmulI64 => l.halves(|a, b| {
            let (x, y) = (a >> (64 * (i & 1)) & u64::MAX as u128, b >> (64 * (i >> 4 & 1)));
            (0..64).filter(|k| y >> k & 1 != 0).fold(0, |r, k| r ^ x << k)
        }),
        GfMulI8 => l.zip(8, |a, b| gf::multiply(a as u8, b as u8) as u64),
        GfAffineI8 => l.build(8, |n| gf::affine(get(&a, 8, n) as u8, b[n / 8], imm) as u64),
        GfAffineInvI8 => l.build(8, |n| gf::affine(gf::inverse(get(&a, 8, n) as u8), b[n / 8], imm) as u64),
        Sha1NextE => l.words(sha::sha1_next_e),
        Sha1Msg1 => l.words(sha::sha1_msg1),
        Sha1Msg2 => l.words(sha::sha1_msg2),
        Sha1Rounds4 => l.words(|a, b| sha::sha1_rounds4(a, b, imm)),
        Sha256Msg1 => l.words(sha::sha256_msg1),
        Sha256Msg2 => l.words(sha::sha256_msg2),
    }
}

/// `op a, b, imm` with an integer `b`.
pub fn compute_ins(op: VecInsOp, a: Word4, b: u64, imm: u8, control: &mut u32) -> Word4 {
    use VecInsOp::*;
    let l = Lanes { len: VecLen::V128, a, b: [0; 4] };
    let insert = |bits: usize| {
        let at = imm as usize % (128 / bits);
        l.build(bits, |n| if n == at { b } else { get(&a, bits, n) })
    };
    match op {
        InsertI8 => insert(8),
        InsertI16 => insert(16),
        InsertI32 => insert(32),
        InsertI64 => insert(64),
        CvtI32F32 => l.lane0(32, float::from_int(F32, b as i32 as i64, control)),
        CvtI64F32 => l.lane0(32, float::from_int(F32, b as i64, control)),
        CvtI32F64 => l.lane0(64, float::from_int(F64, b as i32 as i64, control)),
        CvtI64F64 => l.lane0(64, float::from_int(F64, b as i64, control)),
    }
}

/// `op a, b, imm` with an integer result.
pub fn compute_test(op: VecTestOp, len: VecLen, a: Word4, b: Word4, imm: u8, control: &mut u32) -> u64 {
    use VecTestOp::*;
    let top_bits = |bits| sign_bits(&a, len, bits);
    let extract = |bits| get(&a, bits, imm as usize % (128 / bits));
    match op {
        MaskI8 => top_bits(8),
        MaskF32 => top_bits(32),
        MaskF64 => top_bits(64),
        ExtractI8 => extract(8),
        ExtractI16 => extract(16),
        ExtractI32 => extract(32),
        ExtractI64 => extract(64),
        TestBits => {
            let zero = (0..lanes(len, 64)).all(|n| a[n] & b[n] == 0);
            let covered = (0..lanes(len, 64)).all(|n| !a[n] & b[n] == 0);
            (if zero { flags::Z } else { 0 } | if covered { flags::C } else { 0 }) as u64
        }
        TestSignsI32 | TestSignsI64 => {
            let bits = if op == TestSignsI32 { 32 } else { 64 };
            let (of_a, of_b) = (top_bits(bits), sign_bits(&b, len, bits));
            let flag = |f: u32, set: bool| if set { f } else { 0 };
            (flag(flags::Z, of_a & of_b == 0) | flag(flags::C, !of_a & of_b == 0)) as u64
        }
        CompareF32 => float::compare(F32, a[0], b[0], true, control).packed_flags(),
        CompareF64 => float::compare(F64, a[0], b[0], true, control).packed_flags(),
        CompareQuietF32 => float::compare(F32, a[0], b[0], false, control).packed_flags(),
        CompareQuietF64 => float::compare(F64, a[0], b[0], false, control).packed_flags(),
        CvtF32I32 => float::to_int(F32, 32, a[0], Rounding::Control, control),
        CvtF32I64 => float::to_int(F32, 64, a[0], Rounding::Control, control),
        CvtTruncF32I32 => float::to_int(F32, 32, a[0], Rounding::Truncate, control),
        CvtTruncF32I64 => float::to_int(F32, 64, a[0], Rounding::Truncate, control),
        CvtF64I32 => float::to_int(F64, 32, a[0], Rounding::Control, control),
        CvtF64I64 => float::to_int(F64, 64, a[0], Rounding::Control, control),
        CvtTruncF64I32 => float::to_int(F64, 32, a[0], Rounding::Truncate, control),
        CvtTruncF64I64 => float::to_int(F64, 64, a[0], Rounding::Truncate, control),
    }
}

/// Format of the lanes, whether scalar, and operation of the twenty-four two-operand arithmetic rows.
fn arithmetic(op: VecOp) -> (Format, bool, float::Arith) {
    use VecOp::*;
    use float::Arith::*;
    match op {
        AddF32 => (F32, false, Add),
        AddF64 => (F64, false, Add),
        AddScalarF32 => (F32, true, Add),
        AddScalarF64 => (F64, true, Add),
        SubF32 => (F32, false, Sub),
        SubF64 => (F64, false, Sub),
        SubScalarF32 => (F32, true, Sub),
        SubScalarF64 => (F64, true, Sub),
        MulF32 => (F32, false, Mul),
        MulF64 => (F64, false, Mul),
        MulScalarF32 => (F32, true, Mul),
        MulScalarF64 => (F64, true, Mul),
        DivF32 => (F32, false, Div),
        DivF64 => (F64, false, Div),
        DivScalarF32 => (F32, true, Div),
        DivScalarF64 => (F64, true, Div),
        MinF32 => (F32, false, Min),
        MinF64 => (F64, false, Min),
        MinScalarF32 => (F32, true, Min),
        MinScalarF64 => (F64, true, Min),
        MaxF32 => (F32, false, Max),
        MaxF64 => (F64, false, Max),
        MaxScalarF32 => (F32, true, Max),
        MaxScalarF64 => (F64, true, Max),
        _ => unreachable!("{op:?} is not one of the arithmetic rows"),
    }
}

/// The top bits of the lanes of `bits` bits.
fn sign_bits(v: &Word4, len: VecLen, bits: usize) -> u64 {
    (0..lanes(len, bits)).fold(0, |r, n| r | ((signed(v, bits, n) < 0) as u64) << n)
}

/// Number of lanes of `bits` bits.
fn lanes(len: VecLen, bits: usize) -> usize {
    match len {
        VecLen::V128 => 128 / bits,
        VecLen::V256 => 256 / bits,
    }
}

/// Lane `n` of `bits` bits, zero-extended.
fn get(v: &Word4, bits: usize, n: usize) -> u64 {
    let at = n * bits;
    v[at / 64] >> (at % 64) & u64::MAX >> (64 - bits)
}

/// Lane `n` of `bits` bits, sign-extended.
fn signed(v: &Word4, bits: usize, n: usize) -> i64 {
    let up = 64 - bits;
    (get(v, bits, n) << up) as i64 >> up
}

/// The low 128 bits as lanes of 32.
fn words(v: &Word4) -> [u32; 4] {
    std::array::from_fn(|n| get(v, 32, n) as u32)
}

fn from_words(v: [u32; 4]) -> Word4 {
    [v[0] as u64 | (v[1] as u64) << 32, v[2] as u64 | (v[3] as u64) << 32, 0, 0]
}

fn mask(set: bool) -> u64 {
    if set { u64::MAX } else { 0 }
}

fn saturate_signed(bits: u32, v: i64) -> i64 {
    let max = (1i64 << (bits - 1)) - 1;
    v.clamp(-max - 1, max)
}

fn saturate_unsigned(bits: u32, v: i64) -> i64 {
    v.clamp(0, (1i64 << bits) - 1)
}

#[derive(Clone, Copy)]
enum Shift {
    Left,
    Logical,
    Arithmetic,
}

/// An operation's operands and length.
struct Lanes {
    len: VecLen,
    a: Word4,
    b: Word4,
}

impl Lanes {
    /// Each lane `n` from `f(n)`'s low bits.
    fn build(&self, bits: usize, mut f: impl FnMut(usize) -> u64) -> Word4 {
        let mut r = [0; 4];
        for n in 0..lanes(self.len, bits) {
            let at = n * bits;
            r[at / 64] |= (f(n) & u64::MAX >> (64 - bits)) << (at % 64);
        }
        r
    }

    fn zip(&self, bits: usize, f: impl Fn(u64, u64) -> u64) -> Word4 {
        self.build(bits, |n| f(get(&self.a, bits, n), get(&self.b, bits, n)))
    }

    fn zip_signed(&self, bits: usize, f: impl Fn(i64, i64) -> i64) -> Word4 {
        self.build(bits, |n| f(signed(&self.a, bits, n), signed(&self.b, bits, n)) as u64)
    }

    /// Zero-extended lanes as signed numbers, so that differences can be negative.
    fn zip_signed_of_unsigned(&self, bits: usize, f: impl Fn(i64, i64) -> i64) -> Word4 {
        self.zip(bits, |a, b| f(a as i64, b as i64) as u64)
    }

    /// `v` in lane 0, the others from `a`.
    fn lane0(&self, bits: usize, v: u64) -> Word4 {
        self.build(bits, |n| if n == 0 { v } else { get(&self.a, bits, n) })
    }

    /// Each 128 bits as a number.
    fn halves(&self, f: impl Fn(u128, u128) -> u128) -> Word4 {
        let half = |v: &Word4, n: usize| v[2 * n] as u128 | (v[2 * n + 1] as u128) << 64;
        let mut r = [0; 4];
        for n in 0..lanes(self.len, 128) {
            let v = f(half(&self.a, n), half(&self.b, n));
            (r[2 * n], r[2 * n + 1]) = (v as u64, (v >> 64) as u64);
        }
        r
    }

    /// Lanes of `bits` bits to lanes of half as many in the low half.
    fn narrow(&self, bits: usize, mut f: impl FnMut(usize) -> u64) -> Word4 {
        let mut r = [0; 4];
        for n in 0..lanes(self.len, bits) {
            let at = n * bits / 2;
            r[at / 64] |= (f(n) & u64::MAX >> (64 - bits / 2)) << (at % 64);
        }
        r
    }

    /// Four lanes of 32 bits each, in 128 bits.
    fn words(&self, f: impl Fn([u32; 4], [u32; 4]) -> [u32; 4]) -> Word4 {
        from_words(f(words(&self.a), words(&self.b)))
    }

    /// Lanes of `a`, then of `b`, halved in size.
    fn pack(&self, bits: usize, f: impl Fn(i64) -> i64) -> Word4 {
        let per = 128 / bits;
        self.build(bits / 2, |n| {
            let (half, k) = (n / (2 * per), n % (2 * per));
            let from = if k < per { &self.a } else { &self.b };
            f(signed(from, bits, half * per + k % per)) as u64
        })
    }

    fn unpack(&self, bits: usize, high: bool) -> Word4 {
        let per = 128 / bits;
        self.build(bits, |n| {
            let (half, k) = (n / per, n % per);
            let from = if k % 2 == 0 { &self.a } else { &self.b };
            get(from, bits, half * per + k / 2 + if high { per / 2 } else { 0 })
        })
    }

    fn shift(&self, bits: usize, shift: Shift, count: u64) -> Word4 {
        self.build(bits, |n| self.shift_lane(bits, n, shift, count))
    }

    /// Each lane by its own count.
    fn shift_each(&self, bits: usize, shift: Shift) -> Word4 {
        self.build(bits, |n| self.shift_lane(bits, n, shift, get(&self.b, bits, n)))
    }

    fn shift_lane(&self, bits: usize, n: usize, shift: Shift, count: u64) -> u64 {
        let small = count.min(bits as u64 - 1) as u32;
        match shift {
            Shift::Arithmetic => (signed(&self.a, bits, n) >> small) as u64,
            _ if count >= bits as u64 => 0,
            Shift::Left => get(&self.a, bits, n) << small,
            Shift::Logical => get(&self.a, bits, n) >> small,
        }
    }

    /// Which operand and which even lane of it a horizontal operation's lane `n` takes.
    fn pair(&self, bits: usize, n: usize) -> (&Word4, usize) {
        let per = 128 / bits;
        let (half, k) = (n / per, n % per);
        let from = if k < per / 2 { &self.a } else { &self.b };
        (from, half * per + 2 * (k % (per / 2)))
    }

    fn pairs(&self, bits: usize, f: impl Fn(i64, i64) -> i64) -> Word4 {
        self.build(bits, |n| {
            let (from, k) = self.pair(bits, n);
            f(signed(from, bits, k), signed(from, bits, k + 1)) as u64
        })
    }

    fn float_pairs(&self, f: Format, op: float::Arith, control: &mut u32) -> Word4 {
        self.build(f.bits(), |n| {
            let (from, k) = self.pair(f.bits(), n);
            float::arith(op, f, get(from, f.bits(), k), get(from, f.bits(), k + 1), control)
        })
    }

    fn add_sub(&self, f: Format, control: &mut u32) -> Word4 {
        self.build(f.bits(), |n| {
            let op = if n % 2 == 0 { float::Arith::Sub } else { float::Arith::Add };
            float::arith(op, f, get(&self.a, f.bits(), n), get(&self.b, f.bits(), n), control)
        })
    }

    fn dot(&self, f: Format, imm: u32, control: &mut u32) -> Word4 {
        let bits = f.bits();
        let per = 128 / bits;
        let mut r = [0; 4];
        for half in 0..lanes(self.len, 128) {
            let mut product = |k: usize| {
                if imm >> (4 + k) & 1 == 0 {
                    return 0;
                }
                let n = half * per + k;
                float::arith(float::Arith::Mul, f, get(&self.a, bits, n), get(&self.b, bits, n), control)
            };
            let p: [u64; 4] = std::array::from_fn(|k| if k < per { product(k) } else { 0 });
            let mut add = |x, y| float::arith(float::Arith::Add, f, x, y, control);
            // Of single precision each lane adds itself to its neighbour, then the sum of the other half to its own; of
            // double precision it adds its neighbour to itself: which of two NaNs a lane gets depends on it.
            let sums: [u64; 4] = if per == 4 {
                let pairs: [u64; 4] = std::array::from_fn(|k| add(p[k ^ 1], p[k]));
                std::array::from_fn(|k| add(pairs[k], pairs[k ^ 2]))
            } else {
                std::array::from_fn(|k| if k < per { add(p[k], p[k ^ 1]) } else { 0 })
            };
            for k in (0..per).filter(|k| imm >> k & 1 != 0) {
                let at = (half * per + k) * bits;
                r[at / 64] |= sums[k] << (at % 64);
            }
        }
        r
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: VecOp, a: Word4, b: Word4) -> Word4 {
        run_imm(op, a, b, 0)
    }

    fn run_imm(op: VecOp, a: Word4, b: Word4, imm: u8) -> Word4 {
        compute(op, op.max_len(), a, b, imm, &mut DEFAULT_CONTROL.clone())
    }

    #[test]
    fn lanes_do_not_carry_into_each_other() {
        let ones = [u64::MAX; 4];
        let one = [0x0001_0001_0001_0001; 4];
        assert_eq!(run(VecOp::AddI16, ones, one), [0; 4]);
        assert_eq!(run(VecOp::AddI8, ones, one), [0xff00_ff00_ff00_ff00; 4]);
        assert_eq!(run(VecOp::AddI64, ones, one), [0x0001_0001_0001_0000; 4]);
        assert_eq!(run(VecOp::SubI32, [0; 4], one), [0xfffe_ffff_fffe_ffff; 4]);
    }

    #[test]
    fn and_not_complements_the_first_operand() {
        assert_eq!(run(VecOp::AndNot, [1; 4], [3; 4]), [2; 4]);
    }

    #[test]
    fn scalars_keep_the_other_lanes_of_the_first_operand() {
        let one = 1f64.to_bits();
        assert_eq!(run(VecOp::AddScalarF64, [one, 7, 8, 9], [one, 1, 2, 3]), [2f64.to_bits(), 7, 0, 0]);
        assert_eq!(run(VecOp::MoveHighLow, [1, 2, 3, 4], [5, 6, 7, 8]), [6, 2, 0, 0]);
    }

    #[test]
    fn halves_are_independent() {
        let a = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 1, 2];
        let aligned = run_imm(VecOp::AlignBytes, a, [0, 0xff00, 3, 4], 9);
        assert_eq!(aligned[..2], [0xff, a[0] >> 8 | a[1] << 56]);
        assert_eq!(aligned[2..], [0x0100_0000_0000_0000, 2 << 56]);
        assert_eq!(run_imm(VecOp::ShlBytes, a, a, 8), [0, a[0], 0, 1]);
    }
}
