//! Character devices' host side: the terminal, files, pseudo-terminals, sockets.
//!
//! | module | does |
//! |---|---|
//! | [`spec`] | reads what the user typed |
//! | [`port`] | the half the device sees: a bounded queue |
//! | [`endpoint`] | the half the main loop drives: the descriptors |
//! | [`sockets`] | unix and TCP sockets |
//! | [`escape`] | Ctrl-A commands |
//!
//! Opening goes in two steps, because nothing may be written before everything is known to be in order:
//! [`open`] opens (or listens, or connects) and [`Opened::start`] begins to use it.

mod endpoint;
mod escape;
mod port;
pub mod sockets;
mod spec;

use std::io::{self, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use tessera_hw_core::backend::{CharBackend, NullBackend};

pub use endpoint::{Endpoint, Ready};
pub use escape::{Command, DEFAULT_ESCAPE, Escape};
use port::Port;
use sockets::{Listener, SocketFile};
pub use spec::{CharSpec, Role};

use crate::backends::output_file::OutputFile;
use crate::backends::terminal::RawMode;
use crate::cli::UsageError;
use crate::event_loop::Waker;

/// A backend that was opened and not yet used. A device can be attached to it already.
pub struct Opened {
    /// For messages: `serial0`.
    label: String,
    port: Arc<Port>,
    kind: Kind,
}

enum Kind {
    Null,
    Stdio { commands: bool, signals: bool },
    File(OutputFile),
    Pty { master: OwnedFd, name: String },
    Connection(OwnedFd),
    Listening { listener: Listener, wait: bool, socket: Option<SocketFile> },
}

/// The main loop's part of a backend in use.
#[derive(Default)]
pub struct Started {
    /// What the main loop serves.
    pub endpoint: Option<Endpoint>,
    /// The terminal's mode, for as long as the backend is used.
    pub raw_mode: Option<RawMode>,
}

/// Opens the backend of the device `label`, which `option` described.
pub fn open(option: &str, label: &str, spec: &CharSpec, waker: &Waker) -> Result<Opened, UsageError> {
    let failed = |value: String, error: io::Error, way_out: &str| {
        UsageError(format!("{option} {value}: it cannot be opened ({}); {way_out}", plain(&error)))
    };
    let kind = match spec {
        CharSpec::Null => Kind::Null,
        CharSpec::Stdio { commands, signals } => Kind::Stdio { commands: *commands, signals: *signals },
        CharSpec::File(path) => Kind::File(OutputFile::open(path).map_err(|error| {
            failed(format!("file:{}", path.display()), error, "name a file that can be written")
        })?),
        CharSpec::Pty => {
            let (master, name) = open_pty().map_err(|error| {
                failed("pty".into(), error, "use another kind, such as stdio or unix:PATH")
            })?;
            Kind::Pty { master, name }
        }
        CharSpec::Unix { path, role } => {
            let shown = format!("unix:{}", path.display());
            match role {
                Role::Client => Kind::Connection(sockets::connect_unix(path).map_err(|error| {
                    failed(shown, error, "start the server that listens there first, or add ,server=on")
                })?),
                Role::Server { wait } => Kind::Listening {
                    listener: Listener::unix(path).map_err(|error| {
                        failed(shown, error, "name a path that is free and can be written")
                    })?,
                    wait: *wait,
                    socket: Some(SocketFile::new(path)),
                },
            }
        }
        CharSpec::Tcp { host, port, role } => {
            let shown = format!("tcp:{host}:{port}");
            match role {
                Role::Client => Kind::Connection(sockets::connect_tcp(host, *port).map_err(|error| {
                    failed(shown, error, "start the server that listens there first, or add ,server=on")
                })?),
                Role::Server { wait } => Kind::Listening {
                    listener: Listener::tcp(host, *port).map_err(|error| {
                        failed(shown, error, "name an address of this host and a port that is free")
                    })?,
                    wait: *wait,
                    socket: None,
                },
            }
        }
    };
    Ok(Opened { label: label.to_owned(), port: Port::new(waker.clone()), kind })
}

impl Opened {
    /// The device's part.
    pub fn backend(&self) -> Arc<dyn CharBackend> {
        match self.kind {
            Kind::Null => Arc::new(NullBackend),
            _ => self.port.clone(),
        }
    }

    /// Begins to use it: empties the file, waits for the caller, makes the terminal raw.
    pub fn start(self, escape: u8) -> io::Result<Started> {
        let port = self.port;
        let mut raw_mode = None;
        let endpoint = match self.kind {
            Kind::Null => {
                return Ok(Started::default());
            }
            Kind::Stdio { commands, signals } => {
                raw_mode = RawMode::enter(signals);
                let reader = nonblocking(stdin(), OFlags::RDONLY)?;
                let endpoint =
                    Endpoint::fixed(port.clone(), Some(reader), Some(nonblocking(stdout(), OFlags::WRONLY)?));
                let endpoint = if isatty(stdin()) { endpoint.dropping_excess() } else { endpoint };
                if commands { endpoint.with_commands(Escape::new(escape)) } else { endpoint }
            }
            Kind::File(file) => Endpoint::fixed(port.clone(), None, Some(file.commit()?.into())),
            Kind::Pty { master, name } => {
                println!("char device redirected to {name} (label {})", self.label);
                Endpoint::pty(port.clone(), master)
            }
            Kind::Connection(stream) => Endpoint::client(port.clone(), stream),
            Kind::Listening { listener, wait, socket } => {
                let first = if wait {
                    eprintln!("tessera: waiting for a caller of {} at {}", self.label, listener.address());
                    Some(listener.accept()?)
                } else {
                    None
                };
                listener.set_nonblocking()?;
                Endpoint::server(port.clone(), listener, first, socket)
            }
        };
        Ok(Started { endpoint: Some(endpoint), raw_mode })
    }
}

/// A non-blocking descriptor for what `stream` is.
///
/// Whether a descriptor blocks is a property of the open file, which standard input and output share with the
/// shell and whoever else has them. So the file is opened again where that goes; otherwise (a socket, a
/// terminal of another user) the flag is set on the shared one.
pub fn nonblocking(stream: impl AsFd, access: OFlags) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let stream = stream.as_fd();
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // A file opened again starts at its beginning and would overwrite what others have written to it.
    let is_file = rustix::fs::fstat(stream).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
    });
    if !is_file && let Ok(own) = rustix::fs::open(path, flags, Mode::empty()) {
        return Ok(own);
    }
    let shared = stream.try_clone_to_owned()?;
    if !is_file {
        let current = rustix::fs::fcntl_getfl(&shared)?;
        rustix::fs::fcntl_setfl(&shared, current | OFlags::NONBLOCK)?;
    }
    Ok(shared)
}

/// A new pseudo-terminal in raw mode: the emulator's side, and the other side's name.
fn open_pty() -> io::Result<(OwnedFd, String)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let other =
        rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut settings = tcgetattr(&other)?;
    settings.make_raw();
    tcsetattr(&other, OptionalActions::Now, &settings)?;
    // Closing `other` makes the master report a hang-up until somebody opens it again: that is how one
    // notices.
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    Ok((master, name.to_string_lossy().into_owned()))
}

/// An error's text without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::sync::{Mutex, Weak};
    use std::time::{Duration, Instant};

    use tessera_hw_core::backend::CharFrontend;

    use super::*;

    /// A device that takes at most four bytes at a time until it is emptied.
    #[derive(Default)]
    struct Device {
        got: Mutex<Vec<u8>>,
        room: Mutex<usize>,
    }

    impl CharFrontend for Device {
        fn receive(&self, data: &[u8]) -> usize {
            let mut room = self.room.lock().unwrap();
            let count = data.len().min(*room);
            *room -= count;
            self.got.lock().unwrap().extend_from_slice(&data[..count]);
            count
        }
        fn can_receive(&self) -> usize {
            *self.room.lock().unwrap()
        }
    }

    struct Rig {
        device: Arc<Device>,
        backend: Arc<dyn CharBackend>,
        endpoint: Endpoint,
        waker: Waker,
        commands: Vec<Command>,
    }

    impl Rig {
        fn new(backend: Arc<dyn CharBackend>, endpoint: Endpoint, waker: Waker) -> Self {
            let device = Arc::new(Device { room: Mutex::new(4), ..Device::default() });
            let weak: Weak<Device> = Arc::downgrade(&device);
            backend.attach(weak);
            Rig { device, backend, endpoint, waker, commands: Vec::new() }
        }

        /// Runs the endpoint as the main loop would until `done`.
        fn until(&mut self, mut done: impl FnMut(&Device) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !done(&self.device) {
                assert!(Instant::now() < deadline, "got {:?}", self.device.got.lock().unwrap());
                crate::event_loop::poll_once(
                    std::slice::from_mut(&mut self.endpoint),
                    &self.waker,
                    &[],
                    Some(Duration::from_millis(20)),
                    &mut self.commands,
                )
                .unwrap();
            }
        }
    }

    #[test]
    fn a_unix_server_takes_one_caller_after_the_other() {
        let path = std::env::temp_dir().join(format!("tessera-chardev-{}", std::process::id()));
        let spec = CharSpec::Unix { path: path.clone(), role: Role::Server { wait: false } };
        let waker = Waker::new().unwrap();
        let opened = open("-serial", "serial0", &spec, &waker).unwrap();
        let backend = opened.backend();
        let mut rig = Rig::new(backend, opened.start(1).unwrap().endpoint.unwrap(), waker);
        for round in 0..2 {
            assert_eq!(rig.backend.write(b"nobody listens"), 14);
            let mut caller = UnixStream::connect(&path).unwrap();
            caller.set_nonblocking(true).unwrap();
            caller.write_all(b"123456").unwrap();
            *rig.device.room.lock().unwrap() = 4;
            rig.until(|device| device.got.lock().unwrap().len() == round * 6 + 4);
            // The device is full until it says so.
            *rig.device.room.lock().unwrap() = 4;
            rig.backend.frontend_ready();
            rig.until(|device| device.got.lock().unwrap().len() == round * 6 + 6);
            rig.backend.write(b"answer");
            let mut text = [0; 6];
            let mut have = 0;
            rig.until(|_| {
                have += caller.read(&mut text[have..]).unwrap_or(0);
                have == 6
            });
            assert_eq!(&text, b"answer");
            drop(caller);
            // Once the endpoint has noticed that the caller has gone, output is dropped again.
            while rig.endpoint.has_peer() {
                let mut polls = 0;
                rig.until(|_| std::mem::replace(&mut polls, 1) == 1);
            }
        }
        drop(rig);
        assert!(!path.exists(), "the socket is removed at the end");
    }

    #[test]
    fn a_pty_that_nobody_has_open_costs_nothing_and_works_once_opened() {
        let (master, name) = open_pty().unwrap();
        let waker = Waker::new().unwrap();
        let port = Port::new(waker.clone());
        let endpoint = Endpoint::pty(port.clone(), master);
        let mut rig = Rig::new(port, endpoint, waker);
        let mut polls = 0;
        let start = Instant::now();
        rig.until(|_| {
            polls += 1;
            start.elapsed() > Duration::from_millis(300)
        });
        assert!(polls < 100, "polled {polls} times in 300 ms");
        let mut user = std::fs::File::options().read(true).write(true).open(name).unwrap();
        user.write_all(b"abc").unwrap();
        rig.until(|device| *device.got.lock().unwrap() == b"abc");
        rig.backend.write(b"xyz\n");
        let reader = std::thread::spawn(move || {
            let mut text = [0; 4];
            user.read_exact(&mut text).map(|()| text)
        });
        rig.until(|_| reader.is_finished());
        assert_eq!(&reader.join().unwrap().unwrap(), b"xyz\n");
    }

    #[test]
    fn what_cannot_be_opened_is_told() {
        let missing = || PathBuf::from("/nonexistent/folder/x");
        let waker = Waker::new().unwrap();
        for spec in [
            CharSpec::File(missing()),
            CharSpec::Unix { path: missing(), role: Role::Client },
            CharSpec::Unix { path: missing(), role: Role::Server { wait: false } },
            CharSpec::Tcp { host: "127.0.0.1".into(), port: 1, role: Role::Client },
        ] {
            let message = open("-serial", "serial0", &spec, &waker).err().expect("it opened").to_string();
            assert!(
                message.starts_with("-serial ") && message.contains(';') && !message.contains("os error"),
                "{message}"
            );
        }
    }
}
