//! What every program carries: the way into its home mode, the routines behind [`Kit`], the exception handlers.
//!
//! Routines take their arguments as doublewords behind the call and keep all registers and flags. They print on the debug
//! console, a byte at a time, so that nothing but a port is needed.
//!
//! The interrupt tables point to 256 calls in a row: the return address tells the vector. The handler writes down what it
//! finds and goes on where the check wants it.

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::{Kit, code};
use crate::layout::*;

/// Exceptions that push an error code (Intel SDM volume 3A, table 6-1), as a bit mask.
const WITH_ERROR_CODE: u32 = 0x0022_7D00;

/// From 32-bit protected mode with flat segments to the home mode, and to the label `main`. 32-bit code.
pub fn start(k: &mut Kit) -> R {
    let home = k.plan.home;
    k.label("start")?;
    code!(k; lgdt(fword_ptr(k.imm("gdtr.image"))); jmp_far(CODE32 as u16, k.imm("start.flat")));
    k.label("start.flat")?;
    code!(k; mov(eax, DATA); mov(ds, eax); mov(es, eax); mov(fs, eax); mov(gs, eax); mov(ss, eax);
        mov(esp, STACK));
    code!(k; xor(eax, eax); mov(edi, 0x500); mov(ecx, (IMAGE - 0x500) / 4));
    k.rep().stosd()?;
    code!(k; mov(edi, TABLES); mov(ecx, 0x1_0000 / 4));
    k.rep().stosd()?;
    // All ports are closed to ring 3.
    code!(k; mov(edi, TSS_BITMAP); mov(ecx, 0x2004 / 4); or(eax, -1));
    k.rep().stosd()?;
    // The interrupt table, as it is at the start of each check: in home mode, gate n leads to call n of `vectors`.
    code!(k; mov(edi, IDT_TEMPLATE); mov(eax, k.imm("vectors")); xor(ecx, ecx));
    let next = k.fresh();
    k.label(&next)?;
    match home {
        16 => code!(k; lea(ebx, dword_ptr(eax - IMAGE)); mov(word_ptr(edi), bx);
            mov(word_ptr(edi + 2), IMAGE_SEGMENT); add(edi, 4); add(eax, 3)),
        _ => {
            let selector = if home == 64 { CODE64 } else { CODE32 };
            code!(k; mov(dword_ptr(edi), eax); mov(word_ptr(edi + 2), selector); mov(dword_ptr(edi + 4), eax);
                mov(word_ptr(edi + 4), 0x8E00); add(edi, if home == 64 { 16 } else { 8 }); add(eax, 5));
        }
    }
    code!(k; inc(ecx); cmp(ecx, 256); jne(k.to(&next)));
    // FPU: present, no emulation, native errors. All processors that have SSE get it switched on.
    code!(k; mov(eax, cr4); or(eax, 0x600); mov(cr4, eax); mov(eax, cr0); and(eax, !0xCu32); or(eax, 0x22);
        mov(cr0, eax));
    if home == 64 {
        code!(k; mov(dword_ptr(PML5), PML4 | 7);
            mov(dword_ptr(PML4), PDPT | 7);
            mov(dword_ptr(PDPT), PD | 3);
            mov(dword_ptr(PDPT + 8), PD | 7);
            mov(dword_ptr(PDPT + 16), PD_TEST | 7);
            mov(dword_ptr(PDPT + 24), PD_HIGH | 3);
            mov(dword_ptr(PD), 0x87);
            mov(dword_ptr(PD + 8), 0x20_0087);
            // The local APIC.
            mov(dword_ptr(PD_HIGH + 0xFB8), 0xFEE0_0093u32);
            mov(dword_ptr(PD_TEST), PT_TEST | 7));
        let (root, cr4_bits) = if k.plan.levels == 5 { (PML5, 0x1020) } else { (PML4, 0x20) };
        code!(k; mov(eax, cr4); or(eax, cr4_bits); mov(cr4, eax); mov(eax, root); mov(cr3, eax);
            mov(ecx, 0xC000_0080u32); rdmsr(); or(eax, 0x901); wrmsr();
            mov(eax, cr0); or(eax, 0x8001_0000u32); mov(cr0, eax); jmp_far(CODE64 as u16, k.imm("start.home")));
    } else if home == 32 {
        code!(k; jmp(k.to("start.home")));
    } else {
        code!(k; jmp_far(CODE16 as u16, k.off("start.16")));
    }
    k.elsewhere(16, "start.16", |k| {
        code!(k; mov(ax, DATA16); mov(ds, eax); mov(es, eax); mov(ss, eax); mov(fs, eax); mov(gs, eax);
            mov(eax, cr0); and(eax, !1u32); mov(cr0, eax); jmp_far(IMAGE_SEGMENT as u16, k.off("start.real")));
        k.label("start.real")?;
        if k.plan.home == 16 {
            code!(k; xor(ax, ax); mov(ds, eax); mov(es, eax); mov(ss, eax); jmp(k.to("start.home")));
        }
        Ok(())
    });
    // Table registers' images.
    let word =
        |limit: u32, base: u32| [&(limit as u16).to_le_bytes()[..], &base.to_le_bytes(), &[0; 4]].concat();
    let (image, idt_limit) = (k.imm("gdt.image"), [0x3FF, 0x7FF, 0xFFF][home as usize / 32]);
    k.data("gdtr.image", &word(GDT_SIZE - 1, image))?;
    k.data("gdtr", &word(GDT_SIZE - 1, GDT))?;
    k.data("idtr", &word(idt_limit, if home == 16 { 0 } else { IDT }))?;
    let gdt = crate::tables::gdt(home);
    k.data("gdt.image", &gdt)
}

/// The routines and handlers, in the home mode's bitness.
pub fn routines(k: &mut Kit) -> R {
    k.label("start.home")?;
    match k.bits() {
        64 => {
            code!(k; mov(rsp, u64::from(STACK)); mov(rax, cr0); mov(qword_ptr(HOME_CR0), rax); mov(rax, cr3);
            mov(qword_ptr(HOME_CR3), rax); mov(rax, cr4); mov(qword_ptr(HOME_CR4), rax))
        }
        _ => code!(k; mov(esp, STACK); mov(eax, cr0); mov(dword_ptr(HOME_CR0), eax); mov(eax, cr3);
            mov(dword_ptr(HOME_CR3), eax); mov(eax, cr4); mov(dword_ptr(HOME_CR4), eax)),
    }
    code!(k; jmp(k.to("main")));
    begin(k)?;
    handlers(k)?;
    expectations(k)?;
    finish(k)?;
    print(k)
}

/// Ends the program. Emitted behind its last check.
pub fn exit(k: &mut Kit) -> R {
    code!(k; mov(al, byte_ptr(FAILED)); test(al, al); setne(al); mov(dx, EXIT); out(dx, al));
    let halt = k.fresh();
    k.label(&halt)?;
    code!(k; cli(); hlt(); jmp(k.to(&halt)));
    Ok(())
}

/// `begin`: a check starts. Arguments: its name, its end. Keeps nothing.
fn begin(k: &mut Kit) -> R {
    k.label("begin")?;
    match k.bits() {
        64 => code!(k; pop(rbx)),
        32 => code!(k; pop(ebx)),
        _ => {
            code!(k; pop(bx); movzx(ebx, bx); xor(ax, ax); mov(ds, eax); mov(es, eax); mov(fs, eax);
                mov(gs, eax); mov(ss, eax))
        }
    }
    if k.bits() != 16 {
        code!(k; mov(eax, DATA); mov(ds, eax); mov(es, eax); mov(fs, eax); mov(gs, eax); mov(ss, eax));
    }
    match k.bits() {
        64 => code!(k; mov(esp, STACK); push(2); popfq(); mov(rax, qword_ptr(HOME_CR4)); mov(cr4, rax);
            mov(rax, qword_ptr(HOME_CR3)); mov(cr3, rax); mov(rax, qword_ptr(HOME_CR0)); mov(cr0, rax)),
        _ => {
            code!(k; mov(esp, STACK); mov(eax, 2); push(eax); popfd(); mov(eax, dword_ptr(HOME_CR4));
                mov(cr4, eax);
            mov(eax, dword_ptr(HOME_CR3)); mov(cr3, eax); mov(eax, dword_ptr(HOME_CR0)); mov(cr0, eax))
        }
    }
    // Fresh tables.
    let idt = if k.bits() == 16 { 0 } else { IDT };
    let idt_size: u32 = [0x400, 0x800, 0x1000][k.bits() as usize / 32];
    code!(k; cld(); mov(esi, IDT_TEMPLATE); mov(edi, idt); mov(ecx, idt_size / 4));
    copy(k)?;
    match k.bits() {
        64 => code!(k; lidt(tbyte_ptr(k.imm("idtr")))),
        32 => code!(k; lidt(fword_ptr(k.imm("idtr")))),
        _ => code!(k; lidt(fword_ptr(k.off("idtr")).cs())),
    }
    if k.bits() != 16 {
        code!(k; mov(esi, k.imm("gdt.image")); mov(edi, GDT); mov(ecx, GDT_SIZE / 4));
        copy(k)?;
        if k.bits() == 64 {
            code!(k; lgdt(tbyte_ptr(k.imm("gdtr"))));
        } else {
            code!(k; lgdt(fword_ptr(k.imm("gdtr"))));
        }
        // The task: stacks of the rings (the 32-bit layout's and the 64-bit one's fields overlap).
        code!(k; xor(eax, eax); lldt(ax); mov(edi, TSS); mov(ecx, 0x68 / 4));
        clear(k)?;
        if k.bits() == 64 {
            code!(k; mov(dword_ptr(TSS + 4), STACK0); mov(dword_ptr(TSS + 0x0C), STACK1);
                mov(dword_ptr(TSS + 0x24), STACK_IST); mov(dword_ptr(TSS + 0x2C), STACK_IST2));
        } else {
            code!(k; mov(dword_ptr(TSS + 4), STACK0); mov(dword_ptr(TSS + 8), DATA);
                mov(dword_ptr(TSS + 0x0C), STACK1); mov(dword_ptr(TSS + 0x10), RING1_DATA));
        }
        code!(k; mov(word_ptr(TSS + 0x66), 0x68); mov(eax, TSS_SEL); ltr(ax));
    }
    // Nothing to hit, nothing that was hit.
    if k.bits() == 64 {
        code!(k; mov(eax, 0x400); mov(dr7, rax); mov(eax, 0xFFFF_0FF0u32); mov(dr6, rax));
    } else {
        code!(k; mov(eax, 0x400); mov(dr7, eax); mov(eax, 0xFFFF_0FF0u32); mov(dr6, eax));
    }
    code!(k; xor(eax, eax); mov(edi, V[0]); mov(ecx, 16));
    clear(k)?;
    let (name, end) = (argument(k, 0), argument(k, 1));
    code!(k; mov(eax, name); mov(dword_ptr(NAME), eax); mov(eax, end); mov(dword_ptr(END), eax); xor(eax, eax);
        mov(dword_ptr(FAILS), eax); mov(dword_ptr(RESUME), eax); mov(dword_ptr(EXC_VECTOR), NO_EXCEPTION);
        add(ebx, 8));
    match k.bits() {
        64 => code!(k; jmp(rbx)),
        32 => code!(k; jmp(ebx)),
        _ => code!(k; jmp(bx)),
    }
    Ok(())
}

fn copy(k: &mut Kit) -> R {
    k.rep().movsd()
}

fn clear(k: &mut Kit) -> R {
    k.rep().stosd()
}

/// Argument `index` of a routine, by EBX.
fn argument(k: &Kit, index: u32) -> AsmMemoryOperand {
    if k.bits() == 64 { dword_ptr(rbx + index * 4) } else { dword_ptr(ebx + index * 4).cs() }
}

/// Registers that routines save.
const SAVED32: [AsmRegister32; 6] = [eax, ebx, ecx, edx, esi, edi];
const SAVED64: [AsmRegister64; 6] = [rax, rbx, rcx, rdx, rsi, rdi];

fn save(k: &mut Kit) -> R {
    if k.bits() == 64 {
        SAVED64.into_iter().try_for_each(|register| k.push(register))
    } else {
        SAVED32.into_iter().try_for_each(|register| k.push(register))
    }
}

fn restore(k: &mut Kit) -> R {
    if k.bits() == 64 {
        SAVED64.into_iter().rev().try_for_each(|register| k.pop(register))
    } else {
        SAVED32.into_iter().rev().try_for_each(|register| k.pop(register))
    }
}

/// Bytes between the stack pointer and the return address in a routine.
fn saved(k: &Kit) -> u32 {
    if k.bits() == 64 { 7 * 8 } else { 7 * 4 }
}

/// Enters a routine with arguments behind its call: saves flags and registers, EBX = address of the arguments.
fn enter(k: &mut Kit) -> R {
    let saved = saved(k);
    if k.bits() == 64 {
        k.pushfq()?
    } else {
        k.pushfd()?
    }
    save(k)?;
    match k.bits() {
        64 => k.mov(rbx, qword_ptr(rsp + saved)),
        32 => k.mov(ebx, dword_ptr(esp + saved)),
        _ => k.movzx(ebx, word_ptr(esp + saved)),
    }
}

/// Leaves a routine with `count` arguments.
fn leave(k: &mut Kit, count: u32) -> R {
    let saved = saved(k);
    match k.bits() {
        64 => k.add(qword_ptr(rsp + saved), (count * 4) as i32)?,
        32 => k.add(dword_ptr(esp + saved), count * 4)?,
        _ => k.add(word_ptr(esp + saved), count * 4)?,
    }
    restore(k)?;
    if k.bits() == 64 {
        k.popfq()?
    } else {
        k.popfd()?
    }
    k.ret()
}

/// `differs32`, `differs64`, `arm`, `seen`: see the functions of [`Kit`] that call them.
fn expectations(k: &mut Kit) -> R {
    for width in [32, 64] {
        k.label(&format!("differs{width}"))?;
        enter(k)?;
        let (what, low, high) = (argument(k, 0), argument(k, 1), argument(k, 2));
        code!(k; mov(eax, what); mov(dword_ptr(WHAT), eax); mov(dword_ptr(FIELD), k.s.text("")); mov(eax, low);
            mov(dword_ptr(EXPECTED), eax));
        if width == 64 {
            code!(k; mov(eax, high); mov(dword_ptr(EXPECTED + 4), eax));
        } else {
            code!(k; xor(eax, eax); mov(dword_ptr(EXPECTED + 4), eax); mov(dword_ptr(GOT + 4), eax));
        }
        code!(k; call(k.to("compare")));
        leave(k, if width == 32 { 2 } else { 3 })?;
    }
    k.label("arm")?;
    enter(k)?;
    let resume = argument(k, 0);
    code!(k; mov(eax, resume); mov(dword_ptr(RESUME), eax); mov(dword_ptr(EXC_VECTOR), NO_EXCEPTION));
    let above = saved(k) + k.bits() / 8;
    if k.bits() == 64 {
        code!(k; lea(rax, qword_ptr(rsp + above)); mov(qword_ptr(RESUME_SP), rax));
    } else {
        code!(k; lea(eax, dword_ptr(esp + above)); mov(dword_ptr(RESUME_SP), eax));
    }
    leave(k, 1)?;

    k.label("seen")?;
    enter(k)?;
    let what = argument(k, 0);
    code!(k; xor(eax, eax); mov(dword_ptr(RESUME), eax); mov(dword_ptr(GOT + 4), eax);
        mov(dword_ptr(EXPECTED + 4), eax);
        mov(eax, what); mov(dword_ptr(WHAT), eax));
    for (index, variable, field) in
        [(1, EXC_VECTOR, ", vector"), (2, EXC_ERROR, ", error code"), (4, EXC_IP, ", saved IP")]
    {
        let (skip, expected, any) = (k.fresh(), argument(k, index), argument(k, 3));
        if index == 4 {
            code!(k; mov(eax, any); test(eax, eax); jne(k.to(&skip)));
        }
        code!(k; mov(eax, expected); mov(dword_ptr(EXPECTED), eax); mov(eax, dword_ptr(variable));
            mov(dword_ptr(GOT), eax); mov(dword_ptr(FIELD), k.s.text(field)); call(k.to("compare")));
        k.label(&skip)?;
    }
    leave(k, 5)?;

    // `compare`: GOT with EXPECTED; `record` if they differ. Clobbers EAX.
    let bad = k.fresh();
    k.label("compare")?;
    for half in [0, 4] {
        code!(k; mov(eax, dword_ptr(GOT + half)); cmp(eax, dword_ptr(EXPECTED + half)); jne(k.to(&bad)));
    }
    code!(k; ret(); label(&bad); label("record"));
    let more = k.fresh();
    code!(k; cmp(dword_ptr(FAILS), 0); jne(k.to(&more)));
    for offset in (0..FIRST - WHAT).step_by(4) {
        code!(k; mov(eax, dword_ptr(WHAT + offset)); mov(dword_ptr(FIRST + offset), eax));
    }
    code!(k; label(&more); inc(dword_ptr(FAILS)); ret());
    Ok(())
}

/// The handlers: `vectors`, and what all of them do.
fn handlers(k: &mut Kit) -> R {
    let base = k.to("vectors") as u32;
    let common = k.to("exception") as u32;
    let size: u32 = if k.bits() == 16 { 3 } else { 5 };
    // Calls written as bytes, so that all have the same length.
    let calls: Vec<u8> = (0..256)
        .flat_map(|vector| {
            let distance = common.wrapping_sub(base + (vector + 1) * size).to_le_bytes();
            let mut call = vec![0xE8];
            call.extend(&distance[..size as usize - 1]);
            call
        })
        .collect();
    k.data("vectors", &calls)?;
    k.label("exception")?;
    let word = k.bits() / 8;
    // On the stack: return address of the call, error code if any, IP, CS, flags, and whatever else the mode saves.
    match k.bits() {
        64 => {
            code!(k; push(rax); pushfq(); pop(qword_ptr(EXC_HANDLER_FLAGS)); pop(qword_ptr(EXC_AX));
                pop(qword_ptr(GOT)); mov(qword_ptr(EXC_HANDLER_SP), rsp));
            for (variable, register) in
                [(EXC_CX, rcx), (EXC_DX, rdx), (EXC_BX, rbx), (EXC_SI, rsi), (EXC_DI, rdi)]
            {
                code!(k; mov(qword_ptr(variable), register));
            }
        }
        bits => {
            code!(k; push(eax); pushfd(); push(ds); mov(eax, if bits == 32 { DATA } else { 0 }); mov(ds, eax));
            if bits == 32 {
                code!(k; pop(eax));
            } else {
                code!(k; pop(ax));
            }
            code!(k; pop(dword_ptr(EXC_HANDLER_FLAGS)); pop(dword_ptr(EXC_AX)));
            if bits == 32 {
                code!(k; pop(dword_ptr(GOT)); mov(dword_ptr(EXC_HANDLER_SP), esp));
            } else {
                code!(k; pop(word_ptr(GOT)); movzx(eax, sp); mov(dword_ptr(EXC_HANDLER_SP), eax));
            }
            for (variable, register) in
                [(EXC_CX, ecx), (EXC_DX, edx), (EXC_BX, ebx), (EXC_SI, esi), (EXC_DI, edi)]
            {
                code!(k; mov(dword_ptr(variable), register));
            }
        }
    }
    code!(k; xor(eax, eax); mov(ax, cs); mov(dword_ptr(EXC_HANDLER_CS), eax));
    // The vector, from the return address.
    if k.bits() == 16 {
        code!(k; movzx(eax, word_ptr(GOT)));
    } else {
        code!(k; mov(eax, dword_ptr(GOT)));
    }
    code!(k; sub(eax, base + size); xor(edx, edx); mov(ecx, size); div(ecx); mov(dword_ptr(EXC_VECTOR), eax));
    code!(k; mov(esi, dword_ptr(EXC_HANDLER_SP)); xor(edx, edx));
    if k.bits() != 16 {
        let none = k.fresh();
        code!(k; cmp(eax, 32); jae(k.to(&none)); mov(ecx, WITH_ERROR_CODE); bt(ecx, eax); jae(k.to(&none)));
        if k.bits() == 64 {
            code!(k; mov(edx, dword_ptr(rsi)); add(esi, 8));
        } else {
            code!(k; mov(edx, dword_ptr(esi).ss()); add(esi, 4));
        }
        k.label(&none)?;
    }
    code!(k; mov(dword_ptr(EXC_ERROR), edx));
    for (index, variable) in [EXC_IP, EXC_CS, EXC_FLAGS, EXC_SP, EXC_SS, EXC_ES].into_iter().enumerate() {
        let offset = index as u32 * word;
        match k.bits() {
            64 => code!(k; mov(rax, qword_ptr(rsi + offset)); mov(qword_ptr(variable), rax)),
            32 => code!(k; mov(eax, dword_ptr(esi + offset).ss()); mov(dword_ptr(variable), eax)),
            _ => code!(k; movzx(eax, word_ptr(esi + offset).ss()); mov(dword_ptr(variable), eax)),
        }
    }
    // Selectors are 16 bits; the rest of the slot is undefined.
    code!(k; and(dword_ptr(EXC_CS), 0xFFFF); and(dword_ptr(EXC_SS), 0xFFFF); and(dword_ptr(EXC_ES), 0xFFFF));
    if k.bits() == 64 {
        code!(k; mov(rax, cr2); mov(qword_ptr(EXC_CR2), rax); mov(rax, dr6); mov(qword_ptr(EXC_DR6), rax));
    } else {
        code!(k; mov(eax, cr2); mov(dword_ptr(EXC_CR2), eax); mov(eax, dr6); mov(dword_ptr(EXC_DR6), eax));
    }
    // Back to a known state.
    if k.bits() == 16 {
        code!(k; xor(ax, ax));
    } else {
        code!(k; mov(eax, DATA));
    }
    code!(k; mov(ds, eax); mov(es, eax); mov(fs, eax); mov(gs, eax); mov(ss, eax));
    let go = k.fresh();
    code!(k; mov(eax, dword_ptr(RESUME)); mov(esp, dword_ptr(RESUME_SP)); test(eax, eax); jne(k.to(&go));
        mov(esp, STACK));
    code!(k; mov(dword_ptr(WHAT), k.s.text("exceptions")); mov(dword_ptr(FIELD), k.s.text("")));
    code!(k; mov(dword_ptr(GOT), 1); mov(dword_ptr(GOT + 4), 0); mov(dword_ptr(EXPECTED), 0);
        mov(dword_ptr(EXPECTED + 4), 0); call(k.to("record")); mov(eax, dword_ptr(END)));
    k.label(&go)?;
    code!(k; mov(dword_ptr(GOT), eax); mov(eax, 2));
    match k.bits() {
        64 => {
            code!(k; push(rax); popfq(); mov(dword_ptr(GOT + 4), 0));
            for (variable, register) in
                [(EXC_CX, rcx), (EXC_DX, rdx), (EXC_BX, rbx), (EXC_SI, rsi), (EXC_DI, rdi), (EXC_AX, rax)]
            {
                code!(k; mov(register, qword_ptr(variable)));
            }
            code!(k; jmp(qword_ptr(GOT)));
        }
        bits => {
            code!(k; push(eax); popfd());
            for (variable, register) in
                [(EXC_CX, ecx), (EXC_DX, edx), (EXC_BX, ebx), (EXC_SI, esi), (EXC_DI, edi), (EXC_AX, eax)]
            {
                code!(k; mov(register, dword_ptr(variable)));
            }
            if bits == 32 { code!(k; jmp(dword_ptr(GOT))) } else { code!(k; jmp(word_ptr(GOT))) }
        }
    }
    Ok(())
}

/// `finish`: prints the line of the check that is over.
fn finish(k: &mut Kit) -> R {
    k.label("finish")?;
    if k.bits() == 16 {
        code!(k; xor(ax, ax));
    } else {
        code!(k; mov(eax, DATA));
    }
    code!(k; mov(ds, eax); mov(es, eax));
    let (bad, done) = (k.fresh(), k.fresh());
    code!(k; cmp(dword_ptr(FAILS), 0); jne(k.to(&bad)));
    say(k, "ok ")?;
    code!(k; mov(esi, dword_ptr(NAME)); call(k.to("puts")); jmp(k.to(&done)));
    code!(k; label(&bad); inc(dword_ptr(FAILED)));
    say(k, "FAIL ")?;
    code!(k; mov(esi, dword_ptr(NAME)); call(k.to("puts")));
    say(k, ": ")?;
    for field in [WHAT, FIELD] {
        code!(k; mov(esi, dword_ptr(FIRST + (field - WHAT))); call(k.to("puts")));
    }
    for (text, value) in [(": expected 0x", EXPECTED), (", got 0x", GOT)] {
        say(k, text)?;
        code!(k; mov(edi, FIRST + (value - WHAT)); call(k.to("hex")));
    }
    let quiet = k.fresh();
    code!(k; cmp(dword_ptr(EXC_VECTOR), NO_EXCEPTION); je(k.to(&quiet)));
    for (text, value) in [
        (" (last exception: vector 0x", EXC_VECTOR),
        (", error code 0x", EXC_ERROR),
        (", at 0x", EXC_CS),
        (":0x", EXC_IP),
        (", CR2 0x", EXC_CR2),
    ] {
        say(k, text)?;
        code!(k; mov(edi, value); call(k.to("hex")));
    }
    say(k, ")")?;
    code!(k; label(&quiet); label(&done));
    say(k, "\n")?;
    k.ret()
}

fn say(k: &mut Kit, text: &str) -> R {
    code!(k; mov(esi, k.s.text(text)); call(k.to("puts")));
    Ok(())
}

/// `puts`: the zero-terminated string at linear address ESI, which lies in the image. `hex`: the 64-bit variable at EDI,
/// without leading zeros. Both keep no registers but ESP.
fn print(k: &mut Kit) -> R {
    k.label("puts")?;
    code!(k; mov(dx, CONSOLE); and(esi, if k.bits() == 16 { 0xFFFF } else { 0xFFFF_FFFFu32 }));
    let (next, done) = (k.fresh(), k.fresh());
    k.label(&next)?;
    if k.bits() == 64 {
        code!(k; mov(al, byte_ptr(rsi)));
    } else {
        code!(k; mov(al, byte_ptr(esi).cs()));
    }
    code!(k; test(al, al); je(k.to(&done)); out(dx, al); inc(esi); jmp(k.to(&next)); label(&done); ret());

    k.label("hex")?;
    let [next, high, have, digit, decimal, skip] = std::array::from_fn(|_| k.fresh());
    code!(k; mov(dx, CONSOLE); xor(ecx, ecx); mov(ebx, 15)); // digits printed, index of the digit
    code!(k; label(&next); mov(eax, ebx); shr(eax, 1));
    if k.bits() == 64 {
        code!(k; mov(al, byte_ptr(rdi + rax)));
    } else {
        code!(k; mov(al, byte_ptr(edi + eax)));
    }
    code!(k; test(bl, 1); jne(k.to(&high)); and(al, 15); jmp(k.to(&have)); label(&high); shr(al, 4);
        label(&have);
        test(al, al); jne(k.to(&digit)); test(ecx, ecx); jne(k.to(&digit)); test(ebx, ebx); jne(k.to(&skip));
        label(&digit); inc(ecx); cmp(al, 10); jb(k.to(&decimal)); add(al, 39); label(&decimal); add(al, 48);
        out(dx, al); label(&skip); dec(ebx); jns(k.to(&next)); ret());
    Ok(())
}
