//! What the engine did for each workload: `--stats`.
//!
//! Problem: code that counts what it executes is slower, so what was measured must not count. Strategy: when all figures
//! are taken, a further system is started that counts (`-d stats`), and runs each workload once. Before and after, the
//! emulator is asked for its counters over gdb's protocol (`monitor stats`), which stops the guest for that moment; the
//! difference is the workload's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Side;
use super::session::{Answer, Image, Kit, Session, TRANSLATOR};
use super::workloads::Workload;

/// The most that an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Runs the workloads once, counting, and prints what was counted.
pub fn run(kit: &Kit, image: &Image, workloads: &[&Workload]) -> Result<()> {
    let socket = Socket::new();
    let options = ["-d".to_owned(), "stats".to_owned(), "-gdb".to_owned(), socket.option()];
    let kit = kit.with_options(&options);
    let mut session = Some(Session::start(&kit, image, &Side::Ours, TRANSLATOR)?);
    let mut before = executed(&socket.ask("stats")?)?;
    println!("executed by generated code, once each (the boot of the system: {}):", shown(before));
    for workload in workloads.iter().filter(|workload| workload.shares_a_system()) {
        match workload.run(&kit, image, &Side::Ours, &mut session)? {
            Some(Answer::Took(_)) => {
                let now = executed(&socket.ask("stats")?)?;
                println!("  {:<18} {}", workload.name, shown((now.0 - before.0, now.1 - before.1)));
                before = now;
            }
            Some(Answer::Skipped(reason) | Answer::Failed(reason)) => {
                println!("  {:<18} {reason}", workload.name);
            }
            None => {}
        }
    }
    let said = session.take().context("the system runs")?.end()?;
    println!("the translator says of all that (-d stats):");
    said.lines().for_each(|line| println!("  {line}"));
    Ok(())
}

fn shown((guest, host): (u64, u64)) -> String {
    format!(
        "{:.1} million guest instructions, {:.2} host instructions for each",
        guest as f64 / 1e6,
        host as f64 / (guest as f64).max(1.0)
    )
}

/// The guest's and the host's instructions, from what the emulator says.
fn executed(statistics: &str) -> Result<(u64, u64)> {
    let line = statistics.lines().find_map(|line| line.strip_prefix("executed"));
    let words: Vec<_> =
        line.with_context(|| format!("nothing was counted: {statistics}"))?.split(' ').collect();
    let mut numbers = words.iter().filter_map(|word| word.parse::<u64>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(guest), Some(host)) => Ok((guest, host)),
        _ => bail!("the counters are not understood: {statistics}"),
    }
}

/// Where the emulator listens for gdb; the file goes with it.
struct Socket(PathBuf);

impl Socket {
    fn new() -> Socket {
        Socket(std::env::temp_dir().join(format!("tessera-bench-{}", std::process::id())))
    }

    fn option(&self) -> String {
        format!("unix:{}", self.0.display())
    }

    /// What the emulator says to a `monitor` command; the guest goes on afterwards.
    fn ask(&self, command: &str) -> Result<String> {
        let mut debugger = Debugger::call(self)?;
        debugger.send("?")?;
        debugger.receive()?;
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        debugger.send(&format!("qRcmd,{hex}"))?;
        let mut said = Vec::new();
        loop {
            let answer = debugger.receive()?;
            match answer.strip_prefix('O') {
                _ if answer == "OK" => break,
                Some(hex) => said.extend(
                    hex.as_bytes()
                        .chunks(2)
                        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()),
                ),
                None => bail!("monitor {command} is answered by {answer}"),
            }
        }
        debugger.send("D")?;
        debugger.receive()?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The emulator removes it itself unless it was killed.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The little of gdb's remote protocol that asking needs.
struct Debugger {
    stream: UnixStream,
    /// What came and was not looked at yet.
    pending: Vec<u8>,
}

impl Debugger {
    fn call(socket: &Socket) -> Result<Debugger> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket.0) {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() > ANSWER => {
                    return Err(error).context("the emulator does not listen for gdb");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(ANSWER))?;
        let mut debugger = Debugger { stream, pending: Vec::new() };
        debugger.send("QStartNoAckMode")?;
        debugger.receive()?;
        Ok(debugger)
    }

    fn send(&mut self, body: &str) -> Result<()> {
        let sum = body.bytes().fold(0u8, u8::wrapping_add);
        Ok(self.stream.write_all(format!("${body}#{sum:02x}").as_bytes())?)
    }

    /// The next packet's body.
    fn receive(&mut self) -> Result<String> {
        loop {
            let find = |byte| self.pending.iter().position(|b| *b == byte);
            if let (Some(start), Some(end)) = (find(b'$'), find(b'#'))
                && self.pending.len() > end + 2
            {
                ensure!(start < end, "the emulator's packet has no start");
                let body = String::from_utf8_lossy(&self.pending[start + 1..end]).into_owned();
                self.pending.drain(..end + 3);
                return Ok(body);
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer)?;
            ensure!(count > 0, "the emulator hangs up");
            self.pending.extend_from_slice(&buffer[..count]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let said = "time         1.0 s\nexecuted     100 guest instructions by 250 host instructions: 2.50 for each\n";
        assert_eq!(executed(said).unwrap(), (100, 250));
        assert_eq!(
            shown((2_000_000, 5_000_000)),
            "2.0 million guest instructions, 2.50 host instructions for each"
        );
        assert!(executed("time 1.0 s\n").is_err());
    }
}
