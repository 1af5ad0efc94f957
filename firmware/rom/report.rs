//! Printing on COM1, and the bookkeeping of checks. The same source is assembled once for each bitness.
//!
//! A check is [`begin`], expectations, [`end`]. Only the first failed expectation of a check is printed; later ones are
//! usually its consequences.

use iced_x86::code_asm::*;

use super::layout::*;
use tessera_asm::{Code, R, Symbols};

/// Symbol of the routine `name` for this bitness.
pub fn routine(bits: u32, name: &str) -> String {
    format!("{bits}.{name}")
}

/// Calls a routine of this bitness.
pub fn call(c: &mut Code, s: &Symbols, name: &str) -> R {
    let bits = c.bits();
    c.call(s.to(bits, &routine(bits, name)))
}

/// Jumps to a routine of this bitness.
pub fn jump(c: &mut Code, s: &Symbols, name: &str) -> R {
    let bits = c.bits();
    c.jmp(s.to(bits, &routine(bits, name)))
}

/// Prints a constant string. Clobbers ESI.
pub fn say(c: &mut Code, s: &Symbols, text: &str) -> R {
    c.mov(esi, s.text(text))?;
    call(c, s, "puts")
}

/// Starts a check.
pub fn begin(c: &mut Code, s: &Symbols, name: &str) -> R {
    c.mov(dword_ptr(CHECK_NAME), s.text(name))?;
    c.mov(dword_ptr(CHECK_FAILS), 0)
}

/// Ends a check and prints its line.
pub fn end(c: &mut Code, s: &Symbols) -> R {
    call(c, s, "finish")
}

/// Expects a value in a 32-bit register, in code of any bitness.
pub fn expect32(c: &mut Code, s: &Symbols, what: &str, got: AsmRegister32, expected: u32) -> R {
    let ok = c.fresh();
    let bits = c.bits();
    c.cmp(got, expected)?;
    c.je(s.to(bits, &ok))?;
    c.mov(dword_ptr(GOT), got)?;
    call(c, s, "differs32")?;
    arguments(c, &[s.text(what), expected])?;
    c.label(&ok)
}

/// Expects a value in a 64-bit register. Clobbers R11.
pub fn expect64(c: &mut Code, s: &Symbols, what: &str, got: AsmRegister64, expected: u64) -> R {
    let ok = c.fresh();
    c.mov(r11, expected)?;
    c.cmp(got, r11)?;
    c.je(s.at(&ok))?;
    c.mov(qword_ptr(GOT), got)?;
    call(c, s, "differs64")?;
    arguments(c, &[s.text(what), expected as u32, (expected >> 32) as u32])?;
    c.label(&ok)
}

/// Prepares for an exception: execution goes on at label `after`, with the present stack. Keeps registers and flags.
pub fn arm(c: &mut Code, s: &Symbols, after: &str) -> R {
    call(c, s, "arm")?;
    let bits = c.bits();
    arguments(c, &[s.to(bits, after) as u32])
}

/// Expects vector, error code and saved instruction pointer of the exception [`arm`] prepared for. Keeps registers and
/// flags.
pub fn expect_exception(c: &mut Code, s: &Symbols, what: &str, (vector, error): (u32, u32), ip: u32) -> R {
    call(c, s, "exception_at")?;
    arguments(c, &[s.text(what), vector, error, ip])
}

/// Expects vector, error code and saved code segment of the exception [`arm`] prepared for. Keeps registers and flags.
pub fn expect_exception_from(
    c: &mut Code,
    s: &Symbols,
    what: &str,
    (vector, error): (u32, u32),
    segment: u16,
) -> R {
    call(c, s, "exception_from")?;
    arguments(c, &[s.text(what), vector, error, segment.into()])
}

/// Arguments of a routine, which lie behind the call: that keeps the many expectations short.
fn arguments(c: &mut Code, values: &[u32]) -> R {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    c.db(&bytes)
}

/// Expects the condition that `jump_if` jumps on; reported as 0 instead of 1.
pub fn expect_if(c: &mut Code, s: &Symbols, what: &str, jump_if: fn(&mut CodeAssembler, u64) -> R) -> R {
    let ok = c.fresh();
    let bits = c.bits();
    jump_if(c, s.to(bits, &ok))?;
    fail(c, s, what)?;
    c.label(&ok)
}

/// Counts a failed expectation that has no values to show.
pub fn fail(c: &mut Code, s: &Symbols, what: &str) -> R {
    c.mov(dword_ptr(GOT), 0)?;
    call(c, s, "differs32")?;
    arguments(c, &[s.text(what), 1])
}

/// Counts a failed expectation about two 64-bit registers. Clobbers both.
pub fn fail_different(
    c: &mut Code,
    s: &Symbols,
    what: &str,
    got: AsmRegister64,
    expected: AsmRegister64,
) -> R {
    c.mov(qword_ptr(GOT), got)?;
    c.mov(qword_ptr(EXPECTED), expected)?;
    c.mov(dword_ptr(WHAT), s.text(what))?;
    c.mov(dword_ptr(FIELD), s.text(""))?;
    call(c, s, "record")
}

/// Expects a value in a 32-bit variable. Clobbers EAX.
pub fn expect_var(c: &mut Code, s: &Symbols, what: &str, variable: u32, expected: u32) -> R {
    c.mov(eax, dword_ptr(variable))?;
    expect32(c, s, what, eax, expected)
}

fn save(c: &mut Code) -> R {
    if c.bits() == 64 {
        for register in [rax, rbx, rcx, rdx, rsi, rdi] {
            c.push(register)?;
        }
    } else {
        for register in [eax, ebx, ecx, edx, esi, edi] {
            c.push(register)?;
        }
    }
    Ok(())
}

fn restore(c: &mut Code) -> R {
    if c.bits() == 64 {
        for register in [rdi, rsi, rdx, rcx, rbx, rax] {
            c.pop(register)?;
        }
    } else {
        for register in [edi, esi, edx, ecx, ebx, eax] {
            c.pop(register)?;
        }
    }
    Ok(())
}

/// Emits the routines for this bitness.
pub fn routines(c: &mut Code, s: &Symbols) -> R {
    print_character(c, s)?;
    print_string(c, s)?;
    print_hex(c, s)?;
    print_decimal(c, s)?;
    record(c, s)?;
    differs(c, s)?;
    exceptions(c, s)?;
    finish(c, s)?;
    unexpected(c, s)?;
    summary(c, s)
}

/// `putc`: AL to COM1. Keeps all registers.
fn print_character(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "putc"))?;
    save(c)?;
    c.mov(ah, al)?;
    c.mov(dx, COM1 + 5)?;
    let wait = c.fresh();
    c.label(&wait)?;
    c.in_(al, dx)?;
    c.test(al, 0x20)?; // transmitter holding register empty
    c.je(s.to(bits, &wait))?;
    c.mov(dx, COM1)?;
    c.mov(al, ah)?;
    c.out(dx, al)?;
    restore(c)?;
    c.ret()
}

/// `puts`: the zero-terminated string at linear address ESI, which lies in the ROM. Keeps all registers.
fn print_string(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "puts"))?;
    save(c)?;
    match bits {
        16 => c.and(esi, 0xFFFF)?,
        _ => c.mov(esi, esi)?,
    }
    let (next, done) = (c.fresh(), c.fresh());
    c.label(&next)?;
    match bits {
        64 => c.mov(al, byte_ptr(rsi))?,
        _ => c.mov(al, byte_ptr(esi).cs())?,
    }
    c.test(al, al)?;
    c.je(s.to(bits, &done))?;
    call(c, s, "putc")?;
    c.inc(esi)?;
    c.jmp(s.to(bits, &next))?;
    c.label(&done)?;
    restore(c)?;
    c.ret()
}

/// `hex`: the 64-bit variable at EDI, without leading zeros. Keeps all registers.
fn print_hex(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "hex"))?;
    save(c)?;
    let [next, high, have, digit, decimal, skip] = std::array::from_fn(|_| c.fresh());
    c.xor(ecx, ecx)?; // digits printed
    c.mov(ebx, 15)?; // index of the digit
    c.label(&next)?;
    c.mov(eax, ebx)?;
    c.shr(eax, 1)?;
    match bits {
        64 => c.mov(al, byte_ptr(rdi + rax))?,
        _ => c.mov(al, byte_ptr(edi + eax))?,
    }
    c.test(bl, 1)?;
    c.jne(s.to(bits, &high))?;
    c.and(al, 15)?;
    c.jmp(s.to(bits, &have))?;
    c.label(&high)?;
    c.shr(al, 4)?;
    c.label(&have)?;
    c.test(al, al)?;
    c.jne(s.to(bits, &digit))?;
    c.test(ecx, ecx)?;
    c.jne(s.to(bits, &digit))?;
    c.test(ebx, ebx)?;
    c.jne(s.to(bits, &skip))?;
    c.label(&digit)?;
    c.inc(ecx)?;
    c.cmp(al, 10)?;
    c.jb(s.to(bits, &decimal))?;
    c.add(al, i32::from(b'a') - 10 - i32::from(b'0'))?;
    c.label(&decimal)?;
    c.add(al, i32::from(b'0'))?;
    call(c, s, "putc")?;
    c.label(&skip)?;
    c.dec(ebx)?;
    c.jns(s.to(bits, &next))?;
    restore(c)?;
    c.ret()
}

/// `dec`: EAX as unsigned decimal number. Keeps all registers.
fn print_decimal(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "dec"))?;
    save(c)?;
    let (divide, print) = (c.fresh(), c.fresh());
    c.mov(ebx, 10)?;
    c.xor(ecx, ecx)?;
    c.label(&divide)?;
    c.xor(edx, edx)?;
    c.div(ebx)?;
    if bits == 64 {
        c.push(rdx)?
    } else {
        c.push(edx)?
    }
    c.inc(ecx)?;
    c.test(eax, eax)?;
    c.jne(s.to(bits, &divide))?;
    c.label(&print)?;
    if bits == 64 {
        c.pop(rax)?
    } else {
        c.pop(eax)?
    }
    c.add(al, i32::from(b'0'))?;
    call(c, s, "putc")?;
    c.dec(ecx)?;
    c.jne(s.to(bits, &print))?;
    restore(c)?;
    c.ret()
}

/// Bytes of the registers [`save`] pushes, and of the flags pushed before.
fn saved(c: &Code) -> u32 {
    if c.bits() == 64 { 7 * 8 } else { 7 * 4 }
}

/// Enters a routine with arguments behind its call: saves flags and registers, EBX = address of the arguments.
fn enter(c: &mut Code) -> R {
    let saved = saved(c);
    if c.bits() == 64 {
        c.pushfq()?
    } else {
        c.pushfd()?
    }
    save(c)?;
    match c.bits() {
        64 => c.mov(rbx, qword_ptr(rsp + saved)),
        32 => c.mov(ebx, dword_ptr(esp + saved)),
        _ => c.movzx(ebx, word_ptr(esp + saved)),
    }
}

/// Argument `index` of the routine, by EBX.
fn argument(c: &Code, index: u32) -> AsmMemoryOperand {
    let offset = index * 4;
    if c.bits() == 64 { dword_ptr(rbx + offset) } else { dword_ptr(ebx + offset).cs() }
}

/// Leaves a routine with `count` arguments.
fn leave(c: &mut Code, count: u32) -> R {
    let saved = saved(c);
    match c.bits() {
        64 => c.add(qword_ptr(rsp + saved), (count * 4) as i32)?,
        32 => c.add(dword_ptr(esp + saved), count * 4)?,
        _ => c.add(word_ptr(esp + saved), count * 4)?,
    }
    restore(c)?;
    if c.bits() == 64 {
        c.popfq()?
    } else {
        c.popfd()?
    }
    c.ret()
}

/// `differs32`, `differs64`: GOT is not the expected value. Arguments: what, the expected value.
fn differs(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    for width in [32, 64] {
        c.label(&routine(bits, &format!("differs{width}")))?;
        enter(c)?;
        for (index, variable) in [(0, WHAT), (1, EXPECTED), (2, EXPECTED + 4)] {
            if variable == EXPECTED + 4 && width == 32 {
                c.xor(eax, eax)?;
                c.mov(dword_ptr(GOT + 4), eax)?;
            } else {
                let argument = argument(c, index);
                c.mov(eax, argument)?;
            }
            c.mov(dword_ptr(variable), eax)?;
        }
        c.mov(dword_ptr(FIELD), s.text(""))?;
        call(c, s, "record")?;
        leave(c, if width == 32 { 2 } else { 3 })?;
    }
    Ok(())
}

/// `arm`, `exception_at`, `exception_from`: see the functions that call them.
fn exceptions(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "arm"))?;
    enter(c)?;
    let (resume, above) = (argument(c, 0), saved(c) + bits / 8);
    c.mov(eax, resume)?;
    c.mov(dword_ptr(RESUME), eax)?;
    c.mov(dword_ptr(EXC_VECTOR), 0xFFFFu32)?;
    if bits == 64 {
        c.lea(rax, qword_ptr(rsp + above))?;
        c.mov(qword_ptr(RESUME_SP), rax)?;
    } else {
        c.lea(eax, dword_ptr(esp + above))?;
        c.mov(dword_ptr(RESUME_SP), eax)?;
    }
    leave(c, 1)?;

    for (name, third, third_field) in
        [("exception_at", EXC_IP, ", saved instruction pointer"), ("exception_from", EXC_CS, ", saved CS")]
    {
        c.label(&routine(bits, name))?;
        enter(c)?;
        c.mov(dword_ptr(RESUME), 0)?;
        let what = argument(c, 0);
        c.mov(eax, what)?;
        c.mov(dword_ptr(WHAT), eax)?;
        for (index, variable, field) in
            [(1, EXC_VECTOR, ", vector"), (2, EXC_ERROR, ", error code"), (3, third, third_field)]
        {
            let same = c.fresh();
            let expected = argument(c, index);
            c.mov(eax, dword_ptr(variable))?;
            c.mov(ecx, expected)?;
            c.cmp(eax, ecx)?;
            c.je(s.to(bits, &same))?;
            c.mov(dword_ptr(GOT), eax)?;
            c.mov(dword_ptr(EXPECTED), ecx)?;
            c.xor(eax, eax)?;
            c.mov(dword_ptr(GOT + 4), eax)?;
            c.mov(dword_ptr(EXPECTED + 4), eax)?;
            c.mov(dword_ptr(FIELD), s.text(field))?;
            call(c, s, "record")?;
            c.label(&same)?;
        }
        leave(c, 4)?;
    }
    Ok(())
}

/// `record`: a failed expectation is in WHAT, FIELD, GOT and EXPECTED. Keeps all registers.
fn record(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "record"))?;
    save(c)?;
    let more = c.fresh();
    c.cmp(dword_ptr(CHECK_FAILS), 0)?;
    c.jne(s.to(bits, &more))?;
    for (from, to) in [(WHAT, FIRST_WHAT), (FIELD, FIRST_FIELD), (GOT, FIRST_GOT), (EXPECTED, FIRST_EXPECTED)]
    {
        for half in [0, 4] {
            c.mov(eax, dword_ptr(from + half))?;
            c.mov(dword_ptr(to + half), eax)?;
        }
    }
    c.label(&more)?;
    c.inc(dword_ptr(CHECK_FAILS))?;
    restore(c)?;
    c.ret()
}

/// Prints the string whose address is in a variable.
fn say_var(c: &mut Code, s: &Symbols, variable: u32) -> R {
    c.mov(esi, dword_ptr(variable))?;
    call(c, s, "puts")
}

/// Prints a variable in hexadecimal.
fn say_hex(c: &mut Code, s: &Symbols, before: &str, variable: u32) -> R {
    say(c, s, before)?;
    c.mov(edi, variable)?;
    call(c, s, "hex")
}

/// `finish`: prints the line of the running check and counts it. Keeps all registers.
fn finish(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "finish"))?;
    save(c)?;
    let (bad, done) = (c.fresh(), c.fresh());
    c.cmp(dword_ptr(CHECK_FAILS), 0)?;
    c.jne(s.to(bits, &bad))?;
    c.inc(dword_ptr(PASSED))?;
    say(c, s, "[ ok ] ")?;
    say_var(c, s, CHECK_NAME)?;
    c.jmp(s.to(bits, &done))?;
    c.label(&bad)?;
    c.inc(dword_ptr(FAILED))?;
    say(c, s, "[FAIL] ")?;
    say_var(c, s, CHECK_NAME)?;
    say(c, s, ": ")?;
    say_var(c, s, FIRST_WHAT)?;
    say_var(c, s, FIRST_FIELD)?;
    say_hex(c, s, " is 0x", FIRST_GOT)?;
    say_hex(c, s, ", expected 0x", FIRST_EXPECTED)?;
    c.label(&done)?;
    say(c, s, "\r\n")?;
    restore(c)?;
    c.ret()
}

/// `unexpected`: an exception came although none was expected. Prints it and ends the run.
fn unexpected(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    c.label(&routine(bits, "unexpected"))?;
    c.inc(dword_ptr(FAILED))?;
    say(c, s, "[FAIL] ")?;
    say_var(c, s, CHECK_NAME)?;
    say(c, s, ": unexpected exception ")?;
    c.mov(eax, dword_ptr(EXC_VECTOR))?;
    call(c, s, "dec")?;
    say_hex(c, s, ", error code 0x", EXC_ERROR)?;
    say_hex(c, s, ", at 0x", EXC_CS)?;
    say_hex(c, s, ":0x", EXC_IP)?;
    say_hex(c, s, ", CR2 0x", EXC_CR2)?;
    say(c, s, "\r\nThe remaining checks cannot run.\r\n")?;
    jump(c, s, "summary")
}

/// `summary`: prints how it went and ends the machine.
fn summary(c: &mut Code, s: &Symbols) -> R {
    let bits = c.bits();
    let (bad, off) = (c.fresh(), c.fresh());
    c.label(&routine(bits, "summary"))?;
    c.cmp(dword_ptr(FAILED), 0)?;
    c.jne(s.to(bits, &bad))?;
    say(c, s, "all ")?;
    c.mov(eax, dword_ptr(PASSED))?;
    call(c, s, "dec")?;
    say(c, s, " checks passed\r\n")?;
    c.jmp(s.to(bits, &off))?;
    c.label(&bad)?;
    c.mov(eax, dword_ptr(FAILED))?;
    call(c, s, "dec")?;
    say(c, s, " of ")?;
    c.add(eax, dword_ptr(PASSED))?;
    call(c, s, "dec")?;
    say(c, s, " checks FAILED\r\n")?;

    c.label(&off)?;
    c.cli()?;
    let wait = c.fresh();
    c.mov(dx, COM1 + 5)?;
    c.label(&wait)?;
    c.in_(al, dx)?;
    c.test(al, 0x40)?; // transmitter empty
    c.je(s.to(bits, &wait))?;
    // PM1a control: SLP_EN with SLP_TYP 0.
    c.mov(dx, 0x604)?;
    c.mov(ax, 0x2000)?;
    c.out(dx, ax)?;
    // Some machines take a moment.
    let pause = c.fresh();
    c.mov(ecx, 2000)?;
    c.label(&pause)?;
    c.in_(al, 0x61)?;
    c.dec(ecx)?;
    c.jne(s.to(bits, &pause))?;
    c.mov(dx, 0x501)?;
    c.mov(al, byte_ptr(FAILED))?;
    c.out(dx, al)?;
    say(c, s, "The machine does not power off by its PM1a control register (port 0x604).\r\n")?;
    let halt = c.fresh();
    c.label(&halt)?;
    c.hlt()?;
    c.jmp(s.to(bits, &halt))
}
