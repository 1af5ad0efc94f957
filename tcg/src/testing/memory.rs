//! Guest memory with faults: three pages, and nothing around them.

use super::SplitMix;
use crate::guest::Exception;
use crate::memory::PAGE_SIZE;

/// Three pages of guest-virtual memory from [`TestMemory::BASE`]. The permissions depend on the MMU mode, so that an
/// access in the wrong one shows.
#[derive(Clone, PartialEq)]
pub struct TestMemory {
    /// Content.
    pub bytes: Box<[u8]>,
}

impl TestMemory {
    /// Address of the first byte.
    pub const BASE: u64 = 0x4000_0000;
    /// Number of pages.
    pub const PAGES: u64 = 3;
    /// Vector of the exception for an access that is not allowed; its error code is 1 for a write.
    pub const FAULT: u16 = 14;

    /// Vector of the exception for an access that must be aligned and is not.
    pub const MISALIGNED: u16 = 17;

    /// Random content.
    pub fn new(rng: &mut SplitMix) -> TestMemory {
        let len = (Self::PAGES * PAGE_SIZE) as usize;
        let mut bytes = vec![0; len].into_boxed_slice();
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&rng.word().to_le_bytes());
        }
        TestMemory { bytes }
    }

    /// Whether page `n` (0 to 2) may be read and written in an MMU mode.
    pub fn permissions(n: u64, mmu: u8) -> (bool, bool) {
        match (n, mmu) {
            (0, _) => (true, true),
            (1, 0) => (true, false),
            (1, _) => (true, true),
            (2, 0) => (true, true),
            (2, 1) => (true, false),
            _ => (false, false),
        }
    }

    /// Offset in `bytes` of an access, or the exception that names the first byte that is not allowed.
    fn check(va: u64, len: usize, mmu: u8, write: bool) -> Result<usize, Exception> {
        for i in 0..len as u64 {
            let address = va.wrapping_add(i);
            let page = address.wrapping_sub(Self::BASE) / PAGE_SIZE;
            let (read, writable) = Self::permissions(page, mmu);
            if !read || write && !writable {
                return Err(Exception { vector: Self::FAULT, error: Some(write as u32), address });
            }
        }
        Ok((va - Self::BASE) as usize)
    }

    /// The exception of an access that is not aligned.
    pub fn misaligned(va: u64) -> Exception {
        Exception { vector: Self::MISALIGNED, error: None, address: va }
    }

    /// Loads `buf.len()` bytes.
    pub fn load(&self, va: u64, buf: &mut [u8], mmu: u8, for_write: bool) -> Result<(), Exception> {
        let at = Self::check(va, buf.len(), mmu, for_write)?;
        buf.copy_from_slice(&self.bytes[at..at + buf.len()]);
        Ok(())
    }

    /// Stores all bytes or none.
    pub fn store(&mut self, va: u64, bytes: &[u8], mmu: u8) -> Result<(), Exception> {
        let at = Self::check(va, bytes.len(), mmu, true)?;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

impl std::fmt::Debug for TestMemory {
    /// A digest: the content would drown whatever else is printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digest = self.bytes.iter().fold(0u64, |h, b| (h ^ *b as u64).wrapping_mul(0x0100_0000_01b3));
        write!(f, "TestMemory({digest:#x})")
    }
}
