//! Which large stretches of guest memory have pages that blocks were made from.
//!
//! A large entry of a software TLB may let stores through only where no block was made from any of its pages. So the pages
//! with blocks are counted for each stretch, whose number is bounded by that of the pages.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;

use super::code_lines::PageHasher;
use crate::softmmu::large_of;

/// Numbers of pages with blocks, of the stretches that have any.
#[derive(Default)]
pub(super) struct CodeRegions(HashMap<u64, u32, BuildHasherDefault<PageHasher>>);

impl CodeRegions {
    /// A page got its first block.
    pub fn add(&mut self, phys_page: u64) {
        *self.0.entry(large_of(phys_page)).or_insert(0) += 1;
    }

    /// A page lost its last block.
    pub fn remove(&mut self, phys_page: u64) {
        if let Entry::Occupied(mut e) = self.0.entry(large_of(phys_page)) {
            *e.get_mut() -= 1;
            if *e.get() == 0 {
                e.remove();
            }
        }
    }

    /// Whether any page of the stretch that begins at `phys` has blocks.
    #[inline]
    pub fn have(&self, phys: u64) -> bool {
        self.0.contains_key(&phys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE_SIZE;

    #[test]
    fn a_stretch_has_code_until_its_last_page_has_none() {
        let mut r = CodeRegions::default();
        let start = large_of(0x1234_5678_9000);
        for page in [start, start + 5 * PAGE_SIZE, start - PAGE_SIZE] {
            r.add(page);
        }
        r.remove(start);
        assert!(r.have(start) && r.have(large_of(start - PAGE_SIZE)));
        r.remove(start + 5 * PAGE_SIZE);
        assert!(!r.have(start) && r.have(large_of(start - PAGE_SIZE)));
        // Pages that were never added do not count.
        r.remove(start);
        assert!(!r.have(start));
    }
}
