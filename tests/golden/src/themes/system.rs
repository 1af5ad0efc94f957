//! What kernels do.

use iced_x86::code_asm::*;

use crate::snippet::{Theme, snippets};

/// Control registers, MSRs, interrupts, the time.
pub const SYSTEM: Theme = Theme {
    name: "system",
    host: |_| true,
    snippets: snippets! { a;
        read_cr3 Kernel64 { mov(rax, cr3) }
        write_cr3 Kernel64 { mov(cr3, rax) }
        read_cr8 Kernel64 { mov(rax, cr8) }
        interrupts_off_on Kernel64 { cli(); sti(); nop() }
        read_flags_and_disable Kernel64 { pushfq(); pop(rax); cli() }
        swap_gs Kernel64 { swapgs() }
        system_return Kernel64 { sysretq() }
        interrupt_return Kernel64 { iretq() }
        time_stamp User64 { rdtsc() }
        time_stamp_and_processor User64 { rdtscp() }
        identify User64 { xor(eax, eax); cpuid() }
        read_msr Kernel64 { rdmsr() }
        write_msr Kernel64 { wrmsr() }
        invalidate_page Kernel64 { invlpg(byte_ptr(rax)) }
        halt Kernel64 { hlt() }
        port_output Kernel64 { out(dx, al) }
        port_input Kernel64 { in_(al, dx) }
        save_state User64 { fxsave64(rdi + 0) }
        user_access Kernel64 { stac(); mov(rax, qword_ptr(rdi)); clac() }
        undefined User64 { ud2() }
        software_interrupt User64 { int(0x80i32) }
        breakpoint User64 { int3() }
    },
};
