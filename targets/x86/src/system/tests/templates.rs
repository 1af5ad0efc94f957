//! The same code at several addresses, whose blocks are copied from each other.

use iced_x86::code_asm::*;

use super::engine::{CODE, Engine, PAGES};
use super::*;

/// Where the first 2 MiB are mapped, too.
const BASES: [u64; 4] = [0x5555_5540_0000, 0x7f12_3460_0000, 0x0140_0000_0000, 0x7ffc_ffe0_0000];
/// There, too.
const NEAR: u64 = 0x1_4000_0000;
const STACK: u64 = PAGES + 0x1000;
/// What the code changes.
const DATA: u64 = PAGES + 0x2000;

fn ready() -> Machine<Engine> {
    let mut m = Machine::ready_long();
    // Of the lower half: that of the third level for the first 512 GiB, and the page table of the first 2 MiB.
    let (low, first) = (TABLES + 0x1000, TABLES + 0x3000);
    for (n, base) in (0..).zip(BASES.into_iter().chain([NEAR])) {
        let own = PAGES + 0x2_0000 + n * 0x2000;
        let index = |level: u64| 8 * (base >> (12 + 9 * level) & 511);
        let third = if index(3) == 0 { low } else { own };
        m.put(TABLES + index(3), 8, third | 3);
        m.put(third + index(2), 8, (own + 0x1000) | 3);
        m.put(own + 0x1000 + index(1), 8, first | 3);
    }
    crate::mmu::flush_all(m.env());
    m
}

fn run_at(m: &mut Machine<Engine>, base: u64) -> Option<engine::Trap> {
    m.env().set_ip(base + CODE);
    m.go()
}

fn copied(m: &Machine<Engine>) -> u64 {
    m.processor.stats().copied
}

/// A loop of seven rounds with what depends on its address: a call, data beside the instruction, its own address.
fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut function, mut over) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, 7)?;
    a.xor(edx, edx)?;
    a.set_label(&mut again)?;
    a.call(function)?;
    a.lea(rbx, ptr(again))?;
    a.add(qword_ptr(DATA as i32), rcx)?;
    a.mov(rsi, qword_ptr(again))?;
    a.dec(ecx)?;
    a.jnz(again)?;
    a.jmp(over)?;
    a.set_label(&mut function)?;
    a.inc(edx)?;
    a.mov(rax, ptr(rsp))?;
    a.ret()?;
    a.set_label(&mut over)?;
    a.push(rbx)
}

#[test]
fn code_does_the_same_wherever_it_is() {
    let mut m = ready();
    let ends = m.assemble(64, program);
    let again = ends[1];
    let mut translated = 0;
    for (n, base) in (1..).zip(BASES) {
        m.env().gpr[reg::RSP] = STACK;
        assert_eq!(run_at(&mut m, base), None);
        let gpr = m.env().gpr;
        assert_eq!(gpr[reg::RAX], base + ends[2], "the return address");
        assert_eq!(gpr[reg::RBX], base + again);
        assert_eq!(gpr[reg::RSI], m.get(again, 8));
        assert_eq!((gpr[reg::RCX], gpr[reg::RDX], gpr[reg::RSP]), (0, 7, STACK - 8));
        assert_eq!(m.get(STACK - 8, 8), base + again);
        assert_eq!(m.get(DATA, 8), n * 28);
        assert_eq!(copied(&m) > 0, n > 2, "the second address makes templates, the third uses them");
        let stats = m.processor.stats();
        let made = stats.translated - stats.translated_once;
        assert!(n < 3 || made == translated, "at the third, all blocks are copies");
        translated = made;
    }
}

#[test]
fn what_a_slow_path_stores_is_of_its_address() {
    let mut m = ready();
    let ends = m.assemble(64, program);
    for base in BASES {
        // Beside the code: a store there is one for the slow path.
        m.env().gpr[reg::RSP] = CODE + 0x200;
        assert_eq!(run_at(&mut m, base), None);
        assert_eq!(m.env().gpr[reg::RAX], base + ends[2]);
        assert_eq!(m.get(CODE + 0x1f8, 8), base + ends[1]);
    }
    assert!(copied(&m) > 0);
}

#[test]
fn a_fault_in_a_copy_is_at_its_address() {
    let mut m = ready();
    let ends = m.assemble(64, |a| {
        a.lea(rbx, ptr(rdi + 8))?;
        a.call(rdx)?;
        a.nop()
    });
    for base in BASES {
        let e = m.env();
        (e.gpr[reg::RSP], e.gpr[reg::RDX]) = (2 * SIZE as u64, base + ends[1]);
        e.gpr[reg::RDI] = base;
        let trap = run_at(&mut m, base).expect("no page is there");
        assert_eq!(trap.at(), (14, base + ends[0]));
        assert_eq!(m.env().gpr[reg::RBX], base + 8);
    }
    assert!(copied(&m) > 0);
}

#[test]
fn code_that_has_changed_is_not_copied() {
    let mut m = ready();
    m.assemble(64, |a| a.mov(eax, 1));
    for base in &BASES[..3] {
        assert_eq!(run_at(&mut m, *base), None);
        assert_eq!(m.env().gpr[reg::RAX], 1);
    }
    let before = copied(&m);
    assert!(before > 0);
    m.put(CODE + 1, 1, 2);
    m.processor.clear_code();
    for base in BASES {
        assert_eq!(run_at(&mut m, base), None);
        assert_eq!(m.env().gpr[reg::RAX], 2, "{base:x}");
    }
    assert!(copied(&m) > before, "it is copied as it is now");
}

#[test]
fn blocks_at_the_ends_of_user_space_are_translated() {
    let mut m = ready();
    m.assemble(64, |a| a.mov(eax, 1));
    for _ in 0..3 {
        m.processor.clear_code();
        m.env().set_ip(CODE);
        assert_eq!(m.go(), None);
        assert_eq!(run_at(&mut m, NEAR), None);
    }
    assert_eq!(copied(&m), 0, "neither address is far from 32 bits");
}

#[test]
fn what_an_address_is_divided_by_is_looked_at_where_it_may_be_zero() {
    let mut m = ready();
    let ends = m.assemble(64, |a| {
        // LEA RCX, [RIP - the address behind it].
        a.db(&[0x48, 0x8d, 0x0d])?;
        a.dd(&[(CODE as u32 + 7).wrapping_neg()])?;
        a.mov(edx, 0)?;
        a.div(ecx)
    });
    for base in BASES {
        let trap = run_at(&mut m, base);
        assert_eq!(trap.map(|t| t.at()), (base as u32 == 0).then_some((0, base + ends[1])), "{base:x}");
    }
}

#[test]
fn what_an_address_is_compared_with_decides_at_each() {
    const BETWEEN: u64 = 0x6000_0000_0000;
    let mut m = ready();
    m.assemble(64, |a| {
        let (mut here, mut over) = (a.create_label(), a.create_label());
        a.set_label(&mut here)?;
        a.lea(rbx, ptr(here))?;
        a.mov(rcx, BETWEEN)?;
        a.mov(eax, 1)?;
        a.cmp(rbx, rcx)?;
        a.jae(over)?;
        a.dec(eax)?;
        a.set_label(&mut over)?;
        a.test(edx, edx)
    });
    for base in [BASES[2], BASES[0], BASES[1], BASES[3]] {
        assert_eq!(run_at(&mut m, base), None);
        assert_eq!(m.env().gpr[reg::RAX], u64::from(base >= BETWEEN), "{base:x}");
    }
}
