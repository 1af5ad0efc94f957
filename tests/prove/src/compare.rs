//! What must agree, and what need not.
//!
//! Not compared:
//! - flags that the manual leaves undefined after an instruction that was executed;
//! - bit 0 of a page fault's error code (page present) for addresses that are the kernel's: the host's always says that
//!   such a page is present, so that nobody learns from it what it has mapped;
//! - RFLAGS.RF, which faults set in what they push;
//! - in 32-bit code, what has no name there: the upper halves of registers and R8 to R15;
//! - MXCSR_MASK and the reserved bytes of the XSAVE area;
//! - TOP and the tags when an MMX instruction faults: silicon has or has not gone to MMX state by then, as its
//!   micro-operations come;
//! - RIP, RSP and what CALL has pushed when a jump, call or return to an address that is not canonical raises #GP: silicon
//!   raises it before the transfer, the translator behind it (see `translate::exits` in `tessera-x86`);
//! - anything, if overflow or underflow is unmasked in MXCSR and one side raises #XM: silicon then rounds as if exponents had no
//!   bounds, which decides about the flags; the translator computes with these exceptions masked;
//! - the address within the page when an access of FXSAVE, XSAVE, VMASKMOV or their like faults, and whether XRSTOR finds a
//!   missing page or a wrong header first: silicon looks at the parts in its own order;
//! - #GP and #PF for an access that goes over the end of the lower half of the address space;
//! - all when ENTER faults: silicon has pushed what the translator, which pushes all or nothing, has not;
//! - whether XSAVE faults for a part of its area that it does not write;
//! - #AC of MASKMOVQ at an address that is not canonical;
//! - #AC and #GP of FXSAVE, XSAVE and their like at an address that is not aligned: which of them is the silicon's choice
//!   (SDM volume 2, XSAVE);
//! - anything, if an instruction faults that is not of the sequence, but of an older one that a jump has hit;
//! - anything in a sequence with both XSAVE and VZEROUPPER or VZEROALL: which components are in use then is the silicon's
//!   affair, as zero in a register that was written may be either;
//! - memory when PUSHA faults, for the same reason;
//! - registers when POPA faults, and the address within the page: silicon has loaded some, in its own order;
//! - the first eight bytes of a ten-byte store whose last two fault;
//! - sticky flags when DPPS, DPPD or VCVTPS2PH fault: silicon has done a part by then;
//! - #AC and #GP of an x87 store that stores nothing, because its result raises an unmasked exception;
//! - ARPL on read-only memory that would change nothing, which silicon completes;
//! - what is above 32 bits in RCX, RSI and RDI when a string instruction with 32-bit addresses faults or has nothing to do in 64-bit
//!   code: silicon has or has not written the register back by then, and what the
//!   instructions behind it make of that.

use std::fmt::Write;

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::frame::{FLAGS, Frame, NONE, STUCK, at};
use crate::layout::{CODE, CODE_BYTES, CS32, IMAGE, IMAGE_AT, READ_ONLY};

/// Names of the general registers.
pub const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// State after a run: the frame and the window.
#[derive(Clone, Copy)]
pub struct After<'a> {
    /// Registers.
    pub frame: &'a Frame,
    /// Memory.
    pub image: &'a [u8],
}

/// What is known of the place where the native run ended.
#[derive(Clone, Copy, Default)]
pub struct Stop {
    /// RFLAGS bits that are undefined there.
    pub undefined: u32,
    /// The instruction there.
    pub insn: Option<Instruction>,
    /// Whether there is an ARPL in the sequence.
    pub has_arpl: bool,
    /// Whether there is an XSAVE in the sequence.
    pub has_area: bool,
    /// Whether there is a string instruction with 32-bit addresses in the sequence.
    pub has_narrow_string: bool,
    /// Whether there is one with instructions behind it.
    pub uses_narrow_string: bool,
    /// Whether there is a VZEROUPPER or VZEROALL in the sequence.
    pub has_zeroing: bool,
}

/// The last address of the lower half.
const LAST_LOW: u64 = 0x7fff_ffff_ffff;

impl Stop {
    /// An MMX instruction has faulted.
    fn in_mmx(&self, native: &Frame) -> bool {
        native.vector != NONE
            && self.insn.is_some_and(|i| {
                (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
            })
    }

    /// An access to an area of FXSAVE or XSAVE has faulted.
    fn in_area(&self, native: &Frame) -> bool {
        native.vector == PAGE_FAULT && self.at_area()
    }

    /// At an access to such an area, or to the memory of a masked move.
    fn at_area(&self) -> bool {
        use Mnemonic::*;
        self.insn.is_some_and(|i| {
            matches!(
                i.mnemonic(),
                Vmaskmovdqu
                    | Maskmovdqu
                    | Vmaskmovps
                    | Vmaskmovpd
                    | Vpmaskmovd
                    | Vpmaskmovq
                    | Fxsave
                    | Fxsave64
                    | Fxrstor
                    | Fxrstor64
                    | Xsave
                    | Xsave64
                    | Xsaveopt
                    | Xsaveopt64
                    | Xsavec
                    | Xsavec64
                    | Xrstor
                    | Xrstor64
            )
        })
    }

    fn in_masked_move(&self) -> bool {
        use Mnemonic::*;
        self.insn.is_some_and(|i| matches!(i.mnemonic(), Maskmovq | Maskmovdqu | Vmaskmovdqu))
    }

    /// POPA has faulted.
    fn in_pop_all(&self, native: &Frame) -> bool {
        native.vector != NONE
            && self.insn.is_some_and(|i| matches!(i.mnemonic(), Mnemonic::Popa | Mnemonic::Popad))
    }

    /// At a store of ten bytes.
    fn in_long_store(&self) -> bool {
        self.insn.is_some_and(|i| {
            i.op_count() > 0 && i.op0_kind() == OpKind::Memory && i.memory_size().size() == 10
        })
    }

    /// At an instruction that computes in stages, of which silicon may have done some before a fault.
    fn in_stages(&self) -> bool {
        use Mnemonic::*;
        self.insn.is_some_and(|i| matches!(i.mnemonic(), Dpps | Dppd | Vdpps | Vdppd | Vcvtps2ph))
    }

    /// PUSHA has faulted.
    fn in_push_all(&self, native: &Frame) -> bool {
        native.vector != NONE
            && self.insn.is_some_and(|i| matches!(i.mnemonic(), Mnemonic::Pusha | Mnemonic::Pushad))
    }

    /// ENTER has faulted.
    fn in_enter(&self, native: &Frame) -> bool {
        native.vector != NONE && self.insn.is_some_and(|i| i.mnemonic() == Mnemonic::Enter)
    }

    /// Both sides are right in their own way, and what they left differs.
    fn may_differ(&self, native: &Frame, guest: &Frame) -> bool {
        let at_end =
            matches!(native.vector, 12 | 13) && guest.vector == 14 && guest.address >> 6 == LAST_LOW >> 6;
        // A write that is not allowed.
        let unchanged = guest.vector == 13 || guest.vector == 14 && guest.error & 3 == 3;
        let area = self.has_area && matches!(guest.vector, 12..=14) && native.rip != guest.rip;
        scales(native)
            || scales(guest)
            || at_end
            || unchanged && self.has_arpl
            || self.in_stages() && native.vector == guest.vector
            || self.in_enter(native) && guest.vector != NONE
            || area
            || self.in_area(guest) && matches!(native.vector, 12 | 13)
            || self.in_masked_move() && native.vector == 13 && guest.vector == 17
            || self.in_area(native) && matches!(guest.vector, 12 | 13)
            || self.has_area && native.vector == 12 && guest.vector == 13
            || self.at_area() && native.vector == 12 && guest.vector == 13
            || self.at_area() && native.vector == 17 && guest.vector == 13
            || self.elsewhere(native)
            || self.uses_narrow_string && native.cs != CS32 as u64
    }

    /// An instruction has faulted that is not of the sequence, which has jumped into an older one: what it is is not known.
    fn elsewhere(&self, native: &Frame) -> bool {
        let code = CODE..CODE + CODE_BYTES as u64;
        native.vector != NONE && self.insn.is_none() && code.contains(&native.rip)
    }

    /// A transfer to an address that is not canonical: natively not done, in the guest done.
    fn in_transfer(&self, native: &Frame, guest: &Frame) -> bool {
        let canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
        native.vector == 13
            && guest.vector == 13
            && native.error == guest.error
            // Only a transfer leads there; it need not be of the sequence, which may jump into an older one.
            && !canonical(guest.rip)
    }
}

/// Whether overflow or underflow is unmasked.
fn scales(f: &Frame) -> bool {
    f.vector == 19 && f.get(at::MXCSR) & 0xc00 != 0xc00
}

fn flags(f: &Frame, undefined: u32) -> u64 {
    f.flags & FLAGS & !u64::from(undefined)
}

fn error(f: &Frame) -> u64 {
    let upper = f.vector == 14 && f.address > LAST_LOW - 0x1000;
    if upper { f.error | 1 } else { f.error }
}

fn gprs_agree(a: &Frame, b: &Frame, narrow_string: bool) -> bool {
    if a.cs == CS32 as u64 {
        return (0..8).all(|n| a.gpr[n] as u32 == b.gpr[n] as u32);
    }
    a.gpr == b.gpr
        || narrow_string
            && (0..16).all(|n| {
                let mask = if matches!(n, 1 | 6 | 7) { u32::MAX as u64 } else { u64::MAX };
                (a.gpr[n] ^ b.gpr[n]) & mask == 0
            })
}

/// Parts of the XSAVE area that are compared, beside x87 status, tags and registers.
const PARTS: [std::ops::Range<usize>; 4] = [at::CONTROL, at::OPCODE.start..at::MXCSR.end, 160..416, 576..832];

/// Whether x87 status, tags and registers agree; apart from TOP and tags if `mmx`.
fn stacks_agree(a: &Frame, b: &Frame, mmx: bool) -> bool {
    if !mmx {
        return a.xsave[2..5] == b.xsave[2..5] && (0..8).all(|n| a.xsave[at::st(n)] == b.xsave[at::st(n)]);
    }
    let status = |f: &Frame| f.get(at::STATUS) & !TOP;
    let register = |f: &Frame, n: usize| at::st(n.wrapping_sub(f.get(at::STATUS) as usize >> 11) & 7);
    status(a) == status(b) && (0..8).all(|n| a.xsave[register(a, n)] == b.xsave[register(b, n)])
}

/// Bits of TOP in the status word.
const TOP: u64 = 7 << 11;

/// Whether everything agrees.
pub fn agree(native: After<'_>, guest: After<'_>, stop: &Stop) -> bool {
    let (a, b) = (native.frame, guest.frame);
    if a == b && native.image == guest.image {
        return true;
    }
    // What is in use is in the area's header and decides what is stored, and either may be loaded again.
    if stop.may_differ(a, b) || stop.has_area && stop.has_zeroing {
        return true;
    }
    let registers = PARTS.iter().all(|at| a.xsave[at.clone()] == b.xsave[at.clone()])
        && stacks_agree(a, b, stop.in_mmx(a))
        && flags(a, stop.undefined) == flags(b, stop.undefined)
        && (a.fs, a.gs, a.vector) == (b.fs, b.gs, b.vector)
        && (a.address == b.address
            || (stop.in_area(a) || stop.in_pop_all(a)) && (a.address ^ b.address) & 0xffff_f000 == 0)
        && error(a) == error(b);
    if registers && stop.in_transfer(a, b) {
        return true;
    }
    registers
        && (gprs_agree(a, b, stop.has_narrow_string) || stop.in_pop_all(a))
        && (a.vector == NONE || (a.rip, a.cs) == (b.rip, b.cs))
        && (stop.in_long_store() && a.vector == PAGE_FAULT
            || stop.in_push_all(a)
            || images_agree(native.image, guest.image))
}

fn images_agree(native: &[u8], guest: &[u8]) -> bool {
    native[..READ_ONLY.start] == guest[..READ_ONLY.start] && native[READ_ONLY.end..] == guest[READ_ONLY.end..]
}

const PAGE_FAULT: u64 = 14;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}

/// How a run ended, in words.
pub fn ending(f: &Frame) -> String {
    match f.vector {
        NONE => "completed".to_owned(),
        STUCK => "did not end".to_owned(),
        v if v >= 1000 => format!("the vCPU stopped with {} at {:#x}", v - 1000, f.rip),
        14 => format!("#PF error {:#x} address {:#x} at {:#x}", f.error, f.address, f.rip),
        v => {
            const NAMES: [&str; 20] = [
                "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS",
                "#GP", "#PF", "", "#MF", "#AC", "#MC", "#XM",
            ];
            let name = NAMES.get(v as usize).copied().unwrap_or("?");
            format!("{name} (vector {v}) error {:#x} at {:#x}", f.error, f.rip)
        }
    }
}

/// The differences, one a line: before, natively, in the translator.
pub fn describe(before: After<'_>, native: After<'_>, guest: After<'_>, stop: &Stop) -> String {
    let undefined = stop.undefined;
    let mut out = String::new();
    let (s, a, b) = (before.frame, native.frame, guest.frame);
    if ending(a) != ending(b)
        && (a.vector, error(a), a.address, a.rip) != (b.vector, error(b), b.address, b.rip)
    {
        let _ = writeln!(out, "  silicon:    {}\n  translator: {}", ending(a), ending(b));
    } else {
        let _ = writeln!(out, "  both: {}", ending(a));
    }
    let mut line = |name: &str, before: String, native: String, guest: String| {
        if native != guest {
            let _ = writeln!(
                out,
                "  {name:<10} before {before}\n  {:<10} silicon {native}\n* {:<10} translator {guest}",
                "", ""
            );
        }
    };
    for (n, name) in REGISTERS.into_iter().enumerate() {
        let mask = if s.cs != CS32 as u64 {
            u64::MAX
        } else if n < 8 {
            0xffff_ffff
        } else {
            0
        };
        let show = |f: &Frame| format!("{:016x}", f.gpr[n] & mask);
        line(name, show(s), show(a), show(b));
    }
    let show = |f: &Frame| format!("{:06x}", flags(f, undefined));
    line("flags", show(s), show(a), show(b));
    line("fs base", format!("{:x}", s.fs), format!("{:x}", a.fs), format!("{:x}", b.fs));
    line("gs base", format!("{:x}", s.gs), format!("{:x}", a.gs), format!("{:x}", b.gs));
    if a.vector != NONE {
        line("cs", format!("{:x}", s.cs), format!("{:x}", a.cs), format!("{:x}", b.cs));
    }
    let fields = [
        ("fcw", at::CONTROL),
        ("fsw", at::STATUS),
        ("tags", at::TAGS),
        ("fop", at::OPCODE),
        ("fip", at::IP),
        ("fdp", at::DP),
        ("mxcsr", at::MXCSR),
    ];
    for (name, at) in fields {
        let show = |f: &Frame| hex(&f.xsave[at.clone()]);
        line(name, show(s), show(a), show(b));
    }
    for n in 0..8 {
        let show = |f: &Frame| hex(&f.xsave[at::st(n)]);
        line(&format!("st{n}"), show(s), show(a), show(b));
    }
    for n in 0..16 {
        let show = |f: &Frame| format!("{} {}", hex(&f.xsave[at::ymm(n)]), hex(&f.xsave[at::xmm(n)]));
        line(&format!("ymm{n}"), show(s), show(a), show(b));
    }
    for at in (0..IMAGE).step_by(16).filter(|at| !READ_ONLY.contains(at)) {
        let show = |image: &[u8]| hex(&image[at..at + 16]);
        line(
            &format!("{:#x}", IMAGE_AT + at as u64),
            show(before.image),
            show(native.image),
            show(guest.image),
        );
    }
    out
}

/// The state before, as far as it is not plain.
pub fn describe_start(f: &Frame) -> String {
    let mut out = String::from(" ");
    for (n, name) in REGISTERS.into_iter().enumerate() {
        if f.gpr[n] != 0 {
            let _ = write!(out, " {name}={:x}", f.gpr[n]);
        }
    }
    let _ = write!(out, "\n  flags={:x} fs={:x} gs={:x} mxcsr={:x}", f.flags, f.fs, f.gs, f.get(at::MXCSR));
    let _ = writeln!(
        out,
        " fcw={:x} fsw={:x} tags={:x} fip={:x} fdp={:x} fop={:x}",
        f.get(at::CONTROL),
        f.get(at::STATUS),
        f.get(at::TAGS),
        f.get(at::IP),
        f.get(at::DP),
        f.get(at::OPCODE)
    );
    for n in 0..8 {
        if f.xsave[at::st(n)].iter().any(|b| *b != 0) {
            let _ = writeln!(out, "  st{n}={}", hex(&f.xsave[at::st(n)]));
        }
    }
    for n in 0..16 {
        let (low, high) = (&f.xsave[at::xmm(n)], &f.xsave[at::ymm(n)]);
        if low.iter().chain(high).any(|b| *b != 0) {
            let _ = writeln!(out, "  ymm{n}={} {}", hex(high), hex(low));
        }
    }
    out
}
