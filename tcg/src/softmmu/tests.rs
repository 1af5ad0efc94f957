//! The software MMU with the toy guest, without generated code.

use std::sync::Arc;

use super::*;
use crate::exec::Context;
use crate::exec::toy::{RAM, ROM, Toy, ToyEnv, ToyMemory};
use crate::guest::{Access, Exception, Mapping};
use crate::memory::PAGE_SIZE;

type ToyContext = Context<Toy>;

fn context() -> (Arc<ToyMemory>, ToyContext) {
    let memory = ToyMemory::new();
    let context = Context::new(ToyEnv::new(), memory.clone(), crate::code_cache::MIN_MIB).unwrap();
    (memory, context)
}

fn load8(c: &mut ToyContext, va: u64) -> Result<u64, Exception> {
    load::<Toy>(c.env_mut(), va, 8, 0)
}

fn switch(c: &mut ToyContext, space: u64) {
    c.env_mut().space = space;
    switch_space::<Toy>(c.env_mut());
}

fn walks(c: &ToyContext) -> u32 {
    c.env().walk_count(Access::Read) + c.env().walk_count(Access::Write)
}

#[test]
fn a_second_access_needs_no_walk_and_a_write_walks_for_the_dirty_bit() {
    let (memory, mut c) = context();
    c.env_mut().map(1, 0x10_0000_0000, 0x5000).write = false;
    memory.poke(0x5010, &[1, 2, 3]);
    assert_eq!(load8(&mut c, 0x10_0000_0010), Ok(0x030201));
    assert_eq!(load8(&mut c, 0x10_0000_0010), Ok(0x030201));
    assert_eq!(walks(&c), 1);
    let e = store::<Toy>(c.env_mut(), 0x10_0000_0010, 4, 7, 0).unwrap_err();
    assert_eq!((e.vector, e.error, e.address), (14, Some(Access::Write as u32), 0x10_0000_0010));
    // A walk may allow more than before: no flush is needed for that.
    c.env_mut().map(1, 0x10_0000_0000, 0x5000);
    store::<Toy>(c.env_mut(), 0x10_0000_0010, 4, 7, 0).unwrap();
    assert_eq!(memory.peek(0x5010, 4), 7);
}

#[test]
fn mmu_modes_are_separate() {
    let (_, mut c) = context();
    c.env_mut().map(1, 0x4000, 0x5000);
    for mmu in 0..MMU_MODES as u8 {
        load::<Toy>(c.env_mut(), 0x4000, 1, mmu).unwrap();
        assert_eq!(walks(&c), u32::from(mmu) + 1);
    }
    let e = load::<Toy>(c.env_mut(), 0x6000, 1, 3).unwrap_err();
    assert_eq!(e.error, Some(Access::Read as u32 | 3 << 8));
}

#[test]
fn a_store_across_pages_writes_all_or_nothing() {
    let (memory, mut c) = context();
    c.env_mut().map(1, 0x4000, 0x9000);
    let e = store::<Toy>(c.env_mut(), 0x4ffe, 4, u64::MAX, 0).unwrap_err();
    assert_eq!((e.vector, e.address), (14, 0x5000));
    assert_eq!(memory.peek(0x9ffe, 2), 0);
    c.env_mut().map(1, 0x5000, 0x2000);
    store::<Toy>(c.env_mut(), 0x4ffe, 4, 0x4433_2211, 0).unwrap();
    assert_eq!((memory.peek(0x9ffe, 2), memory.peek(0x2000, 2)), (0x2211, 0x4433));
    assert_eq!(load::<Toy>(c.env_mut(), 0x4ffe, 4, 0), Ok(0x4433_2211));
    let bytes: Vec<u8> = (0..3 * PAGE_SIZE as usize).map(|i| (i as u8).wrapping_add(1)).collect();
    assert!(store_bytes::<Toy>(c.env_mut(), 0x4000, &bytes, 0).is_err());
    assert_eq!(memory.peek(0x9000, 1), 0);
    c.env_mut().map(1, 0x6000, 0x3000);
    store_bytes::<Toy>(c.env_mut(), 0x4000, &bytes, 0).unwrap();
    let mut back = vec![0; bytes.len()];
    load_bytes::<Toy>(c.env_mut(), 0x4000, &mut back, 0).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn mmio_is_accessed_in_aligned_parts() {
    let (memory, mut c) = context();
    c.env_mut().map(1, 0x4000, RAM);
    assert_eq!(load8(&mut c, 0x4008), Ok(RAM + 8));
    load::<Toy>(c.env_mut(), 0x4003, 4, 0).unwrap();
    let mut buf = [0; 16];
    load_bytes::<Toy>(c.env_mut(), 0x4010, &mut buf, 0).unwrap();
    let parts = [(8, 8), (3, 1), (4, 2), (6, 1), (0x10, 8), (0x18, 8)];
    assert_eq!(*memory.read.lock().unwrap(), parts.map(|(at, n)| (RAM + at, n)));
    assert_eq!(walks(&c), 1, "the second level knows MMIO pages");
    c.env_mut().map(1, 0x5000, ROM);
    store::<Toy>(c.env_mut(), 0x5010, 2, 0xabcd, 0).unwrap();
    assert_eq!(*memory.written.lock().unwrap(), [(ROM + 0x10, 2, 0xabcd)]);
    assert_eq!(load::<Toy>(c.env_mut(), 0x5010, 2, 0), Ok(0));
}

#[test]
fn compare_exchange_of_every_size_and_alignment() {
    let (memory, mut c) = context();
    c.env_mut().map(1, 0x4000, 0x4000);
    c.env_mut().map(1, 0x5000, 0x8000);
    for size in [1, 2, 4, 8, 16] {
        for va in [0x4100, 0x4101, 0x5000 - u64::from(size) / 2] {
            let mask = if size == 16 { u128::MAX } else { (1 << (8 * size)) - 1 };
            let (a, b) = (0x1122_3344_5566_7788_99aa_bbcc_ddee_ff01u128 & mask, !0x77u128 & mask);
            store_bytes::<Toy>(c.env_mut(), va, &a.to_le_bytes()[..size as usize], 0).unwrap();
            let mut cas = |expect, new| compare_exchange::<Toy>(c.env_mut(), va, size, expect, new, 0);
            assert_eq!(cas(b, 0), Ok(a), "{size} {va:#x}");
            assert_eq!(cas(a, b), Ok(a), "{size} {va:#x}");
            assert_eq!(cas(b, a), Ok(b), "{size} {va:#x}");
        }
    }
    assert!(memory.written.lock().unwrap().is_empty());
    c.env_mut().map(1, 0x6000, RAM);
    let va = 0x6008;
    assert_eq!(compare_exchange::<Toy>(c.env_mut(), va, 4, 1, 2, 0), Ok(u128::from((RAM + 8) as u32)));
    assert_eq!(*memory.written.lock().unwrap(), [(RAM + 8, 4, RAM + 8)], "a failed one stores what it read");
}

#[test]
fn spaces_keep_their_translations() {
    let (memory, mut c) = context();
    for space in 1..=SPACES_TRIED {
        c.env_mut().map(space, 0x4000, space * PAGE_SIZE);
        memory.poke(space * PAGE_SIZE, &[space as u8]);
    }
    for _ in 0..3 {
        for space in 1..=8 {
            switch(&mut c, space);
            assert_eq!(load8(&mut c, 0x4000), Ok(space));
        }
    }
    assert_eq!(walks(&c), 8);
    for space in 1..=SPACES_TRIED {
        switch(&mut c, space);
        assert_eq!(load8(&mut c, 0x4000), Ok(space));
    }
    assert_eq!(c.env().walk_count(Access::Read), SPACES_TRIED as u32);
    // The first ones were given up meanwhile.
    switch(&mut c, 1);
    assert_eq!(load8(&mut c, 0x4000), Ok(1));
    assert_eq!(c.env().walk_count(Access::Read), SPACES_TRIED as u32 + 1);
}

const SPACES_TRIED: u64 = 40;

#[test]
fn flushes_of_a_space_spare_global_pages_and_other_spaces() {
    let (_, mut c) = context();
    c.env_mut().map(1, 0x4000, 0x4000);
    c.env_mut().map(2, 0x4000, 0x5000);
    c.env_mut().map(1, 0xf000_0000, 0x6000).global = true;
    load8(&mut c, 0x4000).unwrap();
    load8(&mut c, 0xf000_0000).unwrap();
    switch(&mut c, 2);
    load8(&mut c, 0x4000).unwrap();
    load8(&mut c, 0xf000_0000).unwrap();
    assert_eq!(walks(&c), 3, "the global page was walked for once");
    flush_space::<Toy>(c.env_mut(), 1);
    load8(&mut c, 0x4000).unwrap();
    assert_eq!(walks(&c), 3);
    switch(&mut c, 1);
    load8(&mut c, 0xf000_0000).unwrap();
    assert_eq!(walks(&c), 3);
    load8(&mut c, 0x4000).unwrap();
    assert_eq!(walks(&c), 4);
    flush_all::<Toy>(c.env_mut());
    load8(&mut c, 0xf000_0000).unwrap();
    load8(&mut c, 0x4000).unwrap();
    assert_eq!(walks(&c), 6);
}

/// Remaps pages behind the TLB's back, flushes, and checks that no stale translation is used anywhere.
#[test]
fn flush_page_is_exact() {
    for (large, global) in [(false, false), (false, true), (true, false), (true, true)] {
        let (memory, mut c) = context();
        memory.poke(0x4000, &[4]);
        memory.poke(0x5000, &[5]);
        let bits = if large { 13 } else { 12 };
        let base = 0xffff_8000_0000_0000u64;
        let map = |c: &mut ToyContext, space: u64, phys: u64| {
            let m = c.env_mut().map(space, base, phys);
            (m.page_bits, m.global) = (bits, global);
        };
        map(&mut c, 1, 0x4000);
        map(&mut c, 2, 0x4000);
        for space in [1, 2, 1] {
            switch(&mut c, space);
            assert_eq!(load8(&mut c, base), Ok(4));
            if large {
                assert_eq!(load8(&mut c, base + PAGE_SIZE), Ok(5));
            }
        }
        map(&mut c, 1, 0x5000);
        map(&mut c, 2, 0x5000);
        assert_eq!(load8(&mut c, base), Ok(4), "no flush yet");
        // Any address in the page will do; another page is left alone.
        flush_page::<Toy>(c.env_mut(), 1, base + (PAGE_SIZE << 3));
        assert_eq!(load8(&mut c, base), Ok(4));
        flush_page::<Toy>(c.env_mut(), 1, base + if large { PAGE_SIZE + 5 } else { 5 });
        assert_eq!(load8(&mut c, base), Ok(5), "large {large} global {global}");
        switch(&mut c, 2);
        assert_eq!(load8(&mut c, base), Ok(if global { 5 } else { 4 }), "large {large} global {global}");
        flush_page::<Toy>(c.env_mut(), 2, base);
        assert_eq!(load8(&mut c, base), Ok(5));
    }
}

/// Maps 2 MiB at `va` by one large page.
fn map_large(c: &mut ToyContext, space: u64, va: u64, phys: u64) -> &mut Mapping {
    let mapping = c.env_mut().map(space, va, phys);
    (mapping.page_bits, mapping.alike_bits) = (LARGE_BITS as u8, LARGE_BITS as u8);
    mapping
}

const LARGE_SIZE: u64 = 1 << LARGE_BITS;

#[test]
fn a_large_page_is_walked_for_once() {
    let (memory, mut c) = context();
    let base = 0x7f00_0000_0000;
    map_large(&mut c, 1, base, LARGE_SIZE).write = false;
    // As many pages as displace each other in what is indexed by pages.
    let pages = || (0..LARGE_SIZE / PAGE_SIZE).rev();
    for n in pages() {
        memory.poke(LARGE_SIZE + n * PAGE_SIZE, &n.to_le_bytes());
        assert_eq!(load8(&mut c, base + n * PAGE_SIZE), Ok(n));
    }
    assert_eq!(walks(&c), 1);
    assert!(store::<Toy>(c.env_mut(), base, 8, 7, 0).is_err(), "it may not be written");
    map_large(&mut c, 1, base, LARGE_SIZE);
    let before = walks(&c);
    for n in pages() {
        store::<Toy>(c.env_mut(), base + n * PAGE_SIZE, 8, n + 1, 0).unwrap();
        assert_eq!(memory.peek(LARGE_SIZE + n * PAGE_SIZE, 8), n + 1);
    }
    assert_eq!(walks(&c), before + 1, "for the dirty bit");
    // Another mode has other rights.
    load::<Toy>(c.env_mut(), base, 1, 1).unwrap();
    assert_eq!(walks(&c), before + 2);
}

#[test]
fn large_entries_go_with_any_flush_of_an_address_in_them() {
    type Flush = fn(&mut ToyEnv, u64);
    // A flush, and whether it is for global pages, and for other spaces' local ones.
    let flushes: [(Flush, bool, bool); 3] = [
        (|env, va| flush_page::<Toy>(env, 1, va), true, false),
        (|env, _| flush_space::<Toy>(env, 1), false, false),
        (|env, _| flush_all::<Toy>(env), true, true),
    ];
    for ((flush, of_global, of_all), global) in flushes.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let (memory, mut c) = context();
        let base = 0xffff_8000_4000_0000;
        memory.poke(LARGE_SIZE, &[1]);
        memory.poke(2 * LARGE_SIZE, &[2]);
        let map_all = |c: &mut ToyContext, phys: u64| {
            for space in [1, 2] {
                map_large(c, space, base, phys).global = global;
            }
        };
        // No page is accessed twice, so that only a large entry can know it.
        let mut next = 0;
        let mut look = |c: &mut ToyContext| {
            next += PAGE_SIZE;
            memory.poke(LARGE_SIZE + next, &[1]);
            memory.poke(2 * LARGE_SIZE + next, &[2]);
            load8(c, base + next)
        };
        map_all(&mut c, LARGE_SIZE);
        for space in [2, 1] {
            switch(&mut c, space);
            assert_eq!(load8(&mut c, base), Ok(1));
        }
        map_all(&mut c, 2 * LARGE_SIZE);
        assert_eq!(look(&mut c), Ok(1), "no flush yet");
        flush(c.env_mut(), base + 0x12_3456);
        assert_eq!(look(&mut c), Ok(if !global || of_global { 2 } else { 1 }), "global {global}");
        switch(&mut c, 2);
        assert_eq!(look(&mut c), Ok(if of_all || global && of_global { 2 } else { 1 }), "global {global}");
    }
}

#[test]
fn what_is_not_contiguous_ram_has_no_large_entry() {
    let (memory, mut c) = context();
    let base = 0x4000_0000;
    // The last page of memory is ROM.
    map_large(&mut c, 1, base, RAM - LARGE_SIZE);
    memory.poke(RAM - LARGE_SIZE, &[5]);
    assert_eq!(load8(&mut c, base), Ok(5));
    store::<Toy>(c.env_mut(), base + LARGE_SIZE - PAGE_SIZE, 1, 9, 0).unwrap();
    assert_eq!(*memory.written.lock().unwrap(), [(ROM, 1, 9)]);
    // Large for flushes, but not mapped alike.
    let mapping = c.env_mut().map(1, 2 * base, LARGE_SIZE);
    mapping.page_bits = LARGE_BITS as u8;
    let before = walks(&c);
    for n in 0..10 {
        load8(&mut c, 2 * base + n * PAGE_SIZE).unwrap();
    }
    assert_eq!(walks(&c), before + 10);
}

#[test]
fn watches_see_accesses_to_large_pages() {
    let (_, mut c) = context();
    let base = 0x4000_0000;
    map_large(&mut c, 1, base, LARGE_SIZE);
    store::<Toy>(c.env_mut(), base, 8, 1, 0).unwrap();
    let at = base + 0x5008;
    let watch = Watch { owner: WatchOwner::Guest, tag: 0, first: at, last: at, kind: WatchKind::Write };
    add_watch::<Toy>(c.env_mut(), watch);
    // Elsewhere first, so that the large page is walked for.
    store::<Toy>(c.env_mut(), base, 8, 1, 0).unwrap();
    store::<Toy>(c.env_mut(), at - 4, 8, 1, 0).unwrap();
    assert_eq!(take_watch_hits::<Toy>(c.env_mut(), WatchOwner::Guest).len(), 1);
}

#[test]
fn more_global_flushes_than_are_logged_reach_other_spaces() {
    let (memory, mut c) = context();
    memory.poke(0x4000, &[4]);
    memory.poke(0x5000, &[5]);
    let base = 0xffff_8000_0000_0000u64;
    let pages = 100;
    for n in 0..pages {
        c.env_mut().map(1, base + n * PAGE_SIZE, 0x4000).global = true;
    }
    for space in [1, 2] {
        switch(&mut c, space);
        for n in 0..pages {
            assert_eq!(load8(&mut c, base + n * PAGE_SIZE), Ok(4));
        }
    }
    for n in 0..pages {
        c.env_mut().map(1, base + n * PAGE_SIZE, 0x5000).global = true;
        flush_page::<Toy>(c.env_mut(), 2, base + n * PAGE_SIZE);
    }
    for space in [2, 1] {
        switch(&mut c, space);
        for n in 0..pages {
            assert_eq!(load8(&mut c, base + n * PAGE_SIZE), Ok(5));
        }
    }
}

#[test]
fn host_bytes_are_those_of_ram() {
    let (memory, mut c) = context();
    for (va, phys) in [(0x4000, 0x5000), (0x40_4000, 0x6000), (0x8000, ROM), (0x9000, RAM)] {
        c.env_mut().map(1, va, phys);
    }
    // These two share an entry of the first level.
    let a = host_bytes::<Toy>(c.env_mut(), 0x4010, Access::Read, 0).unwrap().unwrap();
    let b = host_bytes::<Toy>(c.env_mut(), 0x40_4010, Access::Write, 0).unwrap().unwrap();
    memory.poke(0x5010, &[77]);
    // SAFETY: both are bytes of the test's memory.
    unsafe { b.write(a.read()) };
    assert_eq!(memory.peek(0x6010, 1), 77);
    assert!(host_bytes::<Toy>(c.env_mut(), 0x8000, Access::Read, 0).unwrap().is_some());
    assert_eq!(host_bytes::<Toy>(c.env_mut(), 0x8000, Access::Write, 0), Ok(None));
    assert_eq!(host_bytes::<Toy>(c.env_mut(), 0x9000, Access::Read, 0), Ok(None));
    assert!(host_bytes::<Toy>(c.env_mut(), 0xa000, Access::Read, 0).is_err());
}

#[test]
fn probe_raises_what_an_access_would() {
    let (_, mut c) = context();
    c.env_mut().map(1, 0x4000, 0x4000).write = false;
    assert!(probe::<Toy>(c.env_mut(), 0x4ff0, 16, Access::Read, 0).is_ok());
    assert_eq!(probe::<Toy>(c.env_mut(), 0x4ff0, 17, Access::Read, 0).unwrap_err().address, 0x5000);
    assert!(probe::<Toy>(c.env_mut(), 0x4ff0, 1, Access::Write, 0).is_err());
    assert!(probe::<Toy>(c.env_mut(), 0x4ff0, 1, Access::Execute, 0).is_ok());
}

#[test]
fn direct_writes_agree_with_a_model() {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    // Random loads, stores, flushes, remappings with flush and switches, against a plain map of pages.
    let op = (0u8..8, 1u64..4, 0u64..6, 0u64..PAGE_SIZE, any::<u64>());
    let mut runner = TestRunner::new(ProptestConfig { cases: 64, ..ProptestConfig::default() });
    runner
        .run(&proptest::collection::vec(op, 1..80), |ops| {
            let (_, mut c) = context();
            let mut model = vec![0u8; RAM as usize];
            let mut table = [[0u64; 6]; 4];
            for space in 1..4 {
                for page in 0..6 {
                    table[space as usize][page as usize] = page + 1;
                    c.env_mut().map(space, page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
                }
            }
            for (kind, space, page, offset, v) in ops {
                let now = c.env().space as usize;
                let va = page * PAGE_SIZE + offset;
                let phys = |n: u64| {
                    let at = va + n;
                    let page = table[now].get((at / PAGE_SIZE) as usize)?;
                    Some((page * PAGE_SIZE + at % PAGE_SIZE) as usize)
                };
                let all: Option<Vec<usize>> = (0..8).map(phys).collect();
                match kind {
                    0..=2 => {
                        let expect = all.map(|at| u64::from_le_bytes(std::array::from_fn(|i| model[at[i]])));
                        prop_assert_eq!(load8(&mut c, va).ok(), expect);
                    }
                    3..=5 => {
                        let done = store::<Toy>(c.env_mut(), va, 8, v, 0).is_ok();
                        prop_assert_eq!(done, all.is_some());
                        for (at, b) in all.into_iter().flatten().zip(v.to_le_bytes()) {
                            model[at] = b;
                        }
                    }
                    6 => switch(&mut c, space),
                    _ => {
                        table[space as usize][page as usize] = 1 + v % 9;
                        c.env_mut().map(space, page * PAGE_SIZE, (1 + v % 9) * PAGE_SIZE);
                        flush_page::<Toy>(c.env_mut(), space, va);
                    }
                }
            }
            Ok(())
        })
        .unwrap();
}
