//! Emission of accesses that are members of a group (`groups`), and of looks that guess (`chases`).
//!
//! A leader tests its TLB entry for the whole group, and leaves its host address in a register that nobody wants, if there is one,
//! and in the group's word of the stack frame; a follower finds its bytes at a distance from there:
//!
//! ```text
//! …                          ; the hit path of `mem` for the group's range; RAX = addend
//! lea  rdx, [addr + rax]
//! mov  [rsp + word], rdx
//! …    [addr + rax]          ; the leader's access
//! …    [rdx + distance]      ; a follower's, for as long as nobody has taken RDX; then it loads the word first
//! ```
//!
//! Out of line, a leader that misses asks the second way for the group; then for itself, which may enter its page in the TLB, and looks
//! once more for the group. If there is none, it leaves the block.

use std::mem::offset_of;

use super::emitter::{Emitter, Jump, NONE, Part, Target, runtime_mem};
use super::encode::{Alu, Mem, r};
use super::groups::{Alignment, Leader, Member};
use super::memos::guesses_of;
use super::second_way::{self, OnMiss};
use super::thunks::group_word;
use crate::backend::Refill;
use crate::env::Guesses;
use crate::ir::{Cond, MemFlags, Value, Width};
use crate::memory::PAGE_SIZE;
use crate::opt::OptFlags;

/// A look for the page of an access.
pub struct Look {
    /// The jump that is taken if it is not found.
    pub miss: Jump,
    /// Where that is to be continued with the page's addend in RAX.
    pub hit: Target,
    /// Where the bytes at the address are, if it is found.
    pub host: Mem,
}

/// Where an access finds its bytes on the host.
pub enum Place {
    /// In a group, there. The register is not to be taken for the result.
    Known(Mem, u8),
    /// It has to look for itself.
    Unknown,
}

impl Emitter<'_> {
    /// Emits what a member of a group does to find its bytes.
    pub fn find(&mut self, addr: Value, bytes: u32, mem: MemFlags, write: bool) -> Place {
        match self.b.groups.member(self.at) {
            Member::Leader(leader) => {
                self.count_access();
                self.lead(leader, addr, (bytes, mem, write))
            }
            Member::Follower { slot, distance, last } => {
                self.count_access();
                let v = self.b.live.group_value(slot);
                let mut base = self.b.reg[v];
                if base == NONE {
                    base = r::RAX;
                    if !last && let Some(spare) = self.spare() {
                        self.lend(spare, v);
                        base = spare;
                    }
                    self.asm().load(Width::W64, base, group_word(slot));
                }
                Place::Known(Mem::Base(base, distance.into()), base)
            }
            Member::Alone | Member::Lasting(_) => Place::Unknown,
        }
    }

    /// Emits the look of a group's leader, and leaves its host address for those that follow.
    fn lead(&mut self, leader: Leader, addr: Value, (bytes, mem, own_write): (u32, MemFlags, bool)) -> Place {
        let Leader { slot, low, high, write, align, followed } = leader;
        let addr = self.use_int(addr);
        let range = (low.into(), high.into());
        let Look { miss, hit: found, host } = self.look(addr, range, align, mem.mmu, write);
        self.clobber_flags();
        let was = self.branch_by(Part::Cold, miss);
        let across = self.jump_if_across(addr, range);
        if self.opt.contains(OptFlags::SECOND_WAY) {
            let of_group = Refill {
                mmu: mem.mmu,
                write,
                bytes: (range.1 - range.0).unsigned_abs().next_power_of_two() as u16,
            };
            let of_own = Refill { mmu: mem.mmu, write: own_write, bytes: bytes as u16 };
            let own_align = Alignment::of(if mem.align { bytes } else { 1 }, 0);
            let alone = (range, align, of_group) == ((0, bytes as i32), own_align, of_own);
            let on_miss = if alone { self.on_miss() } else { OnMiss::Return };
            self.ask_second_way(addr, (range.0, align), on_miss, of_group, found);
            let refill = self.on_miss();
            if !alone && refill != OnMiss::Return {
                // Its own page is certain to be wanted. If that was not in the TLB, it may be all that the group needs.
                let misaligned = self.jump_if_misaligned(addr, own_align);
                self.asm().mov_rr(r::RAX, addr);
                self.call_thunk(second_way::routine(self.thunks.second_way, refill, of_own));
                let none = self.asm().jcc(Cond::AE);
                let other = self.test_entry(addr, range, align, mem.mmu, write);
                self.jump_to(found);
                let here = self.here();
                for jump in misaligned.into_iter().chain([none, other]) {
                    self.fix(jump, here);
                }
            }
        }
        let here = self.here();
        self.fix(across, here);
        self.leave_group();
        self.part = was;
        if !followed {
            return Place::Known(host, r::RAX);
        }
        let v = self.b.live.group_value(slot);
        let (at, base) = match self.spare() {
            Some(spare) => {
                self.asm().lea_of(spare, host);
                self.lend(spare, v);
                (host, spare)
            }
            None => {
                match host {
                    Mem::Index(base, r::RAX) => self.asm().alu_rr(Alu::Add, Width::W64, r::RAX, base),
                    _ => self.asm().lea_of(r::RAX, host),
                }
                self.forget_value(v);
                (Mem::Base(r::RAX, 0), r::RAX)
            }
        };
        self.asm().store(Width::W64, group_word(slot), base);
        Place::Known(at, base)
    }

    /// The jump that is taken if a group lies across two pages, which saves looking for it. It is much smaller than a page, so
    /// the lowest bit of the page's number tells.
    fn jump_if_across(&mut self, addr: u8, (low, high): (i32, i32)) -> usize {
        let asm = self.asm();
        asm.lea(Width::W64, r::RAX, addr, None, low);
        asm.lea(Width::W64, r::RCX, addr, None, high - 1);
        asm.alu_rr(Alu::Xor, Width::W32, r::RAX, r::RCX);
        asm.test_ri(Width::W32, r::RAX, PAGE_SIZE as i32);
        asm.jcc(Cond::NE)
    }

    /// Looks for the page of an access in the best way that there is for it.
    pub fn look(&mut self, addr: u8, range: (i32, i32), align: Alignment, mmu: u8, write: bool) -> Look {
        if let Some(n) = self.b.memos.site(self.at) {
            return self.test_memo(addr, range, (mmu, write), n);
        }
        let miss = match self.b.chases.site(self.at) {
            Some(n) => self.test_guess(addr, range, align, (mmu, write), n),
            None => self.test_entry(addr, range, align, mmu, write),
        };
        Look { miss: self.jump(miss), hit: self.here(), host: Mem::Index(addr, r::RAX) }
    }

    /// As [`Emitter::test_entry`], of an access that guesses (see `chases`):
    ///
    /// ```text
    /// …                                      ; the comparison of the tag, as ever
    /// mov  rcx, [guess]
    /// cmp  rcx, [r11 + rax + addend]
    /// jne  wrong                             ; out of line: mov rcx, [r11 + rax + addend]; mov [guess], rcx; inc [count]
    /// mov  rax, rcx
    /// ```
    fn test_guess(
        &mut self,
        addr: u8,
        range: (i32, i32),
        align: Alignment,
        (mmu, write): (u8, bool),
        n: usize,
    ) -> usize {
        let guesses = guesses_of(self.tb);
        let guess = runtime_mem(guesses + offset_of!(Guesses, addends) + 8 * n);
        let addend = self.compare_entry(addr, range, align, mmu, write);
        let miss = self.asm().jcc(Cond::NE);
        self.asm().load(Width::W64, r::RCX, guess);
        self.asm().alu_rm(Alu::Cmp, Width::W64, r::RCX, addend);
        let wrong = self.asm().jcc(Cond::NE);
        let back = self.here();
        self.asm().mov_rr(r::RAX, r::RCX);
        let was = self.branch_to(Part::Cold, wrong);
        self.asm().load(Width::W64, r::RCX, addend);
        self.asm().store(Width::W64, guess, r::RCX);
        self.asm().incdec_mem32(0, runtime_mem(guesses + offset_of!(Guesses, wrong) + 4 * n));
        self.jump_to(back);
        self.part = was;
        miss
    }

    /// Counts a round of a trace that guesses or has memos.
    pub fn count_guesses(&mut self) {
        if self.out.guesses {
            let rounds = runtime_mem(guesses_of(self.tb) + offset_of!(Guesses, rounds));
            self.asm().incdec_mem32(0, rounds);
            self.clobber_flags();
        }
    }
}
