//! Intel's chips.
//!
//! Families of features build on each other as the chips did; what a model has beyond its predecessor is its own line.
//! The first version is the chip as it came out; later ones have what microcode updates brought and took away.
//!
//! Source: SDM volume 2, CPUID; datasheets and specification updates of the chips.

use super::super::features::FeatureSet;
use super::{Model, Vendor, chip, set, version};

const I486: FeatureSet = FeatureSet::of(set![
    FPU VME PSE
]);

const PENTIUM: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR MCE CX8 APIC MMX
]);

const PENTIUM2: FeatureSet = PENTIUM.with(set![PAE SEP MTRR PGE MCA CMOV PAT PSE36 FXSR]);

const PENTIUM3: FeatureSet = PENTIUM2.with(set![SSE]);

const COREDUO: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT CLFLUSH ACPI MMX FXSR SSE SSE2 SS SSE3
    MONITOR NX
]);

const CORE2DUO: FeatureSet = COREDUO.with(set![PSE36 SSSE3 CX16 SYSCALL LM LAHF_LM]);

const N270: FeatureSet = COREDUO.with(set![SSSE3 MOVBE LAHF_LM]);

const CONROE: FeatureSet = CORE2DUO.without(set![ACPI SS MONITOR CX16]);

const PENRYN: FeatureSet = CONROE.with(set![CX16 SSE41]);

const NEHALEM: FeatureSet = PENRYN.with(set![SSE42 POPCNT]);

const WESTMERE: FeatureSet = NEHALEM.with(set![PCLMULQDQ AES ARAT]);

const SANDYBRIDGE: FeatureSet = WESTMERE.with(set![X2APIC TSC_DEADLINE XSAVE AVX XSAVEOPT RDTSCP]);

const IVYBRIDGE: FeatureSet = SANDYBRIDGE.with(set![F16C RDRAND FSGSBASE SMEP ERMS]);

const HASWELL: FeatureSet = IVYBRIDGE.with(set![FMA PCID MOVBE BMI1 HLE AVX2 BMI2 INVPCID RTM LZCNT]);

const BROADWELL: FeatureSet = HASWELL.with(set![RDSEED ADX SMAP PREFETCHW]);

const SKYLAKE_CLIENT: FeatureSet = BROADWELL.with(set![XSAVEC XGETBV1]);

const SKYLAKE_SERVER: FeatureSet =
    SKYLAKE_CLIENT.with(set![AVX512F AVX512DQ CLFLUSHOPT CLWB AVX512CD AVX512BW AVX512VL PKU PDPE1GB]);

const CASCADELAKE_SERVER: FeatureSet = SKYLAKE_SERVER.with(set![AVX512VNNI SPEC_CTRL SSBD]);

const COOPERLAKE: FeatureSet = CASCADELAKE_SERVER
    .with(set![STIBP ARCH_CAPABILITIES AVX512_BF16 RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO PSCHANGE_MC_NO TAA_NO]);

const ICELAKE_SERVER: FeatureSet = CASCADELAKE_SERVER
    .with(set![AVX512VBMI UMIP AVX512VBMI2 GFNI VAES VPCLMULQDQ AVX512BITALG AVX512_VPOPCNTDQ LA57 WBNOINVD]);

const DENVERTON: FeatureSet = NEHALEM.with(
    set![PCLMULQDQ MONITOR X2APIC MOVBE TSC_DEADLINE AES XSAVE RDRAND ARAT FSGSBASE SMEP ERMS MPX
        RDSEED SMAP CLFLUSHOPT SHA_NI SPEC_CTRL ARCH_CAPABILITIES SSBD XSAVEOPT XSAVEC XGETBV1 PDPE1GB
        RDTSCP PREFETCHW RDCL_NO SKIP_L1DFL],
);

const SNOWRIDGE: FeatureSet = DENVERTON
    .with(set![CLWB UMIP GFNI CLDEMOTE MOVDIRI MOVDIR64B CORE_CAPABILITY SPLIT_LOCK_DETECT])
    .without(set![RDCL_NO SKIP_L1DFL]);

const SAPPHIRE_RAPIDS: FeatureSet = ICELAKE_SERVER.with(
    set![SS AVX512IFMA RDPID SHA_NI FSRM MD_CLEAR XSAVES XFD STIBP ARCH_CAPABILITIES RDCL_NO IBRS_ALL
        SKIP_L1DFL MDS_NO PSCHANGE_MC_NO TAA_NO TSX_LDTRK SERIALIZE BUS_LOCK_DETECT AMX_BF16 AMX_TILE AMX_INT8
        AVX512_FP16 AVX_VNNI AVX512_BF16 FZRM FSRS FSRC TSC_ADJUST],
);

/// Intel's models.
pub(super) static INTEL: &[Model] = &[
Model::new("486", chip(Vendor::INTEL, [4, 8, 0], 0x1, 0, ""), I486).about("Intel 486 DX4"),
Model::new("pentium", chip(Vendor::INTEL, [5, 4, 3], 0x1, 0, ""), PENTIUM).about("Intel Pentium with MMX"),
Model::new("pentium2", chip(Vendor::INTEL, [6, 5, 2], 0x2, 0, ""), PENTIUM2).about("Intel Pentium II"),
Model::new("pentium3", chip(Vendor::INTEL, [6, 7, 3], 0x3, 0, ""), PENTIUM3).about("Intel Pentium III"),
Model::new("coreduo", chip(Vendor::INTEL, [6, 14, 8], 0xa, 0x8000_0008, "Genuine Intel(R) CPU           T2600  @ 2.16GHz"), COREDUO),
Model::new("core2duo", chip(Vendor::INTEL, [6, 15, 11], 0xa, 0x8000_0008, "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz"), CORE2DUO),
Model::new("n270", chip(Vendor::INTEL, [6, 28, 2], 0xa, 0x8000_0008, "Intel(R) Atom(TM) CPU N270   @ 1.60GHz"), N270),
Model::new("Conroe", chip(Vendor::INTEL, [6, 15, 3], 0xa, 0x8000_0008, "Intel Celeron_4x0 (Conroe/Merom Class Core 2)"), CONROE),
Model::new("Penryn", chip(Vendor::INTEL, [6, 23, 3], 0xa, 0x8000_0008, "Intel Core 2 Duo P9xxx (Penryn Class Core 2)"), PENRYN),
Model::new("Nehalem", chip(Vendor::INTEL, [6, 26, 3], 0xb, 0x8000_0008, "Intel Core i7 9xx (Nehalem Class Core i7)"), NEHALEM).versions(&[version("Nehalem-IBRS", set![SPEC_CTRL], set![]).brand("Intel Core i7 9xx (Nehalem Core i7, IBRS update)")]),
Model::new("Westmere", chip(Vendor::INTEL, [6, 44, 1], 0xb, 0x8000_0008, "Westmere E56xx/L56xx/X56xx (Nehalem-C)"), WESTMERE).versions(&[version("Westmere-IBRS", set![SPEC_CTRL], set![]).brand("Westmere E56xx/L56xx/X56xx (IBRS update)")]),
Model::new("SandyBridge", chip(Vendor::INTEL, [6, 42, 1], 0xd, 0x8000_0008, "Intel Xeon E312xx (Sandy Bridge)"), SANDYBRIDGE).versions(&[version("SandyBridge-IBRS", set![SPEC_CTRL], set![]).brand("Intel Xeon E312xx (Sandy Bridge, IBRS update)")]),
Model::new("IvyBridge", chip(Vendor::INTEL, [6, 58, 9], 0xd, 0x8000_0008, "Intel Xeon E3-12xx v2 (Ivy Bridge)"), IVYBRIDGE).versions(&[version("IvyBridge-IBRS", set![SPEC_CTRL], set![]).brand("Intel Xeon E3-12xx v2 (Ivy Bridge, IBRS)")]),
Model::new("Haswell", chip(Vendor::INTEL, [6, 60, 4], 0xd, 0x8000_0008, "Intel Core Processor (Haswell)"), HASWELL).versions(&[version("Haswell-noTSX", set![], set![HLE RTM]).brand("Intel Core Processor (Haswell, no TSX)").signature(60, 1), version("Haswell-IBRS", set![SPEC_CTRL], set![]).brand("Intel Core Processor (Haswell, IBRS)"), version("Haswell-noTSX-IBRS", set![SPEC_CTRL], set![HLE RTM]).brand("Intel Core Processor (Haswell, no TSX, IBRS)").signature(60, 1)]),
Model::new("Broadwell", chip(Vendor::INTEL, [6, 61, 2], 0xd, 0x8000_0008, "Intel Core Processor (Broadwell)"), BROADWELL).versions(&[version("Broadwell-noTSX", set![], set![HLE RTM]).brand("Intel Core Processor (Broadwell, no TSX)"), version("Broadwell-IBRS", set![SPEC_CTRL], set![]).brand("Intel Core Processor (Broadwell, IBRS)"), version("Broadwell-noTSX-IBRS", set![SPEC_CTRL], set![HLE RTM]).brand("Intel Core Processor (Broadwell, no TSX, IBRS)")]),
Model::new("Skylake-Client", chip(Vendor::INTEL, [6, 94, 3], 0xd, 0x8000_0008, "Intel Core Processor (Skylake)"), SKYLAKE_CLIENT).versions(&[version("Skylake-Client-IBRS", set![SPEC_CTRL], set![]).brand("Intel Core Processor (Skylake, IBRS)"), version("Skylake-Client-noTSX-IBRS", set![SPEC_CTRL], set![HLE RTM]).brand("Intel Core Processor (Skylake, IBRS, no TSX)"), version("", set![SPEC_CTRL XSAVES], set![HLE RTM]).brand("Intel Core Processor (Skylake, IBRS, no TSX)")]),
Model::new("Skylake-Server", chip(Vendor::INTEL, [6, 85, 4], 0xd, 0x8000_0008, "Intel Xeon Processor (Skylake)"), SKYLAKE_SERVER).versions(&[version("Skylake-Server-IBRS", set![SPEC_CTRL], set![CLFLUSHOPT]).brand("Intel Xeon Processor (Skylake, IBRS)"), version("Skylake-Server-noTSX-IBRS", set![SPEC_CTRL], set![HLE RTM CLFLUSHOPT]).brand("Intel Xeon Processor (Skylake, IBRS, no TSX)"), version("", set![SPEC_CTRL], set![HLE RTM CLFLUSHOPT]).brand("Intel Xeon Processor (Skylake, IBRS, no TSX)"), version("", set![SPEC_CTRL XSAVES], set![HLE RTM CLFLUSHOPT]).brand("Intel Xeon Processor (Skylake, IBRS, no TSX)")]),
Model::new("Cascadelake-Server", chip(Vendor::INTEL, [6, 85, 6], 0xd, 0x8000_0008, "Intel Xeon Processor (Cascadelake)"), CASCADELAKE_SERVER).versions(&[version("", set![ARCH_CAPABILITIES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO], set![]), version("Cascadelake-Server-noTSX", set![ARCH_CAPABILITIES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO], set![HLE RTM]), version("", set![ARCH_CAPABILITIES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO], set![HLE RTM]), version("", set![ARCH_CAPABILITIES XSAVES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO], set![HLE RTM])]),
Model::new("Cooperlake", chip(Vendor::INTEL, [6, 85, 10], 0xd, 0x8000_0008, "Intel Xeon Processor (Cooperlake)"), COOPERLAKE).versions(&[version("", set![XSAVES], set![])]),
Model::new("Icelake-Server", chip(Vendor::INTEL, [6, 134, 0], 0xd, 0x8000_0008, "Intel Xeon Processor (Icelake)"), ICELAKE_SERVER).versions(&[version("Icelake-Server-noTSX", set![], set![HLE RTM]), version("", set![ARCH_CAPABILITIES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO PSCHANGE_MC_NO TAA_NO], set![HLE RTM]), version("", set![AVX512IFMA SHA_NI RDPID FSRM ARCH_CAPABILITIES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO PSCHANGE_MC_NO TAA_NO], set![HLE RTM]).signature(106, 0), version("", set![AVX512IFMA SHA_NI RDPID FSRM ARCH_CAPABILITIES XSAVES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO PSCHANGE_MC_NO TAA_NO], set![HLE RTM]).signature(106, 0), version("", set![AVX512IFMA SHA_NI RDPID FSRM ARCH_CAPABILITIES XSAVES RDCL_NO IBRS_ALL SKIP_L1DFL MDS_NO PSCHANGE_MC_NO TAA_NO], set![HLE RTM]).signature(106, 0)]),
Model::new("SapphireRapids", chip(Vendor::INTEL, [6, 143, 4], 0x20, 0x8000_0008, "Intel Xeon Processor (SapphireRapids)"), SAPPHIRE_RAPIDS).phys_bits(46),
Model::new("Denverton", chip(Vendor::INTEL, [6, 95, 1], 0x15, 0x8000_0008, "Intel Atom Processor (Denverton)"), DENVERTON).versions(&[version("", set![], set![MONITOR MPX]), version("", set![XSAVES], set![MONITOR MPX])]),
Model::new("Snowridge", chip(Vendor::INTEL, [6, 134, 1], 0x1b, 0x8000_0008, "Intel Atom Processor (SnowRidge)"), SNOWRIDGE).versions(&[version("", set![], set![MPX]).brand("Intel Atom Processor (Snowridge, no MPX)"), version("", set![XSAVES], set![MPX]).brand("Intel Atom Processor (Snowridge, no MPX)"), version("", set![XSAVES], set![MPX CORE_CAPABILITY SPLIT_LOCK_DETECT]).brand("Intel Atom Processor (Snowridge, no MPX)")]),
];
