//! Five-level paging and 57-bit addresses (Intel SDM volume 3A, sections 4.5 and 4.1; volume 1, section 3.3.7.1).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;

/// The first address that four levels do not reach, and the first that five do not.
const HIGH: u64 = 1 << 48;
const HOLE: u64 = 1 << 56;
const FS_BASE: u32 = 0xC000_0100;
const LA57: u32 = 1 << 12;

pub fn emit(k: &mut Kit) -> R {
    k.check("five levels are on", "3A, 2.5 and 4.1.1", |k| {
        code!(k; mov(rax, cr4); and(eax, LA57); mov(ebx, eax));
        k.eq("CR4.LA57", ebx, LA57)?;
        code!(k; mov(rax, cr4); and(eax, !LA57));
        k.raises("clear it", gp(0), |k| k.faulting(|k| k.mov(cr4, rax)))
    })?;
    k.check("canonical addresses have 57 bits", "1, 3.3.7.1", |k| {
        k.poke(PML5 + 8, 0)?;
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(rbx, HIGH));
        k.raises("bit 48: a page fault", pf(0), |k| k.mov(al, byte_ptr(rbx)))?;
        k.var64("CR2", EXC_CR2, HIGH)?;
        code!(k; mov(rbx, 0x8000_0000_0000u64));
        k.raises("bit 47: a page fault", pf(0), |k| k.mov(al, byte_ptr(rbx)))?;
        code!(k; mov(rbx, !HOLE));
        k.raises("below the upper half", gp(0), |k| k.mov(al, byte_ptr(rbx)))?;
        code!(k; mov(rbx, HOLE));
        k.raises("bit 56", gp(0), |k| k.mov(al, byte_ptr(rbx)))?;
        code!(k; mov(rbx, u64::MAX << 56));
        k.raises("first of the upper half", pf(0), |k| k.mov(al, byte_ptr(rbx)))?;
        code!(k; mov(ecx, FS_BASE); xor(eax, eax); mov(edx, (HIGH >> 32) as u32); wrmsr();
            mov(edx, (HOLE >> 32) as u32));
        k.raises("FS base", gp(0), |k| k.faulting(|k| k.wrmsr()))?;
        k.msr(FS_BASE, 0)
    })?;
    k.check("memory behind the fifth level", "3A, 4.5 and figure 4-8", |k| {
        k.poke(PML5 + 8, u64::from(PML4) | 7)?;
        k.poke(PML5 + 511 * 8, u64::from(PML4) | 7)?;
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(dword_ptr(SCRATCH), 0x4711);
            mov(rbx, HIGH + u64::from(SCRATCH)); mov(ecx, dword_ptr(rbx)));
        k.eq("lower half", ecx, 0x4711)?;
        code!(k; mov(rbx, (u64::MAX << 48) + u64::from(SCRATCH)); mov(edx, dword_ptr(rbx));
            mov(dword_ptr(rbx), 0x4712); mov(esi, dword_ptr(SCRATCH)));
        k.eq("upper half", edx, 0x4711)?;
        k.eq("written there", esi, 0x4712)?;
        k.masked("accessed", PML5 + 8, 0x60, 0x20)?;
        k.masked("accessed, upper half", PML5 + 511 * 8, 0x60, 0x20)?;
        k.poke(PML5 + 511 * 8, 0)?;
        code!(k; mov(rbx, (u64::MAX << 48) + u64::from(SCRATCH)); invlpg(byte_ptr(rbx)));
        k.raises("unmapped", pf(0), |k| k.mov(al, byte_ptr(rbx)))
    })?;
    k.check("entries of the fifth level", "3A, 4.5.4 and table 4-14", |k| {
        for (entry, error, what) in [
            (u64::from(PML4) | 7 | 0x80, 9, "bit 7"),
            (u64::from(PML4) | 7 | 1 << 51, 9, "bit 51"),
            (u64::from(PML4) | 3, 5, "supervisor"),
            (u64::from(PML4) | 5, 7, "read-only"),
        ] {
            k.poke(PML5 + 8, entry)?;
            code!(k; mov(rax, cr3); mov(cr3, rax));
            let user = HIGH + u64::from(USER_ALIAS + SCRATCH);
            match error {
                9 => {
                    code!(k; mov(rbx, user));
                    k.raises(what, pf(9), |k| k.mov(al, byte_ptr(rbx)))?;
                }
                5 => k.user(what, pf(5).anywhere(), |k| {
                    code!(k; mov(rbx, user));
                    k.faulting(|k| k.mov(al, byte_ptr(rbx)))
                })?,
                _ => k.user(what, pf(7).anywhere(), |k| {
                    code!(k; mov(rbx, user));
                    k.faulting(|k| k.mov(byte_ptr(rbx), al))
                })?,
            }
            k.var64("CR2", EXC_CR2, user)?;
        }
        Ok(())
    })?;
    k.check("code behind the fifth level", "3A, 4.5; 2A, CALL, JMP", |k| {
        k.aside("far.up", |k| {
            // Tells where this runs: LEA RCX, [RIP].
            code!(k; raw(&[0x48, 0x8D, 0x0D, 0, 0, 0, 0]); ret());
            Ok(())
        })?;
        k.poke(PML5 + 8, u64::from(PML4) | 7)?;
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(rbx, HIGH); mov(eax, k.imm("far.up")); add(rbx, rax);
            call(rbx); mov(rdx, HIGH); cmp(rcx, rdx));
        k.holds("RIP up there", |c, to| c.ja(to))?;
        let after = k.fresh();
        k.aside("far.fault", |k| k.faulting(|k| k.ud2()))?;
        k.arm(&after)?;
        code!(k; mov(rbx, HIGH); mov(eax, k.imm("far.fault")); add(rbx, rax); jmp(rbx); label(&after));
        let rip = HIGH + u64::from(k.imm("far.fault"));
        k.var64("saved RIP", EXC_IP, rip)?;
        k.seen("UD2", UD, None)
    })
}
