//! The CPU models, and the one place where features are switched on.
//!
//! A model is a chip's identity and its features as the chip has them, whether implemented or not; what a CPU gets is
//! what is both in its model and in [`IMPLEMENTED`]. A model has versions: `Haswell` is `Haswell-v1`, the chip as it came
//! out, and the later ones state what they add and remove; some have names of their own (`Haswell-noTSX`).

use super::features::{Feature, FeatureSet};

mod amd;
mod generic;
mod intel;

/// A list of features by their identifiers.
macro_rules! set {
    ($($id:ident)*) => { &[$($crate::cpuid::Feature::$id),*] };
}
use set;

/// A vendor's name as CPUID leaf 0 spells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vendor(pub [u8; 12]);

impl Vendor {
    /// Intel.
    pub const INTEL: Vendor = Vendor(*b"GenuineIntel");
    /// AMD.
    pub const AMD: Vendor = Vendor(*b"AuthenticAMD");
    /// Hygon, whose chips are AMD's.
    pub const HYGON: Vendor = Vendor(*b"HygonGenuine");

    /// Whether its chips do as AMD's where vendors differ.
    pub fn is_amd(self) -> bool {
        self == Vendor::AMD || self == Vendor::HYGON
    }
}

/// What a chip says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chip {
    /// Vendor.
    pub vendor: Vendor,
    /// Family, model and stepping, extensions included.
    pub signature: [u16; 3],
    /// Highest basic leaf.
    pub level: u32,
    /// Highest extended leaf; 0 without extended leaves.
    pub xlevel: u32,
    /// What leaves 80000002H to 80000004H spell, at most 48 bytes.
    pub brand: &'static str,
}

const fn chip(vendor: Vendor, signature: [u16; 3], level: u32, xlevel: u32, brand: &'static str) -> Chip {
    Chip { vendor, signature, level, xlevel, brand }
}

/// How a later version of a model differs from the first.
pub struct Version {
    /// Its other name; may be empty.
    pub alias: &'static str,
    /// What the first version lacks.
    pub add: &'static [Feature],
    /// What only the first version has.
    pub remove: &'static [Feature],
    /// Its name in the brand leaves if that differs.
    pub brand: Option<&'static str>,
    /// Model and stepping, if these differ.
    pub signature: Option<(u16, u16)>,
}

const fn version(alias: &'static str, add: &'static [Feature], remove: &'static [Feature]) -> Version {
    Version { alias, add, remove, brand: None, signature: None }
}

impl Version {
    const fn brand(self, brand: &'static str) -> Version {
        Version { brand: Some(brand), ..self }
    }

    const fn signature(self, model: u16, stepping: u16) -> Version {
        Version { signature: Some((model, stepping)), ..self }
    }
}

/// A CPU model.
pub struct Model {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is, for lists.
    pub about: &'static str,
    /// Its identity.
    pub chip: Chip,
    /// Its features in the first version.
    pub features: FeatureSet,
    /// Physical address bits.
    pub phys_bits: u8,
    /// The versions from the second on.
    pub versions: &'static [Version],
}

impl Model {
    /// A model with the address bits that its features suggest: 40 with long mode, 36 with PSE-36, else 32.
    const fn new(name: &'static str, chip: Chip, features: FeatureSet) -> Model {
        let phys_bits = if features.has(Feature::LM) {
            40
        } else if features.has(Feature::PSE36) {
            36
        } else {
            32
        };
        Model { name, about: chip.brand, chip, features, phys_bits, versions: &[] }
    }

    const fn about(self, about: &'static str) -> Model {
        Model { about, ..self }
    }

    const fn phys_bits(self, phys_bits: u8) -> Model {
        Model { phys_bits, ..self }
    }

    const fn versions(self, versions: &'static [Version]) -> Model {
        Model { versions, ..self }
    }

    /// Features, and identity, of version `n`, 1 being the first.
    pub fn version(&self, n: usize) -> Option<(FeatureSet, Chip)> {
        if n == 1 {
            return Some((self.features, self.chip));
        }
        let v = self.versions.get(n.checked_sub(2)?)?;
        let mut chip = self.chip;
        chip.brand = v.brand.unwrap_or(chip.brand);
        if let Some((model, stepping)) = v.signature {
            chip.signature[1..].copy_from_slice(&[model, stepping]);
        }
        Some((self.features.with(v.add).without(v.remove), chip))
    }
}

/// All models, the default first.
pub fn models() -> impl Iterator<Item = &'static Model> {
    generic::GENERIC.iter().chain(intel::INTEL).chain(amd::AMD)
}

/// The model of that name, and which version of it the name stands for.
pub fn find(name: &str) -> Option<(&'static Model, usize)> {
    models().find_map(|m| {
        if m.name == name {
            return Some((m, 1));
        }
        if let Some(n) = m.versions.iter().position(|v| v.alias == name && !name.is_empty()) {
            return Some((m, n + 2));
        }
        let n: usize = name.strip_prefix(m.name)?.strip_prefix("-v")?.parse().ok()?;
        (1..=m.versions.len() + 1).contains(&n).then_some((m, n))
    })
}

/// What every x86-64 CPU has (the psABI's x86-64 baseline) and what an operating system needs beside.
const BASE: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2
    SYSCALL NX LM HYPERVISOR
]);

/// What x86-64-v2 adds.
const V2: FeatureSet = FeatureSet::of(set![SSE3 SSSE3 CX16 SSE41 SSE42 POPCNT LAHF_LM]);

/// What x86-64-v3 adds.
const V3: FeatureSet = FeatureSet::of(set![XSAVE AVX AVX2 BMI1 BMI2 F16C FMA LZCNT MOVBE]);

/// What operating systems like, whatever the level.
const SYSTEM: FeatureSet = FeatureSet::of(set![X2APIC TSC_DEADLINE TSC_ADJUST INVTSC ARAT RDTSCP]);

/// Hardware flaws that do not apply. An emulator does not speculate on the guest's behalf: Meltdown, L1TF, MDS, TAA and
/// their like read through privilege checks in a way that translated code, whose every access goes through the software
/// TLB of its privilege level, does not. What remains is that the *host* speculates, and a hostile program on the host
/// may observe that: a guest cannot defend itself against this by any mitigation of its own, so claiming the flaws would
/// only cost time. IBRS_ALL and BHI_CTRL stand in that list because the alternatives, retpolines and loops that clear branch
/// history, are no more effective here.
const NO_FLAWS: FeatureSet = FeatureSet::of(set![
    SPEC_CTRL ARCH_CAPABILITIES RDCL_NO IBRS_ALL SKIP_L1DFL SSB_NO MDS_NO PSCHANGE_MC_NO TAA_NO
    SBDR_SSDP_NO FBSDP_NO PSDP_NO BHI_NO BHI_CTRL PBRSB_NO GDS_NO RFDS_NO ITS_NO
]);

/// The rest of what `max` has. A feature that is added here is in `max` and may be asked for in any model.
const MAX: FeatureSet = FeatureSet::of(set![
    AVX AVX2 FMA F16C VAES VPCLMULQDQ AVX_VNNI
    PCLMULQDQ AES PCID MOVBE XSAVE XSAVEOPT XSAVEC XGETBV1 RDRAND RDSEED FSGSBASE BMI1 BMI2 LZCNT PREFETCHW
    SMEP SMAP ERMS FSRM INVPCID ADX CLFLUSHOPT CLWB UMIP PKU RDPID PDPE1GB
    XSAVES SS WBNOINVD CLDEMOTE PREFETCHITI FDP_EXCPTN_ONLY ZERO_FCS_FDS SHA_NI GFNI SERIALIZE MOVDIRI MOVDIR64B
]);

/// Implemented, but not in `max`: to be asked for by name. Five-level paging makes every TLB miss longer and guests turn it
/// on when they see it; the others are there for guests that insist, and for the models that have them.
const ON_REQUEST: FeatureSet = FeatureSet::of(set![
    LA57 MD_CLEAR STIBP SSBD MMXEXT
    IBPB IBRS AMD_STIBP STIBP_ALWAYS_ON AMD_SSBD AMD_NO_SSB XSAVEERPTR LFENCE_ALWAYS_SERIALIZING
]);

/// **The switch**: everything the CPU really does. A feature that is not in here cannot be had.
pub const IMPLEMENTED: FeatureSet = BASE.union(V2).union(SYSTEM).union(NO_FLAWS).union(MAX).union(ON_REQUEST);

/// Family, model and stepping that this project's own models report: an Intel processor of a model that never was. No kernel
/// has errata, microcode demands or speculation blacklists for it, so guests take the features and capabilities at
/// their word. A real model's number would promise more than features do: programs built with GCC's `target_clones("arch=…")`
/// choose code by that number alone, and run AVX-512 on what says that it is a Sapphire Rapids.
const OWN_SIGNATURE: [u16; 3] = [6, 0xb0, 1];
