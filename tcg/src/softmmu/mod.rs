//! The software MMU: what generated code looks up on every guest memory access.
//!
//! [`TlbEntry`] is read by generated code, so its layout is fixed. Each vCPU has, for each of [`MMU_MODES`]
//! translation regimes, one direct-mapped table of [`TLB_ENTRIES`] entries for the current address space; the
//! pointers in the environment's header change when the address space does, so a switch between known address
//! spaces flushes nothing.
//!
//! Hit test in generated code, for an access of `n` bytes at `va` (unaligned accesses hit unless they cross a page):
//! `entry = table[(va >> 12) % TLB_ENTRIES]; hit = entry.tag == (va + n - 1) & !0xfff`, where `tag` is `read` or
//! `write`; the host address is `va + addend`. [`TLB_INVALID`] never equals a masked address.

/// Number of translation regimes (MMU modes) that a guest can use.
pub const MMU_MODES: usize = 4;
/// Entries of a table; a power of two.
pub const TLB_ENTRIES: usize = 1024;
/// Tag of an entry that must miss.
pub const TLB_INVALID: u64 = u64::MAX;

/// One TLB entry. A direction that needs the slow path (MMIO, watched or code pages, no permission) has
/// [`TLB_INVALID`] as its tag.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub struct TlbEntry {
    /// Guest-virtual page address that may be read directly, or [`TLB_INVALID`].
    pub read: u64,
    /// Guest-virtual page address that may be written directly, or [`TLB_INVALID`].
    pub write: u64,
    /// Host address minus guest-virtual address of the page (wrapping).
    pub addend: u64,
    /// For the slow path: guest-physical page address and attribute bits below 12; not read by generated code.
    pub phys: u64,
}

impl TlbEntry {
    /// An entry that always misses.
    pub const EMPTY: TlbEntry = TlbEntry { read: TLB_INVALID, write: TLB_INVALID, addend: 0, phys: 0 };
}

/// The Rust side of a vCPU's software MMU: address spaces' TLBs, their replacement, watched pages.
pub struct MmuState {
    /// Guest-physical memory.
    pub memory: std::sync::Arc<dyn crate::memory::PhysMemory>,
}

mod access;
pub use access::*;
