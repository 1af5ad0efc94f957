//! gdb's remote protocol from the debugger's side: as much of it as tests and benches speak that want no gdb between.
//!
//! Source: GDB manual, appendix "GDB Remote Serial Protocol".

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long an emulator may take to listen, and to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// A socket for a debugger that nobody else uses, and its file's end.
pub struct Socket(pub PathBuf);

impl Socket {
    /// A name that is free.
    pub fn new() -> Socket {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        Socket(std::env::temp_dir().join(format!("tessera-gdb-{}-{n}", std::process::id())))
    }

    /// The value of `-gdb`.
    pub fn option(&self) -> String {
        format!("unix:{}", self.0.display())
    }

    /// gdb's command.
    pub fn command(&self) -> String {
        format!("target remote {}", self.0.display())
    }

    /// Waits until somebody listens there, and calls.
    pub fn call(&self) -> Result<UnixStream> {
        let started = Instant::now();
        loop {
            match UnixStream::connect(&self.0) {
                Ok(stream) => return Ok(stream),
                Err(error) if started.elapsed() > ANSWER => {
                    return Err(error).context("the emulator does not listen for gdb");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The emulator removes it itself unless it was killed.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A packet with this body.
pub fn packet(body: &str) -> Vec<u8> {
    let sum = body.bytes().fold(0u8, |sum, byte| sum.wrapping_add(byte));
    format!("${body}#{sum:02x}").into_bytes()
}

/// A session without acknowledgements.
pub struct Client {
    stream: UnixStream,
    /// What has come and was not looked at.
    received: Vec<u8>,
}

impl Client {
    /// Calls, which stops the guest.
    pub fn attach(socket: &Socket) -> Result<Client> {
        let stream = socket.call()?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut client = Client { stream, received: Vec::new() };
        let answer = client.exchange("QStartNoAckMode")?;
        ensure!(answer == "OK", "QStartNoAckMode is answered by {answer:?}");
        Ok(client)
    }

    /// Sends a packet.
    pub fn send(&mut self, body: &str) -> Result<()> {
        Ok(self.stream.write_all(&packet(body))?)
    }

    /// Sends a packet and waits for the answer: its body.
    pub fn exchange(&mut self, body: &str) -> Result<String> {
        self.send(body)?;
        self.receive()
    }

    /// Sends a packet that is answered by `OK`.
    pub fn order(&mut self, body: &str) -> Result<()> {
        let answer = self.exchange(body)?;
        ensure!(answer == "OK", "{body} is answered by {answer:?}");
        Ok(())
    }

    /// Sends Ctrl-C and waits for the guest's stop.
    pub fn interrupt(&mut self) -> Result<()> {
        self.stream.write_all(&[3])?;
        let answer = self.receive()?;
        ensure!(answer.starts_with("T02"), "Ctrl-C is answered by {answer:?}");
        Ok(())
    }

    /// Whether the emulator has said something that nobody asked for: the guest has stopped.
    pub fn has_spoken(&mut self) -> Result<bool> {
        self.stream.set_nonblocking(true)?;
        let mut buf = [0; 4096];
        let read = self.stream.read(&mut buf);
        self.stream.set_nonblocking(false)?;
        match read {
            Ok(0) => bail!("the emulator hangs up"),
            Ok(count) => self.received.extend_from_slice(&buf[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(!self.received.is_empty())
    }

    fn receive(&mut self) -> Result<String> {
        let mut buf = [0; 4096];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'#')
                && self.received.len() >= end + 3
            {
                let start =
                    self.received[..end].iter().rposition(|byte| *byte == b'$').map_or(0, |at| at + 1);
                let body = String::from_utf8_lossy(&self.received[start..end]).into_owned();
                self.received.drain(..end + 3);
                return Ok(body);
            }
            let count = self.stream.read(&mut buf).context("no answer over gdb's protocol")?;
            ensure!(count > 0, "the emulator hangs up");
            self.received.extend_from_slice(&buf[..count]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_by_one() {
        let (stream, mut emulator) = UnixStream::pair().unwrap();
        let mut client = Client { stream, received: Vec::new() };
        assert!(!client.has_spoken().unwrap());
        emulator.write_all(b"+$OK#9a$T0").unwrap();
        assert_eq!(client.receive().unwrap(), "OK");
        assert!(client.has_spoken().unwrap());
        emulator.write_all(b"5thread:01;#07").unwrap();
        assert_eq!(client.receive().unwrap(), "T05thread:01;");
        assert!(!client.has_spoken().unwrap());
        drop(emulator);
        assert!(client.has_spoken().is_err());
    }

    #[test]
    fn packets_have_sums() {
        assert_eq!(packet("g"), b"$g#67");
    }
}
