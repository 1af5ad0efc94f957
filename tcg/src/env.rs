//! The environment: what generated code reaches through its environment register.
//!
//! A guest's environment is a `#[repr(C)]` struct that begins with [`Header`]. Generated code addresses it by fixed
//! offsets; the first 256 bytes have short encodings on x86-64 hosts, so the header is small and the guest's
//! hottest globals follow it. Big arrays (jump cache, save area, spill slots) live in the [`Runtime`], which lies just before
//! the environment ([`Bound`]), so that generated code reaches them by fixed offsets, too. Rust code goes by the
//! header's pointer.
//!
//! Ownership: the vCPU's thread owns the environment; other threads touch only `exit_request`, which is atomic.

use std::alloc::Layout;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::exec::Blocks;
use crate::guest::Exception;
use crate::ir::GlobalId;
use crate::jump_cache::{FIRST_MASK, JumpCache};
use crate::softmmu::{MEMOS, MMU_MODES, MmuState, PageMemos, TlbEntry, Windows};

/// Host integer registers that a save area has room for.
pub const SAVED_INT_REGS: usize = 32;
/// Host vector registers that a save area has room for.
pub const SAVED_VEC_REGS: usize = 32;
/// Spill slots of a translation block, 8 bytes each; vectors take four, aligned.
pub const SPILL_SLOTS: usize = 128;
/// Every so many hits of second ways, generated code takes the slow path instead. It enters the page in the first way, too: a
/// page that another has displaced there would else be found in its second way for ever.
pub const SECOND_WAY_HITS: u32 = 256;
/// Every so many hits of large entries, generated code takes the slow path, too. It enters the page of 4 KiB in the first way,
/// where accesses to it take a fraction of the time; rarely enough that accesses all over a large page, which displace
/// each other there, lose little.
pub const LARGE_HITS: u32 = 16;

/// Head of every guest environment.
#[repr(C, align(64))]
pub struct Header {
    /// Asks generated code to return to the execution loop at its next poll. Set from any thread.
    pub exit_request: ExitRequest,
    /// Set by a helper that may fault and did (`Effects::faults`); the exception itself is in the runtime.
    pub helper_fault: u32,
    /// TLB of each MMU mode for the current address space.
    pub tlb: [*mut TlbEntry; MMU_MODES],
    /// Xored into a program counter to make a jump cache tag: its top bits name the current combination of address
    /// space, block mode and code-mapping epoch; lower bits are a secret of it. See
    /// [`JumpEntry`](crate::jump_cache::JumpEntry).
    pub jump_tag: u64,
    /// The runtime that belongs to this environment (jump cache, save area, and what Rust code needs).
    pub runtime: *mut Runtime,
    /// The TLB of [`Guest::main_mmu`](crate::guest::Guest::main_mmu) of the current block mode, which backends may hold
    /// in a register.
    pub tlb_main: *mut TlbEntry,
}

impl Header {
    /// A header that belongs to no vCPU yet; [`Context::new`](crate::exec::Context::new) binds it.
    pub const fn new() -> Header {
        Header {
            exit_request: ExitRequest::none(),
            helper_fault: 0,
            tlb: [ptr::null_mut(); MMU_MODES],
            jump_tag: JUMP_TAG_NONE,
            runtime: ptr::null_mut(),
            tlb_main: ptr::null_mut(),
        }
    }
}

impl Default for Header {
    fn default() -> Header {
        Header::new()
    }
}

// SAFETY: the pointers lead to data of the vCPU that the environment is bound to (its runtime and TLBs), which moves
// from thread to thread only together with the environment.
unsafe impl Send for Header {}

/// Whether generated code is asked to return to the execution loop.
///
/// The word is 0 if it is. Otherwise it is the mask of the jump cache's indices: lookups there need it anyway, and with 0 they
/// all find the entry that is never hit. So indirect jumps notice a request without looking for one.
#[repr(transparent)]
pub struct ExitRequest(AtomicU32);

impl ExitRequest {
    /// Nobody asks.
    pub const fn none() -> ExitRequest {
        ExitRequest(AtomicU32::new(FIRST_MASK))
    }

    /// Asks. What it announces is to be stored before.
    pub fn set(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Whether somebody asks.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Takes the request; whether there was one. What it announced may be looked at afterwards.
    pub fn take(&self) -> bool {
        self.0.swap(FIRST_MASK, Ordering::AcqRel) == 0
    }
}

/// A [`Header::jump_tag`] with which no lookup in the jump cache hits: the current combination has no name yet. Its
/// epoch, 0xfffe (0xff where addresses are wide), is never issued.
pub const JUMP_TAG_NONE: u64 = 0xfffe << 48;

/// Figures of generated code that counts itself ([`Options::count`](crate::exec::Options::count)); zero otherwise.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Executed {
    /// Blocks entered, by whatever way.
    pub blocks: u64,
    /// Jumps that look for their target in the jump cache.
    pub indirect: u64,
    /// Guest instructions.
    pub guest: u64,
    /// Host instructions, those of helpers, thunks and slow paths apart.
    pub host: u64,
    /// Guest memory accesses that the software MMU serves.
    pub accesses: u64,
    /// Calls of helpers.
    pub helpers: u64,
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
    /// Where indirect jumps go.
    pub jump_cache: JumpCache,
    /// Hits of the jump cache's second way until one is left to Rust code; see [`SECOND_HITS`](crate::jump_cache::SECOND_HITS).
    pub second_jumps_left: i32,
    /// What generated code has executed, if it counts.
    pub executed: Executed,
    /// Host registers of the pinned globals.
    pub pinned: Vec<(GlobalId, u8)>,
    /// Whether indirect jumps may find blocks without the execution loop (not under `-d nochain`).
    pub finds_blocks: bool,
    /// Accesses that generated code left to the slow path.
    pub slow_accesses: u64,
    /// The time that they took, if it is measured.
    pub slow_time: Duration,
    /// Hits of second ways until one is left to the slow path; see [`SECOND_WAY_HITS`].
    pub second_way_left: u32,
    /// Hits of large entries until one is left to the slow path; see [`LARGE_HITS`].
    pub large_left: u32,
    /// Where generated code may store in pages with code.
    pub windows: Windows,
    /// Times that a block was looked for by physical address, or that an entry of the jump cache was renewed.
    pub lookups: u64,
    /// The exception that a helper or slow path raised; meaningful while generated code is being left for it.
    pub exception: Option<Exception>,
    /// What traces guess, by the last bits of their blocks' numbers.
    pub guesses: [Guesses; GUESSING],
    /// The pages that traces have found bytes in.
    pub memos: PageMemos,
    /// TLBs of this vCPU.
    pub mmu: MmuState,
    /// Translated blocks of this vCPU, and the pages that they were made from.
    pub blocks: Blocks,
}

impl Runtime {
    /// Forgets what generated code knows of pages beside the TLB: to be called when a translation is dropped or changes, or
    /// another address space becomes the current one.
    #[inline]
    pub fn forget_pages(&mut self) {
        self.windows.close();
        self.memos.forget();
    }
}

/// Guesses of a block at addends, at most.
pub const GUESSES: usize = 8;
const _: () = assert!(GUESSES + MEMOS <= u32::BITS as usize);
/// Blocks that have counters of their own; a power of two.
pub const GUESSING: usize = 1024;
/// Rounds of a trace before its guesses are judged.
const JUDGED: u32 = 1024;
/// A guess is to be wrong less often than once in so many rounds: that takes some twenty cycles, and a right one saves seven.
const WRONG: u32 = 3;
/// A memo is to be of another page less often than once in so many accesses: it saves less than a guess.
const MISSED: u64 = 48;

/// The addends that accesses of a trace guess, and how good these guesses and its memos are.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Guesses {
    /// Host minus guest address, by number of the guess.
    pub addends: [u64; GUESSES],
    /// How often each was wrong since they were judged.
    pub wrong: [u32; GUESSES],
    /// How often each memo was of another page since then.
    pub missed: [u32; MEMOS],
    /// Times that the trace has begun since then.
    pub rounds: u32,
    /// Rounds of the guest's loop each time; all of them have the same memos.
    pub unrolled: u32,
    /// The trace that has these, and the memos of the same number, if one has.
    pub owner: u32,
}

impl Guesses {
    /// What is wrong too often, as a bit mask: the guesses, and above them the memos. Begins to count anew, if there was enough to
    /// judge by.
    pub fn unsteady(&mut self) -> u32 {
        if self.rounds < JUDGED {
            return 0;
        }
        let rounds = std::mem::take(&mut self.rounds);
        let limit = (u64::from(rounds) * u64::from(self.unrolled) / MISSED) as u32;
        let wrong = std::mem::take(&mut self.wrong).map(|wrong| wrong > rounds / WRONG);
        let missed = std::mem::take(&mut self.missed).map(|missed| missed > limit);
        wrong
            .iter()
            .chain(&missed)
            .enumerate()
            .fold(0, |mask, (n, too_often)| mask | u32::from(*too_often) << n)
    }
}

/// How far the runtime is before its environment.
pub const RUNTIME_DISTANCE: usize = size_of::<Runtime>();

/// An environment behind its runtime, so that generated code, which has the environment's address, needs no pointer to
/// the runtime.
#[repr(C)]
pub struct Bound<E> {
    /// The runtime.
    pub runtime: Runtime,
    /// The environment, which begins with a [`Header`].
    pub env: E,
}

impl<E> Bound<E> {
    /// Binds an environment to a runtime with nothing cached.
    pub fn new(env: Box<E>, mmu: MmuState, blocks: Blocks) -> Box<Bound<E>> {
        const { assert!(std::mem::offset_of!(Bound<E>, env) == RUNTIME_DISTANCE) };
        let layout = Layout::new::<Bound<E>>();
        // SAFETY: the layout is that of `Bound`, which is not zero-sized. Every field is written before the box is made: the
        // environment by moving it out of its box, which is freed as what it then is, memory without a value; those of the
        // runtime that are integers by zeroing, the others one by one. Both are too large to be built on the stack of a
        // small thread.
        let mut bound = unsafe {
            let p = std::alloc::alloc_zeroed(layout).cast::<Bound<E>>();
            if p.is_null() {
                std::alloc::handle_alloc_error(layout);
            }
            let runtime = &raw mut (*p).runtime;
            (&raw mut (*runtime).pinned).write(Vec::new());
            (&raw mut (*runtime).exception).write(None);
            (&raw mut (*runtime).slow_time).write(Duration::ZERO);
            (&raw mut (*runtime).mmu).write(mmu);
            (&raw mut (*runtime).blocks).write(blocks);
            let env = Box::into_raw(env);
            ptr::copy_nonoverlapping(env, &raw mut (*p).env, 1);
            drop(Box::from_raw(env.cast::<std::mem::MaybeUninit<E>>()));
            Box::from_raw(p)
        };
        bound.runtime.jump_cache.clear();
        bound
    }
}
