//! Sockets for character devices: unix and TCP, calling or called.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The file of a unix socket that we listen at; removed when nobody will call there any more.
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// The file at `path`, which was just made.
    pub fn new(path: &Path) -> Self {
        SocketFile(path.to_owned())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where callers arrive.
pub enum Listener {
    /// At a path.
    Unix(UnixListener),
    /// At a port.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at a path.
    pub fn unix(path: &Path) -> io::Result<Self> {
        // A socket that nobody serves any more is in the way, as after a crash; one that is served is not
        // ours.
        if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(path)?;
        }
        Ok(Listener::Unix(UnixListener::bind(path)?))
    }

    /// Listens at a port of `host`, or of every address.
    pub fn tcp(host: &str, port: u16) -> io::Result<Self> {
        let host = if host.is_empty() { "::" } else { host };
        let listener = match TcpListener::bind((host, port)) {
            Err(_) if host == "::" => TcpListener::bind(("0.0.0.0", port))?,
            bound => bound?,
        };
        Ok(Listener::Tcp(listener))
    }

    /// Where it listens, for messages.
    pub fn address(&self) -> String {
        match self {
            Listener::Unix(listener) => listener
                .local_addr()
                .ok()
                .and_then(|address| Some(format!("unix:{}", address.as_pathname()?.display())))
                .unwrap_or_default(),
            Listener::Tcp(listener) => {
                listener.local_addr().map(|address| format!("tcp:{address}")).unwrap_or_default()
            }
        }
    }

    /// Takes a caller; waits for one while the listener is blocking. The stream is non-blocking.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Listener::Unix(listener) => unix_stream(listener.accept()?.0),
            Listener::Tcp(listener) => tcp_stream(listener.accept()?.0),
        }
    }

    /// From now on, [`Listener::accept`] does not wait.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Listener::Unix(listener) => listener.set_nonblocking(true),
            Listener::Tcp(listener) => listener.set_nonblocking(true),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// Calls the server at a path.
pub fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    unix_stream(UnixStream::connect(path)?)
}

/// Calls the server at a port.
pub fn connect_tcp(host: &str, port: u16) -> io::Result<OwnedFd> {
    tcp_stream(TcpStream::connect((host, port))?)
}

fn unix_stream(stream: UnixStream) -> io::Result<OwnedFd> {
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

fn tcp_stream(stream: TcpStream) -> io::Result<OwnedFd> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream.into())
}
