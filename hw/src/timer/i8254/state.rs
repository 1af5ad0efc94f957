//! Counters of the 8254. Time is in counter cycles inside, in nanoseconds at the edges.

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::StateMachine;

use crate::timer::{to_cycles, to_ns};

/// Frequency of the counters in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// Which byte of a count is written or read next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    #[default]
    LowThenHigh,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// The low byte of a two-byte write, waiting for the high byte.
    written_low: Option<u8>,
    /// The next read of a two-byte access gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    gate: bool,
    /// Count register, 1 to 65536 (10000 in BCD); `None` until written after a mode was set.
    count: Option<u32>,
    /// A count that modes 2 and 3 take over at this cycle.
    next: Option<(u64, u32)>,
    /// Cycle at which counting began; `None` while it waits for a count or, in modes 1 and 5, for the gate.
    start: Option<u64>,
    /// Elapsed cycles at which the gate stopped it.
    held: Option<u64>,
}

impl Counter {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::LowThenHigh,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            gate,
            count: None,
            next: None,
            start: None,
            held: None,
        }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// The count as a divisor; modes 2 and 3 do not work with 1, which is taken for 2.
    fn period(&self) -> Option<u64> {
        self.count.map(|c| if self.periodic() { u64::from(c.max(2)) } else { c.into() })
    }

    /// Takes over a count whose time has come.
    fn catch_up(&mut self, t: u64) {
        if let Some((at, count)) = self.next
            && t >= at
        {
            self.next = None;
            self.count = Some(count);
            self.start = Some(at);
        }
    }

    /// Cycles counted since the count was loaded.
    fn elapsed(&self, t: u64) -> Option<u64> {
        self.held.or_else(|| self.start.map(|s| t.saturating_sub(s)))
    }

    fn set_gate(&mut self, gate: bool, t: u64) {
        self.catch_up(t);
        let was = std::mem::replace(&mut self.gate, gate);
        if was == gate || self.count.is_none() {
            return;
        }
        match (gate, self.mode) {
            (true, 1 | 2 | 3 | 5) => {
                // A rising gate starts over.
                self.start = Some(t);
                self.held = None;
            }
            (true, _) => {
                if let Some(e) = self.held.take() {
                    self.start = Some(t.saturating_sub(e));
                }
            }
            (false, 1 | 5) => {}
            (false, _) => self.held = self.elapsed(t),
        }
    }

    fn set_mode(&mut self, access: Access, mode: u8, bcd: bool) {
        *self = Self {
            // Modes 6 and 7 are other names of 2 and 3.
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd,
            access,
            ..Self::new(self.gate)
        };
    }

    fn load(&mut self, raw: u16, t: u64) {
        let value = if self.bcd {
            (0..4).rev().fold(0, |v, d| v * 10 + u32::from(raw >> (4 * d) & 0xf).min(9))
        } else {
            raw.into()
        };
        let value = match (value, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (v, _) => v,
        };
        self.catch_up(t);
        match (self.mode, self.period(), self.elapsed(t)) {
            // Periodic modes finish the current period first.
            (2 | 3, Some(period), Some(e)) if self.held.is_none() => {
                self.next = Some((t + period - e % period, value));
            }
            (1 | 5, ..) => self.count = Some(value),
            _ => {
                self.count = Some(value);
                self.start = Some(t);
                self.held = (!self.gate).then_some(0);
            }
        }
    }

    /// Level of the output.
    fn output(&self, t: u64) -> bool {
        let (Some(n), Some(e)) = (self.period(), self.elapsed(t)) else { return self.mode != 0 };
        if self.held.is_some() && self.periodic() {
            return true;
        }
        match self.mode {
            0 | 1 => e >= n,
            2 => e % n != n - 1,
            3 => e % n < n.div_ceil(2),
            _ => e != n,
        }
    }

    /// The first cycle after `t` at which the output rises.
    fn next_rise(&self, t: u64) -> Option<u64> {
        let (n, start) = (self.period()?, self.start?);
        if self.held.is_some() {
            return None;
        }
        match self.mode {
            2 | 3 => {
                let rise = start + (t.saturating_sub(start) / n + 1) * n;
                Some(self.next.map_or(rise, |(at, _)| rise.min(at)))
            }
            0 | 1 => Some(start + n),
            _ => Some(start + n + 1),
        }
        .filter(|&rise| rise > t)
    }

    /// The counting element, as read.
    fn value(&self, t: u64) -> u16 {
        let Some(n) = self.period() else { return 0 };
        let e = self.elapsed(t).unwrap_or(0);
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let v = match self.mode {
            2 => n - e % n,
            // Counts down by two, twice in a period.
            3 => {
                let half = e % n * 2;
                let even = n & !1;
                if half >= even { (2 * even).saturating_sub(half) } else { even - half }
            }
            // One-shots wrap and count on.
            _ => (n + wrap - e % wrap) % wrap,
        } % wrap;
        if self.bcd { (0..4).rev().fold(0, |r, d| r << 4 | (v / 10u64.pow(d) % 10) as u16) } else { v as u16 }
    }

    fn status(&self, t: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::LowThenHigh => 3,
        };
        let null = self.count.is_none() || self.next.is_some();
        u8::from(self.output(t)) << 7
            | u8::from(null) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn read(&mut self, t: u64) -> u8 {
        if let Some(s) = self.latched_status.take() {
            return s;
        }
        let v = self.latched_count.unwrap_or_else(|| self.value(t));
        let (byte, last) = match self.access {
            Access::Low => (v as u8, true),
            Access::High => ((v >> 8) as u8, true),
            Access::LowThenHigh if self.read_high => ((v >> 8) as u8, true),
            Access::LowThenHigh => (v as u8, false),
        };
        self.read_high = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    fn write(&mut self, byte: u8, t: u64) {
        match (self.access, self.written_low.take()) {
            (Access::Low, _) => self.load(byte.into(), t),
            (Access::High, _) => self.load(u16::from(byte) << 8, t),
            (Access::LowThenHigh, Some(low)) => self.load(u16::from(byte) << 8 | u16::from(low), t),
            (Access::LowThenHigh, None) => {
                self.written_low = Some(byte);
                if self.mode == 0 {
                    // The first byte of a two-byte count stops mode 0.
                    self.count = None;
                    self.start = None;
                }
            }
        }
    }
}

/// The three counters and port 0x61.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pit {
    counters: [Counter; 3],
    /// Port 0x61 bits 3:0.
    control: u8,
    /// Cycle up to which rising edges of counter 0 have been reported.
    seen: u64,
}

impl Default for Pit {
    fn default() -> Self {
        Self { counters: [Counter::new(true), Counter::new(true), Counter::new(false)], control: 0, seen: 0 }
    }
}

impl Pit {
    /// Reads port 0x40 + `port`. The control word register (3) cannot be read.
    pub fn read(&mut self, port: u8, now: u64) -> u8 {
        let t = to_cycles(now, PIT_HZ);
        match self.counters.get_mut(usize::from(port & 3)) {
            Some(c) => {
                c.catch_up(t);
                c.read(t)
            }
            None => 0xff,
        }
    }

    /// Writes port 0x40 + `port`.
    pub fn write(&mut self, port: u8, value: u8, now: u64) {
        let t = to_cycles(now, PIT_HZ);
        if let Some(c) = self.counters.get_mut(usize::from(port & 3)) {
            c.write(value, t);
            return;
        }
        let access = value >> 4 & 3;
        match (value >> 6, access) {
            (3, _) => {
                // Read-back: bit 5 clear latches counts, bit 4 clear latches status, of the counters in bits 3:1.
                for (i, c) in self.counters.iter_mut().enumerate() {
                    if value >> (1 + i) & 1 == 0 {
                        continue;
                    }
                    c.catch_up(t);
                    if value & 0x20 == 0 && c.latched_count.is_none() {
                        c.latched_count = Some(c.value(t));
                    }
                    if value & 0x10 == 0 && c.latched_status.is_none() {
                        c.latched_status = Some(c.status(t));
                    }
                }
            }
            (n, 0) => {
                let c = &mut self.counters[usize::from(n)];
                c.catch_up(t);
                if c.latched_count.is_none() {
                    c.latched_count = Some(c.value(t));
                }
            }
            (n, _) => {
                let access = [Access::Low, Access::High, Access::LowThenHigh][usize::from(access - 1)];
                self.counters[usize::from(n)].set_mode(access, value >> 1 & 7, value & 1 != 0);
                self.seen = t;
            }
        }
    }

    /// Reads port 0x61: gate and speaker bits, the refresh toggle (bit 4, every 15 us) and counter 2's output (bit 5).
    pub fn read_control_port(&mut self, now: u64) -> u8 {
        let t = to_cycles(now, PIT_HZ);
        self.counters[2].catch_up(t);
        let refresh = ((t / 18) & 1) as u8;
        self.control | refresh << 4 | u8::from(self.counters[2].output(t)) << 5
    }

    /// Writes port 0x61: bit 0 gates counter 2.
    pub fn write_control_port(&mut self, value: u8, now: u64) {
        self.control = value & 0xf;
        self.counters[2].set_gate(value & 1 != 0, to_cycles(now, PIT_HZ));
    }

    /// Whether counter 0's output has risen since the last call. Several times count once.
    pub fn take_rising_edge(&mut self, now: u64) -> bool {
        let t = to_cycles(now, PIT_HZ);
        let c = &mut self.counters[0];
        let rose = c.next_rise(self.seen).is_some_and(|at| at <= t);
        c.catch_up(t);
        self.seen = self.seen.max(t);
        rose
    }

    /// Level for IRQ 0. In the periodic modes the low part of the output is left out: an interrupt controller looks for
    /// rising edges only, and these are reported.
    pub fn irq_level(&self, now: u64) -> bool {
        let c = &self.counters[0];
        c.periodic() || c.output(to_cycles(now, PIT_HZ))
    }

    /// When counter 0's output rises next, in nanoseconds.
    pub fn deadline(&self) -> Option<u64> {
        self.counters[0].next_rise(self.seen).map(|t| to_ns(t, PIT_HZ))
    }
}

impl StateMachine for Pit {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = Self { seen: self.seen, ..Self::default() };
    }
    fn check(&self) -> Result<(), &'static str> {
        // Far below 2^64, so that sums of times do not overflow.
        let time_ok = |t: Option<u64>| t.is_none_or(|t| t < 1 << 60);
        let ok = self.counters.iter().all(|c| {
            c.mode <= 5
                && c.count.is_none_or(|n| (1..=0x1_0000).contains(&n))
                && c.next.is_none_or(|(t, n)| time_ok(Some(t)) && (1..=0x1_0000).contains(&n))
                && time_ok(c.start)
                && time_ok(c.held)
        });
        if ok && time_ok(Some(self.seen)) { Ok(()) } else { Err("counter out of range") }
    }
}
