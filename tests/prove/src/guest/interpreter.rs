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
use tessera_x86::state::{PC, X86Env};

use super::memory::GuestMemory;
use super::{CAUGHT, EXCEPTION, User};
use crate::layout::{DONE, PAGE};

struct Env<'a>(&'a mut X86Env);

impl Machine for Env<'_> {
    fn env(&mut self) -> &mut [u8] {
        let env: *mut X86Env = self.0;
        // SAFETY: the bytes of a live struct; the interpreter changes only those of globals, which are integers.
        unsafe { std::slice::from_raw_parts_mut(env.cast(), size_of::<X86Env>()) }
    }

    fn load(&mut self, va: u64, buf: &mut [u8], mmu: u8, for_write: bool) -> Result<(), Exception> {
        if for_write {
            softmmu::probe::<X86>(self.0, va, buf.len() as u64, Access::Write, mmu)?;
        }
        softmmu::load_bytes::<X86>(self.0, va, buf, mmu)
    }

    fn store(&mut self, va: u64, bytes: &[u8], mmu: u8) -> Result<(), Exception> {
        softmmu::probe::<X86>(self.0, va, bytes.len() as u64, Access::Write, mmu)?;
        softmmu::store_bytes::<X86>(self.0, va, bytes, mmu)
    }

    fn call(&mut self, helper: HelperId, a: [u64; 5]) -> Result<u64, Exception> {
        type Helper = extern "C" fn(&mut X86Env, u64, u64, u64, u64, u64) -> u64;
        let func = (X86::helpers()[helper.0 as usize].func)();
        // SAFETY: a helper has this type with up to five arguments; surplus ones are ignored in the C ABI.
        let func = unsafe { std::mem::transmute::<*const (), Helper>(func) };
        let r = func(self.0, a[0], a[1], a[2], a[3], a[4]);
        if std::mem::take(&mut self.0.header.helper_fault) != 0 {
            // SAFETY: the environment belongs to a vCPU, so its runtime is valid.
            let e = unsafe { (*self.0.header.runtime).exception.take() };
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
    let info = GuestInfo {
        globals: X86::globals(),
        pc: PC,
        helpers: X86::helpers(),
        fp_control: X86::fp_control(),
    };
    let env = vcpu.env_mut();
    loop {
        if let Next::Exit(code) = X86::poll_events(env) {
            return code;
        }
        let key = X86::block_key(env);
        let mut b = Builder::default();
        let limits = TranslateLimits { max_insns: 1, single_step: false };
        if key.pc & !(PAGE as u64 - 1) == DONE {
            EXCEPTION.set(Some(Exception { vector: 6, error: None, address: 0 }));
            return CAUGHT;
        }
        if let Err(mut e) = X86::translate(env, key, limits, &mut Code(memory), &mut b) {
            if e == NOT_CODE {
                // The second page, if the first is code.
                let at = memory.code(key.pc).map_or(key.pc, |page| key.pc + page.len() as u64);
                let mmu = X86::fetch_mmu(env);
                e = softmmu::probe::<X86>(env, at, 1, Access::Execute, mmu).err().unwrap_or(e);
            }
            EXCEPTION.set(Some(e));
            return CAUGHT;
        }
        let block = b.finish();
        let next = match interp::run(&block, &info, &mut Env(env)) {
            End::Exit(x) => {
                X86::set_pc(env, block.exits[x.0 as usize].pc);
                Next::Continue
            }
            End::Indirect => Next::Continue,
            End::Fault(e) => {
                EXCEPTION.set(Some(e));
                return CAUGHT;
            }
            End::Leave(code) => X86::handle_leave(env, code),
        };
        if let Next::Exit(code) = next {
            return code;
        }
    }
}
