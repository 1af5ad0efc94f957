//! Exceptions of vector and x87 instructions: what raises which, with the state as it was before the instruction.

use iced_x86::code_asm::*;

use super::*;

const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x8000;
const STACK: u64 = 0xf000;

/// A guest whose handler of vector n is an HLT at `HANDLERS + 16 * n`.
fn guest() -> GuestCpu {
    let mut guest = GuestCpu::new();
    guest.ram.write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    guest.ram.write(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    for n in 0..32 {
        let handler = HANDLERS + 16 * n;
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        guest.ram.write(IDT + 16 * n, &gate.to_le_bytes());
        guest.ram.write(handler, &[0xf4]);
    }
    let env = guest.vcpu.env_mut();
    (env.gdtr.base, env.gdtr.limit) = (GDT, 0xff);
    (env.idtr.base, env.idtr.limit) = (IDT, 0x1ff);
    guest
}

/// Runs code with RSI pointing to data. The vector raised and the offset of the instruction that raised it.
fn run(
    guest: &mut GuestCpu,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Option<(u64, u64)> {
    let mut asm = CodeAssembler::new(64).unwrap();
    build(&mut asm).unwrap();
    let code = asm.assemble(CODE).unwrap();
    let mut state = State::ZERO;
    state.fx[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    state.fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    // 1.0f32 four times, 0.0, then control words: MXCSR and x87 with division by zero unmasked, a reserved MXCSR bit.
    for n in 0..4 {
        state.data[4 * n..][..4].copy_from_slice(&1f32.to_bits().to_le_bytes());
    }
    state.data[0x20..0x24].copy_from_slice(&0x1d80u32.to_le_bytes());
    state.data[0x24..0x28].copy_from_slice(&0x37bu32.to_le_bytes());
    state.data[0x28..0x2c].copy_from_slice(&0x1_1f80u32.to_le_bytes());
    state.gpr[4] = DATA;
    guest.vcpu.env_mut().gpr[reg::RSP] = STACK;
    if guest.run(&mut state, DATA, &code) {
        return None;
    }
    let env = guest.vcpu.env();
    assert!(!env.shutdown, "a triple fault");
    let vector = (env.rip - HANDLERS) / 16;
    let has_error = matches!(vector, 8 | 10..=14 | 17);
    let mut rip = [0; 8];
    guest.ram.read(env.gpr[reg::RSP] + if has_error { 8 } else { 0 }, &mut rip);
    Some((vector, u64::from_le_bytes(rip) - CODE))
}

#[test]
fn misaligned_operands() {
    let mut g = guest();
    assert_eq!(run(&mut g, |a| a.movaps(xmm0, xmmword_ptr(rsi))), None);
    assert_eq!(run(&mut g, |a| a.movaps(xmm0, xmmword_ptr(rsi + 8))), Some((13, 0)));
    assert_eq!(run(&mut g, |a| a.movaps(xmmword_ptr(rsi + 1), xmm0)), Some((13, 0)));
    assert_eq!(run(&mut g, |a| a.paddd(xmm0, xmmword_ptr(rsi + 4))), Some((13, 0)));
    assert_eq!(run(&mut g, |a| a.movups(xmm0, xmmword_ptr(rsi + 1))), None);
    assert_eq!(run(&mut g, |a| a.addss(xmm0, dword_ptr(rsi + 1))), None);
    assert_eq!(run(&mut g, |a| a.pcmpistri(xmm0, xmmword_ptr(rsi + 1), 0)), None);
}

#[test]
fn unmasked_sse_exceptions() {
    let mut g = guest();
    let divide = |a: &mut CodeAssembler| {
        a.ldmxcsr(dword_ptr(rsi + 0x20))?;
        a.movaps(xmm1, xmmword_ptr(rsi))?;
        a.movaps(xmm2, xmmword_ptr(rsi))?;
        a.mulps(xmm2, xmm1)?;
        a.divps(xmm1, xmmword_ptr(rsi + 0x10))
    };
    let (vector, at) = run(&mut g, divide).expect("an exception");
    assert_eq!(vector, 19);
    assert!(at > 0);
    let env = g.vcpu.env();
    assert_eq!(env.vec[1].0[0], env.vec[2].0[0], "the destination is as it was");
    assert_eq!(env.mxcsr, 0x1d84, "the flag is set");
    g.vcpu.env_mut().cr4.remove(Cr4::OSXMMEXCPT);
    assert_eq!(run(&mut g, divide), Some((6, at)));
    assert_eq!(run(&mut g, |a| a.ldmxcsr(dword_ptr(rsi + 0x28))), Some((13, 0)));
}

#[test]
fn availability() {
    let mut g = guest();
    g.vcpu.env_mut().cr0.insert(Cr0::TS);
    assert_eq!(run(&mut g, |a| a.addps(xmm0, xmm1)), Some((7, 0)));
    assert_eq!(run(&mut g, |a| a.fld1()), Some((7, 0)));
    assert_eq!(run(&mut g, |a| a.paddb(mm0, mm1)), Some((7, 0)));
    assert_eq!(run(&mut g, |a| a.wait()), Some((7, 0)));
    g.vcpu.env_mut().cr0.remove(Cr0::TS);
    g.vcpu.env_mut().cr0.insert(Cr0::EM);
    assert_eq!(run(&mut g, |a| a.addps(xmm0, xmm1)), Some((6, 0)));
    assert_eq!(run(&mut g, |a| a.fld1()), Some((7, 0)));
    assert_eq!(run(&mut g, |a| a.paddb(mm0, mm1)), Some((6, 0)));
    assert_eq!(run(&mut g, |a| a.wait()), None);
    g.vcpu.env_mut().cr0.remove(Cr0::EM);
    g.vcpu.env_mut().cr4.remove(Cr4::OSFXSR);
    assert_eq!(run(&mut g, |a| a.addps(xmm0, xmm1)), Some((6, 0)));
    assert_eq!(run(&mut g, |a| a.paddb(mm0, mm1)), None);
}

#[test]
fn x87_exceptions_are_reported_by_the_next_waiting_instruction() {
    let mut g = guest();
    let divide = |a: &mut CodeAssembler, waiting: bool| {
        a.fldcw(word_ptr(rsi + 0x24))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.fnstsw(ax)?;
        if waiting { a.fld1() } else { Ok(()) }
    };
    assert_eq!(run(&mut g, |a| divide(a, false)), None);
    let env = g.vcpu.env();
    assert_eq!(env.gpr[reg::RAX] & 0x3884, 0x3084, "ZE and ES, nothing popped");
    assert_eq!(env.fpu.ip, CODE + 7);
    assert_eq!(run(&mut g, |a| divide(a, true)), Some((16, 11)));
    // Without CR0.NE the error goes out by FERR# and execution goes on.
    g.vcpu.env_mut().cr0.remove(Cr0::NE);
    assert_eq!(run(&mut g, |a| divide(a, true)), None);
}

#[test]
fn a_faulting_store_pops_nothing() {
    let mut g = guest();
    let store = |a: &mut CodeAssembler| {
        a.fld1()?;
        a.mov(rbx, 0x4000_0000u64)?;
        a.fstp(tbyte_ptr(rbx))
    };
    let (vector, _) = run(&mut g, store).expect("a page fault");
    assert_eq!(vector, 14);
    let fpu = &g.vcpu.env().fpu;
    assert_eq!((fpu.top(), fpu.valid), (7, 0x80));
}
