//! Interrupts by the local APIC: shadows of STI and MOV SS, HLT, task priority, NMI and its blocking, interrupts inside
//! repeated instructions (Intel SDM volume 3A, chapters 6 and 10).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

const APIC: u32 = 0xFEE0_0000;
/// Vectors of two priority classes.
const LOW: u32 = 0x61;
const HIGH: u32 = 0x72;

pub fn emit(k: &mut Kit) -> R {
    set_up(k)?;
    shadows(k)?;
    halting(k)?;
    priorities(k)?;
    nmi(k)
}

/// Writes a register of the local APIC. Clobbers RAX.
fn apic(k: &mut Kit, register: u32, value: u32) -> R {
    code!(k; mov(eax, APIC + register); mov(dword_ptr(rax), value));
    Ok(())
}

/// Sends an interrupt to this processor. Clobbers RAX.
fn to_self(k: &mut Kit, vector: u32) -> R {
    apic(k, 0x300, 0x4_0000 | vector)
}

/// Sends an NMI to this processor, by its APIC ID, and gives it time to arrive. Clobbers RAX and RBX.
fn nmi_to_self(k: &mut Kit) -> R {
    code!(k; mov(eax, APIC + 0x20); mov(ebx, dword_ptr(rax)); and(ebx, 0xFF00_0000u32); mov(eax, APIC + 0x310);
        mov(dword_ptr(rax), ebx));
    apic(k, 0x300, 0x400)?;
    let again = k.fresh();
    code!(k; mov(eax, 1000); label(&again); pause(); dec(eax); jne(k.to(&again)));
    Ok(())
}

fn set_up(k: &mut Kit) -> R {
    // The handlers: each notes where it interrupted, counts, and ends the interrupt.
    for (label, vector, counter, place) in
        [("low", LOW, V[0], V[2]), ("high", HIGH, V[1], V[3]), ("nmi", 2, V[4], V[5])]
    {
        k.aside(label, |k| {
            code!(k; push(rax); push(rbx); mov(rax, qword_ptr(rsp + 16)); mov(qword_ptr(place), rax);
                inc(dword_ptr(counter));
                mov(ebx, dword_ptr(V[6])); mov(byte_ptr(rbx + SCRATCH), vector); inc(dword_ptr(V[6])));
            if vector >= 32 {
                code!(k; mov(eax, APIC + 0xB0); mov(dword_ptr(rax), 0));
            }
            code!(k; pop(rbx); pop(rax); iretq());
            Ok(())
        })?;
    }
    // The old interrupt controllers stay silent; the local one is on.
    code!(k; mov(al, 0xFFu32); out(0x21, al); out(0xA1, al));
    apic(k, 0xF0, 0x1FF)?;
    apic(k, 0x80, 0)
}

/// Installs the handlers.
fn handlers(k: &mut Kit) -> R {
    for (label, vector) in [("low", LOW), ("high", HIGH), ("nmi", 2)] {
        let handler = k.imm(label);
        k.idt(vector, gate(CODE64, handler, INT32, 0))?;
    }
    Ok(())
}

fn shadows(k: &mut Kit) -> R {
    k.check("IF holds interrupts back", "3A, 6.8.1", |k| {
        handlers(k)?;
        to_self(k, LOW)?;
        code!(k; nop(); nop(); mov(ebx, dword_ptr(V[0])); sti(); nop(); nop(); cli());
        k.eq("with IF clear", ebx, 0)?;
        k.var("with IF set", V[0], 1)
    })?;
    k.check("STI lets one instruction pass", "2B, STI; 3A, 6.8.3", |k| {
        handlers(k)?;
        to_self(k, LOW)?;
        code!(k; sti(); nop(); label("sti.1"); nop(); cli());
        let rip = k.imm("sti.1");
        k.var64("interrupted at", V[2], rip.into())?;
        // Again and again: STI, CLI never lets anything in.
        to_self(k, LOW)?;
        code!(k; sti(); cli(); nop(); mov(ebx, dword_ptr(V[0])); sti(); nop(); cli());
        k.eq("after STI, CLI", ebx, 1)?;
        k.var("at last", V[0], 2)?;
        // Only the first STI has a shadow.
        to_self(k, LOW)?;
        code!(k; sti(); sti(); label("sti.2"); nop(); cli());
        let rip = k.imm("sti.2");
        k.var64("after two STIs", V[2], rip.into())
    })?;
    k.check("MOV SS and POP into flags", "2B, MOV, POPF; 3A, 6.8.3", |k| {
        handlers(k)?;
        to_self(k, LOW)?;
        code!(k; mov(ecx, ss); push(0x202); popfq(); label("popf.1"); nop(); cli());
        let rip = k.imm("popf.1");
        k.var64("POPF has no shadow", V[2], rip.into())?;
        to_self(k, LOW)?;
        // Whether MOV SS adds its own shadow to that of STI is not said; it must not end STI's.
        code!(k; sti(); mov(ss, ecx); label("movss.0"); nop(); label("movss.1"); nop(); cli());
        let (first, second) = (k.imm("movss.0"), k.imm("movss.1"));
        let ok = k.fresh();
        code!(k; mov(rbx, qword_ptr(V[2])); cmp(rbx, first as i32); je(k.to(&ok)); cmp(rbx, second as i32);
            label(&ok));
        k.holds("behind MOV SS", |c, to| c.je(to))
    })?;
    k.check("an interrupt in the middle of REP", "2B, REP; 3A, 6.6", |k| {
        handlers(k)?;
        // The first store, to the APIC's command register, interrupts the string; the others go to the registers behind.
        code!(k; mov(ecx, 3); mov(edi, APIC + 0x300); mov(eax, 0x4_0000 | LOW); sti(); nop());
        k.rep().stosd()?;
        code!(k; label("rep.end"); nop(); cli());
        k.eq("RCX", ecx, 0)?;
        // Whether interrupts come between the iterations is the processor's choice.
        code!(k; mov(ebx, dword_ptr(V[0])); test(ebx, ebx));
        k.holds("interrupts came", |c, to| c.jne(to))
    })
}

fn halting(k: &mut Kit) -> R {
    k.check("HLT waits for an interrupt and goes on behind", "2A, HLT", |k| {
        handlers(k)?;
        // A one-shot timer.
        apic(k, 0x3E0, 0xB)?;
        apic(k, 0x320, LOW)?;
        apic(k, 0x380, 0x1_0000)?;
        code!(k; sti(); hlt(); label("hlt.1"); cli());
        apic(k, 0x320, 0x1_0000 | LOW)?;
        k.var("interrupts", V[0], 1)?;
        let rip = k.imm("hlt.1");
        k.var64("interrupted at", V[2], rip.into())
    })?;
    k.check("a pending interrupt ends HLT at once", "2B, STI; 2A, HLT", |k| {
        handlers(k)?;
        to_self(k, LOW)?;
        code!(k; sti(); hlt(); label("hlt.2"); cli());
        k.var("interrupts", V[0], 1)?;
        let rip = k.imm("hlt.2");
        k.var64("interrupted at", V[2], rip.into())
    })
}

fn priorities(k: &mut Kit) -> R {
    k.check("CR8 holds a class back", "3A, 10.8.3 and 10.8.6", |k| {
        handlers(k)?;
        code!(k; mov(eax, LOW >> 4); mov(cr8, rax));
        to_self(k, LOW)?;
        to_self(k, HIGH)?;
        code!(k; sti(); nop(); nop(); mov(ebx, dword_ptr(V[0])); mov(ecx, dword_ptr(V[1])); xor(eax, eax);
            mov(cr8, rax); nop(); nop(); cli());
        k.eq("class held back", ebx, 0)?;
        k.eq("class above", ecx, 1)?;
        k.var("when CR8 falls", V[0], 1)
    })?;
    k.check("the higher vector comes first", "3A, 10.8.3", |k| {
        handlers(k)?;
        to_self(k, LOW)?;
        to_self(k, HIGH)?;
        code!(k; sti(); nop(); nop(); cli());
        k.masked("order", SCRATCH, 0xFFFF, LOW << 8 | HIGH)
    })?;
    k.check("an interrupt in service holds its class back", "3A, 10.8.4", |k| {
        handlers(k)?;
        // A handler that sends the other and itself again before it ends.
        k.aside("nesting", |k| {
            code!(k; push(rax));
            to_self(k, HIGH)?;
            to_self(k, LOW)?;
            code!(k; sti(); nop(); nop(); cli(); mov(eax, dword_ptr(V[1])); mov(dword_ptr(V[7]), eax);
                mov(eax, dword_ptr(V[0])); mov(dword_ptr(V[7] + 4), eax));
            let handler = k.imm("low");
            k.idt(LOW, gate(CODE64, handler, INT32, 0))?;
            code!(k; mov(eax, APIC + 0xB0); mov(dword_ptr(rax), 0); pop(rax); iretq());
            Ok(())
        })?;
        let handler = k.imm("nesting");
        k.idt(LOW, gate(CODE64, handler, INT32, 0))?;
        to_self(k, LOW)?;
        code!(k; sti(); nop(); nop(); cli());
        k.var("higher, inside", V[7], 1)?;
        k.var("same, inside", V[7] + 4, 0)?;
        k.var("same, afterwards", V[0], 1)
    })
}

fn nmi(k: &mut Kit) -> R {
    k.check("NMI comes with IF clear", "3A, 6.7", |k| {
        handlers(k)?;
        nmi_to_self(k)?;
        code!(k; nop(); nop());
        k.var("NMIs", V[4], 1)
    })?;
    k.check("NMI is blocked until IRET", "3A, 6.7.1", |k| {
        handlers(k)?;
        k.aside("nmi.nest", |k| {
            code!(k; push(rax); push(rbx); inc(dword_ptr(V[0])); mov(eax, dword_ptr(V[0])); cmp(eax, 1));
            let second = k.fresh();
            code!(k; jne(k.to(&second)));
            nmi_to_self(k)?;
            // More than one that waits counts once.
            nmi_to_self(k)?;
            code!(k; nop(); nop(); mov(eax, dword_ptr(V[0])); mov(dword_ptr(V[1]), eax); label(&second);
                pop(rbx); pop(rax); iretq());
            Ok(())
        })?;
        let handler = k.imm("nmi.nest");
        k.idt(2, gate(CODE64, handler, INT32, 1))?;
        nmi_to_self(k)?;
        code!(k; nop(); nop());
        k.var("inside the first", V[1], 1)?;
        k.var("afterwards", V[0], 2)
    })?;
    k.check("an exception's IRET in the handler unblocks NMIs", "3A, 6.7.1", |k| {
        handlers(k)?;
        k.aside("nmi.iret", |k| {
            code!(k; push(rax); push(rbx); inc(dword_ptr(V[0])); cmp(dword_ptr(V[0]), 1));
            let second = k.fresh();
            code!(k; jne(k.to(&second)));
            nmi_to_self(k)?;
            code!(k; nop(); int(0x60); nop(); mov(eax, dword_ptr(V[0])); mov(dword_ptr(V[1]), eax);
                label(&second); pop(rbx); pop(rax); iretq());
            Ok(())
        })?;
        k.aside("only.iret", |k| k.iretq())?;
        let (handler, plain) = (k.imm("nmi.iret"), k.imm("only.iret"));
        k.idt(2, gate(CODE64, handler, INT32, 0))?;
        k.idt(0x60, gate(CODE64, plain, INT32, 0))?;
        nmi_to_self(k)?;
        code!(k; nop(); nop());
        k.var("after the inner IRET", V[1], 2)
    })
}
