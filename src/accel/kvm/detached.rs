//! A processor without a machine: the state after a reset and the text form of a state are the translator's to make, and
//! need no more of a machine than this.

use tessera_x86::cpu_state::CpuState;
use tessera_x86::cpuid::CpuidTable;
use tessera_x86::platform::{InvalidMsr, Platform};
use tessera_x86::state::X86Env;
use tessera_x86::system;

/// Nothing but what [`CpuState`] has of the interrupt controller.
#[derive(Default)]
struct Detached {
    tpr: u8,
    apic_base: u64,
    tsc_deadline: u64,
}

impl Platform for Detached {
    fn tsc(&mut self) -> u64 {
        0
    }
    fn tsc_hz(&self) -> u64 {
        1
    }
    fn tpr(&self) -> u8 {
        self.tpr
    }
    fn set_tpr(&mut self, class: u8) {
        self.tpr = class;
    }
    fn apic_base(&self) -> u64 {
        self.apic_base
    }
    fn set_apic_base(&mut self, value: u64) -> Result<(), InvalidMsr> {
        self.apic_base = value;
        Ok(())
    }
    fn apic_msr_read(&mut self, _: u32) -> Result<u64, InvalidMsr> {
        Ok(self.tsc_deadline)
    }
    fn apic_msr_write(&mut self, _: u32, value: u64) -> Result<(), InvalidMsr> {
        self.tsc_deadline = value;
        Ok(())
    }
}

fn env(cpuid: &CpuidTable) -> Box<X86Env> {
    X86Env::new(Box::new(Detached::default()), cpuid.clone())
}

/// The state after power-up, with the CPUID signature `signature` in EDX. IA32_APIC_BASE and CR8 are the interrupt
/// controller's to say.
pub fn power_up(cpuid: &CpuidTable, signature: u32) -> CpuState {
    let mut state = env(cpuid).cpu_state();
    state.gpr[tessera_x86::state::reg::RDX] = signature.into();
    state
}

/// What INIT makes of a state.
pub fn init(cpuid: &CpuidTable, signature: u32, state: &CpuState) -> CpuState {
    let mut env = env(cpuid);
    env.set_cpu_state(state);
    env.init();
    let mut state = env.cpu_state();
    state.gpr[tessera_x86::state::reg::RDX] = signature.into();
    state
}

/// A state as text.
pub fn dump(cpuid: &CpuidTable, state: &CpuState) -> String {
    let mut env = env(cpuid);
    env.set_cpu_state(state);
    system::dump(&env)
}
