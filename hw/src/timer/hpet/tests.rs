use tessera_hw_core::irq::IrqSink;

use super::*;

fn enabled() -> Hpet {
    let mut h = Hpet::default();
    h.write(0x10, 8, 1, 0);
    h
}

#[test]
fn identifies_itself_and_counts_in_tens_of_nanoseconds() {
    let mut h = Hpet::default();
    assert_eq!(h.read(0, 8, 0), 0x0098_9680_8086_a201);
    assert_eq!(h.read(4, 4, 0), 10_000_000, "femtoseconds");
    assert_eq!(h.read(0xf0, 8, 1000), 0, "stopped");
    h.write(0xf4, 4, 1, 1000);
    h.write(0x10, 4, 1, 1000);
    assert_eq!(h.read(0xf0, 8, 2005), 0x1_0000_0064);
    h.write(0x10, 4, 0, 3000);
    assert_eq!(h.read(0xf0, 8, 9000), 0x1_0000_00c8);
    assert_eq!(h.read(0x3f8, 8, 0), 0);
}

#[test]
fn one_shot() {
    let mut h = enabled();
    h.write(0x100, 4, 0x4, 0);
    h.write(0x108, 8, 500, 100);
    assert_eq!(h.deadline(), Some(5000));
    assert_eq!(h.expire(4999), 0);
    assert_eq!(h.expire(5000), 1);
    assert_eq!(h.deadline(), None, "64 bits do not come round");
    // 32 bits wide it comes round.
    h.write(0x120, 4, 0x104, 6000);
    h.write(0x128, 4, 500, 6000);
    assert_eq!(h.deadline(), Some(((1 << 32) + 500) * 10));
}

#[test]
fn periodic_with_accumulator() {
    let mut h = enabled();
    // As Linux does: accumulator first, then the period.
    h.write(0x100, 4, 0x14c, 0);
    h.write(0x108, 4, 1000, 0);
    assert_eq!(h.read(0x100, 4, 0) & 0x40, 0, "the flag is used up");
    h.write(0x108, 4, 200, 10);
    assert_eq!(h.deadline(), Some(10_000));
    assert_eq!(h.expire(10_000), 1);
    assert_eq!(h.read(0x108, 4, 10_000), 1200);
    assert_eq!(h.expire(17_000), 1, "late: once");
    assert_eq!(h.deadline(), Some(18_000), "and in step");
}

#[test]
fn level_interrupts_stay_until_cleared() {
    let mut h = enabled();
    h.write(0x140, 4, 0x6 | 16 << 9, 0);
    h.write(0x148, 8, 10, 0);
    assert_eq!(h.expire(100), 0);
    assert_eq!(h.read(0x20, 4, 100), 4);
    assert!(h.drives(Route::Input(16)));
    h.write(0x20, 4, 4, 100);
    assert!(!h.drives(Route::Input(16)));
    h.write(0x140, 4, 0x6 | 5 << 9, 100);
    assert_eq!(h.route(2), Route::Input(16), "input 5 is not offered");
}

#[derive(Default)]
struct Edges(Mutex<Vec<u32>>);
impl IrqSink for Edges {
    fn set_irq(&self, pin: u32, level: bool) {
        if level {
            lock(&self.0).push(pin);
        }
    }
}

#[test]
fn legacy_replacement_cuts_off_the_others() {
    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let edges = Arc::new(Edges::default());
    let isa = [IrqLine::new(edges.clone(), 100), IrqLine::new(edges.clone(), 108)];
    let gates = isa.clone().map(|l| LegacyGate::new(l.share()));
    let inputs = (0..24).map(|i| IrqLine::new(edges.clone(), i)).collect();
    let h = HpetDevice::new(HpetLines { inputs, legacy: isa, gates: gates.clone() }, &timers);
    h.write(0x10, 4, 3);
    gates[0].set_irq(0, true);
    assert!(lock(&edges.0).is_empty(), "the 8254 is cut off");
    h.write(0x100, 4, 0x14c);
    h.write(0x108, 4, 100_000);
    h.write(0x108, 4, 100_000);
    h.write(0x140, 4, 0x4 | 20 << 9);
    h.write(0x148, 8, 250_000);
    for _ in 0..3 {
        timers.clock().advance(1_000_000);
        timers.run_expired();
    }
    assert_eq!(*lock(&edges.0), [100, 100, 100, 20]);
    h.write(0x10, 4, 0);
    assert_eq!(lock(&edges.0).last(), Some(&100), "the 8254's level comes through again");
}
