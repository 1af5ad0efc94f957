//! What must agree, and what need not.
//!
//! Not compared:
//! - flags that the manual leaves undefined after an instruction that was executed;
//! - bit 0 of a page fault's error code (page present) for addresses in the upper half: the host's kernel always says
//!   that such a page is present, so that nobody learns from it what it has mapped;
//! - RFLAGS.RF, which faults set in what they push;
//! - in 32-bit code, what has no name there: the upper halves of registers and R8 to R15;
//! - MXCSR_MASK and the reserved bytes of the XSAVE area.

use std::fmt::Write;

use crate::frame::{FLAGS, Frame, NONE, STUCK, at};
use crate::layout::{CS32, IMAGE, IMAGE_AT, READ_ONLY};

/// Names of the general registers.
pub const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
];

/// State after a run: the frame and the window.
#[derive(Clone, Copy)]
pub struct After<'a> {
    /// Registers.
    pub frame: &'a Frame,
    /// Memory.
    pub image: &'a [u8],
}

fn flags(f: &Frame, undefined: u32) -> u64 {
    f.flags & FLAGS & !u64::from(undefined)
}

fn error(f: &Frame) -> u64 {
    let upper = f.vector == 14 && f.address >> 63 != 0;
    if upper { f.error | 1 } else { f.error }
}

fn gprs_agree(a: &Frame, b: &Frame) -> bool {
    if a.cs == CS32 as u64 {
        (0..8).all(|n| a.gpr[n] as u32 == b.gpr[n] as u32)
    } else {
        a.gpr == b.gpr
    }
}

/// Bytes of the XSAVE area that are compared.
const X87: [std::ops::Range<usize>; 4] = [at::CONTROL.start..5, at::IP, at::MXCSR, 160..416];

/// Whether everything agrees. `undefined`: flags as of where the native run ended.
pub fn agree(native: After<'_>, guest: After<'_>, undefined: u32) -> bool {
    let (a, b) = (native.frame, guest.frame);
    gprs_agree(a, b)
        && (a.vector == NONE || (a.rip, a.cs) == (b.rip, b.cs))
        && flags(a, undefined) == flags(b, undefined)
        && (a.fs, a.gs, a.vector, a.address) == (b.fs, b.gs, b.vector, b.address)
        && error(a) == error(b)
        && X87.iter().all(|at| a.xsave[at.clone()] == b.xsave[at.clone()])
        && (0..8).all(|n| a.xsave[at::st(n)] == b.xsave[at::st(n)])
        && a.xsave[576..] == b.xsave[576..]
        && native.image[..READ_ONLY.start] == guest.image[..READ_ONLY.start]
        && native.image[READ_ONLY.end..] == guest.image[READ_ONLY.end..]
}

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
                "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP", "#PF",
                "", "#MF", "#AC", "#MC", "#XM",
            ];
            let name = NAMES.get(v as usize).copied().unwrap_or("?");
            format!("{name} (vector {v}) error {:#x} at {:#x}", f.error, f.rip)
        }
    }
}

/// The differences, one a line: before, natively, in the translator.
pub fn describe(before: After<'_>, native: After<'_>, guest: After<'_>, undefined: u32) -> String {
    let mut out = String::new();
    let (s, a, b) = (before.frame, native.frame, guest.frame);
    if ending(a) != ending(b) && (a.vector, error(a), a.address, a.rip) != (b.vector, error(b), b.address, b.rip) {
        let _ = writeln!(out, "  silicon:    {}\n  translator: {}", ending(a), ending(b));
    } else {
        let _ = writeln!(out, "  both: {}", ending(a));
    }
    let mut line = |name: &str, before: String, native: String, guest: String| {
        if native != guest {
            let _ = writeln!(out, "  {name:<10} before {before}\n  {:<10} silicon {native}\n* {:<10} translator {guest}", "", "");
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
        line(&format!("{:#x}", IMAGE_AT + at as u64), show(before.image), show(native.image), show(guest.image));
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
