//! Host backends: from IR to host code.
//!
//! A backend turns a [`Block`] into position-dependent bytes for a given address and into *side tables*; it owns no
//! executable memory and calls nothing. The code cache places the bytes, the execution loop interprets the side
//! tables. So everything outside a backend's folder is the same for every host.
//!
//! Conventions shared by all hosts:
//! - A block is entered with pinned globals in their host registers and all others in the environment, and left the
//!   same way.
//! - Code that leaves for the execution loop returns an [`Outcome`].
//! - A *point* is a place where generated code calls [`RuntimeFns::slow_access`] or a helper that may fault. Its
//!   [`StatePoint`] says where every global is, so nothing is stored for the sake of a fault that does not come.

use crate::ir::{Block, Ext, FlagOp, GlobalDesc, GlobalId, RmwOp, VecLen, VecSize, Width, flags};
use crate::opt::OptFlags;

mod host;
pub mod x86_64;

pub use host::HostVec;

/// Where a value is while a point's slow path runs. Registers are those of the save area
/// ([`Runtime::saved_int`](crate::env::Runtime::saved_int) and `saved_vec`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Loc {
    /// Host integer register.
    Int(u8),
    /// Host vector register.
    Vec(u8),
    /// Spill slot (of [`Runtime::spill`](crate::env::Runtime::spill)).
    Spill(u16),
    /// A constant.
    Const(u64),
    /// The environment, at this byte offset.
    Env(u32),
    /// A vector whose low 128 bits are in the environment, at this byte offset; zero above.
    EnvLow(u32),
    /// Flags to be computed: index into [`Compiled::recipes`].
    Flags(u32),
}

/// Flags as a function of values; evaluated by [`flags::compute`](crate::ir::flags::compute).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FlagRecipe {
    /// Operation.
    pub op: FlagOp,
    /// Width.
    pub w: Width,
    /// First operand; or, if `from_result`, the operation's result, from which the first operand follows.
    pub a: Loc,
    /// Second operand.
    pub b: Loc,
    /// Old flags: packed if an integer location, or another recipe.
    pub old: Option<Loc>,
    /// See `a`; only for `Add`, `Sub`, `Inc` and `Dec`.
    pub from_result: bool,
}

impl FlagRecipe {
    /// The packed flags, given the operands' values.
    pub fn eval(&self, a: u64, b: u64, old: u32) -> u32 {
        let a = match self.op {
            _ if !self.from_result => a,
            FlagOp::Add => a.wrapping_sub(b),
            FlagOp::Sub => a.wrapping_add(b),
            FlagOp::Inc => a.wrapping_sub(1),
            _ => a.wrapping_add(1),
        };
        flags::compute(self.op, self.w, a, b, old)
    }
}

/// Destination of a load of which only the check for write permission is wanted: memory is not read, as that might have
/// effects.
pub const DISCARD: u8 = u8::MAX;

/// A guest memory access that the slow path completes.
#[allow(missing_docs)] // Each variant's text explains its fields.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum AccessKind {
    /// Result to host integer register `dst`.
    Load {
        width: Width,
        ext: Ext,
        /// Or [`DISCARD`].
        dst: u8,
        for_write: bool,
    },
    /// Stores the low bits of `v`.
    Store { width: Width, v: Loc },
    /// Result to host vector register `dst`.
    LoadVec { size: VecSize, dst: u8 },
    /// Stores the low bytes of `v`.
    StoreVec { size: VecSize, v: Loc },
    /// Lanes selected by `mask` to host vector register `dst`, zero to the others.
    LoadMasked { width: Width, len: VecLen, mask: Loc, dst: u8 },
    /// Stores the lanes of `v` selected by `mask`.
    StoreMasked { width: Width, len: VecLen, v: Loc, mask: Loc },
    /// Old value to host integer register `dst`.
    AtomicRmw { op: RmwOp, width: Width, v: Loc, dst: u8 },
    /// Old value to host integer register `dst`.
    AtomicCas { width: Width, expect: Loc, new: Loc, dst: u8 },
}

impl AccessKind {
    /// Bytes that it touches; of a masked access, those of one lane.
    pub fn bytes(&self) -> u32 {
        match self {
            AccessKind::Load { width, .. }
            | AccessKind::Store { width, .. }
            | AccessKind::LoadMasked { width, .. }
            | AccessKind::StoreMasked { width, .. }
            | AccessKind::AtomicRmw { width, .. }
            | AccessKind::AtomicCas { width, .. } => width.bytes(),
            AccessKind::LoadVec { size, .. } | AccessKind::StoreVec { size, .. } => size.bytes(),
        }
    }
}

/// A slow path's access.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SlowAccess {
    /// What to do.
    pub kind: AccessKind,
    /// Where the guest-virtual address is.
    pub addr: Loc,
    /// MMU mode.
    pub mmu: u8,
    /// The address must be a multiple of this, which is a power of two up to 32.
    pub align: u8,
}

/// The guest's state at a point: pinned globals are in their registers (of the save area) and others in the
/// environment, except those listed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StatePoint {
    /// Guest program counter of the instruction.
    pub pc: u64,
    /// The access, unless the point is a helper call.
    pub access: Option<SlowAccess>,
    /// First entry in [`Compiled::moved`].
    pub moved_start: u32,
    /// Entries.
    pub moved_len: u16,
}

/// Where a block's code is to go: its hot part from the lowest address upward, its cold part to the highest.
///
/// Cold code is what is rarely run: slow paths, stubs of jumps that are not linked. Apart from each other, the
/// hot parts of many blocks share cache lines and pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Address of the first byte, 16-aligned.
    pub start: u64,
    /// Address behind the last byte, 16-aligned.
    pub end: u64,
}

impl Room {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// A direct exit's jump in host code.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct JumpSite {
    /// Distance from the start of the room to the 4-byte, 4-aligned field that [`HostBackend::link_field`] fills.
    pub field: u32,
    /// Content of the field while the jump is not linked.
    pub unlinked: u32,
    /// Which of [`Block::exits`] it is, or behind these, which of [`Compiled::ungrouped`].
    pub exit: u16,
}

/// A place in one of the two parts of a block's code, by its distance from the part's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Spot {
    Hot(u32),
    Cold(u32),
}

/// A field of 4 bytes with the distance to a target, as [`HostBackend::link_field`] makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relative {
    /// Where the field is.
    pub at: Spot,
    /// Where it leads.
    pub to: Destination,
}

/// Where a [`Relative`] leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// Into the block.
    Spot(Spot),
    /// To a host address outside of it.
    Address(u64),
}

/// What the code of a block depends on besides the bytes that it was made from, their place in the page, and its mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Guest-virtual address.
    pub pc: u64,
    /// Block number.
    pub tb: u32,
}

/// A kind of field in host code whose value follows from its value at another [`Position`] of the block.
#[derive(Clone, Copy, Debug)]
pub struct MovableField {
    /// Bytes, the lowest first.
    pub bytes: usize,
    /// How many of these are the same at two positions, before the first that is not: the addresses differ by an odd number
    /// of pages, the block numbers in their lowest byte.
    pub same: usize,
    /// The value at another position than the first one; `None` if it is of another kind, or would be elsewhere in the code.
    pub moved: fn(u64, Position, Position) -> Option<u64>,
}

/// What compiling a block made. Reused from block to block.
#[derive(Default, Debug)]
pub struct Compiled {
    /// Hot host code; to be placed at the start of the room.
    pub hot: Vec<u8>,
    /// Cold host code, to be placed at its end, or before it: at [`Compiled::cold_at`].
    pub cold: Vec<u8>,
    /// Distance of the cold code from the start of the room; 16-aligned. Meaningless unless the code [fits](Compiled::fits).
    pub cold_at: u32,
    /// The block has more values at a time than the backend has room for: the code is useless. No block of up to
    /// [`MAX_INSNS`](crate::exec::MAX_INSNS) guest instructions has, which is why only those who make traces ask.
    pub overflow: bool,
    /// Host instructions that it counts, if it counts what it executes: slow paths, padding and the counting apart.
    pub host_insns: u32,
    /// Offset of the entry for jumps that need no poll; the entry at offset 0 polls `exit_request` first. Exits with
    /// `poll` go to offset 0.
    pub body: u32,
    /// Fields that depend on where the parts are.
    pub relatives: Vec<Relative>,
    /// Fields of the jumps that can be linked, those of exits with `chain`, and their [`JumpSite::exit`]s.
    pub linkable: Vec<(Spot, u16)>,
    /// These jumps, once the parts have their places.
    pub jumps: Vec<JumpSite>,
    /// Addresses of guest instructions at whose start the block is left for one that is
    /// [ungrouped](crate::ir::Block::ungrouped).
    pub ungrouped: Vec<u64>,
    /// The block makes [guesses](crate::env::Guesses) or has memos.
    pub guesses: bool,
    /// Points.
    pub points: Vec<StatePoint>,
    /// Globals away from home, by point.
    pub moved: Vec<(GlobalId, Loc)>,
    /// Flag recipes.
    pub recipes: Vec<FlagRecipe>,
}

impl Compiled {
    /// Alignment of each part.
    pub const ALIGN: usize = 16;

    /// Whether the code has room in so many bytes.
    pub fn fits(&self, bytes: usize) -> bool {
        let aligned = |part: &Vec<u8>| part.len().next_multiple_of(Self::ALIGN);
        aligned(&self.hot) + aligned(&self.cold) <= bytes
    }

    /// Gives the parts their places in `room`: fills the fields that depend on them, and makes [`Compiled::jumps`].
    pub fn place<B: HostBackend>(&mut self, room: Room) {
        // What does not fit is thrown away, whatever its addresses are.
        let cold = room.end.wrapping_sub(self.cold.len() as u64) & !(Compiled::ALIGN as u64 - 1);
        let cold_at = cold.wrapping_sub(room.start);
        self.cold_at = cold_at as u32;
        // Distance from the start of the room.
        let distance = |spot| match spot {
            Spot::Hot(at) => u64::from(at),
            Spot::Cold(at) => cold_at.wrapping_add(at.into()),
        };
        for relative in &self.relatives {
            let target = match relative.to {
                Destination::Spot(spot) => room.start.wrapping_add(distance(spot)),
                Destination::Address(address) => address,
            };
            let field = B::link_field(room.start.wrapping_add(distance(relative.at)), target);
            let (part, at) = match relative.at {
                Spot::Hot(at) => (&mut self.hot, at as usize),
                Spot::Cold(at) => (&mut self.cold, at as usize),
            };
            part[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        self.jumps.clear();
        for &(spot, exit) in &self.linkable {
            let code = match spot {
                Spot::Hot(at) => &self.hot[at as usize..],
                Spot::Cold(at) => &self.cold[at as usize..],
            };
            let unlinked = u32::from_le_bytes(std::array::from_fn(|i| code[i]));
            self.jumps.push(JumpSite { field: distance(spot) as u32, unlinked, exit });
        }
    }

    /// Bytes of host code.
    pub fn bytes(&self) -> usize {
        self.hot.len() + self.cold.len()
    }

    /// Empties it, for the next block.
    pub fn clear(&mut self) {
        self.hot.clear();
        self.cold.clear();
        self.cold_at = 0;
        self.overflow = false;
        self.host_insns = 0;
        self.body = 0;
        self.relatives.clear();
        self.linkable.clear();
        self.jumps.clear();
        self.ungrouped.clear();
        self.guesses = false;
        self.points.clear();
        self.moved.clear();
        self.recipes.clear();
    }
}

/// How generated code came back: what [`HostBackend::ENTER`]'s function returns.
#[allow(missing_docs)] // Each variant's text explains its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// By exit `exit` of block `tb`, whose jump is not linked (yet, or never). The program counter global is *not* set: it is
    /// the exit's.
    Exit { tb: u32, exit: u16 },
    /// The target of an indirect jump is not in the jump cache. The program counter global is set.
    Lookup,
    /// `exit_request` was seen at the entry of block `tb`. The program counter global is *not* set: it is the block's.
    Poll { tb: u32 },
    /// An exception is in the runtime; guest state is restored (by the runtime functions).
    Exception,
    /// [`Inst::Leave`](crate::ir::Inst::Leave).
    Leave(u32),
}

impl Outcome {
    /// The word that generated code returns.
    pub fn encode(self) -> u64 {
        match self {
            Outcome::Exit { tb, exit } => 1 << 56 | (exit as u64) << 32 | tb as u64,
            Outcome::Lookup => 2 << 56,
            Outcome::Poll { tb } => 3 << 56 | tb as u64,
            Outcome::Exception => 4 << 56,
            Outcome::Leave(code) => 5 << 56 | code as u64,
        }
    }

    /// Inverse of [`Outcome::encode`].
    ///
    /// # Panics
    /// If the word was not made by `encode`: a defect of the backend.
    pub fn decode(word: u64) -> Outcome {
        match word >> 56 {
            1 => Outcome::Exit { tb: word as u32, exit: (word >> 32) as u16 },
            2 => Outcome::Lookup,
            3 => Outcome::Poll { tb: word as u32 },
            4 => Outcome::Exception,
            5 => Outcome::Leave(word as u32),
            _ => panic!("generated code returned {word:#x}"),
        }
    }
}

/// Functions of the runtime that generated code calls (through the backend's thunks, which have saved all host
/// registers that hold guest values in the save area and restore them afterwards). `env` is the environment.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeFns {
    /// `extern "C" fn(env, tb: u32, point: u32) -> u64`: completes the point's access on the save area; 0 to go on.
    /// Otherwise an exception is pending and the state has been restored to the environment: leave.
    pub slow_access: usize,
    /// `extern "C" fn(env, va: u64, how: u32) -> u64`: enters the page of an access in the TLB, `how` being a [`Refill`]. The addend
    /// (host address minus `va`), or [`REFILL_NONE`] if the access needs [`RuntimeFns::slow_access`]: nothing has happened then
    /// that the guest could tell from a speculative read of its page tables.
    pub refill: usize,
    /// `extern "C" fn(env, tb: u32, point: u32)`: a helper has set `helper_fault`: restores the state.
    pub helper_fault: usize,
    /// `extern "C" fn(env) -> u64`: the program counter global is set, the pinned globals need not be home. Address of the entry of the block
    /// there, the one without a poll; 0 to leave with [`Outcome::Lookup`].
    pub next_block: usize,
}

/// What [`RuntimeFns::refill`] returns if there is no addend: addends are multiples of the size of a page.
pub const REFILL_NONE: u64 = 1;

/// An access that missed the TLB, as far as its page is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refill {
    /// MMU mode.
    pub mmu: u8,
    /// Whether it needs to write.
    pub write: bool,
    /// Bytes, of which the first is at the address.
    pub bytes: u16,
}

impl Refill {
    /// As an argument of [`RuntimeFns::refill`].
    pub const fn encode(self) -> u32 {
        self.bytes as u32 | (self.mmu as u32) << 16 | (self.write as u32) << 24
    }

    /// The reverse of [`Refill::encode`].
    pub const fn decode(how: u32) -> Refill {
        Refill { bytes: how as u16, mmu: (how >> 16) as u8, write: how >> 24 & 1 != 0 }
    }
}

/// The guest's constants that a backend needs.
#[derive(Clone, Copy, Debug)]
pub struct GuestInfo {
    /// Globals.
    pub globals: &'static [GlobalDesc],
    /// Program counter global.
    pub pc: GlobalId,
    /// Helpers.
    pub helpers: &'static [crate::guest::HelperDesc],
    /// Byte offset of the guest's MXCSR-like floating-point control word, if host floating point runs under it.
    pub fp_control: Option<u32>,
}

impl GuestInfo {
    /// The globals that must be in the environment when a helper runs: those that it reads, those that it may or may
    /// not write, and those that share storage with them.
    pub fn helper_sees(&self, effects: &crate::guest::Effects) -> crate::ir::GlobalSet {
        self.with_overlaps(effects.reads.or(effects.writes))
    }

    /// The globals whose environment places a helper may change.
    pub fn helper_changes(&self, effects: &crate::guest::Effects) -> crate::ir::GlobalSet {
        self.with_overlaps(effects.writes)
    }

    fn with_overlaps(&self, set: crate::ir::GlobalSet) -> crate::ir::GlobalSet {
        let mut all = crate::ir::GlobalSet(set.0 & (u64::MAX >> (64 - self.globals.len())));
        if all.0 == 0 {
            return all;
        }
        for g in all.iter() {
            if let Some(o) = self.globals[g.0 as usize].overlaps {
                all.insert(o);
            }
        }
        all
    }
}

/// Fixed code at the start of the code cache.
#[derive(Clone, Debug)]
pub struct Thunks {
    /// Bytes, to be placed at the requested address.
    pub code: Vec<u8>,
    /// Offset of the entry function: `unsafe extern "C" fn(env: *mut Header, code: u64) -> u64` (an [`Outcome`]).
    pub enter: u32,
}

/// A host architecture.
pub trait HostBackend: Send + Sized {
    /// The kinds of fields in which the code of a block at two [`Position`]s differs, what [`Compiled::relatives`] names
    /// apart. There may be others; then the block's code cannot be moved.
    const MOVABLE: &'static [MovableField];

    /// Prepares a backend; an error says in a sentence what the host lacks.
    fn new(guest: GuestInfo) -> Result<Self, String>;

    /// Sets which of its optimisations to do, and whether code counts what it executes; all and no, unless told.
    fn tune(&mut self, opt: OptFlags, count: bool);

    /// Makes the fixed code for address `base`; to be called once, before any `compile`.
    fn thunks(&mut self, base: u64, fns: RuntimeFns) -> Thunks;

    /// Host registers of the pinned globals, by global.
    fn pinned(&self) -> &[(GlobalId, u8)];

    /// Compiles `block`, to be placed in `room`, as block number `tb`. The caller looks whether it [fits](Compiled::fits).
    fn compile(&mut self, block: &Block, room: Room, tb: u32, out: &mut Compiled);

    /// For listings: the name of what is at an address that generated code jumps to or calls outside of blocks.
    fn name_of(&self, address: u64) -> Option<String>;

    /// The 4 bytes to store, as one atomic word, in the link field at address `field` so that the jump goes to
    /// `target`.
    fn link_field(field: u64, target: u64) -> u32;
}
