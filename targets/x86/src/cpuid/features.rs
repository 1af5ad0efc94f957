//! Features and sets of them.
//!
//! A [`Feature`] is the number of a bit in a [`FeatureSet`], whose words are the CPUID registers themselves, so leaves
//! are made by copying words. The names, bits and prerequisites of all features are in [`table`](super::table).

use super::table::{ALIASES, ROWS};

/// A word of a [`FeatureSet`]: the CPUID register (or half of an MSR) that enumerates the feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Word {
    /// CPUID.1:EDX.
    L1Edx,
    /// CPUID.1:ECX.
    L1Ecx,
    /// CPUID.6:EAX.
    L6Eax,
    /// CPUID.(7,0):EBX.
    L7Ebx,
    /// CPUID.(7,0):ECX.
    L7Ecx,
    /// CPUID.(7,0):EDX.
    L7Edx,
    /// CPUID.(7,1):EAX.
    L7Sub1Eax,
    /// CPUID.(7,1):EDX.
    L7Sub1Edx,
    /// CPUID.(7,2):EDX.
    L7Sub2Edx,
    /// CPUID.(0DH,1):EAX.
    XsaveEax,
    /// CPUID.80000001H:EDX.
    Ext1Edx,
    /// CPUID.80000001H:ECX.
    Ext1Ecx,
    /// CPUID.80000007H:EDX.
    Ext7Edx,
    /// CPUID.80000008H:EBX.
    Ext8Ebx,
    /// CPUID.8000000AH:EDX.
    ExtAEdx,
    /// CPUID.80000021H:EAX.
    Ext21Eax,
    /// IA32_ARCH_CAPABILITIES, low half.
    ArchLow,
    /// IA32_ARCH_CAPABILITIES, high half.
    ArchHigh,
    /// IA32_CORE_CAPABILITIES, low half.
    CoreLow,
}

const WORDS: usize = Word::CoreLow as usize + 1;

/// A feature: word and bit of a [`FeatureSet`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Feature(u16);

impl Feature {
    pub(super) const fn new(word: Word, bit: u8) -> Feature {
        Feature(word as u16 * 32 + bit as u16)
    }

    fn row(self) -> Option<&'static Row> {
        ROWS.iter().find(|r| r.feature == self)
    }

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        self.row().map_or("?", |r| r.name)
    }

    /// What the feature makes no sense without.
    pub fn needs(self) -> &'static [Feature] {
        self.row().map_or(&[], |r| r.needs)
    }

    /// The feature of that name. `_` is as good as `-`, and other names in use are understood.
    pub fn by_name(name: &str) -> Option<Feature> {
        let name = name.replace('_', "-");
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |&(_, name)| name);
        ROWS.iter().find(|r| r.name == name).map(|r| r.feature)
    }

    /// The word that enumerates it.
    pub const fn word(self) -> usize {
        self.0 as usize / 32
    }
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FeatureSet([u32; WORDS]);

impl FeatureSet {
    /// The set of the features listed.
    pub const fn of(features: &[Feature]) -> FeatureSet {
        FeatureSet([0; WORDS]).with(features)
    }

    /// The set and the features listed.
    pub const fn with(self, features: &[Feature]) -> FeatureSet {
        let mut words = self.0;
        let mut i = 0;
        while i < features.len() {
            let n = features[i].0 as usize;
            words[n / 32] |= 1 << (n % 32);
            i += 1;
        }
        FeatureSet(words)
    }

    /// The set without the features listed.
    pub const fn without(self, features: &[Feature]) -> FeatureSet {
        let mut words = self.0;
        let mut i = 0;
        while i < features.len() {
            let n = features[i].0 as usize;
            words[n / 32] &= !(1 << (n % 32));
            i += 1;
        }
        FeatureSet(words)
    }

    /// All features of both sets.
    pub const fn union(self, other: FeatureSet) -> FeatureSet {
        let mut words = self.0;
        let mut i = 0;
        while i < WORDS {
            words[i] |= other.0[i];
            i += 1;
        }
        FeatureSet(words)
    }

    /// The features that both sets have.
    pub fn intersection(self, other: &FeatureSet) -> FeatureSet {
        FeatureSet(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Whether it has `f`.
    #[inline]
    pub const fn has(&self, f: Feature) -> bool {
        self.0[f.word()] >> (f.0 % 32) & 1 != 0
    }

    /// Adds or removes `f`.
    pub fn set(&mut self, f: Feature, on: bool) {
        let word = &mut self.0[f.word()];
        let bit = 1 << (f.0 % 32);
        if on { *word |= bit } else { *word &= !bit }
    }

    /// One word, as CPUID reports it.
    #[inline]
    pub fn word(&self, w: Word) -> u32 {
        self.0[w as usize]
    }

    /// Replaces one word, for sets that are read from a CPUID instruction.
    pub fn set_word(&mut self, w: Word, value: u32) {
        self.0[w as usize] = value;
    }

    /// Features of `self` that `other` lacks, in table order.
    pub fn missing_in<'a>(&'a self, other: &'a FeatureSet) -> impl Iterator<Item = Feature> + 'a {
        ROWS.iter().map(|r| r.feature).filter(|&f| self.has(f) && !other.has(f))
    }

    /// Takes away every feature that needs an absent one.
    pub fn close(&mut self) {
        loop {
            let before = *self;
            for row in ROWS {
                if self.has(row.feature) && row.needs.iter().any(|&n| !self.has(n)) {
                    self.set(row.feature, false);
                }
            }
            if *self == before {
                return;
            }
        }
    }
}

/// A row of the feature table.
pub struct Row {
    /// The feature.
    pub feature: Feature,
    /// Name on the command line.
    pub name: &'static str,
    /// What it makes no sense without.
    pub needs: &'static [Feature],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_follows_chains() {
        let mut s = FeatureSet::default();
        for r in ROWS {
            s.set(r.feature, true);
        }
        let all = s;
        s.close();
        assert_eq!(s, all, "a complete set is closed");
        s.set(Feature::SSE2, false);
        s.close();
        assert!(s.has(Feature::SSE));
        assert!(!s.has(Feature::SSE42) && !s.has(Feature::AVX2) && !s.has(Feature::AES));
    }

    #[test]
    fn set_operations_agree() {
        let a = FeatureSet::of(&[Feature::FPU, Feature::SSE]);
        let b = FeatureSet::of(&[Feature::SSE, Feature::AVX2]);
        assert_eq!(a.union(b).without(&[Feature::SSE, Feature::FPU]), FeatureSet::of(&[Feature::AVX2]));
        assert_eq!(a.intersection(&b), FeatureSet::of(&[Feature::SSE]));
        assert_eq!(a.missing_in(&b).collect::<Vec<_>>(), [Feature::FPU]);
    }
}
