use tessera_hw_core::cpu::signal;

use super::registers as reg;
use super::*;

/// Software-enabled, as a kernel leaves it.
fn apic() -> Lapic {
    let mut a = Lapic::new(0);
    a.write_register(reg::SVR, 0x1ff, 0);
    a
}

fn fixed(a: &mut Lapic, v: u8) {
    a.accept(Delivery::Fixed, v, false);
}

fn bit(a: &mut Lapic, base: u32, v: u8) -> bool {
    a.read_register(base + u32::from(v >> 5), 0).unwrap() >> (v & 31) & 1 != 0
}

#[test]
fn delivers_by_priority_class() {
    let mut a = apic();
    fixed(&mut a, 0x41);
    fixed(&mut a, 0x45);
    fixed(&mut a, 0x33);
    assert_eq!(a.signals(), signal::INTR);
    assert_eq!(a.acknowledge(), Some(0x45));
    assert!(bit(&mut a, reg::ISR, 0x45) && !bit(&mut a, reg::IRR, 0x45));
    assert_eq!(a.ppr(), 0x40);
    assert_eq!(a.acknowledge(), None, "same class");
    assert_eq!(a.signals(), 0);
    fixed(&mut a, 0x50);
    assert_eq!(a.acknowledge(), Some(0x50));
    assert_eq!(a.write_register(reg::EOI, 0, 0), Effect::None);
    assert_eq!(a.ppr(), 0x40);
    a.write_register(reg::EOI, 0, 0);
    assert_eq!(a.acknowledge(), Some(0x41));
}

#[test]
fn task_priority_holds_back() {
    let mut a = apic();
    a.set_tpr(0x50);
    fixed(&mut a, 0x5f);
    assert_eq!(a.signals(), 0);
    assert_eq!(a.cr8(), 5);
    a.set_tpr(0x4f);
    assert_eq!(a.acknowledge(), Some(0x5f));
    a.write_register(reg::EOI, 0, 0);
    a.write_register(reg::EOI, 0, 0);
}

#[test]
fn level_interrupts_report_their_end() {
    let mut a = apic();
    a.accept(Delivery::Fixed, 0x62, true);
    assert_eq!(a.acknowledge(), Some(0x62));
    assert!(bit(&mut a, reg::TMR, 0x62));
    assert_eq!(a.write_register(reg::EOI, 0, 0), Effect::EndOfInterrupt(0x62));
    fixed(&mut a, 0x62);
    a.acknowledge();
    assert_eq!(a.write_register(reg::EOI, 0, 0), Effect::None, "an edge clears TMR");
}

#[test]
fn the_8259s_pass_through_lint0() {
    let mut a = Lapic::new(0);
    a.set_lint0(true);
    assert!(a.wants_pic(), "virtual wire after reset");
    assert_eq!(a.signals(), signal::INTR);
    a.write_register(reg::SVR, 0x1ff, 0);
    a.write_register(0x35, 0x1_0700, 0);
    assert_eq!(a.signals(), 0, "masked");
    a.set_lint0(false);
    a.write_register(0x35, 0x41, 0);
    a.set_lint0(true);
    assert_eq!(a.acknowledge(), Some(0x41), "fixed mode: the entry's own vector");
    a.set_base_msr(0xfee0_0100).unwrap();
    assert!(a.wants_pic(), "disabled: the pin is INTR");
    assert_eq!(Lapic::new(1).signals(), 0);
}

#[test]
fn software_disable_masks_and_refuses() {
    let mut a = apic();
    a.write_register(reg::LVT_TIMER, 0x40, 0);
    a.write_register(reg::SVR, 0xff, 0);
    assert_eq!(a.read_register(reg::LVT_TIMER, 0), Some(0x1_0040));
    a.write_register(reg::LVT_TIMER, 0x40, 0);
    assert_eq!(a.read_register(reg::LVT_TIMER, 0), Some(0x1_0040), "cannot be unmasked");
    fixed(&mut a, 0x40);
    assert_eq!(a.signals(), 0);
    a.accept(Delivery::Nmi, 0, false);
    assert_eq!(a.signals(), signal::NMI);
    assert!(a.take_nmi() && !a.take_nmi());
}

#[test]
fn one_shot_timer() {
    let mut a = apic();
    a.write_register(reg::DIVIDE, 0x3, 0);
    a.write_register(reg::LVT_TIMER, 0x40, 0);
    a.write_register(reg::INITIAL_COUNT, 1000, 100);
    assert_eq!(a.deadline(), Some(100 + 16_000));
    assert_eq!(a.read_register(reg::CURRENT_COUNT, 100 + 160), Some(990));
    a.expire(16_099);
    assert_eq!(a.signals(), 0);
    a.expire(16_100);
    assert_eq!(a.acknowledge(), Some(0x40));
    assert_eq!(a.deadline(), None);
    assert_eq!(a.read_register(reg::CURRENT_COUNT, 20_000), Some(0));
}

#[test]
fn periodic_timer_stays_in_step_when_late() {
    let mut a = apic();
    a.write_register(reg::DIVIDE, 0xb, 0);
    a.write_register(reg::LVT_TIMER, 0x2_0040, 0);
    a.write_register(reg::INITIAL_COUNT, 1000, 0);
    a.expire(3500);
    assert_eq!(a.acknowledge(), Some(0x40));
    assert_eq!(a.acknowledge(), None, "one, not three");
    assert_eq!(a.deadline(), Some(4000));
    assert_eq!(a.read_register(reg::CURRENT_COUNT, 3600), Some(400));
    a.write_register(reg::LVT_TIMER, 0x3_0040, 3600);
    assert_eq!(a.deadline(), None, "masked: nobody needs to wake");
    a.write_register(reg::LVT_TIMER, 0x2_0040, 9100);
    assert_eq!(a.signals(), 0, "what passed under the mask is lost");
    assert_eq!(a.deadline(), Some(10_000));
    a.write_register(reg::INITIAL_COUNT, 0, 9200);
    assert_eq!(a.deadline(), None);
}

#[test]
fn tsc_deadline_timer() {
    let clock = Clock::manual(2_000_000_000);
    let mut a = apic();
    a.set_tsc_deadline(5000, &clock);
    assert_eq!(a.tsc_deadline(0), 0, "not in that mode");
    a.write_register(reg::LVT_TIMER, 0x4_0040, 0);
    a.set_tsc_deadline(5000, &clock);
    assert_eq!(a.tsc_deadline(0), 5000);
    let at = a.deadline().unwrap();
    assert!((2500..2510).contains(&at), "{at}");
    a.set_tsc_offset(2000, &clock);
    let at = a.deadline().unwrap();
    assert!((1500..1510).contains(&at), "this CPU's TSC is ahead: {at}");
    a.expire(at);
    assert_eq!(a.acknowledge(), Some(0x40));
    assert_eq!(a.tsc_deadline(at), 0);
    a.write_register(reg::EOI, 0, 0);
    a.set_tsc_deadline(1, &clock);
    assert_eq!(a.acknowledge(), Some(0x40), "in the past: at once");
    a.set_tsc_deadline(1 << 40, &clock);
    a.write_register(reg::LVT_TIMER, 0x40, 0);
    assert_eq!(a.deadline(), None, "another mode disarms it");
}

#[test]
fn interprocessor_interrupts() {
    let mut a = apic();
    a.write_register(reg::ICR_HIGH, 0x0300_0000, 0);
    let Effect::Ipi(ipi) = a.write_register(reg::ICR_LOW, 0x4_00fd & 0xffff, 0) else { panic!("no IPI") };
    assert_eq!(
        (ipi.destination, ipi.vector, ipi.delivery),
        (Destination::Physical(3), 0xfd, Delivery::Fixed)
    );
    let Effect::Ipi(ipi) = a.write_register(reg::ICR_LOW, 0x000c_4500, 0) else { panic!("no IPI") };
    assert_eq!((ipi.destination, ipi.delivery), (Destination::AllBut(0), Delivery::Init));
    assert_eq!(a.write_register(reg::ICR_LOW, 0x0008_8500, 0), Effect::None, "INIT de-assert");
    assert_eq!(a.read_register(reg::ICR_LOW, 0).unwrap() & 0x1000, 0, "never busy");
    assert_eq!(a.write_register(reg::ICR_LOW, 0x4_0005, 0), Effect::None);
    a.write_register(reg::ESR, 0, 0);
    assert_eq!(a.read_register(reg::ESR, 0), Some(0x20), "illegal vector");
}

#[test]
fn init_and_start_up() {
    let mut a = Lapic::new(1);
    a.write_register(reg::SVR, 0x1ff, 0);
    a.accept(Delivery::Startup, 8, false);
    assert_eq!(a.take_sipi(), Some(8), "waits for it from power-on");
    a.accept(Delivery::Startup, 9, false);
    assert_eq!(a.signals(), 0, "and not once it runs");
    a.accept(Delivery::Init, 0, false);
    a.accept(Delivery::Startup, 9, false);
    assert_eq!(a.signals(), signal::INIT | signal::SIPI);
    assert!(a.take_init());
    assert_eq!(a.read_register(reg::SVR, 0), Some(0xff));
    assert_eq!(a.take_sipi(), Some(9));
}

#[test]
fn x2apic_mode() {
    let mut a = Lapic::new(17);
    assert_eq!(a.read_x2apic(0x802, 0), Err(GpFault));
    assert_eq!(a.set_base_msr(0xfee0_0400), Err(GpFault), "not from disabled");
    a.set_base_msr(0xfee0_0c00).unwrap();
    assert_eq!(a.window(), None);
    assert_eq!(a.set_base_msr(0xfee0_0800), Err(GpFault), "not back to xAPIC");
    assert_eq!(a.set_base_msr(0xfee0_0c01), Err(GpFault), "reserved bit");
    assert_eq!(a.read_x2apic(0x802, 0), Ok(17));
    assert_eq!(a.read_x2apic(0x80d, 0), Ok(0x1_0002));
    assert!(a.matches(Destination::Logical(0x1_0003)) && !a.matches(Destination::Logical(0x2)));
    a.write_x2apic(0x80f, 0x1ff, 0).unwrap();
    assert_eq!(a.write_x2apic(0x80b, 1, 0), Err(GpFault));
    assert_eq!(a.write_x2apic(0x802, 1, 0), Err(GpFault), "read-only");
    assert_eq!(a.write_x2apic(0x808, 0x100, 0), Err(GpFault), "reserved bits");
    assert_eq!(a.read_x2apic(0x80e, 0), Err(GpFault), "no DFR");
    let Ok(Effect::Ipi(ipi)) = a.write_x2apic(0x830, 0x1234_5678_0000_00fb, 0) else { panic!("no IPI") };
    assert_eq!(ipi.destination, Destination::Physical(0x1234_5678));
    assert_eq!(a.read_x2apic(0x830, 0), Ok(0x1234_5678_0000_00fb));
    let Ok(Effect::Ipi(ipi)) = a.write_x2apic(0x83f, 0xf2, 0) else { panic!("no IPI") };
    assert_eq!((ipi.destination, ipi.vector), (Destination::OnlyApic(17), 0xf2));
    assert_eq!(a.read_x2apic(0x830, 0), Ok(0x1234_5678_0000_00fb), "SELF IPI is another register");
    a.set_base_msr(0xfee0_0000).unwrap();
    a.set_base_msr(0xfee0_0800).unwrap();
    assert_eq!(a.read_register(reg::SVR, 0), Some(0xff), "as after power-on");
}

#[test]
fn logical_destinations_in_xapic_mode() {
    let mut a = apic();
    a.write_register(reg::LDR, 0x0400_0000, 0);
    assert!(a.matches(Destination::Logical(0x0c)) && !a.matches(Destination::Logical(0x03)));
    a.write_register(reg::DFR, 0x0fff_ffff, 0);
    a.write_register(reg::LDR, 0x2400_0000, 0);
    assert!(a.matches(Destination::Logical(0x26)) && !a.matches(Destination::Logical(0x16)));
    assert!(a.matches(Destination::Physical(0)) && !a.matches(Destination::Physical(1)));
}

#[test]
fn wiring_kicks_interrupts_itself_and_answers_the_page() {
    use std::sync::atomic::AtomicU32;

    use crate::intc::ioapic::IoApic;

    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let bus = ApicBus::new();
    let cpus: Vec<_> = (0..2).map(|i| LocalApic::new(i, Arc::downgrade(&bus), &timers)).collect();
    bus.connect(cpus.clone(), &IoApic::new(bus.clone()));
    let kicks = Arc::new(AtomicU32::new(0));
    let counted = kicks.clone();
    cpus[0].set_kick(Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let cpu = &cpus[0];
    cpu.mmio_write(0xf0, 4, 0x1ff);
    cpu.mmio_write(0x3e0, 4, 0xb);
    cpu.mmio_write(0x320, 4, 0x2_00ec);
    cpu.mmio_write(0x380, 4, 1_000_000);
    for round in 1..=3 {
        timers.clock().advance(1_000_000);
        timers.run_expired();
        assert!(cpu.pending());
        assert_eq!(kicks.load(Ordering::Relaxed), round);
        assert_eq!(cpu.acknowledge(), Some(0xec));
        assert_eq!(cpu.acknowledge(), None);
        cpu.mmio_write(0xb0, 4, 0);
    }
    cpu.mmio_write(0x300, 4, 0x4_00f0);
    assert_eq!(cpu.acknowledge(), Some(0xf0), "self IPI");
    cpu.mmio_write(0x300, 4, 0xc_4500);
    assert!(!cpu.take_init() && cpus[1].take_init());
    cpu.mmio_write(0x80, 4, 0x30);
    assert_eq!((cpu.cr8(), cpu.mmio_read(0x80, 4)), (3, 0x30));
    assert!(bus.deliver_msi(0xfee0_0000, 0x4051));
    cpu.mmio_write(0xb0, 4, 0);
    assert_eq!(cpu.acknowledge(), Some(0x51));
    assert!(!bus.deliver_msi(0xfed0_0000, 0x51));
}
