//! The silicon as oracle of the whole engine: random sequences with branches, stack use and a loop run natively and on a
//! vCPU (front end, optimiser, code generation, softmmu, chaining), and must leave the same registers, flags and memory.
//!
//! What [`oracle`](super::oracle) checks instruction by instruction is combined here; instructions after which the manual
//! leaves a flag undefined are followed by a comparison, so that nothing undefined is looked at. `TESSERA_ORACLE_CASES` (default
//! 2000) and `TESSERA_ORACLE_SEED` as there.

use std::sync::Arc;

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{Options, Vcpu};
use tessera_tcg::guest::{BlockKey, Guest};
use tessera_tcg::memory::{PhysMemory, RamPage};

use super::oracle::{BUFFER, CODE_AT, FLAGS, Native, Regs, host_has_all, is_testable, number, random_bytes};
use crate::guest::X86;
use crate::state::{Cr0, Cr4, Efer, RFlags, Segment, X86Env, mode, pack_flags, reg, unpack_flags};
use crate::system::exit;
use crate::testing::{NoPlatform, Rng};

const RAM: usize = 4 << 20;
const CODE_PHYS: u64 = 0x10_0000;
const BUFFER_PHYS: u64 = 0x20_0000;
const STACK_PHYS: u64 = 0x30_0000;
const STACK_TOP: u64 = 0x7000_1000;

/// RAM from address 0.
struct Ram(memmap2::MmapRaw);

impl Ram {
    fn bytes(&self, phys: u64, len: usize) -> &[u8] {
        assert!(phys as usize + len <= RAM);
        // SAFETY: in bounds, as just checked, and the vCPU, which runs on this thread, is not running.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(phys as usize), len) }
    }

    fn write(&self, phys: u64, bytes: &[u8]) {
        assert!(phys as usize + bytes.len() <= RAM);
        // SAFETY: as above; nothing refers to the bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_mut_ptr().add(phys as usize), bytes.len())
        };
    }

    /// Maps a page in 4-level tables at 1000h, taking table pages from `next`.
    fn map(&self, next: &mut u64, va: u64, phys: u64) {
        let mut table = 0x1000;
        for level in [39, 30, 21] {
            let slot = table + (va >> level & 511) * 8;
            let mut entry = u64::from_le_bytes(self.bytes(slot, 8).try_into().unwrap());
            if entry == 0 {
                entry = *next | 7;
                *next += 0x1000;
                self.write(slot, &entry.to_le_bytes());
            }
            table = entry & !0xfff;
        }
        self.write(table + (va >> 12 & 511) * 8, &(phys | 7).to_le_bytes());
    }
}

impl PhysMemory for Ram {
    fn ram_page(&self, phys: u64) -> Option<RamPage> {
        let page = (phys & !0xfff) as usize;
        (page < RAM).then(|| RamPage { host: self.0.as_mut_ptr().wrapping_add(page), writable: true })
    }
    fn mmio_read(&self, _: u64, _: u32) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: u64, _: u32, _: u64) {}
}

fn long_mode(env: &mut X86Env) {
    env.cr0 = Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET;
    env.cr3 = 0x1000;
    env.cr4 = Cr4::PAE | Cr4::OSFXSR;
    env.efer = Efer::LME | Efer::LMA | Efer::NXE;
    env.eflags = RFlags::ONE.bits();
    for s in &mut env.seg[..6] {
        *s = Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 0x10 };
    }
    env.seg_base = [0; 6];
    env.seg[crate::state::seg::CS] = Segment { base: 0, limit: u32::MAX, access: 0xa09b, selector: 8 };
    env.update_mode();
}

/// Whether an instruction can be part of a sequence: no faults, and the pointer, counter and stack registers stay.
fn is_composable(i: &Instruction, info: &mut InstructionInfoFactory) -> bool {
    use Mnemonic::*;
    if !is_testable(i) || matches!(i.mnemonic(), Div | Idiv | Bsf | Bsr) {
        return false;
    }
    if i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register
        && matches!(i.mnemonic(), Bt | Bts | Btr | Btc)
    {
        return false;
    }
    info.info(i).used_registers().iter().all(|used| {
        let kept = matches!(used.register().full_register(), Register::RDI | Register::R15);
        !kept || matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
    })
}

/// A sequence, and its instructions as text.
fn sequence(rng: &mut Rng, info: &mut InstructionInfoFactory) -> Vec<u8> {
    let mut code = Vec::new();
    let mut bytes = Vec::new();
    let length = 1 + rng.below(16);
    for _ in 0..length {
        let i = loop {
            random_bytes(rng, &mut bytes);
            let i = Decoder::with_ip(64, &bytes, CODE_AT, DecoderOptions::NONE).decode();
            if is_composable(&i, info) {
                break i;
            }
        };
        let mut one = bytes[..i.len()].to_vec();
        if i.rflags_undefined() != 0 {
            one.extend([0x48, 0x39, 0xc8]); // cmp rax, rcx
        }
        match rng.below(8) {
            // Over it, if a condition holds.
            0 => code.extend([0x70 | rng.word() as u8 & 15, one.len() as u8]),
            1 => {
                // Through the stack.
                let (from, to) = (rng.below(4) as u8, rng.below(4) as u8);
                code.extend([0x50 | from, 0x58 | to]);
            }
            2 => string(rng, &mut code),
            _ => {}
        }
        code.extend(one);
    }
    // cmp rax, rcx; dec r15; jnz to the start
    code.extend([0x48, 0x39, 0xc8, 0x49, 0xff, 0xcf, 0x0f, 0x85]);
    let back = -(code.len() as i32 + 4);
    code.extend(back.to_le_bytes());
    code
}

/// A string instruction, mostly repeated, over overlapping parts of the buffer, in either direction.
fn string(rng: &mut Rng, code: &mut Vec<u8>) {
    // push rdi; lea rsi, [rdi + disp32]
    code.extend([0x57, 0x48, 0x8d, 0xb7]);
    code.extend((rng.below(0x4000) as i32 - 0x2000).to_le_bytes());
    if rng.below(2) == 0 {
        // lea rdi, [rdi + disp32]
        code.extend([0x48, 0x8d, 0xbf]);
        code.extend((rng.below(0x4000) as i32 - 0x2000).to_le_bytes());
    } else {
        // lea rdi, [rsi + disp8]
        code.extend([0x48, 0x8d, 0x7e, rng.word() as u8]);
    }
    // mov ecx, imm32
    code.push(0xb9);
    code.extend((rng.below(900) as u32).to_le_bytes());
    let backward = rng.below(4) == 0;
    if backward {
        code.push(0xfd);
    }
    match rng.below(8) {
        0 => {}
        1 | 2 => code.push(0xf2),
        _ => code.push(0xf3),
    }
    if rng.below(2) == 0 {
        code.push(0x48);
    }
    code.push([0xa4, 0xa5, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf][rng.below(12)]);
    if backward {
        code.push(0xfc);
    }
    code.push(0x5f); // pop rdi
}

#[test]
fn engine_agrees_with_silicon() {
    if !host_has_all() {
        println!("skipped: this host lacks BMI2, ADX, LZCNT or MOVBE");
        return;
    }
    let cases = number("TESSERA_ORACLE_CASES").unwrap_or(2000);
    let seed = number("TESSERA_ORACLE_SEED").unwrap_or(1);
    let mut rng = Rng::new(seed, 0);
    let mut info = InstructionInfoFactory::new();
    let mut native = Native::new();
    let mut buffer = memmap2::MmapMut::map_anon(BUFFER).unwrap();

    let ram = Arc::new(Ram(memmap2::MmapOptions::new().len(RAM).map_anon().unwrap().into()));
    let mut next = 0x2000;
    ram.map(&mut next, CODE_AT, CODE_PHYS);
    ram.map(&mut next, STACK_TOP - 0x1000, STACK_PHYS);
    for offset in (0..BUFFER as u64).step_by(4096) {
        ram.map(&mut next, buffer.as_ptr() as u64 + offset, BUFFER_PHYS + offset);
    }
    let cpuid = crate::cpuid::parse("max").unwrap();
    let mut env = X86Env::new(Box::new(NoPlatform::default()), cpuid);
    long_mode(&mut env);
    let options = Options { cache_mib: 16, ..Options::default() };
    let memory: Arc<dyn PhysMemory> = ram.clone();
    let mut vcpu = Vcpu::<X86, X86_64>::new(env, memory, options).unwrap();
    vcpu.state_changed();

    for case in 0..cases {
        let code = sequence(&mut rng, &mut info);
        let window = 0..BUFFER;
        let varied = BUFFER / 2 - 128..BUFFER / 2 + 192;
        for b in &mut buffer[varied.clone()] {
            *b = rng.int() as u8;
        }
        let mut regs = Regs { flags: rng.word() & FLAGS, gpr: std::array::from_fn(|_| rng.int()) };
        regs.gpr[reg::RDI] = buffer.as_ptr() as u64 + BUFFER as u64 / 2;
        regs.gpr[15] = 1 + rng.below(3) as u64;
        regs.gpr[reg::RSP] = STACK_TOP - 64;

        let mut guest_code = code.clone();
        guest_code.push(0xf4);
        ram.write(CODE_PHYS, &guest_code);
        vcpu.remote().written(CODE_PHYS, 4096);
        ram.write(BUFFER_PHYS + window.start as u64, &buffer[window.clone()]);
        let env = vcpu.env_mut();
        env.gpr = regs.gpr;
        env.flags = pack_flags(regs.flags);
        env.rip = CODE_AT;
        env.halted = false;
        env.shutdown = false;
        let code_of_exit = vcpu.run();

        let mut expect = regs.clone();
        native.run(&code, &mut expect);
        let env = vcpu.env();
        let ours = Regs { flags: unpack_flags(env.flags) & FLAGS, gpr: env.gpr };
        let guest_buffer = ram.bytes(BUFFER_PHYS + window.start as u64, window.len());
        if code_of_exit == exit::HALTED && ours == expect && guest_buffer == &buffer[window.clone()] {
            continue;
        }
        let mut at = 0;
        while at < code.len() {
            let key = BlockKey::new(CODE_AT, mode::CODE64);
            let (text, len) = X86::disassemble(key, CODE_AT + at as u64, &code[at..]);
            println!("  {:x} {text}", CODE_AT + at as u64);
            at += len;
        }
        println!("from    {regs:x?}\nsilicon {expect:x?}\nours    {ours:x?}");
        for (n, (a, b)) in guest_buffer.iter().zip(&buffer[window.clone()]).enumerate() {
            if a != b {
                println!("memory at RDI{:+}: ours {a:x}, silicon {b:x}", n as i64 - BUFFER as i64 / 2);
            }
        }
        panic!("case {case} of seed {seed} differs; exit {code_of_exit}, rip {:x}", env.rip);
    }
}
