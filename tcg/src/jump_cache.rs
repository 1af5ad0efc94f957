//! The jump cache: where jumps whose target is not known to be valid find the next block.
//!
//! Problem: an indirect jump, and a direct one to another page, has a guest-virtual address, while blocks are known by
//! their physical one. Translating the address and looking up the table of blocks each time takes longer than most blocks
//! do. Strategy: entries by virtual address under a *tag* that changes with everything that their being right depends
//! on, so that a hit needs no more checks (`softmmu::fetch` makes the tags).
//!
//! There are two ways. Generated code looks at the *first* inline, and at the *second*, which has another index, in a
//! routine that all blocks share. So two targets that agree in one index are both found. Every so many hits of the second way
//! are left to Rust code, which moves the entry to the first: what is hit often will sooner or later be one of those.
//!
//! A change of tags makes all entries miss, most of which would still be right: a flush, or a new process with the
//! same program at the same addresses. So beside each entry there is its *origin*: its address and its block's number. Who
//! finds that the code at an address still comes from where that block's did renews the entry, instead of looking for the block.
//!
//! Generated code masks the first index with a word that is 0 while somebody asks it to return
//! ([`ExitRequest`](crate::env::ExitRequest)), and the routine of the second way looks at that word: so a jump by way of the jump
//! cache is a poll, too.
//!
//! Invariants:
//! - The entry with index 0 in the first way never hits.
//! - No entry has the code of a dead block: [`JumpCache::forget`] is called for each block that dies. An entry can only be at
//!   two places.
//! - The origin beside an entry whose code is not 0 is that of the block that the code belongs to.

/// Entries of each way; a power of two.
pub const JUMP_CACHE_ENTRIES: usize = 16384;
/// What the low half of a program counter is multiplied by for the index in the first way: odd, and positive as a signed
/// number.
pub const FIRST_FACTOR: u32 = 0x61c8_8647;
/// The bits of the product that are the index, where they are the entry's distance from the start of the first way.
pub const FIRST_MASK: u32 = ((JUMP_CACHE_ENTRIES - 1) * size_of::<JumpEntry>()) as u32;
/// The same for the second way.
pub const SECOND_FACTOR: u32 = 0x5bd1_e995;
/// How far the low half of the product is shifted right.
pub const SECOND_SHIFT: u32 = 32 - JUMP_CACHE_ENTRIES.trailing_zeros();

/// Hits of the second way until one is left to Rust code.
pub const SECOND_HITS: i32 = 64;

/// An entry of the jump cache: hit when `tag == pc ^ header.jump_tag`.
///
/// Program counters are canonical in 48 bits (bits 63 to 47 equal), or where the guest says so in 57 (bits 63 to 56
/// equal): two of them differ in all of these bits or in none. Epochs are 1 to 0x7ffd in the top 16 bits, with bit 47 of
/// a jump tag clear; or 1 to 0x7e in the top 8. So two epochs differ in some of these bits, and not in all, and no two
/// canonical addresses have the same tag under different epochs.
///
/// An indirect jump may go to an address that is *not* canonical, which the guest finds out when it fetches there. Such an
/// address might make any tag, and so reach a block of another mode; therefore the other bits of a jump tag are a
/// number that the guest cannot know.
///
/// As the tag contains the epoch, changing `jump_tag` invalidates all entries at once; the epochs wrapping around
/// is the only occasion on which the table is cleared.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JumpEntry {
    /// `pc ^ jump_tag`; [`JumpEntry::EMPTY`] has a tag no canonical address makes.
    pub tag: u64,
    /// Host address of the block's code.
    pub code: u64,
}

impl JumpEntry {
    /// An entry that never hits: the tag has bit 47 clear and an epoch that is never issued, 0x8000 (or 0x80).
    pub const EMPTY: JumpEntry = JumpEntry { tag: 0x8000_0000_0000_0001, code: 0 };

    /// Index of the block at `pc` in the first way.
    #[inline]
    pub const fn first_index(pc: u64) -> usize {
        ((pc as u32).wrapping_mul(FIRST_FACTOR) & FIRST_MASK) as usize / size_of::<JumpEntry>()
    }

    /// Index of the block at `pc` in the second way.
    #[inline]
    pub const fn second_index(pc: u64) -> usize {
        ((pc as u32).wrapping_mul(SECOND_FACTOR) >> SECOND_SHIFT) as usize
    }
}

/// What an entry is for. Small, because most looks at it miss the host's caches; the rest is known of the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JumpOrigin {
    /// Guest-virtual address.
    pub pc: u64,
    /// The block's number.
    pub tb: u32,
}

/// An entry's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum JumpPlace {
    /// In the first way, at this index.
    First(usize),
    /// In the second way, at this index.
    Second(usize),
}

/// The table. Zeroed memory is a valid one, in which nothing hits but the address of the jump tag itself: it is to be
/// [cleared](JumpCache::clear) first.
#[repr(C)]
pub struct JumpCache {
    first: [JumpEntry; JUMP_CACHE_ENTRIES],
    second: [JumpEntry; JUMP_CACHE_ENTRIES],
    first_origins: [JumpOrigin; JUMP_CACHE_ENTRIES],
    second_origins: [JumpOrigin; JUMP_CACHE_ENTRIES],
}

/// Distance of the second way from the start of the table, in bytes; the first is at its start.
pub const SECOND_WAY: usize = std::mem::offset_of!(JumpCache, second);

impl JumpCache {
    /// Drops all entries.
    pub fn clear(&mut self) {
        self.first.fill(JumpEntry::EMPTY);
        self.second.fill(JumpEntry::EMPTY);
    }

    /// Address of the code at `pc` under a jump tag.
    #[inline]
    pub(crate) fn get(&self, pc: u64, jump_tag: u64) -> Option<u64> {
        let tag = pc ^ jump_tag;
        let ways = [&self.first[JumpEntry::first_index(pc)], &self.second[JumpEntry::second_index(pc)]];
        ways.into_iter().find(|e| e.tag == tag).map(|e| e.code)
    }

    /// An entry for `pc` under whatever tag, and its block, which `is` the right one.
    #[inline]
    pub(crate) fn find(&self, pc: u64, is: impl Fn(u32) -> bool) -> Option<(JumpPlace, u32)> {
        let right = |o: &JumpOrigin, e: &JumpEntry| o.pc == pc && e.code != 0 && is(o.tb);
        let i = JumpEntry::first_index(pc);
        if right(&self.first_origins[i], &self.first[i]) {
            return Some((JumpPlace::First(i), self.first_origins[i].tb));
        }
        let i = JumpEntry::second_index(pc);
        right(&self.second_origins[i], &self.second[i])
            .then(|| (JumpPlace::Second(i), self.second_origins[i].tb))
    }

    /// Puts the entry that was found at `place` for `pc` under a jump tag; its code, unless it was dropped meanwhile.
    #[inline]
    pub(crate) fn renew(&mut self, place: JumpPlace, pc: u64, jump_tag: u64) -> Option<u64> {
        let entry = match place {
            JumpPlace::First(i) => {
                // Under its old tag it may be another space's, which will be back.
                self.displace(i);
                &mut self.first[i]
            }
            JumpPlace::Second(i) => &mut self.second[i],
        };
        if entry.code == 0 {
            return None;
        }
        entry.tag = pc ^ jump_tag;
        Some(entry.code)
    }

    /// Enters a block under a jump tag: in the first way, unless what is there under the same tag would be lost by that.
    pub(crate) fn insert(&mut self, origin: JumpOrigin, jump_tag: u64, code: u64) {
        let entry = JumpEntry { tag: origin.pc ^ jump_tag, code };
        let i = JumpEntry::first_index(origin.pc);
        let old = self.first[i];
        let old_current = old.code != 0 && old.tag == self.first_origins[i].pc ^ jump_tag;
        let lost = old_current && self.second_is_taken(self.first_origins[i].pc, jump_tag);
        if i == 0 || lost && !self.second_is_taken(origin.pc, jump_tag) {
            let to = JumpEntry::second_index(origin.pc);
            self.second[to] = entry;
            self.second_origins[to] = origin;
            return;
        }
        self.displace(i);
        self.first[i] = entry;
        self.first_origins[i] = origin;
    }

    /// If the code at `pc` is in the second way, where it takes longer to find, moves it to the first, if it may be there; its
    /// address.
    pub(crate) fn promote(&mut self, pc: u64, jump_tag: u64) -> Option<u64> {
        let from = JumpEntry::second_index(pc);
        let entry = self.second[from];
        if entry.tag != pc ^ jump_tag {
            return None;
        }
        let i = JumpEntry::first_index(pc);
        if i == 0 {
            return Some(entry.code);
        }
        let origin = self.second_origins[from];
        self.second[from] = JumpEntry::EMPTY;
        self.displace(i);
        self.first[i] = entry;
        self.first_origins[i] = origin;
        Some(entry.code)
    }

    /// Whether the place of `pc` in the second way has an entry under this tag.
    fn second_is_taken(&self, pc: u64, jump_tag: u64) -> bool {
        let i = JumpEntry::second_index(pc);
        self.second[i].code != 0 && self.second[i].tag == self.second_origins[i].pc ^ jump_tag
    }

    /// Moves an entry of the first way, if it is one, to the second.
    fn displace(&mut self, i: usize) {
        if self.first[i].code != 0 {
            let to = JumpEntry::second_index(self.first_origins[i].pc);
            self.second[to] = self.first[i];
            self.second_origins[to] = self.first_origins[i];
        }
    }

    /// Drops the entries of the block at `pc` whose code is at `code`.
    pub(crate) fn forget(&mut self, pc: u64, code: u64) {
        let ways =
            [&mut self.first[JumpEntry::first_index(pc)], &mut self.second[JumpEntry::second_index(pc)]];
        for entry in ways {
            if entry.code == code {
                *entry = JumpEntry::EMPTY;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An empty table.
    pub(crate) fn table() -> Box<JumpCache> {
        let layout = std::alloc::Layout::new::<JumpCache>();
        // SAFETY: the layout is not zero-sized, and a table is made of integers, for which zeroes are valid.
        let mut table = unsafe {
            let p = std::alloc::alloc_zeroed(layout).cast::<JumpCache>();
            assert!(!p.is_null());
            Box::from_raw(p)
        };
        table.clear();
        table
    }

    /// The block at `pc`.
    fn block(pc: u64) -> u32 {
        pc as u32 & 0xfffff
    }

    fn origin(pc: u64) -> JumpOrigin {
        JumpOrigin { pc, tb: block(pc) }
    }

    /// The place of the block at `pc`.
    fn found(t: &JumpCache, pc: u64) -> Option<JumpPlace> {
        let (place, tb) = t.find(pc, |tb| tb == block(pc))?;
        assert_eq!(tb, block(pc));
        Some(place)
    }

    /// Two addresses that agree in the first index only.
    const A: u64 = 0x40_2051;
    const B: u64 = A ^ 0x4_0000;

    #[test]
    fn two_targets_with_one_index_are_both_found() {
        assert_eq!(JumpEntry::first_index(A), JumpEntry::first_index(B));
        assert_ne!(JumpEntry::second_index(A), JumpEntry::second_index(B));
        let mut t = table();
        t.insert(origin(A), 7 << 48, 0x100);
        t.insert(origin(B), 7 << 48, 0x200);
        assert_eq!((t.get(A, 7 << 48), t.get(B, 7 << 48)), (Some(0x100), Some(0x200)));
        assert_eq!((t.get(A, 8 << 48), t.get(B, 8 << 48)), (None, None));
    }

    #[test]
    fn a_third_target_displaces_one_of_two() {
        const C: u64 = A ^ 0x8_0000;
        assert_eq!(JumpEntry::first_index(A), JumpEntry::first_index(C));
        let mut t = table();
        for (pc, code) in [(A, 0x100), (B, 0x200), (C, 0x300)] {
            t.insert(origin(pc), 7 << 48, code);
        }
        let found = [A, B, C].map(|pc| t.get(pc, 7 << 48));
        assert_eq!(found, [Some(0x100), Some(0x200), Some(0x300)], "the second way has room for two");
        assert_eq!(t.first[JumpEntry::first_index(A)].code, 0x300);
        assert_eq!(t.promote(A, 7 << 48), Some(0x100));
        assert_eq!(t.promote(A, 7 << 48), None, "it is there already");
        assert_eq!(t.first[JumpEntry::first_index(A)].code, 0x100);
        assert_eq!([A, B, C].map(|pc| t.get(pc, 7 << 48)), found);
        // What is under another tag makes room.
        t.insert(JumpOrigin { tb: 7, ..origin(B) }, 8 << 48, 0x201);
        assert_eq!(t.get(B, 8 << 48), Some(0x201));
        assert_eq!(t.get(A, 7 << 48), Some(0x100));
    }

    #[test]
    fn entries_are_renewed_by_what_their_blocks_were_made_from() {
        let mut t = table();
        assert_eq!(t.find(0, |_| true), None, "nothing in an empty table");
        for (pc, code) in [(A, 0x100), (B, 0x200)] {
            t.insert(origin(pc), 7 << 48, code);
        }
        for (pc, code) in [(A, 0x100), (B, 0x200)] {
            assert_eq!(t.find(pc, |tb| tb != block(pc)), None, "made from something else");
            let place = found(&t, pc).expect("it is there");
            assert_eq!(t.renew(place, pc, 9 << 48), Some(code));
            assert_eq!(t.get(pc, 9 << 48), Some(code));
        }
    }

    #[test]
    fn two_spaces_that_take_turns_keep_their_entries() {
        let mut t = table();
        t.insert(origin(A), 7 << 48, 0x100);
        let place = found(&t, A).expect("it is there");
        assert_eq!(t.renew(place, A, 8 << 48), Some(0x100));
        assert_eq!((t.get(A, 7 << 48), t.get(A, 8 << 48)), (Some(0x100), Some(0x100)));
        // Another program at the same address.
        t.insert(JumpOrigin { tb: 7, ..origin(A) }, 9 << 48, 0x300);
        assert_eq!((t.get(A, 8 << 48), t.get(A, 9 << 48)), (Some(0x100), Some(0x300)));
    }

    #[test]
    fn no_target_is_where_lookups_look_that_are_to_miss() {
        let pc = (1..).find(|pc| JumpEntry::first_index(*pc) == 0).expect("every index has addresses");
        let mut t = table();
        t.insert(origin(pc), 7 << 48, 0x100);
        assert_eq!((t.first[0], t.get(pc, 7 << 48)), (JumpEntry::EMPTY, Some(0x100)));
        assert_eq!(t.promote(pc, 7 << 48), Some(0x100));
        assert_eq!((t.first[0], t.get(pc, 7 << 48)), (JumpEntry::EMPTY, Some(0x100)));
        let place = found(&t, pc).expect("it is there");
        assert_eq!(t.renew(place, pc, 8 << 48), Some(0x100));
        assert_eq!((t.first[0], t.get(pc, 8 << 48)), (JumpEntry::EMPTY, Some(0x100)));
    }

    #[test]
    fn neighbours_in_code_have_places_of_their_own() {
        // Functions at every sixteenth byte, and what follows calls of five bytes.
        for step in [16, 5] {
            let mut taken = vec![false; JUMP_CACHE_ENTRIES];
            let free = (0..JUMP_CACHE_ENTRIES as u64 / 4).filter(|n| {
                !std::mem::replace(&mut taken[JumpEntry::first_index(0x40_1000 + n * step)], true)
            });
            assert!(free.count() >= JUMP_CACHE_ENTRIES / 5, "step {step}");
        }
    }

    #[test]
    fn a_forgotten_block_is_in_neither_way() {
        let mut t = table();
        t.insert(origin(A), 7 << 48, 0x100);
        t.insert(origin(B), 7 << 48, 0x200);
        t.forget(A, 0x100);
        assert_eq!((t.get(A, 7 << 48), found(&t, A)), (None, None));
        assert_eq!(t.get(B, 7 << 48), Some(0x200));
        t.forget(B, 0x300);
        assert_eq!(t.get(B, 7 << 48), Some(0x200), "other code");
        let place = found(&t, B).expect("it is there");
        t.forget(B, 0x200);
        assert_eq!((t.get(B, 7 << 48), found(&t, B)), (None, None));
        assert_eq!(t.renew(place, B, 9 << 48), None);
        assert_eq!(t.get(B, 9 << 48), None);
    }
}
