//! `cargo xtask bench`: workloads in a guest, against QEMU's translator and against the host itself.
//!
//! Problem: a figure from one run on a machine that does other things meanwhile says little, and two figures that were taken
//! minutes apart cannot be compared.
//!
//! Strategy: every side (this project's emulator, QEMU, the host natively) runs the same binaries. The systems are booted once
//! and then wait for orders; each workload runs on one side after the other, in turn, as often as `--runs` says, the
//! order reversed from run to run. Ratios are taken run by run, and their median counts. A ratio that varies too much
//! from run to run is not printed.
//!
//! | module | does |
//! |---|---|
//! | [`workloads`] | the table of workloads, and the binaries and RAM disks that hold them |
//! | [`session`] | a system that waits for orders: start, run, end |
//! | [`debug`] | what a debugger costs, and how fast it steps |
//! | [`figures`] | medians, spreads, ratios |
//! | [`counting`] | what the engine did for each workload |
//! | [`report`] | the table and the JSON file |

mod counting;
mod debug;
mod figures;
mod report;
mod session;
mod workloads;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use self::report::Report;
use self::session::{Answer, Kit, Session};
use self::workloads::{Kind, Workload};
use crate::packages::PackageError;
use crate::{console, project};

/// The program `--against qemu` means.
const QEMU: &str = "qemu-system-x86_64";

/// What the user asked for.
#[derive(clap::Args)]
pub struct Options {
    /// Workloads, or groups of them; none means all that are not slow, without a debugger [see --list]
    names: Vec<String>,
    /// What to compare with: qemu, native, both with a comma, another emulator's path, or none
    #[arg(long, default_value = "qemu,native")]
    against: String,
    /// How often each workload runs on each side
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Whose clock counts: the guest's, the host's, or the emulator's processor time (for busy hosts)
    #[arg(long, value_enum, default_value_t = Clock::Guest)]
    clock: Clock,
    /// Write all figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The emulator to measure instead of this project's release build
    #[arg(long, value_name = "PROGRAM")]
    emulator: Option<PathBuf>,
    /// Run each workload once more, afterwards, and print what the translator did (`-d stats`)
    #[arg(long)]
    stats: bool,
    /// List the workloads and run none
    #[arg(long)]
    list: bool,
    /// Further options for the emulator that is measured
    #[arg(last = true)]
    extra: Vec<String>,
}

/// A clock.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Clock {
    /// The guest's own; natively, the host's.
    Guest,
    /// The host's, from the order to the answer.
    Host,
    /// The processor time of the emulator's process; natively, of the workload's.
    Cpu,
}

/// Where a workload runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The emulator that is measured.
    Ours,
    /// Another emulator.
    Other(PathBuf),
    /// The host.
    Native,
}

impl Side {
    /// How the table calls it.
    pub fn name(&self) -> String {
        match self {
            Side::Ours => "tessera".into(),
            Side::Native => "native".into(),
            Side::Other(path) if path.as_os_str() == QEMU => "qemu".into(),
            Side::Other(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        }
    }
}

/// Runs what was asked for.
pub fn run(options: &Options) -> Result<ExitCode> {
    let target = project::target_dir()?;
    let kit = Kit::open(&target, options.extra.clone())?;
    let all = workloads::all(&kit.program)?;
    if options.list {
        all.iter().for_each(|workload| println!("{:<10} {}", workload.kind.name(), workload.name));
        debug::NAMES.iter().for_each(|name| println!("{:<10} {name}", debug::GROUP));
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(options.runs > 0, "--runs 0 measures nothing; give at least 1");
    let (debug, names): (Vec<_>, Vec<_>) =
        options.names.iter().cloned().partition(|name| name.split('-').next() == Some(debug::GROUP));
    let debug = chosen_of(&debug::NAMES, &debug)?;
    let chosen = if names.is_empty() && !debug.is_empty() { Vec::new() } else { choose(&all, &names)? };
    let sides = sides(&options.against)?;
    let kit = kit.with_emulator(project::emulator(options.emulator.clone())?);
    console::catch_interrupts()?;

    let mut report = Report::new(&sides, options.clock);
    if !debug.is_empty() {
        debug::run(&kit, options, &debug, &mut report)?;
    }
    if !chosen.is_empty() {
        report.print_heading();
    }
    for kind in Kind::ALL {
        let of_kind: Vec<_> = chosen.iter().copied().filter(|workload| workload.kind == kind).collect();
        if !of_kind.is_empty() {
            match measure(&kit, &sides, options, kind, &of_kind, &mut report) {
                Ok(()) => {}
                Err(error) if console::interrupted() => {
                    println!("interrupted: {}", error.root_cause());
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    report.print_means();
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(if report.has_failures() || console::interrupted() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn choose<'a>(all: &'a [Workload], names: &[String]) -> Result<Vec<&'a Workload>> {
    if names.is_empty() {
        return Ok(all.iter().filter(|workload| !workload.slow).collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        let exact = all.iter().filter(|workload| workload.name == *name);
        let mut meant: Vec<_> = exact.collect();
        if meant.is_empty() {
            meant = all.iter().filter(|workload| workload.is_among(name)).collect();
        }
        if meant.is_empty() {
            bail!("{name}: there is no such workload or group; --list shows them");
        }
        chosen.extend(meant);
    }
    Ok(chosen)
}

/// Those of a group's members that are named, or all of them by the group's name.
fn chosen_of(members: &[&'static str], names: &[String]) -> Result<Vec<&'static str>> {
    let mut chosen = Vec::new();
    for name in names {
        let meant = members.iter().filter(|member| *member == name || name == debug::GROUP);
        let before = chosen.len();
        chosen.extend(meant);
        ensure!(chosen.len() > before, "{name}: there is no such workload or group; --list shows them");
    }
    Ok(chosen)
}

fn sides(against: &str) -> Result<Vec<Side>> {
    let mut sides = vec![Side::Ours];
    for name in against.split(',').filter(|name| !name.is_empty() && *name != "none") {
        sides.push(match name {
            "native" => Side::Native,
            "qemu" if project::installed(QEMU) => Side::Other(QEMU.into()),
            "qemu" => {
                println!("{QEMU} is not installed: measuring without it");
                continue;
            }
            path => {
                ensure!(
                    PathBuf::from(path).is_file() || project::installed(path),
                    "--against {path}: there is no such program; say qemu, native, none or a path"
                );
                Side::Other(path.into())
            }
        });
    }
    Ok(sides)
}

/// Measures the workloads of one kind, for which one boot of each system serves.
fn measure(
    kit: &Kit,
    sides: &[Side],
    options: &Options,
    kind: Kind,
    workloads: &[&Workload],
    report: &mut Report,
) -> Result<()> {
    let image = match kit.image(kind) {
        Ok(image) => image,
        Err(error) => match error.downcast::<PackageError>() {
            Ok(PackageError::Unavailable(reason)) => {
                workloads.iter().for_each(|workload| report.skip(&workload.name, &reason));
                return Ok(());
            }
            Ok(PackageError::Broken(error)) | Err(error) => return Err(error),
        },
    };
    let mut sessions: Vec<Option<Session>> = sides.iter().map(|_| None).collect();
    for workload in workloads {
        let mut answers: Vec<Vec<Answer>> = vec![Vec::new(); sides.len()];
        for run in 0..options.runs {
            let order: Vec<_> =
                if run % 2 == 0 { (0..sides.len()).collect() } else { (0..sides.len()).rev().collect() };
            for side in order {
                progress(&format!(
                    "{}: run {} of {}, {}",
                    workload.name,
                    run + 1,
                    options.runs,
                    sides[side].name()
                ));
                // After one failure there is no use in others.
                if answers[side].last().is_some_and(|answer| !matches!(answer, Answer::Took(_))) {
                    continue;
                }
                let answer = match workload.run(kit, &image, &sides[side], &mut sessions[side]) {
                    Err(error) if !console::interrupted() => {
                        // A system that did not answer is of no further use.
                        sessions[side] = None;
                        Some(Answer::Failed(format!("{error:#}")))
                    }
                    answer => answer?,
                };
                answers[side].extend(answer);
            }
        }
        progress("");
        report.add(&workload.name, answers);
    }
    for (side, session) in sides.iter().zip(sessions) {
        if let Some(session) = session {
            session.end().with_context(|| format!("at the end of {}", side.name()))?;
        }
    }
    if options.stats && !console::interrupted() {
        counting::run(kit, &image, workloads)?;
    }
    Ok(())
}

/// A line on the terminal that the next one replaces; nothing where standard error is no terminal.
fn progress(text: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        // A lost progress line harms nobody.
        let _ = write!(out, "\r\x1b[K{text}");
        let _ = out.flush();
    }
}
