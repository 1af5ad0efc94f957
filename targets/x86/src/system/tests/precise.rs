//! What faults half-way leaves no trace: every instruction that writes memory more than once, or across a page, with one of
//! its pages missing or read-only, through the whole engine.
//!
//! Registers, flags, x87 and vector state and memory must be those before the instruction, the fault must be a #PF at the
//! missing page, and when the page is there, the instruction must complete.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::engine::{CODE, Engine, PAGES, Trap};
use super::*;
use crate::state::VecReg;
use crate::system::iret;

/// The page border that operands lie across; the stack pointer, too.
const EDGE: u64 = PAGES + 0x1000;

/// An instruction, and how many bytes before the edge its operand (RCX, RDI) and the stack pointer are.
struct Case {
    name: &'static str,
    back: u64,
    stack_back: u64,
    write: fn(&mut CodeAssembler) -> Result<(), IcedError>,
}

const fn case(
    name: &'static str,
    back: u64,
    stack_back: u64,
    write: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Case {
    Case { name, back, stack_back, write }
}

/// Where the stack is if the instruction has nothing to do with it.
const AWAY: u64 = 0x400;

/// 64-bit code. R8 leads to a place without obstacles.
const LONG: &[Case] = &[
    case("xadd", 4, AWAY, |a| a.xadd(qword_ptr(rcx), rdx)),
    case("lock xadd", 3, AWAY, |a| a.lock().xadd(qword_ptr(rcx), rdx)),
    case("add", 4, AWAY, |a| a.add(qword_ptr(rcx), rdx)),
    case("lock add", 4, AWAY, |a| a.lock().add(qword_ptr(rcx), rdx)),
    case("adc", 4, AWAY, |a| a.adc(qword_ptr(rcx), rdx)),
    case("neg", 4, AWAY, |a| a.neg(qword_ptr(rcx))),
    case("lock dec", 1, AWAY, |a| a.lock().dec(word_ptr(rcx))),
    case("rcl", 4, AWAY, |a| a.rcl(qword_ptr(rcx), 3)),
    case("shld", 4, AWAY, |a| a.shld(qword_ptr(rcx), rdx, 5)),
    case("xchg", 4, AWAY, |a| a.xchg(qword_ptr(rcx), rdx)),
    case("cmpxchg, equal", 4, AWAY, |a| a.cmpxchg(qword_ptr(rcx), rdx)),
    case("lock cmpxchg, different", 2, AWAY, |a| a.lock().cmpxchg(dword_ptr(rcx), edx)),
    case("cmpxchg8b", 4, AWAY, |a| a.cmpxchg8b(qword_ptr(rcx))),
    case("lock cmpxchg8b", 4, AWAY, |a| a.lock().cmpxchg8b(qword_ptr(rcx))),
    case("cmpxchg16b", 0, AWAY, |a| a.cmpxchg16b(xmmword_ptr(rcx))),
    case("lock bts", 4, AWAY, |a| a.lock().bts(qword_ptr(rcx), rbx)),
    case("btc", 4, AWAY, |a| a.btc(qword_ptr(rcx), 7u32)),
    case("bts far away", 12, AWAY, |a| a.bts(qword_ptr(rcx), r9)),
    case("setc", 0, AWAY, |a| a.setc(byte_ptr(rcx))),
    case("movbe", 4, AWAY, |a| a.movbe(qword_ptr(rcx), rdx)),
    case("movnti", 4, AWAY, |a| a.movnti(qword_ptr(rcx), rdx)),
    case("push", AWAY, 0xffff_ffff_ffff_fffc, |a| a.push(rdx)),
    case("push mem", 8, 0xffff_ffff_ffff_fffc, |a| a.push(qword_ptr(r8))),
    case("push fs", AWAY, 0xffff_ffff_ffff_fffc, |a| a.push(fs)),
    case("pushfq", AWAY, 0xffff_ffff_ffff_fffc, |a| a.pushfq()),
    case("call", AWAY, 0xffff_ffff_ffff_fffc, |a| a.call(CODE + 0x100)),
    case("call mem", AWAY, 0xffff_ffff_ffff_fffc, |a| a.call(qword_ptr(r8 + 0x40))),
    case("far call", AWAY, 0xffff_ffff_ffff_fff8, |a| a.db(&[0x49, 0xff, 0x58, 0x40])),
    case("pop mem", 4, AWAY, |a| a.pop(qword_ptr(rcx))),
    case("pop, missing source", AWAY, 4, |a| a.pop(rdx)),
    case("pop mem, missing source", AWAY, 4, |a| a.pop(qword_ptr(r8))),
    case("popfq", AWAY, 4, |a| a.popfq()),
    case("ret", AWAY, 4, |a| a.ret()),
    case("far ret", AWAY, 8, |a| a.retf()),
    case("iretq", AWAY, 24, |a| a.iretq()),
    case("leave", 4, AWAY, |a| a.leave()),
    case("enter", AWAY, 0xffff_ffff_ffff_fff8, |a| a.enter(0x20, 1)),
    case("enter 5", AWAY, 0xffff_ffff_ffff_fff0, |a| a.enter(0x20, 5)),
    case("movups", 4, AWAY, |a| a.movups(xmmword_ptr(rcx), xmm1)),
    case("vmovups", 20, AWAY, |a| a.vmovups(ymmword_ptr(rcx), ymm1)),
    case("vextractf128", 4, AWAY, |a| a.vextractf128(xmmword_ptr(rcx), ymm1, 1)),
    case("pextrq", 4, AWAY, |a| a.pextrq(qword_ptr(rcx), xmm1, 1)),
    case("stmxcsr", 2, AWAY, |a| a.stmxcsr(dword_ptr(rcx))),
    case("maskmovdqu", 8, AWAY, |a| a.maskmovdqu(xmm1, xmm2)),
    case("vmaskmovps", 16, AWAY, |a| a.vmaskmovps(ymmword_ptr(rcx), ymm2, ymm1)),
    case("vpmaskmovq", 16, AWAY, |a| a.vpmaskmovq(ymmword_ptr(rcx), ymm2, ymm1)),
    case("fst", 4, AWAY, |a| a.fst(qword_ptr(rcx))),
    case("fstp tbyte", 4, AWAY, |a| a.fstp(tword_ptr(rcx))),
    case("fistp", 4, AWAY, |a| a.fistp(qword_ptr(rcx))),
    case("fbstp", 4, AWAY, |a| a.fbstp(tword_ptr(rcx))),
    case("fnstenv", 14, AWAY, |a| a.fnstenv(ptr(rcx))),
    case("fnsave", 50, AWAY, |a| a.fnsave(ptr(rcx))),
    case("frstor", 50, AWAY, |a| a.frstor(ptr(rcx))),
    case("fldenv", 14, AWAY, |a| a.fldenv(ptr(rcx))),
    case("fxsave64", 256, AWAY, |a| a.fxsave64(ptr(rcx))),
    case("fxrstor64", 256, AWAY, |a| a.fxrstor64(ptr(rcx))),
    case("xsave64", 576, AWAY, |a| a.xsave64(ptr(rcx))),
    case("xsave64, header", 512, AWAY, |a| a.xsave64(ptr(rcx))),
    case("xsaveopt64", 576, AWAY, |a| a.xsaveopt64(ptr(rcx))),
    case("xsavec64", 576, AWAY, |a| a.xsavec64(ptr(rcx))),
    case("sgdt", 4, AWAY, |a| a.sgdt(ptr(rcx))),
    case("sidt", 2, AWAY, |a| a.sidt(ptr(rcx))),
    case("lss", 8, AWAY, |a| a.db(&[0x48, 0x0f, 0xb2, 0x11])),
    case("lgs", 8, AWAY, |a| a.db(&[0x48, 0x0f, 0xb5, 0x11])),
    case("movsq", 4, AWAY, |a| a.movsq()),
    case("rep movsq", 4, AWAY, |a| a.rep().movsq()),
    case("stosq", 4, AWAY, |a| a.stosq()),
    case("insd", 2, AWAY, |a| a.insd()),
    case("cmpsq", 4, AWAY, |a| a.cmpsq()),
];

/// 32-bit code.
const LEGACY: &[Case] = &[
    case("pushad", AWAY, 0xffff_fff0, |a| a.pushad()),
    case("pusha", AWAY, 0xffff_fff9, |a| a.pusha()),
    case("popad", AWAY, 16, |a| a.popad()),
    case("enter", AWAY, 0xffff_fffc, |a| a.enter(8, 3)),
    case("enter 31", AWAY, 0xffff_ffd0, |a| a.enter(8, 31)),
    case("leave", 2, AWAY, |a| a.leave()),
    case("bound", 4, AWAY, |a| a.bound(eax, ptr(ecx))),
    case("les", 4, AWAY, |a| a.les(edx, ptr(ecx))),
    case("lss", 4, AWAY, |a| a.lss(edx, ptr(ecx))),
    case("far call", AWAY, 0xffff_fffc, |a| a.db(&[0x9a, 0x00, 0x41, 0x00, 0x00, 0x1b, 0x00])),
    case("far ret", AWAY, 4, |a| a.retf()),
    case("iretd", AWAY, 8, |a| a.iretd()),
    case("push es", AWAY, 0xffff_fffd, |a| a.push(es)),
    case("pop ds", AWAY, 2, |a| a.pop(ds)),
    case("xadd", 2, AWAY, |a| a.xadd(dword_ptr(ecx), edx)),
    case("arpl", 1, AWAY, |a| a.db(&[0x63, 0x11])),
    case("fnsave", 50, AWAY, |a| a.fnsave(ptr(ecx))),
    case("insd", 2, AWAY, |a| a.insd()),
];

/// All that the program can see of the processor.
fn state(e: &X86Env) -> impl PartialEq + std::fmt::Debug + use<> {
    let registers = (e.gpr, e.rflags() & !(RFlags::RF.bits()), e.seg.map(|s| (s.selector, s.base)));
    (registers, e.cpl, e.fpu, e.vec, e.mxcsr, e.gdtr, e.idtr)
}

fn memory(m: &Machine<Engine>) -> Vec<u64> {
    (PAGES..EDGE + 0x1000).step_by(8).map(|at| m.get(at, 8)).collect()
}

fn prepare(m: &mut Machine<Engine>, case: &Case, wide: bool) {
    let mask = if wide { u64::MAX } else { 0xffff_ffff };
    m.set_level(if wide { 0 } else { 3 }, wide);
    for at in (PAGES..EDGE + 0x1000).step_by(8) {
        m.put(at, 8, at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    // Code that is called, and a far pointer to it.
    m.put(CODE + 0x100, 1, 0xf4);
    let clear = PAGES + 0x3000;
    for at in (clear..clear + 0x100).step_by(8) {
        m.put(at, 8, 0);
    }
    m.put(clear + 0x40, 8, CODE + 0x100);
    m.put(clear + 0x48, 2, if wide { CODE64 } else { USER_CODE32 } as u64);
    let e = m.env();
    e.cr4 |= Cr4::OSFXSR;
    if wide {
        e.cr4 |= Cr4::OSXSAVE;
        e.xcr0 = 7;
    }
    e.set_rflags((RFlags::CF | RFlags::ZF | RFlags::IOPL).bits());
    e.gpr = [0; 16];
    e.gpr[reg::RAX] = 0x1111_1111_1111_1117 & mask;
    e.gpr[reg::RDX] = 0x2222_2222_2222_2222 & mask;
    e.gpr[reg::RBX] = 44;
    e.gpr[reg::RCX] = EDGE - case.back;
    e.gpr[reg::RDI] = EDGE - case.back;
    if case.name.starts_with("rep") {
        e.gpr[reg::RCX] = 3;
    }
    e.gpr[reg::RBP] = EDGE - case.back;
    e.gpr[reg::RSI] = clear;
    e.gpr[reg::RSP] = EDGE.wrapping_sub(case.stack_back) & mask;
    if wide {
        e.gpr[8] = clear;
        e.gpr[9] = 0x7f;
    }
    for n in 0..16 {
        e.vec[n] = VecReg([!0 << n, !0, !0 << n, !0]);
    }
    e.fpu = crate::state::Fpu { valid: 0xff, ..crate::state::Fpu::INITIAL };
    e.fpu.regs[0][..10].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    e.update_mode();
}

/// What the operand holds for the instruction to succeed, once its page is there.
fn make_good(m: &mut Machine<Engine>, case: &Case, wide: bool) {
    let at = EDGE - case.back;
    let stack = EDGE.wrapping_sub(case.stack_back) & if wide { u64::MAX } else { 0xffff_ffff };
    let (code, data) = if wide { (CODE64, DATA) } else { (USER_CODE32, USER_DATA) };
    match case.name {
        "lss" | "lgs" | "les" => m.put(at + if wide { 8 } else { 4 }, 2, data as u64),
        "bound" => {
            m.put(at, 4, 0);
            m.put(at + 4, 4, 0x7fff_ffff);
        }
        "ret" => m.put(stack, 8, CODE + 0x100),
        "far ret" | "iretq" | "iretd" => {
            let size = if wide { 8 } else { 4 };
            let frame = [CODE + 0x100, code as u64, 0x3002, stack, data as u64];
            for (n, word) in frame.into_iter().enumerate() {
                m.put(stack + n as u64 * size, size as usize, word);
            }
        }
        "pop ds" => m.put(stack, 4, data as u64),
        "popfq" => m.put(stack, 8, 0x3002),
        "fxrstor64" => m.put(at + 24, 4, 0x1f80),
        "frstor" | "fldenv" => m.put(at, 4, 0x37f),
        "far call" if !wide => {}
        _ => {}
    }
}

/// Runs a case with the page at `page` having `flags`; whether it faulted, or what is wrong.
fn check(m: &mut Machine<Engine>, case: &Case, wide: bool, page: u64, flags: u64) -> Result<bool, String> {
    prepare(m, case, wide);
    make_good(m, case, wide);
    m.assemble(if wide { 64 } else { 32 }, case.write);
    m.put(CODE + 0x100, 1, 0xf4);
    m.set_pte(page, flags);
    let (before, bytes) = (state(m.env()), memory(m));
    let trap = m.go();
    m.set_pte(page, 7);
    let Some(Trap { vector: 14, error: Some(error), ip: CODE, .. }) = trap else {
        return if flags & 1 == 1 { Ok(false) } else { Err(format!("does not notice: {trap:x?}")) };
    };
    if m.env().cr2 & !0xfff != page || error & 1 != flags & 1 {
        return Err(format!("error code {error:x} at {:x}", m.env().cr2));
    }
    let changed: Vec<_> = memory(m).into_iter().zip(bytes).enumerate().filter(|(_, (a, b))| a != b).collect();
    if let Some((n, (after, before))) = changed.first() {
        return Err(format!("memory at {:x} was {before:x}, is {after:x}", PAGES + 8 * *n as u64));
    }
    // Return from the fault: what the handler has changed of the processor comes back.
    iret::iret(m.env(), if wide { 8 } else { 4 }).expect("a good frame");
    let after = state(m.env());
    if before != after {
        return Err(format!("{before:x?}\nbecame {after:x?}"));
    }
    match m.go() {
        None => Ok(true),
        // HLT at CPL 3.
        Some(trap) if trap.vector == 13 && trap.ip != CODE && !wide => Ok(true),
        end => Err(format!("does not complete: {end:x?}")),
    }
}

fn check_all(m: &mut Machine<Engine>, cases: &[Case], wide: bool) {
    let reads = [
        "pop", "ret", "iret", "leave", "frstor", "fldenv", "fxrstor", "bound", "les", "lss", "lgs", "cmps",
        "far ret",
    ];
    let mut wrong = Vec::new();
    for case in cases {
        let only_reads = reads.iter().any(|r| case.name.starts_with(r)) && case.name != "pop mem";
        // An operand that is aligned or small is in the second page.
        let pages = if case.back == 0 { &[EDGE][..] } else { &[PAGES, EDGE] };
        let mut read_only = false;
        for (page, flags) in pages.iter().flat_map(|&p| [(p, 0), (p, if wide { 1 } else { 5 })]) {
            match check(m, case, wide, page, flags) {
                Ok(faulted) => read_only |= faulted && flags != 0,
                Err(e) => wrong.push(format!("{} with page {page:x} as {flags}: {e}", case.name)),
            }
        }
        if read_only == only_reads {
            wrong.push(format!("{}: read-only pages matter: {read_only}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn faults_leave_no_trace_in_64_bit_code() {
    let mut m = Machine::<Engine>::ready_long();
    check_all(&mut m, LONG, true);
}

#[test]
fn faults_leave_no_trace_in_32_bit_code() {
    let mut m = Machine::<Engine>::ready_paged();
    check_all(&mut m, LEGACY, false);
}

/// Runs what transfers control with a stack or TSS across the edge: `#PF`, and nothing has changed.
fn transfer(m: &mut Machine<Engine>, what: &str, f: impl Fn(&mut X86Env) -> crate::system::Result<()>) {
    for (page, flags) in [(PAGES, 0), (PAGES, 1), (EDGE, 0), (EDGE, 1)] {
        if what.contains("new") && (page, flags) == (EDGE, 1) {
            // Only the link at the start of the new task's state is written.
            continue;
        }
        m.set_pte(page, flags);
        let (before, bytes) = (snapshot(m.env()), memory(m));
        let tables: Vec<u64> = (GDT..GDT + 0x100).step_by(8).map(|at| m.get(at, 8)).collect();
        let e = f(m.env()).expect_err(what);
        assert_eq!(
            (e.vector, e.error.map(|e| e & 1), e.address & !0xfff),
            (14, Some(flags as u32), page),
            "{what}"
        );
        assert_eq!(snapshot(m.env()), before, "{what}, page {page:x} as {flags}");
        assert!(memory(m) == bytes, "{what}, page {page:x} as {flags}");
        let now: Vec<u64> = (GDT..GDT + 0x100).step_by(8).map(|at| m.get(at, 8) & !(1 << 40)).collect();
        let tables: Vec<u64> = tables.into_iter().map(|d| d & !(1 << 40)).collect();
        assert_eq!(now, tables, "{what}: busy bits");
        m.set_pte(page, 7);
    }
    assert_eq!(f(m.env()), Ok(()), "{what}");
}

#[test]
fn faults_on_inner_stacks_and_in_task_states_leave_no_trace() {
    use crate::system::exception::{Origin, software_interrupt};
    use crate::system::far;
    let fresh = || {
        let mut m = Machine::<Engine>::ready_paged();
        for at in (PAGES..EDGE + 0x1000).step_by(8) {
            m.put(at, 8, at);
        }
        m.set_level(3, false);
        m.put(TSS + 4, 4, EDGE + 8);
        m
    };
    let mut m = fresh();
    transfer(&mut m, "INT to an inner stack", |e| software_interrupt(e, 20, Origin::Software));
    let mut m = fresh();
    // A 32-bit call gate with three parameters.
    m.put(GDT + SPARE as u64, 8, HANDLER | (CODE32 as u64) << 16 | 0xec03 << 32);
    transfer(&mut m, "call gate", |e| far::call(e, SPARE | 3, 0, 4));
    for (old, new) in [(EDGE - 0x30, TSS2), (TSS, EDGE - 0x30)] {
        let mut m = fresh();
        m.set_level(0, false);
        m.put(GDT + SPARE as u64, 8, system_descriptor(new, 0x67, 0x89));
        m.env().seg[seg::TR].base = old;
        for (at, value) in [
            (0x1c, TABLES),
            (0x20, 0x4000),
            (0x24, 2),
            (0x48, 0x10),
            (0x4c, 8),
            (0x50, 0x10),
            (0x54, 0x10),
            (0x58, 0),
            (0x5c, 0),
            (0x60, 0),
        ] {
            m.put(new + at, 4, value);
        }
        let what =
            if new > PAGES { "switch to a new task across pages" } else { "switch from a task across pages" };
        transfer(&mut m, what, |e| far::call(e, SPARE, 0, 4));
    }
    let mut m = Machine::<Engine>::ready_long();
    m.set_level(3, true);
    m.put(TSS + 4, 8, EDGE + 16);
    m.gate(20, 0xee, CODE64, HANDLER, 0);
    transfer(&mut m, "64-bit delivery", |e| software_interrupt(e, 20, Origin::Software));
}
