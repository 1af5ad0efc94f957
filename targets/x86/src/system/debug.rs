//! Debug registers and debug exceptions (SDM volume 3, chapter 17).
//!
//! Three kinds of breakpoints, found in three ways:
//! - *Instructions*: blocks made under `mode::DEBUG` begin every instruction with a call of [`check_code`]. These are faults.
//! - *Data*: the software MMU watches the ranges ([`arm`]) and ends an instruction that hits; [`collect`] takes its hits.
//! - *I/O ports*: the helpers of IN, OUT, INS and OUTS ask [`check_io`]; blocks end behind them under `mode::DEBUG`.
//!
//! A #DB that is a trap (of data and I/O breakpoints, a task switch with the T bit, SYSRET to single-stepped code) is *pended*
//! in [`X86Env::pending_debug`] and delivered when events are looked at, which is before the next instruction; behind a
//! MOV SS, before the one after that.
//!
//! RF: an instruction breakpoint that RF holds off leaves RF clear at once, not at the end of its instruction; nothing in
//! between can tell, but for an exception, which pushes RF set anyway.

use tessera_tcg::guest::Next;
use tessera_tcg::softmmu::{self, Watch, WatchKind, WatchOwner};

use super::Result;
use super::exception::{db, deliver_exception, gp, ud};
use crate::guest::X86;
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

/// Delivers a pended #DB, if any, unless a MOV SS holds it off.
pub fn deliver_pending(env: &mut X86Env) -> Option<Next> {
    collect(env);
    if env.pending_debug == 0 || env.debug_shadow {
        return None;
    }
    let reasons = std::mem::take(&mut env.pending_debug);
    Some(deliver_exception(env, db(reasons)))
}

/// The trap after an instruction that ran under EFLAGS.TF.
pub fn single_step(env: &mut X86Env) -> Next {
    collect(env);
    let reasons = BS | std::mem::take(&mut env.pending_debug);
    deliver_exception(env, db(reasons))
}

/// What a breakpoint is for: the R/W fields of DR7.
mod condition {
    pub const EXECUTE: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const IO: u64 = 2;
    pub const READ_WRITE: u64 = 3;
}

fn condition_of(env: &X86Env, n: usize) -> u64 {
    env.dr[7] >> (16 + 4 * n) & 3
}

fn enabled(env: &X86Env, n: usize) -> bool {
    env.dr[7] >> (2 * n) & 3 != 0
}

/// First and last address of breakpoint `n`: its length, from its address rounded down to a multiple of that.
fn range(env: &X86Env, n: usize) -> (u64, u64) {
    let len = [1u64, 2, 8, 4][(env.dr[7] >> (18 + 4 * n) & 3) as usize];
    let first = env.dr[n] & !(len - 1);
    (first, first + (len - 1))
}

/// The breakpoints, enabled or not, of one of these conditions whose range has an address in common with `len` from `at`.
fn hits(env: &X86Env, at: u64, len: u64, conditions: &[u64]) -> u64 {
    let last = at.saturating_add(len - 1);
    (0..4).filter(|&n| conditions.contains(&condition_of(env, n))).fold(0, |m, n| {
        let (first, end) = range(env, n);
        m | ((first <= last && at <= end) as u64) << n
    })
}

/// `hits` if an enabled breakpoint is among them. One that is not enabled sets its bit only together with one that is.
fn if_enabled(env: &X86Env, hits: u64) -> u64 {
    if (0..4).any(|n| hits >> n & 1 != 0 && enabled(env, n)) { hits } else { 0 }
}

/// Whether instructions must be looked at before they run (instruction breakpoints) or after (I/O breakpoints).
pub fn checks_instructions(env: &X86Env) -> bool {
    env.dr[7] & 0xff != 0 && (code_breakpoints(env) || io_breakpoints(env))
}

/// Whether an instruction breakpoint is enabled in DR7.
#[inline]
pub fn code_breakpoints(env: &X86Env) -> bool {
    env.dr[7] & 0xff != 0 && (0..4).any(|n| enabled(env, n) && condition_of(env, n) == condition::EXECUTE)
}

fn io_breakpoints(env: &X86Env) -> bool {
    env.cr4.contains(Cr4::DE) && (0..4).any(|n| enabled(env, n) && condition_of(env, n) == condition::IO)
}

/// Makes the software MMU watch what DR7 says. Cheap if nothing has changed.
#[inline]
pub(crate) fn arm(env: &mut X86Env) {
    let relevant = env.dr[7] & 0xff != 0 || env.watched[4] != 0;
    if relevant && !env.header.runtime.is_null() {
        arm_changed(env);
    }
}

#[cold]
fn arm_changed(env: &mut X86Env) {
    let now = [env.dr[0], env.dr[1], env.dr[2], env.dr[3], env.dr[7]];
    if now == env.watched {
        return;
    }
    env.watched = now;
    for n in 0..4 {
        let kind = match condition_of(env, n) {
            condition::WRITE => WatchKind::Write,
            condition::READ_WRITE => WatchKind::ReadWrite,
            _ => {
                softmmu::remove_watch::<X86>(env, WatchOwner::Guest, n as u32);
                continue;
            }
        };
        if enabled(env, n) {
            let (first, last) = range(env, n);
            let watch = Watch { owner: WatchOwner::Guest, tag: n as u32, first, last, kind };
            if !softmmu::watches::<X86>(env).contains(&watch) {
                softmmu::add_watch::<X86>(env, watch);
            }
        } else {
            softmmu::remove_watch::<X86>(env, WatchOwner::Guest, n as u32);
        }
    }
}

/// Pends the traps of data breakpoints that the software MMU has seen.
#[inline]
pub fn collect(env: &mut X86Env) {
    if env.watched[4] == 0 || env.header.runtime.is_null() {
        return;
    }
    for hit in softmmu::take_watch_hits::<X86>(env, WatchOwner::Guest) {
        let conditions: &[u64] =
            if hit.write { &[condition::WRITE, condition::READ_WRITE] } else { &[condition::READ_WRITE] };
        // The watch that was hit may have been changed by the very instruction.
        env.pending_debug |= hits(env, hit.address, hit.len, conditions) | 1 << (hit.tag & 3);
    }
}

/// Whether a debugger outside of the guest waits for an access that was made.
#[inline]
pub fn seen_by_debugger(env: &mut X86Env) -> bool {
    !env.header.runtime.is_null() && softmmu::has_watch_hits::<X86>(env, WatchOwner::Debugger)
}

/// Forgets what an instruction has hit that does not complete.
pub fn discard(env: &mut X86Env) {
    if env.watched[4] != 0 && !env.header.runtime.is_null() {
        softmmu::drop_watch_hits::<X86>(env);
    }
}

/// Pends the trap of I/O breakpoints on `size` ports from `port`.
#[inline]
pub fn check_io(env: &mut X86Env, port: u16, size: u32) {
    if env.dr[7] & 0xff != 0 && env.cr4.contains(Cr4::DE) {
        let found = hits(env, port as u64, size as u64, &[condition::IO]);
        let reasons = if_enabled(env, found);
        if reasons != 0 {
            pend(env, reasons);
        }
    }
}

/// Raises the #DB of instruction breakpoints at linear address `pc`, unless RF holds it off (RF is then clear), a MOV SS does,
/// or the instruction has begun already: it is a repeated one, or runs again alone.
pub fn check_code(env: &mut X86Env, pc: u64) -> Result<()> {
    let resumed_at = std::mem::replace(&mut env.resumed_at, u64::MAX);
    if env.eflags & RFlags::RF.bits() != 0 {
        env.eflags &= !RFlags::RF.bits();
        env.resumed_at = pc;
        return Ok(());
    }
    let again = resumed_at == pc && !env.header.runtime.is_null() && softmmu::runs_alone::<X86>(env);
    if env.debug_shadow || env.repeating || again {
        return Ok(());
    }
    let code = |n: &usize| condition_of(env, *n) == condition::EXECUTE;
    let hits = (0..4).filter(code).filter(|&n| env.dr[n] == pc).fold(0, |m, n| m | 1 << n);
    match if_enabled(env, hits) {
        0 => Ok(()),
        reasons => Err(db(reasons)),
    }
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

/// Sets DR6 and DR7 from a saved state.
pub fn restore(env: &mut X86Env, dr6: u64, dr7: u64) {
    env.dr[6] = dr6 & DR6_WRITABLE | DR6_ONES;
    env.dr[7] = dr7 & DR7_WRITABLE | DR7_RESET;
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
