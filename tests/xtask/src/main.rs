//! Project tasks: `cargo xtask <demo|test|prove|golden|bench>`.
//!
//! Everything here drives the emulator from outside, as a person at a terminal would: it starts the
//! program, reads the serial console, types, and looks at exit statuses. It knows no crate of the
//! emulator, so any program that takes the same options (QEMU, for one) can stand in its place with
//! `--emulator`, which is also how the guests and the tests themselves are checked.
//!
//! | module | does |
//! |---|---|
//! | [`project`] | finds the repository, runs cargo, builds the program |
//! | [`packages`] | obtains Debian packages without root, cached below `target/guests` |
//! | [`initramfs`] | packs the busybox userland that the kernels boot to |
//! | [`trees`] | merges packages into a file tree, which is a guest's RAM disk and a root folder on the host |
//! | [`login_system`] | a Debian root file system with systemd, to the login prompt |
//! | [`guests`] | the table of guests: which kernel, which initial RAM disk, which parameters |
//! | [`console`] | a child process on a pseudo-terminal: expect, send, wait |
//! | [`gdb_client`] | gdb's remote protocol from the debugger's side |
//! | [`process`] | CPU time and memory of a running process, from `/proc` |
//! | [`demo`], [`test`], [`boot_tests`], [`debugger`], [`programs`], [`prove`], [`golden`], [`bench`] | the tasks |

mod bench;
mod boot_tests;
mod console;
mod debugger;
mod demo;
mod gdb_client;
mod golden;
mod guests;
mod initramfs;
mod login_system;
mod packages;
mod process;
mod programs;
mod project;
mod prove;
mod test;
mod trees;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Project tasks for Tessera.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot Debian's cloud kernel to an interactive shell on this terminal
    Demo {
        /// The emulator to run instead of this project's release build
        #[arg(long, value_name = "PROGRAM")]
        emulator: Option<PathBuf>,
        /// Further options for the emulator
        #[arg(last = true)]
        extra: Vec<String>,
    },
    /// Run everything a change must pass: format, lints, unit tests, boot tests
    Test {
        /// Run only what has this text in its name
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
        /// The emulator to run instead of this project's release build
        #[arg(long, value_name = "PROGRAM")]
        emulator: Option<PathBuf>,
        /// List the names and run nothing
        #[arg(long)]
        list: bool,
        /// Show the serial console of every boot test, not only of failed ones
        #[arg(long)]
        show_console: bool,
        /// Run the programs in their long form, for minutes each
        #[arg(long)]
        long: bool,
    },
    /// Run random instruction sequences on the translator and on this host's silicon, and compare
    #[command(disable_help_flag = true)]
    Prove {
        /// See `cargo xtask prove --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Compare the host code of guest snippets with what is written in tests/golden/expected
    Golden {
        /// Write the files anew, to be looked at in the diff
        #[arg(long)]
        bless: bool,
    },
    /// Measure workloads against QEMU's translator and against this host
    Bench {
        #[command(flatten)]
        options: bench::Options,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Demo { emulator, extra } => demo::run(emulator, &extra),
        Task::Test { filter, emulator, list, show_console, long } => {
            test::run(&test::Options { filter, emulator, list, show_console, long })
        }
        Task::Prove { arguments } => prove::run(&arguments),
        Task::Golden { bless } => golden::run(bless),
        Task::Bench { options } => bench::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
