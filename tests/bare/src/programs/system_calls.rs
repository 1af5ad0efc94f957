//! System calls and segment bases in 64-bit mode: SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, RDFSBASE and their like (Intel SDM
//! volume 3A, sections 3.4.4, 5.8.7 and 5.8.8).

use iced_x86::code_asm::*;
use tessera_asm::R;

use super::long::frame;
use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const FLAT: u32 = 0xF_FFFF;
/// The first address that is not canonical.
const HOLE: u64 = 0x8000_0000_0000;

const EFER: u32 = 0xC000_0080;
const STAR: u32 = 0xC000_0081;
const LSTAR: u32 = 0xC000_0082;
const FMASK: u32 = 0xC000_0084;
const FS_BASE: u32 = 0xC000_0100;
const GS_BASE: u32 = 0xC000_0101;
const KERNEL_GS_BASE: u32 = 0xC000_0102;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const FSGSBASE: u32 = 1 << 16;

pub fn emit(k: &mut Kit) -> R {
    syscall(k)?;
    sysenter(k)?;
    bases(k)
}

fn syscall(k: &mut Kit) -> R {
    k.aside("syscall.entry", |k| {
        code!(k; mov(qword_ptr(V[0]), rcx); mov(qword_ptr(V[1]), r11); pushfq(); pop(qword_ptr(V[2]));
            mov(eax, cs); mov(dword_ptr(V[3]), eax); mov(eax, ss);
            mov(dword_ptr(V[4]), eax); mov(qword_ptr(V[5]), rsp); sysretq());
        Ok(())
    })?;
    let set_up = |k: &mut Kit, target: &str| {
        let (at, sysret_base) = (k.imm(target), u64::from(USER32 & !3));
        k.msr(EFER, 0xD01)?;
        k.msr(STAR, (sysret_base | 3) << 48 | u64::from(CODE64) << 32)?;
        k.msr(LSTAR, at.into())?;
        k.msr(FMASK, 0x4D5)
    };
    k.check("SYSCALL and SYSRET", "2B, SYSCALL, SYSRET; 3A, 5.8.8", move |k| {
        set_up(k, "syscall.entry")?;
        let (at, end) = (k.fresh(), k.fresh());
        k.user("after SYSRET", UD.anywhere(), |k| {
            code!(k; xor(eax, eax); stc(); std(); syscall(); label(&at); pushfq(); pop(rbx); mov(edx, ss);
                label(&end); ud2());
            Ok(())
        })?;
        let rip = k.user_imm(&at);
        k.var64("RCX", V[0], rip.into())?;
        k.masked("R11", V[1], 0xFFFF, 0x447)?;
        k.masked("flags in ring 0", V[2], 0xFFFF, 2)?;
        k.var("CS in ring 0", V[3], CODE64)?;
        k.var("SS in ring 0", V[4], DATA64)?;
        k.var64("RSP is that of ring 3", V[5], (STACK3 + USER_ALIAS).into())?;
        k.masked("flags afterwards", EXC_BX, 0xFFFF, 0x447)?;
        k.var("CS afterwards", EXC_CS, USER64)?;
        k.var("SS afterwards", EXC_DX, USER_DATA)
    })?;
    k.check("SYSRET to compatibility mode", "2B, SYSRET", move |k| {
        set_up(k, "syscall.entry")?;
        k.elsewhere(32, "sysret32", |k| {
            code!(k; inc(eax));
            k.label("sysret32.at")?;
            k.faulting(|k| k.hlt())
        });
        let after = k.fresh();
        k.arm(&after)?;
        code!(k; mov(ecx, k.imm("sysret32") + USER_ALIAS); mov(r11d, 0x202); mov(eax, 0x41); sysret();
            label(&after));
        let at = k.imm("sysret32.at") + USER_ALIAS;
        k.seen("HLT", gp(0), Some(at))?;
        k.var("CS", EXC_CS, USER32)?;
        k.var("SS", EXC_SS, USER_DATA)?;
        k.var("EAX", EXC_AX, 0x42)?;
        k.masked("flags", EXC_FLAGS, 0xFFFF, 0x206)
    })?;
    k.check("SYSRET and RF, VM", "2B, SYSRET", move |k| {
        set_up(k, "syscall.entry")?;
        let (inside, after) = (k.fresh(), k.fresh());
        k.arm(&after)?;
        code!(k; mov(ecx, k.user_imm(&inside)); mov(r11d, 0x3_0202); mov(esp, STACK3 + USER_ALIAS); sysretq();
            label(&inside); pushfq(); pop(rbx));
        k.faulting(|k| k.hlt())?;
        k.label(&after)?;
        k.seen("HLT", gp(0), None)?;
        k.masked("flags", EXC_FLAGS, 0x2_FFFF, 0x202)
    })?;
    k.check("SYSCALL and SYSRET that fail", "2B, SYSCALL, SYSRET", move |k| {
        set_up(k, "syscall.entry")?;
        k.user("SYSRET in ring 3", gp(0), |k| k.faulting(|k| k.sysretq()))?;
        code!(k; mov(rcx, HOLE));
        k.raises("SYSRET to what is not canonical", gp(0), |k| k.sysretq())?;
        k.var("CPL 0", EXC_CS, CODE64)?;
        k.msr(EFER, 0xD00)?;
        k.raises("SYSCALL without SCE", UD, |k| k.faulting(|k| k.syscall()))?;
        k.raises("SYSRET without SCE", UD, |k| k.faulting(|k| k.sysretq()))?;
        k.msr(EFER, 0xD01)?;
        k.elsewhere(32, "syscall32", |k| k.faulting(|k| k.raw(&[0x0F, 0x05])));
        let after = k.fresh();
        k.arm(&after)?;
        code!(k; mov(dword_ptr(SCRATCH), k.imm("syscall32")); mov(dword_ptr(SCRATCH + 4), CODE32);
            jmp(fword_ptr(SCRATCH)); label(&after));
        let at = k.imm("syscall32");
        k.seen("SYSCALL in compatibility mode", UD, Some(at))
    })
}

fn sysenter(k: &mut Kit) -> R {
    k.aside("sysenter.entry32", |k| {
        code!(k; mov(qword_ptr(V[3]), rsp); raw(&[0x0F, 0x35]));
        Ok(())
    })?;
    k.aside("sysenter.entry", |k| {
        code!(k; pushfq(); pop(qword_ptr(V[0])); mov(eax, cs); mov(dword_ptr(V[1]), eax); mov(eax, ss);
            mov(dword_ptr(V[2]), eax); mov(qword_ptr(V[3]), rsp);
            sysexitq());
        Ok(())
    })?;
    let set_up = |k: &mut Kit, target: &str| {
        let at = k.imm(target);
        // From the base: ring 0 code (64-bit) and stack, ring 3 code 32 and stack, then code 64 and stack.
        for (offset, descriptor) in [
            (0, segment(0, FLAT, CODE, G | L)),
            (8, segment(0, FLAT, WRITABLE, G | B)),
            (16, segment(0, FLAT, CODE | RING3, G | B)),
            (24, segment(0, FLAT, WRITABLE | RING3, G | B)),
            (32, segment(0, FLAT, CODE | RING3, G | L)),
            (40, segment(0, FLAT, WRITABLE | RING3, G | B)),
        ] {
            k.descriptor(FREE + offset, descriptor)?;
        }
        k.msr(SYSENTER_CS, FREE.into())?;
        k.msr(SYSENTER_ESP, (STACK_IST - 64).into())?;
        k.msr(SYSENTER_EIP, at.into())
    };
    k.check("SYSENTER and SYSEXIT", "2B, SYSENTER, SYSEXIT; 3A, 5.8.7", move |k| {
        set_up(k, "sysenter.entry")?;
        let next = k.fresh();
        k.user("after SYSEXIT", UD.anywhere(), |k| {
            code!(k; mov(edx, k.user_imm(&next)); mov(ecx, STACK3 + USER_ALIAS - 32); stc(); sysenter();
                label(&next); mov(rbx, rsp); mov(esi, ss); ud2());
            Ok(())
        })?;
        k.masked("flags: IF clear, CF kept", V[0], 0x201, 1)?;
        k.var("CS in ring 0", V[1], FREE)?;
        k.var("SS in ring 0", V[2], FREE + 8)?;
        k.var64("RSP in ring 0", V[3], u64::from(STACK_IST) - 64)?;
        k.var64("RSP afterwards", EXC_BX, u64::from(STACK3 + USER_ALIAS) - 32)?;
        k.var("CS afterwards", EXC_CS, FREE + 32 + 3)?;
        k.var("SS afterwards", EXC_SI, FREE + 40 + 3)
    })?;
    k.check("SYSENTER from and SYSEXIT to compatibility mode", "2B, SYSENTER, SYSEXIT", move |k| {
        set_up(k, "sysenter.entry32")?;
        k.elsewhere(32, "compat.sysenter", |k| {
            code!(k; mov(edx, k.imm("compat.sysenter.next") + USER_ALIAS); mov(ecx, STACK3 + USER_ALIAS - 32);
                sysenter();
                label("compat.sysenter.next"); mov(ebx, esp));
            k.faulting(|k| k.hlt())
        });
        let after = k.fresh();
        k.arm(&after)?;
        let rip = k.imm("compat.sysenter") + USER_ALIAS;
        frame(k, USER_DATA.into(), (STACK3 + USER_ALIAS).into(), 2, USER32, rip.into())?;
        code!(k; iretq(); label(&after));
        k.seen("HLT", gp(0), None)?;
        k.var64("RSP in ring 0", V[3], u64::from(STACK_IST) - 64)?;
        k.var("CS", EXC_CS, FREE + 16 + 3)?;
        k.var("SS", EXC_SS, FREE + 24 + 3)?;
        k.var("ESP", EXC_BX, STACK3 + USER_ALIAS - 32)
    })?;
    k.check("SYSENTER and SYSEXIT that fail", "2B, SYSENTER, SYSEXIT", move |k| {
        set_up(k, "sysenter.entry")?;
        k.user("SYSEXIT in ring 3", gp(0), |k| k.faulting(|k| k.sysexitq()))?;
        code!(k; mov(rdx, HOLE); xor(ecx, ecx));
        k.raises("RIP not canonical", gp(0), |k| k.sysexitq())?;
        code!(k; mov(rcx, HOLE); xor(edx, edx));
        k.raises("RSP not canonical", gp(0), |k| k.sysexitq())?;
        k.msr(SYSENTER_CS, 3)?;
        k.raises("SYSENTER with a null CS", gp(0), |k| k.faulting(|k| k.sysenter()))?;
        k.raises("SYSEXIT with a null CS", gp(0), |k| k.faulting(|k| k.sysexitq()))
    })
}

fn bases(k: &mut Kit) -> R {
    k.check("SWAPGS", "2B, SWAPGS", |k| {
        k.msr(GS_BASE, SCRATCH.into())?;
        k.msr(KERNEL_GS_BASE, u64::from(SCRATCH) + 0x100)?;
        code!(k; mov(dword_ptr(SCRATCH), 0x11); mov(dword_ptr(SCRATCH + 0x100), 0x22); mov(rsi, 0u64);
            mov(ebx, dword_ptr(rsi).gs()); swapgs();
            mov(esi, dword_ptr(rsi).gs()); mov(ecx, KERNEL_GS_BASE); rdmsr());
        k.eq("GS before", ebx, 0x11)?;
        k.eq("GS after", esi, 0x22)?;
        k.eq("kernel GS base after", eax, SCRATCH)?;
        k.user("in ring 3", gp(0), |k| k.faulting(|k| k.swapgs()))
    })?;
    k.check("RDFSBASE and its like", "2B, RDFSBASE; 2D, WRFSBASE", |k| {
        k.cr4_bits(0, FSGSBASE)?;
        k.raises("without CR4.FSGSBASE", UD, |k| k.faulting(|k| k.rdfsbase(rax)))?;
        k.raises("WRGSBASE without CR4.FSGSBASE", UD, |k| k.faulting(|k| k.wrgsbase(rax)))?;
        k.cr4_bits(FSGSBASE, 0)?;
        code!(k; mov(rax, 0x1234_5678_9ABCu64); wrfsbase(rax); rdfsbase(rbx); mov(ecx, FS_BASE); rdmsr());
        k.eq64("RDFSBASE", rbx, 0x1234_5678_9ABC)?;
        k.eq("the register, low", eax, 0x5678_9ABC)?;
        k.eq("the register, high", edx, 0x1234)?;
        code!(k; mov(eax, 0x8765_4321u32); wrgsbase(eax); rdgsbase(ebx); mov(rbx, rbx));
        k.eq64("32-bit form", rbx, 0x8765_4321)?;
        code!(k; mov(rax, HOLE));
        k.raises("not canonical", gp(0), |k| k.wrfsbase(rax))?;
        k.user("in ring 3", UD.anywhere(), |k| {
            code!(k; mov(eax, 0x77); wrfsbase(rax); rdfsbase(rbx); ud2());
            Ok(())
        })?;
        k.var64("in ring 3", EXC_BX, 0x77)?;
        k.cr4_bits(0, FSGSBASE)
    })?;
    k.check("a selector load sets the base, a null one clears it", "3A, 3.4.4; 2B, MOV", |k| {
        k.msr(FS_BASE, 0x1234_5678_9ABC)?;
        k.descriptor(FREE, segment(0x8765_4000, FLAT, WRITABLE, B | G))?;
        code!(k; mov(eax, FREE); mov(fs, eax); mov(ecx, FS_BASE); rdmsr());
        k.eq("base, low", eax, 0x8765_4000)?;
        k.eq("base, high", edx, 0)?;
        code!(k; xor(eax, eax); mov(fs, eax); rdmsr());
        k.eq("base of null", eax, 0)?;
        // A limit does not count in 64-bit mode.
        k.descriptor(FREE, segment(SCRATCH, 0, WRITABLE, B))?;
        code!(k; mov(eax, FREE); mov(fs, eax); mov(ebx, 0x100); mov(dword_ptr(rbx).fs(), 0x99);
            mov(ebx, dword_ptr(SCRATCH + 0x100)));
        k.eq("written beyond the limit", ebx, 0x99)
    })
}
