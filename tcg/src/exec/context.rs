//! An environment bound to a runtime: what helpers and the softmmu need, without an execution loop.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::Remote;
use super::blocks::Blocks;
use crate::code_cache::{CacheError, CodeCache};
use crate::env::{Bound, JUMP_TAG_NONE, Runtime};
use crate::guest::Guest;
use crate::memory::PhysMemory;
use crate::softmmu::{self, MMU_MODES, MmuState};

/// An environment and its runtime, at fixed addresses.
///
/// The functions of [`softmmu`] may be called with the environment of a context (and no other). Tests of helpers need
/// nothing more; a [`Vcpu`](super::Vcpu) is a context with a backend.
pub struct Context<G: Guest> {
    bound: NonNull<Bound<G::Env>>,
    env: NonNull<G::Env>,
    runtime: NonNull<Runtime>,
    remote: Arc<Remote>,
}

// SAFETY: the pointers own what they point to, both of which may change threads (`G::Env: Send`, and a runtime holds
// `Send` data and pointers to its own allocations and guest memory, which may be used from any thread).
unsafe impl<G: Guest> Send for Context<G> {}

impl<G: Guest> Context<G> {
    /// Binds an environment to a new runtime over `memory`, with a code cache of `cache_mib` MiB.
    pub fn new(
        env: Box<G::Env>,
        memory: Arc<dyn PhysMemory>,
        cache_mib: u32,
    ) -> Result<Context<G>, CacheError> {
        Ok(Self::with_cache(env, memory, CodeCache::new(cache_mib)?))
    }

    pub(super) fn with_cache(env: Box<G::Env>, memory: Arc<dyn PhysMemory>, cache: CodeCache) -> Context<G> {
        let remote = Arc::new(Remote::new());
        let bound = Bound::new(env, MmuState::new(memory), Blocks::new(cache, remote.clone()));
        let bound = NonNull::from(Box::leak(bound));
        // SAFETY: both are fields of what was just leaked, so their addresses are not null.
        let (env, runtime) = unsafe {
            let p = bound.as_ptr();
            (NonNull::new_unchecked(&raw mut (*p).env), NonNull::new_unchecked(&raw mut (*p).runtime))
        };
        let mut context = Context { bound, env, runtime, remote };
        let header = G::header(context.env_mut());
        header.runtime = runtime.as_ptr();
        header.jump_tag = JUMP_TAG_NONE;
        header.helper_fault = 0;
        let exit_request = NonNull::from(&header.exit_request);
        // SAFETY: the environment stays where it is until `drop`, which unbinds first.
        unsafe { context.remote.bind(exit_request) };
        softmmu::switch_space::<G>(context.env_mut());
        context
    }

    /// The environment.
    pub fn env(&self) -> &G::Env {
        // SAFETY: owned by `self`; generated code does not run while `&self` is held.
        unsafe { self.env.as_ref() }
    }

    /// The environment. Whoever changes what the address space or the block mode depends on tells the softmmu, as
    /// helpers do.
    pub fn env_mut(&mut self) -> &mut G::Env {
        // SAFETY: as for `env`, and `&mut self` excludes other references.
        unsafe { self.env.as_mut() }
    }

    /// Handle for other threads.
    pub fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// Tells which MMU mode most accesses of the block that runs next have.
    pub(super) fn set_main_mmu(&mut self, mmu: u8) {
        // SAFETY: owned by `self`, and `&mut self` excludes other references; the two do not overlap.
        let (env, rt) = unsafe { (self.env.as_mut(), self.runtime.as_mut()) };
        rt.mmu.spaces.set_main(G::header(env), mmu);
    }

    pub(super) fn env_ptr(&self) -> NonNull<G::Env> {
        self.env
    }

    pub(super) fn runtime(&self) -> &Runtime {
        // SAFETY: owned by `self`; nobody changes it while `&self` is held.
        unsafe { self.runtime.as_ref() }
    }

    pub(super) fn runtime_mut(&mut self) -> &mut Runtime {
        // SAFETY: owned by `self`, and `&mut self` excludes other references.
        unsafe { self.runtime.as_mut() }
    }
}

impl<G: Guest> Drop for Context<G> {
    fn drop(&mut self) {
        self.remote.unbind();
        let header = G::header(self.env_mut());
        header.runtime = ptr::null_mut();
        header.tlb = [ptr::null_mut(); MMU_MODES];
        header.tlb_main = ptr::null_mut();
        // SAFETY: it was made by `Box::leak`, and this is the only place that frees it.
        unsafe { drop(Box::from_raw(self.bound.as_ptr())) };
    }
}
