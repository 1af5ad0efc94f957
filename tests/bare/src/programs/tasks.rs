//! Tasks: switches by JMP, CALL, IRET, interrupts; 32- and 16-bit task state segments; what a switch refuses, and in which task
//! the exception comes (Intel SDM volume 3A, chapter 7).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const FLAT: u32 = 0xF_FFFF;
const VEC: u32 = 0x60;

pub fn emit(k: &mut Kit) -> R {
    switches(k)?;
    nested(k)?;
    refusals(k)?;
    bad_tasks(k)?;
    sixteen(k)?;
    other(k)
}

/// Fills task B: runs at `entry` with flat segments on its own stack, and values of its own in all registers.
fn task_b(k: &mut Kit, entry: &str) -> R {
    let eip = k.imm(entry);
    k.task(TSS_B, 0, eip, STACK_B)?;
    for (offset, value) in [
        (tss::EAX, 0xA0A0),
        (tss::EAX + 4, 0xC0C0),
        (tss::EAX + 8, 0xD0D0),
        (tss::EAX + 12, 0xB0B0),
        (tss::ESP + 4, 0xB1B1),
        (tss::ESP + 8, 0x5151),
        (tss::ESP + 12, 0xD1D1),
        (tss::FS, USER_DATA),
        (tss::GS, 0),
        (tss::LDTR, LDT_SEL),
    ] {
        set(k, offset, value)?;
    }
    Ok(())
}

fn set(k: &mut Kit, offset: u32, value: u32) -> R {
    k.mov(dword_ptr(TSS_B + offset), value)
}

fn switches(k: &mut Kit) -> R {
    k.check("JMP to a task", "3A, 7.3 and table 7-2", |k| {
        let (there, back) = (k.fresh(), k.fresh());
        task_b(k, &there)?;
        set(k, tss::EFLAGS, 0xAD7)?;
        code!(k; mov(eax, 0x11); mov(ecx, 0x22); mov(edx, 0x33); mov(ebx, 0x44); mov(esi, 0x55);
            mov(edi, 0x66); mov(ebp, 0x77);
            mov(esp, STACK - 64); stc(); jmp_far(TSS_B_SEL as u16, 0x1234_5678); label(&back); ud2());
        k.label(&there)?;
        code!(k; pushfd(); mov(dword_ptr(SCRATCH), eax); mov(dword_ptr(SCRATCH + 4), ecx);
            mov(dword_ptr(SCRATCH + 8), edx);
            mov(dword_ptr(SCRATCH + 12), ebx); mov(dword_ptr(SCRATCH + 16), ebp);
            mov(dword_ptr(SCRATCH + 20), esi);
            mov(dword_ptr(SCRATCH + 24), edi); pop(ebx); mov(ecx, 2); push(ecx); popfd(); mov(edx, cr0));
        k.eq("flags", ebx, 0xAD7)?;
        code!(k; and(edx, 8));
        k.eq("CR0.TS", edx, 8)?;
        for (index, value) in [0xA0A0, 0xC0C0, 0xD0D0, 0xB0B0, 0xB1B1, 0x5151, 0xD1D1].into_iter().enumerate()
        {
            k.var("general register", SCRATCH + index as u32 * 4, value)?;
        }
        code!(k; mov(ebx, esp); str(ecx); and(ecx, 0xFFFF); mov(edx, fs); mov(esi, gs); sldt(edi);
            and(edi, 0xFFFF));
        k.eq("ESP", ebx, STACK_B)?;
        k.eq("task register", ecx, TSS_B_SEL)?;
        k.eq("FS", edx, USER_DATA)?;
        k.eq("GS", esi, 0)?;
        k.eq("LDTR", edi, LDT_SEL)?;
        // What the old task left.
        let ip = k.imm(&back);
        for (what, offset, value) in [
            ("saved EIP", tss::EIP, ip),
            ("saved EAX", tss::EAX, 0x11),
            ("saved ECX", tss::EAX + 4, 0x22),
            ("saved ESP", tss::ESP, STACK - 64),
            ("saved EBP", tss::ESP + 4, 0x77),
            ("saved EDI", tss::ESP + 12, 0x66),
        ] {
            k.var(what, TSS + offset, value)?;
        }
        k.masked("saved CS", TSS + tss::CS, 0xFFFF, CODE32)?;
        k.masked("saved flags", TSS + tss::EFLAGS, 0x4003, 3)?;
        k.masked("old task available", GDT + TSS_SEL + 4, 0xFF00, 0x8900)?;
        k.masked("new task busy", GDT + TSS_B_SEL + 4, 0xFF00, 0x8B00)?;
        k.masked("no link", TSS_B, 0xFFFF, 0)
    })?;
    k.check("JMP back resumes the old task", "3A, 7.3", |k| {
        let there = k.fresh();
        task_b(k, &there)?;
        code!(k; mov(ebx, 0x4444); mov(ecx, esp); jmp_far(TSS_B_SEL as u16, 0));
        let over = k.fresh();
        code!(k; sub(ecx, esp); jmp(k.to(&over)); label(&there); jmp_far(TSS_SEL as u16, 0); label(&over));
        k.eq("EBX", ebx, 0x4444)?;
        k.eq("ESP", ecx, 0)?;
        k.masked("task B available", GDT + TSS_B_SEL + 4, 0xFF00, 0x8900)
    })?;
    k.check("JMP through a task gate", "3A, 7.2.5", |k| {
        let there = k.fresh();
        task_b(k, &there)?;
        k.descriptor(FREE, gate(TSS_B_SEL, 0, TASK, 0))?;
        code!(k; jmp_far(FREE as u16, 0); ud2(); label(&there); str(ebx); and(ebx, 0xFFFF));
        k.eq("task register", ebx, TSS_B_SEL)
    })?;
    k.check("#NM after a switch", "3A, 7.3; 3A, 2.5", |k| {
        let there = k.fresh();
        task_b(k, &there)?;
        code!(k; jmp_far(TSS_B_SEL as u16, 0); label(&there));
        k.raises("x87 instruction", NM, |k| k.fld1())
    })
}

fn nested(k: &mut Kit) -> R {
    k.check("CALL to a task and IRET", "3A, 7.4", |k| {
        let (there, over) = (k.fresh(), k.fresh());
        task_b(k, &there)?;
        code!(k; mov(ebx, 0x4444); mov(ecx, esp); call_far(TSS_B_SEL as u16, 0); sub(ecx, esp); pushfd();
            pop(edx); jmp(k.to(&over)));
        code!(k; label(&there); pushfd(); pop(dword_ptr(V[0])); movzx(eax, word_ptr(TSS_B));
            mov(dword_ptr(V[1]), eax));
        code!(k; mov(eax, dword_ptr(GDT + TSS_SEL + 4)); mov(dword_ptr(V[2]), eax);
            mov(eax, dword_ptr(GDT + TSS_B_SEL + 4));
            mov(dword_ptr(V[3]), eax); iretd(); label(&over));
        k.masked("NT in the new task", V[0], 0x4000, 0x4000)?;
        k.var("link", V[1], TSS_SEL)?;
        k.masked("old task stays busy", V[2], 0xFF00, 0x8B00)?;
        k.masked("new task is busy", V[3], 0xFF00, 0x8B00)?;
        k.eq("EBX afterwards", ebx, 0x4444)?;
        k.eq("ESP afterwards", ecx, 0)?;
        code!(k; and(edx, 0x4000));
        k.eq("NT afterwards", edx, 0)?;
        k.masked("task B available", GDT + TSS_B_SEL + 4, 0xFF00, 0x8900)?;
        k.masked("NT that IRET saved", TSS_B + tss::EFLAGS, 0x4000, 0)
    })?;
    k.check("interrupt through a task gate", "3A, 6.12.2 and 7.3", |k| {
        let (there, over) = (k.fresh(), k.fresh());
        task_b(k, &there)?;
        k.idt(VEC, gate(TSS_B_SEL, 0, TASK, 0))?;
        code!(k; mov(ebx, 0x4444); int(VEC as i32); jmp(k.to(&over)); label(&there); mov(dword_ptr(V[0]), esp);
            iretd(); label(&over));
        k.eq("EBX afterwards", ebx, 0x4444)?;
        k.var("no error code", V[0], STACK_B)
    })?;
    k.check("exception through a task gate", "3A, 6.12.2", |k| {
        let (there, over) = (k.fresh(), k.fresh());
        task_b(k, &there)?;
        k.idt(13, gate(TSS_B_SEL, 0, TASK, 0))?;
        code!(k; mov(eax, GDT_SIZE); mov(es, eax); jmp(k.to(&over)); label(&there); pop(dword_ptr(V[0])));
        // The handler skips the instruction (two bytes) in the task's image.
        code!(k; add(dword_ptr(TSS + tss::EIP), 2); mov(eax, dword_ptr(TSS + tss::EFLAGS));
            mov(dword_ptr(V[1]), eax); iretd(); label(&over));
        k.var("error code", V[0], GDT_SIZE)?;
        k.masked("RF saved", V[1], 0x1_0000, 0x1_0000)
    })?;
    k.check("task gate from ring 3", "3A, 7.2.5", |k| {
        let there = k.fresh();
        task_b(k, &there)?;
        k.descriptor(FREE, gate(TSS_B_SEL, 0, TASK | RING3, 0))?;
        k.descriptor(FREE + 8, gate(TSS_B_SEL, 0, TASK, 0))?;
        k.user("TSS of ring 0", gp(TSS_B_SEL), |k| k.faulting(|k| k.jmp_far(TSS_B_SEL as u16, 0)))?;
        k.user("gate of ring 0", gp(FREE + 8), |k| k.faulting(|k| k.jmp_far(FREE as u16 + 8, 0)))?;
        k.user("gate of ring 3, back by IRET", UD.anywhere(), |k| {
            code!(k; call_far(FREE as u16, 0); ud2(); label(&there); iretd());
            Ok(())
        })
    })?;
    k.check("IRET with NT and a bad link", "2A, IRET", |k| {
        for (what, link, exc) in [
            ("an available task", TSS_B_SEL, ts(TSS_B_SEL)),
            ("data", DATA, ts(DATA)),
            ("into the LDT", TSS_B_SEL | 4, ts(TSS_B_SEL | 4)),
            ("beyond the GDT", GDT_SIZE, ts(GDT_SIZE)),
        ] {
            code!(k; mov(word_ptr(TSS), link); push(0x4002); popfd());
            k.raises(what, exc, |k| k.iretd())?;
        }
        Ok(())
    })
}

fn refusals(k: &mut Kit) -> R {
    k.check("switches refused in the old task", "3A, table 7-1", |k| {
        let there = k.fresh();
        k.aside(&there, |k| k.ud2())?;
        for (what, descriptor, exc) in [
            ("not present", segment(TSS_B, 0x67, TSS32 & 0x7F, 0), np(FREE)),
            ("busy", segment(TSS_B, 0x67, TSS32 | 2, 0), gp(FREE)),
            ("too small", segment(TSS_B, 0x66, TSS32, 0), ts(FREE)),
            ("16-bit, too small", segment(TSS_B, 0x2A, TSS16, 0), ts(FREE)),
            ("gate to data", gate(DATA, 0, TASK, 0), gp(DATA)),
            ("gate not present", gate(TSS_B_SEL, 0, TASK & 0x7F, 0), np(FREE)),
            ("gate to a busy task", gate(TSS_SEL, 0, TASK, 0), gp(TSS_SEL)),
            ("gate into the LDT", gate(TSS_B_SEL | 4, 0, TASK, 0), gp(TSS_B_SEL | 4)),
            ("gate beyond the GDT", gate(GDT_SIZE, 0, TASK, 0), gp(GDT_SIZE)),
            ("gate to null", gate(0, 0, TASK, 0), gp(0)),
        ] {
            task_b(k, &there)?;
            k.descriptor(FREE, descriptor)?;
            k.raises(what, exc, |k| k.jmp_far(FREE as u16, 0))?;
            k.raises(what, exc, |k| k.call_far(FREE as u16, 0))?;
        }
        k.raises("RPL above DPL", gp(TSS_B_SEL), |k| k.jmp_far(TSS_B_SEL as u16 | 3, 0))?;
        code!(k; str(ebx); and(ebx, 0xFFFF));
        k.eq("task register", ebx, TSS_SEL)
    })
}

fn bad_tasks(k: &mut Kit) -> R {
    k.check("exceptions that come in the new task", "3A, table 7-1", |k| {
        let there = k.fresh();
        k.aside(&there, |k| k.ud2())?;
        for (what, offset, value, exc) in [
            ("LDT of data", tss::LDTR, DATA, ts(DATA)),
            ("LDT not present", tss::LDTR, FREE + 16, ts(FREE + 16)),
            ("CS null", tss::CS, 0, ts(0)),
            ("CS data", tss::CS, DATA, ts(DATA)),
            ("CS not present", tss::CS, FREE, np(FREE)),
            ("CS with DPL 3, RPL 0", tss::CS, USER32 & !3, ts(USER32 & !3)),
            ("SS null", tss::SS, 0, ts(0)),
            ("SS read-only", tss::SS, FREE + 24, ts(FREE + 24)),
            ("SS not present", tss::SS, FREE + 8, sf(FREE + 8)),
            ("SS with RPL 3", tss::SS, DATA | 3, ts(DATA)),
            ("DS beyond the GDT", tss::DS, GDT_SIZE, ts(GDT_SIZE)),
            ("ES of a system segment", tss::ES, TSS_SEL, ts(TSS_SEL)),
            ("FS not present", tss::FS, FREE + 8, np(FREE + 8)),
            ("GS with RPL 3, DPL 0", tss::GS, DATA | 3, ts(DATA)),
        ] {
            task_b(k, &there)?;
            set(k, offset, value)?;
            k.descriptor(FREE, segment(0, FLAT, 0x1B, G | B))?;
            k.descriptor(FREE + 8, segment(0, FLAT, 0x13, G | B))?;
            k.descriptor(FREE + 16, segment(LDT, 0xFF, 0x02, 0))?;
            k.descriptor(FREE + 24, segment(0, FLAT, 0x91, G | B))?;
            k.descriptor(TSS_SEL, segment(TSS, TSS_LIMIT, TSS32, 0))?;
            k.descriptor(TSS_B_SEL, segment(TSS_B, 0x67, TSS32, 0))?;
            code!(k; mov(eax, TSS_SEL); ltr(ax));
            // The handler is a task of its own: the new task's segments may be unusable.
            let handler = k.imm("vectors") + exc.vector() * 5;
            k.descriptor(FREE + 32, segment(SCRATCH, 0x67, TSS32, 0))?;
            k.idt(exc.vector(), gate(FREE + 32, 0, TASK, 0))?;
            k.task(SCRATCH, 0, handler, STACK_IST)?;
            let after = k.fresh();
            k.arm(&after)?;
            code!(k; jmp_far(TSS_B_SEL as u16, 0); label(&after));
            k.seen(what, exc, None)?;
            // It came in task B, before its first instruction.
            k.masked("task that the exception came in", SCRATCH, 0xFFFF, TSS_B_SEL)?;
            let eip = k.imm(&there);
            k.var("its EIP", TSS_B + tss::EIP, eip)?;
        }
        Ok(())
    })?;
    k.check("EIP beyond the new task's code segment", "3A, table 7-1", |k| {
        let there = k.fresh();
        k.aside(&there, |k| k.ud2())?;
        task_b(k, &there)?;
        k.descriptor(FREE, segment(0, 0xFFF, CODE, B))?;
        set(k, tss::CS, FREE)?;
        let after = k.fresh();
        k.arm(&after)?;
        code!(k; jmp_far(TSS_B_SEL as u16, 0); label(&after));
        k.seen("jump", gp(0), None)
    })
}

fn sixteen(k: &mut Kit) -> R {
    k.check("switch to a 16-bit task and back", "3A, 7.6", |k| {
        let (there, over) = (k.fresh(), k.fresh());
        // The code of a 16-bit task lies in the first 64 KiB of its segment.
        k.descriptor(FREE, segment(IMAGE, 0xFFFF, CODE, B))?;
        let ip = k.off(&there);
        for (index, value) in [
            0, 0, 0, 0, 0, 0, 0, ip, 2, 0xA0A0, 0xC0C0, 0xD0D0, 0xB0B0, STACK_B, 0xB1B1, 0x5151, 0xD1D1,
            DATA, FREE, DATA, DATA, LDT_SEL,
        ]
        .into_iter()
        .enumerate()
        {
            code!(k; mov(word_ptr(TSS16_A + index as u32 * 2), value));
        }
        code!(k; mov(eax, USER_DATA); mov(fs, eax); mov(gs, eax); mov(ebx, 0x4444_4444); mov(ecx, esp);
            call_far(TSS16_A_SEL as u16, 0);
            sub(ecx, esp); mov(edx, fs); jmp(k.to(&over)); label(&there));
        code!(k; movzx(eax, ax); mov(dword_ptr(V[0]), eax); movzx(eax, sp); mov(dword_ptr(V[1]), eax);
            mov(eax, fs);
            mov(dword_ptr(V[2]), eax); str(eax); and(eax, 0xFFFF); mov(dword_ptr(V[3]), eax); pushfd();
            pop(dword_ptr(V[4])); movzx(eax, di);
            mov(dword_ptr(V[5]), eax); sldt(eax); and(eax, 0xFFFF); mov(dword_ptr(V[6]), eax); iretd();
            label(&over));
        k.var("AX", V[0], 0xA0A0)?;
        k.var("SP", V[1], STACK_B)?;
        k.var("FS", V[2], 0)?;
        k.var("task register", V[3], TSS16_A_SEL)?;
        k.masked("NT", V[4], 0x4000, 0x4000)?;
        k.var("DI", V[5], 0xD1D1)?;
        k.var("LDTR", V[6], LDT_SEL)?;
        k.masked("link", TSS16_A, 0xFFFF, TSS_SEL)?;
        k.eq("EBX afterwards", ebx, 0x4444_4444)?;
        k.eq("ESP afterwards", ecx, 0)?;
        k.eq("FS afterwards", edx, USER_DATA)
    })
}

fn other(k: &mut Kit) -> R {
    k.check("debug trap flag", "3A, 7.2.1; 3B, 17.3.1.5", |k| {
        let there = k.fresh();
        let after = format!("{there}.after");
        task_b(k, &there)?;
        set(k, tss::TRAP, 0x68 << 16 | 1)?;
        k.arm(&after)?;
        code!(k; jmp_far(TSS_B_SEL as u16, 0); label(&there); ud2(); label(&after));
        let ip = k.imm(&there);
        k.seen("trap", DB, Some(ip))?;
        k.masked("DR6.BT", EXC_DR6, 0xE00F, 0x8000)
    })?;
    k.check("a task switch clears the local breakpoints", "3B, 17.2.4", |k| {
        let there = k.fresh();
        task_b(k, &there)?;
        code!(k; mov(eax, 0x4FF); mov(dr7, eax); jmp_far(TSS_B_SEL as u16, 0); label(&there); mov(ebx, dr7));
        k.eq("DR7", ebx, 0x4AA)
    })?;
    k.check("a task in ring 3", "3A, 7.3", |k| {
        let (there, after) = (k.fresh(), k.fresh());
        task_b(k, &there)?;
        for (offset, value) in [
            (tss::CS, USER32),
            (tss::SS, USER_DATA),
            (tss::DS, 0),
            (tss::ES, USER_DATA),
            (4, STACK_IST),
            (8, DATA),
            (tss::ESP, STACK3),
        ] {
            set(k, offset, value)?;
        }
        k.arm(&after)?;
        code!(k; jmp_far(TSS_B_SEL as u16, 0); label(&there); hlt(); label(&after));
        let ip = k.imm(&there);
        k.seen("HLT", gp(0), Some(ip))?;
        k.masked("CS", EXC_CS, 0xFFFF, USER32)?;
        k.var("ring 0's stack of the new task", EXC_HANDLER_SP, STACK_IST - 24)
    })?;
    k.check("a task in virtual-8086 mode", "3A, 7.3; 3B, 20.2.1", |k| {
        let after = k.fresh();
        k.elsewhere(16, "v86.task", |k| k.hlt());
        task_b(k, &after)?;
        let ip = k.off("v86.task");
        for (offset, value) in [
            (tss::EIP, ip),
            (tss::EFLAGS, 0x2_0002),
            (tss::CS, IMAGE_SEGMENT),
            (tss::SS, 0),
            (tss::DS, 0x1234),
            (tss::ES, 0x5678),
            (tss::FS, 0),
            (4, STACK_IST),
            (8, DATA),
        ] {
            set(k, offset, value)?;
        }
        k.arm(&after)?;
        code!(k; jmp_far(TSS_B_SEL as u16, 0); label(&after));
        k.seen("HLT", gp(0), Some(ip))?;
        k.masked("VM", EXC_FLAGS, 0x2_0000, 0x2_0000)?;
        k.var("CS", EXC_CS, IMAGE_SEGMENT)?;
        k.var("ES", EXC_ES, 0x5678)
    })
}
