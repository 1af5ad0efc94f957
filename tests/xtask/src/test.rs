//! `cargo xtask test`: everything a change must pass.
//!
//! Steps run one after the other: first what cargo checks, then the boot tests, which measure time and
//! want the machine for themselves. Each step prints its name, its outcome and how long it took; a skipped
//! one prints why. The last line is `N passed, N failed, N skipped`, in which unit tests count one by one.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::boot_tests::{self, BootTest, Rig};
use crate::{debugger, programs, project};

/// How much of a failed command's output is shown.
const SHOWN_LINES: usize = 300;

/// What the user asked for.
pub struct Options {
    /// Run only what has this text in its name.
    pub filter: Option<String>,
    /// The emulator to drive instead of the release build.
    pub emulator: Option<PathBuf>,
    /// Only list the names.
    pub list: bool,
    /// Show the consoles of passed boot tests, too.
    pub show_console: bool,
    /// Run programs in their long form.
    pub long: bool,
}

/// How a step ended.
pub enum Outcome {
    /// As it should; with something worth saying.
    Passed(String),
    /// It could not run here, for this reason.
    Skipped(String),
}

/// Counts for the closing line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A step that is a command of cargo's.
struct CargoStep {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Whether its output holds test results to count.
    counts_tests: bool,
}

fn cargo_steps() -> Vec<CargoStep> {
    let step = |name, arguments| CargoStep { name, arguments, counts_tests: false };
    let tests = |name, arguments| CargoStep { name, arguments, counts_tests: true };
    let mut steps = vec![
        step("format", &["fmt", "--all", "--check"] as &[_]),
        step("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ];
    if project::installed("cargo-nextest") {
        steps.push(tests("unit tests", &["nextest", "run", "--workspace", "--no-fail-fast"]));
        steps.push(tests("doc tests", &["test", "--workspace", "--doc", "--no-fail-fast"]));
    } else {
        steps.push(tests("unit tests", &["test", "--workspace", "--no-fail-fast"]));
    }
    steps.push(step("prove", PROVE));
    steps
}

/// Random sequences for two minutes, on every processor. Always the same ones, so that it is the change that is judged;
/// `cargo xtask prove` takes others each time.
const PROVE: &[&str] =
    &["run", "--quiet", "--release", "--package", "tessera-prove", "--", "--seconds", "120", "--seed", "1"];

/// Runs the steps; the exit code says whether all that ran passed.
pub fn run(options: &Options) -> Result<ExitCode> {
    let wanted = |name: &str| options.filter.as_ref().is_none_or(|text| name.contains(text.as_str()));
    let cargo_steps: Vec<_> = cargo_steps().into_iter().filter(|step| wanted(step.name)).collect();
    let boot_tests = boot_tests::all().into_iter().chain(debugger::all()).chain(programs::all());
    let boot_tests: Vec<_> = boot_tests.filter(|test| wanted(&test.name)).collect();
    if options.list {
        cargo_steps.iter().for_each(|step| println!("{}", step.name));
        boot_tests.iter().for_each(|test| println!("{}", test.name));
        return Ok(ExitCode::SUCCESS);
    }

    let started = Instant::now();
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    for step in &cargo_steps {
        let (counts, ok) = cargo_step(step)?;
        tally.add(counts);
        if !ok {
            failures.push(step.name.to_owned());
        }
    }
    if !boot_tests.is_empty() {
        boot_steps(options, &boot_tests, &mut tally, &mut failures)?;
    }

    println!();
    if !failures.is_empty() {
        println!("failed: {}", failures.join(", "));
    }
    println!("took {:.0} s", started.elapsed().as_secs_f64());
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    if tally.passed + tally.failed + tally.skipped == 0 {
        eprintln!("no step has {:?} in its name; --list shows them", options.filter.as_deref().unwrap_or(""));
        return Ok(ExitCode::FAILURE);
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn announce(name: &str) {
    print!("{name:<26} ");
    // A lost progress line harms nobody.
    let _ = std::io::stdout().flush();
}

fn report(outcome: &str, took: Duration, note: &str) {
    println!("{}", format!("{outcome:<8} {:>6.1} s  {note}", took.as_secs_f64()).trim_end());
}

fn cargo_step(step: &CargoStep) -> Result<(Tally, bool)> {
    announce(step.name);
    let started = Instant::now();
    let mut command = project::cargo();
    command.args(step.arguments);
    let (ok, output) = captured(command)?;
    let mut counts = if step.counts_tests { count_tests(&output) } else { Tally::default() };
    let note = if step.counts_tests {
        format!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped)
    } else {
        String::new()
    };
    if counts == Tally::default() {
        counts.passed = u64::from(ok);
    }
    // A failure that is no test's (a build error, say) counts as one.
    if !ok && counts.failed == 0 {
        counts.failed = 1;
    }
    report(if ok { "ok" } else { "FAILED" }, started.elapsed(), &note);
    if !ok {
        let lines: Vec<_> = output.lines().collect();
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            println!("  | {line}");
        }
    }
    Ok((counts, ok))
}

/// Runs a command; its standard output and error together, as they came.
fn captured(mut command: Command) -> Result<(bool, String)> {
    let path = project::target_dir()?.join(format!("xtask-step-{}.log", std::process::id()));
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let status = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status()?;
    let output = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
    std::fs::remove_file(&path)?;
    Ok((status.success(), output))
}

/// Reads the counts out of cargo test's or nextest's summary lines.
fn count_tests(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines() {
        let Some(summary) =
            line.trim().strip_prefix("test result:").or_else(|| Some(line.split_once("tests run:")?.1))
        else {
            continue;
        };
        let words: Vec<_> =
            summary.split([' ', ',', ';', '(', ')']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => tally.passed += count,
                "failed" | "timed" => tally.failed += count,
                "ignored" | "skipped" => tally.skipped += count,
                _ => {}
            }
        }
    }
    tally
}

fn boot_steps(
    options: &Options,
    tests: &[BootTest],
    tally: &mut Tally,
    failures: &mut Vec<String>,
) -> Result<()> {
    announce("release build");
    let started = Instant::now();
    let emulator = match &options.emulator {
        Some(program) => program.clone(),
        None => {
            let mut build = project::cargo();
            build.args(["build", "--release", "--package", "tessera"]);
            let (ok, output) = captured(build)?;
            if !ok {
                report("FAILED", started.elapsed(), "");
                println!("{output}");
                tally.failed += 1;
                failures.push("release build".into());
                return Ok(());
            }
            project::target_dir()?.join("release/tessera")
        }
    };
    report("ok", started.elapsed(), &emulator.display().to_string());
    tally.passed += 1;

    let rig = Rig {
        is_tessera: project::is_tessera(&emulator),
        emulator,
        target: project::target_dir()?,
        show_console: options.show_console,
        long: options.long,
    };
    for test in tests {
        announce(&test.name);
        let started = Instant::now();
        match (test.run)(&rig) {
            Ok(Outcome::Passed(note)) => {
                report("ok", started.elapsed(), &note);
                tally.passed += 1;
            }
            Ok(Outcome::Skipped(reason)) => {
                report("skipped", started.elapsed(), &reason);
                tally.skipped += 1;
            }
            Err(error) => {
                report("FAILED", started.elapsed(), "");
                println!("  {error:#}");
                tally.failed += 1;
                failures.push(test.name.clone());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_cargo_test_says() {
        let output = "running 3 tests\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n";
        assert_eq!(count_tests(output), Tally { passed: 6, failed: 1, skipped: 1 });
    }

    #[test]
    fn counts_what_nextest_says() {
        let output =
            "     Summary [   0.012s] 12 tests run: 9 passed (1 slow), 2 failed, 1 timed out, 4 skipped\n";
        assert_eq!(count_tests(output), Tally { passed: 9, failed: 3, skipped: 4 });
    }
}
