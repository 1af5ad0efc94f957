//! The local APIC's timer: one-shot, periodic, and TSC deadline.
//!
//! Nothing counts: the time at which the counter was loaded is remembered and the count worked out when asked for. A
//! periodic timer that was served late fires once and stays in step.

use serde::{Deserialize, Serialize};

/// LVT timer register bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ApicTimer {
    pub initial: u32,
    /// Divide configuration register, bits 3, 1, 0.
    pub divide: u8,
    /// When the counter was at its initial value; before time 0 (wrapping) if it came from elsewhere.
    start: u64,
    /// When it fires next, in guest nanoseconds.
    fires_at: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

impl ApicTimer {
    /// Nanoseconds for each count.
    fn divisor(&self) -> u64 {
        let code = self.divide >> 1 & 4 | self.divide & 3;
        if code == 7 { 1 } else { 2 << code }
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    /// Loads the counter (one-shot and periodic modes); 0 stops it.
    pub fn load(&mut self, initial: u32, now: u64) {
        self.initial = initial;
        self.start = now;
        self.fires_at = (initial != 0).then(|| now.saturating_add(self.period()));
    }

    /// Loads the counter as if it had counted down from `initial` to `current` already.
    pub fn load_at(&mut self, initial: u32, current: u32, mode: Mode, now: u64) {
        let current = current.min(initial);
        self.initial = initial;
        // A one-shot timer that shows 0 has fired; a periodic one begins anew.
        let left = if mode == Mode::Periodic && current == 0 { initial } else { current };
        let divisor = self.divisor();
        self.start = now.wrapping_sub(u64::from(initial - left) * divisor);
        self.fires_at = (left != 0).then(|| now.saturating_add(u64::from(left) * divisor));
    }

    /// Changes the divider. The count goes on at the new rate from where it is.
    pub fn set_divide(&mut self, divide: u8, mode: Mode, now: u64) {
        let count = self.current(mode, now);
        self.divide = divide & 0xb;
        if matches!(mode, Mode::OneShot | Mode::Periodic) && self.fires_at.is_some() {
            let done = u64::from(self.initial.saturating_sub(count)) * self.divisor();
            self.start = now.saturating_sub(done);
            self.fires_at = Some(self.start.saturating_add(self.period()));
        }
    }

    /// Sets the deadline in TSC deadline mode, `at` being its time in nanoseconds; 0 disarms.
    pub fn set_deadline(&mut self, tsc: u64, at: u64) {
        self.tsc_deadline = tsc;
        self.fires_at = (tsc != 0).then_some(at);
    }

    /// Stops it, as a change between deadline mode and the others does.
    pub fn disarm(&mut self) {
        self.initial = 0;
        self.tsc_deadline = 0;
        self.fires_at = None;
    }

    pub fn current(&self, mode: Mode, now: u64) -> u32 {
        let elapsed = (now.wrapping_sub(self.start) as i64).max(0) as u64 / self.divisor();
        let initial = u64::from(self.initial);
        match mode {
            Mode::OneShot if self.fires_at.is_some() => initial.saturating_sub(elapsed) as u32,
            Mode::Periodic if initial > 0 => (initial - elapsed % initial) as u32,
            _ => 0,
        }
    }

    pub fn fires_at(&self) -> Option<u64> {
        self.fires_at
    }

    /// Whether it has fired since the last call; periods that passed meanwhile count once.
    pub fn fired(&mut self, mode: Mode, now: u64) -> bool {
        let Some(at) = self.fires_at.filter(|&at| at <= now) else { return false };
        self.fires_at = None;
        match mode {
            Mode::Periodic if self.period() > 0 => {
                let period = self.period();
                self.start = at.saturating_add((now - at) / period * period);
                self.fires_at = Some(self.start.saturating_add(period));
            }
            Mode::TscDeadline => self.tsc_deadline = 0,
            _ => {}
        }
        true
    }
}
