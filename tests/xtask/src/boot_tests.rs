//! Real systems, booted and used over the serial console.
//!
//! A test here starts the emulator as a user would, on a terminal, and judges what comes out: the guest's
//! console, the exit status, standard error, the terminal's settings, and what the process costs the host.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::console::{Console, printable};
use crate::guests::{self, Files, GUESTS, Guest, Userland};
use crate::initramfs::{MARKER, PROMPT};
use crate::packages::PackageError;
use crate::process;
use crate::test::Outcome;

/// From the start of the emulator to the guest's userland; several times what a slow machine takes.
const BOOT: Duration = Duration::from_secs(240);
/// From a typed command to its answer, or from an order to end to the end.
const ANSWER: Duration = Duration::from_secs(20);

/// A guest that sits at its shell may use this share of a host core,
const IDLE_SHARE: f64 = 0.02;
/// and have threads wake up so many times a second, each time for what that costs the host: between 5 and
/// 100 µs of processor time in virtual machines, which is most of what an idle guest uses.
const IDLE_WAKES: f64 = 500.0;
/// How long the idle guest is watched.
const IDLE_WATCH: Duration = Duration::from_secs(10);
/// What the emulator may take of the host's memory besides the guest's RAM and the code cache.
const MEMORY_LIMIT: u64 = 64 << 20;
/// The self-test of the embedded firmware ends within this time.
const SELF_TEST: Duration = Duration::from_secs(5);

/// What a kernel says when it finds something wrong with the machine or with itself.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Call Trace",
    "Kernel panic",
    "Oops",
    "general protection fault",
    "unchecked MSR access",
    "[Firmware Bug]",
    "[Firmware Warn]",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Exception",
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall",
    "rcu: INFO",
    "nobody cared",
    "TSC calibration failed",
    "Unable to calibrate against",
    "Marking TSC unstable",
    "Marking clocksource",
    "APIC calibration not consistent",
    "APIC frequency too slow",
    "MP-BIOS bug",
    "Spurious LAPIC timer",
    "Hardware Error",
    "unhandled rdmsr",
    "page_fault_oops",
    "FPU: warning",
    "x87 FPU will use software emulation",
];

/// The emulator under test and where its guests are kept.
pub struct Rig {
    /// The program.
    pub emulator: PathBuf,
    /// Whether it is this project's, and so must do what only this project's does.
    pub is_tessera: bool,
    /// Cargo's target folder.
    pub target: PathBuf,
    /// Show what the guests print even if all is well.
    pub show_console: bool,
    /// Run programs in their long form.
    pub long: bool,
}

/// Runs one test; an error is a failure.
type Run = Box<dyn Fn(&Rig) -> Result<Outcome>>;

/// One test.
pub struct BootTest {
    /// What `--filter` looks at.
    pub name: String,
    /// What it does.
    pub run: Run,
}

/// Every test, in the order in which they run.
pub fn all() -> Vec<BootTest> {
    let test =
        |name: &str, run: fn(&Rig) -> Result<Outcome>| BootTest { name: name.into(), run: Box::new(run) };
    let mut tests = vec![
        test("firmware/self-test", self_test),
        test("demo/shell", demo_is_a_shell),
        test("demo/no-packages", demo_without_packages),
    ];
    for guest in GUESTS {
        let run = match guest.userland {
            Userland::Busybox => boots_to_shell,
            Userland::Packaged(_) => boots_to_installer,
        };
        tests.push(BootTest {
            name: format!("boot/{}", guest.name),
            run: Box::new(move |rig| run(rig, guest)),
        });
    }
    tests.extend([
        test("machine/idle", idle_costs_little),
        test("machine/memory", memory_overhead_is_small),
        test("machine/busy-guest", a_busy_guest_can_be_ended),
        test("machine/sigterm", sigterm_ends_it),
        test("machine/reset", a_reset_boots_again),
        test("machine/no-reboot", no_reboot_ends_instead_of_resetting),
        test("machine/triple-fault", a_triple_fault_shows_the_state),
    ]);
    tests
}

/// The guest's files, or why they cannot be had.
fn obtain(rig: &Rig, guest: &Guest) -> Result<std::result::Result<Files, Outcome>> {
    match guest.obtain(&rig.target) {
        Ok(files) => Ok(Ok(files)),
        Err(PackageError::Unavailable(reason)) => Ok(Err(Outcome::Skipped(reason))),
        Err(PackageError::Broken(error)) => Err(error),
    }
}

/// Unpacks [`obtain`]'s answer or leaves the test as skipped.
macro_rules! files_or_skip {
    ($rig:expr, $guest:expr) => {
        match obtain($rig, $guest)? {
            Ok(files) => files,
            Err(skipped) => return Ok(skipped),
        }
    };
}

fn cloud() -> Result<&'static Guest> {
    guests::named("cloud").context("the table of guests has no cloud guest")
}

/// Starts a guest and waits for its shell; says how long its userland took.
fn to_shell(command: Command) -> Result<(Console, Duration)> {
    let started = Instant::now();
    let mut console = Console::spawn(command)?;
    console.expect(MARKER, BOOT)?;
    let took = started.elapsed();
    console.expect(PROMPT, ANSWER)?;
    Ok((console, took))
}

/// Types a command and waits for what it prints, then for the prompt.
fn ask(console: &mut Console, command: &str, answer: &str) -> Result<()> {
    console.send(&format!("{command}\n"))?;
    console.expect(answer, ANSWER).with_context(|| format!("after typing {command:?}"))?;
    console.expect(PROMPT, ANSWER)
}

/// Fails if the guest's kernel has complained.
pub fn check_complaints(console: &Console) -> Result<()> {
    let text = console.text();
    let bad: Vec<_> = text
        .lines()
        .filter(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)))
        .map(printable)
        .collect();
    ensure!(bad.is_empty(), "the guest's kernel complains:\n  | {}", bad.join("\n  | "));
    Ok(())
}

/// Waits for the emulator's end, which must be with this exit status and leave the terminal as it was.
fn check_end(console: &mut Console, code: i32) -> Result<()> {
    let status = console.wait(ANSWER)?;
    ensure!(
        status.code() == Some(code),
        "ended with {status} instead of exit status {code}{}",
        console.tail()
    );
    console.check_restored()
}

fn show(rig: &Rig, console: &Console) {
    if rig.show_console {
        println!();
        console.text().lines().for_each(|line| println!("  | {}", printable(line)));
    }
}

fn boots_to_shell(rig: &Rig, guest: &Guest) -> Result<Outcome> {
    let files = files_or_skip!(rig, guest);
    let (mut console, took) = to_shell(files.command(&rig.emulator, "console=ttyS0"))?;
    // The echo of what is typed does not hold the answer.
    ask(&mut console, "echo $((6 * 7))-$(uname -m)", &format!("42-{}", guest.machine))?;
    sleeps_as_told(&mut console)?;
    // Ctrl-C reaches the program on the guest's console, not the emulator. What is typed into `cat` comes
    // back twice, from the terminal and from `cat`, which shows that it runs. The shell takes its own line
    // editing back before `echo` runs.
    console.send("echo he''re; cat\n")?;
    console.expect("\nhere", ANSWER)?;
    console.send("twice\n")?;
    console.expect("\ntwice", ANSWER)?;
    console.expect("\ntwice", ANSWER)?;
    console.send("\x03")?;
    console.expect(PROMPT, ANSWER)?;
    // Many bytes through the console, none lost.
    ask(&mut console, "seq 1 800", "\n800")?;
    let lines = console.text().lines().filter(|line| line.trim().parse::<u32>().is_ok()).count();
    ensure!(lines >= 800, "only {lines} of 800 lines arrived{}", console.tail());
    console.send("poweroff -f\n")?;
    check_end(&mut console, 0)?;
    show(rig, &console);
    check_complaints(&console)?;
    Ok(Outcome::Passed(format!("userland after {:.1} s", took.as_secs_f64())))
}

/// Sleeping needs timers, the guest's clock must agree with them, and the host's with the guest's: by the
/// guest's clock a sleep lasts as long as it was told to, or longer, but no longer than the host saw pass.
fn sleeps_as_told(console: &mut Console) -> Result<()> {
    /// The guest's clock counts hundredths of a second, and rounds down.
    const HUNDREDTH: Duration = Duration::from_millis(10);
    const TOLD: Duration = Duration::from_secs(2);
    let started = Instant::now();
    // Two digits that begin with a 0 would be octal.
    console.send(&format!(
        "read a x </proc/uptime; sleep {}; read b x </proc/uptime; \
         echo sle''pt:$(((${{b%.*}} - ${{a%.*}}) * 100 + 1${{b#*.}} - 1${{a#*.}}))\n",
        TOLD.as_secs()
    ))?;
    console.expect("\nslept:", ANSWER)?;
    let passed = started.elapsed();
    let printed = console.rest_of_line(ANSWER)?;
    let slept: u32 = printed.trim().parse().with_context(|| format!("slept for {printed:?}"))?;
    let slept = HUNDREDTH * slept;
    ensure!(
        TOLD <= slept + HUNDREDTH && slept <= passed + HUNDREDTH,
        "told to sleep for {TOLD:?} the guest slept for {slept:?} by its own clock, within {passed:?} of the host's{}",
        console.tail()
    );
    console.expect(PROMPT, ANSWER)
}

fn boots_to_installer(rig: &Rig, guest: &Guest) -> Result<Outcome> {
    let files = files_or_skip!(rig, guest);
    let started = Instant::now();
    let mut console = Console::spawn(files.command(&rig.emulator, "console=ttyS0"))?;
    console.expect(guest.arrival(), BOOT)?;
    let took = started.elapsed();
    console.send("\x01x")?;
    check_end(&mut console, 0)?;
    show(rig, &console);
    check_complaints(&console)?;
    Ok(Outcome::Passed(format!("first screen after {:.1} s", took.as_secs_f64())))
}

fn self_test(rig: &Rig) -> Result<Outcome> {
    if !rig.is_tessera {
        return Ok(Outcome::Skipped("only Tessera has this firmware".into()));
    }
    let mut console = Console::spawn(Command::new(&rig.emulator))?;
    let status = console.wait(SELF_TEST)?;
    show(rig, &console);
    let text = console.text();
    ensure!(status.success(), "ended with {status}{}", console.tail());
    ensure!(!text.contains("FAIL"), "a check of the self-test failed{}", console.tail());
    let checks = text.lines().filter(|line| line.starts_with("[ ok ]")).count();
    ensure!(checks >= 20, "only {checks} checks of the self-test are reported{}", console.tail());
    ensure!(
        text.contains(&format!("all {checks} checks passed")),
        "the self-test did not end{}",
        console.tail()
    );
    let speed = text.lines().rfind(|line| line.contains("native")).map(printable);
    let speed = speed.with_context(|| format!("no speed figure{}", console.tail()))?;
    console.check_restored()?;
    Ok(Outcome::Passed(format!("{checks} checks; {}", speed.trim())))
}

/// The demo as a user starts it.
fn demo(rig: &Rig) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("demo").arg("--emulator").arg(&rig.emulator);
    Ok(command)
}

fn demo_is_a_shell(rig: &Rig) -> Result<Outcome> {
    let _files = files_or_skip!(rig, cloud()?);
    for end in ["poweroff -f\n", "\x01x"] {
        let (mut console, _) = to_shell(demo(rig)?)?;
        ask(&mut console, "echo $((6 * 7))", "42")?;
        console.send(end)?;
        check_end(&mut console, 0)?;
    }
    Ok(Outcome::Passed("ended by poweroff -f, and by Ctrl-A x".into()))
}

/// Where there is no apt and nothing was obtained before, the demo says so and runs the embedded guest.
fn demo_without_packages(rig: &Rig) -> Result<Outcome> {
    if !rig.is_tessera {
        return Ok(Outcome::Skipped("only Tessera has an embedded guest".into()));
    }
    let empty = rig.target.join(format!("guests/nothing-{}", std::process::id()));
    std::fs::create_dir_all(&empty)?;
    let mut command = demo(rig)?;
    command.env("PATH", &empty).env("CARGO_TARGET_DIR", &empty);
    let outcome = Console::spawn(command).and_then(|mut console| {
        let status = console.wait(ANSWER)?;
        ensure!(status.success(), "ended with {status}{}", console.tail());
        let text = console.text();
        let said = text.contains("packages cannot be had here") && text.contains("checks passed");
        ensure!(said, "it does not say what is missing, or runs no guest{}", console.tail());
        console.check_restored()
    });
    std::fs::remove_dir_all(&empty)?;
    outcome.map(|()| Outcome::Passed(String::new()))
}

fn idle_costs_little(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig, cloud()?);
    let (mut console, _) = to_shell(files.command(&rig.emulator, "console=ttyS0"))?;
    // Work that the kernel defers to its first quiet moment is not what is measured here.
    console.pass(Duration::from_secs(5))?;
    let (started, before) = (Instant::now(), process::cpu_time(console.pid())?);
    console.pass(IDLE_WATCH)?;
    let used = process::cpu_time(console.pid())?.saturating_sub(before);
    let share = used.as_secs_f64() / started.elapsed().as_secs_f64();
    console.send("\x01x")?;
    check_end(&mut console, 0)?;
    let wake = cost_of_waking()?;
    let limit = IDLE_SHARE + IDLE_WAKES * wake.as_secs_f64();
    let figures = format!("{:.1}% of a core, where waking up takes {wake:.0?}", share * 100.0);
    ensure!(share < limit, "an idle guest uses {figures}");
    Ok(Outcome::Passed(figures))
}

/// The processor time that this host takes to put a thread to sleep and wake it up.
fn cost_of_waking() -> Result<Duration> {
    const TIMES: u32 = 500;
    let before = process::thread_time(std::process::id())?;
    (0..TIMES).for_each(|_| std::thread::sleep(Duration::from_millis(1)));
    Ok(process::thread_time(std::process::id())?.saturating_sub(before) / TIMES)
}

fn memory_overhead_is_small(rig: &Rig) -> Result<Outcome> {
    if !rig.is_tessera {
        return Ok(Outcome::Skipped(
            "tells guest RAM and code cache from the rest by Tessera's mappings".into(),
        ));
    }
    let files = files_or_skip!(rig, cloud()?);
    let (mut console, _) = to_shell(files.command(&rig.emulator, "console=ttyS0"))?;
    let (mut ram, mut code, mut rest) = (0, 0, 0);
    for mapping in process::mappings(console.pid())? {
        // Guest RAM is the one anonymous mapping that is that large.
        if mapping.name.is_empty() && mapping.size >= u64::from(files.memory) << 20 {
            ram += mapping.resident;
        } else if mapping.name.contains("tessera-code") {
            code += mapping.resident;
        } else {
            rest += mapping.resident;
        }
    }
    console.send("\x01x")?;
    check_end(&mut console, 0)?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let figures = format!(
        "guest RAM {:.0} MiB, code cache {:.0} MiB, the rest {:.1} MiB",
        mib(ram),
        mib(code),
        mib(rest)
    );
    ensure!(ram > 0 && code > 0, "guest RAM or code cache not found: {figures}");
    ensure!(rest < MEMORY_LIMIT, "too much host memory: {figures}");
    Ok(Outcome::Passed(figures))
}

/// A vCPU that never leaves a guest loop must not keep the emulator from hearing the user.
fn a_busy_guest_can_be_ended(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig, cloud()?);
    let (mut console, _) = to_shell(files.command(&rig.emulator, "console=ttyS0"))?;
    ensure!(console.is_raw()?, "the terminal is not in raw mode while the guest runs");
    console.send("while :; do :; done\n")?;
    console.pass(Duration::from_secs(2))?;
    let asked = Instant::now();
    console.send("\x01x")?;
    check_end(&mut console, 0)?;
    Ok(Outcome::Passed(format!("{} ms after Ctrl-A x", asked.elapsed().as_millis())))
}

fn sigterm_ends_it(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig, cloud()?);
    let mut console = Console::spawn(files.command(&rig.emulator, "console=ttyS0"))?;
    console.expect("Linux version", BOOT)?;
    let asked = Instant::now();
    console.signal(Signal::TERM)?;
    check_end(&mut console, 0)?;
    Ok(Outcome::Passed(format!("{} ms after SIGTERM", asked.elapsed().as_millis())))
}

fn a_reset_boots_again(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig, cloud()?);
    let mut command = Command::new(&rig.emulator);
    // The same line without -no-reboot.
    let line = files.command(&rig.emulator, "console=ttyS0");
    command.args(line.get_args().filter(|argument| *argument != "-no-reboot"));
    let (mut console, _) = to_shell(command)?;
    console.send("reboot -f\n")?;
    console.expect(MARKER, BOOT).context("after reboot -f")?;
    console.expect(PROMPT, ANSWER)?;
    ask(&mut console, "echo $((40 + 2))", "42")?;
    console.send("poweroff -f\n")?;
    check_end(&mut console, 0)?;
    check_complaints(&console)?;
    Ok(Outcome::Passed(String::new()))
}

fn no_reboot_ends_instead_of_resetting(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig, cloud()?);
    let (mut console, _) = to_shell(files.command(&rig.emulator, "console=ttyS0"))?;
    console.send("reboot -f\n")?;
    check_end(&mut console, 0)?;
    Ok(Outcome::Passed(String::new()))
}

fn a_triple_fault_shows_the_state(rig: &Rig) -> Result<Outcome> {
    if !rig.is_tessera {
        return Ok(Outcome::Skipped("what is shown is Tessera's".into()));
    }
    let files = files_or_skip!(rig, cloud()?);
    // The kernel loads an empty IDT and takes a breakpoint.
    let (mut console, _) = to_shell(files.command(&rig.emulator, "console=ttyS0 reboot=triple"))?;
    console.send("reboot -f\n")?;
    let status = console.wait(ANSWER)?;
    console.check_restored()?;
    let errors = console.errors();
    if !errors.to_lowercase().contains("triple fault") || !errors.contains("RIP") || !errors.contains("CR3") {
        bail!("ended with {status} and no message that shows the CPU's state{}", console.tail());
    }
    Ok(Outcome::Passed(format!("exit status {}", status.code().unwrap_or(-1))))
}
