//! A machine without anything in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::platform::{InvalidMsr, Platform};

/// No APIC, no ports, a stopped clock.
#[derive(Default)]
pub struct NoPlatform {
    /// Set from outside, it makes the CPU stop at its next poll.
    pub stop: Arc<AtomicBool>,
}

impl Platform for NoPlatform {
    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    fn port_in(&mut self, _: u16, size: u32) -> u32 {
        u32::MAX >> (32 - 8 * size)
    }
    fn port_out(&mut self, _: u16, _: u32, _: u32) {}
    fn tsc(&mut self) -> u64 {
        0
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
    fn interrupt_pending(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn take_nmi(&mut self) -> bool {
        false
    }
    fn take_smi(&mut self) -> bool {
        false
    }
    fn take_init(&mut self) -> bool {
        false
    }
    fn take_sipi(&mut self) -> Option<u8> {
        None
    }
    fn event_pending(&self) -> bool {
        self.stop_requested()
    }
    fn tpr(&self) -> u8 {
        0
    }
    fn set_tpr(&mut self, _: u8) {}
    fn apic_base(&self) -> u64 {
        0
    }
    fn set_apic_base(&mut self, _: u64) -> Result<(), InvalidMsr> {
        Err(InvalidMsr)
    }
    fn apic_msr_read(&mut self, _: u32) -> Result<u64, InvalidMsr> {
        Err(InvalidMsr)
    }
    fn apic_msr_write(&mut self, _: u32, _: u64) -> Result<(), InvalidMsr> {
        Err(InvalidMsr)
    }
    fn a20_mask(&self) -> u64 {
        u64::MAX
    }
    fn ferr(&mut self, _: bool) {}
}
