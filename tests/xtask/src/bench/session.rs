//! A system that waits for orders: an emulated guest, or the workloads' program on the host.
//!
//! The protocol is that of `tests/workloads/main.c`: one line an order, answers that start with `@`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::workloads::{self, Kind};
use super::{Clock, Side};
use crate::console::Console;
use crate::gdb_client::Socket;
use crate::guests::{self, Files};
use crate::trees::Tree;
use crate::{initramfs, process};

/// The accelerator of every system, unless a workload says otherwise.
pub const TRANSLATOR: &str = "tcg";
/// The most that a boot may take.
const BOOT: Duration = Duration::from_secs(300);
/// The most that one run of a workload may take.
const RUN: Duration = Duration::from_secs(600);
/// Runs of a workload, at most, until the beginning of one is noticed in time.
const LATE: u32 = 5;
/// The most that a power-off may take.
const END: Duration = Duration::from_secs(30);

/// What one run took.
#[derive(Clone, Debug)]
pub struct Took {
    /// By the clock of the system that ran it, if it says; for a boot, since its kernel started.
    pub inside: Option<Duration>,
    /// By the host's clock.
    pub outside: Duration,
    /// By the host's clock, from the order to the answer, preparations included: no right clock says more. Where the start
    /// was noticed late, `outside` is less than what the run took.
    pub within: Duration,
    /// Processor time: the emulator's, or natively the workload's.
    pub processor: Option<Duration>,
    /// What the workload computed.
    pub checksum: Option<String>,
}

impl Took {
    /// The time by a clock, if that was read.
    pub fn seconds(&self, clock: Clock) -> Option<f64> {
        let by_clock = match clock {
            Clock::Guest => self.inside.or(Some(self.outside)),
            Clock::Host => Some(self.outside),
            Clock::Cpu => self.processor,
        };
        Some(by_clock?.as_secs_f64())
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It took so long.
    Took(Took),
    /// It cannot run there.
    Skipped(String),
    /// It did not work.
    Failed(String),
}

impl Answer {
    /// What the workload computed.
    pub fn checksum(&self) -> Option<&str> {
        match self {
            Answer::Took(took) => took.checksum.as_deref(),
            _ => None,
        }
    }

    /// For the file.
    pub fn to_json(&self) -> Value {
        let seconds = |time: &Option<Duration>| time.map(|time| time.as_secs_f64());
        match self {
            Answer::Took(took) => json!({
                "inside": seconds(&took.inside),
                "outside": took.outside.as_secs_f64(),
                "processor": seconds(&took.processor),
            }),
            Answer::Skipped(reason) => json!({ "skipped": reason }),
            Answer::Failed(reason) => json!({ "failed": reason }),
        }
    }
}

/// Everything that sessions are started with.
#[derive(Clone)]
pub struct Kit {
    target: PathBuf,
    /// The workloads' program, built for the host, which is also what guests run.
    pub program: PathBuf,
    kernel: PathBuf,
    emulator: PathBuf,
    extra: Vec<String>,
}

/// What a kind of workload boots, or runs in natively.
pub struct Image {
    /// The kernel, the RAM disk and the memory.
    pub files: Files,
    /// The tree that is the root folder natively; `None`: any folder will do.
    pub tree: Option<Tree>,
}

impl Kit {
    /// Builds the workloads and obtains the kernel.
    pub fn open(target: &Path, extra: Vec<String>) -> Result<Self> {
        Ok(Kit {
            target: target.to_owned(),
            program: workloads::build(target)?,
            kernel: guests::kernel(target)?,
            emulator: PathBuf::new(),
            extra,
        })
    }

    /// Sets the emulator that is measured.
    pub fn with_emulator(self, emulator: PathBuf) -> Self {
        Kit { emulator, ..self }
    }

    /// The same with further options for the emulator that is measured.
    pub fn with_options(&self, options: &[String]) -> Self {
        Kit { extra: self.extra.iter().chain(options).cloned().collect(), ..self.clone() }
    }

    /// The RAM disk for a kind of workload.
    pub fn image(&self, kind: Kind) -> Result<Image> {
        let files = |initrd, memory| Files { kernel: self.kernel.clone(), initrd, memory };
        Ok(match kind {
            Kind::Boot | Kind::Own => {
                let initrd = self.target.join("guests/workloads.cpio");
                initramfs::write_program(&initrd, &self.program)?;
                Image { files: files(initrd, 512), tree: None }
            }
            Kind::Debian => {
                let tree = workloads::debian_tree(&self.target, &self.program)?;
                Image { files: files(tree.initrd.clone(), 1024), tree: Some(tree) }
            }
        })
    }

    /// The command that starts a system.
    fn command(&self, image: &Image, side: &Side, accelerator: &str) -> Result<Command> {
        let emulator = match side {
            Side::Ours => &self.emulator,
            Side::Other(path) => path,
            Side::Native => {
                return match &image.tree {
                    None => Ok(Command::new(&self.program)),
                    Some(tree) => tree.run_natively("exec /init").context(
                        "this host lets nobody change the root folder; use --against without native",
                    ),
                };
            }
        };
        let append = "console=ttyS0 quiet loglevel=1 rdinit=/init";
        Ok(self.emulated(emulator, &image.files, append, accelerator))
    }

    fn emulated(&self, emulator: &Path, files: &Files, append: &str, accelerator: &str) -> Command {
        let mut command = files.command(emulator, append);
        command.args(["-accel", accelerator, "-cpu", "max"]);
        if emulator == self.emulator {
            command.args(&self.extra);
        }
        command
    }
}

/// A running system.
pub struct Session {
    console: Console,
    native: bool,
    /// From the start of the program to its readiness: by its own clock (since its kernel started) and the host's.
    pub boot: Took,
}

impl Session {
    /// Starts a system and waits until it takes orders.
    pub fn start(kit: &Kit, image: &Image, side: &Side, accelerator: &str) -> Result<Self> {
        Self::spawn(kit.command(image, side, accelerator)?, *side == Side::Native)
    }

    /// Starts a system of ours that a debugger can call, and waits until it takes orders.
    pub fn debuggable(kit: &Kit, image: &Image, socket: &Socket) -> Result<Self> {
        let mut command = kit.command(image, &Side::Ours, TRANSLATOR)?;
        command.args(["-gdb", &socket.option()]);
        Self::spawn(command, false)
    }

    fn spawn(command: Command, native: bool) -> Result<Self> {
        let started = Instant::now();
        let mut console = Console::spawn(command)?;
        console.expect("@ready ", BOOT)?;
        let outside = started.elapsed();
        let processor = process::thread_time(console.pid())?;
        let uptime = console.rest_of_line(BOOT)?.trim().parse().context("the guest's clock is no number")?;
        let boot = Took {
            inside: Some(Duration::from_nanos(uptime)),
            outside,
            within: outside,
            processor: Some(processor),
            checksum: None,
        };
        Ok(Session { console, native, boot })
    }

    /// The process number of the emulator, or of the workloads' program.
    pub fn pid(&self) -> u32 {
        self.console.pid()
    }

    /// Gives an order for a workload and waits until its work begins. The session is then of no further use.
    pub fn begin(&mut self, name: &str, order: &str, within: Duration) -> Result<()> {
        self.console.send(&format!("{order}\n"))?;
        self.console.expect(&format!("\n@work {name}"), within)
    }

    /// Gives an order for a workload and waits for the answer. If on a busy host the beginning of the work was noticed late, and
    /// less time was taken than the guest's clock says, gives it again.
    pub fn run(&mut self, name: &str, order: &str) -> Result<Answer> {
        for _ in 0..LATE {
            let answer = self.run_once(name, order)?;
            let late = |took: &Took| took.inside.is_some_and(|inside| took.outside < inside.mul_f64(0.9));
            if !matches!(&answer, Answer::Took(took) if late(took)) {
                return Ok(answer);
            }
        }
        bail!("{name}: the host is too busy for the beginning of the work to be noticed in time")
    }

    fn run_once(&mut self, name: &str, order: &str) -> Result<Answer> {
        let mut before = process::thread_time(self.console.pid())?;
        let ordered = Instant::now();
        let mut started = ordered;
        self.console.send(&format!("{order}\n"))?;
        // The echo of the order has no such line.
        self.console.expect("\n@", RUN)?;
        loop {
            let line = self.console.rest_of_line(RUN)?;
            let mut words = line.trim().split(' ');
            let (kind, what) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let rest: Vec<_> = words.collect();
            if what == name {
                match kind {
                    "begin" => {}
                    "work" => {
                        before = process::thread_time(self.console.pid())?;
                        started = Instant::now();
                    }
                    "end" => {
                        let outside = started.elapsed();
                        let used = process::thread_time(self.console.pid())?.saturating_sub(before);
                        let times = (outside, ordered.elapsed());
                        return took(&rest, times, (!self.native).then_some(used));
                    }
                    "skip" => return Ok(Answer::Skipped(rest.join(" "))),
                    _ => return Ok(Answer::Failed(rest.join(" "))),
                }
            }
            self.console.expect("@", RUN)?;
        }
    }

    /// Ends the system; what it said on standard error.
    pub fn end(mut self) -> Result<String> {
        self.console.send("quit\n")?;
        let status = self.console.wait(END)?;
        if !status.success() {
            bail!("ended with {status}{}", self.console.tail());
        }
        Ok(self.console.errors())
    }
}

/// Reads the numbers of an `@end` line.
fn took(
    words: &[&str],
    (outside, within): (Duration, Duration),
    emulator: Option<Duration>,
) -> Result<Answer> {
    let [inside, processor, checksum] = words else {
        bail!("an answer with other numbers than expected: {words:?}")
    };
    let nanoseconds = |word: &str| -> Result<Duration> { Ok(Duration::from_nanos(word.parse()?)) };
    Ok(Answer::Took(Took {
        inside: Some(nanoseconds(inside)?),
        outside,
        within,
        processor: Some(emulator.unwrap_or(nanoseconds(processor)?)),
        checksum: Some((*checksum).to_owned()),
    }))
}

/// A boot to a line on the console, of a system that takes no orders.
pub fn boot_to(kit: &Kit, files: &Files, side: &Side, arrival: &str) -> Result<Answer> {
    let emulator = match side {
        Side::Ours => &kit.emulator,
        Side::Other(path) => path,
        Side::Native => bail!("no system boots natively"),
    };
    let started = Instant::now();
    let mut console = Console::spawn(kit.emulated(emulator, files, "console=ttyS0", TRANSLATOR))?;
    console.expect(arrival, BOOT)?;
    let outside = started.elapsed();
    Ok(Answer::Took(Took {
        inside: None,
        outside,
        within: outside,
        processor: Some(process::thread_time(console.pid())?),
        checksum: None,
    }))
}
