//! What a PC finds in its memory before the first instruction of an operating system runs.
//!
//! The problem: a kernel does not start on bare RAM. It expects a loader that placed it, a memory map,
//! tables that describe processors and interrupt wiring, and, if nobody named a kernel, a ROM at the reset
//! vector. This crate makes all of these as plain bytes and knows no device and no CPU:
//!
//! - [`loader`] places a Linux `bzImage` or a PVH-capable ELF kernel, its initrd and its command line;
//! - [`tables`] describes the machine by ACPI, SMBIOS and the Intel MP tables;
//! - [`e820`] is the memory map both of them rest on;
//! - [`bios`] is the embedded ROM: a self-test of the machine, assembled from source in the build script;
//! - [`platform`] holds the one description ([`PlatformInfo`]) and the fixed addresses all of them agree on.
//!
//! Invariants: everything is written through [`GuestMemory`], which refuses what lies outside guest RAM;
//! files from outside (kernel, initrd) are never trusted: each malformed one is a [`loader::LoadError`], and no
//! size read from a file is allocated.

pub mod bios;
pub mod e820;
pub mod loader;
pub mod memory;
pub mod platform;
pub mod tables;

pub use memory::{GuestMemory, MemoryError};
pub use platform::{MachineKind, PlatformInfo, RamLayout, SerialPort};
