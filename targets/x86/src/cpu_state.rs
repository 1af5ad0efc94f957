//! The processor's whole architectural state as one value, independent of what executes it.
//!
//! Problem: several engines execute the same processor, and what one has done another must be able to continue: a guest
//! compared between them, a snapshot, a debugger's view. Strategy: [`CpuState`] holds everything that the architecture
//! defines, in one canonical form, so that `==` means "the guest cannot tell them apart". [`X86Env::cpu_state`] and
//! [`X86Env::set_cpu_state`] convert the translator's environment; other engines have conversions of their own.
//!
//! Canonical form ([`CpuState::normalise`]; whoever makes a state calls it):
//! - A data segment register that cannot be used has no rights and no limit; its base and selector stay.
//! - IP and bases outside of long mode have 32 bits.
//! - CR8 is the upper half of the APIC's TPR.
//! - The XSAVE image is in the standard format with all components, at the offsets of [`xstate`]; what the
//!   instruction leaves undefined is zero.
//!
//! Not part of it: the code and data segment selectors of the last x87 instruction, which recent processors do not keep
//! (CPUID.(7,0):EBX bit 13).
//!
//! The local APIC is a device: [`X86Env`] has of it what the processor itself shows (IA32_APIC_BASE, CR8,
//! IA32_TSC_DEADLINE). Its registers ([`ApicRegisters`]) are for who joins a processor with its controller to get and set.
//!
//! Source: SDM volume 3, chapters 2 and 9; volume 1, section 13.4 (XSAVE area).

use std::fmt;

use tessera_tcg::guest::Exception;

use crate::cpuid::xstate::{self, component};
use crate::helpers::sse::MXCSR_EXISTING;
use crate::state::{Cr0, Cr4, Efer, Msrs, RFlags, Segment, TableRegister, VecReg, X86Env, seg};
use crate::system::{interrupt, kvm_clock, msr, xsave};

/// Bytes of [`XsaveImage`]: legacy region, header, AVX, PKRU.
pub const XSAVE_IMAGE: usize = 576 + 256 + 8;
/// Offset of XSTATE_BV.
const XSTATE_BV: usize = 512;
/// Offset of the XMM registers.
const XMM: usize = 160;
/// Offset of MXCSR, which its mask follows.
const MXCSR: usize = 24;
/// Offset of the upper halves of the YMM registers.
pub const AVX: usize = xstate::EXTENDED as usize;
/// Offset of PKRU.
pub const PKRU: usize = AVX + 256;
/// The components of an image.
pub const COMPONENTS: u64 =
    1 << component::X87 | 1 << component::SSE | 1 << component::AVX | 1 << component::PKRU;

/// x87, SSE, AVX and PKRU state: an XSAVE area in the standard format, 64-bit form.
#[derive(Clone, PartialEq, Eq)]
pub struct XsaveImage(pub Box<[u8; XSAVE_IMAGE]>);

impl Default for XsaveImage {
    /// All components in their initial configuration.
    fn default() -> Self {
        let mut image = XsaveImage(Box::new([0; XSAVE_IMAGE]));
        image.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        image.set_u32(MXCSR, 0x1f80);
        image.normalise();
        image
    }
}

impl XsaveImage {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.0[at + i]))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.0[at + i]))
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn set_u64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        self.u32(MXCSR)
    }

    /// The low (0) or high (1) 128 bits of YMM register `n`.
    pub fn ymm_half(&self, n: usize, half: usize) -> u128 {
        let at = 16 * n + if half == 0 { XMM } else { AVX };
        u128::from_le_bytes(std::array::from_fn(|i| self.0[at + i]))
    }

    /// Zeroes what software may use or the instruction does not define.
    pub fn normalise(&mut self) {
        self.0[5] = 0;
        self.set_u32(MXCSR + 4, MXCSR_EXISTING);
        for n in 0..8 {
            self.0[32 + 16 * n + 10..32 + 16 * n + 16].fill(0);
        }
        self.0[416..XSTATE_BV].fill(0);
        self.0[XSTATE_BV..AVX].fill(0);
        self.set_u64(XSTATE_BV, COMPONENTS);
        self.0[PKRU + 4..].fill(0);
    }
}

impl fmt::Debug for XsaveImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("XsaveImage");
        let word = |at: usize| u16::from_le_bytes([self.0[at], self.0[at + 1]]);
        s.field("fcw", &word(0)).field("fsw", &word(2)).field("ftw", &self.0[4]).field("fop", &word(6));
        s.field("fip", &self.u64(8)).field("fdp", &self.u64(16)).field("mxcsr", &self.mxcsr());
        for n in 0..8 {
            s.field(
                &format!("st{n}"),
                &format_args!("{:04x}:{:016x}", word(40 + 16 * n), self.u64(32 + 16 * n)),
            );
        }
        for n in 0..16 {
            let (high, low) = (self.ymm_half(n, 1), self.ymm_half(n, 0));
            s.field(&format!("ymm{n}"), &format_args!("{high:032x}:{low:032x}"));
        }
        s.field("pkru", &self.u32(PKRU)).finish()
    }
}

/// An event that the processor has accepted and not delivered yet: neither the guest nor an interrupt controller holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InFlight {
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception. For #PF, CR2 holds the address already; for #DB, DR6 the reasons.
    Exception {
        /// The vector.
        vector: u8,
        /// Its error code.
        error: Option<u32>,
    },
}

/// What holds interrupts off, what waits, and whether the processor executes at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PendingEvents {
    /// Interrupts are held off for one instruction (STI, MOV SS).
    pub interrupt_shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// HLT was executed.
    pub halted: bool,
    /// A triple fault.
    pub shutdown: bool,
    /// Waits for a start-up IPI.
    pub wait_for_sipi: bool,
    /// In system-management mode.
    pub smm: bool,
    /// In system-management mode: NMIs were blocked when it was entered.
    pub smm_nmi_blocked: bool,
    /// Reasons (bits of DR6) of a #DB that is due before the next instruction.
    pub pending_debug: u64,
    /// Accepted, not delivered.
    pub in_flight: Option<InFlight>,
}

/// The local APIC's registers in the form of its register page in xAPIC mode, whatever the mode: register n is at offset 16 * n
/// (SDM volume 3, table 11-1). Registers that are no state (version, PPR, EOI) are 0.
#[derive(Clone, PartialEq, Eq)]
pub struct ApicRegisters(pub [u32; 64]);

impl ApicRegisters {
    /// Number of the task priority register.
    const TPR: usize = 8;
    /// Numbers of those that are no state, or not every controller has: version, APR, PPR, EOI, RRD, LVT CMCI, self IPI.
    const NO_STATE: [usize; 7] = [0x03, 0x09, 0x0a, 0x0b, 0x0c, 0x2f, 0x3f];
}

impl Default for ApicRegisters {
    fn default() -> Self {
        ApicRegisters([0; 64])
    }
}

impl fmt::Debug for ApicRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().enumerate().map(|(n, value)| (16 * n, value))).finish()
    }
}

/// Everything that the architecture says a processor has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer, relative to CS.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR with their hidden parts.
    pub segments: [Segment; 8],
    /// Current privilege level.
    pub cpl: u8,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: the task priority class.
    pub cr8: u8,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// Page-directory-pointer entries under PAE paging outside of long mode; else zero.
    pub pdpte: [u64; 4],
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Model-specific registers. The guest's TSC is the machine's plus `tsc_offset` plus `tsc_adjust`.
    pub msrs: Msrs,
    /// x87, SSE, AVX, PKRU.
    pub xsave: XsaveImage,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// IA32_TSC_DEADLINE in ticks of the machine's TSC; 0 if disarmed.
    pub tsc_deadline: u64,
    /// The local APIC's registers; zero in the state of a processor alone.
    pub apic: ApicRegisters,
    /// Events.
    pub events: PendingEvents,
}

impl CpuState {
    /// Brings the state into its canonical form, see the module's text.
    pub fn normalise(&mut self) {
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            let s = &mut self.segments[n];
            if s.access & Segment::PRESENT == 0 {
                (s.access, s.limit) = (0, 0);
            }
        }
        for s in &mut self.segments[seg::LDTR..] {
            if s.access & Segment::PRESENT == 0 {
                (s.access, s.limit, s.base) = (0, 0, 0);
            }
        }
        if self.efer & Efer::LMA.bits() == 0 {
            self.rip &= 0xffff_ffff;
            self.segments.iter_mut().for_each(|s| s.base &= 0xffff_ffff);
        }
        self.rflags |= RFlags::ONE.bits();
        if !self.pae_without_long_mode() {
            self.pdpte = [0; 4];
        }
        self.xsave.normalise();
        let apic = &mut self.apic.0;
        ApicRegisters::NO_STATE.iter().for_each(|n| apic[*n] = 0);
        // CR8 is the upper half of TPR.
        if apic[ApicRegisters::TPR] >> 4 != self.cr8.into() {
            apic[ApicRegisters::TPR] = u32::from(self.cr8) << 4;
        }
    }

    /// Whether page-directory-pointer entries are in use.
    pub fn pae_without_long_mode(&self) -> bool {
        self.cr0 & Cr0::PG.bits() != 0 && self.cr4 & Cr4::PAE.bits() != 0 && self.efer & Efer::LMA.bits() == 0
    }

    /// What differs from `other`, one line a field; empty when they are equal.
    pub fn differences(&self, other: &CpuState) -> String {
        let lines = |s: &CpuState| format!("{s:#x?}").lines().map(str::to_owned).collect::<Vec<_>>();
        let (own, others) = (lines(self), lines(other));
        let mut text = String::new();
        let mut path: Vec<String> = Vec::new();
        for (a, b) in own.iter().zip(&others) {
            let depth = (a.len() - a.trim_start().len()) / 4;
            path.truncate(depth);
            if a != b {
                text.push_str(&format!("{} {} | {}\n", path.join("."), a.trim(), b.trim()));
            }
            path.push(a.trim().trim_end_matches(['{', '[', '(', ' ', ':']).to_owned());
        }
        text
    }
}

impl X86Env {
    /// The whole state. To be called between blocks.
    pub fn cpu_state(&mut self) -> CpuState {
        let mut image = XsaveImage(Box::new([0; XSAVE_IMAGE]));
        xsave::put_x87(&self.fpu, &mut image.0[..], true);
        image.set_u32(MXCSR, self.mxcsr);
        for (n, v) in self.vec.iter().enumerate() {
            for (i, word) in v.0.into_iter().enumerate() {
                image.set_u64(16 * n + 8 * (i % 2) + if i < 2 { XMM } else { AVX }, word);
            }
        }
        image.set_u32(PKRU, self.pkru);
        let mut state = CpuState {
            gpr: self.gpr,
            rip: self.ip(),
            rflags: self.rflags(),
            segments: self.seg,
            cpl: self.cpl,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0.bits(),
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4.bits(),
            cr8: self.platform.tpr(),
            xcr0: self.xcr0,
            efer: self.efer.bits(),
            pdpte: self.pdpte,
            dr: std::array::from_fn(|n| self.dr[n]),
            dr6: self.dr[6],
            dr7: self.dr[7],
            msrs: self.msr.clone(),
            xsave: image,
            apic_base: self.platform.apic_base(),
            tsc_deadline: self.platform.apic_msr_read(msr::index::TSC_DEADLINE).unwrap_or(0),
            apic: ApicRegisters::default(),
            events: PendingEvents {
                interrupt_shadow: self.interrupt_shadow,
                nmi_blocked: self.nmi_blocked,
                halted: self.halted,
                shutdown: self.shutdown,
                wait_for_sipi: self.wait_for_sipi,
                smm: self.smm,
                smm_nmi_blocked: self.smm_nmi_blocked,
                pending_debug: self.pending_debug,
                in_flight: self.in_flight,
            },
        };
        state.normalise();
        state
    }

    /// Takes over a whole state. To be called between blocks; whoever runs blocks then drops what it knows of
    /// translations of addresses.
    pub fn set_cpu_state(&mut self, state: &CpuState) {
        self.gpr = state.gpr;
        self.efer = Efer::from_bits_retain(state.efer);
        self.cr0 = Cr0::from_bits_retain(state.cr0);
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = Cr4::from_bits_retain(state.cr4);
        self.xcr0 = state.xcr0;
        self.pdpte = state.pdpte;
        for (n, &segment) in state.segments.iter().enumerate() {
            self.set_segment(n, segment);
        }
        self.cpl = state.cpl;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.set_rflags(state.rflags);
        self.set_ip(state.rip);
        self.dr[..4].copy_from_slice(&state.dr);
        self.dr[6] = state.dr6;
        self.dr[7] = state.dr7;
        self.msr = state.msrs.clone();
        self.fpu = xsave::get_x87(&state.xsave.0[..], true);
        self.mxcsr = state.xsave.mxcsr() & MXCSR_EXISTING;
        for (n, v) in self.vec.iter_mut().enumerate() {
            let (low, high) = (state.xsave.ymm_half(n, 0), state.xsave.ymm_half(n, 1));
            *v = VecReg([low as u64, (low >> 64) as u64, high as u64, (high >> 64) as u64]);
        }
        self.pkru = state.xsave.u32(PKRU);
        // A base that the interrupt controller refuses cannot have come from a processor with the same one.
        let _ = self.platform.set_apic_base(state.apic_base);
        self.platform.set_tpr(state.cr8);
        let _ = self.platform.apic_msr_write(msr::index::TSC_DEADLINE, state.tsc_deadline);
        let events = &state.events;
        self.interrupt_shadow = events.interrupt_shadow;
        self.nmi_blocked = events.nmi_blocked;
        self.halted = events.halted;
        self.shutdown = events.shutdown;
        self.wait_for_sipi = events.wait_for_sipi;
        if self.smm != events.smm {
            self.smm = events.smm;
            self.platform.smm_changed(events.smm);
        }
        self.smm_nmi_blocked = events.smm_nmi_blocked;
        self.pending_debug = events.pending_debug;
        self.in_flight = events.in_flight;
        self.a20_mask = self.platform.a20_mask();
        self.update_mode();
        kvm_clock::refresh(self);
        interrupt::request_exit(self);
    }
}

/// The exception that an event in flight is, if it is one.
pub(crate) fn exception_of(env: &X86Env, vector: u8, error: Option<u32>) -> Exception {
    let address = if vector == crate::system::exception::vector::PF as u8 { env.cr2 } else { 0 };
    Exception { vector: vector.into(), error, address }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::CpuidTable;
    use crate::system::debug;
    use crate::testing::NoPlatform;

    fn env() -> Box<X86Env> {
        X86Env::new(Box::new(NoPlatform::default()), CpuidTable::default())
    }

    /// An environment in which every register has a value of its own.
    fn distinct(mode: u32) -> Box<X86Env> {
        let mut e = env();
        let mut next = 0x1111_0000_0000_0000u64;
        let mut number = || {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x9e37_79b9_7f4a_7c15);
            next
        };
        e.gpr = std::array::from_fn(|_| number());
        if mode >= 1 {
            e.cr0 |= Cr0::PE;
        }
        if mode >= 2 {
            e.cr0 |= Cr0::PG | Cr0::WP;
            e.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXSAVE;
            e.pdpte = std::array::from_fn(|_| number());
        }
        if mode >= 3 {
            e.efer = Efer::LMA | Efer::LME | Efer::SCE | Efer::NXE;
            e.pdpte = [0; 4];
        }
        for n in 0..8 {
            let base = number() & if mode >= 3 { u64::MAX } else { 0xffff_ffff };
            let system = if n == seg::TR { 0x8b } else { 0x82 };
            let access = match n {
                seg::CS => {
                    if mode >= 3 {
                        0xa09b
                    } else {
                        0xc09b
                    }
                }
                seg::LDTR | seg::TR => system,
                _ => 0xc0f3,
            };
            e.set_segment(n, Segment { base, limit: number() as u32, access, selector: number() as u16 });
        }
        // One that cannot be used.
        e.set_segment(seg::GS, Segment { base: 0, limit: 0, access: 0, selector: 3 });
        e.cpl = if mode >= 1 { 3 } else { 0 };
        e.gdtr = TableRegister { base: number(), limit: number() as u16 };
        e.idtr = TableRegister { base: number(), limit: number() as u16 };
        (e.cr2, e.cr3) = (number(), number() & 0xffff_f000);
        e.set_rflags(number() & (RFlags::all() - RFlags::VM).bits());
        e.set_ip(number() & if mode >= 3 { u64::MAX } else { 0xffff });
        for n in [0, 1, 2, 3] {
            e.dr[n] = number();
        }
        (e.dr[6], e.dr[7]) = (debug::DR6_ONES | 5, 0x400 | 0x155);
        e.xcr0 = 7;
        e.msr.star = number();
        e.msr.mtrr_var[7] = (number(), number());
        e.msr.mtrr_fixed[10] = number();
        e.msr.tsc_adjust = number();
        e.msr.mc_banks[9][3] = number();
        e.vec = std::array::from_fn(|_| VecReg(std::array::from_fn(|_| number())));
        e.mxcsr = 0x7fa5;
        e.pkru = number() as u32;
        e.fpu.control = 0x27f;
        e.fpu.set_top(3);
        e.fpu.valid = 0b0101_0011;
        for r in &mut e.fpu.regs {
            r[..8].copy_from_slice(&number().to_le_bytes());
            r[8..10].copy_from_slice(&(number() as u16).to_le_bytes());
        }
        // Loading them makes addresses canonical.
        (e.fpu.opcode, e.fpu.ip, e.fpu.dp) = (0x355, number() >> 16, number() >> 16);
        e.halted = true;
        e.nmi_blocked = true;
        e.smm = true;
        e.smm_nmi_blocked = true;
        e.interrupt_shadow = true;
        e.pending_debug = 1 << 14;
        e.in_flight = Some(InFlight::Exception { vector: 13, error: Some(8) });
        e.update_mode();
        e
    }

    #[test]
    fn a_state_survives_the_way_there_and_back() {
        for mode in 0..=3 {
            let mut from = distinct(mode);
            let state = from.cpu_state();
            let mut to = env();
            to.set_cpu_state(&state);
            assert_eq!(to.cpu_state(), state, "mode {mode}:\n{}", to.cpu_state().differences(&state));
            // Not only what the state shows, but what it is made of.
            assert_eq!(to.mode, from.mode, "mode {mode}");
            assert_eq!((to.rip, to.flags, to.df, to.eflags), (from.rip, from.flags, from.df, from.eflags));
            assert_eq!((to.vec, to.fpu, to.seg_base), (from.vec, from.fpu, from.seg_base));
            assert_eq!((&to.msr, to.seg, to.dr), (&from.msr, from.seg, from.dr));
        }
    }

    #[test]
    fn every_register_counts() {
        let reference = distinct(3).cpu_state();
        let mut changed = 0;
        let mut check = |change: &dyn Fn(&mut X86Env)| {
            let mut e = distinct(3);
            change(&mut e);
            let state = e.cpu_state();
            assert_ne!(state, reference);
            assert!(!state.differences(&reference).is_empty());
            changed += 1;
        };
        check(&|e| e.gpr[15] ^= 1);
        check(&|e| e.vec[15].0[3] ^= 1);
        check(&|e| e.fpu.regs[7][9] ^= 1);
        check(&|e| e.fpu.valid ^= 1);
        check(&|e| e.mxcsr ^= 0x20);
        check(&|e| e.seg[seg::FS].base ^= 1);
        check(&|e| e.flags ^= 1);
        check(&|e| e.df = e.df.wrapping_neg());
        check(&|e| e.msr.kernel_gs_base ^= 1);
        check(&|e| e.pkru ^= 1);
        check(&|e| e.dr[3] ^= 1);
        check(&|e| e.nmi_blocked = false);
        assert_eq!(changed, 12);
    }

    #[test]
    fn differences_name_the_field() {
        let (mut a, b) = (env().cpu_state(), env().cpu_state());
        assert_eq!(a.differences(&b), "");
        a.msrs.lstar = 0x1234;
        let text = a.differences(&b);
        assert!(text.contains("msrs") && text.contains("lstar: 0x1234"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn an_initial_image_is_what_hardware_has() {
        let image = XsaveImage::default();
        assert_eq!(image.mxcsr(), 0x1f80);
        let mut e = env();
        e.fpu = crate::state::Fpu::INITIAL;
        assert_eq!(e.cpu_state().xsave, image);
    }
}
