//! The HPET's registers.

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::StateMachine;
use tessera_hw_core::log::GUEST_ERRORS;

/// Nanoseconds for each count of the main counter.
const TICK_NS: u64 = 10;
/// Comparators.
pub(super) const TIMERS: usize = 3;
/// I/O APIC inputs that timers can be routed to: 2, 8 and 16 to 23.
const ROUTES: u32 = 0x00ff_0104;
/// Revision 1, three timers, 64-bit counter, legacy replacement, vendor 8086H, period 10^7 fs.
const CAPABILITIES: u64 = (TICK_NS * 1_000_000) << 32 | 0x8086_a201;

/// Offset of the main counter.
pub(super) const MAIN_COUNTER: u64 = 0x0f0;

/// General configuration bits.
mod general {
    pub const ENABLE: u64 = 1 << 0;
    pub const LEGACY: u64 = 1 << 1;
}

/// Timer configuration bits.
mod config {
    pub const LEVEL: u64 = 1 << 1;
    pub const INTERRUPT: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    pub const PERIODIC_CAPABLE: u64 = 1 << 4;
    pub const SIZE_64: u64 = 1 << 5;
    pub const SET_ACCUMULATOR: u64 = 1 << 6;
    pub const MODE_32: u64 = 1 << 8;
    pub const WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | SET_ACCUMULATOR | MODE_32 | 0x3e00;
}

/// Where a timer's interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// I/O APIC input.
    Input(u8),
    /// Legacy replacement line 0 (IRQ 0) or 1 (IRQ 8).
    Legacy(u8),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Comparator {
    config: u64,
    compare: u64,
    period: u64,
    /// When the counter reaches `compare`, in nanoseconds.
    fires_at: Option<u64>,
}

impl Default for Comparator {
    fn default() -> Self {
        Self { config: 0, compare: u64::MAX, period: 0, fires_at: None }
    }
}

impl Comparator {
    fn mask(&self) -> u64 {
        if self.config & config::MODE_32 != 0 { u32::MAX.into() } else { u64::MAX }
    }

    fn read_config(&self) -> u64 {
        self.config | config::PERIODIC_CAPABLE | config::SIZE_64 | u64::from(ROUTES) << 32
    }
}

/// An HPET. Times are guest nanoseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Hpet {
    config: u64,
    status: u64,
    /// Main counter when it was last stopped or set.
    counter: u64,
    /// When that was, while it runs.
    since: u64,
    timers: [Comparator; TIMERS],
}

impl Hpet {
    fn enabled(&self) -> bool {
        self.config & general::ENABLE != 0
    }

    /// Whether timers 0 and 1 replace 8254 and RTC.
    pub(super) fn legacy_replacement(&self) -> bool {
        self.config & general::LEGACY != 0
    }

    fn counter(&self, now: u64) -> u64 {
        if self.enabled() {
            self.counter.wrapping_add(now.saturating_sub(self.since) / TICK_NS)
        } else {
            self.counter
        }
    }

    /// Works out when `timer` fires, from the time at which the counter took its present value on.
    fn schedule(&mut self, timer: usize, now: u64) {
        let counter = self.counter(now);
        let ticks_done = now.saturating_sub(self.since) / TICK_NS;
        let tick_began = self.since.saturating_add(ticks_done * TICK_NS);
        let enabled = self.enabled();
        let t = &mut self.timers[timer];
        let distance = t.compare.wrapping_sub(counter) & t.mask();
        t.fires_at = enabled.then(|| tick_began.saturating_add(distance.saturating_mul(TICK_NS)));
    }

    /// Where `timer`'s interrupt goes.
    pub(super) fn route(&self, timer: usize) -> Route {
        if self.legacy_replacement() && timer < 2 {
            Route::Legacy(timer as u8)
        } else {
            Route::Input((self.timers[timer].config >> 9 & 0x1f) as u8)
        }
    }

    pub(super) fn is_level(&self, timer: usize) -> bool {
        self.timers[timer].config & config::LEVEL != 0
    }

    /// Whether a level-triggered timer with a pending interrupt is routed there.
    pub(super) fn drives(&self, route: Route) -> bool {
        (0..TIMERS).any(|i| {
            self.is_level(i)
                && self.status >> i & 1 != 0
                && self.timers[i].config & config::INTERRUPT != 0
                && self.route(i) == route
        })
    }

    /// Lets what came due until `now` happen; returns which timers give an edge.
    pub fn expire(&mut self, now: u64) -> u8 {
        let mut edges = 0;
        if !self.enabled() {
            return 0;
        }
        for (i, t) in self.timers.iter_mut().enumerate() {
            let Some(at) = t.fires_at.filter(|&at| at <= now) else { continue };
            t.fires_at = None;
            let period_ns = (t.period & t.mask()).saturating_mul(TICK_NS);
            if t.config & config::PERIODIC != 0 {
                if let Some(passed) = (now - at).checked_div(period_ns) {
                    let passed = passed + 1;
                    t.compare = t.compare.wrapping_add(t.period.wrapping_mul(passed)) & t.mask();
                    t.fires_at = Some(at.saturating_add(passed.saturating_mul(period_ns)));
                }
            } else if t.config & config::MODE_32 != 0 {
                // A 32-bit one-shot matches again each time the low half comes round.
                let round = (1 << 32) * TICK_NS;
                t.fires_at = Some(at.saturating_add(((now - at) / round + 1).saturating_mul(round)));
            }
            if t.config & config::LEVEL != 0 {
                self.status |= 1 << i;
            } else if t.config & config::INTERRUPT != 0 {
                edges |= 1 << i;
            }
        }
        edges
    }

    /// When [`Self::expire`] must be called next.
    pub fn deadline(&self) -> Option<u64> {
        let heard = self.timers.iter().filter(|t| t.config & config::INTERRUPT != 0);
        heard.filter_map(|t| t.fires_at).min()
    }

    fn read64(&self, offset: u64, now: u64) -> u64 {
        match offset {
            0x000 => CAPABILITIES,
            0x010 => self.config,
            0x020 => self.status,
            MAIN_COUNTER => self.counter(now),
            0x100..0x160 => {
                let t = &self.timers[((offset - 0x100) / 0x20) as usize];
                match offset & 0x1f {
                    0x00 => t.read_config(),
                    0x08 => t.compare,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Reads 1 to 8 bytes at byte `offset`, within one 64-bit register.
    pub fn read(&self, offset: u64, size: u8, now: u64) -> u64 {
        let value = self.read64(offset & !7, now) >> (8 * (offset & 7));
        value & tessera_hw_core::mem::mask(size)
    }

    /// Writes 4 or 8 bytes at byte `offset`; other sizes are ignored.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, now: u64) {
        if !matches!((size, offset & 7), (4, 0 | 4) | (8, 0)) || offset >= 0x400 {
            tracing::debug!(target: GUEST_ERRORS, "HPET: write of {size} bytes at {offset:#x}");
            return;
        }
        let shift = 8 * (offset & 4);
        let written = if size == 8 { u64::MAX } else { 0xffff_ffff << shift };
        let value = value << shift & written;
        match offset & 0x3f8 {
            0x010 => self.write_general((self.config & !written | value) & 3, now),
            0x020 => self.status &= !value,
            MAIN_COUNTER => {
                if self.enabled() {
                    tracing::debug!(target: GUEST_ERRORS, "HPET: write to the running counter");
                }
                self.counter = self.counter(now) & !written | value;
                self.since = now;
                (0..TIMERS).for_each(|i| self.schedule(i, now));
            }
            r @ 0x100..0x160 => {
                let timer = ((r - 0x100) / 0x20) as usize;
                match r & 0x1f {
                    0x00 => self.write_config(timer, value, written, now),
                    0x08 => self.write_comparator(timer, value, written, now),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_general(&mut self, value: u64, now: u64) {
        let counter = self.counter(now);
        let toggled = (self.config ^ value) & general::ENABLE != 0;
        self.config = value;
        if toggled {
            self.counter = counter;
            self.since = now;
            (0..TIMERS).for_each(|i| self.schedule(i, now));
        }
    }

    fn write_config(&mut self, timer: usize, value: u64, written: u64, now: u64) {
        let t = &mut self.timers[timer];
        let mut new = (t.config & !written | value) & config::WRITABLE;
        let route = new >> 9 & 0x1f;
        if ROUTES >> route & 1 == 0 {
            // A route that is not offered is not taken.
            new = new & !0x3e00 | t.config & 0x3e00;
        }
        let other_mode = (t.config ^ new) & (config::MODE_32 | config::PERIODIC) != 0;
        t.config = new;
        if new & config::MODE_32 != 0 {
            t.compare &= t.mask();
            t.period &= t.mask();
        }
        if other_mode {
            self.schedule(timer, now);
        }
        if new & config::LEVEL == 0 {
            self.status &= !(1 << timer);
        }
    }

    fn write_comparator(&mut self, timer: usize, value: u64, written: u64, now: u64) {
        let t = &mut self.timers[timer];
        let periodic = t.config & config::PERIODIC != 0;
        let mask = t.mask();
        if periodic {
            t.period = (t.period & !written | value) & mask;
        }
        let accumulator = !periodic || t.config & config::SET_ACCUMULATOR != 0;
        if accumulator {
            t.compare = (t.compare & !written | value) & mask;
        }
        // A 64-bit value that comes in two halves sets the accumulator with both.
        if written >> 32 != 0 || mask >> 32 == 0 {
            t.config &= !config::SET_ACCUMULATOR;
        }
        if accumulator {
            self.schedule(timer, now);
        }
    }
}

impl StateMachine for Hpet {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = Self::default();
    }
}
