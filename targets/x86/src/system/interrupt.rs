//! Looking at events between blocks: interrupts, SMI, NMI, INIT, start-up IPIs, the halted state, interrupt shadows (SDM volume 3,
//! sections 6.3, 6.8 and 8.4).
//!
//! How an interrupt gets in: whoever raises it sets `exit_request`, generated code leaves at its next poll, and
//! [`poll_events`] delivers it. If it cannot be delivered then (IF clear, task priority), nobody asks again until the guest
//! changes that; so everything that sets IF or lowers the priority calls [`check_interrupts`].
//!
//! Shadows: loads of SS (and STI, unless the next instruction is in the same block, which is then its last) hold interrupts
//! off for one more instruction. They set `interrupt_shadow`, which makes the next block a single instruction
//! (`mode::SHADOW`); leaving that block ends the shadow.

use tessera_tcg::guest::Next;

use super::exception::{deliver_exception, deliver_interrupt, vector};
use super::{debug, io, smm};
use crate::cpu_state::{InFlight, exception_of};
use crate::state::{RFlags, Segment, X86Env, leave, seg};

/// Codes of [`Next::Exit`].
pub mod exit {
    /// The CPU waits for an interrupt (HLT) or a start-up IPI: run again when
    /// [`Platform::event_pending`](crate::platform::Platform::event_pending).
    pub const HALTED: u32 = 1;
    /// A triple fault: the board resets the machine, or it ends.
    pub const SHUTDOWN: u32 = 2;
    /// The accelerator asked for it; nothing happened to the CPU.
    pub const STOPPED: u32 = 3;
    /// An access hit a debugger's watch; the instruction that made it is complete. Run again when the hits are taken
    /// ([`take_watch_hits`](tessera_tcg::softmmu::take_watch_hits)).
    pub const WATCHED: u32 = 4;
}

/// Bootstrap processor flag of IA32_APIC_BASE.
const APIC_BASE_BSP: u64 = 1 << 8;

/// Makes generated code return to the execution loop at its next poll.
#[inline]
pub fn request_exit(env: &X86Env) {
    env.header.exit_request.set();
}

/// To be called by what may make a waiting interrupt deliverable: setting IF, lowering the task priority.
#[inline]
pub fn check_interrupts(env: &X86Env) {
    if env.eflags & RFlags::IF.bits() != 0 && env.platform.interrupt_pending() {
        request_exit(env);
    }
}

/// Handles a block's leaving with a code of [`leave`].
pub fn handle_leave(env: &mut X86Env, code: u32) -> Next {
    if code == leave::SHADOW {
        return Next::Continue;
    }
    if env.interrupt_shadow {
        env.interrupt_shadow = false;
        env.debug_shadow = false;
        env.update_privilege();
    }
    match code {
        leave::SINGLE_STEP => return debug::single_step(env),
        leave::HALT => env.halted = true,
        _ => {}
    }
    // The execution loop polls for events next.
    Next::Continue
}

/// Looks at what waits, in order of priority (SDM volume 3, table 6-2), and delivers at most one.
pub fn poll_events(env: &mut X86Env) -> Next {
    debug::collect(env);
    if debug::seen_by_debugger(env) {
        return Next::Exit(exit::WATCHED);
    }
    // An NMI that is blocked waits.
    if let Some(event) = env.in_flight.take_if(|event| *event != InFlight::Nmi || !env.nmi_blocked) {
        return deliver_in_flight(env, event);
    }
    let quiet = !env.platform.event_pending();
    if quiet && !env.halted && env.pending_debug == 0 && !env.shutdown && !env.wait_for_sipi {
        return Next::Continue;
    }
    if env.shutdown {
        return Next::Exit(exit::SHUTDOWN);
    }
    if env.platform.stop_requested() {
        return Next::Exit(exit::STOPPED);
    }
    io::refresh_a20(env);
    if !env.smm && env.platform.take_init() {
        let bootstrap = env.platform.apic_base() & APIC_BASE_BSP != 0;
        env.init();
        env.wait_for_sipi = !bootstrap;
    }
    if env.wait_for_sipi {
        match env.platform.take_sipi() {
            Some(vector) => start_up(env, vector),
            None => return Next::Exit(exit::HALTED),
        }
        return Next::Continue;
    }
    if let Some(next) = debug::deliver_pending(env) {
        return next;
    }
    if env.interrupt_shadow {
        // The next block is one instruction and ends the shadow when it is left.
        return Next::Continue;
    }
    if !env.smm && env.platform.take_smi() {
        smm::enter(env);
        return Next::Continue;
    }
    if !env.nmi_blocked && env.platform.take_nmi() {
        env.nmi_blocked = true;
        env.halted = false;
        return deliver_interrupt(env, vector::NMI as u8);
    }
    if env.eflags & RFlags::IF.bits() != 0
        && env.platform.interrupt_pending()
        && let Some(vector) = env.platform.acknowledge_interrupt()
    {
        env.halted = false;
        return deliver_interrupt(env, vector);
    }
    if env.halted { Next::Exit(exit::HALTED) } else { Next::Continue }
}

/// Delivers what another engine had accepted.
#[cold]
fn deliver_in_flight(env: &mut X86Env, event: InFlight) -> Next {
    match event {
        InFlight::Interrupt(vector) => deliver_interrupt(env, vector),
        InFlight::Nmi => {
            env.nmi_blocked = true;
            deliver_interrupt(env, vector::NMI as u8)
        }
        InFlight::Exception { vector, error } => {
            let exception = exception_of(env, vector, error);
            deliver_exception(env, exception)
        }
    }
}

/// Starts an application processor at `vector << 12` (SDM volume 3, section 8.4.3).
fn start_up(env: &mut X86Env, vector: u8) {
    env.wait_for_sipi = false;
    let base = (vector as u64) << 12;
    env.set_segment(seg::CS, Segment { base, limit: 0xffff, access: 0x9b, selector: (vector as u16) << 8 });
    env.set_ip(0);
    env.update_mode();
}
