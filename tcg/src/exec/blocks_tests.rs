//! The table of blocks, with blocks whose code is never run.

use super::revive::VERSIONS;
use super::*;
use crate::backend::JumpSite;
use crate::jump_cache::JumpOrigin;

struct Table {
    blocks: Blocks,
    jumps: Box<JumpCache>,
}

fn table(segments: usize, len: usize) -> Table {
    let cache = CodeCache::with_segments(segments, len).unwrap();
    let blocks = Blocks::new(cache, Arc::new(Remote::new()));
    Table { blocks, jumps: crate::jump_cache::tests::table() }
}

impl Table {
    /// A block of 64 bytes of code with two jumps, from guest address = physical address + 0x10000.
    fn add(&mut self, phys: u64, page2: u64, bytes: u32) -> u32 {
        let mut compiled =
            Compiled { hot: vec![0x11; 48], cold: vec![0x11; 16], body: 4, ..Compiled::default() };
        if !compiled.fits(self.blocks.cache.free().len()) {
            self.blocks.evict(&mut self.jumps);
        }
        compiled.cold_at = self.blocks.cache.free().len() as u32 - 16;
        // One jump in each part.
        compiled.jumps.extend([0, 1].map(|exit| JumpSite {
            field: if exit == 0 { 8 } else { compiled.cold_at + 4 },
            unlinked: 0x1111_1111,
            exit,
        }));
        let exit = Exit { pc: 0, indirect: false, poll: true, chain: true, dead: crate::ir::GlobalSet::NONE };
        let code = vec![0x90; bytes as usize];
        let in_first = if page2 == NO_PAGE { bytes } else { (PAGE_SIZE - (phys & PAGE_MASK)) as u32 };
        let (first, second) = code.split_at(in_first.min(bytes) as usize);
        let origin = Origin {
            trace: None,
            key: BlockKey::new(phys + 0x10000, 3),
            phys,
            page2,
            page2_pc: (phys & !0xfff) + 0x11000,
            spans: [
                ((phys & 0xfff) as u16, (phys & 0xfff) as u16 + first.len() as u16),
                (0, second.len() as u16),
            ],
            code: [first, second],
        };
        let number = self.blocks.next_number();
        let (id, _) = self.blocks.insert(origin, &[exit; 2], &compiled, (0, &[]));
        assert_eq!(id, number);
        id
    }

    fn find(&self, phys: u64) -> Found {
        self.blocks.find(phys, BlockKey::new(phys + 0x10000, 3))
    }

    fn link(&mut self, from: u32, exit: u16, to: u32) -> u64 {
        let (n, field, poll) = self.blocks.unlinked(from, exit).unwrap();
        assert!(poll);
        self.blocks.link(from, n, to, 0x2222_2222);
        field
    }

    fn invalidate(&mut self, phys: u64, len: u64) {
        self.blocks.invalidate(phys, len, &mut self.jumps);
    }
}

fn field(at: u64) -> u32 {
    // SAFETY: a field of a placed block, in the cache's executable mapping.
    unsafe { (at as *const u32).read_volatile() }
}

#[test]
fn a_block_is_found_by_all_of_its_key() {
    let mut t = table(2, 4096);
    let a = t.add(0x1000, NO_PAGE, 10);
    assert_eq!(t.find(0x1000), Found::Block(a));
    assert_eq!(t.blocks.find(0x1000, BlockKey::new(0x11000, 2)), Found::No);
    assert_eq!(t.blocks.find(0x1000, BlockKey::new(0x12000, 3)), Found::No);
    assert_eq!(t.blocks.find(0x2000, BlockKey::new(0x11000, 3)), Found::No);
    let ungrouped = BlockKey { ungrouped: true, ..BlockKey::new(0x11000, 3) };
    assert_eq!(t.blocks.find(0x1000, ungrouped), Found::No);
    let b = t.add(0x2ffe, 0x7000, 10);
    assert_eq!(t.find(0x2ffe), Found::Spanning);
    let found: Vec<_> =
        t.blocks.live_of(0x2ffe, BlockKey::new(0x12ffe, 3)).map(|(id, t)| (id, t.page2)).collect();
    assert_eq!(found, [(b, 0x7000)]);
}

#[test]
fn many_blocks_are_all_found() {
    let mut t = table(4, 1 << 20);
    let ids: Vec<u32> = (0..5000).map(|n| t.add(n * 16, NO_PAGE, 16)).collect();
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(t.find(n as u64 * 16), Found::Block(id));
    }
}

#[test]
fn invalidation_is_exact_to_the_byte() {
    let mut t = table(2, 4096);
    t.add(0x1010, NO_PAGE, 16);
    t.add(0x1020, NO_PAGE, 16);
    let spanning = t.add(0x1ff8, 0x5000, 16);
    t.invalidate(0x1000, 16);
    t.invalidate(0x1030, 0x1ff8 - 0x1030);
    t.invalidate(0x5008, 100);
    t.invalidate(0x2000, 8);
    assert_eq!(t.blocks.live(), 3);
    assert!(t.blocks.any_made_from(0x101f, 1) && !t.blocks.any_made_from(0x100f, 1));
    t.invalidate(0x101f, 1);
    assert_eq!(t.find(0x1010), Found::No);
    assert_ne!(t.find(0x1020), Found::No);
    assert!(t.blocks.made_from(spanning, 0x5007, 1) && !t.blocks.made_from(spanning, 0x5008, 1));
    t.invalidate(0x5007, 1);
    assert_eq!(t.find(0x1ff8), Found::No);
    assert!(!t.blocks.has_code(0x5000));
    assert!(t.blocks.has_code(0x1000));
    t.blocks.invalidate_range(0, u64::MAX, &mut t.jumps);
    assert!(!t.blocks.has_code(0x1000));
    assert_eq!((t.blocks.live(), t.blocks.stats.invalidated), (0, 3));
}

#[test]
fn a_block_with_both_parts_on_one_physical_page_goes_once() {
    let mut t = table(2, 4096);
    t.add(0x1ff8, 0x1000, 16);
    t.invalidate(0x1000, 0x1000);
    assert_eq!((t.blocks.live(), t.blocks.stats.invalidated), (0, 1));
    assert!(!t.blocks.has_code(0x1000));
}

#[test]
fn links_go_with_either_end() {
    let mut t = table(2, 4096);
    let a = t.add(0x1000, NO_PAGE, 16);
    let b = t.add(0x1100, NO_PAGE, 16);
    let c = t.add(0x1200, NO_PAGE, 16);
    let fields = [t.link(a, 0, b), t.link(c, 0, b), t.link(b, 0, b), t.link(b, 1, a)];
    assert!(fields.iter().all(|f| field(*f) == 0x2222_2222));
    assert!(t.blocks.unlinked(a, 0).is_none() && t.blocks.unlinked(a, 1).is_some());
    t.invalidate(0x1200, 1);
    assert_eq!(fields.map(field), [0x2222_2222, 0x1111_1111, 0x2222_2222, 0x2222_2222]);
    t.invalidate(0x1100, 1);
    assert_eq!(fields.map(field), [0x1111_1111; 4]);
    assert!(t.blocks.unlinked(b, 0).is_none(), "a dead block is not linked");
    // What is left can be linked and unlinked again.
    let d = t.add(0x1100, NO_PAGE, 16);
    t.link(a, 0, d);
    t.link(d, 0, a);
    t.invalidate(0x1000, 1);
    assert_eq!(field(fields[0]), 0x1111_1111);
    t.invalidate(0x1100, 1);
    assert_eq!(t.blocks.live(), 0);
}

#[test]
fn a_dead_block_leaves_the_jump_cache() {
    let mut t = table(2, 4096);
    let a = t.add(0x1000, NO_PAGE, 16);
    let origin = JumpOrigin { pc: 0x11000, tb: a };
    t.jumps.insert(origin, 5, t.blocks.body(a));
    assert!(t.jumps.get(0x11000, 5).is_some());
    t.invalidate(0x1000, 1);
    assert_eq!(t.jumps.get(0x11000, 5), None);
}

#[test]
fn eviction_takes_the_oldest_segment_and_reuses_numbers() {
    let mut t = table(4, 640);
    let first: Vec<u32> = (0..10).map(|n| t.add(0x1000 + n * 32, NO_PAGE, 32)).collect();
    let second = t.add(0x8000, NO_PAGE, 8);
    let link = t.link(second, 0, first[3]);
    for n in 0..29 {
        t.add(0x20000 + n * 32, NO_PAGE, 32);
    }
    assert_eq!(t.blocks.live(), 40);
    assert_eq!(field(link), 0x2222_2222);
    let next = t.add(0x50000, NO_PAGE, 8);
    assert!(first.contains(&next));
    assert_eq!(t.blocks.live(), 31);
    assert_eq!(field(link), 0x1111_1111);
    assert_eq!(t.find(0x1000), Found::No);
    assert_eq!(t.find(0x8000), Found::Block(second));
    assert!(!t.blocks.has_code(0x1000));
    for n in 0..10_000 {
        t.add(0x10_0000 + n * 32, NO_PAGE, 32);
    }
    assert!(t.blocks.tbs.len() <= 41, "{} blocks in the table", t.blocks.tbs.len());
    t.blocks.clear(&mut t.jumps);
    assert_eq!((t.blocks.live(), t.blocks.pages.len()), (0, 0));
}

#[test]
fn retired_blocks_are_few_and_go_with_their_segment() {
    let mut t = table(4, 640);
    for _ in 0..8 {
        t.add(0x1000, NO_PAGE, 16);
        t.invalidate(0x1000, 16);
    }
    let key = (0x1000, BlockKey::new(0x11000, 3));
    assert_eq!(t.blocks.retired(key.0, key.1).count(), VERSIONS);
    assert_eq!((t.blocks.live(), t.blocks.retired), (0, VERSIONS));
    assert_eq!(t.find(0x1000), Found::No);
    for n in 0..40 {
        t.add(0x20000 + n * 32, NO_PAGE, 32);
    }
    assert_eq!((t.blocks.retired(key.0, key.1).count(), t.blocks.retired), (0, 0));
}

#[test]
fn a_write_to_a_block_in_the_making_is_not_lost_to_an_eviction() {
    let mut t = table(2, 256);
    let remote = Arc::clone(&t.blocks.remote);
    t.add(0x1000, NO_PAGE, 8);
    // The bytes of a block are read, and room is made for it.
    t.blocks.note_code(0x5000);
    t.blocks.note_code(0x6000);
    t.blocks.evict(&mut t.jumps);
    remote.written(0x5ff0, 32);
    assert_eq!(remote.take().expect("the write is announced").written, [(0x5ff0, 32)]);
    t.blocks.note_code(0x8000);
    t.blocks.note_code(0x8000);
    t.blocks.evict(&mut t.jumps);
    remote.written(0x5ff0, 32);
    assert!(remote.take().is_none());
}
