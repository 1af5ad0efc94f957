//! Memos of pages in traces: whatever ends a translation, the accesses of a loop see it in the next round.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, byte_ptr, ecx, edx, qword_ptr, rax, rbp, rbx, rcx, rdi, rdx, rsi,
};
use tessera_tcg::env::GUESSING;

use super::engine::{CODE, Engine, PAGES, PTES};
use super::*;

/// A page that loops access, and another frame for it.
const FIRST: u64 = PAGES + 0x8000;
const OTHER: u64 = PAGES + 0xa000;
/// Present and writable.
const RW: u64 = 3;

/// Runs the code at [`CODE`] with RBX leading to [`FIRST`], RCX rounds and `sum` in RAX; RAX then, and whether nothing was
/// raised.
fn run(m: &mut Machine<Engine>, rounds: u64, sum: u64) -> (u64, Option<engine::Trap>) {
    let e = m.env();
    e.gpr[reg::RSP] = PAGES + 0x1000;
    (e.gpr[reg::RAX], e.gpr[reg::RCX], e.gpr[reg::RBX]) = (sum, rounds, FIRST);
    e.set_ip(CODE);
    let trap = m.go();
    (m.env().gpr[reg::RAX], trap)
}

fn run_at(m: &mut Machine<Engine>, ip: u64) -> Option<engine::Trap> {
    m.env().set_ip(ip);
    m.go()
}

/// A loop that goes round for each RCX with RDX one of 32 places in a page.
fn loop_over(
    a: &mut CodeAssembler,
    access: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(edx, ecx)?;
    a.and(edx, 0xf8)?;
    access(a)?;
    a.dec(rcx)?;
    a.jnz(again)
}

/// A loop that adds up a page, and sometimes takes a way aside before it goes on.
fn loop_with_detour(
    a: &mut CodeAssembler,
    when: impl FnOnce(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>,
    detour: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let (mut aside, mut back) = (a.create_label(), a.create_label());
    loop_over(a, |a| {
        a.add(rax, qword_ptr(rbx + rdx))?;
        when(a, aside)?;
        a.set_label(&mut back)?;
        a.nop()
    })?;
    a.hlt()?;
    a.set_label(&mut aside)?;
    detour(a)?;
    a.jmp(back)
}

/// A machine that adds up what is in a page: ones in the first frame, tens in the other.
fn reading() -> Machine<Engine> {
    let mut m = Machine::ready_long();
    m.assemble(64, |a| loop_over(a, |a| a.add(rax, qword_ptr(rbx + rdx))));
    for n in 0..32 {
        m.put(FIRST + 8 * n, 8, 1);
        m.put(OTHER + 8 * n, 8, 10);
    }
    for _ in 0..4 {
        assert_eq!(run(&mut m, 1000, 0), (1000, None));
    }
    assert!(m.processor.memos() > 0, "the loop is a trace with memos");
    m
}

#[test]
fn another_frame_is_seen_after_a_flush() {
    let mut m = reading();
    m.map(FIRST, OTHER | RW);
    assert_eq!(m.processor.memos(), 0);
    assert_eq!(run(&mut m, 1000, 0), (10_000, None));
    m.map(FIRST, FIRST | RW);
    assert_eq!(run(&mut m, 1000, 0), (1000, None));
}

#[test]
fn a_page_that_is_gone_faults() {
    let mut m = reading();
    m.set_pte(FIRST, 0);
    let (sum, trap) = run(&mut m, 1000, 0);
    assert_eq!((sum, trap.map(|trap| trap.vector)), (0, Some(14)));
    assert_eq!(m.env().cr2, FIRST + (1000 & 0xf8));
}

#[test]
fn another_address_space_has_another_frame() {
    let mut m = reading();
    let cr4 = m.env().cr4;
    control::write_cr4(m.env(), (cr4 | Cr4::PCIDE).bits()).expect("allowed");
    // The same tables but for one entry.
    let root = PAGES + 0x20_0000;
    for level in 0..4 {
        for n in 0..512 {
            let mut entry = m.get(TABLES + 0x1000 * level + 8 * n, 8);
            if level < 3 && n == 0 {
                entry = root + 0x1000 * (level + 1) | entry & 0xfff;
            }
            m.put(root + 0x1000 * level + 8 * n, 8, entry);
        }
    }
    m.put(root + 0x3000 + 8 * (FIRST >> 12), 8, OTHER | RW);
    let first = m.env().cr3;
    for _ in 0..3 {
        // Neither flushes.
        control::write_cr3(m.env(), 1 << 63 | root | 1).expect("allowed");
        assert_eq!(run(&mut m, 1000, 0), (10_000, None));
        control::write_cr3(m.env(), 1 << 63 | first).expect("allowed");
        assert_eq!(run(&mut m, 1000, 0), (1000, None));
    }
}

#[test]
fn a_loop_that_maps_its_page_anew_every_few_rounds() {
    let mut m = reading();
    // Aside, as what calls a helper is no loop with memos.
    m.assemble(64, |a| {
        let when = |a: &mut CodeAssembler, map| a.test(ecx, 127).and_then(|()| a.jz(map));
        loop_with_detour(a, when, |a| {
            a.mov(qword_ptr(rdi), rsi)?;
            a.xchg(rsi, rbp)?;
            a.invlpg(byte_ptr(rbx))
        })
    });
    let e = m.env();
    (e.gpr[reg::RDI], e.gpr[reg::RSI], e.gpr[reg::RBP]) = (PTES + 8 * (FIRST >> 12), OTHER | RW, FIRST | RW);
    for _ in 0..8 {
        // The round that maps has read before.
        assert_eq!(run(&mut m, 1024, 0), (512 * (1 + 10), None));
    }
    assert!(m.processor.memos() > 0, "the loop is a trace with memos");
}

#[test]
fn another_translation_without_a_flush_is_seen_once_it_was_looked_for() {
    let mut m = reading();
    m.assemble(64, |a| {
        let when = |a: &mut CodeAssembler, write| a.cmp(rcx, rsi).and_then(|()| a.je(write));
        loop_with_detour(a, when, |a| a.mov(qword_ptr(rbx + 0x800), rax))
    });
    let cr0 = m.env().cr0;
    control::write_cr0(m.env(), (cr0 | Cr0::WP).bits()).expect("allowed");
    m.set_pte(FIRST, 1);
    m.env().gpr[reg::RSI] = 0;
    for _ in 0..4 {
        assert_eq!(run(&mut m, 1000, 0), (1000, None));
    }
    assert!(m.processor.memos() > 0, "the loop is a trace with memos");
    // It may be written now, and is elsewhere: the store cannot be done by the old translation.
    m.put(PTES + 8 * (FIRST >> 12), 8, OTHER | RW);
    m.env().gpr[reg::RSI] = 500;
    assert_eq!(run(&mut m, 1000, 0), (501 + 499 * 10, None));
}

#[test]
fn a_page_that_is_mapped_once_it_faulted_is_seen_without_a_flush() {
    // A page that takes the places of `FIRST` in the first way and in the second level of the TLB, and how far behind it the one
    // is that takes the place in the second way.
    const RIVAL: u64 = FIRST + 0x200_0000;
    const OTHER_WAY: u64 = 0x1_0000;
    let mut m = reading();
    let displace = CODE + 0x100;
    m.place(displace, |a| {
        a.mov(rdx, qword_ptr(rbp))?;
        a.mov(rdx, qword_ptr(rbp + OTHER_WAY))?;
        a.mov(rdx, qword_ptr(rbx))?;
        a.hlt()
    });
    let (table, pte) = (PAGES + 0x20_0000, PTES + 8 * (FIRST >> 12));
    m.put(TABLES + 0x2000 + 8 * (RIVAL >> 21), 8, table | RW);
    for page in [RIVAL, RIVAL + OTHER_WAY] {
        m.put(table + 8 * (page >> 12 & 0x1ff), 8, OTHER | RW);
    }
    for _ in 0..4 {
        m.map(FIRST, FIRST | RW);
        assert_eq!(run(&mut m, 1000, 0), (1000, None));
        assert!(m.processor.memos() > 0, "the loop is a trace with memos");
        // Nobody is told that it is gone, but the TLB loses it. Where there was nothing, what comes need not be told, either.
        m.put(pte, 8, 0);
        (m.env().gpr[reg::RBX], m.env().gpr[reg::RBP]) = (FIRST, RIVAL);
        assert_eq!(run_at(&mut m, displace).map(|trap| trap.vector), Some(14));
        m.put(pte, 8, OTHER | RW);
        assert_eq!(m.resume(), None);
        assert_eq!(m.env().gpr[reg::RDX], 10);
        assert_eq!(run(&mut m, 1000, 0), (10_000, None));
    }
}

#[test]
fn a_page_fault_ends_what_any_part_of_the_tlb_knows() {
    // A page that takes the place of `FIRST` in the first way and in the second level, but not in the second way.
    const RIVAL: u64 = FIRST + 0x200_0000;
    let mut m = reading();
    let (table, pte) = (PAGES + 0x20_0000, PTES + 8 * (FIRST >> 12));
    m.put(TABLES + 0x2000 + 8 * (RIVAL >> 21), 8, table | RW);
    m.put(table + 8 * (RIVAL >> 12 & 0x1ff), 8, OTHER | RW);
    // Straight on: there are no memos.
    let reader = CODE + 0x100;
    m.place(reader, |a| {
        a.mov(rdx, qword_ptr(rbp))?;
        a.mov(rax, qword_ptr(rbx))?;
        a.hlt()
    });
    m.map(FIRST, FIRST | RW);
    (m.env().gpr[reg::RBX], m.env().gpr[reg::RBP]) = (FIRST, RIVAL);
    assert_eq!(run_at(&mut m, reader), None);
    // Nobody is told that it is gone. Now and then, what is in the second way is looked for elsewhere, too.
    m.put(pte, 8, 0);
    let trap = (0..1000).find_map(|_| run_at(&mut m, reader));
    assert_eq!(trap.map(|trap| trap.vector), Some(14));
    m.put(pte, 8, OTHER | RW);
    assert_eq!(m.resume(), None);
    assert_eq!(m.env().gpr[reg::RAX], 10);
    for _ in 0..10 {
        assert_eq!(run_at(&mut m, reader), None);
        assert_eq!(m.env().gpr[reg::RAX], 10);
    }
}

/// Where the second of [`two_loops`] is.
const WRITER: u64 = CODE + 0x100;

/// Two loops, of which the trace of the second is numbered for the place that the trace of the first has. The first has read
/// [`FIRST`], which may not be written, and [`OTHER`], when `between` is called; the second has no trace yet.
fn two_loops(between: impl FnOnce(&mut Machine<Engine>)) -> Machine<Engine> {
    // Blocks of a jump to the next one, and the end of them: they get the numbers between those of the two traces.
    const BLOCKS: u64 = PAGES + 0x2000;
    const LAST: u64 = BLOCKS + 2 * (GUESSING as u64 - 1);
    let mut m = Machine::ready_long();
    m.assemble(64, |a| {
        loop_over(a, |a| a.add(rax, qword_ptr(rbx + rdx)).and_then(|()| a.add(rax, qword_ptr(rsi + rdx))))
    });
    m.place(WRITER, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rdx, rsi)?;
        a.cmp(rcx, 1)?;
        a.cmove(rdx, rbx)?;
        a.mov(qword_ptr(rdx), rax)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.hlt()
    });
    (BLOCKS..LAST).step_by(2).for_each(|at| m.put(at, 2, 0x00eb));
    m.put(LAST, 1, 0xf4);
    // From here on no page gets its first block, and the second loop has run once.
    assert_eq!(run_at(&mut m, LAST), None);
    assert_eq!(write(&mut m, 1, OTHER), None);
    m.map(FIRST, FIRST | 1);
    m.env().gpr[reg::RSI] = OTHER;
    for _ in 0..4 {
        assert_eq!(run(&mut m, 1000, 0), (0, None));
    }
    between(&mut m);
    assert_eq!(run_at(&mut m, BLOCKS), None);
    assert_eq!(m.processor.memos(), 2, "the loop is a trace with memos");
    m
}

/// Runs the second loop, which stores to [`OTHER`], and in its last round to `last`.
fn write(m: &mut Machine<Engine>, rounds: u64, last: u64) -> Option<engine::Trap> {
    let e = m.env();
    (e.gpr[reg::RCX], e.gpr[reg::RBX], e.gpr[reg::RSI]) = (rounds, last, OTHER);
    run_at(m, WRITER)
}

/// Rounds until the second loop has a trace, and one in it.
const ROUNDS: u64 = 5;

#[test]
fn a_trace_that_finds_another_in_its_place_has_no_memos() {
    let mut m = two_loops(|_| ());
    let traces = m.processor.stats().traces;
    assert_eq!(write(&mut m, ROUNDS, OTHER), None);
    assert_eq!(m.processor.stats().traces, traces + 1);
    assert_eq!(m.processor.memos(), 2, "those of the first are there still, and nobody else's");
}

#[test]
fn a_trace_in_the_place_of_one_that_is_gone_does_not_find_its_memos() {
    // A breakpoint ends the trace, and leaves its memos.
    let mut m = two_loops(|m| {
        m.processor.set_breakpoints(&[CODE]);
        m.processor.set_breakpoints(&[]);
    });
    let traces = m.processor.stats().traces;
    // The first access of the trace is the store to the page that the other one remembered, and might only read.
    assert_eq!(write(&mut m, ROUNDS, FIRST).map(|trap| trap.vector), Some(14));
    assert_eq!(m.env().gpr[reg::RCX], 1);
    assert_eq!(m.processor.stats().traces, traces + 1);
}

#[test]
fn a_memo_that_is_often_wrong_is_given_up() {
    let mut m = Machine::ready_long();
    // Eight pages, another in each round.
    m.assemble(64, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(edx, ecx)?;
        a.and(edx, 7)?;
        a.shl(edx, 12)?;
        a.add(rax, qword_ptr(rbx + rdx))?;
        a.dec(rcx)?;
        a.jnz(again)
    });
    for page in 0..8 {
        m.put(FIRST + 0x1000 * page, 8, 1 << page);
    }
    for _ in 0..16 {
        assert_eq!(run(&mut m, 8 * 1000, 0), (255 * 1000, None));
    }
    crate::mmu::flush_all(m.env());
    assert_eq!(run(&mut m, 8 * 1000, 0), (255 * 1000, None));
    assert_eq!(m.processor.memos(), 0);
    assert!((2..4).contains(&m.processor.stats().traces), "made once with the memo, and once without");
}

/// A loop that adds up a page and calls the function in RSI, which is anywhere.
fn calling() -> Machine<Engine> {
    let mut m = reading();
    m.assemble(64, |a| {
        loop_over(a, |a| {
            a.add(rax, qword_ptr(rbx + rdx))?;
            a.call(rsi)
        })
    });
    m
}

fn run_calling(m: &mut Machine<Engine>, function: u64, rounds: u64) {
    m.env().gpr[reg::RSI] = function;
    assert_eq!(run(m, rounds, 0), (rounds, None));
}

#[test]
fn a_loop_is_not_given_up_for_a_way_that_leaves_its_pages() {
    let mut m = calling();
    let (usual, rare) = (PAGES + 0x6000, PAGES + 0x2000);
    m.put(usual, 1, 0xc3);
    // To a third page: `jmp rdi`, `ret`.
    m.put(rare, 2, 0xe7ff);
    m.put(PAGES + 0x4000, 1, 0xc3);
    m.env().gpr[reg::RDI] = PAGES + 0x4000;
    (0..6).for_each(|_| run_calling(&mut m, usual, 1000));
    assert!(m.processor.memos() > 0, "the loop is a trace with memos");
    for _ in 0..24 {
        (0..3).for_each(|_| run_calling(&mut m, rare, 2));
        crate::mmu::flush_all(m.env());
        run_calling(&mut m, usual, 1000);
        assert!(m.processor.memos() > 0, "it is there still");
    }
}

#[test]
fn a_function_in_another_frame_gets_a_trace_of_its_own() {
    let mut m = calling();
    let (function, other) = (PAGES + 0x6000, PAGES + 0x2000);
    m.put(function, 1, 0xc3);
    m.put(other, 1, 0xc3);
    (0..4).for_each(|_| run_calling(&mut m, function, 1000));
    assert!(m.processor.memos() > 0, "the loop is a trace with memos");
    m.map(function, other | RW);
    (0..12).for_each(|_| run_calling(&mut m, function, 1000));
    assert!(m.processor.memos() > 0, "and now, too");
}

#[test]
fn a_store_to_code_is_noticed() {
    let mut m = Machine::ready_long();
    m.assemble(64, |a| loop_over(a, |a| a.mov(qword_ptr(rbx + rdx), rax)));
    // The page has no code yet: the loop writes it.
    let [one, two] = [1, 2].map(|n| {
        let mut a = CodeAssembler::new(64).unwrap();
        a.mov(al, n).and_then(|()| a.nop_1(rcx)).and_then(|()| a.nop()).and_then(|()| a.hlt()).unwrap();
        let mut code = a.assemble(0).unwrap();
        code.resize(8, 0x90);
        u64::from_le_bytes(code.try_into().unwrap())
    });
    for _ in 0..4 {
        assert_eq!(run(&mut m, 1000, one).1, None);
    }
    assert!(m.processor.memos() > 0, "the loop is a trace with memos");
    let call = |m: &mut Machine<Engine>| {
        let e = m.env();
        e.gpr[reg::RAX] = 0;
        e.set_ip(FIRST + 0x80);
        assert_eq!(m.go(), None);
        m.env().gpr[reg::RAX]
    };
    for (code, result) in [(one, 1), (two, 2), (one, 1), (two, 2)] {
        assert_eq!(run(&mut m, 1000, code).1, None);
        assert_eq!(call(&mut m), result);
    }
}
