//! The execution loop.

use std::ptr::NonNull;
use std::sync::Arc;

use super::blocks::SCRATCH;
use super::traces::{Progress, Recorder};
use super::translate::{Made, Translator, guest_info};
use super::translation_log::logged;
use super::{BREAKPOINT, Context, Error, Listing, Options, Remote, Stats, lookup, slow};
use crate::backend::{HostBackend, Outcome};
use crate::code_cache::CodeCache;
use crate::env::{GUESSING, Header, JUMP_TAG_NONE, Runtime};
use crate::guest::{BlockKey, Exception, Guest, Next};
use crate::memory::{PAGE_MASK, PhysMemory};
use crate::opt::OptFlags;
use crate::softmmu::{self, RETRY_VECTOR, Running, fetch_page, runtime};

/// Templates take as much as this part of the code cache, at most.
const TEMPLATE_SHARE: usize = 8;

type Enter = unsafe extern "C" fn(*mut Header, u64) -> u64;

/// A guest CPU that runs by translation.
pub struct Vcpu<G: Guest, B: HostBackend> {
    context: Context<G>,
    backend: B,
    translator: Translator,
    recorder: Recorder,
    options: Options,
    stats: Stats,
    enter: Enter,
}

/// Why the inner loop stopped.
enum Stop {
    /// Events may be pending.
    Poll,
    /// An instruction raised an exception; the state is that before it.
    Exception(Exception),
    /// A block was left with this code for the guest.
    Leave(u32),
    /// The program counter is at a breakpoint, whose instruction was not executed.
    Breakpoint,
}

impl<G: Guest, B: HostBackend> Vcpu<G, B> {
    /// A vCPU in the state that `env` describes.
    pub fn new(env: Box<G::Env>, memory: Arc<dyn PhysMemory>, options: Options) -> Result<Vcpu<G, B>, Error> {
        let cache = CodeCache::new(options.cache_mib)?;
        Self::with_cache(env, memory, options, cache)
    }

    pub(super) fn with_cache(
        env: Box<G::Env>,
        memory: Arc<dyn PhysMemory>,
        mut options: Options,
        cache: CodeCache,
    ) -> Result<Vcpu<G, B>, Error> {
        options.max_insns = options.max_insns.clamp(1, super::MAX_INSNS);
        if !options.chain {
            options.opt -= OptFlags::LINK | OptFlags::JUMP_CACHE | OptFlags::LOOPS | OptFlags::TRACES;
        }
        if options.max_insns < super::MAX_INSNS {
            // Who wants short blocks wants no long ones.
            options.opt -= OptFlags::TRACES;
        }
        let mut backend = B::new(guest_info::<G>()).map_err(Error::Backend)?;
        backend.tune(options.opt, options.count);
        let area = cache.thunks();
        let thunks = backend.thunks(cache.address(area.start), slow::functions::<G>(options.count));
        assert!(thunks.code.len() <= area.len(), "the backend's thunks fit their area");
        cache.write(area.start, &thunks.code);
        let enter = cache.address(area.start) + u64::from(thunks.enter);
        // SAFETY: the backend says that a function of this type is at this offset of the code that was just placed; the
        // cache lives as long as the context.
        let enter = unsafe { std::mem::transmute::<usize, Enter>(enter as usize) };
        let mut context = Context::with_cache(env, memory, cache);
        context.runtime_mut().pinned = backend.pinned().to_vec();
        context.runtime_mut().finds_blocks = options.opt.contains(OptFlags::JUMP_CACHE);
        let templates = ((options.cache_mib as usize) << 20) / TEMPLATE_SHARE;
        Ok(Vcpu {
            context,
            backend,
            translator: Translator::new(guest_info::<G>(), options.opt, templates),
            recorder: Recorder::new(),
            options,
            stats: Stats::default(),
            enter,
        })
    }

    /// The environment: the architectural state, while the vCPU does not run.
    pub fn env(&self) -> &G::Env {
        self.context.env()
    }

    /// The environment, to be changed while the vCPU does not run. Whoever changes what translations of addresses
    /// depend on calls [`Vcpu::state_changed`] afterwards.
    pub fn env_mut(&mut self) -> &mut G::Env {
        self.context.env_mut()
    }

    /// Whether it makes use of samples: see [`Options::hot`].
    pub fn wants_samples(&self) -> bool {
        self.traces() && self.options.hot > 0
    }

    fn traces(&self) -> bool {
        self.options.opt.contains(OptFlags::TRACES)
    }

    /// Handle for other threads.
    pub fn remote(&self) -> &Arc<Remote> {
        self.context.remote()
    }

    /// To be called after the architectural state was replaced from outside (reset, restored snapshot, debugger): drops
    /// all translations of addresses. Blocks stay; they are looked up by physical address.
    pub fn state_changed(&mut self) {
        softmmu::flush_all::<G>(self.context.env_mut());
        softmmu::switch_space::<G>(self.context.env_mut());
    }

    /// Drops all translated code.
    pub fn clear_code(&mut self) {
        let rt = self.context.runtime_mut();
        rt.blocks.clear(&mut rt.jump_cache);
    }

    /// How many accesses of traces remember a page: see [`PageMemos`](crate::softmmu::PageMemos).
    pub fn memos(&self) -> usize {
        self.context.runtime().memos.known()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let rt = self.context.runtime();
        Stats {
            slow_accesses: rt.slow_accesses,
            slow_time: rt.slow_time,
            executed: rt.executed,
            lookups: rt.lookups,
            live_blocks: rt.blocks.live() as u64,
            blocks: rt.blocks.stats,
            mmu: rt.mmu.stats,
            ..self.stats
        }
    }

    /// Replaces the guest-virtual addresses at which [`Vcpu::run`] stops before it executes the instruction there,
    /// returning [`BREAKPOINT`]. Costs next to nothing if they are the same as before.
    pub fn set_breakpoints(&mut self, addresses: &[u64]) {
        let changed = self.translator.set_breakpoints(addresses);
        if !changed.is_empty() {
            let rt = self.context.runtime_mut();
            rt.blocks.invalidate_virtual(&changed, &mut rt.jump_cache);
        }
    }

    /// What the translator makes of the code at `pc` in the current mode, for people. The page is fetched as the guest
    /// would fetch it; the exception that this raises is not delivered.
    pub fn list(&mut self, pc: u64) -> Result<Listing, Exception> {
        let mut env = self.context.env_ptr();
        // SAFETY: owned by the context, and no other reference to it is in use; likewise the runtime.
        let (env, rt) = unsafe { (env.as_mut(), runtime::<G>(env.as_mut())) };
        let key = BlockKey { pc, ..G::block_key(env) };
        self.translator.list::<G, B>(env, rt, &mut self.backend, key, &self.options)
    }

    /// The name of what is at a host address that a [`Listing`]'s code jumps to or calls, unless that is a helper.
    pub fn host_name(&self, address: u64) -> Option<String> {
        self.backend.name_of(address)
    }

    /// Does what other threads have asked for, and lets the guest look at its events once, as before a block. The code
    /// of [`Next::Exit`], if it came to that.
    pub fn look_at_events(&mut self) -> Option<u32> {
        match self.poll() {
            Next::Exit(code) => Some(code),
            Next::Continue | Next::ContinueOne => None,
        }
    }

    /// Runs until the guest's event or leave handler returns [`Next::Exit`], and returns its code, or [`BREAKPOINT`].
    pub fn run(&mut self) -> u32 {
        let mut next = self.poll();
        loop {
            let (stop, once) = match next {
                Next::Exit(code) => return code,
                Next::Continue if self.recorder.head().is_some() => {
                    next = self.record();
                    continue;
                }
                Next::Continue => (self.resume(), false),
                Next::ContinueOne => (self.step(), true),
            };
            let stop = match stop {
                // The store that could not be done in its block is done alone.
                Stop::Exception(e) if e.vector == RETRY_VECTOR => self.step(),
                stop => stop,
            };
            // All but exceptions look at events already.
            let look = matches!(stop, Stop::Exception(_)) && (once || self.exit_requested());
            next = self.handle(stop);
            if next == Next::Continue && look {
                next = self.poll();
            }
        }
    }

    /// Runs one instruction, or one round of a repeated one, and delivers what it raises; the guest does not look at its
    /// events before or after. The code of [`Next::Exit`], if it came to that.
    pub fn run_one(&mut self) -> Option<u32> {
        self.take_requests();
        let stop = match self.step() {
            Stop::Exception(e) if e.vector == RETRY_VECTOR => self.step(),
            stop => stop,
        };
        let env = self.context.env_mut();
        let next = match stop {
            Stop::Poll => Next::Continue,
            Stop::Exception(e) => G::deliver_exception(env, e),
            Stop::Leave(code) => G::handle_leave(env, code),
            Stop::Breakpoint => Next::Exit(BREAKPOINT),
        };
        match next {
            Next::Exit(code) => Some(code),
            Next::Continue | Next::ContinueOne => None,
        }
    }

    fn handle(&mut self, stop: Stop) -> Next {
        match stop {
            Stop::Poll => self.poll(),
            Stop::Exception(e) => {
                self.stats.exceptions += 1;
                G::deliver_exception(self.context.env_mut(), e)
            }
            Stop::Leave(code) => match G::handle_leave(self.context.env_mut(), code) {
                Next::Continue => self.poll(),
                next => next,
            },
            Stop::Breakpoint => Next::Exit(BREAKPOINT),
        }
    }

    fn exit_requested(&mut self) -> bool {
        G::header(self.context.env_mut()).exit_request.is_set()
    }

    /// Does what other threads have asked for, and lets the guest look at its events.
    fn poll(&mut self) -> Next {
        self.take_requests();
        G::poll_events(self.context.env_mut())
    }

    /// Does what other threads have asked for. The guest has still to look at its events.
    fn take_requests(&mut self) {
        // The request is taken before what it announces is looked at, so that one that comes meanwhile is not lost.
        G::header(self.context.env_mut()).exit_request.take();
        if let Some(queue) = self.context.remote().take() {
            let rt = self.context.runtime_mut();
            if queue.all_code {
                rt.blocks.clear(&mut rt.jump_cache);
            }
            for (phys, len) in queue.written {
                rt.blocks.invalidate_range(phys, len, &mut rt.jump_cache);
            }
            if queue.flush {
                softmmu::flush_all::<G>(self.context.env_mut());
            }
        }
    }

    /// Runs blocks until something else is to be done.
    fn resume(&mut self) -> Stop {
        let env = self.context.env_ptr();
        let mut from = None;
        loop {
            if self.options.hot == 0 && self.sample_here() {
                return Stop::Poll;
            }
            let code = match self.next_block(from.take()) {
                Ok(Some(code)) => code,
                Ok(None) => return self.run_scratch(),
                Err(exception) => return Stop::Exception(exception),
            };
            let outcome = self.enter(env, code, Running::Block);
            match outcome {
                Outcome::Exit { tb, exit } => from = Some((tb, exit)),
                Outcome::Lookup if self.exit_requested() => {
                    self.sample_here();
                    return Stop::Poll;
                }
                Outcome::Lookup => {}
                Outcome::Poll { tb } => {
                    self.sample(tb);
                    return Stop::Poll;
                }
                Outcome::Exception | Outcome::Leave(_) => return self.stopped(outcome),
            }
            // Where a group's look has failed, the instruction has still to be done: whoever looks at requests first would begin
            // with the group again, without end if there is always one.
            if self.exit_requested() {
                let blocks = &self.context.runtime().blocks;
                if !from.is_some_and(|(tb, exit)| blocks.exit_is_ungrouped(tb, exit)) {
                    return Stop::Poll;
                }
            }
        }
    }

    /// The guest was found at the start of a block: a trace may begin there.
    fn sample(&mut self, tb: u32) {
        if !self.traces() {
            return;
        }
        self.judge(tb);
        if !self.recorder.sampled() {
            return;
        }
        if self.context.runtime_mut().blocks.heat(tb, self.options.hot) {
            let env = self.context.env();
            self.recorder.start(G::block_key(env), G::address_space(env));
        }
    }

    /// Gives up a trace whose guesses are wrong too often; the next one does without them.
    fn judge(&mut self, tb: u32) {
        let rt = self.context.runtime_mut();
        let guesses = &mut rt.guesses[tb as usize % GUESSING];
        if guesses.owner == tb && rt.blocks.is_live_trace(tb) {
            let unsteady = guesses.unsteady();
            if unsteady != 0 {
                rt.blocks.note_unsteady(tb, unsteady);
                rt.blocks.kill(tb, &mut rt.jump_cache);
            }
        }
    }

    /// Takes a sample at the block that is about to run, if there is one; whether there is something to record.
    fn sample_here(&mut self) -> bool {
        if !self.traces() {
            return false;
        }
        let mut env = self.context.env_ptr();
        // SAFETY: owned by the context, and no other reference to it is in use; likewise the runtime.
        let (env, rt) = unsafe { (env.as_mut(), runtime::<G>(env.as_mut())) };
        let key = G::block_key(env);
        let block =
            fetch_page::<G>(env, rt, key.pc).ok().and_then(|page| lookup::find::<G>(env, rt, key, page.phys));
        if let Some(tb) = block {
            self.sample(tb);
        }
        self.recorder.head().is_some()
    }

    /// Runs one instruction after the other, and notes where they go; at the end makes a trace of that.
    fn record(&mut self) -> Next {
        let next = loop {
            let key = G::block_key(self.context.env());
            if self.translator.stops_at(key.pc) || self.recorder.step(key) == Progress::Done {
                break Next::Continue;
            }
            self.stats.recorded += 1;
            let next = match self.step() {
                Stop::Exception(e) if e.vector == RETRY_VECTOR => continue,
                Stop::Poll if !self.exit_requested() => continue,
                // Neither is a reason to stop: the request may be for the next sample. If it was an event, the path leads to
                // where the trace cannot follow.
                stop @ (Stop::Poll | Stop::Leave(_)) => self.handle(stop),
                stop => break self.handle(stop),
            };
            if next != Next::Continue {
                break next;
            }
        };
        self.make_trace();
        next
    }

    /// Makes a trace of what was recorded, if the guest is still where it was.
    fn make_trace(&mut self) {
        let mut env = self.context.env_ptr();
        // SAFETY: owned by the context, and no other reference to it is in use; likewise the runtime.
        let (env, rt) = unsafe { (env.as_mut(), runtime::<G>(env.as_mut())) };
        let here = self.recorder.head().is_some_and(|(head, space)| {
            head.mode == G::block_key(env).mode && space == G::address_space(env)
        });
        let Some((head, path)) = self.recorder.finish() else { return };
        if here {
            let with = (&self.options, &mut self.stats);
            self.translator.trace::<G, B>(env, rt, &mut self.backend, head, path, with);
        }
    }

    /// Runs one instruction.
    fn step(&mut self) -> Stop {
        let key = G::block_key(self.context.env());
        tracing::trace!(target: "exec", "{:#x} mode {:#x} alone", key.pc, key.mode);
        self.context.set_main_mmu(G::main_mmu(key.mode));
        match self.translate(key, true) {
            Ok(_) => self.run_scratch(),
            Err(exception) => Stop::Exception(exception),
        }
    }

    /// Runs the block in the scratch area.
    fn run_scratch(&mut self) -> Stop {
        let env = self.context.env_ptr();
        // Without a tag no indirect jump hits: the block is left after its instruction, whatever that is.
        G::header(self.context.env_mut()).jump_tag = JUMP_TAG_NONE;
        let blocks = &self.context.runtime().blocks;
        let code = blocks.body(SCRATCH);
        let outcome = self.enter(env, code, Running::Once);
        match outcome {
            Outcome::Exit { .. } | Outcome::Lookup | Outcome::Poll { .. } => Stop::Poll,
            Outcome::Exception | Outcome::Leave(_) => self.stopped(outcome),
        }
    }

    fn stopped(&mut self, outcome: Outcome) -> Stop {
        match outcome {
            Outcome::Leave(BREAKPOINT) => Stop::Breakpoint,
            Outcome::Leave(code) => Stop::Leave(code),
            _ => {
                let exception = self.context.runtime_mut().exception.take();
                Stop::Exception(exception.expect("who left for an exception has set it"))
            }
        }
    }

    #[inline]
    fn enter(&mut self, mut env: NonNull<G::Env>, code: u64, running: Running) -> Outcome {
        self.stats.entries += 1;
        self.context.runtime_mut().mmu.running = running;
        // SAFETY: the environment is bound, so its pointers are valid, and `code` is the address of a block's entry (or of
        // its body) that is not free, made by the backend that made `enter`. No reference into the environment or
        // the runtime is held across the call.
        let word = unsafe { (self.enter)(G::header(env.as_mut()), code) };
        self.context.runtime_mut().mmu.running = Running::Nothing;
        G::left(self.context.env_mut());
        let outcome = Outcome::decode(word);
        let exits = &mut self.stats.exits;
        *match outcome {
            Outcome::Exit { .. } => &mut exits.unlinked,
            Outcome::Lookup => &mut exits.lookup,
            Outcome::Poll { .. } => &mut exits.poll,
            Outcome::Exception => &mut exits.exception,
            Outcome::Leave(_) => &mut exits.leave,
        } += 1;
        let blocks = &self.context.runtime().blocks;
        let pc = match outcome {
            Outcome::Exit { tb, exit } => Some(blocks.exit_pc(tb, exit)),
            Outcome::Poll { tb } => Some(blocks.get(tb).pc),
            _ => None,
        };
        if let Some(pc) = pc {
            G::set_pc(self.context.env_mut(), pc);
        }
        outcome
    }

    /// Address to go on at: that of a block's code; `None` if the block that follows is in the scratch area. `from` is the
    /// exit that led here, to be linked.
    fn next_block(&mut self, from: Option<(u32, u16)>) -> Result<Option<u64>, Exception> {
        let mut env = self.context.env_ptr();
        // SAFETY: owned by the context, and no other reference to it is in use; likewise the runtime.
        let (env, rt) = unsafe { (env.as_mut(), runtime::<G>(env.as_mut())) };
        let mut key = G::block_key(env);
        rt.mmu.spaces.set_main(G::header(env), G::main_mmu(key.mode));
        let ungrouped = from.is_some_and(|(tb, exit)| rt.blocks.exit_is_ungrouped(tb, exit));
        let jump_cache = self.options.opt.contains(OptFlags::JUMP_CACHE);
        if jump_cache {
            lookup::name::<G>(env, rt, key.mode);
        }
        if lookup::is_logged() && logged(&self.options, key.pc) {
            tracing::trace!(target: "exec", "{:#x} mode {:#x}", key.pc, key.mode);
            tracing::trace!(target: "cpu", "{}", G::dump(env).trim_end());
        }
        let tag = G::header(env).jump_tag;
        if from.is_none()
            && tag != JUMP_TAG_NONE
            && let Some(code) = rt.jump_cache.get(key.pc, tag)
        {
            return Ok(Some(code));
        }
        if ungrouped {
            key.ungrouped = true;
        }
        rt.lookups += 1;
        let page = fetch_page::<G>(env, rt, key.pc)?;
        let segments = rt.blocks.stats.segments;
        let tb = match lookup::find_or_revive::<G>(env, rt, key, page.phys) {
            Some(tb) => tb,
            None => match self.translate(key, false)? {
                Made::Block(tb) => tb,
                Made::Once => return Ok(None),
            },
        };
        // SAFETY: as above; the references from there are not used any more.
        let rt = unsafe { runtime::<G>(self.context.env_mut()) };
        // Nothing else jumps to ungrouped blocks.
        let mut linked = ungrouped;
        if let Some((from, exit)) = from
            && self.options.opt.contains(OptFlags::LINK)
            && rt.blocks.stats.segments == segments
            && is_linkable(rt, from, tb)
            && !(ungrouped && rt.blocks.get(tb).spans())
        {
            let to = if rt.blocks.get(tb).spans() {
                self.translator.bridge(rt, &mut self.backend, key.pc)
            } else {
                linked = true;
                Some(tb)
            };
            if let Some(to) = to {
                link::<B>(rt, from, exit, to);
            }
        }
        let code = rt.blocks.body(tb);
        // Most blocks that an exit is linked to are reached in no other way; the others are entered when they are.
        if jump_cache && !linked {
            lookup::remember::<G>(self.context.env_mut(), rt, key, page, tb)?;
        }
        Ok(Some(code))
    }

    fn translate(&mut self, key: BlockKey, single: bool) -> Result<Made, Exception> {
        let mut env = self.context.env_ptr();
        // SAFETY: owned by the context, and no other reference to it is in use; likewise the runtime.
        let (env, rt) = unsafe { (env.as_mut(), runtime::<G>(env.as_mut())) };
        let with = (&self.options, &mut self.stats);
        self.translator.translate::<G, B>(env, rt, &mut self.backend, key, single, with)
    }
}

/// Whether block `to` is at its address whenever block `from` is at its own, its second page apart: see the module
/// documentation of [`exec`](super).
fn is_linkable(rt: &Runtime, from: u32, to: u32) -> bool {
    let (a, b) = (rt.blocks.get(from), rt.blocks.get(to));
    let page = |address: u64| address & !PAGE_MASK;
    let first = page(a.pc) == page(b.pc) && page(a.phys) == page(b.phys);
    let second = a.page2_pc == page(b.pc) && a.page2 == page(b.phys);
    a.mode == b.mode && (first || second)
}

/// Links the jumps of an exit to a block.
fn link<B: HostBackend>(rt: &mut Runtime, from: u32, exit: u16, to: u32) {
    let (entry, body) = (rt.blocks.entry(to), rt.blocks.body(to));
    while let Some((n, field, poll)) = rt.blocks.unlinked(from, exit) {
        rt.blocks.link(from, n, to, B::link_field(field, if poll { entry } else { body }));
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[path = "vcpu_tests.rs"]
mod tests;
