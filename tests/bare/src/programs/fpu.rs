//! What x87, SSE and AVX need from the system side: TS, EM, MP, numeric errors native and by IRQ 13, #XM, alignment check
//! (Intel SDM volume 1, chapters 8 and 11; volume 3A, sections 2.5 and 6.15).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const MP: u32 = 2;
const EM: u32 = 4;
const TS: u32 = 8;
const NE: u32 = 0x20;
const OSXMMEXCPT: u32 = 0x400;
const OSXSAVE: u32 = 1 << 18;
const AM: u32 = 1 << 18;

pub fn emit(k: &mut Kit) -> R {
    availability(k)?;
    numeric_errors(k)?;
    simd_errors(k)?;
    alignment(k)
}

fn availability(k: &mut Kit) -> R {
    k.check("TS, EM and MP", "3A, 2.5 and table 2-2", |k| {
        for (set, x87, wait) in [
            (0, None, None),
            (MP, None, None),
            (TS, Some(7), None),
            (TS | MP, Some(7), Some(7)),
            (EM, Some(7), None),
            (EM | MP, Some(7), None),
            (EM | TS, Some(7), None),
            (EM | TS | MP, Some(7), Some(7)),
        ] {
            k.cr0_bits(set, (MP | EM | TS) & !set)?;
            match x87 {
                Some(_) => k.raises("x87 instruction", NM, |k| k.faulting(|k| k.fnop()))?,
                None => k.fnop()?,
            }
            match wait {
                Some(_) => k.raises("WAIT", NM, |k| k.faulting(|k| k.wait()))?,
                None => k.wait()?,
            }
            let mmx = if set & EM != 0 {
                Some(UD)
            } else if set & TS != 0 {
                Some(NM)
            } else {
                None
            };
            match mmx {
                Some(exc) => {
                    k.raises("MMX instruction", exc, |k| k.faulting(|k| k.movq(mm0, mm1)))?;
                    k.raises("SSE instruction", exc, |k| k.faulting(|k| k.movaps(xmm0, xmm1)))?;
                }
                None => code!(k; movq(mm0, mm1); movaps(xmm0, xmm1); emms()),
            }
        }
        k.cr0_bits(MP, EM | TS)
    })?;
    k.check("OSFXSR, OSXSAVE and XCR0", "3A, 2.5 and 13.1; 2A, 2.4.3", |k| {
        k.cr4_bits(0, 0x200 | OSXSAVE)?;
        k.raises("SSE without OSFXSR", UD, |k| k.faulting(|k| k.movaps(xmm0, xmm1)))?;
        // Those of SSE that use no XMM register do not care.
        code!(k; sfence(); prefetcht0(byte_ptr(SCRATCH)));
        k.cr4_bits(0x200, 0)?;
        k.raises("AVX without OSXSAVE", UD, |k| k.faulting(|k| k.raw(&[0xC5, 0xF8, 0x28, 0xC1])))?;
        k.cr4_bits(OSXSAVE, 0)?;
        code!(k; xor(ecx, ecx); xor(edx, edx); mov(eax, 3); xsetbv());
        k.raises("AVX without XCR0.AVX", UD, |k| k.faulting(|k| k.raw(&[0xC5, 0xF8, 0x28, 0xC1])))?;
        k.cr4_bits(0, OSXSAVE)
    })
}

/// Leaves an unmasked divide-by-zero pending in the x87.
fn pending(k: &mut Kit) -> R {
    // Control word: all masked but #Z.
    code!(k; fninit(); mov(word_ptr(SCRATCH), 0x37B); fldcw(word_ptr(SCRATCH)); fld1(); fldz();
        fdivp(st1, st0));
    Ok(())
}

fn numeric_errors(k: &mut Kit) -> R {
    k.check("#MF comes with the next x87 instruction", "1, 8.6 and 8.7; 3A, 6.15 (#MF)", |k| {
        k.cr0_bits(NE, 0)?;
        pending(k)?;
        // Not with others, nor with those that do not wait.
        code!(k; nop(); fnstsw(word_ptr(SCRATCH + 2)); mov(ebx, dword_ptr(SCRATCH)); shr(ebx, 16);
            and(ebx, 0x80FF));
        k.eq("status: ES, ZE", ebx, 0x8084)?;
        k.raises("FLD1", MF, |k| k.faulting(|k| k.fld1()))?;
        k.raises("WAIT", MF, |k| k.faulting(|k| k.wait()))?;
        k.raises("MMX instruction", MF, |k| k.faulting(|k| k.movq(mm0, mm1)))?;
        code!(k; fnclex(); wait(); fninit());
        Ok(())
    })?;
    k.check("FNSAVE, FNSTENV and the like do not wait", "1, 8.3.11 and 8.6", |k| {
        k.cr0_bits(NE, 0)?;
        pending(k)?;
        code!(k; fnstenv(ptr(PAGES)); fnsave(ptr(PAGES + 0x100)); wait());
        k.masked("status by FNSTENV", PAGES + 4, 0x80FF, 0x8084)?;
        // FNSTENV has masked everything, so that nothing is pending any more.
        k.masked("status by FNSAVE", PAGES + 0x104, 0x80FF, 4)?;
        k.masked("control word by FNSAVE", PAGES + 0x100, 0x3F, 0x3F)
    })?;
    k.check("with NE clear, the error goes to IRQ 13", "1, 8.7.2; 3A, 2.5", |k| {
        // The old interrupt controllers: vectors 0x68 and 0x70, all masked but 13 and the cascade.
        for (port, value) in [
            (0x20u32, 0x11u32),
            (0x21, 0x68),
            (0x21, 4),
            (0x21, 1),
            (0xA0, 0x11),
            (0xA1, 0x70),
            (0xA1, 2),
            (0xA1, 1),
            (0x21, 0xFB),
            (0xA1, 0xDF),
        ] {
            code!(k; mov(al, value); out(port as i32, al));
        }
        k.aside("irq13", |k| {
            code!(k; push(rax); inc(dword_ptr(V[0])); xor(eax, eax); out(0xF0, al); fnclex(); mov(al, 0x20);
                out(0xA0, al); out(0x20, al); pop(rax); iretq());
            Ok(())
        })?;
        let handler = k.imm("irq13");
        k.idt(0x75, gate(CODE64, handler, INT32, 0))?;
        // LINT0 takes the old controllers' interrupts.
        code!(k; mov(eax, 0xFEE0_00F0u32); mov(dword_ptr(rax), 0x1FF); mov(eax, 0xFEE0_0350u32);
            mov(dword_ptr(rax), 0x700));
        k.cr0_bits(0, NE)?;
        pending(k)?;
        // The next waiting instruction freezes until the interrupt is taken.
        code!(k; sti(); nop(); wait(); fld1(); cli());
        k.var("interrupts", V[0], 1)?;
        code!(k; mov(al, 0xFFu32); out(0x21, al); out(0xA1, al); fninit());
        k.cr0_bits(NE, 0)
    })
}

fn simd_errors(k: &mut Kit) -> R {
    k.check("#XM and OSXMMEXCPT", "1, 11.5; 3A, 6.15 (#XM)", |k| {
        code!(k; mov(dword_ptr(SCRATCH), 0x1D80); ldmxcsr(dword_ptr(SCRATCH)); mov(eax, 0x3F80_0000);
            movd(xmm0, eax); pxor(xmm1, xmm1));
        k.raises("DIVSS by zero", XM, |k| k.divss(xmm0, xmm1))?;
        code!(k; movd(ebx, xmm0); stmxcsr(dword_ptr(SCRATCH)); mov(ecx, dword_ptr(SCRATCH)); and(ecx, 0x3F));
        k.eq("destination unchanged", ebx, 0x3F80_0000)?;
        k.eq("flags", ecx, 4)?;
        k.cr4_bits(0, OSXMMEXCPT)?;
        k.raises("without OSXMMEXCPT", UD, |k| k.faulting(|k| k.divss(xmm0, xmm1)))?;
        k.cr4_bits(OSXMMEXCPT, 0)?;
        // Unmasked flags that are set already raise nothing.
        code!(k; mov(dword_ptr(SCRATCH), 0x1D84); ldmxcsr(dword_ptr(SCRATCH)); addss(xmm0, xmm0);
            mov(dword_ptr(SCRATCH), 0x1F80); ldmxcsr(dword_ptr(SCRATCH)));
        Ok(())
    })?;
    k.check(
        "reserved bits of MXCSR, operands that are not aligned",
        "1, 10.2.3; 2A, LDMXCSR; 3A, 6.15 (#GP)",
        |k| {
            code!(k; mov(dword_ptr(SCRATCH), 0x1_1F80));
            k.raises("LDMXCSR", gp(0), |k| k.faulting(|k| k.ldmxcsr(dword_ptr(SCRATCH))))?;
            k.raises("MOVAPS", gp(0), |k| k.faulting(|k| k.movaps(xmm0, xmmword_ptr(SCRATCH + 8))))?;
            k.raises("ADDPS", gp(0), |k| k.faulting(|k| k.addps(xmm0, xmmword_ptr(SCRATCH + 8))))?;
            k.raises("MOVNTDQ", gp(0), |k| k.faulting(|k| k.movntdq(xmmword_ptr(SCRATCH + 8), xmm0)))?;
            code!(k; mov(ebx, SCRATCH + 8));
            k.raises("CMPXCHG16B", gp(0), |k| k.faulting(|k| k.cmpxchg16b(xmmword_ptr(rbx))))
        },
    )
}

fn alignment(k: &mut Kit) -> R {
    let pushed = 0x4_0002;
    k.check("alignment check", "3A, 6.15 (#AC); 3A, 2.3", move |k| {
        k.cr0_bits(AM, 0)?;
        type Emit = fn(&mut Kit) -> R;
        let list: [(&str, bool, Emit); 13] = [
            ("word at 1", true, |k| k.mov(ax, word_ptr(rbx + 1))),
            ("doubleword at 2", true, |k| k.mov(eax, dword_ptr(rbx + 2))),
            ("quadword at 4", true, |k| k.mov(rax, qword_ptr(rbx + 4))),
            ("write of a doubleword at 1", true, |k| k.mov(dword_ptr(rbx + 1), eax)),
            ("doubleword at 4", false, |k| k.mov(eax, dword_ptr(rbx + 4))),
            ("byte at 1", false, |k| k.mov(al, byte_ptr(rbx + 1))),
            ("MOVUPS at 1", false, |k| k.movups(xmm0, xmmword_ptr(rbx + 16))),
            ("FLD of 4 bytes at 2", true, |k| k.fld(dword_ptr(rbx + 2))),
            ("FLD of 8 bytes at 4", true, |k| k.fld(qword_ptr(rbx + 4))),
            ("MOVSS at 2", true, |k| k.movss(xmm0, dword_ptr(rbx + 2))),
            ("XCHG at 2", true, |k| k.xchg(dword_ptr(rbx + 2), eax)),
            ("MOVSD at 2", true, |k| k.movsd()),
            ("PUSH at 4", true, |k| k.push(rax)),
        ];
        for (what, expected, emit) in list {
            let (inside, at, after) = (k.fresh(), k.fresh(), k.fresh());
            k.arm(&after)?;
            for value in [USER_DATA, STACK3 + USER_ALIAS - 4, pushed, USER64, k.user_imm(&inside)] {
                code!(k; mov(eax, value); push(rax));
            }
            code!(k; mov(ebx, USER_ALIAS + SCRATCH); mov(edi, USER_ALIAS + SCRATCH);
                mov(esi, USER_ALIAS + SCRATCH + 2); fninit());
            code!(k; iretq(); label(&inside); label(&at));
            emit(k)?;
            k.ud2()?;
            k.label(&after)?;
            let ip = k.user_imm(&at);
            if expected {
                k.seen(what, AC, Some(ip))?;
            } else {
                k.seen(what, UD, None)?;
            }
        }
        Ok(())
    })?;
    k.check("alignment check needs AM, AC and ring 3", "3A, 6.15 (#AC)", move |k| {
        k.cr0_bits(AM, 0)?;
        // Ring 0: AC means something else.
        code!(k; push(pushed as i32); popfq(); mov(eax, dword_ptr(SCRATCH + 1)); push(2); popfq());
        k.user("ring 3 without AC", UD.anywhere(), |k| {
            code!(k; mov(eax, dword_ptr(USER_ALIAS + SCRATCH + 1)); ud2());
            Ok(())
        })?;
        k.user("ring 3 sets AC itself", AC.anywhere(), |k| {
            code!(k; push(pushed as i32); popfq());
            k.faulting(|k| k.mov(eax, dword_ptr(USER_ALIAS + SCRATCH + 1)))
        })?;
        k.cr0_bits(0, AM)?;
        k.user("without AM", UD.anywhere(), |k| {
            code!(k; push(pushed as i32); popfq(); mov(eax, dword_ptr(USER_ALIAS + SCRATCH + 1)); ud2());
            Ok(())
        })
    })
}
