//! The machine as the stub sees it: registers, memory, threads, how it goes on.
//!
//! The stub calls this while the vCPU is stopped, on the main thread; the engine is on the vCPU's thread and is reached by
//! [`VcpuHandle`]. What the stub wants of the machine (to run, to step) is noted and done by the machine's owner, who
//! also says when the vCPU runs and when it has stopped.
//!
//! Invariant: while the vCPU runs, nothing here waits for it; what needs it fails.

use std::collections::BTreeSet;

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use tessera_x86::cpu_state::CpuState;

use super::Ask;
use super::memory::Memory;
use super::registers::{RegisterFile, RegisterNumber, X86Processor};
use crate::accel::debug::{DebugRequest, Step, Watchpoint};
use crate::vcpu::VcpuHandle;

/// The one vCPU as a thread; gdb counts from 1.
pub const FIRST: Tid = Tid::MIN;

/// What single steps leave out: bits with QEMU's values, as its debuggers know them (`qqemu.sstep`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stepping(u8);

impl Stepping {
    /// The bits as QEMU tells them.
    pub const BITS: &str = "ENABLE=1,NOIRQ=2,NOTIMER=4";
    const ENABLE: u8 = 1;
    const NO_INTERRUPTS: u8 = 2;
    const NO_TIMERS: u8 = 4;

    /// Reads a number in hexadecimal. `None` for bits that do not exist, and for steps that are none.
    pub fn parse(text: &str) -> Option<Stepping> {
        let bits = u8::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()?;
        let known = Self::ENABLE | Self::NO_INTERRUPTS | Self::NO_TIMERS;
        (bits & !known == 0 && bits & Self::ENABLE != 0).then_some(Stepping(bits))
    }

    /// The number for a debugger.
    pub fn text(self) -> String {
        format!("{:#x}", self.0)
    }

    /// Steps take interrupts.
    pub fn interrupts(self) -> bool {
        self.0 & Self::NO_INTERRUPTS == 0
    }

    /// The machine's timers run out in steps.
    pub fn timers(self) -> bool {
        self.0 & Self::NO_TIMERS == 0
    }
}

impl Default for Stepping {
    /// People who step do not want to fall into the timer's handler.
    fn default() -> Self {
        Stepping(Self::ENABLE | Self::NO_INTERRUPTS | Self::NO_TIMERS)
    }
}

/// What the stub works on.
pub struct GdbTarget {
    pub(super) vcpu: VcpuHandle,
    pub(super) memory: Memory,
    /// The stopped vCPU's state, once it was asked for.
    state: Option<Box<CpuState>>,
    /// Addresses of breakpoints and whether gdb calls them hardware breakpoints.
    pub(super) breakpoints: BTreeSet<(u64, bool)>,
    pub(super) watchpoints: Vec<Watchpoint>,
    step: Option<Step>,
    /// What the engine was told last.
    told: Option<DebugRequest>,
    /// What single steps leave out, see [`Stepping`].
    pub(super) stepping: Stepping,
    /// Addresses are physical.
    pub(super) physical: bool,
    /// The vCPU executes.
    pub(super) running: bool,
    /// What `monitor` commands ask of the machine's owner.
    pub(super) asks: Vec<Ask>,
}

impl GdbTarget {
    /// The target of a machine whose vCPU runs, or not.
    pub fn new(vcpu: VcpuHandle, memory: Memory, running: bool) -> GdbTarget {
        GdbTarget {
            vcpu,
            memory,
            state: None,
            breakpoints: BTreeSet::new(),
            watchpoints: Vec::new(),
            step: None,
            told: None,
            stepping: Stepping::default(),
            physical: false,
            running,
            asks: Vec::new(),
        }
    }

    /// What the debugger wants of the engine now.
    pub fn request(&self) -> DebugRequest {
        let mut breakpoints: Vec<u64> = self.breakpoints.iter().map(|(address, _)| *address).collect();
        breakpoints.dedup();
        DebugRequest {
            breakpoints,
            watchpoints: self.watchpoints.clone(),
            step: self.step.clone(),
            interrupts: self.stepping.interrupts(),
        }
    }

    /// Tells the engine what the debugger wants, unless it knows. An error, a sentence, is why it cannot do that.
    pub(super) fn tell(&mut self, request: DebugRequest) -> Result<(), String> {
        if self.told.as_ref() == Some(&request) {
            return Ok(());
        }
        let told = request.clone();
        self.vcpu.call(move |engine| engine.set_debug(&request)).ok_or("the vCPU has ended")??;
        self.told = Some(told);
        Ok(())
    }

    /// Tells the engine of breakpoints and watchpoints; `false` if it cannot have them.
    pub(super) fn sync(&mut self) -> bool {
        if self.running {
            return false;
        }
        let told = self.tell(DebugRequest { step: None, ..self.request() });
        if let Err(why) = &told {
            eprintln!("tessera: gdb: {why}");
        }
        told.is_ok()
    }

    /// Forgets everything that one debugger has set.
    pub fn clear(&mut self) {
        self.breakpoints.clear();
        self.watchpoints.clear();
        self.step = None;
        self.stepping = Stepping::default();
        self.physical = false;
    }

    /// The vCPU has begun to execute, or has stopped.
    pub fn set_running(&mut self, running: bool) {
        self.running = running;
        self.state = None;
    }

    /// Something else has changed the stopped vCPU's state.
    pub fn forget_state(&mut self) {
        self.state = None;
    }

    /// The stopped vCPU's state.
    pub fn state(&mut self) -> Result<&mut CpuState, String> {
        if self.running {
            return Err("the guest is running".into());
        }
        if self.state.is_none() {
            let state = self.vcpu.call(|engine| engine.state()).ok_or("the vCPU has ended")??;
            self.state = Some(Box::new(state));
        }
        self.state.as_deref_mut().ok_or_else(|| "the vCPU has no state".into())
    }

    /// Changes the state of the vCPU.
    fn change(&mut self, change: impl FnOnce(&mut CpuState)) -> Result<(), String> {
        let old = self.state()?.clone();
        let mut new = old.clone();
        change(&mut new);
        new.normalise();
        if new.pae_without_long_mode() && (new.cr3 != old.cr3 || !old.pae_without_long_mode()) {
            // The processor loads them when it loads CR3.
            let mut table = [0; 32];
            self.memory.read(None, new.cr3 & 0xffff_ffe0, &mut table);
            for (pdpte, bytes) in new.pdpte.iter_mut().zip(table.chunks_exact(8)) {
                *pdpte = u64::from_le_bytes(std::array::from_fn(|n| bytes[n]));
            }
        }
        self.state = None;
        let outcome = self.vcpu.call(move |engine| {
            // The machine's devices may have sent interrupts since the state was read.
            let now = engine.state()?;
            (new.apic, new.tsc_deadline) = (now.apic, now.tsc_deadline);
            new.normalise();
            engine.set_state(&new).inspect_err(|_| {
                // After an error a state must be set before the vCPU goes on: the old one was possible.
                let _ = engine.set_state(&old);
            })
        });
        outcome.ok_or("the vCPU has ended")?
    }
}

impl Target for GdbTarget {
    type Arch = X86Processor;
    type Error = String;

    fn base_ops(&mut self) -> BaseOps<'_, X86Processor, String> {
        BaseOps::MultiThread(self)
    }

    fn use_rle(&self) -> bool {
        false
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for GdbTarget {
    fn read_registers(&mut self, registers: &mut RegisterFile, _: Tid) -> TargetResult<(), Self> {
        let state = self.state().map_err(|_| TargetError::NonFatal)?;
        *registers = RegisterFile::of(state);
        Ok(())
    }

    fn write_registers(&mut self, registers: &RegisterFile, _: Tid) -> TargetResult<(), Self> {
        self.change(|state| registers.apply(state)).map_err(|_| TargetError::NonFatal)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8], _: Tid) -> TargetResult<usize, Self> {
        let memory = self.memory.clone();
        let physical = self.physical;
        let state = self.state().map_err(|_| TargetError::NonFatal)?;
        match memory.read((!physical).then_some(state), address, data) {
            0 if !data.is_empty() => Err(TargetError::NonFatal),
            count => Ok(count),
        }
    }

    fn write_addrs(&mut self, address: u64, data: &[u8], _: Tid) -> TargetResult<(), Self> {
        let memory = self.memory.clone();
        let physical = self.physical;
        let state = self.state().map_err(|_| TargetError::NonFatal)?;
        let written = memory.write((!physical).then_some(state), address, data);
        if written { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), String> {
        thread_is_active(FIRST);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for GdbTarget {
    fn read_register(&mut self, _: Tid, number: RegisterNumber, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let state = self.state().map_err(|_| TargetError::NonFatal)?;
        Ok(number.read(state, buf))
    }

    fn write_register(&mut self, _: Tid, number: RegisterNumber, value: &[u8]) -> TargetResult<(), Self> {
        self.change(|state| number.write(state, value)).map_err(|_| TargetError::NonFatal)
    }
}

impl MultiThreadResume for GdbTarget {
    fn resume(&mut self) -> Result<(), String> {
        // The machine's owner lets it go on when the stub says that it runs.
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), String> {
        self.step = None;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), String> {
        // A machine takes no signals: what gdb passes on is what it was told at the stop.
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for GdbTarget {
    fn set_resume_action_step(&mut self, _: Tid, _: Option<Signal>) -> Result<(), String> {
        self.step = Some(Step::One);
        Ok(())
    }
}

impl MultiThreadRangeStepping for GdbTarget {
    fn set_resume_action_range_step(&mut self, _: Tid, start: u64, end: u64) -> Result<(), String> {
        self.step = Some(if start < end { Step::Within(start..end) } else { Step::One });
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for GdbTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), String> {
        // There are no other threads.
        Ok(())
    }
}

impl ThreadExtraInfo for GdbTarget {
    fn thread_extra_info(&self, _: Tid, buf: &mut [u8]) -> Result<usize, String> {
        let halted = self.state.as_ref().is_some_and(|state| state.events.halted);
        let text: &[u8] = if halted { b"CPU 0, halted" } else { b"CPU 0" };
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text[..len]);
        Ok(len)
    }
}
