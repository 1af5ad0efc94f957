//! Exceptions of vector and x87 instructions: what raises which, with the state as it was before the instruction.

use iced_x86::code_asm::*;

use super::*;
use crate::state::RFlags;

const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const HANDLERS: u64 = 0x8000;
const STACK: u64 = 0xf000;

/// A guest whose handler of vector n is an HLT at `HANDLERS + 16 * n`.
fn guest() -> GuestCpu {
    let mut guest = GuestCpu::new(64);
    guest.ram.write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    guest.ram.write(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    for n in 0..32 {
        let handler = HANDLERS + 16 * n;
        // On a stack of their own (IST 1), so that RSP may be anything.
        let gate = handler & 0xffff | 8 << 16 | 0x8e01 << 32 | (handler >> 16) << 48;
        guest.ram.write(IDT + 16 * n, &gate.to_le_bytes());
        guest.ram.write(handler, &[0xf4]);
    }
    guest.ram.write(TSS + 0x24, &STACK.to_le_bytes());
    let env = guest.vcpu.env_mut();
    (env.seg[seg::TR].base, env.seg[seg::TR].limit) = (TSS, 0x67);
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
    // In a group whose first access is right, also where that needs no alignment.
    let pair = |a: &mut CodeAssembler, second: i32| {
        a.movups(xmm0, xmmword_ptr(rsi))?;
        a.movaps(xmm0, xmmword_ptr(rsi + second))
    };
    assert_eq!(run(&mut g, |a| pair(a, 16)), None);
    assert_eq!(run(&mut g, |a| pair(a, 24)), Some((13, 3)));
    assert_eq!(run(&mut g, |a| a.movaps(xmmword_ptr(rsi), xmm0).and_then(|()| pair(a, 8))), Some((13, 6)));
    // Before what the page has to say, wherever the address is.
    for register in [rsi, rsp, rbp] {
        let at = |a: &mut CodeAssembler, address: u64| {
            a.mov(register, address)?;
            a.movaps(xmm0, xmmword_ptr(register))
        };
        assert_eq!(run(&mut g, |a| at(a, 0x7f00_0000_0000)), Some((14, 10)));
        assert_eq!(run(&mut g, |a| at(a, 0x7f00_0000_0008)), Some((13, 10)));
        assert_eq!(run(&mut g, |a| at(a, 0x8f00_0000_0000_0008)), Some((13, 10)));
    }
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

#[test]
fn availability_of_avx() {
    let add = |a: &mut CodeAssembler| a.vaddps(ymm0, ymm1, ymm2);
    let zero = |a: &mut CodeAssembler| a.vzeroupper();
    let mut g = guest();
    assert_eq!(run(&mut g, add), None);
    g.vcpu.env_mut().cr0.insert(Cr0::EM);
    assert_eq!(run(&mut g, add), None, "CR0.EM does not matter");
    g.vcpu.env_mut().cr4.remove(Cr4::OSFXSR);
    assert_eq!(run(&mut g, add), None, "nor CR4.OSFXSR");
    g.vcpu.env_mut().cr0.insert(Cr0::TS);
    assert_eq!(run(&mut g, add), Some((7, 0)));
    assert_eq!(run(&mut g, zero), Some((7, 0)));
    for (osxsave, xcr0) in [(false, 7), (true, 3), (true, 1)] {
        let env = g.vcpu.env_mut();
        env.cr4.set(Cr4::OSXSAVE, osxsave);
        env.xcr0 = xcr0;
        assert_eq!(run(&mut g, add), Some((6, 0)), "before #NM");
        assert_eq!(run(&mut g, zero), Some((6, 0)));
        assert_eq!(run(&mut g, |a| a.andn(eax, ecx, edx)), None, "no vectors");
    }
}

#[test]
fn ill_formed_vex_instructions() {
    let mut g = guest();
    for bytes in [
        // vaddps xmm0, xmm1, xmm2 with a prefix that VEX replaces, or LOCK.
        &[0x66, 0xc5, 0xf0, 0x58, 0xc2][..],
        &[0xf2, 0xc5, 0xf0, 0x58, 0xc2],
        &[0xf3, 0xc5, 0xf0, 0x58, 0xc2],
        &[0xf0, 0xc5, 0xf0, 0x58, 0xc2],
        &[0x48, 0xc5, 0xf0, 0x58, 0xc2],
        // vmovaps xmm0, xmm1 and vpshufd with VEX.vvvv in use.
        &[0xc5, 0xf0, 0x28, 0xc1],
        &[0xc5, 0xf1, 0x70, 0xc1, 0],
        // vmovd, vphminposuw, vinsertps, vmovlhps in 256 bits; vpermq, vbroadcastf128 in 128.
        &[0xc5, 0xfd, 0x6e, 0xc0],
        &[0xc4, 0xe2, 0x7d, 0x41, 0xc1],
        &[0xc4, 0xe3, 0x75, 0x21, 0xc2, 0],
        &[0xc5, 0xf4, 0x16, 0xc2],
        &[0xc4, 0xe3, 0xf9, 0x00, 0xc1, 0],
        &[0xc4, 0xe2, 0x79, 0x1a, 0x06],
        // vpermq with VEX.W clear; vbroadcastf128 of a register.
        &[0xc4, 0xe3, 0x7d, 0x00, 0xc1, 0],
        &[0xc4, 0xe2, 0x7d, 0x1a, 0xc1],
        // vgatherdps xmm1, [rsi + xmm2 * 4], xmm1; xmm1, [.. xmm1 ..], xmm2; xmm1, [.. xmm2 ..], xmm2; without VSIB.
        &[0xc4, 0xe2, 0x71, 0x92, 0x0c, 0x96],
        &[0xc4, 0xe2, 0x69, 0x92, 0x0c, 0x8e],
        &[0xc4, 0xe2, 0x69, 0x92, 0x0c, 0x96],
        &[0xc4, 0xe2, 0x69, 0x92, 0x0e],
    ] {
        assert_eq!(run(&mut g, |a| a.db(bytes)), Some((6, 0)), "{bytes:02x?}");
    }
    assert_eq!(run(&mut g, |a| a.db(&[0xc5, 0xf0, 0x58, 0xc2])), None);
    assert_eq!(run(&mut g, |a| a.db(&[0x2e, 0xc5, 0xf0, 0x58, 0xc2])), None, "segment prefixes are allowed");
}

#[test]
fn real_and_virtual_8086_mode_have_no_vex() {
    for virtual_8086 in [false, true] {
        let mut g = GuestCpu::new(32);
        g.ram.write(CODE, &[0xc5, 0xf0, 0x58, 0xc2]);
        let env = g.vcpu.env_mut();
        env.seg = [Segment { base: 0, limit: 0xffff, access: 0xf3, selector: 0 }; 8];
        env.seg[seg::CS] = Segment { base: CODE, limit: 0xffff, access: 0xf3, selector: 0x1000 };
        env.rip = CODE;
        env.gpr[reg::RSP] = 0x7000;
        if virtual_8086 {
            env.eflags |= RFlags::VM.bits() | RFlags::ONE.bits();
            env.cpl = 3;
            // The gate leads to level 0, whose stack is in a task state segment that is all zeros: a shutdown.
            env.idtr.limit = 0;
        } else {
            env.cr0.remove(Cr0::PE);
            env.idtr.limit = 0x3ff;
            g.ram.write(4 * 6, &[0x60, 0x80, 0, 0]);
            g.ram.write(HANDLERS + 0x60, &[0xf4]);
        }
        let env = g.vcpu.env_mut();
        env.idtr.base = 0;
        env.update_mode();
        g.vcpu.state_changed();
        g.vcpu.run();
        let env = g.vcpu.env();
        if virtual_8086 {
            assert!(env.shutdown, "no way to report it");
            assert_eq!(env.rip, CODE);
        } else {
            assert_eq!(env.rip, HANDLERS + 0x61);
        }
    }
}

#[test]
fn misaligned_operands_of_avx() {
    let mut g = guest();
    assert_eq!(run(&mut g, |a| a.vmovaps(ymm0, ymmword_ptr(rsi + 32))), None);
    assert_eq!(run(&mut g, |a| a.vmovaps(ymm0, ymmword_ptr(rsi + 16))), Some((13, 0)));
    assert_eq!(run(&mut g, |a| a.vmovaps(xmm0, xmmword_ptr(rsi + 16))), None);
    assert_eq!(run(&mut g, |a| a.vmovdqa(ymmword_ptr(rsi + 16), ymm0)), Some((13, 0)));
    assert_eq!(run(&mut g, |a| a.vmovntps(ymmword_ptr(rsi + 16), ymm0)), Some((13, 0)));
    assert_eq!(run(&mut g, |a| a.vmovntdqa(ymm0, ymmword_ptr(rsi + 16))), Some((13, 0)));
    assert_eq!(run(&mut g, |a| a.vmovups(ymm0, ymmword_ptr(rsi + 1))), None);
    assert_eq!(run(&mut g, |a| a.vpaddd(ymm0, ymm1, ymmword_ptr(rsi + 1))), None);
    assert_eq!(run(&mut g, |a| a.vpaddd(xmm0, xmm1, xmmword_ptr(rsi + 1))), None);
}

/// The first address that is not mapped.
const END: u64 = 0x20_0000;

#[test]
fn masked_moves_fault_on_active_lanes_only() {
    let mut g = guest();
    let lanes = |a: &mut CodeAssembler, selected: u64| {
        a.mov(rbx, END - 16)?;
        a.mov(rax, selected)?;
        a.vmovq(xmm1, rax)?;
        // A byte a lane of 32 bits; lanes 0 to 3 are mapped.
        a.vpmovsxbd(ymm1, xmm1)
    };
    g.ram.write(END - 16, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    let low = 0x8000_0080;
    assert_eq!(
        run(&mut g, |a| {
            lanes(a, low)?;
            a.vmaskmovps(ymm0, ymm1, ymmword_ptr(rbx))
        }),
        None
    );
    assert_eq!(g.vcpu.env().vec[0].0, [1, 4 << 32, 0, 0]);
    let high = 0x80_0000_0080;
    let (vector, at) = run(&mut g, |a| {
        lanes(a, high)?;
        a.vpmaskmovd(ymm0, ymm1, ymmword_ptr(rbx))
    })
    .expect("a page fault");
    assert_eq!((vector, g.vcpu.env().cr2), (14, END));
    assert!(at > 0);
    assert_eq!(g.vcpu.env().vec[0].0, [0; 4], "as at the start: nothing was loaded");
    // Stores: all or nothing.
    let store = |a: &mut CodeAssembler, selected| {
        lanes(a, selected)?;
        a.vpcmpeqd(ymm2, ymm2, ymm2)?;
        a.vmaskmovpd(ymmword_ptr(rbx), ymm1, ymm2)
    };
    let (vector, _) = run(&mut g, |a| store(a, high | 0x80 << 56 | 0x8000)).expect("a page fault");
    assert_eq!((vector, g.vcpu.env().cr2), (14, END + 8));
    let mut stored = [0; 16];
    g.ram.read(END - 16, &mut stored);
    assert_eq!(stored[0], 1, "nothing was stored");
    assert_eq!(run(&mut g, |a| store(a, 0x8000)), None);
    g.ram.read(END - 16, &mut stored);
    assert_eq!(stored, [255, 255, 255, 255, 255, 255, 255, 255, 3, 0, 0, 0, 4, 0, 0, 0]);
}

#[test]
fn gathers_keep_what_they_have_done() {
    let mut g = guest();
    g.ram.write(END - 16, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    let gather = |a: &mut CodeAssembler| {
        a.mov(rbx, END - 16)?;
        // Lanes 5 and 6 have indices beyond what is mapped; lanes 3 and 7 take no part.
        a.mov(rax, 0x0706_0503_0403_0100u64)?;
        a.vmovq(xmm3, rax)?;
        a.vpmovzxbd(ymm3, xmm3)?;
        a.mov(rax, 0x0080_80ff_0080_8080u64)?;
        a.vmovq(xmm1, rax)?;
        a.vpmovsxbd(ymm1, xmm1)?;
        a.vpcmpeqd(ymm0, ymm0, ymm0)?;
        // vpgatherdd ymm0, [rbx + ymm3 * 4], ymm1
        a.db(&[0xc4, 0xe2, 0x75, 0x90, 0x04, 0x9b])
    };
    let (vector, at) = run(&mut g, gather).expect("a page fault");
    let env = g.vcpu.env();
    assert_eq!((vector, env.cr2), (14, END + 4));
    assert!(at > 0);
    let ones = 0xffff_ffff;
    // Lanes 0 to 2 and 4 are done; lane 3 took no part; lane 5 faulted; lane 6 is still to come.
    assert_eq!(env.vec[0].0, [1 | 2 << 32, 4 | ones << 32, 4 | ones << 32, u64::MAX]);
    assert_eq!(env.vec[1].0, [0, 0, ones << 32, ones]);
    // What is left completes when the indices lead to memory.
    assert_eq!(
        run(&mut g, |a| {
            a.mov(rbx, END - 0x4000)?;
            a.vpcmpeqd(ymm1, ymm1, ymm1)?;
            a.vpxor(xmm3, xmm3, xmm3)?;
            a.vpcmpeqd(ymm0, ymm0, ymm0)?;
            // vgatherqps xmm0, [rbx + ymm3], xmm1
            a.db(&[0xc4, 0xe2, 0x75, 0x93, 0x04, 0x1b])
        }),
        None
    );
    let env = g.vcpu.env();
    assert_eq!((env.vec[0].0, env.vec[1].0), ([0; 4], [0; 4]));
}

#[test]
fn unmasked_exceptions_of_avx() {
    let mut g = guest();
    let divide = |a: &mut CodeAssembler| {
        a.vldmxcsr(dword_ptr(rsi + 0x20))?;
        a.vmovaps(xmm1, xmmword_ptr(rsi))?;
        a.vinsertf128(ymm2, ymm1, xmmword_ptr(rsi), 1)?;
        // The upper half divides by zero.
        a.vdivps(ymm2, ymm2, ymm1)
    };
    let (vector, at) = run(&mut g, divide).expect("an exception");
    assert_eq!(vector, 19);
    assert!(at > 0);
    let env = g.vcpu.env();
    assert_eq!(env.vec[2].0[0], env.vec[2].0[2], "the destination is as it was");
    assert_eq!(env.mxcsr, 0x1d84);
}

#[test]
fn clearing_spares_the_registers_that_there_are_not() {
    for (bits, upper) in [(64, [0, 0]), (32, [7, 8])] {
        let mut g = GuestCpu::new(bits);
        let mut state = State::ZERO;
        state.fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        for n in 0..16 {
            for at in 0..4 {
                state.set_word(n, at, 5 + at as u64);
            }
        }
        assert!(g.run(&mut state, DATA, &[0xc5, 0xf8, 0x77]));
        assert_eq!((state.high[7], state.high[8]), ([0, 0], upper), "vzeroupper in {bits} bits");
        assert!(g.run(&mut state, DATA, &[0xc5, 0xfc, 0x77]));
        let low = |s: &State, n: usize| s.fx[160 + 16 * n];
        assert_eq!((low(&state, 7), low(&state, 8)), (0, if bits == 64 { 0 } else { 5 }), "vzeroall");
    }
}

/// A block that computes the same values twice, each of them overwritten between: remembering them all takes more
/// registers than there are.
#[test]
fn blocks_with_many_values_worth_remembering() {
    let mut g = guest();
    assert_eq!(
        run(&mut g, |a| {
            a.vmovups(ymm1, ymmword_ptr(rsi))?;
            for _ in 0..2 {
                for n in 0..15 {
                    a.vpalignr(ymm0, ymm1, ymm1, n)?;
                    a.vpaddd(ymm2, ymm2, ymm0)?;
                }
            }
            Ok(())
        }),
        None
    );
}

#[test]
fn conversions_to_half_store_all_or_nothing() {
    let mut g = guest();
    // One third, which is inexact in half precision, under a control word; to the address in RBX.
    let convert = |a: &mut CodeAssembler, control: u32, to: u64| {
        a.mov(dword_ptr(rsi + 0x40), control)?;
        a.ldmxcsr(dword_ptr(rsi + 0x40))?;
        a.mov(dword_ptr(rsi + 0x44), 0x3eaa_aaabu32)?;
        a.vbroadcastss(ymm0, dword_ptr(rsi + 0x44))?;
        a.mov(rbx, to)?;
        a.vcvtps2ph(xmmword_ptr(rbx), ymm0, 0)
    };
    let mut stored = [0; 16];
    assert_eq!(run(&mut g, |a| convert(a, 0x1f80, DATA + 0x50)), None);
    assert_eq!(g.vcpu.env().mxcsr, 0x1fa0);
    g.ram.read(DATA + 0x50, &mut stored);
    assert_eq!(stored, [0x55, 0x35].repeat(8)[..]);
    // A page that is not there: silicon leaves the flag.
    assert_eq!(run(&mut g, |a| convert(a, 0x1f80, 0x4000_0000)).expect("a page fault").0, 14);
    assert_eq!(g.vcpu.env().mxcsr, 0x1fa0);
    // Inexact results unmasked: nothing is stored.
    assert_eq!(run(&mut g, |a| convert(a, 0x0f80, DATA + 0x50)).expect("an exception").0, 19);
    assert_eq!(g.vcpu.env().mxcsr, 0x0fa0);
    g.ram.read(DATA + 0x50, &mut stored);
    assert_eq!(stored, [0; 16]);
}

#[test]
fn unmasked_exceptions_of_fma() {
    let mut g = guest();
    let multiply = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(rsi + 0x40), 0x0f80)?;
        a.ldmxcsr(dword_ptr(rsi + 0x40))?;
        a.mov(dword_ptr(rsi + 0x44), 0x3eaa_aaabu32)?;
        a.vbroadcastss(ymm0, dword_ptr(rsi + 0x44))?;
        a.vmovaps(ymm1, ymm0)?;
        a.vfmadd231ps(ymm1, ymm0, ymm0)
    };
    assert_eq!(run(&mut g, multiply).expect("an exception").0, 19);
    let env = g.vcpu.env();
    assert_eq!((env.mxcsr, env.vec[1]), (0x0fa0, env.vec[0]));
}
