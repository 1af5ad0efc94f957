//! Deadlines in guest time.
//!
//! # Problem
//! Devices need a call at a certain guest time, precisely, from a handful of timers that are re-armed tens of thousands of
//! times a second; and a guest may program periods so short that serving them all would leave no time for anything else.
//!
//! # Strategy
//! A machine has some tens of timers, so the queue is a plain array and its minimum a scan. [`TimerThread`] sleeps on a
//! condition variable until the earliest deadline; arming wakes it only when the new deadline is earlier than the one it
//! sleeps for. On a busy host the thread may get its turn late, while a guest that reads its clock in a loop sees time pass
//! without ticks: so whoever reads the clock for the guest does what is overdue itself ([`Timers::run_overdue`]). A
//! deterministic machine needs no thread: its main loop asks [`Timers::next_deadline`] and calls
//! [`Timers::run_expired`].
//!
//! # Invariants
//! - Callbacks run without the queue's lock and may arm any timer.
//! - A callback may run once more just after `cancel`, or after its timer was armed for later: devices compare with their
//!   own state, under their own lock, and take a call that is too early for a hint.
//! - A timer fires at most once in [`MIN_REFIRE_NS`], whatever the guest asks: what is due earlier is late by that
//!   much. Devices that count periods work out from the time how many have passed.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::lock;

/// No deadline.
const NEVER: u64 = u64::MAX;
/// The shortest time between two calls of one timer, in nanoseconds.
pub const MIN_REFIRE_NS: u64 = 20_000;

/// How long after its deadline a timer counts as overdue, in nanoseconds: more than the thread needs on a host that has a core
/// for it.
pub const OVERDUE_NS: u64 = 500_000;

/// What a timer calls, with the guest time in nanoseconds.
pub type Callback = Arc<dyn Fn(u64) + Send + Sync>;

struct Slot {
    deadline: u64,
    /// Not to fire before this.
    earliest: u64,
    /// `None` for a free slot.
    callback: Option<Callback>,
}

struct Queue {
    slots: Vec<Slot>,
    /// What the thread sleeps for; 0 while it is awake, and when there is no thread.
    sleeps_until: u64,
    stop: bool,
}

impl Queue {
    fn first(&self) -> Option<(usize, u64)> {
        let (i, slot) = self.slots.iter().enumerate().min_by_key(|(_, s)| s.deadline)?;
        (slot.deadline != NEVER).then_some((i, slot.deadline))
    }
}

/// The timer queue of one machine.
pub struct Timers {
    clock: Arc<Clock>,
    queue: Mutex<Queue>,
    /// The earliest deadline, to be read without the lock; [`NEVER`] if there is none.
    first: AtomicU64,
    wake: Condvar,
}

impl Timers {
    /// An empty queue on `clock`.
    pub fn new(clock: Arc<Clock>) -> Arc<Self> {
        let queue = Mutex::new(Queue { slots: Vec::new(), sleeps_until: 0, stop: false });
        Arc::new(Self { clock, queue, first: AtomicU64::new(NEVER), wake: Condvar::new() })
    }

    /// The clock of this queue.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Makes a timer, not armed. Dropping it frees it.
    pub fn create(self: &Arc<Self>, callback: impl Fn(u64) + Send + Sync + 'static) -> Timer {
        let slot = Slot { deadline: NEVER, earliest: 0, callback: Some(Arc::new(callback)) };
        let mut q = lock(&self.queue);
        let free = q.slots.iter().position(|s| s.callback.is_none());
        let index = free.unwrap_or(q.slots.len());
        match q.slots.get_mut(index) {
            Some(s) => *s = slot,
            None => q.slots.push(slot),
        }
        Timer { timers: Arc::clone(self), index }
    }

    /// The earliest deadline in guest nanoseconds, if any timer is armed.
    pub fn next_deadline(&self) -> Option<u64> {
        lock(&self.queue).first().map(|(_, d)| d)
    }

    /// To be called with the lock held, after any deadline changed.
    fn note_first(&self, q: &Queue) {
        self.first.store(q.first().map_or(NEVER, |(_, d)| d), Ordering::Release);
    }

    /// Calls the timers whose deadlines have passed, if one has by more than [`OVERDUE_NS`] at guest time `now`. Costs next to
    /// nothing if not. The caller holds no device's lock.
    #[inline]
    pub fn run_overdue(&self, now: u64) {
        if now > self.first.load(Ordering::Acquire).saturating_add(OVERDUE_NS) {
            self.run_expired();
        }
    }

    /// Calls every timer whose deadline has passed, earliest first, each at most once.
    pub fn run_expired(&self) {
        let now = self.clock.now_ns();
        loop {
            let callback = {
                let mut q = lock(&self.queue);
                match q.first() {
                    Some((i, deadline)) if deadline <= now => {
                        let slot = &mut q.slots[i];
                        slot.deadline = NEVER;
                        slot.earliest = now.saturating_add(MIN_REFIRE_NS);
                        let callback = slot.callback.clone();
                        self.note_first(&q);
                        callback
                    }
                    _ => return,
                }
            };
            if let Some(call) = callback {
                call(now);
            }
        }
    }

    /// To be called after the clock was stopped, continued, set or advanced, so that the thread sleeps anew.
    pub fn clock_changed(&self) {
        let mut q = lock(&self.queue);
        let now = self.clock.now_ns();
        for slot in &mut q.slots {
            // After a jump backwards the spacing would otherwise hold timers up for the length of the jump.
            slot.earliest = slot.earliest.min(now.saturating_add(MIN_REFIRE_NS));
        }
        q.sleeps_until = 0;
        drop(q);
        self.wake.notify_all();
    }

    fn arm(&self, index: usize, deadline: u64) {
        let mut q = lock(&self.queue);
        let slot = &mut q.slots[index];
        slot.deadline = if deadline == NEVER { NEVER } else { deadline.max(slot.earliest) };
        let deadline = slot.deadline;
        self.note_first(&q);
        if deadline < q.sleeps_until {
            // Once is enough, however often this happens before the thread gets the lock.
            q.sleeps_until = 0;
            drop(q);
            self.wake.notify_all();
        }
    }

    /// Sleeps until a deadline has passed, something changed, or the thread is to end (then false).
    fn sleep(&self) -> bool {
        let mut q = lock(&self.queue);
        if q.stop {
            return false;
        }
        let next = q.first().map_or(NEVER, |(_, d)| d);
        let now = self.clock.now_ns();
        if next <= now {
            return true;
        }
        // A stopped clock reaches no deadline: wait for `clock_changed`, or for an earlier timer, to look again.
        let forever = next == NEVER || !self.clock.is_running();
        q.sleeps_until = next;
        q = if forever {
            self.wake.wait(q).unwrap_or_else(std::sync::PoisonError::into_inner)
        } else {
            let timeout = Duration::from_nanos(next - now);
            self.wake.wait_timeout(q, timeout).unwrap_or_else(std::sync::PoisonError::into_inner).0
        };
        q.sleeps_until = 0;
        !q.stop
    }
}

/// One timer. Belongs to a device's wiring.
pub struct Timer {
    timers: Arc<Timers>,
    index: usize,
}

impl Timer {
    /// Sets the deadline to guest time `ns`, instead of any earlier one. A time in the past fires at once (on the timer
    /// thread).
    pub fn arm(&self, ns: u64) {
        self.timers.arm(self.index, ns.min(NEVER - 1));
    }

    /// Takes the deadline away.
    pub fn cancel(&self) {
        self.timers.arm(self.index, NEVER);
    }

    /// Sets the deadline or takes it away.
    pub fn arm_or_cancel(&self, ns: Option<u64>) {
        self.timers.arm(self.index, ns.map_or(NEVER, |ns| ns.min(NEVER - 1)));
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut q = lock(&self.timers.queue);
        let slot = &mut q.slots[self.index];
        slot.deadline = NEVER;
        let callback = slot.callback.take();
        self.timers.note_first(&q);
        drop(q);
        // What the callback owns may itself own timers.
        drop(callback);
    }
}

/// A timer as a device's wiring holds it: made after the device, armed only when the deadline changes.
pub struct DeviceTimer {
    timer: std::sync::OnceLock<Timer>,
    /// The deadline the queue was last given; [`NEVER`] when it fired.
    armed: Arc<AtomicU64>,
}

impl Default for DeviceTimer {
    fn default() -> Self {
        Self { timer: std::sync::OnceLock::new(), armed: Arc::new(AtomicU64::new(NEVER)) }
    }
}

impl DeviceTimer {
    /// Makes the timer; `f` is called with the device and the time while the device lives. It must call [`Self::set`]
    /// again, under the device's lock, for the timer to go on.
    pub fn connect<D: Send + Sync + 'static>(
        &self,
        timers: &Arc<Timers>,
        device: &Arc<D>,
        f: impl Fn(&D, u64) + Send + Sync + 'static,
    ) {
        let device: Weak<D> = Arc::downgrade(device);
        let armed = Arc::clone(&self.armed);
        let timer = timers.create(move |now| {
            // A `set` between the queue's taking the deadline and this store may have been skipped as unchanged; `f` makes
            // up for it.
            armed.store(NEVER, Ordering::Release);
            if let Some(d) = device.upgrade() {
                f(&d, now);
            }
        });
        let _first_call_wins = self.timer.set(timer);
    }

    /// Sets the deadline or takes it away. Called under the device's lock.
    #[inline]
    pub fn set(&self, deadline: Option<u64>) {
        let deadline = deadline.map_or(NEVER, |ns| ns.min(NEVER - 1));
        // A plain read first: nearly always nothing changes.
        if self.armed.load(Ordering::Acquire) != deadline
            && self.armed.swap(deadline, Ordering::AcqRel) != deadline
            && let Some(t) = self.timer.get()
        {
            t.timers.arm(t.index, deadline);
        }
    }
}

/// The thread that meets the deadlines. Dropping it ends it.
pub struct TimerThread {
    timers: Arc<Timers>,
    handle: Option<JoinHandle<()>>,
}

impl TimerThread {
    /// Starts serving `timers`. One thread a queue.
    pub fn spawn(timers: Arc<Timers>) -> io::Result<Self> {
        lock(&timers.queue).stop = false;
        let served = Arc::clone(&timers);
        let handle = std::thread::Builder::new().name("timers".into()).spawn(move || {
            // The default slack of 50 us would make every guest timer that late. 0 asks for the default, 1 for the least.
            #[cfg(target_os = "linux")]
            if let Err(e) = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)) {
                tracing::debug!("timer slack stays at its default: {e}");
            }
            while served.sleep() {
                served.run_expired();
            }
        })?;
        Ok(Self { timers, handle: Some(handle) })
    }

    /// Ends the thread and waits for it. Does not wait when called from a timer callback.
    pub fn stop(&mut self) {
        lock(&self.timers.queue).stop = true;
        self.timers.wake.notify_all();
        if let Some(h) = self.handle.take()
            && h.thread().id() != std::thread::current().id()
            && h.join().is_err()
        {
            tracing::error!("the timer thread panicked");
        }
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_is_overdue_needs_no_thread() {
        let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
        let fired = Arc::new(AtomicUsize::new(0));
        let count = fired.clone();
        let t = timers.create(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        t.arm(1000);
        for (now, expected) in [(1000 + OVERDUE_NS, 0), (1001 + OVERDUE_NS, 1), (10 * OVERDUE_NS, 1)] {
            timers.clock().set_now_ns(now);
            timers.run_overdue(now);
            assert_eq!(fired.load(Ordering::Relaxed), expected, "at {now}");
        }
        t.arm(2000);
        t.cancel();
        timers.run_overdue(20 * OVERDUE_NS);
        assert_eq!(fired.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn fires_in_order_and_once() {
        let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
        let log = Arc::new(Mutex::new(Vec::new()));
        let make = |name| {
            let log = log.clone();
            timers.create(move |now| lock(&log).push((name, now)))
        };
        let (a, b, c) = (make('a'), make('b'), make('c'));
        a.arm(300);
        b.arm(100);
        c.arm(200);
        c.cancel();
        assert_eq!(timers.next_deadline(), Some(100));
        timers.clock().advance(99);
        timers.run_expired();
        assert!(lock(&log).is_empty());
        timers.clock().advance(401);
        timers.run_expired();
        timers.run_expired();
        assert_eq!(*lock(&log), [('b', 500), ('a', 500)]);
        drop((a, b));
        c.arm(1);
        drop(c);
        timers.run_expired();
        assert_eq!(lock(&log).len(), 2, "a dropped timer does not fire");
    }

    #[test]
    fn a_timer_that_arms_itself_for_now_does_not_storm() {
        let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
        let count = Arc::new(AtomicU64::new(0));
        let me: Arc<OnceLock<Timer>> = Arc::default();
        let (counted, again) = (count.clone(), me.clone());
        let timer = timers.create(move |now| {
            counted.fetch_add(1, Ordering::Relaxed);
            if let Some(t) = again.get() {
                t.arm(now);
            }
        });
        timer.arm(0);
        assert!(me.set(timer).is_ok());
        for _ in 0..100 {
            timers.run_expired();
            timers.clock().advance(1000);
        }
        assert_eq!(count.load(Ordering::Relaxed), 5, "100 us at 20 us each");
        me.get().unwrap().cancel();
    }

    #[test]
    fn the_thread_is_punctual_and_stops() {
        let timers = Timers::new(Arc::new(Clock::host()));
        let mut thread = TimerThread::spawn(timers.clone()).unwrap();
        let (tx, rx) = mpsc::channel();
        let timer = timers.create(move |now| {
            let _ = tx.send(now);
        });
        let far = timers.create(|_| {});
        far.arm(timers.clock().now_ns() + 3_600_000_000_000);
        std::thread::sleep(Duration::from_millis(2));
        let due = timers.clock().now_ns() + 3_000_000;
        timer.arm(due);
        let fired = rx.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(fired >= due, "never early");
        let stopping = Instant::now();
        thread.stop();
        assert!(stopping.elapsed() < Duration::from_secs(1), "does not wait for the far timer");
    }

    #[test]
    fn a_stopped_clock_holds_timers_back() {
        let timers = Timers::new(Arc::new(Clock::host()));
        let _thread = TimerThread::spawn(timers.clone()).unwrap();
        let (tx, rx) = mpsc::channel();
        let timer = timers.create(move |now| {
            let _ = tx.send(now);
        });
        timers.clock().stop();
        timers.clock_changed();
        timer.arm(timers.clock().now_ns() + 1_000_000);
        assert!(rx.recv_timeout(Duration::from_millis(20)).is_err());
        timers.clock().resume();
        timers.clock_changed();
        assert!(rx.recv_timeout(Duration::from_secs(5)).is_ok());
    }

    #[test]
    fn a_device_timer_lets_the_device_go() {
        struct Dev(AtomicUsize, DeviceTimer);

        let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
        let dev = Arc::new(Dev(AtomicUsize::new(0), DeviceTimer::default()));
        dev.1.connect(&timers, &dev, |d, _| {
            d.0.fetch_add(1, Ordering::Relaxed);
        });
        dev.1.set(Some(0));
        timers.run_expired();
        assert_eq!(dev.0.load(Ordering::Relaxed), 1);
        let weak = Arc::downgrade(&dev);
        drop(dev);
        assert!(weak.upgrade().is_none());
    }
}
