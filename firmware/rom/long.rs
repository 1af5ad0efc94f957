//! Long mode: entry, compatibility mode, exceptions and their stacks, SYSCALL, ring 3; then everything else that is
//! checked in 64-bit code (`integer.rs`, `fpu.rs`, `devices.rs`, `speed.rs`).

use iced_x86::code_asm::*;

use super::layout::*;
use super::long_paging::USER_WINDOW;
use super::modes::{self, Saved, expect_exception, expect_user, flat_segments, user_address};
use super::report::{self, begin, end, expect_var, expect32, expect64, routine};
use super::{devices, fpu, integer, long_paging, speed};
use tessera_asm::{Code, R, Symbols};

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    c.label("64.start")?;
    enter(c, s)?;
    integer::emit(c, s)?;
    compatibility_mode(c, s)?;
    exceptions(c, s)?;
    long_paging::emit(c, s)?;
    system_calls(c, s)?;
    fpu::emit(c, s)?;
    devices::emit(c, s)?;
    speed::emit(c, s)?;
    report::jump(c, s, "summary")?;
    report::routines(c, s)?;
    vectors(c, s)?;
    devices::handlers(c, s)?;
    user_code(c, s)
}

fn enter(c: &mut Code, s: &Symbols) -> R {
    flat_segments(c)?;
    // 48 is DEC EAX in compatibility mode and a REX prefix here.
    c.mov(rax, 0x1_0000_0000u64)?;
    expect64(c, s, "64-bit immediate", rax, 0x1_0000_0000)?;
    c.xor(eax, eax)?;
    c.mov(ax, cs)?;
    expect32(c, s, "CS", eax, CODE64.into())?;

    c.mov(esi, s.imm("idt64"))?;
    c.mov(edi, IDT64)?;
    c.mov(ecx, 512)?;
    c.rep().movsq()?;
    c.mov(edi, TSS64)?;
    c.mov(ecx, 0x68 / 4)?;
    c.xor(eax, eax)?;
    c.rep().stosd()?;
    c.mov(dword_ptr(TSS64 + 4), STACK_RING0)?;
    c.mov(dword_ptr(TSS64 + 0x24), STACK_IST)?;
    c.mov(word_ptr(TSS64 + 0x66), 0x68)?;
    c.mov(word_ptr(SCRATCH), 0xFFFu32)?;
    c.mov(qword_ptr(SCRATCH + 2), IDT64 as i32)?;
    c.lidt(tbyte_ptr(SCRATCH))?;
    c.mov(word_ptr(SCRATCH), u32::from(GDT_SIZE) - 1)?;
    c.mov(qword_ptr(SCRATCH + 2), GDT as i32)?;
    c.lgdt(tbyte_ptr(SCRATCH))?;
    c.mov(eax, u32::from(TSS64_SELECTOR))?;
    c.ltr(ax)?;
    c.sidt(tbyte_ptr(SCRATCH + 16))?;
    c.mov(rax, qword_ptr(SCRATCH + 18))?;
    expect64(c, s, "IDT base", rax, IDT64.into())?;
    end(c, s)
}

/// `64.to_user`: to ring 3 at RAX.
fn to_user(c: &mut Code) -> R {
    c.label("64.to_user")?;
    c.push(i32::from(USER_DATA))?;
    c.push(user_stack())?;
    c.push(2)?; // RFLAGS
    c.push(i32::from(USER_CODE64))?;
    c.push(rax)?;
    c.iretq()
}

/// Runs ring 3 code that ends in a system call and expects its EAX.
pub fn expect_user_result(c: &mut Code, s: &Symbols, what: &str, user: &str, result: u32) -> R {
    expect_user(c, s, what, (VEC_SYSCALL.into(), 0), user)?;
    expect_var(c, s, &format!("{what}: result"), EXC_AX, result)
}

fn user_stack() -> i32 {
    (USER_WINDOW + u64::from(STACK_USER)) as i32
}

fn compatibility_mode(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "long mode: compatibility mode")?;
    c.mov(dword_ptr(SCRATCH), s.imm("32.compatibility"))?;
    c.mov(word_ptr(SCRATCH + 4), u32::from(CODE32))?;
    c.mov(rdx, rsp)?;
    c.mov(rcx, -1i64)?;
    c.call(fword_ptr(SCRATCH))?;
    c.sub(rdx, rsp)?;
    // Two increments by opcodes that are REX prefixes in 64-bit code.
    expect32(c, s, "INC by opcode 40", eax, 0x1236)?;
    c.movzx(ecx, cx)?;
    expect32(c, s, "CS in compatibility mode", ecx, CODE32.into())?;
    expect64(c, s, "stack after it", rdx, 0)?;
    end(c, s)
}

fn exceptions(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "long mode: exceptions, interrupt stack table")?;
    let this = Saved::This;
    // Without IST: the stack is aligned to 16 bytes before five quadwords are pushed.
    c.mov(rbp, rsp)?;
    c.mov(esp, STACK - 0x20 + 7)?;
    expect_exception(c, s, "#UD", (6, 0), this, |c| c.ud2())?;
    c.mov(rsp, rbp)?;
    expect_var(c, s, "#UD: saved RSP", EXC_SP, STACK - 0x20 + 7)?;
    expect_var(c, s, "#UD: saved SS", EXC_SS, DATA.into())?;
    expect_var(c, s, "#UD: aligned stack of the handler", EXC_HANDLER_SP, STACK - 0x20 - 40)?;
    c.mov(rbx, 0x8000_0000_0000_0000u64)?;
    expect_exception(c, s, "#GP by a non-canonical address", (13, 0), this, |c| c.mov(rax, qword_ptr(rbx)))?;
    expect_var(c, s, "#GP: stack from the IST", EXC_HANDLER_SP, STACK_IST - 40)?;
    c.mov(rdi, rbp)?;
    c.mov(rbp, 0x0000_8000_0000_0000u64)?;
    expect_exception(c, s, "#SS by a non-canonical address", (12, 0), this, |c| c.mov(rax, qword_ptr(rbp)))?;
    c.mov(rbp, rdi)?;
    c.xor(ecx, ecx)?;
    c.xor(edx, edx)?;
    expect_exception(c, s, "#DE", (0, 0), this, |c| c.div(rcx))?;
    expect_exception(c, s, "#BP", (3, 0), Saved::Next, |c| c.int3())?;
    expect_exception(c, s, "#UD by an opcode without meaning in 64-bit mode", (6, 0), this, |c| {
        c.db(&[0x06]) // PUSH ES
    })?;
    c.mov(eax, 0x1000)?;
    expect_exception(c, s, "selector beyond the GDT", (13, 0x1000), this, |c| c.mov(ds, eax))?;
    end(c, s)
}

fn system_calls(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "long mode: ring 3 by IRETQ and back")?;
    expect_user(c, s, "software interrupt", (VEC_SYSCALL.into(), 0), "user64.int")?;
    expect_var(c, s, "EAX from ring 3", EXC_AX, 0x4321)?;
    expect_var(c, s, "saved RSP", EXC_SP, user_stack() as u32 - 8)?;
    expect_var(c, s, "saved SS", EXC_SS, USER_DATA.into())?;
    expect_var(c, s, "ring 0 stack", EXC_HANDLER_SP, STACK_RING0 - 40)?;
    expect_user(c, s, "HLT in ring 3", (13, 0), "user64.hlt")?;
    expect_user(c, s, "RDMSR in ring 3", (13, 0), "user64.rdmsr")?;
    expect_user(c, s, "UD2 in ring 3", (6, 0), "user64.ud2")?;
    end(c, s)?;

    begin(c, s, "long mode: SYSCALL and SYSRET, SWAPGS")?;
    let star = u64::from(USER_CODE32) << 48 | u64::from(CODE64) << 32;
    for (msr, value) in [
        (0xC000_0081u32, star),
        (0xC000_0082, s.at("64.syscall")),
        (0xC000_0084, 0x0400), // mask DF
        (0xC000_0101, 0x1111_0000),
        (0xC000_0102, 0x2222_0000),
    ] {
        c.mov(ecx, msr)?;
        c.mov(eax, value as u32)?;
        c.mov(edx, (value >> 32) as u32)?;
        c.wrmsr()?;
    }
    c.mov(qword_ptr(SCRATCH + 0x40), 0)?;
    expect_user_result(c, s, "two system calls", "user64.syscalls", 0x1002)?;
    expect_var(c, s, "ring 3 CS after SYSRET", EXC_CS, USER_CODE64.into())?;
    expect_var(c, s, "ring 3 SS after SYSRET", EXC_SS, USER_DATA.into())?;
    expect_var(c, s, "ring 3 RSP after SYSRET", EXC_SP, user_stack() as u32)?;
    c.mov(eax, dword_ptr(EXC_FLAGS))?;
    c.and(eax, 0x401)?;
    expect32(c, s, "ring 3 DF and CF after SYSRET", eax, 0x401)?;
    // What the entry saw, twice.
    c.mov(rax, qword_ptr(SCRATCH + 0x40))?;
    expect64(c, s, "calls counted by the entry", rax, 2)?;
    c.mov(rax, qword_ptr(SCRATCH + 0x48))?;
    expect64(c, s, "RCX at the entry", rax, user_address(s, "user64.second_call"))?;
    c.mov(eax, dword_ptr(SCRATCH + 0x50))?;
    c.and(eax, 0x401)?;
    expect32(c, s, "R11 at the entry", eax, 0x401)?;
    c.mov(eax, dword_ptr(SCRATCH + 0x58))?;
    c.and(eax, 0x401)?;
    expect32(c, s, "flags at the entry, DF masked", eax, 1)?;
    c.mov(eax, dword_ptr(SCRATCH + 0x60))?;
    expect32(c, s, "CS and SS at the entry", eax, u32::from(CODE64 + 8) << 16 | u32::from(CODE64))?;
    c.cld()?;
    c.swapgs()?;
    c.mov(ecx, 0xC000_0101u32)?;
    c.rdmsr()?;
    expect32(c, s, "GS base after SWAPGS", eax, 0x2222_0000)?;
    c.swapgs()?;
    c.rdmsr()?;
    expect32(c, s, "GS base after two of them", eax, 0x1111_0000)?;
    // A base below 4 GiB but above the segment's reach: FS through its MSR.
    c.mov(ecx, 0xC000_0100u32)?;
    c.mov(eax, SCRATCH + 0x80)?;
    c.xor(edx, edx)?;
    c.wrmsr()?;
    c.mov(dword_ptr(SCRATCH + 0x84), 0xF5F5_0001u32)?;
    c.mov(ecx, 4)?;
    c.mov(eax, dword_ptr(rcx).fs())?;
    expect32(c, s, "read through the FS base", eax, 0xF5F5_0001)?;
    end(c, s)
}

/// Exception handlers.
fn vectors(c: &mut Code, s: &Symbols) -> R {
    to_user(c)?;
    modes::vectors(c, s)?;
    c.label("64.exception")?;
    // Stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    c.mov(qword_ptr(EXC_CX), rcx)?;
    c.mov(qword_ptr(EXC_SI), rsi)?;
    c.mov(qword_ptr(EXC_DI), rdi)?;
    c.mov(qword_ptr(EXC_AX), rax)?;
    c.lea(rax, qword_ptr(rsp + 16))?;
    c.mov(qword_ptr(EXC_HANDLER_SP), rax)?;
    for (index, variable) in
        [EXC_VECTOR, EXC_ERROR, EXC_IP, EXC_CS, EXC_FLAGS, EXC_SP, EXC_SS].into_iter().enumerate()
    {
        c.mov(rax, qword_ptr(rsp + index as u32 * 8))?;
        c.mov(qword_ptr(variable), rax)?;
    }
    c.mov(rax, cr2)?;
    c.mov(qword_ptr(EXC_CR2), rax)?;
    // SS is null after a change of rings; give it back its segment.
    c.mov(eax, u32::from(DATA))?;
    c.mov(ss, eax)?;
    c.mov(eax, dword_ptr(RESUME))?;
    c.test(eax, eax)?;
    c.je(s.at(&routine(64, "unexpected")))?;
    c.mov(rsp, qword_ptr(RESUME_SP))?;
    c.jmp(rax)?;

    // The SYSCALL entry: notes what it sees and answers RAX + 1. RSP is still that of ring 3.
    c.label("64.syscall")?;
    c.mov(r8, rsp)?;
    c.mov(esp, STACK_RING0)?;
    c.pushfq()?;
    c.pop(qword_ptr(SCRATCH + 0x58))?;
    c.inc(qword_ptr(SCRATCH + 0x40))?;
    c.mov(qword_ptr(SCRATCH + 0x48), rcx)?;
    c.mov(qword_ptr(SCRATCH + 0x50), r11)?;
    c.mov(word_ptr(SCRATCH + 0x60), cs)?;
    c.mov(word_ptr(SCRATCH + 0x62), ss)?;
    c.inc(rax)?;
    c.mov(rsp, r8)?;
    c.sysretq()
}

/// Ring 3 code. It runs at another address than it is assembled for, so that it only uses relative branches.
fn user_code(c: &mut Code, s: &Symbols) -> R {
    let syscall = i32::from(VEC_SYSCALL);
    c.label("user64.int")?;
    c.mov(eax, 0x4321)?;
    c.push(rax)?;
    c.int(syscall)?;
    c.label("user64.hlt")?;
    c.hlt()?;
    c.label("user64.rdmsr")?;
    c.rdmsr()?;
    c.label("user64.ud2")?;
    c.ud2()?;
    c.label("user64.read")?;
    c.mov(eax, dword_ptr(rdi))?;
    c.int(syscall)?;
    c.label("user64.write")?;
    c.mov(dword_ptr(rdi), 0x7777_7777)?;
    c.int(syscall)?;
    c.label("user64.syscalls")?;
    c.mov(eax, 0x1000)?;
    c.std()?;
    c.stc()?;
    c.syscall()?;
    c.syscall()?;
    c.label("user64.second_call")?;
    c.int(syscall)?;
    // Ends the section; nothing runs into it.
    c.jmp(s.at("64.start"))
}
