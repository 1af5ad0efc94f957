//! Homes of globals in the environment, while a block is emitted.
//!
//! Setting a global is bookkeeping alone: its value goes home when somebody may look, or when its register is wanted.
//!
//! Invariants:
//! - `MemLoc::Env(g)` of `v` holds as long as `env_owner[g] == v`; `release_env` ends it, moving the value if needed.
//! - Unpinned global `g` is dirty exactly when the environment does not hold `current[g]`.

use super::PIN_OFF;
use super::emitter::{Emitter, MemLoc, NONE, env_mem, env_vec_mem};
use super::encode::{Mem, r};
use super::liveness::NO_VALUE;
use super::registers::spill_disp;
use super::vec::{VecMem, emit_vec_load, emit_vec_store, emit_vec_zero};
use crate::ir::{GlobalId, GlobalSet, Ty, Value, VecSize, Width};

impl Emitter<'_> {
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
    pub fn store_global(&mut self, g: usize, v: u32) {
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
