//! The code cache: executable memory for translated blocks.
//!
//! Problem: host code is written all the time (translation, linking), but a mapping that is writable and executable
//! at once turns any stray write into code. And it must be bounded: a guest that runs new code forever must not make
//! it grow.
//!
//! Strategy: one memory file is mapped twice, read-write and read-execute; a place is an *offset*, which both
//! mappings share. It begins with a fixed area (the backend's thunks, then a scratch place for blocks that run once).
//! The rest is divided into segments that are filled in turn: when a block does not fit, the next segment is emptied
//! and filled from its start. So the oldest code goes first, many blocks at a time, and no free list is needed.
//!
//! A segment is filled from both of its ends: the hot parts of blocks grow upward and the cold ones downward, so that what
//! is run lies close together.
//!
//! Invariants:
//! - No mapping is writable and executable.
//! - Offsets handed out are within the file and 16-aligned; the file is at most 2 GiB, so that an offset is a `u32`
//!   and a 32-bit displacement reaches everything.
//! - Whoever empties a segment has unlinked every block in it (the owner, [`Blocks`](crate::exec::Blocks)).
//! - Nothing but [`CodeCache::write`] and [`CodeCache::store_word`] writes; the latter's words may be executed meanwhile.

use std::fs::File;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::backend::{Compiled, Room};

/// Smallest cache, in MiB.
pub const MIN_MIB: u32 = 8;
/// Largest cache, in MiB.
pub const MAX_MIB: u32 = 2048;
/// Cache without an option, in MiB.
pub const DEFAULT_MIB: u32 = 128;

/// Alignment of blocks.
const ALIGN: usize = Compiled::ALIGN;
/// Room for the backend's thunks.
const THUNKS: usize = 128 << 10;
/// Room for the block that runs once.
const SCRATCH: usize = 64 << 10;
/// Segments: the part of the code that an eviction takes is one of so many.
const SEGMENTS: usize = 16;

/// Why there is no code cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The size is out of range.
    #[error("tb-size={0}: the code cache takes {MIN_MIB} to {MAX_MIB} (MiB)")]
    Size(u32),
    /// The host refused memory.
    #[error("cannot map a code cache of {mib} MiB: {error}; try a smaller tb-size")]
    Map {
        /// Size asked for.
        mib: u32,
        /// What the host said.
        error: std::io::Error,
    },
}

/// Executable memory with two views. See the module documentation.
pub struct CodeCache {
    writable: MmapRaw,
    executable: MmapRaw,
    segment_len: usize,
    segments: usize,
    /// Segment that is being filled.
    current: usize,
    /// Its free part, between the hot and the cold code; 16-aligned.
    free: Range<usize>,
}

impl CodeCache {
    /// A cache of `mib` MiB.
    pub fn new(mib: u32) -> Result<CodeCache, CacheError> {
        if !(MIN_MIB..=MAX_MIB).contains(&mib) {
            return Err(CacheError::Size(mib));
        }
        let len = ((mib as usize) << 20) - THUNKS - SCRATCH;
        Self::with_segments(SEGMENTS, len / SEGMENTS).map_err(|error| CacheError::Map { mib, error })
    }

    /// A cache of so many segments of so many bytes (rounded down to the alignment).
    pub(crate) fn with_segments(segments: usize, segment_len: usize) -> std::io::Result<CodeCache> {
        let segment_len = segment_len & !(ALIGN - 1);
        let len = THUNKS + SCRATCH + segments * segment_len;
        let file = File::from(memfd_create("tessera-code", MemfdFlags::CLOEXEC)?);
        file.set_len(len as u64)?;
        let writable = MmapOptions::new().len(len).map_raw(&file)?;
        // SAFETY: the file is anonymous and this process is the only one that has it, so nobody truncates it; it is
        // turned into a raw mapping at once, so no reference to bytes that change is made.
        let executable = MmapRaw::from(unsafe { MmapOptions::new().len(len).map_exec(&file)? });
        let mut cache = CodeCache { writable, executable, segment_len, segments, current: 0, free: 0..0 };
        cache.free = cache.segment(0);
        Ok(cache)
    }

    /// Address at which the byte at `offset` is executed.
    #[inline]
    pub fn address(&self, offset: u32) -> u64 {
        self.executable.as_ptr() as u64 + u64::from(offset)
    }

    /// Offset of an executable address, if it is in the cache.
    #[inline]
    pub fn offset(&self, address: u64) -> Option<u32> {
        let offset = address.wrapping_sub(self.executable.as_ptr() as u64);
        (offset < self.executable.len() as u64).then_some(offset as u32)
    }

    /// Where thunks go.
    pub fn thunks(&self) -> Range<u32> {
        0..THUNKS as u32
    }

    /// Where a block goes that is run once and then overwritten.
    pub fn scratch(&self) -> Range<u32> {
        THUNKS as u32..(THUNKS + SCRATCH) as u32
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// The segment that is being filled.
    pub fn current_segment(&self) -> usize {
        self.current
    }

    /// Where the next block goes; if it does not fit, it must go to the next segment.
    #[inline]
    pub fn free(&self) -> Range<u32> {
        self.free.start as u32..self.free.end as u32
    }

    /// The addresses at which these offsets are executed.
    #[inline]
    pub fn room(&self, offsets: Range<u32>) -> Room {
        Room { start: self.address(offsets.start), end: self.address(offsets.end) }
    }

    /// Places code that was compiled for [`CodeCache::free`], and marks it as used; the offset of its hot part.
    pub fn place(&mut self, code: &Compiled) -> u32 {
        let start = self.free.start;
        assert!(code.fits(self.free.len()), "a block was placed beyond its segment");
        self.write_parts(start as u32, code);
        self.free = (start + code.hot.len()).next_multiple_of(ALIGN)..start + code.cold_at as usize;
        start as u32
    }

    /// Writes code that was compiled for a room that begins at `offset`. Nothing there may be executed meanwhile.
    pub fn write_parts(&self, offset: u32, code: &Compiled) {
        self.write(offset, &code.hot);
        self.write(offset + code.cold_at, &code.cold);
    }

    /// Goes to the next segment, whose blocks must be unlinked, and returns its number.
    pub fn advance(&mut self) -> usize {
        self.current = (self.current + 1) % self.segments;
        self.free = self.segment(self.current);
        self.current
    }

    /// Goes back to the start of the first segment; all blocks must be unlinked.
    pub fn clear(&mut self) {
        self.current = 0;
        self.free = self.segment(0);
    }

    /// Copies bytes to `offset`. Nothing there may be executed meanwhile.
    pub fn write(&self, offset: u32, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        assert!(end <= self.writable.len(), "code written beyond the cache");
        // SAFETY: the range was just checked to be in the mapping, of which no reference exists; `bytes` is a Rust
        // slice and so lies outside of it.
        unsafe {
            let to = self.writable.as_mut_ptr().add(offset as usize);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Replaces the 4-aligned word at `offset`, which may be executed meanwhile.
    pub fn store_word(&self, offset: u32, word: u32) {
        assert!(offset as usize + 4 <= self.writable.len() && offset.is_multiple_of(4), "misplaced link");
        // SAFETY: the word was just checked to be aligned and in the mapping; it is only ever accessed as an atomic
        // while its block is alive.
        unsafe {
            let at = self.writable.as_mut_ptr().add(offset as usize).cast::<u32>();
            AtomicU32::from_ptr(at).store(word, Ordering::Release);
        }
    }

    /// Bytes of a segment.
    pub fn segment_len(&self) -> usize {
        self.segment_len
    }

    fn segment(&self, n: usize) -> Range<usize> {
        let start = THUNKS + SCRATCH + n * self.segment_len;
        start..start + self.segment_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cache: &CodeCache, offset: u32, len: usize) -> Vec<u8> {
        // SAFETY: the tests read within the mapping, with no writer at work.
        unsafe { std::slice::from_raw_parts(cache.address(offset) as *const u8, len).to_vec() }
    }

    #[test]
    fn both_views_show_the_same_bytes() {
        let cache = CodeCache::with_segments(2, 4096).unwrap();
        let at = cache.free().start;
        cache.write(at, &[1, 2, 3, 4, 5]);
        cache.store_word(at, 0x0a0b_0c0d);
        assert_eq!(read(&cache, at, 5), [0x0d, 0x0c, 0x0b, 0x0a, 5]);
        assert_eq!(cache.offset(cache.address(at)), Some(at));
        assert_eq!(cache.offset(cache.address(0) - 1), None);
    }

    #[test]
    fn segments_are_filled_in_turn_and_do_not_overlap() {
        let mut cache = CodeCache::with_segments(3, 1000).unwrap();
        let first = cache.free();
        assert_eq!(first.len(), 992);
        let hot = vec![1; 17];
        let code = Compiled { hot, cold: vec![2; 20], cold_at: 992 - 32, ..Compiled::default() };
        assert!(code.fits(64) && !code.fits(63));
        assert_eq!(cache.place(&code), first.start);
        assert_eq!(cache.free(), first.start + 32..first.end - 32);
        assert_eq!(read(&cache, first.start, 18), [[1; 17].as_slice(), &[0]].concat());
        assert_eq!(read(&cache, first.end - 33, 22), [[0].as_slice(), &[2; 20], &[0]].concat());
        assert_eq!(cache.advance(), 1);
        assert_eq!(cache.free().start, first.end);
        assert_eq!(cache.advance(), 2);
        assert_eq!(cache.advance(), 0);
        assert_eq!(cache.free(), first);
        assert!(cache.scratch().end <= first.start && cache.thunks().end <= cache.scratch().start);
    }

    #[test]
    fn no_mapping_is_writable_and_executable() {
        let cache = CodeCache::with_segments(1, 4096).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let of = |p: u64| {
            let line = maps.lines().find(|l| l.starts_with(&format!("{p:x}-"))).unwrap();
            line.split_whitespace().nth(1).unwrap().to_string()
        };
        assert_eq!(of(cache.address(0)), "r-xs");
        assert_eq!(of(cache.writable.as_ptr() as u64), "rw-s");
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for mib in [0, MIN_MIB - 1, MAX_MIB + 1] {
            assert!(matches!(CodeCache::new(mib), Err(CacheError::Size(n)) if n == mib));
        }
    }
}
