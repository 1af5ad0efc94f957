//! PM1a registers and the PM timer.

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::StateMachine;
use tessera_hw_core::log::UNIMP;

use crate::timer::{to_cycles, to_ns};

/// Frequency of the PM timer in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// Offset of the PM timer in the block.
pub(super) const TIMER: u16 = 8;

/// PM1 status and enable bits.
mod event {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const RTC: u16 = 1 << 10;
    pub const WAKE: u16 = 1 << 15;
    pub const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;
    pub const STATUS: u16 = ENABLES | WAKE;
}
/// PM1 control bits.
mod control {
    pub const SCI_EN: u16 = 1 << 0;
    pub const SLEEP_TYPE: u16 = 7 << 10;
    pub const SLEEP: u16 = 1 << 13;
    /// BM_RLD and SLP_TYP; SCI_EN belongs to the firmware, GBL_RLS and SLP_EN read as 0.
    pub const WRITABLE: u16 = 1 << 1 | SLEEP_TYPE;
}

/// The PM timer's 32 bits.
pub(super) fn timer_value(now: u64) -> u32 {
    to_cycles(now, PM_TIMER_HZ) as u32
}

/// How often the timer's highest bit has changed: every 2^31 cycles, ten minutes.
fn changes(now: u64) -> u64 {
    to_cycles(now, PM_TIMER_HZ) >> 31
}

/// The fixed hardware's registers. Times are guest nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    /// Changes of the timer's highest bit that TMR_STS has noted.
    seen: u64,
}

impl Default for PowerManagement {
    fn default() -> Self {
        Self { status: 0, enable: 0, control: control::SCI_EN, seen: 0 }
    }
}

impl PowerManagement {
    /// Notes what the timer did until `now`.
    pub fn catch_up(&mut self, now: u64) {
        let n = changes(now);
        if n != self.seen {
            self.seen = n;
            self.status |= event::TIMER;
        }
    }

    /// Level of the SCI.
    pub fn interrupt(&self) -> bool {
        self.status & self.enable & event::ENABLES != 0
    }

    /// When [`Self::catch_up`] must be called next.
    pub fn deadline(&self) -> Option<u64> {
        let wanted = self.enable & event::TIMER != 0 && self.status & event::TIMER == 0;
        wanted.then(|| to_ns((self.seen + 1) << 31, PM_TIMER_HZ))
    }

    /// Sets PWRBTN_STS.
    pub fn press_power_button(&mut self) {
        self.status |= event::POWER_BUTTON;
    }

    /// Reads bytes at `offset` below the timer.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        let image = u64::from(self.status) | u64::from(self.enable) << 16 | u64::from(self.control) << 32;
        (image >> (8 * offset.min(7))) as u32 & tessera_hw_core::mem::mask(size) as u32
    }

    /// Writes bytes at `offset`; true when the guest powers the machine off.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) -> bool {
        // An access may cover several registers: each byte goes to its own, and SLP_EN takes effect last.
        let mut sleep = false;
        for i in 0..u16::from(size) {
            let byte = u16::from((value >> (8 * i)) as u8);
            let at = offset + i;
            let (byte, lane) = if at & 1 != 0 { (byte << 8, 0xff00) } else { (byte, 0x00ff) };
            match at {
                0 | 1 => self.status &= !(byte & event::STATUS),
                2 | 3 => self.enable = self.enable & !lane | byte & event::ENABLES,
                4 | 5 => {
                    let lane = lane & control::WRITABLE;
                    self.control = self.control & !lane | byte & lane;
                    sleep |= byte & control::SLEEP != 0;
                }
                // The timer is read-only.
                _ => {}
            }
        }
        let kind = (self.control & control::SLEEP_TYPE) >> 10;
        if sleep && kind != 0 {
            tracing::debug!(target: UNIMP, "sleep type {kind}: only S5, type 0, is there");
        }
        sleep && kind == 0
    }
}

impl StateMachine for PowerManagement {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = Self { seen: self.seen, ..Self::default() };
    }
    fn check(&self) -> Result<(), &'static str> {
        if self.seen < 1 << 32 { Ok(()) } else { Err("time out of range") }
    }
}
