//! The fields of host code that depend on where the guest's code is and which number the block has.

use crate::backend::{MovableField, Position};
use crate::jump_cache::{FIRST_FACTOR, FIRST_MASK};
use crate::memory::PAGE_SIZE;
use crate::softmmu::{TLB_ENTRIES, TlbEntry};

pub const FIELDS: [MovableField; 4] = [
    // The block's number.
    MovableField { bytes: 4, same: 0, moved: |v, from, to| (v == from.tb.into()).then_some(to.tb.into()) },
    // Of an access at a constant address, the place of its entry in the TLB.
    MovableField { bytes: 4, same: 0, moved: entry },
    // A guest-virtual address.
    MovableField { bytes: 8, same: 1, moved: |v, from, to| Some(v.wrapping_add(distance(from, to))) },
    // The place of an address in the jump cache. What an address of a whole page is multiplied to has no bits below the mask.
    MovableField {
        bytes: 4,
        same: 1,
        moved: |v, from, to| {
            let distance = (distance(from, to) as u32).wrapping_mul(FIRST_FACTOR);
            Some(((v as u32).wrapping_add(distance) & FIRST_MASK).into())
        },
    },
];

fn distance(from: Position, to: Position) -> u64 {
    to.pc.wrapping_sub(from.pc)
}

fn entry(v: u64, from: Position, to: Position) -> Option<u64> {
    const BYTES: u64 = size_of::<TlbEntry>() as u64;
    const TABLE: u64 = TLB_ENTRIES as u64 * BYTES;
    // Shorter ones have another encoding.
    const RANGE: std::ops::Range<u64> = 128..TABLE;
    let moved = v.wrapping_add(distance(from, to) / PAGE_SIZE * BYTES) % TABLE;
    (RANGE.contains(&v) && RANGE.contains(&moved)).then_some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jump_cache::JumpEntry;

    #[test]
    fn places_in_tables_are_those_of_the_address_there() {
        let from = Position { pc: 0x7f12_3456_7012, tb: 5 };
        let jump = |pc: u64| (JumpEntry::first_index(pc) * size_of::<JumpEntry>()) as u64;
        let tlb = |pc: u64| pc / PAGE_SIZE % TLB_ENTRIES as u64 * size_of::<TlbEntry>() as u64;
        let mut none = 0;
        for n in 0..2 * TLB_ENTRIES as u64 {
            let to = Position { pc: 0x5555_0000_0012 + n * PAGE_SIZE, tb: 6 };
            // Of an address some pages behind the block.
            let at = |position: Position| position.pc + 5 * PAGE_SIZE + 0x123;
            assert_eq!((FIELDS[3].moved)(jump(at(from)), from, to), Some(jump(at(to))), "{n}");
            let there = tlb(at(to)) + 8;
            let moved = entry(tlb(at(from)) + 8, from, to);
            assert_eq!(moved, (there >= 128).then_some(there), "{n}");
            none += u32::from(moved.is_none());
        }
        assert_eq!(none, 8, "those whose distance from the table has one byte");
        assert_eq!(entry(127, from, from), None);
    }
}
