//! Emission of exits, terminals and helper calls.
//!
//! Leaving a block means bringing every global home: packed flags and dirty globals to the environment, pinned
//! globals to their registers by a parallel move. The allocator's state is not changed by that, so the same code
//! serves side exits, which are emitted out of line while the state is current.

use super::emitter::{Emitter, MemLoc, NONE, Part, PendingJump, Target, env_mem, runtime_disp, runtime_mem};
use super::encode::{Alu, Asm, Mem, Shift, r};
use super::liveness::NO_VALUE;
use super::{ABI_ARGS, CALLER_SAVED, PIN_OFF, VEC_ALLOC};
use crate::backend::Outcome;
use crate::env::{Header, Runtime};
use crate::guest::{Shortcut, ShortcutArgs};
use crate::ir::{CallArgs, Cond, Exit, ExitId, GlobalSet, HelperId, Ty, Value, Width};
use crate::jump_cache::{self, FIRST_FACTOR, JumpEntry, SECOND_FACTOR, SECOND_SHIFT};
use crate::opt::OptFlags;

/// A source of a parallel move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Reg(u8),
    /// A value that is not in a register.
    Value(u32),
    /// The environment register, as a helper's first argument.
    Env,
}

/// Moves to different registers that happen at once.
#[derive(Default)]
pub struct Moves {
    list: [Option<(u8, Source)>; 16],
    len: usize,
}

impl Moves {
    /// Adds a move from one register to another.
    pub fn add_register(&mut self, dst: u8, src: u8) {
        self.add(dst, Source::Reg(src));
    }

    fn add(&mut self, dst: u8, src: Source) {
        if src != Source::Reg(dst) {
            self.list[self.len] = Some((dst, src));
            self.len += 1;
        }
    }
}

impl Emitter<'_> {
    /// Emits moves that happen at once. The host's flags survive; no scratch register is needed.
    pub fn parallel_move(&mut self, mut moves: Moves) {
        loop {
            let mut progress = false;
            let mut pending = None;
            for i in 0..moves.len {
                let Some((dst, src)) = moves.list[i] else { continue };
                let blocked = (0..moves.len)
                    .any(|j| j != i && matches!(moves.list[j], Some((_, Source::Reg(s))) if s == dst));
                if blocked {
                    pending = Some(i);
                    continue;
                }
                // What is not in a register waits until no register is a source any more: it may be the last one.
                match src {
                    Source::Reg(s) => self.asm().mov_rr(dst, s),
                    Source::Value(v) => self.read_value(dst, v as usize),
                    Source::Env => self.asm().lea(Width::W64, dst, r::RBP, None, -super::ENV_BIAS),
                }
                moves.list[i] = None;
                progress = true;
            }
            if progress {
                continue;
            }
            let Some(i) = pending else { return };
            // Only cycles are left, and in a cycle every source is a register.
            let Some((dst, Source::Reg(src))) = moves.list[i] else {
                unreachable!("a cycle of moves consists of registers")
            };
            self.asm().xchg(dst, src);
            moves.list[i] = None;
            for m in moves.list[..moves.len].iter_mut() {
                if let Some((d, Source::Reg(s))) = *m {
                    let s = if s == dst {
                        src
                    } else if s == src {
                        dst
                    } else {
                        s
                    };
                    *m = if d == s { None } else { Some((d, Source::Reg(s))) };
                }
            }
        }
    }

    /// Brings globals outside `dead` home. The host's flags survive if the flags global is dead, not dirty, or the value
    /// that they hold.
    fn flush(&mut self, dead: GlobalSet) {
        self.store_dirty(dead);
        if self.pinned_away() & !dead.0 != 0 {
            let mut moves = Moves::default();
            self.add_pinned(&mut moves, dead);
            self.parallel_move(moves);
        }
        self.clean_upper();
    }

    /// The part of a flush that stores globals which are not pinned.
    pub fn store_dirty(&mut self, dead: GlobalSet) {
        let dirty = self.dirty & !dead.0;
        // Flags first: their computation needs registers as they are.
        for set in [dirty & self.kinds.flags.0, dirty & !self.kinds.flags.0] {
            for g in GlobalSet(set).iter() {
                let g = g.0 as usize;
                let v = self.current[g] as usize;
                self.write_home(g, v);
            }
        }
    }

    /// The moves of a flush that bring pinned globals to their registers.
    pub fn add_pinned(&self, moves: &mut Moves, dead: GlobalSet) {
        for g in GlobalSet(self.pinned_away() & !dead.0).iter() {
            let g = g.0 as usize;
            let v = self.current[g];
            let reg = self.b.reg[v as usize];
            moves.add(self.pin_reg[g], if reg == NONE { Source::Value(v) } else { Source::Reg(reg) });
        }
    }

    /// The globals that are not where they are at block boundaries.
    pub fn away(&self) -> u64 {
        self.dirty | self.pinned_away()
    }

    /// The pinned globals whose values are not in their registers.
    fn pinned_away(&self) -> u64 {
        let mut away = 0;
        for g in self.kinds.pinned.iter() {
            let g = g.0 as usize;
            let v = self.current[g];
            away |= u64::from(v != NO_VALUE && self.b.reg[v as usize] != self.pin_reg[g]) << g;
        }
        away
    }

    /// An exit, with the program counter among what is dead there if the exit says where it goes.
    pub fn exit(&self, exit: ExitId) -> Exit {
        let mut exit = self.block.exits[exit.0 as usize];
        if !exit.indirect {
            exit.dead.insert(self.guest.pc);
        }
        exit
    }

    /// Makes the jump with its field at `jump` one that can be linked. Unlinked, it leads to code that returns to the
    /// execution loop.
    fn linkable(&mut self, jump: usize, exit: ExitId) {
        let part = self.part;
        self.b.jumps.push(PendingJump { part, at: jump, exit: exit.0 });
        let was = self.branch_to(Part::Cold, jump);
        match self.thunks.exit_by.get(exit.0 as usize) {
            Some(&thunk) => self.leave_by(thunk),
            None => self.leave(Outcome::Exit { tb: self.tb, exit: exit.0 }),
        }
        self.part = was;
    }

    /// Leaves by a thunk that wants the block's number.
    fn leave_by(&mut self, thunk: u64) {
        let tb = self.tb;
        self.asm().mov_ri(r::RAX, tb.into());
        self.jump_to(Target::Abs(thunk));
    }

    fn leave(&mut self, outcome: Outcome) {
        self.asm().mov_ri(r::RAX, outcome.encode());
        self.jump_to(Target::Abs(self.thunks.exit));
    }

    pub fn jump_to(&mut self, to: Target) {
        let at = self.asm().jmp();
        self.fix(at, to);
    }

    /// Jumps to an exit's successor; all globals are home.
    fn jump_exit(&mut self, exit: ExitId) {
        let e = self.block.exits[exit.0 as usize];
        if !e.chain {
            if e.indirect {
                let pc = env_mem(self.guest.globals[self.guest.pc.0 as usize].offset);
                self.asm().load(Width::W64, r::RCX, pc);
            } else {
                self.asm().mov_ri(r::RCX, e.pc);
            }
            let lookup = self.thunks.lookup;
            self.jump_to(Target::Abs(lookup));
            return;
        }
        self.asm().align4(1);
        let at = self.asm().jmp();
        self.linkable(at, exit);
    }

    /// [`Inst::Goto`](crate::ir::Inst::Goto).
    pub fn goto(&mut self, exit: ExitId) {
        if !self.block.exits[exit.0 as usize].chain {
            self.count_indirect(true);
        }
        if self.loop_goto(exit) {
            return;
        }
        self.flush(self.exit(exit).dead);
        self.jump_exit(exit);
    }

    /// A conditional jump to an exit whose globals need not be moved, linkable itself.
    pub fn jcc_exit(&mut self, cond: Cond, exit: ExitId) {
        self.asm().align4(2);
        let at = self.asm().jcc(cond);
        self.linkable(at, exit);
    }

    /// Leaves the block at the start of the current guest instruction, which has done nothing yet, for one without groups.
    pub fn leave_group(&mut self) {
        self.clobber_flags();
        self.flush(GlobalSet::of(self.guest.pc));
        self.clobber_flags();
        let exit = self.block.exits.len() + self.out.ungrouped.len();
        self.out.ungrouped.push(self.pc);
        self.asm().align4(1);
        let at = self.asm().jmp();
        self.linkable(at, ExitId(exit as u16));
    }

    /// Flushes and jumps out of line if `cond` holds.
    pub fn jcc_side(&mut self, cond: Cond, exit: ExitId) {
        let at = self.asm().jcc(cond);
        let host_flags = self.host_flags;
        let was = self.branch_to(Part::Side, at);
        self.count_side_exit(!self.block.exits[exit.0 as usize].chain);
        self.flush(self.exit(exit).dead);
        self.end_side_exit();
        self.jump_exit(exit);
        self.part = was;
        self.host_flags = host_flags;
    }

    /// [`Inst::ExitIf`](crate::ir::Inst::ExitIf).
    pub fn exit_if(&mut self, cond: Cond, f: Value, exit: ExitId) {
        let f = self.b.live.resolve(f);
        let e = self.exit(exit);
        if self.known_condition(cond, f) == Some(false) {
            // What a trace has compared with is what it has stored itself.
            self.forget_target(e);
            return;
        }
        let host = self.condition(cond, f);
        self.count_exit();
        if e.chain && self.away() & !e.dead.0 == 0 && !self.upper {
            self.jcc_exit(host, exit);
        } else {
            self.jcc_side(host, exit);
        }
        self.forget_target(e);
    }

    /// Behind a side exit that may go anywhere: the program counter was for it alone.
    fn forget_target(&mut self, exit: Exit) {
        if exit.indirect {
            let pc = self.guest.pc.0 as usize;
            self.current[pc] = NO_VALUE;
            self.dirty &= !(1 << pc);
        }
    }

    /// [`Inst::Branch`](crate::ir::Inst::Branch).
    pub fn branch(&mut self, cond: Cond, f: Value, taken: ExitId, fall: ExitId) {
        if self.loop_branch(cond, f, taken, fall) {
            return;
        }
        let f = self.b.live.resolve(f);
        let (t, n) = (self.exit(taken), self.exit(fall));
        let away = self.away();
        if t.chain && away & t.dead.0 == away & n.dead.0 && self.survives_flush(f, n.dead) {
            // One flush serves both ways, and the moves leave the condition alone.
            let host = self.condition_for_flush(cond, f, n.dead);
            self.flush(n.dead);
            self.jcc_exit(host, taken);
        } else {
            let host = self.condition(cond, f);
            self.jcc_side(host, taken);
            if !n.chain {
                self.count_indirect(true);
            }
            self.flush(n.dead);
        }
        self.jump_exit(fall);
    }

    /// Whether flags value `f` can be in the host's flags across a flush.
    pub fn survives_flush(&self, f: usize, dead: GlobalSet) -> bool {
        let stored = GlobalSet(self.kinds.flags.0 & self.dirty & !dead.0).iter().next();
        stored.is_none_or(|g| self.current[g.0 as usize] == f as u32 && self.b.mem[f] == MemLoc::None)
    }

    /// As [`Emitter::condition`], of flags that [survive a flush](Self::survives_flush), before it.
    pub fn condition_for_flush(&mut self, cond: Cond, f: usize, dead: GlobalSet) -> Cond {
        if self.kinds.flags.0 & self.dirty & !dead.0 == 0 {
            return self.condition(cond, f);
        }
        self.flags_to_host(f, crate::ir::flags::ALL);
        cond
    }

    /// Whether a call of the helper leaves registers alone, because other code does its work.
    pub fn has_shortcut(&self, helper: HelperId) -> bool {
        self.opt.contains(OptFlags::SHORTCUTS) && self.guest.helpers[helper.0 as usize].shortcut.is_some()
    }

    /// [`Inst::GotoIndirect`](crate::ir::Inst::GotoIndirect).
    pub fn goto_indirect(&mut self) {
        self.count_indirect(false);
        let pc = self.guest.pc.0 as usize;
        let v = self.current[pc];
        // The program counter is stored only on a miss; it travels in RCX across the flush, which uses RAX.
        let dead = GlobalSet::of(self.guest.pc);
        if v == NO_VALUE || self.dirty >> pc & 1 == 0 {
            self.flush(GlobalSet::NONE);
            let m = env_mem(self.guest.globals[pc].offset);
            self.asm().load(Width::W64, r::RCX, m);
            self.lookup_jump(None);
        } else {
            self.flush_flags();
            self.read_value(r::RCX, v as usize);
            self.flush(dead.or(self.kinds.flags));
            let known = self.constant(v as usize);
            self.lookup_jump(known);
        }
    }

    fn flush_flags(&mut self) {
        for g in GlobalSet(self.kinds.flags.0 & self.dirty).iter() {
            let g = g.0 as usize;
            let v = self.current[g] as usize;
            self.write_home(g, v);
        }
    }

    /// Jumps to the block at the guest address in RCX, which is the constant `known`, if that is one, by way of the jump
    /// cache; all globals are home.
    fn lookup_jump(&mut self, known: Option<u64>) {
        let lookup_miss = self.thunks.lookup_miss;
        emit_lookup(self.asm(), known);
        let at = self.asm().jcc(Cond::NE);
        self.fix(at, Target::Abs(lookup_miss));
        emit_lookup_hit(self.asm());
    }

    /// [`Inst::Leave`](crate::ir::Inst::Leave).
    pub fn leave_block(&mut self, code: u32) {
        self.flush(GlobalSet::NONE);
        self.leave(Outcome::Leave(code));
    }

    /// Jumps if there is a request to return, or if there is none; the jump's field.
    pub fn jump_if_requested(&mut self, requested: bool) -> usize {
        self.asm().cmp_mem32(exit_request(), 0);
        self.clobber_flags();
        self.asm().jcc(if requested { Cond::E } else { Cond::NE })
    }

    /// The polled entry, at offset 0: returns to the execution loop if that was asked for.
    pub fn poll_entry(&mut self) {
        let at = self.jump_if_requested(true);
        let was = self.branch_to(Part::Cold, at);
        self.leave_by(self.thunks.poll);
        self.part = was;
    }

    /// [`Inst::Call`](crate::ir::Inst::Call).
    pub fn call(&mut self, helper: HelperId, args: CallArgs) {
        let desc = self.guest.helpers[helper.0 as usize];
        let effects = desc.effects;
        match desc.shortcut.filter(|_| self.opt.contains(OptFlags::SHORTCUTS)) {
            Some(Shortcut::X86_64(code)) => return self.call_shortcut(code, args),
            Some(Shortcut::Unless { offset, value, func }) => return self.call_unless(func, offset, value),
            Some(Shortcut::Divide { signed, w }) => return self.divide(signed, w, desc.func, args),
            None => {}
        }
        self.count_helper();
        let at = self.at as u32;
        // Arguments come first, before places in the environment change hands.
        for v in args.iter() {
            let v = self.b.live.resolve(*v);
            if self.b.reg[v] == NONE && self.constant(v).is_none() {
                self.use_int(Value(v as u32));
            }
        }
        // Values that only the environment holds, where the helper will change it, move away.
        let changes = self.guest.helper_changes(&effects);
        self.env_unsafe = changes.0;
        for g in changes.iter() {
            self.release_env_after(g.0 as usize);
        }
        for g in self.guest.helper_sees(&effects).iter() {
            let g = g.0 as usize;
            if self.pin_reg[g] == PIN_OFF {
                if self.guest.globals[g].ty == Ty::Flags && self.dirty >> g & 1 != 0 {
                    // Flags read from the environment earlier and wanted later move away before it is overwritten;
                    // the new flags may still be computed from them here.
                    self.release_env_after(g);
                    self.flush_global(g);
                    self.release_env(g);
                    continue;
                }
                self.flush_global(g);
                continue;
            }
            let v = self.current[g];
            if v == NO_VALUE || self.b.mem[v as usize] == MemLoc::Env(g as u8) && self.env_owner[g] == v {
                continue;
            }
            self.release_env(g);
            let m = env_mem(self.guest.globals[g].offset);
            let reg = self.value_in(v as usize, r::RAX);
            self.asm().store(Width::W64, m, reg);
            if self.constant(v as usize).is_none() && !self.overwritten(g, v) {
                self.own_env(g, v);
            }
        }
        // Whoever survives the call must not be in a register that it destroys.
        let mut kept = [NONE; 5];
        for (k, v) in kept.iter_mut().zip(args.iter()) {
            *k = self.b.reg[self.b.live.resolve(*v)];
        }
        // A helper that faults leaves the state as of the call, so what is observed here survives it, too.
        let until = if effects.faults { at } else { at + 1 };
        for reg in CALLER_SAVED {
            let v = self.owner[reg as usize];
            if v != NO_VALUE && self.b.live.values[v as usize].last_use >= until {
                self.spill(v);
            }
        }
        for reg in VEC_ALLOC {
            let v = self.vec_owner[reg as usize];
            if v != NO_VALUE && self.b.live.values[v as usize].last_use >= until {
                self.spill(v);
            }
        }
        let mut moves = Moves::default();
        moves.add(ABI_ARGS[0], Source::Env);
        for (i, v) in args.iter().enumerate() {
            let v = self.b.live.resolve(*v);
            let src = if kept[i] != NONE { Source::Reg(kept[i]) } else { Source::Value(v as u32) };
            moves.add(ABI_ARGS[i + 1], src);
        }
        self.parallel_move(moves);
        for reg in CALLER_SAVED {
            self.forget(reg);
        }
        for reg in VEC_ALLOC {
            let v = self.vec_owner[reg as usize];
            if v != NO_VALUE {
                self.b.reg[v as usize] = NONE;
                self.vec_owner[reg as usize] = NO_VALUE;
            }
        }
        self.clean_upper();
        self.upper = false;
        let func = (desc.func)() as u64;
        self.asm().mov_ri(r::RAX, func);
        self.asm().buf.extend_from_slice(&[0xff, 0xd0]); // call rax
        emit_load_tlb(self.asm());
        self.clobber_flags();
        if effects.faults {
            let point = self.point(None);
            self.test_env_zero(std::mem::offset_of!(Header, helper_fault) as u32);
            let jcc = self.asm().jcc(Cond::NE);
            let was = self.branch_to(Part::Cold, jcc);
            self.leave_faulted(point);
            self.part = was;
        }
        self.env_unsafe = 0;
        self.reload_written(changes);
        if self.b.live.values[self.at].last_use > at {
            let dst = self.define(NONE, 0);
            self.asm().mov_rr(dst, r::RAX);
        }
    }

    /// Leaves the block because a helper has faulted, with the guest's state of this point.
    pub fn leave_faulted(&mut self, point: u32) {
        self.asm().mov_ri(r::RAX, point as u64);
        let tb = self.tb;
        self.asm().mov_ri(r::RCX, tb as u64);
        let thunk = self.thunks.helper_fault;
        self.jump_to(Target::Abs(thunk));
    }

    /// A call whose work is done by other code.
    fn call_shortcut(&mut self, code: fn(&ShortcutArgs, &mut Vec<u8>), args: CallArgs) {
        let mut constants = [None; 5];
        let mut registers = [r::RAX, r::RCX].into_iter();
        for (constant, v) in constants.iter_mut().zip(args.iter()) {
            let v = self.b.live.resolve(*v);
            *constant = self.constant(v);
            if constant.is_none() {
                let register =
                    registers.next().expect("a shortcut has at most two arguments that are not constant");
                self.read_value(register, v);
            }
        }
        let args = ShortcutArgs { constants, env: -super::ENV_BIAS };
        code(&args, &mut self.asm().buf);
        self.clobber_flags();
        if self.b.live.values[self.at].last_use > self.at as u32 {
            let dst = self.define(NONE, 0);
            self.asm().mov_rr(dst, r::RAX);
        }
    }

    /// A call that is rarely necessary: out of line, with all registers saved.
    fn call_unless(&mut self, func: fn() -> *const (), offset: u32, value: u8) {
        self.asm().cmp_mem8(env_mem(offset), value);
        self.clobber_flags();
        let jcc = self.asm().jcc(Cond::NE);
        let back = self.here();
        let was = self.branch_to(Part::Cold, jcc);
        self.asm().mov_ri(r::RAX, func() as u64);
        let thunk = self.thunks.call_saved;
        self.call_thunk(thunk);
        if !self.upper {
            // The registers were loaded in full.
            self.asm().vzeroupper();
        }
        let at = self.asm().jmp();
        self.fix(at, back);
        self.part = was;
    }

    /// Takes over the globals that a helper has written.
    fn reload_written(&mut self, writes: GlobalSet) {
        for g in writes.iter() {
            let g = g.0 as usize;
            self.current[g] = NO_VALUE;
            self.dirty &= !(1 << g);
            let old = std::mem::replace(&mut self.env_owner[g], NO_VALUE);
            if old != NO_VALUE && self.b.mem[old as usize] == MemLoc::Env(g as u8) {
                self.b.mem[old as usize] = MemLoc::None;
            }
        }
        for g in writes.iter() {
            let g = g.0 as usize;
            let pin = self.pin_reg[g];
            if pin != PIN_OFF {
                let v = self.owner[pin as usize];
                if v != NO_VALUE && self.b.live.values[v as usize].last_use > self.at as u32 {
                    self.evict(pin);
                } else {
                    self.forget(pin);
                }
                let m = env_mem(self.guest.globals[g].offset);
                self.asm().load(Width::W64, pin, m);
            }
        }
        self.define_pseudos(self.at as u32 + 1);
    }

    /// Empties a register without keeping anything.
    fn forget(&mut self, reg: u8) {
        let v = self.owner[reg as usize];
        if v != NO_VALUE {
            self.b.reg[v as usize] = NONE;
            self.owner[reg as usize] = NO_VALUE;
        }
    }
}

/// Loads [`TLB`](super::TLB) anew.
pub fn emit_load_tlb(asm: &mut Asm) {
    asm.load(Width::W64, super::TLB, env_mem(std::mem::offset_of!(Header, tlb_main) as u32));
}

/// log2 of the size of an entry of the jump cache.
const ENTRY_BITS: u8 = size_of::<JumpEntry>().trailing_zeros() as u8;
/// Displacement of the first way of the jump cache from RBP.
const FIRST_WAY: i32 = runtime_disp(std::mem::offset_of!(Runtime, jump_cache));
/// That of the second way.
const SECOND_WAY: i32 = FIRST_WAY + jump_cache::SECOND_WAY as i32;
/// Offset of the code's address in an entry.
const CODE: i32 = std::mem::offset_of!(JumpEntry, code) as i32;

fn jump_tag() -> Mem {
    env_mem(std::mem::offset_of!(Header, jump_tag) as u32)
}

fn exit_request() -> Mem {
    env_mem(std::mem::offset_of!(Header, exit_request) as u32)
}

/// RCX = guest address, a constant if `known`: the host's flags are "equal" afterwards if the first way of the jump cache has
/// the address and there is no request to return, for [`emit_lookup_hit`]; RCX is the tag. Clobbers RAX.
pub fn emit_lookup(asm: &mut Asm, known: Option<u64>) {
    match known {
        Some(pc) => asm.mov_ri(r::RAX, (JumpEntry::first_index(pc) as u64) << ENTRY_BITS),
        None => asm.imul_rri(Width::W32, r::RAX, r::RCX, FIRST_FACTOR as i32),
    }
    // The mask of the index, or 0 if there is a request: see `ExitRequest`.
    asm.alu_rm(Alu::And, Width::W32, r::RAX, exit_request());
    asm.alu_rm(Alu::Xor, Width::W64, r::RCX, jump_tag());
    asm.alu_rm(Alu::Cmp, Width::W64, r::RCX, Mem::Scaled(r::RBP, r::RAX, 0, FIRST_WAY));
}

/// Jumps to the code of the entry that [`emit_lookup`] found.
pub fn emit_lookup_hit(asm: &mut Asm) {
    jump_to(asm, Mem::Scaled(r::RBP, r::RAX, 0, FIRST_WAY + CODE));
}

/// After [`emit_lookup`]: stores the guest address at `pc`, and jumps to what is in the second way, unless that is due to be
/// moved. Clobbers RAX and RCX. Returns the field of a jump that is taken if there is a request to return.
pub fn emit_second_lookup(asm: &mut Asm, pc: Mem) -> usize {
    asm.alu_rm(Alu::Xor, Width::W64, r::RCX, jump_tag());
    asm.store(Width::W64, pc, r::RCX);
    asm.cmp_mem32(exit_request(), 0);
    let requested = asm.jcc(Cond::E);
    asm.imul_rri(Width::W32, r::RAX, r::RCX, SECOND_FACTOR as i32);
    asm.shift_ri(Shift::Shr, Width::W32, r::RAX, SECOND_SHIFT as u8);
    asm.shift_ri(Shift::Shl, Width::W32, r::RAX, ENTRY_BITS);
    asm.alu_rm(Alu::Xor, Width::W64, r::RCX, jump_tag());
    asm.alu_rm(Alu::Cmp, Width::W64, r::RCX, Mem::Scaled(r::RBP, r::RAX, 0, SECOND_WAY));
    let miss = asm.jcc(Cond::NE);
    asm.incdec_mem32(1, runtime_mem(std::mem::offset_of!(Runtime, second_jumps_left)));
    let due = asm.jcc(Cond::S);
    jump_to(asm, Mem::Scaled(r::RBP, r::RAX, 0, SECOND_WAY + CODE));
    let here = asm.len();
    asm.patch_rel32(miss, here);
    asm.patch_rel32(due, here);
    requested
}

/// `jmp qword mem`.
fn jump_to(asm: &mut Asm, mem: Mem) {
    asm.buf.push(0xff);
    asm.modrm_mem(4, mem);
}
