//! Vector operations on three vectors; the general rules are those of the [other tables](super::vec).
//!
//! The multiply-add operations round once. Of several NaN operands, `a`'s wins over `b`'s, and that over `c`'s; infinity
//! times zero is invalid unless `c` is a quiet NaN. The negation is of the exact product, not of a NaN. The
//! scalar ones exist three times because either operand may lend the other lanes.

use super::types::VecLen;
use super::vec::vec_table;

vec_table! {
    /// Three vectors to a vector; see [`Inst::Vec3`](super::Inst::Vec3).
    Vec3Op;
    /// 8-bit lanes of `b` where the top bit of `c`'s lane is set, else of `a`.
    SelectI8 "select.i8" 3 false V256;
    /// 32-bit lanes of `b` where the top bit of `c`'s lane is set, else of `a`.
    SelectI32 "select.i32" 3 false V256;
    /// 64-bit lanes of `b` where the top bit of `c`'s lane is set, else of `a`.
    SelectI64 "select.i64" 3 false V256;
    /// `a * b + c`, binary32 lanes.
    MulAddF32 "muladd.f32" 3 false V256;
    /// `a * b + c`, binary64 lanes.
    MulAddF64 "muladd.f64" 3 false V256;
    /// `a * b - c`, binary32 lanes.
    MulSubF32 "mulsub.f32" 3 false V256;
    /// `a * b - c`, binary64 lanes.
    MulSubF64 "mulsub.f64" 3 false V256;
    /// `-(a * b) + c`, binary32 lanes.
    NegMulAddF32 "negmuladd.f32" 3 false V256;
    /// `-(a * b) + c`, binary64 lanes.
    NegMulAddF64 "negmuladd.f64" 3 false V256;
    /// `-(a * b) - c`, binary32 lanes.
    NegMulSubF32 "negmulsub.f32" 3 false V256;
    /// `-(a * b) - c`, binary64 lanes.
    NegMulSubF64 "negmulsub.f64" 3 false V256;
    /// `a * b - c` in even, `a * b + c` in odd binary32 lanes.
    MulAddSubF32 "muladdsub.f32" 3 false V256;
    /// `a * b - c` in even, `a * b + c` in odd binary64 lanes.
    MulAddSubF64 "muladdsub.f64" 3 false V256;
    /// `a * b + c` in even, `a * b - c` in odd binary32 lanes.
    MulSubAddF32 "mulsubadd.f32" 3 false V256;
    /// `a * b + c` in even, `a * b - c` in odd binary64 lanes.
    MulSubAddF64 "mulsubadd.f64" 3 false V256;
    /// `a * b + c` in lane 0, binary32; the others from `a`.
    MulAddScalarAF32 "muladd.sf32.a" 3 false V128;
    /// `a * b + c` in lane 0, binary32; the others from `b`.
    MulAddScalarBF32 "muladd.sf32.b" 3 false V128;
    /// `a * b + c` in lane 0, binary32; the others from `c`.
    MulAddScalarCF32 "muladd.sf32.c" 3 false V128;
    /// `a * b + c` in lane 0, binary64; the others from `a`.
    MulAddScalarAF64 "muladd.sf64.a" 3 false V128;
    /// `a * b + c` in lane 0, binary64; the others from `b`.
    MulAddScalarBF64 "muladd.sf64.b" 3 false V128;
    /// `a * b + c` in lane 0, binary64; the others from `c`.
    MulAddScalarCF64 "muladd.sf64.c" 3 false V128;
    /// `a * b - c` in lane 0, binary32; the others from `a`.
    MulSubScalarAF32 "mulsub.sf32.a" 3 false V128;
    /// `a * b - c` in lane 0, binary32; the others from `b`.
    MulSubScalarBF32 "mulsub.sf32.b" 3 false V128;
    /// `a * b - c` in lane 0, binary32; the others from `c`.
    MulSubScalarCF32 "mulsub.sf32.c" 3 false V128;
    /// `a * b - c` in lane 0, binary64; the others from `a`.
    MulSubScalarAF64 "mulsub.sf64.a" 3 false V128;
    /// `a * b - c` in lane 0, binary64; the others from `b`.
    MulSubScalarBF64 "mulsub.sf64.b" 3 false V128;
    /// `a * b - c` in lane 0, binary64; the others from `c`.
    MulSubScalarCF64 "mulsub.sf64.c" 3 false V128;
    /// `-(a * b) + c` in lane 0, binary32; the others from `a`.
    NegMulAddScalarAF32 "negmuladd.sf32.a" 3 false V128;
    /// `-(a * b) + c` in lane 0, binary32; the others from `b`.
    NegMulAddScalarBF32 "negmuladd.sf32.b" 3 false V128;
    /// `-(a * b) + c` in lane 0, binary32; the others from `c`.
    NegMulAddScalarCF32 "negmuladd.sf32.c" 3 false V128;
    /// `-(a * b) + c` in lane 0, binary64; the others from `a`.
    NegMulAddScalarAF64 "negmuladd.sf64.a" 3 false V128;
    /// `-(a * b) + c` in lane 0, binary64; the others from `b`.
    NegMulAddScalarBF64 "negmuladd.sf64.b" 3 false V128;
    /// `-(a * b) + c` in lane 0, binary64; the others from `c`.
    NegMulAddScalarCF64 "negmuladd.sf64.c" 3 false V128;
    /// `-(a * b) - c` in lane 0, binary32; the others from `a`.
    NegMulSubScalarAF32 "negmulsub.sf32.a" 3 false V128;
    /// `-(a * b) - c` in lane 0, binary32; the others from `b`.
    NegMulSubScalarBF32 "negmulsub.sf32.b" 3 false V128;
    /// `-(a * b) - c` in lane 0, binary32; the others from `c`.
    NegMulSubScalarCF32 "negmulsub.sf32.c" 3 false V128;
    /// `-(a * b) - c` in lane 0, binary64; the others from `a`.
    NegMulSubScalarAF64 "negmulsub.sf64.a" 3 false V128;
    /// `-(a * b) - c` in lane 0, binary64; the others from `b`.
    NegMulSubScalarBF64 "negmulsub.sf64.b" 3 false V128;
    /// `-(a * b) - c` in lane 0, binary64; the others from `c`.
    NegMulSubScalarCF64 "negmulsub.sf64.c" 3 false V128;
    /// 32-bit lanes of `c` plus four products of `a`'s unsigned and `b`'s signed 8-bit lanes, wrapping.
    DotAddU8S8 "dotadd.u8s8" 3 false V256;
    /// As `DotAddU8S8`, the sum saturated.
    DotAddSatU8S8 "dotaddsat.u8s8" 3 false V256;
    /// 32-bit lanes of `c` plus two products of signed 16-bit lanes of `a` and `b`, wrapping.
    DotAddS16 "dotadd.s16" 3 false V256;
    /// As `DotAddS16`, the sum saturated.
    DotAddSatS16 "dotaddsat.s16" 3 false V256;
    /// SHA-256 (FIPS 180-4): two rounds on the state C, D, G, H in `a`'s 32-bit lanes 3 to 0 and A, B, E, F in `b`'s, with
    /// the sums of message word and constant in `c`'s lanes 0 and 1. The new A, B, E, F.
    Sha256Rounds2 "sha256rounds2" 3 false V128;
}
