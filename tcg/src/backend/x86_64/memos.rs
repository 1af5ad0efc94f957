//! Which accesses of a trace have a memo, and the test of it.
//!
//! Problem and strategy: see [`PageMemos`](crate::softmmu::PageMemos). An access that looks into the TLB for itself or for its group gets the
//! memo of a number, unless it has a constant address or must be aligned. Rounds of an unrolled loop have the same memos: an
//! access has the number that the one of the same guest instruction in another round has.
//!
//! ```text
//! lea  rcx, [addr + low]     ; or what computes the address, if nobody else wants it
//! sub  rcx, [start]
//! cmp  rcx, [room]
//! jae  look                  ; out of line: the look, whose entry is written to the memo
//! mov  rax, [host]
//! …    [rcx + rax - low]
//! ```

use std::mem::offset_of;

use super::emitter::{Emitter, Part, runtime_mem};
use super::encode::{Alu, Mem, r};
use super::groups::{Alignment, Groups, Member};
use super::liveness::Liveness;
use super::members::Look;
use crate::env::{GUESSES, GUESSING, Guesses, Runtime};
use crate::ir::{Block, Cond, Inst, Width};
use crate::memory::PAGE_SIZE;
use crate::softmmu::{MEMO_WORD, MEMOS, Memo, PageMemos};

/// What accesses with the same memo have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kind {
    /// Guest-virtual address of the instruction.
    pc: u64,
    /// How many accesses that could have a memo come before it in the instruction.
    nth: u8,
    mmu: u8,
    write: bool,
    /// From the first to behind the last byte, at a distance from the address.
    range: (i16, i16),
}

/// The accesses of a block that have a memo; buffers are used again.
#[derive(Default)]
pub struct Memos {
    /// By number.
    kinds: Vec<Kind>,
    /// Instructions and their memos, in order.
    sites: Vec<(u32, u8)>,
}

impl Memos {
    /// The number of the memo of access `at`, if it has one.
    #[inline]
    pub fn site(&self, at: usize) -> Option<usize> {
        let found = self.sites.binary_search_by_key(&at, |site| site.0 as usize).ok()?;
        Some(self.sites[found].1.into())
    }

    /// Whether any access has a memo.
    pub fn any(&self) -> bool {
        !self.sites.is_empty()
    }

    /// Gives no access a memo.
    pub fn reset(&mut self) {
        self.sites.clear();
    }

    /// Finds the accesses. `allowed` says which memos there may be, by their numbers.
    pub fn run(&mut self, block: &Block, live: &Liveness, groups: &Groups, allowed: u32) {
        self.reset();
        self.kinds.clear();
        let (mut pc, mut nth) = (0, 0);
        for (at, inst) in block.insts.iter().enumerate() {
            let (addr, mem, bytes, write) = match *inst {
                Inst::InsnStart { pc: start } => {
                    (pc, nth) = (start, 0);
                    continue;
                }
                Inst::Load { addr, mem, width, .. } => (addr, mem, width.bytes(), mem.for_write),
                Inst::Store { addr, mem, width, .. } => (addr, mem, width.bytes(), true),
                Inst::LoadVec { addr, mem, size, .. } => (addr, mem, size.bytes(), mem.for_write),
                Inst::StoreVec { addr, mem, size, .. } => (addr, mem, size.bytes(), true),
                _ => continue,
            };
            let own = (0, bytes as i16, if mem.align { bytes } else { 1 }, write);
            let (low, high, align, write) = match groups.member(at) {
                Member::Alone => own,
                Member::Leader(leader) => (leader.low, leader.high, leader.align.bytes, leader.write),
                Member::Follower { .. } | Member::Lasting(_) => continue,
            };
            let constant = matches!(block.insts.get(live.resolve(addr)), Some(Inst::Const(_)));
            if constant || align > 1 {
                continue;
            }
            let kind = Kind { pc, nth, mmu: mem.mmu, write, range: (low, high) };
            nth = nth.saturating_add(1);
            let n = self.kinds.iter().position(|k| *k == kind).unwrap_or_else(|| {
                self.kinds.push(kind);
                self.kinds.len() - 1
            });
            if n < MEMOS && allowed >> n & 1 != 0 {
                self.sites.push((at as u32, n as u8));
            }
        }
    }
}

/// Offset in the runtime of the guesses of a block.
pub fn guesses_of(tb: u32) -> usize {
    offset_of!(Runtime, guesses) + tb as usize % GUESSING * size_of::<Guesses>()
}

impl Emitter<'_> {
    /// As [`Emitter::test_entry`], of an access that has a memo: asks that first.
    pub fn test_memo(&mut self, addr: u8, range: (i32, i32), (mmu, write): (u8, bool), n: usize) -> Look {
        let (low, high) = range;
        let block = self.tb as usize % GUESSING;
        let memos = offset_of!(Runtime, memos);
        let memo = memos + offset_of!(PageMemos, blocks) + (block * MEMOS + n) * size_of::<Memo>();
        let field = |offset: usize| runtime_mem(memo + offset);
        let [start, room, host] =
            [offset_of!(Memo, start), offset_of!(Memo, room), offset_of!(Memo, host)].map(field);
        // Where it was just computed for this access alone, the address is wanted out of line only.
        let only_here = low == 0 && self.address_ends_here();
        let lea = if only_here { self.asm().take_lea(addr) } else { None };
        match (lea, low) {
            (Some(lea), _) => self.asm().put_lea(lea, r::RCX),
            (None, 0) => self.asm().mov_rr(r::RCX, addr),
            (None, _) => self.asm().lea(Width::W64, r::RCX, addr, None, low),
        }
        self.asm().alu_rm(Alu::Sub, Width::W64, r::RCX, start);
        self.asm().alu_rm(Alu::Cmp, Width::W64, r::RCX, room);
        let other = self.asm().jcc(Cond::AE);
        self.asm().load(Width::W64, r::RAX, host);
        let back = self.here();
        let was = self.branch_to(Part::Cold, other);
        let missed = guesses_of(self.tb) + offset_of!(Guesses, missed) + 4 * n;
        self.asm().incdec_mem32(0, runtime_mem(missed));
        if lea.is_some() {
            self.asm().mov_rr(addr, r::RCX);
            self.asm().alu_rm(Alu::Add, Width::W64, addr, start);
        }
        let entry = self.compare_entry(addr, range, Alignment::of(1, 0), mmu, write);
        let miss = self.asm().jcc(Cond::NE);
        let miss = self.jump(miss);
        let used = memos + offset_of!(PageMemos, used) + block / MEMO_WORD * size_of::<u32>();
        let asm = self.asm();
        asm.load(Width::W64, r::RAX, entry);
        asm.store(Width::W64, start, r::RCX);
        asm.alu_rr(Alu::Add, Width::W64, r::RCX, r::RAX);
        asm.store(Width::W64, host, r::RCX);
        asm.store_imm(Width::W64, room, PAGE_SIZE as i32 - (high - low) + 1);
        asm.alu_mi(Alu::Or, Width::W32, runtime_mem(used), (1u32 << (block % MEMO_WORD)) as i32);
        asm.store_imm(Width::W32, runtime_mem(memos + offset_of!(PageMemos, any)), 1);
        // The sum of RCX and RAX is the same, whichever way it is made.
        let hit = self.here();
        match low {
            0 => self.asm().mov_rr(r::RCX, addr),
            _ => self.asm().lea(Width::W64, r::RCX, addr, None, low),
        }
        self.jump_to(back);
        self.part = was;
        let host = if low == 0 { Mem::Index(r::RCX, r::RAX) } else { Mem::Scaled(r::RCX, r::RAX, 0, -low) };
        Look { miss, hit, host }
    }

    /// Whether the current access's address is of no use afterwards, nor to the access as anything but its address.
    fn address_ends_here(&self) -> bool {
        let live = &self.b.live;
        let address = match self.block.insts[self.at] {
            Inst::Load { addr, .. } | Inst::LoadVec { addr, .. } | Inst::StoreVec { addr, .. } => addr,
            Inst::Store { addr, v, .. } if live.resolve(v) != live.resolve(addr) => addr,
            _ => return false,
        };
        live.values[live.resolve(address)].last_use == self.at as u32
    }
}

/// The bits of memos in the mask of what a block may guess.
pub fn allowed(guesses: u32) -> u32 {
    guesses >> GUESSES
}

#[cfg(test)]
mod tests {
    use super::super::testing::{accesses, grouped};
    use super::*;

    /// Which memos a block's accesses have, by their order.
    fn memos(text: &str, allowed: u32) -> Vec<Option<usize>> {
        let (block, live, groups) = grouped(text);
        let mut memos = Memos::default();
        memos.run(&block, &live, &groups, allowed);
        accesses(&block).map(|i| memos.site(i)).collect()
    }

    #[test]
    fn rounds_of_an_instruction_share_a_memo() {
        let text = "insn 0x1000\nv0 = get r0\nv1 = get r1\nv2 = load.64 [v0] mmu0\ninsn 0x1004\nv3 = load.64 [v1] mmu0\n\
                    insn 0x1000\nv4 = load.64 [v3] mmu0\ninsn 0x1004\nstore.64 [v2] mmu0, v4\n\
                    v5 = load.64 [v4] mmu0\nset r1, v5\nleave 0\n";
        // The store is of the same instruction as the second load, but it is a store.
        assert_eq!(memos(text, u32::MAX), [Some(0), Some(1), Some(0), Some(2), Some(3)]);
        assert_eq!(memos(text, !2), [Some(0), None, Some(0), Some(2), Some(3)]);
        assert_eq!(memos(text, 0), [None; 5]);
    }

    #[test]
    fn leaders_have_memos_and_what_follows_or_is_aligned_or_constant_has_none() {
        let text = "insn 0x1000\nv0 = get r0\nv1 = load.64 [v0] mmu0\nv2 = const 8\nv3 = add.64 v0, v2\n\
                    v4 = load.64 [v3] mmu0\nv5 = load.64 [v2] mmu0\nx6 = loadv.128 [v5] mmu0 align\n\
                    x7 = loadv.128 [v4] mmu0\nset y1, x6\nset y2, x7\nset r1, v5\nleave 0\n";
        assert_eq!(memos(text, u32::MAX), [Some(0), None, None, None, Some(1)]);
    }

    #[test]
    fn numbers_of_memos_end() {
        let mut text = String::from("insn 0x1000\nv0 = get r0\n");
        for n in 1..=MEMOS + 1 {
            text += &format!("insn {}\nv{n} = load.64 [v{}] mmu0\n", 0x1000 + 4 * n, n - 1);
        }
        text += &format!("set r0, v{}\nleave 0\n", MEMOS + 1);
        let mut expected: Vec<_> = (0..MEMOS).map(Some).collect();
        expected.push(None);
        assert_eq!(memos(&text, u32::MAX), expected);
    }
}
