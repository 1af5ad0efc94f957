use tessera_hw_core::backend::MemoryBackend;
use tessera_hw_core::device::Device;

use super::state::lsr;
use super::*;

const RBR: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;

/// 115200 8N1 with FIFOs, trigger at 8.
fn uart() -> Uart {
    let mut u = Uart::default();
    u.write(LCR, 0x83, 0);
    u.write(0, 1, 0);
    u.write(1, 0, 0);
    u.write(LCR, 0x03, 0);
    u.write(FCR, 0x81, 0);
    u
}

#[test]
fn transmitter_interrupt_comes_and_goes() {
    let mut u = uart();
    assert_eq!(u.read(LSR, 0), 0x60);
    u.write(IER, 2, 0);
    assert!(u.interrupt(0), "enabling it on an empty transmitter raises it");
    assert_eq!(u.read(IIR, 0), 0xc2);
    assert_eq!(u.read(IIR, 0), 0xc1, "reading IIR clears it");
    u.write(0, b'x', 0);
    assert_eq!(u.read(LSR, 0) & lsr::THR_EMPTY, 0);
    assert!(!u.interrupt(0));
    assert_eq!(u.tx_waiting(), b"x");
    u.tx_taken(1);
    assert_eq!(u.read(LSR, 0), 0x60);
    assert!(u.interrupt(0));
}

#[test]
fn receive_trigger_and_timeout() {
    let mut u = uart();
    u.write(IER, 1, 0);
    u.receive(b"abcdefg", 1000);
    assert!(!u.interrupt(1000), "below the trigger");
    let due = u.deadline(1000).expect("a timeout is running");
    // Four characters of 10 bits at 115200.
    assert_eq!(due, 1000 + 4 * 86_805);
    assert!(!u.interrupt(due - 1));
    assert_eq!(u.read(IIR, due), 0xcc);
    assert_eq!(u.read(RBR, due), b'a');
    assert!(!u.interrupt(due), "reading restarts the timeout");
    u.receive(b"hi", due);
    assert_eq!(u.read(IIR, due), 0xc4);
    for want in b"bcdefghi" {
        assert_eq!(u.read(LSR, due) & 1, 1);
        assert_eq!(u.read(RBR, due), *want);
    }
    assert_eq!(u.read(IIR, due), 0xc1);
    assert_eq!(u.deadline(due), None);
}

#[test]
fn overrun_and_break_are_line_status() {
    let mut u = uart();
    u.write(IER, 4, 0);
    u.receive(&[7; 17], 0);
    assert_eq!(u.read(IIR, 0), 0xc6);
    assert_eq!(u.read(LSR, 0), 0x63);
    assert_eq!(u.read(LSR, 0), 0x61, "reading clears it");
    u.write(FCR, 0x83, 0);
    assert_eq!(u.read(LSR, 0), 0x60);
    u.receive_break(0);
    assert_eq!(u.read(LSR, 0), 0xf1);
    assert_eq!(u.read(RBR, 0), 0);
}

#[test]
fn loopback_returns_data_and_modem_lines() {
    let mut u = uart();
    u.write(MCR, 0x10, 0);
    assert_eq!(u.read(MSR, 0), 0x0b, "all inputs fell");
    u.write(MCR, 0x1a, 0);
    assert_eq!(u.read(MSR, 0), 0x99, "RTS to CTS, OUT2 to DCD");
    u.write(0, 0xa5, 0);
    assert_eq!(u.tx_waiting(), b"");
    assert_eq!(u.read(RBR, 0), 0xa5);
    assert_eq!(u.rx_room(), 0, "nothing comes in from outside");
    u.write(IER, 8, 0);
    u.write(MCR, 0x0b, 0);
    assert!(u.interrupt(0));
    assert_eq!(u.read(IIR, 0), 0xc0);
    assert_eq!(u.read(MSR, 0) & 0xf0, 0xb0);
    assert!(!u.interrupt(0));
}

#[test]
fn without_fifo_it_is_a_16450() {
    let mut u = Uart::default();
    u.write(IER, 1, 0);
    u.receive(b"a", 0);
    assert_eq!(u.read(IIR, 0), 0x04);
    u.receive(b"b", 0);
    assert_eq!(u.read(LSR, 0) & lsr::OVERRUN, lsr::OVERRUN);
    assert_eq!(u.read(RBR, 0), b'b');
    u.write(7, 0x5a, 0);
    assert_eq!(u.read(7, 0), 0x5a);
}

#[test]
fn a_full_backend_holds_the_transmitter_and_never_the_guest() {
    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let backend = MemoryBackend::new(4);
    let s = Serial16550::new(0, IrqLine::unconnected(), backend.clone(), &timers);
    s.write(2, 1, 1);
    (0..100u32).for_each(|i| s.write(0, 1, i));
    assert_eq!(s.read(5, 1) & 0x60, 0);
    assert_eq!(backend.take(), [0, 1, 2, 3]);
    assert_eq!(backend.take(), [4, 5, 6, 7], "the device sends when there is room");
    while !backend.take().is_empty() {}
    assert_eq!(s.read(5, 1) & 0x60, 0x60);
    assert_eq!(backend.send(&[1; 40]), 16, "takes what fits");
    assert_eq!(s.read(0, 1), 1);
    assert_eq!(s.can_receive(), 1);
}

#[test]
fn raises_its_line_when_characters_have_waited() {
    let timers = Timers::new(Arc::new(Clock::manual(1_000_000_000)));
    let backend = MemoryBackend::new(4);
    let irq = IrqLine::unconnected();
    let s = Serial16550::new(0, irq.clone(), backend.clone(), &timers);
    s.write(1, 1, 1);
    s.write(2, 1, 0xc1);
    backend.send(b"hello");
    assert!(!irq.level());
    timers.clock().advance(1_000_000_000);
    timers.run_expired();
    assert!(irq.level());
    let saved = s.save();
    s.reset();
    assert!(!irq.level());
    s.restore(&saved).unwrap();
    assert!(irq.level());
    assert_eq!(s.read(0, 1), u32::from(b'h'));
}
