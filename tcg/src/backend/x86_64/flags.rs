//! Flags values on a host whose own flags have the same meaning.
//!
//! A flags value is emitted where it is used: if the host's flags hold it (because the instruction before set them
//! on the way to its result, see [`Liveness::companion`](super::liveness::Info)), that is nothing; otherwise its
//! operation is repeated on its operands into a scratch register. Nothing here changes where values are.
//!
//! Uses say which bits they want. Bits that an operation takes over from older flags are sought in these
//! ([`Liveness::flags_source`]), so that a chain of increments, each of which keeps C, is not a chain of work: Z is that of the last one,
//! and C that of what was before the first. Both are put together only where somebody wants all bits.
//!
//! Invariant: what is computed for a use is alive there, because liveness has seen the same use with the same bits.

use super::emitter::{Emitter, MemLoc, NONE, env_mem};
use super::encode::{Alu, Mem, Shift, r};
use super::liveness::{Liveness, NO_VALUE, cond_bits};
use crate::ir::{Block, Cond, FlagOp, GlobalSet, Inst, Value, Width, flags};

/// Instructions that are looked at for a use of flags, at most.
const REACH: usize = 12;

/// The bits that follow from an operation's result alone.
const OF_RESULT: u32 = flags::Z | flags::N | flags::P;

/// What the host's flags hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFlags {
    /// Of this flags value, or [`NO_VALUE`],
    value: u32,
    /// these bits, in the packed layout.
    bits: u32,
}

impl HostFlags {
    /// Nothing that is known.
    pub const NONE: HostFlags = HostFlags { value: NO_VALUE, bits: 0 };
}

/// Where the carry flag can be had from without a change to the others.
enum Carry {
    Known(bool),
    /// Packed flags.
    Packed(Mem),
}

impl Liveness {
    /// The older flags value that `bits` of flags value `f` (resolved) are those of; `f` itself if it makes one of them, as
    /// everything makes one of all.
    #[inline]
    pub fn flags_source(&self, block: &Block, f: usize, bits: u32) -> usize {
        if bits == flags::ALL { f } else { self.source_of_some(block, f, bits) }
    }

    fn source_of_some(&self, block: &Block, mut f: usize, bits: u32) -> usize {
        while let Some(&Inst::Flags { op, w, b, old: Some(old), .. }) = block.insts.get(f) {
            let passed = match op {
                FlagOp::Inc | FlagOp::Dec => op.passes(w, None),
                FlagOp::Bit | FlagOp::Rol | FlagOp::Ror => {
                    op.passes(w, block.constant(Value(self.resolve(b) as u32)))
                }
                _ => break,
            };
            if bits & !passed != 0 {
                break;
            }
            f = self.resolve(old);
        }
        f
    }
}

impl Emitter<'_> {
    /// Whether flags value `f`, if the current instruction leaves it in the host's flags, may be there yet where it is used. That
    /// faults can see it is no use: they have a recipe.
    pub fn flags_reach_a_use(&self, f: usize) -> bool {
        let last = self.b.live.values[f].last_use as usize;
        // What is wanted at the end is stored before it is destroyed.
        if last <= self.at || last + 1 >= self.block.insts.len() {
            return last > self.at;
        }
        for (i, inst) in self.block.insts[..=last].iter().enumerate().skip(self.at + 1).take(REACH) {
            let (used, bits) = match *inst {
                Inst::ExitIf { .. } => return true,
                Inst::SetCond { cond, f } | Inst::Select { cond, f, .. } => (f, cond_bits(cond)),
                Inst::Carry { f, .. } => (f, flags::C),
                Inst::Pack(f) => (f, flags::ALL),
                Inst::Bin { .. } => {
                    let other = self.b.live.values[i].fused;
                    // Increments leave the carry alone.
                    match self.block.insts.get(other as usize) {
                        None | Some(Inst::Flags { op: FlagOp::Inc | FlagOp::Dec, .. }) => continue,
                        Some(_) => return false,
                    }
                }
                Inst::Call { .. } => return false,
                _ if inst.is_memory() => return false,
                _ => continue,
            };
            if self.flags_source(self.b.live.resolve(used), bits) == f {
                return true;
            }
        }
        true
    }

    /// Notes that the host's flags hold `bits` of flags value `f`, and nothing else that is known.
    pub fn hold_flags(&mut self, f: Option<usize>, bits: u32) {
        self.host_flags = f.map_or(HostFlags::NONE, |f| HostFlags { value: f as u32, bits });
    }

    /// Whether the host's flags hold `bits` of flags value `f` (resolved).
    pub fn holds_flags(&self, f: usize, bits: u32) -> bool {
        let HostFlags { value, bits: held } = self.host_flags;
        if value == NO_VALUE || bits & !held != 0 {
            return false;
        }
        if value == f as u32 || bits == flags::ALL {
            return value == f as u32;
        }
        let (value, f) = (self.flags_source(value as usize, bits), self.flags_source(f, bits));
        let same_carry = || self.known_carry(f).is_some_and(|c| self.known_carry(value) == Some(c));
        value == f || bits == flags::C && same_carry()
    }

    fn flags_source(&self, f: usize, bits: u32) -> usize {
        self.b.live.flags_source(self.block, f, bits)
    }

    /// Whether a condition holds of a flags value (resolved), if that is known: operands that the optimiser did not know may
    /// have become constant.
    pub fn known_condition(&self, cond: Cond, f: usize) -> Option<bool> {
        let Some(&Inst::Flags { op, w, a, b, old: None }) = self.block.insts.get(f) else { return None };
        let constant = |v| self.constant(self.b.live.resolve(v));
        let (a, b) = (constant(a)?, constant(b)?);
        Some(flags::holds(cond, flags::compute(op, w, a, b, 0)))
    }

    /// Makes `cond` of flags value `f` (resolved) testable; returns the host condition to test.
    pub fn condition(&mut self, cond: Cond, f: usize) -> Cond {
        let bits = cond_bits(cond);
        if self.holds_flags(f, bits) {
            return cond;
        }
        let f = self.flags_source(f, bits);
        if let (true, MemLoc::Env(g)) = (bits.is_power_of_two(), self.b.mem[f]) {
            let offset = self.guest.globals[g as usize].offset;
            let (byte, mask) = if bits > 0xff { (1, bits >> 8) } else { (0, bits) };
            self.asm().test_mem8(env_mem(offset + byte), mask as u8);
            self.clobber_flags();
            return if cond as u8 & 1 == 0 { Cond::NE } else { Cond::E };
        }
        self.flags_to_host(f, bits);
        cond
    }

    /// Makes the host's flags hold `bits` of flags value `f` (resolved). Clobbers RAX and RCX.
    pub fn flags_to_host(&mut self, f: usize, bits: u32) {
        if self.holds_flags(f, bits) {
            return;
        }
        // C alone may be all that is missing.
        let others = bits & !flags::C;
        if bits != others
            && (others == 0 || self.holds_flags(f, others))
            && let Some(carry) = self.carry_of(f)
        {
            self.emit_carry(&carry);
            let HostFlags { value, bits: held } = self.host_flags;
            let held = if value == f as u32 { held | flags::C } else { bits };
            self.hold_flags(Some(f), held);
            return;
        }
        let f = self.flags_source(f, bits);
        let held = if self.b.mem[f] != MemLoc::None {
            self.read_packed(f);
            self.unpack();
            flags::ALL
        } else {
            self.compute_flags(f, bits)
        };
        self.hold_flags(Some(f), held);
    }

    /// Where C of flags value `f` can be had from, if that is easy.
    fn carry_of(&self, f: usize) -> Option<Carry> {
        let c = self.flags_source(f, flags::C);
        if let MemLoc::Env(g) = self.b.mem[c] {
            return Some(Carry::Packed(env_mem(self.guest.globals[g as usize].offset)));
        }
        self.known_carry(c).map(Carry::Known)
    }

    /// C of flags value `f`, if its operands do not matter.
    fn known_carry(&self, f: usize) -> Option<bool> {
        match self.block.insts.get(f) {
            Some(Inst::Flags { op: FlagOp::And, .. }) => Some(false),
            Some(&Inst::Flags { op: FlagOp::Unpack, a, .. }) => {
                Some(self.constant(self.b.live.resolve(a))? as u32 & flags::C != 0)
            }
            _ => None,
        }
    }

    /// Sets the host's carry flag and no other.
    fn emit_carry(&mut self, carry: &Carry) {
        match *carry {
            Carry::Known(c) => self.asm().buf.push(0xf8 | c as u8), // clc, stc
            Carry::Packed(mem) => self.asm().bt_mi(Width::W16, mem, flags::C.trailing_zeros() as u8),
        }
    }

    /// RAX = packed flags from memory.
    fn read_packed(&mut self, f: usize) {
        match self.b.mem[f] {
            MemLoc::Env(g) => {
                let m = env_mem(self.guest.globals[g as usize].offset);
                self.asm().load(Width::W16, r::RAX, m);
            }
            _ => self.read_value(r::RAX, f),
        }
    }

    /// Host flags = packed flags in AX: adding 0x7f to the V byte overflows exactly if it is 1.
    fn unpack(&mut self) {
        self.asm().alu_ri(Alu::Add, Width::W8, r::RAX, 0x7f);
        self.asm().buf.push(0x9e); // sahf
    }

    /// AX = packed host flags, which survive; the rest of RAX is unspecified.
    fn pack_host(&mut self) {
        self.asm().setcc(Cond::O, r::RAX);
        self.asm().buf.push(0x9f); // lahf
    }

    /// Stores flags value `f` packed in the environment. Host flags hold `f` afterwards, unless it was in memory.
    pub fn store_packed(&mut self, f: usize, offset: u32) {
        let held = self.holds_flags(f, flags::ALL);
        if self.b.mem[f] != MemLoc::None && !held {
            self.read_packed(f);
        } else if let Inst::Flags { op: FlagOp::Unpack, a, .. } = self.block.insts[f]
            && !held
        {
            let a = self.b.live.resolve(a);
            if let Some(packed) = self.constant(a) {
                let packed = packed as u32 & flags::ALL;
                self.asm().store_imm(Width::W16, env_mem(offset), packed as i32);
                return;
            }
            self.read_value(r::RAX, a);
            self.asm().alu_ri(Alu::And, Width::W32, r::RAX, flags::ALL as i32);
            self.clobber_flags();
        } else {
            self.flags_to_host(f, flags::ALL);
            self.pack_host();
        }
        // The upper half of the word is zero and stays so.
        self.asm().store(Width::W16, env_mem(offset), r::RAX);
    }

    /// `dst` = packed flags value `f` (resolved).
    pub fn pack_to(&mut self, dst: u8, f: usize) {
        if self.b.mem[f] != MemLoc::None && !self.holds_flags(f, flags::ALL) {
            self.read_packed(f);
        } else {
            self.flags_to_host(f, flags::ALL);
            self.pack_host();
        }
        self.asm().movzx(Width::W16, dst, r::RAX);
    }

    /// An operand as an immediate, in memory, or in a register.
    fn alu_operand(&mut self, op: Alu, w: Width, dst: u8, v: usize) {
        if let Some(imm) = self.imm(v, w) {
            self.asm().alu_ri(op, w, dst, imm);
        } else if let Some(mem) = self.only_home(v) {
            self.asm().alu_rm(op, w, dst, mem);
        } else {
            let reg = self.value_in(v, r::RCX);
            self.asm().alu_rr(op, w, dst, reg);
        }
    }

    /// A register that happens to hold the low bits of a value, which need not be alive any more.
    fn still_in(&self, v: usize, w: Width) -> Option<u8> {
        let reg = self.b.reg[v];
        (reg != NONE && u32::from(self.b.live.values[v].demand) >= w.bits()).then_some(reg)
    }

    /// Tests the result that flags value `f` of the operation is about, if that is at hand and says all about `bits`.
    fn test_result(&mut self, (op, w, b): (FlagOp, Width, usize), f: usize, bits: u32) -> bool {
        let result = self.b.live.values[f].companion;
        let makes = match op {
            FlagOp::Add | FlagOp::Sub | FlagOp::Adc | FlagOp::Sbb | FlagOp::Inc | FlagOp::Dec => true,
            // By zero there is another result, but its flags are the old ones.
            FlagOp::Shl | FlagOp::Shr | FlagOp::Sar => self.constant(b).is_some_and(|c| c & 31 != 0),
            _ => false,
        };
        if bits & !OF_RESULT != 0 || result == NO_VALUE || !makes {
            return false;
        }
        let Some(reg) = self.still_in(result as usize, w) else { return false };
        self.asm().test_rr(w, reg, reg);
        true
    }

    /// RAX = result - b, or + b.
    fn undo(&mut self, op: Alu, w: Width, result: usize, b: usize) {
        let sum = op == Alu::Add;
        let disp = self.imm(b, w).and_then(|imm| if sum { Some(imm) } else { imm.checked_neg() });
        let from = self.value_in(result, r::RAX);
        if let Some(disp) = disp {
            self.asm().lea(Width::W64, r::RAX, from, None, disp);
        } else if sum && self.b.reg[b] != NONE {
            let rb = self.b.reg[b];
            self.asm().lea(Width::W64, r::RAX, from, Some((rb, 0)), 0);
        } else {
            self.asm().mov_rr(r::RAX, from);
            self.alu_operand(op, w, r::RAX, b);
        }
    }

    /// Emits the computation of `bits` of flags value `f`; returns the bits that the host's flags hold then.
    fn compute_flags(&mut self, f: usize, bits: u32) -> u32 {
        let Inst::Flags { op, w, a, b, old } = self.block.insts[f] else {
            unreachable!("a flags value is computed or in memory")
        };
        let a = self.b.live.resolve(a);
        let b = self.b.live.resolve(b);
        let old = old.map(|o| self.b.live.resolve(o));
        let old_bits = op.old_bits(w, self.constant(b), bits);
        // The first operand is not wanted for its own sake, but may not have gone yet.
        let first = self.still_in(a, w);
        let result = self.b.live.values[f].companion as usize;
        let from_result = self.b.live.uses_result(self.block, f) && first.is_none();
        let is_compare = op == FlagOp::Sub && !from_result;
        if !is_compare && self.test_result((op, w, b), f, bits) {
            return OF_RESULT;
        }
        match op {
            FlagOp::Sub if from_result => {
                self.undo(Alu::Add, w, result, b);
                self.alu_operand(Alu::Cmp, w, r::RAX, b);
            }
            FlagOp::Sub => {
                if let Some(mem) = self.only_home(a) {
                    if let Some(imm) = self.imm(b, w) {
                        self.asm().alu_mi(Alu::Cmp, w, mem, imm);
                        return flags::ALL;
                    }
                    if self.b.reg[b] != NONE {
                        let rb = self.b.reg[b];
                        self.asm().alu_mr(Alu::Cmp, w, mem, rb);
                        return flags::ALL;
                    }
                }
                let ra = self.value_in(a, r::RAX);
                if self.constant(b) == Some(0) {
                    self.asm().test_rr(w, ra, ra);
                } else {
                    self.alu_operand(Alu::Cmp, w, ra, b);
                }
            }
            FlagOp::Add => {
                if from_result {
                    self.undo(Alu::Sub, w, result, b);
                } else {
                    self.read_value(r::RAX, a);
                }
                self.alu_operand(Alu::Add, w, r::RAX, b);
            }
            FlagOp::And => match (self.only_home(a), self.imm(b, w)) {
                // Comparing with zero says the same as testing for bits of itself.
                (Some(mem), _) if a == b => self.asm().alu_mi(Alu::Cmp, w, mem, 0),
                (Some(mem), Some(imm)) => self.asm().test_mi(w, mem, imm),
                (None, Some(imm)) => {
                    let ra = self.value_in(a, r::RAX);
                    self.asm().test_ri(w, ra, imm);
                }
                (Some(mem), None) => {
                    let rb = self.value_in(b, r::RCX);
                    self.asm().test_mr(w, mem, rb);
                }
                (None, None) => {
                    let ra = self.value_in(a, r::RAX);
                    match self.only_home(b) {
                        _ if a == b => self.asm().test_rr(w, ra, ra),
                        Some(mem) => self.asm().test_mr(w, mem, ra),
                        None => {
                            let rb = self.value_in(b, r::RCX);
                            self.asm().test_rr(w, ra, rb);
                        }
                    }
                }
            },
            FlagOp::Adc | FlagOp::Sbb => {
                self.flags_to_host(old.expect("carry operations have old flags"), flags::C);
                self.read_value(r::RAX, a);
                self.alu_operand(if op == FlagOp::Adc { Alu::Adc } else { Alu::Sbb }, w, r::RAX, b);
            }
            FlagOp::Inc | FlagOp::Dec => {
                let inc = op == FlagOp::Inc;
                let old = old.expect("increments have old flags");
                // C comes first, and stays, or it comes last.
                let last = if old_bits != 0 { self.carry_of(old) } else { None };
                if old_bits != 0 && last.is_none() {
                    self.flags_to_host(old, old_bits);
                }
                match first {
                    // It makes another C, but all else is the same.
                    Some(ra) if !inc && (old_bits == 0 || last.is_some()) => {
                        self.asm().alu_ri(Alu::Cmp, w, ra, 1);
                    }
                    _ => {
                        if from_result {
                            let from = self.value_in(result, r::RAX);
                            self.asm().lea(Width::W64, r::RAX, from, None, if inc { -1 } else { 1 });
                        } else {
                            self.read_value(r::RAX, a);
                        }
                        self.asm().incdec(!inc as u8, w, r::RAX);
                    }
                }
                if let Some(carry) = last {
                    self.emit_carry(&carry);
                }
                return flags::ALL & !flags::C | old_bits;
            }
            FlagOp::Shl | FlagOp::Shr | FlagOp::Sar | FlagOp::Rol | FlagOp::Ror => {
                if old_bits != 0 {
                    self.flags_to_host(old.expect("shifts have old flags"), old_bits);
                }
                let shift = match op {
                    FlagOp::Shl => Shift::Shl,
                    FlagOp::Shr => Shift::Shr,
                    FlagOp::Sar => Shift::Sar,
                    FlagOp::Rol => Shift::Rol,
                    _ => Shift::Ror,
                };
                if let Some(c) = self.constant(b) {
                    let count = c as u8 & if w == Width::W64 { 63 } else { 31 };
                    let rotate = matches!(op, FlagOp::Rol | FlagOp::Ror);
                    if count != 0 {
                        self.read_value(r::RAX, a);
                        if rotate && count != 1 {
                            // Immediate rotates leave the overflow flag undefined in a way of their own.
                            self.asm().mov_ri(r::RCX, count as u64);
                            self.asm().shift_rcl(shift, w, r::RAX);
                        } else {
                            self.asm().shift_ri(shift, w, r::RAX, count);
                        }
                    }
                } else {
                    self.read_value(r::RCX, b);
                    self.read_value(r::RAX, a);
                    self.asm().shift_rcl(shift, w, r::RAX);
                }
                let rotate = matches!(op, FlagOp::Rol | FlagOp::Ror);
                return match self.constant(b) {
                    Some(c) if c & if w == Width::W64 { 63 } else { 31 } != 0 => {
                        if rotate {
                            flags::C | flags::V | old_bits
                        } else {
                            flags::ALL
                        }
                    }
                    // By zero, they are the old ones.
                    _ => old_bits,
                };
            }
            FlagOp::UMul | FlagOp::SMul => {
                let unsigned = op == FlagOp::UMul;
                self.read_value(r::RAX, a);
                self.read_value(r::RCX, b);
                if unsigned && w != Width::W8 {
                    self.asm().buf.push(0x52); // push rdx
                    self.asm().group3(4, w, r::RCX);
                    self.asm().buf.push(0x5a); // pop rdx
                } else if w == Width::W8 {
                    self.asm().group3(if unsigned { 4 } else { 5 }, w, r::RCX);
                } else {
                    self.asm().imul_rr(w, r::RAX, r::RCX);
                }
            }
            FlagOp::Bit => {
                if old_bits != 0 {
                    self.flags_to_host(old.expect("bit tests have old flags"), old_bits);
                }
                let ra = self.value_in(a, r::RAX);
                match self.constant(b) {
                    Some(n) => self.asm().bt_ri(w, ra, (n & (u64::from(w.bits()) - 1)) as u8),
                    None => {
                        let rb = self.value_in(b, r::RCX);
                        self.asm().bt_rr(w, ra, rb);
                    }
                }
                return flags::C | old_bits;
            }
            FlagOp::Unpack => {
                self.read_value(r::RAX, a);
                self.asm().alu_ri(Alu::And, Width::W8, r::RAX, flags::V as i32);
                self.unpack();
            }
        }
        flags::ALL
    }

    /// Before something that destroys the host's flags: stores those that are still wanted at the block's end, if
    /// computing them again would take several instructions.
    pub fn keep_flags(&mut self) {
        let HostFlags { value: f, bits } = self.host_flags;
        if f == NO_VALUE || bits != flags::ALL && self.carry_of(f as usize).is_none() {
            return;
        }
        let end = self.block.insts.len() - 1;
        let wanted =
            GlobalSet(self.kinds.flags.0 & self.dirty).iter().find(|g| self.current[g.0 as usize] == f);
        let Some(g) = wanted.map(|g| g.0 as usize) else { return };
        let f = f as usize;
        if self.b.live.values[f].last_use < end as u32
            || self.b.mem[f] != MemLoc::None
            || !self.env_claimable(g)
            || self.is_cheap(f)
        {
            return;
        }
        // A branch on them has to have them in the host's flags, and stores them from there.
        if let Inst::Branch { f: tested, .. } = self.block.insts[end]
            && self.b.live.resolve(tested) == f
        {
            return;
        }
        self.write_home(g, f);
        self.dirty &= !(1 << g);
        self.own_env(g, f as u32);
    }

    /// Whether the host's flags hold what is wanted after the current instruction.
    pub fn flags_wanted(&self) -> bool {
        let f = self.host_flags.value;
        let wanted = |f: usize| self.b.live.values[f].last_use > self.at as u32;
        f != NO_VALUE && (wanted(f as usize) || wanted(self.flags_source(f as usize, flags::C)))
    }

    /// Whether a flags value is computed by one instruction.
    fn is_cheap(&self, f: usize) -> bool {
        match self.block.insts[f] {
            Inst::Flags { op: FlagOp::And, .. } => true,
            Inst::Flags { op: FlagOp::Sub, .. } => !self.b.live.uses_result(self.block, f),
            _ => false,
        }
    }

    /// Notes that an emitted instruction has destroyed the host's flags.
    pub fn clobber_flags(&mut self) {
        self.host_flags = HostFlags::NONE;
    }

    /// `cmp dword [environment + offset], 0`.
    pub fn test_env_zero(&mut self, offset: u32) {
        self.asm().cmp_mem32(env_mem(offset), 0);
        self.clobber_flags();
    }
}
