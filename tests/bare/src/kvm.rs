//! Checks that are left out under KVM, with the reason.
//!
//! On a host whose processor virtualises, KVM passes nearly all of them. Where `/dev/kvm` is a software implementation (no VMX or
//! SVM in the host's flags), it is an interpreter with gaps of its own, and a check that runs into one says nothing about
//! the emulator. So this list is the worst of both.

/// Reasons that several checks share.
const VIRTUAL_8086: &str = "a software KVM loses EFLAGS.VM, IOPL and CR4.VME";
const PAGING_32: &str = "a software KVM has paging in long mode only";
const BREAKPOINTS: &str = "a software KVM has no data breakpoints, and no single step inside an instruction";
const LATE: &str =
    "KVM delivers an interrupt that the guest sends itself when it next enters the guest, which may be later";
const USER_GATES: &str = "a software KVM raises #UD for INT n and IRET in ring 3";
const CALL_GATES: &str = "a software KVM raises #UD for far calls in ring 3";
const IRET: &str = "a software KVM checks little of what IRET pops in 64-bit mode";
const DELIVERY: &str = "a software KVM stops, or loops, when a fault comes while another is delivered";
const UNCHECKED: &str = "a software KVM does not check this";
const FEATURES: &str = "the host's processor, or its KVM, lacks the feature";
const SYSTEM_CALLS: &str =
    "a software KVM returns from a system call with the wrong instruction pointer or flags";
const REAL_MODE: &str = "a software KVM delivers interrupts of real mode by itself, in its own way";
const CROSSING: &str = "a software KVM writes the first page before it looks at the second";
const TIME: &str = "KVM's time-stamp counter is the host's";

/// Program, check (`*`: all of them), reason.
const LEFT_OUT: &[(&str, &str, &str)] = &[
    ("v86", "*", VIRTUAL_8086),
    ("paging32", "*", PAGING_32),
    ("shutdown", "*", DELIVERY),
    ("gates", "EXT tells that no INT n was it", DELIVERY),
    ("tasks", "exception through a task gate", DELIVERY),
    ("paging", "page faults during delivery", DELIVERY),
    ("la57", "*", FEATURES),
    ("paging", "2 MiB and 1 GiB pages", FEATURES),
    ("paging", "protection keys", FEATURES),
    ("spaces", "CR4.PCIDE", FEATURES),
    ("spaces", "two spaces with identifiers", FEATURES),
    ("spaces", "INVPCID", FEATURES),
    ("spaces", "INVPCID that fails", FEATURES),
    ("control", "RDMSR and WRMSR use 32-bit halves", FEATURES),
    ("control", "RDTSC, RDTSCP, RDPID", FEATURES),
    ("segments", "returns to other rings that fail", USER_GATES),
    ("gates", "gates' privilege", USER_GATES),
    ("segments", "pushes that do not fit leave no trace", UNCHECKED),
    ("segments", "LTR", UNCHECKED),
    ("long", "data at addresses that are not canonical", UNCHECKED),
    ("long", "registers that take canonical addresses only", UNCHECKED),
    ("system-calls", "RDFSBASE and its like", UNCHECKED),
    ("control", "CR4: reserved bits", UNCHECKED),
    ("control", "reserved bits", UNCHECKED),
    ("control", "CR4.TSD", UNCHECKED),
    ("control", "FXSAVE and FXRSTOR", UNCHECKED),
    ("control", "debug registers and CR4.DE", UNCHECKED),
    ("fpu", "alignment check needs AM, AC and ring 3", UNCHECKED),
    ("system-calls", "SYSCALL and SYSRET", SYSTEM_CALLS),
    ("system-calls", "SYSRET to compatibility mode", SYSTEM_CALLS),
    ("system-calls", "SYSCALL and SYSRET that fail", SYSTEM_CALLS),
    ("system-calls", "SYSENTER and SYSEXIT", SYSTEM_CALLS),
    ("system-calls", "SYSENTER and SYSEXIT that fail", SYSTEM_CALLS),
    ("debug", "single step in ring 3, SYSCALL", SYSTEM_CALLS),
    ("real", "INT through every vector pushes IP, CS and flags", REAL_MODE),
    ("paging", "writes across pages are all or nothing", CROSSING),
    ("self-modifying", "code changed by a write that faults in its second half", CROSSING),
    ("control", "writing the time-stamp counter", TIME),
    ("debug", "single step and repeated string instructions", BREAKPOINTS),
    ("debug", "MOV SS holds back the single-step trap", BREAKPOINTS),
    ("debug", "MOV SS holds back a data breakpoint", BREAKPOINTS),
    ("debug", "data breakpoints are traps", BREAKPOINTS),
    ("debug", "data breakpoints: kinds and lengths", BREAKPOINTS),
    ("debug", "data breakpoints of 1, 2 and 8 bytes", BREAKPOINTS),
    ("debug", "data breakpoints on the stack and in string instructions", BREAKPOINTS),
    ("debug", "I/O breakpoints", BREAKPOINTS),
    ("debug", "one trap for two causes", BREAKPOINTS),
    ("debug", "data breakpoint by the processor's own accesses", BREAKPOINTS),
    ("interrupts", "IF holds interrupts back", LATE),
    ("interrupts", "STI lets one instruction pass", LATE),
    ("interrupts", "MOV SS and POP into flags", LATE),
    ("interrupts", "CR8 holds a class back", LATE),
    ("interrupts", "the higher vector comes first", LATE),
    ("interrupts", "an interrupt in service holds its class back", LATE),
    ("interrupts", "an exception's IRET in the handler unblocks NMIs", LATE),
    ("fpu", "with NE clear, the error goes to IRQ 13", LATE),
    ("real", "IDTR: base and limit apply in real mode", REAL_MODE),
    ("gates", "interrupt through conforming code stays in ring 3", USER_GATES),
    ("gates", "defects of the inner stack", USER_GATES),
    ("tasks", "task gate from ring 3", USER_GATES),
    ("tasks", "a task in virtual-8086 mode", VIRTUAL_8086),
    ("long", "LTR and LLDT take 16 bytes", UNCHECKED),
    ("long", "interrupt from ring 3: SS is null", USER_GATES),
    ("long", "interrupt stack table", USER_GATES),
    ("long", "stack pointers of the TSS that are not canonical", DELIVERY),
    ("gates", "call gate to ring 0 with parameters", CALL_GATES),
    ("gates", "16-bit call gate", CALL_GATES),
    ("gates", "call gate to ring 1", CALL_GATES),
    ("gates", "call gate to conforming code", CALL_GATES),
    ("gates", "calls through gates that fail", CALL_GATES),
    ("gates", "double fault by a task gate", DELIVERY),
    ("long", "double fault", DELIVERY),
    ("long", "IRETQ that fails", IRET),
    ("long", "IRETD and IRETW in 64-bit mode", IRET),
    ("long", "IRETQ cannot set VM, and clears data segments", IRET),
    ("long", "64-bit call gate", CALL_GATES),
    ("long", "what keeps 64-bit mode", UNCHECKED),
];

/// Why a check is left out.
pub fn left_out(program: &str, check: &str) -> Option<&'static str> {
    LEFT_OUT
        .iter()
        .find(|(p, c, _)| *p == program && (*c == check || *c == "*"))
        .map(|(_, _, reason)| *reason)
}

/// All rows, for the test that they name checks that exist.
#[cfg(test)]
pub fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    LEFT_OUT.iter().map(|(program, check, _)| (*program, *check))
}
