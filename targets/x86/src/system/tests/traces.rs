//! Traces: whatever a hot loop's path was when it was recorded, the guest sees what it would see without.

use iced_x86::code_asm::*;

use super::engine::{CODE, PAGES, PTES};
use super::*;

/// Two pages for code, not next to each other.
const NEAR: u64 = PAGES + 0x2000;
const FAR: u64 = PAGES + 0x6000;

fn ready() -> Machine<engine::Engine> {
    let mut m = Machine::ready_long();
    m.env().gpr[reg::RSP] = PAGES + 0x1000;
    m
}

fn traces(m: &Machine<engine::Engine>) -> u64 {
    m.processor.stats().traces
}

/// A function that adds to RAX.
fn place_adder(m: &mut Machine<engine::Engine>, at: u64, n: i32) {
    m.place(at, |a| a.add(rax, n).and_then(|()| a.ret()));
}

/// RCX rounds of a call of the function in `rbx`; RAX counts.
fn calling_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.call(rbx)?;
    a.dec(rcx)?;
    a.jnz(again)
}

fn calls(m: &mut Machine<engine::Engine>, rounds: u64, function: u64) -> u64 {
    let e = m.env();
    (e.gpr[reg::RAX], e.gpr[reg::RCX], e.gpr[reg::RBX]) = (0, rounds, function);
    e.set_ip(CODE);
    assert_eq!(m.go(), None);
    m.env().gpr[reg::RAX]
}

#[test]
fn a_loop_with_a_call_to_another_page_becomes_a_trace() {
    let mut m = ready();
    m.assemble(64, calling_loop);
    place_adder(&mut m, FAR, 2);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
    assert!(traces(&m) > 0);
    assert_eq!(m.env().gpr[reg::RSP], PAGES + 0x1000);
}

#[test]
fn an_indirect_call_that_goes_elsewhere_leaves_the_trace() {
    let mut m = ready();
    m.assemble(64, calling_loop);
    place_adder(&mut m, FAR, 2);
    place_adder(&mut m, NEAR, 3);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
    assert!(traces(&m) > 0);
    assert_eq!(calls(&mut m, 1000, NEAR), 3000);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
}

#[test]
fn branches_that_change_their_mind_leave_the_trace() {
    let mut m = ready();
    // RAX: of 1000 numbers, those with bit 6 set count 10, the others 1.
    m.assemble(64, |a| {
        let (mut again, mut other, mut next) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.test(ecx, 64)?;
        a.jnz(other)?;
        a.inc(rax)?;
        a.jmp(next)?;
        a.set_label(&mut other)?;
        a.add(rax, 10)?;
        a.set_label(&mut next)?;
        a.dec(rcx)?;
        a.jnz(again)
    });
    let expected = (1..=1000u64).map(|n| if n & 64 != 0 { 10 } else { 1 }).sum();
    assert_eq!(calls(&mut m, 1000, 0), expected);
    assert!(traces(&m) > 0);
}

#[test]
fn a_trace_gives_way_to_one_that_goes_where_the_guest_usually_goes() {
    let mut m = ready();
    m.assemble(64, calling_loop);
    place_adder(&mut m, FAR, 2);
    place_adder(&mut m, NEAR, 3);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
    let first = traces(&m);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
    assert_eq!(traces(&m), first, "the same way is not translated again");
    // How much is recorded is limited by the number of samples.
    for _ in 0..16 {
        assert_eq!(calls(&mut m, 1000, NEAR), 3000);
    }
    assert!(traces(&m) > first);
}

#[test]
fn a_store_to_any_of_its_pages_ends_the_trace() {
    let mut m = ready();
    m.assemble(64, calling_loop);
    place_adder(&mut m, FAR, 2);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
    assert!(traces(&m) > 0);
    // The function changes itself half-way: the immediate of its ADD.
    m.place(FAR, |a| {
        let mut done = a.create_label();
        a.add(rax, 2)?;
        a.cmp(rcx, 500)?;
        a.jne(done)?;
        a.mov(byte_ptr(FAR + 2), 5)?;
        a.set_label(&mut done)?;
        a.ret()
    });
    m.processor.clear_code();
    assert_eq!(calls(&mut m, 1000, FAR), 501 * 2 + 499 * 5);
}

#[test]
fn another_page_at_the_same_address_is_not_the_trace() {
    let mut m = ready();
    m.assemble(64, calling_loop);
    place_adder(&mut m, FAR, 2);
    place_adder(&mut m, NEAR, 7);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
    assert!(traces(&m) > 0);
    m.put(PTES + 8 * (FAR >> 12), 8, NEAR | 3);
    crate::mmu::flush_all(m.env());
    assert_eq!(calls(&mut m, 1000, FAR), 7000);
    m.put(PTES + 8 * (FAR >> 12), 8, FAR | 3);
    crate::mmu::flush_all(m.env());
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
}

#[test]
fn a_fault_in_a_trace_finds_the_state_before_it() {
    let mut m = ready();
    let ends = m.assemble(64, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(rax, 1)?;
        a.mov(rdx, qword_ptr(rbx))?;
        a.add(rbx, 0x100)?;
        a.cmp(rax, rcx)?;
        a.jne(again)
    });
    // It is a trace when it is run for the second time. Then the page after the next is not there.
    assert_eq!([0, 0].map(|_| calls(&mut m, 10, FAR)), [10, 10]);
    assert!(traces(&m) > 0);
    m.set_pte(FAR + 0x2000, 0);
    let e = m.env();
    (e.gpr[reg::RAX], e.gpr[reg::RCX], e.gpr[reg::RBX]) = (0, 1000, FAR);
    e.set_ip(CODE);
    let trap = m.go().expect("a page fault");
    assert_eq!(trap.at(), (14, ends[0]));
    assert_eq!((m.env().gpr[reg::RAX], m.env().gpr[reg::RBX]), (33, FAR + 0x2000));
    // Of `add rax, 1`, which came last.
    assert_eq!(trap.flags & 0x8d5, 4);
}

#[test]
fn a_breakpoint_in_a_trace_stops() {
    let mut m = ready();
    m.assemble(64, calling_loop);
    place_adder(&mut m, FAR, 2);
    assert_eq!(calls(&mut m, 1000, FAR), 2000);
    assert!(traces(&m) > 0);
    // The RET.
    m.processor.set_breakpoints(&[FAR + 6]);
    let e = m.env();
    (e.gpr[reg::RAX], e.gpr[reg::RCX]) = (0, 10);
    e.set_ip(CODE);
    assert_eq!(m.processor.run(), tessera_tcg::exec::BREAKPOINT);
    assert_eq!((m.env().ip(), m.env().gpr[reg::RAX]), (FAR + 6, 2));
    m.processor.set_breakpoints(&[]);
    assert_eq!(m.go(), None);
    assert_eq!(m.env().gpr[reg::RAX], 20);
}

#[test]
fn an_endless_trace_is_left_for_a_kick() {
    let mut m = ready();
    // Its jumps go back, forward, and back to the start by a register.
    m.assemble(64, |a| {
        let (mut first, mut second, mut third) = (a.create_label(), a.create_label(), a.create_label());
        a.lea(rbx, ptr(first))?;
        a.jmp(second)?;
        a.set_label(&mut third)?;
        a.jmp(rbx)?;
        a.set_label(&mut first)?;
        a.inc(rax)?;
        a.set_label(&mut second)?;
        a.jmp(third)
    });
    m.env().eflags |= RFlags::IF.bits();
    let (remote, board) = (m.processor.remote().clone(), m.board.clone());
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        board.lock().unwrap().interrupt = Some(30);
        remote.kick();
    });
    assert_eq!(m.go().map(|trap| trap.vector), Some(30));
    kicker.join().unwrap();
    assert!(traces(&m) > 0);
    assert_ne!(m.env().gpr[reg::RAX], 0);
}

#[test]
fn a_path_into_what_is_no_memory_is_not_read() {
    let mut m = ready();
    m.assemble(64, |a| a.inc(rax).and_then(|()| a.jmp(rbx)));
    // Beyond RAM everything reads as ones, which is no instruction.
    m.put(PTES + 8 * (FAR >> 12), 8, SIZE as u64 | 3);
    crate::mmu::flush_all(m.env());
    for round in 1..10 {
        let e = m.env();
        e.gpr[reg::RBX] = FAR + 0x123;
        e.set_ip(CODE);
        assert_eq!(m.go().map(|trap| trap.at()), Some((6, FAR + 0x123)));
        assert_eq!(m.env().gpr[reg::RAX], round);
    }
}

/// Makes a list of nodes, the n-th on page `n % 8` from [`FAR`] on, in a circle; the address of the first. Where a page is in
/// memory, as a number from there on, `frame` says.
fn place_list(m: &mut Machine<engine::Engine>, frame: impl Fn(u64) -> u64) -> u64 {
    let node = |n: u64, page: u64| FAR + page * 0x1000 + n % 64 * 16;
    for n in 0..64 {
        let at = node(n, frame(n % 8));
        m.put(at, 8, node(n + 1, (n + 1) % 8));
        m.put(at + 8, 8, n);
    }
    for page in 0..8 {
        m.map(FAR + page * 0x1000, FAR + frame(page) * 0x1000 | 3);
    }
    node(0, 0)
}

/// RCX nodes of a list from RBX on; RAX is the sum of what they hold.
fn walking_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(rax, qword_ptr(rbx + 8))?;
    a.mov(rbx, qword_ptr(rbx))?;
    a.dec(rcx)?;
    a.jnz(again)
}

#[test]
fn a_chase_guesses_where_its_pages_are_contiguous() {
    let mut m = ready();
    m.assemble(64, walking_loop);
    let list = place_list(&mut m, |page| page);
    for _ in 0..8 {
        assert_eq!(calls(&mut m, 64 * 200, list), 64 * 63 / 2 * 200);
    }
    // The first has a memo of a page, which is wrong; nothing is wrong with what the second guesses.
    assert_eq!(traces(&m), 2);
}

#[test]
fn a_chase_through_scattered_pages_does_not_go_on_guessing() {
    let mut m = ready();
    m.assemble(64, walking_loop);
    let list = place_list(&mut m, |page| page * 3 % 8);
    for _ in 0..16 {
        assert_eq!(calls(&mut m, 64 * 200, list), 64 * 63 / 2 * 200);
    }
    let traces = traces(&m);
    assert!((2..6).contains(&traces), "{traces}");
}
