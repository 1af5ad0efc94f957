//! The translator's figures for people: `-d stats`, and `monitor stats` in gdb.

use std::fmt::Write;
use std::time::Duration;

use tessera_tcg::exec::Stats;

/// How long a vCPU ran, and for what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// From each start to its stop, waiting for interrupts included.
    pub total: Duration,
    /// Waiting for interrupts.
    pub idle: Duration,
    /// In devices, if that was measured: reached by port, and by memory.
    pub devices: Option<[Duration; 2]>,
}

/// A quotient, 0 where there is nothing to divide by.
fn per(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// The text: a line for each matter.
pub fn text(s: &Stats, times: &Times) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<13}{what}");
    };
    let translating = s.translation_time.as_secs_f64();
    let rate = |count: u64| count as f64 / translating.max(1e-9);
    let share = |time: Duration| 100.0 * time.as_secs_f64() / times.total.as_secs_f64().max(1e-9);
    let counts = s.executed.guest != 0;

    let mut spent = format!(
        "{:.3} s: translation {:.1} %, idle {:.1} %",
        times.total.as_secs_f64(),
        share(s.translation_time),
        share(times.idle)
    );
    if let Some([ports, memory]) = times.devices {
        // A slow path's access may reach a device.
        let slow = s.slow_time.saturating_sub(memory);
        let _ = write!(spent, ", slow paths {:.1} %, devices {:.1} %", share(slow), share(ports + memory));
    }
    line("time", spent);
    line(
        "translated",
        format!(
            "{} blocks ({} of them to run once), {} guest instructions, and {} blocks copied from elsewhere in {translating:.3} s: {:.0} blocks/s, {:.0} instructions/s",
            s.translated,
            s.translated_once,
            s.guest_insns,
            s.copied,
            rate(s.translated + s.copied),
            rate(s.guest_insns)
        ),
    );
    line(
        "traces",
        format!(
            "{} of {} guest instructions; {} instructions run alone to record them",
            s.traces, s.trace_insns, s.recorded
        ),
    );
    let mut code = format!(
        "{} bytes for {} of the guest: {:.1} for each",
        s.host_bytes,
        s.guest_bytes,
        per(s.host_bytes, s.guest_bytes)
    );
    if counts {
        let _ = write!(code, "; {:.2} instructions for each of the guest", per(s.host_insns, s.guest_insns));
    }
    line("host code", code);
    if counts {
        let e = s.executed;
        line(
            "executed",
            format!(
                "{} guest instructions by {} host instructions: {:.2} for each; {} blocks, {} helper calls",
                e.guest,
                e.host,
                per(e.host, e.guest),
                e.blocks,
                e.helpers
            ),
        );
        // A block is entered from the loop, by an indirect jump that hits, or by a linked one.
        let hits = e.indirect.saturating_sub(s.exits.lookup);
        line(
            "jumps",
            format!("{} linked, {hits} indirect", e.blocks.saturating_sub(s.entries).saturating_sub(hits)),
        );
    }
    line(
        "exits",
        format!(
            "{}: {} not linked, {} indirect, {} polls, {} exceptions, {} left; {} blocks looked up",
            s.entries,
            s.exits.unlinked,
            s.exits.lookup,
            s.exits.poll,
            s.exits.exception,
            s.exits.leave,
            s.lookups
        ),
    );
    let mut tlb = String::new();
    if counts {
        let _ = write!(tlb, "{} hits, ", s.executed.accesses.saturating_sub(s.slow_accesses));
    }
    let _ = write!(
        tlb,
        "{} misses; {} fills from the second level, {} walks; {} walks for code; {} stores to code pages",
        s.slow_accesses, s.mmu.second_level_hits, s.mmu.walks, s.mmu.fetch_walks, s.mmu.code_page_stores
    );
    line("TLB", tlb);
    line(
        "flushes",
        format!(
            "{}, of one page {} ({} of code); {} address space switches, {} to one that was not resident",
            s.mmu.flushes, s.mmu.page_flushes, s.mmu.code_page_flushes, s.mmu.switches, s.mmu.cold_switches
        ),
    );
    line(
        "blocks",
        format!(
            "{} live, {} jumps linked, {} invalidated, {} evicted by {} full segments, dropped altogether {} times",
            s.live_blocks,
            s.blocks.links,
            s.blocks.invalidated,
            s.blocks.evicted,
            s.blocks.segments,
            s.blocks.cleared
        ),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_is_not_shown() {
        let mut stats = Stats { translated: 3, guest_insns: 10, host_insns: 25, ..Stats::default() };
        let plain = text(&stats, &Times::default());
        assert!(
            plain.contains("3 blocks") && !plain.contains("executed") && !plain.contains("NaN"),
            "{plain}"
        );
        stats.executed.guest = 100;
        stats.executed.host = 250;
        stats.slow_time = Duration::from_millis(450);
        (stats.executed.blocks, stats.executed.indirect, stats.entries, stats.exits.lookup) = (50, 20, 10, 5);
        let times = Times {
            total: Duration::from_secs(2),
            idle: Duration::from_secs(1),
            devices: Some([Duration::from_millis(150), Duration::from_millis(50)]),
        };
        let counted = text(&stats, &times);
        for part in [
            "idle 50.0 %",
            "slow paths 20.0 %, devices 10.0 %",
            "100 guest instructions by 250 host instructions: 2.50 for each",
            "25 linked, 15 indirect",
        ] {
            assert!(counted.contains(part), "{part} is missing in\n{counted}");
        }
    }
}
