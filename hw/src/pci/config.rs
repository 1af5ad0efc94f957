//! The 256 bytes of a function's configuration space: values, and which bits a guest can change.

/// Configuration registers. Bytes outside what was defined are read-only zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// Bits that a write sets.
    writable: Vec<u8>,
    /// Bits that a write of 1 clears.
    clearable: Vec<u8>,
}

/// Offsets of the header that every function has.
mod header {
    pub const VENDOR: u8 = 0x00;
    pub const COMMAND: u8 = 0x04;
    pub const STATUS: u8 = 0x06;
    pub const REVISION: u8 = 0x08;
    pub const CLASS: u8 = 0x09;
    pub const TYPE: u8 = 0x0e;
    pub const SUBSYSTEM: u8 = 0x2c;
    pub const INTERRUPT_LINE: u8 = 0x3c;
}

impl ConfigSpace {
    /// A type 0 header: `id` is vendor and device (low and high half), `class` class, subclass and interface (24 bits).
    pub fn new(id: u32, revision: u8, class: u32) -> Self {
        let mut c = Self { bytes: vec![0; 256], writable: vec![0; 256], clearable: vec![0; 256] };
        c.set(header::VENDOR, 4, id);
        c.set(header::REVISION, 1, revision.into());
        c.set(header::CLASS, 2, class);
        c.set(header::CLASS + 2, 1, class >> 16);
        // I/O, memory, bus master, parity, SERR, interrupt disable.
        c.allow(header::COMMAND, 2, 0x0547);
        Self::put(&mut c.clearable, header::STATUS, 2, 0xf900);
        c.allow(header::INTERRUPT_LINE, 1, 0xff);
        c
    }

    /// Marks it as one of several functions in a slot.
    pub fn multifunction(mut self) -> Self {
        self.bytes[usize::from(header::TYPE)] |= 0x80;
        self
    }

    /// Gives it a subsystem ID.
    pub fn subsystem(mut self, id: u32) -> Self {
        self.set(header::SUBSYSTEM, 4, id);
        self
    }

    /// Gives the 1, 2 or 4 bytes at `register` a value and lets a guest change the bits in `writable`.
    pub fn with(mut self, register: u8, size: u8, value: u32, writable: u32) -> Self {
        self.set(register, size, value);
        self.allow(register, size, writable);
        self
    }

    fn put(bytes: &mut [u8], register: u8, size: u8, value: u32) {
        let at = usize::from(register);
        for (b, v) in bytes[at..].iter_mut().zip(value.to_le_bytes()).take(size.into()) {
            *b = v;
        }
    }

    fn set(&mut self, register: u8, size: u8, value: u32) {
        Self::put(&mut self.bytes, register, size, value);
    }

    fn allow(&mut self, register: u8, size: u8, bits: u32) {
        Self::put(&mut self.writable, register, size, bits);
    }

    /// Reads 1 to 4 bytes; beyond the end all ones.
    pub fn read(&self, register: u8, size: u8) -> u32 {
        let mut v = [0xff; 4];
        let from = &self.bytes[usize::from(register)..];
        for (b, f) in v.iter_mut().zip(from).take(size.into()) {
            *b = *f;
        }
        u32::from_le_bytes(v) & tessera_hw_core::mem::mask(size) as u32
    }

    /// A guest's write of 1 to 4 bytes.
    pub fn write(&mut self, register: u8, size: u8, value: u32) {
        for (i, v) in value.to_le_bytes().into_iter().enumerate().take(size.into()) {
            let at = usize::from(register) + i;
            let Some(byte) = self.bytes.get_mut(at) else { return };
            *byte = *byte & !self.writable[at] | v & self.writable[at];
            *byte &= !(v & self.clearable[at]);
        }
    }

    /// The values of all registers.
    pub fn values(&self) -> &[u8] {
        &self.bytes
    }

    /// The same function with other values, if they differ only in what a guest can change.
    pub fn with_values(&self, values: Vec<u8>) -> Option<Self> {
        let changeable = self.writable.iter().zip(&self.clearable).map(|(w, c)| w | c);
        let fits = values.len() == self.bytes.len()
            && self.bytes.iter().zip(&values).zip(changeable).all(|((a, b), mask)| (a ^ b) & !mask == 0);
        fits.then(|| Self { bytes: values, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_reach_only_what_they_may() {
        let mut c = ConfigSpace::new(0x1234_8086, 3, 0x06_01_00).with(0x60, 4, 0x8080_8080, 0xffff_8f8f);
        assert_eq!(c.read(0, 4), 0x1234_8086);
        assert_eq!(c.read(8, 4), 0x0601_0003);
        c.write(0, 4, 0);
        assert_eq!(c.read(2, 2), 0x1234);
        c.write(0x60, 2, 0x7777);
        assert_eq!(c.read(0x60, 4), 0x8080_0707);
        c.write(4, 4, 0xffff_ffff);
        assert_eq!(c.read(4, 4), 0x0547);
        c.write(0xfe, 4, 1);
        assert_eq!(c.read(0xfe, 4), 0xffff_0000);
        let fresh = ConfigSpace::new(0x1234_8086, 3, 0x06_01_00).with(0x60, 4, 0x8080_8080, 0xffff_8f8f);
        assert_eq!(fresh.with_values(c.values().to_vec()), Some(c.clone()));
        assert_eq!(ConfigSpace::new(0, 0, 0).with_values(c.values().to_vec()), None);
        assert_eq!(fresh.with_values(vec![0; 255]), None);
    }
}
