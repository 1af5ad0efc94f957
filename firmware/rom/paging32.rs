//! Paging in 32-bit protected mode: two levels with 4 MiB pages, then PAE with NX.
//!
//! The first 4 MiB (PAE: 2 MiB) are mapped to themselves, open to ring 3, so that code, stacks and tables keep their
//! addresses. The tests play in the mebibytes above ([`TEST`]).

use iced_x86::code_asm::*;

use super::layout::*;
use super::modes::{Saved, expect_exception, expect_user};
use super::report::{self, begin, end, expect_var, expect32};
use tessera_asm::{Code, R, Symbols};

/// First linear address of the pages under test, in both modes.
const TEST: u32 = 0x40_0000;
/// The large page that shows physical address 0 again.
const LARGE: u32 = 0x80_0000;

// Page table entry bits, and the error code bits of the same names.
const P: u32 = 1;
const W: u32 = 2;
const U: u32 = 4;
const ACCESSED: u32 = 0x20;
const DIRTY: u32 = 0x40;
const PS: u32 = 0x80;
const RESERVED: u32 = 8;
const FETCH: u32 = 0x10;

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    two_level(c, s)?;
    pae(c, s)?;
    c.label(PAGED)
}

/// Where it goes on after all of this.
const PAGED: &str = "32.paged";

/// Sets EFER.NXE.
fn set_no_execute(c: &mut Code) -> R {
    c.mov(ecx, 0xC000_0080u32)?;
    c.rdmsr()?;
    c.or(eax, 0x800)?;
    c.wrmsr()
}

/// Linear address of test page `index`.
fn page(index: u32) -> u32 {
    TEST + index * 0x1000
}

/// Expects #PF with the given error code and CR2.
fn expect_pf(
    c: &mut Code,
    s: &Symbols,
    what: &str,
    error: u32,
    address: u32,
    access: fn(&mut Code, u32) -> R,
) -> R {
    expect_exception(c, s, what, (14, error), Saved::This, |c| access(c, address))?;
    expect_var(c, s, "CR2 of the last page fault", EXC_CR2, address)
}

/// The same for an access by ring 3 code that takes the address in EDI.
fn expect_user_pf(c: &mut Code, s: &Symbols, what: &str, error: u32, address: u32, user: &str) -> R {
    c.mov(edi, address)?;
    expect_user(c, s, what, (14, error), user)?;
    expect_var(c, s, "CR2 of the last page fault", EXC_CR2, address)
}

fn read(c: &mut Code, address: u32) -> R {
    c.mov(ebx, dword_ptr(address))
}

fn write(c: &mut Code, address: u32) -> R {
    c.mov(dword_ptr(address), 0x1357_9BDF)
}

fn set_cr0(c: &mut Code, bits: u32, on: bool) -> R {
    c.mov(eax, cr0)?;
    if on {
        c.or(eax, bits)?
    } else {
        c.and(eax, !bits)?
    }
    c.mov(cr0, eax)
}

fn set_cr4(c: &mut Code, bits: u32, on: bool) -> R {
    c.mov(eax, cr4)?;
    if on {
        c.or(eax, bits)?
    } else {
        c.and(eax, !bits)?
    }
    c.mov(cr4, eax)
}

fn clear(c: &mut Code, from: u32, to: u32) -> R {
    c.mov(edi, from)?;
    c.mov(ecx, (to - from) / 4)?;
    c.xor(eax, eax)?;
    c.rep().stosd()
}

const PG: u32 = 1 << 31;
const WP: u32 = 1 << 16;
const CR4_PSE: u32 = 1 << 4;
const CR4_PAE: u32 = 1 << 5;

fn two_level(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "paging: two levels, 4 MiB pages")?;
    clear(c, PD32, PDPT_PAE)?;
    clear(c, PAGE_A, PAGE_B + 0x1000)?;
    c.mov(edi, PT32)?;
    c.mov(eax, P | W | U)?;
    let fill = c.fresh();
    c.label(&fill)?;
    c.stosd()?;
    c.add(eax, 0x1000)?;
    c.cmp(edi, PT32 + 0x1000)?;
    c.jne(s.at(&fill))?;
    c.mov(dword_ptr(PD32), PT32 | P | W | U)?;
    c.mov(dword_ptr(PD32 + (TEST >> 22) * 4), PT32_TEST | P | W | U)?;
    c.mov(dword_ptr(PD32 + (LARGE >> 22) * 4), P | W | PS)?;
    let entry = |index: u32| PT32_TEST + index * 4;
    // 0: writable, 1: read-only, 2: absent, 3: user, 4: user read-only, 5: writable, followed by an absent page
    for (index, value) in [
        (0, PAGE_A | P | W),
        (1, PAGE_A | P),
        (3, PAGE_B | P | W | U),
        (4, PAGE_B | P | U),
        (5, PAGE_A | P | W),
    ] {
        c.mov(dword_ptr(entry(index)), value)?;
    }
    c.mov(eax, PD32)?;
    c.mov(cr3, eax)?;
    set_cr4(c, CR4_PSE, true)?;
    // A virtual processor may have paging in long mode only: the checks go on there.
    let (after, on) = (c.fresh(), c.fresh());
    report::arm(c, s, &after)?;
    set_cr0(c, PG, true)?;
    c.label(&after)?;
    c.mov(dword_ptr(RESUME), 0)?;
    expect_var(c, s, "exception when CR0.PG is set (none: 0xffff)", EXC_VECTOR, 0xFFFF)?;
    c.cmp(dword_ptr(EXC_VECTOR), 0xFFFF)?;
    c.je(s.at(&on))?;
    end(c, s)?;
    set_cr4(c, CR4_PAE, true)?;
    set_no_execute(c)?;
    c.jmp(s.at(PAGED))?;
    c.label(&on)?;

    c.mov(dword_ptr(page(0) + 0x10), 0xABCD_1234u32)?;
    c.mov(eax, dword_ptr(PAGE_A + 0x10))?;
    expect32(c, s, "write through a mapping", eax, 0xABCD_1234)?;
    c.mov(eax, dword_ptr(page(1) + 0x10))?;
    expect32(c, s, "read through another mapping", eax, 0xABCD_1234)?;
    c.mov(dword_ptr(LARGE + SCRATCH + 0x300), 0x600D_CAFE)?;
    c.mov(eax, dword_ptr(SCRATCH + 0x300))?;
    expect32(c, s, "write through a 4 MiB page", eax, 0x600D_CAFE)?;
    end(c, s)?;

    begin(c, s, "paging: accessed and dirty bits")?;
    for (what, place, expected) in [
        ("of a written page", entry(0), ACCESSED | DIRTY),
        ("of a read page", entry(1), ACCESSED),
        ("of an untouched page", entry(5), 0),
        ("of a written 4 MiB page", PD32 + (LARGE >> 22) * 4, ACCESSED | DIRTY),
    ] {
        c.mov(eax, dword_ptr(place))?;
        c.and(eax, ACCESSED | DIRTY)?;
        expect32(c, s, what, eax, expected)?;
    }
    c.mov(eax, dword_ptr(PD32 + (TEST >> 22) * 4))?;
    c.and(eax, ACCESSED)?;
    expect32(c, s, "of a page directory entry", eax, ACCESSED)?;
    // A page whose dirty bit is cleared again is marked again, after the TLB forgot it.
    c.mov(dword_ptr(entry(0)), PAGE_A | P | W)?;
    c.invlpg(byte_ptr(page(0)))?;
    c.mov(eax, dword_ptr(page(0)))?;
    c.mov(eax, dword_ptr(entry(0)))?;
    c.and(eax, ACCESSED | DIRTY)?;
    expect32(c, s, "of a cleared entry after a read", eax, ACCESSED)?;
    c.inc(dword_ptr(page(0)))?;
    c.mov(eax, dword_ptr(entry(0)))?;
    c.and(eax, ACCESSED | DIRTY)?;
    expect32(c, s, "of a cleared entry after a write", eax, ACCESSED | DIRTY)?;
    end(c, s)?;

    begin(c, s, "paging: page faults in ring 0 and ring 3")?;
    expect_pf(c, s, "read of an absent page", 0, page(2) + 8, read)?;
    expect_pf(c, s, "write to an absent page", W, page(2) + 12, write)?;
    expect_pf(c, s, "read beyond the tables", 0, 0xC000_0000, read)?;
    c.mov(dword_ptr(page(1) + 0x20), 0x5555_5555)?;
    c.mov(eax, dword_ptr(PAGE_A + 0x20))?;
    expect32(c, s, "write to a read-only page with CR0.WP = 0", eax, 0x5555_5555)?;
    set_cr0(c, WP, true)?;
    expect_pf(c, s, "write to a read-only page with CR0.WP = 1", P | W, page(1) + 0x20, write)?;
    set_cr0(c, WP, false)?;
    expect_user_pf(c, s, "ring 3 read of a ring 0 page", P | U, page(0), "user.read")?;
    expect_user_pf(c, s, "ring 3 write to a read-only page", P | W | U, page(4), "user.write")?;
    expect_user_pf(c, s, "ring 3 write to an absent page", W | U, page(2), "user.write")?;
    expect_user_pf(c, s, "ring 3 jump to a ring 0 page", P | U, page(0), "user.jump")?;
    c.mov(edi, page(3))?;
    expect_user(c, s, "ring 3 write to a ring 3 page", (u32::from(VEC_SYSCALL), 0), "user.write")?;
    c.mov(eax, dword_ptr(PAGE_B))?;
    expect32(c, s, "what ring 3 wrote", eax, 0x7777_7777)?;

    // An access that crosses into an absent page changes nothing; a string instruction stops in between.
    c.mov(dword_ptr(PAGE_A + 0xFFC), 0)?;
    c.mov(ebx, page(5) + 0xFFE)?;
    expect_exception(c, s, "write across the end of a page", (14, W), Saved::This, |c| {
        c.mov(dword_ptr(ebx), -1)
    })?;
    expect_var(c, s, "write across the end of a page: CR2", EXC_CR2, page(6))?;
    c.mov(eax, dword_ptr(PAGE_A + 0xFFC))?;
    expect32(c, s, "memory after it", eax, 0)?;
    c.mov(esi, SCRATCH)?;
    c.mov(edi, page(5) + 0xFF8)?;
    c.mov(ecx, 16)?;
    expect_exception(c, s, "REP MOVSB across the end of a page", (14, W), Saved::This, |c| c.rep().movsb())?;
    expect_var(c, s, "ECX after it", EXC_CX, 8)?;
    expect_var(c, s, "ESI after it", EXC_SI, SCRATCH + 8)?;
    expect_var(c, s, "EDI after it", EXC_DI, page(6))?;

    c.mov(dword_ptr(PAGE_B + 0x40), 0x0B0B_0B0B)?;
    c.mov(eax, dword_ptr(page(0) + 0x40))?;
    c.mov(dword_ptr(entry(0)), PAGE_B | P | W)?;
    c.invlpg(byte_ptr(page(0)))?;
    c.mov(eax, dword_ptr(page(0) + 0x40))?;
    expect32(c, s, "read through an entry changed before INVLPG", eax, 0x0B0B_0B0B)?;
    set_cr0(c, PG, false)?;
    end(c, s)
}

fn pae(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "paging: PAE, 2 MiB pages, no-execute")?;
    clear(c, PDPT_PAE, PT_PAE_TEST + 0x1000)?;
    c.mov(dword_ptr(PDPT_PAE), PD_PAE | P)?;
    c.mov(edi, PT_PAE)?;
    c.mov(eax, P | W | U)?;
    let fill = c.fresh();
    c.label(&fill)?;
    c.mov(dword_ptr(edi), eax)?;
    c.add(eax, 0x1000)?;
    c.add(edi, 8)?;
    c.cmp(edi, PT_PAE + 0x1000)?;
    c.jne(s.at(&fill))?;
    let directory = |address: u32| PD_PAE + (address >> 21) * 8;
    let entry = |index: u32| PT_PAE_TEST + index * 8;
    c.mov(dword_ptr(directory(0)), PT_PAE | P | W | U)?;
    c.mov(dword_ptr(directory(TEST)), PT_PAE_TEST | P | W | U)?;
    c.mov(dword_ptr(directory(LARGE)), P | W | PS)?;
    // 0: writable, 1: read-only, 2: absent, 3: no-execute, 4: a reserved bit set, 5: user, no-execute
    for (index, low, high) in [
        (0, PAGE_A | P | W, 0),
        (1, PAGE_A | P, 0),
        (3, PAGE_A | P | W, 1 << 31),
        (4, PAGE_A | P | W, 1 << 23),
        (5, PAGE_A | P | W | U, 1 << 31),
    ] {
        c.mov(dword_ptr(entry(index)), low)?;
        c.mov(dword_ptr(entry(index) + 4), high)?;
    }
    set_cr4(c, CR4_PAE, true)?;
    set_no_execute(c)?;
    c.mov(eax, PDPT_PAE)?;
    c.mov(cr3, eax)?;
    set_cr0(c, PG | WP, true)?;

    c.mov(dword_ptr(page(0) + 0x10), 0x0DDB_A115)?;
    c.mov(eax, dword_ptr(page(3) + 0x10))?;
    expect32(c, s, "two mappings of one page", eax, 0x0DDB_A115)?;
    c.mov(dword_ptr(LARGE + SCRATCH + 0x304), 0x2222_3333)?;
    c.mov(eax, dword_ptr(SCRATCH + 0x304))?;
    expect32(c, s, "write through a 2 MiB page", eax, 0x2222_3333)?;
    c.mov(eax, dword_ptr(directory(LARGE)))?;
    c.and(eax, ACCESSED | DIRTY)?;
    expect32(c, s, "accessed and dirty of a 2 MiB page", eax, ACCESSED | DIRTY)?;
    expect_pf(c, s, "read of an absent page", 0, page(2), read)?;
    expect_pf(c, s, "write to a read-only page", P | W, page(1), write)?;
    expect_pf(c, s, "reserved bit", P | RESERVED, page(4), read)?;
    expect_pf(c, s, "absent page directory", W, 0x4000_0000, write)?;
    // RET on the page: callable through the first mapping, not through the no-execute one.
    c.mov(byte_ptr(PAGE_A), 0xC3u32)?;
    c.mov(ebx, page(0))?;
    c.call(ebx)?;
    c.mov(ebx, page(3))?;
    let after = c.fresh();
    report::arm(c, s, &after)?;
    c.call(ebx)?;
    c.label(&after)?;
    report::expect_exception(c, s, "call of a no-execute page", (14, P | FETCH), page(3))?;
    expect_user_pf(c, s, "ring 3 jump to a no-execute page", P | U | FETCH, page(5), "user.jump")?;
    set_cr0(c, PG | WP, false)?;
    end(c, s)
}
