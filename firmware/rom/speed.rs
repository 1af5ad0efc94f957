//! The speed figure: a fixed integer loop, timed by the TSC.
//!
//! The loop mixes what integer code consists of: a generator of pseudo-random numbers (shifts and exclusive ors), a table on
//! the stack that is read and written at random places, a branch taken three times of four, a multiplication, a
//! comparison whose carry is added, a call and a return. Every path through it has the same number of instructions, so
//! that the count of iterations is a count of instructions. The code is position independent and follows the System V
//! calling convention, `extern "C" fn(iterations: u64) -> u64`, so that a host can run the same bytes natively.

use iced_x86::code_asm::*;

use super::layout::*;
use super::report::{self, begin, end, expect64, say};
use super::speed_model::{FACTOR, INSNS_PER_ITERATION, SEED, TABLE, result};
use tessera_asm::{Code, R, Symbols};

const PROOF_ITERATIONS: u64 = 1000;

pub fn emit_loop(c: &mut Code, s: &Symbols) -> R {
    let [clear, again, other, join, leaf, done] = std::array::from_fn(|_| c.fresh());
    let frame = TABLE as i32 * 8 + 8;
    c.label("speed_loop")?;
    c.sub(rsp, frame)?;
    c.mov(ecx, TABLE as u32 - 1)?;
    c.label(&clear)?;
    c.mov(qword_ptr(rsp + rcx * 8), 0)?;
    c.dec(ecx)?;
    c.jns(s.at(&clear))?;
    c.mov(rax, SEED)?;
    c.xor(edx, edx)?;
    c.mov(esi, 1)?;
    c.test(rdi, rdi)?;
    c.je(s.at(&done))?;

    c.label(&again)?;
    c.mov(rcx, rax)?; // 1
    c.shl(rcx, 13)?;
    c.xor(rax, rcx)?;
    c.mov(rcx, rax)?;
    c.shr(rcx, 7)?; // 5
    c.xor(rax, rcx)?;
    c.mov(rcx, rax)?;
    c.shl(rcx, 17)?;
    c.xor(rax, rcx)?;
    c.mov(ecx, eax)?; // 10
    c.and(ecx, TABLE as u32 - 1)?;
    c.mov(r8, qword_ptr(rsp + rcx * 8))?;
    c.add(r8, rax)?;
    c.rol(r8, 5)?;
    c.mov(qword_ptr(rsp + rcx * 8), r8)?; // 15
    c.test(dil, 3)?;
    c.je(s.at(&other))?; // 17
    c.lea(rdx, qword_ptr(rdx + r8 + 1))?; // 18
    c.jmp(s.at(&join))?; // 19
    c.label(&other)?;
    c.sub(rdx, r8)?; // 18
    c.xor(rdx, rsi)?; // 19
    c.label(&join)?;
    c.imul_3(rsi, rdx, FACTOR)?; // 20
    c.movzx(r9d, r8b)?;
    c.add(rsi, r9)?;
    c.cmp(rsi, rdx)?;
    c.adc(rdx, 0)?;
    c.call(s.at(&leaf))?; // 25, and 4 in the leaf
    c.dec(rdi)?; // 30
    c.jne(s.at(&again))?; // 31
    c.label(&done)?;
    c.xor(rax, rdx)?;
    c.xor(rax, rsi)?;
    c.add(rsp, frame)?;
    c.ret()?;

    c.label(&leaf)?;
    c.lea(r10, qword_ptr(rsi + rdx))?;
    c.shr(r10, 3)?;
    c.xor(rdx, r10)?;
    c.ret()?;
    c.label("speed_loop.end")?;
    c.nop()
}

/// Measures and prints. Half a second at whatever speed the machine has.
pub fn emit(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "speed loop computes what it should")?;
    c.mov(edi, PROOF_ITERATIONS as u32)?;
    c.call(s.at("speed_loop"))?;
    expect64(c, s, "result of 1000 iterations", rax, result(PROOF_ITERATIONS))?;
    end(c, s)?;

    let [calibrate, long_enough, measured, skip, ratio_done] = std::array::from_fn(|_| c.fresh());
    c.cmp(qword_ptr(TSC_HZ), 0)?;
    c.je(s.at(&skip))?;
    // Until a run takes at least 50 ms.
    c.mov(r12d, 10_000)?;
    c.label(&calibrate)?;
    timed_run(c, s)?;
    c.imul_3(rcx, rax, 20)?;
    c.cmp(rcx, qword_ptr(TSC_HZ))?;
    c.jae(s.at(&long_enough))?;
    c.shl(r12, 2)?;
    c.jmp(s.at(&calibrate))?;
    c.label(&long_enough)?;
    // iterations * frequency / 2 / ticks
    c.mov(rcx, rax)?;
    c.mov(rax, qword_ptr(TSC_HZ))?;
    c.shr(rax, 1)?;
    c.mul(r12)?;
    c.div(rcx)?;
    c.mov(r12, rax)?;
    timed_run(c, s)?;
    c.label(&measured)?;
    c.mov(rcx, rax)?;
    c.imul_3(rax, r12, INSNS_PER_ITERATION as i32)?;
    c.mul(qword_ptr(TSC_HZ))?;
    c.div(rcx)?;
    c.mov(r13, rax)?; // instructions a second

    say(c, s, "speed: ")?;
    c.mov(rax, r13)?;
    c.xor(edx, edx)?;
    c.mov(ecx, 100_000)?;
    c.div(rcx)?;
    print_fraction(c, s, 10)?;
    say(c, s, " million guest instructions/second\r\n")?;
    c.cmp(qword_ptr(NATIVE_SPEED), 0)?;
    c.je(s.at(&ratio_done))?;
    say(c, s, "ratio to native: ")?;
    c.mov(rax, r13)?;
    c.mov(ecx, 100)?;
    c.mul(rcx)?;
    c.div(qword_ptr(NATIVE_SPEED))?;
    print_fraction(c, s, 100)?;
    say(c, s, " (native: ")?;
    c.mov(rax, qword_ptr(NATIVE_SPEED))?;
    c.xor(edx, edx)?;
    c.mov(ecx, 100_000)?;
    c.div(rcx)?;
    print_fraction(c, s, 10)?;
    say(c, s, " million)\r\n")?;
    c.jmp(s.at(&ratio_done))?;
    c.label(&skip)?;
    say(c, s, "speed: unknown, for the clocks do not agree\r\n")?;
    c.label(&ratio_done)
}

/// Runs the loop R12 times; RAX = TSC ticks it took.
fn timed_run(c: &mut Code, s: &Symbols) -> R {
    c.rdtsc()?;
    c.shl(rdx, 32)?;
    c.lea(r14, qword_ptr(rax + rdx))?;
    c.mov(rdi, r12)?;
    c.call(s.at("speed_loop"))?;
    c.rdtsc()?;
    c.shl(rdx, 32)?;
    c.or(rax, rdx)?;
    c.sub(rax, r14)
}

/// Prints EAX / `denominator` (10 or 100) with as many digits behind the point.
fn print_fraction(c: &mut Code, s: &Symbols, denominator: u32) -> R {
    c.xor(edx, edx)?;
    c.mov(ecx, denominator)?;
    c.div(ecx)?;
    report::call(c, s, "dec")?;
    say(c, s, ".")?;
    c.mov(eax, edx)?;
    if denominator == 100 {
        c.xor(edx, edx)?;
        c.mov(ecx, 10)?;
        c.div(ecx)?;
        report::call(c, s, "dec")?;
        c.mov(eax, edx)?;
    }
    report::call(c, s, "dec")
}
