//! Emission of integer instructions.

use super::emitter::{Emitter, NONE, env_mem};
use super::encode::{Alu, Shift, r};
use super::liveness::NO_VALUE;
use crate::ir::{BinOp, Cond, Ext, FlagOp, Inst, UnOp, Value, Width, flags};

impl Emitter<'_> {
    /// The flags value that may be set on the way, if anybody wants it.
    fn fused(&self) -> Option<usize> {
        let f = self.b.live.values[self.at].fused as usize;
        (f as u32 != NO_VALUE && self.flags_reach_a_use(f)).then_some(f)
    }

    /// Bits of the current value that someone reads.
    fn demand(&self) -> u32 {
        self.b.live.values[self.at].demand as u32
    }

    /// Whether the current operation keeps the upper bits of its first operand.
    fn merges(&self) -> bool {
        self.b.live.values[self.at].merges != NO_VALUE
    }

    /// The first operand of the current operation, or what it keeps the upper bits of.
    fn first(&self, a: Value) -> Value {
        match self.b.live.values[self.at].merges {
            NO_VALUE => a,
            // It may stand for something else by now.
            whole => Value(whole),
        }
    }

    /// Zero-extends the result if anyone looks above its width.
    fn finish_narrow(&mut self, w: Width, dst: u8) {
        if w < Width::W32 && self.demand() > w.bits() && !self.merges() {
            self.asm().movzx(w, dst, dst);
        }
    }

    /// `dst = src`, of at least what the current operation of the width makes use of.
    fn copy(&mut self, w: Width, dst: u8, src: u8) {
        if dst != src {
            if w == Width::W64 || self.merges() {
                self.asm().mov_rr(dst, src);
            } else {
                self.asm().mov_rr_w(Width::W32, dst, src);
            }
        }
    }

    /// [`Inst::Bin`].
    pub fn bin(&mut self, op: BinOp, w: Width, a: Value, b: Value) {
        let a = self.first(a);
        match op {
            BinOp::Add | BinOp::Sub | BinOp::And | BinOp::Or | BinOp::Xor => self.alu(op, w, a, b),
            BinOp::AndNot => {
                let (ra, rb) = (self.use_int(a), self.use_int(b));
                self.asm().mov_rr(r::RAX, rb);
                self.asm().group3(2, Width::W64, r::RAX);
                self.asm().alu_rr(Alu::And, w.max(Width::W32), r::RAX, ra);
                self.result_from_rax(w);
            }
            BinOp::Mul => self.mul(w, a, b),
            BinOp::MulHiU | BinOp::MulHiS => self.mul_high(op == BinOp::MulHiS, w, a, b),
            BinOp::Shl => self.shift(Shift::Shl, w, a, b),
            BinOp::Shr => self.shift(Shift::Shr, w, a, b),
            BinOp::Sar => self.shift(Shift::Sar, w, a, b),
            BinOp::Rol => self.shift(Shift::Rol, w, a, b),
            BinOp::Ror => self.shift(Shift::Ror, w, a, b),
        }
    }

    /// Result of width `w` in RAX, with garbage above in narrow widths.
    fn result_from_rax(&mut self, w: Width) {
        self.clobber_flags();
        let dst = self.define(NONE, 0);
        self.asm().movzx(w, dst, r::RAX);
    }

    fn alu(&mut self, op: BinOp, w: Width, a: Value, b: Value) {
        let (mut a, mut b) = (a, b);
        let merges = self.merges();
        let commutes = op != BinOp::Sub && !merges;
        // Not two constants: an increment is one of the first operand.
        let immediate = |e: &Self, v| e.imm(e.b.live.resolve(v), w).is_some();
        if commutes && immediate(self, a) && !immediate(self, b) {
            std::mem::swap(&mut a, &mut b);
        }
        let fused = self.fused();
        let mut held = flags::ALL;
        let mut incdec = None;
        if let Some(f) = fused
            && let Inst::Flags { op: fop @ (FlagOp::Inc | FlagOp::Dec), old: Some(old), .. } =
                self.block.insts[f]
        {
            incdec = Some((fop == FlagOp::Dec) as u8);
            // C stays as it is, whatever it is.
            if !self.holds_flags(self.b.live.resolve(old), flags::C) {
                held &= !flags::C;
            }
        }
        let native = if fused.is_some() || merges { w } else { w.max(Width::W32) };
        let alu = match op {
            BinOp::Add => Alu::Add,
            BinOp::Sub => Alu::Sub,
            BinOp::And => Alu::And,
            BinOp::Or => Alu::Or,
            _ => Alu::Xor,
        };
        let bv = self.b.live.resolve(b);
        let mut imm = self.imm(bv, native);
        if w < Width::W32 && fused.is_none() {
            // Computed in 32 bits; the immediate's upper bits do not matter.
            imm = imm.map(|i| i as i16 as i32);
        }
        if commutes && imm.is_none() && self.last_home(self.b.live.resolve(a)).is_some() {
            std::mem::swap(&mut a, &mut b);
        }
        // LEA leaves flags alone that somebody still wants.
        let spare_flags = self.flags_wanted();
        let home = if imm.is_some() { None } else { self.last_home(self.b.live.resolve(b)) };
        let ra = self.use_int(a);
        let rb = if imm.is_some() || home.is_some() { NONE } else { self.use_int(b) };
        let dst = self.define(ra, if rb != NONE && rb != ra && !commutes { 1 << rb } else { 0 });
        if let Some(mem) = home {
            self.copy(w, dst, ra);
            self.asm().alu_rm(alu, native, dst, mem);
        } else if let Some(digit) = incdec {
            self.copy(w, dst, ra);
            self.asm().incdec(digit, w, dst);
        } else if let Some(imm) = imm {
            let negated = if op == BinOp::Sub { imm.checked_neg() } else { Some(imm) };
            let sum = matches!(op, BinOp::Add | BinOp::Sub) && !merges;
            if (dst != ra || spare_flags) && fused.is_none() && sum && negated.is_some() {
                self.asm().lea(native, dst, ra, None, negated.unwrap_or(0));
                self.finish_narrow(w, dst);
                return;
            }
            self.copy(w, dst, ra);
            self.asm().alu_ri(alu, native, dst, imm);
        } else if op == BinOp::Add && fused.is_none() && !merges && (spare_flags || dst != ra && dst != rb) {
            self.asm().lea(native, dst, ra, Some((rb, 0)), 0);
            self.finish_narrow(w, dst);
            return;
        } else if dst == ra {
            self.asm().alu_rr(alu, native, dst, rb);
        } else if dst == rb {
            self.asm().alu_rr(alu, native, dst, ra);
        } else {
            self.copy(w, dst, ra);
            self.asm().alu_rr(alu, native, dst, rb);
        }
        self.hold_flags(fused, held);
        self.finish_narrow(w, dst);
    }

    fn mul(&mut self, w: Width, a: Value, b: Value) {
        let (mut a, mut b) = (a, b);
        if self.imm(self.b.live.resolve(a), w).is_some() {
            std::mem::swap(&mut a, &mut b);
        }
        let fused = if w == Width::W8 { None } else { self.fused() };
        let native = if fused.is_some() { w } else { w.max(Width::W32) };
        let ra = self.use_int(a);
        let bv = self.b.live.resolve(b);
        if let Some(imm) = self.imm(bv, w)
            && native >= Width::W32
        {
            let dst = self.define(ra, 0);
            self.asm().imul_rri(native, dst, ra, imm);
            self.hold_flags(fused, flags::ALL);
            self.finish_narrow(w, dst);
            return;
        }
        if let Some(mem) = self.last_home(bv) {
            let dst = self.define(ra, 0);
            self.copy(w, dst, ra);
            self.asm().imul_rm(native, dst, mem);
            self.hold_flags(fused, flags::ALL);
            self.finish_narrow(w, dst);
            return;
        }
        let rb = self.use_int(b);
        let dst = self.define(ra, 0);
        if dst == rb {
            self.asm().imul_rr(native, dst, ra);
        } else {
            self.copy(w, dst, ra);
            self.asm().imul_rr(native, dst, rb);
        }
        self.hold_flags(fused, flags::ALL);
        self.finish_narrow(w, dst);
    }

    fn mul_high(&mut self, signed: bool, w: Width, a: Value, b: Value) {
        let (ra, rb) = (self.use_int(a), self.use_int(b));
        if w == Width::W64 {
            self.asm().mov_rr(r::RAX, ra);
            self.asm().mov_rr(r::RCX, rb);
            self.asm().buf.push(0x52); // push rdx
            self.asm().group3(if signed { 5 } else { 4 }, w, r::RCX);
            self.asm().mov_rr(r::RAX, r::RDX);
            self.asm().buf.push(0x5a); // pop rdx
        } else {
            for (scratch, reg) in [(r::RAX, ra), (r::RCX, rb)] {
                if signed {
                    self.asm().movsx(w, Width::W64, scratch, reg);
                } else {
                    self.asm().movzx(w, scratch, reg);
                }
            }
            self.asm().imul_rr(Width::W64, r::RAX, r::RCX);
            self.asm().shift_ri(Shift::Shr, Width::W64, r::RAX, w.bits() as u8);
        }
        self.result_from_rax(w);
    }

    fn shift(&mut self, op: Shift, w: Width, a: Value, b: Value) {
        let limit = if w == Width::W64 { 63 } else { 31 };
        let mut fused = self.fused();
        let bv = self.b.live.resolve(b);
        if let Some(c) = self.constant(bv) {
            let count = c as u8 & limit;
            let ra = self.use_int(a);
            let dst = self.define(ra, 0);
            if count == 0 {
                self.asm().movzx(w, dst, ra);
                return;
            }
            self.copy(w, dst, ra);
            self.asm().shift_ri(op, w, dst, count);
            self.hold_flags(fused, flags::ALL);
            self.finish_narrow(w, dst);
            return;
        }
        // By zero, the flags are the old ones.
        let mut held = flags::ALL;
        if let Some(f) = fused
            && let Inst::Flags { op: fop, old: Some(old), .. } = self.block.insts[f]
        {
            held = fop.old_bits(w, None, self.b.live.values[f].flag_demand);
            if !self.holds_flags(self.b.live.resolve(old), held) {
                fused = None;
            }
        }
        let ra = self.use_int(a);
        let rb = self.use_int(b);
        if fused.is_none() && w >= Width::W32 && matches!(op, Shift::Shl | Shift::Shr | Shift::Sar) {
            let dst = self.define(ra, 0);
            self.asm().shiftx(op, w, dst, ra, rb);
            return;
        }
        self.asm().mov_rr(r::RCX, rb);
        let dst = self.define(ra, 0);
        self.copy(w, dst, ra);
        self.asm().shift_rcl(op, w, dst);
        self.hold_flags(fused, held);
        if w == Width::W32 {
            // A 32-bit shift by zero need not zero-extend.
            if self.demand() > 32 {
                self.asm().mov_rr_w(Width::W32, dst, dst);
            }
        } else {
            self.finish_narrow(w, dst);
        }
    }

    /// [`Inst::Un`].
    pub fn un(&mut self, op: UnOp, w: Width, a: Value) {
        let ra = self.use_int(a);
        let native = w.max(Width::W32);
        match op {
            UnOp::Neg | UnOp::Not => {
                let dst = self.define(ra, 0);
                self.copy(w, dst, ra);
                self.asm().group3(if op == UnOp::Neg { 3 } else { 2 }, native, dst);
                if op == UnOp::Neg {
                    self.clobber_flags();
                }
                self.finish_narrow(w, dst);
            }
            UnOp::Bswap => {
                let dst = self.define(ra, 0);
                self.copy(w, dst, ra);
                if w == Width::W16 {
                    self.asm().shift_ri(Shift::Rol, Width::W16, dst, 8);
                    self.clobber_flags();
                    self.finish_narrow(w, dst);
                } else {
                    self.asm().bswap(w, dst);
                }
            }
            UnOp::Clz | UnOp::Ctz | UnOp::Popcnt => {
                let dst = self.define(ra, 0);
                let opcode = match op {
                    UnOp::Clz => 0xbd,
                    UnOp::Ctz => 0xbc,
                    _ => 0xb8,
                };
                if w == Width::W8 {
                    self.asm().movzx(w, r::RAX, ra);
                    self.asm().bitcount(opcode, native, dst, r::RAX);
                } else {
                    self.asm().bitcount(opcode, w, dst, ra);
                }
                self.clobber_flags();
                if w == Width::W16 {
                    self.asm().movzx(w, dst, dst);
                }
            }
        }
    }

    /// [`Inst::Carry`].
    pub fn carry(&mut self, sub: bool, w: Width, a: Value, b: Value, f: Value) {
        let fused = self.fused();
        let f = self.b.live.resolve(f);
        let ra = self.use_int(a);
        let bv = self.b.live.resolve(b);
        let native = if fused.is_some() { w } else { w.max(Width::W32) };
        let imm = self.imm(bv, native);
        let rb = if imm.is_some() { NONE } else { self.use_int(b) };
        self.flags_to_host(f, flags::C);
        let alu = if sub { Alu::Sbb } else { Alu::Adc };
        let mut dst = self.define(ra, 0);
        let target = dst;
        if dst == rb && dst != ra {
            dst = r::RAX;
        }
        self.copy(w, dst, ra);
        match imm {
            Some(imm) => self.asm().alu_ri(alu, native, dst, imm),
            None => self.asm().alu_rr(alu, native, dst, rb),
        }
        self.asm().mov_rr(target, dst);
        self.hold_flags(fused, flags::ALL);
        self.finish_narrow(w, target);
    }

    /// [`Inst::Lea`].
    pub fn lea(&mut self, w: Width, base: Value, index: Value, scale: u8, disp: i32) {
        let (rb, ri) = (self.use_int(base), self.use_int(index));
        let dst = self.define(rb, 0);
        self.asm().lea(w, dst, rb, Some((ri, scale)), disp);
    }

    /// [`Inst::Extend`].
    pub fn extend(&mut self, from: Width, ext: Ext, a: Value) {
        if let Some(mem) = self.last_home(self.b.live.resolve(a)) {
            let dst = self.define(NONE, 0);
            return self.asm().load_ext(from, ext, dst, mem);
        }
        let ra = self.use_int(a);
        let dst = self.define(ra, 0);
        match ext {
            Ext::Zero => self.asm().movzx(from, dst, ra),
            Ext::Sign32 if from >= Width::W32 => self.asm().movzx(Width::W32, dst, ra),
            Ext::Sign32 => self.asm().movsx(from, Width::W32, dst, ra),
            Ext::Sign64 => self.asm().movsx(from, Width::W64, dst, ra),
        }
    }

    /// [`Inst::Extract`].
    pub fn extract(&mut self, a: Value, pos: u8, len: u8) {
        let ra = self.use_int(a);
        let dst = self.define(ra, 0);
        if pos == 0
            && let Some(w) = Width::from_bytes(len as u32 / 8)
            && len.is_multiple_of(8)
        {
            self.asm().movzx(w, dst, ra);
            return;
        }
        self.asm().mov_rr(dst, ra);
        if pos != 0 {
            self.asm().shift_ri(Shift::Shr, Width::W64, dst, pos);
        }
        if len == 8 {
            self.asm().movzx(Width::W8, dst, dst);
        } else if len == 16 {
            self.asm().movzx(Width::W16, dst, dst);
        } else if pos + len == 32 && pos != 0 {
            // The demanded low 32 bits were shifted as 64; drop what came from above.
            self.mask_low(dst, len);
        } else if pos + len < 64 {
            self.mask_low(dst, len);
        }
        self.clobber_flags();
    }

    /// Keeps the low `len` bits of `reg`.
    fn mask_low(&mut self, reg: u8, len: u8) {
        match len {
            64 => {}
            32 => self.asm().mov_rr_w(Width::W32, reg, reg),
            0..=31 => self.asm().alu_ri(Alu::And, Width::W32, reg, ((1u64 << len) - 1) as i32),
            _ => {
                self.asm().shift_ri(Shift::Shl, Width::W64, reg, 64 - len);
                self.asm().shift_ri(Shift::Shr, Width::W64, reg, 64 - len);
            }
        }
    }

    /// [`Inst::Insert`].
    pub fn insert(&mut self, a: Value, b: Value, pos: u8, len: u8) {
        let ra = self.use_int(a);
        let from = self.b.live.resolve(b);
        if let Some(&Inst::SetCond { cond, f }) = self.block.insts.get(from)
            && self.b.live.values[from].deferred
        {
            let host = self.condition(cond, self.b.live.resolve(f));
            let dst = self.define(ra, 0);
            self.asm().mov_rr(dst, ra);
            self.asm().setcc(host, dst);
            return;
        }
        if pos == 0
            && (len == 8 || len == 16)
            && let Some(imm) = self.constant(from)
        {
            let dst = self.define(ra, 0);
            self.asm().mov_rr(dst, ra);
            self.asm().mov_low(if len == 8 { Width::W8 } else { Width::W16 }, dst, imm as u16);
            return;
        }
        let rb = self.use_int(b);
        if pos == 0 && len == 64 {
            let dst = self.define(rb, 0);
            self.asm().mov_rr(dst, rb);
            return;
        }
        if pos == 0 && (len == 8 || len == 16) {
            let dst = self.define(ra, if rb != ra { 1 << rb } else { 0 });
            self.asm().mov_rr(dst, ra);
            self.asm().mov_rr_w(if len == 8 { Width::W8 } else { Width::W16 }, dst, rb);
            return;
        }
        if len == 8 && pos + len <= 32 {
            // Rotated, the field is a register's low byte.
            let dst = self.define(ra, if rb != ra { 1 << rb } else { 0 });
            if rb == ra {
                self.asm().mov_rr(r::RCX, rb);
            }
            let rb = if rb == ra { r::RCX } else { rb };
            self.asm().mov_rr(dst, ra);
            self.asm().shift_ri(Shift::Ror, Width::W64, dst, pos);
            self.asm().mov_rr_w(Width::W8, dst, rb);
            self.asm().shift_ri(Shift::Rol, Width::W64, dst, pos);
            self.clobber_flags();
            return;
        }
        self.asm().mov_rr(r::RCX, rb);
        self.mask_low(r::RCX, len);
        if pos != 0 {
            self.asm().shift_ri(Shift::Shl, Width::W64, r::RCX, pos);
        }
        let mask = !((u64::MAX >> (64 - len)) << pos);
        let dst = self.define(ra, 0);
        self.asm().mov_rr(dst, ra);
        if mask as i64 == mask as i32 as i64 {
            self.asm().alu_ri(Alu::And, Width::W64, dst, mask as i32);
        } else {
            self.asm().mov_ri(r::RAX, mask);
            self.asm().alu_rr(Alu::And, Width::W64, dst, r::RAX);
        }
        self.asm().alu_rr(Alu::Or, Width::W64, dst, r::RCX);
        self.clobber_flags();
    }

    /// [`Inst::ShiftPair`].
    pub fn shift_pair(&mut self, w: Width, hi: Value, lo: Value, count: Value) {
        let (rh, rl, rc) = (self.use_int(hi), self.use_int(lo), self.use_int(count));
        self.asm().mov_rr(r::RAX, rl);
        self.asm().mov_rr(r::RCX, rc);
        self.asm().shrd_cl(w, r::RAX, rh);
        self.result_from_rax(w);
    }

    /// [`Inst::Pack`].
    pub fn pack(&mut self, f: Value) {
        let f = self.b.live.resolve(f);
        // The definition may take a register that the computation reads, so it comes second.
        self.pack_to(r::RAX, f);
        let dst = self.define(NONE, 0);
        self.asm().mov_rr(dst, r::RAX);
    }

    /// [`Inst::SetCond`].
    pub fn set_cond(&mut self, cond: Cond, f: Value) {
        if self.b.live.values[self.at].deferred {
            return;
        }
        let f = self.b.live.resolve(f);
        let host = self.condition(cond, f);
        self.asm().setcc(host, r::RAX);
        let dst = self.define(NONE, 0);
        self.asm().movzx(Width::W8, dst, r::RAX);
    }

    /// [`Inst::Select`].
    pub fn select(&mut self, w: Width, cond: Cond, f: Value, a: Value, b: Value) {
        let f = self.b.live.resolve(f);
        let (ra, rb) = (self.use_int(a), self.use_int(b));
        let host = self.condition(cond, f);
        let dst = self.define(rb, 0);
        // In 32 bits it zero-extends, whether it moves or not.
        if dst == ra && ra != rb {
            self.asm().cmov(w, host.negate(), dst, rb);
        } else {
            self.asm().mov_rr(dst, rb);
            self.asm().cmov(w, host, dst, ra);
        }
    }

    /// [`Inst::EnvLoad`].
    pub fn env_load(&mut self, width: Width, offset: u32) {
        let dst = self.define(NONE, 0);
        self.asm().load(width, dst, env_mem(offset));
    }

    /// [`Inst::EnvStore`].
    pub fn env_store(&mut self, width: Width, offset: u32, v: Value) {
        let value = self.b.live.resolve(v);
        if let Some(imm) = self.imm(value, width) {
            self.asm().store_imm(width, env_mem(offset), imm);
        } else {
            let reg = self.use_int(v);
            self.asm().store(width, env_mem(offset), reg);
        }
    }
}
