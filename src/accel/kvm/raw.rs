//! What KVM gives only through shared memory or an ioctl that its crate lacks: all the unsafe code of this accelerator, but
//! for the memory slots.
//!
//! A vCPU's *run block* is memory shared with the kernel. The kernel writes it during KVM_RUN and nobody writes it
//! otherwise but the vCPU's own thread; the exception is the `immediate_exit` byte, which any thread sets to make the
//! current or the next KVM_RUN return.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
    kvm_device_attr, kvm_interrupt, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

/// The signal that interrupts KVM_RUN.
const SIGNAL: i32 = libc::SIGUSR1;
/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)` (Linux, include/uapi/linux/kvm.h).
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// Makes the vCPU's thread leave KVM_RUN.
pub struct Kick {
    /// In the run block of the vCPU, which lives until [`Kick::disarm`].
    immediate_exit: *mut u8,
    /// The thread that calls KVM_RUN, once there is one.
    thread: AtomicU64,
    armed: AtomicBool,
}

// SAFETY: the pointer is only used as an atomic, and only while the memory behind it is mapped, see `kick`.
unsafe impl Send for Kick {}
// SAFETY: as for `Send`.
unsafe impl Sync for Kick {}

impl Kick {
    /// The handle for a vCPU. An error is the host's that it has no signal left.
    pub fn new(vcpu: &mut VcpuFd) -> io::Result<Arc<Kick>> {
        static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();
        if CAUGHT.get().is_none() {
            // The signal is to interrupt a system call; that it came is nothing to remember.
            let flag = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(SIGNAL, flag.clone())?;
            let _ = CAUGHT.set(flag);
        }
        let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
        Ok(Arc::new(Kick { immediate_exit, thread: AtomicU64::new(0), armed: AtomicBool::new(true) }))
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the byte is in the vCPU's run block, which stays mapped until the engine that owns the vCPU is dropped;
        // it calls `disarm` before, under the lock under which `kick` is called. The kernel only reads the byte.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }
    }

    /// Makes the current KVM_RUN, or the next one, return at once. Called under the lock of the vCPU's `Control`.
    pub fn kick(&self) {
        if !self.armed.load(Ordering::Acquire) {
            return;
        }
        self.flag().store(1, Ordering::SeqCst);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: the thread has declared itself in `enter` and drops the engine, which disarms, before it ends. It
            // fails for no other reason than a bad signal number.
            unsafe { libc::pthread_kill(thread, SIGNAL) };
        }
    }

    /// The calling thread is the one that runs the vCPU from now on.
    pub fn enter(&self) {
        // SAFETY: has no precondition.
        self.thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
    }

    /// Forgets kicks until now: to be called before looking at what they may be about.
    pub fn acknowledge(&self) {
        self.flag().store(0, Ordering::SeqCst);
    }

    /// Makes the next KVM_RUN do no more than complete what the last one left to the caller.
    pub fn complete_only(&self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    /// No kick has an effect from now on.
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Release);
    }
}

/// A port access that KVM_RUN returned with: `count` values of `size` bytes each in `data`.
pub struct PortAccess<'a> {
    /// First port; all values are for it.
    pub port: u16,
    /// Bytes of a value: 1, 2 or 4.
    pub size: u8,
    /// Whether the guest reads.
    pub input: bool,
    /// The values, to be filled for input.
    pub data: &'a mut [u8],
}

/// The port access that the last KVM_RUN returned with, if that was its reason.
pub fn port_access(vcpu: &mut VcpuFd, run_size: usize) -> Option<PortAccess<'_>> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: the reason says that the kernel has filled this member of the union.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (offset, len) = (usize::try_from(io.data_offset).ok()?, usize::from(io.size) * io.count as usize);
    if !matches!(io.size, 1 | 2 | 4) || offset.checked_add(len)? > run_size {
        return None;
    }
    // SAFETY: the bytes are inside the run block, whose mapped size `run_size` was checked against; the kernel does not
    // touch them outside of KVM_RUN, and the borrow of the vCPU excludes that.
    let data = unsafe { std::slice::from_raw_parts_mut((&raw mut *run).cast::<u8>().add(offset), len) };
    Some(PortAccess { port: io.port, size: io.size, input: u32::from(io.direction) == KVM_EXIT_IO_IN, data })
}

/// Gives the MMIO read that the last KVM_RUN returned with its value.
pub fn answer_mmio(vcpu: &mut VcpuFd, data: [u8; 8]) {
    vcpu.get_kvm_run().__bindgen_anon_1.mmio.data = data;
}

/// Answers the MSR access that the last KVM_RUN returned with: with a value, or with #GP. For a write the value is not used.
pub fn answer_msr(vcpu: &mut VcpuFd, value: Option<u64>) {
    let run = vcpu.get_kvm_run();
    run.__bindgen_anon_1.msr.error = value.is_none().into();
    run.__bindgen_anon_1.msr.data = value.unwrap_or(0);
}

/// Sub-reason and data of an internal error, if that is what the last KVM_RUN returned with.
pub fn internal_error(vcpu: &mut VcpuFd) -> Option<(u32, Vec<u64>)> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the reason says that the kernel has filled this member of the union.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    Some((internal.suberror, internal.data[..count].to_vec()))
}

/// Has the vCPU take an external interrupt; it must be ready for one.
pub fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let argument = kvm_interrupt { irq: vector.into() };
    // SAFETY: the descriptor is a vCPU's, and the kernel reads one `kvm_interrupt`.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const argument) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets x87, SSE and further state; only for a VM whose XSAVE area is no larger than [`kvm_xsave`].
pub fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the host was refused if its area is larger than the structure, so the kernel reads no further.
    unsafe { vcpu.set_xsave(area) }
}

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
/// `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;
/// `_IOW(KVMIO, 0x9c, __u64)`.
const KVM_X86_SETUP_MCE: libc::c_ulong = 0x4008_ae9c;

fn tsc_attribute(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw mut *value) as u64,
        flags: 0,
    }
}

/// The guest's TSC minus the host's; `None` where KVM does not tell (before Linux 5.16).
pub fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut value = 0u64;
    let attribute = tsc_attribute(&mut value);
    // SAFETY: the descriptor is a vCPU's; the kernel reads the attribute and stores eight bytes where it points: `value`,
    // which outlives the call.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR, &raw const attribute) };
    (result == 0).then_some(value)
}

/// Sets the guest's TSC minus the host's; false where KVM does not take it.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> bool {
    let attribute = tsc_attribute(&mut offset);
    // SAFETY: as in `tsc_offset`; the kernel reads the eight bytes.
    unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) == 0 }
}

/// Says which machine check registers the vCPU has (IA32_MCG_CAP).
pub fn set_machine_checks(vcpu: &VcpuFd, capability: u64) -> io::Result<()> {
    // SAFETY: the descriptor is a vCPU's, and the kernel reads eight bytes.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_X86_SETUP_MCE, &raw const capability) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
