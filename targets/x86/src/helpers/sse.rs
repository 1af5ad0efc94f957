//! Helpers of the SSE instructions: the control and status register, floating-point exceptions, masked stores, string
//! comparisons.
//!
//! Where MXCSR is: while generated code and helpers run, the host's MXCSR has the guest's control bits, with all
//! exceptions masked, and gathers sticky flags; [`X86Env::mxcsr`] has the control bits, the guest's masks, and the sticky
//! flags as of the last entry or helper. The guest's register is the union of both. Entering generated code loads the
//! host's register from the environment, leaving it adds the host's flags to the environment.

use tessera_tcg::guest::{Access, Effects};
use tessera_tcg::ir::flags;
use tessera_tcg::softmmu;

use super::{exception, fault};
use crate::guest::X86;
use crate::state::{Cr4, X86Env, mode};
use crate::system::exception::vector;

helpers! { super::SSE_BASE;
    /// `(value)`: loads MXCSR; #GP(0) if a reserved bit is set. Changes the block mode.
    LDMXCSR = ldmxcsr(1), Effects::FAULTS;
    /// `()`: MXCSR.
    STMXCSR = stmxcsr(0), Effects::STATE;
    /// `()`: before a floating-point operation while exceptions are unmasked: clears the host's flags.
    FLOAT_BEGIN = float_begin(0), Effects::STATE;
    /// `()`: after it: raises #XM (or #UD, without CR4.OSXMMEXCPT) if it has raised an unmasked exception.
    FLOAT_END = float_end(0), Effects::FAULTS;
    /// `(address, size)`: #GP(0) unless the address is a multiple of the size.
    CHECK_ALIGNED = check_aligned(2), Effects::FAULTS;
    /// `(address, low, high, mask, mmu)`: stores those of the sixteen bytes whose mask bit is set.
    MASK_STORE = mask_store(5), Effects::FAULTS;
    /// `()`: a full memory barrier.
    FENCE = fence(0), Effects::STATE;
    /// `(length, words)`: a string's length as PCMPESTRI counts it: the absolute value, at most the lanes there are.
    STRING_LENGTH = string_length(2), Effects::PURE;
    /// `(a low, a high, b low, b high, control)`: PCMPISTRI or PCMPESTRI. Control: immediate in bits 7:0, lengths of `a` and
    /// `b` in bits 15:8 and 23:16 if bit 32 (explicit) is set. Result: IntRes2 in bits 15:0, the index in bits
    /// 23:16, packed flags from bit 32.
    COMPARE_STRINGS = compare_strings(5), Effects::PURE;
    /// `(IntRes2, immediate, half)`: a half of the mask that PCMPISTRM leaves in XMM0.
    STRING_MASK = string_mask(3), Effects::PURE;
}

/// Sticky exception flags of MXCSR.
pub const MXCSR_FLAGS: u32 = 0x3f;
/// Exception masks of MXCSR.
pub const MXCSR_MASKS: u32 = 0x1f80;
/// Bits of MXCSR that exist: what FXSAVE stores as MXCSR_MASK.
pub const MXCSR_EXISTING: u32 = 0xffff;

/// The host's MXCSR; on hosts without, the state that the environment has is all there is.
mod host {
    #[cfg(target_arch = "x86_64")]
    pub fn read() -> u32 {
        let mut word = 0u32;
        // SAFETY: stores the register to `word`.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack, preserves_flags)) };
        word
    }

    /// Loads the register; exceptions stay masked.
    #[cfg(target_arch = "x86_64")]
    pub fn write(word: u32) {
        let word = word & super::MXCSR_EXISTING | super::MXCSR_MASKS;
        // SAFETY: all exceptions are masked, and no reserved bit is set. The code around does not depend on rounding.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &word, options(nostack, preserves_flags)) };
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn read() -> u32 {
        0
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn write(_word: u32) {}
}

/// The guest's MXCSR, from a helper.
pub fn mxcsr(env: &mut X86Env) -> u32 {
    env.mxcsr |= host::read() & MXCSR_FLAGS;
    env.mxcsr
}

/// Sets the guest's MXCSR, from a helper; the value has no reserved bit. The block mode may change: the block must be left.
pub fn set_mxcsr(env: &mut X86Env, value: u32) {
    let masks = (env.mxcsr ^ value) & MXCSR_MASKS;
    env.mxcsr = value & MXCSR_EXISTING;
    host::write(value);
    // Of the mode, the masks decide one bit, and nothing else does.
    if masks != 0 {
        env.update_mode();
    }
}

extern "C" fn ldmxcsr(env: &mut X86Env, value: u64) -> u64 {
    if value as u32 & !MXCSR_EXISTING != 0 {
        return fault(env, exception(vector::GP, Some(0)));
    }
    set_mxcsr(env, value as u32);
    0
}

extern "C" fn stmxcsr(env: &mut X86Env) -> u64 {
    mxcsr(env) as u64
}

extern "C" fn float_begin(env: &mut X86Env) -> u64 {
    let word = mxcsr(env);
    host::write(word & !MXCSR_FLAGS);
    0
}

/// The exceptions that are found before the computation: IE, DE, ZE.
const BEFORE: u32 = 7;

extern "C" fn float_end(env: &mut X86Env) -> u64 {
    let mut raised = host::read() & MXCSR_FLAGS;
    let unmasked = raised & !(env.mxcsr >> 7);
    if unmasked & BEFORE != 0 {
        // Then nothing was computed (SDM volume 1, section 11.5.3.2).
        raised &= BEFORE;
        // Leaving the block merges the host's flags.
        host::write(host::read() & !MXCSR_FLAGS | raised);
    }
    env.mxcsr |= raised;
    if unmasked != 0 {
        let raised = if env.cr4.contains(Cr4::OSXMMEXCPT) { vector::XM } else { vector::UD };
        return fault(env, exception(raised, None));
    }
    0
}

extern "C" fn check_aligned(env: &mut X86Env, address: u64, size: u64) -> u64 {
    if address & (size - 1) != 0 {
        return fault(env, exception(vector::GP, Some(0)));
    }
    0
}

extern "C" fn mask_store(env: &mut X86Env, address: u64, low: u64, high: u64, mask: u64, mmu: u64) -> u64 {
    let bytes = (low as u128 | (high as u128) << 64).to_le_bytes();
    let selected = || (0..16usize).filter(|n| mask >> n & 1 != 0);
    if env.mode & mode::ALIGN != 0 && address & 7 != 0 {
        return fault(env, exception(vector::AC, Some(0)));
    }
    // Silicon wants all bytes to be writable, selected or not, and looks at the upper half first.
    for half in (0..=mmu >> 8 & 1).rev() {
        let va = address.wrapping_add(8 * half);
        let va = if env.code64() { va } else { va & 0xffff_ffff };
        if let Err(e) = softmmu::probe::<X86>(env, va, 8, Access::Write, mmu as u8) {
            return fault(env, e);
        }
    }
    for n in selected() {
        let va = address.wrapping_add(n as u64);
        if let Err(e) = softmmu::store::<X86>(env, va, 1, bytes[n] as u64, mmu as u8) {
            return fault(env, e);
        }
    }
    0
}

extern "C" fn fence(_: &mut X86Env) -> u64 {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    0
}

extern "C" fn string_length(_: &mut X86Env, length: u64, words: u64) -> u64 {
    clamp_length(length, words)
}

fn clamp_length(length: u64, words: u64) -> u64 {
    (length as i64).unsigned_abs().min(if words & 1 != 0 { 8 } else { 16 })
}

/// A string operand of the comparison instructions.
struct Text {
    /// Lanes, extended as the immediate says.
    lanes: [i32; 16],
    /// How many are valid.
    length: usize,
}

impl Text {
    fn new(low: u64, high: u64, imm: u8, explicit: Option<u8>) -> Text {
        let bytes = (low as u128 | (high as u128) << 64).to_le_bytes();
        let mut lanes = [0; 16];
        let count = lane_count(imm);
        for (n, lane) in lanes[..count].iter_mut().enumerate() {
            let word = u16::from_le_bytes([bytes[2 * n % 16], bytes[(2 * n + 1) % 16]]);
            *lane = match imm & 3 {
                0 => bytes[n] as i32,
                1 => word as i32,
                2 => bytes[n] as i8 as i32,
                _ => word as i16 as i32,
            };
        }
        let length = match explicit {
            Some(length) => (length as usize).min(count),
            None => lanes[..count].iter().position(|&v| v == 0).unwrap_or(count),
        };
        Text { lanes, length }
    }
}

fn lane_count(imm: u8) -> usize {
    if imm & 1 != 0 { 8 } else { 16 }
}

/// IntRes1: one bit for each lane of `b` (SDM volume 2, section 4.1.4). Lanes beyond a string's end compare as table
/// 4-7 forces them to.
fn aggregate(a: &Text, b: &Text, imm: u8) -> u16 {
    let count = lane_count(imm);
    let bit = |n: usize, set: bool| (set as u16) << n;
    match imm >> 2 & 3 {
        // Equal any: b[n] is one of a's characters.
        0 => (0..b.length).fold(0, |r, n| r | bit(n, a.lanes[..a.length].contains(&b.lanes[n]))),
        // Ranges: b[n] lies in one of a's pairs. A pair cut by a's end does not count.
        1 => (0..b.length).fold(0, |r, n| {
            let v = b.lanes[n];
            r | bit(n, a.lanes[..a.length].chunks_exact(2).any(|p| p[0] <= v && v <= p[1]))
        }),
        // Equal each: both valid and equal, or both beyond their ends.
        2 => (0..count).fold(0, |r, n| {
            let equal = match (n < a.length, n < b.length) {
                (true, true) => a.lanes[n] == b.lanes[n],
                (false, false) => true,
                _ => false,
            };
            r | bit(n, equal)
        }),
        // Equal ordered: a is found in b from n on, as far as b's register reaches.
        _ => (0..count).fold(0, |r, n| {
            let found =
                (0..a.length.min(count - n)).all(|k| n + k < b.length && a.lanes[k] == b.lanes[n + k]);
            r | bit(n, found)
        }),
    }
}

extern "C" fn compare_strings(
    _: &mut X86Env,
    a_low: u64,
    a_high: u64,
    b_low: u64,
    b_high: u64,
    control: u64,
) -> u64 {
    compare(a_low, a_high, b_low, b_high, control)
}

fn compare(a_low: u64, a_high: u64, b_low: u64, b_high: u64, control: u64) -> u64 {
    let imm = control as u8;
    let explicit = |at: u32| (control >> 32 & 1 != 0).then_some((control >> at) as u8);
    let a = Text::new(a_low, a_high, imm, explicit(8));
    let b = Text::new(b_low, b_high, imm, explicit(16));
    let count = lane_count(imm);
    let all = (0xffffu32 >> (16 - count)) as u16;
    let res1 = aggregate(&a, &b, imm);
    let res2 = match imm >> 4 & 3 {
        1 => !res1 & all,
        3 => res1 ^ (all & ((1u32 << b.length) - 1) as u16),
        _ => res1,
    };
    let index = match (res2, imm & 0x40 != 0) {
        (0, _) => count as u32,
        (r, false) => r.trailing_zeros(),
        (r, true) => 15 - r.leading_zeros(),
    };
    let flag = |f: u32, set: bool| if set { f } else { 0 };
    let packed = flag(flags::C, res2 != 0)
        | flag(flags::Z, b.length < count)
        | flag(flags::N, a.length < count)
        | flag(flags::V, res2 & 1 != 0);
    res2 as u64 | (index as u64) << 16 | (packed as u64) << 32
}

extern "C" fn string_mask(_: &mut X86Env, result: u64, imm: u64, half: u64) -> u64 {
    expand_mask(result, imm, half)
}

fn expand_mask(result: u64, imm: u64, half: u64) -> u64 {
    let res2 = result & 0xffff;
    if imm & 0x40 == 0 {
        return if half == 0 { res2 } else { 0 };
    }
    let (bits, lanes) = if imm & 1 != 0 { (16, 4) } else { (8, 8) };
    let from = if half == 0 { 0 } else { lanes };
    (0..lanes)
        .filter(|n| res2 >> (from + n) & 1 != 0)
        .fold(0, |r, n| r | (u64::MAX >> (64 - bits)) << (bits * n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halves(s: &[u8; 16]) -> (u64, u64) {
        let v = u128::from_le_bytes(*s);
        (v as u64, (v >> 64) as u64)
    }

    #[cfg(target_arch = "x86_64")]
    mod native {
        use super::*;
        use std::arch::x86_64::*;

        macro_rules! all_immediates {
            ($f:ident, $($imm:literal)*) => { $( $f::<$imm>(); )* };
        }

        /// Strings with few different characters, so that everything occurs.
        fn strings(seed: &mut u64) -> [u8; 16] {
            std::array::from_fn(|_| {
                *seed ^= *seed << 13;
                *seed ^= *seed >> 7;
                *seed ^= *seed << 17;
                [0, 1, 1, 2, 2, 3, 0x80, 0xff, 1, 2, 3, 2, 1, 1, 2, 0][(*seed >> 40) as usize % 16]
            })
        }

        #[target_feature(enable = "sse4.2")]
        fn check<const IMM: i32>() {
            let mut seed = 0x1234_5678_9abc_def1 ^ IMM as u64;
            for round in 0..200 {
                let (a, b) = (strings(&mut seed), strings(&mut seed));
                let (la, lb) = ((seed >> 20) as i32 % 20 - 4, (seed >> 30) as i32 % 20 - 4);
                // SAFETY: both arrays have 16 bytes.
                let (va, vb) =
                    unsafe { (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast())) };
                let ((al, ah), (bl, bh)) = (halves(&a), halves(&b));
                let words = IMM as u64 & 1;
                for explicit in [false, true] {
                    let mut control = IMM as u64 | (explicit as u64) << 32;
                    if explicit {
                        control |= clamp_length(la as i64 as u64, words) << 8;
                        control |= clamp_length(lb as i64 as u64, words) << 16;
                    }
                    let r = compare(al, ah, bl, bh, control);
                    let packed = (r >> 32) as u32;
                    let got = [
                        (r >> 16 & 0xff) as i32,
                        (packed & flags::C != 0) as i32,
                        (packed & flags::N != 0) as i32,
                        (packed & flags::Z != 0) as i32,
                        (packed & flags::V != 0) as i32,
                    ];
                    let expect = if explicit {
                        [
                            _mm_cmpestri::<IMM>(va, la, vb, lb),
                            _mm_cmpestrc::<IMM>(va, la, vb, lb),
                            _mm_cmpestrs::<IMM>(va, la, vb, lb),
                            _mm_cmpestrz::<IMM>(va, la, vb, lb),
                            _mm_cmpestro::<IMM>(va, la, vb, lb),
                        ]
                    } else {
                        [
                            _mm_cmpistri::<IMM>(va, vb),
                            _mm_cmpistrc::<IMM>(va, vb),
                            _mm_cmpistrs::<IMM>(va, vb),
                            _mm_cmpistrz::<IMM>(va, vb),
                            _mm_cmpistro::<IMM>(va, vb),
                        ]
                    };
                    assert_eq!(
                        got, expect,
                        "imm {IMM:#x} round {round} explicit {explicit} {a:x?} {b:x?} {la} {lb}"
                    );
                    let mask = if explicit {
                        _mm_cmpestrm::<IMM>(va, la, vb, lb)
                    } else {
                        _mm_cmpistrm::<IMM>(va, vb)
                    };
                    let got = [expand_mask(r, control & 0x41, 0), expand_mask(r, control & 0x41, 1)];
                    let expect = [_mm_extract_epi64::<0>(mask) as u64, _mm_extract_epi64::<1>(mask) as u64];
                    assert_eq!(got, expect, "imm {IMM:#x}");
                }
            }
        }

        #[test]
        fn string_comparisons_agree_with_the_host() {
            if !std::arch::is_x86_feature_detected!("sse4.2") {
                return;
            }
            // SAFETY: SSE4.2 was detected.
            unsafe {
                all_immediates!(check,
                    0x00 0x01 0x02 0x03 0x04 0x05 0x06 0x07 0x08 0x09 0x0a 0x0b 0x0c 0x0d 0x0e 0x0f
                    0x10 0x15 0x1a 0x1f 0x30 0x34 0x38 0x3c 0x31 0x35 0x39 0x3d 0x40 0x44 0x48 0x4c
                    0x41 0x45 0x4b 0x4f 0x70 0x75 0x7a 0x7f 0x20 0x25 0x5a 0x5f);
            }
        }
    }

    #[test]
    fn lengths_saturate() {
        let (low, high) = halves(b"abc\0defghijklmno");
        assert_eq!(Text::new(low, high, 0, None).length, 3);
        assert_eq!(Text::new(low, high, 0, Some(200)).length, 16);
        assert_eq!(Text::new(low, high, 1, Some(9)).length, 8);
    }
}
