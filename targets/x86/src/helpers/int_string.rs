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

use std::sync::atomic::Ordering;

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
        if self.align && linear & (bytes - 1) != 0 {
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
        while !finished {
            match element(&mut self, env) {
                Ok(Element::Next) => finished = self.count == 0,
                Ok(Element::Last) => finished = true,
                Err(e) if self.done == 0 => return fault(env, e),
                Err(_) => break,
            }
            if self.op.one || self.done >= MAX_BYTES || env.header.exit_request.load(Ordering::Relaxed) != 0 {
                break;
            }
        }
        self.write_back(env, source, dest);
        finished as u64
    }
}

/// Host address of the bytes at `va`, if the TLB says that they may be read (or written) directly. The bytes up to the
/// end of the page are so.
fn host_address(env: &X86Env, va: u64, write: bool, mmu: u8) -> Option<*mut u8> {
    let table = env.header.tlb[mmu as usize];
    if table.is_null() {
        return None;
    }
    // SAFETY: the header's tables have `TLB_ENTRIES` entries, and this is the thread of the vCPU, which owns them.
    let entry = unsafe { &*table.add((va >> 12) as usize % TLB_ENTRIES) };
    let tag = if write { entry.write } else { entry.read };
    (tag == va & !PAGE_MASK).then(|| va.wrapping_add(entry.addend) as *mut u8)
}

extern "C" fn rep_movs(env: &mut X86Env, word: u64) -> u64 {
    Run::new(env, word).repeat(env, (true, true), |run, env| {
        let op = run.op;
        if let Some((from, n)) = run.bulk(env, op.source, run.source, false)
            && let Some((to, m)) = run.bulk(env, seg::ES as u8, run.dest, true)
            && let n = n.min(m)
            && n > 1
            && let Some(host_from) = host_address(env, from, false, op.mmu)
            && let Some(host_to) = host_address(env, to, true, op.mmu)
        {
            let bytes = n << op.width as u32;
            // Elements are copied one after the other: a destination shortly after the source repeats what is between.
            // What counts is the distance on the host, as two guest pages may be the same memory.
            let distance = (host_to as usize).wrapping_sub(host_from as usize) as u64;
            let bytes = if distance != 0 && distance < bytes { distance } else { bytes };
            let bytes = bytes & !(op.width.bytes() as u64 - 1);
            if bytes > 0 {
                // SAFETY: both ranges lie within a page that the TLB maps to host memory for this access.
                unsafe { std::ptr::copy(host_from, host_to, bytes as usize) };
                run.advance(bytes >> op.width as u32, true, true);
                return Ok(Element::Next);
            }
        }
        let bytes = op.width.bytes();
        let from = op.address(env, op.source, run.source, false)?;
        let to = op.address(env, seg::ES as u8, run.dest, true)?;
        let v = softmmu::load::<X86>(env, from, bytes, op.mmu)?;
        softmmu::store::<X86>(env, to, bytes, v, op.mmu)?;
        run.advance(1, true, true);
        Ok(Element::Next)
    })
}

extern "C" fn rep_stos(env: &mut X86Env, word: u64) -> u64 {
    let value = env.gpr[reg::RAX];
    Run::new(env, word).repeat(env, (false, true), |run, env| {
        let op = run.op;
        let bytes = op.width.bytes() as usize;
        if let Some((to, n)) = run.bulk(env, seg::ES as u8, run.dest, true)
            && n > 1
            && let Some(host) = host_address(env, to, true, op.mmu)
        {
            let element = value & op.width.mask();
            let repeated = element.wrapping_mul(u64::MAX / op.width.mask());
            if repeated == (repeated & 0xff).wrapping_mul(0x0101_0101_0101_0101) {
                // SAFETY: the range lies within a page that the TLB maps to host memory for writing.
                unsafe { std::ptr::write_bytes(host, value as u8, n as usize * bytes) };
            } else {
                let pattern = value.to_le_bytes();
                for k in 0..n as usize {
                    // SAFETY: as above; the pattern has at least `bytes` bytes.
                    unsafe { std::ptr::copy_nonoverlapping(pattern.as_ptr(), host.add(k * bytes), bytes) };
                }
            }
            run.advance(n, false, true);
            return Ok(Element::Next);
        }
        let to = op.address(env, seg::ES as u8, run.dest, true)?;
        softmmu::store::<X86>(env, to, bytes as u32, value, op.mmu)?;
        run.advance(1, false, true);
        Ok(Element::Next)
    })
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
    let result = Run::new(env, word).repeat(env, (true, true), |run, env| {
        let op = run.op;
        let bytes = op.width.bytes();
        let from = op.address(env, op.source, run.source, false)?;
        let to = op.address(env, seg::ES as u8, run.dest, false)?;
        let a = softmmu::load::<X86>(env, from, bytes, op.mmu)?;
        let b = softmmu::load::<X86>(env, to, bytes, op.mmu)?;
        let (f, end) = compare(op, a, b);
        packed = f;
        run.advance(1, true, true);
        Ok(end)
    });
    env.flags = packed;
    result
}

extern "C" fn rep_scas(env: &mut X86Env, word: u64) -> u64 {
    let mut packed = env.flags;
    let value = env.gpr[reg::RAX];
    let result = Run::new(env, word).repeat(env, (false, true), |run, env| {
        let op = run.op;
        let to = op.address(env, seg::ES as u8, run.dest, false)?;
        let b = softmmu::load::<X86>(env, to, op.width.bytes(), op.mmu)?;
        let (f, end) = compare(op, value, b);
        packed = f;
        run.advance(1, false, true);
        Ok(end)
    });
    env.flags = packed;
    result
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
