//! Flushing translations and switching address spaces, as the guest asks for it.

use super::fetch::{self, jump_tag};
use super::fill::runtime;
use super::{Running, page_of};
use crate::env::{JUMP_TAG_NONE, Runtime};
use crate::guest::Guest;

/// Drops every translation, of all address spaces, global ones too.
pub fn flush_all<G: Guest>(env: &mut G::Env) {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    tracing::trace!(target: "mmu", "flush all");
    rt.mmu.stats.flushes += 1;
    rt.forget_pages();
    rt.mmu.spaces.clear_all();
    retag::<G>(env, rt);
}

/// Drops the non-global translations of one address space (as [`Guest::address_space`] names it).
pub fn flush_space<G: Guest>(env: &mut G::Env, space: u64) {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    tracing::trace!(target: "mmu", "flush space {space:#x}");
    rt.mmu.stats.flushes += 1;
    rt.forget_pages();
    if let Some(slot) = rt.mmu.spaces.find(space) {
        rt.mmu.spaces.clear_local(slot);
        if rt.mmu.spaces.is_current(slot) {
            retag::<G>(env, rt);
        }
    }
}

/// Drops the translations of the page that contains `va` in one address space, and global ones of that page. If it is
/// part of a large page, all of the large page goes.
pub fn flush_page<G: Guest>(env: &mut G::Env, space: u64, va: u64) {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    tracing::trace!(target: "mmu", "flush page {va:#x} of space {space:#x}");
    rt.mmu.stats.page_flushes += 1;
    let slot = rt.mmu.spaces.find(space);
    let sizes = drop_data(rt, slot, va);
    drop_code::<G>(env, rt, slot, va, sizes);
}

/// Drops the translations by which an access to `va` could go on that has failed: those of data, or of code if it was a
/// `fetch`. To be called when a guest whose page faults end translations is told of one.
pub fn drop_failed<G: Guest>(env: &mut G::Env, va: u64, fetch: bool) {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    let slot = Some(rt.mmu.spaces.current_slot());
    let sizes = drop_data(rt, slot, va);
    if fetch {
        drop_code::<G>(env, rt, slot, va, sizes);
    }
}

/// Drops the translations for data of a page of the space in `slot`, if any, and global ones. The sizes of large pages that may
/// contain it, as a bit mask of their log2.
fn drop_data(rt: &mut Runtime, slot: Option<usize>, va: u64) -> u64 {
    rt.forget_pages();
    let mmu = &mut rt.mmu;
    let global_asid = mmu.spaces.global_asid();
    let asid = slot.map_or(global_asid, |s| mmu.spaces.asid_of(s));
    let mut sizes = 0;
    let global = mmu.spaces.drop_page(slot, va, |bits| sizes |= 1 << bits);
    let global_asid = if global { global_asid } else { asid };
    mmu.second.drop_page(page_of(va), asid, global_asid);
    for bits in super::set_bits(sizes) {
        mmu.second.drop_large(va, bits, asid, global_asid);
    }
    sizes
}

/// Drops the translations for code of a page, and of large pages around it of these sizes.
fn drop_code<G: Guest>(env: &mut G::Env, rt: &mut Runtime, slot: Option<usize>, va: u64, sizes: u64) {
    let mmu = &mut rt.mmu;
    let found = fetch::drop_page(&mmu.spaces, &mut mmu.fetch, slot, va, sizes);
    if found.global {
        mmu.spaces.rename_code(None);
    } else if let (true, Some(slot)) = (found.local, slot) {
        mmu.spaces.rename_code(Some(slot));
    } else {
        return;
    }
    mmu.stats.code_page_flushes += 1;
    if found.global || slot.is_some_and(|s| mmu.spaces.is_current(s)) {
        retag::<G>(env, rt);
    }
}

/// To be called after anything that [`Guest::address_space`] depends on has changed.
pub fn switch_space<G: Guest>(env: &mut G::Env) {
    let (key, wide) = (G::address_space(env), G::address_bits(env) > 48);
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    if rt.mmu.fetch.set_wide(wide) {
        rt.jump_cache.clear();
    }
    rt.mmu.stats.switches += 1;
    rt.forget_pages();
    if !rt.mmu.spaces.switch(G::header(env), key, &rt.blocks) {
        rt.mmu.stats.cold_switches += 1;
    }
    retag::<G>(env, rt);
}

/// To be called when the block mode has changed, if the block that runs may go on by an indirect jump: the jump cache
/// answers for this mode from now on.
pub fn name_mode<G: Guest>(env: &mut G::Env, mode: u64) {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    rt.mmu.fetch.mode = Some(mode);
    rt.mmu.spaces.set_main(G::header(env), G::main_mmu(mode));
    retag::<G>(env, rt);
}

/// Makes the jump tag anew. While one instruction is to run there is none, so that it does not jump on.
fn retag<G: Guest>(env: &mut G::Env, rt: &mut Runtime) {
    G::header(env).jump_tag = match rt.mmu.fetch.mode {
        Some(mode) if rt.mmu.running != Running::Once => jump_tag(rt, mode, false),
        _ => JUMP_TAG_NONE,
    };
}
