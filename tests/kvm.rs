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
    for (board, accel) in
        [("pc", "kvm"), ("q35", "kvm"), ("pc", "kvm,kernel-irqchip=on"), ("q35", "kvm,kernel-irqchip=split")]
    {
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

/// A kernel of the Linux boot protocol 2.15 that counts its starts in memory: the first ends in a reset by port CF9h, the
/// second in a triple fault, the third in a debug exit with status 67.
fn counting_kernel() -> Vec<u8> {
    let mut file = vec![0; 1024 + 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &256u32.to_le_bytes()); // syssize, in paragraphs
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1]); // relocatable
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x10_0000u32.to_le_bytes()); // init_size
    let code: [&[u8]; 13] = [
        &[0xa1, 0x00, 0x90, 0x00, 0x00],             // mov eax, [0x9000]
        &[0x40],                                     // inc eax
        &[0xa3, 0x00, 0x90, 0x00, 0x00],             // mov [0x9000], eax
        &[0x83, 0xf8, 0x01, 0x74, 0x0f],             // cmp eax, 1; je first
        &[0x83, 0xf8, 0x02, 0x74, 0x14],             // cmp eax, 2; je second
        &[0x66, 0xba, 0xf4, 0x00],                   // mov dx, 0xf4
        &[0xb0, 0x21, 0xee],                         // mov al, 0x21; out dx, al
        &[0xf4, 0xeb, 0xfd],                         // hlt, and again
        &[0x66, 0xba, 0xf9, 0x0c],                   // first: mov dx, 0xcf9
        &[0xb0, 0x06, 0xee],                         // mov al, 6; out dx, al
        &[0xf4, 0xeb, 0xfd],                         // hlt, and again
        &[0x0f, 0x01, 0x1d, 0x10, 0x90, 0x00, 0x00], // second: lidt [0x9010], which is zero
        &[0x0f, 0x0b],                               // ud2
    ];
    put(1024, &code.concat());
    file
}

#[test]
fn a_kernel_is_started_again_after_a_reset_and_after_a_triple_fault() {
    let path = std::env::temp_dir().join(format!("tessera-counting-{}", std::process::id()));
    std::fs::write(&path, counting_kernel()).unwrap();
    let kernel = path.to_str().unwrap();
    let device = "isa-debug-exit,iobase=0xf4,iosize=1";
    let accelerators: &[&str] = match missing() {
        Some(why) => {
            eprintln!("skipped under KVM: {}", why.trim());
            &["tcg"]
        }
        None => &["tcg", "kvm", "kvm,kernel-irqchip=on", "kvm,kernel-irqchip=split"],
    };
    for accel in accelerators {
        let output = tessera(&["-accel", accel, "-display", "none", "-device", device, "-kernel", kernel]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2 * 0x21 + 1), "{accel}: {told}");
        let output = tessera(&[
            "-accel",
            accel,
            "-display",
            "none",
            "-device",
            device,
            "-kernel",
            kernel,
            "-no-reboot",
        ]);
        assert_eq!(output.status.code(), Some(0), "{accel}: the first reset ends it");
    }
    std::fs::remove_file(path).unwrap();
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
