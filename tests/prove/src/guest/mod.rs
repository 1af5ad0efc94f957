//! The translator's side: a vCPU in user mode that runs sequences with everything between front end and softmmu.
//!
//! Problem: an exception goes to the guest's kernel; here it ends a sequence. Strategy: [`User`] is the x86 guest in all but
//! that: once an exception has been delivered, through a real IDT to a handler's first instruction, the vCPU stops. Vector and
//! state are taken from the handler's address and stack frame, so delivery is proven with the rest. Software interrupts, which
//! the CPU delivers without asking, find handlers that halt.
//!
//! The address space is that of [`layout`](crate::layout), with four-level paging; code is fetched from the same memory
//! object that the native side executes.

mod interpreter;
mod memory;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use iced_x86::Code;
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::env::Header;
use tessera_tcg::exec::{Options, Remote, Vcpu};
use tessera_tcg::guest::{
    Access, BlockKey, CodeFetch, Exception, Guest, HelperDesc, Mapping, Next, TranslateLimits, Translated,
};
use tessera_tcg::ir::{Builder, GlobalDesc, GlobalId};
use tessera_tcg::memory::PhysMemory;
use tessera_tcg::opt::OptFlags;
use tessera_x86::cpuid::{self, CpuidTable};
use tessera_x86::guest::X86;
use tessera_x86::helpers::x87_image;
use tessera_x86::state::{Cr0, Cr4, Efer, Segment, VecReg, X86Env, reg, seg};
use tessera_x86::system::exit;
use tessera_x86::testing::NoPlatform;

use crate::frame::{Frame, NONE, STUCK, at};
use crate::layout::{CS32, CS64, DATA_SELECTOR, DONE};
pub use memory::{GuestMemory, Kernel};

/// Code that the vCPU stops with after an exception.
const CAUGHT: u32 = 100;
/// Code that the vCPU stops with when the sequence is complete.
const COMPLETE: u32 = 101;
const UD: u16 = 6;
const PAGE_FAULT: u64 = 14;

/// The x86 guest, whose exceptions stop the vCPU.
pub struct User;

impl Guest for User {
    type Env = X86Env;

    fn globals() -> &'static [GlobalDesc] {
        X86::globals()
    }
    fn pc_global() -> GlobalId {
        X86::pc_global()
    }
    fn helpers() -> &'static [HelperDesc] {
        X86::helpers()
    }
    fn fp_control() -> Option<u32> {
        X86::fp_control()
    }
    fn header(env: &mut X86Env) -> &mut Header {
        X86::header(env)
    }
    fn block_key(env: &X86Env) -> BlockKey {
        X86::block_key(env)
    }
    fn set_pc(env: &mut X86Env, pc: u64) {
        X86::set_pc(env, pc);
    }
    fn translate(
        env: &X86Env,
        key: BlockKey,
        limits: TranslateLimits<'_>,
        code: &mut dyn CodeFetch,
        ir: &mut Builder,
    ) -> Result<Translated, Exception> {
        X86::translate(env, key, limits, code, ir)
    }
    fn disassemble(key: BlockKey, pc: u64, bytes: &[u8]) -> (String, usize) {
        X86::disassemble(key, pc, bytes)
    }
    fn walk(
        env: &X86Env,
        memory: &Arc<dyn PhysMemory>,
        va: u64,
        access: Access,
        mmu: u8,
    ) -> Result<Mapping, Exception> {
        X86::walk(env, memory, va, access, mmu)
    }
    fn main_mmu(mode: u64) -> u8 {
        X86::main_mmu(mode)
    }

    fn fetch_mmu(env: &X86Env) -> u8 {
        X86::fetch_mmu(env)
    }
    fn address_space(env: &X86Env) -> u64 {
        X86::address_space(env)
    }
    fn left(env: &mut X86Env) {
        X86::left(env);
    }
    fn deliver_exception(env: &mut X86Env, exception: Exception) -> Next {
        if exception.vector == UD && env.rip == DONE {
            return Next::Exit(COMPLETE);
        }
        match X86::deliver_exception(env, exception) {
            // The softmmu's own vectors are none that are delivered.
            Next::Continue if exception.vector <= 0xff => Next::Exit(CAUGHT),
            next => next,
        }
    }
    fn handle_leave(env: &mut X86Env, code: u32) -> Next {
        X86::handle_leave(env, code)
    }
    fn poll_events(env: &mut X86Env) -> Next {
        X86::poll_events(env)
    }
}

/// Stops a guest that does not end by itself.
#[derive(Clone, Default)]
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    remotes: Arc<Mutex<Vec<Arc<Remote>>>>,
}

impl Watchdog {
    /// Makes the vCPUs that belong to it stop at their next poll. From any thread.
    pub fn bite(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|r| r.kick());
    }
}

/// How a vCPU translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Optimisations.
    pub opt: OptFlags,
    /// Instructions in a block, at most.
    pub max_insns: u32,
    /// Whether blocks are linked.
    pub chain: bool,
    /// Samples that make a block hot; with 0 whatever is executed twice becomes a trace.
    pub hot: u8,
    /// Whether generated code counts what it executes.
    pub count: bool,
    /// Whether the IR is interpreted instead of compiled.
    pub interpret: bool,
}

impl Config {
    /// As the program runs guests.
    pub const USUAL: Config = Config {
        opt: OptFlags::all(),
        max_insns: tessera_tcg::exec::MAX_INSNS,
        chain: true,
        hot: tessera_tcg::exec::DEFAULT_HOT,
        count: false,
        interpret: false,
    };
}

/// The model under test: `max`.
pub fn model() -> CpuidTable {
    cpuid::parse("max").expect("`max` is a model")
}

/// Whether the model under test has an instruction.
pub fn claims(table: &CpuidTable, code: Code) -> bool {
    code != Code::INVALID && table.allows(code)
}

/// A vCPU to run sequences on.
pub struct GuestCpu {
    vcpu: Vcpu<User, X86_64>,
    memory: Arc<GuestMemory>,
    /// How it translates.
    pub config: Config,
    watchdog: Watchdog,
}

impl GuestCpu {
    /// A vCPU over guest memory that other vCPUs of this thread may share.
    pub fn new(memory: Arc<GuestMemory>, config: Config, watchdog: &Watchdog) -> Result<GuestCpu> {
        let mut env = X86Env::new(Box::new(NoPlatform { stop: watchdog.stop.clone() }), model());
        let kernel = memory.kernel();
        env.cr0 = Cr0::PE | Cr0::PG | Cr0::MP | Cr0::NE | Cr0::ET | Cr0::WP | Cr0::AM;
        env.cr4 = Cr4::PAE
            | Cr4::OSFXSR
            | Cr4::OSXMMEXCPT
            | Cr4::OSXSAVE
            | Cr4::FSGSBASE
            | Cr4::UMIP
            | Cr4::DE
            | Cr4::PGE;
        env.efer = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        env.cr3 = kernel.cr3;
        env.xcr0 = env.cpuid.xcr0_mask() & 7;
        (env.gdtr.base, env.gdtr.limit) = (kernel.gdt, memory::GDT_LIMIT);
        (env.idtr.base, env.idtr.limit) = (kernel.idt, 0xfff);
        let data = Segment { base: 0, limit: u32::MAX, access: 0xc0f3, selector: DATA_SELECTOR };
        for n in [seg::ES, seg::SS, seg::DS] {
            env.seg[n] = data;
        }
        env.seg[seg::FS] = Segment::default();
        env.seg[seg::GS] = Segment::default();
        env.seg[seg::LDTR] = Segment::default();
        env.seg[seg::TR] = Segment { base: kernel.tss, limit: 0x67, access: 0x8b, selector: 0x40 };
        env.cpl = 3;
        env.seg_base = [0; 6];
        env.set_rflags(0x202);
        let options = Options {
            cache_mib: 16,
            max_insns: config.max_insns,
            chain: config.chain,
            opt: config.opt,
            hot: config.hot,
            count: config.count,
            ..Options::default()
        };
        let vcpu = Vcpu::new(env, memory.clone(), options)?;
        watchdog.remotes.lock().unwrap_or_else(PoisonError::into_inner).push(vcpu.remote().clone());
        let mut cpu = GuestCpu { vcpu, memory, config, watchdog: watchdog.clone() };
        cpu.load(&Frame::new());
        cpu.vcpu.state_changed();
        Ok(cpu)
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// To be called after bytes of the code area were written.
    pub fn code_written(&self, at: u64, len: u64) {
        self.vcpu.remote().written(memory::CODE_PHYS + at, len);
    }

    /// To be called before the code area is used from the start again.
    pub fn code_changed(&mut self) {
        self.vcpu.clear_code();
    }

    /// Puts the CPU into the state of a frame.
    pub fn load(&mut self, f: &Frame) {
        let env = self.vcpu.env_mut();
        env.gpr = f.gpr;
        env.rip = f.rip;
        env.set_rflags(f.flags | 0x202);
        let wide = f.cs != CS32 as u64;
        env.seg[seg::CS] = Segment {
            base: 0,
            limit: u32::MAX,
            access: if wide { 0xa0fb } else { 0xc0fb },
            selector: if wide { CS64 } else { CS32 },
        };
        let data = Segment { base: 0, limit: u32::MAX, access: 0xc0f3, selector: DATA_SELECTOR };
        env.seg[seg::SS] = data;
        for (n, base) in [(seg::FS, f.fs), (seg::GS, f.gs)] {
            env.seg[n].base = base;
            env.seg_base[n] = base;
        }
        env.cpl = 3;
        (env.halted, env.shutdown, env.interrupt_shadow, env.pending_debug) = (false, false, false, 0);
        x87_image::load_fx(&mut env.fpu, true, &f.xsave[..512]);
        env.mxcsr = f.get(at::MXCSR) as u32;
        for (n, v) in env.vec.iter_mut().enumerate() {
            let word = |at: usize| u64::from_le_bytes(f.xsave[at..at + 8].try_into().expect("eight bytes"));
            let (low, high) = (at::xmm(n).start, at::ymm(n).start);
            *v = VecReg([word(low), word(low + 8), word(high), word(high + 8)]);
        }
        env.update_mode();
    }

    /// The state as a frame.
    fn save(&self, f: &mut Frame) {
        let env = self.vcpu.env();
        f.gpr = env.gpr;
        f.rip = env.ip();
        f.flags = env.rflags();
        f.fs = env.seg_base[seg::FS];
        f.gs = env.seg_base[seg::GS];
        f.cs = env.seg[seg::CS].selector as u64;
        x87_image::store_fx(&env.fpu, true, &mut f.xsave[..512]);
        f.set(at::MXCSR, env.mxcsr as u64);
        f.set(at::PRESENT, 7);
        for (n, v) in env.vec.iter().enumerate() {
            let (low, high) = (at::xmm(n).start, at::ymm(n).start);
            for (at, word) in [(low, v.0[0]), (low + 8, v.0[1]), (high, v.0[2]), (high + 8, v.0[3])] {
                f.xsave[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        (f.vector, f.error, f.address) = (NONE, 0, 0);
    }

    /// Runs from the state of the frame, with the window as it is in guest memory; the frame then holds what is left.
    pub fn run(&mut self, f: &mut Frame) {
        self.load(f);
        let code = if self.config.interpret {
            interpreter::run(&mut self.vcpu, &self.memory)
        } else {
            self.vcpu.run()
        };
        self.save(f);
        match code {
            COMPLETE => {}
            CAUGHT | exit::HALTED => self.take_event(f),
            exit::STOPPED => {
                self.watchdog.stop.store(false, Ordering::SeqCst);
                f.vector = STUCK;
            }
            // Nothing natively does this: it shows as a difference.
            other => f.vector = 1000 + other as u64,
        }
    }

    /// After the CPU has delivered an event to its handler: the state as of the event.
    fn take_event(&self, f: &mut Frame) {
        f.vector = self.memory.handler_vector(f.rip);
        let mut rsp = f.gpr[reg::RSP];
        if matches!(f.vector, 8 | 10..=14 | 17) {
            [f.error, ..] = self.memory.kernel_stack(rsp);
            rsp += 8;
        }
        let [rip, cs, flags, old_rsp] = self.memory.kernel_stack(rsp);
        (f.rip, f.cs, f.flags) = (rip, cs, flags);
        f.gpr[reg::RSP] = old_rsp;
        if f.vector == PAGE_FAULT {
            f.address = self.vcpu.env().cr2;
        }
    }

    /// Mode of the blocks that run from a frame's state.
    pub fn mode_of(&mut self, f: &Frame) -> u64 {
        self.load(f);
        self.vcpu.env().mode
    }

    /// The vCPU's environment, for reports.
    pub fn env(&self) -> &X86Env {
        self.vcpu.env()
    }
}
