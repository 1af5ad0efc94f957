//! x87 arithmetic on the host's x87 unit: 80-bit results, rounding, flags and NaNs are silicon's.
//!
//! Each function loads the guest's control word, *with the guest's exception masks*, runs one instruction on an empty
//! stack, reads the status word, clears the exceptions before any waiting instruction could trap on them, takes the
//! result, and restores the host's control word. So an unmasked exception has exactly the effect on the operands that
//! the manual describes (none before, a scaled result after the operation), without a trap.
//!
//! Invariant: the host's x87 stack is empty, TOP is 0, its flags are clear and its control word is the ABI's before and
//! after each function.

use super::x87_state::F80;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("x87 arithmetic needs an x86-64 host: an 80-bit software implementation is not there yet");

use std::arch::asm;

/// The control word that the C calling convention prescribes.
const HOST_CONTROL: u16 = 0x37f;
/// TOP in a status word.
const TOP: u16 = 7 << 11;

/// One block of x87 code: the guest's control word around `$code`, which leaves the status word in `ax` by `fnstsw`
/// followed by `fnclex`, and the stack empty if the operation did what it does without unmasked exceptions.
macro_rules! x87 {
    ($control:expr, [$($code:literal),* $(,)?], $($operands:tt)*) => {{
        let words = [$control, HOST_CONTROL];
        let status: u16;
        // SAFETY: the code reads and writes its operands alone. The stack is empty at entry because all of it is
        // declared clobbered; pending exceptions are cleared before the next waiting instruction; the control word is
        // restored. Where an exception may leave the stack in another state, the caller resets the unit.
        unsafe {
            asm!(
                "fldcw word ptr [{words}]",
                $($code,)*
                "fldcw word ptr [{words} + 2]",
                words = in(reg) words.as_ptr(),
                out("ax") status,
                $($operands)*
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack)
            );
        }
        status
    }};
}

/// Brings the unit back to its initial state.
fn reset() {
    // SAFETY: FNINIT makes the state that the calling convention prescribes: empty stack, control word 37FH.
    unsafe {
        asm!("fninit",
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack, nomem));
    }
}

/// Operations on ST(0) alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Unary {
    Sqrt,
    Round,
    PowerMinus1,
    Sine,
    Cosine,
}

/// The result in ST(0) and the status word.
pub fn unary(op: Unary, control: u16, a: &F80) -> (F80, u16) {
    let mut r = [0u8; 16];
    macro_rules! run {
        ($insn:literal) => {
            x87!(control, ["fld tbyte ptr [{a}]", $insn, "fnstsw ax", "fnclex", "fstp tbyte ptr [{r}]"],
                a = in(reg) a.as_ptr(), r = in(reg) r.as_mut_ptr(),)
        };
    }
    let status = match op {
        Unary::Sqrt => run!("fsqrt"),
        Unary::Round => run!("frndint"),
        Unary::PowerMinus1 => run!("f2xm1"),
        Unary::Sine => run!("fsin"),
        Unary::Cosine => run!("fcos"),
    };
    (r, status)
}

/// Operations on two registers with one result in the place of the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Mul,
    Sub,
    SubReverse,
    Div,
    DivReverse,
    Scale,
    Remainder,
    RemainderNearest,
}

/// `a op b`, and the status word.
pub fn binary(op: Binary, control: u16, a: &F80, b: &F80) -> (F80, u16) {
    let mut r = [0u8; 16];
    macro_rules! run {
        ($insn:literal) => {
            x87!(control, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $insn, "fnstsw ax", "fnclex",
                "fstp tbyte ptr [{r}]", "fstp st(0)"],
                a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(), r = in(reg) r.as_mut_ptr(),)
        };
    }
    let status = match op {
        Binary::Add => run!("fadd st, st(1)"),
        Binary::Mul => run!("fmul st, st(1)"),
        Binary::Sub => run!("fsub st, st(1)"),
        Binary::SubReverse => run!("fsubr st, st(1)"),
        Binary::Div => run!("fdiv st, st(1)"),
        Binary::DivReverse => run!("fdivr st, st(1)"),
        Binary::Scale => run!("fscale"),
        Binary::Remainder => run!("fprem"),
        Binary::RemainderNearest => run!("fprem1"),
    };
    (r, status)
}

/// Operations that replace ST(1) and pop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Popping {
    ArcTangent,
    YLog2X,
    YLog2XPlus1,
}

/// The result, if there is one (none if an unmasked exception kept the operation from being done), and the status word.
pub fn popping(op: Popping, control: u16, st0: &F80, st1: &F80) -> (Option<F80>, u16) {
    let mut r = [0u8; 16];
    macro_rules! run {
        ($insn:literal) => {
            x87!(control, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $insn, "fnstsw ax", "fnclex",
                "fstp tbyte ptr [{r}]"],
                a = in(reg) st0.as_ptr(), b = in(reg) st1.as_ptr(), r = in(reg) r.as_mut_ptr(),)
        };
    }
    let status = match op {
        Popping::ArcTangent => run!("fpatan"),
        Popping::YLog2X => run!("fyl2x"),
        Popping::YLog2XPlus1 => run!("fyl2xp1"),
    };
    // Two numbers were pushed: TOP is 7 if one was popped.
    let done = status & TOP == 7 << 11;
    if !done {
        reset();
    }
    (done.then_some(r), status)
}

/// Operations that replace ST(0) and push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Pushing {
    Tangent,
    SineCosine,
    Extract,
}

/// What is in ST(0) and, if a number was pushed, in ST(1); and the status word.
pub fn pushing(op: Pushing, control: u16, a: &F80) -> (F80, Option<F80>, u16) {
    let (mut r0, mut r1) = ([0u8; 16], [0u8; 16]);
    macro_rules! run {
        ($insn:literal) => {
            // A zero below, so that there is a second number to take whether or not one was pushed.
            x87!(control, ["fldz", "fld tbyte ptr [{a}]", $insn, "fnstsw ax", "fnclex",
                "fstp tbyte ptr [{r0}]", "fstp tbyte ptr [{r1}]", "fninit"],
                a = in(reg) a.as_ptr(), r0 = in(reg) r0.as_mut_ptr(), r1 = in(reg) r1.as_mut_ptr(),)
        };
    }
    let status = match op {
        Pushing::Tangent => run!("fptan"),
        Pushing::SineCosine => run!("fsincos"),
        Pushing::Extract => run!("fxtract"),
    };
    let pushed = status & TOP == 5 << 11;
    (r0, pushed.then_some(r1), status)
}

/// Compares `a` with `b`: the condition codes in the status word. Quiet NaNs are invalid unless `quiet`.
pub fn compare(quiet: bool, control: u16, a: &F80, b: &F80) -> u16 {
    macro_rules! run {
        ($insn:literal) => {
            x87!(control, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $insn, "fnstsw ax", "fnclex",
                "fstp st(0)", "fstp st(0)"],
                a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(),)
        };
    }
    if quiet { run!("fucom st(1)") } else { run!("fcom st(1)") }
}

/// Formats in memory that numbers are converted to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Format {
    F32,
    F64,
    I16,
    I32,
    I64,
    TruncatedI16,
    TruncatedI32,
    TruncatedI64,
    Bcd,
}

impl Format {
    /// Size in memory in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Format::I16 | Format::TruncatedI16 => 2,
            Format::F32 | Format::I32 | Format::TruncatedI32 => 4,
            Format::F64 | Format::I64 | Format::TruncatedI64 => 8,
            Format::Bcd => 10,
        }
    }
}

/// Converts; the bytes (meaningless if an unmasked exception kept the number from being stored) and the status word.
pub fn convert(to: Format, control: u16, a: &F80) -> ([u8; 16], u16) {
    let mut r = [0u8; 16];
    macro_rules! run {
        ($insn:literal $(, $pop:literal)?) => {
            x87!(control, ["fld tbyte ptr [{a}]", $insn, "fnstsw ax", "fnclex" $(, $pop)?],
                a = in(reg) a.as_ptr(), r = in(reg) r.as_mut_ptr(),)
        };
    }
    let status = match to {
        Format::F32 => run!("fst dword ptr [{r}]", "fstp st(0)"),
        Format::F64 => run!("fst qword ptr [{r}]", "fstp st(0)"),
        Format::I16 => run!("fist word ptr [{r}]", "fstp st(0)"),
        Format::I32 => run!("fist dword ptr [{r}]", "fstp st(0)"),
        Format::I64 => run!("fistp qword ptr [{r}]"),
        Format::TruncatedI16 => run!("fisttp word ptr [{r}]"),
        Format::TruncatedI32 => run!("fisttp dword ptr [{r}]"),
        Format::TruncatedI64 => run!("fisttp qword ptr [{r}]"),
        Format::Bcd => run!("fbstp tbyte ptr [{r}]"),
    };
    if status & !control & 0x3f != 0 {
        // The popping forms have not popped.
        reset();
    }
    (r, status)
}

/// A constant, rounded by the control word where it is inexact: 0 for FLD1, 1 FLDL2T, 2 FLDL2E, 3 FLDPI, 4 FLDLG2, 5
/// FLDLN2, 6 FLDZ.
pub fn constant(n: u8, control: u16) -> F80 {
    let mut r = [0u8; 16];
    macro_rules! run {
        ($insn:literal) => {
            x87!(control, [$insn, "fnstsw ax", "fstp tbyte ptr [{r}]"], r = in(reg) r.as_mut_ptr(),)
        };
    }
    match n {
        0 => run!("fld1"),
        1 => run!("fldl2t"),
        2 => run!("fldl2e"),
        3 => run!("fldpi"),
        4 => run!("fldlg2"),
        5 => run!("fldln2"),
        _ => run!("fldz"),
    };
    r
}

/// From packed decimal.
pub fn from_bcd(bcd: &F80) -> F80 {
    let mut r = [0u8; 16];
    x87!(HOST_CONTROL, ["fbld tbyte ptr [{a}]", "fnstsw ax", "fnclex", "fstp tbyte ptr [{r}]"],
        a = in(reg) bcd.as_ptr(), r = in(reg) r.as_mut_ptr(),);
    r
}

#[cfg(test)]
mod tests {
    use super::super::x87_state::{f80, status};
    use super::*;

    const ONE: F80 = f80(0x3fff, 1 << 63);
    const TWO: F80 = f80(0x4000, 1 << 63);
    const ZERO: F80 = f80(0, 0);

    /// The invariant of the module: a second operation must find the unit as the first did.
    fn assert_clean() {
        let mut image = [0u32; 7];
        // SAFETY: FNSTENV writes 28 bytes and masks exceptions, which FLDENV of the same image undoes.
        unsafe { asm!("fnstenv [{0}]", "fldenv [{0}]", in(reg) image.as_mut_ptr(), options(nostack)) };
        assert_eq!(image[0] & 0xffff, HOST_CONTROL as u32);
        assert_eq!(image[1] & (0x3f | TOP as u32), 0, "flags or TOP");
        assert_eq!(image[2] & 0xffff, 0xffff, "tags");
    }

    #[test]
    fn masked_division_by_zero_gives_infinity() {
        let (r, sw) = binary(Binary::Div, 0x37f, &ONE, &ZERO);
        assert_eq!(r, f80(0x7fff, 1 << 63));
        assert_eq!(sw & 0x3f, status::ZE);
        assert_clean();
    }

    #[test]
    fn unmasked_division_by_zero_keeps_the_operand() {
        let (r, sw) = binary(Binary::Div, 0x37b, &ONE, &ZERO);
        assert_eq!(r, ONE);
        assert_eq!(sw & (0x3f | status::ES), status::ZE | status::ES);
        assert_clean();
    }

    #[test]
    fn pushing_tells_whether_it_pushed() {
        let (r0, r1, _) = pushing(Pushing::Extract, 0x37f, &TWO);
        assert_eq!((r0, r1), (ONE, Some(ONE)));
        let huge = f80(0x7000, 1 << 63);
        let (r0, r1, sw) = pushing(Pushing::Tangent, 0x37f, &huge);
        assert_eq!((r0, r1), (huge, None));
        assert_ne!(sw & status::C2, 0);
        assert_clean();
    }

    #[test]
    fn suppressed_operations_leave_no_trace() {
        let nan = f80(0x7fff, 0xa000_0000_0000_0000);
        assert_eq!(popping(Popping::YLog2X, 0x37e, &nan, &ONE).0, None);
        assert_clean();
        convert(Format::I64, 0x37e, &nan);
        assert_clean();
        assert_eq!(convert(Format::Bcd, 0x37f, &TWO).0[..2], [2, 0]);
        assert_eq!(popping(Popping::YLog2X, 0x37f, &TWO, &ONE).0, Some(ONE));
        assert_clean();
    }

    #[test]
    fn rounding_follows_the_control_word() {
        let third = binary(Binary::Div, 0x37f, &ONE, &f80(0x4000, 3 << 62)).0;
        let down = convert(Format::F32, 0x77f, &third).0;
        let up = convert(Format::F32, 0xb7f, &third).0;
        assert_eq!(
            u32::from_le_bytes(up[..4].try_into().unwrap()),
            u32::from_le_bytes(down[..4].try_into().unwrap()) + 1
        );
        assert_ne!(constant(3, 0x77f), constant(3, 0xb7f));
        assert_clean();
    }
}
