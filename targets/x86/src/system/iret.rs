//! IRET (SDM volume 2, IRET/IRETD/IRETQ).

use super::exception::gp;
use super::flags::{always_loaded, with_virtual_if};
use super::segment::{
    self, drop_privileged_segments, enter_code, enter_virtual, mark_accessed, returned_code, returned_stack,
};
use super::stack::{Stack, set_stack_pointer};
use super::{Result, iopl, long_mode, task, virtual_8086};
use crate::state::{Cr0, Cr4, RFlags, X86Env, reg, seg};

/// Flags that an operand size of 32 bits or more adds.
fn wide() -> RFlags {
    RFlags::RF | RFlags::AC | RFlags::ID
}

/// IRET with an operand size of 2, 4 or 8 bytes. NMIs are unblocked even if it faults.
pub fn iret(env: &mut X86Env, size: u32) -> Result<()> {
    if std::mem::take(&mut env.nmi_blocked) {
        super::interrupt::request_exit(env);
    }
    if !env.cr0.contains(Cr0::PE) {
        real(env, size)?;
    } else if virtual_8086(env) {
        from_virtual(env, size)?;
    } else if env.eflags & RFlags::NT.bits() != 0 {
        if long_mode(env) {
            return Err(gp(0));
        }
        return task::return_to_link(env);
    } else {
        protected(env, size)?;
    }
    keep_resume_flag(env);
    env.update_privilege();
    super::interrupt::check_interrupts(env);
    Ok(())
}

/// RF only matters to instruction breakpoints. Where there are none nobody would clear it, so it is dropped at once.
fn keep_resume_flag(env: &mut X86Env) {
    if !super::debug::code_breakpoints(env) {
        env.eflags &= !RFlags::RF.bits();
    }
}

fn set_masked(env: &mut X86Env, new: u64, mask: RFlags) {
    let old = env.rflags();
    env.set_rflags(old & !mask.bits() | new & mask.bits());
}

fn real(env: &mut X86Env, size: u32) -> Result<()> {
    let mut stack = Stack::current(env);
    let ip = stack.pop(env, size)?;
    let cs = stack.pop(env, size)? as u16;
    let flags = stack.pop(env, size)?;
    if ip > env.seg[seg::CS].limit as u64 {
        return Err(gp(0));
    }
    stack.commit(env);
    let segment = segment::real_segment(&env.seg[seg::CS], seg::CS, cs);
    env.set_segment(seg::CS, segment);
    env.set_ip(ip);
    let mut mask = always_loaded() | RFlags::IF | RFlags::IOPL;
    if size > 2 {
        mask |= wide();
    }
    set_masked(env, flags, mask);
    Ok(())
}

/// In virtual-8086 mode: with IOPL 3, or by VIF with CR4.VME.
fn from_virtual(env: &mut X86Env, size: u32) -> Result<()> {
    let privileged = iopl(env) == 3;
    let by_vme = size == 2 && env.cr4.contains(Cr4::VME);
    if !privileged && !by_vme {
        return Err(gp(0));
    }
    let mut stack = Stack::current(env);
    let ip = stack.pop(env, size)?;
    let cs = stack.pop(env, size)? as u16;
    let flags = stack.pop(env, size)?;
    if ip > 0xffff {
        return Err(gp(0));
    }
    let mut mask = always_loaded();
    let mut new = flags;
    if privileged {
        mask |= RFlags::IF;
        if size > 2 {
            mask |= wide();
        }
    } else {
        mask |= RFlags::VIF;
        new = with_virtual_if(env, flags)?;
    }
    stack.commit(env);
    env.set_segment(seg::CS, segment::virtual_segment(cs));
    env.set_ip(ip);
    set_masked(env, new, mask);
    Ok(())
}

fn protected(env: &mut X86Env, size: u32) -> Result<()> {
    let cpl = env.cpl;
    let from64 = env.code64();
    let mut stack = Stack::current(env);
    // What 64-bit code returns by is a frame of five quadwords.
    let frame = if size == 8 { stack.next_quads::<5>(env) } else { None };
    let (ip, selector, flags) = match frame {
        Some([ip, cs, flags, ..]) => (ip, cs as u16, flags),
        None => (stack.pop(env, size)?, stack.pop(env, size)? as u16, stack.pop(env, size)?),
    };
    if size == 4 && flags & RFlags::VM.bits() != 0 && cpl == 0 && !long_mode(env) {
        return to_virtual(env, stack, ip, selector, flags);
    }
    let mut entry = returned_code(env, selector, ip)?;
    let rpl = (selector & 3) as u8;

    // 64-bit code always returns with a stack.
    let new_stack = if rpl > cpl || from64 {
        let (sp, ss) = match frame {
            Some([.., sp, ss]) => (sp, ss as u16),
            None => (stack.pop(env, size)?, stack.pop(env, size)? as u16),
        };
        Some((returned_stack(env, ss, &entry, rpl)?, sp))
    } else {
        None
    };
    mark_accessed(env, &mut entry)?;

    let mut mask = always_loaded();
    if size > 2 {
        mask |= wide();
    }
    if cpl <= iopl(env) {
        mask |= RFlags::IF;
    }
    if cpl == 0 {
        mask |= RFlags::IOPL;
        if size > 2 {
            mask |= RFlags::VIF | RFlags::VIP;
        }
    }
    enter_code(env, entry.desc, selector, rpl, ip);
    match new_stack {
        Some((segment, sp)) => {
            env.set_segment(seg::SS, segment);
            // To a 16-bit stack only SP is loaded: bits 31:16 keep what the handler had in them.
            set_stack_pointer(env, sp);
        }
        None => stack.commit(env),
    }
    if !(long_mode(env) && entry.desc.long()) {
        env.gpr[reg::RSP] &= 0xffff_ffff;
    }
    set_masked(env, flags, mask);
    if rpl > cpl {
        drop_privileged_segments(env);
    }
    Ok(())
}

/// Return to virtual-8086 mode.
fn to_virtual(env: &mut X86Env, mut stack: Stack, ip: u64, cs: u16, flags: u64) -> Result<()> {
    let sp = stack.pop(env, 4)?;
    let mut selectors = [0u16; 6];
    for n in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS] {
        selectors[n] = stack.pop(env, 4)? as u16;
    }
    selectors[seg::CS] = cs;
    if ip > 0xffff {
        return Err(gp(0));
    }
    env.set_rflags(flags);
    enter_virtual(env, selectors);
    env.gpr[reg::RSP] = sp & 0xffff_ffff;
    env.set_ip(ip);
    Ok(())
}
