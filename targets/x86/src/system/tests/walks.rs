//! The page walk, in every mode.

use tessera_tcg::guest::{Access, Mapping};

use super::*;
use crate::mmu::{self, error};
use crate::state::mmu_mode::{KERNEL, KERNEL_SMAP, USER};
use crate::system::exception::vector;

const PTE: u64 = TABLES + 0x3000;

fn walk(m: &mut Machine, va: u64, access: Access, mode: u8) -> Result<Mapping, Exception> {
    let memory: Arc<dyn PhysMemory> = m.ram.clone();
    mmu::walk(m.env(), &memory, va, access, mode)
}

fn code(m: &mut Machine, va: u64, access: Access, mode: u8) -> u32 {
    let e = walk(m, va, access, mode).expect_err("a page fault");
    assert_eq!((e.vector, e.address), (vector::PF, va));
    e.error.expect("page faults have an error code")
}

#[test]
fn without_paging_addresses_are_physical() {
    let mut m = <Machine>::real();
    let p = walk(&mut m, 0xffff_f123, Access::Write, KERNEL).expect("mapped");
    assert_eq!((p.phys, p.read, p.write, p.execute), (0xffff_f000, true, true, true));
    m.env().a20_mask = !(1 << 20);
    assert_eq!(walk(&mut m, 0x10_0000, Access::Read, KERNEL).expect("mapped").phys, 0);
}

#[test]
fn accessed_and_dirty_bits_come_with_accesses() {
    let mut m = <Machine>::long();
    let pte = PTE + 8 * 0x123;
    let read = walk(&mut m, 0x12_3456, Access::Read, USER).expect("mapped");
    assert_eq!((read.phys, read.page_bits, read.global), (0x12_3000, 12, false));
    assert!(read.read && !read.write && read.execute, "the first write has to set D");
    assert_eq!(m.get(pte, 8), 0x12_3027);
    assert_eq!(m.get(TABLES, 8) & 0x60, 0x20);
    let write = walk(&mut m, 0x12_3456, Access::Write, USER).expect("mapped");
    assert!(write.write);
    assert_eq!(m.get(pte, 8), 0x12_3067);
    assert!(walk(&mut m, 0x12_3456, Access::Read, USER).expect("mapped").write, "D is set already");
}

#[test]
fn rights_are_those_of_all_levels() {
    let mut m = <Machine>::long();
    let pte = PTE + 8 * 0x100;
    let va = 0x10_0000;
    use Access::{Execute, Read, Write};
    m.put(pte, 8, 0);
    assert_eq!(code(&mut m, va, Write, USER), error::WRITE | error::USER);
    assert_eq!(code(&mut m, va, Execute, KERNEL), error::FETCH, "as NXE is set");
    m.put(pte, 8, 0x10_0003);
    assert_eq!(code(&mut m, va, Read, USER), error::PRESENT | error::USER);
    assert!(walk(&mut m, va, Write, KERNEL).is_ok());
    m.put(pte, 8, 0x10_0005);
    assert_eq!(code(&mut m, va, Write, USER), error::PRESENT | error::WRITE | error::USER);
    assert_eq!(code(&mut m, va, Write, KERNEL), error::PRESENT | error::WRITE, "WP");
    assert_eq!(m.get(pte, 8) & 0x60, 0, "a fault marks nothing");
    m.env().cr0 -= Cr0::WP;
    assert!(walk(&mut m, va, Write, KERNEL).is_ok());
    m.env().cr0 |= Cr0::WP;
    m.put(pte, 8, 1 << 63 | 0x10_0007);
    assert_eq!(code(&mut m, va, Execute, USER), error::PRESENT | error::USER | error::FETCH);
    assert!(!walk(&mut m, va, Read, USER).expect("mapped").execute);
    m.env().efer -= Efer::NXE;
    assert_eq!(code(&mut m, va, Read, USER), error::PRESENT | error::USER | error::RESERVED);
    m.env().efer |= Efer::NXE;
    m.put(pte, 8, 1 << 48 | 0x10_0007);
    assert_eq!(code(&mut m, va, Read, KERNEL), error::PRESENT | error::RESERVED, "beyond MAXPHYADDR");
    m.put(pte, 8, 0x10_0007);
    m.put(TABLES + 0x1000, 8, TABLES + 0x2005);
    assert_eq!(code(&mut m, va, Write, USER), error::PRESENT | error::WRITE | error::USER, "an upper level");
}

#[test]
fn supervisor_mode_keeps_off_user_pages() {
    let mut m = <Machine>::long();
    let va = 0x10_0000;
    m.env().cr4 |= Cr4::SMEP | Cr4::SMAP;
    assert_eq!(code(&mut m, va, Access::Execute, KERNEL), error::PRESENT | error::FETCH);
    assert_eq!(code(&mut m, va, Access::Read, KERNEL_SMAP), error::PRESENT);
    assert!(walk(&mut m, va, Access::Read, KERNEL).is_ok(), "AC set");
    m.put(PTE + 8 * 0x100, 8, 0x10_0003);
    assert!(walk(&mut m, va, Access::Execute, KERNEL).is_ok());
    assert!(walk(&mut m, va, Access::Write, KERNEL_SMAP).is_ok());
}

#[test]
fn protection_keys_apply_to_data_of_user_pages() {
    let mut m = <Machine>::long();
    let va = 0x10_0000;
    m.put(PTE + 8 * 0x100, 8, 3 << 59 | 0x10_0007);
    m.env().cr4 |= Cr4::PKE;
    m.env().pkru = 2 << 6;
    let key_write = error::PRESENT | error::WRITE | error::KEY;
    assert!(walk(&mut m, va, Access::Read, USER).is_ok());
    assert_eq!(code(&mut m, va, Access::Write, USER), key_write | error::USER);
    assert_eq!(code(&mut m, va, Access::Write, KERNEL), key_write);
    m.env().pkru = 1 << 6;
    assert_eq!(code(&mut m, va, Access::Read, USER), error::PRESENT | error::USER | error::KEY);
    assert!(walk(&mut m, va, Access::Execute, USER).is_ok());
}

#[test]
fn large_pages_of_long_mode() {
    let mut m = <Machine>::long();
    m.put(TABLES + 0x2000 + 8, 8, 0x1000_01e7 | 0x1000);
    let p = walk(&mut m, 0x2a_bcde, Access::Read, USER).expect("mapped");
    assert_eq!((p.phys, p.page_bits, p.global), (0x100a_b000, 21, true), "bit 12 is PAT");
    m.put(TABLES + 0x2000 + 8, 8, 0x1000_2087);
    assert_eq!(code(&mut m, 0x20_0000, Access::Read, KERNEL), error::PRESENT | error::RESERVED);
    m.put(TABLES + 0x1008, 8, 0x8000_0087);
    let p = walk(&mut m, 0x4123_4567, Access::Read, USER).expect("mapped");
    assert_eq!((p.phys, p.page_bits), (0x8123_4000, 30));
    m.put(TABLES + 8, 8, 0x87);
    assert_eq!(
        code(&mut m, 1 << 39, Access::Read, KERNEL),
        error::PRESENT | error::RESERVED,
        "PS in a PML4E"
    );
    let e = walk(&mut m, 1 << 47, Access::Read, KERNEL).expect_err("not canonical");
    assert_eq!((e.vector, e.error, e.address), (vector::GP, Some(0), 1 << 47));
    m.put(TABLES, 8, 1 << 40 | 7);
    assert_eq!(code(&mut m, 0, Access::Read, KERNEL), error::PRESENT | error::RESERVED, "no RAM: all ones");
}

#[test]
fn five_levels() {
    let mut m = <Machine>::long();
    m.put(TABLES + 0x8000, 8, TABLES | 7);
    m.env().cr4 |= Cr4::LA57;
    m.env().cr3 = TABLES + 0x8000;
    assert_eq!(walk(&mut m, 0x12_3456, Access::Read, KERNEL).expect("mapped").phys, 0x12_3000);
    assert_eq!(code(&mut m, 1 << 48, Access::Read, KERNEL), 0);
    assert_eq!(walk(&mut m, 1 << 56, Access::Read, KERNEL).expect_err("not canonical").vector, vector::GP);
}

#[test]
fn two_levels_with_large_pages() {
    let mut m = <Machine>::protected();
    m.put(TABLES, 4, TABLES + 0x1007);
    m.put(TABLES + 4, 4, 0x00c0_0000 | 5 << 13 | 0x87);
    m.put(TABLES + 0x1000 + 4 * 5, 4, 0x7005);
    let e = m.env();
    control::write_cr3(e, TABLES).expect("allowed");
    control::write_cr4(e, Cr4::PSE.bits()).expect("allowed");
    let cr0 = e.cr0.bits();
    control::write_cr0(e, cr0 | Cr0::PG.bits()).expect("allowed");
    let p = walk(&mut m, 0x5abc, Access::Read, USER).expect("mapped");
    assert_eq!((p.phys, p.page_bits, p.write), (0x7000, 12, false));
    assert_eq!(m.get(TABLES + 0x1014, 4), 0x7025);
    assert_eq!(code(&mut m, 0x5abc, Access::Write, USER), error::PRESENT | error::WRITE | error::USER);
    let p = walk(&mut m, 0x51_2345, Access::Write, USER).expect("mapped");
    assert_eq!((p.phys, p.page_bits, p.write), (0x5_00d1_2000, 22, true), "PSE-36");
    assert_eq!(code(&mut m, 0x6000, Access::Execute, USER), error::USER, "no I/D bit without NX or SMEP");
    m.put(TABLES + 4, 4, 0x00e0_0087);
    assert_eq!(code(&mut m, 0x40_0000, Access::Read, KERNEL), error::PRESENT | error::RESERVED);
}

#[test]
fn pae_has_reserved_bits_above_the_address() {
    let mut m = <Machine>::protected();
    m.put(TABLES, 8, TABLES + 0x1001);
    m.put(TABLES + 0x1000, 8, TABLES + 0x2007);
    m.put(TABLES + 0x2000 + 8 * 5, 8, 0x7007);
    let e = m.env();
    control::write_cr4(e, Cr4::PAE.bits()).expect("allowed");
    control::write_cr3(e, TABLES).expect("allowed");
    let cr0 = e.cr0.bits();
    control::write_cr0(e, cr0 | Cr0::PG.bits()).expect("allowed");
    assert_eq!(walk(&mut m, 0x5abc, Access::Write, USER).expect("mapped").phys, 0x7000);
    assert_eq!(code(&mut m, 1 << 30, Access::Read, KERNEL), 0, "PDPTE not present");
    m.put(TABLES + 0x2000 + 8 * 5, 8, 1 << 60 | 0x7007);
    assert_eq!(code(&mut m, 0x5000, Access::Read, KERNEL), error::PRESENT | error::RESERVED);
    // The registers hold what was loaded, whatever the table says now.
    m.put(TABLES, 8, 0);
    m.put(TABLES + 0x2000 + 8 * 5, 8, 0x7007);
    assert!(walk(&mut m, 0x5000, Access::Read, KERNEL).is_ok());
}
