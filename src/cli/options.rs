//! The options as they are typed and explained: names, values, help.
//!
//! clap holds the definitions and makes the help from them; what a value means is [`super::values`]'
//! business, which also words the errors. Each field is named after its option; its comment is the option's
//! help.

use std::ffi::OsString;

use clap::Parser;

const MACHINE: &str = "The machine";
const GUEST: &str = "What it boots";
const CONNECTIONS: &str = "Its connections";
const RUNNING: &str = "How it runs";
const LOOKING_IN: &str = "Looking in";
const PROGRAM: &str = "This program";

/// A full-system PC emulator with dynamic binary translation.
///
/// Options have QEMU's names and meanings; one dash or two. Without a guest, the embedded firmware tests the
/// emulated machine, tells how fast it is, and ends.
#[derive(Parser, Debug)]
#[command(
    name = "tessera",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    max_term_width = 100,
    after_help = "Example: tessera -m 512 -nographic -kernel vmlinuz -initrd initrd.gz -append console=ttyS0\n\
                  On the terminal, Ctrl-A x ends the emulator and Ctrl-A h shows what else Ctrl-A does."
)]
pub struct Options {
    /// Guest memory in MiB, or with a suffix k, M, G or T [default: 128]
    #[arg(long, value_name = "SIZE", help_heading = MACHINE)]
    pub m: Option<String>,
    /// The board: pc or q35 ("help" lists them)
    #[arg(long, alias = "M", value_name = "NAME", help_heading = MACHINE)]
    pub machine: Option<String>,
    /// The processor model, and features to add or take: NAME[,+F][,-F] ("help" lists them)
    #[arg(long, value_name = "MODEL", help_heading = MACHINE)]
    pub cpu: Option<String>,
    /// The number of processors; only 1 so far
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    pub smp: Option<String>,
    /// A device: isa-debug-exit[,iobase=PORT][,iosize=N] ("help" lists them)
    #[arg(long, value_name = "NAME[,...]", help_heading = MACHINE)]
    pub device: Vec<String>,
    /// The machine's UUID, in the SMBIOS tables
    #[arg(long, value_name = "UUID", help_heading = MACHINE)]
    pub uuid: Option<String>,
    /// The graphics adapter; only "none" so far
    #[arg(long, value_name = "none", help_heading = MACHINE)]
    pub vga: Option<String>,
    /// The network; only "none" so far
    #[arg(long, value_name = "none", help_heading = MACHINE)]
    pub net: Vec<String>,
    /// The network; only "none" so far
    #[arg(long, value_name = "none", help_heading = MACHINE)]
    pub nic: Vec<String>,
    /// No serial port on the terminal unless -serial says so
    #[arg(long, help_heading = MACHINE)]
    pub nodefaults: bool,

    /// A kernel: a Linux bzImage or an ELF file with a PVH entry
    #[arg(long, value_name = "FILE", help_heading = GUEST)]
    pub kernel: Option<OsString>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = GUEST)]
    pub initrd: Option<OsString>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", help_heading = GUEST)]
    pub append: Option<OsString>,

    /// No window; the first serial port is on this terminal. There is no window yet, so this is the default
    #[arg(long, help_heading = CONNECTIONS)]
    pub nographic: bool,
    /// The display; only "none" so far. The first serial port then goes nowhere unless -serial says so
    #[arg(long, value_name = "none", help_heading = CONNECTIONS)]
    pub display: Option<String>,
    /// Where a serial port goes, once for each port: stdio, mon:stdio, null, none, file:PATH, pty,
    /// unix:PATH[,server=on][,wait=off], tcp:[HOST]:PORT[,server=on][,wait=off]
    #[arg(long, value_name = "DEV", help_heading = CONNECTIONS)]
    pub serial: Vec<OsString>,
    /// Where the debug console at port 0xe9 goes; as for -serial
    #[arg(long, value_name = "DEV", help_heading = CONNECTIONS)]
    pub debugcon: Option<OsString>,
    /// The parallel port; only "none" so far
    #[arg(long, value_name = "none", help_heading = CONNECTIONS)]
    pub parallel: Vec<String>,
    /// The monitor; only "none" so far
    #[arg(long, value_name = "none", help_heading = CONNECTIONS)]
    pub monitor: Option<String>,
    /// The code of the control character that starts a command on the terminal [default: 1, Ctrl-A]
    #[arg(long, value_name = "CODE", help_heading = CONNECTIONS)]
    pub echr: Option<String>,

    /// What executes the guest: kvm, the host's processor, or tcg, the translator, whose code cache tb-size=N bounds to N
    /// MiB, and which with one-insn-per-tb=on takes instructions one by one. Of several the first that can be had [default: tcg]
    #[arg(long, value_name = "tcg|kvm[,...]", help_heading = RUNNING)]
    pub accel: Vec<String>,
    /// The same as -accel kvm
    #[arg(long, help_heading = RUNNING)]
    pub enable_kvm: bool,
    /// End when the guest resets the machine
    #[arg(long, help_heading = RUNNING)]
    pub no_reboot: bool,
    /// Stay, with the machine stopped, when the guest powers it off
    #[arg(long, help_heading = RUNNING)]
    pub no_shutdown: bool,
    /// A name for this guest, in this program's messages
    #[arg(long, value_name = "TEXT", help_heading = RUNNING)]
    pub name: Option<String>,

    /// Listen for gdb at port 1234 of the loopback address: -gdb tcp::1234
    #[arg(long, help_heading = LOOKING_IN)]
    pub s: bool,
    /// Do not start the guest before gdb says so
    #[arg(long = "S", help_heading = LOOKING_IN)]
    pub stopped: bool,
    /// Where to listen for gdb: tcp:[HOST]:PORT, unix:PATH, stdio
    #[arg(long, value_name = "DEV", help_heading = LOOKING_IN)]
    pub gdb: Option<String>,
    /// What to log ("help" lists the items)
    #[arg(long, value_name = "ITEM,...", help_heading = LOOKING_IN)]
    pub d: Vec<String>,
    /// Where the log goes instead of standard error
    #[arg(long = "D", value_name = "FILE", help_heading = LOOKING_IN)]
    pub log_file: Option<OsString>,
    /// Log only about these guest addresses: START..END, START+LENGTH, START-LENGTH
    #[arg(long, value_name = "RANGE,...", help_heading = LOOKING_IN)]
    pub dfilter: Vec<String>,

    /// Show this text
    #[arg(long, alias = "h", help_heading = PROGRAM)]
    pub help: bool,
    /// Show the version
    #[arg(long, help_heading = PROGRAM)]
    pub version: bool,
}
