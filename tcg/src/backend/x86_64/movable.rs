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
