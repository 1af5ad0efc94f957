//! The small machine with a whole vCPU: guest code runs through front end, optimiser, generated code and software MMU.
//!
//! Every vector has a handler that halts. A test runs code until something halts, and looks; it goes on behind an exception
//! with [`Machine::resume`], which does what IRET does.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{Options, Vcpu};

use super::*;
use crate::system::{dump, exit, iret};

pub(super) type Engine = Vcpu<X86, X86_64>;

/// Where tests put their code.
pub(super) const CODE: u64 = 0x4000;
/// Top of the stack that exceptions are delivered on in long mode.
const TRAP_STACK: u64 = 0xe000;
/// Pages for what tests access; mapped like all others.
pub(super) const PAGES: u64 = 0x10_0000;
/// Page table entries of the first 2 MiB, in long mode.
pub(super) const PTES: u64 = TABLES + 0x3000;

impl Processor for Engine {
    fn new(env: Box<X86Env>, ram: Arc<Ram>) -> Self {
        // What is executed twice becomes a trace.
        let options = Options { cache_mib: 8, hot: 0, ..Options::default() };
        Vcpu::new(env, ram, options).expect("a small code cache")
    }
    fn env(&mut self) -> &mut X86Env {
        self.env_mut()
    }
}

/// An exception as its handler finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trap {
    pub vector: u64,
    pub error: Option<u64>,
    pub ip: u64,
    pub flags: u64,
    pub sp: u64,
}

impl Trap {
    pub fn at(self) -> (u64, u64) {
        (self.vector, self.ip)
    }
}

impl Machine<Engine> {
    /// Long mode, CPL 0, with handlers that halt on a stack of their own.
    pub fn ready_long() -> Self {
        Self::ready_long_with(Cr4::empty())
    }

    /// The same with these bits of CR4.
    pub fn ready_long_with(cr4: Cr4) -> Self {
        let mut m = Self::long_with(cr4);
        m.put(TSS + 36, 8, TRAP_STACK);
        for v in 0..32 {
            m.gate(v, 0xee, CODE64, HANDLER + v, 1);
            m.put(HANDLER + v, 1, 0xf4);
        }
        m.processor.state_changed();
        m
    }

    /// 32-bit protected mode without paging, CPL 0, with handlers that halt.
    pub fn ready_protected() -> Self {
        let mut m = Self::protected();
        for v in 0..32 {
            m.gate(v, 0xee, CODE32, HANDLER + v, 0);
            m.put(HANDLER + v, 1, 0xf4);
        }
        m.processor.state_changed();
        m
    }

    /// The same with paging: two levels, first 4 MiB mapped to themselves for everybody.
    pub fn ready_paged() -> Self {
        let mut m = Self::ready_protected();
        m.put(TABLES, 4, PTES | 7);
        for n in 0..1024 {
            m.put(PTES + 4 * n, 4, n << 12 | 7);
        }
        let e = m.env();
        control::write_cr3(e, TABLES).expect("allowed");
        let cr0 = e.cr0.bits();
        control::write_cr0(e, cr0 | Cr0::PG.bits()).expect("allowed");
        m
    }

    /// Assembles to [`CODE`], with a HLT behind it; the address behind each instruction.
    pub fn assemble(
        &mut self,
        bits: u32,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Vec<u64> {
        let mut a = CodeAssembler::new(bits).expect("a bitness that exists");
        write(&mut a).expect("instructions that exist");
        a.hlt().expect("exists");
        let mut ends = Vec::new();
        let code = a.assemble(CODE).expect("encodes");
        let mut decoder = iced_x86::Decoder::with_ip(bits, &code, CODE, iced_x86::DecoderOptions::NONE);
        while decoder.can_decode() {
            ends.push(decoder.decode().next_ip());
        }
        self.code(&code);
        ends
    }

    /// Assembles 64-bit code to an address.
    pub fn place(&mut self, at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let mut a = CodeAssembler::new(64).expect("a bitness that exists");
        write(&mut a).expect("instructions that exist");
        for (n, b) in a.assemble(at).expect("encodes").into_iter().enumerate() {
            self.put(at + n as u64, 1, b.into());
        }
    }

    /// Puts bytes at [`CODE`] and goes there.
    pub fn code(&mut self, code: &[u8]) {
        for (n, b) in code.iter().enumerate() {
            self.put(CODE + n as u64, 1, *b as u64);
        }
        self.processor.clear_code();
        let env = self.env();
        env.set_ip(CODE);
        env.halted = false;
        env.update_mode();
    }

    /// Runs until something halts: an exception's handler, or (`None`) the code itself.
    pub fn go(&mut self) -> Option<Trap> {
        let code = self.processor.run();
        let env = self.env();
        assert_eq!(code, exit::HALTED, "{}", dump(env));
        env.halted = false;
        let ip = env.ip();
        let vector = ip.wrapping_sub(HANDLER + 1);
        if vector >= 32 {
            return None;
        }
        let size = if env.code64() { 8 } else { 4 };
        let mut at = env.gpr[reg::RSP];
        let error = matches!(vector, 8 | 10..=14 | 17).then(|| {
            at += size;
            self.get(at - size, size as usize)
        });
        let word = |n: u64| self.get(at + n * size, size as usize);
        let trap = Trap {
            vector,
            error,
            ip: word(0),
            flags: word(2),
            sp: if size == 8 { word(3) } else { at + 12 },
        };
        self.env().gpr[reg::RSP] = at;
        Some(trap)
    }

    /// Runs on from where it is, with a HLT at [`CODE`].
    pub fn run_from_here(&mut self) -> Option<Trap> {
        self.put(CODE, 1, 0xf4);
        self.processor.clear_code();
        self.go()
    }

    /// Assembles and runs.
    pub fn run(
        &mut self,
        bits: u32,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Option<Trap> {
        self.assemble(bits, write);
        self.go()
    }

    /// Returns from a trap, and runs on.
    pub fn resume(&mut self) -> Option<Trap> {
        let size = if self.env().code64() { 8 } else { 4 };
        iret::iret(self.env(), size).expect("a good frame");
        self.go()
    }

    /// Sets the page table entry of a page of the first 2 MiB.
    pub fn set_pte(&mut self, page: u64, flags: u64) {
        self.map(page, page & !0xfff | flags);
    }

    /// The same, of an entry that may lead elsewhere.
    pub fn map(&mut self, page: u64, entry: u64) {
        let size = if self.env().cr4.contains(Cr4::PAE) { 8 } else { 4 };
        self.put(PTES + size * (page >> 12), size as usize, entry);
        crate::mmu::flush_all(self.env());
    }
}
