//! The programs, one file a subject.

mod control;
mod debug;
mod fpu;
mod gates;
mod interrupts;
mod la57;
mod long;
mod paging;
mod paging32;
mod real;
mod segments;
mod self_modifying;
mod shutdown;
mod spaces;
mod system_calls;
mod tasks;
mod v86;

use crate::Program;

/// All programs.
#[must_use]
pub fn programs() -> Vec<Program> {
    vec![
        Program::new("real", 16, real::emit),
        Program::new("segments", 32, segments::emit),
        Program::new("gates", 32, gates::emit),
        Program::new("tasks", 32, tasks::emit),
        Program::new("v86", 32, v86::emit),
        Program::new("long", 64, long::emit),
        Program::new("system-calls", 64, system_calls::emit),
        Program::new("paging", 64, paging::emit),
        Program { cpu: "max,+la57", levels: 5, ..Program::new("la57", 64, la57::emit) },
        Program::new("spaces", 64, spaces::emit),
        Program::new("paging32", 32, paging32::emit),
        Program::new("control", 64, control::emit),
        Program::new("debug", 64, debug::emit),
        Program::new("interrupts", 64, interrupts::emit),
        Program::new("fpu", 64, fpu::emit),
        Program::new("self-modifying", 64, self_modifying::emit),
        Program { resets: true, ..Program::new("shutdown", 64, shutdown::emit) },
    ]
}
