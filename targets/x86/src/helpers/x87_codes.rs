//! What translations pass to the x87 helpers to say which operation is meant: small numbers packed into one argument.

use super::x87_host::{Binary, Format};
use super::x87_image::Layout;

/// What [`LOAD`](super::x87::LOAD) takes from memory and [`ARITH_MEMORY`](super::x87::ARITH_MEMORY) and [`COMPARE`](super::x87::COMPARE) compute with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Source {
    F32,
    F64,
    I16,
    I32,
    I64,
    F80,
    Bcd,
    /// A register.
    Register,
}

pub(super) const SOURCES: [Source; 8] = [
    Source::F32,
    Source::F64,
    Source::I16,
    Source::I32,
    Source::I64,
    Source::F80,
    Source::Bcd,
    Source::Register,
];

/// Argument of [`ARITH`](super::x87::ARITH) and [`ARITH_MEMORY`](super::x87::ARITH_MEMORY): for registers, whether ST(i) is the destination, and whether to pop.
pub fn arith_code(op: Binary, source: Source, i: usize, to_i: bool, pop: bool) -> u64 {
    op as u64 | (source as u64) << 4 | (i as u64 & 7) << 8 | (to_i as u64) << 12 | (pop as u64) << 13
}

/// Argument of [`COMPARE`](super::x87::COMPARE): source, register, how often to pop, quiet, and whether the result goes to the condition codes
/// (else it is only returned).
pub fn compare_code(source: Source, i: usize, pops: u8, quiet: bool, condition: bool) -> u64 {
    source as u64
        | (i as u64 & 7) << 4
        | (pops as u64 & 3) << 8
        | (quiet as u64) << 10
        | (condition as u64) << 11
}

/// Destination argument of [`STORE`](super::x87::STORE); `None` is the 80-bit format.
pub fn store_code(format: Option<Format>, pop: bool) -> u64 {
    format.map_or(15, |f| f as u64) | (pop as u64) << 4
}

/// What a [`store_code`] has in addition if the access is to be checked: against a segment register, and for its alignment.
pub fn store_checks(segment: Option<usize>, aligned: bool) -> u64 {
    segment.map_or(0, |n| 8 | n as u64 & 7) << 8 | (aligned as u64) << 12
}

/// The parts of an [`arith_code`]: operation, source, register, whether that is the destination, whether to pop.
pub(super) fn arith_parts(code: u64) -> (Binary, Source, u8, bool, bool) {
    let op = BINARIES[code as usize % 8 % BINARIES.len()];
    (op, SOURCES[code as usize >> 4 & 7], (code >> 8 & 7) as u8, code >> 12 & 1 != 0, code >> 13 & 1 != 0)
}

/// The parts of a [`compare_code`], in the order of its arguments.
pub(super) fn compare_parts(code: u64) -> (Source, u8, u8, bool, bool) {
    let source = SOURCES[code as usize & 7];
    (source, (code >> 4 & 7) as u8, (code >> 8 & 3) as u8, code >> 10 & 1 != 0, code >> 11 & 1 != 0)
}

/// The source that [`LOAD`](super::x87::LOAD) is passed.
pub(super) fn source_of(code: u64) -> Source {
    SOURCES[code as usize & 7]
}

/// The parts of a [`store_code`].
pub(super) fn store_parts(code: u64) -> (Option<Format>, bool) {
    (FORMATS.get(code as usize & 15).copied(), code >> 4 & 1 != 0)
}

/// The parts of [`store_checks`].
pub(super) fn store_checks_parts(code: u64) -> (Option<usize>, bool) {
    ((code >> 11 & 1 != 0).then_some((code >> 8 & 7) as usize), code >> 12 & 1 != 0)
}

/// Layout argument of [`STORE_STATE`](super::x87::STORE_STATE) and [`LOAD_STATE`](super::x87::LOAD_STATE); `registers` for FNSAVE and FRSTOR.
pub fn layout_code(layout: Layout, registers: bool) -> u64 {
    layout.wide as u64 | (layout.protected as u64) << 1 | (registers as u64) << 2
}

/// Operations of [`MISC`](super::x87::MISC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Misc {
    ChangeSign,
    Absolute,
    Test,
    Examine,
    IncrementTop,
    DecrementTop,
    Sqrt,
    Round,
    PowerMinus1,
    Sine,
    Cosine,
    Scale,
    Remainder,
    RemainderNearest,
    ArcTangent,
    YLog2X,
    YLog2XPlus1,
    Tangent,
    SineCosine,
    Extract,
}

pub(super) const MISC_ALL: [Misc; 20] = [
    Misc::ChangeSign,
    Misc::Absolute,
    Misc::Test,
    Misc::Examine,
    Misc::IncrementTop,
    Misc::DecrementTop,
    Misc::Sqrt,
    Misc::Round,
    Misc::PowerMinus1,
    Misc::Sine,
    Misc::Cosine,
    Misc::Scale,
    Misc::Remainder,
    Misc::RemainderNearest,
    Misc::ArcTangent,
    Misc::YLog2X,
    Misc::YLog2XPlus1,
    Misc::Tangent,
    Misc::SineCosine,
    Misc::Extract,
];

pub(super) const BINARIES: [Binary; 6] =
    [Binary::Add, Binary::Mul, Binary::Sub, Binary::SubReverse, Binary::Div, Binary::DivReverse];

pub(super) const FORMATS: [Format; 9] = [
    Format::F32,
    Format::F64,
    Format::I16,
    Format::I32,
    Format::I64,
    Format::TruncatedI16,
    Format::TruncatedI32,
    Format::TruncatedI64,
    Format::Bcd,
];
