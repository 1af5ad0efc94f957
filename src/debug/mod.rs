//! Looking into a running machine.

pub mod gdb;
pub mod log;
