//! Control registers, EFER, and what goes with them: TLB flushes, mode transitions (SDM volume 3, sections 2.5, 4.10.4 and
//! 9.8; volume 2, MOV).

use tessera_tcg::softmmu;

use super::exception::gp;
use super::interrupt::check_interrupts;
use super::segment::system_type;
use super::{Result, long_mode};
use crate::cpuid::Feature;
use crate::guest::X86;
use crate::mmu::{self, Paging};
use crate::state::{Cr0, Cr4, Efer, Segment, X86Env, seg};

/// Bit 63 of a value moved to CR3 under CR4.PCIDE: keep translations.
const NO_FLUSH: u64 = 1 << 63;

/// Writes CR0, with everything that follows from it.
pub fn write_cr0(env: &mut X86Env, value: u64) -> Result<()> {
    if value >> 32 != 0 {
        return Err(gp(0));
    }
    let old = env.cr0;
    let new = Cr0::from_bits_truncate(value) | Cr0::ET;
    let paging = new.contains(Cr0::PG);
    if paging && !new.contains(Cr0::PE) || new.contains(Cr0::NW) && !new.contains(Cr0::CD) {
        return Err(gp(0));
    }
    let mut efer = env.efer;
    if paging && !old.contains(Cr0::PG) {
        if efer.contains(Efer::LME) {
            let tr = &env.seg[seg::TR];
            let tss16 = tr.access & Segment::PRESENT != 0
                && matches!((tr.access & 0x1f) as u8, system_type::TSS16 | system_type::TSS16_BUSY);
            let cs_long = env.seg[seg::CS].access & Segment::LONG != 0;
            if !env.cr4.contains(Cr4::PAE) || cs_long || tss16 {
                return Err(gp(0));
            }
            efer |= Efer::LMA;
        }
    } else if !paging && old.contains(Cr0::PG) {
        if env.code64() || env.cr4.contains(Cr4::PCIDE) {
            return Err(gp(0));
        }
        efer -= Efer::LMA;
    }
    let changed = old ^ new;
    let pae = paging && env.cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA);
    if pae && changed.intersects(Cr0::PG | Cr0::CD | Cr0::NW) {
        env.pdpte = mmu::load_pdptes(env, env.cr3)?;
    }
    // The instruction pointer is kept as a linear address: it does not change with the mode, but what it means may.
    env.cr0 = new;
    env.efer = efer;
    if changed.intersects(Cr0::PE) && !new.contains(Cr0::PE) {
        env.cpl = 0;
    }
    if changed.intersects(Cr0::PG | Cr0::WP | Cr0::PE) {
        mmu::flush_and_switch(env);
    }
    env.update_mode();
    Ok(())
}

/// Writes CR3.
pub fn write_cr3(env: &mut X86Env, value: u64) -> Result<()> {
    let pcid = env.cr4.contains(Cr4::PCIDE);
    let keep = pcid && value & NO_FLUSH != 0;
    let value = if pcid { value & !NO_FLUSH } else { value };
    if long_mode(env) && value >> env.cpuid.phys_bits() != 0 {
        return Err(gp(0));
    }
    if Paging::of(env) == Paging::Pae {
        env.pdpte = mmu::load_pdptes(env, value)?;
    }
    env.cr3 = value;
    if !keep {
        let space = mmu::address_space(env);
        softmmu::flush_space::<X86>(env, space);
    }
    softmmu::switch_space::<X86>(env);
    Ok(())
}

/// The CR4 bits that exist on this CPU.
fn cr4_mask(env: &X86Env) -> Cr4 {
    let table = [
        (Feature::VME, Cr4::VME | Cr4::PVI),
        (Feature::TSC, Cr4::TSD),
        (Feature::DE, Cr4::DE),
        (Feature::PSE, Cr4::PSE),
        (Feature::PAE, Cr4::PAE),
        (Feature::MCE, Cr4::MCE),
        (Feature::PGE, Cr4::PGE),
        (Feature::FXSR, Cr4::OSFXSR),
        (Feature::SSE, Cr4::OSXMMEXCPT),
        (Feature::UMIP, Cr4::UMIP),
        (Feature::LA57, Cr4::LA57),
        (Feature::FSGSBASE, Cr4::FSGSBASE),
        (Feature::PCID, Cr4::PCIDE),
        (Feature::XSAVE, Cr4::OSXSAVE),
        (Feature::SMEP, Cr4::SMEP),
        (Feature::SMAP, Cr4::SMAP),
        (Feature::PKU, Cr4::PKE),
    ];
    // RDPMC came with MMX and has no bit of its own.
    let table = table.iter().chain(&[(Feature::MMX, Cr4::PCE)]);
    table.filter(|(f, _)| env.cpuid.has(*f)).fold(Cr4::empty(), |m, (_, bit)| m | *bit)
}

/// Whether all bits of a value of CR4 exist on this CPU.
pub fn cr4_exists(env: &X86Env, value: u64) -> bool {
    Cr4::from_bits(value).is_some_and(|v| cr4_mask(env).contains(v))
}

/// Writes CR4.
pub fn write_cr4(env: &mut X86Env, value: u64) -> Result<()> {
    let Some(new) = Cr4::from_bits(value) else { return Err(gp(0)) };
    let old = env.cr4;
    let changed = old ^ new;
    if !cr4_mask(env).contains(new) {
        return Err(gp(0));
    }
    if long_mode(env) && (!new.contains(Cr4::PAE) || changed.contains(Cr4::LA57)) {
        return Err(gp(0));
    }
    let pcid_on = changed.contains(Cr4::PCIDE) && new.contains(Cr4::PCIDE);
    if pcid_on && (!long_mode(env) || env.cr3 & 0xfff != 0) {
        return Err(gp(0));
    }
    let pae = env.cr0.contains(Cr0::PG) && new.contains(Cr4::PAE) && !long_mode(env);
    if pae && changed.intersects(Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP) {
        env.pdpte = mmu::load_pdptes(env, env.cr3)?;
    }
    env.cr4 = new;
    let flushing = Cr4::PAE | Cr4::PSE | Cr4::PGE | Cr4::SMEP | Cr4::SMAP | Cr4::PKE | Cr4::LA57 | Cr4::PCIDE;
    if changed.intersects(flushing) {
        mmu::flush_and_switch(env);
    }
    env.update_mode();
    Ok(())
}

/// CR8: the task priority class.
pub fn read_cr8(env: &X86Env) -> u64 {
    env.platform.tpr() as u64 & 0xf
}

/// Writes CR8.
pub fn write_cr8(env: &mut X86Env, value: u64) -> Result<()> {
    if value >> 4 != 0 {
        return Err(gp(0));
    }
    env.platform.set_tpr(value as u8);
    check_interrupts(env);
    Ok(())
}

/// MOV from CRn; `n` is one of 0, 2, 3, 4, 8. CPL 0.
pub fn read_cr(env: &X86Env, n: usize) -> u64 {
    match n {
        0 => env.cr0.bits(),
        2 => env.cr2,
        3 => env.cr3,
        4 => env.cr4.bits(),
        _ => read_cr8(env),
    }
}

/// MOV to CRn; `n` is one of 0, 2, 3, 4, 8. CPL 0.
pub fn write_cr(env: &mut X86Env, n: usize, value: u64) -> Result<()> {
    match n {
        0 => write_cr0(env, value),
        2 => {
            env.cr2 = value;
            Ok(())
        }
        3 => write_cr3(env, value),
        4 => write_cr4(env, value),
        _ => write_cr8(env, value),
    }
}

/// LMSW: bits 3:0 of CR0, of which PE can only be set.
pub fn lmsw(env: &mut X86Env, value: u64) -> Result<()> {
    let kept = env.cr0.bits() & !0xe;
    write_cr0(env, kept | value & 0xf)
}

/// CLTS.
pub fn clts(env: &mut X86Env) {
    env.cr0 -= Cr0::TS;
    env.update_mode();
}

/// Whether all bits of a value of IA32_EFER exist on this CPU.
pub fn efer_exists(env: &X86Env, value: u64) -> bool {
    let mut mask = Efer::LMA;
    for (feature, bit) in [(Feature::SYSCALL, Efer::SCE), (Feature::LM, Efer::LME), (Feature::NX, Efer::NXE)]
    {
        if env.cpuid.has(feature) {
            mask |= bit;
        }
    }
    value & !mask.bits() == 0
}

/// Writes IA32_EFER.
pub fn write_efer(env: &mut X86Env, value: u64) -> Result<()> {
    if !efer_exists(env, value) {
        return Err(gp(0));
    }
    let old = env.efer;
    let new = Efer::from_bits_truncate(value) - Efer::LMA | old & Efer::LMA;
    let changed = old ^ new;
    if changed.contains(Efer::LME) && env.cr0.contains(Cr0::PG) {
        return Err(gp(0));
    }
    env.efer = new;
    if changed.contains(Efer::NXE) {
        mmu::flush_all(env);
    }
    env.update_mode();
    Ok(())
}

/// INVLPG of a linear address. A non-canonical one does nothing.
pub fn invlpg(env: &mut X86Env, va: u64) {
    if !long_mode(env) || mmu::canonical_base(env, va) {
        let space = mmu::address_space(env);
        softmmu::flush_page::<X86>(env, space, va);
    }
}

/// INVPCID with the descriptor at linear address `va`, which the front end has checked against its segment.
pub fn invpcid(env: &mut X86Env, kind: u64, va: u64) -> Result<()> {
    let mmu_mode = super::data_mmu(env, env.cpl);
    let mut bytes = [0u8; 16];
    softmmu::load_bytes::<X86>(env, va, &mut bytes, mmu_mode)?;
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[8 * n + i]));
    let (descriptor, address) = (word(0), word(1));
    let pcid = (descriptor & 0xfff) as u16;
    let named = kind <= 1;
    if kind > 3 || descriptor >> 12 != 0 || named && pcid != 0 && !env.cr4.contains(Cr4::PCIDE) {
        return Err(gp(0));
    }
    let space = mmu::address_space_of_pcid(env, pcid);
    match kind {
        0 => {
            if !mmu::canonical_base(env, address) {
                return Err(gp(0));
            }
            softmmu::flush_page::<X86>(env, space, address);
        }
        1 => softmmu::flush_space::<X86>(env, space),
        // "All but global" flushes the global ones, too, which is allowed.
        _ => mmu::flush_all(env),
    }
    Ok(())
}

/// WRPKRU: also XRSTOR's way to PKRU.
pub fn write_pkru(env: &mut X86Env, value: u32) {
    if env.pkru != value {
        env.pkru = value;
        if env.cr4.contains(Cr4::PKE) {
            mmu::flush_all(env);
        }
    }
}

/// XSETBV of an extended control register. The front end has seen to CPL 0 and CR4.OSXSAVE.
pub fn xsetbv(env: &mut X86Env, index: u32, value: u64) -> Result<()> {
    let avx = value >> 1 & 3;
    if index != 0 || value & 1 == 0 || value & !env.cpuid.xcr0_mask() != 0 || avx == 2 {
        return Err(gp(0));
    }
    env.xcr0 = value;
    env.update_mode();
    Ok(())
}

/// XGETBV: XCR0, or with ECX 1 the components that are in use.
pub fn xgetbv(env: &mut X86Env, index: u32) -> Result<u64> {
    match index {
        0 => Ok(env.xcr0),
        1 if env.cpuid.has(Feature::XGETBV1) => Ok(super::xsave::in_use(env) & env.xcr0),
        _ => Err(gp(0)),
    }
}

/// Value of the time-stamp counter.
pub fn tsc(env: &mut X86Env) -> u64 {
    let counter = env.platform.tsc();
    counter.wrapping_add(env.msr.tsc_offset).wrapping_add(env.msr.tsc_adjust)
}

/// What of CPUID depends on the state now.
pub fn cpuid_state(env: &X86Env) -> crate::cpuid::Dynamic {
    crate::cpuid::Dynamic {
        osxsave: env.cr4.contains(Cr4::OSXSAVE),
        ospke: env.cr4.contains(Cr4::PKE),
        apic: env.platform.apic_base() >> 11 & 1 != 0,
        code64: env.code64(),
        xcr0: env.xcr0,
    }
}
