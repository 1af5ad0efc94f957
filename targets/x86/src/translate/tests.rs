//! Instructions that the silicon cannot be asked about in user mode: the stack, control transfer, other modes, and how
//! blocks end. Snippets go through the front end and the IR interpreter.

use iced_x86::code_asm::*;
use tessera_tcg::guest::{BlockKey, CodeFetch, Exception, Guest, TranslateLimits, Translated};
use tessera_tcg::interp::{self, End, Machine};
use tessera_tcg::ir::{Block, Builder, HelperId, Inst, flags, plain_globals};

use crate::guest::X86;
use crate::state::{PC, Segment, X86Env, leave, mode, reg, seg};
use crate::testing::NoPlatform;

/// Where the code is.
const CODE: u64 = 0x1000;
const FLAT64: u64 = mode::CODE64 | mode::LONG | mode::PROTECTED;
const FLAT32: u64 = mode::CODE32 | mode::STACK32 | mode::PROTECTED;
const REAL: u64 = mode::SEGMENTED | mode::CODE_LIMIT;

struct Cpu {
    env: Box<X86Env>,
    memory: Vec<u8>,
}

impl Machine for Cpu {
    fn env(&mut self) -> &mut [u8] {
        let env: *mut X86Env = &mut *self.env;
        // SAFETY: the bytes of a live struct; the interpreter changes only those of globals, which are integers.
        unsafe { std::slice::from_raw_parts_mut(env.cast(), size_of::<X86Env>()) }
    }

    fn load(&mut self, va: u64, buf: &mut [u8], _: u8, _: bool) -> Result<(), Exception> {
        let from = self.memory.get(va as usize..).and_then(|m| m.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(page_fault(va))?);
        Ok(())
    }

    fn store(&mut self, va: u64, bytes: &[u8], _: u8) -> Result<(), Exception> {
        let to = self.memory.get_mut(va as usize..).and_then(|m| m.get_mut(..bytes.len()));
        to.ok_or(page_fault(va))?.copy_from_slice(bytes);
        Ok(())
    }

    fn misaligned(&mut self, va: u64) -> Exception {
        X86::misaligned(va)
    }

    fn call(&mut self, helper: HelperId, args: [u64; 5]) -> Result<u64, Exception> {
        use crate::helpers::int;
        match helper {
            int::RAISE => {
                let error = (args[1] != u64::MAX).then_some(args[1] as u32);
                Err(Exception { vector: args[0] as u16, error, address: 0 })
            }
            int::CHECK_SEGMENT => {
                let (n, write) = (args[0] as usize, args[3] != 0);
                crate::system::segment::check_segment(&self.env, n, args[1], args[2], write)
            }
            int::CHECK_CODE if args[0] > self.env.seg[seg::CS].limit as u64 => {
                Err(Exception { vector: 13, error: Some(0), address: 0 })
            }
            _ => Ok(0),
        }
    }
}

fn page_fault(address: u64) -> Exception {
    Exception { vector: 14, error: Some(2), address }
}

impl Cpu {
    /// All registers zero but the stack pointer (8000h); segments flat, or as real mode has them.
    fn new(block_mode: u64) -> Cpu {
        let mut env = X86Env::new(Box::new(NoPlatform::default()), crate::cpuid::parse("max").unwrap());
        env.gpr = [0; 16];
        env.gpr[reg::RSP] = 0x8000;
        env.mode = block_mode;
        for s in &mut env.seg {
            *s = Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 0 };
            if block_mode & mode::PROTECTED == 0 {
                *s = Segment { base: 0, limit: 0xffff, access: 0x93, selector: 0 };
            }
        }
        Cpu { env, memory: vec![0; 0x20000] }
    }

    fn set_base(&mut self, n: usize, base: u64) {
        self.env.seg[n].base = base;
        self.env.seg_base[n] = base;
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.memory[at], self.memory[at + 1]])
    }

    fn quad(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.memory[at..at + 8].try_into().unwrap())
    }

    fn run(&mut self, block: &Block) -> End {
        let guest = tessera_tcg::backend::GuestInfo {
            globals: X86::globals(),
            pc: PC,
            helpers: X86::helpers(),
            fp_control: X86::fp_control(),
        };
        interp::run(block, &guest, self)
    }

    /// Translates and runs one block.
    fn exec(&mut self, code: &[u8]) -> End {
        let (block, _) = translate(&self.env, CODE, code, false).expect("the code is there");
        self.run(&block)
    }
}

/// Code at an address, in pages of which the last may be missing.
struct Code<'a> {
    at: u64,
    bytes: &'a [u8],
}

impl CodeFetch for Code<'_> {
    fn fetch(&mut self, pc: u64) -> Result<&[u8], Exception> {
        let rest =
            self.bytes.get((pc - self.at) as usize..).filter(|b| !b.is_empty()).ok_or(page_fault(pc))?;
        let in_page = (0x1000 - (pc & 0xfff)) as usize;
        Ok(&rest[..rest.len().min(in_page)])
    }
}

fn translate(
    env: &X86Env,
    at: u64,
    bytes: &[u8],
    single_step: bool,
) -> Result<(Block, Translated), Exception> {
    let mut b = Builder::default().remembering(plain_globals(X86::globals(), X86::pc_global()));
    let limits = TranslateLimits { max_insns: 64, single_step, side_exits: true, unroll: false, path: &[] };
    let key = BlockKey::new(at, env.mode);
    let done = X86::translate(env, key, limits, &mut Code { at, bytes }, &mut b)?;
    Ok((b.finish(), done))
}

fn asm(bits: u32, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    f(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

use iced_x86::IcedError;

#[test]
fn a_count_in_cl_that_is_known_is_no_immediate() {
    let run = |count: i32, shift: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let mut cpu = Cpu::new(FLAT64);
        cpu.env.gpr[reg::RAX] = 0x40;
        // C and N, then a rotation by what CL holds.
        cpu.exec(&asm(64, |a| {
            a.mov(edx, 0)?;
            a.sub(edx, 1)?;
            a.mov(ecx, count)?;
            shift(a)
        }));
        (cpu.env.gpr[reg::RAX], cpu.env.flags)
    };
    let (value, stay) = run(0, |a| a.rol(al, cl));
    assert_eq!((value, stay & (flags::C | flags::N)), (0x40, flags::C | flags::N), "by zero they stay");
    assert_eq!(run(32, |a| a.rol(ax, cl)), (0x40, stay));
    // V is defined by what silicon does with CL.
    assert_eq!(run(1, |a| a.rol(al, cl)), run(1, |a| a.rol(al, 1)));
}

#[test]
fn call_pushes_and_ret_pops() {
    let mut cpu = Cpu::new(FLAT64);
    let code = asm(64, |a| a.call(CODE + 0x40));
    assert!(matches!(cpu.exec(&code), End::Exit(_)));
    assert_eq!((cpu.env.rip, cpu.env.gpr[reg::RSP]), (CODE + 0x40, 0x7ff8));
    assert_eq!(cpu.quad(0x7ff8), CODE + code.len() as u64);
    let code = asm(64, |a| a.ret_1(0x10));
    assert_eq!(cpu.exec(&code), End::Indirect);
    assert_eq!((cpu.env.rip, cpu.env.gpr[reg::RSP]), (CODE + 5, 0x8010));
}

#[test]
fn sixteen_bit_stack_wraps_and_keeps_the_upper_half() {
    let mut cpu = Cpu::new(REAL);
    cpu.set_base(seg::SS, 0x10000);
    cpu.env.gpr[reg::RSP] = 0xdead_0000;
    cpu.env.gpr[reg::RAX] = 0x1234_5678;
    cpu.exec(&asm(16, |a| a.push(ax)));
    assert_eq!(cpu.env.gpr[reg::RSP], 0xdead_fffe);
    assert_eq!(cpu.word(0x1fffe), 0x5678);
}

#[test]
fn real_mode_adds_bases_and_checks_limits() {
    let mut cpu = Cpu::new(REAL);
    cpu.set_base(seg::DS, 0x100);
    cpu.memory[0x134] = 0x5a;
    cpu.env.gpr[reg::RBX] = 0xffff_0030;
    cpu.exec(&asm(16, |a| a.mov(al, byte_ptr(bx + 4))));
    assert_eq!(cpu.env.gpr[reg::RAX], 0x5a);
    // A word at offset FFFFh goes beyond the limit.
    cpu.env.gpr[reg::RBX] = 0xffff;
    assert!(matches!(cpu.exec(&asm(16, |a| a.mov(ax, word_ptr(bx)))), End::Fault(e) if e.vector == 13));
    assert_eq!(cpu.env.rip, CODE);
}

#[test]
fn code_base_is_added_to_targets() {
    let mut cpu = Cpu::new(REAL | 0x400 << mode::CODE_BASE_SHIFT);
    // The offset of the code is C00h: a jump by offset goes to that plus the base.
    cpu.env.gpr[reg::RBX] = 0x2000;
    assert_eq!(cpu.exec(&asm(16, |a| a.jmp(bx))), End::Indirect);
    assert_eq!(cpu.env.rip, 0x2400);
    cpu.exec(&[0xe8, 0x00, 0x01]);
    assert_eq!(cpu.env.rip, CODE + 0x103);
    assert_eq!(cpu.word(0x7ffe), 0xc03, "the offset is pushed, not the linear address");
}

#[test]
fn short_jumps_wrap_in_sixteen_bits() {
    let mut cpu = Cpu::new(REAL | 0x1000 << mode::CODE_BASE_SHIFT);
    // At offset 0: back by 2 from the next instruction at 2 is 0; by 4 is FFFEh.
    cpu.exec(&[0xeb, 0xfc]);
    assert_eq!(cpu.env.rip, 0x1000 + 0xfffe);
}

#[test]
fn pop_to_memory_uses_the_new_stack_pointer() {
    let mut cpu = Cpu::new(FLAT64);
    cpu.memory[0x8000] = 0x77;
    cpu.exec(&asm(64, |a| a.pop(qword_ptr(rsp + 8))));
    assert_eq!(cpu.quad(0x8010), 0x77);
    assert_eq!(cpu.env.gpr[reg::RSP], 0x8008);
}

#[test]
fn pop_of_the_stack_pointer_loads_it() {
    let mut cpu = Cpu::new(FLAT64);
    cpu.memory[0x8000] = 0x77;
    cpu.exec(&asm(64, |a| a.pop(rsp)));
    assert_eq!(cpu.env.gpr[reg::RSP], 0x77);
}

#[test]
fn pusha_and_popa() {
    let mut cpu = Cpu::new(FLAT32);
    for n in 0..8 {
        if n != reg::RSP {
            cpu.env.gpr[n] = 0x100 + n as u64;
        }
    }
    let before = cpu.env.gpr;
    cpu.exec(&asm(32, |a| a.pushad()));
    assert_eq!(cpu.env.gpr[reg::RSP], 0x8000 - 32);
    assert_eq!(cpu.quad(0x8000 - 20) as u32, 0x8000, "the stack pointer before");
    cpu.env.gpr[..4].fill(0);
    cpu.env.gpr[5..8].fill(0);
    cpu.exec(&asm(32, |a| a.popad()));
    assert_eq!(cpu.env.gpr, before);
}

#[test]
fn enter_and_leave_nest() {
    let mut cpu = Cpu::new(FLAT64);
    cpu.env.gpr[reg::RBP] = 0x9000;
    cpu.memory[0x8ff8] = 0x55;
    cpu.exec(&asm(64, |a| a.enter(0x20, 2)));
    assert_eq!(cpu.env.gpr[reg::RBP], 0x7ff8);
    assert_eq!(cpu.env.gpr[reg::RSP], 0x8000 - 24 - 0x20);
    assert_eq!([cpu.quad(0x7ff8), cpu.quad(0x7ff0), cpu.quad(0x7fe8)], [0x9000, 0x55, 0x7ff8]);
    cpu.exec(&asm(64, |a| a.leave()));
    assert_eq!((cpu.env.gpr[reg::RSP], cpu.env.gpr[reg::RBP]), (0x8000, 0x9000));
}

#[test]
fn loops_count_in_their_address_size() {
    let mut cpu = Cpu::new(FLAT64);
    cpu.env.gpr[reg::RCX] = 1 << 32 | 2;
    // 67 E2: LOOP on ECX.
    cpu.exec(&[0x67, 0xe2, 0x10]);
    assert_eq!((cpu.env.rip, cpu.env.gpr[reg::RCX]), (CODE + 0x13, 1));
    cpu.exec(&[0x67, 0xe2, 0x10]);
    assert_eq!((cpu.env.rip, cpu.env.gpr[reg::RCX]), (CODE + 3, 0));
    cpu.exec(&[0xe3, 0x10]);
    assert_eq!(cpu.env.rip, CODE + 0x12, "JRCXZ");
}

#[test]
fn strings_step_by_direction() {
    let mut cpu = Cpu::new(FLAT64);
    cpu.memory[0x3000..0x3004].copy_from_slice(&[1, 2, 3, 4]);
    (cpu.env.gpr[reg::RSI], cpu.env.gpr[reg::RDI], cpu.env.df) = (0x3000, 0x4000, 1);
    cpu.exec(&asm(64, |a| a.movsd()));
    assert_eq!(cpu.memory[0x4000..0x4004], [1, 2, 3, 4]);
    assert_eq!((cpu.env.gpr[reg::RSI], cpu.env.gpr[reg::RDI]), (0x3004, 0x4004));
    cpu.env.df = u64::MAX;
    cpu.exec(&asm(64, |a| a.lodsw()));
    assert_eq!(cpu.env.gpr[reg::RSI], 0x3002);
}

#[test]
fn faults_leave_registers_alone() {
    for code in [
        asm(64, |a| a.push(rax)),
        asm(64, |a| a.add(qword_ptr(rdi), rax)),
        asm(64, |a| a.movsb()),
        asm(64, |a| a.leave()),
        asm(64, |a| a.ret()),
        asm(64, |a| a.call(CODE)),
        asm(64, |a| a.xchg(qword_ptr(rdi), rax)),
        asm(64, |a| a.cmpxchg(qword_ptr(rdi), rbx)),
        asm(64, |a| a.bts(qword_ptr(rdi), rbx)),
        asm(64, |a| a.lock().xadd(qword_ptr(rdi), rbx)),
        asm(64, |a| a.pop(qword_ptr(rdi))),
    ] {
        let mut cpu = Cpu::new(FLAT64);
        cpu.env.gpr = [0x7777_0000_0000; 16];
        let (gpr, flags) = (cpu.env.gpr, cpu.env.flags);
        assert!(matches!(cpu.exec(&code), End::Fault(e) if e.vector == 14), "{code:02x?}");
        assert_eq!((cpu.env.gpr, cpu.env.flags, cpu.env.rip), (gpr, flags, CODE), "{code:02x?}");
    }
}

#[test]
fn undefined_and_overlong_instructions() {
    let mut cpu = Cpu::new(FLAT64);
    assert!(matches!(cpu.exec(&[0x0f, 0x0b]), End::Fault(e) if e.vector == 6 && e.error.is_none()));
    // LOCK on a register operand.
    assert!(matches!(cpu.exec(&[0xf0, 0x01, 0xc0]), End::Fault(e) if e.vector == 6));
    let overlong = [0x66; 16];
    assert_eq!(translate(&cpu.env, CODE, &overlong, false).unwrap_err().vector, 13);
}

#[test]
fn blocks_end_before_the_next_page() {
    let mut cpu = Cpu::new(FLAT64);
    let at = CODE + 0xffa;
    // Two one-byte NOPs, then MOV EAX, imm32 that crosses.
    let code = [0x90, 0x90, 0xb8, 1, 2, 3, 4, 0xf4];
    let (block, done) = translate(&cpu.env, at, &[0x90; 6], false).unwrap();
    assert_eq!((done.insns, done.bytes), (6, 6));
    assert!(matches!(block.insts.last(), Some(Inst::GotoIndirect)), "another page is not chained");
    let (_, done) = translate(&cpu.env, at + 2, &code, false).unwrap();
    assert_eq!((done.insns, done.bytes), (2, 2), "a crossing instruction has a block of its own");
    let (block, done) = translate(&cpu.env, at + 4, &code[2..], false).unwrap();
    assert_eq!((done.insns, done.bytes), (1, 5));
    cpu.run(&block);
    assert_eq!(cpu.env.gpr[reg::RAX], 0x0403_0201);
    // The second page is missing: the fault is there.
    let e = translate(&cpu.env, at + 4, &code[2..4], false).unwrap_err();
    assert_eq!((e.vector, e.address), (14, CODE + 0x1000));
}

#[test]
fn single_steps_leave() {
    let mut cpu = Cpu::new(FLAT64 | mode::TRAP);
    let code = asm(64, |a| {
        a.nop()?;
        a.nop()
    });
    assert_eq!(cpu.exec(&code), End::Leave(leave::SINGLE_STEP));
    assert_eq!(cpu.env.rip, CODE + 1);
    cpu.env.mode = FLAT64 | mode::SHADOW;
    // Not taken: zero flag clear.
    assert_eq!(cpu.exec(&[0x74, 0x10]), End::Leave(leave::RESUME));
    assert_eq!(cpu.env.rip, CODE + 2);
}

#[test]
fn locked_operations_are_atomic() {
    for code in [
        asm(64, |a| a.lock().inc(dword_ptr(rdi))),
        asm(64, |a| a.lock().adc(dword_ptr(rdi), ecx)),
        asm(64, |a| a.lock().neg(dword_ptr(rdi))),
        asm(64, |a| a.lock().btc(dword_ptr(rdi), ecx)),
        asm(64, |a| a.lock().cmpxchg(dword_ptr(rdi), ecx)),
        asm(64, |a| a.xchg(dword_ptr(rdi), ecx)),
    ] {
        let cpu = Cpu::new(FLAT64);
        let (block, _) = translate(&cpu.env, CODE, &code, false).unwrap();
        let atomic = |i: &Inst| matches!(i, Inst::AtomicRmw { .. } | Inst::AtomicCas { .. });
        assert_eq!(block.insts.iter().filter(|i| atomic(i)).count(), 1, "{code:02x?}");
        assert!(!block.insts.iter().any(|i| matches!(i, Inst::Store { .. })), "{code:02x?}");
    }
}

#[test]
fn back_edges_poll() {
    let cpu = Cpu::new(FLAT64);
    let polls = |code: &[u8]| {
        let (block, _) = translate(&cpu.env, CODE, code, false).unwrap();
        block.exits.iter().map(|e| (e.pc, e.poll, e.chain)).collect::<Vec<_>>()
    };
    assert_eq!(polls(&[0xeb, 0xfe]), [(CODE, true, true)]);
    assert_eq!(polls(&[0xeb, 0x10]), [(CODE + 0x12, false, true)]);
    assert_eq!(polls(&[0x75, 0xfe]), [(CODE, true, true), (CODE + 2, false, true)]);
}

#[test]
fn what_the_model_lacks_is_undefined() {
    let ud = |end: End| matches!(end, End::Fault(e) if e.vector == 6);
    let code = [
        asm(64, |a| a.popcnt(eax, ecx)),
        asm(64, |a| a.andn(eax, ecx, edx)),
        asm(64, |a| a.pdep(eax, ecx, edx)),
        asm(64, |a| a.adcx(eax, ecx)),
        asm(64, |a| a.crc32(eax, cl)),
        asm(64, |a| a.movbe(eax, dword_ptr(rsp))),
        asm(64, |a| a.rdrand(eax)),
        asm(64, |a| a.rdpid(rax)),
        asm(64, |a| a.serialize()),
        asm(64, |a| a.movdir64b(rax, zmmword_ptr(rsp))),
        asm(64, |a| a.sha1nexte(xmm0, xmm1)),
        asm(64, |a| a.gf2p8mulb(xmm0, xmm1)),
        asm(64, |a| a.aesenc(xmm0, xmm1)),
        asm(64, |a| a.vfmadd213ps(ymm0, ymm1, ymm2)),
        asm(64, |a| a.vcvtph2ps(ymm0, xmm1)),
        asm(64, |a| a.vaesenc(ymm0, ymm1, ymm2)),
    ];
    for code in code {
        let mut cpu = Cpu::new(FLAT64 | mode::OSFXSR | mode::AVX);
        assert!(!ud(cpu.exec(&code)), "{code:02x?}");
        cpu.env.cpuid = crate::cpuid::parse("x86-64-v1").unwrap();
        assert!(ud(cpu.exec(&code)), "{code:02x?}");
    }
    // These two are older instructions with a prefix that means nothing to them.
    let mut cpu = Cpu::new(FLAT64);
    cpu.env.cpuid = crate::cpuid::parse("x86-64-v1").unwrap();
    cpu.env.gpr[reg::RCX] = 0x100;
    cpu.exec(&asm(64, |a| a.lzcnt(eax, ecx)));
    assert_eq!(cpu.env.gpr[reg::RAX], 8, "BSR");
    cpu.env.gpr[reg::RCX] = 0;
    cpu.exec(&asm(64, |a| a.tzcnt(eax, ecx)));
    assert_eq!(cpu.env.gpr[reg::RAX], 8, "BSF of zero");
}

#[test]
fn vex_is_for_protected_mode() {
    let andn = asm(32, |a| a.andn(eax, ecx, edx));
    assert!(matches!(Cpu::new(FLAT32).exec(&andn), End::Exit(_)));
    for outside in [mode::V86 | FLAT32, REAL | mode::CODE32] {
        let end = Cpu::new(outside).exec(&andn);
        assert!(matches!(end, End::Fault(e) if e.vector == 6), "{end:?}");
    }
}
