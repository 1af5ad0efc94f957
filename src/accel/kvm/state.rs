//! [`CpuState`] to KVM's structures and back.
//!
//! KVM has no one structure for a processor: this module knows which of its ioctls holds what, in which order they must
//! be called, and what they lack. What the host's KVM does not keep (an MSR it does not know) the conversion keeps itself
//! in [`Conversion::kept`], so that a state that was set is read back whole.

use std::sync::Arc;

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, Msrs as KvmMsrs, kvm_debugregs, kvm_dtable,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Error, VcpuFd};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::mem::AddressSpace;
use tessera_x86::cpu_state::{
    AVX, ApicRegisters, COMPONENTS, CpuState, InFlight, PKRU, PendingEvents, XSAVE_IMAGE, XsaveImage,
};
use tessera_x86::cpuid::xstate::component;
use tessera_x86::state::{Cr0, Efer, Msrs, RFlags, Segment, TableRegister, reg, seg};

use super::raw;

/// KVM's name for "after STI" in `kvm_vcpu_events.interrupt.shadow`.
const SHADOW_STI: u8 = 2;
/// IA32_TIME_STAMP_COUNTER.
const MSR_TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The fixed-range MTRRs in address order.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Offset of XSTATE_BV.
const XSTATE_BV: usize = 512;

/// Every plain MSR with its place in [`Msrs`].
fn fields(m: &mut Msrs) -> Vec<(u32, &mut u64)> {
    let mut list = vec![
        (0xc000_0081, &mut m.star),
        (0xc000_0082, &mut m.lstar),
        (0xc000_0083, &mut m.cstar),
        (0xc000_0084, &mut m.fmask),
        (0xc000_0102, &mut m.kernel_gs_base),
        (0xc000_0103, &mut m.tsc_aux),
        (0x174, &mut m.sysenter_cs),
        (0x175, &mut m.sysenter_esp),
        (0x176, &mut m.sysenter_eip),
        (0x3b, &mut m.tsc_adjust),
        (0x277, &mut m.pat),
        (0x2ff, &mut m.mtrr_def_type),
        (0x1a0, &mut m.misc_enable),
        (0x48, &mut m.spec_ctrl),
        (0xda0, &mut m.xss),
        (0x17a, &mut m.mcg_status),
        (0x17b, &mut m.mcg_ctl),
        (0x3a, &mut m.feature_control),
        (0x8b, &mut m.bios_sign_id),
        (0x4b56_4d00, &mut m.kvm_wall_clock),
        (0x4b56_4d01, &mut m.kvm_system_time),
    ];
    for (n, (base, mask)) in m.mtrr_var.iter_mut().enumerate() {
        let index = 0x200 + 2 * n as u32;
        list.extend([(index, base), (index + 1, mask)]);
    }
    list.extend(MTRR_FIXED.into_iter().zip(&mut m.mtrr_fixed));
    for (n, bank) in m.mc_banks.iter_mut().enumerate() {
        list.extend(bank.iter_mut().enumerate().map(|(i, field)| (0x400 + 4 * n as u32 + i as u32, field)));
    }
    list
}

/// Where the components of KVM's XSAVE area are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveLayout {
    /// Components that KVM takes (CPUID.(0DH,0):EAX).
    pub components: u64,
    /// Offset of PKRU.
    pub pkru: usize,
}

/// How a vCPU's state is got and set.
pub struct Conversion {
    space: Arc<AddressSpace>,
    clock: Arc<Clock>,
    layout: XsaveLayout,
    /// MSRs that KVM has.
    known: Vec<u32>,
    /// MSRs as they were set last, for those that it has not.
    kept: Msrs,
    /// What the clock was ahead of the host's TSC when the guest's was set.
    base: u64,
}

fn failed(what: &'static str) -> impl Fn(Error) -> String {
    move |error| format!("KVM does not {what} ({error})")
}

fn get_msr(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut list = KvmMsrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).ok()?;
    let got = vcpu.get_msrs(&mut list).ok()?;
    (got == 1).then(|| list.as_slice()[0].data)
}

/// Sets MSRs one by one where a list fails; those that KVM refuses are returned.
pub fn set_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Vec<u32> {
    let mut refused = Vec::new();
    let mut rest = values;
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let done =
            KvmMsrs::from_entries(&entries).ok().and_then(|list| vcpu.set_msrs(&list).ok()).unwrap_or(0);
        if done < rest.len() {
            refused.push(rest[done].0);
        }
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    refused
}

fn to_segment(s: &Segment, cpl: u8, stack: bool) -> kvm_segment {
    let present = s.access & Segment::PRESENT != 0;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & 0xf) as u8,
        present: present.into(),
        // The privilege level is that of the stack segment, even of one that cannot be used.
        dpl: if stack && !present { cpl } else { s.dpl() },
        db: (s.access >> 14 & 1) as u8,
        s: (s.access >> 4 & 1) as u8,
        l: (s.access >> 13 & 1) as u8,
        g: (s.access >> 15 & 1) as u8,
        avl: (s.access >> 12 & 1) as u8,
        unusable: (!present).into(),
        padding: 0,
    }
}

fn from_segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u16| u16::from(value & 1) << at;
    let access = if s.unusable != 0 || s.present == 0 {
        0
    } else {
        u16::from(s.type_ & 0xf)
            | bit(s.s, 4)
            | u16::from(s.dpl & 3) << 5
            | Segment::PRESENT
            | bit(s.avl, 12)
            | bit(s.l, 13)
            | bit(s.db, 14)
            | bit(s.g, 15)
    };
    Segment { base: s.base, limit: s.limit, access, selector: s.selector }
}

fn to_regs(state: &CpuState) -> kvm_regs {
    let g = &state.gpr;
    kvm_regs {
        rax: g[reg::RAX],
        rbx: g[reg::RBX],
        rcx: g[reg::RCX],
        rdx: g[reg::RDX],
        rsi: g[reg::RSI],
        rdi: g[reg::RDI],
        rsp: g[reg::RSP],
        rbp: g[reg::RBP],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn from_regs(r: &kvm_regs) -> [u64; 16] {
    let mut g = [0; 16];
    g[reg::RAX] = r.rax;
    g[reg::RBX] = r.rbx;
    g[reg::RCX] = r.rcx;
    g[reg::RDX] = r.rdx;
    g[reg::RSI] = r.rsi;
    g[reg::RDI] = r.rdi;
    g[reg::RSP] = r.rsp;
    g[reg::RBP] = r.rbp;
    g[8..].copy_from_slice(&[r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]);
    g
}

fn to_sregs(state: &CpuState) -> kvm_sregs {
    let s = |n: usize| to_segment(&state.segments[n], state.cpl, n == seg::SS);
    let table = |t: &TableRegister| kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] };
    kvm_sregs {
        cs: s(seg::CS),
        ds: s(seg::DS),
        es: s(seg::ES),
        fs: s(seg::FS),
        gs: s(seg::GS),
        ss: s(seg::SS),
        tr: s(seg::TR),
        ldt: s(seg::LDTR),
        gdt: table(&state.gdtr),
        idt: table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8.into(),
        efer: state.efer,
        apic_base: state.apic_base,
        // Events in flight go with `kvm_vcpu_events`.
        interrupt_bitmap: [0; 4],
    }
}

fn to_xsave(image: &XsaveImage, layout: XsaveLayout) -> kvm_xsave {
    let mut bytes = [0u8; 4096];
    bytes[..XSTATE_BV].copy_from_slice(&image.0[..XSTATE_BV]);
    let components = COMPONENTS & layout.components;
    bytes[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&components.to_le_bytes());
    if components >> component::AVX & 1 != 0 {
        bytes[AVX..AVX + 256].copy_from_slice(&image.0[AVX..AVX + 256]);
    }
    if components >> component::PKRU & 1 != 0 {
        bytes[layout.pkru..layout.pkru + 4].copy_from_slice(&image.0[PKRU..PKRU + 4]);
    }
    let mut area = kvm_xsave::default();
    for (word, bytes) in area.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    area
}

fn from_xsave(area: &kvm_xsave, layout: XsaveLayout) -> XsaveImage {
    let bytes: Vec<u8> = area.region.iter().flat_map(|word| word.to_le_bytes()).collect();
    let valid = u64::from_le_bytes(std::array::from_fn(|i| bytes[XSTATE_BV + i])) & layout.components;
    let has = |component: u32| valid >> component & 1 != 0;
    let mut image = XsaveImage::default();
    let mut take =
        |to: usize, from: usize, len: usize| image.0[to..to + len].copy_from_slice(&bytes[from..from + len]);
    // MXCSR is there whether or not the registers are in their initial configuration.
    take(24, 24, 4);
    if has(component::X87) {
        take(0, 0, 24);
        take(32, 32, 128);
    }
    if has(component::SSE) {
        take(160, 160, 256);
    }
    if has(component::AVX) {
        take(AVX, AVX, 256);
    }
    if has(component::PKRU) {
        take(PKRU, layout.pkru, 4);
    }
    image.normalise();
    debug_assert_eq!(image.0.len(), XSAVE_IMAGE);
    image
}

fn to_events(events: &PendingEvents) -> kvm_vcpu_events {
    let mut e = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    e.interrupt.shadow = if events.interrupt_shadow { SHADOW_STI } else { 0 };
    e.nmi.masked = events.nmi_blocked.into();
    match events.in_flight {
        Some(InFlight::Interrupt(vector)) => (e.interrupt.injected, e.interrupt.nr) = (1, vector),
        // One that is blocked waits.
        Some(InFlight::Nmi) if events.nmi_blocked => e.nmi.pending = 1,
        Some(InFlight::Nmi) => e.nmi.injected = 1,
        Some(InFlight::Exception { vector, error }) => {
            (e.exception.injected, e.exception.nr) = (1, vector);
            e.exception.has_error_code = error.is_some().into();
            e.exception.error_code = error.unwrap_or(0);
        }
        // A trap that is due.
        None if events.pending_debug != 0 => (e.exception.injected, e.exception.nr) = (1, 1),
        None => {}
    }
    e
}

fn from_events(e: &kvm_vcpu_events) -> PendingEvents {
    let in_flight = if e.exception.injected != 0 || e.exception.pending != 0 {
        let error = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
        Some(InFlight::Exception { vector: e.exception.nr, error })
    } else if e.nmi.injected != 0 || e.nmi.pending != 0 {
        Some(InFlight::Nmi)
    } else if e.interrupt.injected != 0 && e.interrupt.soft == 0 {
        // An INT n that is not complete runs again.
        Some(InFlight::Interrupt(e.interrupt.nr))
    } else {
        None
    };
    PendingEvents {
        interrupt_shadow: e.interrupt.shadow != 0,
        nmi_blocked: e.nmi.masked != 0,
        in_flight,
        ..PendingEvents::default()
    }
}

impl Conversion {
    /// For a vCPU whose CPUID is set. `kept` is what MSRs that KVM does not have read as.
    pub fn new(
        vcpu: &VcpuFd,
        space: Arc<AddressSpace>,
        clock: Arc<Clock>,
        layout: XsaveLayout,
        mut kept: Msrs,
    ) -> Conversion {
        let known = fields(&mut kept).into_iter().map(|(index, _)| index);
        let known = known.filter(|&index| get_msr(vcpu, index).is_some()).collect();
        Conversion { space, clock, layout, known, kept, base: 0 }
    }

    /// Where the components of KVM's XSAVE area are.
    #[cfg(test)]
    pub fn layout(&self) -> XsaveLayout {
        self.layout
    }

    /// What the machine's TSC is ahead of the host's (wrapping).
    fn clock_base(&self) -> u64 {
        self.clock.host_tsc_offset().unwrap_or(self.base)
    }

    /// The guest's TSC minus the machine's (wrapping).
    pub fn guest_tsc_offset(&self, vcpu: &VcpuFd) -> u64 {
        match raw::tsc_offset(vcpu) {
            Some(offset) if self.clock.host_tsc_offset().is_some() => offset.wrapping_sub(self.clock_base()),
            _ => get_msr(vcpu, MSR_TSC).unwrap_or(0).wrapping_sub(self.clock.tsc()),
        }
    }

    fn set_guest_tsc_offset(&mut self, vcpu: &VcpuFd, offset: u64) {
        self.base = self.clock_base();
        let exact = self.clock.host_tsc_offset().is_some()
            && raw::set_tsc_offset(vcpu, self.base.wrapping_add(offset));
        if !exact {
            set_msrs(vcpu, &[(MSR_TSC, self.clock.tsc().wrapping_add(offset))]);
        }
    }

    /// IA32_TSC_DEADLINE of KVM's local APIC, in the machine's time.
    pub fn deadline(&self, vcpu: &VcpuFd) -> u64 {
        match get_msr(vcpu, MSR_TSC_DEADLINE) {
            None | Some(0) => 0,
            Some(value) => value.wrapping_sub(self.guest_tsc_offset(vcpu)).max(1),
        }
    }

    /// Sets IA32_TSC_DEADLINE of KVM's local APIC, in the machine's time.
    pub fn set_deadline(&self, vcpu: &VcpuFd, deadline: u64) {
        let value = match deadline {
            0 => 0,
            _ => deadline.wrapping_add(self.guest_tsc_offset(vcpu)).max(1),
        };
        for index in set_msrs(vcpu, &[(MSR_TSC_DEADLINE, value)]) {
            tracing::debug!(target: "unimp", "KVM refuses MSR {index:#x}");
        }
    }

    /// Follows the machine's clock, if that was stopped and goes on since the last call.
    pub fn follow_clock(&mut self, vcpu: &VcpuFd) {
        if let Some(base) = self.clock.host_tsc_offset()
            && base != self.base
            && let Some(offset) = raw::tsc_offset(vcpu)
        {
            raw::set_tsc_offset(vcpu, offset.wrapping_sub(self.base).wrapping_add(base));
            self.base = base;
        }
    }

    /// The vCPU's state, without the local APIC's registers. `halted` and what follows from it are the caller's. The
    /// last KVM_RUN must be complete.
    pub fn get(&self, vcpu: &VcpuFd) -> Result<CpuState, String> {
        // First the events: they move an exception's address to CR2 and its reasons to DR6.
        let events = vcpu.get_vcpu_events().map_err(failed("tell its events"))?;
        let regs = vcpu.get_regs().map_err(failed("tell its registers"))?;
        let sregs = vcpu.get_sregs().map_err(failed("tell its system registers"))?;
        let debug = vcpu.get_debug_regs().map_err(failed("tell its debug registers"))?;
        let xcrs = vcpu.get_xcrs().map_err(failed("tell XCR0"))?;
        let area = vcpu.get_xsave().map_err(failed("tell its XSAVE state"))?;
        let mut msrs = self.kept.clone();
        for (index, value) in fields(&mut msrs) {
            if self.known.contains(&index) {
                *value = get_msr(vcpu, index).ok_or_else(|| format!("KVM does not tell MSR {index:#x}"))?;
            }
        }
        msrs.tsc_offset = self.guest_tsc_offset(vcpu).wrapping_sub(msrs.tsc_adjust);
        let mut segments = [Segment::default(); 8];
        for (n, s) in [
            (seg::ES, &sregs.es),
            (seg::CS, &sregs.cs),
            (seg::SS, &sregs.ss),
            (seg::DS, &sregs.ds),
            (seg::FS, &sregs.fs),
            (seg::GS, &sregs.gs),
            (seg::LDTR, &sregs.ldt),
            (seg::TR, &sregs.tr),
        ] {
            segments[n] = from_segment(s);
        }
        let cpl = if sregs.cr0 & Cr0::PE.bits() == 0 {
            0
        } else if regs.rflags & RFlags::VM.bits() != 0 {
            3
        } else {
            sregs.ss.dpl & 3
        };
        let mut state = CpuState {
            gpr: from_regs(&regs),
            rip: regs.rip,
            rflags: regs.rflags,
            segments,
            cpl,
            gdtr: TableRegister { base: sregs.gdt.base, limit: sregs.gdt.limit },
            idtr: TableRegister { base: sregs.idt.base, limit: sregs.idt.limit },
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8 as u8 & 0xf,
            xcr0: xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())]
                .iter()
                .find(|x| x.xcr == 0)
                .map_or(1, |x| x.value),
            efer: sregs.efer,
            pdpte: [0; 4],
            dr: debug.db,
            dr6: debug.dr6,
            dr7: debug.dr7,
            msrs,
            xsave: from_xsave(&area, self.layout),
            apic_base: sregs.apic_base,
            tsc_deadline: 0,
            apic: ApicRegisters::default(),
            events: from_events(&events),
        };
        if state.pae_without_long_mode() {
            // KVM tells them with its newest interface only. They are read from memory when CR3 is loaded; guests do not
            // change them behind the processor's back.
            let table = state.cr3 & 0xffff_ffe0;
            state.pdpte = std::array::from_fn(|n| self.space.read(table + 8 * n as u64, 8));
        }
        state.normalise();
        Ok(state)
    }

    /// Sets the vCPU's state; `halted` and what follows from it are the caller's. This machine has no system-management mode
    /// under KVM.
    pub fn set(&mut self, vcpu: &VcpuFd, state: &CpuState) -> Result<(), String> {
        if state.events.smm {
            return Err(
                "KVM does not take a processor that is in system-management mode; use -accel tcg".into()
            );
        }
        let mut state = state.clone();
        state.dr6 |= state.events.pending_debug;
        let sregs = to_sregs(&state);
        // Whatever mode the vCPU was in, its control registers change at once here; MSRs, XCR0 and the rest may depend
        // on them.
        vcpu.set_sregs(&sregs).map_err(failed("take the system registers"))?;
        vcpu.set_regs(&to_regs(&state)).map_err(failed("take the registers"))?;
        if state.xcr0 & !1 != 0 || vcpu.get_xcrs().is_ok_and(|x| x.xcrs[0].value != state.xcr0) {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0].value = state.xcr0;
            vcpu.set_xcrs(&xcrs).map_err(failed("take XCR0"))?;
        }
        raw::set_xsave(vcpu, &to_xsave(&state.xsave, self.layout)).map_err(failed("take the XSAVE state"))?;
        let debug = kvm_debugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..Default::default() };
        vcpu.set_debug_regs(&debug).map_err(failed("take the debug registers"))?;
        self.kept = state.msrs.clone();
        // The segment bases that are MSRs, too, came with the segments.
        let values: Vec<(u32, u64)> = fields(&mut self.kept)
            .into_iter()
            .filter(|(index, _)| self.known.contains(index))
            .map(|(index, value)| (index, *value))
            .collect();
        for index in set_msrs(vcpu, &values) {
            tracing::debug!(target: "unimp", "KVM refuses the value of MSR {index:#x}");
        }
        let offset = state.msrs.tsc_offset.wrapping_add(state.msrs.tsc_adjust);
        self.set_guest_tsc_offset(vcpu, offset);
        // Last, since KVM drops events when other state is set.
        vcpu.set_vcpu_events(&to_events(&state.events)).map_err(failed("take the events"))
    }
}

/// Whether the vCPU executes 64-bit code.
pub fn is_64_bit(state: &CpuState) -> bool {
    state.efer & Efer::LMA.bits() != 0 && state.segments[seg::CS].access & Segment::LONG != 0
}
