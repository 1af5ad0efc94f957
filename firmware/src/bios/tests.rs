use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

#[test]
fn the_image_fills_the_last_64_kib_and_starts_with_a_far_jump() {
    let rom = rom();
    assert_eq!(rom.len(), 0x1_0000);
    let vector = &rom[0xFFF0..];
    assert_eq!((vector[0], u16::from_le_bytes([vector[3], vector[4]])), (0xEA, 0xF000));
    let start = usize::from(u16::from_le_bytes([vector[1], vector[2]]));
    assert_eq!(rom[start], 0xFA, "the first instruction is CLI");
}

/// The same bytes, run by the processor of the host, compute what the model computes.
#[cfg(all(target_arch = "x86_64", unix))]
#[test]
fn the_speed_loop_runs_natively() {
    let (code, insns) = speed_loop();
    assert_eq!(insns, 31);
    let mut map = memmap2::MmapOptions::new().len(code.len()).map_anon().unwrap();
    map.copy_from_slice(code);
    let map = map.make_exec().unwrap();
    // SAFETY: the mapping holds a complete System V function and is executable; the function touches its own stack frame
    // only (see `rom/speed.rs`), and the mapping outlives the calls below.
    let function: extern "C" fn(u64) -> u64 = unsafe { std::mem::transmute(map.as_ptr()) };
    for iterations in [0, 1, 2, 3, 4, 5, 100, 12_345] {
        assert_eq!(function(iterations), speed_model::result(iterations), "{iterations} iterations");
    }
}

/// Checks that QEMU's translator is known not to pass: it has no segment limits, reports reserved bits without the
/// present bit and non-canonical stack accesses as #GP, forgets flags at SYSCALL, and knows neither x87 stack faults
/// nor #XM.
const QEMU_DEVIATES: [&str; 7] = [
    "protected mode: segment limits and rights",
    "paging: PAE, 2 MiB pages, no-execute",
    "long mode: exceptions, interrupt stack table",
    "long mode: page faults, write protection, no-execute",
    "long mode: SYSCALL and SYSRET, SWAPGS",
    "x87 floating point",
    "SSE and SSE2",
];

fn in_qemu(machine: &str) {
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        eprintln!("skipped: qemu-system-x86_64 is not installed");
        return;
    }
    let file = std::env::temp_dir().join(format!("tessera-rom-{}-{machine}.bin", std::process::id()));
    std::fs::write(&file, rom()).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", machine, "-accel", "tcg", "-cpu", "max", "-m", "16", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-bios"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = qemu.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    });
    let ended = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        matches!(qemu.try_wait(), Ok(Some(_)))
    });
    let _ = qemu.kill();
    let _ = qemu.wait();
    let text = reader.join().unwrap().unwrap();
    let _ = std::fs::remove_file(&file);
    assert!(ended, "the machine did not power off:\n{text}");
    assert!(text.contains("checks FAILED") || text.contains("checks passed"), "no summary:\n{text}");
    assert!(text.contains("million guest instructions/second"), "no speed:\n{text}");
    for line in text.lines() {
        if let Some(failed) = line.strip_prefix("[FAIL] ") {
            assert!(QEMU_DEVIATES.iter().any(|known| failed.starts_with(known)), "{text}");
        }
    }
}

#[test]
fn the_self_test_runs_in_qemu_pc() {
    in_qemu("pc");
}

#[test]
fn the_self_test_runs_in_qemu_q35() {
    in_qemu("q35");
}
