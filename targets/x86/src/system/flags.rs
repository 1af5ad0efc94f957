//! Instructions on RFLAGS as a whole, and on IF: PUSHF, POPF, CLI, STI, under IOPL, VME and PVI (SDM volume 2; volume 3,
//! section 20.3 and 20.4).

use super::exception::gp;
use super::interrupt::check_interrupts;
use super::{Result, iopl, virtual_8086};
use crate::state::{Cr0, Cr4, RFlags, X86Env};

/// What an instruction on IF acts on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum InterruptFlag {
    /// IF itself.
    Real,
    /// VIF, by VME or PVI.
    Virtual,
}

fn interrupt_flag(env: &X86Env) -> Result<InterruptFlag> {
    if !env.cr0.contains(Cr0::PE) || env.cpl <= iopl(env) {
        return Ok(InterruptFlag::Real);
    }
    let extension = if virtual_8086(env) { Cr4::VME } else { Cr4::PVI };
    if env.cpl == 3 && env.cr4.contains(extension) { Ok(InterruptFlag::Virtual) } else { Err(gp(0)) }
}

/// CLI.
pub fn cli(env: &mut X86Env) -> Result<()> {
    let flag = match interrupt_flag(env)? {
        InterruptFlag::Real => RFlags::IF,
        InterruptFlag::Virtual => RFlags::VIF,
    };
    env.eflags &= !flag.bits();
    Ok(())
}

/// STI. If IF was clear, the caller holds interrupts off for the next instruction.
pub fn sti(env: &mut X86Env) -> Result<()> {
    match interrupt_flag(env)? {
        InterruptFlag::Real => {
            env.eflags |= RFlags::IF.bits();
            check_interrupts(env);
        }
        InterruptFlag::Virtual => {
            if env.eflags & RFlags::VIP.bits() != 0 {
                return Err(gp(0));
            }
            env.eflags |= RFlags::VIF.bits();
        }
    }
    Ok(())
}

/// The image that PUSHF with an operand size of `size` bytes pushes.
pub fn pushf(env: &X86Env, size: u32) -> Result<u64> {
    let image = env.rflags() & !(RFlags::VM | RFlags::RF).bits();
    if !virtual_8086(env) || iopl(env) == 3 {
        return Ok(image);
    }
    if size != 2 || !env.cr4.contains(Cr4::VME) {
        return Err(gp(0));
    }
    Ok(virtual_image(image))
}

/// What is pushed of flags in virtual-8086 mode with CR4.VME and an IOPL below 3: VIF in the place of IF, and an IOPL of 3 (SDM
/// volume 3, section 20.3.3).
pub fn virtual_image(flags: u64) -> u64 {
    let vif = flags >> 19 & 1;
    flags & !RFlags::IF.bits() | vif << 9 | RFlags::IOPL.bits()
}

/// Flags that POPF and IRET load, besides those that the privilege and operand size allow.
pub fn always_loaded() -> RFlags {
    RFlags::CF
        | RFlags::PF
        | RFlags::AF
        | RFlags::ZF
        | RFlags::SF
        | RFlags::TF
        | RFlags::DF
        | RFlags::OF
        | RFlags::NT
}

/// What POPF and IRET load in virtual-8086 mode with CR4.VME and an IOPL below 3: VIF takes the place of IF (SDM volume 3,
/// section 20.3.3).
pub fn with_virtual_if(env: &X86Env, image: u64) -> Result<u64> {
    let enable = image & RFlags::IF.bits() != 0;
    let pending = env.eflags & RFlags::VIP.bits() != 0;
    if enable && pending || image & RFlags::TF.bits() != 0 {
        return Err(gp(0));
    }
    Ok(if enable { image | RFlags::VIF.bits() } else { image & !RFlags::VIF.bits() })
}

/// POPF of an image popped with an operand size of `size` bytes.
pub fn popf(env: &mut X86Env, image: u64, size: u32) -> Result<()> {
    let mut mask = always_loaded();
    if size > 2 {
        mask |= RFlags::AC | RFlags::ID;
    }
    let mut image = image;
    if virtual_8086(env) && iopl(env) < 3 {
        if size != 2 || !env.cr4.contains(Cr4::VME) {
            return Err(gp(0));
        }
        mask |= RFlags::VIF;
        image = with_virtual_if(env, image)?;
    } else {
        if env.cpl <= iopl(env) {
            mask |= RFlags::IF;
        }
        if env.cpl == 0 {
            mask |= RFlags::IOPL;
        }
    }
    // RF is cleared by every POPF.
    let kept = env.rflags() & !(mask | RFlags::RF).bits();
    env.set_rflags(kept | image & mask.bits());
    env.update_privilege();
    check_interrupts(env);
    Ok(())
}

/// CLAC and STAC.
pub fn set_ac(env: &mut X86Env, on: bool) {
    if on {
        env.eflags |= RFlags::AC.bits();
    } else {
        env.eflags &= !RFlags::AC.bits();
    }
    env.update_privilege();
}
