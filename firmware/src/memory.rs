//! The one way in which this crate touches guest memory.

use thiserror::Error;

/// Guest-physical memory as a loader sees it: a place to write bytes to before the guest runs.
///
/// Implementors must make RAM (or writable shadow RAM) of everything below
/// [`RamLayout::low`](crate::RamLayout) except 0xA0000–0xBFFFF. In particular 0xF0000–0xFFFFF has to accept the
/// table anchors that [`tables::build`](crate::tables::build) writes.
pub trait GuestMemory {
    /// Copies `data` to guest-physical address `addr`.
    ///
    /// # Errors
    /// [`MemoryError`] if a byte of the range is not guest RAM; nothing outside RAM is touched then.
    fn write(&mut self, addr: u64, data: &[u8]) -> Result<(), MemoryError>;
}

/// A range that is not guest RAM.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("guest-physical range {addr:#x} + {len:#x} is not RAM")]
pub struct MemoryError {
    /// First guest-physical address of the refused range.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A vector is guest RAM that starts at address 0.
impl GuestMemory for Vec<u8> {
    fn write(&mut self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        let error = MemoryError { addr, len: data.len() as u64 };
        let start = usize::try_from(addr).map_err(|_| error)?;
        let end = start.checked_add(data.len()).ok_or(error)?;
        self.get_mut(start..end).ok_or(error)?.copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_refuses_what_it_does_not_hold() {
        let mut ram = vec![0u8; 16];
        assert_eq!(ram.write(12, &[1, 2, 3, 4]), Ok(()));
        assert_eq!(&ram[12..], [1, 2, 3, 4]);
        assert_eq!(ram.write(13, &[9; 4]), Err(MemoryError { addr: 13, len: 4 }));
        assert_eq!(ram.write(u64::MAX, &[9; 4]), Err(MemoryError { addr: u64::MAX, len: 4 }));
        assert_eq!(&ram[12..], [1, 2, 3, 4]);
    }
}
