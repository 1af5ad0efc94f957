//! String instructions: one element as IR, repeated ones by the helpers of [`helpers::int_string`].
//!
//! A repeated instruction is a block's last: the helper does many iterations, and says whether the instruction is
//! finished; if not, the block goes to itself, with a poll for events on the way. INS and OUTS belong to the system
//! family.

use iced_x86::{Code, Instruction, OpKind};
use tessera_tcg::ir::{BinOp, Cond, FlagOp, HelperId, Value, Width};

use super::operand::segment_number;
use super::{Row, Translator};
use crate::helpers::int_string::{REP_CMPS, REP_LODS, REP_MOVS, REP_SCAS, REP_STOS, StringOp};
use crate::state::{global, mode, reg, seg};

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::One(Code::Movsb_m8_m8, |t, i| movs(t, i, Width::W8)),
    Row::One(Code::Movsw_m16_m16, |t, i| movs(t, i, Width::W16)),
    Row::One(Code::Movsd_m32_m32, |t, i| movs(t, i, Width::W32)),
    Row::One(Code::Movsq_m64_m64, |t, i| movs(t, i, Width::W64)),
    Row::One(Code::Stosb_m8_AL, |t, i| stos(t, i, Width::W8)),
    Row::One(Code::Stosw_m16_AX, |t, i| stos(t, i, Width::W16)),
    Row::One(Code::Stosd_m32_EAX, |t, i| stos(t, i, Width::W32)),
    Row::One(Code::Stosq_m64_RAX, |t, i| stos(t, i, Width::W64)),
    Row::One(Code::Lodsb_AL_m8, |t, i| lods(t, i, Width::W8)),
    Row::One(Code::Lodsw_AX_m16, |t, i| lods(t, i, Width::W16)),
    Row::One(Code::Lodsd_EAX_m32, |t, i| lods(t, i, Width::W32)),
    Row::One(Code::Lodsq_RAX_m64, |t, i| lods(t, i, Width::W64)),
    Row::One(Code::Cmpsb_m8_m8, |t, i| cmps(t, i, Width::W8)),
    Row::One(Code::Cmpsw_m16_m16, |t, i| cmps(t, i, Width::W16)),
    Row::One(Code::Cmpsd_m32_m32, |t, i| cmps(t, i, Width::W32)),
    Row::One(Code::Cmpsq_m64_m64, |t, i| cmps(t, i, Width::W64)),
    Row::One(Code::Scasb_AL_m8, |t, i| scas(t, i, Width::W8)),
    Row::One(Code::Scasw_AX_m16, |t, i| scas(t, i, Width::W16)),
    Row::One(Code::Scasd_EAX_m32, |t, i| scas(t, i, Width::W32)),
    Row::One(Code::Scasq_RAX_m64, |t, i| scas(t, i, Width::W64)),
];

/// Address size of a string instruction.
pub(super) fn address_width(i: &Instruction) -> Width {
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return Width::W16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return Width::W32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return Width::W64,
            _ => {}
        }
    }
    Width::W64
}

/// What the helper of a repeated string instruction is told.
pub(super) fn string_op(t: &Translator<'_>, i: &Instruction, width: Width) -> StringOp {
    StringOp {
        width,
        address: address_width(i),
        source: segment_number(i.memory_segment()) as u8,
        mmu: t.mmu,
        legacy: !t.code64(),
        segmented: t.segment_checked(seg::ES) || t.segment_checked(segment_number(i.memory_segment())),
        align: t.is(mode::ALIGN) && width != Width::W8,
        one: t.single,
        until_equal: i.has_repne_prefix(),
    }
}

impl Translator<'_> {
    /// Address of the element that index register `n` points to.
    pub(super) fn string_address(
        &mut self,
        i: &Instruction,
        n: usize,
        segment: usize,
        w: Width,
        write: bool,
    ) -> Value {
        let index = self.gpr(n);
        let offset = self.zx(address_width(i), index);
        self.linear(segment, offset, w.bytes(), write)
    }

    /// Moves index register `n` by one element in the direction of DF.
    pub(super) fn string_step(&mut self, i: &Instruction, n: usize, w: Width) {
        let df = self.b.get(global::DF);
        let step = self.b.bin_imm(BinOp::Shl, Width::W64, df, w as u64);
        let index = self.gpr(n);
        let address = address_width(i);
        let next = self.b.bin(BinOp::Add, address, index, step);
        self.set_gpr(n, address, next);
    }
}

fn is_repeated(i: &Instruction) -> bool {
    i.has_rep_prefix() || i.has_repne_prefix()
}

fn repeat(t: &mut Translator<'_>, i: &Instruction, w: Width, helper: HelperId) {
    let op = string_op(t, i, w);
    let op = t.b.iconst(op.encode());
    let finished = t.call(helper, &[op]);
    let f = t.b.flags(FlagOp::And, Width::W32, finished, finished);
    t.branch(Cond::NE, f, t.next, t.pc);
}

fn source(t: &mut Translator<'_>, i: &Instruction, w: Width) -> Value {
    let addr = t.string_address(i, reg::RSI, segment_number(i.memory_segment()), w, false);
    t.load(w, addr)
}

fn movs(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if is_repeated(i) {
        return repeat(t, i, w, REP_MOVS);
    }
    let v = source(t, i, w);
    let to = t.string_address(i, reg::RDI, seg::ES, w, true);
    t.store(w, to, v);
    t.string_step(i, reg::RSI, w);
    t.string_step(i, reg::RDI, w);
}

fn stos(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if is_repeated(i) {
        return repeat(t, i, w, REP_STOS);
    }
    let v = t.gpr(reg::RAX);
    let to = t.string_address(i, reg::RDI, seg::ES, w, true);
    t.store(w, to, v);
    t.string_step(i, reg::RDI, w);
}

fn lods(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if is_repeated(i) {
        return repeat(t, i, w, REP_LODS);
    }
    let v = source(t, i, w);
    t.set_gpr(reg::RAX, w, v);
    t.string_step(i, reg::RSI, w);
}

fn cmps(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if is_repeated(i) {
        return repeat(t, i, w, REP_CMPS);
    }
    // Silicon looks at the second operand first, as faults show.
    let to = t.string_address(i, reg::RDI, seg::ES, w, false);
    let b = t.load(w, to);
    let a = source(t, i, w);
    t.string_step(i, reg::RSI, w);
    t.string_step(i, reg::RDI, w);
    let f = t.b.flags(FlagOp::Sub, w, a, b);
    t.set_flags(f);
}

fn scas(t: &mut Translator<'_>, i: &Instruction, w: Width) {
    if is_repeated(i) {
        return repeat(t, i, w, REP_SCAS);
    }
    let a = t.gpr(reg::RAX);
    let to = t.string_address(i, reg::RDI, seg::ES, w, false);
    let b = t.load(w, to);
    t.string_step(i, reg::RDI, w);
    let f = t.b.flags(FlagOp::Sub, w, a, b);
    t.set_flags(f);
}
