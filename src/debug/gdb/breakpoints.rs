//! Breakpoints and watchpoints.
//!
//! Software and hardware breakpoints are one mechanism: the engine stops before the instruction and guest memory is not
//! touched. gdb is told by the name it used. Their addresses are linear addresses, in every address space.

use gdbstub::target::TargetResult;
use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps,
    WatchKind,
};

use super::target::GdbTarget;
use crate::accel::debug::{WatchKind as Kind, Watchpoint};

/// Breakpoints, at most, and watchpoints likewise.
const MAX: usize = 4096;

impl GdbTarget {
    fn add_breakpoint(&mut self, address: u64, hardware: bool) -> bool {
        if self.breakpoints.len() >= MAX || !self.breakpoints.insert((address, hardware)) {
            return self.breakpoints.contains(&(address, hardware));
        }
        let done = self.sync();
        if !done {
            self.breakpoints.remove(&(address, hardware));
        }
        done
    }

    fn remove_breakpoint(&mut self, address: u64, hardware: bool) -> bool {
        self.breakpoints.remove(&(address, hardware)) && self.sync()
    }
}

impl Breakpoints for GdbTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for GdbTarget {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address, false))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address, false))
    }
}

impl HwBreakpoint for GdbTarget {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address, true))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address, true))
    }
}

fn watchpoint(address: u64, len: u64, kind: WatchKind) -> Option<Watchpoint> {
    let last = address.checked_add(len.checked_sub(1)?)?;
    let kind = match kind {
        WatchKind::Write => Kind::Write,
        WatchKind::Read => Kind::Read,
        WatchKind::ReadWrite => Kind::ReadWrite,
    };
    Some(Watchpoint { range: address..=last, kind })
}

impl HwWatchpoint for GdbTarget {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let Some(watch) = watchpoint(address, len, kind) else { return Ok(false) };
        if self.watchpoints.contains(&watch) {
            return Ok(true);
        }
        if self.watchpoints.len() >= MAX {
            return Ok(false);
        }
        self.watchpoints.push(watch);
        let done = self.sync();
        if !done {
            self.watchpoints.pop();
        }
        Ok(done)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let before = self.watchpoints.len();
        let gone = watchpoint(address, len, kind);
        self.watchpoints.retain(|watch| gone.as_ref() != Some(watch));
        Ok(self.watchpoints.len() != before && self.sync())
    }
}
