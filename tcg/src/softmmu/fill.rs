//! From a guest-virtual address to a place in memory: second level, large entries, walk, and filling the levels above.

use std::sync::atomic::Ordering::Relaxed;

use super::fetch::note_changes;
use super::second_level::{Entry, GLOBAL, HOST_WRITABLE, LARGE, READ, WRITE};
use super::table::{Fill, LARGE_BITS, LargeFill, large_of};
use super::{MMU_MODES, TLB_ENTRIES, TlbEntry, page_of};
use crate::env::Runtime;
use crate::guest::{Access, Exception, Guest};
use crate::memory::PAGE_MASK;

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Guest-physical address.
    pub phys: u64,
    /// Host address; null if the page is neither RAM nor ROM.
    pub host: *mut u8,
    /// Whether stores go to `host` (RAM) rather than to [`mmio_write`](crate::memory::PhysMemory::mmio_write).
    pub writable: bool,
}

/// The runtime of an environment, as a reference that is independent of the environment's.
///
/// # Safety
/// The environment is bound (see [`Context`](crate::exec::Context)), and no other reference to its runtime is in use.
#[inline]
pub(crate) unsafe fn runtime<'a, G: Guest>(env: &mut G::Env) -> &'a mut Runtime {
    let p = G::header(env).runtime;
    debug_assert!(!p.is_null(), "the environment is not bound");
    // SAFETY: a bound environment's runtime is a live allocation of its own, and belongs to this thread; the caller
    // holds no other reference.
    unsafe { &mut *p }
}

/// Host address of a byte that the first level lets be read (or written) directly.
#[inline]
pub(super) fn direct<G: Guest>(env: &mut G::Env, va: u64, mmu: u8, write: bool) -> Option<*mut u8> {
    let table = G::header(env).tlb[mmu as usize % MMU_MODES];
    // SAFETY: a bound environment's table pointers lead to live tables of `TLB_ENTRIES` entries.
    let e = unsafe { *table.add((va >> 12) as usize % TLB_ENTRIES) };
    let tag = if write { e.write } else { e.read };
    (tag == page_of(va)).then_some(va.wrapping_add(e.addend) as *mut u8)
}

/// Translates `va` for a read or write, and fills the first level. Also whether that lets the access be done directly.
fn enter<G: Guest>(env: &mut G::Env, va: u64, access: Access, mmu: u8) -> Result<(Entry, bool), Exception> {
    // SAFETY: the environment is bound, and callers of this crate's functions hold no reference to the runtime.
    let rt = unsafe { runtime::<G>(env) };
    let page = page_of(va);
    let need = if access == Access::Read { READ } else { WRITE };
    let spaces = &rt.mmu.spaces;
    let e = match rt.mmu.second.get(page, mmu, spaces.current().asid, spaces.global_asid()) {
        Some(e) if e.has(need) => {
            rt.mmu.stats.second_level_hits += 1;
            e
        }
        _ => match spaces.large(page, mmu, need == WRITE) {
            Some(large) => {
                rt.mmu.stats.large_hits += 1;
                part_of(large, page, mmu, spaces.current().asid)
            }
            None => walk::<G>(env, rt, va, access, mmu)?,
        },
    };
    if e.has(LARGE) {
        enter_large::<G>(env, rt, page, mmu, &e);
    }
    let (watch_read, watch_write) = rt.mmu.watches.of_page(page);
    if e.host.is_null() {
        return Ok((e, false));
    }
    let fill = Fill {
        read: e.has(READ) && !watch_read,
        write: e.has(WRITE | HOST_WRITABLE) && !watch_write,
        host: e.host,
        phys: e.phys() | if e.has(GLOBAL) { GLOBAL } else { 0 },
        code: rt.blocks.code_lines(e.phys()),
    };
    if rt.memos.any != 0 && changes::<G>(env, page, mmu, &fill) {
        rt.memos.forget();
    }
    rt.mmu.spaces.fill(G::header(env), page, mmu, fill);
    let direct = if access == Access::Read { fill.read } else { fill.write && fill.code.is_none() };
    Ok((e, direct))
}

/// Whether the first way lets something be done in a page that it is not going to, or elsewhere.
fn changes<G: Guest>(env: &mut G::Env, page: u64, mmu: u8, fill: &Fill<'_>) -> bool {
    let [read, write] = [false, true].map(|write| direct::<G>(env, page, mmu, write));
    let other = |was: Option<*mut u8>, allowed: bool| was.is_some_and(|host| !allowed || host != fill.host);
    other(read, fill.read) || other(write, fill.write && fill.code.is_none())
}

/// Translates `va` for a read or write, and fills the first level.
pub(super) fn resolve<G: Guest>(
    env: &mut G::Env,
    va: u64,
    access: Access,
    mmu: u8,
) -> Result<Place, Exception> {
    let (e, _) = enter::<G>(env, va, access, mmu)?;
    let offset = va & PAGE_MASK;
    Ok(Place {
        phys: e.phys() | offset,
        host: if e.host.is_null() { e.host } else { e.host.wrapping_add(offset as usize) },
        writable: e.has(HOST_WRITABLE),
    })
}

/// Fills the first level for an access of generated code that is about to be done: the distance from its address to the
/// host's, if it may be done directly. Otherwise, and if it raises an exception or crosses pages, its slow path finds out
/// again.
pub(crate) fn refill<G: Guest>(env: &mut G::Env, va: u64, bytes: u16, write: bool, mmu: u8) -> Option<u64> {
    let page = page_of(va);
    if page_of(va.wrapping_add(u64::from(bytes) - 1)) != page {
        return None;
    }
    let access = if write { Access::Write } else { Access::Read };
    let (e, direct) = enter::<G>(env, va, access, mmu).ok()?;
    direct.then(|| (e.host as u64).wrapping_sub(page))
}

/// The entry of a page that a large entry says all about.
fn part_of(large: &TlbEntry, page: u64, mmu: u8, asid: u64) -> Entry {
    let phys = page_of(large.phys) + (page - large_of(page));
    let mut flags = large.phys & GLOBAL;
    if large.read == large_of(page) {
        flags |= READ;
    }
    if large.write == large_of(page) {
        flags |= WRITE | HOST_WRITABLE;
    }
    Entry::new(page, mmu, asid, phys, flags, page.wrapping_add(large.addend) as *mut u8)
}

/// Enters the large stretch that a page is part of.
fn enter_large<G: Guest>(env: &mut G::Env, rt: &mut Runtime, page: u64, mmu: u8, e: &Entry) {
    if rt.mmu.watches.any() {
        return;
    }
    let phys = large_of(e.phys());
    let fill = LargeFill {
        read: e.has(READ),
        write: e.has(WRITE | HOST_WRITABLE) && !rt.blocks.has_code_in(phys),
        host: e.host.wrapping_sub((page - large_of(page)) as usize),
        phys: phys | if e.has(GLOBAL) { GLOBAL } else { 0 },
    };
    rt.mmu.spaces.fill_large(G::header(env), large_of(page), mmu, fill);
}

/// Opens a window for stores around an address whose page has code, if the second level says that it may be written directly.
pub(crate) fn open_window<G: Guest>(env: &mut G::Env, va: u64, mmu: u8) {
    // SAFETY: the environment is bound, and callers of this crate's functions hold no reference to the runtime.
    let rt = unsafe { runtime::<G>(env) };
    let page = page_of(va);
    let spaces = &rt.mmu.spaces;
    if let Some(e) = rt.mmu.second.get(page, mmu, spaces.current().asid, spaces.global_asid())
        && e.has(WRITE | HOST_WRITABLE)
        && !rt.mmu.watches.of_page(page).1
        && let Some(lines) = rt.blocks.code_lines(e.phys())
    {
        rt.windows.open(mmu, va, e.phys(), (e.host as u64).wrapping_sub(page), lines.load(Relaxed));
    }
}

fn walk<G: Guest>(
    env: &mut G::Env,
    rt: &mut Runtime,
    va: u64,
    access: Access,
    mmu: u8,
) -> Result<Entry, Exception> {
    rt.mmu.stats.walks += 1;
    let mapping = G::walk(env, &rt.mmu.memory, va, access, mmu);
    note_changes::<G>(env, rt);
    let mapping = mapping?;
    let page = page_of(va);
    tracing::trace!(target: "mmu", "{access:?} {va:#x} mode {mmu} -> {:#x}", mapping.phys);
    let ram = rt.mmu.memory.ram_page(page_of(mapping.phys));
    let stretch = large_of(mapping.phys);
    let in_large = u32::from(mapping.alike_bits) >= LARGE_BITS
        && rt.mmu.memory.ram_range(stretch, 1 << LARGE_BITS).is_some();
    let mut flags = 0;
    for (condition, flag) in [
        (mapping.read || access == Access::Read, READ),
        (mapping.write || access == Access::Write, WRITE),
        (mapping.global, GLOBAL),
        (ram.is_some_and(|r| r.writable), HOST_WRITABLE),
        (in_large, LARGE),
    ] {
        if condition {
            flags |= flag;
        }
    }
    let spaces = &mut rt.mmu.spaces;
    if mapping.page_bits > 12 {
        spaces.note_large(va, u32::from(mapping.page_bits).min(63), mapping.global);
    }
    if mapping.global {
        spaces.note_global(page);
    }
    let asid = if mapping.global { spaces.global_asid() } else { spaces.current().asid };
    let host = ram.map_or(std::ptr::null_mut(), |r| r.host);
    let e = Entry::new(page, mmu, asid, mapping.phys, flags, host);
    rt.mmu.second.insert(e);
    Ok(e)
}
