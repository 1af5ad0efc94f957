//! Rules that hold between instructions, or for all of them: single steps, interrupt shadows, alignment, canonical addresses;
//! through the whole engine. And what memory type, machine check and other registers accept.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::engine::{CODE, Engine, PAGES, Trap};
use super::*;
use crate::system::debug;

const DB: u64 = 1;
const GP: u64 = 13;

fn step(m: &mut Machine<Engine>) -> Trap {
    let trap = m.resume().expect("a step");
    assert_eq!(m.env().dr[6] & debug::BS, debug::BS);
    trap
}

#[test]
fn single_steps_follow_the_flag_at_the_start_of_an_instruction() {
    let mut m = Machine::<Engine>::ready_long();
    let ends = m.assemble(64, |a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100i32)?;
        a.popfq()?;
        a.inc(rbx)?;
        a.rep().stosb()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !0x100u32 as i32)?;
        a.popfq()?;
        a.inc(rbx)
    });
    let e = m.env();
    (e.gpr[reg::RBX], e.gpr[reg::RCX], e.gpr[reg::RDI]) = (0, 3, PAGES);
    // POPF sets TF: the instruction after it is the first to trap.
    assert_eq!(m.go().expect("a step").at(), (DB, ends[3]));
    // One iteration each; RF says that there are more.
    for left in [2, 1] {
        let trap = step(&mut m);
        assert_eq!((trap.at(), trap.flags >> 16 & 1), ((DB, ends[3]), 1));
        assert_eq!(m.env().gpr[reg::RCX], left);
    }
    let trap = step(&mut m);
    assert_eq!((trap.at(), trap.flags >> 16 & 1), ((DB, ends[4]), 0));
    let trap = step(&mut m);
    assert_eq!(trap.at(), (DB, ends[5]));
    assert_eq!(m.get(trap.sp, 8) & 0x100, 0x100, "the program sees TF");
    assert_eq!(step(&mut m).at(), (DB, ends[6]));
    assert_eq!(step(&mut m).at(), (DB, ends[7]), "the POPF that clears it still traps");
    assert_eq!(m.resume(), None);
    assert_eq!(m.env().gpr[reg::RBX], 2);

    // INT clears TF before there could be a trap; a fault pushes it.
    for code in [&[0xcdu8, 20, 0xf4][..], &[0x0f, 0x0b, 0xf4]] {
        m.code(code);
        m.env().eflags |= RFlags::TF.bits();
        m.env().update_mode();
        let trap = m.go().expect("its handler");
        assert!(matches!(trap.vector, 20 | 6) && trap.flags & 0x100 != 0);
        assert_eq!(m.env().eflags & RFlags::TF.bits(), 0);
    }
}

#[test]
fn stepped_system_calls_trap_unless_they_clear_the_flag() {
    for (mask, vector) in [(0x100, None), (0, Some(DB))] {
        let mut m = Machine::<Engine>::ready_long();
        m.set_level(3, true);
        m.put(PAGES, 1, 0xf4);
        let e = m.env();
        for (index, value) in [
            (msr::index::STAR, (CODE64 as u64) << 32),
            (msr::index::LSTAR, PAGES),
            (msr::index::FMASK, mask),
            (msr::index::SYSENTER_CS, CODE64 as u64),
            (msr::index::SYSENTER_EIP, PAGES),
            (msr::index::SYSENTER_ESP, KERNEL_STACK),
        ] {
            msr::write(e, index, value).expect("allowed");
        }
        m.assemble(64, |a| a.syscall());
        m.env().eflags |= RFlags::TF.bits();
        m.env().update_mode();
        let trap = m.go();
        assert_eq!(trap.map(|t| t.at()), vector.map(|v| (v, PAGES)), "SYSCALL");
        m.set_level(3, true);
        m.assemble(64, |a| a.sysenter());
        m.env().eflags |= RFlags::TF.bits();
        m.env().update_mode();
        assert_eq!(m.go().expect("SYSENTER leaves TF").at(), (DB, PAGES));
    }
}

#[test]
fn shadows_last_for_one_instruction() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(&str, bool, usize, Write); 5] = [
        ("sti", false, 2, |a| a.sti()),
        ("mov ss", true, 2, |a| a.mov(ss, edx)),
        // Of two loads of SS, only the first one has a shadow.
        ("mov ss, mov ss", true, 2, |a| {
            a.mov(ss, edx)?;
            a.mov(ss, edx)
        }),
        ("pop ss", true, 3, |a| {
            a.push(edx)?;
            a.db(&[0x17])
        }),
        ("sti behind a nop", false, 3, |a| {
            a.nop()?;
            a.sti()
        }),
    ];
    for (name, enabled, after, write) in cases {
        let mut m = Machine::<Engine>::ready_protected();
        m.gate(30, 0x8e, CODE32, HANDLER + 30, 0);
        let ends = m.assemble(32, |a| {
            write(a)?;
            a.inc(ebx)?;
            a.inc(ebx)?;
            a.inc(ebx)
        });
        let e = m.env();
        e.gpr[reg::RDX] = DATA as u64;
        e.set_rflags(0);
        // The interrupt comes while the first instruction runs: it is pending, and nobody has looked yet.
        m.board().interrupt = None;
        if enabled {
            m.env().eflags |= RFlags::IF.bits();
        }
        m.env().update_mode();
        m.board().interrupt_after_poll = Some(30);
        let trap = m.go().unwrap_or_else(|| panic!("{name}: no interrupt"));
        assert_eq!(trap.at(), (30, ends[after - 1]), "{name}");
    }
}

#[test]
fn alignment_is_checked_in_user_mode_if_asked_for() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    // The smallest misalignment that is allowed is that many bytes: 0 for none that matters.
    let cases: &[(&str, u64, Write)] = &[
        ("byte", 1, |a| a.mov(al, byte_ptr(rcx))),
        ("word", 2, |a| a.mov(ax, word_ptr(rcx))),
        ("dword", 4, |a| a.add(dword_ptr(rcx), eax)),
        ("qword", 8, |a| a.mov(qword_ptr(rcx), rax)),
        ("lock", 8, |a| a.lock().xadd(qword_ptr(rcx), rax)),
        ("push", 8, |a| {
            a.mov(rsp, rcx)?;
            a.push(rax)
        }),
        ("movsw", 2, |a| a.movsw()),
        ("rep stosd", 4, |a| {
            a.mov(ecx, 3)?;
            a.rep().stosd()
        }),
        ("fld", 8, |a| a.fld(qword_ptr(rcx))),
        ("fld tbyte", 8, |a| a.fld(tword_ptr(rcx))),
        ("fnstenv", 4, |a| a.fnstenv(ptr(rcx))),
        ("movq", 8, |a| a.movq(qword_ptr(rcx), xmm0)),
        ("movups", 1, |a| a.movups(xmmword_ptr(rcx), xmm0)),
        ("sgdt", 1, |a| a.lea(rax, qword_ptr(rcx))),
    ];
    let mut m = Machine::<Engine>::ready_long();
    for (name, alignment, write) in cases {
        for offset in 0..9u64 {
            for (cpl, checked) in [(3, true), (0, false)] {
                m.set_level(cpl, true);
                let ends = m.assemble(64, write);
                let e = m.env();
                e.fpu = crate::state::Fpu::INITIAL;
                e.cr0 |= Cr0::AM;
                e.cr4 |= Cr4::OSFXSR;
                e.set_rflags(RFlags::AC.bits());
                let at = PAGES + 0x100 + offset;
                for n in [reg::RCX, reg::RDI, reg::RSI] {
                    e.gpr[n] = at;
                }
                e.update_mode();
                let trap = m.go();
                let faults = checked && offset % alignment != 0;
                let expected = if faults {
                    Some((17, Some(0)))
                } else if cpl == 3 {
                    Some((GP, Some(0)))
                } else {
                    None
                };
                assert_eq!(trap.map(|t| (t.vector, t.error)), expected, "{name} at +{offset}, CPL {cpl}");
                if let Some(trap) = trap.filter(|_| !faults) {
                    assert_eq!(trap.ip, ends[ends.len() - 2], "HLT in user mode");
                }
            }
        }
    }
}

#[test]
fn addresses_that_are_not_canonical() {
    let wild = 0x8000_0000_0000u64;
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: &[(&str, u64, Write)] = &[
        ("mov", 13, |a| a.mov(rax, qword_ptr(rcx))),
        ("mov by rbp", 12, |a| a.mov(rax, qword_ptr(rbp))),
        ("push", 12, |a| {
            a.lea(rsp, ptr(rcx + 16))?;
            a.push(rax)
        }),
        ("pop", 12, |a| {
            a.mov(rsp, rcx)?;
            a.pop(rax)
        }),
        ("jmp", 13, |a| a.jmp(rcx)),
        ("jmp mem", 13, |a| {
            a.mov(qword_ptr(rbx), rcx)?;
            a.jmp(qword_ptr(rbx))
        }),
        ("ret", 13, |a| {
            a.push(rcx)?;
            a.ret()
        }),
        ("lgdt", 13, |a| {
            a.mov(qword_ptr(rbx + 2), rdx)?;
            a.lgdt(ptr(rbx))
        }),
        ("wrgsbase", 13, |a| a.wrgsbase(rdx)),
        ("fxsave", 13, |a| a.fxsave(ptr(rcx))),
        ("far jump", 13, |a| {
            a.mov(qword_ptr(rbx), rcx)?;
            a.mov(qword_ptr(rbx + 8), CODE64 as i32)?;
            a.db(&[0x48, 0xff, 0x2b])
        }),
        ("iretq", 13, |a| {
            a.push(DATA as i32)?;
            a.push(rbx)?;
            a.push(2)?;
            a.push(CODE64 as i32)?;
            a.push(rcx)?;
            a.iretq()
        }),
    ];
    for (name, vector, write) in cases {
        let mut m = Machine::<Engine>::ready_long_with(Cr4::FSGSBASE | Cr4::OSFXSR);
        let e = m.env();
        (e.gpr[reg::RCX], e.gpr[reg::RBP], e.gpr[reg::RBX]) = (wild, wild, PAGES);
        // Where even 57 bits are not enough.
        e.gpr[reg::RDX] = 1 << 57;
        let gdtr = e.gdtr;
        let trap = m.run(64, write).unwrap_or_else(|| panic!("{name} does not fault"));
        assert_eq!((trap.vector, trap.error), (*vector, Some(0)), "{name}");
        assert_eq!(m.env().gdtr, gdtr, "{name}");
    }
}

#[test]
fn memory_type_and_machine_check_registers_have_reserved_bits() {
    let mut m = <Machine>::long();
    let e = m.env();
    let phys = e.cpuid.phys_bits();
    let bad = |e: &mut X86Env, index: u32, value: u64| {
        let old = msr::read(e, index).expect("exists");
        assert_eq!(raised(msr::write(e, index, value)), (13, Some(0)), "{index:x} = {value:x}");
        assert_eq!(msr::read(e, index), Ok(old));
    };
    let good = |e: &mut X86Env, index: u32, value: u64| {
        msr::write(e, index, value).expect("allowed");
        assert_eq!(msr::read(e, index), Ok(value), "{index:x}");
    };
    for n in 0..8 {
        good(e, 0x200 + 2 * n, 0x8000_0006);
        bad(e, 0x200 + 2 * n, 0x8000_0002);
        bad(e, 0x200 + 2 * n, 0x8000_0100);
        bad(e, 0x200 + 2 * n, 1 << phys);
        good(e, 0x201 + 2 * n, 0xffff_f800 & !0xfff | 0x800);
        bad(e, 0x201 + 2 * n, 0x400);
        bad(e, 0x201 + 2 * n, 1 << phys);
    }
    for index in [0x250, 0x258, 0x259, 0x268, 0x26f] {
        good(e, index, 0x0605_0401_0006_0606);
        bad(e, index, 0x07 << 56);
        bad(e, index, 0x02);
    }
    good(e, msr::index::MTRR_DEF_TYPE, 0xc06);
    bad(e, msr::index::MTRR_DEF_TYPE, 0xc07);
    bad(e, msr::index::MTRR_DEF_TYPE, 0x1c06);
    good(e, msr::index::PAT, 0x0007_0406_0105_0406);
    bad(e, msr::index::PAT, 3 << 8);
    bad(e, msr::index::PAT, 0x80);
    for index in [msr::index::MTRRCAP, msr::index::MCG_CAP] {
        let value = msr::read(e, index).expect("exists");
        bad(e, index, value);
    }
    let banks = (msr::read(e, msr::index::MCG_CAP).expect("exists") & 0xff) as u32;
    for n in 0..banks {
        let bank = msr::index::MC0_CTL + 4 * n;
        good(e, bank, u64::MAX);
        for status in 1..4 {
            good(e, bank + status, 0);
            bad(e, bank + status, 1);
        }
    }
    assert_eq!(raised(msr::read(e, msr::index::MC0_CTL + 4 * banks)), (13, Some(0)), "no such bank");
    bad(e, msr::index::MCG_STATUS, 8);
    for index in [0u32, 0x9e, 0x200 + 16, 0x270, 0xc000_0000, 0xc000_0105, 0x4000_0000, u32::MAX] {
        if index != 0 {
            assert_eq!(raised(msr::read(e, index)), (13, Some(0)), "{index:x}");
            assert_eq!(raised(msr::write(e, index, 0)), (13, Some(0)), "{index:x}");
        }
    }
}

/// The I/O permission map's edges: the byte behind the last one is read, too, and must be in the TSS.
#[test]
fn the_port_map_ends_where_the_task_state_does() {
    use crate::system::io::check_permission;
    let mut m = <Machine>::protected();
    m.set_level(3, false);
    m.put(TSS + 0x66, 2, 0x68);
    m.put(TSS + 0x68, 8, 0);
    let at = |m: &mut Machine, limit: u32, port: u16, size: u32| {
        m.env().seg[seg::TR].limit = limit;
        check_permission(m.env(), port, size).is_ok()
    };
    assert!(at(&mut m, 0x6a, 0, 1) && at(&mut m, 0x6a, 8, 1));
    assert!(at(&mut m, 0x6a, 7, 4), "two bytes");
    assert!(!at(&mut m, 0x6a, 16, 1) && !at(&mut m, 0x69, 8, 1));
    assert!(!at(&mut m, 0x66, 0, 1), "no map address");
    m.env().seg[seg::TR].access &= !8;
    assert!(!at(&mut m, 0x6a, 0, 1), "a 16-bit TSS has no map");
    m.env().seg[seg::TR].access |= 8;
    m.put(TSS + 0x66, 2, 0xffff);
    assert!(!at(&mut m, 0xffff, 0, 1));
}

/// Blocks made under one limit of the code segment are used under another.
#[test]
fn the_limit_of_code_is_that_of_now() {
    let mut m = Machine::<Engine>::ready_protected();
    let ends = m.assemble(32, |a| {
        a.inc(ebx)?;
        a.inc(ebx)?;
        a.inc(ebx)
    });
    let at = |m: &mut Machine<Engine>, limit: u64| {
        let e = m.env();
        e.seg[seg::CS].limit = limit as u32;
        e.set_ip(CODE);
        e.update_mode();
        m.go().map(|trap| trap.at())
    };
    assert_eq!(at(&mut m, CODE + 0x100), None);
    assert_eq!(at(&mut m, ends[1] - 1), Some((GP, ends[1])));
    let e = m.env();
    e.gpr[reg::RSP] += 12;
    assert_eq!(at(&mut m, CODE + 0x200), None);
}
