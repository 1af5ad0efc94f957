//! The state of one block's emission.
//!
//! [`Emitter`] is what the files of the instruction families extend. What it knows of values and globals belongs to
//! [`registers`](super::registers) (which register holds which value), [`homes`](super::homes) (what the environment holds of the
//! globals) and [`places`](super::places) (what side tables are told of both); here are its parts, its buffers, and
//! questions that all of them ask.
//!
//! Invariants:
//! - A live value has a register, a memory place, or is a constant, or is a flags value (emitted at its uses).
//! - The host's vector registers have clean upper halves wherever a block is entered, left or calls out, so that code that
//!   does not use VEX, such as that of helpers, runs at full speed. `upper` says that they may not be clean here.
//! - RAX, RCX, XMM14 and XMM15 are never allocated: emission code uses them within one instruction.

use super::ENV_BIAS;
use super::chases::Chases;
use super::count::Count;
use super::encode::{Asm, Mem, r};
use super::flags::HostFlags;
use super::forwarding::Forwarding;
use super::groups::{Groups, OPEN};
use super::liveness::{Liveness, NO_VALUE};
use super::loops::LoopHead;
use super::memos::{self, Memos};
use super::rounds::Rounds;
use super::vec::VecMem;
use crate::backend::{Compiled, GuestInfo};
use crate::env::{RUNTIME_DISTANCE, SPILL_SLOTS};
use crate::ir::{Block, GlobalSet, Inst, Ty, Width};
use crate::opt::OptFlags;

/// No register.
pub const NONE: u8 = 255;

/// Where in memory a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemLoc {
    None,
    /// The environment, at a global's offset.
    Env(u8),
    /// A spill slot.
    Spill(u16),
}

/// A part of a block's code, with a buffer of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// What runs from the entry on.
    Main,
    /// Side exits: as frequent as the main part's end, which they follow.
    Side,
    /// What is rarely run: slow paths, and stubs of jumps that are not linked.
    Cold,
}

/// A jump that has no target yet.
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    part: Part,
    /// Offset of its field.
    at: usize,
}

/// Target of a jump or call field.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Offset in a part.
    In(Part, usize),
    /// Host address.
    Abs(u64),
}

/// A 32-bit relative field to be filled when the parts are placed.
#[derive(Clone, Copy, Debug)]
pub struct Fixup {
    pub part: Part,
    pub at: usize,
    pub to: Target,
}

/// A linkable jump before the parts are placed.
#[derive(Clone, Copy, Debug)]
pub struct PendingJump {
    pub part: Part,
    pub at: usize,
    pub exit: u16,
}

/// Buffers that survive from block to block.
#[derive(Default)]
pub struct Buffers {
    pub live: Liveness,
    pub groups: Groups,
    pub rounds: Rounds,
    pub forwarding: Forwarding,
    pub chases: Chases,
    pub memos: Memos,
    pub count: Count,
    pub main: Asm,
    pub side: Asm,
    pub cold: Asm,
    pub fixups: Vec<Fixup>,
    pub jumps: Vec<PendingJump>,
    pub reg: Vec<u8>,
    pub mem: Vec<MemLoc>,
}

/// Addresses of the thunks.
#[derive(Clone, Copy, Default, Debug)]
pub struct ThunkAddrs {
    /// Leaves with the outcome in RAX.
    pub exit: u64,
    /// Leaves by the exit of this number of the block whose number is in RAX.
    pub exit_by: [u64; 4],
    /// Leaves because the entry of the block whose number is in RAX has seen a request.
    pub poll: u64,
    pub slow: u64,
    pub slow_vec: u64,
    pub helper_fault: u64,
    pub call_saved: u64,
    pub lookup: u64,
    pub lookup_miss: u64,
    /// First of the routines that [`super::second_way`] lays out.
    pub second_way: u64,
}

impl ThunkAddrs {
    /// The name of the thunk at an address.
    pub fn name_of(&self, address: u64) -> Option<String> {
        if let Some(exit) = self.exit_by.iter().position(|at| *at == address) {
            return Some(format!("exit_by_{exit}"));
        }
        let named = [
            (self.exit, "exit"),
            (self.poll, "poll"),
            (self.slow, "slow_access"),
            (self.slow_vec, "slow_access_vec"),
            (self.helper_fault, "helper_fault"),
            (self.call_saved, "call_saved"),
            (self.lookup, "lookup"),
            (self.lookup_miss, "lookup_miss"),
        ];
        let found = named.iter().find(|(at, _)| *at == address).map(|(_, name)| (*name).to_owned());
        found.or_else(|| super::second_way::name_of(self.second_way, address))
    }
}

/// Globals by what has to be done for them at a block's end.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// Those that are pinned.
    pub pinned: GlobalSet,
    /// Flags.
    pub flags: GlobalSet,
}

/// The state of one block's emission.
pub struct Emitter<'a> {
    pub guest: GuestInfo,
    pub pin_reg: &'a [u8; 64],
    pub kinds: Kinds,
    pub thunks: ThunkAddrs,
    pub block: &'a Block,
    pub tb: u32,
    /// Which optimisations to do.
    pub opt: OptFlags,
    pub out: &'a mut Compiled,
    pub b: &'a mut Buffers,
    /// Where emission goes to.
    pub part: Part,
    pub owner: [u32; 16],
    pub vec_owner: [u32; 16],
    pub current: [u32; 64],
    pub env_owner: [u32; 64],
    pub dirty: u64,
    /// Globals whose environment places the helper being called writes.
    pub env_unsafe: u64,
    pub locked: u32,
    pub vec_locked: u32,
    /// The upper half of some vector register may be in use.
    pub upper: bool,
    /// Instruction being emitted.
    pub at: usize,
    /// Guest program counter of the current guest instruction.
    pub pc: u64,
    /// What the host's flags hold.
    pub host_flags: HostFlags,
    /// Values by spill slot, as far as slots have been used.
    pub slots: [u32; SPILL_SLOTS],
    pub slots_used: usize,
    pub next_pseudo: usize,
    /// Where the block goes on if it jumps to its own start.
    pub head: Option<LoopHead>,
}

/// Displacement of an environment field from the environment register.
pub fn env_disp(offset: u32) -> i32 {
    offset as i32 - ENV_BIAS
}

/// `[environment + offset]`.
pub fn env_mem(offset: u32) -> Mem {
    Mem::Base(r::RBP, env_disp(offset))
}

/// `[environment + offset]` for vector instructions.
pub fn env_vec_mem(offset: u32) -> VecMem {
    VecMem::base(r::RBP, env_disp(offset))
}

/// Displacement of an offset in the runtime from RBP.
pub const fn runtime_disp(offset: usize) -> i32 {
    offset as i32 - RUNTIME_DISTANCE as i32 - ENV_BIAS
}

/// `[runtime + offset]`.
pub fn runtime_mem(offset: usize) -> Mem {
    Mem::Base(r::RBP, runtime_disp(offset))
}

impl<'a> Emitter<'a> {
    /// Starts a block: begins to analyse it, and puts pinned globals in their registers.
    pub fn new(
        guest: GuestInfo,
        (pin_reg, kinds): (&'a [u8; 64], Kinds),
        thunks: ThunkAddrs,
        block: &'a Block,
        tb: u32,
        out: &'a mut Compiled,
        b: &'a mut Buffers,
    ) -> Emitter<'a> {
        b.live.begin(block, &guest, kinds.pinned);
        b.groups.reset();
        b.chases.reset();
        b.memos.reset();
        b.count.reset();
        let total = b.live.group_value(0) + OPEN;
        b.reg.clear();
        b.reg.resize(total, NONE);
        b.mem.clear();
        b.mem.resize(total, MemLoc::None);
        b.main.clear();
        b.side.clear();
        b.cold.clear();
        b.fixups.clear();
        b.jumps.clear();
        let mut e = Emitter {
            guest,
            pin_reg,
            kinds,
            thunks,
            block,
            tb,
            opt: OptFlags::all(),
            out,
            b,
            part: Part::Main,
            owner: [NO_VALUE; 16],
            vec_owner: [NO_VALUE; 16],
            current: [NO_VALUE; 64],
            env_owner: [NO_VALUE; 64],
            dirty: 0,
            env_unsafe: 0,
            locked: 0,
            vec_locked: 0,
            upper: false,
            at: 0,
            pc: 0,
            host_flags: HostFlags::NONE,
            slots: [NO_VALUE; SPILL_SLOTS],
            slots_used: 0,
            next_pseudo: 0,
            head: None,
        };
        e.define_pseudos(0);
        e
    }

    /// Ends the analysis, before the first instruction is emitted.
    pub fn analyse(&mut self) {
        if self.opt.contains(OptFlags::GROUPS) && !self.block.ungrouped {
            let rounds = self.has_head().then(|| {
                self.b.rounds.run(self.block, &self.b.live, &self.guest);
                &self.b.rounds
            });
            self.b.groups.run(self.block, &self.b.live, self.guest.helpers, rounds);
            if self.opt.contains(OptFlags::RELOADS) && self.b.groups.reload() {
                let Buffers { live, groups, forwarding, .. } = &mut *self.b;
                forwarding.run(self.block, groups, live, self.guest.helpers);
            }
        }
        if self.block.guesses != 0 && self.has_head() {
            let Buffers { live, groups, memos, chases, .. } = &mut *self.b;
            if self.opt.contains(OptFlags::MEMOS) {
                memos.run(self.block, live, groups, memos::allowed(self.block.guesses));
            }
            if self.opt.contains(OptFlags::CHASES) {
                chases.run(self.block, live, groups, memos, self.block.guesses as u8);
            }
        }
        self.out.guesses = self.b.chases.any() || self.b.memos.any();
        self.b.live.finish(self.block, &self.guest, self.pin_reg, &self.b.groups);
    }

    /// Gives the pseudo-values that exist from instruction `from` on their registers, which hold them already.
    pub fn define_pseudos(&mut self, from: u32) {
        let n = self.block.insts.len();
        while let Some(&(at, g)) = self.b.live.pseudo.get(self.next_pseudo)
            && at == from
        {
            let v = (n + self.next_pseudo) as u32;
            let reg = self.pin_reg[g.0 as usize];
            debug_assert_eq!(self.owner[reg as usize], NO_VALUE);
            self.owner[reg as usize] = v;
            self.b.reg[v as usize] = reg;
            self.current[g.0 as usize] = v;
            self.next_pseudo += 1;
        }
    }

    /// Makes the upper halves of vector registers clean; nothing alive is in them.
    pub fn clean_upper(&mut self) {
        if self.upper {
            self.asm().vzeroupper();
        }
    }

    /// The buffer that emission goes to.
    #[inline]
    pub fn asm(&mut self) -> &mut Asm {
        match self.part {
            Part::Main => &mut self.b.main,
            Part::Side => &mut self.b.side,
            Part::Cold => &mut self.b.cold,
        }
    }

    /// Current offset in the buffer that emission goes to, as a target.
    pub fn here(&mut self) -> Target {
        self.asm().keep();
        let at = self.asm().len();
        Target::In(self.part, at)
    }

    /// Records that the field at `at` of the current buffer is a displacement to `to`.
    pub fn fix(&mut self, at: usize, to: Target) {
        let part = self.part;
        self.b.fixups.push(Fixup { part, at, to });
    }

    /// Goes on in another part, to which the field at `at` of the current one leads. The part it was.
    pub fn branch_to(&mut self, part: Part, at: usize) -> Part {
        let jump = self.jump(at);
        self.branch_by(part, jump)
    }

    /// The jump whose field is at `at` of the current part.
    pub fn jump(&self, at: usize) -> Jump {
        Jump { part: self.part, at }
    }

    /// Goes on in another part, to which a jump leads. The part it was.
    pub fn branch_by(&mut self, part: Part, jump: Jump) -> Part {
        let was = self.part;
        self.part = part;
        let to = self.here();
        self.b.fixups.push(Fixup { part: jump.part, at: jump.at, to });
        was
    }

    /// The constant that value `v` is.
    #[inline]
    pub fn constant(&self, v: usize) -> Option<u64> {
        match self.block.insts.get(v) {
            Some(Inst::Const(c)) => Some(*c),
            _ => None,
        }
    }

    /// Constant as a sign-extended 32-bit immediate for an operation of width `w`.
    pub fn imm(&self, v: usize, w: Width) -> Option<i32> {
        let c = self.constant(v)?;
        (w != Width::W64 || c as i64 == c as i32 as i64).then_some(c as i32)
    }

    /// Whether the value can be made again from nothing.
    pub fn rematerialisable(&self, v: usize) -> bool {
        matches!(self.block.insts.get(v), Some(Inst::Const(_) | Inst::VecZero))
    }

    /// The type of a value.
    pub fn ty(&self, v: usize) -> Ty {
        match self.block.insts.get(v) {
            Some(inst) => {
                inst.ty(|g| self.guest.globals[g.0 as usize].ty).expect("operands are defined by values")
            }
            None => Ty::Int,
        }
    }

    /// The last instruction that uses a value.
    #[inline]
    pub fn last_use(&self, v: u32) -> u32 {
        self.b.live.values[v as usize].last_use
    }

    /// Whether what an owner table says of a register is of no use from instruction `at` on.
    #[inline]
    pub fn is_free(&self, owner: u32, at: u32) -> bool {
        owner == NO_VALUE || self.last_use(owner) < at
    }

    /// Where a global's home is in the environment.
    pub fn global_offset(&self, g: usize) -> u32 {
        self.guest.globals[g].offset
    }
}
