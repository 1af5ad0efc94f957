//! Stacks that control transfers push to and pop from.
//!
//! A [`Stack`] is a cursor: it moves without touching RSP until [`Stack::commit`], so a transfer that faults half-way
//! leaves the registers as they were.

use tessera_tcg::guest::Access;
use tessera_tcg::softmmu;

use super::exception::ss;
use super::segment::within_limit;
use super::{Result, data_mmu, long_mode};
use crate::guest::X86;
use crate::mmu::canonical;
use crate::state::{Segment, X86Env, reg, seg};

/// A stack cursor.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    segment: Segment,
    sp: u64,
    /// Which bits of RSP are the stack pointer: 16, 32 or 64.
    mask: u64,
    mmu: u8,
    /// Error code of #SS for a violation of its limit or canonical form.
    error: u32,
}

impl Stack {
    /// The stack in use.
    pub fn current(env: &X86Env) -> Stack {
        let mmu = data_mmu(env, env.cpl);
        Stack::new(env.seg[seg::SS], env.code64(), env.gpr[reg::RSP], mmu, 0)
    }

    /// Another stack: its segment, whether it is used by 64-bit code, its pointer, the MMU mode of accesses and the error
    /// code of #SS.
    pub fn new(segment: Segment, code64: bool, sp: u64, mmu: u8, error: u32) -> Stack {
        let mask = if code64 {
            u64::MAX
        } else if segment.access & Segment::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        Stack { segment, sp: sp & mask, mask, mmu, error }
    }

    /// The stack pointer, in its width.
    pub fn sp(&self) -> u64 {
        self.sp
    }

    /// Moves the stack pointer up.
    pub fn skip(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & self.mask;
    }

    fn address(&self, env: &X86Env, sp: u64, size: u32) -> Result<u64> {
        if self.mask == u64::MAX {
            let last = sp.wrapping_add(size as u64 - 1);
            return if canonical(env, sp) && canonical(env, last) { Ok(sp) } else { Err(ss(self.error)) };
        }
        if !within_limit(&self.segment, sp, size as u64) {
            return Err(ss(self.error));
        }
        Ok(self.segment.base.wrapping_add(sp) & 0xffff_ffff)
    }

    /// Raises what `count` pushes of `size` bytes would raise, so that none of several is done if one cannot be.
    pub fn reserve(&self, env: &mut X86Env, size: u32, count: u64) -> Result<()> {
        for n in 1..=count {
            let va = self.address(env, self.sp.wrapping_sub(n * size as u64) & self.mask, size)?;
            softmmu::probe::<X86>(env, va, size as u64, Access::Write, self.mmu)?;
        }
        Ok(())
    }

    /// Pushes `size` bytes.
    pub fn push(&mut self, env: &mut X86Env, size: u32, value: u64) -> Result<()> {
        let sp = self.sp.wrapping_sub(size as u64) & self.mask;
        let va = self.address(env, sp, size)?;
        softmmu::store::<X86>(env, va, size, value, self.mmu)?;
        self.sp = sp;
        Ok(())
    }

    /// Pushes quadwords, the last one first, in one access: what 64-bit delivery does. Only on a 64-bit stack.
    #[inline]
    pub fn push_quads(&mut self, env: &mut X86Env, values: &[u64]) -> Result<()> {
        debug_assert!(self.mask == u64::MAX && values.len() <= 6);
        let len = 8 * values.len().min(6);
        let sp = self.sp.wrapping_sub(len as u64);
        let va = self.address(env, sp, len as u32)?;
        if !softmmu::store_quads::<X86>(env, va, values, self.mmu) {
            let mut bytes = [0u8; 48];
            for (chunk, value) in bytes.chunks_exact_mut(8).zip(values) {
                chunk.copy_from_slice(&value.to_le_bytes());
            }
            softmmu::store_bytes::<X86>(env, va, &bytes[..len], self.mmu)?;
        }
        self.sp = sp;
        Ok(())
    }

    /// The next quadwords on a 64-bit stack, without popping them, if that takes one look into the TLB.
    #[inline]
    pub fn next_quads<const N: usize>(&self, env: &mut X86Env) -> Option<[u64; N]> {
        if self.mask != u64::MAX {
            return None;
        }
        let va = self.address(env, self.sp, 8 * N as u32).ok()?;
        softmmu::load_quads::<X86, N>(env, va, self.mmu)
    }

    /// Pops `size` bytes.
    pub fn pop(&mut self, env: &mut X86Env, size: u32) -> Result<u64> {
        let va = self.address(env, self.sp, size)?;
        let value = softmmu::load::<X86>(env, va, size, self.mmu)?;
        self.skip(size as u64);
        Ok(value)
    }

    /// Reads `size` bytes at `offset` above the pointer.
    pub fn peek(&self, env: &mut X86Env, offset: u64, size: u32) -> Result<u64> {
        let va = self.address(env, self.sp.wrapping_add(offset) & self.mask, size)?;
        softmmu::load::<X86>(env, va, size, self.mmu)
    }

    /// Makes the cursor RSP. SS is not touched.
    pub fn commit(&self, env: &mut X86Env) {
        set_sp(env, self.mask, self.sp);
    }
}

/// Sets the bits of RSP that a stack of this width has; a 32-bit one zeroes the upper half, as writes of ESP do.
fn set_sp(env: &mut X86Env, mask: u64, sp: u64) {
    let old = env.gpr[reg::RSP];
    env.gpr[reg::RSP] = if mask == 0xffff { old & !mask | sp & mask } else { sp & mask };
}

/// Sets the stack pointer for SS as it is now, for 64-bit or other code.
pub fn set_stack_pointer(env: &mut X86Env, sp: u64) {
    let mask = if env.code64() {
        u64::MAX
    } else if env.seg[seg::SS].access & Segment::DB != 0 {
        0xffff_ffff
    } else {
        0xffff
    };
    debug_assert!(long_mode(env) || mask != u64::MAX);
    set_sp(env, mask, sp);
}
