//! Finding the block to go on at: by the jump cache, by what its entries were made from, in the table of blocks.
//!
//! Generated code that misses in the jump cache calls [`next_block`] without being left. Only what is left over, a block that
//! does not exist yet or an exception at the fetch, is the execution loop's, which starts again from the program counter.

use std::ptr::NonNull;

use super::blocks::{Found, NO_PAGE, Tb};
use super::translate::protect;
use crate::env::{JUMP_TAG_NONE, Runtime};
use crate::guest::{BlockKey, Exception, Guest};
use crate::jump_cache::{JumpOrigin, SECOND_HITS};
use crate::softmmu::{Fetched, Running, fetch_page, jump_tag, runtime};

/// What generated code calls when an indirect jump misses in the jump cache: the address of the block's body, or 0 to
/// leave.
pub(super) extern "C" fn next_block<G: Guest>(env: NonNull<G::Env>) -> u64 {
    let mut env = env;
    // SAFETY: generated code passes the bound environment it runs on, and holds no reference into it.
    let env = unsafe { env.as_mut() };
    // SAFETY: the environment is bound, and no other reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    // A block that runs once is left after its instruction.
    if rt.mmu.running != Running::Block || !rt.finds_blocks {
        return 0;
    }
    let key = G::block_key(env);
    rt.mmu.spaces.set_main(G::header(env), G::main_mmu(key.mode));
    name::<G>(env, rt, key.mode);
    rt.second_jumps_left = SECOND_HITS;
    if let Some(code) = rt.jump_cache.promote(key.pc, G::header(env).jump_tag) {
        return code;
    }
    // What is logged is the execution loop's to log.
    if is_logged() { 0 } else { find_cached::<G>(env, rt, key).unwrap_or(0) }
}

/// Whether the log shows the blocks that are entered.
pub(super) fn is_logged() -> bool {
    use tracing::{Level, enabled};
    enabled!(target: "exec", Level::TRACE) || enabled!(target: "cpu", Level::TRACE)
}

/// Sees to it that the jump tag in the header is for the current space and `mode`.
#[inline]
pub(super) fn name<G: Guest>(env: &mut G::Env, rt: &mut Runtime, mode: u64) {
    if G::header(env).jump_tag == JUMP_TAG_NONE || rt.mmu.fetch.stale(mode) {
        G::header(env).jump_tag = jump_tag(rt, mode, false);
    }
}

/// The body of a block that exists; the jump cache has it afterwards.
fn find_cached<G: Guest>(env: &mut G::Env, rt: &mut Runtime, key: BlockKey) -> Option<u64> {
    rt.lookups += 1;
    let page = fetch_page::<G>(env, rt, key.pc).ok()?;
    let found = rt.jump_cache.find(key.pc, |tb| rt.blocks.get(tb).starts_at(page.phys, key.mode));
    if let Some((place, tb)) = found {
        let &Tb { page2, page2_pc, .. } = rt.blocks.get(tb);
        let second = match page2 {
            NO_PAGE => None,
            _ => Some(fetch_page::<G>(env, rt, page2_pc).ok()?),
        };
        if second.is_none_or(|s| s.phys == page2) {
            let global = page.global && second.is_none_or(|s| s.global);
            let tag = tag_for::<G>(env, rt, key.mode, global);
            if let Some(code) = rt.jump_cache.renew(place, key.pc, tag) {
                return Some(code);
            }
        }
    }
    let tb = find_or_revive::<G>(env, rt, key, page.phys)?;
    remember::<G>(env, rt, key, page, tb).ok()
}

/// Finds a block that was made from the code at `key`, which is at `phys`.
pub(super) fn find<G: Guest>(env: &G::Env, rt: &mut Runtime, key: BlockKey, phys: u64) -> Option<u32> {
    match rt.blocks.find(phys, key) {
        Found::Block(tb) => Some(tb),
        Found::No => {
            rt.blocks.note_missing(phys, key);
            None
        }
        Found::Spanning => find_spanning::<G>(env, rt, key, phys),
    }
}

/// Finds a block whose second page, if it has one, is where it was when the block was made; a trace, if there is one.
fn find_spanning<G: Guest>(env: &G::Env, rt: &mut Runtime, key: BlockKey, phys: u64) -> Option<u32> {
    let blocks = rt.blocks.live_of(phys, key);
    let mut candidates: Vec<_> = blocks.map(|(id, t)| (t.trace.is_none(), id, t.page2_pc, t.page2)).collect();
    candidates.sort_unstable();
    let mut fetched = None;
    for (_, id, page2_pc, page2) in candidates {
        if page2 != NO_PAGE && fetched.is_none_or(|(pc, _)| pc != page2_pc) {
            // If it cannot be fetched, no block that goes on there is meant.
            fetched = Some((page2_pc, fetch_page::<G>(env, rt, page2_pc).ok().map(|page| page.phys)));
        }
        let is = page2 == NO_PAGE || fetched == Some((page2_pc, Some(page2)));
        // Fetching may have invalidated it: the walk sets bits in memory.
        if is && rt.blocks.is_live(id) {
            return Some(id);
        }
    }
    None
}

/// Finds a block that was made from the code at `key`, which is at `phys`, or makes one valid again.
pub(super) fn find_or_revive<G: Guest>(
    env: &G::Env,
    rt: &mut Runtime,
    key: BlockKey,
    phys: u64,
) -> Option<u32> {
    if rt.blocks.is_missing(phys, key) {
        return None;
    }
    find::<G>(env, rt, key, phys).or_else(|| revive::<G>(env, rt, key, phys))
}

/// Finds a block that was invalidated, but whose guest bytes are again what they were.
fn revive<G: Guest>(env: &G::Env, rt: &mut Runtime, key: BlockKey, phys: u64) -> Option<u32> {
    let candidates = rt.blocks.candidates((phys, key), &*rt.mmu.memory);
    candidates.into_iter().flatten().find(|&tb| {
        let &Tb { page2, page2_pc, .. } = rt.blocks.get(tb);
        if rt.blocks.get(tb).spans()
            && fetch_page::<G>(env, rt, page2_pc).ok().map(|page| page.phys) != Some(page2)
        {
            return false;
        }
        let Some(first_of_page) = rt.blocks.revive(tb, &*rt.mmu.memory) else { return false };
        protect(rt, tb, first_of_page);
        true
    })
}

/// Enters block `tb` in the jump cache; the address of its entry there. `page` is where its first byte was fetched.
pub(super) fn remember<G: Guest>(
    env: &mut G::Env,
    rt: &mut Runtime,
    key: BlockKey,
    page: Fetched,
    tb: u32,
) -> Result<u64, Exception> {
    let &Tb { page2, page2_pc, .. } = rt.blocks.get(tb);
    let global = page.global && (page2 == NO_PAGE || fetch_page::<G>(env, rt, page2_pc)?.global);
    let tag = tag_for::<G>(env, rt, key.mode, global);
    let origin = JumpOrigin { pc: key.pc, tb };
    let code = rt.blocks.body(tb);
    rt.jump_cache.insert(origin, tag, code);
    Ok(code)
}

/// The jump tag under which a block may be entered in the jump cache; it is in the header afterwards.
#[inline]
fn tag_for<G: Guest>(env: &mut G::Env, rt: &mut Runtime, mode: u64, global: bool) -> u64 {
    if rt.mmu.fetch.stale(mode) || !global && rt.mmu.fetch.shared() {
        G::header(env).jump_tag = jump_tag(rt, mode, !global);
    }
    G::header(env).jump_tag
}
