//! Register allocation, done while emitting, in one pass.
//!
//! Every value is in a host register, in memory, both, or is a constant that is made when needed. A register is free
//! when its value's last use (from [`Liveness`]) has passed. When none is free, the value with the most distant last
//! use is written to memory, to its global's place in the environment if it is one's current value, else to a spill
//! slot.
//!
//! Invariants:
//! - `owner[r] == v` exactly when `reg[v] == r` (integer and vector registers have separate tables). A value whose last use
//!   has passed may still be an owner: whoever wants the register takes it.
//! - A live value has a register, a memory place, or is a constant, or is a flags value (emitted at its uses).
//! - `MemLoc::Env(g)` of `v` holds as long as `env_owner[g] == v`; `release_env` ends it, moving the value if needed.
//! - Unpinned global `g` is dirty exactly when the environment does not hold `current[g]`.
//! - The host's vector registers have clean upper halves wherever a block is entered, left or calls out, so that code that
//!   does not use VEX, such as that of helpers, runs at full speed. `upper` says that they may not be clean here.
//! - RAX, RCX, XMM14 and XMM15 are never allocated: emission code uses them within one instruction.

use super::chases::Chases;
use super::count::Count;
use super::encode::{Asm, Mem, r};
use super::flags::HostFlags;
use super::forwarding::Forwarding;
use super::groups::{Groups, OPEN};
use super::liveness::{Liveness, NO_VALUE};
use super::loops::LoopHead;
use super::rounds::Rounds;
use super::vec::{VecMem, emit_vec_load, emit_vec_move, emit_vec_store, emit_vec_zero};
use super::{ENV_BIAS, INT_ALLOC, PIN_OFF, VEC_ALLOC};
use crate::backend::{Compiled, FlagRecipe, GuestInfo, Loc, StatePoint};
use crate::env::{RUNTIME_DISTANCE, Runtime, SPILL_SLOTS};
use crate::ir::{Block, GlobalId, GlobalSet, Inst, Ty, Value, VecSize, Width};
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
    slots: [u32; SPILL_SLOTS],
    slots_used: usize,
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

/// Displacement of a spill slot from RBP.
fn spill_disp(slot: u16) -> i32 {
    runtime_disp(std::mem::offset_of!(Runtime, spill) + 8 * slot as usize)
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
        b.count.reset();
        let total = b.live.group_value(0) + OPEN;
        b.reg.clear();
        b.reg.resize(total, NONE);
        b.mem.clear();
        b.mem.resize(total, MemLoc::None);
        b.main.buf.clear();
        b.side.buf.clear();
        b.cold.buf.clear();
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
            if self.opt.contains(OptFlags::RELOADS) {
                let Buffers { live, groups, forwarding, .. } = &mut *self.b;
                forwarding.run(self.block, groups, live, self.guest.helpers);
            }
        }
        if self.opt.contains(OptFlags::CHASES) && self.block.guesses != 0 && self.has_head() {
            self.b.chases.run(self.block, &self.b.live, &self.b.groups, self.block.guesses);
            self.out.guesses = self.b.chases.any();
        }
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
        let was = self.part;
        self.part = part;
        let to = self.here();
        self.b.fixups.push(Fixup { part: was, at, to });
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
    fn rematerialisable(&self, v: usize) -> bool {
        matches!(self.block.insts.get(v), Some(Inst::Const(_) | Inst::VecZero))
    }

    fn ty(&self, v: usize) -> Ty {
        match self.block.insts.get(v) {
            Some(inst) => {
                inst.ty(|g| self.guest.globals[g.0 as usize].ty).expect("operands are defined by values")
            }
            None => Ty::Int,
        }
    }

    #[inline]
    fn last_use(&self, v: u32) -> u32 {
        self.b.live.values[v as usize].last_use
    }

    /// Whether what an owner table says of a register is of no use from instruction `at` on.
    #[inline]
    fn is_free(&self, owner: u32, at: u32) -> bool {
        owner == NO_VALUE || self.last_use(owner) < at
    }

    fn global_offset(&self, g: usize) -> u32 {
        self.guest.globals[g].offset
    }

    /// The global whose current value is `v`, if any.
    fn global_of(&self, v: u32) -> Option<usize> {
        (0..self.guest.globals.len()).find(|&g| self.current[g] == v)
    }

    fn take_slots(&mut self, v: u32, count: usize) -> u16 {
        let at = self.at as u32;
        let mut slot = 0;
        while slot + count <= SPILL_SLOTS {
            let free = (slot..slot + count).all(|s| {
                let o = self.slots[s];
                s >= self.slots_used || o == NO_VALUE || self.last_use(o) < at
            });
            if free {
                for s in slot..slot + count {
                    if s >= self.slots_used {
                        self.slots_used = s + 1;
                    }
                    self.slots[s] = v;
                }
                return slot as u16;
            }
            slot += count;
        }
        // Blocks have far fewer live values at a time, but a trace may have more.
        self.out.overflow = true;
        0
    }

    /// Writes a value that is in a register to memory, if it is in none yet.
    pub fn spill(&mut self, v: u32) {
        if self.b.mem[v as usize] != MemLoc::None || self.rematerialisable(v as usize) {
            return;
        }
        let vec = self.ty(v as usize) == Ty::Vec;
        let reg = self.b.reg[v as usize];
        debug_assert_ne!(reg, NONE);
        // A 16-byte home does not hold a whole vector register, so the value could not be read back from there.
        if let Some(g) = self.global_of(v)
            && self.guest.globals[g].bytes != 16
            && self.env_claimable(g)
            && !self.overwritten(g, v)
        {
            self.store_global(g, v);
            return;
        }
        let slot = self.take_slots(v, if vec { 4 } else { 1 });
        if vec {
            emit_vec_store(&mut self.asm().buf, VecSize::B32, reg, VecMem::base(r::RBP, spill_disp(slot)));
        } else {
            self.asm().store(Width::W64, Mem::Base(r::RBP, spill_disp(slot)), reg);
        }
        self.b.mem[v as usize] = MemLoc::Spill(slot);
    }

    /// Whether the instruction being emitted overwrites the environment's place of `g` although `v` outlives it.
    pub fn overwritten(&self, g: usize, v: u32) -> bool {
        self.env_unsafe >> g & 1 != 0 && self.last_use(v) > self.at as u32
    }

    /// Whether nothing alive depends on the environment's copy of global `g`.
    pub fn env_claimable(&self, g: usize) -> bool {
        let o = self.env_owner[g];
        o == NO_VALUE
            || self.b.mem[o as usize] != MemLoc::Env(g as u8)
            || self.last_use(o) < self.at as u32
            || self.b.reg[o as usize] != NONE
    }

    /// Writes current value `v` (in a register) of global `g` to the environment.
    fn store_global(&mut self, g: usize, v: u32) {
        let reg = self.b.reg[v as usize];
        let offset = self.global_offset(g);
        if self.guest.globals[g].ty == Ty::Vec {
            emit_vec_store(&mut self.asm().buf, VecSize::B32, reg, env_vec_mem(offset));
        } else {
            self.asm().store(Width::W64, env_mem(offset), reg);
        }
        self.own_env(g, v);
        self.dirty &= !(1 << g);
    }

    /// Records that the environment's place of `g` holds `v`.
    pub fn own_env(&mut self, g: usize, v: u32) {
        let o = self.env_owner[g];
        if o != NO_VALUE && o != v && self.b.mem[o as usize] == MemLoc::Env(g as u8) {
            self.b.mem[o as usize] = MemLoc::None;
        }
        self.env_owner[g] = v;
        if self.b.mem[v as usize] == MemLoc::None {
            self.b.mem[v as usize] = MemLoc::Env(g as u8);
        }
    }

    /// Makes the environment's place of `g` free to be overwritten: a living value that is only there moves to a
    /// spill slot. Clobbers RAX and RCX.
    pub fn release_env(&mut self, g: usize) {
        let o = self.env_owner[g];
        if o == NO_VALUE {
            return;
        }
        self.env_owner[g] = NO_VALUE;
        if self.b.mem[o as usize] != MemLoc::Env(g as u8) {
            return;
        }
        self.b.mem[o as usize] = MemLoc::None;
        if self.last_use(o) < self.at as u32 || self.b.reg[o as usize] != NONE {
            return;
        }
        let offset = self.global_offset(g);
        if self.guest.globals[g].ty == Ty::Vec {
            let slot = self.take_slots(o, 4);
            let size = if self.guest.globals[g].bytes == 32 { VecSize::B32 } else { VecSize::B16 };
            self.upper |= size == VecSize::B32;
            emit_vec_load(&mut self.asm().buf, size, 15, env_vec_mem(offset));
            emit_vec_store(&mut self.asm().buf, VecSize::B32, 15, VecMem::base(r::RBP, spill_disp(slot)));
            self.b.mem[o as usize] = MemLoc::Spill(slot);
        } else {
            let slot = self.take_slots(o, 1);
            self.asm().load(Width::W64, r::RCX, env_mem(offset));
            self.asm().store(Width::W64, Mem::Base(r::RBP, spill_disp(slot)), r::RCX);
            self.b.mem[o as usize] = MemLoc::Spill(slot);
        }
    }

    /// Like [`Emitter::release_env`] before a helper call that writes `g`: values that do not outlive the call stay,
    /// for the helper and its fault's state to read.
    pub fn release_env_after(&mut self, g: usize) {
        let o = self.env_owner[g];
        if o != NO_VALUE && self.last_use(o) > self.at as u32 {
            self.release_env(g);
        }
    }

    /// Empties an integer register, keeping its value in memory.
    pub fn evict(&mut self, reg: u8) {
        let v = self.owner[reg as usize];
        if v != NO_VALUE {
            if self.last_use(v) >= self.at as u32 {
                self.spill(v);
            }
            self.b.reg[v as usize] = NONE;
            self.owner[reg as usize] = NO_VALUE;
        }
    }

    /// Empties a vector register, keeping its value in memory.
    pub fn evict_vec(&mut self, reg: u8) {
        let v = self.vec_owner[reg as usize];
        if v != NO_VALUE {
            if self.last_use(v) >= self.at as u32 {
                self.spill(v);
            }
            self.b.reg[v as usize] = NONE;
            self.vec_owner[reg as usize] = NO_VALUE;
        }
    }

    /// A free integer register outside `avoid`; `hint` if possible. Registers of values that die at the current
    /// instruction count as free if `reuse`.
    fn pick_int(&mut self, hint: u8, avoid: u32, reuse: bool) -> u8 {
        let at = self.at as u32 + u32::from(reuse);
        let usable = |e: &Self, reg: u8| avoid >> reg & 1 == 0 && e.is_free(e.owner[reg as usize], at);
        if hint != NONE && usable(self, hint) {
            return self.vacate(hint);
        }
        for reg in INT_ALLOC {
            if usable(self, reg) {
                return self.vacate(reg);
            }
        }
        let mut best = (NONE, 0);
        for reg in INT_ALLOC {
            if (avoid | self.locked) >> reg & 1 == 0 {
                let v = self.owner[reg as usize];
                let cheap = self.b.mem[v as usize] != MemLoc::None || self.rematerialisable(v as usize);
                let score = (self.last_use(v) as u64) << 1 | cheap as u64;
                if best.0 == NONE || score > best.1 {
                    best = (reg, score);
                }
            }
        }
        debug_assert_ne!(best.0, NONE, "an instruction locks at most six registers");
        self.evict(best.0);
        best.0
    }

    fn vacate(&mut self, reg: u8) -> u8 {
        let v = self.owner[reg as usize];
        if v != NO_VALUE {
            self.b.reg[v as usize] = NONE;
            self.owner[reg as usize] = NO_VALUE;
        }
        reg
    }

    fn pick_vec(&mut self, avoid: u32, reuse: bool, hint: u8) -> u8 {
        let at = self.at as u32 + u32::from(reuse);
        let usable = |e: &Self, reg: u8| avoid >> reg & 1 == 0 && e.is_free(e.vec_owner[reg as usize], at);
        let found = if hint != NONE && usable(self, hint) {
            Some(hint)
        } else {
            VEC_ALLOC.clone().find(|&reg| usable(self, reg))
        };
        if let Some(reg) = found {
            let v = self.vec_owner[reg as usize];
            if v != NO_VALUE {
                self.b.reg[v as usize] = NONE;
                self.vec_owner[reg as usize] = NO_VALUE;
            }
            return reg;
        }
        let best = VEC_ALLOC
            .clone()
            .filter(|&reg| (avoid | self.vec_locked) >> reg & 1 == 0)
            .max_by_key(|&reg| self.last_use(self.vec_owner[reg as usize]))
            .expect("an instruction locks at most four vector registers");
        self.evict_vec(best);
        best
    }

    /// Puts a value in an integer register, and locks it there for the current instruction.
    pub fn use_int(&mut self, v: Value) -> u8 {
        let v = self.b.live.resolve(v);
        let mut reg = self.b.reg[v];
        if reg == NONE {
            let hint = self.b.live.values[v].hint;
            // A value's wanted register is for its definition; on a reload it would displace somebody.
            let at = self.at as u32;
            let hint = if hint != NONE && self.is_free(self.owner[hint as usize], at) { hint } else { NONE };
            reg = self.pick_int(hint, self.locked, false);
            self.read_value(reg, v);
            self.owner[reg as usize] = v as u32;
            self.b.reg[v] = reg;
        }
        self.locked |= 1 << reg;
        reg
    }

    /// Puts a value in a vector register, and locks it there for the current instruction.
    pub fn use_vec(&mut self, v: Value) -> u8 {
        let v = self.b.live.resolve(v);
        let mut reg = self.b.reg[v];
        if reg == NONE {
            reg = self.pick_vec(self.vec_locked, false, NONE);
            self.read_vec(reg, v);
            self.vec_owner[reg as usize] = v as u32;
            self.b.reg[v] = reg;
        }
        self.vec_locked |= 1 << reg;
        reg
    }

    /// Copies a value to an integer register, without changing where it is. Clobbers only `reg`; the host's flags
    /// survive.
    pub fn read_value(&mut self, reg: u8, v: usize) {
        if let Some(c) = self.constant(v) {
            self.asm().mov_ri(reg, c);
            return;
        }
        let from = self.b.reg[v];
        if from != NONE {
            self.asm().mov_rr(reg, from);
            return;
        }
        match self.b.mem[v] {
            MemLoc::Env(g) => {
                let m = env_mem(self.global_offset(g as usize));
                self.asm().load(Width::W64, reg, m);
            }
            MemLoc::Spill(slot) => {
                self.asm().load(Width::W64, reg, Mem::Base(r::RBP, spill_disp(slot)));
            }
            MemLoc::None => unreachable!("v{v} is live but nowhere"),
        }
    }

    /// The place in the environment of an integer that is in no register.
    pub fn only_home(&self, v: usize) -> Option<Mem> {
        match self.b.mem[v] {
            MemLoc::Env(g) if self.b.reg[v] == NONE => Some(env_mem(self.global_offset(g as usize))),
            _ => None,
        }
    }

    /// The place in the environment of an integer that is in no register, if the current instruction is the last that wants it.
    pub fn last_home(&self, v: usize) -> Option<Mem> {
        self.only_home(v).filter(|_| self.last_use(v as u32) <= self.at as u32)
    }

    /// A register that holds the value: its own, or `scratch` after a copy.
    pub fn value_in(&mut self, v: usize, scratch: u8) -> u8 {
        let reg = self.b.reg[v];
        if reg != NONE {
            return reg;
        }
        self.read_value(scratch, v);
        scratch
    }

    /// Copies a vector value to a register. May clobber RAX.
    pub fn read_vec(&mut self, reg: u8, v: usize) {
        if matches!(self.block.insts[v], Inst::VecZero) {
            emit_vec_zero(&mut self.asm().buf, reg);
            return;
        }
        let from = self.b.reg[v];
        if from != NONE {
            self.upper = true;
            emit_vec_move(&mut self.asm().buf, crate::ir::VecLen::V256, reg, from);
            return;
        }
        match self.b.mem[v] {
            MemLoc::Env(g) => {
                let desc = &self.guest.globals[g as usize];
                let size = if desc.bytes == 32 { VecSize::B32 } else { VecSize::B16 };
                let m = env_vec_mem(desc.offset);
                self.upper |= size == VecSize::B32;
                emit_vec_load(&mut self.asm().buf, size, reg, m);
            }
            MemLoc::Spill(slot) => {
                let m = VecMem::base(r::RBP, spill_disp(slot));
                self.upper = true;
                emit_vec_load(&mut self.asm().buf, VecSize::B32, reg, m);
            }
            MemLoc::None => unreachable!("v{v} is live but nowhere"),
        }
    }

    /// Register for the integer that the current instruction defines. It may be that of an operand that dies here,
    /// unless in `avoid`; `prefer` is tried after the value's own wish.
    pub fn define(&mut self, prefer: u8, avoid: u32) -> u8 {
        let v = self.at;
        let hint = self.b.live.values[v].hint;
        let at = self.at as u32 + 1;
        let usable =
            |e: &Self, reg: u8| reg != NONE && avoid >> reg & 1 == 0 && e.is_free(e.owner[reg as usize], at);
        let choice = if usable(self, hint) || self.make_room(hint, avoid) { hint } else { prefer };
        let reg = self.pick_int(choice, avoid, true);
        self.owner[reg as usize] = v as u32;
        self.b.reg[v] = reg;
        reg
    }

    /// Frees a register that is wanted, by bringing the value in it to its own home: that has to be done anyway, and later it
    /// would take two moves. Operands of the current instruction stay readable where they were.
    fn make_room(&mut self, reg: u8, avoid: u32) -> bool {
        if reg == NONE || avoid >> reg & 1 != 0 {
            return false;
        }
        let v = self.owner[reg as usize];
        let homes = self.kinds.pinned.iter().filter(|g| self.current[g.0 as usize] == v);
        let mut homes = homes.map(|g| self.pin_reg[g.0 as usize]);
        let free = |home: &u8| {
            *home != reg && avoid >> home & 1 == 0 && self.is_free(self.owner[*home as usize], self.at as u32)
        };
        let Some(home) = homes.find(free) else { return false };
        self.vacate(home);
        self.asm().mov_rr(home, reg);
        self.owner[home as usize] = v;
        self.b.reg[v as usize] = home;
        self.owner[reg as usize] = NO_VALUE;
        true
    }

    /// Register for the vector that the current instruction defines, as [`Emitter::define`].
    pub fn define_vec(&mut self, prefer: u8, avoid: u32) -> u8 {
        let reg = self.pick_vec(avoid, true, prefer);
        self.vec_owner[reg as usize] = self.at as u32;
        self.b.reg[self.at] = reg;
        reg
    }

    /// A register that holds nothing of use, for a value that anybody may displace; none if all are wanted.
    pub fn spare(&self) -> Option<u8> {
        let usable =
            |reg: u8| self.locked >> reg & 1 == 0 && self.is_free(self.owner[reg as usize], self.at as u32);
        // What is defined next takes the first of these, so this is the last of those that are nobody's home.
        [r::RDX, r::R10, r::R9].into_iter().chain(INT_ALLOC).find(|reg| usable(*reg))
    }

    /// Notes that a register holds a value of which there is a copy elsewhere.
    pub fn lend(&mut self, reg: u8, v: usize) {
        self.vacate(reg);
        self.forget_value(v);
        self.b.reg[v] = reg;
        self.owner[reg as usize] = v as u32;
    }

    /// Notes that no register holds a value any more.
    pub fn forget_value(&mut self, v: usize) {
        let reg = std::mem::replace(&mut self.b.reg[v], NONE);
        if reg != NONE {
            self.owner[reg as usize] = NO_VALUE;
        }
    }

    /// An integer register for use within the current instruction only.
    pub fn temp(&mut self) -> u8 {
        let reg = self.pick_int(NONE, self.locked, false);
        self.locked |= 1 << reg;
        reg
    }

    /// Where a value is, for side tables.
    pub fn loc(&mut self, v: usize) -> Loc {
        if let Some(c) = self.constant(v) {
            return Loc::Const(c);
        }
        match self.ty(v) {
            Ty::Flags if self.b.mem[v] == MemLoc::None => return self.flags_loc(v),
            Ty::Vec if self.b.reg[v] != NONE => return Loc::Vec(self.b.reg[v]),
            Ty::Int if self.b.reg[v] != NONE => return Loc::Int(self.b.reg[v]),
            _ => {}
        }
        match self.b.mem[v] {
            MemLoc::Env(g) if self.guest.globals[g as usize].bytes == 16 => {
                Loc::EnvLow(self.global_offset(g as usize))
            }
            MemLoc::Env(g) => Loc::Env(self.global_offset(g as usize)),
            MemLoc::Spill(slot) => Loc::Spill(slot),
            // The only vector that is nowhere is zero, and its location is a constant.
            MemLoc::None if self.rematerialisable(v) => Loc::Const(0),
            MemLoc::None => unreachable!("v{v} is live but nowhere"),
        }
    }

    /// A recipe for a flags value that is not in memory.
    fn flags_loc(&mut self, v: usize) -> Loc {
        let Inst::Flags { op, w, a, b, old } = self.block.insts[v] else {
            unreachable!("a flags value is computed or in the environment")
        };
        let from_result = self.b.live.uses_result(self.block, v);
        let a = if from_result { self.b.live.values[v].companion as usize } else { self.b.live.resolve(a) };
        let a = self.loc(a);
        let b = if op.reads_b() { self.resolved_loc(b) } else { a };
        let demand = self.b.live.values[v].flag_demand;
        let needed = op.old_bits(w, self.block.constant(self.flag_b(v)), demand);
        let old = match old {
            Some(old) if needed != 0 => {
                let old = self.b.live.flags_source(self.block, self.b.live.resolve(old), needed);
                Some(self.loc(old))
            }
            _ => None,
        };
        self.out.recipes.push(FlagRecipe { op, w, a, b, old, from_result });
        Loc::Flags(self.out.recipes.len() as u32 - 1)
    }

    /// The second operand of flags value `v`.
    pub fn flag_b(&self, v: usize) -> Value {
        match self.block.insts[v] {
            Inst::Flags { b, .. } => Value(self.b.live.resolve(b) as u32),
            _ => unreachable!("only flags instructions have flag operands"),
        }
    }

    /// Where an operand is, for side tables.
    pub fn resolved_loc(&mut self, v: Value) -> Loc {
        let v = self.b.live.resolve(v);
        self.loc(v)
    }

    /// Records the guest's state here; returns the point's number.
    pub fn point(&mut self, access: Option<crate::backend::SlowAccess>) -> u32 {
        let moved_start = self.out.moved.len() as u32;
        for g in GlobalSet(self.away()).iter() {
            let v = self.current[g.0 as usize];
            let loc = self.loc(v as usize);
            self.out.moved.push((g, loc));
        }
        let moved_len = (self.out.moved.len() as u32 - moved_start) as u16;
        self.out.points.push(StatePoint { pc: self.pc, access, moved_start, moved_len });
        self.out.points.len() as u32 - 1
    }

    /// `Get` of a global that is read from its home here: the value is in the environment.
    pub fn get(&mut self, g: GlobalId) {
        let gi = g.0 as usize;
        let v = self.at as u32;
        if let Some(o) = self.guest.globals[gi].overlaps {
            self.flush_global(o.0 as usize);
            self.flush_global(gi);
        }
        self.current[gi] = v;
        self.own_env(gi, v);
    }

    /// Writes a dirty unpinned vector or integer global to the environment.
    pub fn flush_global(&mut self, g: usize) {
        if self.dirty >> g & 1 == 0 {
            return;
        }
        let v = self.current[g] as usize;
        self.write_home(g, v);
        self.dirty &= !(1 << g);
        if self.ty(v) != Ty::Flags
            && !self.rematerialisable(v)
            && self.guest.globals[g].bytes != 16
            && !self.overwritten(g, v as u32)
        {
            self.own_env(g, v as u32);
        }
    }

    /// Emits the store of value `v` to the environment's place of unpinned global `g`, changing nothing else.
    /// Clobbers RAX and XMM15; the host's flags survive, unless the global is the flags.
    pub fn write_home(&mut self, g: usize, v: usize) {
        let desc = self.guest.globals[g];
        let m = env_mem(desc.offset);
        match desc.ty {
            Ty::Int => {
                if let Some(imm) = self.imm(v, Width::W64) {
                    self.asm().store_imm(Width::W64, m, imm);
                } else {
                    let reg = self.value_in(v, r::RAX);
                    self.asm().store(Width::W64, m, reg);
                }
            }
            Ty::Flags => self.store_packed(v, desc.offset),
            Ty::Vec => {
                let mut reg = self.b.reg[v];
                if reg == NONE {
                    reg = 15;
                    self.read_vec(reg, v);
                }
                let size = if desc.bytes == 32 { VecSize::B32 } else { VecSize::B16 };
                emit_vec_store(&mut self.asm().buf, size, reg, env_vec_mem(desc.offset));
            }
        }
    }

    /// [`Inst::ZeroUpper`]: the values go home, and their upper halves are cleared there. Clobbers RAX, RCX and XMM15; the
    /// host's flags survive.
    pub fn zero_upper(&mut self, set: GlobalSet) {
        for g in set.iter() {
            let g = g.0 as usize;
            self.flush_global(g);
            self.release_env(g);
            self.current[g] = NO_VALUE;
        }
        emit_vec_zero(&mut self.asm().buf, 15);
        for g in set.iter() {
            let upper = self.global_offset(g.0 as usize) + 16;
            emit_vec_store(&mut self.asm().buf, VecSize::B16, 15, env_vec_mem(upper));
        }
    }

    /// `Set`: pure bookkeeping, as values find their homes at observers.
    pub fn set(&mut self, g: GlobalId, v: Value) {
        let gi = g.0 as usize;
        let v = self.b.live.resolve(v) as u32;
        if let Some(o) = self.guest.globals[gi].overlaps {
            let oi = o.0 as usize;
            if self.guest.globals[oi].bytes > self.guest.globals[gi].bytes {
                self.flush_global(oi);
            }
            self.dirty &= !(1 << oi);
            self.release_env(oi);
            self.current[oi] = NO_VALUE;
        }
        if self.env_owner[gi] == v && self.b.mem[v as usize] == MemLoc::Env(gi as u8) {
            // The home holds this very value already.
            self.current[gi] = v;
            self.dirty &= !(1 << gi);
            return;
        }
        if self.guest.globals[gi].ty != Ty::Flags {
            self.release_env(gi);
        }
        self.current[gi] = v;
        if self.pin_reg[gi] == PIN_OFF && !self.b.live.values[self.at].dead_set {
            self.dirty |= 1 << gi;
        } else {
            self.dirty &= !(1 << gi);
        }
    }
}
