use super::*;

#[test]
fn powers_off() {
    let mut p = PowerManagement::default();
    assert_eq!(p.read(4, 2), 1, "ACPI mode");
    assert!(!p.write(4, 2, 0x0001));
    assert!(!p.write(4, 2, 0x2400), "type 1 is no power-off");
    assert!(p.write(4, 2, 0x2000));
    assert_eq!(p.read(4, 2), 1, "SLP_EN reads as 0, SCI_EN cannot be cleared");
    let events = Events::new();
    let pm = AcpiPm::new(IrqLine::unconnected(), events.clone(), &Timers::new(Arc::new(Clock::manual(1))));
    pm.write(5, 1, 0x20);
    assert_eq!(events.take(), Some(MachineEvent::Shutdown), "by byte");
}

#[test]
fn the_power_button_interrupts_until_acknowledged() {
    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let sci = IrqLine::unconnected();
    let pm = AcpiPm::new(sci.clone(), Events::new(), &timers);
    pm.press_power_button();
    assert!(!sci.level(), "not enabled");
    pm.write(2, 2, 0xffff);
    assert_eq!(pm.read(0, 4), 0x0521_0100);
    assert!(sci.level());
    pm.write(0, 2, 0x0100);
    assert!(!sci.level());
}

#[test]
fn the_timer_counts_and_announces_its_highest_bit() {
    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let sci = IrqLine::unconnected();
    let pm = AcpiPm::new(sci.clone(), Events::new(), &timers);
    timers.clock().advance(1_000_000_000);
    assert_eq!(pm.read(8, 4), 3_579_545);
    assert_eq!(pm.read(10, 2), 3_579_545 >> 16);
    pm.write(2, 2, 1);
    let due = timers.next_deadline().unwrap();
    timers.clock().advance(due - 1_000_000_000);
    timers.run_expired();
    assert!(sci.level());
    assert_eq!(pm.read(8, 4), 0x8000_0000);
    pm.write(0, 2, 1);
    assert!(!sci.level());
    assert!(timers.next_deadline().unwrap() > due);
}
