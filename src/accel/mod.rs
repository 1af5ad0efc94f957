//! Accelerators: what executes the guest's instructions.
//!
//! An [`Engine`] runs one vCPU of the machine on its own thread. The machine knows nothing else of it: it starts the
//! thread, kicks it from any other, and is told why it stopped. `tcg` joins the translator to the devices; the two
//! crates never meet elsewhere.

pub mod tcg;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tessera_firmware::loader::BootEntry;
use tessera_hw::boards::pc::PcMachine;

use crate::cli::Config;

/// Makes the engine of the machine's first vCPU, as the command line wants it. An error is a sentence.
pub fn engine(board: &PcMachine, config: &Config) -> Result<Box<dyn Engine>, String> {
    Ok(Box::new(tcg::TcgEngine::new(board, config)?))
}

/// Why a vCPU stopped executing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It waits for an interrupt.
    Halted,
    /// [`Control::stop`] was called.
    Requested,
    /// A triple fault. The text shows the CPU's state.
    TripleFault(String),
}

/// One vCPU's executor.
pub trait Engine: Send {
    /// Executes until something happens that the engine does not handle by itself.
    fn run(&mut self) -> Stop;
    /// Puts the CPU in its power-up state.
    fn reset(&mut self);
    /// Puts the CPU, which is in its power-up state, where a loaded kernel begins.
    fn boot(&mut self, entry: &BootEntry);
    /// The handle by which other threads reach the vCPU.
    fn control(&self) -> Arc<Control>;
    /// Whether a halted CPU has a reason to go on.
    fn awake(&self) -> bool;
    /// The CPU's registers for people.
    fn dump(&self) -> String;
    /// What the engine did so far, for people.
    fn statistics(&self) -> String;
}

/// How other threads reach a vCPU: they may ask it to look at events, or to stop.
#[derive(Default)]
pub struct Control {
    stop: AtomicBool,
    kicked: Mutex<bool>,
    wake: Condvar,
    /// Makes translated code return to its loop; set by the engine.
    interrupt: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Control {
    /// A handle whose kicks also call `interrupt`.
    pub fn new(interrupt: Box<dyn Fn() + Send>) -> Arc<Control> {
        Arc::new(Control { interrupt: Mutex::new(Some(interrupt)), ..Control::default() })
    }

    /// Makes the vCPU look at its events soon: leaves generated code, or wakes it from its halt.
    pub fn kick(&self) {
        *self.kicked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
        if let Some(interrupt) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt();
        }
    }

    /// Makes [`Engine::run`] return with [`Stop::Requested`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.kick();
    }

    /// Whether a stop was asked for and not yet withdrawn.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Lets the vCPU run again after a stop.
    pub fn resume(&self) {
        self.stop.store(false, Ordering::Release);
    }

    /// Sleeps until the next kick, or returns at once if there was one since the last call.
    pub fn wait(&self) {
        let mut kicked = self.kicked.lock().unwrap_or_else(PoisonError::into_inner);
        while !*kicked {
            kicked = self.wake.wait(kicked).unwrap_or_else(PoisonError::into_inner);
        }
        *kicked = false;
    }

    /// Drops the engine's interrupt before the engine goes.
    fn detach(&self) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Runs a vCPU on the calling thread until it is stopped or faults for good; sleeps while it is halted.
pub fn drive(engine: &mut dyn Engine) -> Stop {
    let control = engine.control();
    loop {
        match engine.run() {
            Stop::Halted => {
                while !engine.awake() && !control.stop_requested() {
                    control.wait();
                }
            }
            stop => return stop,
        }
    }
}
