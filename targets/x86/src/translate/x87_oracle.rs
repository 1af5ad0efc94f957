//! The x87 unit against the silicon: control words with unmasked exceptions, environments in memory, and what FSTENV and
//! FXSAVE show of the last instruction.
//!
//! A program loads a random state by FXRSTOR, runs one or a few x87 instructions, and stores the state by FXSAVE, which
//! does not wait. The same bytes run natively and in a guest, at the same addresses. An instruction after one that
//! flagged an unmasked exception would trap: only what does not wait may follow.

use std::collections::BTreeMap;
use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{Options, Vcpu};

use super::oracle::number;
use crate::cpuid::Feature;
use crate::guest::X86;
use crate::state::{Cr0, Cr4, Efer, Segment, X86Env, pack_flags, seg, unpack_flags};
use crate::system::exit;
use crate::testing::{NoPlatform, Ram, Rng};

/// Native code runs here, too, so that addresses that instructions store agree.
const CODE: u64 = 0x11_2340;
const DATA: u64 = 0x12_4560;
/// Where native code and data are mapped, and the function that calls the program.
const MAPPED: std::ops::Range<u64> = 0x11_0000..0x13_0000;
const CALLER: u64 = 0x11_f000;
/// In [`Memory`]: state to load, state stored after the program, operands of the program.
const OPERANDS: i32 = 1024;
const ARITHMETIC: u64 = 0x8d5;

#[repr(C, align(64))]
#[derive(Clone, PartialEq, Debug)]
struct Memory([u8; 1536]);

/// The program and what loads and stores the state around it. R15 points to [`Memory`].
fn frame(program: &[u8]) -> Vec<u8> {
    // fxrstor64 [r15]
    let mut code = vec![0x49, 0x0f, 0xae, 0x0f];
    code.extend(program);
    // fxsave64 [r15+512]
    code.extend([0x49, 0x0f, 0xae, 0x87]);
    code.extend(512u32.to_le_bytes());
    code
}

/// Code and data at the guest's addresses.
struct Native;

impl Native {
    /// Maps [`MAPPED`]; `None` if something is there.
    fn new() -> Option<Native> {
        const MMAP: u64 = 9;
        // PROT_READ | PROT_WRITE | PROT_EXEC; MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE.
        let (protection, flags) = (7u64, 0x10_0022u64);
        let mut r = MMAP;
        // SAFETY: the system call maps memory where there is none.
        unsafe {
            std::arch::asm!("syscall", inout("rax") r, in("rdi") MAPPED.start, in("rsi") MAPPED.end - MAPPED.start,
                in("rdx") protection, in("r10") flags, in("r8") u64::MAX, in("r9") 0u64,
                out("rcx") _, out("r11") _);
        }
        if r != MAPPED.start {
            return None;
        }
        // push rbx; push r15; mov r15, DATA; mov rax, CODE; push rdi; popfq; call rax
        let mut code = vec![0x53, 0x41, 0x57, 0x49, 0xbf];
        code.extend(DATA.to_le_bytes());
        code.extend([0x48, 0xb8]);
        code.extend(CODE.to_le_bytes());
        code.extend([0x57, 0x9d, 0xff, 0xd0]);
        // pushfq; pop rax; fninit; cld; pop r15; pop rbx; ret
        code.extend([0x9c, 0x58, 0xdb, 0xe3, 0xfc, 0x41, 0x5f, 0x5b, 0xc3]);
        Native::write(CALLER, &code);
        Some(Native)
    }

    fn write(at: u64, bytes: &[u8]) {
        assert!(MAPPED.contains(&at) && at + (bytes.len() as u64) < MAPPED.end);
        // SAFETY: in the range that `new` mapped.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    /// Runs the frame; the flags.
    fn run(&mut self, memory: &mut Memory, frame: &[u8], flags: u64) -> u64 {
        let mut code = frame.to_vec();
        code.push(0xc3);
        Native::write(CODE, &code);
        Native::write(DATA, &memory.0);
        let mut control = 0u32;
        // SAFETY: the function that `new` assembled keeps to the calling convention but for MXCSR, which is restored here;
        // the program that it calls touches x87 registers, AX and the data alone, which is mapped.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut control);
            let f: extern "C" fn(u64) -> u64 = std::mem::transmute(CALLER as *const u8);
            let flags = f(flags | 0x202);
            std::arch::asm!("ldmxcsr [{}]", in(reg) &control);
            std::ptr::copy_nonoverlapping(DATA as *const u8, memory.0.as_mut_ptr(), memory.0.len());
            flags & ARITHMETIC
        }
    }
}

struct GuestCpu {
    vcpu: Vcpu<X86, X86_64>,
    ram: Arc<Ram>,
}

impl GuestCpu {
    fn new(model: &str) -> GuestCpu {
        let ram = Arc::new(Ram::new(2 << 20));
        for (table, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
            ram.write(table, &entry.to_le_bytes());
        }
        let mut env =
            X86Env::new(Box::new(NoPlatform::default()), crate::cpuid::parse(model).expect("a model"));
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

    /// Runs the frame; the flags, or `None` if it raised an exception.
    fn run(&mut self, memory: &mut Memory, frame: &[u8], flags: u64) -> Option<u64> {
        let mut bytes = frame.to_vec();
        bytes.push(0xf4);
        self.ram.write(CODE, &bytes);
        self.ram.write(DATA, &memory.0);
        self.vcpu.clear_code();
        let env = self.vcpu.env_mut();
        env.gpr[15] = DATA;
        env.halted = false;
        env.shutdown = false;
        env.rip = CODE;
        env.flags = pack_flags(flags);
        self.vcpu.state_changed();
        let ended = self.vcpu.run();
        let env = self.vcpu.env();
        let flags = unpack_flags(env.flags);
        self.ram.read(DATA, &mut memory.0);
        (ended == exit::HALTED && env.rip == CODE + bytes.len() as u64).then_some(flags)
    }
}

fn f80(rng: &mut Rng) -> [u8; 10] {
    let (exponent, mantissa) = match rng.below(10) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63),
        2 => (0x7fff, 3 << 62 | rng.word() >> 2),
        3 => (0x7fff, 1 << 63 | rng.word() >> 2),
        // Denormals and pseudo-denormals.
        4 => (0, rng.word() >> rng.below(2)),
        // Unnormals, pseudo-infinities and whatever else.
        5 => (rng.word() as u16, rng.word()),
        6 => (if rng.below(2) == 0 { 1 } else { 0x7ffe }, 1 << 63 | rng.word()),
        7 => (0x3fff + rng.below(64) as u16, 1 << 63 | rng.word() << rng.below(63)),
        _ => (0x3ff0 + rng.below(32) as u16, 1 << 63 | rng.word()),
    };
    let sign = (rng.word() as u16) & 0x8000;
    let mut v = [0; 10];
    v[..8].copy_from_slice(&mantissa.to_le_bytes());
    v[8..].copy_from_slice(&(exponent & 0x7fff | sign).to_le_bytes());
    v
}

fn memory(rng: &mut Rng) -> Memory {
    let mut m = Memory([0; 1536]);
    let s = &mut m.0;
    let control = 0x40 | (rng.word() as u16) & 0xf3f | if rng.below(3) == 0 { 0x3f } else { 0 };
    s[0..2].copy_from_slice(&control.to_le_bytes());
    // Flags only where they are masked: else the first instruction would trap.
    let status = (rng.word() as u16) & (0x7f40 | control & 0x3f);
    s[2..4].copy_from_slice(&status.to_le_bytes());
    s[4] = match rng.below(4) {
        0 => rng.word() as u8,
        1 => 0xff,
        _ => 0xffu32.wrapping_shl(rng.below(9) as u32) as u8,
    };
    s[6..8].copy_from_slice(&(rng.word() as u16 & 0x7ff).to_le_bytes());
    s[8..16].copy_from_slice(&(rng.word() >> 17).to_le_bytes());
    s[16..24].copy_from_slice(&(rng.word() >> 17).to_le_bytes());
    s[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    for n in 0..8 {
        s[32 + 16 * n..][..10].copy_from_slice(&f80(rng));
    }
    for chunk in s[OPERANDS as usize..].chunks_exact_mut(16) {
        if rng.below(2) == 0 {
            chunk[..10].copy_from_slice(&f80(rng));
        } else {
            chunk[..8].copy_from_slice(&rng.int().to_le_bytes());
            chunk[8..].copy_from_slice(&rng.int().to_le_bytes());
        }
    }
    m
}

/// A random x87 instruction: on registers, or on `[r15 + disp32]`.
fn instruction(rng: &mut Rng) -> (Vec<u8>, Instruction) {
    loop {
        let mut bytes = Vec::new();
        let (escape, modrm) = (0xd8 | rng.word() as u8 & 7, rng.word() as u8);
        if rng.below(2) == 0 {
            if rng.below(8) == 0 {
                bytes.push(0x66);
            }
            bytes.extend([escape, 0xc0 | modrm]);
        } else {
            if rng.below(4) == 0 {
                bytes.push(0x66);
            }
            bytes.extend([0x41, escape, 0x87 | modrm & 0x38]);
            bytes.extend((OPERANDS + rng.below(400) as i32).to_le_bytes());
        }
        let i = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
        // Encodings that iced knows only as aliases, or that the chip does not have, are others' to test.
        if !i.is_invalid() && i.len() == bytes.len() && i.mnemonic() != Mnemonic::Frstpm {
            return (bytes, i);
        }
    }
}

/// Instructions that do not report what is pending.
fn does_not_wait(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(i.mnemonic(), Fninit | Fnclex | Fnstcw | Fnstsw | Fnstenv | Fnsave | Fneni | Fndisi | Fnsetpm)
}

#[test]
fn the_unit_agrees_with_silicon() {
    let cases = number("TESSERA_X87_CASES").unwrap_or(40_000);
    let seed = number("TESSERA_X87_SEED").unwrap_or(7);
    // SAFETY: CPUID exists on every x86-64 CPU.
    #[allow(unused_unsafe)]
    let leaf7 = unsafe { std::arch::x86_64::__cpuid_count(7, 0) }.ebx;
    let mut model = String::from("max");
    for (bit, f) in [(6, Feature::FDP_EXCPTN_ONLY), (13, Feature::ZERO_FCS_FDS)] {
        if leaf7 >> bit & 1 == 0 {
            model.push_str(&format!(",-{}", f.name()));
        }
    }
    let mut rng = Rng::new(seed, 0);
    let Some(mut native) = Native::new() else {
        println!("skipped: the addresses {MAPPED:x?} are taken");
        return;
    };
    let mut guest = GuestCpu::new(&model);
    let mut unmasked = 0;
    // One of each last instruction tells more than the first of all.
    let mut failures = BTreeMap::new();
    for case in 0..cases {
        let start = memory(&mut rng);
        let mut program = Vec::new();
        let mut listing = Vec::new();
        let (bytes, first) = instruction(&mut rng);
        program.extend(&bytes);
        listing.push(first);
        for _ in 0..rng.below(3) {
            let (bytes, next) = instruction(&mut rng);
            if does_not_wait(&next) {
                program.extend(&bytes);
                listing.push(next);
            }
        }
        let code = frame(&program);
        let flags = rng.word() & ARITHMETIC;
        let mut expect = start.clone();
        let expect_flags = native.run(&mut expect, &code, flags);
        let mut got = start.clone();
        let got_flags = guest.run(&mut got, &code, flags);
        let words = |m: &Memory| {
            let part = &m.0[512..512 + 160];
            let operands = m.0[OPERANDS as usize..].iter().zip(&start.0[OPERANDS as usize..]).enumerate();
            let changed: Vec<_> =
                operands.filter(|(_, (a, b))| a != b).map(|(n, (a, _))| format!("{n:x}:{a:02x}")).collect();
            let lines: Vec<_> = part.chunks(16).map(|c| format!("{c:02x?}")).collect();
            format!("{}\n    operands {}", lines.join("\n    "), changed.join(" "))
        };
        let show = || {
            let text: Vec<_> = listing.iter().map(|i| i.to_string()).collect();
            format!(
                "case {case}, seed {seed}: {} ({program:02x?})\n from\n    {}\n silicon, flags {expect_flags:#x}\n    {}\n ours, flags {got_flags:x?}\n    {}",
                text.join("; "),
                words(&Memory(std::array::from_fn(
                    |n| start.0[if (512..1024).contains(&n) { n - 512 } else { n }]
                ))),
                words(&expect),
                words(&got)
            )
        };
        unmasked += (expect.0[515] >> 7) as u32;
        if got.0[512..] != expect.0[512..] || got_flags != Some(expect_flags) {
            failures.entry(format!("{:?}", listing[listing.len() - 1].code())).or_insert_with(show);
        }
    }
    let stories: Vec<_> = failures.values().take(6).map(String::as_str).collect();
    let names: Vec<_> = failures.keys().collect();
    assert!(failures.is_empty(), "{}\n{names:?}", stories.join("\n"));
    assert!(unmasked as u64 > cases / 50, "unmasked exceptions are part of it: {unmasked}");
}
