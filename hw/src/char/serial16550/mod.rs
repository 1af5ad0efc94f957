//! 16550A serial port.
//!
//! The state machine ([`Uart`]) models the registers, both 16-byte FIFOs, the interrupt sources and the receiver's
//! character timeout. Characters take no time on the line: what is transmitted is offered to the backend at once, and the
//! transmitter is empty again unless the backend is full; what is received arrives as fast as the FIFO has room. Only the
//! receive timeout follows the programmed baud rate.
//!
//! As in other emulated PCs the interrupt output is not gated by OUT2, and the modem inputs say that a peer is ready.
//!
//! Source: National Semiconductor PC16550D data sheet.

mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

pub use state::Uart;
use tessera_hw_core::backend::{CharBackend, CharEvent, CharFrontend};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::device::Wired;
use tessera_hw_core::irq::IrqLine;
use tessera_hw_core::lock;
use tessera_hw_core::ports::PortDevice;
use tessera_hw_core::timers::{DeviceTimer, Timers};

/// A [`Uart`] on the port bus (8 ports, byte wide), with its interrupt line and its backend.
pub struct Serial16550 {
    name: String,
    uart: Mutex<Uart>,
    irq: IrqLine,
    backend: Arc<dyn CharBackend>,
    clock: Arc<Clock>,
    timeout: DeviceTimer,
}

impl Serial16550 {
    /// Port number `index`, attached to its backend.
    pub fn new(index: usize, irq: IrqLine, backend: Arc<dyn CharBackend>, timers: &Arc<Timers>) -> Arc<Self> {
        let serial = Arc::new(Self {
            name: format!("serial{index}"),
            uart: Mutex::new(Uart::default()),
            irq,
            backend,
            clock: Arc::clone(timers.clock()),
            timeout: DeviceTimer::default(),
        });
        serial.timeout.connect(timers, &serial, |s, _| s.drive(&mut lock(&s.uart)));
        let weak: Weak<Self> = Arc::downgrade(&serial);
        serial.backend.attach(weak);
        serial
    }

    fn time_for(&self, uart: &Uart, reg: u8, write: bool) -> u64 {
        if uart.needs_time(reg, write) { self.clock.now_ns() } else { 0 }
    }

    fn drive_at(&self, uart: &mut Uart, now: u64) {
        self.irq.set(uart.interrupt(now));
        self.timeout.set(uart.deadline(now));
    }

    /// Offers waiting output to the backend.
    fn transmit(&self, uart: &mut Uart) {
        let waiting = uart.tx_waiting();
        if !waiting.is_empty() {
            let n = self.backend.write(waiting);
            uart.tx_taken(n);
        }
    }
}

impl Wired for Serial16550 {
    type State = Uart;
    fn name(&self) -> &str {
        &self.name
    }
    fn state(&self) -> &Mutex<Uart> {
        &self.uart
    }
    fn drive(&self, uart: &mut Uart) {
        self.drive_at(uart, self.clock.now_ns());
    }
}

impl PortDevice for Serial16550 {
    fn read(&self, offset: u16, _size: u8) -> u32 {
        let mut uart = lock(&self.uart);
        let was_full = uart.rx_room() == 0;
        let now = self.time_for(&uart, offset as u8, false);
        let value = uart.read(offset as u8, now);
        if state::read_has_effect(offset as u8, value) {
            self.drive_at(&mut uart, now);
            let room = was_full && uart.rx_room() > 0;
            drop(uart);
            if room {
                self.backend.frontend_ready();
            }
        }
        value.into()
    }

    fn write(&self, offset: u16, _size: u8, value: u32) {
        let mut uart = lock(&self.uart);
        let breaking = uart.sends_break();
        let full = uart.rx_room() == 0;
        let now = self.time_for(&uart, offset as u8, true);
        uart.write(offset as u8, value as u8, now);
        self.transmit(&mut uart);
        self.drive_at(&mut uart, now);
        let (now_breaking, room) = (uart.sends_break(), full && uart.rx_room() > 0);
        drop(uart);
        if now_breaking != breaking {
            self.backend.set_break(now_breaking);
        }
        if room {
            self.backend.frontend_ready();
        }
    }
}

impl CharFrontend for Serial16550 {
    fn receive(&self, data: &[u8]) -> usize {
        let mut uart = lock(&self.uart);
        let n = data.len().min(uart.rx_room());
        if n > 0 {
            uart.receive(&data[..n], self.clock.now_ns());
            self.drive(&mut uart);
        }
        n
    }
    fn can_receive(&self) -> usize {
        lock(&self.uart).rx_room()
    }
    fn writable(&self) {
        let mut uart = lock(&self.uart);
        self.transmit(&mut uart);
        self.drive(&mut uart);
    }
    fn event(&self, event: CharEvent) {
        let mut uart = lock(&self.uart);
        match event {
            CharEvent::Break => uart.receive_break(self.clock.now_ns()),
        }
        self.drive(&mut uart);
    }
}
