//! Runs programs under an emulator and judges what they print.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{Program, Variant};

/// What a program may take; the slowest needs a few seconds on a slow host.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Exit status of a program whose checks all passed.
const STATUS_OK: i32 = 1;

/// A way to run programs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What people call it.
    pub name: String,
    /// The emulator: `tessera`, or one that takes the same options.
    pub emulator: PathBuf,
    /// Options that choose accelerator and switches.
    pub options: Vec<String>,
    /// Which checks can run.
    pub variant: Variant,
    /// What to give `-cpu` instead of what the program wants.
    pub cpu: Option<String>,
}

impl Setup {
    /// An accelerator, as `-accel` takes it, of an emulator.
    #[must_use]
    pub fn accelerator(emulator: &Path, accelerator: &str) -> Setup {
        Setup {
            name: accelerator.into(),
            emulator: emulator.into(),
            options: vec!["-accel".into(), accelerator.into()],
            variant: if accelerator.starts_with("kvm") { Variant::Kvm } else { Variant::Full },
            cpu: None,
        }
    }

    /// Why it cannot run here, if so: an emulator that rejects its own options says so in one line.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        if self.variant == Variant::Kvm
            && let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")
        {
            return Some(format!("/dev/kvm: {error}"));
        }
        // Every emulator ends at once when it is asked for help after options that it takes.
        let output = Command::new(&self.emulator).args(&self.options).arg("-version").output();
        match output {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(format!("{}: {error}", self.emulator.display())),
        }
    }
}

/// How a program's run ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Checks that passed.
    pub passed: usize,
    /// What is wrong: lines of failed checks, checks that did not run, a wrong end.
    pub problems: Vec<String>,
    /// Checks that were left out, with the reason.
    pub left_out: Vec<String>,
}

/// Runs a program; `folder` is for its file and its output.
pub fn run(program: &Program, setup: &Setup, folder: &Path) -> Result<Report> {
    let assembled = program
        .assemble(setup.variant)
        .map_err(|error| anyhow::anyhow!("{} cannot be assembled: {error}", program.name))?;
    if assembled.checks.iter().all(|check| check.left_out.is_some()) {
        return Ok(judge(&assembled.checks, ""));
    }
    let stem = format!("{}-{}-{}", program.name, std::process::id(), setup.name.replace(['/', ' '], "_"));
    let kernel = folder.join(format!("{stem}.elf"));
    let console = folder.join(format!("{stem}.log"));
    std::fs::write(&kernel, &assembled.file).with_context(|| format!("cannot write {}", kernel.display()))?;
    let mut command = Command::new(&setup.emulator);
    command.args(&setup.options).args(["-m", "64", "-nodefaults", "-display", "none", "-serial", "none"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.arg("-cpu").arg(setup.cpu.as_deref().unwrap_or(program.cpu));
    command.arg("-debugcon").arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(&kernel);
    if !program.resets {
        command.arg("-no-reboot");
    }
    let (ended, stderr) = limited(&mut command)?;
    let output = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
    let mut report = judge(&assembled.checks, &output);
    match ended {
        Some(STATUS_OK) => {}
        Some(3) if !report.problems.is_empty() => {}
        Some(status) => report.problems.push(format!("it ended with status {status} {}", stderr.trim())),
        None => report.problems.push(format!("it did not end within {} s", TIME_LIMIT.as_secs())),
    }
    if report.problems.is_empty() {
        // Kept for whoever looks into a failure.
        let _ = std::fs::remove_file(&kernel).and_then(|()| std::fs::remove_file(&console));
    }
    Ok(report)
}

/// Runs a command to its end or to the time limit; returns its exit status, if it ended, and its standard error.
fn limited(command: &mut Command) -> Result<(Option<i32>, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let Some(mut pipe) = child.stderr.take() else { bail!("standard error was not captured") };
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What was said before an error is still worth showing.
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code().or(Some(-1));
        }
        if started.elapsed() > TIME_LIMIT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok((status, reader.join().unwrap_or_default()))
}

/// Compares the output with the list of checks: each must have its line, in order.
fn judge(checks: &[crate::Check], output: &str) -> Report {
    let mut report = Report::default();
    let mut lines = output.lines().peekable();
    for check in checks {
        if let Some(reason) = check.left_out {
            report.left_out.push(format!("{}: {reason}", check.name));
            continue;
        }
        match lines.peek() {
            Some(line) if line.strip_prefix("ok ") == Some(&check.name) => report.passed += 1,
            Some(line) if line.starts_with(&format!("FAIL {}:", check.name)) => {
                report.problems.push(format!("{line} [SDM {}]", check.source));
            }
            _ => {
                report.problems.push(format!("{}: no result, and none after it", check.name));
                break;
            }
        }
        lines.next();
    }
    report.problems.extend(lines.map(|line| format!("unexpected output: {line}")));
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Check;

    fn checks() -> Vec<Check> {
        let check = |name: &str, left_out| Check { name: name.into(), source: "1, 1", left_out };
        vec![check("a", None), check("b", Some("why not")), check("c", None)]
    }

    #[test]
    fn counts_what_passes() {
        let report = judge(&checks(), "ok a\nok c\n");
        assert_eq!((report.passed, report.problems.len()), (2, 0));
        assert_eq!(report.left_out, ["b: why not"]);
    }

    #[test]
    fn tells_what_is_wrong() {
        let report = judge(&checks(), "ok a\nFAIL c: x: expected 0x1, got 0x2\n");
        assert_eq!(report.problems, ["FAIL c: x: expected 0x1, got 0x2 [SDM 1, 1]"]);
        assert_eq!(judge(&checks(), "ok a\n").problems, ["c: no result, and none after it"]);
        assert_eq!(judge(&checks(), "ok c\n").problems.len(), 2, "a has no result; c is out of place");
        assert_eq!(judge(&checks(), "ok a\nok c\nok c\n").problems, ["unexpected output: ok c"]);
    }
}
