use super::*;

/// Nanoseconds at which `c` cycles have passed.
fn at(c: u64) -> u64 {
    crate::timer::to_ns(c, PIT_HZ)
}

fn set(p: &mut Pit, counter: u8, mode: u8, count: u16, c: u64) {
    p.write(3, counter << 6 | 0x30 | mode << 1, at(c));
    p.write(counter, count as u8, at(c));
    p.write(counter, (count >> 8) as u8, at(c));
}

fn count(p: &mut Pit, counter: u8, c: u64) -> u16 {
    p.write(3, counter << 6, at(c));
    u16::from(p.read(counter, at(c))) | u16::from(p.read(counter, at(c))) << 8
}

fn out(p: &mut Pit, counter: u8, c: u64) -> bool {
    p.write(3, 0xe0 | 2 << counter, at(c));
    p.read(counter, at(c)) & 0x80 != 0
}

#[test]
fn mode_0_counts_once() {
    let mut p = Pit::default();
    set(&mut p, 0, 0, 1000, 0);
    assert_eq!(count(&mut p, 0, 400), 600);
    assert!(!out(&mut p, 0, 999));
    assert_eq!(p.deadline(), Some(at(1000)));
    assert!(!p.take_rising_edge(at(999)));
    assert!(p.take_rising_edge(at(1000)));
    assert!(out(&mut p, 0, 1000) && p.irq_level(at(1000)));
    assert_eq!(p.deadline(), None);
    assert_eq!(count(&mut p, 0, 1001), 0xffff, "counts on");
}

#[test]
fn mode_2_is_periodic() {
    let mut p = Pit::default();
    set(&mut p, 0, 2, 100, 0);
    assert!(out(&mut p, 0, 98) && !out(&mut p, 0, 99) && out(&mut p, 0, 100));
    assert_eq!(count(&mut p, 0, 130), 70);
    assert!(p.take_rising_edge(at(730)), "late: once");
    assert!(!p.take_rising_edge(at(799)));
    assert_eq!(p.deadline(), Some(at(800)));
    // A new count waits for the end of the period.
    p.write(0, 200, at(750));
    p.write(0, 0, at(750));
    assert_eq!(count(&mut p, 0, 760), 40);
    assert!(p.take_rising_edge(at(800)));
    assert_eq!(count(&mut p, 0, 810), 190);
    assert_eq!(p.deadline(), Some(at(1000)));
}

#[test]
fn mode_3_is_a_square_wave() {
    let mut p = Pit::default();
    set(&mut p, 0, 3, 0, 0);
    assert!(out(&mut p, 0, 0x7fff) && !out(&mut p, 0, 0x8000) && out(&mut p, 0, 0x1_0000));
    assert_eq!(count(&mut p, 0, 0x1000), 0xe000);
    assert_eq!(count(&mut p, 0, 0x9000), 0xe000);
    assert_eq!(p.deadline(), Some(at(0x1_0000)));
    let mut p = Pit::default();
    set(&mut p, 0, 3, 5, 0);
    let wave: Vec<bool> = (0..10).map(|c| out(&mut p, 0, c)).collect();
    assert_eq!(wave, [true, true, true, false, false].repeat(2), "odd counts: one more high");
}

#[test]
fn gate_2_starts_stops_and_triggers() {
    let mut p = Pit::default();
    set(&mut p, 2, 0, 1000, 0);
    assert_eq!(count(&mut p, 2, 500), 1000, "gate low");
    p.write_control_port(1, at(500));
    assert_eq!(count(&mut p, 2, 600), 900);
    p.write_control_port(0, at(700));
    assert_eq!(count(&mut p, 2, 5000), 800);
    p.write_control_port(1, at(5000));
    assert_eq!(p.read_control_port(at(5799)) & 0x21, 1);
    assert_eq!(p.read_control_port(at(5800)) & 0x21, 0x21);
    // Mode 1: a one-shot that the gate triggers.
    set(&mut p, 2, 1, 50, 6000);
    assert!(out(&mut p, 2, 6100));
    p.write_control_port(0, at(6200));
    p.write_control_port(1, at(6300));
    assert!(!out(&mut p, 2, 6349) && out(&mut p, 2, 6350));
    // Mode 5: a strobe that the gate triggers.
    set(&mut p, 2, 5, 50, 7000);
    p.write_control_port(0, at(7000));
    p.write_control_port(1, at(7100));
    assert!(out(&mut p, 2, 7149) && !out(&mut p, 2, 7150) && out(&mut p, 2, 7151));
}

#[test]
fn mode_4_strobes_once() {
    let mut p = Pit::default();
    set(&mut p, 0, 4, 10, 0);
    assert!(out(&mut p, 0, 9) && !out(&mut p, 0, 10) && out(&mut p, 0, 11));
    assert_eq!(p.deadline(), Some(at(11)));
    assert!(p.take_rising_edge(at(20)) && p.deadline().is_none());
}

#[test]
fn latches_and_reads_back() {
    let mut p = Pit::default();
    set(&mut p, 1, 2, 0x1234, 0);
    p.write(3, 0x40, at(0x34));
    assert_eq!(p.read(1, at(0x1000)), 0x00, "latched, low byte");
    p.write(3, 0x40, at(0x1000));
    assert_eq!(p.read(1, at(0x1000)), 0x12, "a second latch is ignored until the first is read");
    p.write(3, 0xc4, at(0x1234));
    assert_eq!(p.read(1, 0), 0xb4, "status comes first: high, loaded, low-high, mode 2");
    assert_eq!(u16::from(p.read(1, 0)) | u16::from(p.read(1, 0)) << 8, 0x1234);
    p.write(3, 0x54, 0);
    p.write(3, 0xe4, 0);
    assert_eq!(p.read(1, 0), 0xd4, "no count yet");
    p.write(3, 0x64, 0);
    p.write(1, 0x10, 0);
    assert_eq!(p.read(1, 0), 0x10, "high byte only");
    assert_eq!(p.read(3, 0), 0xff);
}

#[test]
fn counts_in_decimal() {
    let mut p = Pit::default();
    p.write(3, 0x35, 0);
    p.write(0, 0x00, 0);
    p.write(0, 0x10, 0);
    assert_eq!(count(&mut p, 0, 1), 0x0999);
    assert_eq!(p.deadline(), Some(at(1000)));
    p.write(3, 0x31, 0);
    p.write(0, 0x05, 0);
    p.write(0, 0x00, 0);
    assert_eq!(count(&mut p, 0, 6), 0x9999);
}

#[test]
fn refresh_toggles() {
    let mut p = Pit::default();
    let flips =
        (0..100).filter(|i| p.read_control_port(i * 1000) ^ p.read_control_port(i * 1000 + 1000) == 0x10);
    assert!((5..8).contains(&flips.count()), "every 15 us");
}

#[test]
fn interrupts_come_from_the_timer_queue() {
    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let counter = Arc::new(Count::default());
    let pit = I8254::new(IrqLine::new(counter.clone(), 0), &timers);
    let ports = PitPorts(pit.clone());
    // 1000 Hz.
    for (port, v) in [(3, 0x34), (0, 0xa9), (0, 0x04)] {
        ports.write(port, 1, v);
    }
    for _ in 0..1000 {
        timers.clock().advance(100_000);
        timers.run_expired();
    }
    let n = *lock(&counter.0);
    assert!((98..=101).contains(&n), "{n} edges in 100 ms");
}

#[derive(Default)]
struct Count(Mutex<u32>);
impl tessera_hw_core::irq::IrqSink for Count {
    fn set_irq(&self, _pin: u32, level: bool) {
        *lock(&self.0) += u32::from(level);
    }
}
