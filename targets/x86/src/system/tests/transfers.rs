//! Far transfers, tasks, fast system calls.

use super::*;
use crate::system::exception::vector;
use crate::system::{far, iret, syscall};

#[test]
fn far_jumps_check_privilege() {
    let mut m = <Machine>::protected();
    let before = snapshot(m.env());
    assert_eq!(raised(far::jump(m.env(), 0, 0)), (vector::GP, Some(0)));
    assert_eq!(raised(far::jump(m.env(), USER_CODE32, 0)), (vector::GP, Some(0x18)));
    assert_eq!(raised(far::jump(m.env(), DATA, 0)), (vector::GP, Some(DATA as u32)));
    assert_eq!(snapshot(m.env()), before);
    far::jump(m.env(), CODE32, 0x1234).expect("allowed");
    assert_eq!(m.env().rip, 0x1234);
    assert_eq!(m.get(GDT + 8, 8) >> 40 & 1, 1, "the segment is marked accessed");
}

#[test]
fn call_gates_copy_parameters_and_returns_drop_them() {
    let mut m = <Machine>::protected();
    // Call gate, DPL 3, two parameters.
    m.put(GDT + SPARE as u64, 8, HANDLER | (CODE32 as u64) << 16 | 2 << 32 | 0xec << 40);
    m.set_level(3, false);
    m.put(USER_STACK - 8, 8, 0x2222_2222_1111_1111);
    m.env().gpr[reg::RSP] = USER_STACK - 8;
    far::call(m.env(), SPARE | 3, 0, 4).expect("allowed");
    let e = m.env();
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RSP]), (0, HANDLER, RING0_STACK - 24));
    let frame: Vec<u64> = (0..6).map(|n| m.get(RING0_STACK - 24 + 4 * n, 4)).collect();
    let expected = [0x4000, USER_CODE32 as u64, 0x1111_1111, 0x2222_2222, USER_STACK - 8, USER_DATA as u64];
    assert_eq!(frame, expected);
    far::ret(m.env(), 4, 8).expect("returns");
    let e = m.env();
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RSP]), (3, 0x4000, USER_STACK));
    assert_eq!(raised(far::jump(m.env(), SPARE | 3, 0)), (vector::GP, Some(CODE32 as u32)), "no jump inward");
}

#[test]
fn tasks_switch_and_return() {
    let mut m = <Machine>::protected();
    for (offset, value) in [
        (0x20, 0x6000),
        (0x24, 0x202),
        (0x28, 0xaaaa),
        (0x38, USER_STACK),
        (0x48, DATA as u64),
        (0x4c, CODE32 as u64),
        (0x50, DATA as u64),
        (0x54, DATA as u64),
    ] {
        m.put(TSS2 + offset, 4, value);
    }
    m.env().gpr[reg::RAX] = 0x5555;
    far::call(m.env(), TASK2, 0, 4).expect("switches");
    let e = m.env();
    assert_eq!((e.rip, e.gpr[reg::RAX], e.gpr[reg::RSP]), (0x6000, 0xaaaa, USER_STACK));
    assert!(flag(e, RFlags::NT) && e.cr0.contains(Cr0::TS));
    assert_eq!((e.seg[seg::TR].selector, e.seg[seg::FS].access), (TASK2, 0));
    assert_eq!((m.get(TSS2, 2), m.get(TSS + 0x20, 4), m.get(TSS + 0x28, 4)), (TASK as u64, 0x4000, 0x5555));
    let kind = |m: &Machine, selector: u16| m.get(GDT + selector as u64 + 5, 1);
    assert_eq!((kind(&m, TASK), kind(&m, TASK2)), (0x8b, 0x8b), "both busy");
    assert_eq!(raised(far::jump(m.env(), TASK2, 0)), (vector::GP, Some(TASK2 as u32)), "busy");

    m.env().gpr[reg::RAX] = 0xbbbb;
    iret::iret(m.env(), 4).expect("switches back");
    let e = m.env();
    assert_eq!((e.rip, e.gpr[reg::RAX], e.seg[seg::TR].selector), (0x4000, 0x5555, TASK));
    assert!(!flag(e, RFlags::NT));
    assert_eq!((kind(&m, TASK), kind(&m, TASK2)), (0x8b, 0x89));
    assert_eq!((m.get(TSS2 + 0x28, 4), m.get(TSS2 + 0x24, 4) & RFlags::NT.bits()), (0xbbbb, 0));
}

#[test]
fn a_task_with_a_bad_segment_faults_in_the_new_task() {
    let mut m = <Machine>::protected();
    m.gate(10, 0x8e, CODE32, HANDLER, 0);
    for (offset, value) in
        [(0x20, 0x6000), (0x24, 2), (0x38, USER_STACK), (0x4c, CODE32 as u64), (0x50, DATA as u64)]
    {
        m.put(TSS2 + offset, 4, value);
    }
    m.put(TSS2 + 0x54, 4, 0xf8);
    far::jump(m.env(), TASK2, 0).expect("the exception is delivered, not returned");
    let e = m.env();
    assert_eq!((e.rip, e.seg[seg::TR].selector), (HANDLER, TASK2));
    assert_eq!(m.get(USER_STACK - 16, 4), 0xf8, "#TS with the selector, on the new task's stack");
    assert_eq!(m.get(USER_STACK - 12, 4), 0x6000);
}

#[test]
fn syscall_and_sysret() {
    let mut m = <Machine>::long();
    m.set_level(3, true);
    let e = m.env();
    e.msr.star = (CODE64 as u64) << 32 | 0x23 << 48;
    e.msr.lstar = 0xffff_8000_0000_1000;
    e.msr.fmask = RFlags::IF.bits();
    e.set_rflags((RFlags::IF | RFlags::ZF).bits());
    syscall::syscall(e).expect("enabled");
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RCX]), (0, 0xffff_8000_0000_1000, 0x4000));
    assert_eq!((e.seg[seg::CS].selector, e.seg[seg::SS].selector), (CODE64, CODE64 + 8));
    assert!(!flag(e, RFlags::IF) && e.code64());
    assert_eq!(e.gpr[11], (RFlags::IF | RFlags::ZF | RFlags::ONE).bits());

    e.gpr[reg::RCX] = 1 << 63;
    assert_eq!(raised(syscall::sysret(e, 8)), (vector::GP, Some(0)));
    e.gpr[reg::RCX] = 0x4002;
    syscall::sysret(e, 8).expect("returns");
    assert_eq!((e.cpl, e.rip, e.seg[seg::CS].selector, e.seg[seg::SS].selector), (3, 0x4002, 0x33, 0x2b));
    assert!(flag(e, RFlags::IF));
    e.efer -= Efer::SCE;
    assert_eq!(raised(syscall::syscall(e)).0, vector::UD);
}

#[test]
fn sysenter_and_sysexit() {
    let mut m = <Machine>::protected();
    m.set_level(3, false);
    let e = m.env();
    assert_eq!(raised(syscall::sysenter(e)), (vector::GP, Some(0)), "no selector set");
    (e.msr.sysenter_cs, e.msr.sysenter_esp, e.msr.sysenter_eip) = (CODE32 as u64, 0x7000, 0x7700);
    syscall::sysenter(e).expect("enters");
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RSP]), (0, 0x7700, 0x7000));
    (e.gpr[reg::RCX], e.gpr[reg::RDX]) = (USER_STACK, 0x4100);
    syscall::sysexit(e, 4).expect("leaves");
    assert_eq!((e.cpl, e.rip, e.gpr[reg::RSP]), (3, 0x4100, USER_STACK));
    assert_eq!((e.seg[seg::CS].selector, e.seg[seg::SS].selector), (USER_CODE32, USER_DATA));
    assert_eq!(raised(syscall::sysexit(e, 4)), (vector::GP, Some(0)), "not at CPL 3");
}
