//! Blocks whose guest bytes change back.
//!
//! Problem: translation costs microseconds, and the same code often comes back to the same place: a kernel patches a
//! branch and patches it back, a device writes a page anew, a program loads the same overlay again. Strategy: a block that is
//! invalidated is *retired*. It keeps its host code, which nothing leads to, its number and the guest bytes that it was
//! made from, until its segment of the code cache is evicted. Before a block is translated, the retired ones of the same
//! key are compared with memory.
//!
//! Invariants:
//! - A retired block has no links, in either direction, and is in no page's list.
//! - There are at most [`VERSIONS`] retired blocks of a key, so a guest that writes ever new code at an address makes no
//!   search long.
//! - A change of the breakpoints that would have made a block another one makes it dead, also if it was retired.

use super::{Blocks, State};
use crate::guest::BlockKey;
use crate::memory::{PAGE_MASK, PhysMemory};

/// Retired blocks of a key, at most.
pub(super) const VERSIONS: usize = 4;
/// Guest bytes compared at a time.
const CHUNK: usize = 64;

impl Blocks {
    /// Makes a block that was just killed retired.
    pub(super) fn retire(&mut self, id: u32) {
        let t = *self.get(id);
        if t.bridge || t.trace.is_some() {
            return;
        }
        let known = |n: usize| self.retired(t.phys, t.key()).nth(n);
        if let (Some(oldest), Some(_)) = (known(0), known(VERSIONS - 1)) {
            self.forget(oldest);
        }
        self.tbs[id as usize].state = State::Retired;
        self.retired += 1;
        self.hash_insert(id);
    }

    /// Makes a block dead if it is retired.
    pub(super) fn forget(&mut self, id: u32) {
        if self.get(id).state == State::Retired {
            self.hash_remove(id);
            self.tbs[id as usize].state = State::Dead;
            self.retired -= 1;
        }
    }

    /// The retired blocks of a key, whatever their second pages are.
    pub(super) fn retired(&self, phys: u64, key: BlockKey) -> impl Iterator<Item = u32> {
        self.of_hash(phys, key).filter(move |id| {
            let t = self.get(*id);
            t.state == State::Retired && t.is(phys, key)
        })
    }

    /// The retired blocks of a key, whatever their second pages are, whose first bytes are in memory now.
    pub(in super::super) fn candidates(
        &self,
        (phys, key): (u64, BlockKey),
        memory: &dyn PhysMemory,
    ) -> [Option<u32>; VERSIONS] {
        let mut found = [None; VERSIONS];
        let mut retired = self.retired(phys, key).peekable();
        if retired.peek().is_none() {
            return found;
        }
        let (page, at) = (phys & !PAGE_MASK, (phys & PAGE_MASK) as usize);
        // Before the bytes are read: see `Remote`.
        self.note_code(page);
        let Some(ram) = memory.ram_page(page) else { return found };
        let mut now = [0; CHUNK];
        let now = &mut now[..CHUNK.min(PAGE_MASK as usize + 1 - at)];
        // SAFETY: the page is valid for reads as long as the memory object lives, and the copy ends with it; the buffer is as
        // long as the copy.
        unsafe { std::ptr::copy_nonoverlapping(ram.host.wrapping_add(at), now.as_mut_ptr(), now.len()) };
        let begins = |id: &u32| {
            let made_from = self.made_of(*id);
            let n = made_from.len().min(now.len());
            made_from[..n] == now[..n]
        };
        for (to, id) in found.iter_mut().zip(retired.filter(begins)) {
            *to = Some(id);
        }
        found
    }

    /// The guest bytes that a block was made from.
    fn made_of(&self, id: u32) -> &[u8] {
        let t = self.get(id);
        &self.segments[t.segment as usize].side[t.side as usize..][..usize::from(t.bytes)]
    }

    /// Makes a retired block live, if its guest bytes are what it was made from. The flags say which of its two pages have no
    /// other block.
    pub(in super::super) fn revive(&mut self, id: u32, memory: &dyn PhysMemory) -> Option<[bool; 2]> {
        debug_assert_eq!(self.get(id).state, State::Retired);
        if !self.is_unchanged(id, memory) {
            return None;
        }
        self.tbs[id as usize].state = State::Live;
        self.retired -= 1;
        self.live += 1;
        self.stats.revived += 1;
        Some(self.pages_insert(id))
    }

    /// Whether a block's guest bytes are in memory now.
    fn is_unchanged(&self, id: u32, memory: &dyn PhysMemory) -> bool {
        let t = self.get(id);
        let mut rest = self.made_of(id);
        for which in 0..1 + usize::from(t.spans()) {
            let (page, from, to) = t.span(which);
            // Before the bytes are read: see `Remote`.
            self.note_code(page);
            let Some(ram) = memory.ram_page(page) else { return false };
            let (here, there) = rest.split_at((to - from) as usize);
            for (n, chunk) in here.chunks(CHUNK).enumerate() {
                let at = from as usize + n * CHUNK;
                debug_assert!(at + chunk.len() <= PAGE_MASK as usize + 1);
                let mut now = [0; CHUNK];
                // SAFETY: the page is valid for reads as long as the memory object lives, and a block's span ends with
                // its page; the buffer has room for a chunk.
                unsafe {
                    let from = ram.host.wrapping_add(at);
                    std::ptr::copy_nonoverlapping(from, now.as_mut_ptr(), chunk.len());
                }
                if now[..chunk.len()] != *chunk {
                    return false;
                }
            }
            rest = there;
        }
        true
    }
}
