//! Tessera, a full-system PC emulator with dynamic binary translation.
//!
//! | module | does |
//! |---|---|
//! | [`cli`] | QEMU's command line, read and checked |
//! | [`machine`] | builds the machine and runs it |
//! | [`vcpu`] | a vCPU's thread |
//! | [`accel`] | what executes the guest's instructions |
//! | [`event_loop`] | the main thread's loop: host input and output, signals |
//! | [`backends`] | the host side of devices |
//! | [`guest_files`] | kernel and initial RAM disk |
//! | [`native_speed`] | how fast the host is, for the embedded firmware |
//! | [`debug`] | the log, gdb |

mod accel;
mod backends;
mod cli;
mod debug;
mod event_loop;
mod guest_files;
mod machine;
mod native_speed;
mod vcpu;

use std::process::ExitCode;

use cli::Invocation;
use machine::Machine;

fn main() -> ExitCode {
    let outcome = cli::parse(std::env::args_os().skip(1)).and_then(|invocation| match invocation {
        Invocation::Print(text) => {
            print!("{text}");
            Ok(0)
        }
        Invocation::Run(config) => Machine::build(*config)?.run(),
    });
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("tessera: {error}");
            ExitCode::FAILURE
        }
    }
}
