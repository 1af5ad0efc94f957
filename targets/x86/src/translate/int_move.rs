//! Moves, extensions, exchanges, conditional moves and sets, flag bits, and what does nothing.

use std::mem::{offset_of, size_of};

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Cond, Ext, Inst, RmwOp, UnOp, Value, VecSize, Width, flags};

use super::operand::{Place, register_width, segment_number};
use super::{Row, Translator};
use crate::helpers;
use crate::state::{Segment, X86Env, global, seg};

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Mov, mov),
    Row::All(Mnemonic::Movnti, mov),
    Row::All(Mnemonic::Movdiri, mov),
    Row::All(Mnemonic::Movzx, |t, i| extend(t, i, false)),
    Row::All(Mnemonic::Movsx, |t, i| extend(t, i, true)),
    Row::All(Mnemonic::Movsxd, |t, i| extend(t, i, true)),
    Row::All(Mnemonic::Movbe, movbe),
    Row::All(Mnemonic::Lea, lea),
    Row::All(Mnemonic::Xchg, xchg),
    Row::All(Mnemonic::Bswap, bswap),
    Row::All(Mnemonic::Xlatb, xlat),
    Row::All(Mnemonic::Cmovo, cmov),
    Row::All(Mnemonic::Cmovno, cmov),
    Row::All(Mnemonic::Cmovb, cmov),
    Row::All(Mnemonic::Cmovae, cmov),
    Row::All(Mnemonic::Cmove, cmov),
    Row::All(Mnemonic::Cmovne, cmov),
    Row::All(Mnemonic::Cmovbe, cmov),
    Row::All(Mnemonic::Cmova, cmov),
    Row::All(Mnemonic::Cmovs, cmov),
    Row::All(Mnemonic::Cmovns, cmov),
    Row::All(Mnemonic::Cmovp, cmov),
    Row::All(Mnemonic::Cmovnp, cmov),
    Row::All(Mnemonic::Cmovl, cmov),
    Row::All(Mnemonic::Cmovge, cmov),
    Row::All(Mnemonic::Cmovle, cmov),
    Row::All(Mnemonic::Cmovg, cmov),
    Row::All(Mnemonic::Seto, setcc),
    Row::All(Mnemonic::Setno, setcc),
    Row::All(Mnemonic::Setb, setcc),
    Row::All(Mnemonic::Setae, setcc),
    Row::All(Mnemonic::Sete, setcc),
    Row::All(Mnemonic::Setne, setcc),
    Row::All(Mnemonic::Setbe, setcc),
    Row::All(Mnemonic::Seta, setcc),
    Row::All(Mnemonic::Sets, setcc),
    Row::All(Mnemonic::Setns, setcc),
    Row::All(Mnemonic::Setp, setcc),
    Row::All(Mnemonic::Setnp, setcc),
    Row::All(Mnemonic::Setl, setcc),
    Row::All(Mnemonic::Setge, setcc),
    Row::All(Mnemonic::Setle, setcc),
    Row::All(Mnemonic::Setg, setcc),
    Row::All(Mnemonic::Lahf, |t, _| lahf(t)),
    Row::All(Mnemonic::Sahf, |t, _| sahf(t)),
    Row::All(Mnemonic::Salc, |t, _| salc(t)),
    Row::All(Mnemonic::Clc, |t, _| carry(t, BinOp::And, !(flags::C as u64))),
    Row::All(Mnemonic::Stc, |t, _| carry(t, BinOp::Or, flags::C as u64)),
    Row::All(Mnemonic::Cmc, |t, _| carry(t, BinOp::Xor, flags::C as u64)),
    Row::All(Mnemonic::Cld, |t, _| direction(t, 1)),
    Row::All(Mnemonic::Std, |t, _| direction(t, u64::MAX)),
    Row::All(Mnemonic::Nop, nothing),
    Row::All(Mnemonic::Reservednop, nothing),
    Row::All(Mnemonic::Endbr32, nothing),
    Row::All(Mnemonic::Endbr64, nothing),
    Row::All(Mnemonic::Pause, nothing),
    Row::All(Mnemonic::Prefetch, nothing),
    Row::All(Mnemonic::Prefetchw, nothing),
    Row::All(Mnemonic::Prefetchwt1, nothing),
    Row::All(Mnemonic::Prefetchnta, nothing),
    Row::All(Mnemonic::Prefetcht0, nothing),
    Row::All(Mnemonic::Prefetcht1, nothing),
    Row::All(Mnemonic::Prefetcht2, nothing),
    Row::All(Mnemonic::Prefetchit0, nothing),
    Row::All(Mnemonic::Prefetchit1, nothing),
    Row::All(Mnemonic::Cldemote, nothing),
    // Without shadow stacks: the destination stays as it is.
    Row::All(Mnemonic::Rdsspd, nothing),
    Row::All(Mnemonic::Rdsspq, nothing),
    Row::All(Mnemonic::Clflush, cache_line),
    Row::All(Mnemonic::Clflushopt, cache_line),
    Row::All(Mnemonic::Clwb, cache_line),
    Row::All(Mnemonic::Serialize, serialize),
    Row::All(Mnemonic::Movdir64b, movdir64b),
    Row::All(Mnemonic::Rdrand, random),
    Row::All(Mnemonic::Rdseed, random),
];

/// Condition of Jcc, CMOVcc, SETcc.
pub(super) fn condition(i: &Instruction) -> Cond {
    // The decoder numbers conditions from 1 in the order of their encoding.
    Cond::ALL[(i.condition_code() as usize).wrapping_sub(1) & 15]
}

/// Selector of a segment register, zero-extended.
pub(super) fn selector(t: &mut Translator<'_>, r: Register) -> Value {
    let offset =
        offset_of!(X86Env, seg) + segment_number(r) * size_of::<Segment>() + offset_of!(Segment, selector);
    t.b.push(Inst::EnvLoad { width: Width::W16, offset: offset as u32 })
}

/// MOV between general registers, memory and immediates, and from segment registers.
fn mov(t: &mut Translator<'_>, i: &Instruction) {
    if i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register() {
        let v = selector(t, i.op1_register());
        if i.op0_kind() == OpKind::Register {
            return t.set_reg(i.op0_register(), v);
        }
        // To memory: 16 bits whatever the operand size.
        let addr = t.address(i, 2, true);
        return t.store(Width::W16, addr, v);
    }
    let v = t.read(i, 1);
    t.write(i, 0, v);
}

/// MOVZX, MOVSX, MOVSXD.
fn extend(t: &mut Translator<'_>, i: &Instruction, signed: bool) {
    let (from, to) = (t.width(i, 1), t.width(i, 0));
    let ext = match (signed, to) {
        (false, _) => Ext::Zero,
        (true, Width::W64) => Ext::Sign64,
        (true, _) => Ext::Sign32,
    };
    let v = if i.op1_kind() == OpKind::Memory {
        let addr = t.address(i, from.bytes(), false);
        let mem = t.mem();
        t.b.load(from, ext, addr, mem)
    } else {
        let v = t.reg(i.op1_register());
        t.b.extend(from, ext, v)
    };
    t.set_reg(i.op0_register(), v);
}

fn movbe(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let v = t.read(i, 1);
    let v = t.b.un(UnOp::Bswap, w, v);
    t.write(i, 0, v);
}

fn lea(t: &mut Translator<'_>, i: &Instruction) {
    let v = t.offset(i);
    t.set_reg(i.op0_register(), v);
}

/// XCHG: with memory always atomic.
fn xchg(t: &mut Translator<'_>, i: &Instruction) {
    let w = t.width(i, 0);
    let b = t.reg(i.op1_register());
    match t.place(i, 0) {
        Place::Mem(addr) => {
            let mem = t.mem_for_write();
            let a = t.b.push(Inst::AtomicRmw { op: RmwOp::Xchg, width: w, addr, v: b, mem });
            t.set_reg(i.op1_register(), a);
        }
        Place::Reg(r) => {
            let a = t.reg(r);
            t.set_reg(r, b);
            t.set_reg(i.op1_register(), a);
        }
    }
}

/// BSWAP; of 16 bits, which the manual leaves undefined, zero as on silicon.
fn bswap(t: &mut Translator<'_>, i: &Instruction) {
    let r = i.op0_register();
    let w = register_width(r);
    let v = if w == Width::W16 {
        t.b.iconst(0)
    } else {
        let v = t.reg(r);
        t.b.un(UnOp::Bswap, w, v)
    };
    t.set_reg(r, v);
}

fn xlat(t: &mut Translator<'_>, i: &Instruction) {
    let base = i.memory_base();
    let w = register_width(base);
    let al = t.reg_zx(Register::AL);
    let table = t.reg(base);
    let offset = t.b.bin(BinOp::Add, w, table, al);
    let addr = t.linear(segment_number(i.memory_segment()), offset, 1, false);
    let v = t.load(Width::W8, addr);
    t.set_reg(Register::AL, v);
}

fn cmov(t: &mut Translator<'_>, i: &Instruction) {
    let src = t.read(i, 1);
    let dst = t.reg(i.op0_register());
    let f = t.flags();
    let v = t.b.select(condition(i), f, src, dst);
    t.set_reg(i.op0_register(), v);
}

fn setcc(t: &mut Translator<'_>, i: &Instruction) {
    let f = t.flags();
    let v = t.b.set_cond(condition(i), f);
    t.write(i, 0, v);
}

/// EFLAGS bits 7, 6, 4, 2 and 0.
const LOW_FLAGS: u64 = 0xd5;

fn lahf(t: &mut Translator<'_>) {
    let packed = t.packed_flags();
    let low = t.b.bin_imm(BinOp::Shr, Width::W32, packed, 8);
    let low = t.b.bin_imm(BinOp::And, Width::W32, low, LOW_FLAGS);
    let low = t.b.bin_imm(BinOp::Or, Width::W32, low, 2);
    t.set_reg(Register::AH, low);
}

fn sahf(t: &mut Translator<'_>) {
    let packed = t.packed_flags();
    let ah = t.reg(Register::AH);
    let low = t.b.bin_imm(BinOp::And, Width::W32, ah, LOW_FLAGS);
    let packed = t.b.push(Inst::Insert { a: packed, b: low, pos: 8, len: 8 });
    t.set_packed_flags(packed);
}

fn salc(t: &mut Translator<'_>) {
    let f = t.flags();
    let c = t.b.set_cond(Cond::B, f);
    let v = t.b.un(UnOp::Neg, Width::W8, c);
    t.set_reg(Register::AL, v);
}

/// CLC, STC, CMC.
fn carry(t: &mut Translator<'_>, op: BinOp, mask: u64) {
    let packed = t.packed_flags();
    let packed = t.b.bin_imm(op, Width::W32, packed, mask & 0xffff_ffff);
    t.set_packed_flags(packed);
}

/// CLD, STD.
fn direction(t: &mut Translator<'_>, df: u64) {
    let v = t.b.iconst(df);
    t.b.set(global::DF, v);
}

fn nothing(_: &mut Translator<'_>, _: &Instruction) {}

/// CLFLUSH, CLFLUSHOPT, CLWB: there is no cache, but the address must be readable.
fn cache_line(t: &mut Translator<'_>, i: &Instruction) {
    let addr = t.address(i, 1, false);
    let (size, mmu) = (t.b.iconst(1), t.b.iconst(t.mmu as u64));
    t.call(helpers::int::PROBE_READ, &[addr, size, mmu]);
}

/// SERIALIZE: code that was written is seen at once in any case, so memory accesses are all that is left to order.
fn serialize(t: &mut Translator<'_>, _: &Instruction) {
    t.call(helpers::sse::FENCE, &[]);
}

/// MOVDIR64B: 64 bytes from memory to the address in a register, in ES, which must be a multiple of 64.
fn movdir64b(t: &mut Translator<'_>, i: &Instruction) {
    let from = t.address(i, 64, false);
    let offset = t.reg_zx(i.op0_register());
    let to = t.linear(seg::ES, offset, 64, true);
    let upper = |t: &mut Translator<'_>, addr: Value| {
        t.b.add_imm(if t.code64() { Width::W64 } else { Width::W32 }, addr, 32)
    };
    let mem = t.mem();
    let low = t.b.load_vec(VecSize::B32, from, mem);
    let from = upper(t, from);
    let high = t.b.load_vec(VecSize::B32, from, mem);
    let size = t.b.iconst(64);
    t.call(helpers::sse::CHECK_ALIGNED, &[to, size]);
    // Both stores are in one page: if the first does not fault, neither does the second.
    t.b.store_vec(VecSize::B32, to, low, mem);
    let to = upper(t, to);
    t.b.store_vec(VecSize::B32, to, high, mem);
}

/// RDRAND, RDSEED: always successful.
fn random(t: &mut Translator<'_>, i: &Instruction) {
    let v = t.call(helpers::int::RANDOM, &[]);
    t.set_reg(i.op0_register(), v);
    let packed = t.b.iconst(flags::C as u64);
    t.set_packed_flags(packed);
}
