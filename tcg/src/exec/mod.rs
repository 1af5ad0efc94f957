//! The execution loop: finds, translates, links and runs blocks.
//!
//! Problem: generated code does the common things itself, but somebody must find the next block when it cannot, make
//! blocks that do not exist yet, deliver exceptions and events, and all that without the guest noticing where one
//! block ends. Strategy: [`Vcpu::run`] is a loop around one call into generated code, whose
//! [`Outcome`](crate::backend::Outcome) says why it came back.
//!
//! | file | what |
//! |---|---|
//! | `context` | the environment with its runtime, bound to each other; all that Rust code needs to reach guest memory |
//! | `vcpu` | the loop |
//! | `traces` | recording the paths of hot loops |
//! | `translate` | front end, compilation |
//! | `code_fetch` | reading guest code |
//! | `translation_log` | logs of translations |
//! | `blocks` | the table of blocks, links, pages with code, eviction; `blocks_revive`: code that changes back |
//! | `block_index` | where blocks are found by what they were made from |
//! | `code_lines` | which lines of guest memory blocks were made from |
//! | `side_tables` | what slow paths need to know of a block, compactly |
//! | `templates` | blocks that are known from another address |
//! | `moving` | which blocks do the same wherever they are |
//! | `lookup` | finding the block that follows |
//! | `slow` | what generated code calls |
//! | `remote` | what other threads may do |
//!
//! # What makes a jump right
//!
//! A block is keyed by the guest-physical address of its first byte, its virtual address and the block mode, and checked
//! against the physical address of its second page, if it has one. Three ways lead to it:
//! - A *lookup* translates the virtual address (fetch TLB, walk) each time.
//! - The *jump cache* is by virtual address, under a tag that changes with address space, mode and code mappings. An entry
//!   under another tag counts again once a lookup has found that the code at its address still comes from where it did.
//! - A *link* jumps directly. It is made only between blocks of the same mode, to a block that lies in one page, which is
//!   one of the page(s) of the block that jumps, at the same physical and virtual address: so it is right
//!   whenever the first block is. If the target goes on in a second page, the link leads to a *bridge*, a few
//!   instructions that look up the jump cache.
//!
//! # Code that changes
//!
//! Stores to pages with code take the slow path (`softmmu`), which invalidates the blocks that were made from the bytes
//! stored to. A store that would change the block that is running raises `RETRY_VECTOR` instead: the state is restored to
//! the start of the instruction, which then runs alone, as a block of its own outside of all tables.
//!
//! A store that changes nothing invalidates nothing, and a block whose bytes change back is found again (`blocks_revive`).
//!
//! After a store that invalidated something, and now and then after others to pages with code, the lines without code around
//! it become a *window* (`softmmu::window`), in which generated code stores at little cost until there is code.
//!
//! # Two tiers
//!
//! Most code runs a few times, so its translation must not cost more than it brings: such blocks are compiled as the front end
//! made them. What samples find to be hot becomes a trace (`traces`), which is optimised.
//!
//! # Breakpoints
//!
//! A debugger's breakpoints are looked at by the translator alone: at the address of one it makes a block that leaves at
//! once, and blocks that would run across one end before it. A change drops just the blocks with bytes at addresses that
//! changed, so nothing else is slower, and guest memory stays as it is. Blocks that run once do not look.

mod block_index;
mod blocks;
mod code_fetch;
mod code_lines;
mod code_regions;
mod context;
mod lookup;
mod moving;
mod remote;
mod side_tables;
mod slow;
mod templates;
#[cfg(test)]
pub(crate) mod toy;
mod traces;
mod translate;
mod translation_log;
mod vcpu;

pub use blocks::{BlockStats, Blocks};
pub use context::Context;
pub use remote::Remote;
pub use translate::Listing;
pub use vcpu::Vcpu;

use std::ops::Range;
use std::time::Duration;

use crate::code_cache::{CacheError, DEFAULT_MIB};
use crate::env::Executed;
use crate::opt::OptFlags;
use crate::softmmu::MmuStats;

/// Guest instructions in a block, at most.
pub const MAX_INSNS: u32 = 64;
/// See [`Options::hot`].
pub const DEFAULT_HOT: u8 = 3;
/// What [`Vcpu::run`] returns when the guest is at a breakpoint ([`Vcpu::set_breakpoints`]), and the code of the
/// [`Inst::Leave`](crate::ir::Inst::Leave) that is in its place. No guest uses it.
pub const BREAKPOINT: u32 = u32::MAX;

/// How to translate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the code cache in MiB (`tb-size`).
    pub cache_mib: u32,
    /// Guest instructions in a block, at most: 1 to [`MAX_INSNS`] (`one-insn-per-tb` is 1).
    pub max_insns: u32,
    /// Whether jumps are linked (`-d nochain`: not). Without links and jump cache, the `exec` log shows every block.
    pub chain: bool,
    /// Optimisations (`opt`).
    pub opt: OptFlags,
    /// How often the guest must be found at the start of a block, at [`Remote::kick`], before a trace is made from there; 0 makes
    /// one whenever a block is entered that was there before.
    pub hot: u8,
    /// Whether generated code counts what it executes ([`Stats::executed`]), and time is taken of slow paths. Both make
    /// the guest slower.
    pub count: bool,
    /// Guest-virtual addresses whose blocks are logged; empty for all (`-dfilter`).
    pub log_filter: Vec<Range<u64>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache_mib: DEFAULT_MIB,
            max_insns: MAX_INSNS,
            chain: true,
            opt: OptFlags::all(),
            hot: DEFAULT_HOT,
            count: false,
            log_filter: Vec::new(),
        }
    }
}

/// Why a vCPU cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No code cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The backend does not run on this host; the text is a sentence.
    #[error("{0}")]
    Backend(String),
}

/// Why generated code was left.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ExitStats {
    /// By a direct jump that is not linked (yet).
    pub unlinked: u64,
    /// By an indirect jump whose target is not in the jump cache.
    pub lookup: u64,
    /// Because somebody asked for it: events may be pending.
    pub poll: u64,
    /// An instruction raised an exception.
    pub exception: u64,
    /// For the guest's leave handler.
    pub leave: u64,
}

/// Counters of a vCPU, since it was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Blocks translated, those that run once included.
    pub translated: u64,
    /// Of these, blocks of one instruction that run once.
    pub translated_once: u64,
    /// Blocks copied from the same code's at another address, beside these.
    pub copied: u64,
    /// Traces made of hot loops, blocks beside these.
    pub traces: u64,
    /// Guest instructions in them.
    pub trace_insns: u64,
    /// Guest instructions that were run alone to find out where they go.
    pub recorded: u64,
    /// Guest bytes translated, those of copied blocks included.
    pub guest_bytes: u64,
    /// Guest instructions translated.
    pub guest_insns: u64,
    /// Host bytes emitted, those of copied blocks included.
    pub host_bytes: u64,
    /// Host instructions emitted, slow paths apart, if generated code counts ([`Options::count`]).
    pub host_insns: u64,
    /// Processor time of translation: an estimate from some of them, unless code counts ([`Options::count`]).
    pub translation_time: Duration,
    /// Times that generated code was entered.
    pub entries: u64,
    /// Times that it was left, and why.
    pub exits: ExitStats,
    /// What generated code has executed, if it counts ([`Options::count`]).
    pub executed: Executed,
    /// Blocks looked up by what they were made from.
    pub lookups: u64,
    /// Exceptions delivered.
    pub exceptions: u64,
    /// Accesses that generated code left to the slow path.
    pub slow_accesses: u64,
    /// Time spent in them, and in the devices that they reach, if that is measured ([`Options::count`]).
    pub slow_time: Duration,
    /// Blocks that exist now.
    pub live_blocks: u64,
    /// Blocks and links.
    pub blocks: BlockStats,
    /// TLBs.
    pub mmu: MmuStats,
}
