//! The real gdb looks at guests.
//!
//! Each test runs gdb in batch mode with a script whose `printf` commands say what it sees, and compares. Where there is no
//! gdb the tests are skipped.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::boot_tests::{BootTest, Rig};
use crate::console::Console;
use crate::gdb_client::{Client, Socket, packet};
use crate::guests::{self, Files};
use crate::initramfs::{self, PROMPT};
use crate::packages::PackageError;
use crate::project;
use crate::test::Outcome;

/// How long gdb may take for a script.
const SCRIPT: Duration = Duration::from_secs(60);
/// How long a guest may take to boot, and to answer.
const BOOT: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(20);

/// How many steps are timed, and the fewest a second that pass, also on a busy machine.
const STEPS: u32 = 10_000;
const SLOWEST: f64 = 2000.0;

/// Every test.
pub fn all() -> Vec<BootTest> {
    let test = |name: &str, run: fn(&Rig) -> Result<Outcome>| BootTest {
        name: name.into(),
        run: Box::new(move |rig| {
            if !project::installed("gdb") {
                return Ok(Outcome::Skipped("gdb is not installed".into()));
            }
            if !rig.is_tessera {
                return Ok(Outcome::Skipped("uses what only Tessera's monitor commands can".into()));
            }
            run(rig)
        }),
    };
    vec![
        test("gdb/reset-vector", reset_vector),
        test("gdb/long-mode", long_mode),
        test("gdb/kernel", kernel),
        test("gdb/user-program", user_program),
        test("gdb/stepping", stepping),
        test("gdb/two-debuggers", two_debuggers),
        test("gdb/kvm", kvm),
        test("gdb/steps", steps),
        test("gdb/robustness", robustness),
    ]
}

/// Runs gdb with these commands; what it prints.
fn gdb(rig: &Rig, connect: &str, commands: &[&str]) -> Result<String> {
    let name = format!("gdb-{}-{:x}", std::process::id(), commands.as_ptr() as usize);
    let (script, log) = (rig.target.join(format!("{name}.gdb")), rig.target.join(format!("{name}.log")));
    let mut text = String::from("set pagination off\nset confirm off\nset architecture i386:x86-64\n");
    text += connect;
    for command in commands {
        text += "\n";
        text += command;
    }
    std::fs::write(&script, text + "\n")?;
    let out = File::create(&log)?;
    let mut child = Command::new("gdb")
        .args(["-nx", "-batch", "-x"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("cannot start gdb")?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if started.elapsed() > SCRIPT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    std::fs::remove_file(&script)?;
    std::fs::remove_file(&log)?;
    match status {
        Some(status) if status.success() => Ok(said),
        Some(status) => bail!("gdb ended with {status}\n{said}"),
        None => bail!("gdb does not come to an end\n{said}"),
    }
}

/// Fails unless these lines are all there, in this order.
fn check(said: &str, lines: &[&str]) -> Result<()> {
    let mut rest = said.lines();
    for line in lines {
        ensure!(rest.any(|other| other.trim() == *line), "gdb does not say {line:?}:\n{said}");
    }
    Ok(())
}

/// The value after `NAME=` in what gdb has said.
fn value(said: &str, name: &str) -> Result<u64> {
    let digits = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let digits = digits.with_context(|| format!("gdb does not say {name}:\n{said}"))?;
    u64::from_str_radix(digits.trim(), 16).with_context(|| format!("{name}={digits}"))
}

/// Where the processor wakes: real mode, sixteen bytes below 4 GiB, over a pipe.
fn reset_vector(rig: &Rig) -> Result<Outcome> {
    let connect = format!("target remote | {} -S -gdb stdio", rig.emulator.display());
    let said = gdb(
        rig,
        &connect,
        &[
            r#"printf "ip=%lx cs=%x base=%lx cr0=%lx\n", (long)$rip, $cs, $cs_base, $cr0"#,
            r#"printf "first byte %x\n", *(unsigned char *)0xfffffff0"#,
            "stepi",
            r#"printf "ip=%lx base=%lx\n", (long)$rip, $cs_base"#,
            "set $rax = 0x1234",
            r#"printf "rax=%lx\n", $rax"#,
            // A linear address that is no offset of CS.
            "hbreak *0xf0002",
            "continue",
            r#"printf "ip=%lx linear=%lx\n", (long)$rip, $cs_base + (long)$rip"#,
            "monitor reset",
            "flushregs",
            r#"printf "again=%lx\n", (long)$rip"#,
            "kill",
        ],
    )?;
    check(
        &said,
        &[
            "ip=fff0 cs=f000 base=ffff0000 cr0=60000010",
            "first byte ea",
            "ip=0 base=f0000",
            "rax=1234",
            "ip=2 linear=f0002",
            "again=fff0",
        ],
    )?;
    Ok(Outcome::Passed(String::new()))
}

/// The cloud guest's files, or why they cannot be had.
fn files(rig: &Rig) -> Result<std::result::Result<Files, Outcome>> {
    let guest = guests::named("cloud").context("the table of guests has no cloud guest")?;
    match guest.obtain(&rig.target) {
        Ok(files) => Ok(Ok(files)),
        Err(PackageError::Unavailable(reason)) => Ok(Err(Outcome::Skipped(reason))),
        Err(PackageError::Broken(error)) => Err(error),
    }
}

/// Unpacks [`files`]' answer or leaves the test as skipped.
macro_rules! files_or_skip {
    ($rig:expr) => {
        match files($rig)? {
            Ok(files) => files,
            Err(skipped) => return Ok(skipped),
        }
    };
}

/// A guest that gdb can call, with these options more.
fn start(rig: &Rig, files: &Files, socket: &Socket, options: &[&str]) -> Result<Console> {
    let mut command = files.command(&rig.emulator, "console=ttyS0 nokaslr");
    command.args(["-gdb", &socket.option()]).args(options);
    let console = Console::spawn(command)?;
    // It is there when it has said nothing that makes sense and left again.
    socket.call()?;
    Ok(console)
}

/// The kernel's way from 32-bit to 64-bit code: one register file throughout.
fn long_mode(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig);
    let socket = Socket::new();
    let mut console = start(rig, &files, &socket, &["-S"])?;
    let said = gdb(
        rig,
        &socket.command(),
        &[
            r#"printf "at=%lx efer=%lx protected=%d\n", (long)$rip, $efer, $cr0 & 1"#,
            "stepi",
            // The 64-bit entry is 0x200 behind the 32-bit one (boot protocol 2.12).
            "hbreak *0x1000200",
            "continue",
            r#"printf "at=%lx efer=%lx paging=%d\n", (long)$rip, $efer, $cr0 < 0 || ($cr0 & 0x80000000) != 0"#,
            "stepi 3",
            "set $r15 = 0x1122334455667788",
            r#"printf "r15=%lx\n", $r15"#,
            "kill",
        ],
    )?;
    check(&said, &["at=1000000 efer=0 protected=1", "at=1000200 efer=500 paging=1", "r15=1122334455667788"])?;
    let status = console.wait(ANSWER)?;
    ensure!(status.success(), "the emulator ended with {status}{}", console.tail());
    Ok(Outcome::Passed(String::new()))
}

/// `start_kernel`, and a watchpoint on `jiffies`. The kernel itself says where they are.
fn kernel(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig);
    let mut console = Console::spawn(files.command(&rig.emulator, "console=ttyS0 nokaslr"))?;
    console.expect(PROMPT, BOOT)?;
    console.send("grep -E ' (start_kernel|jiffies)$' /proc/kallsyms; echo e''nd\n")?;
    console.expect("\nend", ANSWER)?;
    let text = console.text();
    let symbol = |name: &str| -> Result<&str> {
        let line = text.lines().map(str::trim).find(|line| line.ends_with(&format!(" {name}")));
        line.and_then(|line| line.split(' ').next()).with_context(|| format!("no {name} in /proc/kallsyms"))
    };
    let (start_kernel, jiffies) = (symbol("start_kernel")?, symbol("jiffies")?);
    drop(console);

    let socket = Socket::new();
    let mut console = start(rig, &files, &socket, &["-S"])?;
    let said = gdb(
        rig,
        &socket.command(),
        &[
            &format!("hbreak *0x{start_kernel}"),
            "continue",
            r#"printf "start_kernel=%lx\n", (long)$rip"#,
            &format!("monitor translate 0x{start_kernel}"),
            "delete",
            &format!("watch *(unsigned long *)0x{jiffies}"),
            "continue",
            &format!(r#"printf "first=%lx\n", *(unsigned long *)0x{jiffies}"#),
            "continue",
            &format!(r#"printf "second=%lx\n", *(unsigned long *)0x{jiffies}"#),
            "delete",
            "monitor registers",
            "detach",
        ],
    )?;
    check(&said, &[&format!("start_kernel={start_kernel}")])?;
    ensure!(said.contains("in a page of"), "no page walk:\n{said}");
    ensure!(said.contains("CR3="), "monitor registers shows none:\n{said}");
    let (first, second) = (value(&said, "first")?, value(&said, "second")?);
    ensure!(second > first, "jiffies went from {first:#x} to {second:#x}\n{said}");
    // It goes on when the debugger has gone.
    console.expect(PROMPT, BOOT).context("after gdb has gone")?;
    console.send("poweroff -f\n")?;
    let status = console.wait(ANSWER)?;
    ensure!(status.success(), "the emulator ended with {status}{}", console.tail());
    Ok(Outcome::Passed(format!("jiffies {first:#x}, then {second:#x}")))
}

/// Where [`PROGRAM`] is loaded.
const LOAD: u64 = 0x40_0000;
/// The pattern that it puts into vector registers.
const PATTERN: u64 = 0x1122_3344_5566_7788;

/// An ELF file (gABI, chapters 4 and 5) whose code fills vector registers and counts in RBX for ever; the address of the
/// loop.
fn program() -> (Vec<u8>, u64) {
    let mut code = vec![0x48, 0xb8]; // mov rax, PATTERN
    code.extend_from_slice(&PATTERN.to_le_bytes());
    code.extend_from_slice(&[0x66, 0x48, 0x0f, 0x6e, 0xc8]); // movq xmm1, rax
    code.extend_from_slice(&[0x66, 0x0f, 0x6c, 0xc9]); // punpcklqdq xmm1, xmm1
    code.extend_from_slice(&[0xc4, 0xe3, 0x75, 0x18, 0xc9, 0x01]); // vinsertf128 ymm1, ymm1, xmm1, 1
    code.extend_from_slice(&[0xd9, 0xe8]); // fld1
    let loop_at = code.len() as u64;
    code.extend_from_slice(&[0x48, 0xff, 0xc3, 0xeb, 0xfb]); // again: inc rbx; jmp again
    let headers = 64 + 56;
    let size = headers + code.len() as u64;
    let entry = LOAD + headers;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    for word in [entry, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]); // loaded, readable and executable
    for word in [0, LOAD, LOAD, size, size, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&code);
    (file, entry + loop_at)
}

/// A program in user mode: a breakpoint, its vector registers, detaching, and coming back.
fn user_program(rig: &Rig) -> Result<Outcome> {
    let mut files = files_or_skip!(rig);
    let (elf, again) = program();
    let file = rig.target.join(format!("gdb-program-{}", std::process::id()));
    files.initrd = file.with_extension("cpio");
    std::fs::write(&file, elf)?;
    initramfs::write_program(&files.initrd, &file)?;
    std::fs::remove_file(&file)?;
    let socket = Socket::new();
    let outcome =
        start(rig, &files, &socket, &["-S"]).and_then(|console| look_at(rig, console, &socket, again));
    std::fs::remove_file(&files.initrd)?;
    outcome
}

fn look_at(rig: &Rig, mut console: Console, socket: &Socket, again: u64) -> Result<Outcome> {
    let said = gdb(
        rig,
        &socket.command(),
        &[
            &format!("break *{again:#x}"),
            "continue",
            r#"printf "at=%lx cpl=%d\n", (long)$rip, $cs & 3"#,
            r#"printf "xmm=%lx %lx\n", $xmm1.v2_int64[0], $xmm1.v2_int64[1]"#,
            r#"printf "ymm=%lx\n", $ymm1.v4_int64[3]"#,
            r#"printf "st0=%g\n", $st0"#,
            "set $rbx = 100",
            "set $xmm2.v2_int64[1] = 7",
            "continue",
            r#"printf "rbx=%lx\n", $rbx"#,
            "delete",
            // So many steps take longer than the timer's period, and none leads into its handler.
            "stepi 2000",
            r#"printf "rbx=%lx xmm2=%lx ip=%lx\n", $rbx, $xmm2.v2_int64[1], (long)$rip"#,
            r#"printf "code=%x\n", *(unsigned char *)$rip"#,
            "detach",
        ],
    )?;
    check(
        &said,
        &[
            &format!("at={again:x} cpl=3"),
            &format!("xmm={PATTERN:x} {PATTERN:x}"),
            &format!("ymm={PATTERN:x}"),
            "st0=1",
            "rbx=65",
            &format!("rbx=44d xmm2=7 ip={again:x}"),
            "code=48",
        ],
    )?;
    std::thread::sleep(Duration::from_millis(200));
    // The kernel may be at work just now, with RBX its own.
    let back = format!("break *{again:#x}");
    let said = gdb(rig, &socket.command(), &[&back, "continue", r#"printf "rbx=%lx\n", $rbx"#, "kill"])?;
    let rbx = value(&said, "rbx")?;
    ensure!(rbx > 1000, "the program has not gone on: rbx is {rbx}\n{said}");
    let status = console.wait(ANSWER)?;
    ensure!(status.success(), "the emulator ended with {status}{}", console.tail());
    Ok(Outcome::Passed(format!("{rbx} rounds after gdb had gone")))
}

/// Steps that take interrupts, once that is asked for, and the processor's halt.
fn stepping(rig: &Rig) -> Result<Outcome> {
    let mut files = files_or_skip!(rig);
    let (elf, again) = program();
    let file = rig.target.join(format!("gdb-stepping-{}", std::process::id()));
    files.initrd = file.with_extension("cpio");
    std::fs::write(&file, elf)?;
    initramfs::write_program(&files.initrd, &file)?;
    std::fs::remove_file(&file)?;
    let socket = Socket::new();
    let outcome = start(rig, &files, &socket, &["-S"]).and_then(|_console| {
        let said = gdb(
            rig,
            &socket.command(),
            &[
                &format!("break *{again:#x}"),
                "continue",
                "delete",
                "maintenance packet qqemu.sstepbits",
                "maintenance packet Qqemu.sstep=0x1",
                // Until the timer's handler.
                "while ($cs & 3) == 3",
                "stepi",
                "end",
                r#"printf "cpl=%d\n", $cs & 3"#,
                "maintenance packet Qqemu.sstep=0x7",
                &format!("break *{again:#x}"),
                "continue",
                r#"printf "at=%lx\n", (long)$rip"#,
                "kill",
            ],
        )?;
        check(&said, &["received: \"ENABLE=1,NOIRQ=2,NOTIMER=4\"", "cpl=0", &format!("at={again:x}")])
    });
    std::fs::remove_file(&files.initrd)?;
    outcome.map(|()| Outcome::Passed(String::new()))
}

/// A second gdb is told that it is one too many; the first stays, and the next has its turn.
fn two_debuggers(rig: &Rig) -> Result<Outcome> {
    let socket = Socket::new();
    let mut command = Command::new(&rig.emulator);
    command.args(["-display", "none", "-serial", "null", "-S", "-gdb", &socket.option()]);
    let mut console = Console::spawn(command)?;
    let mut first = Client::attach(&socket)?;
    let Err(error) = gdb(rig, &socket.command(), &["info registers rip"]) else {
        bail!("a second gdb is served");
    };
    let said = format!("{error:#}");
    ensure!(said.contains("another debugger is connected"), "the second is not told: {said}");
    let step = first.exchange("vCont;s:1;c")?;
    ensure!(step.starts_with("T05"), "the first is answered by {step}");
    // One who calls and says nothing, and then one who means it.
    drop(first);
    let silent = socket.call()?;
    let said = gdb(rig, &socket.command(), &[r#"printf "served=%d\n", $cr0 != 0"#, "kill"])?;
    check(&said, &["served=1"])?;
    drop(silent);
    let status = console.wait(ANSWER)?;
    ensure!(status.success(), "the emulator ended with {status}{}", console.tail());
    Ok(Outcome::Passed(String::new()))
}

/// Registers, breakpoints, steps, memory and detaching under KVM, with the board's interrupt controllers and KVM's.
fn kvm(rig: &Rig) -> Result<Outcome> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Ok(Outcome::Skipped(format!("/dev/kvm: {error}")));
    }
    for accelerator in ["kvm", "kvm,kernel-irqchip=split", "kvm,kernel-irqchip=on"] {
        let socket = Socket::new();
        let mut command = Command::new(&rig.emulator);
        command.args(["-accel", accelerator, "-display", "none", "-serial", "stdio", "-S"]);
        command.args(["-gdb", &socket.option()]);
        let mut console = Console::spawn(command)?;
        socket.call()?;
        let said = gdb(
            rig,
            &socket.command(),
            &[
                r#"printf "ip=%lx cs=%x base=%lx cr0=%lx\n", (long)$rip, $cs, $cs_base, $cr0"#,
                r#"printf "first byte %x\n", *(unsigned char *)0xfffffff0"#,
                "stepi",
                r#"printf "ip=%lx base=%lx\n", (long)$rip, $cs_base"#,
                "set $r9 = 0x1234",
                "set $xmm3.v2_int64[1] = 99",
                "set $dr0 = 0x4321",
                "set *(int *)0x7000 = 0x55aa55aa",
                // A linear address that is no offset of CS.
                "hbreak *0xf0002",
                "continue",
                r#"printf "ip=%lx linear=%lx r9=%lx\n", (long)$rip, $cs_base + (long)$rip, $r9"#,
                r#"printf "xmm3=%ld dr0=%lx memory=%x\n", $xmm3.v2_int64[1], $dr0, *(int *)0x7000"#,
                // From a breakpoint on.
                "stepi",
                r#"printf "step=%lx\n", (long)$rip"#,
                "monitor translate 0x7000",
                "monitor registers",
                "monitor reset",
                "flushregs",
                "continue",
                r#"printf "again=%lx\n", (long)$rip"#,
                "detach",
            ],
        )
        .with_context(|| format!("under -accel {accelerator}"))?;
        check(
            &said,
            &[
                "ip=fff0 cs=f000 base=ffff0000 cr0=60000010",
                "first byte ea",
                "ip=0 base=f0000",
                "ip=2 linear=f0002 r9=1234",
                "xmm3=99 dr0=4321 memory=55aa55aa",
                "step=4",
                "0x7000 is at physical 0x7000, in a page of 4 KiB",
                "again=2",
            ],
        )
        .with_context(|| format!("under -accel {accelerator}"))?;
        ensure!(said.contains("CR0=60000010"), "monitor registers shows no CR0:\n{said}");
        // The guest goes on: its self-test comes to its end.
        console.expect("speed: ", BOOT).with_context(|| format!("after gdb has gone, {accelerator}"))?;
        console.signal(rustix::process::Signal::TERM)?;
        console.wait(ANSWER)?;
    }
    Ok(Outcome::Passed("without watchpoints, which a KVM in software takes and never sees".into()))
}

/// How many steps a second go over a socket. The figure is shown; that it is no crawl is checked.
fn steps(rig: &Rig) -> Result<Outcome> {
    let socket = Socket::new();
    let mut command = Command::new(&rig.emulator);
    command.args(["-display", "none", "-serial", "null", "-S", "-gdb", &socket.option()]);
    let mut console = Console::spawn(command)?;
    let mut client = Client::attach(&socket)?;
    let started = Instant::now();
    for _ in 0..STEPS {
        let answer = client.exchange("vCont;s:1;c")?;
        ensure!(answer.starts_with("T05"), "a step is answered by {answer}");
    }
    let rate = f64::from(STEPS) / started.elapsed().as_secs_f64();
    client.send("k")?;
    let status = console.wait(ANSWER)?;
    ensure!(status.success(), "the emulator ended with {status}{}", console.tail());
    ensure!(rate > SLOWEST, "only {rate:.0} steps a second");
    Ok(Outcome::Passed(format!("{rate:.0} steps a second")))
}

/// Sends bytes and leaves.
fn intrude(socket: &Path, bytes: &[u8], listens: bool) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    // It may hang up on us.
    let _ = stream.write_all(bytes);
    if listens {
        let _ = stream.read(&mut [0; 4096]);
    }
    Ok(())
}

/// What is not the protocol, and callers who go at any moment, neither stop the guest nor end the emulator.
fn robustness(rig: &Rig) -> Result<Outcome> {
    let files = files_or_skip!(rig);
    let socket = Socket::new();
    let mut console = start(rig, &files, &socket, &[])?;
    console.expect(PROMPT, BOOT)?;
    let bodies = ["qSupported:swbreak+", "?", "g", "Z0,ffffffff81000000,1", "m0,10", "vCont;s:1;c", "c"];
    let mut session: Vec<u8> = bodies.iter().flat_map(|body| packet(body)).collect();
    session.push(3);
    session.extend(packet("D"));
    let mut intrusions = 0;
    let mut answers = 0;
    let mut ask = |console: &mut Console| -> Result<()> {
        answers += 1;
        console.send(&format!("echo {answers}$((6 * 7))\n"))?;
        console.expect(&format!("\n{answers}42"), ANSWER).context("the guest does not answer")
    };
    for listens in [false, true] {
        // A whole session, cut off after each of its bytes.
        for cut in 0..=session.len() {
            intrude(&socket.0, &session[..cut], listens)?;
            intrusions += 1;
        }
        ask(&mut console)?;
    }
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |count: usize| -> Vec<u8> {
        let mut byte = || {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            // Often what has a meaning.
            let known = b"$#+-\x03}*mMgGpPXZzcsHTq?v,:;0123456789abcdef\0\xff".get(noise as usize % 64);
            known.copied().unwrap_or((noise >> 8) as u8)
        };
        (0..count).map(|_| byte()).collect()
    };
    for round in 0..50 {
        let mut bytes = random(400);
        // A packet whose sum is right but which means to end the emulator is no nonsense.
        bytes.retain(|byte| *byte != b'k');
        intrude(&socket.0, &bytes, round % 2 == 0)?;
        intrusions += 1;
    }
    intrude(&socket.0, &vec![b'$'; 1 << 20], false)?;
    intrude(&socket.0, &[b"$".to_vec(), vec![b'a'; 1 << 20]].concat(), false)?;
    ask(&mut console)?;
    // gdb itself still gets its turn.
    let said = gdb(rig, &socket.command(), &[r#"printf "paging=%d\n", ($cr0 & 0x80000000) != 0"#, "detach"])?;
    check(&said, &["paging=1"])?;
    ask(&mut console)?;
    console.send("poweroff -f\n")?;
    let status = console.wait(ANSWER)?;
    ensure!(status.success(), "the emulator ended with {status}{}", console.tail());
    Ok(Outcome::Passed(format!("{intrusions} broken sessions")))
}
