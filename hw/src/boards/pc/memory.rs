//! The PC's memory map: RAM below and above the 32-bit hole, the ROM, and the way loaders write to both.

use std::sync::Arc;

use tessera_firmware::{GuestMemory, MemoryError, RamLayout};
use tessera_hw_core::mem::{AddressSpace, GuestRam, Region};

use super::BuildError;
use super::layout::{EXTENDED_BASE, HIGH_RAM_BASE, LOW_RAM_END, ROM_SHADOW_MAX, SHADOW_BASE};

/// Maps RAM. One block holds all of it, low part first; what is behind the adapters' memory is never seen.
pub(super) fn map_ram(space: &AddressSpace, ram: RamLayout) -> Result<Arc<GuestRam>, BuildError> {
    // The first MiB is there whatever the size: firmware lives in it.
    let low = ram.low.max(EXTENDED_BASE);
    let total = low.checked_add(ram.high).ok_or(BuildError::TooMuchRam(u64::MAX))?;
    let block = Arc::new(GuestRam::new(total).map_err(|e| BuildError::Ram(total, e))?);
    space.map_memory(0, LOW_RAM_END, &block, 0, true, 0)?;
    space.map_memory(SHADOW_BASE, low - SHADOW_BASE, &block, SHADOW_BASE, true, 0)?;
    let mut fast = vec![(SHADOW_BASE, low - SHADOW_BASE), (0, LOW_RAM_END)];
    if ram.high > 0 {
        space.map_memory(HIGH_RAM_BASE, ram.high, &block, low, true, 0)?;
        fast.insert(1, (HIGH_RAM_BASE, ram.high));
    }
    space.set_fast_ram(&fast);
    Ok(block)
}

/// Maps a ROM so that it ends at 4 GiB, where a processor starts.
pub(super) fn map_rom(space: &AddressSpace, rom: &[u8]) -> Result<(), BuildError> {
    let len = rom.len() as u64;
    if len == 0 || !len.is_multiple_of(4096) || len > 16 << 20 {
        return Err(BuildError::RomSize(len));
    }
    let block = Arc::new(GuestRam::new(len).map_err(|e| BuildError::Ram(len, e))?);
    block.write_bytes(0, rom);
    space.map_memory(HIGH_RAM_BASE - len, len, &block, 0, false, 1)?;
    shadow_rom(space, rom);
    Ok(())
}

/// Copies the end of a ROM to where it is seen just below 1 MiB, as after every reset.
pub(super) fn shadow_rom(space: &AddressSpace, rom: &[u8]) {
    let from = rom.len().saturating_sub(ROM_SHADOW_MAX as usize);
    let tail = &rom[from..];
    space.write_bytes(EXTENDED_BASE - tail.len() as u64, tail);
}

/// Guest RAM as the firmware's loaders write it.
pub struct LoaderMemory<'a>(pub &'a AddressSpace);

impl GuestMemory for LoaderMemory<'_> {
    fn write(&mut self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        let error = MemoryError { addr, len: data.len() as u64 };
        let end = addr.checked_add(error.len).ok_or(error)?;
        let mut at = addr;
        while at < end {
            match self.0.lookup(at) {
                Region::Ram { len, writable: true, .. } => at = at.saturating_add(len),
                _ => return Err(error),
            }
        }
        self.0.write_bytes(addr, data);
        Ok(())
    }
}
