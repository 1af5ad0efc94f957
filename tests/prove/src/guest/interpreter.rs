//! Running a sequence by interpreting its IR, over the same environment and softmmu as generated code.
//!
//! A mismatch that shows here, too, is the front end's (or a helper's); one that does not is the optimiser's or the backend's.

use tessera_tcg::backend::GuestInfo;
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::Vcpu;
use tessera_tcg::guest::{Access, CodeFetch, Exception, Guest, Next, TranslateLimits};
use tessera_tcg::interp::{self, End, Machine};
use tessera_tcg::ir::{Builder, HelperId};
use tessera_tcg::softmmu;
use tessera_x86::guest::X86;
use tessera_x86::helpers::sse::FLOAT_BEGIN;
use tessera_x86::state::{PC, X86Env};
use tessera_x86::system::exit;

use super::memory::GuestMemory;
use super::{COMPLETE, User};
use crate::layout::{DONE, PAGE};

/// MXCSR's sticky flags.
const STICKY: u32 = 0x3f;
/// MXCSR's masks.
const MASKS: u32 = 0x1f80;

fn host_mxcsr() -> u32 {
    let mut word = 0u32;
    // SAFETY: stores the register to `word`.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack, preserves_flags)) };
    word
}

fn set_host_mxcsr(word: u32) {
    let word = word & 0xffff | MASKS;
    // SAFETY: all exceptions are masked, and no reserved bit is set.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &word, options(nostack, preserves_flags)) };
}

/// Helpers expect the guest's MXCSR in the host's; the interpreter itself computes with the environment's.
struct Env<'a> {
    env: &'a mut X86Env,
    /// Between the helpers around an operation that may raise #XM: the sticky flags of before.
    sticky: Option<u32>,
}

impl Machine for Env<'_> {
    fn env(&mut self) -> &mut [u8] {
        let env: *mut X86Env = self.env;
        // SAFETY: the bytes of a live struct; the interpreter changes only those of globals, which are integers.
        unsafe { std::slice::from_raw_parts_mut(env.cast(), size_of::<X86Env>()) }
    }

    fn load(&mut self, va: u64, buf: &mut [u8], mmu: u8, for_write: bool) -> Result<(), Exception> {
        if for_write {
            softmmu::probe::<X86>(self.env, va, buf.len() as u64, Access::Write, mmu)?;
        }
        softmmu::load_bytes::<X86>(self.env, va, buf, mmu)
    }

    fn store(&mut self, va: u64, bytes: &[u8], mmu: u8) -> Result<(), Exception> {
        softmmu::probe::<X86>(self.env, va, bytes.len() as u64, Access::Write, mmu)?;
        softmmu::store_bytes::<X86>(self.env, va, bytes, mmu)
    }

    fn call(&mut self, helper: HelperId, a: [u64; 5]) -> Result<u64, Exception> {
        type Helper = extern "C" fn(&mut X86Env, u64, u64, u64, u64, u64) -> u64;
        let func = (X86::helpers()[helper.0 as usize].func)();
        // SAFETY: a helper has this type with up to five arguments; surplus ones are ignored in the C ABI.
        let func = unsafe { std::mem::transmute::<*const (), Helper>(func) };
        if let Some(sticky) = self.sticky.take() {
            // What the operation raised is in the environment; the helper behind it looks at the host's.
            set_host_mxcsr(self.env.mxcsr);
            self.env.mxcsr = self.env.mxcsr & !STICKY | sticky;
        } else {
            set_host_mxcsr(self.env.mxcsr);
        }
        let r = func(self.env, a[0], a[1], a[2], a[3], a[4]);
        self.env.mxcsr |= host_mxcsr() & STICKY;
        if helper == FLOAT_BEGIN {
            self.sticky = Some(self.env.mxcsr & STICKY);
            self.env.mxcsr &= !STICKY;
        }
        set_host_mxcsr(MASKS);
        if std::mem::take(&mut self.env.header.helper_fault) != 0 {
            // SAFETY: the environment belongs to a vCPU, so its runtime is valid.
            let e = unsafe { (*self.env.header.runtime).exception.take() };
            return Err(e.expect("who reports a fault has left an exception"));
        }
        Ok(r)
    }
}

struct Code<'a>(&'a GuestMemory);

impl CodeFetch for Code<'_> {
    fn fetch(&mut self, pc: u64) -> Result<&[u8], Exception> {
        self.0.code(pc).ok_or(NOT_CODE)
    }
}

/// Stands for what fetching elsewhere than in the code area raises.
const NOT_CODE: Exception = Exception { vector: 14, error: Some(0x14), address: 0 };

/// As `Vcpu::run`.
pub fn run(vcpu: &mut Vcpu<User, X86_64>, memory: &GuestMemory) -> u32 {
    let info =
        GuestInfo { globals: X86::globals(), pc: PC, helpers: X86::helpers(), fp_control: X86::fp_control() };
    let env = vcpu.env_mut();
    loop {
        if let Next::Exit(code) = X86::poll_events(env) {
            return code;
        }
        if env.cpl == 0 {
            // A software interrupt has gone to its handler.
            return exit::HALTED;
        }
        let key = X86::block_key(env);
        let mut b = Builder::default();
        let limits =
            TranslateLimits { max_insns: 1, single_step: false, side_exits: false, unroll: false, path: &[] };
        if key.pc & !(PAGE as u64 - 1) == DONE {
            return COMPLETE;
        }
        if let Err(mut e) = X86::translate(env, key, limits, &mut Code(memory), &mut b) {
            if e == NOT_CODE {
                // The second page, if the first is code.
                let at = memory.code(key.pc).map_or(key.pc, |page| key.pc + page.len() as u64);
                let mmu = X86::fetch_mmu(env);
                e = softmmu::probe::<X86>(env, at, 1, Access::Execute, mmu).err().unwrap_or(e);
            }
            match User::deliver_exception(env, e) {
                Next::Exit(code) => return code,
                _ => continue,
            }
        }
        let block = b.finish();
        let next = match interp::run(&block, &info, &mut Env { env, sticky: None }) {
            End::Exit(x) => {
                X86::set_pc(env, block.exits[x.0 as usize].pc);
                Next::Continue
            }
            End::Indirect => Next::Continue,
            End::Fault(e) => User::deliver_exception(env, e),
            End::Leave(code) => X86::handle_leave(env, code),
        };
        if let Next::Exit(code) = next {
            return code;
        }
    }
}
