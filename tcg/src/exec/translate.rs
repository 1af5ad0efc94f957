//! From guest code at an address to a block in the cache.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::blocks::{NO_PAGE, Origin, SCRATCH, Tb};
use super::code_fetch::{FetchedPage, Fetcher};
use super::side_tables;
use super::templates::{self, Sample, Template, Templates};
use super::translation_log::Log;
use super::{BREAKPOINT, Options, Stats, moving, traces};
use crate::backend::{Compiled, GuestInfo, HostBackend, Position, Room};
use crate::env::{GUESSING, Guesses, Runtime};
use crate::guest::{BlockKey, CodeFetch, Exception, Guest, TranslateLimits, Translated};
#[cfg(debug_assertions)]
use crate::ir::verify;
use crate::ir::{Block, Builder, Exit, GlobalSet, Inst, plain_globals, text};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::opt::{OptFlags, Optimizer};
use crate::softmmu::fetch_page;

/// Of so many translations, the time of one is taken: a look at the clock takes as long as translating an instruction does.
const TIMED: u64 = 128;

/// Reused from one translation to the next.
pub(super) struct Translator {
    block: Block,
    compiled: Compiled,
    /// Side tables of what was compiled.
    tables: Vec<u8>,
    templates: Templates,
    /// Exits of a copied block.
    exits: Vec<Exit>,
    optimizer: Option<Optimizer>,
    guest: GuestInfo,
    /// Globals that front ends need not read again.
    plain: GlobalSet,
    pages: [FetchedPage; 2],
    /// What is in the scratch area: its key and guest bytes.
    once: Option<(BlockKey, Vec<u8>)>,
    /// Guest-virtual addresses at which a debugger wants to stop, in ascending order.
    breakpoints: Vec<u64>,
}

/// A block for people: what the translator makes of the code at an address.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Guest-virtual address and mode.
    pub key: BlockKey,
    /// The guest's code.
    pub guest: Vec<u8>,
    /// The IR as the front end made it.
    pub ir: String,
    /// The IR after the optimisation passes.
    pub optimized: String,
    /// The hot part of the host code, and the cold one: the addresses that they were made for, and the bytes.
    pub host: [(u64, Vec<u8>); 2],
}

/// What translation came to.
pub(super) enum Made {
    /// A block in the tables.
    Block(u32),
    /// A block that must run at once, in the scratch area.
    Once,
}

impl Translator {
    /// A translator with these optimisations, and room for so many bytes of templates.
    pub fn new(guest: GuestInfo, opt: OptFlags, templates: usize) -> Translator {
        Translator {
            block: Block::default(),
            compiled: Compiled::default(),
            tables: Vec::new(),
            templates: Templates::new(templates),
            exits: Vec::new(),
            optimizer: opt.intersects(OptFlags::PASSES).then(|| Optimizer::new(opt, guest)),
            guest,
            plain: plain_globals(guest.globals, guest.pc),
            pages: [FetchedPage::new(), FetchedPage::new()],
            once: None,
            breakpoints: Vec::new(),
        }
    }

    /// Replaces the breakpoints: the addresses that are in either the old or the new set, but not in both, whose blocks
    /// must go.
    pub fn set_breakpoints(&mut self, addresses: &[u64]) -> Vec<u64> {
        let mut new = addresses.to_vec();
        new.sort_unstable();
        new.dedup();
        let old = std::mem::replace(&mut self.breakpoints, new);
        let new = &self.breakpoints;
        let gone = old.iter().filter(|address| new.binary_search(address).is_err());
        gone.chain(new.iter().filter(|address| old.binary_search(address).is_err())).copied().collect()
    }

    /// Whether a debugger wants to stop at an address.
    pub fn stops_at(&self, pc: u64) -> bool {
        !self.breakpoints.is_empty() && self.breakpoints.binary_search(&pc).is_ok()
    }

    /// Whether a breakpoint is inside of these bytes, behind their first.
    fn crosses_breakpoint(&self, pc: u64, bytes: u32) -> bool {
        self.breakpoints.iter().any(|address| (1..u64::from(bytes)).contains(&address.wrapping_sub(pc)))
    }

    /// Translates at `key`, which may be of an ungrouped block; if `single`, one instruction to be run once.
    pub fn translate<G: Guest, B: HostBackend>(
        &mut self,
        env: &mut G::Env,
        rt: &mut Runtime,
        backend: &mut B,
        key: BlockKey,
        single: bool,
        (options, stats): (&Options, &mut Stats),
    ) -> Result<Made, Exception> {
        if single && self.holds_once::<G>(env, rt, key) {
            return Ok(Made::Once);
        }
        let log = Log::new(options, key);
        let copies = !single
            && !log.wanted
            && !key.ungrouped
            && self.breakpoints.is_empty()
            && options.opt.contains(OptFlags::TEMPLATES)
            && templates::is_far(key.pc);
        let mut physical = None;
        if copies {
            let known = (fetch_page::<G>(env, rt, key.pc)?.phys, key.mode);
            if let Some(id) = self.copy::<G, B>(env, rt, backend, key, known, (options, stats)) {
                return Ok(Made::Block(id));
            }
            physical = Some(known);
        }
        let every = if options.count { 1 } else { TIMED };
        // Not the first one, which has tables made.
        let start = (stats.translated + 1).is_multiple_of(every).then(processor_time);
        let mut limits = limits(options, single);
        let mut front = self.front_end::<G>(env, rt, key, limits)?;
        while !single && front.translated.insns > 1 && self.crosses_breakpoint(key.pc, front.translated.bytes)
        {
            // Where instructions begin, only the front end knows.
            limits.max_insns = front.translated.insns - 1;
            front = self.front_end::<G>(env, rt, key, limits)?;
        }
        if front.volatile && !single {
            // What is not memory may read differently each time, and reading may have effects: one instruction.
            limits = self::limits(options, true);
            if !self.stops_at(key.pc) {
                front = self.front_end::<G>(env, rt, key, limits)?;
            }
        }
        if log.guest_code() {
            log.print_guest_code::<G>(key, &self.guest_bytes(key.pc, front.translated.bytes));
        }
        log.op(&self.block, &self.guest);
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.run(&mut self.block, false);
            log.op_opt(&self.block, &self.guest);
        }
        // What runs once cannot go on elsewhere.
        self.block.ungrouped = key.ungrouped || limits.single_step;
        let made = if limits.single_step {
            let room = rt.blocks.cache.room(rt.blocks.cache.scratch());
            backend.compile(&self.block, room, SCRATCH, &mut self.compiled);
            rt.blocks.insert_scratch(key.pc, &self.block.exits, &self.compiled);
            stats.translated_once += 1;
            self.once = (!front.volatile).then(|| (key, self.guest_bytes(key.pc, front.translated.bytes)));
            log.host_code(room, &self.compiled);
            Made::Once
        } else {
            let room = self.compile_to_cache(rt, backend);
            assert!(!self.compiled.overflow, "a block has room for its values");
            self.encode_tables(key.pc);
            let origin = self.origin(key, front.translated.bytes, front.spans);
            let tables = (self.compiled.points.len(), &self.tables[..]);
            let (id, first_of_page) = rt.blocks.insert(origin, &self.block.exits, &self.compiled, tables);
            protect(rt, id, first_of_page);
            log.host_code(room, &self.compiled);
            Made::Block(id)
        };
        stats.translated += 1;
        stats.guest_bytes += u64::from(front.translated.bytes);
        stats.guest_insns += u64::from(front.translated.insns);
        stats.host_bytes += self.compiled.bytes() as u64;
        stats.host_insns += u64::from(self.compiled.host_insns);
        if let (Some(known), Made::Block(id), false) = (physical, &made, front.volatile || front.spans) {
            let guest = &self.pages[0].get(key.pc)[..front.translated.bytes as usize];
            if self.templates.note(known, key.pc, guest) {
                self.make_template::<G, B>(env, rt, backend, (key, *id, limits), known, &front);
            }
        }
        if let Some(start) = start {
            stats.translation_time += processor_time().saturating_sub(start) * every as u32;
        }
        Ok(made)
    }

    /// Copies the block at `key` from its template, if there is one; its number.
    fn copy<G: Guest, B: HostBackend>(
        &mut self,
        env: &G::Env,
        rt: &mut Runtime,
        #[cfg_attr(not(debug_assertions), allow(unused))] backend: &mut B,
        key: BlockKey,
        known: (u64, u64),
        (options, stats): (&Options, &mut Stats),
    ) -> Option<u32> {
        self.templates.get(known)?;
        // What is no memory any more is not read twice.
        rt.mmu.memory.ram_page(known.0 & !PAGE_MASK)?;
        let every = if options.count { 1 } else { TIMED };
        let start = (stats.copied + 1).is_multiple_of(every).then(processor_time);
        let mut fetcher =
            Fetcher::<G> { env, rt, pages: &mut self.pages, used: 0, whole: false, volatile: false };
        fetcher.fill(key.pc).ok()?;
        let template = self.templates.get(known)?;
        let len = template.guest().len();
        while self.pages[0].len < len.min(self.pages[0].room) {
            let mut fetcher =
                Fetcher::<G> { env, rt, pages: &mut self.pages, used: 1, whole: false, volatile: false };
            fetcher.extend(0);
        }
        if self.pages[0].get(key.pc).get(..len) != Some(template.guest()) {
            self.templates.forget(known);
            return None;
        }
        let translated = template.translated;
        let mut id = None;
        for _ in 0..=rt.blocks.cache.segments() {
            let free = rt.blocks.cache.free();
            let position = Position { pc: key.pc, tb: rt.blocks.next_number() };
            let room = rt.blocks.cache.room(free.clone());
            template.make::<B>(position, room, &mut self.compiled, &mut self.exits)?;
            if self.compiled.fits(free.len()) {
                id = Some(position.tb);
                break;
            }
            rt.blocks.evict(&mut rt.jump_cache);
        }
        id?;
        let tables = template.tables();
        #[cfg(debug_assertions)]
        let tables = (tables.0, &tables.1.to_vec()[..]);
        #[cfg(debug_assertions)]
        self.check_copy::<G, B>(env, rt, backend, key, (options, translated, tables));
        let origin = self.origin(key, translated.bytes, false);
        let (id, first_of_page) = rt.blocks.insert(origin, &self.exits, &self.compiled, tables);
        protect(rt, id, first_of_page);
        stats.copied += 1;
        stats.guest_bytes += u64::from(translated.bytes);
        stats.host_bytes += self.compiled.bytes() as u64;
        if let Some(start) = start {
            stats.translation_time += processor_time().saturating_sub(start) * every as u32;
        }
        Some(id)
    }

    /// Panics if a copied block is not what the compiler makes of its guest code.
    #[cfg(debug_assertions)]
    fn check_copy<G: Guest, B: HostBackend>(
        &mut self,
        env: &G::Env,
        rt: &mut Runtime,
        backend: &mut B,
        key: BlockKey,
        (options, translated, tables): (&Options, Translated, (usize, &[u8])),
    ) {
        let copy = std::mem::take(&mut self.compiled);
        let front = self.front_end_with::<G>(env, rt, key, limits(options, false), 1);
        let front = front.expect("code that is there is translated");
        if front.translated != translated {
            // Behind the block, bytes have changed of an instruction at which it ended: one that went on in the next page.
            self.compiled = copy;
            return;
        }
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.run(&mut self.block, false);
        }
        self.block.ungrouped = false;
        let room = rt.blocks.cache.room(rt.blocks.cache.free());
        backend.compile(&self.block, room, rt.blocks.next_number(), &mut self.compiled);
        let compiled = std::mem::replace(&mut self.compiled, copy);
        let copy = &self.compiled;
        assert!(!front.spans, "{key:x?}");
        assert_eq!(copy.hot, compiled.hot, "{key:x?}");
        assert_eq!(copy.cold, compiled.cold, "{key:x?}");
        assert_eq!(copy.jumps, compiled.jumps, "{key:x?}");
        assert_eq!((copy.body, &copy.ungrouped), (compiled.body, &compiled.ungrouped), "{key:x?}");
        assert_eq!(self.exits, self.block.exits, "{key:x?}");
        self.tables.clear();
        side_tables::encode(&compiled, key.pc, &mut self.tables);
        // A constant that is near by chance may be written otherwise.
        assert_eq!(tables.0, compiled.points.len(), "{key:x?}");
        let read = |bytes: &[u8]| side_tables::contents(bytes, key.pc, (tables.0, compiled.recipes.len()));
        assert_eq!(read(tables.1), read(&self.tables), "{key:x?}");
    }

    /// Makes a template of the block that was just compiled and placed, or notes that it cannot be one.
    fn make_template<G: Guest, B: HostBackend>(
        &mut self,
        env: &mut G::Env,
        rt: &mut Runtime,
        backend: &mut B,
        (key, id, limits): (BlockKey, u32, TranslateLimits<'_>),
        known: (u64, u64),
        front: &Front,
    ) {
        let (translated, fetched) = (front.translated, front.fetched);
        let first = Position { pc: key.pc, tb: id };
        let guest = self.guest_bytes(key.pc, translated.bytes);
        let mut sample = |t: &mut Translator, position: Position| -> Option<Sample> {
            if position != first {
                let pages = [t.pages[0].from, t.pages[1].from];
                for page in &mut t.pages {
                    page.from = page.from.wrapping_add(position.pc.wrapping_sub(first.pc));
                }
                let key = BlockKey { pc: position.pc, ..key };
                let front = t.front_end_with::<G>(env, rt, key, limits, fetched);
                for (page, from) in t.pages.iter_mut().zip(pages) {
                    page.from = from;
                }
                if front.ok()?.translated != translated
                    || !moving::is_indifferent(&t.block, &t.guest, position.pc)
                {
                    return None;
                }
                if let Some(optimizer) = &mut t.optimizer {
                    optimizer.run(&mut t.block, false);
                }
                t.block.ungrouped = false;
                let room = rt.blocks.cache.room(rt.blocks.cache.free());
                backend.compile(&t.block, room, position.tb, &mut t.compiled);
            }
            t.encode_tables(position.pc);
            Some(Sample::new(position, &t.compiled, &t.block.exits, &t.tables))
        };
        let [second, third] = templates::others(first);
        let samples = [first, second, third].map(|position| sample(self, position));
        let template = match samples {
            [Some(first), Some(second), Some(third)] => {
                Template::new::<B>([first, second, third], &guest, translated)
            }
            _ => None,
        };
        self.templates.insert(known, template);
    }

    /// Translates a trace from `head` along `path`, and puts it in the place of the block there; `None` if it would be no
    /// better, or is there already.
    pub fn trace<G: Guest, B: HostBackend>(
        &mut self,
        env: &mut G::Env,
        rt: &mut Runtime,
        backend: &mut B,
        head: BlockKey,
        path: &[u64],
        (options, stats): (&Options, &mut Stats),
    ) -> Option<()> {
        if path.iter().any(|pc| self.stops_at(*pc)) {
            return None;
        }
        let (route, loops) = (traces::route(path), path.last() == Some(&head.pc));
        let rounds = if options.opt.contains(OptFlags::UNROLL) { traces::rounds(path) } else { 1 };
        let path = &traces::repeated(path, rounds)[..];
        let limits = TranslateLimits { path, ..limits(options, false) };
        let front = self.front_end::<G>(env, rt, head, limits).ok()?;
        let insns = front.translated.insns as usize;
        // If something has ended it early, the block that is there may be longer.
        if front.volatile || insns < 2 || 2 * insns < path.len() {
            return None;
        }
        let second = front.spans.then_some(self.pages[1].from);
        let spans = traces::spans(&path[..insns], second);
        if front.spans && spans[1].0 >= spans[1].1 {
            // A second page was fetched in vain, or for an instruction that goes on at address 0.
            return None;
        }
        let phys = self.pages[0].phys | head.pc & PAGE_MASK;
        let (page2, page2_pc) = match second {
            Some(pc) => (self.pages[1].phys, pc),
            None => (NO_PAGE, 0),
        };
        // None is given up for one that does not lead back to its start.
        let better = |t: &Tb| match t.trace {
            Some(other) => other == route && (t.page2, t.page2_pc) == (page2, page2_pc) || !loops,
            None => false,
        };
        if rt.blocks.live_of(phys, head).any(|(_, t)| better(t)) {
            return None;
        }
        let log = Log::new(options, head);
        log.path::<G>(head, &path[..insns], &self.pages);
        log.op(&self.block, &self.guest);
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.run(&mut self.block, true);
            log.op_opt(&self.block, &self.guest);
        }
        let guesses = rt.blocks.guesses(phys, head, route);
        let old: Vec<u32> = rt.blocks.live_of(phys, head).map(|(id, _)| id).collect();
        let room = self.compile_trace(rt, backend, guesses, &old)?;
        let origin = Origin { trace: Some(route), key: head, phys, page2, page2_pc, spans, code: [&[], &[]] };
        // Making room may have dropped some of those that it takes the place of.
        for id in old {
            if rt.blocks.is_live(id) {
                rt.blocks.kill(id, &mut rt.jump_cache);
            }
        }
        self.encode_tables(head.pc);
        let tables = (self.compiled.points.len(), &self.tables[..]);
        let (id, first_of_page) = rt.blocks.insert(origin, &self.block.exits, &self.compiled, tables);
        let place = &mut rt.guesses[id as usize % GUESSING];
        if self.compiled.guesses {
            *place = Guesses { owner: id, unrolled: rounds as u32, ..Guesses::default() };
            rt.memos.forget();
        } else if place.owner == id {
            place.owner = 0;
        }
        protect(rt, id, first_of_page);
        log.host_code(room, &self.compiled);
        stats.traces += 1;
        stats.trace_insns += u64::from(front.translated.insns);
        Some(())
    }

    /// Whether the scratch area holds the block at `key` already: the same instruction that is run alone is often run alone
    /// again (a copy loop that overwrites code).
    fn holds_once<G: Guest>(&mut self, env: &G::Env, rt: &mut Runtime, key: BlockKey) -> bool {
        let Some((held, bytes)) = &self.once else { return false };
        if *held != key {
            return false;
        }
        let mut fetcher =
            Fetcher::<G> { env, rt, pages: &mut self.pages, used: 0, whole: false, volatile: false };
        let mut at = 0;
        while at < bytes.len() {
            let Ok(code) = fetcher.fetch(key.pc.wrapping_add(at as u64)) else { return false };
            let n = code.len().min(bytes.len() - at);
            if code[..n] != bytes[at..at + n] {
                return false;
            }
            at += n;
        }
        !fetcher.volatile
    }

    /// Makes the side tables of what was compiled, for a block at `pc`.
    fn encode_tables(&mut self, pc: u64) {
        self.tables.clear();
        side_tables::encode(&self.compiled, pc, &mut self.tables);
    }

    /// What the block at `key` of so many bytes, whose pages were fetched, is made from.
    fn origin(&self, key: BlockKey, bytes: u32, spans: bool) -> Origin<'_> {
        let offset = key.pc & PAGE_MASK;
        let end = offset + u64::from(bytes);
        Origin {
            trace: None,
            key,
            phys: self.pages[0].phys | offset,
            page2: if spans { self.pages[1].phys } else { NO_PAGE },
            page2_pc: (key.pc & !PAGE_MASK).wrapping_add(PAGE_SIZE),
            spans: [(offset as u16, end.min(PAGE_SIZE) as u16), (0, end.saturating_sub(PAGE_SIZE) as u16)],
            code: self.guest_code(key.pc, bytes),
        }
    }

    /// Bytes of the block that was just translated, in both pages.
    fn guest_code(&self, pc: u64, len: u32) -> [&[u8]; 2] {
        let first = self.pages[0].get(pc);
        let in_first = first.len().min(len as usize);
        let in_second = (len as usize - in_first).min(self.pages[1].len);
        [&first[..in_first], &self.pages[1].bytes[..in_second]]
    }

    /// The same in one piece.
    fn guest_bytes(&self, pc: u64, len: u32) -> Vec<u8> {
        self.guest_code(pc, len).concat()
    }

    /// What a translation at `key` would be, breakpoints apart; nothing is placed anywhere.
    pub fn list<G: Guest, B: HostBackend>(
        &mut self,
        env: &G::Env,
        rt: &mut Runtime,
        backend: &mut B,
        key: BlockKey,
        options: &Options,
    ) -> Result<Listing, Exception> {
        let limits = limits(options, false);
        let breakpoints = std::mem::take(&mut self.breakpoints);
        let front = self.front_end::<G>(env, rt, key, limits);
        self.breakpoints = breakpoints;
        let guest = self.guest_bytes(key.pc, front?.translated.bytes);
        let ir = text::print(&self.block, &self.guest).to_string();
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.run(&mut self.block, false);
        }
        let optimized = text::print(&self.block, &self.guest).to_string();
        let room = rt.blocks.cache.room(rt.blocks.cache.free());
        backend.compile(&self.block, room, rt.blocks.next_number(), &mut self.compiled);
        let cold_address = room.start + u64::from(self.compiled.cold_at);
        let host = [(room.start, self.compiled.hot.clone()), (cold_address, self.compiled.cold.clone())];
        Ok(Listing { key, guest, ir, optimized, host })
    }

    /// Makes code that goes on at `pc` by way of the jump cache; `None` if the segment is full.
    pub fn bridge<B: HostBackend>(&mut self, rt: &mut Runtime, backend: &mut B, pc: u64) -> Option<u32> {
        let exit = Exit { pc, indirect: false, poll: false, chain: false, dead: GlobalSet::NONE };
        let mut ir = Builder::new(std::mem::take(&mut self.block));
        let exit = ir.exit(exit);
        ir.push(Inst::Goto(exit));
        self.block = ir.finish();
        let free = rt.blocks.cache.free();
        let room = rt.blocks.cache.room(free.clone());
        backend.compile(&self.block, room, rt.blocks.next_number(), &mut self.compiled);
        self.compiled.fits(free.len()).then(|| rt.blocks.insert_bridge(pc, &self.compiled))
    }

    fn front_end<G: Guest>(
        &mut self,
        env: &G::Env,
        rt: &mut Runtime,
        key: BlockKey,
        limits: TranslateLimits<'_>,
    ) -> Result<Front, Exception> {
        self.front_end_with::<G>(env, rt, key, limits, 0)
    }

    /// The same, with so many pages of code fetched already.
    fn front_end_with<G: Guest>(
        &mut self,
        env: &G::Env,
        rt: &mut Runtime,
        key: BlockKey,
        limits: TranslateLimits<'_>,
        fetched: usize,
    ) -> Result<Front, Exception> {
        let stops = !limits.single_step && self.stops_at(key.pc);
        let mut ir = Builder::new(std::mem::take(&mut self.block)).remembering(self.plain);
        let whole = !limits.path.is_empty();
        let mut fetcher =
            Fetcher::<G> { env, rt, pages: &mut self.pages, used: fetched, whole, volatile: false };
        let translated = if stops {
            fetcher.fetch(key.pc).map(|_| {
                ir.push(Inst::InsnStart { pc: key.pc });
                let pc = ir.iconst(key.pc);
                ir.set(G::pc_global(), pc);
                ir.push(Inst::Leave { code: BREAKPOINT });
                Translated { bytes: 1, insns: 1 }
            })
        } else {
            G::translate(env, key, limits, &mut fetcher, &mut ir)
        };
        let (volatile, used) = (fetcher.volatile, fetcher.used);
        let translated = translated?;
        self.block = ir.finish();
        self.block.main_mmu = G::main_mmu(key.mode);
        #[cfg(debug_assertions)]
        if let Err(e) = verify::verify(&self.block, &self.guest) {
            panic!("the front end made a wrong block: {e}\n{}", text::print(&self.block, &self.guest));
        }
        // A second page may have been fetched for an instruction that was then left out.
        let first = PAGE_SIZE - (key.pc & PAGE_MASK);
        let spans = if whole { used > 1 } else { u64::from(translated.bytes) > first };
        Ok(Front { translated, volatile, spans, fetched: used })
    }

    /// Compiles a trace for the cache's free part, or the next one; where. `None` if it is too large, or has too many values.
    /// `guesses` are those that it may make, if it gets a place for them: if the one that its number has is no other trace's, or
    /// one's of `old`, which it is to replace.
    fn compile_trace<B: HostBackend>(
        &mut self,
        rt: &mut Runtime,
        backend: &mut B,
        guesses: u32,
        old: &[u32],
    ) -> Option<Room> {
        for _ in 0..2 {
            let free = rt.blocks.cache.free();
            let room = rt.blocks.cache.room(free.clone());
            let number = rt.blocks.next_number();
            let place = number as usize % GUESSING;
            let owner = rt.guesses[place].owner;
            let taken =
                owner as usize % GUESSING == place && rt.blocks.is_live_trace(owner) && !old.contains(&owner);
            self.block.guesses = if taken { 0 } else { guesses };
            backend.compile(&self.block, room, number, &mut self.compiled);
            if self.compiled.overflow || !self.compiled.fits(rt.blocks.cache.segment_len()) {
                return None;
            }
            if self.compiled.fits(free.len()) {
                return Some(room);
            }
            rt.blocks.evict(&mut rt.jump_cache);
        }
        None
    }

    /// Compiles for the cache's free part, making room as needed; where.
    fn compile_to_cache<B: HostBackend>(&mut self, rt: &mut Runtime, backend: &mut B) -> Room {
        for _ in 0..=rt.blocks.cache.segments() {
            let free = rt.blocks.cache.free();
            let room = rt.blocks.cache.room(free.clone());
            let number = rt.blocks.next_number();
            backend.compile(&self.block, room, number, &mut self.compiled);
            if self.compiled.fits(free.len()) {
                return room;
            }
            rt.blocks.evict(&mut rt.jump_cache);
        }
        panic!("a block of {} bytes of host code does not fit the code cache", self.compiled.bytes());
    }
}

/// Makes stores to the lines of a new block leave generated code: its pages may have had no other block.
pub(super) fn protect(rt: &mut Runtime, tb: u32, first_of_page: [bool; 2]) {
    let t = rt.blocks.get(tb);
    for (page, first) in [t.phys & !PAGE_MASK, t.page2].into_iter().zip(first_of_page) {
        rt.windows.close_page(page);
        if first {
            rt.memos.forget();
            if let Some(lines) = rt.blocks.code_lines(page) {
                rt.mmu.spaces.protect(page, lines);
            }
        }
    }
}

/// The limits of a translation; `single` for one instruction that is run once.
fn limits(options: &Options, single: bool) -> TranslateLimits<'static> {
    TranslateLimits {
        max_insns: if single { 1 } else { options.max_insns },
        single_step: single,
        side_exits: options.opt.contains(OptFlags::SIDE_EXITS),
        unroll: options.opt.contains(OptFlags::UNROLL),
        path: &[],
    }
}

struct Front {
    translated: Translated,
    volatile: bool,
    spans: bool,
    /// Pages of code.
    fetched: usize,
}

/// What this thread has computed so far: unlike the time of day, it stands still while others have the processor.
fn processor_time() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// What backends are told of a guest.
pub(super) fn guest_info<G: Guest>() -> GuestInfo {
    GuestInfo {
        globals: G::globals(),
        pc: G::pc_global(),
        helpers: G::helpers(),
        fp_control: G::fp_control(),
    }
}
