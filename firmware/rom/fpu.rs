//! x87 and SSE2 in 64-bit mode: exact results, rounding modes, sticky flags, exceptions, FXSAVE.

use iced_x86::code_asm::*;

use super::layout::*;
use super::modes::{Saved, expect_exception};
use super::report::{begin, end, expect32, expect64};
use tessera_asm::{Code, R, Symbols};

/// Bits of 2^(1/2), 1/3 and 7/3 as double and extended precision.
const SQRT2: u64 = 0x3FF6_A09E_667F_3BCD;
const ONE: u64 = 0x3FF0_0000_0000_0000;
const TWO: u64 = 0x4000_0000_0000_0000;
const THREE: u64 = 0x4008_0000_0000_0000;
const THIRD: u64 = 0x3FD5_5555_5555_5555;

/// Default MXCSR and x87 control word.
const MXCSR: u32 = 0x1F80;
const CONTROL: u32 = 0x037F;

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    // CR0: MP and NE on, EM and TS off. CR4: OSFXSR, OSXMMEXCPT.
    c.mov(rax, cr0)?;
    c.and(eax, !0xCu32)?;
    c.or(eax, 0x22)?;
    c.mov(cr0, rax)?;
    c.mov(rax, cr4)?;
    c.or(eax, 0x600)?;
    c.mov(cr4, rax)?;
    x87(c, s)?;
    sse(c, s)
}

/// Puts a 64-bit constant into a variable of the scratch page. Clobbers RAX.
fn store(c: &mut Code, at: u32, value: u64) -> R {
    c.mov(rax, value)?;
    c.mov(qword_ptr(at), rax)
}

fn x87(c: &mut Code, s: &Symbols) -> R {
    let (int, out) = (SCRATCH, SCRATCH + 0x10);
    begin(c, s, "x87 floating point")?;
    c.fninit()?;
    c.fnstcw(word_ptr(out))?;
    c.movzx(eax, word_ptr(out))?;
    expect32(c, s, "control word after FNINIT", eax, CONTROL)?;
    c.mov(dword_ptr(int), 7)?;
    c.mov(dword_ptr(int + 4), 3)?;
    c.fild(dword_ptr(int))?;
    c.fidiv(dword_ptr(int + 4))?;
    c.fstp(tbyte_ptr(out))?;
    c.mov(rax, qword_ptr(out))?;
    expect64(c, s, "7 / 3, significand", rax, 0x9555_5555_5555_5555)?;
    c.movzx(eax, word_ptr(out + 8))?;
    expect32(c, s, "7 / 3, sign and exponent", eax, 0x4000)?;
    c.fnstsw(ax)?;
    c.and(eax, 0x3F)?;
    expect32(c, s, "7 / 3, inexact", eax, 0x20)?;
    c.fnclex()?;
    c.fld1()?;
    c.fadd_2(st0, st0)?;
    c.fsqrt()?;
    c.fst(qword_ptr(out))?;
    c.mov(rax, qword_ptr(out))?;
    expect64(c, s, "square root of 2 as double", rax, SQRT2)?;
    c.fstp(tbyte_ptr(out))?;
    c.mov(rax, qword_ptr(out))?;
    expect64(c, s, "square root of 2, significand", rax, 0xB504_F333_F9DE_6484)?;
    c.fldpi()?;
    c.fstp(tbyte_ptr(out))?;
    c.mov(rax, qword_ptr(out))?;
    expect64(c, s, "pi, significand", rax, 0xC90F_DAA2_2168_C235)?;
    // 2.5 as integer: to even, up, down, toward zero; and -2.5.
    store(c, int, 0x4004_0000_0000_0000)?;
    store(c, int + 8, 0xC004_0000_0000_0000)?;
    for (control, positive, negative) in
        [(0x037Fu32, 2u32, -2i32), (0x0B7F, 3, -2), (0x077F, 2, -3), (0x0F7F, 2, -2)]
    {
        c.mov(word_ptr(out), control)?;
        c.fldcw(word_ptr(out))?;
        c.fld(qword_ptr(int))?;
        c.fistp(dword_ptr(out))?;
        c.fld(qword_ptr(int + 8))?;
        c.fistp(dword_ptr(out + 4))?;
        c.mov(eax, dword_ptr(out))?;
        expect32(c, s, &format!("2.5 rounded with control word {control:04X}"), eax, positive)?;
        c.mov(eax, dword_ptr(out + 4))?;
        expect32(c, s, &format!("-2.5 rounded with control word {control:04X}"), eax, negative as u32)?;
    }
    c.fninit()?;
    c.fld1()?;
    c.fldz()?;
    c.fcomi(st0, st1)?;
    c.setb(al)?;
    c.movzx(eax, al)?;
    expect32(c, s, "FCOMI 0 < 1", eax, 1)?;
    c.fdivp(st1, st0)?; // 1 / 0
    c.fnstsw(ax)?;
    c.and(eax, 0x3F)?;
    expect32(c, s, "zero divide flag", eax, 4)?;
    c.fstp(qword_ptr(out))?;
    c.mov(rax, qword_ptr(out))?;
    expect64(c, s, "1 / 0", rax, 0x7FF0_0000_0000_0000)?;
    c.fstp(st0)?; // the stack is empty
    c.fnstsw(ax)?;
    c.and(eax, 0x41)?;
    expect32(c, s, "stack fault", eax, 0x41)?;
    c.fninit()?;
    c.mov(word_ptr(out), 0x037Bu32)?; // zero divide unmasked
    c.fldcw(word_ptr(out))?;
    c.fld1()?;
    c.fldz()?;
    c.fdivp(st1, st0)?;
    expect_exception(c, s, "#MF at the instruction after 1 / 0", (16, 0), Saved::This, |c| c.wait())?;
    c.fnclex()?;
    c.fninit()?;
    end(c, s)
}

fn sse(c: &mut Code, s: &Symbols) -> R {
    let (a, b, out) = (SCRATCH + 0x100, SCRATCH + 0x110, SCRATCH + 0x120);
    begin(c, s, "SSE and SSE2")?;
    c.mov(dword_ptr(out), MXCSR)?;
    c.ldmxcsr(dword_ptr(out))?;
    store(c, a, TWO)?;
    store(c, b, THREE)?;
    c.sqrtsd(xmm0, qword_ptr(a))?;
    c.movq(rax, xmm0)?;
    expect64(c, s, "SQRTSD of 2", rax, SQRT2)?;
    store(c, a, ONE)?;
    c.movsd_2(xmm1, qword_ptr(a))?;
    c.divsd(xmm1, qword_ptr(b))?;
    c.movq(rax, xmm1)?;
    expect64(c, s, "DIVSD 1 / 3", rax, THIRD)?;
    c.stmxcsr(dword_ptr(out))?;
    c.mov(eax, dword_ptr(out))?;
    expect32(c, s, "MXCSR after an inexact result", eax, MXCSR | 0x20)?;
    c.mov(dword_ptr(out), MXCSR | 0x4000)?; // up
    c.ldmxcsr(dword_ptr(out))?;
    c.movsd_2(xmm1, qword_ptr(a))?;
    c.divsd(xmm1, qword_ptr(b))?;
    c.movq(rax, xmm1)?;
    expect64(c, s, "DIVSD 1 / 3, rounded up", rax, THIRD + 1)?;
    store(c, a, 0x4004_0000_0000_0000)?;
    c.cvtsd2si(rax, qword_ptr(a))?;
    expect64(c, s, "CVTSD2SI of 2.5, rounded up", rax, 3)?;
    c.cvttsd2si(rax, qword_ptr(a))?;
    expect64(c, s, "CVTTSD2SI of 2.5", rax, 2)?;
    c.mov(dword_ptr(out), MXCSR)?;
    c.ldmxcsr(dword_ptr(out))?;
    store(c, a, 0x4340_0000_0000_0000)?; // 2^53
    c.mulsd(xmm0, qword_ptr(a))?;
    c.cvtsd2si(rax, xmm0)?;
    expect64(c, s, "MULSD by 2^53", rax, 0x2D_413C_CCFE_779A)?;
    store(c, a, u64::MAX)?; // NaN
    c.cvttsd2si(rax, qword_ptr(a))?;
    expect64(c, s, "CVTTSD2SI of NaN", rax, 1 << 63)?;
    // Packed: four singles 1, 2, 3, 4 plus themselves.
    store(c, a, 0x4000_0000_3F80_0000)?;
    store(c, a + 8, 0x4080_0000_4040_0000)?;
    c.movaps(xmm2, xmmword_ptr(a))?;
    c.addps(xmm2, xmm2)?;
    c.movups(xmmword_ptr(out + 1), xmm2)?;
    c.mov(rax, qword_ptr(out + 9))?;
    expect64(c, s, "ADDPS, upper half", rax, 0x4100_0000_40C0_0000)?;
    store(c, a, 0xFFFF_FFFF_0000_0001)?;
    store(c, a + 8, 0x8000_0000_7FFF_FFFF)?;
    c.movdqa(xmm3, xmmword_ptr(a))?;
    c.pshufd(xmm4, xmm3, 0x1B)?;
    c.paddd(xmm4, xmm3)?;
    c.movq(rax, xmm4)?;
    expect64(c, s, "PSHUFD and PADDD", rax, 0x7FFF_FFFE_8000_0001)?;
    c.pxor(xmm5, xmm5)?;
    c.pcmpeqb(xmm5, xmm3)?;
    c.pmovmskb(eax, xmm5)?;
    expect32(c, s, "PCMPEQB and PMOVMSKB", eax, 0x700E)?;
    c.paddsw(xmm3, xmm3)?;
    c.movq(rax, xmm3)?;
    expect64(c, s, "PADDSW", rax, 0xFFFE_FFFE_0000_0002)?;
    c.ucomisd(xmm0, qword_ptr(b))?; // 2^53.5 and 3
    c.seta(al)?;
    c.movzx(eax, al)?;
    expect32(c, s, "UCOMISD", eax, 1)?;

    // FXSAVE keeps everything over a change.
    let area = SCRATCH + 0x400;
    c.movdqa(xmm9, xmm4)?;
    c.fninit()?;
    c.fldpi()?;
    c.fxsave(xmmword_ptr_512(area))?;
    c.pxor(xmm9, xmm9)?;
    c.fninit()?;
    c.fxrstor(xmmword_ptr_512(area))?;
    c.movq(rax, xmm9)?;
    expect64(c, s, "XMM9 after FXSAVE and FXRSTOR", rax, 0x7FFF_FFFE_8000_0001)?;
    c.fstp(tbyte_ptr(out))?;
    c.mov(rax, qword_ptr(out))?;
    expect64(c, s, "ST0 after FXSAVE and FXRSTOR", rax, 0xC90F_DAA2_2168_C235)?;

    // Zero divide: masked it is a flag, unmasked an exception.
    c.fninit()?;
    c.pxor(xmm6, xmm6)?;
    store(c, a, ONE)?;
    c.movsd_2(xmm7, qword_ptr(a))?;
    c.divsd(xmm7, xmm6)?;
    c.movq(rax, xmm7)?;
    expect64(c, s, "1 / 0", rax, 0x7FF0_0000_0000_0000)?;
    c.stmxcsr(dword_ptr(out))?;
    c.mov(eax, dword_ptr(out))?;
    c.and(eax, 4)?;
    expect32(c, s, "MXCSR.ZE", eax, 4)?;
    c.mov(dword_ptr(out), MXCSR & !0x200)?;
    c.ldmxcsr(dword_ptr(out))?;
    c.movsd_2(xmm7, qword_ptr(a))?;
    expect_exception(c, s, "#XM", (19, 0), Saved::This, |c| c.divsd(xmm7, xmm6))?;
    c.movq(rax, xmm7)?;
    expect64(c, s, "destination of the instruction that raised #XM", rax, ONE)?;
    c.mov(dword_ptr(out), MXCSR)?;
    c.ldmxcsr(dword_ptr(out))?;
    c.movaps(xmm0, xmm1)?;
    expect_exception(c, s, "misaligned MOVAPS", (13, 0), Saved::This, |c| {
        c.movaps(xmm0, xmmword_ptr(SCRATCH + 0x104))
    })?;
    c.mov(rax, cr0)?;
    c.or(eax, 8)?;
    c.mov(cr0, rax)?;
    expect_exception(c, s, "#NM by an SSE instruction with CR0.TS", (7, 0), Saved::This, |c| {
        c.xorps(xmm0, xmm0)
    })?;
    c.clts()?;
    end(c, s)
}

/// The operand of FXSAVE and FXRSTOR.
fn xmmword_ptr_512(at: u32) -> AsmMemoryOperand {
    ptr(at)
}
