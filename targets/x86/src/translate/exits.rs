//! How a block goes on: the terminals and their policy.
//!
//! Policy:
//! - A jump to a known address in the same page is an exit that is chained; one that goes back (or to itself) polls for
//!   events, so that no cycle is without a poll.
//! - A jump to another page goes by the jump cache (`GotoIndirect`), because the mapping of that page may change while
//!   this block stays valid.
//! - A block goes on behind its first forward conditional branch, whose taken side leaves by a side exit: the registers and
//!   flags of the path that compilers lay out straight stay where they are. More of them cost more in translation
//!   than they save (measured at 4, on a kernel's boot and on shell workloads).
//! - A block that jumps to its own start goes on there, for a few rounds: what one round leaves for the next stays where it is,
//!   accesses to neighbouring addresses share a look into the TLB, and one poll serves several rounds.
//! - A jump to an address that is not canonical goes there: the fetch raises #GP, with the target as the instruction
//!   pointer (which the manual allows, and one of the two vendors does).
//! - A trace goes on wherever its path does: see [`trace`](super::trace).
//! - In single-stepping blocks (`Translator::single`) nothing is chained: the program counter is set and the block
//!   leaves, with [`leave::SINGLE_STEP`] under EFLAGS.TF.

use tessera_tcg::ir::{BinOp, Cond, Exit, ExitId, GlobalSet, Inst, Value, Width};

use super::Translator;
use crate::helpers;
use crate::state::{PC, leave, mode};

/// Side exits of a block, at most, if it may have any.
pub(super) const MAX_SIDE_EXITS: u8 = 1;
/// Rounds of a block that jumps to its own start, at most.
const MAX_ROUNDS: u32 = 4;
/// Instructions in all of these rounds, at most.
const MAX_UNROLLED: u32 = 24;

impl Translator<'_> {
    /// Whether a jump there may be chained: it stays in the page. A trace's start is valid as long as the trace is.
    pub(super) fn is_near(&self, target: u64) -> bool {
        (target ^ self.pc) & !0xfff == 0 || self.trail.is_some_and(|trail| trail.head == target)
    }

    pub(super) fn near_exit(&mut self, target: u64) -> ExitId {
        let poll = target <= self.pc || self.shadowed || self.trail.is_some_and(|trail| trail.polls(target));
        self.b.exit(Exit { pc: target, indirect: false, poll, chain: true, dead: GlobalSet::NONE })
    }

    /// Whether a jump to `target` is to be followed by another round of the block. If so, the caller leaves the block open, and
    /// the front end goes on at its start.
    fn another_round(&mut self, target: u64) -> bool {
        if !self.unroll || target != self.start || self.single || self.shadowed || !self.is_near(target) {
            return false;
        }
        self.rounds += 1;
        let round = self.insns / self.rounds;
        if self.rounds >= MAX_ROUNDS || self.insns + round > MAX_UNROLLED {
            return false;
        }
        self.side_exits = self.all_side_exits;
        self.restarted = true;
        true
    }

    fn end(&mut self, terminal: Inst) {
        debug_assert!(!self.ended);
        self.b.push(terminal);
        self.ended = true;
    }

    /// Returns to the execution loop, which hands `code` to `handle_leave`. The caller has set the program counter.
    pub fn leave(&mut self, code: u32) {
        self.end(Inst::Leave { code });
    }

    /// Ends a single-stepping block: the instruction is complete and the program counter set.
    fn leave_after_step(&mut self) {
        self.leave(if self.is(mode::TRAP) { leave::SINGLE_STEP } else { leave::RESUME });
    }

    /// Sets the program counter to a constant.
    pub fn set_pc(&mut self, linear: u64) {
        let v = self.b.iconst(linear);
        self.b.set(PC, v);
    }

    /// Jumps to a linear address.
    pub fn jump(&mut self, target: u64) {
        if !self.follow(target) {
            self.goto(target);
        }
    }

    /// Goes on at a linear address in another block.
    pub fn goto(&mut self, target: u64) {
        if self.single {
            self.set_pc(target);
            self.leave_after_step();
        } else if self.another_round(target) {
            // The block goes on.
        } else if self.is_near(target) {
            let exit = self.near_exit(target);
            self.end(Inst::Goto(exit));
        } else {
            self.set_pc(target);
            self.end(Inst::GotoIndirect);
        }
    }

    /// Ends a block that is full at a linear address. An STI just before has its shadow seen to.
    pub fn end_full(&mut self, next: u64) {
        self.unroll = false;
        if std::mem::take(&mut self.opens_shadow) {
            self.call(helpers::system::OPEN_SHADOW, &[]);
            self.set_pc(next);
            self.leave_for_mode_change();
        } else {
            self.goto(next);
        }
    }

    /// Goes on at the next instruction in another block.
    pub fn goto_next(&mut self) {
        self.goto(self.next);
    }

    /// Goes on at the linear address `taken` if the condition holds, else at `fall`.
    pub fn branch(&mut self, cond: Cond, f: Value, taken: u64, fall: u64) {
        if self.single {
            self.select_pc(cond, f, taken, fall);
            self.leave_after_step();
            return;
        }
        if self.follow_branch(cond, f, taken, fall) {
            return;
        }
        if self.another_round(taken) {
            let chain = self.is_near(fall);
            let exit = Exit { pc: fall, indirect: false, poll: false, chain, dead: GlobalSet::NONE };
            let exit = self.b.exit(exit);
            self.b.push(Inst::ExitIf { cond: cond.negate(), f, exit });
            return;
        }
        match (self.is_near(taken), self.is_near(fall)) {
            (true, true) => {
                let (taken, fall) = (self.near_exit(taken), self.near_exit(fall));
                self.end(Inst::Branch { cond, f, taken, fall });
            }
            (true, false) => {
                let exit = self.near_exit(taken);
                self.b.push(Inst::ExitIf { cond, f, exit });
                self.goto(fall);
            }
            (false, true) => {
                let exit = self.near_exit(fall);
                self.b.push(Inst::ExitIf { cond: cond.negate(), f, exit });
                self.goto(taken);
            }
            (false, false) => {
                self.select_pc(cond, f, taken, fall);
                self.end(Inst::GotoIndirect);
            }
        }
    }

    /// Goes on at `taken` if the condition holds, else with the next instruction in the same block, if that may be.
    pub fn branch_aside(&mut self, cond: Cond, f: Value, taken: u64) {
        if self.single || self.shadowed || taken <= self.pc || self.side_exits == 0 || self.trail.is_some() {
            return self.branch(cond, f, taken, self.next);
        }
        self.side_exits -= 1;
        let chain = self.is_near(taken);
        let exit =
            self.b.exit(Exit { pc: taken, indirect: false, poll: false, chain, dead: GlobalSet::NONE });
        self.b.push(Inst::ExitIf { cond, f, exit });
    }

    fn select_pc(&mut self, cond: Cond, f: Value, taken: u64, fall: u64) {
        let (taken, fall) = (self.b.iconst(taken), self.b.iconst(fall));
        let pc = self.b.select(cond, f, taken, fall);
        self.b.set(PC, pc);
    }

    /// Runs this instruction again from its start if the condition holds. Not after a `Set`.
    pub fn retry_if(&mut self, cond: Cond, f: Value) {
        let exit = self.b.exit(Exit {
            pc: self.pc,
            indirect: false,
            poll: true,
            chain: !self.single,
            dead: GlobalSet::NONE,
        });
        self.b.push(Inst::ExitIf { cond, f, exit });
    }

    /// Goes on at an architectural instruction pointer that is known only at run time. It is an offset in CS,
    /// already cut to the operand size.
    pub fn goto_indirect(&mut self, ip: Value) {
        let linear = self.linear_of_ip(ip);
        if !self.single && self.follow_indirect(linear) {
            return;
        }
        self.b.set(PC, linear);
        if self.single {
            self.leave_after_step();
        } else {
            self.end(Inst::GotoIndirect);
        }
    }

    /// Ends the block after a helper that set the program counter and perhaps the mode: what follows is looked up anew, in the
    /// mode as it is then ([`X86Env::update_mode`](crate::state::X86Env::update_mode) sees to that), with a poll.
    pub fn leave_for_mode_change(&mut self) {
        if self.single { self.leave_after_step() } else { self.end(Inst::GotoIndirect) }
    }

    /// As [`Translator::leave_for_mode_change`], but no single-step trap follows under EFLAGS.TF.
    pub fn leave_without_trap(&mut self) {
        if self.single { self.leave(leave::RESUME) } else { self.end(Inst::GotoIndirect) }
    }

    fn linear_of_ip(&mut self, ip: Value) -> Value {
        if self.code64() || self.cs_base == 0 {
            return ip;
        }
        self.b.bin_imm(BinOp::Add, Width::W32, ip, self.cs_base)
    }

    /// Linear address of an offset in CS.
    pub fn linear_target(&self, ip: u64) -> u64 {
        self.wrap(ip.wrapping_add(self.cs_base))
    }

    /// Raises #GP(0) if a jump to this offset would leave the code segment. To be called before the first `Set`.
    pub fn check_target(&mut self, ip: Value) {
        if !self.is(mode::CODE_LIMIT) {
            return;
        }
        let usual = !self.is(mode::DEBUG);
        if usual && self.b.constant(ip).is_some_and(|ip| ip <= 0xffff) {
            return;
        }
        self.b.call(helpers::int::CHECK_CODE, &[ip]);
    }
}
