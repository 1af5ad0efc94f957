//! The stack: PUSH and POP of registers, memory and immediates, PUSHA and POPA, ENTER and LEAVE.
//!
//! Stores come before the stack pointer is set, and use the address that it will have. PUSHF, POPF and POP of segment
//! registers belong to the system family.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Value, Width};

use super::int_move::selector;
use super::operand::segment_number;
use super::{Row, Translator};
use crate::helpers;
use crate::state::reg;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::One(Code::Pushw_ES, |t, i| push_segment(t, i, Width::W16)),
    Row::One(Code::Pushw_CS, |t, i| push_segment(t, i, Width::W16)),
    Row::One(Code::Pushw_SS, |t, i| push_segment(t, i, Width::W16)),
    Row::One(Code::Pushw_DS, |t, i| push_segment(t, i, Width::W16)),
    Row::One(Code::Pushw_FS, |t, i| push_segment(t, i, Width::W16)),
    Row::One(Code::Pushw_GS, |t, i| push_segment(t, i, Width::W16)),
    Row::One(Code::Pushd_ES, |t, i| push_segment(t, i, Width::W32)),
    Row::One(Code::Pushd_CS, |t, i| push_segment(t, i, Width::W32)),
    Row::One(Code::Pushd_SS, |t, i| push_segment(t, i, Width::W32)),
    Row::One(Code::Pushd_DS, |t, i| push_segment(t, i, Width::W32)),
    Row::One(Code::Pushd_FS, |t, i| push_segment(t, i, Width::W32)),
    Row::One(Code::Pushd_GS, |t, i| push_segment(t, i, Width::W32)),
    Row::One(Code::Pushq_FS, |t, i| push_segment(t, i, Width::W64)),
    Row::One(Code::Pushq_GS, |t, i| push_segment(t, i, Width::W64)),
    Row::All(Mnemonic::Push, push),
    Row::One(Code::Pop_r16, pop),
    Row::One(Code::Pop_r32, pop),
    Row::One(Code::Pop_r64, pop),
    Row::One(Code::Pop_rm16, pop),
    Row::One(Code::Pop_rm32, pop),
    Row::One(Code::Pop_rm64, pop),
    Row::All(Mnemonic::Pusha, |t, _| push_all(t, Width::W16)),
    Row::All(Mnemonic::Pushad, |t, _| push_all(t, Width::W32)),
    Row::All(Mnemonic::Popa, |t, _| pop_all(t, Width::W16)),
    Row::All(Mnemonic::Popad, |t, _| pop_all(t, Width::W32)),
    Row::One(Code::Enterw_imm16_imm8, |t, i| enter(t, i, Width::W16)),
    Row::One(Code::Enterd_imm16_imm8, |t, i| enter(t, i, Width::W32)),
    Row::One(Code::Enterq_imm16_imm8, |t, i| enter(t, i, Width::W64)),
    Row::One(Code::Leavew, |t, _| leave(t, Width::W16)),
    Row::One(Code::Leaved, |t, _| leave(t, Width::W32)),
    Row::One(Code::Leaveq, |t, _| leave(t, Width::W64)),
];

fn push(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let v = t.read(i, 0);
    t.push(w, v);
}

fn push_segment(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let v = selector(t, i.op0_register());
    if w == Width::W32 {
        // Silicon writes the selector's 16 bits only (SDM volume 2, PUSH).
        let sp = t.stack_pointer(-4);
        let addr = t.stack_address(sp, 2, true);
        t.store(Width::W16, addr, v);
        t.set_stack_pointer(sp);
    } else {
        t.push(w, v);
    }
}

fn pop(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let v = t.peek(w, 0);
    if i.op0_kind() == OpKind::Register {
        t.drop_stack(w.bytes() as i64);
        // A popped stack pointer wins over the increment.
        return t.set_reg(i.op0_register(), v);
    }
    // An address by the stack pointer is that after the pop.
    let mut offset = t.offset(i);
    if matches!(i.memory_base(), Register::RSP | Register::ESP) {
        let address_width = t.address_width(i);
        offset = t.b.add_imm(address_width, offset, w.bytes() as i64);
    }
    let addr = t.linear(segment_number(i.memory_segment()), offset, w.bytes(), true);
    t.store(w, addr, v);
    t.drop_stack(w.bytes() as i64);
}

/// Raises what a store to `addr` would raise.
fn probe(t: &mut Translator<'_>, w: Width, addr: Value) {
    let (bytes, mmu) = (t.b.iconst(w.bytes() as u64), t.b.iconst(t.mmu as u64));
    t.call(helpers::int::PROBE_WRITE, &[addr, bytes, mmu]);
}

/// PUSHA, PUSHAD: the original stack pointer among them.
fn push_all(t: &mut Translator<'_>, w: Width) {
    let bytes = w.bytes() as i64;
    let addresses: [Value; 8] = std::array::from_fn(|n| {
        let sp = t.stack_pointer(-bytes * (n as i64 + 1));
        t.stack_address(sp, w.bytes(), true)
    });
    // All or nothing; the first that faults, in the order in which they are pushed, tells its address.
    addresses.iter().for_each(|&addr| probe(t, w, addr));
    for (n, addr) in addresses.into_iter().enumerate() {
        let v = t.gpr(n);
        t.store(w, addr, v);
    }
    t.drop_stack(-8 * bytes);
}

/// POPA, POPAD: the stack pointer on the stack is skipped.
fn pop_all(t: &mut Translator<'_>, w: Width) {
    let bytes = w.bytes() as i64;
    let mut loaded: [Option<Value>; 8] = [None; 8];
    // From the lowest address on: EDI first.
    for (n, slot) in loaded.iter_mut().enumerate().rev() {
        if n != reg::RSP {
            *slot = Some(t.peek(w, bytes * (7 - n as i64)));
        }
    }
    t.drop_stack(8 * bytes);
    for (n, v) in loaded.into_iter().enumerate() {
        if let Some(v) = v {
            t.set_gpr(n, w, v);
        }
    }
}

/// ENTER (SDM volume 2): pushes the frame pointer, `level - 1` outer frame pointers and the new one, then allocates.
fn enter(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let bytes = w.bytes() as i64;
    let size = i.immediate16() as i64;
    let level = (i.immediate8_2nd() & 31) as i64;
    let pushed = 1 + level;
    let rbp = t.gpr(reg::RBP);
    let frame = t.stack_pointer(-bytes);
    let stack_width = t.stack_width();
    let item = |t: &mut Translator<'_>, n: i64| {
        let sp = t.stack_pointer(-bytes * (n + 1));
        t.stack_address(sp, w.bytes(), true)
    };
    let outer = |t: &mut Translator<'_>, n: i64| {
        let sp = t.b.add_imm(stack_width, rbp, -bytes * n);
        t.stack_address(sp, w.bytes(), false)
    };
    // All or nothing: what is read and what is written is in the pages of the first and the last item each. A write by the
    // final stack pointer must be possible, too.
    let (mut to, mut from) = ([Value(0); 32], [Value(0); 32]);
    let to = &mut to[..pushed as usize];
    for (n, addr) in to.iter_mut().enumerate() {
        *addr = item(t, n as i64);
    }
    let from = &mut from[..(level - 1).max(0) as usize];
    for (n, addr) in from.iter_mut().enumerate() {
        *addr = outer(t, n as i64 + 1);
    }
    if let [first, .., last] = *from {
        t.load(w, first);
        t.load(w, last);
    }
    let sp = t.stack_pointer(-bytes * pushed - size);
    let end = t.stack_address(sp, w.bytes(), true);
    for addr in [to[0], to[to.len() - 1], end] {
        probe(t, w, addr);
    }
    t.store(w, to[0], rbp);
    for (from, to) in from.iter().zip(&to[1..]) {
        let v = t.load(w, *from);
        t.store(w, *to, v);
    }
    if level > 0 {
        t.store(w, to[to.len() - 1], frame);
    }
    t.drop_stack(-bytes * pushed - size);
    t.set_gpr(reg::RBP, w, frame);
}

/// LEAVE: the stack pointer becomes the frame pointer, and the outer frame pointer is popped.
fn leave(t: &mut Translator<'_>, w: Width) {
    let stack_width = t.stack_width();
    let rbp = t.gpr(reg::RBP);
    let frame = t.zx(stack_width, rbp);
    let addr = t.stack_address(frame, w.bytes(), false);
    let v = t.load(w, addr);
    let sp = t.b.bin_imm(BinOp::Add, stack_width, frame, w.bytes() as u64);
    t.set_stack_pointer(sp);
    t.set_gpr(reg::RBP, w, v);
}
