//! What other threads may do to a running vCPU: ask it to look at events, and tell it that memory has changed.
//!
//! Problem: a device's DMA may overwrite guest code that was translated. It must not wait for the vCPU, and what it
//! leaves for the vCPU to do must stay small however much it writes. Strategy: a filter of pages that may hold
//! code, readable from any thread; writes to other pages cost one load. The rest goes to a short queue that the vCPU
//! works off before the next block; when the queue is full, everything is invalidated instead.
//!
//! Order: the writer writes first and then looks at the filter; the translator sets the filter's bit first and
//! then reads the bytes (both with sequentially consistent fences). So either the translator sees the new bytes or
//! the writer sees the bit.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::env;
use crate::memory::PAGE_SIZE;

/// Words of the filter: 64 Ki pages, 256 MiB of memory without two pages sharing a bit.
const FILTER_WORDS: usize = 1024;
/// Ranges that the queue holds.
const QUEUE: usize = 256;

/// Handle to a vCPU for other threads. See the module documentation.
pub struct Remote {
    /// The environment's `exit_request`, as long as the vCPU exists.
    exit_request: Mutex<Option<ExitRequest>>,
    /// Whether `queue` has anything.
    pending: AtomicBool,
    queue: Mutex<Queue>,
    filter: Box<[AtomicU64]>,
}

struct ExitRequest(NonNull<env::ExitRequest>);

// SAFETY: points to an atomic, and is only followed under the mutex that `unbind` takes before it goes away.
unsafe impl Send for ExitRequest {}

/// What is to be done before the next block runs.
#[derive(Default)]
pub(super) struct Queue {
    /// Guest-physical ranges that were written: start and length.
    pub written: Vec<(u64, u64)>,
    /// All blocks are to be dropped.
    pub all_code: bool,
    /// All translations of addresses are to be dropped.
    pub flush: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    pub(super) fn new() -> Remote {
        Remote {
            exit_request: Mutex::new(None),
            pending: AtomicBool::new(false),
            queue: Mutex::default(),
            filter: (0..FILTER_WORDS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Binds the handle to a vCPU's `exit_request`.
    ///
    /// # Safety
    /// It stays valid until [`Remote::unbind`].
    pub(super) unsafe fn bind(&self, exit_request: NonNull<env::ExitRequest>) {
        *lock(&self.exit_request) = Some(ExitRequest(exit_request));
    }

    pub(super) fn unbind(&self) {
        *lock(&self.exit_request) = None;
    }

    /// Asks the vCPU to look at pending events soon. Does nothing when it no longer exists.
    pub fn kick(&self) {
        if let Some(request) = &*lock(&self.exit_request) {
            // SAFETY: valid as long as it is in the mutex, by the promise made to `bind`.
            unsafe { request.0.as_ref() }.set();
        }
    }

    /// To be called *after* writing guest memory by other means than the vCPU (DMA, loading images): blocks made from
    /// these bytes go before another one runs. Cheap for pages that hold no code.
    pub fn written(&self, phys: u64, len: u64) {
        fence(Ordering::SeqCst);
        let (first, last) = (phys / PAGE_SIZE, phys.saturating_add(len.saturating_sub(1)) / PAGE_SIZE);
        // Beyond so many pages all bits have been looked at.
        let last = last.min(first + FILTER_WORDS as u64 * 64);
        if len == 0 || !(first..=last).any(|page| self.may_hold_code(page)) {
            return;
        }
        self.post(|queue| {
            if queue.written.len() < QUEUE {
                queue.written.push((phys, len));
            } else {
                queue.written.clear();
                queue.all_code = true;
            }
        });
    }

    /// To be called after the layout of guest-physical memory has changed (what is RAM, ROM or MMIO where): the vCPU
    /// drops everything that it derived from the old one.
    pub fn layout_changed(&self) {
        self.post(|queue| {
            queue.all_code = true;
            queue.flush = true;
        });
    }

    fn post(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut lock(&self.queue));
        self.pending.store(true, Ordering::Release);
        self.kick();
    }

    /// Takes what is to be done.
    pub(super) fn take(&self) -> Option<Queue> {
        if !self.pending.load(Ordering::Acquire) {
            return None;
        }
        let mut queue = lock(&self.queue);
        self.pending.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut *queue))
    }

    fn may_hold_code(&self, page: u64) -> bool {
        let (word, bit) = Self::bit(page);
        self.filter[word].load(Ordering::Relaxed) & bit != 0
    }

    fn bit(page: u64) -> (usize, u64) {
        (page as usize / 64 % FILTER_WORDS, 1 << (page % 64))
    }

    /// Notes that code is about to be read from the page at a guest-physical address.
    pub(super) fn note_code(&self, phys_page: u64) {
        let (word, bit) = Self::bit(phys_page / PAGE_SIZE);
        if self.filter[word].load(Ordering::Relaxed) & bit == 0 {
            self.filter[word].fetch_or(bit, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Forgets all pages but these.
    pub(super) fn retain_code(&self, phys_pages: impl Iterator<Item = u64>) {
        let mut words = vec![0; FILTER_WORDS];
        for page in phys_pages {
            let (word, bit) = Self::bit(page / PAGE_SIZE);
            words[word] |= bit;
        }
        // Bits only go, and only those of pages without code: a writer at work misses nothing.
        for (to, from) in self.filter.iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_to_code_pages_are_queued() {
        let remote = Remote::new();
        remote.note_code(0x5000);
        remote.written(0x4000, 0x1000);
        remote.written(0x6000, 1);
        remote.written(0x5000, 0);
        assert!(remote.take().is_none());
        remote.written(0x4fff, 2);
        assert_eq!(remote.take().unwrap().written, [(0x4fff, 2)]);
        assert!(remote.take().is_none());
        remote.retain_code([0x9000].into_iter());
        remote.written(0x5000, 8);
        assert!(remote.take().is_none());
        remote.written(0, u64::MAX);
        assert_eq!(remote.take().unwrap().written, [(0, u64::MAX)]);
    }

    #[test]
    fn a_full_queue_becomes_everything() {
        let remote = Remote::new();
        remote.note_code(0);
        for _ in 0..QUEUE + 100 {
            remote.written(0, 4);
        }
        let queue = remote.take().unwrap();
        assert!(queue.all_code && queue.written.len() < QUEUE && !queue.flush);
    }

    #[test]
    fn kick_reaches_a_bound_vcpu_only() {
        let remote = Remote::new();
        remote.kick();
        let flag = env::ExitRequest::none();
        // SAFETY: the flag outlives the binding.
        unsafe { remote.bind(NonNull::from(&flag)) };
        remote.kick();
        assert!(flag.take());
        remote.unbind();
        remote.kick();
        assert!(!flag.is_set());
    }
}
