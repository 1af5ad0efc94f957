//! Value numbering: equal pure operations are computed once.
//!
//! A small direct-mapped table remembers the last operation of each hash. It needs no clearing between blocks: an
//! entry counts only if the instruction it names *in this block* is equal to the one looked for, which makes any
//! stale entry harmless.

use crate::ir::Inst;

const ENTRIES: usize = 256;

/// The table.
pub(super) struct Numbering {
    table: Box<[u32; ENTRIES]>,
}

/// What [`hash`] never gives.
pub(super) const NOT_NUMBERED: u32 = u32::MAX;

impl Numbering {
    pub(super) fn new() -> Numbering {
        Numbering { table: Box::new([0; ENTRIES]) }
    }

    /// An instruction before `next` that may be equal to one with this hash. Remembers `next`, whose hash it is unless they
    /// are equal.
    #[inline(always)]
    pub(super) fn candidate(&mut self, hash: u32, next: usize) -> Option<usize> {
        let known = std::mem::replace(&mut self.table[hash as usize % ENTRIES], next as u32) as usize;
        (known < next).then_some(known)
    }

    /// Corrects the table after a candidate turned out to be equal.
    #[inline(always)]
    pub(super) fn found(&mut self, hash: u32, known: usize) {
        self.table[hash as usize % ENTRIES] = known as u32;
    }
}

/// A cheap hash of what usually tells instructions apart: kind, operation, operands.
///
/// Always inlined: where the caller has just built the instruction, it is a few operations.
#[inline(always)]
pub(super) fn hash(inst: &Inst) -> u32 {
    use Inst::*;
    let (kind, x, y) = match *inst {
        Const(c) => (1, c as u32, (c >> 32) as u32),
        Bin { op, w, a, b } => (2 + op as u32 * 4 + w as u32, a.0, b.0),
        Un { op, w, a } => (64 + op as u32 * 4 + w as u32, a.0, 0),
        Carry { w, a, b, f, .. } => (90 + w as u32, a.0, b.0 ^ f.0 << 8),
        Lea { base, index, disp, .. } => (96, base.0 ^ index.0 << 8, disp as u32),
        Extend { from, ext, a } => (100 + ext as u32 * 4 + from as u32, a.0, 0),
        Extract { a, pos, len } => (120, a.0, pos as u32 * 64 + len as u32),
        Insert { a, b, pos, .. } => (121, a.0 ^ (pos as u32) << 8, b.0),
        ShiftPair { hi, lo, count, .. } => (122, hi.0 ^ count.0 << 8, lo.0),
        Flags { op, w, a, b, .. } => (128 + op as u32 * 4 + w as u32, a.0, b.0),
        Pack(f) => (200, f.0, 0),
        SetCond { cond, f } => (201, cond as u32, f.0),
        Select { cond, f, a, b, .. } => (202 + cond as u32, f.0, a.0 ^ b.0 << 8),
        Vec { op, a, b, imm, .. } => (256 + op as u32, a.0 ^ (imm as u32) << 16, b.0),
        Vec3 { op, a, b, c, .. } => (240 + op as u32, a.0 ^ c.0 << 8, b.0),
        VecIns { op, a, b, imm } => (220 + op as u32, a.0 ^ (imm as u32) << 16, b.0),
        VecTest { op, a, b, imm, .. } => (600 + op as u32, a.0 ^ (imm as u32) << 16, b.0),
        VecFromInt { a, .. } => (250, a.0, 0),
        VecToInt { a, .. } => (251, a.0, 0),
        Call { helper, args } => {
            (1000 + helper.0 as u32, args.first().map_or(0, |v| v.0), args.get(1).map_or(0, |v| v.0))
        }
        _ => (0, 0, 0),
    };
    let h = kind.wrapping_mul(0x9e37_79b1) ^ x.wrapping_mul(0x85eb_ca6b) ^ y.wrapping_mul(0xc2b2_ae35);
    (h ^ h >> 15) >> 1
}
