//! What happens in the child process.
//!
//! It is forked from a program with several threads, so it uses nothing that could be locked or half-way changed: no
//! allocation, no standard library beyond plain functions on memory that was mapped before the fork.

use std::mem::{MaybeUninit, offset_of, transmute};
use std::ptr::{addr_of_mut, copy_nonoverlapping, null_mut};
use std::sync::atomic::Ordering;

use super::Exchange;
use super::thunk::Thunk;
use crate::frame::{Frame, NONE, XSAVE_BYTES};
use crate::layout::{
    CODE, CODE_BYTES, DATA_SELECTOR, DONE, IMAGE, IMAGE_AT, PAGE, READ_ONLY, WINDOW, WINDOW_PAGES,
};

/// What the child is given.
pub struct Setup<'a> {
    pub thunk: &'a Thunk,
    pub exchange: *mut Exchange,
    /// Memory objects of the code area and of the window.
    pub code_fd: i32,
    pub window_fd: i32,
    /// Commands are read here, and answered there: a byte each.
    pub commands: i32,
    pub answers: i32,
    /// Memory for the alternate stack.
    pub stack: *mut u8,
    pub stack_bytes: usize,
}

/// Ends the child at once.
fn die(status: i32) -> ! {
    // SAFETY: has no preconditions.
    unsafe { libc::_exit(status) }
}

fn map(at: u64, len: usize, prot: i32, fd: i32, offset: i64) {
    let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    // Populated: the first write to a page that is only read otherwise must find it there, for the error code.
    let flags = kind | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: MAP_FIXED_NOREPLACE leaves what is mapped already alone.
    let p = unsafe { libc::mmap(at as *mut _, len, prot, flags, fd, offset) };
    if p as u64 != at {
        die(101);
    }
}

/// Works off commands until the pipe is closed.
pub fn run(setup: &Setup<'_>) -> ! {
    let (r, w, x) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    // SAFETY: has no preconditions; the child goes with its parent.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    map(CODE, CODE_BYTES, r | x, setup.code_fd, 0);
    for (n, page) in [(1, r | w), (2, r | w), (3, r), (4, r | w)] {
        map(WINDOW + n * PAGE as u64, PAGE, page, setup.window_fd, (n as i64 - 1) * PAGE as i64);
    }
    // SAFETY: the page at the window's place is the child's own and was mapped just now; an alias for the read-only page.
    let alias =
        unsafe { libc::mmap(null_mut(), IMAGE, r | w, libc::MAP_SHARED, setup.window_fd, 0).cast::<u8>() };
    if alias.is_null() || alias as isize == -1 || WINDOW_PAGES != 6 {
        die(102);
    }
    map(DONE, setup.thunk.bytes.len(), r | w | x, -1, 0);
    // SAFETY: two pages were mapped there just now.
    unsafe { copy_nonoverlapping(setup.thunk.bytes.as_ptr(), DONE as *mut u8, setup.thunk.bytes.len()) };
    install_handlers(setup);
    // 32-bit code needs data segments; Linux starts with null selectors and keeps what it finds.
    // SAFETY: loads a selector that Linux has for everybody; 64-bit code does not look at DS and ES.
    unsafe {
        std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) DATA_SELECTOR as u32);
    }
    // SAFETY: the thunk's entry, just copied there, is a function of this type.
    let enter = unsafe { transmute::<u64, extern "C" fn(*mut Frame)>(setup.thunk.enter) };
    let mut command = 0u8;
    loop {
        // SAFETY: reads one byte.
        if unsafe { libc::read(setup.commands, addr_of_mut!(command).cast(), 1) } != 1 {
            die(0);
        }
        // SAFETY: the parent waits for the answer and touches the exchange no more until then; the frames, images and the
        // window are as large as copied, and at the window there is writable memory but for the read-only page.
        unsafe {
            let exchange = setup.exchange;
            let template = addr_of_mut!((*exchange).template).cast::<u8>();
            copy_nonoverlapping(template.add(READ_ONLY.start), alias.add(READ_ONLY.start), PAGE);
            let (first, count) = ((*exchange).first as usize, (*exchange).count as usize);
            for n in first..count {
                (*exchange).progress.store(n as u32, Ordering::Release);
                copy_writable(template, IMAGE_AT as *mut u8);
                let frame = addr_of_mut!((*exchange).frames[n]);
                (*frame).vector = NONE;
                enter(frame);
                copy_writable(IMAGE_AT as *const u8, addr_of_mut!((*exchange).images[n]).cast());
            }
            if libc::write(setup.answers, [1u8].as_ptr().cast(), 1) != 1 {
                die(0);
            }
        }
    }
}

/// Copies all pages but the read-only one.
///
/// # Safety
/// As for `copy_nonoverlapping` of an image.
unsafe fn copy_writable(from: *const u8, to: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe {
        copy_nonoverlapping(from, to, READ_ONLY.start);
        copy_nonoverlapping(from.add(READ_ONLY.end), to.add(READ_ONLY.end), IMAGE - READ_ONLY.end);
    }
}

fn install_handlers(setup: &Setup<'_>) {
    // SAFETY: plain system calls on valid structures; the handler is the thunk's, which is in place.
    unsafe {
        let stack = libc::stack_t { ss_sp: setup.stack.cast(), ss_flags: 0, ss_size: setup.stack_bytes };
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
            die(103);
        }
    }
}

/// Where the kernel's `ucontext` registers go: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Vector of page faults.
const PAGE_FAULT: u64 = 14;

/// Called from the thunk's signal handler: stores what the kernel saved into the frame.
pub extern "C" fn on_signal(
    _: i32,
    _: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
    frame: *mut Frame,
    fs: u64,
    gs: u64,
) {
    // SAFETY: the kernel's context is on this stack, with an XSAVE area of standard format behind `fpregs`; the frame is that
    // of the running sequence.
    unsafe {
        let m = &(*context).uc_mcontext;
        let g = |n: i32| m.gregs[n as usize] as u64;
        let rip = g(libc::REG_RIP);
        if (DONE..DONE + 2 * PAGE as u64).contains(&rip) {
            // A sequence that has jumped into the code around it.
            die(104);
        }
        for (n, &from) in GREGS.iter().enumerate() {
            (*frame).gpr[n] = g(from);
        }
        (*frame).rip = rip;
        (*frame).flags = g(libc::REG_EFL);
        (*frame).cs = g(libc::REG_CSGSFS) & 0xffff;
        ((*frame).fs, (*frame).gs) = (fs, gs);
        (*frame).vector = g(libc::REG_TRAPNO);
        (*frame).error = g(libc::REG_ERR);
        (*frame).address = if (*frame).vector == PAGE_FAULT { g(libc::REG_CR2) } else { 0 };
        let saved = m.fpregs.cast::<u8>();
        let to = frame.cast::<u8>().add(offset_of!(Frame, xsave));
        copy_nonoverlapping(saved, to, 416);
        copy_nonoverlapping(saved.add(512), to.add(512), XSAVE_BYTES - 512);
        (*frame).expand();
    }
}
