//! A program on a pseudo-terminal, driven as a person would drive it.
//!
//! The child has the terminal as its standard input and output; its standard error is kept apart. One
//! thread does it all: every call that waits polls the terminal, standard error and the child's
//! end together, so the child never blocks on a full terminal while a call waits, and every wait has a
//! deadline. A `Console` that is dropped kills its child.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// How much of the console a failure shows.
const TAIL_LINES: usize = 25;

/// A running child and what it has said.
pub struct Console {
    child: Child,
    pid: Pid,
    ended: OwnedFd,
    terminal: File,
    /// The child's side of the terminal: held open to look at its settings after the child has gone.
    child_side: OwnedFd,
    settings_before: Termios,
    stderr: Option<File>,
    said: Vec<u8>,
    complained: Vec<u8>,
    /// Where the next `expect` starts to look.
    seen: usize,
}

impl Console {
    /// Starts a program on a new terminal of 80 by 25 characters.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        let name = ptsname(&terminal, Vec::new())?;
        let child_side = rustix::fs::open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        tcsetwinsize(&child_side, Winsize { ws_row: 25, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 })?;
        let settings_before = tcgetattr(&child_side)?;
        let mut child = command
            .stdin(child_side.try_clone()?)
            .stdout(child_side.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        let pid = Pid::from_child(&child);
        let stderr = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        Ok(Console {
            ended: pidfd_open(pid, PidfdFlags::empty())?,
            child,
            pid,
            terminal: File::from(terminal),
            child_side,
            settings_before,
            stderr,
            said: Vec::new(),
            complained: Vec::new(),
            seen: 0,
        })
    }

    /// The child's process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that came over the terminal so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Everything that came over standard error so far.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.complained).into_owned()
    }

    /// Types.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.terminal.write_all(text.as_bytes()).context("cannot write to the terminal")
    }

    /// Sends a signal to the child.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Waits until `pattern` appears after what earlier calls have found.
    pub fn expect(&mut self, pattern: &str, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(at) = find(&self.said[self.seen..], pattern.as_bytes()) {
                self.seen += at + pattern.len();
                return Ok(());
            }
            if self.has_ended() {
                self.drain()?;
                if find(&self.said[self.seen..], pattern.as_bytes()).is_some() {
                    continue;
                }
                let status = self.child.wait()?;
                bail!("ended ({status}) before it printed {pattern:?}{}", self.tail());
            }
            if Instant::now() >= deadline {
                bail!("did not print {pattern:?} within {:.0} s{}", within.as_secs_f64(), self.tail());
            }
            self.step(deadline)?;
        }
    }

    /// Lets time pass while the child goes on.
    pub fn pass(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.has_ended() {
            self.step(until)?;
        }
        Ok(())
    }

    /// What follows on the line at which an earlier call has stopped; waits until the line is complete.
    pub fn rest_of_line(&mut self, within: Duration) -> Result<String> {
        let start = self.seen;
        self.expect("\n", within)?;
        // What follows may begin with this line's end.
        self.seen -= 1;
        Ok(String::from_utf8_lossy(&self.said[start..self.seen]).trim_end_matches('\r').to_owned())
    }

    /// Waits for the child's end.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        while !self.has_ended() {
            if Instant::now() >= deadline {
                bail!("still running after {:.0} s{}", within.as_secs_f64(), self.tail());
            }
            self.step(deadline)?;
        }
        self.drain()?;
        Ok(self.child.wait()?)
    }

    /// Whether the child has put the terminal into raw mode.
    pub fn is_raw(&self) -> Result<bool> {
        Ok(!tcgetattr(&self.child_side)?.local_modes.contains(LocalModes::ICANON))
    }

    /// Fails unless the terminal's settings are what they were before the child started.
    pub fn check_restored(&self) -> Result<()> {
        let (before, now) = (&self.settings_before, tcgetattr(&self.child_side)?);
        if before.local_modes != now.local_modes
            || before.input_modes != now.input_modes
            || before.output_modes != now.output_modes
            || before.control_modes != now.control_modes
        {
            bail!("left the terminal changed: before {before:?}, after {now:?}");
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        readable(&[self.ended.as_fd()], Some(Duration::ZERO)).is_ok_and(|ready| ready[0])
    }

    /// Takes in what there is, waiting for it until the deadline at most.
    fn step(&mut self, deadline: Instant) -> Result<()> {
        if interrupted() {
            bail!("interrupted by Ctrl-C");
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        let mut sources = vec![self.ended.as_fd(), self.terminal.as_fd()];
        sources.extend(self.stderr.as_ref().map(AsFd::as_fd));
        let ready = readable(&sources, Some(wait))?;
        let mut chunk = [0; 4096];
        if ready[1] {
            let count = self.terminal.read(&mut chunk)?;
            self.said.extend_from_slice(&chunk[..count]);
        }
        if ready.get(2) == Some(&true)
            && let Some(stderr) = &mut self.stderr
        {
            match stderr.read(&mut chunk)? {
                0 => self.stderr = None,
                count => self.complained.extend_from_slice(&chunk[..count]),
            }
        }
        Ok(())
    }

    /// Takes in what a child that has ended left behind.
    fn drain(&mut self) -> Result<()> {
        loop {
            let before = (self.said.len(), self.complained.len());
            self.step(Instant::now())?;
            if before == (self.said.len(), self.complained.len()) {
                return Ok(());
            }
        }
    }

    /// The last lines of the console and of standard error, for a failure's message.
    pub fn tail(&self) -> String {
        let mut out = String::new();
        for (title, bytes) in [("console", &self.said), ("standard error", &self.complained)] {
            let text = String::from_utf8_lossy(bytes);
            let lines: Vec<_> = text.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
            if lines.is_empty() {
                out.push_str(&format!("\n  {title}: nothing"));
                continue;
            }
            out.push_str(&format!("\n  {title}, its last lines:"));
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                out.push_str(&format!("\n  | {line}"));
            }
        }
        out
    }
}

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on, Ctrl-C does not end this process: the calls that wait fail instead, so that children are ended and what was
/// found so far can be shown.
pub fn catch_interrupts() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(flag))?;
    Ok(())
}

/// Whether Ctrl-C was typed since [`catch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail harmlessly when the child has gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn readable(sources: &[std::os::fd::BorrowedFd<'_>], wait: Option<Duration>) -> Result<Vec<bool>> {
    let mut polled: Vec<_> = sources.iter().map(|source| PollFd::new(source, PollFlags::IN)).collect();
    let wait = wait.map(Timespec::try_from).transpose()?;
    match poll(&mut polled, wait.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(polled.iter().map(|one| !one.revents().is_empty()).collect())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A line without control characters and escape sequences.
pub fn printable(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // ESC [ parameters final-letter, or ESC and one or two characters.
            match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {},
                Some('(' | ')' | '#') => {
                    chars.next();
                }
                _ => {}
            }
        } else if !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Console {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Console::spawn(command).unwrap()
    }

    #[test]
    fn expects_sends_and_waits() {
        let mut console = shell("echo ready; read word; echo got-$word >&2; echo $((40 + 2)); exit 3");
        console.expect("ready", SOON).unwrap();
        console.send("this\n").unwrap();
        console.expect("42", SOON).unwrap();
        assert_eq!(console.wait(SOON).unwrap().code(), Some(3));
        assert_eq!(console.errors(), "got-this\n");
        console.check_restored().unwrap();
    }

    #[test]
    fn a_failure_shows_the_tail() {
        let mut console = shell("echo one; echo two >&2");
        let message = console.expect("three", SOON).unwrap_err().to_string();
        assert!(message.contains("| one") && message.contains("| two"), "{message}");
        let mut console = shell("sleep 100");
        let message = console.expect("x", Duration::from_millis(20)).unwrap_err().to_string();
        assert!(message.contains("did not print \"x\""), "{message}");
    }

    #[test]
    fn a_changed_terminal_is_noticed() {
        let mut console = shell("stty raw -echo");
        console.wait(SOON).unwrap();
        assert!(console.is_raw().unwrap());
        assert!(console.check_restored().is_err());
    }

    #[test]
    fn escape_sequences_are_left_out_of_the_tail() {
        assert_eq!(printable("\x1b[1;24r\x1b[0;10mSelect\x1b(B a\r"), "Select a");
    }
}
