//! The machine on the host's KVM: the embedded self-test, and what happens where KVM cannot be had.
//!
//! A KVM that is a software implementation (its module is neither kvm_intel nor kvm_amd) differs from a processor in ways
//! that no user of its interface can mend. [`LIMITS`] names them, check by check; everything else must pass.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Checks of the self-test that a software KVM may fail, by the beginning of their names, and why.
const LIMITS: &[(&str, &str)] = &[
    ("protected mode: ring 3, call gate", "INT n in ring 3 raises #UD"),
    ("virtual-8086 mode", "INT n in ring 3 raises #UD"),
    ("paging: two levels", "CR0.PG outside of long mode raises #GP"),
    ("long mode: page faults", "ring 3 accesses to the upper half are reported with other error codes"),
    ("long mode: SMEP and SMAP", "INT n in ring 3 raises #UD, by which the check ends; SMAP is not enforced"),
    ("long mode: ring 3 by IRETQ", "INT n in ring 3 raises #UD"),
    ("long mode: SYSCALL and SYSRET", "SYSCALL in ring 3 is the hypervisor's own"),
];

fn tessera(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tessera")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs the emulator where `/dev/kvm` is something else; `None`, with the reason told, if the host does not allow that.
fn without_kvm(arguments: &[&str]) -> Option<Output> {
    if !Path::new("/dev/kvm").exists() {
        return Some(tessera(arguments));
    }
    let hidden = |command: &str, arguments: &[&str]| {
        Command::new("unshare")
            .args(["-rm", "sh", "-c", "mount --bind /dev/null /dev/kvm && exec \"$0\" \"$@\"", command])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
    };
    match hidden("true", &[]) {
        Ok(probe) if probe.status.success() => {}
        _ => {
            eprintln!("skipped: /dev/kvm cannot be hidden here (unshare is not allowed)");
            return None;
        }
    }
    Some(hidden(env!("CARGO_BIN_EXE_tessera"), arguments).unwrap())
}

/// Why KVM cannot be had, if it cannot.
fn missing() -> Option<String> {
    // A model that nobody knows ends the emulator before it starts, but after KVM was opened.
    let output = tessera(&["-accel", "kvm", "-cpu", "no-such-model"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (!text.contains("no-such-model")).then_some(text)
}

#[test]
fn the_self_test_passes() {
    if let Some(why) = missing() {
        eprintln!("skipped: {}", why.trim());
        return;
    }
    let silicon =
        ["kvm_intel", "kvm_amd"].iter().any(|module| Path::new("/sys/module").join(module).exists());
    for (board, accel) in [("pc", "kvm"), ("q35", "kvm"), ("pc", "kvm,kernel-irqchip=on")] {
        let output = tessera(&["-accel", accel, "-machine", board, "-display", "none", "-serial", "stdio"]);
        let text = String::from_utf8_lossy(&output.stdout);
        let checks = |prefix: &'static str| text.lines().filter_map(move |line| line.strip_prefix(prefix));
        assert!(text.contains("speed: "), "the self-test did not come to its end:\n{text}");
        assert!(checks("[ ok ] ").count() >= 25, "{text}");
        for failed in checks("[FAIL] ") {
            let limit = LIMITS.iter().find(|(name, _)| failed.starts_with(name));
            assert!(!silicon, "{failed}");
            let (_, why) = limit.unwrap_or_else(|| panic!("{failed}"));
            eprintln!("{board}, {accel}: a limit of the host's KVM ({why}): {failed}");
        }
    }
}

#[test]
fn without_kvm_the_next_accelerator_is_taken_and_a_line_says_why() {
    for line in [&["-accel", "kvm", "-accel", "tcg"][..], &["-machine", "q35,accel=kvm:tcg"]] {
        let Some(output) = without_kvm(&[line, &["-display", "none", "-serial", "stdio"]].concat()) else {
            return;
        };
        let (told, text) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(told.contains("KVM") && told.contains("/dev/kvm") && told.contains("using tcg"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(text.contains("checks passed"), "{text}");
    }
}

#[test]
fn without_kvm_and_without_another_it_is_an_error() {
    let Some(output) = without_kvm(&["-accel", "kvm"]) else { return };
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("-accel kvm") && told.contains("/dev/kvm") && told.contains("tcg"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(output.stdout.is_empty());
}

#[test]
fn the_translator_has_no_host_model() {
    let output = tessera(&["-cpu", "host"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("-cpu host") && told.contains("-accel kvm"), "{told}");
}
