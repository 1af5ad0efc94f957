//! Vector operations that the host has no instruction for: what the IR's interpreter computes, a 64-bit word of the result a
//! call.

use tessera_tcg::guest::Effects;
use tessera_tcg::interp::vec::{compute, compute3};
use tessera_tcg::ir::{Vec3Op, VecLen, VecOp};

use crate::state::X86Env;

helpers! { super::VEC_OP_BASE;
    /// `(a low, a high, b low, b high, what)`: a word of an operation of 128 bits; `what` is from [`describe`].
    VEC_WORD = vec_word(5), Effects::PURE;
    /// `(a, b, c, operation)`: a word of an operation on three vectors that works within words; `operation` is from
    /// [`describe3`].
    DOT_ADD_WORD = dot_add_word(4), Effects::PURE;
    /// `(a low, a high, b low, b high, words)`: the low word of the state after two rounds of SHA-256.
    SHA256_ROUNDS_LOW = sha256_rounds_low(5), Effects::PURE;
    /// As `SHA256_ROUNDS_LOW`, the high word.
    SHA256_ROUNDS_HIGH = sha256_rounds_high(5), Effects::PURE;
}

/// Which word of which operation.
pub fn describe(op: VecOp, imm: u8, word: u64) -> u64 {
    op as u64 | (imm as u64) << 16 | word << 24
}

/// Which operation.
pub fn describe3(op: Vec3Op) -> u64 {
    op as u64
}

extern "C" fn vec_word(_: &mut X86Env, a_low: u64, a_high: u64, b_low: u64, b_high: u64, what: u64) -> u64 {
    let op = VecOp::ALL[(what & 0xffff) as usize % VecOp::ALL.len()];
    let (a, b) = ([a_low, a_high, 0, 0], [b_low, b_high, 0, 0]);
    // None of these operations reads or changes the control word.
    let mut control = tessera_tcg::interp::vec::DEFAULT_CONTROL;
    compute(op, VecLen::V128, a, b, (what >> 16) as u8, &mut control)[(what >> 24 & 1) as usize]
}

extern "C" fn dot_add_word(_: &mut X86Env, a: u64, b: u64, c: u64, op: u64) -> u64 {
    let op = Vec3Op::ALL[op as usize % Vec3Op::ALL.len()];
    three(op, [a, 0, 0, 0], [b, 0, 0, 0], [c, 0, 0, 0])[0]
}

extern "C" fn sha256_rounds_low(
    _: &mut X86Env,
    a_low: u64,
    a_high: u64,
    b_low: u64,
    b_high: u64,
    words: u64,
) -> u64 {
    three(Vec3Op::Sha256Rounds2, [a_low, a_high, 0, 0], [b_low, b_high, 0, 0], [words, 0, 0, 0])[0]
}

extern "C" fn sha256_rounds_high(
    _: &mut X86Env,
    a_low: u64,
    a_high: u64,
    b_low: u64,
    b_high: u64,
    words: u64,
) -> u64 {
    three(Vec3Op::Sha256Rounds2, [a_low, a_high, 0, 0], [b_low, b_high, 0, 0], [words, 0, 0, 0])[1]
}

fn three(op: Vec3Op, a: [u64; 4], b: [u64; 4], c: [u64; 4]) -> [u64; 4] {
    let mut control = tessera_tcg::interp::vec::DEFAULT_CONTROL;
    compute3(op, VecLen::V128, a, b, c, &mut control)
}
