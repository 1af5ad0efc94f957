//! What the values of options mean.
//!
//! Each function takes a value as it was typed and returns its meaning, or an error whose message is one
//! sentence that names the option, the value and the way out.

use std::ops::RangeInclusive;

use tessera_firmware::MachineKind;
use tessera_tcg::opt::OptFlags;

use super::UsageError;

/// Guest memory without `-m`, in bytes; QEMU's default, too.
pub const DEFAULT_RAM: u64 = 128 << 20;
/// The least guest memory: what firmware, its tables and a first program need.
pub const MIN_RAM: u64 = 2 << 20;
/// The most guest memory. Physical addresses have 40 bits, and 1 GiB at least of them is no RAM.
pub const MAX_RAM: u64 = (1 << 40) - (1 << 30);

/// Bounds on the translator's code cache, in MiB.
const CODE_CACHE_MIB: RangeInclusive<u64> = 8..=2048;

/// The board, and the accelerator if it was named there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The board.
    pub kind: MachineKind,
    /// The value of `accel=`: in order of preference.
    pub accels: Vec<Accel>,
    /// The value of `kernel-irqchip=`.
    pub irqchip: Option<IrqChip>,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { kind: MachineKind::Pc, accels: Vec::new(), irqchip: None }
    }
}

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The translator.
    Tcg(Tcg),
    /// The host's processor, by Linux's KVM, with the interrupt controllers that were asked for.
    Kvm(Option<IrqChip>),
}

/// Who has the interrupt controllers under KVM: `kernel-irqchip=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IrqChip {
    /// The board, as under the translator.
    #[default]
    Off,
    /// KVM.
    On,
    /// KVM the local APIC, the board the others.
    Split,
}

/// What the user set of the translator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcg {
    /// The bound on the code cache in bytes.
    pub code_cache: Option<u64>,
    /// One guest instruction a block.
    pub one_insn: bool,
    /// Which optimisations to do; all by default.
    pub opt: Option<OptFlags>,
    /// How many samples make a block hot, whose path becomes a trace.
    pub hot: Option<u8>,
}

impl Default for Accel {
    fn default() -> Self {
        Accel::Tcg(Tcg::default())
    }
}

impl Accel {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Accel::Tcg(_) => "tcg",
            Accel::Kvm(_) => "kvm",
        }
    }
}

/// The device that ends the emulator with an exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExit {
    /// Its first I/O port.
    pub iobase: u16,
    /// How many ports it has.
    pub iosize: u16,
}

/// A value that asks for a list instead of saying something.
pub fn asks_for_help(value: &str) -> bool {
    matches!(value, "help" | "?")
}

/// Says that a value cannot be taken.
fn bad<T>(option: &str, value: &str, why: impl AsRef<str>) -> Result<T, UsageError> {
    Err(UsageError(format!("{option} {value}: {}", why.as_ref())))
}

/// `key=value` pairs after the first comma-separated word; a word without `=` has the value "on".
fn properties(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(',').filter(|word| !word.is_empty()).map(|word| word.split_once('=').unwrap_or((word, "on")))
}

/// `-m`: a number of MiB, or of what its suffix says; QEMU's `size=` may stand before it.
pub fn memory(value: &str) -> Result<u64, UsageError> {
    const OPTION: &str = "-m";
    const WAY_OUT: &str = "it is not a size of memory; give a number of MiB, or one with a suffix k, M, G or T, such as 512 or 2G";
    let (size, rest) = value.split_once(',').unwrap_or((value, ""));
    if let Some((key, _)) = properties(rest).next() {
        return bad(OPTION, value, format!("{key} is not supported by Tessera yet; give the size alone"));
    }
    let size = size.strip_prefix("size=").unwrap_or(size);
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &size[digits.len()..] {
        "" | "m" | "M" | "MB" | "MiB" => 20,
        "b" | "B" => 0,
        "k" | "K" => 10,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return bad(OPTION, value, WAY_OUT),
    };
    // QEMU takes a fraction, too: 1.5G.
    let number: f64 = match digits.parse() {
        Ok(number) if digits.starts_with(|c: char| c.is_ascii_digit()) => number,
        _ => return bad(OPTION, value, WAY_OUT),
    };
    let bytes = number * (1u128 << shift) as f64;
    if bytes < MIN_RAM as f64 {
        return bad(OPTION, value, format!("a PC needs more memory; give at least {} (MiB)", MIN_RAM >> 20));
    }
    if bytes > MAX_RAM as f64 {
        return bad(OPTION, value, format!("the machine has room for less; give at most {}G", MAX_RAM >> 30));
    }
    // Exact: the bounds keep it far below 2^53. Whole pages, as a machine has.
    Ok((bytes as u64).next_multiple_of(4096))
}

/// `-machine`.
pub fn machine(value: &str) -> Result<Machine, UsageError> {
    const OPTION: &str = "-machine";
    let mut machine = Machine::default();
    for (index, (key, setting)) in properties(value).enumerate() {
        let name = match (index, key) {
            (_, "type") => setting,
            (0, name) if !value.split(',').next().unwrap_or_default().contains('=') => name,
            (_, "accel") => {
                machine.accels = setting
                    .split(':')
                    .map(|name| accel_named(OPTION, value, name))
                    .collect::<Result<_, _>>()?;
                continue;
            }
            (_, "kernel-irqchip" | "kernel_irqchip") if irqchip(setting).is_some() => {
                machine.irqchip = irqchip(setting);
                continue;
            }
            (_, "kernel-irqchip" | "kernel_irqchip") => {
                return bad(OPTION, value, "kernel-irqchip is not understood; give on, off or split");
            }
            _ => return bad(OPTION, value, format!("{key} is not supported by Tessera yet; leave it out")),
        };
        machine.kind = match name {
            "pc" => MachineKind::Pc,
            "q35" => MachineKind::Q35,
            _ => return bad(OPTION, value, "there is no such machine here; give pc or q35"),
        };
    }
    Ok(machine)
}

/// The value of `kernel-irqchip=`.
fn irqchip(text: &str) -> Option<IrqChip> {
    Some(match text {
        "on" => IrqChip::On,
        "off" => IrqChip::Off,
        "split" => IrqChip::Split,
        _ => return None,
    })
}

fn accel_named(option: &str, value: &str, name: &str) -> Result<Accel, UsageError> {
    match name {
        "tcg" => Ok(Accel::default()),
        "kvm" => Ok(Accel::Kvm(None)),
        "xen" | "hvf" | "nvmm" | "whpx" | "qtest" | "mshv" => bad(
            option,
            value,
            format!("QEMU's accelerator {name} is not supported by Tessera yet; give tcg or kvm"),
        ),
        _ => bad(option, value, "there is no such accelerator; give tcg or kvm"),
    }
}

/// `-accel`.
pub fn accel(value: &str) -> Result<Accel, UsageError> {
    const OPTION: &str = "-accel";
    let (name, rest) = value.split_once(',').unwrap_or((value, ""));
    let mut accel = accel_named(OPTION, value, name.strip_prefix("accel=").unwrap_or(name))?;
    for (key, setting) in properties(rest) {
        match (key, setting, &mut accel) {
            ("tb-size", mib, Accel::Tcg(tcg)) => match mib.parse::<u64>() {
                Ok(mib) if CODE_CACHE_MIB.contains(&mib) => tcg.code_cache = Some(mib << 20),
                _ => {
                    let (least, most) = (CODE_CACHE_MIB.start(), CODE_CACHE_MIB.end());
                    return bad(
                        OPTION,
                        value,
                        format!(
                            "the size of the code cache is not possible; give a tb-size from {least} to {most} (MiB)"
                        ),
                    );
                }
            },
            // With one processor both are the same; the cache is always mapped twice.
            ("thread", "single" | "multi", Accel::Tcg(_)) | ("split-wx", "on", Accel::Tcg(_)) => {}
            ("kernel-irqchip", setting, Accel::Kvm(chip)) if irqchip(setting).is_some() => {
                *chip = irqchip(setting)
            }
            ("one-insn-per-tb", "on" | "off", Accel::Tcg(tcg)) => tcg.one_insn = setting == "on",
            ("opt", list, Accel::Tcg(tcg)) => tcg.opt = Some(optimisations(value, list, tcg.opt)?),
            ("hot", samples, Accel::Tcg(tcg)) => match samples.parse() {
                Ok(samples) => tcg.hot = Some(samples),
                Err(_) => return bad(OPTION, value, "hot is a number of samples, 0 to 255"),
            },
            ("split-wx", "off", Accel::Tcg(_)) => {
                return bad(
                    OPTION,
                    value,
                    "memory is never writable and executable here; leave split-wx out",
                );
            }
            _ => {
                return bad(
                    OPTION,
                    value,
                    format!("{key}={setting} is not supported by Tessera yet; leave it out"),
                );
            }
        }
    }
    Ok(accel)
}

/// Optimisations by name, joined by colons, to find out which one a fault hides in. A word with a sign changes what was chosen
/// before it (at first all), any other is a beginning that names with signs, or more names, follow: `-link:-groups` is all but
/// two, `fold:forward` is two, `none:+fold` and `fold` are one.
fn optimisations(value: &str, list: &str, chosen: Option<OptFlags>) -> Result<OptFlags, UsageError> {
    let mut opt = chosen.unwrap_or(OptFlags::all());
    for (n, word) in list.split(':').enumerate() {
        let name = word.strip_prefix(['+', '-']).unwrap_or(word);
        let signed = name.len() < word.len();
        let meant = match name {
            "all" if !signed => OptFlags::all(),
            "none" if !signed => OptFlags::empty(),
            _ => match OptFlags::names().find(|(known, _)| known == name) {
                Some((_, flag)) => flag,
                None => {
                    let known: Vec<_> = OptFlags::names().map(|(name, _)| name).collect();
                    return bad(
                        "-accel",
                        value,
                        format!(
                            "there is no optimisation {word:?}; give all, none, or names joined by colons, with a minus to \
                             leave one out, from {}",
                            known.join(", ")
                        ),
                    );
                }
            },
        };
        if n == 0 && !signed {
            opt = OptFlags::empty();
        }
        opt.set(meant, !word.starts_with('-'));
    }
    Ok(opt)
}

/// `-smp`: everything in it must be 1.
pub fn smp(value: &str) -> Result<(), UsageError> {
    for (index, (key, setting)) in properties(value).enumerate() {
        let bare = index == 0 && !value.split(',').next().unwrap_or_default().contains('=');
        let (key, setting) = if bare { ("cpus", key) } else { (key, setting) };
        let known = [
            "cpus", "maxcpus", "drawers", "books", "sockets", "dies", "clusters", "modules", "cores",
            "threads",
        ];
        match setting.parse::<u32>() {
            Ok(1) if known.contains(&key) => {}
            Ok(2..) if known.contains(&key) => {
                return bad("-smp", value, "several processors are not supported by Tessera yet; give 1");
            }
            _ => return bad("-smp", value, "it is not a number of processors; give 1"),
        }
    }
    Ok(())
}

/// An option that names something Tessera has only the absence of.
pub fn only_none(option: &str, value: &str) -> Result<(), UsageError> {
    match value {
        "none" => Ok(()),
        _ => bad(option, value, "only none is supported by Tessera so far; give none"),
    }
}

/// `-device`.
pub fn device(value: &str) -> Result<DebugExit, UsageError> {
    const OPTION: &str = "-device";
    let (name, rest) = value.split_once(',').unwrap_or((value, ""));
    if name.strip_prefix("driver=").unwrap_or(name) != "isa-debug-exit" {
        return bad(OPTION, value, "Tessera has no such device (yet); -device help lists those it has");
    }
    let mut device = DebugExit { iobase: 0x501, iosize: 2 };
    for (key, setting) in properties(rest) {
        let number = number(setting).and_then(|number| u16::try_from(number).ok());
        match (key, number) {
            ("iobase", Some(port)) => device.iobase = port,
            ("iosize", Some(size @ (1 | 2 | 4))) => device.iosize = size,
            ("iobase", None) => {
                return bad(OPTION, value, "there is no such port; give iobase a port from 0 to 0xffff");
            }
            ("iosize", _) => {
                return bad(
                    OPTION,
                    value,
                    "that many ports cannot be written at once; give iosize 1, 2 or 4",
                );
            }
            ("id", _) => {}
            _ => return bad(OPTION, value, format!("isa-debug-exit has no property {key}; leave it out")),
        }
    }
    if u32::from(device.iobase) + u32::from(device.iosize) > 0x1_0000 {
        return bad(OPTION, value, "the ports end beyond 0xffff; give a smaller iobase");
    }
    Ok(device)
}

/// `-uuid`: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
pub fn uuid(value: &str) -> Result<[u8; 16], UsageError> {
    let mut uuid = [0; 16];
    let groups: Vec<_> = value.split('-').map(str::len).collect();
    let digits: String = value.split('-').collect();
    if groups != [8, 4, 4, 4, 12] || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return bad("-uuid", value, "it is not a UUID; give it as 550e8400-e29b-41d4-a716-446655440000");
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte =
            pair.iter().fold(0, |byte, digit| byte << 4 | char::from(*digit).to_digit(16).unwrap_or(0) as u8);
    }
    Ok(uuid)
}

/// `-name`: the name itself; what QEMU calls its process and threads is accepted and has no meaning here.
pub fn name(value: &str) -> Result<String, UsageError> {
    let (name, rest) = value.split_once(',').unwrap_or((value, ""));
    if let Some((key, _)) = properties(rest).find(|(key, _)| *key != "debug-threads") {
        return bad("-name", value, format!("{key} is not supported by Tessera yet; give the name alone"));
    }
    Ok(name.strip_prefix("guest=").unwrap_or(name).to_owned())
}

/// `-echr`: the code of a character.
pub fn escape_character(value: &str) -> Result<u8, UsageError> {
    match number(value).and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(code),
        None => bad("-echr", value, "it is not a character; give the code of one, such as 20 for Ctrl-T"),
    }
}

/// `-dfilter`: ranges of guest addresses, both ends included.
pub fn address_ranges(value: &str) -> Result<Vec<RangeInclusive<u64>>, UsageError> {
    value
        .split(',')
        .map(|range| {
            let parsed = if let Some((start, end)) = range.split_once("..") {
                number(start).zip(number(end))
            } else if let Some((start, length)) = range.split_once('+') {
                let length = number(length).and_then(|length| length.checked_sub(1));
                number(start).zip(length).and_then(|(start, more)| Some((start, start.checked_add(more)?)))
            } else if let Some((end, length)) = range.split_once('-') {
                let length = number(length).and_then(|length| length.checked_sub(1));
                number(end).zip(length).and_then(|(end, more)| Some((end.checked_sub(more)?, end)))
            } else {
                None
            };
            match parsed {
                Some((start, end)) if start <= end => Ok(start..=end),
                _ => bad(
                    "-dfilter",
                    value,
                    "the ranges are not understood; give them as in 0x8000..0x8fff, 0x8000+0x1000 or 0x8fff-0x1000",
                ),
            }
        })
        .collect()
}

/// A decimal or `0x` hexadecimal number.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_memory() {
        assert_eq!(memory("512"), Ok(512 << 20));
        assert_eq!(memory("size=2G"), Ok(2 << 30));
        assert_eq!(memory("1.5G"), Ok(3 << 29));
        assert_eq!(memory("4097k"), Ok((4097 << 10) + 3072), "whole pages");
        for wrong in
            ["0", "17P", "abc", "", "1", "-5", "12Q", "nan", "inf", "1e30G", "4,slots=2", "1.2.3", "M"]
        {
            let message = memory(wrong).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("-m {wrong}: ")) && message.len() > 20 + wrong.len(),
                "{message}"
            );
        }
    }

    #[test]
    fn machines_and_accelerators() {
        assert_eq!(machine("pc").unwrap().kind, MachineKind::Pc);
        assert_eq!(machine("type=q35").unwrap().kind, MachineKind::Q35);
        assert_eq!(machine("q35,accel=tcg").unwrap().accels, [Accel::default()]);
        assert_eq!(machine("q35,accel=kvm:tcg").unwrap().accels, [Accel::Kvm(None), Accel::default()]);
        assert_eq!(machine("accel=tcg").unwrap().kind, MachineKind::Pc);
        for wrong in [
            "isapc",
            "pc-i440fx-9.0",
            "q35,smm=off",
            "pc,accel=xen",
            "pc,kernel-irqchip=half",
            "pc,accel=",
            "pc,accel=kvm:turbo",
            "pc,q35",
        ] {
            assert!(machine(wrong).is_err(), "{wrong}");
        }
        let bounded = Accel::Tcg(Tcg { code_cache: Some(64 << 20), ..Tcg::default() });
        assert_eq!(accel("tcg,tb-size=64,thread=multi"), Ok(bounded));
        assert_eq!(accel("kvm"), Ok(Accel::Kvm(None)));
        assert_eq!(accel("kvm,kernel-irqchip=off"), Ok(Accel::Kvm(Some(IrqChip::Off))));
        assert_eq!(accel("kvm,kernel-irqchip=on"), Ok(Accel::Kvm(Some(IrqChip::On))));
        assert_eq!(accel("kvm,kernel-irqchip=split"), Ok(Accel::Kvm(Some(IrqChip::Split))));
        assert!(accel("kvm,kernel-irqchip=half").unwrap_err().to_string().contains("kernel-irqchip=half"));
        let opt = OptFlags::FORWARD | OptFlags::DEAD_CODE;
        let slow = Accel::Tcg(Tcg { one_insn: true, opt: Some(opt), ..Tcg::default() });
        assert_eq!(accel("tcg,one-insn-per-tb=on,opt=forward:dead-code"), Ok(slow));
        assert_eq!(accel("tcg,hot=9"), Ok(Accel::Tcg(Tcg { hot: Some(9), ..Tcg::default() })));
        for wrong in [
            "xen",
            "tcg,hot=256",
            "tcg,hot=x",
            "kvm,hot=1",
            "turbo",
            "kvm,tb-size=64",
            "tcg,tb-size=0",
            "tcg,tb-size=99999",
            "tcg,tb-size=x",
            "tcg,one-insn-per-tb=x",
            "tcg,opt=fish",
            "tcg,opt=",
            "tcg,opt",
            "kvm,one-insn-per-tb=on",
        ] {
            assert!(accel(wrong).is_err(), "{wrong}");
        }
        for right in ["1", "cpus=1", "1,sockets=1,cores=1", "cores=1"] {
            assert_eq!(smp(right), Ok(()), "{right}");
        }
        for wrong in ["2", "0", "x", "1,cores=2", "cpus=4", "1,fish=1"] {
            assert!(smp(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn optimisations_by_name() {
        let opt = |text: &str| match accel(&format!("tcg,{text}")) {
            Ok(Accel::Tcg(tcg)) => tcg.opt.expect("it was given"),
            other => panic!("{text}: {other:?}"),
        };
        let all = OptFlags::all();
        assert_eq!(opt("opt=all"), all);
        assert_eq!(opt("opt=none"), OptFlags::empty());
        assert_eq!(opt("opt=-link"), all - OptFlags::LINK);
        assert_eq!(opt("opt=-link:-side-exits"), all - OptFlags::LINK - OptFlags::SIDE_EXITS);
        assert_eq!(opt("opt=-link,opt=-groups"), all - OptFlags::LINK - OptFlags::GROUPS);
        assert_eq!(opt("opt=all:-fold:+fold"), all);
        assert_eq!(opt("opt=none:+fold"), OptFlags::FOLD);
        assert_eq!(opt("opt=fold:jump-cache"), OptFlags::FOLD | OptFlags::JUMP_CACHE);
        for wrong in ["fish", "-fish", "", "-all", "+none", "fold+link", "--fold", "FOLD"] {
            let message = accel(&format!("tcg,opt={wrong}")).unwrap_err().to_string();
            assert!(message.contains(&format!("{wrong:?}")) && message.contains("second-way"), "{message}");
        }
    }

    #[test]
    fn devices() {
        assert_eq!(device("isa-debug-exit"), Ok(DebugExit { iobase: 0x501, iosize: 2 }));
        assert_eq!(
            device("isa-debug-exit,iobase=0xf4,iosize=0x04"),
            Ok(DebugExit { iobase: 0xf4, iosize: 4 })
        );
        for wrong in [
            "virtio-blk-pci,drive=d",
            "isa-debug-exit,iobase=0x10000",
            "isa-debug-exit,iosize=3",
            "isa-debug-exit,iobase=0xffff",
            "isa-debug-exit,x=1",
        ] {
            assert!(device(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn identities() {
        let bytes = uuid("550e8400-e29b-41d4-a716-446655440000").unwrap();
        assert_eq!(bytes[..6], [0x55, 0x0e, 0x84, 0x00, 0xe2, 0x9b]);
        assert!(uuid("550e8400e29b41d4a716446655440000").is_err());
        assert!(uuid("550e8400-e29b-41d4-a716-44665544000é").is_err());
        assert_eq!(name("guest=web,debug-threads=on"), Ok("web".into()));
        assert_eq!(escape_character("0x14"), Ok(20));
        assert!(escape_character("256").is_err());
    }

    #[test]
    fn ranges_of_addresses() {
        assert_eq!(address_ranges("0x8000..0x8fff,16+16"), Ok(vec![0x8000..=0x8fff, 16..=31]));
        assert_eq!(address_ranges("0x1f-0x10"), Ok(vec![0x10..=0x1f]));
        for wrong in ["", "5", "9..8", "1+0", "0x10-0x20", "0xffffffffffffffff+2", "a..b"] {
            assert!(address_ranges(wrong).is_err(), "{wrong}");
        }
    }
}
