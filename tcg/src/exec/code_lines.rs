//! Which 64-byte lines of guest memory blocks were made from.

use std::hash::Hasher;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// For each page that blocks were made from, a bit for each of its 64-byte lines that holds code of a block.
///
/// Generated code reads them, by addresses that software TLBs hold and that may outlive the page's blocks: so the words
/// never move, and are used again but not freed. There are at most as many as there ever were pages with blocks at a time.
#[derive(Default)]
pub(super) struct CodeLines {
    // Boxed, because they may not move when there are more.
    #[expect(clippy::vec_box)]
    chunks: Vec<Box<[AtomicU64; CodeLines::CHUNK]>>,
    free: Vec<u32>,
}

impl CodeLines {
    const CHUNK: usize = 256;

    /// A word for a page, empty.
    pub fn allocate(&mut self) -> u32 {
        if self.free.is_empty() {
            let first = (self.chunks.len() * Self::CHUNK) as u32;
            self.chunks.push(Box::new([const { AtomicU64::new(0) }; Self::CHUNK]));
            self.free.extend((first..first + Self::CHUNK as u32).rev());
        }
        self.free.pop().expect("a chunk was just added")
    }

    /// Gives back the word of a page that has no blocks any more.
    pub fn release(&mut self, n: u32) {
        self.get(n).store(0, Relaxed);
        self.free.push(n);
    }

    /// The word.
    pub fn get(&self, n: u32) -> &AtomicU64 {
        &self.chunks[n as usize / Self::CHUNK][n as usize % Self::CHUNK]
    }
}

/// Bits of the 64-byte lines from offset `from` to `to` (exclusive) of a page.
pub(super) fn lines(from: u64, to: u64) -> u64 {
    if from >= to {
        return 0;
    }
    let (first, last) = (from / 64, (to - 1) / 64);
    u64::MAX >> (63 - (last - first)) << first
}

/// Hashes page addresses: one multiplication, as they are chosen by the guest but the map is bounded anyway.
#[derive(Default)]
pub(super) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, v: u64) {
        let h = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ h >> 32;
    }
}
