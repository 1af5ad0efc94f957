//! Repeated string instructions.
//!
//! Problem: REP MOVS and REP STOS copy and fill most of what a kernel copies and fills; one element a block pass would be
//! an order slower than the host. Strategy: a helper executes many iterations at once, straight on host memory where both
//! operands are plain RAM, and element by element (with the element's size, as MMIO needs it) where they are not.
//!
//! Exactness: registers are written once, when the helper returns. An element that faults ends the run *before* it:
//! if it is not the first, the helper returns "more" with the registers as of that element, the block comes back, and
//! then the fault is that of the first element, with nothing to be undone. A run is bounded by [`MAX_BYTES`] and ends
//! when the execution loop is asked for, so that interrupts are taken between iterations as the manual demands
//! (SDM volume 2, REP).

use tessera_tcg::guest::Exception;
use tessera_tcg::ir::{FlagOp, Width, flags};
use tessera_tcg::memory::PAGE_MASK;
use tessera_tcg::softmmu::{self, TLB_ENTRIES};

use super::{exception, fault, touches};
use crate::guest::X86;
use crate::state::{X86Env, global, reg, seg};
use crate::system::segment;

const RAX: tessera_tcg::ir::GlobalId = global::gpr(reg::RAX);
const RCX: tessera_tcg::ir::GlobalId = global::gpr(reg::RCX);
const RSI: tessera_tcg::ir::GlobalId = global::gpr(reg::RSI);
const RDI: tessera_tcg::ir::GlobalId = global::gpr(reg::RDI);
const BASES: [tessera_tcg::ir::GlobalId; 6] = [
    global::seg_base(0),
    global::seg_base(1),
    global::seg_base(2),
    global::seg_base(3),
    global::seg_base(4),
    global::seg_base(5),
];
const READS: [tessera_tcg::ir::GlobalId; 12] = [
    RAX,
    RCX,
    RSI,
    RDI,
    global::DF,
    global::FLAGS,
    BASES[0],
    BASES[1],
    BASES[2],
    BASES[3],
    BASES[4],
    BASES[5],
];

helpers! { super::INT_STRING_BASE;
    /// `(operation)`: REP MOVS; 1 when done, 0 if there is more to do (so for all of these).
    REP_MOVS = rep_movs(1), touches(&READS, &[RCX, RSI, RDI], true);
    /// `(operation)`: REP STOS.
    REP_STOS = rep_stos(1), touches(&READS, &[RCX, RDI], true);
    /// `(operation)`: REP LODS.
    REP_LODS = rep_lods(1), touches(&READS, &[RAX, RCX, RSI], true);
    /// `(operation)`: REPE or REPNE CMPS.
    REP_CMPS = rep_cmps(1), touches(&READS, &[RCX, RSI, RDI, global::FLAGS], true);
    /// `(operation)`: REPE or REPNE SCAS.
    REP_SCAS = rep_scas(1), touches(&READS, &[RCX, RDI, global::FLAGS], true);
}

/// Bytes that one call moves at most.
const MAX_BYTES: u64 = 64 << 10;

/// What a repeated string helper is told about the instruction, packed into its argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringOp {
    /// Element width.
    pub width: Width,
    /// Address size: width of the counter and the index registers.
    pub address: Width,
    /// Segment of the source operand.
    pub source: u8,
    /// MMU mode.
    pub mmu: u8,
    /// Legacy (not 64-bit) code: segments have bases, addresses 32 bits.
    pub legacy: bool,
    /// Segment limits and types are to be checked.
    pub segmented: bool,
    /// Alignment is to be checked.
    pub align: bool,
    /// One iteration at most (single-stepping).
    pub one: bool,
    /// CMPS, SCAS: ends when equal (REPNE) rather than when different (REPE).
    pub until_equal: bool,
}

impl StringOp {
    /// As a helper's argument.
    pub fn encode(self) -> u64 {
        let bits = [self.legacy, self.segmented, self.align, self.one, self.until_equal];
        let bits = bits.iter().enumerate().fold(0, |word, (n, &bit)| word | (bit as u64) << n);
        bits | (self.width as u64) << 8
            | (self.address as u64) << 10
            | (self.source as u64) << 12
            | (self.mmu as u64) << 16
    }

    fn decode(word: u64) -> StringOp {
        let bit = |n: u32| word >> n & 1 != 0;
        StringOp {
            width: Width::ALL[(word >> 8 & 3) as usize],
            address: Width::ALL[(word >> 10 & 3) as usize],
            source: (word >> 12 & 7) as u8,
            mmu: (word >> 16 & 3) as u8,
            legacy: bit(0),
            segmented: bit(1),
            align: bit(2),
            one: bit(3),
            until_equal: bit(4),
        }
    }

    /// Linear address of an element, checked.
    fn address(self, env: &X86Env, segment: u8, offset: u64, write: bool) -> Result<u64, Exception> {
        let n = segment as usize;
        let bytes = self.width.bytes() as u64;
        if self.segmented {
            segment::check_segment(env, n, offset, bytes, write)?;
        }
        let linear = self.unchecked(env, segment, offset);
        let canonical = (linear << 16) as i64 >> 16 == linear as i64;
        if self.align && linear & (bytes - 1) != 0 && canonical {
            return Err(exception(17, Some(0)));
        }
        Ok(linear)
    }

    fn unchecked(self, env: &X86Env, segment: u8, offset: u64) -> u64 {
        let n = segment as usize;
        if self.legacy {
            env.seg_base[n].wrapping_add(offset) & 0xffff_ffff
        } else if n >= seg::FS {
            env.seg_base[n].wrapping_add(offset)
        } else {
            offset
        }
    }
}

/// The registers of a run, cut to the address size; written back together.
struct Run {
    op: StringOp,
    count: u64,
    source: u64,
    dest: u64,
    /// Signed distance from element to element.
    step: u64,
    mask: u64,
    /// Bytes done in this call.
    done: u64,
    /// Where the pages are that the last elements were loaded from and stored to.
    source_page: Option<HostPage>,
    dest_page: Option<HostPage>,
}

/// A page of guest RAM or ROM as the TLB knew it when an element was accessed.
///
/// It is kept for the rest of the run even if another page takes its place in the TLB (which two pages of one run do to
/// each other whenever they are a multiple of the table's reach apart). That is sound: memory stays valid, and while a
/// helper runs nothing is flushed or translated.
#[derive(Clone, Copy)]
struct HostPage {
    /// Linear address of the page.
    va: u64,
    host: *mut u8,
    readable: bool,
    /// Directly, that is: the page has no translated code, and its dirty bit is set.
    writable: bool,
}

impl HostPage {
    fn of(env: &X86Env, va: u64, mmu: u8) -> Option<HostPage> {
        let table = env.header.tlb[mmu as usize];
        if table.is_null() {
            return None;
        }
        // SAFETY: the header's tables have `TLB_ENTRIES` entries, and this is the thread of the vCPU, which owns them.
        let entry = unsafe { &*table.add((va >> 12) as usize % TLB_ENTRIES) };
        let page = va & !PAGE_MASK;
        let (readable, writable) = (entry.read == page, entry.write == page);
        let host = page.wrapping_add(entry.addend) as *mut u8;
        (readable || writable).then_some(HostPage { va: page, host, readable, writable })
    }

    /// The remembered page, if `va` is in it, or what the TLB says now.
    fn find(remembered: Option<HostPage>, env: &X86Env, va: u64, mmu: u8) -> Option<HostPage> {
        match remembered {
            Some(page) if page.va == va & !PAGE_MASK => remembered,
            _ => HostPage::of(env, va, mmu),
        }
    }

    fn at(self, va: u64) -> *mut u8 {
        self.host.wrapping_add((va & PAGE_MASK) as usize)
    }
}

/// How an iteration ended.
enum Element {
    Next,
    /// The instruction ends after this iteration.
    Last,
}

impl Run {
    fn new(env: &X86Env, word: u64) -> Run {
        let op = StringOp::decode(word);
        let mask = op.address.mask();
        Run {
            op,
            count: env.gpr[reg::RCX] & mask,
            source: env.gpr[reg::RSI] & mask,
            dest: env.gpr[reg::RDI] & mask,
            step: env.df.wrapping_mul(op.width.bytes() as u64),
            mask,
            done: 0,
            source_page: None,
            dest_page: None,
        }
    }

    /// Iterations that may run at once on the host's memory: forward, within the segment, the page and the address size; and
    /// the linear address of the first.
    fn bulk(&self, env: &X86Env, segment: u8, offset: u64, write: bool) -> Option<(u64, u64)> {
        if self.op.one || self.op.align || env.df != 1 {
            return None;
        }
        let va = self.op.unchecked(env, segment, offset);
        let in_page = PAGE_MASK + 1 - (va & PAGE_MASK);
        let in_size = (self.mask - offset).saturating_add(1);
        let n = (in_page.min(in_size) >> self.op.width as u32).min(self.count);
        let bytes = n << self.op.width as u32;
        let checked = self.op.segmented && n > 0;
        if checked && segment::check_segment(env, segment as usize, offset, bytes, write).is_err() {
            return None;
        }
        Some((va, n))
    }

    /// Goes on by `n` elements.
    fn advance(&mut self, n: u64, source: bool, dest: bool) {
        let by = self.step.wrapping_mul(n);
        if source {
            self.source = self.source.wrapping_add(by) & self.mask;
        }
        if dest {
            self.dest = self.dest.wrapping_add(by) & self.mask;
        }
        self.count -= n;
        self.done += n << self.op.width as u32;
    }

    fn write_back(&self, env: &mut X86Env, source: bool, dest: bool) {
        let merge = |old: u64, v: u64| match self.op.address {
            Width::W64 | Width::W32 => v,
            _ => old & !self.mask | v,
        };
        if self.done == 0 {
            return;
        }
        env.gpr[reg::RCX] = merge(env.gpr[reg::RCX], self.count);
        if source {
            env.gpr[reg::RSI] = merge(env.gpr[reg::RSI], self.source);
        }
        if dest {
            env.gpr[reg::RDI] = merge(env.gpr[reg::RDI], self.dest);
        }
    }

    /// Runs `element` until the counter is zero, the element says so, or a bound is reached; `element` does one or more
    /// iterations and advances the run by them. Returns what the helper returns.
    fn repeat(
        mut self,
        env: &mut X86Env,
        (source, dest): (bool, bool),
        mut element: impl FnMut(&mut Run, &mut X86Env) -> Result<Element, Exception>,
    ) -> u64 {
        let mut finished = self.count == 0;
        if finished && self.op.address == Width::W32 {
            // Written all the same.
            env.gpr[reg::RCX] &= self.mask;
        }
        while !finished {
            match element(&mut self, env) {
                Ok(Element::Next) => finished = self.count == 0,
                Ok(Element::Last) => finished = true,
                Err(e) if self.done == 0 => return fault(env, e),
                Err(_) => break,
            }
            if self.op.one || self.done >= MAX_BYTES || env.header.exit_request.is_set() {
                break;
            }
        }
        self.write_back(env, source, dest);
        env.repeating = !finished;
        finished as u64
    }
}

/// Bytes that are stored at once to RAM that needs the slow path (a page with translated code).
const CHUNK: u64 = 256;

extern "C" fn rep_movs(env: &mut X86Env, word: u64) -> u64 {
    Run::new(env, word).repeat(env, (true, true), |run, env| {
        let op = run.op;
        if copy_bulk(run, env) {
            return Ok(Element::Next);
        }
        let bytes = op.width.bytes();
        let from = op.address(env, op.source, run.source, false)?;
        let v = softmmu::load::<X86>(env, from, bytes, op.mmu)?;
        let to = op.address(env, seg::ES as u8, run.dest, true)?;
        run.source_page = HostPage::of(env, from, op.mmu);
        softmmu::store::<X86>(env, to, bytes, v, op.mmu)?;
        run.dest_page = HostPage::of(env, to, op.mmu);
        run.advance(1, true, true);
        Ok(Element::Next)
    })
}

/// Copies as many elements as possible at once; false if that is none.
fn copy_bulk(run: &mut Run, env: &mut X86Env) -> bool {
    let op = run.op;
    let Some((from, n)) = run.bulk(env, op.source, run.source, false) else { return false };
    let Some((to, m)) = run.bulk(env, seg::ES as u8, run.dest, true) else { return false };
    let source = HostPage::find(run.source_page, env, from, op.mmu);
    let dest = HostPage::find(run.dest_page, env, to, op.mmu);
    let (Some(source), Some(dest)) = (source, dest) else { return false };
    if n.min(m) < 2 || !source.readable {
        return false;
    }
    let (host_from, host_to) = (source.at(from), dest.at(to));
    // Elements are copied one after the other: a destination shortly after the source repeats what is between.
    // What counts is the distance on the host, as two guest pages may be the same memory.
    let distance = (host_to as usize).wrapping_sub(host_from as usize) as u64;
    let whole = |bytes: u64| bytes & !(op.width.bytes() as u64 - 1);
    let mut bytes = n.min(m) << op.width as u32;
    if distance != 0 {
        bytes = whole(bytes.min(distance));
    }
    if bytes == 0 {
        return false;
    }
    if dest.writable {
        // SAFETY: both ranges lie within a page that the TLB mapped to host memory for this access.
        unsafe { std::ptr::copy(host_from, host_to, bytes as usize) };
    } else {
        let mut buf = [0; CHUNK as usize];
        bytes = bytes.min(CHUNK);
        let buf = &mut buf[..bytes as usize];
        // SAFETY: as above for the source; the buffer is this function's.
        unsafe { std::ptr::copy_nonoverlapping(host_from, buf.as_mut_ptr(), buf.len()) };
        // What cannot be stored at once is tried element by element, which finds the one that faults.
        if !dest.readable || softmmu::store_bytes::<X86>(env, to, buf, op.mmu).is_err() {
            return false;
        }
    }
    run.advance(bytes >> op.width as u32, true, true);
    true
}

extern "C" fn rep_stos(env: &mut X86Env, word: u64) -> u64 {
    let value = env.gpr[reg::RAX];
    Run::new(env, word).repeat(env, (false, true), |run, env| {
        let op = run.op;
        if fill_bulk(run, env, value) {
            return Ok(Element::Next);
        }
        let to = op.address(env, seg::ES as u8, run.dest, true)?;
        softmmu::store::<X86>(env, to, op.width.bytes(), value, op.mmu)?;
        run.dest_page = HostPage::of(env, to, op.mmu);
        run.advance(1, false, true);
        Ok(Element::Next)
    })
}

/// Fills as many elements as possible at once; false if that is none.
fn fill_bulk(run: &mut Run, env: &mut X86Env, value: u64) -> bool {
    let op = run.op;
    let width = op.width.bytes() as usize;
    let Some((to, mut n)) = run.bulk(env, seg::ES as u8, run.dest, true) else { return false };
    let Some(page) = HostPage::find(run.dest_page, env, to, op.mmu) else { return false };
    if n < 2 {
        return false;
    }
    let pattern = value.to_le_bytes();
    let host = page.at(to);
    if !page.writable {
        n = n.min(CHUNK >> op.width as u32);
        let mut buf = [0; CHUNK as usize];
        let buf = &mut buf[..n as usize * width];
        buf.chunks_exact_mut(width).for_each(|element| element.copy_from_slice(&pattern[..width]));
        if !page.readable || softmmu::store_bytes::<X86>(env, to, buf, op.mmu).is_err() {
            return false;
        }
    } else if pattern[..width].iter().all(|&b| b == pattern[0]) {
        // SAFETY: the range lies within a page that the TLB mapped to host memory for writing.
        unsafe { std::ptr::write_bytes(host, pattern[0], n as usize * width) };
    } else {
        for k in 0..n as usize {
            // SAFETY: as above; the pattern has at least `width` bytes.
            unsafe { std::ptr::copy_nonoverlapping(pattern.as_ptr(), host.add(k * width), width) };
        }
    }
    run.advance(n, false, true);
    true
}

extern "C" fn rep_lods(env: &mut X86Env, word: u64) -> u64 {
    let mut last = None;
    let width = StringOp::decode(word).width;
    let result = Run::new(env, word).repeat(env, (true, false), |run, env| {
        let op = run.op;
        let from = op.address(env, op.source, run.source, false)?;
        last = Some(softmmu::load::<X86>(env, from, op.width.bytes(), op.mmu)?);
        run.advance(1, true, false);
        Ok(Element::Next)
    });
    if let Some(v) = last {
        let old = env.gpr[reg::RAX];
        env.gpr[reg::RAX] = match width {
            Width::W64 | Width::W32 => v,
            _ => old & !width.mask() | v,
        };
    }
    result
}

/// Flags of a comparison, and whether it ends the repetition.
fn compare(op: StringOp, a: u64, b: u64) -> (u32, Element) {
    let f = flags::compute(FlagOp::Sub, op.width, a, b, 0);
    let equal = f & flags::Z != 0;
    (f, if equal == op.until_equal { Element::Last } else { Element::Next })
}

extern "C" fn rep_cmps(env: &mut X86Env, word: u64) -> u64 {
    let mut packed = env.flags;
    let finished = Run::new(env, word).repeat(env, (true, true), |run, env| {
        let op = run.op;
        let bytes = op.width.bytes();
        let to = op.address(env, seg::ES as u8, run.dest, false)?;
        let b = softmmu::load::<X86>(env, to, bytes, op.mmu)?;
        let from = op.address(env, op.source, run.source, false)?;
        let a = softmmu::load::<X86>(env, from, bytes, op.mmu)?;
        let (f, end) = compare(op, a, b);
        packed = f;
        run.advance(1, true, true);
        Ok(end)
    });
    set_final_flags(env, finished, packed)
}

/// A fault in some iteration leaves the flags as they were before the instruction (SDM volume 2, REP), so they are set when it
/// is finished only.
fn set_final_flags(env: &mut X86Env, finished: u64, packed: u32) -> u64 {
    if finished != 0 {
        env.flags = packed;
    }
    finished
}

extern "C" fn rep_scas(env: &mut X86Env, word: u64) -> u64 {
    let mut packed = env.flags;
    let value = env.gpr[reg::RAX];
    let finished = Run::new(env, word).repeat(env, (false, true), |run, env| {
        let op = run.op;
        let to = op.address(env, seg::ES as u8, run.dest, false)?;
        let b = softmmu::load::<X86>(env, to, op.width.bytes(), op.mmu)?;
        let (f, end) = compare(op, value, b);
        packed = f;
        run.advance(1, false, true);
        Ok(end)
    });
    set_final_flags(env, finished, packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_survive_packing() {
        for width in Width::ALL {
            for flag in 0..5 {
                let op = StringOp {
                    width,
                    address: Width::W32,
                    source: 5,
                    mmu: 2,
                    legacy: flag == 0,
                    segmented: flag == 1,
                    align: flag == 2,
                    one: flag == 3,
                    until_equal: flag == 4,
                };
                assert_eq!(StringOp::decode(op.encode()), op);
            }
        }
    }
}
