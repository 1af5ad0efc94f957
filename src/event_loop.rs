//! The main thread's loop: everything that is not the guest's code happens here.
//!
//! vCPUs and timers have threads of their own; this one sleeps in `poll` until a descriptor of a character
//! device is ready, a signal has come, or somebody calls [`Waker::wake`]: a device with output, the machine
//! with a request, a vCPU that has stopped. So nothing of the host's slows a vCPU down, and a guest that
//! never leaves a loop does not keep the user from ending it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};

use crate::backends::chardev::{Command, Endpoint, Ready};

/// How long who expects something soon stays awake for it: some of what it costs to be woken, which in a virtual machine whose
/// processors have gone idle is 15 to 50 µs.
const LINGER: Duration = Duration::from_micros(50);

/// Looks for something that is expected soon, without sleeping, but for [`LINGER`] at most, and not at the cost of threads
/// that have something to do.
pub fn linger<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let found = look();
        if found.is_some() || start.elapsed() >= LINGER {
            return found;
        }
        thread::yield_now();
    }
}

/// Wakes the main loop from any thread. Clones wake the same loop.
#[derive(Clone)]
pub struct Waker(Arc<Wake>);

struct Wake {
    /// A byte was written that the loop has not read.
    pending: AtomicBool,
    inside: UnixStream,
    outside: UnixStream,
}

impl Waker {
    /// A waker for a new loop.
    pub fn new() -> io::Result<Self> {
        let (inside, outside) = UnixStream::pair()?;
        inside.set_nonblocking(true)?;
        outside.set_nonblocking(true)?;
        Ok(Waker(Arc::new(Wake { pending: AtomicBool::new(false), inside, outside })))
    }

    /// Makes the loop look at everything once more. Never blocks; cheap if the loop is about to look anyway.
    pub fn wake(&self) {
        if !self.0.pending.swap(true, Ordering::AcqRel) {
            // It fails only if so many bytes wait already that the loop wakes for sure.
            let _ = (&self.0.outside).write(&[0]);
        }
    }

    /// To be called by the loop after it has woken and before it looks.
    fn clear(&self) {
        let mut bytes = [0; 64];
        while matches!((&self.0.inside).read(&mut bytes), Ok(count) if count == bytes.len()) {}
        self.0.pending.store(false, Ordering::Release);
    }
}

/// Signals that have come.
struct Signals {
    end: [(i32, Arc<AtomicBool>); 3],
    continued: Arc<AtomicBool>,
}

impl Signals {
    /// Catches them; each wakes the loop.
    fn catch(waker: &Waker) -> io::Result<Self> {
        let flag = |signal| -> io::Result<Arc<AtomicBool>> {
            let flag = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(signal, flag.clone())?;
            signal_hook::low_level::pipe::register(signal, waker.0.outside.try_clone()?)?;
            Ok(flag)
        };
        Ok(Signals {
            end: [(SIGINT, flag(SIGINT)?), (SIGTERM, flag(SIGTERM)?), (SIGHUP, flag(SIGHUP)?)],
            continued: flag(SIGCONT)?,
        })
    }
}

/// Something the machine's owner must act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The user typed the command to end.
    Quit,
    /// A signal asks the emulator to end.
    Signal(i32),
    /// The process was stopped and goes on: the terminal's mode may have been changed.
    Continued,
}

/// The loop and what it serves.
pub struct EventLoop {
    waker: Waker,
    signals: Signals,
    endpoints: Vec<Endpoint>,
}

impl EventLoop {
    /// A loop woken by `waker` that serves `endpoints`. From now on signals do not end the process by
    /// themselves.
    pub fn new(waker: Waker, endpoints: Vec<Endpoint>) -> io::Result<Self> {
        Ok(EventLoop { signals: Signals::catch(&waker)?, waker, endpoints })
    }

    /// Sleeps until something happens, serves the character devices, and returns what is the caller's to do.
    /// May return with nothing: the caller then looks at what it shares with other threads, and at the
    /// descriptors `others`, for which this wakes, too. `soon` says that one of these is expected to be ready at once.
    pub fn wait(&mut self, others: &[(BorrowedFd<'_>, PollFlags)], soon: bool) -> io::Result<Vec<Happening>> {
        let mut commands = Vec::new();
        if soon {
            // What they are ready for is found again below.
            linger(|| is_ready(others).then_some(()));
        }
        poll_once(&mut self.endpoints, &self.waker, others, None, &mut commands)?;
        let mut happenings = Vec::new();
        if commands.contains(&Command::Quit) {
            happenings.push(Happening::Quit);
        }
        for (signal, came) in &self.signals.end {
            if came.swap(false, Ordering::AcqRel) {
                happenings.push(Happening::Signal(*signal));
            }
        }
        if self.signals.continued.swap(false, Ordering::AcqRel) {
            happenings.push(Happening::Continued);
        }
        Ok(happenings)
    }

    /// Writes what is still on its way to the host, for a limited time.
    pub fn finish(&mut self) {
        self.endpoints.iter_mut().for_each(Endpoint::finish);
    }
}

/// Whether one of these descriptors is ready, or cannot be asked.
fn is_ready(descriptors: &[(BorrowedFd<'_>, PollFlags)]) -> bool {
    let polled = descriptors.iter().map(|(descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags));
    poll(&mut polled.collect::<Vec<_>>(), Some(&Timespec::default())) != Ok(0)
}

/// One of the things an endpoint may be ready for.
type Aspect = fn(&mut Ready) -> &mut bool;

/// Polls once, for `limit` at most and also until one of `others` is ready, and serves the endpoints.
pub fn poll_once(
    endpoints: &mut [Endpoint],
    waker: &Waker,
    others: &[(BorrowedFd<'_>, PollFlags)],
    limit: Option<Duration>,
    commands: &mut Vec<Command>,
) -> io::Result<()> {
    let mut ready = vec![Ready::default(); endpoints.len()];
    {
        let mut polled = vec![PollFd::new(&waker.0.inside, PollFlags::IN)];
        // For each entry after the first: which endpoint, and what of it.
        let mut meaning: Vec<(usize, Aspect)> = Vec::new();
        let mut deadline = limit.map(|limit| Instant::now() + limit);
        for (index, endpoint) in endpoints.iter().enumerate() {
            let interest = endpoint.interest();
            let watch: [(_, _, Aspect); 3] = [
                (interest.read, PollFlags::IN, |ready| &mut ready.read),
                (interest.write, PollFlags::OUT, |ready| &mut ready.write),
                (interest.accept, PollFlags::IN, |ready| &mut ready.accept),
            ];
            for (descriptor, flags, what) in watch {
                if let Some(descriptor) = descriptor {
                    polled.push(PollFd::from_borrowed_fd(descriptor, flags));
                    meaning.push((index, what));
                }
            }
            deadline = match (deadline, interest.at) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        let own = polled.len();
        polled.extend(others.iter().map(|(descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags)));
        let timeout = deadline
            .map(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())))
            .transpose()
            .map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        for (entry, (index, what)) in polled[1..own].iter().zip(meaning) {
            // A hang-up or an error shows when the descriptor is used.
            *what(&mut ready[index]) = !entry.revents().is_empty();
        }
    }
    // Before anything is looked at: what comes from now on wakes the loop again.
    waker.clear();
    for (endpoint, ready) in endpoints.iter_mut().zip(ready) {
        endpoint.service(ready, commands);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_wake_before_the_poll_is_not_lost() {
        let waker = Waker::new().unwrap();
        let mut commands = Vec::new();
        let mut slept = |limit| {
            let start = Instant::now();
            poll_once(&mut [], &waker, &[], Some(Duration::from_millis(limit)), &mut commands).unwrap();
            start.elapsed() >= Duration::from_millis(limit)
        };
        waker.wake();
        waker.wake();
        assert!(!slept(10_000));
        assert!(slept(5), "both wakes were one");
        let other = waker.clone();
        let thread = thread::spawn(move || other.wake());
        assert!(!slept(10_000));
        thread.join().unwrap();
    }

    #[test]
    fn who_lingers_finds_what_comes_and_gives_up() {
        let mut looks = 0;
        let found = linger(|| {
            looks += 1;
            (looks == 3).then_some("it")
        });
        // A host that is slow enough may have given up before.
        assert!(found == Some("it") && looks == 3 || found.is_none() && looks < 3);
        assert_eq!(linger(|| None::<()>), None);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let watched = [(ours.as_fd(), PollFlags::IN)];
        assert!(!is_ready(&watched));
        (&theirs).write_all(&[0]).unwrap();
        assert!(is_ready(&watched));
    }

    #[test]
    fn signals_happen_in_the_loop() {
        let mut event_loop = EventLoop::new(Waker::new().unwrap(), Vec::new()).unwrap();
        signal_hook::low_level::raise(SIGCONT).unwrap();
        let mut happenings = Vec::new();
        while happenings.is_empty() {
            happenings = event_loop.wait(&[], false).unwrap();
        }
        assert_eq!(happenings, [Happening::Continued]);
    }
}
