//! The software MMU: what generated code looks up for guest memory accesses.
//!
//! [`TlbEntry`] is read by generated code, so its layout is fixed. Each vCPU has, for each of [`MMU_MODES`]
//! translation regimes, one direct-mapped table of [`TLB_ENTRIES`] entries for the current address space; the
//! pointers in the environment's header change when the address space does, so a switch between known address
//! spaces flushes nothing.
//!
//! Hit test in generated code, for an access of `n` bytes at `va` (unaligned accesses hit unless they cross a page):
//! `entry = table[(va >> 12) % TLB_ENTRIES]; hit = entry.tag == (va + n - 1) & !0xfff`, where `tag` is `read` or
//! `write`; the host address is `va + addend`. [`TLB_INVALID`] never equals a masked address.
//!
//! # Three levels
//!
//! | level | file | what it holds | who reads it |
//! |---|---|---|---|
//! | tables | `spaces`, `table` | per address space and MMU mode, pages of RAM that may be accessed directly, and large ones | generated code, `access` |
//! | second level | `second_level` | results of walks, of all spaces, MMIO and permissions included | slow paths |
//! | fetch | `fetch`, `page_filter` | pages of code, and names for jump cache tags | lookups of blocks |
//!
//! # Invalidation
//!
//! An address space has an identity that the guest gives it (a *key*) and a number of ours (its *ASID*) that is never
//! used again once given up: flushing a space's local translations gives it a new ASID, which empties it in
//! the second level and in the fetch level at no cost; only the first level is cleared, by the bits that say which
//! entries are in use. Global translations have an ASID of their own and are shared by all spaces. Work on spaces that
//! are not current is put off until they are switched to: a log of pages whose global translations were dropped, and a
//! count of pages that lost their write tags.
//!
//! Invariants:
//! - A write tag is valid only if the page is RAM, the guest may write it, its dirty bit is set, and no translated block
//!   was made from it, or, in the second way, none from the lines that may be stored to; that of a large entry, only if this is
//!   so for every page in it. (`spaces` for pages that get their first block, `fill` for new entries.)
//! - A tag is valid only if no watch wants to know of the access (`watch`).
//! - A translation that the guest flushed is in no level when the flush returns, except as work put off.
//! - A window says no more than the second way does (`window`), a memo no more than the first way did (`memo`).
//! - What is in a jump cache or chained may run without a walk: flushing a page that the fetch level may know renames
//!   the current combination (see `fetch`), so that such jumps miss.

use std::sync::Arc;

use crate::guest::Guest;
use crate::memory::{PAGE_MASK, PhysMemory};

mod access;
mod fetch;
mod fill;
mod flush;
mod host;
mod memo;
mod page_filter;
mod second_level;
mod spaces;
mod table;
#[cfg(test)]
mod tests;
mod watch;
mod window;

pub use flush::{drop_failed, flush_all, flush_page, flush_space, name_mode, switch_space};

pub(crate) use access::{Operand, Writer, atomic_rmw, compare_exchange_as, retry_if_running, store_as};
pub use access::{
    compare_exchange, host_bytes, load, load_bytes, load_quads, probe, raise, store, store_bytes, store_quads,
};
pub(crate) use fetch::{FetchTlb, Fetched, fetch_page, jump_tag};
pub(crate) use fill::{open_window, refill, runtime};
pub use memo::{MEMO_WORD, MEMOS, Memo, PageMemos};
use second_level::SecondLevel;
pub(crate) use spaces::Spaces;
#[cfg(test)]
pub(crate) use table::{Fill, TablePtr};
pub(crate) use table::{LARGE, LARGE_BITS, LARGE_ENTRIES, SECOND_WAY, SecondWayEntry, large_of};
use watch::Watches;
pub(crate) use watch::retry as retry_if_watched;
pub use watch::{
    Watch, WatchHit, WatchKind, WatchOwner, add_watch, drop_watch_hits, has_watch_hits, remove_watch,
    require_alone, runs_alone, take_watch_hits, watches,
};
pub use window::{ACCESS_SIZES, Window, Windows};

/// Number of translation regimes (MMU modes) that a guest can use.
pub const MMU_MODES: usize = 4;
/// Entries of a table; a power of two.
pub const TLB_ENTRIES: usize = 4096;
/// Tag of an entry that must miss.
pub const TLB_INVALID: u64 = u64::MAX;

/// Vector of the exception that softmmu raises when a store would overwrite the block that is running, or an access in a
/// block hits a watch: the execution loop runs the instruction again, alone. No guest has it; helpers pass it on like any other exception.
pub const RETRY_VECTOR: u16 = 0xffff;

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

/// Whether generated code is running, and so who would notice that its bytes change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Running {
    /// The execution loop: nothing runs that a store could overwrite.
    Nothing,
    /// Some block of the cache.
    Block,
    /// A block of one instruction that is not in the tables.
    Once,
}

/// Counters of the software MMU.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct MmuStats {
    /// Page table walks for data.
    pub walks: u64,
    /// Misses of the first level that the second one answered.
    pub second_level_hits: u64,
    /// Misses of the first and second level that a large entry answered.
    pub large_hits: u64,
    /// Page table walks for code.
    pub fetch_walks: u64,
    /// Switches to another address space.
    pub switches: u64,
    /// Switches to an address space that was not resident.
    pub cold_switches: u64,
    /// Flushes of an address space or of everything.
    pub flushes: u64,
    /// Flushes of one page.
    pub page_flushes: u64,
    /// Flushes of one page that jump caches may have known.
    pub code_page_flushes: u64,
    /// Stores to pages that hold translated code.
    pub code_page_stores: u64,
}

/// The Rust side of a vCPU's software MMU: address spaces' TLBs, their replacement, watched pages.
pub struct MmuState {
    /// Guest-physical memory.
    pub memory: Arc<dyn PhysMemory>,
    /// Counters.
    pub stats: MmuStats,
    pub(crate) spaces: Spaces,
    pub(crate) second: SecondLevel,
    pub(crate) fetch: FetchTlb,
    pub(crate) running: Running,
    pub(crate) watches: Watches,
}

impl MmuState {
    /// A software MMU over `memory`, with nothing cached.
    pub fn new(memory: Arc<dyn PhysMemory>) -> MmuState {
        MmuState {
            memory,
            stats: MmuStats::default(),
            spaces: Spaces::new(),
            second: SecondLevel::new(),
            fetch: FetchTlb::new(),
            running: Running::Nothing,
            watches: Watches::default(),
        }
    }
}

/// A page that the first level knows, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedPage {
    /// MMU mode.
    pub mmu: u8,
    /// Guest-virtual page address.
    pub va: u64,
    /// Guest-physical page address.
    pub phys: u64,
    /// Generated code reads it by itself.
    pub read: bool,
    /// Generated code writes it by itself.
    pub write: bool,
}

/// The pages of the current address space that the first level knows, by MMU mode and address.
pub fn cached_pages<G: Guest>(env: &mut G::Env) -> Vec<CachedPage> {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    let spaces = unsafe { &runtime::<G>(env).mmu.spaces };
    let mut pages: Vec<CachedPage> = spaces
        .entries()
        .map(|(mmu, e)| CachedPage {
            mmu,
            va: if e.read != TLB_INVALID { e.read } else { e.write },
            phys: page_of(e.phys),
            read: e.read != TLB_INVALID,
            write: e.write != TLB_INVALID,
        })
        .collect();
    pages.sort_unstable_by_key(|page| (page.mmu, page.va));
    pages
}

/// The page that contains `va` or a physical address.
#[inline]
fn page_of(address: u64) -> u64 {
    address & !PAGE_MASK
}

/// Numbers of the set bits.
fn set_bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}
