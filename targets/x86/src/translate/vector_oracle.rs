//! SSE, AVX, MMX and x87 instructions against the silicon.
//!
//! Every encoding of these families that needs no privilege is built with random operands and run twice from the same
//! random state: natively, and by the whole translator in a guest in 64-bit mode. Registers (all of YMM's bits), flags,
//! MXCSR, the x87 unit and memory must agree. Memory operands lie in one page of the guest's, or across two. Exceptions are
//! masked; `exceptions` has those.

use std::sync::Arc;

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Op, OpKind,
    Register,
};
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{Options, Vcpu};

use crate::guest::X86;
use crate::helpers::x87_image;
use crate::state::{Cr0, Cr4, Efer, Segment, VecReg, X86Env, pack_flags, reg, seg, unpack_flags};
use crate::system::exit;
use crate::testing::{NoPlatform, Ram, Rng};
use crate::translate::crypto;

#[path = "vector_exceptions.rs"]
mod exceptions;
#[path = "vector_operands.rs"]
mod operands;

use operands::{build, limit_indices, state};

const CODE: u64 = 0x1_0000;
/// Where the data is: in one page, or across the border of two, which lies in its middle.
const DATA: u64 = 0x2_0000;
const DATA_ACROSS: u64 = 0x2_3000 - DATA_BYTES as u64 / 2;
const DATA_BYTES: usize = 256;

/// What an instruction can see and change.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Debug)]
struct State {
    fx: [u8; 512],
    data: [u8; DATA_BYTES],
    /// Upper halves of the YMM registers.
    high: [[u64; 2]; 16],
    /// RAX, RCX, RDX, RBX, RSI, RDI; the last two point to `data`.
    gpr: [u64; 6],
    rflags: u64,
}

impl State {
    const ZERO: State =
        State { fx: [0; 512], data: [0; DATA_BYTES], high: [[0; 2]; 16], gpr: [0; 6], rflags: 0 };

    /// Writes word `at` of YMM register `n`.
    fn set_word(&mut self, n: usize, at: usize, v: u64) {
        match at {
            0 | 1 => self.fx[160 + 16 * n + 8 * at..][..8].copy_from_slice(&v.to_le_bytes()),
            _ => self.high[n][at - 2] = v,
        }
    }
}

const GPRS: [usize; 6] = [reg::RAX, reg::RCX, reg::RDX, reg::RBX, reg::RSI, reg::RDI];
const ARITHMETIC: u64 = 0x8d5;

/// Runs machine code natively.
mod native {
    use super::State;

    /// Code that loads the state, runs `code`, saves the state.
    pub struct Runner(Option<memmap2::MmapMut>);

    impl Runner {
        pub fn new() -> Runner {
            Runner(Some(memmap2::MmapMut::map_anon(4096).expect("an anonymous page")))
        }

        pub fn run(&mut self, state: &mut State, code: &[u8]) {
            const FX: u32 = std::mem::offset_of!(State, fx) as u32;
            const GPR: u32 = std::mem::offset_of!(State, gpr) as u32;
            const HIGH: u32 = std::mem::offset_of!(State, high) as u32;
            const FLAGS: u32 = std::mem::offset_of!(State, rflags) as u32;
            let mut out = Vec::new();
            // push rbx; push r15; mov r15, rdi
            out.extend([0x53, 0x41, 0x57, 0x49, 0x89, 0xff]);
            let at_r15 = |out: &mut Vec<u8>, opcode: &[u8], reg: u8, disp: u32| {
                out.extend(opcode);
                out.push(0x87 | reg << 3);
                out.extend(disp.to_le_bytes());
            };
            // fxrstor64; vinserti128 ymmN, ymmN, [high], 1; push [flags]; popfq
            at_r15(&mut out, &[0x49, 0x0f, 0xae], 1, FX);
            for n in 0..16u8 {
                let r = (n >> 3 ^ 1) << 7;
                at_r15(&mut out, &[0xc4, r | 0x43, (!n & 15) << 3 | 5, 0x38], n & 7, HIGH + 16 * n as u32);
                out.push(1);
            }
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
            // pushfq; pop [flags]; fxsave64; vextracti128 [high], ymmN, 1; fninit; cld; vzeroupper; pop r15; pop rbx; ret
            out.push(0x9c);
            at_r15(&mut out, &[0x41, 0x8f], 0, FLAGS);
            at_r15(&mut out, &[0x49, 0x0f, 0xae], 0, FX);
            for n in 0..16u8 {
                let r = (n >> 3 ^ 1) << 7;
                at_r15(&mut out, &[0xc4, r | 0x43, 0x7d, 0x39], n & 7, HIGH + 16 * n as u32);
                out.push(1);
            }
            out.extend([0xc5, 0xf8, 0x77]);
            out.extend([0xdb, 0xe3, 0xfc, 0x41, 0x5f, 0x5b, 0xc3]);
            let mut map = self.0.take().expect("put back by the last run");
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
            self.0 = Some(map.make_mut().expect("a writable page"));
        }
    }
}

struct GuestCpu {
    vcpu: Vcpu<X86, X86_64>,
    ram: Arc<Ram>,
}

impl GuestCpu {
    /// A guest at privilege level 0, for code of 64 or 32 bits.
    fn new(bits: u32) -> GuestCpu {
        let ram = Arc::new(Ram::new(2 << 20));
        for (table, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
            ram.write(table, &entry.to_le_bytes());
        }
        let mut env =
            X86Env::new(Box::new(NoPlatform::default()), crate::cpuid::parse("max").expect("a model"));
        env.cr0 = Cr0::PE | Cr0::MP | Cr0::NE | Cr0::ET;
        env.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        env.xcr0 = 7;
        env.cr3 = 0x1000;
        env.seg = [Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 16 }; 8];
        let code = Segment { base: 0, limit: u32::MAX, access: 0xa09b, selector: 8 };
        if bits == 64 {
            env.cr0 |= Cr0::PG;
            env.efer = Efer::LME | Efer::LMA;
            env.seg[seg::CS] = code;
        } else {
            env.seg[seg::CS] = Segment { access: 0xc09b, ..code };
        }
        env.seg_base = [0; 6];
        env.update_mode();
        let options = Options { cache_mib: 8, ..Options::default() };
        let vcpu = Vcpu::new(env, ram.clone(), options).expect("a vCPU");
        GuestCpu { vcpu, ram }
    }

    /// Runs `code` and HLT from `state`, its data being at `data`; false if it raised an exception.
    fn run(&mut self, state: &mut State, data: u64, code: &[u8]) -> bool {
        let mut bytes = code.to_vec();
        bytes.push(0xf4);
        self.ram.write(CODE, &bytes);
        self.ram.write(data, &state.data);
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
            env.vec[n] = VecReg([word(0), word(8), state.high[n][0], state.high[n][1]]);
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
            for (at, word) in env.vec[n].0.into_iter().enumerate() {
                state.set_word(n, at, word);
            }
        }
        self.ram.read(data, &mut state.data);
        ended == exit::HALTED && env.rip == CODE + bytes.len() as u64
    }
}

const FEATURES: [CpuidFeature; 21] = [
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::AVX_VNNI,
    CpuidFeature::F16C,
    CpuidFeature::FMA,
    CpuidFeature::VAES,
    CpuidFeature::VPCLMULQDQ,
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
    if !matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        || !info.mode64()
        || !info.is_instruction()
    {
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
            | Mnemonic::Vldmxcsr
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

fn encode(i: &Instruction, bits: u32) -> Vec<u8> {
    let mut encoder = Encoder::new(bits);
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
    let encodings = compare(64, wanted);
    assert!(encodings > 1000, "{encodings} encodings");
}

/// Code of 32 bits, against the same instructions in native code of 64 bits.
#[test]
fn agrees_with_silicon_in_32_bit_code() {
    let general = |code: Code| {
        let info = code.op_code();
        (0..info.op_count()).any(|n| matches!(info.op_kind(n), Op::r64_reg | Op::r64_rm | Op::r64_or_mem))
    };
    // These clear the registers that there are.
    let clears = |code: Code| matches!(code.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall);
    let encodings =
        compare(32, |code| wanted(code) && code.op_code().mode32() && !general(code) && !clears(code));
    assert!(encodings > 900, "{encodings} encodings");
}

/// As on a host that lacks all that hosts may lack.
#[test]
fn helpers_agree_with_silicon() {
    crypto::PLAIN_HOST.set(true);
    let encodings = compare(64, |code| wanted(code) && is_optional(code));
    crypto::PLAIN_HOST.set(false);
    assert!(encodings >= 15, "{encodings} encodings");
}

/// The instruction with addresses of 64 bits.
fn widened(i: &Instruction) -> Instruction {
    let mut i = *i;
    if i.memory_base() == Register::ESI {
        i.set_memory_base(Register::RSI);
    }
    for n in 0..i.op_count() {
        if i.op_kind(n) == OpKind::MemorySegEDI {
            i.set_op_kind(n, OpKind::MemorySegRDI);
        }
    }
    i
}

/// Compares all encodings that are `wanted`, as far as the host has them, in guest code of `bits` bits. How many there are.
fn compare(bits: u32, wanted: impl Fn(Code) -> bool) -> usize {
    // More on demand: `ORACLE_ROUNDS=1000 cargo test --release agrees_with_silicon`.
    let rounds = std::env::var("ORACLE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let mut guest = GuestCpu::new(bits);
    let mut runner = native::Runner::new();
    let mut random = Rng::new(0x9e37_79b9_7f4a_7c15, 0);
    let (mut encodings, mut left_out) = (0, Vec::new());
    let mut failed = Vec::new();
    for code in Code::values().filter(|&c| wanted(c)) {
        encodings += 1;
        if !host_has(code) {
            println!("skipped: this host lacks {code:?}");
            continue;
        }
        for round in 0..rounds {
            let Some(i) = build(code, bits, &mut random) else {
                left_out.push(code);
                break;
            };
            let mut start = state(&mut random);
            limit_indices(&i, &mut start, &mut random);
            let data = if random.below(2) == 0 { DATA } else { DATA_ACROSS };
            let Some(text) = difference(&mut guest, &mut runner, bits, start, data, &[i]) else { continue };
            failed.push((code, format!("{code:?} round {round}: {text}")));
            break;
        }
    }
    assert!(left_out.is_empty(), "operands not made: {left_out:?}");
    let texts: String = failed.iter().take(12).map(|(_, t)| t.as_str()).collect();
    let codes: Vec<_> = failed.iter().map(|(c, _)| c).collect();
    assert!(failed.is_empty(), "{} of {encodings} encodings differ: {codes:?}\n{texts}", failed.len());
    encodings
}

/// Runs instructions natively and in the guest, with the guest's data at `data`; tells what differs, if anything does.
fn difference(
    guest: &mut GuestCpu,
    runner: &mut native::Runner,
    bits: u32,
    mut start: State,
    data: u64,
    instructions: &[Instruction],
) -> Option<String> {
    if bits == 32 {
        start.gpr = start.gpr.map(|v| v as u32 as u64);
    }
    let mut native_state = start.clone();
    let host_data = native_state.data.as_ptr() as u64;
    (native_state.gpr[4], native_state.gpr[5]) = (host_data, host_data);
    let code: Vec<u8> = instructions.iter().flat_map(|i| encode(&widened(i), 64)).collect();
    runner.run(&mut native_state, &code);
    let mut guest_state = start.clone();
    (guest_state.gpr[4], guest_state.gpr[5]) = (data, data);
    let code: Vec<u8> = instructions.iter().flat_map(|i| encode(i, bits)).collect();
    let completed = guest.run(&mut guest_state, data, &code);
    normalise(&mut native_state);
    normalise(&mut guest_state);
    if completed && native_state == guest_state {
        return None;
    }
    let mut text: String = instructions.iter().map(|i| format!("{i}\n")).collect();
    text += &format!("completed {completed}\n");
    describe(&mut text, &start, &native_state, &guest_state);
    Some(text)
}

/// Sequences of SSE and AVX instructions, whose registers stay in the host's registers from one to the next under both
/// of their names, and are more than the host has.
#[test]
fn sequences_agree_with_silicon() {
    let rounds = std::env::var("ORACLE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30) * 10;
    let mut guest = GuestCpu::new(64);
    let mut runner = native::Runner::new();
    let mut random = Rng::new(0x2545_f491_4f6c_dd1d, 0);
    // Not gathers, whose indices instructions before them would change.
    let is_gather = |code: Code| {
        let info = code.op_code();
        (0..info.op_count()).any(|n| operands::vsib(info.op_kind(n)).is_some())
    };
    let of_registers = |features: &[CpuidFeature]| {
        !features.iter().any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387))
    };
    let codes: Vec<Code> = Code::values()
        .filter(|&c| wanted(c) && host_has(c) && !is_gather(c) && of_registers(c.cpuid_features()))
        .collect();
    for round in 0..rounds {
        let mut instructions = Vec::new();
        for _ in 0..4 + random.below(36) {
            let code = match random.below(24) {
                0 => Code::VEX_Vzeroupper,
                1 => Code::VEX_Vmovdqu_ymm_ymmm256,
                2 => Code::VEX_Vpaddd_ymm_ymm_ymmm256,
                3 => Code::Movdqa_xmm_xmmm128,
                _ => codes[random.below(codes.len())],
            };
            instructions.extend(operands::build_any(code, &mut random));
        }
        let (start, data) = (state(&mut random), if random.below(2) == 0 { DATA } else { DATA_ACROSS });
        let mut differs =
            |n: usize| difference(&mut guest, &mut runner, 64, start.clone(), data, &instructions[..n]);
        if differs(instructions.len()).is_some() {
            let text = (1..=instructions.len()).find_map(&mut differs);
            panic!("round {round}:\n{}", text.unwrap_or_else(|| "differs now and then".into()));
        }
    }
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
        if native.high[n] != guest.high[n] {
            let bytes = |words: [u64; 2]| words.map(u64::to_le_bytes).concat();
            line(&format!("ymm{n}h"), &bytes(start.high[n]), &bytes(native.high[n]), &bytes(guest.high[n]));
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
