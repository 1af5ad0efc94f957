//! Guest memory for Rust code: helpers, exception delivery, descriptor loads.
//!
//! All functions translate like generated code does and raise the same exceptions. They are called with the
//! environment alone, because helpers get nothing else.

use crate::guest::{Access, Exception, Guest};

/// Loads 1, 2, 4 or 8 bytes, zero-extended. May cross pages.
pub fn load<G: Guest>(env: &mut G::Env, va: u64, size: u32, mmu: u8) -> Result<u64, Exception> {
    let _ = (env, va, size, mmu);
    unimplemented!()
}

/// Stores 1, 2, 4 or 8 bytes; nothing is written if any byte cannot be.
pub fn store<G: Guest>(env: &mut G::Env, va: u64, size: u32, value: u64, mmu: u8) -> Result<(), Exception> {
    let _ = (env, va, size, value, mmu);
    unimplemented!()
}

/// Loads bytes; on an exception the buffer's content is unspecified.
pub fn load_bytes<G: Guest>(env: &mut G::Env, va: u64, buf: &mut [u8], mmu: u8) -> Result<(), Exception> {
    let _ = (env, va, buf, mmu);
    unimplemented!()
}

/// Stores bytes; nothing is written if any byte cannot be.
pub fn store_bytes<G: Guest>(env: &mut G::Env, va: u64, bytes: &[u8], mmu: u8) -> Result<(), Exception> {
    let _ = (env, va, bytes, mmu);
    unimplemented!()
}

/// Raises what an access of `len` bytes would raise, without accessing.
pub fn probe<G: Guest>(
    env: &mut G::Env,
    va: u64,
    len: u64,
    access: Access,
    mmu: u8,
) -> Result<(), Exception> {
    let _ = (env, va, len, access, mmu);
    unimplemented!()
}

/// Atomic compare-and-exchange of 1, 2, 4, 8 or 16 bytes; the old value.
pub fn compare_exchange<G: Guest>(
    env: &mut G::Env,
    va: u64,
    size: u32,
    expect: u128,
    new: u128,
    mmu: u8,
) -> Result<u128, Exception> {
    let _ = (env, va, size, expect, new, mmu);
    unimplemented!()
}

/// Drops every translation, of all address spaces, global ones too.
pub fn flush_all<G: Guest>(env: &mut G::Env) {
    let _ = env;
    unimplemented!()
}

/// Drops the non-global translations of one address space (as [`Guest::address_space`] names it).
pub fn flush_space<G: Guest>(env: &mut G::Env, space: u64) {
    let _ = (env, space);
    unimplemented!()
}

/// Drops the translations of the page that contains `va` in one address space, and global ones of that page.
pub fn flush_page<G: Guest>(env: &mut G::Env, space: u64, va: u64) {
    let _ = (env, space, va);
    unimplemented!()
}

/// To be called after anything that [`Guest::address_space`] depends on has changed.
pub fn switch_space<G: Guest>(env: &mut G::Env) {
    let _ = env;
    unimplemented!()
}

/// To be called by a helper that may fault: remembers the exception and makes generated code leave the block.
pub fn raise<G: Guest>(env: &mut G::Env, exception: Exception) {
    let header = G::header(env);
    header.helper_fault = 1;
    // SAFETY: `runtime` is set when the environment is bound to its vCPU, before any helper runs, and the vCPU's
    // thread is the only one to use it.
    unsafe { (*header.runtime).exception = Some(exception) };
}
