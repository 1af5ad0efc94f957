//! The programs under this workspace's emulator: each under every accelerator and with every switch that changes how the
//! translator works.

use std::path::{Path, PathBuf};
use std::process::Command;

use tessera_bare::programs;
use tessera_bare::runner::{self, Setup};

/// Checks that the emulator is known to fail, with the reason. One that passes must be taken off this list.
const KNOWN: &[(&str, &str)] = &[
    // The translator finds out when it fetches there, after the jump: as some makers' processors do, but not Intel's.
    ("long", "near jumps to addresses that are not canonical"),
    ("long", "near returns to addresses that are not canonical"),
];

/// Builds the emulator, which cargo does not do for another package's tests, and returns its path.
fn emulator() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--package", "tessera", "--message-format=json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = build.current_dir(root).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let path = text.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    });
    path.expect("cargo names the executable")
}

/// Runs all programs under one setup; a setup that cannot run here is skipped with a printed reason.
fn all_pass(setup: &Setup) {
    if let Some(why) = setup.obstacle() {
        println!("{} skipped: {why}", setup.name);
        return;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut wrong = Vec::new();
    for program in programs() {
        let report = runner::run(&program, setup, &folder).unwrap();
        println!(
            "{} {}: {} passed, {} left out",
            setup.name,
            program.name,
            report.passed,
            report.left_out.len()
        );
        report.left_out.iter().for_each(|check| println!("  left out: {check}"));
        let is_known = |problem: &str| {
            KNOWN
                .iter()
                .any(|(name, check)| *name == program.name && problem.starts_with(&format!("FAIL {check}:")))
        };
        let failed = report.problems.iter().filter(|problem| problem.starts_with("FAIL ")).count();
        let known = report.problems.iter().filter(|problem| is_known(problem)).count();
        wrong.extend(
            report.problems.iter().filter(|p| !is_known(p)).map(|p| format!("{}: {p}", program.name)),
        );
        let listed = KNOWN.iter().filter(|(name, _)| *name == program.name).count();
        if setup.name.starts_with("tcg") && known < listed && failed == known {
            wrong.push(format!("{}: a check passes that is on the list of known failures", program.name));
        }
    }
    assert!(wrong.is_empty(), "under {}:\n{}", setup.name, wrong.join("\n"));
}

#[test]
fn translator() {
    all_pass(&Setup::accelerator(&emulator(), "tcg"));
}

/// One guest instruction a block: no block is optimised across instructions.
#[test]
fn translator_one_instruction_a_block() {
    all_pass(&Setup::accelerator(&emulator(), "tcg,one-insn-per-tb=on"));
}

/// Without any optimisation, and without one after the other.
#[test]
fn translator_with_fewer_optimisations() {
    let emulator = emulator();
    all_pass(&Setup::accelerator(&emulator, "tcg,opt=none"));
    for omitted in [
        "forward",
        "fold",
        "number",
        "dead-code",
        "dead-sets",
        "tiers",
        "link",
        "jump-cache",
        "side-exits",
        "groups",
        "second-way",
        "shortcuts",
        "loops",
        "unroll",
        "traces",
        "chases",
        "memos",
        "reloads",
    ] {
        all_pass(&Setup::accelerator(&emulator, &format!("tcg,opt=-{omitted}")));
    }
}

/// Whatever is executed twice becomes a trace.
#[test]
fn translator_with_traces_of_everything() {
    all_pass(&Setup::accelerator(&emulator(), "tcg,hot=0"));
}

/// Blocks are not linked, and every one is looked up.
#[test]
fn translator_without_links() {
    let mut setup = Setup::accelerator(&emulator(), "tcg");
    setup.options.extend(["-d".into(), "nochain".into()]);
    setup.name = "tcg without links".into();
    all_pass(&setup);
}

#[test]
fn kvm() {
    all_pass(&Setup::accelerator(&emulator(), "kvm"));
}
