//! ACPI fixed hardware and the reset register.

pub mod pm;
pub mod reset;
