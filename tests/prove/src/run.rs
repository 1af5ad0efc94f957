//! Running cases on several threads until time is up: progress, mismatches, summary.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::codes::{self, Table};
use crate::generate::{Case, Generator};
use crate::guest::{Watchdog, model};
use crate::layout::IMAGE;
use crate::native::BATCH;
use crate::report;
use crate::rig::{Rig, Verdict, config_of, configs};
use crate::shrink::shrink;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long, after the directed cases.
    pub seconds: u64,
    /// The seed.
    pub seed: u64,
    /// Only instructions with this in the name of their code, or of this feature.
    pub filter: Option<String>,
    /// Threads, each with a native child.
    pub jobs: usize,
    /// Only this case, with its story whatever comes of it.
    pub case: Option<u64>,
    /// Different mismatches after which it is enough.
    pub mismatches: usize,
}

/// Counts of a run.
#[derive(Default)]
pub struct Counts {
    /// Cases that were compared.
    pub compared: AtomicU64,
    /// Cases that could not be.
    pub skipped: AtomicU64,
    /// Cases that differed.
    pub differed: AtomicU64,
    /// The next batch.
    batch: AtomicU64,
}

struct Shared {
    options: Options,
    counts: Counts,
    stop: AtomicBool,
    /// Signatures of mismatches, and how often.
    seen: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    fn repeat(&self, case: u64) -> String {
        let filter = self.options.filter.as_ref().map_or(String::new(), |f| format!(" --filter {f}"));
        format!("cargo xtask prove --seed {} --case {case}{filter}", self.options.seed)
    }
}

fn generator(options: &Options) -> Result<Generator> {
    let filter = options.filter.as_ref().map(|f| f.to_lowercase());
    let table = Table::new(&model(), filter.as_deref());
    if table.entries.is_empty() {
        anyhow::bail!(
            "no instruction that can be run here has {:?} in its name, nor is there a feature of that name",
            options.filter.as_deref().unwrap_or("")
        );
    }
    Ok(Generator::new(table, options.seed, filter.is_some()))
}

/// Processor time of this process and the children it has waited for, and of those that run, in seconds.
pub fn cpu_seconds() -> f64 {
    let read = |who| {
        // SAFETY: plain data that the call fills.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &mut usage);
            let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
            seconds(usage.ru_utime) + seconds(usage.ru_stime)
        }
    };
    read(libc::RUSAGE_SELF) + read(libc::RUSAGE_CHILDREN)
}

/// Runs; whether everything agreed. `interrupted` is set by a signal handler.
pub fn run(options: Options, interrupted: Arc<AtomicBool>) -> Result<bool> {
    if let Some(number) = options.case {
        return one(&options, number);
    }
    let directed = generator(&options)?.directed().div_ceil(BATCH as u64);
    let jobs = options.jobs.max(1);
    if let Some(note) = codes::left_out(&model()) {
        println!("{note}");
    }
    println!("seed {}, {jobs} jobs, {} directed cases", options.seed, directed * BATCH as u64);
    let shared = Arc::new(Shared {
        options,
        counts: Counts::default(),
        stop: AtomicBool::new(false),
        seen: Mutex::default(),
    });
    let started = Instant::now();
    let workers: Vec<_> = (0..jobs)
        .map(|_| {
            let (watchdog, progress) = (Watchdog::default(), Arc::new(AtomicU64::new(0)));
            let (s, w, p) = (shared.clone(), watchdog.clone(), progress.clone());
            (std::thread::spawn(move || worker(&s, &w, &p)), watchdog, progress, 0u64)
        })
        .collect();
    watch(&shared, workers, started, directed, &interrupted)
}

type Worker = (std::thread::JoinHandle<Result<f64>>, Watchdog, Arc<AtomicU64>, u64);

/// Prints progress, ends the run in time, and frees workers whose guest does not end.
fn watch(
    shared: &Shared,
    mut workers: Vec<Worker>,
    started: Instant,
    directed: u64,
    interrupted: &AtomicBool,
) -> Result<bool> {
    let counts = &shared.counts;
    let mut limit = None;
    let mut printed = Instant::now();
    let mut printed_count = 0;
    while !workers.iter().all(|w| w.0.is_finished()) {
        std::thread::sleep(Duration::from_millis(100));
        if limit.is_none() && counts.batch.load(Ordering::Relaxed) > directed {
            limit = Some(Instant::now() + Duration::from_secs(shared.options.seconds));
        }
        let over = limit.is_some_and(|l| Instant::now() >= l) || interrupted.load(Ordering::Relaxed);
        let enough =
            shared.seen.lock().unwrap_or_else(PoisonError::into_inner).len() >= shared.options.mismatches;
        if over || enough || workers.iter().any(|w| w.0.is_finished()) {
            shared.stop.store(true, Ordering::Relaxed);
        }
        if printed.elapsed() >= Duration::from_secs(2) {
            let compared = counts.compared.load(Ordering::Relaxed);
            let rate = (compared - printed_count) as f64 / printed.elapsed().as_secs_f64();
            println!(
                "{:>5.0} s  {compared} sequences, {rate:.0} a second, {} mismatches",
                started.elapsed().as_secs_f64(),
                counts.differed.load(Ordering::Relaxed)
            );
            (printed, printed_count) = (Instant::now(), compared);
            for (_, watchdog, progress, last) in &mut workers {
                let now = progress.load(Ordering::Relaxed);
                if now == *last {
                    watchdog.bite();
                }
                *last = now;
            }
        }
    }
    for (handle, ..) in workers {
        handle.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
    }
    summary(shared, started);
    if counts.skipped.load(Ordering::Relaxed) > counts.compared.load(Ordering::Relaxed) {
        anyhow::bail!("most sequences did not come to an end natively, so this proves nothing");
    }
    Ok(counts.differed.load(Ordering::Relaxed) == 0)
}

fn summary(shared: &Shared, started: Instant) {
    let counts = &shared.counts;
    let compared = counts.compared.load(Ordering::Relaxed);
    let differed = counts.differed.load(Ordering::Relaxed);
    let (wall, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds());
    println!(
        "{compared} sequences in {wall:.1} s and {cpu:.1} s of processor time: {:.0} a second of processor time",
        compared as f64 / cpu
    );
    println!(
        "{} not compared (no end, or no encoding), {differed} mismatches, seed {}",
        counts.skipped.load(Ordering::Relaxed),
        shared.options.seed
    );
    for (signature, times) in shared.seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("  {times:>6} x {signature}");
    }
}

fn worker(shared: &Shared, watchdog: &Watchdog, progress: &AtomicU64) -> Result<f64> {
    let options = &shared.options;
    let mut generator = generator(options)?;
    let mut rig = Rig::new(&configs(options.seed), watchdog)?;
    let mut cases: Vec<Case> = Vec::with_capacity(BATCH);
    let mut image = vec![0; IMAGE];
    let mut differing = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let batch = shared.counts.batch.fetch_add(1, Ordering::Relaxed);
        cases.clear();
        for n in 0..BATCH as u64 {
            cases.push(generator.case(batch * BATCH as u64 + n));
        }
        generator.image(batch, &mut image);
        let cpu = config_of(options.seed, batch);
        let (mut compared, mut skipped) = (0, 0);
        differing.clear();
        rig.run(&cases, &image, cpu, |n, verdict, note| {
            progress.fetch_add(1, Ordering::Relaxed);
            match verdict {
                Verdict::Agree => compared += 1,
                Verdict::Skipped => skipped += 1,
                Verdict::Differ => {
                    compared += 1;
                    differing.push((n, note.to_owned()));
                }
            }
        })?;
        let counts = &shared.counts;
        counts.compared.fetch_add(compared, Ordering::Relaxed);
        counts.skipped.fetch_add(skipped, Ordering::Relaxed);
        counts.differed.fetch_add(differing.len() as u64, Ordering::Relaxed);
        for (n, note) in &differing {
            mismatch(shared, &mut rig, &cases[*n], note, (&image, cpu))?;
        }
    }
    Ok(0.0)
}

fn mismatch(
    shared: &Shared,
    rig: &mut Rig,
    case: &Case,
    note: &str,
    (image, cpu): (&[u8], usize),
) -> Result<()> {
    if shared.stop.load(Ordering::Relaxed) {
        return Ok(());
    }
    let repeat = shared.repeat(case.number);
    if rig.run_one(case, image, cpu)? != Verdict::Differ {
        println!(
            "\n=== case {} differed in its batch, but not when it was run again by itself ===\n{}difference:\n{note}again: {repeat}",
            case.number,
            report::listing(case),
        );
        *shared.seen.lock().unwrap_or_else(PoisonError::into_inner).entry("not again".into()).or_default() +=
            1;
        return Ok(());
    }
    let small = shrink(rig, case, image, cpu)?;
    let signature = report::signature(&small.case);
    let first = {
        let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let times = seen.entry(signature).or_default();
        *times += 1;
        *times == 1
    };
    if first {
        println!("{}", report::story(rig, &small, case, cpu, &repeat)?);
    }
    Ok(())
}

/// Runs one case on every configuration and tells its story.
fn one(options: &Options, number: u64) -> Result<bool> {
    let mut generator = generator(options)?;
    let case = generator.case(number);
    let batch = number / BATCH as u64;
    let mut image = vec![0; IMAGE];
    generator.image(batch, &mut image);
    let mut rig = Rig::new(&configs(options.seed), &Watchdog::default())?;
    let repeat = format!("cargo xtask prove --seed {} --case {number}", options.seed);
    let mut order: Vec<_> = (0..rig.configs().len()).collect();
    order.sort_by_key(|&n| n != config_of(options.seed, batch));
    for cpu in order {
        if rig.run_one(&case, &image, cpu).context("running the case")? == Verdict::Differ {
            let small = shrink(&mut rig, &case, &image, cpu)?;
            println!("{}", report::story(&mut rig, &small, &case, cpu, &repeat)?);
            return Ok(false);
        }
    }
    let small = crate::shrink::Small { case: case.clone(), image };
    println!("{}", report::story(&mut rig, &small, &case, 0, &repeat)?);
    println!("both sides agree");
    Ok(true)
}
