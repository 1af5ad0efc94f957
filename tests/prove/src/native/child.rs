//! What happens in the child process between the fork and the code around sequences.
//!
//! It is forked from a program with several threads, so it uses nothing that could be locked or half-way changed: no
//! allocation, no standard library beyond plain functions on memory that was mapped before the fork.

use std::mem::{MaybeUninit, transmute};
use std::ptr::{copy_nonoverlapping, null_mut};

use super::thunk::Thunk;
use super::{Exchange, Room, STACK_BYTES};
use crate::layout::{CODE, CODE_BYTES, DATA_SELECTOR, IMAGE, PAGE, PAGES, PageKind, WINDOW};

/// What the child is given.
pub struct Setup<'a> {
    pub thunk: &'a Thunk,
    /// Memory objects of what is shared: the exchange, the code area and the window.
    pub exchange_fd: i32,
    pub code_fd: i32,
    pub window_fd: i32,
    /// The area for restartable sequences that the C library has registered with the kernel for this thread.
    pub rseq: Option<Rseq>,
}

/// Exit statuses of a child that could not set itself up.
const NOT_MAPPED: i32 = 101;
const NO_HANDLERS: i32 = 102;
const STILL_REGISTERED: i32 = 103;

/// Ends the child at once.
fn die(status: i32) -> ! {
    // SAFETY: has no preconditions.
    unsafe { libc::_exit(status) }
}

fn map(at: u64, len: usize, prot: i32, fd: i32, offset: usize) {
    let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    // Populated: the first write to a page that is only read otherwise must find it there, for the error code.
    let flags = kind | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: MAP_FIXED_NOREPLACE leaves what is mapped already alone.
    let p = unsafe { libc::mmap(at as *mut _, len, prot, flags, fd, offset as i64) };
    if p as u64 != at {
        die(NOT_MAPPED);
    }
}

/// Maps the layout, leaves everything else behind, and works off commands until the pipe is closed.
pub fn run(setup: &Setup<'_>) -> ! {
    let (r, w, x) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    // SAFETY: has no preconditions; the child goes with its parent.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    map(CODE, CODE_BYTES, r | x, setup.code_fd, 0);
    let mut present = 0;
    for (n, page) in PAGES.into_iter().enumerate() {
        let prot = match page {
            PageKind::Missing => continue,
            PageKind::Writable => r | w,
            PageKind::ReadOnly => r,
        };
        map(WINDOW + (n * PAGE) as u64, PAGE, prot, setup.window_fd, present * PAGE);
        present += 1;
    }
    map(Room::ALIAS, IMAGE, r | w, setup.window_fd, 0);
    map(Room::EXCHANGE, size_of::<Exchange>(), r | w, setup.exchange_fd, 0);
    map(Room::STACK_END - STACK_BYTES as u64, STACK_BYTES, r | w, -1, 0);
    map(Room::SIGNALS, STACK_BYTES, r | w, -1, 0);
    map(Thunk::AT, Thunk::BYTES, r | w | x, -1, 0);
    // SAFETY: that much was mapped there just now.
    unsafe { copy_nonoverlapping(setup.thunk.bytes.as_ptr(), Thunk::AT as *mut u8, Thunk::BYTES) };
    install_handlers(setup);
    if let Some(rseq) = &setup.rseq {
        rseq.unregister();
    }
    // 32-bit code needs data segments; Linux starts with null selectors and keeps what it finds.
    // SAFETY: loads a selector that Linux has for everybody; 64-bit code does not look at DS and ES.
    unsafe {
        std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) DATA_SELECTOR as u32);
    }
    // SAFETY: the thunk's entry, just copied there, is a function of this type.
    let enter = unsafe { transmute::<u64, extern "C" fn() -> !>(setup.thunk.enter) };
    enter()
}

fn install_handlers(setup: &Setup<'_>) {
    // SAFETY: plain system calls on valid structures; the handler is the thunk's, which is in place.
    unsafe {
        let stack = libc::stack_t { ss_sp: Room::SIGNALS as *mut _, ss_flags: 0, ss_size: STACK_BYTES };
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = setup.thunk.signal as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        let mut failed = libc::sigaltstack(&stack, null_mut());
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            failed |= libc::sigaction(signal, &action, null_mut());
        }
        for signal in [libc::SIGINT, libc::SIGTERM] {
            failed |= (libc::signal(signal, libc::SIG_IGN) == libc::SIG_ERR) as i32;
        }
        if failed != 0 {
            die(NO_HANDLERS);
        }
    }
}

/// An area for restartable sequences (rseq(2)), into which the kernel writes whenever it moves the thread: unmapped while it
/// is registered, the process would be killed.
pub struct Rseq {
    address: usize,
}

impl Rseq {
    const UNREGISTER: i32 = 1;
    /// What the C library puts before its abort handlers on x86.
    const SIGNATURE: u32 = 0x5305_3053;
    /// Sizes with which an area may have been registered: that of the first Linux with them, and more since.
    const SIZES: std::ops::RangeInclusive<u32> = 32..=256;

    /// The area of this thread, if its C library has one; a forked child has it at the same address.
    pub fn of_this_thread() -> Option<Rseq> {
        // SAFETY: the names are C strings; the C library documents the types of these two, and lays the area out relative to
        // the thread pointer, which is the first word at FS on x86-64.
        unsafe {
            let symbol = |name: &std::ffi::CStr| libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            let (offset, size) =
                (symbol(c"__rseq_offset").cast::<isize>(), symbol(c"__rseq_size").cast::<u32>());
            if offset.is_null() || size.is_null() || *size == 0 {
                return None;
            }
            let thread: usize;
            std::arch::asm!("mov {}, fs:[0]", out(reg) thread);
            Some(Rseq { address: thread.wrapping_add_signed(*offset) })
        }
    }

    fn unregister(&self) {
        // SAFETY: a system call that looks at its arguments alone, and refuses all that were not used to register.
        let gone = Rseq::SIZES.step_by(4).any(|size| unsafe {
            libc::syscall(libc::SYS_rseq, self.address, size, Rseq::UNREGISTER, Rseq::SIGNATURE) == 0
        });
        if !gone {
            die(STILL_REGISTERED);
        }
    }
}
