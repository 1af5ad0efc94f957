//! A vCPU's thread, as the main loop sees it.
//!
//! The engine lives on the thread and never leaves it. The main loop sends orders; each order to run ends in
//! exactly one report of why the vCPU stopped, which also wakes the main loop. Other orders are for a stopped
//! vCPU.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tessera_firmware::loader::BootEntry;
use tessera_hw_core::cpu::set_current;

use crate::accel::{Control, Engine, Stop, boot_state, drive};
use crate::event_loop::{Waker, linger};

/// What the thread is to do.
enum Order {
    Run,
    /// Power-up state, or where a loaded kernel begins.
    Reset(Option<BootEntry>),
    /// Something to be done with the engine.
    Call(Call),
    /// The thread is to end.
    End,
}

/// What [`VcpuHandle::call`] hands over.
type Call = Box<dyn FnOnce(&mut dyn Engine) + Send>;

/// Does things with the engine of a vCPU that is stopped. One that outlives the vCPU does nothing.
#[derive(Clone)]
pub struct VcpuHandle(Sender<Order>);

impl VcpuHandle {
    /// Has the vCPU's thread call `work` and waits for what it returns. `None` if the thread has ended, or panicked in
    /// `work`. The vCPU must not be running: it would answer only when it stops.
    pub fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Engine) -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, answer) = channel();
        let call: Call = Box::new(move |engine| {
            // The asker may have given up.
            let _ = reply.send(work(engine));
        });
        self.0.send(Order::Call(call)).ok()?;
        linger(|| answer.try_recv().ok()).or_else(|| answer.recv().ok())
    }
}

/// How a run ended: why the vCPU stopped, or what the engine panicked with.
type Report = Result<Stop, String>;

/// A vCPU on its thread.
pub struct Vcpu {
    control: Arc<Control>,
    orders: Option<Sender<Order>>,
    reports: Receiver<Report>,
    running: bool,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread of vCPU `index`; the vCPU is stopped. Each report wakes `waker`'s loop.
    pub fn spawn(index: u32, mut engine: Box<dyn Engine>, waker: Waker) -> io::Result<Self> {
        let control = engine.control();
        let (orders, incoming) = channel();
        let (outgoing, reports) = channel();
        let thread = Builder::new().name(format!("vcpu{index}")).spawn(move || {
            set_current(index);
            let mut failed = None;
            // A debugger's orders come close upon each other, an ordinary stop's do not.
            let mut soon = false;
            while let Some(order) = next(&incoming, soon) {
                soon = false;
                match order {
                    Order::Run if failed.is_some() => {
                        let _ = outgoing.send(Ok(Stop::Failed(failed.take().unwrap_or_default())));
                        waker.wake();
                    }
                    Order::Run => {
                        // A fault of the engine ends the machine, not the process: the main loop has a
                        // terminal to restore.
                        let report = catch_unwind(AssertUnwindSafe(|| drive(&mut *engine)))
                            .map_err(|panic| panic_message(panic.as_ref()));
                        let failed = report.is_err();
                        soon = matches!(report, Ok(Stop::Debug(_)));
                        // The main loop may have ended already.
                        let _ = outgoing.send(report);
                        waker.wake();
                        if failed {
                            return;
                        }
                    }
                    Order::Reset(entry) => {
                        engine.reset();
                        if let Some(entry) = entry {
                            // An engine that cannot do it says so when it is to run.
                            let started = engine.state().and_then(|mut state| {
                                boot_state(&mut state, &entry);
                                engine.set_state(&state)
                            });
                            failed = started.err();
                        }
                        if tracing::enabled!(target: "cpu_reset", tracing::Level::DEBUG) {
                            tracing::debug!(target: "cpu_reset", "CPU {index} reset\n{}", engine.dump());
                        }
                    }
                    Order::Call(call) => {
                        let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut *engine)));
                        if let Err(panic) = outcome {
                            let _ = outgoing.send(Err(panic_message(panic.as_ref())));
                            waker.wake();
                            return;
                        }
                        soon = true;
                    }
                    Order::End => return,
                }
            }
        })?;
        Ok(Vcpu { control, orders: Some(orders), reports, running: false, thread: Some(thread) })
    }

    /// The handle for kicks.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A thread that has ended has sent a report that says why.
            let _ = orders.send(order);
        }
    }

    /// Lets the vCPU execute.
    pub fn run(&mut self) {
        if !self.running {
            self.control.resume();
            self.running = true;
            self.order(Order::Run);
        }
    }

    /// Puts the stopped vCPU into its power-up state, or where a loaded kernel begins.
    pub fn reset(&self, entry: Option<BootEntry>) {
        self.order(Order::Reset(entry));
    }

    /// Why the vCPU has stopped, if it has since the last call.
    pub fn take_report(&mut self) -> Option<Report> {
        let report = self.reports.try_recv().ok()?;
        self.running = false;
        Some(report)
    }

    /// Makes the vCPU stop, and waits until it has. An end that came by itself meanwhile is returned.
    pub fn stop(&mut self) -> Report {
        if !self.running {
            return Ok(Stop::Requested);
        }
        self.control.stop();
        let report = self.reports.recv().unwrap_or_else(|_| Err("its thread has ended".into()));
        self.running = false;
        report
    }

    /// What the stopped vCPU's engine did so far.
    pub fn statistics(&self) -> Option<String> {
        self.handle()?.call(|engine| engine.statistics())
    }

    /// A handle to the engine, for while the vCPU is stopped.
    pub fn handle(&self) -> Option<VcpuHandle> {
        self.orders.clone().map(VcpuHandle)
    }

    /// Why the vCPU has stopped, if it does so within a short time: for what takes no longer, like a single instruction.
    pub fn take_report_soon(&mut self, limit: Duration) -> Option<Report> {
        let report = linger(|| self.reports.try_recv().ok());
        let report = report.or_else(|| self.reports.recv_timeout(limit).ok())?;
        self.running = false;
        Some(report)
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // An engine that has panicked is not asked for more.
        let _ = self.stop();
        self.order(Order::End);
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and reported.
            let _ = thread.join();
        }
    }
}

/// The next order; `None` if nobody is left to give one.
fn next(orders: &Receiver<Order>, soon: bool) -> Option<Order> {
    let order = if soon { linger(|| orders.try_recv().ok()) } else { None };
    order.or_else(|| orders.recv().ok())
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use tessera_x86::cpu_state::CpuState;

    use super::*;
    use crate::accel::debug::DebugRequest;

    /// Halts until it is stopped; panics if its start says so.
    struct Fake {
        control: Arc<Control>,
        resets: Arc<AtomicU32>,
        panics: bool,
    }

    impl Engine for Fake {
        fn run(&mut self) -> Stop {
            assert!(!self.panics, "out of order");
            if self.control.stop_requested() { Stop::Requested } else { Stop::Halted }
        }
        fn reset(&mut self) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
        fn state(&mut self) -> Result<CpuState, String> {
            Err("no state".into())
        }
        fn set_state(&mut self, _: &CpuState) -> Result<(), String> {
            Err("no state".into())
        }
        fn set_debug(&mut self, _: &DebugRequest) -> Result<(), String> {
            Err("no debugger".into())
        }
        fn control(&self) -> Arc<Control> {
            self.control.clone()
        }
        fn awake(&self) -> bool {
            false
        }
        fn dump(&self) -> String {
            "registers".into()
        }
        fn statistics(&self) -> String {
            "statistics".into()
        }
    }

    fn fake(panics: bool) -> (Vcpu, Arc<AtomicU32>) {
        let resets = Arc::new(AtomicU32::new(0));
        let engine = Fake { control: Control::new(Box::new(|| ())), resets: resets.clone(), panics };
        (Vcpu::spawn(0, Box::new(engine), Waker::new().unwrap()).unwrap(), resets)
    }

    #[test]
    fn runs_stops_and_runs_again() {
        let (mut vcpu, resets) = fake(false);
        for round in 1..=3 {
            vcpu.reset(None);
            vcpu.run();
            assert_eq!(vcpu.take_report(), None);
            assert_eq!(vcpu.stop(), Ok(Stop::Requested));
            assert_eq!(vcpu.statistics().unwrap(), "statistics");
            assert_eq!(resets.load(Ordering::Relaxed), round);
        }
        vcpu.run();
        drop(vcpu);
    }

    #[test]
    fn a_panic_is_a_report() {
        let (mut vcpu, _) = fake(true);
        vcpu.run();
        let start = Instant::now();
        let report = loop {
            assert!(start.elapsed() < Duration::from_secs(10));
            if let Some(report) = vcpu.take_report() {
                break report;
            }
            std::thread::yield_now();
        };
        assert_eq!(report, Err("out of order".into()));
        assert!(vcpu.statistics().is_none());
    }
}
