//! Which vector operations the host has an instruction for.
//!
//! Every host that a backend accepts has nearly all of them; the rest depends on the processor. A front end asks before
//! it makes one of these, and otherwise calls a helper that computes what the
//! [interpreter](crate::interp::vec) does.

use crate::ir::{Vec3Op, VecLen, VecOp};

/// The host's optional vector instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostVec {
    /// AES rounds on 128 bits.
    pub aes: bool,
    /// AES rounds on 256 bits.
    pub aes256: bool,
    /// Carry-less multiplication in 128 bits.
    pub clmul: bool,
    /// Carry-less multiplication in 256 bits.
    pub clmul256: bool,
    /// SHA-1 and SHA-256.
    pub sha: bool,
    /// Arithmetic in GF(2^8).
    pub gf: bool,
    /// Dot products added to 32-bit lanes.
    pub dot: bool,
}

impl HostVec {
    /// None of them.
    pub const NONE: HostVec = HostVec {
        aes: false,
        aes256: false,
        clmul: false,
        clmul256: false,
        sha: false,
        gf: false,
        dot: false,
    };

    /// What this host has.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> HostVec {
        use std::is_x86_feature_detected as has;
        HostVec {
            aes: has!("aes"),
            aes256: has!("vaes"),
            clmul: has!("pclmulqdq"),
            clmul256: has!("vpclmulqdq"),
            sha: has!("sha"),
            gf: has!("gfni"),
            dot: has!("avxvnni"),
        }
    }

    /// What this host has.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> HostVec {
        HostVec::NONE
    }

    /// Whether `op` may be made in this length.
    pub fn has(&self, op: VecOp, len: VecLen) -> bool {
        use VecOp::*;
        let wide = len == VecLen::V256;
        match op {
            AesEnc | AesEncLast | AesDec | AesDecLast if wide => self.aes256,
            AesEnc | AesEncLast | AesDec | AesDecLast | AesInvMix | AesKeygen => self.aes,
            ClmulI64 if wide => self.clmul256,
            ClmulI64 => self.clmul,
            GfMulI8 | GfAffineI8 | GfAffineInvI8 => self.gf,
            Sha1NextE | Sha1Msg1 | Sha1Msg2 | Sha1Rounds4 | Sha256Msg1 | Sha256Msg2 => self.sha,
            _ => true,
        }
    }

    /// Whether `op` may be made.
    pub fn has3(&self, op: Vec3Op) -> bool {
        use Vec3Op::*;
        match op {
            DotAddU8S8 | DotAddSatU8S8 | DotAddS16 | DotAddSatS16 => self.dot,
            Sha256Rounds2 => self.sha,
            _ => true,
        }
    }
}
