//! A debugger under KVM.
//!
//! Breakpoints and watchpoints are the processor's own, by KVM_SET_GUEST_DEBUG: four in all, and the guest's debug
//! registers do nothing meanwhile. Single steps are the translator's ([`super::assist`]): the host's KVM may not have them in
//! every mode, or lets an interrupt in; the translator executes exactly one instruction. It reaches the board's interrupt
//! controllers only; with KVM's own the steps are KVM's, which hold interrupts back from Linux 5.16 on.
//!
//! A KVM that is itself a software implementation may take watchpoints and never see them.

use kvm_bindings::{
    KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, kvm_debug_exit_arch, kvm_guest_debug, kvm_guest_debug_arch,
};
use kvm_ioctls::{VcpuFd, VmFd};
use tessera_x86::cpu_state::CpuState;
use tessera_x86::state::{reg, seg};

use super::KvmEngine;
use super::state::is_64_bit;
use crate::accel::debug::{DebugRequest, DebugStop, Step, WatchKind, Watchpoint};
use crate::accel::{Engine, Stop};

/// Debug registers for addresses.
const REGISTERS: usize = 4;
/// DR6.BS: a single step.
const BS: u64 = 1 << 14;

/// What a debug register is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Breakpoint(u64),
    /// A piece of the watchpoint with this index: address and length.
    Watch(usize, u64, u64),
}

/// What a debugger wants.
#[derive(Default)]
pub struct Debug {
    pub request: DebugRequest,
    uses: Vec<Use>,
    /// Linear address of the breakpoint that the last run ended at: to go on from there is to pass it.
    pub at_breakpoint: Option<u64>,
    /// KVM itself steps.
    stepping: bool,
    /// What KVM can do in a step, as KVM_GUESTDBG bits.
    holds_back: u32,
}

/// Whether KVM can hold interrupts back in steps: what to tell it, 0 if not.
fn holds_back(vm: &VmFd) -> u32 {
    let bits = vm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
    u32::try_from(bits).unwrap_or(0) & KVM_GUESTDBG_BLOCKIRQ
}

impl Debug {
    /// For the vCPUs of a VM.
    pub fn new(vm: &VmFd) -> Debug {
        Debug { holds_back: holds_back(vm), ..Debug::default() }
    }

    /// Takes over a request. An error is a sentence, and the old one stays.
    pub fn set(&mut self, vcpu: &VcpuFd, request: &DebugRequest) -> Result<(), String> {
        let uses = uses(request)?;
        if uses != self.uses {
            program(vcpu, registers(&uses, request), !uses.is_empty(), 0)?;
            self.uses = uses;
        }
        self.request = request.clone();
        Ok(())
    }

    /// Has KVM stop behind the next instruction, or not any more. Breakpoints wait meanwhile: the one that the guest
    /// stands at is to be passed.
    fn step(&mut self, vcpu: &VcpuFd, on: bool) -> Result<(), String> {
        let mut how = 0;
        if on {
            how = KVM_GUESTDBG_SINGLESTEP | if self.request.interrupts { 0 } else { self.holds_back };
        }
        program(vcpu, registers(&self.uses, &self.request), !on && !self.uses.is_empty(), how)?;
        self.stepping = on;
        Ok(())
    }

    /// What a debug exit means; `None` if it is for nothing that was asked for.
    pub fn stop(&mut self, exit: &kvm_debug_exit_arch) -> Option<DebugStop> {
        // What happened at an instruction's end comes before what is at the next one's start.
        let hits =
            || self.uses.iter().enumerate().filter(|(n, _)| exit.dr6 >> n & 1 != 0).map(|(_, hit)| *hit);
        let watch = hits().find_map(|hit| match hit {
            Use::Watch(index, address, _) => Some((index, address)),
            Use::Breakpoint(_) => None,
        });
        if let Some((index, address)) = watch {
            let watchpoint = self.request.watchpoints.get(index)?;
            return Some(DebugStop::Watch { address, kind: watchpoint.kind });
        }
        if self.stepping && exit.dr6 & BS != 0 {
            return Some(DebugStop::Stepped);
        }
        hits().next()?;
        self.at_breakpoint = Some(exit.pc);
        Some(DebugStop::Breakpoint)
    }
}

/// Sets what KVM does for a debugger.
fn program(vcpu: &VcpuFd, arch: kvm_guest_debug_arch, hardware: bool, how: u32) -> Result<(), String> {
    let mut control = how;
    if hardware {
        control |= KVM_GUESTDBG_USE_HW_BP;
    }
    if control != 0 {
        control |= KVM_GUESTDBG_ENABLE;
    }
    vcpu.set_guest_debug(&kvm_guest_debug { control, pad: 0, arch })
        .map_err(|error| format!("KVM has no breakpoints or steps here ({error}); use -accel tcg"))
}

impl KvmEngine {
    /// What comes before the processor itself executes: steps, and passing the breakpoint that the guest stands at.
    /// `Some` when that was all.
    pub(super) fn debugged(&mut self) -> Result<Option<Stop>, String> {
        let at_breakpoint = self.debug.at_breakpoint.take();
        if let Some(step) = self.debug.request.step.clone() {
            return self.debug_step(&step).map(Some);
        }
        if at_breakpoint.is_some() {
            self.complete()?;
            if at_breakpoint == Some(linear(&self.get()?)) {
                return self.debug_one();
            }
        }
        Ok(None)
    }

    /// Executes one instruction. `Some` when a watched range was accessed, or the CPU cannot go on.
    fn debug_one(&mut self) -> Result<Option<Stop>, String> {
        if self.chips.is_none() { self.translate_one() } else { self.step_one() }
    }

    /// Has KVM execute one instruction.
    fn step_one(&mut self) -> Result<Option<Stop>, String> {
        self.debug.step(&self.vcpu, true)?;
        let outcome = loop {
            self.kick.acknowledge();
            if self.stop_requested() {
                break self.complete().map(|()| Some(Stop::Requested));
            }
            match self.step() {
                Ok(None) => {}
                Ok(Some(Stop::Debug(DebugStop::Stepped))) => break Ok(None),
                outcome => break outcome,
            }
        };
        self.debug.step(&self.vcpu, false)?;
        outcome
    }

    /// Has the translator execute one instruction.
    fn translate_one(&mut self) -> Result<Option<Stop>, String> {
        let state = self.get()?;
        let watchpoints = self.debug.request.watchpoints.clone();
        let (state, hit) = self.assist()?.step(&state, &watchpoints);
        self.set(&state)?;
        if self.shutdown {
            return Ok(Some(Stop::TripleFault(self.dump())));
        }
        Ok(hit.map(Stop::Debug))
    }

    /// Lets the CPU take an event that waits; whether there was one.
    fn debug_event(&mut self) -> Result<bool, String> {
        let before = self.get()?;
        let state = self.assist()?.look_at_events(&before);
        let place = |state: &CpuState| (state.segments[seg::CS], state.rip, state.gpr[reg::RSP]);
        let taken = place(&state) != place(&before);
        if taken {
            self.set(&state)?;
        }
        Ok(taken)
    }

    /// Does a debugger's step, or steps.
    fn debug_step(&mut self, step: &Step) -> Result<Stop, String> {
        self.complete()?;
        if self.stop_requested() {
            return Ok(Stop::Requested);
        }
        if self.chips.is_none() && (self.halted || self.wait_for_sipi) {
            // Only an event gets it further.
            let state = self.get()?;
            let state = self.assist()?.look_at_events(&state);
            self.set(&state)?;
            let waits = self.halted || self.wait_for_sipi;
            return Ok(if waits { Stop::Halted } else { Stop::Debug(DebugStop::Stepped) });
        }
        loop {
            let taken = self.debug.request.interrupts && self.chips.is_none() && self.debug_event()?;
            if !taken && let Some(stop) = self.debug_one()? {
                return Ok(stop);
            }
            let state = self.get()?;
            let done = match step {
                Step::One => true,
                Step::Within(range) => !range.contains(&state.rip) || self.halted,
            };
            if done {
                return Ok(Stop::Debug(DebugStop::Stepped));
            }
            if self.debug.request.breakpoints.contains(&linear(&state)) {
                return Ok(Stop::Debug(DebugStop::Breakpoint));
            }
            if self.stop_requested() {
                return Ok(Stop::Requested);
            }
        }
    }
}

/// Linear address of the instruction that a state is at.
fn linear(state: &CpuState) -> u64 {
    if is_64_bit(state) {
        state.rip
    } else {
        state.segments[seg::CS].base.wrapping_add(state.rip) & 0xffff_ffff
    }
}

fn uses(request: &DebugRequest) -> Result<Vec<Use>, String> {
    let mut uses: Vec<Use> = request.breakpoints.iter().map(|address| Use::Breakpoint(*address)).collect();
    for (index, watch) in request.watchpoints.iter().enumerate() {
        if watch.kind == WatchKind::Read {
            return Err("the processor has no watchpoints for reads alone; use awatch, or -accel tcg".into());
        }
        pieces(watch, |address, len| uses.push(Use::Watch(index, address, len)));
        if uses.len() > REGISTERS {
            break;
        }
    }
    if uses.len() > REGISTERS {
        return Err(format!(
            "the processor has {REGISTERS} registers for breakpoints and watchpoints; delete some, or use -accel tcg"
        ));
    }
    Ok(uses)
}

/// Cuts a range into aligned pieces of 8, 4, 2 or 1 bytes, five at most: one more than there are registers.
fn pieces(watch: &Watchpoint, mut piece: impl FnMut(u64, u64)) {
    let (mut at, last) = (*watch.range.start(), *watch.range.end());
    for _ in 0..=REGISTERS {
        let fits = |len: &u64| at % len == 0 && last - at >= len - 1;
        let len = [8, 4, 2, 1].into_iter().find(fits).unwrap_or(1);
        piece(at, len);
        if last - at < len {
            return;
        }
        at += len;
    }
}

/// DR0 to DR3 and DR7 (SDM volume 3, section 17.2).
fn registers(uses: &[Use], request: &DebugRequest) -> kvm_guest_debug_arch {
    let mut arch = kvm_guest_debug_arch::default();
    let mut control = 0x400;
    for (n, what) in uses.iter().enumerate() {
        let (address, condition) = match *what {
            Use::Breakpoint(address) => (address, 0),
            Use::Watch(index, address, len) => {
                let writes = request.watchpoints.get(index).is_some_and(|w| w.kind == WatchKind::Write);
                let length = match len {
                    1 => 0,
                    2 => 1,
                    4 => 3,
                    _ => 2,
                };
                (address, length << 2 | if writes { 1 } else { 3 })
            }
        };
        arch.debugreg[n] = address;
        control |= 2 << (2 * n) | condition << (16 + 4 * n);
    }
    arch.debugreg[7] = control;
    arch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(breakpoints: &[u64], watchpoints: &[(u64, u64, WatchKind)]) -> DebugRequest {
        let watchpoints = watchpoints
            .iter()
            .map(|(first, last, kind)| Watchpoint { range: *first..=*last, kind: *kind })
            .collect();
        DebugRequest { breakpoints: breakpoints.to_vec(), watchpoints, ..DebugRequest::default() }
    }

    #[test]
    fn registers_are_used_as_the_manual_says() {
        let wanted =
            request(&[0x1000], &[(0x2000, 0x2007, WatchKind::Write), (0x3002, 0x3003, WatchKind::ReadWrite)]);
        let uses = uses(&wanted).unwrap();
        let arch = registers(&uses, &wanted);
        assert_eq!(arch.debugreg[..4], [0x1000, 0x2000, 0x3002, 0]);
        assert_eq!(arch.debugreg[7], 0x400 | 0x2a | 0b1001 << 20 | 0b0111 << 24);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(uses(&request(&[1, 2, 3, 4], &[])).is_ok());
        assert!(uses(&request(&[1, 2, 3, 4, 5], &[])).unwrap_err().contains('4'));
        assert!(uses(&request(&[], &[(0, u64::MAX, WatchKind::Write)])).is_err());
        assert!(uses(&request(&[], &[(0, 0, WatchKind::Read)])).unwrap_err().contains("awatch"));
        let odd = uses(&request(&[], &[(0x1001, 0x1006, WatchKind::Write)])).unwrap();
        let expected = [(0x1001, 1), (0x1002, 2), (0x1004, 2), (0x1006, 1)];
        assert_eq!(odd, expected.map(|(address, len)| Use::Watch(0, address, len)));
    }
}
