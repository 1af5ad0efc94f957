//! Where debuggers call: the value of `-gdb`.

use std::fs::File;
use std::io::{stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::OFlags;

use crate::backends::chardev::sockets::{Listener, SocketFile};
use crate::backends::chardev::{nonblocking, plain};
use crate::cli::UsageError;

/// The address that is meant unless one is given: nobody else's machine can call.
const LOOPBACK: &str = "127.0.0.1";
/// What `-s` means.
const DEFAULT_PORT: u16 = 1234;

/// Where debuggers call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GdbSpec {
    /// At a port of this host.
    Tcp {
        /// The address.
        host: String,
        /// The port.
        port: u16,
    },
    /// At a path.
    Unix(PathBuf),
    /// The program that started this one, over its standard input and output.
    Stdio,
}

impl GdbSpec {
    /// What `-s` means.
    pub fn short() -> GdbSpec {
        GdbSpec::Tcp { host: LOOPBACK.into(), port: DEFAULT_PORT }
    }

    /// Reads the value of `-gdb`; `None` for no debugger.
    pub fn parse(value: &str) -> Result<Option<GdbSpec>, UsageError> {
        let bad = |why: &str| {
            Err(UsageError(format!("-gdb {value}: {why}; give tcp::PORT, tcp:HOST:PORT, unix:PATH or stdio")))
        };
        let mut parts = value.split(',');
        let place = parts.next().unwrap_or_default();
        for property in parts {
            // It always listens, and never waits.
            let known = ["server", "server=on", "nowait", "wait=off", "nodelay", "nodelay=on"];
            if !known.contains(&property) {
                return bad(&format!("{property} is not supported by Tessera yet"));
            }
        }
        Ok(Some(match place.split_once(':') {
            None if place == "none" => return Ok(None),
            None if place == "stdio" => GdbSpec::Stdio,
            Some(("tcp", address)) => {
                let parsed =
                    address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
                let Some((host, port)) = parsed else { return bad("host and port are not understood") };
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let host = if host.is_empty() { LOOPBACK } else { host };
                GdbSpec::Tcp { host: host.into(), port }
            }
            Some(("unix", path)) if !path.is_empty() => GdbSpec::Unix(path.into()),
            _ => return bad("it is not understood"),
        }))
    }

    /// Begins to listen. Nothing is done with who calls yet.
    pub fn open(&self) -> Result<Listening, UsageError> {
        let failed = |value: String, error: &std::io::Error, way_out: &str| {
            UsageError(format!("-gdb {value}: it cannot be opened ({}); {way_out}", plain(error)))
        };
        match self {
            GdbSpec::Tcp { host, port } => {
                let listener = Listener::tcp(host, *port)
                    .and_then(|listener| listener.set_nonblocking().map(|()| listener))
                    .map_err(|error| {
                        let way_out = "name an address of this host and a port that is free";
                        failed(format!("tcp:{host}:{port}"), &error, way_out)
                    })?;
                Ok(Listening::Socket(listener, None))
            }
            GdbSpec::Unix(path) => {
                let listener = Listener::unix(path)
                    .and_then(|listener| listener.set_nonblocking().map(|()| listener))
                    .map_err(|error| {
                        let way_out = "name a path that is free and can be written";
                        failed(format!("unix:{}", path.display()), &error, way_out)
                    })?;
                Ok(Listening::Socket(listener, Some(SocketFile::new(path))))
            }
            GdbSpec::Stdio => {
                let opened = nonblocking(stdin(), OFlags::RDONLY)
                    .and_then(|input| Ok((input.into(), nonblocking(stdout(), OFlags::WRONLY)?.into())));
                opened
                    .map(|streams| Listening::Stdio(Some(streams)))
                    .map_err(|error| failed("stdio".into(), &error, "use another kind, such as tcp::1234"))
            }
        }
    }
}

/// A place where debuggers may call.
pub enum Listening {
    /// A socket, and its file.
    Socket(Listener, #[expect(dead_code, reason = "removes the file when it goes")] Option<SocketFile>),
    /// Standard input and output, until they are taken.
    Stdio(Option<(File, File)>),
}

impl Listening {
    /// What is readable when somebody calls.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Listening::Socket(listener, _) => Some(listener.as_fd()),
            Listening::Stdio(_) => None,
        }
    }

    /// The streams from and to somebody who has called. Never waits.
    pub fn accept(&mut self) -> Option<(File, File)> {
        match self {
            Listening::Socket(listener, _) => {
                let stream = File::from(listener.accept().ok()?);
                Some((stream.try_clone().ok()?, stream))
            }
            Listening::Stdio(streams) => streams.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood() {
        let tcp = |host: &str, port| Ok(Some(GdbSpec::Tcp { host: host.into(), port }));
        assert_eq!(GdbSpec::parse("tcp::1234"), tcp("127.0.0.1", 1234));
        assert_eq!(GdbSpec::parse("tcp:0.0.0.0:99,server,nowait"), tcp("0.0.0.0", 99));
        assert_eq!(GdbSpec::parse("tcp:[::1]:99"), tcp("::1", 99));
        assert_eq!(GdbSpec::parse("unix:/tmp/x"), Ok(Some(GdbSpec::Unix("/tmp/x".into()))));
        assert_eq!(GdbSpec::parse("stdio"), Ok(Some(GdbSpec::Stdio)));
        assert_eq!(GdbSpec::parse("none"), Ok(None));
        for wrong in ["", "tcp", "tcp:1234", "tcp::x", "unix:", "pty", "stdio:x", "tcp::1,wait=on"] {
            let message = GdbSpec::parse(wrong).expect_err(wrong).to_string();
            assert!(message.starts_with(&format!("-gdb {wrong}: ")), "{message}");
        }
    }
}
