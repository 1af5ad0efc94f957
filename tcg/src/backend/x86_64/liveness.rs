//! What the emitter must know before it starts: how long each value lives, and where it would like to be.
//!
//! One pass forward resolves `Get` to the value it reads; one pass backward finds each value's last use. A value
//! that is a global's current value lives until the last *observer* before the global is set again, because a fault
//! or an exit there must be able to find it. Flags values keep alive what they are computed from, since they are
//! emitted where they are used.
//!
//! Between the two the groups of accesses are found ([`groups`](super::groups)): their followers observe nothing.
//!
//! Pseudo-values: the content of a pinned global's register at the block's entry, or after a helper wrote it, is a
//! value, too; these have numbers from `insts.len()` upwards.

use std::ops::Range;

use super::groups::{Groups, OPEN};
use crate::backend::GuestInfo;
use crate::ir::{
    BinOp, Block, Cond, ExitId, Ext, FlagOp, GlobalId, GlobalSet, Inst, Ty, Value, VecLen, VecSize, Width,
    flags,
};

/// No value.
pub const NO_VALUE: u32 = u32::MAX;
/// Never used.
pub const NEVER: u32 = 0;

/// What the analysis says of one instruction and the value it defines, or of a pseudo-value.
#[derive(Clone, Copy)]
pub struct Info {
    /// The value it stands for: another one for a `Get` of what is known, else itself.
    pub alias: u32,
    /// Index of the last instruction at which the value must be available; [`NEVER`] if none.
    pub last_use: u32,
    /// For flags values: the instruction that computes the result of the same operation from the same operands
    /// directly before, or [`NO_VALUE`].
    pub companion: u32,
    /// The flags value whose [`Info::companion`] it is, or [`NO_VALUE`].
    pub fused: u32,
    /// For flags values: packed-layout bits that any use looks at.
    pub flag_demand: u32,
    /// Wanted host register, or 255.
    pub hint: u8,
    /// Bits (8, 16, 32 or 64) that any use looks at; the emitter may leave the rest undefined.
    pub demand: u8,
    /// It is a `Set` that no one observes.
    pub dead_set: bool,
    /// The value in whose low bits an operation of 8 or 16 bits is done, and which has them like the operation's first operand:
    /// the operation then stands for the `Insert` of its result there. [`NO_VALUE`] if it is not.
    pub merges: u32,
    /// A `SetCond` is emitted by the `Insert` of its result, as the only one who wants it.
    pub deferred: bool,
}

impl Info {
    fn new(v: u32) -> Info {
        Info {
            alias: v,
            last_use: NEVER,
            companion: NO_VALUE,
            fused: NO_VALUE,
            flag_demand: 0,
            hint: 255,
            demand: 0,
            dead_set: false,
            merges: NO_VALUE,
            deferred: false,
        }
    }
}

/// Results of the analysis, and its scratch memory.
pub struct Liveness {
    /// By value.
    pub values: Vec<Info>,
    /// Globals pinned and their pseudo-values, in order of creation: (index of the first instruction that sees it,
    /// global).
    /// The value's number is `insts.len()` plus the index.
    pub pseudo: Vec<(u32, GlobalId)>,
    /// Instructions of the block.
    insts: usize,
    /// Whether the block has vector values.
    pub has_vec: bool,
    /// Guest memory accesses in the block, but for atomic and masked ones.
    pub accesses: u32,
    /// Where they are: from the start of the first one's guest instruction to behind the last one.
    pub accessing: Range<usize>,
    /// Going forward, the value of each global, where known.
    current: [u32; 64],
    /// Going backward, the next observer of each global.
    observed_until: [u32; 64],
    /// Going backward, the globals that nobody further down observes: their `observed_until` is [`NEVER`].
    unobserved: GlobalSet,
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness {
            values: Vec::new(),
            pseudo: Vec::new(),
            insts: 0,
            has_vec: false,
            accesses: 0,
            accessing: 0..0,
            current: [NO_VALUE; 64],
            observed_until: [NEVER; 64],
            unobserved: GlobalSet::ALL,
        }
    }
}

/// The packed bits that a condition reads.
pub fn cond_bits(cond: Cond) -> u32 {
    match cond as u8 >> 1 {
        0 => flags::V,
        1 => flags::C,
        2 => flags::Z,
        3 => flags::C | flags::Z,
        4 => flags::N,
        5 => flags::P,
        6 => flags::N | flags::V,
        _ => flags::Z | flags::N | flags::V,
    }
}

/// Whether a vector value's upper 128 bits are known to be zero.
fn low_half_only(block: &Block, guest: &GuestInfo, v: usize) -> bool {
    match block.insts[v] {
        Inst::VecZero | Inst::VecFromInt { .. } | Inst::VecIns { .. } => true,
        Inst::LoadVec { size, .. } => size != VecSize::B32,
        Inst::Vec { len, .. } | Inst::Vec3 { len, .. } | Inst::LoadMasked { len, .. } => len == VecLen::V128,
        Inst::Get(g) => guest.globals[g.0 as usize].bytes == 16,
        _ => false,
    }
}

/// Instructions between an operation and the `Insert` of its result, at most.
const MERGE_REACH: usize = 4;

/// Whether the emitter can do an operation in the low bits of a register.
fn merges(op: BinOp, second: Option<u64>) -> bool {
    match op {
        BinOp::Add | BinOp::Sub | BinOp::And | BinOp::Or | BinOp::Xor => true,
        BinOp::Shl | BinOp::Shr | BinOp::Sar | BinOp::Rol | BinOp::Ror => second.is_some_and(|c| c & 31 != 0),
        _ => false,
    }
}

impl Liveness {
    /// Begins to analyse a block: afterwards it is known what values stand for.
    pub fn begin(&mut self, block: &Block, guest: &GuestInfo, pinned: GlobalSet) {
        let n = block.insts.len();
        self.insts = n;
        self.pseudo.clear();
        self.has_vec = false;
        (self.accesses, self.accessing) = (0, 0..0);
        self.current = [NO_VALUE; 64];
        for g in pinned.iter() {
            self.current[g.0 as usize] = (n + self.pseudo.len()) as u32;
            self.pseudo.push((0, g));
        }
        self.values.clear();
        self.values.extend((0..n as u32).map(Info::new));
        self.forward(block, guest, pinned);
        let total = self.group_value(0) + OPEN;
        self.values.extend((n as u32..total as u32).map(Info::new));
    }

    /// The value that the host address of a group's leader is. Nobody keeps it alive: it is in memory, too.
    pub fn group_value(&self, slot: u8) -> usize {
        self.insts + self.pseudo.len() + usize::from(slot)
    }

    /// The value that `v` stands for; pseudo-values stand for themselves.
    #[inline]
    pub fn resolve(&self, v: Value) -> usize {
        // A `Get` of what was inserted stands for the `Insert`, and that may stand for what makes it.
        self.values[self.known(v)].alias as usize
    }

    /// After values were made to stand for others: sees to it that none stands for one that does so itself.
    pub fn resolve_again(&mut self) {
        for i in 0..self.insts {
            self.values[i].alias = self.values[self.values[i].alias as usize].alias;
        }
    }

    /// Going forward, the value that `v` stands for.
    #[inline]
    fn known(&self, v: Value) -> usize {
        self.values[v.index()].alias as usize
    }

    fn forward(&mut self, block: &Block, guest: &GuestInfo, pinned: GlobalSet) {
        let n = block.insts.len();
        let mut start = 0;
        for (i, inst) in block.insts.iter().enumerate() {
            match *inst {
                Inst::InsnStart { .. } => start = i,
                Inst::Get(g) => {
                    let gi = g.0 as usize;
                    if self.current[gi] == NO_VALUE {
                        self.current[gi] = i as u32;
                        self.has_vec |= guest.globals[gi].ty == Ty::Vec;
                    } else {
                        self.values[i].alias = self.current[gi];
                    }
                }
                Inst::Set(g, v) => {
                    let value = self.known(v);
                    // What is cut off by the store may not come back by a `Get`: that one reads memory.
                    let cut = guest.globals[g.0 as usize].bytes == 16 && !low_half_only(block, guest, value);
                    self.current[g.0 as usize] = if cut { NO_VALUE } else { value as u32 };
                    if let Some(o) = guest.globals[g.0 as usize].overlaps {
                        self.current[o.0 as usize] = NO_VALUE;
                    }
                }
                Inst::ZeroUpper(set) => {
                    for g in set.iter() {
                        self.current[g.0 as usize] = NO_VALUE;
                    }
                }
                Inst::Call { helper, .. } => {
                    let writes = guest.helper_changes(&guest.helpers[helper.0 as usize].effects);
                    for g in writes.iter() {
                        let gi = g.0 as usize;
                        self.current[gi] = NO_VALUE;
                        if pinned.contains(g) {
                            self.current[gi] = (n + self.pseudo.len()) as u32;
                            self.pseudo.push((i as u32 + 1, g));
                        }
                    }
                }
                Inst::Flags { .. } => self.find_companion(block, i),
                Inst::Load { .. } | Inst::Store { .. } | Inst::StoreVec { .. } => self.note_access(i, start),
                Inst::LoadVec { .. } => {
                    self.note_access(i, start);
                    self.has_vec = true;
                }
                Inst::VecZero
                | Inst::LoadMasked { .. }
                | Inst::Vec { .. }
                | Inst::Vec3 { .. }
                | Inst::VecIns { .. }
                | Inst::VecFromInt { .. } => self.has_vec = true,
                _ => {}
            }
        }
    }

    /// Notes that instruction `at` is an access, of the guest instruction that begins at `start`.
    fn note_access(&mut self, at: usize, start: usize) {
        if self.accesses == 0 {
            self.accessing.start = start;
        }
        self.accessing.end = at + 1;
        self.accesses += 1;
    }

    /// What instruction `at` observes.
    #[inline]
    fn observe(&mut self, at: u32, set: GlobalSet) {
        let new = GlobalSet(set.0 & self.unobserved.0);
        self.unobserved.0 &= !set.0;
        if new == GlobalSet::ALL {
            // The end of a block.
            self.observed_until = [at; 64];
        } else {
            for g in new.iter() {
                self.observed_until[g.0 as usize] = at;
            }
        }
    }

    /// What is overwritten here is not what those below observe.
    #[inline]
    fn forget(&mut self, g: GlobalId) {
        self.observed_until[g.0 as usize] = NEVER;
        self.unobserved.insert(g);
    }

    /// Going backward, at an instruction: whether nobody uses its value, if it has one.
    #[inline]
    fn is_unused(&self, i: usize) -> bool {
        self.values[i].last_use == NEVER
    }

    #[inline]
    fn use_at(&mut self, v: usize, at: u32, bits: u8) {
        let info = &mut self.values[v];
        info.last_use = info.last_use.max(at);
        info.demand = info.demand.max(bits);
    }

    /// As [`Liveness::use_at`], of the operand whose register the result of instruction `at` takes if nobody else wants the
    /// operand: then it may as well be made where the result is wanted.
    #[inline]
    fn become_at(&mut self, v: usize, at: u32, bits: u8) {
        let hint = self.values[at as usize].hint;
        let info = &mut self.values[v];
        if info.last_use == NEVER && info.hint == 255 {
            info.hint = hint;
        }
        self.use_at(v, at, bits);
    }

    fn use_flags(&mut self, block: &Block, v: Value, at: u32, bits: u32) {
        let v = self.flags_source(block, self.resolve(v), bits);
        self.use_at(v, at, 64);
        self.values[v].flag_demand |= bits;
    }

    /// Ends the analysis of a block whose accesses are in these groups.
    pub fn finish(&mut self, block: &Block, guest: &GuestInfo, pin_reg: &[u8; 64], groups: &Groups) {
        let n = block.insts.len();
        self.observed_until = [NEVER; 64];
        self.unobserved = GlobalSet::ALL;
        let mut pseudo_left = self.pseudo.len();
        let live_at = |exit: ExitId| {
            let exit = &block.exits[exit.0 as usize];
            let pc = if exit.indirect { GlobalSet::NONE } else { GlobalSet::of(guest.pc) };
            GlobalSet(!exit.dead.or(pc).0)
        };
        for i in (0..n).rev() {
            let at = i as u32;
            let inst = &block.insts[i];
            match *inst {
                Inst::Goto(e) => self.observe(at, live_at(e)),
                Inst::Branch { cond, f, taken, fall } => {
                    self.observe(at, live_at(taken).or(live_at(fall)));
                    self.use_flags(block, f, at, cond_bits(cond));
                }
                Inst::GotoIndirect | Inst::Leave { .. } => self.observe(at, GlobalSet::ALL),
                Inst::ExitIf { cond, f, exit } => {
                    if block.exits[exit.0 as usize].indirect {
                        // It was set for this exit alone.
                        self.forget(guest.pc);
                    }
                    self.observe(at, live_at(exit));
                    self.use_flags(block, f, at, cond_bits(cond));
                }
                Inst::Call { helper, args } => {
                    let effects = guest.helpers[helper.0 as usize].effects;
                    if effects.pure && self.is_unused(i) {
                        continue;
                    }
                    for g in guest.helper_changes(&effects).iter() {
                        let gi = g.0 as usize;
                        if pin_reg[gi] != 255 {
                            // The pseudo-value made here is live as long as the global is observed.
                            let found = self.pseudo[..pseudo_left].iter().rposition(|p| *p == (at + 1, g));
                            if let Some(p) = found {
                                let until = self.observed_until[gi];
                                self.use_at(n + p, until, 64);
                                self.values[n + p].hint = pin_reg[gi];
                            }
                        }
                        self.forget(g);
                    }
                    while pseudo_left > 0 && self.pseudo[pseudo_left - 1].0 == at + 1 {
                        pseudo_left -= 1;
                    }
                    if effects.faults {
                        self.observe(at, GlobalSet::ALL);
                    } else {
                        self.observe(at, guest.helper_sees(&effects));
                    }
                    for v in args.iter() {
                        self.use_at(self.resolve(*v), at, 64);
                    }
                }
                Inst::Set(g, v) => {
                    let gi = g.0 as usize;
                    let val = self.resolve(v);
                    let until = self.observed_until[gi];
                    if until == NEVER {
                        self.values[i].dead_set = true;
                    } else {
                        if guest.globals[gi].ty == Ty::Flags {
                            self.use_flags(block, v, until, flags::ALL);
                        } else {
                            self.use_at(val, until, 64);
                        }
                        let hint = &mut self.values[val].hint;
                        if *hint == 255 {
                            *hint = pin_reg[gi];
                        }
                    }
                    self.forget(g);
                    if let Some(o) = guest.globals[gi].overlaps {
                        if guest.globals[o.0 as usize].bytes <= guest.globals[gi].bytes {
                            self.forget(o);
                        } else {
                            // Setting the low half sends the whole to memory first.
                            self.observe(at, GlobalSet::of(o));
                        }
                    }
                }
                Inst::ZeroUpper(set) => {
                    // Values go to memory first, where their upper halves are cleared.
                    for g in set.iter() {
                        self.forget(g);
                    }
                    self.observe(at, set);
                }
                Inst::Get(g) => {
                    // Reading one view of overlapping storage goes through memory, which needs the other view there.
                    if let Some(o) = guest.globals[g.0 as usize].overlaps
                        && self.values[i].alias == at
                        && !self.is_unused(i)
                    {
                        self.observe(at, GlobalSet::of(o).or(GlobalSet::of(g)));
                    }
                }
                Inst::Nop | Inst::Const(_) | Inst::InsnStart { .. } => {}
                // Followers cannot fault, and find their bytes without an address.
                Inst::Load { .. } | Inst::LoadVec { .. } if groups.follows(i) => {}
                Inst::Store { width, v, .. } if groups.follows(i) => {
                    self.use_at(self.resolve(v), at, width.bits() as u8);
                }
                Inst::StoreVec { v, .. } if groups.follows(i) => self.use_at(self.resolve(v), at, 64),
                Inst::Load { addr, .. } | Inst::LoadVec { addr, .. } => {
                    self.observe(at, GlobalSet::ALL);
                    self.use_at(self.resolve(addr), at, 64);
                }
                Inst::Store { width, addr, v, .. } | Inst::AtomicRmw { width, addr, v, .. } => {
                    self.observe(at, GlobalSet::ALL);
                    self.use_at(self.resolve(addr), at, 64);
                    self.use_at(self.resolve(v), at, width.bits() as u8);
                }
                Inst::Bin { op, w, a, b } => {
                    if self.is_unused(i) {
                        continue;
                    }
                    // Right shifts and high products are emitted at their own width, so they read no more either.
                    let shift = matches!(op, BinOp::Shl | BinOp::Shr | BinOp::Sar | BinOp::Rol | BinOp::Ror);
                    let bits = w.bits() as u8;
                    match self.values[i].merges {
                        NO_VALUE => self.become_at(self.resolve(a), at, bits),
                        whole => self.become_at(whole as usize, at, 64),
                    }
                    self.use_at(self.resolve(b), at, if shift { 8 } else { bits });
                }
                _ if self.is_unused(i) && inst.is_pure() => {}
                _ => {
                    if inst.is_memory() {
                        self.observe(at, GlobalSet::ALL);
                    }
                    self.operands(block, i);
                }
            }
        }
        // What is there at the entry lives until it is last observed.
        for p in 0..pseudo_left {
            let (_, g) = self.pseudo[p];
            let until = self.observed_until[g.0 as usize];
            self.use_at(n + p, until, 64);
            self.values[n + p].hint = pin_reg[g.0 as usize];
        }
        // A `Get` from an unpinned home is a definition; its observers read the home itself.
    }

    /// Marks the operands of instruction `i`, of a kind that the backward walk does not know itself, as used there, with the
    /// bits that it looks at.
    fn operands(&mut self, block: &Block, i: usize) {
        let at = i as u32;
        let bits = |w: Width| w.bits() as u8;
        match block.insts[i] {
            Inst::Un { w, a, .. } => self.become_at(self.resolve(a), at, bits(w)),
            Inst::Carry { w, a, b, f, .. } => {
                self.become_at(self.resolve(a), at, bits(w));
                self.use_at(self.resolve(b), at, bits(w));
                self.use_flags(block, f, at, flags::C);
            }
            Inst::Lea { w, base, index, .. } => {
                self.use_at(self.resolve(base), at, bits(w));
                self.use_at(self.resolve(index), at, bits(w));
            }
            Inst::Extend { from, a, ext } => {
                let b = if from == Width::W64 && ext == Ext::Sign32 { 32 } else { bits(from) };
                self.use_at(self.resolve(a), at, b);
            }
            Inst::Extract { a, pos, len } => {
                let top = pos + len;
                let b = [8, 16, 32].into_iter().find(|b| top <= *b).unwrap_or(64);
                self.become_at(self.resolve(a), at, b);
            }
            Inst::Insert { a, b, pos, len } => {
                if pos == 0 && self.merge(block, i, (a, b), len) {
                    return;
                }
                self.become_at(self.resolve(a), at, 64);
                let bits = [8, 16, 32].into_iter().find(|x| len <= *x).unwrap_or(64);
                self.use_at(self.resolve(b), at, bits);
            }
            Inst::ShiftPair { w, hi, lo, count } => {
                self.use_at(self.resolve(hi), at, bits(w));
                self.use_at(self.resolve(lo), at, bits(w));
                self.use_at(self.resolve(count), at, 8);
            }
            Inst::Flags { op, w, a, b, old } => {
                let until = self.values[i].last_use;
                if until == NEVER {
                    return;
                }
                let demand = self.values[i].flag_demand;
                let w = if op == FlagOp::Unpack { Width::W16 } else { w };
                let a = if self.uses_result(block, i) { Value(self.values[i].companion) } else { a };
                self.use_at(self.resolve(a), until, bits(w));
                if op.reads_b() {
                    self.use_at(self.resolve(b), until, bits(w));
                }
                if let Some(old) = old {
                    let need = op.old_bits(w, block.constant(b), demand);
                    if need != 0 {
                        self.use_flags(block, old, until, need);
                    }
                }
            }
            Inst::Pack(f) => self.use_flags(block, f, at, flags::ALL),
            Inst::SetCond { cond, f } => self.use_flags(block, f, at, cond_bits(cond)),
            Inst::Select { w, cond, f, a, b } => {
                self.use_flags(block, f, at, cond_bits(cond));
                self.use_at(self.resolve(a), at, bits(w));
                self.become_at(self.resolve(b), at, bits(w));
            }
            Inst::EnvStore { width, v, .. } => self.use_at(self.resolve(v), at, bits(width)),
            Inst::AtomicCas { width, addr, expect, new, .. } => {
                self.use_at(self.resolve(addr), at, 64);
                self.use_at(self.resolve(expect), at, bits(width));
                self.use_at(self.resolve(new), at, bits(width));
            }
            inst => inst.for_each_use(|v| {
                let v = self.resolve(v);
                self.use_at(v, at, 64);
            }),
        }
    }

    /// Of `Insert` `i` of the low `len` bits of `b` in `a`: whether `b` itself can be made in the place of these bits. Then
    /// it is the `Insert`'s value, too.
    fn merge(&mut self, block: &Block, i: usize, (a, b): (Value, Value), len: u8) -> bool {
        let (a, b) = (self.resolve(a), self.resolve(b));
        let near = |k: &Inst| matches!(k, Inst::Flags { .. } | Inst::Const(_) | Inst::Get(_) | Inst::Nop);
        if b + MERGE_REACH < i || b >= i || !block.insts[b + 1..i].iter().all(near) {
            return false;
        }
        match block.insts[b] {
            Inst::SetCond { cond, f } if len == 8 && a != b && self.values[b].last_use == NEVER => {
                self.values[b].deferred = true;
                self.use_flags(block, f, i as u32, cond_bits(cond));
                false
            }
            Inst::Bin { op, w, a: first, b: second }
                if w.bits() == len.into()
                    && self.low(block, first, w) == self.low(block, Value(a as u32), w)
                    && block.constant(first).is_none()
                    && self.values[b].demand <= len
                    && merges(op, block.constant(second)) =>
            {
                let Info { last_use, hint, .. } = self.values[i];
                let info = &mut self.values[b];
                info.last_use = info.last_use.max(last_use);
                info.hint = hint;
                info.demand = 64;
                info.merges = a as u32;
                self.values[i].alias = b as u32;
                self.values[i].last_use = NEVER;
                true
            }
            _ => false,
        }
    }

    /// The value that a value's low bits come from.
    fn low(&self, block: &Block, v: Value, w: Width) -> usize {
        let mut v = self.resolve(v);
        while let Some(inst) = block.insts.get(v) {
            v = match *inst {
                Inst::Extend { from, a, .. } if from >= w => self.resolve(a),
                Inst::Insert { b, pos: 0, len, .. } if u32::from(len) >= w.bits() => self.resolve(b),
                _ => break,
            }
        }
        v
    }

    /// Whether flags value `j` is recomputed from the result of its companion instead of the first operand: the
    /// result tends to stay alive anyway, as a global's new value.
    pub fn uses_result(&self, block: &Block, j: usize) -> bool {
        self.values[j].companion != NO_VALUE
            && matches!(
                block.insts[j],
                Inst::Flags { op: FlagOp::Add | FlagOp::Sub | FlagOp::Inc | FlagOp::Dec, .. }
            )
    }

    /// Finds, for flags value `j`, the instruction shortly before that sets the host's flags to it as a by-product.
    fn find_companion(&mut self, block: &Block, j: usize) {
        let Inst::Flags { op: fop, w: fw, a: fa, b: fb, old } = block.insts[j] else { return };
        let same = |x: Value, y: Value| {
            self.known(x) == self.known(y) || block.constant(x).is_some_and(|c| block.constant(y) == Some(c))
        };
        let matches = |i: usize| match block.insts[i] {
            Inst::Bin { op, w, a, b } if w == fw => match (op, fop) {
                (BinOp::Add, FlagOp::Add)
                | (BinOp::Sub, FlagOp::Sub)
                | (BinOp::Shl, FlagOp::Shl)
                | (BinOp::Shr, FlagOp::Shr)
                | (BinOp::Sar, FlagOp::Sar)
                | (BinOp::Mul, FlagOp::SMul) => same(a, fa) && same(b, fb),
                (BinOp::And | BinOp::Or | BinOp::Xor, FlagOp::And) => {
                    fa == Value(i as u32) && fb == Value(i as u32)
                }
                (BinOp::Add, FlagOp::Inc) | (BinOp::Sub, FlagOp::Dec) => {
                    same(a, fa) && block.constant(b) == Some(1)
                }
                (BinOp::Add, FlagOp::Dec) => {
                    same(a, fa) && block.constant(b).is_some_and(|c| c & w.mask() == w.mask())
                }
                _ => false,
            },
            Inst::Carry { sub, w, a, b, f } if w == fw => {
                fop == if sub { FlagOp::Sbb } else { FlagOp::Adc }
                    && same(a, fa)
                    && same(b, fb)
                    && old.is_some_and(|o| same(o, f))
            }
            _ => false,
        };
        let found = (j.saturating_sub(6)..j).rev().find(|&i| self.values[i].fused == NO_VALUE && matches(i));
        if let Some(i) = found {
            self.values[j].companion = i as u32;
            self.values[i].fused = j as u32;
        }
    }
}
