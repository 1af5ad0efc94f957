//! The half of a character backend that the main loop drives.
//!
//! An endpoint owns the descriptors of one character device: where input comes from, where output goes, and,
//! for a server, where callers arrive. Between polls the main loop asks for its [`Interest`]; after a poll it
//! calls [`Endpoint::service`] with what is ready. All descriptors are non-blocking, so no call here waits.
//!
//! Output is gathered for [`GATHER`] after each write: a guest that prints byte by byte costs the host a
//! thousand writes a second instead of a hundred thousand, and a person sees no difference.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tessera_hw_core::backend::CharEvent;

use super::escape::{Command, Escape, Typed};
use super::port::Port;
use super::sockets::{Listener, SocketFile};

/// How long output is gathered after a write.
const GATHER: Duration = Duration::from_millis(1);
/// The most input that waits for the guest, in bytes.
const INPUT_LIMIT: usize = 64 << 10;
/// How often a pseudo-terminal that nobody has open is looked at.
const PTY_RETRY: Duration = Duration::from_millis(200);
/// How long output may still be on its way when the emulator ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What kind of peer is at the other end.
enum Peer {
    /// Standard input and output, or a file: it is there from the start.
    Fixed,
    /// A pseudo-terminal: it reports a hang-up for as long as nobody has it open.
    Pty {
        /// When to look again, while nobody has it open.
        retry: Option<Instant>,
    },
    /// A connection to a server elsewhere.
    Client,
    /// Callers of ours, one at a time.
    Server(Listener),
}

/// One character device's descriptors and input.
pub struct Endpoint {
    port: Arc<Port>,
    peer: Peer,
    reader: Option<Arc<OwnedFd>>,
    writer: Option<Arc<OwnedFd>>,
    escape: Option<Escape>,
    /// Input beyond the limit is dropped, so that commands typed on a terminal always arrive.
    drops_excess: bool,
    input: VecDeque<u8>,
    /// The guest took nothing of the input; it says when to try again.
    guest_full: bool,
    not_before: Option<Instant>,
    /// Removed when the endpoint goes.
    _socket: Option<SocketFile>,
}

/// What an endpoint waits for.
#[derive(Default)]
pub struct Interest<'a> {
    /// A descriptor to read from.
    pub read: Option<BorrowedFd<'a>>,
    /// A descriptor to write to.
    pub write: Option<BorrowedFd<'a>>,
    /// A descriptor at which callers arrive.
    pub accept: Option<BorrowedFd<'a>>,
    /// A time at which to call anyway.
    pub at: Option<Instant>,
}

/// What is ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// There is input, or its end.
    pub read: bool,
    /// There is room for output.
    pub write: bool,
    /// There is a caller.
    pub accept: bool,
}

impl Endpoint {
    fn new(port: Arc<Port>, peer: Peer) -> Self {
        Endpoint {
            port,
            peer,
            reader: None,
            writer: None,
            escape: None,
            drops_excess: false,
            input: VecDeque::new(),
            guest_full: false,
            not_before: None,
            _socket: None,
        }
    }

    /// Standard input and output, or a file: `reader` and `writer` are non-blocking.
    pub fn fixed(port: Arc<Port>, reader: Option<OwnedFd>, writer: Option<OwnedFd>) -> Self {
        let (reader, writer) = (reader.map(Arc::new), writer.map(Arc::new));
        Endpoint { reader, writer, ..Self::new(port, Peer::Fixed) }
    }

    /// A pseudo-terminal's emulator side.
    pub fn pty(port: Arc<Port>, master: OwnedFd) -> Self {
        let master = Some(Arc::new(master));
        Endpoint { reader: master.clone(), writer: master, ..Self::new(port, Peer::Pty { retry: None }) }
    }

    /// A connection to a server.
    pub fn client(port: Arc<Port>, stream: OwnedFd) -> Self {
        let stream = Some(Arc::new(stream));
        Endpoint { reader: stream.clone(), writer: stream, ..Self::new(port, Peer::Client) }
    }

    /// A server, and its first caller if it was waited for.
    pub fn server(
        port: Arc<Port>,
        listener: Listener,
        first: Option<OwnedFd>,
        socket: Option<SocketFile>,
    ) -> Self {
        let stream = first.map(Arc::new);
        port.set_discards(stream.is_none());
        Endpoint {
            reader: stream.clone(),
            writer: stream,
            _socket: socket,
            ..Self::new(port, Peer::Server(listener))
        }
    }

    /// Makes the escape character start commands.
    pub fn with_commands(mut self, escape: Escape) -> Self {
        self.escape = Some(escape);
        self
    }

    /// Drops input beyond the limit instead of leaving it with the host.
    pub fn dropping_excess(mut self) -> Self {
        self.drops_excess = true;
        self
    }

    /// Whether anybody is at the other end.
    #[cfg(test)]
    pub fn has_peer(&self) -> bool {
        self.writer.is_some()
    }

    /// What to poll for.
    pub fn interest(&self) -> Interest<'_> {
        let mut interest = Interest::default();
        if let Peer::Pty { retry: Some(at) } = self.peer {
            interest.at = Some(at);
            return interest;
        }
        if self.input.len() < INPUT_LIMIT || self.drops_excess {
            interest.read = self.reader.as_ref().map(AsFd::as_fd);
        }
        if self.port.has_output() {
            match self.not_before {
                Some(at) if at > Instant::now() => interest.at = Some(at),
                _ => interest.write = self.writer.as_ref().map(AsFd::as_fd),
            }
        }
        if let (Peer::Server(listener), None) = (&self.peer, &self.writer) {
            interest.accept = Some(listener.as_fd());
        }
        interest
    }

    /// Moves what can be moved; adds what the user asked for to `commands`.
    pub fn service(&mut self, ready: Ready, commands: &mut Vec<Command>) {
        if let Peer::Pty { retry } = &mut self.peer
            && retry.is_some_and(|at| at <= Instant::now())
        {
            // Whether anybody has it open now shows when it is read.
            *retry = None;
            self.port.set_discards(false);
        }
        if ready.accept {
            self.accept();
        }
        if ready.read {
            self.read(commands);
        }
        if self.port.take_input_wanted() {
            self.guest_full = false;
        }
        self.deliver();
        if ready.write {
            self.write();
            self.not_before = Some(Instant::now() + GATHER);
        }
    }

    fn accept(&mut self) {
        let Peer::Server(listener) = &self.peer else { return };
        match listener.accept() {
            Ok(stream) => {
                let stream = Some(Arc::new(stream));
                (self.reader, self.writer) = (stream.clone(), stream);
                self.port.set_discards(false);
            }
            Err(error) => tracing::debug!("a caller could not be accepted: {error}"),
        }
    }

    fn read(&mut self, commands: &mut Vec<Command>) {
        let Some(reader) = self.reader.clone() else { return };
        let mut chunk = [0; 4096];
        match rustix::io::read(&*reader, &mut chunk) {
            Ok(0) => self.input_ended(),
            Ok(count) => {
                for &byte in &chunk[..count] {
                    let typed =
                        self.escape.as_mut().map_or(Typed::ForGuest(byte), |escape| escape.take(byte));
                    match typed {
                        Typed::ForGuest(byte) if self.input.len() < INPUT_LIMIT || !self.drops_excess => {
                            self.input.push_back(byte);
                        }
                        Typed::ForGuest(_) | Typed::Nothing => {}
                        Typed::Command(Command::Break) => {
                            if let Some(frontend) = self.port.frontend() {
                                frontend.event(CharEvent::Break);
                            }
                        }
                        Typed::Command(Command::Help) => {
                            let help = self.escape.map(Escape::help).unwrap_or_default();
                            self.say(&help);
                        }
                        Typed::Command(Command::Monitor) => self.say("\nThere is no monitor yet.\n"),
                        Typed::Command(Command::Quit) => commands.push(Command::Quit),
                    }
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input_ended(),
        }
    }

    /// Standard input has ended, or the peer has gone.
    fn input_ended(&mut self) {
        match &mut self.peer {
            Peer::Fixed => self.reader = None,
            Peer::Pty { retry } => {
                *retry = Some(Instant::now() + PTY_RETRY);
                self.port.set_discards(true);
            }
            Peer::Client | Peer::Server(_) => self.hung_up(),
        }
    }

    fn hung_up(&mut self) {
        self.reader = None;
        self.writer = None;
        self.port.set_discards(true);
    }

    fn write(&mut self) {
        let Some(writer) = self.writer.clone() else { return };
        let outcome = self.port.drain(|bytes| match rustix::io::write(&*writer, bytes) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            other => other,
        });
        if let Err(error) = outcome {
            match self.peer {
                Peer::Fixed => {
                    tracing::warn!("output of the guest is lost from here on: {}", io::Error::from(error));
                    self.writer = None;
                    self.port.set_discards(true);
                }
                Peer::Pty { .. } => self.input_ended(),
                Peer::Client | Peer::Server(_) => self.hung_up(),
            }
        }
    }

    /// Gives the guest what it takes.
    fn deliver(&mut self) {
        let Some(frontend) = self.port.frontend() else { return };
        while !self.input.is_empty() && !self.guest_full {
            let taken = frontend.receive(self.input.as_slices().0);
            self.guest_full = taken == 0;
            self.input.drain(..taken.min(self.input.len()));
        }
    }

    /// The emulator's own words on the terminal.
    fn say(&self, text: &str) {
        if let Some(writer) = &self.writer {
            // A terminal that takes nothing at the moment shows no help.
            let _ = rustix::io::write(&**writer, text.as_bytes());
        }
    }

    /// Writes what is still on its way, for a limited time, at the end of the emulator.
    pub fn finish(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        while self.port.has_output() && Instant::now() < deadline {
            let Some(writer) = self.writer.clone() else { return };
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            let mut polled = [rustix::event::PollFd::new(&*writer, rustix::event::PollFlags::OUT)];
            if rustix::event::poll(&mut polled, Some(&wait)).is_ok_and(|ready| ready > 0) {
                self.write();
            }
        }
    }
}
