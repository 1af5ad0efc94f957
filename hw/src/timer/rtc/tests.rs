use super::state::Now;
use super::*;

/// 2026-11-20 20:47:33 UTC, a Friday, and half a second.
const WALL: u64 = 1_795_207_653_500_000_000;

fn at(ns: u64) -> Now {
    Now { ns, wall_ns: WALL + ns }
}

fn read(r: &mut Rtc, index: u8, ns: u64) -> u8 {
    r.set_index(index);
    r.read(at(ns))
}

fn write(r: &mut Rtc, index: u8, value: u8, ns: u64) {
    r.set_index(index);
    r.write(value, at(ns));
}

fn rtc() -> Rtc {
    Rtc::new(1 << 30, 5 << 32, 4)
}

#[test]
fn shows_the_wall_clock_in_every_format() {
    let mut r = rtc();
    let fields = |r: &mut Rtc| [0, 2, 4, 6, 7, 8, 9, 0x32].map(|i| read(r, i, 0));
    assert_eq!(fields(&mut r), [0x33, 0x47, 0x20, 0x06, 0x20, 0x11, 0x26, 0x20]);
    write(&mut r, 0x0b, 0x06, 0);
    assert_eq!(fields(&mut r), [33, 47, 20, 6, 20, 11, 26, 20]);
    write(&mut r, 0x0b, 0x00, 0);
    assert_eq!(read(&mut r, 4, 0), 0x88, "8 pm");
    assert_eq!(read(&mut r, 4, 4 * 3600 * 1_000_000_000), 0x12, "midnight is 12 am");
    assert_eq!(read(&mut r, 0x0d, 0), 0x80);
}

#[test]
fn describes_the_memory() {
    let mut r = rtc();
    let word = |r: &mut Rtc, lo, hi| u64::from(read(r, lo, 0)) | u64::from(read(r, hi, 0)) << 8;
    assert_eq!(word(&mut r, 0x15, 0x16), 640);
    assert_eq!(word(&mut r, 0x17, 0x18), 0xffff);
    assert_eq!(word(&mut r, 0x34, 0x35) << 16, (1 << 30) - (16 << 20));
    assert_eq!((word(&mut r, 0x5b, 0x5c) | u64::from(read(&mut r, 0x5d, 0)) << 16) << 16, 5 << 32);
    assert_eq!(read(&mut r, 0x5f, 0), 3);
    write(&mut r, 0x0f, 0x0a, 0);
    assert_eq!(read(&mut r, 0x0f, 0), 0x0a);
}

#[test]
fn can_be_set() {
    let mut r = rtc();
    write(&mut r, 0x0b, 0x86, 0);
    for (i, v) in [(0, 59), (2, 59), (4, 23), (7, 31), (8, 12), (9, 99), (0x32, 99)] {
        write(&mut r, i, v, 0);
    }
    assert_eq!(read(&mut r, 0, 5_000_000_000), 59, "stands while SET");
    assert_eq!(read(&mut r, 0x0a, 499_900_000) & 0x80, 0, "no update either");
    write(&mut r, 0x0b, 0x06, 5_000_000_000);
    assert_eq!(read(&mut r, 9, 5_000_000_000), 99);
    assert_eq!(read(&mut r, 0x32, 5_000_000_000), 99);
    let saved = tessera_hw_core::device::encode("rtc", 1, &r);
    let back: Rtc = tessera_hw_core::device::decode(&saved, 1).unwrap();
    assert_eq!(tessera_hw_core::device::StateMachine::check(&back), Ok(()));
}

#[test]
fn update_in_progress_precedes_the_second() {
    let mut r = rtc();
    assert_eq!(read(&mut r, 0x0a, 499_700_000), 0x26);
    assert_eq!(read(&mut r, 0x0a, 499_800_000), 0xa6);
    assert_eq!(read(&mut r, 0, 499_800_000), 0x33);
    assert_eq!(read(&mut r, 0, 500_000_000), 0x34);
    assert_eq!(read(&mut r, 0x0a, 500_000_000), 0x26);
}

#[test]
fn update_and_alarm_interrupts() {
    let mut r = rtc();
    read(&mut r, 0, 0);
    write(&mut r, 0x0b, 0x12, 0);
    assert_eq!(r.deadline(at(0)), Some(500_000_000));
    r.catch_up(at(500_000_000));
    assert!(r.interrupt());
    assert_eq!(read(&mut r, 0x0c, 500_000_000) & 0x90, 0x90);
    assert!(!r.interrupt());
    // Every minute at second 40, in six seconds.
    for (i, v) in [(1, 0x40), (3, 0xff), (5, 0xc0)] {
        write(&mut r, i, v, 600_000_000);
    }
    write(&mut r, 0x0b, 0x22, 600_000_000);
    r.catch_up(at(6_400_000_000));
    assert!(!r.interrupt());
    r.catch_up(at(6_500_000_000));
    assert!(r.interrupt());
    assert_eq!(read(&mut r, 0x0c, 6_500_000_000) & 0xa0, 0xa0);
    // A day later at 20:46.
    write(&mut r, 3, 0x46, 7_000_000_000);
    r.catch_up(at(7_000_000_000 + 86_400_000_000_000));
    assert!(r.interrupt(), "skipped seconds are looked at");
}

#[test]
fn periodic_interrupt_has_its_rate() {
    let mut r = rtc();
    write(&mut r, 0x0b, 0x42, 0);
    read(&mut r, 0x0c, 0);
    assert_eq!(r.deadline(at(0)), Some(976_563), "1024 Hz");
    write(&mut r, 0x0a, 0x2f, 0);
    assert_eq!(r.deadline(at(0)), Some(500_000_000), "2 Hz");
    write(&mut r, 0x0a, 0x21, 0);
    assert_eq!(r.deadline(at(0)), Some(3_906_250), "256 Hz");
    write(&mut r, 0x0a, 0x20, 0);
    assert_eq!(r.deadline(at(0)), None);
}

#[test]
fn nonsense_dates_do_no_harm() {
    let mut r = rtc();
    for v in [0xff, 0, 0x9a] {
        for i in [0, 2, 4, 6, 7, 8, 9, 0x32] {
            write(&mut r, i, v, 0);
            read(&mut r, i, 1_000_000_000);
        }
    }
}

#[test]
fn wiring_interrupts_on_time() {
    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let irq = IrqLine::unconnected();
    let rtc = Mc146818::new(1 << 20, 0, 1, irq.clone(), &timers);
    for (port, v) in [(0, 0x0b), (1, 0x42)] {
        rtc.write(port, 1, v);
    }
    rtc.write(0, 1, 0x0c);
    let mut seen = 0;
    for _ in 0..100 {
        timers.clock().advance(1_000_000);
        timers.run_expired();
        seen += u32::from(irq.level());
        rtc.read(1, 1);
        assert!(!irq.level());
    }
    assert!((95..=100).contains(&seen), "{seen} in 100 ms at 1024 Hz");
}
