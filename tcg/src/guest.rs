//! What a guest architecture implements.

use std::sync::Arc;

use crate::env::Header;
use crate::ir::{Builder, GlobalDesc, GlobalId, GlobalSet, Width};
use crate::memory::PhysMemory;

/// An exception raised by a guest instruction or by a memory access, in the guest's own numbering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector or cause.
    pub vector: u16,
    /// Error code or syndrome, if this exception has one.
    pub error: Option<u32>,
    /// Faulting address, where that is part of the exception; else 0.
    pub address: u64,
}

/// Why memory is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write, or read with the intent to write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// A translation of one guest-virtual page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Guest-physical address of the 4 KiB page that contains the address.
    pub phys: u64,
    /// log2 of the size of the guest page it is part of (12 for 4 KiB, 21, 30 …): for invalidation.
    pub page_bits: u8,
    /// log2 of the size of the naturally aligned range around the address that is mapped alike: with the same rights, to a
    /// range of guest-physical memory as aligned, in the same order. 12 for 4 KiB; at most `page_bits`.
    pub alike_bits: u8,
    /// Reads are allowed in this MMU mode.
    pub read: bool,
    /// Writes are allowed *and* need no further bookkeeping (the dirty bit is set).
    pub write: bool,
    /// Fetches are allowed.
    pub execute: bool,
    /// Survives a non-global flush and belongs to every address space.
    pub global: bool,
}

/// What determines the translation of a block beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockKey {
    /// Guest-virtual (linear) address of the first instruction.
    pub pc: u64,
    /// The guest's mode bits that the front end reads; opaque to the translator.
    pub mode: u64,
    /// The block is [ungrouped](crate::ir::Block::ungrouped). The guest's own keys, at which the front end begins, are not.
    pub ungrouped: bool,
}

impl BlockKey {
    /// The key of a block as the guest knows it.
    pub fn new(pc: u64, mode: u64) -> BlockKey {
        BlockKey { pc, mode, ungrouped: false }
    }
}

/// State that a helper reads and writes beyond its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Effects {
    /// Globals it reads: stored to the environment before the call.
    pub reads: GlobalSet,
    /// Globals it writes: reloaded after the call.
    pub writes: GlobalSet,
    /// It may set `helper_fault`: then the block is left, guest state being restored as of the call (so it must
    /// not have written any global).
    pub faults: bool,
    /// It depends on its arguments alone and has no effect: calls may be merged and removed.
    pub pure: bool,
}

impl Effects {
    /// Arguments in, value out.
    pub const PURE: Effects =
        Effects { reads: GlobalSet::NONE, writes: GlobalSet::NONE, faults: false, pure: true };
    /// Touches no globals, but other state; cannot fault.
    pub const STATE: Effects =
        Effects { reads: GlobalSet::NONE, writes: GlobalSet::NONE, faults: false, pure: false };
    /// Touches no globals, but other state or guest memory; may fault.
    pub const FAULTS: Effects =
        Effects { reads: GlobalSet::NONE, writes: GlobalSet::NONE, faults: true, pure: false };
    /// Reads and writes any global and may fault (before it has written any).
    pub const ALL: Effects =
        Effects { reads: GlobalSet::ALL, writes: GlobalSet::ALL, faults: true, pure: false };
}

/// A function that generated code calls: `extern "C" fn(env: *mut Env, a0, …, a4: u64) -> u64` with as many
/// arguments as declared.
#[derive(Clone, Copy, Debug)]
pub struct HelperDesc {
    /// Name in the text form.
    pub name: &'static str,
    /// Address of the function.
    pub func: fn() -> *const (),
    /// Number of `u64` arguments after the environment, 0 to 5.
    pub args: u8,
    /// What it touches.
    pub effects: Effects,
    /// How a backend may do without the call.
    pub shortcut: Option<Shortcut>,
}

/// How a backend may do without a helper's call, or without most calls. The helper says what is to be done; the shortcut does
/// the same sooner. Only helpers that touch no globals have one, and of those that may fault only divisions.
#[derive(Clone, Copy, Debug)]
pub enum Shortcut {
    /// The helper does nothing; but this function is to be called unless the byte at this offset of the environment has this
    /// value: it prepares, or undoes, what other shortcuts rely on.
    Unless {
        /// Offset of the byte.
        offset: u32,
        /// The value.
        value: u8,
        /// Address of the function, of the type of a helper without arguments.
        func: fn() -> *const (),
    },
    /// The helper divides: its arguments are the dividend's high and low half and the divisor, in their low `w` bits (32 or 64),
    /// of numbers with or without a sign. It returns the quotient in the low `w` bits, rounded towards zero, and faults if
    /// that does not fit or the divisor is zero. A backend calls it for whatever it does not do itself.
    Divide {
        /// Whether they have signs.
        signed: bool,
        /// Width of divisor and quotient.
        w: Width,
    },
    /// Host code for x86-64, for guests whose instructions such a host has itself.
    X86_64(fn(&ShortcutArgs, &mut Vec<u8>)),
}

/// What a [`Shortcut::X86_64`] gets to know.
///
/// Its code finds those of the helper's arguments that are not constant, two at most, in RAX and RCX, in this order, and
/// leaves the result in RAX. It may change RAX, RCX and the flags. RBP plus [`ShortcutArgs::env`] is the environment's
/// address.
#[derive(Clone, Copy, Debug)]
pub struct ShortcutArgs {
    /// Arguments that are constant.
    pub constants: [Option<u64>; 5],
    /// Distance of the environment from RBP.
    pub env: i32,
}

/// See [`CodeFetch::fetch`]: more than any guest's instruction.
pub const MIN_FETCH: usize = 32;

/// Where the front end gets instruction bytes: the pages are those of the block's address space, in execute mode.
pub trait CodeFetch {
    /// The bytes from `pc` on, or the exception that fetching there raises: to the end of its page, or at least
    /// [`MIN_FETCH`] of them, after which the guest asks for those that follow. If they are fewer and end before the page
    /// does, the block cannot have more. Fetching a second page makes the block span pages.
    fn fetch(&mut self, pc: u64) -> Result<&[u8], Exception>;
}

/// Limits of one translation.
#[derive(Clone, Copy, Debug)]
pub struct TranslateLimits<'a> {
    /// Guest instructions at most.
    pub max_insns: u32,
    /// The block is run once and not chained, because it may overwrite its own code: one instruction, then leave.
    pub single_step: bool,
    /// Whether the block may go on behind conditional branches.
    pub side_exits: bool,
    /// Whether a block that jumps to its own start may have several rounds, one after the other.
    pub unroll: bool,
    /// Addresses of the instructions that the block shall have, in this order, the first being its start: a *trace*. It goes on
    /// behind each jump that goes this way, leaving by a side exit where the jump goes another. What leads back to its start
    /// is an exit that is chained and polls. If an instruction cannot be followed by the next one, the block ends there. If the
    /// list is empty, the block has the instructions that follow each other in memory.
    pub path: &'a [u64],
}

/// What a translation produced beside the IR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translated {
    /// Bytes of guest code from the start of the block, if it is no trace; instructions are contiguous, but may be translated
    /// more than once.
    pub bytes: u32,
    /// Guest instructions, each as often as it was translated.
    pub insns: u32,
}

/// What the execution loop does after the guest handled an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Goes on at the environment's program counter.
    Continue,
    /// Executes one instruction before events are looked at again (an interrupt shadow).
    ContinueOne,
    /// Returns this code to the accelerator.
    Exit(u32),
}

/// A guest architecture. All functions are called on the vCPU's thread, never while generated code runs (except
/// `walk` and helpers, from slow paths).
pub trait Guest: Sized + Send + 'static {
    /// The environment: `#[repr(C)]`, beginning with a [`Header`].
    type Env: Send;

    /// Globals, at most 64.
    fn globals() -> &'static [GlobalDesc];
    /// The global that holds the program counter (linear address of the current instruction).
    fn pc_global() -> GlobalId;
    /// Helpers, by [`HelperId`](crate::ir::HelperId).
    fn helpers() -> &'static [HelperDesc];
    /// Byte offset in the environment of an SSE-like control and status word that vector floating point runs under
    /// (rounding, flushing, sticky flags), if the guest has one.
    fn fp_control() -> Option<u32>;
    /// The header of an environment.
    fn header(env: &mut Self::Env) -> &mut Header;

    /// Key of the block at the current program counter.
    fn block_key(env: &Self::Env) -> BlockKey;
    /// Sets the program counter (linear) when a block is left by an exit or a fault.
    fn set_pc(env: &mut Self::Env, pc: u64);
    /// Translates from `key.pc`. If the first instruction cannot be fetched, the exception; a later one ends the
    /// block before it.
    fn translate(
        env: &Self::Env,
        key: BlockKey,
        limits: TranslateLimits<'_>,
        code: &mut dyn CodeFetch,
        ir: &mut Builder,
    ) -> Result<Translated, Exception>;
    /// Disassembles one instruction for logs: its text and length in bytes (1 for bytes that are none).
    fn disassemble(key: BlockKey, pc: u64, bytes: &[u8]) -> (String, usize);
    /// The CPU's state for people, for logs. A guest that has nothing to show there leaves it empty.
    fn dump(_env: &Self::Env) -> String {
        String::new()
    }

    /// Walks the page tables for `va` in an MMU mode, setting accessed and dirty bits.
    fn walk(
        env: &Self::Env,
        memory: &Arc<dyn PhysMemory>,
        va: u64,
        access: Access,
        mmu: u8,
    ) -> Result<Mapping, Exception>;
    /// The exception of an access that must be aligned ([`MemFlags::align`](crate::ir::MemFlags::align)) and is not.
    fn misaligned(va: u64) -> Exception;
    /// MMU mode of most data accesses of blocks in this mode. A block that accesses memory under it after a helper that
    /// may change the mode sees what belongs to the mode that the helper set.
    fn main_mmu(mode: u64) -> u8;
    /// MMU mode of instruction fetches now.
    fn fetch_mmu(env: &Self::Env) -> u8;
    /// Identity of the current address space: equal values share TLB contents.
    fn address_space(env: &Self::Env) -> u64;
    /// Significant bits of program counters now, at most 57; addresses are sign-extended from these. A change comes with one
    /// of [`Guest::address_space`].
    fn address_bits(_env: &Self::Env) -> u32 {
        48
    }
    /// Takes the guest-physical address of a paging entry that a walk has changed (accessed and dirty bits), until there is
    /// none: code may have been translated from it.
    fn changed_entry(_env: &Self::Env) -> Option<u64> {
        None
    }

    /// To be called when generated code was left, before anything else looks at the environment: brings home what
    /// shortcuts keep in the host's registers.
    fn left(_env: &mut Self::Env) {}
    /// Delivers an exception that an instruction raised (state is that before the instruction).
    fn deliver_exception(env: &mut Self::Env, exception: Exception) -> Next;
    /// Handles [`Inst::Leave`](crate::ir::Inst::Leave) with its code, which is any but
    /// [`BREAKPOINT`](crate::exec::BREAKPOINT).
    fn handle_leave(env: &mut Self::Env, code: u32) -> Next;
    /// Looks at pending events (interrupts, …) between blocks, after `exit_request` was set or a block left.
    fn poll_events(env: &mut Self::Env) -> Next;
}
