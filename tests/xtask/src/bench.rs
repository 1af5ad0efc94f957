//! `cargo xtask bench`: measurements, pair by pair against another emulator.
//!
//! Each pair is one run of ours and one of the other program on the same kernel, initial RAM disk and
//! parameters, the order swapped from pair to pair, so that a machine that grows slower or faster meanwhile
//! favours neither. The figure is the median of the pairs' ratios, with the smallest and the largest beside
//! it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::Console;
use crate::guests::{self, Files};
use crate::packages::PackageError;
use crate::{process, project};

/// The program `--against qemu` means.
const QEMU: &str = "qemu-system-x86_64";
/// The most that one boot may take.
const BOOT: Duration = Duration::from_secs(300);
/// The kernel's first words on the console.
const KERNEL_SPEAKS: &str = "Linux version";

/// What one boot took.
#[derive(Clone, Copy)]
struct Boot {
    /// From the emulator's start to the first line of the kernel proper.
    to_kernel: Duration,
    /// From the emulator's start to userland.
    wall: Duration,
    /// Processor time to the same point, all threads.
    cpu: Duration,
}

/// Measures the boot from the start of the program to `/init`, or to the installer's first screen.
pub fn boot(runs: usize, against: &str, guest: &str, emulator: Option<PathBuf>) -> Result<ExitCode> {
    if runs == 0 {
        bail!("--runs 0 measures nothing; give at least 1");
    }
    let ours = project::emulator(emulator)?;
    let guest = guests::named(guest).with_context(|| format!("--guest {guest}: there is no such guest"))?;
    let files = match guest.obtain(&project::target_dir()?) {
        Ok(files) => files,
        Err(PackageError::Unavailable(reason)) => {
            println!("skipped: {reason}");
            return Ok(ExitCode::SUCCESS);
        }
        Err(PackageError::Broken(error)) => return Err(error),
    };
    let arrival = guest.arrival();
    let other = match against {
        "none" => None,
        "qemu" if project::installed(QEMU) => Some(PathBuf::from(QEMU)),
        "qemu" => {
            println!("{QEMU} is not installed: measuring without a comparison");
            None
        }
        path => Some(PathBuf::from(path)),
    };

    println!(
        "{} to {arrival:?}, {runs} runs, wall and CPU seconds (of which before the kernel's first line)",
        file_name(&files.kernel)
    );
    let mut pairs = Vec::new();
    for run in 0..runs {
        let ours_first = run % 2 == 0;
        let mut theirs = None;
        if let Some(other) = other.as_deref().filter(|_| !ours_first) {
            theirs = Some(one(other, &files, arrival)?);
        }
        let mine = one(&ours, &files, arrival)?;
        if let Some(other) = other.as_deref().filter(|_| ours_first) {
            theirs = Some(one(other, &files, arrival)?);
        }
        print!("  {:>2}  {}", run + 1, describe(&mine));
        match theirs {
            Some(theirs) => println!("   against {}", describe(&theirs)),
            None => println!(),
        }
        pairs.push((mine, theirs));
    }

    let seconds = |pick: fn(&Boot) -> Duration| {
        let mine = pairs.iter().map(|(mine, _)| pick(mine).as_secs_f64()).collect();
        let theirs =
            pairs.iter().filter_map(|(_, theirs)| Some(pick(theirs.as_ref()?).as_secs_f64())).collect();
        let ratios = pairs
            .iter()
            .filter_map(|(mine, theirs)| {
                Some(pick(mine).as_secs_f64() / pick(theirs.as_ref()?).as_secs_f64())
            })
            .collect();
        (spread(mine), spread(theirs), spread(ratios))
    };
    for (name, pick) in [("wall", (|boot| boot.wall) as fn(&Boot) -> Duration), ("CPU", |boot| boot.cpu)] {
        let (mine, theirs, ratios) = seconds(pick);
        println!("{name:>5}: {} s", mine.context("no run")?);
        if let (Some(theirs), Some(ratios)) = (theirs, ratios) {
            println!("       {theirs} s for {}", against);
            println!("       ratio {ratios} (below 1: faster than {against})");
        }
    }
    statistics(&ours, &files, arrival)?;
    Ok(ExitCode::SUCCESS)
}

/// The median of some figures, with the smallest and the largest.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.least, self.most)
    }
}

fn spread(mut figures: Vec<f64>) -> Option<Spread> {
    figures.sort_by(f64::total_cmp);
    let (least, most) = (*figures.first()?, *figures.last()?);
    let middle = figures.len() / 2;
    let median =
        if figures.len() % 2 == 1 { figures[middle] } else { (figures[middle - 1] + figures[middle]) / 2.0 };
    Some(Spread { median, least, most })
}

fn describe(boot: &Boot) -> String {
    format!(
        "{:.2} wall {:.2} CPU ({:.2})",
        boot.wall.as_secs_f64(),
        boot.cpu.as_secs_f64(),
        boot.to_kernel.as_secs_f64()
    )
}

fn command(emulator: &Path, files: &Files) -> Command {
    let mut command = files.command(emulator, "console=ttyS0 earlyprintk=ttyS0");
    command.args(["-accel", "tcg", "-cpu", "max"]);
    command
}

fn one(emulator: &Path, files: &Files, arrival: &str) -> Result<Boot> {
    let started = Instant::now();
    let mut console = Console::spawn(command(emulator, files))?;
    console.expect(KERNEL_SPEAKS, BOOT)?;
    let to_kernel = started.elapsed();
    console.expect(arrival, BOOT)?;
    Ok(Boot { to_kernel, wall: started.elapsed(), cpu: process::cpu_time(console.pid())? })
}

/// One more run of our own for what the translator says of itself.
fn statistics(emulator: &Path, files: &Files, arrival: &str) -> Result<()> {
    if !project::is_tessera(emulator) {
        return Ok(());
    }
    let mut line = command(emulator, files);
    line.args(["-d", "stats"]);
    let mut console = Console::spawn(line)?;
    console.expect(arrival, BOOT)?;
    console.send("\x01x")?;
    console.wait(Duration::from_secs(10))?;
    println!("the translator says (-d stats):");
    console.errors().lines().for_each(|line| println!("  {line}"));
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn medians() {
        assert!(spread(vec![]).is_none());
        let odd = spread(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.least, odd.most), (2.0, 1.0, 3.0));
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }
}
