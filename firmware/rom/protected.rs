//! Protected mode without paging: segments, exceptions, privilege levels, virtual-8086 mode.

use iced_x86::code_asm::*;

use super::layout::*;
use super::modes::{self, Saved, expect_exception, expect_user, flat_segments};
use super::report::{self, begin, end, expect_if, expect_var, expect32, routine};
use super::tables::{IDT32_ENTRIES, TSS32_LIMIT};
use super::{devices, paging32};
use tessera_asm::{Code, R, Symbols};

/// A port the permission bitmap closes to ring 3, and one it opens.
pub const CLOSED_PORT: u32 = 0x80;
pub const OPEN_PORT: u32 = COM1 + 7;

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    c.label("32.start")?;
    enter(c, s)?;
    segments(c, s)?;
    limits(c, s)?;
    exceptions(c, s)?;
    privilege(c, s)?;
    virtual_8086(c, s)?;
    paging32::emit(c, s)?;
    devices::map_power_management(c, s)?;
    to_long_mode(c, s)?;
    report::routines(c, s)?;
    vectors(c, s)
}

fn enter(c: &mut Code, s: &Symbols) -> R {
    flat_segments(c)?;
    // A 32-bit instruction that would be another one in 16-bit code.
    c.mov(eax, 0x1234_5678)?;
    expect32(c, s, "32-bit immediate", eax, 0x1234_5678)?;
    c.xor(eax, eax)?;
    c.mov(ax, cs)?;
    expect32(c, s, "CS", eax, CODE32.into())?;

    c.mov(esi, s.imm("idt32"))?;
    c.mov(edi, IDT32)?;
    c.mov(ecx, IDT32_ENTRIES * 2)?;
    c.rep().movsd()?;
    load_idt(c)?;
    // The TSS: ring 0 stack, and all ports open but one.
    c.xor(eax, eax)?;
    c.mov(edi, TSS32)?;
    c.mov(ecx, (TSS32_LIMIT + 4) / 4)?;
    c.rep().stosd()?;
    c.mov(dword_ptr(TSS32 + 4), STACK_RING0)?;
    c.mov(dword_ptr(TSS32 + 8), u32::from(DATA))?;
    c.mov(word_ptr(TSS32 + 0x66), 0x68)?;
    c.mov(byte_ptr(TSS32 + 0x68 + CLOSED_PORT / 8), 1 << (CLOSED_PORT % 8))?;
    c.mov(byte_ptr(TSS32 + TSS32_LIMIT), 0xFF)?;
    c.mov(eax, u32::from(TSS32_SELECTOR))?;
    c.ltr(ax)?;
    c.xor(eax, eax)?;
    c.str(eax)?;
    expect32(c, s, "task register", eax, TSS32_SELECTOR.into())?;
    c.mov(eax, dword_ptr(GDT + u32::from(TSS32_SELECTOR) + 4))?;
    c.and(eax, 0xFF00)?;
    expect32(c, s, "TSS descriptor is busy after LTR", eax, 0x8B00)?;
    end(c, s)
}

/// Loads the 32-bit IDT. Uses the first bytes of the scratch page.
fn load_idt(c: &mut Code) -> R {
    c.mov(word_ptr(SCRATCH), IDT32_ENTRIES * 8 - 1)?;
    c.mov(dword_ptr(SCRATCH + 2), IDT32)?;
    c.lidt(fword_ptr(SCRATCH))
}

/// `32.to_user`: to ring 3 at EAX.
fn to_user(c: &mut Code) -> R {
    c.label("32.to_user")?;
    c.push(u32::from(USER_DATA))?;
    c.push(STACK_USER)?;
    c.push(2)?; // EFLAGS
    c.push(u32::from(USER_CODE32))?;
    c.push(eax)?;
    c.mov(eax, u32::from(USER_DATA))?;
    c.mov(ds, eax)?;
    c.mov(es, eax)?;
    c.iretd()
}

fn segments(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "protected mode: segments, 16-bit code")?;
    for (segment, offset, what) in [
        (SMALL, 4, "write through a segment with a base"),
        (DOWN, 0x100, "write through an expand-down segment"),
    ] {
        c.mov(eax, u32::from(segment))?;
        c.mov(es, eax)?;
        c.mov(dword_ptr(offset).es(), 0xCAFE_0000 + offset)?;
        c.mov(eax, dword_ptr(SCRATCH + offset))?;
        expect32(c, s, what, eax, 0xCAFE_0000 + offset)?;
    }
    c.mov(eax, u32::from(EXECUTE_ONLY))?;
    expect_exception(c, s, "execute-only code as data", (13, EXECUTE_ONLY.into()), Saved::This, |c| {
        c.mov(es, eax)
    })?;
    c.mov(eax, u32::from(ABSENT))?;
    expect_exception(c, s, "segment not present", (11, ABSENT.into()), Saved::This, |c| c.mov(es, eax))?;
    c.mov(eax, u32::from(ABSENT))?;
    expect_exception(c, s, "stack not present", (12, ABSENT.into()), Saved::This, |c| c.mov(ss, eax))?;
    c.mov(eax, 0x1000)?;
    expect_exception(c, s, "selector beyond the GDT", (13, 0x1000), Saved::This, |c| c.mov(es, eax))?;
    c.mov(eax, u32::from(CODE32))?;
    expect_exception(c, s, "code as stack", (13, CODE32.into()), Saved::This, |c| c.mov(ss, eax))?;
    c.mov(eax, u32::from(DATA))?;
    c.mov(es, eax)?;

    c.mov(ecx, u32::from(SMALL))?;
    c.mov(eax, 1)?;
    c.lsl(eax, ecx)?;
    expect_if(c, s, "LSL finds the segment", |c, to| c.je(to))?;
    expect32(c, s, "LSL", eax, 0xFF)?;
    c.lar(eax, ecx)?;
    c.and(eax, 0xF0_FF00)?;
    expect32(c, s, "LAR", eax, 0x40_9300)?;
    c.mov(ecx, u32::from(READ_ONLY))?;
    c.verw(cx)?;
    expect_if(c, s, "VERW of a read-only segment clears ZF", |c, to| c.jne(to))?;
    c.verr(cx)?;
    expect_if(c, s, "VERR of a read-only segment sets ZF", |c, to| c.je(to))?;

    c.mov(eax, 0xAAAA_0000u32)?;
    c.mov(ebx, esp)?;
    c.call_far(CODE16, s.off("user.code16"))?;
    c.sub(ebx, esp)?;
    expect32(c, s, "16-bit MOV leaves the upper half", eax, 0xAAAA_5678)?;
    expect32(c, s, "16-bit LOOP counts CX", ecx, 0x1_0000)?;
    expect32(c, s, "stack after a far call to 16-bit code", ebx, 0)?;
    end(c, s)
}

/// What the segment unit refuses at each access: limits, rights, null selectors.
fn limits(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "protected mode: segment limits and rights")?;
    let gp = (13, 0);
    for (segment, what) in [(SMALL, "beyond the limit"), (DOWN, "below an expand-down segment")] {
        let offset: u32 = if segment == SMALL { 0xFD } else { 0x80 };
        c.mov(eax, u32::from(segment))?;
        c.mov(es, eax)?;
        expect_exception(c, s, what, gp, Saved::This, |c| c.mov(ebx, dword_ptr(offset).es()))?;
    }
    c.mov(eax, u32::from(READ_ONLY))?;
    c.mov(es, eax)?;
    expect_exception(c, s, "write to a read-only segment", gp, Saved::This, |c| {
        c.mov(byte_ptr(SCRATCH).es(), 1)
    })?;
    c.xor(eax, eax)?;
    c.mov(es, eax)?;
    expect_exception(c, s, "null selector", gp, Saved::This, |c| c.mov(ebx, dword_ptr(SCRATCH).es()))?;
    c.mov(eax, u32::from(DATA))?;
    c.mov(es, eax)?;
    end(c, s)
}

fn exceptions(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "protected mode: exceptions and error codes")?;
    let this = Saved::This;
    c.xor(ecx, ecx)?;
    c.mov(edx, 0)?;
    expect_exception(c, s, "#DE by zero", (0, 0), this, |c| c.div(ecx))?;
    c.mov(ecx, -1)?;
    c.mov(edx, 0x8000_0000u32)?;
    expect_exception(c, s, "#DE by overflow", (0, 0), this, |c| c.idiv(ecx))?;
    expect_exception(c, s, "#BP", (3, 0), Saved::Next, |c| c.int3())?;
    c.mov(eax, 0x7FFF_FFFF)?;
    c.inc(eax)?;
    // The bookkeeping before the instruction changes no flag.
    expect_exception(c, s, "#OF", (4, 0), Saved::Next, |c| CodeAssembler::into(c))?;
    c.mov(dword_ptr(SCRATCH), 3)?;
    c.mov(dword_ptr(SCRATCH + 4), 5)?;
    c.mov(ecx, 6)?;
    expect_exception(c, s, "#BR", (5, 0), this, |c| c.bound(ecx, qword_ptr(SCRATCH)))?;
    expect_exception(c, s, "#UD", (6, 0), this, |c| c.ud2())?;
    expect_exception(c, s, "#UD by LOCK without memory", (6, 0), this, |c| {
        c.db(&[0xF0, 0x01, 0xC0]) // lock add eax, eax
    })?;
    c.mov(eax, cr0)?;
    c.or(eax, 8)?;
    c.mov(cr0, eax)?; // TS
    expect_exception(c, s, "#NM", (7, 0), this, |c| c.fnop())?;
    c.clts()?;
    c.mov(eax, cr0)?;
    c.and(eax, 8)?;
    expect32(c, s, "CR0.TS after CLTS", eax, 0)?;
    expect_exception(c, s, "interrupt beyond the IDT", (13, 0x90 * 8 + 2), this, |c| c.int(0x90))?;
    expect_exception(c, s, "gate not present", (11, u32::from(VEC_ABSENT) * 8 + 2), this, |c| {
        c.int(i32::from(VEC_ABSENT))
    })?;
    c.mov(eax, u32::from(TSS32_SELECTOR))?;
    expect_exception(c, s, "LTR of a busy task", (13, TSS32_SELECTOR.into()), this, |c| c.ltr(ax))?;
    // Single step: the trap comes after the instruction behind POPFD.
    let step = c.fresh();
    report::arm(c, s, &step)?;
    c.push(0x102)?;
    c.popfd()?;
    c.nop()?;
    c.label(&step)?;
    report::expect_exception(c, s, "#DB by single step", (1, 0), s.imm(&step))?;
    c.mov(eax, dr6)?;
    c.and(eax, 0x4000)?;
    expect32(c, s, "DR6.BS", eax, 0x4000)?;
    c.xor(eax, eax)?;
    c.mov(dr6, eax)?;
    end(c, s)
}

fn privilege(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "protected mode: ring 3, call gate, I/O permissions")?;
    expect_user(c, s, "software interrupt from ring 3", (VEC_SYSCALL.into(), 0), "user.int")?;
    expect_var(c, s, "saved ESP", EXC_SP, STACK_USER - 4)?;
    expect_var(c, s, "saved SS", EXC_SS, USER_DATA.into())?;
    expect_var(c, s, "ring 0 stack", EXC_HANDLER_SP, STACK_RING0 - 20)?;
    expect_var(c, s, "EAX from ring 3", EXC_AX, 0x1234)?;
    expect_user(c, s, "CLI in ring 3", (13, 0), "user.cli")?;
    expect_user(c, s, "MOV from CR0 in ring 3", (13, 0), "user.cr0")?;
    expect_user(c, s, "gate closed to ring 3", (13, 6 * 8 + 2), "user.int6")?;
    expect_user(c, s, "closed port in ring 3", (13, 0), "user.in_closed")?;
    // The serial port's scratch register.
    c.mov(edx, OPEN_PORT)?;
    c.mov(al, 0x3C)?;
    c.out(dx, al)?;
    expect_user(c, s, "open port in ring 3", (VEC_SYSCALL.into(), 0), "user.in_open")?;
    expect_var(c, s, "byte read in ring 3", EXC_AX, 0x3C)?;
    expect_user(c, s, "ring 0 data segment in ring 3", (13, DATA.into()), "user.load_ds")?;
    expect_user(c, s, "call gate", (VEC_SYSCALL.into(), 0), "user.gate")?;
    // 32.gate answers parameter + (CS in ring 0) << 16.
    expect_var(c, s, "answer of the call gate", EXC_AX, 0x0008_4321)?;
    expect_var(c, s, "ESP after RET 4 through the call gate", EXC_SP, STACK_USER)?;
    end(c, s)
}

fn virtual_8086(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "virtual-8086 mode")?;
    let after = c.fresh();
    c.mov(dword_ptr(SCRATCH + 0x20), 0)?;
    report::arm(c, s, &after)?;
    for segment in [0, 0, SCRATCH >> 4, SCRATCH >> 4, 0] {
        c.push(segment)?; // GS, FS, DS, ES, SS
    }
    c.push(STACK_USER)?;
    c.push(0x2_0002)?; // EFLAGS.VM
    c.push(u32::from(ROM_SEGMENT))?;
    c.push(s.off("user.v86"))?;
    c.iretd()?;
    c.label(&after)?;
    report::expect_exception(c, s, "INT with IOPL 0", (13, 0), s.off("user.v86_int"))?;
    expect_var(c, s, "saved CS", EXC_CS, ROM_SEGMENT.into())?;
    c.mov(eax, dword_ptr(EXC_FLAGS))?;
    c.and(eax, 0x2_0000)?;
    expect32(c, s, "saved EFLAGS.VM", eax, 0x2_0000)?;
    c.mov(eax, dword_ptr(SCRATCH + 0x20))?;
    expect32(c, s, "word written in virtual-8086 mode", eax, 0x3333)?;
    expect_var(c, s, "saved SP", EXC_SP, STACK_USER - 2)?;
    end(c, s)
}

/// Builds the four-level tables and continues at `64.start`. Paging is off here.
fn to_long_mode(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "long mode: entry")?;
    c.mov(eax, 0x8000_0001u32)?;
    c.cpuid()?;
    c.and(edx, 1 << 29)?;
    let able = c.fresh();
    c.jne(s.at(&able))?;
    report::fail(c, s, "CPUID bit for long mode")?;
    end(c, s)?;
    report::jump(c, s, "summary")?;
    c.label(&able)?;
    c.mov(edi, PML4)?;
    c.mov(ecx, (PT_TEST + 0x1000 - PML4) / 4)?;
    c.xor(eax, eax)?;
    c.rep().stosd()?;
    super::long_paging::tables(c, s)?;
    c.mov(eax, PML4)?;
    c.mov(cr3, eax)?;
    c.mov(eax, cr4)?;
    c.or(eax, 0x20)?; // PAE
    c.mov(cr4, eax)?;
    c.mov(ecx, 0xC000_0080u32)?;
    c.rdmsr()?;
    c.or(eax, 0x101)?; // LME, SCE
    c.wrmsr()?;
    c.mov(eax, cr0)?;
    c.or(eax, 0x8001_0000u32)?; // PG, WP
    c.mov(cr0, eax)?;
    c.rdmsr()?;
    c.and(eax, 0x500)?;
    expect32(c, s, "EFER.LME and EFER.LMA", eax, 0x500)?;
    // Still compatibility mode: the code segment decides.
    c.jmp_far(CODE64, s.imm("64.start"))
}

/// Exception handlers.
fn vectors(c: &mut Code, s: &Symbols) -> R {
    to_user(c)?;
    modes::vectors(c, s)?;
    c.label("32.exception")?;
    // Stack: vector, error code, EIP, CS, EFLAGS, and ESP and SS if the ring changed. DS may be anything.
    c.push(eax)?;
    c.mov(eax, u32::from(DATA))?;
    c.mov(ds, eax)?;
    c.mov(es, eax)?;
    c.mov(fs, eax)?;
    c.mov(gs, eax)?;
    c.pop(dword_ptr(EXC_AX))?;
    c.mov(dword_ptr(EXC_CX), ecx)?;
    c.mov(dword_ptr(EXC_SI), esi)?;
    c.mov(dword_ptr(EXC_DI), edi)?;
    c.lea(eax, dword_ptr(esp + 8))?;
    c.mov(dword_ptr(EXC_HANDLER_SP), eax)?;
    for (index, variable) in
        [EXC_VECTOR, EXC_ERROR, EXC_IP, EXC_CS, EXC_FLAGS, EXC_SP, EXC_SS].into_iter().enumerate()
    {
        c.mov(eax, dword_ptr(esp + index as u32 * 4))?;
        c.mov(dword_ptr(variable), eax)?;
        c.mov(dword_ptr(variable + 4), 0)?;
    }
    // Selectors are 16 bits; the rest of the slot is undefined.
    c.and(dword_ptr(EXC_CS), 0xFFFF)?;
    c.and(dword_ptr(EXC_SS), 0xFFFF)?;
    c.mov(eax, cr2)?;
    c.mov(dword_ptr(EXC_CR2), eax)?;
    c.mov(eax, dword_ptr(RESUME))?;
    c.test(eax, eax)?;
    c.je(s.at(&routine(32, "unexpected")))?;
    c.mov(esp, dword_ptr(RESUME_SP))?;
    c.jmp(eax)?;

    // The call gate: one parameter above the return address.
    c.label("32.gate")?;
    c.xor(eax, eax)?;
    c.mov(ax, cs)?;
    c.shl(eax, 16)?;
    c.or(eax, dword_ptr(esp + 8))?;
    c.retf_1(4)
}
