//! How fast this host runs, natively, the loop whose speed the embedded firmware prints.
//!
//! The firmware cannot know it, so the emulator measures it before the machine starts and leaves it in guest
//! memory.

use tessera_firmware::bios;

/// Instructions a second that the host itself executes in the firmware's loop; 0 on hosts that cannot run it.
#[cfg(not(target_arch = "x86_64"))]
pub fn measure() -> u64 {
    0
}

/// Instructions a second that the host itself executes in the firmware's loop; 0 if it cannot be found out.
#[cfg(target_arch = "x86_64")]
pub fn measure() -> u64 {
    use std::time::Instant;

    /// A few milliseconds a run; of several runs the fastest, which nothing interrupted.
    const ITERATIONS: u64 = 300_000;
    const RUNS: usize = 3;

    let (code, instructions) = bios::speed_loop();
    let Ok(mut memory) = memmap2::MmapMut::map_anon(code.len()) else { return 0 };
    memory.copy_from_slice(code);
    let Ok(memory) = memory.make_exec() else { return 0 };
    // SAFETY: `memory` holds, executable and from its first byte, the code that `speed_loop` documents as a
    // position independent function of this signature that touches only its own stack; it stays mapped until
    // after the last call.
    let run = unsafe { std::mem::transmute::<*const u8, extern "C" fn(u64) -> u64>(memory.as_ptr()) };
    let fastest = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            std::hint::black_box(run(std::hint::black_box(ITERATIONS)));
            started.elapsed()
        })
        .min()
        .unwrap_or_default();
    (ITERATIONS as f64 * instructions as f64 / fastest.as_secs_f64().max(1e-9)) as u64
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[test]
    fn the_host_runs_at_a_credible_speed() {
        let speed = super::measure();
        assert!((10_000_000..1_000_000_000_000).contains(&speed), "{speed}");
    }
}
