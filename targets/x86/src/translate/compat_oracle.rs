//! The silicon as oracle in 32-bit code: integer instructions with random operands, and decimal adjustment and SALC for all
//! values of AL, run in compatibility mode. All flags are compared on Intel hosts, those that the manual leaves
//! undefined, too.
//!
//! A 64-bit Linux process may call the kernel's 32-bit code segment. What it needs there is below 4 GiB ([`Native`]): a
//! stub in 64-bit code that switches stacks and calls far, and 32-bit code that loads flags and registers, runs the
//! instruction, stores them and returns far.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use tessera_tcg::interp::{self, End};

use super::oracle::{
    CODE_AT, FLAGS, Model, Regs, environment, guest_info, host_has_all, host_is_intel, is_testable_with,
    number, random_bytes, translate,
};
use crate::state::{X86Env, mode, pack_flags, reg, unpack_flags};
use crate::testing::Rng;

/// Linux's selectors of flat 32-bit code and data for programs.
const CODE32: u16 = 0x23;
const DATA32: u32 = 0x2b;

const PAGE: u32 = 4096;
/// Pages: code, data, stack, two for memory operands.
const PAGES: u32 = 5;
/// In the code page: the 32-bit part.
const CODE32_AT: u32 = 1024;
/// In the data page: registers, flags, the host's RSP, the far pointer to the 32-bit code.
const GPR: u32 = PAGE;
const EFLAGS: u32 = PAGE + 32;
const SAVED_RSP: u32 = PAGE + 40;
const FAR_POINTER: u32 = PAGE + 48;
const STACK_TOP: u32 = 3 * PAGE - 64;
const BUFFER: u32 = 3 * PAGE;
const BUFFER_BYTES: usize = 2 * PAGE as usize;

/// Memory below 4 GiB and the code in it.
struct Native {
    base: u32,
}

impl Native {
    fn new() -> Native {
        /// Linux on x86-64: within the first 2 GiB.
        const MAP_32BIT: MapFlags = MapFlags::from_bits_retain(0x40);
        let bytes = (PAGES * PAGE) as usize;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory, wherever there is some.
        let at =
            unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::PRIVATE | MAP_32BIT) };
        let base = u32::try_from(at.expect("memory") as usize).expect("it is below 4 GiB");
        let native = Native { base };
        let mut pointer = (base + CODE32_AT).to_le_bytes().to_vec();
        pointer.extend(CODE32.to_le_bytes());
        native.write(FAR_POINTER, &pointer);
        native.write(0, &native.stub());
        native
    }

    fn address(&self, offset: u32) -> *mut u8 {
        (self.base + offset) as usize as *mut u8
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        assert!(offset as usize + bytes.len() <= (PAGES * PAGE) as usize);
        // SAFETY: within the mapping, which this value owns and which is writable while it is written to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address(offset), bytes.len()) };
    }

    fn read(&self, offset: u32, bytes: &mut [u8]) {
        assert!(offset as usize + bytes.len() <= (PAGES * PAGE) as usize);
        // SAFETY: within the mapping, which this value owns.
        unsafe { std::ptr::copy_nonoverlapping(self.address(offset), bytes.as_mut_ptr(), bytes.len()) };
    }

    /// 64-bit code: a function of the C calling convention.
    fn stub(&self) -> Vec<u8> {
        let absolute = |offset: u32| (self.base + offset).to_le_bytes();
        let mut c = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
        c.extend([0x48, 0x89, 0x24, 0x25]); // mov [saved], rsp
        c.extend(absolute(SAVED_RSP));
        c.push(0xbc); // mov esp, top of the stack
        c.extend(absolute(STACK_TOP));
        c.extend([0xff, 0x1c, 0x25]); // call far [pointer]
        c.extend(absolute(FAR_POINTER));
        c.extend([0x48, 0x8b, 0x24, 0x25]); // mov rsp, [saved]
        c.extend(absolute(SAVED_RSP));
        c.extend([0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
        c
    }

    /// Makes `instruction` what [`Native::run`] runs.
    fn load(&self, instruction: &[u8]) {
        let absolute = |offset: u32| (self.base + offset).to_le_bytes();
        let mut c = vec![0xb8]; // mov eax, selector; mov ds, eax; mov es, eax
        c.extend(DATA32.to_le_bytes());
        c.extend([0x8e, 0xd8, 0x8e, 0xc0]);
        c.extend([0xff, 0x35]); // push [flags]; popfd
        c.extend(absolute(EFLAGS));
        c.push(0x9d);
        let registers = || (0..8u8).filter(|&n| n as usize != reg::RSP);
        for n in registers() {
            c.extend([0x8b, 5 | n << 3]); // mov r, [place]
            c.extend(absolute(GPR + 4 * n as u32));
        }
        c.extend(instruction);
        for n in registers() {
            c.extend([0x89, 5 | n << 3]); // mov [place], r
            c.extend(absolute(GPR + 4 * n as u32));
        }
        c.extend([0x9c, 0x8f, 0x05]); // pushfd; pop [flags]; retf
        c.extend(absolute(EFLAGS));
        c.push(0xcb);
        let protect = |access| {
            // SAFETY: the first page of the mapping, in which nothing runs now.
            unsafe { mprotect(self.address(0).cast(), PAGE as usize, access) }.expect("the page is there");
        };
        protect(MprotectFlags::READ | MprotectFlags::WRITE);
        self.write(CODE32_AT, &c);
        protect(MprotectFlags::READ | MprotectFlags::EXEC);
    }

    /// Runs the instruction on these registers (RSP is not touched) and flags.
    fn run(&self, regs: &mut Regs) {
        for (n, v) in regs.gpr[..8].iter().enumerate() {
            self.write(GPR + 4 * n as u32, &(*v as u32).to_le_bytes());
        }
        self.write(EFLAGS, &(regs.flags as u32 | 0x202).to_le_bytes());
        // SAFETY: the stub keeps to the C calling convention; the instruction under test was chosen to touch general
        // registers, flags and the buffer alone. DS and ES are different afterwards, which 64-bit code ignores.
        unsafe { std::mem::transmute::<*const u8, extern "C" fn()>(self.address(0))() };
        let word = |offset: u32| {
            let mut bytes = [0; 4];
            self.read(offset, &mut bytes);
            u32::from_le_bytes(bytes) as u64
        };
        for n in (0..8).filter(|&n| n != reg::RSP) {
            regs.gpr[n] = word(GPR + 4 * n as u32);
        }
        regs.flags = word(EFLAGS) & FLAGS;
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        unsafe { munmap(self.address(0).cast(), (PAGES * PAGE) as usize) }.expect("it is mapped");
    }
}

fn environment32() -> Box<X86Env> {
    let mut env = environment();
    env.mode = mode::CODE32 | mode::STACK32 | mode::PROTECTED;
    env
}

#[test]
fn decimal_instructions_agree_with_silicon() {
    let mut instructions: Vec<Vec<u8>> = [0x27, 0x2f, 0x37, 0x3f, 0xd6].map(|b| vec![b]).into();
    for base in [1, 7, 10, 16, 0x80, 0xff] {
        instructions.extend([vec![0xd4, base], vec![0xd5, base]]);
    }
    instructions.push(vec![0xd5, 0]);
    let native = Native::new();
    let mut env = environment32();
    let guest = guest_info();
    let mut rng = Rng::new(1, 0);
    let mut differ = String::new();
    for code in instructions.iter().filter(|_| host_is_intel()) {
        native.load(code);
        let block = translate(&env, code);
        let (mut flags_differ, mut example) = (0, None);
        for case in 0..256 * 5 * 4 {
            let ah = [0, 1, 5, 0x99, 0xff][case / 256 % 5];
            let eax = rng.word() & 0xffff_0000 | ah << 8 | case as u64 & 0xff;
            let mut regs = Regs { flags: rng.word() & FLAGS, gpr: [0; 16] };
            regs.gpr[reg::RAX] = eax;
            env.gpr = regs.gpr;
            env.flags = pack_flags(regs.flags);
            let start = regs.clone();
            let end = interp::run(&block, &guest, &mut Model::without_memory(&mut env));
            assert!(
                matches!(end, End::Exit(x) if block.exits[x.0 as usize].pc == CODE_AT + code.len() as u64)
            );
            native.run(&mut regs);
            let ours = (env.gpr[reg::RAX], unpack_flags(env.flags) & FLAGS);
            let theirs = (regs.gpr[reg::RAX], regs.flags);
            if ours != theirs {
                flags_differ |= ours.1 ^ theirs.1;
                example.get_or_insert((start.gpr[reg::RAX], start.flags, ours, theirs));
            }
        }
        if let Some(example) = example {
            differ += &format!("{code:02x?}: flags {flags_differ:#x}, from {example:x?}\n");
        }
    }
    assert!(differ.is_empty(), "{differ}");
}

/// What is under test here beside what is in 64-bit code.
const OTHERS: &[Mnemonic] = &[
    Mnemonic::Daa,
    Mnemonic::Das,
    Mnemonic::Aaa,
    Mnemonic::Aas,
    Mnemonic::Aam,
    Mnemonic::Aad,
    Mnemonic::Salc,
];

#[test]
fn integer_instructions_agree_with_silicon() {
    let cases = number("TESSERA_ORACLE_CASES").unwrap_or(10_000);
    let seed = number("TESSERA_ORACLE_SEED").unwrap_or(1);
    if !host_has_all() || !host_is_intel() {
        println!("skipped: this host lacks BMI2, ADX, LZCNT or MOVBE, or is not Intel's");
        return;
    }
    let native = Native::new();
    let mut env = environment32();
    let guest = guest_info();
    let mut rng = Rng::new(seed, 0);
    let mut bytes = Vec::new();
    let buffer = (native.base + BUFFER) as u64;
    let mut done = 0;
    while done < cases {
        random_bytes(&mut rng, &mut bytes);
        let i = Decoder::with_ip(32, &bytes, CODE_AT, DecoderOptions::NONE).decode();
        let bits = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        let by_register =
            bits && i.op0_kind() == OpKind::Memory && i.op1_register().full_register() == Register::RDI;
        // Code is not writable here.
        let in_code = i.memory_segment() == Register::CS;
        if by_register || in_code || !is_testable_with(&i, Register::EDI, OTHERS) {
            continue;
        }
        done += 1;
        let code = &bytes[..i.len()];
        let mut regs =
            Regs { flags: rng.word() & FLAGS, gpr: std::array::from_fn(|_| rng.int() as u32 as u64) };
        regs.gpr[8..].fill(0);
        regs.gpr[reg::RDI] = buffer + BUFFER_BYTES as u64 / 2;
        if bits && i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register {
            // Offsets within the buffer, of either sign.
            let n = super::operand::register_number(i.op1_register());
            regs.gpr[n] = ((rng.word() & 0xfff) as i32 - 0x800) as u32 as u64;
        }
        let start = regs.clone();
        let before: Vec<u8> = (0..BUFFER_BYTES).map(|_| rng.int() as u8).collect();
        env.gpr = regs.gpr;
        env.flags = pack_flags(regs.flags);
        let block = translate(&env, code);
        let mut model = Model { env: &mut env, base: buffer, memory: before.clone() };
        let end = interp::run(&block, &guest, &mut model);
        let memory = std::mem::take(&mut model.memory);
        let show = || format!("{i} ({code:02x?}), seed {seed}\nfrom {start:x?}\n{:#?}", block.insts);
        if let End::Fault(e) = end {
            // Natively this would be SIGFPE.
            let division = matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Aam);
            assert!(division && e.vector == 0, "{e:?} of {}", show());
            continue;
        }
        native.load(code);
        native.write(BUFFER, &before);
        native.run(&mut regs);
        let mut after = vec![0; BUFFER_BYTES];
        native.read(BUFFER, &mut after);
        let ours = unpack_flags(env.flags) & FLAGS;
        assert_eq!(ours, regs.flags, "flags: ours {ours:#x}, silicon {:#x}: {}", regs.flags, show());
        assert!(env.gpr == regs.gpr, "registers: ours {:x?}, silicon {:x?}: {}", env.gpr, regs.gpr, show());
        assert!(memory == after, "memory: {}", show());
    }
}
