//! Guest code as front ends read it.
//!
//! Problem: guest code may change while it is looked at, and reading what is no memory may have effects. Strategy: a copy, made
//! piece by piece since blocks are short, of one page or two; of what is no memory, no more than an instruction.

use super::blocks::NO_PAGE;
use crate::env::Runtime;
use crate::guest::{CodeFetch, Exception, Guest, MIN_FETCH};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::softmmu::{RETRY_VECTOR, fetch_page};

/// Bytes that are read of code which is not in RAM or ROM: more than any guest's instruction.
const MMIO_FETCH: usize = 16;
/// Bytes that are copied of other code at first.
const FIRST_FETCH: usize = 128;
const _: () = assert!(MMIO_FETCH < MIN_FETCH && MIN_FETCH <= FIRST_FETCH);

/// A copy of guest code, so that it does not change while it is looked at. Blocks are short, so it is made piece by piece.
pub(super) struct FetchedPage {
    pub bytes: Box<[u8; PAGE_SIZE as usize]>,
    /// Guest-virtual address of the first byte.
    pub from: u64,
    /// Bytes that are copied.
    pub len: usize,
    /// Bytes that may be.
    pub room: usize,
    /// Guest-physical page address.
    pub phys: u64,
}

impl FetchedPage {
    /// Nothing yet.
    pub fn new() -> FetchedPage {
        FetchedPage { bytes: Box::new([0; PAGE_SIZE as usize]), from: 0, len: 0, room: 0, phys: NO_PAGE }
    }

    /// Whether code at `pc` is in it.
    pub fn covers(&self, pc: u64) -> bool {
        pc.wrapping_sub(self.from) < self.room as u64
    }

    /// What is copied from `pc` on.
    pub fn get(&self, pc: u64) -> &[u8] {
        self.bytes[..self.len].get(pc.wrapping_sub(self.from) as usize..).unwrap_or_default()
    }
}

/// The pages of one block's code, fetched as they are wanted.
pub(super) struct Fetcher<'a, G: Guest> {
    pub env: &'a G::Env,
    pub rt: &'a mut Runtime,
    pub pages: &'a mut [FetchedPage; 2],
    /// Pages that were fetched.
    pub used: usize,
    /// Pages are wanted from their start on: the code goes back in them.
    pub whole: bool,
    /// Something came from neither RAM nor ROM.
    pub volatile: bool,
}

impl<G: Guest> Fetcher<'_, G> {
    /// Fetches the page of `pc`, as the next one.
    pub fn fill(&mut self, pc: u64) -> Result<(), Exception> {
        let phys = fetch_page::<G>(self.env, self.rt, pc)?.phys;
        if self.whole
            && (self.used == self.pages.len() || self.rt.mmu.memory.ram_page(phys & !PAGE_MASK).is_none())
        {
            // What is no memory must not be read without need, nor twice; a trace has two pages.
            return Err(Exception { vector: RETRY_VECTOR, error: None, address: pc });
        }
        let offset = if self.whole { 0 } else { (phys & PAGE_MASK) as usize };
        let page = &mut self.pages[self.used];
        page.phys = phys & !PAGE_MASK;
        page.from = if self.whole { pc & !PAGE_MASK } else { pc };
        page.len = 0;
        page.room = PAGE_SIZE as usize - offset;
        // Before the bytes are read: see `Remote`.
        self.rt.blocks.note_code(page.phys);
        self.used += 1;
        self.extend(self.used - 1);
        Ok(())
    }

    /// Copies more bytes of a page.
    pub fn extend(&mut self, i: usize) {
        let page = &mut self.pages[i];
        let start = page.len;
        let offset = PAGE_SIZE as usize - page.room;
        match self.rt.mmu.memory.ram_page(page.phys) {
            Some(ram) => {
                page.len = page.room.min(FIRST_FETCH.max(2 * start));
                let to = &mut page.bytes[start..page.len];
                // SAFETY: the page is valid for reads as long as the memory object lives; the copy ends with the page, as
                // `room` does, which both checks of slices hold to.
                unsafe {
                    let from = ram.host.wrapping_add(offset + start);
                    std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
                }
            }
            None => {
                self.volatile = true;
                page.room = page.room.min(MMIO_FETCH);
                page.len = page.room;
                for (i, byte) in page.bytes[start..page.len].iter_mut().enumerate() {
                    *byte = self.rt.mmu.memory.mmio_read(page.phys + (offset + start + i) as u64, 1) as u8;
                }
            }
        }
    }
}

impl<G: Guest> CodeFetch for Fetcher<'_, G> {
    fn fetch(&mut self, pc: u64) -> Result<&[u8], Exception> {
        let i = match (0..self.used).find(|i| self.pages[*i].covers(pc)) {
            Some(i) => i,
            None => {
                assert!(self.whole || self.used < 2, "a block has bytes of two pages at most");
                self.fill(pc)?;
                self.used - 1
            }
        };
        while self.pages[i].get(pc).len() < MIN_FETCH && self.pages[i].len < self.pages[i].room {
            self.extend(i);
        }
        Ok(self.pages[i].get(pc))
    }
}
