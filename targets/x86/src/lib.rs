//! The x86-64 guest CPU.
//!
//! `state` is the CPU's architectural state and the environment of generated code; `mode` the word of mode bits that
//! translations depend on; `translate` turns instructions (decoded by iced-x86) into IR, one file an instruction family;
//! `helpers` are the functions that generated code calls for what is too long or too rare to be IR; `system` holds what
//! the CPU does beyond instructions (segmentation, exceptions, interrupts, tasks, control registers, MSRs); `mmu` walks
//! page tables; `cpuid` says what the CPU models have; `cpu_state` is the CPU's whole state as engines exchange it; [`platform`] is what the CPU needs of the machine around it;
//! [`guest`] joins all of it to the translator.

pub mod cpu_state;
pub mod cpuid;
pub mod guest;
pub mod helpers;
pub mod mmu;
mod mode;
pub mod platform;
pub mod state;
pub mod system;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod translate;
