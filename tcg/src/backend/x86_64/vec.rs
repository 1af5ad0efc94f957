//! Vector instructions: the table from vector operations to VEX encodings, and their encoder.
//!
//! Nearly every [`VecOp`] is one non-destructive VEX instruction, so there is nothing to choose: [`row`] names it
//! and [`emit_vec`] encodes it for any registers, in 128 or 256 bits. A VEX instruction of 128 bits zeroes the upper
//! half of its destination, which is what the IR asks of 128-bit operations. SHA has no VEX form: there, a move puts `a` in
//! the destination first and zeroes what is above it. Operations on three vectors are in [`three`].
//!
//! Registers are host numbers 0 to 15. Vector-to-vector instructions leave the host's flags alone; those that
//! [`emit_vec_test`] emits for comparisons do not.
//!
//! Encoding: SDM volume 2, section 2.3 (VEX prefix); opcodes from the instruction pages.

use super::encode::Mem;
use crate::ir::{VecInsOp, VecLen, VecOp, VecSize, VecTestOp, Width};

pub mod three;

/// A vector register that an emitted sequence may change.
const SCRATCH: u8 = 15;

/// Opcode maps as VEX.mmmmm numbers them.
const M0F: u8 = 1;
const M0F38: u8 = 2;
const M0F3A: u8 = 3;

/// Implied prefixes as VEX.pp numbers them.
const NP: u8 = 0;
const P66: u8 = 1;
const PF3: u8 = 2;
const PF2: u8 = 3;

/// Where operands go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// `dst` in ModRM.reg, `a` in VEX.vvvv, `b` in ModRM.rm.
    Rvm,
    /// `Rvm` with an immediate byte.
    RvmI,
    /// `dst` in ModRM.reg, `a` in ModRM.rm.
    Rm,
    /// `Rm` with an immediate byte.
    RmI,
    /// `dst` in VEX.vvvv, `a` in ModRM.rm, this opcode extension in ModRM.reg, an immediate byte.
    VmI(u8),
    /// `a` in ModRM.reg, `dst` in ModRM.rm, an immediate byte.
    MrI,
    /// Without VEX: `dst`, which holds `a`, in ModRM.reg, `b` in ModRM.rm. Keeps the destination's upper half.
    Legacy,
    /// `Legacy` with an immediate byte.
    LegacyI,
}

use Form::*;

/// One host instruction.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Its mnemonic.
    #[cfg_attr(not(test), allow(dead_code))]
    name: &'static str,
    form: Form,
    map: u8,
    pp: u8,
    opcode: u8,
    /// VEX.W.
    w: bool,
}

const fn row(name: &'static str, form: Form, map: u8, pp: u8, opcode: u8) -> Row {
    Row { name, form, map, pp, opcode, w: false }
}

const fn row_w(name: &'static str, form: Form, map: u8, pp: u8, opcode: u8) -> Row {
    Row { w: true, ..row(name, form, map, pp, opcode) }
}

/// The instruction of a vector operation.
const fn vec_row(op: VecOp) -> Row {
    use VecOp::*;
    match op {
        And => row("vpand", Rvm, M0F, P66, 0xdb),
        AndNot => row("vpandn", Rvm, M0F, P66, 0xdf),
        Or => row("vpor", Rvm, M0F, P66, 0xeb),
        Xor => row("vpxor", Rvm, M0F, P66, 0xef),
        AddI8 => row("vpaddb", Rvm, M0F, P66, 0xfc),
        AddI16 => row("vpaddw", Rvm, M0F, P66, 0xfd),
        AddI32 => row("vpaddd", Rvm, M0F, P66, 0xfe),
        AddI64 => row("vpaddq", Rvm, M0F, P66, 0xd4),
        SubI8 => row("vpsubb", Rvm, M0F, P66, 0xf8),
        SubI16 => row("vpsubw", Rvm, M0F, P66, 0xf9),
        SubI32 => row("vpsubd", Rvm, M0F, P66, 0xfa),
        SubI64 => row("vpsubq", Rvm, M0F, P66, 0xfb),
        AddSatS8 => row("vpaddsb", Rvm, M0F, P66, 0xec),
        AddSatS16 => row("vpaddsw", Rvm, M0F, P66, 0xed),
        AddSatU8 => row("vpaddusb", Rvm, M0F, P66, 0xdc),
        AddSatU16 => row("vpaddusw", Rvm, M0F, P66, 0xdd),
        SubSatS8 => row("vpsubsb", Rvm, M0F, P66, 0xe8),
        SubSatS16 => row("vpsubsw", Rvm, M0F, P66, 0xe9),
        SubSatU8 => row("vpsubusb", Rvm, M0F, P66, 0xd8),
        SubSatU16 => row("vpsubusw", Rvm, M0F, P66, 0xd9),
        MulLoI16 => row("vpmullw", Rvm, M0F, P66, 0xd5),
        MulLoI32 => row("vpmulld", Rvm, M0F38, P66, 0x40),
        MulHiS16 => row("vpmulhw", Rvm, M0F, P66, 0xe5),
        MulHiU16 => row("vpmulhuw", Rvm, M0F, P66, 0xe4),
        MulHiRoundS16 => row("vpmulhrsw", Rvm, M0F38, P66, 0x0b),
        MulWideU32 => row("vpmuludq", Rvm, M0F, P66, 0xf4),
        MulWideS32 => row("vpmuldq", Rvm, M0F38, P66, 0x28),
        MulAddS16 => row("vpmaddwd", Rvm, M0F, P66, 0xf5),
        MulAddU8S8 => row("vpmaddubsw", Rvm, M0F38, P66, 0x04),
        CmpEqI8 => row("vpcmpeqb", Rvm, M0F, P66, 0x74),
        CmpEqI16 => row("vpcmpeqw", Rvm, M0F, P66, 0x75),
        CmpEqI32 => row("vpcmpeqd", Rvm, M0F, P66, 0x76),
        CmpEqI64 => row("vpcmpeqq", Rvm, M0F38, P66, 0x29),
        CmpGtS8 => row("vpcmpgtb", Rvm, M0F, P66, 0x64),
        CmpGtS16 => row("vpcmpgtw", Rvm, M0F, P66, 0x65),
        CmpGtS32 => row("vpcmpgtd", Rvm, M0F, P66, 0x66),
        CmpGtS64 => row("vpcmpgtq", Rvm, M0F38, P66, 0x37),
        MinS8 => row("vpminsb", Rvm, M0F38, P66, 0x38),
        MinS16 => row("vpminsw", Rvm, M0F, P66, 0xea),
        MinS32 => row("vpminsd", Rvm, M0F38, P66, 0x39),
        MinU8 => row("vpminub", Rvm, M0F, P66, 0xda),
        MinU16 => row("vpminuw", Rvm, M0F38, P66, 0x3a),
        MinU32 => row("vpminud", Rvm, M0F38, P66, 0x3b),
        MaxS8 => row("vpmaxsb", Rvm, M0F38, P66, 0x3c),
        MaxS16 => row("vpmaxsw", Rvm, M0F, P66, 0xee),
        MaxS32 => row("vpmaxsd", Rvm, M0F38, P66, 0x3d),
        MaxU8 => row("vpmaxub", Rvm, M0F, P66, 0xde),
        MaxU16 => row("vpmaxuw", Rvm, M0F38, P66, 0x3e),
        MaxU32 => row("vpmaxud", Rvm, M0F38, P66, 0x3f),
        AvgU8 => row("vpavgb", Rvm, M0F, P66, 0xe0),
        AvgU16 => row("vpavgw", Rvm, M0F, P66, 0xe3),
        SadU8 => row("vpsadbw", Rvm, M0F, P66, 0xf6),
        MpSadU8 => row("vmpsadbw", RvmI, M0F3A, P66, 0x42),
        MinPosU16 => row("vphminposuw", Rm, M0F38, P66, 0x41),
        PackS16 => row("vpacksswb", Rvm, M0F, P66, 0x63),
        PackS32 => row("vpackssdw", Rvm, M0F, P66, 0x6b),
        PackU16 => row("vpackuswb", Rvm, M0F, P66, 0x67),
        PackU32 => row("vpackusdw", Rvm, M0F38, P66, 0x2b),
        UnpackLoI8 => row("vpunpcklbw", Rvm, M0F, P66, 0x60),
        UnpackLoI16 => row("vpunpcklwd", Rvm, M0F, P66, 0x61),
        UnpackLoI32 => row("vpunpckldq", Rvm, M0F, P66, 0x62),
        UnpackLoI64 => row("vpunpcklqdq", Rvm, M0F, P66, 0x6c),
        UnpackHiI8 => row("vpunpckhbw", Rvm, M0F, P66, 0x68),
        UnpackHiI16 => row("vpunpckhwd", Rvm, M0F, P66, 0x69),
        UnpackHiI32 => row("vpunpckhdq", Rvm, M0F, P66, 0x6a),
        UnpackHiI64 => row("vpunpckhqdq", Rvm, M0F, P66, 0x6d),
        ShlI16 => row("vpsllw", Rvm, M0F, P66, 0xf1),
        ShlI32 => row("vpslld", Rvm, M0F, P66, 0xf2),
        ShlI64 => row("vpsllq", Rvm, M0F, P66, 0xf3),
        ShrI16 => row("vpsrlw", Rvm, M0F, P66, 0xd1),
        ShrI32 => row("vpsrld", Rvm, M0F, P66, 0xd2),
        ShrI64 => row("vpsrlq", Rvm, M0F, P66, 0xd3),
        SarI16 => row("vpsraw", Rvm, M0F, P66, 0xe1),
        SarI32 => row("vpsrad", Rvm, M0F, P66, 0xe2),
        ShlVarI32 => row("vpsllvd", Rvm, M0F38, P66, 0x47),
        ShlVarI64 => row_w("vpsllvq", Rvm, M0F38, P66, 0x47),
        ShrVarI32 => row("vpsrlvd", Rvm, M0F38, P66, 0x45),
        ShrVarI64 => row_w("vpsrlvq", Rvm, M0F38, P66, 0x45),
        SarVarI32 => row("vpsravd", Rvm, M0F38, P66, 0x46),
        ShlImmI16 => row("vpsllw", VmI(6), M0F, P66, 0x71),
        ShlImmI32 => row("vpslld", VmI(6), M0F, P66, 0x72),
        ShlImmI64 => row("vpsllq", VmI(6), M0F, P66, 0x73),
        ShrImmI16 => row("vpsrlw", VmI(2), M0F, P66, 0x71),
        ShrImmI32 => row("vpsrld", VmI(2), M0F, P66, 0x72),
        ShrImmI64 => row("vpsrlq", VmI(2), M0F, P66, 0x73),
        SarImmI16 => row("vpsraw", VmI(4), M0F, P66, 0x71),
        SarImmI32 => row("vpsrad", VmI(4), M0F, P66, 0x72),
        ShlBytes => row("vpslldq", VmI(7), M0F, P66, 0x73),
        ShrBytes => row("vpsrldq", VmI(3), M0F, P66, 0x73),
        AlignBytes => row("vpalignr", RvmI, M0F3A, P66, 0x0f),
        ShuffleI32 => row("vpshufd", RmI, M0F, P66, 0x70),
        ShuffleLoI16 => row("vpshuflw", RmI, M0F, PF2, 0x70),
        ShuffleHiI16 => row("vpshufhw", RmI, M0F, PF3, 0x70),
        ShuffleI8 => row("vpshufb", Rvm, M0F38, P66, 0x00),
        ShuffleF32 => row("vshufps", RvmI, M0F, NP, 0xc6),
        ShuffleF64 => row("vshufpd", RvmI, M0F, P66, 0xc6),
        BlendI16 => row("vpblendw", RvmI, M0F3A, P66, 0x0e),
        BlendF32 => row("vblendps", RvmI, M0F3A, P66, 0x0c),
        BlendF64 => row("vblendpd", RvmI, M0F3A, P66, 0x0d),
        InsertF32 => row("vinsertps", RvmI, M0F3A, P66, 0x21),
        AbsS8 => row("vpabsb", Rm, M0F38, P66, 0x1c),
        AbsS16 => row("vpabsw", Rm, M0F38, P66, 0x1d),
        AbsS32 => row("vpabsd", Rm, M0F38, P66, 0x1e),
        SignS8 => row("vpsignb", Rvm, M0F38, P66, 0x08),
        SignS16 => row("vpsignw", Rvm, M0F38, P66, 0x09),
        SignS32 => row("vpsignd", Rvm, M0F38, P66, 0x0a),
        HAddI16 => row("vphaddw", Rvm, M0F38, P66, 0x01),
        HAddI32 => row("vphaddd", Rvm, M0F38, P66, 0x02),
        HAddSatS16 => row("vphaddsw", Rvm, M0F38, P66, 0x03),
        HSubI16 => row("vphsubw", Rvm, M0F38, P66, 0x05),
        HSubI32 => row("vphsubd", Rvm, M0F38, P66, 0x06),
        HSubSatS16 => row("vphsubsw", Rvm, M0F38, P66, 0x07),
        ExtendS8To16 => row("vpmovsxbw", Rm, M0F38, P66, 0x20),
        ExtendS8To32 => row("vpmovsxbd", Rm, M0F38, P66, 0x21),
        ExtendS8To64 => row("vpmovsxbq", Rm, M0F38, P66, 0x22),
        ExtendS16To32 => row("vpmovsxwd", Rm, M0F38, P66, 0x23),
        ExtendS16To64 => row("vpmovsxwq", Rm, M0F38, P66, 0x24),
        ExtendS32To64 => row("vpmovsxdq", Rm, M0F38, P66, 0x25),
        ExtendU8To16 => row("vpmovzxbw", Rm, M0F38, P66, 0x30),
        ExtendU8To32 => row("vpmovzxbd", Rm, M0F38, P66, 0x31),
        ExtendU8To64 => row("vpmovzxbq", Rm, M0F38, P66, 0x32),
        ExtendU16To32 => row("vpmovzxwd", Rm, M0F38, P66, 0x33),
        ExtendU16To64 => row("vpmovzxwq", Rm, M0F38, P66, 0x34),
        ExtendU32To64 => row("vpmovzxdq", Rm, M0F38, P66, 0x35),
        LowI64 => row("vmovq", Rm, M0F, PF3, 0x7e),
        ExtractI128 => row("vextracti128", MrI, M0F3A, P66, 0x39),
        InsertI128 => row("vinserti128", RvmI, M0F3A, P66, 0x38),
        LowI128 => row("vmovdqa", Rm, M0F, P66, 0x6f),
        MoveI32 => row("vmovss", Rvm, M0F, PF3, 0x10),
        MoveI64 => row("vmovsd", Rvm, M0F, PF2, 0x10),
        MoveHighLow => row("vmovhlps", Rvm, M0F, NP, 0x12),
        BroadcastI8 => row("vpbroadcastb", Rm, M0F38, P66, 0x78),
        BroadcastI16 => row("vpbroadcastw", Rm, M0F38, P66, 0x79),
        BroadcastI32 => row("vpbroadcastd", Rm, M0F38, P66, 0x58),
        BroadcastI64 => row("vpbroadcastq", Rm, M0F38, P66, 0x59),
        PermuteI128 => row("vperm2i128", RvmI, M0F3A, P66, 0x46),
        PermuteI32 => row("vpermd", Rvm, M0F38, P66, 0x36),
        PermuteI64 => row_w("vpermq", RmI, M0F3A, P66, 0x00),
        ShuffleVarI32 => row("vpermilps", Rvm, M0F38, P66, 0x0c),
        ShuffleVarI64 => row("vpermilpd", Rvm, M0F38, P66, 0x0d),
        DupEvenI64 => row("vmovddup", Rm, M0F, PF2, 0x12),
        DupEvenI32 => row("vmovsldup", Rm, M0F, PF3, 0x12),
        DupOddI32 => row("vmovshdup", Rm, M0F, PF3, 0x16),
        AddF32 => row("vaddps", Rvm, M0F, NP, 0x58),
        AddF64 => row("vaddpd", Rvm, M0F, P66, 0x58),
        AddScalarF32 => row("vaddss", Rvm, M0F, PF3, 0x58),
        AddScalarF64 => row("vaddsd", Rvm, M0F, PF2, 0x58),
        SubF32 => row("vsubps", Rvm, M0F, NP, 0x5c),
        SubF64 => row("vsubpd", Rvm, M0F, P66, 0x5c),
        SubScalarF32 => row("vsubss", Rvm, M0F, PF3, 0x5c),
        SubScalarF64 => row("vsubsd", Rvm, M0F, PF2, 0x5c),
        MulF32 => row("vmulps", Rvm, M0F, NP, 0x59),
        MulF64 => row("vmulpd", Rvm, M0F, P66, 0x59),
        MulScalarF32 => row("vmulss", Rvm, M0F, PF3, 0x59),
        MulScalarF64 => row("vmulsd", Rvm, M0F, PF2, 0x59),
        DivF32 => row("vdivps", Rvm, M0F, NP, 0x5e),
        DivF64 => row("vdivpd", Rvm, M0F, P66, 0x5e),
        DivScalarF32 => row("vdivss", Rvm, M0F, PF3, 0x5e),
        DivScalarF64 => row("vdivsd", Rvm, M0F, PF2, 0x5e),
        MinF32 => row("vminps", Rvm, M0F, NP, 0x5d),
        MinF64 => row("vminpd", Rvm, M0F, P66, 0x5d),
        MinScalarF32 => row("vminss", Rvm, M0F, PF3, 0x5d),
        MinScalarF64 => row("vminsd", Rvm, M0F, PF2, 0x5d),
        MaxF32 => row("vmaxps", Rvm, M0F, NP, 0x5f),
        MaxF64 => row("vmaxpd", Rvm, M0F, P66, 0x5f),
        MaxScalarF32 => row("vmaxss", Rvm, M0F, PF3, 0x5f),
        MaxScalarF64 => row("vmaxsd", Rvm, M0F, PF2, 0x5f),
        SqrtF32 => row("vsqrtps", Rm, M0F, NP, 0x51),
        SqrtF64 => row("vsqrtpd", Rm, M0F, P66, 0x51),
        SqrtScalarF32 => row("vsqrtss", Rvm, M0F, PF3, 0x51),
        SqrtScalarF64 => row("vsqrtsd", Rvm, M0F, PF2, 0x51),
        RcpF32 => row("vrcpps", Rm, M0F, NP, 0x53),
        RcpScalarF32 => row("vrcpss", Rvm, M0F, PF3, 0x53),
        RsqrtF32 => row("vrsqrtps", Rm, M0F, NP, 0x52),
        RsqrtScalarF32 => row("vrsqrtss", Rvm, M0F, PF3, 0x52),
        CmpF32 => row("vcmpps", RvmI, M0F, NP, 0xc2),
        CmpF64 => row("vcmppd", RvmI, M0F, P66, 0xc2),
        CmpScalarF32 => row("vcmpss", RvmI, M0F, PF3, 0xc2),
        CmpScalarF64 => row("vcmpsd", RvmI, M0F, PF2, 0xc2),
        RoundF32 => row("vroundps", RmI, M0F3A, P66, 0x08),
        RoundF64 => row("vroundpd", RmI, M0F3A, P66, 0x09),
        RoundScalarF32 => row("vroundss", RvmI, M0F3A, P66, 0x0a),
        RoundScalarF64 => row("vroundsd", RvmI, M0F3A, P66, 0x0b),
        DotF32 => row("vdpps", RvmI, M0F3A, P66, 0x40),
        DotF64 => row("vdppd", RvmI, M0F3A, P66, 0x41),
        HAddF32 => row("vhaddps", Rvm, M0F, PF2, 0x7c),
        HAddF64 => row("vhaddpd", Rvm, M0F, P66, 0x7c),
        HSubF32 => row("vhsubps", Rvm, M0F, PF2, 0x7d),
        HSubF64 => row("vhsubpd", Rvm, M0F, P66, 0x7d),
        AddSubF32 => row("vaddsubps", Rvm, M0F, PF2, 0xd0),
        AddSubF64 => row("vaddsubpd", Rvm, M0F, P66, 0xd0),
        CvtI32F32 => row("vcvtdq2ps", Rm, M0F, NP, 0x5b),
        CvtF32I32 => row("vcvtps2dq", Rm, M0F, P66, 0x5b),
        CvtTruncF32I32 => row("vcvttps2dq", Rm, M0F, PF3, 0x5b),
        CvtI32F64 => row("vcvtdq2pd", Rm, M0F, PF3, 0xe6),
        CvtF64I32 => row("vcvtpd2dq", Rm, M0F, PF2, 0xe6),
        CvtTruncF64I32 => row("vcvttpd2dq", Rm, M0F, P66, 0xe6),
        CvtF32F64 => row("vcvtps2pd", Rm, M0F, NP, 0x5a),
        CvtF64F32 => row("vcvtpd2ps", Rm, M0F, P66, 0x5a),
        CvtF16F32 => row("vcvtph2ps", Rm, M0F38, P66, 0x13),
        CvtF32F16 => row("vcvtps2ph", MrI, M0F3A, P66, 0x1d),
        CvtScalarF32F64 => row("vcvtss2sd", Rvm, M0F, PF3, 0x5a),
        CvtScalarF64F32 => row("vcvtsd2ss", Rvm, M0F, PF2, 0x5a),
        AesEnc => row("vaesenc", Rvm, M0F38, P66, 0xdc),
        AesEncLast => row("vaesenclast", Rvm, M0F38, P66, 0xdd),
        AesDec => row("vaesdec", Rvm, M0F38, P66, 0xde),
        AesDecLast => row("vaesdeclast", Rvm, M0F38, P66, 0xdf),
        AesInvMix => row("vaesimc", Rm, M0F38, P66, 0xdb),
        AesKeygen => row("vaeskeygenassist", RmI, M0F3A, P66, 0xdf),
        ClmulI64 => row("vpclmulqdq", RvmI, M0F3A, P66, 0x44),
        GfMulI8 => row("vgf2p8mulb", Rvm, M0F38, P66, 0xcf),
        GfAffineI8 => row_w("vgf2p8affineqb", RvmI, M0F3A, P66, 0xce),
        GfAffineInvI8 => row_w("vgf2p8affineinvqb", RvmI, M0F3A, P66, 0xcf),
        Sha1NextE => row("sha1nexte", Legacy, M0F38, NP, 0xc8),
        Sha1Msg1 => row("sha1msg1", Legacy, M0F38, NP, 0xc9),
        Sha1Msg2 => row("sha1msg2", Legacy, M0F38, NP, 0xca),
        Sha1Rounds4 => row("sha1rnds4", LegacyI, M0F3A, NP, 0xcc),
        Sha256Msg1 => row("sha256msg1", Legacy, M0F38, NP, 0xcc),
        Sha256Msg2 => row("sha256msg2", Legacy, M0F38, NP, 0xcd),
    }
}

/// The instruction of an insertion; `b` is a general register.
const fn ins_row(op: VecInsOp) -> Row {
    match op {
        VecInsOp::InsertI8 => row("vpinsrb", RvmI, M0F3A, P66, 0x20),
        VecInsOp::InsertI16 => row("vpinsrw", RvmI, M0F, P66, 0xc4),
        VecInsOp::InsertI32 => row("vpinsrd", RvmI, M0F3A, P66, 0x22),
        VecInsOp::InsertI64 => row_w("vpinsrq", RvmI, M0F3A, P66, 0x22),
        VecInsOp::CvtI32F32 => row("vcvtsi2ss", Rvm, M0F, PF3, 0x2a),
        VecInsOp::CvtI64F32 => row_w("vcvtsi2ss", Rvm, M0F, PF3, 0x2a),
        VecInsOp::CvtI32F64 => row("vcvtsi2sd", Rvm, M0F, PF2, 0x2a),
        VecInsOp::CvtI64F64 => row_w("vcvtsi2sd", Rvm, M0F, PF2, 0x2a),
    }
}

/// What a test leaves in the host's flags, if its result is not in a general register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TestResult {
    Register,
    Flags,
}

/// The instruction of a test. `dst` is a general register unless the result is in the flags.
const fn test_row(op: VecTestOp) -> (Row, TestResult) {
    use TestResult::*;
    match op {
        VecTestOp::MaskI8 => (row("vpmovmskb", Rm, M0F, P66, 0xd7), Register),
        VecTestOp::MaskF32 => (row("vmovmskps", Rm, M0F, NP, 0x50), Register),
        VecTestOp::MaskF64 => (row("vmovmskpd", Rm, M0F, P66, 0x50), Register),
        VecTestOp::ExtractI8 => (row("vpextrb", MrI, M0F3A, P66, 0x14), Register),
        VecTestOp::ExtractI16 => (row("vpextrw", RmI, M0F, P66, 0xc5), Register),
        VecTestOp::ExtractI32 => (row("vpextrd", MrI, M0F3A, P66, 0x16), Register),
        VecTestOp::ExtractI64 => (row_w("vpextrq", MrI, M0F3A, P66, 0x16), Register),
        VecTestOp::TestBits => (row("vptest", Rm, M0F38, P66, 0x17), Flags),
        VecTestOp::TestSignsI32 => (row("vtestps", Rm, M0F38, P66, 0x0e), Flags),
        VecTestOp::TestSignsI64 => (row("vtestpd", Rm, M0F38, P66, 0x0f), Flags),
        VecTestOp::CompareF32 => (row("vcomiss", Rm, M0F, NP, 0x2f), Flags),
        VecTestOp::CompareQuietF32 => (row("vucomiss", Rm, M0F, NP, 0x2e), Flags),
        VecTestOp::CompareF64 => (row("vcomisd", Rm, M0F, P66, 0x2f), Flags),
        VecTestOp::CompareQuietF64 => (row("vucomisd", Rm, M0F, P66, 0x2e), Flags),
        VecTestOp::CvtF32I32 => (row("vcvtss2si", Rm, M0F, PF3, 0x2d), Register),
        VecTestOp::CvtF32I64 => (row_w("vcvtss2si", Rm, M0F, PF3, 0x2d), Register),
        VecTestOp::CvtTruncF32I32 => (row("vcvttss2si", Rm, M0F, PF3, 0x2c), Register),
        VecTestOp::CvtTruncF32I64 => (row_w("vcvttss2si", Rm, M0F, PF3, 0x2c), Register),
        VecTestOp::CvtF64I32 => (row("vcvtsd2si", Rm, M0F, PF2, 0x2d), Register),
        VecTestOp::CvtF64I64 => (row_w("vcvtsd2si", Rm, M0F, PF2, 0x2d), Register),
        VecTestOp::CvtTruncF64I32 => (row("vcvttsd2si", Rm, M0F, PF2, 0x2c), Register),
        VecTestOp::CvtTruncF64I64 => (row_w("vcvttsd2si", Rm, M0F, PF2, 0x2c), Register),
    }
}

/// The r/m operand of an encoding.
#[derive(Clone, Copy, Debug)]
enum Operand {
    /// A register (vector or general, as the instruction says).
    Reg(u8),
    /// Memory.
    Mem(VecMem),
}

/// A memory operand of a vector move: `[base + index * 1 + disp]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VecMem {
    /// Base, a general register.
    pub base: u8,
    /// Index, a general register other than 4 (rsp).
    pub index: Option<u8>,
    /// Displacement.
    pub disp: i32,
}

impl VecMem {
    /// `[base + disp]`.
    pub fn base(base: u8, disp: i32) -> VecMem {
        VecMem { base, index: None, disp }
    }

    /// `[base + index]`.
    pub fn indexed(base: u8, index: u8) -> VecMem {
        debug_assert!(index != 4, "rsp cannot be an index");
        VecMem { base, index: Some(index), disp: 0 }
    }
}

impl From<Mem> for VecMem {
    /// The same place.
    ///
    /// # Panics
    /// If the index is shifted.
    fn from(mem: Mem) -> VecMem {
        match mem {
            Mem::Base(base, disp) => VecMem::base(base, disp),
            Mem::Index(base, index) => VecMem::indexed(base, index),
            Mem::Scaled(base, index, 0, disp) => VecMem { base, index: Some(index), disp },
            Mem::Scaled(..) => panic!("vector moves have no shifted index"),
        }
    }
}

/// VEX prefix, opcode, ModRM (and SIB, displacement).
fn encode(buf: &mut Vec<u8>, row: Row, len: VecLen, reg: u8, vvvv: u8, rm: Operand) {
    let (x, b) = match rm {
        Operand::Reg(r) => (0, r >> 3),
        Operand::Mem(m) => (m.index.unwrap_or(0) >> 3, m.base >> 3),
    };
    let r = reg >> 3;
    let tail = (!vvvv & 15) << 3 | (len == VecLen::V256) as u8 * 4 | row.pp;
    if x == 0 && b == 0 && !row.w && row.map == M0F {
        buf.extend([0xc5, (r ^ 1) << 7 | tail]);
    } else {
        buf.extend([0xc4, (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | row.map, (row.w as u8) << 7 | tail]);
    }
    buf.push(row.opcode);
    let reg = (reg & 7) << 3;
    match rm {
        Operand::Reg(r) => buf.push(0xc0 | reg | r & 7),
        Operand::Mem(m) => {
            // [rbp] and [r13] have no form without displacement; [rsp] and [r12] need a SIB byte.
            let mode = match m.disp {
                0 if m.base & 7 != 5 => 0,
                -128..=127 => 0x40,
                _ => 0x80,
            };
            match m.index {
                Some(i) => buf.extend([mode | reg | 4, (i & 7) << 3 | m.base & 7]),
                None if m.base & 7 == 4 => buf.extend([mode | reg | 4, 0x24]),
                None => buf.push(mode | reg | m.base & 7),
            }
            match mode {
                0 => {}
                0x40 => buf.push(m.disp as u8),
                _ => buf.extend(m.disp.to_le_bytes()),
            }
        }
    }
}

/// REX prefix if there must be one, opcode, ModRM; registers only.
fn encode_legacy(buf: &mut Vec<u8>, row: Row, reg: u8, rm: u8) {
    if (reg | rm) >> 3 != 0 {
        buf.push(0x40 | (reg >> 3) << 2 | rm >> 3);
    }
    buf.extend([
        0x0f,
        if row.map == M0F38 { 0x38 } else { 0x3a },
        row.opcode,
        0xc0 | (reg & 7) << 3 | rm & 7,
    ]);
}

/// Encodes a row whose operands are registers.
fn encode_row(buf: &mut Vec<u8>, row: Row, len: VecLen, dst: u8, a: u8, b: u8, imm: u8) {
    match row.form {
        Rvm | RvmI => encode(buf, row, len, dst, a, Operand::Reg(b)),
        Rm | RmI => encode(buf, row, len, dst, 0, Operand::Reg(a)),
        VmI(ext) => encode(buf, row, len, ext, dst, Operand::Reg(a)),
        MrI => encode(buf, row, len, a, 0, Operand::Reg(dst)),
        Legacy | LegacyI => {
            let place = if dst == b && dst != a { SCRATCH } else { dst };
            emit_vec_move(buf, VecLen::V128, place, a);
            encode_legacy(buf, row, place, b);
            if row.form == LegacyI {
                buf.push(imm);
            }
            if place != dst {
                emit_vec_move(buf, VecLen::V128, dst, place);
            }
        }
    }
    if matches!(row.form, RvmI | RmI | VmI(_) | MrI) {
        buf.push(imm);
    }
}

/// `dst = op(a, b, imm)` in vector registers, any of which may coincide, but none of which is a scratch register. Operations
/// that read one operand ignore `b`. Host flags are kept.
pub fn emit_vec(buf: &mut Vec<u8>, op: VecOp, len: VecLen, dst: u8, a: u8, b: u8, imm: u8) {
    encode_row(buf, vec_row(op), len, dst, a, b, imm);
}

/// `dst = op(a, b, imm)`: vector registers `dst` and `a`, general register `b`. Host flags are kept.
pub fn emit_vec_ins(buf: &mut Vec<u8>, op: VecInsOp, dst: u8, a: u8, b: u8, imm: u8) {
    encode_row(buf, ins_row(op), VecLen::V128, dst, a, b, imm);
}

/// `dst = op(a, b, imm)`: general register `dst`, vector registers `a` and `b` (ignored by operations with one operand).
/// Clobbers the host's flags and nothing else.
pub fn emit_vec_test(buf: &mut Vec<u8>, op: VecTestOp, len: VecLen, dst: u8, a: u8, b: u8, imm: u8) {
    let (row, result) = test_row(op);
    match result {
        TestResult::Register => encode_row(buf, row, len, dst, a, b, imm),
        TestResult::Flags => {
            encode(buf, row, len, a, 0, Operand::Reg(b));
            packed_flags(buf, dst);
        }
    }
}

/// As [`emit_vec_test`] for an operation with packed flags as its result, leaving them in the host's flags (carry,
/// parity, zero; overflow, sign and auxiliary carry clear) instead. False if `op` is not such an operation.
pub fn emit_vec_test_flags(buf: &mut Vec<u8>, op: VecTestOp, len: VecLen, a: u8, b: u8) -> bool {
    let (row, result) = test_row(op);
    if result == TestResult::Flags {
        encode(buf, row, len, a, 0, Operand::Reg(b));
    }
    result == TestResult::Flags
}

/// The host's flags, packed, to general register `dst`; overflow is clear.
fn packed_flags(buf: &mut Vec<u8>, dst: u8) {
    let b = dst >> 3;
    if dst == 0 {
        buf.push(0x9f); // lahf
    } else {
        buf.extend([0x48 | b, 0x89, 0xc0 | dst & 7]); // mov dst, rax
        buf.push(0x9f); // lahf
        buf.extend([0x48 | b, 0x90 | dst & 7]); // xchg rax, dst
    }
    // and dst32, 0xff00
    match dst {
        0 => buf.push(0x25),
        _ => {
            if b != 0 {
                buf.push(0x41);
            }
            buf.extend([0x81, 0xe0 | dst & 7]);
        }
    }
    buf.extend(0xff00u32.to_le_bytes());
}

/// `dst = a` in `len` bits, zero above.
pub fn emit_vec_move(buf: &mut Vec<u8>, len: VecLen, dst: u8, a: u8) {
    encode(buf, row("vmovdqa", Rm, M0F, P66, 0x6f), len, dst, 0, Operand::Reg(a));
}

/// `dst = 0`, all 256 bits.
pub fn emit_vec_zero(buf: &mut Vec<u8>, dst: u8) {
    emit_vec(buf, VecOp::Xor, VecLen::V128, dst, dst, dst, 0);
}

/// Vector register `dst` = the low 32 (or 64, if `wide`) bits of general register `a`, zero above.
pub fn emit_vec_from_int(buf: &mut Vec<u8>, wide: bool, dst: u8, a: u8) {
    encode(buf, Row { w: wide, ..MOVE_FROM_RM }, VecLen::V128, dst, 0, Operand::Reg(a));
}

/// General register `dst` = the low 32 (or 64, if `wide`) bits of vector register `a`, zero above.
pub fn emit_vec_to_int(buf: &mut Vec<u8>, wide: bool, dst: u8, a: u8) {
    encode(buf, Row { w: wide, ..MOVE_TO_RM }, VecLen::V128, a, 0, Operand::Reg(dst));
}

/// vmovd/vmovq from a general register or 4 bytes of memory.
const MOVE_FROM_RM: Row = row("vmovd", Rm, M0F, P66, 0x6e);
/// vmovd/vmovq to a general register or 4 bytes of memory.
const MOVE_TO_RM: Row = row("vmovd", Rm, M0F, P66, 0x7e);

/// `dst` = `size` bytes of memory, zero above. Unaligned.
pub fn emit_vec_load(buf: &mut Vec<u8>, size: VecSize, dst: u8, mem: VecMem) {
    let (row, len) = match size {
        VecSize::B4 => (MOVE_FROM_RM, VecLen::V128),
        VecSize::B8 => (row("vmovq", Rm, M0F, PF3, 0x7e), VecLen::V128),
        VecSize::B16 => (row("vmovdqu", Rm, M0F, PF3, 0x6f), VecLen::V128),
        VecSize::B32 => (row("vmovdqu", Rm, M0F, PF3, 0x6f), VecLen::V256),
    };
    encode(buf, row, len, dst, 0, Operand::Mem(mem));
}

/// `size` bytes of memory = low bytes of `src`. Unaligned.
pub fn emit_vec_store(buf: &mut Vec<u8>, size: VecSize, src: u8, mem: VecMem) {
    let (row, len) = match size {
        VecSize::B4 => (MOVE_TO_RM, VecLen::V128),
        VecSize::B8 => (row("vmovq", Rm, M0F, P66, 0xd6), VecLen::V128),
        VecSize::B16 => (row("vmovdqu", Rm, M0F, PF3, 0x7f), VecLen::V128),
        VecSize::B32 => (row("vmovdqu", Rm, M0F, PF3, 0x7f), VecLen::V256),
    };
    encode(buf, row, len, src, 0, Operand::Mem(mem));
}

/// `dst` = the lanes of `width` (32 or 64) bits of memory whose top bit in `mask` is set, zero elsewhere. Unaligned.
pub fn emit_masked_load(buf: &mut Vec<u8>, width: Width, len: VecLen, dst: u8, mask: u8, mem: VecMem) {
    let row = Row { w: width == Width::W64, ..row("vpmaskmov", Rvm, M0F38, P66, 0x8c) };
    encode(buf, row, len, dst, mask, Operand::Mem(mem));
}

/// Those lanes of `width` (32 or 64) bits of memory whose top bit in `mask` is set = lanes of `src`. Unaligned.
pub fn emit_masked_store(buf: &mut Vec<u8>, width: Width, len: VecLen, src: u8, mask: u8, mem: VecMem) {
    let row = Row { w: width == Width::W64, ..row("vpmaskmov", Rvm, M0F38, P66, 0x8e) };
    encode(buf, row, len, src, mask, Operand::Mem(mem));
}

#[cfg(test)]
#[path = "vec_tests.rs"]
mod tests;
