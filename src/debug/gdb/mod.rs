//! gdb looks at the guest: `-s`, `-gdb`, `-S`.
//!
//! Problem: the debugger stops and changes a machine that has its own threads and its own main loop, and whoever
//! connects may be anything: gdb, an old gdb, a port scanner. Strategy: the stub (the `gdbstub` crate) runs on the main
//! thread, fed with whole packets only. It never waits: the machine's owner calls [`GdbServer::service`] when something has
//! happened, and does what is asked ([`Ask`]); it reports back with [`GdbServer::stopped`] and
//! [`GdbServer::resumed`].
//!
//! Invariants:
//! - The guest is stopped by the first whole packet of a caller, not by the call: what does not speak the protocol stops
//!   nothing.
//! - When a caller goes, however it does, its breakpoints go and the guest goes on.
//! - One debugger at a time: who calls meanwhile is told so. If it has said nothing yet when the first goes, it is next.
//! - What waits to be sent is bounded; a caller that does not read is hung up on.
//!
//! | module | does |
//! |---|---|
//! | [`packets`] | bytes to packets |
//! | [`spec`] | where to listen |
//! | [`target`] | the machine as the stub sees it |
//! | [`registers`] | the registers and their description |
//! | [`memory`] | guest memory |
//! | [`breakpoints`] | breakpoints and watchpoints |
//! | [`monitor`] | `monitor` commands |

mod breakpoints;
mod memory;
mod monitor;
mod packets;
mod registers;
mod spec;
mod target;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind as GdbWatchKind;
use rustix::event::PollFlags;
use tessera_hw::boards::pc::PcMachine;

pub use self::spec::{GdbSpec, Listening};

use self::memory::Memory;
use self::packets::{Arrival, Framer, MAX_BODY, packet};
use self::target::{FIRST, GdbTarget, Stepping};
#[cfg(test)]
use crate::accel::debug::DebugRequest;
use crate::accel::debug::{DebugStop, WatchKind};
use crate::vcpu::VcpuHandle;

/// Bytes that may wait to be sent.
const MAX_UNSENT: usize = 1 << 20;
/// Arrivals that wait to be handled, at most: a caller sends one and waits for the answer.
const MAX_WAITING: usize = 1024;
/// How long the last packet may take.
const FAREWELL: Duration = Duration::from_millis(200);
/// gdb's error for what does not go now.
const ERROR: &[u8] = b"E01";
/// And for a value that cannot be (EINVAL).
const INVALID: &[u8] = b"E22";
/// What a second debugger is told.
const OCCUPIED: &[u8] = b"E.another debugger is connected to this machine";
/// How many of those there may be.
const MAX_REFUSED: usize = 8;

/// What the debugger asks of the machine's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The vCPU is to stop; [`GdbServer::stopped`] says when it has.
    Stop,
    /// It is to go on as [`GdbServer::tell_engine`] tells its engine.
    Resume,
    /// The debugger has gone: the guest goes on, under no request.
    Release,
    /// The machine is to be reset and to stay stopped.
    Reset,
    /// The emulator is to end.
    Kill,
}

/// Why the vCPU has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The debugger wanted it.
    Interrupted,
    /// For what the debugger waits for.
    Debug(DebugStop),
    /// It could not go on as the debugger wanted, for this reason.
    Refused(String),
}

/// Where the stub writes.
struct Output(Rc<RefCell<Vec<u8>>>);

impl Connection for Output {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.borrow_mut().push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Stub = GdbStubStateMachine<'static, GdbTarget, Output>;

/// Somebody who has called.
struct Caller {
    input: File,
    output: File,
    framer: Framer,
    waiting: VecDeque<Arrival>,
    /// What is still to be sent.
    unsent: Rc<RefCell<Vec<u8>>>,
    /// The last packet, in case it does not arrive.
    last: Vec<u8>,
    /// `None` before the first packet, and after one that was not as it should be.
    stub: Option<Stub>,
    /// It has sent a packet.
    speaks: bool,
    /// Packets are not acknowledged any more.
    no_acks: bool,
    gone: bool,
}

impl Caller {
    fn new((input, output): (File, File)) -> Caller {
        let unsent = Rc::default();
        Caller {
            input,
            output,
            framer: Framer::default(),
            waiting: VecDeque::new(),
            stub: None,
            unsent,
            last: Vec::new(),
            speaks: false,
            no_acks: false,
            gone: false,
        }
    }

    /// Reads what has come.
    fn receive(&mut self) {
        let mut buf = [0; 4096];
        while !self.gone && self.waiting.len() < MAX_WAITING {
            match self.input.read(&mut buf) {
                Ok(0) => self.gone = true,
                Ok(count) => {
                    self.waiting.extend(buf[..count].iter().filter_map(|byte| self.framer.push(*byte)));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }

    /// Sends what goes now.
    fn send(&mut self) {
        let mut unsent = self.unsent.borrow_mut();
        let mut sent = 0;
        while sent < unsent.len() {
            match self.output.write(&unsent[sent..]) {
                Ok(0) => self.gone = true,
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
            if self.gone {
                break;
            }
        }
        unsent.drain(..sent);
        self.gone |= unsent.len() > MAX_UNSENT;
    }

    fn acknowledge(&mut self, byte: u8) {
        if !self.no_acks {
            self.unsent.borrow_mut().push(byte);
        }
    }

    fn answer(&mut self, body: &[u8]) {
        self.acknowledge(b'+');
        self.send_packet(body);
    }

    fn send_packet(&mut self, body: &[u8]) {
        self.last = packet(body);
        self.unsent.borrow_mut().extend_from_slice(&self.last);
    }

    /// Hands a packet to the stub, which waits for one.
    fn feed(&mut self, target: &mut GdbTarget, body: &[u8]) {
        let before = self.unsent.borrow().len();
        let mut next = self.stub.take().or_else(|| stub(&self.unsent, target));
        for byte in packet(body) {
            next = match next {
                Some(GdbStubStateMachine::Idle(idle)) => idle.incoming_data(target, byte).ok(),
                other => other,
            };
            if next.is_none() {
                break;
            }
        }
        match next {
            Some(next) => {
                self.stub = Some(next);
                self.no_acks |= body == b"QStartNoAckMode";
                let unsent = self.unsent.borrow();
                let start = unsent[before..].iter().position(|byte| *byte == b'$');
                self.last = start.map(|at| unsent[before + at..].to_vec()).unwrap_or_default();
            }
            None => {
                // It was not what it should have been; the stub is gone with it, but the session is not.
                self.unsent.borrow_mut().truncate(before);
                self.answer(ERROR);
            }
        }
    }

    fn executes(&self) -> bool {
        matches!(self.stub, Some(GdbStubStateMachine::Running(_)))
    }
}

/// A stub that waits for a packet. There is one always: making it fails without a buffer only.
fn stub(unsent: &Rc<RefCell<Vec<u8>>>, target: &mut GdbTarget) -> Option<Stub> {
    let builder = GdbStub::builder(Output(unsent.clone())).packet_buffer_size(MAX_BODY + 4);
    builder.build().ok()?.run_state_machine(target).ok()
}

/// Serves debuggers, one after the other.
pub struct GdbServer {
    listening: Listening,
    caller: Option<Caller>,
    /// Those who have called while a debugger was there.
    refused: VecDeque<Caller>,
    target: GdbTarget,
    /// The vCPU is to stop for a Ctrl-C.
    interrupt: bool,
    /// A caller has gone, and the guest is to go on.
    release: bool,
}

impl GdbServer {
    /// Serves those who call at `listening` with a machine whose vCPU runs, or is held.
    pub fn new(mut listening: Listening, board: &PcMachine, vcpu: VcpuHandle, running: bool) -> GdbServer {
        let memory = Memory::new(board.address_space.clone(), board.a20.clone());
        // On standard input somebody is there already, and no descriptor says so.
        let caller = listening.accept().map(Caller::new);
        GdbServer {
            listening,
            caller,
            refused: VecDeque::new(),
            target: GdbTarget::new(vcpu, memory, running),
            interrupt: false,
            release: false,
        }
    }

    /// What the main loop is to wake for.
    pub fn interest(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut interest = Vec::new();
        if let Some(caller) = &self.caller {
            interest.push((caller.input.as_fd(), PollFlags::IN));
            if !caller.unsent.borrow().is_empty() {
                interest.push((caller.output.as_fd(), PollFlags::OUT));
            }
        }
        interest.extend(self.refused.iter().map(|refused| (refused.input.as_fd(), PollFlags::IN)));
        interest.extend(self.listening.descriptor().map(|listener| (listener, PollFlags::IN)));
        interest
    }

    /// What the debugger wants of the engine.
    #[cfg(test)]
    pub fn request(&self) -> DebugRequest {
        self.target.request()
    }

    /// Has the engine of the stopped vCPU do what the debugger wants when it goes on. An error is a sentence.
    pub fn tell_engine(&mut self) -> Result<(), String> {
        self.target.tell(self.target.request())
    }

    /// Whether the debugger wants a step.
    pub fn steps(&self) -> bool {
        self.target.request().step.is_some()
    }

    /// Serves the caller until something is to be done that only the machine's owner can. To be called until it returns
    /// `None`.
    pub fn service(&mut self) -> Option<Ask> {
        while let Some(streams) = self.listening.accept() {
            // Who has said nothing that makes sense does not keep others out.
            if self.caller.as_ref().is_none_or(|caller| !caller.speaks) {
                self.caller = Some(Caller::new(streams));
                continue;
            }
            self.refused.push_back(Caller::new(streams));
            if self.refused.len() > MAX_REFUSED {
                self.refused.pop_front();
            }
        }
        self.refuse();
        if let Some(caller) = &mut self.caller {
            caller.receive();
        }
        let ask = self.handle();
        if let Some(caller) = &mut self.caller {
            caller.send();
        }
        ask
    }

    /// Tells those who are one too many. They hang up themselves: gdb does so when it has shown what it was told.
    fn refuse(&mut self) {
        if self.caller.is_none() && !self.release {
            // Who was told already is not to be confused.
            let next = self.refused.iter().position(|refused| !refused.speaks);
            self.caller = next.and_then(|next| self.refused.remove(next));
        }
        self.refused.retain_mut(|refused| {
            refused.receive();
            while let Some(arrival) = refused.waiting.pop_front() {
                if let Arrival::Packet(body) = arrival {
                    refused.answer(OCCUPIED);
                    refused.no_acks |= body == b"QStartNoAckMode";
                    refused.speaks = true;
                }
            }
            refused.send();
            !refused.gone
        });
    }

    fn handle(&mut self) -> Option<Ask> {
        loop {
            if self.release {
                if self.target.running {
                    return Some(Ask::Stop);
                }
                self.release = false;
                self.target.clear();
                return Some(Ask::Release);
            }
            if let Some(ask) = self.target.asks.pop() {
                return Some(ask);
            }
            if self.interrupt && self.target.running {
                return Some(Ask::Stop);
            }
            self.interrupt = false;
            let caller = self.caller.as_mut()?;
            if caller.unsent.borrow().len() > MAX_UNSENT {
                caller.gone = true;
                caller.waiting.clear();
            }
            let Some(arrival) = caller.waiting.pop_front() else {
                if caller.gone {
                    self.release = caller.speaks;
                    self.caller = None;
                    continue;
                }
                return None;
            };
            match arrival {
                Arrival::Ack => {}
                // What has not left yet cannot have arrived damaged.
                Arrival::Nack if caller.unsent.borrow().is_empty() => {
                    let last = caller.last.clone();
                    caller.unsent.borrow_mut().extend_from_slice(&last);
                }
                Arrival::Nack => {}
                Arrival::Interrupt => self.interrupt = caller.executes(),
                Arrival::Damaged => caller.acknowledge(b'-'),
                Arrival::Packet(body) => {
                    if !caller.speaks {
                        caller.speaks = true;
                        if self.target.running {
                            caller.waiting.push_front(Arrival::Packet(body));
                            return Some(Ask::Stop);
                        }
                    }
                    if let Some(ask) = self.packet(&body) {
                        return Some(ask);
                    }
                }
            }
        }
    }

    fn packet(&mut self, body: &[u8]) -> Option<Ask> {
        let caller = self.caller.as_mut()?;
        if caller.executes() {
            // While the guest executes, gdb sends nothing but Ctrl-C.
            match body {
                b"vCtrlC" => {
                    caller.answer(b"OK");
                    self.interrupt = true;
                }
                b"k" => return Some(Ask::Kill),
                _ => caller.answer(ERROR),
            }
            return None;
        }
        match body {
            [b'v', b'K', b'i', b'l', b'l', b';', ..] => {
                caller.answer(b"OK");
                return Some(Ask::Kill);
            }
            b"qqemu.PhyMemMode" => caller.answer(if self.target.physical { b"1" } else { b"0" }),
            b"Qqemu.PhyMemMode:0" | b"Qqemu.PhyMemMode:1" => {
                self.target.physical = body.ends_with(b"1");
                caller.answer(b"OK");
            }
            b"qqemu.Supported" => caller.answer(b"sstepbits;sstep;PhyMemMode"),
            b"qqemu.sstepbits" => caller.answer(Stepping::BITS.as_bytes()),
            b"qqemu.sstep" => caller.answer(self.target.stepping.text().as_bytes()),
            [b'Q', b'q', b'e', b'm', b'u', b'.', b's', b's', b't', b'e', b'p', b'=', bits @ ..] => {
                match Stepping::parse(&String::from_utf8_lossy(bits)) {
                    Some(stepping) => {
                        self.target.stepping = stepping;
                        caller.answer(b"OK");
                    }
                    None => caller.answer(INVALID),
                }
            }
            // The old forms: without an address they mean what the new ones do.
            b"c" | [b'C', _, _] => caller.feed(&mut self.target, b"vCont;c"),
            b"s" | [b'S', _, _] => caller.feed(&mut self.target, b"vCont;s:1;c"),
            [b'c' | b's' | b'C' | b'S', ..] => caller.answer(ERROR),
            [b'm', range @ ..] if !is_small_range(range) => caller.answer(ERROR),
            _ => caller.feed(&mut self.target, body),
        }
        match &caller.stub {
            Some(GdbStubStateMachine::Running(_)) => Some(Ask::Resume),
            Some(GdbStubStateMachine::Disconnected(end)) => {
                let kill = end.get_reason() == DisconnectReason::Kill;
                caller.send();
                self.caller = None;
                self.release = !kill;
                kill.then_some(Ask::Kill)
            }
            _ => None,
        }
    }

    /// Whether the machine's timers run out in the debugger's steps.
    pub fn timers_in_steps(&self) -> bool {
        self.target.stepping.timers()
    }

    /// The vCPU executes.
    pub fn resumed(&mut self) {
        self.target.set_running(true);
    }

    /// Something has changed the stopped machine.
    pub fn changed(&mut self) {
        self.target.forget_state();
    }

    /// The vCPU has stopped.
    pub fn stopped(&mut self, reason: &StopReason) {
        self.target.set_running(false);
        self.interrupt = false;
        let Some(caller) = &mut self.caller else { return };
        if !caller.executes() {
            return;
        }
        let signal = |signal| MultiThreadStopReason::SignalWithThread { tid: FIRST, signal };
        let report = match reason {
            StopReason::Interrupted => signal(Signal::SIGINT),
            StopReason::Debug(DebugStop::Stepped) => signal(Signal::SIGTRAP),
            StopReason::Debug(DebugStop::Breakpoint) => {
                // gdb compares with its instruction pointer. Where CS has a base, that is another address, and gdb would
                // take it for a breakpoint that it has removed, and go on.
                let here = self.target.state().map_or(0, |state| state.rip);
                if self.target.breakpoints.contains(&(here, true)) {
                    MultiThreadStopReason::HwBreak(FIRST)
                } else if self.target.breakpoints.contains(&(here, false)) {
                    MultiThreadStopReason::SwBreak(FIRST)
                } else {
                    signal(Signal::SIGTRAP)
                }
            }
            StopReason::Debug(DebugStop::Watch { address, kind }) => {
                let kind = match kind {
                    WatchKind::Read => GdbWatchKind::Read,
                    WatchKind::Write => GdbWatchKind::Write,
                    WatchKind::ReadWrite => GdbWatchKind::ReadWrite,
                };
                MultiThreadStopReason::Watch { tid: FIRST, kind, addr: *address }
            }
            StopReason::Refused(why) => {
                let text: String = format!("{why}\n").bytes().map(|byte| format!("{byte:02x}")).collect();
                caller.send_packet(format!("O{text}").as_bytes());
                signal(Signal::SIGTRAP)
            }
        };
        let before = caller.unsent.borrow().len();
        if let Some(GdbStubStateMachine::Running(running)) = caller.stub.take() {
            caller.stub = running.report_stop(&mut self.target, report).ok();
        }
        caller.last = caller.unsent.borrow()[before..].to_vec();
        caller.send();
    }

    /// Tells a waiting debugger that the machine has ended with an exit status.
    pub fn ended(&mut self, status: u8) {
        let Some(caller) = self.caller.as_mut().filter(|caller| caller.executes()) else { return };
        caller.send_packet(format!("W{status:02x}").as_bytes());
        let start = Instant::now();
        while !caller.gone && !caller.unsent.borrow().is_empty() && start.elapsed() < FAREWELL {
            caller.send();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether `ADDRESS,LENGTH` is a range that an answer can hold and that does not wrap around.
fn is_small_range(range: &[u8]) -> bool {
    let parse = |text: &str| u64::from_str_radix(text, 16).ok();
    let text = String::from_utf8_lossy(range);
    let parsed = text.split_once(',').and_then(|(address, len)| Some((parse(address)?, parse(len)?)));
    parsed.is_some_and(|(address, len)| len <= MAX_BODY as u64 / 2 && address.checked_add(len).is_some())
}

#[cfg(test)]
mod tests;
