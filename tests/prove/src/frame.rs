//! The user-visible state of a processor, in the form in which the native side loads and saves it.

use std::ops::Range;

/// Size of the standard XSAVE area with x87, SSE and AVX state.
pub const XSAVE_BYTES: usize = 832;
/// RFLAGS bits that a sequence may change: CF, PF, AF, ZF, SF, TF, DF, OF, NT, AC, ID.
pub const FLAGS: u64 = 0x24_4dd5;
/// The arithmetic flags.
pub const ARITHMETIC: u64 = 0x8d5;
/// [`Frame::vector`] of a sequence that was completed.
pub const NONE: u64 = u64::MAX;
/// [`Frame::vector`] of a sequence that did not come to an end.
pub const STUCK: u64 = u64::MAX - 1;

/// State before or after a sequence.
///
/// The XSAVE area is in standard format: x87 and SSE state as FXSAVE64 has them, the header at 512, the upper halves of
/// YMM registers at 576.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// See above.
    pub xsave: [u8; XSAVE_BYTES],
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub flags: u64,
    /// Base of FS.
    pub fs: u64,
    /// Base of GS.
    pub gs: u64,
    /// Selector in CS.
    pub cs: u64,
    /// Vector of the exception that ended the sequence, or [`NONE`].
    pub vector: u64,
    /// Its error code, or 0.
    pub error: u64,
    /// CR2, if it was a page fault, or 0.
    pub address: u64,
}

/// Bytes of the XSAVE area.
pub mod at {
    use super::Range;
    /// x87 control word.
    pub const CONTROL: Range<usize> = 0..2;
    /// x87 status word.
    pub const STATUS: Range<usize> = 2..4;
    /// x87 tags, abridged.
    pub const TAGS: Range<usize> = 4..5;
    /// x87 last opcode.
    pub const OPCODE: Range<usize> = 6..8;
    /// x87 instruction pointer.
    pub const IP: Range<usize> = 8..16;
    /// x87 data pointer.
    pub const DP: Range<usize> = 16..24;
    /// MXCSR.
    pub const MXCSR: Range<usize> = 24..28;
    /// XSTATE_BV.
    pub const PRESENT: Range<usize> = 512..520;

    /// ST(n).
    pub fn st(n: usize) -> Range<usize> {
        32 + 16 * n..42 + 16 * n
    }
    /// XMMn.
    pub fn xmm(n: usize) -> Range<usize> {
        160 + 16 * n..176 + 16 * n
    }
    /// Upper half of YMMn.
    pub fn ymm(n: usize) -> Range<usize> {
        576 + 16 * n..592 + 16 * n
    }
}

impl Frame {
    /// Registers zero, x87 and SSE as after FNINIT and reset.
    pub fn new() -> Frame {
        let mut f = Frame {
            xsave: [0; XSAVE_BYTES],
            gpr: [0; 16],
            rip: 0,
            flags: 0x202,
            fs: 0,
            gs: 0,
            cs: 0,
            vector: NONE,
            error: 0,
            address: 0,
        };
        f.set(at::CONTROL, 0x37f);
        f.set(at::MXCSR, 0x1f80);
        f.set(at::PRESENT, 7);
        f
    }

    /// A field of the XSAVE area of up to eight bytes.
    pub fn get(&self, at: Range<usize>) -> u64 {
        let mut bytes = [0; 8];
        bytes[..at.len()].copy_from_slice(&self.xsave[at]);
        u64::from_le_bytes(bytes)
    }

    /// Sets a field of the XSAVE area of up to eight bytes.
    pub fn set(&mut self, at: Range<usize>, v: u64) {
        let n = at.len();
        self.xsave[at].copy_from_slice(&v.to_le_bytes()[..n]);
    }

    /// Puts components that XSTATE_BV says are in their initial configuration there, as XRSTOR would.
    pub fn expand(&mut self) {
        let present = self.get(at::PRESENT);
        if present & 1 == 0 {
            self.xsave[..24].fill(0);
            self.xsave[32..160].fill(0);
            self.set(at::CONTROL, 0x37f);
        }
        if present & 2 == 0 {
            self.xsave[160..416].fill(0);
        }
        if present & 4 == 0 {
            self.xsave[576..].fill(0);
        }
        self.set(at::PRESENT, 7);
    }
}

impl Default for Frame {
    fn default() -> Frame {
        Frame::new()
    }
}
