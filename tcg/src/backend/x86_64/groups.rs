//! Groups of memory accesses that share one look into the software TLB.
//!
//! Problem: function prologues, structures and stack frames are runs of accesses at constant distances from one address,
//! nearly always in one page; each looking into the TLB for itself is most of what a block executes.
//!
//! Strategy: before emission, accesses whose addresses differ by a constant, in the same MMU mode, are grouped. The first,
//! the *leader*, tests its TLB entry for the whole range that the group touches, and leaves the page's addend in a word
//! of the stack frame, or if the test failed, that of the second way; or zero, if that has no page for the group, either.
//! The *followers* take the addend from there, and look into the TLB's second way and then the slow path, as ever, if it is zero.
//!
//! Invariants:
//! - A follower is reached only by way of its leader: blocks are straight lines with side exits.
//! - A group with a store has a leader that tested for the write tag. It may be a load if no side exit lies between it and
//!   the store: else a loop that only reads a page that is not writable would miss each time.
//! - Between leader and follower no helper is called: only helpers (and the execution loop) flush translations, take
//!   away write permission, or enter code that a page with write tags would have to be protected for. Slow paths of
//!   accesses do not: they may run at most the guest's page walk and MMIO, whose effects on the memory layout wait for
//!   the next poll.

use super::liveness::Liveness;
use crate::guest::HelperDesc;
use crate::ir::{BinOp, Block, Inst, Width};

/// Words for addends in the stack frame, so groups that may be open at a time.
pub const SLOTS: usize = 4;
/// Bytes from the first to the last byte of a group, at most: a wider one would often not fit its page.
const MAX_RANGE: i64 = 256;
/// Sums that are followed from an address, at most.
const MAX_CHAIN: u32 = 32;

/// What an access is in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Member {
    /// It is in none.
    Alone,
    /// It tests for all bytes from `low` (not positive) to `high` (exclusive), relative to its own address, to be readable, or
    /// writable.
    Leader { slot: u8, low: i16, high: i16, write: bool },
    /// It finds the addend in this slot.
    Follower { slot: u8 },
}

/// An address: something that is not known, and a distance.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Address {
    root: u64,
    offset: i64,
}

impl Address {
    /// The address that a value is. Pushes and pops make chains of sums as long as they are many.
    fn of(block: &Block, live: &Liveness, v: usize) -> Address {
        let (mut v, mut distance) = (v, 0i64);
        for _ in 0..MAX_CHAIN {
            match block.insts.get(v) {
                Some(&Inst::Bin { op: op @ (BinOp::Add | BinOp::Sub), w: Width::W64, a, b }) => {
                    let Some(&Inst::Const(c)) = block.insts.get(live.resolve(b)) else { break };
                    let sum = if op == BinOp::Add {
                        distance.checked_add(c as i64)
                    } else {
                        distance.checked_sub(c as i64)
                    };
                    let Some(sum) = sum else { break };
                    (v, distance) = (live.resolve(a), sum);
                }
                Some(&Inst::Lea { w: Width::W64, base, index, scale, disp }) => {
                    let Some(offset) = distance.checked_add(disp.into()) else { break };
                    let (base, index) = (live.resolve(base) as u64, live.resolve(index) as u64);
                    let root = 1 << 63 | base << 36 | index << 8 | u64::from(scale);
                    return Address { root, offset };
                }
                _ => break,
            }
        }
        Address { root: v as u64, offset: distance }
    }
}

#[derive(Clone, Copy)]
struct Open {
    root: u64,
    mmu: u8,
    write: bool,
    /// No side exit lies between the leader and here.
    certain: bool,
    leader: u32,
    leader_offset: i64,
    low: i64,
    high: i64,
    followed: bool,
}

/// The groups of a block; buffers are used again.
#[derive(Default)]
pub struct Groups {
    members: Vec<Member>,
    open: [Option<Open>; SLOTS],
    next: usize,
}

impl Groups {
    /// What the access that is instruction `at` is.
    pub fn member(&self, at: usize) -> Member {
        self.members.get(at).copied().unwrap_or(Member::Alone)
    }

    /// Makes all accesses of a block stand alone.
    pub fn reset(&mut self) {
        self.members.clear();
    }

    /// Groups a block's accesses.
    pub fn run(&mut self, block: &Block, live: &Liveness, helpers: &[HelperDesc]) {
        self.reset();
        if live.accesses < 2 {
            return;
        }
        self.members.resize(block.insts.len(), Member::Alone);
        self.next = 0;
        for (i, inst) in block.insts.iter().enumerate() {
            let (addr, bytes, mem, write) = match *inst {
                Inst::Load { width, addr, mem, .. } => (addr, width.bytes(), mem, mem.for_write),
                Inst::Store { width, addr, mem, .. } => (addr, width.bytes(), mem, true),
                Inst::LoadVec { size, addr, mem } => (addr, size.bytes(), mem, mem.for_write),
                Inst::StoreVec { size, addr, mem, .. } => (addr, size.bytes(), mem, true),
                Inst::ExitIf { .. } => {
                    self.open.iter_mut().flatten().for_each(|open| open.certain = false);
                    continue;
                }
                // What has a shortcut does not flush translations.
                Inst::Call { helper, .. } if helpers[helper.0 as usize].shortcut.is_none() => {
                    (0..SLOTS).for_each(|slot| self.close(slot));
                    continue;
                }
                _ => continue,
            };
            let address = Address::of(block, live, live.resolve(addr));
            self.access(i, address, bytes, mem.mmu, write);
        }
        (0..SLOTS).for_each(|slot| self.close(slot));
    }

    fn access(&mut self, at: usize, address: Address, bytes: u32, mmu: u8, write: bool) {
        let Address { root, offset } = address;
        // Distances so far apart that this overflows are of no program; what is tested must be the whole access.
        let Some(end) = offset.checked_add(i64::from(bytes)) else { return };
        let same = |o: &Open| o.root == root && o.mmu == mmu;
        let found = self.open.iter().position(|o| o.as_ref().is_some_and(same));
        if let Some(slot) = found
            && let Some(open) = &mut self.open[slot]
            && (open.write || !write || open.certain)
        {
            let (low, high) = (open.low.min(offset), open.high.max(end));
            if high.saturating_sub(low) <= MAX_RANGE {
                (open.low, open.high, open.followed) = (low, high, true);
                open.write |= write;
                self.members[at] = Member::Follower { slot: slot as u8 };
                return;
            }
        }
        let slot = found.or_else(|| self.open.iter().position(Option::is_none)).unwrap_or_else(|| {
            self.next = (self.next + 1) % SLOTS;
            self.next
        });
        self.close(slot);
        self.open[slot] = Some(Open {
            root,
            mmu,
            write,
            certain: true,
            leader: at as u32,
            leader_offset: offset,
            low: offset,
            high: end,
            followed: false,
        });
    }

    /// Ends a group; now its leader knows what to test for.
    fn close(&mut self, slot: usize) {
        let Some(open) = self.open[slot].take() else { return };
        if open.followed {
            let (low, high) = (open.low - open.leader_offset, open.high - open.leader_offset);
            self.members[open.leader as usize] =
                Member::Leader { slot: slot as u8, low: low as i16, high: high as i16, write: open.write };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::X86_64;
    use super::*;
    use crate::backend::HostBackend;
    use crate::ir::text::parse;
    use crate::testing::guest;

    /// What the accesses of a block are, in order.
    fn members(text: &str) -> Vec<Member> {
        let block = parse(text, &guest()).expect("valid text");
        let backend = X86_64::new(guest()).expect("the host runs the backend");
        let mut live = Liveness::default();
        live.run(&block, &guest(), (&backend.pin_reg, backend.kinds.pinned));
        let mut groups = Groups::default();
        groups.run(&block, &live, guest().helpers);
        let access = |i: &usize| matches!(block.insts[*i], Inst::Load { .. } | Inst::Store { .. });
        (0..block.insts.len()).filter(access).map(|i| groups.member(i)).collect()
    }

    #[test]
    fn pushes_and_pops_are_groups() {
        let pushes = "insn 0x1000\nv0 = get r0\nv1 = const 0xfffffffffffffff8\nv2 = add.64 v0, v1\n\
                      store.64 [v2] mmu0, v0\nv3 = add.64 v2, v1\nstore.32 [v3] mmu0, v0\nset r0, v3\nleave 0\n";
        assert_eq!(
            members(pushes),
            [Member::Leader { slot: 0, low: -8, high: 8, write: true }, Member::Follower { slot: 0 }]
        );
        let pops = "insn 0x1000\nv0 = get r0\nv1 = const 8\nv2 = load.64 [v0] mmu0\nv3 = add.64 v0, v1\n\
                    v4 = load.16 [v3] mmu0\nset r1, v2\nset r2, v4\nleave 0\n";
        assert_eq!(
            members(pops),
            [Member::Leader { slot: 0, low: 0, high: 10, write: false }, Member::Follower { slot: 0 }]
        );
    }

    #[test]
    fn a_store_follows_a_load_but_not_across_an_exit_nor_a_far_access() {
        let text = |distance: u32, second: &str| {
            format!(
                "insn 0x1000\nv0 = get r0\nv1 = load.64 [v0] mmu0\nv2 = const {distance}\nv3 = add.64 v0, v2\n\
                 {second}\nset r1, v1\nleave 0\n"
            )
        };
        let alone = [Member::Alone, Member::Alone];
        assert_eq!(
            members(&text(8, "store.64 [v3] mmu0, v1")),
            [Member::Leader { slot: 0, low: 0, high: 16, write: true }, Member::Follower { slot: 0 }]
        );
        let exit = "f4 = flags.sub.64 v1, v0\nexitif.e f4 -> exit0\nstore.64 [v3] mmu0, v1";
        assert_eq!(members(&(text(8, exit) + "exit0: 0x2000\n")), alone);
        assert_eq!(members(&text(300, "v4 = load.64 [v3] mmu0")), alone);
        assert_eq!(members(&text(8, "v4 = load.64 [v3] mmu1")), alone);
        assert_ne!(members(&text(8, "v4 = load.64 [v3] mmu0")), alone);
    }

    #[test]
    fn distances_at_the_end_of_their_range_make_no_group() {
        let text = "insn 0x1000\nv0 = get r0\nv1 = const 0x7ffffffffffffffc\nv2 = add.64 v0, v1\n\
                    v3 = load.64 [v2] mmu0\nv4 = load.64 [v2] mmu0\nset r1, v3\nset r2, v4\nleave 0\n";
        assert_eq!(members(text), [Member::Alone, Member::Alone]);
        let fits = text.replace("fffc", "fff7");
        assert_eq!(
            members(&fits),
            [Member::Leader { slot: 0, low: 0, high: 8, write: false }, Member::Follower { slot: 0 }]
        );
    }

    #[test]
    fn a_helper_ends_groups() {
        let text = "insn 0x1000\nv0 = get r0\nv1 = load.64 [v0] mmu0\nv2 = call may_fault(v1)\n\
                    v3 = load.64 [v0] mmu0\nset r1, v3\nleave 0\n";
        assert_eq!(members(text), [Member::Alone, Member::Alone]);
    }
}
