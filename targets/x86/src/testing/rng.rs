//! Random numbers that are the same everywhere for the same seed.

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// Numbers that depend on both arguments.
    pub fn new(seed: u64, n: u64) -> Rng {
        let mut r = Rng(seed ^ n.wrapping_mul(0xd134_2543_de82_ef95));
        r.word();
        Rng(r.word())
    }

    /// 64 random bits.
    #[inline]
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Less than `n`.
    #[inline]
    pub fn below(&mut self, n: usize) -> usize {
        ((self.word() >> 32) * n as u64 >> 32) as usize
    }

    /// True once in `n` times.
    #[inline]
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// True so many times of a hundred.
    #[inline]
    pub fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    /// One of several.
    #[inline]
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
    /// An integer, mostly at an edge of some width.
    pub fn int(&mut self) -> u64 {
        let v = self.word();
        match self.below(12) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (v & 63),
            3 => (1u64 << (v & 63)).wrapping_sub(1),
            4 => v & 0xff,
            5 => v & 0xffff_ffff,
            6 => (v as i8) as u64,
            7 => v & 0x7f7f_7f7f_8080_8080,
            8 => [0x7f, 0x80, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, i64::MAX as u64, 1 << 63]
                [(v & 7) as usize],
            9 => (v as i32) as u64,
            _ => v,
        }
    }
}
