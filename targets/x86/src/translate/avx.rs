//! AVX and AVX2: what has no legacy SSE counterpart. All other VEX instructions share their rows with their legacy forms, see
//! [`sse`](super::sse).
//!
//! Gathers go by a helper, because each of their lanes faults for itself, and so do masked moves in segments with limits.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{GlobalSet, HelperId, Inst, VecLen, VecOp, VecSize, VecTestOp, Width};

use super::operand::segment_number;
use super::sse::{imm8, simple, vec_number, vex_rows};
use super::sse_int::test;
use super::{Row, Translator};
use crate::helpers::avx::{self as helper, LaneAccess};
use crate::state::global;

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vex_rows! {
    simple:
        Vpblendd BlendF32, Vbroadcastss BroadcastI32, Vbroadcastsd BroadcastI64, Vpbroadcastb BroadcastI8,
        Vpbroadcastw BroadcastI16, Vpbroadcastd BroadcastI32, Vpbroadcastq BroadcastI64,
        Vinsertf128 InsertI128, Vinserti128 InsertI128, Vperm2f128 PermuteI128, Vperm2i128 PermuteI128,
        Vpermd PermuteI32, Vpermps PermuteI32, Vpermq PermuteI64, Vpermpd PermuteI64, Vpsllvd ShlVarI32,
        Vpsllvq ShlVarI64, Vpsrlvd ShrVarI32, Vpsrlvq ShrVarI64, Vpsravd SarVarI32;
};

/// Rows of this family that are more.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Vpermilps, |t, i| permute_in_lane(t, i, VecOp::ShuffleVarI32)),
    Row::All(Mnemonic::Vpermilpd, |t, i| permute_in_lane(t, i, VecOp::ShuffleVarI64)),
    Row::All(Mnemonic::Vbroadcastf128, broadcast_half),
    Row::All(Mnemonic::Vbroadcasti128, broadcast_half),
    Row::All(Mnemonic::Vextractf128, extract_half),
    Row::All(Mnemonic::Vextracti128, extract_half),
    Row::All(Mnemonic::Vtestps, |t, i| test(t, i, VecTestOp::TestSignsI32)),
    Row::All(Mnemonic::Vtestpd, |t, i| test(t, i, VecTestOp::TestSignsI64)),
    Row::All(Mnemonic::Vzeroupper, zero_upper),
    Row::All(Mnemonic::Vzeroall, zero_all),
    Row::All(Mnemonic::Vmaskmovps, |t, i| masked_move(t, i, 4)),
    Row::All(Mnemonic::Vmaskmovpd, |t, i| masked_move(t, i, 8)),
    Row::All(Mnemonic::Vpmaskmovd, |t, i| masked_move(t, i, 4)),
    Row::All(Mnemonic::Vpmaskmovq, |t, i| masked_move(t, i, 8)),
    Row::All(Mnemonic::Vgatherdps, |t, i| gather(t, i, 4, 4)),
    Row::All(Mnemonic::Vgatherdpd, |t, i| gather(t, i, 8, 4)),
    Row::All(Mnemonic::Vgatherqps, |t, i| gather(t, i, 4, 8)),
    Row::All(Mnemonic::Vgatherqpd, |t, i| gather(t, i, 8, 8)),
    Row::All(Mnemonic::Vpgatherdd, |t, i| gather(t, i, 4, 4)),
    Row::All(Mnemonic::Vpgatherdq, |t, i| gather(t, i, 8, 4)),
    Row::All(Mnemonic::Vpgatherqd, |t, i| gather(t, i, 4, 8)),
    Row::All(Mnemonic::Vpgatherqq, |t, i| gather(t, i, 8, 8)),
];

/// VPERMILPS and VPERMILPD: selectors in an immediate, which are shuffles that integers have, too, or in a vector.
fn permute_in_lane(t: &mut Translator<'_>, i: &Instruction, by_vector: VecOp) {
    if i.op2_kind() != OpKind::Immediate8 {
        return simple(t, i, by_vector);
    }
    let Some(form) = t.vector_form(i) else { return };
    let a = t.source(i, 1, form);
    let op = if by_vector == VecOp::ShuffleVarI32 { VecOp::ShuffleI32 } else { VecOp::ShuffleF64 };
    let r = t.vec_in(form, op, a, a, imm8(i));
    t.set_result(i, form, r);
}

/// 128 bits of memory to both halves.
fn broadcast_half(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    let a = t.load_vec(i, VecSize::B16, false);
    let r = t.vec_in(form, VecOp::InsertI128, a, a, 1);
    t.set_result(i, form, r);
}

fn extract_half(t: &mut Translator<'_>, i: &Instruction) {
    let Some(form) = t.vector_form(i) else { return };
    let a = t.vector(i.op1_register(), form);
    let memory = i.op0_kind() == OpKind::Memory;
    let r = match imm8(i) & 1 {
        0 if memory => a,
        0 => t.vec1(VecOp::LowI128, a, 0),
        _ => t.b.push(Inst::Vec { op: VecOp::ExtractI128, len: VecLen::V256, a, b: a, imm: 1 }),
    };
    if memory { t.store_vec(i, VecSize::B16, r, false) } else { t.set_result(i, form, r) }
}

/// How many vector registers there are.
fn register_count(t: &Translator<'_>) -> usize {
    if t.code64() { 16 } else { 8 }
}

fn zero_upper(t: &mut Translator<'_>, _: &Instruction) {
    if t.avx_available() {
        let all =
            (0..register_count(t)).fold(GlobalSet::NONE, |all, n| all.or(GlobalSet::of(global::ymm(n))));
        t.b.push(Inst::ZeroUpper(all));
    }
}

fn zero_all(t: &mut Translator<'_>, _: &Instruction) {
    if t.avx_available() {
        let zero = t.b.push(Inst::VecZero);
        for n in 0..register_count(t) {
            t.b.set(global::ymm(n), zero);
        }
    }
}

/// Calls a helper for the memory operand, whose lanes are checked each for itself.
fn access_lanes(t: &mut Translator<'_>, i: &Instruction, helper: HelperId, access: LaneAccess) {
    let offset = t.offset(i);
    let access = LaneAccess {
        segment: segment_number(i.memory_segment()) as u8,
        mmu: t.mmu,
        narrow: t.address_width(i) != Width::W64,
        ..access
    };
    let access = t.b.iconst(access.pack());
    t.call(helper, &[offset, access]);
}

/// Masked moves between memory and a register: the mask is the operand between them.
fn masked_move(t: &mut Translator<'_>, i: &Instruction, lane_bytes: u8) {
    let Some(form) = t.vector_form(i) else { return };
    let store = i.op0_kind() == OpKind::Memory;
    let data = if store { i.op2_register() } else { i.op0_register() };
    if !t.segment_checked(segment_number(i.memory_segment())) {
        // Alignment is not checked, nor are lanes that take no part.
        let offset = t.offset(i);
        let addr = t.linear(segment_number(i.memory_segment()), offset, 0, store);
        let mask = t.vector(i.op1_register(), form);
        let width = if lane_bytes == 8 { Width::W64 } else { Width::W32 };
        let mem = t.mem();
        if store {
            let v = t.vector(data, form);
            t.b.push(Inst::StoreMasked { width, len: form.len, addr, v, mask, mem });
        } else {
            let v = t.b.push(Inst::LoadMasked { width, len: form.len, addr, mask, mem });
            t.set_result(i, form, v);
        }
        return;
    }
    let access = LaneAccess {
        data: vec_number(data) as u8,
        mask: vec_number(i.op1_register()) as u8,
        lane_bytes,
        lanes: form.size().bytes() as u8 / lane_bytes,
        ..LaneAccess::default()
    };
    access_lanes(t, i, if store { helper::MASKED_STORE } else { helper::MASKED_LOAD }, access);
}

/// The mask is the last operand; there are as many lanes as the shorter of data and indices has.
fn gather(t: &mut Translator<'_>, i: &Instruction, lane_bytes: u8, index_bytes: u8) {
    if t.vector_form(i).is_none() {
        return;
    }
    let lanes_of = |r: Register, bytes: u8| if r.is_ymm() { 32 / bytes } else { 16 / bytes };
    let index = i.memory_index();
    let access = LaneAccess {
        data: vec_number(i.op0_register()) as u8,
        mask: vec_number(i.op2_register()) as u8,
        index: vec_number(index) as u8,
        lane_bytes,
        index_bytes,
        lanes: lanes_of(i.op0_register(), lane_bytes).min(lanes_of(index, index_bytes)),
        scale: i.memory_index_scale().trailing_zeros() as u8,
        ..LaneAccess::default()
    };
    access_lanes(t, i, helper::GATHER, access);
}
