//! Addition, subtraction, logic, comparison, exchange-and-add, compare-and-exchange.
//!
//! Every function handles all operand sizes and forms of its instructions. Under LOCK (the decoder has made illegal
//! uses invalid) the memory operand is changed by one atomic operation, or by a compare-and-exchange that runs the
//! instruction again if another agent was faster.

use iced_x86::{Instruction, Mnemonic, OpKind};
use tessera_tcg::ir::{BinOp, Cond, FlagOp, Inst, RmwOp, UnOp, Value, Width};

use super::operand::{Place, register_number};
use super::{Row, Translator};
use crate::helpers;
use crate::state::{global, reg};

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Add, |t, i| sum(t, i, BinOp::Add, FlagOp::Add, RmwOp::Add)),
    Row::All(Mnemonic::Sub, |t, i| sum(t, i, BinOp::Sub, FlagOp::Sub, RmwOp::Sub)),
    Row::All(Mnemonic::And, |t, i| logic(t, i, BinOp::And, RmwOp::And)),
    Row::All(Mnemonic::Or, |t, i| logic(t, i, BinOp::Or, RmwOp::Or)),
    Row::All(Mnemonic::Xor, |t, i| logic(t, i, BinOp::Xor, RmwOp::Xor)),
    Row::All(Mnemonic::Adc, |t, i| carry(t, i, false)),
    Row::All(Mnemonic::Sbb, |t, i| carry(t, i, true)),
    Row::All(Mnemonic::Adcx, |t, i| carry_chain(t, i, 8)),
    Row::All(Mnemonic::Adox, |t, i| carry_chain(t, i, 0)),
    Row::All(Mnemonic::Cmp, cmp),
    Row::All(Mnemonic::Test, test),
    Row::All(Mnemonic::Inc, |t, i| step(t, i, BinOp::Add, FlagOp::Inc, RmwOp::Add)),
    Row::All(Mnemonic::Dec, |t, i| step(t, i, BinOp::Sub, FlagOp::Dec, RmwOp::Sub)),
    Row::All(Mnemonic::Neg, neg),
    Row::All(Mnemonic::Not, not),
    Row::All(Mnemonic::Xadd, xadd),
    Row::All(Mnemonic::Cmpxchg, cmpxchg),
    Row::All(Mnemonic::Cmpxchg8b, |t, i| cmpxchg_wide(t, i, 8)),
    Row::All(Mnemonic::Cmpxchg16b, |t, i| cmpxchg_wide(t, i, 16)),
    Row::All(Mnemonic::Daa, |t, _| decimal(t, helpers::int::decimal_op::DAA)),
    Row::All(Mnemonic::Das, |t, _| decimal(t, helpers::int::decimal_op::DAS)),
    Row::All(Mnemonic::Aaa, |t, _| decimal(t, helpers::int::decimal_op::AAA)),
    Row::All(Mnemonic::Aas, |t, _| decimal(t, helpers::int::decimal_op::AAS)),
    Row::All(Mnemonic::Aad, |t, i| decimal(t, helpers::int::decimal_op::AAD | (i.immediate8() as u64) << 8)),
    Row::All(Mnemonic::Aam, aam),
];

/// Whether operand 0 is to be changed atomically; then its address.
fn locked(i: &Instruction, place: Place) -> Option<Value> {
    match place {
        Place::Mem(addr) if i.has_lock_prefix() => Some(addr),
        _ => None,
    }
}

fn same_register(i: &Instruction) -> bool {
    i.op0_kind() == OpKind::Register
        && i.op1_kind() == OpKind::Register
        && i.op0_register() == i.op1_register()
}

impl Translator<'_> {
    fn rmw(&mut self, op: RmwOp, width: Width, addr: Value, v: Value) -> Value {
        let mem = self.mem_for_write();
        self.b.push(Inst::AtomicRmw { op, width, addr, v, mem })
    }

    /// Replaces `expect` at the address by `new`, or runs the instruction again if something else is there.
    pub(super) fn cas_or_retry(&mut self, width: Width, addr: Value, expect: Value, new: Value) {
        let mem = self.mem_for_write();
        let old = self.b.push(Inst::AtomicCas { width, addr, expect, new, mem });
        let f = self.b.flags(FlagOp::Sub, width, old, expect);
        self.retry_if(Cond::NE, f);
    }

    /// Sets flags to those of a logical result.
    pub(super) fn set_logic_flags(&mut self, w: Width, result: Value) {
        let f = self.b.flags(FlagOp::And, w, result, result);
        self.set_flags(f);
    }

    /// Sets the flags that are in `keep` to those of a logical result, C to `carry` (0 or 1), all others to 0.
    pub(super) fn set_some_flags(&mut self, w: Width, result: Value, keep: u32, carry: Option<Value>) {
        let f = self.b.flags(FlagOp::And, w, result, result);
        let packed = self.b.push(Inst::Pack(f));
        let mut packed = self.b.bin_imm(BinOp::And, Width::W32, packed, keep as u64);
        if let Some(carry) = carry {
            packed = self.b.push(Inst::Insert { a: packed, b: carry, pos: 8, len: 1 });
        }
        self.set_packed_flags(packed);
    }
}

/// ADD, SUB.
fn sum(t: &mut Translator<'_>, i: &Instruction, op: BinOp, flags: FlagOp, rmw: RmwOp) {
    let w = t.width(i, 0);
    if op == BinOp::Sub && same_register(i) {
        return zero_idiom(t, i, w, FlagOp::Sub);
    }
    let b = t.read(i, 1);
    let place = t.place(i, 0);
    if let Some(addr) = locked(i, place) {
        let a = t.rmw(rmw, w, addr, b);
        let f = t.b.flags(flags, w, a, b);
        return t.set_flags(f);
    }
    let a = t.load_place(place, w);
    let r = t.b.bin(op, w, a, b);
    t.store_place(place, w, r);
    let f = t.b.flags(flags, w, a, b);
    t.set_flags(f);
}

/// XOR or SUB of a register with itself: zero, whatever is in it.
fn zero_idiom(t: &mut Translator<'_>, i: &Instruction, w: Width, flags: FlagOp) {
    let zero = t.b.iconst(0);
    t.set_reg(i.op0_register(), zero);
    let f = t.b.flags(flags, w, zero, zero);
    t.set_flags(f);
}

/// AND, OR, XOR.
fn logic(t: &mut Translator<'_>, i: &Instruction, op: BinOp, rmw: RmwOp) {
    let w = t.width(i, 0);
    if op == BinOp::Xor && same_register(i) {
        return zero_idiom(t, i, w, FlagOp::And);
    }
    let b = t.read(i, 1);
    let place = t.place(i, 0);
    if let Some(addr) = locked(i, place) {
        let a = t.rmw(rmw, w, addr, b);
        let r = t.b.bin(op, w, a, b);
        return t.set_logic_flags(w, r);
    }
    let a = t.load_place(place, w);
    let r = t.b.bin(op, w, a, b);
    t.store_place(place, w, r);
    t.set_logic_flags(w, r);
}

/// ADC, SBB.
fn carry(t: &mut Translator<'_>, i: &Instruction, sub: bool) {
    let w = t.width(i, 0);
    let b = t.read(i, 1);
    let place = t.place(i, 0);
    let old = t.flags();
    let a = t.load_place(place, w);
    let r = t.b.push(Inst::Carry { sub, w, a, b, f: old });
    match locked(i, place) {
        Some(addr) => t.cas_or_retry(w, addr, a, r),
        None => t.store_place(place, w, r),
    }
    let f = t.b.flags_old(if sub { FlagOp::Sbb } else { FlagOp::Adc }, w, a, b, old);
    t.set_flags(f);
}

/// ADCX, ADOX: addition with carry in and out of one flag, which has the packed bit `pos`.
fn carry_chain(t: &mut Translator<'_>, i: &Instruction, pos: u8) {
    let w = t.width(i, 0);
    let b = t.read(i, 1);
    let a = t.reg(i.op0_register());
    let packed = t.packed_flags();
    // The flag as the carry of a flags value of its own.
    let bit = t.b.push(Inst::Extract { a: packed, pos, len: 1 });
    let at_c = t.b.bin_imm(BinOp::Shl, Width::W32, bit, 8);
    let f = t.b.flags(FlagOp::Unpack, Width::W32, at_c, at_c);
    let r = t.b.push(Inst::Carry { sub: false, w, a, b, f });
    let sum = t.b.flags_old(FlagOp::Adc, w, a, b, f);
    let out = t.b.set_cond(Cond::B, sum);
    let packed = t.b.push(Inst::Insert { a: packed, b: out, pos, len: 1 });
    t.set_reg(i.op0_register(), r);
    t.set_packed_flags(packed);
}

fn cmp(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let a = t.read(i, 0);
    let b = t.read(i, 1);
    let f = t.b.flags(FlagOp::Sub, w, a, b);
    t.set_flags(f);
}

fn test(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let a = t.read(i, 0);
    let b = if same_register(i) { a } else { t.read(i, 1) };
    let f = t.b.flags(FlagOp::And, w, a, b);
    t.set_flags(f);
}

/// INC, DEC.
fn step(t: &mut Translator<'_>, i: &Instruction, op: BinOp, flags: FlagOp, rmw: RmwOp) {
    let w = t.width(i, 0);
    let place = t.place(i, 0);
    let one = t.b.iconst(1);
    let a = match locked(i, place) {
        Some(addr) => t.rmw(rmw, w, addr, one),
        None => {
            let a = t.load_place(place, w);
            let r = t.b.bin(op, w, a, one);
            t.store_place(place, w, r);
            a
        }
    };
    let old = t.flags();
    let f = t.b.flags_old(flags, w, a, a, old);
    t.set_flags(f);
}

fn neg(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let place = t.place(i, 0);
    let a = t.load_place(place, w);
    let r = t.b.un(UnOp::Neg, w, a);
    match locked(i, place) {
        Some(addr) => t.cas_or_retry(w, addr, a, r),
        None => t.store_place(place, w, r),
    }
    let zero = t.b.iconst(0);
    let f = t.b.flags(FlagOp::Sub, w, zero, a);
    t.set_flags(f);
}

fn not(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let place = t.place(i, 0);
    if let Some(addr) = locked(i, place) {
        let ones = t.b.iconst(u64::MAX);
        t.rmw(RmwOp::Xor, w, addr, ones);
        return;
    }
    let a = t.load_place(place, w);
    let r = t.b.un(UnOp::Not, w, a);
    t.store_place(place, w, r);
}

fn xadd(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let b = t.reg(i.op1_register());
    let place = t.place(i, 0);
    let a = match locked(i, place) {
        Some(addr) => {
            let a = t.rmw(RmwOp::Add, w, addr, b);
            t.set_reg(i.op1_register(), a);
            a
        }
        None => {
            let a = t.load_place(place, w);
            let r = t.b.bin(BinOp::Add, w, a, b);
            if let Place::Mem(_) = place {
                t.store_place(place, w, r);
                t.set_reg(i.op1_register(), a);
            } else {
                // With one register for both, the sum is what stays.
                t.set_reg(i.op1_register(), a);
                t.store_place(place, w, r);
            }
            a
        }
    };
    let f = t.b.flags(FlagOp::Add, w, a, b);
    t.set_flags(f);
}

fn cmpxchg(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let new = t.reg(i.op1_register());
    let place = t.place(i, 0);
    let acc = t.gpr(reg::RAX);
    let (old, f);
    match (place, locked(i, place)) {
        (_, Some(addr)) => {
            let mem = t.mem_for_write();
            old = t.b.push(Inst::AtomicCas { width: w, addr, expect: acc, new, mem });
            f = t.b.flags(FlagOp::Sub, w, acc, old);
            set_accumulator_unless_equal(t, w, f, old);
        }
        (Place::Mem(addr), None) => {
            old = t.load_place(place, w);
            f = t.b.flags(FlagOp::Sub, w, acc, old);
            let stored = t.b.select(Cond::E, f, new, old);
            t.store(w, addr, stored);
            set_accumulator_unless_equal(t, w, f, old);
        }
        (Place::Reg(r), None) => {
            old = t.load_place(place, w);
            f = t.b.flags(FlagOp::Sub, w, acc, old);
            if w == Width::W32 {
                // A register that differs is not written at all: it keeps its upper half.
                let number = register_number(r);
                let new = t.zx(w, new);
                let full = t.gpr(number);
                let kept = t.b.select(Cond::E, f, new, full);
                set_accumulator_unless_equal(t, w, f, old);
                t.b.set(global::gpr(number), kept);
            } else {
                let kept = t.b.select(Cond::E, f, new, old);
                set_accumulator_unless_equal(t, w, f, old);
                t.set_reg(r, kept);
            }
        }
    }
    t.set_flags(f);
}

/// The accumulator is loaded only when the comparison failed: with 32 bits, an equal one keeps its upper half.
fn set_accumulator_unless_equal(t: &mut Translator<'_>, w: Width, f: Value, old: Value) {
    let acc = t.gpr(reg::RAX);
    let loaded = match w {
        Width::W64 => old,
        Width::W32 => t.zx(w, old),
        _ => t.b.push(Inst::Insert { a: acc, b: old, pos: 0, len: w.bits() as u8 }),
    };
    let v = t.b.select(Cond::E, f, acc, loaded);
    t.b.set(global::gpr(reg::RAX), v);
}

/// CMPXCHG8B, CMPXCHG16B: atomic in any case.
fn cmpxchg_wide(t: &mut Translator<'_>, i: &Instruction, bytes: u32) {
    let addr = t.address(i, bytes, true);
    let mmu = t.b.iconst(t.mmu as u64);
    let helper = if bytes == 8 { helpers::int::CMPXCHG8B } else { helpers::int::CMPXCHG16B };
    let packed = t.packed_flags();
    let equal = t.call(helper, &[addr, mmu]);
    let packed = t.b.push(Inst::Insert { a: packed, b: equal, pos: 14, len: 1 });
    t.set_packed_flags(packed);
}

/// DAA, DAS, AAA, AAS, AAD.
fn decimal(t: &mut Translator<'_>, op: u64) {
    let ax = t.gpr(reg::RAX);
    let packed = t.packed_flags();
    let op = t.b.iconst(op);
    let r = t.call(helpers::int::DECIMAL, &[ax, packed, op]);
    t.set_gpr(reg::RAX, Width::W16, r);
    let packed = t.b.push(Inst::Extract { a: r, pos: 32, len: 16 });
    t.set_packed_flags(packed);
}

fn aam(t: &mut Translator<'_>, i: &Instruction) {
    let ax = t.gpr(reg::RAX);
    let base = t.b.iconst(i.immediate8() as u64);
    let r = t.call(helpers::int::AAM, &[ax, base]);
    t.set_gpr(reg::RAX, Width::W16, r);
    t.set_logic_flags(Width::W8, r);
}
