//! Character devices.

pub mod debugcon;
pub mod serial16550;
