//! The environment: what generated code reaches through its environment register.
//!
//! A guest's environment is a `#[repr(C)]` struct that begins with [`Header`]. Generated code addresses it by fixed
//! offsets; the first 256 bytes have short encodings on x86-64 hosts, so the header is small and the guest's
//! hottest globals follow it. Big arrays (jump cache, save area) live in [`Runtime`], pointed to by the header or
//! placed at the header's end.
//!
//! Ownership: the vCPU's thread owns the environment; other threads touch only `exit_request`, which is atomic.

use std::sync::atomic::AtomicU32;

use crate::guest::Exception;
use crate::softmmu::{MMU_MODES, MmuState, TlbEntry};

/// Host integer registers that a save area has room for.
pub const SAVED_INT_REGS: usize = 32;
/// Host vector registers that a save area has room for.
pub const SAVED_VEC_REGS: usize = 32;
/// Spill slots of a translation block, 8 bytes each; vectors take four, aligned.
pub const SPILL_SLOTS: usize = 128;
/// Entries of the jump cache; a power of two.
pub const JUMP_CACHE_ENTRIES: usize = 4096;

/// Head of every guest environment.
#[repr(C, align(64))]
pub struct Header {
    /// Non-zero asks generated code to return to the execution loop at its next poll. Set from any thread.
    pub exit_request: AtomicU32,
    /// Set by a helper that may fault and did (`Effects::faults`); the exception itself is in the runtime.
    pub helper_fault: u32,
    /// TLB of each MMU mode for the current address space.
    pub tlb: [*mut TlbEntry; MMU_MODES],
    /// Xored into a program counter to make a jump cache tag: its top 16 bits name the current combination of address
    /// space, block mode and code-mapping epoch; lower bits are zero. See [`JumpEntry`].
    pub jump_tag: u64,
    /// The runtime that belongs to this environment (jump cache, save area, and what Rust code needs).
    pub runtime: *mut Runtime,
}

/// An entry of the jump cache that indirect jumps look up in generated code:
/// index `(pc ^ pc >> 12) % JUMP_CACHE_ENTRIES` of the target, hit when `tag == pc ^ header.jump_tag`.
///
/// As the tag contains the epoch, changing `jump_tag` invalidates all entries at once; the epochs wrapping around
/// is the only occasion on which the table is cleared.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct JumpEntry {
    /// `pc ^ jump_tag`; [`JumpEntry::EMPTY`] has a tag no canonical address makes.
    pub tag: u64,
    /// Host address of the block's code.
    pub code: u64,
}

impl JumpEntry {
    /// An entry that never hits: the tag has bit 47 clear and bits of the epoch that are never issued.
    pub const EMPTY: JumpEntry = JumpEntry { tag: 0xffff_0000_0000_0001, code: 0 };
}

/// The part of a vCPU's run-time state that is large, with a layout that generated code knows.
#[repr(C, align(64))]
pub struct Runtime {
    /// Host integer registers as of the last slow path, by host register number.
    pub saved_int: [u64; SAVED_INT_REGS],
    /// Host vector registers as of the last slow path.
    pub saved_vec: [[u64; 4]; SAVED_VEC_REGS],
    /// Spill slots of the running block.
    pub spill: [u64; SPILL_SLOTS],
    /// See [`JumpEntry`].
    pub jump_cache: [JumpEntry; JUMP_CACHE_ENTRIES],
    /// The exception that a helper or slow path raised; meaningful while generated code is being left for it.
    pub exception: Option<Exception>,
    /// TLBs and page tracking of this vCPU.
    pub mmu: MmuState,
}
