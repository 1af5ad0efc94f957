use super::*;

/// Initialised as PCs are: vectors 0x20 and 0x28, all inputs open; `icw4` for both.
fn pair(icw4: u8) -> PicPair {
    let mut p = PicPair::default();
    for (chip, base, cascade) in [(0, 0x20, 4), (1, 0x28, 2)] {
        p.write(chip, false, 0x11);
        p.write(chip, true, base);
        p.write(chip, true, cascade);
        p.write(chip, true, icw4);
        p.write(chip, true, 0);
    }
    p
}

fn pulse(p: &mut PicPair, pin: u8) {
    p.set_input(pin, true);
    p.set_input(pin, false);
}

#[test]
fn delivers_by_priority_and_nests() {
    let mut p = pair(1);
    pulse(&mut p, 5);
    pulse(&mut p, 3);
    assert!(p.output());
    assert_eq!(p.acknowledge(), 0x23);
    assert!(!p.output(), "5 is below 3, which is in service");
    pulse(&mut p, 1);
    assert_eq!(p.acknowledge(), 0x21);
    p.write(0, false, 0x0b);
    assert_eq!(p.read(0, false), 0x0a, "ISR");
    p.write(0, false, 0x0a);
    assert_eq!(p.read(0, false), 0x20, "IRR");
    p.write(0, false, 0x20);
    assert!(!p.output());
    p.write(0, false, 0x20);
    assert_eq!(p.acknowledge(), 0x25);
}

#[test]
fn the_slave_reaches_through_the_cascade() {
    let mut p = pair(1);
    pulse(&mut p, 12);
    pulse(&mut p, 8);
    assert_eq!(p.acknowledge(), 0x28);
    p.write(1, false, 0x20);
    p.write(0, false, 0x20);
    assert!(p.output(), "the next one behind the same cascade input");
    assert_eq!(p.acknowledge(), 0x2c);
    p.write(1, true, 0xff);
    p.write(1, false, 0x20);
    p.write(0, false, 0x62);
    pulse(&mut p, 8);
    assert!(!p.output(), "masked");
    p.write(1, true, 0xfe);
    assert!(p.output(), "an edge under the mask is kept");
}

#[test]
fn spurious_requests_answer_with_seven() {
    let mut p = pair(1);
    p.set_elcr(1, 0x0c);
    p.set_input(10, true);
    assert!(p.output());
    p.set_input(10, false);
    p.write(0, false, 0x0b);
    // The master latched the cascade's edge, but the slave has nothing.
    assert_eq!(p.acknowledge(), 0x2f);
    assert_eq!(p.read(0, false), 4);
    p.write(0, false, 0x62);
    assert!(!p.output());
    assert_eq!(p.acknowledge(), 0x27);
    assert_eq!(p.read(0, false), 0, "a spurious interrupt is not in service");
}

#[test]
fn level_inputs_ask_again_until_they_fall() {
    let mut p = pair(1);
    p.set_elcr(0, 0xff);
    assert_eq!(p.elcr(0), 0xf8, "0, 1, 2 cannot be level");
    p.set_input(5, true);
    assert_eq!(p.acknowledge(), 0x25);
    assert!(!p.output());
    p.write(0, false, 0x65);
    assert!(p.output());
    p.set_input(5, false);
    assert!(!p.output());
}

#[test]
fn automatic_eoi_and_rotation() {
    let mut p = pair(3);
    pulse(&mut p, 4);
    assert_eq!(p.acknowledge(), 0x24);
    pulse(&mut p, 6);
    assert_eq!(p.acknowledge(), 0x26, "nothing is in service");
    p.write(0, false, 0x80);
    pulse(&mut p, 4);
    assert_eq!(p.acknowledge(), 0x24);
    pulse(&mut p, 4);
    pulse(&mut p, 5);
    assert_eq!(p.acknowledge(), 0x25, "4 has become the lowest");
    p.write(0, false, 0xc0);
    pulse(&mut p, 0);
    pulse(&mut p, 1);
    assert_eq!(p.acknowledge(), 0x21, "0 is the lowest");
}

#[test]
fn special_mask_mode_lets_lower_ones_in() {
    let mut p = pair(1);
    pulse(&mut p, 1);
    p.acknowledge();
    pulse(&mut p, 6);
    assert!(!p.output());
    p.write(0, true, 2);
    p.write(0, false, 0x68);
    assert_eq!(p.acknowledge(), 0x26);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    let mut p = pair(0x11);
    pulse(&mut p, 12);
    assert_eq!(p.acknowledge(), 0x2c);
    pulse(&mut p, 9);
    assert!(p.output());
    assert_eq!(p.acknowledge(), 0x29);
}

#[test]
fn polling_acknowledges() {
    let mut p = pair(1);
    p.write(0, false, 0x0c);
    assert_eq!(p.read(0, false), 0);
    pulse(&mut p, 3);
    p.write(0, false, 0x0c);
    assert_eq!(p.read(0, false), 0x83);
    assert!(!p.output());
}

#[test]
fn an_edge_must_rise_anew_after_initialisation() {
    let mut p = PicPair::default();
    p.set_input(4, true);
    for v in [0x20, 4, 1, 0] {
        if v == 0x20 {
            p.write(0, false, 0x11);
        }
        p.write(0, true, v);
    }
    assert!(!p.output());
    p.set_input(4, false);
    p.set_input(4, true);
    assert!(p.output());
}
