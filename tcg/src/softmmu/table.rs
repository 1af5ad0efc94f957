//! A first-level table: what generated code looks up, for one address space and MMU mode.
//!
//! A table has two ways. The *first* is what the inline hit test of generated code reads. Pages whose addresses agree in the
//! bits of its index displace each other there, and a page that holds translated code never has a write tag there.
//! Both cases are frequent and must stay cheap, so the inline test, when it fails, is followed by a short routine that looks at
//! the *second* way: it has another index, and where the first way would say "not directly" for the sake of
//! code, it leads to a bit map of the page's 64-byte lines that hold code. Every page is entered in both ways.
//!
//! What a guest maps by large pages (its kernel's direct map, big heaps) exceeds both ways soon, though few translations
//! say it all: so the routine at last looks at the *large* entries, each for [`LARGE_BITS`] bits of address. Every walk that
//! finds so much mapped alike enters it. Being several times slower than the first way, they lead to the slow path now and
//! then, too, which enters the page of 4 KiB without a walk.
//!
//! A table is large for what one process uses of it, and flushes are frequent, so each of the three has two bit maps of the
//! entries in use, one for local and one for global translations: clearing costs what was used.
//!
//! Invariants:
//! - A write tag of the first way: no block was made from the page.
//! - A write tag of the second way: the blocks that were made from the page are in the lines whose bits are set where
//!   `lines` points. The word it points to is never freed while the table lives, but may come to speak of another
//!   page when this one has no blocks any more; then it forbids more than it must, until the page gets a block again and
//!   [`Table::protect`] is called.
//! - A large entry: all of it is RAM or ROM, contiguous in the host's memory as in the guest's, with the same rights, and
//!   the guest has not flushed any address in it. A write tag: no block was made from any page of it.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::second_level::GLOBAL;
use super::{TLB_ENTRIES, TLB_INVALID, TlbEntry, page_of, set_bits};

/// Words of a bit map of a way's entries.
const WORDS: usize = TLB_ENTRIES / 64;
/// Large entries; a power of two.
pub const LARGE_ENTRIES: usize = 256;
/// log2 of the bytes that a large entry is for.
pub const LARGE_BITS: u32 = 21;
/// Words of a bit map of the large entries.
const LARGE_WORDS: usize = LARGE_ENTRIES / 64;

/// An entry of a second way; see [`TlbEntry`] for the fields they share.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub struct SecondWayEntry {
    /// Guest-virtual page address that may be read directly, or [`TLB_INVALID`].
    pub read: u64,
    /// Guest-virtual page address that may be written directly outside of [`SecondWayEntry::lines`], or [`TLB_INVALID`].
    pub write: u64,
    /// Host address minus guest-virtual address of the page (wrapping).
    pub addend: u64,
    /// A bit for each 64 bytes of the page that stores must leave to the slow path.
    pub lines: *const AtomicU64,
}

impl SecondWayEntry {
    const EMPTY: SecondWayEntry =
        SecondWayEntry { read: TLB_INVALID, write: TLB_INVALID, addend: 0, lines: &raw const NO_LINES };
}

/// Index of a page in the second way: other than in the first, pages at a distance of a multiple of the table's reach
/// differ. Neighbouring pages differ, too, so the tag of an access's last byte tells an access that crosses pages.
#[inline]
pub const fn second_way_index(page: u64) -> usize {
    let n = page >> 12;
    ((n ^ n >> 9 & !1) % TLB_ENTRIES as u64) as usize
}

/// Distance of the second way from the start of a table, in bytes.
pub const SECOND_WAY: usize = std::mem::offset_of!(Table, second);

/// Distance of the large entries from the start of a table, in bytes. They are as those of the first way, but for their size.
pub const LARGE: usize = std::mem::offset_of!(Table, large);

/// The lines of pages without code.
static NO_LINES: AtomicU64 = AtomicU64::new(0);

/// What a table gets to know of a page.
#[derive(Clone, Copy)]
pub struct Fill<'a> {
    /// Whether it may be read directly.
    pub read: bool,
    /// Whether it may be written directly where there is no code.
    pub write: bool,
    /// Host address of its first byte.
    pub host: *mut u8,
    /// Guest-physical page address, and [`GLOBAL`].
    pub phys: u64,
    /// Lines that hold code, if it has code.
    pub code: Option<&'a AtomicU64>,
}

/// What a table gets to know of a large page, or of a part of one.
#[derive(Clone, Copy)]
pub struct LargeFill {
    /// Whether it may be read directly.
    pub read: bool,
    /// Whether it may be written directly: there is no code in it.
    pub write: bool,
    /// Host address of its first byte.
    pub host: *mut u8,
    /// Guest-physical address of its first byte, and [`GLOBAL`].
    pub phys: u64,
}

#[derive(Clone, Copy)]
struct Used<const N: usize> {
    local: [u64; N],
    global: [u64; N],
}

impl<const N: usize> Used<N> {
    const NONE: Used<N> = Used { local: [0; N], global: [0; N] };

    fn set(&mut self, i: usize, global: bool) {
        let (word, bit) = (i / 64, 1 << (i % 64));
        let (here, there) =
            if global { (&mut self.global, &mut self.local) } else { (&mut self.local, &mut self.global) };
        here[word] |= bit;
        there[word] &= !bit;
    }

    fn clear(&mut self, i: usize) {
        let (word, bit) = (i / 64, 1 << (i % 64));
        self.local[word] &= !bit;
        self.global[word] &= !bit;
    }

    fn all(&self) -> [u64; N] {
        std::array::from_fn(|w| self.local[w] | self.global[w])
    }
}

/// A table.
#[repr(C)]
pub struct Table {
    first: [TlbEntry; TLB_ENTRIES],
    second: [SecondWayEntry; TLB_ENTRIES],
    /// [`TlbEntry::phys`] of the second way.
    second_phys: [u64; TLB_ENTRIES],
    large: [TlbEntry; LARGE_ENTRIES],
    first_used: Used<WORDS>,
    second_used: Used<WORDS>,
    large_used: Used<LARGE_WORDS>,
}

/// First address of what a large entry for `va` is for.
pub fn large_of(address: u64) -> u64 {
    address >> LARGE_BITS << LARGE_BITS
}

fn large_index(va: u64) -> usize {
    (va >> LARGE_BITS) as usize % LARGE_ENTRIES
}

/// Tells whether an entry's page is in the large page of `1 << bits` bytes that contains `va`.
fn in_large(read: u64, write: u64, va: u64, bits: u32) -> bool {
    let tag = if read != TLB_INVALID { read } else { write };
    tag != TLB_INVALID && tag >> bits == va >> bits
}

impl Table {
    const EMPTY: Table = Table {
        first: [TlbEntry::EMPTY; TLB_ENTRIES],
        second: [SecondWayEntry::EMPTY; TLB_ENTRIES],
        second_phys: [0; TLB_ENTRIES],
        large: [TlbEntry::EMPTY; LARGE_ENTRIES],
        first_used: Used::NONE,
        second_used: Used::NONE,
        large_used: Used::NONE,
    };

    /// The entries of the first way.
    pub fn entries(&self) -> impl Iterator<Item = &TlbEntry> {
        self.first.iter().filter(|e| e.read != TLB_INVALID || e.write != TLB_INVALID)
    }

    /// Enters a page.
    pub fn set(&mut self, page: u64, fill: Fill<'_>) {
        let tag = |allowed| if allowed { page } else { TLB_INVALID };
        let global = fill.phys & GLOBAL != 0;
        let addend = (fill.host as u64).wrapping_sub(page);
        let i = (page >> 12) as usize % TLB_ENTRIES;
        self.first_used.set(i, global);
        let write = tag(fill.write && fill.code.is_none());
        self.first[i] = TlbEntry { read: tag(fill.read), write, addend, phys: fill.phys };
        let i = second_way_index(page);
        self.second_used.set(i, global);
        let lines = std::ptr::from_ref(fill.code.unwrap_or(&NO_LINES));
        self.second[i] = SecondWayEntry { read: tag(fill.read), write: tag(fill.write), addend, lines };
        self.second_phys[i] = fill.phys;
    }

    /// Enters a large page, or a part of one, that begins at `va`.
    pub fn set_large(&mut self, va: u64, fill: LargeFill) {
        let tag = |allowed| if allowed { va } else { TLB_INVALID };
        let i = large_index(va);
        self.large_used.set(i, fill.phys & GLOBAL != 0);
        let addend = (fill.host as u64).wrapping_sub(va);
        self.large[i] = TlbEntry { read: tag(fill.read), write: tag(fill.write), addend, phys: fill.phys };
    }

    /// The large entry that allows an access to the page of 4 KiB at `page`.
    pub fn large(&self, page: u64, write: bool) -> Option<&TlbEntry> {
        let e = &self.large[large_index(page)];
        (large_of(page) == if write { e.write } else { e.read }).then_some(e)
    }

    fn clear_first(&mut self, i: usize) {
        self.first_used.clear(i);
        self.first[i] = TlbEntry::EMPTY;
    }

    fn clear_second(&mut self, i: usize) {
        self.second_used.clear(i);
        self.second[i] = SecondWayEntry::EMPTY;
    }

    fn clear_large(&mut self, i: usize) {
        self.large_used.clear(i);
        self.large[i] = TlbEntry::EMPTY;
    }

    /// Drops all local translations.
    pub fn clear_local(&mut self) {
        take_bits(&mut self.first_used.local, |i| self.first[i] = TlbEntry::EMPTY);
        take_bits(&mut self.second_used.local, |i| self.second[i] = SecondWayEntry::EMPTY);
        take_bits(&mut self.large_used.local, |i| self.large[i] = TlbEntry::EMPTY);
    }

    /// Drops all global translations.
    pub fn clear_global(&mut self) {
        take_bits(&mut self.first_used.global, |i| self.first[i] = TlbEntry::EMPTY);
        take_bits(&mut self.second_used.global, |i| self.second[i] = SecondWayEntry::EMPTY);
        take_bits(&mut self.large_used.global, |i| self.large[i] = TlbEntry::EMPTY);
    }

    /// Drops a page, if it is global or `only_global` is not set, and likewise what large entry it is part of.
    pub fn drop_page(&mut self, page: u64, only_global: bool) {
        let i = (page >> 12) as usize % TLB_ENTRIES;
        let e = &self.first[i];
        if (e.read == page || e.write == page) && (!only_global || e.phys & GLOBAL != 0) {
            self.clear_first(i);
        }
        let i = second_way_index(page);
        let e = &self.second[i];
        if (e.read == page || e.write == page) && (!only_global || self.second_phys[i] & GLOBAL != 0) {
            self.clear_second(i);
        }
        let i = large_index(page);
        let e = &self.large[i];
        if in_large(e.read, e.write, page, LARGE_BITS) && (!only_global || e.phys & GLOBAL != 0) {
            self.clear_large(i);
        }
    }

    /// Drops all pages of the large page of `1 << size` bytes that contains `va`, or the global ones among them.
    pub fn drop_large(&mut self, va: u64, size: u32, only_global: bool) {
        for i in bits(if only_global { self.first_used.global } else { self.first_used.all() }) {
            let e = &self.first[i];
            if in_large(e.read, e.write, va, size) {
                self.clear_first(i);
            }
        }
        for i in bits(if only_global { self.second_used.global } else { self.second_used.all() }) {
            let e = &self.second[i];
            if in_large(e.read, e.write, va, size) {
                self.clear_second(i);
            }
        }
        for i in bits(if only_global { self.large_used.global } else { self.large_used.all() }) {
            let e = &self.large[i];
            if in_large(e.read, e.write, va, size.max(LARGE_BITS)) {
                self.clear_large(i);
            }
        }
    }

    /// A physical page got its first block.
    pub fn protect(&mut self, phys_page: u64, lines: &AtomicU64) {
        self.protect_all(|page| (page == phys_page).then_some(lines), |large| large == large_of(phys_page));
    }

    /// Looks through all entries for pages with code, and for large ones that `code_in` says have code somewhere.
    pub fn protect_all<'a>(
        &mut self,
        code: impl Fn(u64) -> Option<&'a AtomicU64>,
        code_in: impl Fn(u64) -> bool,
    ) {
        for i in bits(self.large_used.all()) {
            let e = &mut self.large[i];
            if e.write != TLB_INVALID && code_in(large_of(e.phys)) {
                e.write = TLB_INVALID;
            }
        }
        for i in bits(self.first_used.all()) {
            let e = &mut self.first[i];
            if e.write != TLB_INVALID && code(page_of(e.phys)).is_some() {
                e.write = TLB_INVALID;
            }
        }
        for i in bits(self.second_used.all()) {
            let e = &mut self.second[i];
            if e.write != TLB_INVALID
                && let Some(lines) = code(page_of(self.second_phys[i]))
            {
                e.lines = lines;
            }
        }
    }
}

/// Clears the set bits, with what is to be done for each.
fn take_bits(words: &mut [u64], mut each: impl FnMut(usize)) {
    for (i, word) in words.iter_mut().enumerate().filter(|(_, w)| **w != 0) {
        set_bits(std::mem::take(word)).for_each(|bit| each(i * 64 + bit as usize));
    }
}

/// Indices of the set bits.
fn bits<const N: usize>(words: [u64; N]) -> impl Iterator<Item = usize> {
    let used = words.into_iter().enumerate().filter(|(_, w)| *w != 0);
    used.flat_map(|(i, word)| set_bits(word).map(move |bit| i * 64 + bit as usize))
}

/// What tables that are not allocated yet are for generated code.
pub struct Nothing(Table);

// SAFETY: nobody writes to it, and the word that its pointers lead to is a static.
unsafe impl Sync for Nothing {}

impl Nothing {
    /// As generated code sees it, which reads only.
    pub fn as_ptr(&self) -> *mut TlbEntry {
        (&raw const self.0).cast_mut().cast()
    }
}

/// The table that is used in place of tables that are not allocated yet. Never written.
pub static NOTHING: Nothing = Nothing(Table::EMPTY);

/// An owned table that generated code reads through a raw pointer, too: hence no `Box`.
pub struct TablePtr(NonNull<Table>);

impl TablePtr {
    /// An empty table.
    pub fn new() -> TablePtr {
        // A constant: large arrays do not go by way of the stack.
        TablePtr(NonNull::from(Box::leak(Box::new(Table::EMPTY))))
    }

    /// As generated code sees it.
    pub fn as_ptr(&self) -> *mut TlbEntry {
        self.0.as_ptr().cast()
    }
}

impl Deref for TablePtr {
    type Target = Table;

    fn deref(&self) -> &Table {
        // SAFETY: the pointer comes from a leaked box that only `drop` frees; generated code, the only other reader,
        // does not run while Rust code of the same thread does.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for TablePtr {
    fn deref_mut(&mut self) -> &mut Table {
        // SAFETY: as for `deref`; `&mut self` excludes other references.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for TablePtr {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak` in `new`, and freed once. Headers that point to it belong to the same vCPU, whose
        // environment is unbound first.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
