//! Debug registers and debug exceptions (SDM volume 3, chapter 17).
//!
//! Single-stepping and instruction breakpoints work; the state of data and I/O breakpoints is kept, but they do not
//! trigger.
//!
//! A #DB that is a trap of something else than the instruction just run (SYSRET, a task switch with the T bit) is *pended* in
//! [`X86Env::pending_debug`] and delivered when events are looked at.

use tessera_tcg::guest::Next;

use super::Result;
use super::exception::{db, deliver_exception, gp, ud};
use crate::state::{Cr4, RFlags, X86Env};

/// DR6.BD: access to a debug register under DR7.GD.
pub const BD: u64 = 1 << 13;
/// DR6.BS: single step.
pub const BS: u64 = 1 << 14;
/// DR6.BT: task switch.
pub const BT: u64 = 1 << 15;
/// DR7.GD.
const GD: u64 = 1 << 13;
/// Bits of DR6 that read as one.
pub const DR6_ONES: u64 = 0xffff_0ff0;
const DR6_WRITABLE: u64 = 0xe00f;
/// Bits of DR7 that can be written; bit 10 reads as one.
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// Value of DR7 after reset.
pub const DR7_RESET: u64 = 0x400;

/// Notes the reasons of a debug exception in DR6, as it is raised: B0 to B3 are those of this one, BD, BS and BT stay until
/// software clears them. DR7.GD is cleared, so that the handler can use the registers.
pub fn record(env: &mut X86Env, reasons: u64) {
    if reasons != 0 {
        env.dr[6] = env.dr[6] & !0xf | reasons | DR6_ONES;
    }
    env.dr[7] &= !GD;
}

/// Has a #DB delivered before the next instruction.
pub fn pend(env: &mut X86Env, reasons: u64) {
    env.pending_debug |= reasons;
    super::interrupt::request_exit(env);
}

/// Delivers a pended #DB, if any.
pub fn deliver_pending(env: &mut X86Env) -> Option<Next> {
    if env.pending_debug == 0 {
        return None;
    }
    let reasons = std::mem::take(&mut env.pending_debug);
    Some(deliver_exception(env, db(reasons)))
}

/// The trap after an instruction that ran under EFLAGS.TF.
pub fn single_step(env: &mut X86Env) -> Next {
    let reasons = BS | std::mem::take(&mut env.pending_debug);
    deliver_exception(env, db(reasons))
}

/// Whether an instruction breakpoint is enabled in DR7.
pub fn code_breakpoints(env: &X86Env) -> bool {
    (0..4).any(|n| enabled(env, n) && env.dr[7] >> (16 + 4 * n) & 3 == 0)
}

fn enabled(env: &X86Env, n: usize) -> bool {
    env.dr[7] >> (2 * n) & 3 != 0
}

/// Raises the #DB of instruction breakpoints at linear address `pc`, unless RF holds it off; RF is then clear.
pub fn check_code(env: &mut X86Env, pc: u64) -> Result<()> {
    if env.eflags & RFlags::RF.bits() != 0 {
        env.eflags &= !RFlags::RF.bits();
        return Ok(());
    }
    let code = |n: &usize| env.dr[7] >> (16 + 4 * n) & 3 == 0;
    let hits = (0..4).filter(code).filter(|&n| env.dr[n] == pc).fold(0, |m, n| m | 1 << n);
    // A breakpoint that is not enabled sets its bit if another one is that hits.
    if (0..4).any(|n| hits >> n & 1 != 0 && enabled(env, n)) { Err(db(hits)) } else { Ok(()) }
}

/// Number of the register that MOV DRn means: DR4 and DR5 are DR6 and DR7 without CR4.DE.
fn number(env: &X86Env, n: usize) -> Result<usize> {
    match n {
        4 | 5 if env.cr4.contains(Cr4::DE) => Err(ud()),
        4 | 5 => Ok(n + 2),
        _ => Ok(n & 7),
    }
}

/// General checks of a MOV from or to a debug register: privilege, GD.
fn check_access(env: &X86Env, n: usize) -> Result<usize> {
    if env.cpl != 0 {
        return Err(gp(0));
    }
    let n = number(env, n)?;
    if env.dr[7] & GD != 0 { Err(db(BD)) } else { Ok(n) }
}

/// MOV from a debug register.
pub fn read(env: &mut X86Env, n: usize) -> Result<u64> {
    let n = check_access(env, n)?;
    Ok(env.dr[n])
}

/// MOV to a debug register.
pub fn write(env: &mut X86Env, n: usize, value: u64) -> Result<()> {
    let n = check_access(env, n)?;
    if n >= 6 && value >> 32 != 0 {
        return Err(gp(0));
    }
    match n {
        6 => env.dr[6] = value & DR6_WRITABLE | DR6_ONES,
        7 => env.dr[7] = value & DR7_WRITABLE | DR7_RESET,
        n => env.dr[n] = value,
    }
    env.update_mode();
    Ok(())
}
