//! Code that changes: by itself, ahead of itself, through another mapping, across pages, by string instructions (Intel SDM
//! volume 3A, section 11.6 and 8.1.3).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;

pub fn emit(k: &mut Kit) -> R {
    k.check("an instruction changes the next one", "3A, 11.6", |k| {
        // The immediate of MOV ECX, imm32.
        let place = k.imm("smc.next") + 1;
        for value in [0x1234_5678u32, 0x55] {
            code!(k; mov(eax, value); mov(ebx, place); mov(dword_ptr(rbx), eax);
                jmp(k.to(&format!("smc.run.{value}"))));
            code!(k; label(&format!("smc.run.{value}")); call(k.to("smc.code")));
            k.eq("what the changed code does", ecx, value)?;
        }
        k.aside("smc.code", |k| {
            code!(k; label("smc.next"); mov(ecx, 0x1111_1111); ret());
            Ok(())
        })?;
        // With nothing in between.
        let inline = k.imm("smc.inline") + 1;
        code!(k; mov(eax, 0x7777_7777); mov(ebx, inline); mov(dword_ptr(rbx), eax); label("smc.inline");
            mov(ecx, 0x1111_1111));
        k.eq("straight behind the store", ecx, 0x7777_7777)
    })?;
    k.check("an instruction overwrites itself", "3A, 11.6", |k| {
        // STOSB writes over its own opcode, and over the NOP behind it: INC ECX twice (FF C1).
        code!(k; xor(ecx, ecx); mov(edi, k.imm("self.at")); mov(ax, 0xC1FF); label("self.at"));
        k.raw(&[0x66, 0xAB])?; // STOSW
        code!(k; nop(); mov(edx, ecx); jmp(k.to("self.again")); label("self.again"); call(k.to("self.sub")));
        k.aside("self.sub", |k| {
            code!(k; mov(edi, k.imm("self.at")); mov(bx, word_ptr(rdi)); ret());
            Ok(())
        })?;
        k.eq("the old instruction was executed", edx, 0)?;
        code!(k; movzx(ebx, bx));
        k.eq("the new one is there", ebx, 0xC1FF)
    })?;
    k.check("a loop that patches its own body", "3A, 11.6", |k| {
        // ADD ECX, imm8, whose immediate grows each time: 1 + 2 + ... + 50.
        let place = k.imm("loop.add") + 2;
        code!(k; xor(ecx, ecx); mov(edx, 1); mov(ebx, place); label("loop.top"); mov(byte_ptr(rbx), dl);
            label("loop.add"); raw(&[0x83, 0xC1, 0x00]);
            inc(edx); cmp(edx, 51); jne(k.to("loop.top")));
        k.eq("sum", ecx, 1275)
    })?;
    k.check("code written through another mapping", "3A, 8.1.3 and 11.6", |k| {
        k.poke(PT_TEST, u64::from(PAGES) | 3)?;
        k.poke(PT_TEST + 8, u64::from(PAGES) | 3)?;
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(r8d, TEST); mov(r9d, TEST + 0x1000));
        for value in [0x11u32, 0x22, 0x33] {
            // MOV ECX, imm32; RET.
            code!(k; mov(byte_ptr(r9), 0xB9); mov(dword_ptr(r9 + 1), value); mov(byte_ptr(r9 + 5), 0xC3u32);
                mov(eax, 0); cpuid(); call(r8));
            k.eq("first mapping", ecx, value)?;
            code!(k; call(r9));
            k.eq("second mapping", ecx, value)?;
        }
        Ok(())
    })?;
    k.check("the same page, mapped to other code", "3A, 4.10.4.1", |k| {
        for (page, value) in [(PAGES, 0x11u32), (PAGES + 0x1000, 0x22)] {
            code!(k; mov(byte_ptr(page), 0xB9); mov(dword_ptr(page + 1), value);
                mov(byte_ptr(page + 5), 0xC3u32));
        }
        for (page, value) in [(PAGES, 0x11u32), (PAGES + 0x1000, 0x22), (PAGES, 0x11)] {
            k.poke(PT_TEST, u64::from(page) | 3)?;
            code!(k; mov(ebx, TEST); invlpg(byte_ptr(rbx)); call(rbx));
            k.eq("result", ecx, value)?;
        }
        Ok(())
    })?;
    k.check("an instruction across two pages", "3A, 11.6", |k| {
        for (index, page) in [(0, PAGES), (1, PAGES + 0x1000), (2, PAGES + 0x2000)] {
            k.poke(PT_TEST + index * 8, u64::from(page) | 3)?;
        }
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(ebx, TEST + 0xFFE); mov(word_ptr(rbx), 0x01B9));
        for value in [0x0012_3456u32, 0x0065_4321] {
            // B9 01 | three bytes, RET.
            code!(k; mov(dword_ptr(rbx + 2), value | 0xC300_0000); call(rbx));
            k.eq("second page changed", ecx, value << 8 | 1)?;
        }
        // The second page is another one.
        code!(k; mov(dword_ptr(PAGES + 0x2000), 0xC300_00AAu32));
        k.poke(PT_TEST + 8, u64::from(PAGES + 0x2000) | 3)?;
        code!(k; mov(eax, TEST + 0x1000); invlpg(byte_ptr(rax)); call(rbx));
        k.eq("second page mapped anew", ecx, 0xAA01)
    })?;
    k.check("REP MOVSB over code that follows", "3A, 11.6; 2B, REP", |k| {
        // Copies INC ECX three times over three NOPs, one of them behind itself.
        k.aside("rep.source", |k| k.db(&[0xFF, 0xC1, 0xFF, 0xC1, 0xFF, 0xC1]))?;
        code!(k; mov(esi, k.imm("rep.source")); mov(edi, k.imm("rep.target")); mov(ecx, 6); xor(eax, eax));
        k.rep().movsb()?;
        k.label("rep.target")?;
        k.db(&[0x90; 6])?;
        k.eq("increments", ecx, 3)
    })?;
    k.check("data beside code", "3A, 11.6", |k| {
        // A counter in the same line as the code that counts.
        code!(k; mov(ecx, 100); label("beside.loop"); inc(dword_ptr(k.imm("beside.data"))); dec(ecx);
            jne(k.to("beside.loop")); jmp(k.to("beside.over")));
        k.data("beside.data", &[0; 8])?;
        k.label("beside.over")?;
        let counter = k.imm("beside.data");
        k.var("counter", counter, 100)
    })?;
    k.check("code changed by a write that faults in its second half", "3A, 11.6; 3A, 6.5", |k| {
        k.poke(PT_TEST, u64::from(PAGES) | 3)?;
        k.poke(PT_TEST + 8, 0)?;
        code!(k; mov(rax, cr3); mov(cr3, rax); mov(dword_ptr(PAGES + 0xFF8), 0x0000_11B9);
            mov(dword_ptr(PAGES + 0xFFC), 0x9090_C300u32); mov(ebx, TEST + 0xFF8); call(rbx));
        k.eq("before", ecx, 0x11)?;
        code!(k; mov(rax, 0x1111_1111_1111_1111u64));
        k.raises("write across", pf(2), |k| k.mov(qword_ptr(rbx + 4), rax))?;
        code!(k; mov(ebx, TEST + 0xFF8); call(rbx));
        k.eq("after", ecx, 0x11)
    })
}
