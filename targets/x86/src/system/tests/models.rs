//! CPU models by what guest code sees: instructions, registers and modes that a model lacks are not there; where vendors
//! differ, it is that vendor's chip. And the x87 unit's errors on a machine without CR0.NE.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, eax, ecx, edx, mm0, mm1, ptr, st0, st1, word_ptr, xmm0, xmm1};

use super::engine::Engine;
use super::*;
use crate::cpuid::Feature;
use crate::helpers::x87_state::status;
use crate::state::mode;
use crate::system::exception::vector;

type M = Machine<Engine>;

/// 32-bit protected mode on a CPU model, with handlers that halt; SSE is switched on where there is some.
fn ready(model: &str) -> M {
    let mut m = M::of_model(model).into_protected();
    for v in 0..32 {
        m.gate(v, 0xee, CODE32, HANDLER + v, 0);
        m.put(HANDLER + v, 1, 0xf4);
    }
    if m.env().cpuid.has(Feature::FXSR) {
        let cr4 = m.env().cr4.bits();
        control::write_cr4(m.env(), cr4 | Cr4::OSFXSR.bits()).expect("allowed");
    }
    m.processor.state_changed();
    m
}

/// The vector that an instruction raises, if any.
fn raises(m: &mut M, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Option<u16> {
    m.set_level(0, false);
    m.run(32, write).map(|t| t.vector as u16)
}

/// Reads (or writes 0 to) a model-specific register; whether that works.
fn has_msr(m: &mut M, index: u32, write: bool) -> bool {
    raises(m, |a| {
        a.mov(ecx, index)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        if write { a.wrmsr() } else { a.rdmsr() }
    })
    .is_none()
}

#[test]
fn a_486_has_cpuid_and_little_else() {
    let mut m = ready("486");
    assert_eq!(raises(&mut m, |a| a.cpuid()), None);
    assert_eq!(m.env().gpr[reg::RBX], u32::from_le_bytes(*b"Genu") as u64);
    assert_eq!(raises(&mut m, |a| a.bswap(eax)), None);
    assert_eq!(raises(&mut m, |a| a.fldpi()), None);
    let ud = Some(vector::UD);
    assert_eq!(raises(&mut m, |a| a.rdtsc()), ud);
    assert_eq!(raises(&mut m, |a| a.rdmsr()), ud);
    assert_eq!(raises(&mut m, |a| a.cmove(eax, ecx)), ud);
    assert_eq!(raises(&mut m, |a| a.cmpxchg8b(ptr(0x2000))), ud);
    assert_eq!(raises(&mut m, |a| a.emms()), ud);
    assert_eq!(raises(&mut m, |a| a.sysenter()), ud);
    assert_eq!(raises(&mut m, |a| a.rdpmc()), ud);
    assert_eq!(raises(&mut m, |a| a.nop_1(eax)), ud);
    let e = m.env();
    assert!(control::write_cr4(e, Cr4::PSE.bits()).is_ok());
    for absent in [Cr4::PAE, Cr4::PGE, Cr4::MCE, Cr4::OSFXSR, Cr4::PCE, Cr4::TSD] {
        assert!(control::write_cr4(e, absent.bits()).is_err(), "{absent:?}");
    }
}

#[test]
fn a_pentium_3_has_sse_but_not_its_successors() {
    let mut m = ready("pentium3");
    assert_eq!(raises(&mut m, |a| a.addps(xmm0, xmm1)), None);
    assert_eq!(raises(&mut m, |a| a.cmove(eax, ecx)), None);
    assert_eq!(raises(&mut m, |a| a.pavgb(mm0, mm1)), None);
    let ud = Some(vector::UD);
    assert_eq!(raises(&mut m, |a| a.addpd(xmm0, xmm1)), ud);
    assert_eq!(raises(&mut m, |a| a.pshufd(xmm0, xmm1, 0)), ud);
    assert_eq!(raises(&mut m, |a| a.popcnt(eax, ecx)), ud);
    assert_eq!(raises(&mut m, |a| a.syscall()), ud);
    assert_eq!(raises(&mut m, |a| a.xgetbv()), ud);
    use crate::system::msr::index;
    for there in [index::PAT, index::MTRR_DEF_TYPE, index::SYSENTER_CS, index::MCG_STATUS, index::TSC] {
        assert!(has_msr(&mut m, there, false), "{there:#x}");
    }
    for absent in
        [index::EFER, index::STAR, index::LSTAR, index::FS_BASE, index::SPEC_CTRL, index::MISC_ENABLE]
    {
        assert!(!has_msr(&mut m, absent, false), "{absent:#x}");
        assert!(!has_msr(&mut m, absent, true), "{absent:#x}");
    }
    let e = m.env();
    assert_eq!(e.cpuid.phys_bits(), 36);
    assert!(control::write_cr4(e, (Cr4::PAE | Cr4::PGE | Cr4::OSFXSR).bits()).is_ok());
    assert!(control::write_cr4(e, Cr4::UMIP.bits()).is_err());
}

#[test]
fn extensions_to_mmx_came_before_sse() {
    let mut m = ready("athlon,-sse,-sse2");
    assert_eq!(raises(&mut m, |a| a.pavgb(mm0, mm1)), None);
    assert_eq!(raises(&mut m, |a| a.addps(xmm0, xmm1)), Some(vector::UD));
    let mut m = ready("pentium2");
    assert_eq!(raises(&mut m, |a| a.pavgb(mm0, mm1)), Some(vector::UD));
    assert_eq!(raises(&mut m, |a| a.paddb(mm0, mm1)), None);
}

#[test]
fn long_mode_needs_its_feature() {
    let mut m = ready("max,lm=off");
    assert!(control::write_efer(m.env(), Efer::LME.bits()).is_err());
    assert!(control::write_efer(m.env(), Efer::NXE.bits()).is_ok());
    assert!(!has_msr(&mut m, 0xc000_0100, false), "FS.base");
}

#[test]
fn amd_enters_the_kernel_by_syscall_in_legacy_mode() {
    let mut m = ready("Opteron_G2");
    let e = m.env();
    e.msr.star = (DATA as u64) << 48 | (CODE32 as u64) << 32 | 0x4800;
    e.efer |= Efer::SCE;
    e.msr.sysenter_cs = CODE32 as u64;
    m.put(0x4800, 1, 0xf4);
    m.set_level(3, false);
    assert_eq!(m.run(32, |a| a.syscall()), None);
    let e = m.env();
    assert_eq!((e.ip(), e.cpl, e.gpr[reg::RCX]), (0x4801, 0, 0x4002));
    assert_eq!(e.eflags & RFlags::IF.bits(), 0);
    let mut m = ready("Nehalem");
    m.env().efer |= Efer::SCE;
    assert_eq!(raises(&mut m, |a| a.syscall()), Some(vector::UD));
}

#[test]
fn wait_reports_errors_under_ts_too_unless_mp_is_set() {
    let mut m = ready("max");
    m.env().fpu.control = 0x37f & !status::ZE;
    m.env().fpu.status = status::ZE | status::ES | status::BUSY;
    let cr0 = m.env().cr0.bits() & !(Cr0::TS | Cr0::MP | Cr0::EM).bits() | Cr0::NE.bits();
    for (bits, expected) in [
        (Cr0::empty(), vector::MF),
        (Cr0::MP, vector::MF),
        (Cr0::TS, vector::MF),
        (Cr0::TS | Cr0::MP, vector::NM),
    ] {
        control::write_cr0(m.env(), cr0 | bits.bits()).expect("allowed");
        assert_eq!(raises(&mut m, |a| a.wait()), Some(expected), "{bits:?}");
    }
}

#[test]
fn xrstor_of_the_x87_unit_alone_may_unmask_an_error() {
    let mut m = ready("max");
    let cr4 = m.env().cr4.bits();
    control::write_cr4(m.env(), cr4 | Cr4::OSXSAVE.bits()).expect("allowed");
    let cr0 = m.env().cr0.bits() & !(Cr0::TS | Cr0::EM).bits() | Cr0::NE.bits();
    control::write_cr0(m.env(), cr0).expect("allowed");
    m.put(0x6000, 2, (0x37f & !status::ZE).into());
    m.put(0x6002, 2, (status::ZE | status::ES | status::BUSY).into());
    m.put(0x6000 + 512, 8, 1);
    let restore = |a: &mut CodeAssembler| {
        a.fninit()?;
        a.mov(eax, 1)?;
        a.xor(edx, edx)?;
        a.xrstor(ptr(0x6000))?;
        a.wait()
    };
    assert_eq!(raises(&mut m, restore), Some(vector::MF));
    assert_eq!(m.env().mode & mode::X87_UNMASKED, mode::X87_UNMASKED);
    // The initial configuration masks it again.
    m.put(0x6000 + 512, 8, 0);
    let initial = |a: &mut CodeAssembler| {
        a.mov(eax, 1)?;
        a.xor(edx, edx)?;
        a.xrstor(ptr(0x6000))
    };
    assert_eq!(raises(&mut m, initial), None);
    assert_eq!(m.env().mode & mode::X87_UNMASKED, 0);
}

#[test]
fn xgetbv_sees_the_registers_as_they_are() {
    let mut m = ready("max");
    let cr4 = m.env().cr4.bits();
    control::write_cr4(m.env(), cr4 | Cr4::OSXSAVE.bits()).expect("allowed");
    control::xsetbv(m.env(), 0, 7).expect("allowed");
    for in_use in [0, 1, 2] {
        // From the initial configuration, a change to one component in the block that asks.
        let program = |a: &mut CodeAssembler| {
            a.mov(eax, 7)?;
            a.xor(edx, edx)?;
            a.xrstor(ptr(0x6000))?;
            match in_use {
                0 => {}
                1 => a.fld1()?,
                _ => a.pcmpeqd(xmm0, xmm0)?,
            }
            a.mov(ecx, 1)?;
            a.xgetbv()
        };
        assert_eq!(raises(&mut m, program), None);
        assert_eq!(m.env().gpr[reg::RAX], in_use);
    }
}

#[test]
fn an_x87_error_without_ne_waits_for_its_interrupt() {
    let mut m = ready("pentium");
    let cr0 = m.env().cr0.bits();
    control::write_cr0(m.env(), cr0 & !Cr0::NE.bits()).expect("allowed");
    m.board.lock().unwrap().honour_ferr = true;
    m.gate(0x75, 0x8e, CODE32, 0x4900, 0);
    m.put(0x4900, 1, 0xf4);
    m.set_level(0, false);
    // 1 / 0 with the exception unmasked, then something that waits.
    m.put(0x6000, 2, 0x37b);
    let program = |a: &mut CodeAssembler| {
        a.fninit()?;
        a.fldcw(word_ptr(0x6000))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.mov(eax, 1)?;
        a.wait()?;
        a.mov(eax, 2)
    };
    let at = m.assemble(32, program);
    assert_eq!(m.processor.run(), crate::system::exit::HALTED);
    let waiting = m.env().ip();
    assert_eq!((m.env().gpr[reg::RAX], waiting, m.env().halted), (1, at[5], true));
    assert!(m.board.lock().unwrap().ferr);
    // Interrupts are off: it stands there. With the interrupt, the handler finds the address of WAIT.
    m.env().eflags |= RFlags::IF.bits();
    m.board.lock().unwrap().interrupt = Some(0x75);
    assert_eq!(m.processor.run(), crate::system::exit::HALTED);
    assert_eq!(m.env().ip(), 0x4901);
    let sp = m.env().gpr[reg::RSP];
    assert_eq!(m.get(sp, 4), waiting);
    // IGNNE# lets WAIT through.
    m.board.lock().unwrap().honour_ferr = false;
    m.env().halted = false;
    crate::system::iret::iret(m.env(), 4).expect("a good frame");
    assert_eq!(m.processor.run(), crate::system::exit::HALTED);
    assert_eq!((m.env().gpr[reg::RAX], m.env().ip()), (2, at[7] + 1));
}
