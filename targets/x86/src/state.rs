//! The CPU's state: one `#[repr(C)]` struct that is both the architectural state and the environment of
//! generated code.
//!
//! Invariants:
//! - Fields named in [`GLOBALS`] are owned by generated code while it runs (they may live in host registers);
//!   everything else is always current in memory.
//! - `rip` holds the *linear* address `CS.base + IP` while blocks run ("pc" of the translator); use [`X86Env::ip`] and
//!   [`X86Env::set_ip`] for the architectural instruction pointer.
//! - `flags` holds the arithmetic flags in the translator's packed layout and `df` the direction as +1 or -1;
//!   `eflags` holds the other bits. [`X86Env::rflags`] and [`X86Env::set_rflags`] join and split them.
//! - A segment's base that is zero in 64-bit mode (ES, CS, SS, DS) is held as zero in `seg[_].base` only when
//!   loaded so; the front end ignores those bases in 64-bit mode.

use tessera_tcg::env::Header;
use tessera_tcg::ir::{GlobalDesc, GlobalId, Ty, flags};

use crate::platform::Platform;

/// Numbers of the general registers, as instructions encode them.
pub mod reg {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Numbers of the segment registers, as instructions encode them; 6 and 7 are LDTR and TR.
pub mod seg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    pub const LDTR: usize = 6;
    pub const TR: usize = 7;
}

bitflags::bitflags! {
    /// RFLAGS (SDM volume 1, section 3.4.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RFlags: u64 {
        #[allow(missing_docs)] const CF = 1 << 0;
        #[allow(missing_docs)] const ONE = 1 << 1;
        #[allow(missing_docs)] const PF = 1 << 2;
        #[allow(missing_docs)] const AF = 1 << 4;
        #[allow(missing_docs)] const ZF = 1 << 6;
        #[allow(missing_docs)] const SF = 1 << 7;
        #[allow(missing_docs)] const TF = 1 << 8;
        #[allow(missing_docs)] const IF = 1 << 9;
        #[allow(missing_docs)] const DF = 1 << 10;
        #[allow(missing_docs)] const OF = 1 << 11;
        #[allow(missing_docs)] const IOPL = 3 << 12;
        #[allow(missing_docs)] const NT = 1 << 14;
        #[allow(missing_docs)] const RF = 1 << 16;
        #[allow(missing_docs)] const VM = 1 << 17;
        #[allow(missing_docs)] const AC = 1 << 18;
        #[allow(missing_docs)] const VIF = 1 << 19;
        #[allow(missing_docs)] const VIP = 1 << 20;
        #[allow(missing_docs)] const ID = 1 << 21;
    }

    /// CR0 (SDM volume 3, section 2.5).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr0: u64 {
        #[allow(missing_docs)] const PE = 1 << 0;
        #[allow(missing_docs)] const MP = 1 << 1;
        #[allow(missing_docs)] const EM = 1 << 2;
        #[allow(missing_docs)] const TS = 1 << 3;
        #[allow(missing_docs)] const ET = 1 << 4;
        #[allow(missing_docs)] const NE = 1 << 5;
        #[allow(missing_docs)] const WP = 1 << 16;
        #[allow(missing_docs)] const AM = 1 << 18;
        #[allow(missing_docs)] const NW = 1 << 29;
        #[allow(missing_docs)] const CD = 1 << 30;
        #[allow(missing_docs)] const PG = 1 << 31;
    }

    /// CR4 (SDM volume 3, section 2.5).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr4: u64 {
        #[allow(missing_docs)] const VME = 1 << 0;
        #[allow(missing_docs)] const PVI = 1 << 1;
        #[allow(missing_docs)] const TSD = 1 << 2;
        #[allow(missing_docs)] const DE = 1 << 3;
        #[allow(missing_docs)] const PSE = 1 << 4;
        #[allow(missing_docs)] const PAE = 1 << 5;
        #[allow(missing_docs)] const MCE = 1 << 6;
        #[allow(missing_docs)] const PGE = 1 << 7;
        #[allow(missing_docs)] const PCE = 1 << 8;
        #[allow(missing_docs)] const OSFXSR = 1 << 9;
        #[allow(missing_docs)] const OSXMMEXCPT = 1 << 10;
        #[allow(missing_docs)] const UMIP = 1 << 11;
        #[allow(missing_docs)] const LA57 = 1 << 12;
        #[allow(missing_docs)] const FSGSBASE = 1 << 16;
        #[allow(missing_docs)] const PCIDE = 1 << 17;
        #[allow(missing_docs)] const OSXSAVE = 1 << 18;
        #[allow(missing_docs)] const SMEP = 1 << 20;
        #[allow(missing_docs)] const SMAP = 1 << 21;
        #[allow(missing_docs)] const PKE = 1 << 22;
    }

    /// IA32_EFER (SDM volume 3, section 2.2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Efer: u64 {
        #[allow(missing_docs)] const SCE = 1 << 0;
        #[allow(missing_docs)] const LME = 1 << 8;
        #[allow(missing_docs)] const LMA = 1 << 10;
        #[allow(missing_docs)] const NXE = 1 << 11;
    }
}

/// A segment register with its hidden part (SDM volume 3, sections 3.4.3 and 3.4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity applied (offset of the last byte).
    pub limit: u32,
    /// Access rights as in bits 8 to 23 of a descriptor's high word, shifted down by 8: type 3:0, S 4, DPL 6:5, P 7,
    /// AVL 12, L 13, D/B 14, G 15.
    pub access: u16,
    /// Visible selector.
    pub selector: u16,
}

impl Segment {
    /// Present bit in `access`.
    pub const PRESENT: u16 = 1 << 7;
    /// 64-bit code (L).
    pub const LONG: u16 = 1 << 13;
    /// Default size or big (D/B).
    pub const DB: u16 = 1 << 14;

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// One 32-byte vector register; the low half is XMM.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VecReg(pub [u64; 4]);

/// The x87 unit. Registers are held physically (not relative to TOP); MMX registers are their mantissas.
#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fpu {
    /// 80-bit registers in the low ten bytes, little-endian, by physical number.
    pub regs: [[u8; 16]; 8],
    /// Control word.
    pub control: u16,
    /// Status word, TOP (bits 13:11) included.
    pub status: u16,
    /// Full tag word would be recomputed; this is the abridged form: bit n set if physical register n is not empty.
    pub valid: u8,
    /// Last opcode, 11 bits.
    pub opcode: u16,
    /// Last instruction's offset (64 bit) and selector.
    pub ip: u64,
    /// Selector of the last instruction.
    pub cs: u16,
    /// Last memory operand's offset.
    pub dp: u64,
    /// Selector of the last memory operand.
    pub ds: u16,
}

/// The x87 instruction being executed: what FSTENV shows of it if it raises an unmasked exception.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct X87Operand {
    /// Offset of the memory operand.
    pub dp: u64,
    /// Selector of the memory operand's segment.
    pub ds: u16,
    /// Opcode, 11 bits.
    pub opcode: u16,
}

/// The model-specific registers that are plain state. Others (APIC, TSC) go to the platform.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Msrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST; also added to the platform's counter together with `tsc_offset`.
    pub tsc_adjust: u64,
    /// Guest TSC minus the platform's.
    pub tsc_offset: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// Variable-range MTRRs: base and mask.
    pub mtrr_var: [(u64, u64); 8],
    /// Fixed-range MTRRs in address order (64K, 16K ×2, 4K ×8).
    pub mtrr_fixed: [u64; 11],
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_MCG_STATUS and banks' (CTL, STATUS, ADDR, MISC).
    pub mcg_status: u64,
    /// IA32_MCG_CTL.
    pub mcg_ctl: u64,
    /// Machine check banks.
    pub mc_banks: [[u64; 4]; 10],
    /// IA32_FEATURE_CONTROL.
    pub feature_control: u64,
    /// IA32_BIOS_SIGN_ID.
    pub bios_sign_id: u64,
    /// IA32_SMBASE.
    pub smbase: u64,
    /// Address of the paravirtual wall clock.
    pub kvm_wall_clock: u64,
    /// Address of the paravirtual system time, and bit 0 if it is on.
    pub kvm_system_time: u64,
}

/// The environment. The order of the first fields matters for code size (short displacements); see
/// [`Header`].
#[repr(C, align(64))]
pub struct X86Env {
    /// Translator's header.
    pub header: Header,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Linear address of the current instruction while blocks run.
    pub rip: u64,
    /// Arithmetic flags, packed (see `tessera_tcg::ir::flags`).
    pub flags: u32,
    pub(crate) pad: u32,
    /// +1 or -1 by EFLAGS.DF, as a 64-bit integer.
    pub df: u64,
    /// Bases of ES, CS, SS, DS, FS, GS: copies of `seg[_].base` that generated code reads.
    pub seg_base: [u64; 6],
    /// EFLAGS without arithmetic flags and DF; bit 1 set.
    pub eflags: u64,
    /// YMM0 to YMM15; XMM are the low halves.
    pub vec: [VecReg; 16],
    /// MXCSR: control and sticky flags. Loaded into the host's while translated code runs; current in memory
    /// otherwise (see the translator's entry and exit code).
    pub mxcsr: u32,
    /// x87.
    pub fpu: Fpu,
    /// Scratch of translated code, no architectural state.
    pub x87_operand: X87Operand,
    /// 1 while the registers, the status word and the tags of `fpu` are in the host's x87 unit instead, which happens only
    /// while translated code runs (see `helpers::x87_native`).
    pub x87_resident: u8,
    /// Scratch of translated code: a number on its way to or from the host's x87 unit.
    pub x87_number: [u64; 2],

    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub seg: [Segment; 8],
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// PAE page-directory-pointer entries, loaded with CR3.
    pub pdpte: [u64; 4],
    /// DR0 to DR3, unused, unused, DR6, DR7.
    pub dr: [u64; 8],
    /// XCR0.
    pub xcr0: u64,
    /// PKRU.
    pub pkru: u32,
    /// MSRs.
    pub msr: Msrs,

    /// Mode bits of blocks to be run now ([`mode`]): a function of the rest, kept by [`X86Env::update_mode`].
    pub mode: u64,
    /// Current privilege level; 0 in real mode, 3 in virtual-8086 mode.
    pub cpl: u8,
    /// Interrupts are held off for one instruction (after STI, MOV SS, POP SS).
    pub interrupt_shadow: bool,
    /// The interrupt shadow is that of MOV SS or POP SS, which holds off debug exceptions, too.
    pub debug_shadow: bool,
    /// A repeated string instruction has done some iterations and is to go on: what interrupts it pushes RF set.
    pub repeating: bool,
    /// HLT was executed; an interrupt wakes the CPU.
    pub halted: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// In system-management mode.
    pub smm: bool,
    /// In system-management mode: NMIs were blocked when it was entered.
    pub smm_nmi_blocked: bool,
    /// A shutdown (triple fault) occurred.
    pub shutdown: bool,
    /// An application processor after INIT: waits for a start-up IPI.
    pub wait_for_sipi: bool,
    /// Bits for DR6 of a #DB that is due before the next instruction.
    pub pending_debug: u64,
    /// DR0 to DR3 and DR7 as the software MMU's watches are set up for.
    pub(crate) watched: [u64; 5],
    /// Linear address of an instruction at which RF held a breakpoint off; all ones if none.
    pub(crate) resumed_at: u64,
    /// Paging entries that walks have changed since the translator last asked: addresses, and how many.
    pub(crate) changed_entries: std::cell::Cell<([u64; 5], u8)>,
    /// Version of the paravirtual clock's structures, see [`crate::system::kvm_clock`].
    pub(crate) kvm_clock_version: u32,
    /// An event taken over with a [`CpuState`](crate::cpu_state::CpuState), to be delivered before anything else.
    pub in_flight: Option<crate::cpu_state::InFlight>,
    /// [`Platform::a20_mask`] as translations in the TLB have it.
    pub a20_mask: u64,

    /// What CPUID says and which features the CPU has.
    pub cpuid: crate::cpuid::CpuidTable,
    /// The machine around the CPU.
    pub platform: Box<dyn Platform>,
}

/// Block mode bits (see [`BlockKey::mode`](tessera_tcg::guest::BlockKey)): everything a translation depends on beside
/// the instruction bytes.
pub mod mode {
    /// CS.L in long mode: 64-bit code.
    pub const CODE64: u64 = 1 << 0;
    /// CS.D: default operand and address size 32.
    pub const CODE32: u64 = 1 << 1;
    /// SS.B: 32-bit stack pointer (64-bit code always has 64).
    pub const STACK32: u64 = 1 << 2;
    /// CR0.PE.
    pub const PROTECTED: u64 = 1 << 3;
    /// EFLAGS.VM.
    pub const V86: u64 = 1 << 4;
    /// CPL, two bits.
    pub const CPL_SHIFT: u32 = 5;
    /// EFER.LMA.
    pub const LONG: u64 = 1 << 7;
    /// EFLAGS.TF: single step; every block is one instruction.
    pub const TRAP: u64 = 1 << 8;
    /// Data segments may need a base added or a limit check: not all of ES, SS, DS are flat.
    pub const SEGMENTED: u64 = 1 << 9;
    /// FS is not a 4 GiB data segment: accesses through it are checked (its base is always added). Not in 64-bit code.
    pub const FS_CHECKED: u64 = 1 << 10;
    /// CR0.TS, EM or MP as they matter to x87: two bits CR0.EM, CR0.TS.
    pub const FPU_EM: u64 = 1 << 11;
    /// CR0.TS.
    pub const FPU_TS: u64 = 1 << 12;
    /// With CR0.TS: CR0.MP.
    pub const FPU_MP: u64 = 1 << 13;
    /// Without CR0.TS: some x87 exception is unmasked. Shares the bit of FPU_MP, which matters under TS only.
    pub const X87_UNMASKED: u64 = FPU_MP;
    /// CR4.OSFXSR.
    pub const OSFXSR: u64 = 1 << 14;
    /// CR4.OSXSAVE with AVX state enabled in XCR0.
    pub const AVX: u64 = 1 << 15;
    /// MMU mode of data accesses, two bits: see [`crate::state::mmu_mode`].
    pub const MMU_SHIFT: u32 = 16;
    /// IOPL, two bits.
    pub const IOPL_SHIFT: u32 = 18;
    /// An interrupt shadow holds: one instruction, then events are looked at.
    pub const SHADOW: u64 = 1 << 20;
    /// Some unmasked SSE exception: floating point checks for #XM.
    pub const SSE_UNMASKED: u64 = 1 << 21;
    /// Something is checked before each instruction: some instruction or I/O breakpoint is enabled in DR7, or, with
    /// CODE_LIMIT, the limit of CS is another than the usual FFFFH.
    pub const DEBUG: u64 = 1 << 22;
    /// CR4.UMIP; CR4.TSD; CR4.FSGSBASE; CR4.PCE; CR4.DE in bits 23 to 27.
    pub const UMIP: u64 = 1 << 23;
    /// CR4.TSD.
    pub const TSD: u64 = 1 << 24;
    /// CR4.FSGSBASE.
    pub const FSGSBASE: u64 = 1 << 25;
    /// As FS_CHECKED, for GS: shares the bit of FSGSBASE, which matters in 64-bit code only.
    pub const GS_CHECKED: u64 = FSGSBASE;
    /// CR4.PCE.
    pub const PCE: u64 = 1 << 26;
    /// CR4.VME.
    pub const VME: u64 = 1 << 27;
    /// Alignment checks are in force (CR0.AM, EFLAGS.AC, CPL 3).
    pub const ALIGN: u64 = 1 << 28;
    /// CR4.PVI.
    pub const PVI: u64 = 1 << 29;
    /// In system-management mode.
    pub const SMM: u64 = 1 << 30;
    /// Not 64-bit code, and the limit of CS is below 4 GiB - 1.
    pub const CODE_LIMIT: u64 = 1 << 31;
    /// Base of CS, 32 bits, unless 64-bit code.
    pub const CODE_BASE_SHIFT: u32 = 32;
}

/// MMU modes: the translation regimes of data accesses.
pub mod mmu_mode {
    /// CPL 0 to 2, SMAP not in force (CR4.SMAP clear or EFLAGS.AC set), and the implicit supervisor accesses
    /// where SMAP does not apply.
    pub const KERNEL: u8 = 0;
    /// CPL 3.
    pub const USER: u8 = 1;
    /// CPL 0 to 2 under SMAP: user pages are not accessible. Implicit supervisor accesses (descriptor tables, TSS) use
    /// this when CR4.SMAP is set, whatever EFLAGS.AC is.
    pub const KERNEL_SMAP: u8 = 2;
    /// Instruction fetch uses KERNEL or USER by CPL with execute access (SMEP is checked in the walk).
    pub const COUNT: usize = 3;
}

/// Indices of the globals in [`GLOBALS`].
pub mod global {
    use tessera_tcg::ir::GlobalId;

    /// General register `n`.
    pub const fn gpr(n: usize) -> GlobalId {
        GlobalId(n as u8)
    }
    /// Arithmetic flags.
    pub const FLAGS: GlobalId = GlobalId(16);
    /// Program counter (linear).
    pub const PC: GlobalId = GlobalId(17);
    /// Direction, +1 or -1.
    pub const DF: GlobalId = GlobalId(18);
    /// EFLAGS without the arithmetic flags and DF.
    pub const EFLAGS: GlobalId = GlobalId(19);
    /// Base of segment `n` (ES … GS).
    pub const fn seg_base(n: usize) -> GlobalId {
        GlobalId(20 + n as u8)
    }
    /// XMM register `n`: low 128 bits.
    pub const fn xmm(n: usize) -> GlobalId {
        GlobalId(26 + n as u8)
    }
    /// YMM register `n`: 256 bits, overlapping XMM.
    pub const fn ymm(n: usize) -> GlobalId {
        GlobalId(42 + n as u8)
    }
}

const fn int(name: &'static str, offset: usize, pin: Option<u8>) -> GlobalDesc {
    GlobalDesc { name, ty: Ty::Int, offset: offset as u32, bytes: 8, pin, overlaps: None }
}

const fn gpr(name: &'static str, n: usize, pin: u8) -> GlobalDesc {
    int(name, std::mem::offset_of!(X86Env, gpr) + 8 * n, Some(pin))
}

const fn base(name: &'static str, n: usize) -> GlobalDesc {
    int(name, std::mem::offset_of!(X86Env, seg_base) + 8 * n, None)
}

const fn xmm(name: &'static str, n: usize) -> GlobalDesc {
    GlobalDesc {
        name,
        ty: Ty::Vec,
        offset: (std::mem::offset_of!(X86Env, vec) + 32 * n) as u32,
        bytes: 16,
        pin: None,
        overlaps: Some(global::ymm(n)),
    }
}

const fn ymm(name: &'static str, n: usize) -> GlobalDesc {
    GlobalDesc { name, bytes: 32, overlaps: Some(global::xmm(n)), ..xmm(name, n) }
}

/// The globals. The order of preference for pinning follows how often compilers use the registers.
pub static GLOBALS: &[GlobalDesc] = &[
    gpr("rax", 0, 0),
    gpr("rcx", 1, 4),
    gpr("rdx", 2, 3),
    gpr("rbx", 3, 5),
    gpr("rsp", 4, 1),
    gpr("rbp", 5, 6),
    gpr("rsi", 6, 7),
    gpr("rdi", 7, 2),
    gpr("r8", 8, 8),
    gpr("r9", 9, 9),
    gpr("r10", 10, 14),
    gpr("r11", 11, 15),
    gpr("r12", 12, 10),
    gpr("r13", 13, 11),
    gpr("r14", 14, 12),
    gpr("r15", 15, 13),
    GlobalDesc {
        name: "flags",
        ty: Ty::Flags,
        offset: std::mem::offset_of!(X86Env, flags) as u32,
        bytes: 4,
        pin: None,
        overlaps: None,
    },
    int("pc", std::mem::offset_of!(X86Env, rip), None),
    int("df", std::mem::offset_of!(X86Env, df), None),
    int("eflags", std::mem::offset_of!(X86Env, eflags), None),
    base("es_base", 0),
    base("cs_base", 1),
    base("ss_base", 2),
    base("ds_base", 3),
    base("fs_base", 4),
    base("gs_base", 5),
    xmm("xmm0", 0),
    xmm("xmm1", 1),
    xmm("xmm2", 2),
    xmm("xmm3", 3),
    xmm("xmm4", 4),
    xmm("xmm5", 5),
    xmm("xmm6", 6),
    xmm("xmm7", 7),
    xmm("xmm8", 8),
    xmm("xmm9", 9),
    xmm("xmm10", 10),
    xmm("xmm11", 11),
    xmm("xmm12", 12),
    xmm("xmm13", 13),
    xmm("xmm14", 14),
    xmm("xmm15", 15),
    ymm("ymm0", 0),
    ymm("ymm1", 1),
    ymm("ymm2", 2),
    ymm("ymm3", 3),
    ymm("ymm4", 4),
    ymm("ymm5", 5),
    ymm("ymm6", 6),
    ymm("ymm7", 7),
    ymm("ymm8", 8),
    ymm("ymm9", 9),
    ymm("ymm10", 10),
    ymm("ymm11", 11),
    ymm("ymm12", 12),
    ymm("ymm13", 13),
    ymm("ymm14", 14),
    ymm("ymm15", 15),
];

/// Arithmetic flags from EFLAGS bits to the translator's packed layout.
pub fn pack_flags(eflags: u64) -> u32 {
    (eflags as u32 & 0xd5) << 8 | (eflags >> 11 & 1) as u32
}

/// Arithmetic flags from the packed layout to EFLAGS bits.
pub fn unpack_flags(packed: u32) -> u64 {
    let packed = (packed & flags::ALL) as u64;
    packed >> 8 & 0xd5 | (packed & 1) << 11
}

/// Leave codes: why a block returns to [`Guest::handle_leave`](tessera_tcg::guest::Guest::handle_leave).
pub mod leave {
    /// A helper changed state that blocks depend on (modes, interrupts enabled …): look at events, go on.
    pub const RESUME: u32 = 0;
    /// As RESUME, but the next instruction runs before events are looked at (STI, MOV SS).
    pub const SHADOW: u32 = 1;
    /// HLT.
    pub const HALT: u32 = 2;
    /// The instruction completed under TF: #DB is due.
    pub const SINGLE_STEP: u32 = 3;
}

impl X86Env {
    /// Architectural RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.eflags | unpack_flags(self.flags) | if self.df == 1 { 0 } else { RFlags::DF.bits() }
    }

    /// Sets RFLAGS; bit 1 is set, bits that do not exist are dropped. The caller has decided which bits may change.
    pub fn set_rflags(&mut self, v: u64) {
        self.flags = pack_flags(v);
        self.df = if v & RFlags::DF.bits() != 0 { u64::MAX } else { 1 };
        let arithmetic =
            RFlags::CF | RFlags::PF | RFlags::AF | RFlags::ZF | RFlags::SF | RFlags::OF | RFlags::DF;
        self.eflags = v & (RFlags::all() - arithmetic).bits() | RFlags::ONE.bits();
    }

    /// Whether 64-bit code is executed.
    pub fn code64(&self) -> bool {
        self.efer.contains(Efer::LMA) && self.seg[seg::CS].access & Segment::LONG != 0
    }

    /// Architectural instruction pointer.
    pub fn ip(&self) -> u64 {
        if self.code64() { self.rip } else { self.rip.wrapping_sub(self.seg[seg::CS].base) & 0xffff_ffff }
    }

    /// Sets the architectural instruction pointer relative to the current CS.
    pub fn set_ip(&mut self, ip: u64) {
        self.rip = if self.code64() { ip } else { self.seg[seg::CS].base.wrapping_add(ip) & 0xffff_ffff };
    }
}

/// The program counter's global.
pub const PC: GlobalId = global::PC;
