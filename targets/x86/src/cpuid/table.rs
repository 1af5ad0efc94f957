//! The features that CPUID and two capability MSRs enumerate: one row a feature, named as QEMU names them.
//!
//! A row may name features that it makes no sense without (`needs`): taking one of these away takes the dependents away,
//! too. Features that are not implemented are here all the same: models have them, and their names are known.
//!
//! To add a feature: a row here (most are), a mention in [`IMPLEMENTED`](super::models::IMPLEMENTED) once it works,
//! and, if it brings instructions, an arm in `codes`.
//!
//! Source: SDM volume 2, CPUID, tables 3-8 to 3-20; volume 4, table 2-2; AMD64 manual volume 3, appendix E.

use super::features::{Feature, Row, Word};

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

/// Other names that are in use, with dashes, and what they stand for.
pub(super) static ALIASES: &[(&str, &str)] = &[
    ("sse3", "pni"),
    ("sse4-1", "sse4.1"),
    ("sse4-2", "sse4.2"),
    ("lzcnt", "abm"),
    ("constant-tsc", "invtsc"),
    ("xd", "nx"),
    ("i64", "lm"),
    ("ffxsr", "fxsr-opt"),
    ("pclmuldq", "pclmulqdq"),
    ("pn", "psn"),
];

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
        18 PSN "psn";
        19 CLFLUSH "clflush";
        21 DS "ds";
        22 ACPI "acpi";
        23 MMX "mmx" needs FPU;
        24 FXSR "fxsr" needs FPU;
        25 SSE "sse" needs FXSR MMX;
        26 SSE2 "sse2" needs SSE;
        27 SS "ss";
        28 HT "ht";
        29 TM "tm";
        31 PBE "pbe";
    }
    L1Ecx {
        0 SSE3 "pni" needs SSE2;
        1 PCLMULQDQ "pclmulqdq" needs SSE2;
        2 DTES64 "dtes64";
        3 MONITOR "monitor";
        4 DS_CPL "ds-cpl";
        5 VMX "vmx";
        6 SMX "smx";
        7 EST "est";
        8 TM2 "tm2";
        9 SSSE3 "ssse3" needs SSE3;
        10 CID "cid";
        12 FMA "fma" needs AVX;
        13 CX16 "cx16" needs LM;
        14 XTPR "xtpr";
        15 PDCM "pdcm";
        17 PCID "pcid" needs LM;
        18 DCA "dca";
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
    L6Eax {
        2 ARAT "arat" needs APIC;
    }
    L7Ebx {
        0 FSGSBASE "fsgsbase" needs LM;
        1 TSC_ADJUST "tsc-adjust" needs TSC MSR;
        2 SGX "sgx";
        3 BMI1 "bmi1";
        4 HLE "hle";
        5 AVX2 "avx2" needs AVX;
        6 FDP_EXCPTN_ONLY "fdp-excptn-only" needs FPU;
        7 SMEP "smep";
        8 BMI2 "bmi2";
        9 ERMS "erms";
        10 INVPCID "invpcid";
        11 RTM "rtm";
        13 ZERO_FCS_FDS "zero-fcs-fds" needs FPU;
        14 MPX "mpx" needs XSAVE;
        16 AVX512F "avx512f" needs AVX2 F16C FMA;
        17 AVX512DQ "avx512dq" needs AVX512F;
        18 RDSEED "rdseed";
        19 ADX "adx";
        20 SMAP "smap";
        21 AVX512IFMA "avx512ifma" needs AVX512F;
        23 CLFLUSHOPT "clflushopt" needs CLFLUSH;
        24 CLWB "clwb" needs CLFLUSH;
        25 INTEL_PT "intel-pt";
        26 AVX512PF "avx512pf" needs AVX512F;
        27 AVX512ER "avx512er" needs AVX512F;
        28 AVX512CD "avx512cd" needs AVX512F;
        29 SHA_NI "sha-ni" needs SSE2;
        30 AVX512BW "avx512bw" needs AVX512F;
        31 AVX512VL "avx512vl" needs AVX512F;
    }
    L7Ecx {
        1 AVX512VBMI "avx512vbmi" needs AVX512BW;
        2 UMIP "umip";
        3 PKU "pku" needs LM XSAVE;
        5 WAITPKG "waitpkg";
        6 AVX512VBMI2 "avx512vbmi2" needs AVX512BW;
        7 CET_SS "shstk" needs XSAVES;
        8 GFNI "gfni" needs SSE2;
        9 VAES "vaes" needs AVX AES;
        10 VPCLMULQDQ "vpclmulqdq" needs AVX PCLMULQDQ;
        11 AVX512VNNI "avx512vnni" needs AVX512F;
        12 AVX512BITALG "avx512bitalg" needs AVX512BW;
        14 AVX512_VPOPCNTDQ "avx512-vpopcntdq" needs AVX512F;
        16 LA57 "la57" needs LM;
        22 RDPID "rdpid";
        24 BUS_LOCK_DETECT "bus-lock-detect";
        25 CLDEMOTE "cldemote";
        27 MOVDIRI "movdiri";
        28 MOVDIR64B "movdir64b";
        29 ENQCMD "enqcmd";
        30 SGX_LC "sgxlc" needs SGX;
        31 PKS "pks" needs LM XSAVES;
    }
    L7Edx {
        2 AVX512_4VNNIW "avx512-4vnniw" needs AVX512F;
        3 AVX512_4FMAPS "avx512-4fmaps" needs AVX512F;
        4 FSRM "fsrm";
        8 AVX512_VP2INTERSECT "avx512-vp2intersect" needs AVX512F;
        10 MD_CLEAR "md-clear";
        14 SERIALIZE "serialize";
        16 TSX_LDTRK "tsx-ldtrk" needs RTM;
        18 PCONFIG "pconfig";
        19 ARCH_LBR "arch-lbr" needs XSAVES;
        20 CET_IBT "ibt" needs XSAVES;
        22 AMX_BF16 "amx-bf16" needs AMX_TILE;
        23 AVX512_FP16 "avx512-fp16" needs AVX512BW AVX512DQ AVX512VL;
        24 AMX_TILE "amx-tile" needs XSAVE LM;
        25 AMX_INT8 "amx-int8" needs AMX_TILE;
        26 SPEC_CTRL "spec-ctrl" needs MSR;
        27 STIBP "stibp" needs MSR;
        28 FLUSH_L1D "flush-l1d" needs MSR;
        29 ARCH_CAPABILITIES "arch-capabilities" needs MSR;
        30 CORE_CAPABILITY "core-capability" needs MSR;
        31 SSBD "ssbd" needs MSR;
    }
    L7Sub1Eax {
        0 SHA512 "sha512" needs AVX2;
        1 SM3 "sm3" needs AVX;
        2 SM4 "sm4" needs AVX2;
        4 AVX_VNNI "avx-vnni" needs AVX2;
        5 AVX512_BF16 "avx512-bf16" needs AVX512F;
        7 CMPCCXADD "cmpccxadd" needs LM;
        10 FZRM "fzrm";
        11 FSRS "fsrs";
        12 FSRC "fsrc";
        21 AMX_FP16 "amx-fp16" needs AMX_TILE;
        23 AVX_IFMA "avx-ifma" needs AVX2;
    }
    L7Sub1Edx {
        4 AVX_VNNI_INT8 "avx-vnni-int8" needs AVX2;
        5 AVX_NE_CONVERT "avx-ne-convert" needs AVX2;
        10 AVX_VNNI_INT16 "avx-vnni-int16" needs AVX2;
        14 PREFETCHITI "prefetchiti" needs LM;
    }
    L7Sub2Edx {
        4 BHI_CTRL "bhi-ctrl" needs SPEC_CTRL;
    }
    XsaveEax {
        0 XSAVEOPT "xsaveopt" needs XSAVE;
        1 XSAVEC "xsavec" needs XSAVE;
        2 XGETBV1 "xgetbv1" needs XSAVE;
        3 XSAVES "xsaves" needs XSAVEC;
        4 XFD "xfd" needs XSAVE;
    }
    Ext1Edx {
        11 SYSCALL "syscall" needs MSR;
        20 NX "nx" needs PAE;
        22 MMXEXT "mmxext" needs MMX;
        25 FXSR_OPT "fxsr-opt" needs FXSR;
        26 PDPE1GB "pdpe1gb" needs LM;
        27 RDTSCP "rdtscp" needs TSC MSR;
        29 LM "lm" needs PAE NX SYSCALL SSE2;
        30 AMD_3DNOWEXT "3dnowext" needs AMD_3DNOW;
        31 AMD_3DNOW "3dnow" needs MMX;
    }
    Ext1Ecx {
        0 LAHF_LM "lahf-lm";
        1 CMP_LEGACY "cmp-legacy";
        2 SVM "svm";
        3 EXTAPIC "extapic";
        4 CR8LEGACY "cr8legacy";
        5 LZCNT "abm";
        6 SSE4A "sse4a" needs SSE3;
        7 MISALIGNSSE "misalignsse" needs SSE;
        8 PREFETCHW "3dnowprefetch";
        9 OSVW "osvw" needs MSR;
        10 IBS "ibs";
        11 XOP "xop" needs AVX;
        12 SKINIT "skinit";
        13 WDT "wdt";
        15 LWP "lwp";
        16 FMA4 "fma4" needs AVX;
        17 TCE "tce";
        19 NODEID_MSR "nodeid-msr";
        21 TBM "tbm";
        22 TOPOEXT "topoext";
        23 PERFCTR_CORE "perfctr-core" needs MSR;
        24 PERFCTR_NB "perfctr-nb" needs MSR;
    }
    Ext7Edx {
        8 INVTSC "invtsc" needs TSC;
    }
    Ext8Ebx {
        0 CLZERO "clzero";
        2 XSAVEERPTR "xsaveerptr" needs FXSR;
        9 WBNOINVD "wbnoinvd";
        12 IBPB "ibpb" needs MSR;
        14 IBRS "ibrs" needs MSR;
        15 AMD_STIBP "amd-stibp" needs MSR;
        17 STIBP_ALWAYS_ON "stibp-always-on" needs AMD_STIBP;
        24 AMD_SSBD "amd-ssbd" needs MSR;
        25 VIRT_SSBD "virt-ssbd" needs MSR;
        26 AMD_NO_SSB "amd-no-ssb";
        28 AMD_PSFD "amd-psfd" needs MSR;
    }
    ExtAEdx {
        0 NPT "npt" needs SVM;
        1 LBRV "lbrv" needs SVM;
        2 SVM_LOCK "svm-lock" needs SVM;
        3 NRIP_SAVE "nrip-save" needs SVM;
        4 TSC_SCALE "tsc-scale" needs SVM;
        5 VMCB_CLEAN "vmcb-clean" needs SVM;
        6 FLUSHBYASID "flushbyasid" needs SVM;
        7 DECODEASSISTS "decodeassists" needs SVM;
        10 PAUSE_FILTER "pause-filter" needs SVM;
        12 PFTHRESHOLD "pfthreshold" needs SVM;
        13 AVIC "avic" needs SVM;
        15 V_VMSAVE_VMLOAD "v-vmsave-vmload" needs SVM;
        16 VGIF "vgif" needs SVM;
        25 VNMI "vnmi" needs SVM;
        28 SVME_ADDR_CHK "svme-addr-chk" needs SVM;
    }
    Ext21Eax {
        0 NO_NESTED_DATA_BP "no-nested-data-bp";
        2 LFENCE_ALWAYS_SERIALIZING "lfence-always-serializing";
        6 NULL_SEL_CLR_BASE "null-sel-clr-base";
        8 AUTO_IBRS "auto-ibrs" needs MSR;
    }
    ArchLow {
        0 RDCL_NO "rdctl-no" needs ARCH_CAPABILITIES;
        1 IBRS_ALL "ibrs-all" needs ARCH_CAPABILITIES SPEC_CTRL;
        2 RSBA "rsba" needs ARCH_CAPABILITIES;
        3 SKIP_L1DFL "skip-l1dfl-vmentry" needs ARCH_CAPABILITIES;
        4 SSB_NO "ssb-no" needs ARCH_CAPABILITIES;
        5 MDS_NO "mds-no" needs ARCH_CAPABILITIES;
        6 PSCHANGE_MC_NO "pschange-mc-no" needs ARCH_CAPABILITIES;
        7 TSX_CTRL "tsx-ctrl" needs ARCH_CAPABILITIES;
        8 TAA_NO "taa-no" needs ARCH_CAPABILITIES;
        13 SBDR_SSDP_NO "sbdr-ssdp-no" needs ARCH_CAPABILITIES;
        14 FBSDP_NO "fbsdp-no" needs ARCH_CAPABILITIES;
        15 PSDP_NO "psdp-no" needs ARCH_CAPABILITIES;
        17 FB_CLEAR "fb-clear" needs ARCH_CAPABILITIES;
        20 BHI_NO "bhi-no" needs ARCH_CAPABILITIES;
        24 PBRSB_NO "pbrsb-no" needs ARCH_CAPABILITIES;
        26 GDS_NO "gds-no" needs ARCH_CAPABILITIES;
        27 RFDS_NO "rfds-no" needs ARCH_CAPABILITIES;
    }
    ArchHigh {
        30 ITS_NO "its-no" needs ARCH_CAPABILITIES;
    }
    CoreLow {
        5 SPLIT_LOCK_DETECT "split-lock-detect" needs CORE_CAPABILITY;
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
    fn names_have_aliases() {
        assert_eq!(Feature::by_name("sse4_2"), Some(Feature::SSE42));
        assert_eq!(Feature::by_name("lzcnt"), Some(Feature::LZCNT));
        assert_eq!(Feature::by_name("i64"), Some(Feature::LM));
        assert_eq!(Feature::by_name("sse9"), None);
    }
}
