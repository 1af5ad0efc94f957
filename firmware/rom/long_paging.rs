//! Paging in long mode: four levels, pages of 4 KiB, 2 MiB and 1 GiB, no-execute, write protection, SMEP and SMAP.
//!
//! ```text
//! 0000_0000_0000_0000   1 GiB  itself, 2 MiB pages, ring 0
//! 0000_0000_4000_0000   2 MiB  pages under test
//! 0000_0000_4020_0000   2 MiB  physical 0 for ring 3
//! 0000_0000_4040_0000   2 MiB  physical 0 with a reserved bit
//! 0000_0000_8000_0000   1 GiB  physical 0, if the processor has 1 GiB pages
//! 0000_0000_C000_0000   1 GiB  itself, uncached (interrupt controllers, HPET, ROM)
//! FFFF_8000_0000_0000   the same 512 GiB again, ring 0
//! ```

use iced_x86::code_asm::*;

use super::layout::*;
use super::long::expect_user_result;
use super::modes::{Saved, expect_exception, expect_user};
use super::report::{self, begin, end, expect32, expect64};
use tessera_asm::{Code, R, Symbols};

/// The pages under test.
const TEST: u64 = 0x4000_0000;
/// Physical 0 as ring 3 sees it.
pub const USER_WINDOW: u64 = 0x4020_0000;
const RESERVED_WINDOW: u64 = 0x4040_0000;
const GIANT: u64 = 0x8000_0000;
const HIGH_HALF: u64 = 0xFFFF_8000_0000_0000;

const P: u32 = 1;
const W: u32 = 2;
const U: u32 = 4;
const UNCACHED: u32 = 0x18;
const ACCESSED: u32 = 0x20;
const DIRTY: u32 = 0x40;
const PS: u32 = 0x80;
const RESERVED: u32 = 8;
const FETCH: u32 = 0x10;

/// Emits 32-bit code that fills the (cleared) tables.
pub fn tables(c: &mut Code, s: &Symbols) -> R {
    let mut set = |at: u32, low: u32, high: u32| {
        c.mov(dword_ptr(at), low)?;
        if high == 0 { Ok(()) } else { c.mov(dword_ptr(at + 4), high) }
    };
    set(PML4, PDPT | P | W | U, 0)?;
    set(PML4 + 256 * 8, PDPT | P | W, 0)?;
    set(PDPT, PD0 | P | W | U, 0)?;
    set(PDPT + 8, PD1 | P | W | U, 0)?;
    set(PDPT + 16, P | W | PS, 0)?;
    set(PDPT + 24, PD3 | P | W | U, 0)?;
    set(PD1, PT_TEST | P | W | U, 0)?;
    set(PD1 + 8, P | W | U | PS, 0)?;
    set(PD1 + 16, P | W | PS | 1 << 13, 0)?;
    // 0: writable, 1: read-only, 2: absent, 3: no-execute, 4: user read-only, 5: user, 6: ignored bit 55 set, 7: writable,
    // followed by an absent page
    let entry = |index: u32| PT_TEST + index * 8;
    set(entry(0), PAGE_A | P | W, 0)?;
    set(entry(1), PAGE_A | P, 0)?;
    set(entry(3), PAGE_A | P | W, 1 << 31)?;
    set(entry(4), PAGE_B | P | U, 0)?;
    set(entry(5), PAGE_B | P | W | U, 0)?;
    set(entry(6), PAGE_A | P | W, 1 << 23)?;
    set(entry(7), PAGE_A | P | W, 0)?;
    for (table, first, flags) in [(PD0, 0, P | W | PS), (PD3, 0xC000_0000, P | W | PS | UNCACHED)] {
        let fill = c.fresh();
        c.mov(edi, table)?;
        c.mov(eax, first | flags)?;
        c.label(&fill)?;
        c.mov(dword_ptr(edi), eax)?;
        c.add(eax, 0x20_0000)?;
        c.add(edi, 8)?;
        c.cmp(edi, table + 0x1000)?;
        c.jne(s.at(&fill))?;
    }
    Ok(())
}

fn page(index: u64) -> u64 {
    TEST + index * 0x1000
}

/// Expects #PF with the given error code and CR2.
fn expect_pf(
    c: &mut Code,
    s: &Symbols,
    what: &str,
    error: u32,
    address: u64,
    access: fn(&mut Code) -> R,
) -> R {
    c.mov(rbx, address)?;
    expect_exception(c, s, what, (14, error), Saved::This, access)?;
    expect_cr2(c, s, address)
}

fn expect_cr2(c: &mut Code, s: &Symbols, address: u64) -> R {
    c.mov(rax, qword_ptr(EXC_CR2))?;
    expect64(c, s, "CR2 of the last page fault", rax, address)
}

fn expect_user_pf(c: &mut Code, s: &Symbols, what: &str, error: u32, address: u64, user: &str) -> R {
    c.mov(rdi, address)?;
    expect_user(c, s, what, (14, error), user)?;
    expect_cr2(c, s, address)
}

fn read(c: &mut Code) -> R {
    c.mov(eax, dword_ptr(rbx))
}

fn write(c: &mut Code) -> R {
    c.mov(dword_ptr(rbx), 0x1357_9BDF)
}

/// Expects the 32-bit value at a virtual address.
fn expect_memory(c: &mut Code, s: &Symbols, what: &str, address: u64, expected: u32) -> R {
    c.mov(rbx, address)?;
    c.mov(eax, dword_ptr(rbx))?;
    expect32(c, s, what, eax, expected)
}

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    large_pages(c, s)?;
    faults(c, s)?;
    supervisor_protection(c, s)
}

fn large_pages(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "long mode: four-level paging, 2 MiB pages")?;
    c.mov(rbx, USER_WINDOW + u64::from(SCRATCH) + 0x10)?;
    c.mov(dword_ptr(rbx), 0x1111_0001)?;
    expect_memory(c, s, "2 MiB page", USER_WINDOW + u64::from(SCRATCH) + 0x10, 0x1111_0001)?;
    expect_memory(c, s, "the high half", HIGH_HALF + u64::from(SCRATCH) + 0x10, 0x1111_0001)?;
    c.mov(rbx, page(0))?;
    c.mov(rcx, 0x1122_3344_5566_7788u64)?;
    c.mov(qword_ptr(rbx + 0x20), rcx)?;
    c.mov(rax, qword_ptr(PAGE_A + 0x20))?;
    expect64(c, s, "4 KiB page", rax, 0x1122_3344_5566_7788)?;
    c.mov(rbx, page(6))?;
    c.mov(rax, qword_ptr(rbx + 0x20))?;
    expect64(c, s, "a page whose entry has an ignored bit set", rax, 0x1122_3344_5566_7788)?;
    for (what, at, expected) in [
        ("accessed and dirty of a written page", PT_TEST, ACCESSED | DIRTY),
        ("accessed and dirty of a read page", PT_TEST + 6 * 8, ACCESSED),
        ("accessed and dirty of a written 2 MiB page", PD1 + 8, ACCESSED | DIRTY),
        ("accessed of a PML4 entry", PML4, ACCESSED),
    ] {
        c.mov(eax, dword_ptr(at))?;
        c.and(eax, if at == PML4 { ACCESSED } else { ACCESSED | DIRTY })?;
        expect32(c, s, what, eax, expected)?;
    }
    // Rotating a value across a page boundary between two mappings of different pages.
    c.mov(rbx, page(4) + 0xFFE)?;
    c.mov(word_ptr(PAGE_B + 0xFFE), 0xAABBu32)?;
    c.mov(word_ptr(PAGE_B), 0xCCDDu32)?;
    c.mov(eax, dword_ptr(rbx))?;
    expect32(c, s, "read across two pages", eax, 0xCCDD_AABB)?;
    end(c, s)?;

    begin(c, s, "long mode: 1 GiB pages (if the processor has them)")?;
    let absent = c.fresh();
    c.mov(eax, 0x8000_0001u32)?;
    c.cpuid()?;
    c.test(edx, 1 << 26)?;
    c.je(s.at(&absent))?;
    expect_memory(c, s, "1 GiB page", GIANT + u64::from(SCRATCH) + 0x10, 0x1111_0001)?;
    c.mov(rbx, GIANT + u64::from(SCRATCH) + 0x14)?;
    c.mov(dword_ptr(rbx), 0x1111_0002)?;
    c.mov(eax, dword_ptr(SCRATCH + 0x14))?;
    expect32(c, s, "what was written through it", eax, 0x1111_0002)?;
    c.mov(eax, dword_ptr(PDPT + 16))?;
    c.and(eax, ACCESSED | DIRTY)?;
    expect32(c, s, "accessed and dirty of a 1 GiB page", eax, ACCESSED | DIRTY)?;
    c.label(&absent)?;
    end(c, s)
}

fn faults(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "long mode: page faults, write protection, no-execute")?;
    expect_pf(c, s, "read of an absent page", 0, page(2) + 1, read)?;
    expect_pf(c, s, "write to an absent page", W, page(2), write)?;
    expect_pf(c, s, "write to a read-only page", P | W, page(1), write)?;
    expect_pf(c, s, "reserved bit of a 2 MiB page", P | RESERVED, RESERVED_WINDOW, read)?;
    expect_pf(c, s, "absent PML4 entry", 0, 0x0000_7FFF_FFFF_F000, read)?;
    c.mov(rax, cr0)?;
    c.and(eax, !0x1_0000u32)?;
    c.mov(cr0, rax)?;
    c.mov(rbx, page(1))?;
    c.mov(dword_ptr(rbx + 0x30), 0x0A0A_0A0A)?;
    c.mov(rax, cr0)?;
    c.or(eax, 0x1_0000)?;
    c.mov(cr0, rax)?;
    c.mov(eax, dword_ptr(PAGE_A + 0x30))?;
    expect32(c, s, "write to a read-only page with CR0.WP = 0", eax, 0x0A0A_0A0A)?;
    c.mov(byte_ptr(PAGE_A), 0xC3u32)?; // RET
    c.mov(rbx, page(0))?;
    c.call(rbx)?;
    c.mov(rbx, page(3))?;
    let after = c.fresh();
    report::arm(c, s, &after)?;
    c.call(rbx)?;
    c.label(&after)?;
    report::expect_exception(c, s, "call of a no-execute page", (14, P | FETCH), page(3) as u32)?;
    expect_user_pf(c, s, "ring 3 read of a ring 0 page", P | U, page(0), "user64.read")?;
    expect_user_pf(c, s, "ring 3 write to a read-only page", P | W | U, page(4), "user64.write")?;
    expect_user_pf(c, s, "ring 3 read of the high half", P | U, HIGH_HALF, "user64.read")?;
    c.mov(rdi, page(5))?;
    expect_user(c, s, "ring 3 write to its page", (u32::from(VEC_SYSCALL), 0), "user64.write")?;
    c.mov(eax, dword_ptr(PAGE_B))?;
    expect32(c, s, "what ring 3 wrote", eax, 0x7777_7777)?;
    // The TLB forgets everything but global pages on a write to CR3.
    c.mov(rbx, page(5))?;
    c.mov(eax, dword_ptr(rbx + 0x50))?;
    c.mov(dword_ptr(PAGE_A + 0x50), 0x3141_5926)?;
    c.mov(dword_ptr(PT_TEST + 5 * 8), PAGE_A | P | W | U)?;
    c.mov(rax, cr3)?;
    c.mov(cr3, rax)?;
    c.mov(eax, dword_ptr(rbx + 0x50))?;
    expect32(c, s, "read through an entry changed before a CR3 write", eax, 0x3141_5926)?;
    end(c, s)
}

fn supervisor_protection(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "long mode: SMEP and SMAP (if the processor has them)")?;
    let (no_smep, no_smap) = (c.fresh(), c.fresh());
    c.xor(eax, eax)?;
    c.cpuid()?;
    c.cmp(eax, 7)?;
    c.jb(s.at(&no_smap))?;
    c.mov(eax, 7)?;
    c.xor(ecx, ecx)?;
    c.cpuid()?;
    c.mov(dword_ptr(SCRATCH_VAR), ebx)?;
    c.test(ebx, 1 << 7)?;
    c.je(s.at(&no_smep))?;
    c.mov(rax, cr4)?;
    c.or(eax, 1 << 20)?;
    c.mov(cr4, rax)?;
    c.mov(byte_ptr(PAGE_A), 0xC3u32)?;
    c.mov(rbx, page(5))?;
    let after = c.fresh();
    report::arm(c, s, &after)?;
    c.call(rbx)?;
    c.label(&after)?;
    report::expect_exception(c, s, "ring 0 call of a ring 3 page", (14, P | FETCH), page(5) as u32)?;
    c.label(&no_smep)?;
    c.test(dword_ptr(SCRATCH_VAR), 1 << 20)?;
    c.je(s.at(&no_smap))?;
    c.mov(rax, cr4)?;
    c.or(eax, 1 << 21)?;
    c.mov(cr4, rax)?;
    c.clac()?;
    expect_pf(c, s, "ring 0 read of a ring 3 page", P, page(5), read)?;
    c.mov(dword_ptr(PAGE_A + 0x60), 0x2718_2818)?;
    c.stac()?;
    c.mov(rbx, page(5))?;
    c.mov(eax, dword_ptr(rbx + 0x60))?;
    c.clac()?;
    expect32(c, s, "the same after STAC", eax, 0x2718_2818)?;
    // Ring 3 itself is not concerned.
    c.mov(rdi, page(5) + 0x60)?;
    expect_user_result(c, s, "ring 3 read with SMAP on", "user64.read", 0x2718_2818)?;
    c.label(&no_smap)?;
    c.mov(rax, cr4)?;
    c.and(eax, !(3u32 << 20))?;
    c.mov(cr4, rax)?;
    end(c, s)
}
