//! Whether KVM can be had, and if not, why: in words that say what to do.

use std::ffi::CString;
use std::io::ErrorKind;

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
    open_at(DEVICE)
}

fn open_at(device: &str) -> Result<Kvm, String> {
    let path = CString::new(device).map_err(|_| format!("has no device of the name {device:?}"))?;
    let kvm = Kvm::new_with_path(path).map_err(|error| {
        let error = std::io::Error::from_raw_os_error(error.errno());
        match error.kind() {
            ErrorKind::NotFound => format!(
                "is not there: {device} does not exist (load the module kvm_intel or kvm_amd, or turn on virtualisation \
                 in the host's firmware)"
            ),
            ErrorKind::PermissionDenied => {
                format!("may not be used: no permission for {device} (join the group that owns it, often kvm)")
            }
            _ => format!("does not work: {device} cannot be opened ({error})"),
        }
    })?;
    match kvm.get_api_version() {
        API_VERSION => {}
        ..0 => return Err(format!("does not work: {device} is something else")),
        version => {
            return Err(format!(
                "does not work: {device} speaks version {version} of its interface, not {API_VERSION}"
            ));
        }
    }
    for (cap, what) in NEEDED {
        if !kvm.check_extension(*cap) {
            return Err(format!("is too old on this host: it lacks {what}"));
        }
    }
    Ok(kvm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kvm_is_told() {
        let why = |device: &str| open_at(device).err().unwrap();
        assert!(why("/dev/no-such-kvm").contains("/dev/no-such-kvm does not exist"));
        assert_eq!(why("/dev/null"), "does not work: /dev/null is something else");
        assert!(why("/dev").contains("/dev cannot be opened"));
    }
}
