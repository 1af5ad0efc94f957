//! Power-up, reset and INIT (SDM volume 3, table 9-1; 10-1 in newer prints).

use tessera_tcg::env::Header;

use crate::cpuid::{CpuidTable, Dynamic};
use crate::mmu;
use crate::platform::Platform;
use crate::state::{Cr0, Cr4, Efer, Fpu, Msrs, Segment, TableRegister, VecReg, X86Env, reg, seg};

use super::{debug, smm};

/// PAT after reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MISC_ENABLE: fast strings; no branch trace, no precise event sampling.
const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// Microcode revision, in the upper half of IA32_BIOS_SIGN_ID.
const MICROCODE: u64 = 1 << 32;

impl X86Env {
    /// A CPU after power-up, not bound to a vCPU yet.
    pub fn new(platform: Box<dyn Platform>, cpuid: CpuidTable) -> Box<X86Env> {
        let mut env = Box::new(X86Env {
            header: Header::new(),
            gpr: [0; 16],
            rip: 0,
            flags: 0,
            pad: 0,
            df: 1,
            seg_base: [0; 6],
            eflags: 0,
            vec: [VecReg::default(); 16],
            mxcsr: 0,
            fpu: Fpu::INITIAL,
            seg: [Segment::default(); 8],
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: Cr0::empty(),
            cr2: 0,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            pdpte: [0; 4],
            dr: [0; 8],
            xcr0: 0,
            pkru: 0,
            msr: Msrs::default(),
            mode: 0,
            cpl: 0,
            interrupt_shadow: false,
            debug_shadow: false,
            repeating: false,
            halted: false,
            nmi_blocked: false,
            smm: false,
            smm_nmi_blocked: false,
            shutdown: false,
            wait_for_sipi: false,
            pending_debug: 0,
            watched: [0; 5],
            resumed_at: u64::MAX,
            changed_entries: Default::default(),
            x87_operand: Default::default(),
            kvm_clock_version: 0,
            x87_resident: 0,
            x87_number: [0; 2],
            in_flight: None,
            a20_mask: u64::MAX,
            cpuid,
            platform,
        });
        env.reset();
        env
    }

    /// Power-up and reset: everything but what the platform holds. Execution begins at FFFF_FFF0h in real mode.
    pub fn reset(&mut self) {
        self.cr0 = Cr0::CD | Cr0::NW;
        self.vec = [VecReg::default(); 16];
        self.mxcsr = 0x1f80;
        self.fpu = Fpu {
            regs: [[0; 16]; 8],
            control: 0x40,
            status: 0,
            valid: 0xff,
            opcode: 0,
            ip: 0,
            cs: 0,
            dp: 0,
            ds: 0,
        };
        self.xcr0 = 1;
        self.pkru = 0;
        self.msr = Msrs {
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE_RESET,
            bios_sign_id: MICROCODE,
            mcg_ctl: u64::MAX,
            smbase: smm::SMBASE_RESET,
            ..Msrs::default()
        };
        self.init();
    }

    /// INIT: as reset, but caches, x87, vector registers and most MSRs keep their state.
    pub fn init(&mut self) {
        self.gpr = [0; 16];
        self.gpr[reg::RDX] = self.cpuid.query(1, 0, &Dynamic::default())[0] as u64;
        self.set_rflags(0);
        self.cr0 = self.cr0 & (Cr0::CD | Cr0::NW) | Cr0::ET;
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = Cr4::empty();
        self.efer = Efer::empty();
        self.pdpte = [0; 4];
        let data = Segment { base: 0, limit: 0xffff, access: 0x93, selector: 0 };
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            self.set_segment(n, data);
        }
        self.set_segment(
            seg::CS,
            Segment { base: 0xffff_0000, limit: 0xffff, access: 0x9b, selector: 0xf000 },
        );
        self.seg[seg::LDTR] = Segment { access: 0x82, ..data };
        self.seg[seg::TR] = Segment { access: 0x8b, ..data };
        self.gdtr = TableRegister { base: 0, limit: 0xffff };
        self.idtr = TableRegister { base: 0, limit: 0xffff };
        self.dr = [0; 8];
        self.dr[6] = debug::DR6_ONES;
        self.dr[7] = debug::DR7_RESET;
        self.cpl = 0;
        self.interrupt_shadow = false;
        self.debug_shadow = false;
        self.repeating = false;
        self.halted = false;
        self.nmi_blocked = false;
        if std::mem::take(&mut self.smm) {
            self.platform.smm_changed(false);
        }
        self.smm_nmi_blocked = false;
        self.shutdown = false;
        self.wait_for_sipi = false;
        self.pending_debug = 0;
        self.resumed_at = u64::MAX;
        self.in_flight = None;
        self.a20_mask = self.platform.a20_mask();
        self.set_ip(0xfff0);
        if !self.header.runtime.is_null() {
            mmu::flush_and_switch(self);
        }
        self.update_mode();
    }
}
