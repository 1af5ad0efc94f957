//! Random bytes through the front end, in every mode, compared with what the decoder says of them: lengths, validity, pages
//! fetched. The cases and the comparison are [`tessera_x86::testing::decoder`]'s; this runs many of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use tessera_x86::cpuid;
use tessera_x86::state::X86Env;
use tessera_x86::testing::{NoPlatform, decoder};

/// Cases of one seed: progress is told, and an interruption noticed, between seeds.
const STRETCH: u64 = 500_000;

/// Runs `cases` cases (rounded up) on `jobs` threads, from seed `seed` on; whether all were as expected.
pub fn run(cases: u64, seed: u64, jobs: usize, interrupted: &AtomicBool) -> Result<bool> {
    let model = cpuid::parse("max,+la57")?;
    let started = Instant::now();
    let stretches = cases.div_ceil(STRETCH);
    let (next, done, wrong) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|threads| {
        for _ in 0..jobs {
            threads.spawn(|| {
                let env = X86Env::new(Box::new(NoPlatform::default()), model.clone());
                while !interrupted.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= stretches {
                        break;
                    }
                    if let Err(divergence) = decoder::run(&env, STRETCH, seed.wrapping_add(n)) {
                        println!("{divergence}");
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    let cases = (done.fetch_add(1, Ordering::Relaxed) + 1) * STRETCH;
                    println!("{:6.0} s  {cases} strings of bytes", started.elapsed().as_secs_f64());
                }
            });
        }
    });
    let (done, wrong) = (done.into_inner() * STRETCH, wrong.into_inner());
    println!("{done} strings of bytes, {wrong} divergences, seed {seed}");
    Ok(wrong == 0)
}
