//! The x87 state as it lies in memory: the environment of FSTENV and FSAVE in its four layouts, and the legacy region of
//! FXSAVE and XSAVE.
//!
//! Source: SDM volume 1, figures 8-9 to 8-12 (environments) and section 10.5.1 (FXSAVE area).

use super::x87_state::F80;
use crate::state::Fpu;

/// Layout of an environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// 32-bit operand size: 28 bytes instead of 14.
    pub wide: bool,
    /// Protected mode: selectors and offsets instead of linear addresses and the opcode.
    pub protected: bool,
}

impl Layout {
    /// Size of the environment in bytes.
    pub fn bytes(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// Size of the environment and eight registers.
    pub fn saved_bytes(self) -> usize {
        self.bytes() + 80
    }
}

/// Linear address that the real-mode layouts store for a pointer.
fn linear(selector: u16, offset: u64) -> u32 {
    ((selector as u32) << 4).wrapping_add(offset as u32)
}

/// Writes the environment to the start of `out`, which has [`Layout::bytes`] bytes at least.
pub fn store_environment(fpu: &Fpu, layout: Layout, out: &mut [u8]) {
    let (ip, dp) = (fpu.ip as u32, fpu.dp as u32);
    let opcode = (fpu.opcode & 0x7ff) as u32;
    let words = [fpu.control, fpu.status, fpu.tag_word()];
    let fields: [u32; 7] = if layout.wide {
        let [c, s, t] = words.map(|w| w as u32 | 0xffff_0000);
        if layout.protected {
            [c, s, t, ip, fpu.cs as u32 | opcode << 16, dp, fpu.ds as u32 | 0xffff_0000]
        } else {
            let (ip, dp) = (linear(fpu.cs, fpu.ip), linear(fpu.ds, fpu.dp));
            let upper = |v: u32| (v >> 16) << 12;
            [c, s, t, ip & 0xffff, upper(ip) | opcode, dp & 0xffff, upper(dp)]
        }
    } else {
        let [c, s, t] = words.map(u32::from);
        if layout.protected {
            [c, s, t, ip, fpu.cs as u32, dp, fpu.ds as u32]
        } else {
            let (ip, dp) = (linear(fpu.cs, fpu.ip), linear(fpu.ds, fpu.dp));
            let upper = |v: u32| (v >> 16 & 15) << 12;
            [c, s, t, ip, upper(ip) | opcode, dp, upper(dp)]
        }
    };
    let size = if layout.wide { 4 } else { 2 };
    for (n, field) in fields.iter().enumerate() {
        out[n * size..][..size].copy_from_slice(&field.to_le_bytes()[..size]);
    }
}

/// Reads the environment from the start of `image`. The real-mode layouts leave selectors zero and linear addresses as
/// offsets.
pub fn load_environment(fpu: &mut Fpu, layout: Layout, image: &[u8]) {
    let size = if layout.wide { 4 } else { 2 };
    let field = |n: usize| {
        let mut bytes = [0; 4];
        bytes[..size].copy_from_slice(&image[n * size..][..size]);
        u32::from_le_bytes(bytes)
    };
    let f: [u32; 7] = std::array::from_fn(field);
    fpu.set_control(f[0] as u16);
    fpu.status = f[1] as u16;
    fpu.set_tag_word(f[2] as u16);
    if layout.protected {
        fpu.ip = f[3] as u64;
        fpu.cs = f[4] as u16;
        fpu.dp = f[5] as u64;
        fpu.ds = f[6] as u16;
        // The narrow layout has no place for the opcode.
        fpu.opcode = (f[4] >> 16) as u16 & 0x7ff;
    } else {
        let address = |low: u32, high: u32| {
            let high = if layout.wide { high >> 12 & 0xffff } else { high >> 12 & 15 };
            (low & 0xffff | high << 16) as u64
        };
        fpu.ip = address(f[3], f[4]);
        fpu.dp = address(f[5], f[6]);
        fpu.opcode = f[4] as u16 & 0x7ff;
        (fpu.cs, fpu.ds) = (0, 0);
    }
    fpu.summarise();
}

/// Writes the eight registers in stack order, ten bytes each.
pub fn store_registers(fpu: &Fpu, out: &mut [u8]) {
    for i in 0..8 {
        out[10 * i..][..10].copy_from_slice(&fpu.st(i)[..10]);
    }
}

/// Reads eight registers in stack order, ten bytes each; TOP and tags have been loaded.
pub fn load_registers(fpu: &mut Fpu, image: &[u8]) {
    for i in 0..8 {
        let p = fpu.physical(i);
        fpu.regs[p] = [0; 16];
        fpu.regs[p][..10].copy_from_slice(&image[10 * i..][..10]);
    }
}

/// Bytes of the legacy region that belong to x87: 0 to 23 and the registers from [`FX_REGISTERS`] on.
pub const FX_REGISTERS: usize = 32;

/// Writes the x87 part of the FXSAVE area (all of its first 160 bytes but MXCSR and its mask, bytes 24 to 31).
/// `wide`: the 64-bit form with 64-bit pointers (REX.W).
pub fn store_fx(fpu: &Fpu, wide: bool, out: &mut [u8]) {
    out[0..2].copy_from_slice(&fpu.control.to_le_bytes());
    out[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    out[4] = fpu.valid;
    out[5] = 0;
    out[6..8].copy_from_slice(&fpu.opcode.to_le_bytes());
    if wide {
        out[8..16].copy_from_slice(&fpu.ip.to_le_bytes());
        out[16..24].copy_from_slice(&fpu.dp.to_le_bytes());
    } else {
        let pointer =
            |offset: u64, selector: u16| (offset as u32 as u64 | (selector as u64) << 32).to_le_bytes();
        out[8..16].copy_from_slice(&pointer(fpu.ip, fpu.cs));
        out[16..24].copy_from_slice(&pointer(fpu.dp, fpu.ds));
    }
    for i in 0..8 {
        let at = FX_REGISTERS + 16 * i;
        out[at..at + 10].copy_from_slice(&fpu.st(i)[..10]);
        out[at + 10..at + 16].fill(0);
    }
}

/// Reads the x87 part of the FXSAVE area.
pub fn load_fx(fpu: &mut Fpu, wide: bool, image: &[u8]) {
    let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let quad = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| image[at + n]));
    fpu.set_control(word(0));
    fpu.status = word(2);
    fpu.valid = image[4];
    fpu.opcode = word(6) & 0x7ff;
    // Silicon makes the instruction pointer canonical, in 57 bits.
    (fpu.ip, fpu.dp) = (((quad(8) << 7) as i64 >> 7) as u64, quad(16));
    (fpu.cs, fpu.ds) = (0, 0);
    if !wide {
        (fpu.cs, fpu.ds) = (word(12), word(20));
        fpu.ip &= 0xffff_ffff;
        fpu.dp &= 0xffff_ffff;
    }
    for i in 0..8 {
        let at = FX_REGISTERS + 16 * i;
        let mut v: F80 = [0; 16];
        v[..10].copy_from_slice(&image[at..at + 10]);
        let p = fpu.physical(i);
        fpu.regs[p] = v;
    }
    fpu.summarise();
}

#[cfg(test)]
mod tests {
    use super::super::x87_state::f80;
    use super::*;

    fn sample() -> Fpu {
        let mut fpu = Fpu::INITIAL;
        fpu.push(f80(0x3fff, 1 << 63));
        fpu.push(f80(0xc000, 3 << 62));
        Fpu { opcode: 0x123, ip: 0x1_2345, cs: 0x10, dp: 0x5_4321, ds: 0x18, control: 0x27f, ..fpu }
    }

    #[test]
    fn protected_layouts_round_trip() {
        for wide in [false, true] {
            let layout = Layout { wide, protected: true };
            let fpu = sample();
            let mut image = vec![0; layout.saved_bytes()];
            store_environment(&fpu, layout, &mut image);
            store_registers(&fpu, &mut image[layout.bytes()..]);
            let mut back = Fpu::INITIAL;
            load_environment(&mut back, layout, &image);
            load_registers(&mut back, &image[layout.bytes()..]);
            let mask = if wide { u32::MAX as u64 } else { 0xffff };
            let opcode = if wide { fpu.opcode } else { 0 };
            assert_eq!(back, Fpu { ip: fpu.ip & mask, dp: fpu.dp & mask, opcode, ..fpu });
        }
    }

    #[test]
    fn real_layouts_store_linear_addresses() {
        let fpu = sample();
        let mut image = [0; 28];
        store_environment(&fpu, Layout { wide: true, protected: false }, &mut image);
        let mut back = Fpu::INITIAL;
        load_environment(&mut back, Layout { wide: true, protected: false }, &image);
        assert_eq!((back.ip, back.dp, back.opcode), (0x1_2445, 0x5_44a1, 0x123));
        assert_eq!(image[2..4], [0xff, 0xff]);
    }

    #[test]
    fn fx_images_round_trip() {
        let fpu = sample();
        let mut image = [0xaa; 160];
        store_fx(&fpu, false, &mut image);
        assert_eq!(image[24..32], [0xaa; 8]);
        assert_eq!(image[32 + 8], 0);
        let mut back = Fpu::INITIAL;
        load_fx(&mut back, false, &image);
        assert_eq!(back, fpu);
        store_fx(&fpu, true, &mut image);
        load_fx(&mut back, true, &image);
        assert_eq!(back, Fpu { cs: 0, ds: 0, ..fpu });
    }
}
