//! Groups of memory accesses that share one look into the software TLB.
//!
//! Problem: function prologues, structures and stack frames are runs of accesses at constant distances from one address,
//! nearly always in one page; each looking into the TLB for itself is most of what a block executes.
//!
//! Strategy: before emission, accesses whose addresses differ by a constant, in the same MMU mode, are grouped. The first,
//! the *leader*, looks for the whole range that the group touches, and leaves the host address of its own first byte in a
//! register that nobody wants, and in a word of the stack frame. The *followers* are one instruction each: they find their
//! bytes at a distance from there. They cannot fault, so they are no observers: of what the guest's registers and flags are
//! between a leader and its followers, nothing need be computed. Nor do they need their own address.
//!
//! A leader that finds no page for the group (it may lie across two, or be a device's, or not be there) leaves the block, to
//! go on at the start of the guest instruction in a block without groups, whose accesses look for themselves.
//!
//! In a block that jumps to its own start (`loops`), accesses whose address has the same root in all rounds (`rounds`) form
//! groups that last for all of them: each has a slot of its own for the page's addend, which all members find there. The look is
//! made before the head, if that has the root at hand; a member that finds the slot empty looks for the group out of line,
//! then for itself, and leaves the group's addend to all that follow it in this round and in later ones.
//!
//! Invariants:
//! - A follower is reached only by way of its leader: blocks are straight lines with side exits.
//! - Nothing comes before a leader in its guest instruction that cannot be done twice: the instruction is begun again when the
//!   leader leaves. Loads of members can: they are of memory. So a load may lead a group that nobody follows.
//! - A group with a store has a leader that tested for the write tag. It may be a load if no side exit lies between it and
//!   the store: else a loop that only reads a page that is not writable would leave each time.
//! - A group with a member that must be aligned has a leader that tested for that, so that followers need not. No side exit
//!   lies between it and the first such member: else a loop that never gets there would leave each time.
//! - The slots of groups that last are filled, or empty, when the head is reached from outside. What is true between leader and
//!   follower is true between any two members of them: no helper that flushes is called in the whole loop, and whoever
//!   wants the execution loop to do something makes a request, which each round looks for. The way out and back in leads
//!   through the block's entry.
//! - Between leader and follower no helper is called: only helpers (and the execution loop) flush translations, take
//!   away write permission, or enter code that a page with write tags would have to be protected for. Slow paths of
//!   accesses do not: they may run at most the guest's page walk and MMIO, whose effects on the memory layout wait for
//!   the next poll.

use super::liveness::Liveness;
use super::rounds::Rounds;
use crate::guest::HelperDesc;
use crate::ir::{BinOp, Block, Inst, Width};

/// Groups that may be open at a time.
pub const OPEN: usize = 8;
/// Groups that last for all rounds, at most.
const LASTING: usize = 8;
/// Words for addresses and addends in the stack frame.
pub const SLOTS: usize = OPEN + LASTING;
/// Bytes from the first to the last byte of a group, at most: a wider one would often not fit its page.
const MAX_RANGE: i64 = 256;
/// Sums that are followed from an address, at most.
const MAX_CHAIN: u32 = 32;

/// What an access is in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Member {
    /// It is in none.
    Alone,
    /// It tests for the group.
    Leader(Leader),
    /// It finds the host address of the leader in this slot.
    Follower {
        /// The slot.
        slot: u8,
        /// Its own distance from the leader.
        distance: i16,
        /// No other follows.
        last: bool,
    },
    /// It finds the addend in a slot that lasts for all rounds, or tests for the group.
    Lasting(Leader),
}

impl Member {
    /// Whether it finds its bytes by way of a leader, or is one.
    pub fn is_grouped(self) -> bool {
        matches!(self, Member::Leader(_) | Member::Follower { .. })
    }
}

/// What a leader tests for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leader {
    /// Where it leaves its host address, or the addend if the group lasts.
    pub slot: u8,
    /// Distance from its own address of the first byte; not positive.
    pub low: i16,
    /// Distance of what follows the last byte.
    pub high: i16,
    /// All bytes are writable, not only readable.
    pub write: bool,
    /// Alignment.
    pub align: Alignment,
    /// There are followers.
    pub followed: bool,
}

/// The address at a distance is a multiple of a power of two, up to 32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alignment {
    /// The power of two.
    pub bytes: u32,
    /// The distance; not negative, and less.
    pub distance: u8,
}

impl Alignment {
    /// What is at a distance is to be a multiple of `bytes`.
    pub fn of(bytes: u32, distance: i64) -> Alignment {
        Alignment { bytes, distance: (distance & i64::from(bytes - 1)) as u8 }
    }

    /// Both, if they can be true at a time.
    fn and(self, other: Alignment) -> Option<Alignment> {
        let (weak, strong) = if self.bytes < other.bytes { (self, other) } else { (other, self) };
        (u32::from(strong.distance) & (weak.bytes - 1) == u32::from(weak.distance)).then_some(strong)
    }

    /// How far something at a distance is beyond the last multiple, if the alignment is right.
    pub fn beyond(self, distance: i32) -> i32 {
        (distance - i32::from(self.distance)) & (self.bytes as i32 - 1)
    }
}

/// A group that lasts for all rounds, relative to the root of its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lasting {
    /// Where its addend is.
    pub slot: u8,
    /// MMU mode.
    pub mmu: u8,
    /// The value that is its root, unless that is a sum of two.
    pub root: Option<usize>,
    /// First byte.
    pub low: i64,
    /// What follows the last byte.
    pub high: i64,
    /// All bytes are writable, not only readable.
    pub write: bool,
    /// Alignment.
    pub align: Alignment,
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

    /// The values of the root; the second one if it is a sum.
    fn root_values(self) -> (usize, Option<usize>) {
        match self.root >> 63 {
            0 => (self.root as usize, None),
            _ => ((self.root << 1 >> 37) as usize, Some((self.root >> 8 & 0xfff_ffff) as usize)),
        }
    }
}

#[derive(Clone, Copy)]
struct Open {
    root: u64,
    mmu: u8,
    write: bool,
    /// Relative to the leader.
    align: Alignment,
    /// No side exit lies between the leader and here.
    certain: bool,
    leader: u32,
    leader_offset: i64,
    low: i64,
    high: i64,
    /// The last follower; the leader if there is none.
    last: u32,
}

impl Open {
    /// Makes an access a member, if it may be one.
    fn join(&mut self, (offset, end): (i64, i64), wanted: u32, write: bool) -> bool {
        let own = Alignment::of(wanted, offset.wrapping_sub(self.leader_offset));
        let Some(align) = self.align.and(own) else { return false };
        let stricter = write && !self.write || align != self.align;
        let (low, high) = (self.low.min(offset), self.high.max(end));
        if stricter && !self.certain || high.saturating_sub(low) > MAX_RANGE {
            return false;
        }
        (self.low, self.high, self.align) = (low, high, align);
        self.write |= write;
        true
    }

    /// What a member at an offset from the root tests for.
    fn test(&self, slot: usize, offset: i64) -> Leader {
        Leader {
            slot: slot as u8,
            low: self.low.wrapping_sub(offset) as i16,
            high: self.high.wrapping_sub(offset) as i16,
            write: self.write,
            align: self.align_from(offset),
            followed: self.last != self.leader,
        }
    }

    /// The alignment relative to an offset.
    fn align_from(&self, offset: i64) -> Alignment {
        let first = self.leader_offset.wrapping_sub(offset);
        Alignment::of(self.align.bytes, first.wrapping_add(self.align.distance.into()))
    }
}

/// The groups of a block; buffers are used again.
#[derive(Default)]
pub struct Groups {
    members: Vec<Member>,
    open: [Option<Open>; OPEN],
    next: usize,
    /// Groups, as a bit mask, whose members the guest instruction has loaded.
    loaded: u32,
    /// The guest instruction has done something that cannot be done twice.
    done: bool,
    /// Groups, as a bit mask, that a store belongs to.
    stored: u32,
    /// A member that is a load follows a member of such a group that is a store.
    reloads: bool,
    /// A load, what it is if it leads, and another access that the same instruction makes later, if that leads: then the load
    /// must, too, if it is no follower.
    pairs: Vec<(u32, Member, u32)>,
    /// Those that last for all rounds.
    lasting: Vec<Open>,
    /// Their members: instruction, group, and distance from the root.
    lasting_members: Vec<(usize, usize, i64)>,
}

impl Groups {
    /// What the access that is instruction `at` is.
    pub fn member(&self, at: usize) -> Member {
        self.members.get(at).copied().unwrap_or(Member::Alone)
    }

    /// Whether the access that is instruction `at` finds its bytes where a leader has left them.
    #[inline]
    pub fn follows(&self, at: usize) -> bool {
        matches!(self.members.get(at), Some(Member::Follower { .. }))
    }

    /// Whether any load may be of what a member of its own group has stored.
    pub fn reload(&self) -> bool {
        self.reloads
    }

    /// The groups that last for all rounds.
    pub fn lasting(&self, n: usize) -> Option<Lasting> {
        let open = self.lasting.get(n)?;
        let root = match (Address { root: open.root, offset: 0 }).root_values() {
            (v, None) => Some(v),
            _ => None,
        };
        let Open { mmu, low, high, write, .. } = *open;
        Some(Lasting { slot: (OPEN + n) as u8, mmu, root, low, high, write, align: open.align_from(0) })
    }

    /// Makes all accesses of a block stand alone.
    pub fn reset(&mut self) {
        self.members.clear();
        self.lasting.clear();
        self.lasting_members.clear();
        self.pairs.clear();
        (self.stored, self.reloads) = (0, false);
    }

    /// Groups a block's accesses. `rounds` is there if the block jumps to its own start.
    pub fn run(&mut self, block: &Block, live: &Liveness, helpers: &[HelperDesc], rounds: Option<&Rounds>) {
        self.reset();
        if live.accesses < 2 && rounds.is_none() {
            return;
        }
        self.members.resize(live.accessing.end, Member::Alone);
        self.next = 0;
        for i in live.accessing.clone() {
            let inst = &block.insts[i];
            let (addr, bytes, mem, write) = match *inst {
                Inst::InsnStart { .. } => {
                    (self.loaded, self.done) = (0, false);
                    continue;
                }
                Inst::Load { width, addr, mem, .. } => (addr, width.bytes(), mem, mem.for_write),
                Inst::Store { width, addr, mem, .. } => (addr, width.bytes(), mem, true),
                Inst::LoadVec { size, addr, mem } => (addr, size.bytes(), mem, mem.for_write),
                Inst::StoreVec { size, addr, mem, .. } => (addr, size.bytes(), mem, true),
                Inst::ExitIf { .. } => {
                    let open = self.open.iter_mut().flatten().chain(&mut self.lasting);
                    open.for_each(|open| open.certain = false);
                    continue;
                }
                // What has a shortcut does not flush translations.
                Inst::Call { helper, .. } => {
                    let desc = &helpers[helper.0 as usize];
                    if desc.shortcut.is_none() {
                        (0..OPEN).for_each(|slot| self.close(slot));
                        // Whether what was loaded is of memory is not going to be asked.
                        self.done |= self.loaded != 0;
                    }
                    self.done |= !desc.effects.pure;
                    continue;
                }
                _ => {
                    self.done |= inst.is_memory() || matches!(inst, Inst::EnvStore { .. });
                    continue;
                }
            };
            let address = Address::of(block, live, live.resolve(addr));
            // Distances so far apart that this overflows are of no program; what is tested must be the whole access.
            let Some(end) = address.offset.checked_add(i64::from(bytes)) else {
                self.done = true;
                continue;
            };
            let align = Alignment::of(if mem.align { bytes } else { 1 }, 0);
            let (root, offset) = (address.root, address.offset);
            let access = Open {
                root,
                mmu: mem.mmu,
                write,
                align,
                certain: true,
                leader: i as u32,
                leader_offset: offset,
                low: offset,
                high: end,
                last: i as u32,
            };
            // Constant addresses look for themselves: that is as short.
            let lasts = rounds.is_some_and(|rounds| {
                let (a, b) = address.root_values();
                let constant = matches!(block.insts.get(a), Some(Inst::Const(_))) && b.is_none();
                rounds.same(a) && b.is_none_or(|b| rounds.same(b)) && !constant
            });
            let group = if lasts && self.last(access) { None } else { self.access(access) };
            match group {
                Some(slot) if !matches!(inst, Inst::Store { .. } | Inst::StoreVec { .. }) => {
                    self.loaded |= 1 << slot;
                    self.reloads |= self.stored >> slot & 1 != 0;
                }
                Some(slot) => {
                    self.stored |= 1 << slot;
                    self.done = true;
                }
                None => self.done = true,
            }
        }
        (0..OPEN).for_each(|slot| self.close(slot));
        for &(first, leader, second) in &self.pairs {
            let second = self.members[second as usize];
            if let (Member::Alone, Member::Leader(_)) = (self.members[first as usize], second) {
                self.members[first as usize] = leader;
            }
        }
        for &(at, n, offset) in &self.lasting_members {
            self.members[at] = Member::Lasting(self.lasting[n].test(OPEN + n, offset));
        }
    }

    /// Makes an access a member of a group that lasts, unless there are too many.
    fn last(&mut self, access: Open) -> bool {
        let (range, wanted) = ((access.low, access.high), access.align.bytes);
        let same = |o: &Open| o.root == access.root && o.mmu == access.mmu;
        let joined = self.lasting.iter_mut().position(|o| same(o) && o.join(range, wanted, access.write));
        let n = match joined {
            Some(n) => n,
            None if self.lasting.len() == LASTING => return false,
            None => {
                self.lasting.push(access);
                self.lasting.len() - 1
            }
        };
        self.lasting_members.push((access.leader as usize, n, access.leader_offset));
        true
    }

    /// Makes an access a member of a group, or the first of another if it may lead one. Which group it is.
    fn access(&mut self, access: Open) -> Option<usize> {
        let same = |o: &Open| o.root == access.root && o.mmu == access.mmu;
        let found = self.open.iter().position(|o| o.as_ref().is_some_and(same));
        if let Some(slot) = found
            && let Some(open) = &mut self.open[slot]
            && open.join((access.low, access.high), access.align.bytes, access.write)
        {
            open.last = access.leader;
            // All members are in a small range.
            let distance = access.leader_offset.wrapping_sub(open.leader_offset) as i16;
            self.members[access.leader as usize] =
                Member::Follower { slot: slot as u8, distance, last: false };
            return Some(slot);
        }
        if self.done {
            return None;
        }
        let loaded = self.loaded;
        let usable = |slot: usize| loaded >> slot & 1 == 0;
        let free = |open: &[Option<Open>; OPEN]| (0..OPEN).find(|&slot| open[slot].is_none());
        let slot = found.filter(|slot| usable(*slot)).or_else(|| free(&self.open)).or_else(|| {
            self.next = (self.next + 1) % OPEN;
            (self.next..OPEN).chain(0..self.next).find(|slot| usable(*slot))
        })?;
        self.close(slot);
        for other in (0..OPEN).filter(|slot| !usable(*slot)) {
            if let Some(open) = self.open[other] {
                let first = Member::Leader(open.test(other, open.leader_offset));
                self.pairs.push((open.leader, first, access.leader));
            }
        }
        self.open[slot] = Some(access);
        Some(slot)
    }

    /// Ends a group; now its leader knows what to test for.
    fn close(&mut self, slot: usize) {
        let Some(open) = self.open[slot].take() else { return };
        if open.last != open.leader {
            self.members[open.leader as usize] = Member::Leader(open.test(slot, open.leader_offset));
        }
        if let Member::Follower { last, .. } = &mut self.members[open.last as usize] {
            *last = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{accesses, begun};
    use super::*;
    use crate::testing::guest;

    /// A leader that does not test for alignment.
    fn leader(low: i16, high: i16, write: bool) -> Member {
        Member::Leader(Leader { slot: 0, low, high, write, align: Alignment::of(1, 0), followed: true })
    }

    /// One that follows a leader in the first slot.
    fn follower(distance: i16, last: bool) -> Member {
        Member::Follower { slot: 0, distance, last }
    }

    /// What the accesses of a block are, in order.
    fn members(text: &str) -> Vec<Member> {
        members_of(text, false).0
    }

    /// What the accesses of a block are, in order, and the groups that last. It may go round.
    fn members_of(text: &str, goes_round: bool) -> (Vec<Member>, Vec<Lasting>) {
        let (block, live) = begun(text);
        let (mut groups, mut rounds) = (Groups::default(), Rounds::default());
        rounds.run(&block, &live, &guest());
        groups.run(&block, &live, guest().helpers, goes_round.then_some(&rounds));
        let members = accesses(&block).map(|i| groups.member(i)).collect();
        (members, (0..).map_while(|n| groups.lasting(n)).collect())
    }

    #[test]
    fn pushes_and_pops_are_groups() {
        let pushes = "insn 0x1000\nv0 = get r0\nv1 = const 0xfffffffffffffff8\nv2 = add.64 v0, v1\n\
                      store.64 [v2] mmu0, v0\nv3 = add.64 v2, v1\nstore.32 [v3] mmu0, v0\nset r0, v3\nleave 0\n";
        assert_eq!(members(pushes), [leader(-8, 8, true), follower(-8, true)]);
        let pops = "insn 0x1000\nv0 = get r0\nv1 = const 8\nv2 = load.64 [v0] mmu0\nv3 = add.64 v0, v1\n\
                    v4 = load.16 [v3] mmu0\nset r1, v2\nset r2, v4\nleave 0\n";
        assert_eq!(members(pops), [leader(0, 10, false), follower(8, true)]);
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
        assert_eq!(members(&text(8, "store.64 [v3] mmu0, v1")), [leader(0, 16, true), follower(8, true)]);
        let exit = "f4 = flags.sub.64 v1, v0\nexitif.e f4 -> exit0\nstore.64 [v3] mmu0, v1";
        assert_eq!(members(&(text(8, exit) + "exit0: 0x2000\n")), alone);
        assert_eq!(members(&text(300, "v4 = load.64 [v3] mmu0")), alone);
        assert_eq!(members(&text(8, "v4 = load.64 [v3] mmu1")), alone);
        assert_ne!(members(&text(8, "v4 = load.64 [v3] mmu0")), alone);
    }

    #[test]
    fn what_an_instruction_has_loaded_from_memory_it_may_load_again() {
        let text = |insn: &str| {
            format!(
                "insn 0x1000\nv0 = get r0\nv1 = get r1\nv2 = load.64 [v0] mmu0\n{insn}\nv3 = const 8\n\
                 store.64 [v1] mmu0, v2\nv4 = add.64 v1, v3\nstore.64 [v4] mmu0, v2\nleave 0\n"
            )
        };
        let Member::Leader(alone) = leader(0, 8, false) else { unreachable!() };
        let first = Member::Leader(Leader { followed: false, ..alone });
        let Member::Leader(second) = leader(0, 16, true) else { unreachable!() };
        let stores = [
            Member::Leader(Leader { slot: 1, ..second }),
            Member::Follower { slot: 1, distance: 8, last: true },
        ];
        assert_eq!(members(&text("nop")), [&[first], &stores[..]].concat());
        assert_eq!(members(&text("insn 0x1004")), [&[Member::Alone], &stores[..]].concat());
        // What stands alone may be a device's.
        assert_eq!(members(&text("envstore.64 0x218, v2")), [Member::Alone; 3]);
        // A call ends the group that would have led the load.
        assert_eq!(members(&text("v9 = call mix(v2, v2)")), [Member::Alone; 3]);
    }

    #[test]
    fn distances_at_the_end_of_their_range_make_no_group() {
        let text = "insn 0x1000\nv0 = get r0\nv1 = const 0x7ffffffffffffffc\nv2 = add.64 v0, v1\n\
                    v3 = load.64 [v2] mmu0\nv4 = load.64 [v2] mmu0\nset r1, v3\nset r2, v4\nleave 0\n";
        assert_eq!(members(text), [Member::Alone, Member::Alone]);
        let fits = text.replace("fffc", "fff7");
        assert_eq!(members(&fits), [leader(0, 8, false), follower(0, true)]);
    }

    #[test]
    fn a_helper_ends_groups() {
        let text = "insn 0x1000\nv0 = get r0\nv1 = load.64 [v0] mmu0\nv2 = call may_fault(v1)\n\
                    v3 = load.64 [v0] mmu0\nset r1, v3\nleave 0\n";
        assert_eq!(members(text), [Member::Alone, Member::Alone]);
    }

    #[test]
    fn a_leader_tests_for_the_alignment_that_a_follower_needs() {
        let text = |distance: u32, between: &str| {
            format!(
                "insn 0x1000\nv0 = get r0\nv1 = load.64 [v0] mmu0\nv2 = const {distance}\nv3 = add.64 v0, v2\n\
                 f4 = flags.sub.64 v1, v0\n{between}\nx5 = loadv.128 [v3] mmu0 align\n\
                 x6 = loadv.128 [v0] mmu0 align\nset y1, x5\nset y2, x6\nleave 0\nexit0: 0x2000\n"
            )
        };
        let aligned = |high: i16, distance: u8| {
            let align = Alignment { bytes: 16, distance };
            Member::Leader(Leader { slot: 0, low: 0, high, write: false, align, followed: true })
        };
        let (second, third) = (follower(32, false), follower(0, true));
        assert_eq!(members(&text(32, "nop")), [aligned(48, 0), second, third]);
        // They cannot both be aligned.
        assert_eq!(members(&text(40, "nop")), [aligned(56, 8), follower(40, true), Member::Alone]);
        // Whether the second is ever reached is not known.
        let exit = members(&text(32, "exitif.e f4 -> exit0\ninsn 0x1008"));
        assert_eq!(exit[0], Member::Alone);
        assert_eq!(exit[2], follower(-32, true));
        // What an instruction has read is not read again.
        assert_eq!(members(&text(32, "exitif.e f4 -> exit0")), [Member::Alone; 3]);
    }

    #[test]
    fn what_is_tested_is_in_the_last_bytes_page_and_tells_the_alignment() {
        for (bytes, distance) in [(1, 0), (16, 0), (16, 8), (16, -8), (32, 5), (2, 257)] {
            let align = Alignment::of(bytes, distance);
            for last in 0..300 {
                let tested = last - align.beyond(last);
                assert!((last - bytes as i32 + 1..=last).contains(&tested));
                assert_eq!((i64::from(tested) - distance) % i64::from(bytes), 0);
            }
        }
    }

    #[test]
    fn what_is_at_the_same_place_in_all_rounds_is_a_group_that_lasts() {
        let text = "insn 0x1000\nv1 = get r0\nv2 = get r15\nv3 = const 16\nv4 = add.64 v1, v3\n\
                    v5 = load.64 [v1] mmu0\nv6 = load.64 [v2] mmu0\nv7 = load.32 [v4] mmu0\n\
                    f8 = flags.sub.64 v5, v6\nexitif.e f8 -> exit0\nstore.64 [v4] mmu0, v5\n\
                    v11 = load.64 [v4] mmu0\nset r15, v5\nset r1, v11\nset r2, v7\nleave 0\nexit0: 0x2000\n";
        let (members, lasting) = members_of(text, true);
        let align = Alignment::of(1, 0);
        let (slot, next) = (OPEN as u8, OPEN as u8 + 1);
        let member = |slot, low, high, write| {
            Member::Lasting(Leader { slot, low, high, write, align, followed: false })
        };
        // The store has a group of its own: that it is ever reached is not known.
        assert_eq!(
            members,
            [
                member(slot, 0, 24, false),
                Member::Alone,
                member(slot, -16, 8, false),
                member(next, 0, 8, true),
                member(slot, -16, 8, false),
            ]
        );
        let ranges: Vec<_> = lasting.iter().map(|g| (g.slot, g.low, g.high, g.write)).collect();
        assert_eq!(ranges, [(slot, 0, 24, false), (next, 16, 24, true)]);
        assert_eq!(members_of(text, false).1, []);
    }

    #[test]
    fn constant_addresses_look_for_themselves_and_slots_end() {
        let mut text = String::from("insn 0x1000\nv1 = const 0x4000\nv2 = load.64 [v1] mmu0\nv3 = get r0\n");
        for n in 0..=LASTING {
            let v = 4 + 3 * n;
            text += &format!("v{v} = const {}\nv{} = add.64 v3, v{v}\n", 1000 * n, v + 1);
            text += &format!("v{} = load.64 [v{}] mmu0\n", v + 2, v + 1);
        }
        let (members, lasting) = members_of(&(text + "leave 0\n"), true);
        assert_eq!(members[0], Member::Alone);
        assert_eq!(lasting.len(), LASTING);
        assert!(members[1..=LASTING].iter().all(|m| matches!(m, Member::Lasting(_))));
        assert_eq!(members[LASTING + 1], Member::Alone);
    }
}
