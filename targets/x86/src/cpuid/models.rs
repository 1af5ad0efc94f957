//! The CPU models, and the one place where features are switched on.

use super::features::{Feature, FeatureSet};

/// A CPU model.
pub struct Model {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is, for lists.
    pub about: &'static str,
    /// Its features, as groups.
    pub features: &'static [&'static [Feature]],
    /// Physical address bits.
    pub phys_bits: u8,
}

impl Model {
    /// Its features.
    pub fn set(&self) -> FeatureSet {
        let all: Vec<Feature> = self.features.iter().flat_map(|g| g.iter().copied()).collect();
        FeatureSet::of(&all)
    }
}

/// Family, model and stepping that all models report, as CPUID.1:EAX. A recent server part that no kernel has errata,
/// microcode demands or speculation blacklists for, so guests take the features and capabilities at their word.
pub const SIGNATURE: u32 = signature(6, 0x8f, 8);

const fn signature(family: u32, model: u32, stepping: u32) -> u32 {
    stepping | (model & 0xf) << 4 | family << 8 | (model >> 4) << 16
}

/// What every x86-64 CPU has (the psABI's x86-64 baseline) and what an operating system needs beside.
const BASE: &[Feature] = {
    use Feature as F;
    &[
        F::FPU,
        F::VME,
        F::DE,
        F::PSE,
        F::TSC,
        F::MSR,
        F::PAE,
        F::MCE,
        F::CX8,
        F::APIC,
        F::SEP,
        F::MTRR,
        F::PGE,
        F::MCA,
        F::CMOV,
        F::PAT,
        F::PSE36,
        F::CLFLUSH,
        F::MMX,
        F::FXSR,
        F::SSE,
        F::SSE2,
        F::SYSCALL,
        F::NX,
        F::LM,
        F::HYPERVISOR,
    ]
};

/// What x86-64-v2 adds.
const V2: &[Feature] = {
    use Feature as F;
    &[F::SSE3, F::SSSE3, F::CX16, F::SSE41, F::SSE42, F::POPCNT, F::LAHF_LM]
};

/// What x86-64-v3 adds.
const V3: &[Feature] = {
    use Feature as F;
    &[F::XSAVE, F::AVX, F::AVX2, F::BMI1, F::BMI2, F::F16C, F::FMA, F::LZCNT, F::MOVBE]
};

/// What operating systems like, whatever the level.
const SYSTEM: &[Feature] = {
    use Feature as F;
    &[F::X2APIC, F::TSC_DEADLINE, F::TSC_ADJUST, F::INVTSC, F::ARAT, F::RDTSCP]
};

/// Hardware flaws that do not apply. An emulator does not speculate on the guest's behalf: Meltdown, L1TF, MDS, TAA and
/// their like read through privilege checks in a way that translated code, whose every access goes through the software
/// TLB of its privilege level, does not. What remains is that the *host* speculates, and a hostile program on the host
/// may observe that: a guest cannot defend itself against this by any mitigation of its own, so claiming the flaws would
/// only cost time. IBRS_ALL and BHI_CTRL stand in that list because the alternatives, retpolines and loops that clear branch
/// history, are no more effective here.
const NO_FLAWS: &[Feature] = {
    use Feature as F;
    &[
        F::SPEC_CTRL,
        F::ARCH_CAPABILITIES,
        F::RDCL_NO,
        F::IBRS_ALL,
        F::SKIP_L1DFL,
        F::SSB_NO,
        F::MDS_NO,
        F::PSCHANGE_MC_NO,
        F::TAA_NO,
        F::SBDR_SSDP_NO,
        F::FBSDP_NO,
        F::PSDP_NO,
        F::BHI_NO,
        F::BHI_CTRL,
        F::PBRSB_NO,
        F::GDS_NO,
        F::RFDS_NO,
        F::ITS_NO,
    ]
};

/// The rest of what `max` has.
const MAX: &[Feature] = {
    use Feature as F;
    &[
        F::PCLMULQDQ,
        F::AES,
        F::PCID,
        F::MOVBE,
        F::XSAVE,
        F::XSAVEOPT,
        F::XSAVEC,
        F::XGETBV1,
        F::RDRAND,
        F::RDSEED,
        F::FSGSBASE,
        F::BMI1,
        F::BMI2,
        F::LZCNT,
        F::PREFETCHW,
        F::SMEP,
        F::SMAP,
        F::ERMS,
        F::FSRM,
        F::INVPCID,
        F::ADX,
        F::CLFLUSHOPT,
        F::CLWB,
        F::UMIP,
        F::PKU,
        F::RDPID,
        F::PDPE1GB,
    ]
};

/// Implemented, but in no model: to be asked for by name. Five-level paging makes every TLB miss longer and guests turn it
/// on when they see it; the others are there for guests that insist.
const ON_REQUEST: &[Feature] = {
    use Feature as F;
    &[F::LA57, F::MD_CLEAR, F::STIBP, F::SSBD]
};

/// **The switch**: everything the CPU really does. A feature that is not in here cannot be had.
pub const IMPLEMENTED: &[&[Feature]] = &[BASE, V2, SYSTEM, NO_FLAWS, MAX, ON_REQUEST];

/// The models, the default first.
pub static MODELS: &[Model] = &[
    Model {
        name: "max",
        about: "everything that is implemented (default)",
        features: &[BASE, V2, SYSTEM, NO_FLAWS, MAX],
        phys_bits: 46,
    },
    Model {
        name: "qemu64",
        about: "x86-64 baseline with SSE3 and CMPXCHG16B, as QEMU's model of that name",
        features: &[BASE, &[Feature::SSE3, Feature::CX16, Feature::LAHF_LM, Feature::X2APIC], NO_FLAWS],
        phys_bits: 40,
    },
    Model { name: "x86-64-v1", about: "x86-64 baseline", features: &[BASE, SYSTEM, NO_FLAWS], phys_bits: 40 },
    Model {
        name: "x86-64-v2",
        about: "x86-64 with SSE4.2 and POPCNT",
        features: &[BASE, V2, SYSTEM, NO_FLAWS],
        phys_bits: 40,
    },
    Model {
        name: "x86-64-v3",
        about: "x86-64 with AVX2, BMI and FMA",
        features: &[
            BASE,
            V2,
            V3,
            SYSTEM,
            NO_FLAWS,
            &[Feature::XSAVEOPT, Feature::XSAVEC, Feature::XGETBV1, Feature::SMEP, Feature::SMAP],
        ],
        phys_bits: 40,
    },
];
