//! Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM volume 2; volume 3, section 5.8.7), and SWAPGS.
//!
//! The program counter is that of the next instruction when these are called.

use super::exception::{gp, ud};
use super::interrupt::check_interrupts;
use super::{Result, debug, long_mode, selectors};
use crate::mmu::canonical;
use crate::state::{Cr0, Efer, RFlags, Segment, X86Env, reg, seg};

/// A flat code segment as the fast calls load it: 64-bit or 32-bit.
fn flat_code(selector: u16, dpl: u16, long: bool) -> Segment {
    let size = if long { Segment::LONG } else { Segment::DB };
    Segment { base: 0, limit: u32::MAX, access: 0x809b | dpl << 5 | size, selector }
}

fn flat_data(selector: u16, dpl: u16) -> Segment {
    Segment { base: 0, limit: u32::MAX, access: 0xc093 | dpl << 5, selector }
}

/// Sets CS and SS, the CPL and where to go.
fn enter(env: &mut X86Env, cs: u16, ss: u16, cpl: u8, long: bool, ip: u64) {
    env.set_segment(seg::CS, flat_code(cs, cpl as u16, long));
    env.set_segment(seg::SS, flat_data(ss, cpl as u16));
    env.cpl = cpl;
    env.set_ip(ip);
    env.update_privilege();
}

/// The single-step trap of a call that was stepped and that has not cleared TF.
fn trap_if(env: &mut X86Env, steps: bool) {
    if steps {
        debug::pend(env, debug::BS);
    }
}

/// SYSCALL. Intel's exists in 64-bit mode only; AMD's also in compatibility mode, where it goes to IA32_CSTAR, and in
/// legacy protected mode, where the entry point is in IA32_STAR (AMD64 manual volume 3, SYSCALL).
pub fn syscall(env: &mut X86Env) -> Result<()> {
    let amd = env.cpuid.is_amd() && env.cr0.contains(Cr0::PE);
    if !env.efer.contains(Efer::SCE) || !env.code64() && !amd {
        return Err(ud());
    }
    let flags = env.rflags();
    let selector = (env.msr.star >> 32) as u16 & !3;
    let stack = selector.wrapping_add(8);
    if !long_mode(env) {
        env.gpr[reg::RCX] = env.ip();
        env.set_rflags(flags & !(RFlags::VM | RFlags::IF | RFlags::RF).bits());
        enter(env, selector, stack, 0, false, env.msr.star & 0xffff_ffff);
        trap_if(env, flags & RFlags::TF.bits() != 0);
        return Ok(());
    }
    let target = if env.code64() { env.msr.lstar } else { env.msr.cstar };
    let steps = flags & !env.msr.fmask & RFlags::TF.bits() != 0;
    env.gpr[reg::RCX] = env.ip();
    env.gpr[11] = flags & !RFlags::RF.bits();
    env.set_rflags(flags & !env.msr.fmask & !RFlags::RF.bits());
    enter(env, selector, stack, 0, true, target);
    trap_if(env, steps);
    Ok(())
}

/// SYSRET with an operand size of 4 or 8 bytes. AMD's exists outside 64-bit mode, too, and there leaves all flags but IF.
pub fn sysret(env: &mut X86Env, size: u32) -> Result<()> {
    let amd = env.cpuid.is_amd() && env.cr0.contains(Cr0::PE);
    if !env.efer.contains(Efer::SCE) || !env.code64() && !amd {
        return Err(ud());
    }
    let target = env.gpr[reg::RCX];
    let long = size == 8;
    if env.cpl != 0 || long && !canonical(env, target) {
        return Err(gp(0));
    }
    let flags = if env.code64() { env.gpr[11] & 0x3c_7fd7 } else { env.rflags() | RFlags::IF.bits() };
    env.set_rflags(flags);
    let base = (env.msr.star >> 48) as u16;
    let cs = base.wrapping_add(if long { 16 } else { 0 }) | 3;
    let ip = if long { target } else { target & 0xffff_ffff };
    enter(env, cs, base.wrapping_add(8) | 3, 3, long, ip);
    // A single-step trap comes before the first user instruction.
    if env.eflags & RFlags::TF.bits() != 0 {
        debug::pend(env, debug::BS);
    }
    if !debug::code_breakpoints(env) {
        env.eflags &= !RFlags::RF.bits();
    }
    check_interrupts(env);
    Ok(())
}

/// SYSENTER. AMD's does not exist in long mode, nor does its SYSEXIT.
pub fn sysenter(env: &mut X86Env) -> Result<()> {
    if env.cpuid.is_amd() && long_mode(env) {
        return Err(ud());
    }
    let protected = env.cr0.contains(Cr0::PE);
    let cs = env.msr.sysenter_cs as u16 & !3;
    if !protected || cs == 0 {
        return Err(gp(0));
    }
    let long = long_mode(env);
    let (sp, ip) = if long {
        (env.msr.sysenter_esp, env.msr.sysenter_eip)
    } else {
        (env.msr.sysenter_esp & 0xffff_ffff, env.msr.sysenter_eip & 0xffff_ffff)
    };
    env.eflags &= !(RFlags::VM | RFlags::IF | RFlags::RF).bits();
    env.gpr[reg::RSP] = sp;
    enter(env, cs, cs.wrapping_add(8), 0, long, ip);
    let steps = env.eflags & RFlags::TF.bits() != 0;
    trap_if(env, steps);
    Ok(())
}

/// SYSEXIT with an operand size of 4 or 8 bytes.
pub fn sysexit(env: &mut X86Env, size: u32) -> Result<()> {
    if env.cpuid.is_amd() && long_mode(env) {
        return Err(ud());
    }
    let base = env.msr.sysenter_cs as u16 & !3;
    if !selectors(env) || base == 0 || env.cpl != 0 {
        return Err(gp(0));
    }
    let (mut sp, mut ip) = (env.gpr[reg::RCX], env.gpr[reg::RDX]);
    let long = size == 8;
    if long {
        if !canonical(env, sp) || !canonical(env, ip) {
            return Err(gp(0));
        }
    } else {
        sp &= 0xffff_ffff;
        ip &= 0xffff_ffff;
    }
    env.gpr[reg::RSP] = sp;
    let offset = if long { 32 } else { 16 };
    let cs = base.wrapping_add(offset);
    enter(env, cs | 3, cs.wrapping_add(8) | 3, 3, long, ip);
    Ok(())
}

/// SWAPGS: exchanges the base of GS with IA32_KERNEL_GS_BASE. The front end has seen to 64-bit mode and CPL 0.
pub fn swapgs(env: &mut X86Env) {
    let base = env.seg[seg::GS].base;
    env.set_segment_base(seg::GS, env.msr.kernel_gs_base);
    env.msr.kernel_gs_base = base;
}
