//! Optimisation passes over a [`Block`].
//!
//! Problem: what a front end emits one guest instruction at a time reads and writes guest state far more often than
//! the guest program means to, and computes flags, extensions and addresses that nobody needs. Translation speed
//! matters as much as the result: most code is translated once and run a few times. Strategy: two linear walks with
//! reused scratch vectors and no search; and of code that is not known to be hot, none: backends leave out what is dead by
//! their own analysis, and front ends fold what costs nothing to fold.
//!
//! - [`forward`] rebuilds the block from the first instruction to the last: reads of globals become the values that were
//!   set or read before, operations fold, equal pure operations are merged, exits that are never or always taken go.
//! - [`backward`] walks from the end: sets that no observer sees, and whatever nobody uses, are dropped.
//!
//! Invariants, kept by both: at each observer (see [`Inst`](crate::ir::Inst)) the globals it may look at have the values
//! they had in the original block; faulting instructions keep their number, order and operands' values, and the guest
//! instruction they belong to; so does everything with an effect. The result satisfies
//! [`verify`](crate::ir::verify) if the input does. Folding uses the interpreter's own functions
//! ([`interp::int`](crate::interp::int), [`flags::compute`](crate::ir::flags::compute)), so it cannot mean anything else.

pub mod backward;
mod fold_flags;
mod fold_int;
mod fold_vec;
pub mod forward;
mod number;

use crate::backend::GuestInfo;
use crate::ir::Block;

bitflags::bitflags! {
    /// What to do; everything by default. The passes over the IR come first, then what other parts of the translator
    /// do. Each can be left out by itself, so that a fault can be pinned to it; the guest never notices.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct OptFlags: u32 {
        /// Reads of globals become the values known to be there; sets to the value already there go.
        const FORWARD = 1 << 0;
        /// Constant folding and algebraic identities.
        const FOLD = 1 << 1;
        /// Equal pure operations are computed once.
        const NUMBER = 1 << 2;
        /// Pure operations without users go.
        const DEAD_CODE = 1 << 3;
        /// Sets that are overwritten before anything observes them go.
        const DEAD_SETS = 1 << 4;
        /// Where there are traces, the passes are for these alone.
        const TIERS = 1 << 5;
        /// Jumps between blocks are patched to go there directly.
        const LINK = 1 << 8;
        /// Generated code finds the targets of other jumps in a table.
        const JUMP_CACHE = 1 << 9;
        /// A block goes on behind conditional branches.
        const SIDE_EXITS = 1 << 10;
        /// Memory accesses at constant distances share a look into the TLB.
        const GROUPS = 1 << 11;
        /// Generated code looks into the second way of a TLB.
        const SECOND_WAY = 1 << 12;
        /// Host code stands in for helpers ([`Shortcut`](crate::guest::Shortcut)): division, x87 in the host's unit.
        const SHORTCUTS = 1 << 13;
        /// What goes round in a block that jumps to its own start stays in registers.
        const LOOPS = 1 << 14;
        /// A block that jumps to its own start has several rounds.
        const UNROLL = 1 << 15;
        /// What hot loops execute becomes one block.
        const TRACES = 1 << 16;
        /// Loads of traces that chase pointers guess where they find them.
        const CHASES = 1 << 17;
        /// Loads of what the block has just stored stand for the value that was stored.
        const RELOADS = 1 << 18;
        /// Accesses of traces look at whether they are in the page that they were in before.
        const MEMOS = 1 << 19;
        /// Blocks that are known from another address are copied.
        const TEMPLATES = 1 << 20;
    }
}

impl OptFlags {
    /// The passes of this module.
    pub const PASSES: OptFlags = OptFlags::FORWARD
        .union(OptFlags::FOLD)
        .union(OptFlags::NUMBER)
        .union(OptFlags::DEAD_CODE)
        .union(OptFlags::DEAD_SETS);

    /// The names that people use, in order: those of the constants, in lower case with hyphens.
    pub fn names() -> impl Iterator<Item = (String, OptFlags)> {
        OptFlags::all().iter_names().map(|(name, flag)| (name.to_ascii_lowercase().replace('_', "-"), flag))
    }
}

impl Default for OptFlags {
    fn default() -> OptFlags {
        OptFlags::all()
    }
}

/// The passes with their scratch memory, to be kept from block to block.
pub struct Optimizer {
    flags: OptFlags,
    #[cfg(debug_assertions)]
    guest: GuestInfo,
    forward: forward::Forward,
    backward: backward::Backward,
}

impl Optimizer {
    /// An optimiser for the blocks of one guest.
    pub fn new(flags: OptFlags, guest: GuestInfo) -> Optimizer {
        Optimizer {
            flags,
            #[cfg(debug_assertions)]
            guest,
            forward: forward::Forward::new(flags, guest),
            backward: backward::Backward::new(flags, guest),
        }
    }

    /// Optimises a block in place, if it is `hot` or nothing will ever be.
    pub fn run(&mut self, block: &mut Block, hot: bool) {
        if !hot && self.flags.contains(OptFlags::TIERS | OptFlags::TRACES) {
            return;
        }
        if self.flags.intersects(OptFlags::FORWARD | OptFlags::FOLD | OptFlags::NUMBER) {
            self.forward.run(block);
        }
        if self.flags.intersects(OptFlags::DEAD_CODE | OptFlags::DEAD_SETS) {
            self.backward.run(block);
        }
        #[cfg(debug_assertions)]
        if let Err(e) = crate::ir::verify::verify(block, &self.guest) {
            panic!("optimisation broke a block: {e}\n{}", crate::ir::text::print(block, &self.guest));
        }
    }
}

#[cfg(test)]
mod tests;
