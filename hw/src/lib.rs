//! The devices of a PC and the boards that join them.
//!
//! Each device is a folder (or a file, if small): a state machine that a test drives with made-up times, and a thin wiring
//! type that puts it on a bus. [`boards::pc`] wires the machine. How devices are written is described in
//! [`tessera_hw_core`].
//!
//! To add a device: write its state machine with [`tessera_hw_core::device::StateMachine`], its wiring with
//! [`tessera_hw_core::device::Wired`] and a bus trait, and connect it in a board; the board's device list then resets and
//! saves it.

pub mod acpi;
pub mod boards;
pub mod char;
pub mod input;
pub mod intc;
pub mod misc;
pub mod pci;
pub mod timer;
