//! Virtual-8086 mode, its extensions (VME, PVI), and the I/O permission bitmap (Intel SDM volume 3B, chapter 20; volume 1,
//! chapter 19).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const VME: u32 = 1;
const PVI: u32 = 2;
/// Flags of a program in virtual-8086 mode.
const VM: u32 = 0x2_0002;
const IOPL3: u32 = 0x3000;
const VIF: u32 = 0x8_0000;
const VIP: u32 = 0x10_0000;
/// Vector for INT n.
const VEC: u32 = 0x60;
/// Stack of the programs, in segment 0.
const SP: u32 = STACK3;

pub fn emit(k: &mut Kit) -> R {
    entering(k)?;
    sensitive(k)?;
    faults(k)?;
    vme(k)?;
    pvi(k)?;
    ports(k)
}

/// Runs 16-bit code in virtual-8086 mode until its last instruction raises an exception. `label` names the code.
fn v86(
    k: &mut Kit,
    what: &str,
    flags: u32,
    exc: Exc,
    label: &str,
    body: impl FnOnce(&mut Kit) -> R + 'static,
) -> R {
    let end = format!("{label}.end");
    k.elsewhere(16, label, move |k| {
        body(k)?;
        k.label(&end)?;
        // Running over the end is an exception, too, but not the expected one.
        k.faulting(|k| k.ud2())
    });
    let after = k.fresh();
    k.arm(&after)?;
    for segment in [0, 0, 0x20, 0x10, 0] {
        code!(k; push(segment)); // GS, FS, DS, ES, SS
    }
    code!(k; push(SP); push(VM | flags); push(IMAGE_SEGMENT); push(k.off(label)); iretd(); label(&after));
    let ip = if exc.is_trap() { Some(k.off(&format!("{label}.end"))) } else { None };
    k.seen(what, exc, ip)?;
    k.masked(what, EXC_FLAGS, 0x2_0000, 0x2_0000)?;
    k.var(what, EXC_CS, IMAGE_SEGMENT)
}

fn entering(k: &mut Kit) -> R {
    k.check("IRET enters, an exception leaves", "3B, 20.2", |k| {
        v86(k, "HLT", 0x8D5, gp(0), "enter", |k| {
            code!(k; mov(ax, ds); mov(bx, es); mov(cx, sp); mov(dx, ss); mov(di, word_ptr(0)); hlt());
            Ok(())
        })?;
        k.masked("flags", EXC_FLAGS, 0x2_3FD5, 0x2_08D5)?;
        k.masked("DS", EXC_AX, 0xFFFF, 0x20)?;
        k.masked("ES", EXC_BX, 0xFFFF, 0x10)?;
        k.masked("SP", EXC_CX, 0xFFFF, SP)?;
        k.var("saved SP", EXC_SP, SP)?;
        k.var("saved SS", EXC_SS, 0)?;
        k.masked("saved ES", EXC_ES, 0xFFFF, 0x10)?;
        k.var("ring 0's ESP: nine doublewords and the error code", EXC_HANDLER_SP, STACK0 - 40)?;
        k.masked("VM in the handler", EXC_HANDLER_FLAGS, 0x2_0000, 0)
    })?;
    k.check("data segments are null in the handler", "3B, 20.2.1; 2A, INT n", |k| {
        k.aside("v86.look", |k| {
            code!(k; mov(eax, ds); mov(ebx, es); mov(ecx, fs); mov(edx, gs); push(eax); mov(eax, DATA);
                mov(ds, eax);
                pop(dword_ptr(V[0])); mov(dword_ptr(V[1]), ebx); mov(dword_ptr(V[2]), ecx);
                mov(dword_ptr(V[3]), edx); iretd());
            Ok(())
        })?;
        let handler = k.imm("v86.look");
        k.idt(VEC, gate(CODE32, handler, INT32 | RING3, 0))?;
        v86(k, "after the handler", IOPL3, UD, "look", |k| {
            code!(k; int(VEC as i32); mov(ax, ds); ud2());
            Ok(())
        })?;
        for variable in &V[..4] {
            k.var("data segment", *variable, 0)?;
        }
        k.masked("DS after IRET", EXC_AX, 0xFFFF, 0x20)
    })?;
    k.check("handlers must be in ring 0", "3B, 20.2.1; 2A, INT n", |k| {
        let handler = k.imm("vectors");
        k.idt(VEC, gate(CONFORMING, handler, INT32 | RING3, 0))?;
        v86(k, "conforming handler", IOPL3, gp(CONFORMING), "conforming", |k| {
            k.faulting(|k| k.int(VEC as i32))
        })?;
        k.idt(VEC, gate(RING1_CODE, handler, INT32 | RING3, 0))?;
        v86(k, "handler in ring 1", IOPL3, gp(RING1_CODE & !3), "ring1", |k| {
            k.faulting(|k| k.int(VEC as i32))
        })?;
        k.idt(VEC, gate(CODE32, handler, INT32, 0))?;
        v86(k, "gate of ring 0", IOPL3, gp(VEC * 8 + 2), "dpl", |k| k.faulting(|k| k.int(VEC as i32)))
    })?;
    k.check("IRET in ring 3 cannot set VM", "2A, IRET; 2B, POPF", |k| {
        k.user("POPF and IRET", UD.anywhere(), |k| {
            let next = k.fresh();
            code!(k; push(0x2_0002); popfd(); pushfd(); pop(ebx); push(0x2_0002); push(USER32);
                push(k.imm(&next)); iretd());
            code!(k; label(&next); ud2());
            Ok(())
        })?;
        k.masked("VM", EXC_FLAGS, 0x2_0000, 0)
    })
}

fn sensitive(k: &mut Kit) -> R {
    k.check("IOPL 0: sensitive instructions fault", "3B, 20.2.7 and table 20-2", |k| {
        k.cr4_bits(0, VME)?;
        v86(k, "CLI", 0, gp(0), "s.cli", |k| k.faulting(|k| k.cli()))?;
        v86(k, "STI", 0, gp(0), "s.sti", |k| k.faulting(|k| k.sti()))?;
        v86(k, "PUSHF", 0, gp(0), "s.pushf", |k| k.faulting(|k| k.pushf()))?;
        v86(k, "PUSHFD", 0, gp(0), "s.pushfd", |k| k.faulting(|k| k.pushfd()))?;
        v86(k, "POPF", 0, gp(0), "s.popf", |k| k.faulting(|k| k.popf()))?;
        v86(k, "IRET", 0, gp(0), "s.iret", |k| k.faulting(|k| k.iret()))?;
        v86(k, "INT n", 0, gp(0), "s.int", |k| k.faulting(|k| k.int(VEC as i32)))
    })?;
    k.check("INT3, INTO and INT1 do not look at IOPL", "3B, 20.2.7; 2A, INT n", |k| {
        let base = k.imm("vectors");
        for vector in [3, 4] {
            k.idt(vector, gate(CODE32, base + vector * 5, INT32 | RING3, 0))?;
        }
        v86(k, "INT3", 0, BP, "s.int3", |k| k.int3())?;
        v86(k, "INTO", 0, OF, "s.into", |k| {
            code!(k; mov(al, 0x7F); inc(al));
            CodeAssembler::into(k)
        })?;
        v86(k, "INT1", 0, DB.trap(), "s.int1", |k| k.int1())
    })?;
    k.check("IOPL 3: they work", "3B, 20.2.7", |k| {
        v86(k, "flags", IOPL3, UD, "i3.flags", |k| {
            code!(k; sti(); pushf(); pop(ax); cli(); pushf(); pop(bx); push(0xD5 | 0x4000); popf(); pushf();
                pop(cx); pushfd(); pop(edx); ud2());
            Ok(())
        })?;
        k.masked("after STI", EXC_AX, 0x3200, 0x3200)?;
        k.masked("after CLI", EXC_BX, 0x3200, 0x3000)?;
        k.masked("POPF keeps IOPL", EXC_CX, 0x70D5, 0x70D5)?;
        k.masked("PUSHFD clears VM and RF", EXC_DX, 0x3_0000, 0)?;
        let handler = k.imm("vectors") + VEC * 5;
        k.idt(VEC, gate(CODE32, handler, INT32 | RING3, 0))?;
        v86(k, "INT n", IOPL3, int(VEC), "i3.int", |k| k.int(VEC as i32))?;
        v86(k, "IRET", IOPL3, UD, "i3.iret", |k| {
            code!(k; push(0x0AD5); push(IMAGE_SEGMENT as i32); push(k.off("i3.iret.next")); iret();
                label("i3.iret.next"); ud2());
            Ok(())
        })?;
        k.masked("flags after IRET", EXC_FLAGS, 0x2_3FD5, 0x2_3AD5)
    })
}

fn faults(k: &mut Kit) -> R {
    k.check("segments end at 64 KiB", "3B, 20.1.1", |k| {
        v86(k, "DS", 0, gp(0), "f.ds", |k| {
            code!(k; mov(si, 0xFFFF));
            k.faulting(|k| k.mov(ax, word_ptr(si)))
        })?;
        v86(k, "SS", 0, sf(0), "f.ss", |k| {
            code!(k; mov(bp, 0xFFFF));
            k.faulting(|k| k.mov(ax, word_ptr(bp)))
        })?;
        v86(k, "32-bit address", 0, gp(0), "f.addr", |k| {
            code!(k; mov(esi, 0x1_0000));
            k.faulting(|k| k.mov(al, byte_ptr(esi)))
        })
    })?;
    k.check("instructions of protected mode", "2A–2D, Virtual-8086 Mode Exceptions", |k| {
        type Emit = fn(&mut Kit) -> R;
        let list: [(&str, Exc, Emit); 14] = [
            ("LLDT", UD, |k| k.lldt(ax)),
            ("LTR", UD, |k| k.ltr(ax)),
            ("STR", UD, |k| k.str(ax)),
            ("VERR", UD, |k| k.verr(ax)),
            ("LAR", UD, |k| k.lar(ax, cx)),
            ("ARPL", UD, |k| k.arpl(ax, cx)),
            ("LGDT", gp(0), |k| k.lgdt(fword_ptr(0))),
            ("MOV from CR0", gp(0), |k| k.mov(eax, cr0)),
            ("MOV from DR7", gp(0), |k| k.mov(eax, dr7)),
            ("LMSW", gp(0), |k| k.lmsw(ax)),
            ("CLTS", gp(0), |k| k.clts()),
            ("RDMSR", gp(0), |k| k.rdmsr()),
            ("WBINVD", gp(0), |k| k.wbinvd()),
            ("VEX prefix", UD, |k| k.raw(&[0xC5, 0xF0, 0x58, 0xC0])),
        ];
        for (what, exc, emit) in list {
            v86(k, what, IOPL3, exc, &format!("p.{what}"), move |k| k.faulting(emit))?;
        }
        Ok(())
    })
}

/// Points TSS's bitmap behind the redirection bitmap, which is all ones but for `cleared`.
fn redirection(k: &mut Kit, cleared: Option<u32>) -> R {
    code!(k; mov(word_ptr(TSS + 0x66), 0x88));
    for offset in (0..32).step_by(4) {
        code!(k; mov(dword_ptr(TSS + 0x68 + offset), 0xFFFF_FFFFu32));
    }
    if let Some(vector) = cleared {
        code!(k; mov(byte_ptr(TSS + 0x68 + vector / 8), !(1u32 << (vector % 8)) & 0xFF));
    }
    Ok(())
}

fn vme(k: &mut Kit) -> R {
    k.check("VME: INT n through the program's own table", "3B, 20.3 and table 20-2", |k| {
        k.cr4_bits(VME, 0)?;
        redirection(k, Some(VEC))?;
        code!(k; mov(word_ptr(VEC * 4), k.off("vme.handler")); mov(word_ptr(VEC * 4 + 2), IMAGE_SEGMENT));
        v86(k, "IOPL 0", VIF, UD, "vme.int", |k| {
            // What the handler finds on the stack: IP, CS, flags with VIF as IF and with IOPL 3.
            code!(k; stc(); int(VEC as i32); label("vme.after"); ud2(); label("vme.handler"); pop(ax); pop(bx);
                pop(cx); ud2());
            Ok(())
        })?;
        let ip = k.off("vme.after");
        k.masked("IP", EXC_AX, 0xFFFF, ip)?;
        k.masked("CS", EXC_BX, 0xFFFF, IMAGE_SEGMENT)?;
        k.masked("flags pushed", EXC_CX, 0x7201, 0x3201)?;
        k.masked("VIF in the handler", EXC_FLAGS, VIF, 0)?;
        v86(k, "IOPL 3", IOPL3 | 0x200, UD, "vme.int3", |k| {
            code!(k; int(VEC as i32); ud2());
            Ok(())
        })?;
        k.masked("IF in the handler", EXC_FLAGS, 0x200, 0)
    })?;
    k.check("VME: the bitmap's one goes to the system", "3B, 20.3.1 and table 20-2", |k| {
        k.cr4_bits(VME, 0)?;
        redirection(k, None)?;
        let handler = k.imm("vectors") + VEC * 5;
        k.idt(VEC, gate(CODE32, handler, INT32 | RING3, 0))?;
        v86(k, "IOPL 0", 0, gp(0), "vme.sys0", |k| k.faulting(|k| k.int(VEC as i32)))?;
        v86(k, "IOPL 3", IOPL3, int(VEC), "vme.sys3", |k| k.int(VEC as i32))
    })?;
    k.check("VME: CLI, STI, PUSHF, POPF, IRET use VIF", "3B, 20.3.1 and 20.3.2", |k| {
        k.cr4_bits(VME, 0)?;
        redirection(k, None)?;
        v86(k, "CLI, STI, PUSHF", 0, UD, "vme.flags", |k| {
            code!(k; sti(); pushf(); pop(ax); cli(); pushf(); pop(bx); push(0x202); popf(); pushf(); pop(cx);
                ud2());
            Ok(())
        })?;
        k.masked("after STI", EXC_AX, 0x3200, 0x3200)?;
        k.masked("after CLI", EXC_BX, 0x3200, 0x3000)?;
        k.masked("after POPF", EXC_CX, 0x3200, 0x3200)?;
        k.masked("IF, IOPL and VIF", EXC_FLAGS, VIF | 0x3200, VIF)?;
        v86(k, "IRET", 0, UD, "vme.iret", |k| {
            code!(k; push(0x202); push(IMAGE_SEGMENT as i32); push(k.off("vme.iret.next")); iret();
                label("vme.iret.next"); ud2());
            Ok(())
        })?;
        k.masked("VIF after IRET", EXC_FLAGS, VIF | 0x3200, VIF)?;
        v86(k, "PUSHFD", 0, gp(0), "vme.pushfd", |k| k.faulting(|k| k.pushfd()))?;
        v86(k, "POPFD", 0, gp(0), "vme.popfd", |k| k.faulting(|k| k.popfd()))
    })?;
    k.check("VME: a pending interrupt stops STI, POPF and IRET", "3B, 20.3.2", |k| {
        k.cr4_bits(VME, 0)?;
        v86(k, "STI", VIP, gp(0), "vip.sti", |k| k.faulting(|k| k.sti()))?;
        v86(k, "POPF with IF", VIP, gp(0), "vip.popf", |k| {
            code!(k; push(0x202));
            k.faulting(|k| k.popf())
        })?;
        v86(k, "POPF with TF", 0, gp(0), "vip.tf", |k| {
            code!(k; push(0x102));
            k.faulting(|k| k.popf())
        })?;
        v86(k, "POPF without IF", VIP, UD, "vip.popf0", |k| {
            code!(k; push(2); popf(); ud2());
            Ok(())
        })?;
        v86(k, "CLI", VIP | VIF, UD, "vip.cli", |k| {
            code!(k; cli(); ud2());
            Ok(())
        })?;
        k.masked("VIF after CLI", EXC_FLAGS, VIF, 0)
    })
}

fn pvi(k: &mut Kit) -> R {
    k.check("PVI: CLI and STI in ring 3 use VIF", "3B, 20.4", |k| {
        k.cr4_bits(PVI, VME)?;
        k.user("STI", UD.anywhere(), |k| {
            code!(k; sti(); ud2());
            Ok(())
        })?;
        k.masked("IF and VIF after STI", EXC_FLAGS, VIF | 0x200, VIF)?;
        k.user("CLI", UD.anywhere(), |k| {
            code!(k; sti(); cli(); pushfd(); pop(ebx); ud2());
            Ok(())
        })?;
        k.masked("IF and VIF after CLI", EXC_FLAGS, VIF | 0x200, 0)?;
        k.masked("PUSHF shows IF itself", EXC_BX, 0x200, 0)?;
        let (inside, after) = (k.fresh(), k.fresh());
        k.arm(&after)?;
        code!(k; push(USER_DATA); push(STACK3); push(VIP | 2); push(USER32); push(k.imm(&inside)); iretd();
            label(&inside); sti(); label(&after));
        let ip = k.imm(&inside);
        k.seen("STI with VIP", gp(0), Some(ip))
    })
}

fn ports(k: &mut Kit) -> R {
    k.check("I/O permission bitmap", "1, 19.5.2", |k| {
        // Ports 0x60 and 0x61 are open.
        code!(k; mov(byte_ptr(TSS_BITMAP + 0x60 / 8), 0xFC));
        k.user("open byte", UD.anywhere(), |k| {
            code!(k; in_(al, 0x61); ud2());
            Ok(())
        })?;
        k.user("word of two open bytes", UD.anywhere(), |k| {
            code!(k; in_(ax, 0x60); ud2());
            Ok(())
        })?;
        k.user("closed byte", gp(0), |k| k.faulting(|k| k.in_(al, 0x62)))?;
        k.user("word that is half closed", gp(0), |k| k.faulting(|k| k.in_(ax, 0x61)))?;
        k.user("doubleword", gp(0), |k| k.faulting(|k| k.in_(eax, 0x60)))?;
        k.user("OUT", gp(0), |k| k.faulting(|k| k.out(0x80, al)))?;
        v86(k, "virtual-8086 mode, open", 0, UD, "io.open", |k| {
            code!(k; in_(al, 0x61); ud2());
            Ok(())
        })?;
        v86(k, "virtual-8086 mode, closed", 0, gp(0), "io.closed", |k| k.faulting(|k| k.in_(al, 0x62)))?;
        v86(k, "virtual-8086 mode, IOPL 3 does not help", IOPL3, gp(0), "io.iopl", |k| {
            k.faulting(|k| k.in_(al, 0x62))
        })?;
        code!(k; mov(byte_ptr(TSS_BITMAP + 0x60 / 8), 0xFF));
        Ok(())
    })?;
    k.check("bitmap and the TSS's limit", "1, 19.5.2", |k| {
        // Two bytes are read for a port: the bitmap of the port's byte and the next must be inside.
        code!(k; mov(byte_ptr(TSS_BITMAP + 0x60 / 8), 0));
        for (limit, exc, what) in [
            (0x68 + 0x60 / 8 + 1, UD.anywhere(), "both bytes inside"),
            (0x68 + 0x60 / 8, gp(0).anywhere(), "one byte inside"),
            (0x67, gp(0).anywhere(), "no bitmap"),
        ] {
            k.descriptor(FREE, segment(TSS, limit, TSS32, 0))?;
            code!(k; mov(eax, FREE); ltr(ax));
            k.user(what, exc, |k| {
                code!(k; in_(al, 0x61); ud2());
                Ok(())
            })?;
        }
        k.descriptor(FREE, segment(TSS, TSS_LIMIT, TSS32, 0))?;
        code!(k; mov(eax, FREE); ltr(ax); mov(word_ptr(TSS + 0x66), 0xFFFF));
        k.user("bitmap beyond the limit", gp(0), |k| k.faulting(|k| k.in_(al, 0x61)))?;
        code!(k; mov(byte_ptr(TSS_BITMAP + 0x60 / 8), 0xFF));
        Ok(())
    })?;
    k.check("INS and OUTS check the port", "1, 19.5.2; 2A, INS", |k| {
        k.user("REP INSB", gp(0), |k| {
            code!(k; mov(edx, 0x80); mov(ecx, 3); mov(edi, SCRATCH));
            k.faulting(|k| k.rep().insb())
        })?;
        k.var("ECX", EXC_CX, 3)
    })
}
