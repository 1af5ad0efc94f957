//! Memos: the pages in which accesses of traces found their bytes last.
//!
//! Problem: a look into the TLB takes seven instructions, the last of which waits for the address, and most accesses of a loop are
//! in the page that they were in the round before. Strategy: each such access has a memo of that page, at a fixed place, which
//! generated code compares with its address in five instructions; where the page is on the host does not depend on the
//! address then. An access that is elsewhere looks into the TLB out of line, and writes its memo anew. (`memos` in the x86-64
//! backend; an access whose memo is wrong too often does without, see [`Guesses`](crate::env::Guesses).)
//!
//! Invariants:
//! - A memo says no more than the first way of the current address space's TLB did when it was written, for the direction and MMU
//!   mode of its access. So all memos are forgotten by whatever may end that: the flush of any translation, a switch of spaces,
//!   a new block in a page that had none, another translation for an entry of the first way. ([`Runtime::forget_pages`],
//!   `protect` in `exec::translate`, `fill`.) Likewise where the guest is told of a page fault (`drop_failed`): it ends the translations of its address
//!   (SDM volume 3, 4.10.4.1), and the first way may have lost the entry that a memo was made from.
//! - The memos of a place are of one live trace, as others' accesses have another direction or mode: it is the
//!   [owner](crate::env::Guesses::owner), a trace that finds another one there is compiled without memos, and one that takes the place
//!   over forgets them all. (`Translator::trace`.)
//!
//! [`Runtime::forget_pages`]: crate::env::Runtime::forget_pages

use crate::env::GUESSING;

/// Memos of a block, at most.
pub const MEMOS: usize = 24;
/// Blocks whose memos one word of [`PageMemos::used`] tells of.
pub const MEMO_WORD: usize = u32::BITS as usize;

/// The page of one access, as generated code reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Memo {
    /// Guest-virtual address of the page.
    pub start: u64,
    /// How many bytes of the page may be the first of the access, from `start` on; zero if there is no page.
    pub room: u64,
    /// Host address of the page.
    pub host: u64,
}

impl Memo {
    const NONE: Memo = Memo { start: 0, room: 0, host: 0 };
}

/// All memos of a vCPU.
#[repr(C)]
pub struct PageMemos {
    /// By the last bits of blocks' numbers. Zeroes are memos of no page.
    pub blocks: [[Memo; MEMOS]; GUESSING],
    /// The blocks that have written any since they were forgotten, as bit masks.
    pub used: [u32; GUESSING / MEMO_WORD],
    /// Not zero if there are such blocks.
    pub any: u32,
}

impl PageMemos {
    /// Forgets all pages.
    #[inline]
    pub fn forget(&mut self) {
        if self.any != 0 {
            self.forget_used();
        }
    }

    fn forget_used(&mut self) {
        self.any = 0;
        for (word, blocks) in self.used.iter_mut().zip(self.blocks.chunks_mut(MEMO_WORD)) {
            let mut used = std::mem::take(word);
            while used != 0 {
                blocks[used.trailing_zeros() as usize].fill(Memo::NONE);
                used &= used - 1;
            }
        }
    }

    /// How many memos are of a page.
    pub fn known(&self) -> usize {
        self.blocks.as_flattened().iter().filter(|memo| memo.room != 0).count()
    }
}
