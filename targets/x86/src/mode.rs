//! The mode word: what a translation depends on beside the instruction bytes.
//!
//! Problem: every block is looked up by program counter *and* mode, and the mode is scattered over control registers,
//! EFLAGS and the hidden parts of segment registers. Strategy: one cached word ([`X86Env::mode`]), computed from
//! scratch by [`X86Env::update_mode`], which whoever changes a constituent calls before blocks run again.
//!
//! Bits that cannot matter are normalised to zero (segmentation in 64-bit code, for example), so that the same code is not
//! translated twice.

use crate::helpers::x87_state::status;
use crate::state::{Cr0, Cr4, Efer, RFlags, Segment, X86Env, mmu_mode, mode, seg};
use crate::system::debug;

/// Whether accesses through the segment need no checks: a present, writable, expand-up data segment of 4 GiB.
fn is_unchecked(s: &Segment) -> bool {
    const DATA_WRITABLE: u16 = Segment::PRESENT | 0x12;
    // Present, S, not code, not expand-down, writable.
    s.limit == u32::MAX && s.access & (Segment::PRESENT | 0x1e) == DATA_WRITABLE
}

/// What depends on the CPL, EFLAGS and the interrupt shadow, but not on segments.
const PRIVILEGE: u64 = mode::TRAP
    | mode::SHADOW
    | mode::ALIGN
    | 3 << mode::MMU_SHIFT
    | 3 << mode::CPL_SHIFT
    | 3 << mode::IOPL_SHIFT;

impl X86Env {
    /// Recomputes [`X86Env::mode`]. To be called after a change to CR0, CR4, EFER, XCR0, DR7, MXCSR's masks, the x87
    /// unit's control word, EFLAGS other
    /// than the arithmetic flags and DF, a segment register's hidden part, the CPL, the interrupt shadow or SMM.
    ///
    /// A helper may do so and let its block go on by an indirect jump: the jump cache then answers for the new mode.
    pub fn update_mode(&mut self) {
        debug::arm(self);
        let mode = self.compute_mode();
        self.enter_mode(mode);
    }

    /// What [`X86Env::update_mode`] does, after a change to nothing but the CPL, EFLAGS, the interrupt shadow, CS and SS. Quick
    /// where 64-bit code goes on in 64-bit code, as system calls and most exceptions do.
    #[inline]
    pub fn update_privilege(&mut self) {
        if self.mode & mode::CODE64 == 0 || !self.code64() {
            return self.update_mode();
        }
        let mode = self.mode & !PRIVILEGE | self.privilege();
        debug_assert_eq!(mode, self.compute_mode());
        self.enter_mode(mode);
    }

    #[inline]
    fn enter_mode(&mut self, mode: u64) {
        if mode != self.mode {
            self.mode = mode;
            if !self.header.runtime.is_null() {
                tessera_tcg::softmmu::name_mode::<crate::guest::X86>(self, mode);
            }
        }
    }

    /// What [`X86Env::update_mode`] does, after a change to the x87 unit's control word or exception flags alone. Looks at no
    /// global, so any helper may call it.
    pub fn update_fpu_mode(&mut self) {
        let mode = self.mode & !mode::FPU_MP | if self.fpu_mode() { mode::FPU_MP } else { 0 };
        self.enter_mode(mode);
    }

    /// The bit that [`mode::FPU_MP`] and [`mode::X87_UNMASKED`] share.
    fn fpu_mode(&self) -> bool {
        const ALL: u16 = status::EXCEPTIONS;
        if self.cr0.contains(Cr0::TS) {
            self.cr0.contains(Cr0::MP)
        } else {
            self.fpu.control & ALL != ALL || self.fpu.status & status::ES != 0
        }
    }

    fn compute_mode(&self) -> u64 {
        let mut m = 0;
        let mut set = |bit: u64, on: bool| m |= if on { bit } else { 0 };
        let eflags = RFlags::from_bits_retain(self.eflags);
        let code64 = self.code64();
        let protected = self.cr0.contains(Cr0::PE);
        let v86 = protected && eflags.contains(RFlags::VM);
        set(mode::LONG, self.efer.contains(Efer::LMA));
        set(mode::PROTECTED, protected);
        set(mode::V86, v86);
        if code64 {
            set(mode::CODE64, true);
        } else {
            let cs = &self.seg[seg::CS];
            set(mode::CODE32, cs.access & Segment::DB != 0);
            set(mode::STACK32, self.seg[seg::SS].access & Segment::DB != 0);
            set(mode::CODE_LIMIT, cs.limit != u32::MAX);
            set(mode::DEBUG, !matches!(cs.limit, 0xffff | u32::MAX));
            set(u64::MAX << mode::CODE_BASE_SHIFT & cs.base << mode::CODE_BASE_SHIFT, true);
            let checked = |n: usize| !is_unchecked(&self.seg[n]);
            let flat = |n: usize| !checked(n) && self.seg[n].base == 0;
            set(mode::SEGMENTED, !(flat(seg::ES) && flat(seg::SS) && flat(seg::DS)));
            set(mode::FS_CHECKED, checked(seg::FS));
            set(mode::GS_CHECKED, checked(seg::GS));
        }
        set(mode::SMM, self.smm);
        set(mode::FPU_EM, self.cr0.contains(Cr0::EM));
        set(mode::FPU_TS, self.cr0.contains(Cr0::TS));
        set(mode::FPU_MP, self.fpu_mode());
        set(mode::OSFXSR, self.cr4.contains(Cr4::OSFXSR));
        set(mode::AVX, self.cr4.contains(Cr4::OSXSAVE) && self.xcr0 & 6 == 6);
        set(mode::SSE_UNMASKED, self.mxcsr & 0x1f80 != 0x1f80);
        set(mode::DEBUG, debug::checks_instructions(self));
        set(mode::UMIP, self.cr4.contains(Cr4::UMIP));
        set(mode::TSD, self.cr4.contains(Cr4::TSD));
        set(mode::FSGSBASE, code64 && self.cr4.contains(Cr4::FSGSBASE));
        set(mode::PCE, self.cr4.contains(Cr4::PCE));
        set(mode::VME, self.cr4.contains(Cr4::VME));
        set(mode::PVI, self.cr4.contains(Cr4::PVI));
        m | self.privilege()
    }

    /// The bits of [`PRIVILEGE`].
    #[inline]
    fn privilege(&self) -> u64 {
        let flag = |flag: RFlags| self.eflags & flag.bits() != 0;
        let bit = |bit: u64, on: bool| if on { bit } else { 0 };
        let ac = flag(RFlags::AC);
        let mmu = match self.cpl {
            3 => mmu_mode::USER,
            _ if self.cr4.contains(Cr4::SMAP) && !ac => mmu_mode::KERNEL_SMAP,
            _ => mmu_mode::KERNEL,
        };
        bit(mode::TRAP, flag(RFlags::TF))
            | bit(mode::SHADOW, self.interrupt_shadow)
            | bit(mode::ALIGN, ac && self.cpl == 3 && self.cr0.contains(Cr0::AM))
            | (mmu as u64) << mode::MMU_SHIFT
            | (self.cpl as u64 & 3) << mode::CPL_SHIFT
            | (self.eflags >> 12 & 3) << mode::IOPL_SHIFT
    }
}
