//! Counting what generated code executes, for statistics.
//!
//! Problem: how many host instructions a guest instruction costs while a program runs depends on which blocks run how often
//! and where they are left. Strategy: code is divided into *segments*, which are left at their ends only (side exits end
//! one and begin another). A segment begins with code that adds its figures to the runtime's
//! [`Executed`](crate::env::Executed); the figures are constants of 32 bits that are filled in when the block is complete.
//! Without counting, nothing of this is emitted.
//!
//! Invariants: the code that counts changes RAX and RCX only, so it may stand wherever an instruction of the IR begins; the
//! host's flags survive it, as they may hold guest flags from one instruction to the next. It does not count itself, nor
//! padding, nor what thunks and helpers execute.

use std::mem::offset_of;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use super::emitter::{Emitter, Part, runtime_mem};
use super::encode::r;
use crate::env::{Executed, Runtime};
use crate::ir::Width;

/// Instructions of the thunk that looks up the jump cache, on a hit.
const LOOKUP: u32 = 8;

/// A stretch of code that is left at its end only.
#[derive(Clone, Copy, Debug)]
struct Segment {
    part: Part,
    /// First byte behind the code that counts.
    start: usize,
    /// The end, once known.
    end: usize,
    /// Where the constants are.
    guest_at: usize,
    host_at: usize,
    accesses_at: usize,
    helpers_at: usize,
    /// The constants, as far as they are not found by looking at the code.
    guest: u32,
    host: u32,
    accesses: u32,
    helpers: u32,
}

/// The segments of a block.
#[derive(Default)]
pub struct Count {
    /// Whether to count.
    pub on: bool,
    segments: Vec<Segment>,
    /// A side exit has ended the segment, so that the next guest instruction begins one.
    ended: bool,
}

impl Count {
    /// Begins a block.
    pub fn reset(&mut self) {
        self.segments.clear();
        self.ended = true;
    }
}

impl Emitter<'_> {
    /// A guest instruction begins.
    pub fn count_insn(&mut self) {
        if !self.b.count.on {
            return;
        }
        if self.b.count.ended {
            let first = self.b.count.segments.is_empty();
            self.count_segment(first, false);
        }
        if let Some(segment) = self.main_segment() {
            segment.guest += 1;
        }
    }

    /// An access that looks into the TLB.
    pub fn count_access(&mut self) {
        if let Some(segment) = self.main_segment() {
            segment.accesses += 1;
        }
    }

    /// A call of a helper.
    pub fn count_helper(&mut self) {
        if let Some(segment) = self.main_segment() {
            segment.helpers += 1;
        }
    }

    /// A side exit: the code that follows may not be reached.
    pub fn count_exit(&mut self) {
        self.b.count.ended = true;
    }

    /// A jump that looks up the jump cache begins: inline, or by a jump to the `thunk`.
    pub fn count_indirect(&mut self, thunk: bool) {
        if self.b.count.on {
            self.count_segment(false, true);
            if thunk && let Some(segment) = self.main_segment() {
                segment.host += LOOKUP;
            }
        }
    }

    /// The code of a side exit begins. `lookup` says that it ends with a jump to the thunk that looks up the jump cache.
    pub fn count_side_exit(&mut self, lookup: bool) {
        if self.b.count.on {
            self.count_segment(false, lookup);
            let segment = self.b.count.segments.last_mut().expect("it was just begun");
            // The jump at its end is emitted behind what is looked at.
            segment.host += if lookup { 2 + LOOKUP } else { 1 };
        }
    }

    /// The code of a side exit is complete but for its jump.
    pub fn end_side_exit(&mut self) {
        let end = self.b.side.len();
        if let Some(segment) = self.b.count.segments.last_mut() {
            segment.end = end;
        }
    }

    /// The segment of the main part that is being emitted.
    fn main_segment(&mut self) -> Option<&mut Segment> {
        self.b.count.segments.iter_mut().rev().find(|segment| segment.part == Part::Main)
    }

    fn count_segment(&mut self, block: bool, indirect: bool) {
        let part = self.part;
        let here = self.asm().len();
        if part == Part::Main {
            if let Some(last) = self.main_segment() {
                last.end = here;
            }
            self.b.count.ended = false;
        }
        if block {
            self.add(offset_of!(Executed, blocks), 1);
        }
        if indirect {
            self.add(offset_of!(Executed, indirect), 1);
        }
        let guest_at = self.add(offset_of!(Executed, guest), 0);
        let host_at = self.add(offset_of!(Executed, host), 0);
        let accesses_at = self.add(offset_of!(Executed, accesses), 0);
        let helpers_at = self.add(offset_of!(Executed, helpers), 0);
        let start = self.asm().len();
        self.b.count.segments.push(Segment {
            part,
            start,
            end: start,
            guest_at,
            host_at,
            accesses_at,
            helpers_at,
            guest: 0,
            host: 0,
            accesses: 0,
            helpers: 0,
        });
    }

    /// Adds to a counter of the runtime; where the constant is.
    fn add(&mut self, field: usize, constant: u32) -> usize {
        let counter = runtime_mem(offset_of!(Runtime, executed) + field);
        let asm = self.asm();
        asm.load(Width::W64, r::RCX, counter);
        // lea rcx, [rcx + disp32]: unlike an addition it leaves the flags alone.
        asm.buf.extend_from_slice(&[0x48, 0x8d, 0x89]);
        let at = asm.len();
        asm.buf.extend_from_slice(&constant.to_le_bytes());
        asm.store(Width::W64, counter, r::RCX);
        at
    }

    /// Fills in the constants; the block is complete.
    pub fn finish_counts(&mut self) {
        let end = self.b.main.len();
        if let Some(last) = self.main_segment() {
            last.end = end;
        }
        let mut all = 0;
        for segment in &self.b.count.segments {
            let asm = if segment.part == Part::Main { &mut self.b.main } else { &mut self.b.side };
            let host = segment.host + instructions(&asm.buf[segment.start..segment.end]);
            all += host;
            for (at, figure) in [
                (segment.guest_at, segment.guest),
                (segment.host_at, host),
                (segment.accesses_at, segment.accesses),
                (segment.helpers_at, segment.helpers),
            ] {
                asm.buf[at..at + 4].copy_from_slice(&figure.to_le_bytes());
            }
        }
        self.out.host_insns = all;
    }
}

/// How many instructions there are, padding apart.
fn instructions(code: &[u8]) -> u32 {
    let decoder = Decoder::new(64, code, DecoderOptions::NONE);
    decoder.into_iter().filter(|i| !matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)).count() as u32
}
