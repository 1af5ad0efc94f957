use super::*;
use crate::intc::apic_bus::Destination;

fn set_entry(r: &mut Redirection, pin: u8, value: u64) -> Vec<Message> {
    let mut sent = Vec::new();
    r.write(0, u32::from(0x10 + 2 * pin + 1), |_| {});
    r.write(0x10, (value >> 32) as u32, |m| sent.push(m));
    r.write(0, u32::from(0x10 + 2 * pin), |_| {});
    r.write(0x10, value as u32, |m| sent.push(m));
    sent
}

fn get_entry(r: &mut Redirection, pin: u8) -> u32 {
    r.write(0, u32::from(0x10 + 2 * pin), |_| {});
    r.read(0x10)
}

#[test]
fn identifies_itself_and_starts_masked() {
    let mut r = Redirection::default();
    r.write(0, 1, |_| {});
    assert_eq!(r.read(0x10), 0x0017_0020);
    for pin in 0..24 {
        assert_eq!(get_entry(&mut r, pin), 0x10000);
        assert_eq!(r.set_input(pin.into(), true), None);
    }
    assert_eq!(r.set_input(24, true), None);
    r.write(0, 0x40, |_| {});
    assert_eq!(r.read(0x10), 0, "past the table");
    r.write(0, 0xff, |_| {});
    r.write(0x10, 1, |_| {});
}

#[test]
fn edges_send_once_each() {
    let mut r = Redirection::default();
    set_entry(&mut r, 4, 0x0300_0000_0000_0931);
    let m = r.set_input(4, true).unwrap();
    let want = Message {
        destination: Destination::Logical(3),
        delivery: Delivery::LowestPriority,
        vector: 0x31,
        level_triggered: false,
    };
    assert_eq!(m, want);
    assert_eq!(r.set_input(4, true), None);
    assert_eq!(r.set_input(4, false), None);
    assert!(r.set_input(4, true).is_some());
}

#[test]
fn levels_wait_for_the_end() {
    let mut r = Redirection::default();
    assert_eq!(r.set_input(9, true), None);
    let sent = set_entry(&mut r, 9, 0x8052);
    assert_eq!(sent.len(), 1, "unmasking a level that is up");
    assert_eq!(sent[0].destination, Destination::Physical(0));
    assert!(sent[0].level_triggered);
    assert_eq!(get_entry(&mut r, 9), 0xc052, "remote IRR");
    r.set_input(9, false);
    assert_eq!(r.set_input(9, true), None, "not before the end of the first");
    let mut again = 0;
    r.end_of_interrupt(0x51, |_| again += 1);
    assert_eq!(again, 0);
    r.write(0x40, 0x52, |_| again += 1);
    assert_eq!(again, 1, "still up");
    r.set_input(9, false);
    r.end_of_interrupt(0x52, |_| again += 1);
    assert_eq!(again, 1);
    assert_eq!(get_entry(&mut r, 9), 0x8052);
}

#[test]
fn turning_to_edge_clears_remote_irr() {
    let mut r = Redirection::default();
    set_entry(&mut r, 9, 0x8052);
    r.set_input(9, true);
    assert!(set_entry(&mut r, 9, 0x1_0052).is_empty());
    assert_eq!(set_entry(&mut r, 9, 0x8052).len(), 1);
}

#[test]
fn local_apics_elsewhere_get_the_messages_and_tell_the_ends() {
    let (bus, sent) = (ApicBus::new(), Arc::new(Mutex::new(Vec::new())));
    let taken = sent.clone();
    bus.replace(Box::new(move |address, data| lock(&taken).push(Message::from_msi(address, data).unwrap())));
    let io = IoApic::new(bus);
    let levels = Arc::new(Mutex::new(Vec::new()));
    let told = levels.clone();
    io.on_level_messages(Box::new(move |messages| *lock(&told) = messages.to_vec()));
    let register = |n: u64, value: u64| {
        io.write(0, 4, n);
        io.write(0x10, 4, value);
    };
    // Pin 3: edge, vector 41h, to APIC 0. Pin 9: level, vector 52h, lowest priority, to the logical APICs 3.
    register(0x16, 0x41);
    register(0x23, 3 << 24);
    register(0x22, 0x52 | 1 << 8 | 1 << 11 | 1 << 15);
    let edge = Message::with_8bit_destination(0, false, Delivery::Fixed, 0x41, false);
    let level = Message::with_8bit_destination(3, true, Delivery::LowestPriority, 0x52, true);
    assert_eq!(*lock(&levels), [level]);
    io.set_irq(3, true);
    io.set_irq(9, true);
    assert_eq!(*lock(&sent), [edge, level]);
    // Still up at its end: again. Masked: nobody waits for its end any more.
    io.end_of_interrupt(0x52);
    assert_eq!(lock(&sent).len(), 3);
    register(0x22, 0x52 | 1 << 15 | 1 << 16);
    assert!(lock(&levels).is_empty());
}
