//! Guest time.
//!
//! # Problem
//! TSC, APIC timer, HPET, PIT, PM timer and RTC must agree to the last digit, or kernels distrust one of them; guest time
//! must be stoppable, and it must be possible to make it deterministic.
//!
//! # Strategy
//! One counter is the source of all of them: *ticks* since the machine was started. Where the host's own TSC is invariant,
//! ticks are its cycles, so a guest's `rdtsc` is a host `rdtsc` and an offset; elsewhere they are nanoseconds of the host's
//! monotonic clock. Nanoseconds and TSC are both scaled from the ticks by exact fixed-point factors. Nobody else in the
//! emulator reads the host's clock for the guest.
//!
//! # Invariants
//! `now_ns` and `tsc` never go backwards while the clock runs, stand still while it is stopped, and continue from the same
//! value. When [`Clock::ns_at_tsc`] of a count has passed, `tsc` has reached that count.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lock;

/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;
/// `frozen` while the clock runs.
const RUNNING: u64 = u64::MAX;

/// Multiplies by a ratio in fixed point, rounding down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    mult: u64,
    shift: u32,
}

impl Scale {
    /// The ratio `num / den`, to at least 60 significant bits where neither overflows. `den` must not be 0.
    pub const fn new(num: u64, den: u64) -> Self {
        if num == den {
            return Self { mult: 1, shift: 0 };
        }
        // Up to 63 fractional bits, as many as leave the factor in 64 bits.
        let mut shift = 63;
        while shift > 0 && (((num as u128) << shift) / den as u128) > u64::MAX as u128 {
            shift -= 1;
        }
        Self { mult: (((num as u128) << shift) / den as u128) as u64, shift }
    }

    /// `v * num / den`.
    #[inline]
    pub const fn apply(self, v: u64) -> u64 {
        ((v as u128 * self.mult as u128) >> self.shift) as u64
    }
}

#[derive(Debug)]
enum Source {
    /// Cycles of the host's time stamp counter.
    #[cfg(target_arch = "x86_64")]
    HostTsc,
    /// Nanoseconds since this instant.
    Monotonic(Instant),
    /// Nanoseconds, moved by [`Clock::advance`].
    Manual(AtomicU64),
}

/// The time of one machine. Shared by everything in it.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    tsc_hz: u64,
    to_ns: Scale,
    to_tsc: Scale,
    tsc_to_ns: Scale,
    /// Source count at which guest time is 0.
    origin: AtomicU64,
    /// Ticks at which the clock stands, or [`RUNNING`].
    frozen: AtomicU64,
    /// Unix time in nanoseconds at guest time 0.
    wall_origin: AtomicU64,
    changing: Mutex<()>,
}

impl Clock {
    /// A running clock on the host's best time source, at 0. Takes about 10 ms where the host's TSC must be measured.
    pub fn host() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(hz) = host_tsc::frequency() {
            return Self::with_source(Source::HostTsc, hz, hz);
        }
        Self::with_source(Source::Monotonic(Instant::now()), NS_PER_SEC, NS_PER_SEC)
    }

    /// A clock that moves only by [`Self::advance`], with a TSC of `tsc_hz`; its wall clock starts in 1970.
    pub fn manual(tsc_hz: u64) -> Self {
        let clock = Self::with_source(Source::Manual(AtomicU64::new(0)), NS_PER_SEC, tsc_hz);
        clock.wall_origin.store(0, Ordering::Relaxed);
        clock
    }

    fn with_source(source: Source, ticks_hz: u64, tsc_hz: u64) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let clock = Self {
            source,
            tsc_hz,
            to_ns: Scale::new(NS_PER_SEC, ticks_hz),
            to_tsc: Scale::new(tsc_hz, ticks_hz),
            tsc_to_ns: Scale::new(NS_PER_SEC, tsc_hz),
            origin: AtomicU64::new(0),
            frozen: AtomicU64::new(RUNNING),
            wall_origin: AtomicU64::new(u64::try_from(wall.as_nanos()).unwrap_or(0)),
            changing: Mutex::new(()),
        };
        clock.origin.store(clock.source_count(), Ordering::Relaxed);
        clock
    }

    #[inline]
    fn source_count(&self) -> u64 {
        match &self.source {
            #[cfg(target_arch = "x86_64")]
            Source::HostTsc => host_tsc::read(),
            Source::Monotonic(start) => start.elapsed().as_nanos() as u64,
            Source::Manual(ns) => ns.load(Ordering::Acquire),
        }
    }

    #[inline]
    fn ticks(&self) -> u64 {
        match self.frozen.load(Ordering::Acquire) {
            // A reader that races with a change of the origin may see a count from before it: never negative.
            RUNNING => {
                self.source_count().wrapping_sub(self.origin.load(Ordering::Acquire)).cast_signed().max(0)
                    as u64
            }
            ticks => ticks,
        }
    }

    /// Guest time in nanoseconds since the machine was started.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.to_ns.apply(self.ticks())
    }

    /// The time stamp counter that all vCPUs see before their own offset.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.to_tsc.apply(self.ticks())
    }

    /// [`Self::now_ns`] and [`Self::tsc`] of one instant, by one look at the host's clock.
    #[inline]
    pub fn now_ns_and_tsc(&self) -> (u64, u64) {
        let ticks = self.ticks();
        (self.to_ns.apply(ticks), self.to_tsc.apply(ticks))
    }

    /// Frequency of [`Self::tsc`] in Hz.
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// What to add to the host's TSC to get [`Self::tsc`], for inlining into translated code. `None` when the guest's
    /// TSC is not the host's or the clock stands. Changes whenever the clock is stopped, continued or set.
    pub fn host_tsc_offset(&self) -> Option<u64> {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.source, Source::HostTsc) && self.is_running() {
            return Some(self.origin.load(Ordering::Acquire).wrapping_neg());
        }
        None
    }

    /// The earliest guest time, in nanoseconds, by which the TSC has surely reached `tsc`.
    pub fn ns_at_tsc(&self, tsc: u64) -> u64 {
        // Both scales round down by less than one, and their factors are cut after 60 bits.
        self.tsc_to_ns.apply(tsc).saturating_add(2)
    }

    /// Unix time in nanoseconds that the machine's real-time clock should show now.
    pub fn wall_ns(&self) -> u64 {
        self.wall_origin.load(Ordering::Acquire).saturating_add(self.now_ns())
    }

    /// Makes [`Self::wall_ns`] be `unix_ns` now.
    pub fn set_wall_ns(&self, unix_ns: u64) {
        self.wall_origin.store(unix_ns.saturating_sub(self.now_ns()), Ordering::Release);
    }

    /// Whether time passes.
    pub fn is_running(&self) -> bool {
        self.frozen.load(Ordering::Acquire) == RUNNING
    }

    /// Stops guest time. The timer queue must be told ([`crate::timers::Timers::clock_changed`]).
    pub fn stop(&self) {
        let _changing = lock(&self.changing);
        if self.is_running() {
            self.frozen.store(self.ticks(), Ordering::Release);
        }
    }

    /// Continues guest time from where it stood. The timer queue must be told.
    pub fn resume(&self) {
        let _changing = lock(&self.changing);
        let ticks = self.frozen.load(Ordering::Acquire);
        if ticks != RUNNING {
            self.origin.store(self.source_count().wrapping_sub(ticks), Ordering::Release);
            self.frozen.store(RUNNING, Ordering::Release);
        }
    }

    /// Sets guest time, as restoring a snapshot does; the wall clock goes with it. The timer queue must be told.
    pub fn set_now_ns(&self, ns: u64) {
        let _changing = lock(&self.changing);
        let ticks = self.ticks_at(ns);
        if self.is_running() {
            self.origin.store(self.source_count().wrapping_sub(ticks), Ordering::Release);
        } else {
            self.frozen.store(ticks, Ordering::Release);
        }
    }

    /// The first tick at which `now_ns` is at least `ns`.
    fn ticks_at(&self, ns: u64) -> u64 {
        let s = self.to_ns;
        u64::try_from(((u128::from(ns) << s.shift).div_ceil(u128::from(s.mult))).min(u128::from(RUNNING - 1)))
            .unwrap_or(RUNNING - 1)
    }

    /// Moves a [`Self::manual`] clock forward; others are not affected.
    pub fn advance(&self, ns: u64) {
        if let Source::Manual(now) = &self.source {
            now.fetch_add(ns, Ordering::AcqRel);
        }
    }
}

/// The host's time stamp counter.
#[cfg(target_arch = "x86_64")]
mod host_tsc {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    #[inline]
    pub fn read() -> u64 {
        // SAFETY: every x86-64 CPU has RDTSC; no operating system we run on forbids it to user mode.
        unsafe { _rdtsc() }
    }

    /// Its frequency in Hz, if it runs at one rate on all cores at all times (CPUID.80000007H:EDX[8], Intel SDM volume 3,
    /// "Invariant TSC"). Measured once in a process.
    pub fn frequency() -> Option<u64> {
        static HZ: OnceLock<Option<u64>> = OnceLock::new();
        *HZ.get_or_init(|| {
            let (max, max_ext) = (__cpuid(0).eax, __cpuid(0x8000_0000).eax);
            if max_ext < 0x8000_0007 || __cpuid(0x8000_0007).edx & 1 << 8 == 0 {
                return None;
            }
            if max >= 0x15 {
                // CPUID.15H: TSC = crystal (ECX) * EBX / EAX. Exact where the crystal is enumerated.
                let leaf = __cpuid_count(0x15, 0);
                if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
                    return Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax));
                }
            }
            measure()
        })
    }

    /// Counts cycles over 10 ms of the monotonic clock; the error is the uncertainty of two clock reads, a few ppm.
    fn measure() -> Option<u64> {
        let (t0, c0) = sample();
        std::thread::sleep(Duration::from_millis(10));
        let (t1, c1) = sample();
        let ns = t1.duration_since(t0).as_nanos();
        let cycles = u128::from(c1.checked_sub(c0)?);
        let hz = u64::try_from(cycles * 1_000_000_000 / ns.max(1)).ok()?;
        // Anything else is no counter to keep time with.
        (100_000_000..20_000_000_000).contains(&hz).then_some(hz)
    }

    /// A time and the count at that time: of several tries, the one with the shortest way between.
    fn sample() -> (Instant, u64) {
        let tries = (0..8).map(|_| {
            let before = read();
            let t = Instant::now();
            let after = read();
            (after.wrapping_sub(before), t, before.wrapping_add(after.wrapping_sub(before) / 2))
        });
        let best = tries.min_by_key(|&(gap, ..)| gap);
        best.map_or_else(|| (Instant::now(), read()), |(_, t, c)| (t, c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_exactly() {
        for hz in [1_000_000_000u64, 2_599_996_219, 100_000_000, 19_200_000_000, 3] {
            let s = Scale::new(NS_PER_SEC, hz);
            for v in [0u64, 1, 999, 1 << 32, 1 << 50] {
                let want = u128::from(v) * 1_000_000_000 / u128::from(hz);
                let got = u128::from(s.apply(v));
                if want <= u128::from(u64::MAX) {
                    assert!(got == want || got + 1 == want, "{v} at {hz}: {got} for {want}");
                }
            }
        }
    }

    #[test]
    fn a_manual_clock_moves_by_hand_and_stops() {
        let c = Clock::manual(2_500_000_000);
        assert_eq!((c.now_ns(), c.tsc()), (0, 0));
        c.advance(1000);
        assert_eq!((c.now_ns(), c.tsc()), (1000, 2500));
        c.stop();
        c.advance(500);
        assert_eq!(c.now_ns(), 1000);
        c.resume();
        c.advance(7);
        assert_eq!(c.now_ns(), 1007);
        c.set_now_ns(50);
        assert_eq!(c.now_ns(), 50);
        assert_eq!(c.wall_ns(), 50);
    }

    #[test]
    fn a_tsc_deadline_is_reached_when_its_time_has_come() {
        for hz in [1_000_000_000, 2_599_996_219, 3_000_000_001] {
            let c = Clock::manual(hz);
            for tsc in [1u64, 2, 3, 999, 1_000_003, 1 << 40] {
                let ns = c.ns_at_tsc(tsc);
                c.set_now_ns(ns);
                assert!(c.tsc() >= tsc, "{hz} {tsc}");
                assert!(c.tsc() - tsc < 16, "not late either");
            }
        }
    }

    #[test]
    fn the_host_clock_follows_the_host() {
        // The thread may be kept waiting between any two looks at clocks, for longer than they differ: what is looked at in
        // between has advanced by no less than from the look after to the look before, and by no more than from the look
        // before to the look after.
        let within = |advanced: f64, least: u128, most: u128| {
            assert!(
                0.99 * least as f64 <= advanced && advanced <= 1.01 * most as f64,
                "{least} {advanced} {most}"
            );
        };
        let c = Clock::host();
        let look = || (Instant::now(), c.now_ns(), c.tsc(), Instant::now());
        let (before, ns, tsc, after) = look();
        std::thread::sleep(Duration::from_millis(20));
        let (before_later, ns_later, tsc_later, after_later) = look();
        let (least, most) = ((before_later - after).as_nanos(), (after_later - before).as_nanos());
        within((ns_later - ns) as f64, least, most);
        within((tsc_later - tsc) as f64 / c.tsc_hz() as f64 * 1e9, least, most);
        c.stop();
        let at = c.now_ns();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(c.now_ns(), at);
        assert_eq!(c.host_tsc_offset(), None);
        let resuming = Instant::now();
        c.resume();
        let advanced = c.now_ns() - at;
        within(advanced as f64, 0, resuming.elapsed().as_nanos());
        c.set_now_ns(5 * NS_PER_SEC);
        assert!((5 * NS_PER_SEC..6 * NS_PER_SEC).contains(&c.now_ns()));
    }
}
