//! Operations on three vectors.

use super::float::{self, Addend, Format};
use super::{F32, F64, Lanes, from_words, get, lanes, saturate_signed, sha, signed, words};
use crate::interp::Word4;
use crate::ir::{Vec3Op, VecLen};

/// `op a, b, c`; `control` as for [`compute`](super::compute).
pub fn compute3(op: Vec3Op, len: VecLen, a: Word4, b: Word4, c: Word4, control: &mut u32) -> Word4 {
    use Addend::{Add, Sub};
    use Vec3Op::*;
    let l = Lanes { len, a, b };
    let select = |bits: usize| l.build(bits, |n| get(if signed(&c, bits, n) < 0 { &b } else { &a }, bits, n));
    let mut lane = |f: Format, n: usize, negate: bool, addend: Addend| {
        let get = |v| get(v, f.bits(), n);
        float::mul_add(f, get(&a), get(&b), get(&c), negate, addend, control)
    };
    // The addend's sign in even and odd lanes.
    let mut packed = |f: Format, negate: bool, addend: [Addend; 2]| {
        l.build(f.bits(), |n| lane(f, n, negate, addend[n % 2]))
    };
    match op {
        SelectI8 => select(8),
        SelectI32 => select(32),
        SelectI64 => select(64),
        MulAddF32 => packed(F32, false, [Add; 2]),
        MulAddF64 => packed(F64, false, [Add; 2]),
        MulSubF32 => packed(F32, false, [Sub; 2]),
        MulSubF64 => packed(F64, false, [Sub; 2]),
        NegMulAddF32 => packed(F32, true, [Add; 2]),
        NegMulAddF64 => packed(F64, true, [Add; 2]),
        NegMulSubF32 => packed(F32, true, [Sub; 2]),
        NegMulSubF64 => packed(F64, true, [Sub; 2]),
        MulAddSubF32 => packed(F32, false, [Sub, Add]),
        MulAddSubF64 => packed(F64, false, [Sub, Add]),
        MulSubAddF32 => packed(F32, false, [Add, Sub]),
        MulSubAddF64 => packed(F64, false, [Add, Sub]),
        DotAddU8S8 => dot_add(len, 8, &a, &b, &c, false),
        DotAddSatU8S8 => dot_add(len, 8, &a, &b, &c, true),
        DotAddS16 => dot_add(len, 16, &a, &b, &c, false),
        DotAddSatS16 => dot_add(len, 16, &a, &b, &c, true),
        Sha256Rounds2 => from_words(sha::sha256_rounds2(words(&a), words(&b), words(&c))),
        _ => {
            let mut scalar = |f: Format, negate: bool, addend: Addend, others: &Word4| {
                let r = lane(f, 0, negate, addend);
                Lanes { len: VecLen::V128, a: *others, b }.lane0(f.bits(), r)
            };
            match op {
                MulAddScalarAF32 => scalar(F32, false, Add, &a),
                MulAddScalarBF32 => scalar(F32, false, Add, &b),
                MulAddScalarCF32 => scalar(F32, false, Add, &c),
                MulAddScalarAF64 => scalar(F64, false, Add, &a),
                MulAddScalarBF64 => scalar(F64, false, Add, &b),
                MulAddScalarCF64 => scalar(F64, false, Add, &c),
                MulSubScalarAF32 => scalar(F32, false, Sub, &a),
                MulSubScalarBF32 => scalar(F32, false, Sub, &b),
                MulSubScalarCF32 => scalar(F32, false, Sub, &c),
                MulSubScalarAF64 => scalar(F64, false, Sub, &a),
                MulSubScalarBF64 => scalar(F64, false, Sub, &b),
                MulSubScalarCF64 => scalar(F64, false, Sub, &c),
                NegMulAddScalarAF32 => scalar(F32, true, Add, &a),
                NegMulAddScalarBF32 => scalar(F32, true, Add, &b),
                NegMulAddScalarCF32 => scalar(F32, true, Add, &c),
                NegMulAddScalarAF64 => scalar(F64, true, Add, &a),
                NegMulAddScalarBF64 => scalar(F64, true, Add, &b),
                NegMulAddScalarCF64 => scalar(F64, true, Add, &c),
                NegMulSubScalarAF32 => scalar(F32, true, Sub, &a),
                NegMulSubScalarBF32 => scalar(F32, true, Sub, &b),
                NegMulSubScalarCF32 => scalar(F32, true, Sub, &c),
                NegMulSubScalarAF64 => scalar(F64, true, Sub, &a),
                NegMulSubScalarBF64 => scalar(F64, true, Sub, &b),
                NegMulSubScalarCF64 => scalar(F64, true, Sub, &c),
                _ => unreachable!("{op:?} is not scalar"),
            }
        }
    }
}

/// 32-bit lanes of `c` plus the products of the lanes of `bits` bits within; those of `a` are unsigned if they are bytes.
fn dot_add(len: VecLen, bits: usize, a: &Word4, b: &Word4, c: &Word4, saturate: bool) -> Word4 {
    let per = 32 / bits;
    debug_assert!(lanes(len, 32) <= 8);
    Lanes { len, a: *a, b: *b }.build(32, |n| {
        let product = |k: usize| {
            let x = if bits == 8 { get(a, bits, k) as i64 } else { signed(a, bits, k) };
            x * signed(b, bits, k)
        };
        let sum = signed(c, 32, n) + (per * n..per * (n + 1)).map(product).sum::<i64>();
        (if saturate { saturate_signed(32, sum) } else { sum }) as u64
    })
}
