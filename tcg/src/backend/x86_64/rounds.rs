//! What is the same in all rounds of a block that jumps to its own start.
//!
//! Such a block goes round without a look at anything outside, so a value that is computed from constants and from globals
//! alone is the same each time if the globals are. A global is if the block never sets it, or in the end to what it was: as a
//! trace does with the stack pointer, through a call and its return.
//!
//! Holds for blocks without helper calls that touch globals, which those with a loop head are.

use super::liveness::{Liveness, NO_VALUE};
use crate::backend::GuestInfo;
use crate::ir::{Block, Inst, Ty};

/// The values that are the same in all rounds; the buffer is used again.
#[derive(Default)]
pub struct Rounds {
    /// By value, pseudo-values included.
    same: Vec<bool>,
}

impl Rounds {
    /// Whether a (resolved) value is the same in all rounds.
    pub fn same(&self, v: usize) -> bool {
        self.same.get(v).copied().unwrap_or(false)
    }

    /// Finds them.
    pub fn run(&mut self, block: &Block, live: &Liveness, guest: &GuestInfo) {
        let insts = &block.insts;
        self.same.clear();
        // What globals are at the end, if the block sets them.
        let mut last = [NO_VALUE; 64];
        for inst in insts {
            if let Inst::Set(g, v) = *inst {
                last[g.0 as usize] = live.resolve(v) as u32;
            }
        }
        // Whether a value that a global has at the start is what it has at the end.
        let kept = |g: usize, v: usize| {
            let desc = &guest.globals[g];
            desc.ty == Ty::Int && desc.overlaps.is_none() && (last[g] == NO_VALUE || last[g] == v as u32)
        };
        let mut set = [false; 64];
        // Pseudo-values come first: they have higher numbers, but are operands of instructions.
        let pseudo: Vec<bool> = (live.pseudo.iter().enumerate())
            .map(|(n, &(from, g))| from == 0 && kept(g.0 as usize, insts.len() + n))
            .collect();
        for (i, inst) in insts.iter().enumerate() {
            let known = |v| {
                let v = live.resolve(v);
                if v < insts.len() {
                    self.same.get(v).copied().unwrap_or(false)
                } else {
                    pseudo[v - insts.len()]
                }
            };
            let same = match *inst {
                Inst::Const(_) => true,
                Inst::Get(g) => {
                    let g = g.0 as usize;
                    live.values[i].alias == i as u32 && !set[g] && kept(g, i)
                }
                Inst::Set(g, _) => {
                    set[g.0 as usize] = true;
                    false
                }
                Inst::Bin { a, b, .. } | Inst::Insert { a, b, .. } => known(a) && known(b),
                Inst::Lea { base, index, .. } => known(base) && known(index),
                Inst::Un { a, .. } | Inst::Extend { a, .. } | Inst::Extract { a, .. } => known(a),
                _ => false,
            };
            self.same.push(same);
        }
        self.same.extend(pseudo);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::begun;
    use super::*;
    use crate::ir::Value;
    use crate::testing::guest;

    /// Whether values of a block are the same in all rounds.
    fn same<const N: usize>(text: &str, values: [u32; N]) -> [bool; N] {
        let (block, live) = begun(text);
        let mut rounds = Rounds::default();
        rounds.run(&block, &live, &guest());
        values.map(|v| rounds.same(live.resolve(Value(v))))
    }

    #[test]
    fn constants_and_globals_that_are_not_set() {
        for global in ["r0", "r15"] {
            let text = format!(
                "insn 0x1000\nv1 = get {global}\nv2 = const 8\nv3 = add.64 v1, v2\nv4 = lea.64 [v3 + v1<<3 + 4]\n\
                 v5 = load.64 [v4] mmu0\nv6 = add.64 v3, v5\nset r1, v6\nleave 0\n"
            );
            assert_eq!(same(&text, [1, 2, 3, 4, 5, 6]), [true, true, true, true, false, false]);
            let set = text.replace("set r1", &format!("set {global}"));
            assert_eq!(same(&set, [1, 2, 3, 4]), [false, true, false, false]);
        }
    }

    #[test]
    fn a_global_that_is_set_to_what_it_was() {
        for global in ["r0", "r15"] {
            let text = |last: &str| {
                format!(
                    "insn 0x1000\nv1 = get {global}\nv2 = const 8\nv3 = sub.64 v1, v2\nv4 = load.64 [v3] mmu0\n\
                     set {global}, v3\nv6 = get {global}\nset r1, v4\nset {global}, {last}\nleave 0\n"
                )
            };
            assert_eq!(same(&text("v1"), [1, 3, 4, 6]), [true, true, false, true]);
            assert_eq!(same(&text("v4"), [1, 3, 4, 6]), [false, false, false, false]);
        }
    }
}
