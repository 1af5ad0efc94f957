//! Groups of accesses: one look serves them where they are in one page of memory, and where they are not, the guest sees
//! what it would see without.

use iced_x86::code_asm::*;

use super::engine::{CODE, PAGES};
use super::*;

const ROUNDS: u64 = 2000;
/// How often a loop may be left for the execution loop: what it jumps to is translated and linked in the first rounds.
const LEFT: u64 = 100;

/// RCX rounds of a function with a frame of five words; RAX counts.
fn frames(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rbx)?;
    a.mov(qword_ptr(rsp - 16), rcx)?;
    a.mov(rbx, 0x55u64)?;
    a.mov(rdx, qword_ptr(rsp - 16))?;
    a.pop(rbx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rax, rbx)?;
    a.cmp(rcx, rdx)?;
    a.mov(rdx, u64::MAX)?;
    a.cmovne(rax, rdx)?;
    a.dec(rcx)?;
    a.jnz(again)
}

fn run(m: &mut Machine<engine::Engine>, stack: u64) -> u64 {
    let e = m.env();
    (e.gpr[reg::RAX], e.gpr[reg::RCX], e.gpr[reg::RBX], e.gpr[reg::RSP]) = (0, ROUNDS, 3, stack);
    e.set_ip(CODE);
    assert_eq!(m.go(), None);
    assert_eq!(m.env().gpr[reg::RSP], stack);
    m.env().gpr[reg::RAX]
}

#[test]
fn frames_across_pages_do_not_leave_generated_code_each_time() {
    // The function is short enough for both of its blocks to be in one page.
    let mut m = Machine::<engine::Engine>::ready_long();
    m.assemble(64, frames);
    for distance in (0..64).step_by(4) {
        let before = m.processor.stats().exits.unlinked;
        assert_eq!(run(&mut m, PAGES + 0x2000 + distance), 3 * ROUNDS, "{distance}");
        let left = m.processor.stats().exits.unlinked - before;
        assert!(left < LEFT, "{left} exits at {distance}");
    }
}

#[test]
fn what_is_no_memory_has_no_groups() {
    let mut m = Machine::<engine::Engine>::ready_long();
    m.assemble(64, frames);
    assert_eq!(run(&mut m, PAGES + 0x2800), 3 * ROUNDS);
    // All ones are read where nothing is.
    m.map(PAGES + 0x2000, SIZE as u64 | 3);
    m.assemble(64, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.pop(rdx)?;
        a.pop(rbx)
    });
    m.env().gpr[reg::RSP] = PAGES + 0x2800;
    assert_eq!(m.go(), None);
    let e = m.env();
    assert_eq!([reg::RDX, reg::RBX, reg::RSP].map(|r| e.gpr[r]), [u64::MAX, u64::MAX, PAGES + 0x2800]);
}

#[test]
fn a_fault_finds_the_state_before_its_instruction() {
    for stack in [PAGES + 0x2800, PAGES + 0x3008] {
        let mut m = Machine::<engine::Engine>::ready_long();
        let ends = m.assemble(64, frames);
        assert_eq!(run(&mut m, stack), 3 * ROUNDS);
        m.map(PAGES + 0x2000, 0);
        let e = m.env();
        (e.gpr[reg::RAX], e.gpr[reg::RCX], e.gpr[reg::RBX], e.gpr[reg::RSP]) = (7, 9, 3, stack);
        e.set_ip(CODE);
        // The first push, or the second, whose page it is.
        let (n, ip) = if stack & 0xfff == 8 { (1, ends[0]) } else { (0, CODE) };
        let trap = m.go().expect("a page fault");
        assert_eq!((trap.at(), trap.sp), ((14, ip), stack - 8 * n));
        let e = m.env();
        assert_eq!([reg::RAX, reg::RCX, reg::RBX].map(|r| e.gpr[r]), [7, 9, 3]);
        assert_eq!(e.cr2, stack - 8 * n - 8);
    }
}

#[test]
fn a_store_behind_a_load_of_a_page_that_is_not_writable() {
    let mut m = Machine::<engine::Engine>::ready_long();
    let ends = m.assemble(64, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.dec(rcx)?;
        a.jnz(again)
    });
    let enter = |m: &mut Machine<engine::Engine>| {
        let e = m.env();
        (e.gpr[reg::RCX], e.gpr[reg::RBX], e.gpr[reg::RSP]) = (ROUNDS, PAGES, PAGES + 0x1800);
        e.set_ip(CODE);
    };
    m.put(PAGES, 8, 0x1234);
    enter(&mut m);
    assert_eq!(m.go(), None);
    assert_eq!(m.get(PAGES + 8, 8), 0x1234);
    m.map(PAGES, PAGES | 1);
    let old = m.env().cr0.bits();
    control::write_cr0(m.env(), old | Cr0::WP.bits()).expect("allowed");
    m.put(PAGES, 8, 0x5678);
    enter(&mut m);
    assert_eq!(m.go().map(|trap| trap.at()), Some((14, ends[0])));
    assert_eq!((m.env().gpr[reg::RAX], m.env().cr2, m.get(PAGES + 8, 8)), (0x5678, PAGES + 8, 0x1234));
}

/// What a device sees of code that runs with RBX and RSI pointing to it.
fn accesses(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> String {
    let mut m = Machine::<engine::Engine>::ready_long();
    m.map(PAGES + 0x2000, SIZE as u64 | 3);
    m.assemble(64, code);
    let e = m.env();
    (e.gpr[reg::RAX], e.gpr[reg::RCX], e.gpr[reg::RBX]) = (7, 3, PAGES + 0x2800);
    (e.gpr[reg::RSI], e.gpr[reg::RSP]) = (PAGES + 0x2900, PAGES + 0x3800);
    e.set_ip(CODE);
    DEVICE.take();
    assert_eq!(m.go(), None);
    DEVICE.take().accesses.iter().map(|(what, _)| what).collect()
}

#[test]
fn a_device_sees_each_access_once() {
    assert_eq!(accesses(|a| a.push(qword_ptr(rbx)).and_then(|()| a.pop(qword_ptr(rbx + 8)))), "rw");
    assert_eq!(accesses(|a| a.add(dword_ptr(rbx), eax).and_then(|()| a.mov(dword_ptr(rbx + 8), eax))), "rww");
    assert_eq!(accesses(|a| a.rcl(dword_ptr(rbx), cl).and_then(|()| a.mov(dword_ptr(rbx + 8), eax))), "rww");
    let shift = |a: &mut CodeAssembler| {
        a.shld(dword_ptr(rbx), eax, 3)?;
        a.setc(dl)?;
        a.mov(dword_ptr(rbx + 8), eax)
    };
    assert_eq!(accesses(shift), "rww");
}

#[test]
fn what_a_device_writes_when_it_is_read_is_seen() {
    let mut m = Machine::<engine::Engine>::ready_long();
    m.map(PAGES + 0x2000, SIZE as u64 | 3);
    m.assemble(64, |a| {
        a.mov(qword_ptr(rbx), rcx)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(rdx, qword_ptr(rbx))
    });
    let e = m.env();
    (e.gpr[reg::RCX], e.gpr[reg::RBX]) = (3, PAGES);
    (e.gpr[reg::RSI], e.gpr[reg::RSP]) = (PAGES + 0x2f00, PAGES + 0x3800);
    e.set_ip(CODE);
    DEVICE.with_borrow_mut(|device| device.writes = Some((PAGES, 0x99)));
    assert_eq!(m.go(), None);
    assert_eq!((m.get(PAGES, 8), m.env().gpr[reg::RDX]), (0x99, 0x99));
}

#[test]
fn a_request_at_each_look_does_not_begin_a_group_for_ever() {
    let mut m = Machine::<engine::Engine>::ready_long();
    m.assemble(64, frames);
    let remote = m.processor.remote().clone();
    m.board().again = Some(remote);
    assert_eq!(run(&mut m, PAGES + 0x2008), 3 * ROUNDS);
}
