//! Pointers that are chased: loads whose result says where they load from in the next round of a loop.
//!
//! Problem: a look into the TLB takes some seven cycles before the load can begin, and where the address comes from a load,
//! nothing else can be done meanwhile: walking a list takes more than twice as long as the host would. Strategy: guess. Such a
//! load takes the addend that the last one at this place had, which it knows before it knows the address; that
//! the TLB's entry has the same one, in pages that are contiguous in memory or in one page, is compared beside the load, as
//! branches are predicted. What is guessed wrong goes on with the entry's addend, out of line, and is counted. Where that is
//! frequent the execution loop has the trace made anew, without that guess
//! ([`Guesses::unsteady`](crate::env::Guesses::unsteady)).
//!
//! Which loads these are is found in the IR of a block that jumps to its own start: globals whose value at the end depends, by
//! way of a load's address, on their own value at the start, possibly by way of other globals; and the loads that are on the way.
//! Those that have a memo of their page (`memos`) need no guess.
//!
//! Invariant: a guess is used only if it is what the TLB's entry says, whose tag is right. Guesses are not dropped when the TLB
//! is flushed.

use super::groups::{Groups, Member};
use super::liveness::Liveness;
use super::memos::Memos;
use crate::env::GUESSES;
use crate::ir::{Block, GlobalId, GlobalSet, Inst};

/// Chains of globals that a value comes from in one round after another, at most.
const MAX_ROUNDS: usize = 8;

/// What a value depends on: globals at the block's start, as bit masks.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Sources {
    /// All of them.
    any: u64,
    /// Those that a load's address depends on.
    loaded: u64,
}

impl Sources {
    fn or(self, other: Sources) -> Sources {
        Sources { any: self.any | other.any, loaded: self.loaded | other.loaded }
    }
}

/// The accesses of a block that guess; buffers are used again.
#[derive(Default)]
pub struct Chases {
    sources: Vec<Sources>,
    /// Values that a chased pointer is computed from.
    wanted: Vec<bool>,
    sites: Vec<u32>,
}

impl Chases {
    /// The number of the guess that access `at` makes, if it makes one.
    #[inline]
    pub fn site(&self, at: usize) -> Option<usize> {
        self.sites.iter().position(|site| *site as usize == at)
    }

    /// Whether the block guesses at all.
    pub fn any(&self) -> bool {
        !self.sites.is_empty()
    }

    /// Makes no access guess.
    pub fn reset(&mut self) {
        self.sites.clear();
    }

    /// Finds the loads of a block that jumps to its own start. `allowed` says which guesses it may make, by their numbers.
    pub fn run(&mut self, block: &Block, live: &Liveness, groups: &Groups, memos: &Memos, allowed: u8) {
        self.sites.clear();
        let mut last = [None; 64];
        self.forward(block, live, &mut last);
        let chased = self.chased(&last);
        if chased == 0 {
            return;
        }
        self.backward(block, live, &last, chased);
        let mut number = 0;
        for at in 0..block.insts.len() {
            let leads = match groups.member(at) {
                Member::Alone => self.loads(block, at),
                Member::Leader(leader) => {
                    let follows = |i: &usize| matches!(groups.member(*i), Member::Follower { slot, .. } if slot == leader.slot);
                    let next =
                        |i: &usize| matches!(groups.member(*i), Member::Leader(l) if l.slot == leader.slot);
                    let mut members = (at + 1..block.insts.len()).take_while(|i| !next(i)).filter(follows);
                    self.loads(block, at) || members.any(|i| self.loads(block, i))
                }
                Member::Follower { .. } | Member::Lasting(_) => false,
            };
            if !leads {
                continue;
            }
            if number < GUESSES && allowed >> number & 1 != 0 && memos.site(at).is_none() {
                self.sites.push(at as u32);
            } else if number < GUESSES {
                // It keeps its number.
                self.sites.push(u32::MAX);
            }
            number += 1;
        }
        if self.sites.iter().all(|site| *site == u32::MAX) {
            self.sites.clear();
        }
    }

    /// Whether instruction `at` is a load on the way of a chased pointer.
    fn loads(&self, block: &Block, at: usize) -> bool {
        self.wanted[at] && matches!(block.insts[at], Inst::Load { .. })
    }

    /// Finds what values depend on, and the values that globals have at the end.
    fn forward(&mut self, block: &Block, live: &Liveness, last: &mut [Option<usize>; 64]) {
        self.sources.clear();
        self.sources.resize(live.group_value(0), Sources::default());
        for (n, &(from, g)) in live.pseudo.iter().enumerate() {
            if from == 0 {
                self.sources[block.insts.len() + n].any = 1 << g.0;
            }
        }
        let mut set = 0u64;
        for (i, inst) in block.insts.iter().enumerate() {
            let mut sources = Sources::default();
            inst.for_each_use(|v| sources = sources.or(self.sources[live.resolve(v)]));
            match *inst {
                Inst::Get(g) => {
                    sources = match live.values[i].alias as usize {
                        own if own == i && set >> g.0 & 1 == 0 => Sources { any: 1 << g.0, loaded: 0 },
                        own if own == i => Sources::default(),
                        other => self.sources[other],
                    };
                }
                Inst::Set(g, v) => {
                    set |= 1 << g.0;
                    last[g.0 as usize] = Some(live.resolve(v));
                }
                Inst::Load { .. } => sources.loaded |= sources.any,
                _ => {}
            }
            self.sources[i] = sources;
        }
    }

    /// The globals that come from themselves by way of a load.
    fn chased(&self, last: &[Option<usize>; 64]) -> u64 {
        // Who is not set comes from itself alone.
        let mut from: [Sources; 64] = std::array::from_fn(|g| match last[g] {
            Some(v) => self.sources[v],
            None => Sources { any: 1 << g, loaded: 0 },
        });
        for _ in 0..MAX_ROUNDS {
            let next: [Sources; 64] = std::array::from_fn(|g| {
                let mut sources = from[g];
                for (mask, by_load) in [(from[g].any, false), (from[g].loaded, true)] {
                    for h in GlobalSet(mask).iter() {
                        let h = from[h.0 as usize];
                        sources = sources.or(h);
                        sources.loaded |= if by_load { h.any } else { 0 };
                    }
                }
                sources
            });
            if next == from {
                break;
            }
            from = next;
        }
        (0..64).filter(|&g| last[g].is_some() && from[g].loaded >> g & 1 != 0).fold(0, |set, g| set | 1 << g)
    }

    /// Marks what the chased globals' last values are computed from.
    fn backward(&mut self, block: &Block, live: &Liveness, last: &[Option<usize>; 64], chased: u64) {
        self.wanted.clear();
        self.wanted.resize(self.sources.len(), false);
        for GlobalId(g) in GlobalSet(chased).iter() {
            if let Some(v) = last[g as usize] {
                self.wanted[v] = true;
            }
        }
        for (i, inst) in block.insts.iter().enumerate().rev() {
            if self.wanted[i] {
                inst.for_each_use(|v| self.wanted[live.resolve(v)] = true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{accesses, grouped};
    use super::*;

    /// Which of a block's accesses guess, by their order.
    fn guesses(text: &str, allowed: u8) -> Vec<Option<usize>> {
        let (block, live, groups) = grouped(text);
        let mut chases = Chases::default();
        chases.run(&block, &live, &groups, &Memos::default(), allowed);
        accesses(&block).map(|i| chases.site(i)).collect()
    }

    #[test]
    fn a_list_is_chased_and_what_its_nodes_hold_is_not() {
        for pointer in ["r0", "r15"] {
            let text = format!(
                "insn 0x1000\nv0 = get {pointer}\nv1 = load.64 [v0] mmu0\ninsn 0x1004\nv2 = load.32 [v1] mmu0\n\
                 set r2, v2\nset {pointer}, v1\nleave 0\n"
            );
            assert_eq!(guesses(&text, 0xff), [Some(0), None]);
            assert_eq!(guesses(&text, 0xfe), [None, None]);
            // An index that goes on by itself is no chase, wherever it points.
            let index = text
                .replace(&format!("set {pointer}, v1"), &format!("v3 = add.64 v0, v0\nset {pointer}, v3"));
            assert_eq!(guesses(&index, 0xff), [None, None]);
        }
    }

    #[test]
    fn a_chase_by_way_of_other_globals_and_of_a_group() {
        // What was loaded goes to another register, which is the address of the next round's table.
        let text = "insn 0x1000\nv0 = get r0\nv1 = get r1\nv2 = lea.64 [v0 + v1<<3 + 8]\nv3 = load.64 [v2] mmu0\n\
                    insn 0x1004\nv4 = const 8\nv5 = add.64 v2, v4\nv6 = load.64 [v5] mmu0\ninsn 0x1008\nv7 = get r2\n\
                    set r1, v7\nset r2, v6\nleave 0\n";
        assert_eq!(guesses(text, 0xff), [Some(0), None], "the leader guesses for the follower");
        let other = text.replace("set r2, v6", "set r3, v6");
        assert_eq!(guesses(&other, 0xff), [None, None]);
    }

    #[test]
    fn numbers_of_guesses_stay_and_end() {
        let mut text = String::from("insn 0x1000\nv0 = get r0\n");
        for n in 1..=GUESSES + 1 {
            text += &format!("insn {}\nv{n} = load.64 [v{}] mmu0\n", 0x1000 + 4 * n, n - 1);
        }
        text += &format!("set r0, v{}\nleave 0\n", GUESSES + 1);
        let mut expected: Vec<_> = (0..GUESSES).map(Some).collect();
        expected.push(None);
        assert_eq!(guesses(&text, 0xff), expected);
        expected[1] = None;
        assert_eq!(guesses(&text, 0xfd), expected);
    }
}
