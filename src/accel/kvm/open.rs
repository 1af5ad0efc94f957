//! Whether KVM can be had, and if not, why: in words that say what to do.

use std::io::ErrorKind;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

const DEVICE: &str = "/dev/kvm";
/// The only version of the interface there is.
const API_VERSION: i32 = 12;

/// What this accelerator cannot do without, and the Linux that has it.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "memory slots (Linux 2.6.25)"),
    (Cap::ExtCpuid, "CPUID models (Linux 2.6.25)"),
    (Cap::SetTssAddr, "a place for its TSS (Linux 2.6.25)"),
    (Cap::VcpuEvents, "vCPU events (Linux 2.6.33)"),
    (Cap::Debugregs, "debug registers (Linux 2.6.34)"),
    (Cap::Xsave, "XSAVE state (Linux 2.6.36)"),
    (Cap::Xcrs, "XCR0 (Linux 2.6.36)"),
    (Cap::ReadonlyMem, "read-only memory (Linux 3.7)"),
    (Cap::ImmediateExit, "immediate exits (Linux 4.13)"),
];

/// Opens KVM. An error is the rest of a sentence that begins with "KVM".
pub fn open() -> Result<Kvm, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("cannot execute an x86-64 guest on this host".into());
    }
    let kvm = Kvm::new().map_err(|error| {
        let error = std::io::Error::from_raw_os_error(error.errno());
        match error.kind() {
            ErrorKind::NotFound => {
                format!("is not there: {DEVICE} does not exist; load the module kvm_intel or kvm_amd, or turn on virtualisation in the host's firmware")
            }
            ErrorKind::PermissionDenied => {
                format!("may not be used: no permission for {DEVICE}; join the group that owns it (often kvm)")
            }
            _ if !Path::new(DEVICE).exists() => format!("is not there: {DEVICE} does not exist"),
            _ => format!("does not work: {DEVICE} cannot be opened ({error})"),
        }
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(format!(
            "does not work: {DEVICE} speaks version {version} of its interface, not {API_VERSION}"
        ));
    }
    for (cap, what) in NEEDED {
        if !kvm.check_extension(*cap) {
            return Err(format!("is too old on this host: it lacks {what}"));
        }
    }
    Ok(kvm)
}
