//! Registers of the MC146818 and the CMOS RAM behind it.

use serde::{Deserialize, Serialize};
use tessera_hw_core::clock::NS_PER_SEC;
use tessera_hw_core::device::StateMachine;

use super::date::Date;
use crate::timer::to_ns;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Register A: an update is in progress or about to start.
const A_UIP: u8 = 1 << 7;
/// Register B bits.
mod b {
    pub const HOURS_24: u8 = 1 << 1;
    pub const BINARY: u8 = 1 << 2;
    pub const UPDATE: u8 = 1 << 4;
    pub const ALARM: u8 = 1 << 5;
    pub const PERIODIC: u8 = 1 << 6;
    pub const SET: u8 = 1 << 7;
}
/// Register C bits; at the same places as their enables in register B.
const C_INTERRUPT: u8 = 1 << 7;
const C_FLAGS: u8 = b::UPDATE | b::ALARM | b::PERIODIC;

/// How long before an update UIP is set, in nanoseconds.
const UIP_NS: u64 = 244_000;
/// Frequency from which periodic rates are divided.
const CRYSTAL_HZ: u64 = 32_768;

/// Guest time and wall time at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Guest nanoseconds.
    pub ns: u64,
    /// Unix nanoseconds that a clock nobody set would show.
    pub wall_ns: u64,
}

/// The clock and its RAM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rtc {
    index: u8,
    /// 128 bytes; those of the clock registers are not used, but for the alarm.
    ram: Vec<u8>,
    a: u8,
    b: u8,
    c: u8,
    /// How far the guest set the clock ahead of the wall clock, in nanoseconds: by up to 10,000 years.
    offset: i128,
    /// The date that stands still, or is being set, while register B's SET bit is on.
    frozen: Option<Date>,
    /// The second up to which update and alarm flags have been worked out.
    seen_second: i64,
    /// The period of the periodic interrupt up to which its flag has been worked out.
    seen_period: u64,
}

impl Rtc {
    /// CMOS RAM that describes the machine, by the AT's convention.
    pub fn new(low: u64, high: u64, cpus: u32) -> Self {
        let mut ram = vec![0; 128];
        let mut word = |at: usize, v: u64| {
            ram[at] = v as u8;
            ram[at + 1] = (v >> 8) as u8;
        };
        let kib = low / 1024;
        word(0x15, kib.min(640));
        let extended = kib.saturating_sub(1024).min(0xffff);
        word(0x17, extended);
        word(0x30, extended);
        word(0x34, (low.saturating_sub(16 << 20) >> 16).min(0xffff));
        word(0x5b, high >> 16);
        ram[0x5d] = (high >> 32) as u8;
        ram[0x5f] = cpus.saturating_sub(1).min(255) as u8;
        // Equipment: an FPU, a mouse port, no floppy.
        ram[0x14] = 0x06;
        Self {
            index: 0,
            ram,
            // 32.768 kHz time base, 1024 Hz.
            a: 0x26,
            b: b::HOURS_24,
            c: 0,
            offset: 0,
            frozen: None,
            seen_second: i64::MIN,
            seen_period: 0,
        }
    }

    /// Port 0x70: bit 7 masks NMI on hardware; reading gives ones there too, for the port is write-only.
    pub fn index(&self) -> u8 {
        0xff
    }

    /// Writes port 0x70.
    pub fn set_index(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// The clock in nanoseconds since 1970.
    fn time_ns(&self, now: Now) -> i128 {
        i128::from(now.wall_ns).saturating_add(self.offset)
    }

    fn second(&self, now: Now) -> i64 {
        i64::try_from(self.time_ns(now).div_euclid(NS_PER_SEC.into())).unwrap_or(0)
    }

    /// Nanoseconds since the second began.
    fn since_second(&self, now: Now) -> u64 {
        self.time_ns(now).rem_euclid(NS_PER_SEC.into()) as u64
    }

    fn date(&self, now: Now) -> Date {
        self.frozen.unwrap_or_else(|| Date::at(self.second(now)))
    }

    /// Makes the clock show `date`; the fraction of the second stays.
    fn set_date(&mut self, date: &Date, now: Now) {
        let difference = i128::from(date.seconds() - self.second(now)) * i128::from(NS_PER_SEC);
        self.offset = self.offset.saturating_add(difference);
        self.seen_second = self.second(now);
    }

    /// Whether the divider runs: register A bits 6:4.
    fn divider_runs(&self) -> bool {
        self.a >> 4 & 7 == 2
    }

    /// Cycles of the crystal between periodic interrupts.
    fn period(&self) -> Option<u64> {
        let rate = self.a & 0xf;
        match rate {
            _ if !self.divider_runs() => None,
            0 => None,
            // The two highest codes repeat 256 and 128 Hz.
            1 | 2 => Some(1 << (rate + 6)),
            _ => Some(1 << (rate - 1)),
        }
    }

    fn period_index(&self, now: Now) -> Option<u64> {
        self.period().map(|p| crate::timer::to_cycles(now.ns, CRYSTAL_HZ) / p)
    }

    // ---- flags ------------------------------------------------------------------------------------------------------

    /// Works out the flags up to `now`.
    pub fn catch_up(&mut self, now: Now) {
        if let Some(i) = self.period_index(now)
            && i != self.seen_period
        {
            self.seen_period = i;
            self.c |= b::PERIODIC;
        }
        let second = self.second(now);
        let ticked = self.seen_second != i64::MIN && second > self.seen_second;
        if ticked && self.frozen.is_none() && self.divider_runs() {
            self.c |= b::UPDATE;
            // A day of seconds has every time of day.
            let first = self.seen_second.max(second - 86_400) + 1;
            if self.c & b::ALARM == 0 && (first..=second).any(|s| self.alarm_at(s)) {
                self.c |= b::ALARM;
            }
        }
        self.seen_second = second;
    }

    /// Whether the alarm goes off at that second. Alarm bytes of 0xC0 and above match anything.
    fn alarm_at(&self, second: i64) -> bool {
        let of_day = second.rem_euclid(86_400);
        let matches = |reg: u8, value: u8| {
            let set = self.ram[usize::from(reg)];
            set >= 0xc0 || set == value
        };
        matches(SECONDS_ALARM, self.encode((of_day % 60) as u8))
            && matches(MINUTES_ALARM, self.encode((of_day / 60 % 60) as u8))
            && matches(HOURS_ALARM, self.encode_hour((of_day / 3600) as u8))
    }

    /// Level of the interrupt output.
    pub fn interrupt(&self) -> bool {
        self.c & self.b & C_FLAGS != 0
    }

    /// When [`Self::catch_up`] must be called next, in guest nanoseconds.
    pub fn deadline(&self, now: Now) -> Option<u64> {
        if self.interrupt() {
            // Already up; nothing new until register C is read.
            return None;
        }
        let periodic = self.period().filter(|_| self.b & b::PERIODIC != 0);
        let periodic = periodic.map(|p| to_ns((self.seen_period + 1) * p, CRYSTAL_HZ));
        let ticks = self.b & (b::UPDATE | b::ALARM) != 0 && self.frozen.is_none() && self.divider_runs();
        let update = ticks.then(|| now.ns.saturating_add(NS_PER_SEC - self.since_second(now)));
        [periodic, update].into_iter().flatten().min()
    }

    // ---- registers --------------------------------------------------------------------------------------------------

    fn encode(&self, v: u8) -> u8 {
        if self.b & b::BINARY != 0 { v } else { ((v / 10) << 4) | (v % 10) }
    }

    fn decode(&self, v: u8) -> u8 {
        if self.b & b::BINARY != 0 { v } else { (v >> 4).saturating_mul(10) + (v & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = match hour % 12 {
            0 => 12,
            h => h,
        };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, v: u8) -> u8 {
        if self.b & b::HOURS_24 != 0 {
            return self.decode(v);
        }
        self.decode(v & 0x7f) % 12 + if v & 0x80 != 0 { 12 } else { 0 }
    }

    /// Reads port 0x71.
    pub fn read(&mut self, now: Now) -> u8 {
        self.catch_up(now);
        let date = self.date(now);
        match self.index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            WEEKDAY => self.encode(date.weekday),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode((date.year % 100) as u8),
            CENTURY => self.encode((date.year / 100) as u8),
            REG_A => {
                let to_go = NS_PER_SEC - self.since_second(now);
                let updating = self.frozen.is_none() && self.divider_runs() && to_go <= UIP_NS;
                self.a | if updating { A_UIP } else { 0 }
            }
            REG_B => self.b,
            REG_C => {
                let c = self.c | if self.interrupt() { C_INTERRUPT } else { 0 };
                self.c = 0;
                c
            }
            // The battery is good.
            REG_D => 0x80,
            i => self.ram[usize::from(i)],
        }
    }

    /// Writes port 0x71.
    pub fn write(&mut self, value: u8, now: Now) {
        self.catch_up(now);
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => self.write_date(value, now),
            REG_A => {
                let ran = self.divider_runs();
                self.a = value & 0x7f;
                if !ran && self.divider_runs() {
                    // The first update comes half a second after the divider is let go.
                    let half = i128::from(NS_PER_SEC / 2) - i128::from(self.since_second(now));
                    self.offset = self.offset.saturating_add(half);
                    self.seen_second = self.second(now);
                }
                if let Some(i) = self.period_index(now) {
                    self.seen_period = i;
                }
            }
            REG_B => {
                let mut value = value;
                if value & b::SET != 0 {
                    // SET also turns the update interrupt off.
                    value &= !b::UPDATE;
                    if self.frozen.is_none() {
                        self.frozen = Some(self.date(now));
                    }
                } else if let Some(date) = self.frozen.take() {
                    self.set_date(&date, now);
                }
                self.b = value;
            }
            REG_C | REG_D => {}
            i => self.ram[usize::from(i)] = value,
        }
    }

    fn write_date(&mut self, value: u8, now: Now) {
        let mut date = self.date(now);
        let v = self.decode(value);
        match self.index {
            SECONDS => date.second = v,
            MINUTES => date.minute = v,
            HOURS => date.hour = self.decode_hour(value),
            WEEKDAY => date.weekday = v,
            DAY => date.day = v,
            MONTH => date.month = v,
            YEAR => date.year = date.year / 100 * 100 + u16::from(v % 100),
            _ => date.year = u16::from(v % 100) * 100 + date.year % 100,
        }
        if self.frozen.is_some() {
            self.frozen = Some(date);
        } else {
            self.set_date(&date, now);
        }
    }
}

impl StateMachine for Rtc {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        // The battery keeps time, RAM and rate; RESET clears the interrupt enables and flags.
        self.index = 0;
        self.b &= !(C_FLAGS | 0x08);
        self.c = 0;
    }
    fn check(&self) -> Result<(), &'static str> {
        if self.ram.len() != 128 {
            return Err("CMOS RAM is not 128 bytes");
        }
        // Within what guests can set, and so far from overflow.
        let seconds = self.offset / i128::from(NS_PER_SEC);
        if self.seen_period > 1 << 50 || seconds.unsigned_abs() > 1 << 40 {
            return Err("time out of range");
        }
        Ok(())
    }
}
