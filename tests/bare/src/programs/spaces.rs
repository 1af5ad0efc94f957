//! Address spaces: process-context identifiers, INVPCID, and what of the translations a change of CR3 or CR4 keeps (Intel SDM
//! volume 3A, section 4.10).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;

const PCIDE: u32 = 1 << 17;
const PGE: u32 = 0x80;
const KEEP: u64 = 1 << 63;

pub fn emit(k: &mut Kit) -> R {
    k.check("CR4.PCIDE", "3A, 4.10.1; 2B, MOV", |k| {
        code!(k; mov(rax, cr3); or(rax, 1); mov(cr3, rax); mov(rax, cr4); or(eax, PCIDE));
        k.raises("set while CR3 names another", gp(0), |k| k.mov(cr4, rax))?;
        code!(k; mov(rax, cr3); and(rax, -4096); mov(cr3, rax));
        k.cr4_bits(PCIDE, 0)?;
        code!(k; mov(rax, cr0); and(eax, 0x7FFF_FFFF));
        k.raises("paging off", gp(0), |k| k.mov(cr0, rax))?;
        code!(k; mov(rax, cr3); or(rax, 0x123); mov(cr3, rax); mov(rbx, cr3); and(ebx, 0xFFF); mov(rax, KEEP);
            mov(rcx, cr3); or(rax, rcx); mov(cr3, rax);
            mov(rdx, cr3); sub(rdx, rcx));
        k.eq("identifier", ebx, 0x123)?;
        k.eq64("bit 63 is not kept", rdx, 0)?;
        code!(k; mov(rax, cr3); and(rax, -4096); mov(cr3, rax));
        k.cr4_bits(0, PCIDE)
    })?;
    k.check("two spaces with identifiers", "3A, 4.10.2 and 4.10.4", |k| {
        two_spaces(k)?;
        k.cr4_bits(PCIDE, 0)?;
        code!(k; mov(ebx, TEST));
        for (round, base, pcid, keep, expected) in [
            (0, PML4, 1u64, 0, 0x11),
            (1, PML4_B, 2, 0, 0x22),
            (2, PML4, 1, KEEP, 0x11),
            (3, PML4_B, 2, KEEP, 0x22),
            (4, PML4, 1, 0, 0x11),
            (5, PML4, 3, 0, 0x11),
        ] {
            code!(k; mov(rax, keep | pcid | u64::from(base)); mov(cr3, rax); mov(ecx, dword_ptr(rbx)));
            k.eq(&format!("round {round}"), ecx, expected)?;
        }
        // A change is seen after the space is loaded without keeping.
        k.poke(PT_TEST, u64::from(PAGES + 0x2000) | 3)?;
        code!(k; mov(dword_ptr(PAGES + 0x2000), 0x33); mov(rax, u64::from(PML4) | 1); mov(cr3, rax);
            mov(ecx, dword_ptr(rbx)));
        k.eq("changed mapping", ecx, 0x33)?;
        code!(k; mov(rax, KEEP | u64::from(PML4_B) | 2); mov(cr3, rax); mov(ecx, dword_ptr(rbx)));
        k.eq("the other space", ecx, 0x22)?;
        code!(k; mov(rax, u64::from(PML4)); mov(cr3, rax));
        k.cr4_bits(0, PCIDE)
    })?;
    k.check("INVPCID", "2A, INVPCID; 3A, 4.10.4.1", |k| {
        two_spaces(k)?;
        k.cr4_bits(PCIDE | PGE, 0)?;
        code!(k; mov(ebx, TEST); mov(rax, u64::from(PML4_B) | 2); mov(cr3, rax); mov(ecx, dword_ptr(rbx));
            mov(rax, u64::from(PML4) | 1); mov(cr3, rax));
        for (kind, what) in
            [(0u32, "one address"), (1, "one context"), (2, "all with global"), (3, "all without global")]
        {
            // The mapping in the other space changes and is invalidated from here.
            k.poke(PT_B, u64::from(PAGES + 0x2000 + (kind & 1) * 0x1000) | 3)?;
            code!(k; mov(dword_ptr(PAGES + 0x2000), 0x33); mov(dword_ptr(PAGES + 0x3000), 0x44);
                mov(qword_ptr(SCRATCH), 2); mov(eax, TEST); mov(qword_ptr(SCRATCH + 8), rax);
                mov(edx, kind); invpcid(rdx, xmmword_ptr(SCRATCH)); mov(rax, KEEP | u64::from(PML4_B) | 2);
                mov(cr3, rax); mov(ecx, dword_ptr(rbx));
                mov(rax, KEEP | u64::from(PML4) | 1); mov(cr3, rax));
            k.eq(what, ecx, if kind & 1 == 0 { 0x33 } else { 0x44 })?;
        }
        // And in this one.
        code!(k; mov(eax, dword_ptr(rbx)));
        k.poke(PT_TEST, u64::from(PAGES + 0x1000) | 3)?;
        code!(k; mov(qword_ptr(SCRATCH), 1); mov(edx, 0); invpcid(rdx, xmmword_ptr(SCRATCH));
            mov(ecx, dword_ptr(rbx)));
        k.eq("this space", ecx, 0x22)?;
        code!(k; mov(rax, u64::from(PML4)); mov(cr3, rax));
        k.cr4_bits(0, PCIDE | PGE)
    })?;
    k.check("INVPCID that fails", "2A, INVPCID", |k| {
        code!(k; mov(qword_ptr(SCRATCH), 0); mov(qword_ptr(SCRATCH + 8), 0); mov(edx, 4));
        k.raises("type 4", gp(0), |k| k.faulting(|k| k.invpcid(rdx, xmmword_ptr(SCRATCH))))?;
        code!(k; mov(dword_ptr(SCRATCH), 0x1000); mov(edx, 0));
        k.raises("reserved bits", gp(0), |k| k.faulting(|k| k.invpcid(rdx, xmmword_ptr(SCRATCH))))?;
        code!(k; mov(dword_ptr(SCRATCH), 1); mov(edx, 1));
        k.raises("an identifier without PCIDE", gp(0), |k| {
            k.faulting(|k| k.invpcid(rdx, xmmword_ptr(SCRATCH)))
        })?;
        code!(k; mov(dword_ptr(SCRATCH), 0); mov(rax, 0x8000_0000_0000u64); mov(qword_ptr(SCRATCH + 8), rax);
            mov(edx, 0));
        k.raises("address not canonical", gp(0), |k| k.faulting(|k| k.invpcid(rdx, xmmword_ptr(SCRATCH))))?;
        k.user("in ring 3", gp(0), |k| {
            code!(k; xor(edx, edx));
            k.faulting(|k| k.invpcid(rdx, xmmword_ptr(USER_ALIAS + SCRATCH)))
        })
    })?;
    k.check("switching without identifiers flushes", "3A, 4.10.4.1", |k| {
        two_spaces(k)?;
        code!(k; mov(ebx, TEST));
        for (base, expected) in [(PML4, 0x11), (PML4_B, 0x22), (PML4, 0x11), (PML4_B, 0x22)] {
            code!(k; mov(eax, base); mov(cr3, rax); mov(ecx, dword_ptr(rbx)));
            k.eq("by CR3", ecx, expected)?;
        }
        // The inactive space changes; no invalidation but that of the switch.
        k.poke(PT_TEST, u64::from(PAGES + 0x1000) | 3)?;
        code!(k; mov(eax, PML4); mov(cr3, rax); mov(ecx, dword_ptr(rbx)));
        k.eq("changed meanwhile", ecx, 0x22)
    })?;
    k.check("code in two spaces at one address", "3A, 4.10.4.1", |k| {
        two_spaces(k)?;
        for (page, value) in [(PAGES, 0x11u32), (PAGES + 0x1000, 0x22)] {
            code!(k; mov(byte_ptr(page + 0x100), 0xB9); mov(dword_ptr(page + 0x101), value);
                mov(byte_ptr(page + 0x105), 0xC3u32));
        }
        code!(k; mov(ebx, TEST + 0x100); mov(esi, 0));
        for (base, expected) in [(PML4, 0x11), (PML4_B, 0x22), (PML4, 0x11), (PML4_B, 0x22)] {
            code!(k; mov(eax, base); mov(cr3, rax); call(rbx));
            k.eq("result", ecx, expected)?;
        }
        Ok(())
    })
}

/// Builds a second set of tables, equal to the first but for [`TEST`], where the spaces have a page each: 0x11 and 0x22.
fn two_spaces(k: &mut Kit) -> R {
    code!(k; mov(dword_ptr(PAGES), 0x11); mov(dword_ptr(PAGES + 0x1000), 0x22));
    for (from, to) in [(PML4, PML4_B), (PDPT, PDPT_B)] {
        code!(k; mov(esi, from); mov(edi, to); mov(ecx, 512));
        k.rep().movsq()?;
    }
    k.poke(PT_TEST, u64::from(PAGES) | 3)?;
    k.poke(PML4_B, u64::from(PDPT_B) | 7)?;
    k.poke(PDPT_B + 16, u64::from(PD_B) | 7)?;
    k.poke(PD_B, u64::from(PT_B) | 7)?;
    k.poke(PT_B, u64::from(PAGES + 0x1000) | 3)?;
    code!(k; mov(rax, cr3); mov(cr3, rax));
    Ok(())
}
