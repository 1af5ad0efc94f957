//! Protected mode without gates: segment limits and rights, loads of segment registers, far transfers, the instructions that
//! look at descriptors, what ring 3 may not do (Intel SDM volume 3A, chapters 3 and 5).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const FLAT: u32 = 0xF_FFFF;

pub fn emit(k: &mut Kit) -> R {
    limits(k)?;
    rights(k)?;
    loads(k)?;
    stacks(k)?;
    transfers(k)?;
    looking(k)?;
    table_registers(k)?;
    ring3(k)
}

/// Loads ES with a segment made for the occasion.
fn es_with(k: &mut Kit, descriptor: u64) -> R {
    k.descriptor(FREE, descriptor)?;
    code!(k; mov(eax, FREE); mov(es, eax));
    Ok(())
}

fn limits(k: &mut Kit) -> R {
    k.check("byte-granular limit", "3A, 5.3", |k| {
        let small = segment(SCRATCH, 0xFF, WRITABLE, B);
        k.poke(SCRATCH + 0xFC, 0x1122_3344)?;
        es_with(k, small)?;
        code!(k; mov(ebx, dword_ptr(0xFC).es()));
        k.eq("last doubleword", ebx, 0x1122_3344)?;
        for (offset, what) in [(0xFD, "doubleword at 0xFD"), (0x100, "above"), (0xFFFF_FFFFu32, "at -1")] {
            es_with(k, small)?;
            k.raises(what, gp(0), |k| k.mov(ebx, dword_ptr(offset).es()))?;
        }
        es_with(k, small)?;
        k.raises("write", gp(0), |k| k.mov(word_ptr(0xFF).es(), 1))?;
        es_with(k, small)?;
        k.raises("quadword", gp(0), |k| k.movq(mm0, qword_ptr(0xF9).es()))?;
        es_with(k, small)?;
        k.raises("xmmword", gp(0), |k| k.movups(xmm0, xmmword_ptr(0xF1).es()))?;
        es_with(k, small)?;
        k.movups(xmm0, xmmword_ptr(0xF0).es())
    })?;
    k.check("page-granular limit", "3A, 3.4.5 and 5.3", |k| {
        let page = segment(SCRATCH, 0, WRITABLE, G | B);
        es_with(k, page)?;
        code!(k; mov(ebx, dword_ptr(0xFFC).es()));
        k.raises("doubleword at 0xFFD", gp(0), |k| k.mov(ebx, dword_ptr(0xFFD).es()))
    })?;
    k.check("expand-down, 32-bit", "3A, 5.3", |k| {
        let down = segment(SCRATCH, 0xFF, WRITABLE | DOWN, B);
        es_with(k, down)?;
        code!(k; mov(dword_ptr(0x100).es(), 7); mov(ebx, dword_ptr(SCRATCH + 0x100)));
        k.eq("lowest doubleword", ebx, 7)?;
        for (offset, what) in [(0xFF, "at the limit"), (0, "at 0")] {
            es_with(k, down)?;
            k.raises(what, gp(0), |k| k.mov(bl, byte_ptr(offset).es()))?;
        }
        Ok(())
    })?;
    k.check("expand-down, 16-bit", "3A, 5.3", |k| {
        let down = segment(SCRATCH, 0xFF, WRITABLE | DOWN, 0);
        es_with(k, down)?;
        code!(k; mov(bl, byte_ptr(0x100).es()));
        for (offset, what) in [(0xFF, "at the limit"), (0xFFFD, "across 64 KiB"), (0x1_0000, "above 64 KiB")]
        {
            es_with(k, down)?;
            k.raises(what, gp(0), |k| k.mov(ebx, dword_ptr(offset).es()))?;
        }
        Ok(())
    })?;
    k.check("string instruction reaches the limit", "2B, REP; 3A, 5.3", |k| {
        es_with(k, segment(SCRATCH, 0x1F, WRITABLE, B))?;
        code!(k; mov(edi, 0x18); mov(ecx, 4); mov(eax, 0x5555_5555));
        k.raises("REP STOSD", gp(0), |k| k.rep().stosd())?;
        k.eq("EDI", edi, 0x20)?;
        k.eq("ECX", ecx, 2)?;
        es_with(k, segment(SCRATCH, 0x1F, WRITABLE, B))?;
        code!(k; std(); mov(edi, 4); mov(ecx, 9));
        k.raises("backwards", gp(0), |k| k.rep().stosd())?;
        k.eq("EDI", edi, 0xFFFF_FFFC)?;
        k.eq("ECX", ecx, 7)
    })?;
    k.check("code segment's limit", "3A, 5.3", |k| {
        let (inside, after) = (k.fresh(), k.fresh());
        let target = k.imm(&inside);
        k.descriptor(FREE, segment(0, target, CODE, B))?;
        k.arm(&after)?;
        // One byte is inside.
        code!(k; jmp_far(FREE as u16, target); label(&inside); nop(); nop(); label(&after));
        k.var("vector", EXC_VECTOR, 13)?;
        k.var("error code", EXC_ERROR, 0)?;
        k.var("saved EIP", EXC_IP, target + 1)?;
        k.var("saved CS", EXC_CS, FREE)
    })?;
    k.check("instruction beyond the code segment's limit", "3A, 5.3; 3A, 6.15", |k| {
        let (inside, after) = (k.fresh(), k.fresh());
        let target = k.imm(&inside);
        k.descriptor(FREE, segment(0, target + 2, CODE, B))?;
        k.arm(&after)?;
        // Three bytes of MOV EAX, imm32 are inside.
        code!(k; xor(eax, eax); jmp_far(FREE as u16, target); label(&inside); mov(eax, 7); label(&after));
        k.var("EAX", EXC_AX, 0)?;
        k.var("vector", EXC_VECTOR, 13)?;
        k.var("saved EIP", EXC_IP, target)
    })
}

fn rights(k: &mut Kit) -> R {
    k.check("rights of segments", "3A, 3.4.5.1 and 5.5", |k| {
        es_with(k, segment(0, FLAT, 0x91, G | B))?;
        code!(k; mov(ebx, dword_ptr(SCRATCH).es()));
        k.raises("write to a read-only segment", gp(0), |k| k.mov(dword_ptr(SCRATCH).es(), 1))?;
        es_with(k, segment(0, FLAT, CODE, G | B))?;
        code!(k; mov(ebx, dword_ptr(SCRATCH).es()));
        k.raises("write to a code segment", gp(0), |k| k.mov(dword_ptr(SCRATCH).es(), 1))?;
        k.raises("write through CS", gp(0), |k| k.mov(dword_ptr(SCRATCH).cs(), 1))?;
        es_with(k, segment(0, FLAT, 0x91, G | B))?;
        k.raises("read-modify-write", gp(0), |k| k.add(dword_ptr(SCRATCH).es(), 1))?;
        // CMPXCHG writes even if it does not match.
        es_with(k, segment(0, FLAT, 0x91, G | B))?;
        k.raises("CMPXCHG", gp(0), |k| k.cmpxchg(dword_ptr(SCRATCH).es(), ecx))
    })?;
    k.check("execute-only code", "3A, 3.4.5.1", |k| {
        let (inside, after, at) = (k.fresh(), k.fresh(), k.fresh());
        k.descriptor(FREE, segment(0, FLAT, 0x99, G | B))?;
        k.arm(&after)?;
        code!(k; jmp_far(FREE as u16, k.imm(&inside)); label(&inside); label(&at);
            mov(eax, dword_ptr(SCRATCH).cs());
            label(&after));
        k.var("vector", EXC_VECTOR, 13)?;
        let at = k.imm(&at);
        k.var("saved EIP", EXC_IP, at)
    })?;
    k.check("null selectors", "3A, 3.4.2 and 5.4.1", |k| {
        for selector in 0..4u32 {
            code!(k; mov(eax, selector); mov(es, eax); mov(fs, eax); mov(gs, eax); mov(ebx, gs));
            k.eq("selector", ebx, selector)?;
            k.raises("read through a null selector", gp(0), |k| k.mov(ebx, dword_ptr(SCRATCH).es()))?;
            code!(k; mov(eax, selector));
            k.raises("null selector in SS", gp(0), |k| k.mov(ss, eax))?;
        }
        Ok(())
    })
}

/// What a load of a segment register with a descriptor does.
fn load_raises(k: &mut Kit, what: &str, descriptor: u64, rpl: u32, exc: Exc, stack: bool) -> R {
    k.descriptor(FREE, descriptor)?;
    code!(k; mov(eax, FREE | rpl));
    k.raises(what, exc, |k| if stack { k.mov(ss, eax) } else { k.mov(es, eax) })
}

fn loads(k: &mut Kit) -> R {
    let data = |access| segment(0, FLAT, access, G | B);
    k.check("loads of data segments", "3A, 5.4 to 5.6; 2B, MOV", move |k| {
        load_raises(k, "execute-only code", data(0x99), 0, gp(FREE), false)?;
        load_raises(k, "system descriptor", data(0x82), 0, gp(FREE), false)?;
        load_raises(k, "call gate", gate(CODE32, 0, CALL32, 0), 0, gp(FREE), false)?;
        load_raises(k, "RPL 3, DPL 0", data(WRITABLE), 3, gp(FREE), false)?;
        load_raises(k, "RPL 2, DPL 1", data(WRITABLE | RING1), 2, gp(FREE), false)?;
        load_raises(k, "not present", data(0x13), 0, np(FREE), false)?;
        load_raises(k, "privilege before presence", data(0x13), 3, gp(FREE), false)?;
        code!(k; mov(eax, GDT_SIZE));
        k.raises("beyond the GDT", gp(GDT_SIZE), |k| k.mov(ds, eax))?;
        code!(k; mov(eax, GDT_SIZE | 3));
        k.raises("beyond the GDT, RPL 3", gp(GDT_SIZE), |k| k.mov(fs, eax))?;
        code!(k; mov(eax, 4));
        k.raises("no LDT", gp(4), |k| k.mov(gs, eax))?;
        // These are allowed.
        k.descriptor(FREE, data(WRITABLE | RING3))?;
        k.descriptor(FREE + 8, data(0x9F))?;
        code!(k; mov(eax, FREE); mov(es, eax); mov(eax, FREE + 8 + 3); mov(fs, eax); mov(ebx, fs));
        k.eq("conforming code with RPL 3", ebx, FREE + 8 + 3)
    })?;
    k.check("loads of SS", "2B, MOV; 3A, 5.7", move |k| {
        load_raises(k, "read-only", data(0x91), 0, gp(FREE), true)?;
        load_raises(k, "code", data(CODE), 0, gp(FREE), true)?;
        load_raises(k, "RPL 3", data(WRITABLE), 3, gp(FREE), true)?;
        load_raises(k, "DPL 3", data(WRITABLE | RING3), 0, gp(FREE), true)?;
        load_raises(k, "not present", data(0x13), 0, sf(FREE), true)?;
        code!(k; mov(eax, GDT_SIZE));
        k.raises("beyond the GDT", gp(GDT_SIZE), |k| k.mov(ss, eax))
    })?;
    k.check("a failed load changes nothing", "2B, POP; 2A, LDS", move |k| {
        k.descriptor(FREE, data(0x13))?;
        code!(k; push(FREE); mov(ebx, esp));
        k.raises("POP ES", np(FREE), |k| k.pop(es))?;
        code!(k; sub(ebx, esp));
        k.eq("ESP", ebx, 0)?;
        code!(k; mov(dword_ptr(SCRATCH), 0x1111); mov(dword_ptr(SCRATCH + 4), FREE); mov(ebx, 0x2222));
        k.raises("LES", np(FREE), |k| k.les(ebx, fword_ptr(SCRATCH)))?;
        k.eq("EBX", ebx, 0x2222)
    })?;
    k.check("far pointers and pops of segments", "2A, LDS; 2B, POP", |k| {
        code!(k; mov(dword_ptr(SCRATCH), 0x1234_5678); mov(dword_ptr(SCRATCH + 4), USER_DATA));
        code!(k; les(ebx, fword_ptr(SCRATCH)); lfs(ecx, fword_ptr(SCRATCH)); lgs(edx, fword_ptr(SCRATCH));
            mov(eax, es); mov(esi, fs); mov(edi, gs));
        k.eq("LES: EBX", ebx, 0x1234_5678)?;
        k.eq("LFS: ECX", ecx, 0x1234_5678)?;
        k.eq("LGS: EDX", edx, 0x1234_5678)?;
        for register in [eax, esi, edi] {
            k.eq("segment", register, USER_DATA)?;
        }
        code!(k; lds(ebx, fword_ptr(SCRATCH)); mov(eax, ds); mov(ecx, DATA); mov(ds, ecx));
        k.eq("LDS: DS", eax, USER_DATA)?;
        code!(k; mov(dword_ptr(SCRATCH), STACK - 0x40); mov(dword_ptr(SCRATCH + 4), DATA);
            lss(esp, fword_ptr(SCRATCH)); mov(ebx, esp); mov(esp, STACK));
        k.eq("LSS: ESP", ebx, STACK - 0x40)?;
        // 32-bit pops take four bytes, of which two count.
        code!(k; push(0x1234_0000 | USER_DATA); push(0xABCD_0000 | DATA); push(USER_DATA); push(DATA);
            push(USER_DATA); pop(es); pop(ss); pop(fs); pop(ds); pop(gs);
            mov(eax, esp); mov(ebx, es); mov(ecx, fs); mov(edx, gs));
        k.eq("ESP", eax, STACK)?;
        for (what, register) in [("ES", ebx), ("FS", ecx), ("GS", edx)] {
            k.eq(what, register, USER_DATA)?;
        }
        // With a 16-bit operand.
        code!(k; mov(eax, DATA); raw(&[0x66, 0x8E, 0xC0]); mov(ebx, es); mov(ecx, USER_DATA);
            raw(&[0x0F, 0x00, 0xE1]));
        k.eq("MOV ES, AX", ebx, DATA)?;
        k.holds("VERR of a 32-bit register", |c, to| c.je(to))?;
        code!(k; mov(ecx, CODE32); raw(&[0x0F, 0x00, 0xE9]));
        k.holds("VERW of a 32-bit register", |c, to| c.jne(to))
    })?;
    k.check("the accessed bit", "3A, 3.4.5.1", move |k| {
        es_with(k, data(0x92))?;
        k.masked("access byte after the load", GDT + FREE + 4, 0xFF00, 0x9300)?;
        k.descriptor(FREE, data(0x92))?;
        code!(k; mov(eax, FREE); lar(ebx, eax); verr(ax); verw(ax); lsl(ebx, eax));
        k.masked("access byte after LAR, VERR, VERW, LSL", GDT + FREE + 4, 0xFF00, 0x9200)?;
        let inside = k.fresh();
        k.descriptor(FREE, data(0x9A))?;
        code!(k; jmp_far(FREE as u16, k.imm(&inside)); label(&inside);
            jmp_far(CODE32 as u16, k.imm(&format!("{inside}.back"))));
        k.label(&format!("{inside}.back"))?;
        k.masked("access byte after a far jump", GDT + FREE + 4, 0xFF00, 0x9B00)
    })?;
    k.check("descriptors are cached", "3A, 3.4.3", move |k| {
        es_with(k, segment(SCRATCH, 0xFF, WRITABLE, B))?;
        k.descriptor(FREE, 0)?;
        code!(k; mov(dword_ptr(SCRATCH + 8), 0x77); mov(ebx, dword_ptr(8).es()));
        k.eq("read through the cached descriptor", ebx, 0x77)
    })?;
    k.check("LDT", "3A, 2.4.2 and 3.5.1", move |k| {
        code!(k; mov(eax, LDT_SEL); lldt(ax); sldt(ebx); and(ebx, 0xFFFF));
        k.eq("SLDT", ebx, LDT_SEL)?;
        k.poke(LDT + 8, segment(SCRATCH, 0xFF, WRITABLE, B))?;
        code!(k; mov(eax, 12); mov(es, eax); mov(dword_ptr(SCRATCH), 0x99); mov(ebx, dword_ptr(0).es()));
        k.eq("read through a segment of the LDT", ebx, 0x99)?;
        // Only selector 0 of the GDT is null.
        k.poke(LDT, segment(SCRATCH, 0xFF, WRITABLE, B))?;
        code!(k; mov(eax, 4); mov(es, eax); mov(ebx, dword_ptr(0).es()));
        k.eq("read through the first segment of the LDT", ebx, 0x99)?;
        code!(k; mov(eax, LDT_SIZE | 4));
        k.raises("beyond the LDT", gp(LDT_SIZE | 4), |k| k.mov(es, eax))?;
        code!(k; mov(eax, DATA));
        k.raises("LLDT of data", gp(DATA), |k| k.lldt(ax))?;
        code!(k; mov(eax, 12));
        k.raises("LLDT from the LDT", gp(12), |k| k.lldt(ax))?;
        k.descriptor(FREE, segment(LDT, 0xFF, 0x02, 0))?;
        code!(k; mov(eax, FREE));
        k.raises("LLDT not present", np(FREE), |k| k.lldt(ax))
    })
}

fn stacks(k: &mut Kit) -> R {
    k.check("stack limit", "3A, 5.3; 3A, 6.15 (#SS)", |k| {
        // The stack lies at 0x8000 as ever; the limit is just above.
        let limited = |k: &mut Kit| {
            k.descriptor(FREE, segment(0, STACK + 0xFFF, WRITABLE, B))?;
            code!(k; mov(eax, FREE); mov(ss, eax));
            Ok(())
        };
        limited(k)?;
        k.raises("read through SS", sf(0), |k| k.mov(ebx, dword_ptr(STACK + 0xFFD).ss()))?;
        limited(k)?;
        code!(k; mov(ebp, STACK + 0x1000));
        k.raises("read through EBP", sf(0), |k| k.mov(bl, byte_ptr(ebp)))?;
        limited(k)?;
        code!(k; mov(ebp, STACK + 0x1000));
        k.raises("LEAVE", sf(0), |k| k.leave())
    })?;
    k.check("pushes that do not fit leave no trace", "3A, 5.3; 2B, PUSHA; 2A, ENTER, CALL", |k| {
        // An expand-down stack whose lowest address is 16 bytes below ESP; exceptions go to another task's stack by
        // running in ring 3.
        let bottom = STACK3 - 16;
        k.descriptor(FREE, segment(0, bottom - 1, WRITABLE | RING3 | DOWN, B))?;
        k.poke(STACK3 - 32, 0)?;
        k.user("PUSHA", sf(0), |k| {
            code!(k; mov(eax, FREE | 3); mov(ss, eax); mov(esp, STACK3); mov(eax, 0x77); pushad());
            Ok(())
        })?;
        k.var("ESP after PUSHA", EXC_SP, STACK3)?;
        k.user("ENTER", sf(0), |k| {
            code!(k; mov(eax, FREE | 3); mov(ss, eax); mov(esp, STACK3); mov(ebp, 0x1234); enter(0x20, 0));
            Ok(())
        })?;
        k.var("ESP after ENTER", EXC_SP, STACK3)?;
        k.user("CALL", sf(0), |k| {
            code!(k; mov(eax, FREE | 3); mov(ss, eax); mov(esp, bottom + 2); call(k.to("start")));
            Ok(())
        })?;
        k.var("ESP after CALL", EXC_SP, bottom + 2)?;
        k.user("PUSH", sf(0), |k| {
            code!(k; mov(eax, FREE | 3); mov(ss, eax); mov(esp, bottom + 2); push(dword_ptr(SCRATCH)));
            Ok(())
        })?;
        k.var("ESP after PUSH", EXC_SP, bottom + 2)
    })?;
    k.check("16-bit stack segment", "3A, 5.3 and 3.4.5 (B flag); 1, 6.2.3", |k| {
        code!(k; mov(eax, DATA16); mov(ss, eax); mov(esp, 0x1234_0000 + STACK); push(0x11); mov(ebx, esp);
            pop(ecx);
            mov(edx, esp); mov(eax, DATA); mov(ss, eax); mov(esp, STACK));
        k.eq("ESP after PUSH", ebx, 0x1234_0000 + STACK - 4)?;
        k.eq("popped", ecx, 0x11)?;
        k.eq("ESP after POP", edx, 0x1234_0000 + STACK)?;
        k.descriptor(FREE, segment(PAGES, 0xFFFF, WRITABLE, 0))?;
        code!(k; mov(eax, FREE); mov(ss, eax); mov(esp, 0xABCD_0002u32); raw(&[0x66, 0x6A, 0x55]); push(0x66);
            mov(ebx, esp));
        code!(k; mov(ecx, dword_ptr(PAGES + 0xFFFC)); mov(eax, DATA); mov(ss, eax); mov(esp, STACK));
        k.eq("ESP wraps in its lower half", ebx, 0xABCD_FFFC)?;
        k.eq("what was pushed there", ecx, 0x66)
    })?;
    k.check("interrupt frame on a 16-bit stack", "3A, 6.12; 2A, IRET", |k| {
        // The handler's IRETD keeps the upper half of ESP.
        k.aside("iret.only", |k| k.iretd())?;
        let handler = k.imm("iret.only");
        k.idt(0x60, gate(CODE32, handler, INT32, 0))?;
        code!(k; mov(eax, DATA16); mov(ss, eax); mov(esp, 0x4321_0000 + STACK); int(0x60); mov(ebx, esp);
            mov(eax, DATA);
            mov(ss, eax); mov(esp, STACK));
        k.eq("ESP", ebx, 0x4321_0000 + STACK)
    })
}

/// Jumps far to a selector, in a way that raises an exception.
fn jump_raises(k: &mut Kit, what: &str, selector: u32, offset: u32, exc: Exc) -> R {
    k.raises(what, exc, |k| k.jmp_far(selector as u16, offset))
}

fn transfers(k: &mut Kit) -> R {
    k.check("far jumps that fail", "2A, JMP; 3A, 5.8.1", |k| {
        let code = |access| segment(0, FLAT, access, G | B);
        jump_raises(k, "null", 0, 0, gp(0))?;
        jump_raises(k, "null with RPL 3", 3, 0, gp(0))?;
        jump_raises(k, "beyond the GDT", GDT_SIZE, 0, gp(GDT_SIZE))?;
        jump_raises(k, "data", DATA, 0, gp(DATA))?;
        jump_raises(k, "RPL above CPL", CODE32 | 3, 0, gp(CODE32))?;
        jump_raises(k, "DPL above CPL", USER32 & !3, 0, gp(USER32 & !3))?;
        k.descriptor(FREE, code(0x1B))?;
        jump_raises(k, "not present", FREE, 0, np(FREE))?;
        k.descriptor(FREE, segment(0, 0xFFF, CODE, B))?;
        jump_raises(k, "beyond the limit", FREE, 0x1000, gp(0))?;
        k.descriptor(FREE, segment(0, FLAT, 0x82, 0))?;
        jump_raises(k, "an LDT", FREE, 0, gp(FREE))?;
        k.descriptor(FREE, code(CODE | 4 | RING3))?;
        jump_raises(k, "conforming of an outer ring", FREE, 0, gp(FREE))
    })?;
    k.check("far calls and returns", "2A, CALL; 2B, RET", |k| {
        k.aside("far", |k| {
            code!(k; mov(ecx, dword_ptr(esp)); mov(edx, dword_ptr(esp + 4)); retf_1(8));
            Ok(())
        })?;
        let back = k.fresh();
        code!(k; mov(ebx, esp); push(1); push(2); call_far(CODE32 as u16, k.imm("far")); label(&back);
            sub(ebx, esp));
        let ip = k.imm(&back);
        k.eq("return EIP", ecx, ip)?;
        code!(k; and(edx, 0xFFFF));
        k.eq("return CS", edx, CODE32)?;
        k.eq("ESP after RETF 8", ebx, 0)?;
        k.descriptor(FREE, segment(0, FLAT, 0x1B, G | B))?;
        for (selector, what, exc) in [
            (0, "return to null", gp(0)),
            (DATA, "return to data", gp(DATA)),
            (FREE, "return to not present", np(FREE)),
            (GDT_SIZE, "return beyond the GDT", gp(GDT_SIZE)),
        ] {
            code!(k; push(selector); push(k.imm("far")));
            k.raises(what, exc, |k| k.retf())?;
            code!(k; add(esp, 8));
        }
        // Memory operand.
        code!(k; mov(dword_ptr(SCRATCH), k.imm("far")); mov(dword_ptr(SCRATCH + 4), CODE32); push(1); push(2);
            call(fword_ptr(SCRATCH)); sub(ebx, ebx));
        Ok(())
    })?;
    k.check("far call pushes before it jumps", "2A, CALL", |k| {
        k.descriptor(FREE, segment(0, 0xFFF, CODE, B))?;
        code!(k; mov(ebx, esp));
        k.raises("target beyond the limit", gp(0), |k| k.call_far(FREE as u16, 0x1000))?;
        code!(k; sub(ebx, esp));
        k.eq("ESP", ebx, 0)
    })?;
    k.check("16-bit code", "3A, 3.4.5 (D flag); 1, 3.6", |k| {
        k.elsewhere(16, "code16", |k| {
            // MOV writes 16 bits, LOOP counts CX, addresses are 16 bits wide.
            code!(k; mov(ax, 0x5678); mov(cx, 1); loop_(k.to("code16.next")));
            code!(k; label("code16.next"); mov(bx, 0xFFFF); mov(dl, byte_ptr(bx + 0x101)); raw(&[0x66, 0xCB]));
            Ok(())
        });
        code!(k; mov(eax, 0xAAAA_0000u32); mov(ecx, 0xBBBB_0000u32); xor(edx, edx); mov(byte_ptr(0x100), 0x42);
            call_far(CODE16 as u16, k.off("code16")));
        k.eq("EAX", eax, 0xAAAA_5678)?;
        k.eq("ECX", ecx, 0xBBBB_0000)?;
        k.eq("byte read at 0xFFFF + 0x101", edx, 0x42)
    })?;
    k.check("conforming code keeps the ring", "3A, 5.8.1.2", |k| {
        k.user("exception in conforming code", gp(0).anywhere(), |k| {
            let inside = k.fresh();
            code!(k; jmp_far(CONFORMING as u16, k.user_imm(&inside)); label(&inside); hlt());
            Ok(())
        })
        .and_then(|()| k.var("CS", EXC_CS, CONFORMING | 3))
    })?;
    k.check("return to ring 3 and its data segments", "2B, RET; 3A, 5.8.6", |k| {
        k.descriptor(FREE, segment(0, FLAT, 0x9F, G | B))?;
        let (inside, after) = (k.fresh(), k.fresh());
        code!(k; mov(eax, DATA); mov(es, eax); mov(eax, USER_DATA); mov(fs, eax); mov(eax, FREE); mov(gs, eax));
        k.arm(&after)?;
        code!(k; push(USER_DATA); push(STACK3); push(0x1111); push(USER32); push(k.imm(&inside)); retf_1(4));
        k.label(&inside)?;
        code!(k; mov(eax, ds); mov(ebx, es); mov(ecx, fs); mov(edx, gs); mov(esi, esp); hlt(); label(&after));
        for (what, variable, value) in [
            ("DS of ring 0", EXC_AX, 0),
            ("ES of ring 0", EXC_BX, 0),
            ("FS of ring 3", EXC_CX, USER_DATA),
            ("GS, conforming code", EXC_DX, FREE),
            ("ESP", EXC_SI, STACK3 + 4),
            ("saved SS", EXC_SS, USER_DATA),
        ] {
            k.var(what, variable, value)?;
        }
        k.var("vector", EXC_VECTOR, 13)
    })?;
    k.check("returns to other rings that fail", "2B, RET; 2A, IRET", |k| {
        for (what, stack, code, exc) in [
            ("SS null", 0, USER32, gp(0)),
            ("SS of ring 0", DATA, USER32, gp(DATA)),
            ("SS with RPL 0", USER_DATA & !3, USER32, gp(USER_DATA & !3)),
            ("SS read-only", FREE | 3, USER32, gp(FREE)),
            ("SS not present", (FREE + 8) | 3, USER32, sf(FREE + 8)),
            ("CS of ring 0 with RPL 3", USER_DATA, CODE32 | 3, gp(CODE32)),
            ("CS of ring 3 with RPL 0", USER_DATA, USER32 & !3, gp(USER32 & !3)),
        ] {
            k.descriptor(FREE, segment(0, FLAT, 0xF1, G | B))?;
            k.descriptor(FREE + 8, segment(0, FLAT, 0x73, G | B))?;
            code!(k; mov(esp, STACK); push(stack); push(STACK3); push(code); push(k.imm("start")));
            k.raises(what, exc, |k| k.retf())?;
            code!(k; mov(esp, STACK); push(stack); push(STACK3); push(2); push(code); push(k.imm("start")));
            k.raises(what, exc, |k| k.iretd())?;
        }
        k.user("to an inner ring by RETF", gp(CODE32), |k| {
            code!(k; push(CODE32); push(k.imm("start")); retf());
            Ok(())
        })?;
        k.user("to an inner ring by IRET", gp(CODE32), |k| {
            code!(k; push(2); push(CODE32); push(k.imm("start")); iretd());
            Ok(())
        })
    })
}

fn looking(k: &mut Kit) -> R {
    k.check("LAR", "2A, LAR", |k| {
        k.descriptor(FREE, gate(CODE32, 0x1234_5678, CALL32, 3))?;
        k.descriptor(FREE + 8, gate(CODE32, 0, INT32, 0))?;
        for (what, selector, expected) in [
            ("data", DATA, Some(0xCF_9300)),
            ("code", CODE32, Some(0xCF_9B00)),
            ("task", TSS_SEL, Some(0x8B00)),
            ("other task", TSS16_A_SEL, Some(0x8100)),
            ("LDT", LDT_SEL, Some(0x8200)),
            ("call gate, whose offset shows", FREE, Some(0x30_8C00)),
            ("interrupt gate", FREE + 8, None),
            ("null", 0, None),
            ("RPL 3, DPL 0", DATA | 3, None),
            ("conforming with RPL 3", CONFORMING | 3, Some(0xCF_9F00)),
            ("beyond the GDT", GDT_SIZE, None),
        ] {
            code!(k; mov(ecx, selector); mov(ebx, 0x1234_5678); cmp(ecx, -1); lar(ebx, ecx));
            match expected {
                Some(value) => {
                    k.holds(what, |c, to| c.je(to))?;
                    code!(k; and(ebx, 0xF0_FF00));
                    k.eq(what, ebx, value & 0xF0_FF00)?;
                }
                None => {
                    k.holds(what, |c, to| c.jne(to))?;
                    k.eq(what, ebx, 0x1234_5678)?;
                }
            }
        }
        Ok(())
    })?;
    k.check("LSL", "2A, LSL", |k| {
        k.descriptor(FREE, gate(CODE32, 0x1234_5678, CALL32, 3))?;
        k.descriptor(FREE + 8, segment(0, 0x123, WRITABLE, G | B))?;
        for (what, selector, expected) in [
            ("data", DATA, Some(0xFFFF_FFFF)),
            ("page-granular", FREE + 8, Some(0x12_3FFF)),
            ("16-bit", DATA16, Some(0xFFFF)),
            ("task", TSS_SEL, Some(TSS_LIMIT)),
            ("16-bit task", TSS16_A_SEL, Some(0x2B)),
            ("LDT", LDT_SEL, Some(LDT_SIZE - 1)),
            ("call gate", FREE, None),
            ("null", 0, None),
            ("RPL 3, DPL 0", DATA | 3, None),
        ] {
            code!(k; mov(ecx, selector); mov(ebx, 0x1234_5678); cmp(ecx, -1); lsl(ebx, ecx));
            match expected {
                Some(value) => {
                    k.holds(what, |c, to| c.je(to))?;
                    k.eq(what, ebx, value)?;
                }
                None => {
                    k.holds(what, |c, to| c.jne(to))?;
                    k.eq(what, ebx, 0x1234_5678)?;
                }
            }
        }
        Ok(())
    })?;
    k.check("VERR and VERW", "2D, VERR", |k| {
        k.descriptor(FREE, segment(0, FLAT, 0x91, G | B))?;
        k.descriptor(FREE + 8, segment(0, FLAT, 0x99, G | B))?;
        k.descriptor(FREE + 16, segment(0, FLAT, 0x13, G | B))?;
        for (what, selector, read, write) in [
            ("data", DATA, true, true),
            ("read-only", FREE, true, false),
            ("code", CODE32, true, false),
            ("execute-only", FREE + 8, false, false),
            ("RPL 3, DPL 0", DATA | 3, false, false),
            ("conforming with RPL 3", CONFORMING | 3, true, false),
            ("not present", FREE + 16, true, true),
            ("task", TSS_SEL, false, false),
            ("null", 0, false, false),
        ] {
            for (expected, verify) in [(read, true), (write, false)] {
                code!(k; mov(ecx, selector));
                if verify {
                    k.verr(cx)?
                } else {
                    k.verw(cx)?
                }
                if expected { k.holds(what, |c, to| c.je(to))? } else { k.holds(what, |c, to| c.jne(to))? }
            }
        }
        Ok(())
    })?;
    k.check("ARPL", "2A, ARPL", |k| {
        code!(k; mov(eax, 0x10); mov(ecx, 0x2B); arpl(ax, cx); mov(ebx, eax));
        k.holds("raised", |c, to| c.je(to))?;
        k.eq("raised", ebx, 0x13)?;
        code!(k; mov(eax, 0x12); mov(ecx, 0x29); arpl(ax, cx); mov(ebx, eax));
        k.holds("kept", |c, to| c.jne(to))?;
        k.eq("kept", ebx, 0x12)
    })
}

fn table_registers(k: &mut Kit) -> R {
    k.check("SGDT and SIDT", "2B, SGDT; SIDT", |k| {
        code!(k; sgdt(fword_ptr(SCRATCH)); sidt(fword_ptr(SCRATCH + 8)));
        k.masked("GDT limit", SCRATCH, 0xFFFF, GDT_SIZE - 1)?;
        k.var("GDT base", SCRATCH + 2, GDT)?;
        k.masked("IDT limit", SCRATCH + 8, 0xFFFF, 0x7FF)?;
        k.var("IDT base", SCRATCH + 10, IDT)
    })?;
    k.check("LTR", "2A, LTR", |k| {
        code!(k; str(ebx); and(ebx, 0xFFFF));
        k.eq("STR", ebx, TSS_SEL)?;
        code!(k; mov(eax, TSS_SEL));
        k.raises("busy", gp(TSS_SEL), |k| k.ltr(ax))?;
        code!(k; xor(eax, eax));
        k.raises("null", gp(0), |k| k.ltr(ax))?;
        code!(k; mov(eax, DATA));
        k.raises("data", gp(DATA), |k| k.ltr(ax))?;
        code!(k; mov(eax, 12));
        k.raises("from the LDT", gp(12), |k| k.ltr(ax))?;
        k.descriptor(FREE, segment(TSS_B, 0x67, 0x09, 0))?;
        code!(k; mov(eax, FREE));
        k.raises("not present", np(FREE), |k| k.ltr(ax))?;
        code!(k; mov(eax, TSS_B_SEL); ltr(ax));
        k.masked("busy afterwards", GDT + TSS_B_SEL + 4, 0xFF00, 0x8B00)
    })
}

fn ring3(k: &mut Kit) -> R {
    k.check("privileged instructions in ring 3", "3A, 5.9", |k| {
        type Emit = fn(&mut Kit) -> R;
        let list: [(&str, Emit); 20] = [
            ("HLT", |k| k.hlt()),
            ("CLI", |k| k.cli()),
            ("STI", |k| k.sti()),
            ("CLTS", |k| k.clts()),
            ("LGDT", |k| k.lgdt(fword_ptr(SCRATCH))),
            ("LIDT", |k| k.lidt(fword_ptr(SCRATCH))),
            ("LLDT", |k| k.lldt(cx)),
            ("LTR", |k| k.ltr(cx)),
            ("LMSW", |k| k.lmsw(cx)),
            ("MOV from CR0", |k| k.mov(eax, cr0)),
            ("MOV to CR3", |k| k.mov(cr3, eax)),
            ("MOV from DR0", |k| k.mov(eax, dr0)),
            ("MOV to DR7", |k| k.mov(dr7, eax)),
            ("INVD", |k| k.invd()),
            ("WBINVD", |k| k.wbinvd()),
            ("INVLPG", |k| k.invlpg(byte_ptr(SCRATCH))),
            ("RDMSR", |k| k.rdmsr()),
            ("WRMSR", |k| k.wrmsr()),
            ("IN", |k| k.in_(al, 0x80)),
            ("OUTSB", |k| k.outsb()),
        ];
        for (what, emit) in list {
            let at = k.fresh();
            let ip = k.imm(&at);
            k.user(what, gp(0).at(ip), |k| {
                code!(k; xor(ecx, ecx); label(&at));
                k.faulting(emit)
            })?;
        }
        Ok(())
    })?;
    k.check("POPF and IRET in ring 3 keep IF and IOPL", "2B, POPF; 2A, IRET", |k| {
        k.user("POPF", UD.anywhere(), |k| {
            code!(k; push(0x3202); popfd(); pushfd(); pop(ebx); ud2());
            Ok(())
        })?;
        k.masked("flags after POPF", EXC_BX, 0x3200, 0)?;
        k.user("IRET", UD.anywhere(), |k| {
            let next = k.fresh();
            code!(k; push(0x3202); push(USER32); push(k.imm(&next)); iretd(); label(&next); pushfd(); pop(ebx);
                ud2());
            Ok(())
        })?;
        k.masked("flags after IRET", EXC_BX, 0x3200, 0)
    })?;
    k.check("IOPL 3 opens CLI, STI and ports", "3A, 2.3; 1, 19.5.1", |k| {
        let (inside, after, at) = (k.fresh(), k.fresh(), k.fresh());
        k.arm(&after)?;
        code!(k; push(USER_DATA); push(STACK3); push(0x3002); push(USER32); push(k.imm(&inside)); iretd();
            label(&inside);
            sti(); pushfd(); pop(ebx); cli(); pushfd(); pop(ecx); in_(al, 0x61); label(&at); hlt();
            label(&after));
        let at = k.imm(&at);
        k.var("saved EIP", EXC_IP, at)?;
        k.masked("IF after STI", EXC_BX, 0x200, 0x200)?;
        k.masked("IF after CLI", EXC_CX, 0x200, 0)
    })?;
    k.check("ring 3 loads ring 0's segments", "3A, 5.6", |k| {
        k.user("DS", gp(DATA), |k| {
            code!(k; mov(eax, DATA); mov(ds, eax));
            Ok(())
        })?;
        k.user("RPL does not help", gp(DATA), |k| {
            code!(k; mov(eax, DATA | 3); mov(fs, eax));
            Ok(())
        })?;
        k.user("SS", gp(DATA), |k| {
            code!(k; mov(eax, DATA); mov(ss, eax));
            Ok(())
        })?;
        k.user("null SS", gp(0), |k| {
            code!(k; xor(eax, eax); mov(ss, eax));
            Ok(())
        })
    })
}
