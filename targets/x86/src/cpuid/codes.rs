//! Which instructions exist, by iced's `Code`.

use iced_x86::{Code, CpuidFeature as I};

use super::{Feature, FeatureSet};

/// One bit for each `Code`: set if the CPU has the instruction.
pub fn allowed(features: &FeatureSet) -> Box<[u64]> {
    let codes = Code::values();
    let mut bits = vec![0u64; codes.len().div_ceil(64)].into_boxed_slice();
    for code in codes {
        if code != Code::INVALID && code_allowed(code, features) {
            bits[code as usize / 64] |= 1 << (code as usize % 64);
        }
    }
    bits
}

fn code_allowed(code: Code, features: &FeatureSet) -> bool {
    if hint(code) {
        // The space of no-operations came with the P6 family, as CMOV did.
        return features.has(Feature::CMOV);
    }
    // AMD had SSE's instructions on MMX registers before SSE.
    let early = features.has(Feature::MMXEXT) && mmx_extension(code);
    early || code.cpuid_features().iter().all(|&f| feature_allowed(f, features))
}

/// Encodings in the space of reserved no-operations (0F 18 to 0F 1F and PREFETCH): without their feature they do nothing
/// (SDM volume 2, opcode map notes; volume 1, section 17.3.8 for ENDBR).
fn hint(code: Code) -> bool {
    matches!(
        code,
        Code::Endbr32
            | Code::Endbr64
            | Code::Rdsspd_r32
            | Code::Rdsspq_r64
            | Code::Cldemote_m8
            | Code::Prefetchwt1_m8
            | Code::Prefetchit0_m8
            | Code::Prefetchit1_m8
    )
}

/// What SSE brought for MMX registers, and its hints and fences: the extensions to MMX (AMD64 manual volume 3, appendix D).
fn mmx_extension(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Maskmovq_rDI_mm_mm
            | C::Movntq_m64_mm
            | C::Pavgb_mm_mmm64
            | C::Pavgw_mm_mmm64
            | C::Pextrw_r32_mm_imm8
            | C::Pinsrw_mm_r32m16_imm8
            | C::Pmaxsw_mm_mmm64
            | C::Pmaxub_mm_mmm64
            | C::Pminsw_mm_mmm64
            | C::Pminub_mm_mmm64
            | C::Pmovmskb_r32_mm
            | C::Pmulhuw_mm_mmm64
            | C::Psadbw_mm_mmm64
            | C::Pshufw_mm_mmm64_imm8
            | C::Prefetchnta_m8
            | C::Prefetcht0_m8
            | C::Prefetcht1_m8
            | C::Prefetcht2_m8
            | C::Sfence
    )
}

/// Whether what iced calls `f` is there. What is not named is not implemented.
fn feature_allowed(f: I, features: &FeatureSet) -> bool {
    let need = match f {
        I::INTEL8086 | I::INTEL186 | I::INTEL286 | I::INTEL386 | I::INTEL486 => return true,
        I::CPUID | I::PAUSE | I::SMM => return true,
        // WBNOINVD is WBINVD on a CPU that does not have it.
        I::WBNOINVD => return true,
        // Without bits of their own: the long NOP came with the P6 family, RDPMC with the Pentium with MMX.
        I::MULTIBYTENOP => Feature::CMOV,
        I::RDPMC => Feature::MMX,
        // LZCNT and TZCNT (BMI1) fall back to BSR and BSF: allowed when they are there, else see `CpuidTable::allows`.
        I::LZCNT => Feature::LZCNT,
        I::BMI1 => Feature::BMI1,
        I::FPU | I::FPU287 | I::FPU387 => Feature::FPU,
        I::X64 => Feature::LM,
        I::TSC => Feature::TSC,
        I::MSR => Feature::MSR,
        I::CX8 => Feature::CX8,
        I::SEP => Feature::SEP,
        I::CMOV => Feature::CMOV,
        I::CLFSH => Feature::CLFLUSH,
        I::MMX => Feature::MMX,
        I::FXSR => Feature::FXSR,
        I::SSE => Feature::SSE,
        I::SSE2 => Feature::SSE2,
        I::SSE3 => Feature::SSE3,
        I::SSSE3 => Feature::SSSE3,
        I::SSE4_1 => Feature::SSE41,
        I::SSE4_2 => Feature::SSE42,
        I::AES => Feature::AES,
        I::PCLMULQDQ => Feature::PCLMULQDQ,
        I::CMPXCHG16B => Feature::CX16,
        I::MOVBE => Feature::MOVBE,
        I::POPCNT => Feature::POPCNT,
        I::XSAVE => Feature::XSAVE,
        I::XSAVEOPT => Feature::XSAVEOPT,
        I::XSAVEC => Feature::XSAVEC,
        I::XSAVES => Feature::XSAVES,
        I::AVX => Feature::AVX,
        I::AVX2 => Feature::AVX2,
        I::F16C => Feature::F16C,
        I::FMA => Feature::FMA,
        I::RDRAND => Feature::RDRAND,
        I::RDSEED => Feature::RDSEED,
        I::FSGSBASE => Feature::FSGSBASE,
        I::BMI2 => Feature::BMI2,
        I::INVPCID => Feature::INVPCID,
        I::ADX => Feature::ADX,
        I::SMAP => Feature::SMAP,
        I::CLFLUSHOPT => Feature::CLFLUSHOPT,
        I::CLWB => Feature::CLWB,
        I::SHA => Feature::SHA_NI,
        I::GFNI => Feature::GFNI,
        I::VAES => Feature::VAES,
        I::VPCLMULQDQ => Feature::VPCLMULQDQ,
        I::AVX_VNNI => Feature::AVX_VNNI,
        I::MOVDIRI => Feature::MOVDIRI,
        I::MOVDIR64B => Feature::MOVDIR64B,
        I::SERIALIZE => Feature::SERIALIZE,
        I::PKU => Feature::PKU,
        I::RDPID => Feature::RDPID,
        I::RDTSCP => Feature::RDTSCP,
        // All 64-bit CPUs have at least the encoding, as a hint.
        I::PREFETCHW => return features.has(Feature::PREFETCHW) || features.has(Feature::LM),
        I::SYSCALL => Feature::SYSCALL,
        _ => return false,
    };
    features.has(need)
}
