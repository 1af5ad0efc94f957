//! Emission of guest memory accesses: the inline TLB hit path, and calls of the slow path out of line.
//!
//! Hit path for an access of `n` bytes at `addr`, RAX and RCX being scratch:
//!
//! ```text
//! rorx eax, addr, 7         lea  rcx, [addr + n - 1]
//! and  eax, INDEX_MASK      and  rcx, -4096           ; RAX: the entry's offset
//! cmp  rcx, [r11 + rax + tag]                         ; a page-crossing access never matches
//! jne  slow
//! mov  rax, [r11 + rax + addend]
//! …    [addr + rax]
//! ```
//!
//! Of an address that is constant, entry and tag are constants, too. R11 is the TLB of the block's main MMU mode; accesses
//! in another add that mode's `env.tlb` to RAX instead.
//!
//! An access that must be aligned crosses no page if it is, so the tag is compared with `addr & (-4096 | n - 1)`: then a
//! misaligned one never matches, either. Out of line, it is told apart before the second way is asked, and left to the slow
//! path, which raises the guest's exception.
//!
//! Out of line, a thunk first looks at the table's second way (see [`crate::softmmu`]), from whose entry the hit path can
//! go on:
//!
//! ```text
//! slow: mov  rax, addr
//!       call second_way     ; of this size, direction and MMU mode; leaves RAX = addend; may enter the page in the TLB
//!       jb   hit
//!       mov  eax, point
//!       mov  ecx, block
//!       call slow_access
//!       jmp  back
//! ```
//!
//! Accesses close to each other share one test: see `groups` and `members`. Everything else that the slow path needs is in the point's side table.

use std::mem::offset_of;

use super::TLB;
use super::emitter::{Emitter, Jump, NONE, Part, Target, env_mem};
use super::encode::{Alu, AtomicOp, Mem, Shift, r};
use super::groups::{Alignment, Leader, Member};
use super::liveness::NEVER;
use super::members::{Look, Place};
use super::second_way::{self, OnMiss};
use super::thunks::group_word;
use super::vec::{VecMem, emit_masked_load, emit_masked_store, emit_vec_load, emit_vec_store};
use crate::backend::{AccessKind, DISCARD, Loc, Refill, SlowAccess};
use crate::env::Header;
use crate::ir::{Cond, Ext, Inst, MemFlags, RmwOp, Value, VecLen, VecSize, Width};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::opt::OptFlags;
use crate::softmmu::{TLB_ENTRIES, TlbEntry};

/// A hit path whose other half is to be emitted out of line.
struct Miss {
    /// The jump that leaves it.
    jcc: Jump,
    /// Where it is to be continued with the entry's addend in RAX.
    hit: Target,
    /// Where the bytes are on the hit path.
    host: Mem,
    /// The group that it looks for, which lasts for all rounds.
    lasting: Option<Leader>,
    addr: u8,
    /// What is to be looked for in the rest of the TLB.
    of: Refill,
    /// Whether the page may be entered in the TLB before anything else is known: not if the access may turn out not to be one.
    refill: bool,
    /// What the access itself must be aligned to.
    align: u32,
}

/// Bytes of a vector.
fn vec_bytes(len: VecLen) -> u32 {
    match len {
        VecLen::V128 => 16,
        VecLen::V256 => 32,
    }
}

const ADDEND: i32 = offset_of!(TlbEntry, addend) as i32;

/// Offset in an entry of the tag that allows an access.
fn tag_field(write: bool) -> usize {
    if write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) }
}

impl Emitter<'_> {
    /// What a routine of the second way may do for an access that is certain to be done.
    pub fn on_miss(&self) -> OnMiss {
        match self.b.live.has_vec {
            false => OnMiss::Refill,
            true if !self.upper => OnMiss::RefillVec,
            true => OnMiss::Return,
        }
    }

    /// Emits the hit test of an access that looks for itself; unless it has a memo, RAX is the host address minus `addr`
    /// afterwards.
    fn tlb(&mut self, addr: u8, bytes: u32, mem: MemFlags, write: bool) -> Miss {
        self.count_access();
        let align = if mem.align { bytes } else { 1 };
        let mut lasting = None;
        let Look { miss: jcc, hit, host } = if let Member::Lasting(group) = self.b.groups.member(self.at) {
            lasting = Some(group);
            let asm = self.asm();
            asm.load(Width::W64, r::RAX, group_word(group.slot));
            asm.test_rr(Width::W64, r::RAX, r::RAX);
            let empty = asm.jcc(Cond::E);
            Look { miss: self.jump(empty), hit: self.here(), host: Mem::Index(addr, r::RAX) }
        } else {
            self.look(addr, (0, bytes as i32), Alignment::of(align, 0), mem.mmu, write)
        };
        self.clobber_flags();
        Miss {
            jcc,
            hit,
            host,
            lasting,
            addr,
            of: Refill { mmu: mem.mmu, write, bytes: bytes as u16 },
            refill: true,
            align,
        }
    }

    /// Tests whether all bytes from `addr + low` to `addr + high` (exclusive) are in one page that the first way has, and
    /// `addr` is aligned; afterwards RAX is the entry's addend. Returns the jump that is taken if not.
    pub fn test_entry(
        &mut self,
        addr: u8,
        (low, high): (i32, i32),
        align: Alignment,
        mmu: u8,
        write: bool,
    ) -> usize {
        let tag = tag_field(write);
        if mmu == self.block.main_mmu
            && let Some((page, entry)) = self.constant_page(low, high, align)
        {
            // Entry and tag are known.
            if page as i64 == page as i32 as i64 {
                self.asm().alu_mi(Alu::Cmp, Width::W64, Mem::Base(TLB, entry + tag as i32), page as i32);
            } else {
                self.asm().mov_ri(r::RCX, page);
                self.asm().alu_rm(Alu::Cmp, Width::W64, r::RCX, Mem::Base(TLB, entry + tag as i32));
            }
            let miss = self.asm().jcc(Cond::NE);
            self.asm().load(Width::W64, r::RAX, Mem::Base(TLB, entry + ADDEND));
            return miss;
        }
        let addend = self.compare_entry(addr, (low, high), align, mmu, write);
        let miss = self.asm().jcc(Cond::NE);
        self.asm().load(Width::W64, r::RAX, addend);
        miss
    }

    /// The comparison of [`Emitter::test_entry`]: the host's flags are "equal" if all is well. Returns where the entry's
    /// addend is, by way of RAX. `addr` may be RCX.
    pub fn compare_entry(
        &mut self,
        addr: u8,
        (low, high): (i32, i32),
        align: Alignment,
        mmu: u8,
        write: bool,
    ) -> Mem {
        const ENTRY_BITS: u32 = size_of::<TlbEntry>().trailing_zeros();
        const INDEX_MASK: i32 = ((TLB_ENTRIES - 1) << ENTRY_BITS) as i32;
        let tag = tag_field(write);
        let table = offset_of!(Header, tlb) as u32 + 8 * mmu as u32;
        let main = mmu == self.block.main_mmu;
        let asm = self.asm();
        if low == 0 {
            asm.rorx32(r::RAX, addr, (12 - ENTRY_BITS) as u8);
        } else {
            asm.lea(Width::W64, r::RAX, addr, None, low);
            asm.shift_ri(Shift::Shr, Width::W32, r::RAX, (12 - ENTRY_BITS) as u8);
        }
        // The last byte, or one in the same page at which what must be aligned would be.
        match high - 1 - align.beyond(high - 1) {
            0 => asm.mov_rr(r::RCX, addr),
            distance => asm.lea(Width::W64, r::RCX, addr, None, distance),
        }
        // What does not depend on registers is copied from a template: there are more accesses than anything else.
        const MASK: [u8; 4] = INDEX_MASK.to_le_bytes();
        let low_bits = (align.bytes - 1) as u8;
        #[rustfmt::skip]
        asm.buf.extend_from_slice(&[
            0x25, MASK[0], MASK[1], MASK[2], MASK[3], // and eax, INDEX_MASK
            0x48, 0x81, 0xe1, low_bits, 0xf0, 0xff, 0xff, // and rcx, -4096 | low_bits
        ]);
        if !main {
            asm.alu_rm(Alu::Add, Width::W64, r::RAX, env_mem(table));
        }
        let field = |at: i32| if main { Mem::Scaled(TLB, r::RAX, 0, at) } else { Mem::Base(r::RAX, at) };
        asm.alu_rm(Alu::Cmp, Width::W64, r::RCX, field(tag as i32));
        field(ADDEND)
    }

    /// The page of the bytes from `low` to `high` (exclusive) from the current access's address, if that is a constant, they
    /// are in one page, and the alignment is right; and its entry's offset.
    fn constant_page(&self, low: i32, high: i32, align: Alignment) -> Option<(u64, i32)> {
        let addr = match self.block.insts[self.at] {
            Inst::Load { addr, .. }
            | Inst::Store { addr, .. }
            | Inst::LoadVec { addr, .. }
            | Inst::StoreVec { addr, .. } => self.constant(self.b.live.resolve(addr))?,
            _ => return None,
        };
        let page = addr.wrapping_add_signed(low.into()) & !PAGE_MASK;
        let last = addr.wrapping_add_signed(i64::from(high) - 1);
        let entry = (page / PAGE_SIZE % TLB_ENTRIES as u64) as usize * size_of::<TlbEntry>();
        let aligned = addr.wrapping_add(align.distance.into()).is_multiple_of(align.bytes.into());
        (aligned && last & !PAGE_MASK == page).then_some((page, entry as i32))
    }

    /// Emits the slow path of an access whose hit path ends here.
    fn slow(&mut self, miss: Miss, point: u32) {
        let back = self.here();
        let was = self.branch_by(Part::Cold, miss.jcc);
        let uses_vec = self.b.live.has_vec;
        let second_way = self.opt.contains(OptFlags::SECOND_WAY);
        let own = Alignment::of(miss.align, 0);
        // The access is certain to be done, so its page may be entered in the TLB.
        let on_miss = if miss.refill { self.on_miss() } else { OnMiss::Return };
        let mut asked = false;
        if let Some(group) = miss.lasting {
            asked = self.look_for_lasting(&miss, group, own, on_miss);
        }
        if second_way && !asked {
            self.ask_second_way(miss.addr, (0, own), on_miss, miss.of, miss.hit);
        }
        let thunk = if uses_vec { self.thunks.slow_vec } else { self.thunks.slow };
        let (p, tb) = (point.to_le_bytes(), self.tb.to_le_bytes());
        #[rustfmt::skip]
        self.asm().buf.extend_from_slice(&[
            0xb8, p[0], p[1], p[2], p[3],     // mov eax, point
            0xb9, tb[0], tb[1], tb[2], tb[3], // mov ecx, block
        ]);
        self.call_thunk(thunk);
        if uses_vec && !self.upper {
            // The thunk has reloaded all 256 bits of registers whose upper halves are zero.
            self.asm().vzeroupper();
        }
        let at = self.asm().jmp();
        self.fix(at, back);
        self.part = was;
    }

    /// What a member of a group that lasts does if the slot is empty: it looks for the group, and fills the slot; if there is no
    /// page for the group, it looks for itself in the first way. Whether it has asked the second way for itself.
    fn look_for_lasting(&mut self, miss: &Miss, group: Leader, own: Alignment, on_miss: OnMiss) -> bool {
        let Leader { slot, low, high, write, align, .. } = group;
        let (range, own_range) = ((low.into(), high.into()), (0, miss.of.bytes.into()));
        let alone = (range, align, write) == (own_range, own, miss.of.write);
        let mmu = miss.of.mmu;
        let none = self.test_entry(miss.addr, range, align, mmu, write);
        let found = self.here();
        self.asm().store(Width::W64, group_word(slot), r::RAX);
        self.jump_to(miss.hit);
        let here = self.here();
        self.fix(none, here);
        if !alone {
            let none = self.test_entry(miss.addr, own_range, own, mmu, miss.of.write);
            self.jump_to(miss.hit);
            let here = self.here();
            self.fix(none, here);
        }
        if self.opt.contains(OptFlags::SECOND_WAY) {
            let size = (range.1 - range.0) as u32;
            let of = Refill { mmu, write, bytes: size.next_power_of_two() as u16 };
            let on_miss = if alone { on_miss } else { OnMiss::Return };
            self.ask_second_way(miss.addr, (range.0, align), on_miss, of, found);
        }
        alone
    }

    /// Calls a routine of the second way for `addr + distance`, and goes on at `hit` if there is an entry. Does not if `addr`
    /// is not aligned.
    pub fn ask_second_way(
        &mut self,
        addr: u8,
        (distance, align): (i32, Alignment),
        on_miss: OnMiss,
        of: Refill,
        hit: Target,
    ) {
        let routine = second_way::routine(self.thunks.second_way, on_miss, of);
        let misaligned = self.jump_if_misaligned(addr, align);
        match distance {
            0 => self.asm().mov_rr(r::RAX, addr),
            _ => self.asm().lea(Width::W64, r::RAX, addr, None, distance),
        }
        self.call_thunk(routine);
        let jcc = self.asm().jcc(Cond::B);
        self.fix(jcc, hit);
        if let Some(jcc) = misaligned {
            let here = self.here();
            self.fix(jcc, here);
        }
    }

    /// The jump that is taken if `addr` is not aligned, unless it need not be.
    pub fn jump_if_misaligned(&mut self, addr: u8, align: Alignment) -> Option<usize> {
        (align.bytes > 1).then(|| {
            let asm = self.asm();
            asm.lea(Width::W64, r::RAX, addr, None, align.distance.into());
            asm.test_ri(Width::W8, r::RAX, (align.bytes - 1) as i32);
            asm.jcc(Cond::NE)
        })
    }

    /// `call rel32` of a thunk.
    pub fn call_thunk(&mut self, thunk: u64) {
        self.asm().buf.extend_from_slice(&[0xe8, 0, 0, 0, 0]);
        let at = self.asm().len() - 4;
        self.fix(at, Target::Abs(thunk));
    }

    fn access(&mut self, kind: AccessKind, addr: u8, mem: MemFlags) -> u32 {
        let align = if mem.align { kind.bytes() as u8 } else { 1 };
        self.point(Some(SlowAccess { kind, addr: Loc::Int(addr), mmu: mem.mmu, align }))
    }

    /// Completes the destination of the last point's access.
    fn set_point_dst(&mut self, point: u32, reg: u8) {
        let access = self.out.points[point as usize].access.as_mut().expect("the point is an access");
        match &mut access.kind {
            AccessKind::Load { dst, .. }
            | AccessKind::LoadVec { dst, .. }
            | AccessKind::LoadMasked { dst, .. }
            | AccessKind::AtomicRmw { dst, .. }
            | AccessKind::AtomicCas { dst, .. } => *dst = reg,
            AccessKind::Store { .. } | AccessKind::StoreVec { .. } | AccessKind::StoreMasked { .. } => {}
        }
    }

    /// [`Inst::Load`](crate::ir::Inst::Load).
    pub fn load(&mut self, width: Width, ext: Ext, addr: Value, mem: MemFlags) {
        if self.b.groups.follows(self.at) && self.b.live.values[self.at].last_use == NEVER {
            return;
        }
        if let Place::Known(host, base) = self.find(addr, width.bytes(), mem, mem.for_write) {
            let dst = self.define(NONE, 1 << base);
            self.asm().load_ext(width, ext, dst, host);
            return;
        }
        let ra = self.use_int(addr);
        let kind = AccessKind::Load { width, ext, dst: 0, for_write: mem.for_write };
        let point = self.access(kind, ra, mem);
        let dst = self.define(NONE, 0);
        let wanted = !mem.for_write || self.b.live.values[self.at].last_use > self.at as u32;
        self.set_point_dst(point, if wanted { dst } else { DISCARD });
        let miss = self.tlb(ra, width.bytes(), mem, mem.for_write);
        self.asm().load_ext(width, ext, dst, miss.host);
        self.slow(miss, point);
    }

    /// [`Inst::Store`](crate::ir::Inst::Store).
    pub fn store(&mut self, width: Width, addr: Value, v: Value, mem: MemFlags) {
        let value = self.b.live.resolve(v);
        let imm = self.imm(value, width);
        if self.b.groups.member(self.at).is_grouped() {
            // Before the search, whose result may be in a scratch register.
            let rv = if imm.is_none() { self.use_int(v) } else { NONE };
            let Place::Known(host, _) = self.find(addr, width.bytes(), mem, true) else {
                unreachable!("members of groups know their place")
            };
            match imm {
                Some(imm) => self.asm().store_imm(width, host, imm),
                None => self.asm().store(width, host, rv),
            }
            return;
        }
        let ra = self.use_int(addr);
        let (rv, loc) = match imm {
            Some(_) => (NONE, Loc::Const(self.constant(value).unwrap_or(0))),
            None => {
                let rv = self.use_int(v);
                (rv, Loc::Int(rv))
            }
        };
        let point = self.access(AccessKind::Store { width, v: loc }, ra, mem);
        let miss = self.tlb(ra, width.bytes(), mem, true);
        match imm {
            Some(imm) => self.asm().store_imm(width, miss.host, imm),
            None => self.asm().store(width, miss.host, rv),
        }
        self.slow(miss, point);
    }

    /// [`Inst::LoadVec`](crate::ir::Inst::LoadVec).
    pub fn load_vec(&mut self, size: VecSize, addr: Value, mem: MemFlags) {
        if let Place::Known(host, _) = self.find(addr, size.bytes(), mem, mem.for_write) {
            let dst = self.define_vec(NONE, 0);
            self.upper |= size == VecSize::B32;
            emit_vec_load(&mut self.asm().buf, size, dst, host.into());
            return;
        }
        let ra = self.use_int(addr);
        let point = self.access(AccessKind::LoadVec { size, dst: 0 }, ra, mem);
        let dst = self.define_vec(NONE, 0);
        self.set_point_dst(point, dst);
        let miss = self.tlb(ra, size.bytes(), mem, mem.for_write);
        self.upper |= size == VecSize::B32;
        emit_vec_load(&mut self.asm().buf, size, dst, miss.host.into());
        self.slow(miss, point);
    }

    /// [`Inst::StoreVec`](crate::ir::Inst::StoreVec).
    pub fn store_vec(&mut self, size: VecSize, addr: Value, v: Value, mem: MemFlags) {
        let rv = self.use_vec(v);
        if let Place::Known(host, _) = self.find(addr, size.bytes(), mem, true) {
            emit_vec_store(&mut self.asm().buf, size, rv, host.into());
            return;
        }
        let ra = self.use_int(addr);
        let point = self.access(AccessKind::StoreVec { size, v: Loc::Vec(rv) }, ra, mem);
        let miss = self.tlb(ra, size.bytes(), mem, true);
        emit_vec_store(&mut self.asm().buf, size, rv, miss.host.into());
        self.slow(miss, point);
    }

    /// [`Inst::LoadMasked`](crate::ir::Inst::LoadMasked): directly if the whole vector lies in a page at hand.
    pub fn load_masked(&mut self, width: Width, len: VecLen, addr: Value, mask: Value, mem: MemFlags) {
        let ra = self.use_int(addr);
        let rm = self.use_vec(mask);
        let point = self.access(AccessKind::LoadMasked { width, len, mask: Loc::Vec(rm), dst: 0 }, ra, mem);
        let dst = self.define_vec(NONE, 0);
        self.set_point_dst(point, dst);
        let miss = self.tlb(ra, vec_bytes(len), mem, mem.for_write);
        self.upper |= len == VecLen::V256;
        emit_masked_load(&mut self.asm().buf, width, len, dst, rm, VecMem::indexed(ra, r::RAX));
        self.slow(Miss { refill: false, ..miss }, point);
    }

    /// [`Inst::StoreMasked`](crate::ir::Inst::StoreMasked), as [`Emitter::load_masked`].
    pub fn store_masked(
        &mut self,
        width: Width,
        len: VecLen,
        addr: Value,
        v: Value,
        mask: Value,
        mem: MemFlags,
    ) {
        let ra = self.use_int(addr);
        let (rv, rm) = (self.use_vec(v), self.use_vec(mask));
        let kind = AccessKind::StoreMasked { width, len, v: Loc::Vec(rv), mask: Loc::Vec(rm) };
        let point = self.access(kind, ra, mem);
        let miss = self.tlb(ra, vec_bytes(len), mem, true);
        emit_masked_store(&mut self.asm().buf, width, len, rv, rm, VecMem::indexed(ra, r::RAX));
        self.slow(Miss { refill: false, ..miss }, point);
    }

    /// [`Inst::AtomicRmw`](crate::ir::Inst::AtomicRmw).
    pub fn atomic_rmw(&mut self, op: RmwOp, width: Width, addr: Value, v: Value, mem: MemFlags) {
        let ra = self.use_int(addr);
        let rv = self.use_int(v);
        let temp = if matches!(op, RmwOp::And | RmwOp::Or | RmwOp::Xor) { self.temp() } else { NONE };
        let kind = AccessKind::AtomicRmw { op, width, v: Loc::Int(rv), dst: 0 };
        let point = self.access(kind, ra, mem);
        let avoid = if temp != NONE { 1 << temp } else { 0 };
        let dst = self.define(NONE, avoid);
        self.set_point_dst(point, dst);
        let miss = self.tlb(ra, width.bytes(), mem, true);
        let asm = self.asm();
        asm.lea(Width::W64, r::RCX, ra, Some((r::RAX, 0)), 0);
        let host = Mem::Base(r::RCX, 0);
        match op {
            RmwOp::Xchg => {
                asm.mov_rr(r::RAX, rv);
                asm.atomic(AtomicOp::Xchg, width, host, r::RAX);
            }
            RmwOp::Add | RmwOp::Sub => {
                asm.mov_rr(r::RAX, rv);
                if op == RmwOp::Sub {
                    asm.group3(3, Width::W64, r::RAX);
                }
                asm.atomic(AtomicOp::Xadd, width, host, r::RAX);
            }
            RmwOp::And | RmwOp::Or | RmwOp::Xor => {
                let alu = match op {
                    RmwOp::And => Alu::And,
                    RmwOp::Or => Alu::Or,
                    _ => Alu::Xor,
                };
                asm.load(width, r::RAX, host);
                let retry = asm.len();
                asm.mov_rr(temp, r::RAX);
                asm.alu_rr(alu, Width::W64, temp, rv);
                asm.atomic(AtomicOp::Cmpxchg, width, host, temp);
                let again = asm.jcc(Cond::NE);
                asm.patch_rel32(again, retry);
            }
        }
        asm.movzx(width, dst, r::RAX);
        self.clobber_flags();
        self.slow(miss, point);
    }

    /// [`Inst::AtomicCas`](crate::ir::Inst::AtomicCas).
    pub fn atomic_cas(&mut self, width: Width, addr: Value, expect: Value, new: Value, mem: MemFlags) {
        let (ra, re, rn) = (self.use_int(addr), self.use_int(expect), self.use_int(new));
        let kind = AccessKind::AtomicCas { width, expect: Loc::Int(re), new: Loc::Int(rn), dst: 0 };
        let point = self.access(kind, ra, mem);
        let dst = self.define(NONE, 0);
        self.set_point_dst(point, dst);
        let miss = self.tlb(ra, width.bytes(), mem, true);
        let asm = self.asm();
        asm.lea(Width::W64, r::RCX, ra, Some((r::RAX, 0)), 0);
        asm.mov_rr(r::RAX, re);
        asm.atomic(AtomicOp::Cmpxchg, width, Mem::Base(r::RCX, 0), rn);
        asm.movzx(width, dst, r::RAX);
        self.clobber_flags();
        self.slow(miss, point);
    }
}
