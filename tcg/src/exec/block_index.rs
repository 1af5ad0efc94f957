//! Where blocks are found by what they were made from: a hash table of their numbers.
//!
//! Problem: most searches find their cache lines gone, and every second one is in vain, because the block is yet to be
//! translated. Strategy: open addressing. A slot holds a number and 32 bits of the hash of the block's key; eight of them
//! share a cache line, which is all that most searches look at, but for the record of the block that they find.
//!
//! Invariants:
//! - At most half of the slots are taken.
//! - No slot is empty between the one that a hash begins at and the one where a block of that hash is: removing a block moves
//!   others up.
//! - Blocks of one hash are in the order in which they were inserted.

/// Slots of an empty table; a power of two.
const SLOTS: usize = 2048;

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    id: u32,
}

/// No block has this number.
const EMPTY: Slot = Slot { hash: 0, id: u32::MAX };

impl Slot {
    fn is_empty(self) -> bool {
        self.id == EMPTY.id
    }
}

/// The table.
pub(super) struct BlockIndex {
    /// A power of two.
    slots: Vec<Slot>,
    len: usize,
}

impl BlockIndex {
    pub fn new() -> BlockIndex {
        BlockIndex { slots: vec![EMPTY; SLOTS], len: 0 }
    }

    /// Where the search for a hash begins.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        // The upper bits of a product are its best.
        (u64::from(hash) * self.slots.len() as u64 >> 32) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    /// The blocks of a hash, oldest first.
    #[inline]
    pub fn find(&self, hash: u32) -> impl Iterator<Item = u32> {
        let mut at = self.home(hash);
        std::iter::from_fn(move || {
            loop {
                let slot = self.slots[at];
                if slot.is_empty() {
                    return None;
                }
                at = self.after(at);
                if slot.hash == hash {
                    return Some(slot.id);
                }
            }
        })
    }

    /// Adds a block.
    pub fn insert(&mut self, hash: u32, id: u32) {
        if 2 * (self.len + 1) > self.slots.len() {
            self.grow();
        }
        self.len += 1;
        self.put(Slot { hash, id });
    }

    fn put(&mut self, slot: Slot) {
        let mut at = self.home(slot.hash);
        while !self.slots[at].is_empty() {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    /// Removes a block, if it is there.
    pub fn remove(&mut self, hash: u32, id: u32) {
        let mut gap = self.home(hash);
        while self.slots[gap].id != id {
            if self.slots[gap].is_empty() {
                return;
            }
            gap = self.after(gap);
        }
        self.len -= 1;
        let mask = self.slots.len() - 1;
        let mut at = gap;
        loop {
            at = self.after(at);
            let slot = self.slots[at];
            if slot.is_empty() {
                break;
            }
            let from_home = at.wrapping_sub(self.home(slot.hash)) & mask;
            if from_home >= at.wrapping_sub(gap) & mask {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = EMPTY;
    }

    fn grow(&mut self) {
        let more = vec![EMPTY; 2 * self.slots.len()];
        let old = std::mem::replace(&mut self.slots, more);
        // From behind an empty slot, so that those that went round the end stay behind the others of their hash.
        let first = old.iter().position(|slot| slot.is_empty()).unwrap_or_default();
        let (before, behind) = old.split_at(first);
        for slot in behind.iter().chain(before).filter(|slot| !slot.is_empty()) {
            self.put(*slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn it_holds_what_a_map_of_lists_holds() {
        let mut index = BlockIndex::new();
        let mut map: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut seed = 1u64;
        for id in 0..20_000u32 {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Many that share their home, some all of their hash; at the end of the table, too.
            let hash = match id % 4 {
                0 => u32::MAX - (seed >> 60) as u32,
                1 => (seed >> 44) as u32 & 0x3ff,
                _ => (seed >> 32) as u32,
            };
            index.insert(hash, id);
            map.entry(hash).or_default().push(id);
            if id % 3 != 0 {
                // One of those that are there, more or less at random.
                let hash = if id % 2 == 0 { hash } else { u32::MAX - (seed >> 40 & 15) as u32 };
                if let Some(ids) = map.get_mut(&hash)
                    && !ids.is_empty()
                {
                    let gone = ids.remove((seed >> 20) as usize % ids.len());
                    index.remove(hash, gone);
                    index.remove(hash, gone);
                }
            }
        }
        assert_eq!(index.len, map.values().map(Vec::len).sum::<usize>());
        for (hash, ids) in map {
            assert!(index.find(hash).eq(ids), "{hash:#x}");
        }
    }
}
