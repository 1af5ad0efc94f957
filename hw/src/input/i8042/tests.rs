use super::*;

fn read_all(c: &mut Controller) -> Vec<u8> {
    std::iter::from_fn(|| (c.status() & 1 != 0).then(|| c.read_data())).take(64).collect()
}

#[test]
fn passes_a_kernels_probe() {
    let mut c = Controller::default();
    assert_eq!(c.status() & 1, 0);
    c.write_command(0xaa, true);
    assert_eq!(read_all(&mut c), [0x55], "self-test");
    c.write_command(0x20, true);
    assert_eq!(read_all(&mut c), [0x65]);
    c.write_command(0x60, true);
    c.write_data(0x44);
    c.write_command(0x20, true);
    assert_eq!(read_all(&mut c), [0x44]);
    c.write_command(0xab, true);
    assert_eq!(read_all(&mut c), [0]);
    // There is no auxiliary port: what is looped back does not come from it, its test fails.
    c.write_command(0xd3, true);
    c.write_data(0x5a);
    assert_eq!(c.status() & 0x20, 0);
    assert_eq!(read_all(&mut c), [0x5a]);
    c.write_command(0xa9, true);
    assert_eq!(read_all(&mut c), [1]);
    c.write_command(0xa7, true);
    c.write_command(0x20, true);
    assert_eq!(read_all(&mut c)[0] & 0x20, 0x20);
}

#[test]
fn the_keyboard_answers() {
    let mut c = Controller::default();
    c.write_command(0x60, true);
    c.write_data(0x01);
    c.write_data(0xff);
    assert_eq!(read_all(&mut c), [0xfa, 0xaa]);
    c.write_data(0xf2);
    assert_eq!(read_all(&mut c), [0xfa, 0xab, 0x83]);
    c.write_data(0xed);
    c.write_data(0x07);
    assert_eq!(read_all(&mut c), [0xfa, 0xfa]);
    c.write_data(0xf0);
    c.write_data(0);
    assert_eq!(read_all(&mut c), [0xfa, 0xfa, 2]);
    c.write_data(0x00);
    assert_eq!(read_all(&mut c), [0xfe]);
    c.write_data(0xf5);
    read_all(&mut c);
    assert!(!c.send_keys(&[0x1c]), "scanning is off");
}

#[test]
fn keys_interrupt_and_are_translated() {
    let irq = IrqLine::unconnected();
    let k = I8042::new(irq.clone(), A20::new(), Events::new());
    let (data, command) = (I8042Ports(k.clone(), I8042Port::Data), I8042Ports(k.clone(), I8042Port::Command));
    assert!(k.send_keys(&[0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75]));
    assert!(irq.level());
    let codes: Vec<u32> =
        std::iter::from_fn(|| (command.read(0, 1) & 1 != 0).then(|| data.read(0, 1))).collect();
    assert_eq!(codes, [0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8], "A down, A up, cursor up down and up");
    assert!(!irq.level());
    let mut sent = 0;
    while k.send_keys(&[0x1c]) {
        sent += 1;
        assert!(sent < 100, "the buffer is bounded");
    }
    for _ in 0..1000 {
        data.write(0, 1, 0xf2);
    }
}

#[test]
fn switches_a20_and_resets() {
    let (a20, events) = (A20::new(), Events::new());
    let k = I8042::new(IrqLine::unconnected(), a20.clone(), events.clone());
    let (data, command) = (I8042Ports(k.clone(), I8042Port::Data), I8042Ports(k, I8042Port::Command));
    command.write(0, 1, 0xd1);
    data.write(0, 1, 0xdd);
    assert!(!a20.enabled());
    command.write(0, 1, 0xd0);
    assert_eq!(data.read(0, 1) & 3, 1);
    command.write(0, 1, 0xdf);
    assert!(a20.enabled() && !events.pending());
    command.write(0, 1, 0xff);
    assert!(!events.pending(), "no line pulsed");
    command.write(0, 1, 0xfe);
    assert_eq!(events.take(), Some(MachineEvent::Reset));
}
