//! Translated blocks (TBs): where they are, what they were made from, which jumps lead to them.
//!
//! Problem: a block must be found by what it was made from, unlinked from everywhere in no time when its guest bytes
//! change, and its memory reused, while its number may still be in host code. Strategy: a table of [`Tb`] indexed by
//! block number, which a hash table by physical address leads to ([`BlockIndex`]), with intrusive lists for the rest: blocks of
//! a page, jumps linked to a block.
//!
//! A block is *live* (can be found and linked), *retired* (unlinked, but kept for the case that its guest bytes become
//! again what they were: see `revive`), *dead* (unlinked, but its code stays, because it may be running) or *free*. Invalidation
//! makes a block retired or dead; only emptying its segment of the code cache, which nothing does while
//! generated code runs, makes it free. So a block number in host code always means the block that this code belongs to.
//!
//! Invariants:
//! - A live block is in the hash table once, and in the list of each page that its bytes are in (but see
//!   [`Blocks::insert_bridge`]). A retired block is in the hash table once, and in no other list.
//! - A jump is linked only from a live block to a live block, and is in the target's list of incoming jumps.
//! - The jump cache holds no address of a dead block.
//! - The number of blocks is bounded by the size of the code cache; a page without blocks has no descriptor.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::block_index::BlockIndex;
use super::code_lines::{CodeLines, PageHasher, lines};
use super::code_regions::CodeRegions;
use super::remote::Remote;
use super::side_tables::{self, Tables};
use super::traces::Route;
use crate::backend::Compiled;
use crate::code_cache::CodeCache;
use crate::guest::BlockKey;
use crate::ir::Exit;
use crate::jump_cache::JumpCache;
use crate::memory::{PAGE_MASK, PAGE_SIZE};

/// No block.
const NONE: u32 = u32::MAX;
/// No second page; no page has this address.
pub(super) const NO_PAGE: u64 = u64::MAX;
/// Counters of tried traces.
const TRIES: usize = 4096;
/// Number of the block that runs once, in the scratch area; never live.
pub(super) const SCRATCH: u32 = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Live,
    Retired,
    Dead,
}

/// A jump that can be linked.
#[derive(Clone, Copy)]
struct Site {
    /// Offset of its field in the code cache.
    field: u32,
    /// Content of the field while it is not linked.
    unlinked: u32,
    /// Guest-virtual address that it goes to.
    pc: u64,
    exit: u16,
    /// Whether it is linked to the entry that polls.
    poll: bool,
    /// Whether it goes to a block without groups.
    ungrouped: bool,
    /// Block that it is linked to.
    target: u32,
    /// Next in the target's list of incoming jumps.
    next: SiteRef,
}

/// Names a jump: block and index among its jumps.
#[derive(Clone, Copy, PartialEq, Eq)]
struct SiteRef {
    tb: u32,
    n: u16,
}

const NO_SITE: SiteRef = SiteRef { tb: NONE, n: 0 };

/// A translated block.
#[derive(Clone, Copy)]
pub(super) struct Tb {
    /// Guest-virtual address.
    pub pc: u64,
    /// Block mode.
    pub mode: u64,
    /// It is ungrouped.
    ungrouped: bool,
    /// Guest-physical address of the first byte.
    pub phys: u64,
    /// Guest-physical address of the second page, or [`NO_PAGE`].
    pub page2: u64,
    /// Guest-virtual address of the second page, if it has one. Of a trace, any.
    pub page2_pc: u64,
    /// Offsets of the first and behind the last of its bytes in each of its pages.
    spans: [(u16, u16); 2],
    /// It is a trace: see [`Origin::trace`].
    pub trace: Option<Route>,
    /// How often the guest was found at its start: see `traces`.
    heat: u8,
    /// Offset of its hot code in the cache.
    pub code: u32,
    /// Distance of the entry without a poll.
    pub body: u16,
    /// Guest bytes that were kept of it.
    bytes: u16,
    /// Points in its side tables.
    points: u32,
    /// Start in its segment's bytes of what the block was made from, which its side tables follow.
    side: u32,
    /// Start and number of its jumps in its segment's.
    sites: u32,
    site_count: u16,
    segment: u16,
    state: State,
    /// It is in no table: see [`Blocks::insert_bridge`].
    bridge: bool,
    /// Next in the lists of its pages: block number times 2 plus which page of that block.
    page_next: [u32; 2],
    /// The one before, likewise.
    page_prev: [u32; 2],
    incoming: SiteRef,
}

impl Tb {
    const FREE: Tb = Tb {
        pc: 0,
        mode: 0,
        ungrouped: false,
        phys: 0,
        page2: NO_PAGE,
        page2_pc: 0,
        spans: [(0, 0); 2],
        trace: None,
        heat: 0,
        code: 0,
        body: 0,
        bytes: 0,
        points: 0,
        side: 0,
        sites: 0,
        site_count: 0,
        segment: 0,
        state: State::Free,
        bridge: false,
        page_next: [NONE; 2],
        page_prev: [NONE; 2],
        incoming: NO_SITE,
    };

    /// Whether it goes on in a second page.
    pub fn spans(&self) -> bool {
        self.page2 != NO_PAGE
    }

    /// Its key.
    fn key(&self) -> BlockKey {
        BlockKey { pc: self.pc, mode: self.mode, ungrouped: self.ungrouped }
    }

    /// Whether it is a block for this key, its second page apart.
    fn is(&self, phys: u64, key: BlockKey) -> bool {
        self.phys == phys && self.key() == key
    }

    /// Whether its first byte is at a guest-physical address, in this mode.
    pub fn starts_at(&self, phys: u64, mode: u64) -> bool {
        self.phys == phys && self.mode == mode
    }

    /// Page `which` and the offsets in it of the block's bytes.
    fn span(&self, which: usize) -> (u64, u64, u64) {
        let (from, to) = self.spans[which];
        let page = if which == 0 { self.phys & !PAGE_MASK } else { self.page2 };
        (page, from.into(), to.into())
    }

    /// Whether any of its bytes, or what lies between them, is at this guest-virtual address.
    fn covers(&self, address: u64) -> bool {
        let pages = [self.pc & !PAGE_MASK, self.page2_pc];
        let here = |(page, (from, to)): (u64, (u16, u16))| {
            (u64::from(from)..u64::from(to)).contains(&address.wrapping_sub(page))
        };
        let count = 1 + usize::from(self.spans());
        pages.into_iter().zip(self.spans).take(count).any(here)
    }

    fn made_from(&self, phys: u64, len: u64) -> bool {
        let pages = if self.page2 == NO_PAGE { 1 } else { 2 };
        let at = phys & PAGE_MASK;
        (0..pages).any(|which| {
            let (page, from, to) = self.span(which);
            page == phys & !PAGE_MASK && at < to && at + len > from
        })
    }
}

/// A page that blocks were made from.
struct Page {
    /// Its first block; see [`Tb::page_next`].
    first: u32,
    /// Where its [`CodeLines`] are.
    lines: u32,
}

/// What belongs to a segment of the code cache.
#[derive(Default)]
struct Segment {
    blocks: Vec<u32>,
    side: Vec<u8>,
    sites: Vec<Site>,
}

/// What a new block was made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// It is a trace, and where it goes: its bytes are anywhere in its pages, which are not necessarily next to each other. It is
    /// preferred to another block for the same start, and does not come back when it was invalidated.
    pub trace: Option<Route>,
    /// Its key.
    pub key: BlockKey,
    /// Guest-physical address of the first byte.
    pub phys: u64,
    /// Guest-physical address of the second page, or [`NO_PAGE`].
    pub page2: u64,
    /// Guest-virtual address of the second page, if there is one.
    pub page2_pc: u64,
    /// Offsets of the first and behind the last of its bytes in each of its pages; of a trace, all that is between counts.
    pub spans: [(u16, u16); 2],
    /// Its bytes in both pages, for the case that it is invalidated and they change back. None of a trace.
    pub code: [&'a [u8]; 2],
}

/// Result of [`Blocks::find`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// There is none.
    No,
    /// A block in one page.
    Block(u32),
    /// Blocks that go on in a second page, which decides, perhaps among others.
    Spanning,
}

/// Counters of the blocks.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct BlockStats {
    /// Jumps linked.
    pub links: u64,
    /// Segments that became full.
    pub segments: u64,
    /// Blocks that went to make room.
    pub evicted: u64,
    /// Blocks invalidated because their bytes changed.
    pub invalidated: u64,
    /// Of these, blocks that were found again because their bytes had changed back.
    pub revived: u64,
    /// Times that everything was dropped.
    pub cleared: u64,
}

/// All blocks of a vCPU, with their code. See the module documentation.
pub struct Blocks {
    pub(super) cache: CodeCache,
    pub(super) stats: BlockStats,
    tbs: Vec<Tb>,
    free: Vec<u32>,
    /// Live and retired blocks by the hash of their keys.
    index: BlockIndex,
    live: usize,
    retired: usize,
    pages: HashMap<u64, Page, BuildHasherDefault<PageHasher>>,
    lines: CodeLines,
    regions: CodeRegions,
    segments: Vec<Segment>,
    scratch: Vec<u8>,
    /// Where its exits go.
    scratch_exits: Vec<u64>,
    remote: Arc<Remote>,
    /// The pages that were noted last: a block may be in the making that is not in the tables yet.
    noted: Cell<[u64; 2]>,
    /// What was looked for in vain, by physical address and key, since the last new block: generated code looks first, and
    /// the execution loop need not do so again.
    missing: Option<(u64, BlockKey)>,
    /// What is known of heads of traces, by hash.
    heads: Box<[Head; TRIES]>,
}

/// What is known of a place where traces begin, or of several of the same hash.
#[derive(Clone, Copy, Default)]
struct Head {
    /// How often a trace was tried where there was none.
    tries: u8,
    /// How often the way of one was looked at again.
    looks: u8,
    /// The trace that `unsteady` is of.
    route: Option<Route>,
    /// The guesses that it is not to make and the memos that it is not to have, as a bit mask.
    unsteady: u32,
}

/// Hash of a key.
fn hash(phys: u64, key: BlockKey) -> u32 {
    let BlockKey { pc, mode, ungrouped } = key;
    let h = phys ^ pc.rotate_left(20) ^ mode.rotate_left(40) ^ u64::from(ungrouped);
    (h.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// Where it is told what is known of a head.
fn head_slot(phys: u64, head: BlockKey) -> usize {
    hash(phys, head) as usize % TRIES
}

impl Blocks {
    /// No blocks, in `cache`.
    pub(super) fn new(cache: CodeCache, remote: Arc<Remote>) -> Blocks {
        let segments = (0..cache.segments()).map(|_| Segment::default()).collect();
        Blocks {
            cache,
            stats: BlockStats::default(),
            tbs: vec![Tb { state: State::Dead, ..Tb::FREE }],
            free: Vec::new(),
            index: BlockIndex::new(),
            live: 0,
            retired: 0,
            pages: HashMap::default(),
            lines: CodeLines::default(),
            regions: CodeRegions::default(),
            segments,
            scratch: Vec::new(),
            scratch_exits: Vec::new(),
            remote,
            noted: Cell::new([NO_PAGE; 2]),
            missing: None,
            heads: Box::new([Head::default(); TRIES]),
        }
    }

    /// Whether blocks were made from the page at a guest-physical address.
    #[inline]
    pub(crate) fn has_code(&self, phys_page: u64) -> bool {
        self.pages.contains_key(&phys_page)
    }

    /// A bit for each 64-byte line of a page from which blocks were made; none if there are no blocks.
    pub(crate) fn code_lines(&self, phys_page: u64) -> Option<&AtomicU64> {
        self.pages.get(&phys_page).map(|page| self.lines.get(page.lines))
    }

    /// Whether blocks were made from any page of the stretch of memory that begins at `phys` and that a large entry of a TLB
    /// is for.
    pub(crate) fn has_code_in(&self, phys: u64) -> bool {
        self.regions.have(phys)
    }

    /// Number of blocks that can be found.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// A block by number.
    #[inline]
    pub(super) fn get(&self, tb: u32) -> &Tb {
        &self.tbs[tb as usize]
    }

    /// Address of a block's entry, which polls.
    #[inline]
    pub(super) fn entry(&self, tb: u32) -> u64 {
        self.cache.address(self.get(tb).code)
    }

    /// Address of a block's entry without a poll.
    #[inline]
    pub(super) fn body(&self, tb: u32) -> u64 {
        self.entry(tb) + u64::from(self.get(tb).body)
    }

    /// Side tables of a block.
    pub(super) fn tables(&self, tb: u32) -> Tables<'_> {
        let t = self.get(tb);
        let bytes = match tb {
            SCRATCH => &self.scratch[..],
            _ => &self.segments[t.segment as usize].side[t.side as usize + usize::from(t.bytes)..],
        };
        Tables::new(bytes, t.pc, t.points as usize)
    }

    /// Finds a block.
    #[inline]
    pub(super) fn find(&self, phys: u64, key: BlockKey) -> Found {
        let mut found = Found::No;
        for id in self.of_hash(phys, key) {
            let t = &self.tbs[id as usize];
            if t.is(phys, key) && t.state == State::Live {
                if t.page2 != NO_PAGE {
                    return Found::Spanning;
                }
                found = Found::Block(id);
            }
        }
        found
    }

    /// Notes that there is no block for a key, and that who wants one tries the retired ones now.
    pub(super) fn note_missing(&mut self, phys: u64, key: BlockKey) {
        self.missing = Some((phys, key));
    }

    /// Whether there is no block for a key, according to a note. It is good for one answer: memory changes.
    pub(super) fn is_missing(&mut self, phys: u64, key: BlockKey) -> bool {
        self.missing.take() == Some((phys, key))
    }

    /// The live blocks of a key, oldest first.
    pub(super) fn live_of(&self, phys: u64, key: BlockKey) -> impl Iterator<Item = (u32, &Tb)> {
        self.of_hash(phys, key)
            .map(|id| (id, self.get(id)))
            .filter(move |(_, t)| t.state == State::Live && t.is(phys, key))
    }

    /// Counts that the guest was found at the start of a block; whether it has been found there more than `enough` times since a
    /// trace was last tried from there. Each time that takes twice as often: code that is written to again and again, or goes
    /// another way each time, is not worth it. At a trace it takes longer, and is counted apart: it may have been made when the
    /// guest went another way than it usually does.
    pub(super) fn heat(&mut self, id: u32, enough: u8) -> bool {
        let t = &mut self.tbs[id as usize];
        if t.bridge || t.state != State::Live {
            return false;
        }
        let head = &mut self.heads[head_slot(t.phys, t.key())];
        let (samples, times) = match t.trace {
            Some(_) => (enough.max(1).saturating_mul(4), &mut head.looks),
            None => (enough, &mut head.tries),
        };
        if u32::from(t.heat) < (u32::from(samples) << (*times).min(8)).min(u8::MAX.into()) {
            t.heat += 1;
            return false;
        }
        t.heat = 0;
        let before = *times;
        *times = before.saturating_add(1);
        // Where no heat is asked for, that must have an end, too.
        enough > 0 || before < u8::MAX
    }

    /// Which guesses a trace from this head along a route may make, and which memos it may have.
    pub(super) fn guesses(&self, phys: u64, head: BlockKey, route: Route) -> u32 {
        let head = &self.heads[head_slot(phys, head)];
        if head.route == Some(route) { !head.unsteady } else { u32::MAX }
    }

    /// Notes that guesses or memos of a trace are wrong too often: the next one along its route, to be made soon, does without.
    pub(super) fn note_unsteady(&mut self, trace: u32, guesses: u32) {
        let t = &self.tbs[trace as usize];
        let head = &mut self.heads[head_slot(t.phys, t.key())];
        if head.route != t.trace {
            (head.route, head.unsteady) = (t.trace, 0);
        }
        if guesses & !head.unsteady != 0 {
            head.unsteady |= guesses;
            head.tries = 0;
        }
    }

    /// Whether a number is that of a trace that can be found.
    pub(super) fn is_live_trace(&self, id: u32) -> bool {
        self.tbs.get(id as usize).is_some_and(|t| t.state == State::Live && t.trace.is_some())
    }

    /// Whether a block can be found.
    pub(super) fn is_live(&self, id: u32) -> bool {
        self.get(id).state == State::Live
    }

    /// The number that the next block gets.
    pub(super) fn next_number(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.tbs.len() as u32)
    }

    /// Notes that code is about to be read from a page, for writers on other threads.
    pub(super) fn note_code(&self, phys_page: u64) {
        self.noted.set([self.noted.get()[1], phys_page]);
        self.remote.note_code(phys_page);
    }

    /// Places a block in the cache's free part, where it was compiled for, as number
    /// [`Blocks::next_number`]. Its side tables and the number of points in them were [encoded](side_tables::encode) for its address.
    /// The flags say which of its two pages have no other block.
    pub(super) fn insert(
        &mut self,
        origin: Origin<'_>,
        exits: &[Exit],
        compiled: &Compiled,
        (points, tables): (usize, &[u8]),
    ) -> (u32, [bool; 2]) {
        let id = self.next_number();
        if self.free.pop().is_none() {
            self.tbs.push(Tb::FREE);
        }
        let at = self.cache.place(compiled);
        let segment = self.cache.current_segment();
        let arena = &mut self.segments[segment];
        arena.blocks.push(id);
        let side = arena.side.len() as u32;
        origin.code.iter().for_each(|part| arena.side.extend_from_slice(part));
        let bytes = arena.side.len() as u32 - side;
        arena.side.extend_from_slice(tables);
        let sites = arena.sites.len() as u32;
        arena.sites.extend(compiled.jumps.iter().map(|j| {
            let exit = exits.get(j.exit as usize);
            Site {
                field: at + j.field,
                unlinked: j.unlinked,
                pc: exit.map_or_else(|| compiled.ungrouped[j.exit as usize - exits.len()], |e| e.pc),
                exit: j.exit,
                poll: exit.is_some_and(|e| e.poll),
                ungrouped: exit.is_none(),
                target: NONE,
                next: NO_SITE,
            }
        }));
        let tb = Tb {
            pc: origin.key.pc,
            mode: origin.key.mode,
            ungrouped: origin.key.ungrouped,
            phys: origin.phys,
            page2: origin.page2,
            page2_pc: origin.page2_pc,
            spans: origin.spans,
            trace: origin.trace,
            heat: 0,
            code: at,
            body: compiled.body as u16,
            bytes: bytes as u16,
            points: points as u32,
            side,
            sites,
            site_count: compiled.jumps.len() as u16,
            segment: segment as u16,
            state: State::Live,
            bridge: false,
            page_next: [NONE; 2],
            page_prev: [NONE; 2],
            incoming: NO_SITE,
        };
        self.tbs[id as usize] = tb;
        self.live += 1;
        self.hash_insert(id);
        (id, self.pages_insert(id))
    }

    /// Adds a block to the lists of its pages; which of them have no other block.
    fn pages_insert(&mut self, id: u32) -> [bool; 2] {
        self.missing = None;
        let first = self.page_insert(id, 0);
        [first, self.get(id).spans() && self.page_insert(id, 1)]
    }

    /// Places code that jumps linked to it reach, but that cannot be found and was made from no guest bytes, in the
    /// cache's free part, where it was compiled for.
    pub(super) fn insert_bridge(&mut self, pc: u64, compiled: &Compiled) -> u32 {
        let id = self.next_number();
        if self.free.pop().is_none() {
            self.tbs.push(Tb::FREE);
        }
        let at = self.cache.place(compiled);
        let segment = self.cache.current_segment();
        self.segments[segment].blocks.push(id);
        self.tbs[id as usize] = Tb {
            pc,
            code: at,
            body: compiled.body as u16,
            segment: segment as u16,
            state: State::Live,
            bridge: true,
            ..Tb::FREE
        };
        self.live += 1;
        id
    }

    /// Places the block that runs once; it was compiled for the scratch area, as number [`SCRATCH`].
    pub(super) fn insert_scratch(&mut self, pc: u64, exits: &[Exit], compiled: &Compiled) {
        let area = self.cache.scratch();
        assert!(compiled.fits(area.len()), "one guest instruction fits the scratch area");
        self.cache.write_parts(area.start, compiled);
        self.scratch.clear();
        side_tables::encode(compiled, pc, &mut self.scratch);
        self.scratch_exits.clear();
        self.scratch_exits.extend(exits.iter().map(|e| e.pc));
        self.tbs[SCRATCH as usize] = Tb {
            pc,
            code: area.start,
            body: compiled.body as u16,
            points: compiled.points.len() as u32,
            state: State::Dead,
            ..Tb::FREE
        };
    }

    /// Where an exit of a block goes that has a jump which can be linked.
    ///
    /// # Panics
    /// If the block has no such exit: generated code has left by it.
    pub(super) fn exit_pc(&self, tb: u32, exit: u16) -> u64 {
        if tb == SCRATCH {
            return self.scratch_exits[exit as usize];
        }
        self.site_of(tb, exit).pc
    }

    /// Whether an exit goes to a block without groups. Panics as [`Blocks::exit_pc`].
    pub(super) fn exit_is_ungrouped(&self, tb: u32, exit: u16) -> bool {
        tb != SCRATCH && self.site_of(tb, exit).ungrouped
    }

    fn site_of(&self, tb: u32, exit: u16) -> &Site {
        let mut sites = (0..self.get(tb).site_count).map(|n| self.site(SiteRef { tb, n }));
        sites.find(|s| s.exit == exit).expect("the exit has a jump")
    }

    /// A jump of an exit that is not linked: its number, the address of its field, and whether it goes to the entry that
    /// polls.
    pub(super) fn unlinked(&self, tb: u32, exit: u16) -> Option<(u16, u64, bool)> {
        let t = self.get(tb);
        let count = if t.state == State::Live { t.site_count } else { 0 };
        (0..count).find_map(|n| {
            let s = self.site(SiteRef { tb, n });
            (s.exit == exit && s.target == NONE).then(|| (n, self.cache.address(s.field), s.poll))
        })
    }

    /// Links a jump that [`Blocks::unlinked`] named: `field` is what its field becomes.
    pub(super) fn link(&mut self, from: u32, n: u16, to: u32, field: u32) {
        debug_assert!(self.get(from).state == State::Live && self.get(to).state == State::Live);
        let at = SiteRef { tb: from, n };
        let next = std::mem::replace(&mut self.tbs[to as usize].incoming, at);
        let s = self.site_mut(at);
        s.target = to;
        s.next = next;
        let offset = s.field;
        self.cache.store_word(offset, field);
        self.stats.links += 1;
    }

    /// Whether block `tb` was made from any of `len` bytes of one page.
    pub(crate) fn made_from(&self, tb: u32, phys: u64, len: u64) -> bool {
        let t = self.get(tb);
        t.state == State::Live && t.made_from(phys, len)
    }

    /// Whether any live block was made from any of `len` bytes of one page.
    pub(crate) fn any_made_from(&self, phys: u64, len: u64) -> bool {
        let at = phys & PAGE_MASK;
        let Some(page) = self.pages.get(&(phys & !PAGE_MASK)) else { return false };
        if self.lines.get(page.lines).load(Relaxed) & lines(at, at + len) == 0 {
            return false;
        }
        let mut node = page.first;
        while node != NONE {
            let t = &self.tbs[node as usize / 2];
            if t.made_from(phys, len) {
                return true;
            }
            node = t.page_next[node as usize % 2];
        }
        false
    }

    /// Invalidates the blocks that were made from any of `len` bytes of one page.
    pub(crate) fn invalidate(&mut self, phys: u64, len: u64, jumps: &mut JumpCache) {
        let (at, page_address) = (phys & PAGE_MASK, phys & !PAGE_MASK);
        let Some(page) = self.pages.get(&page_address) else { return };
        if self.lines.get(page.lines).load(Relaxed) & lines(at, at + len) == 0 {
            return;
        }
        let mut node = page.first;
        let mut kept = 0;
        let mut gone = 0;
        while node != NONE {
            let (id, which) = (node / 2, node as usize % 2);
            let t = &self.tbs[id as usize];
            node = t.page_next[which];
            if t.state != State::Live {
                // Both of its pages are this one, and it went a moment ago.
                continue;
            }
            let (_, from, to) = t.span(which);
            if at < to && at + len > from {
                self.kill(id, jumps);
                self.retire(id);
                gone += 1;
            } else {
                kept |= lines(from, to);
            }
        }
        self.stats.invalidated += gone;
        if let Some(page) = self.pages.get(&page_address) {
            self.lines.get(page.lines).store(kept, Relaxed);
        }
    }

    /// [`Blocks::invalidate`] for any range.
    pub(super) fn invalidate_range(&mut self, phys: u64, len: u64, jumps: &mut JumpCache) {
        let end = phys.saturating_add(len);
        if len / PAGE_SIZE > self.pages.len() as u64 {
            let pages: Vec<u64> =
                self.pages.keys().copied().filter(|p| *p < end && p + PAGE_SIZE > phys).collect();
            for page in pages {
                let start = page.max(phys);
                self.invalidate(start, end.min(page + PAGE_SIZE) - start, jumps);
            }
            return;
        }
        let mut at = phys;
        while at < end {
            let n = (PAGE_SIZE - (at & PAGE_MASK)).min(end - at);
            self.invalidate(at, n, jumps);
            at += n;
        }
    }

    /// Invalidates the blocks with bytes at any of these guest-virtual addresses, in any address space. Looks at every
    /// block, so it is for what a person does. Nothing may be running.
    pub(super) fn invalidate_virtual(&mut self, addresses: &[u64], jumps: &mut JumpCache) {
        for id in 0..self.tbs.len() as u32 {
            let t = self.get(id);
            if t.bridge || !addresses.iter().any(|address| t.covers(*address)) {
                continue;
            }
            if t.state == State::Live {
                self.kill(id, jumps);
                self.stats.invalidated += 1;
            } else {
                self.forget(id);
            }
        }
    }

    /// Empties the next segment and goes there. Nothing may be running.
    pub(super) fn evict(&mut self, jumps: &mut JumpCache) {
        let segment = self.cache.advance();
        let before = self.live;
        self.empty(segment, jumps);
        self.stats.segments += 1;
        self.stats.evicted += (before - self.live) as u64;
        self.retain_code();
    }

    /// Drops all blocks. Nothing may be running.
    pub(super) fn clear(&mut self, jumps: &mut JumpCache) {
        for segment in 0..self.segments.len() {
            self.empty(segment, jumps);
        }
        self.cache.clear();
        self.stats.cleared += 1;
        self.retain_code();
    }

    /// Tells writers on other threads which pages still matter: those of all blocks, and of one whose bytes were read just now.
    fn retain_code(&self) {
        let noted = self.noted.get().into_iter().filter(|page| *page != NO_PAGE);
        self.remote.retain_code(self.pages.keys().copied().chain(noted));
    }

    fn empty(&mut self, segment: usize, jumps: &mut JumpCache) {
        let blocks = std::mem::take(&mut self.segments[segment].blocks);
        for &id in &blocks {
            if self.get(id).state == State::Live {
                self.kill(id, jumps);
            } else {
                self.forget(id);
            }
        }
        // In reverse, so that numbers are given out again in ascending order.
        for &id in blocks.iter().rev() {
            self.tbs[id as usize] = Tb::FREE;
            self.free.push(id);
        }
        let arena = &mut self.segments[segment];
        arena.blocks = blocks;
        arena.blocks.clear();
        arena.side.clear();
        arena.sites.clear();
    }

    /// Makes a live block dead: nothing leads to it any more.
    pub(super) fn kill(&mut self, id: u32, jumps: &mut JumpCache) {
        let t = self.tbs[id as usize];
        jumps.forget(t.pc, self.body(id));
        if !t.bridge {
            self.hash_remove(id);
            self.page_remove(id, 0);
            if t.page2 != NO_PAGE {
                self.page_remove(id, 1);
            }
        }
        let mut at = t.incoming;
        while at != NO_SITE {
            at = self.unlink(at);
        }
        for n in 0..t.site_count {
            let at = SiteRef { tb: id, n };
            let target = self.site(at).target;
            if target != NONE {
                self.remove_incoming(target, at);
                self.unlink(at);
            }
        }
        let t = &mut self.tbs[id as usize];
        t.incoming = NO_SITE;
        t.state = State::Dead;
        self.live -= 1;
    }

    /// Makes a jump unlinked; the next one in the list that it was in.
    fn unlink(&mut self, at: SiteRef) -> SiteRef {
        let s = self.site_mut(at);
        s.target = NONE;
        let next = std::mem::replace(&mut s.next, NO_SITE);
        let (field, unlinked) = (s.field, s.unlinked);
        self.cache.store_word(field, unlinked);
        next
    }

    fn remove_incoming(&mut self, target: u32, gone: SiteRef) {
        let after = self.site(gone).next;
        let mut at = self.get(target).incoming;
        if at == gone {
            self.tbs[target as usize].incoming = after;
            return;
        }
        while at != NO_SITE {
            let next = self.site(at).next;
            if next == gone {
                self.site_mut(at).next = after;
                return;
            }
            at = next;
        }
    }

    fn site(&self, at: SiteRef) -> &Site {
        let t = &self.tbs[at.tb as usize];
        &self.segments[t.segment as usize].sites[t.sites as usize + at.n as usize]
    }

    fn site_mut(&mut self, at: SiteRef) -> &mut Site {
        let t = &self.tbs[at.tb as usize];
        &mut self.segments[t.segment as usize].sites[t.sites as usize + at.n as usize]
    }

    /// Blocks that may be of a key: those of its hash, oldest first.
    #[inline]
    fn of_hash(&self, phys: u64, key: BlockKey) -> impl Iterator<Item = u32> {
        self.index.find(hash(phys, key))
    }

    fn hash_insert(&mut self, id: u32) {
        let t = self.get(id);
        self.index.insert(hash(t.phys, t.key()), id);
    }

    fn hash_remove(&mut self, id: u32) {
        let t = self.get(id);
        self.index.remove(hash(t.phys, t.key()), id);
    }

    /// Adds a block to the list of one of its pages; whether the list was empty.
    fn page_insert(&mut self, id: u32, which: usize) -> bool {
        let (address, from, to) = self.get(id).span(which);
        let all_lines = &mut self.lines;
        let regions = &mut self.regions;
        let page = self.pages.entry(address).or_insert_with(|| {
            regions.add(address);
            Page { first: NONE, lines: all_lines.allocate() }
        });
        all_lines.get(page.lines).fetch_or(lines(from, to), Relaxed);
        let node = id * 2 + which as u32;
        let next = std::mem::replace(&mut page.first, node);
        let t = &mut self.tbs[id as usize];
        (t.page_next[which], t.page_prev[which]) = (next, NONE);
        if next != NONE {
            self.tbs[next as usize / 2].page_prev[next as usize % 2] = node;
        }
        next == NONE
    }

    fn page_remove(&mut self, id: u32, which: usize) {
        let t = self.get(id);
        let (address, ..) = t.span(which);
        let (next, prev) = (t.page_next[which], t.page_prev[which]);
        if next != NONE {
            self.tbs[next as usize / 2].page_prev[next as usize % 2] = prev;
        }
        if prev != NONE {
            self.tbs[prev as usize / 2].page_next[prev as usize % 2] = next;
        } else if next == NONE {
            if let Some(page) = self.pages.remove(&address) {
                self.lines.release(page.lines);
                self.regions.remove(address);
            }
        } else if let Some(page) = self.pages.get_mut(&address) {
            page.first = next;
        }
    }
}

#[path = "blocks_revive.rs"]
mod revive;

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
