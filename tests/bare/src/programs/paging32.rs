//! 32-bit paging: two levels, 4 MiB pages, PAE and its directory pointers, and what they mean for tasks and mode switches (Intel
//! SDM volume 3A, sections 4.3 and 4.4).
//!
//! Paging is off between checks. Those that turn it on map the first 4 MiB one to one.

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const P: u32 = 1;
const W: u32 = 2;
const U: u32 = 4;
const ALL: u32 = P | W | U;
const A: u32 = 0x20;
const D: u32 = 0x40;
const PS: u32 = 0x80;
const PSE: u32 = 0x10;
const PAE: u32 = 0x20;
const PG: u32 = 0x8000_0000;
const WP: u32 = 1 << 16;
const EFER: u32 = 0xC000_0080;

/// Two levels: the directory, and the table of the first 4 MiB and of the test pages at [`TEST`].
const DIR: u32 = TABLES;
const LOW: u32 = TABLES + 0x1000;
const PAGES_OF_TEST: u32 = TABLES + 0x2000;
/// PAE: directory pointers, and two directories.
const POINTERS: u32 = TABLES + 0x4000;
const PAE_DIR: u32 = TABLES + 0x5000;
const PAE_TEST_DIR: u32 = TABLES + 0x6000;
const PAE_TABLE: u32 = TABLES + 0x7000;

pub fn emit(k: &mut Kit) -> R {
    two_levels(k)?;
    pae(k)?;
    tasks(k)
}

/// Builds two-level tables and turns paging on.
fn paging_on(k: &mut Kit) -> R {
    let next = k.fresh();
    code!(k; mov(edi, TABLES); xor(eax, eax); mov(ecx, 0x8000 / 4));
    k.rep().stosd()?;
    code!(k; mov(edi, LOW); mov(eax, ALL); label(&next); stosd(); add(eax, 0x1000); cmp(eax, 0x40_0000);
        jb(k.to(&next)));
    code!(k; mov(dword_ptr(DIR), LOW | ALL); mov(dword_ptr(DIR + (TEST >> 22) * 4), PAGES_OF_TEST | ALL);
        mov(eax, DIR); mov(cr3, eax));
    k.cr0_bits(PG | WP, 0)
}

fn paging_off(k: &mut Kit) -> R {
    k.cr0_bits(0, PG | WP)
}

/// Writes entry `index` of the test page table.
fn map(k: &mut Kit, index: u32, entry: u32) -> R {
    code!(k; mov(dword_ptr(PAGES_OF_TEST + index * 4), entry); invlpg(byte_ptr(TEST + index * 0x1000)));
    Ok(())
}

fn faults(k: &mut Kit, what: &str, error: u32, emit: impl FnOnce(&mut Kit) -> R) -> R {
    k.raises(what, pf(error), emit)?;
    k.var("CR2", EXC_CR2, TEST)
}

fn user_faults(k: &mut Kit, what: &str, error: u32, emit: impl FnOnce(&mut Kit) -> R) -> R {
    let at = k.fresh();
    let ip = k.imm(&at);
    k.user(what, pf(error).at(ip), |k| {
        code!(k; mov(ebx, TEST); label(&at));
        k.faulting(emit)
    })?;
    k.var("CR2", EXC_CR2, TEST)
}

fn two_levels(k: &mut Kit) -> R {
    k.check("two levels: rights and error codes", "3A, 4.3, 4.6 and 4.7", |k| {
        paging_on(k)?;
        code!(k; mov(ebx, TEST));
        faults(k, "not present", 0, |k| k.mov(eax, dword_ptr(ebx)))?;
        faults(k, "not present, write", 2, |k| k.mov(dword_ptr(ebx), eax))?;
        map(k, 0, PAGES | P | W)?;
        code!(k; mov(dword_ptr(ebx), 0x55); mov(ecx, dword_ptr(PAGES)));
        k.eq("written", ecx, 0x55)?;
        user_faults(k, "supervisor page", 5, |k| k.mov(eax, dword_ptr(ebx)))?;
        user_faults(k, "supervisor page, write", 7, |k| k.mov(dword_ptr(ebx), eax))?;
        map(k, 0, PAGES | P | U)?;
        user_faults(k, "read-only page", 7, |k| k.mov(dword_ptr(ebx), eax))?;
        code!(k; mov(ebx, TEST));
        faults(k, "read-only page in ring 0", 3, |k| k.mov(dword_ptr(ebx), eax))?;
        k.cr0_bits(0, WP)?;
        k.mov(dword_ptr(ebx), eax)?;
        paging_off(k)
    })?;
    k.check("two levels: accessed and dirty", "3A, 4.8", |k| {
        paging_on(k)?;
        map(k, 0, PAGES | ALL)?;
        code!(k; mov(ebx, TEST); mov(al, byte_ptr(ebx)));
        k.masked("page after a read", PAGES_OF_TEST, A | D, A)?;
        k.masked("directory after a read", DIR + (TEST >> 22) * 4, A | D, A)?;
        code!(k; mov(byte_ptr(ebx), al));
        k.masked("page after a write", PAGES_OF_TEST, A | D, A | D)?;
        paging_off(k)
    })?;
    k.check("4 MiB pages", "3A, 4.3 and table 4-4", |k| {
        paging_on(k)?;
        code!(k; mov(dword_ptr(PAGES), 0x4711));
        k.cr4_bits(PSE, 0)?;
        code!(k; mov(dword_ptr(DIR + (TEST >> 22) * 4), ALL | PS); mov(eax, cr3); mov(cr3, eax);
            mov(ebx, TEST + PAGES); mov(ecx, dword_ptr(ebx)));
        k.eq("read", ecx, 0x4711)?;
        code!(k; mov(dword_ptr(ebx), 0x4712));
        k.masked("dirty", DIR + (TEST >> 22) * 4, A | D, A | D)?;
        // Bit 21 is reserved with PSE-36.
        code!(k; mov(dword_ptr(DIR + (TEST >> 22) * 4), ALL | PS | 1 << 21); mov(eax, cr3); mov(cr3, eax);
            mov(ebx, TEST));
        faults(k, "reserved bit", 9, |k| k.mov(al, byte_ptr(ebx)))?;
        // Without PSE the entry leads to a table: the page of zeros at 0x2000 of nothing but this check's making.
        code!(k; mov(dword_ptr(PAGES + 0x3000), PAGES | ALL);
            mov(dword_ptr(DIR + (TEST >> 22) * 4), (PAGES + 0x3000) | ALL | PS));
        k.cr4_bits(0, PSE)?;
        code!(k; mov(ebx, TEST); mov(ecx, dword_ptr(ebx)));
        k.eq("bit 7 without PSE", ecx, 0x4712)?;
        paging_off(k)
    })?;
    k.check("paging on and off", "3A, 4.1.2", |k| {
        paging_on(k)?;
        map(k, 0, PAGES | ALL)?;
        code!(k; mov(dword_ptr(PAGES), 0x11); mov(ecx, dword_ptr(TEST)));
        k.eq("mapped", ecx, 0x11)?;
        paging_off(k)?;
        // The page tables changed while paging was off.
        code!(k; mov(dword_ptr(PAGES + 0x1000), 0x22); mov(dword_ptr(PAGES_OF_TEST), (PAGES + 0x1000) | ALL));
        k.cr0_bits(PG, 0)?;
        code!(k; mov(ecx, dword_ptr(TEST)));
        k.eq("mapped anew", ecx, 0x22)?;
        paging_off(k)
    })?;
    k.check("16-bit code and addresses above 1 MiB", "3A, 4.1; 3B, 21.3", |k| {
        paging_on(k)?;
        map(k, 0, PAGES | ALL)?;
        // A 16-bit data segment whose base is translated.
        k.descriptor(FREE, segment(TEST, 0xFFFF, WRITABLE, 0))?;
        code!(k; mov(dword_ptr(PAGES + 8), 0x99); mov(eax, FREE); mov(es, eax); mov(ecx, dword_ptr(8).es()));
        k.eq("through a segment", ecx, 0x99)?;
        code!(k; mov(eax, FREE); mov(es, eax));
        k.raises("not present", pf(0), |k| k.mov(ecx, dword_ptr(0x1008).es()))?;
        k.var("CR2 is the linear address", EXC_CR2, TEST + 0x1008)?;
        paging_off(k)
    })
}

/// Builds PAE tables and turns paging on.
fn pae_on(k: &mut Kit) -> R {
    code!(k; mov(edi, TABLES); xor(eax, eax); mov(ecx, 0x8000 / 4));
    k.rep().stosd()?;
    k.poke(POINTERS, u64::from(PAE_DIR | P))?;
    k.poke(POINTERS + 16, u64::from(PAE_TEST_DIR | P))?;
    k.poke(PAE_DIR, u64::from(ALL | PS))?;
    k.poke(PAE_DIR + 8, u64::from(0x20_0000 | ALL | PS))?;
    k.poke(PAE_TEST_DIR, u64::from(PAE_TABLE | ALL))?;
    code!(k; mov(eax, POINTERS); mov(cr3, eax));
    k.cr4_bits(PAE, 0)?;
    k.cr0_bits(PG | WP, 0)
}

fn pae_off(k: &mut Kit) -> R {
    k.cr0_bits(0, PG | WP)?;
    k.cr4_bits(0, PAE)
}

/// Writes entry `index` of the PAE test page table.
fn pae_map(k: &mut Kit, index: u32, entry: u64) -> R {
    k.poke(PAE_TABLE + index * 8, entry)?;
    k.invlpg(byte_ptr(TEST + index * 0x1000))
}

fn pae(k: &mut Kit) -> R {
    k.check("PAE: rights, NX, reserved bits", "3A, 4.4, 4.6 and 4.7", |k| {
        pae_on(k)?;
        pae_map(k, 0, u64::from(PAGES | P | W))?;
        code!(k; mov(ebx, TEST); mov(dword_ptr(ebx), 0x66); mov(ecx, dword_ptr(PAGES)));
        k.eq("written", ecx, 0x66)?;
        user_faults(k, "supervisor page", 5, |k| k.mov(eax, dword_ptr(ebx)))?;
        pae_map(k, 0, u64::from(PAGES | ALL) | 1 << 62)?;
        code!(k; mov(ebx, TEST));
        faults(k, "bit 62", 9, |k| k.mov(al, byte_ptr(ebx)))?;
        pae_map(k, 0, u64::from(PAGES | ALL) | 1 << 63)?;
        faults(k, "NX without NXE", 9, |k| k.mov(al, byte_ptr(ebx)))?;
        k.msr(EFER, 0x800)?;
        code!(k; mov(ebx, TEST); mov(al, byte_ptr(ebx)));
        k.raises("fetch", pf(0x11).at(TEST), |k| k.jmp(ebx))?;
        k.msr(EFER, 0)?;
        pae_off(k)
    })?;
    k.check("PAE: directory pointers are loaded with CR3", "3A, 4.4.1", |k| {
        pae_on(k)?;
        pae_map(k, 0, u64::from(PAGES | ALL))?;
        k.poke(PAGES, 0x77)?;
        code!(k; mov(ebx, TEST); mov(ecx, dword_ptr(ebx)));
        k.eq("mapped", ecx, 0x77)?;
        // A change in memory alone has no effect, not even after INVLPG.
        k.poke(POINTERS + 16, 0)?;
        code!(k; invlpg(byte_ptr(TEST)); mov(ecx, dword_ptr(ebx)));
        k.eq("pointer cleared in memory", ecx, 0x77)?;
        code!(k; mov(eax, cr3); mov(cr3, eax));
        faults(k, "after CR3 was written", 0, |k| k.mov(al, byte_ptr(ebx)))?;
        // Reserved bits are found when it is loaded, and CR3 keeps its value.
        for (value, what) in [
            (u64::from(PAE_TEST_DIR | P | W), "writable bit"),
            (u64::from(PAE_TEST_DIR | P) | 1 << 63, "bit 63"),
        ] {
            k.poke(POINTERS + 16, value)?;
            code!(k; mov(eax, cr3));
            k.raises(what, gp(0), |k| k.faulting(|k| k.mov(cr3, eax)))?;
        }
        // Not present, its other bits are ignored.
        k.poke(POINTERS + 16, u64::from(PAE_TEST_DIR | W))?;
        code!(k; mov(eax, cr3); mov(cr3, eax));
        k.poke(POINTERS + 16, u64::from(PAE_TEST_DIR | P))?;
        code!(k; mov(eax, cr3); mov(cr3, eax); mov(ecx, dword_ptr(ebx)));
        k.eq("mapped again", ecx, 0x77)?;
        pae_off(k)
    })?;
    k.check("PAE: 2 MiB pages", "3A, 4.4.2", |k| {
        pae_on(k)?;
        k.poke(PAE_TEST_DIR + 8, u64::from(ALL | PS))?;
        k.poke(SCRATCH, 0x1234_5678)?;
        code!(k; mov(ecx, dword_ptr(TEST + 0x20_0000 + SCRATCH)));
        k.eq("read", ecx, 0x1234_5678)?;
        k.poke(PAE_TEST_DIR + 8, u64::from(ALL | PS | 1 << 13))?;
        code!(k; mov(eax, cr3); mov(cr3, eax));
        k.raises("reserved bit", pf(9), |k| k.mov(al, byte_ptr(TEST + 0x20_0000)))?;
        pae_off(k)
    })
}

fn tasks(k: &mut Kit) -> R {
    k.check("a task switch loads CR3", "3A, 7.3 and 7.7.1", |k| {
        paging_on(k)?;
        map(k, 0, PAGES | ALL)?;
        // A second directory, in which the test page is another one.
        code!(k; mov(dword_ptr(PAGES), 0x11); mov(dword_ptr(PAGES + 0x1000), 0x22);
            mov(dword_ptr(PAE_DIR), LOW | ALL);
            mov(dword_ptr(PAE_DIR + (TEST >> 22) * 4), PAE_TABLE | ALL);
            mov(dword_ptr(PAE_TABLE), (PAGES + 0x1000) | ALL));
        let (there, over) = (k.fresh(), k.fresh());
        let eip = k.imm(&there);
        k.task(TSS_B, PAE_DIR, eip, STACK_B)?;
        code!(k; mov(dword_ptr(TSS + 0x1C), DIR); mov(ebx, dword_ptr(TEST)); call_far(TSS_B_SEL as u16, 0);
            mov(esi, dword_ptr(TEST)); jmp(k.to(&over));
            label(&there); mov(eax, dword_ptr(TEST)); mov(dword_ptr(V[0]), eax); mov(eax, cr3);
            mov(dword_ptr(V[1]), eax); iretd(); label(&over));
        k.eq("before", ebx, 0x11)?;
        k.var("in the task", V[0], 0x22)?;
        k.var("CR3 in the task", V[1], PAE_DIR)?;
        k.eq("afterwards", esi, 0x11)?;
        paging_off(k)
    })?;
    k.check("page fault in a call gate's inner stack", "2A, CALL; 3A, 4.7", |k| {
        paging_on(k)?;
        map(k, 0, 0)?;
        k.aside("gate.unused", |k| k.ud2())?;
        let target = k.imm("gate.unused");
        k.descriptor(FREE, gate(RING1_CODE, target, CALL32 | RING3, 1))?;
        // Ring 1's stack is not there; the page fault goes to ring 0's.
        code!(k; mov(dword_ptr(TSS + 0x0C), TEST + 0x800));
        k.user("call", pf(2).anywhere(), |k| {
            code!(k; push(0x77); mov(ebx, esp));
            k.faulting(|k| k.call_far(FREE as u16 | 3, 0))
        })?;
        k.var("ESP", EXC_SP, STACK3 - 4)?;
        k.masked("SS", EXC_SS, 0xFFFF, USER_DATA)?;
        k.masked("CR2", EXC_CR2, 0xFFFF_F000, TEST)?;
        paging_off(k)
    })
}
