//! Looking into a running machine.

pub mod log;
