//! x87 instructions on the host's x87 unit itself.
//!
//! Problem: a helper that computes one result on the host's unit spends nearly all its time on bringing operands there and
//! results back.
//!
//! Strategy: while all exceptions are masked, an x87 instruction of the guest and the same instruction of the host do the
//! same to the unit, stack faults, tags and condition codes included. So the guest's registers, tags and status word
//! move to the host's unit with the first such instruction of a stretch of translated code ([`LOAD_UNIT`]), and stay
//! there: each instruction is then a [`Shortcut`] of one host instruction. They come home ([`SAVE_UNIT`]) before an
//! instruction that looks at them in the environment, and whenever translated code is left ([`save_unit`] from
//! [`Guest::left`](tessera_tcg::guest::Guest::left)).
//!
//! Invariants:
//! - `x87_resident` is 1 only while translated code runs, by itself or in a helper; then the host's control word is the
//!   guest's, with all exceptions masked, so no instruction can trap. Rust code uses no x87 instruction but those in
//!   `x87_host`, whose helpers are called only after [`SAVE_UNIT`].
//! - The control word and the pointers to the last instruction and operand are in the environment always.
//! - Otherwise the host's unit is as the calling convention wants it.
//!
//! Each row has the function that does the same on the environment's state: it says what the shortcut means, and serves the
//! IR's interpreter and hosts of other architectures.

use std::arch::asm;
use std::mem::offset_of;

use tessera_tcg::guest::{Effects, HelperDesc, Shortcut, ShortcutArgs};
use tessera_tcg::ir::HelperId;

use super::x87::{self, Source};
use super::x87_host::{Binary, Format};
use super::x87_image::{self as image, Layout};
use super::x87_state::status;
use crate::state::X86Env;

const BASE: u16 = super::X87_NATIVE_BASE;

/// Brings the unit's state to the host's unit. To be called before the other rows' instructions.
pub const LOAD_UNIT: HelperId = HelperId(BASE);
/// Brings the unit's state home. To be called before whatever looks at it in the environment.
pub const SAVE_UNIT: HelperId = HelperId(BASE + 1);
/// As [`x87::ARITH`].
pub const ARITH: HelperId = HelperId(BASE + 2);
/// As [`x87::ARITH_MEMORY`].
pub const ARITH_MEMORY: HelperId = HelperId(BASE + 3);
/// As [`x87::COMPARE`].
pub const COMPARE: HelperId = HelperId(BASE + 4);
/// As [`x87::LOAD`].
pub const LOAD: HelperId = HelperId(BASE + 5);
/// As [`x87::LOAD_REGISTER`].
pub const LOAD_REGISTER: HelperId = HelperId(BASE + 6);
/// As [`x87::LOAD_CONSTANT`].
pub const LOAD_CONSTANT: HelperId = HelperId(BASE + 7);
/// As [`x87::STORE_REGISTER`].
pub const STORE_REGISTER: HelperId = HelperId(BASE + 8);
/// As [`x87::MISC`].
pub const MISC: HelperId = HelperId(BASE + 9);
/// As [`x87::EXCHANGE`].
pub const EXCHANGE: HelperId = HelperId(BASE + 10);
/// As [`x87::FREE`].
pub const FREE: HelperId = HelperId(BASE + 11);
/// As [`x87::MOVE_IF`].
pub const MOVE_IF: HelperId = HelperId(BASE + 12);
/// `(destination)`: what [`x87::STORE`] stores, for a store that is known to succeed; the exponent of the 80-bit
/// format is left in [`X86Env::x87_number`].
pub const TAKE: HelperId = HelperId(BASE + 13);
/// `()`: the status word.
pub const STATUS: HelperId = HelperId(BASE + 14);
/// As [`x87::LOAD_CONTROL`].
pub const LOAD_CONTROL: HelperId = HelperId(BASE + 15);

const RESIDENT: u32 = offset_of!(X86Env, x87_resident) as u32;
const NUMBER: u32 = offset_of!(X86Env, x87_number) as u32;

const fn unless(value: u8, func: fn() -> *const ()) -> Shortcut {
    Shortcut::Unless { offset: RESIDENT, value, func }
}

macro_rules! row {
    ($name:literal, $func:expr, $args:tt, $shortcut:expr) => {
        HelperDesc {
            name: $name,
            func: || {
                let func: super::helper_type!($args) = $func;
                func as *const ()
            },
            args: $args,
            effects: Effects::STATE,
            shortcut: $shortcut,
        }
    };
}

/// The rows of this part.
pub(super) const TABLE: &[HelperDesc] = &[
    row!("x87_load_unit", nothing, 0, Some(unless(1, || load_unit as *const ()))),
    row!("x87_save_unit", nothing, 0, Some(unless(0, || save_unit_call as *const ()))),
    row!("x87_native_arith", x87::x87_arith, 1, Some(Shortcut::X86_64(arith))),
    row!("x87_native_arith_memory", x87::x87_arith_memory, 2, Some(Shortcut::X86_64(arith_memory))),
    row!("x87_native_compare", x87::x87_compare, 2, Some(Shortcut::X86_64(compare))),
    row!("x87_native_load", x87::x87_load, 3, Some(Shortcut::X86_64(load))),
    row!("x87_native_load_register", x87::x87_load_register, 1, Some(Shortcut::X86_64(load_register))),
    row!("x87_native_load_constant", x87::x87_load_constant, 1, Some(Shortcut::X86_64(load_constant))),
    row!("x87_native_store_register", x87::x87_store_register, 2, Some(Shortcut::X86_64(store_register))),
    row!("x87_native_misc", x87::x87_misc, 1, Some(Shortcut::X86_64(misc))),
    row!("x87_native_exchange", x87::x87_exchange, 1, Some(Shortcut::X86_64(exchange))),
    row!("x87_native_free", x87::x87_free, 2, Some(Shortcut::X86_64(free))),
    row!("x87_native_move_if", x87::x87_move_if, 2, Some(Shortcut::X86_64(move_if))),
    row!("x87_take", take_helper, 1, Some(Shortcut::X86_64(take))),
    row!("x87_status", status_helper, 0, Some(Shortcut::X86_64(status_word))),
    row!("x87_native_load_control", load_control, 1, None),
];

// ----- to the host's unit and back -----

/// FSAVE's 32-bit layout: the environment of 28 bytes and eight registers in stack order.
type Image = [u8; 108];
const LAYOUT: Layout = Layout { wide: true, protected: true };

/// What calls of [`LOAD_UNIT`] and [`SAVE_UNIT`] mean where there are no shortcuts.
extern "C" fn nothing(_: &mut X86Env) -> u64 {
    0
}

extern "C" fn load_unit(env: &mut X86Env) -> u64 {
    debug_assert_eq!(env.fpu.control & status::EXCEPTIONS, status::EXCEPTIONS);
    let mut bytes: Image = [0; 108];
    image::store_environment(&env.fpu, LAYOUT, &mut bytes);
    image::store_registers(&env.fpu, &mut bytes[LAYOUT.bytes()..]);
    bytes[0] |= status::EXCEPTIONS as u8;
    // SAFETY: FRSTOR reads the 108 bytes. All exceptions are masked (just now, if not before), so nothing is pending afterwards. That the unit is not
    // as the calling convention wants it is harmless: Rust code does not use it until `save_unit`.
    unsafe { asm!("frstor [{}]", in(reg) bytes.as_ptr(), options(nostack, readonly)) };
    env.x87_resident = 1;
    0
}

/// Brings the unit's state home if it is in the host's unit.
#[inline]
pub fn save_unit(env: &mut X86Env) {
    if env.x87_resident != 0 {
        save(env);
    }
}

#[cold]
fn save(env: &mut X86Env) {
    let mut bytes: Image = [0; 108];
    // SAFETY: FNSAVE writes the 108 bytes and initialises the unit, as the calling convention wants it.
    unsafe { asm!("fnsave [{}]", in(reg) bytes.as_mut_ptr(), options(nostack)) };
    let fpu = &mut env.fpu;
    let (control, opcode, ip, cs, dp, ds) = (fpu.control, fpu.opcode, fpu.ip, fpu.cs, fpu.dp, fpu.ds);
    image::load_environment(fpu, LAYOUT, &bytes);
    image::load_registers(fpu, &bytes[LAYOUT.bytes()..]);
    // What the host's unit remembers of its last instruction says nothing to the guest.
    (fpu.control, fpu.opcode, fpu.ip, fpu.cs, fpu.dp, fpu.ds) = (control, opcode, ip, cs, dp, ds);
    env.x87_resident = 0;
}

extern "C" fn save_unit_call(env: &mut X86Env) -> u64 {
    save_unit(env);
    0
}

extern "C" fn load_control(env: &mut X86Env, word: u64) -> u64 {
    if word as u16 & status::EXCEPTIONS == status::EXCEPTIONS && env.x87_resident != 0 {
        env.fpu.set_control(word as u16);
        // SAFETY: FLDCW reads the word; all exceptions stay masked.
        unsafe { asm!("fldcw [{}]", in(reg) &raw const env.fpu.control, options(nostack, readonly)) };
        return 0;
    }
    save_unit(env);
    x87::x87_load_control(env, word)
}

extern "C" fn take_helper(env: &mut X86Env, code: u64) -> u64 {
    let (bytes, len) = x87::converted(&mut env.fpu, code);
    let mut bytes = bytes.unwrap_or_default();
    bytes[len..].fill(0);
    if code >> 4 & 1 != 0 {
        env.fpu.pop();
    }
    let v = u128::from_le_bytes(bytes);
    env.x87_number = [v as u64, (v >> 64) as u64];
    v as u64
}

extern "C" fn status_helper(env: &mut X86Env) -> u64 {
    env.fpu.status.into()
}

// ----- host code -----

/// An instruction without memory operand.
fn plain(out: &mut Vec<u8>, escape: u8, modrm: u8) {
    out.extend_from_slice(&[escape, modrm]);
}

/// An opcode with the operand `[environment + offset]`.
fn with_memory(a: &ShortcutArgs, out: &mut Vec<u8>, opcode: &[u8], digit: u8, offset: u32) {
    out.extend_from_slice(opcode);
    out.push(0x85 | digit << 3);
    out.extend_from_slice(&(a.env + offset as i32).to_le_bytes());
}

/// `mov rax, constant`, for an argument that might have been in RAX.
fn argument(a: &ShortcutArgs, out: &mut Vec<u8>, n: usize) {
    if let Some(c) = a.constants[n] {
        out.extend_from_slice(&[0x48, 0xb8]);
        out.extend_from_slice(&c.to_le_bytes());
    }
}

fn code(a: &ShortcutArgs) -> u64 {
    a.constants[0].expect("translations pass operations as constants")
}

/// The escape byte and what is added to the digit for arithmetic and comparison with memory.
fn memory_escape(source: Source) -> u8 {
    match source {
        Source::F64 => 0xdc,
        Source::I32 => 0xda,
        Source::I16 => 0xde,
        _ => 0xd8,
    }
}

/// Digit of an arithmetic instruction.
fn digit(op: Binary) -> u8 {
    match op {
        Binary::Mul => 1,
        Binary::Sub => 4,
        Binary::SubReverse => 5,
        Binary::Div => 6,
        Binary::DivReverse => 7,
        _ => 0,
    }
}

fn arith(a: &ShortcutArgs, out: &mut Vec<u8>) {
    let (op, _, i, to_i, pop) = x87::arith_parts(code(a));
    let digit = digit(op);
    let (escape, digit) = match (to_i, pop) {
        (false, false) => (0xd8, digit),
        // The forms that write to ST(i) have the digits of subtraction and its reverse, and of the divisions, exchanged.
        (_, pop) => (if pop { 0xde } else { 0xdc }, if digit >= 4 { digit ^ 1 } else { digit }),
    };
    plain(out, escape, 0xc0 | digit << 3 | i);
}

fn arith_memory(a: &ShortcutArgs, out: &mut Vec<u8>) {
    let (op, source, ..) = x87::arith_parts(code(a));
    argument(a, out, 1);
    store_rax(a, out);
    with_memory(a, out, &[memory_escape(source)], digit(op), NUMBER);
}

fn store_rax(a: &ShortcutArgs, out: &mut Vec<u8>) {
    with_memory(a, out, &[0x48, 0x89], 0, NUMBER);
}

fn compare(a: &ShortcutArgs, out: &mut Vec<u8>) {
    let (source, i, pops, quiet, condition) = x87::compare_parts(code(a));
    if source != Source::Register {
        argument(a, out, 1);
        store_rax(a, out);
        return with_memory(a, out, &[memory_escape(source)], 2 + pops, NUMBER);
    }
    if !condition {
        plain(out, if pops == 0 { 0xdb } else { 0xdf }, if quiet { 0xe8 } else { 0xf0 } | i);
        // lahf; and eax, CF, PF and ZF in AH: the layout of packed flags
        out.extend_from_slice(&[0x9f, 0x25, 0x00, 0x45, 0x00, 0x00]);
        return;
    }
    match (quiet, pops) {
        (true, 2) => plain(out, 0xda, 0xe9),
        (true, _) => plain(out, 0xdd, 0xe0 | pops << 3 | i),
        (false, 2) => plain(out, 0xde, 0xd9),
        (false, _) => plain(out, 0xd8, 0xd0 | pops << 3 | i),
    }
}

fn load(a: &ShortcutArgs, out: &mut Vec<u8>) {
    let source = x87::source_of(code(a));
    let (escape, digit) = match source {
        Source::F32 => (0xd9, 0),
        Source::F64 => (0xdd, 0),
        Source::I16 => (0xdf, 0),
        Source::I32 => (0xdb, 0),
        Source::I64 => (0xdf, 5),
        Source::F80 | Source::Register => (0xdb, 5),
        Source::Bcd => (0xdf, 4),
    };
    if matches!(source, Source::F80 | Source::Bcd) {
        match (a.constants[1], a.constants[2]) {
            // Of two that are not constant, the second is in RCX.
            (None, None) => with_memory(a, out, &[0x48, 0x89], 1, NUMBER + 8),
            (Some(_), None) => with_memory(a, out, &[0x48, 0x89], 0, NUMBER + 8),
            (_, Some(c)) => {
                out.push(0xb9); // mov ecx, constant
                out.extend_from_slice(&(c as u32).to_le_bytes());
                with_memory(a, out, &[0x48, 0x89], 1, NUMBER + 8);
            }
        }
    }
    argument(a, out, 1);
    store_rax(a, out);
    with_memory(a, out, &[escape], digit, NUMBER);
}

fn load_register(a: &ShortcutArgs, out: &mut Vec<u8>) {
    plain(out, 0xd9, 0xc0 | code(a) as u8 & 7);
}

fn load_constant(a: &ShortcutArgs, out: &mut Vec<u8>) {
    plain(out, 0xd9, 0xe8 | code(a) as u8 & 7);
}

fn store_register(a: &ShortcutArgs, out: &mut Vec<u8>) {
    let i = code(a) as u8 & 7;
    match a.constants[1].expect("translations pass a constant") {
        0 => plain(out, 0xdd, 0xd0 | i),
        1 => plain(out, 0xdd, 0xd8 | i),
        _ => plain(out, 0xd9, 0xd8 | i),
    }
}

fn misc(a: &ShortcutArgs, out: &mut Vec<u8>) {
    /// ModRM bytes in the order of [`x87::Misc`].
    const MODRM: [u8; 20] = [
        0xe0, 0xe1, 0xe4, 0xe5, 0xf7, 0xf6, 0xfa, 0xfc, 0xf0, 0xfe, 0xff, 0xfd, 0xf8, 0xf5, 0xf3, 0xf1, 0xf9,
        0xf2, 0xfb, 0xf4,
    ];
    plain(out, 0xd9, MODRM[code(a) as usize % MODRM.len()]);
}

fn exchange(a: &ShortcutArgs, out: &mut Vec<u8>) {
    plain(out, 0xd9, 0xc8 | code(a) as u8 & 7);
}

fn free(a: &ShortcutArgs, out: &mut Vec<u8>) {
    plain(out, if a.constants[1] == Some(0) { 0xdd } else { 0xdf }, 0xc0 | code(a) as u8 & 7);
}

fn move_if(a: &ShortcutArgs, out: &mut Vec<u8>) {
    argument(a, out, 1);
    out.extend_from_slice(&[0x48, 0x85, 0xc0]); // test rax, rax
    plain(out, 0xdb, 0xc8 | code(a) as u8 & 7); // fcmovne
}

fn take(a: &ShortcutArgs, out: &mut Vec<u8>) {
    let (format, pop) = x87::store_parts(code(a));
    let p = pop as u8;
    let (escape, digit, load): (u8, u8, &[u8]) = match format {
        Some(Format::F32) => (0xd9, 2 + p, &[0x8b]),
        Some(Format::F64) => (0xdd, 2 + p, &[0x48, 0x8b]),
        Some(Format::I16) => (0xdf, 2 + p, &[0x0f, 0xb7]),
        Some(Format::I32) => (0xdb, 2 + p, &[0x8b]),
        Some(Format::I64) => (0xdf, 7, &[0x48, 0x8b]),
        Some(Format::TruncatedI16) => (0xdf, 1, &[0x0f, 0xb7]),
        Some(Format::TruncatedI32) => (0xdb, 1, &[0x8b]),
        Some(Format::TruncatedI64) => (0xdd, 1, &[0x48, 0x8b]),
        Some(Format::Bcd) => (0xdf, 6, &[0x48, 0x8b]),
        None => (0xdb, 7, &[0x48, 0x8b]),
    };
    with_memory(a, out, &[escape], digit, NUMBER);
    with_memory(a, out, load, 0, NUMBER);
}

fn status_word(_: &ShortcutArgs, out: &mut Vec<u8>) {
    // fnstsw ax; movzx eax, ax
    out.extend_from_slice(&[0xdf, 0xe0, 0x0f, 0xb7, 0xc0]);
}
