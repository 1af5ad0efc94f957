//! Vector operations.
//!
//! One row an operation: its name, its text, how many operands it reads, whether it has an immediate, the longest
//! [`VecLen`] it exists in, and its meaning. Operations work on 128 or 256 bits (a few on 256 only); a 128-bit operation reads the low
//! halves and zeroes the high half of its result. *Scalar* operations compute
//! lane 0 and take the other lanes of the low 128 bits from `a`; they exist in 128 bits only. "Within each 128 bits"
//! means that the operation on 256 bits is two independent operations on 128.
//!
//! Four tables, by the types of operands and result: [`VecOp`] (vectors to a vector), [`Vec3Op`](super::Vec3Op) (three
//! vectors to a vector), [`VecInsOp`] (a vector and an integer to a vector), [`VecTestOp`] (vectors to an integer).
//!
//! Floating-point operations follow IEEE 754 with the guest's rounding mode and flush controls in the host's control
//! register, accumulate its sticky flags, and choose NaN results as SSE does (the first operand's quieted NaN, else
//! the second's, else the default NaN). A back end for a host with other rules makes them by other means.
//!
//! A host may lack some operations: [`HostVec`](crate::backend::HostVec) says which, and a front end does not make those.
//!
//! To add one: a row here, a row in each backend's encoding table, an arm in the interpreter.

use super::types::{VecLen, Width};

macro_rules! vec_table {
    (
        $(#[doc = $enum_doc:literal])+ $enum:ident;
        $($(#[doc = $doc:literal])+ $name:ident $text:literal $operands:literal $imm:literal $len:ident;)*
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $enum {
            $($(#[doc = $doc])+ $name,)*
        }

        impl $enum {
            /// Every operation, in table order.
            pub const ALL: &'static [$enum] = &[$($enum::$name),*];

            /// Name in the text form.
            pub const fn text(self) -> &'static str {
                match self { $($enum::$name => $text),* }
            }

            /// The operation with this name in the text form.
            pub fn from_text(text: &str) -> Option<$enum> {
                match text { $($text => Some($enum::$name),)* _ => None }
            }

            /// How many operands it reads, in the order `a`, `b`, `c`.
            pub fn operands(self) -> u32 {
                match self { $($enum::$name => $operands),* }
            }

            /// Whether its immediate matters.
            pub fn has_imm(self) -> bool {
                match self { $($enum::$name => $imm),* }
            }

            /// The longest length it exists in.
            pub fn max_len(self) -> VecLen {
                match self { $($enum::$name => VecLen::$len),* }
            }
        }
    };
}
pub(super) use vec_table;

/// Byte offsets of the lanes of `width` (32 or 64) bits, of a vector of `len`, whose top bit in `mask` is set.
pub fn selected_lanes(width: Width, len: VecLen, mask: [u64; 4]) -> impl Iterator<Item = usize> {
    let bytes = width.bytes() as usize;
    let end = if len == VecLen::V128 { 16 } else { 32 };
    (0..end).step_by(bytes).filter(move |at| {
        let top = 8 * (at + bytes) - 1;
        mask[top / 64] >> (top % 64) & 1 != 0
    })
}

impl VecOp {
    /// The shortest length it exists in.
    pub fn min_len(self) -> VecLen {
        match self {
            VecOp::ExtractI128
            | VecOp::InsertI128
            | VecOp::PermuteI128
            | VecOp::PermuteI32
            | VecOp::PermuteI64 => VecLen::V256,
            _ => VecLen::V128,
        }
    }

    /// The lengths it exists in.
    pub fn lens(self) -> &'static [VecLen] {
        const BOTH: [VecLen; 2] = [VecLen::V128, VecLen::V256];
        match (self.min_len(), self.max_len()) {
            (VecLen::V128, VecLen::V128) => &BOTH[..1],
            (VecLen::V128, VecLen::V256) => &BOTH,
            _ => &BOTH[1..],
        }
    }
}

vec_table! {
    /// Vectors to a vector; see [`Inst::Vec`](super::Inst::Vec) and the module documentation.
    VecOp;
    /// Bitwise `a & b`.
    And "and" 2 false V256;
    /// Bitwise `!a & b`.
    AndNot "andnot" 2 false V256;
    /// Bitwise `a | b`.
    Or "or" 2 false V256;
    /// Bitwise `a ^ b`.
    Xor "xor" 2 false V256;
    /// Wrapping sum of 8-bit lanes.
    AddI8 "add.i8" 2 false V256;
    /// Wrapping sum of 16-bit lanes.
    AddI16 "add.i16" 2 false V256;
    /// Wrapping sum of 32-bit lanes.
    AddI32 "add.i32" 2 false V256;
    /// Wrapping sum of 64-bit lanes.
    AddI64 "add.i64" 2 false V256;
    /// Wrapping difference of 8-bit lanes.
    SubI8 "sub.i8" 2 false V256;
    /// Wrapping difference of 16-bit lanes.
    SubI16 "sub.i16" 2 false V256;
    /// Wrapping difference of 32-bit lanes.
    SubI32 "sub.i32" 2 false V256;
    /// Wrapping difference of 64-bit lanes.
    SubI64 "sub.i64" 2 false V256;
    /// Sum of signed 8-bit lanes, saturated.
    AddSatS8 "addsat.s8" 2 false V256;
    /// Sum of signed 16-bit lanes, saturated.
    AddSatS16 "addsat.s16" 2 false V256;
    /// Sum of unsigned 8-bit lanes, saturated.
    AddSatU8 "addsat.u8" 2 false V256;
    /// Sum of unsigned 16-bit lanes, saturated.
    AddSatU16 "addsat.u16" 2 false V256;
    /// Difference of signed 8-bit lanes, saturated.
    SubSatS8 "subsat.s8" 2 false V256;
    /// Difference of signed 16-bit lanes, saturated.
    SubSatS16 "subsat.s16" 2 false V256;
    /// Difference of unsigned 8-bit lanes, saturated.
    SubSatU8 "subsat.u8" 2 false V256;
    /// Difference of unsigned 16-bit lanes, saturated.
    SubSatU16 "subsat.u16" 2 false V256;
    /// Low half of the product of 16-bit lanes.
    MulLoI16 "mullo.i16" 2 false V256;
    /// Low half of the product of 32-bit lanes.
    MulLoI32 "mullo.i32" 2 false V256;
    /// High half of the signed product of 16-bit lanes.
    MulHiS16 "mulhi.s16" 2 false V256;
    /// High half of the unsigned product of 16-bit lanes.
    MulHiU16 "mulhi.u16" 2 false V256;
    /// Bits 30 to 15 of the signed product of 16-bit lanes, after adding bit 14.
    MulHiRoundS16 "mulhir.s16" 2 false V256;
    /// Products of the even unsigned 32-bit lanes, as 64-bit lanes.
    MulWideU32 "mulwide.u32" 2 false V256;
    /// Products of the even signed 32-bit lanes, as 64-bit lanes.
    MulWideS32 "mulwide.s32" 2 false V256;
    /// Sums of neighbouring products of signed 16-bit lanes, as wrapping 32-bit lanes.
    MulAddS16 "muladd.s16" 2 false V256;
    /// Sums of neighbouring products of `a`'s unsigned and `b`'s signed 8-bit lanes, saturated to signed 16
    /// bits.
    MulAddU8S8 "muladd.u8s8" 2 false V256;
    /// All ones in the 8-bit lanes that are equal, else zero.
    CmpEqI8 "cmpeq.i8" 2 false V256;
    /// All ones in the 16-bit lanes that are equal, else zero.
    CmpEqI16 "cmpeq.i16" 2 false V256;
    /// All ones in the 32-bit lanes that are equal, else zero.
    CmpEqI32 "cmpeq.i32" 2 false V256;
    /// All ones in the 64-bit lanes that are equal, else zero.
    CmpEqI64 "cmpeq.i64" 2 false V256;
    /// All ones in the signed 8-bit lanes where `a > b`, else zero.
    CmpGtS8 "cmpgt.s8" 2 false V256;
    /// All ones in the signed 16-bit lanes where `a > b`, else zero.
    CmpGtS16 "cmpgt.s16" 2 false V256;
    /// All ones in the signed 32-bit lanes where `a > b`, else zero.
    CmpGtS32 "cmpgt.s32" 2 false V256;
    /// All ones in the signed 64-bit lanes where `a > b`, else zero.
    CmpGtS64 "cmpgt.s64" 2 false V256;
    /// The smaller of signed 8-bit lanes.
    MinS8 "min.s8" 2 false V256;
    /// The smaller of signed 16-bit lanes.
    MinS16 "min.s16" 2 false V256;
    /// The smaller of signed 32-bit lanes.
    MinS32 "min.s32" 2 false V256;
    /// The smaller of unsigned 8-bit lanes.
    MinU8 "min.u8" 2 false V256;
    /// The smaller of unsigned 16-bit lanes.
    MinU16 "min.u16" 2 false V256;
    /// The smaller of unsigned 32-bit lanes.
    MinU32 "min.u32" 2 false V256;
    /// The larger of signed 8-bit lanes.
    MaxS8 "max.s8" 2 false V256;
    /// The larger of signed 16-bit lanes.
    MaxS16 "max.s16" 2 false V256;
    /// The larger of signed 32-bit lanes.
    MaxS32 "max.s32" 2 false V256;
    /// The larger of unsigned 8-bit lanes.
    MaxU8 "max.u8" 2 false V256;
    /// The larger of unsigned 16-bit lanes.
    MaxU16 "max.u16" 2 false V256;
    /// The larger of unsigned 32-bit lanes.
    MaxU32 "max.u32" 2 false V256;
    /// Rounded-up average of unsigned 8-bit lanes.
    AvgU8 "avg.u8" 2 false V256;
    /// Rounded-up average of unsigned 16-bit lanes.
    AvgU16 "avg.u16" 2 false V256;
    /// Sums of absolute differences of eight unsigned 8-bit lanes, as 64-bit lanes.
    SadU8 "sad.u8" 2 false V256;
    /// Eight sums of absolute differences of four bytes each: `a`'s from byte `4 * imm[2]` on, each one byte
    /// further; `b`'s four bytes from `4 * imm[1:0]` (bits 5:3 for the upper 128 bits).
    MpSadU8 "mpsad.u8" 2 true V256;
    /// Smallest unsigned 16-bit lane of `a` in bits 15:0 and its index in bits 18:16, zero above.
    MinPosU16 "minpos.u16" 1 false V128;
    /// Signed 16-bit lanes of `a` then `b` saturated to signed 8 bits (within each 128 bits).
    PackS16 "pack.s16" 2 false V256;
    /// Signed 32-bit lanes of `a` then `b` saturated to signed 16 bits (within each 128 bits).
    PackS32 "pack.s32" 2 false V256;
    /// Signed 16-bit lanes of `a` then `b` saturated to unsigned 8 bits (within each 128 bits).
    PackU16 "pack.u16" 2 false V256;
    /// Signed 32-bit lanes of `a` then `b` saturated to unsigned 16 bits (within each 128 bits).
    PackU32 "pack.u32" 2 false V256;
    /// Lanes of 8 bits of the low halves, interleaved `a` first (within each 128 bits).
    UnpackLoI8 "unpacklo.i8" 2 false V256;
    /// Lanes of 16 bits of the low halves, interleaved `a` first (within each 128 bits).
    UnpackLoI16 "unpacklo.i16" 2 false V256;
    /// Lanes of 32 bits of the low halves, interleaved `a` first (within each 128 bits).
    UnpackLoI32 "unpacklo.i32" 2 false V256;
    /// Lanes of 64 bits of the low halves, interleaved `a` first (within each 128 bits).
    UnpackLoI64 "unpacklo.i64" 2 false V256;
    /// Lanes of 8 bits of the high halves, interleaved `a` first (within each 128 bits).
    UnpackHiI8 "unpackhi.i8" 2 false V256;
    /// Lanes of 16 bits of the high halves, interleaved `a` first (within each 128 bits).
    UnpackHiI16 "unpackhi.i16" 2 false V256;
    /// Lanes of 32 bits of the high halves, interleaved `a` first (within each 128 bits).
    UnpackHiI32 "unpackhi.i32" 2 false V256;
    /// Lanes of 64 bits of the high halves, interleaved `a` first (within each 128 bits).
    UnpackHiI64 "unpackhi.i64" 2 false V256;
    /// Lanes of 16 bits shifted left by the low 64 bits of `b`; zero from 16 on.
    ShlI16 "shl.i16" 2 false V256;
    /// Lanes of 32 bits shifted left by the low 64 bits of `b`; zero from 32 on.
    ShlI32 "shl.i32" 2 false V256;
    /// Lanes of 64 bits shifted left by the low 64 bits of `b`; zero from 64 on.
    ShlI64 "shl.i64" 2 false V256;
    /// Lanes of 16 bits shifted right by the low 64 bits of `b`; zero from 16 on.
    ShrI16 "shr.i16" 2 false V256;
    /// Lanes of 32 bits shifted right by the low 64 bits of `b`; zero from 32 on.
    ShrI32 "shr.i32" 2 false V256;
    /// Lanes of 64 bits shifted right by the low 64 bits of `b`; zero from 64 on.
    ShrI64 "shr.i64" 2 false V256;
    /// Signed lanes of 16 bits shifted right by the low 64 bits of `b`, at most 15.
    SarI16 "sar.i16" 2 false V256;
    /// Signed lanes of 32 bits shifted right by the low 64 bits of `b`, at most 31.
    SarI32 "sar.i32" 2 false V256;
    /// Lanes of 32 bits shifted left by `b`'s lanes; zero from 32 on.
    ShlVarI32 "shlvar.i32" 2 false V256;
    /// Lanes of 64 bits shifted left by `b`'s lanes; zero from 64 on.
    ShlVarI64 "shlvar.i64" 2 false V256;
    /// Lanes of 32 bits shifted right by `b`'s lanes; zero from 32 on.
    ShrVarI32 "shrvar.i32" 2 false V256;
    /// Lanes of 64 bits shifted right by `b`'s lanes; zero from 64 on.
    ShrVarI64 "shrvar.i64" 2 false V256;
    /// Signed lanes of 32 bits shifted right by `b`'s lanes, at most 31.
    SarVarI32 "sarvar.i32" 2 false V256;
    /// Lanes of 16 bits shifted left by `imm`; zero from 16 on.
    ShlImmI16 "shlimm.i16" 1 true V256;
    /// Lanes of 32 bits shifted left by `imm`; zero from 32 on.
    ShlImmI32 "shlimm.i32" 1 true V256;
    /// Lanes of 64 bits shifted left by `imm`; zero from 64 on.
    ShlImmI64 "shlimm.i64" 1 true V256;
    /// Lanes of 16 bits shifted right by `imm`; zero from 16 on.
    ShrImmI16 "shrimm.i16" 1 true V256;
    /// Lanes of 32 bits shifted right by `imm`; zero from 32 on.
    ShrImmI32 "shrimm.i32" 1 true V256;
    /// Lanes of 64 bits shifted right by `imm`; zero from 64 on.
    ShrImmI64 "shrimm.i64" 1 true V256;
    /// Signed lanes of 16 bits shifted right by `imm`, at most 15.
    SarImmI16 "sarimm.i16" 1 true V256;
    /// Signed lanes of 32 bits shifted right by `imm`, at most 31.
    SarImmI32 "sarimm.i32" 1 true V256;
    /// Each 128 bits shifted left by `imm` bytes; zero from 16 on.
    ShlBytes "shl.bytes" 1 true V256;
    /// Each 128 bits shifted right by `imm` bytes; zero from 16 on.
    ShrBytes "shr.bytes" 1 true V256;
    /// Bytes `imm` to `imm + 15` of the pair `a:b` (`a` high) of each 128 bits; zero beyond it.
    AlignBytes "align.bytes" 2 true V256;
    /// Four 32-bit lanes of `a`, chosen by two bits of `imm` each (within each 128 bits).
    ShuffleI32 "shuffle.i32" 1 true V256;
    /// The low four 16-bit lanes of `a`, chosen by two bits of `imm` each; the high four stay (within each 128
    /// bits).
    ShuffleLoI16 "shufflelo.i16" 1 true V256;
    /// The high four 16-bit lanes of `a`, chosen by two bits of `imm` each; the low four stay (within each 128
    /// bits).
    ShuffleHiI16 "shufflehi.i16" 1 true V256;
    /// Bytes of `a` chosen by bits 3:0 of `b`'s bytes, zero where bit 7 is set (within each 128 bits).
    ShuffleI8 "shuffle.i8" 2 false V256;
    /// Two 32-bit lanes of `a`, then two of `b`, chosen by two bits of `imm` each (within each 128 bits).
    ShuffleF32 "shuffle.f32" 2 true V256;
    /// A 64-bit lane of `a`, then one of `b`, chosen by one bit of `imm` each (the next two bits for the upper
    /// 128 bits).
    ShuffleF64 "shuffle.f64" 2 true V256;
    /// 16-bit lanes of `b` where the bit of `imm` is set (same bits for each 128 bits), else of `a`.
    BlendI16 "blend.i16" 2 true V256;
    /// 32-bit lanes of `b` where the bit of `imm` is set, else of `a`.
    BlendF32 "blend.f32" 2 true V256;
    /// 64-bit lanes of `b` where the bit of `imm` is set, else of `a`.
    BlendF64 "blend.f64" 2 true V256;
    /// `a` with 32-bit lane `imm[5:4]` replaced by `b`'s lane `imm[7:6]`, then lanes zeroed where `imm[3:0]` is
    /// set.
    InsertF32 "insert.f32" 2 true V128;
    /// Absolute values of signed 8-bit lanes.
    AbsS8 "abs.s8" 1 false V256;
    /// Absolute values of signed 16-bit lanes.
    AbsS16 "abs.s16" 1 false V256;
    /// Absolute values of signed 32-bit lanes.
    AbsS32 "abs.s32" 1 false V256;
    /// Signed 8-bit lanes of `a`, negated where `b`'s are negative, zero where they are zero.
    SignS8 "sign.s8" 2 false V256;
    /// Signed 16-bit lanes of `a`, negated where `b`'s are negative, zero where they are zero.
    SignS16 "sign.s16" 2 false V256;
    /// Signed 32-bit lanes of `a`, negated where `b`'s are negative, zero where they are zero.
    SignS32 "sign.s32" 2 false V256;
    /// Sums of neighbouring 16-bit lanes of `a`, then of `b` (within each 128 bits).
    HAddI16 "hadd.i16" 2 false V256;
    /// Sums of neighbouring 32-bit lanes of `a`, then of `b` (within each 128 bits).
    HAddI32 "hadd.i32" 2 false V256;
    /// Saturated sums of neighbouring signed 16-bit lanes of `a`, then of `b` (within each 128 bits).
    HAddSatS16 "haddsat.s16" 2 false V256;
    /// Differences (even minus odd) of neighbouring 16-bit lanes of `a`, then of `b` (within each 128 bits).
    HSubI16 "hsub.i16" 2 false V256;
    /// Differences (even minus odd) of neighbouring 32-bit lanes of `a`, then of `b` (within each 128 bits).
    HSubI32 "hsub.i32" 2 false V256;
    /// Saturated differences (even minus odd) of neighbouring signed 16-bit lanes of `a`, then of `b`.
    HSubSatS16 "hsubsat.s16" 2 false V256;
    /// Sign-extends the low 8-bit lanes of `a` to 16 bits.
    ExtendS8To16 "extend.s8.16" 1 false V256;
    /// Sign-extends the low 8-bit lanes of `a` to 32 bits.
    ExtendS8To32 "extend.s8.32" 1 false V256;
    /// Sign-extends the low 8-bit lanes of `a` to 64 bits.
    ExtendS8To64 "extend.s8.64" 1 false V256;
    /// Sign-extends the low 16-bit lanes of `a` to 32 bits.
    ExtendS16To32 "extend.s16.32" 1 false V256;
    /// Sign-extends the low 16-bit lanes of `a` to 64 bits.
    ExtendS16To64 "extend.s16.64" 1 false V256;
    /// Sign-extends the low 32-bit lanes of `a` to 64 bits.
    ExtendS32To64 "extend.s32.64" 1 false V256;
    /// Zero-extends the low 8-bit lanes of `a` to 16 bits.
    ExtendU8To16 "extend.u8.16" 1 false V256;
    /// Zero-extends the low 8-bit lanes of `a` to 32 bits.
    ExtendU8To32 "extend.u8.32" 1 false V256;
    /// Zero-extends the low 8-bit lanes of `a` to 64 bits.
    ExtendU8To64 "extend.u8.64" 1 false V256;
    /// Zero-extends the low 16-bit lanes of `a` to 32 bits.
    ExtendU16To32 "extend.u16.32" 1 false V256;
    /// Zero-extends the low 16-bit lanes of `a` to 64 bits.
    ExtendU16To64 "extend.u16.64" 1 false V256;
    /// Zero-extends the low 32-bit lanes of `a` to 64 bits.
    ExtendU32To64 "extend.u32.64" 1 false V256;
    /// The low 64 bits of `a`, zero above.
    LowI64 "low.i64" 1 false V128;
    /// Half `imm[0]` of the 256 bits of `a`, zero above. Exists in 256 bits only.
    ExtractI128 "extract.i128" 1 true V256;
    /// `a` with half `imm[0]` of its 256 bits replaced by the low half of `b`. Exists in 256 bits only.
    InsertI128 "insert.i128" 2 true V256;
    /// The low 128 bits of `a`, zero above.
    LowI128 "low.i128" 1 false V128;
    /// Lane 0 of 32 bits from `b`, the others from `a`.
    MoveI32 "move.i32" 2 false V128;
    /// Lane 0 of 64 bits from `b`, the other from `a`.
    MoveI64 "move.i64" 2 false V128;
    /// The high 64 bits of `b`, then those of `a`.
    MoveHighLow "movehl" 2 false V128;
    /// Lane 0 of 8 bits in every lane.
    BroadcastI8 "broadcast.i8" 1 false V256;
    /// Lane 0 of 16 bits in every lane.
    BroadcastI16 "broadcast.i16" 1 false V256;
    /// Lane 0 of 32 bits in every lane.
    BroadcastI32 "broadcast.i32" 1 false V256;
    /// Lane 0 of 64 bits in every lane.
    BroadcastI64 "broadcast.i64" 1 false V256;
    /// Two of the halves `a` low, `a` high, `b` low, `b` high, chosen by `imm[1:0]` and `imm[5:4]`; zero where `imm[3]` or
    /// `imm[7]` is set. 256 bits only.
    PermuteI128 "permute.i128" 2 true V256;
    /// 32-bit lanes of `b` chosen by bits 2:0 of `a`'s lanes. 256 bits only.
    PermuteI32 "permute.i32" 2 false V256;
    /// Four 64-bit lanes of `a`, chosen by two bits of `imm` each. 256 bits only.
    PermuteI64 "permute.i64" 1 true V256;
    /// 32-bit lanes of `a` chosen by bits 1:0 of `b`'s lanes (within each 128 bits).
    ShuffleVarI32 "shufflevar.i32" 2 false V256;
    /// 64-bit lanes of `a` chosen by bit 1 of `b`'s lanes (within each 128 bits).
    ShuffleVarI64 "shufflevar.i64" 2 false V256;
    /// Each even 64-bit lane twice.
    DupEvenI64 "dupeven.i64" 1 false V256;
    /// Each even 32-bit lane twice.
    DupEvenI32 "dupeven.i32" 1 false V256;
    /// Each odd 32-bit lane twice.
    DupOddI32 "dupodd.i32" 1 false V256;
    /// `a + b`, binary32 lanes.
    AddF32 "add.f32" 2 false V256;
    /// `a + b`, binary64 lanes.
    AddF64 "add.f64" 2 false V256;
    /// `a + b`, binary32, scalar.
    AddScalarF32 "add.sf32" 2 false V128;
    /// `a + b`, binary64, scalar.
    AddScalarF64 "add.sf64" 2 false V128;
    /// `a - b`, binary32 lanes.
    SubF32 "sub.f32" 2 false V256;
    /// `a - b`, binary64 lanes.
    SubF64 "sub.f64" 2 false V256;
    /// `a - b`, binary32, scalar.
    SubScalarF32 "sub.sf32" 2 false V128;
    /// `a - b`, binary64, scalar.
    SubScalarF64 "sub.sf64" 2 false V128;
    /// `a * b`, binary32 lanes.
    MulF32 "mul.f32" 2 false V256;
    /// `a * b`, binary64 lanes.
    MulF64 "mul.f64" 2 false V256;
    /// `a * b`, binary32, scalar.
    MulScalarF32 "mul.sf32" 2 false V128;
    /// `a * b`, binary64, scalar.
    MulScalarF64 "mul.sf64" 2 false V128;
    /// `a / b`, binary32 lanes.
    DivF32 "div.f32" 2 false V256;
    /// `a / b`, binary64 lanes.
    DivF64 "div.f64" 2 false V256;
    /// `a / b`, binary32, scalar.
    DivScalarF32 "div.sf32" 2 false V128;
    /// `a / b`, binary64, scalar.
    DivScalarF64 "div.sf64" 2 false V128;
    /// `a < b ? a : b`: `b` if either is a NaN or both are zero, binary32 lanes.
    MinF32 "min.f32" 2 false V256;
    /// `a < b ? a : b`: `b` if either is a NaN or both are zero, binary64 lanes.
    MinF64 "min.f64" 2 false V256;
    /// `a < b ? a : b`: `b` if either is a NaN or both are zero, binary32, scalar.
    MinScalarF32 "min.sf32" 2 false V128;
    /// `a < b ? a : b`: `b` if either is a NaN or both are zero, binary64, scalar.
    MinScalarF64 "min.sf64" 2 false V128;
    /// `a > b ? a : b`: `b` if either is a NaN or both are zero, binary32 lanes.
    MaxF32 "max.f32" 2 false V256;
    /// `a > b ? a : b`: `b` if either is a NaN or both are zero, binary64 lanes.
    MaxF64 "max.f64" 2 false V256;
    /// `a > b ? a : b`: `b` if either is a NaN or both are zero, binary32, scalar.
    MaxScalarF32 "max.sf32" 2 false V128;
    /// `a > b ? a : b`: `b` if either is a NaN or both are zero, binary64, scalar.
    MaxScalarF64 "max.sf64" 2 false V128;
    /// Square root, binary32 lanes.
    SqrtF32 "sqrt.f32" 1 false V256;
    /// Square root, binary64 lanes.
    SqrtF64 "sqrt.f64" 1 false V256;
    /// Square root of `b`'s lane 0, binary32, scalar.
    SqrtScalarF32 "sqrt.sf32" 2 false V128;
    /// Square root of `b`'s lane 0, binary64, scalar.
    SqrtScalarF64 "sqrt.sf64" 2 false V128;
    /// Approximate reciprocals, binary32 lanes: relative error at most 1.5 * 2^-12; bits beyond *unspecified*.
    /// No flags.
    RcpF32 "rcp.f32" 1 false V256;
    /// Approximate reciprocal of `b`'s lane 0, scalar; as `RcpF32`.
    RcpScalarF32 "rcp.sf32" 2 false V128;
    /// Approximate reciprocal square roots, binary32 lanes; precision as `RcpF32`. No flags.
    RsqrtF32 "rsqrt.f32" 1 false V256;
    /// Approximate reciprocal square root of `b`'s lane 0, scalar; as `RsqrtF32`.
    RsqrtScalarF32 "rsqrt.sf32" 2 false V128;
    /// All ones where predicate `imm[4:0]` (SDM volume 2, CMPPD, table 3-1) holds, else zero; binary32 lanes.
    CmpF32 "cmp.f32" 2 true V256;
    /// All ones where predicate `imm[4:0]` (SDM volume 2, CMPPD, table 3-1) holds, else zero; binary64 lanes.
    CmpF64 "cmp.f64" 2 true V256;
    /// As `CmpF32`, scalar.
    CmpScalarF32 "cmp.sf32" 2 true V128;
    /// As `CmpF64`, scalar.
    CmpScalarF64 "cmp.sf64" 2 true V128;
    /// Rounds to an integral value; mode `imm[1:0]` (nearest even, down, up, zero), or the control word's if
    /// `imm[2]`; no precision flag if `imm[3]`. Binary32 lanes.
    RoundF32 "round.f32" 1 true V256;
    /// Rounds to an integral value; mode `imm[1:0]` (nearest even, down, up, zero), or the control word's if
    /// `imm[2]`; no precision flag if `imm[3]`. Binary64 lanes.
    RoundF64 "round.f64" 1 true V256;
    /// As `RoundF32` of `b`'s lane 0, scalar.
    RoundScalarF32 "round.sf32" 2 true V128;
    /// As `RoundF64` of `b`'s lane 0, scalar.
    RoundScalarF64 "round.sf64" 2 true V128;
    /// Sum of the products of the lanes in `imm[7:4]`, to the lanes in `imm[3:0]`, others zero; binary32 (within
    /// each 128 bits).
    DotF32 "dot.f32" 2 true V256;
    /// Sum of the products of the lanes in `imm[5:4]`, to the lanes in `imm[1:0]`, others zero; binary64.
    DotF64 "dot.f64" 2 true V128;
    /// Sums of neighbouring binary32 lanes of `a`, then of `b` (within each 128 bits).
    HAddF32 "hadd.f32" 2 false V256;
    /// Sums of neighbouring binary64 lanes of `a`, then of `b` (within each 128 bits).
    HAddF64 "hadd.f64" 2 false V256;
    /// Differences (even minus odd) of neighbouring binary32 lanes of `a`, then of `b` (within each 128 bits).
    HSubF32 "hsub.f32" 2 false V256;
    /// Differences (even minus odd) of neighbouring binary64 lanes of `a`, then of `b` (within each 128 bits).
    HSubF64 "hsub.f64" 2 false V256;
    /// `a - b` in even, `a + b` in odd binary32 lanes.
    AddSubF32 "addsub.f32" 2 false V256;
    /// `a - b` in even, `a + b` in odd binary64 lanes.
    AddSubF64 "addsub.f64" 2 false V256;
    /// Signed 32-bit lanes to binary32.
    CvtI32F32 "cvt.i32.f32" 1 false V256;
    /// Binary32 lanes to signed 32 bits, rounded by the control word; out of range 0x80000000.
    CvtF32I32 "cvt.f32.i32" 1 false V256;
    /// Binary32 lanes to signed 32 bits, truncated; out of range 0x80000000.
    CvtTruncF32I32 "cvtt.f32.i32" 1 false V256;
    /// Low signed 32-bit lanes to binary64.
    CvtI32F64 "cvt.i32.f64" 1 false V256;
    /// Binary64 lanes to signed 32 bits in the low half, rounded by the control word, zero above (V128: two
    /// lanes).
    CvtF64I32 "cvt.f64.i32" 1 false V256;
    /// Binary64 lanes to signed 32 bits in the low half, truncated, zero above.
    CvtTruncF64I32 "cvtt.f64.i32" 1 false V256;
    /// Low binary32 lanes to binary64.
    CvtF32F64 "cvt.f32.f64" 1 false V256;
    /// Binary64 lanes to binary32 in the low half, zero above.
    CvtF64F32 "cvt.f64.f32" 1 false V256;
    /// Low binary16 lanes to binary32, exactly. Only a signalling NaN raises anything; nothing is flushed.
    CvtF16F32 "cvt.f16.f32" 1 false V256;
    /// Binary32 lanes to binary16 in the low half, zero above; rounded by mode `imm[1:0]` (nearest even, down, up,
    /// zero), or by the control word if `imm[2]`. Denormal operands are zeros if the control word says so, but
    /// denormal results are never flushed.
    CvtF32F16 "cvt.f32.f16" 1 true V256;
    /// `b`'s lane 0 from binary32 to binary64, scalar (bits 127:64 from `a`).
    CvtScalarF32F64 "cvt.sf32.f64" 2 false V128;
    /// `b`'s lane 0 from binary64 to binary32, scalar (bits 127:32 from `a`).
    CvtScalarF64F32 "cvt.sf64.f32" 2 false V128;
    /// One AES encryption round of state `a` with round key `b` (FIPS 197), for each 128 bits.
    AesEnc "aesenc" 2 false V256;
    /// The last AES encryption round.
    AesEncLast "aesenclast" 2 false V256;
    /// One AES decryption round (equivalent inverse cipher).
    AesDec "aesdec" 2 false V256;
    /// The last AES decryption round.
    AesDecLast "aesdeclast" 2 false V256;
    /// AES InvMixColumns of `a`.
    AesInvMix "aesimc" 1 false V128;
    /// AES key expansion step of `a` with round constant `imm`.
    AesKeygen "aeskeygen" 1 true V128;
    /// Carry-less product of the 64-bit lanes `imm[0]` of `a` and `imm[4]` of `b` (within each 128 bits).
    ClmulI64 "clmul.i64" 2 true V256;
    /// Products of 8-bit lanes in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x + 1.
    GfMulI8 "gfmul.i8" 2 false V256;
    /// For each byte of `a`: the 8x8 bit matrix in the 64-bit lane of `b` times the byte, plus `imm`. Bit `n` of the product
    /// is the parity of the byte and the matrix's byte `7 - n`.
    GfAffineI8 "gfaffine.i8" 2 true V256;
    /// As `GfAffineI8`, of the byte's inverse in GF(2^8) (zero for zero; polynomial as in `GfMulI8`).
    GfAffineInvI8 "gfaffineinv.i8" 2 true V256;
    /// SHA-1 (FIPS 180-4): 32-bit lane 3 of `b` plus lane 3 of `a` rotated left by 30; the other lanes from `b`.
    Sha1NextE "sha1nexte" 2 false V128;
    /// SHA-1: the first half of the message schedule's step for four words, the exclusive ors but one. The word that
    /// comes first is in the highest lane.
    Sha1Msg1 "sha1msg1" 2 false V128;
    /// SHA-1: the second half of the message schedule's step, on the result of the first half in `a`.
    Sha1Msg2 "sha1msg2" 2 false V128;
    /// SHA-1: four rounds with function and constant `imm[1:0]` on the state A, B, C, D in `a`'s lanes 3 to 0, with
    /// the message words (the first with E added) in `b`'s lanes 3 to 0.
    Sha1Rounds4 "sha1rounds4" 2 true V128;
    /// SHA-256: lanes of `a` plus sigma0 of the lanes that follow, of which the last is `b`'s lane 0.
    Sha256Msg1 "sha256msg1" 2 false V128;
    /// SHA-256: lanes of `a` plus sigma1 of `b`'s lanes 2 and 3, then of the results in lanes 0 and 1.
    Sha256Msg2 "sha256msg2" 2 false V128;
}

vec_table! {
    /// A vector `a` and an integer `b` to a vector; see [`Inst::VecIns`](super::Inst::VecIns).
    VecInsOp;
    /// Lane `imm` (mod the lanes of 128 bits) of 8 bits from `b`, others from `a`.
    InsertI8 "insert.i8" 2 true V128;
    /// Lane `imm` (mod the lanes of 128 bits) of 16 bits from `b`, others from `a`.
    InsertI16 "insert.i16" 2 true V128;
    /// Lane `imm` (mod the lanes of 128 bits) of 32 bits from `b`, others from `a`.
    InsertI32 "insert.i32" 2 true V128;
    /// Lane `imm` (mod the lanes of 128 bits) of 64 bits from `b`, others from `a`.
    InsertI64 "insert.i64" 2 true V128;
    /// Lane 0 converted from signed 32 bits to binary32, the others from `a`.
    CvtI32F32 "cvt.i32.f32" 2 false V128;
    /// Lane 0 converted from signed 64 bits to binary32, the others from `a`.
    CvtI64F32 "cvt.i64.f32" 2 false V128;
    /// Lane 0 converted from signed 32 bits to binary64, the others from `a`.
    CvtI32F64 "cvt.i32.f64" 2 false V128;
    /// Lane 0 converted from signed 64 bits to binary64, the others from `a`.
    CvtI64F64 "cvt.i64.f64" 2 false V128;
}

vec_table! {
    /// Vectors to an integer; see [`Inst::VecTest`](super::Inst::VecTest). Packed flags are as in
    /// [`flags`](super::flags), to be read through [`FlagOp::Unpack`](super::FlagOp::Unpack).
    VecTestOp;
    /// Top bits of the 8-bit lanes.
    MaskI8 "mask.i8" 1 false V256;
    /// Top bits of the 32-bit lanes.
    MaskF32 "mask.f32" 1 false V256;
    /// Top bits of the 64-bit lanes.
    MaskF64 "mask.f64" 1 false V256;
    /// Lane `imm` (mod the lanes of 128 bits) of 8 bits.
    ExtractI8 "extract.i8" 1 true V128;
    /// Lane `imm` (mod the lanes of 128 bits) of 16 bits.
    ExtractI16 "extract.i16" 1 true V128;
    /// Lane `imm` (mod the lanes of 128 bits) of 32 bits.
    ExtractI32 "extract.i32" 1 true V128;
    /// Lane `imm` (mod the lanes of 128 bits) of 64 bits.
    ExtractI64 "extract.i64" 1 true V128;
    /// Packed flags: Z if `a & b` is zero, C if `!a & b` is zero; others clear.
    TestBits "testbits" 2 false V256;
    /// As `TestBits`, of the top bits of 32-bit lanes alone.
    TestSignsI32 "testsigns.i32" 2 false V256;
    /// As `TestBits`, of the top bits of 64-bit lanes alone.
    TestSignsI64 "testsigns.i64" 2 false V256;
    /// Packed flags of comparing lane 0, binary32: unordered Z, P, C; less C; equal Z; greater none. Quiet NaNs
    /// signal.
    CompareF32 "compare.f32" 2 false V128;
    /// As `CompareF32`, but only signalling NaNs signal.
    CompareQuietF32 "compareq.f32" 2 false V128;
    /// Packed flags of comparing lane 0, binary64: unordered Z, P, C; less C; equal Z; greater none. Quiet NaNs
    /// signal.
    CompareF64 "compare.f64" 2 false V128;
    /// As `CompareF64`, but only signalling NaNs signal.
    CompareQuietF64 "compareq.f64" 2 false V128;
    /// Lane 0 from binary32 to signed 32 bits, rounded by the control word; out of range the most negative.
    CvtF32I32 "cvt.f32.i32" 1 false V128;
    /// Lane 0 from binary32 to signed 64 bits, rounded by the control word; out of range the most negative.
    CvtF32I64 "cvt.f32.i64" 1 false V128;
    /// Lane 0 from binary32 to signed 32 bits, truncated; out of range the most negative.
    CvtTruncF32I32 "cvtt.f32.i32" 1 false V128;
    /// Lane 0 from binary32 to signed 64 bits, truncated; out of range the most negative.
    CvtTruncF32I64 "cvtt.f32.i64" 1 false V128;
    /// Lane 0 from binary64 to signed 32 bits, rounded by the control word; out of range the most negative.
    CvtF64I32 "cvt.f64.i32" 1 false V128;
    /// Lane 0 from binary64 to signed 64 bits, rounded by the control word; out of range the most negative.
    CvtF64I64 "cvt.f64.i64" 1 false V128;
    /// Lane 0 from binary64 to signed 32 bits, truncated; out of range the most negative.
    CvtTruncF64I32 "cvtt.f64.i32" 1 false V128;
    /// Lane 0 from binary64 to signed 64 bits, truncated; out of range the most negative.
    CvtTruncF64I64 "cvtt.f64.i64" 1 false V128;
}
