//! Paging as running code sees it, through the whole engine.

use iced_x86::code_asm::*;

use super::engine::{Engine, PAGES, PTES};
use super::*;

/// A free page for tables.
const TABLE: u64 = 0x1_9000;

/// Addresses that differ in bits 48 to 56 only are different addresses, whatever the jump cache has seen and under every
/// name that an address space had.
#[test]
fn five_levels_tell_57_bits_apart() {
    let mut m = Machine::<Engine>::ready_long_with(Cr4::LA57);
    // Entry 1 of the top table, and entry 511, lead to other tables, so that the same 48 bits are other pages.
    for (n, entry) in [(1, 0u64), (2, 1), (511, 2)] {
        let tables = TABLE + 0x4000 * entry;
        m.put(TOP_TABLE + 8 * n, 8, tables | 7);
        m.put(tables, 8, (tables + 0x1000) | 7);
        m.put(tables + 0x1000, 8, (tables + 0x2000) | 7);
        m.put(tables + 0x2000, 8, (tables + 0x3000) | 7);
        m.put(tables + 0x3000 + 8 * 0x50, 8, (PAGES + 0x1000 * entry) | 7);
        // mov eax, n; ret
        m.put(PAGES + 0x1000 * entry, 8, 0xc300_0000_00b8 | n << 8);
    }
    m.put(0x5_0000, 8, 0xc300_0000_00b8);
    let at = [0x5_0000u64, 1 << 48 | 0x5_0000, 2 << 48 | 0x5_0000, 0xffff_0000_0005_0000];
    for round in 0..40u64 {
        // Another name for the address space.
        let root = m.env().cr3;
        control::write_cr3(m.env(), root).expect("allowed");
        for (n, target) in at.into_iter().enumerate() {
            m.env().gpr[reg::RBX] = target;
            let trap = m.run(64, |a| {
                a.mov(r15d, 3)?;
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.call(rbx)?;
                a.dec(r15d)?;
                a.jnz(again)
            });
            assert_eq!(trap, None, "round {round}, {target:#x}");
            assert_eq!(m.env().gpr[reg::RAX] as usize, [0, 1, 2, 511][n]);
        }
    }
    // Bits 63 to 57 are a sign extension: fetching there raises #GP.
    m.env().gpr[reg::RBX] = 1 << 57 | 0x5_0000;
    assert_eq!(m.run(64, |a| a.jmp(rbx)).expect("#GP").vector, 13);
    m.env().gpr[reg::RBX] = 0x0080_0000_0005_0000;
    assert_eq!(m.run(64, |a| a.mov(rax, qword_ptr(rbx))).expect("#PF").vector, 14, "canonical in 57 bits");
}

#[test]
fn la57_is_for_outside_of_long_mode_and_bases_do_not_care() {
    let wide = 0x00ff_0000_0000_0000u64;
    let mut m = Machine::<Engine>::ready_long();
    m.env().gpr[reg::RBX] = wide;
    assert_eq!(m.run(64, |a| a.mov(rax, qword_ptr(rbx))).expect("#GP").vector, 13);
    // The processor knows 57 bits, and so what holds a base takes them in any mode.
    let e = m.env();
    for msr in [msr::index::KERNEL_GS_BASE, msr::index::LSTAR, msr::index::SYSENTER_EIP, msr::index::FS_BASE]
    {
        msr::write(e, msr, wide).expect("canonical in 57 bits");
        assert!(msr::write(e, msr, wide << 1).is_err());
    }
    let now = e.cr4.bits();
    assert!(control::write_cr4(e, now | Cr4::LA57.bits()).is_err(), "not in long mode");
    let mut m = Machine::<Engine>::ready_long_with(Cr4::LA57);
    let now = m.env().cr4.bits();
    assert!(control::write_cr4(m.env(), now & !Cr4::LA57.bits()).is_err());
}

/// Code in a page table: setting an accessed bit changes it.
#[test]
fn accessed_bits_change_code_that_lies_in_page_tables() {
    let mut m = Machine::<Engine>::ready_long();
    // The last byte of one entry (ignored bits) is "add al, imm8", with the first byte of the next as its operand and HLT
    // (an address bit and ignored bits) in the second.
    let entry = PTES + 8 * 0x1f0;
    m.put(entry - 8, 8, 0x0400_0000_001e_f007);
    m.put(entry, 8, 0x001f_f407);
    let run = |m: &mut Machine<Engine>| {
        let e = m.env();
        e.gpr[reg::RAX] = 0;
        e.set_ip(entry - 1);
        assert_eq!(m.go(), None);
        m.env().gpr[reg::RAX]
    };
    assert_eq!(run(&mut m), 0x07);
    super::super::read(m.env(), 0x1f_0000, 1).expect("mapped");
    assert_eq!(m.get(entry, 1), 0x27);
    assert_eq!(run(&mut m), 0x27);
}

#[test]
fn xrstor_looks_at_what_it_is_to_load() {
    const COMPACT: u64 = 1 << 63;
    let (low, high) = (PAGES, PAGES + 0x1000);
    let mut m = Machine::<Engine>::ready_long_with(Cr4::OSXSAVE | Cr4::OSFXSR);
    control::xsetbv(m.env(), 0, 7).expect("allowed");
    // As silicon does. Bytes of the area in the first page, the page that is absent, the area's format, what is to be loaded, and
    // where in the area that faults.
    for (before, absent, format, mask, fault) in [
        (512, low, 0, 0, None),
        (512, low, 0, 1, Some(0)),
        (512, low, 0, 2, Some(24)),
        (512, low, 0, 4, Some(24)),
        (512, low, COMPACT | 7, 4, None),
        (512, low, COMPACT | 7, 5, Some(0)),
        (512, high, 0, 0, Some(520)),
        (576, high, 0, 3, None),
        (576, high, 0, 4, Some(831)),
        (576, high, COMPACT | 7, 3, None),
        (576, high, COMPACT | 7, 4, Some(831)),
        (576, high, COMPACT | 3, 4, None),
        // A page fault comes before what is wrong with the header.
        (512, low, 2, 1, Some(0)),
        (576, high, 2, 4, Some(831)),
    ] {
        let area = high - before;
        m.put(area + 24, 4, 0x1f80);
        m.put(area + 512, 8, 0);
        m.put(area + 520, 8, format);
        m.set_pte(low, 3);
        m.set_pte(high, 3);
        m.set_pte(absent, 0);
        let e = m.env();
        (e.gpr[reg::RAX], e.gpr[reg::RDX], e.gpr[reg::RDI]) = (mask, 0, area);
        let trap = m.run(64, |a| a.xrstor(ptr(rdi)));
        let found = trap.map(|trap| (trap.vector, m.env().cr2 - area));
        assert_eq!(found, fault.map(|at| (14, at)), "{before} {absent:#x} {format:#x} {mask}");
    }
}
