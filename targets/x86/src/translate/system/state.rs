//! Time, identification, MSRs, ports, extended state.

use std::mem::offset_of;

use iced_x86::{Instruction, OpKind};
use tessera_tcg::ir::{HelperId, Inst, Value, Width};

use super::super::Translator;
use super::super::int_string::address_width;
use super::super::operand::segment_number;
use super::{ecx, edx_eax, env_load, mode_changed, poll_next, privileged, set_edx_eax};
use crate::helpers::system as h;
use crate::state::{Msrs, X86Env, mode, reg, seg};
use crate::system::exception::vector;
use crate::system::io::StringIo;

/// Raises #GP(0), and is false, for what CR4.TSD keeps from user mode.
pub(super) fn time_allowed(t: &mut Translator<'_>) -> bool {
    let ok = t.cpl() == 0 || !t.is(mode::TSD);
    if !ok {
        t.protection();
    }
    ok
}

pub(super) fn rdtsc(t: &mut Translator<'_>) {
    if time_allowed(t) {
        let v = t.call(h::RDTSC, &[]);
        set_edx_eax(t, v);
    }
}

const TSC_AUX: usize = offset_of!(X86Env, msr) + offset_of!(Msrs, tsc_aux);

pub(super) fn rdtscp(t: &mut Translator<'_>) {
    if time_allowed(t) {
        let v = t.call(h::RDTSC, &[]);
        let aux = env_load(t, Width::W32, TSC_AUX);
        set_edx_eax(t, v);
        t.set_gpr(reg::RCX, Width::W32, aux);
    }
}

pub(super) fn rdpid(t: &mut Translator<'_>, i: &Instruction) {
    let aux = env_load(t, Width::W32, TSC_AUX);
    t.set_reg(i.op0_register(), aux);
}

pub(super) fn rdmsr(t: &mut Translator<'_>) {
    if privileged(t) {
        let index = ecx(t);
        let v = t.call(h::RDMSR, &[index]);
        set_edx_eax(t, v);
    }
}

pub(super) fn wrmsr(t: &mut Translator<'_>) {
    if privileged(t) {
        let (index, v) = (ecx(t), edx_eax(t));
        t.call(h::WRMSR, &[index, v]);
        poll_next(t);
    }
}

pub(super) fn rdpmc(t: &mut Translator<'_>) {
    if t.cpl() != 0 && !t.is(mode::PCE) {
        return t.protection();
    }
    let index = ecx(t);
    t.call(h::RDPMC, &[index]);
}

/// Port number and bytes of an IN or OUT: `port` and `data` are its operands' numbers.
pub(super) fn port_operands(t: &mut Translator<'_>, i: &Instruction, port: u32, data: u32) -> (Value, Value) {
    let size = i.op_register(data).size() as u64;
    let port = if i.op_kind(port) == OpKind::Register {
        let d = t.gpr(reg::RDX);
        t.b.extend(Width::W16, tessera_tcg::ir::Ext::Zero, d)
    } else {
        t.b.iconst(i.immediate8() as u64)
    };
    (port, t.b.iconst(size))
}

pub(super) fn port_in(t: &mut Translator<'_>, i: &Instruction) {
    let (port, size) = port_operands(t, i, 1, 0);
    let v = t.call(h::IN, &[port, size]);
    t.set_reg(i.op0_register(), v);
    if t.is(mode::DEBUG) {
        // An I/O breakpoint may have hit.
        poll_next(t);
    }
}

pub(super) fn port_out(t: &mut Translator<'_>, i: &Instruction) {
    let (port, size) = port_operands(t, i, 0, 1);
    let v = t.reg_zx(i.op1_register());
    t.call(h::OUT, &[port, size, v]);
    // What was written to may reset or stop the machine, or raise an interrupt.
    poll_next(t);
}

pub(super) fn string_io(t: &mut Translator<'_>, i: &Instruction, input: bool, size: u32) {
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

pub(super) fn wide_value(t: &mut Translator<'_>, wide: u64) -> Value {
    t.b.iconst(wide)
}

pub(super) fn fxsave(t: &mut Translator<'_>, i: &Instruction, helper: HelperId, wide: u64) {
    if t.mode & (mode::FPU_EM | mode::FPU_TS) != 0 {
        return t.raise(vector::NM, None);
    }
    let addr = t.address(i, 512, helper == h::FXSAVE);
    t.x87_home();
    let wide = wide_value(t, wide);
    t.call(helper, &[addr, wide]);
    if helper == h::FXRSTOR {
        // MXCSR's masks are part of the mode.
        mode_changed(t);
    }
}

pub(super) fn xsave(t: &mut Translator<'_>, i: &Instruction, form: u64, wide: u64) {
    let addr = t.address(i, 576, true);
    t.x87_home();
    let mask = edx_eax(t);
    let (form, wide) = (t.b.iconst(form), wide_value(t, wide));
    t.call(h::XSAVE, &[addr, mask, form, wide]);
}

pub(super) fn xrstor(t: &mut Translator<'_>, i: &Instruction, supervisor: u64, wide: u64) {
    let addr = t.address(i, 576, false);
    t.x87_home();
    let mask = edx_eax(t);
    let (supervisor, wide) = (t.b.iconst(supervisor), wide_value(t, wide));
    t.call(h::XRSTOR, &[addr, mask, supervisor, wide]);
    mode_changed(t);
}

pub(super) fn xgetbv(t: &mut Translator<'_>) {
    t.x87_home();
    let index = ecx(t);
    let v = t.call(h::XGETBV, &[index]);
    set_edx_eax(t, v);
}

pub(super) fn xsetbv(t: &mut Translator<'_>) {
    let (index, v) = (ecx(t), edx_eax(t));
    t.call(h::XSETBV, &[index, v]);
    mode_changed(t);
}

pub(super) fn rdpkru(t: &mut Translator<'_>) {
    let index = ecx(t);
    let v = t.call(h::RDPKRU, &[index]);
    set_edx_eax(t, v);
}

pub(super) fn wrpkru(t: &mut Translator<'_>) {
    let (c, d) = (ecx(t), t.gpr(reg::RDX));
    let index = t.b.push(Inst::Insert { a: c, b: d, pos: 32, len: 32 });
    let v = t.gpr(reg::RAX);
    t.call(h::WRPKRU, &[index, v]);
}
