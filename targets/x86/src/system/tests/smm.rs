//! System-management mode, through the whole engine.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use tessera_tcg::guest::Next;

use super::engine::{CODE, Engine, PAGES};
use super::*;
use crate::system::exception::vector;
use crate::system::{exit, poll_events};

const SMBASE: u64 = 0x3_0000;
const AREA: u64 = SMBASE + 0xfe00;

/// Assembles 16-bit code for the handler.
fn handler(
    m: &Machine<Engine>,
    smbase: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let mut a = CodeAssembler::new(16).expect("a bitness that exists");
    write(&mut a).expect("instructions that exist");
    a.rsm().expect("exists");
    for (n, b) in a.assemble(0x8000).expect("encodes").into_iter().enumerate() {
        m.put(smbase + 0x8000 + n as u64, 1, b as u64);
    }
}

/// All that a save and restore must keep.
fn everything(e: &X86Env) -> impl PartialEq + std::fmt::Debug + use<> {
    let control = (e.cr0, e.cr3, e.cr4, e.efer, e.dr, e.gdtr, e.idtr, e.nmi_blocked, e.halted);
    (snapshot(e), control, e.mode, e.vec[3], e.cr2)
}

#[test]
fn an_smi_leaves_no_trace_in_any_mode() {
    let marker = PAGES;
    for mode in 0..5 {
        let mut m = match mode {
            0 => Machine::<Engine>::real(),
            1 => Machine::ready_protected(),
            2 => Machine::<Engine>::of_model("pentium3").into_protected(),
            _ => Machine::ready_long(),
        };
        if mode == 4 {
            m.set_level(3, true);
        }
        handler(&m, SMBASE, |a| {
            // The state is real mode's with segments of 4 GiB, and registers are what they were.
            a.mov(dword_ptr(ebx), cs)?;
            a.mov(dword_ptr(ebx + 4), ebx)?;
            a.xor(eax, eax)?;
            a.mov(ecx, eax)
        });
        let e = m.env();
        for n in 0..if mode == 2 { 8 } else { 16 } {
            e.gpr[n] = 0x1111_1111 * n as u64;
        }
        e.gpr[reg::RBX] = marker;
        e.dr[7] |= 1 << 9;
        e.set_rflags((RFlags::IF | RFlags::CF | RFlags::DF | RFlags::AC).bits());
        e.update_mode();
        m.board().smi = true;
        let before = everything(m.env());
        assert_eq!(poll_events(m.env()), Next::Continue);
        let e = m.env();
        assert!(e.smm && e.nmi_blocked && !e.code64());
        assert_eq!((e.seg[seg::CS].base, e.ip(), e.rflags(), e.dr[7]), (SMBASE, 0x8000, 2, 0x400));
        assert_eq!(e.cr0.bits() & 0x8000_000d, 0);
        m.board().stop_after_smm = true;
        assert_eq!(m.processor.run(), exit::STOPPED);
        assert_eq!(format!("{before:?}"), format!("{:?}", everything(m.env())), "mode {mode}");
        assert_eq!((m.get(marker, 2), m.get(marker + 4, 4)), (SMBASE >> 4, marker));
        assert_eq!(m.board().smm, [true, false]);
    }
}

#[test]
fn the_save_area_is_where_firmware_looks() {
    let mut m = Machine::<Engine>::ready_long();
    m.env().gpr[reg::RAX] = 0x1234_5678_9abc_def0;
    m.env().gpr[15] = 15;
    m.board().smi = true;
    poll_events(m.env());
    assert_eq!(m.get(AREA + 0xfc, 4), 0x2_0064);
    assert_eq!(m.get(AREA + 0x100, 4), SMBASE);
    assert_eq!(m.get(AREA + 0x1f8, 8), 0x1234_5678_9abc_def0);
    assert_eq!(m.get(AREA + 0x180, 8), 15);
    assert_eq!(m.get(AREA + 0x178, 8), CODE);
    assert_eq!(m.get(AREA + 0x10, 8), 0xffff_ffff_0a9a_0000 | CODE64 as u64 | 1 << 16, "CS");
    assert_eq!(m.get(AREA + 0xd0, 8), 0xd01, "EFER");

    let mut m = Machine::<Engine>::of_model("pentium3").into_protected();
    m.env().gpr[reg::RAX] = 0x9abc_def0;
    m.board().smi = true;
    poll_events(m.env());
    assert_eq!((m.get(AREA + 0xfc, 4), m.get(AREA + 0xf8, 4)), (0x2_0000, SMBASE));
    assert_eq!((m.get(AREA + 0x1d0, 4), m.get(AREA + 0x1f0, 4)), (0x9abc_def0, CODE));
    assert_eq!(m.get(AREA + 0x1ac, 2), CODE32 as u64);
    assert_eq!(m.get(AREA + 0x1fc, 4), m.env().cr0.bits() | 1);
}

#[test]
fn smbase_moves_and_smis_do_not_nest() {
    let mut m = Machine::<Engine>::ready_long();
    handler(&m, SMBASE, |a| {
        a.mov(ebx, 0x3_ff00u32)?;
        a.mov(dword_ptr(ebx), 0x4_0000u32)
    });
    handler(&m, 0x4_0000, |a| {
        a.mov(ebx, PAGES as u32)?;
        a.inc(dword_ptr(ebx))
    });
    m.board().smi = true;
    poll_events(m.env());
    m.board().smi = true;
    m.board().init = true;
    poll_events(m.env());
    assert!(m.board().smi, "waits");
    assert!(m.board().init, "waits");
    m.board().init = false;
    assert_eq!(m.run_from_here(), None);
    assert_eq!(m.env().msr.smbase, 0x4_0000);
    assert_eq!(m.get(PAGES, 4), 1, "the second SMI went to the new base");
    assert_eq!(m.board().smm, [true, false, true, false]);
}

#[test]
fn a_halted_processor_halts_again_unless_the_handler_says_otherwise() {
    for wake in [false, true] {
        let mut m = Machine::<Engine>::ready_long();
        handler(&m, SMBASE, |a| {
            a.mov(ebx, AREA as u32 + 0xc9)?;
            if wake {
                a.mov(byte_ptr(ebx), 0)?;
            }
            a.nop()
        });
        let ends = m.assemble(64, |a| {
            a.hlt()?;
            a.inc(r15)
        });
        m.env().gpr[15] = 0;
        assert_eq!(m.processor.run(), exit::HALTED);
        m.board().smi = true;
        assert_eq!(m.processor.run(), exit::HALTED);
        assert_eq!(m.board().smm, [true, false]);
        let e = m.env();
        assert_eq!((e.gpr[15], e.rip), if wake { (1, ends[2]) } else { (0, ends[0]) });
    }
}

#[test]
fn nmis_wait_for_rsm_or_an_iret_in_the_handler() {
    let mut m = Machine::<Engine>::ready_long();
    handler(&m, SMBASE, |a| a.nop());
    m.board().smi = true;
    poll_events(m.env());
    m.board().nmi = true;
    poll_events(m.env());
    assert!(m.board().nmi);
    let trap = m.run_from_here().expect("NMI after RSM");
    assert_eq!(trap.at(), (vector::NMI as u64, CODE));

    // The NMI handler is interrupted: NMIs stay blocked after RSM.
    m.board().smi = true;
    poll_events(m.env());
    m.board().nmi = true;
    assert!(m.run_from_here().is_some(), "halts in the NMI handler");
    assert!(m.board().nmi);
    assert!(m.env().nmi_blocked);
}

#[test]
fn rsm_needs_the_mode_and_a_valid_state() {
    let mut m = Machine::<Engine>::ready_long();
    assert_eq!(m.run(64, |a| a.rsm()).expect("#UD").at(), (6, CODE));
    // CR0 with NW and without CD, PG without PE; CR4 with a bit that does not exist; EFER.LMA without LME.
    for (at, value) in [(0x158, 0xa000_0001u64), (0x158, 0x8000_0000), (0x148, 1 << 40), (0xd0, 0x400)] {
        let mut m = Machine::<Engine>::ready_long();
        handler(&m, SMBASE, |a| a.nop());
        m.board().smi = true;
        poll_events(m.env());
        m.put(AREA + at, 8, value);
        assert_eq!(m.processor.run(), exit::SHUTDOWN, "{at:x}");
    }
}

#[test]
fn interrupts_in_the_handler_work_as_in_real_mode() {
    let mut m = Machine::<Engine>::ready_long();
    m.put(0x21 * 4, 4, 0x0000_7000);
    // mov byte [ebx], 7; iret
    for (n, b) in [0x67u64, 0xc6, 0x03, 0x07, 0xcf].into_iter().enumerate() {
        m.put(0x7000 + n as u64, 1, b);
    }
    handler(&m, SMBASE, |a| {
        // The stack and the interrupt table are the handler's business.
        a.mov(esp, 0x6000u32)?;
        a.mov(ebx, PAGES as u32)?;
        a.mov(dword_ptr(ebx), 0x3ffu32)?;
        a.mov(dword_ptr(ebx + 2), 0)?;
        a.lidt(ptr(ebx))?;
        a.int(0x21)
    });
    m.board().smi = true;
    poll_events(m.env());
    assert_eq!(m.run_from_here(), None);
    assert_eq!(m.get(PAGES, 1), 7);
    assert_eq!(m.env().idtr.base, IDT);
}
