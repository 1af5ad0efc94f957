//! System instructions: control, debug and segment registers, descriptor tables, far transfers, interrupts, flags, MSRs, time,
//! ports, extended state.
//!
//! Most are a check of privilege (by the block's mode, so it costs nothing at run time), a helper, and an end of the block.
//! How the block ends tells what may have changed:
//!
//! - [`Translator::leave_for_mode_change`]: the mode, or where execution goes.
//! - [`poll_next`]: not the mode, but how code is fetched, or an interrupt may have become deliverable.
//! - no end: neither.
//!
//! The frequent ones are IR: CLI, PUSHF, SWAPGS, reads of control registers and segment bases.

mod registers;
mod segments;
mod state;

use std::mem::{offset_of, size_of};

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{BinOp, HelperId, Inst, Value, Width, flags};

use super::{Row, Translator};
use crate::helpers::system as h;
use crate::state::{RFlags, Segment, X86Env, global, leave, mode, reg, seg};
use registers::*;
use segments::*;
use state::*;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    // Segment registers.
    Row::One(Code::Mov_Sreg_rm16, mov_segment),
    Row::One(Code::Mov_Sreg_r32m16, mov_segment),
    Row::One(Code::Mov_Sreg_r64m16, mov_segment),
    Row::One(Code::Popw_ES, |t, i| pop_segment(t, i, Width::W16)),
    Row::One(Code::Popw_SS, |t, i| pop_segment(t, i, Width::W16)),
    Row::One(Code::Popw_DS, |t, i| pop_segment(t, i, Width::W16)),
    Row::One(Code::Popw_FS, |t, i| pop_segment(t, i, Width::W16)),
    Row::One(Code::Popw_GS, |t, i| pop_segment(t, i, Width::W16)),
    Row::One(Code::Popd_ES, |t, i| pop_segment(t, i, Width::W32)),
    Row::One(Code::Popd_SS, |t, i| pop_segment(t, i, Width::W32)),
    Row::One(Code::Popd_DS, |t, i| pop_segment(t, i, Width::W32)),
    Row::One(Code::Popd_FS, |t, i| pop_segment(t, i, Width::W32)),
    Row::One(Code::Popd_GS, |t, i| pop_segment(t, i, Width::W32)),
    Row::One(Code::Popq_FS, |t, i| pop_segment(t, i, Width::W64)),
    Row::One(Code::Popq_GS, |t, i| pop_segment(t, i, Width::W64)),
    Row::All(Mnemonic::Lds, |t, i| load_far_pointer(t, i, seg::DS)),
    Row::All(Mnemonic::Les, |t, i| load_far_pointer(t, i, seg::ES)),
    Row::All(Mnemonic::Lfs, |t, i| load_far_pointer(t, i, seg::FS)),
    Row::All(Mnemonic::Lgs, |t, i| load_far_pointer(t, i, seg::GS)),
    Row::All(Mnemonic::Lss, |t, i| load_far_pointer(t, i, seg::SS)),
    Row::All(Mnemonic::Rdfsbase, |t, i| read_base(t, i, seg::FS)),
    Row::All(Mnemonic::Rdgsbase, |t, i| read_base(t, i, seg::GS)),
    Row::All(Mnemonic::Wrfsbase, |t, i| write_base(t, i, seg::FS)),
    Row::All(Mnemonic::Wrgsbase, |t, i| write_base(t, i, seg::GS)),
    Row::All(Mnemonic::Swapgs, |t, _| swapgs(t)),
    // Far transfers and interrupts.
    Row::One(Code::Jmp_ptr1616, far_jump_direct),
    Row::One(Code::Jmp_ptr1632, far_jump_direct),
    Row::One(Code::Jmp_m1616, |t, i| far_jump_memory(t, i, Width::W16)),
    Row::One(Code::Jmp_m1632, |t, i| far_jump_memory(t, i, Width::W32)),
    Row::One(Code::Jmp_m1664, |t, i| far_jump_memory(t, i, Width::W64)),
    Row::One(Code::Call_ptr1616, |t, i| far_call_direct(t, i, Width::W16)),
    Row::One(Code::Call_ptr1632, |t, i| far_call_direct(t, i, Width::W32)),
    Row::One(Code::Call_m1616, |t, i| far_call_memory(t, i, Width::W16)),
    Row::One(Code::Call_m1632, |t, i| far_call_memory(t, i, Width::W32)),
    Row::One(Code::Call_m1664, |t, i| far_call_memory(t, i, Width::W64)),
    Row::One(Code::Retfw, |t, i| far_ret(t, i, Width::W16)),
    Row::One(Code::Retfw_imm16, |t, i| far_ret(t, i, Width::W16)),
    Row::One(Code::Retfd, |t, i| far_ret(t, i, Width::W32)),
    Row::One(Code::Retfd_imm16, |t, i| far_ret(t, i, Width::W32)),
    Row::One(Code::Retfq, |t, i| far_ret(t, i, Width::W64)),
    Row::One(Code::Retfq_imm16, |t, i| far_ret(t, i, Width::W64)),
    Row::One(Code::Iretw, |t, _| transfer(t, h::IRET, &[2])),
    Row::One(Code::Iretd, |t, _| transfer(t, h::IRET, &[4])),
    Row::One(Code::Iretq, |t, _| transfer(t, h::IRET, &[8])),
    Row::All(Mnemonic::Int, |t, i| soft_interrupt(t, h::INT, &[i.immediate8() as u64])),
    Row::All(Mnemonic::Int1, |t, _| soft_interrupt(t, h::INT1, &[])),
    Row::All(Mnemonic::Int3, |t, _| soft_interrupt(t, h::INT3, &[])),
    Row::All(Mnemonic::Into, |t, _| transfer(t, h::INTO, &[])),
    Row::All(Mnemonic::Syscall, |t, _| soft_interrupt(t, h::SYSCALL, &[])),
    Row::All(Mnemonic::Sysret, |t, _| transfer(t, h::SYSRET, &[4])),
    Row::All(Mnemonic::Sysretq, |t, _| transfer(t, h::SYSRET, &[8])),
    Row::All(Mnemonic::Sysenter, |t, _| soft_interrupt(t, h::SYSENTER, &[])),
    Row::All(Mnemonic::Sysexit, |t, _| transfer(t, h::SYSEXIT, &[4])),
    Row::All(Mnemonic::Sysexitq, |t, _| transfer(t, h::SYSEXIT, &[8])),
    // Flags.
    Row::One(Code::Pushfw, |t, _| pushf(t, Width::W16)),
    Row::One(Code::Pushfd, |t, _| pushf(t, Width::W32)),
    Row::One(Code::Pushfq, |t, _| pushf(t, Width::W64)),
    Row::One(Code::Popfw, |t, _| popf(t, Width::W16)),
    Row::One(Code::Popfd, |t, _| popf(t, Width::W32)),
    Row::One(Code::Popfq, |t, _| popf(t, Width::W64)),
    Row::All(Mnemonic::Cli, |t, _| cli(t)),
    Row::All(Mnemonic::Sti, |t, _| sti(t)),
    Row::All(Mnemonic::Clac, |t, _| set_ac(t, 0)),
    Row::All(Mnemonic::Stac, |t, _| set_ac(t, 1)),
    // Control and debug registers.
    Row::One(Code::Mov_r32_cr, mov_from_control),
    Row::One(Code::Mov_r64_cr, mov_from_control),
    Row::One(Code::Mov_cr_r32, mov_to_control),
    Row::One(Code::Mov_cr_r64, mov_to_control),
    Row::One(Code::Mov_r32_dr, mov_from_debug),
    Row::One(Code::Mov_r64_dr, mov_from_debug),
    Row::One(Code::Mov_dr_r32, mov_to_debug),
    Row::One(Code::Mov_dr_r64, mov_to_debug),
    Row::All(Mnemonic::Smsw, |t, i| store_word(t, i, offset_of!(X86Env, cr0))),
    Row::All(Mnemonic::Lmsw, lmsw),
    Row::All(Mnemonic::Clts, |t, _| clts(t)),
    Row::All(Mnemonic::Invlpg, invlpg),
    Row::All(Mnemonic::Invpcid, invpcid),
    // Descriptor tables.
    Row::One(Code::Lgdt_m1632_16, |t, i| load_table(t, i, h::LGDT, 2)),
    Row::One(Code::Lgdt_m1632, |t, i| load_table(t, i, h::LGDT, 4)),
    Row::One(Code::Lgdt_m1664, |t, i| load_table(t, i, h::LGDT, 8)),
    Row::One(Code::Lidt_m1632_16, |t, i| load_table(t, i, h::LIDT, 2)),
    Row::One(Code::Lidt_m1632, |t, i| load_table(t, i, h::LIDT, 4)),
    Row::One(Code::Lidt_m1664, |t, i| load_table(t, i, h::LIDT, 8)),
    Row::All(Mnemonic::Sgdt, |t, i| store_table(t, i, 0)),
    Row::All(Mnemonic::Sidt, |t, i| store_table(t, i, 1)),
    Row::All(Mnemonic::Sldt, |t, i| store_selector(t, i, seg::LDTR)),
    Row::All(Mnemonic::Str, |t, i| store_selector(t, i, seg::TR)),
    Row::All(Mnemonic::Lldt, |t, i| load_system(t, i, h::LLDT)),
    Row::All(Mnemonic::Ltr, |t, i| load_system(t, i, h::LTR)),
    Row::All(Mnemonic::Lar, |t, i| inspect(t, i, h::LAR)),
    Row::All(Mnemonic::Lsl, |t, i| inspect(t, i, h::LSL)),
    Row::All(Mnemonic::Verr, |t, i| verify(t, i, 0)),
    Row::All(Mnemonic::Verw, |t, i| verify(t, i, 1)),
    Row::All(Mnemonic::Arpl, arpl),
    // Time, identification, MSRs, performance.
    Row::All(Mnemonic::Rdtsc, |t, _| rdtsc(t)),
    Row::All(Mnemonic::Rdtscp, |t, _| rdtscp(t)),
    Row::All(Mnemonic::Rdpid, rdpid),
    Row::All(Mnemonic::Cpuid, |t, _| {
        t.call(h::CPUID, &[]);
    }),
    Row::All(Mnemonic::Rdmsr, |t, _| rdmsr(t)),
    Row::All(Mnemonic::Wrmsr, |t, _| wrmsr(t)),
    Row::All(Mnemonic::Rdpmc, |t, _| rdpmc(t)),
    // Ports.
    Row::All(Mnemonic::In, port_in),
    Row::All(Mnemonic::Out, port_out),
    Row::All(Mnemonic::Insb, |t, i| string_io(t, i, true, 1)),
    Row::All(Mnemonic::Insw, |t, i| string_io(t, i, true, 2)),
    Row::All(Mnemonic::Insd, |t, i| string_io(t, i, true, 4)),
    Row::All(Mnemonic::Outsb, |t, i| string_io(t, i, false, 1)),
    Row::All(Mnemonic::Outsw, |t, i| string_io(t, i, false, 2)),
    Row::All(Mnemonic::Outsd, |t, i| string_io(t, i, false, 4)),
    // Extended state.
    Row::All(Mnemonic::Fxsave, |t, i| fxsave(t, i, h::FXSAVE, 0)),
    Row::All(Mnemonic::Fxsave64, |t, i| fxsave(t, i, h::FXSAVE, 1)),
    Row::All(Mnemonic::Fxrstor, |t, i| fxsave(t, i, h::FXRSTOR, 0)),
    Row::All(Mnemonic::Fxrstor64, |t, i| fxsave(t, i, h::FXRSTOR, 1)),
    Row::All(Mnemonic::Xsave, |t, i| xsave(t, i, 0, 0)),
    Row::All(Mnemonic::Xsave64, |t, i| xsave(t, i, 0, 1)),
    Row::All(Mnemonic::Xsaveopt, |t, i| xsave(t, i, 1, 0)),
    Row::All(Mnemonic::Xsaveopt64, |t, i| xsave(t, i, 1, 1)),
    Row::All(Mnemonic::Xsavec, |t, i| xsave(t, i, 2, 0)),
    Row::All(Mnemonic::Xsavec64, |t, i| xsave(t, i, 2, 1)),
    Row::All(Mnemonic::Xsaves, |t, i| xsave(t, i, 3, 0)),
    Row::All(Mnemonic::Xsaves64, |t, i| xsave(t, i, 3, 1)),
    Row::All(Mnemonic::Xrstor, |t, i| xrstor(t, i, 0, 0)),
    Row::All(Mnemonic::Xrstor64, |t, i| xrstor(t, i, 0, 1)),
    Row::All(Mnemonic::Xrstors, |t, i| xrstor(t, i, 1, 0)),
    Row::All(Mnemonic::Xrstors64, |t, i| xrstor(t, i, 1, 1)),
    Row::All(Mnemonic::Xgetbv, |t, _| xgetbv(t)),
    Row::All(Mnemonic::Xsetbv, |t, _| xsetbv(t)),
    Row::All(Mnemonic::Rdpkru, |t, _| rdpkru(t)),
    Row::All(Mnemonic::Wrpkru, |t, _| wrpkru(t)),
    // The CPU as a whole.
    Row::All(Mnemonic::Hlt, |t, _| hlt(t)),
    Row::All(Mnemonic::Invd, |t, _| privileged_nothing(t)),
    Row::All(Mnemonic::Wbinvd, |t, _| privileged_nothing(t)),
    Row::All(Mnemonic::Wbnoinvd, |t, _| privileged_nothing(t)),
    Row::All(Mnemonic::Rsm, |t, _| rsm(t)),
];

// ----- how instructions begin and end -----

/// Raises #GP(0), and is false, unless at CPL 0.
fn privileged(t: &mut Translator<'_>) -> bool {
    let ok = t.cpl() == 0;
    if !ok {
        t.protection();
    }
    ok
}

/// Raises #UD, and is false, in real and virtual-8086 mode.
fn with_selectors(t: &mut Translator<'_>) -> bool {
    let ok = t.protected();
    if !ok {
        t.undefined();
    }
    ok
}

/// Raises #GP(0), and is false, for what CR4.UMIP keeps from user mode.
fn unless_umip(t: &mut Translator<'_>) -> bool {
    let ok = t.cpl() == 0 || !t.is(mode::UMIP);
    if !ok {
        t.protection();
    }
    ok
}

/// Goes on at the next instruction, which is looked up anew, with a poll for events.
fn poll_next(t: &mut Translator<'_>) {
    let next = t.b.iconst(t.next_ip());
    t.goto_indirect(next);
}

/// Goes on at the next instruction in a mode that may be another one.
fn mode_changed(t: &mut Translator<'_>) {
    t.set_pc(t.next);
    t.leave_for_mode_change();
}

/// Goes on at the next instruction, which runs before interrupts are looked at. `interrupt_shadow` is set. The shadow of a
/// load of SS holds off the single-step trap, too (`debug`).
fn shadow_next(t: &mut Translator<'_>, debug: bool) {
    t.set_pc(t.next);
    if t.is(mode::SHADOW) || !t.single {
        // In a shadow already: it ends with this instruction.
        t.leave_for_mode_change();
    } else if t.is(mode::TRAP) && !debug {
        t.leave(leave::SINGLE_STEP);
    } else {
        t.leave(leave::SHADOW);
    }
}

fn constants(t: &mut Translator<'_>, args: &[u64]) -> ([Value; 4], usize) {
    let mut values = [Value(0); 4];
    for (v, &a) in values.iter_mut().zip(args) {
        *v = t.b.iconst(a);
    }
    (values, args.len())
}

/// A helper that sets the program counter and the mode. It finds the program counter at the next instruction.
fn transfer(t: &mut Translator<'_>, helper: HelperId, args: &[u64]) {
    let (values, n) = constants(t, args);
    t.set_pc(t.next);
    t.call(helper, &values[..n]);
    t.leave_for_mode_change();
}

/// As [`transfer`], for what clears TF on its way: no single-step trap follows (SDM volume 3, section 17.3.1.4).
fn soft_interrupt(t: &mut Translator<'_>, helper: HelperId, args: &[u64]) {
    let (values, n) = constants(t, args);
    t.set_pc(t.next);
    t.call(helper, &values[..n]);
    t.leave_without_trap();
}

fn segment_offset(n: usize, field: usize) -> usize {
    offset_of!(X86Env, seg) + n * size_of::<Segment>() + field
}

fn env_load(t: &mut Translator<'_>, width: Width, offset: usize) -> Value {
    t.b.push(Inst::EnvLoad { width, offset: offset as u32 })
}

fn env_store(t: &mut Translator<'_>, width: Width, offset: usize, v: Value) {
    t.b.push(Inst::EnvStore { width, offset: offset as u32, v });
}

/// EDX:EAX.
fn edx_eax(t: &mut Translator<'_>) -> Value {
    let (a, d) = (t.gpr(reg::RAX), t.gpr(reg::RDX));
    t.b.push(Inst::Insert { a, b: d, pos: 32, len: 32 })
}

fn set_edx_eax(t: &mut Translator<'_>, v: Value) {
    let high = t.b.push(Inst::Extract { a: v, pos: 32, len: 32 });
    t.set_gpr(reg::RAX, Width::W32, v);
    t.set_gpr(reg::RDX, Width::W32, high);
}

fn ecx(t: &mut Translator<'_>) -> Value {
    let c = t.gpr(reg::RCX);
    t.zx(Width::W32, c)
}

// ----- far transfers -----

fn direct_pointer(i: &Instruction) -> [u64; 2] {
    let offset = match i.op0_kind() {
        OpKind::FarBranch16 => i.far_branch16() as u64,
        _ => i.far_branch32() as u64,
    };
    [i.far_branch_selector() as u64, offset]
}

fn far_jump_direct(t: &mut Translator<'_>, i: &Instruction) {
    transfer(t, h::FAR_JUMP, &direct_pointer(i));
}

fn far_jump_memory(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let (ip, selector) = far_pointer(t, i, w);
    t.set_pc(t.next);
    t.call(h::FAR_JUMP, &[selector, ip]);
    t.leave_for_mode_change();
}

fn far_call_direct(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let [selector, ip] = direct_pointer(i);
    transfer(t, h::FAR_CALL, &[selector, ip, w.bytes() as u64]);
}

fn far_call_memory(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let (ip, selector) = far_pointer(t, i, w);
    let size = t.b.iconst(w.bytes() as u64);
    t.set_pc(t.next);
    t.call(h::FAR_CALL, &[selector, ip, size]);
    t.leave_for_mode_change();
}

fn far_ret(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let drop = if i.op_count() == 1 { i.immediate16() } else { 0 };
    transfer(t, h::FAR_RET, &[w.bytes() as u64, drop as u64]);
}

// ----- flags -----

fn pushf(t: &mut Translator<'_>, w: Width) {
    let image = if t.is(mode::V86) && t.iopl() < 3 {
        let size = t.b.iconst(w.bytes() as u64);
        t.call(h::PUSHF_VIRTUAL, &[size])
    } else {
        // Packed flags are C, P, A, Z, N in bits 8 to 15 as in EFLAGS 0 to 7, and V in bit 0. DF is bit 10 of +1 or -1.
        let packed = t.packed_flags();
        let low = t.b.bin_imm(BinOp::Shr, Width::W32, packed, 8);
        let low = t.b.bin_imm(BinOp::And, Width::W32, low, 0xd5);
        let of = t.b.bin_imm(BinOp::And, Width::W32, packed, flags::V as u64);
        let of = t.b.bin_imm(BinOp::Shl, Width::W32, of, 11);
        let df = t.b.get(global::DF);
        let df = t.b.bin_imm(BinOp::And, Width::W32, df, RFlags::DF.bits());
        let other = t.b.get(global::EFLAGS);
        let hidden = (RFlags::VM | RFlags::RF).bits();
        let other = t.b.bin_imm(BinOp::And, Width::W32, other, 0xffff_ffff & !hidden);
        let v = t.b.bin(BinOp::Or, Width::W32, low, of);
        let v = t.b.bin(BinOp::Or, Width::W32, v, df);
        t.b.bin(BinOp::Or, Width::W32, v, other)
    };
    t.push(w, image);
}

fn popf(t: &mut Translator<'_>, w: Width) {
    let image = t.peek(w, 0);
    let size = t.b.iconst(w.bytes() as u64);
    t.call(h::POPF, &[image, size]);
    t.drop_stack(w.bytes() as i64);
    mode_changed(t);
}

/// Whether CLI and STI act on IF itself.
fn owns_interrupts(t: &Translator<'_>) -> bool {
    t.cpl() <= t.iopl()
}

fn cli(t: &mut Translator<'_>) {
    if owns_interrupts(t) {
        let v = t.b.get(global::EFLAGS);
        let v = t.b.bin_imm(BinOp::And, Width::W64, v, !RFlags::IF.bits());
        t.b.set(global::EFLAGS, v);
    } else {
        t.call(h::CLI_VIRTUAL, &[]);
    }
}

fn sti(t: &mut Translator<'_>) {
    t.call(h::STI, &[]);
    if t.single && owns_interrupts(t) {
        t.call(h::OPEN_SHADOW, &[]);
        shadow_next(t, false);
    } else {
        t.opens_shadow = owns_interrupts(t);
    }
}

fn set_ac(t: &mut Translator<'_>, on: u64) {
    if t.cpl() != 0 {
        return t.undefined();
    }
    let on = t.b.iconst(on);
    t.call(h::SET_AC, &[on]);
    mode_changed(t);
}

// ----- the CPU as a whole -----

fn hlt(t: &mut Translator<'_>) {
    if privileged(t) {
        t.set_pc(t.next);
        t.leave(if t.is(mode::TRAP) { leave::SINGLE_STEP } else { leave::HALT });
    }
}

/// RSM; outside of system-management mode #UD.
fn rsm(t: &mut Translator<'_>) {
    if t.is(mode::SMM) {
        transfer(t, h::RSM, &[]);
    } else {
        t.undefined();
    }
}

/// Caches are coherent: nothing but privilege.
fn privileged_nothing(t: &mut Translator<'_>) {
    let _ = privileged(t);
}
