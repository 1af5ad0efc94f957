//! A set of pages that may say yes wrongly, never no: which pages of an address space code was ever fetched from.
//!
//! A flush of a page that is not in it concerns no jump. As flushes of data pages are frequent, wrong answers must be rare:
//! two bits a page, and a limit to how many pages there may be before it has to be cleared.

/// 64-bit words.
const WORDS: usize = 512;
/// Bits of a bit's number.
const BITS: u32 = (WORDS * 64).trailing_zeros();
/// Pages that may be noted: with so many, one of fifty of the others is in the set, too.
const LIMIT: u32 = WORDS as u32 * 64 / 12;

/// Large pages are members of their own.
pub(crate) struct PageFilter {
    words: Box<[u64; WORDS]>,
    noted: u32,
}

/// Numbers of the two bits of a page of `1 << bits` bytes.
fn places(va: u64, bits: u32) -> [usize; 2] {
    let h = (va >> bits ^ u64::from(bits) << 52).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [(h >> (64 - BITS)) as usize, (h >> (64 - 2 * BITS)) as usize % (1 << BITS)]
}

impl PageFilter {
    pub fn new() -> PageFilter {
        PageFilter { words: Box::new([0; WORDS]), noted: 0 }
    }

    /// Whether it has to be cleared before more is noted.
    pub fn is_full(&self) -> bool {
        self.noted >= LIMIT
    }

    /// Adds the page of `1 << bits` bytes that contains `va`.
    pub fn note(&mut self, va: u64, bits: u32) {
        self.noted += u32::from(!self.may_have(va, bits));
        for n in places(va, bits) {
            self.words[n / 64] |= 1 << (n % 64);
        }
    }

    /// Whether the page of `1 << bits` bytes that contains `va` may be a member.
    pub fn may_have(&self, va: u64, bits: u32) -> bool {
        places(va, bits).into_iter().all(|n| self.words[n / 64] >> (n % 64) & 1 != 0)
    }

    /// Removes all members.
    pub fn clear(&mut self) {
        if self.noted != 0 {
            self.words.fill(0);
            self.noted = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_one_has_its_members_and_few_others() {
        let mut f = PageFilter::new();
        let mut va = 0xffff_8000_0000_0000u64;
        while !f.is_full() {
            f.note(va, 12);
            va += 0x1000;
        }
        f.note(0x7fff_0020_0000, 21);
        let members = (0xffff_8000_0000_0000..va).step_by(0x1000);
        assert!(members.clone().count() >= 2000 && members.clone().all(|va| f.may_have(va | 0x123, 12)));
        assert!(f.may_have(0x7fff_003f_ffff, 21));
        let wrong = (0..10_000u64).filter(|n| f.may_have(0x5555_0000_0000 + n * 0x1000, 12)).count();
        assert!(wrong < 400, "{wrong} of 10000");
        f.clear();
        assert!(members.clone().all(|va| !f.may_have(va, 12)) && !f.is_full());
    }
}
