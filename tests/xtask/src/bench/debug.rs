//! `cargo xtask bench debug`: what a debugger costs the guest, and how fast it steps.
//!
//! Strategy: one system that listens for a debugger. A workload runs there alone and then with a debugger connected, in
//! turn, and the ratios of the pairs count: both have the same code cache and the same host around them. The debugger is this
//! program itself, over a local socket, since gdb's own time is not the emulator's.
//!
//! A debugger that is connected has let the guest go on and waits for it to stop. Its ten breakpoints, if it has some, are
//! functions of the program that runs, in the same pages as what it executes; a run in which one of them is hit fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::figures::Spread;
use super::report::Report;
use super::session::{Answer, Image, Kit, Session, Took};
use super::workloads::Kind;
use super::{Options, progress};
use crate::gdb_client::{Client, Socket};
use crate::process;

/// The group's name on the command line.
pub const GROUP: &str = "debug";
/// What there is to measure.
pub const NAMES: [&str; 3] = ["debug-idle", "debug-breakpoints", "debug-steps"];

/// What runs meanwhile, and how many rounds of it: arithmetic, indirect calls, and the kernel, a second or so each.
const WORKLOADS: [(&str, u64); 3] = [("integer", 24_000), ("calls", 400_000), ("syscall", 4_000_000)];
/// Functions of the workloads' program that none of [`WORKLOADS`] calls.
const NEVER_CALLED: [&str; 10] = [
    "sieve",
    "sort",
    "fibonacci",
    "ackermann",
    "interpreter",
    "chase_l1",
    "page_faults",
    "fork_and_wait",
    "matrix_sse2",
    "write_and_run",
];

/// Costs below this share cannot be told from none.
const NOTHING: f64 = 0.005;
/// The most that breakpoints may cost which are never hit.
const BREAKPOINTS_GOAL: f64 = 0.01;
/// The fewest steps a second.
const STEPS_GOAL: f64 = 20_000.0;
/// How many steps are timed at once.
const STEPS: u32 = 20_000;
/// The most that a system may take to begin its work.
const BEGIN: Duration = Duration::from_secs(60);

/// Measures those of [`NAMES`] that are asked for.
pub fn run(kit: &Kit, options: &Options, wanted: &[&str], report: &mut Report) -> Result<()> {
    let image = kit.image(Kind::Own)?;
    let functions = functions(&kit.program)?;
    let breakpoints: Vec<u64> = NEVER_CALLED
        .iter()
        .map(|name| functions.get(*name).copied().with_context(|| format!("the workloads have no {name}")))
        .collect::<Result<_>>()?;
    println!("a debugger over a local socket, median and deviation");
    for name in wanted {
        match *name {
            "debug-idle" => costs(kit, &image, options, report, name, &[], NOTHING)?,
            "debug-breakpoints" => {
                costs(kit, &image, options, report, name, &breakpoints, BREAKPOINTS_GOAL)?;
            }
            _ => steps(kit, &image, options, report, name)?,
        }
    }
    Ok(())
}

/// The functions of a program and their addresses.
fn functions(program: &Path) -> Result<BTreeMap<String, u64>> {
    let output = Command::new("nm").arg(program).output().context("cannot run nm (Debian: binutils)")?;
    ensure!(output.status.success(), "nm fails on {}", program.display());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(function).collect())
}

/// A line of nm's that is about a function.
fn function(line: &str) -> Option<(String, u64)> {
    let mut words = line.split_whitespace();
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    let address = u64::from_str_radix(address, 16).ok()?;
    matches!(kind, "t" | "T").then(|| (name.to_owned(), address))
}

/// What a debugger that waits costs each workload.
fn costs(
    kit: &Kit,
    image: &Image,
    options: &Options,
    report: &mut Report,
    name: &str,
    breakpoints: &[u64],
    goal: f64,
) -> Result<()> {
    let socket = Socket::new();
    let mut session = Session::debuggable(kit, image, &socket)?;
    for (workload, rounds) in WORKLOADS {
        let mut seconds = [Vec::new(), Vec::new()];
        // Warm: what is translated once is neither side's cost.
        alone(&mut session, workload, rounds)?;
        for run in 0..options.runs {
            progress(&format!("{name}, {workload}: run {} of {}", run + 1, options.runs));
            for turn in 0..2 {
                let debugged = (turn + run) % 2;
                let took = match debugged {
                    0 => alone(&mut session, workload, rounds)?,
                    _ => watched(&mut session, &socket, (workload, rounds), breakpoints)?,
                };
                seconds[debugged].push(took.seconds(options.clock).context("a run without a time")?);
            }
        }
        progress("");
        let ratios: Vec<f64> =
            seconds[1].iter().zip(&seconds[0]).map(|(with, without)| with / without).collect();
        let (Some(without), Some(with), Some(ratio)) =
            (Spread::of(&seconds[0]), Spread::of(&seconds[1]), Spread::of(&ratios))
        else {
            bail!("no run was measured");
        };
        let (cost, deviation) = (ratio.median - 1.0, ratio.deviation());
        println!(
            "{:<28} {:>8.4} s alone {:>8.4} s debugged {:>+6.2}% {:>5.2}%  goal: below {:.1}%, {}",
            format!("{name} {workload}"),
            without.median,
            with.median,
            cost * 100.0,
            deviation * 100.0,
            goal * 100.0,
            verdict(cost, deviation, goal)
        );
        report.add_row(json!({
            "workload": format!("{name} {workload}"),
            "alone": seconds[0],
            "debugged": seconds[1],
            "cost": cost,
        }));
    }
    session.end()?;
    Ok(())
}

/// Whether a cost with its deviation is below a goal.
fn verdict(cost: f64, deviation: f64, goal: f64) -> &'static str {
    if cost < goal {
        "met"
    } else if cost - deviation < goal {
        "unclear"
    } else {
        "MISSED"
    }
}

fn alone(session: &mut Session, workload: &str, rounds: u64) -> Result<Took> {
    match session.run(workload, &format!("run {workload} {rounds}"))? {
        Answer::Took(took) => Ok(took),
        Answer::Skipped(why) | Answer::Failed(why) => bail!("{workload}: {why}"),
    }
}

/// A run with a debugger that waits.
fn watched(
    session: &mut Session,
    socket: &Socket,
    (workload, rounds): (&str, u64),
    breakpoints: &[u64],
) -> Result<Took> {
    let mut client = Client::attach(socket)?;
    for address in breakpoints {
        client.order(&format!("Z0,{address:x},1"))?;
    }
    client.send("vCont;c")?;
    let took = alone(session, workload, rounds)?;
    ensure!(!client.has_spoken()?, "{workload}: the guest has stopped for the debugger");
    client.interrupt()?;
    client.order("D")?;
    Ok(took)
}

/// How many single steps of a program go in a second.
fn steps(kit: &Kit, image: &Image, options: &Options, report: &mut Report, name: &str) -> Result<()> {
    let socket = Socket::new();
    let mut session = Session::debuggable(kit, image, &socket)?;
    // Longer than anybody looks at it.
    session.begin("integer", "run integer 1000000000", BEGIN)?;
    let mut client = Client::attach(&socket)?;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for run in 0..options.runs {
        progress(&format!("{name}: run {} of {}", run + 1, options.runs));
        let (before, started) = (process::thread_time(session.pid())?, Instant::now());
        for _ in 0..STEPS {
            let answer = client.exchange("vCont;s:1;c")?;
            ensure!(answer.starts_with("T05"), "a step is answered by {answer:?}");
        }
        let took = started.elapsed();
        let used = process::thread_time(session.pid())?.saturating_sub(before);
        rates.push(f64::from(STEPS) / took.as_secs_f64());
        costs.push(used.as_secs_f64() / f64::from(STEPS));
    }
    progress("");
    let (Some(rate), Some(cost)) = (Spread::of(&rates), Spread::of(&costs)) else {
        bail!("no run was measured");
    };
    // The goal is of what a person sees, whatever the clock; the processor's time says what a busy host adds to it.
    let seconds = 1.0 / rate.median;
    println!(
        "{name:<28} {:>8.0} steps a second {:.0}%, {:.1} us of processor time each {:.0}%  goal: above {STEPS_GOAL:.0}, {}",
        rate.median,
        rate.deviation() * 100.0,
        cost.median * 1e6,
        cost.deviation() * 100.0,
        verdict(seconds, rate.deviation() * seconds, 1.0 / STEPS_GOAL)
    );
    report.add_row(json!({ "workload": name, "steps a second": rates, "processor seconds a step": costs }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_among_symbols() {
        assert_eq!(function("0000000000401a10 t sieve"), Some(("sieve".into(), 0x40_1a10)));
        assert_eq!(function("00000000004c5100 D tables"), None);
        assert_eq!(function("                 w __gmon_start__"), None);
    }

    #[test]
    fn verdicts_allow_for_the_deviation() {
        assert_eq!(verdict(0.004, 0.0, 0.01), "met");
        assert_eq!(verdict(-0.02, 0.0, 0.01), "met");
        assert_eq!(verdict(0.02, 0.03, 0.01), "unclear");
        assert_eq!(verdict(0.05, 0.03, 0.01), "MISSED");
    }
}
