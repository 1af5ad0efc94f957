//! Guest memory accesses. Atomicity is the machine's affair: the interpreter runs one vCPU at a time.

use super::{Machine, Run, Word4, bytes, int, words};
use crate::guest::Exception;
use crate::ir::vec::selected_lanes;
use crate::ir::{Ext, MemFlags, RmwOp, Value, VecLen, VecSize, Width};

impl<M: Machine> Run<'_, M> {
    /// The address of an access, which is checked to be aligned if it must be.
    fn address(&mut self, addr: Value, bytes: u32, mem: MemFlags) -> Result<u64, Exception> {
        let va = self.int(addr);
        let ok = !mem.align || va.is_multiple_of(bytes.into());
        if ok { Ok(va) } else { Err(self.machine.misaligned(va)) }
    }

    /// Loads `width` bits, zero-extended.
    fn load_raw(&mut self, width: Width, va: u64, mmu: u8, for_write: bool) -> Result<u64, Exception> {
        let mut b = [0; 8];
        self.machine.load(va, &mut b[..width.bytes() as usize], mmu, for_write)?;
        Ok(u64::from_le_bytes(b))
    }

    fn store_raw(&mut self, width: Width, va: u64, v: u64, mmu: u8) -> Result<(), Exception> {
        self.machine.store(va, &v.to_le_bytes()[..width.bytes() as usize], mmu)
    }

    pub(super) fn load(
        &mut self,
        width: Width,
        ext: Ext,
        addr: Value,
        mem: MemFlags,
    ) -> Result<u64, Exception> {
        let va = self.address(addr, width.bytes(), mem)?;
        let v = self.load_raw(width, va, mem.mmu, mem.for_write)?;
        Ok(int::extend(width, ext, v))
    }

    pub(super) fn store(
        &mut self,
        width: Width,
        addr: Value,
        v: Value,
        mem: MemFlags,
    ) -> Result<(), Exception> {
        let va = self.address(addr, width.bytes(), mem)?;
        self.store_raw(width, va, self.int(v), mem.mmu)
    }

    pub(super) fn load_vec(&mut self, size: VecSize, addr: Value, mem: MemFlags) -> Result<Word4, Exception> {
        let mut b = [0; 32];
        let va = self.address(addr, size.bytes(), mem)?;
        self.machine.load(va, &mut b[..size.bytes() as usize], mem.mmu, mem.for_write)?;
        Ok(words(b))
    }

    pub(super) fn store_vec(
        &mut self,
        size: VecSize,
        addr: Value,
        v: Value,
        mem: MemFlags,
    ) -> Result<(), Exception> {
        let (va, b) = (self.address(addr, size.bytes(), mem)?, bytes(self.vec(v)));
        self.machine.store(va, &b[..size.bytes() as usize], mem.mmu)
    }

    pub(super) fn load_masked(
        &mut self,
        width: Width,
        len: VecLen,
        addr: Value,
        mask: Value,
        mem: MemFlags,
    ) -> Result<Word4, Exception> {
        let (va, mut b) = (self.int(addr), [0; 32]);
        for at in selected_lanes(width, len, self.vec(mask)) {
            let lane = &mut b[at..at + width.bytes() as usize];
            self.machine.load(va.wrapping_add(at as u64), lane, mem.mmu, mem.for_write)?;
        }
        Ok(words(b))
    }

    pub(super) fn store_masked(
        &mut self,
        width: Width,
        len: VecLen,
        addr: Value,
        v: Value,
        mask: Value,
        mem: MemFlags,
    ) -> Result<(), Exception> {
        let (va, b, mask) = (self.int(addr), bytes(self.vec(v)), self.vec(mask));
        let size = width.bytes() as usize;
        // All lanes must be writable before the first is written.
        for at in selected_lanes(width, len, mask) {
            self.machine.load(va.wrapping_add(at as u64), &mut [0; 8][..size], mem.mmu, true)?;
        }
        for at in selected_lanes(width, len, mask) {
            self.machine.store(va.wrapping_add(at as u64), &b[at..at + size], mem.mmu)?;
        }
        Ok(())
    }

    pub(super) fn atomic_rmw(
        &mut self,
        op: RmwOp,
        width: Width,
        addr: Value,
        v: Value,
        mem: MemFlags,
    ) -> Result<u64, Exception> {
        let (va, v) = (self.int(addr), self.int(v));
        let old = self.load_raw(width, va, mem.mmu, true)?;
        self.store_raw(width, va, op.apply(old, v), mem.mmu)?;
        Ok(old)
    }

    pub(super) fn atomic_cas(
        &mut self,
        width: Width,
        addr: Value,
        expect: Value,
        new: Value,
        mem: MemFlags,
    ) -> Result<u64, Exception> {
        let va = self.int(addr);
        let old = self.load_raw(width, va, mem.mmu, true)?;
        if old == self.int(expect) & width.mask() {
            self.store_raw(width, va, self.int(new), mem.mmu)?;
        }
        Ok(old)
    }
}
