//! Register allocation, done while emitting, in one pass.
//!
//! Every value is in a host register, in memory, both, or is a constant that is made when needed. A register is free
//! when its value's last use (from [`Liveness`](super::liveness::Liveness)) has passed. When none is free, the value with the
//! most distant last use is written to memory, to its global's place in the environment if it is one's current value, else
//! to a spill slot.
//!
//! Invariant: `owner[r] == v` exactly when `reg[v] == r` (integer and vector registers have separate tables). A value whose
//! last use has passed may still be an owner: whoever wants the register takes it.

use super::emitter::{Emitter, MemLoc, NONE, env_mem, env_vec_mem, runtime_disp};
use super::encode::{Mem, r};
use super::liveness::NO_VALUE;
use super::vec::{VecMem, emit_vec_load, emit_vec_move, emit_vec_store, emit_vec_zero};
use super::{INT_ALLOC, VEC_ALLOC};
use crate::env::{Runtime, SPILL_SLOTS};
use crate::ir::{Inst, Ty, Value, VecLen, VecSize, Width};

/// Displacement of a spill slot from RBP.
pub fn spill_disp(slot: u16) -> i32 {
    runtime_disp(std::mem::offset_of!(Runtime, spill) + 8 * slot as usize)
}

impl Emitter<'_> {
    /// The global whose current value is `v`, if any.
    fn global_of(&self, v: u32) -> Option<usize> {
        (0..self.guest.globals.len()).find(|&g| self.current[g] == v)
    }

    /// So many spill slots in a row for a value, the first one's number.
    pub fn take_slots(&mut self, v: u32, count: usize) -> u16 {
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

    /// Empties an integer register, keeping its value in memory.
    pub fn evict(&mut self, reg: u8) {
        let v = self.owner[reg as usize];
        if !self.is_free(v, self.at as u32) {
            self.spill(v);
        }
        self.vacate(reg);
    }

    /// Empties a vector register, keeping its value in memory.
    pub fn evict_vec(&mut self, reg: u8) {
        let v = self.vec_owner[reg as usize];
        if !self.is_free(v, self.at as u32) {
            self.spill(v);
        }
        self.vacate_vec(reg);
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

    /// Takes an integer register from its value, of which nothing is kept.
    fn vacate(&mut self, reg: u8) -> u8 {
        let v = std::mem::replace(&mut self.owner[reg as usize], NO_VALUE);
        if v != NO_VALUE {
            self.b.reg[v as usize] = NONE;
        }
        reg
    }

    /// The same for a vector register.
    fn vacate_vec(&mut self, reg: u8) -> u8 {
        let v = std::mem::replace(&mut self.vec_owner[reg as usize], NO_VALUE);
        if v != NO_VALUE {
            self.b.reg[v as usize] = NONE;
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
            return self.vacate_vec(reg);
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
            emit_vec_move(&mut self.asm().buf, VecLen::V256, reg, from);
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
}
