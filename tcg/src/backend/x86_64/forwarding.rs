//! Loads of what the block itself has just stored.
//!
//! Problem: a trace through a call and its return stores the return address, loads it, and compares the two; what is pushed
//! is popped again. Whether a load reads what was stored there is not for the optimiser to say, as it may be a device's. Strategy:
//! members of a group ([`groups`](super::groups)) are of memory, so a load that follows a store of the same eight bytes stands
//! for the value stored, if there are only other followers between them, and none stores there.
//!
//! Invariants:
//! - Only a follower is replaced, which cannot fault, and whose leader has found the page that the store went to. A processor may
//!   read its own stores before others see them, so these cannot tell.
//! - Whatever looks into the TLB ends it: a walk may set bits of an entry that was just stored, and reading from a device may
//!   have it write to memory.

use super::groups::{Groups, Member};
use super::liveness::Liveness;
use crate::guest::HelperDesc;
use crate::ir::{Block, HelperId, Inst, Width};

/// Eight bytes that were stored.
#[derive(Clone, Copy)]
struct Stored {
    slot: u8,
    /// Distance from the group's leader.
    distance: i16,
    value: usize,
}

/// What is known to be in memory; the buffer is used again.
#[derive(Default)]
pub struct Forwarding {
    stored: Vec<Stored>,
}

impl Forwarding {
    /// Lets loads stand for what was stored.
    pub fn run(&mut self, block: &Block, groups: &Groups, live: &mut Liveness, helpers: &[HelperDesc]) {
        self.stored.clear();
        let mut any = false;
        for (i, inst) in block.insts.iter().enumerate() {
            let (slot, distance) = match groups.member(i) {
                Member::Leader(leader) => {
                    self.stored.clear();
                    (leader.slot, 0)
                }
                Member::Follower { slot, distance, .. } => (slot, distance),
                Member::Alone | Member::Lasting(_) => {
                    let calls = |helper: HelperId| !helpers[helper.0 as usize].effects.pure;
                    if inst.is_memory() || matches!(*inst, Inst::Call { helper, .. } if calls(helper)) {
                        self.stored.clear();
                    }
                    continue;
                }
            };
            match *inst {
                Inst::Store { width, v, .. } => {
                    self.overwrite(slot, distance, width.bytes());
                    if width == Width::W64 {
                        self.stored.push(Stored { slot, distance, value: live.resolve(v) });
                    }
                }
                Inst::StoreVec { size, .. } => self.overwrite(slot, distance, size.bytes()),
                Inst::Load { width: Width::W64, .. } => {
                    let found = self.stored.iter().find(|s| (s.slot, s.distance) == (slot, distance));
                    if let Some(stored) = found {
                        live.values[i].alias = stored.value as u32;
                        any = true;
                    }
                }
                _ => {}
            }
        }
        if any {
            live.resolve_again();
        }
    }

    /// Forgets what a store may change: all but the other members of its own group.
    fn overwrite(&mut self, slot: u8, distance: i16, bytes: u32) {
        let (start, end) = (i32::from(distance), i32::from(distance) + bytes as i32);
        self.stored.retain(|s| {
            let at = i32::from(s.distance);
            s.slot == slot && (at + 8 <= start || end <= at)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::grouped;
    use super::*;
    use crate::ir::Value;
    use crate::testing::guest;

    /// The value that the last load of a block stands for is the one that was stored first.
    fn is_forwarded(between: &str, load: &str) -> bool {
        let text = format!(
            "insn 0x1000\nv0 = get r0\nv1 = get r1\nv2 = const 0xfffffffffffffff8\nv3 = add.64 v0, v2\n\
             v4 = add.64 v3, v2\nstore.64 [v3] mmu0, v1\ninsn 0x1004\nstore.64 [v4] mmu0, v0\n{between}\n\
             v9 = {load}\nset r2, v9\nleave 0\n"
        );
        let (block, mut live, groups) = grouped(&text);
        Forwarding::default().run(&block, &groups, &mut live, guest().helpers);
        let load = block.insts.iter().rposition(|i| matches!(i, Inst::Load { .. })).expect("there is a load");
        live.resolve(Value(load as u32)) == live.resolve(Value(2))
    }

    #[test]
    fn what_was_pushed_is_popped() {
        assert!(is_forwarded("nop", "load.64 [v3] mmu0"));
        assert!(is_forwarded("insn 0x1008\nv5 = load.32 [v4] mmu0", "load.64 [v3] mmu0"));
        assert!(!is_forwarded("nop", "load.64 [v4] mmu0"));
        assert!(!is_forwarded("nop", "load.32 [v3] mmu0"));
    }

    #[test]
    fn whatever_may_store_in_between_ends_it() {
        for between in [
            "insn 0x1008\nv5 = load.64 [v1] mmu0",
            "insn 0x1008\nv5 = load.64 [v1] mmu0\nv6 = load.64 [v1] mmu0",
            "insn 0x1008\nstore.8 [v1] mmu0, v0",
            "insn 0x1008\nv5 = const 7\nv6 = add.64 v3, v5\nstore.8 [v6] mmu0, v0",
            "insn 0x1008\nv5 = call may_fault(v0)",
        ] {
            assert!(!is_forwarded(between, "load.64 [v3] mmu0"), "{between}");
        }
    }
}
