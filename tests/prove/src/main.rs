//! The program behind `cargo xtask prove`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Parser;
use tessera_prove::{coverage, decoder, run};

/// Compares the translator with this host's silicon.
#[derive(Parser)]
#[command(name = "cargo xtask prove", bin_name = "cargo xtask prove")]
struct Arguments {
    /// How long random sequences run, after each instruction was run by itself
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of all random choices; a new one by default
    #[arg(long)]
    seed: Option<u64>,
    /// Only instructions with this text in the name of their encoding, or of this CPUID feature
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Threads; as many as there are processors by default
    #[arg(long)]
    jobs: Option<usize>,
    /// Run this case of the seed only, and tell all about it
    #[arg(long, value_name = "NUMBER")]
    case: Option<u64>,
    /// Write docs/coverage.md anew and run nothing
    #[arg(long)]
    coverage: bool,
    /// Instead of sequences, pass so many random strings of bytes through the front end, in every mode
    #[arg(long, value_name = "CASES", conflicts_with_all = ["filter", "case"])]
    decoder: Option<u64>,
    /// End after so many different mismatches
    #[arg(long, default_value_t = 10)]
    mismatches: usize,
}

fn main() -> ExitCode {
    match start(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("prove: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<bool> {
    if arguments.coverage {
        if let Some(folder) = coverage::path().parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(coverage::path(), coverage::text())?;
        println!("wrote {}", coverage::FILE);
        return Ok(true);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, interrupted.clone())?;
    signal_hook::flag::register(signal_hook::consts::SIGTERM, interrupted.clone())?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
    let jobs = arguments.jobs.or_else(|| Some(std::thread::available_parallelism().ok()?.get())).unwrap_or(1);
    let seed = arguments.seed.unwrap_or(time % 1_000_000_000);
    if let Some(cases) = arguments.decoder {
        return decoder::run(cases, seed, jobs, &interrupted);
    }
    let options = run::Options {
        seconds: arguments.seconds,
        seed,
        filter: arguments.filter,
        jobs,
        case: arguments.case,
        mismatches: arguments.mismatches,
    };
    run::run(options, interrupted)
}
