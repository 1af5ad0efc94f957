//! Looking where the guest is, once a millisecond, so that the translator finds what is hot.
//!
//! Problem: samples must come while the guest runs, at no cost to the vCPU's thread, and a guest that is halted must not keep
//! a thread of the host busy. Strategy: a thread that asks for a sample and sleeps for a millisecond, as long as the vCPU runs; when
//! it has not run for a while, the thread sleeps until the vCPU wakes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use tessera_tcg::exec::Remote;

/// Time between samples.
const PERIOD: Duration = Duration::from_millis(1);
/// Periods without the vCPU running until the thread sleeps.
const PATIENCE: u32 = 5;

#[derive(Default)]
struct Shared {
    /// Times that the vCPU began to run, times 2; plus 1 while it runs.
    runs: AtomicU32,
    asleep: AtomicBool,
    end: AtomicBool,
}

/// The thread of one vCPU.
pub(super) struct Sampler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Starts the thread; the vCPU is not running.
    pub fn spawn(remote: Arc<Remote>) -> io::Result<Sampler> {
        let shared = Arc::<Shared>::default();
        let seen = shared.clone();
        let thread = Builder::new().name("sampler".into()).spawn(move || sample(&seen, &remote))?;
        Ok(Sampler { shared, thread: Some(thread) })
    }

    /// Calls `run` with samples being taken.
    pub fn during<R>(&self, run: impl FnOnce() -> R) -> R {
        self.shared.runs.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
        let result = run();
        self.shared.runs.fetch_add(1, Ordering::SeqCst);
        result
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

/// The thread.
fn sample(shared: &Shared, remote: &Remote) {
    let mut quiet = 0;
    let mut last = 0;
    while !shared.end.load(Ordering::SeqCst) {
        let runs = shared.runs.load(Ordering::SeqCst);
        let running = runs & 1 != 0;
        quiet = if running || runs != last { 0 } else { quiet + 1 };
        last = runs;
        if running {
            remote.kick();
        }
        if quiet < PATIENCE {
            thread::park_timeout(PERIOD);
            continue;
        }
        // Who begins to run after this is seen here, or sees this.
        shared.asleep.store(true, Ordering::SeqCst);
        if shared.runs.load(Ordering::SeqCst) == last && !shared.end.load(Ordering::SeqCst) {
            thread::park();
        }
        shared.asleep.store(false, Ordering::SeqCst);
        quiet = 0;
    }
}
