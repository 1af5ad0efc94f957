//! Random bytes through the front end, in every mode: it must neither crash nor disagree with the decoder.
//!
//! A case is some bytes at some place of a page, in 16-, 32- or 64-bit code with random mode bits. Expected of the front
//! end (SDM volume 2, section 2.3.11; volume 3, section 6.15 on the priority of faults on fetching):
//! - it translates one instruction of the length that the decoder finds in the bytes when they lie in one piece;
//! - it raises #UD for bytes that are no instruction, or none that the CPU model has;
//! - it faults with #GP for more than 15 bytes, and for bytes beyond the limit of CS;
//! - it asks for the next page only if the bytes up to there may be the start of an instruction, at its first byte, and
//!   reports what is wrong with that page as it is told;
//! - what it makes is valid IR.

use std::panic::{AssertUnwindSafe, catch_unwind};

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Mnemonic};
use tessera_tcg::backend::GuestInfo;
use tessera_tcg::guest::{BlockKey, CodeFetch, Exception, Guest, TranslateLimits};
use tessera_tcg::ir::{self, Block, Builder, Inst};

use super::Rng;
use crate::guest::X86;
use crate::helpers;
use crate::state::{X86Env, mode, seg};
use crate::system::exception::vector;

/// Longest instruction.
const MAX: usize = 15;
const PAGE: u64 = 0x1000;
/// Error code of the page faults that a missing second page raises.
const MISSING: u32 = 0x10;

/// What was seen, to show that all kinds of cases came up.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Cases in 16-, 32- and 64-bit code.
    pub modes: [u64; 3],
    /// Instructions.
    pub valid: u64,
    /// Bytes that are no instruction.
    pub invalid: u64,
    /// Instructions that the CPU model lacks.
    pub absent: u64,
    /// More than 15 bytes, or beyond the limit.
    pub overlong: u64,
    /// Instructions on two pages.
    pub crossing: u64,
    /// Second pages that were missing.
    pub missing: u64,
}

/// A case in which the front end did not do as expected; its text tells all of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Divergence(pub String);

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Divergence {}

/// One case.
#[derive(Clone, Copy, Debug)]
struct Case {
    pc: u64,
    mode: u64,
    bytes: [u8; 2 * MAX],
    /// Bytes of the first page from `pc` on, at most [`MAX`] of which matter.
    first: usize,
    /// The second page is there.
    second: bool,
}

const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];

impl Case {
    fn new(r: &mut Rng, limit: u32) -> Case {
        let mut bytes = [0; 2 * MAX];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&r.word().to_le_bytes()[..chunk.len()]);
        }
        Case::shape(r, &mut bytes);
        let size = r.below(3);
        let other = r.word();
        // Any of the bits that do not say what code it is.
        let free = mode::FPU_EM
            | mode::FPU_TS
            | mode::FPU_MP
            | mode::OSFXSR
            | mode::AVX
            | mode::SSE_UNMASKED
            | mode::UMIP
            | mode::TSD
            | mode::PCE
            | mode::VME
            | mode::PVI
            | mode::ALIGN
            | mode::DEBUG
            | mode::TRAP
            | mode::SHADOW
            | 3 << mode::CPL_SHIFT
            | 3 << mode::IOPL_SHIFT;
        // Most of them are off most of the time.
        let rare = mode::FPU_EM | mode::FPU_TS | mode::DEBUG | mode::TRAP | mode::SHADOW;
        let mut bits =
            other & free & if r.below(4) == 0 { u64::MAX } else { !rare } | mode::OSFXSR | mode::AVX;
        bits |= (r.below(3) as u64) << mode::MMU_SHIFT;
        let segmented = mode::SEGMENTED | mode::FS_CHECKED | mode::GS_CHECKED;
        bits |= match size {
            2 => mode::CODE64 | mode::LONG | mode::PROTECTED | other & mode::FSGSBASE,
            1 => mode::CODE32 | mode::PROTECTED | other & (mode::STACK32 | mode::LONG | segmented),
            _ if other >> 60 == 0 => mode::PROTECTED | mode::V86 | segmented | 3 << mode::CPL_SHIFT,
            _ => other & (mode::PROTECTED | mode::STACK32 | segmented),
        };
        if size == 0 && r.below(2) == 0 && limit == 0xffff {
            bits |= mode::CODE_LIMIT;
        }
        let page = match size {
            0 => r.below(16) as u64,
            1 => r.below(1 << 20) as u64,
            _ => r.word() & 0x7_ffff_ffff,
        };
        let near_end = r.below(3) == 0;
        let offset = if near_end { PAGE - 1 - r.below(20) as u64 } else { r.word() % PAGE };
        Case {
            pc: page << 12 | offset,
            mode: bits,
            bytes,
            first: (PAGE - offset) as usize,
            second: r.below(4) != 0,
        }
    }

    /// Makes opcode maps other than the first, prefixes and long instructions more frequent than chance would.
    fn shape(r: &mut Rng, bytes: &mut [u8; 2 * MAX]) {
        let mut at = 0;
        let prefixes = match r.below(16) {
            0 => r.below(15),
            1..=5 => r.below(4),
            _ => 0,
        };
        for _ in 0..prefixes {
            bytes[at] = r.pick(&PREFIXES);
            at += 1;
        }
        if r.below(4) == 0 {
            bytes[at] = 0x40 | bytes[at] & 15;
            at += 1;
        }
        let map: &[u8] = match r.below(12) {
            0 | 1 => &[0x0f],
            2 => &[0x0f, 0x38],
            3 => &[0x0f, 0x3a],
            4 => &[0xc4],
            5 => &[0xc5],
            6 => &[0x62],
            7 => &[0x8f],
            8 => &[0xd8 | (r.word() & 7) as u8],
            _ => &[],
        };
        bytes[at..at + map.len()].copy_from_slice(map);
    }

    fn bitness(&self) -> u32 {
        if self.mode & mode::CODE64 != 0 {
            64
        } else if self.mode & mode::CODE32 != 0 {
            32
        } else {
            16
        }
    }

    fn linear_mask(&self) -> u64 {
        if self.mode & mode::CODE64 != 0 { u64::MAX } else { 0xffff_ffff }
    }
}

/// The pages of a case.
struct Pages<'a> {
    case: &'a Case,
    fetched: u32,
    wrong: Option<u64>,
}

impl CodeFetch for Pages<'_> {
    fn fetch(&mut self, pc: u64) -> Result<&[u8], Exception> {
        self.fetched += 1;
        let case = self.case;
        let first = case.first.min(case.bytes.len());
        let second = case.pc.wrapping_add(case.first as u64) & case.linear_mask();
        if pc == case.pc && self.fetched == 1 {
            return Ok(&case.bytes[..first]);
        }
        if pc != second || self.fetched != 2 {
            self.wrong = Some(pc);
        }
        if case.second && self.wrong.is_none() {
            Ok(&case.bytes[first..])
        } else {
            Err(Exception { vector: 14, error: Some(MISSING), address: pc })
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    Instruction {
        len: usize,
        code: Code,
    },
    /// Bytes that are no instruction, or one that the CPU model lacks.
    Undefined {
        len: usize,
        absent: bool,
    },
    Protection,
    PageFault,
}

/// What the decoder makes of the bytes.
fn expected(env: &X86Env, case: &Case) -> Expected {
    let ip = if case.bitness() == 16 { case.pc & 0xffff } else { case.pc };
    let first = case.first.min(case.bytes.len());
    let decode = |bytes: &[u8]| {
        let mut decoder = Decoder::with_ip(case.bitness(), bytes, ip, DecoderOptions::NONE);
        let i = decoder.decode();
        (i, decoder.last_error())
    };
    let (mut i, error) = decode(&case.bytes[..first]);
    if error == DecoderError::NoMoreBytes {
        if !case.second {
            return Expected::PageFault;
        }
        i = decode(&case.bytes).0;
    }
    let len = i.len();
    // Under DEBUG the limit is checked when the instruction runs.
    let limited = case.mode & (mode::CODE_LIMIT | mode::DEBUG) == mode::CODE_LIMIT;
    let beyond = limited && ip + len as u64 - 1 > 0xffff;
    if beyond || i.is_invalid() && len >= MAX {
        Expected::Protection
    } else if i.is_invalid() {
        Expected::Undefined { len, absent: false }
    } else if !env.cpuid.allows(i.code()) && !matches!(i.mnemonic(), Mnemonic::Lzcnt | Mnemonic::Tzcnt) {
        Expected::Undefined { len, absent: true }
    } else {
        Expected::Instruction { len, code: i.code() }
    }
}

/// Whether the block raises #UD at all: a call with a constant vector.
fn raises_undefined(block: &Block) -> bool {
    block.insts.iter().any(|inst| match inst {
        Inst::Call { helper, args } if *helper == helpers::int::RAISE => {
            let vector = args.first().and_then(|v| block.insts.get(v.0 as usize));
            matches!(vector, Some(Inst::Const(v)) if *v == vector::UD as u64)
        }
        _ => false,
    })
}

/// Runs cases of a seed with the CPU model of `env`, none of whose state is used but the limit of CS.
pub fn run(env: &X86Env, cases: u64, seed: u64) -> Result<Tally, Divergence> {
    let guest = GuestInfo {
        globals: X86::globals(),
        pc: X86::pc_global(),
        helpers: X86::helpers(),
        fp_control: X86::fp_control(),
    };
    let mut r = Rng::new(seed, 0);
    let mut tally = Tally::default();
    let mut storage = Block::default();
    for n in 0..cases {
        let case = Case::new(&mut r, env.seg[seg::CS].limit);
        let wrong = |what: String| {
            Divergence(format!(
                "case {n} of seed {seed:#x}: {what}\n{}-bit code at {:#x}, {} bytes in the first page, second page {}: {:02x?}\nmode {:#x}",
                case.bitness(),
                case.pc,
                case.first,
                if case.second { "present" } else { "missing" },
                &case.bytes[..MAX + 1],
                case.mode,
            ))
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(|| one(env, &case, &guest, std::mem::take(&mut storage))));
        match outcome {
            Ok(Ok((block, kind))) => {
                storage = block;
                tally.modes[case.bitness().trailing_zeros() as usize - 4] += 1;
                kind.count(&mut tally, &case);
            }
            Ok(Err(what)) => return Err(wrong(what)),
            Err(_) => return Err(wrong("the front end panicked".into())),
        }
    }
    Ok(tally)
}

impl Expected {
    fn count(self, tally: &mut Tally, case: &Case) {
        match self {
            Expected::Instruction { len, .. } => {
                tally.valid += 1;
                tally.crossing += (len > case.first) as u64;
            }
            Expected::Undefined { absent: false, .. } => tally.invalid += 1,
            Expected::Undefined { absent: true, .. } => tally.absent += 1,
            Expected::Protection => tally.overlong += 1,
            Expected::PageFault => tally.missing += 1,
        }
    }
}

fn one(env: &X86Env, case: &Case, guest: &GuestInfo, storage: Block) -> Result<(Block, Expected), String> {
    let expected = expected(env, case);
    let mut builder = Builder::new(storage);
    let key = BlockKey::new(case.pc, case.mode);
    let limits =
        TranslateLimits { max_insns: 1, single_step: false, side_exits: false, unroll: false, path: &[] };
    let mut pages = Pages { case, fetched: 0, wrong: None };
    let got = X86::translate(env, key, limits, &mut pages, &mut builder);
    if let Some(pc) = pages.wrong {
        return Err(format!("it fetched from {pc:#x}, the {}th time", pages.fetched));
    }
    let block = if got.is_ok() { builder.finish() } else { Block::default() };
    match (expected, got) {
        (Expected::Protection, Err(e)) if e.vector == vector::GP && e.error == Some(0) => {}
        (Expected::PageFault, Err(e)) if e.vector == 14 && e.error == Some(MISSING) => {}
        (Expected::Instruction { len, .. } | Expected::Undefined { len, .. }, Ok(t)) => {
            if t.bytes as usize != len || t.insns != 1 {
                return Err(format!("expected {expected:?}, it translated {t:?}"));
            }
            if matches!(expected, Expected::Undefined { .. }) && !raises_undefined(&block) {
                return Err(format!("expected #UD of {expected:?}, it made {:?}", block.insts));
            }
            if let Err(e) = ir::verify::verify(&block, guest) {
                return Err(format!("{expected:?} became IR that is not valid: {e}"));
            }
        }
        (_, got) => return Err(format!("expected {expected:?}, got {got:?}")),
    }
    Ok((block, expected))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::NoPlatform;

    fn environment(limit: u32) -> Box<X86Env> {
        let mut env =
            X86Env::new(Box::new(NoPlatform::default()), crate::cpuid::parse("max,+la57").expect("a model"));
        env.seg[seg::CS].limit = limit;
        env
    }

    fn all_kinds(t: &Tally) {
        let kinds = [t.valid, t.invalid, t.overlong, t.crossing, t.missing];
        assert!(kinds.iter().chain(&t.modes).all(|&n| n > 0), "{t:?}");
    }

    #[test]
    fn random_bytes_agree_with_the_decoder() {
        let tally = run(&environment(0xffff), 300_000, 1).unwrap_or_else(|e| panic!("{e}"));
        all_kinds(&tally);
        let lesser = crate::cpuid::parse("486").expect("a model");
        let env = X86Env::new(Box::new(NoPlatform::default()), lesser);
        run(&env, 50_000, 2).unwrap_or_else(|e| panic!("{e}"));
    }
}
