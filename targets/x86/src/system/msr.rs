//! Model-specific registers (SDM volume 4).
//!
//! What is not here does not exist and raises #GP(0); guests probe with that in mind. Registers of a feature exist with the
//! feature, and those that only one vendor has, with that vendor's models. The local APIC's (IA32_APIC_BASE, TSC deadline,
//! x2APIC) are the platform's.

use super::exception::gp;
use super::interrupt::check_interrupts;
use super::kvm_clock::index::{SYSTEM_TIME, WALL_CLOCK};
use super::{Result, control, kvm_clock};
use crate::cpuid::Feature;
use crate::mmu::canonical_base;
use crate::state::{X86Env, seg};

/// Indices.
pub mod index {
    #![allow(missing_docs)]
    pub const P5_MC_ADDR: u32 = 0x0;
    pub const P5_MC_TYPE: u32 = 0x1;
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRRCAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MCG_CTL: u32 = 0x17b;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const MTRR_PHYSBASE0: u32 = 0x200;
    pub const MTRR_PHYSMASK7: u32 = 0x20f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const MC0_CTL: u32 = 0x400;
    pub const MC9_MISC: u32 = 0x427;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const XSS: u32 = 0xda0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const AMD_SYSCFG: u32 = 0xc001_0010;
    pub const AMD_HWCR: u32 = 0xc001_0015;
    pub const AMD_NB_CFG: u32 = 0xc001_001f;
    pub const AMD_INT_PENDING: u32 = 0xc001_0055;
    pub const AMD_DE_CFG: u32 = 0xc001_1029;
}
use index::*;

/// Fixed-range MTRRs in address order.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// Eight variable ranges, fixed ranges, write-combining.
const MTRRCAP_VALUE: u64 = 1 << 10 | 1 << 8 | 8;
/// Ten banks, IA32_MCG_CTL.
const MCG_CAP_VALUE: u64 = 1 << 8 | 10;

/// Memory types that PAT entries and MTRRs may name (SDM volume 3, table 11-2); UC- (7) in the PAT only.
fn memory_type(v: u64, pat: bool) -> bool {
    matches!(v, 0 | 1 | 4 | 5 | 6) || pat && v == 7
}

fn bytes_are_types(v: u64, pat: bool) -> bool {
    v.to_le_bytes().iter().all(|&b| memory_type(b as u64, pat))
}

fn unless(bad: bool) -> Result<()> {
    if bad { Err(gp(0)) } else { Ok(()) }
}

impl X86Env {
    fn need(&self, f: Feature) -> Result<()> {
        unless(!self.cpuid.has(f))
    }

    fn need_any(&self, features: &[Feature]) -> Result<()> {
        unless(!features.iter().any(|&f| self.cpuid.has(f)))
    }
}

/// What brings IA32_SPEC_CTRL.
const SPECULATION: [Feature; 6] =
    [Feature::SPEC_CTRL, Feature::STIBP, Feature::SSBD, Feature::IBRS, Feature::AMD_STIBP, Feature::AMD_SSBD];

/// AMD's configuration registers: TSC runs at the P0 frequency (bit 24 of HWCR), LFENCE serialises (bit 1 of DE_CFG).
/// What is written to them has no effect.
const AMD: [(u32, u64); 5] =
    [(AMD_SYSCFG, 0), (AMD_HWCR, 1 << 24), (AMD_NB_CFG, 0), (AMD_INT_PENDING, 0), (AMD_DE_CFG, 1 << 1)];

/// Whether the register exists on this CPU model. What a feature of one's own brings is checked where it is accessed.
fn exists(env: &X86Env, msr: u32) -> Result<()> {
    let amd = env.cpuid.is_amd();
    match msr {
        P5_MC_ADDR | P5_MC_TYPE => env.need(Feature::MCE),
        TSC => env.need(Feature::TSC),
        APIC_BASE => env.need(Feature::APIC),
        // Since the P6 family, which brought CMOV.
        BIOS_UPDT_TRIG | BIOS_SIGN_ID | DEBUGCTL => env.need(Feature::CMOV),
        PLATFORM_ID => unless(amd || !env.cpuid.has(Feature::CMOV)),
        // Since the Pentium 4, which brought SSE2.
        MISC_ENABLE => unless(amd || !env.cpuid.has(Feature::SSE2)),
        FEATURE_CONTROL => unless(amd || !env.cpuid.has(Feature::LM)),
        SYSENTER_CS..=SYSENTER_EIP => env.need(Feature::SEP),
        MCG_CAP..=MCG_CTL | MC0_CTL..=MC9_MISC => env.need(Feature::MCA),
        MTRR_PHYSBASE0..=MTRR_PHYSMASK7 | MTRR_DEF_TYPE | MTRRCAP => env.need(Feature::MTRR),
        0x250..=0x26f => env.need(Feature::MTRR),
        PAT => env.need(Feature::PAT),
        SPEC_CTRL => env.need_any(&SPECULATION),
        XSS => env.need(Feature::XSAVES),
        PRED_CMD => env.need_any(&[Feature::SPEC_CTRL, Feature::IBPB]),
        EFER => env.need_any(&[Feature::SYSCALL, Feature::NX, Feature::LM]),
        STAR => env.need(Feature::SYSCALL),
        LSTAR | CSTAR | FMASK | FS_BASE | GS_BASE | KERNEL_GS_BASE => env.need(Feature::LM),
        TSC_AUX => env.need_any(&[Feature::RDTSCP, Feature::RDPID]),
        AMD_SYSCFG | AMD_HWCR | AMD_NB_CFG | AMD_INT_PENDING | AMD_DE_CFG => unless(!amd),
        _ => Ok(()),
    }
}

#[cold]
fn unknown(what: &str, msr: u32, value: u64) -> tessera_tcg::guest::Exception {
    tracing::debug!(target: "guest_errors", "{what} of MSR {msr:#x} ({value:#x}) raises #GP");
    gp(0)
}

/// RDMSR.
pub fn read(env: &mut X86Env, msr: u32) -> Result<u64> {
    exists(env, msr)?;
    let m = &env.msr;
    Ok(match msr {
        P5_MC_ADDR | P5_MC_TYPE => 0,
        TSC => control::tsc(env),
        PLATFORM_ID => 0,
        APIC_BASE => env.platform.apic_base(),
        FEATURE_CONTROL => m.feature_control,
        TSC_ADJUST => {
            env.need(Feature::TSC_ADJUST)?;
            env.msr.tsc_adjust
        }
        SPEC_CTRL => m.spec_ctrl,
        BIOS_SIGN_ID => m.bios_sign_id,
        MTRRCAP => MTRRCAP_VALUE,
        ARCH_CAPABILITIES => {
            env.need(Feature::ARCH_CAPABILITIES)?;
            env.cpuid.arch_capabilities()
        }
        SYSENTER_CS => m.sysenter_cs,
        SYSENTER_ESP => m.sysenter_esp,
        SYSENTER_EIP => m.sysenter_eip,
        MCG_CAP => MCG_CAP_VALUE,
        MCG_STATUS => m.mcg_status,
        MCG_CTL => m.mcg_ctl,
        MISC_ENABLE => m.misc_enable,
        DEBUGCTL => 0,
        MTRR_PHYSBASE0..=MTRR_PHYSMASK7 => {
            let (base, mask) = m.mtrr_var[((msr - MTRR_PHYSBASE0) / 2) as usize];
            if msr & 1 == 0 { base } else { mask }
        }
        PAT => m.pat,
        MTRR_DEF_TYPE => m.mtrr_def_type,
        MC0_CTL..=MC9_MISC => {
            let n = (msr - MC0_CTL) as usize;
            m.mc_banks[n / 4][n % 4]
        }
        TSC_DEADLINE => {
            env.need(Feature::TSC_DEADLINE)?;
            deadline(env)?
        }
        X2APIC_FIRST..=X2APIC_LAST => {
            env.need(Feature::X2APIC)?;
            env.platform.apic_msr_read(msr).map_err(|_| unknown("read", msr, 0))?
        }
        XSS => m.xss,
        EFER => env.efer.bits(),
        STAR => m.star,
        LSTAR => m.lstar,
        CSTAR => m.cstar,
        FMASK => m.fmask,
        FS_BASE => env.seg[seg::FS].base,
        GS_BASE => env.seg[seg::GS].base,
        KERNEL_GS_BASE => m.kernel_gs_base,
        TSC_AUX => m.tsc_aux,
        AMD_SYSCFG | AMD_HWCR | AMD_NB_CFG | AMD_INT_PENDING | AMD_DE_CFG => {
            AMD.iter().find(|(index, _)| *index == msr).map_or(0, |&(_, value)| value)
        }
        _ if WALL_CLOCK.contains(&msr) || SYSTEM_TIME.contains(&msr) => kvm_clock::read(env, msr)?,
        _ => match MTRR_FIXED.iter().position(|&f| f == msr) {
            Some(n) => m.mtrr_fixed[n],
            None => return Err(unknown("read", msr, 0)),
        },
    })
}

/// WRMSR.
pub fn write(env: &mut X86Env, msr: u32, value: u64) -> Result<()> {
    exists(env, msr)?;
    let physical = u64::MAX << env.cpuid.phys_bits();
    match msr {
        P5_MC_ADDR | P5_MC_TYPE => {}
        TSC => {
            let delta = value.wrapping_sub(control::tsc(env));
            adjust_tsc(env, delta)?;
        }
        TSC_ADJUST => {
            env.need(Feature::TSC_ADJUST)?;
            let delta = value.wrapping_sub(env.msr.tsc_adjust);
            adjust_tsc(env, delta)?;
        }
        APIC_BASE => {
            let x2apic = value >> 10 & 1 != 0;
            unless(value & (physical | 0x2ff) != 0 || x2apic && !env.cpuid.has(Feature::X2APIC))?;
            env.platform.set_apic_base(value).map_err(|_| unknown("write", msr, value))?;
        }
        FEATURE_CONTROL => {
            // Bit 0 locks the register.
            unless(env.msr.feature_control & 1 != 0 || value & !0x7 != 0)?;
            env.msr.feature_control = value;
        }
        SPEC_CTRL => {
            let ssbd = env.cpuid.has(Feature::SSBD) || env.cpuid.has(Feature::AMD_SSBD);
            let ssbd = if ssbd { 1 << 2 } else { 0 };
            let bhi = if env.cpuid.has(Feature::BHI_CTRL) { 1 << 10 } else { 0 };
            unless(value & !(3 | ssbd | bhi) != 0)?;
            env.msr.spec_ctrl = value;
        }
        PRED_CMD => unless(value & !1 != 0)?,
        BIOS_UPDT_TRIG => {}
        BIOS_SIGN_ID => {
            // Writing 0 before CPUID asks for the revision, which is always there.
        }
        SYSENTER_CS => env.msr.sysenter_cs = value & 0xffff_ffff,
        SYSENTER_ESP => {
            unless(!canonical_base(env, value))?;
            env.msr.sysenter_esp = value;
        }
        SYSENTER_EIP => {
            unless(!canonical_base(env, value))?;
            env.msr.sysenter_eip = value;
        }
        MCG_STATUS => {
            unless(value & !0x7 != 0)?;
            env.msr.mcg_status = value;
        }
        MCG_CTL => env.msr.mcg_ctl = value,
        MISC_ENABLE => env.msr.misc_enable = value,
        // Branch records and branch stepping are not claimed; BTF and LBR are dropped, as on CPUs without.
        DEBUGCTL => unless(value & !0x3 != 0)?,
        MTRR_PHYSBASE0..=MTRR_PHYSMASK7 => {
            let range = &mut env.msr.mtrr_var[((msr - MTRR_PHYSBASE0) / 2) as usize];
            if msr & 1 == 0 {
                unless(value & (physical | 0xf00) != 0 || !memory_type(value & 0xff, false))?;
                range.0 = value;
            } else {
                unless(value & (physical | 0x7ff) != 0)?;
                range.1 = value;
            }
        }
        PAT => {
            unless(!bytes_are_types(value, true))?;
            env.msr.pat = value;
        }
        MTRR_DEF_TYPE => {
            unless(value & !0xcff != 0 || !memory_type(value & 0xff, false))?;
            env.msr.mtrr_def_type = value;
        }
        MC0_CTL..=MC9_MISC => {
            let n = (msr - MC0_CTL) as usize;
            // Only CTL takes any value; the others can be cleared.
            unless(!n.is_multiple_of(4) && value != 0)?;
            env.msr.mc_banks[n / 4][n % 4] = value;
        }
        TSC_DEADLINE => {
            env.need(Feature::TSC_DEADLINE)?;
            set_deadline(env, value)?;
        }
        X2APIC_FIRST..=X2APIC_LAST => {
            env.need(Feature::X2APIC)?;
            env.platform.apic_msr_write(msr, value).map_err(|_| unknown("write", msr, value))?;
            check_interrupts(env);
        }
        XSS => {
            unless(value & !super::xsave::SUPERVISOR != 0)?;
            env.msr.xss = value;
        }
        EFER => control::write_efer(env, value)?,
        STAR => env.msr.star = value,
        LSTAR => {
            unless(!canonical_base(env, value))?;
            env.msr.lstar = value;
        }
        CSTAR => {
            unless(!canonical_base(env, value))?;
            env.msr.cstar = value;
        }
        FMASK => {
            unless(value >> 32 != 0)?;
            env.msr.fmask = value;
        }
        FS_BASE | GS_BASE => {
            unless(!canonical_base(env, value))?;
            env.set_segment_base(if msr == FS_BASE { seg::FS } else { seg::GS }, value);
        }
        KERNEL_GS_BASE => {
            unless(!canonical_base(env, value))?;
            env.msr.kernel_gs_base = value;
        }
        AMD_SYSCFG | AMD_HWCR | AMD_NB_CFG | AMD_INT_PENDING | AMD_DE_CFG => {}
        TSC_AUX => {
            unless(value >> 32 != 0)?;
            env.msr.tsc_aux = value;
        }
        _ if WALL_CLOCK.contains(&msr) => kvm_clock::write_wall_clock(env, value)?,
        _ if SYSTEM_TIME.contains(&msr) => kvm_clock::write_system_time(env, value)?,
        _ => match MTRR_FIXED.iter().position(|&f| f == msr) {
            Some(n) => {
                unless(!bytes_are_types(value, false))?;
                env.msr.mtrr_fixed[n] = value;
            }
            None => return Err(unknown("write", msr, value)),
        },
    }
    Ok(())
}

/// The platform's counter is ahead of the guest's by minus this.
fn guest_offset(env: &X86Env) -> u64 {
    env.msr.tsc_offset.wrapping_add(env.msr.tsc_adjust)
}

/// The deadline in the guest's time; 0 if none is armed.
fn deadline(env: &mut X86Env) -> Result<u64> {
    let armed = env.platform.apic_msr_read(TSC_DEADLINE).map_err(|_| gp(0))?;
    Ok(if armed == 0 { 0 } else { armed.wrapping_add(guest_offset(env)) })
}

fn set_deadline(env: &mut X86Env, value: u64) -> Result<()> {
    let platform = match value.wrapping_sub(guest_offset(env)) {
        _ if value == 0 => 0,
        // 0 would disarm it.
        0 => 1,
        v => v,
    };
    env.platform.apic_msr_write(TSC_DEADLINE, platform).map_err(|_| gp(0))?;
    check_interrupts(env);
    Ok(())
}

/// Moves the guest's counter; an armed deadline stays where it is in the guest's time.
fn adjust_tsc(env: &mut X86Env, delta: u64) -> Result<()> {
    let armed = if env.cpuid.has(Feature::TSC_DEADLINE) { deadline(env)? } else { 0 };
    env.msr.tsc_adjust = env.msr.tsc_adjust.wrapping_add(delta);
    if armed != 0 {
        set_deadline(env, armed)?;
    }
    kvm_clock::refresh(env);
    Ok(())
}
