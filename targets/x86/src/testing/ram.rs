//! Guest memory for tests of whole programs.

use std::cell::UnsafeCell;

use tessera_tcg::memory::{PhysMemory, RamPage};

/// Guest RAM from physical address 0 on, and nothing else. For one thread at a time.
pub struct Ram(Box<[UnsafeCell<u8>]>);

// SAFETY: accessed by raw pointers from one thread at a time.
unsafe impl Sync for Ram {}

impl PhysMemory for Ram {
    fn ram_page(&self, phys: u64) -> Option<RamPage> {
        let page = self.0.get(phys as usize & !0xfff..)?;
        (page.len() >= 0x1000).then(|| RamPage { host: page[0].get(), writable: true })
    }
    fn mmio_read(&self, _: u64, _: u32) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: u64, _: u32, _: u64) {}
}

impl Ram {
    /// So many bytes, zero.
    pub fn new(bytes: usize) -> Ram {
        Ram((0..bytes).map(|_| UnsafeCell::new(0)).collect())
    }

    /// Stores bytes; they must be within it.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        for (n, b) in bytes.iter().enumerate() {
            // SAFETY: in bounds by the indexing; no other thread runs.
            unsafe { *self.0[at as usize + n].get() = *b };
        }
    }

    /// Loads bytes; they must be within it.
    pub fn read(&self, at: u64, bytes: &mut [u8]) {
        for (n, b) in bytes.iter_mut().enumerate() {
            // SAFETY: as in `write`.
            *b = unsafe { *self.0[at as usize + n].get() };
        }
    }
}
