//! Helpers of the x87 instructions.
//!
//! A helper does one instruction: it reports a pending exception, finds its operands on the register stack, computes on
//! the host's unit (`x87_host`), and commits result, tags, flags and condition codes. Those that store to memory do so
//! before they commit, so that a page fault leaves the state as it was.
//!
//! Errors without CR0.NE: FERR# is asserted as soon as an unmasked exception is flagged. The next waiting instruction goes
//! on if IGNNE# is asserted; else it raises #MF all the same, and the CPU waits in front of it for the interrupt that FERR#
//! leads to (`system::deliver_exception`; SDM volume 1, section 8.7.2 and appendix D).
//!
//! Condition codes that the manual leaves undefined keep their value. The opcode and, with FDP_EXCPTN_ONLY, the data pointer
//! are recorded when an unmasked exception is flagged, from where the translation has put them (`X86Env::x87_operand`);
//! all else that FSTENV shows of an instruction is recorded by the translation after the helper.

use tessera_tcg::guest::{Access, Effects};
use tessera_tcg::ir::flags;
use tessera_tcg::softmmu;

use super::int::misaligned;
use super::x87_codes::MISC_ALL;
pub use super::x87_codes::{Misc, Source, arith_code, compare_code, layout_code, store_checks, store_code};
pub(super) use super::x87_codes::{arith_parts, compare_parts, source_of, store_checks_parts, store_parts};
use super::x87_host::{self as host, Binary, Format, Popping, Pushing, Unary};
use super::x87_image::{self as image, Layout};
use super::x87_number::{memory_operand, number};
use super::x87_state::{Class, F80, INDEFINITE, ZERO, classify, parts, status};
use super::{exception, fault};
use crate::cpuid::Feature;
use crate::guest::X86;
use crate::state::{Cr0, Fpu, X86Env, X87Operand};
use crate::system::exception::vector;
use crate::system::segment::check_segment;

helpers! { super::X87_BASE;
    /// `()`: reports a pending exception.
    WAIT = x87_wait(0), Effects::FAULTS;
    /// `(code)`: arithmetic on registers; see [`arith_code`].
    ARITH = x87_arith(1), Effects::FAULTS;
    /// `(code, memory)`: arithmetic on ST(0) and memory.
    ARITH_MEMORY = x87_arith_memory(2), Effects::FAULTS;
    /// `(code, memory)`: comparison with a register or memory, see [`compare_code`]; packed flags.
    COMPARE = x87_compare(2), Effects::FAULTS;
    /// `(source, low, high)`: pushes a number from memory; see [`Source`].
    LOAD = x87_load(3), Effects::FAULTS;
    /// `(i)`: pushes ST(i).
    LOAD_REGISTER = x87_load_register(1), Effects::FAULTS;
    /// `(n)`: pushes a constant.
    LOAD_CONSTANT = x87_load_constant(1), Effects::FAULTS;
    /// `(destination, address, mmu, offset)`: stores ST(0) to memory; see [`store_code`] and, for accesses that are to be checked,
    /// [`store_checks`], with the offset in the segment.
    STORE = x87_store(4), Effects::FAULTS;
    /// `(i, pop)`: copies ST(0) to ST(i). `pop`: 0 does not pop, 1 pops, 2 is FSTPNCE, which pops an empty register without
    /// a fault and copies nothing then.
    STORE_REGISTER = x87_store_register(2), Effects::FAULTS;
    /// `(operation)`: an operation on the top of the stack; see [`Misc`].
    MISC = x87_misc(1), Effects::FAULTS;
    /// `(i)`: exchanges ST(0) and ST(i).
    EXCHANGE = x87_exchange(1), Effects::FAULTS;
    /// `(i, pop)`: makes ST(i) empty.
    FREE = x87_free(2), Effects::FAULTS;
    /// `(i, condition)`: copies ST(i) to ST(0) if the condition is not zero.
    MOVE_IF = x87_move_if(2), Effects::FAULTS;
    /// `()`: FNINIT.
    INIT = x87_init(0), Effects::STATE;
    /// `()`: FNCLEX.
    CLEAR = x87_clear(0), Effects::STATE;
    /// `(word)`: FLDCW.
    LOAD_CONTROL = x87_load_control(1), Effects::FAULTS;
    /// `(layout, address, mmu)`: FNSTENV or FNSAVE; see [`layout_code`].
    STORE_STATE = x87_store_state(3), Effects::FAULTS;
    /// `(layout, address, mmu)`: FLDENV or FRSTOR.
    LOAD_STATE = x87_load_state(3), Effects::FAULTS;
}

// ----- exceptions -----

/// Raises #MF if an exception is pending and not to be ignored. True if it did: the helper returns at once.
fn pending(env: &mut X86Env) -> bool {
    if env.fpu.status & status::ES == 0 || !env.cr0.contains(Cr0::NE) && env.platform.ignne() {
        return false;
    }
    fault(env, exception(vector::MF, None));
    true
}

/// To be called after an instruction that may have changed ES: drives FERR#.
pub(crate) fn report(env: &mut X86Env, before: u16) {
    let asserted = |s: u16| s & status::ES != 0;
    let after = env.fpu.status;
    // With CR0.NE it is not asserted, but may have been before that was set.
    let drives = !env.cr0.contains(Cr0::NE) || !asserted(after);
    if asserted(before) != asserted(after) && drives {
        env.platform.ferr(asserted(after));
    }
}

/// To be called after an instruction that may have flagged exceptions: if one is unmasked, records opcode and operand of
/// the instruction, and drives FERR#.
fn concluded(env: &mut X86Env, before: u16) {
    if env.fpu.status & status::ES != 0 {
        let X87Operand { dp, ds, opcode } = env.x87_operand;
        env.fpu.opcode = opcode & 0x7ff;
        // By its ModRM byte the instruction has a memory operand; without one, the pointer stays.
        if opcode & 0xc0 != 0xc0 {
            env.fpu.dp = dp;
            env.fpu.ds = if env.cpuid.has(Feature::ZERO_FCS_FDS) { 0 } else { ds };
        }
    }
    report(env, before);
}

/// Does an instruction on the unit: after a pending exception is reported, `f` runs and what it flags is concluded.
fn instruction<T: Default>(env: &mut X86Env, f: impl FnOnce(&mut Fpu) -> T) -> T {
    if pending(env) {
        return T::default();
    }
    let before = env.fpu.status;
    let r = f(&mut env.fpu);
    if env.fpu.status != before {
        concluded(env, before);
    }
    r
}

/// Commits flags and C1 of a host operation. Whether the result counts: false if an unmasked exception keeps the
/// operation from having an effect (invalid, denormal operand, division by zero).
fn commit(fpu: &mut Fpu, sw: u16) -> bool {
    fpu.set_condition(status::C1, sw);
    fpu.flag(sw & status::EXCEPTIONS);
    !fpu.unmasked(sw & (status::IE | status::DE | status::ZE))
}

extern "C" fn x87_wait(env: &mut X86Env) -> u64 {
    pending(env);
    0
}

// ----- loads -----

/// Pushes `v` whose reading has raised `exceptions`.
fn push(fpu: &mut Fpu, v: F80, exceptions: u16) {
    if !fpu.is_empty(7) {
        if fpu.stack_fault(true) {
            fpu.push(INDEFINITE);
        }
        return;
    }
    fpu.set_condition(status::C1, 0);
    fpu.flag(exceptions);
    // Of a denormal the silicon pushes the normalised value even if the exception is unmasked.
    if !fpu.unmasked(exceptions & status::IE) {
        fpu.push(v);
    }
}

pub(super) extern "C" fn x87_load(env: &mut X86Env, source: u64, low: u64, high: u64) -> u64 {
    instruction(env, |fpu| {
        let (v, e) = number(source_of(source), low, high);
        push(fpu, v, e);
    });
    0
}

pub(super) extern "C" fn x87_load_register(env: &mut X86Env, i: u64) -> u64 {
    instruction(env, |fpu| {
        let i = i as usize & 7;
        if fpu.is_empty(i) {
            if fpu.stack_fault(false) {
                fpu.push(INDEFINITE);
            }
            return;
        }
        push(fpu, *fpu.st(i), 0);
    });
    0
}

pub(super) extern "C" fn x87_load_constant(env: &mut X86Env, n: u64) -> u64 {
    instruction(env, |fpu| {
        let v = host::constant(n as u8, fpu.control);
        push(fpu, v, 0);
    });
    0
}

// ----- arithmetic -----

/// Whether any of these registers is empty.
fn any_empty(fpu: &Fpu, registers: &[usize]) -> bool {
    registers.iter().any(|&i| fpu.is_empty(i))
}

pub(super) extern "C" fn x87_arith(env: &mut X86Env, code: u64) -> u64 {
    instruction(env, |fpu| {
        let (op, _, i, to_i, pop) = arith_parts(code);
        let i = usize::from(i);
        let (to, other) = if to_i { (i, 0) } else { (0, i) };
        if any_empty(fpu, &[0, i]) {
            if fpu.stack_fault(false) {
                fpu.set_st(to, INDEFINITE);
                if pop {
                    fpu.pop();
                }
            }
            return;
        }
        let (r, sw) = host::binary(op, fpu.control, fpu.st(to), fpu.st(other));
        if commit(fpu, sw) {
            fpu.set_st(to, r);
            if pop {
                fpu.pop();
            }
        }
    });
    0
}

pub(super) extern "C" fn x87_arith_memory(env: &mut X86Env, code: u64, value: u64) -> u64 {
    instruction(env, |fpu| {
        let (op, source, ..) = arith_parts(code);
        if fpu.is_empty(0) {
            if fpu.stack_fault(false) {
                fpu.set_st(0, INDEFINITE);
            }
            return;
        }
        let (b, denormal) = memory_operand(source, value);
        let (r, sw) = host::binary(op, fpu.control, fpu.st(0), &b);
        if commit(fpu, with_denormal(fpu, sw, denormal)) {
            fpu.set_st(0, r);
        }
    });
    0
}

/// The status word of a host operation whose memory operand was widened, with that operand's denormal exception, unless
/// one of higher priority (a NaN operand, an invalid operation, a division by zero) keeps it from being raised. Unmasked, it
/// keeps the operation from being done, and so from whatever else it would flag.
fn with_denormal(fpu: &Fpu, sw: u16, denormal: u16) -> u16 {
    let nan = classify(fpu.st(0)) == Class::Nan;
    if denormal == 0 || nan || sw & (status::IE | status::ZE) != 0 {
        sw
    } else if fpu.unmasked(denormal) {
        sw & !(status::EXCEPTIONS | status::C1) | denormal
    } else {
        sw | denormal
    }
}

pub(super) extern "C" fn x87_compare(env: &mut X86Env, code: u64, value: u64) -> u64 {
    instruction(env, |fpu| {
        let (source, i, pops, quiet, condition) = compare_parts(code);
        let i = usize::from(i);
        let register = source == Source::Register;
        let (codes, done) = if fpu.is_empty(0) || register && fpu.is_empty(i) {
            let masked = fpu.stack_fault(false);
            (status::C0 | status::C2 | status::C3, masked)
        } else {
            let (b, denormal) = if register { (*fpu.st(i), 0) } else { memory_operand(source, value) };
            let sw = host::compare(quiet, fpu.control, fpu.st(0), &b);
            let sw = with_denormal(fpu, sw, denormal);
            fpu.flag(sw & status::EXCEPTIONS);
            (sw, !fpu.unmasked(sw & (status::IE | status::DE)))
        };
        if condition {
            // Those that compare to EFLAGS keep C1.
            fpu.set_condition(status::CONDITION, codes & !status::C1);
        }
        if done {
            for _ in 0..pops {
                fpu.pop();
            }
        }
        let flag = |code: u16, f: u32| if codes & code != 0 { f as u64 } else { 0 };
        flag(status::C0, flags::C) | flag(status::C2, flags::P) | flag(status::C3, flags::Z)
    })
}

// ----- stores -----

/// What a store in the format of `code` ([`store_code`]) stores, unless an unmasked exception prevents it, and how many bytes
/// that is. Flags exceptions; does not pop.
pub(super) fn converted(fpu: &mut Fpu, code: u64) -> (Option<F80>, usize) {
    let (format, _) = store_parts(code);
    match format {
        _ if fpu.is_empty(0) => {
            let masked = fpu.stack_fault(false);
            let bytes = match format {
                Some(f) => host::convert(f, 0x37f, &INDEFINITE).0,
                None => INDEFINITE,
            };
            (masked.then_some(bytes), format.map_or(10, Format::bytes))
        }
        Some(format) => {
            let (bytes, sw) = host::convert(format, fpu.control, fpu.st(0));
            fpu.set_condition(status::C1, sw);
            fpu.flag(sw & status::EXCEPTIONS);
            // An inexact result is stored whether or not that is masked; any other unmasked exception prevents it.
            let stored = !fpu.unmasked(sw & status::EXCEPTIONS & !status::PE);
            (stored.then_some(bytes), format.bytes())
        }
        None => {
            fpu.set_condition(status::C1, 0);
            (Some(*fpu.st(0)), 10)
        }
    }
}

/// `offset` is that of `address` in the segment to be checked, if any. A store that an unmasked exception prevents is not checked.
extern "C" fn x87_store(env: &mut X86Env, code: u64, address: u64, mmu: u64, offset: u64) -> u64 {
    if pending(env) {
        return 0;
    }
    let pop = code >> 4 & 1 != 0;
    let mut fpu = env.fpu;
    let (bytes, len) = converted(&mut fpu, code);
    if let Some(bytes) = bytes {
        let (segment, aligned) = store_checks_parts(code);
        if let Some(n) = segment
            && let Err(e) = check_segment(env, n, offset, len as u64, true)
        {
            return fault(env, e);
        }
        // Ten bytes are to be aligned to eight (SDM volume 3, table 6-7).
        if aligned && misaligned(address, len.min(8) as u64) {
            return fault(env, exception(vector::AC, Some(0)));
        }
        if let Err(e) = softmmu::store_bytes::<X86>(env, address, &bytes[..len], mmu as u8) {
            return fault(env, e);
        }
        if pop {
            fpu.pop();
        }
    }
    let before = env.fpu.status;
    env.fpu = fpu;
    if env.fpu.status != before {
        concluded(env, before);
    }
    0
}

pub(super) extern "C" fn x87_store_register(env: &mut X86Env, i: u64, pop: u64) -> u64 {
    instruction(env, |fpu| {
        let v = if fpu.is_empty(0) {
            if pop == 2 {
                fpu.set_condition(status::C1, 0);
                return fpu.pop();
            }
            if !fpu.stack_fault(false) {
                return;
            }
            INDEFINITE
        } else {
            fpu.set_condition(status::C1, 0);
            *fpu.st(0)
        };
        fpu.set_st(i as usize & 7, v);
        if pop != 0 {
            fpu.pop();
        }
    });
    0
}

// ----- the rest on the stack -----

pub(super) extern "C" fn x87_exchange(env: &mut X86Env, i: u64) -> u64 {
    instruction(env, |fpu| {
        let i = i as usize & 7;
        if any_empty(fpu, &[0, i]) {
            if !fpu.stack_fault(false) {
                return;
            }
            for n in [0, i] {
                if fpu.is_empty(n) {
                    fpu.set_st(n, INDEFINITE);
                }
            }
        } else {
            fpu.set_condition(status::C1, 0);
        }
        let (a, b) = (*fpu.st(0), *fpu.st(i));
        fpu.set_st(0, b);
        fpu.set_st(i, a);
    });
    0
}

pub(super) extern "C" fn x87_free(env: &mut X86Env, i: u64, pop: u64) -> u64 {
    instruction(env, |fpu| {
        fpu.set_condition(status::C1, 0);
        fpu.free(i as usize & 7);
        if pop != 0 {
            fpu.pop();
        }
    });
    0
}

pub(super) extern "C" fn x87_move_if(env: &mut X86Env, i: u64, condition: u64) -> u64 {
    instruction(env, |fpu| {
        let i = i as usize & 7;
        if any_empty(fpu, &[0, i]) {
            if fpu.stack_fault(false) {
                fpu.set_st(0, INDEFINITE);
            }
            return;
        }
        // C1 is kept, unlike by other moves.
        if condition != 0 {
            let v = *fpu.st(i);
            fpu.set_st(0, v);
        }
    });
    0
}

pub(super) extern "C" fn x87_misc(env: &mut X86Env, op: u64) -> u64 {
    let Some(&op) = MISC_ALL.get(op as usize) else { return 0 };
    instruction(env, |fpu| misc(fpu, op));
    0
}

fn misc(fpu: &mut Fpu, op: Misc) {
    match op {
        Misc::IncrementTop => {
            fpu.set_condition(status::C1, 0);
            fpu.set_top(fpu.top() + 1);
        }
        Misc::DecrementTop => {
            fpu.set_condition(status::C1, 0);
            fpu.set_top(fpu.top() + 7);
        }
        Misc::Examine => examine(fpu),
        Misc::ChangeSign | Misc::Absolute => {
            let v = if fpu.is_empty(0) {
                if !fpu.stack_fault(false) {
                    return;
                }
                INDEFINITE
            } else {
                fpu.set_condition(status::C1, 0);
                let mut v = *fpu.st(0);
                v[9] = if op == Misc::Absolute { v[9] & 0x7f } else { v[9] ^ 0x80 };
                v
            };
            fpu.set_st(0, v);
        }
        Misc::Test => test(fpu),
        Misc::Sqrt => unary(fpu, Unary::Sqrt, 0),
        Misc::Round => unary(fpu, Unary::Round, 0),
        Misc::PowerMinus1 => unary(fpu, Unary::PowerMinus1, 0),
        Misc::Sine => unary(fpu, Unary::Sine, status::C2),
        Misc::Cosine => unary(fpu, Unary::Cosine, status::C2),
        Misc::Scale => binary(fpu, Binary::Scale, 0),
        Misc::Remainder => binary(fpu, Binary::Remainder, status::CONDITION),
        Misc::RemainderNearest => binary(fpu, Binary::RemainderNearest, status::CONDITION),
        Misc::ArcTangent => popping(fpu, Popping::ArcTangent),
        Misc::YLog2X => popping(fpu, Popping::YLog2X),
        Misc::YLog2XPlus1 => popping(fpu, Popping::YLog2XPlus1),
        Misc::Tangent => pushing(fpu, Pushing::Tangent),
        Misc::SineCosine => pushing(fpu, Pushing::SineCosine),
        Misc::Extract => pushing(fpu, Pushing::Extract),
    }
}

/// FXAM (SDM volume 2, FXAM, table 3-41).
fn examine(fpu: &mut Fpu) {
    let sign = if parts(fpu.st(0)).0 >> 15 != 0 { status::C1 } else { 0 };
    let class = if fpu.is_empty(0) {
        status::C3 | status::C0
    } else {
        match classify(fpu.st(0)) {
            Class::Unsupported => 0,
            Class::Nan => status::C0,
            Class::Normal => status::C2,
            Class::Infinity => status::C2 | status::C0,
            Class::Zero => status::C3,
            Class::Denormal => status::C3 | status::C2,
        }
    };
    fpu.set_condition(status::CONDITION, class | sign);
}

/// FTST: compares with zero.
fn test(fpu: &mut Fpu) {
    let all = status::C0 | status::C2 | status::C3;
    if fpu.is_empty(0) {
        fpu.stack_fault(false);
        fpu.set_condition(all, all);
        return;
    }
    let sw = host::compare(false, fpu.control, fpu.st(0), &ZERO);
    commit(fpu, sw);
    fpu.set_condition(status::CONDITION, sw & all);
}

fn unary(fpu: &mut Fpu, op: Unary, condition: u16) {
    if fpu.is_empty(0) {
        fpu.set_condition(condition, 0);
        if fpu.stack_fault(false) {
            fpu.set_st(0, INDEFINITE);
        }
        return;
    }
    let (r, sw) = host::unary(op, fpu.control, fpu.st(0));
    fpu.set_condition(condition, sw);
    if commit(fpu, sw) {
        fpu.set_st(0, r);
    }
}

fn binary(fpu: &mut Fpu, op: Binary, condition: u16) {
    if any_empty(fpu, &[0, 1]) {
        fpu.set_condition(condition & status::C2, 0);
        if fpu.stack_fault(false) {
            fpu.set_st(0, INDEFINITE);
        }
        return;
    }
    let (r, sw) = host::binary(op, fpu.control, fpu.st(0), fpu.st(1));
    let nan = [0, 1].iter().any(|&i| classify(fpu.st(i)) == Class::Nan);
    let done = commit(fpu, sw);
    // There is no quotient of NaNs, of invalid operations and of those that are not done: its bits C0 and C3 stay.
    let none = nan || sw & status::IE != 0 || !done;
    let quotient = if none { status::C1 | status::C2 } else { status::CONDITION };
    fpu.set_condition(condition & quotient, sw);
    if done {
        fpu.set_st(0, r);
    }
}

fn popping(fpu: &mut Fpu, op: Popping) {
    if any_empty(fpu, &[0, 1]) {
        if fpu.stack_fault(false) {
            fpu.set_st(1, INDEFINITE);
            fpu.pop();
        }
        return;
    }
    let (r, sw) = host::popping(op, fpu.control, fpu.st(0), fpu.st(1));
    commit(fpu, sw);
    if let Some(r) = r {
        fpu.set_st(1, r);
        fpu.pop();
    }
}

fn pushing(fpu: &mut Fpu, op: Pushing) {
    let underflow = fpu.is_empty(0);
    if underflow || !fpu.is_empty(7) {
        if op != Pushing::Extract {
            fpu.set_condition(status::C2, 0);
        }
        if fpu.stack_fault(!underflow) {
            fpu.set_st(0, INDEFINITE);
            fpu.push(INDEFINITE);
        }
        return;
    }
    let (r0, r1, sw) = host::pushing(op, fpu.control, fpu.st(0));
    if op != Pushing::Extract {
        fpu.set_condition(status::C2, sw);
    }
    commit(fpu, sw);
    match r1 {
        Some(r1) => {
            fpu.set_st(0, r1);
            fpu.push(r0);
        }
        None => fpu.set_st(0, r0),
    }
}

// ----- control -----

extern "C" fn x87_init(env: &mut X86Env) -> u64 {
    let before = env.fpu.status;
    env.fpu.initialise();
    report(env, before);
    env.update_fpu_mode();
    0
}

extern "C" fn x87_clear(env: &mut X86Env) -> u64 {
    let before = env.fpu.status;
    env.fpu.status &= !(status::EXCEPTIONS | status::SF | status::ES | status::BUSY);
    report(env, before);
    env.update_fpu_mode();
    0
}

pub(super) extern "C" fn x87_load_control(env: &mut X86Env, word: u64) -> u64 {
    if !pending(env) {
        let before = env.fpu.status;
        env.fpu.set_control(word as u16);
        env.fpu.summarise();
        report(env, before);
        env.update_fpu_mode();
    }
    0
}

fn layout(code: u64) -> Layout {
    Layout { wide: code & 1 != 0, protected: code & 2 != 0 }
}

extern "C" fn x87_store_state(env: &mut X86Env, code: u64, address: u64, mmu: u64) -> u64 {
    let layout = layout(code);
    let registers = code & 4 != 0;
    let mut bytes = [0; 108];
    image::store_environment(&env.fpu, layout, &mut bytes);
    if registers {
        image::store_registers(&env.fpu, &mut bytes[layout.bytes()..]);
    }
    let len = if registers { layout.saved_bytes() } else { layout.bytes() };
    // Silicon looks at the first byte, then at the last one.
    let last = address.wrapping_add(len as u64 - 1);
    let first = if layout.wide { 4 } else { 2 };
    let stored = softmmu::probe::<X86>(env, address, first, Access::Write, mmu as u8)
        .and_then(|()| softmmu::probe::<X86>(env, last, 1, Access::Write, mmu as u8))
        .and_then(|()| softmmu::store_bytes::<X86>(env, address, &bytes[..len], mmu as u8));
    if let Err(e) = stored {
        return fault(env, e);
    }
    let before = env.fpu.status;
    if registers {
        env.fpu.initialise();
    } else {
        env.fpu.control |= status::EXCEPTIONS;
        env.fpu.summarise();
    }
    report(env, before);
    env.update_fpu_mode();
    0
}

extern "C" fn x87_load_state(env: &mut X86Env, code: u64, address: u64, mmu: u64) -> u64 {
    if pending(env) {
        return 0;
    }
    let layout = layout(code);
    let registers = code & 4 != 0;
    let mut bytes = [0; 108];
    let len = if registers { layout.saved_bytes() } else { layout.bytes() };
    // Silicon looks at the first byte, then at the last one.
    let last = address.wrapping_add(len as u64 - 1);
    let first = if layout.wide { 4 } else { 2 };
    let loaded = softmmu::probe::<X86>(env, address, first, Access::Read, mmu as u8)
        .and_then(|()| softmmu::probe::<X86>(env, last, 1, Access::Read, mmu as u8))
        .and_then(|()| softmmu::load_bytes::<X86>(env, address, &mut bytes[..len], mmu as u8));
    if let Err(e) = loaded {
        return fault(env, e);
    }
    let before = env.fpu.status;
    image::load_environment(&mut env.fpu, layout, &bytes);
    if env.cpuid.has(Feature::ZERO_FCS_FDS) {
        (env.fpu.cs, env.fpu.ds) = (0, 0);
    }
    if registers {
        image::load_registers(&mut env.fpu, &bytes[layout.bytes()..]);
    }
    report(env, before);
    env.update_fpu_mode();
    0
}

#[cfg(test)]
#[path = "x87_tests.rs"]
mod tests;
