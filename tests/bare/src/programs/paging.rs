//! Paging in 64-bit mode: rights and error codes, reserved bits, accessed and dirty bits, large pages, NX, WP, SMEP, SMAP,
//! protection keys, invalidation (Intel SDM volume 3A, chapter 4).
//!
//! [`PT_TEST`] maps the pages at [`TEST`]; every check writes the entries it uses.

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

/// Bits of entries.
mod bit {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const A: u64 = 0x20;
    pub const D: u64 = 0x40;
    pub const PS: u64 = 0x80;
    pub const NX: u64 = 1 << 63;
}
use bit::*;

const ALL: u64 = P | W | U;
/// The page that most checks map, in memory.
const PAGE: u64 = PAGES as u64;
const CR0_WP: u32 = 1 << 16;
const SMEP: u32 = 1 << 20;
const SMAP: u32 = 1 << 21;
const PKE: u32 = 1 << 22;
const AC: u32 = 1 << 18;
const EFER: u32 = 0xC000_0080;

pub fn emit(k: &mut Kit) -> R {
    rights(k)?;
    levels(k)?;
    execution(k)?;
    reserved(k)?;
    accessed_dirty(k)?;
    large(k)?;
    crossing(k)?;
    implicit(k)?;
    supervisor_modes(k)?;
    protection_keys(k)
}

/// Writes entry `index` of the test page table and makes the processor see it.
fn map(k: &mut Kit, index: u32, entry: u64) -> R {
    k.poke(PT_TEST + index * 8, entry)?;
    code!(k; mov(eax, TEST + index * 0x1000); invlpg(byte_ptr(rax)));
    Ok(())
}

/// Puts the tables above the test page table right.
fn fresh(k: &mut Kit) -> R {
    k.poke(PD_TEST, u64::from(PT_TEST) | ALL)?;
    k.poke(PDPT + 16, u64::from(PD_TEST) | ALL)?;
    code!(k; mov(rax, cr3); mov(cr3, rax));
    Ok(())
}

/// Expects a page fault of one instruction.
fn faults(k: &mut Kit, what: &str, error: u32, address: u32, emit: impl FnOnce(&mut Kit) -> R) -> R {
    k.raises(what, pf(error), emit)?;
    k.var64("CR2", EXC_CR2, address.into())
}

/// Expects a page fault of one instruction in ring 3, which finds the test pages' address in RBX.
fn user_faults(k: &mut Kit, what: &str, error: u32, address: u32, emit: impl FnOnce(&mut Kit) -> R) -> R {
    let at = k.fresh();
    let ip = k.user_imm(&at);
    k.user(what, pf(error).at(ip), |k| {
        code!(k; mov(ebx, TEST); label(&at));
        k.faulting(emit)
    })?;
    k.var64("CR2", EXC_CR2, address.into())
}

/// Runs ring 3 code that raises no exception but that of the UD2 at its end.
fn user_passes(k: &mut Kit, what: &str, emit: impl FnOnce(&mut Kit) -> R) -> R {
    k.user(what, UD.anywhere(), |k| {
        code!(k; mov(ebx, TEST));
        emit(k)?;
        k.ud2()
    })
}

fn rights(k: &mut Kit) -> R {
    k.check("pages that are not present", "3A, 4.7 and figure 4-12", |k| {
        fresh(k)?;
        map(k, 0, PAGE)?;
        code!(k; mov(ebx, TEST));
        faults(k, "read", 0, TEST + 8, |k| k.mov(eax, dword_ptr(rbx + 8)))?;
        faults(k, "write", 2, TEST + 8, |k| k.mov(dword_ptr(rbx + 8), eax))?;
        faults(k, "read and write", 2, TEST, |k| k.add(dword_ptr(rbx), 1))?;
        user_faults(k, "read in ring 3", 4, TEST, |k| k.mov(eax, dword_ptr(rbx)))?;
        user_faults(k, "write in ring 3", 6, TEST, |k| k.mov(dword_ptr(rbx), eax))?;
        user_faults(k, "locked write in ring 3", 6, TEST, |k| k.lock().add(dword_ptr(rbx), eax))?;
        faults(k, "PUSH from there", 0, TEST, |k| k.push(qword_ptr(rbx)))?;
        faults(k, "POP to there", 2, TEST, |k| k.pop(qword_ptr(rbx)))
    })?;
    k.check("supervisor pages", "3A, 4.6.1", |k| {
        fresh(k)?;
        map(k, 0, PAGE | P | W)?;
        code!(k; mov(ebx, TEST); mov(dword_ptr(rbx), 0x55); mov(ecx, dword_ptr(rbx)));
        k.eq("in ring 0", ecx, 0x55)?;
        user_faults(k, "read in ring 3", 5, TEST, |k| k.mov(eax, dword_ptr(rbx)))?;
        user_faults(k, "write in ring 3", 7, TEST, |k| k.mov(dword_ptr(rbx), eax))
    })?;
    k.check("read-only pages and WP", "3A, 4.6.1; 3A, 2.5", |k| {
        fresh(k)?;
        map(k, 0, PAGE | P | U)?;
        user_passes(k, "read in ring 3", |k| k.mov(eax, dword_ptr(rbx)))?;
        user_faults(k, "write in ring 3", 7, TEST, |k| k.mov(dword_ptr(rbx), eax))?;
        code!(k; mov(ebx, TEST));
        faults(k, "write in ring 0 with WP", 3, TEST, |k| k.mov(dword_ptr(rbx), eax))?;
        k.cr0_bits(0, CR0_WP)?;
        code!(k; mov(dword_ptr(rbx), 0x77); mov(ecx, dword_ptr(PAGES)));
        k.eq("written without WP", ecx, 0x77)?;
        user_faults(k, "write in ring 3 without WP", 7, TEST, |k| k.mov(dword_ptr(rbx), eax))?;
        k.cr0_bits(CR0_WP, 0)?;
        code!(k; mov(ebx, TEST));
        faults(k, "write in ring 0 with WP again", 3, TEST, |k| k.mov(dword_ptr(rbx), eax))?;
        // Comparison fails, but the write is still one.
        code!(k; mov(eax, 1); mov(ecx, 2));
        faults(k, "CMPXCHG", 3, TEST, |k| k.cmpxchg(dword_ptr(rbx), ecx))
    })?;
    k.check("INVLPG makes changes visible", "3A, 4.10.4.1", |k| {
        fresh(k)?;
        code!(k; mov(dword_ptr(PAGES), 0x11); mov(dword_ptr(PAGES + 0x1000), 0x22));
        map(k, 0, PAGE | P)?;
        code!(k; mov(ebx, TEST); mov(ecx, dword_ptr(rbx)));
        k.eq("first page", ecx, 0x11)?;
        map(k, 0, (PAGE + 0x1000) | P)?;
        code!(k; mov(ecx, dword_ptr(rbx)));
        k.eq("second page", ecx, 0x22)?;
        map(k, 0, 0)?;
        faults(k, "unmapped", 0, TEST, |k| k.mov(eax, dword_ptr(rbx)))?;
        k.poke(PT_TEST, PAGE | P)?;
        // Faults are never cached.
        code!(k; mov(ecx, dword_ptr(rbx)));
        k.eq("mapped again, without INVLPG", ecx, 0x11)?;
        k.poke(PT_TEST, 0)?;
        code!(k; mov(rax, cr3); mov(cr3, rax));
        faults(k, "unmapped, CR3 written", 0, TEST, |k| k.mov(eax, dword_ptr(rbx)))?;
        k.user("INVLPG in ring 3", gp(0), |k| k.faulting(|k| k.invlpg(byte_ptr(rbx))))
    })?;
    k.check("global pages", "3A, 4.10.2.4 and 4.10.4.1", |k| {
        fresh(k)?;
        k.cr4_bits(0x80, 0)?;
        map(k, 0, PAGE | P | 0x100)?;
        code!(k; mov(dword_ptr(PAGES), 0x11); mov(dword_ptr(PAGES + 0x1000), 0x22); mov(ebx, TEST);
            mov(ecx, dword_ptr(rbx)));
        k.eq("global page", ecx, 0x11)?;
        map(k, 0, (PAGE + 0x1000) | P | 0x100)?;
        code!(k; mov(ecx, dword_ptr(rbx)));
        k.eq("after INVLPG", ecx, 0x22)?;
        k.poke(PT_TEST, PAGE | P | 0x100)?;
        k.cr4_bits(0, 0x80)?;
        code!(k; mov(ecx, dword_ptr(rbx)));
        k.eq("after CR4.PGE changed", ecx, 0x11)
    })?;
    k.check("page fault in ring 3 switches stacks and returns", "3A, 6.12; 3A, 4.7", |k| {
        fresh(k)?;
        map(k, 0, PAGE)?;
        // The handler maps the page.
        k.aside("mapper", |k| {
            code!(k; push(rax); inc(dword_ptr(V[0])); mov(rax, cr2); mov(qword_ptr(V[1]), rax);
                mov(dword_ptr(PT_TEST), (PAGE | ALL) as u32); pop(rax);
                add(rsp, 8); iretq());
            Ok(())
        })?;
        let handler = k.imm("mapper");
        k.idt(14, gate(CODE64, handler, INT32, 0))?;
        code!(k; mov(dword_ptr(PAGES + 4), 0x4711));
        user_passes(k, "read", |k| k.mov(ecx, dword_ptr(rbx + 4)))?;
        k.var("faults", V[0], 1)?;
        k.var64("CR2", V[1], u64::from(TEST) + 4)?;
        k.var("what was read", EXC_CX, 0x4711)
    })
}

fn levels(k: &mut Kit) -> R {
    k.check("rights of all levels count", "3A, 4.6.1 and 4.6.2", |k| {
        for (table, entry, what) in [
            (PD_TEST, u64::from(PT_TEST), "page directory"),
            (PDPT + 16, u64::from(PD_TEST), "directory pointers"),
        ] {
            fresh(k)?;
            map(k, 0, PAGE | ALL)?;
            for (rights, error_read, error_write) in
                [(0, Some(4), 6), (P | U, None, 7), (P | W, Some(5), 7), (P | U | W | NX, None, 0)]
            {
                k.poke(table, entry | rights)?;
                code!(k; mov(rax, cr3); mov(cr3, rax));
                match error_read {
                    Some(error) => user_faults(k, what, error, TEST, |k| k.mov(eax, dword_ptr(rbx)))?,
                    None => user_passes(k, what, |k| k.mov(eax, dword_ptr(rbx)))?,
                }
                match error_write {
                    0 => user_passes(k, what, |k| k.mov(dword_ptr(rbx), eax))?,
                    error => user_faults(k, what, error, TEST, |k| k.mov(dword_ptr(rbx), eax))?,
                }
                if rights & NX != 0 {
                    fetch_faults(k, what, 0x15, true)?;
                }
            }
        }
        fresh(k)
    })
}

fn execution(k: &mut Kit) -> R {
    k.check("NX", "3A, 4.6.1 and 4.7", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL | NX)?;
        code!(k; mov(ebx, TEST); mov(byte_ptr(PAGES), 0xC3); mov(al, byte_ptr(rbx)));
        fetch_faults(k, "fetch in ring 0", 0x11, false)?;
        fetch_faults(k, "fetch in ring 3", 0x15, true)?;
        map(k, 0, PAGE | ALL)?;
        code!(k; mov(ebx, TEST); call(rbx));
        map(k, 0, 0)?;
        fetch_faults(k, "fetch, not present", 0x10, false)?;
        fetch_faults(k, "fetch in ring 3, not present", 0x14, true)?;
        map(k, 0, PAGE | P)?;
        fetch_faults(k, "fetch in ring 3, supervisor page", 0x15, true)
    })?;
    k.check("without EFER.NXE, bit 63 is reserved", "3A, 4.5.4 and 4.7", |k| {
        fresh(k)?;
        k.msr(EFER, 0x501)?;
        map(k, 0, PAGE | ALL | NX)?;
        code!(k; mov(ebx, TEST));
        faults(k, "read", 9, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        map(k, 0, 0)?;
        // The instruction fetch bit needs NXE or SMEP.
        fetch_faults(k, "fetch", 0, false)?;
        k.msr(EFER, 0xD01)
    })?;
    k.check("instruction across a page that is not present", "3A, 4.7; 3A, 6.15 (#PF)", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        map(k, 1, PAGE + 0x1000)?;
        // MOV EAX, imm32: two bytes here, three there.
        code!(k; mov(word_ptr(PAGES + 0xFFE), 0x44B8); mov(dword_ptr(PAGES + 0x1000), 0xC311_2233u32);
            xor(eax, eax); mov(ebx, TEST + 0xFFE));
        let after = k.fresh();
        k.arm(&after)?;
        code!(k; call(rbx); label(&after));
        k.var64("RIP", EXC_IP, u64::from(TEST) + 0xFFE)?;
        k.var64("CR2", EXC_CR2, u64::from(TEST) + 0x1000)?;
        k.seen("fetch", pf(0x10), None)?;
        map(k, 1, (PAGE + 0x1000) | ALL)?;
        code!(k; mov(rsp, u64::from(STACK)); mov(ebx, TEST + 0xFFE); call(rbx); mov(ecx, eax));
        k.eq("with the page", ecx, 0x1122_3344)
    })
}

/// Jumps to the test page, which must raise a page fault there.
fn fetch_faults(k: &mut Kit, what: &str, error: u32, user: bool) -> R {
    if user {
        k.user(what, pf(error).at(TEST), |k| {
            code!(k; mov(ebx, TEST); jmp(rbx));
            Ok(())
        })?;
    } else {
        code!(k; mov(ebx, TEST));
        k.raises(what, pf(error).at(TEST), |k| k.jmp(rbx))?;
    }
    k.var64("CR2", EXC_CR2, TEST.into())
}

fn reserved(k: &mut Kit) -> R {
    k.check("reserved bits", "3A, 4.5.4 and 4.7", |k| {
        // MAXPHYADDR by CPUID; the bits from there to 51.
        fresh(k)?;
        map(k, 0, PAGE | ALL | 1 << 51)?;
        code!(k; mov(ebx, TEST));
        faults(k, "bit 51, read", 9, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        faults(k, "bit 51, write", 0xB, TEST, |k| k.mov(byte_ptr(rbx), al))?;
        user_faults(k, "bit 51, write in ring 3", 0xF, TEST, |k| k.mov(byte_ptr(rbx), al))?;
        // Not present: no bit is reserved.
        map(k, 0, PAGE | 1 << 51)?;
        faults(k, "not present", 0, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        code!(k; mov(eax, 0x8000_0008u32); cpuid(); movzx(ecx, al); mov(eax, 1); shl(rax, cl);
            or(rax, (PAGES | 7) as i32);
            mov(qword_ptr(PT_TEST), rax); mov(ebx, TEST); invlpg(byte_ptr(rbx)));
        faults(k, "bit MAXPHYADDR", 9, TEST, |k| k.mov(al, byte_ptr(rbx)))
    })?;
    k.check("reserved bits of other levels", "3A, 4.5.4", |k| {
        for (table, entry, what) in [
            (PD_TEST, u64::from(PT_TEST) | ALL | 1 << 51, "page directory entry"),
            (PD_TEST, ALL | PS | 1 << 13, "2 MiB page"),
            (PDPT + 16, u64::from(PD_TEST) | ALL | 1 << 51, "directory pointer"),
            (PDPT + 16, ALL | PS | 1 << 13, "1 GiB page"),
        ] {
            fresh(k)?;
            map(k, 0, PAGE | ALL)?;
            k.poke(table, entry)?;
            code!(k; mov(rax, cr3); mov(cr3, rax); mov(ebx, TEST));
            faults(k, what, 9, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        }
        fresh(k)?;
        // PS in a PML4 entry; the one for the test reaches a region of its own.
        k.poke(PML4 + 8, u64::from(PDPT) | ALL | PS)?;
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(rbx, 0x80_0000_0000u64));
        k.raises("PML4 entry", pf(9), |k| k.mov(al, byte_ptr(rbx)))?;
        k.poke(PML4 + 8, 0)
    })
}

fn accessed_dirty(k: &mut Kit) -> R {
    k.check("accessed and dirty bits", "3A, 4.8", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        code!(k; mov(ebx, TEST); mov(al, byte_ptr(rbx)));
        k.masked("page after a read", PT_TEST, 0x60, A as u32)?;
        k.masked("directory after a read", PD_TEST, 0x20, A as u32)?;
        k.masked("directory pointer after a read", PDPT + 16, 0x20, A as u32)?;
        k.masked("top level after a read", PML4, 0x20, A as u32)?;
        code!(k; mov(byte_ptr(rbx), al));
        k.masked("page after a write", PT_TEST, 0x60, (A | D) as u32)?;
        map(k, 0, PAGE | ALL)?;
        code!(k; mov(ebx, TEST); mov(byte_ptr(rbx), al));
        k.masked("page after a write at once", PT_TEST, 0x60, (A | D) as u32)?;
        map(k, 0, PAGE | ALL | A | D)?;
        k.poke(PT_TEST, PAGE | ALL | A)?;
        code!(k; mov(ebx, TEST); invlpg(byte_ptr(rbx)); mov(al, byte_ptr(rbx)); mov(byte_ptr(rbx), al));
        k.masked("dirty again", PT_TEST, 0x60, (A | D) as u32)
    })?;
    k.check("accesses that fault leave no dirty bit", "3A, 4.8", |k| {
        fresh(k)?;
        map(k, 0, PAGE | P | U)?;
        code!(k; mov(ebx, TEST));
        faults(k, "write", 3, TEST, |k| k.mov(byte_ptr(rbx), al))?;
        k.masked("dirty bit", PT_TEST, D as u32, 0)?;
        map(k, 0, PAGE | ALL)?;
        map(k, 1, 0)?;
        code!(k; mov(ebx, TEST + 0xFFC));
        faults(k, "write across", 2, TEST + 0x1000, |k| k.mov(qword_ptr(rbx), rax))
    })?;
    k.check("dirty bits of large pages, fetches", "3A, 4.8", |k| {
        fresh(k)?;
        k.poke(PD_TEST + 8, ALL | PS)?;
        code!(k; mov(ebx, TEST + 0x20_0000 + PAGES); invlpg(byte_ptr(rbx)); mov(byte_ptr(rbx), 0xC3));
        k.masked("2 MiB page", PD_TEST + 8, 0x60, (A | D) as u32)?;
        map(k, 0, PAGE | ALL)?;
        code!(k; mov(ebx, TEST); call(rbx));
        k.masked("page after a fetch", PT_TEST, 0x60, A as u32)?;
        k.poke(PD_TEST + 8, 0)
    })
}

fn large(k: &mut Kit) -> R {
    k.check("2 MiB and 1 GiB pages", "3A, 4.5.4 and table 4-16", |k| {
        fresh(k)?;
        code!(k; mov(dword_ptr(SCRATCH), 0x1234_5678));
        k.poke(PD_TEST + 8, ALL | PS)?;
        code!(k; mov(ebx, TEST + 0x20_0000 + SCRATCH); mov(ecx, dword_ptr(rbx)));
        k.eq("2 MiB", ecx, 0x1234_5678)?;
        // The PAT bit is at another place there; it is not part of the address.
        k.poke(PD_TEST + 8, ALL | PS | 1 << 12)?;
        code!(k; invlpg(byte_ptr(rbx)); mov(ecx, dword_ptr(rbx)));
        k.eq("2 MiB with the PAT bit", ecx, 0x1234_5678)?;
        k.poke(PDPT + 32, P | W | PS)?;
        code!(k; mov(rbx, 0x1_0000_0000u64 + u64::from(SCRATCH)); mov(ecx, dword_ptr(rbx)));
        k.eq("1 GiB", ecx, 0x1234_5678)?;
        k.user("1 GiB supervisor page", pf(5).anywhere(), |k| {
            code!(k; mov(rbx, 0x1_0000_0000u64 + u64::from(SCRATCH)));
            k.faulting(|k| k.mov(ecx, dword_ptr(rbx)))
        })?;
        k.var64("CR2", EXC_CR2, 0x1_0000_0000 + u64::from(SCRATCH))?;
        k.poke(PD_TEST + 8, 0)?;
        k.poke(PDPT + 32, 0)
    })?;
    k.check("a large page becomes small ones", "3A, 4.10.4.1", |k| {
        fresh(k)?;
        code!(k; mov(dword_ptr(PAGES), 0x11); mov(dword_ptr(PAGES + 0x1000), 0x22));
        k.poke(PD_TEST, ALL | PS)?;
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(ebx, TEST + PAGES); mov(ecx, dword_ptr(rbx));
            mov(edx, dword_ptr(rbx + 0x1000)));
        k.eq("large", ecx, 0x11)?;
        k.poke(PT_TEST + (PAGES >> 12) * 8, (PAGE + 0x1000) | ALL)?;
        k.poke(PT_TEST + (PAGES >> 12) * 8 + 8, PAGE | ALL)?;
        k.poke(PD_TEST, u64::from(PT_TEST) | ALL)?;
        // One INVLPG for the whole of the large page.
        code!(k; invlpg(byte_ptr(rbx)); mov(ecx, dword_ptr(rbx)); mov(edx, dword_ptr(rbx + 0x1000)));
        k.eq("first small page", ecx, 0x22)?;
        k.eq("second small page", edx, 0x11)
    })
}

fn crossing(k: &mut Kit) -> R {
    k.check("writes across pages are all or nothing", "3A, 6.15 (#PF); 3A, 4.7", |k| {
        type Emit = fn(&mut Kit) -> R;
        let list: [(&str, Emit); 12] = [
            ("MOV", |k| k.mov(qword_ptr(rbx), rax)),
            ("XCHG", |k| k.xchg(qword_ptr(rbx), rax)),
            ("XADD", |k| k.lock().xadd(qword_ptr(rbx), rax)),
            ("ADD", |k| k.add(qword_ptr(rbx), rax)),
            ("CMPXCHG", |k| k.cmpxchg(qword_ptr(rbx), rcx)),
            ("CMPXCHG8B", |k| k.lock().cmpxchg8b(qword_ptr(rbx))),
            ("STOSQ", |k| k.stosq()),
            ("MOVUPS", |k| k.movups(xmmword_ptr(rbx), xmm0)),
            ("FSTP", |k| k.fst(qword_ptr(rbx))),
            ("BTS", |k| k.bts(qword_ptr(rbx), 1)),
            ("SHLD", |k| k.shld(qword_ptr(rbx), rax, 4)),
            ("MOVBE", |k| k.movbe(qword_ptr(rbx), rax)),
        ];
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        map(k, 1, PAGE + 0x1000)?;
        for (what, emit) in list {
            code!(k; mov(dword_ptr(PAGES + 0xFFC), 0x5A5A_5A5A); mov(ebx, TEST + 0xFFC); mov(rdi, rbx);
                mov(rax, 0x1111_1111_1111_1111u64);
                mov(rdx, rax); fninit(); fld1());
            faults(k, what, 2, TEST + 0x1000, emit)?;
            k.var("first page", PAGES + 0xFFC, 0x5A5A_5A5A)?;
        }
        // The same with the second page read-only.
        map(k, 1, (PAGE + 0x1000) | P)?;
        for (what, emit) in list {
            code!(k; mov(dword_ptr(PAGES + 0xFFC), 0x5A5A_5A5A); mov(ebx, TEST + 0xFFC); mov(rdi, rbx);
                mov(rax, 0x1111_1111_1111_1111u64);
                mov(rdx, rax); fninit(); fld1());
            faults(k, what, 3, TEST + 0x1000, emit)?;
            k.var("first page", PAGES + 0xFFC, 0x5A5A_5A5A)?;
        }
        Ok(())
    })?;
    k.check("registers after a fault in the middle", "2B, REP; 2B, PUSH, POP; 2A, CALL", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        map(k, 1, 0)?;
        code!(k; mov(ecx, 10); mov(esi, SCRATCH); mov(edi, TEST + 0xFFD));
        faults(k, "REP MOVSB", 2, TEST + 0x1000, |k| k.rep().movsb())?;
        k.eq("RCX", ecx, 7)?;
        k.eq("RDI", edi, TEST + 0x1000)?;
        k.eq("RSI", esi, SCRATCH + 3)?;
        code!(k; mov(ecx, 0x300); mov(esi, TEST + 0xE00); mov(edi, SCRATCH));
        faults(k, "REP MOVSB, source", 0, TEST + 0x1000, |k| k.rep().movsb())?;
        k.eq("RCX", ecx, 0x100)?;
        // POP to memory that is not there leaves RSP.
        code!(k; mov(ebx, TEST + 0x1000); push(rax); mov(rcx, rsp));
        faults(k, "POP", 2, TEST + 0x1000, |k| k.pop(qword_ptr(rbx)))?;
        code!(k; sub(rcx, rsp));
        k.eq64("RSP", rcx, 0)?;
        // The stack in ring 3: nothing below the page.
        map(k, 2, PAGE | ALL)?;
        for what in ["PUSH", "CALL", "ENTER"] {
            let target = k.imm("main");
            let at = k.fresh();
            let ip = k.user_imm(&at);
            k.user(what, pf(6).at(ip), |k| {
                code!(k; mov(esp, TEST + 0x2000); mov(ebp, 0x77); label(&at));
                k.faulting(|k| match what {
                    "PUSH" => k.push(rax),
                    "CALL" => k.call(u64::from(target)),
                    _ => k.enter(0x10, 0),
                })
            })?;
            k.var64("RSP", EXC_SP, u64::from(TEST) + 0x2000)?;
        }
        Ok(())
    })?;
    k.check("ENTER looks at its whole frame", "2A, ENTER", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        map(k, 1, 0)?;
        map(k, 2, (PAGE + 0x1000) | ALL)?;
        let at = k.fresh();
        let ip = k.user_imm(&at);
        // RBP is pushed on a page that is there, the new stack pointer is on one that is not.
        k.user("frame of 32 bytes", pf(6).at(ip), |k| {
            code!(k; mov(esp, TEST + 0x2010); mov(ebp, 0x77); label(&at));
            k.faulting(|k| k.enter(0x20, 0))
        })?;
        k.var64("RSP", EXC_SP, u64::from(TEST) + 0x2010)
    })
}

fn implicit(k: &mut Kit) -> R {
    k.check("descriptor tables are read as ring 0", "3A, 4.6 (implicit supervisor accesses)", |k| {
        fresh(k)?;
        k.poke(PAGES + 8, segment(0, 0xF_FFFF, 0xF2, G | B))?;
        k.descriptor(LDT_SEL, segment(TEST, 0xFFF, LDT_TYPE, 0))?;
        map(k, 0, PAGE)?;
        code!(k; mov(eax, LDT_SEL); lldt(ax));
        k.user("not present", pf(0).anywhere(), |k| {
            code!(k; mov(eax, 15));
            k.faulting(|k| k.mov(ds, eax))
        })?;
        k.var64("CR2", EXC_CR2, u64::from(TEST) + 8)?;
        map(k, 0, PAGE | P)?;
        k.user("accessed bit on a read-only page", pf(3).anywhere(), |k| {
            code!(k; mov(eax, 15));
            k.faulting(|k| k.mov(ds, eax))
        })?;
        map(k, 0, PAGE | P | W)?;
        k.user("supervisor page", UD.anywhere(), |k| {
            code!(k; mov(eax, 15); mov(ds, eax); ud2());
            Ok(())
        })?;
        k.masked("accessed", PAGES + 12, 0xFF00, 0xF300)
    })?;
    k.check("page faults during delivery", "3A, 6.15 (#DF) and table 6-5", |k| {
        fresh(k)?;
        map(k, 0, 0)?;
        let vectors = k.imm("vectors");
        for vector in [8u32, 14] {
            k.idt(vector, gate(CODE64, vectors + vector * 5, INT32, 2))?;
        }
        code!(k; mov(ebx, TEST + 0x800); mov(qword_ptr(TSS + 4), rbx));
        k.user("UD2 with a bad stack: #PF", pf(2).anywhere(), |k| k.ud2())?;
        // Which of the frame's words is written first is not said.
        k.masked("CR2", EXC_CR2, 0xFFFF_F000, TEST)?;
        k.user("#GP with a bad stack: #PF", pf(2).anywhere(), |k| k.faulting(|k| k.hlt()))?;
        k.idt(14, gate(CODE64, vectors + 14 * 5, INT32, 0))?;
        k.user("#PF with a bad stack: #DF", DF, |k| {
            code!(k; mov(ebx, TEST));
            k.faulting(|k| k.mov(al, byte_ptr(rbx)))
        })?;
        k.masked("CR2 of the second", EXC_CR2, 0xFFFF_FF00, TEST + 0x700)
    })
}

fn supervisor_modes(k: &mut Kit) -> R {
    k.check("SMEP", "3A, 4.6.1", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        code!(k; mov(byte_ptr(PAGES), 0xC3));
        k.cr4_bits(SMEP, 0)?;
        fetch_faults(k, "user page in ring 0", 0x11, false)?;
        map(k, 0, PAGE | P | W)?;
        code!(k; mov(ebx, TEST); call(rbx));
        // With SMEP the fetch bit is reported even without NXE.
        k.msr(EFER, 0x501)?;
        map(k, 0, 0)?;
        fetch_faults(k, "not present, without NXE", 0x10, false)?;
        k.msr(EFER, 0xD01)?;
        map(k, 0, PAGE | ALL)?;
        k.cr4_bits(0, SMEP)?;
        code!(k; mov(ebx, TEST); call(rbx));
        Ok(())
    })?;
    k.check("SMAP", "3A, 4.6.1", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        k.cr4_bits(SMAP, 0)?;
        code!(k; mov(ebx, TEST));
        faults(k, "read", 1, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        faults(k, "write", 3, TEST, |k| k.mov(byte_ptr(rbx), al))?;
        code!(k; stac(); mov(byte_ptr(rbx), 0x42); mov(cl, byte_ptr(rbx)); clac(); movzx(ecx, cl));
        k.eq("with AC", ecx, 0x42)?;
        code!(k; mov(ebx, TEST));
        faults(k, "after CLAC", 1, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        code!(k; pushfq(); or(dword_ptr(rsp), AC); popfq(); mov(al, byte_ptr(rbx)); pushfq();
            and(dword_ptr(rsp), !AC); popfq());
        map(k, 0, PAGE | P)?;
        code!(k; mov(ebx, TEST); mov(al, byte_ptr(rbx)));
        // Ring 3 is not concerned, and may not say STAC.
        map(k, 0, PAGE | ALL)?;
        user_passes(k, "ring 3", |k| k.mov(al, byte_ptr(rbx)))?;
        k.user("STAC in ring 3", UD, |k| k.faulting(|k| k.stac()))?;
        k.cr4_bits(0, SMAP)?;
        code!(k; mov(ebx, TEST); mov(al, byte_ptr(rbx)));
        Ok(())
    })?;
    k.check("SMAP and implicit accesses: AC does not help", "3A, 4.6.1", |k| {
        fresh(k)?;
        map(k, 0, PAGE | ALL)?;
        k.poke(PAGES + 8, segment(0, 0xF_FFFF, 0xF3, G | B))?;
        k.descriptor(LDT_SEL, segment(TEST, 0xFFF, LDT_TYPE, 0))?;
        code!(k; mov(eax, LDT_SEL); lldt(ax));
        k.cr4_bits(SMAP, 0)?;
        code!(k; stac(); mov(eax, 15));
        faults(k, "descriptor on a user page", 1, TEST + 8, |k| k.mov(ds, eax))?;
        k.cr4_bits(0, SMAP)?;
        code!(k; mov(eax, 15); mov(ds, eax));
        Ok(())
    })
}

fn protection_keys(k: &mut Kit) -> R {
    k.check("protection keys", "3A, 4.6.2 and 4.7", |k| {
        fresh(k)?;
        k.raises("RDPKRU without CR4.PKE", UD, |k| k.faulting(|k| k.rdpkru()))?;
        k.cr4_bits(PKE, 0)?;
        map(k, 0, PAGE | ALL | 3 << 59)?;
        let pkru = |k: &mut Kit, value: u32| {
            code!(k; mov(eax, value); xor(ecx, ecx); xor(edx, edx); wrpkru(); mov(ebx, TEST));
            Ok(())
        };
        // Key 3: access disabled.
        pkru(k, 1 << 6)?;
        user_faults(k, "AD, read in ring 3", 0x25, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        user_faults(k, "AD, write in ring 3", 0x27, TEST, |k| k.mov(byte_ptr(rbx), al))?;
        code!(k; mov(ebx, TEST));
        faults(k, "AD, read in ring 0", 0x21, TEST, |k| k.mov(al, byte_ptr(rbx)))?;
        // Keys do not concern fetches.
        code!(k; mov(byte_ptr(PAGES), 0xC3); mov(ebx, TEST); call(rbx));
        // Key 3: writes disabled.
        pkru(k, 2 << 6)?;
        code!(k; mov(al, byte_ptr(rbx)));
        user_faults(k, "WD, write in ring 3", 0x27, TEST, |k| k.mov(byte_ptr(rbx), al))?;
        code!(k; mov(ebx, TEST));
        faults(k, "WD, write in ring 0 with WP", 0x23, TEST, |k| k.mov(byte_ptr(rbx), al))?;
        k.cr0_bits(0, CR0_WP)?;
        code!(k; mov(byte_ptr(rbx), al));
        k.cr0_bits(CR0_WP, 0)?;
        // Supervisor pages have no key.
        map(k, 0, PAGE | P | W | 3 << 59)?;
        pkru(k, 3 << 6)?;
        code!(k; mov(byte_ptr(rbx), al));
        map(k, 0, PAGE | ALL | 2 << 59)?;
        code!(k; mov(ebx, TEST); mov(byte_ptr(rbx), al));
        pkru(k, 0xAAAA_5555)?;
        code!(k; xor(ecx, ecx); mov(edx, 7); rdpkru(); mov(ebx, eax));
        k.eq("RDPKRU", ebx, 0xAAAA_5555)?;
        k.eq("EDX", edx, 0)?;
        code!(k; mov(ecx, 1));
        k.raises("RDPKRU with ECX", gp(0), |k| k.faulting(|k| k.rdpkru()))?;
        code!(k; xor(ecx, ecx); mov(edx, 1));
        k.raises("WRPKRU with EDX", gp(0), |k| k.faulting(|k| k.wrpkru()))?;
        pkru(k, 0)?;
        k.cr4_bits(0, PKE)
    })
}
