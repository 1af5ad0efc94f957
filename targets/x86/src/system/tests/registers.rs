//! Control registers, MSRs, segments, flags, ports, extended state.

use super::*;
use crate::cpuid::xstate::component;
use crate::state::VecReg;
use crate::system::exception::vector;
use crate::system::io::StringIo;
use crate::system::{debug, dump, flags, io, segment, tables, xsave};

const GP0: (u16, Option<u32>) = (vector::GP, Some(0));

#[test]
fn control_registers_refuse_contradictions() {
    let mut m = <Machine>::long();
    let e = m.env();
    let cr0 = e.cr0.bits();
    assert_eq!(raised(control::write_cr0(e, cr0 & !Cr0::PE.bits())), GP0, "PG without PE");
    assert_eq!(raised(control::write_cr0(e, cr0 | Cr0::NW.bits())), GP0, "NW without CD");
    assert_eq!(raised(control::write_cr0(e, cr0 & !Cr0::PG.bits())), GP0, "not from 64-bit code");
    assert_eq!(raised(control::write_cr0(e, cr0 | 1 << 32)), GP0);
    let cr4 = e.cr4.bits();
    assert_eq!(raised(control::write_cr4(e, cr4 & !Cr4::PAE.bits())), GP0);
    assert_eq!(raised(control::write_cr4(e, cr4 | Cr4::LA57.bits())), GP0);
    assert_eq!(raised(control::write_cr4(e, cr4 | 1 << 13)), GP0, "no VMX");
    assert_eq!(raised(control::write_cr3(e, 1 << 50)), GP0, "beyond MAXPHYADDR");
    control::write_cr4(e, cr4 | Cr4::PCIDE.bits()).expect("allowed");
    let space = crate::mmu::address_space(e);
    control::write_cr3(e, 1 << 63 | TABLES | 5).expect("allowed");
    assert_eq!(e.cr3, TABLES | 5);
    assert_ne!(crate::mmu::address_space(e), space);
    assert_eq!(crate::mmu::address_space_of_pcid(e, 0), space);
    assert_eq!(raised(control::write_efer(e, 0)), GP0, "LME under PG");
    assert_eq!(raised(control::write_cr8(e, 16)), GP0);
    control::write_cr8(e, 7).expect("allowed");
    assert_eq!(control::read_cr8(e), 7);
}

#[test]
fn long_mode_is_left_from_compatibility_mode() {
    let mut m = <Machine>::long();
    m.set_level(0, false);
    let e = m.env();
    let cr0 = e.cr0.bits();
    control::write_cr0(e, cr0 & !Cr0::PG.bits()).expect("allowed");
    assert!(!e.efer.contains(Efer::LMA) && e.efer.contains(Efer::LME));
    assert_eq!(crate::mmu::Paging::of(e), crate::mmu::Paging::Off);
}

#[test]
fn pae_loads_its_pointers_with_cr3() {
    let mut m = <Machine>::protected();
    m.put(TABLES, 8, TABLES + 0x1001);
    m.put(TABLES + 8, 8, TABLES + 0x1003);
    let e = m.env();
    control::write_cr4(e, Cr4::PAE.bits()).expect("allowed");
    e.cr3 = TABLES;
    let cr0 = e.cr0.bits();
    assert_eq!(raised(control::write_cr0(e, cr0 | Cr0::PG.bits())), GP0, "W in a PDPTE is reserved");
    m.put(TABLES + 8, 8, 0);
    let e = m.env();
    control::write_cr0(e, cr0 | Cr0::PG.bits()).expect("allowed");
    assert_eq!(e.pdpte, [TABLES + 0x1001, 0, 0, 0]);
}

#[test]
fn msrs_exist_or_fault() {
    let mut m = <Machine>::long();
    let e = m.env();
    assert_eq!(raised(msr::read(e, 0x1234)), GP0);
    assert_eq!(raised(msr::write(e, 0xc001_0015, 0)), GP0, "AMD's");
    assert_eq!(raised(msr::write(e, msr::index::LSTAR, 1 << 63)), GP0, "not canonical");
    assert_eq!(raised(msr::write(e, msr::index::PAT, 2)), GP0, "no such type");
    msr::write(e, msr::index::GS_BASE, 0xffff_8880_0000_0000).expect("allowed");
    assert_eq!(e.seg_base[seg::GS], 0xffff_8880_0000_0000);
    assert_eq!(msr::read(e, msr::index::MTRRCAP).expect("exists") & 0xff, 8);
    assert_eq!(msr::read(e, msr::index::APIC_BASE).expect("exists"), 0xfee0_0900);
    for n in 0..40 {
        msr::write(e, msr::index::MC0_CTL + n, 0).expect("clearing is allowed");
    }
}

#[test]
fn the_time_stamp_counter_moves_with_its_deadline() {
    let mut m = <Machine>::long();
    m.board().tsc = 1000;
    let e = m.env();
    msr::write(e, msr::index::TSC_DEADLINE, 5000).expect("exists");
    msr::write(e, msr::index::TSC, 0).expect("exists");
    assert_eq!(control::tsc(e), 0);
    assert_eq!(msr::read(e, msr::index::TSC_ADJUST).expect("exists") as i64, -1000);
    assert_eq!(msr::read(e, msr::index::TSC_DEADLINE).expect("exists"), 5000, "in the guest's time");
    assert_eq!(m.board().deadline, 6000, "in the platform's");
    msr::write(m.env(), msr::index::TSC_DEADLINE, 0).expect("exists");
    assert_eq!(m.board().deadline, 0);
}

#[test]
fn segment_loads_follow_the_manual() {
    let mut m = <Machine>::protected();
    // Not present data; execute-only code.
    m.put(GDT + SPARE as u64, 8, 0x00cf_1200_0000_ffff);
    m.put(GDT + SPARE as u64 + 8, 8, 0x00cf_9800_0000_ffff);
    let e = m.env();
    let before = snapshot(e);
    let mut load = |n, selector| raised(segment::load_segment(e, n, selector));
    assert_eq!(load(seg::DS, SPARE), (vector::NP, Some(SPARE as u32)));
    assert_eq!(load(seg::SS, SPARE), (vector::SS, Some(SPARE as u32)));
    assert_eq!(load(seg::DS, SPARE + 8), (vector::GP, Some(SPARE as u32 + 8)));
    assert_eq!(load(seg::SS, 0), GP0);
    assert_eq!(load(seg::SS, USER_DATA), (vector::GP, Some(0x20)));
    assert_eq!(load(seg::ES, 0xfff8), (vector::GP, Some(0xfff8)));
    assert_eq!(load(seg::ES, 0x14), (vector::GP, Some(0x14)), "no LDT");
    assert_eq!(snapshot(m.env()), before);
    segment::load_segment(m.env(), seg::DS, 3).expect("null");
    let e = m.env();
    assert_eq!(raised(segment::check_segment(e, seg::DS, 0, 1, false)), GP0);
    assert_eq!(segment::check_segment(e, seg::ES, 0x123, 4, true), Ok(0x123));
    assert_eq!(raised(segment::check_segment(e, seg::CS, 0, 1, true)), GP0, "code is not written");
}

#[test]
fn descriptors_are_inspected() {
    let mut m = <Machine>::protected();
    let e = m.env();
    assert_eq!(tables::lar(e, DATA), Ok(Some(0x00cf_9200)));
    assert_eq!(tables::lsl(e, DATA), Ok(Some(0xffff_ffff)));
    assert_eq!(tables::lsl(e, TASK), Ok(Some(0x20ff)));
    assert_eq!(tables::lar(e, 0), Ok(None));
    assert_eq!(tables::lar(e, 0xf000), Ok(None));
    assert_eq!(tables::verify(e, CODE32, true), Ok(false));
    assert_eq!(tables::verify(e, CODE32, false), Ok(true));
    m.set_level(3, false);
    assert_eq!(tables::lar(m.env(), DATA), Ok(None), "not visible from CPL 3");
}

#[test]
fn interrupt_flag_belongs_to_iopl() {
    let mut m = <Machine>::protected();
    m.set_level(3, false);
    let e = m.env();
    e.set_rflags(RFlags::IF.bits());
    assert_eq!(raised(flags::cli(e)), GP0);
    flags::popf(e, (RFlags::IOPL | RFlags::CF).bits(), 4).expect("never faults here");
    assert_eq!(e.rflags(), (RFlags::IF | RFlags::CF | RFlags::ONE).bits(), "IF and IOPL stay");
    e.eflags |= RFlags::IOPL.bits();
    flags::cli(e).expect("IOPL 3");
    assert!(!flag(e, RFlags::IF));
    e.eflags &= !RFlags::IOPL.bits();
    e.cr4 |= Cr4::PVI;
    flags::sti(e).expect("virtual");
    assert!(flag(e, RFlags::VIF) && !flag(e, RFlags::IF));
    e.eflags |= RFlags::VIP.bits();
    assert_eq!(raised(flags::sti(e)), GP0);
    assert_eq!(flags::pushf(e, 4).map(|f| f & RFlags::RF.bits()), Ok(0));
}

#[test]
fn ports_need_permission_from_user_mode() {
    let mut m = <Machine>::protected();
    m.set_level(3, false);
    // All forbidden but 3F8h to 3FBh.
    for n in 0..0x2000 {
        m.put(TSS + 0x100 + n, 1, 0xff);
    }
    m.put(TSS + 0x100 + 0x3f8 / 8, 1, 0xf0);
    let e = m.env();
    assert_eq!(io::check_permission(e, 0x3f8, 4), Ok(()));
    assert_eq!(raised(io::check_permission(e, 0x3f9, 4)), GP0);
    assert_eq!(raised(io::check_permission(e, 0xffff, 1)), GP0);
    e.eflags |= RFlags::IOPL.bits();
    assert_eq!(io::check_permission(e, 0x60, 1), Ok(()));
    e.eflags |= RFlags::VM.bits();
    assert_eq!(raised(io::check_permission(e, 0x60, 1)), GP0, "IOPL means nothing there");
}

#[test]
fn string_io_restarts_where_it_was() {
    let mut m = <Machine>::protected();
    let op = StringIo { input: true, size: 2, address_size: 4, segment: seg::ES, repeat: true };
    let e = m.env();
    e.gpr[reg::RCX] = 0xffff_ffff_0000_0003;
    e.gpr[reg::RDI] = 0xffff_ffff_0000_6000;
    io::string_io(e, op, 0x3ffe).expect("runs");
    assert_eq!((e.gpr[reg::RCX], e.gpr[reg::RDI], e.rip), (0, 0x6006, 0x4000));
    assert_eq!(m.get(0x6000, 8), 0x0003_0002_0001);

    // Two items fit under the limit; the third faults, when the instruction runs again.
    let e = m.env();
    e.seg[seg::ES].limit = 0x6003;
    (e.gpr[reg::RCX], e.gpr[reg::RDI]) = (3, 0x6000);
    io::string_io(e, op, 0x3ffe).expect("stops before the fault");
    assert_eq!((e.gpr[reg::RCX], e.gpr[reg::RDI], e.rip), (1, 0x6004, 0x3ffe));
    assert_eq!(raised(io::string_io(e, op, 0x3ffe)), GP0);
    assert_eq!(m.board().next_input, 5, "no port is read in vain");

    let out = StringIo { input: false, segment: seg::DS, repeat: false, size: 1, address_size: 2 };
    let e = m.env();
    (e.gpr[reg::RSI], e.gpr[reg::RDX], e.df) = (0x1_0000, 0x80, u64::MAX);
    io::string_io(e, out, 0).expect("runs");
    assert_eq!(e.gpr[reg::RSI], 0x1_ffff, "SI wraps");
    assert_eq!(m.board().written, [(0x80, 1, 0)]);
}

#[test]
fn the_a20_gate_is_noticed_after_out() {
    let mut m = <Machine>::protected();
    m.put(0x4000, 1, 0x11);
    m.put(0x10_4000, 1, 0x22);
    let read = |m: &mut Machine| super::super::read(m.env(), 0x10_4000, 1).expect("RAM");
    assert_eq!(read(&mut m), 0x22);
    m.board().a20_closed = true;
    io::port_out(m.env(), 0x92, 1, 0);
    assert_eq!(read(&mut m), 0x11);
}

#[test]
fn extended_state_survives_every_format() {
    let mut m = <Machine>::long();
    let e = m.env();
    control::xsetbv(e, 0, 0x207).expect("allowed");
    assert_eq!(raised(control::xsetbv(e, 0, 2)), GP0, "x87 is always on");
    assert_eq!(raised(control::xsetbv(e, 0, 5)), GP0, "AVX needs SSE");
    assert_eq!(raised(control::xsetbv(e, 0, 0xf)), GP0, "no such component");
    for (form, area) in
        [(xsave::Form::Plain, 0x6000), (xsave::Form::Optimised, 0x6800), (xsave::Form::Compact, 0x7000)]
    {
        let e = m.env();
        for n in 0..16 {
            e.vec[n] = VecReg([1, 100, 200, 300].map(|v| v + n as u64));
        }
        e.fpu.control = 0x27f;
        e.fpu.status = 3 << 11;
        e.fpu.valid = 0x18;
        e.fpu.regs[3][..10].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        e.pkru = 0x5555_5554;
        let (vec, fpu) = (e.vec, e.fpu);
        xsave::xsave(e, area, u64::MAX, form, true).expect("saved");
        assert_eq!(m.get(area + 32, 8), 0x0807_0605_0403_0201, "ST(0) comes first");
        assert_eq!(m.get(area + 512, 8), 0x207);
        assert_eq!(m.get(area + 576 + 16 * 3, 8), 203, "upper halves of YMM");
        let e = m.env();
        e.vec = Default::default();
        e.fpu.status = 0;
        e.pkru = 0;
        xsave::xrstor(e, area, u64::MAX, false, true).expect("restored");
        assert_eq!((e.vec, e.fpu, e.pkru), (vec, fpu, 0x5555_5554), "{form:?}");
    }
    // Without its bit in XSTATE_BV a component goes to its initial state.
    m.put(0x6000 + 512, 8, 1 << component::X87);
    let e = m.env();
    xsave::xrstor(e, 0x6000, u64::MAX, false, true).expect("restored");
    assert_eq!((e.vec[5], e.pkru, e.fpu.control), (VecReg::default(), 0, 0x27f));
    m.put(0x6000 + 512, 8, 1 << 3);
    assert_eq!(raised(xsave::xrstor(m.env(), 0x6000, u64::MAX, false, true)), GP0, "a component that is off");
    assert_eq!(raised(xsave::xsave(m.env(), 0x6010, 3, xsave::Form::Plain, false)), GP0, "alignment");
}

#[test]
fn the_compacted_format_is_checked() {
    let mut m = <Machine>::long();
    let e = m.env();
    control::xsetbv(e, 0, 0x207).expect("allowed");
    assert_eq!(msr::read(e, msr::index::XSS), Ok(0));
    assert_eq!(raised(msr::write(e, msr::index::XSS, 1 << 8)), GP0, "no supervisor components");
    for n in 0..16 {
        e.vec[n] = VecReg([1, 2, 3, n as u64]);
    }
    e.fpu = crate::state::Fpu::INITIAL;
    e.pkru = 4;
    let vec = e.vec;
    // x87 is in its initial configuration: not written, and not in XSTATE_BV; PKRU follows AVX directly.
    m.put(0x6000, 8, 0x1122);
    for form in [xsave::Form::Compact, xsave::Form::Supervisor] {
        xsave::xsave(m.env(), 0x6000, u64::MAX, form, true).expect("saved");
        assert_eq!((m.get(0x6000, 8), m.get(0x6200, 8), m.get(0x6208, 8)), (0x1122, 0x206, 1 << 63 | 0x207));
        assert_eq!(m.get(0x6000 + 576 + 256, 8), 4);
    }
    // MXCSR counts as state of SSE: its default is not saved.
    m.env().vec = Default::default();
    xsave::xsave(m.env(), 0x7000, 3, xsave::Form::Supervisor, true).expect("saved");
    assert_eq!(m.get(0x7200, 8), 0);
    m.env().mxcsr = 0x1f00;
    xsave::xsave(m.env(), 0x7000, 3, xsave::Form::Supervisor, true).expect("saved");
    assert_eq!((m.get(0x7200, 8), m.get(0x7018, 4)), (2, 0x1f00));
    let e = m.env();
    e.pkru = 0;
    xsave::xrstor(e, 0x6000, u64::MAX, true, true).expect("restored");
    assert_eq!((e.vec, e.pkru, e.mxcsr), (vec, 4, 0x1f80));
    let refused = |m: &mut Machine, at: u64, len: usize, value: u64, supervisor: bool| {
        let old = m.get(at, len);
        m.put(at, len, value);
        let result = raised(xsave::xrstor(m.env(), 0x6000, u64::MAX, supervisor, true));
        m.put(at, len, old);
        assert_eq!(result, GP0, "{at:x} {value:x}");
    };
    for supervisor in [false, true] {
        refused(&mut m, 0x6200, 8, 0x20e, supervisor);
        refused(&mut m, 0x6208, 8, 1 << 63 | 0x203, supervisor);
        refused(&mut m, 0x6208, 8, 1 << 63 | 0x20f, supervisor);
        refused(&mut m, 0x6210, 1, 1, supervisor);
        refused(&mut m, 0x623f, 1, 1, supervisor);
        refused(&mut m, 0x6018, 4, 0x1_0000, supervisor);
    }
    // The standard form: only for XRSTOR, and only bytes 8 to 23 of the header must be zero.
    m.put(0x6208, 8, 0);
    m.put(0x6018 + 0x200, 1, 1);
    assert_eq!(xsave::xrstor(m.env(), 0x6000, 7, false, true), Ok(()));
    assert_eq!(raised(xsave::xrstor(m.env(), 0x6000, 7, true, true)), GP0);
    m.set_level(3, true);
    assert_eq!(raised(xsave::xsave(m.env(), 0x6000, 7, xsave::Form::Supervisor, true)), GP0);
    assert_eq!(raised(xsave::xrstor(m.env(), 0x6000, 7, true, true)), GP0);
}

#[test]
fn debug_registers_have_their_guards() {
    let mut m = <Machine>::protected();
    let e = m.env();
    debug::write(e, 0, 0x4000).expect("allowed");
    debug::write(e, 7, 0xffff_ffff & !0xffff_0000 & !(1 << 13)).expect("allowed");
    assert_eq!(e.dr[7], 0x7ff & !(1 << 11) | 0x400);
    assert_eq!(e.dr[7] & 0xdc00, 0x400, "bits 10 to 15 but GD are fixed");
    let hit = debug::check_code(e, 0x4000).expect_err("a breakpoint");
    assert_eq!((hit.vector, hit.address), (vector::DB, 1));
    e.eflags |= RFlags::RF.bits();
    assert_eq!(debug::check_code(e, 0x4000), Ok(()), "RF holds it off, once");
    assert!(debug::check_code(e, 0x4000).is_err());
    assert_eq!(debug::check_code(e, 0x4001), Ok(()));
    debug::write(e, 7, 1 << 13).expect("allowed");
    let guarded = debug::read(e, 0).expect_err("GD");
    assert_eq!((guarded.vector, guarded.address), (vector::DB, debug::BD));
    debug::record(e, debug::BD);
    assert_eq!((e.dr[6] & debug::BD, e.dr[7] & 1 << 13), (debug::BD, 0));
    e.cr4 |= Cr4::DE;
    assert_eq!(raised(debug::read(e, 4)).0, vector::UD);
}

#[test]
fn the_dump_has_what_people_look_for() {
    let mut m = <Machine>::long();
    let text = dump(m.env());
    for part in
        ["RIP=0000000000004000", "CS =0028", "CS64 [-RA]", "CR3=0000000000010000", "EFER=0000000000000d01"]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    m.set_level(0, false);
    assert!(dump(<Machine>::real().env()).contains("EIP=0000fff0"));
}
