//! The silicon as oracle: random integer instructions run natively and through front end and IR interpreter, from the same
//! registers, flags and memory; what they leave must agree.
//!
//! Instructions are made as random bytes (prefixes, opcode, ModRM, immediates) and kept if the decoder finds one of the
//! mnemonics under test whose operands stay off RSP and within a buffer that RDI points into. Flags and results that the
//! manual leaves undefined are compared on Intel's silicon alone, see [`undefined`](super::undefined).
//!
//! The number of cases is `TESSERA_ORACLE_CASES` (default 30000), the seed `TESSERA_ORACLE_SEED`.

use std::alloc::Layout;
use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use tessera_tcg::backend::GuestInfo;
use tessera_tcg::env::Runtime;
use tessera_tcg::guest::{CodeFetch, Exception, Guest, TranslateLimits};
use tessera_tcg::interp::{self, End, Machine};
use tessera_tcg::ir::{Block, Builder, HelperId};

use crate::guest::X86;
use crate::helpers::HELPERS;
use crate::state::{self, X86Env, pack_flags, reg, unpack_flags};
use crate::testing::Rng;

pub(super) const BUFFER: usize = 64 << 10;
/// Arithmetic flags in EFLAGS.
pub(super) const FLAGS: u64 = 0x8d5;
pub(super) const CODE_AT: u64 = 0x40_0000;

/// Registers (RSP is not touched) and flags.
#[repr(C)]
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Regs {
    pub(super) flags: u64,
    pub(super) gpr: [u64; 16],
}

/// Runs code natively on registers.
pub(super) struct Native {
    state: Box<[u64; 64]>,
    stack: Box<[u64; 4096]>,
}

impl Native {
    pub(super) fn new() -> Native {
        Native { state: Box::new([0; 64]), stack: Box::new([0; 4096]) }
    }

    pub(super) fn run(&mut self, code: &[u8], regs: &mut Regs) {
        // state: flags and 15 registers in (popped), the host's RSP in 40, flags and 15 registers out (pushed) below 38.
        let order: Vec<usize> = (0..16).filter(|&n| n != reg::RSP).collect();
        self.state[0] = regs.flags | 0x202;
        for (k, &n) in order.iter().enumerate() {
            self.state[1 + k] = regs.gpr[n];
        }
        let base = self.state.as_mut_ptr() as u64;
        let mut c = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x9c];
        let mov_rax = |c: &mut Vec<u8>, v: u64| {
            c.extend([0x48, 0xb8]);
            c.extend(v.to_le_bytes());
        };
        let mov_rsp = |c: &mut Vec<u8>, v: u64| {
            c.extend([0x48, 0xbc]);
            c.extend(v.to_le_bytes());
        };
        mov_rax(&mut c, base + 8 * 40);
        c.extend([0x48, 0x89, 0x20]); // mov [rax], rsp
        mov_rsp(&mut c, base);
        c.push(0x9d); // popfq
        for &n in &order {
            if n >= 8 {
                c.push(0x41);
            }
            c.push(0x58 + (n as u8 & 7));
        }
        mov_rsp(&mut c, self.stack.as_ptr() as u64 + 8 * 2048);
        c.extend(code);
        mov_rsp(&mut c, base + 8 * 38);
        for &n in order.iter().rev() {
            if n >= 8 {
                c.push(0x41);
            }
            c.push(0x50 + (n as u8 & 7));
        }
        c.push(0x9c); // pushfq
        mov_rax(&mut c, base + 8 * 40);
        c.extend([0x48, 0x8b, 0x20]); // mov rsp, [rax]
        c.extend([0x9d, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
        let mut map = memmap2::MmapMut::map_anon(c.len()).unwrap();
        map[..c.len()].copy_from_slice(&c);
        let map = map.make_exec().unwrap();
        // SAFETY: the code saves and restores what the C ABI wants preserved, and the instruction under test was chosen to
        // touch only registers and the buffers.
        unsafe { std::mem::transmute::<*const u8, extern "C" fn()>(map.as_ptr())() };
        regs.flags = self.state[22] & FLAGS;
        for (k, &n) in order.iter().enumerate() {
            regs.gpr[n] = self.state[23 + k];
        }
    }
}

/// Guest memory is one buffer, at the host address that native code uses.
pub(super) struct Model<'a> {
    pub(super) env: &'a mut X86Env,
    pub(super) base: u64,
    pub(super) memory: Vec<u8>,
}

impl<'a> Model<'a> {
    /// A guest whose instructions access no memory.
    pub(super) fn without_memory(env: &'a mut X86Env) -> Model<'a> {
        Model { env, base: 0, memory: Vec::new() }
    }

    fn at(&self, va: u64, len: usize) -> Result<usize, Exception> {
        let at = va.wrapping_sub(self.base) as usize;
        if at.checked_add(len).is_some_and(|end| end <= self.memory.len()) {
            return Ok(at);
        }
        Err(Exception { vector: 14, error: Some(0), address: va })
    }
}

impl Machine for Model<'_> {
    fn env(&mut self) -> &mut [u8] {
        let env: *mut X86Env = self.env;
        // SAFETY: the bytes of a live struct; the interpreter changes only those of globals, which are integers.
        unsafe { std::slice::from_raw_parts_mut(env.cast(), size_of::<X86Env>()) }
    }

    fn load(&mut self, va: u64, buf: &mut [u8], _: u8, _: bool) -> Result<(), Exception> {
        let at = self.at(va, buf.len())?;
        buf.copy_from_slice(&self.memory[at..at + buf.len()]);
        Ok(())
    }

    fn store(&mut self, va: u64, bytes: &[u8], _: u8) -> Result<(), Exception> {
        let at = self.at(va, bytes.len())?;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn misaligned(&mut self, va: u64) -> Exception {
        X86::misaligned(va)
    }

    fn call(&mut self, helper: HelperId, a: [u64; 5]) -> Result<u64, Exception> {
        type Helper = extern "C" fn(&mut X86Env, u64, u64, u64, u64, u64) -> u64;
        let func = (HELPERS[helper.0 as usize].func)();
        // SAFETY: a helper has this type with up to five arguments; surplus ones are ignored in the C ABI.
        let func = unsafe { std::mem::transmute::<*const (), Helper>(func) };
        let r = func(self.env, a[0], a[1], a[2], a[3], a[4]);
        if std::mem::take(&mut self.env.header.helper_fault) != 0 {
            // SAFETY: the runtime was allocated by the test.
            let e = unsafe { (*self.env.header.runtime).exception.take() };
            return Err(e.expect("a fault has an exception"));
        }
        Ok(r)
    }
}

struct Bytes<'a>(&'a [u8]);

impl CodeFetch for Bytes<'_> {
    fn fetch(&mut self, pc: u64) -> Result<&[u8], Exception> {
        Ok(&self.0[(pc - CODE_AT) as usize..])
    }
}

pub(super) fn environment() -> Box<X86Env> {
    let cpuid = crate::cpuid::parse("max").unwrap();
    let mut env = X86Env::new(Box::new(crate::testing::NoPlatform::default()), cpuid);
    env.mode = state::mode::CODE64 | state::mode::LONG | state::mode::PROTECTED | state::mode::OSFXSR;
    // SAFETY: only the exception of this runtime is used, for which zero bytes are a place to write to; it is leaked.
    env.header.runtime = unsafe { std::alloc::alloc_zeroed(Layout::new::<Runtime>()).cast() };
    env
}

pub(super) fn guest_info() -> GuestInfo {
    GuestInfo {
        globals: X86::globals(),
        pc: X86::pc_global(),
        helpers: X86::helpers(),
        fp_control: X86::fp_control(),
    }
}

pub(super) fn translate(env: &X86Env, bytes: &[u8]) -> Block {
    let mut b = Builder::default();
    let key = tessera_tcg::guest::BlockKey::new(CODE_AT, env.mode);
    let limits =
        TranslateLimits { max_insns: 1, single_step: false, side_exits: false, unroll: false, path: &[] };
    X86::translate(env, key, limits, &mut Bytes(bytes), &mut b).expect("bytes are there");
    b.finish()
}

/// Mnemonics under test: computing in registers and memory, without control flow, faults but #DE, or system state.
const TESTED: &[Mnemonic] = {
    use Mnemonic::*;
    &[
        Add, Sub, And, Or, Xor, Adc, Sbb, Adcx, Adox, Cmp, Test, Inc, Dec, Neg, Not, Xadd, Cmpxchg, Shl, Sal,
        Shr, Sar, Rol, Ror, Rcl, Rcr, Shld, Shrd, Shlx, Shrx, Sarx, Rorx, Mul, Imul, Mulx, Div, Idiv, Cbw,
        Cwde, Cdqe, Cwd, Cdq, Cqo, Bt, Bts, Btr, Btc, Bsf, Bsr, Tzcnt, Lzcnt, Popcnt, Andn, Blsi, Blsr,
        Blsmsk, Bextr, Bzhi, Pdep, Pext, Crc32, Mov, Movzx, Movsx, Movsxd, Movbe, Lea, Xchg, Bswap, Cmovo,
        Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova, Cmovs, Cmovns, Cmovp, Cmovnp, Cmovl, Cmovge,
        Cmovle, Cmovg, Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta, Sets, Setns, Setp, Setnp, Setl,
        Setge, Setle, Setg, Lahf, Sahf, Clc, Stc, Cmc,
    ]
};

pub(super) fn random_bytes(rng: &mut Rng, out: &mut Vec<u8>) {
    out.clear();
    if rng.below(4) == 0 {
        out.push(0x66);
    }
    match rng.below(12) {
        0 => out.push(0xf2),
        1 => out.push(0xf3),
        2 => out.push(0xf0),
        _ => {}
    }
    let vex = rng.below(8) == 0;
    if vex {
        // Three-byte VEX, maps 2 and 3, 128 bits.
        let map = 2 + rng.below(2) as u8;
        out.clear();
        out.extend([
            0xc4,
            0xe0 & rng.word() as u8 | 0x40 | map,
            rng.word() as u8 & 0xfb,
            rng.word() as u8 | 0xf0,
        ]);
    } else {
        if rng.below(2) == 0 {
            out.push(0x40 | rng.word() as u8 & 15);
        }
        match rng.below(4) {
            0 => out.extend([0x0f, rng.word() as u8]),
            1 => out.extend([0x0f, 0x38, 0xf0 | rng.word() as u8 & 15]),
            _ => out.push(rng.word() as u8),
        }
    }
    // Registers only, or [RDI + disp8].
    let modrm = rng.word() as u8;
    out.push(if rng.below(2) == 0 { 0xc0 | modrm } else { 0x47 | modrm & 0x38 });
    for _ in 0..9 {
        let v = rng.word();
        out.push(if rng.below(3) == 0 { v as u8 & 63 } else { v as u8 });
    }
}

pub(super) fn is_testable(i: &Instruction) -> bool {
    is_testable_with(i, Register::RDI, &[])
}

/// Whether the instruction is one of those under test or of some others, and accesses memory by `base` alone.
pub(super) fn is_testable_with(i: &Instruction, base: Register, others: &[Mnemonic]) -> bool {
    let stack = |r: Register| r.full_register() == Register::RSP;
    if i.is_invalid() || !TESTED.contains(&i.mnemonic()) && !others.contains(&i.mnemonic()) {
        return false;
    }
    if stack(i.memory_base()) || i.is_ip_rel_memory_operand() {
        return false;
    }
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let r = i.op_register(n);
                if stack(r) || !r.is_gpr() {
                    return false;
                }
            }
            OpKind::Memory => {
                let ok = i.memory_base() == base
                    && i.memory_index() == Register::None
                    && i.memory_displacement64() as i64 as i8 as i64 == i.memory_displacement64() as i64
                    && !matches!(i.memory_segment(), Register::FS | Register::GS);
                if !ok && i.mnemonic() != Mnemonic::Lea {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

/// A number from the environment.
pub(super) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether the host does as Intel's processors where the manual leaves something undefined.
pub(super) fn host_is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    (vendor.ebx, vendor.edx, vendor.ecx) == (0x756e_6547, 0x4965_6e69, 0x6c65_746e)
}

/// Whether the host has all instructions under test.
pub(super) fn host_has_all() -> bool {
    std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("movbe")
        && std::is_x86_feature_detected!("adx")
        && std::is_x86_feature_detected!("lzcnt")
}

#[test]
fn silicon_agrees() {
    let cases = number("TESSERA_ORACLE_CASES").unwrap_or(30_000);
    let seed = number("TESSERA_ORACLE_SEED").unwrap_or(1);
    if !host_has_all() {
        println!("skipped: this host lacks BMI2, ADX, LZCNT or MOVBE");
        return;
    }
    let intel = host_is_intel();
    let mut rng = Rng::new(seed, 0);
    let mut native = Native::new();
    let mut env = environment();
    let guest = guest_info();
    let mut buffer = vec![0u8; BUFFER];
    let mut bytes = Vec::new();
    let mut tested: BTreeMap<String, u32> = BTreeMap::new();
    let mut done = 0;
    while done < cases {
        random_bytes(&mut rng, &mut bytes);
        let mut decoder = Decoder::with_ip(64, &bytes, CODE_AT, DecoderOptions::NONE);
        let i = decoder.decode();
        if !is_testable(&i) {
            continue;
        }
        let code = &bytes[..i.len()];
        for b in &mut buffer[BUFFER / 2 - 256..BUFFER / 2 + 256] {
            *b = rng.int() as u8;
        }
        let mut regs = Regs { flags: rng.word() & FLAGS, gpr: std::array::from_fn(|_| rng.int()) };
        regs.gpr[reg::RDI] = buffer.as_ptr() as u64 + BUFFER as u64 / 2;
        if i.op0_kind() == OpKind::Memory
            && matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && i.op1_kind() == OpKind::Register
        {
            if i.op1_register().full_register() == Register::RDI {
                continue;
            }
            // Offsets within the buffer, of either sign.
            let n = super::operand::register_number(i.op1_register());
            regs.gpr[n] = ((rng.word() & 0xfff) as i64 - 0x800) as u64;
        }

        // Through the translator.
        env.gpr = regs.gpr;
        env.flags = pack_flags(regs.flags);
        let block = translate(&env, code);
        let mut model = Model { env: &mut env, base: buffer.as_ptr() as u64, memory: buffer.clone() };
        let end = interp::run(&block, &guest, &mut model);
        let memory = std::mem::take(&mut model.memory);
        let show = || {
            let (text, _) = X86::disassemble(
                tessera_tcg::guest::BlockKey::new(CODE_AT, state::mode::CODE64),
                CODE_AT,
                code,
            );
            let ir: Vec<_> =
                block.insts.iter().enumerate().map(|(n, inst)| format!("v{n} = {inst:?}")).collect();
            format!("{text} ({code:02x?}, {:?}), seed {seed}\nfrom {regs:x?}\n{}", i.code(), ir.join("\n"))
        };
        if let End::Fault(e) = end {
            // Natively this would be SIGFPE.
            let division = matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
            assert!(division && e.vector == 0, "{e:?} of {}", show());
            continue;
        }
        let pc = match end {
            End::Exit(x) => block.exits[x.0 as usize].pc,
            End::Indirect => env.rip,
            end => panic!("{end:?} of {}", show()),
        };
        assert_eq!(pc, CODE_AT + i.len() as u64, "{}", show());

        // On the silicon.
        let mut expect = regs.clone();
        native.run(code, &mut expect);
        let ours = unpack_flags(env.flags);
        let loose = if intel {
            0
        } else {
            let u = i.rflags_undefined();
            let bit = |of: u32, flag: u64| if u & of != 0 { flag } else { 0 };
            bit(RflagsBits::OF, 1 << 11)
                | bit(RflagsBits::SF, 1 << 7)
                | bit(RflagsBits::ZF, 1 << 6)
                | bit(RflagsBits::AF, 1 << 4)
                | bit(RflagsBits::CF, 1)
                | bit(RflagsBits::PF, 1 << 2)
        };
        let differ = (ours ^ expect.flags) & FLAGS;
        assert_eq!(differ & !loose, 0, "flags: ours {ours:#x}, silicon {:#x}: {}", expect.flags, show());
        let mut got = env.gpr;
        got[reg::RSP] = regs.gpr[reg::RSP];
        let undefined_result =
            !intel && matches!(i.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr) && ours & 0x40 != 0;
        if !undefined_result {
            assert!(got == expect.gpr, "registers: ours {got:x?}, silicon {:x?}: {}", expect.gpr, show());
        }
        assert!(memory == buffer, "memory: {}", show());
        *tested.entry(format!("{:?}", i.mnemonic())).or_default() += 1;
        done += 1;
    }
    let missing: Vec<_> =
        TESTED.iter().map(|m| format!("{m:?}")).filter(|m| !tested.contains_key(m) && m != "Sal").collect();
    assert!(cases < 30_000 || missing.is_empty(), "never made: {missing:?}");
}

#[test]
fn direct_stores_agree() {
    use iced_x86::code_asm::*;
    let leaf7 = std::arch::x86_64::__cpuid_count(7, 0);
    let (movdiri, movdir64b) = (leaf7.ecx >> 27 & 1 != 0, leaf7.ecx >> 28 & 1 != 0);
    let mut native = Native::new();
    let mut env = environment();
    let guest = guest_info();
    let mut rng = Rng::new(3, 0);
    let mut buffer = vec![0u8; 1024];
    let base = buffer.as_ptr() as u64;
    for case in 0..300 {
        let mut asm = CodeAssembler::new(64).unwrap();
        let serialize = leaf7.edx >> 14 & 1 != 0;
        let present = match case % 4 {
            0 => asm.movdiri(dword_ptr(rdi + 5), ecx).map(|()| movdiri),
            1 => asm.movdiri(qword_ptr(rdi), rcx).map(|()| movdiri),
            2 => asm.movdir64b(rax, zmmword_ptr(rdi)).map(|()| movdir64b),
            _ => asm.serialize().map(|()| serialize),
        };
        let code = asm.assemble(CODE_AT).unwrap();
        if !present.unwrap() {
            println!("skipped: this host lacks {code:02x?}");
            continue;
        }
        buffer.iter_mut().for_each(|b| *b = rng.int() as u8);
        let mut regs = Regs { flags: rng.word() & FLAGS, gpr: std::array::from_fn(|_| rng.int()) };
        regs.gpr[reg::RDI] = base + rng.below(512) as u64;
        regs.gpr[reg::RAX] = base.next_multiple_of(64) + 64 * rng.below(12) as u64;
        env.gpr = regs.gpr;
        env.flags = pack_flags(regs.flags);
        let block = translate(&env, &code);
        let mut model = Model { env: &mut env, base, memory: buffer.clone() };
        let end = interp::run(&block, &guest, &mut model);
        assert!(matches!(end, End::Exit(_)), "{end:?}");
        let memory = std::mem::take(&mut model.memory);
        native.run(&code, &mut regs);
        assert_eq!(memory, buffer, "{code:02x?} from {regs:x?}");
    }
}

#[test]
fn a_misaligned_direct_store_faults_and_changes_nothing() {
    // movdir64b rax, [rdi]
    let code = [0x66, 0x0f, 0x38, 0xf8, 0x07];
    let mut env = environment();
    (env.gpr[reg::RDI], env.gpr[reg::RAX]) = (0x1000, 0x1020);
    let block = translate(&env, &code);
    let memory: Vec<u8> = (0..512).map(|n| n as u8).collect();
    let mut model = Model { env: &mut env, base: 0x1000, memory: memory.clone() };
    assert!(matches!(interp::run(&block, &guest_info(), &mut model), End::Fault(_)));
    assert_eq!(model.memory, memory);
}
