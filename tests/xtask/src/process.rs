//! A running process, seen through `/proc` (proc(5)).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The processor time that a process has used so far, user and system, all its threads.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has gone")?;
    // The second field is the program's name in parentheses and may hold anything.
    let after_name = text.rsplit_once(')').context("unexpected /proc/PID/stat")?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("unexpected /proc/PID/stat")?.parse()?) };
    let ticks = ticks()? + ticks()?;
    Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
}

/// The processor time that the threads of a process have used which are still there, to the nanosecond.
pub fn thread_time(pid: u32) -> Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the process has gone")? {
        // A thread may end at this moment.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().context("unexpected /proc/PID/task/TID/schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Resident memory of one mapping of a process.
pub struct Mapping {
    /// The file behind it, `[heap]` and the like, or nothing.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// How much of it is resident, in bytes, counting a page shared by `n` mappings as `1/n`.
    pub resident: u64,
}

/// The mappings of a process.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).context("the process has gone")?;
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((low, high)) = first.split_once('-')
            && let (Ok(low), Ok(high)) = (u64::from_str_radix(low, 16), u64::from_str_radix(high, 16))
        {
            let name = words.skip(4).collect::<Vec<_>>().join(" ");
            found.push(Mapping { name, size: high - low, resident: 0 });
        } else if first == "Pss:"
            && let Some(mapping) = found.last_mut()
        {
            mapping.resident = words.next().unwrap_or("0").parse::<u64>()? * 1024;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_figures() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let mut sum = 0u64;
        while cpu_time(pid).unwrap() == before {
            sum = sum.wrapping_add(1);
        }
        assert!(thread_time(pid).unwrap() > Duration::ZERO);
        let mappings = mappings(pid).unwrap();
        assert!(mappings.iter().any(|m| m.name == "[stack]" && m.resident > 0 && m.resident <= m.size));
    }
}
