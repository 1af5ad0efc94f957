//! Guest memory for Rust code: helpers, exception delivery, descriptor loads, and the slow paths of generated code.
//!
//! All functions translate like generated code does and raise the same exceptions. They are called with the
//! environment alone, because helpers get nothing else; it must be bound (see [`Context`](crate::exec::Context)).
//!
//! An access of several pages is checked as a whole first: a store that raises an exception has written nothing. MMIO is
//! accessed in naturally aligned parts of at most 8 bytes, in ascending order.
//!
//! A store to bytes that a translated block was made from invalidates that block, unless they stay what they are, or the
//! block may be running: then it raises [`RETRY_VECTOR`] instead and stores nothing, and the execution loop runs the guest
//! instruction again, alone.

use super::fill::{Place, direct, resolve, runtime};
use super::watch::watched;
use super::{RETRY_VECTOR, Running, host, page_of};
use crate::env::Runtime;
use crate::guest::{Access, Exception, Guest};
use crate::ir::{RmwOp, Width};
use crate::memory::{PAGE_MASK, PAGE_SIZE, PhysMemory};

/// Who stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writer {
    /// The block of this number, by a store instruction of its own.
    Block(u32),
    /// A helper, whose caller is not known, or code outside of blocks.
    Helper,
}

/// Bytes of an access that do not cross a page.
fn in_page(va: u64, len: u64) -> u64 {
    len.min(PAGE_SIZE - (va & PAGE_MASK))
}

/// Loads 1, 2, 4 or 8 bytes, zero-extended. May cross pages.
#[inline]
pub fn load<G: Guest>(env: &mut G::Env, va: u64, size: u32, mmu: u8) -> Result<u64, Exception> {
    debug_assert!(matches!(size, 1 | 2 | 4 | 8));
    if (va & PAGE_MASK) + u64::from(size) <= PAGE_SIZE
        && let Some(p) = direct::<G>(env, va, mmu, false)
    {
        // SAFETY: the first level says that this page is RAM or ROM, and the access stays in it.
        return Ok(unsafe { host::read(p, size) });
    }
    load_slow::<G>(env, va, size, mmu)
}

#[cold]
fn load_slow<G: Guest>(env: &mut G::Env, va: u64, size: u32, mmu: u8) -> Result<u64, Exception> {
    let mut buf = [0; 8];
    load_bytes::<G>(env, va, &mut buf[..size as usize], mmu)?;
    Ok(u64::from_le_bytes(buf))
}

/// Stores 1, 2, 4 or 8 bytes; nothing is written if any byte cannot be.
#[inline]
pub fn store<G: Guest>(env: &mut G::Env, va: u64, size: u32, value: u64, mmu: u8) -> Result<(), Exception> {
    debug_assert!(matches!(size, 1 | 2 | 4 | 8));
    if (va & PAGE_MASK) + u64::from(size) <= PAGE_SIZE
        && let Some(p) = direct::<G>(env, va, mmu, true)
    {
        // SAFETY: the first level says that this page is RAM that may be written, and the access stays in it.
        unsafe { host::write(p, size, value) };
        return Ok(());
    }
    store_as::<G>(env, va, &value.to_le_bytes()[..size as usize], mmu, Writer::Helper)
}

/// Loads quadwords that follow each other if one look into the first level does for all of them.
#[inline]
pub fn load_quads<G: Guest, const N: usize>(env: &mut G::Env, va: u64, mmu: u8) -> Option<[u64; N]> {
    if (va & PAGE_MASK) + 8 * N as u64 > PAGE_SIZE {
        return None;
    }
    let p = direct::<G>(env, va, mmu, false)?;
    // SAFETY: the first level says that this page is RAM or ROM, and all of them are in it.
    Some(std::array::from_fn(|n| unsafe { host::read(p.wrapping_add(8 * n), 8) }))
}

/// Stores quadwords, the first one at the lowest address, if one look into the first level does for all of them; else
/// nothing is stored, and the answer is no.
#[inline]
pub fn store_quads<G: Guest>(env: &mut G::Env, va: u64, values: &[u64], mmu: u8) -> bool {
    let here = (va & PAGE_MASK) + 8 * values.len() as u64 <= PAGE_SIZE;
    let Some(p) = here.then(|| direct::<G>(env, va, mmu, true)).flatten() else { return false };
    for (n, value) in values.iter().enumerate() {
        // SAFETY: the first level says that this page is RAM that may be written, and all of them are in it.
        unsafe { host::write(p.wrapping_add(8 * n), 8, *value) };
    }
    true
}

/// Loads bytes; on an exception the buffer's content is unspecified.
pub fn load_bytes<G: Guest>(env: &mut G::Env, va: u64, buf: &mut [u8], mmu: u8) -> Result<(), Exception> {
    if in_page(va, buf.len() as u64) == buf.len() as u64 {
        if let Some(p) = direct::<G>(env, va, mmu, false) {
            // SAFETY: the first level says that this page is RAM or ROM, and the access stays in it.
            unsafe { read_host(p, buf) };
            return Ok(());
        }
    } else {
        // All pages before any byte: reading MMIO has effects.
        probe::<G>(env, va, buf.len() as u64, Access::Read, mmu)?;
    }
    let mut at = 0;
    while at < buf.len() {
        let here = va.wrapping_add(at as u64);
        let n = in_page(here, (buf.len() - at) as u64) as usize;
        let place = resolve::<G>(env, here, Access::Read, mmu)?;
        if at == 0 {
            watched::<G>(env, va, buf.len() as u64, false)?;
        }
        // SAFETY: the environment is bound; no reference to its runtime is in use.
        let memory = unsafe { &runtime::<G>(env).mmu.memory };
        read_place(&**memory, place, &mut buf[at..at + n]);
        at += n;
    }
    Ok(())
}

/// Stores bytes; nothing is written if any byte cannot be.
pub fn store_bytes<G: Guest>(env: &mut G::Env, va: u64, bytes: &[u8], mmu: u8) -> Result<(), Exception> {
    store_as::<G>(env, va, bytes, mmu, Writer::Helper)
}

/// [`store_bytes`] for a given writer.
pub(crate) fn store_as<G: Guest>(
    env: &mut G::Env,
    va: u64,
    bytes: &[u8],
    mmu: u8,
    writer: Writer,
) -> Result<(), Exception> {
    let len = bytes.len() as u64;
    let first = in_page(va, len);
    if first == len {
        if let Some(p) = direct::<G>(env, va, mmu, true) {
            // SAFETY: the first level says that this page is RAM that may be written, and the access stays in it.
            unsafe { write_host(p, bytes) };
            return Ok(());
        }
        let place = resolve::<G>(env, va, Access::Write, mmu)?;
        check_store::<G>(env, va, place, bytes, writer)?;
        watched::<G>(env, va, len, true)?;
        write_place::<G>(env, place, bytes);
        return Ok(());
    }
    if len - first <= PAGE_SIZE {
        let (head, tail) = bytes.split_at(first as usize);
        let next = va.wrapping_add(first);
        let a = resolve::<G>(env, va, Access::Write, mmu)?;
        let b = resolve::<G>(env, next, Access::Write, mmu)?;
        check_store::<G>(env, va, a, head, writer)?;
        check_store::<G>(env, next, b, tail, writer)?;
        watched::<G>(env, va, len, true)?;
        write_place::<G>(env, a, head);
        write_place::<G>(env, b, tail);
        return Ok(());
    }
    let mut parts = Vec::new();
    let mut at = 0;
    while at < len {
        let here = va.wrapping_add(at);
        let n = in_page(here, len - at);
        let place = resolve::<G>(env, here, Access::Write, mmu)?;
        check_store::<G>(env, here, place, &bytes[at as usize..(at + n) as usize], writer)?;
        parts.push((at as usize, n as usize, place));
        at += n;
    }
    watched::<G>(env, va, len, true)?;
    for (at, n, place) in parts {
        write_place::<G>(env, place, &bytes[at..at + n]);
    }
    Ok(())
}

/// Raises what an access of `len` bytes would raise, without accessing.
pub fn probe<G: Guest>(
    env: &mut G::Env,
    va: u64,
    len: u64,
    access: Access,
    mmu: u8,
) -> Result<(), Exception> {
    let mut at = 0;
    while at < len {
        let here = va.wrapping_add(at);
        if access == Access::Execute {
            // SAFETY: the environment is bound; the reference leads to the runtime, which a walk leaves alone.
            let rt = unsafe { runtime::<G>(env) };
            G::walk(env, &rt.mmu.memory, here, access, mmu)?;
        } else if direct::<G>(env, here, mmu, access == Access::Write).is_none() {
            resolve::<G>(env, here, access, mmu)?;
        }
        at += in_page(here, len - at);
    }
    Ok(())
}

/// Host address of the byte at `va` if it, and what follows up to the end of its page, may be accessed directly: it is RAM
/// (for reads also ROM), no watch is for it, and for writes no block was made from the page. Raises what the access would
/// raise.
///
/// For bulk operations on two ranges: unlike what is in the TLB, two addresses obtained one after the other are both good,
/// until the guest's mappings or its memory's layout change or code is translated.
pub fn host_bytes<G: Guest>(
    env: &mut G::Env,
    va: u64,
    access: Access,
    mmu: u8,
) -> Result<Option<*mut u8>, Exception> {
    let write = access == Access::Write;
    if let Some(p) = direct::<G>(env, va, mmu, write) {
        return Ok(Some(p));
    }
    let place = resolve::<G>(env, va, access, mmu)?;
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    let (watch_read, watch_write) = rt.mmu.watches.of_page(va);
    let watched = if write { watch_write } else { watch_read };
    let direct = !watched && (!write || place.writable && !rt.blocks.has_code(page_of(place.phys)));
    Ok((!place.host.is_null() && direct).then_some(place.host))
}

/// Atomic compare-and-exchange of 1, 2, 4, 8 or 16 bytes; the old value. Needs write permission also when it does not
/// store. What is not naturally aligned, or not RAM, is done piecewise: with one vCPU the guest cannot tell.
pub fn compare_exchange<G: Guest>(
    env: &mut G::Env,
    va: u64,
    size: u32,
    expect: u128,
    new: u128,
    mmu: u8,
) -> Result<u128, Exception> {
    compare_exchange_as::<G>(env, va, size, Operand { v: new, expect }, mmu, Writer::Helper)
}

/// Operands of a compare-and-exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    /// What is stored.
    pub v: u128,
    /// What is expected.
    pub expect: u128,
}

/// [`compare_exchange`] for a given writer.
pub(crate) fn compare_exchange_as<G: Guest>(
    env: &mut G::Env,
    va: u64,
    size: u32,
    operand: Operand,
    mmu: u8,
    writer: Writer,
) -> Result<u128, Exception> {
    debug_assert!(matches!(size, 1 | 2 | 4 | 8 | 16));
    let mask = if size == 16 { u128::MAX } else { (1 << (8 * size)) - 1 };
    let (expect, new) = (operand.expect & mask, operand.v & mask);
    if va.is_multiple_of(u64::from(size)) {
        // What may be both read and written directly is RAM without code, and nobody watches it.
        if direct::<G>(env, va, mmu, false).is_some()
            && let Some(p) = direct::<G>(env, va, mmu, true)
        {
            // SAFETY: the first level says that this page is RAM that may be written, and an aligned access stays in it.
            let old = unsafe { host::compare_exchange(p, size, expect, new) };
            if let Some(old) = old {
                return Ok(old);
            }
        }
        let place = resolve::<G>(env, va, Access::Write, mmu)?;
        check_code::<G>(env, va, place.phys, u64::from(size), writer)?;
        if !place.host.is_null() && place.writable {
            watched::<G>(env, va, u64::from(size), false)?;
            watched::<G>(env, va, u64::from(size), true)?;
            // SAFETY: the page is RAM that may be written, and an aligned access stays in it.
            let old = unsafe { host::compare_exchange(place.host, size, expect, new) };
            if let Some(old) = old {
                return Ok(old);
            }
        }
    }
    probe::<G>(env, va, u64::from(size), Access::Write, mmu)?;
    let mut buf = [0; 16];
    load_bytes::<G>(env, va, &mut buf[..size as usize], mmu)?;
    let old = u128::from_le_bytes(buf);
    let stored = if old == expect { new } else { old };
    store_as::<G>(env, va, &stored.to_le_bytes()[..size as usize], mmu, writer)?;
    Ok(old)
}

/// Atomic read-modify-write; the old value, zero-extended. Atomicity as for [`compare_exchange`].
pub(crate) fn atomic_rmw<G: Guest>(
    env: &mut G::Env,
    va: u64,
    w: Width,
    op: RmwOp,
    v: u64,
    mmu: u8,
    writer: Writer,
) -> Result<u64, Exception> {
    let len = u64::from(w.bytes());
    if in_page(va, len) == len {
        let place = resolve::<G>(env, va, Access::Write, mmu)?;
        if !place.host.is_null() && place.writable {
            check_code::<G>(env, va, place.phys, len, writer)?;
            watched::<G>(env, va, len, false)?;
            watched::<G>(env, va, len, true)?;
            // SAFETY: the page is RAM that may be written, and the access stays in it.
            return Ok(unsafe { host::rmw(place.host, op, w, v) });
        }
    }
    probe::<G>(env, va, len, Access::Write, mmu)?;
    let old = load::<G>(env, va, w.bytes(), mmu)?;
    let new = op.apply(old, v) & w.mask();
    store_as::<G>(env, va, &new.to_le_bytes()[..len as usize], mmu, writer)?;
    Ok(old)
}

/// Prepares a store to `len` bytes of one page: blocks made from them go, or the store has to be retried.
#[inline]
fn check_code<G: Guest>(
    env: &mut G::Env,
    va: u64,
    phys: u64,
    len: u64,
    writer: Writer,
) -> Result<(), Exception> {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    if rt.blocks.has_code(page_of(phys)) { store_to_code(rt, va, phys, len, writer) } else { Ok(()) }
}

/// [`check_code`] for a store of known bytes: where they are in memory already, no block changes.
#[inline]
fn check_store<G: Guest>(
    env: &mut G::Env,
    va: u64,
    place: Place,
    bytes: &[u8],
    writer: Writer,
) -> Result<(), Exception> {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    if !rt.blocks.has_code(page_of(place.phys)) || holds(place, bytes) {
        return Ok(());
    }
    store_to_code(rt, va, place.phys, bytes.len() as u64, writer)
}

/// Whether memory that can be written directly has these bytes, of one page.
fn holds(place: Place, bytes: &[u8]) -> bool {
    if place.host.is_null() || !place.writable {
        return false;
    }
    let mut now = [0; 64];
    bytes.chunks(now.len()).enumerate().all(|(n, chunk)| {
        let now = &mut now[..chunk.len()];
        // SAFETY: the page is RAM, and the caller stays in it.
        unsafe { read_host(place.host.wrapping_add(64 * n), now) };
        now == chunk
    })
}

/// What a store to these bytes, which are known to be writable, would raise because the block that runs was made from them:
/// for instructions that have other effects before they store.
pub(crate) fn retry_if_running<G: Guest>(
    env: &mut G::Env,
    va: u64,
    len: u64,
    mmu: u8,
    writer: Writer,
) -> Result<(), Exception> {
    let mut at = 0;
    while at < len {
        let here = va.wrapping_add(at);
        let n = in_page(here, len - at);
        let phys = resolve::<G>(env, here, Access::Write, mmu)?.phys;
        // SAFETY: the environment is bound; the reference is gone when this iteration ends.
        let rt = unsafe { runtime::<G>(env) };
        if rt.blocks.has_code(page_of(phys)) && overwrites_running(rt, phys, n, writer) {
            return Err(Exception { vector: RETRY_VECTOR, error: None, address: here });
        }
        at += n;
    }
    Ok(())
}

/// Whether a block that is running, or may be, was made from any of `len` bytes of one page.
fn overwrites_running(rt: &Runtime, phys: u64, len: u64, writer: Writer) -> bool {
    match (rt.mmu.running, writer) {
        (Running::Block, Writer::Block(tb)) => rt.blocks.made_from(tb, phys, len),
        (Running::Block, Writer::Helper) => rt.blocks.any_made_from(phys, len),
        (Running::Nothing | Running::Once, _) => false,
    }
}

#[cold]
fn store_to_code(rt: &mut Runtime, va: u64, phys: u64, len: u64, writer: Writer) -> Result<(), Exception> {
    rt.mmu.stats.code_page_stores += 1;
    if overwrites_running(rt, phys, len, writer) {
        return Err(Exception { vector: RETRY_VECTOR, error: None, address: va });
    }
    rt.blocks.invalidate(phys, len, &mut rt.jump_cache);
    Ok(())
}

/// Reads bytes of one page.
fn read_place(memory: &dyn PhysMemory, place: Place, buf: &mut [u8]) {
    if !place.host.is_null() {
        // SAFETY: the page is RAM or ROM, and the caller stays in it.
        unsafe { read_host(place.host, buf) };
        return;
    }
    for (at, n) in mmio_parts(place.phys, buf.len()) {
        let v = memory.mmio_read(place.phys + at as u64, n as u32);
        buf[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
    }
}

/// Writes bytes of one page.
fn write_place<G: Guest>(env: &mut G::Env, place: Place, bytes: &[u8]) {
    if !place.host.is_null() && place.writable {
        // SAFETY: the page is RAM that may be written, and the caller stays in it.
        unsafe { write_host(place.host, bytes) };
        return;
    }
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let memory = unsafe { &runtime::<G>(env).mmu.memory };
    for (at, n) in mmio_parts(place.phys, bytes.len()) {
        let mut word = [0; 8];
        word[..n].copy_from_slice(&bytes[at..at + n]);
        memory.mmio_write(place.phys + at as u64, n as u32, u64::from_le_bytes(word));
    }
}

/// Reads bytes of guest memory; integers at once.
///
/// # Safety
/// They are in one page that is valid for reads.
#[inline]
unsafe fn read_host(p: *const u8, buf: &mut [u8]) {
    if let Some(size) = integer_size(buf.len()) {
        // SAFETY: by the caller's promise.
        let v = unsafe { host::read(p, size) };
        buf.copy_from_slice(&v.to_le_bytes()[..buf.len()]);
    } else {
        // SAFETY: by the caller's promise; `buf` is Rust memory, which guest memory does not overlap.
        unsafe { std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), buf.len()) };
    }
}

/// Writes bytes of guest memory; integers at once.
///
/// # Safety
/// They are in one page that is valid for writes.
#[inline]
unsafe fn write_host(p: *mut u8, bytes: &[u8]) {
    if let Some(size) = integer_size(bytes.len()) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: by the caller's promise.
        unsafe { host::write(p, size, u64::from_le_bytes(word)) };
    } else {
        // SAFETY: by the caller's promise; `bytes` is Rust memory, which guest memory does not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), p, bytes.len()) };
    }
}

fn integer_size(len: usize) -> Option<u32> {
    matches!(len, 1 | 2 | 4 | 8).then_some(len as u32)
}

/// Splits an access to `len` bytes into naturally aligned parts of at most 8: offset and length of each.
fn mmio_parts(phys: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let aligned = 1usize << (phys + at as u64).trailing_zeros().min(3);
        let fits = 1usize << (len - at).min(8).ilog2();
        let part = (at, aligned.min(fits));
        at += part.1;
        Some(part)
    })
}

/// To be called by a helper that may fault: remembers the exception and makes generated code leave the block.
pub fn raise<G: Guest>(env: &mut G::Env, exception: Exception) {
    let header = G::header(env);
    header.helper_fault = 1;
    // SAFETY: `runtime` is set when the environment is bound to its vCPU, before any helper runs, and the vCPU's
    // thread is the only one to use it.
    unsafe { (*header.runtime).exception = Some(exception) };
}
