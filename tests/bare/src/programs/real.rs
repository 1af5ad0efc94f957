//! Real mode: exceptions without error codes, 64 KiB limits, the interrupt table (Intel SDM volume 3B, chapter 21).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;

/// Address of the interrupt table's entry.
const fn ivt(vector: u32) -> u32 {
    vector * 4
}

pub fn emit(k: &mut Kit) -> R {
    exceptions(k)?;
    interrupts(k)?;
    limits(k)?;
    far_pointers(k)?;
    protected_only(k)?;
    stepping(k)?;
    switches(k)
}

fn exceptions(k: &mut Kit) -> R {
    k.check("divide errors", "3B, 21.1.4", |k| {
        code!(k; xor(ecx, ecx); mov(eax, 1); xor(edx, edx));
        k.raises("DIV by 0", DE, |k| k.div(ecx))?;
        code!(k; mov(ax, 0x8000); mov(cl, 0xFFu32));
        k.raises("IDIV overflow", DE, |k| k.idiv(cl))?;
        k.raises("AAM 0", DE, |k| k.aam(0))
    })?;
    k.check("breakpoint, overflow, bound", "3B, table 21-1", |k| {
        k.raises("INT3", BP, |k| k.int3())?;
        code!(k; mov(al, 0x7F); inc(al));
        k.raises("INTO", OF, |k| CodeAssembler::into(k))?;
        code!(k; mov(word_ptr(SCRATCH), 3); mov(word_ptr(SCRATCH + 2), 5); mov(cx, 6));
        k.raises("BOUND", BR, |k| k.bound(cx, dword_ptr(SCRATCH)))?;
        code!(k; mov(cx, 5); bound(cx, dword_ptr(SCRATCH)));
        Ok(())
    })?;
    k.check("undefined opcodes", "2A, LOCK; 3B, 21.1.4", |k| {
        k.raises("UD2", UD, |k| k.ud2())?;
        k.raises("UD1", UD, |k| k.raw(&[0x0F, 0xB9, 0xC1]))?;
        k.raises("UD0", UD, |k| k.raw(&[0x0F, 0xFF, 0xC1]))?;
        k.raises("LOCK with a register", UD, |k| k.raw(&[0xF0, 0x01, 0xC0]))?;
        k.raises("LOCK with NOP", UD, |k| k.raw(&[0xF0, 0x90]))?;
        k.raises("LOCK CMP", UD, |k| k.raw(&[0xF0, 0x39, 0x06, 0x00, 0xE0]))?;
        k.raises("MOV to CS", UD, |k| k.raw(&[0x8E, 0xC8]))?;
        k.raises("LEA of a register", UD, |k| k.raw(&[0x8D, 0xC0]))?;
        k.raises("MOV from segment 6", UD, |k| k.raw(&[0x8C, 0xF0]))?;
        k.raises("LES of a register", UD, |k| k.raw(&[0xC4, 0xC0]))?;
        k.raises("MOV CR1", UD, |k| k.raw(&[0x0F, 0x20, 0xC8]))
    })?;
    k.check("instruction of 16 bytes", "2A, 2.3.11", |k| {
        k.raises("16 bytes", gp(0), |k| k.raw(&[[0x26; 15].as_slice(), &[0x90]].concat()))?;
        k.raw(&[[0x26; 14].as_slice(), &[0x90]].concat())
    })
}

fn interrupts(k: &mut Kit) -> R {
    k.check("INT clears IF, TF and AC; IRET restores", "3B, 21.1.4; 2A, INT n", |k| {
        k.aside("int.handler", |k| {
            code!(k; push(bp); mov(bp, sp); mov(ax, word_ptr(bp + 6)); pushf(); pop(bx); pop(bp); iret());
            Ok(())
        })?;
        code!(k; mov(word_ptr(ivt(0x60)), k.off("int.handler")); mov(word_ptr(ivt(0x60) + 2), IMAGE_SEGMENT));
        code!(k; xor(eax, eax); xor(ebx, ebx); push(0x8D7); popf(); int(0x60); pushf(); pop(cx); push(2);
            popf(); movzx(ecx, cx));
        k.eq("flags pushed", eax, 0x8D7)?;
        k.eq("flags in the handler", ebx, 0x8D7)?;
        k.eq("flags afterwards", ecx, 0x8D7)?;
        code!(k; sti(); int(0x60); pushf(); cli(); pop(cx); and(eax, 0x200); and(ebx, 0x200); and(ecx, 0x200));
        k.eq("IF pushed", eax, 0x200)?;
        k.eq("IF in the handler", ebx, 0)?;
        k.eq("IF afterwards", ecx, 0x200)
    })?;
    k.check("INT through every vector pushes IP, CS and flags", "3B, 21.1.4", |k| {
        for vector in [0x20, 0x60, 0xFF] {
            k.raises("INT n", int(vector), |k| k.int(vector as i32))?;
            k.var("CS", EXC_CS, IMAGE_SEGMENT)?;
            k.var("SP", EXC_HANDLER_SP, STACK - 6)?;
        }
        Ok(())
    })?;
    k.check("IDTR: base and limit apply in real mode", "3B, 21.1.4; 3A, table 6-1", |k| {
        // The table moves up by 16 entries: vector 0x20 then takes what vector 0x30 had.
        code!(k; mov(word_ptr(V[0]), 0x3FF); mov(dword_ptr(V[0] + 2), 0x40); lidt(fword_ptr(V[0])));
        k.raises("moved table", int(0x30), |k| k.int(0x20))?;
        code!(k; mov(word_ptr(V[0]), 0x20 * 4 + 2); mov(dword_ptr(V[0] + 2), 0); lidt(fword_ptr(V[0])));
        k.raises("entry beyond the limit", gp(0), |k| k.int(0x20))?;
        k.raises("entry within the limit", int(0x1F), |k| k.int(0x1F))
    })?;
    k.check("IRET with 32-bit operand", "2A, IRET", |k| {
        let back = k.fresh();
        code!(k; mov(ebx, esp); pushfd(); or(dword_ptr(esp), 0x20_0001); mov(eax, IMAGE_SEGMENT);
            push(eax); mov(eax, k.off(&back)); push(eax); iretd());
        k.label(&back)?;
        code!(k; pushfd(); pop(ecx); and(ecx, 0x20_0001); mov(edx, 2); push(edx); popfd(); sub(ebx, esp));
        k.eq("ID and CF", ecx, 0x20_0001)?;
        k.eq("stack pointer", ebx, 0)
    })?;
    k.check("POPF and IRET change IOPL and NT; VM stays 0", "2B, POPF", |k| {
        code!(k; push(0x7002); popf(); pushf(); pop(ax); movzx(eax, ax); push(2); popf());
        k.eq("IOPL and NT", eax, 0x7002)?;
        code!(k; mov(eax, 0x2_7002); push(eax); popfd(); pushfd(); pop(eax); mov(edx, 2); push(edx); popfd());
        k.eq("VM", eax, 0x7002)
    })
}

fn limits(k: &mut Kit) -> R {
    k.check("a word at offset 0xFFFF", "3B, 21.1.1 and table 21-1", |k| {
        code!(k; mov(esi, 0xFFFF));
        k.raises("DS", gp(0), |k| k.mov(ax, word_ptr(si)))?;
        code!(k; mov(bp, 0xFFFF));
        k.raises("SS", sf(0), |k| k.mov(ax, word_ptr(bp)))?;
        code!(k; mov(esi, 0x1_0000));
        k.raises("32-bit address", gp(0), |k| k.mov(al, byte_ptr(esi)))?;
        code!(k; mov(al, byte_ptr(si)); mov(esi, 0xFFFD));
        k.raises("doubleword at 0xFFFD", gp(0), |k| k.mov(eax, dword_ptr(si)))?;
        code!(k; mov(ecx, 0xDEAD_0000u32); mov(cx, word_ptr(si)));
        Ok(())
    })?;
    k.check("16-bit addresses wrap within 64 KiB", "1, 3.3.5; 3B, 21.1.1", |k| {
        code!(k; mov(byte_ptr(SCRATCH), 0x5A); mov(bx, 0xF000); mov(si, SCRATCH + 0x1_0000 - 0xF000);
            mov(al, byte_ptr(bx + si)); movzx(eax, al));
        k.eq("BX+SI", eax, 0x5A)
    })?;
    k.check("pushes and pops at the edges of the stack segment", "3B, 21.1.1; 2B, PUSH", |k| {
        // SS with another base, so that the wrapped stack hits nobody.
        code!(k; mov(ax, PAGES >> 4); mov(ss, eax); xor(sp, sp); push(0x1234); mov(bx, sp));
        code!(k; mov(bp, 0xFFFE); mov(cx, word_ptr(bp)); pop(dx); mov(si, sp); xor(ax, ax); mov(ss, eax);
            mov(sp, STACK));
        code!(k; movzx(ebx, bx); movzx(ecx, cx); movzx(edx, dx); movzx(esi, si));
        k.eq("SP after a push at 0", ebx, 0xFFFE)?;
        k.eq("pushed word", ecx, 0x1234)?;
        k.eq("popped word", edx, 0x1234)?;
        k.eq("SP after the pop", esi, 0)
    })?;
    k.check("the code segment's end", "3B, 21.1.1", |k| {
        // One NOP at 0x3FFFF, the last byte of segment 0x3000: the next fetch is beyond the limit.
        let after = k.fresh();
        code!(k; mov(ax, PAGES >> 4); mov(es, eax); mov(byte_ptr(0xFFFF).es(), 0x90));
        k.arm(&after)?;
        code!(k; jmp_far((PAGES >> 4) as u16, 0xFFFF); label(&after));
        k.masked("vector", EXC_VECTOR, 0xFFFF, 13)?;
        k.var("saved IP", EXC_IP, 0)
    })?;
    k.check("segment registers load without checks", "3B, 21.1.1", |k| {
        code!(k; mov(ax, 0xFFFF); mov(es, eax); mov(bl, byte_ptr(0x10).es()); push(es); pop(fs); mov(cx, fs);
            mov(eax, 0x1234_0E00); mov(gs, eax); mov(dword_ptr(SCRATCH), 0xCAFE_F00Du32);
            mov(edx, dword_ptr(0).gs()); movzx(ecx, cx));
        k.eq("FS", ecx, 0xFFFF)?;
        k.eq("read through GS", edx, 0xCAFE_F00D)?;
        code!(k; lds(bx, dword_ptr(SCRATCH)); mov(ax, ds); xor(cx, cx); mov(ds, ecx); movzx(eax, ax);
            movzx(ebx, bx));
        k.eq("LDS: DS", eax, 0xCAFE)?;
        k.eq("LDS: BX", ebx, 0xF00D)
    })?;
    k.check("far calls and returns", "2A, CALL; 2B, RET", |k| {
        k.aside("far.target", |k| {
            code!(k; mov(bp, sp); mov(eax, dword_ptr(bp)); retf_1(4));
            Ok(())
        })?;
        let back = k.fresh();
        code!(k; mov(ebx, esp); push(7); push(8); call_far(IMAGE_SEGMENT as u16, k.off("far.target"));
            label(&back); sub(ebx, esp));
        let expected = IMAGE_SEGMENT << 16 | k.off(&back);
        k.eq("return address", eax, expected)?;
        k.eq("SP after RETF 4", ebx, 0)?;
        let there = k.fresh();
        code!(k; mov(word_ptr(V[0]), k.off(&there)); mov(word_ptr(V[0] + 2), IMAGE_SEGMENT);
            raw(&[0xFF, 0x2E, V[0] as u8, (V[0] >> 8) as u8]));
        k.ud2()?;
        k.label(&there)
    })
}

fn far_pointers(k: &mut Kit) -> R {
    k.check("far pointers and pops of segments", "2A, LDS; 2B, POP; 3B, 21.1.1", |k| {
        code!(k; mov(dword_ptr(SCRATCH), 0x1234_5678));
        code!(k; les(bx, dword_ptr(SCRATCH)); mov(ax, es); movzx(ebx, bx); movzx(eax, ax));
        k.eq("LES: BX", ebx, 0x5678)?;
        k.eq("LES: ES", eax, 0x1234)?;
        code!(k; lfs(cx, dword_ptr(SCRATCH)); mov(ax, fs); lgs(dx, dword_ptr(SCRATCH)); mov(bx, gs);
            movzx(ecx, cx); movzx(edx, dx);
            movzx(eax, ax); movzx(ebx, bx));
        k.eq("LFS: CX", ecx, 0x5678)?;
        k.eq("LFS: FS", eax, 0x1234)?;
        k.eq("LGS: DX", edx, 0x5678)?;
        k.eq("LGS: GS", ebx, 0x1234)?;
        // SS with its pointer: the stack is where it was, by another segment.
        code!(k; mov(word_ptr(SCRATCH), STACK - 0x100); mov(word_ptr(SCRATCH + 2), 0x10);
            lss(sp, dword_ptr(SCRATCH)); mov(ax, ss); movzx(esi, sp);
            movzx(eax, ax); xor(bx, bx); raw(&[0x8E, 0xD3]); mov(sp, STACK));
        k.eq("LSS: SS", eax, 0x10)?;
        k.eq("LSS: SP", esi, STACK - 0x100)?;
        code!(k; push(0x111); push(0x222); push(0x333); pop(es); pop(ds); pop(gs); mov(ax, ds); xor(bx, bx);
            raw(&[0x8E, 0xDB]); mov(cx, es); mov(dx, gs);
            movzx(eax, ax); movzx(ecx, cx); movzx(edx, dx));
        k.eq("POP ES", ecx, 0x333)?;
        k.eq("POP DS", eax, 0x222)?;
        k.eq("POP GS", edx, 0x111)?;
        code!(k; mov(bx, sp); push(0); pop(ss); sub(bx, sp); movzx(ebx, bx));
        k.eq("SP after POP SS", ebx, 0)
    })?;
    k.check("far call by memory, SGDT and SIDT with 16 bits", "2A, CALL; 2B, RET, SGDT, SIDT", |k| {
        k.aside("far.plain", |k| {
            code!(k; mov(cx, 0x77); retf());
            Ok(())
        })?;
        code!(k; mov(word_ptr(SCRATCH), k.off("far.plain")); mov(word_ptr(SCRATCH + 2), IMAGE_SEGMENT);
            xor(ecx, ecx); mov(bx, sp));
        k.raw(&[0xFF, 0x1E, SCRATCH as u8, (SCRATCH >> 8) as u8])?;
        code!(k; sub(bx, sp); movzx(ebx, bx));
        k.eq("called", ecx, 0x77)?;
        k.eq("SP", ebx, 0)?;
        code!(k; mov(word_ptr(SCRATCH), 0x123); mov(dword_ptr(SCRATCH + 2), 0x0045_6789);
            lgdt(fword_ptr(SCRATCH)));
        // SGDT, SIDT [disp16]
        k.raw(&[0x0F, 0x01, 0x06, (SCRATCH + 8) as u8, (SCRATCH >> 8) as u8])?;
        k.raw(&[0x0F, 0x01, 0x0E, (SCRATCH + 16) as u8, (SCRATCH >> 8) as u8])?;
        k.masked("GDT limit", SCRATCH + 8, 0xFFFF, 0x123)?;
        k.masked("GDT base", SCRATCH + 10, 0xFF_FFFF, 0x45_6789)?;
        k.masked("IDT limit", SCRATCH + 16, 0xFFFF, 0x3FF)
    })
}

fn protected_only(k: &mut Kit) -> R {
    k.check("instructions that real mode does not know", "2A–2D, Real-Address Mode Exceptions", |k| {
        k.raises("LLDT", UD, |k| k.lldt(ax))?;
        k.raises("LTR", UD, |k| k.ltr(ax))?;
        k.raises("SLDT", UD, |k| k.sldt(ax))?;
        k.raises("STR", UD, |k| k.str(ax))?;
        k.raises("VERR", UD, |k| k.verr(ax))?;
        k.raises("LAR", UD, |k| k.lar(ax, cx))?;
        k.raises("LSL", UD, |k| k.lsl(ax, cx))?;
        k.raises("ARPL", UD, |k| k.arpl(ax, cx))?;
        k.raises("SYSEXIT", gp(0), |k| k.raw(&[0x0F, 0x35]))?;
        k.raises("SYSENTER", gp(0), |k| k.sysenter())?;
        k.raises("VEX prefix", UD, |k| k.raw(&[0xC5, 0xF0, 0x58, 0xC0]))
    })?;
    k.check("SMSW and LMSW", "2A, LMSW; 2B, SMSW", |k| {
        code!(k; smsw(ebx); mov(eax, cr0); xor(ebx, eax); and(ebx, 0xFFFF));
        k.eq("SMSW and CR0 differ in", ebx, 0)?;
        code!(k; mov(eax, cr0); or(al, 8); lmsw(ax); mov(ecx, cr0); clts(); mov(edx, cr0); and(ecx, 9);
            and(edx, 8));
        k.eq("TS by LMSW", ecx, 8)?;
        k.eq("TS after CLTS", edx, 0)
    })?;
    k.check("device not available", "3A, table 2-2", |k| {
        k.cr0_bits(8, 0)?;
        k.raises("x87 with TS", NM, |k| k.fld1())?;
        k.raises("SSE with TS", NM, |k| k.movaps(xmm0, xmm1))?;
        k.cr0_bits(4, 8)?;
        k.raises("x87 with EM", NM, |k| k.fld1())?;
        k.raises("SSE with EM", UD, |k| k.movaps(xmm0, xmm1))?;
        k.cr0_bits(0, 4)?;
        k.cr4_bits(0, 0x200)?;
        k.raises("SSE without OSFXSR", UD, |k| k.movaps(xmm0, xmm1))
    })
}

fn stepping(k: &mut Kit) -> R {
    k.check("single step", "3B, 17.3.1.4", |k| {
        let (after, popped) = (k.fresh(), k.fresh());
        k.arm(&after)?;
        code!(k; push(0x102); popf(); label(&popped); nop(); label(&after));
        k.masked("vector", EXC_VECTOR, 0xFFFF, 1)?;
        let expected = k.off(&after);
        k.var("saved IP", EXC_IP, expected)?;
        k.masked("TF pushed", EXC_FLAGS, 0x100, 0x100)?;
        k.masked("TF in the handler", EXC_HANDLER_FLAGS, 0x100, 0)?;
        k.masked("DR6.BS", EXC_DR6, 0x400F, 0x4000)
    })?;
    k.check("INT1", "3A, 6.3.3; 2A, INT1", |k| {
        k.raises("INT1", DB.trap(), |k| k.int1())?;
        k.masked("DR6.BS", EXC_DR6, 0x400F, 0)
    })
}

fn switches(k: &mut Kit) -> R {
    k.check("CR0: PG without PE", "3A, 2.5; 2B, MOV", |k| {
        code!(k; mov(eax, cr0); or(eax, 0x8000_0000u32));
        k.raises("PG without PE", gp(0), |k| k.mov(cr0, eax))?;
        code!(k; mov(eax, cr0); or(eax, 0x2000_0000); and(eax, 0xBFFF_FFFFu32));
        k.raises("NW without CD", gp(0), |k| k.mov(cr0, eax))
    })?;
    k.check("segments keep their limits through protected mode", "3A, 9.9.2; 3A, 3.4.3", |k| {
        code!(k; mov(word_ptr(V[0]), GDT_SIZE - 1); mov(dword_ptr(V[0] + 2), k.imm("gdt.image"));
            lgdt(fword_ptr(V[0]));
            mov(eax, cr0); or(al, 1); mov(cr0, eax); mov(bx, DATA); mov(fs, ebx); and(al, 0xFEu32);
            mov(cr0, eax));
        code!(k; mov(esi, LOADED); mov(eax, dword_ptr(esi).fs()); mov(ebx, eax); mov(ax, fs); movzx(eax, ax));
        k.eq("the selector stays", eax, DATA)?;
        code!(k; and(ebx, 0xFF));
        k.eq("CLI at 1 MiB, read with a flat limit", ebx, 0xFA)?;
        // A new selector in real mode changes only the base.
        code!(k; xor(ax, ax); mov(fs, eax); mov(eax, dword_ptr(esi).fs()); and(eax, 0xFF));
        k.eq("limit after a load in real mode", eax, 0xFA)?;
        // Put it right for whoever comes next.
        code!(k; mov(eax, cr0); or(al, 1); mov(cr0, eax); mov(bx, DATA16); mov(fs, ebx); and(al, 0xFEu32);
            mov(cr0, eax); xor(bx, bx); mov(fs, ebx));
        k.raises("limit after all", gp(0), |k| k.mov(eax, dword_ptr(esi).fs()))
    })?;
    k.check("LMSW sets PE and cannot clear it", "2A, LMSW", |k| {
        code!(k; mov(word_ptr(V[0]), GDT_SIZE - 1); mov(dword_ptr(V[0] + 2), k.imm("gdt.image"));
            lgdt(fword_ptr(V[0]));
            smsw(ax); or(al, 1); lmsw(ax); and(al, 0xFEu32); lmsw(ax); mov(ebx, cr0); mov(eax, ebx);
            and(al, 0xFEu32);
            mov(cr0, eax); mov(ecx, cr0); and(ebx, 1); and(ecx, 1));
        k.eq("PE after LMSW", ebx, 1)?;
        k.eq("PE after MOV to CR0", ecx, 0)
    })
}
