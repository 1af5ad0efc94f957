//! The command line: QEMU's options, read and checked before anything is started.
//!
//! Three steps. [`tokenise`] tells options from their values as QEMU does (one dash or two, the value is
//! always the next word, whatever it looks like) and sorts out what Tessera has, what only QEMU has, and what
//! nobody has. clap, with the definitions in [`options`], assigns them. [`values`] says what each value
//! means.
//!
//! Every mistake is one sentence that names the option, the value and the way out.

mod options;
mod qemu_options;
mod values;

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};
use tessera_firmware::MachineKind;
use tessera_x86::cpuid;

use crate::backends::chardev::{CharSpec, DEFAULT_ESCAPE};
use crate::debug::gdb::GdbSpec;
use crate::debug::log;
pub use values::IrqChip;
pub use values::{Accel, DebugExit, Tcg};

/// The most serial ports a PC has.
const MAX_SERIAL: usize = 4;

/// A mistake on the command line: one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// What the user wants.
#[derive(Debug)]
pub enum Invocation {
    /// Run a machine.
    Run(Box<Config>),
    /// Print this text and end: help, version, a list.
    Print(String),
}

/// A machine to run, and how. Everything in it is checked as far as it can be without opening anything.
#[derive(Debug)]
pub struct Config {
    /// The guest's name, for messages.
    pub name: Option<String>,
    /// The board.
    pub machine: MachineKind,
    /// Guest memory in bytes, a multiple of 4096.
    pub ram: u64,
    /// The processor: the text of `-cpu`, if given.
    pub cpu: Option<String>,
    /// The machine's UUID.
    pub uuid: Option<[u8; 16]>,
    /// The accelerators in order of preference; at least one.
    pub accels: Vec<Accel>,
    /// The kernel; without one the embedded firmware runs.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: OsString,
    /// The serial ports; `None` for one that does not exist.
    pub serial: Vec<Option<CharSpec>>,
    /// The debug console.
    pub debugcon: Option<CharSpec>,
    /// The exit device.
    pub debug_exit: Option<DebugExit>,
    /// The character that starts a command on the terminal.
    pub escape: u8,
    /// A reset by the guest ends the emulator.
    pub no_reboot: bool,
    /// A power-off by the guest does not end the emulator.
    pub no_shutdown: bool,
    /// Where debuggers call.
    pub gdb: Option<GdbSpec>,
    /// The guest does not start before a debugger says so.
    pub stopped: bool,
    /// What is logged, and where to.
    pub log: LogConfig,
}

/// `-d`, `-D` and `-dfilter`.
#[derive(Debug, Default)]
pub struct LogConfig {
    /// The items to log.
    pub items: Vec<log::Item>,
    /// Where to, if not to standard error.
    pub file: Option<PathBuf>,
    /// The guest addresses to log about; none for all.
    pub ranges: Vec<RangeInclusive<u64>>,
}

/// Reads the command line; `arguments` are without the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
    let command = options::Options::command();
    let tokens = tokenise(&command, arguments)?;
    let matches = command
        .clone()
        .no_binary_name(true)
        .try_get_matches_from(tokens)
        .map_err(|error| UsageError(one_sentence(&error.to_string())))?;
    let options = options::Options::from_arg_matches(&matches)
        .map_err(|error| UsageError(one_sentence(&error.to_string())))?;
    if let Some(text) = text_asked_for(&options, command) {
        return Ok(Invocation::Print(text));
    }
    configure(options).map(|config| Invocation::Run(Box::new(config)))
}

/// Turns QEMU's notation into clap's: `-m 512` into `--m=512`.
fn tokenise(
    command: &clap::Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Vec<OsString>, UsageError> {
    let mut tokens = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let shown = argument.to_string_lossy().into_owned();
        let Some(name) =
            shown.strip_prefix("--").or_else(|| shown.strip_prefix('-')).filter(|name| !name.is_empty())
        else {
            return Err(UsageError(format!(
                "{shown}: a disk image without an option is not supported by Tessera yet; give a kernel with -kernel"
            )));
        };
        let has_name = |option: &&clap::Arg| {
            option.get_long() == Some(name)
                || option.get_all_aliases().is_some_and(|others| others.contains(&name))
        };
        let Some(option) = command.get_arguments().find(has_name) else {
            return Err(UsageError(if qemu_options::is_known(name) {
                format!("QEMU's option -{name} is not supported by Tessera yet; -help lists those that are")
            } else {
                format!("{shown}: there is no such option; -help lists those there are")
            }));
        };
        let mut token = OsString::from("--");
        token.push(name);
        if option.get_action().takes_values() {
            let Some(value) = arguments.next() else {
                let example =
                    option.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
                return Err(UsageError(format!("-{name} needs a value; give it as -{name} {example}")));
            };
            token.push("=");
            token.push(value);
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// clap's message without its second paragraph, in case it finds what the steps before did not.
fn one_sentence(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    format!("{}; -help lists the options", first.strip_prefix("error: ").unwrap_or(first))
}

fn text_asked_for(options: &options::Options, mut command: clap::Command) -> Option<String> {
    let asked = |value: &Option<String>| value.as_deref().is_some_and(values::asks_for_help);
    if options.help {
        // clap writes two dashes; QEMU's users expect one.
        Some(command.render_help().to_string().replace(" --", " -"))
    } else if options.version {
        Some(format!("Tessera {}\n", env!("CARGO_PKG_VERSION")))
    } else if asked(&options.machine) {
        Some("Machines:\n  pc   i440FX PC (default)\n  q35  ICH9 PC\n".into())
    } else if options.accel.iter().any(|accel| values::asks_for_help(accel)) {
        Some(
            "Accelerators:\n  tcg  the translator (default)\n  kvm  the host's processor, by Linux's KVM\n"
                .into(),
        )
    } else if asked(&options.cpu) {
        Some(cpuid::list())
    } else if options.device.iter().any(|device| values::asks_for_help(device)) {
        Some("Devices:\n  isa-debug-exit  iobase=PORT (0x501), iosize=N (2): a write of V ends with status 2V+1\n".into())
    } else if options.d.iter().any(|items| values::asks_for_help(items)) {
        Some(log::help())
    } else {
        None
    }
}

fn configure(options: options::Options) -> Result<Config, UsageError> {
    let machine = options.machine.as_deref().map(values::machine).transpose()?;
    let mut accels: Vec<_> =
        options.accel.iter().map(|value| values::accel(value)).collect::<Result<_, _>>()?;
    if options.enable_kvm && !accels.iter().any(|accel| matches!(accel, Accel::Kvm(_))) {
        accels.push(Accel::Kvm(None));
    }
    options.smp.as_deref().map_or(Ok(()), values::smp)?;
    for (option, given) in
        [("-vga", &options.vga), ("-display", &options.display), ("-monitor", &options.monitor)]
    {
        given.as_deref().map_or(Ok(()), |value| values::only_none(option, value))?;
    }
    for (option, given) in [("-net", &options.net), ("-nic", &options.nic), ("-parallel", &options.parallel)]
    {
        given.iter().try_for_each(|value| values::only_none(option, value))?;
    }
    let mut debug_exit = None;
    for device in &options.device {
        if debug_exit.replace(values::device(device)?).is_some() {
            return Err(UsageError(format!("-device {device}: there is one already; give it once")));
        }
    }
    let kernel = path("-kernel", options.kernel.clone())?;
    if kernel.is_none() {
        for (option, given) in [("-initrd", &options.initrd), ("-append", &options.append)] {
            if let Some(value) = given {
                return Err(UsageError(format!(
                    "{option} {}: it is for a kernel, and none is given; add -kernel FILE",
                    value.to_string_lossy()
                )));
            }
        }
    }
    let mut items = Vec::new();
    for list in &options.d {
        items.extend(log::parse_items(list)?);
    }
    let mut ranges = Vec::new();
    for list in &options.dfilter {
        ranges.extend(values::address_ranges(list)?);
    }
    let escape = options.echr.as_deref().map_or(Ok(DEFAULT_ESCAPE), values::escape_character)?;
    let gdb = match &options.gdb {
        Some(value) => GdbSpec::parse(value)?,
        None => options.s.then(GdbSpec::short),
    };
    let serial = serial_ports(&options, gdb == Some(GdbSpec::Stdio))?;
    let debugcon =
        options.debugcon.as_deref().map(|value| CharSpec::parse("-debugcon", value)).transpose()?;
    let debugcon = debugcon.flatten();
    let on_terminal =
        serial.iter().flatten().chain(&debugcon).filter(|spec| matches!(spec, CharSpec::Stdio { .. }));
    let on_terminal = on_terminal.count();
    if gdb == Some(GdbSpec::Stdio) && on_terminal > 0 {
        return Err(UsageError(
            "-gdb stdio: a serial port is there already; give that file:, pty, unix:, tcp: or null".into(),
        ));
    }
    if on_terminal > 1 {
        return Err(UsageError(
            "-serial stdio: the terminal can serve one port only; give the others file:, pty, unix:, tcp: or null".into(),
        ));
    }
    Ok(Config {
        name: options.name.as_deref().map(values::name).transpose()?,
        machine: machine.as_ref().map_or(MachineKind::Pc, |machine| machine.kind),
        ram: options.m.as_deref().map_or(Ok(values::DEFAULT_RAM), values::memory)?,
        cpu: options.cpu,
        uuid: options.uuid.as_deref().map(values::uuid).transpose()?,
        accels: preference(accels, machine.unwrap_or_default()),
        kernel,
        initrd: path("-initrd", options.initrd)?,
        append: options.append.unwrap_or_default(),
        serial,
        debugcon,
        debug_exit,
        escape,
        no_reboot: options.no_reboot,
        no_shutdown: options.no_shutdown,
        gdb,
        stopped: options.stopped,
        log: LogConfig { items, file: path("-D", options.log_file)?, ranges },
    })
}

/// `-accel` counts before what `-machine` says; without either it is the translator.
fn preference(given: Vec<Accel>, machine: values::Machine) -> Vec<Accel> {
    let mut accels = [given, machine.accels]
        .into_iter()
        .find(|list| !list.is_empty())
        .unwrap_or_else(|| vec![Accel::default()]);
    for accel in &mut accels {
        if let Accel::Kvm(chip) = accel {
            *chip = chip.or(machine.irqchip);
        }
    }
    accels
}

fn path(option: &str, value: Option<OsString>) -> Result<Option<PathBuf>, UsageError> {
    match value {
        Some(value) if value.is_empty() => {
            Err(UsageError(format!("{option}: the file's name is empty; give one")))
        }
        value => Ok(value.map(PathBuf::from)),
    }
}

/// The serial ports: those that were named, or by default the first one on the terminal, shared with the
/// terminal's commands unless `-monitor none` takes these away, or nowhere if the terminal is `taken`.
fn serial_ports(options: &options::Options, taken: bool) -> Result<Vec<Option<CharSpec>>, UsageError> {
    // Without a display, Ctrl-C belongs to the guest; with -display none and -serial stdio it ends the
    // emulator.
    let signals = options.display.is_some() && !options.nographic;
    let mut ports = Vec::new();
    for value in &options.serial {
        let mut spec = CharSpec::parse("-serial", value)?;
        if let Some(CharSpec::Stdio { commands: false, signals: wanted }) = &mut spec {
            *wanted = signals;
        }
        ports.push(spec);
    }
    if ports.len() > MAX_SERIAL {
        let last =
            options.serial.last().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
        return Err(UsageError(format!(
            "-serial {last}: a PC has {MAX_SERIAL} serial ports; leave out the others"
        )));
    }
    if ports.is_empty() && !options.nodefaults {
        ports.push(if signals || taken {
            Some(CharSpec::Null)
        } else {
            Some(CharSpec::Stdio { commands: options.monitor.is_none(), signals: false })
        });
    }
    Ok(ports)
}

/// A path or text as it is shown in messages.
pub fn shown(value: impl AsRef<OsStr>) -> String {
    value.as_ref().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Config, UsageError> {
        match parse(line.split_whitespace().map(OsString::from))? {
            Invocation::Run(config) => Ok(*config),
            Invocation::Print(text) => panic!("{line} prints {text}"),
        }
    }

    fn print(line: &str) -> String {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Invocation::Print(text)) => text,
            other => panic!("{line} gives {other:?}"),
        }
    }

    #[test]
    fn qemus_line_for_a_kernel() {
        let config =
            run("-m 512 -nographic --no-reboot -kernel vmlinuz -initrd initrd.gz -append -console=ttyS0")
                .unwrap();
        assert_eq!(config.ram, 512 << 20);
        assert_eq!(config.kernel, Some(PathBuf::from("vmlinuz")));
        assert_eq!(config.initrd, Some(PathBuf::from("initrd.gz")));
        assert_eq!(config.append, "-console=ttyS0", "a value may start with a dash");
        assert_eq!(config.serial, [Some(CharSpec::Stdio { commands: true, signals: false })]);
        assert!(config.no_reboot && !config.no_shutdown);
    }

    #[test]
    fn the_last_of_several_counts() {
        let config = run("-m 64 -machine q35 -no-reboot -M pc -m 1G -no-reboot").unwrap();
        assert_eq!((config.ram, config.machine), (1 << 30, MachineKind::Pc));
    }

    #[test]
    fn where_the_serial_ports_go() {
        let stdio = |commands, signals| Some(CharSpec::Stdio { commands, signals });
        assert_eq!(run("").unwrap().serial, [stdio(true, false)]);
        assert_eq!(run("-display none").unwrap().serial, [Some(CharSpec::Null)]);
        assert_eq!(run("-display none -serial stdio").unwrap().serial, [stdio(false, true)]);
        assert_eq!(run("-display none -serial mon:stdio").unwrap().serial, [stdio(true, false)]);
        assert_eq!(run("-nographic -serial stdio").unwrap().serial, [stdio(false, false)]);
        assert_eq!(run("-nographic -monitor none").unwrap().serial, [stdio(false, false)]);
        assert_eq!(run("-nodefaults").unwrap().serial, []);
        assert_eq!(run("-serial none -serial null").unwrap().serial, [None, Some(CharSpec::Null)]);
        assert!(run("-serial stdio -debugcon stdio").is_err());
        assert!(run("-serial null -serial null -serial null -serial null -serial null").is_err());
    }

    #[test]
    fn accelerators_in_order_of_preference() {
        let accels = |line| run(line).unwrap().accels;
        let (tcg, kvm) = (Accel::default(), |chip| Accel::Kvm(chip));
        assert_eq!(accels(""), [tcg]);
        assert_eq!(accels("-enable-kvm"), [kvm(None)]);
        assert_eq!(accels("-enable-kvm -accel kvm,kernel-irqchip=on"), [kvm(Some(IrqChip::On))]);
        assert_eq!(accels("-accel kvm -accel tcg"), [kvm(None), tcg]);
        assert_eq!(accels("-machine q35,accel=kvm:tcg,kernel-irqchip=on"), [kvm(Some(IrqChip::On)), tcg]);
        assert_eq!(accels("-accel kvm -machine kernel_irqchip=split"), [kvm(Some(IrqChip::Split))]);
        // What is nearer counts.
        let line = "-machine kernel-irqchip=split -accel kvm,kernel-irqchip=off";
        assert_eq!(accels(line), [kvm(Some(IrqChip::Off))]);
        assert!(run("-machine kernel-irqchip=maybe").is_err());
    }

    #[test]
    fn where_debuggers_call() {
        assert_eq!(run("").unwrap().gdb, None);
        assert_eq!(run("-s").unwrap().gdb, GdbSpec::parse("tcp:127.0.0.1:1234").unwrap());
        let config = run("-S -gdb tcp::99 -m 64").unwrap();
        assert!(config.stopped);
        assert_eq!(config.gdb, GdbSpec::parse("tcp::99").unwrap());
        assert_eq!(run("-gdb stdio").unwrap().serial, [Some(CharSpec::Null)]);
        assert!(run("-gdb stdio -serial stdio").is_err());
        assert!(run("-gdb fish").is_err());
    }

    #[test]
    fn what_cannot_be_had_is_told() {
        for (line, parts) in [
            ("-drive file=x", ["-drive", "not supported by Tessera yet"]),
            ("--daemonize", ["-daemonize", "not supported by Tessera yet"]),
            ("-fish", ["-fish", "no such option"]),
            ("disk.img", ["disk.img", "not supported by Tessera yet"]),
            ("-", ["-", "not supported by Tessera yet"]),
            ("-kernel", ["-kernel", "needs a value"]),
            ("-initrd x", ["-initrd x", "-kernel"]),
            ("-device rtl8139", ["rtl8139", "-device help"]),
            ("-nic user", ["-nic user", "none"]),
            ("-display gtk", ["-display gtk", "none"]),
            ("-monitor stdio", ["-monitor stdio", "none"]),
            ("-d in_asm,fish", ["fish", "-d help"]),
            ("-d in_asm,plugin", ["plugin", "not supported by Tessera yet"]),
            ("-device isa-debug-exit -device isa-debug-exit", ["-device isa-debug-exit", "once"]),
        ] {
            let message = run(line).expect_err(line).to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{line}: {message}");
            assert!(!message.contains('\n'), "{line}: {message}");
        }
    }

    #[test]
    fn what_is_only_printed() {
        assert!(print("-version").starts_with("Tessera "));
        for line in ["-help", "-h", "--help", "-m 12 -help"] {
            let help = print(line);
            assert!(help.contains("-kernel <FILE>") && !help.contains("--kernel"), "{help}");
        }
        assert!(print("-machine help").contains("q35"));
        assert!(print("-d help").contains("in_asm"));
        assert!(print("-cpu help").contains("CPU models"));
        assert!(print("-accel ?").contains("tcg"));
        assert!(print("-device help").contains("isa-debug-exit"));
    }

    #[test]
    fn definitions_are_consistent() {
        options::Options::command().debug_assert();
        for option in options::Options::command().get_arguments() {
            let name = option.get_long().unwrap();
            assert!(qemu_options::is_known(name), "QEMU has no option -{name}");
        }
    }
}
