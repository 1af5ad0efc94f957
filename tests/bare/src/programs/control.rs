//! Control registers, model-specific registers, CPUID, time-stamp counter, UMIP, extended state (Intel SDM volume 3A, chapters 2
//! and 13; volume 4).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;

const UMIP: u32 = 1 << 11;
const OSXSAVE: u32 = 1 << 18;
const EFER: u32 = 0xC000_0080;
const FMASK: u32 = 0xC000_0084;
const TSC_AUX: u32 = 0xC000_0103;
const PAT: u32 = 0x277;

pub fn emit(k: &mut Kit) -> R {
    control_registers(k)?;
    model_specific(k)?;
    identification(k)?;
    time(k)?;
    user_mode_prevention(k)?;
    extended_state(k)
}

fn control_registers(k: &mut Kit) -> R {
    k.check("CR0: combinations and reserved bits", "3A, 2.5; 2B, MOV", |k| {
        code!(k; mov(rax, cr0); or(eax, 0x2000_0000); and(eax, 0xBFFF_FFFFu32));
        k.raises("NW without CD", gp(0), |k| k.mov(cr0, rax))?;
        code!(k; mov(rax, cr0); and(eax, 0xFFFF_FFFEu32));
        k.raises("PG without PE", gp(0), |k| k.mov(cr0, rax))?;
        // ET is always set, reserved bits in the lower half stay clear.
        code!(k; mov(rax, cr0); mov(rbx, rax); and(eax, !0x10); or(eax, 0x40); mov(cr0, rax); mov(rcx, cr0);
            mov(cr0, rbx); and(ecx, 0x50));
        k.eq("ET and bit 6", ecx, 0x10)
    })?;
    k.check("CR4: reserved bits", "3A, 2.5; 2B, MOV", |k| {
        for bit in [1u64 << 15, 1 << 31, 1 << 32, 1 << 63] {
            code!(k; mov(rax, cr4); mov(rbx, bit); or(rax, rbx));
            k.raises("reserved bit", gp(0), |k| k.mov(cr4, rax))?;
        }
        Ok(())
    })?;
    k.check("CR3: reserved bits", "3A, 4.5.2; 2B, MOV", |k| {
        code!(k; mov(rax, cr3); mov(rbx, 1u64 << 60); or(rax, rbx));
        k.raises("bit 60", gp(0), |k| k.mov(cr3, rax))?;
        code!(k; mov(rax, cr3); mov(rbx, 1u64 << 63); or(rax, rbx));
        k.raises("bit 63 without PCIDE", gp(0), |k| k.mov(cr3, rax))
    })?;
    k.check("CR2 and CR8", "3A, 2.5 and 10.8.6; 2B, MOV", |k| {
        code!(k; mov(rax, 0x1234_5678_9ABC_DEF0u64); mov(cr2, rax); mov(rbx, cr2); mov(eax, 7); mov(cr8, rax);
            mov(rcx, cr8));
        k.eq64("CR2", rbx, 0x1234_5678_9ABC_DEF0)?;
        k.eq64("CR8", rcx, 7)?;
        code!(k; mov(eax, 0xFEE0_0080u32); mov(ebx, dword_ptr(rax)); and(ebx, 0xFF));
        k.eq("the local APIC's task priority", ebx, 0x70)?;
        code!(k; mov(eax, 16));
        k.raises("CR8 = 16", gp(0), |k| k.mov(cr8, rax))?;
        code!(k; xor(eax, eax); mov(cr8, rax));
        k.user("MOV from CR8 in ring 3", gp(0), |k| k.faulting(|k| k.mov(rax, cr8)))
    })?;
    k.check("SMSW, LMSW, CLTS", "2B, SMSW; 2A, LMSW, CLTS", |k| {
        code!(k; mov(rbx, cr0); smsw(rax); cmp(rax, rbx));
        k.holds("SMSW of 64 bits", |c, to| c.je(to))?;
        code!(k; mov(eax, 0xFFFF_0009u32); lmsw(ax); mov(rbx, cr0); clts(); mov(rcx, cr0); and(ebx, 0xF);
            and(ecx, 0xF));
        k.eq("MP, EM, TS, PE by LMSW", ebx, 9)?;
        k.eq("after CLTS", ecx, 1)?;
        code!(k; xor(eax, eax); lmsw(ax); mov(rbx, cr0); and(ebx, 1));
        k.eq("LMSW cannot clear PE", ebx, 1)
    })?;
    k.check("debug registers and CR4.DE", "3B, 17.2.2; 2B, MOV", |k| {
        k.cr4_bits(0, 8)?;
        code!(k; mov(eax, 0x1234); mov(rbx, 1u64 << 32); raw(&[0x0F, 0x23, 0xF0]); mov(eax, 0xFFFF_0FF0u32);
            mov(dr6, rax); raw(&[0x0F, 0x21, 0xE1]));
        k.eq("DR4 is DR6 without DE", ecx, 0xFFFF_0FF0)?;
        k.cr4_bits(8, 0)?;
        k.raises("DR4 with DE", UD, |k| k.faulting(|k| k.raw(&[0x0F, 0x21, 0xE1])))?;
        k.raises("DR5 with DE", UD, |k| k.faulting(|k| k.raw(&[0x0F, 0x23, 0xE8])))?;
        k.cr4_bits(0, 8)?;
        code!(k; mov(rax, rbx));
        k.raises("upper half of DR6", gp(0), |k| k.mov(dr6, rax))?;
        code!(k; mov(rax, rbx));
        k.raises("upper half of DR7", gp(0), |k| k.mov(dr7, rax))?;
        code!(k; mov(rax, 0x1234_5678_9ABCu64); mov(dr2, rax); mov(rcx, dr2); xor(eax, eax); mov(dr7, rax);
            mov(rdx, dr7); mov(dr6, rax); mov(rsi, dr6));
        k.eq64("DR2", rcx, 0x1234_5678_9ABC)?;
        k.eq64("DR7: bit 10 is set", rdx, 0x400)?;
        k.eq64("DR6: reserved bits", rsi, 0xFFFF_0FF0)
    })
}

fn model_specific(k: &mut Kit) -> R {
    k.check("unknown registers", "2C, RDMSR; 2D, WRMSR", |k| {
        for index in [0x3FFFu32, 0x2000_0000, 0x4000_0FFF, 0xC000_0FFF, 0xFFFF_FFFF] {
            code!(k; mov(ecx, index));
            k.raises("RDMSR", gp(0), |k| k.faulting(|k| k.rdmsr()))?;
            code!(k; xor(eax, eax); xor(edx, edx));
            k.raises("WRMSR", gp(0), |k| k.faulting(|k| k.wrmsr()))?;
        }
        Ok(())
    })?;
    k.check("reserved bits", "4, 2.1; 3A, 11.12.4", |k| {
        for (what, index, value) in [
            ("EFER bit 1", EFER, 0xD03u64),
            ("EFER bit 32", EFER, 0x1_0000_0D01),
            ("FMASK, upper half", FMASK, 1 << 32),
            ("TSC_AUX, upper half", TSC_AUX, 1 << 32),
            ("PAT with type 2", PAT, 0x0007_0406_0007_0402),
            ("APIC base, reserved bit", 0x1B, 0xFEE0_0901),
            ("MTRR type 2", 0x2FF, 0xC02),
            ("MTRR base, reserved bit", 0x200, 0x106),
            ("MTRR capabilities", 0xFE, 0x508),
        ] {
            code!(k; mov(ecx, index); mov(eax, value as u32); mov(edx, (value >> 32) as u32));
            k.raises(what, gp(0), |k| k.faulting(|k| k.wrmsr()))?;
        }
        Ok(())
    })?;
    k.check("RDMSR and WRMSR use 32-bit halves", "2C, RDMSR", |k| {
        code!(k; mov(rax, 0xAAAA_AAAA_0000_0077u64); mov(rdx, 0xBBBB_BBBB_0000_0000u64);
            mov(rcx, 0xCCCC_CCCC_0000_0000u64 | u64::from(TSC_AUX));
            wrmsr(); mov(rax, -1i64); mov(rdx, -1i64); rdmsr());
        k.eq64("RAX", rax, 0x77)?;
        k.eq64("RDX", rdx, 0)
    })?;
    k.check("PAT and MTRRs keep what is written", "3A, 11.11 and 11.12", |k| {
        for (index, value) in [(PAT, 0x0105_0406_0007_0506u64), (0x2FF, 0xC06), (0x200, 0x8000_0006), (0x201, 0xF_8000_0800), (0x250, 0x0606_0606_0606_0606)]
        {
            code!(k; mov(ecx, index); rdmsr(); mov(esi, eax); mov(edi, edx));
            k.msr(index, value)?;
            code!(k; rdmsr(); mov(rbx, rdx); shl(rbx, 32); or(rbx, rax); mov(eax, esi); mov(edx, edi); wrmsr());
            k.eq64("value", rbx, value)?;
        }
        Ok(())
    })
}

fn identification(k: &mut Kit) -> R {
    k.check("CPUID", "2A, CPUID", |k| {
        code!(k; mov(rax, 0xFFFF_FFFF_0000_0000u64); mov(rbx, -1i64); xor(ecx, ecx); cpuid(); shr(rbx, 32);
            mov(rsi, rax); shr(rsi, 32));
        k.eq64("upper half of RAX", rsi, 0)?;
        k.eq64("upper half of RBX", rbx, 0)?;
        // Beyond the last basic leaf: what the last one says.
        code!(k; mov(r8d, eax); mov(ecx, 0); cpuid(); mov(r9d, eax); mov(r10d, ebx); mov(eax, 0x4FFF_FFFF);
            xor(ecx, ecx); cpuid());
        let ok = k.fresh();
        code!(k; cmp(eax, r9d); jne(k.to(&ok)); cmp(ebx, r10d));
        k.label(&ok)?;
        code!(k; mov(eax, 1); cpuid(); and(edx, 0x0780_B97Fu32); and(ecx, 1));
        k.eq("what 64-bit mode implies", edx, 0x0780_B97F)?;
        k.eq("SSE3", ecx, 1)
    })?;
    k.check("CPUID shows CR4.OSXSAVE", "2A, CPUID", |k| {
        k.cr4_bits(0, OSXSAVE)?;
        code!(k; mov(eax, 1); cpuid(); mov(esi, ecx); and(esi, 1 << 27));
        k.cr4_bits(OSXSAVE, 0)?;
        code!(k; mov(eax, 1); cpuid(); mov(edi, ecx); and(edi, 1 << 27));
        k.cr4_bits(0, OSXSAVE)?;
        k.eq("OSXSAVE clear", esi, 0)?;
        k.eq("OSXSAVE set", edi, 1 << 27)
    })?;
    k.check("flag ID can be changed", "2A, CPUID", |k| {
        code!(k; pushfq(); pop(rax); mov(rbx, rax); xor(eax, 0x20_0000); push(rax); popfq(); pushfq();
            pop(rcx); push(rbx); popfq(); xor(ecx, ebx));
        k.eq("bits that changed", ecx, 0x20_0000)
    })
}

fn time(k: &mut Kit) -> R {
    k.check("RDTSC, RDTSCP, RDPID", "2C, RDTSC, RDTSCP, RDPID", |k| {
        k.msr(TSC_AUX, 0x1234_5678)?;
        code!(k; mov(rax, -1i64); mov(rdx, -1i64); rdtsc(); mov(rbx, rdx); shr(rbx, 32); mov(rsi, rax);
            shr(rsi, 32); shl(rdx, 32); or(rdx, rax); mov(rdi, rdx));
        k.eq64("upper half of RDX", rbx, 0)?;
        k.eq64("upper half of RAX", rsi, 0)?;
        code!(k; mov(rcx, -1i64); rdtscp(); shl(rdx, 32); or(rdx, rax); cmp(rdx, rdi));
        k.holds("time goes on", |c, to| c.jae(to))?;
        k.eq64("RDTSCP's RCX", rcx, 0x1234_5678)?;
        code!(k; rdpid(rbx));
        k.eq64("RDPID", rbx, 0x1234_5678)
    })?;
    k.check("CR4.TSD", "3A, 2.5; 2C, RDTSC", |k| {
        k.user("RDTSC in ring 3", UD.anywhere(), |k| {
            code!(k; rdtsc(); rdtscp(); ud2());
            Ok(())
        })?;
        k.cr4_bits(4, 0)?;
        k.rdtsc()?;
        k.user("RDTSC with TSD", gp(0), |k| k.faulting(|k| k.rdtsc()))?;
        k.user("RDTSCP with TSD", gp(0), |k| k.faulting(|k| k.rdtscp()))
    })?;
    k.check("writing the time-stamp counter", "3B, 17.17.3", |k| {
        code!(k; mov(ecx, 0x3B); rdmsr(); mov(r8d, eax); mov(r9d, edx));
        k.msr(0x10, 0x1000_0000_0000_0000)?;
        code!(k; rdtsc(); mov(ebx, edx));
        k.eq("upper half", ebx, 0x1000_0000)?;
        // Put right for whoever measures time.
        code!(k; mov(ecx, 0x3B); mov(eax, r8d); mov(edx, r9d); wrmsr());
        Ok(())
    })?;
    k.check("RDPMC", "2C, RDPMC", |k| {
        k.cr4_bits(0, 0x100)?;
        k.user("in ring 3 without PCE", gp(0), |k| {
            code!(k; xor(ecx, ecx));
            k.faulting(|k| k.rdpmc())
        })?;
        code!(k; mov(ecx, 0x3FFF_FFFF));
        k.raises("a counter that is not there", gp(0), |k| k.faulting(|k| k.rdpmc()))
    })
}

fn user_mode_prevention(k: &mut Kit) -> R {
    k.check("UMIP", "3A, 2.5; 2B, SGDT, SIDT, SLDT, SMSW, STR", |k| {
        type Emit = fn(&mut Kit) -> R;
        let list: [(&str, Emit); 5] = [
            ("SGDT", |k| k.sgdt(tbyte_ptr(USER_ALIAS + SCRATCH))),
            ("SIDT", |k| k.sidt(tbyte_ptr(USER_ALIAS + SCRATCH))),
            ("SLDT", |k| k.sldt(eax)),
            ("SMSW", |k| k.smsw(eax)),
            ("STR", |k| k.str(eax)),
        ];
        for (what, emit) in list {
            k.cr4_bits(0, UMIP)?;
            k.user(what, UD.anywhere(), |k| {
                emit(k)?;
                k.ud2()
            })?;
            k.cr4_bits(UMIP, 0)?;
            k.user(what, gp(0), |k| k.faulting(emit))?;
            k.cr4_bits(UMIP, 0)?;
            emit(k)?;
        }
        k.cr4_bits(0, UMIP)
    })
}

fn extended_state(k: &mut Kit) -> R {
    k.check("XSETBV and XGETBV", "2D, XSETBV, XGETBV; 1, 13.3", |k| {
        k.cr4_bits(0, OSXSAVE)?;
        code!(k; xor(ecx, ecx));
        k.raises("XGETBV without OSXSAVE", UD, |k| k.faulting(|k| k.xgetbv()))?;
        k.raises("XSETBV without OSXSAVE", UD, |k| k.faulting(|k| k.xsetbv()))?;
        k.raises("XSAVE without OSXSAVE", UD, |k| k.faulting(|k| k.xsave(ptr(rbx))))?;
        k.cr4_bits(OSXSAVE, 0)?;
        code!(k; xor(ecx, ecx); xgetbv(); mov(r8d, eax); and(eax, 1));
        k.eq("x87 is always enabled", eax, 1)?;
        for (what, index, value) in [
            ("without x87", 0u32, 2u64),
            ("reserved bit", 0, 1 | 1 << 62),
            ("XCR1", 1, 1),
            ("AVX without SSE", 0, 5),
        ] {
            code!(k; mov(ecx, index); mov(eax, value as u32); mov(edx, (value >> 32) as u32));
            k.raises(what, gp(0), |k| k.faulting(|k| k.xsetbv()))?;
        }
        code!(k; mov(ecx, 2));
        k.raises("XGETBV of XCR2", gp(0), |k| k.faulting(|k| k.xgetbv()))?;
        code!(k; xor(ecx, ecx); xor(edx, edx); mov(eax, 3); xsetbv(); xgetbv(); mov(ebx, eax); mov(eax, r8d);
            xsetbv());
        k.eq("XCR0", ebx, 3)?;
        k.user("XSETBV in ring 3", gp(0), |k| {
            code!(k; xor(ecx, ecx); xor(edx, edx); mov(eax, 1));
            k.faulting(|k| k.xsetbv())
        })?;
        k.user("XGETBV in ring 3", UD.anywhere(), |k| {
            code!(k; xor(ecx, ecx); xgetbv(); ud2());
            Ok(())
        })?;
        k.cr4_bits(0, OSXSAVE)
    })?;
    k.check("XSAVE and XRSTOR", "1, 13.7 and 13.8; 2D, XSAVE, XRSTOR", |k| {
        k.cr4_bits(OSXSAVE, 0)?;
        // An area of PAGES: zeros but for what the instruction writes.
        let clear = |k: &mut Kit| {
            code!(k; mov(edi, PAGES); xor(eax, eax); mov(ecx, 256));
            k.rep().stosd()
        };
        code!(k; xor(ecx, ecx); xor(edx, edx); mov(eax, 3); xsetbv(); mov(ebx, PAGES));
        clear(k)?;
        code!(k; mov(eax, 0x4711); movd(xmm3, eax); fninit(); fld1(); mov(eax, 3); xor(edx, edx);
            xsave(ptr(rbx)));
        k.var("XSTATE_BV", PAGES + 512, 3)?;
        k.var("XMM3", PAGES + 160 + 48, 0x4711)?;
        k.var("ST0", PAGES + 32 + 4, 0x8000_0000)?;
        code!(k; pxor(xmm3, xmm3); fninit(); mov(eax, 3); xor(edx, edx); xrstor(ptr(rbx)); movd(ecx, xmm3));
        k.eq("XMM3 restored", ecx, 0x4711)?;
        // A component whose bit is clear gets its initial value.
        code!(k; and(dword_ptr(PAGES + 512), !2u32); mov(eax, 3); xor(edx, edx); xrstor(ptr(rbx));
            movd(ecx, xmm3));
        k.eq("XMM3 initialised", ecx, 0)?;
        code!(k; mov(ebx, PAGES + 8); mov(eax, 3); xor(edx, edx));
        k.raises("XSAVE not aligned", gp(0), |k| k.faulting(|k| k.xsave(ptr(rbx))))?;
        code!(k; mov(ebx, PAGES); mov(dword_ptr(PAGES + 512 + 4), 0x4000_0000); mov(eax, 3); xor(edx, edx));
        k.raises("XSTATE_BV beyond XCR0", gp(0), |k| k.faulting(|k| k.xrstor(ptr(rbx))))?;
        code!(k; mov(dword_ptr(PAGES + 512 + 4), 0); mov(dword_ptr(PAGES + 520), 1); mov(eax, 3);
            xor(edx, edx));
        k.raises("reserved header bytes", gp(0), |k| k.faulting(|k| k.xrstor(ptr(rbx))))?;
        code!(k; mov(dword_ptr(PAGES + 520), 0); mov(dword_ptr(PAGES + 24), 0xFFFF_0000u32);
            or(dword_ptr(PAGES + 512), 2); mov(eax, 3); xor(edx, edx));
        k.raises("reserved bits of MXCSR", gp(0), |k| k.faulting(|k| k.xrstor(ptr(rbx))))?;
        k.cr4_bits(0, OSXSAVE)
    })?;
    k.check("XSAVE writes what is asked for", "1, 13.7 to 13.10", |k| {
        k.cr4_bits(OSXSAVE, 0)?;
        code!(k; xor(ecx, ecx); xor(edx, edx); mov(eax, 3); xsetbv(); mov(ebx, PAGES); mov(edi, PAGES);
            mov(eax, -1); mov(ecx, 128));
        k.rep().stosd()?;
        code!(k; xor(eax, eax); mov(ecx, 128));
        k.rep().stosd()?;
        // x87 alone.
        code!(k; mov(eax, 0x4711); movd(xmm0, eax); fninit(); fld1(); mov(eax, 1); xor(edx, edx);
            xsave(ptr(rbx)));
        k.var("XSTATE_BV", PAGES + 512, 1)?;
        k.var("XMM0 is not written", PAGES + 160, 0xFFFF_FFFF)?;
        // XSAVEOPT and XSAVEC leave out what is in its initial state.
        code!(k; mov(eax, 3); xor(edx, edx); fninit(); xsavec(ptr(rbx)));
        k.masked("XSTATE_BV by XSAVEC", PAGES + 512, 2, 2)?;
        k.var("XCOMP_BV, low", PAGES + 520, 3)?;
        k.var("XCOMP_BV, high", PAGES + 524, 0x8000_0000)?;
        code!(k; pxor(xmm0, xmm0); mov(eax, 3); xrstor(ptr(rbx)); movd(ecx, xmm0));
        k.eq("XMM0 by the compacted form", ecx, 0x4711)?;
        k.cr4_bits(0, OSXSAVE)
    })?;
    k.check("FXSAVE and FXRSTOR", "2A, FXSAVE, FXRSTOR", |k| {
        code!(k; mov(ebx, PAGES); fninit(); fld1(); mov(eax, 0x99); movd(xmm15, eax); fxsave64(ptr(rbx));
            pxor(xmm15, xmm15); fxrstor64(ptr(rbx));
            movd(ecx, xmm15));
        k.eq("XMM15", ecx, 0x99)?;
        k.masked("abridged tag word", PAGES + 4, 0xFF, 0x80)?;
        code!(k; mov(ebx, PAGES + 8));
        k.raises("not aligned", gp(0), |k| k.faulting(|k| k.fxsave(ptr(rbx))))?;
        code!(k; mov(ebx, PAGES); mov(dword_ptr(PAGES + 24), 0x8000_0000u32));
        k.raises("reserved bits of MXCSR", gp(0), |k| k.faulting(|k| k.fxrstor(ptr(rbx))))?;
        k.cr0_bits(8, 0)?;
        code!(k; mov(ebx, PAGES));
        k.raises("with TS", NM, |k| k.faulting(|k| k.fxsave(ptr(rbx))))
    })
}
