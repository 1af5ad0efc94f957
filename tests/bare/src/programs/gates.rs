//! Gates and privilege changes in 32-bit protected mode: interrupt, trap and call gates, their checks and error codes, stack
//! switches, IRET, exceptions during delivery (Intel SDM volume 3A, chapters 5 and 6).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const FLAT: u32 = 0xF_FFFF;
/// The vector that checks use.
const VEC: u32 = 0x60;

pub fn emit(k: &mut Kit) -> R {
    routines(k)?;
    interrupt_gates(k)?;
    delivery_fails(k)?;
    stack_switches(k)?;
    call_gates(k)?;
    serial_exceptions(k)
}

/// Error code of a defect in the IDT.
const fn idt_code(vector: u32, ext: u32) -> u32 {
    vector * 8 + 2 + ext
}

fn routines(k: &mut Kit) -> R {
    // A handler that notes flags, CS and stack, and returns.
    k.aside("note", |k| {
        code!(k; push(eax); pushfd(); pop(dword_ptr(V[0])); mov(eax, cs); mov(dword_ptr(V[1]), eax);
            lea(eax, dword_ptr(esp + 4));
            mov(dword_ptr(V[2]), eax); mov(eax, dword_ptr(esp + 12)); mov(dword_ptr(V[3]), eax); pop(eax);
            iretd());
        Ok(())
    })
}

fn interrupt_gates(k: &mut Kit) -> R {
    k.check("interrupt gates clear IF, trap gates do not", "3A, 6.12.1.3", |k| {
        for (access, in_handler) in [(INT32, 0), (TRAP32, 0x200)] {
            let handler = k.imm("note");
            k.idt(VEC, gate(CODE32, handler, access, 0))?;
            code!(k; push(0x4AD7); popfd(); int(VEC as i32); pushfd(); pop(ebx); mov(ecx, 2); push(ecx);
                popfd());
            k.masked("IF in the handler", V[0], 0x200, in_handler)?;
            k.masked("NT and TF in the handler", V[0], 0x4100, 0)?;
            k.masked("flags kept in the handler", V[0], 0x8D5, 0x8D5)?;
            code!(k; and(ebx, 0x3_7FD7));
            k.eq("flags afterwards", ebx, 0x4AD7)?;
        }
        Ok(())
    })?;
    k.check("16-bit gates push words", "3A, 6.12; 3B, 21.3", |k| {
        k.elsewhere(32, "note16", |k| {
            code!(k; mov(dword_ptr(V[2]), esp); mov(eax, dword_ptr(esp)); movzx(ecx, word_ptr(esp + 4));
                iret());
            Ok(())
        });
        // A 16-bit gate reaches only the first 64 KiB of a segment: one that starts with the image.
        k.descriptor(FREE, segment(0, FLAT, CODE, G | B))?;
        k.descriptor(FREE + 8, segment(IMAGE, 0xFFFF, CODE, B))?;
        let (handler, back) = (k.off("note16"), k.fresh());
        for access in [INT16, TRAP16] {
            k.idt(VEC, gate(FREE + 8, handler, access, 0))?;
            // The return address has 16 bits, too.
            let inside = k.fresh();
            let done = format!("{inside}.done");
            code!(k; mov(esp, STACK); jmp_far(FREE as u16 + 8, k.off(&inside)); label(&inside); stc();
                int(VEC as i32); label(&format!("{inside}.ip"));
                jmp_far(CODE32 as u16, k.imm(&done)); label(&done));
            let frame = (FREE + 8) << 16 | k.off(&format!("{inside}.ip"));
            k.eq("IP and CS", eax, frame)?;
            code!(k; and(ecx, 0xFFFF_F003u32));
            k.eq("flags", ecx, 3)?;
            k.var("stack pointer", V[2], STACK - 6)?;
        }
        k.label(&back)
    })?;
    k.check("gates' privilege", "3A, 6.12.1.1", |k| {
        k.user("INT n to a gate of ring 0", gp(idt_code(VEC, 0)).anywhere(), |k| {
            k.faulting(|k| k.int(VEC as i32))
        })?;
        k.user("INT3 to a gate of ring 0", gp(idt_code(3, 0)).anywhere(), |k| k.faulting(|k| k.int3()))?;
        k.user("INTO to a gate of ring 0", gp(idt_code(4, 0)).anywhere(), |k| {
            code!(k; mov(al, 0x7F); inc(al));
            k.faulting(|k| CodeAssembler::into(k))
        })?;
        k.user("INT1 to a gate of ring 0", DB.trap(), |k| k.int1())?;
        k.user("UD2 to a gate of ring 0", UD.anywhere(), |k| k.ud2())?;
        let handlers = k.imm("vectors");
        k.idt(3, gate(CODE32, handlers + 15, INT32 | RING3, 0))?;
        k.user("INT3 to a gate of ring 3", BP, |k| k.int3())
    })?;
    k.check("INTO without overflow", "2A, INT n", |k| {
        code!(k; xor(eax, eax));
        CodeAssembler::into(k)
    })?;
    k.check("RF: set in the flags that faults push", "3B, 17.3.1.1", |k| {
        k.raises("UD2", UD, |k| k.ud2())?;
        k.masked("RF pushed by a fault", EXC_FLAGS, 0x1_0000, 0x1_0000)?;
        k.raises("INT n", int(VEC), |k| k.int(VEC as i32))?;
        k.masked("RF pushed by INT n", EXC_FLAGS, 0x1_0000, 0)?;
        k.raises("INT3", BP, |k| k.int3())?;
        k.masked("RF pushed by INT3", EXC_FLAGS, 0x1_0000, 0)
    })
}

fn delivery_fails(k: &mut Kit) -> R {
    k.check("defects of the gate", "3A, 6.13; 2A, INT n", |k| {
        let handler = k.imm("note");
        let int_n = |k: &mut Kit, what: &str, exc: Exc| k.raises(what, exc, |k| k.int(VEC as i32));
        for (what, descriptor, exc) in [
            ("not present", gate(CODE32, handler, INT32 & 0x7F, 0), np(idt_code(VEC, 0))),
            ("a call gate", gate(CODE32, handler, CALL32, 0), gp(idt_code(VEC, 0))),
            ("a code segment", segment(0, FLAT, CODE, G | B), gp(idt_code(VEC, 0))),
            ("nothing", 0, gp(idt_code(VEC, 0))),
            ("null selector", gate(0, handler, INT32, 0), gp(0)),
            ("selector beyond the GDT", gate(GDT_SIZE, handler, INT32, 0), gp(GDT_SIZE)),
            ("selector of data", gate(DATA, handler, INT32, 0), gp(DATA)),
            ("selector of a TSS", gate(TSS_SEL, handler, INT32, 0), gp(TSS_SEL)),
            ("code of ring 3", gate(USER32, handler, INT32, 0), gp(USER32 & !3)),
            ("code not present", gate(FREE, handler, INT32, 0), np(FREE)),
            ("beyond the limit", gate(FREE + 8, handler, TRAP32, 0), gp(0)),
            ("task gate to data", gate(DATA, 0, TASK, 0), gp(DATA)),
            ("task gate to a busy task", gate(TSS_SEL, 0, TASK, 0), gp(TSS_SEL)),
            ("task gate into the LDT", gate(TSS_SEL | 4, 0, TASK, 0), gp(TSS_SEL | 4)),
        ] {
            k.descriptor(FREE, segment(0, FLAT, 0x1B, G | B))?;
            k.descriptor(FREE + 8, segment(0, 0xFFF, CODE, B))?;
            k.idt(VEC, descriptor)?;
            int_n(k, what, exc)?;
        }
        Ok(())
    })?;
    k.check("IDT's limit", "3A, 6.10", |k| {
        code!(k; mov(word_ptr(V[0]), VEC * 8 + 6); mov(dword_ptr(V[0] + 2), IDT); lidt(fword_ptr(V[0])));
        k.raises("one byte short", gp(idt_code(VEC, 0)), |k| k.int(VEC as i32))?;
        code!(k; mov(word_ptr(V[0]), VEC * 8 + 7); lidt(fword_ptr(V[0])));
        k.raises("all of the entry", int(VEC), |k| k.int(VEC as i32))
    })?;
    k.check("EXT tells that no INT n was it", "3A, 6.13", |k| {
        let handler = k.imm("note");
        k.idt(6, gate(CODE32, handler, INT32 & 0x7F, 0))?;
        k.raises("#UD, gate not present", np(idt_code(6, 1)), |k| k.ud2())?;
        k.idt(6, gate(DATA, handler, INT32, 0))?;
        k.raises("#UD, selector of data", gp(DATA | 1), |k| k.ud2())?;
        k.idt(6, gate(0, handler, INT32, 0))?;
        k.raises("#UD, null selector", gp(1), |k| k.ud2())?;
        k.idt(3, gate(CODE32, handler, INT32 & 0x7F, 0))?;
        k.raises("INT3, gate not present", np(idt_code(3, 0)), |k| k.int3())?;
        k.idt(1, gate(CODE32, handler, INT32 & 0x7F, 0))?;
        k.raises("INT1, gate not present", np(idt_code(1, 1)), |k| k.int1())
    })
}

/// Makes exception `vector` a switch to another task, in which the handler finds the error code on a stack of its own.
fn by_task(k: &mut Kit, vector: u32) -> R {
    k.idt(vector, gate(TSS_B_SEL, 0, TASK, 0))?;
    let handler = k.imm("vectors") + vector * 5;
    k.task(TSS_B, PML4, handler, STACK_B)
}

fn stack_switches(k: &mut Kit) -> R {
    k.check("interrupt from ring 3", "3A, 6.12.1 and figure 6-4", |k| {
        k.user("frame", gp(0).anywhere(), |k| {
            code!(k; mov(esp, STACK3 - 12); hlt());
            Ok(())
        })?;
        k.var("saved ESP", EXC_SP, STACK3 - 12)?;
        k.var("saved SS", EXC_SS, USER_DATA)?;
        k.var("ring 0's ESP", EXC_HANDLER_SP, STACK0 - 24)
    })?;
    k.check("interrupt through conforming code stays in ring 3", "3A, 6.12.1.1", |k| {
        let handler = k.imm("note");
        k.idt(VEC, gate(CONFORMING, handler, INT32 | RING3, 0))?;
        k.user("after the handler", UD.anywhere(), |k| {
            code!(k; int(VEC as i32); ud2());
            Ok(())
        })?;
        k.masked("CS in the handler", V[1], 0xFFFF, CONFORMING | 3)?;
        k.var("ESP in the handler", V[2], STACK3 - 12)
    })?;
    k.check("defects of the inner stack", "3A, 6.15 (#TS, #SS, #NP); 2A, INT n", |k| {
        for (what, selector, exc) in [
            ("null", 0u32, ts(0)),
            ("RPL 3", DATA | 3, ts(DATA)),
            ("DPL 3", USER_DATA & !3, ts(USER_DATA & !3)),
            ("code", CODE32, ts(CODE32)),
            ("read-only", FREE, ts(FREE)),
            ("beyond the GDT", GDT_SIZE, ts(GDT_SIZE)),
            ("not present", FREE + 8, sf(FREE + 8)),
            ("too small", FREE + 16, sf(FREE + 16)),
        ] {
            k.descriptor(FREE, segment(0, FLAT, 0x91, G | B))?;
            k.descriptor(FREE + 8, segment(0, FLAT, 0x13, G | B))?;
            k.descriptor(FREE + 16, segment(0, STACK0 - 1, WRITABLE | DOWN, B))?;
            let handler = k.imm("note");
            k.idt(VEC, gate(CODE32, handler, INT32 | RING3, 0))?;
            for vector in [10, 12] {
                by_task(k, vector)?;
            }
            // One task for two vectors: the handler takes its vector from its entry.
            let entry = k.imm("vectors") + if exc.vector() == 10 { 50 } else { 60 };
            code!(k; mov(dword_ptr(TSS_B + 0x20), entry); mov(dword_ptr(TSS + 8), selector));
            k.descriptor(TSS_B_SEL, segment(TSS_B, 0x67, TSS32, 0))?;
            k.descriptor(TSS_SEL, segment(TSS, TSS_LIMIT, TSS32, 0))?;
            code!(k; mov(eax, TSS_SEL); ltr(ax));
            let (inside, after) = (k.fresh(), k.fresh());
            k.arm(&after)?;
            code!(k; push(USER_DATA); push(STACK3); push(2); push(USER32); push(k.imm(&inside)); iretd();
                label(&inside);
                int(VEC as i32); label(&after));
            k.seen(what, exc, None)?;
            // The outgoing task saw nothing: it is still at the instruction, in ring 3.
            let ip = k.imm(&inside);
            k.var("EIP of the task that faulted", TSS + 0x20, ip)?;
            k.masked("its CS", TSS + 0x4C, 0xFFFF, USER32)?;
            k.var("its ESP", TSS + 0x38, STACK3)?;
        }
        Ok(())
    })
}

fn call_gates(k: &mut Kit) -> R {
    k.aside("gate.target", |k| {
        code!(k; mov(dword_ptr(V[2]), esp); mov(eax, cs); mov(dword_ptr(V[1]), eax);
            mov(eax, dword_ptr(esp + 8)); mov(dword_ptr(V[3]), eax);
            mov(eax, dword_ptr(esp + 12)); mov(dword_ptr(V[4]), eax); mov(eax, dword_ptr(esp + 16));
            mov(dword_ptr(V[5]), eax);
            mov(eax, dword_ptr(esp + 20)); mov(dword_ptr(V[6]), eax); retf_1(8));
        Ok(())
    })?;
    k.aside("gate.plain", |k| {
        code!(k; mov(dword_ptr(V[2]), esp); mov(eax, cs); mov(dword_ptr(V[1]), eax); retf());
        Ok(())
    })?;
    k.check("call gate within ring 0", "3A, 5.8.4; 2A, CALL", |k| {
        let target = k.imm("gate.plain");
        k.descriptor(FREE, gate(CODE32, target, CALL32, 5))?;
        code!(k; mov(ebx, esp); call_far(FREE as u16, 0xDEAD_BEEFu32); sub(ebx, esp));
        k.eq("ESP", ebx, 0)?;
        k.var("no parameters are copied", V[2], STACK - 8)
    })?;
    k.check("call gate to ring 0 with parameters", "3A, 5.8.5; 2A, CALL", |k| {
        let target = k.imm("gate.target");
        k.descriptor(FREE, gate(CODE32, target, CALL32 | RING3, 2))?;
        k.user("after the call", UD.anywhere(), |k| {
            code!(k; push(0x1111); push(0x2222); call_far(FREE as u16 | 3, 0); mov(ebx, esp); ud2());
            Ok(())
        })?;
        k.var("CS", V[1], CODE32)?;
        k.var("ring 0's ESP", V[2], STACK0 - 24)?;
        k.var("last parameter", V[3], 0x2222)?;
        k.var("first parameter", V[4], 0x1111)?;
        k.var("outer ESP in the frame", V[5], STACK3 - 8)?;
        k.masked("outer SS in the frame", V[6], 0xFFFF, USER_DATA)?;
        k.var("ESP after RETF 8", EXC_BX, STACK3)
    })?;
    k.check("16-bit call gate", "3A, 5.8.3; 3B, 21.4", |k| {
        k.aside("gate.16", |k| {
            code!(k; mov(dword_ptr(V[2]), esp); movzx(eax, word_ptr(esp + 4)); mov(dword_ptr(V[3]), eax);
                raw(&[0x66, 0xCA, 2, 0]));
            Ok(())
        })?;
        // Both ends must lie in the first 64 KiB of their segments.
        k.descriptor(FREE + 8, segment(IMAGE, 0xFFFF, CODE, B))?;
        k.descriptor(FREE + 16, segment(IMAGE, 0xFFFF, CODE | RING3, B))?;
        let target = k.off("gate.16");
        k.descriptor(FREE, gate(FREE + 8, target, CALL16 | RING3, 1))?;
        k.user("after the call", UD.anywhere(), |k| {
            let inside = k.fresh();
            code!(k; jmp_far((FREE + 16) as u16 | 3, k.off(&inside)); label(&inside);
                raw(&[0x66, 0x68, 0x34, 0x12]);
                call_far(FREE as u16 | 3, 0); mov(ebx, esp); ud2());
            Ok(())
        })?;
        k.var("ring 0's ESP", V[2], STACK0 - 10)?;
        k.var("parameter", V[3], 0x1234)?;
        k.masked("ESP after RETF 2", EXC_BX, 0xFFFF, STACK3 & 0xFFFF)
    })?;
    k.check("call gate to ring 1", "3A, 5.8.5", |k| {
        let target = k.imm("gate.plain");
        k.descriptor(FREE, gate(RING1_CODE, target, CALL32 | RING3, 0))?;
        k.user("after the call", UD.anywhere(), |k| {
            code!(k; mov(eax, RING1_DATA | 3); call_far(FREE as u16 | 3, 0); ud2());
            Ok(())
        })?;
        k.var("CS", V[1], RING1_CODE)?;
        k.var("ring 1's ESP", V[2], STACK1 - 16)
    })?;
    k.check("call gate to conforming code", "3A, 5.8.4", |k| {
        let target = k.imm("gate.plain");
        k.descriptor(FREE, gate(CONFORMING, target, CALL32 | RING3, 0))?;
        k.user("after the call", UD.anywhere(), |k| {
            code!(k; call_far(FREE as u16 | 3, 0); ud2());
            Ok(())
        })?;
        k.var("CS", V[1], CONFORMING | 3)?;
        k.var("ESP", V[2], STACK3 - 8)
    })?;
    k.check("calls through gates that fail", "2A, CALL; 3A, 5.8.4", |k| {
        let target = k.imm("gate.plain");
        for (what, descriptor, exc) in [
            ("not present", gate(CODE32, target, CALL32 & 0x7F, 0), np(FREE)),
            ("null selector", gate(0, target, CALL32, 0), gp(0)),
            ("beyond the GDT", gate(GDT_SIZE, target, CALL32, 0), gp(GDT_SIZE)),
            ("data", gate(DATA, target, CALL32, 0), gp(DATA)),
            ("code of ring 3", gate(USER32, target, CALL32, 0), gp(USER32 & !3)),
            ("code not present", gate(FREE + 8, target, CALL32, 0), np(FREE + 8)),
            ("beyond the limit", gate(FREE + 16, target, CALL32, 0), gp(0)),
            ("an interrupt gate", gate(CODE32, target, INT32, 0), gp(FREE)),
        ] {
            k.descriptor(FREE, descriptor)?;
            k.descriptor(FREE + 8, segment(0, FLAT, 0x1B, G | B))?;
            k.descriptor(FREE + 16, segment(0, 0xFFF, CODE, B))?;
            k.raises(what, exc, |k| k.call_far(FREE as u16, 0))?;
            k.raises(what, exc, |k| k.jmp_far(FREE as u16, 0))?;
        }
        k.descriptor(FREE, gate(CODE32, target, CALL32, 0))?;
        k.raises("RPL above the gate's DPL", gp(FREE), |k| k.call_far(FREE as u16 | 1, 0))?;
        k.user("gate of ring 0 from ring 3", gp(FREE), |k| k.faulting(|k| k.call_far(FREE as u16, 0)))?;
        k.descriptor(FREE, gate(CODE32, target, CALL32 | RING3, 0))?;
        k.user("jump to an inner ring", gp(CODE32), |k| k.faulting(|k| k.jmp_far(FREE as u16, 0)))?;
        for (what, selector, exc) in [
            ("inner stack null", 0u32, ts(0)),
            ("inner stack of ring 3", USER_DATA & !3, ts(USER_DATA & !3)),
            ("inner stack not present", (FREE + 8) | 1, sf(FREE + 8)),
        ] {
            k.descriptor(FREE + 8, segment(0, FLAT, 0x33, G | B))?;
            // The gate leads to ring 1, the handlers to ring 0.
            k.descriptor(FREE, gate(RING1_CODE, target, CALL32 | RING3, 0))?;
            code!(k; mov(dword_ptr(TSS + 0x10), selector));
            k.user(what, exc, |k| k.faulting(|k| k.call_far(FREE as u16, 0)))?;
        }
        Ok(())
    })?;
    k.check("jump through a call gate", "2A, JMP", |k| {
        let next = k.fresh();
        let target = k.imm(&next);
        k.descriptor(FREE, gate(CODE32, target, CALL32, 0))?;
        code!(k; mov(ebx, esp); jmp_far(FREE as u16, 0); ud2(); label(&next); sub(ebx, esp));
        k.eq("ESP", ebx, 0)
    })
}

fn serial_exceptions(k: &mut Kit) -> R {
    k.check("double faults", "3A, 6.15 (#DF) and table 6-5", |k| {
        let handler = k.imm("note");
        for (what, vector) in [("#GP", 13), ("#DE", 0), ("#NP", 11)] {
            // A contributory exception whose gate is not present: #NP comes on top of it.
            k.idt(11, gate(CODE32, handler, INT32, 0))?;
            k.idt(vector, gate(CODE32, handler, INT32 & 0x7F, 0))?;
            k.descriptor(FREE, segment(0, FLAT, 0x13, G | B))?;
            code!(k; xor(ecx, ecx); mov(eax, FREE));
            k.raises(what, DF, |k| match vector {
                13 => k.mov(dword_ptr(0).cs(), eax),
                0 => k.div(ecx),
                _ => k.mov(ds, eax),
            })?;
        }
        Ok(())
    })?;
    k.check("serial exceptions", "3A, table 6-5", |k| {
        // Benign first: what its delivery raises stands alone.
        let handler = k.imm("note");
        k.idt(7, gate(CODE32, handler, INT32 & 0x7F, 0))?;
        k.cr0_bits(8, 0)?;
        k.raises("#NM then #NP", np(idt_code(7, 1)), |k| k.fnop())
    })?;
    k.check("double fault by a task gate", "3A, 6.15 (#DF)", |k| {
        by_task(k, 8)?;
        let handler = k.imm("note");
        k.idt(13, gate(CODE32, handler, INT32 & 0x7F, 0))?;
        let at = k.fresh();
        code!(k; label(&at));
        k.raises("double fault", DF, |k| k.mov(dword_ptr(0).cs(), eax))?;
        k.var("stack of the task", EXC_HANDLER_SP, STACK_B - 4)?;
        code!(k; str(ebx); and(ebx, 0xFFFF));
        k.eq("task register", ebx, TSS_B_SEL)?;
        k.masked("link to the task that faulted", TSS_B, 0xFFFF, TSS_SEL)
    })
}
