//! Generated code does what the interpreter does, on random blocks, with and without the TLB's help.

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::X86_64;
use crate::backend::{
    AccessKind, Compiled, DISCARD, HostBackend, Loc, Outcome, REFILL_NONE, Refill, Room, RuntimeFns,
    StatePoint,
};
use crate::env::{Bound, ExitRequest};
use crate::guest::Exception;
use crate::interp::{self, End, Machine};
use crate::ir::vec::selected_lanes;
use crate::ir::{Block, Ext, GlobalId, Inst, Ty, Width};
use crate::softmmu::{Fill, MMU_MODES, TablePtr};
use crate::testing::{GLOBALS, Observed, TestEnv, TestMachine, TestMemory, generate, global, guest};

/// What the runtime functions work on while a block runs.
struct Context {
    compiled: *const Compiled,
    machine: *mut TestMachine,
    pinned: *const [(GlobalId, u8)],
    exception: Option<Exception>,
}

thread_local! {
    static CONTEXT: Cell<*mut Context> = const { Cell::new(ptr::null_mut()) };
}

/// Lines of pages that seem to hold code.
static SOME_LINES: AtomicU64 = AtomicU64::new(0x3333_0f0f_5555_00ff);

/// Everything needed to run blocks: a mapping for code, the backend, a runtime.
struct Harness {
    backend: X86_64,
    code: memmap2::MmapMut,
    enter: u32,
    body: usize,
    /// The runtime, and room for the environment of the machine that runs.
    bound: *mut Bound<TestEnv>,
    tlb: [TablePtr; MMU_MODES],
    /// Blocks run so far.
    runs: u64,
}

impl Harness {
    fn new() -> Harness {
        let mut backend = X86_64::new(guest()).expect("the host runs the backend");
        let mut code = memmap2::MmapMut::map_anon(1 << 20).expect("memory");
        let fns = RuntimeFns {
            slow_access: slow_access as *const () as usize,
            refill: refill as *const () as usize,
            helper_fault: helper_fault as *const () as usize,
            next_block: next_block as *const () as usize,
        };
        let thunks = backend.thunks(code.as_ptr() as u64, fns);
        code[..thunks.code.len()].copy_from_slice(&thunks.code);
        let layout = Layout::new::<Bound<TestEnv>>();
        // SAFETY: the layout is not zero-sized. Only plain fields are used, through the pointer; it is never dropped.
        let bound = unsafe { std::alloc::alloc_zeroed(layout).cast::<Bound<TestEnv>>() };
        let tlb = std::array::from_fn(|_| TablePtr::new());
        Harness {
            backend,
            body: thunks.code.len().next_multiple_of(64),
            enter: thunks.enter,
            code,
            bound,
            tlb,
            runs: 0,
        }
    }

    /// Compiles and runs a block on the machine. If it is left for one without groups, the address to go on at is in the place
    /// of its end.
    fn run(
        mut self,
        block: &Block,
        machine: &mut TestMachine,
        fill_tlb: bool,
    ) -> (Harness, Result<End, u64>, Compiled) {
        let mut compiled = Compiled::default();
        let base = self.code.as_ptr() as u64 + self.body as u64;
        let room = Room { start: base, end: self.code.as_ptr_range().end as u64 };
        self.backend.compile(block, room, 77, &mut compiled);
        assert!(compiled.fits(room.bytes() as usize));
        for (at, part) in [(0, &compiled.hot), (compiled.cold_at as usize, &compiled.cold)] {
            self.code[self.body + at..self.body + at + part.len()].copy_from_slice(part);
        }
        // SAFETY: the runtime was allocated for this harness, and generated code does not run now.
        let rt = unsafe { &mut (*self.bound).runtime };
        rt.forget_pages();
        rt.second_way_left = 1000;
        self.runs += 1;
        for (mmu, table) in self.tlb.iter_mut().enumerate() {
            table.clear_local();
            for page in 0..TestMemory::PAGES {
                let (read, write) = TestMemory::permissions(page, mmu as u8);
                if fill_tlb && read {
                    let host = machine.memory.bytes.as_mut_ptr().wrapping_add(page as usize * 4096);
                    // Some pages seem to hold code, so that only the second way can be hit, and not everywhere.
                    let code = (page % 2 == 1).then_some(&SOME_LINES);
                    let fill = Fill { read, write, host, phys: page * 4096, code };
                    let va = TestMemory::BASE + page * 4096;
                    table.set(va, fill);
                    if let Some(lines) = code
                        && write
                        && self.runs % TestMemory::PAGES == page
                    {
                        let addend = (host as u64).wrapping_sub(va);
                        rt.windows.open(
                            mmu as u8,
                            va | self.runs * 64 % 4096,
                            page * 4096,
                            addend,
                            lines.load(Relaxed),
                        );
                    }
                }
            }
            machine.env.header.tlb[mmu] = table.as_ptr();
        }
        machine.env.header.tlb_main = machine.env.header.tlb[block.main_mmu as usize];
        // SAFETY: both were allocated for this harness, and generated code does not run now. The box in the place of the
        // machine's own is forgotten below, not freed.
        let own = unsafe {
            machine.env.header.runtime = &raw mut (*self.bound).runtime;
            machine.env.header.exit_request = ExitRequest::none();
            (*self.bound).runtime.jump_cache.clear();
            ptr::copy_nonoverlapping(&*machine.env, &raw mut (*self.bound).env, 1);
            std::mem::replace(&mut machine.env, Box::from_raw(&raw mut (*self.bound).env))
        };
        let code = self.code.make_exec().expect("executable memory");
        let mut context =
            Context { compiled: &compiled, machine, pinned: self.backend.pinned(), exception: None };
        CONTEXT.set(&mut context);
        let entry = base + compiled.body as u64;
        // SAFETY: the thunk was made by the backend for this address, and has this signature.
        let outcome = unsafe {
            let enter: extern "C" fn(*mut TestEnv, u64) -> u64 =
                std::mem::transmute(code.as_ptr().add(self.enter as usize));
            enter(&mut *machine.env, entry)
        };
        CONTEXT.set(ptr::null_mut());
        let result = std::mem::replace(&mut machine.env, own);
        machine.env.bytes().copy_from_slice(Box::leak(result).bytes());
        self.code = code.make_mut().expect("writable memory");
        let end = match Outcome::decode(outcome) {
            Outcome::Exit { tb, exit } => {
                assert_eq!(tb, 77);
                // As the execution loop does.
                match block.exits.get(exit as usize) {
                    Some(e) => {
                        machine.env.pc = e.pc;
                        Ok(End::Exit(crate::ir::ExitId(exit)))
                    }
                    None => Err(compiled.ungrouped[exit as usize - block.exits.len()]),
                }
            }
            Outcome::Lookup => Ok(unchained(block, machine.env.pc).unwrap_or(End::Indirect)),
            Outcome::Leave(code) => Ok(End::Leave(code)),
            Outcome::Exception => Ok(End::Fault(context.exception.expect("an exception was raised"))),
            Outcome::Poll { .. } => panic!("nobody asked for a poll"),
        };
        (self, end, compiled)
    }
}

/// An exit without chaining goes through the jump cache and ends in a lookup, as an indirect jump does.
fn unchained(block: &Block, pc: u64) -> Option<End> {
    let exit = block.exits.iter().position(|e| !e.chain && !e.indirect && e.pc == pc)?;
    Some(End::Exit(crate::ir::ExitId(exit as u16)))
}

fn context<'a>() -> &'a mut Context {
    // SAFETY: set by `Harness::run` around the only code that gets here.
    unsafe { &mut *CONTEXT.get() }
}

/// Reads a location as a vector.
fn read(env: &TestEnv, c: &Compiled, loc: Loc) -> [u64; 4] {
    // SAFETY: `Harness::run` has set the runtime.
    let rt = unsafe { &*env.header.runtime };
    match loc {
        Loc::Int(r) => [rt.saved_int[r as usize], 0, 0, 0],
        Loc::Vec(r) => rt.saved_vec[r as usize],
        Loc::Spill(s) => std::array::from_fn(|i| rt.spill.get(s as usize + i).copied().unwrap_or(0)),
        Loc::Const(v) => [v, 0, 0, 0],
        Loc::Env(offset) => {
            let mut bytes = [0; 32];
            let mut copy = env.duplicate();
            let from = &copy.bytes()[offset as usize..];
            let len = from.len().min(32);
            bytes[..len].copy_from_slice(&from[..len]);
            interp::words(bytes)
        }
        Loc::EnvLow(offset) => {
            let v = read(env, c, Loc::Env(offset));
            [v[0], v[1], 0, 0]
        }
        Loc::Flags(i) => {
            let r = c.recipes[i as usize];
            let old = r.old.map_or(0, |o| read(env, c, o)[0] as u32);
            [r.eval(read(env, c, r.a)[0], read(env, c, r.b)[0], old) as u64, 0, 0, 0]
        }
    }
}

fn restore(cx: &mut Context, point: StatePoint) {
    // SAFETY: the pointers were set by `Harness::run`, whose borrows they stand for.
    let (c, m, pinned) = unsafe { (&*cx.compiled, &mut *cx.machine, &*cx.pinned) };
    let moved = &c.moved[point.moved_start as usize..][..point.moved_len as usize];
    let values: Vec<_> = moved.iter().map(|(g, loc)| (*g, read(&m.env, c, *loc))).collect();
    for (g, r) in pinned {
        let v = read(&m.env, c, Loc::Int(*r));
        interp::set_global(m.env.bytes(), &GLOBALS[g.0 as usize], v);
    }
    // 256-bit views first: the 128-bit view is the newer one where both are away.
    for wide in [true, false] {
        for (g, v) in &values {
            let desc = &GLOBALS[g.0 as usize];
            if (desc.ty == Ty::Vec && desc.bytes == 32) == wide {
                let v = if desc.ty == Ty::Flags { [v[0] & 0xffff, 0, 0, 0] } else { *v };
                interp::set_global(m.env.bytes(), desc, v);
            }
        }
    }
    m.env.pc = point.pc;
}

/// Finds pages where this is allowed, and destroys what a function may.
extern "C" fn refill(_: *mut TestEnv, va: u64, how: u32) -> u64 {
    let cx = context();
    // SAFETY: the pointer was set by `Harness::run`, whose borrow it stands for.
    let memory = unsafe { &mut (*cx.machine).memory };
    let Refill { mmu, write, bytes } = Refill::decode(how);
    let (first, last) = ((va.wrapping_sub(TestMemory::BASE)) >> 12, va.wrapping_add(u64::from(bytes) - 1));
    let last = last.wrapping_sub(TestMemory::BASE) >> 12;
    let allowed = first < TestMemory::PAGES && {
        let (read, writable) = TestMemory::permissions(first, mmu);
        read && (!write || writable)
    };
    // SAFETY: registers are clobbered that are declared so.
    unsafe {
        std::arch::asm!(
            "vpcmpeqd ymm0, ymm0, ymm0", "vmovdqa ymm1, ymm0", "vmovdqa ymm2, ymm0", "vmovdqa ymm3, ymm0",
            "vmovdqa ymm4, ymm0", "vmovdqa ymm5, ymm0", "vmovdqa ymm6, ymm0", "vmovdqa ymm7, ymm0",
            "vmovdqa ymm8, ymm0", "vmovdqa ymm9, ymm0", "vmovdqa ymm10, ymm0", "vmovdqa ymm11, ymm0",
            "vmovdqa ymm12, ymm0", "vmovdqa ymm13, ymm0", "vzeroupper",
            "mov rdx, 77", "mov rsi, rdx", "mov rdi, rdx", "mov r8, rdx", "mov r9, rdx", "mov r10, rdx", "mov r11, rdx",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _,
        );
    }
    // Not always, so that slow paths are taken, too.
    if first != last || !allowed || first % 3 == 0 {
        return REFILL_NONE;
    }
    (memory.bytes.as_mut_ptr() as u64).wrapping_sub(TestMemory::BASE)
}

extern "C" fn helper_fault(_: *mut TestEnv, tb: u32, point: u32) {
    assert_eq!(tb, 77);
    let cx = context();
    // SAFETY: as in `restore`.
    let (c, m) = unsafe { (&*cx.compiled, &mut *cx.machine) };
    m.env.header.helper_fault = 0;
    cx.exception = Some(m.env.exception());
    restore(cx, c.points[point as usize]);
}

extern "C" fn next_block(_: *mut TestEnv) -> u64 {
    0
}

extern "C" fn slow_access(_: *mut TestEnv, tb: u32, point: u32) -> u64 {
    assert_eq!(tb, 77);
    let cx = context();
    // SAFETY: as in `restore`.
    let (c, m) = unsafe { (&*cx.compiled, &mut *cx.machine) };
    let point = c.points[point as usize];
    match access(m, c, point) {
        Ok(()) => 0,
        Err(e) => {
            cx.exception = Some(e);
            restore(cx, point);
            1
        }
    }
}

fn access(m: &mut TestMachine, c: &Compiled, point: StatePoint) -> Result<(), Exception> {
    let access = point.access.expect("the point is an access");
    let va = read(&m.env, c, access.addr)[0];
    // SAFETY: `Harness::run` has set the runtime.
    let rt = unsafe { &mut *m.env.header.runtime };
    let mmu = access.mmu;
    if !va.is_multiple_of(access.align.into()) {
        return Err(m.misaligned(va));
    }
    let load = |m: &mut TestMachine, len: usize, for_write: bool| -> Result<[u8; 32], Exception> {
        let mut buf = [0; 32];
        m.load(va, &mut buf[..len], mmu, for_write)?;
        Ok(buf)
    };
    let int = |buf: [u8; 32], w: Width| interp::words(buf)[0] & w.mask();
    match access.kind {
        AccessKind::Load { width, ext, dst, for_write } => {
            let v = int(load(m, width.bytes() as usize, for_write)?, width);
            if dst == DISCARD {
                return Ok(());
            }
            rt.saved_int[dst as usize] = match ext {
                Ext::Zero => v,
                Ext::Sign32 => width.sign_extend(v) & 0xffff_ffff,
                Ext::Sign64 => width.sign_extend(v),
            };
        }
        AccessKind::Store { width, v } => {
            let v = interp::bytes(read(&m.env, c, v));
            m.store(va, &v[..width.bytes() as usize], mmu)?;
        }
        AccessKind::LoadVec { size, dst } => {
            rt.saved_vec[dst as usize] = interp::words(load(m, size.bytes() as usize, false)?);
        }
        AccessKind::StoreVec { size, v } => {
            let v = interp::bytes(read(&m.env, c, v));
            m.store(va, &v[..size.bytes() as usize], mmu)?;
        }
        AccessKind::LoadMasked { width, len, mask, dst } => {
            let mut buf = [0; 32];
            for at in selected_lanes(width, len, read(&m.env, c, mask)) {
                m.load(va.wrapping_add(at as u64), &mut buf[at..at + width.bytes() as usize], mmu, false)?;
            }
            rt.saved_vec[dst as usize] = interp::words(buf);
        }
        AccessKind::StoreMasked { width, len, v, mask } => {
            let (v, mask) = (interp::bytes(read(&m.env, c, v)), read(&m.env, c, mask));
            let size = width.bytes() as usize;
            for at in selected_lanes(width, len, mask) {
                m.load(va.wrapping_add(at as u64), &mut [0; 8][..size], mmu, true)?;
            }
            for at in selected_lanes(width, len, mask) {
                m.store(va.wrapping_add(at as u64), &v[at..at + size], mmu)?;
            }
        }
        AccessKind::AtomicRmw { op, width, v, dst } => {
            let old = int(load(m, width.bytes() as usize, true)?, width);
            let v = read(&m.env, c, v)[0];
            m.store(va, &op.apply(old, v).to_le_bytes()[..width.bytes() as usize], mmu)?;
            rt.saved_int[dst as usize] = old;
        }
        AccessKind::AtomicCas { width, expect, new, dst } => {
            let old = int(load(m, width.bytes() as usize, true)?, width);
            if old == read(&m.env, c, expect)[0] & width.mask() {
                let new = read(&m.env, c, new)[0];
                m.store(va, &new.to_le_bytes()[..width.bytes() as usize], mmu)?;
            }
            rt.saved_int[dst as usize] = old;
        }
    }
    Ok(())
}

/// Rounds of blocks that go to their own start.
const ROUNDS: u64 = 4;

fn machine(seed: u64) -> TestMachine {
    let mut m = TestMachine::new(seed);
    m.env.rounds = ROUNDS;
    m
}

/// Whether the end is an exit to the block's own start.
fn goes_back(block: &Block, end: End) -> bool {
    let End::Exit(exit) = end else { return false };
    let exit = &block.exits[exit.0 as usize];
    block.start() == Some(exit.pc) && exit.poll && exit.chain
}

/// Flags in the control and status word that only software clears.
const FP_STICKY: u32 = 0x3f;

/// What may be seen at the start of the guest instruction at an address, in each of the block's rounds.
fn until(block: &Block, pc: u64, seed: u64) -> Vec<Observed> {
    let starts = |inst: &Inst| matches!(inst, Inst::InsnStart { pc: at } if *at == pc);
    let end = block.insts.iter().position(starts).expect("the block has the instruction");
    assert!(!block.insts[end + 1..].iter().any(starts), "an address tells which instruction it is");
    let mut first = block.clone();
    first.insts.truncate(end);
    first.insts.push(Inst::Leave { code: 0 });
    let mut m = machine(seed);
    let mut seen = Vec::new();
    loop {
        let mut partly = TestMachine { env: m.env.duplicate(), memory: m.memory.clone() };
        let end = interp::run(&first, &guest(), &mut partly);
        seen.push(partly.observe(&first, end));
        if !goes_back(block, interp::run(block, &guest(), &mut m)) {
            return seen;
        }
    }
}

fn by_interpreter(block: &Block, seed: u64) -> Observed {
    let mut m = machine(seed);
    loop {
        let end = interp::run(block, &guest(), &mut m);
        if !goes_back(block, end) {
            return m.observe(block, end);
        }
    }
}

/// Names the block when compiling it panics.
struct Report<'a>(&'a Block, u64);

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}:\n{}", self.1, crate::ir::text::print(self.0, &guest()));
        }
    }
}

/// Runs one block by both; the first difference in words, if any.
fn compare(h: Harness, block: &Block, seed: u64, fill_tlb: bool) -> (Harness, Option<String>) {
    let _guard = Report(block, seed);
    let expected = by_interpreter(block, seed);
    let mut m = machine(seed);
    let (mut h, mut end, mut compiled) = h.run(block, &mut m, fill_tlb);
    // Blocks that have no use for a head leave each time.
    while end.is_ok_and(|end| goes_back(block, end)) {
        (h, end, compiled) = h.run(block, &mut m, fill_tlb);
    }
    let (expected, found, end) = match end {
        Ok(end) => (expected, m.observe(block, end), end),
        Err(pc) => {
            let left = End::Leave(0);
            let mut found = m.observe(block, left);
            let mut seen = until(block, pc, seed);
            // The instruction may have set sticky flags already, which it will set again.
            found.fp_control &= !FP_STICKY;
            seen.iter_mut().for_each(|o| o.fp_control &= !FP_STICKY);
            let same =
                |o: &&Observed| Observed { pc: 0, ..(*o).clone() } == Observed { pc: 0, ..found.clone() };
            let expected = seen.iter().find(same).unwrap_or(&seen[0]).clone();
            (expected, found, left)
        }
    };
    let same = Observed { pc: 0, ..expected.clone() } == Observed { pc: 0, ..found.clone() }
        && (matches!(end, End::Leave(_)) || expected.pc == found.pc);
    let message = (!same).then(|| {
        let code: String =
            compiled.hot.iter().chain(&compiled.cold).map(|b| format!("{b:02x}")).collect();
        format!(
            "seed {seed}, TLB filled: {fill_tlb}\n{}\nexpected {expected:x?}\nfound    {found:x?}\nhost code {code}",
            crate::ir::text::print(block, &guest())
        )
    });
    (h, message)
}

#[test]
fn random_blocks_agree_with_the_interpreter() {
    random_blocks_agree(3_000, generate::block);
}

#[test]
fn random_loops_agree_with_the_interpreter() {
    // Few random words make what is special about loops.
    random_blocks_agree(40_000, generate::looping);
}

fn random_blocks_agree(default: u64, make: impl Fn(&[u64]) -> Block) {
    let mut h = Harness::new();
    let count: u64 = std::env::var("TESSERA_BLOCKS").ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    for seed in 0..count {
        let words = generate::words(seed, 2 + (seed % 60) as usize);
        let mut block = make(&words);
        block.main_mmu = (seed % MMU_MODES as u64) as u8;
        block.guesses = ((seed >> 1) as u32).wrapping_mul(0x9e37_79b9);
        let fill = seed & 1 != 0;
        let (back, difference) = compare(h, &block, seed, fill);
        h = back;
        if difference.is_some() {
            // The shortest block that still differs: leave out words while that lasts.
            let mut words = words;
            let mut i = 0;
            let mut message = difference;
            while i < words.len() {
                let mut fewer = words.clone();
                fewer.remove(i);
                let mut smaller = make(&fewer);
                (smaller.main_mmu, smaller.guesses) = (block.main_mmu, block.guesses);
                let (back, difference) = compare(h, &smaller, seed, fill);
                h = back;
                if difference.is_some() {
                    words = fewer;
                    message = difference;
                } else {
                    i += 1;
                }
            }
            panic!("{}", message.expect("the block differs"));
        }
    }
    assert!(global::PC.0 > 0 && h.body > 0);
}

#[test]
fn a_condition_is_inserted_in_itself() {
    let text =
        "insn 0x1000\nf0 = get flags\nv1 = setcond.p f0\nv2 = insert v1, v1, 0, 8\nset r0, v2\nleave 0\n";
    let block = crate::ir::text::parse(text, &guest()).expect("valid text");
    let mut h = Harness::new();
    for seed in 0..4 {
        let (back, difference) = compare(h, &block, seed, false);
        assert_eq!(difference, None);
        h = back;
    }
}
