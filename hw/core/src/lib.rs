//! What every device of the emulated machine is made of, and nothing of any one device.
//!
//! | module | concept |
//! |---|---|
//! | [`mem`] | guest RAM and the guest-physical address space (RAM, ROM, MMIO) |
//! | [`ports`] | the 64 K I/O port space |
//! | [`irq`] | interrupt wires that several devices may share |
//! | [`clock`] | the one source of guest time |
//! | [`timers`] | deadlines in guest time, and the thread that meets them |
//! | [`cpu`] | what a virtual CPU sees of its interrupt controller |
//! | [`device`] | reset, saved state, and how state is encoded |
//! | [`backend`] | the host side of a character device |
//! | [`event`] | how a guest asks for power-off or reset |
//!
//! # How a device is written
//!
//! A device is a **pure state machine** (plain data, `&mut self`, time passed in as nanoseconds) plus a thin
//! **wiring** type that holds the state machine in a `Mutex`, implements [`ports::PortDevice`] or
//! [`mem::MmioDevice`] with `&self`, owns the device's [`irq::IrqLine`]s and [`timers::Timer`], and forwards.
//! A unit test drives the state machine with made-up times; nothing sleeps.
//!
//! # Threads and lock order
//!
//! Bus handlers run on any vCPU thread, timer callbacks on the timer thread, backend input on the backend's
//! thread, all at once. A device takes its own lock and, while holding it, may raise interrupt lines, arm
//! timers and write to its backend. So locks are ordered
//! `device → interrupt line → PIC / I/O APIC → local APIC → timer queue`, and nothing called from below may call
//! back up while holding its own lock: a backend's `write` never calls into the frontend, a vCPU's kick only
//! sets a flag and wakes a thread.

pub mod backend;
pub mod clock;
pub mod cpu;
pub mod device;
pub mod event;
pub mod irq;
pub mod mem;
pub mod ports;
pub mod timers;

/// Target names of log records, so that `-d` can choose them.
pub mod log {
    /// The guest did something that hardware defines as an error or leaves undefined.
    pub const GUEST_ERRORS: &str = "guest_errors";
    /// The guest used something that exists on hardware and not in this machine.
    pub const UNIMP: &str = "unimp";
}

/// Locks `m`; a panic in another holder does not spread, since device state is plain data that is valid
/// after every assignment.
pub fn lock<T: ?Sized>(m: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
