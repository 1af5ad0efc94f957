//! Ports that are written to and do nothing: the POST code port 80H, by which guests wait a bus cycle, with the other page
//! registers of the DMA controllers, which hold what is written; and port 0EDH, the alternative delay port.

use std::sync::atomic::{AtomicU8, Ordering};

use tessera_hw_core::ports::PortDevice;

/// Byte registers without meaning.
#[derive(Default)]
pub struct Scratch([AtomicU8; 16]);

impl PortDevice for Scratch {
    fn read(&self, offset: u16, _size: u8) -> u32 {
        self.0[usize::from(offset & 15)].load(Ordering::Relaxed).into()
    }
    fn write(&self, offset: u16, _size: u8, value: u32) {
        self.0[usize::from(offset & 15)].store(value as u8, Ordering::Relaxed);
    }
}
