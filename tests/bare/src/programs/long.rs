//! 64-bit and compatibility mode: canonical addresses, 64-bit gates, IRET, fast system calls, segments that are half there,
//! instructions that are not (Intel SDM volume 3A, chapters 2, 5 and 6).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const FLAT: u32 = 0xF_FFFF;
const VEC: u32 = 0x60;
/// The first address that is not canonical.
const HOLE: u64 = 0x8000_0000_0000;

const EFER: u32 = 0xC000_0080;
const LSTAR: u32 = 0xC000_0082;
const FS_BASE: u32 = 0xC000_0100;
const GS_BASE: u32 = 0xC000_0101;
const KERNEL_GS_BASE: u32 = 0xC000_0102;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

pub fn emit(k: &mut Kit) -> R {
    opcodes(k)?;
    canonical(k)?;
    segments(k)?;
    interrupts(k)?;
    iret(k)?;
    far(k)?;
    compatibility(k)?;
    modes(k)
}

fn opcodes(k: &mut Kit) -> R {
    k.check(
        "opcodes that 64-bit mode does not have",
        "2D, appendix A.2.1 (i64); 2A–2D, 64-Bit Mode Exceptions",
        |k| {
            for (what, bytes) in [
                ("PUSH ES", &[0x06u8] as &[u8]),
                ("POP ES", &[0x07]),
                ("PUSH CS", &[0x0E]),
                ("PUSH SS", &[0x16]),
                ("POP DS", &[0x1F]),
                ("DAA", &[0x27]),
                ("AAS", &[0x3F]),
                ("PUSHA", &[0x60]),
                ("POPA", &[0x61]),
                ("opcode 82", &[0x82, 0xC0, 1]),
                ("CALL far immediate", &[0x9A, 0, 0, 0, 0, 8, 0]),
                ("INTO", &[0xCE]),
                ("AAM", &[0xD4, 10]),
                ("AAD", &[0xD5, 10]),
                ("SALC", &[0xD6]),
                ("JMP far immediate", &[0xEA, 0, 0, 0, 0, 8, 0]),
                ("LES", &[0xC4, 0x03, 0x00]),
                ("ARPL's neighbour BOUND with EVEX garbage", &[0x62, 0x00, 0x00, 0x00]),
                ("LOCK MOV", &[0xF0, 0x89, 0x03]),
                ("LOCK ADD of a register", &[0xF0, 0x48, 0x01, 0xC0]),
                ("MOV CR5", &[0x0F, 0x20, 0xE8]),
                ("MOV CR9", &[0x44, 0x0F, 0x20, 0xC8]),
                ("MOV DR8", &[0x44, 0x0F, 0x21, 0xC0]),
                ("UD0", &[0x0F, 0xFF, 0xC1]),
                ("CMPXCHG8B of a register", &[0x0F, 0xC7, 0xC8]),
                ("REX before VEX", &[0x48, 0xC5, 0xF0, 0x58, 0xC0]),
                ("66 before VEX", &[0x66, 0xC5, 0xF0, 0x58, 0xC0]),
                ("MOV to CS", &[0x8E, 0xC8]),
                ("LSS of a register", &[0x0F, 0xB2, 0xC0]),
            ] {
                k.raises(what, UD, |k| k.raw(bytes))?;
            }
            Ok(())
        },
    )?;
    k.check("instruction of 16 bytes", "2A, 2.3.11", |k| {
        k.raises("16 bytes", gp(0), |k| k.raw(&[[0x66; 15].as_slice(), &[0x90]].concat()))?;
        k.raw(&[[0x66; 14].as_slice(), &[0x90]].concat())
    })?;
    k.check("a REX prefix that is not last has no effect", "2A, 2.2.1", |k| {
        // 48 66 B8: 16-bit move; with an effective REX.W it would take eight bytes.
        code!(k; mov(rax, 0x1111_2222_3333_4444u64); raw(&[0x48, 0x66, 0xB8, 0xCD, 0xAB]));
        k.eq64("RAX", rax, 0x1111_2222_3333_ABCD)
    })
}

fn canonical(k: &mut Kit) -> R {
    k.check("data at addresses that are not canonical", "1, 3.3.7.1; 3A, 6.15 (#GP, #SS)", |k| {
        code!(k; mov(rbx, HOLE); mov(rcx, !HOLE));
        k.raises("read", gp(0), |k| k.mov(al, byte_ptr(rbx)))?;
        k.raises("read below the upper half", gp(0), |k| k.mov(al, byte_ptr(rcx)))?;
        k.raises("write", gp(0), |k| k.mov(byte_ptr(rbx), al))?;
        code!(k; mov(rbp, HOLE));
        k.raises("read by RBP", sf(0), |k| k.mov(al, byte_ptr(rbp)))?;
        code!(k; mov(rbp, HOLE));
        k.raises("read by RBP and DS override", sf(0), |k| k.mov(al, byte_ptr(rbp).ds()))?;
        code!(k; mov(rbx, HOLE));
        k.raises("read by RBX and SS override", gp(0), |k| k.mov(al, byte_ptr(rbx).ss()))?;
        code!(k; mov(rbp, HOLE));
        k.raises("read by FS and RBP", gp(0), |k| k.mov(al, byte_ptr(rbp).fs()))?;
        code!(k; mov(rsi, HOLE); mov(ecx, 1); mov(edi, SCRATCH));
        k.raises("MOVSB", gp(0), |k| k.rep().movsb())
    })?;
    k.check("stack at an address that is not canonical", "3A, 6.15 (#SS); 2A, CALL", |k| {
        // In ring 3, so that the handler has a stack.
        for (what, exc) in [("PUSH", 0), ("POP", 1), ("CALL", 2), ("RET", 3), ("LEAVE", 4), ("ENTER", 5)] {
            k.user(what, sf(0).anywhere(), |k| {
                code!(k; mov(rax, HOLE); mov(rsp, rax); mov(rbp, rax));
                // What pushes, writes below RSP.
                if matches!(exc, 0 | 2 | 5) {
                    code!(k; add(rsp, 8));
                }
                let target = k.to("main");
                k.faulting(|k| match exc {
                    0 => k.push(rax),
                    1 => k.pop(rcx),
                    2 => k.call(target),
                    3 => k.ret(),
                    4 => k.leave(),
                    _ => k.enter(8, 0),
                })
            })?;
        }
        Ok(())
    })?;
    k.check("near jumps to addresses that are not canonical", "2A, JMP, CALL", |k| {
        code!(k; mov(rbx, HOLE));
        k.raises("JMP", gp(0), |k| k.jmp(rbx))?;
        code!(k; mov(rcx, rsp));
        k.raises("CALL", gp(0), |k| k.call(rbx))?;
        code!(k; sub(rcx, rsp));
        k.eq64("RSP", rcx, 0)
    })?;
    k.check("near returns to addresses that are not canonical", "2B, RET", |k| {
        code!(k; mov(rbx, HOLE); push(rbx); mov(rcx, rsp));
        k.raises("RET", gp(0), |k| k.ret())?;
        code!(k; sub(rcx, rsp));
        k.eq64("RSP", rcx, 0)
    })?;
    k.check("far returns to addresses that are not canonical", "2B, RET", |k| {
        code!(k; mov(rbx, HOLE); push(CODE64 as i32); push(rbx); mov(rcx, rsp));
        k.raises("RETF", gp(0), |k| k.raw(&[0x48, 0xCB]))?;
        code!(k; sub(rcx, rsp));
        k.eq64("RSP", rcx, 0)
    })?;
    k.check("registers that take canonical addresses only", "3A, 2.4, 5.8.7; 4, 2.1", |k| {
        code!(k; mov(word_ptr(SCRATCH), 0xFF); mov(rax, HOLE); mov(qword_ptr(SCRATCH + 2), rax));
        k.raises("LGDT", gp(0), |k| k.lgdt(tbyte_ptr(SCRATCH)))?;
        k.raises("LIDT", gp(0), |k| k.lidt(tbyte_ptr(SCRATCH)))?;
        for (what, register) in [
            ("LSTAR", LSTAR),
            ("CSTAR", 0xC000_0083),
            ("FS base", FS_BASE),
            ("GS base", GS_BASE),
            ("kernel GS base", KERNEL_GS_BASE),
            ("SYSENTER_ESP", SYSENTER_ESP),
            ("SYSENTER_EIP", SYSENTER_EIP),
        ] {
            code!(k; mov(ecx, register); mov(eax, 0); mov(edx, (HOLE >> 32) as u32));
            k.raises(what, gp(0), |k| k.wrmsr())?;
            code!(k; mov(edx, 0xFFFF_8000u32); wrmsr(); xor(edx, edx); wrmsr());
        }
        Ok(())
    })?;
    k.check("INVLPG and CLFLUSH of what is not canonical", "2A, INVLPG, CLFLUSH", |k| {
        code!(k; mov(rbx, HOLE); invlpg(byte_ptr(rbx)));
        k.raises("CLFLUSH", gp(0), |k| k.clflush(byte_ptr(rbx)))?;
        // An address is not an access.
        code!(k; lea(rax, byte_ptr(rbx)); nop_1(dword_ptr(rbx)); prefetcht0(byte_ptr(rbx)));
        Ok(())
    })
}

fn segments(k: &mut Kit) -> R {
    k.check("bases and limits of CS, DS, ES and SS do not count", "1, 3.4.2.1; 3A, 5.3.1", |k| {
        k.descriptor(FREE, segment(0x1234_5000, 0, WRITABLE, B))?;
        code!(k; mov(eax, FREE); mov(ds, eax); mov(es, eax); mov(ss, eax); mov(dword_ptr(SCRATCH), 0x77);
            mov(ebx, dword_ptr(SCRATCH));
            xor(eax, eax); mov(ds, eax); mov(ecx, dword_ptr(SCRATCH)); mov(eax, DATA); mov(ss, eax));
        k.eq("through DS", ebx, 0x77)?;
        k.eq("through null", ecx, 0x77)?;
        // Not even write protection.
        k.descriptor(FREE, segment(0, FLAT, 0x91, G | B))?;
        code!(k; mov(eax, FREE); mov(ds, eax); mov(dword_ptr(SCRATCH), 0x78); mov(ebx, dword_ptr(SCRATCH)));
        k.eq("read-only", ebx, 0x78)
    })?;
    k.check("loads are checked all the same", "2B, MOV; 3A, 5.3.1", |k| {
        for (what, descriptor, exc) in [
            ("not present", segment(0, FLAT, 0x13, G | B), np(FREE)),
            ("execute-only", segment(0, FLAT, 0x99, G | L), gp(FREE)),
            ("system", segment(0, FLAT, 0x82, 0), gp(FREE)),
        ] {
            k.descriptor(FREE, descriptor)?;
            code!(k; mov(eax, FREE));
            k.raises(what, exc, |k| k.mov(ds, eax))?;
        }
        code!(k; mov(eax, GDT_SIZE));
        k.raises("beyond the GDT", gp(GDT_SIZE), |k| k.mov(fs, eax))?;
        code!(k; mov(eax, CODE64));
        k.raises("code in SS", gp(CODE64), |k| k.mov(ss, eax))?;
        code!(k; mov(eax, 3));
        k.raises("null with RPL 3 in SS", gp(0), |k| k.mov(ss, eax))?;
        code!(k; xor(eax, eax); mov(ss, eax); mov(ebx, ss));
        k.eq("null in SS in ring 0", ebx, 0)?;
        k.user("null SS in ring 3", gp(0), |k| {
            code!(k; mov(eax, 3));
            k.faulting(|k| k.mov(ss, eax))
        })
    })?;
    k.check("LTR and LLDT take 16 bytes", "3A, 7.2.3; 2A, LTR, LLDT", |k| {
        k.descriptor(FREE, segment(TSS, 0x67, TSS32, 0))?;
        k.poke(GDT + FREE + 8, 0x1F00_0000_0000)?;
        code!(k; mov(eax, FREE));
        k.raises("type bits in the upper half", gp(FREE), |k| k.ltr(ax))?;
        k.poke(GDT + FREE + 8, 0xFFFF)?;
        code!(k; mov(eax, FREE));
        k.raises("base that is not canonical", gp(FREE), |k| k.ltr(ax))?;
        k.poke(GDT + FREE + 8, 0)?;
        k.descriptor(FREE, segment(TSS, 0x67, TSS16, 0))?;
        code!(k; mov(eax, FREE));
        k.raises("16-bit TSS", gp(FREE), |k| k.ltr(ax))?;
        code!(k; mov(eax, GDT_SIZE - 8));
        k.descriptor(GDT_SIZE - 8, segment(TSS, 0x67, TSS32, 0))?;
        k.raises("upper half beyond the GDT", gp(GDT_SIZE - 8), |k| k.ltr(ax))?;
        code!(k; mov(eax, LDT_SEL); lldt(ax));
        k.poke(LDT + 8, segment(0, FLAT, WRITABLE, G | B))?;
        code!(k; mov(eax, 12); mov(es, eax); mov(ebx, es));
        k.eq("segment of the LDT", ebx, 12)
    })?;
    k.check("LAR and LSL in 64-bit mode", "2A, LAR, LSL", |k| {
        k.descriptor(FREE, gate(CODE64, 0, CALL32, 0))?;
        k.poke(GDT + FREE + 8, 0)?;
        k.descriptor(FREE + 16, segment(0, 0x67, TSS16, 0))?;
        for (what, selector, rights, limit) in [
            ("code", CODE64, Some(0xA0_9B00), Some(0xFFFF_FFFF)),
            ("task", TSS_SEL, Some(0x8B00), Some(TSS_LIMIT)),
            ("LDT", LDT_SEL, Some(0x8200), Some(LDT_SIZE - 1)),
            ("call gate", FREE, Some(0x8C00), None),
            ("16-bit TSS", FREE + 16, None, None),
            ("null", 0, None, None),
        ] {
            code!(k; mov(ecx, selector); mov(rbx, -1i64); cmp(ecx, -1); lar(ebx, ecx));
            if rights.is_some() {
                k.holds(what, |c, to| c.je(to))?
            } else {
                k.holds(what, |c, to| c.jne(to))?
            }
            if let Some(rights) = rights {
                code!(k; and(ebx, 0xF0_FF00));
                k.eq(what, ebx, rights)?;
            }
            code!(k; mov(ecx, selector); mov(rbx, -1i64); cmp(ecx, -1); lsl(rbx, rcx));
            if limit.is_some() {
                k.holds(what, |c, to| c.je(to))?
            } else {
                k.holds(what, |c, to| c.jne(to))?
            }
            if let Some(limit) = limit {
                k.eq64(what, rbx, limit.into())?;
            }
        }
        Ok(())
    })?;
    k.check("SGDT stores ten bytes", "2B, SGDT", |k| {
        code!(k; mov(rax, -1i64); mov(qword_ptr(SCRATCH + 8), rax); sgdt(tbyte_ptr(SCRATCH)));
        k.masked("limit", SCRATCH, 0xFFFF, GDT_SIZE - 1)?;
        k.var64("base", SCRATCH + 2, GDT.into())?;
        k.masked("what is behind", SCRATCH + 8, 0xFFFF_0000, 0xFFFF_0000)
    })?;
    k.check(
        "64-bit forms of instructions about selectors",
        "2A, LAR, LSS; 2B, MOV, SLDT, STR; 2D, VERR",
        |k| {
            code!(k; mov(rbx, -1i64); raw(&[0x48, 0x0F, 0x00, 0xCB]); mov(rcx, -1i64);
            raw(&[0x48, 0x0F, 0x00, 0xC1]));
            k.eq64("STR", rbx, TSS_SEL.into())?;
            k.eq64("SLDT", rcx, 0)?;
            code!(k; mov(rcx, 0xFFFF_FFFF_FFFF_0000u64 | u64::from(USER_DATA)); raw(&[0x48, 0x8E, 0xC1]);
            mov(ebx, es); nop());
            k.eq("MOV ES, RCX", ebx, USER_DATA)?;
            code!(k; raw(&[0x48, 0x0F, 0x00, 0xE1]));
            k.holds("VERR", |c, to| c.je(to))?;
            code!(k; mov(ecx, CODE64); raw(&[0x48, 0x0F, 0x00, 0xE9]));
            k.holds("VERW", |c, to| c.jne(to))?;
            code!(k; mov(rbx, -1i64); raw(&[0x48, 0x0F, 0x02, 0xD9]));
            code!(k; and(rbx, 0xF0_FF00));
            k.eq64("LAR", rbx, 0xA0_9B00)?;
            // Pointers of 16:64 bits: LSS, LFS, LGS by RBX.
            code!(k; mov(rax, 0x1122_3344_5566_7788u64); mov(qword_ptr(SCRATCH), rax);
            mov(dword_ptr(SCRATCH + 8), DATA); mov(ebx, SCRATCH);
            raw(&[0x48, 0x0F, 0xB2, 0x0B]); raw(&[0x48, 0x0F, 0xB4, 0x33]); raw(&[0x48, 0x0F, 0xB5, 0x3B]);
            mov(eax, fs); mov(edx, gs));
            for (what, register) in [("LSS", rcx), ("LFS", rsi), ("LGS", rdi)] {
                k.eq64(what, register, 0x1122_3344_5566_7788)?;
            }
            k.eq("FS", eax, DATA)?;
            k.eq("GS", edx, DATA)
        },
    )?;
    k.check("64-bit far jump and return with a count", "2A, JMP; 2B, RET", |k| {
        let (next, back) = (k.fresh(), k.fresh());
        code!(k; mov(eax, k.imm(&next)); mov(qword_ptr(SCRATCH), rax); mov(dword_ptr(SCRATCH + 8), CODE64);
            mov(ecx, 1); mov(ebx, SCRATCH);
            raw(&[0x48, 0xFF, 0x2B]); mov(ecx, 0); label(&next));
        k.eq("jumped", ecx, 1)?;
        code!(k; mov(rbx, rsp); push(0x11); push(0x22); push(CODE64 as i32); mov(eax, k.imm(&back)); push(rax);
            raw(&[0x48, 0xCA, 16, 0]); ud2();
            label(&back); sub(rbx, rsp));
        k.eq64("RSP", rbx, 0)
    })?;
    k.check("PUSH and POP of FS and GS", "2B, PUSH, POP", |k| {
        code!(k; mov(eax, USER_DATA); mov(fs, eax); mov(rbx, rsp); push(fs); pop(gs); push(gs); pop(fs);
            sub(rbx, rsp); mov(ecx, gs));
        k.eq64("RSP", rbx, 0)?;
        k.eq("GS", ecx, USER_DATA)
    })
}

fn interrupts(k: &mut Kit) -> R {
    k.aside("note", |k| {
        code!(k; push(rax); mov(rax, rsp); add(rax, 8); mov(qword_ptr(V[0]), rax); mov(eax, ss);
            mov(dword_ptr(V[1]), eax); mov(rax, qword_ptr(rsp + 32));
            mov(qword_ptr(V[2]), rax); mov(rax, qword_ptr(rsp + 40)); mov(qword_ptr(V[3]), rax); pushfq();
            pop(qword_ptr(V[4])); pop(rax);
            iretq());
        Ok(())
    })?;
    k.check("frame: SS and RSP always, aligned to 16", "3A, 6.14.2", |k| {
        let handler = k.imm("note");
        k.idt(VEC, gate(CODE64, handler, INT32, 0))?;
        for offset in [0u32, 1, 8, 15] {
            code!(k; mov(rsp, u64::from(STACK - offset)); int(VEC as i32); mov(rbx, rsp));
            k.eq64("RSP afterwards", rbx, u64::from(STACK - offset))?;
            k.var64("RSP in the handler", V[0], (STACK - offset & !15) as u64 - 40)?;
            k.var64("saved RSP", V[2], (STACK - offset).into())?;
            k.var64("saved SS", V[3], DATA.into())?;
            k.var("SS in the handler", V[1], DATA)?;
        }
        Ok(())
    })?;
    k.check("interrupt from ring 3: SS is null", "3A, 6.14.2 and 6.14.4", |k| {
        let handler = k.imm("note");
        k.idt(VEC, gate(CODE64, handler, INT32 | RING3, 0))?;
        k.user("after the handler", UD.anywhere(), |k| {
            code!(k; int(VEC as i32); ud2());
            Ok(())
        })?;
        k.var("SS in the handler", V[1], 0)?;
        k.var64("RSP in the handler", V[0], u64::from(STACK0) - 40)?;
        k.var64("saved SS", V[3], USER_DATA.into())
    })?;
    k.check("interrupt stack table", "3A, 6.14.5", |k| {
        let handler = k.imm("note");
        for (index, stack) in [(1, STACK_IST), (2, STACK_IST2)] {
            k.idt(VEC, gate(CODE64, handler, INT32, index))?;
            code!(k; mov(rsp, u64::from(STACK - 8)); int(VEC as i32));
            k.var64("RSP in the handler", V[0], u64::from(stack) - 40)?;
            k.var("SS stays", V[1], DATA)?;
        }
        k.idt(VEC, gate(CODE64, handler, INT32 | RING3, 1))?;
        k.user("from ring 3", UD.anywhere(), |k| {
            code!(k; int(VEC as i32); ud2());
            Ok(())
        })?;
        k.var64("RSP in the handler", V[0], u64::from(STACK_IST) - 40)
    })?;
    k.check("trap gates keep IF", "3A, 6.12.1.3", |k| {
        let handler = k.imm("note");
        for (access, expected) in [(INT32, 0), (TRAP32, 0x200)] {
            k.idt(VEC, gate(CODE64, handler, access, 0))?;
            code!(k; push(0x202); popfq(); int(VEC as i32); cli());
            k.masked("IF in the handler", V[4], 0x200, expected)?;
        }
        Ok(())
    })?;
    k.check("gates that 64-bit mode refuses", "3A, 6.14.1; 2A, INT n", |k| {
        let handler = k.imm("note");
        let code = VEC * 8 + 2;
        for (what, descriptor, upper, exc) in [
            ("not present", gate(CODE64, handler, INT32 & 0x7F, 0), 0, np(code)),
            ("16-bit gate", gate(CODE64, handler, INT16, 0), 0, gp(code)),
            ("task gate", gate(TSS_SEL, handler, TASK, 0), 0, gp(code)),
            ("call gate", gate(CODE64, handler, CALL32, 0), 0, gp(code)),
            ("null selector", gate(0, handler, INT32, 0), 0, gp(0)),
            ("32-bit code", gate(CODE32, handler, INT32, 0), 0, gp(CODE32)),
            ("data", gate(DATA, handler, INT32, 0), 0, gp(DATA)),
            ("L and D", gate(FREE, handler, INT32, 0), 0, gp(FREE)),
            ("offset that is not canonical", gate(CODE64, handler, INT32, 0), HOLE >> 32, gp(0)),
        ] {
            k.descriptor(FREE, segment(0, FLAT, CODE, G | L | B))?;
            k.idt(VEC, descriptor)?;
            k.poke(IDT + VEC * 16 + 8, upper)?;
            k.raises(what, exc, |k| k.int(VEC as i32))?;
        }
        code!(k; mov(word_ptr(SCRATCH), VEC * 16 + 14); mov(dword_ptr(SCRATCH + 2), IDT);
            mov(dword_ptr(SCRATCH + 6), 0);
            lidt(tbyte_ptr(SCRATCH)));
        k.raises("beyond the limit", gp(code), |k| k.int(VEC as i32))
    })?;
    k.check("stack pointers of the TSS that are not canonical", "3A, 6.15 (#SS)", |k| {
        let handler = k.imm("note");
        k.idt(VEC, gate(CODE64, handler, INT32, 1))?;
        code!(k; mov(rax, HOLE); mov(qword_ptr(TSS + 0x24), rax));
        k.raises("IST", sf(0), |k| k.int(VEC as i32))?;
        k.idt(VEC, gate(CODE64, handler, INT32 | RING3, 0))?;
        let vectors = k.imm("vectors");
        // The exception itself goes to a good stack.
        k.idt(12, gate(CODE64, vectors + 60, INT32, 2))?;
        code!(k; mov(rax, HOLE); mov(qword_ptr(TSS + 4), rax));
        k.user("RSP0", sf(0), |k| k.faulting(|k| k.int(VEC as i32)))
    })?;
    k.check("a TSS without room for the stack", "3A, 6.15 (#TS)", |k| {
        let handler = k.imm("note");
        k.descriptor(FREE, segment(TSS, 0x2A, TSS32, 0))?;
        k.poke(GDT + FREE + 8, 0)?;
        code!(k; mov(eax, FREE); ltr(ax));
        k.idt(VEC, gate(CODE64, handler, INT32, 2))?;
        k.raises("IST2 beyond the limit", ts(FREE), |k| k.int(VEC as i32))
    })?;
    k.check("double fault", "3A, 6.15 (#DF)", |k| {
        let handler = k.imm("note");
        k.idt(13, gate(CODE64, handler, INT32 & 0x7F, 0))?;
        code!(k; mov(rbx, HOLE));
        k.raises("#GP then #NP", DF, |k| k.mov(al, byte_ptr(rbx)))?;
        k.idt(13, gate(CODE32, handler, INT32, 0))?;
        code!(k; mov(rbx, HOLE));
        k.raises("#GP then #GP", DF, |k| k.mov(al, byte_ptr(rbx)))
    })
}

/// Pushes a frame for IRETQ.
pub(super) fn frame(k: &mut Kit, stack: u64, rsp_value: u64, flags: u64, code: u32, rip: u64) -> R {
    for value in [stack, rsp_value, flags, code.into(), rip] {
        code!(k; mov(rax, value); push(rax));
    }
    Ok(())
}

fn iret(k: &mut Kit) -> R {
    k.check("IRETQ pops SS and RSP in the same ring", "2A, IRET; 3A, 6.14.3", |k| {
        let next = k.fresh();
        let rip = k.imm(&next);
        frame(k, 0, (STACK - 0x123).into(), 0xAD7, CODE64, rip.into())?;
        code!(k; iretq(); label(&next); mov(rbx, rsp); pushfq(); pop(rcx); mov(edx, ss); mov(esp, STACK);
            mov(eax, DATA); mov(ss, eax); cld());
        k.eq64("RSP", rbx, (STACK - 0x123).into())?;
        k.eq64("flags", rcx, 0xAD7)?;
        k.eq("SS null", edx, 0)
    })?;
    k.check("IRETQ that fails", "2A, IRET", |k| {
        k.descriptor(FREE, segment(0, FLAT, CODE | RING3, G | L | B))?;
        let start = k.imm("main");
        for (what, stack, code, rip, exc) in [
            ("CS null", DATA, 0, start.into(), gp(0)),
            ("CS data", DATA, DATA, start.into(), gp(DATA)),
            ("CS with L and D", USER_DATA, FREE | 3, start.into(), gp(FREE)),
            ("RIP not canonical", DATA, CODE64, HOLE, gp(0)),
            ("SS null in 64-bit ring 3", 3, USER64, start.into(), gp(0)),
            ("SS null in 32-bit ring 3", 3, USER32, start.into(), gp(0)),
            ("SS of ring 0 in ring 3", DATA, USER64, start.into(), gp(DATA)),
            ("SS with RPL 3 in ring 0", USER_DATA, CODE64, start.into(), gp(USER_DATA & !3)),
        ] {
            code!(k; mov(rsp, u64::from(STACK)));
            frame(k, stack.into(), STACK.into(), 2, code, rip)?;
            k.raises(what, exc, |k| k.iretq())?;
        }
        code!(k; mov(rsp, u64::from(STACK)));
        frame(k, DATA.into(), STACK.into(), 2, CODE64, start.into())?;
        code!(k; pushfq(); or(qword_ptr(rsp), 0x4000); popfq());
        k.raises("NT", gp(0), |k| k.iretq())
    })?;
    k.check("IRETD and IRETW in 64-bit mode", "2A, IRET", |k| {
        let next = k.fresh();
        code!(k; mov(rbx, rsp); sub(rsp, 20); mov(dword_ptr(rsp), k.imm(&next));
            mov(dword_ptr(rsp + 4), CODE64); mov(dword_ptr(rsp + 8), 0x3);
            mov(dword_ptr(rsp + 12), STACK); mov(dword_ptr(rsp + 16), DATA); iretd(); label(&next); setb(al);
            movzx(ecx, al); sub(rbx, rsp));
        k.eq("CF", ecx, 1)?;
        k.eq64("RSP", rbx, 0)
    })?;
    k.check("IRETQ cannot set VM, and clears data segments", "2A, IRET; 3A, 5.8.6", |k| {
        let (inside, after) = (k.fresh(), k.fresh());
        let rip = k.user_imm(&inside);
        code!(k; mov(eax, DATA); mov(es, eax); mov(eax, USER_DATA); mov(ds, eax); mov(fs, eax); mov(eax, DATA);
            mov(gs, eax));
        k.arm(&after)?;
        frame(k, USER_DATA.into(), (STACK3 + USER_ALIAS).into(), 0x2_0002, USER64, rip.into())?;
        code!(k; iretq(); label(&inside); mov(eax, ds); mov(ebx, es); mov(ecx, fs); mov(edx, gs));
        k.faulting(|k| k.hlt())?;
        k.label(&after)?;
        k.seen("HLT", gp(0), None)?;
        k.masked("VM", EXC_FLAGS, 0x2_0000, 0)?;
        k.var("DS of ring 3", EXC_AX, USER_DATA)?;
        k.var("ES of ring 0", EXC_BX, 0)?;
        k.var("FS of ring 3", EXC_CX, USER_DATA)?;
        k.var("GS of ring 0", EXC_DX, 0)
    })
}

fn far(k: &mut Kit) -> R {
    k.aside("gate64", |k| {
        code!(k; mov(qword_ptr(V[0]), rsp); mov(eax, ss); mov(dword_ptr(V[1]), eax);
            mov(rax, qword_ptr(rsp + 16)); mov(qword_ptr(V[2]), rax);
            mov(rax, qword_ptr(rsp + 24)); mov(qword_ptr(V[3]), rax); raw(&[0x48, 0xCB]));
        Ok(())
    })?;
    k.check("far jumps and calls by memory", "2A, JMP, CALL", |k| {
        let next = k.fresh();
        code!(k; mov(dword_ptr(SCRATCH), k.imm(&next)); mov(dword_ptr(SCRATCH + 4), CODE64);
            jmp(fword_ptr(SCRATCH)); ud2(); label(&next));
        let (there, back) = (k.fresh(), k.fresh());
        k.aside(&there, |k| {
            code!(k; mov(rcx, qword_ptr(rsp)); mov(rdx, qword_ptr(rsp + 8)); raw(&[0x48, 0xCB]));
            Ok(())
        })?;
        // m16:64.
        code!(k; mov(rbx, rsp); mov(eax, k.imm(&there)); mov(qword_ptr(SCRATCH), rax);
            mov(word_ptr(SCRATCH + 8), CODE64);
            raw(&[0x48, 0xFF, 0x1C, 0x25, SCRATCH as u8, (SCRATCH >> 8) as u8, 0, 0]); label(&back);
            sub(rbx, rsp));
        let rip = k.imm(&back);
        k.eq64("return RIP", rcx, rip.into())?;
        k.eq64("return CS", rdx, CODE64.into())?;
        k.eq64("RSP", rbx, 0)?;
        for (what, selector, exc) in [
            ("null", 0u32, gp(0)),
            ("data", DATA, gp(DATA)),
            ("ring 3 code", USER64 & !3, gp(USER64 & !3)),
            ("L and D", FREE, gp(FREE)),
            ("TSS", TSS_SEL, gp(TSS_SEL)),
        ] {
            k.descriptor(FREE, segment(0, FLAT, CODE, G | L | B))?;
            code!(k; mov(dword_ptr(SCRATCH), 0); mov(dword_ptr(SCRATCH + 4), selector));
            k.raises(what, exc, |k| k.jmp(fword_ptr(SCRATCH)))?;
        }
        Ok(())
    })?;
    k.check("64-bit call gate", "3A, 5.8.3.1 and 5.8.5.1", |k| {
        let target = k.imm("gate64");
        k.descriptor(FREE, gate(CODE64, target, CALL32 | RING3, 0))?;
        k.poke(GDT + FREE + 8, 0)?;
        code!(k; mov(dword_ptr(SCRATCH), 0); mov(dword_ptr(SCRATCH + 4), FREE));
        k.user("after the call", UD.anywhere(), |k| {
            code!(k; call(fword_ptr(USER_ALIAS + SCRATCH)); mov(rbx, rsp); ud2());
            Ok(())
        })?;
        k.var64("RSP", V[0], u64::from(STACK0) - 32)?;
        k.var("SS", V[1], 0)?;
        k.var64("outer RSP", V[2], (STACK3 + USER_ALIAS).into())?;
        k.var64("outer SS", V[3], USER_DATA.into())?;
        k.var64("RSP afterwards", EXC_BX, (STACK3 + USER_ALIAS).into())
    })?;
    k.check("call gates that 64-bit mode refuses", "2A, CALL; 3A, 5.8.3.1", |k| {
        let target = k.imm("gate64");
        for (what, descriptor, upper, exc) in [
            ("to 32-bit code", gate(CODE32, target, CALL32, 0), 0, gp(CODE32)),
            ("16-bit gate", gate(CODE64, target, CALL16, 0), 0, gp(FREE)),
            ("task gate", gate(TSS_SEL, target, TASK, 0), 0, gp(FREE)),
            ("not present", gate(CODE64, target, CALL32 & 0x7F, 0), 0, np(FREE)),
            ("null target", gate(0, target, CALL32, 0), 0, gp(0)),
            ("offset not canonical", gate(CODE64, target, CALL32, 0), HOLE >> 32, gp(0)),
            ("type bits in the upper half", gate(CODE64, target, CALL32, 0), 0x1F00_0000_0000, gp(FREE)),
        ] {
            k.descriptor(FREE, descriptor)?;
            k.poke(GDT + FREE + 8, upper)?;
            code!(k; mov(dword_ptr(SCRATCH), 0); mov(dword_ptr(SCRATCH + 4), FREE));
            k.raises(what, exc, |k| k.call(fword_ptr(SCRATCH)))?;
        }
        Ok(())
    })
}

fn compatibility(k: &mut Kit) -> R {
    k.check("compatibility mode in ring 0 and back", "3A, 2.2 and 9.8.5.3", |k| {
        let next = k.fresh();
        let back = next.clone();
        k.elsewhere(32, "compat0", move |k| {
            // INC EAX is a REX prefix in 64-bit mode.
            code!(k; inc(eax); push(eax); mov(ebx, esp); pop(eax); jmp_far(CODE64 as u16, k.imm(&back)));
            Ok(())
        });
        code!(k; mov(rax, 0x7777_7777_0000_0041u64); mov(dword_ptr(SCRATCH), k.imm("compat0"));
            mov(dword_ptr(SCRATCH + 4), CODE32);
            jmp(fword_ptr(SCRATCH)); label(&next));
        k.eq("EAX", eax, 0x42)?;
        k.eq("ESP after a 4-byte push", ebx, STACK - 4)
    })?;
    k.check("exception from compatibility mode in ring 3", "3A, 6.14", |k| {
        k.elsewhere(32, "compat3", |k| {
            code!(k; push(eax); mov(ecx, esp));
            k.label("compat3.at")?;
            k.faulting(|k| k.hlt())
        });
        let after = k.fresh();
        k.arm(&after)?;
        let rip = k.imm("compat3") + USER_ALIAS;
        frame(k, USER_DATA.into(), (STACK3 + USER_ALIAS).into(), 2, USER32, rip.into())?;
        code!(k; iretq(); label(&after));
        let at = k.imm("compat3.at") + USER_ALIAS;
        k.seen("HLT", gp(0), Some(at))?;
        k.var("CS", EXC_CS, USER32)?;
        k.var64("RSP in the handler", EXC_HANDLER_SP, u64::from(STACK0) - 48)?;
        k.var("ESP", EXC_CX, STACK3 + USER_ALIAS - 4)
    })?;
    k.check("segments count in compatibility mode", "3A, 5.3.1; 1, 3.4.2.1", |k| {
        k.elsewhere(32, "compat.limit", |k| {
            code!(k; mov(eax, FREE); mov(es, eax); mov(ebx, dword_ptr(0xFC).es()));
            k.label("compat.limit.at")?;
            k.faulting(|k| k.mov(eax, dword_ptr(0xFD).es()))
        });
        k.descriptor(FREE, segment(SCRATCH, 0xFF, WRITABLE, B))?;
        k.poke(SCRATCH + 0xFC, 0x1234_5678)?;
        let after = k.fresh();
        k.arm(&after)?;
        code!(k; mov(dword_ptr(SCRATCH), k.imm("compat.limit")); mov(dword_ptr(SCRATCH + 4), CODE32);
            jmp(fword_ptr(SCRATCH)); label(&after));
        let at = k.imm("compat.limit.at");
        k.seen("beyond the limit", gp(0), Some(at))?;
        k.var("read within", EXC_BX, 0x1234_5678)
    })?;
    k.check("16-bit code in compatibility mode", "3A, 2.2; 3A, 3.4.5", |k| {
        let next = k.fresh();
        let back = next.clone();
        k.elsewhere(16, "compat16", move |k| {
            code!(k; mov(ax, 0x5678); mov(bx, 0xFFFF); mov(cl, byte_ptr(bx + 0x101)); mov(esi, CODE64);
                push(esi); mov(esi, k.imm(&back)); push(esi);
                raw(&[0x66, 0xCB]));
            Ok(())
        });
        code!(k; mov(eax, 0xAAAA_0000u32); xor(ecx, ecx); mov(byte_ptr(0x100), 0x42);
            mov(dword_ptr(SCRATCH), k.off("compat16"));
            mov(dword_ptr(SCRATCH + 4), CODE16); mov(rsp, u64::from(STACK)); jmp(fword_ptr(SCRATCH));
            label(&next));
        k.eq("EAX", eax, 0xAAAA_5678)?;
        k.eq("byte at 0xFFFF + 0x101", ecx, 0x42)
    })
}

fn modes(k: &mut Kit) -> R {
    k.check("what keeps 64-bit mode", "3A, 4.1.2; 2B, MOV", |k| {
        code!(k; mov(rax, cr0); and(eax, 0x7FFF_FFFF));
        k.raises("clear CR0.PG in 64-bit code", gp(0), |k| k.mov(cr0, rax))?;
        code!(k; mov(rax, cr4); and(eax, !0x20));
        k.raises("clear CR4.PAE", gp(0), |k| k.mov(cr4, rax))?;
        code!(k; mov(rax, cr4); or(eax, 0x1000));
        k.raises("set CR4.LA57", gp(0), |k| k.mov(cr4, rax))?;
        code!(k; mov(ecx, EFER); rdmsr(); and(eax, !0x100));
        k.raises("clear EFER.LME", gp(0), |k| k.wrmsr())?;
        code!(k; mov(rax, 1u64 << 32); mov(rbx, cr0); or(rax, rbx));
        k.raises("upper half of CR0", gp(0), |k| k.mov(cr0, rax))?;
        code!(k; mov(ecx, EFER); rdmsr(); and(eax, !0x400); wrmsr(); rdmsr(); and(eax, 0x400));
        k.eq("EFER.LMA is read-only", eax, 0x400)
    })?;
    k.check("down to real mode and up again", "3A, 9.8.5.4 and 9.9.2", |k| {
        let back = k.fresh();
        let up = back.clone();
        k.elsewhere(32, "down.32", |k| {
            code!(k; mov(eax, DATA); mov(ds, eax); mov(es, eax); mov(ss, eax); mov(eax, cr0);
                and(eax, 0x7FFF_FFFF); mov(cr0, eax));
            // Protected mode: EFER.LMA is gone.
            code!(k; mov(ecx, EFER); rdmsr(); mov(dword_ptr(V[0]), eax);
                jmp_far(CODE16 as u16, k.off("down.16")));
            Ok(())
        });
        k.elsewhere(16, "down.16", |k| {
            // JMP far with a 32-bit offset.
            let jump = [&[0x66, 0xEA], &k.imm("up.32").to_le_bytes()[..], &[CODE32 as u8, 0]].concat();
            code!(k; mov(ax, DATA16); mov(ds, eax); mov(ss, eax); mov(eax, cr0); and(al, 0xFEu32);
                mov(cr0, eax);
                jmp_far(IMAGE_SEGMENT as u16, k.off("down.real")));
            // SHL of the selector makes the base here.
            code!(k; label("down.real"); mov(ax, 0xFFFF); mov(ds, eax); mov(bl, byte_ptr(0x10)); xor(ax, ax);
                mov(ds, eax); mov(ss, eax);
                mov(word_ptr(V[1]), cs); mov(eax, cr0); or(al, 1); mov(cr0, eax); raw(&jump));
            Ok(())
        });
        k.elsewhere(32, "up.32", move |k| {
            code!(k; mov(eax, DATA); mov(ds, eax); mov(es, eax); mov(ss, eax); mov(eax, cr0);
                or(eax, 0x8000_0000u32); mov(cr0, eax);
                jmp_far(CODE64 as u16, k.imm(&up)));
            Ok(())
        });
        code!(k; mov(dword_ptr(SCRATCH), k.imm("down.32")); mov(dword_ptr(SCRATCH + 4), CODE32);
            jmp(fword_ptr(SCRATCH)); label(&back));
        k.masked("EFER without paging: LME, not LMA", V[0], 0x500, 0x100)?;
        k.masked("CS in real mode", V[1], 0xFFFF, IMAGE_SEGMENT)?;
        code!(k; mov(ecx, EFER); rdmsr(); and(eax, 0x500));
        k.eq("EFER again", eax, 0x500)
    })
}
