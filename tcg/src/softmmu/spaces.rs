//! The first-level TLBs: a table for each resident address space and MMU mode.
//!
//! Work on spaces that are not current is put off until they are switched to, in [`Space::global_seen`] and
//! [`Space::protect_seen`].

use std::sync::atomic::AtomicU64;

use super::page_filter::PageFilter;
use super::second_level::GLOBAL;
use super::table::{Fill, LargeFill, NOTHING, Table, TablePtr};
use super::{MMU_MODES, TlbEntry, page_of};
use crate::env::Header;
use crate::exec::Blocks;

/// Address spaces that are kept. Linux on x86 with PCIDs uses at most 6 on a CPU, doubled by page table isolation.
pub(crate) const SPACES: usize = 16;
/// Dropped global pages that a space can catch up with one by one; a power of two.
const LOG: usize = 64;

/// Which large pages 4 KiB entries were made from: a filter that may say yes wrongly, never no.
pub(crate) struct LargePages {
    /// log2 of the sizes in use, as a bit mask.
    sizes: u64,
    filter: [u64; 32],
}

impl LargePages {
    pub const fn new() -> LargePages {
        LargePages { sizes: 0, filter: [0; 32] }
    }

    fn bit(va: u64, bits: u32) -> (usize, u64) {
        let h = ((va >> bits) ^ u64::from(bits) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53;
        (h as usize / 64, 1 << (h % 64))
    }

    /// Notes that a part of the large page that contains `va` is cached.
    pub fn note(&mut self, va: u64, bits: u32) {
        let (word, bit) = Self::bit(va, bits);
        self.sizes |= 1 << bits;
        self.filter[word] |= bit;
    }

    /// log2 of the sizes of noted large pages that may contain `va`.
    pub fn containing(&self, va: u64) -> impl Iterator<Item = u32> {
        let mut found = 0u64;
        let mut sizes = self.sizes;
        while sizes != 0 {
            let bits = sizes.trailing_zeros();
            sizes &= sizes - 1;
            let (word, bit) = Self::bit(va, bits);
            if self.filter[word] & bit != 0 {
                found |= 1 << bits;
            }
        }
        super::set_bits(found)
    }
}

/// A resident address space.
pub(crate) struct Space {
    /// The guest's name of it; meaningless while the slot is not in use.
    key: u64,
    in_use: bool,
    /// Our name of its local translations. Never used again once given up.
    pub asid: u64,
    /// Name of the state of its code mappings, for jump cache tags; changes at least as often as `asid`.
    pub code_id: u64,
    last_used: u64,
    /// Entries of the log that were applied.
    global_seen: u64,
    /// [`Spaces::protects`] when the tables were last looked through.
    protect_seen: u64,
    tables: [Option<TablePtr>; MMU_MODES],
    /// Local large pages.
    large: LargePages,
    /// Local pages that code was fetched from.
    fetched: PageFilter,
}

/// All resident address spaces of a vCPU.
pub(crate) struct Spaces {
    /// MMU mode that [`Header::tlb_main`] is for.
    main_mmu: u8,
    slots: Vec<Space>,
    current: usize,
    next_id: u64,
    global_asid: u64,
    /// [`Space::code_id`] of what spaces have in common: mappings of code in global pages.
    global_code_id: u64,
    /// Counts switches, for the choice of the least recently used.
    clock: u64,
    /// Pages whose global translations were dropped; the last [`LOG`] of `logged`.
    log: [u64; LOG],
    logged: u64,
    /// Global large pages.
    pub global_large: LargePages,
    /// Global pages that code was fetched from.
    global_fetched: PageFilter,
    /// Lowest and highest page ever cached as global since the last flush of everything.
    global_range: (u64, u64),
    /// Pages that lost their write tags so far.
    protects: u64,
}

impl Spaces {
    pub fn new() -> Spaces {
        let slots = (0..SPACES)
            .map(|i| Space {
                key: 0,
                in_use: false,
                asid: 3 + 2 * i as u64,
                code_id: 4 + 2 * i as u64,
                last_used: 0,
                global_seen: 0,
                protect_seen: 0,
                tables: [const { None }; MMU_MODES],
                large: LargePages::new(),
                fetched: PageFilter::new(),
            })
            .collect();
        Spaces {
            main_mmu: 0,
            slots,
            current: 0,
            next_id: 2 + 2 * SPACES as u64 + 1,
            global_asid: 1,
            global_code_id: 2,
            clock: 0,
            log: [0; LOG],
            logged: 0,
            global_large: LargePages::new(),
            global_fetched: PageFilter::new(),
            global_range: (u64::MAX, 0),
            protects: 0,
        }
    }

    /// The current space.
    #[inline]
    pub fn current(&self) -> &Space {
        &self.slots[self.current]
    }

    /// The entries of the current space's tables with their MMU modes.
    pub fn entries(&self) -> impl Iterator<Item = (u8, &TlbEntry)> {
        let tables = (0..).zip(&self.current().tables);
        tables.flat_map(|(mmu, table)| table.iter().flat_map(move |t| t.entries().map(move |e| (mmu, e))))
    }

    /// ASID of global translations.
    #[inline]
    pub fn global_asid(&self) -> u64 {
        self.global_asid
    }

    /// Name of the state of code mappings in global pages.
    #[inline]
    pub fn global_code_id(&self) -> u64 {
        self.global_code_id
    }

    /// Slot of a resident space.
    pub fn find(&self, key: u64) -> Option<usize> {
        self.slots.iter().position(|s| s.in_use && s.key == key)
    }

    /// ASID of a slot.
    pub fn asid_of(&self, slot: usize) -> u64 {
        self.slots[slot].asid
    }

    /// Slot of the current space.
    pub fn current_slot(&self) -> usize {
        self.current
    }

    /// The pages that code was fetched from: local ones of a slot, or global ones.
    #[inline]
    pub fn fetched(&self, slot: Option<usize>) -> &PageFilter {
        slot.map_or(&self.global_fetched, |slot| &self.slots[slot].fetched)
    }

    /// [`Spaces::fetched`], to be changed.
    pub fn fetched_mut(&mut self, slot: Option<usize>) -> &mut PageFilter {
        match slot {
            Some(slot) => &mut self.slots[slot].fetched,
            None => &mut self.global_fetched,
        }
    }

    /// Makes a space the current one; whether it was resident. `blocks` tell pages that hold translated code, and where.
    pub fn switch(&mut self, header: &mut Header, key: u64, blocks: &Blocks) -> bool {
        self.clock += 1;
        let found = self.find(key);
        let slot = found.unwrap_or_else(|| self.claim(key));
        self.slots[slot].last_used = self.clock;
        self.current = slot;
        self.catch_up(slot, blocks);
        self.set_pointers(header);
        found.is_some()
    }

    /// Points the header to the current space's tables.
    pub fn set_pointers(&self, header: &mut Header) {
        for (pointer, table) in header.tlb.iter_mut().zip(&self.slots[self.current].tables) {
            *pointer = match table {
                Some(t) => t.as_ptr(),
                None => NOTHING.as_ptr(),
            };
        }
        header.tlb_main = header.tlb[self.main_mmu as usize];
    }

    /// Tells which MMU mode [`Header::tlb_main`] is for.
    #[inline]
    pub fn set_main(&mut self, header: &mut Header, mmu: u8) {
        self.main_mmu = mmu % MMU_MODES as u8;
        header.tlb_main = header.tlb[self.main_mmu as usize];
    }

    /// Gives the least recently used slot to a new space.
    fn claim(&mut self, key: u64) -> usize {
        let slot = (0..SPACES)
            .min_by_key(|i| (self.slots[*i].in_use, self.slots[*i].last_used))
            .expect("there are slots");
        if self.slots[slot].in_use {
            self.clear_local(slot);
        }
        let s = &mut self.slots[slot];
        s.key = key;
        s.in_use = true;
        slot
    }

    /// Applies to a space what happened while it was not current.
    fn catch_up(&mut self, slot: usize, blocks: &Blocks) {
        let (logged, protects) = (self.logged, self.protects);
        let behind = logged - self.slots[slot].global_seen;
        if behind > LOG as u64 {
            for table in self.slots[slot].tables.iter_mut().flatten() {
                table.clear_global();
            }
        } else {
            for n in logged - behind..logged {
                let va = self.log[n as usize % LOG];
                self.drop_first_level(slot, va, true);
            }
        }
        let s = &mut self.slots[slot];
        s.global_seen = logged;
        if s.protect_seen != protects {
            s.protect_seen = protects;
            for table in s.tables.iter_mut().flatten() {
                table.protect_all(|page| blocks.code_lines(page), |large| blocks.has_code_in(large));
            }
        }
    }

    /// Notes that there is a global translation of a page.
    pub fn note_global(&mut self, page: u64) {
        self.global_range.0 = self.global_range.0.min(page);
        self.global_range.1 = self.global_range.1.max(page);
    }

    /// Sets an entry of the current space.
    #[inline]
    pub fn fill(&mut self, header: &mut Header, page: u64, mmu: u8, fill: Fill<'_>) {
        let global = fill.phys & GLOBAL != 0;
        if global {
            self.note_global(page);
        }
        self.table_mut(header, mmu).set(page, fill);
    }

    /// Sets a large entry of the current space. The large page that it is part of has been noted.
    pub fn fill_large(&mut self, header: &mut Header, va: u64, mmu: u8, fill: LargeFill) {
        self.table_mut(header, mmu).set_large(va, fill);
    }

    /// The large entry of the current space that allows an access to a page.
    #[inline]
    pub fn large(&self, page: u64, mmu: u8, write: bool) -> Option<&TlbEntry> {
        self.current().tables[mmu as usize].as_ref()?.large(page, write)
    }

    #[inline]
    fn table_mut(&mut self, header: &mut Header, mmu: u8) -> &mut Table {
        self.slots[self.current].tables[mmu as usize].get_or_insert_with(|| {
            let table = TablePtr::new();
            header.tlb[mmu as usize] = table.as_ptr();
            header.tlb_main = header.tlb[self.main_mmu as usize];
            table
        })
    }

    /// Notes that a page that is cached in the current space is part of a large one.
    pub fn note_large(&mut self, va: u64, bits: u32, global: bool) {
        let large = if global { &mut self.global_large } else { &mut self.slots[self.current].large };
        large.note(va, bits);
    }

    /// Drops all local translations of a slot.
    pub fn clear_local(&mut self, slot: usize) {
        let (asid, code_id) = (self.new_id(), self.new_id());
        let s = &mut self.slots[slot];
        s.asid = asid;
        s.code_id = code_id;
        s.large = LargePages::new();
        s.fetched.clear();
        for table in s.tables.iter_mut().flatten() {
            table.clear_local();
        }
    }

    /// Drops everything.
    pub fn clear_all(&mut self) {
        for slot in 0..SPACES {
            self.clear_local(slot);
            let logged = self.logged;
            let s = &mut self.slots[slot];
            s.global_seen = logged;
            for table in s.tables.iter_mut().flatten() {
                table.clear_global();
            }
        }
        self.global_asid = self.new_id();
        self.global_code_id = self.new_id();
        self.global_large = LargePages::new();
        self.global_fetched.clear();
        self.global_range = (u64::MAX, 0);
    }

    /// Drops the translations of a page from the first level: all of the slot `slot`, and global ones of every space.
    /// Calls `large` with the size of each large page that may be concerned. Whether there may be a global translation.
    pub fn drop_page(&mut self, slot: Option<usize>, va: u64, mut large: impl FnMut(u32)) -> bool {
        if let Some(slot) = slot {
            self.slots[slot].large.containing(va).for_each(&mut large);
        }
        let mut global = (self.global_range.0..=self.global_range.1).contains(&page_of(va));
        for bits in self.global_large.containing(va) {
            global = true;
            large(bits);
        }
        if let Some(slot) = slot {
            self.drop_first_level(slot, va, false);
        }
        if global {
            if slot != Some(self.current) {
                self.drop_first_level(self.current, va, true);
            }
            self.log[self.logged as usize % LOG] = va;
            self.logged += 1;
            let behind = self.logged - 1;
            for done in [Some(self.current), slot].into_iter().flatten() {
                // A slot that lags behind has yet to do this one together with what it missed.
                if self.slots[done].global_seen == behind {
                    self.slots[done].global_seen = self.logged;
                }
            }
        }
        global
    }

    fn drop_first_level(&mut self, slot: usize, va: u64, only_global: bool) {
        let s = &mut self.slots[slot];
        for table in s.tables.iter_mut().flatten() {
            table.drop_page(page_of(va), only_global);
        }
        for size in s.large.containing(va).chain(self.global_large.containing(va)) {
            for table in s.tables.iter_mut().flatten() {
                table.drop_large(va, size, only_global);
            }
        }
    }

    /// Drops the write tags of a physical page in all spaces: it holds translated code now, in the 64-byte lines that
    /// `lines` says.
    pub fn protect(&mut self, phys_page: u64, lines: &AtomicU64) {
        self.protects += 1;
        let s = &mut self.slots[self.current];
        if s.protect_seen == self.protects - 1 {
            s.protect_seen = self.protects;
        }
        for table in s.tables.iter_mut().flatten() {
            table.protect(phys_page, lines);
        }
    }

    /// Renames the state of code mappings of a slot, or of all.
    pub fn rename_code(&mut self, slot: Option<usize>) {
        match slot {
            Some(slot) => self.slots[slot].code_id = self.new_id(),
            None => {
                (0..SPACES).for_each(|slot| self.slots[slot].code_id = self.new_id());
                self.global_code_id = self.new_id();
            }
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Whether a slot is the current one.
    pub fn is_current(&self, slot: usize) -> bool {
        slot == self.current
    }
}
