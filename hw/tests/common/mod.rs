//! The machine that tests build.

use std::sync::Arc;

use tessera_hw::boards::pc::{DebugExitConfig, MachineKind, PcConfig};
use tessera_hw_core::backend::{CharBackend, MemoryBackend};
use tessera_hw_core::clock::Clock;

/// A board with each of the optional devices, and what its first serial port is connected to.
pub fn config(kind: MachineKind, clock: Clock) -> (PcConfig, Arc<MemoryBackend>) {
    let com1 = MemoryBackend::new(4096);
    let config = PcConfig {
        kind,
        serial: [Some(com1.clone() as Arc<dyn CharBackend>), Some(MemoryBackend::new(16)), None, None],
        debug_consoles: vec![(0xe9, MemoryBackend::new(16)), (0x402, MemoryBackend::new(16))],
        debug_exit: vec![DebugExitConfig { iobase: 0xf4, iosize: 4 }],
        clock: Arc::new(clock),
        ..PcConfig::new(64 << 20)
    };
    (config, com1)
}
