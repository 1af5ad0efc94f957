//! Port I/O: permission, IN, OUT, INS, OUTS (SDM volume 1, chapter 19).

use tessera_tcg::guest::Access;
use tessera_tcg::softmmu;

use super::exception::gp;
use super::segment::check_segment;
use super::{Result, iopl, read, virtual_8086};
use crate::guest::X86;
use crate::state::{Cr0, X86Env, reg, seg};

/// Iterations of a repeated string instruction before events are looked at.
const CHUNK: u64 = 1024;

/// Whether the I/O permission map must be consulted: CPL above IOPL, or virtual-8086 mode.
pub fn needs_permission(env: &X86Env) -> bool {
    env.cr0.contains(Cr0::PE) && (virtual_8086(env) || env.cpl > iopl(env))
}

/// Raises #GP(0) unless the TSS's I/O permission map allows all `size` ports from `port`.
pub fn check_permission(env: &mut X86Env, port: u16, size: u32) -> Result<()> {
    if !needs_permission(env) {
        return Ok(());
    }
    let tr = env.seg[seg::TR];
    if tr.access & 8 == 0 || tr.limit < 0x67 {
        return Err(gp(0));
    }
    let map = read(env, tr.base.wrapping_add(0x66), 2)?;
    let at = map + port as u64 / 8;
    // Two bytes are read always, so the map ends with a byte of ones.
    if at + 1 > tr.limit as u64 {
        return Err(gp(0));
    }
    let bits = read(env, tr.base.wrapping_add(at), 2)? >> (port & 7);
    if bits & ((1 << size) - 1) != 0 { Err(gp(0)) } else { Ok(()) }
}

/// Takes note of the state of the A20 gate; translations depend on it.
pub fn refresh_a20(env: &mut X86Env) {
    // The gate has no effect in system-management mode.
    let mask = if env.smm { u64::MAX } else { env.platform.a20_mask() };
    if mask != env.a20_mask {
        env.a20_mask = mask;
        crate::mmu::flush_all(env);
    }
}

/// IN, permission checked.
pub fn port_in(env: &mut X86Env, port: u16, size: u32) -> u64 {
    super::debug::check_io(env, port, size);
    env.platform.port_in(port, size) as u64
}

/// OUT, permission checked.
pub fn port_out(env: &mut X86Env, port: u16, size: u32, value: u64) {
    super::debug::check_io(env, port, size);
    env.platform.port_out(port, size, value as u32);
    refresh_a20(env);
}

/// An INS or OUTS.
#[derive(Clone, Copy, Debug)]
pub struct StringIo {
    /// INS.
    pub input: bool,
    /// Bytes of an item: 1, 2 or 4.
    pub size: u32,
    /// Bytes of an address: 2, 4 or 8.
    pub address_size: u32,
    /// Segment of the memory operand.
    pub segment: usize,
    /// With a REP prefix.
    pub repeat: bool,
}

impl StringIo {
    /// As one word, for a helper's argument.
    pub fn pack(self) -> u64 {
        self.input as u64
            | (self.repeat as u64) << 1
            | (self.segment as u64) << 2
            | (self.size as u64) << 8
            | (self.address_size as u64) << 16
    }

    /// Inverse of [`StringIo::pack`].
    pub fn unpack(word: u64) -> StringIo {
        StringIo {
            input: word & 1 != 0,
            repeat: word >> 1 & 1 != 0,
            segment: (word >> 2 & 7) as usize,
            size: (word >> 8 & 0xff) as u32,
            address_size: (word >> 16 & 0xff) as u32,
        }
    }

    fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.address_size.clamp(2, 8))
    }
}

/// Writes the part of a register that an address size has; 32 bits zero the upper half.
fn set_part(env: &mut X86Env, n: usize, mask: u64, value: u64) {
    let old = env.gpr[n];
    env.gpr[n] = if mask == 0xffff { old & !mask | value & mask } else { value & mask };
}

/// INS or OUTS at linear address `pc`; the program counter is that of the next instruction. Runs some iterations of a
/// repeated one; if some are left, it makes the program counter `pc`. An exception in a later iteration shows when the
/// instruction runs again from there, so that `Err` means that nothing has happened.
pub fn string_io(env: &mut X86Env, op: StringIo, pc: u64) -> Result<()> {
    let mask = op.mask();
    let resumed = std::mem::take(&mut env.repeating);
    let port = env.gpr[reg::RDX] as u16;
    // Also for no iteration at all.
    check_permission(env, port, op.size)?;
    if op.repeat && env.gpr[reg::RCX] & mask == 0 {
        return Ok(());
    }
    let mut done = 0;
    loop {
        if let Err(e) = iterate(env, op, port, mask) {
            if done == 0 {
                env.repeating = resumed;
                return Err(e);
            }
            env.repeating = true;
            env.rip = pc;
            return Ok(());
        }
        done += 1;
        if !op.repeat {
            return Ok(());
        }
        let count = (env.gpr[reg::RCX] & mask).wrapping_sub(1) & mask;
        set_part(env, reg::RCX, mask, count);
        if count == 0 {
            return Ok(());
        }
        if done == CHUNK || env.header.exit_request.is_set() {
            env.repeating = true;
            env.rip = pc;
            return Ok(());
        }
    }
}

fn iterate(env: &mut X86Env, op: StringIo, port: u16, mask: u64) -> Result<()> {
    let index = if op.input { reg::RDI } else { reg::RSI };
    let offset = env.gpr[index] & mask;
    let va = check_segment(env, op.segment, offset, op.size as u64, op.input)?;
    let mmu = super::data_mmu(env, env.cpl);
    if op.input {
        softmmu::probe::<X86>(env, va, op.size as u64, Access::Write, mmu)?;
        // The port must not be read twice: if the store may have to be tried again, because of code or a watch in its page, the
        // instruction first sees to running alone.
        for at in [va, va.wrapping_add(op.size as u64 - 1)] {
            if softmmu::host_bytes::<X86>(env, at, Access::Write, mmu)?.is_none() {
                softmmu::require_alone::<X86>(env)?;
            }
        }
        let value = port_in(env, port, op.size);
        softmmu::store::<X86>(env, va, op.size, value, mmu)?;
    } else {
        let value = softmmu::load::<X86>(env, va, op.size, mmu)?;
        port_out(env, port, op.size, value);
    }
    let step = (op.size as u64).wrapping_mul(env.df);
    let next = offset.wrapping_add(step) & mask;
    set_part(env, index, mask, next);
    Ok(())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn string_operations_survive_packing() {
        for input in [false, true] {
            for (size, address_size) in [(1, 2), (2, 4), (4, 8)] {
                let op = StringIo { input, size, address_size, segment: seg::GS, repeat: !input };
                let back = StringIo::unpack(op.pack());
                assert_eq!(format!("{op:?}"), format!("{back:?}"));
            }
        }
    }
}
