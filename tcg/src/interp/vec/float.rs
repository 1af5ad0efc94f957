//! Floating-point lanes: bits in, bits out, under a control word laid out as MXCSR (SDM volume 1, section 10.2.3).
//!
//! On x86-64 hosts each lane is one scalar SSE instruction, executed with the given control word: IEEE 754 results,
//! NaN selection and flags are silicon's. On other hosts it is Rust's arithmetic: round to nearest, no flags. That is
//! enough to fold constants nowhere and to run guests that do not look; such a host's backend needs its own answer
//! anyway.

use crate::ir::flags;

/// Floating-point format of a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// IEEE 754 binary32.
    Binary32,
    /// IEEE 754 binary64.
    Binary64,
}

impl Format {
    /// Size of a lane.
    pub fn bits(self) -> usize {
        match self {
            Format::Binary32 => 32,
            Format::Binary64 => 64,
        }
    }
}

/// Two-operand arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Arith {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
}

/// What becomes of the addend of a multiply-add.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Addend {
    Add,
    Sub,
}

/// How a conversion to an integer rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// By the control word.
    Control,
    /// To zero.
    Truncate,
}

/// Result of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Relation {
    Less,
    Equal,
    Greater,
    Unordered,
}

impl Relation {
    /// As (U)COMISS sets the flags.
    pub fn packed_flags(self) -> u64 {
        (match self {
            Relation::Less => flags::C,
            Relation::Equal => flags::Z,
            Relation::Greater => 0,
            Relation::Unordered => flags::Z | flags::P | flags::C,
        }) as u64
    }
}

/// Whether CMPPS predicate `imm[4:0]` holds (SDM volume 2, CMPPD, table 3-1).
pub fn predicate(f: Format, a: u64, b: u64, imm: u8, control: &mut u32) -> bool {
    // Bit 4 exchanges quiet and signalling; the relation depends on the low four bits alone.
    const SIGNALLING: u16 = 0b0110_0110_0110_0110;
    let signalling = (SIGNALLING >> (imm & 15) & 1 != 0) != (imm & 16 != 0);
    let (less, equal, greater, unordered) = match imm & 15 {
        0 => (false, true, false, false),
        1 => (true, false, false, false),
        2 => (true, true, false, false),
        3 => (false, false, false, true),
        4 => (true, false, true, true),
        5 => (false, true, true, true),
        6 => (false, false, true, true),
        7 => (true, true, true, false),
        8 => (false, true, false, true),
        9 => (true, false, false, true),
        10 => (true, true, false, true),
        11 => (false, false, false, false),
        12 => (true, false, true, false),
        13 => (false, true, true, false),
        14 => (false, false, true, false),
        _ => (true, true, true, true),
    };
    match compare(f, a, b, signalling, control) {
        Relation::Less => less,
        Relation::Equal => equal,
        Relation::Greater => greater,
        Relation::Unordered => unordered,
    }
}

pub use host::*;

#[cfg(target_arch = "x86_64")]
mod host {
    use super::{Addend, Arith, Format, Relation, Rounding};
    use std::arch::asm;

    /// Runs one instruction template under `control` (exceptions masked) and accumulates its sticky flags.
    macro_rules! under {
        ($control:expr, $insn:expr, $($operands:tt)*) => {{
            let mut word = [0u32, *$control | 0x1f80];
            // SAFETY: the template reads and writes its operands alone; MXCSR is restored before it ends.
            unsafe {
                asm!(
                    "stmxcsr dword ptr [{word}]",
                    "ldmxcsr dword ptr [{word} + 4]",
                    $insn,
                    "stmxcsr dword ptr [{word} + 4]",
                    "ldmxcsr dword ptr [{word}]",
                    word = in(reg) word.as_mut_ptr(),
                    $($operands)*
                    options(nostack)
                );
            }
            *$control |= word[1] & 0x3f;
        }};
    }

    /// A scalar instruction `xmm, xmm` for either format.
    macro_rules! scalar {
        ($f:expr, $control:expr, $a:expr, $b:expr, $insn32:literal, $insn64:literal) => {
            match $f {
                Format::Binary32 => {
                    let mut r = f32::from_bits($a as u32);
                    under!($control, concat!($insn32, " {r}, {b}"), r = inout(xmm_reg) r,
                        b = in(xmm_reg) f32::from_bits($b as u32),);
                    r.to_bits() as u64
                }
                Format::Binary64 => {
                    let mut r = f64::from_bits($a);
                    under!($control, concat!($insn64, " {r}, {b}"), r = inout(xmm_reg) r,
                        b = in(xmm_reg) f64::from_bits($b),);
                    r.to_bits()
                }
            }
        };
    }

    /// A scalar instruction from `xmm` to a general register, for either format.
    macro_rules! to_register {
        ($f:expr, $control:expr, $a:expr, $insn32:literal, $insn64:literal) => {{
            let r: u64;
            match $f {
                Format::Binary32 => under!($control, concat!($insn32, ", {a}"), r = out(reg) r,
                    a = in(xmm_reg) f32::from_bits($a as u32),),
                Format::Binary64 => under!($control, concat!($insn64, ", {a}"), r = out(reg) r,
                    a = in(xmm_reg) f64::from_bits($a),),
            }
            r
        }};
    }

    /// `a op b`.
    pub fn arith(op: Arith, f: Format, a: u64, b: u64, control: &mut u32) -> u64 {
        match op {
            Arith::Add => scalar!(f, control, a, b, "addss", "addsd"),
            Arith::Sub => scalar!(f, control, a, b, "subss", "subsd"),
            Arith::Mul => scalar!(f, control, a, b, "mulss", "mulsd"),
            Arith::Div => scalar!(f, control, a, b, "divss", "divsd"),
            Arith::Min => scalar!(f, control, a, b, "minss", "minsd"),
            Arith::Max => scalar!(f, control, a, b, "maxss", "maxsd"),
        }
    }

    /// `a * b + c` rounded once; `negate` negates the product.
    pub fn mul_add(
        f: Format,
        a: u64,
        b: u64,
        c: u64,
        negate: bool,
        addend: Addend,
        control: &mut u32,
    ) -> u64 {
        macro_rules! fused {
            ($insn32:literal, $insn64:literal) => {
                match f {
                    Format::Binary32 => {
                        let mut r = f32::from_bits(c as u32);
                        under!(control, concat!($insn32, " {r}, {a}, {b}"), r = inout(xmm_reg) r,
                            a = in(xmm_reg) f32::from_bits(a as u32), b = in(xmm_reg) f32::from_bits(b as u32),);
                        r.to_bits() as u64
                    }
                    Format::Binary64 => {
                        let mut r = f64::from_bits(c);
                        under!(control, concat!($insn64, " {r}, {a}, {b}"), r = inout(xmm_reg) r,
                            a = in(xmm_reg) f64::from_bits(a), b = in(xmm_reg) f64::from_bits(b),);
                        r.to_bits()
                    }
                }
            };
        }
        match (negate, addend) {
            (false, Addend::Add) => fused!("vfmadd231ss", "vfmadd231sd"),
            (false, Addend::Sub) => fused!("vfmsub231ss", "vfmsub231sd"),
            (true, Addend::Add) => fused!("vfnmadd231ss", "vfnmadd231sd"),
            (true, Addend::Sub) => fused!("vfnmsub231ss", "vfnmsub231sd"),
        }
    }

    /// Lane 0 with zeros above, which raise nothing.
    fn alone(a: u64) -> std::arch::x86_64::__m128i {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { std::arch::x86_64::_mm_set_epi64x(0, a as i64) }
    }

    /// binary16 to binary32.
    pub fn from_half(a: u64, control: &mut u32) -> u64 {
        let r: f32;
        let a = alone(a as u16 as u64);
        under!(control, "vcvtph2ps {r}, {a}", r = out(xmm_reg) r, a = in(xmm_reg) a,);
        r.to_bits() as u64
    }

    /// A control word with the rounding that an immediate names: in bits 1:0, unless bit 2 says to take the word's own.
    fn with_rounding(control: u32, imm: u8) -> u32 {
        match imm & 4 {
            0 => control & !0x6000 | (imm as u32 & 3) << 13,
            _ => control,
        }
    }

    /// binary32 to binary16, rounded as VCVTPS2PH does with immediate `imm`.
    pub fn to_half(a: u64, imm: u8, control: &mut u32) -> u64 {
        let word = &mut with_rounding(*control, imm);
        let r: f32;
        let a = alone(a as u32 as u64);
        under!(word, "vcvtps2ph {r}, {a}, 4", r = out(xmm_reg) r, a = in(xmm_reg) a,);
        *control |= *word & 0x3f;
        r.to_bits() as u16 as u64
    }

    /// Square root.
    pub fn sqrt(f: Format, a: u64, control: &mut u32) -> u64 {
        scalar!(f, control, 0, a, "sqrtss", "sqrtsd")
    }

    /// Approximate reciprocal of a binary32.
    pub fn reciprocal(a: u64) -> u64 {
        let mut r = 0f32;
        under!(&mut 0x1f80, "rcpss {r}, {a}", r = inout(xmm_reg) r, a = in(xmm_reg) f32::from_bits(a as u32),);
        r.to_bits() as u64
    }

    /// Approximate reciprocal square root of a binary32.
    pub fn reciprocal_sqrt(a: u64) -> u64 {
        let mut r = 0f32;
        under!(&mut 0x1f80, "rsqrtss {r}, {a}", r = inout(xmm_reg) r, a = in(xmm_reg) f32::from_bits(a as u32),);
        r.to_bits() as u64
    }

    /// Rounds to an integral value as ROUNDSS does with immediate `imm`.
    pub fn round(f: Format, a: u64, imm: u8, control: &mut u32) -> u64 {
        let word = &mut with_rounding(*control, imm);
        macro_rules! round {
            ($insn:literal, $ty:ident, $bits:ty) => {{
                let r: $ty;
                under!(word, $insn, r = out(xmm_reg) r, a = in(xmm_reg) $ty::from_bits(a as $bits),);
                r.to_bits() as u64
            }};
        }
        // Bit 3 of the instruction's own immediate: inexact results raise nothing.
        let r = match (f, imm & 8 != 0) {
            (Format::Binary32, false) => round!("roundss {r}, {a}, 4", f32, u32),
            (Format::Binary32, true) => round!("roundss {r}, {a}, 12", f32, u32),
            (Format::Binary64, false) => round!("roundsd {r}, {a}, 4", f64, u64),
            (Format::Binary64, true) => round!("roundsd {r}, {a}, 12", f64, u64),
        };
        *control |= *word & 0x3f;
        r
    }

    /// Compares; quiet NaNs signal if `signalling`.
    pub fn compare(f: Format, a: u64, b: u64, signalling: bool, control: &mut u32) -> Relation {
        let ah: u64;
        macro_rules! compare {
            ($insn:literal, $ty:ident, $bits:ty) => {
                under!(control, concat!($insn, " {a}, {b}\nlahf"), a = in(xmm_reg) $ty::from_bits(a as $bits),
                    b = in(xmm_reg) $ty::from_bits(b as $bits), out("rax") ah,)
            };
        }
        match (f, signalling) {
            (Format::Binary32, false) => compare!("ucomiss", f32, u32),
            (Format::Binary32, true) => compare!("comiss", f32, u32),
            (Format::Binary64, false) => compare!("ucomisd", f64, u64),
            (Format::Binary64, true) => compare!("comisd", f64, u64),
        }
        match (ah >> 8 & 1 != 0, ah >> 10 & 1 != 0, ah >> 14 & 1 != 0) {
            (_, true, _) => Relation::Unordered,
            (_, _, true) => Relation::Equal,
            (true, _, _) => Relation::Less,
            _ => Relation::Greater,
        }
    }

    /// To a signed integer of 32 or 64 bits, zero-extended.
    pub fn to_int(f: Format, bits: u32, a: u64, rounding: Rounding, control: &mut u32) -> u64 {
        match (bits, rounding) {
            (32, Rounding::Control) => to_register!(f, control, a, "cvtss2si {r:e}", "cvtsd2si {r:e}"),
            (32, Rounding::Truncate) => to_register!(f, control, a, "cvttss2si {r:e}", "cvttsd2si {r:e}"),
            (_, Rounding::Control) => to_register!(f, control, a, "cvtss2si {r:r}", "cvtsd2si {r:r}"),
            (_, Rounding::Truncate) => to_register!(f, control, a, "cvttss2si {r:r}", "cvttsd2si {r:r}"),
        }
    }

    /// From a signed integer.
    pub fn from_int(f: Format, a: i64, control: &mut u32) -> u64 {
        match f {
            Format::Binary32 => {
                let mut r = 0f32;
                under!(control, "cvtsi2ss {r}, {a:r}", r = inout(xmm_reg) r, a = in(reg) a,);
                r.to_bits() as u64
            }
            Format::Binary64 => {
                let mut r = 0f64;
                under!(control, "cvtsi2sd {r}, {a:r}", r = inout(xmm_reg) r, a = in(reg) a,);
                r.to_bits()
            }
        }
    }

    /// binary32 to binary64.
    pub fn widen(a: u64, control: &mut u32) -> u64 {
        let mut r = 0f64;
        under!(control, "cvtss2sd {r}, {a}", r = inout(xmm_reg) r, a = in(xmm_reg) f32::from_bits(a as u32),);
        r.to_bits()
    }

    /// binary64 to binary32.
    pub fn narrow(a: u64, control: &mut u32) -> u64 {
        let mut r = 0f32;
        under!(control, "cvtsd2ss {r}, {a}", r = inout(xmm_reg) r, a = in(xmm_reg) f64::from_bits(a),);
        r.to_bits() as u64
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[allow(missing_docs)]
mod host {
    use super::{Addend, Arith, Format, Relation, Rounding};

    fn each(f: Format, a: u64, b: u64, g: impl Fn(f64, f64) -> f64, h: impl Fn(f32, f32) -> f32) -> u64 {
        match f {
            Format::Binary32 => h(f32::from_bits(a as u32), f32::from_bits(b as u32)).to_bits() as u64,
            Format::Binary64 => g(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        }
    }

    pub fn arith(op: Arith, f: Format, a: u64, b: u64, _control: &mut u32) -> u64 {
        match op {
            Arith::Add => each(f, a, b, |a, b| a + b, |a, b| a + b),
            Arith::Sub => each(f, a, b, |a, b| a - b, |a, b| a - b),
            Arith::Mul => each(f, a, b, |a, b| a * b, |a, b| a * b),
            Arith::Div => each(f, a, b, |a, b| a / b, |a, b| a / b),
            Arith::Min => each(f, a, b, |a, b| if a < b { a } else { b }, |a, b| if a < b { a } else { b }),
            Arith::Max => each(f, a, b, |a, b| if a > b { a } else { b }, |a, b| if a > b { a } else { b }),
        }
    }

    pub fn mul_add(
        f: Format,
        a: u64,
        b: u64,
        c: u64,
        negate: bool,
        addend: Addend,
        _control: &mut u32,
    ) -> u64 {
        let sign = 1 << (f.bits() - 1);
        let a = if negate { a ^ sign } else { a };
        let c = if addend == Addend::Sub { c ^ sign } else { c };
        match f {
            Format::Binary32 => f32::from_bits(a as u32)
                .mul_add(f32::from_bits(b as u32), f32::from_bits(c as u32))
                .to_bits() as u64,
            Format::Binary64 => f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits(),
        }
    }

    pub fn from_half(a: u64, _control: &mut u32) -> u64 {
        let (sign, exponent, fraction) = ((a >> 15 & 1) as u32, (a >> 10 & 31) as i32, (a & 0x3ff) as u32);
        let magnitude = match exponent {
            31 if fraction == 0 => f32::INFINITY,
            31 => f32::from_bits(0x7fc0_0000 | fraction << 13),
            0 => fraction as f32 * 2f32.powi(-24),
            e => (1024 + fraction) as f32 * 2f32.powi(e - 25),
        };
        (magnitude.to_bits() | sign << 31) as u64
    }

    pub fn to_half(a: u64, _imm: u8, _control: &mut u32) -> u64 {
        let sign = (a >> 16 & 0x8000) as u32;
        let v = f32::from_bits(a as u32 & 0x7fff_ffff);
        let bits = v.to_bits();
        let half = if v.is_nan() {
            0x7e00 | bits >> 13 & 0x3ff
        } else if v >= 65520.0 {
            0x7c00
        } else if v < 2f32.powi(-14) {
            (v * 2f32.powi(24)).round_ties_even() as u32
        } else {
            // Half of the last place, less one if that is even: rounds to nearest even, carrying into the exponent.
            (bits + 0xfff + (bits >> 13 & 1) >> 13) - (112 << 10)
        };
        (half | sign) as u64
    }

    pub fn sqrt(f: Format, a: u64, _control: &mut u32) -> u64 {
        each(f, a, a, |a, _| a.sqrt(), |a, _| a.sqrt())
    }

    pub fn reciprocal(a: u64) -> u64 {
        each(Format::Binary32, a, a, |a, _| a, |a, _| a.recip())
    }

    pub fn reciprocal_sqrt(a: u64) -> u64 {
        each(Format::Binary32, a, a, |a, _| a, |a, _| a.sqrt().recip())
    }

    pub fn round(f: Format, a: u64, imm: u8, _control: &mut u32) -> u64 {
        match imm & 7 {
            1 => each(f, a, a, |a, _| a.floor(), |a, _| a.floor()),
            2 => each(f, a, a, |a, _| a.ceil(), |a, _| a.ceil()),
            3 => each(f, a, a, |a, _| a.trunc(), |a, _| a.trunc()),
            _ => each(f, a, a, |a, _| a.round_ties_even(), |a, _| a.round_ties_even()),
        }
    }

    fn value(f: Format, a: u64) -> f64 {
        match f {
            Format::Binary32 => f32::from_bits(a as u32) as f64,
            Format::Binary64 => f64::from_bits(a),
        }
    }

    pub fn compare(f: Format, a: u64, b: u64, _signalling: bool, _control: &mut u32) -> Relation {
        match value(f, a).partial_cmp(&value(f, b)) {
            Some(std::cmp::Ordering::Less) => Relation::Less,
            Some(std::cmp::Ordering::Equal) => Relation::Equal,
            Some(std::cmp::Ordering::Greater) => Relation::Greater,
            None => Relation::Unordered,
        }
    }

    pub fn to_int(f: Format, bits: u32, a: u64, rounding: Rounding, _control: &mut u32) -> u64 {
        let v = match rounding {
            Rounding::Control => value(f, a).round_ties_even(),
            Rounding::Truncate => value(f, a).trunc(),
        };
        let limit = 2f64.powi(bits as i32 - 1);
        let least = 1u64 << (bits - 1);
        if v >= -limit && v < limit { v as i64 as u64 & u64::MAX >> (64 - bits) } else { least }
    }

    pub fn from_int(f: Format, a: i64, _control: &mut u32) -> u64 {
        match f {
            Format::Binary32 => (a as f32).to_bits() as u64,
            Format::Binary64 => (a as f64).to_bits(),
        }
    }

    pub fn widen(a: u64, _control: &mut u32) -> u64 {
        (f32::from_bits(a as u32) as f64).to_bits()
    }

    pub fn narrow(a: u64, _control: &mut u32) -> u64 {
        (f64::from_bits(a) as f32).to_bits() as u64
    }
}
