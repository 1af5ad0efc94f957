//! The forward pass: forwarding of globals, folding, value numbering.
//!
//! The block is rebuilt instruction by instruction, because folding wants to put new constants before their users. Each
//! old value maps to a new one. What is known of a new value is its defining instruction and how many of its low bits
//! may be set ([`Facts`]).
//!
//! Invariants: `known[g]`, where present, is a value equal to what `Get(g)` would read now; only instructions whose
//! result depends on their operands alone are numbered.

use super::OptFlags;
use super::number::{NOT_NUMBERED, Numbering, hash};
use crate::backend::GuestInfo;
use crate::ir::{Block, GlobalId, GlobalSet, HelperId, Inst, Ty, Value};

/// The pass and its scratch memory.
pub struct Forward {
    pub(super) opts: OptFlags,
    guest: GuestInfo,
    numbering: Numbering,
    /// The new block's instructions.
    pub(super) out: Vec<Inst>,
    /// What is known of each new value.
    facts: Vec<Facts>,
    /// New value of each old one.
    map: Vec<Value>,
    /// Value of each global, where known.
    known: [Option<Value>; 64],
    /// A terminal was appended.
    ended: bool,
}

/// What is known of a value.
#[derive(Clone, Copy)]
struct Facts {
    /// An integer is below 2^bits; a vector's bits from `bits` on are zero. Meaningless for flags.
    bits: u16,
    /// The global it was last set to, or [`NO_GLOBAL`].
    home: u8,
    /// Of a numbered instruction; else [`NOT_NUMBERED`].
    hash: u32,
}

const NO_GLOBAL: u8 = 0xff;
/// What an old instruction that defines no value maps to.
const NO_VALUE: Value = Value(u32::MAX);

impl Forward {
    /// The pass for one guest.
    pub fn new(opts: OptFlags, guest: GuestInfo) -> Forward {
        Forward {
            opts,
            guest,
            numbering: Numbering::new(),
            out: Vec::new(),
            facts: Vec::new(),
            map: Vec::new(),
            known: [None; 64],
            ended: false,
        }
    }

    /// Rebuilds the block.
    pub fn run(&mut self, block: &mut Block) {
        self.out.clear();
        self.facts.clear();
        self.map.clear();
        self.known = [None; 64];
        self.ended = false;
        for inst in &block.insts {
            let v = self.instruction(inst);
            self.map.push(v);
            if let Inst::ExitIf { exit, .. } = *inst
                && block.exits[exit.0 as usize].indirect
            {
                // Behind such an exit the program counter is undefined.
                self.known[self.guest.pc.0 as usize] = None;
            }
            if self.ended {
                break;
            }
        }
        std::mem::swap(&mut block.insts, &mut self.out);
    }

    /// The new value of an old one.
    #[inline]
    fn renew(&self, old: Value) -> Value {
        self.map[old.index()]
    }

    /// Appends what an old instruction comes to; its value.
    ///
    /// One match does everything that depends on the kind of instruction, for mispredicted jumps are what this pass
    /// spends its time on.
    fn instruction(&mut self, inst: &Inst) -> Value {
        match *inst {
            Inst::Nop => NO_VALUE,
            Inst::Get(g) => self.get(g),
            Inst::Set(g, v) => {
                self.set(g, self.renew(v));
                NO_VALUE
            }
            Inst::ZeroUpper(set) => self.zero_upper(set),
            Inst::Const(c) => self.constant(c),
            Inst::InsnStart { pc } => self.append(Inst::InsnStart { pc }),
            Inst::Call { helper, .. } => self.call(helper, self.renamed(inst)),
            Inst::Load { width, ext, addr, mem } => {
                self.append(Inst::Load { width, ext, addr: self.renew(addr), mem })
            }
            Inst::Goto(_) | Inst::GotoIndirect | Inst::Leave { .. } => {
                self.ended = true;
                self.append(*inst)
            }
            _ if !self.opts.contains(OptFlags::FOLD) => {
                self.ended = inst.is_terminal();
                self.emit(self.renamed(inst))
            }
            Inst::Bin { op, w, a, b } => self.bin(op, w, self.renew(a), self.renew(b)),
            Inst::Un { op, w, a } => self.un(op, w, self.renew(a)),
            Inst::Carry { sub, w, a, b, f } => {
                self.carry(sub, w, self.renew(a), self.renew(b), self.renew(f))
            }
            Inst::Lea { w, base, index, scale, disp } => {
                self.lea(w, self.renew(base), self.renew(index), scale, disp)
            }
            Inst::Extend { from, ext, a } => self.extend(from, ext, self.renew(a)),
            Inst::Extract { a, pos, len } => self.extract(self.renew(a), pos, len),
            Inst::Insert { a, b, pos, len } => self.insert(self.renew(a), self.renew(b), pos, len),
            Inst::ShiftPair { w, hi, lo, count } => {
                self.shift_pair(w, self.renew(hi), self.renew(lo), self.renew(count))
            }
            Inst::Flags { op, w, a, b, old } => {
                let a = self.renew(a);
                let b = if op.reads_b() { self.renew(b) } else { a };
                self.flags(op, w, a, b, old.map(|old| self.renew(old)))
            }
            Inst::Pack(f) => self.pack(self.renew(f)),
            Inst::SetCond { cond, f } => self.set_cond(cond, self.renew(f)),
            Inst::Select { w, cond, f, a, b } => {
                self.select(w, cond, self.renew(f), self.renew(a), self.renew(b))
            }
            Inst::ExitIf { cond, f, exit } => self.exit_if(cond, self.renew(f), exit),
            Inst::Branch { cond, f, taken, fall } => self.branch(cond, self.renew(f), taken, fall),
            Inst::EnvStore { width, offset, v } => {
                let v = self.low(self.renew(v), width);
                self.append(Inst::EnvStore { width, offset, v })
            }
            Inst::Store { width, addr, v, mem } => {
                let v = self.low(self.renew(v), width);
                self.append(Inst::Store { width, addr: self.renew(addr), v, mem })
            }
            Inst::Vec { op, len, a, b, imm } => {
                let a = self.renew(a);
                let b = if op.operands() > 1 { self.renew(b) } else { a };
                self.vec(op, len, a, b, imm)
            }
            Inst::VecFromInt { w, a } => self.vec_from_int(w, self.renew(a)),
            Inst::VecToInt { w, a } => self.vec_to_int(w, self.renew(a)),
            _ => self.emit(self.renamed(inst)),
        }
    }

    /// The instruction with new operands.
    fn renamed(&self, inst: &Inst) -> Inst {
        let mut inst = *inst;
        inst.map_uses(|v| self.map[v.index()]);
        inst
    }

    /// Appends an instruction, or finds the value of an equal one. Always inlined, so that what depends on the kind of
    /// instruction is decided where it is built.
    #[inline(always)]
    pub(super) fn emit(&mut self, inst: Inst) -> Value {
        if self.opts.contains(OptFlags::NUMBER) && inst.is_pure() {
            return self.append_numbered(inst);
        }
        self.append(inst)
    }

    #[inline(always)]
    fn append_numbered(&mut self, inst: Inst) -> Value {
        let hash = hash(&inst);
        if let Some(known) = self.numbering.candidate(hash, self.out.len())
            // The hash differs nearly always when the instruction does, and is quicker to compare.
            && self.facts[known].hash == hash
            && self.out[known] == inst
        {
            self.numbering.found(hash, known);
            return Value(known as u32);
        }
        self.append_hashed(inst, hash)
    }

    /// Appends a terminal.
    pub(super) fn end(&mut self, inst: Inst) -> Value {
        self.ended = true;
        self.append(inst)
    }

    #[inline(always)]
    fn append(&mut self, inst: Inst) -> Value {
        self.append_hashed(inst, NOT_NUMBERED)
    }

    #[inline(always)]
    fn append_hashed(&mut self, inst: Inst, hash: u32) -> Value {
        let v = Value(self.out.len() as u32);
        let bits = self.result_bits(&inst);
        self.out.push(inst);
        self.facts.push(Facts { bits, home: NO_GLOBAL, hash });
        v
    }

    /// A constant.
    pub(super) fn constant(&mut self, c: u64) -> Value {
        self.emit(Inst::Const(c))
    }

    /// The definition of a value.
    #[inline]
    pub(super) fn def(&self, v: Value) -> Inst {
        self.out[v.index()]
    }

    /// The constant that a value is.
    #[inline]
    pub(super) fn as_const(&self, v: Value) -> Option<u64> {
        match self.out[v.index()] {
            Inst::Const(c) => Some(c),
            _ => None,
        }
    }

    /// How many low bits of a value may be set.
    #[inline]
    pub(super) fn bits(&self, v: Value) -> u32 {
        self.facts[v.index()].bits as u32
    }

    /// Whether a value is what some global holds now. Such a value stays in a register anyway, so it is a better
    /// operand than what it was computed from.
    pub(super) fn is_homed(&self, v: Value) -> bool {
        let home = self.facts[v.index()].home;
        home != NO_GLOBAL && self.known[home as usize] == Some(v)
    }

    fn get(&mut self, g: GlobalId) -> Value {
        if !self.opts.contains(OptFlags::FORWARD) {
            return self.append(Inst::Get(g));
        }
        if let Some(v) = self.known[g.0 as usize] {
            return v;
        }
        let v = self.append(Inst::Get(g));
        self.known[g.0 as usize] = Some(v);
        self.facts[v.index()].home = g.0;
        v
    }

    fn set(&mut self, g: GlobalId, v: Value) {
        if !self.opts.contains(OptFlags::FORWARD) {
            self.append(Inst::Set(g, v));
            return;
        }
        if self.known[g.0 as usize] == Some(v) {
            return;
        }
        self.append(Inst::Set(g, v));
        let desc = &self.guest.globals[g.0 as usize];
        // Of integers and flags there is nothing that the store would cut off.
        self.known[g.0 as usize] = if desc.ty == Ty::Vec { self.fitting(g, v) } else { Some(v) };
        self.facts[v.index()].home = g.0;
        if let Some(other) = desc.overlaps {
            let part = self.guest.globals[other.0 as usize].bytes <= desc.bytes;
            self.known[other.0 as usize] = if part { self.fitting(other, v) } else { None };
        }
    }

    /// What is known to be zero above need not be cleared; of the rest, the value is that of the low half.
    fn zero_upper(&mut self, set: GlobalSet) -> Value {
        let mut rest = set;
        if self.opts.contains(OptFlags::FORWARD) {
            for g in set.iter() {
                let low = self.guest.globals[g.0 as usize].overlaps;
                match self.known[g.0 as usize] {
                    Some(v) if self.bits(v) <= 128 => rest.remove(g),
                    _ => self.known[g.0 as usize] = low.and_then(|low| self.known[low.0 as usize]),
                }
            }
        }
        if rest == GlobalSet::NONE { NO_VALUE } else { self.append(Inst::ZeroUpper(rest)) }
    }

    /// `v`, if a read of `g` after `v` was written to the start of its storage gives all of `v`.
    fn fitting(&self, g: GlobalId, v: Value) -> Option<Value> {
        let desc = &self.guest.globals[g.0 as usize];
        let same_type = match self.out[v.index()].ty(|g| self.guest.globals[g.0 as usize].ty) {
            Some(ty) => ty == desc.ty,
            None => false,
        };
        let fits = desc.ty == Ty::Flags || self.bits(v) <= 8 * desc.bytes as u32;
        (same_type && fits).then_some(v)
    }

    fn call(&mut self, helper: HelperId, inst: Inst) -> Value {
        let effects = &self.guest.helpers[helper.0 as usize].effects;
        if effects.pure {
            if self.opts.contains(OptFlags::NUMBER) {
                return self.append_numbered(inst);
            }
            return self.append(inst);
        }
        if effects.writes == GlobalSet::ALL {
            self.known = [None; 64];
        } else {
            for g in effects.writes.iter() {
                self.known[g.0 as usize] = None;
                if let Some(other) = self.guest.globals[g.0 as usize].overlaps {
                    self.known[other.0 as usize] = None;
                }
            }
        }
        self.append(inst)
    }

    /// Upper bound of the bits that may be set in the result of an instruction about to be appended.
    #[inline(always)]
    fn result_bits(&self, inst: &Inst) -> u16 {
        use Inst::*;
        let of = |v: Value| self.facts[v.index()].bits;
        match *inst {
            Const(c) => 64 - c.leading_zeros() as u16,
            Bin { op, w, a, b } => self.bin_bits(op, w, a, b) as u16,
            Un { op: crate::ir::UnOp::Popcnt | crate::ir::UnOp::Clz | crate::ir::UnOp::Ctz, .. } => 7,
            Un { w, .. } | Carry { w, .. } | Lea { w, .. } | ShiftPair { w, .. } => w.bits() as u16,
            Extend { from, ext, a } => self.extend_bits(from, ext, a) as u16,
            Extract { a, pos, len } => of(a).saturating_sub(pos as u16).min(len as u16),
            Insert { a, pos, len, .. } => of(a).max(pos as u16 + len as u16),
            Pack(_) => 16,
            SetCond { .. } => 1,
            Select { w, a, b, .. } => of(a).max(of(b)).min(w.bits() as u16),
            Load { width, ext, .. } => match ext {
                crate::ir::Ext::Zero => width.bits() as u16,
                crate::ir::Ext::Sign32 => 32.max(width.bits() as u16),
                crate::ir::Ext::Sign64 => 64,
            },
            EnvLoad { width, .. } | AtomicRmw { width, .. } | AtomicCas { width, .. } => width.bits() as u16,
            VecToInt { w, .. } => w.bits() as u16,
            VecZero => 0,
            LoadVec { size, .. } => 8 * size.bytes() as u16,
            Vec { len, .. } | Vec3 { len, .. } | LoadMasked { len, .. } => match len {
                crate::ir::VecLen::V128 => 128,
                crate::ir::VecLen::V256 => 256,
            },
            VecIns { .. } => 128,
            VecFromInt { w, .. } => w.bits() as u16,
            Get(g) => 8 * self.guest.globals[g.0 as usize].bytes as u16,
            _ => 64,
        }
    }
}
