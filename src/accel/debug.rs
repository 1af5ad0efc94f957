//! What a debugger asks of an engine, and what it is told.

use std::ops::RangeInclusive;

pub use tessera_tcg::exec::Listing;
pub use tessera_tcg::softmmu::WatchKind;

/// A range of guest-virtual addresses whose accesses stop the vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// The addresses.
    pub range: RangeInclusive<u64>,
    /// Which accesses.
    pub kind: WatchKind,
}

/// How far a vCPU runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// One instruction.
    One,
    /// Instruction by instruction, as long as the instruction pointer (relative to CS) is in this range.
    Within(std::ops::Range<u64>),
}

/// What a debugger asks for; the default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugRequest {
    /// Linear addresses of instructions to stop before, whatever the address space.
    pub breakpoints: Vec<u64>,
    /// Accesses to stop behind.
    pub watchpoints: Vec<Watchpoint>,
    /// Steps instead of running.
    pub step: Option<Step>,
    /// Steps take the interrupts that wait, each being a step to its handler. Else they wait, and only a halted CPU takes
    /// one.
    pub interrupts: bool,
}

/// Why a vCPU has stopped for its debugger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// The step, or steps, are done.
    Stepped,
    /// It is before the instruction at a breakpoint.
    Breakpoint,
    /// It is behind an instruction that accessed a watched range.
    Watch {
        /// The first watched address that was accessed.
        address: u64,
        /// What the watchpoint is for.
        kind: WatchKind,
    },
}
