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

use std::mem::{offset_of, size_of};

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Cond, FlagOp, HelperId, Inst, Value, Width, flags};

use super::int_string::address_width;
use super::operand::segment_number;
use super::{Row, Translator, vector};
use crate::helpers::system as h;
use crate::state::{Msrs, RFlags, Segment, X86Env, global, leave, mode, reg, seg};
use crate::system::io::StringIo;

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
    Row::All(Mnemonic::Xrstor, |t, i| xrstor(t, i, 0)),
    Row::All(Mnemonic::Xrstor64, |t, i| xrstor(t, i, 1)),
    Row::All(Mnemonic::Xgetbv, |t, _| xgetbv(t)),
    Row::All(Mnemonic::Xsetbv, |t, _| xsetbv(t)),
    Row::All(Mnemonic::Rdpkru, |t, _| rdpkru(t)),
    Row::All(Mnemonic::Wrpkru, |t, _| wrpkru(t)),
    // The CPU as a whole.
    Row::All(Mnemonic::Hlt, |t, _| hlt(t)),
    Row::All(Mnemonic::Invd, |t, _| privileged_nothing(t)),
    Row::All(Mnemonic::Wbinvd, |t, _| privileged_nothing(t)),
    Row::All(Mnemonic::Wbnoinvd, |t, _| privileged_nothing(t)),
    Row::All(Mnemonic::Rsm, |t, _| t.undefined()),
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

/// Goes on at the next instruction, which runs before interrupts are looked at. `interrupt_shadow` is set.
fn shadow_next(t: &mut Translator<'_>) {
    t.set_pc(t.next);
    if t.single {
        t.leave(if t.is(mode::TRAP) { leave::SINGLE_STEP } else { leave::SHADOW });
    } else {
        t.leave_for_mode_change();
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

// ----- segment registers -----

/// Loads segment register `n`. Returns with the block open where the mode cannot have changed.
fn load_segment(t: &mut Translator<'_>, n: usize, selector: Value) {
    if n == seg::SS {
        t.call(h::LOAD_SS, &[selector]);
    } else {
        let n = t.b.iconst(n as u64);
        t.call(h::LOAD_SEGMENT, &[n, selector]);
    }
}

/// Ends an instruction that has loaded segment register `n`.
fn segment_loaded(t: &mut Translator<'_>, n: usize) {
    if n == seg::SS {
        shadow_next(t);
    } else if !t.code64() {
        mode_changed(t);
    }
}

fn mov_segment(t: &mut Translator<'_>, i: &Instruction) {
    let n = segment_number(i.op0_register());
    if n == seg::CS {
        return t.undefined();
    }
    let v = match i.op1_kind() {
        OpKind::Register => t.reg(i.op1_register()),
        _ => {
            let addr = t.address(i, 2, false);
            t.load(Width::W16, addr)
        }
    };
    load_segment(t, n, v);
    segment_loaded(t, n);
}

fn pop_segment(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    let n = segment_number(i.op0_register());
    let v = t.peek(w, 0);
    load_segment(t, n, v);
    t.drop_stack(w.bytes() as i64);
    segment_loaded(t, n);
}

fn load_far_pointer(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    let w = t.width(i, 0);
    let (offset, selector) = far_pointer(t, i, w);
    load_segment(t, n, selector);
    t.set_reg(i.op0_register(), offset);
    segment_loaded(t, n);
}

/// Offset and selector of a far pointer in memory.
fn far_pointer(t: &mut Translator<'_>, i: &Instruction, w: Width) -> (Value, Value) {
    let addr = t.address(i, w.bytes() + 2, false);
    let offset = t.load(w, addr);
    let at = t.b.add_imm(Width::W64, addr, w.bytes() as i64);
    let at = if t.code64() { at } else { t.zx(Width::W32, at) };
    (offset, t.load(Width::W16, at))
}

fn with_fsgsbase(t: &mut Translator<'_>) -> bool {
    let ok = t.is(mode::FSGSBASE);
    if !ok {
        t.undefined();
    }
    ok
}

fn read_base(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    if with_fsgsbase(t) {
        let v = t.b.get(global::seg_base(n));
        t.set_reg(i.op0_register(), v);
    }
}

fn write_base(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    if with_fsgsbase(t) {
        let v = t.reg_zx(i.op0_register());
        let n = t.b.iconst(n as u64);
        t.call(h::WRITE_BASE, &[n, v]);
    }
}

fn segment_offset(n: usize, field: usize) -> usize {
    offset_of!(X86Env, seg) + n * size_of::<Segment>() + field
}

fn swapgs(t: &mut Translator<'_>) {
    if !privileged(t) {
        return;
    }
    let kernel = offset_of!(X86Env, msr) + offset_of!(Msrs, kernel_gs_base);
    let base = t.b.get(global::seg_base(seg::GS));
    let other = env_load(t, Width::W64, kernel);
    env_store(t, Width::W64, kernel, base);
    env_store(t, Width::W64, segment_offset(seg::GS, offset_of!(Segment, base)), other);
    t.b.set(global::seg_base(seg::GS), other);
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
        shadow_next(t);
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

// ----- control and debug registers -----

fn control_number(r: Register) -> usize {
    (r as usize).wrapping_sub(Register::CR0 as usize)
}

fn mov_from_control(t: &mut Translator<'_>, i: &Instruction) {
    let offset = match control_number(i.op1_register()) {
        0 => Some(offset_of!(X86Env, cr0)),
        2 => Some(offset_of!(X86Env, cr2)),
        3 => Some(offset_of!(X86Env, cr3)),
        4 => Some(offset_of!(X86Env, cr4)),
        8 => None,
        _ => return t.undefined(),
    };
    if !privileged(t) {
        return;
    }
    let v = match offset {
        Some(offset) => env_load(t, Width::W64, offset),
        None => t.call(h::READ_CR8, &[]),
    };
    t.set_reg(i.op0_register(), v);
}

fn mov_to_control(t: &mut Translator<'_>, i: &Instruction) {
    let n = control_number(i.op0_register());
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return t.undefined();
    }
    if !privileged(t) {
        return;
    }
    let v = t.reg_zx(i.op1_register());
    match n {
        2 => env_store(t, Width::W64, offset_of!(X86Env, cr2), v),
        3 => {
            t.call(h::WRITE_CR3, &[v]);
            poll_next(t);
        }
        8 => {
            t.call(h::WRITE_CR8, &[v]);
            poll_next(t);
        }
        _ => {
            let n = t.b.iconst(n as u64);
            t.call(h::WRITE_CR, &[n, v]);
            mode_changed(t);
        }
    }
}

fn debug_number(t: &mut Translator<'_>, r: Register) -> Option<Value> {
    let n = (r as usize).wrapping_sub(Register::DR0 as usize);
    if n > 7 {
        t.undefined();
        return None;
    }
    Some(t.b.iconst(n as u64))
}

fn mov_from_debug(t: &mut Translator<'_>, i: &Instruction) {
    if let Some(n) = debug_number(t, i.op1_register()) {
        let v = t.call(h::READ_DR, &[n]);
        t.set_reg(i.op0_register(), v);
    }
}

fn mov_to_debug(t: &mut Translator<'_>, i: &Instruction) {
    if let Some(n) = debug_number(t, i.op0_register()) {
        let v = t.reg_zx(i.op1_register());
        t.call(h::WRITE_DR, &[n, v]);
        mode_changed(t);
    }
}

/// SMSW, SLDT, STR: the low word to memory; registers get as many bits as they have.
fn store_word(t: &mut Translator<'_>, i: &Instruction, offset: usize) {
    if !unless_umip(t) {
        return;
    }
    if i.op0_kind() == OpKind::Register {
        let v = env_load(t, Width::W32, offset);
        t.set_reg(i.op0_register(), v);
    } else {
        let addr = t.address(i, 2, true);
        let v = env_load(t, Width::W16, offset);
        t.store(Width::W16, addr, v);
    }
}

fn store_selector(t: &mut Translator<'_>, i: &Instruction, n: usize) {
    if !with_selectors(t) || !unless_umip(t) {
        return;
    }
    let offset = segment_offset(n, offset_of!(Segment, selector));
    let v = env_load(t, Width::W16, offset);
    if i.op0_kind() == OpKind::Register {
        t.set_reg(i.op0_register(), v);
    } else {
        let addr = t.address(i, 2, true);
        t.store(Width::W16, addr, v);
    }
}

/// A word operand: the low half of a register, or two bytes of memory.
fn word_operand(t: &mut Translator<'_>, i: &Instruction, n: u32) -> Value {
    if i.op_kind(n) == OpKind::Register {
        let v = t.reg(i.op_register(n));
        return t.b.extend(Width::W16, tessera_tcg::ir::Ext::Zero, v);
    }
    let addr = t.address(i, 2, false);
    t.load(Width::W16, addr)
}

fn lmsw(t: &mut Translator<'_>, i: &Instruction) {
    if privileged(t) {
        let v = word_operand(t, i, 0);
        t.call(h::LMSW, &[v]);
        mode_changed(t);
    }
}

fn clts(t: &mut Translator<'_>) {
    if privileged(t) {
        t.call(h::CLTS, &[]);
        mode_changed(t);
    }
}

fn invlpg(t: &mut Translator<'_>, i: &Instruction) {
    if privileged(t) {
        let addr = t.address(i, 0, false);
        t.call(h::INVLPG, &[addr]);
        poll_next(t);
    }
}

fn invpcid(t: &mut Translator<'_>, i: &Instruction) {
    if t.is(mode::V86) {
        return t.protection();
    }
    if privileged(t) {
        let kind = t.reg_zx(i.op0_register());
        let addr = t.address(i, 16, false);
        t.call(h::INVPCID, &[kind, addr]);
        poll_next(t);
    }
}

// ----- descriptor tables -----

fn load_table(t: &mut Translator<'_>, i: &Instruction, helper: HelperId, size: u64) {
    if privileged(t) {
        let addr = t.address(i, if size == 8 { 10 } else { 6 }, false);
        let size = t.b.iconst(size);
        t.call(helper, &[addr, size]);
    }
}

fn store_table(t: &mut Translator<'_>, i: &Instruction, idt: u64) {
    if !unless_umip(t) {
        return;
    }
    let size = if t.code64() { 8 } else { 4 };
    let addr = t.address(i, if size == 8 { 10 } else { 6 }, true);
    let (idt, size) = (t.b.iconst(idt), t.b.iconst(size));
    t.call(h::STORE_TABLE, &[idt, addr, size]);
}

fn load_system(t: &mut Translator<'_>, i: &Instruction, helper: HelperId) {
    if with_selectors(t) && privileged(t) {
        let v = word_operand(t, i, 0);
        t.call(helper, &[v]);
    }
}

/// Sets ZF to a value that is 1 or 0, and leaves the other flags.
fn set_zero_flag(t: &mut Translator<'_>, zero: Value) {
    let packed = t.packed_flags();
    let bit = flags::Z.trailing_zeros() as u8;
    let v = t.b.push(Inst::Insert { a: packed, b: zero, pos: bit, len: 1 });
    t.set_packed_flags(v);
}

/// LAR and LSL.
fn inspect(t: &mut Translator<'_>, i: &Instruction, helper: HelperId) {
    if !with_selectors(t) {
        return;
    }
    let selector = word_operand(t, i, 1);
    let found = t.call(helper, &[selector]);
    let none = t.b.iconst(u64::MAX);
    let f = t.b.flags(FlagOp::Sub, Width::W64, found, none);
    let valid = t.b.set_cond(Cond::NE, f);
    let old = t.reg(i.op0_register());
    // An invalid selector leaves all of the register; a valid one writes it as its size says.
    if t.width(i, 0) == Width::W16 {
        let v = t.b.select(Cond::NE, f, found, old);
        t.set_reg(i.op0_register(), v);
    } else {
        let n = i.op0_register().full_register() as usize - Register::RAX as usize;
        let full = t.gpr(n);
        let v = t.b.select(Cond::NE, f, found, full);
        t.b.set(global::gpr(n), v);
    }
    set_zero_flag(t, valid);
}

fn verify(t: &mut Translator<'_>, i: &Instruction, write: u64) {
    if with_selectors(t) {
        let selector = word_operand(t, i, 0);
        let write = t.b.iconst(write);
        let valid = t.call(h::VERIFY, &[selector, write]);
        set_zero_flag(t, valid);
    }
}

fn arpl(t: &mut Translator<'_>, i: &Instruction) {
    if !with_selectors(t) {
        return;
    }
    let place = t.place(i, 0);
    let old = t.load_place(place, Width::W16);
    let source = t.reg(i.op1_register());
    let have = t.b.bin_imm(BinOp::And, Width::W32, old, 3);
    let want = t.b.bin_imm(BinOp::And, Width::W32, source, 3);
    let f = t.b.flags(FlagOp::Sub, Width::W32, have, want);
    let raised = t.b.push(Inst::Insert { a: old, b: want, pos: 0, len: 2 });
    let new = t.b.select(Cond::B, f, raised, old);
    let lower = t.b.set_cond(Cond::B, f);
    t.store_place(place, Width::W16, new);
    set_zero_flag(t, lower);
}

// ----- time, identification, MSRs -----

/// Raises #GP(0), and is false, for what CR4.TSD keeps from user mode.
fn time_allowed(t: &mut Translator<'_>) -> bool {
    let ok = t.cpl() == 0 || !t.is(mode::TSD);
    if !ok {
        t.protection();
    }
    ok
}

fn rdtsc(t: &mut Translator<'_>) {
    if time_allowed(t) {
        let v = t.call(h::RDTSC, &[]);
        set_edx_eax(t, v);
    }
}

const TSC_AUX: usize = offset_of!(X86Env, msr) + offset_of!(Msrs, tsc_aux);

fn rdtscp(t: &mut Translator<'_>) {
    if time_allowed(t) {
        let v = t.call(h::RDTSC, &[]);
        let aux = env_load(t, Width::W32, TSC_AUX);
        set_edx_eax(t, v);
        t.set_gpr(reg::RCX, Width::W32, aux);
    }
}

fn rdpid(t: &mut Translator<'_>, i: &Instruction) {
    let aux = env_load(t, Width::W32, TSC_AUX);
    t.set_reg(i.op0_register(), aux);
}

fn rdmsr(t: &mut Translator<'_>) {
    if privileged(t) {
        let index = ecx(t);
        let v = t.call(h::RDMSR, &[index]);
        set_edx_eax(t, v);
    }
}

fn wrmsr(t: &mut Translator<'_>) {
    if privileged(t) {
        let (index, v) = (ecx(t), edx_eax(t));
        t.call(h::WRMSR, &[index, v]);
        poll_next(t);
    }
}

fn rdpmc(t: &mut Translator<'_>) {
    if t.cpl() != 0 && !t.is(mode::PCE) {
        return t.protection();
    }
    let index = ecx(t);
    t.call(h::RDPMC, &[index]);
}

// ----- ports -----

/// Port number and bytes of an IN or OUT: `port` and `data` are its operands' numbers.
fn port_operands(t: &mut Translator<'_>, i: &Instruction, port: u32, data: u32) -> (Value, Value) {
    let size = i.op_register(data).size() as u64;
    let port = if i.op_kind(port) == OpKind::Register {
        let d = t.gpr(reg::RDX);
        t.b.extend(Width::W16, tessera_tcg::ir::Ext::Zero, d)
    } else {
        t.b.iconst(i.immediate8() as u64)
    };
    (port, t.b.iconst(size))
}

fn port_in(t: &mut Translator<'_>, i: &Instruction) {
    let (port, size) = port_operands(t, i, 1, 0);
    let v = t.call(h::IN, &[port, size]);
    t.set_reg(i.op0_register(), v);
}

fn port_out(t: &mut Translator<'_>, i: &Instruction) {
    let (port, size) = port_operands(t, i, 0, 1);
    let v = t.reg_zx(i.op1_register());
    t.call(h::OUT, &[port, size, v]);
    // What was written to may reset or stop the machine, or raise an interrupt.
    poll_next(t);
}

fn string_io(t: &mut Translator<'_>, i: &Instruction, input: bool, size: u32) {
    let op = StringIo {
        input,
        size,
        address_size: address_width(i).bytes(),
        segment: if input { seg::ES } else { segment_number(i.memory_segment()) },
        repeat: i.has_rep_prefix() || i.has_repne_prefix(),
    };
    let (op, pc) = (t.b.iconst(op.pack()), t.b.iconst(t.pc));
    t.set_pc(t.next);
    t.call(h::STRING_IO, &[op, pc]);
    t.leave_for_mode_change();
}

// ----- extended state -----

fn wide_value(t: &mut Translator<'_>, wide: u64) -> Value {
    t.b.iconst(wide)
}

fn fxsave(t: &mut Translator<'_>, i: &Instruction, helper: HelperId, wide: u64) {
    if t.mode & (mode::FPU_EM | mode::FPU_TS) != 0 {
        return t.raise(vector::NM, None);
    }
    let addr = t.address(i, 512, helper == h::FXSAVE);
    let wide = wide_value(t, wide);
    t.call(helper, &[addr, wide]);
    if helper == h::FXRSTOR {
        // MXCSR's masks are part of the mode.
        mode_changed(t);
    }
}

fn xsave(t: &mut Translator<'_>, i: &Instruction, form: u64, wide: u64) {
    let addr = t.address(i, 576, true);
    let mask = edx_eax(t);
    let (form, wide) = (t.b.iconst(form), wide_value(t, wide));
    t.call(h::XSAVE, &[addr, mask, form, wide]);
}

fn xrstor(t: &mut Translator<'_>, i: &Instruction, wide: u64) {
    let addr = t.address(i, 576, false);
    let mask = edx_eax(t);
    let wide = wide_value(t, wide);
    t.call(h::XRSTOR, &[addr, mask, wide]);
    mode_changed(t);
}

fn xgetbv(t: &mut Translator<'_>) {
    let index = ecx(t);
    let v = t.call(h::XGETBV, &[index]);
    set_edx_eax(t, v);
}

fn xsetbv(t: &mut Translator<'_>) {
    let (index, v) = (ecx(t), edx_eax(t));
    t.call(h::XSETBV, &[index, v]);
    mode_changed(t);
}

fn rdpkru(t: &mut Translator<'_>) {
    let index = ecx(t);
    let v = t.call(h::RDPKRU, &[index]);
    set_edx_eax(t, v);
}

fn wrpkru(t: &mut Translator<'_>) {
    let (c, d) = (ecx(t), t.gpr(reg::RDX));
    let index = t.b.push(Inst::Insert { a: c, b: d, pos: 32, len: 32 });
    let v = t.gpr(reg::RAX);
    t.call(h::WRPKRU, &[index, v]);
}

// ----- the CPU as a whole -----

fn hlt(t: &mut Translator<'_>) {
    if privileged(t) {
        t.set_pc(t.next);
        t.leave(if t.is(mode::TRAP) { leave::SINGLE_STEP } else { leave::HALT });
    }
}

/// Caches are coherent: nothing but privilege.
fn privileged_nothing(t: &mut Translator<'_>) {
    let _ = privileged(t);
}
