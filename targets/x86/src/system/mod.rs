//! What the CPU does beyond computing: segmentation, exceptions and interrupts, tasks, control registers, MSRs, port I/O.
//!
//! Everything here is plain Rust on [`X86Env`](crate::state::X86Env), called from helpers while generated code waits, or by
//! the execution loop. Invariants:
//!
//! - A function that returns `Err` has changed nothing that the guest can see but memory that a restart writes again
//!   (pushes below the stack pointer, accessed and busy bits that the manual allows to be set). The exception: a task switch
//!   that fails after its point of no return, see [`task`].
//! - Whoever changes what [`X86Env::update_mode`](crate::state::X86Env::update_mode) or the TLB depends on sees to both
//!   before returning.
//! - Linear addresses are cut to 32 bits outside of long mode.
//! - Implicit accesses (descriptor tables, TSS) are supervisor accesses whatever the CPL, under SMAP if it is enabled
//!   ([`system_mmu`]); they never touch user pages then (SDM volume 3, section 4.6.1).
//!
//! Faults carry selectors and the EXT bit as the manual says; see [`exception`] for delivery.

pub mod control;
pub mod debug;
pub mod dump;
pub mod exception;
pub mod far;
pub mod flags;
pub mod interrupt;
pub mod io;
pub mod iret;
pub mod kvm_clock;
pub mod msr;
pub mod reset;
pub mod segment;
pub mod smm;
pub mod stack;
pub mod syscall;
pub mod tables;
pub mod task;
pub mod xsave;

#[cfg(test)]
mod tests;

pub use dump::dump;
pub use exception::deliver_exception;
pub use interrupt::{exit, handle_leave, poll_events};

use tessera_tcg::guest::Exception;
use tessera_tcg::softmmu;

use crate::guest::X86;
use crate::state::{Cr0, Cr4, Efer, RFlags, X86Env, mmu_mode};

/// What a function of the system returns: the exception that it raises instead of doing anything.
pub type Result<T> = std::result::Result<T, Exception>;

/// MMU mode of implicit supervisor accesses.
#[inline]
pub fn system_mmu(env: &X86Env) -> u8 {
    if env.cr4.contains(Cr4::SMAP) { mmu_mode::KERNEL_SMAP } else { mmu_mode::KERNEL }
}

/// MMU mode of explicit data accesses at a privilege level.
#[inline]
pub fn data_mmu(env: &X86Env, cpl: u8) -> u8 {
    if cpl == 3 {
        mmu_mode::USER
    } else if env.eflags & RFlags::AC.bits() == 0 {
        system_mmu(env)
    } else {
        mmu_mode::KERNEL
    }
}

/// Protected mode and not virtual-8086: selectors mean descriptors.
#[inline]
pub fn selectors(env: &X86Env) -> bool {
    env.cr0.contains(Cr0::PE) && env.eflags & RFlags::VM.bits() == 0
}

/// Virtual-8086 mode.
#[inline]
pub fn virtual_8086(env: &X86Env) -> bool {
    env.cr0.contains(Cr0::PE) && env.eflags & RFlags::VM.bits() != 0
}

/// IA-32e mode: 64-bit or compatibility.
#[inline]
pub fn long_mode(env: &X86Env) -> bool {
    env.efer.contains(Efer::LMA)
}

/// EFLAGS.IOPL.
#[inline]
pub fn iopl(env: &X86Env) -> u8 {
    (env.eflags >> 12 & 3) as u8
}

/// A linear address in the width that the mode has.
#[inline]
fn linear(env: &X86Env, address: u64) -> u64 {
    if long_mode(env) { address } else { address & 0xffff_ffff }
}

/// Implicit supervisor read.
#[inline]
fn read(env: &mut X86Env, address: u64, size: u32) -> Result<u64> {
    let (va, mmu) = (linear(env, address), system_mmu(env));
    softmmu::load::<X86>(env, va, size, mmu)
}

/// Implicit supervisor write.
#[inline]
fn write(env: &mut X86Env, address: u64, size: u32, value: u64) -> Result<()> {
    let (va, mmu) = (linear(env, address), system_mmu(env));
    softmmu::store::<X86>(env, va, size, value, mmu)
}
