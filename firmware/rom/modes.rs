//! What the code for several modes has in common: the segments that protected and long mode begin with, exceptions that
//! checks expect, and the vectors' first instructions. The same source is assembled for each bitness.

use iced_x86::code_asm::*;

use super::layout::*;
use super::long_paging::USER_WINDOW;
use super::report::{self, routine};
use super::tables::WITH_ERROR_CODE;
use tessera_asm::{Code, R, Symbols};

/// Loads the flat data segment everywhere, and the stack pointer, in protected or long mode. Clobbers EAX.
pub fn flat_segments(c: &mut Code) -> R {
    c.mov(eax, u32::from(DATA))?;
    for segment in [ds, es, ss, fs, gs] {
        c.mov(segment, eax)?;
    }
    c.mov(esp, STACK)
}

/// Where an exception's saved instruction pointer points.
#[derive(Clone, Copy, PartialEq)]
pub enum Saved {
    /// At the instruction (faults).
    This,
    /// Behind it (traps).
    Next,
}

/// Expects an exception of the one instruction `faulting` emits. The registers are what they were at the exception.
pub fn expect_exception(
    c: &mut Code,
    s: &Symbols,
    what: &str,
    exception: (u32, u32),
    saved: Saved,
    faulting: impl FnOnce(&mut Code) -> R,
) -> R {
    let (at, after) = (c.fresh(), c.fresh());
    report::arm(c, s, &after)?;
    c.label(&at)?;
    faulting(c)?;
    c.label(&after)?;
    let ip = s.to(c.bits(), if saved == Saved::This { &at } else { &after });
    report::expect_exception(c, s, what, exception, ip as u32)
}

/// Runs the ring 3 code at `user` (in `user.rs`; in long mode, as seen through [`USER_WINDOW`], in `long.rs`) until it causes an
/// exception, and expects that. Clobbers EAX.
pub fn expect_user(c: &mut Code, s: &Symbols, what: &str, exception: (u32, u32), user: &str) -> R {
    let bits = c.bits();
    let (address, segment) = match bits {
        64 => (user_address(s, user) as u32, USER_CODE64),
        _ => (s.imm(user), USER_CODE32),
    };
    let after = c.fresh();
    report::arm(c, s, &after)?;
    c.mov(eax, address)?;
    c.jmp(s.at(&routine(bits, "to_user")))?;
    c.label(&after)?;
    report::expect_exception_from(c, s, what, exception, segment)
}

/// Where ring 3 code is in long mode.
pub fn user_address(s: &Symbols, label: &str) -> u64 {
    USER_WINDOW + s.at(label)
}

/// What the gates of protected or long mode lead to: the vector and an error code, which may be made up, are on the stack when
/// the routine `exception` begins.
pub fn vectors(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    for vector in (0..32u32).chain([VEC_SYSCALL.into()]) {
        c.label(&routine(bits, &format!("vector{vector}")))?;
        if !WITH_ERROR_CODE.contains(&vector) {
            c.push(0)?;
        }
        c.push(vector as i32)?;
        c.jmp(s.at(&routine(bits, "exception")))?;
    }
    Ok(())
}
