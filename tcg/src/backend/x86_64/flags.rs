//! Flags values on a host whose own flags have the same meaning.
//!
//! A flags value is emitted where it is used: if the host's flags hold it (because the instruction before set them
//! on the way to its result, see [`Liveness::companion`](super::liveness::Liveness)), that is nothing; otherwise its
//! operation is repeated on its operands into a scratch register. Nothing here changes where values are.

use super::emitter::{Emitter, MemLoc, NONE, env_mem};
use super::encode::{Alu, Shift, r};
use super::liveness::{NO_VALUE, flag_inputs};
use crate::ir::{Cond, FlagOp, GlobalSet, Inst, Value, Width, flags};

impl Emitter<'_> {
    /// Makes `cond` of flags value `f` (resolved) testable; returns the host condition to test.
    pub fn condition(&mut self, cond: Cond, f: usize) -> Cond {
        if self.host_flags == f as u32 {
            return cond;
        }
        let single = match cond as u8 >> 1 {
            0 => Some((0, 0x01)),
            1 => Some((1, 0x01)),
            2 => Some((1, 0x40)),
            4 => Some((1, 0x80)),
            5 => Some((1, 0x04)),
            _ => None,
        };
        if let (Some((byte, mask)), MemLoc::Env(g)) = (single, self.b.mem[f]) {
            let offset = self.guest.globals[g as usize].offset + byte;
            self.asm().test_mem8(env_mem(offset), mask);
            self.host_flags = NO_VALUE;
            return if cond as u8 & 1 == 0 { Cond::NE } else { Cond::E };
        }
        self.flags_to_host(f);
        cond
    }

    /// Makes the host's flags hold flags value `f` (resolved). Clobbers RAX and RCX.
    pub fn flags_to_host(&mut self, f: usize) {
        if self.host_flags == f as u32 {
            return;
        }
        if self.b.mem[f] != MemLoc::None {
            self.read_packed(f);
            self.unpack();
        } else {
            self.compute_flags(f);
        }
        self.host_flags = f as u32;
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
        if self.b.mem[f] != MemLoc::None && self.host_flags != f as u32 {
            self.read_packed(f);
        } else if let Inst::Flags { op: FlagOp::Unpack, a, .. } = self.block.insts[f]
            && self.host_flags != f as u32
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
            self.flags_to_host(f);
            self.pack_host();
        }
        // The upper half of the word is zero and stays so.
        self.asm().store(Width::W16, env_mem(offset), r::RAX);
    }

    /// `dst` = packed flags value `f` (resolved).
    pub fn pack_to(&mut self, dst: u8, f: usize) {
        if self.b.mem[f] != MemLoc::None && self.host_flags != f as u32 {
            self.read_packed(f);
        } else {
            self.flags_to_host(f);
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

    /// Emits the computation of flags value `f`.
    fn compute_flags(&mut self, f: usize) {
        let Inst::Flags { op, w, a, b, old } = self.block.insts[f] else {
            unreachable!("a flags value is computed or in memory")
        };
        let a = self.b.live.resolve(a);
        let b_value = Value(self.b.live.resolve(b) as u32);
        let b = b_value.index();
        let old = old.map(|o| self.b.live.resolve(o));
        let old_bits = flag_inputs(self.block, op, w, b_value, self.b.live.values[f].flag_demand).old;
        let from_result = self.b.live.uses_result(self.block, f);
        let result = self.b.live.values[f].companion as usize;
        match op {
            FlagOp::Sub if from_result => {
                self.read_value(r::RAX, result);
                self.alu_operand(Alu::Add, w, r::RAX, b);
                self.alu_operand(Alu::Cmp, w, r::RAX, b);
            }
            FlagOp::Sub => {
                if let Some(mem) = self.only_home(a) {
                    if let Some(imm) = self.imm(b, w) {
                        return self.asm().alu_mi(Alu::Cmp, w, mem, imm);
                    }
                    if self.b.reg[b] != NONE {
                        let rb = self.b.reg[b];
                        return self.asm().alu_mr(Alu::Cmp, w, mem, rb);
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
                    self.read_value(r::RAX, result);
                    self.alu_operand(Alu::Sub, w, r::RAX, b);
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
                self.flags_to_host(old.expect("carry operations have old flags"));
                self.read_value(r::RAX, a);
                self.alu_operand(if op == FlagOp::Adc { Alu::Adc } else { Alu::Sbb }, w, r::RAX, b);
            }
            FlagOp::Inc | FlagOp::Dec => {
                let inc = op == FlagOp::Inc;
                if old_bits != 0 {
                    self.flags_to_host(old.expect("increments have old flags"));
                }
                if from_result {
                    self.read_value(r::RAX, result);
                    self.asm().lea(Width::W64, r::RAX, r::RAX, None, if inc { -1 } else { 1 });
                } else {
                    self.read_value(r::RAX, a);
                }
                self.asm().incdec(!inc as u8, w, r::RAX);
            }
            FlagOp::Shl | FlagOp::Shr | FlagOp::Sar | FlagOp::Rol | FlagOp::Ror => {
                if old_bits != 0 {
                    self.flags_to_host(old.expect("shifts have old flags"));
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
                    self.flags_to_host(old.expect("bit tests have old flags"));
                }
                let ra = self.value_in(a, r::RAX);
                match self.constant(b) {
                    Some(n) => self.asm().bt_ri(w, ra, (n & (u64::from(w.bits()) - 1)) as u8),
                    None => {
                        let rb = self.value_in(b, r::RCX);
                        self.asm().bt_rr(w, ra, rb);
                    }
                }
            }
            FlagOp::Unpack => {
                self.read_value(r::RAX, a);
                self.asm().alu_ri(Alu::And, Width::W8, r::RAX, flags::V as i32);
                self.unpack();
            }
        }
    }

    /// Before something that destroys the host's flags: stores those that are still wanted at the block's end, if
    /// computing them again would take several instructions.
    pub fn keep_flags(&mut self) {
        let f = self.host_flags;
        if f == NO_VALUE {
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
        let f = self.host_flags;
        f != NO_VALUE && self.b.live.values[f as usize].last_use > self.at as u32
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
        self.host_flags = NO_VALUE;
    }

    /// `cmp dword [environment + offset], 0`.
    pub fn test_env_zero(&mut self, offset: u32) {
        self.asm().cmp_mem32(env_mem(offset), 0);
        self.clobber_flags();
    }
}
