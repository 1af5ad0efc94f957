//! Helpers of the system instructions.

helpers! { super::SYSTEM_BASE; }
