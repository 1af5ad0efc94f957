//! Blocks that jump to their own start: what goes round stays in registers.
//!
//! Problem: at a block's end every global goes home, and at its start those that are not pinned are read from there. In a
//! loop of one block that is a store and a load, one after the other, in each round of whatever the loop adds up: longer than
//! most additions take. Strategy: such a block has a second entry, the *head*, behind loads of some globals that it reads and
//! later sets. Its jump back moves their new values to the registers that they have at the head, and goes there. They are
//! stored all the same, because an exception in the next round may look at them; but nobody waits for a store.
//!
//! The jump back is a jump within the block, so it needs no link: it is right for as long as the block is. It looks for
//! requests itself, and leaves by the block's polled entry.
//!
//! Addends of access groups that last for all rounds (`groups`) are looked up before the head.
//!
//! Invariants: at the head, by whichever way, pinned globals are in their registers, all others are at home, those of the
//! [`LoopHead`] are in its registers, too, and the host's vector registers have clean upper halves unless
//! [`LoopHead::upper`].

use super::PIN_OFF;
use super::control::Moves;
use super::emitter::{Emitter, NONE, Part, Target, env_mem, env_vec_mem};
use super::encode::{Mem, r};
use super::liveness::NO_VALUE;
use super::thunks::group_word;
use super::vec::{emit_vec_load, emit_vec_move};
use crate::ir::{Cond, Exit, ExitId, GlobalSet, Inst, Ty, Value, VecLen, VecSize, Width};
use crate::opt::OptFlags;

/// Vector globals that are kept in registers, at most: the body needs some, too.
const MAX_VECS: usize = 8;
/// Integer globals, at most: few registers are nobody's home.
const MAX_INTS: usize = 2;
/// Register that moves of vectors may use.
const VEC_SCRATCH: u8 = 15;

/// A global, and its register at the head.
#[derive(Clone, Copy)]
struct Kept {
    global: u8,
    reg: u8,
}

/// Where a global is at a block's start.
enum Home {
    Reg(u8),
    Mem(Mem),
}

/// Where a block that jumps to its own start goes on, and with what.
#[derive(Clone, Copy)]
pub struct LoopHead {
    /// Offset in the main part.
    at: usize,
    ints: [Option<Kept>; MAX_INTS],
    vecs: [Option<Kept>; MAX_VECS],
    /// The upper halves of vector registers may be in use.
    upper: bool,
}

impl Emitter<'_> {
    /// Whether the exit leads to this block's start.
    fn is_back(&self, exit: Exit) -> bool {
        exit.chain && exit.poll && self.block.start() == Some(exit.pc)
    }

    /// Whether the block gets a head: it goes back to its start, and no helper that is called needs the registers.
    pub fn has_head(&self) -> bool {
        let exit = |e: ExitId| self.exit(e);
        let back = match self.block.insts.last() {
            Some(Inst::Goto(e)) => self.is_back(exit(*e)),
            Some(Inst::Branch { taken, fall, .. }) => self.is_back(exit(*taken)) || self.is_back(exit(*fall)),
            _ => false,
        };
        let calls = |inst: &Inst| matches!(*inst, Inst::Call { helper, .. } if !self.has_shortcut(helper));
        self.opt.contains(OptFlags::LOOPS | OptFlags::LINK) && back && !self.block.insts.iter().any(calls)
    }

    /// Emits the head, if the block gets one.
    pub fn loop_head(&mut self) {
        if !self.has_head() {
            return;
        }
        self.look_ahead();
        let mut carried = self.carried();
        let (mut ints, mut vecs) = ([None; MAX_INTS], [None; MAX_VECS]);
        let (mut int_places, mut vec_places) = (ints.iter_mut(), vecs.iter_mut());
        for (i, inst) in self.block.insts.iter().enumerate() {
            // Only the first: later ones read what came in between, such as upper halves that became zero.
            let Inst::Get(g) = *inst else { continue };
            if !carried.contains(g) {
                continue;
            }
            carried.remove(g);
            let vec = self.guest.globals[g.0 as usize].ty == Ty::Vec;
            let Some(place) = (if vec { vec_places.next() } else { int_places.next() }) else { continue };
            // As the instruction itself will do it again.
            self.at = i;
            self.get(g);
            self.at = 0;
            let v = Value(i as u32);
            let reg = if vec { self.use_vec(v) } else { self.use_int(v) };
            *place = Some(Kept { global: g.0, reg });
        }
        (self.locked, self.vec_locked) = (0, 0);
        self.head = Some(LoopHead { at: self.asm().len(), ints, vecs, upper: self.upper });
        self.count_guesses();
    }

    /// Looks into the TLB for the groups of accesses that last for all rounds: the addend, or zero, goes to their slots.
    fn look_ahead(&mut self) {
        let mut n = 0;
        while let Some(group) = self.b.groups.lasting(n) {
            n += 1;
            let range = (i32::try_from(group.low), i32::try_from(group.high));
            let slot = group_word(group.slot);
            let (Some(root), (Ok(low), Ok(high))) = (group.root.and_then(|v| self.at_start(v)), range) else {
                self.asm().store_imm(Width::W64, slot, 0);
                continue;
            };
            let addr = match root {
                Home::Reg(reg) => reg,
                Home::Mem(mem) => {
                    self.asm().load(Width::W64, r::RCX, mem);
                    r::RCX
                }
            };
            let addend = self.compare_entry(addr, (low, high), group.align, group.mmu, group.write);
            let asm = self.asm();
            asm.mov_ri(r::RCX, 0);
            asm.load(Width::W64, r::RAX, addend);
            asm.cmov(Width::W64, Cond::NE, r::RAX, r::RCX);
            asm.store(Width::W64, slot, r::RAX);
        }
    }

    /// Where a value is at the block's start, if it is a global's.
    fn at_start(&self, v: usize) -> Option<Home> {
        match self.block.insts.get(v) {
            Some(Inst::Get(g)) => Some(Home::Mem(env_mem(self.guest.globals[g.0 as usize].offset))),
            Some(_) => None,
            None => {
                let (_, g) = self.b.live.pseudo[v - self.block.insts.len()];
                Some(Home::Reg(self.pin_reg[g.0 as usize]))
            }
        }
    }

    /// The globals worth keeping: first read, later set.
    fn carried(&self) -> GlobalSet {
        let (mut read, mut set, mut touched) = (GlobalSet::NONE, GlobalSet::NONE, GlobalSet::NONE);
        for (i, inst) in self.block.insts.iter().enumerate() {
            match *inst {
                Inst::Get(g) => {
                    if !touched.contains(g) && self.b.live.values[i].alias == i as u32 {
                        read.insert(g);
                    }
                    touched.insert(g);
                }
                Inst::Set(g, _) => {
                    set.insert(g);
                    touched.insert(g);
                }
                Inst::ZeroUpper(upper) => touched = touched.or(upper),
                _ => {}
            }
        }
        let mut carried = GlobalSet::NONE;
        for g in GlobalSet(read.0 & set.0).iter() {
            let desc = &self.guest.globals[g.0 as usize];
            let whole = desc.overlaps.is_none_or(|o| !touched.contains(o));
            if whole && desc.ty != Ty::Flags && self.pin_reg[g.0 as usize] == PIN_OFF && g != self.guest.pc {
                carried.insert(g);
            }
        }
        carried
    }

    /// Emits the end of a block that goes to `exit`, if that is the head.
    pub fn loop_goto(&mut self, exit: ExitId) -> bool {
        let exit = self.exit(exit);
        let Some(head) = self.head.filter(|_| self.is_back(exit)) else { return false };
        self.flush_to_head(&head, exit.dead);
        self.jump_back(&head);
        true
    }

    /// Emits the end of a block that goes one of two ways, if one of them is the head.
    pub fn loop_branch(&mut self, cond: Cond, f: Value, taken: ExitId, fall: ExitId) -> bool {
        let exits = [taken, fall].map(|e| self.exit(e));
        let (stay, back, out) = match self.head {
            Some(_) if self.is_back(exits[0]) => (cond, exits[0], fall),
            Some(_) if self.is_back(exits[1]) => (cond.negate(), exits[1], taken),
            _ => return false,
        };
        let Some(head) = self.head else { return false };
        let f = self.b.live.resolve(f);
        let there = self.exit(out);
        // One flush serves both ways if it leaves the condition in the host's flags.
        if there.chain && there.dead == back.dead && self.survives_flush(f, back.dead) && !head.upper {
            let host = self.condition_for_flush(stay, f, back.dead);
            self.flush_to_head(&head, back.dead);
            self.jcc_exit(host.negate(), out);
        } else {
            let host = self.condition(stay, f);
            self.jcc_side(host.negate(), out);
            self.flush_to_head(&head, back.dead);
        }
        self.jump_back(&head);
        true
    }

    /// Brings all globals home, and those of the head to their registers there. The host's flags survive as in a flush.
    fn flush_to_head(&mut self, head: &LoopHead, dead: GlobalSet) {
        self.store_dirty(dead);
        let mut moves = Moves::default();
        self.add_pinned(&mut moves, dead);
        let mut loads = [None; MAX_INTS];
        for (kept, load) in head.ints.iter().flatten().zip(&mut loads) {
            match self.register_of(kept.global) {
                Some(reg) => moves.add_register(kept.reg, reg),
                None => *load = Some(*kept),
            }
        }
        self.parallel_move(moves);
        for kept in loads.into_iter().flatten() {
            let m = env_mem(self.guest.globals[kept.global as usize].offset);
            self.asm().load(Width::W64, kept.reg, m);
        }
        if !head.upper {
            // Before the moves: none of them is of more than a low half, and they leave the upper ones clean.
            self.clean_upper();
        }
        self.move_vecs(head);
    }

    /// The register of a global's current value.
    fn register_of(&self, g: u8) -> Option<u8> {
        let v = self.current[g as usize];
        (v != NO_VALUE && self.b.reg[v as usize] != NONE).then(|| self.b.reg[v as usize])
    }

    /// Brings the vectors of the head to their registers.
    fn move_vecs(&mut self, head: &LoopHead) {
        let size = |e: &Self, g: u8| {
            if e.guest.globals[g as usize].bytes == 32 {
                (VecLen::V256, VecSize::B32)
            } else {
                (VecLen::V128, VecSize::B16)
            }
        };
        // What is to be moved: (global, from, to). Those that are not in a register are loaded when nobody needs the old
        // content of theirs any more.
        let mut moves = [None; MAX_VECS];
        for (kept, to) in head.vecs.iter().flatten().zip(&mut moves) {
            *to = self.register_of(kept.global).map(|from| (kept.global, from, kept.reg));
        }
        loop {
            let mut progress = false;
            for i in 0..MAX_VECS {
                let Some((g, from, to)) = moves[i] else { continue };
                let needed = |m: &Option<(u8, u8, u8)>| m.is_some_and(|(_, from, _)| from == to);
                if from != to && (0..MAX_VECS).any(|j| j != i && needed(&moves[j])) {
                    continue;
                }
                if from != to {
                    let (len, _) = size(self, g);
                    emit_vec_move(&mut self.asm().buf, len, to, from);
                }
                moves[i] = None;
                progress = true;
            }
            if progress {
                continue;
            }
            // Only cycles are left: one source gets out of the way.
            let Some((g, from, _)) = moves.iter().flatten().next().copied() else { break };
            let (len, _) = size(self, g);
            emit_vec_move(&mut self.asm().buf, len, VEC_SCRATCH, from);
            for m in moves.iter_mut().flatten().filter(|m| m.1 == from) {
                m.1 = VEC_SCRATCH;
            }
        }
        for kept in head.vecs.iter().flatten() {
            if self.register_of(kept.global).is_none() {
                let (_, size) = size(self, kept.global);
                let m = env_vec_mem(self.guest.globals[kept.global as usize].offset);
                emit_vec_load(&mut self.asm().buf, size, kept.reg, m);
            }
        }
    }

    /// Jumps to the head, or to the polled entry if there is a request.
    fn jump_back(&mut self, head: &LoopHead) {
        let again = self.jump_if_requested(false);
        self.fix(again, Target::In(Part::Main, head.at));
        if head.upper {
            self.asm().vzeroupper();
        }
        self.jump_to(Target::In(Part::Main, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_register_is_nobodys() {
        assert!(!super::super::VEC_ALLOC.contains(&VEC_SCRATCH));
    }
}
