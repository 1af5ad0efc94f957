//! The CPU's state as text, in the form that people know from `info registers` and from `-d cpu`.

use std::fmt::Write;

use crate::state::{RFlags, Segment, TableRegister, X86Env, seg};

fn segment_type(env: &X86Env, n: usize, s: &Segment) -> String {
    if s.access & Segment::PRESENT == 0 {
        return String::new();
    }
    let a = s.access;
    let bit = |n: u16, c: char| if a >> n & 1 != 0 { c } else { '-' };
    let accessed = bit(0, 'A');
    let kind = if a & 0x10 == 0 {
        const NAMES: [&str; 16] = [
            "Reserved",
            "TSS16-avl",
            "LDT",
            "TSS16-busy",
            "CallGate16",
            "TaskGate",
            "IntGate16",
            "TrapGate16",
            "Reserved",
            "TSS-avl",
            "Reserved",
            "TSS-busy",
            "CallGate",
            "Reserved",
            "IntGate",
            "TrapGate",
        ];
        return format!("DPL={} {}", s.dpl(), NAMES[(a & 0xf) as usize]);
    } else if a & 8 != 0 {
        let size = if super::long_mode(env) && a & Segment::LONG != 0 {
            "CS64"
        } else if a & Segment::DB != 0 {
            "CS32"
        } else {
            "CS16"
        };
        format!("{size} [{}{}{accessed}]", bit(2, 'C'), bit(1, 'R'))
    } else {
        let size = if a & Segment::DB != 0 || env.code64() && n != seg::CS { "DS  " } else { "DS16" };
        format!("{size} [{}{}{accessed}]", bit(2, 'E'), bit(1, 'W'))
    };
    format!("DPL={} {kind}", s.dpl())
}

/// The registers, about twenty lines.
pub fn dump(env: &X86Env) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_dump(env, &mut out);
    out
}

fn write_dump(env: &X86Env, o: &mut String) -> std::fmt::Result {
    let g = &env.gpr;
    let flags = env.rflags();
    let flag = |f: RFlags, c: char| if flags & f.bits() != 0 { c } else { '-' };
    let letters: String = [
        (RFlags::DF, 'D'),
        (RFlags::OF, 'O'),
        (RFlags::SF, 'S'),
        (RFlags::ZF, 'Z'),
        (RFlags::AF, 'A'),
        (RFlags::PF, 'P'),
        (RFlags::CF, 'C'),
    ]
    .iter()
    .map(|&(f, c)| flag(f, c))
    .collect();
    let status = format!(
        "[{letters}] CPL={} II={} A20={} SMM={} HLT={}",
        env.cpl,
        env.interrupt_shadow as u8,
        (env.a20_mask >> 20 & 1) as u8,
        env.smm as u8,
        env.halted as u8,
    );
    let wide = super::long_mode(env);
    let w = if wide { 16 } else { 8 };
    let narrow = |v: u64| if wide { v } else { v & 0xffff_ffff };
    let prefix = if wide { 'R' } else { 'E' };
    for row in [[("AX", 0), ("BX", 3), ("CX", 1), ("DX", 2)], [("SI", 6), ("DI", 7), ("BP", 5), ("SP", 4)]] {
        let line: Vec<String> =
            row.iter().map(|&(name, n)| format!("{prefix}{name}={:0w$x}", narrow(g[n]))).collect();
        writeln!(o, "{}", line.join(" "))?;
    }
    if wide {
        for row in 0..2 {
            let line: Vec<String> = (8 + 4 * row..12 + 4 * row)
                .map(|n| format!("{:<3}={:016x}", format!("R{n}"), g[n]))
                .collect();
            writeln!(o, "{}", line.join(" "))?;
        }
    }
    writeln!(o, "{prefix}IP={:0w$x} {prefix}FL={:08x} {status}", env.ip(), flags)?;
    for (name, n) in [
        ("ES", seg::ES),
        ("CS", seg::CS),
        ("SS", seg::SS),
        ("DS", seg::DS),
        ("FS", seg::FS),
        ("GS", seg::GS),
        ("LDT", seg::LDTR),
        ("TR", seg::TR),
    ] {
        let s = &env.seg[n];
        let kind = segment_type(env, n, s);
        writeln!(
            o,
            "{name:<3}={:04x} {:0w$x} {:08x} {:08x} {kind}",
            s.selector,
            narrow(s.base),
            s.limit,
            (s.access as u32) << 8
        )?;
    }
    for (name, TableRegister { base, limit }) in [("GDT", env.gdtr), ("IDT", env.idtr)] {
        writeln!(o, "{name}=     {:0w$x} {limit:08x}", narrow(base))?;
    }
    writeln!(
        o,
        "CR0={:08x} CR2={:0w$x} CR3={:0w$x} CR4={:08x}",
        env.cr0.bits(),
        narrow(env.cr2),
        narrow(env.cr3),
        env.cr4.bits()
    )?;
    let dr = &env.dr;
    writeln!(
        o,
        "DR0={:0w$x} DR1={:0w$x} DR2={:0w$x} DR3={:0w$x}",
        narrow(dr[0]),
        narrow(dr[1]),
        narrow(dr[2]),
        narrow(dr[3])
    )?;
    writeln!(o, "DR6={:0w$x} DR7={:0w$x}", dr[6], dr[7])?;
    writeln!(o, "EFER={:016x}", env.efer.bits())?;
    write!(
        o,
        "FCW={:04x} FSW={:04x} FTW={:02x} MXCSR={:08x}",
        env.fpu.control, env.fpu.status, env.fpu.valid, env.mxcsr
    )
}
