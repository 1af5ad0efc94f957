//! All registers at once, for who exchanges a processor's state between accelerators.
//!
//! The form is that of the register page in xAPIC mode (SDM volume 3, table 11-1), whatever the mode: the ID in bits 31:24, ICR in
//! two halves. What is no state reads as zero and is ignored when it comes: the version, and what follows from other
//! registers (PPR).
//!
//! Not in it, and left as they are: IA32_APIC_BASE, which must be set before, since it decides the mode; IA32_TSC_DEADLINE; what
//! waits outside of IRR (NMI, INIT, start-up), the level of LINT0, and errors that ESR does not show yet.

use tessera_hw_core::cpu::ApicPage;

use super::registers::{self as reg, lvt};
use super::state::{Lapic, Vectors};
use super::timer::Mode;

/// Vectors that no interrupt can have.
const RESERVED_VECTORS: u32 = 0xffff;
const ESR_BITS: u32 = 0xef;
const ICR_LOW_BITS: u32 = 0x000c_cfff;

impl Vectors {
    /// From eight registers.
    fn of(page: &ApicPage, first: u32) -> Vectors {
        let word = |n: u32| {
            let bits = page[(first + n) as usize];
            u64::from(if n == 0 { bits & !RESERVED_VECTORS } else { bits })
        };
        Vectors(std::array::from_fn(|n| word(2 * n as u32) | word(2 * n as u32 + 1) << 32))
    }
}

impl Lapic {
    /// The registers at time `now`.
    pub fn page(&self, now: u64) -> ApicPage {
        std::array::from_fn(|r| match r as u32 {
            reg::VERSION | reg::PPR => 0,
            reg::ID => self.id() << 24,
            r => self.peek_register(r, now).unwrap_or(0),
        })
    }

    /// Takes over registers that [`Self::page`], or another controller of the same kind, had at what is now time `now`.
    pub fn set_page(&mut self, page: &ApicPage, now: u64) {
        let at = |r: u32| page[r as usize];
        self.expire(now);
        if !self.x2apic() {
            self.xapic_id = (at(reg::ID) >> 24) as u8;
            self.ldr = at(reg::LDR) & 0xff00_0000;
        }
        self.tpr = at(reg::TPR) as u8;
        self.dfr = at(reg::DFR) | 0x0fff_ffff;
        self.svr = at(reg::SVR) & 0x1ff;
        self.isr = Vectors::of(page, reg::ISR);
        self.tmr = Vectors::of(page, reg::TMR);
        self.irr = Vectors::of(page, reg::IRR);
        self.esr = at(reg::ESR) & ESR_BITS;
        let to = if self.x2apic() { u32::MAX } else { 0xff00_0000 };
        self.icr = u64::from(at(reg::ICR_LOW) & ICR_LOW_BITS) | u64::from(at(reg::ICR_HIGH) & to) << 32;
        let old = self.timer_mode();
        for (n, (entry, writable)) in self.lvt.iter_mut().zip(lvt::WRITABLE).enumerate() {
            // Of an APIC that software has not enabled yet the LINTs may be open: virtual wire mode.
            *entry = page[reg::LVT_TIMER as usize + n] & writable;
        }
        let mode = self.timer_mode();
        if mode != Mode::TscDeadline || old != mode {
            self.timer.disarm();
        }
        self.timer.divide = (at(reg::DIVIDE) & 0xb) as u8;
        if matches!(mode, Mode::OneShot | Mode::Periodic) {
            self.timer.load_at(at(reg::INITIAL_COUNT), at(reg::CURRENT_COUNT), mode, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intc::lapic::state::Delivery;

    /// An APIC that has something in every register.
    fn busy(mode: u32) -> Lapic {
        let mut a = Lapic::new(0);
        a.write_register(reg::SVR, 0x1f0, 0);
        a.write_register(reg::TPR, 0x23, 0);
        a.write_register(reg::LDR, 0x0400_0000, 0);
        a.write_register(reg::DFR, 0, 0);
        a.write_register(reg::ICR_HIGH, 0x0300_0000, 0);
        a.write_register(reg::ICR_LOW, 0x0c_4044, 0);
        for vector in [0x31, 0x55, 0xf3] {
            a.accept(Delivery::Fixed, vector, vector == 0x55);
        }
        assert_eq!(a.acknowledge(), Some(0xf3));
        a.write_register(reg::LVT_ERROR, 0xfe, 0);
        a.write_register(0x77, 0, 0);
        a.write_register(reg::ESR, 0, 0);
        a.write_register(reg::DIVIDE, 0xb, 0);
        a.write_register(reg::LVT_TIMER, mode << 17 | 0xec, 0);
        a.write_register(reg::INITIAL_COUNT, 1000, 100);
        a
    }

    #[test]
    fn another_apic_goes_on_from_the_page() {
        for (mode, deadline) in [(0, Some(900)), (1, Some(900)), (2, None)] {
            let mut a = busy(mode);
            let page = a.page(300);
            assert_eq!(page[reg::CURRENT_COUNT as usize], if mode == 2 { 0 } else { 800 });
            assert_eq!(page[reg::ESR as usize], 0x80);
            assert_eq!(page[reg::VERSION as usize], 0);
            let mut b = Lapic::new(0);
            b.set_page(&page, 100);
            assert_eq!(b.page(100), page, "mode {mode}");
            // Time has passed differently for the two.
            assert_eq!(b.deadline(), deadline, "mode {mode}");
            assert_eq!(b.signals(), a.signals());
            for apic in [&mut a, &mut b] {
                apic.write_register(reg::EOI, 0, 0);
                // The error's interrupt, which came last.
                assert_eq!(apic.acknowledge(), Some(0xfe));
            }
            assert_eq!(a.page(300), b.page(100));
        }
    }

    #[test]
    fn a_counter_that_has_run_out_stays_so() {
        let mut a = busy(0);
        a.expire(2000);
        let mut b = Lapic::new(0);
        b.set_page(&a.page(2000), 5000);
        assert_eq!((b.page(6000)[reg::CURRENT_COUNT as usize], b.deadline()), (0, None));
    }

    #[test]
    fn what_cannot_be_is_dropped() {
        let mut a = Lapic::new(0);
        a.set_page(&[u32::MAX; 64], 0);
        assert_eq!(a.page(0)[reg::ISR as usize], 0xffff_0000);
        assert_eq!(a.page(0)[reg::LVT_ERROR as usize], 0x1_00ff);
        assert_eq!(a.acknowledge(), None, "all are in service");
        tessera_hw_core::device::StateMachine::check(&a).unwrap();
    }
}
