//! The native side: a forked child that runs sequences on the host's silicon.
//!
//! Problem: sequences may fault, overwrite anything they find a pointer to, and never end; and each must cost little
//! more than itself. Strategy: a child process does nothing but run sequences. Parent and child share memory: the parent puts
//! a batch of frames and code there and writes a byte to a pipe; the child runs them one by one without a system call
//! and answers with a byte. A fault enters the child's signal handler on a stack of its own; it notes what the kernel
//! says of it (vector, error code, CR2 and the registers, extended state included), and goes on with the next sequence
//! without returning to the kernel. If the child dies or stops answering, it is replaced, and what it was running is left out.
//!
//! Invariant: while sequences run, nothing is mapped but the [layout](crate::layout) and the child's own [`Room`] at
//! its end. The program's libraries, heap and stacks lie where the system has put them by chance, and a wild pointer would find
//! them on one side only; so the child, once set up, runs code of its own alone ([`thunk`]) and unmaps all of them.

mod child;
mod thunk;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::ptr::addr_of_mut;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use memmap2::{MmapMut, MmapOptions};

use crate::frame::{Frame, NONE, STUCK};
use crate::layout::{CODE_BYTES, DONE, FIRST, IMAGE, finish_code};
use thunk::Thunk;

/// Sequences in a batch.
pub const BATCH: usize = 32;
/// How long a batch may take until it is looked at whether the child is stuck, in milliseconds.
const PATIENCE_MS: i32 = 250;
const STACK_BYTES: usize = 64 << 10;

/// Where the child has what it needs itself, all of it about the layout's last address.
struct Room;

impl Room {
    /// The [`Exchange`].
    const EXCHANGE: u64 = DONE + (1 << 20);
    /// The window's pages once more, all of them writable.
    const ALIAS: u64 = DONE + (4 << 20);
    /// The alternate stack of signal handlers.
    const SIGNALS: u64 = DONE + (5 << 20);
    /// The stack, growing down from here.
    const STACK_END: u64 = Room::END;
    /// Behind all of it.
    const END: u64 = DONE + (6 << 20);
}

const _: () = {
    assert!(Thunk::AT + Thunk::BYTES as u64 <= Room::EXCHANGE);
    assert!(size_of::<Exchange>() as u64 <= Room::ALIAS - Room::EXCHANGE);
    assert!(IMAGE as u64 <= Room::SIGNALS - Room::ALIAS);
    assert!(2 * STACK_BYTES as u64 <= Room::END - Room::SIGNALS);
};

/// What parent and child share.
#[repr(C, align(4096))]
pub struct Exchange {
    /// Frames before, and afterwards after the sequences.
    pub frames: [Frame; BATCH],
    /// Contents of the window before each sequence.
    pub template: [u8; IMAGE],
    /// Contents of the window after each sequence (the read-only page is not stored).
    pub images: [[u8; IMAGE]; BATCH],
    /// Sequences of the batch to be run: from this.
    pub first: u32,
    /// And before this.
    pub count: u32,
    /// The sequence being run.
    pub progress: AtomicU32,
}

/// The native side.
pub struct Native {
    exchange: MmapMut,
    exchange_file: OwnedFd,
    code: MmapMut,
    code_file: OwnedFd,
    window_file: OwnedFd,
    child: Option<Child>,
    /// Children that had to be replaced.
    pub replaced: u64,
}

struct Child {
    pid: i32,
    commands: File,
    answers: File,
}

impl Child {
    /// How the process ended, which it must have.
    fn status(&self) -> std::process::ExitStatus {
        let mut status = 0;
        // SAFETY: a process that this one has started; it stays to be waited for.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, self.pid as u32, &mut info, libc::WEXITED | libc::WNOWAIT);
            if info.si_code == libc::CLD_EXITED {
                status = info.si_status() << 8;
            } else {
                status |= info.si_status();
            }
        }
        std::process::ExitStatus::from_raw(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a process that this one has started and not waited for yet.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

fn memory_file(bytes: usize) -> Result<OwnedFd> {
    // SAFETY: the name is a C string; the descriptor is new and owned by nobody else.
    let file = unsafe {
        let fd = libc::memfd_create(c"prove".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("memfd_create");
        }
        OwnedFd::from_raw_fd(fd)
    };
    File::from(file.try_clone()?).set_len(bytes as u64)?;
    Ok(file)
}

fn map(file: &OwnedFd, bytes: usize) -> Result<MmapMut> {
    // SAFETY: the memory object is this program's own and does not shrink; the child writes to it only between a command
    // and its answer.
    Ok(unsafe { MmapOptions::new().len(bytes).map_mut(file)? })
}

fn pipe() -> Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors, which are new and owned by nobody else.
    unsafe {
        if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(std::io::Error::last_os_error()).context("pipe2");
        }
        Ok((File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])))
    }
}

impl Native {
    /// Prepares everything; the child is started with the first batch.
    pub fn new() -> Result<Native> {
        for (name, there) in [("AVX", std::is_x86_feature_detected!("avx")), ("FSGSBASE", has_fsgsbase())] {
            if !there {
                bail!(
                    "this host's processor or kernel lacks {name}, without which sequences cannot be run natively"
                );
            }
        }
        let exchange_file = memory_file(size_of::<Exchange>())?;
        let code_file = memory_file(CODE_BYTES)?;
        let mut code = map(&code_file, CODE_BYTES)?;
        code[..FIRST].copy_from_slice(&finish_code());
        Ok(Native {
            exchange: map(&exchange_file, size_of::<Exchange>())?,
            exchange_file,
            code,
            code_file,
            window_file: memory_file(IMAGE)?,
            child: None,
            replaced: 0,
        })
    }

    /// The exchange, to be filled before [`Native::run`] and looked at afterwards.
    pub fn exchange(&mut self) -> &mut Exchange {
        let p = self.exchange.as_mut_ptr().cast::<Exchange>();
        // SAFETY: the mapping is page-aligned and as large as the struct, for which any bytes are valid; the child does not
        // touch it outside of `run`, which has `&mut self`.
        unsafe { &mut *p }
    }

    /// The code area.
    pub fn code(&mut self) -> &mut [u8] {
        &mut self.code
    }

    /// Host address of the code area; valid as long as `self`.
    pub fn code_address(&mut self) -> *mut u8 {
        self.code.as_mut_ptr()
    }

    /// Runs `count` frames of the exchange. Those that did not end have the vector [`STUCK`] afterwards.
    pub fn run(&mut self, count: usize) -> Result<()> {
        let mut first = 0;
        while first < count {
            let exchange = self.exchange();
            (exchange.first, exchange.count) = (first as u32, count as u32);
            exchange.progress.store(first as u32, Ordering::Release);
            if self.command()? {
                break;
            }
            self.child = None;
            self.replaced += 1;
            let at = self.exchange().progress.load(Ordering::Acquire) as usize;
            self.exchange().frames[at].vector = STUCK;
            first = at + 1;
        }
        // The kernel leaves out of a signal's frame what is in its initial configuration.
        for frame in &mut self.exchange().frames[..count] {
            if !matches!(frame.vector, NONE | STUCK) {
                frame.expand();
            }
        }
        Ok(())
    }

    /// Gives the command; whether it was answered.
    fn command(&mut self) -> Result<bool> {
        if self.child.is_none() {
            self.child = Some(self.start()?);
        }
        let child = self.child.as_mut().expect("was just started");
        if child.commands.write_all(&[1]).is_err() {
            return Ok(false);
        }
        let mut last = u32::MAX;
        loop {
            let mut wait = libc::pollfd { fd: child.answers.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid structure.
            match unsafe { libc::poll(&mut wait, 1, PATIENCE_MS) } {
                1 => return Ok(child.answers.read_exact(&mut [0]).is_ok()),
                0 => {
                    // SAFETY: as in `exchange`; the child changes this field, an atomic, while it runs.
                    let now = unsafe {
                        (*addr_of_mut!((*self.exchange.as_mut_ptr().cast::<Exchange>()).progress))
                            .load(Ordering::Acquire)
                    };
                    if now == last {
                        return Ok(false);
                    }
                    last = now;
                }
                _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
                _ => return Ok(false),
            }
        }
    }

    fn start(&mut self) -> Result<Child> {
        let (command_reader, commands) = pipe()?;
        let (answers, answer_writer) = pipe()?;
        let thunk = thunk::assemble(command_reader.as_raw_fd(), answer_writer.as_raw_fd())
            .context("cannot assemble the code around sequences")?;
        let setup = child::Setup {
            thunk: &thunk,
            exchange_fd: self.exchange_file.as_raw_fd(),
            code_fd: self.code_file.as_raw_fd(),
            window_fd: self.window_file.as_raw_fd(),
            rseq: child::Rseq::of_this_thread(),
        };
        // SAFETY: the child keeps to what may be done between fork and exec, see `child`.
        let mut child = match unsafe { libc::fork() } {
            -1 => return Err(std::io::Error::last_os_error()).context("fork"),
            0 => {
                // The parent's ends of this child's pipes: without them it ends when the parent does.
                // SAFETY: descriptors of this process that nothing uses here.
                unsafe {
                    libc::close(commands.as_raw_fd());
                    libc::close(answers.as_raw_fd());
                }
                child::run(&setup)
            }
            pid => Child { pid, commands, answers },
        };
        // The child's ends: without them this process learns that the child has ended.
        drop((command_reader, answer_writer));
        if child.answers.read_exact(&mut [0]).is_err() {
            bail!("the native side cannot be set up: its process ended with {}", child.status());
        }
        Ok(child)
    }
}

/// Whether user mode may use RDFSBASE and its like.
fn has_fsgsbase() -> bool {
    // Linux says so in AT_HWCAP2, bit 1.
    // SAFETY: has no preconditions.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}
