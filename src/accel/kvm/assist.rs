//! Instructions that KVM does not execute: the translator does.
//!
//! Problem: where the host's processor cannot execute an instruction by itself (a vector instruction on a device's
//! registers, and on hosts whose KVM is a software implementation nearly every instruction) KVM emulates it, and what its
//! emulator does not know ends in an internal error. Strategy: both engines exchange [`CpuState`], so the translator
//! takes the state, executes that one instruction against the same memory and devices, delivers the exception if it raises
//! one, and hands the state back.
//!
//! Invariant: nothing of an earlier instruction is kept, neither code nor translations of addresses, since nobody tells
//! the translator what happened to memory meanwhile.

use std::sync::Arc;

use tessera_hw_core::mem::AddressSpace;
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{Options, Vcpu};
use tessera_x86::cpu_state::{CpuState, InFlight};
use tessera_x86::cpuid::CpuidTable;
use tessera_x86::guest::X86;
use tessera_x86::platform::Platform;
use tessera_x86::state::X86Env;

use crate::accel::debug::{DebugStop, Watchpoint};
use crate::accel::tcg::{self, Memory};

/// Vector of #UD.
const INVALID_OPCODE: u8 = 6;
/// One instruction needs next to nothing of a code cache: the least there is, in MiB.
const CACHE_MIB: u32 = 8;

/// A translator for single instructions.
pub struct Assist {
    vcpu: Vcpu<X86, X86_64>,
}

impl Assist {
    /// With the machine around the CPU. An error is a sentence.
    pub fn new(platform: Box<dyn Platform>, space: Arc<AddressSpace>) -> Result<Assist, String> {
        let options = Options { cache_mib: CACHE_MIB, max_insns: 1, chain: false, ..Options::default() };
        // Everything that the translator knows: what the guest may not have, the host's processor has refused already.
        let env = X86Env::new(platform, CpuidTable::default());
        let vcpu =
            Vcpu::new(env, Arc::new(Memory::new(space)), options).map_err(|error| error.to_string())?;
        Ok(Assist { vcpu })
    }

    /// Executes the instruction that `state` is at: the state after it, or at the handler of the exception it raises.
    pub fn execute(&mut self, state: &CpuState) -> CpuState {
        let mut state = state.clone();
        // What KVM raises for an instruction that it does not know.
        let unknown = InFlight::Exception { vector: INVALID_OPCODE, error: None };
        state.events.in_flight.take_if(|event| *event == unknown);
        self.vcpu.clear_code();
        self.vcpu.env_mut().set_cpu_state(&state);
        self.vcpu.state_changed();
        // Halts and triple faults are in the state.
        let _ = self.vcpu.run_one();
        self.vcpu.env_mut().cpu_state()
    }

    /// As [`Assist::execute`], for a debugger that watches ranges: and the access to one of them.
    pub fn step(&mut self, state: &CpuState, watchpoints: &[Watchpoint]) -> (CpuState, Option<DebugStop>) {
        tcg::set_watchpoints(self.vcpu.env_mut(), watchpoints);
        let state = self.execute(state);
        let hit = tcg::watched(self.vcpu.env_mut(), watchpoints);
        tcg::set_watchpoints(self.vcpu.env_mut(), &[]);
        (state, hit)
    }

    /// Lets a processor that waits look at its events: the state after that, perhaps at an interrupt's handler.
    pub fn look_at_events(&mut self, state: &CpuState) -> CpuState {
        self.vcpu.env_mut().set_cpu_state(state);
        self.vcpu.state_changed();
        // That it still waits is in the state.
        let _ = self.vcpu.look_at_events();
        self.vcpu.env_mut().cpu_state()
    }
}
