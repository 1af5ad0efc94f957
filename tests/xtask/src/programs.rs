//! Real programs in a guest, their results compared with the silicon's.
//!
//! Each program is a script below `tests/programs` that runs Debian's binaries. It runs twice: in a guest, from an
//! initial RAM disk that holds the packages, and on this host, with the same files as root folder. Lines that
//! start with `= ` must be the same in both, those with `fma= ` where both have that feature; everything else is for
//! whoever reads a failure.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::boot_tests::{self, BootTest, Rig};
use crate::console::{Console, printable};
use crate::guests::{self, Files};
use crate::initramfs::MARKER;
use crate::packages::PackageError;
use crate::test::Outcome;
use crate::trees::{Recipe, Tree, own_file};

/// The most that a program may take in the guest; several times what a slow machine takes.
const TIME: Duration = Duration::from_secs(300);
/// The same for the long form.
const LONG_TIME: Duration = Duration::from_secs(3600);
/// What starts a line that must be the same everywhere.
const RESULT: &str = "= ";
/// The same for what depends on whether the processor has fused multiplication and addition.
const FMA_RESULT: &str = "fma= ";
/// How much of a failed program's output is shown.
const SHOWN_LINES: usize = 60;

/// A program and what it needs.
struct Program {
    /// Its script's name.
    name: &'static str,
    /// Packages besides the C library and busybox.
    packages: &'static [&'static str],
    /// What is left out of them.
    without: &'static [&'static str],
    /// Files beside the script.
    files: &'static [&'static str],
    /// Guest memory in MiB.
    memory: u32,
    /// A further check of the guest's output.
    check: fn(&str) -> Result<()>,
}

const PROGRAMS: &[Program] = &[
    Program {
        name: "openssl",
        packages: &["openssl", "libssl3"],
        without: &[],
        files: &[],
        memory: 512,
        check: no_further_check,
    },
    Program {
        name: "python",
        packages: &[
            "python3.11-minimal",
            "libpython3.11-minimal",
            "libpython3.11-stdlib",
            "libpython3.11-testsuite",
            "libssl3",
            "zlib1g",
            "libexpat1",
            "libbz2-1.0",
            "liblzma5",
            "libcrypt1",
            "libffi8",
        ],
        without: &[
            "usr/lib/python3.11/test/cjkencodings",
            "usr/lib/python3.11/test/xmltestdata",
            "usr/lib/python3.11/idlelib",
            "usr/lib/python3.11/lib2to3",
        ],
        files: &["numbers.py"],
        memory: 512,
        check: no_further_check,
    },
    Program {
        name: "7z",
        packages: &["7zip", "libstdc++6", "libgcc-s1"],
        without: &[],
        files: &[],
        memory: 512,
        check: no_further_check,
    },
    Program {
        name: "stress",
        packages: &[
            "stress-ng",
            "libapparmor1",
            "libbsd0",
            "libmd0",
            "libcrypt1",
            "libegl1",
            "libgles2",
            "libglvnd0",
            "libgbm1",
            "libdrm2",
            "libexpat1",
            "libffi8",
            "libwayland-server0",
            "libipsec-mb1",
            "libjpeg62-turbo",
            "libjudydebian1",
            "libkmod2",
            "liblzma5",
            "libzstd1",
            "libssl3",
            "libsctp1",
            "libxxhash0",
            "zlib1g",
        ],
        without: &["usr/share/stress-ng"],
        files: &[],
        memory: 768,
        check: no_further_check,
    },
    Program {
        name: "compiler",
        packages: COMPILER,
        without: COMPILER_WITHOUT,
        files: &["program.c", "strings.c"],
        memory: 1024,
        check: string_functions_are_avx2,
    },
];

/// A C compiler with what it needs to link.
pub const COMPILER: &[&str] = &[
    "gcc-12",
    "cpp-12",
    "libgcc-12-dev",
    "libgcc-s1",
    "libstdc++6",
    "libc6-dev",
    "libcrypt-dev",
    "linux-libc-dev",
    "binutils",
    "binutils-x86-64-linux-gnu",
    "libbinutils",
    "libctf0",
    "libctf-nobfd0",
    "libjansson4",
    "libgmp10",
    "libisl23",
    "libmpc3",
    "libmpfr6",
    "libzstd1",
    "zlib1g",
];

/// What of these packages compiling C does not need.
pub const COMPILER_WITHOUT: &[&str] = &[
    "usr/lib/gcc/x86_64-linux-gnu/12/lto1",
    "usr/lib/gcc/x86_64-linux-gnu/12/lto-wrapper",
    "usr/lib/gcc/x86_64-linux-gnu/12/plugin",
    "usr/lib/gcc/x86_64-linux-gnu/12/libasan.a",
    "usr/lib/gcc/x86_64-linux-gnu/12/libtsan.a",
    "usr/lib/gcc/x86_64-linux-gnu/12/liblsan.a",
    "usr/lib/gcc/x86_64-linux-gnu/12/libubsan.a",
    "usr/bin/x86_64-linux-gnu-lto-dump-12",
    "usr/bin/lto-dump-12",
    "usr/bin/x86_64-linux-gnu-gp-display-html",
    "usr/bin/x86_64-linux-gnu-dwp",
    "usr/bin/x86_64-linux-gnu-ld.gold",
    "usr/lib/x86_64-linux-gnu/libc.a",
    "usr/lib/x86_64-linux-gnu/libm-2.36.a",
];

/// The C library and busybox, which every tree has.
pub const BASE: &[&str] = &["libc6", "busybox-static"];

fn no_further_check(_output: &str) -> Result<()> {
    Ok(())
}

/// The guest's processor has AVX2, and so the C library must have chosen the functions that use it.
fn string_functions_are_avx2(output: &str) -> Result<()> {
    let chosen: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("strings: ")).collect();
    ensure!(chosen.len() >= 5, "the program that looks at the string functions did not run");
    let other: Vec<_> = chosen.iter().filter(|line| !line.ends_with("AVX2")).collect();
    ensure!(other.is_empty(), "the C library chose functions without AVX2: {other:?}");
    Ok(())
}

/// The tests of this file.
pub fn all() -> Vec<BootTest> {
    PROGRAMS
        .iter()
        .map(|program| BootTest {
            name: format!("programs/{}", program.name),
            run: Box::new(move |rig| run(rig, program)),
        })
        .collect()
}

fn run(rig: &Rig, program: &Program) -> Result<Outcome> {
    let made = program.tree(rig).and_then(|tree| Ok((tree, guests::kernel(&rig.target)?)));
    let (tree, kernel) = match made {
        Ok(made) => made,
        Err(PackageError::Unavailable(reason)) => return Ok(Outcome::Skipped(reason)),
        Err(PackageError::Broken(error)) => return Err(error),
    };
    let argument = if rig.long { "long" } else { "short" };
    let native = natively(&tree, argument)?;

    let files = Files { kernel, initrd: tree.initrd, memory: program.memory };
    let line = format!("console=ttyS0 rdinit=/init -- {argument}");
    let mut console = Console::spawn(files.command(&rig.emulator, &line))?;
    console.expect(MARKER, TIME)?;
    let started = Instant::now();
    console.expect("--- status ", if rig.long { LONG_TIME } else { TIME })?;
    let took = started.elapsed();
    console.expect("\n", TIME)?;
    let status = console.wait(TIME)?;
    ensure!(status.success(), "the emulator ended with {status}{}", console.tail());
    if rig.show_console {
        println!();
        console.text().lines().for_each(|line| println!("  | {}", printable(line)));
    }
    let text = console.text().replace('\r', "");
    let said = |from: &str| text.split_once(from).map_or("", |(_, rest)| rest);
    let output = said("--- output\n").split("--- errors\n").next().unwrap_or_default();
    ensure!(said("--- status ").starts_with("0\n"), "the script failed:\n{}", tail(said("--- output\n")));
    boot_tests::check_complaints(&console)?;
    (program.check)(output)?;

    let Some(native) = native else {
        return Ok(Outcome::Passed(format!(
            "{:.1} s; not compared with this host, which lets nobody change the root folder",
            took.as_secs_f64()
        )));
    };
    let both_have_fma =
        has_fma(said("--- processor\n")) && has_fma(&std::fs::read_to_string("/proc/cpuinfo")?);
    let (expected, found) = (results(&native, both_have_fma), results(output, both_have_fma));
    ensure!(!expected.is_empty(), "the script has no results");
    if expected != found {
        bail!("the guest's results differ from the host's:\n{}", differences(&expected, &found));
    }
    Ok(Outcome::Passed(format!("{} results as on the host, {:.1} s", found.len(), took.as_secs_f64())))
}

impl Program {
    fn tree(&self, rig: &Rig) -> Result<Tree, PackageError> {
        let mut files = vec![
            ("init", own_file("programs/init")?, true),
            ("run.sh", own_file(&format!("programs/{}.sh", self.name))?, false),
        ];
        for name in self.files {
            files.push((name, own_file(&format!("programs/{name}"))?, false));
        }
        let packages: Vec<_> = BASE.iter().chain(self.packages).copied().collect();
        Tree::make(
            &rig.target,
            &Recipe { name: self.name, packages: &packages, without: self.without, files },
        )
    }
}

/// What the script prints on this host, if it may run here.
fn natively(tree: &Tree, argument: &str) -> Result<Option<String>> {
    let Some(mut command) = tree.run_natively(&format!("cd /tmp && exec sh /run.sh {argument}")) else {
        return Ok(None);
    };
    tree.clean()?;
    let done = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    tree.clean()?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    if !done.status.success() {
        bail!("the script failed on this host:\n{}", tail(&format!("{text}{errors}")));
    }
    Ok(Some(text))
}

/// Whether the first line of flags names FMA.
fn has_fma(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "fma"))
}

fn results(text: &str, with_fma: bool) -> Vec<&str> {
    let counts = |line: &&str| line.starts_with(RESULT) || with_fma && line.starts_with(FMA_RESULT);
    text.lines().filter(counts).collect()
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(printable).collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    shown.iter().map(|line| format!("  | {line}\n")).collect()
}

/// The lines that differ, those of the host with `-` and those of the guest with `+`.
fn differences(expected: &[&str], found: &[&str]) -> String {
    let only = |these: &[&str], those: &[&str], sign: char| {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .take(SHOWN_LINES)
            .map(|line| format!("  {sign} {line}\n"))
            .collect::<String>()
    };
    let text = only(expected, found, '-') + &only(found, expected, '+');
    if text.is_empty() { "  the same lines in another order or number\n".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_show_both_sides() {
        let text = differences(&["= a 1", "= b 2"], &["= a 1", "= b 3"]);
        assert_eq!(text, "  - = b 2\n  + = b 3\n");
        assert!(differences(&["= a", "= b"], &["= b", "= a"]).contains("another order"));
    }

    #[test]
    fn results_with_fma_count_where_both_have_it() {
        assert!(has_fma("flags : fpu fma avx2\n") && !has_fma("flags : fpu fma4\n"));
        assert_eq!(results("= a 1\nfma= b 2\nc\n", false), ["= a 1"]);
        assert_eq!(results("= a 1\nfma= b 2\nc\n", true), ["= a 1", "fma= b 2"]);
    }

    #[test]
    fn string_functions_are_looked_at() {
        let good = "strings: strlen AVX2\n".repeat(5);
        assert!(string_functions_are_avx2(&good).is_ok());
        assert!(string_functions_are_avx2(&good.replacen("AVX2", "other", 1)).is_err());
        assert!(string_functions_are_avx2("").is_err());
    }
}
