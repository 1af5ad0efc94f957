//! AMD's chips, and Hygon's.
//!
//! Source: AMD64 Architecture Programmer's Manual volume 3, appendices D and E; the families' BIOS and kernel developer's
//! guides and processor programming references.

use super::super::features::FeatureSet;
use super::{Model, Vendor, chip, set, version};

const ATHLON: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 MMX FXSR SSE SSE2 MMXEXT
    AMD_3DNOWEXT AMD_3DNOW
]);

const OPTERON_G1: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2 SSE3
    SYSCALL NX LM
]);

const OPTERON_G2: FeatureSet = OPTERON_G1.with(set![CX16 LAHF_LM SVM]);

const OPTERON_G3: FeatureSet = OPTERON_G2.with(set![MONITOR POPCNT RDTSCP LZCNT SSE4A MISALIGNSSE]);

const PHENOM: FeatureSet =
    OPTERON_G3.with(set![MMXEXT FXSR_OPT PDPE1GB AMD_3DNOWEXT AMD_3DNOW NPT]).without(set![MISALIGNSSE]);

const OPTERON_G4: FeatureSet = OPTERON_G3
    .with(set![PCLMULQDQ SSSE3 SSE41 SSE42 AES XSAVE AVX PDPE1GB PREFETCHW XOP FMA4 NPT NRIP_SAVE])
    .without(set![MONITOR]);

const OPTERON_G5: FeatureSet = OPTERON_G4.with(set![FMA F16C TBM]);

const EPYC: FeatureSet = OPTERON_G5
    .with(set![MONITOR MOVBE RDRAND ARAT FSGSBASE BMI1 AVX2 SMEP BMI2 RDSEED ADX SMAP CLFLUSHOPT SHA_NI
        XSAVEOPT XSAVEC XGETBV1 MMXEXT FXSR_OPT CR8LEGACY OSVW TOPOEXT])
    .without(set![XOP FMA4 TBM]);

const EPYC_ROME: FeatureSet =
    EPYC.with(set![CLWB UMIP RDPID XSAVES PERFCTR_CORE CLZERO XSAVEERPTR WBNOINVD IBPB AMD_STIBP]);

const EPYC_MILAN: FeatureSet = EPYC_ROME.with(set![PCID ERMS INVPCID PKU FSRM IBRS AMD_SSBD SVME_ADDR_CHK]);

const EPYC_GENOA: FeatureSet = EPYC_MILAN.with(
    set![VAES VPCLMULQDQ STIBP_ALWAYS_ON AMD_PSFD NO_NESTED_DATA_BP LFENCE_ALWAYS_SERIALIZING
        NULL_SEL_CLR_BASE AUTO_IBRS VNMI X2APIC LA57 GFNI AVX512F AVX512DQ AVX512IFMA AVX512CD AVX512BW
        AVX512VL AVX512VBMI AVX512VBMI2 AVX512VNNI AVX512BITALG AVX512_VPOPCNTDQ AVX512_BF16],
);

const DHYANA: FeatureSet = EPYC.with(set![IBPB]).without(set![PCLMULQDQ AES SHA_NI]);

/// AMD's and Hygon's models.
pub(super) static AMD: &[Model] = &[
Model::new("athlon", chip(Vendor::AMD, [6, 2, 3], 0x2, 0x8000_0008, "Tessera Virtual CPU"), ATHLON).about("AMD Athlon with SSE2"),
Model::new("Opteron_G1", chip(Vendor::AMD, [15, 6, 1], 0x5, 0x8000_0008, "AMD Opteron 240 (Gen 1 Class Opteron)"), OPTERON_G1),
Model::new("Opteron_G2", chip(Vendor::AMD, [15, 6, 1], 0x5, 0x8000_000a, "AMD Opteron 22xx (Gen 2 Class Opteron)"), OPTERON_G2),
Model::new("Opteron_G3", chip(Vendor::AMD, [16, 2, 3], 0x5, 0x8000_000a, "AMD Opteron 23xx (Gen 3 Class Opteron)"), OPTERON_G3),
Model::new("phenom", chip(Vendor::AMD, [16, 2, 3], 0x5, 0x8000_001a, "AMD Phenom(tm) 9550 Quad-Core Processor"), PHENOM),
Model::new("Opteron_G4", chip(Vendor::AMD, [21, 1, 2], 0xd, 0x8000_001a, "AMD Opteron 62xx class CPU"), OPTERON_G4),
Model::new("Opteron_G5", chip(Vendor::AMD, [21, 2, 0], 0xd, 0x8000_001a, "AMD Opteron 63xx class CPU"), OPTERON_G5),
Model::new("EPYC", chip(Vendor::AMD, [23, 1, 2], 0xd, 0x8000_001e, "AMD EPYC Processor"), EPYC).versions(&[version("EPYC-IBPB", set![IBPB], set![]).brand("AMD EPYC Processor (with IBPB)"), version("", set![XSAVES PERFCTR_CORE CLZERO XSAVEERPTR IBPB], set![])]),
Model::new("EPYC-Rome", chip(Vendor::AMD, [23, 49, 0], 0xd, 0x8000_001e, "AMD EPYC-Rome Processor"), EPYC_ROME).versions(&[version("", set![IBRS AMD_SSBD], set![]), version("", set![IBRS AMD_SSBD], set![XSAVES])]),
Model::new("EPYC-Milan", chip(Vendor::AMD, [25, 1, 1], 0xd, 0x8000_001e, "AMD EPYC-Milan Processor"), EPYC_MILAN).versions(&[version("", set![VAES VPCLMULQDQ STIBP_ALWAYS_ON AMD_PSFD NO_NESTED_DATA_BP LFENCE_ALWAYS_SERIALIZING NULL_SEL_CLR_BASE], set![]).brand("AMD EPYC-Milan-v2 Processor")]),
Model::new("EPYC-Genoa", chip(Vendor::AMD, [25, 17, 0], 0xd, 0x8000_0022, "AMD EPYC-Genoa Processor"), EPYC_GENOA).phys_bits(48),
Model::new("Dhyana", chip(Vendor::HYGON, [24, 0, 1], 0xd, 0x8000_001e, "Hygon Dhyana Processor"), DHYANA).versions(&[version("", set![XSAVES], set![])]),
];
