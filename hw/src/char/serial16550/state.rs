//! The UART's registers and FIFOs. Register names are the data sheet's.

use serde::{Deserialize, Serialize};
use tessera_hw_core::device::StateMachine;

/// Bytes in each FIFO.
const FIFO: usize = 16;

/// IER bits.
mod ier {
    pub const RX: u8 = 1 << 0;
    pub const THRE: u8 = 1 << 1;
    pub const LINE: u8 = 1 << 2;
    pub const MODEM: u8 = 1 << 3;
}
/// LSR bits.
pub(super) mod lsr {
    pub const DATA_READY: u8 = 1 << 0;
    pub const OVERRUN: u8 = 1 << 1;
    pub const BREAK: u8 = 1 << 4;
    pub const THR_EMPTY: u8 = 1 << 5;
    pub const TX_EMPTY: u8 = 1 << 6;
    pub const FIFO_ERROR: u8 = 1 << 7;
    /// What reading clears.
    pub const ERRORS: u8 = 0x1e;
}
/// MCR bits.
mod mcr {
    pub const LOOPBACK: u8 = 1 << 4;
    pub const MASK: u8 = 0x1f;
}
const LCR_DLAB: u8 = 1 << 7;
const LCR_BREAK: u8 = 1 << 6;
const FCR_ENABLE: u8 = 1 << 0;
/// CTS, DSR and carrier: a peer is there and ready.
const PEER_READY: u8 = 0xb0;

/// A received character.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Received {
    data: u8,
    /// LSR error bits that belong to it.
    errors: u8,
}

/// A 16550A. Times are guest nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Uart {
    divisor: u16,
    ier: u8,
    lcr: u8,
    mcr: u8,
    /// Inputs in the high half, their changes since the last read in the low half.
    msr: u8,
    scr: u8,
    fcr: u8,
    overrun: bool,
    rx: [Received; FIFO],
    rx_len: u8,
    tx: [u8; FIFO],
    tx_len: u8,
    /// The transmitter became empty and IIR has not shown it yet.
    thre_pending: bool,
    /// When four character times have passed without the receive FIFO being touched.
    timeout_at: Option<u64>,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            divisor: 12,
            ier: 0,
            lcr: 0,
            mcr: 0,
            msr: PEER_READY,
            scr: 0,
            fcr: 0,
            overrun: false,
            rx: [Received::default(); FIFO],
            rx_len: 0,
            tx: [0; FIFO],
            tx_len: 0,
            thre_pending: false,
            timeout_at: None,
        }
    }
}

/// Whether reading `reg` as `value` can have changed an interrupt.
pub(super) fn read_has_effect(reg: u8, value: u8) -> bool {
    match reg {
        0 | 2 | 6 => true,
        5 => value & lsr::ERRORS != 0,
        _ => false,
    }
}

impl Uart {
    fn fifo_enabled(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn rx_capacity(&self) -> usize {
        if self.fifo_enabled() { FIFO } else { 1 }
    }

    fn trigger(&self) -> u8 {
        if !self.fifo_enabled() {
            return 1;
        }
        match self.fcr >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// Nanoseconds that one character takes on the line (1.8432 MHz / 16 / divisor bits a second).
    fn character_ns(&self) -> u64 {
        let bits = 1
            + (5 + u64::from(self.lcr & 3))
            + u64::from(self.lcr >> 3 & 1)
            + 1
            + u64::from(self.lcr >> 2 & 1);
        bits * u64::from(self.divisor.max(1)) * 1_000_000_000 / 115_200
    }

    fn touch_rx(&mut self, now: u64) {
        let waiting = self.rx_len > 0 && self.fifo_enabled();
        self.timeout_at = waiting.then(|| now.saturating_add(4 * self.character_ns()));
    }

    /// How many characters `receive` takes without an overrun. None while the receiver is looped back.
    pub fn rx_room(&self) -> usize {
        if self.mcr & mcr::LOOPBACK != 0 { 0 } else { self.rx_capacity().saturating_sub(self.rx_len.into()) }
    }

    fn push_rx(&mut self, data: u8, errors: u8) {
        if usize::from(self.rx_len) >= self.rx_capacity() {
            self.overrun = true;
            if !self.fifo_enabled() {
                // Without FIFO the new character replaces the one not read.
                self.rx[0] = Received { data, errors };
            }
            return;
        }
        self.rx[usize::from(self.rx_len)] = Received { data, errors };
        self.rx_len += 1;
    }

    /// Receives characters; those that do not fit are overruns.
    pub fn receive(&mut self, data: &[u8], now: u64) {
        data.iter().for_each(|&b| self.push_rx(b, 0));
        self.touch_rx(now);
    }

    /// Receives a break: one zero character marked as such.
    pub fn receive_break(&mut self, now: u64) {
        self.push_rx(0, lsr::BREAK);
        self.touch_rx(now);
    }

    /// Output that the backend has not taken.
    pub fn tx_waiting(&self) -> &[u8] {
        &self.tx[..usize::from(self.tx_len)]
    }

    /// The backend took the first `n` bytes of [`Self::tx_waiting`].
    pub fn tx_taken(&mut self, n: usize) {
        let n = n.min(self.tx_len.into());
        if n > 0 {
            self.tx.copy_within(n..usize::from(self.tx_len), 0);
            self.tx_len -= n as u8;
            if self.tx_len == 0 {
                self.thre_pending = true;
            }
        }
    }

    /// Whether the guest holds the line in the break state.
    pub fn sends_break(&self) -> bool {
        self.lcr & LCR_BREAK != 0 && self.mcr & mcr::LOOPBACK == 0
    }

    /// Whether an access to `reg` depends on the time; the busiest mostly do not, and spare the clock.
    pub(super) fn needs_time(&self, reg: u8, write: bool) -> bool {
        let touches_rx = match reg {
            0 => !write || self.mcr & mcr::LOOPBACK != 0,
            2 => write,
            _ => false,
        };
        touches_rx || self.timeout_at.is_some()
    }

    fn timed_out(&self, now: u64) -> bool {
        self.timeout_at.is_some_and(|t| now >= t)
    }

    /// Bits 3:0 of IIR: the interrupt of the highest priority, or 1 for none.
    fn source(&self, now: u64) -> u8 {
        if self.ier & ier::LINE != 0 && self.line_status() & lsr::ERRORS != 0 {
            0x6
        } else if self.ier & ier::RX != 0 && self.rx_len >= self.trigger() {
            0x4
        } else if self.ier & ier::RX != 0 && self.timed_out(now) {
            0xc
        } else if self.ier & ier::THRE != 0 && self.thre_pending {
            0x2
        } else if self.ier & ier::MODEM != 0 && self.modem_status() & 0xf != 0 {
            0x0
        } else {
            0x1
        }
    }

    /// Level of the interrupt output.
    pub fn interrupt(&self, now: u64) -> bool {
        self.source(now) != 1
    }

    /// When the interrupt output may change by itself.
    pub fn deadline(&self, now: u64) -> Option<u64> {
        self.timeout_at.filter(|&t| self.ier & ier::RX != 0 && t > now)
    }

    fn line_status(&self) -> u8 {
        let received = &self.rx[..usize::from(self.rx_len)];
        let mut v = received.first().map_or(0, |r| lsr::DATA_READY | r.errors);
        if self.overrun {
            v |= lsr::OVERRUN;
        }
        if self.fifo_enabled() && received.iter().any(|r| r.errors != 0) {
            v |= lsr::FIFO_ERROR;
        }
        if self.tx_len == 0 {
            v |= lsr::THR_EMPTY | lsr::TX_EMPTY;
        }
        v
    }

    fn modem_status(&self) -> u8 {
        self.msr
    }

    /// Sets the modem inputs (MSR bits 7:4), noting changes. RI notes only its trailing edge.
    fn set_modem_inputs(&mut self, inputs: u8) {
        let changed = (self.msr ^ inputs) >> 4;
        let ring_ended = self.msr & !inputs & 0x40 != 0;
        let deltas = changed & 0xb | if ring_ended { 4 } else { 0 };
        self.msr = inputs & 0xf0 | self.msr & 0xf | deltas;
    }

    /// Reads register `reg` (0 to 7).
    pub fn read(&mut self, reg: u8, now: u64) -> u8 {
        match reg & 7 {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor as u8,
            0 => {
                let head = self.rx[0];
                if self.rx_len > 0 {
                    self.rx.copy_within(1..usize::from(self.rx_len), 0);
                    self.rx_len -= 1;
                    self.touch_rx(now);
                }
                head.data
            }
            1 if self.lcr & LCR_DLAB != 0 => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let source = self.source(now);
                if source == 2 {
                    self.thre_pending = false;
                }
                source | if self.fifo_enabled() { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let v = self.line_status();
                self.overrun = false;
                if self.rx_len > 0 {
                    self.rx[0].errors = 0;
                }
                v
            }
            6 => {
                let v = self.modem_status();
                self.msr &= 0xf0;
                v
            }
            _ => self.scr,
        }
    }

    /// Writes register `reg` (0 to 7). Afterwards [`Self::tx_waiting`] may have grown.
    pub fn write(&mut self, reg: u8, value: u8, now: u64) {
        match reg & 7 {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => self.write_thr(value, now),
            1 if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            1 => {
                let enabled = value & !self.ier;
                self.ier = value & 0xf;
                if enabled & ier::THRE != 0 && self.tx_len == 0 {
                    self.thre_pending = true;
                }
            }
            2 => self.write_fcr(value, now),
            3 => self.lcr = value,
            4 => {
                self.mcr = value & mcr::MASK;
                // Looped back, the outputs DTR, RTS, OUT1, OUT2 feed DSR, CTS, RI, DCD.
                let m = self.mcr;
                let looped = (m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4;
                self.set_modem_inputs(if m & mcr::LOOPBACK != 0 { looped } else { PEER_READY });
            }
            7 => self.scr = value,
            // LSR and MSR are read-only.
            _ => {}
        }
    }

    fn write_thr(&mut self, value: u8, now: u64) {
        self.thre_pending = false;
        if self.mcr & mcr::LOOPBACK != 0 {
            self.push_rx(value, 0);
            self.touch_rx(now);
            self.thre_pending = true;
            return;
        }
        let room = if self.fifo_enabled() { FIFO } else { 1 };
        if usize::from(self.tx_len) < room {
            self.tx[usize::from(self.tx_len)] = value;
            self.tx_len += 1;
        } else {
            // The guest did not wait for THRE: the last character is overwritten.
            self.tx[usize::from(self.tx_len) - 1] = value;
        }
    }

    fn write_fcr(&mut self, value: u8, now: u64) {
        let toggled = (self.fcr ^ value) & FCR_ENABLE != 0;
        let value = if value & FCR_ENABLE != 0 { value } else { 0 };
        if toggled || value & 2 != 0 {
            self.rx_len = 0;
            self.touch_rx(now);
        }
        if (toggled || value & 4 != 0) && self.tx_len > 0 {
            self.tx_len = 0;
            self.thre_pending = true;
        }
        self.fcr = value & 0xc9;
        self.touch_rx(now);
    }
}

impl StateMachine for Uart {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = Self::default();
    }
    fn check(&self) -> Result<(), &'static str> {
        if usize::from(self.rx_len) > FIFO || usize::from(self.tx_len) > FIFO {
            return Err("FIFO longer than 16 bytes");
        }
        Ok(())
    }
}
