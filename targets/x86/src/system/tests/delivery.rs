//! Exceptions and interrupts.

use tessera_tcg::guest::{Exception, Next};

use super::*;
use crate::state::leave;
use crate::system::exception::{Origin, deliver_exception, gp, int_n, software_interrupt, vector};
use crate::system::{exit, handle_leave, iret, poll_events};

#[test]
fn real_mode_uses_the_vector_table() {
    let mut m = <Machine>::real();
    m.put(0x21 * 4, 4, 0x0123_4567);
    let e = m.env();
    e.gpr[reg::RSP] = 0xffff_1000;
    e.set_rflags((RFlags::IF | RFlags::CF).bits());
    let image = e.rflags();
    int_n(e, 0x21).expect("delivered");
    assert_eq!((e.seg[seg::CS].selector, e.ip(), e.rip), (0x123, 0x4567, 0x1230 + 0x4567));
    assert_eq!(e.gpr[reg::RSP], 0xffff_0ffa, "only SP moves");
    assert!(!flag(e, RFlags::IF) && flag(e, RFlags::CF));
    assert_eq!(m.get(0xffa, 2), 0xfff0);
    assert_eq!(m.get(0xffc, 2), 0xf000);
    assert_eq!(m.get(0xffe, 2), image);
    iret::iret(m.env(), 2).expect("returns");
    let e = m.env();
    assert_eq!((e.seg[seg::CS].base, e.ip(), e.rflags()), (0xf_0000, 0xfff0, image));
}

#[test]
fn same_level_gates_push_three_words_and_the_error() {
    let mut m = <Machine>::protected();
    m.gate(13, 0x8e, CODE32, HANDLER, 0);
    m.gate(14, 0x8f, CODE32, HANDLER + 0x10, 0);
    m.env().set_rflags((RFlags::IF | RFlags::TF).bits());
    assert_eq!(deliver_exception(m.env(), gp(0x18)), Next::Continue);
    let e = m.env();
    assert_eq!((e.rip, e.gpr[reg::RSP]), (HANDLER, KERNEL_STACK - 16));
    assert!(!flag(e, RFlags::IF) && !flag(e, RFlags::TF) && !flag(e, RFlags::RF));
    assert_eq!(m.get(KERNEL_STACK - 16, 4), 0x18);
    assert_eq!(m.get(KERNEL_STACK - 12, 4), 0x4000);
    assert_eq!(m.get(KERNEL_STACK - 8, 4), CODE32 as u64);
    let image = m.get(KERNEL_STACK - 4, 4);
    assert_eq!(image & RFlags::RF.bits(), RFlags::RF.bits(), "a fault pushes RF");

    m.set_level(0, false);
    m.env().set_rflags(RFlags::IF.bits());
    let fault = Exception { vector: vector::PF, error: Some(2), address: 0x1234 };
    deliver_exception(m.env(), fault);
    assert!(flag(m.env(), RFlags::IF), "a trap gate leaves IF");
    assert_eq!(m.env().cr2, 0x1234);
}

#[test]
fn user_mode_goes_to_the_stack_of_the_tss_and_back() {
    let mut m = <Machine>::protected();
    m.gate(0x80, 0xee, CODE32, HANDLER, 0);
    m.set_level(3, false);
    m.env().set_rflags(RFlags::IF.bits());
    int_n(m.env(), 0x80).expect("delivered");
    let e = m.env();
    assert_eq!((e.cpl, e.seg[seg::CS].selector, e.seg[seg::SS].selector), (0, CODE32, DATA));
    assert_eq!((e.rip, e.gpr[reg::RSP]), (HANDLER, RING0_STACK - 20));
    let frame: Vec<u64> = (0..5).map(|n| m.get(RING0_STACK - 20 + 4 * n, 4)).collect();
    assert_eq!(frame, [0x4000, USER_CODE32 as u64, 0x202, USER_STACK, USER_DATA as u64]);

    // A kernel segment in DS does not survive the way back.
    crate::system::segment::load_segment(m.env(), seg::DS, DATA).expect("loaded");
    iret::iret(m.env(), 4).expect("returns");
    let e = m.env();
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RSP]), (3, 0x4000, USER_STACK));
    assert_eq!((e.seg[seg::DS].selector, e.seg[seg::DS].access), (0, 0));
    assert_eq!(e.seg[seg::ES].selector, USER_DATA);
}

#[test]
fn gates_protect_themselves() {
    let mut m = <Machine>::protected();
    m.gate(0x80, 0x8e, CODE32, HANDLER, 0);
    m.gate(0x81, 0x6e, CODE32, HANDLER, 0);
    m.gate(0x82, 0xee, 0xf8, HANDLER, 0);
    m.set_level(3, false);
    let before = snapshot(m.env());
    assert_eq!(raised(int_n(m.env(), 0x80)), (vector::GP, Some(0x80 * 8 + 2)), "DPL");
    assert_eq!(raised(int_n(m.env(), 0x81)), (vector::NP, Some(0x81 * 8 + 2)));
    assert_eq!(raised(int_n(m.env(), 0x82)), (vector::GP, Some(0xf8)), "selector beyond the table");
    m.env().idtr.limit = 0x7f;
    assert_eq!(raised(int_n(m.env(), 0x80)), (vector::GP, Some(0x80 * 8 + 2)));
    assert_eq!(snapshot(m.env()), before);
    // The same gate, from outside: EXT is set.
    let result = software_interrupt(m.env(), 0x80, Origin::External);
    assert_eq!(raised(result), (vector::GP, Some(0x80 * 8 + 3)));
}

#[test]
fn long_mode_aligns_the_stack_and_has_interrupt_stacks() {
    let mut m = <Machine>::long();
    m.gate(13, 0x8e, CODE64, HANDLER, 0);
    m.gate(14, 0x8e, CODE64, HANDLER, 1);
    m.env().gpr[reg::RSP] = KERNEL_STACK - 3;
    deliver_exception(m.env(), gp(0));
    let top = (KERNEL_STACK - 3) & !0xf;
    assert_eq!(m.env().gpr[reg::RSP], top - 48);
    let frame: Vec<u64> = (0..6).map(|n| m.get(top - 48 + 8 * n, 8)).collect();
    assert_eq!(frame, [0, 0x4000, CODE64 as u64, 0x10002, KERNEL_STACK - 3, DATA as u64]);
    assert_eq!(m.env().seg[seg::SS].selector, DATA, "SS stays at the same level");

    m.set_level(3, true);
    deliver_exception(m.env(), Exception { vector: vector::PF, error: Some(4), address: 0x123_4000 });
    let e = m.env();
    assert_eq!((e.cpl, e.seg[seg::SS].selector, e.cr2), (0, 0, 0x123_4000));
    assert_eq!(e.gpr[reg::RSP], RING0_STACK + 0x800 - 48, "IST 1");
    iret::iret(m.env(), 8).expect_err("the error code is not popped by IRET");
    m.env().gpr[reg::RSP] += 8;
    iret::iret(m.env(), 8).expect("returns");
    let e = m.env();
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RSP]), (3, 0x4000, USER_STACK));
    assert_eq!((e.seg[seg::CS].selector, e.seg[seg::SS].selector), (USER_CODE64, USER_DATA));
}

#[test]
fn faults_during_delivery_become_double_faults_and_shutdown() {
    let mut m = <Machine>::protected();
    m.gate(8, 0x8e, CODE32, HANDLER, 0);
    // #GP without a handler: #GP again: #DF with error code 0.
    assert_eq!(deliver_exception(m.env(), gp(0)), Next::Continue);
    assert_eq!((m.env().rip, m.get(KERNEL_STACK - 16, 4)), (HANDLER, 0));

    m.set_level(0, false);
    m.env().idtr.limit = 0;
    assert_eq!(deliver_exception(m.env(), gp(0)), Next::Exit(exit::SHUTDOWN));
    assert!(m.env().shutdown);
    assert_eq!(poll_events(m.env()), Next::Exit(exit::SHUTDOWN));
}

#[test]
fn virtual_8086_mode_is_entered_by_iret_and_left_by_interrupts() {
    let mut m = <Machine>::protected();
    m.gate(13, 0x8e, CODE32, HANDLER, 0);
    let flags = (RFlags::VM | RFlags::IF | RFlags::ONE).bits();
    for (n, word) in
        [0x10, 0x1000, flags, 0x200, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000].into_iter().enumerate()
    {
        m.put(KERNEL_STACK - 36 + 4 * n as u64, 4, word);
    }
    m.env().gpr[reg::RSP] = KERNEL_STACK - 36;
    iret::iret(m.env(), 4).expect("returns");
    let e = m.env();
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RSP]), (3, 0x1_0010, 0x200));
    assert_eq!(e.seg.map(|s| s.selector)[..6], [0x3000, 0x1000, 0x2000, 0x4000, 0x5000, 0x6000]);
    assert_eq!(raised(int_n(m.env(), 0x21)), (vector::GP, Some(0)), "IOPL below 3");

    deliver_exception(m.env(), gp(0));
    let e = m.env();
    assert!(!flag(e, RFlags::VM));
    assert_eq!((e.cpl, e.gpr[reg::RSP]), (0, RING0_STACK - 40));
    assert_eq!(e.seg[seg::GS].access, 0);
    let frame: Vec<u64> = (1..10).map(|n| m.get(RING0_STACK - 40 + 4 * n, 4)).collect();
    let image = flags | RFlags::RF.bits();
    assert_eq!(frame, [0x10, 0x1000, image, 0x200, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]);
}

#[test]
fn stack_accesses_at_non_canonical_addresses_are_stack_faults() {
    let mut m = <Machine>::long();
    m.gate(12, 0x8e, CODE64, HANDLER, 0);
    m.gate(13, 0x8e, CODE64, HANDLER + 0x10, 0);
    let wild = 0x8000_0000_0000_0000u64;
    // mov rax, [rbp]; mov rax, [rbx]
    for (code, expected) in [(0x0045_8b48, HANDLER), (0x0003_8b48, HANDLER + 0x10)] {
        m.set_level(0, true);
        m.put(0x4000, 4, code);
        m.env().gpr[reg::RBP] = wild;
        m.env().gpr[reg::RBX] = wild;
        deliver_exception(m.env(), Exception { address: wild, ..gp(0) });
        assert_eq!(m.env().rip, expected);
    }
}

#[test]
fn interrupts_wait_for_the_flag_the_shadow_and_nmis_for_iret() {
    let mut m = <Machine>::protected();
    m.gate(2, 0x8e, CODE32, HANDLER, 0);
    m.gate(0x30, 0x8e, CODE32, HANDLER + 0x10, 0);
    m.board().interrupt = Some(0x30);
    assert_eq!(poll_events(m.env()), Next::Continue);
    assert_eq!(m.env().rip, 0x4000, "IF is clear");
    assert_eq!(handle_leave(m.env(), leave::HALT), Next::Continue);
    assert_eq!(poll_events(m.env()), Next::Exit(exit::HALTED), "nor does it wake");

    m.env().set_rflags(RFlags::IF.bits());
    m.env().interrupt_shadow = true;
    poll_events(m.env());
    assert_eq!(m.env().rip, 0x4000, "the shadow holds");
    handle_leave(m.env(), leave::RESUME);
    poll_events(m.env());
    let e = m.env();
    assert_eq!((e.rip, e.halted), (HANDLER + 0x10, false));

    m.board().nmi = true;
    poll_events(m.env());
    assert_eq!((m.env().rip, m.env().nmi_blocked), (HANDLER, true));
    m.board().nmi = true;
    let before = snapshot(m.env());
    poll_events(m.env());
    assert_eq!(snapshot(m.env()), before, "NMIs do not nest");
    iret::iret(m.env(), 4).expect("returns");
    assert!(!m.env().nmi_blocked);
}
