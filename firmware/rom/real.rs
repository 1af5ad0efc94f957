//! From reset: the serial port, then what can be checked in real mode, then the switch to protected mode.

use iced_x86::code_asm::*;
use iced_x86::{Code as Opcode, IcedError, Instruction, Register, RepPrefixKind};

use super::layout::*;
use super::modes::{Saved, expect_exception};
use super::report::{self, begin, end, expect_if, expect_var, expect32, routine};
use tessera_asm::{Code, R, Symbols};

/// Vector of the software interrupt that returns.
const VEC_RETURNS: u32 = 0x60;

/// The reset vector, 16 bytes before the end of the ROM: CS still has base 0xFFFF0000 here.
pub fn emit_reset(c: &mut Code, s: &Symbols) -> R {
    c.label("reset")?;
    c.jmp_far(ROM_SEGMENT, s.off("start"))
}

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    c.label("start")?;
    set_up(c, s)?;
    arithmetic(c, s)?;
    segments(c, s)?;
    interrupts(c, s)?;
    strings(c, s)?;
    to_protected_mode(c, s)?;
    report::routines(c, s)?;
    vectors(c, s)
}

/// REP MOVSW from CS:SI to ES:DI.
fn rep_movsw_from_code() -> Result<Instruction, IcedError> {
    Instruction::with_movsw(16, Register::CS, RepPrefixKind::Repe)
}

fn set_up(c: &mut Code, s: &Symbols) -> R {
    c.cli()?;
    c.cld()?;
    c.xor(ax, ax)?;
    c.mov(ds, ax)?;
    c.mov(es, ax)?;
    c.mov(ss, ax)?;
    c.mov(esp, STACK)?;
    // No interrupts from the i8259s; A20 on, without a reset.
    c.mov(al, 0xFF)?;
    c.out(0x21, al)?;
    c.out(0xA1, al)?;
    c.in_(al, 0x92)?;
    c.or(al, 2)?;
    c.and(al, 0xFE)?;
    c.out(0x92, al)?;
    c.xor(eax, eax)?;
    c.mov(di, PASSED)?;
    c.mov(cx, (VARS_END - PASSED) / 4)?;
    c.rep().stosd()?;
    // 16550A: 115200 baud, 8N1, FIFOs on, DTR and RTS.
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        c.mov(dx, COM1 + register)?;
        c.mov(al, value)?;
        c.out(dx, al)?;
    }
    // The interrupt vector table: the exceptions, and one interrupt that returns.
    c.mov(si, s.off("ivt"))?;
    c.xor(di, di)?;
    c.mov(cx, 32 * 2)?;
    c.add_instruction(rep_movsw_from_code()?)?;
    c.mov(word_ptr(VEC_RETURNS * 4), s.off("16.returns"))?;
    c.mov(word_ptr(VEC_RETURNS * 4 + 2), u32::from(ROM_SEGMENT))?;
    report::say(c, s, "\r\nTessera self-test\r\n")
}

/// Expects AX and the arithmetic flags of the instruction just emitted. Clobbers EAX and EBX.
fn expect_result(c: &mut Code, s: &Symbols, what: &str, result: u32, flags: u32) -> R {
    c.pushf()?;
    c.pop(bx)?;
    c.movzx(eax, ax)?;
    c.movzx(ebx, bx)?;
    c.and(ebx, ARITHMETIC)?;
    expect32(c, s, what, eax, result)?;
    expect32(c, s, &format!("{what}: flags"), ebx, flags)
}

/// Expects AX, and the carry flag as EBX 0 or 1, where other flags are undefined. Clobbers EBX.
fn expect_carry(c: &mut Code, s: &Symbols, what: &str, result: u32, carry: u32) -> R {
    c.sbb(ebx, ebx)?;
    c.neg(ebx)?;
    c.movzx(eax, ax)?;
    expect32(c, s, what, eax, result)?;
    expect32(c, s, &format!("{what}: carry"), ebx, carry)
}

fn arithmetic(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "real mode: arithmetic and flags")?;
    c.mov(ax, 0x7FFF)?;
    c.add(ax, 1)?;
    expect_result(c, s, "7FFF + 1", 0x8000, 0x894)?;
    c.mov(ax, 0)?;
    c.sub(ax, 1)?;
    expect_result(c, s, "0 - 1", 0xFFFF, 0x95)?;
    c.mov(ax, 0xFFFF)?;
    c.stc()?;
    c.adc(ax, 0)?;
    expect_result(c, s, "FFFF + 0 + carry", 0, 0x55)?;
    c.mov(ax, 0x80)?;
    c.stc()?;
    c.sbb(al, 0x7F)?;
    expect_result(c, s, "80 - 7F - carry in 8 bits", 0, 0x854)?;
    c.mov(ax, 0x1234)?;
    c.mov(cx, 0x5678)?;
    c.mul(cx)?;
    expect_carry(c, s, "1234 * 5678", 0x0060, 1)?;
    c.movzx(edx, dx)?;
    expect32(c, s, "1234 * 5678, high half", edx, 0x0626)?;
    c.mov(dx, -1)?;
    c.mov(ax, -7)?;
    c.mov(cx, 2)?;
    c.idiv(cx)?;
    c.movzx(eax, ax)?;
    c.movzx(edx, dx)?;
    expect32(c, s, "-7 / 2", eax, 0xFFFD)?;
    expect32(c, s, "-7 % 2", edx, 0xFFFF)?;
    c.mov(ax, 0x35)?;
    c.sub(al, 0x47)?;
    c.das()?;
    expect_carry(c, s, "35 - 47 in BCD", 0x88, 1)?;
    c.mov(ax, 77)?;
    c.aam(10)?;
    c.movzx(eax, ax)?;
    expect32(c, s, "AAM of 77", eax, 0x0707)?;
    c.aad(10)?;
    c.movzx(eax, ax)?;
    expect32(c, s, "AAD of 7,7", eax, 77)?;
    c.mov(ax, 0x8001)?;
    c.rol(ax, 1)?;
    expect_carry(c, s, "ROL of 8001", 3, 1)?;
    c.mov(ax, 1)?;
    c.stc()?;
    c.rcr(ax, 1)?;
    expect_carry(c, s, "RCR of 0001 with carry", 0x8000, 1)?;
    c.mov(ax, 0xFF08)?;
    c.sar(ax, 4)?;
    expect_carry(c, s, "SAR of FF08 by 4", 0xFFF0, 1)?;
    c.mov(ax, 0x1234)?;
    c.mov(dx, 0xABCD)?;
    c.shld(ax, dx, 4)?;
    expect_carry(c, s, "SHLD of 1234:ABCD by 4", 0x234A, 1)?;
    c.mov(eax, 0xFFFF_FFFFu32)?;
    c.mov(ax, 0)?;
    expect32(c, s, "upper half of EAX after a 16-bit write", eax, 0xFFFF_0000)?;
    end(c, s)
}

fn segments(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "real mode: segments and addressing")?;
    let segment = SCRATCH >> 4;
    c.mov(ax, segment)?;
    c.mov(es, ax)?;
    c.mov(word_ptr(0x10u32).es(), 0xBEEFu32)?;
    c.movzx(eax, word_ptr(SCRATCH + 0x10))?;
    expect32(c, s, "ES:0010 seen through DS", eax, 0xBEEF)?;
    c.mov(bp, SCRATCH + 0x10)?;
    c.movzx(eax, word_ptr(bp))?;
    expect32(c, s, "the same through SS:BP", eax, 0xBEEF)?;
    c.mov(bx, 0xFFF8u32)?;
    c.mov(si, 0x18)?;
    c.movzx(eax, word_ptr(bx + si).es())?;
    expect32(c, s, "BX + SI wraps at 64 KiB", eax, 0xBEEF)?;
    c.mov(ecx, 4)?;
    c.movzx(eax, word_ptr(ecx * 4 + SCRATCH))?;
    expect32(c, s, "32-bit addressing", eax, 0xBEEF)?;
    c.mov(ax, 0xFFFFu32)?;
    c.mov(fs, ax)?;
    // FFFF:0010 is 0x100000: with A20 on it is not address 0. Its content is unknown, so write and compare.
    c.mov(eax, dword_ptr(0u32))?;
    c.not(eax)?;
    c.mov(dword_ptr(0x10u32).fs(), eax)?;
    c.mov(ebx, dword_ptr(0u32))?;
    c.xor(eax, ebx)?;
    expect32(c, s, "FFFF:0010 is not 0000:0000 with A20 on", eax, 0xFFFF_FFFF)?;
    c.mov(dword_ptr(SCRATCH), 0x0C00_0010u32)?;
    c.les(di, dword_ptr(SCRATCH))?;
    c.movzx(eax, di)?;
    expect32(c, s, "LES offset", eax, 0x10)?;
    c.movzx(eax, word_ptr(di).es())?;
    expect32(c, s, "LES segment", eax, 0xBEEF)?;
    c.mov(bp, sp)?;
    c.push(0x1234)?;
    c.push(eax)?;
    c.mov(ax, bp)?;
    c.sub(ax, sp)?;
    c.mov(sp, bp)?;
    c.movzx(eax, ax)?;
    expect32(c, s, "bytes pushed by a 16-bit and a 32-bit PUSH", eax, 6)?;
    c.movzx(eax, word_ptr(bp - 2))?;
    expect32(c, s, "the word pushed", eax, 0x1234)?;
    c.xor(ax, ax)?;
    c.mov(es, ax)?;
    c.mov(fs, ax)?;
    end(c, s)
}

fn interrupts(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "real mode: interrupts and exceptions")?;
    c.stc()?;
    c.sti()?;
    c.int(VEC_RETURNS as i32)?;
    c.pushf()?;
    c.cli()?;
    c.pop(bx)?;
    c.movzx(ebx, bx)?;
    c.and(ebx, 0x201)?;
    expect32(c, s, "carry and interrupt flag after IRET", ebx, 0x201)?;
    expect_var(c, s, "the same inside the handler", SCRATCH_VAR, 1)?;
    expect_var(c, s, "the same in the saved flags", SCRATCH_VAR2, 0x201)?;
    c.xor(cx, cx)?;
    expect_exception(c, s, "division by zero", (0, 0), Saved::This, |c| c.div(cx))?;
    expect_exception(c, s, "UD2", (6, 0), Saved::This, |c| c.ud2())?;
    expect_var(c, s, "saved CS", EXC_CS, ROM_SEGMENT.into())?;
    c.mov(dword_ptr(SCRATCH), 0x0005_0003u32)?;
    c.mov(ax, 9)?;
    expect_exception(c, s, "BOUND", (5, 0), Saved::This, |c| c.bound(ax, dword_ptr(SCRATCH)))?;
    end(c, s)
}

fn strings(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "real mode: string instructions")?;
    let (from, to) = (SCRATCH + 0x100, SCRATCH + 0x200);
    c.mov(di, from)?;
    c.mov(al, 0x5A)?;
    c.mov(cx, 16)?;
    c.rep().stosb()?;
    c.mov(byte_ptr(from + 9), 0x77)?;
    c.movzx(eax, di)?;
    expect32(c, s, "DI after REP STOSB", eax, from + 16)?;
    c.mov(si, from)?;
    c.mov(di, to)?;
    c.mov(cx, 4)?;
    c.rep().movsd()?;
    c.mov(eax, dword_ptr(to + 8))?;
    expect32(c, s, "REP MOVSD", eax, 0x5A5A_775A)?;
    c.mov(di, to)?;
    c.mov(cx, 16)?;
    c.mov(al, 0x77)?;
    c.repne().scasb()?;
    c.movzx(eax, cx)?;
    expect_if(c, s, "ZF after REPNE SCASB", |c, to| c.je(to))?;
    expect32(c, s, "CX after REPNE SCASB", eax, 6)?;
    c.mov(byte_ptr(to + 12), 0)?;
    c.mov(si, from)?;
    c.mov(di, to)?;
    c.mov(cx, 16)?;
    c.repe().cmpsb()?;
    c.movzx(eax, cx)?;
    expect_if(c, s, "ZF clear after REPE CMPSB", |c, to| c.jne(to))?;
    expect32(c, s, "CX after REPE CMPSB", eax, 3)?;
    // Backwards, over itself, by one: moves 8 bytes up.
    c.std()?;
    c.mov(si, from + 15)?;
    c.mov(di, from + 16)?;
    c.mov(cx, 8)?;
    c.rep().movsb()?;
    c.cld()?;
    c.movzx(eax, word_ptr(from + 9))?;
    expect32(c, s, "backwards REP MOVSB", eax, 0x775A)?;
    c.mov(si, from + 9)?;
    c.xor(eax, eax)?;
    c.lodsb()?;
    expect32(c, s, "LODSB", eax, 0x5A)?;
    c.xor(cx, cx)?;
    c.mov(di, from)?;
    c.rep().stosb()?;
    c.movzx(eax, di)?;
    expect32(c, s, "DI after REP STOSB with CX = 0", eax, from)?;
    end(c, s)
}

/// Copies the GDT to RAM (the processor writes to it), switches and continues at `32.start`.
fn to_protected_mode(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "protected mode: entry")?;
    c.mov(si, s.off("gdt"))?;
    c.mov(di, GDT)?;
    c.mov(cx, u32::from(GDT_SIZE) / 2)?;
    c.add_instruction(rep_movsw_from_code()?)?;
    c.mov(word_ptr(SCRATCH), u32::from(GDT_SIZE) - 1)?;
    c.mov(dword_ptr(SCRATCH + 2), GDT)?;
    c.lgdt(fword_ptr(SCRATCH))?;
    c.mov(eax, cr0)?;
    c.or(eax, 1)?;
    c.mov(cr0, eax)?;
    c.add_instruction(Instruction::with_far_branch(Opcode::Jmp_ptr1632, CODE32, s.imm("32.start"))?)
}

/// The exception handlers and the vector table that names them.
fn vectors(c: &mut Code, s: &Symbols) -> R {
    let mut table = Vec::new();
    for vector in 0..32u32 {
        let name = format!("16.vector{vector}");
        c.label(&name)?;
        c.push(vector)?;
        c.jmp(s.to(16, "16.exception"))?;
        table.extend((s.off(&name) as u16).to_le_bytes());
        table.extend(ROM_SEGMENT.to_le_bytes());
    }
    c.data("ivt", &table)?;

    c.label("16.exception")?;
    c.xor(ax, ax)?;
    c.mov(ds, ax)?;
    c.mov(es, ax)?;
    for variable in [EXC_VECTOR, EXC_IP, EXC_CS, EXC_FLAGS] {
        c.pop(ax)?;
        c.movzx(eax, ax)?;
        c.mov(dword_ptr(variable), eax)?;
    }
    c.mov(dword_ptr(EXC_ERROR), 0)?;
    c.mov(eax, dword_ptr(RESUME))?;
    c.test(eax, eax)?;
    c.je(s.to(16, &routine(16, "unexpected")))?;
    c.mov(sp, word_ptr(RESUME_SP))?;
    c.jmp(ax)?;

    // The interrupt that returns: saves its own flags, and those on the stack.
    c.label("16.returns")?;
    c.push(bp)?;
    c.pushf()?;
    c.pop(ax)?;
    c.movzx(eax, ax)?;
    c.and(eax, 0x201)?;
    c.mov(dword_ptr(SCRATCH_VAR), eax)?;
    c.mov(bp, sp)?;
    c.movzx(eax, word_ptr(bp + 6))?;
    c.and(eax, 0x201)?;
    c.mov(dword_ptr(SCRATCH_VAR2), eax)?;
    c.pop(bp)?;
    c.clc()?;
    c.iret()
}
