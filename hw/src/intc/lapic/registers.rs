//! Numbers of the local APIC's registers and their bits. A register's number is its xAPIC offset divided by 16, which is
//! also its x2APIC MSR less 800H.

/// Frequency of the timer before its divider, in Hz: one count is a nanosecond.
pub const TIMER_HZ: u64 = 1_000_000_000;

pub(super) const ID: u32 = 0x02;
pub(super) const VERSION: u32 = 0x03;
pub(super) const TPR: u32 = 0x08;
pub(super) const APR: u32 = 0x09;
pub(super) const PPR: u32 = 0x0a;
pub(super) const EOI: u32 = 0x0b;
pub(super) const LDR: u32 = 0x0d;
pub(super) const DFR: u32 = 0x0e;
pub(super) const SVR: u32 = 0x0f;
pub(super) const ISR: u32 = 0x10;
pub(super) const TMR: u32 = 0x18;
pub(super) const IRR: u32 = 0x20;
pub(super) const ESR: u32 = 0x28;
pub(super) const ICR_LOW: u32 = 0x30;
pub(super) const ICR_HIGH: u32 = 0x31;
pub(super) const LVT_TIMER: u32 = 0x32;
pub(super) const LVT_ERROR: u32 = 0x37;
pub(super) const INITIAL_COUNT: u32 = 0x38;
pub(super) const CURRENT_COUNT: u32 = 0x39;
pub(super) const DIVIDE: u32 = 0x3e;
pub(super) const SELF_IPI: u32 = 0x3f;

/// Whether accesses to register `r` neither show the time nor depend on what the timer has done until now.
pub(super) fn is_timeless(r: u32) -> bool {
    matches!(r, ID | TPR | PPR | EOI | ICR_LOW | ICR_HIGH | SELF_IPI)
}

/// Version 0x14, six LVT entries, no EOI broadcast suppression.
pub(super) const VERSION_VALUE: u32 = 0x0005_0014;

/// Order of the LVT entries: register numbers 0x32 to 0x37.
pub(super) mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const MASKED: u32 = 1 << 16;
    /// Writable bits: all have vector and mask; LINTs and the monitors a delivery mode; LINTs polarity and trigger; the
    /// timer its mode.
    pub const WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
}

/// ESR bits.
pub(super) mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// SVR bit: the APIC is enabled by software.
pub(super) const SVR_ENABLE: u32 = 1 << 8;

/// IA32_APIC_BASE bits.
pub(super) mod base {
    pub const BSP: u64 = 1 << 8;
    pub const EXTD: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    /// Physical addresses of up to 52 bits.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    pub const RESET: u64 = 0xfee0_0000 | ENABLE;
}
