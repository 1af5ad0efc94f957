//! Runs the bare-metal programs under an emulator, or writes them to a folder.
//!
//! `cargo run -p tessera-bare -- EMULATOR [--accel A]... [--cpu MODEL] [--write FOLDER] [NAME...]`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tessera_bare::runner::{self, Setup};
use tessera_bare::{Program, Variant, programs};

const USAGE: &str =
    "usage: tessera-bare [EMULATOR] [--accel A]... [--cpu MODEL] [--write FOLDER] [--list] [--name NAME]...";

#[derive(Default)]
struct Options {
    emulator: Option<PathBuf>,
    accelerators: Vec<String>,
    cpu: Option<String>,
    write: Option<PathBuf>,
    list: bool,
    names: Vec<String>,
}

fn options() -> Result<Options> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value; {USAGE}"));
        match word.as_str() {
            "--accel" => options.accelerators.push(value()?),
            "--cpu" => options.cpu = Some(value()?),
            "--write" => options.write = Some(value()?.into()),
            "--name" => options.names.push(value()?),
            "--list" => options.list = true,
            _ if word.starts_with('-') || options.emulator.is_some() => bail!("{word} is unknown; {USAGE}"),
            _ => options.emulator = Some(word.into()),
        }
    }
    Ok(options)
}

fn main() -> Result<ExitCode> {
    let options = options()?;
    let wanted: Vec<Program> = programs()
        .into_iter()
        .filter(|program| options.names.is_empty() || options.names.iter().any(|name| name == program.name))
        .collect();
    if wanted.is_empty() {
        let names: Vec<_> = programs().iter().map(|program| program.name).collect();
        bail!("there is no such program; there are {}", names.join(", "));
    }
    if options.list {
        list(&wanted)?;
    }
    if let Some(folder) = &options.write {
        write(&wanted, folder)?;
    }
    let Some(emulator) = &options.emulator else {
        if !options.list && options.write.is_none() {
            bail!("{USAGE}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let accelerators =
        if options.accelerators.is_empty() { vec!["tcg".into()] } else { options.accelerators };
    let mut ok = true;
    for accelerator in accelerators {
        let mut setup = Setup::accelerator(emulator, &accelerator);
        setup.cpu.clone_from(&options.cpu);
        if let Some(why) = setup.obstacle() {
            println!("{accelerator}: skipped: {why}");
            continue;
        }
        for program in &wanted {
            let report = runner::run(program, &setup, &std::env::temp_dir())?;
            println!("{accelerator} {}: {} passed", program.name, report.passed);
            report.left_out.iter().for_each(|check| println!("  left out: {check}"));
            report.problems.iter().for_each(|problem| println!("  {problem}"));
            ok &= report.problems.is_empty();
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn assemble(program: &Program) -> Result<tessera_bare::Assembled> {
    let name = program.name;
    program.assemble(Variant::Full).map_err(|error| anyhow::anyhow!("{name} cannot be assembled: {error}"))
}

fn list(programs: &[Program]) -> Result<()> {
    for program in programs {
        for check in assemble(program)?.checks {
            println!("{}: {} [SDM {}]", program.name, check.name, check.source);
        }
    }
    Ok(())
}

fn write(programs: &[Program], folder: &std::path::Path) -> Result<()> {
    for program in programs {
        let assembled = assemble(program)?;
        let map: Vec<_> = assembled.symbols.iter().map(|(at, name)| format!("{at:06x} {name}\n")).collect();
        for (extension, bytes) in [("elf", &assembled.file[..]), ("map", map.concat().as_bytes())] {
            let path = folder.join(program.name).with_extension(extension);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}
