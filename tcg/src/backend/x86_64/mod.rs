//! The x86-64 host.

pub mod vec;
