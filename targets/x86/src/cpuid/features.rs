//! The features that CPUID and IA32_ARCH_CAPABILITIES enumerate: one row a feature, named as QEMU names them.
//!
//! A [`Feature`] is the number of a bit in a [`FeatureSet`], whose words are the CPUID registers themselves, so leaves
//! are made by copying words. A row may name features that it makes no sense without (`needs`): taking one of these away
//! takes the dependents away, too.
//!
//! To add a feature: a row here, a mention in [`IMPLEMENTED`](super::models::IMPLEMENTED) once it works, and, if it
//! brings instructions, an arm in [`codes`](super::codes).

/// A word of a [`FeatureSet`]: the CPUID register (or half of an MSR) that enumerates the feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Word {
    /// CPUID.1:EDX.
    L1Edx,
    /// CPUID.1:ECX.
    L1Ecx,
    /// CPUID.(7,0):EBX.
    L7Ebx,
    /// CPUID.(7,0):ECX.
    L7Ecx,
    /// CPUID.(7,0):EDX.
    L7Edx,
    /// CPUID.(7,2):EDX.
    L7Sub2Edx,
    /// CPUID.80000001H:EDX.
    Ext1Edx,
    /// CPUID.80000001H:ECX.
    Ext1Ecx,
    /// CPUID.80000007H:EDX.
    Ext7Edx,
    /// CPUID.6:EAX.
    L6Eax,
    /// CPUID.(0DH,1):EAX.
    XsaveEax,
    /// IA32_ARCH_CAPABILITIES, low half.
    ArchLow,
    /// IA32_ARCH_CAPABILITIES, high half.
    ArchHigh,
}

const WORDS: usize = 13;

/// A feature: word and bit of a [`FeatureSet`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Feature(u16);

impl Feature {
    const fn new(word: Word, bit: u8) -> Feature {
        Feature(word as u16 * 32 + bit as u16)
    }

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        ROWS.iter().find(|r| r.feature == self).map_or("?", |r| r.name)
    }

    /// The feature of that name. `_` is as good as `-`, and the names that Linux uses are understood.
    pub fn by_name(name: &str) -> Option<Feature> {
        let name = name.replace('_', "-");
        let name = match name.as_str() {
            "sse3" => "pni",
            "sse4-1" => "sse4.1",
            "sse4-2" => "sse4.2",
            "lzcnt" => "abm",
            "fsrm-rep-movs" => "fsrm",
            "ibrs" | "ibpb" => "spec-ctrl",
            "constant-tsc" => "invtsc",
            other => other,
        };
        ROWS.iter().find(|r| r.name == name).map(|r| r.feature)
    }
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FeatureSet([u32; WORDS]);

impl FeatureSet {
    /// The set of the features listed.
    pub const fn of(features: &[Feature]) -> FeatureSet {
        let mut words = [0; WORDS];
        let mut i = 0;
        while i < features.len() {
            let n = features[i].0 as usize;
            words[n / 32] |= 1 << (n % 32);
            i += 1;
        }
        FeatureSet(words)
    }

    /// Whether it has `f`.
    #[inline]
    pub fn has(&self, f: Feature) -> bool {
        self.0[f.0 as usize / 32] >> (f.0 % 32) & 1 != 0
    }

    /// Adds or removes `f`.
    pub fn set(&mut self, f: Feature, on: bool) {
        let word = &mut self.0[f.0 as usize / 32];
        let bit = 1 << (f.0 % 32);
        if on { *word |= bit } else { *word &= !bit }
    }

    /// One word, as CPUID reports it.
    #[inline]
    pub fn word(&self, w: Word) -> u32 {
        self.0[w as usize]
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

macro_rules! features {
    ($($word:ident { $($bit:literal $id:ident $name:literal $(needs $($need:ident)+)?;)* })*) => {
        #[allow(missing_docs)]
        impl Feature {
            $($(pub const $id: Feature = Feature::new(Word::$word, $bit);)*)*
        }

        /// All features, in order of words and bits.
        pub static ROWS: &[Row] = &[
            $($(Row { feature: Feature::$id, name: $name, needs: &[$($(Feature::$need),+)?] },)*)*
        ];
    };
}

features! {
    L1Edx {
        0 FPU "fpu";
        1 VME "vme";
        2 DE "de";
        3 PSE "pse";
        4 TSC "tsc";
        5 MSR "msr";
        6 PAE "pae";
        7 MCE "mce";
        8 CX8 "cx8";
        9 APIC "apic";
        11 SEP "sep" needs MSR;
        12 MTRR "mtrr" needs MSR;
        13 PGE "pge";
        14 MCA "mca" needs MCE MSR;
        15 CMOV "cmov";
        16 PAT "pat" needs MSR;
        17 PSE36 "pse36" needs PSE;
        19 CLFLUSH "clflush";
        23 MMX "mmx" needs FPU;
        24 FXSR "fxsr" needs FPU;
        25 SSE "sse" needs FXSR MMX;
        26 SSE2 "sse2" needs SSE;
        28 HT "ht";
    }
    L1Ecx {
        0 SSE3 "pni" needs SSE2;
        1 PCLMULQDQ "pclmulqdq" needs SSE2;
        9 SSSE3 "ssse3" needs SSE3;
        12 FMA "fma" needs AVX;
        13 CX16 "cx16" needs LM;
        17 PCID "pcid" needs LM;
        19 SSE41 "sse4.1" needs SSSE3;
        20 SSE42 "sse4.2" needs SSE41;
        21 X2APIC "x2apic" needs APIC MSR;
        22 MOVBE "movbe";
        23 POPCNT "popcnt";
        24 TSC_DEADLINE "tsc-deadline" needs APIC TSC MSR;
        25 AES "aes" needs SSE2;
        26 XSAVE "xsave" needs FXSR;
        28 AVX "avx" needs XSAVE SSE42;
        29 F16C "f16c" needs AVX;
        30 RDRAND "rdrand";
        31 HYPERVISOR "hypervisor";
    }
    L7Ebx {
        0 FSGSBASE "fsgsbase" needs LM;
        1 TSC_ADJUST "tsc-adjust" needs TSC MSR;
        3 BMI1 "bmi1";
        5 AVX2 "avx2" needs AVX;
        7 SMEP "smep";
        8 BMI2 "bmi2";
        9 ERMS "erms";
        10 INVPCID "invpcid";
        18 RDSEED "rdseed";
        19 ADX "adx";
        20 SMAP "smap";
        23 CLFLUSHOPT "clflushopt" needs CLFLUSH;
        24 CLWB "clwb" needs CLFLUSH;
        29 SHA_NI "sha-ni" needs SSE2;
    }
    L7Ecx {
        2 UMIP "umip";
        3 PKU "pku" needs LM XSAVE;
        8 GFNI "gfni" needs SSE2;
        9 VAES "vaes" needs AVX2 AES;
        10 VPCLMULQDQ "vpclmulqdq" needs AVX2 PCLMULQDQ;
        16 LA57 "la57" needs LM;
        22 RDPID "rdpid";
    }
    L7Edx {
        4 FSRM "fsrm";
        10 MD_CLEAR "md-clear";
        26 SPEC_CTRL "spec-ctrl" needs MSR;
        27 STIBP "stibp" needs MSR;
        29 ARCH_CAPABILITIES "arch-capabilities" needs MSR;
        31 SSBD "ssbd" needs MSR;
    }
    L7Sub2Edx {
        4 BHI_CTRL "bhi-ctrl" needs SPEC_CTRL;
    }
    Ext1Edx {
        11 SYSCALL "syscall" needs MSR;
        20 NX "nx" needs PAE MSR;
        26 PDPE1GB "pdpe1gb" needs LM;
        27 RDTSCP "rdtscp" needs TSC MSR;
        29 LM "lm" needs PAE NX SYSCALL;
    }
    Ext1Ecx {
        0 LAHF_LM "lahf-lm" needs LM;
        5 LZCNT "abm";
        8 PREFETCHW "3dnowprefetch";
    }
    Ext7Edx {
        8 INVTSC "invtsc" needs TSC;
    }
    L6Eax {
        2 ARAT "arat" needs APIC;
    }
    XsaveEax {
        0 XSAVEOPT "xsaveopt" needs XSAVE;
        1 XSAVEC "xsavec" needs XSAVE;
        2 XGETBV1 "xgetbv1" needs XSAVE;
    }
    ArchLow {
        0 RDCL_NO "rdctl-no" needs ARCH_CAPABILITIES;
        1 IBRS_ALL "ibrs-all" needs ARCH_CAPABILITIES SPEC_CTRL;
        3 SKIP_L1DFL "skip-l1dfl-vmentry" needs ARCH_CAPABILITIES;
        4 SSB_NO "ssb-no" needs ARCH_CAPABILITIES;
        5 MDS_NO "mds-no" needs ARCH_CAPABILITIES;
        6 PSCHANGE_MC_NO "pschange-mc-no" needs ARCH_CAPABILITIES;
        8 TAA_NO "taa-no" needs ARCH_CAPABILITIES;
        13 SBDR_SSDP_NO "sbdr-ssdp-no" needs ARCH_CAPABILITIES;
        14 FBSDP_NO "fbsdp-no" needs ARCH_CAPABILITIES;
        15 PSDP_NO "psdp-no" needs ARCH_CAPABILITIES;
        20 BHI_NO "bhi-no" needs ARCH_CAPABILITIES;
        24 PBRSB_NO "pbrsb-no" needs ARCH_CAPABILITIES;
        26 GDS_NO "gds-no" needs ARCH_CAPABILITIES;
        27 RFDS_NO "rfds-no" needs ARCH_CAPABILITIES;
    }
    ArchHigh {
        30 ITS_NO "its-no" needs ARCH_CAPABILITIES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_distinct() {
        for (i, a) in ROWS.iter().enumerate() {
            for b in &ROWS[i + 1..] {
                assert_ne!(a.feature, b.feature, "{} and {}", a.name, b.name);
                assert_ne!(a.name, b.name);
            }
        }
    }

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
    fn names_have_aliases() {
        assert_eq!(Feature::by_name("sse4_2"), Some(Feature::SSE42));
        assert_eq!(Feature::by_name("lzcnt"), Some(Feature::LZCNT));
        assert_eq!(Feature::by_name("sse9"), None);
    }
}
