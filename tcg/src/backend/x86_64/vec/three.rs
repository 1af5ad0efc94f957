//! Operations on three vectors.
//!
//! Most of these instructions overwrite one of their operands, so there is a choice of which, and perhaps a move. A multiply-add
//! has three forms, one for each operand that may be overwritten, which agree in all else: the packed ones take the
//! form that fits the destination, the scalar ones that whose overwritten operand lends the other lanes.

use super::{
    M0F3A, M0F38, NP, Operand, P66, Row, Rvm, RvmI, SCRATCH, emit_vec_move, encode, encode_legacy, row,
};
use crate::ir::{Vec3Op, VecLen};

/// An operand of the operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    A,
    B,
    C,
}

/// How an operation is encoded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// Non-destructive, `c` in the immediate's high nibble.
    Four(Row),
    /// Multiply-add: the mnemonic's parts around the form's number, the row of the form 132, and which operand lends a
    /// scalar's other lanes.
    Fma {
        #[cfg_attr(not(test), allow(dead_code))]
        suffix: &'static str,
        row: Row,
        lends: Option<Which>,
    },
    /// Overwrites `c`.
    Accumulate(Row),
    /// Overwrites `a`, `c` in register 0, without VEX.
    Rounds(Row),
}

const fn fma(name: &'static str, suffix: &'static str, opcode: u8, w: bool, lends: Option<Which>) -> Form {
    Form::Fma { suffix, row: Row { w, ..row(name, Rvm, M0F38, P66, opcode) }, lends }
}

/// The encoding of an operation.
pub(super) const fn form(op: Vec3Op) -> Form {
    use Form::*;
    use Vec3Op::*;
    use Which::*;
    match op {
        SelectI8 => Four(row("vpblendvb", RvmI, M0F3A, P66, 0x4c)),
        SelectI32 => Four(row("vblendvps", RvmI, M0F3A, P66, 0x4a)),
        SelectI64 => Four(row("vblendvpd", RvmI, M0F3A, P66, 0x4b)),
        MulAddF32 => fma("vfmadd", "ps", 0x98, false, None),
        MulAddF64 => fma("vfmadd", "pd", 0x98, true, None),
        MulSubF32 => fma("vfmsub", "ps", 0x9a, false, None),
        MulSubF64 => fma("vfmsub", "pd", 0x9a, true, None),
        NegMulAddF32 => fma("vfnmadd", "ps", 0x9c, false, None),
        NegMulAddF64 => fma("vfnmadd", "pd", 0x9c, true, None),
        NegMulSubF32 => fma("vfnmsub", "ps", 0x9e, false, None),
        NegMulSubF64 => fma("vfnmsub", "pd", 0x9e, true, None),
        MulAddSubF32 => fma("vfmaddsub", "ps", 0x96, false, None),
        MulAddSubF64 => fma("vfmaddsub", "pd", 0x96, true, None),
        MulSubAddF32 => fma("vfmsubadd", "ps", 0x97, false, None),
        MulSubAddF64 => fma("vfmsubadd", "pd", 0x97, true, None),
        MulAddScalarAF32 => fma("vfmadd", "ss", 0x99, false, Some(A)),
        MulAddScalarBF32 => fma("vfmadd", "ss", 0x99, false, Some(B)),
        MulAddScalarCF32 => fma("vfmadd", "ss", 0x99, false, Some(C)),
        MulAddScalarAF64 => fma("vfmadd", "sd", 0x99, true, Some(A)),
        MulAddScalarBF64 => fma("vfmadd", "sd", 0x99, true, Some(B)),
        MulAddScalarCF64 => fma("vfmadd", "sd", 0x99, true, Some(C)),
        MulSubScalarAF32 => fma("vfmsub", "ss", 0x9b, false, Some(A)),
        MulSubScalarBF32 => fma("vfmsub", "ss", 0x9b, false, Some(B)),
        MulSubScalarCF32 => fma("vfmsub", "ss", 0x9b, false, Some(C)),
        MulSubScalarAF64 => fma("vfmsub", "sd", 0x9b, true, Some(A)),
        MulSubScalarBF64 => fma("vfmsub", "sd", 0x9b, true, Some(B)),
        MulSubScalarCF64 => fma("vfmsub", "sd", 0x9b, true, Some(C)),
        NegMulAddScalarAF32 => fma("vfnmadd", "ss", 0x9d, false, Some(A)),
        NegMulAddScalarBF32 => fma("vfnmadd", "ss", 0x9d, false, Some(B)),
        NegMulAddScalarCF32 => fma("vfnmadd", "ss", 0x9d, false, Some(C)),
        NegMulAddScalarAF64 => fma("vfnmadd", "sd", 0x9d, true, Some(A)),
        NegMulAddScalarBF64 => fma("vfnmadd", "sd", 0x9d, true, Some(B)),
        NegMulAddScalarCF64 => fma("vfnmadd", "sd", 0x9d, true, Some(C)),
        NegMulSubScalarAF32 => fma("vfnmsub", "ss", 0x9f, false, Some(A)),
        NegMulSubScalarBF32 => fma("vfnmsub", "ss", 0x9f, false, Some(B)),
        NegMulSubScalarCF32 => fma("vfnmsub", "ss", 0x9f, false, Some(C)),
        NegMulSubScalarAF64 => fma("vfnmsub", "sd", 0x9f, true, Some(A)),
        NegMulSubScalarBF64 => fma("vfnmsub", "sd", 0x9f, true, Some(B)),
        NegMulSubScalarCF64 => fma("vfnmsub", "sd", 0x9f, true, Some(C)),
        DotAddU8S8 => Accumulate(row("vpdpbusd", Rvm, M0F38, P66, 0x50)),
        DotAddSatU8S8 => Accumulate(row("vpdpbusds", Rvm, M0F38, P66, 0x51)),
        DotAddS16 => Accumulate(row("vpdpwssd", Rvm, M0F38, P66, 0x52)),
        DotAddSatS16 => Accumulate(row("vpdpwssds", Rvm, M0F38, P66, 0x53)),
        Sha256Rounds2 => Rounds(row("sha256rnds2", super::Legacy, M0F38, NP, 0xcb)),
    }
}

/// Which operand's register is best for the result, if it is free, and which must not be it (a bit each).
pub fn overwritten(op: Vec3Op, a: u8, b: u8, c: u8) -> (u8, u32) {
    let others = |of: u8| (1 << a | 1 << b | 1 << c) & !(1 << of);
    match form(op) {
        Form::Four(_) => (a, 0),
        Form::Fma { lends: None, .. } => (c, 0),
        Form::Fma { lends: Some(which), .. } => {
            let of = [a, b, c][which as usize];
            (of, others(of))
        }
        Form::Accumulate(_) => (c, others(c)),
        Form::Rounds(_) => (a, others(a)),
    }
}

/// `dst = op(a, b, c)` in vector registers, any of which may coincide, but none of which is a scratch register.
/// Host flags are kept. `live` is the most that any register holds: where that is 128 bits, upper halves stay clean.
pub fn emit_vec3(buf: &mut Vec<u8>, op: Vec3Op, (len, live): (VecLen, VecLen), dst: u8, a: u8, b: u8, c: u8) {
    match form(op) {
        Form::Four(row) => {
            encode(buf, row, len, dst, a, Operand::Reg(b));
            buf.push(c << 4);
        }
        Form::Fma { row, lends, .. } => {
            let which = match lends {
                Some(which) => which,
                None if dst == a => Which::A,
                None if dst == b => Which::B,
                None => Which::C,
            };
            let (form, over, vvvv, rm) = match which {
                Which::A => (0, a, c, b),
                Which::B => (0x10, b, a, c),
                Which::C => (0x20, c, a, b),
            };
            let row = Row { opcode: row.opcode + form, ..row };
            in_place(buf, len, dst, over, [vvvv, rm], |buf, place| {
                encode(buf, row, len, place, vvvv, Operand::Reg(rm));
            });
        }
        Form::Accumulate(row) => {
            in_place(buf, len, dst, c, [a, b], |buf, place| encode(buf, row, len, place, a, Operand::Reg(b)));
        }
        Form::Rounds(row) => sha256_rounds(buf, row, live, dst, a, b, c),
    }
}

/// Emits an instruction that overwrites the operand in register `over` and also reads `others`: in the destination if
/// that is possible, else in a scratch register.
fn in_place(
    buf: &mut Vec<u8>,
    len: VecLen,
    dst: u8,
    over: u8,
    others: [u8; 2],
    emit: impl FnOnce(&mut Vec<u8>, u8),
) {
    let place = if dst != over && others.contains(&dst) { SCRATCH } else { dst };
    if place != over {
        emit_vec_move(buf, len, place, over);
    }
    emit(buf, place);
    if place != dst {
        emit_vec_move(buf, len, dst, place);
    }
}

/// Another scratch register.
const SCRATCH2: u8 = 14;

/// The instruction wants `c` in register 0, whose value is set aside meanwhile. It has no VEX form: with unclean upper halves
/// it takes a hundred times as long, so no move may be wider than it must.
fn sha256_rounds(buf: &mut Vec<u8>, row: Row, live: VecLen, dst: u8, a: u8, b: u8, c: u8) {
    emit_vec_move(buf, VecLen::V128, SCRATCH, a);
    if c == 0 {
        encode_legacy(buf, row, SCRATCH, b);
    } else {
        emit_vec_move(buf, live, SCRATCH2, 0);
        emit_vec_move(buf, VecLen::V128, 0, c);
        encode_legacy(buf, row, SCRATCH, if b == 0 { SCRATCH2 } else { b });
        emit_vec_move(buf, live, 0, SCRATCH2);
    }
    emit_vec_move(buf, VecLen::V128, dst, SCRATCH);
}
