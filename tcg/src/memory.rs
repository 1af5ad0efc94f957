//! Guest-physical memory as the translator sees it; implemented by the machine.

/// Size of the smallest guest page and the grain of all TLBs: 4 KiB on every guest supported.
pub const PAGE_SIZE: u64 = 4096;
/// Offset bits within a page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// One page of RAM or ROM.
#[derive(Clone, Copy, Debug)]
pub struct RamPage {
    /// Host address of the page's first byte; valid for reads (and writes, if `writable`) as long as the memory
    /// object lives.
    pub host: *mut u8,
    /// False for ROM: writes go to [`PhysMemory::mmio_write`].
    pub writable: bool,
}

/// Guest-physical memory: RAM by host pointer, the rest by calls. Called from vCPU threads.
pub trait PhysMemory: Send + Sync {
    /// The RAM or ROM page that contains `phys`, if it is one.
    fn ram_page(&self, phys: u64) -> Option<RamPage>;
    /// The RAM or ROM page that contains `phys`, if what follows it up to `len` bytes is RAM or ROM like it and in the host's
    /// memory in the same order. Nothing goes wrong where this is not known: then each page is looked at by itself.
    fn ram_range(&self, _phys: u64, _len: u64) -> Option<RamPage> {
        None
    }
    /// Reads 1, 2, 4 or 8 bytes that no RAM page backs; does not cross a page. Zero-extended.
    fn mmio_read(&self, phys: u64, size: u32) -> u64;
    /// Writes 1, 2, 4 or 8 bytes that no writable RAM page backs; does not cross a page.
    fn mmio_write(&self, phys: u64, size: u32, value: u64);
}
