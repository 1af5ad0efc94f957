//! Breakpoints, through the whole engine.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::engine::{CODE, Engine, PAGES};
use super::*;
use crate::system::{debug, exit};

const DB: u64 = 1;
const RF: u64 = 1 << 16;
const ENABLE: u64 = 3;

/// DR7 for breakpoint `n`: R/W field, and length in bytes.
fn dr7(n: u32, condition: u64, len: u64) -> u64 {
    let field = match len {
        1 => 0,
        2 => 1,
        4 => 3,
        _ => 2,
    };
    ENABLE << (2 * n) | (condition | field << 2) << (16 + 4 * n)
}

const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const IO: u64 = 2;
const READ_WRITE: u64 = 3;

fn arm(m: &mut Machine<Engine>, at: &[u64], control: u64) {
    let e = m.env();
    e.dr[6] = debug::DR6_ONES;
    for (n, &at) in at.iter().enumerate() {
        debug::write(e, n, at).expect("allowed");
    }
    debug::write(e, 7, control).expect("allowed");
}

/// B0 to B3 of DR6, BD, BS, BT.
fn reasons(m: &mut Machine<Engine>) -> u64 {
    m.env().dr[6] & 0xe00f
}

#[test]
fn stores_hit_exactly_their_bytes() {
    let mut m = Machine::ready_long();
    for (len, size) in [1u64, 2, 4, 8].into_iter().flat_map(|l| [1u64, 2, 4, 8].map(|s| (l, s))) {
        for offset in 0..24u64 {
            // The last three bits of the address do not matter for a length of 8, and so on.
            arm(&mut m, &[PAGES + 8 + len - 1], dr7(0, WRITE, len));
            let at = PAGES + offset;
            let first = PAGES + 8 + (len - 1) / len * len;
            let first = first & !(len - 1);
            let expect = at < first + len && first < at + size;
            let ends = m.assemble(64, |a| {
                a.inc(rbx)?;
                match size {
                    1 => a.mov(byte_ptr(rcx), al)?,
                    2 => a.mov(word_ptr(rcx), ax)?,
                    4 => a.mov(dword_ptr(rcx), eax)?,
                    _ => a.mov(qword_ptr(rcx), rax)?,
                }
                a.inc(rbx)
            });
            let e = m.env();
            (e.gpr[reg::RCX], e.gpr[reg::RBX], e.gpr[reg::RAX]) = (at, 0, !0);
            m.put(PAGES, 8, 0);
            m.put(PAGES + 8, 8, 0);
            m.put(PAGES + 16, 8, 0);
            m.put(PAGES + 24, 8, 0);
            let trap = m.go();
            let hit = trap.map(|t| (t.at(), m.env().gpr[reg::RBX], m.get(at, 1)));
            let wanted = expect.then_some(((DB, ends[1]), 1, 0xff));
            assert_eq!(hit, wanted, "{size} bytes at +{offset}, watch of {len}");
            if let Some(trap) = trap {
                assert_eq!(trap.flags & RF, 0);
                assert_eq!(reasons(&mut m), 1);
                assert_eq!(m.resume(), None);
                assert_eq!(m.env().gpr[reg::RBX], 2);
            }
        }
    }
}

#[test]
fn reads_hit_only_what_watches_reads() {
    let mut m = Machine::ready_long();
    for (condition, hit) in [(WRITE, false), (READ_WRITE, true)] {
        arm(&mut m, &[PAGES], dr7(0, condition, 8));
        m.env().gpr[reg::RCX] = PAGES;
        let trap = m.run(64, |a| {
            a.mov(rax, qword_ptr(rcx + 0x100))?;
            a.mov(rax, qword_ptr(rcx + 7))?;
            a.nop()
        });
        assert_eq!(trap.is_some(), hit);
    }
    // An instruction fetch is not a data read.
    arm(&mut m, &[CODE], dr7(0, READ_WRITE, 8));
    assert_eq!(m.run(64, |a| a.nop()), None);
    // Disabled: nothing.
    arm(&mut m, &[PAGES], dr7(0, WRITE, 8) & !ENABLE);
    assert_eq!(m.run(64, |a| a.mov(qword_ptr(rcx), rax)), None);
}

#[test]
fn several_hit_at_once_and_across_pages() {
    let mut m = Machine::ready_long();
    // The third is not enabled: its bit shows because of the others.
    let control = dr7(0, WRITE, 4) | dr7(1, READ_WRITE, 1) | dr7(2, WRITE, 8) & !(ENABLE << 4);
    let edge = PAGES + 0x1000;
    arm(&mut m, &[edge, edge - 1, edge], control);
    m.env().gpr[reg::RCX] = edge - 4;
    m.env().gpr[reg::RAX] = 0x1122_3344_5566_7788;
    let trap = m.run(64, |a| {
        a.mov(dword_ptr(rcx - 4), eax)?;
        a.mov(qword_ptr(rcx), rax)
    });
    assert_eq!(trap.map(|t| t.vector), Some(DB));
    assert_eq!(reasons(&mut m), 7);
    assert_eq!(m.get(edge - 4, 8), 0x1122_3344_5566_7788);
    assert_eq!(m.resume(), None);
    // What the page has otherwise is not watched.
    m.env().gpr[reg::RCX] = edge + 0x800;
    assert_eq!(m.run(64, |a| a.mov(qword_ptr(rcx), rax)), None);
}

#[test]
fn instructions_of_every_kind_complete_before_their_trap() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let mut m = Machine::ready_long();
    m.env().cr4 |= Cr4::OSFXSR | Cr4::OSXSAVE;
    m.env().update_mode();
    let cases: &[(&str, Write)] = &[
        ("inc", |a| a.inc(qword_ptr(rcx))),
        ("lock add", |a| a.lock().add(qword_ptr(rcx), rax)),
        ("xchg", |a| a.xchg(qword_ptr(rcx), rax)),
        ("xadd", |a| a.xadd(qword_ptr(rcx), rax)),
        ("lock cmpxchg", |a| a.lock().cmpxchg(qword_ptr(rcx), rdx)),
        ("cmpxchg16b", |a| a.cmpxchg16b(xmmword_ptr(rcx))),
        ("lock cmpxchg16b", |a| a.lock().cmpxchg16b(xmmword_ptr(rcx))),
        ("push", |a| a.push(rax)),
        ("push mem", |a| a.push(qword_ptr(rbx))),
        ("pop mem", |a| a.pop(qword_ptr(rcx))),
        ("movups", |a| a.movups(xmmword_ptr(rcx), xmm0)),
        ("fxsave", |a| a.fxsave(ptr(rcx))),
        ("xsave", |a| a.xsave(ptr(rcx))),
        ("fstp", |a| a.fstp(qword_ptr(rcx))),
        ("fnstenv", |a| a.fnstenv(ptr(rcx))),
        ("sgdt", |a| a.sgdt(ptr(rcx))),
        ("movsq", |a| a.movsq()),
        ("stosb", |a| a.stosb()),
        ("setz", |a| a.setz(byte_ptr(rcx))),
        ("bts", |a| a.bts(qword_ptr(rcx), rdx)),
        ("enter", |a| a.enter(16, 1)),
        ("call", |a| a.call(CODE + 0x80)),
    ];
    m.put(CODE + 0x80, 1, 0xf4);
    for (name, write) in cases {
        arm(&mut m, &[PAGES], dr7(0, WRITE, 8));
        m.env().fpu = crate::state::Fpu::INITIAL;
        let ends = m.assemble(64, |a| {
            a.inc(r15)?;
            write(a)?;
            a.inc(r15)
        });
        let e = m.env();
        e.gpr = [0; 16];
        // The x87 unit, which is at the area's start.
        e.gpr[reg::RAX] = (*name == "xsave") as u64;
        e.gpr[reg::RCX] = PAGES;
        e.gpr[reg::RDI] = PAGES;
        e.gpr[reg::RBX] = PAGES + 0x1000;
        e.gpr[reg::RSI] = PAGES + 0x1000;
        e.gpr[reg::RSP] = PAGES + 8;
        m.put(CODE + 0x80, 1, 0xf4);
        let trap = m.go().unwrap_or_else(|| panic!("{name} does not hit"));
        let to = if *name == "call" { CODE + 0x80 } else { ends[1] };
        assert_eq!(trap.at(), (DB, to), "{name}");
        assert_eq!(m.env().gpr[15], 1, "{name}");
        assert_eq!(reasons(&mut m), 1, "{name}");
        assert_eq!(m.resume(), None, "{name}");
    }
}

#[test]
fn repeated_instructions_trap_after_the_iteration() {
    let mut m = Machine::ready_long();
    arm(&mut m, &[PAGES + 0x10], dr7(0, WRITE, 8));
    let ends = m.assemble(64, |a| a.rep().stosd());
    let e = m.env();
    (e.gpr[reg::RCX], e.gpr[reg::RDI], e.gpr[reg::RAX]) = (6, PAGES, 0x55);
    let trap = m.go().expect("the fifth element hits");
    assert_eq!(trap.at(), (DB, CODE));
    assert_ne!(trap.flags & RF, 0, "iterations are left");
    assert_eq!((m.env().gpr[reg::RCX], m.env().gpr[reg::RDI]), (1, PAGES + 0x14));
    let trap = m.resume().expect("and the sixth");
    assert_eq!(trap.at(), (DB, ends[0]));
    assert_eq!(trap.flags & RF, 0, "the last one");
    assert_eq!(m.env().gpr[reg::RCX], 0);
    assert_eq!(m.resume(), None);
    assert_eq!(m.get(PAGES + 0x10, 8), 0x55_0000_0055);

    // A copy reads one watched element and writes another.
    arm(&mut m, &[PAGES + 8, PAGES + 0x100 + 8], dr7(0, READ_WRITE, 1) | dr7(1, WRITE, 1));
    m.assemble(64, |a| a.rep().movsb());
    let e = m.env();
    (e.gpr[reg::RCX], e.gpr[reg::RSI], e.gpr[reg::RDI]) = (0x40, PAGES, PAGES + 0x100);
    let trap = m.go().expect("a hit");
    assert_eq!((trap.at(), reasons(&mut m)), ((DB, CODE), 3));
    assert_eq!(m.env().gpr[reg::RCX], 0x40 - 9);
    assert_eq!(m.resume(), None);
    assert_eq!(m.env().gpr[reg::RCX], 0);
}

#[test]
fn what_faults_does_not_trap() {
    let mut m = Machine::ready_long();
    arm(&mut m, &[PAGES], dr7(0, READ_WRITE, 8));
    m.set_pte(PAGES + 0x1000, 0);
    let e = m.env();
    (e.gpr[reg::RCX], e.gpr[reg::RSP]) = (PAGES, PAGES + 0x2000);
    let trap = m.run(64, |a| a.push(qword_ptr(rcx))).expect("the stack is missing");
    assert_eq!(trap.at(), (14, CODE));
    m.set_pte(PAGES + 0x1000, 7);
    let trap = m.resume().expect("and then the read hits");
    assert_eq!((trap.vector, reasons(&mut m)), (DB, 1));
}

#[test]
fn single_steps_and_shadows_join_with_data_breakpoints() {
    let mut m = Machine::ready_long();
    arm(&mut m, &[PAGES], dr7(0, READ_WRITE, 8));
    let ends = m.assemble(64, |a| {
        a.mov(qword_ptr(rcx), rax)?;
        a.nop()
    });
    m.env().gpr[reg::RCX] = PAGES;
    m.env().eflags |= RFlags::TF.bits();
    m.env().update_mode();
    assert_eq!(m.go().expect("a step").at(), (DB, ends[0]));
    assert_eq!(reasons(&mut m), 1 | debug::BS);
    m.env().eflags &= !RFlags::TF.bits();

    // MOV SS holds its own trap, single steps and breakpoints off until the next instruction has run.
    arm(&mut m, &[PAGES, CODE + 2], dr7(0, READ_WRITE, 8) | dr7(1, EXECUTE, 1));
    m.put(PAGES, 8, DATA as u64);
    let ends = m.assemble(64, |a| {
        a.mov(ss, word_ptr(rcx))?;
        a.inc(rbx)?;
        a.nop()
    });
    m.env().gpr[reg::RBX] = 0;
    m.env().eflags |= RFlags::TF.bits();
    m.env().update_mode();
    assert_eq!(ends[0], CODE + 2, "the breakpoint is behind MOV SS");
    assert_eq!(m.go().expect("late").at(), (DB, ends[1]));
    assert_eq!((m.env().gpr[reg::RBX], reasons(&mut m)), (1, 1 | debug::BS));
}

#[test]
fn ports_hit_if_cr4_says_so() {
    let mut m = Machine::ready_long();
    arm(&mut m, &[0x62], dr7(0, IO, 2));
    let program = |a: &mut CodeAssembler| {
        a.in_(al, 0x61)?;
        a.in_(eax, 0x61)?;
        a.inc(rbx)?;
        a.out(0x64, al)?;
        a.out(0x63, al)?;
        a.inc(rbx)?;
        a.insb()?;
        a.inc(rbx)
    };
    let ends = m.assemble(64, program);
    m.env().gpr[reg::RDX] = 0x62;
    m.env().gpr[reg::RDI] = PAGES;
    assert_eq!(m.go(), None, "without CR4.DE");
    m.env().cr4 |= Cr4::DE;
    m.assemble(64, program);
    m.env().gpr[reg::RBX] = 0;
    for (n, done) in [(1, 0), (4, 1), (6, 2)] {
        let trap = if n == 1 { m.go() } else { m.resume() };
        assert_eq!(trap.expect("a hit").at(), (DB, ends[n]));
        assert_eq!((m.env().gpr[reg::RBX], reasons(&mut m)), (done, 1));
    }
    assert_eq!(m.resume(), None);
}

#[test]
fn instruction_breakpoints_are_faults_that_rf_holds_off() {
    let mut m = Machine::ready_long();
    let ends = m.assemble(64, |a| {
        a.inc(rbx)?;
        a.rep().stosb()?;
        a.mov(qword_ptr(rsi), rax)?;
        a.inc(rbx)
    });
    // On the REP STOS, on a store that a data breakpoint stops too, and on the last instruction.
    arm(
        &mut m,
        &[ends[0], ends[1], ends[2], PAGES + 0x100],
        dr7(0, EXECUTE, 1) | dr7(1, EXECUTE, 1) | dr7(2, EXECUTE, 1) | dr7(3, WRITE, 1),
    );
    let e = m.env();
    (e.gpr[reg::RCX], e.gpr[reg::RDI], e.gpr[reg::RBX]) = (0x3000, PAGES + 0x1000, 0);
    e.gpr[reg::RSI] = PAGES + 0x100;
    let trap = m.go().expect("a breakpoint");
    assert_eq!((trap.at(), reasons(&mut m), m.env().gpr[reg::RBX]), ((DB, ends[0]), 1, 1));
    let resume = |m: &mut Machine<Engine>| {
        // What the handler does: sets RF in the image.
        let at = m.env().gpr[reg::RSP] + 16;
        let flags = m.get(at, 8);
        m.put(at, 8, flags | RF);
        m.resume()
    };
    let trap = resume(&mut m).expect("the next one, once the whole string is stored");
    assert_eq!((trap.at(), reasons(&mut m), m.env().gpr[reg::RCX]), ((DB, ends[1]), 2, 0));
    let trap = resume(&mut m).expect("a trap of the store, whose breakpoint is held off");
    assert_eq!((trap.at(), reasons(&mut m)), ((DB, ends[2]), 8));
    let trap = m.resume().expect("the last one");
    assert_eq!((trap.at(), reasons(&mut m)), ((DB, ends[2]), 4));
    assert_eq!(resume(&mut m), None);
    assert_eq!(m.env().gpr[reg::RBX], 2);
}

#[test]
fn delivery_itself_may_hit() {
    let mut m = Machine::ready_protected();
    // The word that INT pushes last.
    arm(&mut m, &[KERNEL_STACK - 12], dr7(0, WRITE, 4));
    let trap = m.run(32, |a| a.int(20)).expect("a trap");
    assert_eq!(trap.at(), (DB, HANDLER + 20), "before the handler's first instruction");
    assert_eq!(reasons(&mut m), 1);
    // The same for an exception.
    m.env().gpr[reg::RSP] = KERNEL_STACK;
    m.env().dr[6] = debug::DR6_ONES;
    let trap = m.run(32, |a| a.ud2()).expect("a trap");
    assert_eq!(trap.at(), (DB, HANDLER + 6));
    assert_eq!(reasons(&mut m), 1);
}

#[test]
fn icebp_and_general_detect() {
    let mut m = Machine::ready_protected();
    arm(&mut m, &[], 0);
    m.code(&[0xf1, 0xf4]);
    let trap = m.go().expect("ICEBP");
    assert_eq!((trap.at(), reasons(&mut m)), ((DB, CODE + 1), 0));
    debug::write(m.env(), 7, 1 << 13).expect("allowed");
    let trap = m.run(32, |a| a.mov(eax, dr0)).expect("GD");
    assert_eq!((trap.at(), reasons(&mut m)), ((DB, CODE), debug::BD));
    assert_eq!(m.env().dr[7] & 1 << 13, 0);
    let trap = m.resume();
    assert_eq!(trap, None);
    m.env().dr[6] = debug::DR6_ONES | 4;
    assert_eq!(m.run(32, |a| a.mov(eax, dr4)), None);
    assert_eq!(m.env().gpr[reg::RAX], debug::DR6_ONES | 4);
    m.env().cr4 |= Cr4::DE;
    assert_eq!(m.run(32, |a| a.mov(eax, dr5)).expect("#UD").at(), (6, CODE));
}

#[test]
fn a_debugger_watches_without_the_guest_noticing() {
    use tessera_tcg::softmmu::{self, Watch, WatchKind, WatchOwner};
    let mut m = Machine::<Engine>::ready_long();
    let kind = WatchKind::Read;
    let watch = Watch { owner: WatchOwner::Debugger, tag: 5, first: PAGES, last: PAGES + 99, kind };
    softmmu::add_watch::<X86>(m.env(), watch);
    m.env().gpr[reg::RCX] = PAGES + 96;
    let ends = m.assemble(64, |a| {
        a.mov(qword_ptr(rcx), rax)?;
        a.inc(rbx)?;
        a.add(qword_ptr(rcx), rax)?;
        a.inc(rbx)
    });
    m.env().gpr[reg::RBX] = 0;
    assert_eq!(m.processor.run(), exit::WATCHED);
    assert_eq!((m.env().rip, m.env().gpr[reg::RBX]), (ends[2], 1));
    assert_eq!(m.processor.run(), exit::WATCHED, "until it is taken");
    let hits = softmmu::take_watch_hits::<X86>(m.env(), WatchOwner::Debugger);
    assert_eq!(
        hits.iter().map(|h| (h.tag, h.address, h.write)).collect::<Vec<_>>(),
        [(5, PAGES + 96, false)]
    );
    assert_eq!(m.go(), None);
    assert_eq!((m.env().gpr[reg::RBX], m.env().dr[6]), (2, debug::DR6_ONES));
}

#[test]
fn a_task_with_the_trap_bit_traps_before_its_first_instruction() {
    let mut m = Machine::<Engine>::ready_protected();
    let next = CODE + 0x100;
    m.put(next, 1, 0xf4);
    for (at, value) in [(0x1c, 0), (0x20, next), (0x24, 2), (0x38, KERNEL_STACK), (0x48, 0x10), (0x4c, 8)] {
        m.put(TSS2 + at, 4, value);
    }
    for (at, value) in [(0x50, 0x10u64), (0x54, 0x10), (0x58, 0x10), (0x5c, 0x10), (0x60, 0), (0x64, 1)] {
        m.put(TSS2 + at, 4, value);
    }
    // Locally enabled breakpoints are the old task's, a globally enabled one stays.
    arm(&mut m, &[next, next], 1 | 2 << 2);
    m.code(&[0xea, 0, 0, 0, 0, TASK2 as u8, 0]);
    let trap = m.go().expect("the T bit");
    assert_eq!(trap.at(), (DB, next));
    assert_eq!(reasons(&mut m), debug::BT);
    assert_eq!(m.env().dr[7] & 0xff, 2 << 2);
    let trap = m.resume().expect("the global breakpoint");
    assert_eq!(trap.at(), (DB, next));
    assert_eq!(m.env().dr[6] & 3, 3, "also that of the one that is not enabled");
}

#[test]
fn a_port_is_read_once_even_if_the_store_is_watched_or_changes_running_code() {
    let mut m = Machine::<Engine>::ready_long();
    arm(&mut m, &[PAGES + 4], dr7(0, WRITE, 1));
    let ends = m.assemble(64, |a| a.rep().insb());
    let e = m.env();
    (e.gpr[reg::RCX], e.gpr[reg::RDI]) = (8, PAGES);
    assert_eq!(m.go().expect("a hit").at(), (DB, CODE));
    assert_eq!(m.env().gpr[reg::RCX], 3);
    assert_eq!(m.resume(), None);
    assert_eq!((m.get(PAGES, 8), m.board().next_input), (0x0807_0605_0403_0201, 8));
    // Over the HLT of the running block: a byte that is HLT, too.
    m.board().next_input = 0xf3;
    m.env().gpr[reg::RDI] = ends[0];
    assert_eq!(m.run(64, |a| a.insd()), None);
    assert_eq!(m.board().next_input, 0xf4);
}
