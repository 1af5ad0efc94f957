//! Side tables in memory: what a slow path needs to know of a point, in few bytes.
//!
//! Problem: there is a point for every guest memory access in the code cache, and hardly any is ever looked at; as Rust
//! values they would take more memory than the code. Strategy: bytes. A block's tables are
//!
//! ```text
//! u32 offset of each point, u32 offset of each recipe (from the start of the tables), points, recipes
//! point:  pc (from the block's, zigzag), access (0 or its kind and fields), number of moved globals, (global, location)…
//! ```
//!
//! with integers in LEB128, a location's kind and register in one byte, and constants near the block's address by their
//! distance from there: so the tables of a block are the same wherever its code is. They are made by [`encode`] from what the
//! backend says, never from guest input.

use crate::backend::{AccessKind, Compiled, FlagRecipe, Loc, SlowAccess, StatePoint};
use crate::ir::{Ext, FlagOp, GlobalId, RmwOp, VecLen, VecSize, Width};

/// Constants that are less far than this from the block's address are kept by their distance.
const NEAR: u64 = 1 << 31;

/// Appends the tables of a block at guest address `pc`.
pub(super) fn encode(compiled: &Compiled, pc: u64, out: &mut Vec<u8>) {
    let start = out.len();
    let entries = compiled.points.len() + compiled.recipes.len();
    out.resize(start + 4 * entries, 0);
    let mut n = 0;
    let mut note = |out: &mut Vec<u8>| {
        let at = ((out.len() - start) as u32).to_le_bytes();
        out[start + 4 * n..start + 4 * n + 4].copy_from_slice(&at);
        n += 1;
    };
    for point in &compiled.points {
        note(out);
        put_point(out, point, pc, &compiled.moved);
    }
    for recipe in &compiled.recipes {
        note(out);
        put_recipe(out, recipe, pc);
    }
}

fn put_point(out: &mut Vec<u8>, point: &StatePoint, pc: u64, moved: &[(GlobalId, Loc)]) {
    put(out, zigzag(point.pc.wrapping_sub(pc)));
    match &point.access {
        None => out.push(0),
        Some(access) => put_access(out, access, pc),
    }
    let start = point.moved_start as usize;
    let moved = &moved[start..start + point.moved_len as usize];
    put(out, moved.len() as u64);
    for (global, loc) in moved {
        out.push(global.0);
        put_loc(out, *loc, pc);
    }
}

fn put_access(out: &mut Vec<u8>, access: &SlowAccess, pc: u64) {
    match access.kind {
        AccessKind::Load { width, ext, dst, for_write } => {
            let flags = (ext as u8) << 3 | u8::from(for_write) << 5;
            out.extend([1, width as u8 | flags, dst]);
        }
        AccessKind::Store { width, v } => {
            out.extend([2, width as u8]);
            put_loc(out, v, pc);
        }
        AccessKind::LoadVec { size, dst } => out.extend([3, size as u8, dst]),
        AccessKind::StoreVec { size, v } => {
            out.extend([4, size as u8]);
            put_loc(out, v, pc);
        }
        AccessKind::LoadMasked { width, len, mask, dst } => {
            out.extend([7, width as u8 | (len as u8) << 3, dst]);
            put_loc(out, mask, pc);
        }
        AccessKind::StoreMasked { width, len, v, mask } => {
            out.extend([8, width as u8 | (len as u8) << 3]);
            put_loc(out, v, pc);
            put_loc(out, mask, pc);
        }
        AccessKind::AtomicRmw { op, width, v, dst } => {
            out.extend([5, width as u8 | (op as u8) << 3, dst]);
            put_loc(out, v, pc);
        }
        AccessKind::AtomicCas { width, expect, new, dst } => {
            out.extend([6, width as u8, dst]);
            put_loc(out, expect, pc);
            put_loc(out, new, pc);
        }
    }
    out.push(access.mmu | (access.align.trailing_zeros() as u8) << 4);
    put_loc(out, access.addr, pc);
}

fn put_recipe(out: &mut Vec<u8>, r: &FlagRecipe, pc: u64) {
    out.push(r.op as u8);
    out.push(r.w as u8 | u8::from(r.from_result) << 3 | u8::from(r.old.is_some()) << 4);
    put_loc(out, r.a, pc);
    put_loc(out, r.b, pc);
    if let Some(old) = r.old {
        put_loc(out, old, pc);
    }
}

/// A distance as a number that is small if it is short, forward or backward.
fn zigzag(distance: u64) -> u64 {
    let distance = distance as i64;
    (distance << 1 ^ distance >> 63) as u64
}

/// The reverse of [`zigzag`].
fn unzigzag(v: u64) -> u64 {
    v >> 1 ^ (v & 1).wrapping_neg()
}

fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn put_loc(out: &mut Vec<u8>, loc: Loc, pc: u64) {
    let (kind, v) = match loc {
        Loc::Int(r) => return out.push(r & 31),
        Loc::Vec(r) => return out.push(1 << 5 | r & 31),
        Loc::Spill(n) => (2, u64::from(n)),
        Loc::Const(c) => match zigzag(c.wrapping_sub(pc)) {
            near if near < NEAR => (7, near),
            _ => (3, c),
        },
        Loc::Env(offset) => (4, u64::from(offset)),
        Loc::Flags(n) => (5, u64::from(n)),
        Loc::EnvLow(offset) => (6, u64::from(offset)),
    };
    out.push(kind << 5);
    put(out, v);
}

/// The tables of one block.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    bytes: &'a [u8],
    pc: u64,
    points: usize,
}

/// The guest's state at a point.
pub(super) struct State<'a> {
    /// Guest program counter.
    pub pc: u64,
    /// Globals away from home.
    pub moved: Moved<'a>,
}

/// Globals away from home, in order.
pub(super) struct Moved<'a> {
    left: u64,
    reader: Reader<'a>,
}

impl<'a> Tables<'a> {
    /// The tables that begin at the start of `bytes`: those of a block at `pc` with so many points.
    pub fn new(bytes: &'a [u8], pc: u64, points: usize) -> Tables<'a> {
        Tables { bytes, pc, points }
    }

    #[inline]
    fn entry(&self, n: usize) -> Reader<'a> {
        let at = u32::from_le_bytes(std::array::from_fn(|i| self.bytes[4 * n + i]));
        Reader { bytes: &self.bytes[at as usize..], pc: self.pc }
    }

    /// The access of a point, unless that is a helper call.
    #[inline(always)]
    pub fn access(&self, n: usize) -> Option<SlowAccess> {
        let mut r = self.entry(n);
        r.int();
        r.access()
    }

    /// The state at a point.
    #[inline(always)]
    pub fn state(&self, n: usize) -> State<'a> {
        let mut r = self.entry(n);
        let distance = r.int();
        let pc = self.pc.wrapping_add(unzigzag(distance));
        // What is not used is not built.
        r.access();
        let left = r.int();
        State { pc, moved: Moved { left, reader: r } }
    }

    /// A recipe.
    pub fn recipe(&self, n: u32) -> FlagRecipe {
        let mut r = self.entry(self.points + n as usize);
        let op = FlagOp::ALL[r.byte() as usize];
        let bits = r.byte();
        let (a, b) = (r.loc(), r.loc());
        let old = (bits & 1 << 4 != 0).then(|| r.loc());
        FlagRecipe { op, w: Width::ALL[(bits & 3) as usize], a, b, old, from_result: bits & 1 << 3 != 0 }
    }
}

/// What is at a point: its address, its access, and the globals away from home.
#[cfg(debug_assertions)]
type Point = (u64, Option<SlowAccess>, Vec<(GlobalId, Loc)>);

/// What tables with so many points and recipes say.
#[cfg(debug_assertions)]
pub(super) fn contents(
    bytes: &[u8],
    pc: u64,
    (points, recipes): (usize, usize),
) -> (Vec<Point>, Vec<FlagRecipe>) {
    let tables = Tables::new(bytes, pc, points);
    let point = |n| {
        let State { pc, moved } = tables.state(n);
        (pc, tables.access(n), moved.collect())
    };
    ((0..points).map(point).collect(), (0..recipes as u32).map(|n| tables.recipe(n)).collect())
}

impl Iterator for Moved<'_> {
    type Item = (GlobalId, Loc);

    #[inline]
    fn next(&mut self) -> Option<(GlobalId, Loc)> {
        self.left = self.left.checked_sub(1)?;
        let global = GlobalId(self.reader.byte());
        Some((global, self.reader.loc()))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// The block's address.
    pc: u64,
}

impl Reader<'_> {
    #[inline]
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.bytes.split_first().expect("side tables are complete");
        self.bytes = rest;
        *first
    }

    #[inline]
    fn int(&mut self) -> u64 {
        let mut v = 0;
        let mut shift = 0;
        loop {
            let b = self.byte();
            v |= u64::from(b & 0x7f) << shift;
            shift += 7;
            if b & 0x80 == 0 {
                return v;
            }
        }
    }

    #[inline]
    fn loc(&mut self) -> Loc {
        let b = self.byte();
        match b >> 5 {
            0 => Loc::Int(b & 31),
            1 => Loc::Vec(b & 31),
            2 => Loc::Spill(self.int() as u16),
            3 => Loc::Const(self.int()),
            4 => Loc::Env(self.int() as u32),
            5 => Loc::Flags(self.int() as u32),
            6 => Loc::EnvLow(self.int() as u32),
            _ => Loc::Const(self.pc.wrapping_add(unzigzag(self.int()))),
        }
    }

    // Results this large are copied if they are returned through memory, which costs more than to decode them.
    #[inline(always)]
    fn access(&mut self) -> Option<SlowAccess> {
        let tag = self.byte();
        if tag == 0 {
            return None;
        }
        let bits = self.byte();
        let width = Width::ALL[(bits & 3) as usize];
        let size = VecSize::ALL[(bits & 3) as usize];
        let len = if bits & 1 << 3 == 0 { VecLen::V128 } else { VecLen::V256 };
        let kind = match tag {
            1 => AccessKind::Load {
                width,
                ext: Ext::ALL[(bits >> 3 & 3) as usize],
                dst: self.byte(),
                for_write: bits & 1 << 5 != 0,
            },
            2 => AccessKind::Store { width, v: self.loc() },
            3 => AccessKind::LoadVec { size, dst: self.byte() },
            4 => AccessKind::StoreVec { size, v: self.loc() },
            5 => {
                let dst = self.byte();
                AccessKind::AtomicRmw { op: RmwOp::ALL[(bits >> 3) as usize], width, v: self.loc(), dst }
            }
            7 => {
                let dst = self.byte();
                AccessKind::LoadMasked { width, len, mask: self.loc(), dst }
            }
            8 => AccessKind::StoreMasked { width, len, v: self.loc(), mask: self.loc() },
            _ => {
                let dst = self.byte();
                AccessKind::AtomicCas { width, expect: self.loc(), new: self.loc(), dst }
            }
        };
        let bits = self.byte();
        Some(SlowAccess { kind, addr: self.loc(), mmu: bits & 15, align: 1 << (bits >> 4) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        const BASE: u64 = 0xffff_8000_0000_1000;
        let locs = [
            Loc::Int(15),
            Loc::Vec(31),
            Loc::Spill(127),
            Loc::Const(u64::MAX),
            Loc::Const(0),
            Loc::Const(BASE + 0x1234),
            Loc::Const(BASE - 7),
            Loc::Env(70_000),
            Loc::Flags(1),
            Loc::EnvLow(640),
        ];
        let mut kinds = Vec::new();
        for (i, width) in Width::ALL.into_iter().enumerate() {
            let v = locs[i];
            kinds.push(AccessKind::Load { width, ext: Ext::ALL[i % 3], dst: i as u8, for_write: i == 2 });
            kinds.push(AccessKind::Store { width, v });
            kinds.push(AccessKind::LoadVec { size: VecSize::ALL[i], dst: 30 });
            kinds.push(AccessKind::StoreVec { size: VecSize::ALL[i], v });
            for len in [VecLen::V128, VecLen::V256] {
                kinds.push(AccessKind::LoadMasked { width, len, mask: v, dst: 14 });
                kinds.push(AccessKind::StoreMasked { width, len, v, mask: locs[i + 1] });
            }
            kinds.push(AccessKind::AtomicCas { width, expect: v, new: locs[i + 1], dst: 7 });
            for op in RmwOp::ALL {
                kinds.push(AccessKind::AtomicRmw { op, width, v, dst: 9 });
            }
        }
        let mut c = Compiled::default();
        let base = BASE;
        for (i, kind) in kinds.iter().enumerate() {
            let start = c.moved.len() as u32;
            let n = i % locs.len();
            c.moved.extend(locs[..n].iter().enumerate().map(|(g, l)| (GlobalId(g as u8 + 50), *l)));
            let access =
                (i != 3).then_some(SlowAccess { kind: *kind, addr: locs[n], mmu: 2, align: 1 << (i % 6) });
            let pc = base.wrapping_add(i as u64 * 100).wrapping_sub(50);
            c.points.push(StatePoint { pc, access, moved_start: start, moved_len: n as u16 });
        }
        for op in FlagOp::ALL {
            let old = op.reads_old().then_some(Loc::Flags(3));
            let from_result = op == FlagOp::Dec;
            c.recipes.push(FlagRecipe { op, w: Width::W32, a: locs[5], b: locs[2], old, from_result });
        }
        let mut bytes = vec![1, 2, 3];
        encode(&c, base, &mut bytes);
        let t = Tables::new(&bytes[3..], base, c.points.len());
        for (n, p) in c.points.iter().enumerate() {
            let got = t.state(n);
            assert_eq!((got.pc, t.access(n)), (p.pc, p.access));
            let start = p.moved_start as usize;
            assert!(got.moved.eq(c.moved[start..start + p.moved_len as usize].iter().copied()));
        }
        for (n, r) in c.recipes.iter().enumerate() {
            assert_eq!(t.recipe(n as u32), *r);
        }
    }
}
