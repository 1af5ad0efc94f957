//! The x86-64 host.
