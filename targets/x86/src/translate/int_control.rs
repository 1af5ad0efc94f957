//! Control transfer within the code segment, undefined instructions, BOUND.
//!
//! Far transfers and software interrupts belong to the system family.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{Cond, Ext, FlagOp, Value, Width};

use super::int_move::condition;
use super::operand::segment_number;
use super::{Row, Translator};
use crate::helpers;
use crate::state::{mode, reg};

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Jo, jcc),
    Row::All(Mnemonic::Jno, jcc),
    Row::All(Mnemonic::Jb, jcc),
    Row::All(Mnemonic::Jae, jcc),
    Row::All(Mnemonic::Je, jcc),
    Row::All(Mnemonic::Jne, jcc),
    Row::All(Mnemonic::Jbe, jcc),
    Row::All(Mnemonic::Ja, jcc),
    Row::All(Mnemonic::Js, jcc),
    Row::All(Mnemonic::Jns, jcc),
    Row::All(Mnemonic::Jp, jcc),
    Row::All(Mnemonic::Jnp, jcc),
    Row::All(Mnemonic::Jl, jcc),
    Row::All(Mnemonic::Jge, jcc),
    Row::All(Mnemonic::Jle, jcc),
    Row::All(Mnemonic::Jg, jcc),
    Row::One(Code::Jmp_rel8_16, jmp),
    Row::One(Code::Jmp_rel8_32, jmp),
    Row::One(Code::Jmp_rel8_64, jmp),
    Row::One(Code::Jmp_rel16, jmp),
    Row::One(Code::Jmp_rel32_32, jmp),
    Row::One(Code::Jmp_rel32_64, jmp),
    Row::One(Code::Jmp_rm16, jmp_indirect),
    Row::One(Code::Jmp_rm32, jmp_indirect),
    Row::One(Code::Jmp_rm64, jmp_indirect),
    Row::One(Code::Call_rel16, |t, i| call(t, i, Width::W16)),
    Row::One(Code::Call_rel32_32, |t, i| call(t, i, Width::W32)),
    Row::One(Code::Call_rel32_64, |t, i| call(t, i, Width::W64)),
    Row::One(Code::Call_rm16, call_indirect),
    Row::One(Code::Call_rm32, call_indirect),
    Row::One(Code::Call_rm64, call_indirect),
    Row::One(Code::Retnw, |t, i| ret(t, i, Width::W16)),
    Row::One(Code::Retnw_imm16, |t, i| ret(t, i, Width::W16)),
    Row::One(Code::Retnd, |t, i| ret(t, i, Width::W32)),
    Row::One(Code::Retnd_imm16, |t, i| ret(t, i, Width::W32)),
    Row::One(Code::Retnq, |t, i| ret(t, i, Width::W64)),
    Row::One(Code::Retnq_imm16, |t, i| ret(t, i, Width::W64)),
    Row::All(Mnemonic::Loop, |t, i| counted(t, i, None)),
    Row::All(Mnemonic::Loope, |t, i| counted(t, i, Some(Cond::E))),
    Row::All(Mnemonic::Loopne, |t, i| counted(t, i, Some(Cond::NE))),
    Row::All(Mnemonic::Jcxz, |t, i| jump_if_zero(t, i, Width::W16)),
    Row::All(Mnemonic::Jecxz, |t, i| jump_if_zero(t, i, Width::W32)),
    Row::All(Mnemonic::Jrcxz, |t, i| jump_if_zero(t, i, Width::W64)),
    Row::All(Mnemonic::Bound, bound),
    Row::All(Mnemonic::Ud0, |t, _| t.undefined()),
    Row::All(Mnemonic::Ud1, |t, _| t.undefined()),
    Row::All(Mnemonic::Ud2, |t, _| t.undefined()),
];

/// Raises #GP(0) if the branch is taken and leads beyond the code segment.
fn check_taken(t: &mut Translator<'_>, cond: Cond, f: Value, target: u64) {
    if !t.is(mode::CODE_LIMIT) {
        return;
    }
    let taken = t.b.iconst(target);
    let fall = t.b.iconst(0);
    let ip = t.b.select(cond, f, taken, fall);
    t.check_target(ip);
}

fn jcc(t: &mut Translator<'_>, i: &Instruction) {
    let target = i.near_branch_target();
    let f = t.flags();
    let cond = condition(i);
    check_taken(t, cond, f, target);
    t.branch_aside(cond, f, t.linear_target(target));
}

fn jmp(t: &mut Translator<'_>, i: &Instruction) {
    let target = i.near_branch_target();
    if t.is(mode::CODE_LIMIT) {
        let ip = t.b.iconst(target);
        t.check_target(ip);
    }
    t.jump(t.linear_target(target));
}

fn jmp_indirect(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let ip = t.read_zx(i, 0, w);
    t.check_target(ip);
    t.goto_indirect(ip);
}

fn call(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let target = i.near_branch_target();
    if t.is(mode::CODE_LIMIT) {
        let ip = t.b.iconst(target);
        t.check_target(ip);
    }
    let ret = t.b.iconst(t.next_ip());
    t.push(w, ret);
    t.jump(t.linear_target(target));
}

fn call_indirect(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let ip = t.read_zx(i, 0, w);
    t.check_target(ip);
    let ret = t.b.iconst(t.next_ip());
    t.push(w, ret);
    t.goto_indirect(ip);
}

fn ret(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let ip = t.peek(w, 0);
    t.check_target(ip);
    let arguments = if i.op_count() == 1 { i.immediate16() } else { 0 };
    t.drop_stack(w.bytes() as i64 + arguments as i64);
    t.goto_indirect(ip);
}

/// Width of the counter of a LOOP instruction: its address size.
fn counter_width(i: &Instruction) -> Width {
    use Code::*;
    match i.code() {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX => Width::W16,
        Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX | Loopne_rel8_16_RCX
        | Loopne_rel8_64_RCX => Width::W64,
        _ => Width::W32,
    }
}

/// LOOP, LOOPE, LOOPNE: while the decremented counter is not zero, and the condition, if any, holds.
fn counted(t: &mut Translator<'_>, i: &Instruction, cond: Option<Cond>) {
    let w = counter_width(i);
    let target = i.near_branch_target();
    let counter = t.gpr(reg::RCX);
    let counter = t.b.add_imm(w, counter, -1);
    let counter = t.zx(w, counter);
    let mut f = t.test_zero(w, counter);
    if let Some(cond) = cond {
        let more = t.b.set_cond(Cond::NE, f);
        let flags = t.flags();
        let holds = t.b.set_cond(cond, flags);
        f = t.b.flags(FlagOp::And, Width::W8, more, holds);
    }
    check_taken(t, Cond::NE, f, target);
    t.set_gpr(reg::RCX, w, counter);
    t.branch(Cond::NE, f, t.linear_target(target), t.next);
}

/// JCXZ, JECXZ, JRCXZ.
fn jump_if_zero(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let target = i.near_branch_target();
    let counter = t.gpr(reg::RCX);
    let f = t.test_zero(w, counter);
    check_taken(t, Cond::E, f, target);
    t.branch(Cond::E, f, t.linear_target(target), t.next);
}

fn bound(t: &mut Translator<'_>, i: &Instruction) {
    debug_assert!(i.op1_kind() == OpKind::Memory);
    let w = t.width(i, 0);
    let index = t.reg(i.op0_register());
    let index = t.sx(w, index);
    let [least, most] = [i64::MIN, i64::MAX].map(|v| t.b.iconst(v as u64));
    let mem = t.mem();
    // An index below the lower bound raises #BR before silicon looks at the upper one.
    let lower = t.address(i, w.bytes(), false);
    let lower = t.b.load(w, Ext::Sign64, lower, mem);
    t.call(helpers::int::CHECK_BOUND, &[index, lower, most]);
    let offset = t.offset(i);
    let offset = t.b.add_imm(t.address_width(i), offset, w.bytes() as i64);
    let upper = t.linear(segment_number(i.memory_segment()), offset, w.bytes(), false);
    let upper = t.b.load(w, Ext::Sign64, upper, mem);
    t.call(helpers::int::CHECK_BOUND, &[index, least, upper]);
}
