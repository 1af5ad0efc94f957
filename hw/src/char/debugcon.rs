//! The debug console of emulators: a byte written to the port (0xE9 by Bochs' convention, 0x402 for SeaBIOS) goes to the
//! backend. It has no state and never blocks: what the backend does not take is lost. Reading gives 0xE9, by which firmware
//! recognises it.

use std::sync::Arc;

use tessera_hw_core::backend::CharBackend;
use tessera_hw_core::ports::PortDevice;

/// One debug console.
pub struct DebugConsole {
    backend: Arc<dyn CharBackend>,
}

impl DebugConsole {
    /// A console on `backend`.
    pub fn new(backend: Arc<dyn CharBackend>) -> Self {
        Self { backend }
    }
}

impl PortDevice for DebugConsole {
    fn read(&self, _offset: u16, _size: u8) -> u32 {
        0xe9
    }
    fn write(&self, _offset: u16, _size: u8, value: u32) {
        self.backend.write(&[value as u8]);
    }
}

#[cfg(test)]
mod tests {
    use tessera_hw_core::backend::MemoryBackend;

    use super::*;

    #[test]
    fn passes_bytes_on_and_names_itself() {
        let backend = MemoryBackend::new(16);
        let con = DebugConsole::new(backend.clone());
        "ok".bytes().for_each(|b| con.write(0, 1, b.into()));
        assert_eq!(backend.take(), b"ok");
        assert_eq!(con.read(0, 1), 0xe9);
        (0..100).for_each(|_| con.write(0, 1, 0));
        assert_eq!(backend.take().len(), 16);
    }
}
