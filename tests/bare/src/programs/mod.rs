//! The programs, one file a subject.

mod gates;
mod long;
mod real;
mod segments;
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
    ]
}
