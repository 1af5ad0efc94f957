//! What generated code calls: accesses that miss the TLB, and restoring precise state.
//!
//! The functions here run between instructions of a block: registers that hold guest values are in the save area, and the
//! point's side table says which is what. They write results to the save area, from which the registers are reloaded; or
//! they restore the state to the environment, as of the start of the guest instruction, and the block is left.

use std::ptr::NonNull;
use std::time::Instant;

use super::lookup::next_block;
use super::side_tables::Tables;
use crate::backend::{AccessKind, DISCARD, FlagRecipe, Loc, REFILL_NONE, Refill, RuntimeFns, SlowAccess};
use crate::env::{LARGE_HITS, Runtime, SAVED_INT_REGS, SAVED_VEC_REGS, SECOND_WAY_HITS, SPILL_SLOTS};
use crate::guest::{Access, Exception, Guest};
use crate::ir::vec::selected_lanes;
use crate::ir::{Ext, GlobalId, Ty, Width};
use crate::softmmu::{self, Operand, Writer, open_window, runtime};

/// The most globals that a guest has; see [`Guest::globals`].
const GLOBALS: usize = 64;

/// Entry points for the backend; with or without taking the time.
pub(super) fn functions<G: Guest>(timed: bool) -> RuntimeFns {
    RuntimeFns {
        slow_access: if timed { timed_access::<G> as *const () } else { slow_access::<G> as *const () }
            as usize,
        refill: if timed { timed_refill::<G> as *const () } else { refill::<G> as *const () } as usize,
        helper_fault: helper_fault::<G> as *const () as usize,
        next_block: next_block::<G> as *const () as usize,
    }
}

/// Completes the access of a point: 0, or 1 if it raised an exception and the state has been restored.
extern "C" fn slow_access<G: Guest>(env: NonNull<G::Env>, tb: u32, point: u32) -> u64 {
    let mut env = env;
    // SAFETY: generated code passes the bound environment it runs on, and holds no reference into it.
    let env = unsafe { env.as_mut() };
    // SAFETY: the environment is bound; the reference is not used beyond the next access through `env`.
    let rt = unsafe { runtime::<G>(env) };
    rt.slow_accesses += 1;
    let hit = rt.second_way_left.cast_signed() < 0;
    (rt.second_way_left, rt.large_left) = (SECOND_WAY_HITS, LARGE_HITS);
    let access = rt.blocks.tables(tb).access(point as usize).expect("the point is an access");
    if hit {
        // Generated code would have found the page, if not as quickly as it should.
        let va = int::<G>(env, rt, access.addr);
        open_window::<G>(env, va, access.mmu);
    }
    let invalidated = rt.blocks.stats.invalidated;
    match complete::<G>(env, tb, &access) {
        Ok(()) => {
            // SAFETY: as above.
            let rt = unsafe { runtime::<G>(env) };
            if rt.blocks.stats.invalidated != invalidated {
                // Who writes over code goes on with it.
                let va = int::<G>(env, rt, access.addr);
                open_window::<G>(env, va, access.mmu);
            }
            0
        }
        Err(exception) => {
            // SAFETY: as above.
            let rt = unsafe { runtime::<G>(env) };
            rt.exception = Some(exception);
            restore::<G>(env, rt, tb, point);
            1
        }
    }
}

/// [`slow_access`], and the time that it takes.
extern "C" fn timed_access<G: Guest>(env: NonNull<G::Env>, tb: u32, point: u32) -> u64 {
    let start = Instant::now();
    let result = slow_access::<G>(env, tb, point);
    let mut env = env;
    // SAFETY: as in `slow_access`, which has returned; the references are gone when this returns.
    let rt = unsafe { runtime::<G>(env.as_mut()) };
    rt.slow_time += start.elapsed();
    result
}

/// Enters the page of an access in the TLB; see [`RuntimeFns::refill`].
extern "C" fn refill<G: Guest>(env: NonNull<G::Env>, va: u64, how: u32) -> u64 {
    let mut env = env;
    // SAFETY: generated code passes the bound environment it runs on, and holds no reference into it.
    let env = unsafe { env.as_mut() };
    let Refill { mmu, write, bytes } = Refill::decode(how);
    let addend = softmmu::refill::<G>(env, va, bytes, write, mmu);
    // SAFETY: the environment is bound, and no other reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    rt.large_left = LARGE_HITS;
    match addend {
        Some(addend) => {
            rt.slow_accesses += 1;
            addend
        }
        // It is counted when its slow path is taken.
        None => REFILL_NONE,
    }
}

/// [`refill`], and the time that it takes.
extern "C" fn timed_refill<G: Guest>(env: NonNull<G::Env>, va: u64, how: u32) -> u64 {
    let start = Instant::now();
    let result = refill::<G>(env, va, how);
    let mut env = env;
    // SAFETY: as in `refill`, which has returned; the references are gone when this returns.
    let rt = unsafe { runtime::<G>(env.as_mut()) };
    rt.slow_time += start.elapsed();
    result
}

/// Restores the state at a point whose helper has raised an exception.
extern "C" fn helper_fault<G: Guest>(env: NonNull<G::Env>, tb: u32, point: u32) {
    let mut env = env;
    // SAFETY: generated code passes the bound environment it runs on, and holds no reference into it.
    let env = unsafe { env.as_mut() };
    // SAFETY: the environment is bound, and no other reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    G::header(env).helper_fault = 0;
    restore::<G>(env, rt, tb, point);
}

fn complete<G: Guest>(env: &mut G::Env, tb: u32, access: &SlowAccess) -> Result<(), Exception> {
    let writer = Writer::Block(tb);
    let mmu = access.mmu;
    let read = |env: &mut G::Env, loc: Loc| {
        // SAFETY: the environment is bound, and the reference is gone when the closure returns.
        let rt = unsafe { runtime::<G>(env) };
        int::<G>(env, rt, loc)
    };
    let va = read(env, access.addr);
    if !va.is_multiple_of(access.align.into()) {
        return Err(G::misaligned(va));
    }
    match access.kind {
        AccessKind::Load { width, ext, dst, for_write } => {
            if for_write {
                softmmu::probe::<G>(env, va, u64::from(width.bytes()), Access::Write, mmu)?;
                softmmu::retry_if_watched::<G>(env, va, u64::from(width.bytes()), true)?;
                softmmu::retry_if_running::<G>(env, va, u64::from(width.bytes()), mmu, writer)?;
            }
            if dst == DISCARD {
                return Ok(());
            }
            let v = softmmu::load::<G>(env, va, width.bytes(), mmu)?;
            set_int::<G>(env, dst, extend(width, ext, v));
        }
        AccessKind::Store { width, v } => {
            let v = read(env, v).to_le_bytes();
            softmmu::store_as::<G>(env, va, &v[..width.bytes() as usize], mmu, writer)?;
        }
        AccessKind::LoadVec { size, dst } => {
            let mut bytes = [0; 32];
            softmmu::load_bytes::<G>(env, va, &mut bytes[..size.bytes() as usize], mmu)?;
            // SAFETY: the environment is bound, and no other reference to its runtime is in use.
            let rt = unsafe { runtime::<G>(env) };
            rt.saved_vec[dst as usize % SAVED_VEC_REGS] =
                std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j])));
        }
        AccessKind::StoreVec { size, v } => {
            // SAFETY: the environment is bound, and the reference is not used beyond the next statement.
            let rt = unsafe { runtime::<G>(env) };
            let words = vector::<G>(env, rt, v);
            let mut bytes = [0; 32];
            for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            softmmu::store_as::<G>(env, va, &bytes[..size.bytes() as usize], mmu, writer)?;
        }
        AccessKind::LoadMasked { width, len, mask, dst } => {
            // SAFETY: the environment is bound, and the reference is not used beyond the next statement.
            let rt = unsafe { runtime::<G>(env) };
            let mask = vector::<G>(env, rt, mask);
            let mut bytes = [0; 32];
            for at in selected_lanes(width, len, mask) {
                let lane = &mut bytes[at..at + width.bytes() as usize];
                softmmu::load_bytes::<G>(env, va.wrapping_add(at as u64), lane, mmu)?;
            }
            // SAFETY: the environment is bound, and no other reference to its runtime is in use.
            let rt = unsafe { runtime::<G>(env) };
            rt.saved_vec[dst as usize % SAVED_VEC_REGS] =
                std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j])));
        }
        AccessKind::StoreMasked { width, len, v, mask } => {
            // SAFETY: the environment is bound, and the reference is not used beyond the next statement.
            let rt = unsafe { runtime::<G>(env) };
            let (words, mask) = (vector::<G>(env, rt, v), vector::<G>(env, rt, mask));
            let mut bytes = [0; 32];
            for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            let size = width.bytes() as usize;
            // All lanes must be writable, and none must need another try, before the first is written.
            for at in selected_lanes(width, len, mask) {
                let lane = va.wrapping_add(at as u64);
                softmmu::probe::<G>(env, lane, size as u64, Access::Write, mmu)?;
                softmmu::retry_if_watched::<G>(env, lane, size as u64, true)?;
                softmmu::retry_if_running::<G>(env, lane, size as u64, mmu, writer)?;
            }
            for at in selected_lanes(width, len, mask) {
                softmmu::store_as::<G>(env, va.wrapping_add(at as u64), &bytes[at..at + size], mmu, writer)?;
            }
        }
        AccessKind::AtomicRmw { op, width, v, dst } => {
            let v = read(env, v);
            let old = softmmu::atomic_rmw::<G>(env, va, width, op, v, mmu, writer)?;
            set_int::<G>(env, dst, old);
        }
        AccessKind::AtomicCas { width, expect, new, dst } => {
            let operand = Operand { v: u128::from(read(env, new)), expect: u128::from(read(env, expect)) };
            let old = softmmu::compare_exchange_as::<G>(env, va, width.bytes(), operand, mmu, writer)?;
            set_int::<G>(env, dst, old as u64);
        }
    }
    Ok(())
}

fn set_int<G: Guest>(env: &mut G::Env, reg: u8, v: u64) {
    // SAFETY: the environment is bound, and no other reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    rt.saved_int[reg as usize % SAVED_INT_REGS] = v;
}

fn extend(width: Width, ext: Ext, v: u64) -> u64 {
    match ext {
        Ext::Zero => v,
        Ext::Sign32 => u64::from(width.sign_extend(v) as u32),
        Ext::Sign64 => width.sign_extend(v),
    }
}

/// Restores the guest's state as of the start of the point's instruction.
fn restore<G: Guest>(env: &mut G::Env, rt: &mut Runtime, tb: u32, point: u32) {
    let globals = G::globals();
    let tables = rt.blocks.tables(tb);
    let state = tables.state(point as usize);
    // What was moved may have been moved to another's home, so everything is read before anything is written.
    let (mut names, mut words) = ([GlobalId(0); GLOBALS], [0u64; GLOBALS]);
    let mut vectors: Vec<(GlobalId, [u64; 4])> = Vec::new();
    let mut moved = 0;
    for (global, loc) in state.moved {
        let word = match globals[global.0 as usize].ty {
            Ty::Vec => {
                vectors.push((global, vector::<G>(env, rt, loc)));
                continue;
            }
            Ty::Int => int::<G>(env, rt, loc),
            Ty::Flags => u64::from(flags::<G>(env, rt, tables, loc)),
        };
        (names[moved % GLOBALS], words[moved % GLOBALS]) = (global, word);
        moved += 1;
    }
    for (global, reg) in &rt.pinned {
        set_word::<G>(env, *global, rt.saved_int[*reg as usize % SAVED_INT_REGS]);
    }
    for (global, word) in names.iter().zip(words).take(moved) {
        set_word::<G>(env, *global, word);
    }
    for (global, value) in vectors {
        set_vector::<G>(env, global, value);
    }
    G::set_pc(env, state.pc);
}

fn int<G: Guest>(env: &G::Env, rt: &Runtime, loc: Loc) -> u64 {
    match loc {
        Loc::Int(r) => rt.saved_int[r as usize % SAVED_INT_REGS],
        Loc::Vec(r) => rt.saved_vec[r as usize % SAVED_VEC_REGS][0],
        Loc::Spill(n) => rt.spill[n as usize % SPILL_SLOTS],
        Loc::Const(c) => c,
        Loc::Env(offset) | Loc::EnvLow(offset) => env_word::<G>(env, offset),
        Loc::Flags(_) => unreachable!("flags are not an integer"),
    }
}

fn vector<G: Guest>(env: &G::Env, rt: &Runtime, loc: Loc) -> [u64; 4] {
    match loc {
        Loc::Vec(r) => rt.saved_vec[r as usize % SAVED_VEC_REGS],
        Loc::Spill(n) => std::array::from_fn(|i| rt.spill[(n as usize + i) % SPILL_SLOTS]),
        Loc::Env(offset) => std::array::from_fn(|i| env_word::<G>(env, offset + 8 * i as u32)),
        Loc::EnvLow(offset) => [env_word::<G>(env, offset), env_word::<G>(env, offset + 8), 0, 0],
        Loc::Int(_) | Loc::Const(_) | Loc::Flags(_) => [int::<G>(env, rt, loc), 0, 0, 0],
    }
}

fn flags<G: Guest>(env: &G::Env, rt: &Runtime, tables: Tables<'_>, loc: Loc) -> u32 {
    let Loc::Flags(n) = loc else { return int::<G>(env, rt, loc) as u32 };
    let eval = |r: &FlagRecipe, old| r.eval(int::<G>(env, rt, r.a), int::<G>(env, rt, r.b), old);
    let last = tables.recipe(n);
    let mut older = last.old;
    // A recipe may build on an older one; they are evaluated from the oldest on, without recursion.
    let mut chain: Vec<FlagRecipe> = Vec::new();
    while let Some(Loc::Flags(n)) = older {
        let recipe = tables.recipe(n);
        older = recipe.old;
        chain.push(recipe);
    }
    let packed = older.map_or(0, |loc| int::<G>(env, rt, loc) as u32);
    let old = chain.iter().rev().fold(packed, |old, recipe| eval(recipe, old));
    eval(&last, old)
}

/// Eight bytes of the environment; fewer at its end.
fn env_word<G: Guest>(env: &G::Env, offset: u32) -> u64 {
    let n = size_of::<G::Env>().saturating_sub(offset as usize).min(8);
    let from = std::ptr::from_ref(env).cast::<u8>().wrapping_add(offset as usize);
    if n == 8 {
        // SAFETY: eight bytes from `offset` on are within the environment; they belong to a global, which is plain data, or
        // follow one in its `repr(C)` struct and are discarded by the reader.
        return u64::from_le(unsafe { from.cast::<u64>().read_unaligned() });
    }
    let mut bytes = [0u8; 8];
    // SAFETY: as above, for `n` bytes.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), n) };
    u64::from_le_bytes(bytes)
}

/// Where a global of `len` bytes is in the environment.
fn home<G: Guest>(env: &mut G::Env, global: GlobalId, len: usize) -> *mut u8 {
    let desc = &G::globals()[global.0 as usize];
    let offset = desc.offset as usize;
    assert!(offset + len <= size_of::<G::Env>(), "global {} is outside of the environment", desc.name);
    std::ptr::from_mut(env).cast::<u8>().wrapping_add(offset)
}

/// Sets an integer or packed flags.
fn set_word<G: Guest>(env: &mut G::Env, global: GlobalId, value: u64) {
    if G::globals()[global.0 as usize].ty == Ty::Flags {
        let to = home::<G>(env, global, 4).cast::<u32>();
        // SAFETY: `home` has checked that the bytes are within the environment; a global is plain data of any bit pattern.
        unsafe { to.write_unaligned((value as u32).to_le()) };
    } else {
        let to = home::<G>(env, global, 8).cast::<u64>();
        // SAFETY: as above.
        unsafe { to.write_unaligned(value.to_le()) };
    }
}

fn set_vector<G: Guest>(env: &mut G::Env, global: GlobalId, value: [u64; 4]) {
    let len = (G::globals()[global.0 as usize].bytes as usize).min(32);
    let to = home::<G>(env, global, len);
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(8).zip(value) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    // SAFETY: `home` has checked that the range is within the environment; a global is plain data of any bit pattern.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len) };
}
