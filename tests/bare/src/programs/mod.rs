//! The programs, one file a subject.

mod long;
mod real;
mod segments;

use crate::Program;

/// All programs.
#[must_use]
pub fn programs() -> Vec<Program> {
    vec![
        Program::new("real", 16, real::emit),
        Program::new("segments", 32, segments::emit),
        Program::new("long", 64, long::emit),
    ]
}
