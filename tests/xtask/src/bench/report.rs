//! What the bench prints and writes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figures::{Ratio, Spread, geometric_mean};
use super::session::{Answer, Took};
use super::{Clock, Side};

/// A guest's clock that differs from what can be by more than this share (and [`CLOCK_SLACK`]) is wrong.
const CLOCK_TOLERANCE: f64 = 0.1;
/// Seconds by which it may differ besides: what the emulator does for other reasons, and rounding.
const CLOCK_SLACK: f64 = 0.25;

/// A table that grows by a row as each workload ends.
pub struct Report {
    sides: Vec<Side>,
    clock: Clock,
    rows: Vec<Value>,
    /// The clear ratios to each side but the first, in the order of the sides.
    ratios: Vec<Vec<f64>>,
    failures: usize,
}

impl Report {
    /// An empty one.
    pub fn new(sides: &[Side], clock: Clock) -> Self {
        let ratios = sides.iter().skip(1).map(|_| Vec::new()).collect();
        Report { sides: sides.to_vec(), clock, rows: Vec::new(), ratios, failures: 0 }
    }

    /// The line above the table.
    pub fn print_heading(&self) {
        let clock = match self.clock {
            Clock::Guest => "the guest's clock",
            Clock::Host => "the host's clock",
            Clock::Cpu => "processor time",
        };
        println!(
            "seconds by {clock}, median and deviation; x: how many times faster than an emulator, or slower than native"
        );
        let mut line = format!("{:<18} {:>14}", "workload", self.sides[0].name());
        for side in &self.sides[1..] {
            line += &format!(" {:>14} {:>9}", side.name(), "");
        }
        println!("{}", line.trim_end());
    }

    /// A workload that could not run anywhere.
    pub fn skip(&mut self, name: &str, reason: &str) {
        println!("{name:<18} skipped: {reason}");
        self.rows.push(json!({ "workload": name, "skipped": reason }));
    }

    /// A workload's answers, side by side.
    pub fn add(&mut self, name: &str, answers: Vec<Vec<Answer>>) {
        let mut line = format!("{name:<18}");
        let mut notes = Vec::new();
        let mut row = json!({ "workload": name });
        let seconds: Vec<Vec<f64>> = answers
            .iter()
            .map(|side| side.iter().filter_map(|answer| self.seconds(answer)).collect())
            .collect();
        let checksums: Vec<_> = answers.iter().flatten().filter_map(Answer::checksum).collect();
        if checksums.windows(2).any(|pair| pair[0] != pair[1]) {
            notes.push("RESULTS DIFFER".to_owned());
            self.failures += 1;
        }
        for (index, (side, answers)) in self.sides.iter().zip(&answers).enumerate() {
            let spread = Spread::of(&seconds[index]);
            line += &match (answers.last(), spread) {
                // One run knows no deviation.
                (Some(Answer::Took(_)), Some(spread)) if answers.len() == 1 => {
                    format!(" {:>9} {:>4}", shown(spread.median), "?")
                }
                (Some(Answer::Took(_)), Some(spread)) => {
                    format!(
                        " {:>9} {:>4}",
                        shown(spread.median),
                        format!("{:.0}%", spread.deviation() * 100.0)
                    )
                }
                (Some(Answer::Skipped(reason)), _) => {
                    notes.push(format!("{}: {reason}", side.name()));
                    format!(" {:>14}", "skipped")
                }
                (Some(Answer::Failed(reason)), _) => {
                    notes.push(format!("{}: {reason}", side.name()));
                    self.failures += 1;
                    format!(" {:>14}", "FAILED")
                }
                _ => format!(" {:>14}", "-"),
            };
            // Natively it is the host's clock, and processes may run side by side.
            let guest = *side != Side::Native;
            if guest && answers.iter().any(|a| matches!(a, Answer::Took(took) if clock_is_wrong(took))) {
                notes.push(format!("{}: the guest's clock is wrong", side.name()));
            }
            row[side.name()] = Value::Array(answers.iter().map(Answer::to_json).collect());
            if index == 0 {
                continue;
            }
            // How much faster than another emulator; how much slower than the host.
            let ratio = match side {
                Side::Native => Ratio::of(&seconds[0], &seconds[index]),
                _ => Ratio::of(&seconds[index], &seconds[0]),
            };
            line += &match ratio {
                Some(Ratio::Clear(ratio)) => {
                    self.ratios[index - 1].push(ratio.median);
                    row[format!("ratio to {}", side.name())] = json!(ratio.median);
                    format!(" {:>9}", format!("{:.2}x", ratio.median))
                }
                Some(Ratio::Unclear(_)) => format!(" {:>9}", "unclear"),
                None => format!(" {:>9}", "-"),
            };
        }
        println!("{}", line.trim_end());
        notes.iter().for_each(|note| println!("    {note}"));
        self.rows.push(row);
    }

    fn seconds(&self, answer: &Answer) -> Option<f64> {
        let Answer::Took(took) = answer else { return None };
        took.seconds(self.clock)
    }

    /// Figures of something that has no sides, for the file.
    pub fn add_row(&mut self, row: Value) {
        self.rows.push(row);
    }

    /// The line below the table.
    pub fn print_means(&self) {
        for (side, ratios) in self.sides[1..].iter().zip(&self.ratios) {
            if let Some(mean) = geometric_mean(ratios) {
                let what = if *side == Side::Native { "slower than native" } else { "faster than" };
                let name = if *side == Side::Native { String::new() } else { format!(" {}", side.name()) };
                println!("geometric mean of {}: {mean:.2} times {what}{name}", ratios.len());
            }
        }
    }

    /// Whether anything failed or had another result than elsewhere.
    pub fn has_failures(&self) -> bool {
        self.failures > 0
    }

    /// Writes every run's figures.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&Value::Array(self.rows.clone()))?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Seconds with three digits that count.
fn shown(seconds: f64) -> String {
    let digits = if seconds >= 100.0 {
        0
    } else if seconds >= 10.0 {
        1
    } else if seconds >= 1.0 {
        2
    } else if seconds >= 0.1 {
        3
    } else {
        4
    };
    format!("{seconds:.digits$}")
}

/// Whether the guest measured a time that cannot be. On a busy host this program hears late of a run's start and end, so the
/// time between them, as it sees it, proves nothing. But the run lies between order and answer; and it takes at least the
/// time for which the emulator had a processor, as that works for nothing else then.
fn clock_is_wrong(took: &Took) -> bool {
    // A boot has no checksum, and its kernel's clock starts late.
    let Some(inside) = took.inside.filter(|_| took.checksum.is_some()) else { return false };
    let (inside, most) = (inside.as_secs_f64(), took.within.as_secs_f64());
    let least = took.processor.unwrap_or_default().as_secs_f64();
    inside > most * (1.0 + CLOCK_TOLERANCE) + CLOCK_SLACK
        || inside < least * (1.0 - CLOCK_TOLERANCE) - CLOCK_SLACK
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn three_digits_are_shown() {
        assert_eq!(
            [shown(123.456), shown(12.345), shown(1.2345), shown(0.12345), shown(0.012345)],
            ["123", "12.3", "1.23", "0.123", "0.0123"]
        );
    }

    #[test]
    fn a_wrong_clock_is_noticed() {
        let took = |inside, checksum: Option<&str>| Took {
            inside: Some(Duration::from_millis(inside)),
            outside: Duration::from_millis(3000),
            within: Duration::from_millis(4000),
            processor: Some(Duration::from_millis(2900)),
            checksum: checksum.map(str::to_owned),
        };
        assert!(!clock_is_wrong(&took(2900, Some("0"))));
        assert!(clock_is_wrong(&took(1500, Some("0"))), "half of the processor's time");
        assert!(clock_is_wrong(&took(6000, Some("0"))), "longer than all of it");
        assert!(!clock_is_wrong(&took(1500, None)), "a boot");
        // Start and end were heard of late, or only one of them.
        assert!(!clock_is_wrong(&took(3900, Some("0"))));
        let late = Took { outside: Duration::from_millis(9000), ..took(2950, Some("0")) };
        assert!(!clock_is_wrong(&late));
    }
}
