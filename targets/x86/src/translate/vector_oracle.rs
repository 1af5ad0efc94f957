//! SSE, MMX and x87 instructions against the silicon.
//!
//! Every encoding of these families that needs no privilege is built with random operands and run twice from the same
//! random state: natively, and by the whole translator in a guest in 64-bit mode. Registers, flags, MXCSR, the x87 unit
//! and memory must agree. Exceptions are masked; unmasked ones are tested where they are implemented.

use std::sync::Arc;

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Op, OpKind,
    Register,
};
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{Options, Vcpu};
use tessera_tcg::memory::{PhysMemory, RamPage};

use crate::guest::X86;
use crate::helpers::x87_image;
use crate::state::{Cr0, Cr4, Efer, Segment, VecReg, X86Env, pack_flags, reg, seg, unpack_flags};
use crate::system::exit;
use crate::translate::crypto;
use crate::translate::test_platform::NoPlatform;

const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const DATA_BYTES: usize = 256;

/// Guest RAM: two MiB, mapped one to one by one large page.
struct Ram(Box<[std::cell::UnsafeCell<u8>]>);

// SAFETY: accessed by raw pointers from one thread at a time.
unsafe impl Sync for Ram {}

impl PhysMemory for Ram {
    fn ram_page(&self, phys: u64) -> Option<RamPage> {
        let page = self.0.get(phys as usize & !0xfff..)?;
        (page.len() >= 0x1000).then(|| RamPage { host: page[0].get(), writable: true })
    }
    fn mmio_read(&self, _: u64, _: u32) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: u64, _: u32, _: u64) {}
}

impl Ram {
    fn write(&self, at: u64, bytes: &[u8]) {
        for (n, b) in bytes.iter().enumerate() {
            // SAFETY: in bounds by the indexing; no other thread runs.
            unsafe { *self.0[at as usize + n].get() = *b };
        }
    }

    fn read(&self, at: u64, bytes: &mut [u8]) {
        for (n, b) in bytes.iter_mut().enumerate() {
            // SAFETY: as in `write`.
            *b = unsafe { *self.0[at as usize + n].get() };
        }
    }
}

/// What an instruction can see and change.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Debug)]
struct State {
    fx: [u8; 512],
    data: [u8; DATA_BYTES],
    /// RAX, RCX, RDX, RBX, RSI, RDI; the last two point to `data`.
    gpr: [u64; 6],
    rflags: u64,
}

const GPRS: [usize; 6] = [reg::RAX, reg::RCX, reg::RDX, reg::RBX, reg::RSI, reg::RDI];
const ARITHMETIC: u64 = 0x8d5;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn word(&mut self) -> u64 {
        match self.below(5) {
            0 => self.next(),
            1 => [
                0,
                1 << 63,
                1,
                0x3ff0 << 48,
                0x7ff0 << 48,
                0x7ff8_0000_0000_0001,
                0x7ff4_0000_0000_0002,
                0x4330 << 48,
            ][self.below(8)],
            2 => {
                let lane = |r: &mut Random| {
                    [0u32, 1 << 31, 0x3f80_0000, 0x7f80_0000, 0x7fc0_0001, 0x7fa0_0002, 1, 0x4f00_0000]
                        [r.below(8)]
                };
                lane(self) as u64 | (lane(self) as u64) << 32
            }
            3 => self.next() & 0x0f0f_0f0f_0f0f_0f0f,
            _ => self.next() & 0x83ff_ffff_83ff_ffff | 0x3c00_0000_3c00_0000,
        }
    }

    fn f80(&mut self) -> [u8; 10] {
        let (exponent, mantissa) = match self.below(8) {
            0 => (0, 0),
            1 => (0x7fff, 1 << 63),
            2 => (0x7fff, 3 << 62 | self.next() >> 2),
            3 => (0x7fff, 1 << 63 | self.next() >> 2),
            4 => (0, self.next() >> 1),
            5 => (self.next() as u16, self.next()),
            _ => (0x3ff0 + self.below(32) as u16, 1 << 63 | self.next()),
        };
        let sign = (self.next() as u16) & 0x8000;
        let mut v = [0; 10];
        v[..8].copy_from_slice(&mantissa.to_le_bytes());
        v[8..].copy_from_slice(&(exponent & 0x7fff | sign).to_le_bytes());
        v
    }

    fn state(&mut self) -> State {
        let mut s = State { fx: [0; 512], data: [0; DATA_BYTES], gpr: [0; 6], rflags: 0 };
        let control = 0x7f | (self.next() as u16) & 0xf00;
        s.fx[0..2].copy_from_slice(&control.to_le_bytes());
        let status = (self.next() as u16) & 0x7f3f;
        s.fx[2..4].copy_from_slice(&status.to_le_bytes());
        s.fx[4] = if self.below(4) == 0 { self.next() as u8 } else { 0xff >> self.below(2) * self.below(8) };
        let mxcsr = 0x1f80 | self.next() as u32 & 0xe07f;
        s.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for n in 0..8 {
            s.fx[32 + 16 * n..][..10].copy_from_slice(&self.f80());
        }
        for n in 0..32 {
            s.fx[160 + 8 * n..][..8].copy_from_slice(&self.word().to_le_bytes());
        }
        for n in 0..DATA_BYTES / 16 {
            let mut chunk = [0; 16];
            if self.below(3) == 0 {
                chunk[..10].copy_from_slice(&self.f80());
            } else {
                chunk[..8].copy_from_slice(&self.word().to_le_bytes());
                chunk[8..].copy_from_slice(&self.word().to_le_bytes());
            }
            s.data[16 * n..][..16].copy_from_slice(&chunk);
        }
        for g in &mut s.gpr {
            *g = self.next();
        }
        s.rflags = self.next() & ARITHMETIC;
        s
    }
}

/// Runs machine code natively.
mod native {
    use super::State;

    /// Code that loads the state, runs `code`, saves the state.
    pub struct Runner(memmap2::MmapMut);

    impl Runner {
        pub fn new() -> Runner {
            Runner(memmap2::MmapMut::map_anon(4096).expect("an anonymous page"))
        }

        pub fn run(self, state: &mut State, code: &[u8]) -> Runner {
            const FX: u32 = std::mem::offset_of!(State, fx) as u32;
            const GPR: u32 = std::mem::offset_of!(State, gpr) as u32;
            const FLAGS: u32 = std::mem::offset_of!(State, rflags) as u32;
            let mut out = Vec::new();
            // push rbx; push r15; mov r15, rdi
            out.extend([0x53, 0x41, 0x57, 0x49, 0x89, 0xff]);
            let at_r15 = |out: &mut Vec<u8>, opcode: &[u8], reg: u8, disp: u32| {
                out.extend(opcode);
                out.push(0x87 | reg << 3);
                out.extend(disp.to_le_bytes());
            };
            // fxrstor64; push [flags]; popfq
            at_r15(&mut out, &[0x49, 0x0f, 0xae], 1, FX);
            at_r15(&mut out, &[0x41, 0xff], 6, FLAGS);
            out.push(0x9d);
            let regs = [0u8, 1, 2, 3, 6, 7];
            for (n, r) in regs.into_iter().enumerate() {
                at_r15(&mut out, &[0x49, 0x8b], r, GPR + 8 * n as u32);
            }
            out.extend(code);
            for (n, r) in regs.into_iter().enumerate() {
                at_r15(&mut out, &[0x49, 0x89], r, GPR + 8 * n as u32);
            }
            // pushfq; pop [flags]; fxsave64; fninit; cld; pop r15; pop rbx; ret
            out.push(0x9c);
            at_r15(&mut out, &[0x41, 0x8f], 0, FLAGS);
            at_r15(&mut out, &[0x49, 0x0f, 0xae], 0, FX);
            out.extend([0xdb, 0xe3, 0xfc, 0x41, 0x5f, 0x5b, 0xc3]);
            let mut map = self.0;
            map[..out.len()].copy_from_slice(&out);
            let map = map.make_exec().expect("an executable page");
            let mut control = 0u32;
            // SAFETY: the page holds the function assembled above, which keeps to the calling convention but for MXCSR,
            // which is restored here; the instruction in its middle touches registers and `state.data` alone.
            unsafe {
                std::arch::asm!("stmxcsr [{}]", in(reg) &mut control);
                let f: extern "C" fn(*mut State) = std::mem::transmute(map.as_ptr());
                f(state);
                std::arch::asm!("ldmxcsr [{}]", in(reg) &control);
            }
            Runner(map.make_mut().expect("a writable page"))
        }
    }
}

struct GuestCpu {
    vcpu: Vcpu<X86, X86_64>,
    ram: Arc<Ram>,
}

impl GuestCpu {
    fn new() -> GuestCpu {
        let ram = Arc::new(Ram((0..2 << 20).map(|_| std::cell::UnsafeCell::new(0)).collect()));
        for (table, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
            ram.write(table, &entry.to_le_bytes());
        }
        let mut env = X86Env::new(Box::new(NoPlatform), crate::cpuid::parse("max").expect("a model"));
        env.cr0 = Cr0::PE | Cr0::PG | Cr0::MP | Cr0::NE | Cr0::ET;
        env.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
        env.efer = Efer::LME | Efer::LMA;
        env.cr3 = 0x1000;
        env.seg = [Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 16 }; 8];
        env.seg[seg::CS] = Segment { base: 0, limit: u32::MAX, access: 0xa09b, selector: 8 };
        env.seg_base = [0; 6];
        env.update_mode();
        let options = Options { cache_mib: 8, ..Options::default() };
        let vcpu = Vcpu::new(env, ram.clone(), options).expect("a vCPU");
        GuestCpu { vcpu, ram }
    }

    /// Runs `code` and HLT from `state`; false if it raised an exception.
    fn run(&mut self, state: &mut State, code: &[u8]) -> bool {
        let mut bytes = code.to_vec();
        bytes.push(0xf4);
        self.ram.write(CODE, &bytes);
        self.ram.write(DATA, &state.data);
        self.vcpu.clear_code();
        let env = self.vcpu.env_mut();
        for (n, g) in GPRS.into_iter().enumerate() {
            env.gpr[g] = state.gpr[n];
        }
        env.halted = false;
        env.shutdown = false;
        env.rip = CODE;
        env.flags = pack_flags(state.rflags);
        x87_image::load_fx(&mut env.fpu, true, &state.fx);
        env.mxcsr = u32::from_le_bytes(state.fx[24..28].try_into().unwrap());
        for n in 0..16 {
            let word = |at: usize| u64::from_le_bytes(state.fx[160 + 16 * n + at..][..8].try_into().unwrap());
            env.vec[n] = VecReg([word(0), word(8), 0x5555, 0xaaaa]);
        }
        env.update_mode();
        self.vcpu.state_changed();
        let ended = self.vcpu.run();
        let env = self.vcpu.env();
        for (n, g) in GPRS.into_iter().enumerate() {
            state.gpr[n] = env.gpr[g];
        }
        state.rflags = unpack_flags(env.flags);
        x87_image::store_fx(&env.fpu, true, &mut state.fx);
        state.fx[24..28].copy_from_slice(&env.mxcsr.to_le_bytes());
        for n in 0..16 {
            let v = env.vec[n].0;
            assert_eq!(v[2..], [0x5555, 0xaaaa], "the upper half is kept");
            state.fx[160 + 16 * n..][..8].copy_from_slice(&v[0].to_le_bytes());
            state.fx[168 + 16 * n..][..8].copy_from_slice(&v[1].to_le_bytes());
        }
        self.ram.read(DATA, &mut state.data);
        ended == exit::HALTED && env.rip == CODE + bytes.len() as u64
    }
}

const FEATURES: [CpuidFeature; 14] = [
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::GFNI,
    CpuidFeature::MMX,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
];

/// Whether the encoding is one that this test runs.
fn wanted(code: Code) -> bool {
    let info = code.op_code();
    let features = code.cpuid_features();
    if code.encoding() != EncodingKind::Legacy || !info.mode64() || !info.is_instruction() {
        return false;
    }
    if features.is_empty() || !features.iter().all(|f| FEATURES.contains(f)) {
        return false;
    }
    // Control words with unmasked exceptions, environments with addresses in them, and those that are other families'
    // (CRC32, prefetches, CMOV on x87 flags is here).
    !matches!(
        code.mnemonic(),
        Mnemonic::Ldmxcsr
            | Mnemonic::Fldcw
            | Mnemonic::Fldenv
            | Mnemonic::Fnstenv
            | Mnemonic::Fstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fsave
            | Mnemonic::Frstor
            | Mnemonic::Frstpm
            | Mnemonic::Fnsetpm
            | Mnemonic::Fsetpm
            | Mnemonic::Fstdw
            | Mnemonic::Fstsg
            | Mnemonic::Fninit
            | Mnemonic::Crc32
    )
}

/// Builds the instruction with random operands; `None` if it has operands that this test does not make.
fn build(code: Code, r: &mut Random) -> Option<Instruction> {
    let mut i = Instruction::default();
    i.set_code(code);
    let info = code.op_code();
    for n in 0..info.op_count() {
        let memory = r.below(2) == 0;
        let xmm =
            [Register::XMM0, Register::XMM1, Register::XMM5, Register::XMM9, Register::XMM15][r.below(5)];
        let mm = [Register::MM0, Register::MM1, Register::MM5, Register::MM7][r.below(4)];
        let r32 = [Register::EAX, Register::ECX, Register::EDX, Register::EBX][r.below(4)];
        let r64 = [Register::RAX, Register::RCX, Register::RDX, Register::RBX][r.below(4)];
        let sti = [Register::ST0, Register::ST1, Register::ST2, Register::ST6][r.below(4)];
        let register = match info.op_kind(n) {
            Op::xmm_reg | Op::xmm_rm => xmm,
            Op::xmm_or_mem if !memory => xmm,
            Op::mm_reg | Op::mm_rm => mm,
            Op::mm_or_mem if !memory => mm,
            Op::r32_reg | Op::r32_rm => r32,
            Op::r32_or_mem if !memory => r32,
            Op::r64_reg | Op::r64_rm => r64,
            Op::r64_or_mem if !memory => r64,
            Op::st0 => Register::ST0,
            Op::sti_opcode => sti,
            Op::ax => Register::AX,
            Op::xmm_or_mem | Op::mm_or_mem | Op::r32_or_mem | Op::r64_or_mem | Op::mem => Register::None,
            Op::imm8 => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(if r.below(2) == 0 { r.next() as u8 } else { r.below(24) as u8 });
                continue;
            }
            Op::seg_rDI => {
                i.set_op_kind(n, OpKind::MemorySegRDI);
                continue;
            }
            _ => return None,
        };
        if register == Register::None {
            i.set_op_kind(n, OpKind::Memory);
            i.set_memory_base(Register::RSI);
            i.set_memory_displ_size(1);
            i.set_memory_displacement64(16 * r.below(8) as u64);
        } else {
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, register);
        }
    }
    Some(i)
}

fn encode(i: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder.encode(i, CODE).expect("encodable");
    encoder.take_buffer()
}

/// Makes equal what may differ: the x87 pointers and opcode, MXCSR's mask, reserved bytes, flags that are not compared,
/// where the data is.
fn normalise(s: &mut State) {
    s.fx[5..24].fill(0);
    s.fx[28..32].fill(0);
    s.fx[416..].fill(0);
    s.rflags &= ARITHMETIC;
    (s.gpr[4], s.gpr[5]) = (0, 0);
}

/// Whether this host can run the encoding.
fn host_has(code: Code) -> bool {
    use std::is_x86_feature_detected as has;
    code.cpuid_features().iter().all(|f| match f {
        CpuidFeature::AES => has!("aes"),
        CpuidFeature::PCLMULQDQ => has!("pclmulqdq"),
        CpuidFeature::SHA => has!("sha"),
        CpuidFeature::GFNI => has!("gfni"),
        CpuidFeature::VAES => has!("vaes"),
        CpuidFeature::VPCLMULQDQ => has!("vpclmulqdq"),
        CpuidFeature::AVX_VNNI => has!("avxvnni"),
        _ => true,
    })
}

/// Whether translations of the encoding depend on what the host has.
fn is_optional(code: Code) -> bool {
    use CpuidFeature::*;
    code.cpuid_features()
        .iter()
        .any(|f| matches!(f, AES | PCLMULQDQ | SHA | GFNI | VAES | VPCLMULQDQ | AVX_VNNI))
}

#[test]
fn agrees_with_silicon() {
    let encodings = compare(wanted);
    assert!(encodings > 400, "{encodings} encodings");
}

/// As on a host that lacks all that hosts may lack.
#[test]
fn helpers_agree_with_silicon() {
    crypto::PLAIN_HOST.set(true);
    let encodings = compare(|code| wanted(code) && is_optional(code));
    crypto::PLAIN_HOST.set(false);
    assert!(encodings >= 15, "{encodings} encodings");
}

/// Compares all encodings that are `wanted`, as far as the host has them. How many there are.
fn compare(wanted: impl Fn(Code) -> bool) -> usize {
    // More on demand: `ORACLE_ROUNDS=1000 cargo test --release agrees_with_silicon`.
    let rounds = std::env::var("ORACLE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let mut guest = GuestCpu::new();
    let mut runner = native::Runner::new();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut encodings, mut left_out) = (0, Vec::new());
    let mut failed = Vec::new();
    for code in Code::values().filter(|&c| wanted(c)) {
        encodings += 1;
        if !host_has(code) {
            println!("skipped: this host lacks {code:?}");
            continue;
        }
        for round in 0..rounds {
            let Some(i) = build(code, &mut random) else {
                left_out.push(code);
                break;
            };
            let bytes = encode(&i);
            let start = random.state();
            let mut native_state = start.clone();
            let data = native_state.data.as_ptr() as u64;
            (native_state.gpr[4], native_state.gpr[5]) = (data, data);
            runner = runner.run(&mut native_state, &bytes);
            let mut guest_state = start.clone();
            (guest_state.gpr[4], guest_state.gpr[5]) = (DATA, DATA);
            let completed = guest.run(&mut guest_state, &bytes);
            normalise(&mut native_state);
            normalise(&mut guest_state);
            if completed && native_state == guest_state {
                continue;
            }
            let mut text = format!("{code:?} {i} round {round}: completed {completed}\n");
            describe(&mut text, &start, &native_state, &guest_state);
            failed.push((code, text));
            break;
        }
    }
    assert!(left_out.is_empty(), "operands not made: {left_out:?}");
    let texts: String = failed.iter().take(12).map(|(_, t)| t.as_str()).collect();
    let codes: Vec<_> = failed.iter().map(|(c, _)| c).collect();
    assert!(failed.is_empty(), "{} of {encodings} encodings differ: {codes:?}\n{texts}", failed.len());
    encodings
}

/// Start, native and guest values of what differs.
fn describe(text: &mut String, start: &State, native: &State, guest: &State) {
    use std::fmt::Write;
    let mut line = |name: &str, s: &[u8], n: &[u8], g: &[u8]| {
        let hex = |b: &[u8]| b.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
        let mark = if n == g { ' ' } else { '*' };
        let _ = writeln!(text, "{mark} {name:8} start {} native {} guest {}", hex(s), hex(n), hex(g));
    };
    line("fcw,fsw", &start.fx[..5], &native.fx[..5], &guest.fx[..5]);
    line("mxcsr", &start.fx[24..28], &native.fx[24..28], &guest.fx[24..28]);
    for n in 0..8 {
        let at = 32 + 16 * n..32 + 16 * n + 10;
        line(&format!("st{n}"), &start.fx[at.clone()], &native.fx[at.clone()], &guest.fx[at]);
    }
    for n in 0..16 {
        let at = 160 + 16 * n..176 + 16 * n;
        if native.fx[at.clone()] != guest.fx[at.clone()] {
            line(&format!("xmm{n}"), &start.fx[at.clone()], &native.fx[at.clone()], &guest.fx[at]);
        }
    }
    for n in 0..DATA_BYTES / 16 {
        let at = 16 * n..16 * n + 16;
        if native.data[at.clone()] != guest.data[at.clone()] {
            line(&format!("+{n:#x}0"), &start.data[at.clone()], &native.data[at.clone()], &guest.data[at]);
        }
    }
    for (n, name) in ["rax", "rcx", "rdx", "rbx"].into_iter().enumerate() {
        line(name, &start.gpr[n].to_le_bytes(), &native.gpr[n].to_le_bytes(), &guest.gpr[n].to_le_bytes());
    }
    line("flags", &start.rflags.to_le_bytes(), &native.rflags.to_le_bytes(), &guest.rflags.to_le_bytes());
}

/// Exceptions: what raises which, with the state as it was before the instruction.
mod exceptions {
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
        let mut state = State { fx: [0; 512], data: [0; DATA_BYTES], gpr: [0; 6], rflags: 0 };
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
        if guest.run(&mut state, &code) {
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
}
