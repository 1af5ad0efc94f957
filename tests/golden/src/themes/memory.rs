//! Loads, stores, the stack, strings, atomics and segments.

use iced_x86::code_asm::*;

use crate::snippet::{Theme, snippets};

/// Loads and stores.
pub const MEMORY: Theme = Theme {
    name: "memory",
    host: |_| true,
    snippets: snippets! { a;
        load User64 { mov(rax, qword_ptr(rbx)) }
        load_32 User32 { mov(eax, dword_ptr(ebx + 8)) }
        load_kernel Kernel64 { mov(rax, qword_ptr(rbx)) }
        load_indexed User64 { mov(eax, dword_ptr(rbx + rcx * 4 + 16)) }
        load_absolute User64 { mov(rax, qword_ptr(0x12340)) }
        globals_of_a_page User64 { mov(eax, dword_ptr(0x12340)); mov(ecx, dword_ptr(0x12350)); mov(edx, dword_ptr(0x13000)) }
        load_extended User64 { movzx(eax, byte_ptr(rsi)); movsx(rcx, word_ptr(rdi)); movsxd(rdx, dword_ptr(r8)) }
        load_low_byte User64 { mov(al, byte_ptr(rbx)) }
        store User64 { mov(qword_ptr(rbx), rax) }
        store_constant User64 { mov(dword_ptr(rbx + 4), 7i32) }
        store_byte User64 { mov(byte_ptr(rdi), al); mov(byte_ptr(rsi), ah) }
        store_16 User64 { mov(word_ptr(rdi), ax) }
        load_and_add User64 { add(rax, qword_ptr(rbx)) }
        add_to_memory User64 { add(qword_ptr(rbx), rax) }
        increment_memory User64 { inc(dword_ptr(rbx)) }
        compare_with_memory User64 { cmp(dword_ptr(rbx), 5i32); je(0x8800u64) }
        structure_fields User64 {
            mov(rax, qword_ptr(rdi)); mov(rcx, qword_ptr(rdi + 8)); mov(edx, dword_ptr(rdi + 16));
            mov(qword_ptr(rdi + 24), rax)
        }
        structure_stores User64 { mov(qword_ptr(rdi), rax); mov(qword_ptr(rdi + 8), rcx); mov(dword_ptr(rdi + 16), edx) }
        two_pointers User64 { mov(rax, qword_ptr(rsi)); mov(qword_ptr(rdi), rax) }
        pointer_chase User64 { mov(rax, qword_ptr(rax)); mov(rax, qword_ptr(rax)) }
        same_address_again User64 { mov(rax, qword_ptr(rbx)); add(rax, 1i32); mov(qword_ptr(rbx), rax) }
        byte_swapped User64 { movbe(rax, qword_ptr(rbx)) }
        translate_byte User64 { xlatb() }
    },
};

/// The stack.
pub const STACK: Theme = Theme {
    name: "stack",
    host: |_| true,
    snippets: snippets! { a;
        push User64 { push(rax) }
        push_four User64 { push(rbp); push(rbx); push(r12); push(r13) }
        push_constant User64 { push(5i32) }
        push_memory User64 { push(qword_ptr(rax)) }
        push_32 User32 { push(eax); push(ebx) }
        pop User64 { pop(rax) }
        pop_four User64 { pop(r13); pop(r12); pop(rbx); pop(rbp) }
        pop_memory User64 { pop(qword_ptr(rax)) }
        push_and_pop User64 { push(rax); pop(rbx) }
        push_all User32 { pushad() }
        locals User64 { mov(qword_ptr(rsp + 8), rax); mov(rcx, qword_ptr(rsp + 16)); add(rsp, 24i32) }
        push_real Real { push(ax); pop(bx) }
    },
};

/// String instructions.
pub const STRINGS: Theme = Theme {
    name: "strings",
    host: |_| true,
    snippets: snippets! { a;
        movsb User64 { movsb() }
        movsq User64 { movsq() }
        rep_movsb User64 { [rep] movsb() }
        rep_movsq User64 { [rep] movsq() }
        rep_stosb User64 { [rep] stosb() }
        rep_stosd_32 User32 { [rep] stosd() }
        lodsb User64 { lodsb() }
        stosq User64 { stosq() }
        scasb User64 { scasb() }
        repne_scasb User64 { [repne] scasb() }
        repe_cmpsb User64 { [repe] cmpsb() }
        direction User64 { std(); movsb(); cld() }
    },
};

/// Atomics and fences.
pub const ATOMICS: Theme = Theme {
    name: "atomics",
    host: |_| true,
    snippets: snippets! { a;
        lock_add User64 { [lock] add(dword_ptr(rdi), eax) }
        lock_increment User64 { [lock] inc(dword_ptr(rdi)) }
        lock_or User64 { [lock] or(qword_ptr(rdi), rax) }
        lock_bit_set User64 { [lock] bts(qword_ptr(rdi), 3i32) }
        lock_exchange_add User64 { [lock] xadd(qword_ptr(rdi), rax) }
        lock_compare_exchange User64 { [lock] cmpxchg(qword_ptr(rdi), rcx) }
        lock_compare_exchange_and_branch User64 { [lock] cmpxchg(dword_ptr(rdi), ecx); jne(0x8800u64) }
        compare_exchange_16_bytes User64 { [lock] cmpxchg16b(xmmword_ptr(rdi)) }
        exchange_memory User64 { xchg(qword_ptr(rdi), rax) }
        fences User64 { mfence(); lfence(); sfence() }
        pause User64 { pause() }
    },
};

/// Accesses through segments.
pub const SEGMENTS: Theme = Theme {
    name: "segments",
    host: |_| true,
    snippets: snippets! { a;
        thread_local_load User64 { mov(rax, qword_ptr(0x28).fs()) }
        thread_local_store User64 { mov(dword_ptr(rax + 0x10).fs(), ecx) }
        per_cpu_increment Kernel64 { inc(qword_ptr(0x1000).gs()) }
        segmented_load Segmented32 { mov(eax, dword_ptr(ebx)) }
        segmented_store Segmented32 { mov(dword_ptr(ebx + 4), ecx) }
        real_load Real { mov(ax, word_ptr(bx + si)) }
        real_store_es Real { mov(byte_ptr(di).es(), al) }
        read_base User64 { rdfsbase(rax) }
        write_base User64 { wrgsbase(rax) }
        move_from_segment User64 { mov(eax, ds) }
        load_segment Real { mov(ds, ax) }
    },
};
