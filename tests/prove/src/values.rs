//! Operand values at the edges of every type.

use tessera_x86::testing::Rng;

const F32: [u32; 16] = [
    0,
    1 << 31,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0001,
    0x7fa0_0002,
    0xffa0_0003,
    1,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x4f00_0000,
    0xcf00_0000,
    0x3f00_0000,
];
const F64: [u64; 16] = [
    0,
    1 << 63,
    0x3ff0 << 48,
    0xbff0 << 48,
    0x7ff0 << 48,
    0xfff0 << 48,
    0x7ff8_0000_0000_0001,
    0x7ff4_0000_0000_0002,
    0xfff4_0000_0000_0003,
    1,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x43e0_0000_0000_0000,
    0xc1e0_0000_0000_0000,
    0x3fe0 << 48,
];
const F16: [u16; 8] = [0, 0x8000, 0x3c00, 0x7c00, 0x7e01, 0x7d02, 1, 0x7bff];

/// Eight bytes of a vector register or of memory.
pub fn lanes(r: &mut Rng) -> u64 {
    match r.below(8) {
        0 => r.word(),
        1 => r.pick(&F64),
        2 => r.pick(&F32) as u64 | (r.pick(&F32) as u64) << 32,
        3 => (0..4).fold(0, |v, _| v << 16 | r.pick(&F16) as u64),
        4 => r.word() & 0x0f0f_0f0f_0f0f_0f0f,
        // Numbers of moderate size in both formats.
        5 => r.word() & 0x83ff_ffff_83ff_ffff | 0x3c00_0000_3c00_0000,
        6 => r.int(),
        _ => (0..8).fold(0, |v, _| v << 8 | r.pick(&[0u64, 1, 0x7f, 0x80, 0xff, 0x41, 0x20, 9])),
    }
}

/// A vector register of 32 bytes.
pub fn vector(r: &mut Rng) -> [u64; 4] {
    match r.below(8) {
        0 => {
            let v = lanes(r);
            [v; 4]
        }
        // Indices for gathers, shuffles and blends.
        1 => std::array::from_fn(|_| r.word() & 0x0000_00ff_0000_00ff),
        2 => std::array::from_fn(|_| if r.one_in(2) { u64::MAX } else { 0 }),
        _ => std::array::from_fn(|_| lanes(r)),
    }
}

/// An 80-bit number of any class.
pub fn f80(r: &mut Rng) -> [u8; 10] {
    let (exponent, mantissa) = match r.below(10) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63),
        2 => (0x7fff, 3 << 62 | r.word() >> 2),
        3 => (0x7fff, 1 << 63 | r.word() >> 2),
        4 => (0, r.word() >> 1),
        // Unnormals, pseudo-denormals, pseudo-infinities and pseudo-NaNs among them.
        5 => (r.word() as u16, r.word()),
        6 => (r.pick(&[0, 1, 0x3fff, 0x7ffe, 0x7fff]), r.pick(&[0, 1, 1 << 62, 1 << 63, u64::MAX])),
        _ => (0x3ff0 + r.below(80) as u16, 1 << 63 | r.word()),
    };
    let sign = (r.word() as u16) & 0x8000;
    let mut v = [0; 10];
    v[..8].copy_from_slice(&mantissa.to_le_bytes());
    v[8..].copy_from_slice(&(exponent & 0x7fff | sign).to_le_bytes());
    v
}

/// Values made in advance: drawing is cheaper than making.
pub struct Pools {
    ints: Vec<u64>,
    vectors: Vec<[u64; 4]>,
    f80s: Vec<[u8; 10]>,
}

impl Pools {
    /// The same pools each time.
    pub fn new() -> Pools {
        let mut r = Rng::new(0x7e55_e7a0, 1);
        Pools {
            ints: (0..4096).map(|_| r.int()).collect(),
            vectors: (0..4096).map(|_| vector(&mut r)).collect(),
            f80s: (0..1024).map(|_| f80(&mut r)).collect(),
        }
    }

    /// An integer.
    pub fn int(&self, r: &mut Rng) -> u64 {
        r.pick(&self.ints)
    }

    /// A vector.
    pub fn vector(&self, r: &mut Rng) -> [u64; 4] {
        r.pick(&self.vectors)
    }

    /// An 80-bit number.
    pub fn f80(&self, r: &mut Rng) -> [u8; 10] {
        r.pick(&self.f80s)
    }

    /// Fills memory with values of all types.
    pub fn fill(&self, r: &mut Rng, out: &mut [u8]) {
        for chunk in out.chunks_mut(32) {
            let mut bytes = [0; 32];
            for (to, from) in bytes.chunks_exact_mut(8).zip(self.vector(r)) {
                to.copy_from_slice(&from.to_le_bytes());
            }
            if r.one_in(4) {
                bytes[..10].copy_from_slice(&self.f80(r));
            }
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

impl Default for Pools {
    fn default() -> Pools {
        Pools::new()
    }
}
